/* AdamW on the GPU, bf16 weights with the low halves of their masters beside them: all in the GPU's memory, and with
 * the optimizer's state in pinned host memory, streamed through a few slots. Up, update and down of different pieces
 * run at once:
 *
 *     up       0 1 2 3 4 ..        a slot is filled again when its former piece has come down
 *     compute    0 1 2 3 4 ..
 *     down         0 1 2 3 4 ..
 *
 * What bounds it: ten bytes a parameter each way over PCIe, twenty of host memory. */
#include "ops/kernels.h"
#include "plan/cuda/doctor_gpu_parts.h"

#include <string.h>

enum { SLOTS = 3, PIECES = 12, PIECE = 8 << 20, RESIDENT = 128 << 20 }; /* parameters */
enum { LINK_BYTES = 10, DRAM_BYTES = 20 };                              /* a parameter: each way; both ways together */

static const AdamW settings = {.learning_rate = 1e-6,
                               .beta1 = 0.9,
                               .beta2 = 0.95,
                               .epsilon = 1e-8,
                               .weight_decay = 0.1,
                               .correction1 = 0.1,
                               .correction2 = 0.05,
                               .clip = 1};

/* What an update keeps beside weight and gradient. */
typedef struct {
    Tensor low, m, v;
} State;

typedef struct {
    Gpu *gpu;
    Tensor weight, gradient; /* [PIECES, PIECE], or [RESIDENT] */
    State resident, slot[SLOTS], host[PIECES];
} Work;

static State state_of(Arena *a, int64_t parameters) {
    return (State){arena_tensor(a, BYTE, DIM(2 * parameters)), arena_tensor(a, FP32, DIM(parameters)),
                   arena_tensor(a, FP32, DIM(parameters))};
}

static void zero_host(State s) {
    memset(s.low.data, 0, tensor_bytes(s.low));
    memset(s.m.data, 0, tensor_bytes(s.m));
    memset(s.v.data, 0, tensor_bytes(s.v));
}

static void zero_device(Gpu *g, State s) {
    const Tensor parts[] = {s.low, s.m, s.v};
    for (size_t i = 0; i < COUNT(parts); i++)
        GPU_ISSUE(g, "clearing", cudaMemsetAsync(parts[i].data, 0, tensor_bytes(parts[i]), gpu_stream(g->compute)));
}

/* ---- In the GPU's memory ---------------------------------------------------------------------------------- */

static void resident_once(void *context) {
    Work *w = context;
    const State *s = &w->resident;
    adamw(w->gpu->compute, w->weight, s->low, s->m, s->v, w->gradient, settings);
}

/* weight and low 2 + 2 bytes, m and v 4 + 4, read and written; the gradient's 4 are read. */
static bool measure_resident(Gpu *g) {
    Work w = {.gpu = g};
    Mark mark = arena_mark(&g->memory);
    if (!gpu_may(g, "AdamW in the GPU's memory", 16.0 * RESIDENT + 4096)) return true;
    w.weight = gpu_random(g, BF16, DIM(RESIDENT));
    w.gradient = gpu_random(g, FP32, DIM(RESIDENT));
    w.resident = state_of(&g->memory, RESIDENT);
    zero_device(g, w.resident);
    bool ok = gpu_rate(g, "gpu_adamw_bytes_per_s", 28.0 * RESIDENT, resident_once, &w) &&
              gpu_rate(g, "gpu_adamw_parameters_per_s", RESIDENT, resident_once, &w);
    if (ok) gpu_check_finite(g, "AdamW in the GPU's memory", w.weight);
    arena_reset(&g->memory, mark);
    return ok;
}

/* ---- Streamed ---------------------------------------------------------------------------------------------- */

static void copy_state(Stream *s, const State *to, const State *from) {
    stream_copy(s, to->low, from->low);
    stream_copy(s, to->m, from->m);
    stream_copy(s, to->v, from->v);
}

static void streamed_once(void *context) {
    Work *w = context;
    Gpu *g = w->gpu;
    Event begun = event_record(g->compute), free_again[SLOTS];
    for (int i = 0; i < SLOTS; i++) free_again[i] = begun;
    for (int i = 0; i < PIECES; i++) {
        State *slot = &w->slot[i % SLOTS];
        Tensor weight = tensor_view(tensor_rows(w->weight, i, 1), DIM(PIECE)),
               gradient = tensor_view(tensor_rows(w->gradient, i, 1), DIM(PIECE));
        stream_wait(g->up, free_again[i % SLOTS]);
        copy_state(g->up, slot, &w->host[i]);
        stream_wait(g->compute, event_record(g->up));
        adamw(g->compute, weight, slot->low, slot->m, slot->v, gradient, settings);
        stream_wait(g->down, event_record(g->compute));
        copy_state(g->down, &w->host[i], slot);
        free_again[i % SLOTS] = event_record(g->down);
    }
    stream_wait(g->compute, event_record(g->down));
}

static void compare_with_bounds(Gpu *g) {
    const Figure *rate = report_find(g->report, "gpu_adamw_streamed_parameters_per_s"),
                 *link = report_find(g->report, "gpu_up_and_down_each_bytes_per_s");
    char key[KEY_BYTES];
    snprintf(key, sizeof key, "memcpy_%d_thread%s_bytes_per_s", g->host->threads, g->host->threads > 1 ? "s" : "");
    const Figure *dram = report_find(g->report, key);
    if (!rate || !link || !dram) return;
    double by_link = link->median / LINK_BYTES, by_dram = dram->median / DRAM_BYTES;
    report_note(g->report,
                "check: streamed AdamW reaches %.2f G parameters/s, %.0f %% of what %s allows (PCIe %.2f, host memory "
                "by memcpy "
                "%.2f)",
                rate->median / 1e9, 100 * rate->median / (by_link < by_dram ? by_link : by_dram),
                by_link < by_dram ? "PCIe" : "host memory", by_link / 1e9, by_dram / 1e9);
}

static bool measure_streamed(Gpu *g) {
    Work w = {.gpu = g};
    Mark mark = arena_mark(&g->memory), pinned = arena_mark(&g->pinned);
    const double state = (double)LINK_BYTES * PIECE + 4096;
    if (!gpu_may(g, "streamed AdamW", 6.0 * PIECES * PIECE + SLOTS * state)) return true;
    if ((double)(g->pinned.capacity - g->pinned.used) < PIECES * state) {
        report_note(g->report, "streamed AdamW was left out: the host has too little memory");
        return true;
    }
    w.weight = gpu_random(g, BF16, DIM(PIECES, PIECE));
    w.gradient = gpu_random(g, FP32, DIM(PIECES, PIECE));
    for (int i = 0; i < SLOTS; i++) w.slot[i] = state_of(&g->memory, PIECE);
    for (int i = 0; i < PIECES; i++) {
        w.host[i] = state_of(&g->pinned, PIECE);
        zero_host(w.host[i]);
    }
    bool ok = gpu_rate(g, "gpu_adamw_streamed_parameters_per_s", (double)PIECES * PIECE, streamed_once, &w);
    if (ok) gpu_check_finite(g, "streamed AdamW", w.weight);
    if (ok) compare_with_bounds(g);
    for (int i = 0; i < STREAM_COUNT; i++) event_wait(event_record(&g->device->stream[i]));
    arena_reset(&g->memory, mark);
    arena_reset(&g->pinned, pinned);
    return ok && !gpu_failed(g);
}

bool doctor_gpu_update(Gpu *g) {
    printf(
        "\nAdamW on the GPU (bf16 weights, 16+16 split; %d M parameters in its memory, %d M streamed from the host)\n",
        RESIDENT >> 20, PIECES * PIECE >> 20);
    return measure_resident(g) && measure_streamed(g);
}
