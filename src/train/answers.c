/* What sim says where the host asks the device for data, and what a real run records so that sim can say the same.
 *
 *   rows per expert   balanced: every expert gets the same; worst: every token of the group picks this rank's experts, on every rank at
 *                     once (no single run does that to all, but each rank must be ready for it); replay: what a recorded run saw
 *   norms             1: finite
 *   loss              0
 *
 * The record of rank r is FILE.r: for every read, in order, the members and experts of the table and then the table, as int64.
 */
#include "train/answers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct Answers {
    const Run *run;
    enum { BALANCED, WORST, REPLAY } routing;
    int64_t reads; /* of routing, so far: micro-batches come round */
    FILE *file;    /* replayed or recorded */
};

/* Rows that a member of the expert group has to send: its micro-batch, or, in generation, rank 0's context. */
static int64_t member_slots(const Run *r, int64_t member, int64_t micro) {
    const Axis *a = &r->comm.group[AXIS_EXPERT].axis;
    int64_t rank = a->first + member * a->stride;
    if (r->context > 0) return rank == 0 ? r->context * r->spec->top_k : 0;
    return run_sequences(r->config, r->comm.mesh.world, rank, micro) * r->config->train_sequence_length *
           r->spec->top_k;
}

static void balanced(const Run *r, int64_t micro, int64_t *table, int64_t members, int64_t experts) {
    for (int64_t j = 0; j < members; j++) {
        int64_t slots = member_slots(r, j, micro);
        for (int64_t x = 0; x < experts; x++) table[j * experts + x] = slots * (x + 1) / experts - slots * x / experts;
    }
}

static void worst(const Run *r, int64_t micro, int64_t *table, int64_t members, int64_t experts) {
    const Model *m = &r->model;
    int64_t mine = min64(r->spec->top_k, m->experts_here), own = r->comm.group[AXIS_EXPERT].axis.index;
    memset(table, 0, (size_t)(members * experts) * sizeof *table);
    for (int64_t j = 0; j < members; j++) {
        int64_t tokens = member_slots(r, j, micro) / r->spec->top_k, left = r->spec->top_k - mine;
        for (int64_t x = 0; x < mine; x++) table[j * experts + m->expert_first + x] = tokens;
        for (int64_t x = 0; j == own && x < experts && left > 0; x++) { /* what cannot stay here goes anywhere */
            if (x >= m->expert_first && x < m->expert_first + m->experts_here) continue;
            table[j * experts + x] = tokens;
            left--;
        }
    }
}

static void replay(Answers *a, int64_t *table, int64_t members, int64_t experts) {
    int64_t head[2] = {0};
    size_t n = (size_t)(members * experts);
    bool ok = fread(head, sizeof head, 1, a->file) == 1 && head[0] == members && head[1] == experts &&
              fread(table, sizeof *table, n, a->file) == n;
    if (ok) return;
    Error e = {0};
    fail(&e, EXIT_DATA,
         "sim.routing: the recorded routing ends early or is of another layout; rank %d; record it again with "
         "sim.record",
         a->run->comm.mesh.rank);
    device_fail(a->run->device, &e);
    memset(table, 0, n * sizeof *table);
}

static void answer(void *context, ReadKind kind, void *host, Tensor t) {
    Answers *a = context;
    if (kind == READ_NORMS) {
        for (int64_t i = 0; i < tensor_count(t); i++) ((double *)host)[i] = 1;
        return;
    }
    if (kind == READ_LOSS) {
        memset(host, 0, tensor_bytes(t));
        return;
    }
    int64_t micro = a->reads++ % a->run->micro_batches;
    if (a->routing == REPLAY)
        replay(a, host, t.dim[0], t.dim[1]);
    else if (a->routing == WORST)
        worst(a->run, micro, host, t.dim[0], t.dim[1]);
    else
        balanced(a->run, micro, host, t.dim[0], t.dim[1]);
}

static void record(void *context, ReadKind kind, const void *host, Tensor t) {
    Answers *a = context;
    if (kind != READ_ROUTING) return;
    fwrite(t.dim, sizeof *t.dim, 2, a->file); /* a short record is found when it is replayed */
    fwrite(host, 1, tensor_bytes(t), a->file);
}

static FILE *open_file(const char *name, int rank, const char *mode, Error *e) {
    char path[4200];
    snprintf(path, sizeof path, "%s.%d", name, rank);
    FILE *f = fopen(path, mode);
    if (!f) fail(e, EXIT_DATA, "the routing record %s cannot be opened; check sim.routing or sim.record", path);
    return f;
}

Answers *answers_open(Run *r, Error *e) {
    const char *routing = r->config->sim_routing, *out = r->config->sim_record;
    Answers *a = calloc(1, sizeof *a);
    MUST(a);
    a->run = r;
    r->device->read_context = a;
    if (r->device->sim) {
        r->device->answer = answer;
        a->routing = strcmp(routing, "worst") == 0 ? WORST : strncmp(routing, "replay:", 7) == 0 ? REPLAY : BALANCED;
        if (a->routing == REPLAY) a->file = open_file(routing + 7, r->comm.mesh.rank, "rb", e);
    } else if (*out) {
        r->device->observe = record;
        a->file = open_file(out, r->comm.mesh.rank, "wb", e);
    }
    if (e->code == EXIT_DONE) return a;
    answers_close(a);
    return NULL;
}

void answers_close(Answers *a) {
    if (!a) return;
    if (a->file) fclose(a->file);
    free(a);
}
