/* A case of the property test: a small model, documents, settings and a layout, each field a value of a short list that
 * begins with the simplest. So a case is a row of small numbers: it is drawn from a seed, written as words, read back,
 * and made simpler field by field. */
#ifndef MOP_RANDOM_CASES_H
#define MOP_RANDOM_CASES_H

#include "base/base.h"

#include <stdio.h>

typedef enum {
    FIELD_CHECK,
    FIELD_FAMILY, FIELD_LAYERS, FIELD_HIDDEN, FIELD_KV_HEADS, FIELD_SHARE, FIELD_HEAD_DIM, FIELD_EXPERTS, FIELD_TOP_K,
    FIELD_WIDTH, FIELD_DENSE_LAYERS, FIELD_NORMALISE, FIELD_TIED, FIELD_WINDOW, FIELD_VOCABULARY, FIELD_RANGE,
    FIELD_DOCUMENTS, FIELD_LONGEST, FIELD_LABELLED, FIELD_DATA,
    FIELD_TYPE, FIELD_LENGTH, FIELD_SEQUENCES, FIELD_MICRO_BATCHES, FIELD_DISPATCH, FIELD_CHUNK, FIELD_ULYSSES_HEADS,
    FIELD_IMPORTS, FIELD_THRESHOLD, FIELD_RECOMPUTE, FIELD_BLOCKING, FIELD_THREADS, FIELD_CLIP, FIELD_BALANCE,
    FIELD_ROUTER_Z, FIELD_RATE, FIELD_DECAY, FIELD_SCHEDULE, FIELD_WARMUP, FIELD_SEED,
    FIELD_RANKS, FIELD_DENSE, FIELD_EXPERT, FIELD_EXPERT_SHARD, FIELD_ULYSSES, FIELD_RING, FIELD_VOCABULARY_RANKS,
    FIELD_TRAVEL,
    FIELD_OTHER, FIELD_STOP, FIELD_NONSENSE1, FIELD_NONSENSE2, FIELD_NONSENSE3, FIELD_COMMAND,
    FIELDS
} Field;

typedef struct {
    int pick[FIELDS]; /* which of the field's values */
} Case;

/* What is checked; see checks.h. */
typedef enum { CHECK_LAYOUT, CHECK_BITS, CHECK_RESUME, CHECK_KILLED, CHECK_MPI, CHECK_NONSENSE, CHECKS } Check;

Case case_draw(uint64_t seed, int64_t trial);
int64_t case_value(const Case *c, Field f);
const char *case_check(const Case *c); /* its name */
void case_print(const Case *c, FILE *f); /* "check=layout layers=3 ...": fields that are not the simplest */
bool case_read(Case *c, const char *words);
/* Simpler values of a field, the simplest first: how many there are. The one numbered `i` is c with that value. */
int case_simpler(const Case *c, Field f);

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
