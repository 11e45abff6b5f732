/* Which ops have a fast kernel: one row an op. A row X(op, name) stands for void KERNEL(name)(Stream *, const void *args) in
 * some file of this folder, for every REAL and ISA. An op without a row runs its definition. select.c makes the tables. */
#ifndef MOP_FAST_TABLE_H
#define MOP_FAST_TABLE_H

/* `real` and `isa` are handed on to X. */
#define FAST_KERNELS(X, real, isa)                                                                                     \
    X(OP_LINEAR, linear, real, isa)                                                                                    \
    X(OP_LINEAR_DX, linear_dx, real, isa)                                                                              \
    X(OP_LINEAR_DW, linear_dw, real, isa)                                                                              \
    X(OP_EXPERTS_LINEAR, experts_linear, real, isa)                                                                    \
    X(OP_EXPERTS_LINEAR_DX, experts_linear_dx, real, isa)                                                              \
    X(OP_EXPERTS_LINEAR_DW, experts_linear_dw, real, isa)

#endif
