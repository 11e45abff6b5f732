/* What sim says where the host asks the device for data, and what a real run records so that sim can say the same.
 *
 *   rows per expert   balanced: every expert gets the same; worst: every token of the group picks this rank's experts, on every rank at
 *                     once (no single run does that to all, but each rank must be ready for it); replay: what a recorded run saw
 *   norms             1: finite
 *   loss              0
 *
 * The record of rank r is FILE.r: for every read, in order, the members, rounds and experts of the table and then the
 * table, as int64.
 */
#include "train/answers.h"

#include "base/file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct Answers {
    const Run *run;
    enum { BALANCED, WORST, REPLAY } routing;
    int64_t reads; /* of routing, so far: micro-batches come round */
    FILE *file;    /* replayed or recorded */
};

/* The table that is asked for: rows [members][rounds][experts] of one layer and micro-batch. */
typedef struct {
    const Run *run;
    int64_t *rows, micro, members, rounds, experts;
} Table;

/* Tokens of a member of the expert group in a round. */
static int64_t member_tokens(const Table *t, int64_t member, int64_t round) {
    const Axis *a = &t->run->comm.group[AXIS_EXPERT].axis;
    int64_t tokens = run_tokens(t->run, a->first + (int)member * a->stride, t->micro);
    return max64(0, ceil_div(tokens - round, t->rounds));
}

static int64_t *row_of(const Table *t, int64_t member, int64_t round) {
    return t->rows + (member * t->rounds + round) * t->experts;
}

static void balanced(const Table *t) {
    for (int64_t j = 0; j < t->members; j++)
        for (int64_t r = 0; r < t->rounds; r++) {
            int64_t slots = member_tokens(t, j, r) * t->run->spec->top_k;
            for (int64_t x = 0; x < t->experts; x++)
                row_of(t, j, r)[x] = slots * (x + 1) / t->experts - slots * x / t->experts;
        }
}

/* All that a round could bring, in every round. */
static void worst(const Table *t) {
    const Model *m = &t->run->model;
    int64_t k = t->run->spec->top_k, mine = min64(k, m->experts_here), own = t->run->comm.group[AXIS_EXPERT].axis.index;
    memset(t->rows, 0, (size_t)(t->members * t->rounds * t->experts) * sizeof *t->rows);
    for (int64_t j = 0; j < t->members; j++)
        for (int64_t r = 0; r < t->rounds; r++) {
            int64_t tokens = member_tokens(t, j, r), left = k - mine;
            for (int64_t x = 0; x < mine; x++) row_of(t, j, r)[m->expert_first + x] = tokens;
            for (int64_t x = 0; j == own && x < t->experts && left > 0; x++) { /* what cannot stay here goes anywhere */
                if (x >= m->expert_first && x < m->expert_first + m->experts_here) continue;
                row_of(t, j, r)[x] = tokens;
                left--;
            }
        }
}

static void replay(Answers *a, const Table *t) {
    int64_t head[3] = {0};
    size_t n = (size_t)(t->members * t->rounds * t->experts);
    bool ok = fread(head, sizeof head, 1, a->file) == 1 && head[0] == t->members && head[1] == t->rounds &&
              head[2] == t->experts && fread(t->rows, sizeof *t->rows, n, a->file) == n;
    if (ok) return;
    Error e = {0};
    if (ferror(a->file))
        fail(&e, EXIT_IO, "sim.routing: the recorded routing cannot be read; rank %d; check the disk",
             a->run->comm.mesh.rank);
    fail(&e, EXIT_DATA,
         "sim.routing: the recorded routing ends early or is of another layout; rank %d; record it again with "
         "sim.record",
         a->run->comm.mesh.rank);
    device_fail(a->run->device, &e);
    memset(t->rows, 0, n * sizeof *t->rows);
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
    Table table = {a->run, host, a->reads++ % a->run->micro_batches, t.dim[0], t.dim[1], t.dim[2]};
    if (a->routing == REPLAY)
        replay(a, &table);
    else if (a->routing == WORST)
        worst(&table);
    else
        balanced(&table);
}

static void record(void *context, ReadKind kind, const void *host, Tensor t) {
    Answers *a = context;
    if (kind != READ_ROUTING) return;
    fwrite(t.dim, sizeof *t.dim, 3, a->file); /* a short record is found when it is replayed */
    fwrite(host, 1, tensor_bytes(t), a->file);
}

static FILE *open_file(const char *name, int rank, const char *mode, Error *e) {
    char path[4200];
    snprintf(path, sizeof path, "%s.%d", name, rank);
    FILE *f = fopen(path, mode);
    if (!f)
        fail(e, file_code(errno), "the routing record cannot be opened: %s; %s; check sim.routing or sim.record",
             strerror(errno), path);
    return f;
}

Answers *answers_open(Run *r, Error *e) {
    const char *routing = r->config->sim_routing, *out = r->config->sim_record;
    Answers *a = calloc(1, sizeof *a);
    if (!a) {
        fail(e, EXIT_MEMORY, "no memory for a rank; use fewer ranks, or free some memory");
        return NULL;
    }
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
