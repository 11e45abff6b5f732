/* What a run writes for people and scripts: metrics.jsonl (an object a step), events.jsonl (what happened), and the terminal. Rank 0's. */
#ifndef MOP_JOURNAL_H
#define MOP_JOURNAL_H

#include "train/session.h"

typedef struct Journal Journal;

/* Makes the run directory and writes the resolved config.yaml. An existing one must have been made with settings that may be
 * resumed (config_resumable). */
bool journal_prepare(const char *run, const Config *c, Error *e);
/* Opens the files; metrics later than `step` steps, of a run that was killed after its last checkpoint, are dropped. */
Journal *journal_open(const char *run, const Config *c, int64_t step, Error *e);
void journal_close(Journal *j);

void journal_banner(Journal *j, const Session *s, const Run *r, int64_t step);
void journal_step(Journal *j, const StepResult *result, double seconds, size_t memory);
void journal_event(Journal *j, const char *event, int64_t step, const char *format, ...) __attribute__((format(printf, 4, 5)));
void journal_sample(Journal *j, int64_t step, const char *text, size_t bytes);
/* False (EXIT_IO) when something could not be written. */
bool journal_flush(Journal *j, Error *e);

#endif
