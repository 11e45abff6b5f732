/* The GPU of a mop that was built without CUDA: a sentence. */
#include "device/backend.h"

static bool cuda_open(Device *d, Error *e) {
    return fail(e, EXIT_USAGE,
                "device: \"%s\", but this mop was built without CUDA; use cpu, or build with `make cuda`", d->name);
}

static void cuda_close(Device *d) {
    (void)d;
}

const Backend backend_cuda = {.open = cuda_open, .close = cuda_close};
