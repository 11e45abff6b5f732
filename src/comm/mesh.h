/* The same W ranks, factored once per part of the model. Pure arithmetic: (mixture, world, rank) -> named axes.
 *
 * An Axis is one rank's view of one group: member j is rank first + j stride, and this rank is member `index`.
 * Ranks of one Ulysses, expert (E_p), dense (Z) or vocabulary (P) group are contiguous; of one ring or expert_shard
 * (E_s) group, strided. A *_replica group joins the ranks that hold the same bytes of that part: their gradients are
 * summed.
 *
 *   world 8, expert 4, expert_shard 2:      rank   0 1 2 3 4 5 6 7
 *                                           expert {0 1 2 3}{4 5 6 7}     expert_shard {0 4}{1 5}{2 6}{3 7}
 *   world 8, expert 4, expert_shard 1:      expert {0 1 2 3}{4 5 6 7}     expert_replica {0 4}{1 5}{2 6}{3 7}
 */
#ifndef MOP_MESH_H
#define MOP_MESH_H

#include "base/config.h"

typedef enum {
    AXIS_WORLD,
    AXIS_SEQUENCE, /* D = ulysses x ring: the ranks that share one sequence */
    AXIS_ULYSSES,
    AXIS_RING, /* D_u contiguous, D_r strided by D_u */
    AXIS_EXPERT,
    AXIS_EXPERT_SHARD,
    AXIS_EXPERT_REPLICA,
    AXIS_DENSE,
    AXIS_DENSE_REPLICA,
    AXIS_VOCABULARY,
    AXIS_VOCABULARY_REPLICA,
    AXIS_COUNT
} AxisName;
const char *axis_name(AxisName a);

typedef struct {
    AxisName name;
    int size, index;   /* members; this rank's place among them */
    int first, stride; /* member j is rank first + j * stride */
} Axis;

typedef struct {
    int world, rank;
    Axis axis[AXIS_COUNT];
} Mesh;

/* The mesh of one rank. mixture_dense 0 means all ranks. A size that does not divide is EXIT_USAGE, in one sentence. */
bool mesh_plan(Mesh *m, const Config *c, int world, int rank, Error *e);

/* n things (experts, rows of the vocabulary) cut over an axis: ceil(n / size) each in the order of its members, the
 * last ones with fewer or none. */
typedef struct {
    int64_t each, first, here; /* this rank has first .. first + here - 1 */
} Share;
Share axis_share(const Axis *a, int64_t n);

void mesh_print(const Config *c, int world, FILE *f); /* every axis's groups, a line each */
void mesh_print_axis(const Config *c, int world, AxisName name, FILE *f);

#endif
