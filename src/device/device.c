/* The Device: its doors, and the meter. Every op and collective is charged here, on every device; sim answers
 * "counted; do not run" and moves its clock instead. */
#include "device/backend.h"
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

/* ---- Opening ---------------------------------------------------------------------------------- */

static const struct {
    const char *name; /* of the device, or what its name begins with */
    bool begins;
    const Backend *backend;
} kinds[] = {
    {"cpu", false, &backend_cpu},
    {"cpu:", true, &backend_cpu},
    {"sim:", true, &backend_sim},
    {"cuda:", true, &backend_cuda},
};

static const Backend *backend_named(const char *name) {
    for (size_t i = 0; i < COUNT(kinds); i++) {
        bool is = kinds[i].begins ? strncmp(name, kinds[i].name, strlen(kinds[i].name)) == 0
                                  : strcmp(name, kinds[i].name) == 0;
        if (is) return kinds[i].backend;
    }
    return NULL;
}

bool device_counts(const char *name) {
    return backend_named(name) == &backend_sim;
}

static Device *no_memory(Error *e) {
    fail(e, EXIT_MEMORY, "no memory for a device; use fewer ranks, or free some memory");
    return NULL;
}

Device *device_open(const char *name, int threads, const struct Kernels *kernels, Error *e) {
    const Backend *backend = backend_named(name);
    if (!backend) {
        fail(e, EXIT_USAGE, "device: \"%s\" is not a device; use cpu, or sim:NAME to meter without running", name);
        return NULL;
    }
    Device *d = calloc(1, sizeof *d);
    if (!d) return no_memory(e);
    d->name = name;
    d->backend = backend;
    d->threads = threads;
    d->kernels = kernels;
    d->component = COMPONENT_OTHER;
    d->layer = -1;
    d->failure = failure_open();
    for (int i = 0; i < STREAM_COUNT; i++) d->stream[i] = (Stream){.device = d, .kind = (StreamKind)i};
    if (!d->failure) {
        free(d);
        return no_memory(e);
    }
    if (backend->open(d, e)) return d;
    device_close(d);
    return NULL;
}

void device_close(Device *d) {
    if (!d) return;
    d->backend->close(d);
    failure_close(d->failure);
    free(d);
}

/* ---- The meter -------------------------------------------------------------------------------- */

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
    count->bytes += (double)c.bytes;
    d->meter.flops[d->component] += c.flops;
    Label l = stream_label(s, WORK_OP, c.op);
    if (!d->sim) {
        s->charged = c.bytes > 0 ? l : (Label){0}; /* what touches no byte is not launched */
        return true;
    }
    double compute = c.flops / d->flops_per_s[c.rate], memory = (double)c.bytes / d->bytes_per_s;
    double seconds = compute > memory ? compute : memory;
    count->seconds += seconds;
    s->clock += seconds;
    if (c.bytes > 0) stream_spend(s, &l, s->clock - seconds, s->clock);
    return false;
}

/* ---- Work and order --------------------------------------------------------------------------- */

void stream_launch(Stream *s, LaunchFunction fn, const void *args, size_t bytes) {
    s->device->backend->launch(s, fn, args, bytes);
}

Event event_record(Stream *s) {
    return s->device->backend->record(s);
}

void event_wait(Event e) {
    if (e.stream) e.stream->device->backend->wait(e);
}

void stream_wait(Stream *s, Event e) {
    s->device->backend->follow(s, e);
}

void device_settle(Device *d) {
    for (int i = 0; i < STREAM_COUNT; i++) event_wait(event_record(&d->stream[i]));
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
    if (!device_failed(d)) d->backend->read(s, host, t.data, tensor_bytes(t));
    if (device_failed(d)) memset(host, 0, tensor_bytes(t));
    if (d->observe) d->observe(d->read_context, kind, host, t);
}

void device_write(Stream *s, Tensor t, const void *host) {
    Device *d = s->device;
    d->meter.copied_up += (int64_t)tensor_bytes(t);
    if (d->sim || tensor_bytes(t) == 0) return;
    d->backend->write(s, t.data, host, tensor_bytes(t));
}

void stream_copy(Stream *s, Tensor to, Tensor from) {
    Device *d = s->device;
    size_t bytes = tensor_bytes(to);
    MUST(s->kind == STREAM_UP || s->kind == STREAM_DOWN);
    MUST(tensor_same(to, from));
    *(s->kind == STREAM_UP ? &d->meter.copied_up : &d->meter.copied_down) += (int64_t)bytes;
    if (d->sim || bytes == 0) return;
    d->backend->copy(s, to.data, from.data, bytes);
}
