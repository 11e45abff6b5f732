/* Arenas: one reservation each, handed out as a stack. Memory is reserved, not touched: pages that the worst case
 * never reaches cost nothing on the CPU. */
#include "device/backend.h"

#include <string.h>

enum { ALIGNMENT = 64 };

bool arena_open(Arena *a, Device *d, const char *name, Tier tier, size_t capacity, Error *e) {
    *a = (Arena){.name = name, .device = d, .tier = tier, .capacity = capacity};
    if (!d->backend->reserve(a, e)) {
        *a = (Arena){0};
        return false;
    }
    a->next = d->arenas;
    d->arenas = a;
    return true;
}

/* What is still queued may touch this memory. */
void arena_close(Arena *a) {
    if (!a->device) return;
    device_settle(a->device);
    for (Arena **link = &a->device->arenas; *link; link = &(*link)->next) {
        if (*link != a) continue;
        *link = a->next;
        break;
    }
    a->device->backend->release(a);
    *a = (Arena){0};
}

Mark arena_mark(const Arena *a) {
    Mark m = {.used = a->used};
    memcpy(m.by, a->by, sizeof m.by);
    return m;
}

void arena_reset(Arena *a, Mark m) {
    MUST(m.used <= a->used);
    a->used = m.used;
    memcpy(a->by, m.by, sizeof a->by);
}

/* On sim the sizes of a user's configuration may ask for more than any machine has. What lies beyond the arena's end
 * gets an address of its own there and is no longer counted: the rank goes on as its peers do, to where failures are
 * asked for. */
static bool beyond_end(Arena *a, size_t bytes) {
    if (!a->device->sim || a->tier != TIER_DEVICE || (a->used <= a->capacity && bytes <= a->capacity - a->used))
        return false;
    Error e = {0};
    fail(&e, EXIT_MEMORY,
         "a rank needs more than %d TiB in its %s arena; use more ranks, a smaller train.sequence_length or "
         "train.sequences, or more train.micro_batches",
         1 << (SIM_ARENA_BITS - 40), a->name);
    device_fail(a->device, &e);
    return true;
}

static void *take(Arena *a, size_t bytes) {
    size_t rounded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    bool beyond = beyond_end(a, rounded);
    MUST(rounded >= bytes && (beyond || rounded <= a->capacity - a->used)); /* the plan is a contract */
    if (beyond) rounded = ALIGNMENT;
    void *p = a->base + a->used;
    a->used += rounded;
    a->by[a->device->component] += rounded;
    if (a->used > a->peak) {
        a->peak = a->used;
        memcpy(a->by_at_peak, a->by, sizeof a->by);
    }
    return p;
}

Tensor arena_tensor(Arena *a, Type type, int dims, const int64_t *dim) {
    Tensor t = tensor_at(NULL, type, dims, dim);
    t.data = take(a, tensor_bytes(t));
#ifdef MOP_POISON
    /* In the order of compute, whose memory this is: earlier users of these bytes may still be queued. */
    Device *d = a->device;
    if (!d->sim && a->tier == TIER_DEVICE) d->backend->poison(&d->stream[STREAM_COMPUTE], t.data, tensor_bytes(t));
#endif
    return t;
}

void *arena_bytes(Arena *a, size_t bytes) {
    MUST(a->tier == TIER_HOST);
    return take(a, bytes);
}
