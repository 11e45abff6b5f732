/* Ranks for tests of checkpoints: threads, each with a real store, whose contents are a function of (tensor,
 * kind, element) and so can be checked after any change of layout. */
#ifndef MOP_CHECKPOINT_RANKS_H
#define MOP_CHECKPOINT_RANKS_H

#include "base/random.h"
#include "checkpoint/checkpoints.h"
#include "ops/kernels.h"
#include <dirent.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* fail(), which cmocka.h makes a macro without arguments. */
__attribute__((format(printf, 2, 3))) static inline bool differs(Error *e, const char *format, ...) {
    char text[512];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    return fail(e, EXIT_USAGE, "%s", text);
}

/* cmocka.h wants these before it */
#include <cmocka.h>

/* What a set of ranks is made from. */
typedef struct {
    const char *fixture; /* in tests/fixtures */
    const char *type;    /* compute.type */
    int world, dense, expert;
    const char *run, *base;
    int64_t shard; /* 0: as always */
} RankPlan;

typedef struct {
    const RankPlan *plan;
    Mesh mesh;
    Device *device;
    Comm comm;
    Spec spec;
    Store *store;
    Tokenizer *tokenizer;
    Checkpoints *checkpoints;
} Rank;

/* One rank's part of a test. It must not assert (that belongs to the test's own thread) but return false and
 * say why. */
typedef bool (*RankTask)(Rank *r, void *context, Error *e);

typedef struct {
    const RankPlan *plan;
    int rank;
    Wire *wire;
    RankTask task;
    void *context;
    bool done;
    Error error;
} RankThread;

static inline bool rank_open(Rank *r, RankThread *t, Error *e) {
    const RankPlan *p = t->plan;
    Config c;
    char type[64], dense[64], expert[64], path[256];
    snprintf(type, sizeof type, "compute.type=%s", p->type);
    snprintf(dense, sizeof dense, "mixture.dense=%d", p->dense);
    snprintf(expert, sizeof expert, "mixture.expert=%d", p->expert);
    snprintf(path, sizeof path, "tests/fixtures/%s/config.json", p->fixture);
    const char *const sets[] = {"data.path=unused", "model.config=unused", type, dense, expert};
    const size_t capacity[4] = {1 << 22, 1 << 22, 1 << 22, 1 << 22};
    if (!config_read(&c, NULL, sets, COUNT(sets), e)) return false;
    const Kernels *kernels = kernels_for("cpu", e);
    bool done =
        kernels && mesh_plan(&r->mesh, &c, p->world, t->rank, e) && (r->device = device_open("cpu", 1, kernels, e)) &&
        comm_open(&r->comm, &r->mesh, t->wire, r->device, e) && spec_read(&r->spec, path, e) &&
        (r->store = store_open(&c, &r->spec, &r->comm, capacity, e)) && (r->tokenizer = tokenizer_open(NULL, e)) &&
        (r->checkpoints = checkpoints_open_sharded(p->run, p->base ? p->base : "", &r->spec, c.compute_type, r->store,
                                                   r->tokenizer, &r->comm, p->shard ? p->shard : placement_shard, e));
    config_close(&c);
    return done;
}

static inline void *rank_main(void *context) {
    RankThread *t = context;
    Rank r = {.plan = t->plan};
    t->done = rank_open(&r, t, &t->error) && t->task(&r, t->context, &t->error);
    if (!t->done && t->error.code == EXIT_DONE)
        differs(&t->error, "rank %d: a check failed and did not say which", t->rank);
    checkpoints_close(r.checkpoints);
    tokenizer_close(r.tokenizer);
    if (r.store) store_close(r.store);
    spec_close(&r.spec);
    if (r.device) {
        comm_close(&r.comm);
        device_close(r.device);
    }
    return NULL;
}

/* Runs the task on every rank; errors[rank], where wanted. True when all returned true. Safe in a forked child. */
static inline bool ranks_try(const RankPlan *p, RankTask task, void *context, Error *errors) {
    Wire *wires[16];
    RankThread threads[16];
    pthread_t ids[16];
    Error e = {0};
    MUST(p->world <= 16 && wire_threads_open(wires, p->world, 60, false, &e));
    bool done = true;
    for (int i = 0; i < p->world; i++) {
        threads[i] = (RankThread){.plan = p, .rank = i, .wire = wires[i], .task = task, .context = context};
        MUST(pthread_create(&ids[i], NULL, rank_main, &threads[i]) == 0);
    }
    for (int i = 0; i < p->world; i++) {
        pthread_join(ids[i], NULL);
        done = done && threads[i].done;
        if (errors) errors[i] = threads[i].error;
    }
    for (int i = 0; i < p->world; i++) wires[i]->close(wires[i]);
    return done;
}

/* The same where nothing may fail. */
static inline void ranks_run(const RankPlan *p, RankTask task, void *context) {
    Error errors[16] = {{0}};
    if (ranks_try(p, task, context, errors)) return;
    for (int i = 0; i < p->world; i++) {
        if (errors[i].code) print_message("rank %d: %s\n", i, errors[i].text);
    }
    fail_msg("ranks failed");
}

/* ---- Contents --------------------------------------------------------------------------------- */

static inline double content(const Slice *s, StoreKind kind, int64_t element, uint64_t seed) {
    uint64_t name = XXH3_64bits(s->name, strlen(s->name));
    return random_normal(seed ^ name, RANDOM_TEST, (uint64_t)kind, (uint64_t)element);
}

static const StoreKind content_kinds[] = {STORE_MASTER, STORE_M, STORE_V};

/* In the types of the store: fp64 in an fp64 run, else fp32. */
static inline void content_fill(Rank *r, uint64_t seed) {
    const Slice *slices;
    int64_t count = store_slices(r->store, &slices);
    for (int64_t i = 0; i < count; i++) {
        for (size_t k = 0; k < COUNT(content_kinds); k++) {
            for (int64_t j = 0; j < slices[i].count; j++) {
                double wide = content(&slices[i], content_kinds[k], slices[i].first + j, seed);
                float narrow = (float)wide;
                bool fp64 = strcmp(r->plan->type, "fp64") == 0;
                store_copy_in(r->store, &slices[i], content_kinds[k], j, 1, fp64 ? (void *)&wide : (void *)&narrow);
            }
        }
    }
}

static inline bool content_check(Rank *r, uint64_t seed, Error *e) {
    const Slice *slices;
    int64_t count = store_slices(r->store, &slices);
    bool fp64 = strcmp(r->plan->type, "fp64") == 0, bf16 = strcmp(r->plan->type, "bf16") == 0;
    for (int64_t i = 0; i < count; i++) {
        for (size_t k = 0; k < COUNT(content_kinds); k++) {
            for (int64_t j = 0; j < slices[i].count; j++) {
                double wide = content(&slices[i], content_kinds[k], slices[i].first + j, seed), got = 0;
                float narrow = (float)wide;
                store_copy_out(r->store, &slices[i], content_kinds[k], j, 1, &got);
                bool same = fp64 ? memcmp(&got, &wide, sizeof wide) == 0 : memcmp(&got, &narrow, sizeof narrow) == 0;
                if (bf16 && content_kinds[k] == STORE_MASTER) {
                    uint16_t weight;
                    store_copy_out(r->store, &slices[i], STORE_WEIGHT, j, 1, &weight);
                    same = same && weight == bf16_from_float(narrow);
                }
                if (!same)
                    return differs(e, "rank %d: %s element %lld of kind %d is another", r->mesh.rank, slices[i].name,
                                   (long long)(slices[i].first + j), content_kinds[k]);
            }
        }
    }
    return true;
}

static inline TrainState content_state(int64_t step) {
    return (TrainState){.step = step,
                        .updates = step - 1,
                        .tokens = 1000 * step,
                        .sequences = 8 * step,
                        .bad_steps = step % 3,
                        .data_hash = 0xfedcba9876543210u,
                        .config_hash = 0x8000000000000001u};
}

/* The seed of the contents at a step: a checkpoint whose parts come from different steps does not pass. */
static inline bool content_save(Rank *r, int64_t step, Error *e) {
    TrainState state = content_state(step);
    SaveReport report;
    content_fill(r, (uint64_t)step);
    return checkpoint_save(r->checkpoints, &state, &report, e);
}

static inline bool state_equals(const TrainState *a, int64_t step) {
    TrainState b = content_state(step);
    return a->step == b.step && a->updates == b.updates && a->tokens == b.tokens && a->sequences == b.sequences &&
           a->bad_steps == b.bad_steps && a->data_hash == b.data_hash && a->config_hash == b.config_hash;
}

/* ---- Directories ------------------------------------------------------------------------------ */

/* A new directory under /tmp; its removal is the test's end. */
static inline Path scratch_make(void) {
    Path p = {"/tmp/mop-test-XXXXXX"};
    MUST(mkdtemp(p.text));
    return p;
}

static inline void scratch_remove(const char *path) {
    DIR *d = opendir(path);
    if (!d) return;
    for (struct dirent *entry; (entry = readdir(d));) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        Path each = path_join(path, entry->d_name);
        if (unlink(each.text) != 0) scratch_remove(each.text);
    }
    closedir(d);
    rmdir(path);
}

static inline int64_t entries_of(const char *path) {
    int64_t count = -2;
    DIR *d = opendir(path);
    if (!d) return -1;
    while (readdir(d)) count++;
    closedir(d);
    return count;
}

/* A command of the program in this process, with its output thrown away; returns its exit code. */
static inline int quietly(int (*command)(int, char **), int argc, char **argv) {
    fflush(stdout);
    fflush(stderr);
    FILE *nowhere = fopen("/dev/null", "w"); /* the C library's own open: test_faults counts those of the program */
    int out = dup(STDOUT_FILENO), err = dup(STDERR_FILENO);
    dup2(fileno(nowhere), STDOUT_FILENO);
    dup2(fileno(nowhere), STDERR_FILENO);
    int code = command(argc, argv);
    fflush(stdout);
    dup2(out, STDOUT_FILENO);
    dup2(err, STDERR_FILENO);
    fclose(nowhere);
    close(out);
    close(err);
    return code;
}

#endif
