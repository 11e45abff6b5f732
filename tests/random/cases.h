/* A case of the property test: a small model, documents, settings and a layout, each field a value of a short list that
 * begins with the simplest. So a case is a row of small numbers: it is drawn from a seed, written as words, read back,
 * and made simpler field by field. */
#ifndef MOP_RANDOM_CASES_H
#define MOP_RANDOM_CASES_H

#include "base/base.h"

#include <stdio.h>

typedef enum {
    DRAWN_CHECK,
    DRAWN_FAMILY,
    DRAWN_LAYERS,
    DRAWN_HIDDEN,
    DRAWN_KV_HEADS,
    DRAWN_SHARE,
    DRAWN_HEAD_DIM,
    DRAWN_EXPERTS,
    DRAWN_TOP_K,
    DRAWN_WIDTH,
    DRAWN_DENSE_LAYERS,
    DRAWN_NORMALISE,
    DRAWN_TIED,
    DRAWN_WINDOW,
    DRAWN_VOCABULARY,
    DRAWN_RANGE,
    DRAWN_DOCUMENTS,
    DRAWN_LONGEST,
    DRAWN_LABELLED,
    DRAWN_DATA,
    DRAWN_TYPE,
    DRAWN_LENGTH,
    DRAWN_SEQUENCES,
    DRAWN_MICRO_BATCHES,
    DRAWN_DISPATCH,
    DRAWN_CHUNK,
    DRAWN_ULYSSES_HEADS,
    DRAWN_IMPORTS,
    DRAWN_THRESHOLD,
    DRAWN_RECOMPUTE,
    DRAWN_BLOCKING,
    DRAWN_THREADS,
    DRAWN_CLIP,
    DRAWN_BALANCE,
    DRAWN_ROUTER_Z,
    DRAWN_RATE,
    DRAWN_DECAY,
    DRAWN_SCHEDULE,
    DRAWN_WARMUP,
    DRAWN_SEED,
    DRAWN_RANKS,
    DRAWN_DENSE,
    DRAWN_EXPERT,
    DRAWN_EXPERT_SHARD,
    DRAWN_ULYSSES,
    DRAWN_RING,
    DRAWN_VOCABULARY_RANKS,
    DRAWN_TRAVEL,
    DRAWN_OTHER,
    DRAWN_STOP,
    DRAWN_NONSENSE1,
    DRAWN_NONSENSE2,
    DRAWN_NONSENSE3,
    DRAWN_COMMAND,
    DRAWN_COUNT
} Drawn;

typedef struct {
    int pick[DRAWN_COUNT]; /* which of the field's values */
} Case;

/* What is checked; see checks.h. */
typedef enum { CHECK_LAYOUT, CHECK_BITS, CHECK_RESUME, CHECK_KILLED, CHECK_MPI, CHECK_NONSENSE, CHECKS } Check;

Case case_draw(uint64_t seed, int64_t trial);
int64_t case_value(const Case *c, Drawn f);
const char *case_check(const Case *c);   /* its name */
void case_print(const Case *c, FILE *f); /* "check=layout layers=3 ...": fields that are not the simplest */
bool case_read(Case *c, const char *words);
/* Simpler values of a field, the simplest first: how many there are. The one numbered `i` is c with that value. */
int case_simpler(const Case *c, Drawn f);

/* What a case means. Axes are numbers of divisors: of the ranks, and of what other axes leave of them. */
enum { MADE_SETS = 36, MADE_STEPS = 4 };
typedef struct {
    int64_t world;
    char spec[1200];             /* a config.json */
    char *documents;             /* JSONL; the caller frees it */
    const char *sets[MADE_SETS]; /* settings "key=value" up to the first NULL, in `memory` */
    char memory[1600];
} Made;
Made *case_make(const Case *c);
void made_free(Made *m);

#endif
