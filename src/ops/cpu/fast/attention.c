/* Attention and its gradient, as small products.
 *
 * One block of rows is held: its rows lie along the lanes of vectors, in strips [d][STRIP]. The rows that it meets
 * pass by in their own order, copied next to one another, each element broadcast to all lanes:
 *
 *     meet:    S[row][lane]  = sum_c passing[row][c] held[c][lane]
 *     gather:  sum[c][lane] += sum_row passing[row][c] W[row][lane]
 *     spread:  sum[row][c]  += sum_lane W[row][lane] held[lane][c]
 *
 *     what runs      held           passing      meets                          gathers
 *     forward        queries        keys         S = k q                        out += v P
 *     dk, dv         keys, values   queries      S = q k, dP = dout v           dv += dout P, dk += q dS
 *     dq             queries, dout  keys         S = k q, dP = v dout           dq += k dS
 *     fused          keys, values   queries      S = q k, dP = dout v           dv, dk; spreads dq += dS k
 *
 * with P = exp(scale S - lse) and dS = scale P (dP - delta). No sum ever crosses lanes, nothing is turned but the
 * held block, and scores exist for one strip and CHUNK passing rows at a time. In the forward lse is not known
 * yet: each lane keeps the largest score so far and rescales what it has gathered when that grows (online
 * softmax).
 *
 * Which rows a lane sees is one interval either way: query t sees keys first[t] .. last[t] - 1, and since neither
 * end falls as t grows, the queries that see key j are an interval too. Chunks that no lane sees are skipped; only
 * rows that some lane does not see are masked. A task is one held block, so results depend on no other task; the
 * gradient then meets every pair twice, which costs 7 products instead of 5. Where the threads can share the KV heads
 * without much waiting a task is a whole KV head instead: its key blocks in order also make dq, with 5 products.
 * Either way each element of S, dP and dq is the same sum in the same order: how the work is cut changes no bit. */
#include "ops/cpu/fast/fast.h"

enum {
    BLOCK = 192,      /* held rows of a task, at most: for each block the passing rows are fetched anew */
    HELD = 128 * 192, /* elements of a block, at most, or one strip: its four arrays are to fit the second cache */
    CHUNK = 64,       /* passing rows at a time */
    VECTORS = 3,      /* of a strip */
    STRIP = VECTORS * LANES,
    STRIPS = BLOCK / STRIP,
    SPREAD = 2,                        /* vectors of a spread tile */
    TILE = VECTOR_BYTES == 64 ? 8 : 4, /* TILE x VECTORS sums fill the registers */
};
_Static_assert(BLOCK % STRIP == 0, "a block is whole strips");

/* ---- P ---------------------------------------------------------------------------------------- */

/* e^x where x is a score less the highest, or less lse, and so hardly above 0: two thirds of the instructions of
 * vector_exp, in its ways. The polynomial is the one with e^0 = 1 whose largest relative error is least (fp32: 9.1e-8,
 * fp64: 3.4e-18); the low bits of `rounded` are n with the bias of an exponent, which moved up are 2^n; what is below
 * the normal numbers becomes 0, as the n of PROBABILITY_LOWEST gives an exponent of 0. Errors up to 2 ulp and, as ln 2
 * is one number here, |x| / 2 ulp more. Wrong above 88 (fp32), and nothing looks. NaN stays NaN. */
#define PROBABILITY_ROUND (EXP_ROUND + 1) /* the power is 2^n, not 2^(n - 1) */
/* clang-format off */
#if REAL_BITS == 32
#define PROBABILITY_LOWEST -88.0f
static const REAL probability_series[] = {1, 0.999999707f, 0.499991495f, 0.166676362f, 0.0418979293f, 0.00829031468f};
#else
#define PROBABILITY_LOWEST -709.0
static const REAL probability_series[] = {
    1, 1.0000000000000000236, 0.50000000000000124938, 0.16666666666666217233, 0.041666666666517828502,
    0.0083333333335496903688, 0.0013888888946352700465, 0.00019841269438798567039, 2.4801490636507374664e-5,
    2.7557626696420733158e-6, 2.7631034033867725763e-7, 2.4991432855308127752e-8};
#endif
/* clang-format on */

static inline Vector vector_probability(Vector x) {
    x = vector_max(vector_all(PROBABILITY_LOWEST), x);
    Vector rounded = x * EXP_LOG2E + PROBABILITY_ROUND;
    Vector r = x - (rounded - PROBABILITY_ROUND) * (EXP_LN2_HIGH + EXP_LN2_LOW);
    Vector series = vector_all(probability_series[COUNT(probability_series) - 1]);
    UNROLLED for (int i = COUNT(probability_series) - 2; i >= 0; i--) series = series * r + probability_series[i];
    return series * (Vector)((Words)rounded << EXP_FRACTION);
}

/* ---- The two products ------------------------------------------------------------------------- */

/* Rows as REALs: element c of the i-th is at[i * stride + c]. */
typedef struct {
    const REAL *at;
    int64_t stride;
} Rows;

static Rows rows_from(Rows r, int64_t i) {
    return (Rows){r.at + i * r.stride, r.stride};
}

INLINE void meet_tile(REAL *s, Rows passing, const REAL *held, int64_t d, const int rows) {
    Vector sum[TILE][VECTORS] = {{{0}}};
    for (int64_t c = 0; c < d; c++) {
        Vector column[VECTORS];
        UNROLLED for (int v = 0; v < VECTORS; v++) column[v] = vector_load(held + c * STRIP + v * LANES);
        UNROLLED for (int r = 0; r < rows; r++) {
            Vector x = vector_all(passing.at[r * passing.stride + c]);
            UNROLLED for (int v = 0; v < VECTORS; v++) sum[r][v] += x * column[v];
        }
    }
    UNROLLED for (int r = 0; r < rows; r++) {
        UNROLLED for (int v = 0; v < VECTORS; v++) vector_store(s + r * STRIP + v * LANES, sum[r][v]);
    }
}

/* s[row][lane] = sum_c passing[row][c] held[c][lane] */
static void meet(REAL *s, Rows passing, int64_t rows, const REAL *held, int64_t d) {
    int64_t r = 0;
    for (; r + TILE <= rows; r += TILE) meet_tile(s + r * STRIP, rows_from(passing, r), held, d, TILE);
    for (; r + 2 <= rows; r += 2) meet_tile(s + r * STRIP, rows_from(passing, r), held, d, 2);
    if (r < rows) meet_tile(s + r * STRIP, rows_from(passing, r), held, d, 1);
}

INLINE void gather_tile(REAL *sum, const Vector *factor, Rows passing, int64_t rows, const REAL *w, const int columns) {
    Vector total[TILE][VECTORS];
    UNROLLED for (int c = 0; c < columns; c++) {
        UNROLLED for (int v = 0; v < VECTORS; v++) {
            total[c][v] = vector_load(sum + c * STRIP + v * LANES);
            if (factor != NULL) total[c][v] *= factor[v];
        }
    }
    for (int64_t r = 0; r < rows; r++) {
        Vector row[VECTORS];
        UNROLLED for (int v = 0; v < VECTORS; v++) row[v] = vector_load(w + r * STRIP + v * LANES);
        UNROLLED for (int c = 0; c < columns; c++) {
            Vector x = vector_all(passing.at[r * passing.stride + c]);
            UNROLLED for (int v = 0; v < VECTORS; v++) total[c][v] += x * row[v];
        }
    }
    UNROLLED for (int c = 0; c < columns; c++) {
        UNROLLED for (int v = 0; v < VECTORS; v++) vector_store(sum + c * STRIP + v * LANES, total[c][v]);
    }
}

/* sum[c][lane] = factor[lane] sum[c][lane] + sum_row passing[row][c] w[row][lane]; factor NULL is 1 */
static void gather(REAL *sum, const Vector *factor, Rows passing, int64_t rows, const REAL *w, int64_t d) {
    int64_t c = 0;
    for (; c + TILE <= d; c += TILE, passing.at += TILE) gather_tile(sum + c * STRIP, factor, passing, rows, w, TILE);
    for (; c + 2 <= d; c += 2, passing.at += 2) gather_tile(sum + c * STRIP, factor, passing, rows, w, 2);
    if (c < d) gather_tile(sum + c * STRIP, factor, passing, rows, w, 1);
}

INLINE void spread_tile(REAL *sum, int64_t stride, const REAL *w, int64_t lanes, Rows held, const int rows,
                        const int vectors) {
    Vector total[TILE][SPREAD];
    UNROLLED for (int r = 0; r < rows; r++) {
        UNROLLED for (int v = 0; v < vectors; v++) total[r][v] = vector_load(sum + r * stride + v * LANES);
    }
    for (int64_t lane = 0; lane < lanes; lane++) {
        Vector row[SPREAD];
        UNROLLED for (int v = 0; v < vectors; v++) row[v] = vector_load(held.at + lane * held.stride + v * LANES);
        UNROLLED for (int r = 0; r < rows; r++) {
            Vector x = vector_all(w[r * STRIP + lane]);
            UNROLLED for (int v = 0; v < vectors; v++) total[r][v] += x * row[v];
        }
    }
    UNROLLED for (int r = 0; r < rows; r++) {
        UNROLLED for (int v = 0; v < vectors; v++) vector_store(sum + r * stride + v * LANES, total[r][v]);
    }
}

INLINE void spread_rows(REAL *sum, int64_t stride, const REAL *w, int64_t lanes, Rows held, const int rows) {
    int64_t c = 0;
    for (; c + SPREAD * LANES <= held.stride; c += SPREAD * LANES)
        spread_tile(sum + c, stride, w, lanes, (Rows){held.at + c, held.stride}, rows, SPREAD);
    for (; c < held.stride; c += LANES)
        spread_tile(sum + c, stride, w, lanes, (Rows){held.at + c, held.stride}, rows, 1);
}

/* sum[row][c] += sum_lane w[row][lane] held[lane][c], for c < held.stride, which is whole vectors */
static void spread(REAL *sum, int64_t stride, const REAL *w, int64_t rows, int64_t lanes, Rows held) {
    int64_t r = 0;
    for (; r + TILE <= rows; r += TILE) spread_rows(sum + r * stride, stride, w + r * STRIP, lanes, held, TILE);
    for (; r < rows; r++) spread_rows(sum + r * stride, stride, w + r * STRIP, lanes, held, 1);
}

/* ---- Who sees whom ---------------------------------------------------------------------------- */

#if REAL_BITS == 32
typedef int32_t Index;
#else
typedef int64_t Index;
#endif
typedef Index Indices __attribute__((vector_size(VECTOR_BYTES)));

/* The passing rows that the lanes of one strip see: lane i sees first[i] .. last[i] - 1. */
typedef struct {
    Indices first[VECTORS], last[VECTORS];
    int64_t begin, end;         /* no lane sees any but begin .. end - 1 (none: begin >= end) */
    int64_t all_begin, all_end; /* every lane sees all_begin .. all_end - 1 */
} Sight;

/* Rows first .. last - 1. */
typedef struct {
    int64_t first, last;
} Interval;

static Interval keys_of(const AttentionArgs *a, int64_t query) {
    return (Interval){((const int32_t *)a->first.data)[query], ((const int32_t *)a->last.data)[query]};
}

/* The first query whose bound is above j, by bisection. */
static int64_t first_above(Tensor bound, int64_t j) {
    const int32_t *bounds = bound.data;
    int64_t low = 0, high = bound.dim[0];
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (bounds[middle] > j)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

static Interval queries_of(const AttentionArgs *a, int64_t key) {
    return (Interval){first_above(a->last, key), first_above(a->first, key)};
}

/* What all of this rests on. */
static void check_intervals(const AttentionArgs *a) {
    Interval before = {0, 0};
    for (int64_t t = 0; t < a->q.dim[0]; t++) {
        Interval keys = keys_of(a, t);
        MUST(before.first <= keys.first && before.last <= keys.last);
        MUST(keys.first <= keys.last && keys.last <= a->k.dim[0]);
        before = keys;
    }
}

/* Lane i is query, or key, at + i; lanes from `lanes` on see nothing. */
static Sight sight_of(const AttentionArgs *a, bool of_queries, int64_t at, int64_t lanes) {
    Sight see = {.begin = INT32_MAX, .all_end = INT32_MAX};
    for (int i = 0; i < STRIP; i++) {
        Interval rows = {0};
        if (i < lanes) rows = of_queries ? keys_of(a, at + i) : queries_of(a, at + i);
        if (rows.first < rows.last) {
            see.begin = min64(see.begin, rows.first);
            see.end = max64(see.end, rows.last);
        }
        see.all_begin = max64(see.all_begin, rows.first);
        see.all_end = min64(see.all_end, rows.last);
        see.first[i / LANES][i % LANES] = (Index)rows.first;
        see.last[i / LANES][i % LANES] = (Index)rows.last;
    }
    return see;
}

/* Held rows at .. at + count - 1 of one head, and which passing rows they see. */
typedef struct {
    int64_t at, count, strips;
    int64_t begin, end; /* as a strip's, of all */
    Sight see[STRIPS];
} Block;

/* Rows of a whole block. */
static int64_t block_rows(const AttentionArgs *a) {
    return max64(min64(BLOCK, HELD / a->q.dim[2]) / STRIP, 1) * STRIP;
}

static Block block_of(const AttentionArgs *a, bool of_queries, int64_t block) {
    int64_t rows = of_queries ? a->q.dim[0] : a->k.dim[0], most = block_rows(a);
    Block b = {.at = block * most, .count = min64(most, rows - block * most), .begin = INT32_MAX};
    b.strips = ceil_div(b.count, STRIP);
    for (int64_t i = 0; i < b.strips; i++) {
        b.see[i] = sight_of(a, of_queries, b.at + i * STRIP, min64(STRIP, b.count - i * STRIP));
        b.begin = min64(b.begin, b.see[i].begin);
        b.end = max64(b.end, b.see[i].end);
    }
    return b;
}

/* What a lane does not see scores -inf. s: rows `row` .. row + rows - 1. */
static void mask_unseen(REAL *s, const Sight *see, int64_t row, int64_t rows) {
    const Indices hidden = (Indices)((Vector){0} - (REAL)INFINITY);
    for (int64_t r = row; r < row + rows; r++, s += STRIP) {
        if (r >= see->all_begin && r < see->all_end) continue;
        for (int v = 0; v < VECTORS; v++) {
            Indices seen = (see->first[v] <= (Index)r) & (see->last[v] > (Index)r);
            vector_store(s + v * LANES, (Vector)(((Indices)vector_load(s + v * LANES) & seen) | (hidden & ~seen)));
        }
    }
}

/* ---- Blocks ----------------------------------------------------------------------------------- */

/* A worker's scratch, cut up: two held blocks and two sums [STRIPS][d][STRIP], two sets of scores, passing rows as
 * REALs; of a fused task the held keys as rows and, unless it is summed in place, dq [heads of the group][Tq]. */
typedef struct {
    REAL *held[2], *sum[2], *s, *ds, *passing[2], *keys, *dq;
} Scratch;

typedef struct {
    const AttentionArgs *a;
    Pool *pool;
    int64_t query_blocks, key_blocks; /* of one head */
    bool fused;
} Job;

/* Elements of a row in scratch that is whole vectors. */
static int64_t whole_vectors(const AttentionArgs *a) {
    return ceil_div(a->q.dim[2], LANES) * LANES;
}

/* Sums of dq are made in its own memory, if that can hold them. */
static bool in_place(const AttentionArgs *a) {
    return a->dq.type == REAL_TYPE && a->dq.dim[2] % LANES == 0;
}

static Job job_of(const AttentionArgs *a, Stream *s) {
    Job job = {.a = a, .pool = stream_pool(s)};
    MUST(job.pool != NULL);
    check_intervals(a);
    job.query_blocks = ceil_div(a->q.dim[0], block_rows(a));
    job.key_blocks = ceil_div(a->k.dim[0], block_rows(a));
    return job;
}

/* REALs that a fused task needs for dq. */
static int64_t dq_count(const AttentionArgs *a) {
    return in_place(a) ? 0 : a->q.dim[0] * (a->q.dim[1] / a->k.dim[1]) * whole_vectors(a);
}

/* REALs that a task needs for all but dq. */
static int64_t scratch_count(const Job *job) {
    Tensor q = job->a->q;
    int64_t block = block_rows(job->a), chunk = CHUNK * q.dim[2], keys = block * whole_vectors(job->a);
    return 4 * q.dim[2] * block + 2 * CHUNK * STRIP + 2 * chunk + keys;
}

static Scratch scratch_of(const Job *job, int worker) {
    Tensor q = job->a->q;
    int64_t block = q.dim[2] * block_rows(job->a), scores = CHUNK * STRIP, chunk = CHUNK * q.dim[2];
    int64_t count = scratch_count(job) + (job->fused ? dq_count(job->a) : 0);
    REAL *p = pool_scratch(job->pool, worker, count * (int64_t)sizeof(REAL));
    REAL *scored = p + 4 * block, *rows = scored + 2 * scores;
    return (Scratch){
        .held = {p, p + block},
        .sum = {p + 2 * block, p + 3 * block},
        .s = scored,
        .ds = scored + scores,
        .passing = {rows, rows + chunk},
        .keys = rows + 2 * chunk,
        .dq = p + scratch_count(job),
    };
}

/* Rows first .. first + count - 1 of one head, widened into the buffer: where they are, other heads between them, they
 * would share few sets of the first cache. */
static Rows pass(Tensor x, int64_t head, int64_t first, int64_t count, REAL *buffer) {
    int64_t heads = x.dim[1], d = x.dim[2], at = (first * heads + head) * d;
    for (int64_t i = 0; i < count; i++, at += heads * d) {
        if (x.type == REAL_TYPE)
            memcpy(buffer + i * d, (const REAL *)x.data + at, (size_t)d * sizeof(REAL));
        else
            values_widen(buffer + i * d, (const uint16_t *)x.data + at, d);
    }
    return (Rows){buffer, d};
}

/* to[c][r] = from[r][c], by squares of LANES. */
static void turn(REAL *to, int64_t to_stride, Rows from, int64_t rows, int64_t columns) {
    for (int64_t r = 0; r < rows; r += LANES) {
        int64_t c = 0;
        for (; r + LANES <= rows && c + LANES <= columns; c += LANES) {
            Vector square[LANES];
            UNROLLED for (int i = 0; i < LANES; i++) square[i] = vector_load(from.at + (r + i) * from.stride + c);
            transpose(square);
            UNROLLED for (int i = 0; i < LANES; i++) vector_store(to + (c + i) * to_stride + r, square[i]);
        }
        for (; c < columns; c++) {
            for (int64_t i = r; i < min64(r + LANES, rows); i++) to[c * to_stride + i] = from.at[i * from.stride + c];
        }
    }
}

/* Rows first .. first + count - 1 of one head, along the lanes; the lanes beyond are 0. */
static void hold(REAL *held, Tensor x, int64_t head, int64_t first, int64_t count, REAL *buffer) {
    int64_t d = x.dim[2];
    if (count % STRIP != 0) memset(held, 0, (size_t)(d * ceil_div(count, STRIP) * STRIP) * sizeof(REAL));
    for (int64_t i = 0; i < count; i += LANES) {
        int64_t rows = min64(LANES, count - i);
        turn(held + i / STRIP * d * STRIP + i % STRIP, STRIP, pass(x, head, first + i, rows, buffer), rows, d);
    }
}

/* The other way: sums become rows of y. */
static void bring_home(Tensor y, int64_t head, int64_t first, int64_t count, const REAL *sum, REAL *buffer) {
    int64_t heads = y.dim[1], d = y.dim[2];
    for (int64_t i = 0; i < count; i += LANES) {
        int64_t rows = min64(LANES, count - i), at = ((first + i) * heads + head) * d;
        Rows lanes = {sum + i / STRIP * d * STRIP + i % STRIP, STRIP};
        if (y.type == REAL_TYPE) {
            turn((REAL *)y.data + at, heads * d, lanes, d, rows);
            continue;
        }
        turn(buffer, d, lanes, d, rows);
        for (int64_t r = 0; r < rows; r++) values_narrow((uint16_t *)y.data + at + r * heads * d, buffer + r * d, d);
    }
}

/* What a strip sees of the chunk that starts at `row`: `rows` rows (none: <= 0) from row + from on. */
typedef struct {
    int64_t from, rows;
} Part;

static Part part_seen(const Sight *see, int64_t row) {
    int64_t from = max64(see->begin - row, 0);
    return (Part){from, min64(see->end - row, CHUNK) - from};
}

/* ---- Forward ---------------------------------------------------------------------------------- */

/* Of each lane of a strip: the highest scaled score so far, as rounded, and the sum of e^(scaled score - highest). */
typedef struct {
    Vector highest[VECTORS], total[VECTORS];
} Softmax;

/* Scores to P, relative to the highest so far; factor: what is gathered already must be multiplied with. */
static void soften(Softmax *m, Vector *factor, REAL *s, int64_t rows, REAL scale) {
    Vector largest[VECTORS], base[VECTORS], total[VECTORS];
    UNROLLED for (int v = 0; v < VECTORS; v++) largest[v] = vector_all(-(REAL)INFINITY);
    for (int64_t r = 0; r < rows; r++) {
        UNROLLED for (int v = 0; v < VECTORS; v++) largest[v] =
            vector_max(vector_load(s + r * STRIP + v * LANES), largest[v]);
    }
    UNROLLED for (int v = 0; v < VECTORS; v++) {
        Vector highest = vector_max(scale * largest[v], m->highest[v]);
        base[v] = (Vector)((Indices)highest & (highest != -(REAL)INFINITY)); /* 0 for a lane that has seen nothing */
        factor[v] = vector_probability(m->highest[v] - base[v]);
        total[v] = m->total[v] * factor[v];
        m->highest[v] = highest;
    }
    for (int64_t r = 0; r < rows; r++, s += STRIP) {
        UNROLLED for (int v = 0; v < VECTORS; v++) {
            Vector p = vector_probability(scale * vector_load(s + v * LANES) - base[v]);
            vector_store(s + v * LANES, p);
            total[v] += p;
        }
    }
    UNROLLED for (int v = 0; v < VECTORS; v++) m->total[v] = total[v];
}

/* out = sum / total, lse = log(total) + highest. A lane that sees nothing has total 0 and highest -infinity: its
 * sum is 0 already. */
static void finish(const AttentionArgs *a, REAL *sum, const Softmax *m, const Sight *see, int64_t head, int64_t at,
                   int64_t lanes) {
    int64_t queries = a->q.dim[0], d = a->q.dim[2];
    REAL *lse = (REAL *)a->lse.data + head * queries + at, total[STRIP], highest[STRIP];
    for (int v = 0; v < VECTORS; v++) {
        vector_store(total + v * LANES, m->total[v]);
        vector_store(highest + v * LANES, m->highest[v]);
        Indices sees = see->first[v] < see->last[v];
        Vector inverse = (Vector)((Indices)(1 / m->total[v]) & sees);
        for (int64_t c = 0; c < d; c++) {
            REAL *x = sum + c * STRIP + v * LANES;
            vector_store(x, vector_load(x) * inverse);
        }
    }
    for (int64_t i = 0; i < lanes; i++) lse[i] = (REAL)(log((double)total[i]) + (double)highest[i]);
}

/* Task: one block of queries of one head; the last blocks, which see most when causal, first. */
static void attend(void *context, int64_t index, int worker) {
    const Job *job = context;
    const AttentionArgs *a = job->a;
    int64_t d = a->q.dim[2], blocks = job->query_blocks, strip = d * STRIP;
    int64_t head = index / blocks, kv = head / (a->q.dim[1] / a->k.dim[1]);
    Block b = block_of(a, true, blocks - 1 - index % blocks);
    Scratch w = scratch_of(job, worker);
    Softmax softmax[STRIPS];
    hold(w.held[0], a->q, head, b.at, b.count, w.passing[0]);
    memset(w.sum[0], 0, (size_t)(b.strips * strip) * sizeof(REAL));
    for (int64_t i = 0; i < b.strips * VECTORS; i++) {
        softmax[i / VECTORS].highest[i % VECTORS] = vector_all(-(REAL)INFINITY);
        softmax[i / VECTORS].total[i % VECTORS] = vector_all(0);
    }
    for (int64_t row = b.begin; row < b.end; row += CHUNK) {
        int64_t rows = min64(CHUNK, b.end - row);
        Rows k = pass(a->k, kv, row, rows, w.passing[0]), v = pass(a->v, kv, row, rows, w.passing[1]);
        for (int64_t i = 0; i < b.strips; i++) {
            Part part = part_seen(&b.see[i], row);
            if (part.rows <= 0) continue;
            Vector factor[VECTORS];
            meet(w.s, rows_from(k, part.from), part.rows, w.held[0] + i * strip, d);
            mask_unseen(w.s, &b.see[i], row + part.from, part.rows);
            soften(&softmax[i], factor, w.s, part.rows, (REAL)a->shape.scale);
            gather(w.sum[0] + i * strip, factor, rows_from(v, part.from), part.rows, w.s, d);
        }
    }
    for (int64_t i = 0; i < b.strips; i++)
        finish(a, w.sum[0] + i * strip, &softmax[i], &b.see[i], head, b.at + i * STRIP,
               min64(STRIP, b.count - i * STRIP));
    bring_home(a->out, head, b.at, b.count, w.sum[0], w.passing[0]);
}

void KERNEL(attention)(Stream *s, const void *args) {
    const AttentionArgs *a = args;
    Job job = job_of(a, s);
    pool_run(job.pool, a->q.dim[1] * job.query_blocks, attend, &job);
}

/* ---- Backward --------------------------------------------------------------------------------- */

/* Of a query that sees nothing lse and scores are -infinity: with 0 for lse its P is 0, not NaN. */
static void take_lse(REAL *to, const REAL *lse, int64_t count) {
    for (int64_t i = 0; i < count; i++) to[i] = lse[i] == -(REAL)INFINITY ? 0 : lse[i];
}

/* s: scores to P; ds: dP to dS. lse and delta are those of the queries: each row's or each lane's. */
INLINE void differ(REAL *s, REAL *ds, int64_t rows, REAL scale, const REAL *lse, const REAL *delta,
                   const bool by_lane) {
    Vector lane_lse[VECTORS], lane_delta[VECTORS];
    for (int v = 0; v < VECTORS && by_lane; v++) {
        lane_lse[v] = vector_load(lse + v * LANES);
        lane_delta[v] = vector_load(delta + v * LANES);
    }
    for (int64_t r = 0; r < rows; r++, s += STRIP, ds += STRIP) {
        UNROLLED for (int v = 0; v < VECTORS; v++) {
            Vector l = by_lane ? lane_lse[v] : vector_all(lse[r]), m = by_lane ? lane_delta[v] : vector_all(delta[r]);
            Vector p = vector_probability(scale * vector_load(s + v * LANES) - l);
            vector_store(s + v * LANES, p);
            vector_store(ds + v * LANES, scale * p * (vector_load(ds + v * LANES) - m));
        }
    }
}

/* dS [passing row][lane] of a query that sees one key in all is 0, as the definition has it. Rows `row` .. row + rows -
 * 1 pass; lane 0 is held row `held`; which of the two are queries? */
INLINE void forget_lone(const AttentionArgs *a, REAL *ds, int64_t row, int64_t rows, int64_t held, const bool by_lane) {
    const int32_t *keys = a->keys.data, *first = a->first.data, *last = a->last.data;
    int64_t begin = by_lane ? held : row, end = by_lane ? min64(held + STRIP, a->q.dim[0]) : row + rows;
    for (int64_t t = begin; t < end; t++) {
        if (keys[t] != 1 || first[t] == last[t]) continue;
        int64_t r = by_lane ? first[t] - row : t - row, lane = by_lane ? t - held : first[t] - held;
        if (r >= 0 && r < rows && lane >= 0 && lane < STRIP) ds[r * STRIP + lane] = 0;
    }
}

/* Rows first .. first + count - 1 of one head as rows of whole vectors, ended with zeros. */
static Rows hold_rows(REAL *rows, int64_t stride, Tensor x, int64_t head, int64_t first, int64_t count) {
    int64_t heads = x.dim[1], d = x.dim[2];
    for (int64_t i = 0; i < count; i++) {
        int64_t at = ((first + i) * heads + head) * d;
        for (int64_t c = 0; c < d; c += LANES) vector_store(rows + i * stride + c, vector_get(x, at + c, d - c));
    }
    return (Rows){rows, stride};
}

/* Rows `at` in which dq of one head is summed. */
typedef struct {
    REAL *at;
    int64_t stride;
} Sums;

static Sums dq_sums(const AttentionArgs *a, const Scratch *w, int64_t head) {
    int64_t queries = a->q.dim[0], heads = a->q.dim[1], d = a->q.dim[2], group = heads / a->k.dim[1];
    if (in_place(a)) return (Sums){(REAL *)a->dq.data + head * d, heads * d};
    return (Sums){w->dq + head % group * queries * whole_vectors(a), whole_vectors(a)};
}

/* dk and dv of one block of keys of one KV head, from all queries of all its heads; when fused also what the keys add
 * to their dq. */
static void find_dkv(const Job *job, int64_t kv, int64_t block, int worker) {
    const AttentionArgs *a = job->a;
    int64_t d = a->q.dim[2], group = a->q.dim[1] / a->k.dim[1], strip = d * STRIP;
    REAL lse[CHUNK];
    Block b = block_of(a, false, block);
    Scratch w = scratch_of(job, worker);
    hold(w.held[0], a->k, kv, b.at, b.count, w.passing[0]);
    hold(w.held[1], a->v, kv, b.at, b.count, w.passing[0]);
    memset(w.sum[0], 0, (size_t)(b.strips * strip) * sizeof(REAL));
    memset(w.sum[1], 0, (size_t)(b.strips * strip) * sizeof(REAL));
    Rows keys = {0};
    if (job->fused) keys = hold_rows(w.keys, whole_vectors(a), a->k, kv, b.at, b.count);
    for (int64_t head = kv * group; head < (kv + 1) * group; head++) {
        Sums dq = dq_sums(a, &w, head);
        for (int64_t row = b.begin; row < b.end; row += CHUNK) {
            int64_t rows = min64(CHUNK, b.end - row);
            Rows q = pass(a->q, head, row, rows, w.passing[0]), dout = pass(a->dout, head, row, rows, w.passing[1]);
            const REAL *delta = (const REAL *)a->delta.data + head * a->q.dim[0] + row;
            take_lse(lse, (const REAL *)a->lse.data + head * a->q.dim[0] + row, rows);
            for (int64_t i = 0; i < b.strips; i++) {
                Part part = part_seen(&b.see[i], row);
                if (part.rows <= 0) continue;
                meet(w.s, rows_from(q, part.from), part.rows, w.held[0] + i * strip, d);
                meet(w.ds, rows_from(dout, part.from), part.rows, w.held[1] + i * strip, d);
                mask_unseen(w.s, &b.see[i], row + part.from, part.rows);
                differ(w.s, w.ds, part.rows, (REAL)a->shape.scale, lse + part.from, delta + part.from, false);
                forget_lone(a, w.ds, row + part.from, part.rows, b.at + i * STRIP, false);
                gather(w.sum[1] + i * strip, NULL, rows_from(dout, part.from), part.rows, w.s, d);
                gather(w.sum[0] + i * strip, NULL, rows_from(q, part.from), part.rows, w.ds, d);
                if (!job->fused) continue;
                REAL *to = dq.at + (row + part.from) * dq.stride;
                spread(to, dq.stride, w.ds, part.rows, min64(STRIP, b.count - i * STRIP), rows_from(keys, i * STRIP));
            }
        }
    }
    bring_home(a->dk, kv, b.at, b.count, w.sum[0], w.passing[0]);
    bring_home(a->dv, kv, b.at, b.count, w.sum[1], w.passing[0]);
}

/* Task: dq of one block of queries of one head. */
static void find_dq(const Job *job, int64_t head, int64_t block, int worker) {
    const AttentionArgs *a = job->a;
    int64_t d = a->q.dim[2], kv = head / (a->q.dim[1] / a->k.dim[1]), strip = d * STRIP;
    Block b = block_of(a, true, block);
    Scratch w = scratch_of(job, worker);
    REAL lse[BLOCK] = {0}, delta[BLOCK] = {0};
    take_lse(lse, (const REAL *)a->lse.data + head * a->q.dim[0] + b.at, b.count);
    memcpy(delta, (const REAL *)a->delta.data + head * a->q.dim[0] + b.at, (size_t)b.count * sizeof(REAL));
    hold(w.held[0], a->q, head, b.at, b.count, w.passing[0]);
    hold(w.held[1], a->dout, head, b.at, b.count, w.passing[0]);
    memset(w.sum[0], 0, (size_t)(b.strips * strip) * sizeof(REAL));
    for (int64_t row = b.begin; row < b.end; row += CHUNK) {
        int64_t rows = min64(CHUNK, b.end - row);
        Rows k = pass(a->k, kv, row, rows, w.passing[0]), v = pass(a->v, kv, row, rows, w.passing[1]);
        for (int64_t i = 0; i < b.strips; i++) {
            Part part = part_seen(&b.see[i], row);
            if (part.rows <= 0) continue;
            meet(w.s, rows_from(k, part.from), part.rows, w.held[0] + i * strip, d);
            meet(w.ds, rows_from(v, part.from), part.rows, w.held[1] + i * strip, d);
            mask_unseen(w.s, &b.see[i], row + part.from, part.rows);
            differ(w.s, w.ds, part.rows, (REAL)a->shape.scale, lse + i * STRIP, delta + i * STRIP, true);
            forget_lone(a, w.ds, row + part.from, part.rows, b.at + i * STRIP, true);
            gather(w.sum[0] + i * strip, NULL, rows_from(k, part.from), part.rows, w.ds, d);
        }
    }
    bring_home(a->dq, head, b.at, b.count, w.sum[0], w.passing[0]);
}

/* Task: one KV head, all gradients. */
static void differentiate_head(void *context, int64_t kv, int worker) {
    const Job *job = context;
    const AttentionArgs *a = job->a;
    int64_t queries = a->q.dim[0], heads = a->q.dim[1], d = a->q.dim[2], group = heads / a->k.dim[1];
    const size_t row = (size_t)whole_vectors(a) * sizeof(REAL);
    Scratch w = scratch_of(job, worker);
    for (int64_t head = kv * group; head < (kv + 1) * group; head++) {
        Sums dq = dq_sums(a, &w, head);
        for (int64_t t = 0; t < queries; t++) memset(dq.at + t * dq.stride, 0, row);
    }
    for (int64_t block = 0; block < job->key_blocks; block++) find_dkv(job, kv, block, worker);
    for (int64_t head = kv * group; head < (kv + 1) * group && !in_place(a); head++) {
        Sums dq = dq_sums(a, &w, head);
        for (int64_t t = 0; t < queries; t++) {
            for (int64_t c = 0; c < d; c += LANES)
                vector_put(a->dq, (t * heads + head) * d + c, d - c, vector_load(dq.at + t * dq.stride + c));
        }
    }
}

/* Fused, all wait for the thread with the most heads; 5 products instead of 7 may be worth that. */
static bool is_fused(const Job *job) {
    int64_t heads = job->a->k.dim[1], threads = pool_threads(job->pool);
    bool fits = (scratch_count(job) + dq_count(job->a)) * (int64_t)sizeof(REAL) <= POOL_SCRATCH_BYTES;
    return fits && 5 * threads * ceil_div(heads, threads) < 7 * heads;
}

/* Task: one block. Of either kind, those that see most when causal first. */
static void differentiate(void *context, int64_t index, int worker) {
    const Job *job = context;
    int64_t kv_tasks = job->a->k.dim[1] * job->key_blocks;
    if (index < kv_tasks) {
        find_dkv(job, index / job->key_blocks, index % job->key_blocks, worker);
        return;
    }
    index -= kv_tasks;
    find_dq(job, index / job->query_blocks, job->query_blocks - 1 - index % job->query_blocks, worker);
}

void KERNEL(attention_backward)(Stream *s, const void *args) {
    const AttentionArgs *a = args;
    Job job = job_of(a, s);
    job.fused = is_fused(&job);
    if (job.fused) {
        pool_run(job.pool, a->k.dim[1], differentiate_head, &job);
    } else {
        pool_run(job.pool, a->q.dim[1] * job.query_blocks + a->k.dim[1] * job.key_blocks, differentiate, &job);
    }
}
