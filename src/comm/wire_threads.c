/* The thread wire: ranks that are threads of one process. Members of an axis meet twice: to show each other their parcels, and,
 * after each has copied what is for it, to part; in between nobody's memory may change. Waiting sleeps, since ranks may
 * outnumber cores. */
#include "comm/comm.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t moved;
    uint64_t arrived, departed; /* members, summed over all meetings so far */
    double clock, latest;       /* of the meeting at hand; of the last one */
    const Parcel **parcels;     /* [world], by member */
} Meeting;

typedef struct {
    int world, open; /* open: ends not yet closed */
    bool late;
    pthread_mutex_t lock;
    bool failed;
    Error error;
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

/* With the meeting's lock: until `count` has reached `target`. */
static bool wait_for(End *end, Meeting *m, const uint64_t *count, uint64_t target, const Axis *axis, Error *e) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += (time_t)(end->wire.timeout + 1);
    while (*count < target) {
        if (hub_failed(end->hub, e)) return false;
        if (pthread_cond_timedwait(&m->moved, &m->lock, &until) != ETIMEDOUT || *count >= target) continue;
        return fail(e, EXIT_PEER, "%llu of the %d ranks of the %s group did not come to a collective within %.0f s; rank %d waited; "
                    "raise comm.timeout if they are only slow", (unsigned long long)(target - *count), axis->size,
                    axis_name(axis->name), end->wire.timeout, end->wire.rank);
    }
    return true;
}

static bool arrive(End *end, Meeting *m, const Axis *axis, const Parcel *parcels, double clock, uint64_t target, Error *e) {
    pthread_mutex_lock(&m->lock);
    m->parcels[axis->index] = parcels;
    if (clock > m->clock) m->clock = clock;
    m->arrived++;
    if (m->arrived == target) {
        m->latest = m->clock;
        m->clock = 0;
        pthread_cond_broadcast(&m->moved);
    }
    bool ok = wait_for(end, m, &m->arrived, target, axis, e);
    pthread_mutex_unlock(&m->lock);
    return ok;
}

static bool depart(End *end, Meeting *m, const Axis *axis, uint64_t target, Error *e) {
    pthread_mutex_lock(&m->lock);
    m->departed++;
    if (m->departed == target) pthread_cond_broadcast(&m->moved);
    bool ok = wait_for(end, m, &m->departed, target, axis, e);
    pthread_mutex_unlock(&m->lock);
    return ok;
}

static void copy_parcels(Meeting *m, const Axis *axis, const Parcel *parcels) {
    for (int step = 0; step < axis->size; step++) {
        int j = (axis->index + step) % axis->size; /* everybody starts with himself: no two read the same member first */
        const Parcel *theirs = &m->parcels[j][axis->index];
        MUST(theirs->send_bytes == parcels[j].receive_bytes);
        if (parcels[j].receive_bytes && parcels[j].receive != theirs->send)
            memmove(parcels[j].receive, theirs->send, parcels[j].receive_bytes);
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
    return depart(end, m, axis, target, e);
}

static double threads_meet(Wire *w, const Axis *axis, double clock) {
    End *end = (End *)w;
    Meeting *m = meeting_of(end->hub, axis);
    uint64_t target = ++end->rounds[axis->name] * (uint64_t)axis->size;
    Error e = {0};
    if (!arrive(end, m, axis, NULL, clock, target, &e)) return clock;
    double latest = m->latest; /* no later meeting begins before everybody has left this one */
    depart(end, m, axis, target, &e);
    return latest;
}

static void threads_poison(Wire *w, const Error *e) {
    Hub *h = ((End *)w)->hub;
    pthread_mutex_lock(&h->lock);
    if (!h->failed) h->error = *e;
    h->failed = true;
    pthread_mutex_unlock(&h->lock);
    for (int i = 0; i < AXIS_COUNT * h->world; i++) {
        pthread_mutex_lock(&h->meeting[i].lock);
        pthread_cond_broadcast(&h->meeting[i].moved);
        pthread_mutex_unlock(&h->meeting[i].lock);
    }
}

static void threads_close(Wire *w) {
    Hub *h = ((End *)w)->hub;
    free(w);
    pthread_mutex_lock(&h->lock);
    bool last = --h->open == 0;
    pthread_mutex_unlock(&h->lock);
    if (!last) return;
    for (int i = 0; i < AXIS_COUNT * h->world; i++) {
        pthread_mutex_destroy(&h->meeting[i].lock);
        pthread_cond_destroy(&h->meeting[i].moved);
        free(h->meeting[i].parcels);
    }
    pthread_mutex_destroy(&h->lock);
    free(h->meeting);
    free(h);
}

bool wire_threads_open(Wire **wires, int world, double timeout, bool late, Error *e) {
    Hub *h = calloc(1, sizeof *h);
    if (!h) return fail(e, EXIT_MEMORY, "no memory for the wire between %d ranks", world);
    *h = (Hub){.world = world, .open = world, .late = late};
    pthread_mutex_init(&h->lock, NULL);
    h->meeting = calloc((size_t)AXIS_COUNT * (size_t)world, sizeof *h->meeting);
    MUST(h->meeting);
    for (int i = 0; i < AXIS_COUNT * world; i++) {
        pthread_mutex_init(&h->meeting[i].lock, NULL);
        pthread_cond_init(&h->meeting[i].moved, NULL);
        h->meeting[i].parcels = calloc((size_t)world, sizeof *h->meeting[i].parcels);
        MUST(h->meeting[i].parcels);
    }
    for (int r = 0; r < world; r++) {
        End *end = calloc(1, sizeof *end);
        MUST(end);
        end->hub = h;
        end->delay = (unsigned)r + 1;
        end->wire = (Wire){.world = world, .rank = r, .timeout = timeout, .exchange = threads_exchange, .meet = threads_meet,
                           .poison = threads_poison, .close = threads_close};
        wires[r] = &end->wire;
    }
    return true;
}
