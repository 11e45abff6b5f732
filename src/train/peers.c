/* With P > 1 a rank gives rows of the embedding to those who share the vocabulary with it, and judges their tokens by
 * its part of the head. A batch is a pure function of seed, step and rank, so instead of being told their tokens it
 * makes them too. */
#include "train/run.h"

#include <stdlib.h>
#include <string.h>

struct Peers {
    int64_t members, most;
    int32_t *memory;                 /* [2][P][most]: tokens and targets of every member, of the micro-batch at hand */
    const int32_t **token, **target; /* [P]: where a member's begin in it */
    int64_t *tokens;                 /* [P] */
    int32_t *staged;                 /* [P most]: on its way to the device */
};

static const Axis *vocabulary_axis(const Run *r) {
    return &r->comm.mesh.axis[AXIS_VOCABULARY];
}

int peers_rank(const Run *r, int64_t member) {
    const Axis *a = vocabulary_axis(r);
    return a->first + (int)member * a->stride;
}

int64_t peers_count(const Run *r) {
    return r->peers ? r->peers->members : 0;
}

/* ---- Memory ----------------------------------------------------------------------------------- */

static int64_t most_of_group(const Run *r, int64_t micro) {
    int64_t most = 0;
    for (int64_t j = 0; j < vocabulary_axis(r)->size; j++) most = max64(most, run_tokens(r, peers_rank(r, j), micro));
    return most;
}

static bool open_lookup(Run *r, int64_t micro, Error *e) {
    const Axis *a = vocabulary_axis(r);
    Lookup *l = &r->micro[micro].lookup;
    int64_t most = most_of_group(r, micro), tokens = max64(1, r->config->mixture_loss_chunk / a->size);
    if (!lookup_open(l, a, r->spec->vocabulary, tokens, most, r->micro[micro].most, e)) return false;
    l->id = arena_tensor(&r->batch_arena, INT32, DIM(a->size * most));
    l->target = arena_tensor(&r->batch_arena, INT32, DIM(a->size * most));
    return true;
}

static bool open_memory(struct Peers *p) {
    int64_t P = p->members;
    p->token = calloc((size_t)P, sizeof *p->token);
    p->target = calloc((size_t)P, sizeof *p->target);
    p->tokens = calloc((size_t)P, sizeof *p->tokens);
    p->memory = calloc((size_t)max64(1, 3 * P * p->most), sizeof *p->memory);
    if (!p->token || !p->target || !p->tokens || !p->memory) return false;
    for (int64_t j = 0; j < P; j++) {
        p->token[j] = p->memory + j * p->most;
        p->target[j] = p->memory + (P + j) * p->most;
    }
    p->staged = p->memory + 2 * P * p->most;
    return true;
}

bool peers_open(Run *r, Error *e) {
    if (vocabulary_axis(r)->size == 1) return true;
    struct Peers *p = r->peers = calloc(1, sizeof *p);
    if (!p) return fail(e, EXIT_MEMORY, "no memory for the tokens of other ranks; use fewer ranks");
    p->members = vocabulary_axis(r)->size;
    for (int64_t i = 0; i < r->micro_batches; i++) p->most = max64(p->most, most_of_group(r, i));
    if (!open_memory(p))
        return fail(e, EXIT_MEMORY,
                    "no memory for the tokens of %lld ranks, %lld each; use a smaller mixture.vocabulary or more "
                    "train.micro_batches",
                    (long long)p->members, (long long)p->most);
    for (int64_t i = 0; i < r->micro_batches; i++)
        if (!open_lookup(r, i, e)) return false;
    return true;
}

void peers_close(Run *r) {
    struct Peers *p = r->peers;
    if (!p) return;
    for (int64_t i = 0; i < r->micro_batches; i++) lookup_close(&r->micro[i].lookup);
    free(p->memory);
    free(p->token);
    free(p->target);
    free(p->tokens);
    free(p);
}

/* ---- Loading ---------------------------------------------------------------------------------- */

static void take(int32_t *to, const int32_t *from, const Stretches *s) {
    for (int i = 0; i < 2; i++) {
        memcpy(to, from + s->part[i].first, (size_t)s->part[i].count * sizeof *to);
        to += s->part[i].count;
    }
}

void peers_take(Run *r, int64_t member, int64_t number, const Batch *one) {
    struct Peers *p = r->peers;
    Stretches s = cut_rank(&r->model.cut, peers_rank(r, member));
    int32_t *token = p->memory + member * p->most + number * s.tokens;
    take(token, one->token, &s);
    take(token + p->members * p->most, one->target, &s);
}

/* Without data all ids are 0, rows of one rank; a lookup is priced with ids that are spread over all. */
static void spread(Run *r, int64_t member, int64_t tokens) {
    const struct Peers *p = r->peers;
    int64_t V = r->spec->vocabulary, each = axis_share(vocabulary_axis(r), V).each;
    int32_t *token = p->memory + member * p->most;
    for (int64_t t = 0; t < tokens; t++) token[t] = (int32_t)((t * each + t / p->members) % V);
}

void peers_load(Run *r, MicroBatch *b, int64_t micro) {
    struct Peers *p = r->peers;
    Lookup *l = &b->lookup;
    for (int64_t j = 0; j < p->members; j++) {
        p->tokens[j] = run_tokens(r, peers_rank(r, j), micro);
        if (r->device->sim && !r->tokens) spread(r, j, p->tokens[j]);
    }
    lookup_fill(l, b->most, p->token, p->tokens, p->staged);
    device_write(r->model.compute, tensor_rows(l->id, 0, l->ids), p->staged);
    lookup_order(l, p->target, p->tokens, p->staged);
    device_write(r->model.compute, tensor_rows(l->target, 0, p->members * l->most), p->staged);
}
