/* What the files of this folder share of a rank's Checkpoints and of a checkpoint's small files. */
#ifndef MOP_CHECKPOINTS_H
#define MOP_CHECKPOINTS_H

#include "checkpoint/checkpoint.h"
#include "checkpoint/manifest.h"
#include "checkpoint/small_files.h"
#include "checkpoint/snapshot.h"

/* A hash on its way from the rank that wrote the bytes to rank 0. */
typedef struct {
    int64_t file; /* of the placement */
    Extent extent;
} Written;

enum { WRITTEN_ROUND = 1024 }; /* hashes that a rank sends at a time */

struct Checkpoints {
    Path run;
    SmallFiles carried; /* rank 0's, of a run that is saved */
    Licence licence;
    const Spec *spec;
    Type type;
    Store *store;
    const Tokenizer *tokenizer;
    Comm *comm;
    Placement placement;
    const Slice *slices;
    int64_t slice_count;
    char *buffer;     /* [EXTENT_BYTES] */
    Written *written; /* [written_room]: what this rank wrote */
    int64_t written_count, written_room;
    Written *round; /* [(world + 1) WRITTEN_ROUND] */
    int *fd;        /* [file_count], -1: not open */
};

/* Slices are in the store's order; each is a part of one placed tensor. */
const Placed *slice_placed(const Checkpoints *c, const Slice *s);

/* As checkpoints_open, with files of at most `shard` bytes. */
Checkpoints *checkpoints_open_sharded(const char *run, const char *base, const Spec *spec, Type type, Store *store,
                                      const Tokenizer *tokenizer, Comm *comm, int64_t shard, Error *e);

/* ---- Files ------------------------------------------------------------------------------------ */

/* Makes all files of a placement in `directory`, at full size and with their headers, so that a full disk shows
 * before any data is written. None of them may exist. EXIT_IO. */
bool placed_files_make(const Placement *p, const char *directory, Error *e);
/* pwrite until all is written; false: see errno. */
bool write_whole(int fd, const void *data, size_t bytes, int64_t at);

/* state.json. `licence`: "" for none. NULL: out of memory. */
json_t *state_json(const TrainState *state, Type type, const char *licence);
bool state_read(const char *directory, TrainState *state, Type *type, Error *e);

/* What a run carries: from where its weights came from, or, once it resumes, from its checkpoint. Not collective. */
bool checkpoints_carry(Checkpoints *c, const char *directory, const Tokenizer *tokenizer, Error *e);

/* ---- For commands ----------------------------------------------------------------------------- */

/* Why a path means none; always false. */
bool checkpoint_none(const char *path, Error *e);
/* After a failure: whether the checkpoint itself is gone, because a run that was training has removed it; then `e` says
 * that. */
bool checkpoint_gone(const char *directory, Error *e);
/* Every checkpoint of RUN, a line each. */
bool checkpoints_print(const char *run, FILE *f, Error *e);

#endif
