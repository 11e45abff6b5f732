/* Front doors of products and elementwise ops. A product of [m,k] and [k,n] is 2mnk FLOPs, whatever its direction.
 * Elsewhere +, -, *, /, exp and sqrt count one each. */
#include "ops/launch.h"

enum {
    SWIGLU_FLOPS = 6,           /* an element: 1 / (1 + exp(-a)), times a, up and weight */
    SWIGLU_BACKWARD_FLOPS = 15, /* an element: silu and its slope, three products of dy, the sum for dweight */
    NORM_FLOPS = 4,             /* an element: square and add; two products */
    NORM_BACKWARD_FLOPS = 9,    /* an element: xhat, dy w, their mean, dx, dw */
};

/* ---- Products --------------------------------------------------------------------------------- */

/* What the three products of one linear have in common: outer [rows, n], inner [rows, k], weights [n, k] for
 * each expert. */
typedef struct {
    int64_t rows, n, k, experts_used;
} Product;

static int64_t experts_used(const int64_t *rows, int64_t experts, int64_t all_rows) {
    int64_t used = 0, sum = 0;
    for (int64_t e = 0; e < experts; e++) {
        MUST(rows[e] >= 0);
        used += rows[e] > 0;
        sum += rows[e];
    }
    MUST(sum == all_rows);
    return used;
}

static Product product_of(Tensor outer, Tensor inner, Tensor w, const int64_t *rows) {
    MUST(outer.dims == 2 && inner.dims == 2 && w.dims == (rows == NULL ? 2 : 3));
    Product p = {.rows = outer.dim[0], .n = outer.dim[1], .k = inner.dim[1]};
    MUST(inner.dim[0] == p.rows && w.dim[w.dims - 2] == p.n && w.dim[w.dims - 1] == p.k);
    p.experts_used = rows == NULL ? p.rows > 0 : experts_used(rows, w.dim[0], p.rows);
    return p;
}

/* `touched`: bytes of the operands that have a row per token; `weight_bytes`: of one element of w, each time
 * it is touched. */
static void product_run(Stream *s, Op op, Product p, int64_t touched, size_t weight_bytes, LinearArgs args) {
    double flops = 2.0 * (double)p.rows * (double)p.n * (double)p.k;
    int64_t bytes = touched + p.experts_used * p.n * p.k * (int64_t)weight_bytes;
    op_run(s, op, args.left.type, flops, bytes, &args, sizeof args);
}

static void product(Stream *s, Op op, Tensor y, Tensor x, Tensor w, const int64_t *rows) {
    Product p = product_of(y, x, w, rows);
    MUST(type_real(x.type) && w.type == x.type && (y.type == x.type || y.type == type_sum(x.type)));
    LinearArgs args = {.out = y, .left = x, .right = w, .rows = rows};
    product_run(s, op, p, BYTES_OF(y, x), type_bytes(w.type), args);
}

static void product_dx(Stream *s, Op op, Tensor dx, Tensor dy, Tensor w, const int64_t *rows, bool add) {
    Product p = product_of(dy, dx, w, rows);
    MUST(type_real(dy.type) && w.type == dy.type && (dx.type == dy.type || dx.type == type_sum(dy.type)));
    LinearArgs args = {.out = dx, .left = dy, .right = w, .rows = rows, .add = add};
    product_run(s, op, p, add ? BYTES_OF(dx, dx, dy) : BYTES_OF(dx, dy), type_bytes(w.type), args);
}

static void product_dw(Stream *s, Op op, Tensor dw, Tensor dy, Tensor x, const int64_t *rows) {
    Product p = product_of(dy, x, dw, rows);
    MUST(type_real(dy.type) && x.type == dy.type && dw.type == type_sum(dy.type));
    LinearArgs args = {.out = dw, .left = dy, .right = x, .rows = rows, .add = true};
    product_run(s, op, p, BYTES_OF(dy, x), 2 * type_bytes(dw.type), args);
}

void linear(Stream *s, Tensor y, Tensor x, Tensor w) {
    product(s, OP_LINEAR, y, x, w, NULL);
}

void linear_dx(Stream *s, Tensor dx, Tensor dy, Tensor w, bool add) {
    product_dx(s, OP_LINEAR_DX, dx, dy, w, NULL, add);
}

void linear_dw(Stream *s, Tensor dw, Tensor dy, Tensor x) {
    product_dw(s, OP_LINEAR_DW, dw, dy, x, NULL);
}

void experts_linear(Stream *s, Tensor y, Tensor x, Tensor w, const int64_t *rows) {
    MUST(rows != NULL);
    product(s, OP_EXPERTS_LINEAR, y, x, w, rows);
}

void experts_linear_dx(Stream *s, Tensor dx, Tensor dy, Tensor w, const int64_t *rows, bool add) {
    MUST(rows != NULL);
    product_dx(s, OP_EXPERTS_LINEAR_DX, dx, dy, w, rows, add);
}

void experts_linear_dw(Stream *s, Tensor dw, Tensor dy, Tensor x, const int64_t *rows) {
    MUST(rows != NULL);
    product_dw(s, OP_EXPERTS_LINEAR_DW, dw, dy, x, rows);
}

/* ---- SwiGLU ----------------------------------------------------------------------------------- */

void swiglu(Stream *s, Tensor y, Tensor gate, Tensor up, Tensor weight) {
    MUST(type_real(y.type) && y.dims == 2 && tensor_same(gate, y) && tensor_same(up, y));
    MUST(none_or_is(weight, type_sum(y.type), DIM(y.dim[0])));
    SwigluArgs args = {.y = y, .gate = gate, .up = up, .weight = weight};
    op_run(s, OP_SWIGLU, y.type, SWIGLU_FLOPS * tensor_count(y), BYTES_OF(y, gate, up, weight), &args, sizeof args);
}

void swiglu_backward(Stream *s, Tensor dgate, Tensor dup, Tensor dweight, Tensor dy, Tensor gate, Tensor up,
                     Tensor weight) {
    MUST(type_real(dy.type) && dy.dims == 2 && tensor_same(gate, dy) && tensor_same(up, dy));
    MUST(tensor_same(dgate, dy) && tensor_same(dup, dy) && !same_memory(dgate, dup));
    MUST(none_or_is(weight, type_sum(dy.type), DIM(dy.dim[0])));
    MUST(tensor_none(weight) ? tensor_none(dweight) : tensor_same(dweight, weight));
    SwigluArgs args = {
        .gate = gate, .up = up, .weight = weight, .dgate = dgate, .dup = dup, .dweight = dweight, .dy = dy};
    op_run(s, OP_SWIGLU_BACKWARD, dy.type, SWIGLU_BACKWARD_FLOPS * tensor_count(dy),
           BYTES_OF(dgate, dup, dweight, dy, gate, up, weight), &args, sizeof args);
}

/* ---- RMSNorm ---------------------------------------------------------------------------------- */

void rms_norm(Stream *s, Tensor y, Tensor inverse, Tensor x, Tensor w, double epsilon) {
    MUST(type_real(x.type) && x.dims == 2 && tensor_same(y, x));
    MUST(tensor_is(inverse, type_sum(x.type), DIM(x.dim[0])) && tensor_is(w, x.type, DIM(x.dim[1])));
    NormArgs args = {.y = y, .inverse = inverse, .x = x, .w = w, .epsilon = epsilon};
    int64_t bytes = x.dim[0] > 0 ? BYTES_OF(y, inverse, x, w) : 0;
    op_run(s, OP_RMS_NORM, x.type, NORM_FLOPS * tensor_count(x), bytes, &args, sizeof args);
}

void rms_norm_backward(Stream *s, Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor inverse, bool add) {
    MUST(type_real(x.type) && x.dims == 2 && tensor_same(dx, x) && tensor_same(dy, x));
    MUST(tensor_is(inverse, type_sum(x.type), DIM(x.dim[0])) && tensor_is(w, x.type, DIM(x.dim[1])));
    MUST(tensor_is(dw, type_sum(x.type), DIM(x.dim[1])));
    NormArgs args = {.inverse = inverse, .x = x, .w = w, .dx = dx, .dw = dw, .dy = dy, .add = add};
    int64_t bytes = x.dim[0] > 0 ? BYTES_OF(dx, dw, dw, dy, x, w, inverse) : 0;
    if (add) bytes += BYTES_OF(dx);
    op_run(s, OP_RMS_NORM_BACKWARD, x.type, NORM_BACKWARD_FLOPS * tensor_count(x), bytes, &args, sizeof args);
}

/* ---- Elementwise ------------------------------------------------------------------------------ */

void add(Stream *s, Tensor y, Tensor a, Tensor b) {
    MUST(type_real(y.type) && a.type == y.type && b.type == y.type);
    MUST(tensor_count(a) == tensor_count(y) && tensor_count(b) == tensor_count(y));
    AddArgs args = {.y = y, .a = a, .b = b};
    op_run(s, OP_ADD, y.type, tensor_count(y), BYTES_OF(y, a, b), &args, sizeof args);
}

void zero(Stream *s, Tensor t) {
    AddArgs args = {.y = t};
    op_run(s, OP_ZERO, t.type, 0, BYTES_OF(t), &args, sizeof args);
}

void copy(Stream *s, Tensor y, Tensor x) {
    bool same_kind = (y.type == FP64) == (x.type == FP64);
    MUST(y.type == x.type || (type_real(y.type) && type_real(x.type)));
    MUST(tensor_count(y) == tensor_count(x));
    AddArgs args = {.y = y, .a = x};
    op_run(s, OP_COPY, same_kind ? (int)y.type : (int)DEFINITION, 0, BYTES_OF(y, x), &args, sizeof args);
}

/* Bits of one type travel unchanged; otherwise it is fp32 and bf16. */
static bool columns_travel(Type y, Type x, bool add) {
    if (add) return type_real(x) && y == type_sum(x);
    return y == x || (y == FP32 && x == BF16) || (y == BF16 && x == FP32);
}

void copy_columns(Stream *s, Tensor y, int64_t y_column, Tensor x, int64_t x_column, int64_t columns, bool add) {
    MUST(y.dims == 2 && x.dims == 2 && y.dim[0] == x.dim[0] && columns_travel(y.type, x.type, add));
    MUST(columns >= 0 && y_column >= 0 && y_column <= y.dim[1] - columns);
    MUST(x_column >= 0 && x_column <= x.dim[1] - columns);
    ColumnsArgs args = {.y = y, .x = x, .y_column = y_column, .x_column = x_column, .columns = columns, .add = add};
    int64_t moved = y.dim[0] * columns, y_times = add ? 2 : 1; /* read and written */
    int64_t bytes = moved * (y_times * (int64_t)type_bytes(y.type) + (int64_t)type_bytes(x.type));
    op_run(s, OP_COPY_COLUMNS, y.type, add ? moved : 0, bytes, &args, sizeof args);
}
