/* What the files of this folder share of a rank's Checkpoints and of a checkpoint's small files. */
#ifndef MOP_CHECKPOINTS_H
#define MOP_CHECKPOINTS_H

#include "checkpoint/checkpoint.h"
#include "checkpoint/manifest.h"
#include "checkpoint/snapshot.h"

/* A hash on its way from the rank that wrote the bytes to rank 0. */
typedef struct {
    int64_t file; /* of the placement */
    Extent extent;
} Written;

enum { WRITTEN_ROUND = 1024 }; /* hashes that a rank sends at a time */

struct Checkpoints {
    Path run, base;
    const Spec *spec;
    Type type;
    Store *store;
    const Tokenizer *tokenizer;
    Comm *comm;
    Placement placement;
    const Slice *slices;
    int64_t slice_count;
    char *buffer;              /* [EXTENT_BYTES] */
    Written *written;          /* [written_room]: what this rank wrote */
    int64_t written_count, written_room;
    Written *round;            /* [(world + 1) WRITTEN_ROUND] */
    int *fd;                   /* [file_count], -1: not open */
};

/* Slices are in the store's order; each is a part of one placed tensor. */
const Placed *slice_placed(const Checkpoints *c, const Slice *s);

/* state.json. */
bool state_write(const char *directory, const TrainState *state, Type type, Error *e);
bool state_read(const char *directory, TrainState *state, Type *type, Error *e);

/* generation_config.json: what of the model's config is about generating. */
bool generation_config_write(const char *directory, const json_t *config, Error *e);

/* LICENSE and NOTICE files beside weights, which go wherever the weights go. `copied` may be NULL; else called for each name. */
bool licence_copy(const char *from, const char *to, Error *e);
extern const char *const licence_files[]; /* NULL-terminated */

/* Copies one small file, if it is there; true when it was not. */
bool small_file_copy(const char *from, const char *to, const char *name, bool *copied, Error *e);

#endif
