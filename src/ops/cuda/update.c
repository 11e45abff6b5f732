/* AdamW's way to the GPU: the scalars are made here, by the host, as ops/cpu/update.c makes them (and this file, too,
 * is compiled without fused multiply-adds), so that every device has the same. */
#include "ops/cuda/update.h"
#include "device/cuda/gpu.h"
#include "ops/cuda/table.h"

#include <math.h>

/* The scalars of ops.h, each rounded to Real once. */
#define SCALARS(Update, Real, h)                                                                                       \
    ((Update){                                                                                                         \
        .decay = (Real)(1 - (h)->learning_rate * (h)->weight_decay),                                                   \
        .b1 = (Real)(h)->beta1,                                                                                        \
        .c1 = (Real)(1 - (h)->beta1),                                                                                  \
        .b2 = (Real)(h)->beta2,                                                                                        \
        .c2 = (Real)(1 - (h)->beta2),                                                                                  \
        .step = (Real)((h)->learning_rate / (h)->correction1),                                                         \
        .root = (Real)sqrt((h)->correction2),                                                                          \
        .epsilon = (Real)(h)->epsilon,                                                                                 \
        .clip = (Real)(h)->clip,                                                                                       \
    })

static cudaError_t update(cudaStream_t stream, const AdamWArgs *a) {
    int64_t count = tensor_count(a->weight);
    void *m = a->m.data, *v = a->v.data;
    const void *gradient = a->gradient.data;
    if (a->weight.type == FP64)
        return update_fp64(stream, a->weight.data, m, v, gradient, count, SCALARS(UpdateDouble, double, &a->h));
    UpdateSingle u = SCALARS(UpdateSingle, float, &a->h);
    if (a->weight.type == FP32) return update_fp32(stream, a->weight.data, m, v, gradient, count, u);
    return update_bf16(stream, a->weight.data, a->low.data, m, v, gradient, count, u);
}

void cuda_adamw(Stream *s, const void *args) {
    Error e = {0};
    if (!CUDA(s->device, &e, op_name(OP_ADAMW), update(gpu_stream(s), args))) device_fail(s->device, &e);
}
