/* Cross entropy: a row of logits is read three times (largest, sum, gradient), after the first from the cache. */
#include "ops/cpu/fast/fast.h"

enum {
    PARTS = 256,  /* at most so many tasks: their losses are added in order */
    PIECE = 1024, /* logits of the inner sum */
};

typedef struct {
    const CrossEntropyArgs *a;
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

/* sum exp(logit - most), by pieces */
static double sum_of(Tensor logits, int64_t first, int64_t count, REAL most) {
    const Vector nothing = vector_all(-(REAL)INFINITY);
    double total = 0;
    for (int64_t piece = 0; piece < count; piece += PIECE) {
        int64_t end = min64(piece + PIECE, count);
        Vector sum = {0};
        for (int64_t i = piece; i < end; i += LANES)
            sum += vector_exp(vector_get_or(logits, first + i, end - i, nothing) - most);
        total += (double)vector_sum(sum);
    }
    return total;
}

/* `target`: which of the row's logits it is; -1: none of them */
static void write_gradient(const CrossEntropyArgs *a, int64_t row, int64_t target, REAL most, double sum,
                           double per_token) {
    const Tensor logits = a->logits, dlogits = a->dlogits;
    int64_t count = logits.dim[1], first = row * count;
    REAL factor = (REAL)(per_token / sum), at_target = target < 0 ? 0 : value_get(logits, first + target) - most;
    for (int64_t i = 0; i < count; i += LANES) {
        Vector p = vector_exp(vector_get(logits, first + i, count - i) - most);
        vector_put(dlogits, first + i, count - i, p * factor);
    }
    if (target >= 0) value_put(dlogits, first + target, (REAL)((exp((double)at_target) / sum - 1) * per_token));
}

static void write_zeros(Tensor dlogits, int64_t row) {
    size_t bytes = (size_t)dlogits.dim[1] * type_bytes(dlogits.type);
    memset((char *)dlogits.data + (size_t)row * bytes, 0, bytes);
}

/* loss += lse - logits[target],  dlogits = (exp(logits - lse) - onehot(target)) / trained;  rows without target: 0 */
static void loss_rows(void *context, int64_t index, int worker) {
    (void)worker;
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
        REAL most = largest_of(a->logits, row * vocabulary, vocabulary);
        double sum = sum_of(a->logits, row * vocabulary, vocabulary, most);
        loss += (double)most + log(sum) - (double)value_get(a->logits, row * vocabulary + target);
        if (!gradient) continue;
        if (job->per_token == 0)
            write_zeros(a->dlogits, row);
        else
            write_gradient(a, row, target, most, sum, job->per_token);
    }
    job->loss[index] = loss;
}

void KERNEL(cross_entropy)(Stream *s, const void *args) {
    const CrossEntropyArgs *a = args;
    int64_t rows = a->logits.dim[0];
    Job job = {.a = a, .rows = ceil_div(rows, PARTS)};
    if (!tensor_none(a->dlogits)) job.per_token = per_token_of(a->trained);
    double loss = 0;
    int64_t tasks = ceil_div(rows, max64(1, job.rows));
    parallel(stream_pool(s), tasks, loss_rows, &job);
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
        stats[LOSS_SUM] = (REAL)sum_of(a->logits, row * part, part, base_of(most));
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
        loss += (double)stats[LOSS_LARGEST] + log((double)stats[LOSS_SUM]) - (double)stats[LOSS_TARGET];
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
