/* A GPU behind a Device: its streams, its libraries, and the checkers of their calls. Only files in folders named cuda
 * include this; they are compiled where the CUDA toolkit is.
 *
 * Nothing here needs a GPU or a driver to start: the CUDA runtime is linked statically and looks for the driver when
 * it is first called; cuBLASLt, cuDNN and NCCL are loaded by name when first needed (library.c).
 */
#ifndef MOP_GPU_H
#define MOP_GPU_H

#include "device/cuda/library.h"
#include "device/device.h"

#include <cuda_runtime_api.h>

/* ---- Checkers ------------------------------------------------------------------------------------ */

/* True when the call succeeded; else e says what, doing what (the name of an op or of a deed), and at which step and
 * layer. The kernel that is at fault may be an earlier one: CUDA tells at the next call. d may be NULL: no device is
 * open yet. */
#define CUDA(d, e, doing, call) cuda_check(d, call, doing, #call, e)
#define CUBLAS(d, e, doing, call) cublas_check(d, call, doing, #call, e)
#define CUDNN(c, d, e, doing, call) cudnn_check(c, d, call, doing, #call, e)
bool cuda_check(const Device *d, cudaError_t status, const char *doing, const char *call, Error *e);
bool cublas_check(const Device *d, cublasStatus_t status, const char *doing, const char *call, Error *e);
bool cudnn_check(const Cudnn *c, const Device *d, cudnnStatus_t status, const char *doing, const char *call, Error *e);

/* ---- The device ---------------------------------------------------------------------------------- */

enum { GPU_EVENTS = 64 };

/* Events are a ring for each stream, made when the device opens. Ticket t is in slot t mod GPU_EVENTS; a slot that
 * has been recorded again since stands for later work of the same stream, so that waiting for it waits for t too. */
typedef struct CudaDevice {
    int ordinal;
    cudaStream_t stream[STREAM_COUNT];
    cudaEvent_t event[STREAM_COUNT][GPU_EVENTS];
    uint64_t tickets[STREAM_COUNT];
    Cublas blas;
    cublasLtHandle_t blas_handle; /* NULL: not needed yet */
    Cudnn dnn;
    cudnnHandle_t dnn_handle;
} CudaDevice;

cudaStream_t gpu_stream(const Stream *s);

/* Loads and opens the library where that has not been done; false: e says what is missing. */
bool gpu_cublas(Device *d, Error *e);
bool gpu_cudnn(Device *d, Error *e);

/* How many GPUs there are, and which CUDA the driver has (13000: 13.0). False: there is no driver, or one that is
 * older than this program's CUDA, or no GPU; e says which. */
bool gpu_count(int *count, int *driver, Error *e);

#endif
