/* What a run writes for people and scripts: metrics.jsonl (an object a step), events.jsonl (what happened), and the
 * terminal. Rank 0's. */
#ifndef MOP_JOURNAL_H
#define MOP_JOURNAL_H

#include "train/session.h"

typedef struct Journal Journal;

/* A run directory that is this process's alone, from before anything in it is read or cleaned until it is released. */
typedef struct {
    const char *run;
    int lock;    /* -1: none */
    size_t kept; /* bytes of the path that were there before */
} Claim;

/* Takes a run directory that exists; where there is none nothing is made. Refused where another process has it, and
 * where its checkpoints were made with settings that may not be resumed with these (config_resumable). `run` outlives
 * the claim, which is released also after a failure. */
bool journal_claim(Claim *claim, const char *run, const Config *c, Error *e);
/* The same when the ranks are open, and a directory that is not there is made: the one thing that is created before
 * all input, weights and a checkpoint to resume among them, is known to be good. */
bool journal_take(Claim *claim, const Config *c, Error *e);
/* Directories that were made for the claim and are still empty go away again. */
void journal_release(Claim *claim);
/* Opens the files; metrics later than `step` steps, of a run that was killed after its last checkpoint, are dropped. */
Journal *journal_open(const Session *s, const char *run, int64_t step, Error *e);
/* Both: false (EXIT_IO) when something could not be written. NULL is closed too. */
bool journal_close(Journal *j, Error *e);
bool journal_flush(Journal *j, Error *e);
/* What was written is on the disk, so that a checkpoint which is saved next never has more steps than the metrics. */
bool journal_sync(Journal *j, Error *e);

void journal_step(Journal *j, const StepResult *result, double seconds, size_t memory);
void journal_event(Journal *j, const char *event, int64_t step, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
void journal_error(Journal *j, int64_t step,
                   const Error *e); /* for scripts only: people are told when the command ends */
void journal_sample(Journal *j, int64_t step, const char *text, size_t bytes);
/* Prints text that a model made; for a terminal without characters that would act on it. */
void journal_text(const char *text, size_t bytes, bool terminal);
/* The run has made its last step: what came of it, and what one does next. */
void journal_done(Journal *j, int64_t step, const char *checkpoint);

#endif
