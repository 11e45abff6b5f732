/* What a person sees of a run while it trains: a line that is rewritten on a terminal, or one now and then elsewhere;
 * and what came of it at the end. Nothing here is for scripts: those read metrics.jsonl. */
#ifndef MOP_PROGRESS_H
#define MOP_PROGRESS_H

#include "train/run.h"

/* ---- Numbers to take in at a glance ------------------------------------------------------------ */

Shown parameters_shown(int64_t parameters); /* "11.2 million" */
Shown bytes_shown(double bytes);            /* "50.9 MB" */
Shown duration_shown(double seconds);       /* "25 min" */
/* So many digits behind the point, or "not finite": people never see a nan. */
Shown metric_shown(double x, int digits);
/* The loss of a step: "-" where no position was trained. */
Shown loss_shown(const StepResult *r);

/* ---- The line ---------------------------------------------------------------------------------- */

enum { PROGRESS_LINE = 400, PROGRESS_LAST = 10 };

/* Of the steps that this process has made. */
typedef struct {
    bool terminal, line_open; /* line_open: a line waits to be overwritten */
    int64_t steps, tokens;
    double started, seconds;    /* when it began; spent in steps */
    double printed;             /* when the last line was */
    double first_loss;          /* of the first step that has a finite one */
    double last[PROGRESS_LAST]; /* of the last of these, a ring */
    int64_t losses;
} Progress;

Progress progress_begin(bool terminal);
void progress_step(Progress *p, const Config *c, int64_t vocabulary, const StepResult *r, double seconds);
/* So that what comes next begins a line of its own. */
void progress_end_line(Progress *p);
/* "12 steps in 3 s, 13000 tokens/s, loss 5.5612 -> 2.1903 (mean of the last 10)" */
void progress_summary(const Progress *p, char *out, size_t room);

/* A line of at most `width` columns: where it is narrow what matters least is left out. `left`: seconds to the end;
 * `out` has PROGRESS_LINE bytes. */
void progress_line(char *out, int width, const StepResult *r, int64_t steps, double tokens_per_s, double left);

#endif
