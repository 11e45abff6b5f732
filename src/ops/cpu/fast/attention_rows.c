/* What attention needs beside it, a row of a head at a time: the output of one block of keys merged into that of others,
 * and delta, which the gradient of a row has in common. Bound by memory. */
#include "ops/cpu/fast/fast.h"

enum { ROWS = 64 }; /* of a task */

/* ---- Merging ---------------------------------------------------------------------------------- */

/* With h the higher lse of the two, l the lower and r = exp(l - h): lse = h + log(1 + r), and the outputs weigh
 * 1 / (1 + r) and r / (1 + r). */
static void merge_row(REAL *lse, REAL part_lse, REAL *out, const REAL *part, int64_t d) {
    const REAL nothing = -(REAL)INFINITY;
    if (part_lse == nothing) {
        if (*lse == nothing) memset(out, 0, (size_t)d * sizeof *out);
        return;
    }
    if (*lse == nothing) {
        memcpy(out, part, (size_t)d * sizeof *out);
        *lse = part_lse;
        return;
    }
    bool ours = *lse > part_lse;
    double high = ours ? *lse : part_lse, low = ours ? part_lse : *lse, ratio = exp(low - high);
    REAL more = (REAL)(1 / (1 + ratio)), less = (REAL)(ratio / (1 + ratio));
    REAL weight = ours ? more : less, part_weight = ours ? less : more;
    int64_t c = 0;
    for (; c + LANES <= d; c += LANES)
        vector_store(out + c, weight * vector_load(out + c) + part_weight * vector_load(part + c));
    for (; c < d; c++) out[c] = weight * out[c] + part_weight * part[c];
    *lse = (REAL)(high + log1p(ratio));
}

/* Task: ROWS rows, all heads. */
static void merge_rows(void *context, int64_t index, int worker) {
    (void)worker;
    const AttentionRowsArgs *a = context;
    int64_t rows = a->out.dim[0], heads = a->out.dim[1], d = a->out.dim[2];
    REAL *lse = a->lse.data, *out = a->out.data;
    const REAL *part_lse = a->part_lse.data, *part = a->part.data;
    for (int64_t t = index * ROWS; t < min64((index + 1) * ROWS, rows); t++) {
        for (int64_t h = 0; h < heads; h++) {
            int64_t at = (t * heads + h) * d;
            merge_row(&lse[h * rows + t], part_lse[h * rows + t], out + at, part + at, d);
        }
    }
}

void KERNEL(attention_merge)(Stream *s, const void *args) {
    const AttentionRowsArgs *a = args;
    parallel(stream_pool(s), ceil_div(a->out.dim[0], ROWS), merge_rows, (void *)args);
}

/* ---- Delta ------------------------------------------------------------------------------------ */

/* delta = sum_c dout out. Task: ROWS rows, all heads. */
static void find_delta(void *context, int64_t index, int worker) {
    (void)worker;
    const AttentionRowsArgs *a = context;
    const Tensor out = a->out, dout = a->dout;
    int64_t rows = out.dim[0], heads = out.dim[1], d = out.dim[2];
    for (int64_t t = index * ROWS; t < min64((index + 1) * ROWS, rows); t++) {
        for (int64_t h = 0; h < heads; h++) {
            int64_t at = (t * heads + h) * d;
            Vector sum = {0};
            for (int64_t c = 0; c < d; c += LANES)
                sum += vector_get(dout, at + c, d - c) * vector_get(out, at + c, d - c);
            value_put(a->delta, h * rows + t, vector_sum(sum));
        }
    }
}

void KERNEL(attention_delta)(Stream *s, const void *args) {
    const AttentionRowsArgs *a = args;
    parallel(stream_pool(s), ceil_div(a->out.dim[0], ROWS), find_delta, (void *)args);
}
