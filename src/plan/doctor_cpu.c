/* What the processor can do at most: multiply-adds between registers, bf16 dot products where it has them, and
 * large arrays from memory and back. The loops are our own and do nothing else; memcpy stands beside our copy as a
 * measurement by somebody else.
 *
 * One loop per instruction set, compiled here whatever this file is compiled for; the one of the kernels that mop
 * runs is chosen. */
#include "ops/kernels.h"
#include "plan/doctor_parts.h"

#include <string.h>

/* ---- Between registers ---------------------------------------------------------------------------- */

/* Twelve independent chains hide the latency of a multiply-add. */
enum { CHAINS = 12, ROUNDS = 1 << 21 };
#define FMA_LOOP(name, attributes, Real, bytes)                                                                        \
    attributes static double name(void) {                                                                              \
        typedef Real Vector __attribute__((vector_size(bytes)));                                                       \
        Vector s0 = {0}, s1 = {1}, s2 = {2}, s3 = {3}, s4 = {4}, s5 = {5}, s6 = {6}, s7 = {7}, s8 = {8}, s9 = {9};     \
        Vector s10 = {10}, s11 = {11}, a = (Vector){0} + (Real)0.999, b = (Vector){0} + (Real)0.001;                   \
        for (int r = 0; r < ROUNDS; r++) {                                                                             \
            s0 = s0 * a + b, s1 = s1 * a + b, s2 = s2 * a + b, s3 = s3 * a + b, s4 = s4 * a + b, s5 = s5 * a + b;      \
            s6 = s6 * a + b, s7 = s7 * a + b, s8 = s8 * a + b, s9 = s9 * a + b, s10 = s10 * a + b, s11 = s11 * a + b;  \
        }                                                                                                              \
        s0 += s1 + s2 + s3 + s4 + s5 + s6 + s7 + s8 + s9 + s10 + s11;                                                  \
        return (double)s0[0];                                                                                          \
    }

FMA_LOOP(fma_portable_fp32, , float, 16)
FMA_LOOP(fma_portable_fp64, , double, 16)

#if defined(__x86_64__)
#include <immintrin.h>
#define AVX512 __attribute__((target("avx512f,fma")))
#define AVX2 __attribute__((target("avx2,fma")))
FMA_LOOP(fma_avx512_fp32, AVX512, float, 64)
FMA_LOOP(fma_avx512_fp64, AVX512, double, 64)
FMA_LOOP(fma_avx2_fp32, AVX2, float, 32)
FMA_LOOP(fma_avx2_fp64, AVX2, double, 32)

/* vdpbf16ps: 16 sums of two products each. */
__attribute__((target("avx512f,avx512bf16"))) static double dot_avx512_bf16(void) {
    __m512 s[CHAINS];
    __m512bh a = (__m512bh)_mm512_set1_epi32(0x3c003c00), b = (__m512bh)_mm512_set1_epi32(0x3f803f80);
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; i++) s[i] = _mm512_set1_ps((float)i);
    for (int r = 0; r < ROUNDS; r++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) s[i] = _mm512_dpbf16_ps(s[i], a, b);
        __asm__ volatile("" ::: "memory");
    }
    double sum = 0;
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; i++) sum += (double)_mm512_cvtss_f32(s[i]);
    return sum;
}
static bool has_dot(void) {
    return __builtin_cpu_supports("avx512bf16");
}
#else
static double dot_avx512_bf16(void) {
    return 0;
}
static bool has_dot(void) {
    return false;
}
#endif

typedef double (*Loop)(void);

static const struct {
    const char *kernels, *what;
    Loop loop;
    int flops; /* of one instruction */
} loops[] = {
#if defined(__x86_64__)
    {"avx512", "fma_fp32", fma_avx512_fp32, 32},    {"avx512", "fma_fp64", fma_avx512_fp64, 16},
    {"avx512", "dot_bf16", dot_avx512_bf16, 64},    {"avx2", "fma_fp32", fma_avx2_fp32, 16},
    {"avx2", "fma_fp64", fma_avx2_fp64, 8},
#endif
    {"portable", "fma_fp32", fma_portable_fp32, 8}, {"portable", "fma_fp64", fma_portable_fp64, 4},
};

typedef struct {
    Device *device;
    Loop loop;
    float *a, *b, *c;
    int64_t n;
    Tensor t[4];
    volatile double sink;
} Work;

static void loop_task(void *context, int64_t index, int worker) {
    Work *w = context;
    (void)index, (void)worker;
    w->sink = w->loop();
}

static void loop_once(void *context) {
    Work *w = context;
    pool_run(w->device->pool, pool_threads(w->device->pool), loop_task, w);
}

static void measure_registers(Report *r, Work *w, const char *threads) {
    const char *kernels = w->device->kernels->name;
    for (size_t i = 0; i < COUNT(loops); i++) {
        bool runs = strncmp(loops[i].kernels, kernels, strlen(loops[i].kernels)) == 0; /* or more */
        if (!runs || (loops[i].loop == dot_avx512_bf16 && !has_dot())) continue;
        char key[KEY_BYTES];
        snprintf(key, sizeof key, "%s_%s_flop_per_s", loops[i].what, threads);
        w->loop = loops[i].loop;
        report_rate(r, key, (double)loops[i].flops * CHAINS * ROUNDS * pool_threads(w->device->pool), loop_once, w);
    }
}

/* ---- Memory ------------------------------------------------------------------------------------------ */

/* Vectors one by one, with a fence for the compiler in between, which would make it a call of memcpy. */
typedef float Four __attribute__((vector_size(16)));

typedef void (*Sweep)(Work *w, int64_t first, int64_t end);

static void sweep_fill(Work *w, int64_t first, int64_t end) {
    for (int64_t i = first; i < end; i++) w->a[i] = 1e-3f * (float)(i % 1000 + 1), w->b[i] = 1e-6f, w->c[i] = 0.5f;
}

static void sweep_copy(Work *w, int64_t first, int64_t end) {
    for (int64_t i = first; i < end; i += 16) {
        for (int j = 0; j < 16; j += 4) *(Four *)(w->a + i + j) = *(const Four *)(w->b + i + j);
        __asm__ volatile("" ::: "memory");
    }
}

static void sweep_memcpy(Work *w, int64_t first, int64_t end) {
    memcpy(w->a + first, w->b + first, (size_t)(end - first) * sizeof *w->a);
}

static void sweep_triad(Work *w, int64_t first, int64_t end) {
    for (int64_t i = first; i < end; i += 4)
        *(Four *)(w->a + i) = *(const Four *)(w->b + i) + 0.5f * *(const Four *)(w->c + i);
}

typedef struct {
    Work *work;
    Sweep sweep;
} Swept;

static void sweep_task(void *context, int64_t index, int worker) {
    Swept *s = context;
    int64_t parts = pool_threads(s->work->device->pool), each = s->work->n / 16 / parts * 16;
    (void)worker;
    s->sweep(s->work, index * each, index + 1 == parts ? s->work->n : (index + 1) * each);
}

static void sweep_once(void *context) {
    Swept *s = context;
    pool_run(s->work->device->pool, pool_threads(s->work->device->pool), sweep_task, s);
}

/* fp32: weight, moments and gradient are read, all but the gradient written. */
static void adamw_once(void *context) {
    Work *w = context;
    AdamW h = {.learning_rate = 1e-6,
               .beta1 = 0.9,
               .beta2 = 0.95,
               .epsilon = 1e-8,
               .weight_decay = 0.1,
               .correction1 = 0.1,
               .correction2 = 0.05,
               .clip = 1};
    adamw(&w->device->stream[STREAM_COMPUTE], w->t[0], NONE, w->t[1], w->t[2], w->t[3], h);
    event_wait(event_record(&w->device->stream[STREAM_COMPUTE]));
}

static void measure_memory(Report *r, Work *w, const char *threads) {
    static const struct {
        const char *what;
        Sweep sweep;
        int arrays; /* read or written */
    } sweeps[] = {{"copy", sweep_copy, 2}, {"memcpy", sweep_memcpy, 2}, {"triad", sweep_triad, 3}};
    char key[KEY_BYTES];
    Swept s = {w, sweep_fill};
    sweep_once(&s);
    for (size_t i = 0; i < COUNT(sweeps); i++) {
        snprintf(key, sizeof key, "%s_%s_bytes_per_s", sweeps[i].what, threads);
        s.sweep = sweeps[i].sweep;
        report_rate(r, key, (double)sweeps[i].arrays * sizeof(float) * (double)w->n, sweep_once, &s);
    }
    s.sweep = sweep_fill;
    sweep_once(&s);
    for (int64_t i = 0; i < tensor_count(w->t[3]); i++) ((float *)w->t[3].data)[i] = 1e-3f * (float)(i % 100 + 1);
    snprintf(key, sizeof key, "adamw_%s_bytes_per_s", threads);
    report_rate(r, key, 7.0 * sizeof(float) * (double)w->n, adamw_once, w);
}

/* Four arrays, none in step with another in the caches: each begins 5 KiB later than a multiple of its size. */
static bool open_arrays(Arena *arena, Work *w, const Host *h, Error *e) {
    double bytes = 4.0 * (double)h->cache;
    if (bytes < 64 << 20) bytes = 64 << 20;
    if (bytes > 256 << 20) bytes = 256 << 20;
    if (h->available > 0 && bytes > h->available / 16) bytes = h->available / 16;
    w->n = (int64_t)(bytes / sizeof(float)) / 4096 * 4096;
    enum { STAGGER = 5 * 1024 / sizeof(float) };
    if (!arena_open(arena, w->device, "doctor", TIER_DEVICE, 4 * ((size_t)w->n + 4 * STAGGER) * sizeof(float), e))
        return false;
    for (int i = 0; i < 4; i++) {
        Tensor whole = arena_tensor(arena, FP32, DIM(w->n + i * STAGGER));
        w->t[i] = tensor_rows(whole, i * STAGGER, w->n);
    }
    w->a = w->t[0].data, w->b = w->t[1].data, w->c = w->t[2].data;
    return true;
}

void doctor_cpu(Report *r, const Host *h, int threads, Error *e) {
    char name[24];
    snprintf(name, sizeof name, threads == 1 ? "%d_thread" : "%d_threads", threads);
    Work w = {.device = device_open("cpu", threads, kernels_for("cpu", e), e)};
    Arena arena = {0};
    if (!w.device) return;
    if (open_arrays(&arena, &w, h, e)) {
        printf("\nprocessor, %d thread%s (arrays of %lld MiB)\n", threads, threads > 1 ? "s" : "",
               (long long)(w.n * (int64_t)sizeof(float) >> 20));
        measure_registers(r, &w, name);
        measure_memory(r, &w, name);
        arena_close(&arena);
    }
    device_close(w.device);
}
