/* A Run is everything above for one rank: device, wire, model, store, and the memory of a step. Many live in one
 * process: ranks that are threads, and the sim ranks that `plan` opens to price a run. run_open reserves every arena;
 * nothing is allocated afterwards. */
#ifndef MOP_RUN_H
#define MOP_RUN_H

#include "data/data.h"
#include "store/store.h"
#include "train/waiting.h"

/* The arenas of a rank, in the order of a Price. */
typedef enum {
    ARENA_WEIGHTS,
    ARENA_OPTIMIZER,
    ARENA_GRADIENTS,
    ARENA_SLOTS,
    ARENA_ACTIVATIONS,
    ARENA_WORK,
    ARENA_BATCH,
    ARENA_STAGING,
    ARENA_HOST,
    ARENA_COUNT
} ArenaName;

/* Seconds by what they were for, as device.h's StreamTime has them; exposed: the compute stream waited for the
 * network. What is neither computed nor exposed is the host's: it issues work, makes batches, writes. */
typedef enum { TIME_COMPUTE, TIME_NETWORK, TIME_EXPOSED, TIME_KINDS } TimeKind;
typedef struct {
    double by[TIME_KINDS][COMPONENT_COUNT];
} Times;
enum { TIMES = TIME_KINDS * COMPONENT_COUNT };
const char *time_name(TimeKind k); /* "compute_s", "network_s", "exposed_s" */

/* What a rank needs: bytes of every arena at its worst, by component. Made by plan, from the peaks of a sim Run. */
typedef struct {
    size_t bytes[ARENA_COUNT], by[ARENA_COUNT][COMPONENT_COUNT];
    Tier tier[ARENA_COUNT];
    const char *name[ARENA_COUNT];
    Meter meter;    /* of one step */
    double seconds; /* predicted of one step */
    Times times;    /* where they go */
} Price;

enum { STAT_LOSS, STAT_BALANCE, STAT_Z, STAT_STOP, STAT_TIMES, STAT_LOAD = STAT_TIMES + TIMES, TRAINED = 0, REAL = 1 };

typedef struct Run {
    const Config *config;
    const Spec *spec;
    const Tokens *tokens; /* NULL on sim without data */
    Device *device;
    Comm comm;
    Store *store;
    Model model;
    Arena activations, work, batch_arena, host;

    int64_t micro_batches;
    bool generating;
    MicroBatch *micro;   /* [micro_batches]; tensors in batch_arena */
    Batch one;           /* host: a whole sequence */
    int32_t *row;        /* host [sequence_length]: what is written next */
    struct Peers *peers; /* P > 1 (peers.c): tokens of those who share the vocabulary */
    Saved *saved;        /* [layers][micro_batches] */
    Mark *marks;         /* [layers] of the activations arena, before the layer's forward */
    Tensor counts;       /* fp64 [2]: trained and real positions of the step, over all ranks */
    Tensor stats;        /* fp64 [STAT_LOAD + experts]: this rank's, then everybody's */
    double *stats_host;
    struct Answers *answers; /* sim's, or the recorder's */
    Event shared;            /* the routing statistics of whole sequences are there */

    Waiting *waiting; /* who is told how far an evaluation or a text is; NULL: nobody */

    Times told, left;  /* times.c: of the device, when a step last told them; when it ended */
    int64_t updates;   /* AdamW's own count: steps with a finite gradient */
    int64_t bad_steps; /* consecutive */
} Run;

/* What a Run is opened with, and all ranks of a run must have in common, whatever the files are called that they have
 * it from. */
typedef struct {
    const Config *config;
    const Spec *spec;
    const Tokenizer *tokenizer; /* NULL: none */
    const Tokens *tokens;       /* NULL: none */
    uint64_t request;           /* a hash of the command and its arguments */
} Common;

/* `sizes` NULL: every arena unlimited (sim only). Before anything is made the ranks show each other what they have in
 * common (not on sim); EXIT_USAGE says what differs on which ranks. On failure nothing is left open. The wire and
 * everything passed in outlive the Run. */
Run *run_open(const Common *common, Wire *wire, const char *device, const Price *sizes, Error *e);
void run_close(Run *r);
Arena *run_arena(Run *r, ArenaName a);
void run_price(Run *r, Price *out);         /* peaks and meter so far */
bool run_within(Run *r, const Price *plan); /* the contract: no arena has ever held more than its plan */
size_t run_memory(Run *r);                  /* high-water of all arenas of this rank, bytes */
/* Bytes that one rank takes beside the arenas of its device, at most about: from the heap, on its thread's stack, and
 * in its host arena. Known before anything is opened. `sim`: as a rank that only counts. (heap.c) */
double run_heap(const Config *c, const Spec *spec, int world, bool sim);
double run_host_bytes(const Config *c, const Spec *spec, int world); /* of the host arena alone */
/* The most tokens that a micro-batch of any rank has. */
int64_t run_largest_batch(const Config *c, int world);
/* Rounds of a micro-batch, of any rank, to the experts, and of its tokens to the head. */
int64_t run_dispatch_rounds(const Config *c, int world);
int64_t run_loss_rounds(const Config *c, int world);

/* What this version does not do, refused in words before anything is opened (EXIT_USAGE). */
bool run_supported(const Config *c, const Spec *spec, int world, Error *e);

/* Sequences of micro-batch `micro` that a rank shares with its sequence group, and their tokens on it; in generation,
 * of the text. */
int64_t run_sequences(const Run *r, int rank, int64_t micro);
int64_t run_tokens(const Run *r, int rank, int64_t micro);
/* Those of the rank that has most: they decide in how many rounds all ranks work, so that all call the same
 * collectives. */
int64_t run_most_tokens(const Run *r, int64_t micro);

/* ---- Batches onto the device (batch_device.c) -------------------------------------------------------- */

/* All fail where the data turn out to be damaged, before any collective. */
bool run_load_batch(Run *r, int64_t step, Error *e); /* the step's micro-batches */
/* Evaluation: a step's worth of sequences from *token on, which moves to where the next ones begin: to the end of the
 * data at last. */
bool run_load_uncut(Run *r, int64_t *token, Error *e);
/* What both do: every sequence of a step comes from `source`, which fills `one` with sequence number `sequence` of
 * the step, whole. */
typedef bool (*SequenceSource)(Run *r, void *context, int64_t sequence, Batch *one, Error *e);
bool run_upload(Run *r, SequenceSource source, void *context, Error *e);
/* This rank's positions of `one` become sequence `number` of b. */
void run_place(Run *r, MicroBatch *b, int64_t number, const Batch *one);

/* ---- The tokens of those who share the vocabulary (peers.c) ------------------------------------------- */

/* The lookups of all micro-batches, in the batch arena and on the heap; nothing where P = 1. */
bool peers_open(Run *r, Error *e);
void peers_close(Run *r);
int64_t peers_count(const Run *r); /* P, this rank included; 0 where P = 1 */
int peers_rank(const Run *r, int64_t member);
/* A member's positions of `one` become sequence `number` of its micro-batch. When all sequences of all members are
 * there, peers_load makes b->lookup of micro-batch `micro` of them. */
void peers_take(Run *r, int64_t member, int64_t number, const Batch *one);
void peers_load(Run *r, MicroBatch *b, int64_t micro);

/* Activations for one pass: x, gradient, rope table, routing statistics of every micro-batch. */
void run_begin_pass(Run *r, bool training);
void run_begin_micro_batch(Run *r, MicroBatch *b, bool training); /* of one */
void run_end_pass(Run *r);

/* ---- One step (step.c: read first) ------------------------------------------------------------ */

typedef struct {
    int64_t step, trained;    /* trained positions, over all ranks */
    double loss;              /* of the language model, mean over trained positions; 0 where there is none */
    double balance, router_z; /* auxiliary losses, without coefficient */
    double norm, learning_rate;
    double load;       /* rows of the busiest expert over the mean, all layers and ranks */
    bool finite, stop; /* stop: some rank was asked to stop */
    Times times;       /* mean over ranks; 0 on sim, where a rank's own are in its device */
    GradientNorm gradient;
} StepResult;

/* `stop`: this rank has been asked to stop; everybody learns it in `out`. False when a peer was lost. */
bool train_step(Run *r, int64_t step, bool stop, StepResult *out, Error *e);
bool train_loaded_step(Run *r, int64_t step, bool stop, StepResult *out,
                       Error *e);                       /* on the batch that is loaded already */
double learning_rate_at(const Config *c, int64_t step); /* schedule.c */

/* ---- Where the seconds of a step go (times.c) ---------------------------------------------------- */

Times times_now(Run *r); /* of this rank, since its device was opened; also on sim */
Times times_between(const Times *from, const Times *to);

/* A rank tells its times of a step in the step's last collective. What comes behind (that collective, a blocking
 * update) belongs to the next step, and what lies between steps (checkpoints, samples) to none. */
void times_begin(Run *r);
Times times_tell(Run *r);
Times times_mean(const double *sums, int ranks); /* sums [TIMES] over so many ranks */
void times_end(Run *r);

/* ---- Forward only (step.c, generate.c) ---------------------------------------------------------------- */

typedef struct {
    double loss; /* sum over trained positions, nats */
    int64_t trained;
} Evaluation;
bool evaluate(Run *r, Evaluation *out, Error *e);

/* What came of it. */
typedef struct {
    int64_t made; /* tokens */
    bool stopped; /* some rank was asked to stop, so that they may be fewer */
} Generated;

/* The ids that end a text (eos_token_id). */
enum { TEXT_ENDS = 32 };
typedef struct {
    int32_t id[TEXT_ENDS];
    int count;
} TextEnds;

/* Extends `ids`, the same on all ranks, by `count` tokens, each sampled from the last sequence_length ones; by fewer
 * where an end of text is drawn, which is not made part of it. Where a rank is asked to stop all stop behind the same
 * token. EXIT_DIVERGED where a prediction is not finite. Every rank calls it. */
typedef struct {
    double temperature, top_p; /* temperature 0: the likeliest */
    uint64_t seed, step;       /* what the draws are a function of, beside the place in the text */
    bool (*asked)(void);       /* whether this rank is to stop; NULL: never */
    const TextEnds *ends;      /* NULL: none */
    Generated *out;            /* may be NULL */
} Sampling;
bool generate(Run *r, int32_t *ids, int64_t given, int64_t count, Sampling s, Error *e);

#endif
