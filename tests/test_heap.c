/* Nothing is allocated inside a step: everything lies in arenas that were reserved before the first one. The
 * linker sends this program's calls of the heap and of mmap here (tests/CMakeLists.txt), where they are counted
 * while any rank is inside a step, on whatever thread. */
#include "ranks.h"
#include "train/trace.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <cmocka.h>

static atomic_bool counting;
static atomic_int calls;

static void count(void) {
    if (atomic_load(&counting)) atomic_fetch_add(&calls, 1);
}

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t n, size_t bytes);
void *__real_realloc(void *p, size_t bytes);
void *__real_aligned_alloc(size_t alignment, size_t bytes);
int __real_posix_memalign(void **p, size_t alignment, size_t bytes);
void *__real_mmap(void *at, size_t bytes, int rights, int flags, int fd, off_t offset);

void *__wrap_malloc(size_t bytes) {
    count();
    return __real_malloc(bytes);
}

void *__wrap_calloc(size_t n, size_t bytes) {
    count();
    return __real_calloc(n, bytes);
}

void *__wrap_realloc(void *p, size_t bytes) {
    count();
    return __real_realloc(p, bytes);
}

void *__wrap_aligned_alloc(size_t alignment, size_t bytes) {
    count();
    return __real_aligned_alloc(alignment, bytes);
}

int __wrap_posix_memalign(void **p, size_t alignment, size_t bytes) {
    count();
    return __real_posix_memalign(p, alignment, bytes);
}

void *__wrap_mmap(void *at, size_t bytes, int rights, int flags, int fd, off_t offset) {
    count();
    return __real_mmap(at, bytes, rights, flags, fd, offset);
}

/* Every rank here at once; allocates nothing. */
static bool meet(Run *r, Error *e) {
    char mine = 0, all[8];
    return host_gather(&r->comm, all, &mine, 1, e);
}

/* A step, and what is written of it: other ranks may be inside theirs. */
static bool step_traced(Run *r, TraceRank *trace, int64_t step, Error *e) {
    StepResult out;
    trace_begin(trace, step + 1);
    bool ok = train_step(r, step, false, &out, e);
    trace_end(trace);
    return ok && trace_write(trace, 0, e);
}

/* Steps 0 and 1 may do things once; 2, 3 and 4 are counted. */
static bool train_counted(Run *r, void *context, Error *e) {
    TraceRank *trace;
    if (!trace_join(context, r, &trace, e)) return false;
    for (int64_t step = 0; step < 2; step++)
        if (!step_traced(r, trace, step, e)) return false;
    if (!meet(r, e)) return false;
    atomic_store(&counting, true);
    for (int64_t step = 2; step < 5; step++)
        if (!step_traced(r, trace, step, e)) return false;
    if (!meet(r, e)) return false;
    atomic_store(&counting, false);
    return true;
}

static void no_step_allocates_on_any_thread_of_any_rank(void **state) {
    (void)state;
    static const struct {
        int world;
        const char *spec, *sets[5];
    } rows[] = {
        {1, "examples/tiny.json", {"compute.threads=2"}},
        {2, "examples/tiny.json", {"compute.type=bf16", "compute.threads=2", "train.micro_batches=2"}},
        {4,
         "examples/tiny.json",
         {"compute.type=fp64", "mixture.dense=2", "mixture.expert=4", "compute.activations=recompute"}},
        {4,
         "tests/fixtures/qwen3_moe/config.json",
         {"mixture.expert=2", "device=cpu:late", "optimizer.update=blocking"}},
        {3, "tests/fixtures/mixtral/config.json", {"mixture.expert=3", "device=cpu:plain"}},
        {4, "tests/fixtures/olmoe/config.json", {"mixture.expert=4", "device=sim:h200"}},
        {4,
         "tests/fixtures/olmoe/config.json",
         {"mixture.vocabulary=4", "mixture.loss_travel=activations", "mixture.loss_chunk=24", "train.micro_batches=2"}},
        {4,
         "tests/fixtures/qwen3_moe/config.json",
         {"mixture.vocabulary=2", "mixture.loss_travel=weights", "compute.type=bf16", "device=cpu:late"}},
    };
    char *documents = random_documents(40, 50, 67, 3);
    for (size_t i = 0; i < COUNT(rows); i++) {
        RanksSetup setup = {.world = rows[i].world,
                            .spec = rows[i].spec,
                            .documents = documents,
                            .sets = {"train.sequence_length=32", "train.sequences=5"}};
        for (int n = 2, j = 0; j < 5 && rows[i].sets[j]; j++) setup.sets[n++] = rows[i].sets[j];
        Ranks *r = ranks_open(setup);
        Trace *trace;
        Error e = {0};
        const TraceOptions options = {.path = i % 2 ? "/dev/null" : NULL};
        assert_true(trace_open(&trace, &options, TRACE_ROOM, &e));
        atomic_store(&calls, 0);
        ranks_run(r, train_counted, trace);
        if (atomic_load(&calls) > 0) fail_msg("row %zu: %d allocations in three steps", i, atomic_load(&calls));
        ranks_close(r);
        assert_true(trace_close(trace, true, &e));
    }
    free(documents);
}

static void the_counter_counts(void **state) {
    (void)state;
    atomic_store(&calls, 0);
    atomic_store(&counting, true);
    char *documents = random_documents(1, 5, 67, 3);
    atomic_store(&counting, false);
    free(documents);
    assert_int_equal(atomic_load(&calls), 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_counter_counts),
        cmocka_unit_test(no_step_allocates_on_any_thread_of_any_rank),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
