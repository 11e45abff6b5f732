/* Which ops have a fast kernel: one row an op. A row X(op, name) stands for void KERNEL(name)(Stream *, const void *)
 * in some file of this folder, for every REAL and ISA. An op without a row runs its definition. select.c makes the
 * tables. */
#ifndef MOP_FAST_TABLE_H
#define MOP_FAST_TABLE_H

/* `real` and `isa` are handed on to X. */
#define FAST_KERNELS(X, real, isa)                                                                                     \
    X(OP_LINEAR, linear, real, isa)                                                                                    \
    X(OP_LINEAR_DX, linear_dx, real, isa)                                                                              \
    X(OP_LINEAR_DW, linear_dw, real, isa)                                                                              \
    X(OP_EXPERTS_LINEAR, linear, real, isa)                                                                            \
    X(OP_EXPERTS_LINEAR_DX, linear_dx, real, isa)                                                                      \
    X(OP_EXPERTS_LINEAR_DW, linear_dw, real, isa)                                                                      \
    X(OP_SWIGLU, swiglu, real, isa)                                                                                    \
    X(OP_SWIGLU_BACKWARD, swiglu_backward, real, isa)                                                                  \
    X(OP_RMS_NORM, rms_norm, real, isa)                                                                                \
    X(OP_RMS_NORM_BACKWARD, rms_norm_backward, real, isa)                                                              \
    X(OP_ADD, add, real, isa)                                                                                          \
    X(OP_ZERO, zero, real, isa)                                                                                        \
    X(OP_COPY, copy, real, isa)                                                                                        \
    X(OP_COPY_COLUMNS, copy_columns, real, isa)                                                                        \
    X(OP_EMBEDDING, embedding, real, isa)                                                                              \
    X(OP_EMBEDDING_BACKWARD, embedding_backward, real, isa)                                                            \
    X(OP_ROPE_TABLE, rope_table, real, isa)                                                                            \
    X(OP_ROPE, rope, real, isa)                                                                                        \
    X(OP_ATTENTION, attention, real, isa)                                                                              \
    X(OP_ATTENTION_MERGE, attention_merge, real, isa)                                                                  \
    X(OP_ATTENTION_DELTA, attention_delta, real, isa)                                                                  \
    X(OP_ATTENTION_BACKWARD, attention_backward, real, isa)                                                            \
    X(OP_ROUTE, route, real, isa)                                                                                      \
    X(OP_ROUTE_STATISTICS, route_statistics, real, isa)                                                                \
    X(OP_ROUTE_BACKWARD, route_backward, real, isa)                                                                    \
    X(OP_GATHER_ROWS, gather_rows, real, isa)                                                                          \
    X(OP_SUM_SLOTS, sum_slots, real, isa)                                                                              \
    X(OP_CROSS_ENTROPY, cross_entropy, real, isa)                                                                      \
    X(OP_CROSS_ENTROPY_PART, cross_entropy_part, real, isa)                                                            \
    X(OP_CROSS_ENTROPY_JOIN, cross_entropy_join, real, isa)                                                            \
    X(OP_CROSS_ENTROPY_SUM, cross_entropy_sum, real, isa)                                                              \
    X(OP_CROSS_ENTROPY_GRADIENT, cross_entropy_gradient, real, isa)                                                    \
    X(OP_ADAMW, adamw, real, isa)                                                                                      \
    X(OP_SQUARE_SUM, square_sum, real, isa)                                                                            \
    X(OP_SUM_ROWS, sum_rows, real, isa)

#endif
