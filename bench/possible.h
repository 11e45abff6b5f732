/* What the processors could do at most, measured by the same program just before: what benches hold their times
 * against. */
#ifndef MOP_POSSIBLE_H
#define MOP_POSSIBLE_H

#include "ops/kernels.h"
#include "plan/peaks.h"

#include <math.h>
#include <stdio.h>

/* FLOPs and bytes a second of all threads together. bf16: of dot products of pairs where the kernels have them, or it is
 * widened. bytes: copying large arrays, written past the caches. */
typedef struct {
    double fp32, bf16, bytes;
} Possible;

static inline bool possible_measure(Device *d, Possible *out, Error *e) {
    Peaks p;
    if (!peaks_open(&p, d, (size_t)256 << 20, e)) return false;
    out->fp32 = out->bf16 = peak_rate(&p, PEAK_FMA_FP32);
    if (peak_work(&p, PEAK_DOT_BF16) > 0) out->bf16 = peak_rate(&p, PEAK_DOT_BF16);
    out->bytes = peak_rate(&p, PEAK_COPY);
    peaks_close(&p);
    printf("%s kernels, %d thread%s: possible are %.1f GFLOP/s in fp32 and %.1f in bf16 (multiply-adds between "
           "registers) and %.1f GB/s (copying large arrays)\n",
           d->kernels->name, d->threads, d->threads > 1 ? "s" : "", 1e-9 * out->fp32, 1e-9 * out->bf16,
           1e-9 * out->bytes);
    return true;
}

/* Seconds that this work would take: the longer of its FLOPs and its bytes. */
static inline double possible_seconds(const Possible *p, Type type, double flops, double bytes) {
    return fmax(flops / (type == BF16 ? p->bf16 : p->fp32), bytes / p->bytes);
}

#endif
