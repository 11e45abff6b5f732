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

static void write_gradient(const CrossEntropyArgs *a, int64_t row, int64_t target, REAL most, double sum,
                           double per_token) {
    const Tensor logits = a->logits, dlogits = a->dlogits;
    int64_t count = logits.dim[1], first = row * count;
    REAL factor = (REAL)(per_token / sum), at_target = value_get(logits, first + target) - most;
    for (int64_t i = 0; i < count; i += LANES) {
        Vector p = vector_exp(vector_get(logits, first + i, count - i) - most);
        vector_put(dlogits, first + i, count - i, p * factor);
    }
    value_put(dlogits, first + target, (REAL)((exp((double)at_target) / sum - 1) * per_token));
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
    double trained = tensor_none(a->dlogits) ? 0 : *(const double *)a->trained.data, loss = 0;
    job.per_token = trained == 0 ? 0 : 1 / trained;
    int64_t tasks = ceil_div(rows, max64(1, job.rows));
    parallel(stream_pool(s), tasks, loss_rows, &job);
    for (int64_t i = 0; i < tasks; i++) loss += job.loss[i];
    *(double *)a->loss.data += loss;
}
