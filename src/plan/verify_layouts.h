/* `mop verify-layouts`: trains the same few steps of a config on one rank and then in many layouts, in this process,
 * and compares every loss, norm, gradient, weight and moment. What a user can run on his own machine instead of
 * believing that layouts agree. */
#ifndef MOP_VERIFY_LAYOUTS_H
#define MOP_VERIFY_LAYOUTS_H

#include "base/config.h"

typedef struct {
    int64_t ranks;    /* of every layout, up to 64; 0: the config's where it has 2 to 64, else 4 */
    int64_t steps;    /* at least 1 */
    int64_t layouts;  /* mixed ones */
    const char *type; /* "fp64": agree within 1e-12; "fp32": within 1e-5 */
} VerifyOptions;

/* Prints a line for each layout as it ends. Writes no file. Returns the exit code: EXIT_DONE when all that could run
 * agree; EXIT_WRONG when one differs; EXIT_MEMORY, before any step, when one would not fit beside what is kept of the
 * reference. */
int verify_layouts_command(const Config *own, const VerifyOptions *o);

#endif
