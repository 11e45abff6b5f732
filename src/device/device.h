/* Memory, order and time on one machine.
 *
 * A Device has four Streams (in-order queues of work) and any number of Arenas (memory reserved once, handed out as a
 * stack). The contract is asynchronous everywhere: an op may still run when its front door returns. Work on one
 * stream runs in order; between streams only an Event orders. Memory that another stream may still touch is reused
 * only after an Event.
 *
 *   cpu        compute runs in the caller's thread and the rank's pool; network has a thread of its own
 *   cpu:plain  the same with the plain definitions of every op (slow)
 *   cpu:late   the same as cpu with a thread for every stream and random delays: a forgotten Event shows (tests)
 *   cuda:0     the first GPU: a CUDA stream for each, arenas of HBM and of pinned host memory; has one op so far, AdamW
 *   sim:NAME   the same step code, metered and not run: memory is addresses with nothing behind them; NAME: machines.h
 */
#ifndef MOP_DEVICE_H
#define MOP_DEVICE_H

#include "base/config.h"
#include "device/machines.h"
#include "device/tensor.h"

typedef struct Device Device;
typedef struct Stream Stream;
typedef struct Pool Pool;
struct Backend; /* device/backend.h: what the kind of device does behind these doors */
struct Kernels; /* ops/kernels.h: what runs for each op */

typedef enum { STREAM_COMPUTE, STREAM_NETWORK, STREAM_UP, STREAM_DOWN, STREAM_COUNT } StreamKind;
const char *stream_name(StreamKind k);
typedef enum { TIER_DEVICE, TIER_HOST, TIER_COUNT } Tier;

/* What a FLOP, a byte or a piece of memory is for. */
typedef enum {
    COMPONENT_ATTENTION,
    COMPONENT_DENSE,
    COMPONENT_ROUTER,
    COMPONENT_EXPERTS,
    COMPONENT_VOCABULARY,
    COMPONENT_OPTIMIZER,
    COMPONENT_OTHER,
    COMPONENT_COUNT
} Component;
const char *component_name(Component c);

/* ---- Arenas ----------------------------------------------------------------------------------- */

/* One reservation in one place. `used` never exceeds `capacity` (MUST): the capacity comes from the plan, made by
 * this very code on sim. There a device arena ends at 2^SIM_ARENA_BITS bytes, and what would need more fails
 * the device (EXIT_MEMORY). Not thread safe: a rank allocates from its own thread. */
enum { SIM_ARENA_BITS = 50 }; /* 1 PiB: more than a rank of any machine has */
typedef struct Arena {
    const char *name;
    Device *device;
    Tier tier;
    char *base;
    size_t capacity, used, peak;
    size_t by[COMPONENT_COUNT], by_at_peak[COMPONENT_COUNT];
    struct Arena *next; /* the device's list */
    void *mapping;      /* the backend's; NULL on sim */
    size_t mapped;
} Arena;

typedef struct {
    size_t used, by[COMPONENT_COUNT];
} Mark;

bool arena_open(Arena *a, Device *d, const char *name, Tier tier, size_t capacity, Error *e);
void arena_close(Arena *a);
Mark arena_mark(const Arena *a);
void arena_reset(Arena *a, Mark m); /* gives back everything above; debug builds hand out memory full of NaN */
Tensor arena_tensor(Arena *a, Type type, int dims,
                    const int64_t *dim);   /* arena_tensor(a, FP32, DIM(n, h)); 64-byte aligned */
void *arena_bytes(Arena *a, size_t bytes); /* host arenas: plain memory */

/* ---- Streams and events ----------------------------------------------------------------------- */

typedef struct {
    Stream *stream;
    uint64_t ticket;
    double clock; /* sim */
} Event;

Event event_record(Stream *s);        /* everything issued on s so far */
void stream_wait(Stream *s, Event e); /* what is issued on s from now on runs after e */
void event_wait(Event e);             /* the host waits */

/* Host code reads device data (rows per expert, clip factor and finite check, loss: nowhere else). Waits for s. On
 * sim the bytes come from the device's `answer`. On a failed device the bytes are zeros. */
typedef enum { READ_ROUTING, READ_NORMS, READ_LOSS } ReadKind;
void device_read(Stream *s, void *host, Tensor t, ReadKind kind);
/* Host bytes into a tensor (the batch) on stream s: `host` is copied before the call returns. Charged as a copy up. */
void device_write(Stream *s, Tensor t, const void *host);
/* Between a host arena and a device arena, in the order of s: STREAM_UP to the device, STREAM_DOWN to the host. Same
 * type and shape. A tensor fresh from an arena belongs to the compute stream: s follows an event of it first. */
void stream_copy(Stream *s, Tensor to, Tensor from);

/* ---- Launching: for front doors only ---------------------------------------------------------- */

/* What an op costs: floating-point operations, and bytes read and written in memory. FLOPs are counted in double,
 * exact to 2^53 and never too many: an op on sizes that fit may have more than 2^63. */
typedef struct {
    int op;
    double flops;
    int64_t bytes;
    RateKind rate; /* that sim counts the FLOPs at */
} Cost;

/* The meter: counts c on the stream's device; true when the op should also run (false on sim: its clock moves
 * instead). */
bool charge(Stream *s, Cost c);
/* Runs or queues fn(s, args), `args` copied by value (at most LAUNCH_BYTES). */
enum { LAUNCH_BYTES = 768 };
typedef void (*LaunchFunction)(Stream *s, const void *args);
void stream_launch(Stream *s, LaunchFunction fn, const void *args, size_t bytes);

/* ---- Where the time goes ---------------------------------------------------------------------- */

typedef enum { WORK_COPY, WORK_OP, WORK_COLLECTIVE, WORK_WAIT } WorkKind;

/* What a piece of work is, and what for: written down when it is issued, since it may run later and on another
 * thread. */
typedef struct {
    WorkKind kind;
    int what;            /* the op; the collective; of a wait, the StreamKind that is waited for */
    int group;           /* collectives: the axis */
    Component component; /* Device.component and layer */
    int64_t layer;
    int64_t sent, received; /* collectives: bytes, to and from others */
} Label;

/* Seconds of seconds_now(); on sim of the stream's clock. */
typedef struct {
    Label label;
    double start, end;
} Timed;

/* What one stream did, in the order in which it ran: never two at a time. What finds no room is counted. */
typedef struct {
    Timed *work; /* [room] */
    int64_t room, count, lost;
} Timeline;

/* Seconds since the device was opened, by the component that the work or the wait was issued for. A collective lasts
 * from its turn on the stream until its last byte, its wait for other ranks included. What need not be waited for
 * costs nothing here. */
typedef struct {
    double work[COMPONENT_COUNT];
    double wait[STREAM_COUNT][COMPONENT_COUNT]; /* for this other stream */
} StreamTime;

/* For front doors and for what runs their work. */
Label stream_label(const Stream *s, WorkKind kind, int what);
void stream_spend(Stream *s, const Label *l, double start, double end);
/* The host waits until nothing is issued that has not run: times and timelines of all streams may be read. */
void device_settle(Device *d);

/* ---- Failure ---------------------------------------------------------------------------------- */

/* A collective or a peer failed: later work on every stream of the device is skipped, waits return, reads give zeros.
 * The first error is kept. device_failed returns it, or NULL. */
void device_fail(Device *d, const Error *e);
const Error *device_failed(Device *d);

/* ---- The device ------------------------------------------------------------------------------- */

enum { MAX_OPS = 40, MAX_GROUPS = 16, MAX_COLLECTIVES = 8 };

typedef struct {
    int64_t calls;
    double flops, bytes;
    double seconds; /* measured when the device profiles; on sim predicted */
} OpCount;

typedef struct {
    int64_t calls, sent, received; /* bytes of this rank, to and from others */
    double seconds;
} TrafficCount;

/* Everything that happened on a device since meter_clear. Identical on cpu and sim for the same run. */
typedef struct {
    OpCount op[MAX_OPS];
    double flops[COMPONENT_COUNT];
    TrafficCount traffic[MAX_GROUPS][MAX_COLLECTIVES];
    int64_t copied_up, copied_down;
} Meter;

struct Stream {
    Device *device;
    StreamKind kind;
    struct StreamQueue *queue; /* NULL: runs in the caller's thread */
    double clock;              /* sim: seconds */
    Label charged;             /* what was charged last: of the launch that follows; a copy when nothing was */
    StreamTime time;           /* written by whoever runs the stream's work; read it after device_settle */
    Timeline *timeline;        /* NULL: nobody keeps them. Set after device_settle */
};

struct Device {
    const char *name;
    const struct Backend *backend;
    bool sim, profile;
    const struct Kernels *kernels; /* NULL on sim */
    int threads;
    Machine machine;                             /* sim */
    double flops_per_s[RATE_COUNT], bytes_per_s; /* sim: of this rank, at the compute type of the run (device_rate) */
    Pool *pool;
    Stream stream[STREAM_COUNT];
    Arena *arenas;
    Meter meter;
    Component component;
    int64_t step, layer; /* where the rank is: of what is issued from now on; layer -1: none */
    /* What the host is told when it reads device data: on sim `answer` says it, elsewhere `observe` (may be NULL)
     * sees it. */
    void (*answer)(void *context, ReadKind kind, void *host, Tensor t);
    void (*observe)(void *context, ReadKind kind, const void *host, Tensor t);
    void *read_context;
    struct DeviceFailure *failure;
    struct CudaDevice *cuda; /* device/cuda/cuda.h; NULL elsewhere */
};

/* `kernels` comes from ops/kernels.h (kernels_for). */
Device *device_open(const char *name, int threads, const struct Kernels *kernels, Error *e);
void device_close(Device *d);
bool device_counts(const char *name); /* sim:NAME: it counts and runs nothing */
Component device_component(Device *d,
                           Component c); /* sets what the next charges and allocations are for; returns the old */
void meter_clear(Device *d);
void device_rate(Device *d, Type t); /* sim: the compute type that FLOPs are charged at */

#endif
