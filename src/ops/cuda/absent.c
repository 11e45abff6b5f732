/* The kernels of a mop that was built without CUDA: none, and no device that would ask for one. */
#include "ops/kernels.h"

const Kernels kernels_cuda = {.name = "cuda"};
