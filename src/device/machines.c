/* Machines that sim predicts with, one rank's share each. Practical rates, not peaks; sources are named in the row. */
#include "device/device.h"

#include <string.h>

static const Machine machines[] = {
    {.name = "cpu", .note = "one of two EPYC cores (AVX-512), measured",
     .flops_fp32 = 100e9, .flops_bf16 = 100e9, .flops_fp64 = 50e9, .memory_bandwidth = 20e9,
     .link_bandwidth = 8e9, .link_latency = 20e-6, .memory_bytes = 12e9},
    {.name = "h200", .note = "HGX H200, 8 to a node: bf16 0.62 of 989 TFLOP/s, HBM 0.8 of 4.8 TB/s, NVLink 340 GB/s (public figures)",
     .flops_fp32 = 40e12, .flops_bf16 = 610e12, .flops_fp64 = 40e12, .memory_bandwidth = 3.84e12,
     .link_bandwidth = 340e9, .link_latency = 15e-6, .memory_bytes = 142.7e9},
    {.name = "h100", .note = "HGX H100-80, 8 to a node: as h200 with HBM 0.8 of 3.35 TB/s (public figures)",
     .flops_fp32 = 40e12, .flops_bf16 = 610e12, .flops_fp64 = 40e12, .memory_bandwidth = 2.68e12,
     .link_bandwidth = 340e9, .link_latency = 15e-6, .memory_bytes = 78.8e9},
};

const Machine *machine_find(const char *name) {
    for (size_t i = 0; i < COUNT(machines); i++)
        if (strcmp(machines[i].name, name) == 0) return &machines[i];
    return NULL;
}

void machine_list(FILE *f) {
    for (size_t i = 0; i < COUNT(machines); i++) fprintf(f, "  sim:%-6s %s\n", machines[i].name, machines[i].note);
}
