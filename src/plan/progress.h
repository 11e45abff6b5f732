/* That a plan is still at work, and how far: a line on standard error, on a terminal after a second and renewed, else
 * every ten seconds. A plan that is done before says nothing. */
#ifndef MOP_PLAN_PROGRESS_H
#define MOP_PLAN_PROGRESS_H

#include "train/session.h"

typedef struct PlanProgress PlanProgress;

/* What ranks do one after another: plan_progress_at says that a rank begins it. */
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
PlanProgress *plan_progress_open(const Spec *spec, Wire *const *wires, int world, const char *routing);
void plan_progress_at(PlanProgress *p, Stage stage); /* by any rank */
void plan_progress_close(PlanProgress *p);

#endif
