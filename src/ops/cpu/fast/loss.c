/* Cross entropy: a row of logits is read twice (largest, sum), the second time from the cache; each exp(logit -
 * largest) is made once and kept for the gradient: in its place or, where that is bf16, in the worker's scratch. */
#include "ops/cpu/fast/fast.h"

enum {
    PARTS = 256,  /* at most so many tasks: their losses are added in order */
    PIECE = 1024, /* logits of the inner sum */
    GROUP = 4,    /* vectors that pass through exp together */
};

typedef struct {
    const CrossEntropyArgs *a;
    Pool *pool;
    int64_t rows;     /* of a task */
    double per_token; /* 1 / trained, or 0 */
    double loss[PARTS];
} Job;

static double per_token_of(Tensor trained) {
    double count = *(const double *)trained.data;
    return count == 0 ? 0 : 1 / count;
}

static REAL largest_of(Tensor logits, int64_t first, int64_t count) {
    Vector most = vector_all(-(REAL)INFINITY);
    for (int64_t i = 0; i < count; i += LANES)
        most = vector_max(vector_get_or(logits, first + i, count - i, most), most);
    return vector_highest(most);
}

/* exp(logit - most) of so many vectors from logit i on, the last of them of `left` values (beyond: 0) or full. */
INLINE void exps_vectors(Vector *x, Tensor logits, int64_t i, int64_t left, REAL most, int vectors) {
    const Vector nothing = vector_all(-(REAL)INFINITY);
    UNROLLED for (int v = 0; v < vectors; v++) x[v] =
        vector_get_or(logits, i + v * LANES, left - v * LANES, nothing) - most;
    vectors_exp(x, vectors);
}

/* Where the values of exp(logit - most) are kept: from element `first` on; none: nowhere. */
typedef struct {
    Tensor values;
    int64_t first;
} Kept;

INLINE Vector keep_vectors(Kept kept, Tensor logits, int64_t first, int64_t i, int64_t left, REAL most, int vectors) {
    Vector x[GROUP], sum = {0};
    exps_vectors(x, logits, first + i, left, most, vectors);
    UNROLLED for (int v = 0; v < vectors; v++) {
        sum += x[v];
        if (!tensor_none(kept.values)) vector_put(kept.values, kept.first + i + v * LANES, left - v * LANES, x[v]);
    }
    return sum;
}

/* sum exp(logit - most), by pieces */
static double sum_of(Tensor logits, int64_t first, int64_t count, REAL most, Kept kept) {
    double total = 0;
    for (int64_t piece = 0; piece < count; piece += PIECE) {
        int64_t i = piece, end = min64(piece + PIECE, count);
        Vector sum = {0};
        for (; i + GROUP * LANES <= end; i += GROUP * LANES)
            sum += keep_vectors(kept, logits, first, i, GROUP * LANES, most, GROUP);
        for (; i < end; i += LANES) sum += keep_vectors(kept, logits, first, i, end - i, most, 1);
        total += (double)vector_sum(sum);
    }
    return total;
}

/* The gradient of a row from its kept exp(logit - most). */
static void scale_kept(const CrossEntropyArgs *a, int64_t row, int64_t target, Kept kept, double sum,
                       double per_token) {
    int64_t count = a->logits.dim[1], first = row * count;
    REAL factor = (REAL)(per_token / sum), at_target = value_get(kept.values, kept.first + target);
    for (int64_t i = 0; i < count; i += LANES)
        vector_put(a->dlogits, first + i, count - i, factor * vector_get(kept.values, kept.first + i, count - i));
    value_put(a->dlogits, first + target, (REAL)(((double)at_target / sum - 1) * per_token));
}

static void write_zeros(Tensor dlogits, int64_t row) {
    size_t bytes = (size_t)dlogits.dim[1] * type_bytes(dlogits.type);
    memset((char *)dlogits.data + (size_t)row * bytes, 0, bytes);
}

_Static_assert(MAX_VOCABULARY * sizeof(REAL) <= POOL_SCRATCH_BYTES || REAL_BITS == 64,
               "a row of logits has room; doubles never need it");

/* In the row of dlogits, which may be that of the logits: a logit is read before it is written. */
static Kept kept_of(const Job *job, int64_t row, int worker) {
    const Tensor dlogits = job->a->dlogits;
    int64_t count = dlogits.dim[1];
    if (dlogits.type == REAL_TYPE) return (Kept){dlogits, row * count};
    MUST(job->pool != NULL);
    void *scratch = pool_scratch(job->pool, worker, count * (int64_t)sizeof(REAL));
    return (Kept){tensor_at(scratch, REAL_TYPE, DIM(count)), 0};
}

/* loss += lse - logits[target],  dlogits = (exp(logits - lse) - onehot(target)) / trained;  rows without target: 0 */
static void loss_rows(void *context, int64_t index, int worker) {
    Job *job = context;
    const CrossEntropyArgs *a = job->a;
    int64_t vocabulary = a->logits.dim[1], end = min64((index + 1) * job->rows, a->logits.dim[0]);
    bool gradient = !tensor_none(a->dlogits);
    double loss = 0;
    for (int64_t row = index * job->rows; row < end; row++) {
        int64_t target = ((const int32_t *)a->target.data)[row];
        MUST(target < vocabulary);
        if (target < 0) {
            if (gradient) write_zeros(a->dlogits, row);
            continue;
        }
        double at_target = (double)value_get(a->logits, row * vocabulary + target); /* dlogits may be the logits */
        REAL most = largest_of(a->logits, row * vocabulary, vocabulary);
        Kept kept = gradient ? kept_of(job, row, worker) : (Kept){0};
        double sum = sum_of(a->logits, row * vocabulary, vocabulary, most, kept);
        loss += (double)most - at_target + log(sum);
        if (!gradient) continue;
        if (job->per_token == 0)
            write_zeros(a->dlogits, row);
        else
            scale_kept(a, row, target, kept, sum, job->per_token);
    }
    job->loss[index] = loss;
}

void KERNEL(cross_entropy)(Stream *s, const void *args) {
    const CrossEntropyArgs *a = args;
    int64_t rows = a->logits.dim[0];
    Job job = {.a = a, .pool = stream_pool(s), .rows = ceil_div(rows, PARTS)};
    if (!tensor_none(a->dlogits)) job.per_token = per_token_of(a->trained);
    double loss = 0;
    int64_t tasks = ceil_div(rows, max64(1, job.rows));
    parallel(job.pool, tasks, loss_rows, &job);
    for (int64_t i = 0; i < tasks; i++) loss += job.loss[i];
    *(double *)a->loss.data += loss;
}

/* ---- A vocabulary in parts -------------------------------------------------------------------- */

/* What is subtracted before exp: the largest, unless there is none or all are -infinity. */
static REAL base_of(REAL largest) {
    return largest == -(REAL)INFINITY ? 0 : largest;
}

static int32_t target_of(const CrossEntropyArgs *a, int64_t row) {
    return ((const int32_t *)a->target.data)[row];
}

/* Which of the part's logits is the row's target; -1: none of them. */
static int64_t target_here(const CrossEntropyArgs *a, int64_t row) {
    int64_t here = target_of(a, row) - a->first;
    return here >= 0 && here < a->logits.dim[1] ? here : -1;
}

static void run_rows(Stream *s, const CrossEntropyArgs *a, int64_t rows, double per_token, PoolTask task) {
    Job job = {.a = a, .rows = ceil_div(rows, PARTS), .per_token = per_token};
    parallel(stream_pool(s), ceil_div(rows, max64(1, job.rows)), task, &job);
}

static void part_rows(void *context, int64_t index, int worker) {
    (void)worker;
    const Job *job = context;
    const CrossEntropyArgs *a = job->a;
    int64_t part = a->logits.dim[1], end = min64((index + 1) * job->rows, a->logits.dim[0]);
    for (int64_t row = index * job->rows; row < end; row++) {
        REAL *stats = (REAL *)a->stats.data + row * LOSS_STATS;
        int64_t target = target_here(a, row);
        REAL most = largest_of(a->logits, row * part, part);
        stats[LOSS_LARGEST] = most;
        stats[LOSS_SUM] = (REAL)sum_of(a->logits, row * part, part, base_of(most), (Kept){0});
        stats[LOSS_TARGET] = target < 0 ? -(REAL)INFINITY : value_get(a->logits, row * part + target);
    }
}

void KERNEL(cross_entropy_part)(Stream *s, const void *args) {
    const CrossEntropyArgs *a = args;
    run_rows(s, a, a->logits.dim[0], 0, part_rows);
}

/* sum = sum_p sum_p exp(largest_p - largest) */
static void join_rows(void *context, int64_t index, int worker) {
    (void)worker;
    const Job *job = context;
    const CrossEntropyArgs *a = job->a;
    int64_t parts = a->logits.dim[0], rows = a->logits.dim[1], end = min64((index + 1) * job->rows, rows);
    for (int64_t row = index * job->rows; row < end; row++) {
        const REAL *x = (const REAL *)a->logits.data + row * LOSS_STATS;
        REAL *stats = (REAL *)a->stats.data + row * LOSS_STATS, most = x[LOSS_LARGEST], at_target = x[LOSS_TARGET];
        for (int64_t p = 1; p < parts; p++) {
            const REAL *of = x + p * rows * LOSS_STATS;
            most = of[LOSS_LARGEST] > most ? of[LOSS_LARGEST] : most;
            at_target = of[LOSS_TARGET] > at_target ? of[LOSS_TARGET] : at_target;
        }
        double sum = 0;
        for (int64_t p = 0; p < parts; p++) {
            const REAL *of = x + p * rows * LOSS_STATS;
            sum += (double)of[LOSS_SUM] * exp((double)(of[LOSS_LARGEST] - base_of(most)));
        }
        stats[LOSS_LARGEST] = most;
        stats[LOSS_SUM] = (REAL)sum;
        stats[LOSS_TARGET] = at_target;
    }
}

void KERNEL(cross_entropy_join)(Stream *s, const void *args) {
    const CrossEntropyArgs *a = args;
    run_rows(s, a, a->logits.dim[1], 0, join_rows);
}

static void sum_of_rows(void *context, int64_t index, int worker) {
    (void)worker;
    Job *job = context;
    const CrossEntropyArgs *a = job->a;
    int64_t end = min64((index + 1) * job->rows, a->stats.dim[0]);
    double loss = 0;
    for (int64_t row = index * job->rows; row < end; row++) {
        const REAL *stats = (const REAL *)a->stats.data + row * LOSS_STATS;
        if (target_of(a, row) < 0) continue;
        loss += (double)stats[LOSS_LARGEST] - (double)stats[LOSS_TARGET] + log((double)stats[LOSS_SUM]);
    }
    job->loss[index] = loss;
}

void KERNEL(cross_entropy_sum)(Stream *s, const void *args) {
    const CrossEntropyArgs *a = args;
    int64_t rows = a->stats.dim[0];
    Job job = {.a = a, .rows = ceil_div(rows, PARTS)};
    int64_t tasks = ceil_div(rows, max64(1, job.rows));
    parallel(stream_pool(s), tasks, sum_of_rows, &job);
    double loss = 0;
    for (int64_t i = 0; i < tasks; i++) loss += job.loss[i];
    *(double *)a->loss.data += loss;
}

INLINE void gradient_vectors(const CrossEntropyArgs *a, int64_t i, int64_t left, REAL most, REAL factor, int vectors) {
    Vector x[GROUP];
    exps_vectors(x, a->logits, i, left, most, vectors);
    UNROLLED for (int v = 0; v < vectors; v++) vector_put(a->dlogits, i + v * LANES, left - v * LANES, x[v] * factor);
}

/* `target`: which of the row's logits it is; -1: none of them */
static void write_gradient(const CrossEntropyArgs *a, int64_t row, int64_t target, REAL most, double sum,
                           double per_token) {
    int64_t count = a->logits.dim[1], i = row * count, end = i + count, at = i + target;
    REAL factor = (REAL)(per_token / sum), at_target = target < 0 ? 0 : value_get(a->logits, at) - most;
    for (; i + GROUP * LANES <= end; i += GROUP * LANES) gradient_vectors(a, i, GROUP * LANES, most, factor, GROUP);
    for (; i < end; i += LANES) gradient_vectors(a, i, end - i, most, factor, 1);
    if (target >= 0) value_put(a->dlogits, at, (REAL)((exp((double)at_target) / sum - 1) * per_token));
}

/* dlogits = (exp(logits - largest) / sum - onehot(target)) / trained;  rows without target: 0 */
static void gradient_rows(void *context, int64_t index, int worker) {
    (void)worker;
    const Job *job = context;
    const CrossEntropyArgs *a = job->a;
    int64_t end = min64((index + 1) * job->rows, a->logits.dim[0]);
    for (int64_t row = index * job->rows; row < end; row++) {
        const REAL *stats = (const REAL *)a->stats.data + row * LOSS_STATS;
        if (target_of(a, row) < 0 || job->per_token == 0)
            write_zeros(a->dlogits, row);
        else
            write_gradient(a, row, target_here(a, row), stats[LOSS_LARGEST], (double)stats[LOSS_SUM], job->per_token);
    }
}

void KERNEL(cross_entropy_gradient)(Stream *s, const void *args) {
    const CrossEntropyArgs *a = args;
    run_rows(s, a, a->logits.dim[0], per_token_of(a->trained), gradient_rows);
}
