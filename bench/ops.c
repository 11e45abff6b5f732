/* Achieved over possible, for each op at the shapes of the example model and some more.
 *
 *   bench_ops [DEVICE [THREADS [OP]...]]      cpu, all processors and all ops unless said
 *
 * Possible is measured just before (possible.h). What an op did comes from its own charge, so a row cannot flatter an op
 * that the meter counts otherwise. "% of possible" is the time that the op's FLOPs or its bytes, whichever take longer,
 * would need at those rates, over the median time taken. Operands small enough to stay in a cache may pass 100 %; an op
 * that writes as much as it reads can hardly pass 67 % beyond the caches, since each line that it writes is read first. A
 * row during which other programs used the processors is marked: its figure is not to be believed.
 *
 * Dense fp32 products follow beside those of oneDNN and OpenBLAS, where these are installed, taking turns. After the
 * tables the rows follow as JSON, one object a line.
 *
 * T tokens, H width, I expert width, E experts, k experts a token, V vocabulary, S document length, d head size. */
#include "plan/doctor_parts.h"
#include "plan/other_products.h"
#include "possible.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { T = 8192, H = 256, I = 256, E = 8, K = 2, V = 256, S = 512, HEADS = 4, D = 64 };
enum { SEQUENCES = T / S, PARAMETERS = 11 << 20 };
enum { MAX_TENSORS = 13, MAX_EXPERTS = 32 };

/* ---- Cases ------------------------------------------------------------------------------------ */

typedef struct {
    Stream *stream;
    Arena *arena;
    Type real, sum;
    Tensor t[MAX_TENSORS];
    int64_t rows[MAX_EXPERTS];
    AttentionShape attention;
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
    embedding_backward(b->stream, b->t[3], b->t[0], b->t[1], -1);
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

/* size: tokens, heads, d, document length. */
static void attention_bench(Bench *b) {
    attention(b->stream, b->t[0], b->t[8], b->t[1], b->t[2], b->t[3], b->t[10], b->t[11], b->attention);
}
static void attention_backward_bench(Bench *b) {
    attention_backward(b->stream, b->t[4], b->t[5], b->t[6], b->t[9], b->t[7], b->t[8], b->t[1], b->t[2], b->t[3],
                       b->t[10], b->t[11], b->t[12], b->attention);
}
static void attention_delta_bench(Bench *b) {
    attention_delta(b->stream, b->t[9], b->t[7], b->t[0]);
}
/* out, q, k, v, dq, dk, dv, dout; lse, delta; first, last */
static void attention_prepare(Bench *b, const int64_t *size) {
    for (int i = 0; i < 8; i++) b->t[i] = random_tensor(b, b->real, DIM(size[0], size[1], size[2]));
    for (int i = 8; i < 10; i++) b->t[i] = random_tensor(b, b->sum, DIM(size[1], size[0]));
    b->t[10] = steps(b, size[3], size[3], size[0]);
    b->t[11] = steps(b, 1, 1, size[0] + 1);
    b->t[11] = tensor_rows(b->t[11], 1, size[0]);           /* last: row + 1 */
    b->t[12] = arena_tensor(b->arena, INT32, DIM(size[0])); /* keys: last - first */
    for (int64_t i = 0; i < size[0]; i++) tensor_put(b->t[12], i, (double)(i % size[3] + 1));
    b->attention = (AttentionShape){.scale = 0.125, .pairs = size[0] * (size[3] + 1) / 2};
    attention_bench(b); /* its lse belongs to the backward's inputs */
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
    {OP_ATTENTION, {T, HEADS, D, S}, attention_prepare, attention_bench},
    {OP_ATTENTION_DELTA, {T, HEADS, D, S}, attention_prepare, attention_delta_bench},
    {OP_ATTENTION_BACKWARD, {T, HEADS, D, S}, attention_prepare, attention_backward_bench},
    {OP_ATTENTION, {4096, HEADS, 64, 4096}, attention_prepare, attention_bench},
    {OP_ATTENTION_BACKWARD, {4096, HEADS, 64, 4096}, attention_prepare, attention_backward_bench},
    {OP_ATTENTION, {4096, HEADS, 128, 4096}, attention_prepare, attention_bench},
    {OP_ATTENTION_BACKWARD, {4096, HEADS, 128, 4096}, attention_prepare, attention_backward_bench},
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
    {OP_ROUTE, {T, 128, 8}, route_prepare, route_bench},
    {OP_ROUTE_BACKWARD, {T, 128, 8}, route_prepare, route_backward_bench},
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

enum { RUNS_LEAST = 5, RUNS_MOST = 200 };
static const double SECONDS_LEAST = 0.1, SECONDS_MOST = 2; /* of one row */

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
    double taken[RUNS_MOST] = {first}, total = 0;
    Samples meanwhile = samples_begin();
    int limit = first > SECONDS_MOST ? 0 : RUNS_MOST;
    while (m.runs < limit && (m.runs < RUNS_LEAST || total < SECONDS_LEAST) && total < SECONDS_MOST) {
        taken[m.runs] = run_timed(b, c);
        total += taken[m.runs++];
    }
    m.others = samples_others(&meanwhile);
    qsort(taken, (size_t)max64(m.runs, 1), sizeof *taken, by_size);
    m.seconds = taken[m.runs / 2];
    arena_reset(b->arena, mark);
    return m;
}

static double share_of_possible(const Measured *m, const Possible *p) {
    return possible_seconds(p, m->real, m->flops, m->bytes) / m->seconds;
}

static const char *size_text(const Case *c, char *text, size_t bytes) {
    size_t used = 0;
    for (int i = 0; i < 4 && (i == 0 || c->size[i] > 0); i++) {
        used += (size_t)snprintf(text + used, bytes - used, "%s%lld", i == 0 ? "" : "x", (long long)c->size[i]);
    }
    return text;
}

static void row_print(const Measured *m, const Possible *p) {
    char size[64];
    printf("%-20s %-18s %-5s %10.1f %9.1f %8.1f %8.1f%s\n", op_name(m->c->op), size_text(m->c, size, sizeof size),
           type_name(m->real), 1e6 * m->seconds, 1e-9 * m->flops / m->seconds, 1e-9 * m->bytes / m->seconds,
           100 * share_of_possible(m, p), m->others > 0 ? "  disturbed" : "");
    fflush(stdout);
}

static void row_print_json(const Measured *m, const Possible *p, const Device *d) {
    char size[64];
    printf("{\"bench\": \"op\", \"op\": \"%s\", \"size\": \"%s\", \"type\": \"%s\", \"kernels\": \"%s\", \"threads\": "
           "%d, \"seconds\": %.6g, \"runs\": %d, \"flops\": %.0f, \"bytes\": %.0f, \"possible_flops_per_s\": %.4g, "
           "\"possible_bytes_per_s\": %.4g, \"of_possible\": %.4g, \"other_load\": %.2f}\n",
           op_name(m->c->op), size_text(m->c, size, sizeof size), type_name(m->real), d->kernels->name, d->threads,
           m->seconds, m->runs, m->flops, m->bytes, m->real == BF16 ? p->bf16 : p->fp32, p->bytes,
           share_of_possible(m, p), m->others);
}

/* ---- Products of others ------------------------------------------------------------------------ */

enum { TURNS = 5 };

/* Threads of a library wait busily for a while after a product: each turn begins with a pause that outlasts it, and a
 * product that is not timed. */
static double turn_take(Bench *b, const OtherProducts *other, Tensor c, Tensor w, const int64_t *size) {
    static const struct timespec pause = {.tv_nsec = 150000000};
    const Case ours = {.run = linear_bench};
    double seconds = 0;
    nanosleep(&pause, NULL);
    for (int i = 0; i < 2; i++) {
        double start = seconds_now();
        if (other == NULL)
            run_timed(b, &ours);
        else
            MUST(other_products_run(other, c.data, b->t[LEFT].data, w.data, size[0], size[1], size[2]));
        seconds = seconds_now() - start;
    }
    return seconds;
}

/* y[m,n] = x[m,k] w[n,k]^T in turns with each library's c[m,n] = a[m,k] b[k,n]. */
static void compare_product(Bench *b, const OtherProducts *others, int count, const int64_t *size) {
    Mark mark = arena_mark(b->arena);
    linear_prepare(b, size);
    Tensor c = random_tensor(b, FP32, DIM(size[0], size[1])), w = random_tensor(b, FP32, DIM(size[2], size[1]));
    double taken[1 + OTHER_COUNT][TURNS], work = 2e-9 * (double)size[0] * (double)size[1] * (double)size[2], best = 0;
    for (int turn = 0; turn < TURNS; turn++) {
        for (int who = 0; who <= count; who++)
            taken[who][turn] = turn_take(b, who == 0 ? NULL : &others[who - 1], c, w, size);
    }
    printf("%lldx%lldx%lld:", (long long)size[0], (long long)size[1], (long long)size[2]);
    for (int who = 0; who <= count; who++) {
        qsort(taken[who], TURNS, sizeof **taken, by_size);
        double rate = work / taken[who][TURNS / 2];
        if (who > 0 && rate > best) best = rate;
        printf("  %s %.1f GFLOP/s", who == 0 ? "mop" : other_products_name(others[who - 1].name), rate);
    }
    double rate = work / taken[0][TURNS / 2];
    printf("  mop over the best of the others: %.2f\n{\"bench\": \"products\", \"size\": \"%lldx%lldx%lld\", "
           "\"threads\": %d, \"mop_flop_per_s\": %.4g, \"best_other_flop_per_s\": %.4g}\n",
           rate / best, (long long)size[0], (long long)size[1], (long long)size[2], b->stream->device->threads,
           1e9 * rate, 1e9 * best);
    arena_reset(b->arena, mark);
}

static void compare_products(Bench *b) {
    static const int64_t sizes[][4] = {{2048, 1024, 1024}, {8192, 256, 256}, {2048, 512, 512}};
    OtherProducts others[OTHER_COUNT];
    int count = 0;
    printf("\ndense products, fp32, in turns with other libraries:\n");
    for (int name = 0; name < OTHER_COUNT; name++) {
        if (other_products_open(&others[count], (OtherName)name, b->stream->device->threads))
            count++;
        else
            printf("no %s here (%s)\n", other_products_name((OtherName)name), other_products_packages((OtherName)name));
    }
    for (size_t i = 0; i < COUNT(sizes) && count > 0; i++) compare_product(b, others, count, sizes[i]);
}

/* ---- The bench --------------------------------------------------------------------------------- */

static bool wanted(Op op, int count, char **names) {
    for (int i = 0; i < count; i++)
        if (strcmp(names[i], op_name(op)) == 0) return true;
    return count == 0;
}

static void bench_rows(Device *d, Arena *arena, const Possible *possible, int count, char **names) {
    static const Type types[] = {FP32, BF16};
    Measured rows[COUNT(types) * COUNT(cases)];
    int measured = 0, disturbed = 0;
    Bench b = {.stream = &d->stream[STREAM_COMPUTE], .arena = arena};
    printf("\n%-20s %-18s %-5s %10s %9s %8s %8s\n", "op", "size", "type", "median us", "GFLOP/s", "GB/s",
           "% of possible");
    for (size_t i = 0; i < COUNT(rows); i++) {
        const Case *c = &cases[i % COUNT(cases)];
        if (!wanted(c->op, count, names)) continue;
        b.real = types[i / COUNT(cases)];
        b.sum = type_sum(b.real);
        Measured *m = &rows[measured++];
        *m = case_measure(&b, c);
        row_print(m, possible);
        disturbed += m->others > 0;
    }
    if (disturbed > 0) printf("\n%d rows were disturbed by other programs: run again on a quiet machine.\n", disturbed);
    b.real = b.sum = FP32;
    if (wanted(OP_LINEAR, count, names)) compare_products(&b);
    printf("\n");
    for (int i = 0; i < measured; i++) row_print_json(&rows[i], possible, d);
}

static bool bench_run(const char *name, int threads, int count, char **names, Error *e) {
    const Kernels *kernels = kernels_for(name, e);
    if (e->code != EXIT_DONE) return false;
    if (kernels == NULL) return fail(e, EXIT_USAGE, "%s runs nothing that could be timed; bench_ops; use cpu", name);
    Device *one = device_open(name, 1, kernels, e), *d = one ? device_open(name, threads, kernels, e) : NULL;
    Arena arena;
    Possible alone, possible;
    bool open = d && arena_open(&arena, d, "bench", TIER_DEVICE, (size_t)1 << 30, e);
    if (open && possible_measure(one, &alone, e) && possible_measure(d, &possible, e))
        bench_rows(d, &arena, &possible, count, names);
    if (open) arena_close(&arena);
    if (d) device_close(d);
    if (one) device_close(one);
    return e->code == EXIT_DONE;
}

int main(int count, char **argument) {
    const char *device = count > 1 ? argument[1] : "cpu";
    int threads = count > 2 ? atoi(argument[2]) : (int)sysconf(_SC_NPROCESSORS_ONLN);
    Error e = {0};
    if (threads < 1) fail(&e, EXIT_USAGE, "bad arguments; command line; bench_ops [DEVICE [THREADS [OP]...]]");
    for (int i = 3; i < count && e.code == EXIT_DONE; i++) {
        bool known = false;
        for (int op = 0; op < OP_COUNT; op++) known |= strcmp(argument[i], op_name((Op)op)) == 0;
        if (!known) fail(&e, EXIT_USAGE, "\"%s\" is no op; command line; see the table", text_shown(argument[i]).text);
    }
    bool ok = e.code == EXIT_DONE && bench_run(device, threads, max64(count - 3, 0), argument + 3, &e);
    return ok ? EXIT_DONE : error_print(&e);
}
