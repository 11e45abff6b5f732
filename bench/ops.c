/* Achieved over possible, for each op at the shapes of the example model and two more.
 *
 *   bench_ops [DEVICE [THREADS]]      cpu and all processors unless said
 *
 * Possible is what this program measures on the same machine just before: multiply-adds between registers, of bf16 the
 * dot products of pairs where the kernels have them, and a large array added to another. What an op did comes from its
 * own charge, so a row cannot flatter an op that the meter counts otherwise. "% of possible" is the time that the op's
 * FLOPs or its bytes, whichever take longer, would need at those rates, over the median time taken. Operands small
 * enough to stay in a cache may pass 100 %. A row during which other programs used the processors is marked: its figure
 * is not to be believed. After the table the same rows follow as JSON, one object a line.
 *
 * T tokens, H width, I expert width, E experts, k experts a token, V vocabulary, S document length, d head size. */
#define _GNU_SOURCE
#include "device/pool.h"
#include "ops/kernels.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { T = 8192, H = 256, I = 256, E = 8, K = 2, V = 256, S = 512, HEADS = 4, D = 64 };
enum { SEQUENCES = T / S, PARAMETERS = 11 << 20 };
enum { MAX_TENSORS = 12, MAX_EXPERTS = 32 };

/* ---- The machine ------------------------------------------------------------------------------ */

/* Twelve independent chains hide the latency of a multiply-add. */
#define FMA_LOOP(name, attributes, bytes)                                                                              \
    attributes static float name(int64_t rounds) {                                                                     \
        typedef float Vector __attribute__((vector_size(bytes)));                                                      \
        Vector s0 = {0}, s1 = {1}, s2 = {2}, s3 = {3}, s4 = {4}, s5 = {5}, s6 = {6}, s7 = {7}, s8 = {8}, s9 = {9};     \
        Vector s10 = {10}, s11 = {11}, a = (Vector){0} + 0.999f, b = (Vector){0} + 0.001f;                             \
        for (int64_t r = 0; r < rounds; r++) {                                                                         \
            s0 = s0 * a + b, s1 = s1 * a + b, s2 = s2 * a + b, s3 = s3 * a + b, s4 = s4 * a + b, s5 = s5 * a + b;      \
            s6 = s6 * a + b, s7 = s7 * a + b, s8 = s8 * a + b, s9 = s9 * a + b, s10 = s10 * a + b, s11 = s11 * a + b;  \
        }                                                                                                              \
        s0 += s1 + s2 + s3 + s4 + s5 + s6 + s7 + s8 + s9 + s10 + s11;                                                  \
        return s0[0];                                                                                                  \
    }

#if defined(__x86_64__)
FMA_LOOP(fma_avx512, __attribute__((target("avx512f,fma"))), 64)
FMA_LOOP(fma_avx2, __attribute__((target("avx2,fma"))), 32)

/* The same of dot products. */
__attribute__((target("avx512f,avx512bf16"))) static float dot_avx512(int64_t rounds) {
    __m512 sum[12];
    __m512i a = _mm512_set1_epi32(0x3f803f80), b = _mm512_set1_epi32(0x3c003c00); /* pairs of 1 and of 2^-7 */
#pragma GCC unroll 12
    for (int i = 0; i < 12; i++) sum[i] = _mm512_set1_ps((float)i);
    for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++) sum[i] = _mm512_dpbf16_ps(sum[i], (__m512bh)a, (__m512bh)b);
    }
#pragma GCC unroll 12
    for (int i = 1; i < 12; i++) sum[0] += sum[i];
    return sum[0][0];
}
#endif
FMA_LOOP(fma_portable, , 16)

typedef float (*Loop)(int64_t rounds);

typedef struct {
    const char *kernels;
    Loop fma, dot; /* dot NULL: bf16 is widened */
    int lanes;
} FmaLoop;

static const FmaLoop fma_loops[] = {
#if defined(__x86_64__)
    {"avx512bf16", fma_avx512, dot_avx512, 16}, {"avx512", fma_avx512, NULL, 16}, {"avx2", fma_avx2, NULL, 8},
#endif
    {"portable", fma_portable, NULL, 4},        {"plain", fma_portable, NULL, 4},
};

enum { PEAK_ROUNDS = 1 << 20, STREAM_VECTORS = 6 << 20, TRIES = 7 };

typedef float Four __attribute__((vector_size(16)));

typedef struct {
    Loop loop;
    Four *from, *to;
    int parts;
    volatile float sink;
} Rates;

static void peak_task(void *context, int64_t index, int worker) {
    Rates *r = context;
    (void)index, (void)worker;
    r->sink = r->loop(PEAK_ROUNDS);
}

/* Two streams in, one out where it was read: no line is fetched only to be overwritten. */
static void stream_task(void *context, int64_t index, int worker) {
    Rates *r = context;
    (void)worker;
    int64_t end = STREAM_VECTORS * (index + 1) / r->parts;
    for (int64_t i = STREAM_VECTORS * index / r->parts; i < end; i++) r->to[i] += r->from[i];
}

/* The shortest of several tries: what the machine can do. */
static double seconds_least(Pool *pool, PoolTask task, Rates *r) {
    double least = 1e9;
    for (int i = 0; i < TRIES; i++) {
        double start = seconds_now();
        pool_run(pool, r->parts, task, r);
        double seconds = seconds_now() - start;
        if (seconds < least) least = seconds;
    }
    return least;
}

typedef struct {
    double flops, bytes; /* per second, all threads */
} Possible;

static double flops_possible(Pool *pool, Rates *r, Loop loop, int elements) {
    r->loop = loop;
    return 2.0 * 12 * elements * PEAK_ROUNDS * r->parts / seconds_least(pool, peak_task, r);
}

static void possible_measure(Device *d, Arena *arena, Possible *fp32, Possible *bf16) {
    Rates r = {.parts = pool_threads(d->pool)};
    const FmaLoop *loops = NULL;
    for (size_t i = 0; i < COUNT(fma_loops); i++) {
        if (strcmp(fma_loops[i].kernels, d->kernels->name) == 0) loops = &fma_loops[i];
    }
    MUST(loops != NULL);
    Mark mark = arena_mark(arena);
    r.from = arena_tensor(arena, FP32, DIM(STREAM_VECTORS, 4)).data;
    r.to = arena_tensor(arena, FP32, DIM(STREAM_VECTORS, 4)).data;
    for (int64_t i = 0; i < STREAM_VECTORS; i++) r.from[i] = r.to[i] = (Four){1, 1, 1, 1};
    double bytes = 3.0 * sizeof(Four) * STREAM_VECTORS / seconds_least(d->pool, stream_task, &r);
    *fp32 = *bf16 = (Possible){flops_possible(d->pool, &r, loops->fma, loops->lanes), bytes};
    if (loops->dot != NULL) bf16->flops = flops_possible(d->pool, &r, loops->dot, 2 * loops->lanes);
    arena_reset(arena, mark);
}

/* Processor seconds that all programs have used, from /proc/stat; 0 where there is none. */
static double seconds_busy(void) {
    long long user = 0, nice = 0, system = 0, idle = 0, wait = 0, interrupt = 0, soft = 0, steal = 0;
    FILE *f = fopen("/proc/stat", "r");
    if (f == NULL) return 0;
    int fields = fscanf(f, "cpu %lld %lld %lld %lld %lld %lld %lld %lld", &user, &nice, &system, &idle, &wait,
                        &interrupt, &soft, &steal);
    fclose(f);
    return fields == 8 ? (double)(user + nice + system + interrupt + soft + steal) / (double)sysconf(_SC_CLK_TCK) : 0;
}

static double seconds_own(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + 1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

/* ---- Cases ------------------------------------------------------------------------------------ */

typedef struct {
    Stream *stream;
    Arena *arena;
    Type real, sum;
    Tensor t[MAX_TENSORS];
    int64_t rows[MAX_EXPERTS];
} Bench;

typedef struct {
    Op op;
    int64_t size[4];
    void (*prepare)(Bench *b, const int64_t *size);
    void (*run)(Bench *b);
} Case;

/* Numbers in [-1, 1), none of them 0. */
static Tensor random_tensor(Bench *b, Type type, int dims, const int64_t *dim) {
    Tensor t = arena_tensor(b->arena, type, dims, dim);
    uint32_t state = 1;
    for (int64_t i = 0; i < tensor_count(t); i++) {
        state = state * 1664525u + 1013904223u;
        tensor_put(t, i, ((double)(state >> 8) + 0.5) / (1 << 23) - 1);
    }
    return t;
}

/* Whole numbers, `low` to low + span - 1, in no order. */
static Tensor random_index(Bench *b, int low, int span, int dims, const int64_t *dim) {
    Tensor t = arena_tensor(b->arena, INT32, dims, dim);
    uint32_t state = 7;
    for (int64_t i = 0; i < tensor_count(t); i++) {
        state = state * 1664525u + 1013904223u;
        tensor_put(t, i, low + (int)((state >> 8) % (uint32_t)span));
    }
    return t;
}

static Tensor constant(Bench *b, Type type, double x, int dims, const int64_t *dim) {
    Tensor t = arena_tensor(b->arena, type, dims, dim);
    for (int64_t i = 0; i < tensor_count(t); i++) tensor_put(t, i, x);
    return t;
}

/* i / every (first row of a document: times every; its number; or, with every = 1, the position itself). */
static Tensor steps(Bench *b, int64_t every, int64_t factor, int64_t count) {
    Tensor t = arena_tensor(b->arena, INT32, DIM(count));
    for (int64_t i = 0; i < count; i++) tensor_put(t, i, (double)(i / every * factor));
    return t;
}

/* Products: t = y|dx|dw, x|dy|dy, w|w|x. size: tokens, n, k, experts (0: dense). */
enum { OUT, LEFT, RIGHT };

static Tensor weights(Bench *b, Type type, const int64_t *size) {
    if (size[3] == 0) return random_tensor(b, type, DIM(size[1], size[2]));
    for (int64_t e = 0; e < size[3]; e++) b->rows[e] = size[0] / size[3];
    return random_tensor(b, type, DIM(size[3], size[1], size[2]));
}

static void linear_prepare(Bench *b, const int64_t *size) {
    b->t[OUT] = random_tensor(b, b->real, DIM(size[0], size[1]));
    b->t[LEFT] = random_tensor(b, b->real, DIM(size[0], size[2]));
    b->t[RIGHT] = weights(b, b->real, size);
}
static void linear_bench(Bench *b) {
    linear(b->stream, b->t[OUT], b->t[LEFT], b->t[RIGHT]);
}
static void experts_bench(Bench *b) {
    experts_linear(b->stream, b->t[OUT], b->t[LEFT], b->t[RIGHT], b->rows);
}

static void logits_prepare(Bench *b, const int64_t *size) {
    linear_prepare(b, size);
    b->t[OUT] = random_tensor(b, b->sum, DIM(size[0], size[1]));
}

static void dx_prepare(Bench *b, const int64_t *size) {
    b->t[OUT] = random_tensor(b, b->real, DIM(size[0], size[2]));
    b->t[LEFT] = random_tensor(b, b->real, DIM(size[0], size[1]));
    b->t[RIGHT] = weights(b, b->real, size);
}
static void dx_bench(Bench *b) {
    linear_dx(b->stream, b->t[OUT], b->t[LEFT], b->t[RIGHT], false);
}
static void experts_dx_bench(Bench *b) {
    experts_linear_dx(b->stream, b->t[OUT], b->t[LEFT], b->t[RIGHT], b->rows, false);
}

static void dw_prepare(Bench *b, const int64_t *size) {
    b->t[OUT] = weights(b, b->sum, size);
    b->t[LEFT] = random_tensor(b, b->real, DIM(size[0], size[1]));
    b->t[RIGHT] = random_tensor(b, b->real, DIM(size[0], size[2]));
}
static void dw_bench(Bench *b) {
    linear_dw(b->stream, b->t[OUT], b->t[LEFT], b->t[RIGHT]);
}
static void experts_dw_bench(Bench *b) {
    experts_linear_dw(b->stream, b->t[OUT], b->t[LEFT], b->t[RIGHT], b->rows);
}

/* size: rows, width. */
static void swiglu_prepare(Bench *b, const int64_t *size) {
    for (int i = 0; i < 6; i++) b->t[i] = random_tensor(b, b->real, DIM(size[0], size[1]));
    for (int i = 6; i < 8; i++) b->t[i] = random_tensor(b, b->sum, DIM(size[0]));
}
static void swiglu_bench(Bench *b) {
    swiglu(b->stream, b->t[0], b->t[1], b->t[2], b->t[6]);
}
static void swiglu_backward_bench(Bench *b) {
    swiglu_backward(b->stream, b->t[3], b->t[4], b->t[7], b->t[0], b->t[1], b->t[2], b->t[6]);
}

static void norm_prepare(Bench *b, const int64_t *size) {
    for (int i = 0; i < 4; i++) b->t[i] = random_tensor(b, b->real, DIM(size[0], size[1])); /* y, x, dx, dy */
    b->t[4] = constant(b, b->sum, 1, DIM(size[0]));
    b->t[5] = random_tensor(b, b->real, DIM(size[1]));
    b->t[6] = random_tensor(b, b->sum, DIM(size[1]));
}
static void norm_bench(Bench *b) {
    rms_norm(b->stream, b->t[0], b->t[4], b->t[1], b->t[5], 1e-5);
}
static void norm_backward_bench(Bench *b) {
    rms_norm_backward(b->stream, b->t[2], b->t[6], b->t[3], b->t[1], b->t[5], b->t[4], false);
}

static void rows_prepare(Bench *b, const int64_t *size) {
    for (int i = 0; i < 3; i++) b->t[i] = random_tensor(b, b->real, DIM(size[0], size[1]));
}
static void add_bench(Bench *b) {
    add(b->stream, b->t[0], b->t[1], b->t[2]);
}
static void zero_bench(Bench *b) {
    zero(b->stream, b->t[0]);
}
static void copy_bench(Bench *b) {
    copy(b->stream, b->t[0], b->t[1]);
}

/* The middle half of rows that are twice as wide, added to sums. */
static void columns_prepare(Bench *b, const int64_t *size) {
    b->t[0] = random_tensor(b, b->sum, DIM(size[0], size[1]));
    b->t[1] = random_tensor(b, b->real, DIM(size[0], 2 * size[1]));
}
static void columns_bench(Bench *b) {
    copy_columns(b->stream, b->t[0], 0, b->t[1], b->t[0].dim[1] / 2, b->t[0].dim[1], true);
}

static void embedding_prepare(Bench *b, const int64_t *size) {
    b->t[0] = random_tensor(b, b->real, DIM(size[0], size[1]));
    b->t[1] = random_index(b, 0, V, DIM(size[0]));
    b->t[2] = random_tensor(b, b->real, DIM(V, size[1]));
    b->t[3] = random_tensor(b, b->sum, DIM(V, size[1]));
}
static void embedding_bench(Bench *b) {
    embedding(b->stream, b->t[0], b->t[1], b->t[2]);
}
static void embedding_backward_bench(Bench *b) {
    embedding_backward(b->stream, b->t[3], b->t[0], b->t[1]);
}

/* size: tokens, heads, d. */
static void rope_prepare(Bench *b, const int64_t *size) {
    b->t[0] = random_tensor(b, b->real, DIM(size[0], size[1], size[2]));
    b->t[1] = random_tensor(b, b->real, DIM(size[0], size[1], size[2]));
    b->t[2] = random_tensor(b, b->sum, DIM(size[0], size[2]));
    b->t[3] = steps(b, 1, 1, size[0]);
}
static void rope_bench(Bench *b) {
    rope(b->stream, b->t[0], b->t[1], b->t[2], false);
}
static void rope_table_bench(Bench *b) {
    rope_table(b->stream, b->t[2], b->t[3], 10000);
}

static AttentionShape attention_shape(void) {
    return (AttentionShape){.scale = 0.125, .pairs = (int64_t)SEQUENCES * S * (S + 1) / 2};
}
static void attention_bench(Bench *b) {
    attention(b->stream, b->t[0], b->t[8], b->t[1], b->t[2], b->t[3], b->t[10], b->t[11], attention_shape());
}
static void attention_backward_bench(Bench *b) {
    attention_backward(b->stream, b->t[4], b->t[5], b->t[6], b->t[9], b->t[7], b->t[8], b->t[1], b->t[2], b->t[3],
                       b->t[10], b->t[11], attention_shape());
}
static void attention_delta_bench(Bench *b) {
    attention_delta(b->stream, b->t[9], b->t[7], b->t[0]);
}
/* out, q, k, v, dq, dk, dv, dout; lse, delta; first, last */
static void attention_prepare(Bench *b, const int64_t *size) {
    for (int i = 0; i < 8; i++) b->t[i] = random_tensor(b, b->real, DIM(size[0], size[1], size[2]));
    for (int i = 8; i < 10; i++) b->t[i] = random_tensor(b, b->sum, DIM(size[1], size[0]));
    b->t[10] = steps(b, S, S, size[0]);
    b->t[11] = steps(b, 1, 1, size[0] + 1);
    b->t[11] = tensor_rows(b->t[11], 1, size[0]); /* last: row + 1 */
    attention_bench(b);                           /* its lse belongs to the backward's inputs */
}

/* out, part; lse, part_lse */
static void merge_prepare(Bench *b, const int64_t *size) {
    for (int i = 0; i < 2; i++) b->t[i] = random_tensor(b, b->sum, DIM(size[0], size[1], size[2]));
    for (int i = 2; i < 4; i++) b->t[i] = random_tensor(b, b->sum, DIM(size[1], size[0]));
}
static void merge_bench(Bench *b) {
    attention_merge(b->stream, b->t[0], b->t[2], b->t[1], b->t[3]);
}

/* size: tokens, experts, k. */
enum { P, CHOSEN, WEIGHT, LSE, LOGITS, SEQUENCE, COUNTS, MASS, Z, DLOGITS, POSITIONS, ROWS };

static void route_bench(Bench *b) {
    route(b->stream, b->t[P], b->t[CHOSEN], b->t[WEIGHT], b->t[LSE], b->t[LOGITS], true, b->real);
}
static void route_prepare(Bench *b, const int64_t *size) {
    b->t[P] = random_tensor(b, b->sum, DIM(size[0], size[1]));
    b->t[CHOSEN] = random_index(b, 0, 1, DIM(size[0], size[2]));
    b->t[WEIGHT] = random_tensor(b, b->sum, DIM(size[0], size[2]));
    b->t[LSE] = random_tensor(b, b->sum, DIM(size[0]));
    b->t[LOGITS] = random_tensor(b, b->real, DIM(size[0], size[1]));
    b->t[SEQUENCE] = steps(b, S, 1, size[0]);
    b->t[COUNTS] = constant(b, FP64, 0, DIM(SEQUENCES, size[1]));
    b->t[MASS] = constant(b, FP64, 0, DIM(SEQUENCES, size[1]));
    b->t[Z] = constant(b, FP64, 0, DIM(1));
    b->t[DLOGITS] = random_tensor(b, b->real, DIM(size[0], size[1]));
    b->t[POSITIONS] = constant(b, FP64, (double)size[0], DIM(1));
    b->t[ROWS] = constant(b, FP64, S, DIM(SEQUENCES));
    route_bench(b);
}
static void route_statistics_bench(Bench *b) {
    route_statistics(b->stream, b->t[COUNTS], b->t[MASS], b->t[Z], b->t[P], b->t[CHOSEN], b->t[LSE], b->t[SEQUENCE]);
}
static void route_backward_bench(Bench *b) {
    RouteLoss loss = {.normalise = true, .balance = 0.01, .z = 0.001};
    route_backward(b->stream, b->t[DLOGITS], b->t[WEIGHT], b->t[P], b->t[CHOSEN], b->t[LSE], b->t[COUNTS], b->t[ROWS],
                   b->t[SEQUENCE], b->t[POSITIONS], loss);
}

/* size: tokens, k, width. t: order, place, counts, chosen; rows of slots, rows of tokens. */
static void order_bench(Bench *b) {
    route_order(b->stream, b->t[0], b->t[1], b->t[2], b->t[3]);
}
static void order_prepare(Bench *b, const int64_t *size) {
    b->t[0] = random_index(b, 0, 1, DIM(size[0] * size[1]));
    b->t[1] = random_index(b, 0, 1, DIM(size[0], size[1]));
    b->t[2] = constant(b, INT64, 0, DIM(1, E));
    b->t[3] = random_index(b, 0, E, DIM(size[0], size[1]));
    b->t[4] = random_tensor(b, b->real, DIM(size[0] * size[1], size[2]));
    b->t[5] = random_tensor(b, b->real, DIM(size[0], size[2]));
    order_bench(b);
}
static void gather_bench(Bench *b) {
    gather_rows(b->stream, b->t[4], b->t[5], b->t[0], K);
}
static void sum_slots_bench(Bench *b) {
    sum_slots(b->stream, b->t[5], b->t[5], b->t[4], b->t[1], (SlotRound){0, 1, 0});
}

/* size: tokens, vocabulary. */
static void cross_entropy_prepare(Bench *b, const int64_t *size) {
    b->t[0] = constant(b, FP64, 0, DIM(1));
    b->t[1] = random_tensor(b, b->real, DIM(size[0], size[1]));
    b->t[2] = random_tensor(b, b->sum, DIM(size[0], size[1]));
    b->t[3] = random_index(b, 0, (int)size[1], DIM(size[0]));
    b->t[4] = constant(b, FP64, (double)size[0], DIM(1));
}
static void cross_entropy_bench(Bench *b) {
    cross_entropy(b->stream, b->t[0], b->t[1], b->t[2], b->t[3], b->t[4]);
}

/* size: parameters. */
static void adamw_prepare(Bench *b, const int64_t *size) {
    b->t[0] = random_tensor(b, b->real, DIM(size[0]));
    b->t[1] = b->real == BF16 ? constant(b, BYTE, 0, DIM(2 * size[0])) : NONE;
    b->t[2] = constant(b, b->sum, 1e-3, DIM(size[0]));
    b->t[3] = constant(b, b->sum, 1e-5, DIM(size[0]));
    b->t[4] = random_tensor(b, b->sum, DIM(size[0]));
}
static void adamw_bench(Bench *b) {
    AdamW h = {.learning_rate = 1e-3,
               .beta1 = 0.9,
               .beta2 = 0.95,
               .epsilon = 1e-8,
               .weight_decay = 0.1,
               .correction1 = 0.1,
               .correction2 = 0.05,
               .clip = 1};
    adamw(b->stream, b->t[0], b->t[1], b->t[2], b->t[3], b->t[4], h);
}

static void sums_prepare(Bench *b, const int64_t *size) {
    b->t[0] = random_tensor(b, b->sum, DIM(2, size[0]));
    b->t[1] = tensor_at(b->t[0].data, b->sum, DIM(size[0]));
    b->t[2] = constant(b, FP64, 0, DIM(1));
}
static void square_sum_bench(Bench *b) {
    square_sum(b->stream, b->t[2], b->t[1]);
}
static void sum_rows_bench(Bench *b) {
    sum_rows(b->stream, b->t[1], b->t[0]);
}

static const Case cases[] = {
    {OP_LINEAR, {2048, 1024, 1024, 0}, linear_prepare, linear_bench},
    {OP_LINEAR_DX, {2048, 1024, 1024, 0}, dx_prepare, dx_bench},
    {OP_LINEAR_DW, {2048, 1024, 1024, 0}, dw_prepare, dw_bench},
    {OP_LINEAR, {T, H, H, 0}, linear_prepare, linear_bench},
    {OP_LINEAR_DX, {T, H, H, 0}, dx_prepare, dx_bench},
    {OP_LINEAR_DW, {T, H, H, 0}, dw_prepare, dw_bench},
    {OP_LINEAR, {T, V, H, 0}, logits_prepare, linear_bench},
    {OP_LINEAR, {T, E, H, 0}, linear_prepare, linear_bench},
    {OP_LINEAR_DX, {T, E, H, 0}, dx_prepare, dx_bench},
    {OP_LINEAR_DW, {T, E, H, 0}, dw_prepare, dw_bench},
    {OP_EXPERTS_LINEAR, {T * K, I, H, E}, linear_prepare, experts_bench},
    {OP_EXPERTS_LINEAR_DX, {T * K, I, H, E}, dx_prepare, experts_dx_bench},
    {OP_EXPERTS_LINEAR_DW, {T * K, I, H, E}, dw_prepare, experts_dw_bench},
    {OP_EXPERTS_LINEAR, {32 * 64, 512, 1024, 32}, linear_prepare, experts_bench},
    {OP_EXPERTS_LINEAR_DX, {32 * 64, 512, 1024, 32}, dx_prepare, experts_dx_bench},
    {OP_EXPERTS_LINEAR_DW, {32 * 64, 512, 1024, 32}, dw_prepare, experts_dw_bench},
    {OP_EXPERTS_LINEAR, {32 * 8, 512, 1024, 32}, linear_prepare, experts_bench},
    {OP_EXPERTS_LINEAR_DX, {32 * 8, 512, 1024, 32}, dx_prepare, experts_dx_bench},
    {OP_EXPERTS_LINEAR_DW, {32 * 8, 512, 1024, 32}, dw_prepare, experts_dw_bench},
    {OP_ATTENTION, {T, HEADS, D}, attention_prepare, attention_bench},
    {OP_ATTENTION_DELTA, {T, HEADS, D}, attention_prepare, attention_delta_bench},
    {OP_ATTENTION_BACKWARD, {T, HEADS, D}, attention_prepare, attention_backward_bench},
    {OP_ATTENTION_MERGE, {T, HEADS, D}, merge_prepare, merge_bench},
    {OP_SWIGLU, {T * K, I}, swiglu_prepare, swiglu_bench},
    {OP_SWIGLU_BACKWARD, {T * K, I}, swiglu_prepare, swiglu_backward_bench},
    {OP_RMS_NORM, {T, H}, norm_prepare, norm_bench},
    {OP_RMS_NORM_BACKWARD, {T, H}, norm_prepare, norm_backward_bench},
    {OP_ADD, {T, H}, rows_prepare, add_bench},
    {OP_ZERO, {T, H}, rows_prepare, zero_bench},
    {OP_COPY, {T, H}, rows_prepare, copy_bench},
    {OP_COPY_COLUMNS, {T, H}, columns_prepare, columns_bench},
    {OP_EMBEDDING, {T, H}, embedding_prepare, embedding_bench},
    {OP_EMBEDDING_BACKWARD, {T, H}, embedding_prepare, embedding_backward_bench},
    {OP_ROPE_TABLE, {T, HEADS, D}, rope_prepare, rope_table_bench},
    {OP_ROPE, {T, HEADS, D}, rope_prepare, rope_bench},
    {OP_ROUTE, {T, E, K}, route_prepare, route_bench},
    {OP_ROUTE_STATISTICS, {T, E, K}, route_prepare, route_statistics_bench},
    {OP_ROUTE_BACKWARD, {T, E, K}, route_prepare, route_backward_bench},
    {OP_ROUTE_ORDER, {T, K, H}, order_prepare, order_bench},
    {OP_GATHER_ROWS, {T, K, H}, order_prepare, gather_bench},
    {OP_SUM_SLOTS, {T, K, H}, order_prepare, sum_slots_bench},
    {OP_CROSS_ENTROPY, {T, V}, cross_entropy_prepare, cross_entropy_bench},
    {OP_ADAMW, {PARAMETERS}, adamw_prepare, adamw_bench},
    {OP_SQUARE_SUM, {PARAMETERS}, sums_prepare, square_sum_bench},
    {OP_SUM_ROWS, {PARAMETERS}, sums_prepare, sum_rows_bench},
};

/* ---- Measuring -------------------------------------------------------------------------------- */

typedef struct {
    const Case *c;
    Type real;
    int runs;
    double seconds; /* median */
    double flops, bytes;
    double others; /* processors that other programs kept busy meanwhile */
} Measured;

enum { RUNS_LEAST = 7, RUNS_MOST = 400 };
static const double SECONDS_LEAST = 0.25, SECONDS_MOST = 2; /* of one row */
static const double OTHERS_MOST = 0.1;

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double run_timed(Bench *b, const Case *c) {
    double start = seconds_now();
    c->run(b);
    event_wait(event_record(b->stream));
    return seconds_now() - start;
}

static Measured case_measure(Bench *b, const Case *c) {
    Mark mark = arena_mark(b->arena);
    c->prepare(b, c->size);
    Meter *meter = &b->stream->device->meter;
    meter_clear(b->stream->device);
    double first = run_timed(b, c); /* warms caches; the only one where an op takes long */
    Measured m = {
        .c = c, .real = b->real, .flops = (double)meter->op[c->op].flops, .bytes = (double)meter->op[c->op].bytes};
    double taken[RUNS_MOST] = {first}, total = 0, busy = seconds_busy(), own = seconds_own(), start = seconds_now();
    int limit = first > SECONDS_MOST ? 0 : RUNS_MOST;
    while (m.runs < limit && (m.runs < RUNS_LEAST || total < SECONDS_LEAST) && total < SECONDS_MOST) {
        taken[m.runs] = run_timed(b, c);
        total += taken[m.runs++];
    }
    double span = seconds_now() - start;
    if (m.runs > 0) m.others = (seconds_busy() - busy - (seconds_own() - own)) / span;
    qsort(taken, (size_t)max64(m.runs, 1), sizeof *taken, by_size);
    m.seconds = taken[m.runs / 2];
    arena_reset(b->arena, mark);
    return m;
}

static double share_of_possible(const Measured *m, Possible p) {
    double compute = m->flops / p.flops, memory = m->bytes / p.bytes;
    return (compute > memory ? compute : memory) / m->seconds;
}

static const char *size_text(const Case *c, char *text, size_t bytes) {
    size_t used = 0;
    for (int i = 0; i < 4 && (i == 0 || c->size[i] > 0); i++) {
        used += (size_t)snprintf(text + used, bytes - used, "%s%lld", i == 0 ? "" : "x", (long long)c->size[i]);
    }
    return text;
}

static void row_print(const Measured *m, Possible p) {
    char size[64];
    printf("%-20s %-18s %-5s %10.1f %9.1f %6.1f %8.1f %6.1f %8.1f%s\n", op_name(m->c->op),
           size_text(m->c, size, sizeof size), type_name(m->real), 1e6 * m->seconds, 1e-9 * m->flops / m->seconds,
           100 * m->flops / m->seconds / p.flops, 1e-9 * m->bytes / m->seconds, 100 * m->bytes / m->seconds / p.bytes,
           100 * share_of_possible(m, p), m->others > OTHERS_MOST ? "  disturbed" : "");
    fflush(stdout);
}

static void row_print_json(const Measured *m, Possible p, const Device *d) {
    char size[64];
    printf("{\"op\": \"%s\", \"size\": \"%s\", \"type\": \"%s\", \"kernels\": \"%s\", \"threads\": %d, \"seconds\": "
           "%.6g, \"runs\": %d, "
           "\"flops\": %.0f, \"bytes\": %.0f, \"possible_flops_per_s\": %.4g, \"possible_bytes_per_s\": %.4g, "
           "\"of_possible\": %.4g, "
           "\"other_load\": %.2f}\n",
           op_name(m->c->op), size_text(m->c, size, sizeof size), type_name(m->real), d->kernels->name,
           pool_threads(d->pool), m->seconds, m->runs, m->flops, m->bytes, p.flops, p.bytes, share_of_possible(m, p),
           m->others);
}

static bool bench_run(const char *name, int threads, Error *e) {
    const Kernels *kernels = kernels_for(name, e);
    if (e->code != EXIT_DONE) return false;
    if (kernels == NULL) return fail(e, EXIT_USAGE, "%s runs nothing that could be timed; bench_ops; use cpu", name);
    Device *d = device_open(name, threads, kernels, e);
    if (d == NULL) return false;
    Arena arena;
    if (!arena_open(&arena, d, "bench", TIER_DEVICE, (size_t)1 << 30, e)) {
        device_close(d);
        return false;
    }
    static const Type types[] = {FP32, BF16};
    Possible possible[COUNT(types)];
    possible_measure(d, &arena, &possible[0], &possible[1]);
    printf("%s kernels, %d threads: possible are %.1f GFLOP/s in fp32 and %.1f in bf16 (multiply-adds between "
           "registers) and %.1f GB/s (adding large arrays)\n\n",
           kernels->name, threads, 1e-9 * possible[0].flops, 1e-9 * possible[1].flops, 1e-9 * possible[0].bytes);
    printf("%-20s %-18s %-5s %10s %9s %6s %8s %6s %8s\n", "op", "size", "type", "median us", "GFLOP/s", "%", "GB/s",
           "%", "% of possible");
    Measured rows[COUNT(types) * COUNT(cases)];
    int disturbed = 0;
    for (size_t i = 0; i < COUNT(rows); i++) {
        Bench b = {.stream = &d->stream[STREAM_COMPUTE], .arena = &arena, .real = types[i / COUNT(cases)]};
        b.sum = type_sum(b.real);
        rows[i] = case_measure(&b, &cases[i % COUNT(cases)]);
        row_print(&rows[i], possible[i / COUNT(cases)]);
        disturbed += rows[i].others > OTHERS_MOST;
    }
    if (disturbed > 0) printf("\n%d rows were disturbed by other programs: run again on a quiet machine.\n", disturbed);
    printf("\n");
    for (size_t i = 0; i < COUNT(rows); i++) row_print_json(&rows[i], possible[i / COUNT(cases)], d);
    arena_close(&arena);
    device_close(d);
    return true;
}

int main(int count, char **argument) {
    const char *device = count > 1 ? argument[1] : "cpu";
    int threads = count > 2 ? atoi(argument[2]) : (int)sysconf(_SC_NPROCESSORS_ONLN);
    Error e = {0};
    if (count > 3 || threads < 1) fail(&e, EXIT_USAGE, "bad arguments; command line; bench_ops [DEVICE [THREADS]]");
    if (e.code != EXIT_DONE || !bench_run(device, threads, &e)) return error_print(&e);
    return EXIT_DONE;
}
