/* With P > 1 a rank gives rows of the embedding to those who share the vocabulary with it, and judges their tokens by its part of
 * the head. A batch is a pure function of seed, step and rank, so instead of being told their tokens it makes them too. */
#include "train/run.h"

#include <stdlib.h>

struct Peers {
    int64_t members;
    Batch *batch; /* [P]: the micro-batch at hand of each; all but tokens and targets is scratch that they share */
    int32_t *memory, *staged;        /* staged [P most]: on its way to the device */
    int64_t *real;                   /* scratch */
    const int32_t **token, **target; /* [P]: what is to be loaded of each */
    int64_t *tokens;                 /* [P] */
};

enum { SCRATCH = 4 }; /* position, first, last, sequence */

static const Axis *vocabulary_axis(const Run *r) {
    return &r->comm.mesh.axis[AXIS_VOCABULARY];
}

int peers_rank(const Run *r, int64_t member) {
    const Axis *a = vocabulary_axis(r);
    return a->first + (int)member * a->stride;
}

Batch *peers_batch(Run *r, int64_t member) {
    return &r->peers->batch[member];
}

int64_t peers_count(const Run *r) {
    return r->peers ? r->peers->members : 0;
}

/* ---- Memory ----------------------------------------------------------------------------------- */

/* Tokens of whoever has most of micro-batch `micro`, of the group and of all ranks. */
static int64_t most_of_group(const Run *r, int64_t micro) {
    int64_t most = 0;
    for (int64_t j = 0; j < vocabulary_axis(r)->size; j++)
        most = max64(most, run_tokens(r->config, r->comm.mesh.world, peers_rank(r, j), micro));
    return most;
}

static int64_t most_of_all(const Run *r, int64_t micro) {
    int64_t most = 0;
    for (int rank = 0; rank < r->comm.mesh.world; rank++)
        most = max64(most, run_tokens(r->config, r->comm.mesh.world, rank, micro));
    return most;
}

static bool open_lookup(Run *r, int64_t micro, Error *e) {
    const Axis *a = vocabulary_axis(r);
    Lookup *l = &r->micro[micro].lookup;
    int64_t most = most_of_group(r, micro), tokens = max64(1, r->config->mixture_loss_chunk / a->size);
    if (!lookup_open(l, a, r->spec->vocabulary, tokens, most, most_of_all(r, micro), e)) return false;
    l->id = arena_tensor(&r->batch_arena, INT32, DIM(a->size * most));
    l->target = arena_tensor(&r->batch_arena, INT32, DIM(a->size * most));
    return true;
}

static bool open_memory(struct Peers *p, int64_t most) {
    int64_t P = p->members, each = 2 * P + SCRATCH + P;
    p->batch = calloc((size_t)P, sizeof *p->batch);
    p->token = calloc((size_t)P, sizeof *p->token);
    p->target = calloc((size_t)P, sizeof *p->target);
    p->tokens = calloc((size_t)P, sizeof *p->tokens);
    p->real = calloc((size_t)max64(1, most), sizeof *p->real);
    p->memory = calloc((size_t)max64(1, each * most), sizeof *p->memory);
    if (!p->batch || !p->token || !p->target || !p->tokens || !p->real || !p->memory) return false;
    int32_t *scratch = p->memory + 2 * P * most;
    p->staged = scratch + SCRATCH * most;
    for (int64_t j = 0; j < P; j++)
        p->batch[j] = (Batch){.token = p->memory + 2 * j * most,
                              .target = p->memory + (2 * j + 1) * most,
                              .position = scratch,
                              .first = scratch + most,
                              .last = scratch + 2 * most,
                              .sequence = scratch + 3 * most,
                              .real = p->real};
    return true;
}

bool peers_open(Run *r, Error *e) {
    if (vocabulary_axis(r)->size == 1) return true;
    struct Peers *p = r->peers = calloc(1, sizeof *p);
    MUST(p);
    p->members = vocabulary_axis(r)->size;
    int64_t most = 0;
    for (int64_t i = 0; i < r->micro_batches; i++) most = max64(most, most_of_group(r, i));
    if (!open_memory(p, most))
        return fail(e, EXIT_MEMORY,
                    "no memory for the tokens of %lld ranks, %lld each; use a smaller mixture.vocabulary or more "
                    "train.micro_batches",
                    (long long)p->members, (long long)most);
    for (int64_t i = 0; i < r->micro_batches; i++)
        if (!open_lookup(r, i, e)) return false;
    return true;
}

void peers_close(Run *r) {
    struct Peers *p = r->peers;
    if (!p) return;
    for (int64_t i = 0; i < r->micro_batches; i++) lookup_close(&r->micro[i].lookup);
    free(p->batch);
    free(p->memory);
    free(p->real);
    free(p->token);
    free(p->target);
    free(p->tokens);
    free(p);
}

/* ---- Loading ---------------------------------------------------------------------------------- */

/* What the host makes of token[j][0 .. tokens[j] - 1] of every member, onto the device. */
static void load_lookup(Run *r, Lookup *l, int64_t longest) {
    const struct Peers *p = r->peers;
    lookup_fill(l, longest, p->token, p->tokens, p->staged);
    device_write(r->model.compute, tensor_rows(l->id, 0, l->ids), p->staged);
}

/* Without data all ids are 0, rows of one rank; a lookup is priced with ids that are spread over all. */
static void spread(const Run *r, Batch *b) {
    int64_t V = r->spec->vocabulary, each = axis_share(vocabulary_axis(r), V).each;
    for (int64_t t = 0; t < b->tokens; t++) b->token[t] = (int32_t)((t * each + t / r->peers->members) % V);
}

void peers_load(Run *r, MicroBatch *b) {
    struct Peers *p = r->peers;
    Lookup *l = &b->lookup;
    for (int64_t j = 0; j < p->members; j++) {
        if (r->device->sim && !r->tokens) spread(r, &p->batch[j]);
        p->token[j] = p->batch[j].token;
        p->target[j] = p->batch[j].target;
        p->tokens[j] = p->batch[j].tokens;
    }
    load_lookup(r, l, l->longest);
    lookup_order(l, p->target, p->tokens, p->staged);
    device_write(r->model.compute, tensor_rows(l->target, 0, p->members * l->most), p->staged);
}

void peers_load_context(Run *r, MicroBatch *b, int root, const int32_t *ids, int64_t context) {
    struct Peers *p = r->peers;
    for (int64_t j = 0; p && j < p->members; j++) {
        p->token[j] = ids;
        p->tokens[j] = peers_rank(r, j) == root ? context : 0;
    }
    if (p) load_lookup(r, &b->lookup, context);
}
