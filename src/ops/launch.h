/* What every front door ends with: charge, choose the kernel, launch. For doors only. */
#ifndef MOP_LAUNCH_H
#define MOP_LAUNCH_H

#include "ops/kernels.h"

/* Bytes of all these tensors; none counts 0. */
#define BYTES_OF(...) bytes_of((const Tensor[]){__VA_ARGS__}, (int)COUNT(((const Tensor[]){__VA_ARGS__})))

static inline int64_t bytes_of(const Tensor *t, int n) {
    int64_t bytes = 0;
    for (int i = 0; i < n; i++) bytes += (int64_t)tensor_bytes(t[i]);
    return bytes;
}

static inline bool type_real(Type t) {
    return t == FP32 || t == BF16 || t == FP64;
}

/* One argument among many: absent or exactly this. */
static inline bool none_or_is(Tensor t, Type type, int dims, const int64_t *dim) {
    return tensor_none(t) || tensor_is(t, type, dims, dim);
}

/* Empty tensors may share an address. */
static inline bool same_memory(Tensor a, Tensor b) {
    return a.data == b.data && tensor_count(a) > 0 && tensor_count(b) > 0;
}

/* In place of a type: small exact work, and mixtures of types, that only the definition does. */
enum { DEFINITION = TYPE_COUNT };

/* Products and attention each reach a share of the peak, and so does what does several operations for each byte that
 * it moves, with an exp or a root among them. The rest is bound by memory, whatever its FLOPs are counted at. */
static inline RateKind op_rate(Op op) {
    switch (op) {
    case OP_ATTENTION:
    case OP_ATTENTION_BACKWARD: return RATE_ATTENTION;
    case OP_SWIGLU:
    case OP_SWIGLU_BACKWARD:
    case OP_RMS_NORM:
    case OP_RMS_NORM_BACKWARD:
    case OP_ROPE_TABLE:
    case OP_ROPE:
    case OP_ROUTE:
    case OP_ROUTE_STATISTICS:
    case OP_ROUTE_BACKWARD:
    case OP_CROSS_ENTROPY:
    case OP_CROSS_ENTROPY_PART:
    case OP_CROSS_ENTROPY_GRADIENT: return RATE_ELEMENTWISE;
    default: return RATE_MATRIX;
    }
}

/* `type` is that of the op's real tensors: it picks the column of the table. An op that touches no byte has nothing
 * to do: it is counted and not launched. */
static inline void op_run(Stream *s, Op op, int type, double flops, int64_t bytes, const void *args,
                          size_t args_bytes) {
    bool run = charge(s, (Cost){.op = op, .flops = flops, .bytes = bytes, .rate = op_rate(op)});
    if (!run || bytes == 0) return;
    int column = type == FP64;
    bool fast = type == FP32 || type == BF16 || type == FP64;
    const Kernels *kernels = s->device->kernels;
    LaunchFunction kernel = fast ? kernels->run[column][op] : NULL;
    if (kernel == NULL && kernels->otherwise != NULL) kernel = kernels->otherwise->run[column][op];
    MUST(kernel != NULL); /* the device has this op */
    stream_launch(s, kernel, args, args_bytes);
}

#endif
