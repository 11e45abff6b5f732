/* The loops are our own and do nothing else; memcpy stands beside our copy as a measurement by somebody else. One
 * loop per instruction set, compiled here whatever this file is compiled for; that of the kernels that run is
 * chosen. */
#include "plan/peaks.h"
#include "ops/kernels.h"

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
#endif

typedef double (*Loop)(void);

static const struct {
    const char *kernels; /* what their name begins with; the first row that fits counts */
    Peak peak;
    Loop loop;
    int flops; /* of one instruction */
} loops[] = {
#if defined(__x86_64__)
    {"avx512bf16", PEAK_DOT_BF16, dot_avx512_bf16, 64}, {"avx512", PEAK_FMA_FP32, fma_avx512_fp32, 32},
    {"avx512", PEAK_FMA_FP64, fma_avx512_fp64, 16},     {"avx2", PEAK_FMA_FP32, fma_avx2_fp32, 16},
    {"avx2", PEAK_FMA_FP64, fma_avx2_fp64, 8},
#endif
    {"", PEAK_FMA_FP32, fma_portable_fp32, 8},          {"", PEAK_FMA_FP64, fma_portable_fp64, 4}, /* all others */
};

/* ---- Memory ------------------------------------------------------------------------------------------ */

typedef float Four __attribute__((vector_size(16)));
enum { LINE = 16 }; /* elements of a cache line */

typedef void (*Sweep)(float *a, const float *b, const float *c, int64_t n);

#if defined(__x86_64__)
bool peak_copy_streams(void) {
    return true;
}

static void put_past_caches(float *a, Four x) {
    _mm_stream_ps(a, (__m128)x);
}

static void finish_puts(void) {
    _mm_sfence();
}
#else
bool peak_copy_streams(void) {
    return false;
}

static void put_past_caches(float *a, Four x) {
    *(Four *)a = x;
}

static void finish_puts(void) {
}
#endif

/* Line by line, with a fence for the compiler in between, which would otherwise make plain puts a call of memcpy. */
static void sweep_copy(float *a, const float *b, const float *c, int64_t n) {
    (void)c;
    for (int64_t i = 0; i < n; i += LINE) {
        for (int j = 0; j < LINE; j += 4) put_past_caches(a + i + j, *(const Four *)(b + i + j));
        __asm__ volatile("" ::: "memory");
    }
    finish_puts();
}

static void sweep_memcpy(float *a, const float *b, const float *c, int64_t n) {
    (void)c;
    memcpy(a, b, (size_t)n * sizeof *a);
}

static void sweep_triad(float *a, const float *b, const float *c, int64_t n) {
    for (int64_t i = 0; i < n; i += 4) *(Four *)(a + i) = *(const Four *)(b + i) + 0.5f * *(const Four *)(c + i);
}

static void sweep_fill(float *a, const float *b, const float *c, int64_t n) {
    (void)b, (void)c;
    for (int64_t i = 0; i < n; i++) a[i] = 1e-3f * (float)(i % 1000 + 1);
}

static const struct {
    const char *name;
    Sweep sweep;
    int arrays; /* read or written */
} rows[PEAK_COUNT] = {
    [PEAK_FMA_FP32] = {.name = "fma_fp32"},      [PEAK_FMA_FP64] = {.name = "fma_fp64"},
    [PEAK_DOT_BF16] = {.name = "dot_bf16"},      [PEAK_COPY] = {"copy", sweep_copy, 2},
    [PEAK_MEMCPY] = {"memcpy", sweep_memcpy, 2}, [PEAK_TRIAD] = {"triad", sweep_triad, 3},
};

const char *peak_name(Peak k) {
    return rows[k].name;
}

/* ---- On all threads ----------------------------------------------------------------------------------- */

typedef struct {
    Loop loop; /* or a sweep over the arrays */
    Sweep sweep;
    float *array[PEAK_ARRAYS];
    int64_t n, parts;
} Task;

static void task_run(void *context, int64_t index, int worker) {
    Task *t = context;
    (void)worker;
    if (t->loop) {
        volatile double sink = t->loop(); /* so that it is not left out */
        (void)sink;
        return;
    }
    int64_t first = t->n * index / t->parts / LINE * LINE, end = t->n * (index + 1) / t->parts / LINE * LINE;
    t->sweep(t->array[0] + first, t->array[1] + first, t->array[2] + first, end - first);
}

/* The row of `loops` for the device's kernels; COUNT(loops): none. */
static size_t loop_of(const Device *d, Peak k) {
    size_t i = 0;
    while (i < COUNT(loops) &&
           (loops[i].peak != k || strncmp(loops[i].kernels, d->kernels->name, strlen(loops[i].kernels)) != 0))
        i++;
    return i;
}

static void run(Peaks *p, Loop loop, Sweep sweep) {
    Task t = {.loop = loop, .sweep = sweep, .n = tensor_count(p->array[0]), .parts = pool_threads(p->device->pool)};
    for (int i = 0; i < PEAK_ARRAYS; i++) t.array[i] = p->array[i].data;
    pool_run(p->device->pool, t.parts, task_run, &t);
}

double peak_work(const Peaks *p, Peak k) {
    if (rows[k].sweep) return (double)rows[k].arrays * (double)tensor_bytes(p->array[0]);
    size_t i = loop_of(p->device, k);
    return i < COUNT(loops) ? (double)loops[i].flops * CHAINS * ROUNDS * pool_threads(p->device->pool) : 0;
}

void peak_run(Peaks *p, Peak k) {
    size_t i = loop_of(p->device, k);
    MUST(rows[k].sweep || i < COUNT(loops));
    run(p, rows[k].sweep ? NULL : loops[i].loop, rows[k].sweep);
}

double peak_rate(Peaks *p, Peak k) {
    enum { TRIES = 7 };
    double work = peak_work(p, k), most = 0;
    for (int i = 0; i < TRIES && work > 0; i++) {
        double start = seconds_now();
        peak_run(p, k);
        double rate = work / (seconds_now() - start);
        if (rate > most) most = rate;
    }
    return most;
}

/* No array is in step with another in the caches: each begins 5 KiB later than a multiple of its size. */
bool peaks_open(Peaks *p, Device *d, size_t bytes, Error *e) {
    enum { STAGGER = 5 * 1024 / sizeof(float) };
    int64_t n = (int64_t)(bytes / sizeof(float)) / LINE * LINE;
    *p = (Peaks){.device = d};
    if (!arena_open(&p->arena, d, "peaks", TIER_DEVICE,
                    PEAK_ARRAYS * ((size_t)n + PEAK_ARRAYS * STAGGER) * sizeof(float), e))
        return false;
    for (int i = 0; i < PEAK_ARRAYS; i++) {
        p->array[i] = tensor_rows(arena_tensor(&p->arena, FP32, DIM(n + i * STAGGER)), i * STAGGER, n);
        Task fill = {.sweep = sweep_fill,
                     .array = {p->array[i].data, p->array[i].data, p->array[i].data},
                     .n = n,
                     .parts = pool_threads(d->pool)};
        pool_run(d->pool, fill.parts, task_run, &fill);
    }
    return true;
}

void peaks_close(Peaks *p) {
    arena_close(&p->arena);
}
