/* Ranks for tests: `world` Runs in this process, each on a thread of its own, opened from settings as a command
 * would open them; and the whole tensors of the model, put together from what every rank holds. Whatever fails,
 * fails the test. */
#ifndef MOP_RANKS_H
#define MOP_RANKS_H

#include "store/collection.h"
#include "train/session.h"

typedef struct {
    int world;
    const char *spec;      /* path of a config.json, or its text when it begins with '{' */
    const char *documents; /* JSONL text to train on; NULL: data.path of the settings, or without one blank sequences */
    const char *yaml;      /* text of the configuration; NULL: defaults */
    const char *sets[40];  /* "key=value", up to the first NULL */
    bool roomy;            /* arenas of twice the plan's sizes: what exceeds the plan is measured and ends nothing */
} RanksSetup;

typedef struct {
    int world;
    Config config;
    Spec spec;
    Tokens *tokens; /* NULL: none */
    Wire **wires;
    Price *price; /* [world]: the plan */
    bool roomy;
    Run **run;    /* [world] */
    Error *error; /* [world]: of the last ranks_try */
} Ranks;

/* Weights are store_initialise's, from train.seed. */
Ranks *ranks_open(RanksSetup setup);
void ranks_close(Ranks *r);

/* body(run, context, &error) on every rank at once. A rank that returns false poisons the wire, as in a session.
 * ranks_run: none may fail. ranks_try: true when none failed; r->error says what each met. */
typedef bool (*RanksBody)(Run *run, void *context, Error *e);
void ranks_run(Ranks *r, RanksBody body, void *context);
bool ranks_try(Ranks *r, RanksBody body, void *context);

/* Steps first, first + 1, ... (`count` of them). out [count] (may be NULL) gets their results, which must be the
 * same bits on all ranks. */
void ranks_train(Ranks *r, int64_t first, int64_t count, StepResult *out);

/* A body, of all that a plan foresees: two steps, an evaluation, a token of generation, and a step that applies what
 * is due. */
bool do_everything(Run *r, void *context, Error *e);
/* What every rank has used so far, [world]; freed by the caller. */
Price *ranks_prices(Ranks *r);
/* No arena of any rank has held more than the plan says. */
void assert_within_plan(const char *what, Ranks *r, const Price *used);

/* ---- Whole tensors, by their Hugging Face names ------------------------------------------------ */

/* Every element must be owned by exactly one rank, and every other rank that holds it must hold the same bits.
 * Applies due updates first, except for gradients. */
Collection ranks_collect(Ranks *r, StoreKind kind);
/* Writes c's values into every rank's store. */
void ranks_put(Ranks *r, StoreKind kind, const Collection *c);
/* Writes one element on one rank that holds it; false when that rank does not. */
bool ranks_poke(Ranks *r, int rank, StoreKind kind, const char *name, int64_t element, double value);

/* Changes weights so that every token wishes for experts alike, most for the one of the largest wish: one feature
 * of all hidden states is large, stays so through the layers, and decides alone. */
void collection_steer(Collection *weights, int64_t experts, double (*wish)(int64_t expert, int64_t experts));

/* The difference's norm is at most bound x max(the tensor's norm, 1e-3 of the norm of all). */
void assert_collections_close(const char *what, const Collection *got, const Collection *expected, double bound);
void assert_collections_same_bits(const char *what, const Collection *got, const Collection *expected);
/* Loss, norm, rate and load, to the bit. */
void assert_results_same_bits(const char *what, const StepResult *got, const StepResult *expected, int64_t count);

/* JSONL of documents of pseudo-random tokens below `vocabulary`, of lengths 1 .. longest; freed by the caller. */
char *random_documents(int documents, int longest, int vocabulary, uint64_t seed);

#endif
