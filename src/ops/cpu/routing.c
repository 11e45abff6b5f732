/* The meaning of routing: softmax and the k largest, the auxiliary losses, and the sorts that bring tokens
 * to experts. */
#include "ops/cpu/plain.h"

/* ---- route ------------------------------------------------------------------------------------ */

static bool already_chosen(const RouteArgs *a, int64_t t, int64_t j, int64_t e) {
    int64_t k = a->chosen.dim[1];
    for (int64_t i = 0; i < j; i++) {
        if (index_at(a->chosen, t * k + i) == e) return true;
    }
    return false;
}

/* The largest logit that is not among the first j chosen; of equals the lowest index. */
static int64_t choose(const RouteArgs *a, int64_t t, int64_t j) {
    int64_t experts = a->logits.dim[1], best = -1;
    for (int64_t e = 0; e < experts; e++) {
        if (already_chosen(a, t, j, e)) continue;
        if (best < 0 || tensor_get(a->logits, t * experts + e) > tensor_get(a->logits, t * experts + best)) best = e;
    }
    return best;
}

/* p = softmax(logits);  chosen = the k largest;  weight = p of the chosen, over their sum when `normalise` */
void plain_route(Stream *s, const void *arguments) {
    (void)s;
    const RouteArgs *a = arguments;
    int64_t tokens = a->p.dim[0], experts = a->p.dim[1], k = a->chosen.dim[1];
    for (int64_t t = 0; t < tokens; t++) {
        double most = -INFINITY, sum = 0, of_chosen = 0;
        for (int64_t e = 0; e < experts; e++) most = fmax(most, tensor_get(a->logits, t * experts + e));
        for (int64_t e = 0; e < experts; e++) sum += exp(tensor_get(a->logits, t * experts + e) - most);
        double lse = most + log(sum);
        tensor_put(a->lse, t, lse);
        for (int64_t e = 0; e < experts; e++)
            tensor_put(a->p, t * experts + e, exp(tensor_get(a->logits, t * experts + e) - lse));
        for (int64_t j = 0; j < k; j++) {
            int64_t e = choose(a, t, j);
            tensor_put(a->chosen, t * k + j, (double)e);
            of_chosen += tensor_get(a->p, t * experts + e);
        }
        for (int64_t j = 0; j < k; j++) {
            double p = tensor_get(a->p, t * experts + index_at(a->chosen, t * k + j));
            tensor_put(a->weight, t * k + j, type_round(a->round, a->normalise ? p / of_chosen : p));
        }
    }
}

/* ---- The auxiliary losses --------------------------------------------------------------------- */

/* counts[s,e] += 1 for each chosen e,  mass[s,e] += p,  z += lse^2;  over the real positions of each sequence s */
void plain_route_statistics(Stream *s, const void *arguments) {
    (void)s;
    const RouteArgs *a = arguments;
    int64_t tokens = a->p.dim[0], experts = a->p.dim[1], k = a->chosen.dim[1];
    for (int64_t t = 0; t < tokens; t++) {
        int64_t sequence = index_at(a->sequence, t);
        if (sequence < 0) continue;
        MUST(sequence < a->counts.dim[0]);
        int64_t row = sequence * experts;
        for (int64_t j = 0; j < k; j++) tensor_add(a->counts, row + index_at(a->chosen, t * k + j), 1);
        for (int64_t e = 0; e < experts; e++) tensor_add(a->mass, row + e, tensor_get(a->p, t * experts + e));
        tensor_add(a->z, 0, pow(tensor_get(a->lse, t), 2));
    }
}

/* loss += sum_s E sum_e (counts[s,e] / rows[s]) (mass[s,e] / rows[s]) */
void plain_balance_loss(Stream *s, const void *arguments) {
    (void)s;
    const RouteArgs *a = arguments;
    int64_t sequences = a->counts.dim[0], experts = a->counts.dim[1];
    for (int64_t n = 0; n < sequences; n++) {
        double rows = tensor_get(a->rows, n), sum = 0;
        if (rows == 0) continue;
        for (int64_t e = 0; e < experts; e++)
            sum += tensor_get(a->counts, n * experts + e) / rows * (tensor_get(a->mass, n * experts + e) / rows);
        tensor_add(a->loss, 0, (double)experts * sum);
    }
}

/* The gradient of p[t,e] that the balance loss gives: balance E counts[s,e] / rows[s]^2. Where every expert is chosen
 * all counts are one number, and p sums to 1: nothing is left of it, not even rounding. */
static double balance_gradient(const RouteBackwardArgs *a, int64_t t, int64_t e) {
    int64_t sequence = index_at(a->sequence, t), experts = a->p.dim[1];
    if (sequence < 0 || a->loss.balance == 0 || a->chosen.dim[1] == experts) return 0;
    MUST(sequence < a->counts.dim[0]);
    double rows = tensor_get(a->rows, sequence);
    if (rows == 0) return 0;
    return a->loss.balance * (double)experts * tensor_get(a->counts, sequence * experts + e) / (rows * rows);
}

/* The gradient of p[t,e] that the experts give: e's slot's dweight; with w = p / P, P the sum over the chosen,
 * (dweight - sum_i dweight_i w_i) / P. 0 for an expert that was not chosen, and where one chosen expert has
 * w = p / p. */
static double weight_gradient(const RouteBackwardArgs *a, int64_t t, int64_t e) {
    int64_t k = a->chosen.dim[1], experts = a->p.dim[1], slot = -1;
    double of_chosen = 0, pulled = 0;
    if (a->loss.normalise && k == 1) return 0;
    for (int64_t j = 0; j < k; j++) {
        int64_t other = index_at(a->chosen, t * k + j);
        double p = tensor_get(a->p, t * experts + other);
        if (other == e) slot = t * k + j;
        of_chosen += p;
        pulled += tensor_get(a->dweight, t * k + j) * p;
    }
    if (slot < 0) return 0;
    double dweight = tensor_get(a->dweight, slot);
    return a->loss.normalise ? (dweight - pulled / of_chosen) / of_chosen : dweight;
}

/* dlogits = p (dp - sum_e p dp) + z 2 lse p / real_positions */
void plain_route_backward(Stream *s, const void *arguments) {
    (void)s;
    const RouteBackwardArgs *a = arguments;
    int64_t tokens = a->p.dim[0], experts = a->p.dim[1];
    for (int64_t t = 0; t < tokens; t++) {
        bool with_z = a->loss.z != 0 && index_at(a->sequence, t) >= 0;
        double dlse = with_z ? a->loss.z * 2 * tensor_get(a->lse, t) / tensor_get(a->real_positions, 0) : 0;
        double mean = 0;
        for (int64_t e = 0; e < experts; e++)
            mean += tensor_get(a->p, t * experts + e) * (weight_gradient(a, t, e) + balance_gradient(a, t, e));
        for (int64_t e = 0; e < experts; e++) {
            double p = tensor_get(a->p, t * experts + e), dp = weight_gradient(a, t, e) + balance_gradient(a, t, e);
            tensor_put(a->dlogits, t * experts + e, p * (dp - mean + dlse));
        }
    }
}

/* ---- Who goes where --------------------------------------------------------------------------- */

/* Where a slot is counted: the cell of its round and expert. */
static int64_t cell_of(const OrderArgs *a, int64_t slot) {
    int64_t k = a->chosen.dim[1], rounds = a->counts.dim[0], experts = a->counts.dim[1], e = index_at(a->chosen, slot);
    MUST(e >= 0 && e < experts);
    return slot / k % rounds * experts + e;
}

/* Sorted by round, by expert, and by slot within an expert: a counting sort. `counts` holds, in turn, how many slots
 * each cell has, where its next row goes, where its rows end, and how many it has again. */
void plain_route_order(Stream *s, const void *arguments) {
    (void)s;
    const OrderArgs *a = arguments;
    int64_t slots = tensor_count(a->chosen), cells = tensor_count(a->counts), row = 0;
    int32_t *order = a->order.data, *place = a->place.data;
    int64_t *counts = a->counts.data;
    for (int64_t i = 0; i < cells; i++) counts[i] = 0;
    for (int64_t slot = 0; slot < slots; slot++) counts[cell_of(a, slot)]++;
    for (int64_t i = 0; i < cells; i++) {
        int64_t n = counts[i];
        counts[i] = row;
        row += n;
    }
    for (int64_t slot = 0; slot < slots; slot++) {
        int64_t to = counts[cell_of(a, slot)]++;
        order[to] = (int32_t)slot;
        place[slot] = (int32_t)to;
    }
    for (int64_t i = cells - 1; i > 0; i--) counts[i] -= counts[i - 1];
}

/* y[i] = x[index[i] / divide] */
void plain_gather_rows(Stream *s, const void *arguments) {
    (void)s;
    const RowsArgs *a = arguments;
    int64_t rows = a->y.dim[0], width = a->y.dim[1];
    for (int64_t i = 0; i < rows; i++) {
        int64_t from = index_at(a->index, i) / a->divide;
        MUST(from >= 0 && from < a->x.dim[0]);
        for (int64_t c = 0; c < width; c++) tensor_put(a->y, i * width + c, tensor_get(a->x, from * width + c));
    }
}

/* y[t] = base[t] + sum_j rows[place[t,j] - first], for every step-th t */
void plain_sum_slots(Stream *s, const void *arguments) {
    (void)s;
    const RowsArgs *a = arguments;
    int64_t tokens = a->y.dim[0], width = a->y.dim[1], k = a->place.dim[1];
    for (int64_t t = a->round.token; t < tokens; t += a->round.step) {
        for (int64_t c = 0; c < width; c++) {
            double sum = tensor_none(a->base) ? 0 : tensor_get(a->base, t * width + c);
            for (int64_t j = 0; j < k; j++) {
                int64_t row = index_at(a->place, t * k + j) - a->round.first;
                MUST(row >= 0 && row < a->x.dim[0]);
                sum += tensor_get(a->x, row * width + c);
            }
            tensor_put(a->y, t * width + c, sum);
        }
    }
}
