/* That a plan is still at work, and how far: a line on standard error, on a terminal after a second and renewed, else
 * every ten seconds. A plan that is done before says nothing. */
#ifndef MOP_PROGRESS_H
#define MOP_PROGRESS_H

#include "train/session.h"

typedef struct Progress Progress;

/* What ranks do one after another: progress_at says that a rank begins it. */
typedef enum {
    PROGRESS_OPEN,
    PROGRESS_STEP_1,
    PROGRESS_STEP_2,
    PROGRESS_EVALUATE,
    PROGRESS_GENERATE,
    PROGRESS_DONE
} Stage;

/* `wires` [world]: layers are read from rank 0's calls. NULL: no thread or no memory for it, or nobody to tell; every
 * function takes that. */
Progress *progress_open(const Spec *spec, Wire *const *wires, int world, const char *routing);
void progress_at(Progress *p, Stage stage); /* by any rank */
void progress_close(Progress *p);

#endif
