/* AdamW, fused: every element is read once and written once. The same bits as ops/cpu/update.c, operation by
 * operation; this file is compiled with -fmad=false (no fused multiply-add) and without fast division, square root or
 * flushing of denormals.
 *
 * A thread takes four elements at a time (16 bytes of each float array), and as many times as the grid is short of
 * the whole: a grid of a few blocks per processor is enough to keep the memory busy. Arrays are 16-byte aligned where
 * fours are taken. */
#include "ops/cuda/update.h"

static constexpr int64_t THREADS = 256, BLOCKS_MOST = 132 * 16;

/* ---- One element ---------------------------------------------------------------------------------- */

template <typename Real, typename Update>
__device__ static Real updated(Real weight, Real gradient, Real *m, Real *v, const Update &u) {
    Real g = u.clip * gradient;
    Real w = u.decay * weight;
    *m = u.b1 * *m + u.c1 * g;
    *v = u.b2 * *v + (u.c2 * g) * g;
    return w - (u.step * *m) / (sqrt(*v) / u.root + u.epsilon);
}

/* The cast of base.h: half up in magnitude, and a NaN stays one. */
__device__ static uint16_t bf16_of(float x) {
    uint32_t bits = __float_as_uint(x);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x8000u) >> 16);
}

__device__ static float master_of(uint16_t weight, uint16_t low) {
    return __uint_as_float(((uint32_t)weight << 16) + (uint32_t)(int32_t)(int16_t)low);
}

/* ---- Arrays --------------------------------------------------------------------------------------- */

template <typename Real, typename Update>
__global__ static void update_whole(Real *weight, Real *m, Real *v, const Real *gradient, int64_t count, Update u) {
    int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += step)
        weight[i] = updated(weight[i], gradient[i], &m[i], &v[i], u);
}

__device__ static void update_split_one(uint16_t *weight, uint16_t *low, float *m, float *v, float gradient,
                                        const UpdateSingle &u) {
    float w = updated(master_of(*weight, *low), gradient, m, v, u);
    *weight = bf16_of(w);
    *low = (uint16_t)__float_as_uint(w);
}

__global__ static void update_split(uint16_t *weight, uint16_t *low, float *m, float *v, const float *gradient,
                                    int64_t count, UpdateSingle u) {
    int64_t step = (int64_t)gridDim.x * THREADS, fours = count / 4;
    int64_t first = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    for (int64_t i = first; i < fours; i += step) {
        ushort4 w4 = ((ushort4 *)weight)[i], l4 = ((ushort4 *)low)[i];
        float4 m4 = ((float4 *)m)[i], v4 = ((float4 *)v)[i];
        const float4 g4 = ((const float4 *)gradient)[i];
        update_split_one(&w4.x, &l4.x, &m4.x, &v4.x, g4.x, u);
        update_split_one(&w4.y, &l4.y, &m4.y, &v4.y, g4.y, u);
        update_split_one(&w4.z, &l4.z, &m4.z, &v4.z, g4.z, u);
        update_split_one(&w4.w, &l4.w, &m4.w, &v4.w, g4.w, u);
        ((ushort4 *)weight)[i] = w4, ((ushort4 *)low)[i] = l4;
        ((float4 *)m)[i] = m4, ((float4 *)v)[i] = v4;
    }
    int64_t i = 4 * fours + first; /* fewer than four are left */
    if (i < count) update_split_one(&weight[i], &low[i], &m[i], &v[i], gradient[i], u);
}

/* Where an array does not begin at 16 bytes (8 for halves): element by element. */
__global__ static void update_split_slowly(uint16_t *weight, uint16_t *low, float *m, float *v, const float *gradient,
                                           int64_t count, UpdateSingle u) {
    int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += step)
        update_split_one(&weight[i], &low[i], &m[i], &v[i], gradient[i], u);
}

/* ---- Launches ------------------------------------------------------------------------------------- */

static unsigned blocks_of(int64_t threads) {
    int64_t blocks = (threads + THREADS - 1) / THREADS;
    return (unsigned)(blocks < 1 ? 1 : blocks < BLOCKS_MOST ? blocks : BLOCKS_MOST);
}

static bool aligned(const void *p, uintptr_t bytes) {
    return (uintptr_t)p % bytes == 0;
}

cudaError_t update_fp32(cudaStream_t stream, float *weight, float *m, float *v, const float *gradient, int64_t count,
                        UpdateSingle u) {
    update_whole<<<blocks_of(count), THREADS, 0, stream>>>(weight, m, v, gradient, count, u);
    return cudaGetLastError();
}

cudaError_t update_bf16(cudaStream_t stream, uint16_t *weight, uint16_t *low, float *m, float *v, const float *gradient,
                        int64_t count, UpdateSingle u) {
    bool fours = aligned(weight, 8) && aligned(low, 8) && aligned(m, 16) && aligned(v, 16) && aligned(gradient, 16);
    if (fours)
        update_split<<<blocks_of(count / 4), THREADS, 0, stream>>>(weight, low, m, v, gradient, count, u);
    else
        update_split_slowly<<<blocks_of(count), THREADS, 0, stream>>>(weight, low, m, v, gradient, count, u);
    return cudaGetLastError();
}

cudaError_t update_fp64(cudaStream_t stream, double *weight, double *m, double *v, const double *gradient,
                        int64_t count, UpdateDouble u) {
    update_whole<<<blocks_of(count), THREADS, 0, stream>>>(weight, m, v, gradient, count, u);
    return cudaGetLastError();
}
