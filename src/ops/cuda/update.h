/* AdamW on a GPU, as C and CUDA both read it: update.c makes the scalars, update.cu runs them. */
#ifndef MOP_CUDA_UPDATE_H
#define MOP_CUDA_UPDATE_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The scalars of ops.h, in double, rounded to the sum type once. */
typedef struct {
    float decay, b1, c1, b2, c2, step, root, epsilon, clip;
} UpdateSingle;
typedef struct {
    double decay, b1, c1, b2, c2, step, root, epsilon, clip;
} UpdateDouble;

/* Puts the update of `count` elements into the stream. Device memory; low: the low halves of a bf16 weight. `weight` is fp32, bf16
 * and fp64 in this order, m, v and gradient float, float and double. */
cudaError_t update_fp32(cudaStream_t stream, float *weight, float *m, float *v, const float *gradient, int64_t count,
                        UpdateSingle u);
cudaError_t update_bf16(cudaStream_t stream, uint16_t *weight, uint16_t *low, float *m, float *v, const float *gradient,
                        int64_t count, UpdateSingle u);
cudaError_t update_fp64(cudaStream_t stream, double *weight, double *m, double *v, const double *gradient,
                        int64_t count, UpdateDouble u);

#ifdef __cplusplus
}
#endif

#endif
