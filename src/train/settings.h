/* The run's config.yaml: what a resume is held against, and where the settings that it changed are written down. */
#ifndef MOP_SETTINGS_H
#define MOP_SETTINGS_H

#include "train/journal.h"

/* False (EXIT_USAGE) where the run has checkpoints that were made with settings which may not be resumed with these
 * (config_resumable). */
bool settings_resumable(const char *run, const Config *c, Error *e);

/* Writes config.yaml. At a resume it first tells every setting that is another one than the last time, on the terminal
 * and as an event each, and keeps all that were ever told as comments at the file's end:
 *
 *     # after step 120: optimizer.learning_rate 0.003 -> 0.001
 *
 * What was told for steps that the resumed checkpoint has not made holds from that checkpoint on. A crash between an
 * event and the file tells it again; the file has it once. */
bool settings_record(Journal *j, const char *run, const Config *c, const ResumeReport *report, Error *e);

#endif
