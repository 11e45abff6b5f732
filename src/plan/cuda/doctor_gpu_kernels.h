/* The kernels that `mop doctor` measures a GPU's memory with, and those that fill and check arrays; as C and CUDA
 * read them. Each puts its work into the stream. */
#ifndef MOP_DOCTOR_GPU_KERNELS_H
#define MOP_DOCTOR_GPU_KERNELS_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { GPU_FP32, GPU_BF16, GPU_FP64 } GpuType;

/* Numbers in (-1, 1), none of them 0, a function of seed and index alone. */
cudaError_t gpu_fill(cudaStream_t stream, void *at, GpuType type, int64_t count, uint32_t seed);
/* count[0] += elements that are not finite. */
cudaError_t gpu_count_unfinite(cudaStream_t stream, const void *at, GpuType type, int64_t elements,
                               unsigned long long *count);
/* to = from, and a = b + 0.5 c; elements: a multiple of 4, 16-byte aligned. */
cudaError_t gpu_copy(cudaStream_t stream, float *to, const float *from, int64_t elements);
cudaError_t gpu_triad(cudaStream_t stream, float *a, const float *b, const float *c, int64_t elements);

#ifdef __cplusplus
}
#endif

#endif
