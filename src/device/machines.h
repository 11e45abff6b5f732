/* The machine that sim predicts with: what one of its units (a GPU, or a core of a CPU) achieves, how many units
 * share a node, and what joins them. A row of machines.c, or a file that `mop doctor --out` measured or a person
 * wrote (docs/machines.md).
 *
 * A rank on a GPU has one unit; a rank on a CPU has as many as threads, and as many times their rates. Ranks fill
 * nodes in order.
 */
#ifndef MOP_MACHINES_H
#define MOP_MACHINES_H

#include "base/json.h"
#include <stdio.h>

/* What an op's FLOPs are: matrix products; attention, which reaches less of the peak; or SwiGLU, norms, softmax and
 * the like, which reach much less, since an exp or a root counts as one. */
typedef enum { RATE_MATRIX, RATE_ATTENTION, RATE_ELEMENTWISE, RATE_COUNT } RateKind;
enum { RATE_TYPES = 3 }; /* FP32, BF16, FP64 */

typedef struct {
    double bytes_per_s, latency_s; /* each way, of a rank */
} Link;

enum { MACHINE_UNITS_MOST = 1 << 20 };

typedef struct Machine {
    char name[64];
    char source[768];                        /* where each figure comes from */
    bool cores;                              /* units are cores; otherwise GPUs */
    int64_t nodes, units;                    /* nodes, 0: as many as a run needs; units of a node */
    double achieved[RATE_COUNT][RATE_TYPES]; /* FLOP/s of a unit while all units of the node work */
    double peak[RATE_TYPES];
    double bytes_per_s;  /* of memory, reads and writes together */
    double memory_bytes; /* that a unit can use */
    Link link, network;  /* within a node; between nodes */
} Machine;

/* `name`: a row's, or the path of a file when it ends in .json. EXIT_USAGE when there is no such row or file, or
 * with every missing and every impossible value of the file; EXIT_IO when it cannot be read. */
bool machine_open(const char *name, Machine *out, Error *e);
void machine_list(FILE *f); /* the rows */

/* The same from memory; `where` names it in messages. */
bool machine_parse(const char *text, size_t bytes, const char *where, Machine *out, Error *e);
/* What a file must hold for machine_open to give this machine. The caller json_decrefs. */
json_t *machine_json(const Machine *m);
/* The "measured" part of a file that machine_open accepts: key -> {"min", "median", "max"}. NULL without an error:
 * it has none. The caller json_decrefs. */
json_t *machine_measured(const char *path, Error *e);
bool machine_is_file(const char *name);       /* ends in .json */
const Machine *machine_row(const char *name); /* NULL: no such row */

/* Ranks of `threads` threads that a node holds. */
int64_t machine_ranks_per_node(const Machine *m, int threads);
/* What joins the ranks first..last: the network as soon as they lie in two nodes. */
const Link *machine_link(const Machine *m, int threads, int first, int last);

#endif
