/* The meaning of the loss. */
#include "ops/cpu/plain.h"

/* loss += lse - logits[target],  dlogits = (exp(logits - lse) - onehot(target)) / trained;  rows without target: 0 */
void plain_cross_entropy(Stream *s, const void *arguments) {
    (void)s;
    const CrossEntropyArgs *a = arguments;
    int64_t rows = a->logits.dim[0], vocabulary = a->logits.dim[1];
    bool gradient = !tensor_none(a->dlogits);
    double trained = gradient ? tensor_get(a->trained, 0) : 0, per_token = trained == 0 ? 0 : 1 / trained;
    for (int64_t r = 0; r < rows; r++) {
        int64_t target = index_at(a->target, r), row = r * vocabulary;
        MUST(target < vocabulary);
        double most = -INFINITY, sum = 0;
        for (int64_t i = 0; i < vocabulary; i++) most = fmax(most, tensor_get(a->logits, row + i));
        for (int64_t i = 0; i < vocabulary; i++) sum += exp(tensor_get(a->logits, row + i) - most);
        double lse = most + log(sum); /* a small loss is what is left of large logits: they first */
        if (target >= 0) tensor_add(a->loss, 0, most - tensor_get(a->logits, row + target) + log(sum));
        for (int64_t i = 0; gradient && i < vocabulary; i++) { /* may overwrite the logit it has just read */
            double wrong = exp(tensor_get(a->logits, row + i) - lse) - (i == target);
            tensor_put(a->dlogits, row + i, target >= 0 && trained != 0 ? wrong * per_token : 0);
        }
    }
}

/* ---- A vocabulary in parts -------------------------------------------------------------------- */

/* What is subtracted before exp: the largest, unless there is none or all are -infinity. */
static double base_of(double largest) {
    return largest == -INFINITY ? 0 : largest;
}

void plain_cross_entropy_part(Stream *s, const void *arguments) {
    (void)s;
    const CrossEntropyArgs *a = arguments;
    int64_t rows = a->logits.dim[0], part = a->logits.dim[1];
    for (int64_t r = 0; r < rows; r++) {
        int64_t target = index_at(a->target, r) - a->first, row = r * part;
        bool here = target >= 0 && target < part;
        double most = -INFINITY, sum = 0;
        for (int64_t i = 0; i < part; i++) most = fmax(most, tensor_get(a->logits, row + i));
        for (int64_t i = 0; i < part; i++) sum += exp(tensor_get(a->logits, row + i) - base_of(most));
        tensor_put(a->stats, r * LOSS_STATS + LOSS_LARGEST, most);
        tensor_put(a->stats, r * LOSS_STATS + LOSS_SUM, sum);
        tensor_put(a->stats, r * LOSS_STATS + LOSS_TARGET, here ? tensor_get(a->logits, row + target) : -INFINITY);
    }
}

/* sum = sum_p sum_p exp(largest_p - largest) */
void plain_cross_entropy_join(Stream *s, const void *arguments) {
    (void)s;
    const CrossEntropyArgs *a = arguments;
    Tensor x = a->logits;
    int64_t parts = x.dim[0], rows = x.dim[1];
    for (int64_t r = 0; r < rows; r++) {
        double most = -INFINITY, sum = 0, at_target = -INFINITY;
        for (int64_t p = 0; p < parts; p++) {
            most = fmax(most, tensor_get(x, (p * rows + r) * LOSS_STATS + LOSS_LARGEST));
            at_target = fmax(at_target, tensor_get(x, (p * rows + r) * LOSS_STATS + LOSS_TARGET));
        }
        for (int64_t p = 0; p < parts; p++) {
            int64_t at = (p * rows + r) * LOSS_STATS;
            sum += tensor_get(x, at + LOSS_SUM) * exp(tensor_get(x, at + LOSS_LARGEST) - base_of(most));
        }
        tensor_put(a->stats, r * LOSS_STATS + LOSS_LARGEST, most);
        tensor_put(a->stats, r * LOSS_STATS + LOSS_SUM, sum);
        tensor_put(a->stats, r * LOSS_STATS + LOSS_TARGET, at_target);
    }
}

/* loss += largest - logit of the target + log(sum) */
void plain_cross_entropy_sum(Stream *s, const void *arguments) {
    (void)s;
    const CrossEntropyArgs *a = arguments;
    for (int64_t r = 0; r < a->stats.dim[0]; r++) {
        if (index_at(a->target, r) < 0) continue;
        double most = tensor_get(a->stats, r * LOSS_STATS + LOSS_LARGEST),
               sum = tensor_get(a->stats, r * LOSS_STATS + LOSS_SUM);
        tensor_add(a->loss, 0, most - tensor_get(a->stats, r * LOSS_STATS + LOSS_TARGET) + log(sum));
    }
}

/* dlogits = (exp(logits - largest) / sum - onehot(target)) / trained;  rows without target: 0 */
void plain_cross_entropy_gradient(Stream *s, const void *arguments) {
    (void)s;
    const CrossEntropyArgs *a = arguments;
    int64_t rows = a->logits.dim[0], part = a->logits.dim[1];
    double trained = tensor_get(a->trained, 0), per_token = trained == 0 ? 0 : 1 / trained;
    for (int64_t r = 0; r < rows; r++) {
        int64_t target = index_at(a->target, r), row = r * part;
        double most = tensor_get(a->stats, r * LOSS_STATS + LOSS_LARGEST),
               sum = tensor_get(a->stats, r * LOSS_STATS + LOSS_SUM);
        for (int64_t i = 0; i < part; i++) { /* may overwrite the logit it has just read */
            double p = exp(tensor_get(a->logits, row + i) - most) / sum, wrong = p - (a->first + i == target);
            tensor_put(a->dlogits, row + i, target >= 0 && trained != 0 ? wrong * per_token : 0);
        }
    }
}
