/* The Device: opens streams and pool, keeps the meter. Every op and collective is charged here, on every device; sim answers
 * "counted; do not run" and moves its clock instead. */
#include "device/pool.h"
#include "device/stream.h"

#include <stdlib.h>
#include <string.h>

const char *component_name(Component c) {
    static const char *const names[COMPONENT_COUNT] = {"attention",  "dense",     "router", "experts",
                                                       "vocabulary", "optimizer", "other"};
    MUST(c >= 0 && c < COMPONENT_COUNT);
    return names[c];
}

const char *stream_name(StreamKind k) {
    static const char *const names[STREAM_COUNT] = {"compute", "network", "up", "down"};
    MUST(k >= 0 && k < STREAM_COUNT);
    return names[k];
}

static bool open_kind(Device *d, const char *name, Error *e) {
    bool late = strcmp(name, "cpu:late") == 0;
    if (strncmp(name, "sim:", 4) == 0) {
        d->sim = true;
        return machine_open(name + 4, &d->machine, e);
    }
    if (strcmp(name, "cpu") != 0 && strncmp(name, "cpu:", 4) != 0)
        return fail(e, EXIT_USAGE, "device: \"%s\" is not a device; use cpu, or sim:NAME to meter without running",
                    name);
    for (int i = 0; i < STREAM_COUNT; i++)
        if (late || i == STREAM_NETWORK) d->stream[i].queue = queue_open(&d->stream[i], late);
    return true;
}

Device *device_open(const char *name, int threads, const struct Kernels *kernels, Error *e) {
    Device *d = calloc(1, sizeof *d);
    MUST(d);
    d->name = name;
    d->threads = threads;
    d->kernels = kernels;
    d->component = COMPONENT_OTHER;
    d->layer = -1;
    d->failure = failure_open();
    for (int i = 0; i < STREAM_COUNT; i++) d->stream[i] = (Stream){.device = d, .kind = (StreamKind)i};
    if (!open_kind(d, name, e)) {
        device_close(d);
        return NULL;
    }
    if (d->sim) return d;
    d->pool = pool_open(threads);
    if (d->pool) return d;
    fail(e, EXIT_MEMORY, "cannot start %d threads or their scratch memory; device %s; use a smaller compute.threads",
         threads, name);
    device_close(d);
    return NULL;
}

void device_close(Device *d) {
    if (!d) return;
    for (int i = 0; i < STREAM_COUNT; i++) queue_close(d->stream[i].queue);
    if (d->pool) pool_close(d->pool);
    failure_close(d->failure);
    free(d);
}

Component device_component(Device *d, Component c) {
    Component before = d->component;
    d->component = c;
    return before;
}

void meter_clear(Device *d) {
    memset(&d->meter, 0, sizeof d->meter);
}

void device_rate(Device *d, Type t) {
    if (!d->sim) return;
    MUST((int)t < (int)RATE_TYPES);
    int units = d->machine.cores ? d->threads : 1;
    for (int k = 0; k < RATE_COUNT; k++) d->flops_per_s[k] = units * d->machine.achieved[k][t];
    d->bytes_per_s = units * d->machine.bytes_per_s;
}

bool charge(Stream *s, Cost c) {
    Device *d = s->device;
    MUST(c.op >= 0 && c.op < MAX_OPS && c.flops >= 0 && c.bytes >= 0);
    OpCount *count = &d->meter.op[c.op];
    count->calls++;
    count->flops += c.flops;
    count->bytes += c.bytes;
    d->meter.flops[d->component] += c.flops;
    Label l = stream_label(s, WORK_OP, c.op);
    if (!d->sim) {
        s->charged = c.bytes > 0 ? l : (Label){0}; /* what touches no byte is not launched */
        return true;
    }
    double compute = (double)c.flops / d->flops_per_s[c.rate], memory = (double)c.bytes / d->bytes_per_s;
    double seconds = compute > memory ? compute : memory;
    count->seconds += seconds;
    s->clock += seconds;
    if (c.bytes > 0) stream_spend(s, &l, s->clock - seconds, s->clock);
    return false;
}

/* ---- Between host and device ------------------------------------------------------------------ */

void device_read(Stream *s, void *host, Tensor t, ReadKind kind) {
    Device *d = s->device;
    d->meter.copied_down += (int64_t)tensor_bytes(t);
    if (d->sim) {
        MUST(d->answer);
        d->answer(d->read_context, kind, host, t);
        return;
    }
    event_wait(event_record(s));
    if (device_failed(d))
        memset(host, 0, tensor_bytes(t));
    else
        memcpy(host, t.data, tensor_bytes(t));
    if (d->observe) d->observe(d->read_context, kind, host, t);
}

typedef struct {
    Tensor t;
    const void *host;
} WriteArgs;

static void write_host(Stream *s, const void *args) {
    const WriteArgs *a = args;
    (void)s;
    memcpy(a->t.data, a->host, tensor_bytes(a->t));
}

void device_write(Stream *s, Tensor t, const void *host) {
    Device *d = s->device;
    d->meter.copied_up += (int64_t)tensor_bytes(t);
    if (d->sim || tensor_bytes(t) == 0) return;
    stream_launch(s, write_host, &(WriteArgs){t, host}, sizeof(WriteArgs));
    event_wait(event_record(s)); /* `host` is the caller's again */
}
