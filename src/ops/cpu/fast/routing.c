/* Routing: which expert (a softmax and the k largest of each token), what that costs the losses, and rows moved to
 * experts and back. Rows are short (E experts) and many; auxiliary losses are kept in double. */
#include "ops/cpu/fast/fast.h"

enum {
    TOKENS = 64,  /* of a task */
    EXPERTS = 32, /* columns of a task of the statistics */
    ROWS = 16,    /* moved by a task */
};

/* ---- route ------------------------------------------------------------------------------------ */

/* The k largest logits of one token, largest first, ties to the lower index: each in turn moves up past all it
 * exceeds. The list of their values lives in `value` [k]. A NaN exceeds nothing and stays where it is: the k are
 * different all the same. */
static void choose(const RouteArgs *a, int64_t t, int32_t *chosen, REAL *value) {
    int64_t experts = a->logits.dim[1], k = a->chosen.dim[1], filled = 0;
    for (int64_t e = 0; e < experts; e++) {
        REAL x = value_get(a->logits, t * experts + e);
        int64_t at = filled;
        if (filled == k) {
            if (!(x > value[k - 1])) continue;
            at = k - 1;
        } else {
            filled++;
        }
        for (; at > 0 && x > value[at - 1]; at--) {
            value[at] = value[at - 1];
            chosen[at] = chosen[at - 1];
        }
        value[at] = x;
        chosen[at] = (int32_t)e;
    }
}

/* p = softmax(logits);  lse */
static void soften(const RouteArgs *a, int64_t t) {
    const Tensor p = a->p, logits = a->logits;
    const Vector nothing = vector_all(-(REAL)INFINITY);
    int64_t experts = logits.dim[1], first = t * experts;
    Vector most = nothing, sum = {0};
    for (int64_t e = 0; e < experts; e += LANES)
        most = vector_max(vector_get_or(logits, first + e, experts - e, nothing), most);
    REAL largest = vector_highest(most);
    for (int64_t e = 0; e < experts; e += LANES) {
        Vector x = vector_exp(vector_get_or(logits, first + e, experts - e, nothing) - largest);
        vector_put(p, first + e, experts - e, x);
        sum += x;
    }
    REAL total = vector_sum(sum);
    for (int64_t e = 0; e < experts; e += LANES)
        vector_put(p, first + e, experts - e, vector_get(p, first + e, experts - e) / total);
    value_put(a->lse, t, (REAL)((double)largest + log((double)total)));
}

/* weight = p of the chosen, over their sum when `normalise` */
static void route_tokens(void *context, int64_t index, int worker) {
    (void)worker;
    const RouteArgs *a = context;
    int64_t experts = a->p.dim[1], k = a->chosen.dim[1];
    for (int64_t t = index * TOKENS; t < min64((index + 1) * TOKENS, a->p.dim[0]); t++) {
        int32_t *chosen = (int32_t *)a->chosen.data + t * k;
        REAL *weight = (REAL *)a->weight.data + t * k;
        const REAL *p = (const REAL *)a->p.data + t * experts;
        REAL of_chosen = 0;
        choose(a, t, chosen, weight);
        soften(a, t);
        for (int64_t j = 0; j < k; j++) of_chosen += p[chosen[j]];
        for (int64_t j = 0; j < k; j++) {
            REAL w = a->normalise ? p[chosen[j]] / of_chosen : p[chosen[j]];
            weight[j] = vector_rounded(a->round, vector_all(w))[0];
        }
    }
}

void KERNEL(route)(Stream *s, const void *args) {
    const RouteArgs *a = args;
    parallel(stream_pool(s), ceil_div(a->p.dim[0], TOKENS), route_tokens, (void *)args);
}

/* ---- The auxiliary losses --------------------------------------------------------------------- */

/* counts[s,e] += 1 for each chosen e,  mass[s,e] += p,  z += lse^2. A task owns some experts, and task 0 also z:
 * so that all sums are in the order of t. */
static void count_experts(void *context, int64_t index, int worker) {
    (void)worker;
    const RouteArgs *a = context;
    int64_t tokens = a->p.dim[0], experts = a->p.dim[1], k = a->chosen.dim[1];
    int64_t first = index * EXPERTS, end = min64(first + EXPERTS, experts);
    const int32_t *sequence = a->sequence.data, *chosen = a->chosen.data;
    const REAL *p = a->p.data, *lse = a->lse.data;
    double z = 0;
    for (int64_t t = 0; t < tokens; t++) {
        if (sequence[t] < 0) continue;
        MUST(sequence[t] < a->counts.dim[0]);
        double *restrict counts = (double *)a->counts.data + sequence[t] * experts;
        double *restrict mass = (double *)a->mass.data + sequence[t] * experts;
        for (int64_t slot = t * k; slot < (t + 1) * k; slot++)
            if (chosen[slot] >= first && chosen[slot] < end) counts[chosen[slot]] += 1;
        for (int64_t e = first; e < end; e++) mass[e] += (double)p[t * experts + e];
        z += (double)lse[t] * (double)lse[t];
    }
    if (index == 0) *(double *)a->z.data += z;
}

void KERNEL(route_statistics)(Stream *s, const void *args) {
    const RouteArgs *a = args;
    parallel(stream_pool(s), ceil_div(a->p.dim[1], EXPERTS), count_experts, (void *)args);
}

/* What the balance loss gives p[t,e]: factor counts[e], or nothing. */
typedef struct {
    double factor;
    const double *counts; /* NULL: nothing */
} Balance;

static Balance balance_of(const RouteBackwardArgs *a, int64_t t) {
    int64_t sequence = ((const int32_t *)a->sequence.data)[t], experts = a->p.dim[1];
    if (sequence < 0 || a->loss.balance == 0) return (Balance){0};
    MUST(sequence < a->counts.dim[0]);
    double rows = ((const double *)a->rows.data)[sequence];
    if (rows == 0) return (Balance){0};
    const double *counts = (const double *)a->counts.data + sequence * experts;
    return (Balance){a->loss.balance * (double)experts / (rows * rows), counts};
}

static double balance_gradient(Balance b, int64_t e) {
    return b.counts == NULL ? 0 : b.factor * b.counts[e];
}

/* The gradient of lse: z 2 lse / real_positions, at real positions. */
static double lse_gradient(const RouteBackwardArgs *a, int64_t t) {
    if (a->loss.z == 0 || ((const int32_t *)a->sequence.data)[t] < 0) return 0;
    return a->loss.z * 2 * (double)value_get(a->lse, t) / *(const double *)a->real_positions.data;
}

/* dlogits = p (dp - sum_e p dp + dlse): dp of every expert from the balance loss, of the chosen also from their weights
 * w = p / P, P the sum over the chosen: (dweight - sum_i dweight_i w_i) / P. */
static void route_backward_token(const RouteBackwardArgs *a, int64_t t) {
    int64_t experts = a->p.dim[1], k = a->chosen.dim[1], row = t * experts;
    const REAL *p = (const REAL *)a->p.data + row, *dweight = (const REAL *)a->dweight.data + t * k;
    const int32_t *chosen = (const int32_t *)a->chosen.data + t * k;
    Balance balance = balance_of(a, t);
    double of_chosen = 0, pulled = 0, mean = 0;
    for (int64_t j = 0; j < k; j++) {
        of_chosen += (double)p[chosen[j]];
        pulled += (double)dweight[j] * (double)p[chosen[j]];
    }
    double scale = a->loss.normalise ? 1 / of_chosen : 1, shift = a->loss.normalise ? pulled / of_chosen : 0;
    for (int64_t e = 0; e < experts; e++) mean += (double)p[e] * balance_gradient(balance, e);
    for (int64_t j = 0; j < k; j++) mean += (double)p[chosen[j]] * ((double)dweight[j] - shift) * scale;
    double common = lse_gradient(a, t) - mean;
    for (int64_t e = 0; e < experts; e++)
        value_put(a->dlogits, row + e, (REAL)((double)p[e] * (balance_gradient(balance, e) + common)));
    for (int64_t j = 0; j < k; j++) {
        double dp = ((double)dweight[j] - shift) * scale + balance_gradient(balance, chosen[j]);
        value_put(a->dlogits, row + chosen[j], (REAL)((double)p[chosen[j]] * (dp + common)));
    }
}

static void route_backward_tokens(void *context, int64_t index, int worker) {
    (void)worker;
    const RouteBackwardArgs *a = context;
    for (int64_t t = index * TOKENS; t < min64((index + 1) * TOKENS, a->p.dim[0]); t++) route_backward_token(a, t);
}

void KERNEL(route_backward)(Stream *s, const void *args) {
    const RouteBackwardArgs *a = args;
    parallel(stream_pool(s), ceil_div(a->p.dim[0], TOKENS), route_backward_tokens, (void *)args);
}

/* ---- Rows on the move ------------------------------------------------------------------------- */

/* y[i] = x[index[i] / divide] */
static void gather_some(void *context, int64_t index, int worker) {
    (void)worker;
    const RowsArgs *a = context;
    size_t row = (size_t)a->y.dim[1] * type_bytes(a->y.type);
    const int32_t *from = a->index.data;
    for (int64_t i = index * ROWS; i < min64((index + 1) * ROWS, a->y.dim[0]); i++) {
        int64_t source = from[i] / a->divide;
        MUST(from[i] >= 0 && source < a->x.dim[0]);
        memcpy((char *)a->y.data + (size_t)i * row, (const char *)a->x.data + (size_t)source * row, row);
    }
}

void KERNEL(gather_rows)(Stream *s, const void *args) {
    const RowsArgs *a = args;
    parallel(stream_pool(s), ceil_div(a->y.dim[0], ROWS), gather_some, (void *)args);
}

/* y[t] = base[t] + sum_j rows[place[t,j] - first] */
static void sum_token(const RowsArgs *a, int64_t t) {
    const Tensor y = a->y, x = a->x, base = a->base;
    const bool based = !tensor_none(base);
    const int32_t *place = (const int32_t *)a->place.data + t * a->place.dim[1];
    int64_t width = y.dim[1], k = a->place.dim[1], first = a->round.first;
    for (int64_t j = 0; j < k; j++) MUST(place[j] >= first && place[j] - first < x.dim[0]);
    for (int64_t i = 0; i < width; i += LANES) {
        Vector sum = {0};
        if (based) sum = vector_get(base, t * width + i, width - i);
        for (int64_t j = 0; j < k; j++) sum += vector_get(x, (place[j] - first) * width + i, width - i);
        vector_put(y, t * width + i, width - i, sum);
    }
}

static int64_t tokens_to_sum(const RowsArgs *a) {
    return max64(0, ceil_div(a->y.dim[0] - a->round.token, a->round.step));
}

static void sum_some(void *context, int64_t index, int worker) {
    (void)worker;
    const RowsArgs *a = context;
    for (int64_t i = index * ROWS; i < min64((index + 1) * ROWS, tokens_to_sum(a)); i++)
        sum_token(a, a->round.token + i * a->round.step);
}

void KERNEL(sum_slots)(Stream *s, const void *args) {
    parallel(stream_pool(s), ceil_div(tokens_to_sum(args), ROWS), sum_some, (void *)args);
}
