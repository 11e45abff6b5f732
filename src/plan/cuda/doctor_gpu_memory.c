/* The GPU's memory, and the way between host and GPU: each direction alone, both at once, pinned and pageable, and
 * what copies, products and the processors' own copies lose when all work at once, as they do in a step that streams
 * its optimizer. */
#include "device/pool.h"
#include "plan/cuda/doctor_gpu_parts.h"
#include "train/session.h"

#include <stdlib.h>
#include <string.h>

enum { PIECES = 4, SQUARE = 8192, SAMPLES = 5 };
static const int64_t ARRAY = (int64_t)1 << 28, PIECE = (int64_t)64 << 20; /* elements of fp32; bytes */

typedef struct {
    Gpu *gpu;
    Tensor a, b, c;            /* fp32 [ARRAY] */
    Tensor host[2], memory[2]; /* BYTE [PIECES * PIECE]: [0] goes up, [1] comes down */
    bool up, down;
    unsigned char *pageable[2];
    Product product;
    Tensor x, w, y;
    int copies, products;           /* of an overlap */
    double up_s, down_s, product_s; /* what it took */
} Work;

/* ---- HBM ------------------------------------------------------------------------------------------------ */

static void copy_once(void *context) {
    Work *w = context;
    GPU_ISSUE(w->gpu, "copying memory", gpu_copy(gpu_stream(w->gpu->compute), w->a.data, w->b.data, ARRAY));
}

static void triad_once(void *context) {
    Work *w = context;
    GPU_ISSUE(w->gpu, "the triad", gpu_triad(gpu_stream(w->gpu->compute), w->a.data, w->b.data, w->c.data, ARRAY));
}

static bool measure_hbm(Gpu *g) {
    Work w = {.gpu = g};
    Mark mark = arena_mark(&g->memory);
    if (!gpu_may(g, "copy and triad", 12.0 * (double)ARRAY + 4096)) return true;
    w.a = gpu_random(g, FP32, DIM(ARRAY));
    w.b = gpu_random(g, FP32, DIM(ARRAY));
    w.c = gpu_random(g, FP32, DIM(ARRAY));
    bool ok = gpu_rate(g, "gpu_copy_bytes_per_s", 8.0 * (double)ARRAY, copy_once, &w) &&
              gpu_rate(g, "gpu_triad_bytes_per_s", 12.0 * (double)ARRAY, triad_once, &w);
    arena_reset(&g->memory, mark);
    return ok;
}

/* ---- Between host and GPU ---------------------------------------------------------------------------------- */

static Tensor piece(Tensor t, int i) {
    return tensor_rows(t, i % PIECES * PIECE, PIECE);
}

/* Piece by piece, the directions in turn, both after the same moment of compute; compute then follows them. */
static void transfer(Work *w, int copies) {
    Gpu *g = w->gpu;
    Event start = event_record(g->compute);
    stream_wait(g->up, start);
    stream_wait(g->down, start);
    for (int i = 0; i < copies; i++) {
        if (w->up) stream_copy(g->up, piece(w->memory[0], i), piece(w->host[0], i));
        if (w->down) stream_copy(g->down, piece(w->host[1], i), piece(w->memory[1], i));
    }
    stream_wait(g->compute, event_record(g->up));
    stream_wait(g->compute, event_record(g->down));
}

static void transfer_once(void *context) {
    transfer(context, PIECES);
}

static void small_once(void *context) {
    Work *w = context;
    Gpu *g = w->gpu;
    stream_wait(g->up, event_record(g->compute));
    stream_copy(g->up, tensor_rows(w->memory[0], 0, 4096), tensor_rows(w->host[0], 0, 4096));
    stream_wait(g->compute, event_record(g->up));
}

/* Pageable memory keeps its thread busy: each direction has one. index 0: up. */
static void pageable_direction(void *context, int index) {
    Work *w = context;
    Gpu *g = w->gpu;
    if (index == 0 ? !w->up : !w->down) return;
    GPU_ISSUE(g, "copying pageable memory", cudaSetDevice(g->device->cuda->ordinal));
    for (int i = 0; i < PIECES; i++) {
        unsigned char *host = w->pageable[index] + i * PIECE;
        void *memory = piece(w->memory[index], i).data, *to = index == 0 ? memory : host;
        const void *from = index == 0 ? (const void *)host : memory;
        GPU_ISSUE(
            g, "copying pageable memory",
            cudaMemcpyAsync(to, from, (size_t)PIECE, cudaMemcpyDefault, gpu_stream(index == 0 ? g->up : g->down)));
    }
}

static void pageable_once(void *context) {
    Work *w = context;
    Gpu *g = w->gpu;
    Event start = event_record(g->compute);
    stream_wait(g->up, start);
    stream_wait(g->down, start);
    Error e = {0};
    if (!threads_run(2, pageable_direction, w, &e)) device_fail(g->device, &e);
    stream_wait(g->compute, event_record(g->up));
    stream_wait(g->compute, event_record(g->down));
}

static const struct {
    const char *key;
    bool up, down;
    GpuWork once;
} ways[] = {
    {"gpu_up_bytes_per_s", true, false, transfer_once},
    {"gpu_down_bytes_per_s", false, true, transfer_once},
    {"gpu_up_and_down_each_bytes_per_s", true, true, transfer_once},
    {"gpu_up_pageable_bytes_per_s", true, false, pageable_once},
    {"gpu_down_pageable_bytes_per_s", false, true, pageable_once},
    {"gpu_up_and_down_pageable_each_bytes_per_s", true, true, pageable_once},
};

static bool measure_ways(Work *w) {
    for (size_t i = 0; i < COUNT(ways); i++) {
        w->up = ways[i].up, w->down = ways[i].down;
        if (!gpu_rate(w->gpu, ways[i].key, (double)(PIECES * PIECE), ways[i].once, w)) return false;
    }
    return gpu_rate(w->gpu, "gpu_up_4KiB_s", 0, small_once, w);
}

/* ---- All at once ----------------------------------------------------------------------------------------- */

static void product_once(void *context) {
    Work *w = context;
    product_run(w->gpu, &w->product, w->y.data, w->x.data, w->w.data);
}

static double between(Gpu *g, int mark) {
    float ms = 0;
    GPU_ISSUE(g, "timing", cudaEventElapsedTime(&ms, g->mark[mark], g->mark[mark + 1]));
    return 1e-3 * (double)ms;
}

/* Copies both ways and products begin together; each stream is timed by itself. */
static bool overlap(Work *w) {
    Gpu *g = w->gpu;
    cudaStream_t stream[3] = {gpu_stream(g->compute), gpu_stream(g->up), gpu_stream(g->down)};
    Event start = event_record(g->compute);
    stream_wait(g->up, start);
    stream_wait(g->down, start);
    for (int i = 0; i < 3; i++) GPU_ISSUE(g, "timing", cudaEventRecord(g->mark[2 * i], stream[i]));
    for (int i = 0; i < w->copies; i++) {
        stream_copy(g->up, piece(w->memory[0], i), piece(w->host[0], i));
        stream_copy(g->down, piece(w->host[1], i), piece(w->memory[1], i));
    }
    for (int i = 0; i < w->products; i++) product_once(w);
    for (int i = 0; i < 3; i++) GPU_ISSUE(g, "timing", cudaEventRecord(g->mark[2 * i + 1], stream[i]));
    for (int i = 0; i < 3; i++) GPU_ISSUE(g, "timing", cudaEventSynchronize(g->mark[2 * i + 1]));
    if (gpu_failed(g)) return false;
    w->product_s = between(g, 0), w->up_s = between(g, 2), w->down_s = between(g, 4);
    return !gpu_failed(g);
}

/* First products outlast the copies, and copies are timed; then the other way round. */
static bool measure_overlap(Work *w, double copy_s, double product_s) {
    Gpu *g = w->gpu;
    double bytes, flops = 2.0 * SQUARE * SQUARE * SQUARE;
    w->copies = 4 * PIECES;
    w->products = 3 + (int)(2 * w->copies * copy_s / product_s);
    bytes = (double)w->copies * (double)PIECE;
    Samples up = samples_begin(), down = up, product = up;
    for (int i = 0; i < SAMPLES; i++) {
        if (!overlap(w)) return false;
        samples_add(&up, bytes / w->up_s);
        samples_add(&down, bytes / w->down_s);
    }
    w->products = 8;
    w->copies = 4 + (int)(2 * w->products * product_s / copy_s);
    for (int i = 0; i < SAMPLES; i++) {
        if (!overlap(w)) return false;
        samples_add(&product, (double)w->products * flops / w->product_s);
    }
    report_samples(g->report, "gpu_up_beside_down_and_products_bytes_per_s", &up, true);
    report_samples(g->report, "gpu_down_beside_up_and_products_bytes_per_s", &down, true);
    report_samples(g->report, "gpu_matrix_bf16_beside_copies_flop_per_s", &product, true);
    return true;
}

/* ---- The processors' copies meanwhile ----------------------------------------------------------------------- */

typedef struct {
    unsigned char *to;
    const unsigned char *from;
    size_t bytes;
    int parts;
} HostCopy;

static void host_part(void *context, int64_t index, int worker) {
    HostCopy *c = context;
    size_t each = c->bytes / (size_t)c->parts;
    (void)worker;
    memcpy(c->to + (size_t)index * each, c->from + (size_t)index * each, each);
}

/* memcpy on all threads while copies run both ways; a sample counts only if they still ran at its end. */
static bool measure_host(Work *w) {
    Gpu *g = w->gpu;
    int threads = g->host->threads;
    Pool *pool = pool_open(threads);
    HostCopy c = {w->pageable[0], w->pageable[1], (size_t)(PIECES * PIECE), threads};
    if (!pool) return true;
    pool_run(pool, threads, host_part, &c);
    w->up = w->down = true;
    for (int i = 0; i < 16; i++) transfer(w, 4 * PIECES); /* 16 GiB each way, some tenths of a second */
    GPU_ISSUE(g, "timing", cudaEventRecord(g->mark[0], gpu_stream(g->compute)));
    Samples s = samples_begin();
    while (s.n < MAX_SAMPLES && !gpu_failed(g)) {
        double start = seconds_now();
        pool_run(pool, threads, host_part, &c);
        double seconds = seconds_now() - start;
        cudaError_t still = cudaEventQuery(g->mark[0]);
        if (still == cudaErrorNotReady) samples_add(&s, 2 * (double)c.bytes / seconds);
        if (still == cudaSuccess) break;
        if (still != cudaErrorNotReady) gpu_issue(g, still, "waiting for copies", "cudaEventQuery");
    }
    pool_close(pool);
    GPU_ISSUE(g, "waiting for copies", cudaEventSynchronize(g->mark[0]));
    if (s.n > 0) report_samples(g->report, "host_memcpy_beside_gpu_copies_bytes_per_s", &s, true);
    if (s.n == 0)
        report_note(g->report, "the host's copies beside the GPU's were not measured: the GPU was ready first");
    return !gpu_failed(g);
}

/* ---- All of it ------------------------------------------------------------------------------------------ */

static void compare(Report *r, const char *what, const char *alone, const char *beside) {
    const Figure *a = report_find(r, alone), *b = report_find(r, beside);
    if (a && b)
        report_note(r, "with everything at once %s keeps %.0f %% of its rate", what, 100 * b->median / a->median);
}

static bool measure_link(Gpu *g, Work *w) {
    const Figure *both;
    double product_s;
    for (int i = 0; i < 2; i++) {
        w->memory[i] = arena_tensor(&g->memory, BYTE, DIM(PIECES * PIECE));
        w->host[i] = arena_tensor(&g->pinned, BYTE, DIM(PIECES * PIECE));
        memset(w->host[i].data, 0x3C, tensor_bytes(w->host[i]));
        memset(w->pageable[i], 0x3C, (size_t)(PIECES * PIECE));
        device_write(g->compute, w->memory[i], w->host[i].data);
    }
    if (!measure_ways(w) || !gpu_cublas(g->device, &(Error){0})) return !gpu_failed(g);
    if (!gpu_may(g, "copies beside products", 6.0 * SQUARE * SQUARE + 4096)) return true;
    w->x = gpu_random(g, BF16, DIM(SQUARE, SQUARE));
    w->w = gpu_random(g, BF16, DIM(SQUARE, SQUARE));
    w->y = gpu_random(g, BF16, DIM(SQUARE, SQUARE));
    if (!product_open(g, &w->product, PRODUCT_FORWARD, NUMBERS_BF16, SQUARE, SQUARE, SQUARE)) return false;
    both = report_find(g->report, "gpu_up_and_down_each_bytes_per_s");
    bool ok = gpu_rate(g, "gpu_matrix_bf16_alone_flop_per_s", 2.0 * SQUARE * SQUARE * SQUARE, product_once, w);
    ok = ok && gpu_time(g, product_once, w, &product_s) &&
         measure_overlap(w, (double)PIECE / both->median, product_s) && measure_host(w);
    product_close(g, &w->product);
    return ok;
}

bool doctor_gpu_memory(Gpu *g) {
    Work w = {.gpu = g};
    char all[KEY_BYTES];
    size_t bytes = (size_t)(PIECES * PIECE);
    Mark mark = arena_mark(&g->memory), pinned = arena_mark(&g->pinned);
    printf("\nmemory of the GPU (arrays of 1 GiB), and between host and GPU (pieces of %lld MiB; up: to the GPU)\n",
           (long long)(PIECE >> 20));
    if (!measure_hbm(g)) return false;
    if (g->pinned.capacity - g->pinned.used < 2 * bytes + 4096) {
        report_note(g->report, "copies between host and GPU were left out: the host has too little memory");
        return true;
    }
    if (!gpu_may(g, "copies between host and GPU", 2.0 * (double)bytes + 4096)) return true;
    for (int i = 0; i < 2; i++) w.pageable[i] = malloc(bytes);
    MUST(w.pageable[0] && w.pageable[1]);
    bool ok = measure_link(g, &w);
    for (int i = 0; i < STREAM_COUNT; i++) event_wait(event_record(&g->device->stream[i]));
    for (int i = 0; i < 2; i++) free(w.pageable[i]);
    arena_reset(&g->memory, mark);
    arena_reset(&g->pinned, pinned);
    snprintf(all, sizeof all, "memcpy_%d_thread%s_bytes_per_s", g->host->threads, g->host->threads > 1 ? "s" : "");
    compare(g->report, "copying up", "gpu_up_and_down_each_bytes_per_s", "gpu_up_beside_down_and_products_bytes_per_s");
    compare(g->report, "copying down", "gpu_up_and_down_each_bytes_per_s",
            "gpu_down_beside_up_and_products_bytes_per_s");
    compare(g->report, "a bf16 product", "gpu_matrix_bf16_alone_flop_per_s",
            "gpu_matrix_bf16_beside_copies_flop_per_s");
    compare(g->report, "the processors' memcpy", all, "host_memcpy_beside_gpu_copies_bytes_per_s");
    return ok;
}
