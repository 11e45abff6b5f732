/* Every setting of mop. What a row means for a value is in option_values.c; what a user wants to know, in manual.c. */
#include "base/options.h"
#include <string.h>

/* ---- The table -------------------------------------------------------------------------------- */

static const char *const types[] = {[FP32] = "fp32", [BF16] = "bf16", [FP64] = "fp64", NULL};
static const char *const schedules[] = {
    [SCHEDULE_CONSTANT] = "constant", [SCHEDULE_LINEAR] = "linear", [SCHEDULE_COSINE] = "cosine", NULL};
static const char *const updates[] = {[UPDATE_DEFERRED] = "deferred", [UPDATE_BLOCKING] = "blocking", NULL};
static const char *const activations[] = {[ACTIVATIONS_KEEP] = "keep", [ACTIVATIONS_RECOMPUTE] = "recompute", NULL};
static const char *const pad_rows[] = {[PAD_ROW_FROZEN] = "frozen", [PAD_ROW_TRAINED] = "trained", NULL};
static const char *const travels[] = {
    [TRAVEL_AUTO] = "auto", [TRAVEL_ACTIVATIONS] = "activations", [TRAVEL_WEIGHTS] = "weights", NULL};
static const char *const devices[] = {"cpu",      "cpu:plain",    "cpu:late", "cpu:avx512bf16", "cpu:avx512",
                                      "cpu:avx2", "cpu:portable", "cuda:N",   "sim:NAME",       "sim:FILE.json",
                                      NULL};
static const char *const tokenizers[] = {"bytes", "none", NULL};
static const char *const routings[] = {"balanced", "worst", "replay:FILE", NULL};

_Static_assert(sizeof(Type) == sizeof(int) && sizeof(Schedule) == sizeof(int) && sizeof(UpdateTime) == sizeof(int) &&
                   sizeof(Activations) == sizeof(int) && sizeof(Travel) == sizeof(int) && sizeof(PadRow) == sizeof(int),
               "a choice is stored as an int");

#define MANY 2147483647 /* counts fit 32 bits, so that products of two fit 64 */

#define PATH(field) TEXT(field), .path = true
#define TEXT(field) .kind = OPTION_TEXT, .offset = offsetof(Config, field), .unit = ""
#define LIST(field) .kind = OPTION_LIST, .offset = offsetof(Config, field), .unit = ""
#define INTEGER(field, lowest, highest, of)                                                                            \
    .kind = OPTION_INTEGER, .offset = offsetof(Config, field), .low = (lowest), .high = (highest), .unit = (of)
#define NUMBER(field, lowest, highest, of)                                                                             \
    .kind = OPTION_NUMBER, .offset = offsetof(Config, field), .low = (lowest), .high = (highest), .unit = (of)
#define CHOICE(field, names) .kind = OPTION_CHOICE, .offset = offsetof(Config, field), .choices = (names), .unit = ""

/* Rows of a section stay together: help and the written YAML follow the table's order. */
const Option options[] = {
    {"model.config", PATH(model_config), .initial = "", .contents = true,
     .help = "a Hugging Face config.json; the model starts from random weights"},
    {"model.path", PATH(model_path), .initial = "", .contents = true,
     .help = "a checkpoint directory to start from; wins over model.config"},

    {"data.path", LIST(data_path), .path = true, .initial = "", .contents = true,
     .help = "text, JSONL or token files, or directories of them: one path or a list"},
    {"data.tokenizer", PATH(data_tokenizer), .words = tokenizers, .initial = "", .contents = true,
     .help = "a tokenizer.json; bytes: built in; none: data is made of ids; \"\": the model's, else bytes if they fit"},

    {"train.steps", INTEGER(train_steps, 1, MANY, "steps"), .initial = "100",
     .help = "optimizer steps in all; the schedule ends here, also when a resumed run changes it"},
    {"train.sequence_length", INTEGER(train_sequence_length, 1, MANY, "tokens"), .initial = "512", .fixed = true,
     .help = "tokens of a packed sequence"},
    {"train.sequences", INTEGER(train_sequences, 1, MANY, "sequences"), .initial = "8", .fixed = true,
     .help = "sequences of a step, over all ranks"},
    {"train.micro_batches", INTEGER(train_micro_batches, 1, 1024, ""), .initial = "1",
     .help = "parts a step's sequences are worked through in; more need less memory"},
    {"train.seed", INTEGER(train_seed, 0, OPTION_MOST, ""), .initial = "1", .fixed = true,
     .help = "seed of random weights, of the data's order and of samples"},
    {"train.max_bad_steps", INTEGER(train_max_bad_steps, 1, MANY, "steps"), .initial = "5",
     .help = "consecutive steps without a finite gradient before giving up (exit 7)"},
    {"train.pad_row", CHOICE(train_pad_row, pad_rows), .initial = "frozen", .fixed = true,
     .help = "embedding of the model's pad_token_id: frozen has no gradient, as in transformers"},
    {"train.sample_every", INTEGER(train_sample_every, -1, MANY, "steps"), .initial = "-1",
     .help = "steps between samples of text; 0: only when training ends; -1: never"},
    {"train.sample_prompt", TEXT(train_sample_prompt), .initial = "", .help = "what a sample begins with"},
    {"train.sample_tokens", INTEGER(train_sample_tokens, 1, MANY, "tokens"), .initial = "128",
     .help = "tokens of a sample"},

    {"compute.type", CHOICE(compute_type, types), .initial = "fp32", .fixed = true,
     .help = "type of weights and activations in arithmetic; fp64 is for proofs"},
    {"compute.threads", INTEGER(compute_threads, 0, 65536, "threads"), .initial = "0", .own = true,
     .help = "threads per rank; 0: an equal share of the machine's cores; no effect on results"},
    {"compute.activations", CHOICE(compute_activations, activations), .initial = "keep",
     .help = "keep every intermediate for backward, or recompute all but attention's output"},
    {"device", TEXT(device), .initial = "cpu", .choices = devices,
     .help = "cpu; cpu:plain: its defining loops; cpu:late: delayed, for tests; cuda:N: no ops yet; sim:...: counts, "
             "no data"},
    {"ranks", INTEGER(ranks, 0, 65536, "ranks"), .initial = "0",
     .help = "ranks of the run, threads of one process unless under mpirun; 0: mpirun's n, else 1"},

    {"optimizer.learning_rate", NUMBER(optimizer_learning_rate, 0, 1e3, ""), .initial = "3e-4",
     .help = "of AdamW, at the schedule's top"},
    {"optimizer.beta1", NUMBER(optimizer_beta1, 0, 0.9999999, ""), .initial = "0.9",
     .help = "decay of the gradient's mean"},
    {"optimizer.beta2", NUMBER(optimizer_beta2, 0, 0.9999999, ""), .initial = "0.95",
     .help = "decay of the squared gradient's mean"},
    {"optimizer.epsilon", NUMBER(optimizer_epsilon, 1e-30, 1, ""), .initial = "1e-8",
     .help = "added to the denominator"},
    {"optimizer.weight_decay", NUMBER(optimizer_weight_decay, 0, 1e3, ""), .initial = "0.1",
     .help = "decoupled from the gradient, as AdamW has it"},
    {"optimizer.clip", NUMBER(optimizer_clip, 0, 1e9, ""), .initial = "1",
     .help = "largest global gradient norm; longer gradients are scaled down; 0: off"},
    {"optimizer.schedule", CHOICE(optimizer_schedule, schedules), .initial = "cosine",
     .help = "course of the learning rate after warmup"},
    {"optimizer.warmup", INTEGER(optimizer_warmup, 0, MANY, "steps"), .initial = "0",
     .help = "steps in which the learning rate first rises, linearly"},
    {"optimizer.minimum", NUMBER(optimizer_minimum, 0, 1, ""), .initial = "0.1",
     .help = "the schedule ends at this fraction of the learning rate"},
    {"optimizer.update", CHOICE(optimizer_update, updates), .initial = "deferred",
     .help = "update weights when next fetched, or at the end of the step; no effect on results"},

    {"loss.balance", NUMBER(loss_balance, 0, 1e6, ""), .initial = "-1", .also = -1,
     .help = "coefficient of the load-balancing loss; -1: from the model's config"},
    {"loss.router_z", NUMBER(loss_router_z, 0, 1e6, ""), .initial = "-1", .also = -1,
     .help = "coefficient of the router's z loss; -1: from the model's config"},

    {"checkpoint.every", INTEGER(checkpoint_every, 0, MANY, "steps"), .initial = "500",
     .help = "steps between checkpoints; 0: only at the end and when stopped"},
    {"checkpoint.keep", INTEGER(checkpoint_keep, 0, MANY, "checkpoints"), .initial = "3",
     .help = "the last checkpoints kept; 0: all"},

    {"mixture.dense", INTEGER(mixture_dense, 0, 65536, "ranks"), .initial = "0",
     .help = "Z: ranks that dense weights are sharded over; 0: all"},
    {"mixture.expert", INTEGER(mixture_expert, 1, 65536, "ranks"), .initial = "1",
     .help = "E_p: ranks that experts are spread over"},
    {"mixture.expert_shard", INTEGER(mixture_expert_shard, 1, 65536, "ranks"), .initial = "1",
     .help = "E_s: ranks that each expert is sharded over"},
    {"mixture.dispatch_tokens", INTEGER(mixture_dispatch_tokens, 0, MANY, "tokens"), .initial = "0",
     .help = "c: tokens of a rank that go to the experts in one round; 0: all"},
    {"mixture.balance_imports", INTEGER(mixture_balance_imports, 0, 4096, "experts"), .initial = "0",
     .help = "most experts that a rank computes for overloaded ones (least-loaded placement); 0: off"},
    {"mixture.balance_threshold", NUMBER(mixture_balance_threshold, 1, 1e6, ""), .initial = "1.3",
     .help = "busiest rank's rows over the mean above which rows move to the least loaded"},
    {"mixture.ulysses", INTEGER(mixture_ulysses, 1, 65536, "ranks"), .initial = "1",
     .help = "D_u: ranks that split attention by heads"},
    {"mixture.ulysses_heads", INTEGER(mixture_ulysses_heads, 1, MANY, "KV heads"), .initial = "1",
     .help = "KV heads, with their query heads, that a rank has in full-sequence form at a time"},
    {"mixture.ring", INTEGER(mixture_ring, 1, 65536, "ranks"), .initial = "1",
     .help = "D_r: ranks that split a sequence in a ring"},
    {"mixture.vocabulary", INTEGER(mixture_vocabulary, 1, 65536, "ranks"), .initial = "1",
     .help = "P: ranks that split embedding and head by vocabulary; 1: dense weights like any other"},
    {"mixture.loss_chunk", INTEGER(mixture_loss_chunk, 1, MANY, "tokens"), .initial = "1024",
     .help = "tokens whose logits exist at a time, of all ranks that split the vocabulary together"},
    {"mixture.loss_travel", CHOICE(mixture_loss_travel, travels), .initial = "auto",
     .help = "what moves between ranks that split the vocabulary; auto: whichever is fewer bytes"},

    {"sim.routing", TEXT(sim_routing), .initial = "balanced", .choices = routings,
     .help = "rows per expert on a sim device"},
    {"sim.record", PATH(sim_record), .initial = "",
     .help = "file to write this run's routing to, for sim.routing=replay:FILE"},
    {"comm.timeout", NUMBER(comm_timeout, 0.01, 1e6, "seconds"), .initial = "300",
     .help = "seconds a rank waits for its peers before the run ends (exit 6)"},
};
const int option_count = COUNT(options);

/* ---- Finding a row ---------------------------------------------------------------------------- */

const Option *option_find(const char *key) {
    for (int i = 0; i < option_count; i++) {
        if (strcmp(options[i].key, key) == 0) return &options[i];
    }
    return NULL;
}

size_t option_section(const Option *o) {
    const char *dot = strchr(o->key, '.');
    return dot ? (size_t)(dot - o->key) : 0;
}
