/* Routing: which expert (a softmax and the k largest of each token), what that costs the losses, and rows moved to
 * experts and back. Rows are short (E experts) and many; auxiliary losses are kept in double. */
#include "ops/cpu/fast/fast.h"

enum {
    TOKENS = 64,  /* of a task */
    EXPERTS = 32, /* columns of a task of the statistics */
    ROWS = 16,    /* moved by a task */
    GROUP = 4,    /* vectors that pass through exp, or are summed, together */
};

/* ---- route ------------------------------------------------------------------------------------ */

/* Tokens are taken LANES at a time, one a lane, so that rows of any length fill the vectors. */
typedef struct {
    int64_t first, tokens; /* tokens <= LANES: the lanes beyond repeat the last */
    Vector *logit;         /* [experts, rounded up to LANES]; then p */
    Vector *best;          /* [k]: the largest logits, largest first */
    Words *chosen;         /* [k]: whose they are */
} Group;

static int64_t bytes_of_group(int64_t experts, int64_t k) {
    return (ceil_div(experts, LANES) * LANES + 2 * k) * VECTOR_BYTES;
}

static Group group_at(char *memory, const RouteArgs *a, int64_t first, int64_t end) {
    int64_t experts = ceil_div(a->p.dim[1], LANES) * LANES, k = a->chosen.dim[1];
    return (Group){.first = first,
                   .tokens = min64(LANES, end - first),
                   .logit = (Vector *)memory,
                   .best = (Vector *)memory + experts,
                   .chosen = (Words *)memory + experts + k};
}

static void group_load(const RouteArgs *a, Group g) {
    int64_t experts = a->p.dim[1];
    for (int64_t e = 0; e < experts; e += LANES) {
        UNROLLED for (int lane = 0; lane < LANES; lane++) {
            int64_t row = g.first + min64(lane, g.tokens - 1);
            g.logit[e + lane] = vector_get(a->logits, row * experts + e, experts - e);
        }
        transpose(g.logit + e);
    }
}

/* Each expert in turn goes down the list of the best so far; where its logit exceeds one, what is carried changes
 * places with it: first the expert itself, then what it has pushed out. So ties go to the lower index. A NaN exceeds
 * nothing and stays where it is: the k are different all the same. */
static void group_choose(Group g, int64_t experts, int64_t k) {
    for (int64_t e = 0; e < experts; e++) {
        const Vector logit = g.logit[e];
        Vector carried = logit;
        Words expert = (Words){0} + (Word)e;
        for (int64_t j = 0; j < min64(e, k); j++) {
            Vector held = g.best[j];
            Words exchanged = (g.chosen[j] ^ expert) & (Words)(logit > held);
            g.best[j] = vector_max(carried, held);
            carried = vector_min(held, carried);
            g.chosen[j] ^= exchanged;
            expert ^= exchanged;
        }
        if (e >= k) continue;
        g.best[e] = carried;
        g.chosen[e] = expert;
    }
}

/* x = exp(x - largest), of so many experts; their sum is added to `sum` */
INLINE void soften(Vector *x, Vector largest, Vector *sum, int vectors) {
    UNROLLED for (int v = 0; v < vectors; v++) x[v] -= largest;
    vectors_exp(x, vectors);
    UNROLLED for (int v = 0; v < vectors; v++) *sum += x[v];
}

static Vector soften_all(Vector *x, Vector largest, int64_t count) {
    Vector sum = {0};
    int64_t i = 0;
    for (; i + GROUP <= count; i += GROUP) soften(x + i, largest, &sum, GROUP);
    for (; i < count; i++) soften(x + i, largest, &sum, 1);
    return sum;
}

static void group_store_p(const RouteArgs *a, Group g, Vector factor) {
    int64_t experts = a->p.dim[1];
    for (int64_t e = 0; e < experts; e += LANES) {
        UNROLLED for (int lane = 0; lane < LANES; lane++) g.logit[e + lane] *= factor;
        transpose(g.logit + e);
        for (int64_t lane = 0; lane < g.tokens; lane++)
            vector_put(a->p, (g.first + lane) * experts + e, experts - e, g.logit[e + lane]);
    }
}

/* p = softmax(logits);  lse;  weight = p of the chosen, over their sum when `normalise` */
static void route_group(const RouteArgs *a, Group g) {
    int64_t experts = a->p.dim[1], k = a->chosen.dim[1];
    group_load(a, g);
    group_choose(g, experts, k);
    Vector largest = g.best[0], total = soften_all(g.logit, largest, experts), factor = 1 / total;
    Vector of_chosen = factor * soften_all(g.best, largest, k);
    group_store_p(a, g, factor);
    if (a->normalise) factor /= of_chosen;
    for (int64_t j = 0; j < k; j++) {
        Vector weight = vector_rounded(a->round, g.best[j] * factor);
        for (int64_t lane = 0; lane < g.tokens; lane++) {
            int64_t slot = (g.first + lane) * k + j;
            ((int32_t *)a->chosen.data)[slot] = (int32_t)g.chosen[j][lane];
            ((REAL *)a->weight.data)[slot] = weight[lane];
        }
    }
    for (int64_t lane = 0; lane < g.tokens; lane++)
        value_put(a->lse, g.first + lane, (REAL)((double)largest[lane] + log((double)total[lane])));
}

typedef struct {
    const RouteArgs *a;
    Pool *pool;
} Route;

static void route_tokens(void *context, int64_t index, int worker) {
    const Route *r = context;
    const RouteArgs *a = r->a;
    int64_t end = min64((index + 1) * TOKENS, a->p.dim[0]);
    char *memory = pool_scratch(r->pool, worker, bytes_of_group(a->p.dim[1], a->chosen.dim[1]));
    for (int64_t t = index * TOKENS; t < end; t += LANES) route_group(a, group_at(memory, a, t, end));
}

void KERNEL(route)(Stream *s, const void *args) {
    Route r = {.a = args, .pool = stream_pool(s)};
    MUST(r.pool != NULL);
    pool_run(r.pool, ceil_div(r.a->p.dim[0], TOKENS), route_tokens, &r);
}

/* ---- The auxiliary losses --------------------------------------------------------------------- */

/* mass[s,e] += p, for some experts of one token */
INLINE void add_mass(double *restrict mass, const REAL *restrict p, int64_t experts) {
    for (int64_t e = 0; e < experts; e++) mass[e] += (double)p[e];
}

/* A task owns some experts, so that all sums are in the order of t. */
static void weigh_experts(const RouteArgs *a, int64_t first, int64_t count) {
    int64_t experts = a->p.dim[1];
    for (int64_t t = 0; t < a->p.dim[0]; t++) {
        int64_t sequence = ((const int32_t *)a->sequence.data)[t];
        if (sequence < 0) continue;
        MUST(sequence < a->counts.dim[0]);
        double *mass = (double *)a->mass.data + sequence * experts + first;
        const REAL *p = (const REAL *)a->p.data + t * experts + first;
        if (count == EXPERTS)
            add_mass(mass, p, EXPERTS);
        else
            add_mass(mass, p, count);
    }
}

/* counts[s,e] += 1 for each chosen e,  z += lse^2 */
static void count_experts(const RouteArgs *a) {
    int64_t experts = a->p.dim[1], k = a->chosen.dim[1];
    const int32_t *sequence = a->sequence.data, *chosen = a->chosen.data;
    const REAL *lse = a->lse.data;
    double z = 0;
    for (int64_t t = 0; t < a->p.dim[0]; t++) {
        if (sequence[t] < 0) continue;
        MUST(sequence[t] < a->counts.dim[0]);
        double *counts = (double *)a->counts.data + sequence[t] * experts;
        for (int64_t slot = t * k; slot < (t + 1) * k; slot++) {
            MUST(chosen[slot] >= 0 && chosen[slot] < experts);
            counts[chosen[slot]] += 1;
        }
        z += (double)lse[t] * (double)lse[t];
    }
    *(double *)a->z.data += z;
}

/* Task 0 counts, the others weigh. */
static void statistics_task(void *context, int64_t index, int worker) {
    (void)worker;
    const RouteArgs *a = context;
    int64_t first = (index - 1) * EXPERTS;
    if (index == 0)
        count_experts(a);
    else
        weigh_experts(a, first, min64(EXPERTS, a->p.dim[1] - first));
}

void KERNEL(route_statistics)(Stream *s, const void *args) {
    const RouteArgs *a = args;
    parallel(stream_pool(s), 1 + ceil_div(a->p.dim[1], EXPERTS), statistics_task, (void *)args);
}

/* What the balance loss gives p[t,e]: factor counts[e], or nothing; also where every expert is chosen, see
 * ops/cpu/routing.c. */
typedef struct {
    double factor;
    const double *counts; /* NULL: nothing */
} Balance;

static Balance balance_of(const RouteBackwardArgs *a, int64_t t) {
    int64_t sequence = ((const int32_t *)a->sequence.data)[t], experts = a->p.dim[1];
    if (sequence < 0 || a->loss.balance == 0 || a->chosen.dim[1] == experts) return (Balance){0};
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

/* sum_e p counts */
static double mass_of_counts(const REAL *p, const double *counts, int64_t experts) {
    Doubles sum[WIDE] = {{0}}, wide[WIDE];
    int64_t e = 0;
    for (; e + LANES <= experts; e += LANES) {
        vector_widen(wide, vector_load(p + e));
        UNROLLED for (int w = 0; w < WIDE; w++) sum[w] +=
            wide[w] * *(const LooseDoubles *)(counts + e + w * WIDE_LANES);
    }
    double total = doubles_sum(sum);
    for (; e < experts; e++) total += (double)p[e] * counts[e];
    return total;
}

/* dlogits = p (balance + common): what experts that were not chosen get */
static void write_row(const RouteBackwardArgs *a, int64_t t, Balance balance, double common) {
    int64_t experts = a->p.dim[1], row = t * experts, e = 0;
    const REAL *p = (const REAL *)a->p.data + row;
    for (; e + LANES <= experts; e += LANES) {
        Doubles wide[WIDE], dp = (Doubles){0} + common;
        vector_widen(wide, vector_load(p + e));
        UNROLLED for (int w = 0; w < WIDE; w++) {
            Doubles counts = {0};
            if (balance.counts != NULL) counts = *(const LooseDoubles *)(balance.counts + e + w * WIDE_LANES);
            wide[w] *= balance.factor * counts + dp;
        }
        vector_put(a->dlogits, row + e, LANES, vector_narrow(wide));
    }
    for (; e < experts; e++)
        value_put(a->dlogits, row + e, (REAL)((double)p[e] * (balance_gradient(balance, e) + common)));
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
    if (a->loss.normalise && k == 1) scale = 0; /* the weight is 1 */
    if (balance.counts != NULL) mean = balance.factor * mass_of_counts(p, balance.counts, experts);
    for (int64_t j = 0; j < k; j++) mean += (double)p[chosen[j]] * ((double)dweight[j] - shift) * scale;
    double common = lse_gradient(a, t) - mean;
    write_row(a, t, balance, common);
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

/* y[t] = base[t] + sum_j rows[place[t,j] - first], of so many vectors from column i on */
INLINE void sum_vectors(const RowsArgs *a, int64_t t, int64_t i, int64_t left, int vectors) {
    const bool based = !tensor_none(a->base);
    int64_t width = a->y.dim[1], k = a->place.dim[1];
    const int32_t *place = (const int32_t *)a->place.data + t * k;
    Vector sum[GROUP];
    UNROLLED for (int v = 0; v < vectors; v++) sum[v] =
        based ? vector_get(a->base, t * width + i + v * LANES, left - v * LANES) : (Vector){0};
    for (int64_t j = 0; j < k; j++) {
        int64_t at = (place[j] - a->round.first) * width + i;
        UNROLLED for (int v = 0; v < vectors; v++) sum[v] += vector_get(a->x, at + v * LANES, left - v * LANES);
    }
    UNROLLED for (int v = 0; v < vectors; v++) vector_put(a->y, t * width + i + v * LANES, left - v * LANES, sum[v]);
}

static void sum_token(const RowsArgs *a, int64_t t) {
    int64_t width = a->y.dim[1], k = a->place.dim[1], i = 0;
    for (int64_t j = 0; j < k; j++) {
        int64_t row = ((const int32_t *)a->place.data)[t * k + j] - a->round.first;
        MUST(row >= 0 && row < a->x.dim[0]);
    }
    for (; i + GROUP * LANES <= width; i += GROUP * LANES) sum_vectors(a, t, i, GROUP * LANES, GROUP);
    for (; i < width; i += LANES) sum_vectors(a, t, i, width - i, 1);
}

static int64_t tokens_to_sum(const RowsArgs *a) {
    return max64(0, ceil_div(a->y.dim[0] - a->round.token, a->round.step));
}

static void sum_some(void *context, int64_t index, int worker) {
    (void)worker;
    const RowsArgs a = *(const RowsArgs *)context;
    for (int64_t i = index * ROWS; i < min64((index + 1) * ROWS, tokens_to_sum(&a)); i++)
        sum_token(&a, a.round.token + i * a.round.step);
}

void KERNEL(sum_slots)(Stream *s, const void *args) {
    parallel(stream_pool(s), ceil_div(tokens_to_sum(args), ROWS), sum_some, (void *)args);
}
