/* Machines that sim predicts with. Rates are what programs reach, not peaks; every row says where its figures come
 * from. */
#include "device/machines.h"

#include <string.h>

#define GB 1e9
#define TERA 1e12

/* Public peaks of the H100 and H200 SXM (NVIDIA data sheets), and the shares of them that programs report. */
#define HOPPER                                                                                                         \
    .peak = {67 * TERA, 989 * TERA, 67 * TERA},                                                                        \
    .achieved = {[RATE_MATRIX] = {40 * TERA, 0.64 * 989 * TERA, 40 * TERA},                                            \
                 [RATE_ATTENTION] = {40 * TERA, 0.54 * 989 * TERA, 40 * TERA},                                         \
                 [RATE_ELEMENTWISE] = {10 * TERA, 10 * TERA, 10 * TERA}}
#define HOPPER_SOURCE                                                                                                  \
    "peaks: NVIDIA data sheet (fp32 and fp64 67, bf16 dense 989 TFLOP/s); matrix bf16: 0.64 of it, between 0.68 "      \
    "(dense) and 0.60 "                                                                                                \
    "(grouped products); attention bf16: 0.54 (0.62 forward, 0.52 backward); fp32 and fp64: 0.6, assumed; "            \
    "elementwise: 0.15 of fp32, assumed; memory: 0.8 of "
#define NVLINK_SOURCE "; link: 340 of NVLink's 450 GB/s each way, latency assumed"
#define NIC_SOURCE                                                                                                     \
    "; network: 43 of 50 GB/s each way of one 400 Gb/s NIC a GPU (DeepEP reports 43 to 47), latency assumed"
#define USABLE_SOURCE ", of which 0.98 less 5 GB of a node's GPU or 2.5 GB of a single one can be used, assumed"
#define ALONE_SOURCE(pcie)                                                                                             \
    "; link, network: none is assumed to exist; PCIe's " pcie " GB/s and 25 Gb/s Ethernet stand in, latencies assumed"

static const Machine machines[] = {
    {.name = "cpu",
     .cores = true,
     .units = 2,
     .source = "2 cores of an AMD EPYC (Zen 4, AVX-512, 3.65 GHz): peaks measured between registers; matrix, memory "
               "and link rates "
               "about what linear, AdamW and all_gather reached; attention and elementwise judged from runs on a busy "
               "machine; "
               "memory: 24 GiB for both; "
               "network: 10 Gb/s Ethernet, and latencies, assumed. `mop doctor --out FILE.json` measures yours",
     .peak = {117 * GB, 233 * GB, 58 * GB},
     .achieved = {[RATE_MATRIX] = {100 * GB, 100 * GB, 50 * GB},
                  [RATE_ATTENTION] = {45 * GB, 45 * GB, 25 * GB},
                  [RATE_ELEMENTWISE] = {10 * GB, 10 * GB, 5 * GB}},
     .bytes_per_s = 20 * GB,
     .memory_bytes = 12 * GB,
     .link = {8 * GB, 20e-6},
     .network = {1.2 * GB, 50e-6}},
    {.name = "h200",
     .units = 8,
     HOPPER,
     .source = HOPPER_SOURCE "4.8 TB/s, 143771 MiB" USABLE_SOURCE NVLINK_SOURCE NIC_SOURCE,
     .bytes_per_s = 3840 * GB,
     .memory_bytes = 142.7 * GB,
     .link = {340 * GB, 15e-6},
     .network = {43 * GB, 25e-6}},
    {.name = "h100",
     .units = 8,
     HOPPER,
     .source = HOPPER_SOURCE "3.35 TB/s, 81559 MiB" USABLE_SOURCE NVLINK_SOURCE NIC_SOURCE,
     .bytes_per_s = 2680 * GB,
     .memory_bytes = 78.8 * GB,
     .link = {340 * GB, 15e-6},
     .network = {43 * GB, 25e-6}},
    {.name = "h200x1",
     .units = 1,
     HOPPER,
     .source = HOPPER_SOURCE "4.8 TB/s, 143771 MiB" USABLE_SOURCE ALONE_SOURCE("50"),
     .bytes_per_s = 3840 * GB,
     .memory_bytes = 145.2 * GB,
     .link = {50 * GB, 15e-6},
     .network = {3.1 * GB, 50e-6}},
    {.name = "h100x1",
     .units = 1,
     HOPPER,
     .source = HOPPER_SOURCE "3.35 TB/s, 81559 MiB" USABLE_SOURCE ALONE_SOURCE("50"),
     .bytes_per_s = 2680 * GB,
     .memory_bytes = 81.3 * GB,
     .link = {50 * GB, 15e-6},
     .network = {3.1 * GB, 50e-6}},
    {.name = "a100x1",
     .units = 1,
     .source = "A100-80 SXM: peaks: NVIDIA data sheet (fp32 and fp64 19.5, bf16 dense 312 TFLOP/s); matrix, "
               "attention and elementwise: the shares that the "
               "h100 rows have; memory: 0.8 of 2.039 TB/s, 81920 MiB" USABLE_SOURCE ALONE_SOURCE("25"),
     .peak = {19.5 * TERA, 312 * TERA, 19.5 * TERA},
     .achieved = {[RATE_MATRIX] = {11.7 * TERA, 0.64 * 312 * TERA, 11.7 * TERA},
                  [RATE_ATTENTION] = {11.7 * TERA, 0.54 * 312 * TERA, 11.7 * TERA},
                  [RATE_ELEMENTWISE] = {2.9 * TERA, 2.9 * TERA, 2.9 * TERA}},
     .bytes_per_s = 1631 * GB,
     .memory_bytes = 81.7 * GB,
     .link = {25 * GB, 15e-6},
     .network = {3.1 * GB, 50e-6}},
};

const Machine *machine_row(const char *name) {
    for (size_t i = 0; i < COUNT(machines); i++)
        if (strcmp(machines[i].name, name) == 0) return &machines[i];
    return NULL;
}

void machine_list(FILE *f) {
    for (size_t i = 0; i < COUNT(machines); i++)
        fprintf(f, "  sim:%-7s %lld x %s a node; %s\n", machines[i].name, (long long)machines[i].units,
                machines[i].cores ? "core" : "GPU", machines[i].source);
    fprintf(f, "  sim:FILE.json, as `mop doctor --out FILE.json` measures it\n");
}

int64_t machine_ranks_per_node(const Machine *m, int threads) {
    return m->cores ? max64(1, m->units / max64(1, threads)) : m->units;
}

const Link *machine_link(const Machine *m, int threads, int first, int last) {
    int64_t each = machine_ranks_per_node(m, threads);
    return first / each == last / each ? &m->link : &m->network;
}
