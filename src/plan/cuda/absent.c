/* What `mop doctor` says of GPUs when mop was built without CUDA. */
#include "plan/doctor_parts.h"

GpuAnswer doctor_gpus(Report *r, const Host *h, Machine *out) {
    (void)h;
    (void)out;
    printf("\nGPUs\n  not looked for: this mop was built without CUDA\n");
    report_note(
        r, "built without CUDA: GPUs are not looked for and runs use the CPU; `make cuda` builds a mop that measures "
           "them, where the CUDA toolkit is installed");
    return GPU_NONE;
}
