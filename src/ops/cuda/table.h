/* The ops that have a CUDA kernel: each puts its kernel into the stream and returns. */
#ifndef MOP_CUDA_TABLE_H
#define MOP_CUDA_TABLE_H

#include "ops/kernels.h"

void cuda_adamw(Stream *s, const void *args);

#endif
