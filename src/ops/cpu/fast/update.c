/* AdamW, norms, and the sums that collectives make. AdamW is defined to the bit (ops.h): this file is compiled without
 * contraction of a * b + c into one rounding (-ffp-contract=off). */
#include "ops/cpu/fast/fast.h"

enum {
    PIECE = 1 << 14, /* elements of a task */
    PARTS = 256,     /* at most so many tasks of a norm: their sums are added in order */
};

/* ---- adamw ------------------------------------------------------------------------------------ */

/* The scalars of ops.h, rounded once. */
typedef struct {
    const AdamWArgs *a;
    REAL decay, b1, c1, b2, c2, step, root, epsilon, clip;
} Update;

/* One vector of the formula of ops.h. */
INLINE Vector adamw_vector(const Update *u, Vector weight, Vector gradient, Vector *m, Vector *v) {
    Vector g = u->clip * gradient, w = u->decay * weight;
    *m = u->b1 * *m + u->c1 * g;
    *v = u->b2 * *v + (u->c2 * g) * g;
    return w - (u->step * *m) / (vector_sqrt(*v) / u->root + u->epsilon);
}

/* The fp32 master of bf16 weights is (weight << 16) + (int16)low; only float copies of this file ever see one. */
#if REAL_BITS == 32
INLINE Vector master_get(const AdamWArgs *a, int64_t i, int64_t left) {
    Vector weight = vector_get(a->weight, i, left);
    if (a->weight.type != BF16) return weight;
    Halves low = {0};
    const char *from = (const char *)a->low.data + 2 * i;
    if (left >= LANES)
        memcpy(&low, from, sizeof low);
    else
        memcpy(&low, from, (size_t)left * 2);
    return (Vector)((Words)weight + (Words)((Integers)(halves_widen(low) << 16) >> 16));
}

INLINE void master_put(const AdamWArgs *a, int64_t i, int64_t left, Vector master) {
    vector_put(a->weight, i, left, master);
    if (a->weight.type != BF16) return;
    Halves low = halves_cut((Integers)((Words)master << 16) >> 16);
    char *to = (char *)a->low.data + 2 * i;
    if (left >= LANES)
        memcpy(to, &low, sizeof low);
    else
        memcpy(to, &low, (size_t)left * 2);
}
#else
INLINE Vector master_get(const AdamWArgs *a, int64_t i, int64_t left) {
    return vector_get(a->weight, i, left);
}

INLINE void master_put(const AdamWArgs *a, int64_t i, int64_t left, Vector master) {
    vector_put(a->weight, i, left, master);
}
#endif

static void adamw_piece(void *context, int64_t index, int worker) {
    (void)worker;
    const Update u = *(const Update *)context;
    const AdamWArgs a = *u.a;
    int64_t end = min64((index + 1) * PIECE, tensor_count(a.weight));
    for (int64_t i = index * PIECE; i < end; i += LANES) {
        int64_t left = end - i;
        Vector m = vector_get(a.m, i, left), v = vector_get(a.v, i, left);
        Vector w = adamw_vector(&u, master_get(&a, i, left), vector_get(a.gradient, i, left), &m, &v);
        vector_put(a.m, i, left, m);
        vector_put(a.v, i, left, v);
        master_put(&a, i, left, w);
    }
}

void KERNEL(adamw)(Stream *s, const void *args) {
    const AdamWArgs *a = args;
    const AdamW *h = &a->h;
    Update u = {
        .a = a,
        .decay = (REAL)(1 - h->learning_rate * h->weight_decay),
        .b1 = (REAL)h->beta1,
        .c1 = (REAL)(1 - h->beta1),
        .b2 = (REAL)h->beta2,
        .c2 = (REAL)(1 - h->beta2),
        .step = (REAL)(h->learning_rate / h->correction1),
        .root = (REAL)sqrt(h->correction2),
        .epsilon = (REAL)h->epsilon,
        .clip = (REAL)h->clip,
    };
    parallel(stream_pool(s), ceil_div(tensor_count(a->weight), PIECE), adamw_piece, &u);
}

/* ---- square_sum ------------------------------------------------------------------------------- */

typedef struct {
    Tensor x;
    int64_t part; /* elements of a task */
    double sum[PARTS];
} Norm;

/* Squares in double, for those of large floats would overflow. */
static void square_part(void *context, int64_t index, int worker) {
    (void)worker;
    Norm *n = context;
    const Tensor x = n->x;
    int64_t end = min64((index + 1) * n->part, tensor_count(x));
    Doubles sum[WIDE] = {{0}}, wide[WIDE];
    for (int64_t i = index * n->part; i < end; i += LANES) {
        vector_widen(wide, vector_get(x, i, end - i));
        UNROLLED for (int w = 0; w < WIDE; w++) sum[w] += wide[w] * wide[w];
    }
    n->sum[index] = doubles_sum(sum);
}

void KERNEL(square_sum)(Stream *s, const void *args) {
    const AddArgs *a = args;
    int64_t count = tensor_count(a->a);
    Norm n = {.x = a->a, .part = max64(PIECE, ceil_div(ceil_div(count, PARTS), LANES) * LANES)};
    int64_t parts = ceil_div(count, n.part);
    double total = 0;
    parallel(stream_pool(s), parts, square_part, &n);
    for (int64_t i = 0; i < parts; i++) total += n.sum[i];
    *(double *)a->y.data = total;
}

/* ---- sum_rows --------------------------------------------------------------------------------- */

/* y[i] = ((x[0,i] + x[1,i]) + x[2,i]) + ... */
static void sum_piece(void *context, int64_t index, int worker) {
    (void)worker;
    const AddArgs *a = context;
    const Tensor y = a->y, x = a->a;
    int64_t rows = x.dim[0], width = x.dim[1], end = min64((index + 1) * PIECE, width);
    for (int64_t i = index * PIECE; i < end; i += LANES) {
        Vector sum = vector_get(x, i, end - i);
        for (int64_t r = 1; r < rows; r++) sum += vector_get(x, r * width + i, end - i);
        vector_put(y, i, end - i, sum);
    }
}

void KERNEL(sum_rows)(Stream *s, const void *args) {
    const AddArgs *a = args;
    parallel(stream_pool(s), ceil_div(a->a.dim[1], PIECE), sum_piece, (void *)args);
}
