/* The front doors of the loss. */
#include "ops/launch.h"

enum {
    LOSS_FLOPS = 3,     /* a logit: subtract, exp, sum */
    GRADIENT_FLOPS = 2, /* a logit more: to probability, over the trained tokens */
    AGAIN_FLOPS = 2,    /* a logit once more, of a part: subtract, exp */
    JOIN_FLOPS = 4,     /* a part of a row: subtract, exp, product, sum */
    SUM_FLOPS = 4,      /* a row: log and three sums */
};

void cross_entropy(Stream *s, Tensor loss, Tensor dlogits, Tensor logits, Tensor target, Tensor trained) {
    bool gradient = !tensor_none(dlogits);
    MUST((logits.type == FP32 || logits.type == FP64) && logits.dims == 2 && logits.dim[1] <= MAX_VOCABULARY);
    MUST(tensor_is(loss, FP64, DIM(1)) && tensor_is(target, INT32, DIM(logits.dim[0])));
    MUST(!gradient || (type_real(dlogits.type) && type_sum(dlogits.type) == logits.type));
    MUST(none_or_is(dlogits, dlogits.type, DIM(logits.dim[0], logits.dim[1])));
    MUST(dlogits.type == logits.type || !same_memory(dlogits, logits));
    MUST(gradient ? tensor_is(trained, FP64, DIM(1)) : none_or_is(trained, FP64, DIM(1)));
    CrossEntropyArgs args = {.loss = loss, .dlogits = dlogits, .logits = logits, .target = target, .trained = trained};
    int64_t each = LOSS_FLOPS + (gradient ? GRADIENT_FLOPS : 0);
    int64_t bytes = logits.dim[0] > 0 ? BYTES_OF(loss, loss, dlogits, logits, target, trained) : 0;
    op_run(s, OP_CROSS_ENTROPY, logits.type, each * tensor_count(logits), bytes, &args, sizeof args);
}

/* ---- A vocabulary in parts -------------------------------------------------------------------- */

static bool is_sum(Type t) {
    return t == FP32 || t == FP64;
}

void cross_entropy_part(Stream *s, Tensor stats, Tensor logits, Tensor target, int64_t first) {
    MUST(is_sum(logits.type) && logits.dims == 2 && first >= 0);
    MUST(tensor_is(stats, logits.type, DIM(logits.dim[0], LOSS_STATS)) && tensor_is(target, INT32, DIM(logits.dim[0])));
    CrossEntropyArgs args = {.stats = stats, .logits = logits, .target = target, .first = first};
    op_run(s, OP_CROSS_ENTROPY_PART, logits.type, LOSS_FLOPS * tensor_count(logits), BYTES_OF(stats, logits, target),
           &args, sizeof args);
}

void cross_entropy_join(Stream *s, Tensor y, Tensor x) {
    MUST(is_sum(x.type) && x.dims == 3 && x.dim[0] > 0 && x.dim[2] == LOSS_STATS &&
         tensor_is(y, x.type, DIM(x.dim[1], LOSS_STATS)));
    CrossEntropyArgs args = {.stats = y, .logits = x};
    op_run(s, OP_CROSS_ENTROPY_JOIN, x.type, JOIN_FLOPS * x.dim[0] * x.dim[1], BYTES_OF(y, x), &args, sizeof args);
}

void cross_entropy_sum(Stream *s, Tensor loss, Tensor stats, Tensor target) {
    MUST(is_sum(stats.type) && stats.dims == 2 && stats.dim[1] == LOSS_STATS && tensor_is(loss, FP64, DIM(1)));
    MUST(tensor_is(target, INT32, DIM(stats.dim[0])));
    CrossEntropyArgs args = {.loss = loss, .stats = stats, .target = target};
    int64_t bytes = stats.dim[0] > 0 ? BYTES_OF(loss, loss, stats, target) : 0;
    op_run(s, OP_CROSS_ENTROPY_SUM, stats.type, SUM_FLOPS * stats.dim[0], bytes, &args, sizeof args);
}

void cross_entropy_gradient(Stream *s, Tensor dlogits, Tensor logits, Tensor stats, Tensor target, int64_t first,
                            Tensor trained) {
    MUST(is_sum(logits.type) && logits.dims == 2 && first >= 0);
    MUST(type_real(dlogits.type) && type_sum(dlogits.type) == logits.type);
    MUST(tensor_is(dlogits, dlogits.type, DIM(logits.dim[0], logits.dim[1])));
    MUST(dlogits.type == logits.type || !same_memory(dlogits, logits));
    MUST(tensor_is(stats, logits.type, DIM(logits.dim[0], LOSS_STATS)) && tensor_is(target, INT32, DIM(logits.dim[0])));
    MUST(tensor_is(trained, FP64, DIM(1)));
    CrossEntropyArgs args = {
        .dlogits = dlogits, .logits = logits, .stats = stats, .target = target, .trained = trained, .first = first};
    int64_t count = tensor_count(logits), bytes = BYTES_OF(dlogits, logits, stats, target, trained);
    op_run(s, OP_CROSS_ENTROPY_GRADIENT, logits.type, (AGAIN_FLOPS + GRADIENT_FLOPS) * count, count > 0 ? bytes : 0,
           &args, sizeof args);
}
