/* Generation: the whole context runs through the model for every new token (there is no KV cache yet). All ranks know the text, rank 0
 * runs it and samples; the others run along without tokens, since weights and experts are spread over all of them. */
#include "base/random.h"
#include "train/run.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROOT = 0 }; /* the rank that runs the context */

/* A micro-batch of `tokens` rows in the memory of the step's first one: one sequence, one document, nothing trained. */
static MicroBatch context_batch(Run *r, const int32_t *ids, int64_t tokens) {
    const MicroBatch *full = &r->micro[0];
    Stream *s = r->model.compute;
    int32_t *host = r->batch[0].token;
    MicroBatch b = {.tokens = tokens, .sequences = tokens > 0, .most = r->context, .lookup = full->lookup};
    b.token = tensor_rows(full->token, 0, tokens);
    b.position = tensor_rows(full->position, 0, tokens);
    b.first = tensor_rows(full->first, 0, tokens);
    b.last = tensor_rows(full->last, 0, tokens);
    b.sequence = tensor_rows(full->sequence, 0, tokens);
    b.rows = tensor_rows(full->rows, 0, b.sequences);
    device_write(s, b.token, ids);
    for (int64_t i = 0; i < tokens; i++) host[i] = (int32_t)i;
    device_write(s, b.position, host);
    int64_t window = r->spec->window ? r->spec->window : tokens;
    for (int64_t i = 0; i < tokens; i++) {
        host[i] = (int32_t)max64(0, i + 1 - window);
        b.pairs += i + 1 - host[i];
    }
    device_write(s, b.first, host);
    for (int64_t i = 0; i < tokens; i++) host[i] = (int32_t)i + 1;
    device_write(s, b.last, host);
    memset(host, 0, (size_t)tokens * sizeof *host);
    device_write(s, b.sequence, host);
    peers_load_context(r, &b, ROOT, ids, r->context);
    return b;
}

/* Every rank runs the layers. */
static void forward(Run *r, MicroBatch *b, Tensor logits) {
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
    head_logits(m, &w, b, b->tokens - 1, ROOT, logits);
    store_release(r->store, r->spec->layers + 1);
}

static bool next_logits(Run *r, const int32_t *ids, int64_t tokens, void *host, Error *e) {
    Model *m = &r->model;
    const Spec *spec = r->spec;
    arena_reset(&r->activations, (Mark){0});
    arena_reset(&r->host, (Mark){0});
    MicroBatch b = context_batch(r, ids, tokens);
    b.x = arena_tensor(&r->activations, m->real, DIM(tokens, spec->hidden));
    b.rope = arena_tensor(&r->activations, m->sum, DIM(tokens, spec->head_dim));
    b.counts = arena_tensor(&r->activations, FP64, DIM(b.sequences, spec->experts));
    b.mass = arena_tensor(&r->activations, FP64, DIM(b.sequences, spec->experts));
    zero(m->compute, b.counts);
    zero(m->compute, b.mass);
    rope_table(m->compute, b.rope, b.position, spec->rope_theta);
    Mark mark = arena_mark(&r->work);
    Tensor logits = arena_tensor(&r->work, m->sum, DIM(vocabulary_room(m)));
    forward(r, &b, logits);
    if (tokens > 0) device_read(m->compute, host, tensor_rows(logits, 0, spec->vocabulary), READ_LOSS);
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
    double at = random_uniform(s.seed, RANDOM_SAMPLE, 0, index) * nucleus;
    for (int64_t i = 0; i < kept; i++)
        if ((at -= c[i].p) < 0) return c[i].id;
    return c[kept - 1].id;
}

/* Rank 0's choice, told to all. `all` [world] is scratch. */
static bool agree(Run *r, int32_t *all, int32_t *id, Error *e) {
    int32_t mine = *id;
    if (!host_gather(&r->comm, all, &mine, sizeof mine, e)) return false;
    *id = all[ROOT];
    return true;
}

bool generate(Run *r, int32_t *ids, int64_t given, int64_t count, Sampling s, Error *e) {
    int64_t V = r->spec->vocabulary, longest = r->config->train_sequence_length;
    bool leader = r->comm.mesh.rank == ROOT;
    void *logits = malloc((size_t)V * type_bytes(r->model.sum));
    Candidate *candidates = malloc((size_t)V * sizeof *candidates);
    int32_t *all = malloc((size_t)r->comm.mesh.world * sizeof *all);
    MUST(logits && candidates && all);
    store_flush(r->store);
    r->model.evaluating = true;
    bool ok = true;
    for (int64_t i = given; ok && i < given + count; i++) {
        int64_t context = r->context = min64(i, longest);
        ok = next_logits(r, ids + i - context, leader ? context : 0, logits, e);
        Tensor t = tensor_at(logits, r->model.sum, DIM(V));
        for (int64_t v = 0; ok && leader && v < V; v++) candidates[v] = (Candidate){tensor_get(t, v), (int32_t)v};
        if (ok && leader) ids[i] = sample(candidates, V, s, (uint64_t)i);
        ok = ok && agree(r, all, &ids[i], e);
    }
    r->model.evaluating = false;
    r->context = 0;
    run_end_pass(r);
    free(all);
    free(candidates);
    free(logits);
    return ok;
}
