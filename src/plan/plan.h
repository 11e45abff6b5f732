/* What a run will need, before it runs: the very same step code on sim ranks, whose peaks and meters are the plan. */
#ifndef MOP_PLAN_H
#define MOP_PLAN_H

#include "train/session.h"
#include "train/trace.h"

/* Opens `world` sim Runs and takes two steps, an evaluation and a token of generation on each; out[rank] gets the
 * peak of every arena for any routing, and the meter of the second step. */
bool plan_price(const Config *c, const Spec *spec, int world, Price *out, Error *e);
/* The same with the routing that time is predicted for: balanced. `trace` (NULL: none) gets that second step of every
 * rank. */
bool plan_time(const Config *c, const Spec *spec, int world, Trace *trace, Price *out, Error *e);
/* The price list: per rank and tier, per component; FLOPs; bytes per group and collective; predicted time. */
bool plan_print(const Config *c, const Spec *spec, int world, Trace *trace, FILE *f, Error *e);
/* `mop plan CONFIG`, on a settled session; the trace is of the step whose time is predicted. Returns the exit code. */
int plan_command(Session *s, const TraceOptions *trace);

#endif
