/* Fields, and what a case means. */
#include "random/cases.h"

#include "base/random.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_VALUES = 10, EVERY = 1 << 16 };

/* `names`: how values are written, where they are not numbers. `up_to`: any number below, instead of a list. */
static const struct {
    const char *name;
    int64_t value[MOST_VALUES];
    int values;
    const char *names[MOST_VALUES];
    int up_to;
} fields[DRAWN_COUNT] = {
#define VALUES(...) {__VA_ARGS__}, COUNT(((int64_t[]){__VA_ARGS__}))
#define NAMES(...)                                                                                                     \
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, COUNT(((const char *[]){__VA_ARGS__})), {                                          \
        __VA_ARGS__                                                                                                    \
    }
#define BELOW(n) {0}, n, {0}, n
    /* clang-format off */
    [DRAWN_CHECK] = {.name = "check", NAMES("layout", "bits", "resume", "killed", "mpi", "nonsense")},
    [DRAWN_FAMILY] = {.name = "family", NAMES("mixtral", "olmoe", "qwen3_moe")},
    [DRAWN_LAYERS] = {.name = "layers", VALUES(1, 2, 3)},
    [DRAWN_HIDDEN] = {.name = "hidden", VALUES(8, 4, 16, 17, 33)}, /* OLMoE: heads of head_dim */
    [DRAWN_KV_HEADS] = {.name = "kv_heads", VALUES(1, 2, 3, 4)},
    [DRAWN_SHARE] = {.name = "share", VALUES(1, 2, 3)},
    [DRAWN_HEAD_DIM] = {.name = "head_dim", VALUES(4, 2, 6, 10)},
    [DRAWN_EXPERTS] = {.name = "experts", VALUES(2, 1, 3, 4, 5, 8, 17)},
    [DRAWN_TOP_K] = {.name = "top_k", VALUES(1, 2, 3, 8)}, /* at most the experts */
    [DRAWN_WIDTH] = {.name = "width", VALUES(3, 1, 8, 13)},
    [DRAWN_DENSE_LAYERS] = {.name = "dense_layers", NAMES("none", "first", "last")}, /* Qwen3-MoE, if another layer is left */
    [DRAWN_NORMALISE] = {.name = "normalise", VALUES(0, 1)},
    [DRAWN_TIED] = {.name = "tied", VALUES(0, 1)},
    [DRAWN_WINDOW] = {.name = "window", VALUES(0, 1, 2, 5, 16)}, /* not OLMoE */
    [DRAWN_VOCABULARY] = {.name = "vocabulary", VALUES(31, 2, 7, 67, 97)},
    [DRAWN_RANGE] = {.name = "range_thousandths", VALUES(100, 20, 300)},
    [DRAWN_DOCUMENTS] = {.name = "documents", VALUES(8, 1, 2, 3, 20, 60)},
    [DRAWN_LONGEST] = {.name = "longest", VALUES(8, 1, 2, 3, 25, 70)},
    [DRAWN_LABELLED] = {.name = "labelled", NAMES("no", "some", "few")},
    [DRAWN_DATA] = {.name = "data", BELOW(EVERY)},
    [DRAWN_TYPE] = {.name = "type", NAMES("fp64", "fp32", "bf16")}, /* of all checks but `layout` */
    [DRAWN_LENGTH] = {.name = "length", VALUES(8, 1, 2, 3, 5, 16, 23, 40)},
    [DRAWN_SEQUENCES] = {.name = "sequences", VALUES(2, 1, 3, 5, 8)},
    [DRAWN_MICRO_BATCHES] = {.name = "micro_batches", VALUES(1, 2, 3, 5)},
    [DRAWN_DISPATCH] = {.name = "dispatch", VALUES(0, 1, 2, 5, 11)},
    [DRAWN_CHUNK] = {.name = "chunk", VALUES(1024, 1, 3, 7, 20)},
    [DRAWN_ULYSSES_HEADS] = {.name = "ulysses_heads", VALUES(1, 2, 3)},
    [DRAWN_IMPORTS] = {.name = "imports", VALUES(0, 1, 2, 3, 40)},
    [DRAWN_THRESHOLD] = {.name = "threshold_tenths", VALUES(10, 13)},
    [DRAWN_RECOMPUTE] = {.name = "recompute", VALUES(0, 1)},
    [DRAWN_BLOCKING] = {.name = "blocking", VALUES(0, 1)},
    [DRAWN_THREADS] = {.name = "threads", VALUES(1, 2, 3)},
    [DRAWN_CLIP] = {.name = "clip_tenths", VALUES(10, 0, 1)},
    [DRAWN_BALANCE] = {.name = "balance_thousandths", VALUES(0, 20, 300)},
    [DRAWN_ROUTER_Z] = {.name = "router_z_thousandths", VALUES(0, 3, 100)},
    [DRAWN_RATE] = {.name = "rate_thousandths", VALUES(1, 3, 20)},
    [DRAWN_DECAY] = {.name = "decay_tenths", VALUES(1, 0)},
    [DRAWN_SCHEDULE] = {.name = "schedule", NAMES("constant", "linear", "cosine")},
    [DRAWN_WARMUP] = {.name = "warmup", VALUES(0, 1, 3)},
    [DRAWN_SEED] = {.name = "seed", VALUES(1, 2, 3, 4)},
    [DRAWN_RANKS] = {.name = "ranks", VALUES(1, 2, 3, 4, 6, 8)},
    [DRAWN_DENSE] = {.name = "dense", BELOW(12)},
    [DRAWN_EXPERT] = {.name = "expert", BELOW(12)},
    [DRAWN_EXPERT_SHARD] = {.name = "expert_shard", BELOW(12)},
    [DRAWN_ULYSSES] = {.name = "ulysses", BELOW(12)},
    [DRAWN_RING] = {.name = "ring", BELOW(12)},
    [DRAWN_VOCABULARY_RANKS] = {.name = "vocabulary_ranks", BELOW(12)},
    [DRAWN_TRAVEL] = {.name = "travel", NAMES("auto", "activations", "weights")},
    [DRAWN_OTHER] = {.name = "other", BELOW(12)}, /* which variant is held to the first run; which ranks resume */
    [DRAWN_STOP] = {.name = "stop", BELOW(97)},
    [DRAWN_NONSENSE1] = {"nonsense", BELOW(EVERY)},
    [DRAWN_NONSENSE2] = {"more_nonsense", BELOW(EVERY)},
    [DRAWN_NONSENSE3] = {"even_more", BELOW(EVERY)},
    [DRAWN_COMMAND] = {.name = "command", NAMES("train", "plan", "evaluate", "generate")},
    /* clang-format on */
};

/* Of a hundred trials; what needs the program takes longest. */
static const int shares[CHECKS] = {48, 22, 14, 5, 2, 9};

/* ---- Drawing, writing, reading ----------------------------------------------------------------- */

Case case_draw(uint64_t seed, int64_t trial) {
    Case c;
    for (int f = 0; f < DRAWN_COUNT; f++) {
        uint64_t bits = random_bits(seed, RANDOM_TEST, (uint64_t)trial, (uint64_t)f);
        c.pick[f] = (int)(bits % (uint64_t)fields[f].values);
    }
    int at = (int)(random_bits(seed, RANDOM_TEST, (uint64_t)trial, DRAWN_COUNT) % 100);
    for (c.pick[DRAWN_CHECK] = 0; at >= shares[c.pick[DRAWN_CHECK]]; c.pick[DRAWN_CHECK]++)
        at -= shares[c.pick[DRAWN_CHECK]];
    return c;
}

int64_t case_value(const Case *c, Drawn f) {
    return fields[f].up_to ? c->pick[f] : fields[f].value[c->pick[f]];
}

static const char *name_of(const Case *c, Drawn f) {
    return fields[f].names[c->pick[f]];
}

const char *case_check(const Case *c) {
    return name_of(c, DRAWN_CHECK);
}

void case_print(const Case *c, FILE *f) {
    fprintf(f, "check=%s", case_check(c));
    for (int i = DRAWN_CHECK + 1; i < DRAWN_COUNT; i++) {
        if (c->pick[i] == 0) continue;
        if (fields[i].names[0])
            fprintf(f, " %s=%s", fields[i].name, name_of(c, (Drawn)i));
        else
            fprintf(f, " %s=%lld", fields[i].name, (long long)case_value(c, (Drawn)i));
    }
}

static bool read_word(Case *c, const char *word) {
    const char *text = strchr(word, '=');
    for (int f = 0; text && f < DRAWN_COUNT; f++) {
        size_t length = strlen(fields[f].name);
        if (strncmp(word, fields[f].name, length) != 0 || word + length != text) continue;
        for (c->pick[f] = 0; c->pick[f] < fields[f].values; c->pick[f]++) {
            if (fields[f].names[0] ? strcmp(text + 1, name_of(c, (Drawn)f)) == 0
                                   : atoll(text + 1) == case_value(c, (Drawn)f))
                return true;
        }
    }
    fprintf(stderr, "\"%s\" is no field of a case with one of its values\n", word);
    return false;
}

bool case_read(Case *c, const char *words) {
    char *memory = strdup(words), *rest = memory;
    bool ok = true;
    *c = (Case){0};
    for (char *word; ok && (word = strsep(&rest, " "));) ok = !*word || read_word(c, word);
    free(memory);
    return ok;
}

int case_simpler(const Case *c, Drawn f) {
    return f == DRAWN_CHECK ? 0 : fields[f].up_to > MOST_VALUES + 2 ? (c->pick[f] > 0) + (c->pick[f] > 1) : c->pick[f];
}

/* ---- What it means ----------------------------------------------------------------------------- */

static int64_t divisor(int64_t n, int64_t number) {
    int64_t found[16], count = 0;
    for (int64_t d = 1; d <= n; d++)
        if (n % d == 0) found[count++] = d;
    return found[number % count];
}

static int64_t common(int64_t a, int64_t b) {
    return b == 0 ? a : common(b, a % b);
}

static void make_spec(const Case *c, Made *m) {
    const char *family = name_of(c, DRAWN_FAMILY);
    bool olmoe = strcmp(family, "olmoe") == 0, qwen = strcmp(family, "qwen3_moe") == 0;
    int64_t heads = case_value(c, DRAWN_KV_HEADS) * case_value(c, DRAWN_SHARE), d = case_value(c, DRAWN_HEAD_DIM);
    int64_t layers = case_value(c, DRAWN_LAYERS), width = case_value(c, DRAWN_WIDTH);
    int64_t window = case_value(c, DRAWN_WINDOW), dense = layers > 1 && qwen ? case_value(c, DRAWN_DENSE_LAYERS) : 0;
    FILE *f = fmemopen(m->spec, sizeof m->spec, "w");
    MUST(f);
    fprintf(f, "{\"model_type\": \"%s\", \"vocab_size\": %lld, \"hidden_size\": %lld, \"num_hidden_layers\": %lld",
            family, (long long)case_value(c, DRAWN_VOCABULARY),
            (long long)(olmoe ? heads * d : case_value(c, DRAWN_HIDDEN)), (long long)layers);
    fprintf(f, ", \"num_attention_heads\": %lld, \"num_key_value_heads\": %lld, \"head_dim\": %lld", (long long)heads,
            (long long)case_value(c, DRAWN_KV_HEADS), (long long)d);
    fprintf(f, ", \"%s\": %lld, \"num_experts_per_tok\": %lld", olmoe || qwen ? "num_experts" : "num_local_experts",
            (long long)case_value(c, DRAWN_EXPERTS),
            (long long)min64(case_value(c, DRAWN_TOP_K), case_value(c, DRAWN_EXPERTS)));
    fprintf(f, ", \"%s\": %lld", qwen ? "moe_intermediate_size" : "intermediate_size", (long long)width);
    if (qwen) fprintf(f, ", \"intermediate_size\": %lld, \"mlp_only_layers\": [", (long long)(2 * width + 1));
    if (dense) fprintf(f, "%lld", (long long)(dense == 1 ? 0 : layers - 1));
    if (qwen) fprintf(f, "], \"use_sliding_window\": %s", window ? "true" : "false");
    if (window) fprintf(f, ", \"sliding_window\": %lld", (long long)window);
    fprintf(f, ", \"norm_topk_prob\": %s, \"tie_word_embeddings\": %s, \"initializer_range\": %.3f",
            case_value(c, DRAWN_NORMALISE) ? "true" : "false", case_value(c, DRAWN_TIED) ? "true" : "false",
            (double)case_value(c, DRAWN_RANGE) / 1000);
    fprintf(f, ", \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000, \"hidden_act\": \"silu\"}");
    fclose(f);
}

/* Tokens and, where they are labelled, labels of which one in two or one in nine is trained. The first document has a
 * second token that is: data of which nothing can be learnt are refused. */
static void make_documents(const Case *c, Made *m) {
    uint64_t seed = (uint64_t)case_value(c, DRAWN_DATA), drawn = 0, longest = (uint64_t)case_value(c, DRAWN_LONGEST);
    uint64_t words = (uint64_t)case_value(c, DRAWN_VOCABULARY), one_in = (uint64_t[]){0, 2, 9}[c->pick[DRAWN_LABELLED]];
    size_t bytes;
    FILE *f = open_memstream(&m->documents, &bytes);
    MUST(f);
    for (int64_t d = 0; d < case_value(c, DRAWN_DOCUMENTS); d++) {
        uint64_t n = 1 + random_bits(seed, RANDOM_TEST, 1, drawn++) % longest, from = drawn;
        if (d == 0 && n < 2) n = 2;
        fprintf(f, "{\"input_ids\": [");
        for (uint64_t i = 0; i < n; i++)
            fprintf(f, "%s%d", i ? ", " : "", (int)(random_bits(seed, RANDOM_TEST, 1, drawn++) % words));
        if (one_in) fprintf(f, "], \"labels\": [");
        for (uint64_t i = 0; one_in && i < n; i++) {
            int id = (int)(random_bits(seed, RANDOM_TEST, 1, from + i) % words);
            bool ignored = random_bits(seed, RANDOM_TEST, 2, from + i) % one_in && (d > 0 || i != 1);
            fprintf(f, "%s%d", i ? ", " : "", ignored ? -100 : id);
        }
        fprintf(f, "]}\n");
    }
    fclose(f);
}

typedef struct {
    Made *m;
    size_t used;
    int count;
} Writer;

__attribute__((format(printf, 2, 3))) static void set(Writer *w, const char *format, ...) {
    char *at = w->m->memory + w->used;
    va_list args;
    va_start(args, format);
    int n = vsnprintf(at, sizeof w->m->memory - w->used, format, args);
    va_end(args);
    w->used += (size_t)n + 1;
    MUST(w->used <= sizeof w->m->memory && w->count < MADE_SETS - 1);
    w->m->sets[w->count++] = at;
}

static void make_layout(const Case *c, Writer *w) {
    int64_t W = case_value(c, DRAWN_RANKS), heads = case_value(c, DRAWN_KV_HEADS) * case_value(c, DRAWN_SHARE);
    int64_t expert = divisor(W, case_value(c, DRAWN_EXPERT)),
            ulysses = divisor(common(W, heads), case_value(c, DRAWN_ULYSSES));
    w->m->world = W;
    set(w, "mixture.dense=%lld", (long long)divisor(W, case_value(c, DRAWN_DENSE)));
    set(w, "mixture.expert=%lld", (long long)expert);
    set(w, "mixture.expert_shard=%lld", (long long)divisor(W / expert, case_value(c, DRAWN_EXPERT_SHARD)));
    set(w, "mixture.ulysses=%lld", (long long)ulysses);
    set(w, "mixture.ring=%lld", (long long)divisor(W / ulysses, case_value(c, DRAWN_RING)));
    set(w, "mixture.vocabulary=%lld", (long long)divisor(W, case_value(c, DRAWN_VOCABULARY_RANKS)));
    set(w, "mixture.loss_travel=%s", name_of(c, DRAWN_TRAVEL));
    set(w, "mixture.dispatch_tokens=%lld", (long long)case_value(c, DRAWN_DISPATCH));
    set(w, "mixture.loss_chunk=%lld", (long long)case_value(c, DRAWN_CHUNK));
    set(w, "mixture.ulysses_heads=%lld", (long long)case_value(c, DRAWN_ULYSSES_HEADS));
    set(w, "mixture.balance_imports=%lld", (long long)case_value(c, DRAWN_IMPORTS));
    set(w, "mixture.balance_threshold=%.1f", (double)case_value(c, DRAWN_THRESHOLD) / 10);
    set(w, "train.micro_batches=%lld", (long long)case_value(c, DRAWN_MICRO_BATCHES));
    set(w, "compute.activations=%s", case_value(c, DRAWN_RECOMPUTE) ? "recompute" : "keep");
}

Made *case_make(const Case *c) {
    Made *m = calloc(1, sizeof *m);
    MUST(m);
    Writer w = {.m = m};
    make_spec(c, m);
    make_documents(c, m);
    make_layout(c, &w);
    set(&w, "compute.type=%s", c->pick[DRAWN_CHECK] == CHECK_LAYOUT ? "fp64" : name_of(c, DRAWN_TYPE));
    set(&w, "compute.threads=%lld", (long long)case_value(c, DRAWN_THREADS));
    set(&w, "train.steps=%d", MADE_STEPS);
    set(&w, "train.sequence_length=%lld", (long long)case_value(c, DRAWN_LENGTH));
    set(&w, "train.sequences=%lld", (long long)case_value(c, DRAWN_SEQUENCES));
    set(&w, "train.seed=%lld", (long long)case_value(c, DRAWN_SEED));
    set(&w, "optimizer.update=%s", case_value(c, DRAWN_BLOCKING) ? "blocking" : "deferred");
    set(&w, "optimizer.clip=%.1f", (double)case_value(c, DRAWN_CLIP) / 10);
    set(&w, "optimizer.learning_rate=%.3f", (double)case_value(c, DRAWN_RATE) / 1000);
    set(&w, "optimizer.weight_decay=%.1f", (double)case_value(c, DRAWN_DECAY) / 10);
    set(&w, "optimizer.schedule=%s", name_of(c, DRAWN_SCHEDULE));
    set(&w, "optimizer.warmup=%lld", (long long)case_value(c, DRAWN_WARMUP));
    set(&w, "loss.balance=%.3f", (double)case_value(c, DRAWN_BALANCE) / 1000);
    set(&w, "loss.router_z=%.3f", (double)case_value(c, DRAWN_ROUTER_Z) / 1000);
    set(&w, "comm.timeout=60");
    return m;
}

void made_free(Made *m) {
    free(m->documents);
    free(m);
}
