/* How the definitions are written: in double, element by element, in any type, in index order, one thread. A
 * kernel here says what the op means; how fast it may be is another folder's business. Not done here: any
 * blocking, any pool. */
#ifndef MOP_PLAIN_H
#define MOP_PLAIN_H

#include "ops/kernels.h"
#include <math.h>

/* An integer out of a tensor of integers: a token, an expert, a row. */
static inline int64_t index_at(Tensor t, int64_t i) {
    return (int64_t)tensor_get(t, i);
}

/* t[i] += x, rounded to t's type. */
static inline void tensor_add(Tensor t, int64_t i, double x) {
    tensor_put(t, i, tensor_get(t, i) + x);
}

/* Every op and its definition: void plain_NAME(Stream *s, const void *arguments). */
#define DEFINITIONS(ROW)                                                                                               \
    ROW(OP_LINEAR, linear)                                                                                             \
    ROW(OP_LINEAR_DX, linear_dx)                                                                                       \
    ROW(OP_LINEAR_DW, linear_dw)                                                                                       \
    ROW(OP_EXPERTS_LINEAR, linear)                                                                                     \
    ROW(OP_EXPERTS_LINEAR_DX, linear_dx)                                                                               \
    ROW(OP_EXPERTS_LINEAR_DW, linear_dw)                                                                               \
    ROW(OP_SWIGLU, swiglu)                                                                                             \
    ROW(OP_SWIGLU_BACKWARD, swiglu_backward)                                                                           \
    ROW(OP_RMS_NORM, rms_norm)                                                                                         \
    ROW(OP_RMS_NORM_BACKWARD, rms_norm_backward)                                                                       \
    ROW(OP_ADD, add)                                                                                                   \
    ROW(OP_ZERO, zero)                                                                                                 \
    ROW(OP_COPY, copy)                                                                                                 \
    ROW(OP_COPY_COLUMNS, copy_columns)                                                                                 \
    ROW(OP_EMBEDDING, embedding)                                                                                       \
    ROW(OP_EMBEDDING_BACKWARD, embedding_backward)                                                                     \
    ROW(OP_ROPE_TABLE, rope_table)                                                                                     \
    ROW(OP_ROPE, rope)                                                                                                 \
    ROW(OP_ATTENTION, attention)                                                                                       \
    ROW(OP_ATTENTION_MERGE, attention_merge)                                                                           \
    ROW(OP_ATTENTION_DELTA, attention_delta)                                                                           \
    ROW(OP_ATTENTION_BACKWARD, attention_backward)                                                                     \
    ROW(OP_ROUTE, route)                                                                                               \
    ROW(OP_ROUTE_STATISTICS, route_statistics)                                                                         \
    ROW(OP_BALANCE_LOSS, balance_loss)                                                                                 \
    ROW(OP_ROUTE_BACKWARD, route_backward)                                                                             \
    ROW(OP_ROUTE_ORDER, route_order)                                                                                   \
    ROW(OP_GATHER_ROWS, gather_rows)                                                                                   \
    ROW(OP_SUM_SLOTS, sum_slots)                                                                                       \
    ROW(OP_CROSS_ENTROPY, cross_entropy)                                                                               \
    ROW(OP_CROSS_ENTROPY_PART, cross_entropy_part)                                                                     \
    ROW(OP_CROSS_ENTROPY_JOIN, cross_entropy_join)                                                                     \
    ROW(OP_CROSS_ENTROPY_SUM, cross_entropy_sum)                                                                       \
    ROW(OP_CROSS_ENTROPY_GRADIENT, cross_entropy_gradient)                                                             \
    ROW(OP_ADAMW, adamw)                                                                                               \
    ROW(OP_SQUARE_SUM, square_sum)                                                                                     \
    ROW(OP_SUM_ROWS, sum_rows)

#define DECLARE(op, name) void plain_##name(Stream *s, const void *arguments);
DEFINITIONS(DECLARE)
#undef DECLARE

#endif
