/* The products of the model, dense and of experts, in three directions that are one code (gemm.h):
 *
 *   linear      y [m,n]  =  x [m,k]    w [n,k]^T
 *   linear_dx   dx [m,k] =  dy [m,n]   w [n,k]
 *   linear_dw   dw [n,k] += dy^T [n,m] x [m,k]
 *
 * A dense product is one expert with all the rows. Results are cut into tiles, the pool hands them out, and each is a
 * product on one thread, which packs for itself: tiles are so large that packing shared between threads would gain
 * little, and no thread ever waits for another. How results are cut changes no sum. */
#include "ops/cpu/fast/gemm.h"

typedef struct {
    int64_t expert, first, rows; /* rows of x and dy */
} Slice;

typedef Product (*Direction)(const LinearArgs *args, Slice s);

static Operand operand_of(Tensor t, int64_t offset) {
    return (Operand){(const char *)t.data + (size_t)offset * type_bytes(t.type), t.type, row_width(t), 1};
}

static Result result_of(Tensor t, int64_t offset, bool add) {
    return (Result){(char *)t.data + (size_t)offset * type_bytes(t.type), t.type, row_width(t), 1, add};
}

static int64_t rows_offset(Tensor t, Slice s) {
    return s.first * row_width(t);
}

static int64_t weight_offset(Tensor w, Slice s) {
    return s.expert * w.dim[w.dims - 2] * row_width(w);
}

static Product forward(const LinearArgs *args, Slice s) {
    Tensor y = args->out, x = args->left, w = args->right;
    return (Product){.c = result_of(y, rows_offset(y, s), false),
                     .a = operand_of(x, rows_offset(x, s)),
                     .b = operand_transposed(operand_of(w, weight_offset(w, s))),
                     .m = s.rows,
                     .n = row_width(y),
                     .k = row_width(x)};
}

static Product backward_dx(const LinearArgs *args, Slice s) {
    Tensor dx = args->out, dy = args->left, w = args->right;
    return (Product){.c = result_of(dx, rows_offset(dx, s), args->add),
                     .a = operand_of(dy, rows_offset(dy, s)),
                     .b = operand_of(w, weight_offset(w, s)),
                     .m = s.rows,
                     .n = row_width(dx),
                     .k = row_width(dy)};
}

static Product backward_dw(const LinearArgs *args, Slice s) {
    Tensor dw = args->out, dy = args->left, x = args->right;
    return (Product){.c = result_of(dw, weight_offset(dw, s), true),
                     .a = operand_transposed(operand_of(dy, rows_offset(dy, s))),
                     .b = operand_of(x, rows_offset(x, s)),
                     .m = row_width(dy),
                     .n = row_width(x),
                     .k = s.rows};
}

/* ---- Tiles ------------------------------------------------------------------------------------ */

enum {
    TILES_PER_THREAD = 4, /* so that threads end together, where that costs little packing */
    ROWS_MOST = 2048,
    SIDE_GOOD = 256,  /* a tile of such sides packs a tenth as long as it multiplies */
    SIDE_LEAST = 128, /* less would spend its time packing */
};

typedef struct {
    const LinearArgs *args;
    Direction direction;
    int64_t experts;
    int64_t rows, columns; /* of a tile, at most */
    Pool *pool;
} Job;

static int64_t expert_rows(const Job *job, int64_t expert) {
    return job->args->rows == NULL ? job->args->left.dim[0] : job->args->rows[expert];
}

static Product expert_product(const Job *job, int64_t expert, int64_t first) {
    Slice s = {expert, first, expert_rows(job, expert)};
    return KERNEL(gemm_turn)(job->direction(job->args, s));
}

static int64_t tile_columns(const Job *job, const Product *p) {
    return min64(job->columns, block_columns(p->k));
}

static int64_t product_tiles(const Job *job, const Product *p) {
    if (p->k == 0 && p->c.add) return 0;
    return ceil_div(p->m, job->rows) * ceil_div(p->n, tile_columns(job, p));
}

static int64_t job_tiles(const Job *job) {
    int64_t tiles = 0;
    for (int64_t e = 0; e < job->experts; e++) {
        Product p = expert_product(job, e, 0);
        tiles += product_tiles(job, &p);
    }
    return tiles;
}

/* Halves the longer side, down to `least`; false when both are there. */
static bool job_cut(Job *job, int64_t least) {
    int64_t *side = job->rows > job->columns ? &job->rows : &job->columns;
    if (*side <= least) return false;
    *side /= 2;
    return true;
}

/* Each tile packs its operands again: as many tiles as threads in any case, more of them only while they are large. */
static void job_split(Job *job) {
    const int threads = pool_threads(job->pool);
    job->rows = threads == 1 ? INT32_MAX : ROWS_MOST;
    job->columns = GEMM_COLUMNS_MOST;
    if (threads == 1) return;
    while (job_tiles(job) < TILES_PER_THREAD * threads && job_cut(job, SIDE_GOOD)) {}
    while (job_tiles(job) < threads && job_cut(job, SIDE_LEAST)) {}
}

static void tile_task(void *context, int64_t index, int worker) {
    const Job *job = context;
    int64_t first = 0, expert = 0;
    Product p = expert_product(job, 0, 0);
    for (int64_t tiles; index >= (tiles = product_tiles(job, &p)); p = expert_product(job, expert, first)) {
        index -= tiles;
        first += expert_rows(job, expert++);
    }
    int64_t columns = tile_columns(job, &p), across = ceil_div(p.n, columns);
    int64_t i = index / across * job->rows, j = index % across * columns;
    Product tile = product_part(&p, i, j, 0, min64(job->rows, p.m - i), min64(columns, p.n - j), p.k);
    KERNEL(gemm)(&tile, pool_scratch(job->pool, worker, GEMM_SCRATCH * (int64_t)sizeof(REAL)));
}

static void linear_run(Stream *s, const LinearArgs *args, Direction direction, Tensor weights) {
    MUST(type_fast(args->out.type) && type_fast(args->left.type) && type_fast(args->right.type));
    Job job = {.args = args,
               .direction = direction,
               .experts = weights.dims == 3 ? weights.dim[0] : 1,
               .pool = stream_pool(s)};
    MUST(job.pool != NULL); /* products run on the compute stream */
    job_split(&job);
    pool_run(job.pool, job_tiles(&job), tile_task, &job);
}

/* ---- Kernels ---------------------------------------------------------------------------------- */

void KERNEL(linear)(Stream *s, const void *args) {
    const LinearArgs *a = args;
    linear_run(s, a, forward, a->right);
}

void KERNEL(linear_dx)(Stream *s, const void *args) {
    const LinearArgs *a = args;
    linear_run(s, a, backward_dx, a->right);
}

void KERNEL(linear_dw)(Stream *s, const void *args) {
    const LinearArgs *a = args;
    linear_run(s, a, backward_dw, a->out);
}
