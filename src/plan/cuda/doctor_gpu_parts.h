/* What the GPU parts of `mop doctor` share: the GPU under measurement, how a figure is timed, and a matrix product. */
#ifndef MOP_DOCTOR_GPU_PARTS_H
#define MOP_DOCTOR_GPU_PARTS_H

#include "device/cuda/gpu.h"
#include "plan/cuda/doctor_gpu_kernels.h"
#include "plan/doctor_parts.h"

/* ---- The GPU (doctor_gpu.c) ---------------------------------------------------------------------- */

enum { GPU_MARKS = 6 };

typedef struct {
    Report *report;
    const Host *host;
    Device *device;
    Stream *compute, *up, *down;
    Arena memory, pinned;        /* on the GPU, and on the host */
    Tensor workspace;            /* of products: BYTE */
    cudaEvent_t mark[GPU_MARKS]; /* with times, unlike the device's own events */
    double deadline;             /* seconds_now: what is not begun by then is left out */
    Error error;                 /* the first failure; then nothing more is measured */
} Gpu;

/* Work is put into g->compute (other streams: follow an event of it, and it one of them); a call that fails is the
 * device's failure. */
typedef void (*GpuWork)(void *context);

/* Seconds that the work takes on the GPU, between two events. False: failed. */
bool gpu_time(Gpu *g, GpuWork once, void *context, double *seconds);
/* Warms up, takes samples, and adds the figure: work / seconds, or seconds when work is 0. */
bool gpu_rate(Gpu *g, const char *key, double work, GpuWork once, void *context);
/* Whether there is time, and room in the arena for so many more bytes; else says what is left out. */
bool gpu_may(Gpu *g, const char *what, double bytes);
/* Random numbers. */
Tensor gpu_random(Gpu *g, Type type, int dims, const int64_t *dim);
/* Notes when a result of the work is not finite: something is wrong. */
void gpu_check_finite(Gpu *g, const char *what, Tensor t);
/* Inside GpuWork: the call's failure becomes the device's. */
#define GPU_ISSUE(g, doing, call) gpu_issue(g, call, doing, #call)
void gpu_issue(Gpu *g, cudaError_t status, const char *doing, const char *call);
bool gpu_failed(Gpu *g); /* moves the device's failure to g->error */

/* ---- Products (doctor_gpu_products.c) -------------------------------------------------------------- */

typedef enum { NUMBERS_BF16, NUMBERS_TF32, NUMBERS_FP32, NUMBERS_FP64, NUMBERS_COUNT } Numbers;
/* y[m,n] = x[m,k] w[n,k]^T; dx[m,k] = dy[m,n] w[n,k]; dw[n,k] += dy[m,n]^T x[m,k], dw in the sum type. */
typedef enum { PRODUCT_FORWARD, PRODUCT_DX, PRODUCT_DW, PRODUCT_COUNT } ProductKind;

typedef struct {
    ProductKind kind;
    Numbers numbers;
    cublasLtMatmulDesc_t how;
    cublasLtMatrixLayout_t left, right, out; /* as cuBLAS sees them, column by column */
    cublasLtMatmulAlgo_t algorithm;
} Product;

bool product_open(Gpu *g, Product *p, ProductKind kind, Numbers numbers, int64_t m, int64_t n, int64_t k);
void product_close(Gpu *g, Product *p);
/* Into g->compute: out, and the two inputs in the order of the formula: (y, x, w), (dx, dy, w), (dw, dy, x). */
void product_run(Gpu *g, const Product *p, void *out, const void *first, const void *second);

/* ---- The parts: false when the GPU has failed ------------------------------------------------------- */

bool doctor_gpu_products(Gpu *g);  /* products of cuBLASLt, dense and by expert */
bool doctor_gpu_memory(Gpu *g);    /* HBM, and between host and GPU, alone and together; after the products */
bool doctor_gpu_attention(Gpu *g); /* cuDNN */
bool doctor_gpu_update(Gpu *g);    /* AdamW, resident and streamed; after memory */

#endif
