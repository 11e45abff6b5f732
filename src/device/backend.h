/* What a kind of device does behind the doors of device.h: a row of functions, chosen once when the device opens. The
 * doors keep what is the same everywhere: stacks, the meter, failure.
 *
 *   cpu    cpu.c    memory of the process; work runs in the caller's thread or in queues (stream.h)
 *   sim    sim.c    nothing runs: addresses without memory, clocks without work
 *   cuda   cuda/    a GPU; without the toolkit cuda/absent.c, which refuses in a sentence
 */
#ifndef MOP_BACKEND_H
#define MOP_BACKEND_H

#include "device/device.h"

typedef struct Backend {
    bool (*open)(Device *d, Error *e); /* may leave things for close when it fails */
    void (*close)(Device *d);          /* after all work has run */
    /* Memory for a->capacity bytes of a->tier: sets base, and mapping and mapped for release. */
    bool (*reserve)(Arena *a, Error *e);
    void (*release)(Arena *a);
    void (*poison)(Stream *s, void *at, size_t bytes); /* in the order of s: NaN in every real type */
    void (*launch)(Stream *s, LaunchFunction fn, const void *args, size_t bytes);
    void (*copy)(Stream *s, void *to, const void *from, size_t bytes); /* in the order of s; tiers of any kind */
    void (*read)(Stream *s, void *host, const void *from, size_t bytes);
    void (*write)(Stream *s, void *to, const void *host, size_t bytes); /* both: returns when it is done */
    Event (*record)(Stream *s);
    void (*wait)(Event e);              /* the host */
    void (*follow)(Stream *s, Event e); /* the stream */
} Backend;

extern const Backend backend_cpu, backend_sim, backend_cuda;

/* Address space of the process, touched only when it is used: the CPU's memory, and what sim has on the host. */
bool process_reserve(Arena *a, Error *e);
void process_release(Arena *a);

#endif
