/* Elementwise ops and SwiGLU: bound by memory, so each element is read once and written once, and tasks are pieces
 * of fixed size. An output may be an input: a vector is read before it is written. */
#include "ops/cpu/fast/fast.h"

enum {
    PIECE = 1 << 15,     /* elements of a task */
    ROW_PIECE = 1 << 13, /* about as many elements of rows */
};

/* Elements of task `index` of `count`: first .. end - 1. */
typedef struct {
    int64_t first, end;
} Span;

static Span span_of(int64_t index, int64_t piece, int64_t count) {
    return (Span){index * piece, min64((index + 1) * piece, count)};
}

/* ---- add, zero, copy -------------------------------------------------------------------------- */

static void add_piece(void *context, int64_t index, int worker) {
    (void)worker;
    const AddArgs *args = context;
    const Tensor y = args->y, a = args->a, b = args->b;
    Span span = span_of(index, PIECE, tensor_count(y));
    for (int64_t i = span.first; i < span.end; i += LANES) {
        int64_t left = span.end - i;
        vector_put(y, i, left, vector_get(a, i, left) + vector_get(b, i, left));
    }
}

void KERNEL(add)(Stream *s, const void *args) {
    const AddArgs *a = args;
    parallel(stream_pool(s), ceil_div(tensor_count(a->y), PIECE), add_piece, (void *)args);
}

static void zero_piece(void *context, int64_t index, int worker) {
    (void)worker;
    const AddArgs *args = context;
    size_t size = type_bytes(args->y.type);
    Span span = span_of(index, PIECE, tensor_count(args->y));
    memset((char *)args->y.data + (size_t)span.first * size, 0, (size_t)(span.end - span.first) * size);
}

void KERNEL(zero)(Stream *s, const void *args) {
    const AddArgs *a = args;
    parallel(stream_pool(s), ceil_div(tensor_count(a->y), PIECE), zero_piece, (void *)args);
}

/* Bits of one type travel unchanged. */
static void copy_piece(void *context, int64_t index, int worker) {
    (void)worker;
    const AddArgs *args = context;
    const Tensor y = args->y, a = args->a;
    Span span = span_of(index, PIECE, tensor_count(y));
    if (y.type == a.type) {
        size_t size = type_bytes(y.type), first = (size_t)span.first * size;
        memmove((char *)y.data + first, (const char *)a.data + first, (size_t)(span.end - span.first) * size);
        return;
    }
    for (int64_t i = span.first; i < span.end; i += LANES)
        vector_put(y, i, span.end - i, vector_get(a, i, span.end - i));
}

void KERNEL(copy)(Stream *s, const void *args) {
    const AddArgs *a = args;
    parallel(stream_pool(s), ceil_div(tensor_count(a->y), PIECE), copy_piece, (void *)args);
}

/* ---- Rows: copy_columns ----------------------------------------------------------------------- */

static int64_t rows_of_task(int64_t width) {
    return max64(1, ROW_PIECE / max64(1, width));
}

/* One type: bits of y and x travel unchanged. */
static void copy_columns_bits(const ColumnsArgs *a, Span span) {
    size_t size = type_bytes(a->y.type), y_row = (size_t)a->y.dim[1] * size, x_row = (size_t)a->x.dim[1] * size;
    char *y = (char *)a->y.data + (size_t)a->y_column * size;
    const char *x = (const char *)a->x.data + (size_t)a->x_column * size;
    for (int64_t row = span.first; row < span.end; row++)
        memcpy(y + (size_t)row * y_row, x + (size_t)row * x_row, (size_t)a->columns * size);
}

static void copy_columns_rows(void *context, int64_t index, int worker) {
    (void)worker;
    const ColumnsArgs *a = context;
    const Tensor y = a->y, x = a->x;
    const int64_t columns = a->columns;
    Span span = span_of(index, rows_of_task(columns), y.dim[0]);
    if (y.type == x.type && !a->add) {
        copy_columns_bits(a, span);
        return;
    }
    for (int64_t row = span.first; row < span.end; row++) {
        int64_t to = row * y.dim[1] + a->y_column, from = row * x.dim[1] + a->x_column;
        for (int64_t i = 0; i < columns; i += LANES) {
            Vector value = vector_get(x, from + i, columns - i);
            if (a->add) value += vector_get(y, to + i, columns - i);
            vector_put(y, to + i, columns - i, value);
        }
    }
}

void KERNEL(copy_columns)(Stream *s, const void *args) {
    const ColumnsArgs *a = args;
    parallel(stream_pool(s), ceil_div(a->y.dim[0], rows_of_task(a->columns)), copy_columns_rows, (void *)args);
}

/* ---- swiglu ----------------------------------------------------------------------------------- */

enum { GROUP = 4 }; /* vectors that pass through exp together */

/* x = 1 / (1 + exp(-x)) */
INLINE void sigmoids(Vector *x, int vectors) {
    UNROLLED for (int v = 0; v < vectors; v++) x[v] = -x[v];
    vectors_exp(x, vectors);
    UNROLLED for (int v = 0; v < vectors; v++) x[v] = 1 / (1 + x[v]);
}

/* y = weight silu(gate) up, of so many vectors from element i on, the last of them of `left` values or full */
INLINE void swiglu_vectors(const SwigluArgs *a, Vector weight, int64_t i, int64_t left, int vectors) {
    Vector gate[GROUP], sigma[GROUP];
    UNROLLED for (int v = 0; v < vectors; v++) sigma[v] = gate[v] =
        vector_get(a->gate, i + v * LANES, left - v * LANES);
    sigmoids(sigma, vectors);
    UNROLLED for (int v = 0; v < vectors; v++) {
        Vector up = vector_get(a->up, i + v * LANES, left - v * LANES);
        vector_put(a->y, i + v * LANES, left - v * LANES, weight * (gate[v] * sigma[v]) * up);
    }
}

static void swiglu_rows(void *context, int64_t index, int worker) {
    (void)worker;
    const SwigluArgs args = *(const SwigluArgs *)context;
    int64_t width = args.y.dim[1];
    Span span = span_of(index, rows_of_task(width), args.y.dim[0]);
    for (int64_t row = span.first; row < span.end; row++) {
        Vector weight = vector_all(tensor_none(args.weight) ? 1 : value_get(args.weight, row));
        int64_t i = row * width, end = i + width;
        for (; i + GROUP * LANES <= end; i += GROUP * LANES) swiglu_vectors(&args, weight, i, GROUP * LANES, GROUP);
        for (; i < end; i += LANES) swiglu_vectors(&args, weight, i, end - i, 1);
    }
}

void KERNEL(swiglu)(Stream *s, const void *args) {
    const SwigluArgs *a = args;
    parallel(stream_pool(s), ceil_div(a->y.dim[0], rows_of_task(a->y.dim[1])), swiglu_rows, (void *)args);
}

/* dgate = dy weight up silu'(gate),  dup = dy weight silu(gate),  dweight = sum dy silu(gate) up;
 * silu'(a) = sigmoid(a) (1 + a (1 - sigmoid(a))). Adds to dweight; vectors as above. */
INLINE void swiglu_backward_vectors(const SwigluArgs *args, Vector weight, Vector *dweight, int64_t i, int64_t left,
                                    int vectors) {
    Vector gate[GROUP], sigma[GROUP];
    UNROLLED for (int v = 0; v < vectors; v++) sigma[v] = gate[v] =
        vector_get(args->gate, i + v * LANES, left - v * LANES);
    sigmoids(sigma, vectors);
    UNROLLED for (int v = 0; v < vectors; v++) {
        int64_t at = i + v * LANES, here = left - v * LANES;
        Vector b = vector_get(args->up, at, here), d = vector_get(args->dy, at, here), silu = gate[v] * sigma[v];
        *dweight += d * silu * b;
        d *= weight;
        vector_put(args->dgate, at, here, d * b * (sigma[v] * (1 + gate[v] * (1 - sigma[v]))));
        vector_put(args->dup, at, here, d * silu);
    }
}

static void swiglu_backward_rows(void *context, int64_t index, int worker) {
    (void)worker;
    const SwigluArgs args = *(const SwigluArgs *)context;
    int64_t width = args.dy.dim[1];
    bool weighted = !tensor_none(args.weight);
    Span span = span_of(index, rows_of_task(width), args.dy.dim[0]);
    for (int64_t row = span.first; row < span.end; row++) {
        Vector weight = vector_all(weighted ? value_get(args.weight, row) : 1), dweight = {0};
        int64_t i = row * width, end = i + width;
        for (; i + GROUP * LANES <= end; i += GROUP * LANES)
            swiglu_backward_vectors(&args, weight, &dweight, i, GROUP * LANES, GROUP);
        for (; i < end; i += LANES) swiglu_backward_vectors(&args, weight, &dweight, i, end - i, 1);
        if (weighted) value_put(args.dweight, row, vector_sum(dweight));
    }
}

void KERNEL(swiglu_backward)(Stream *s, const void *args) {
    const SwigluArgs *a = args;
    parallel(stream_pool(s), ceil_div(a->dy.dim[0], rows_of_task(a->dy.dim[1])), swiglu_backward_rows, (void *)args);
}
