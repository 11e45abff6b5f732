/* The directories of a run's checkpoints, RUN/ckpt/step-00001200:
 *
 *     step-00001200                 a checkpoint; whole if its manifest verifies, whatever its name says
 *     step-00001200.tmp-<random>    one being written, or left by a run that was killed
 *     step-00000600.old-<random>    one being deleted: out of sight first, then file by file
 */
#ifndef MOP_SNAPSHOT_H
#define MOP_SNAPSHOT_H

#include "checkpoint/text.h"
#include <stdio.h>

typedef struct {
    char text[64];
} SnapshotName;
SnapshotName snapshot_name(int64_t step);
SnapshotName snapshot_temporary(int64_t step, const char *kind, uint64_t random); /* kind: "tmp", "old" */
uint64_t snapshot_random(void);

Path snapshot_parent(const char *run); /* RUN/ckpt */

/* Steps of the directories in `parent` that are named like checkpoints, newest first; the caller frees. No such
 * directory: none. */
bool snapshots_list(const char *parent, int64_t **steps, int64_t *count, Error *e);
/* Removes what killed runs left: everything named .tmp- or .old-. Only at the start of a run, before anything
 * is written. */
bool snapshots_clean(const char *parent, Error *e);
/* Moves a directory of files aside and deletes it. One that is already gone is no error. */
bool snapshot_remove(const char *parent, const char *name, Error *e);
/* The newest `last` stay (0: all), by name. Those that go are told of in `f`, a line each; NULL: nobody is told. */
bool snapshots_keep(const char *parent, int64_t last, FILE *f, Error *e);
/* Deletes a directory and the files in it; directories in it are an error. */
bool directory_remove(const char *path, Error *e);
/* fsyncs a directory. */
bool directory_sync(const char *path, Error *e);
/* Makes a directory and those above it, on the disk when it returns. */
bool directory_make(const char *path, Error *e);

#endif
