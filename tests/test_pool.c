/* The pool: every task once, by known workers, however many threads there are and however long they slept. */
#define _POSIX_C_SOURCE 200809L
#include "base/base.h"
#include "device/pool.h"
#include "ops/kernels.h"
#include <string.h>
#include <time.h>

#include <setjmp.h> /* cmocka.h uses it */

#include <cmocka.h>

enum { MOST_TASKS = 257, MOST_THREADS = 5 };

typedef struct {
    Pool *pool;
    int64_t done[MOST_TASKS]; /* how often each task ran; tasks share none of it */
    int worker[MOST_TASKS];
} Tally;

static void count_task(void *context, int64_t index, int worker) {
    Tally *t = context;
    t->done[index]++;
    t->worker[index] = worker;
}

static void wait_milliseconds(long ms) {
    nanosleep(&(struct timespec){.tv_nsec = ms * 1000000}, NULL);
}

static void every_task_runs_once_on_any_number_of_threads(void **state) {
    (void)state;
    for (int threads = 1; threads <= MOST_THREADS; threads++) {
        Tally t = {.pool = pool_open(threads)};
        assert_non_null(t.pool);
        assert_int_equal(pool_threads(t.pool), threads);
        enum { LOOPS = 2000 };
        for (int i = 0; i < LOOPS; i++) {
            pool_run(t.pool, i % (MOST_TASKS + 1), count_task, &t);
            if (i % 500 == 0) wait_milliseconds(3); /* longer than workers spin */
        }
        for (int64_t k = 0; k < MOST_TASKS; k++) {
            int64_t expected = 0;
            for (int i = 0; i < LOOPS; i++) expected += i % (MOST_TASKS + 1) > k;
            assert_int_equal(t.done[k], expected);
            assert_in_range(t.worker[k], 0, threads - 1);
        }
        pool_close(t.pool);
    }
}

/* A task that writes all of its worker's scratch: two at once on one scratch would be a race that TSan sees. */
static void scratch_task(void *context, int64_t index, int worker) {
    Tally *t = context;
    unsigned char *scratch = pool_scratch(t->pool, worker, POOL_SCRATCH_BYTES);
    memset(scratch, (int)index, 4096);
    memset(scratch + POOL_SCRATCH_BYTES - 4096, (int)index, 4096);
    t->done[index] += scratch[0] == (unsigned char)index && scratch[POOL_SCRATCH_BYTES - 1] == (unsigned char)index;
}

static void workers_have_scratch_of_their_own(void **state) {
    (void)state;
    Tally t = {.pool = pool_open(3)};
    pool_run(t.pool, MOST_TASKS, scratch_task, &t);
    for (int64_t k = 0; k < MOST_TASKS; k++) assert_int_equal(t.done[k], 1);
    for (int w = 0; w < 3; w++) assert_int_equal((uintptr_t)pool_scratch(t.pool, w, 1) % 64, 0);
    pool_close(t.pool);
}

static void without_a_pool_tasks_run_in_order_as_worker_0(void **state) {
    (void)state;
    Tally t = {.worker = {[3] = 7}};
    parallel(NULL, 3, count_task, &t);
    for (int64_t k = 0; k < 3; k++) assert_true(t.done[k] == 1 && t.worker[k] == 0);
    assert_true(t.done[3] == 0 && t.worker[3] == 7);
}

static void a_pool_may_close_without_ever_running(void **state) {
    (void)state;
    for (int threads = 1; threads <= MOST_THREADS; threads++) pool_close(pool_open(threads));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_task_runs_once_on_any_number_of_threads),
        cmocka_unit_test(workers_have_scratch_of_their_own),
        cmocka_unit_test(without_a_pool_tasks_run_in_order_as_worker_0),
        cmocka_unit_test(a_pool_may_close_without_ever_running),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
