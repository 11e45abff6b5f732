/* Whether what a store holds is numbers: asked once, when weights have been read. */
#ifndef MOP_FINITE_H
#define MOP_FINITE_H

#include "store/store.h"

/* False on every rank, with the same Error (EXIT_DIVERGED), when a value that any rank holds is NaN or infinite in the
 * run's type; the sentence names the tensor and `where` it was read from. `moments`: those of AdamW are looked at too.
 * All ranks call it together. */
bool store_check_finite(Store *s, Comm *comm, const char *where, bool moments, Error *e);

#endif
