/* Generation: the whole context runs through the model for every new token (there is no KV cache yet). All ranks know
 * the text; it is a sequence of the first sequence group, and whoever has its last position samples. The other ranks
 * run along without tokens, since weights and experts are spread over all of them. */
#include "base/random.h"
#include "train/run.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static Tensor flat(Tensor t) {
    return tensor_view(t, DIM(tensor_count(t)));
}

/* One document that fills the first `tokens` positions of a sequence, of which nothing is trained. */
static void fill_text(Run *r, const int32_t *ids, int64_t tokens) {
    Batch *one = &r->one;
    int64_t window = r->spec->window ? r->spec->window : tokens;
    one->tokens = one->real[0] = tokens;
    for (int64_t i = 0; i < tokens; i++) {
        one->token[i] = ids[i];
        one->target[i] = -1;
        one->position[i] = (int32_t)i;
        one->first[i] = (int32_t)max64(0, i + 1 - window);
        one->last[i] = (int32_t)i + 1;
        one->sequence[i] = 0;
    }
}

/* The text as a micro-batch in the memory of the step's first one: a sequence of the first sequence group; the other
 * ranks have none. */
static MicroBatch text_batch(Run *r, const int32_t *ids, int64_t tokens) {
    MicroBatch b = r->micro[0];
    int ring = r->model.cut.ring, own = r->comm.mesh.axis[AXIS_RING].index;
    b.tokens = run_tokens(r, r->comm.mesh.rank, 0);
    b.most = run_most_tokens(r, 0);
    b.sequences = run_sequences(r, r->comm.mesh.rank, 0);
    int64_t rows = b.sequences * cut_ring_member(&r->model.cut, own).tokens;
    b.first = tensor_view(tensor_rows(flat(b.first), 0, ring * rows), DIM(ring, rows));
    b.last = tensor_view(tensor_rows(flat(b.last), 0, ring * rows), DIM(ring, rows));
    Tensor *ints[] = {&b.token, &b.target, &b.position, &b.sequence};
    for (size_t i = 0; i < COUNT(ints); i++) *ints[i] = tensor_rows(*ints[i], 0, b.tokens);
    b.keys = tensor_rows(b.keys, 0, rows);
    b.rows = tensor_rows(b.rows, 0, b.sequences);
    memset(b.pairs, 0, (size_t)ring * sizeof *b.pairs);
    fill_text(r, ids, tokens);
    if (b.sequences > 0) run_place(r, &b, 0, &r->one);
    for (int64_t j = 0; j < peers_count(r); j++)
        if (run_sequences(r, peers_rank(r, j), 0) > 0) peers_take(r, j, 0, &r->one);
    if (r->peers) peers_load(r, &b, 0);
    return b;
}

/* Whose is the text's last position. */
static int last_rank(const Run *r) {
    const Cut *cut = &r->model.cut;
    for (int rank = 0; rank < cut->ulysses * cut->ring; rank++) {
        Stretches s = cut_rank(cut, rank);
        if (stretches_below(&s, cut->limit) > stretches_below(&s, cut->limit - 1)) return rank;
    }
    MUST(false && "a text has a last position");
    return 0;
}

/* Every rank runs the layers. */
static void forward(Run *r, MicroBatch *b, int root, Tensor logits) {
    Model *m = &r->model;
    Saved kept;
    Weights w = store_fetch(r->store, 0, 1);
    embed_forward(m, &w, b);
    store_release(r->store, 0);
    for (int64_t l = 0; l < r->spec->layers; l++) {
        w = store_fetch(r->store, l + 1, l + 2);
        layer_forward(m, l, &w, &kept, b);
        store_release(r->store, l + 1);
    }
    w = store_fetch(r->store, r->spec->layers + 1, -1);
    head_logits(m, &w, b, r->comm.mesh.rank == root ? b->tokens - 1 : -1, root, logits);
    store_release(r->store, r->spec->layers + 1);
}

/* `host`: of rank `root`, which has the last token. */
static bool next_logits(Run *r, const int32_t *ids, int64_t tokens, int root, void *host, Error *e) {
    Model *m = &r->model;
    run_end_pass(r);
    MicroBatch b = text_batch(r, ids, tokens);
    run_begin_micro_batch(r, &b, false);
    Mark mark = arena_mark(&r->work);
    Tensor logits = arena_tensor(&r->work, m->sum, DIM(vocabulary_room(m)));
    forward(r, &b, root, logits);
    if (r->comm.mesh.rank == root)
        device_read(m->compute, host, tensor_rows(logits, 0, r->spec->vocabulary), READ_LOSS);
    arena_reset(&r->work, mark);
    const Error *failed = device_failed(r->device);
    return failed ? fail(e, failed->code, "%s", failed->text) : true;
}

/* ---- Sampling ---------------------------------------------------------------------------------- */

typedef struct {
    double p;
    int32_t id;
} Candidate;

static int likelier_first(const void *a, const void *b) {
    const Candidate *x = a, *y = b;
    if (x->p != y->p) return x->p < y->p ? 1 : -1;
    return x->id < y->id ? -1 : 1;
}

/* Nucleus sampling (Holtzman et al. 2020): the likeliest ids whose probabilities reach top_p together. */
static int32_t sample(Candidate *c, int64_t n, Sampling s, uint64_t index) {
    qsort(c, (size_t)n, sizeof *c, likelier_first);
    if (s.temperature <= 0) return c[0].id;
    double largest = c[0].p, sum = 0, nucleus = 0;
    for (int64_t i = 0; i < n; i++) sum += c[i].p = exp((c[i].p - largest) / s.temperature);
    int64_t kept = 0;
    while (kept < n && (kept == 0 || nucleus < s.top_p * sum)) nucleus += c[kept++].p;
    double at = random_uniform(s.seed, RANDOM_SAMPLE, s.step, index) * nucleus;
    for (int64_t i = 0; i < kept; i++)
        if ((at -= c[i].p) < 0) return c[i].id;
    return c[kept - 1].id;
}

/* What ranks tell one another for each token. */
typedef struct {
    int32_t id; /* rank `root`'s choice; NOT_FINITE: there is none to choose from */
    int32_t stop;
} Said;

enum { NOT_FINITE = -1 };

/* False where a logit is no number. */
static bool candidates_of(Tensor logits, Candidate *out) {
    bool finite = true;
    for (int64_t v = 0; v < logits.dim[0]; v++) {
        out[v] = (Candidate){tensor_get(logits, v), (int32_t)v};
        finite = finite && isfinite(out[v].p);
    }
    return finite;
}

static bool is_end(const TextEnds *ends, int32_t id) {
    for (int i = 0; ends && i < ends->count; i++)
        if (ends->id[i] == id) return true;
    return false;
}

static bool check_choice(int32_t id, int64_t tokens, Error *e) {
    return id != NOT_FINITE ||
           fail(e, EXIT_DIVERGED,
                "what the model predicts behind %lld tokens is not finite: its weights are finite and too large; use "
                "an earlier checkpoint",
                (long long)tokens);
}

/* The choice of rank `root`, and whether any rank is to stop, told to all. `all` [world] is scratch. */
static bool agree(Run *r, int root, Said *all, int32_t *id, bool *stop, Error *e) {
    Said mine = {*id, *stop};
    if (!host_gather(&r->comm, all, &mine, sizeof mine, e)) return false;
    *id = all[root].id;
    for (int i = 0; i < r->comm.mesh.world; i++) *stop = *stop || all[i].stop;
    return true;
}

bool generate(Run *r, int32_t *ids, int64_t given, int64_t count, Sampling s, Error *e) {
    int64_t V = r->spec->vocabulary, longest = r->config->train_sequence_length, end = given;
    void *logits = malloc((size_t)V * type_bytes(r->model.sum));
    Candidate *candidates = malloc((size_t)V * sizeof *candidates);
    Said *all = calloc((size_t)r->comm.mesh.world, sizeof *all);
    bool ok = (logits && candidates && all) ||
              fail(e, EXIT_MEMORY, "no memory for the logits of %lld tokens; free some memory", (long long)V);
    bool stop = false;
    store_flush(r->store);
    r->model.evaluating = r->generating = true;
    for (bool over = false; ok && !stop && !over && end < given + count; end += ok && !over) {
        int64_t context = min64(end, longest);
        r->model.cut.limit = context;
        int root = last_rank(r);
        bool leader = r->comm.mesh.rank == root;
        ok = next_logits(r, ids + end - context, context, root, logits, e);
        Tensor t = tensor_at(logits, r->model.sum, DIM(V));
        if (ok && leader)
            ids[end] = candidates_of(t, candidates) ? sample(candidates, V, s, (uint64_t)end) : NOT_FINITE;
        stop = s.asked && s.asked();
        ok = ok && agree(r, root, all, &ids[end], &stop, e) && check_choice(ids[end], end, e);
        over = ok && is_end(s.ends, ids[end]); /* all ranks know the token, so all end here */
        waiting_tell(r->waiting, (double)(end + 1 - given) / (double)count);
    }
    if (s.out) *s.out = (Generated){.made = end - given, .stopped = stop};
    r->model.evaluating = r->generating = false;
    r->model.cut.limit = longest;
    run_end_pass(r);
    free(all);
    free(candidates);
    free(logits);
    return ok;
}
