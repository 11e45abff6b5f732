/* Weights to read from: a checkpoint of mop, a Hugging Face directory, or one .safetensors file. A checkpoint's
 * bytes are verified against its manifest as they are read; of the others, only what the format itself tells
 * can be checked.
 *
 * Tensors are found under their Hugging Face names, one an expert, or in the fused spelling of transformers 5,
 * where
 *
 *     experts.gate_up_proj [E, 2I, H]     expert e's gate is rows [2I e, 2I e + I), its up the I rows after
 *     experts.down_proj [E, H, I]
 *
 * Every tensor of the model must be there with its shape, and every tensor there must belong to the model:
 * nothing is left random, nothing is left out. */
#ifndef MOP_SOURCE_H
#define MOP_SOURCE_H

#include "checkpoint/checkpoint.h"
#include "checkpoint/manifest.h"

typedef struct {
    int file;
    const StoredTensor *tensor; /* NULL: not looked for */
    int64_t first;              /* its element at which what was looked for begins */
} Found;

typedef struct {
    Path path;     /* the directory, or the file */
    bool verified; /* there is a manifest, and what is read is held against it */
    Manifest manifest;
    Safetensors *files;          /* the model's, then the optimizer's */
    const ManifestFile **listed; /* of each file, where verified */
    int file_count, model_files;
    char *values; /* what source_piece returns: [EXTENT_BYTES] */
    char *raw;    /* bytes as stored: [EXTENT_BYTES] */
    int raw_file; /* which they are; -1: none */
    int64_t raw_begin, raw_end;
} Source;

/* With `state` also the optimizer's tensors, which only a checkpoint has. Of a checkpoint everything small
 * (headers, config, state, tokenizer) is verified here. Damage is EXIT_DATA. After false `s` needs no close. */
bool source_open(Source *s, const char *path, bool state, Error *e);
void source_close(Source *s);

/* Where each tensor of `p` lies: found[i * PLACED_KINDS + kind], for weights and, with `state`, for all that
 * `p` keeps; the caller frees. NULL and EXIT_DATA, with the names, when tensors are missing, unused or
 * misshapen. (Twice there, source_open refuses.) */
Found *source_bind(const Source *s, const Placement *p, bool state, Error *e);

/* Reads some of the elements [at, at + count) of what was found, beginning with the first, as `type`. Returns
 * how many there are in s->values (at least one), or 0 after a failure: EXIT_DATA, with file and tensor, for
 * damage. */
int64_t source_piece(Source *s, const Found *f, int64_t at, int64_t count, Type type, Error *e);

/* ---- Which, and whose (identity.c) -------------------------------------------------------------- */

/* A hash that another checkpoint or model does not have: of all its bytes where there is a manifest, else of headers
 * and samples. */
bool source_identity(const Source *s, uint64_t *hash, Error *e);
/* All ranks read the same; else EXIT_USAGE, which ranks do not. Called by all together. */
bool weights_same(Comm *comm, uint64_t identity, Error *e);
/* Whether a checkpoint is of the model and the tokenizer at hand (else EXIT_USAGE, with what differs). `changes` gets
 * what may have changed in the model's description. */
bool source_is_of(const Source *s, const Checkpoints *c, ModelChanges *changes, Error *e);

#endif
