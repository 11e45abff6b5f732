/* The front door of the loss. */
#include "ops/launch.h"

enum {
    LOSS_FLOPS = 3,     /* a logit: subtract, exp, sum */
    GRADIENT_FLOPS = 2, /* a logit more: to probability, over the trained tokens */
};

void cross_entropy(Stream *s, Tensor loss, Tensor dlogits, Tensor logits, Tensor target, Tensor trained) {
    bool gradient = !tensor_none(dlogits);
    MUST((logits.type == FP32 || logits.type == FP64) && logits.dims == 2);
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
