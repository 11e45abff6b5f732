/* A thread of its own looks at counters: the ranks that are counted only add one, and the ranks' own log of
 * collectives says in which layer they are. */
#include "plan/progress.h"

#include "comm/calls.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static const struct {
    const char *name;
    bool layers; /* what it does is told layer by layer */
} stages[] = {
    [PROGRESS_OPEN] = {"ranks opened", false},         [PROGRESS_STEP_1] = {"step 1 of 2", true},
    [PROGRESS_STEP_2] = {"step 2 of 2", true},         [PROGRESS_EVALUATE] = {"an evaluation", true},
    [PROGRESS_GENERATE] = {"a token of a text", true}, [PROGRESS_DONE] = {"ranks closed", false},
};

struct PlanProgress {
    const Spec *spec;
    Wire *const *wires;
    const char *routing;
    int world;
    bool terminal;
    double began;
    atomic_int reached[COUNT(stages)]; /* ranks */
    pthread_mutex_t lock;
    pthread_cond_t moved;
    bool closing, told;
    pthread_t thread;
};

/* The last stage that any rank has begun. */
static Stage stage_of(PlanProgress *p) {
    int at = PROGRESS_DONE;
    while (at > PROGRESS_OPEN && atomic_load(&p->reached[at]) == 0) at--;
    return (Stage)at;
}

static void tell(PlanProgress *p) {
    Stage at = stage_of(p);
    char where[64] = "";
    if (at == PROGRESS_OPEN) snprintf(where, sizeof where, " %d of %d", atomic_load(&p->reached[at]), p->world);
    if (stages[at].layers) {
        Tail t = calls_tail(p->wires[0]->calls);
        int64_t layer = t.count ? t.call[t.count - 1].layer : -1;
        if (layer >= 0)
            snprintf(where, sizeof where, ", layer %lld of %lld", (long long)layer + 1, (long long)p->spec->layers);
    }
    fprintf(stderr, "%smop: planning %d rank%s, %s routing: %s%s, %.0f s%s", p->terminal ? "\r\x1b[K" : "", p->world,
            p->world == 1 ? "" : "s", p->routing, stages[at].name, where, seconds_now() - p->began,
            p->terminal ? "" : "\n");
    fflush(stderr);
    p->told = true;
}

/* With the lock: sleeps; true when the time is up and false when it closes. */
static bool sleep_for(PlanProgress *p, double seconds) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += (time_t)seconds;
    while (!p->closing)
        if (pthread_cond_timedwait(&p->moved, &p->lock, &until) != 0) return !p->closing;
    return false;
}

static void *watch(void *context) {
    PlanProgress *p = context;
    pthread_mutex_lock(&p->lock);
    while (sleep_for(p, p->terminal ? 1 : 10)) tell(p);
    if (p->told && p->terminal) fprintf(stderr, "\r\x1b[K");
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

PlanProgress *plan_progress_open(const Spec *spec, Wire *const *wires, int world, const char *routing) {
    PlanProgress *p = wire_mpi_rank() > 0 ? NULL : calloc(1, sizeof *p);
    pthread_condattr_t monotonic;
    if (!p) return NULL;
    p->spec = spec;
    p->wires = wires;
    p->world = world;
    p->routing = routing;
    p->began = seconds_now();
    p->terminal = isatty(STDERR_FILENO);
    pthread_mutex_init(&p->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&p->moved, &monotonic);
    pthread_condattr_destroy(&monotonic);
    if (pthread_create(&p->thread, NULL, watch, p) == 0) return p;
    free(p);
    return NULL;
}

void plan_progress_at(PlanProgress *p, Stage stage) {
    if (p) atomic_fetch_add(&p->reached[stage], 1);
}

void plan_progress_close(PlanProgress *p) {
    if (!p) return;
    pthread_mutex_lock(&p->lock);
    p->closing = true;
    pthread_cond_signal(&p->moved);
    pthread_mutex_unlock(&p->lock);
    pthread_join(p->thread, NULL);
    pthread_cond_destroy(&p->moved);
    pthread_mutex_destroy(&p->lock);
    free(p);
}
