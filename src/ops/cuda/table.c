/* The table of a GPU's kernels. Nothing stands in for an op that is not here: a definition cannot read the GPU's
 * memory. */
#include "ops/cuda/table.h"

const Kernels kernels_cuda = {.name = "cuda", .run = {{[OP_ADAMW] = cuda_adamw}, {[OP_ADAMW] = cuda_adamw}}};
