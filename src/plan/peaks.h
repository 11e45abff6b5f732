/* What a processor can do at most, by loops that do nothing else: multiply-adds between registers, bf16 dot products
 * where it has them, and large arrays from memory and back. `mop doctor` prints them, and benches hold the ops against
 * them.
 *
 *     Peaks p;
 *     if (!peaks_open(&p, device, bytes, &e)) ...
 *     double work = peak_work(&p, PEAK_COPY);        // bytes of one run
 *     peak_run(&p, PEAK_COPY);                       // to be timed
 *     double most = peak_rate(&p, PEAK_FMA_FP32);    // or so: the best of several runs
 *     peaks_close(&p);
 */
#ifndef MOP_PEAKS_H
#define MOP_PEAKS_H

#include "ops/ops.h"

typedef enum {
    PEAK_FMA_FP32, /* FLOPs, in the instruction set of the device's kernels */
    PEAK_FMA_FP64,
    PEAK_DOT_BF16, /* products of pairs, summed in fp32 */
    PEAK_COPY,     /* bytes that the loop reads and writes; a = b, written past the caches where the processor can */
    PEAK_MEMCPY,   /* the same by the C library */
    PEAK_TRIAD,    /* a = b + c / 2, by ordinary stores, as ops have them: a line is read before it is written */
    PEAK_COUNT
} Peak;

enum { PEAK_ARRAYS = 3 };

typedef struct {
    Device *device;
    Arena arena;
    Tensor array[PEAK_ARRAYS]; /* fp32, filled; each begins elsewhere in the caches */
} Peaks;

/* On all threads of a CPU device. `bytes`: of an array, a few times what the caches hold. */
bool peaks_open(Peaks *p, Device *d, size_t bytes, Error *e);
void peaks_close(Peaks *p);
const char *peak_name(Peak k); /* "fma_fp32", "copy" */
/* FLOPs or bytes of one run, all threads together; 0: the device's kernels have no such instruction. */
double peak_work(const Peaks *p, Peak k);
void peak_run(Peaks *p, Peak k); /* returns when it has run */
/* FLOPs or bytes a second of the fastest of several runs; 0 as peak_work. */
double peak_rate(Peaks *p, Peak k);
/* Whether copies are written past the caches here. */
bool peak_copy_streams(void);

#endif
