/* The device that only counts. Its memory is addresses that no process has: code that reads device data faults at that
 * line, and a thousand ranks of a terabyte each are planned without asking the kernel for anything. Its streams have no
 * queue, so that their events are clocks alone; doors ask the meter first and never come to the functions that this
 * row lacks. */
#include "device/backend.h"
#include "device/stream.h"

static bool sim_open(Device *d, Error *e) {
    enum { PREFIX = 4 }; /* sim: */
    d->sim = true;
    return machine_open(d->name + PREFIX, &d->machine, e);
}

static void sim_close(Device *d) {
    (void)d;
}

/* Addresses from 2^54 on are beyond what x86-64 and arm64 give to a process. A device's arenas lie as far apart as two
 * of them are long: what is asked for beyond the end of one has an address that nothing else has. */
static char *nobodys_address(const Device *d) {
    size_t arenas = 0;
    for (const Arena *a = d->arenas; a; a = a->next) arenas++;
    return (char *)((uintptr_t)1 << 54) + (arenas << (SIM_ARENA_BITS + 1));
}

static bool sim_reserve(Arena *a, Error *e) {
    if (a->tier == TIER_HOST) return process_reserve(a, e);
    a->base = nobodys_address(a->device);
    return true;
}

const Backend backend_sim = {
    .open = sim_open,
    .close = sim_close,
    .reserve = sim_reserve,
    .release = process_release,
    .record = queue_record,
    .wait = queue_wait,
    .follow = queue_follow,
};
