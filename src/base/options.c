/* Every setting of mop, and what a row means: how its text becomes a value and its value text. */
#define _POSIX_C_SOURCE 200809L
#include "base/options.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
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
static const char *const routings[] = {"balanced", "worst", "replay:FILE", NULL};

_Static_assert(sizeof(Type) == sizeof(int) && sizeof(Schedule) == sizeof(int) && sizeof(UpdateTime) == sizeof(int) &&
                   sizeof(Activations) == sizeof(int) && sizeof(Travel) == sizeof(int) && sizeof(PadRow) == sizeof(int),
               "a choice is stored as an int");

#define MANY 2147483647 /* counts fit 32 bits, so that products of two fit 64 */
#define MOST 0x1p53     /* integers that a double holds exactly */

#define TEXT(field) .kind = OPTION_TEXT, .offset = offsetof(Config, field), .unit = ""
#define LIST(field) .kind = OPTION_LIST, .offset = offsetof(Config, field), .unit = ""
#define INTEGER(field, lowest, highest, of)                                                                            \
    .kind = OPTION_INTEGER, .offset = offsetof(Config, field), .low = (lowest), .high = (highest), .unit = (of)
#define NUMBER(field, lowest, highest, of)                                                                             \
    .kind = OPTION_NUMBER, .offset = offsetof(Config, field), .low = (lowest), .high = (highest), .unit = (of)
#define CHOICE(field, names) .kind = OPTION_CHOICE, .offset = offsetof(Config, field), .choices = (names), .unit = ""

/* Rows of a section stay together: help and the written YAML follow the table's order. */
const Option options[] = {
    {"model.config", TEXT(model_config), .initial = "", .contents = true,
     .help = "a Hugging Face config.json; the model starts from random weights"},
    {"model.path", TEXT(model_path), .initial = "", .contents = true,
     .help = "a checkpoint directory to start from; wins over model.config"},

    {"data.path", LIST(data_path), .initial = "", .contents = true,
     .help = "text, JSONL or token files, or directories of them: one path or a list"},
    {"data.tokenizer", TEXT(data_tokenizer), .initial = "", .contents = true,
     .help = "a tokenizer.json; bytes: built in; none: data is made of ids; \"\": the model's, else bytes if they fit"},

    {"train.steps", INTEGER(train_steps, 1, MANY, "steps"), .initial = "100",
     .help = "optimizer steps in all; the schedule ends here, also when a resumed run changes it"},
    {"train.sequence_length", INTEGER(train_sequence_length, 1, MANY, "tokens"), .initial = "512", .fixed = true,
     .help = "tokens of a packed sequence"},
    {"train.sequences", INTEGER(train_sequences, 1, MANY, "sequences"), .initial = "8", .fixed = true,
     .help = "sequences of a step, over all ranks"},
    {"train.micro_batches", INTEGER(train_micro_batches, 1, 1024, ""), .initial = "1",
     .help = "parts a step's sequences are worked through in; more need less memory"},
    {"train.seed", INTEGER(train_seed, 0, MOST, ""), .initial = "1", .fixed = true,
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
     .help =
         "cpu; cpu:plain: its defining loops; cpu:late: delayed, for tests; cuda: no ops yet; sim: counts, no data"},
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
    {"sim.record", TEXT(sim_record), .initial = "",
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

/* Insertions, deletions and replacements that turn a into b (Levenshtein), a row of the table at a time. */
static int edit_distance(const char *a, const char *b) {
    enum { LONGEST = sizeof(Shown) };
    int row[LONGEST + 1], n = (int)strlen(b);
    MUST(n <= LONGEST);
    for (int j = 0; j <= n; j++) row[j] = j;
    for (int i = 1; *a; a++, i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int replaced = diagonal + (*a != b[j - 1]);
            int moved = 1 + (row[j] < row[j - 1] ? row[j] : row[j - 1]);
            diagonal = row[j];
            row[j] = replaced < moved ? replaced : moved;
        }
    }
    return row[n];
}

static const char *last_name(const char *key) {
    const char *dot = strrchr(key, '.');
    return dot ? dot + 1 : key;
}

/* A right name in a wrong section, or in none, is nearer than its letters say. */
const Option *option_nearest(const char *key) {
    Shown shown = text_shown(key);
    const Option *nearest = NULL;
    int least = 0;
    for (int i = 0; i < option_count; i++) {
        int whole = edit_distance(shown.text, options[i].key);
        int name = 2 + edit_distance(last_name(shown.text), last_name(options[i].key));
        int distance = whole < name ? whole : name;
        if (nearest && distance >= least) continue;
        nearest = &options[i];
        least = distance;
    }
    return nearest;
}

/* ---- What a row allows ------------------------------------------------------------------------ */

static void print_number(double x, FILE *f) {
    fputs(number_shown(x).text, f);
}

static void print_range(const Option *o, FILE *f) {
    if (o->kind == OPTION_INTEGER) {
        fprintf(f, "an integer from %lld to %lld", (long long)o->low, (long long)o->high);
    } else {
        fputs("a number from ", f);
        print_number(o->low, f);
        fputs(" to ", f);
        print_number(o->high, f);
    }
    if (o->also != 0) {
        fputs(", or ", f);
        print_number(o->also, f);
    }
    if (*o->unit) fprintf(f, " (%s)", o->unit);
}

void option_print_allowed(const Option *o, FILE *f) {
    if (o->kind == OPTION_INTEGER || o->kind == OPTION_NUMBER) {
        print_range(o, f);
    } else if (o->choices) {
        fputs("one of ", f);
        for (int i = 0; o->choices[i]; i++) fprintf(f, "%s%s", i ? ", " : "", o->choices[i]);
    } else {
        fputs(o->kind == OPTION_LIST ? "UTF-8 text or a list of it" : "UTF-8 text", f);
    }
}

static bool refuse(const Option *o, const char *text, Error *e) {
    char allowed[256] = "";
    FILE *f = fmemopen(allowed, sizeof allowed, "w");
    if (f) {
        option_print_allowed(o, f);
        fclose(f);
    }
    return fail(e, EXIT_USAGE, "%s is \"%s\"; it must be %s", o->key, text_shown(text).text, allowed);
}

/* ---- Text becomes a value --------------------------------------------------------------------- */

/* What the strings of a Config live in: blocks, freed together. */
struct ConfigMemory {
    struct ConfigMemory *next;
    _Alignas(max_align_t) char bytes[];
};

static void *keep(Config *c, const void *data, size_t bytes, Error *e) {
    struct ConfigMemory *block = malloc(offsetof(struct ConfigMemory, bytes) + bytes);
    if (!block) {
        fail(e, EXIT_MEMORY, "out of memory while reading the configuration; free some memory");
        return NULL;
    }
    block->next = c->memory;
    c->memory = block;
    return data ? memcpy(block->bytes, data, bytes) : block->bytes;
}

void config_close(Config *c) {
    for (struct ConfigMemory *block = c->memory, *next; block; block = next) {
        next = block->next;
        free(block);
    }
    *c = (Config){0};
}

/* Decimal digits only: no hexadecimal, no nan or infinity, no blanks, nothing behind. */
static bool parse_number(const char *text, double *out) {
    if (!*text || text[strspn(text, "+-.0123456789eE")]) return false;
    char *end;
    *out = strtod(text, &end);
    return *end == 0 && isfinite(*out);
}

static bool parse_integer(const char *text, int64_t *out) {
    char *end;
    errno = 0;
    *out = strtoll(text, &end, 10);
    if (*text && text[strspn(text, "+-0123456789")] == 0) return *end == 0 && errno == 0;
    double x; /* 1e6 */
    if (!parse_number(text, &x) || x != floor(x) || fabs(x) > MOST) return false;
    *out = (int64_t)x;
    return true;
}

static bool in_range(const Option *o, double x) {
    return (x >= o->low && x <= o->high) || (o->also != 0 && x == o->also);
}

static bool matches_form(const char *text, const char *form) {
    const char *colon = strchr(form, ':');
    bool open = colon && colon[1] >= 'A' && colon[1] <= 'Z';
    if (!open) return strcmp(text, form) == 0;
    size_t n = (size_t)(colon - form) + 1;
    return strncmp(text, form, n) == 0 && text[n] != 0;
}

static bool is_utf8(const char *text) {
    size_t bytes = strlen(text);
    for (uint32_t code; bytes > 0;) {
        int n = utf8_next(text, bytes, &code);
        if (n == 0) return false;
        text += n;
        bytes -= (size_t)n;
    }
    return true;
}

static bool is_allowed_text(const Option *o, const char *text) {
    if (!is_utf8(text)) return false;
    if (!o->choices) return true;
    for (int i = 0; o->choices[i]; i++) {
        if (matches_form(text, o->choices[i])) return true;
    }
    return false;
}

static bool set_text(const Option *o, Config *c, const char *text, Error *e) {
    if (!is_allowed_text(o, text)) return refuse(o, text, e);
    const char *kept = keep(c, text, strlen(text) + 1, e);
    if (kept) *(const char **)((char *)c + o->offset) = kept;
    return kept != NULL;
}

static bool set_integer(const Option *o, Config *c, const char *text, Error *e) {
    int64_t n;
    if (!parse_integer(text, &n) || !in_range(o, (double)n)) return refuse(o, text, e);
    *(int64_t *)((char *)c + o->offset) = n;
    return true;
}

static bool set_number(const Option *o, Config *c, const char *text, Error *e) {
    double x;
    if (!parse_number(text, &x) || !in_range(o, x)) return refuse(o, text, e);
    *(double *)((char *)c + o->offset) = x + 0.0; /* -0 becomes 0 */
    return true;
}

static bool set_choice(const Option *o, Config *c, const char *text, Error *e) {
    for (int i = 0; o->choices[i]; i++) {
        if (strcmp(text, o->choices[i]) != 0) continue;
        memcpy((char *)c + o->offset, &i, sizeof i);
        return true;
    }
    return refuse(o, text, e);
}

bool option_set_list(const Option *o, Config *c, const char *const *items, size_t n, Error *e) {
    MUST(o->kind == OPTION_LIST);
    const char **list = keep(c, NULL, (n + 1) * sizeof *list, e);
    if (!list) return false;
    for (size_t i = 0; i < n; i++) {
        if (!*items[i]) return fail(e, EXIT_USAGE, "%s has an empty item; remove it", o->key);
        if (!is_utf8(items[i])) return refuse(o, items[i], e);
        list[i] = keep(c, items[i], strlen(items[i]) + 1, e);
        if (!list[i]) return false;
    }
    list[n] = NULL;
    *(const char ***)((char *)c + o->offset) = list;
    return true;
}

bool option_set(const Option *o, Config *c, const char *text, Error *e) {
    switch (o->kind) {
    case OPTION_TEXT: return set_text(o, c, text, e);
    case OPTION_LIST: return option_set_list(o, c, &text, *text ? 1 : 0, e);
    case OPTION_INTEGER: return set_integer(o, c, text, e);
    case OPTION_NUMBER: return set_number(o, c, text, e);
    case OPTION_CHOICE: return set_choice(o, c, text, e);
    }
    return false;
}

/* ---- A value becomes text --------------------------------------------------------------------- */

/* Characters that YAML may hold as they are in double quotes, and that no editor mistakes for a line's end. */
static bool is_plain(uint32_t c) {
    if (c == '"' || c == '\\') return false;
    if (c == 0x2028 || c == 0x2029 || c == 0xfeff) return false;
    return (c >= 0x20 && c <= 0x7e) || (c >= 0xa0 && c <= 0xd7ff) || (c >= 0xe000 && c <= 0xfffd) || c >= 0x10000;
}

static void print_quoted(const char *text, FILE *f) {
    size_t bytes = strlen(text);
    fputc('"', f);
    for (uint32_t code = 0; bytes > 0;) {
        int n = utf8_next(text, bytes, &code);
        MUST(n > 0);
        if (is_plain(code))
            fprintf(f, "%.*s", n, text);
        else if (code == '"' || code == '\\')
            fprintf(f, "\\%c", (char)code);
        else if (code == '\n')
            fputs("\\n", f);
        else
            fprintf(f, "\\u%04x", (unsigned)code); /* all others lie below 0x10000 */
        text += n;
        bytes -= (size_t)n;
    }
    fputc('"', f);
}

static const void *field(const Option *o, const Config *c) {
    return (const char *)c + o->offset;
}

static const char *choice(const Option *o, const Config *c) {
    int i;
    memcpy(&i, field(o, c), sizeof i);
    return o->choices[i];
}

static void print_list(const char *const *list, FILE *f) {
    fputc('[', f);
    for (int i = 0; list[i]; i++) {
        if (i) fputs(", ", f);
        print_quoted(list[i], f);
    }
    fputc(']', f);
}

void option_print(const Option *o, const Config *c, FILE *f) {
    switch (o->kind) {
    case OPTION_TEXT: print_quoted(*(const char *const *)field(o, c), f); break;
    case OPTION_LIST: print_list(*(const char *const *const *)field(o, c), f); break;
    case OPTION_INTEGER: fprintf(f, "%lld", (long long)*(const int64_t *)field(o, c)); break;
    case OPTION_NUMBER: print_number(*(const double *)field(o, c), f); break;
    case OPTION_CHOICE: fputs(choice(o, c), f); break;
    }
}

char *option_text(const Option *o, const Config *c) {
    char *text = NULL;
    size_t bytes;
    FILE *f = open_memstream(&text, &bytes);
    MUST(f);
    option_print(o, c, f);
    MUST(fclose(f) == 0);
    return text;
}

static bool equal_lists(const char *const *a, const char *const *b) {
    for (; *a && *b; a++, b++) {
        if (strcmp(*a, *b) != 0) return false;
    }
    return *a == *b;
}

bool option_equal(const Option *o, const Config *a, const Config *b) {
    const void *x = field(o, a), *y = field(o, b);
    switch (o->kind) {
    case OPTION_TEXT: return strcmp(*(const char *const *)x, *(const char *const *)y) == 0;
    case OPTION_LIST: return equal_lists(*(const char *const *const *)x, *(const char *const *const *)y);
    case OPTION_INTEGER: return *(const int64_t *)x == *(const int64_t *)y;
    case OPTION_NUMBER: return *(const double *)x == *(const double *)y;
    case OPTION_CHOICE: return choice(o, a) == choice(o, b);
    }
    return false;
}
