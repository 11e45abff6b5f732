/* The two ends: embedding lookup, and the head with its loss. Logits exist for one chunk of tokens at a time; loss,
 * the gradient of the hidden states and that of the head's weight come from one pass over them.
 *
 * With P > 1 ranks share the vocabulary: each has its own tokens, and rows of both weights. Rows of the embedding
 * come from their owners, and their gradients go back, in the rounds of lookup.h; the loss is in vocabulary_loss.c. A
 * group of one moves nothing.
 *
 * Letters: T tokens, H width, V vocabulary, P members, c tokens of each in a round. */
#include "model/vocabulary.h"

static Group *group_of(const Model *m) {
    return &m->comm->group[AXIS_VOCABULARY];
}

static bool alone(const Model *m) {
    return group_of(m)->axis.size == 1;
}

/* ---- Embedding -------------------------------------------------------------------------------- */

/* Of two buffers [P c, H] a round has that of its parity: as many rows as anybody could ask for. */
typedef struct {
    Tensor rows[2];
    Event moved[2];
} Travellers;

static Travellers make_travellers(const Model *m, const Lookup *l) {
    int64_t room = l->members * lookup_round_tokens(l, 0);
    Travellers t = {0};
    t.rows[0] = t.rows[1] = arena_tensor(m->work, m->real, DIM(room, m->spec->hidden));
    if (l->rounds > 1) t.rows[1] = arena_tensor(m->work, m->real, DIM(room, m->spec->hidden));
    return t;
}

static Tensor round_ids(const Lookup *l, int64_t r) {
    return tensor_rows(l->id, l->round[r].first, l->round[r].rows);
}

/* The next round's rows are read while those of this one travel. */
static void fetch_rows(const Model *m, const Weights *w, MicroBatch *b) {
    const Lookup *l = &b->lookup;
    Mark mark = arena_mark(m->work);
    Travellers t = make_travellers(m, l);
    for (int64_t r = 0; r < l->rounds; r++) {
        Tensor rows = t.rows[r % 2];
        stream_wait(m->compute, t.moved[r % 2]); /* the buffer's last reader */
        embedding(m->compute, tensor_rows(rows, 0, l->round[r].rows), round_ids(l, r), w->at[EMBED]);
        stream_wait(m->network, event_record(m->compute));
        all_to_all_spans(group_of(m), m->network, b->x, l->round[r].mine, rows, l->round[r].theirs);
        t.moved[r % 2] = event_record(m->network);
    }
    stream_wait(m->compute, event_record(m->network));
    arena_reset(m->work, mark);
}

void embed_forward(const Model *m, const Weights *w, MicroBatch *b) {
    Component before = device_component(m->device, COMPONENT_VOCABULARY);
    if (alone(m))
        embedding(m->compute, b->x, b->token, w->at[EMBED]);
    else
        fetch_rows(m, w, b);
    device_component(m->device, before);
}

static void send_gradients(const Model *m, const MicroBatch *b, Travellers *t, int64_t r) {
    const LookupRound *round = &b->lookup.round[r];
    stream_wait(m->network, event_record(m->compute)); /* the buffer's last reader */
    all_to_all_spans(group_of(m), m->network, t->rows[r % 2], round->theirs, b->x, round->mine);
    t->moved[r % 2] = event_record(m->network);
}

/* Which of the rows here is not trained; -1: none. */
static int64_t frozen_row(const Model *m) {
    int64_t row = m->frozen - m->vocabulary.first;
    return m->frozen >= 0 && row >= 0 && row < m->vocabulary.here ? row : -1;
}

/* A row's gradients are added in the order of rounds, members and positions. */
static void return_rows(const Model *m, Weights *dw, const MicroBatch *b) {
    const Lookup *l = &b->lookup;
    Mark mark = arena_mark(m->work);
    Travellers t = make_travellers(m, l);
    send_gradients(m, b, &t, 0);
    for (int64_t r = 0; r < l->rounds; r++) {
        stream_wait(m->compute, t.moved[r % 2]);
        if (r + 1 < l->rounds) send_gradients(m, b, &t, r + 1);
        embedding_backward(m->compute, dw->at[EMBED], tensor_rows(t.rows[r % 2], 0, l->round[r].rows), round_ids(l, r),
                           frozen_row(m));
    }
    arena_reset(m->work, mark);
}

void embed_backward(const Model *m, Weights *dw, const MicroBatch *b) {
    Component before = device_component(m->device, COMPONENT_VOCABULARY);
    if (alone(m))
        embedding_backward(m->compute, dw->at[EMBED], b->x, b->token, frozen_row(m));
    else
        return_rows(m, dw, b);
    device_component(m->device, before);
}

/* ---- Head and loss ---------------------------------------------------------------------------- */

/* One chunk: hidden [c, H] -> loss, and with dw: dhidden [c, H] and the head's gradient. */
static void chunk_loss(const Model *m, const Weights *w, Weights *dw, Tensor hidden, Tensor dhidden, Tensor target,
                       Tensor loss, Tensor trained) {
    Stream *s = m->compute;
    int64_t c = hidden.dim[0], V = m->spec->vocabulary;
    Mark mark = arena_mark(m->work);
    Tensor logits = arena_tensor(m->work, m->sum, DIM(c, V));
    linear(s, logits, hidden, w->at[HEAD]);
    if (!dw) {
        cross_entropy(s, loss, (Tensor){0}, logits, target, trained);
    } else {
        Tensor dlogits = m->real == m->sum ? logits : arena_tensor(m->work, m->real, DIM(c, V));
        cross_entropy(s, loss, dlogits, logits, target, trained);
        linear_dx(s, dhidden, dlogits, w->at[HEAD], false);
        linear_dw(s, dw->at[HEAD], dlogits, hidden);
    }
    arena_reset(m->work, mark);
}

static void loss_alone(const Head *h) {
    const Model *m = h->m;
    int64_t T = h->b->tokens;
    for (int64_t at = 0; at < T; at += m->loss_chunk) {
        int64_t c = min64(m->loss_chunk, T - at);
        chunk_loss(m, h->w, h->dw, tensor_rows(h->hidden, at, c), tensor_rows(h->dhidden, at, c),
                   tensor_rows(h->b->target, at, c), h->loss, h->trained);
    }
}

void head_loss(const Model *m, const Weights *w, Weights *dw, MicroBatch *b, Tensor loss, Tensor trained) {
    int64_t T = b->tokens, H = m->spec->hidden, rows = vocabulary_rows(m, b, dw != NULL);
    Component before = device_component(m->device, COMPONENT_VOCABULARY);
    Mark mark = arena_mark(m->work);
    Tensor inverse = arena_tensor(m->work, m->sum, DIM(T));
    Tensor hidden = arena_tensor(m->work, m->real, DIM(rows, H)), dhidden = hidden;
    if (dw) dhidden = arena_tensor(m->work, m->real, DIM(rows, H));
    rms_norm(m->compute, tensor_rows(hidden, 0, T), inverse, b->x, w->at[FINAL_NORM], m->spec->norm_epsilon);
    Head h = {.m = m, .w = w, .dw = dw, .b = b, .hidden = hidden, .dhidden = dhidden, .loss = loss, .trained = trained};
    if (alone(m)) {
        loss_alone(&h);
    } else {
        zero(m->compute, tensor_rows(hidden, T, rows - T));
        vocabulary_loss(&h);
    }
    if (dw) {
        rms_norm_backward(m->compute, b->gradient, dw->at[FINAL_NORM], tensor_rows(dhidden, 0, T), b->x,
                          w->at[FINAL_NORM], inverse, false);
        b->x = b->gradient;
    }
    arena_reset(m->work, mark);
    device_component(m->device, before);
}

/* ---- Generation ------------------------------------------------------------------------------- */

int64_t vocabulary_room(const Model *m) {
    return group_of(m)->axis.size * m->vocabulary.each;
}

static Tensor one_row(Tensor t) {
    return tensor_view(t, DIM(1, tensor_count(t)));
}

/* Everybody's part, one behind the other; only the last ones are short, so the first V are the logits. */
static void logits_of_parts(const Model *m, const Weights *w, Tensor hidden, int root, Tensor logits) {
    Tensor mine = arena_tensor(m->work, m->sum, DIM(m->vocabulary.each));
    stream_wait(m->network, event_record(m->compute));
    broadcast(&m->comm->group[AXIS_WORLD], m->network, hidden, root);
    stream_wait(m->compute, event_record(m->network));
    zero(m->compute, mine);
    linear(m->compute, one_row(tensor_rows(mine, 0, m->vocabulary.here)), hidden, w->at[HEAD]);
    stream_wait(m->network, event_record(m->compute));
    all_gather(group_of(m), m->network, logits, mine);
    stream_wait(m->compute, event_record(m->network));
}

void head_logits(const Model *m, const Weights *w, const MicroBatch *b, int64_t row, int root, Tensor logits) {
    bool here = row >= 0;
    if (!here && alone(m)) return;
    Component before = device_component(m->device, COMPONENT_VOCABULARY);
    Mark mark = arena_mark(m->work);
    Tensor inverse = arena_tensor(m->work, m->sum, DIM(1)),
           hidden = arena_tensor(m->work, m->real, DIM(1, m->spec->hidden));
    if (here)
        rms_norm(m->compute, hidden, inverse, tensor_rows(b->x, row, 1), w->at[FINAL_NORM], m->spec->norm_epsilon);
    if (alone(m))
        linear(m->compute, one_row(logits), hidden, w->at[HEAD]);
    else
        logits_of_parts(m, w, hidden, root, logits);
    arena_reset(m->work, mark);
    device_component(m->device, before);
}
