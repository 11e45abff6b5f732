/* How a sequence lies on the D_u x D_r ranks of a sequence group. Pure arithmetic, the same on every rank.
 *
 * A causal query sees what is before it, so equal stretches would be unequal work. The sequence is cut at floor(j S /
 * 2 D_r); parts j and 2 D_r - 1 - j go to ring member j, and its Ulysses group splits the two, one behind the other,
 * at floor(i N / D_u):
 *
 *     ring 2, ulysses 2, S 16     position   0  1  2  3 | 4  5  6  7 | 8  9 10 11 |12 13 14 15
 *                                 part            0     |     1      |     2      |     3
 *                                 ring member     0     |     1      |     1      |     0
 *                                 rank       0  0  0  0 | 2  2  2  2 | 3  3  3  3 | 1  1  1  1
 *
 * So a rank has at most two stretches of a sequence, and their order is that of their positions. */
#ifndef MOP_CUT_H
#define MOP_CUT_H

#include "comm/mesh.h"

/* [first, first + count). */
typedef struct {
    int64_t first, count;
} Span;

typedef struct {
    int ulysses, ring; /* D_u, D_r */
    int64_t length;    /* S */
    int64_t limit;     /* positions from here on do not exist (a text that is not full yet); they move no cut */
} Cut;
Cut cut_of(const Config *c);

/* Positions, ascending; either stretch may be empty. */
typedef struct {
    Span part[2];
    int64_t tokens; /* of both */
} Stretches;
Stretches cut_ring_member(const Cut *c, int ring); /* what a whole Ulysses group has */
Stretches cut_rank(const Cut *c, int rank);        /* rank of the world */

/* How many of the positions are below `position`: the row, among those of the stretches, of the first that is not. */
int64_t stretches_below(const Stretches *s, int64_t position);

#endif
