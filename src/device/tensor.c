/* Views and their arithmetic, and one slow door to elements of any type. */
#include "device/tensor.h"

Tensor tensor_at(void *data, Type type, int dims, const int64_t *dim) {
    MUST(dims >= 1 && dims <= MAX_DIMS);
    Tensor t = {.data = data, .type = type, .dims = dims};
    for (int i = 0; i < dims; i++) {
        MUST(dim[i] >= 0);
        t.dim[i] = dim[i];
    }
    return t;
}

int64_t tensor_count(Tensor t) {
    if (tensor_none(t)) return 0;
    int64_t count = 1;
    for (int i = 0; i < t.dims; i++) MUST(mul_size(count, t.dim[i], &count));
    return count;
}

size_t tensor_bytes(Tensor t) {
    return (size_t)tensor_count(t) * type_bytes(t.type);
}

Tensor tensor_view(Tensor t, int dims, const int64_t *dim) {
    Tensor view = tensor_at(t.data, t.type, dims, dim);
    MUST(tensor_count(view) == tensor_count(t));
    return view;
}

Tensor tensor_rows(Tensor t, int64_t first, int64_t rows) {
    MUST(!tensor_none(t) && first >= 0 && rows >= 0 && first <= t.dim[0] && rows <= t.dim[0] - first);
    Tensor slice = t;
    slice.dim[0] = 1;
    size_t offset = (size_t)first * tensor_bytes(slice);
    if (offset > 0) slice.data = (char *)t.data + offset; /* an empty tensor may have no address to add to */
    slice.dim[0] = rows;
    return slice;
}

bool tensor_is(Tensor t, Type type, int dims, const int64_t *dim) {
    if (t.type != type || t.dims != dims) return false;
    for (int i = 0; i < dims; i++) {
        if (t.dim[i] != dim[i]) return false;
    }
    return true;
}

bool tensor_same(Tensor a, Tensor b) {
    return tensor_is(a, b.type, b.dims, b.dim);
}

/* ---- Elements --------------------------------------------------------------------------------- */

double tensor_get(Tensor t, int64_t i) {
    switch (t.type) {
    case FP32: return ((const float *)t.data)[i];
    case BF16: return bf16_to_float(((const uint16_t *)t.data)[i]);
    case FP64: return ((const double *)t.data)[i];
    case INT32: return ((const int32_t *)t.data)[i];
    case INT64: return (double)((const int64_t *)t.data)[i];
    case BYTE: return ((const uint8_t *)t.data)[i];
    case TYPE_COUNT: break;
    }
    MUST(!"a type");
}

void tensor_put(Tensor t, int64_t i, double x) {
    switch (t.type) {
    case FP32: ((float *)t.data)[i] = (float)x; return;
    case BF16: ((uint16_t *)t.data)[i] = bf16_from_float((float)x); return;
    case FP64: ((double *)t.data)[i] = x; return;
    case INT32: ((int32_t *)t.data)[i] = (int32_t)x; return;
    case INT64: ((int64_t *)t.data)[i] = (int64_t)x; return;
    case BYTE: ((uint8_t *)t.data)[i] = (uint8_t)x; return;
    case TYPE_COUNT: break;
    }
    MUST(!"a type");
}

double type_round(Type t, double x) {
    double held = 0; /* room for any type */
    Tensor one = tensor_at(&held, t, DIM(1));
    tensor_put(one, 0, x);
    return tensor_get(one, 0);
}
