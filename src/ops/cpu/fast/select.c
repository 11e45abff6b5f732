/* Which kernels a device runs: for each instruction set the tables of table.h, and the best that this processor has.
 * Compiled once, unlike its neighbours, and for any processor. */
#include "ops/cpu/fast/table.h"
#include "ops/kernels.h"
#include <string.h>

#define DECLARE(op, name, real, isa) void name##_##real##_##isa(Stream *s, const void *args);
#define ENTRY(op, name, real, isa) [op] = name##_##real##_##isa,
/* One instruction set for floats (and bf16), one for doubles. */
#define TABLES(isa, double_isa)                                                                                        \
    FAST_KERNELS(DECLARE, float, isa)                                                                                  \
    static const Kernels kernels_##isa = {                                                                             \
        #isa, {{FAST_KERNELS(ENTRY, float, isa)}, {FAST_KERNELS(ENTRY, double, double_isa)}}, &kernels_plain};

FAST_KERNELS(DECLARE, double, portable)
TABLES(portable, portable)

static bool always(void) {
    return true;
}

#if defined(__x86_64__)
FAST_KERNELS(DECLARE, double, avx2)
FAST_KERNELS(DECLARE, double, avx512)
TABLES(avx2, avx2)
TABLES(avx512, avx512)
TABLES(avx512bf16, avx512)

static bool has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
           __builtin_cpu_supports("bmi2");
}

static bool has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
           __builtin_cpu_supports("avx512dq");
}

static bool has_avx512bf16(void) {
    return has_avx512() && __builtin_cpu_supports("avx512bf16");
}
#endif

/* Best first. */
static const struct {
    const char *device;
    const Kernels *kernels;
    bool (*supported)(void);
} sets[] = {
#if defined(__x86_64__)
    {"cpu:avx512bf16", &kernels_avx512bf16, has_avx512bf16},
    {"cpu:avx512", &kernels_avx512, has_avx512},
    {"cpu:avx2", &kernels_avx2, has_avx2},
#endif
    {"cpu:portable", &kernels_portable, always},
};

static const Kernels *kernels_best(void) {
    int i = 0;
    while (!sets[i].supported()) i++; /* the last one always is */
    return sets[i].kernels;
}

const Kernels *kernels_for(const char *device, Error *e) {
    if (strncmp(device, "sim:", 4) == 0) return NULL;
    if (strcmp(device, "cpu") == 0 || strcmp(device, "cpu:late") == 0) return kernels_best();
    if (strcmp(device, "cpu:plain") == 0) return &kernels_plain;
    if (strncmp(device, "cuda:", 5) == 0) return &kernels_cuda;
    for (size_t i = 0; i < COUNT(sets); i++) {
        if (strcmp(device, sets[i].device) != 0) continue;
        if (sets[i].supported()) return sets[i].kernels;
        fail(e, EXIT_USAGE,
             "this processor lacks the instructions of %s; device; use cpu, which takes the best it has "
             "(%s)",
             device, kernels_best()->name);
        return NULL;
    }
    fail(e, EXIT_USAGE,
         "\"%s\" is not a device; device; use cpu, cpu:plain, cpu:late, cpu:avx512bf16, cpu:avx512, "
         "cpu:avx2, cpu:portable, cuda:0 or sim:NAME",
         text_shown(device).text);
    return NULL;
}
