/* The libraries of a GPU as tables of functions, filled when they are loaded. They have a gigabyte between them, and
 * no run on a CPU needs them; a missing one is a sentence. A member has the name and the type of the function that it
 * is. Once loaded they stay: code that has shown its kernels to a driver is not taken away again. */
#ifndef MOP_LIBRARY_H
#define MOP_LIBRARY_H

#include "base/base.h"

#include <cublasLt.h>
#include <cudnn.h>

#define CUBLAS_FUNCTIONS(X)                                                                                            \
    X(cublasLtCreate)                                                                                                  \
    X(cublasLtDestroy)                                                                                                 \
    X(cublasLtGetVersion)                                                                                              \
    X(cublasLtGetStatusString)                                                                                         \
    X(cublasLtMatmul)                                                                                                  \
    X(cublasLtMatmulAlgoGetHeuristic)                                                                                  \
    X(cublasLtMatmulDescCreate)                                                                                        \
    X(cublasLtMatmulDescDestroy)                                                                                       \
    X(cublasLtMatmulDescSetAttribute)                                                                                  \
    X(cublasLtMatrixLayoutCreate)                                                                                      \
    X(cublasLtMatrixLayoutDestroy)                                                                                     \
    X(cublasLtMatmulPreferenceCreate)                                                                                  \
    X(cublasLtMatmulPreferenceDestroy)                                                                                 \
    X(cublasLtMatmulPreferenceSetAttribute)

#define CUDNN_FUNCTIONS(X)                                                                                             \
    X(cudnnCreate)                                                                                                     \
    X(cudnnDestroy)                                                                                                    \
    X(cudnnSetStream)                                                                                                  \
    X(cudnnGetVersion)                                                                                                 \
    X(cudnnGetErrorString)                                                                                             \
    X(cudnnGetLastErrorString)                                                                                         \
    X(cudnnBackendCreateDescriptor)                                                                                    \
    X(cudnnBackendDestroyDescriptor)                                                                                   \
    X(cudnnBackendSetAttribute)                                                                                        \
    X(cudnnBackendGetAttribute)                                                                                        \
    X(cudnnBackendFinalize)                                                                                            \
    X(cudnnBackendExecute)

#define LIBRARY_MEMBER(function) __typeof__(function) *function;

typedef struct {
    void *library; /* NULL: not loaded */
    CUBLAS_FUNCTIONS(LIBRARY_MEMBER)
} Cublas;

typedef struct {
    void *library;
    CUDNN_FUNCTIONS(LIBRARY_MEMBER)
} Cudnn;

/* False: e says which library is missing, what for, and where it is looked for. Loading again does nothing. */
bool cublas_load(Cublas *out, Error *e);
bool cudnn_load(Cudnn *out, Error *e);
bool nccl_version(int *out, Error *e); /* 22809: 2.28.9 */

#endif
