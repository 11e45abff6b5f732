/* Which tensor lies where in the files of a checkpoint: a pure function of the model and its types, the same on
 * every rank, so that each can write what it holds without a word to the others.
 *
 *     model.safetensors or model-0000i-of-0000n.safetensors   every weight by its Hugging Face name
 *     optim-0000i-of-0000n.safetensors                        NAME.exp_avg, NAME.exp_avg_sq, of bf16 runs NAME.master
 */
#ifndef MOP_PLACEMENT_H
#define MOP_PLACEMENT_H

#include "checkpoint/safetensors.h"
#include "store/store.h"

enum { PLACED_KINDS = STORE_V + 1 }; /* STORE_WEIGHT, STORE_MASTER, STORE_M, STORE_V */

typedef struct {
    int file;      /* -1: this kind is not kept */
    int64_t begin; /* byte of the file */
} Place;

/* One Hugging Face tensor of the model: an expert's matrix is one of its own. */
typedef struct {
    ParameterName parameter;
    int64_t layer, expert; /* -1: none */
    int dims;
    int64_t dim[2];
    int64_t elements;
    Place at[PLACED_KINDS];
} Placed;

typedef struct {
    char name[64];
    int64_t bytes;
    Header header; /* the file's first bytes */
} PlacedFile;

typedef struct {
    const Spec *spec;
    Type type[PLACED_KINDS]; /* of the values of each kind */
    Placed *tensors;         /* in the order of the files: embedding, layers, head */
    int64_t count;
    PlacedFile *files; /* the models's first */
    int file_count, model_files;
} Placement;

enum { PLACED_NAME = 224 };

/* Files of weights of type `type`; with `state` also the optimizer's for a run of that compute type. `shard`:
 * bytes of data that a file holds at most, if it holds more than one tensor. EXIT_MEMORY when there is none. */
bool placement_open(Placement *p, const Spec *spec, Type type, bool state, int64_t shard, Error *e);
void placement_close(Placement *p);
/* NULL: the model has no such tensor. `layer` does not matter where there is one for the whole model. */
const Placed *placement_find(const Placement *p, ParameterName parameter, int64_t layer, int64_t expert);
void placed_name(const Placement *p, const Placed *t, StoreKind kind, char out[PLACED_NAME]);
/* model.safetensors.index.json, where there is more than one file; the caller decrefs. NULL: out of memory. */
json_t *placement_index(const Placement *p);

extern const int64_t placement_shard; /* 5 GB, as transformers cuts */

#endif
