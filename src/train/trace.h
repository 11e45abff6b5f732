/* A timeline of chosen steps, as a file in the Chrome trace event format, which Perfetto (ui.perfetto.dev) opens: a
 * process per rank, in it a lane per stream and one for whole steps. Docs: docs/trace.md.
 *
 * Memory is taken when a rank joins: a Timeline for each of its streams, which a step fills and which is written
 * between steps. Ranks of one process share the file; each writes a step as a whole. The file is an array whose
 * closing bracket comes last: viewers read it also without, when the process was killed. */
#ifndef MOP_TRACE_H
#define MOP_TRACE_H

#include "train/run.h"

/* Pieces of work of a stream in a step. What is beyond is counted, and told in the file and on stderr. */
enum { TRACE_ROOM = 1 << 16 };

typedef struct {
    const char *path;  /* NULL: no trace is asked for */
    const char *steps; /* "FIRST:LAST", counted from 1 as in metrics.jsonl; NULL: all */
} TraceOptions;

typedef struct Trace Trace;
typedef struct TraceRank TraceRank;

/* What a process needs, and no file yet. *out NULL when none is asked for. False: EXIT_USAGE. Under mpirun each
 * process has a file of its own: out.json becomes out.rank3.json. */
bool trace_open(Trace **out, const TraceOptions *o, int64_t room, Error *e);
/* After the runs of all who joined are closed. `done`: nothing went wrong, so that a file without a step is worth a
 * word. False (EXIT_IO) when the end could not be written. NULL is no trace. */
bool trace_close(Trace *t, bool done, Error *e);

/* A rank joins before its first step. The first to join makes the file, what it held before is lost; false (EXIT_IO)
 * for all when it cannot be made. *out stays NULL without a trace, and the doors below then do nothing. Called by the
 * rank's own thread. */
bool trace_join(Trace *t, Run *r, TraceRank **out, Error *e);
/* Around a step: its timelines are kept if it was asked for. */
void trace_begin(TraceRank *k, int64_t step);
void trace_end(TraceRank *k);
double trace_began(const TraceRank *k); /* when the step did: seconds_now, on sim the clock */
/* What was kept since trace_begin; times are counted from `zero`, and what began before it is shown from there on. */
bool trace_write(TraceRank *k, double zero, Error *e);

#endif
