/* Every setting of a run. A Config is filled from one YAML file and `--set key=value` pairs by the option table
 * (options.c), which alone knows keys, kinds, units, defaults, ranges and help texts. There are no other knobs. */
#ifndef MOP_CONFIG_H
#define MOP_CONFIG_H

#include "base/base.h"
#include <stdio.h>

typedef enum { SCHEDULE_CONSTANT, SCHEDULE_LINEAR, SCHEDULE_COSINE } Schedule;
typedef enum { UPDATE_DEFERRED, UPDATE_BLOCKING } UpdateTime;
typedef enum { ACTIVATIONS_KEEP, ACTIVATIONS_RECOMPUTE } Activations;
typedef enum { PAD_ROW_FROZEN, PAD_ROW_TRAINED } PadRow;
typedef enum { TRAVEL_AUTO, TRAVEL_ACTIVATIONS, TRAVEL_WEIGHTS } Travel;

/* Strings and lists are owned by the Config and live until config_close. A list is NULL-terminated and never NULL; an
 * unset string is "". A field is its key with the first underscore as a dot: train_sample_every is train.sample_every.
 * Relative paths in a YAML file start at that file, those of --set at the directory mop is started in; here all start
 * at the latter. */
typedef struct Config {
    const char *model_config;   /* a Hugging Face config.json: random initialisation */
    const char *model_path;     /* a checkpoint directory; wins over model_config */
    const char **data_path;     /* text, JSONL, .tokens files or directories */
    const char *data_tokenizer; /* a tokenizer.json; "": beside the model, else byte level */

    int64_t train_steps, train_sequence_length, train_sequences, train_micro_batches, train_seed;
    int64_t train_max_bad_steps; /* consecutive non-finite steps before exit 7 */
    PadRow train_pad_row;        /* the embedding of the model's pad_token_id */
    int64_t train_sample_every;  /* steps between samples; 0: only when training ends; -1: never */
    const char *train_sample_prompt;
    int64_t train_sample_tokens;

    Type compute_type;               /* FP32, BF16 or FP64 */
    int64_t compute_threads;         /* per rank; 0: cores / ranks of this machine, at least 1 */
    Activations compute_activations; /* keep every intermediate, or recompute all but attention's output */
    const char *device;              /* "cpu", "cpu:plain", "cpu:late", "sim:NAME" */
    int64_t ranks;                   /* 0: mpirun's n, else 1 */

    double optimizer_learning_rate, optimizer_beta1, optimizer_beta2, optimizer_epsilon, optimizer_weight_decay;
    double optimizer_clip; /* of the global gradient norm; 0: off */
    Schedule optimizer_schedule;
    int64_t optimizer_warmup;    /* steps */
    double optimizer_minimum;    /* the schedule ends at learning_rate x minimum */
    UpdateTime optimizer_update; /* when weights change inside: no effect on results */

    double loss_balance, loss_router_z; /* -1: from the model's config */

    int64_t checkpoint_every; /* steps; 0: only at the end and when stopped */
    int64_t checkpoint_keep;  /* last K; 0: all */

    int64_t mixture_dense; /* Z; 0: all ranks */
    int64_t mixture_expert, mixture_expert_shard, mixture_ulysses, mixture_ring, mixture_vocabulary;
    int64_t mixture_dispatch_tokens;  /* c; 0: all tokens of a rank in one round */
    int64_t mixture_balance_imports;  /* experts; 0: no least-loaded placement */
    double mixture_balance_threshold; /* busiest over mean */
    int64_t mixture_ulysses_heads;    /* KV heads in full-sequence form at a time */
    int64_t mixture_loss_chunk;       /* c_v: tokens of logits at a time, over the vocabulary group */
    Travel mixture_loss_travel;       /* what moves over the vocabulary group */

    const char *sim_routing; /* what sim answers for rows per expert: "balanced", "worst", "replay:FILE" */
    const char *sim_record;  /* "": no; else a file into which a real run writes its routing, for replay */
    double comm_timeout;     /* seconds a rank waits for its peers */

    struct ConfigMemory *memory; /* what the strings live in */
} Config;

/* Reads YAML (`path` may be NULL: defaults only) and then the `sets` ("a.b=c"; for a list also "a.b=[c, d]"), of which
 * the last one of a key wins. All mistakes are collected and reported together in one Error of code EXIT_USAGE: a line
 * each, with the line number, the nearest key, the allowed range. After a failure `c` is empty and needs no
 * config_close. */
bool config_read(Config *c, const char *path, const char *const *sets, int n_sets, Error *e);
/* The same from memory; `where` names the text in messages. */
bool config_read_text(Config *c, const char *text, size_t bytes, const char *where, const char *const *sets, int n_sets,
                      Error *e);
void config_close(Config *c);

/* Resolved, commented YAML that config_read reads back to the same Config, from any directory: its paths are whole. */
void config_write(const Config *c, FILE *f);

/* A hash of the options that may not change at a resume, for checkpoints to carry. */
uint64_t config_hash(const Config *c);
/* A hash of the options that all ranks of a run must share: all but those of a machine, and paths to what is compared
 * by its contents. */
uint64_t config_shared(const Config *c);
/* False, with EXIT_USAGE and a line for every such option that differs, when a run begun as `before` cannot go on as
 * `now`. */
bool config_resumable(const Config *now, const Config *before, Error *e);

/* Calls `told` for every option that may change at a resume and did, but for those of a machine. Values are as
 * config_write has them, and live for the call. */
typedef void (*ConfigChange)(void *context, const char *key, const char *before, const char *now);
void config_changes(const Config *now, const Config *before, ConfigChange told, void *context);

#endif
