/* What cuBLASLt reaches: the three products of a linear (forward, and backward to the input and to the weight), for a
 * large square, for the shapes of known models, and one call an expert for experts of few to many tokens. Every form
 * in every type is first compared with the definition on a small case. Letters: m tokens, n outputs, k inputs. */
#include "plan/cuda/doctor_gpu_parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- One product ------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    cudaDataType_t data, sum, scalar;
    cublasComputeType_t compute;
    Type type, sum_type;
} numbers_rows[NUMBERS_COUNT] = {
    [NUMBERS_BF16] = {"bf16", CUDA_R_16BF, CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F, BF16, FP32},
    [NUMBERS_TF32] = {"tf32", CUDA_R_32F, CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F_FAST_TF32, FP32, FP32},
    [NUMBERS_FP32] = {"fp32", CUDA_R_32F, CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F, FP32, FP32},
    [NUMBERS_FP64] = {"fp64", CUDA_R_64F, CUDA_R_64F, CUDA_R_64F, CUBLAS_COMPUTE_64F, FP64, FP64},
};

/* A row-major matrix [r, c] is to cuBLAS one of r columns, each of c numbers: [c, r]. So the product that it makes is
 * the transposed one, out^T = op(left) op(right):
 *     y^T = w x^T     y [m,n] is [n,m] to it, w [n,k] is [k,n] and turned, x [m,k] is [k,m]
 *     dx^T = w^T dy^T
 *     dw^T = x^T dy   dy is turned */
typedef struct {
    int64_t rows, columns; /* as stored, column by column; the leading dimension is `rows` */
    cublasOperation_t turned;
} Side;

static void sides_of(ProductKind kind, int64_t m, int64_t n, int64_t k, Side *left, Side *right, Side *out) {
    const Side w = {k, n, CUBLAS_OP_N}, x = {k, m, CUBLAS_OP_N}, y = {n, m, CUBLAS_OP_N};
    const Side sides[PRODUCT_COUNT][3] = {
        [PRODUCT_FORWARD] = {w, x, y}, [PRODUCT_DX] = {w, y, x}, [PRODUCT_DW] = {x, y, w}};
    *left = sides[kind][0], *right = sides[kind][1], *out = sides[kind][2];
    if (kind == PRODUCT_FORWARD) left->turned = CUBLAS_OP_T;
    if (kind == PRODUCT_DW) right->turned = CUBLAS_OP_T;
}

static bool describe(Gpu *g, Product *p, const Side *left, const Side *right, const Side *out) {
    const Cublas *c = &g->device->cuda->blas;
    const Device *d = g->device;
    Error *e = &g->error;
    const char *doing = "describing a product";
    cudaDataType_t data = numbers_rows[p->numbers].data,
                   result = p->kind == PRODUCT_DW ? numbers_rows[p->numbers].sum : data;
    int32_t left_turned = left->turned, right_turned = right->turned;
    return CUBLAS(d, e, doing,
                  c->cublasLtMatmulDescCreate(&p->how, numbers_rows[p->numbers].compute,
                                              numbers_rows[p->numbers].scalar)) &&
           CUBLAS(d, e, doing,
                  c->cublasLtMatmulDescSetAttribute(p->how, CUBLASLT_MATMUL_DESC_TRANSA, &left_turned,
                                                    sizeof left_turned)) &&
           CUBLAS(d, e, doing,
                  c->cublasLtMatmulDescSetAttribute(p->how, CUBLASLT_MATMUL_DESC_TRANSB, &right_turned,
                                                    sizeof right_turned)) &&
           CUBLAS(d, e, doing,
                  c->cublasLtMatrixLayoutCreate(&p->left, data, (uint64_t)left->rows, (uint64_t)left->columns,
                                                left->rows)) &&
           CUBLAS(d, e, doing,
                  c->cublasLtMatrixLayoutCreate(&p->right, data, (uint64_t)right->rows, (uint64_t)right->columns,
                                                right->rows)) &&
           CUBLAS(
               d, e, doing,
               c->cublasLtMatrixLayoutCreate(&p->out, result, (uint64_t)out->rows, (uint64_t)out->columns, out->rows));
}

/* The first of the algorithms that cuBLASLt would try, with the scratch that there is; tensors are aligned to 64
 * bytes. */
static bool choose(Gpu *g, Product *p) {
    static const cublasLtMatmulPreferenceAttributes_t alignments[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    const Cublas *c = &g->device->cuda->blas;
    const Device *d = g->device;
    const char *doing = "choosing how to multiply";
    uint64_t scratch = tensor_bytes(g->workspace);
    uint32_t alignment = 64;
    cublasLtMatmulPreference_t wish = NULL;
    cublasLtMatmulHeuristicResult_t found = {0};
    int count = 0;
    bool ok = CUBLAS(d, &g->error, doing, c->cublasLtMatmulPreferenceCreate(&wish)) &&
              CUBLAS(d, &g->error, doing,
                     c->cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &scratch,
                                                             sizeof scratch));
    for (size_t i = 0; ok && i < COUNT(alignments); i++)
        ok = CUBLAS(d, &g->error, doing,
                    c->cublasLtMatmulPreferenceSetAttribute(wish, alignments[i], &alignment, sizeof alignment));
    ok = ok && CUBLAS(d, &g->error, doing,
                      c->cublasLtMatmulAlgoGetHeuristic(d->cuda->blas_handle, p->how, p->left, p->right, p->out, p->out,
                                                        wish, 1, &found, &count));
    ok = ok && (count > 0 || fail(&g->error, EXIT_USAGE, "cuBLASLt has no way to multiply in %s; device %s",
                                  numbers_rows[p->numbers].name, d->name));
    if (wish) c->cublasLtMatmulPreferenceDestroy(wish);
    p->algorithm = found.algo;
    return ok;
}

bool product_open(Gpu *g, Product *p, ProductKind kind, Numbers numbers, int64_t m, int64_t n, int64_t k) {
    Side left, right, out;
    *p = (Product){.kind = kind, .numbers = numbers};
    sides_of(kind, m, n, k, &left, &right, &out);
    if (describe(g, p, &left, &right, &out) && choose(g, p)) return true;
    product_close(g, p);
    return false;
}

void product_close(Gpu *g, Product *p) {
    const Cublas *c = &g->device->cuda->blas;
    if (p->how) c->cublasLtMatmulDescDestroy(p->how);
    if (p->left) c->cublasLtMatrixLayoutDestroy(p->left);
    if (p->right) c->cublasLtMatrixLayoutDestroy(p->right);
    if (p->out) c->cublasLtMatrixLayoutDestroy(p->out);
    *p = (Product){0};
}

void product_run(Gpu *g, const Product *p, void *out, const void *first, const void *second) {
    static const float one = 1, zero = 0;
    static const double one_double = 1, zero_double = 0;
    const Cublas *c = &g->device->cuda->blas;
    bool wide = p->numbers == NUMBERS_FP64, add = p->kind == PRODUCT_DW;
    const void *alpha = wide ? (const void *)&one_double : &one;
    const void *nothing = wide ? (const void *)&zero_double : &zero;
    /* left is w, w, x: the second of (x, w), (dy, w) and (dy, x) */
    Error e = {0};
    if (!CUBLAS(g->device, &e, "a matrix product",
                c->cublasLtMatmul(g->device->cuda->blas_handle, p->how, alpha, second, p->left, first, p->right,
                                  add ? alpha : nothing, out, p->out, out, p->out, &p->algorithm, g->workspace.data,
                                  tensor_bytes(g->workspace), gpu_stream(g->compute))))
        device_fail(g->device, &e);
}

/* ---- A linear ------------------------------------------------------------------------------------------ */

/* `experts` of them, each with m tokens; one for a dense one. */
typedef struct {
    Gpu *gpu;
    int64_t experts, m, n, k;
    Product product[PRODUCT_COUNT];
    Tensor x, w, y, dx, dw; /* y is dy, too */
} Linear;

static double bytes_of(Numbers numbers, int64_t experts, int64_t m, int64_t n, int64_t k) {
    double each = (double)type_bytes(numbers_rows[numbers].type),
           sum = (double)type_bytes(numbers_rows[numbers].sum_type);
    return (double)experts * ((double)m * (2 * (double)k + (double)n) * each + (double)n * (double)k * (each + sum)) +
           4096;
}

static bool linear_open(Gpu *g, Linear *l, Numbers numbers, int64_t experts, int64_t m, int64_t n, int64_t k) {
    *l = (Linear){.gpu = g, .experts = experts, .m = m, .n = n, .k = k};
    for (int i = 0; i < PRODUCT_COUNT; i++)
        if (!product_open(g, &l->product[i], (ProductKind)i, numbers, m, n, k)) return false;
    Type type = numbers_rows[numbers].type;
    l->x = gpu_random(g, type, DIM(experts, m, k));
    l->w = gpu_random(g, type, DIM(experts, n, k));
    l->y = gpu_random(g, type, DIM(experts, m, n));
    l->dx = gpu_random(g, type, DIM(experts, m, k));
    l->dw = gpu_random(g, numbers_rows[numbers].sum_type, DIM(experts, n, k));
    return !gpu_failed(g);
}

static void linear_close(Linear *l) {
    for (int i = 0; i < PRODUCT_COUNT; i++) product_close(l->gpu, &l->product[i]);
}

static void linear_once(void *context) {
    Linear *l = context;
    for (int64_t i = 0; i < l->experts; i++) {
        void *x = tensor_rows(l->x, i, 1).data, *w = tensor_rows(l->w, i, 1).data, *y = tensor_rows(l->y, i, 1).data;
        product_run(l->gpu, &l->product[PRODUCT_FORWARD], y, x, w);
        product_run(l->gpu, &l->product[PRODUCT_DX], tensor_rows(l->dx, i, 1).data, y, w);
        product_run(l->gpu, &l->product[PRODUCT_DW], tensor_rows(l->dw, i, 1).data, y, x);
    }
}

static bool measure(Gpu *g, const char *key, Numbers numbers, int64_t experts, int64_t m, int64_t n, int64_t k) {
    Mark mark = arena_mark(&g->memory);
    Linear l;
    if (!gpu_may(g, key, bytes_of(numbers, experts, m, n, k))) return true;
    bool ok = linear_open(g, &l, numbers, experts, m, n, k) &&
              gpu_rate(g, key, 6 * (double)experts * (double)m * (double)n * (double)k, linear_once, &l);
    if (ok) gpu_check_finite(g, key, l.y);
    if (ok) gpu_check_finite(g, key, l.dx);
    linear_close(&l);
    arena_reset(&g->memory, mark);
    return ok && !gpu_failed(g);
}

/* ---- Against the definition ----------------------------------------------------------------------------- */

enum { CHECK_M = 96, CHECK_N = 80, CHECK_K = 64 };

static double *host_numbers(Gpu *g, Tensor t) {
    int64_t count = tensor_count(t);
    void *raw = malloc(tensor_bytes(t));
    double *out = malloc((size_t)count * sizeof *out);
    MUST(raw && out);
    device_read(g->compute, raw, t, READ_LOSS);
    Tensor host = tensor_at(raw, t.type, DIM(count));
    for (int64_t i = 0; i < count; i++) out[i] = tensor_get(host, i);
    free(raw);
    return out;
}

/* sum_i a[i a_step] b[i b_step] */
static double dot(const double *a, int64_t a_step, const double *b, int64_t b_step, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++) sum += a[i * a_step] * b[i * b_step];
    return sum;
}

/* The largest difference, of numbers that are about sqrt(count) / 3. */
static double difference(const double *got, const double *before, int64_t rows, int64_t columns, const double *a,
                         int64_t a_row, int64_t a_step, const double *b, int64_t b_row, int64_t b_step, int64_t count) {
    double most = 0;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) {
            double expected = dot(a + r * a_row, a_step, b + c * b_row, b_step, count);
            if (before) expected += before[r * columns + c];
            double far = fabs(got[r * columns + c] - expected) / sqrt((double)count);
            most = far >= most ? far : most; /* a NaN is found by its own check */
        }
    return most;
}

static bool check(Gpu *g, Numbers numbers) {
    static const double bounds[NUMBERS_COUNT] = {[NUMBERS_BF16] = 2e-2, /* of results of up to 3, rounded to 8 bits */
                                                 [NUMBERS_TF32] = 4e-3,
                                                 [NUMBERS_FP32] = 1e-5,
                                                 [NUMBERS_FP64] = 1e-13};
    enum { M = CHECK_M, N = CHECK_N, K = CHECK_K };
    Mark mark = arena_mark(&g->memory);
    Linear l;
    if (!gpu_may(g, "checking products", bytes_of(numbers, 1, M, N, K))) return true;
    if (!linear_open(g, &l, numbers, 1, M, N, K)) {
        linear_close(&l);
        return false;
    }
    double *x = host_numbers(g, l.x), *w = host_numbers(g, l.w), *before = host_numbers(g, l.dw);
    linear_once(&l);
    double *y = host_numbers(g, l.y), *dx = host_numbers(g, l.dx), *dw = host_numbers(g, l.dw);
    double far[PRODUCT_COUNT] = {
        [PRODUCT_FORWARD] = difference(y, NULL, M, N, x, K, 1, w, K, 1, K),
        [PRODUCT_DX] = difference(dx, NULL, M, K, y, N, 1, w, 1, K, N) / sqrt(K), /* y is not in (-1, 1) */
        [PRODUCT_DW] = difference(dw, before, N, K, y, 1, N, x, 1, K, M) / sqrt(K),
    };
    for (int i = 0; i < PRODUCT_COUNT && !gpu_failed(g); i++)
        if (!(far[i] <= bounds[numbers]))
            report_broken(g->report, "product %d of cuBLASLt in %s differs from its definition by %.2g (allowed %.2g)",
                          i, numbers_rows[numbers].name, far[i], bounds[numbers]);
    free(x), free(w), free(before), free(y), free(dx), free(dw);
    linear_close(&l);
    arena_reset(&g->memory, mark);
    return !gpu_failed(g);
}

/* ---- Figures ----------------------------------------------------------------------------------------- */

enum { TOKENS = 8192, SQUARE = 8192 };

/* Weights [n, k] of public configurations. */
static const struct {
    const char *name;
    int64_t n, k;
} shapes[] = {
    {"olmoe_q", 2048, 2048},            /* 16 heads of 128 */
    {"qwen3_30b_qkv", 5120, 2048},      /* 32 + 2 x 4 heads of 128 */
    {"qwen3_235b_qkv", 9216, 4096},     /* 64 + 2 x 4 heads of 128 */
    {"qwen3_235b_out", 4096, 8192},     /* 64 heads of 128 */
    {"mixtral_qkv", 6144, 4096},        /* 32 + 2 x 8 heads of 128 */
    {"gpt_oss_120b_qkv", 5120, 2880},   /* 64 + 2 x 8 heads of 64 */
    {"deepseek_v3_dense", 18432, 7168}, /* its first layers */
    {"kimi_k2_shared", 2048, 7168},     /* the shared expert */
};

/* Experts [inner, hidden] of a layer, or those of one rank of 48. */
static const struct {
    const char *name;
    int64_t experts, inner, hidden;
} layers[] = {{"olmoe", 64, 1024, 2048}, {"qwen3_30b", 128, 768, 2048}, {"kimi_k2_48th", 8, 2048, 7168}};
static const int64_t expert_tokens[] = {128, 512, 1024, 4096};

static bool measure_dense(Gpu *g) {
    char key[KEY_BYTES];
    for (int i = 0; i < NUMBERS_COUNT; i++) {
        int64_t side = i == NUMBERS_BF16 || i == NUMBERS_TF32 ? SQUARE : SQUARE / 2;
        snprintf(key, sizeof key, "gpu_matrix_%s_square_flop_per_s", numbers_rows[i].name);
        if (!measure(g, key, (Numbers)i, 1, side, side, side)) return false;
    }
    for (int i = 0; i <= NUMBERS_FP32; i++)
        for (size_t j = 0; j < COUNT(shapes); j++) {
            snprintf(key, sizeof key, "gpu_matrix_%s_%s_flop_per_s", numbers_rows[i].name, shapes[j].name);
            int64_t tokens = i == NUMBERS_FP32 ? TOKENS / 4 : TOKENS; /* slow, and full long before */
            if (!measure(g, key, (Numbers)i, 1, tokens, shapes[j].n, shapes[j].k)) return false;
        }
    return true;
}

static bool measure_experts(Gpu *g) {
    char key[KEY_BYTES];
    for (size_t i = 0; i < COUNT(layers); i++)
        for (size_t j = 0; j < COUNT(expert_tokens); j++) {
            snprintf(key, sizeof key, "gpu_experts_bf16_%s_%lld_flop_per_s", layers[i].name,
                     (long long)expert_tokens[j]);
            if (!measure(g, key, NUMBERS_BF16, layers[i].experts, expert_tokens[j], layers[i].inner, layers[i].hidden))
                return false;
        }
    return true;
}

bool doctor_gpu_products(Gpu *g) {
    Error missing = {0};
    if (!gpu_cublas(g->device, &missing)) {
        report_note(g->report, "no products were measured on the GPU: %s", missing.text);
        return true;
    }
    printf("\nproducts on the GPU (cuBLASLt; forward and backward of a linear, %d tokens, fp32 %d; square: %d, fp32 "
           "and fp64 %d; "
           "experts: one call each, tokens an expert)\n",
           TOKENS, TOKENS / 4, SQUARE, SQUARE / 2);
    for (int i = 0; i < NUMBERS_COUNT; i++)
        if (!check(g, (Numbers)i)) return false;
    return measure_dense(g) && measure_experts(g);
}
