/* The table of definitions: one kernel serves every type, so both columns are the same. */
#include "ops/cpu/plain.h"

#define ENTRY(op, name) [op] = plain_##name,

const Kernels kernels_plain = {
    .name = "plain", .run = {{DEFINITIONS(ENTRY)}, {DEFINITIONS(ENTRY)}}, .otherwise = &kernels_plain};
