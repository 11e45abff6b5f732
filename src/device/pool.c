/* Tasks are handed out by one counter. A thread that arrives late finds the loop closed and goes back to
 * waiting, so a loop never waits for a thread that has not begun: `state` says, in one word, which loop this
 * is, whether it may still be joined, and how many threads besides the caller are in it.
 *
 *   state = generation << 32 | open << 31 | threads inside
 *
 * Waiting spins briefly, since loops follow each other closely within a layer, and then sleeps, since a rank
 * may wait long for its peers. Sleeper and waker each write their own word and then read the other's, all in
 * one total order (seq_cst), so that no wake-up is lost. */
#define _GNU_SOURCE
#include "device/pool.h"
#include "base/base.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { CACHE_LINE = 64, SPINS = 2000 };

static const uint64_t OPEN = 1ull << 31;
static const uint64_t INSIDE = (1ull << 31) - 1;

typedef struct {
    Pool *pool;
    int index;
    pthread_t thread;
    void *scratch;
} Worker;

struct Pool {
    int threads, started; /* started: threads made, without the caller */
    Worker *worker;       /* [threads]; 0 is the caller's */
    PoolTask task;
    void *context;
    int64_t count;
    pthread_mutex_t mutex;
    pthread_cond_t work, left;
    atomic_bool stop, caller_sleeps;
    atomic_int sleepers;
    _Alignas(CACHE_LINE) _Atomic uint64_t state;
    _Alignas(CACHE_LINE) _Atomic int64_t next; /* the first task that nobody has taken */
};

#if defined(__x86_64__)
static void spin_pause(void) {
    __builtin_ia32_pause();
}
#elif defined(__aarch64__)
static void spin_pause(void) {
    __asm__ volatile("yield");
}
#else
static void spin_pause(void) {
}
#endif

static void take_tasks(Pool *p, int worker) {
    for (;;) {
        int64_t index = atomic_fetch_add_explicit(&p->next, 1, memory_order_relaxed);
        if (index >= p->count) return;
        p->task(p->context, index, worker);
    }
}

/* ---- A worker's life -------------------------------------------------------------------------- */

static bool joinable(uint64_t state, uint64_t last) {
    return (state & OPEN) && state >> 32 != last;
}

/* Until there is a loop to join that is not the last one; false when the pool closes. */
static bool await_work(Pool *p, uint64_t last) {
    for (int i = 0; i < SPINS; i++) {
        if (joinable(atomic_load(&p->state), last)) return true;
        if (atomic_load(&p->stop)) return false;
        spin_pause();
    }
    pthread_mutex_lock(&p->mutex);
    atomic_fetch_add(&p->sleepers, 1);
    while (!joinable(atomic_load(&p->state), last) && !atomic_load(&p->stop)) pthread_cond_wait(&p->work, &p->mutex);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->mutex);
    return !atomic_load(&p->stop);
}

/* Enters the open loop, and says which it is; false when it closed meanwhile. */
static bool join_loop(Pool *p, uint64_t *generation) {
    uint64_t state = atomic_load(&p->state);
    while (state & OPEN) {
        if (!atomic_compare_exchange_weak(&p->state, &state, state + 1)) continue;
        *generation = state >> 32;
        return true;
    }
    return false;
}

static void leave_loop(Pool *p) {
    uint64_t state = atomic_fetch_sub(&p->state, 1) - 1;
    bool last_out = (state & (OPEN | INSIDE)) == 0;
    if (!last_out || !atomic_load(&p->caller_sleeps)) return;
    pthread_mutex_lock(&p->mutex);
    pthread_cond_signal(&p->left);
    pthread_mutex_unlock(&p->mutex);
}

static void *worker_main(void *argument) {
    Worker *w = argument;
    uint64_t last = 0; /* generations start at 1 */
    while (await_work(w->pool, last)) {
        if (!join_loop(w->pool, &last)) continue;
        take_tasks(w->pool, w->index);
        leave_loop(w->pool);
    }
    return NULL;
}

/* ---- The caller's side ------------------------------------------------------------------------ */

static void open_loop(Pool *p) {
    uint64_t generation = (atomic_load(&p->state) >> 32) + 1;
    atomic_store(&p->state, (generation & UINT32_MAX) << 32 | OPEN);
    if (atomic_load(&p->sleepers) == 0) return;
    pthread_mutex_lock(&p->mutex);
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->mutex);
}

static bool all_left(Pool *p) {
    return (atomic_load(&p->state) & INSIDE) == 0;
}

static void close_loop(Pool *p) {
    atomic_fetch_and(&p->state, ~OPEN);
    for (int i = 0; i < SPINS; i++) {
        if (all_left(p)) return;
        spin_pause();
    }
    pthread_mutex_lock(&p->mutex);
    atomic_store(&p->caller_sleeps, true);
    while (!all_left(p)) pthread_cond_wait(&p->left, &p->mutex);
    atomic_store(&p->caller_sleeps, false);
    pthread_mutex_unlock(&p->mutex);
}

void pool_run(Pool *p, int64_t count, PoolTask task, void *context) {
    if (p->threads == 1 || count <= 1) {
        for (int64_t i = 0; i < count; i++) task(context, i, 0);
        return;
    }
    MUST((atomic_load(&p->state) & (OPEN | INSIDE)) == 0); /* not re-entrant */
    p->task = task;
    p->context = context;
    p->count = count;
    atomic_store(&p->next, 0);
    open_loop(p);
    take_tasks(p, 0);
    close_loop(p);
}

int pool_threads(const Pool *p) {
    return p->threads;
}

void *pool_scratch(Pool *p, int worker, int64_t bytes) {
    MUST(worker >= 0 && worker < p->threads && bytes <= POOL_SCRATCH_BYTES);
    return p->worker[worker].scratch;
}

/* ---- Open and close --------------------------------------------------------------------------- */

static bool start_workers(Pool *p) {
    for (int i = 0; i < p->threads; i++) {
        p->worker[i] = (Worker){.pool = p, .index = i, .scratch = aligned_alloc(CACHE_LINE, POOL_SCRATCH_BYTES)};
        if (p->worker[i].scratch == NULL) return false;
    }
    for (int i = 1; i < p->threads; i++) {
        if (pthread_create(&p->worker[i].thread, NULL, worker_main, &p->worker[i]) != 0) return false;
        p->started++;
    }
    return true;
}

Pool *pool_open(int threads) {
    MUST(threads >= 1);
    Pool *p = aligned_alloc(CACHE_LINE, sizeof *p);
    if (p == NULL) return NULL;
    *p = (Pool){.threads = threads, .worker = calloc((size_t)threads, sizeof *p->worker)};
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->left, NULL);
    if (p->worker != NULL && start_workers(p)) return p;
    pool_close(p);
    return NULL;
}

void pool_close(Pool *p) {
    if (p == NULL) return;
    pthread_mutex_lock(&p->mutex);
    atomic_store(&p->stop, true);
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->mutex);
    for (int i = 1; i <= p->started; i++) pthread_join(p->worker[i].thread, NULL);
    for (int i = 0; p->worker != NULL && i < p->threads; i++) free(p->worker[i].scratch);
    pthread_cond_destroy(&p->left);
    pthread_cond_destroy(&p->work);
    pthread_mutex_destroy(&p->mutex);
    free(p->worker);
    free(p);
}
