/* RMSNorm: row by row, a row twice, the second time from the cache. dw sums over rows: each task of some rows
 * leaves its sums in a row of its own in worker 0's scratch, and these are added in their order, so that dw does
 * not depend on the pool. */
#include "ops/cpu/fast/fast.h"

enum {
    ROWS = 8,            /* of a task */
    PARTS = 256,         /* at most so many tasks of the backward, fewer when their sums do not fit into the scratch */
    COLUMNS = 4 * LANES, /* of a task that adds the parts */
    CHAINS = 4,          /* sums along a row that do not wait for one another */
};

/* ---- Forward ---------------------------------------------------------------------------------- */

static REAL chains_sum(const Vector *sum) {
    return vector_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

/* sum x^2 of a row */
static REAL row_squares(Tensor x, int64_t first, int64_t width) {
    enum { STEP = CHAINS * LANES };
    Vector sum[CHAINS] = {{0}};
    int64_t i = first, end = first + width;
    for (; i + STEP <= end; i += STEP) {
        UNROLLED for (int v = 0; v < CHAINS; v++) {
            Vector a = vector_get(x, i + v * LANES, LANES);
            sum[v] += a * a;
        }
    }
    for (; i < end; i += LANES) {
        Vector a = vector_get(x, i, end - i);
        sum[0] += a * a;
    }
    return chains_sum(sum);
}

/* y = round(x inverse) w,  inverse = 1 / sqrt(mean(x^2) + epsilon) */
static void norm_rows(void *context, int64_t index, int worker) {
    (void)worker;
    const NormArgs *a = context;
    const Tensor y = a->y, x = a->x, w = a->w;
    int64_t width = x.dim[1];
    for (int64_t row = index * ROWS; row < min64((index + 1) * ROWS, x.dim[0]); row++) {
        int64_t first = row * width;
        REAL inverse = (REAL)(1 / sqrt((double)row_squares(x, first, width) / (double)width + a->epsilon));
        value_put(a->inverse, row, inverse);
        for (int64_t i = 0; i < width; i += LANES) {
            int64_t left = width - i;
            Vector normal = vector_rounded(y.type, vector_get(x, first + i, left) * inverse);
            vector_put(y, first + i, left, normal * vector_get(w, i, left));
        }
    }
}

void KERNEL(rms_norm)(Stream *s, const void *args) {
    const NormArgs *a = args;
    parallel(stream_pool(s), ceil_div(a->x.dim[0], ROWS), norm_rows, (void *)args);
}

/* ---- Backward --------------------------------------------------------------------------------- */

typedef struct {
    const NormArgs *a;
    int64_t rows, parts; /* rows of a part */
    Tensor sums;         /* [parts, H] */
} Backward;

/* sum dy w x of a row */
static REAL row_dot(const NormArgs *a, int64_t first, int64_t width) {
    enum { STEP = CHAINS * LANES };
    const Tensor dy = a->dy, x = a->x, w = a->w;
    Vector sum[CHAINS] = {{0}};
    int64_t i = 0;
    for (; i + STEP <= width; i += STEP) {
        UNROLLED for (int v = 0; v < CHAINS; v++) {
            int64_t at = i + v * LANES;
            sum[v] += vector_get(dy, first + at, LANES) * vector_get(w, at, LANES) * vector_get(x, first + at, LANES);
        }
    }
    for (; i < width; i += LANES) {
        int64_t left = width - i;
        sum[0] += vector_get(dy, first + i, left) * vector_get(w, i, left) * vector_get(x, first + i, left);
    }
    return chains_sum(sum);
}

/* dx (+)= inverse (dy w - xhat mean(dy w xhat)),  sums += dy xhat;  xhat = x inverse */
static void backward_row(const NormArgs *a, Tensor sums, int64_t part, int64_t row) {
    const Tensor dx = a->dx, dy = a->dy, x = a->x, w = a->w;
    int64_t width = x.dim[1], first = row * width;
    REAL inverse = value_get(a->inverse, row);
    REAL mean = row_dot(a, first, width) * inverse / (REAL)width;
    for (int64_t i = 0; i < width; i += LANES) {
        int64_t left = width - i;
        Vector d = vector_get(dy, first + i, left), normal = vector_get(x, first + i, left) * inverse;
        Vector sum = vector_get(sums, part * width + i, left) + d * normal;
        Vector gradient = inverse * (d * vector_get(w, i, left) - normal * mean);
        if (a->add) gradient += vector_get(dx, first + i, left);
        vector_put(sums, part * width + i, left, sum);
        vector_put(dx, first + i, left, gradient);
    }
}

static void backward_part(void *context, int64_t part, int worker) {
    (void)worker;
    const Backward *b = context;
    int64_t width = b->a->x.dim[1], end = min64((part + 1) * b->rows, b->a->x.dim[0]);
    memset((REAL *)b->sums.data + part * width, 0, (size_t)width * sizeof(REAL));
    for (int64_t row = part * b->rows; row < end; row++) backward_row(b->a, b->sums, part, row);
}

/* dw += the parts, in their order */
static void add_parts(void *context, int64_t index, int worker) {
    (void)worker;
    const Backward *b = context;
    int64_t width = b->a->x.dim[1];
    for (int64_t i = index * COLUMNS; i < min64((index + 1) * COLUMNS, width); i += LANES) {
        Vector sum = {0};
        for (int64_t part = 0; part < b->parts; part++) sum += vector_get(b->sums, part * width + i, width - i);
        vector_put(b->a->dw, i, width - i, vector_get(b->a->dw, i, width - i) + sum);
    }
}

void KERNEL(rms_norm_backward)(Stream *s, const void *args) {
    const NormArgs *a = args;
    Pool *pool = stream_pool(s);
    MUST(pool != NULL);
    int64_t width = a->x.dim[1], row_bytes = max64(1, width) * (int64_t)sizeof(REAL);
    int64_t most = min64(PARTS, POOL_SCRATCH_BYTES / row_bytes);
    MUST(most > 0);
    Backward b = {.a = a, .rows = max64(ROWS, ceil_div(a->x.dim[0], most))};
    b.parts = ceil_div(a->x.dim[0], b.rows);
    b.sums = tensor_at(pool_scratch(pool, 0, b.parts * row_bytes), REAL_TYPE, DIM(b.parts, width));
    pool_run(pool, b.parts, backward_part, &b);
    pool_run(pool, ceil_div(width, COLUMNS), add_parts, &b);
}
