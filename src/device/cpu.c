/* The CPU as a device: its memory is the process's, its compute the caller's thread and a pool, its network a queue. */
#include "device/backend.h"
#include "device/pool.h"
#include "device/stream.h"

#include <string.h>
#include <sys/mman.h>

/* ---- Opening ---------------------------------------------------------------------------------- */

static bool cpu_open(Device *d, Error *e) {
    bool late = strcmp(d->name, "cpu:late") == 0;
    for (int i = 0; i < STREAM_COUNT; i++) {
        if (!late && i != STREAM_NETWORK) continue;
        d->stream[i].queue = queue_open(&d->stream[i], late, e);
        if (!d->stream[i].queue) return false;
    }
    d->pool = pool_open(d->threads);
    return d->pool || fail(e, EXIT_MEMORY,
                           "cannot start %d threads or their scratch memory; device %s; use a smaller "
                           "compute.threads or fewer ranks, or raise the limits of processes and of address space "
                           "(ulimit -u, ulimit -v)",
                           d->threads, d->name);
}

static void cpu_close(Device *d) {
    for (int i = 0; i < STREAM_COUNT; i++) queue_close(d->stream[i].queue);
    if (d->pool) pool_close(d->pool);
}

/* ---- Memory ----------------------------------------------------------------------------------- */

enum { ALIGNMENT = 64, STAGGER = 5 * 1024, HUGE_PAGE = 2 << 20 };

/* Parallel streams at equal offsets modulo 2 MiB collide in the caches: arena i starts i * 5 KiB into its
 * reservation. */
static size_t stagger(const Device *d) {
    size_t arenas = 0;
    for (const Arena *a = d->arenas; a; a = a->next) arenas++;
    return arenas * STAGGER % HUGE_PAGE;
}

bool process_reserve(Arena *a, Error *e) {
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

void process_release(Arena *a) {
    if (a->mapping) munmap(a->mapping, a->mapped);
}

typedef struct {
    uint32_t *words;
    size_t count;
} Poison;

/* A signalling NaN in fp32, NaN in bf16, absurd (1e306) in fp64, out of range as an index. */
static void poison_words(Stream *s, const void *args) {
    const Poison *p = args;
    (void)s;
    for (size_t i = 0; i < p->count; i++) p->words[i] = 0x7FA07FA0;
}

static void cpu_poison(Stream *s, void *at, size_t bytes) {
    queue_launch(s, poison_words, &(Poison){at, bytes / sizeof(uint32_t)}, sizeof(Poison));
}

/* ---- Copies ----------------------------------------------------------------------------------- */

typedef struct {
    void *to;
    const void *from;
    size_t bytes;
} CopyArgs;

static void copy_bytes(Stream *s, const void *args) {
    const CopyArgs *a = args;
    (void)s;
    memcpy(a->to, a->from, a->bytes);
}

static void cpu_copy(Stream *s, void *to, const void *from, size_t bytes) {
    queue_launch(s, copy_bytes, &(CopyArgs){to, from, bytes}, sizeof(CopyArgs));
}

static void cpu_read(Stream *s, void *host, const void *from, size_t bytes) {
    (void)s; /* the door has waited for it */
    memcpy(host, from, bytes);
}

static void cpu_write(Stream *s, void *to, const void *host, size_t bytes) {
    cpu_copy(s, to, host, bytes);
    queue_wait(queue_record(s));
}

const Backend backend_cpu = {
    .open = cpu_open,
    .close = cpu_close,
    .reserve = process_reserve,
    .release = process_release,
    .poison = cpu_poison,
    .launch = queue_launch,
    .copy = cpu_copy,
    .read = cpu_read,
    .write = cpu_write,
    .record = queue_record,
    .wait = queue_wait,
    .follow = queue_follow,
};
