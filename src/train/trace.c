/* The trace's file. Times go out as whole nanoseconds, in microseconds with three decimals: rounding start and end,
 * and never a duration, keeps events of a lane from overlapping. */
#include "train/trace.h"
#include "ops/kernels.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct TraceRank {
    Trace *trace;
    Device *device;
    int rank;
    int64_t step; /* that is being kept; 0: none */
    double began, ended;
    Timeline list[STREAM_COUNT];
    bool named[STREAM_COUNT + 1]; /* by lane: the file says what it is called */
    TraceRank *next;
};

struct Trace {
    char path[4200];
    int64_t first, last, room;
    pthread_mutex_t lock;
    FILE *file; /* NULL: nobody has joined, or it could not be made, as `error` says */
    Error error;
    TraceRank *ranks;
    bool any, warned; /* an event was written; a full list was told of on stderr */
    int64_t steps;    /* written, by all ranks */
};

/* ---- Opening ---------------------------------------------------------------------------------- */

static bool read_steps(Trace *t, const char *steps, Error *e) {
    long long first, last;
    int used = 0;
    if (sscanf(steps, "%lld:%lld%n", &first, &last, &used) == 2 && !steps[used] && first >= 1 && last >= first) {
        t->first = first;
        t->last = last;
        return true;
    }
    return fail(e, EXIT_USAGE,
                "--trace-steps is \"%s\"; it must be FIRST:LAST, two steps counted from 1, as in --trace-steps 5:8",
                text_shown(steps).text);
}

/* out.json of rank 3 is out.rank3.json. */
static bool set_path(Trace *t, const char *path, Error *e) {
    size_t length = strlen(path), stem = length;
    if (length + 32 > sizeof t->path)
        return fail(e, EXIT_USAGE, "--trace names a path of %zu bytes; give a shorter one", length);
    if (length > 5 && strcmp(path + length - 5, ".json") == 0) stem -= 5;
    if (wire_mpi_world() == 0)
        strcpy(t->path, path);
    else
        snprintf(t->path, sizeof t->path, "%.*s.rank%d%s", (int)stem, path, wire_mpi_rank(), path + stem);
    return true;
}

bool trace_open(Trace **out, const TraceOptions *o, int64_t room, Error *e) {
    *out = NULL;
    if (!o->path)
        return !o->steps ||
               fail(e, EXIT_USAGE, "--trace-steps says which steps to trace, not where to; add --trace FILE");
    Trace *t = calloc(1, sizeof *t);
    MUST(t);
    t->first = 1;
    t->last = INT64_MAX;
    t->room = room;
    pthread_mutex_init(&t->lock, NULL);
    if (set_path(t, o->path, e) && (!o->steps || read_steps(t, o->steps, e))) {
        *out = t;
        return true;
    }
    trace_close(t, false, e);
    return false;
}

static bool cannot_write(const Trace *t, Error *e) {
    return fail(e, EXIT_IO, "the trace %s cannot be written: %s; choose another file with --trace, or free some space",
                t->path, strerror(errno));
}

/* With the lock. The first bytes make stdio take its buffer now and not between steps. */
static void make_file(Trace *t) {
    if (t->file || t->error.code != EXIT_DONE) return;
    t->file = fopen(t->path, "w");
    if (!t->file || fputs("[", t->file) < 0 || fflush(t->file) != 0) cannot_write(t, &t->error);
}

static void free_rank(TraceRank *k) {
    for (int s = 0; s < STREAM_COUNT; s++) free(k->list[s].work);
    free(k);
}

static bool no_memory(Error *e) {
    return fail(e, EXIT_MEMORY, "no memory for the trace of a rank; trace a run of fewer ranks, or free some memory");
}

bool trace_join(Trace *t, Run *r, TraceRank **out, Error *e) {
    *out = NULL;
    if (!t) return true;
    TraceRank *k = calloc(1, sizeof *k);
    if (!k) return no_memory(e);
    *k = (TraceRank){.trace = t, .device = r->device, .rank = r->comm.mesh.rank};
    for (int s = 0; s < STREAM_COUNT; s++) {
        k->list[s].room = t->room;
        k->list[s].work = calloc((size_t)t->room, sizeof(Timed)); /* touched only as far as a step goes */
        if (k->list[s].work) continue;
        free_rank(k);
        return no_memory(e);
    }
    pthread_mutex_lock(&t->lock);
    make_file(t);
    k->next = t->ranks;
    t->ranks = k;
    if (t->error.code == EXIT_DONE)
        *out = k;
    else
        fail(e, t->error.code, "%s", t->error.text);
    pthread_mutex_unlock(&t->lock);
    return *out != NULL;
}

bool trace_close(Trace *t, bool done, Error *e) {
    if (!t) return true;
    bool ok = true;
    if (done && t->file && t->steps == 0) fprintf(stderr, "mop: no step was traced; %s holds none\n", t->path);
    if (t->file) {
        bool written = fputs("\n]\n", t->file) >= 0;
        ok = fclose(t->file) == 0 && written;
        if (!ok) cannot_write(t, e);
    }
    for (TraceRank *k = t->ranks, *next; k; k = next) {
        next = k->next;
        free_rank(k);
    }
    pthread_mutex_destroy(&t->lock);
    free(t);
    return ok;
}

/* ---- A step ----------------------------------------------------------------------------------- */

static double moment(const Device *d) {
    return d->sim ? d->stream[STREAM_COMPUTE].clock : seconds_now();
}

void trace_begin(TraceRank *k, int64_t step) {
    if (!k || step < k->trace->first || step > k->trace->last) return;
    device_settle(k->device);
    for (int s = 0; s < STREAM_COUNT; s++) {
        k->list[s].count = k->list[s].lost = 0;
        k->device->stream[s].timeline = &k->list[s];
    }
    k->step = step;
    k->began = moment(k->device);
}

void trace_end(TraceRank *k) {
    if (!k || k->step == 0) return;
    device_settle(k->device);
    k->ended = moment(k->device);
    for (int s = 0; s < STREAM_COUNT; s++) k->device->stream[s].timeline = NULL;
}

double trace_began(const TraceRank *k) {
    return k->began;
}

/* ---- Events ------------------------------------------------------------------------------------ */

enum { LANE_STEP, LANE_STREAMS }; /* tid: a stream's is LANE_STREAMS + its kind */

static int64_t nanoseconds(double t, double zero) {
    return max64(0, llround((t - zero) * 1e9));
}

/* Begins an object: what every event has. */
static void begin_event(Trace *t, const char *phase, int rank, int lane) {
    fprintf(t->file, "%s\n{\"ph\": \"%s\", \"pid\": %d, \"tid\": %d, ", t->any ? "," : "", phase, rank, lane);
    t->any = true;
}

static void print_microseconds(FILE *f, const char *key, int64_t ns) {
    fprintf(f, "\"%s\": %lld.%03d, ", key, (long long)(ns / 1000), (int)(ns % 1000));
}

static void name_lane(TraceRank *k, int lane, const char *name) {
    Trace *t = k->trace;
    if (k->named[lane]) return;
    k->named[lane] = true;
    if (lane == LANE_STEP) {
        begin_event(t, "M", k->rank, lane);
        fprintf(t->file, "\"name\": \"process_name\", \"args\": {\"name\": \"rank %d\"}}", k->rank);
    }
    begin_event(t, "M", k->rank, lane);
    fprintf(t->file, "\"name\": \"thread_name\", \"args\": {\"name\": \"%s\"}}", name);
}

static void print_duration(Trace *t, double start, double end, double zero) {
    int64_t from = nanoseconds(start, zero);
    print_microseconds(t->file, "ts", from);
    print_microseconds(t->file, "dur", nanoseconds(end, zero) - from);
}

static void write_work(TraceRank *k, int lane, const Timed *s, double zero) {
    static const char *const categories[] = {
        [WORK_COPY] = "copy", [WORK_OP] = "op", [WORK_COLLECTIVE] = "collective", [WORK_WAIT] = "wait"};
    FILE *f = k->trace->file;
    const Label *l = &s->label;
    begin_event(k->trace, "X", k->rank, lane);
    print_duration(k->trace, s->start, s->end, zero);
    fprintf(f, "\"cat\": \"%s\", \"name\": ", categories[l->kind]);
    switch (l->kind) {
    case WORK_COPY: fprintf(f, "\"copy\""); break;
    case WORK_OP: fprintf(f, "\"%s\"", op_name((Op)l->what)); break;
    case WORK_COLLECTIVE: fprintf(f, "\"%s\"", collective_name((Collective)l->what)); break;
    case WORK_WAIT: fprintf(f, "\"wait for %s\"", stream_name((StreamKind)l->what)); break;
    }
    fprintf(f, ", \"args\": {\"component\": \"%s\", \"step\": %lld", component_name(l->component), (long long)k->step);
    if (l->layer >= 0) fprintf(f, ", \"layer\": %lld", (long long)l->layer);
    if (l->kind == WORK_COLLECTIVE)
        fprintf(f, ", \"group\": \"%s\", \"sent\": %lld, \"received\": %lld", axis_name((AxisName)l->group),
                (long long)l->sent, (long long)l->received);
    fprintf(f, "}}");
}

static void write_lost(TraceRank *k, StreamKind kind, double zero) {
    Trace *t = k->trace;
    const Timeline *list = &k->list[kind];
    begin_event(t, "i", k->rank, LANE_STREAMS + (int)kind);
    print_microseconds(t->file, "ts", nanoseconds(list->count ? list->work[list->count - 1].end : k->began, zero));
    fprintf(t->file,
            "\"s\": \"t\", \"name\": \"no room: %lld more of this step are left out\", \"args\": {\"step\": %lld, "
            "\"lost\": %lld}}",
            (long long)list->lost, (long long)k->step, (long long)list->lost);
    if (t->warned) return;
    t->warned = true;
    fprintf(stderr,
            "mop: the trace has room for %lld events of a stream in a step; step %lld of rank %d has %lld more on %s, "
            "which are left out; the file says where this happens again\n",
            (long long)list->room, (long long)k->step, k->rank, (long long)list->lost, stream_name(kind));
}

static void write_stream(TraceRank *k, StreamKind kind, double zero) {
    const Timeline *list = &k->list[kind];
    int lane = LANE_STREAMS + (int)kind;
    if (list->count + list->lost == 0) return;
    name_lane(k, lane, stream_name(kind));
    for (int64_t i = 0; i < list->count; i++) write_work(k, lane, &list->work[i], zero);
    if (list->lost > 0) write_lost(k, kind, zero);
}

bool trace_write(TraceRank *k, double zero, Error *e) {
    if (!k || k->step == 0) return true;
    Trace *t = k->trace;
    pthread_mutex_lock(&t->lock);
    name_lane(k, LANE_STEP, "step");
    begin_event(t, "X", k->rank, LANE_STEP);
    print_duration(t, k->began, k->ended, zero);
    fprintf(t->file, "\"cat\": \"step\", \"name\": \"step %lld\", \"args\": {\"step\": %lld}}", (long long)k->step,
            (long long)k->step);
    for (int s = 0; s < STREAM_COUNT; s++) write_stream(k, (StreamKind)s, zero);
    t->steps++;
    k->step = 0;
    bool ok = fflush(t->file) == 0 && !ferror(t->file);
    if (!ok && t->error.code == EXIT_DONE) cannot_write(t, &t->error);
    if (!ok) fail(e, t->error.code, "%s", t->error.text);
    pthread_mutex_unlock(&t->lock);
    return ok;
}
