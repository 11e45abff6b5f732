/* What a run writes for people and scripts: metrics.jsonl (an object a step), events.jsonl (what happened), and the
 * terminal. Rank 0's. */
#ifndef MOP_JOURNAL_H
#define MOP_JOURNAL_H

#include "train/session.h"

typedef struct Journal Journal;

/* Creates nothing. A run directory that exists is taken for this process alone, as long as *lock (-1 at first) stays
 * open, and refused where its checkpoints were made with settings that may not be resumed with these
 * (config_resumable). */
bool journal_claim(const char *run, const Config *c, int *lock, Error *e);
/* Makes the run directory, and takes it if that is still to be done. */
bool journal_prepare(const char *run, int *lock, Error *e);
/* Opens the files; metrics later than `step` steps, of a run that was killed after its last checkpoint, are dropped. */
Journal *journal_open(const char *run, const Config *c, int64_t step, Error *e);
void journal_close(Journal *j);

void journal_banner(Journal *j, const Session *s, const Run *r, int64_t step);
void journal_step(Journal *j, const StepResult *result, double seconds, size_t memory);
void journal_event(Journal *j, const char *event, int64_t step, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
void journal_error(Journal *j, int64_t step,
                   const Error *e); /* for scripts only: people are told when the command ends */
void journal_sample(Journal *j, int64_t step, const char *text, size_t bytes);
/* Prints text that a model made; for a terminal without characters that would act on it. */
void journal_text(const char *text, size_t bytes, bool terminal);
/* False (EXIT_IO) when something could not be written. */
bool journal_flush(Journal *j, Error *e);

Shown parameters_shown(int64_t parameters); /* "11.2 million" */

#endif
