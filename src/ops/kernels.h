/* What runs behind each front door: one table per device, instruction set and type. A kernel gets its arguments by
 * value in the struct below (see ops.h for their meaning); it runs on the stream's device and may use the pool
 * (stream_pool). */
#ifndef MOP_KERNELS_H
#define MOP_KERNELS_H

#include "device/pool.h"
#include "ops/ops.h"

/* clang-format off */
typedef enum {
    OP_LINEAR, OP_LINEAR_DX, OP_LINEAR_DW, OP_EXPERTS_LINEAR, OP_EXPERTS_LINEAR_DX, OP_EXPERTS_LINEAR_DW,
    OP_SWIGLU, OP_SWIGLU_BACKWARD, OP_RMS_NORM, OP_RMS_NORM_BACKWARD, OP_ADD, OP_ZERO, OP_COPY, OP_COPY_COLUMNS,
    OP_EMBEDDING, OP_EMBEDDING_BACKWARD, OP_ROPE_TABLE, OP_ROPE, OP_ATTENTION, OP_ATTENTION_MERGE, OP_ATTENTION_DELTA,
    OP_ATTENTION_BACKWARD,
    OP_ROUTE, OP_ROUTE_STATISTICS, OP_BALANCE_LOSS, OP_ROUTE_BACKWARD, OP_ROUTE_ORDER,
    OP_GATHER_ROWS, OP_SUM_SLOTS, OP_CROSS_ENTROPY, OP_CROSS_ENTROPY_PART, OP_CROSS_ENTROPY_JOIN, OP_CROSS_ENTROPY_SUM,
    OP_CROSS_ENTROPY_GRADIENT, OP_ADAMW, OP_SQUARE_SUM, OP_SUM_ROWS,
    OP_COUNT
} Op;
const char *op_name(Op op);

/* linear, linear_dx, linear_dw and the experts' forms: rows NULL is one dense product. */
typedef struct { Tensor out, left, right; const int64_t *rows; bool add; } LinearArgs; /* y,x,w | dx,dy,w | dw,dy,x */
typedef struct { Tensor y, gate, up, weight, dgate, dup, dweight, dy; } SwigluArgs;
typedef struct { Tensor y, inverse, x, w, dx, dw, dy; double epsilon; bool add; } NormArgs;
typedef struct { Tensor y, a, b; } AddArgs; /* zero: y; copy: y, a; sum_rows: y, a; square_sum: y, a */
typedef struct { Tensor y, x; int64_t y_column, x_column, columns; bool add; } ColumnsArgs;
typedef struct { Tensor y, token, table; int64_t frozen; } EmbeddingArgs; /* backward: table = dtable, y = dy */
typedef struct { Tensor y, x, table, position; double theta; bool inverse; } RopeArgs;
typedef struct { Tensor out, lse, q, k, v, first, last, keys, dq, dk, dv, delta, dout; AttentionShape shape; } AttentionArgs;
typedef struct { Tensor out, lse, part, part_lse, delta, dout; } AttentionRowsArgs; /* merge: the first four; delta: delta, dout, out */
typedef struct { Tensor p, chosen, weight, lse, logits, sequence, counts, mass, z, rows, loss; bool normalise; Type round; } RouteArgs;
typedef struct { Tensor dlogits, dweight, p, chosen, lse, counts, rows, sequence, real_positions; RouteLoss loss; } RouteBackwardArgs;
typedef struct { Tensor order, place, counts, chosen; } OrderArgs;
typedef struct { Tensor y, x, index, base, place; int64_t divide; SlotRound round; } RowsArgs; /* sum_slots: x = rows */
typedef struct { Tensor loss, dlogits, logits, target, trained, stats; int64_t first; } CrossEntropyArgs; /* join: stats, logits = x */
typedef struct { Tensor weight, low, m, v, gradient; AdamW h; } AdamWArgs;

/* clang-format on */

/* run[0]: fp32 and bf16 data (sums in fp32); run[1]: fp64. The op's own real tensors decide (see ops/launch.h), not
 * its fp64 counts and losses; integers, and a copy between fp64 and another type, always take the plain kernel. What
 * a table lacks, `otherwise` has; where that is NULL too the op cannot run on the device (MUST). */
typedef struct Kernels {
    const char *name;
    LaunchFunction run[2][OP_COUNT];
    const struct Kernels *otherwise;
} Kernels;

extern const Kernels kernels_plain; /* ops/cpu: the definitions; the CPU's `otherwise` */
extern const Kernels kernels_cuda;  /* ops/cuda: AdamW so far; empty without CUDA */
/* The kernels for a device name: "cpu", "cpu:late" (the best instruction set this processor has), "cpu:plain",
 * "cpu:avx512bf16", "cpu:avx512", "cpu:avx2", "cpu:portable" (refused in words where the processor lacks it),
 * "cuda:0" and so on; NULL without error for sim. */
const Kernels *kernels_for(const char *device, Error *e);

/* The pool that a kernel on this stream may use: NULL (serial) on every stream but compute. */
Pool *stream_pool(Stream *s);
/* As pool_run; serial, as worker 0, when p is NULL. */
void parallel(Pool *p, int64_t count, PoolTask task, void *context);

#endif
