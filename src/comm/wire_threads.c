/* The thread wire: ranks that are threads of one process. Members of an axis meet twice: to show each other their
 * parcels, and, after each has copied what is for it, to part; in between nobody's memory may change. Waiting
 * soon sleeps, since ranks may outnumber cores.
 *
 * An exchange happens for all its members or for none: who gives up while waiting takes his arrival back, and once
 * all have arrived nothing can keep them from copying and parting. So memory that was handed to an exchange is the
 * caller's own again when it returns, failed or not. After the first failure no exchange begins. */
#include "comm/calls.h"
#include "comm/parcel.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t moved;
    _Atomic uint64_t arrived, departed; /* members, summed over all meetings so far; change under the lock */
    double clock, latest;               /* of the meeting at hand; of the last one */
    const Parcel **parcels;             /* [size of the axis], by member; made by the first exchange */
} Meeting;

typedef struct {
    int world, open; /* open: ends not yet closed */
    bool late;
    pthread_mutex_t lock;
    bool failed, told; /* told: everybody who waits has been woken since */
    Error error;
    CallLog **calls;  /* [world] */
    Meeting *meeting; /* [AXIS_COUNT][world]: by axis and its first rank */
} Hub;

typedef struct {
    Wire wire;
    Hub *hub;
    uint64_t rounds[AXIS_COUNT]; /* meetings this rank has come to */
    unsigned delay;
} End;

static Meeting *meeting_of(Hub *h, const Axis *a) {
    return &h->meeting[(int)a->name * h->world + a->first];
}

static bool hub_failed(Hub *h, Error *e) {
    pthread_mutex_lock(&h->lock);
    bool failed = h->failed;
    if (failed) fail(e, EXIT_PEER, "%s", h->error.text);
    pthread_mutex_unlock(&h->lock);
    return failed;
}

/* On the clock of `moved`. */
static struct timespec seconds_from_now(double seconds) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    double whole = floor(seconds);
    t.tv_sec += (time_t)whole;
    t.tv_nsec += (long)((seconds - whole) * 1e9);
    t.tv_sec += t.tv_nsec / 1000000000;
    t.tv_nsec %= 1000000000;
    return t;
}

/* The first failure is kept. */
static void hub_fail(Hub *h, const Error *e) {
    pthread_mutex_lock(&h->lock);
    if (!h->failed) h->error = *e;
    h->failed = true;
    pthread_mutex_unlock(&h->lock);
}

/* True for the first who asks after a failure: one waking is enough, since who comes to wait later looks first. */
static bool must_wake(Hub *h) {
    pthread_mutex_lock(&h->lock);
    bool first = !h->told;
    h->told = true;
    pthread_mutex_unlock(&h->lock);
    return first;
}

/* Nothing has moved for too long: the first who notices tells what all ranks were at, and who is behind. */
static void hub_time_out(Hub *h, int rank, double timeout) {
    pthread_mutex_lock(&h->lock);
    if (!h->failed) {
        Tail *tails = calloc((size_t)h->world, sizeof *tails);
        if (tails) {
            for (int r = 0; r < h->world; r++) tails[r] = calls_tail(h->calls[r]);
            calls_print(tails, h->world, stderr);
            calls_fail(&h->error, tails, h->world, rank, timeout);
        } else {
            fail(&h->error, EXIT_PEER, "rank %d had waited %g s, and there is no memory to tell for whom", rank,
                 timeout);
        }
        free(tails);
        h->failed = true;
    }
    pthread_mutex_unlock(&h->lock);
}

/* Until all have arrived; who gives up was never here. */
static bool wait_for_all(End *end, Meeting *m, uint64_t target, Error *e) {
    if (reached_soon(&m->arrived, target)) return true;
    struct timespec until = seconds_from_now(end->wire.timeout);
    bool ok = true;
    pthread_mutex_lock(&m->lock);
    while (m->arrived < target) {
        ok = !hub_failed(end->hub, e);
        if (!ok) break;
        bool late = pthread_cond_timedwait(&m->moved, &m->lock, &until) == ETIMEDOUT;
        if (late && m->arrived < target) hub_time_out(end->hub, end->wire.rank, end->wire.timeout);
    }
    if (!ok) m->arrived--;
    pthread_mutex_unlock(&m->lock);
    return ok;
}

static void threads_poison(Wire *w, const Error *e);

/* Room for the members' parcels: on sim nobody ever shows any. Every group is used once before the first step. */
static bool make_room(Meeting *m, const Axis *axis, Error *e) {
    pthread_mutex_lock(&m->lock);
    if (!m->parcels) m->parcels = calloc((size_t)axis->size, sizeof *m->parcels);
    bool ok = m->parcels != NULL;
    pthread_mutex_unlock(&m->lock);
    return ok || fail(e, EXIT_MEMORY, "no memory for the wire between %d ranks; use fewer ranks", axis->size);
}

/* `parcels` NULL: none to show. A rank that fails to meet ends the wire for all. */
static bool arrive(End *end, Meeting *m, const Axis *axis, const Parcel *parcels, double clock, uint64_t target,
                   Error *e) {
    if (hub_failed(end->hub, e)) return false;
    if (parcels && !make_room(m, axis, e)) {
        threads_poison(&end->wire, e);
        return false;
    }
    pthread_mutex_lock(&m->lock);
    if (parcels) m->parcels[axis->index] = parcels;
    if (clock > m->clock) m->clock = clock;
    bool last = m->arrived + 1 == target;
    if (last) {
        m->latest = m->clock;
        m->clock = 0;
    }
    m->arrived++;
    pthread_mutex_unlock(&m->lock);
    if (last) pthread_cond_broadcast(&m->moved); /* with the lock free, for who wakes takes it */
    bool ok = last || wait_for_all(end, m, target, e);
    if (!ok) threads_poison(&end->wire, e);
    return ok;
}

static void depart(Meeting *m, uint64_t target) {
    pthread_mutex_lock(&m->lock);
    bool last = ++m->departed == target;
    pthread_mutex_unlock(&m->lock);
    if (last) pthread_cond_broadcast(&m->moved);
    if (last || reached_soon(&m->departed, target)) return;
    pthread_mutex_lock(&m->lock);
    while (m->departed < target) pthread_cond_wait(&m->moved, &m->lock);
    pthread_mutex_unlock(&m->lock);
}

static void copy_parcels(Meeting *m, const Axis *axis, const Parcel *parcels) {
    for (int step = 0; step < axis->size; step++) {
        int j =
            (axis->index + step) % axis->size; /* everybody starts with himself: no two read the same member first */
        const Parcel *theirs = &m->parcels[j][axis->index];
        walk_copy(walk_received(&parcels[j]), walk_sent(theirs));
    }
}

static void delay(End *end) {
    if (!end->hub->late) return;
    end->delay = end->delay * 1664525u + 1013904223u;
    struct timespec t = {0, (end->delay >> 16) % 300 * 1000}; /* up to 0.3 ms */
    nanosleep(&t, NULL);
}

static bool threads_exchange(Wire *w, const Axis *axis, const Parcel *parcels, Error *e) {
    End *end = (End *)w;
    Meeting *m = meeting_of(end->hub, axis);
    uint64_t target = ++end->rounds[axis->name] * (uint64_t)axis->size;
    delay(end);
    if (!arrive(end, m, axis, parcels, 0, target, e)) return false;
    copy_parcels(m, axis, parcels);
    delay(end);
    depart(m, target);
    return true;
}

static double threads_meet(Wire *w, const Axis *axis, double clock) {
    End *end = (End *)w;
    Meeting *m = meeting_of(end->hub, axis);
    uint64_t target = ++end->rounds[axis->name] * (uint64_t)axis->size;
    Error e = {0};
    if (!arrive(end, m, axis, NULL, clock, target, &e)) return clock;
    double latest = m->latest; /* no later meeting begins before everybody has left this one */
    depart(m, target);
    return latest;
}

static void threads_poison(Wire *w, const Error *e) {
    Hub *h = ((End *)w)->hub;
    hub_fail(h, e);
    if (!must_wake(h)) return;
    for (int i = 0; i < AXIS_COUNT * h->world; i++) {
        pthread_mutex_lock(&h->meeting[i].lock);
        pthread_cond_broadcast(&h->meeting[i].moved);
        pthread_mutex_unlock(&h->meeting[i].lock);
    }
}

static void hub_close(Hub *h) {
    for (int i = 0; h->meeting && i < AXIS_COUNT * h->world; i++) {
        pthread_mutex_destroy(&h->meeting[i].lock);
        pthread_cond_destroy(&h->meeting[i].moved);
        free(h->meeting[i].parcels);
    }
    for (int r = 0; h->calls && r < h->world; r++) calls_close(h->calls[r]);
    pthread_mutex_destroy(&h->lock);
    free(h->calls);
    free(h->meeting);
    free(h);
}

static void threads_close(Wire *w) {
    Hub *h = ((End *)w)->hub;
    free(w);
    pthread_mutex_lock(&h->lock);
    bool last = --h->open == 0;
    pthread_mutex_unlock(&h->lock);
    if (last) hub_close(h);
}

static Hub *hub_open(int world, bool late) {
    Hub *h = calloc(1, sizeof *h);
    if (!h) return NULL;
    *h = (Hub){.world = world, .open = world, .late = late};
    pthread_mutex_init(&h->lock, NULL);
    h->calls = calloc((size_t)world, sizeof(CallLog *));
    h->meeting = calloc((size_t)AXIS_COUNT * (size_t)world, sizeof *h->meeting);
    if (!h->calls || !h->meeting) {
        free(h->meeting);
        h->meeting = NULL;
        hub_close(h);
        return NULL;
    }
    pthread_condattr_t monotonic; /* a clock that is set while ranks wait is no timeout */
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    for (int i = 0; i < AXIS_COUNT * world; i++) {
        pthread_mutex_init(&h->meeting[i].lock, NULL);
        pthread_cond_init(&h->meeting[i].moved, &monotonic);
    }
    pthread_condattr_destroy(&monotonic);
    return h;
}

static Wire *end_open(Hub *h, int rank, double timeout) {
    h->calls[rank] = calls_open();
    End *end = calloc(1, sizeof *end);
    if (!end || !h->calls[rank]) {
        free(end);
        return NULL;
    }
    end->hub = h;
    end->delay = (unsigned)rank + 1;
    end->wire = (Wire){.world = h->world,
                       .rank = rank,
                       .timeout = timeout,
                       .calls = h->calls[rank],
                       .exchange = threads_exchange,
                       .meet = threads_meet,
                       .poison = threads_poison,
                       .close = threads_close};
    return &end->wire;
}

bool wire_threads_open(Wire **wires, int world, double timeout, bool late, Error *e) {
    Hub *h = hub_open(world, late);
    int r = 0;
    while (h && r < world && (wires[r] = end_open(h, r, timeout))) r++;
    if (r == world) return true;
    while (--r >= 0) {
        free(wires[r]);
        wires[r] = NULL;
    }
    if (h) hub_close(h);
    return fail(e, EXIT_MEMORY, "no memory for the wire between %d ranks; use fewer ranks, or free some memory", world);
}
