/* Checkpoints: a run's state on the disk, whole or not there at all, and free of any layout.
 *
 *     RUN/ckpt/step-00001200/
 *         config.json, model*.safetensors (and index), and the small files that went with the first weights
 *                                 (small_files.h): a Hugging Face directory, which transformers loads as it is
 *         optim-*.safetensors     NAME.exp_avg, NAME.exp_avg_sq, of bf16 runs NAME.master (placement.h)
 *         state.json              TrainState, compute type, version
 *         manifest.json           hash of every byte of all these (manifest.h)
 *
 * Saving: rank 0 makes step-N.tmp-<random>/ with the files at full size; every rank writes the slices it owns
 * where they belong and hashes them as they pass; all is fdatasynced; rank 0 writes the manifest, fsyncs it and
 * the directory, renames it, fsyncs the parent. Killed anywhere, what is named step-N is whole. Loading reads
 * slices by name and range, so any layout reads any other's, and verifies every extent that it reads.
 *
 * Functions with a Comm are called by all ranks together, and return the same on all, with the same Error.
 *
 * Which file when, in the order of a checkpoint's life (checkpoints.h is what they share):
 *     saving     checkpoints.c opens, save.c tells the story: placement.c says where each tensor lies, placed_files.c makes
 *                the large files, small_files.c and state.c the small ones, manifest.c the last; snapshot.c names and removes
 *     meaning    named.c: the checkpoint that a path means, and why it means none
 *     loading    load.c tells the story: source.c opens and verifies files (safetensors.c reads one), bind.c finds tensors;
 *                identity.c says whether all ranks read the same, and whether it is of this run
 *     commands   checkpoint_command.c, inspect_command.c, export_command.c: alone, while runs train */
#ifndef MOP_CHECKPOINT_H
#define MOP_CHECKPOINT_H

#include "checkpoint/text.h"
#include "data/data.h"
#include "model/spec_compare.h"
#include "store/store.h"

/* What a run needs beside weights and moments to go on as if nothing had happened. */
typedef struct {
    int64_t step;      /* steps done */
    int64_t updates;   /* of the optimizer: less than steps where gradients were not finite */
    int64_t tokens;    /* seen */
    int64_t sequences; /* consumed: the data's cursor */
    int64_t bad_steps; /* in a row, up to here: a run that is started again and again counts on */
    uint64_t data_hash, config_hash;
} TrainState;

typedef struct {
    char directory[4096];
    int64_t bytes;  /* of weights and optimizer state */
    double seconds; /* until it was on the disk */
} SaveReport;

/* What differs between a checkpoint's model and the one at hand. */
typedef struct {
    SpecChange change[SPEC_FIELDS];
    int count;
} ModelChanges;

/* What was loaded, and what was not. */
typedef struct {
    bool found; /* false: the run has no checkpoint, start from the beginning */
    char directory[4096];
    TrainState state;
    ModelChanges changes; /* SPEC_MODEL is none of them: that is refused */
    int64_t damaged;      /* newer checkpoints that were passed over */
    char damage[2048];    /* why the newest of them was */
} ResumeReport;

/* A rank's way to checkpoints, opened once: what saving needs is allocated here. */
typedef struct Checkpoints Checkpoints;

/* `run`: its directory; "" where nothing will be saved or resumed. `spec`, `store`, `tokenizer` and `comm` must live until
 * checkpoints_close. `base`: the directory that weights first came from, or "": its small files (small_files.h) go with
 * every checkpoint, and are read now. `tokenizer`: whose files are written instead of those in `base`; NULL: those in
 * `base`, understood or not. `type` is the run's compute type. Not collective. */
Checkpoints *checkpoints_open(const char *run, const char *base, const Spec *spec, Type type, Store *store,
                              const Tokenizer *tokenizer, Comm *comm, Error *e);
void checkpoints_close(Checkpoints *c);

/* Writes RUN/ckpt/step-N, N = state->step, in place of one of that name. Flushes the store first. When it fails
 * (EXIT_IO: disk full, no rights), the temporary directory is removed, and every older checkpoint is as it was.
 * `report` may be NULL. */
bool checkpoint_save(Checkpoints *c, const TrainState *state, SaveReport *report, Error *e);
/* Deletes all but the newest `last` checkpoints of the run (0: none). */
bool checkpoint_keep(Checkpoints *c, int64_t last, Error *e);

/* At the start of a run: removes what killed runs left, then loads weights, moments, state and small files of the
 * newest checkpoint that is whole. Damaged ones are passed over and reported. It is an error when there are
 * checkpoints and all are damaged, or when one is of another model, tokenizer or compute type. */
bool checkpoint_resume(Checkpoints *c, ResumeReport *report, Error *e);
/* The same from one directory. Damage is EXIT_DATA; what the store then holds is undefined. */
bool checkpoint_load(Checkpoints *c, const char *directory, TrainState *state, Error *e);
/* Weights only, from a checkpoint, a Hugging Face directory or one .safetensors file, of any real type and in
 * the per-expert or fused spelling. Moments are left alone. */
bool checkpoint_load_weights(Checkpoints *c, const char *path, Error *e);

/* Reads every byte of a checkpoint and says whether it is the one that was written (EXIT_DATA: no, with file
 * and tensor). Alone. */
bool checkpoint_verify(const char *directory, Error *e);

/* ---- The checkpoint that a path means ---------------------------------------------------------- */

typedef struct {
    Path directory;
    Path run;          /* that it is the newest checkpoint of; "": it was named itself */
    int64_t step;      /* of a run's */
    int64_t damaged;   /* newer checkpoints of the run that were passed over */
    char damage[1024]; /* why the newest of them was */
} NamedCheckpoint;
/* The directory itself where it is a model or checkpoint, else the newest checkpoint of a run, unless its manifest,
 * small files, sizes or headers are damaged (EXIT_DATA): only then an older one. All other failures are the command's. */
bool checkpoint_named(const char *path, NamedCheckpoint *out, Error *e);
/* Once it has been read and found damaged after all, as `damage` says: the next older one of the run. False: there is
 * none, and `e` is that damage; or another failure. */
bool checkpoint_older(NamedCheckpoint *n, const Error *damage, Error *e);
/* checkpoint_load_weights of a named one: where a run's is damaged, of an older one, which `n` then is. Collective. */
bool checkpoint_load_named(Checkpoints *c, NamedCheckpoint *n, Error *e);
/* Says on stderr which were passed over, and what is taken, if any were. */
void checkpoint_say_passed_over(const NamedCheckpoint *n);

/* ---- Commands ---------------------------------------------------------------------------------- */

/* argv[0] is the command's name; they print, and return the exit code. None needs ranks, and all work while a run
 * is training. `ckpt diff` returns 1 when the two differ. */
int checkpoint_command(int argc,
                       char **argv); /* ckpt verify|list RUN-or-CHECKPOINT, ckpt prune RUN --keep K, ckpt diff A B */
int inspect_command(int argc, char **argv); /* inspect FILE.safetensors | CHECKPOINT | RUN */
int export_command(int argc, char **argv);  /* export CHECKPOINT|RUN --out DIR [--dtype fp32|bf16|fp64] */

#endif
