/* Front doors of what happens to weights and gradients: AdamW, norms, and the sums that collectives make. */
#include "ops/launch.h"

enum { ADAMW_FLOPS = 15 }; /* an element: the formula of ops.h, its operations counted */

void adamw(Stream *s, Tensor weight, Tensor low, Tensor m, Tensor v, Tensor gradient, AdamW h) {
    MUST(type_real(weight.type));
    int64_t count = tensor_count(weight);
    Type sum = type_sum(weight.type);
    MUST(m.type == sum && v.type == sum && gradient.type == sum);
    MUST(tensor_count(m) == count && tensor_count(v) == count && tensor_count(gradient) == count);
    MUST(weight.type == BF16 ? tensor_is(low, BYTE, DIM(2 * count)) : tensor_none(low));
    AdamWArgs args = {.weight = weight, .low = low, .m = m, .v = v, .gradient = gradient, .h = h};
    op_run(s, OP_ADAMW, weight.type, ADAMW_FLOPS * count, BYTES_OF(weight, weight, low, low, m, m, v, v, gradient),
           &args, sizeof args);
}

void square_sum(Stream *s, Tensor out, Tensor x) {
    MUST(type_real(x.type) && tensor_is(out, FP64, DIM(1)));
    AddArgs args = {.y = out, .a = x};
    op_run(s, OP_SQUARE_SUM, x.type, 2 * tensor_count(x), BYTES_OF(out, x), &args, sizeof args);
}

void sum_rows(Stream *s, Tensor y, Tensor x) {
    MUST((x.type == FP32 || x.type == FP64 || x.type == INT64) && x.dims == 2 && x.dim[0] >= 1);
    MUST(y.type == x.type && tensor_count(y) == x.dim[1]);
    AddArgs args = {.y = y, .a = x};
    op_run(s, OP_SUM_ROWS, x.type, tensor_count(x), BYTES_OF(y, x), &args, sizeof args);
}
