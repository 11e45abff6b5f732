/* Streams: in-order queues of work. A stream without a queue runs its work in the caller's thread (the CPU's
 * compute); one with a queue has a thread, so that its work overlaps. An event is a ticket number: "everything up to
 * here". */
#include "device/stream.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { QUEUE_LENGTH = 256 };

typedef struct {
    LaunchFunction fn; /* NULL: wait for `event` */
    Event event;
    Label label;
    _Alignas(16) char args[LAUNCH_BYTES];
} Work;

struct StreamQueue {
    Stream *stream;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t moved;          /* issued, done or closing changed */
    _Atomic uint64_t issued, done; /* change under the lock */
    bool closing;
    unsigned late; /* state of the delays' generator; 0: no delays */
    Work work[QUEUE_LENGTH];
};

struct DeviceFailure {
    atomic_bool failed;
    pthread_mutex_t lock;
    Error error;
};

/* ---- Failure ---------------------------------------------------------------------------------- */

struct DeviceFailure *failure_open(void) {
    struct DeviceFailure *f = calloc(1, sizeof *f);
    if (f) pthread_mutex_init(&f->lock, NULL);
    return f;
}

void failure_close(struct DeviceFailure *f) {
    pthread_mutex_destroy(&f->lock);
    free(f);
}

void device_fail(Device *d, const Error *e) {
    pthread_mutex_lock(&d->failure->lock);
    if (!atomic_load(&d->failure->failed)) d->failure->error = *e;
    atomic_store(&d->failure->failed, true);
    pthread_mutex_unlock(&d->failure->lock);
}

const Error *device_failed(Device *d) {
    return atomic_load(&d->failure->failed) ? &d->failure->error : NULL;
}

/* ---- Where the time goes ---------------------------------------------------------------------- */

Label stream_label(const Stream *s, WorkKind kind, int what) {
    const Device *d = s->device;
    return (Label){.kind = kind, .what = what, .component = d->component, .layer = d->layer};
}

void stream_spend(Stream *s, const Label *l, double start, double end) {
    double *sum = l->kind == WORK_WAIT ? s->time.wait[l->what] : s->time.work;
    sum[l->component] += end - start;
    Timeline *k = s->timeline;
    if (!k) return;
    if (k->count < k->room)
        k->work[k->count++] = (Timed){.label = *l, .start = start, .end = end};
    else
        k->lost++;
}

/* ---- Running ---------------------------------------------------------------------------------- */

static void run(Stream *s, LaunchFunction fn, const void *args, const Label *l) {
    if (atomic_load_explicit(&s->device->failure->failed, memory_order_acquire)) return;
    double start = seconds_now();
    fn(s, args);
    double end = seconds_now();
    stream_spend(s, l, start, end);
    if (s->device->profile && l->kind == WORK_OP) s->device->meter.op[l->what].seconds += end - start;
}

static bool has_run(Event e) {
    return atomic_load(&e.stream->queue->done) >= e.ticket;
}

/* In the thread that runs s. */
static void wait_in(Stream *s, Event e, const Label *l) {
    if (has_run(e)) return;
    double start = seconds_now();
    queue_wait(e);
    stream_spend(s, l, start, seconds_now());
}

static void delay(struct StreamQueue *q) {
    if (!q->late) return;
    q->late = q->late * 1664525u + 1013904223u;
    struct timespec t = {0, (q->late >> 16) % 100 * 1000}; /* up to 0.1 ms */
    nanosleep(&t, NULL);
}

static void *work_through(void *context) {
    struct StreamQueue *q = context;
    while (true) {
        if (!reached_soon(&q->issued, q->done + 1)) {
            pthread_mutex_lock(&q->lock);
            while (q->done == q->issued && !q->closing) pthread_cond_wait(&q->moved, &q->lock);
            pthread_mutex_unlock(&q->lock);
        }
        if (q->done == q->issued) return NULL; /* closing */
        Work *w = &q->work[q->done % QUEUE_LENGTH];
        delay(q);
        if (w->fn)
            run(q->stream, w->fn, w->args, &w->label);
        else
            wait_in(q->stream, w->event, &w->label);
        pthread_mutex_lock(&q->lock);
        q->done++;
        pthread_mutex_unlock(&q->lock);
        pthread_cond_broadcast(&q->moved);
    }
}

static void enqueue(struct StreamQueue *q, LaunchFunction fn, const void *args, size_t bytes, Event event,
                    const Label *label) {
    pthread_mutex_lock(&q->lock);
    while (q->issued - q->done == QUEUE_LENGTH) pthread_cond_wait(&q->moved, &q->lock);
    Work *w = &q->work[q->issued % QUEUE_LENGTH];
    w->fn = fn;
    w->event = event;
    w->label = *label;
    if (bytes) memcpy(w->args, args, bytes);
    q->issued++;
    pthread_mutex_unlock(&q->lock);
    pthread_cond_broadcast(&q->moved);
}

static void queue_free(struct StreamQueue *q) {
    pthread_cond_destroy(&q->moved);
    pthread_mutex_destroy(&q->lock);
    free(q);
}

struct StreamQueue *queue_open(Stream *s, bool late, Error *e) {
    struct StreamQueue *q = calloc(1, sizeof *q);
    int refused = q ? 0 : ENOMEM;
    if (q) {
        q->stream = s;
        q->late = late ? 1 + (unsigned)s->kind : 0;
        pthread_mutex_init(&q->lock, NULL);
        pthread_cond_init(&q->moved, NULL);
        refused = pthread_create(&q->thread, NULL, work_through, q);
    }
    if (refused == 0) return q;
    if (q) queue_free(q);
    fail(e, EXIT_MEMORY,
         "cannot start the thread of the %s stream: %s; device %s; use fewer ranks or a smaller compute.threads, or "
         "raise the limits of processes and of address space (ulimit -u, ulimit -v)",
         stream_name(s->kind), strerror(refused), s->device->name);
    return NULL;
}

void queue_close(struct StreamQueue *q) {
    if (!q) return;
    pthread_mutex_lock(&q->lock);
    q->closing = true;
    pthread_cond_broadcast(&q->moved);
    pthread_mutex_unlock(&q->lock);
    pthread_join(q->thread, NULL);
    queue_free(q);
}

/* ---- The contract ----------------------------------------------------------------------------- */

void queue_launch(Stream *s, LaunchFunction fn, const void *args, size_t bytes) {
    MUST(bytes <= LAUNCH_BYTES);
    Label l = s->charged.kind == WORK_COPY ? stream_label(s, WORK_COPY, 0) : s->charged;
    s->charged = (Label){0};
    if (s->queue)
        enqueue(s->queue, fn, args, bytes, (Event){0}, &l);
    else
        run(s, fn, args, &l);
}

Event queue_record(Stream *s) {
    Event e = {.stream = s, .clock = s->clock};
    if (!s->queue) return e;
    pthread_mutex_lock(&s->queue->lock);
    e.ticket = s->queue->issued;
    pthread_mutex_unlock(&s->queue->lock);
    return e;
}

void queue_wait(Event e) {
    if (!e.stream || !e.stream->queue) return;
    struct StreamQueue *q = e.stream->queue;
    if (reached_soon(&q->done, e.ticket)) return;
    pthread_mutex_lock(&q->lock);
    while (q->done < e.ticket) pthread_cond_wait(&q->moved, &q->lock);
    pthread_mutex_unlock(&q->lock);
}

void queue_follow(Stream *s, Event e) {
    if (!e.stream || e.stream == s) return;
    Label l = stream_label(s, WORK_WAIT, (int)e.stream->kind);
    if (e.clock > s->clock) {
        stream_spend(s, &l, s->clock, e.clock);
        s->clock = e.clock;
    }
    if (!e.stream->queue) return;
    if (s->queue)
        enqueue(s->queue, NULL, NULL, 0, e, &l);
    else
        wait_in(s, e, &l);
}
