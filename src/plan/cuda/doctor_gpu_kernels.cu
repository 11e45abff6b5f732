/* Plain kernels: a grid that fills the GPU, each thread striding over the array. */
#include "plan/cuda/doctor_gpu_kernels.h"

#include <cuda_bf16.h>

static constexpr int64_t THREADS = 256, BLOCKS_MOST = 132 * 16;

static unsigned blocks_of(int64_t threads) {
    int64_t blocks = (threads + THREADS - 1) / THREADS;
    return (unsigned)(blocks < 1 ? 1 : blocks < BLOCKS_MOST ? blocks : BLOCKS_MOST);
}

__device__ static int64_t first_index() {
    return (int64_t)blockIdx.x * THREADS + threadIdx.x;
}

__device__ static int64_t stride() {
    return (int64_t)gridDim.x * THREADS;
}

/* ---- Random numbers -------------------------------------------------------------------------------- */

/* A mix of multiplications and shifts (the finalizer of MurmurHash3): good enough to keep multipliers busy. */
__device__ static float random_number(int64_t index, uint32_t seed) {
    uint32_t x = (uint32_t)index * 0x9E3779B9u ^ (uint32_t)(index >> 32) ^ seed * 0x85EBCA6Bu;
    x ^= x >> 16;
    x *= 0x85EBCA6Bu;
    x ^= x >> 13;
    x *= 0xC2B2AE35u;
    x ^= x >> 16;
    return ((float)(x >> 9) + 0.5f) * 0x1p-22f - 1.0f;
}

__device__ static void put(float *at, float x) {
    *at = x;
}
__device__ static void put(double *at, float x) {
    *at = x;
}
__device__ static void put(__nv_bfloat16 *at, float x) {
    *at = __float2bfloat16(x * 0.99f); /* not rounded to 1 */
}

template <typename Real> __global__ static void fill(Real *at, int64_t count, uint32_t seed) {
    for (int64_t i = first_index(); i < count; i += stride()) put(at + i, random_number(i, seed));
}

cudaError_t gpu_fill(cudaStream_t stream, void *at, GpuType type, int64_t count, uint32_t seed) {
    unsigned blocks = blocks_of(count);
    if (type == GPU_FP32) fill<<<blocks, THREADS, 0, stream>>>((float *)at, count, seed);
    if (type == GPU_BF16) fill<<<blocks, THREADS, 0, stream>>>((__nv_bfloat16 *)at, count, seed);
    if (type == GPU_FP64) fill<<<blocks, THREADS, 0, stream>>>((double *)at, count, seed);
    return cudaGetLastError();
}

/* ---- Checks ---------------------------------------------------------------------------------------- */

__device__ static double number(float x) {
    return x;
}
__device__ static double number(double x) {
    return x;
}
__device__ static double number(__nv_bfloat16 x) {
    return __bfloat162float(x);
}

template <typename Real>
__global__ static void count_unfinite(const Real *at, int64_t elements, unsigned long long *count) {
    unsigned long long found = 0;
    for (int64_t i = first_index(); i < elements; i += stride()) found += !isfinite(number(at[i]));
    if (found > 0) atomicAdd(count, found);
}

cudaError_t gpu_count_unfinite(cudaStream_t stream, const void *at, GpuType type, int64_t elements,
                               unsigned long long *count) {
    unsigned blocks = blocks_of(elements);
    if (type == GPU_FP32) count_unfinite<<<blocks, THREADS, 0, stream>>>((const float *)at, elements, count);
    if (type == GPU_BF16) count_unfinite<<<blocks, THREADS, 0, stream>>>((const __nv_bfloat16 *)at, elements, count);
    if (type == GPU_FP64) count_unfinite<<<blocks, THREADS, 0, stream>>>((const double *)at, elements, count);
    return cudaGetLastError();
}

/* ---- Memory ---------------------------------------------------------------------------------------- */

__global__ static void copy(float4 *to, const float4 *from, int64_t fours) {
    for (int64_t i = first_index(); i < fours; i += stride()) to[i] = from[i];
}

__global__ static void triad(float4 *a, const float4 *b, const float4 *c, int64_t fours) {
    for (int64_t i = first_index(); i < fours; i += stride()) {
        const float4 x = b[i], y = c[i];
        a[i] = make_float4(x.x + 0.5f * y.x, x.y + 0.5f * y.y, x.z + 0.5f * y.z, x.w + 0.5f * y.w);
    }
}

cudaError_t gpu_copy(cudaStream_t stream, float *to, const float *from, int64_t elements) {
    copy<<<blocks_of(elements / 4), THREADS, 0, stream>>>((float4 *)to, (const float4 *)from, elements / 4);
    return cudaGetLastError();
}

cudaError_t gpu_triad(cudaStream_t stream, float *a, const float *b, const float *c, int64_t elements) {
    triad<<<blocks_of(elements / 4), THREADS, 0, stream>>>((float4 *)a, (const float4 *)b, (const float4 *)c,
                                                           elements / 4);
    return cudaGetLastError();
}
