/* One side of a Parcel read as a stream: blocks of memory, one behind the other, whether it was given as one block or
 * as spans. Both wires move bytes from walk to walk, so neither asks how a side was cut.
 *
 *   spans   [2,2) [0,1)  of rows   a b c d     =   stream  c d a
 */
#ifndef MOP_PARCEL_H
#define MOP_PARCEL_H

#include "comm/comm.h"

typedef struct {
    char *base, *at;  /* at: where the block at hand goes on */
    const Span *span; /* the next; NULL: one block */
    size_t row_bytes;
    size_t block, left; /* bytes left of the block at hand, and of the whole, it included */
} Walk;

Walk walk_sent(const Parcel *p);
Walk walk_received(const Parcel *p);
/* Bytes of the block at hand, the next one if that is used up; 0 at the end. */
size_t walk_block(Walk *w);
/* The next `bytes`, at most what is left of the block. */
char *walk_take(Walk *w, size_t bytes);
/* Both must have the same bytes left. */
void walk_copy(Walk to, Walk from);

#endif
