/* Whole tensors by their Hugging Face names, put together from the slices that ranks hold; and how far other ranks,
 * in another layout, are from them. The other ranks are compared where they are, slice by slice: nothing of theirs is
 * put together. */
#ifndef MOP_COLLECTION_H
#define MOP_COLLECTION_H

#include "store/store.h"

typedef struct {
    char name[200];
    int dims;
    int64_t dim[2], count;
    double *value; /* [count]; every type fits */
} NamedTensor;

typedef struct {
    int64_t count;
    NamedTensor *tensor; /* by name */
} Collection;

/* Every tensor of which one of these stores holds a slice; values are 0. */
bool collection_open(Collection *out, Store *const *stores, int count,
                     Error *e); /* false (EXIT_MEMORY): nothing to free */
void collection_free(Collection *c);
NamedTensor *collection_find(const Collection *c, const char *name); /* it must be there */
/* Copies in what this store owns of it; the stores of a run together own every element once, and may all do so at the
 * same time. Flush first, but for gradients, which are there until the next backward pass. */
void collection_take(const Collection *c, Store *s, StoreKind kind);

/* What a tensor's difference is divided by: its norm, or 1e-3 of the norm of all where that is more. [count], freed
 * by the caller. */
double *collection_scales(const Collection *c);

/* A rank's part of a tensor's difference: sums of squares, of the elements that it owns and of its copies of others'.
 * */
typedef struct {
    double owned, copied;
    int64_t elements; /* owned */
} Deviation;
/* Adds what this store holds to out [tensors]; as collection_take otherwise. */
void collection_deviate(Deviation *out, const Collection *expected, Store *s, StoreKind kind);

/* The tensor that is farthest off, in units of its scale: over all its elements as their owners have them, or over
 * the copies of one rank. INFINITY where something is not a number. */
typedef struct {
    double relative;
    const char *tensor; /* the collection's */
} Difference;
Difference collection_difference(const Collection *expected, const Deviation *of, int ranks); /* of [ranks][tensors] */

#endif
