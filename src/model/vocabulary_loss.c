/* The loss of a vocabulary in parts: member p of P has rows p ceil(V / P) .. of the head, and tokens of its own. So
 * either the tokens meet every part, or the parts meet every token; what moves is chosen by bytes
 * (mixture.loss_travel), both are exact. Logits exist for c P tokens and one part at a time.
 *
 * Activations travel: in rounds of c tokens of every member. Whoever has a part makes everybody's logits of it, all
 * learn what every part says of every row, and loss, dX and dW come from one pass over the logits. dX is a sum over
 * the parts and comes home as one.
 *
 *   network   hidden 0 | hidden 1 | stats 0 |                 | dX 0 | hidden 2 | stats 1 | ...
 *   compute            | logits 0 |         | dlogits, dW, dX | logits 1 ...    |
 *
 * Weights travel: the parts go round the group, each member's to the next. The first time they say what the loss is;
 * in training they come once more, each with the sum of its own gradient, which began at 0 behind its owner and is
 * added to at every stop. It comes home while the owner, as the last, works with its own part.
 *
 *   visit          0    1    2    3    4     P = 4; member 1 sees part
 *   first time     1    0    3    2
 *   second time         0    3    2    1     dW of part 1 began at member 2, was at 3 and 0, and comes home during the last visit
 *
 * Letters: T tokens here, H width, V vocabulary, P members, c tokens of a member in a round, K rounds, M as in
 * lookup.h, n rows of a part. */
#include "model/vocabulary.h"

static Group *group_of(const Model *m) {
    return &m->comm->group[AXIS_VOCABULARY];
}

/* The member's rows of the vocabulary. */
static Share part_of(const Model *m, int64_t member) {
    Axis a = group_of(m)->axis;
    a.index = (int)member;
    return axis_share(&a, m->spec->vocabulary);
}

static Tensor logits_gradient(const Model *m, Tensor logits) {
    return m->real == m->sum ? logits : arena_tensor(m->work, m->real, DIM(logits.dim[0], logits.dim[1]));
}

/* One member's stats of n rows, in [P, n, LOSS_STATS]. */
static Tensor stats_of(Tensor parts, int64_t member) {
    return tensor_view(tensor_rows(parts, member, 1), DIM(parts.dim[1], LOSS_STATS));
}

static void network_after_compute(const Model *m) {
    stream_wait(m->network, event_record(m->compute));
}

static void compute_after_network(const Model *m) {
    stream_wait(m->compute, event_record(m->network));
}

/* ---- Activations travel ------------------------------------------------------------------------ */

typedef struct {
    const Head *h;
    Tensor hidden[2]; /* [P c, H]: everybody's rows of a round, by its parity */
    Tensor dhidden;   /* sum [P c, H]: this part's share of their gradients; then, in this member's rows, all parts' */
    Event arrived[2], home;
} Rounds;

/* What a buffer of a round holds: rows of every member, in their order. */
static Tensor everybody(const Rounds *x, Tensor buffer, int64_t r) {
    const Lookup *l = &x->h->b->lookup;
    return tensor_rows(buffer, 0, l->members * lookup_round_tokens(l, r));
}

static Tensor own(const Rounds *x, Tensor buffer, int64_t r) {
    const Lookup *l = &x->h->b->lookup;
    int64_t n = lookup_round_tokens(l, r);
    return tensor_rows(buffer, l->index * n, n);
}

/* The round's rows of what has all tokens of a member, `each` members' in one round. */
static Tensor slice(const Rounds *x, Tensor all, int64_t r, int64_t each) {
    const Lookup *l = &x->h->b->lookup;
    return tensor_rows(all, each * min64(l->most, r * l->tokens), each * lookup_round_tokens(l, r));
}

static void gather_round(Rounds *x, int64_t r) {
    const Model *m = x->h->m;
    network_after_compute(m); /* the buffer's last readers */
    all_gather(group_of(m), m->network, everybody(x, x->hidden[r % 2], r), slice(x, x->h->hidden, r, 1));
    x->arrived[r % 2] = event_record(m->network);
}

static void take_home(const Rounds *x, int64_t r) {
    const Model *m = x->h->m;
    stream_wait(m->compute, x->home);
    copy(m->compute, slice(x, x->h->dhidden, r, 1), own(x, x->dhidden, r));
}

/* `stats`: of everybody's rows, all parts together. */
static void round_gradients(Rounds *x, int64_t r, Tensor logits, Tensor stats, Tensor target) {
    const Head *h = x->h;
    const Model *m = h->m;
    Tensor dlogits = logits_gradient(m, logits), dhidden = everybody(x, x->dhidden, r);
    cross_entropy_gradient(m->compute, dlogits, logits, stats, target, m->vocabulary.first, h->trained);
    linear_dw(m->compute, h->dw->at[HEAD], dlogits, everybody(x, x->hidden[r % 2], r));
    linear_dx(m->compute, dhidden, dlogits, h->w->at[HEAD], false);
    network_after_compute(m);
    reduce_scatter(group_of(m), m->network, own(x, dhidden, r), dhidden);
    x->home = event_record(m->network);
}

static void loss_round(Rounds *x, int64_t r) {
    const Head *h = x->h;
    const Model *m = h->m;
    const Lookup *l = &h->b->lookup;
    Mark mark = arena_mark(m->work);
    Tensor hidden = everybody(x, x->hidden[r % 2], r), target = slice(x, l->target, r, l->members);
    int64_t n = hidden.dim[0];
    Tensor logits = arena_tensor(m->work, m->sum, DIM(n, m->vocabulary.here));
    Tensor parts = arena_tensor(m->work, m->sum, DIM(l->members, n, LOSS_STATS));
    Tensor stats = arena_tensor(m->work, m->sum, DIM(n, LOSS_STATS)), mine = stats_of(parts, l->index);
    linear(m->compute, logits, hidden, h->w->at[HEAD]);
    cross_entropy_part(m->compute, mine, logits, target, m->vocabulary.first);
    network_after_compute(m);
    all_gather(group_of(m), m->network, parts, mine);
    compute_after_network(m); /* so the gradients of the round before have come home, too */
    cross_entropy_join(m->compute, stats, parts);
    cross_entropy_sum(m->compute, h->loss, own(x, stats, r), own(x, target, r));
    if (h->dw && r > 0) take_home(x, r - 1);
    if (h->dw) round_gradients(x, r, logits, stats, target);
    arena_reset(m->work, mark);
}

static void loss_by_activations(const Head *h) {
    const Model *m = h->m;
    const Lookup *l = &h->b->lookup;
    int64_t rows = l->members * lookup_round_tokens(l, 0), H = m->spec->hidden;
    Rounds x = {.h = h};
    x.hidden[0] = x.hidden[1] = arena_tensor(m->work, m->real, DIM(rows, H));
    if (l->rounds > 1) x.hidden[1] = arena_tensor(m->work, m->real, DIM(rows, H));
    if (h->dw) x.dhidden = arena_tensor(m->work, m->sum, DIM(rows, H));
    gather_round(&x, 0);
    for (int64_t r = 0; r < l->rounds; r++) {
        stream_wait(m->compute, x.arrived[r % 2]);
        if (r + 1 < l->rounds) gather_round(&x, r + 1);
        loss_round(&x, r);
    }
    if (h->dw) take_home(&x, l->rounds - 1);
}

/* ---- Weights travel ---------------------------------------------------------------------------- */

typedef struct {
    const Head *h;
    Tensor weight[2];  /* [ceil(V / P), H]: the visiting part, by the visit's parity */
    Tensor dweight[2]; /* sum [ceil(V / P), H]: its gradient so far */
    Tensor parts;      /* sum [P, T, LOSS_STATS] */
    Tensor stats;      /* sum [T, LOSS_STATS] */
    Tensor dhidden;    /* sum [T, H] */
    Event here, dhere; /* the last part, and the last gradient, have come */
} Visits;

/* Whose part comes at visit v; at visit 0 and P, this member's. */
static int64_t visitor(const Visits *x, int64_t v) {
    const Axis *a = &group_of(x->h->m)->axis;
    return (a->index + a->size - v % a->size) % a->size;
}

static Tensor weight_at(const Visits *x, int64_t v) {
    if (v == 0) return x->h->w->at[HEAD];
    return tensor_rows(x->weight[v % 2], 0, part_of(x->h->m, visitor(x, v)).here);
}

static Tensor dweight_at(const Visits *x, int64_t v) {
    return tensor_rows(x->dweight[v % 2], 0, part_of(x->h->m, visitor(x, v)).here);
}

/* From visit v - 1 on: the part goes on, the next one comes. */
static void pass_weight(Visits *x, int64_t v) {
    const Model *m = x->h->m;
    network_after_compute(m); /* the buffer's last readers */
    shift(group_of(m), m->network, weight_at(x, v), weight_at(x, v - 1));
    x->here = event_record(m->network);
}

static void pass_dweight(Visits *x, int64_t v) {
    const Model *m = x->h->m;
    network_after_compute(m);
    shift(group_of(m), m->network, dweight_at(x, v), dweight_at(x, v - 1));
    x->dhere = event_record(m->network);
}

/* The part of visit v has come, and the next one may set off. */
static void await_weight(Visits *x, int64_t v) {
    const Model *m = x->h->m;
    stream_wait(m->compute, x->here);
    if (v + 1 < group_of(m)->axis.size) pass_weight(x, v + 1);
}

/* Tokens [at, at + c) of this rank's and their logits of the part at visit v, in scratch. */
static Tensor chunk_logits(const Visits *x, int64_t v, int64_t at, int64_t c) {
    const Model *m = x->h->m;
    Tensor weight = weight_at(x, v), logits = arena_tensor(m->work, m->sum, DIM(c, weight.dim[0]));
    linear(m->compute, logits, tensor_rows(x->h->hidden, at, c), weight);
    return logits;
}

static void look(const Visits *x, int64_t v) {
    const Head *h = x->h;
    const Model *m = h->m;
    int64_t member = visitor(x, v), T = h->b->tokens;
    Tensor stats = stats_of(x->parts, member);
    for (int64_t at = 0; at < T; at += m->loss_chunk) {
        int64_t c = min64(m->loss_chunk, T - at);
        Mark mark = arena_mark(m->work);
        Tensor logits = chunk_logits(x, v, at, c);
        cross_entropy_part(m->compute, tensor_rows(stats, at, c), logits, tensor_rows(h->b->target, at, c),
                           part_of(m, member).first);
        arena_reset(m->work, mark);
    }
}

/* dweight may still be on its way while the first chunk's logits are made. */
static void learn(const Visits *x, int64_t v, Tensor dweight, bool first) {
    const Head *h = x->h;
    const Model *m = h->m;
    int64_t member = visitor(x, v), T = h->b->tokens;
    for (int64_t at = 0; at < T; at += m->loss_chunk) {
        int64_t c = min64(m->loss_chunk, T - at);
        Mark mark = arena_mark(m->work);
        Tensor logits = chunk_logits(x, v, at, c), dlogits = logits_gradient(m, logits);
        cross_entropy_gradient(m->compute, dlogits, logits, tensor_rows(x->stats, at, c),
                               tensor_rows(h->b->target, at, c), part_of(m, member).first, h->trained);
        linear_dx(m->compute, tensor_rows(x->dhidden, at, c), dlogits, weight_at(x, v), !first);
        stream_wait(m->compute, x->dhere);
        linear_dw(m->compute, dweight, dlogits, tensor_rows(h->hidden, at, c));
        arena_reset(m->work, mark);
    }
}

static void visits_of_gradients(Visits *x) {
    const Head *h = x->h;
    const Model *m = h->m;
    int64_t P = group_of(m)->axis.size;
    zero(m->compute, dweight_at(x, 1));
    pass_weight(x, 1);
    for (int64_t v = 1; v < P; v++) {
        await_weight(x, v);
        learn(x, v, dweight_at(x, v), v == 1);
        pass_dweight(x, v + 1);
    }
    Event home = x->dhere;
    x->dhere = (Event){0};
    learn(x, 0, h->dw->at[HEAD], false);
    stream_wait(m->compute, home);
    add(m->compute, h->dw->at[HEAD], h->dw->at[HEAD], dweight_at(x, P));
    copy(m->compute, tensor_rows(h->dhidden, 0, h->b->tokens), x->dhidden);
}

static void loss_by_weights(const Head *h) {
    const Model *m = h->m;
    int64_t T = h->b->tokens, H = m->spec->hidden, n = m->vocabulary.each, P = group_of(m)->axis.size;
    Visits x = {.h = h};
    for (int i = 0; i < 2; i++) {
        x.weight[i] = arena_tensor(m->work, m->real, DIM(n, H));
        if (h->dw) x.dweight[i] = arena_tensor(m->work, m->sum, DIM(n, H));
    }
    x.parts = arena_tensor(m->work, m->sum, DIM(P, T, LOSS_STATS));
    x.stats = arena_tensor(m->work, m->sum, DIM(T, LOSS_STATS));
    if (h->dw) x.dhidden = arena_tensor(m->work, m->sum, DIM(T, H));
    for (int64_t v = 0; v < P; v++) {
        await_weight(&x, v);
        look(&x, v);
    }
    cross_entropy_join(m->compute, x.stats, x.parts);
    cross_entropy_sum(m->compute, h->loss, x.stats, h->b->target);
    if (h->dw) visits_of_gradients(&x);
}

/* ---- What travels ------------------------------------------------------------------------------ */

/* P (P - 1) M (H real + 3 P sum), and H sum for the gradients: a token goes to P - 1 others, and so do the stats of
 * everybody's tokens; a gradient is sent by P - 1 others. */
int64_t loss_activations_bytes(LossTraffic t) {
    int64_t real = (int64_t)type_bytes(t.real), sum = (int64_t)type_bytes(t.sum);
    int64_t token = t.hidden * real + LOSS_STATS * t.members * sum + (t.training ? t.hidden * sum : 0);
    return t.members * (t.members - 1) * t.tokens * token;
}

/* (P - 1) V H real, and for the gradients (P - 1) V H (real + sum): a part makes P - 1 steps, once or twice, and so
 * does its gradient. */
int64_t loss_weights_bytes(LossTraffic t) {
    int64_t real = (int64_t)type_bytes(t.real), sum = (int64_t)type_bytes(t.sum);
    return (t.members - 1) * t.vocabulary * t.hidden * (real + (t.training ? real + sum : 0));
}

Travel loss_travel(LossTraffic t) {
    return loss_weights_bytes(t) < loss_activations_bytes(t) ? TRAVEL_WEIGHTS : TRAVEL_ACTIVATIONS;
}

/* The same on all ranks, whatever their groups have. */
static Travel travel_of(const Model *m, const MicroBatch *b, bool training) {
    if (m->loss_travel != TRAVEL_AUTO) return m->loss_travel;
    return loss_travel((LossTraffic){.members = group_of(m)->axis.size,
                                     .tokens = b->lookup.longest,
                                     .vocabulary = m->spec->vocabulary,
                                     .hidden = m->spec->hidden,
                                     .real = m->real,
                                     .sum = m->sum,
                                     .training = training});
}

/* Where activations travel, every member has as many as who has most. */
int64_t vocabulary_rows(const Model *m, const MicroBatch *b, bool training) {
    bool padded = group_of(m)->axis.size > 1 && travel_of(m, b, training) == TRAVEL_ACTIVATIONS;
    return padded ? b->lookup.most : b->tokens;
}

void vocabulary_loss(const Head *h) {
    if (travel_of(h->m, h->b, h->dw != NULL) == TRAVEL_WEIGHTS)
        loss_by_weights(h);
    else
        loss_by_activations(h);
}
