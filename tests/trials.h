/* Trials: a small model trained for a few steps on many ranks in some layout, and what came of it, to be held against
 * the same on one rank or in another layout. The models are those of tests/fixtures, with weights far enough from
 * their usual start that every part matters; clipping and both auxiliary losses are on, documents are packed and cut,
 * sizes divide by nothing. */
#ifndef MOP_TRIALS_H
#define MOP_TRIALS_H

#include "ranks.h"

enum { TRIAL_STEPS = 5, TRIAL_VOCABULARY = 67, TRIAL_OPTIONS = 8 };

/* The fixtures that trials use. */
enum { FAMILIES = 4 };
extern const char *const families[FAMILIES];

/* The ranks, and settings apart by spaces: "ulysses=2 ring=2 train.micro_batches=3"; a word without a dot is of the
 * mixture. */
typedef struct {
    int world;
    const char *settings;
} Layout;

extern const Layout alone; /* one rank, everything 1 */
/* On up to 8 ranks: each axis alone as wide as the world, then 50 drawn mixtures of all axes and settings. */
extern const Layout mixture[];
extern const size_t mixtures;

typedef void (*Rig)(Ranks *r, Collection *weights);

typedef struct {
    const char *spec;      /* NULL: the family's fixture */
    const char *documents; /* NULL: packed random ones */
    const char *options[TRIAL_OPTIONS];
    Rig rig;    /* changes the weights before the first step */
    bool roomy; /* see RanksSetup */
} Trial;

typedef struct {
    StepResult step[TRIAL_STEPS];
    Collection gradient, master, m, v; /* gradient: of the first step */
} Outcome;

/* Five sequences of 24 tokens in fp64, unless the trial or the layout says otherwise. */
Ranks *trial_open(const char *family, Layout l, const Trial *trial);
/* TRIAL_STEPS steps; gradients are collected after the first one, which must not change what follows. */
Outcome trial_train(const char *family, Layout l, const Trial *trial);
void outcome_free(Outcome *o);

void assert_near(const char *what, const char *number, double got, double expected, double bound);
void assert_outcomes_close(const char *what, const Outcome *got, const Outcome *expected, double bound);
void assert_outcomes_same_bits(const char *what, const Outcome *got, const Outcome *expected);
/* Sanitizers make everything ten to twenty times slower: in their builds (MOP_TEST_SHARE, CMakePresets.json) this is
 * true for one layout in five or eleven, other ones for each family; else always. */
bool trial_due(void);
/* Trains and compares, where it is due. */
void assert_agrees(const char *family, Layout l, const Trial *trial, const Outcome *expected, double bound);
/* Of every tensor whose name holds `part`: exactly 0. */
void assert_zero_gradient(const Collection *gradient, const char *part);

/* Rigs: what the router wants, whatever the token. Use with `calm`: what decides alone has gradients that cancel to
 * rounding noise, and AdamW divides noise by at least epsilon. */
extern const char calm[];
void to_the_last_experts(Ranks *r, Collection *weights);
void to_the_first_experts(Ranks *r, Collection *weights);
void never_to_the_second_expert(Ranks *r, Collection *weights);

#endif
