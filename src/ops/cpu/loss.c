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
        double lse = most + log(sum);
        if (target >= 0) tensor_add(a->loss, 0, lse - tensor_get(a->logits, row + target));
        for (int64_t i = 0; gradient && i < vocabulary; i++) { /* may overwrite the logit it has just read */
            double wrong = exp(tensor_get(a->logits, row + i) - lse) - (i == target);
            tensor_put(a->dlogits, row + i, target >= 0 && trained != 0 ? wrong * per_token : 0);
        }
    }
}
