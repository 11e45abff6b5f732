/* Arenas: one reservation each, handed out as a stack. Memory is reserved, not touched: pages that the worst case
 * never reaches cost nothing. On sim device memory is addresses that no process has: code that reads device data
 * faults at that line, and a thousand ranks of a terabyte each are planned without asking the kernel for anything. */
#include "device/device.h"

#include <string.h>
#include <sys/mman.h>

enum { ALIGNMENT = 64, STAGGER = 5 * 1024, HUGE_PAGE = 2 << 20 };

static size_t arenas_of(const Device *d) {
    size_t arenas = 0;
    for (const Arena *a = d->arenas; a; a = a->next) arenas++;
    return arenas;
}

/* Parallel streams at equal offsets modulo 2 MiB collide in the caches: arena i starts i * 5 KiB into its
 * reservation. */
static size_t stagger(const Device *d) {
    return arenas_of(d) * STAGGER % HUGE_PAGE;
}

/* Addresses from 2^54 on are beyond what x86-64 and arm64 give to a process. A device's arenas lie 2^50 bytes
 * apart. */
static char *nobodys_address(const Device *d) {
    return (char *)((uintptr_t)1 << 54) + (arenas_of(d) << 50);
}

static bool reserve(Arena *a, Error *e) {
    size_t shift = stagger(a->device), bytes = a->capacity + shift + ALIGNMENT;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return fail(e, EXIT_MEMORY,
                    "cannot reserve %.1f MiB for the %s arena; device %s; use fewer ranks or a smaller batch, "
                    "or raise the address space limit (ulimit -v)",
                    (double)a->capacity / (1 << 20), a->name, a->device->name);
    if (a->capacity >= HUGE_PAGE) madvise(p, a->capacity + shift, MADV_HUGEPAGE); /* a wish: failing changes nothing */
    a->mapping = p;
    a->mapped = bytes;
    a->base = (char *)p + shift;
    return true;
}

bool arena_open(Arena *a, Device *d, const char *name, Tier tier, size_t capacity, Error *e) {
    *a = (Arena){.name = name, .device = d, .tier = tier, .capacity = capacity, .base = nobodys_address(d)};
    bool real = !d->sim || tier == TIER_HOST;
    if (real && !reserve(a, e)) {
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
    if (a->mapping) munmap(a->mapping, a->mapped);
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

static void *take(Arena *a, size_t bytes) {
    size_t rounded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    MUST(rounded >= bytes && rounded <= a->capacity - a->used); /* the plan is a contract */
    void *p = a->base + a->used;
    a->used += rounded;
    a->by[a->device->component] += rounded;
    if (a->used > a->peak) {
        a->peak = a->used;
        memcpy(a->by_at_peak, a->by, sizeof a->by);
    }
    return p;
}

#ifdef MOP_POISON
typedef struct {
    uint32_t *words;
    size_t count;
} Poison;

/* A signalling NaN in fp32, NaN in bf16, absurd (1e306) in fp64, out of range as an index. */
static void poison(Stream *s, const void *args) {
    const Poison *p = args;
    (void)s;
    for (size_t i = 0; i < p->count; i++) p->words[i] = 0x7FA07FA0;
}
#endif

Tensor arena_tensor(Arena *a, Type type, int dims, const int64_t *dim) {
    Tensor t = tensor_at(NULL, type, dims, dim);
    t.data = take(a, tensor_bytes(t));
#ifdef MOP_POISON
    /* In the order of compute, whose memory this is: earlier users of these bytes may still be queued. */
    if (!a->device->sim && a->tier == TIER_DEVICE) {
        Poison p = {t.data, tensor_bytes(t) / sizeof(uint32_t)};
        stream_launch(&a->device->stream[STREAM_COMPUTE], poison, &p, sizeof p);
    }
#endif
    return t;
}

void *arena_bytes(Arena *a, size_t bytes) {
    MUST(a->tier == TIER_HOST);
    return take(a, bytes);
}
