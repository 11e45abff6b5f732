/* What all kernels share: the names of ops, and the pool as a kernel sees it. */
#include "ops/kernels.h"

static const char *const op_names[OP_COUNT] = {
    [OP_LINEAR] = "linear",
    [OP_LINEAR_DX] = "linear_dx",
    [OP_LINEAR_DW] = "linear_dw",
    [OP_EXPERTS_LINEAR] = "experts_linear",
    [OP_EXPERTS_LINEAR_DX] = "experts_linear_dx",
    [OP_EXPERTS_LINEAR_DW] = "experts_linear_dw",
    [OP_SWIGLU] = "swiglu",
    [OP_SWIGLU_BACKWARD] = "swiglu_backward",
    [OP_RMS_NORM] = "rms_norm",
    [OP_RMS_NORM_BACKWARD] = "rms_norm_backward",
    [OP_ADD] = "add",
    [OP_ZERO] = "zero",
    [OP_COPY] = "copy",
    [OP_COPY_COLUMNS] = "copy_columns",
    [OP_EMBEDDING] = "embedding",
    [OP_EMBEDDING_BACKWARD] = "embedding_backward",
    [OP_ROPE_TABLE] = "rope_table",
    [OP_ROPE] = "rope",
    [OP_ATTENTION] = "attention",
    [OP_ATTENTION_MERGE] = "attention_merge",
    [OP_ATTENTION_DELTA] = "attention_delta",
    [OP_ATTENTION_BACKWARD] = "attention_backward",
    [OP_ROUTE] = "route",
    [OP_ROUTE_STATISTICS] = "route_statistics",
    [OP_BALANCE_LOSS] = "balance_loss",
    [OP_ROUTE_BACKWARD] = "route_backward",
    [OP_ROUTE_ORDER] = "route_order",
    [OP_GATHER_ROWS] = "gather_rows",
    [OP_SUM_SLOTS] = "sum_slots",
    [OP_CROSS_ENTROPY] = "cross_entropy",
    [OP_CROSS_ENTROPY_PART] = "cross_entropy_part",
    [OP_CROSS_ENTROPY_JOIN] = "cross_entropy_join",
    [OP_CROSS_ENTROPY_SUM] = "cross_entropy_sum",
    [OP_CROSS_ENTROPY_GRADIENT] = "cross_entropy_gradient",
    [OP_ADAMW] = "adamw",
    [OP_SQUARE_SUM] = "square_sum",
    [OP_SUM_ROWS] = "sum_rows",
};

const char *op_name(Op op) {
    MUST(op < OP_COUNT);
    return op_names[op];
}

Pool *stream_pool(Stream *s) {
    return s->kind == STREAM_COMPUTE ? s->device->pool : NULL;
}

void parallel(Pool *p, int64_t count, PoolTask task, void *context) {
    if (p != NULL) {
        pool_run(p, count, task, context);
        return;
    }
    for (int64_t i = 0; i < count; i++) task(context, i, 0);
}

/* Arguments travel by value through the queue of a stream. */
#define FITS(Args) _Static_assert(sizeof(Args) <= LAUNCH_BYTES, #Args " must fit a launch")
FITS(LinearArgs);
FITS(SwigluArgs);
FITS(NormArgs);
FITS(AddArgs);
FITS(ColumnsArgs);
FITS(EmbeddingArgs);
FITS(RopeArgs);
FITS(AttentionArgs);
FITS(AttentionRowsArgs);
FITS(RouteArgs);
FITS(RouteBackwardArgs);
FITS(OrderArgs);
FITS(RowsArgs);
FITS(CrossEntropyArgs);
FITS(AdamWArgs);
_Static_assert((int)OP_COUNT <= (int)MAX_OPS, "the meter has a row for every op");
