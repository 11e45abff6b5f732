/* The ways in which 8 ranks can divide a mixture, against one another: experts (rounds, routing, least-loaded
 * placement), the loss of a vocabulary in parts, one long sequence. Prints Markdown tables, and under each its rows as
 * JSON, one object a line.
 *
 *   bench_mixture [moe|loss|sequence]...      all unless said
 *
 * The ranks are threads with one thread each. All ways of a shape are open at once and pass in turn, so that what else
 * the machine does meets them alike; the first pass of each is not counted. A pass is what its table says, through the
 * model's own doors, from a barrier to the last rank's end. Weights and data are random, the routing is the router's.
 * `seconds` is the median of the passes, `least` and `most` their range, cpu_s the processor seconds of all threads.
 *
 * On fewer processors than ranks, both show the work of all ranks together, and not who waits for whom. What one rank
 * does more than others is in busiest_cpu_s: processor seconds of the thread that is a rank's compute stream and host
 * (its network stream is another), of the rank that has most. An imbalance is the most over the mean: of ranks, of
 * those seconds (cpu), of what the experts' ops took by the clock, turns of other threads included (experts_s), of the
 * FLOPs of the rows that came to be worked on (experts_flops); of experts, of the rows that routers chose (routing).
 * Memory and bytes sent are of the rank that has most; exposed_s, compute waits for the network, is a mean over ranks.
 *
 * N tokens of a rank, c of them in a round, V vocabulary, S sequence length. */
#include "base/random.h"
#include "model/vocabulary.h"
#include "plan/doctor_parts.h"
#include "plan/plan.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { RANKS = 8, MAX_WAYS = 16, MAX_PASSES = 3, MAX_SETS = 4 };
enum { EXPERTS = 64, HOT = 8, TOP = 4 }; /* of the moe table: 12 % of the experts, all on the first rank, are hot */
static const double HOT_SHARE = 0.8;     /* of the rows, where the routing is skewed */

/* ---- What is compared -------------------------------------------------------------------------- */

typedef struct {
    char name[64], set[MAX_SETS][48]; /* "key=value", up to the first "" */
    bool skewed;
} Way;

typedef struct {
    double wall, cpu; /* seconds; of all threads of the process */
} Clock;

/* One rank, one pass. */
typedef struct {
    Clock start, end;
    double cpu;                               /* of its thread: compute stream and host */
    double compute[COMPONENT_COUNT], exposed; /* as Times have them */
    double loss;
    int64_t flops[COMPONENT_COUNT], sent[AXIS_COUNT];
} Sample;

/* A way, open on all ranks. */
typedef struct {
    const struct Case *of;
    Way way;
    Config config;
    Spec spec;
    Price price[RANKS];
    Wire *wire[RANKS];
    Run *run[RANKS];
    Error error[RANKS];
    int pass; /* 0: the one that does not count */
    Sample sample[1 + MAX_PASSES][RANKS];
} Trial;

/* One figure of a row: of a JSON object the key, of the table the heading. */
typedef struct {
    const char *name;
    int decimals;
    double (*value)(const Trial *t);
} Column;

typedef struct Case {
    const char *table, *what; /* what: of the shape, for the reader */
    const char *model;
    int64_t sequences, length; /* of a step, over all ranks */
    int passes;
    int (*ways)(const struct Case *c, Way *out);
    void (*prepare)(Trial *t, Run *r); /* NULL: the weights stay as store_initialise makes them */
    void (*pass)(Run *r, Sample *out);
    const Column *columns;
} Case;

/* ---- Random sequences and weights --------------------------------------------------------------- */

enum { SEED = 1 };

static int32_t random_token(const Run *r, int64_t sequence, int64_t position) {
    return (int32_t)(random_bits(SEED, RANDOM_TEST, (uint64_t)sequence, (uint64_t)position) %
                     (uint64_t)r->spec->vocabulary);
}

/* A document a sequence. */
static bool random_sequence(Run *r, void *context, int64_t sequence, Batch *one, Error *e) {
    int64_t S = r->config->train_sequence_length;
    (void)context;
    batch_fill(one, NULL, SEED, sequence, 1, 1, S, r->spec->window, e);
    for (int64_t i = 0; i < S; i++) {
        one->token[i] = random_token(r, sequence, i);
        one->target[i] = random_token(r, sequence, i + 1);
    }
    return true;
}

/* Normal numbers into a tensor of the device, other ones on every rank. */
static void write_random(Run *r, Tensor t, double deviation) {
    int64_t n = tensor_count(t);
    float *values = malloc((size_t)n * sizeof *values);
    MUST(values && t.type == FP32);
    uint64_t rank = (uint64_t)r->comm.mesh.rank;
    for (int64_t i = 0; i < n; i++)
        values[i] = (float)(deviation * random_normal(SEED, RANDOM_TEST, 1000 + rank, (uint64_t)i));
    device_write(r->model.compute, t, values);
    free(values);
}

/* The experts that a token wishes for, all different: any; or each with HOT_SHARE one of the first HOT. */
static void choose_experts(int64_t token, bool skewed, int64_t *out) {
    int64_t hot = 0, seen = 0;
    for (int64_t i = 0; i < TOP && skewed; i++)
        hot += random_uniform(SEED, RANDOM_TEST, (uint64_t)token, (uint64_t)i) < HOT_SHARE;
    for (int64_t i = 0; i < hot; i++) out[seen++] = random_permuted(SEED, (uint64_t)token, HOT, i);
    int64_t first = skewed ? HOT : 0;
    for (int64_t i = 0; seen < TOP; i++)
        out[seen++] = first + random_permuted(SEED + 1, (uint64_t)token, EXPERTS - first, i);
}

/* Column e of the embedding is large in the tokens that wish for expert e, and is what row e of the router looks at. */
static double steered(const Slice *s, int64_t row, int64_t column, const int64_t *chosen) {
    uint64_t element = (uint64_t)(row * s->dim[1] + column), purpose = s->parameter == ROUTER ? 1 : 2;
    double noise = random_normal(SEED, RANDOM_WEIGHTS, purpose, element);
    if (s->parameter == ROUTER) return (row == column) + 0.02 * noise;
    if (column >= EXPERTS) return noise;
    bool wished = false;
    for (int i = 0; i < TOP; i++) wished = wished || chosen[i] == column;
    return 3 * wished + 0.1 * noise;
}

static void steer_slice(Run *r, const Slice *s, bool skewed) {
    float *values = malloc((size_t)s->count * sizeof *values);
    MUST(values && store_type(r->store, STORE_MASTER) == FP32);
    int64_t chosen[TOP], row = -1;
    for (int64_t i = 0; i < s->count; i++) {
        int64_t element = s->first + i;
        if (element / s->dim[1] != row) choose_experts(row = element / s->dim[1], skewed, chosen);
        values[i] = (float)steered(s, row, element % s->dim[1], chosen);
    }
    store_copy_in(r->store, s, STORE_MASTER, 0, s->count, values);
    free(values);
}

static void steer_routing(Trial *t, Run *r) {
    const Slice *slice;
    int64_t n = store_slices(r->store, &slice);
    for (int64_t i = 0; i < n; i++)
        if (slice[i].parameter == EMBED || slice[i].parameter == ROUTER) steer_slice(r, &slice[i], t->way.skewed);
}

/* ---- Passes ------------------------------------------------------------------------------------- */

static double cpu_seconds(clockid_t of) {
    struct timespec t;
    clock_gettime(of, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static Clock clock_now(void) {
    return (Clock){seconds_now(), cpu_seconds(CLOCK_PROCESS_CPUTIME_ID)};
}

/* Where a rank's clocks and meter are: a pass is the difference. */
static void read_clocks(Run *r, Sample *out, double sign) {
    device_settle(r->device);
    const StreamTime *time = &r->model.compute->time;
    out->cpu += sign * cpu_seconds(CLOCK_THREAD_CPUTIME_ID);
    for (int k = 0; k < COMPONENT_COUNT; k++) {
        out->compute[k] += sign * time->work[k];
        out->exposed += sign * time->wait[STREAM_NETWORK][k];
    }
}

static void begin_clocks(Run *r, Sample *out) {
    barrier(&r->comm.group[AXIS_WORLD], r->model.network);
    device_settle(r->device);
    meter_clear(r->device);
    read_clocks(r, out, -1);
    out->start = clock_now();
}

static void end_clocks(Run *r, Sample *out) {
    read_clocks(r, out, 1);
    out->end = clock_now();
    const Meter *m = &r->device->meter;
    memcpy(out->flops, m->flops, sizeof out->flops);
    for (int g = 0; g < AXIS_COUNT; g++)
        for (int c = 0; c < COLLECTIVE_COUNT; c++) out->sent[g] += m->traffic[g][c].sent;
}

/* Forward and backward of layer 0, its weights already here: embeddings in, a random gradient back. */
static void layer_pass(Run *r, Sample *out) {
    const Model *m = &r->model;
    MicroBatch *b = &r->micro[0];
    run_begin_pass(r, true);
    Weights w = store_fetch(r->store, 0, -1);
    embed_forward(m, &w, b);
    store_release(r->store, 0);
    w = store_fetch(r->store, 1, -1);
    Weights dw = store_gradients(r->store, 1);
    write_random(r, b->gradient, 1e-3);
    begin_clocks(r, out);
    layer_forward(m, 0, &w, &r->saved[0], b);
    b->x = b->gradient;
    layer_backward(m, 0, &w, &dw, &r->saved[0], b);
    end_clocks(r, out);
    store_release(r->store, 1);
}

/* The head, of random hidden states: its weights come, loss and gradients are made, the weights' are put away. */
static void head_pass(Run *r, Sample *out) {
    const Model *m = &r->model;
    MicroBatch *b = &r->micro[0];
    int64_t part = store_parts(r->store) - 1;
    Tensor loss = tensor_rows(r->stats, STAT_LOSS, 1);
    run_begin_pass(r, true);
    write_random(r, b->x, 1);
    begin_clocks(r, out);
    Weights w = store_fetch(r->store, part, -1), dw = store_gradients(r->store, part);
    head_loss(m, &w, &dw, b, loss, tensor_rows(r->counts, TRAINED, 1));
    store_release(r->store, part);
    store_give(r->store, part);
    end_clocks(r, out);
    device_read(m->compute, &out->loss, loss, READ_LOSS);
}

/* ---- Running ------------------------------------------------------------------------------------ */

static bool trial_settings(Trial *t, Error *e) {
    const Case *c = t->of;
    char yaml[256];
    const char *set[MAX_SETS];
    int sets = 0;
    while (sets < MAX_SETS && *t->way.set[sets]) {
        set[sets] = t->way.set[sets];
        sets++;
    }
    snprintf(yaml, sizeof yaml,
             "ranks: %d\nmixture.dense: %d\ncompute.threads: 1\ntrain.sequences: %lld\ntrain.sequence_length: %lld\n",
             RANKS, RANKS, (long long)c->sequences, (long long)c->length);
    json_error_t where;
    json_t *model = json_loads(c->model, 0, &where);
    MUST(model);
    bool ok = config_read_text(&t->config, yaml, strlen(yaml), "bench", set, sets, e) &&
              spec_from_json(&t->spec, model, "bench", e) && run_supported(&t->config, &t->spec, RANKS, e) &&
              plan_price(&t->config, &t->spec, RANKS, t->price, e);
    json_decref(model);
    return ok;
}

static void open_rank(void *context, int rank) {
    Trial *t = context;
    Error *e = &t->error[rank];
    Run *r = run_open(&(Common){.config = &t->config, .spec = &t->spec}, t->wire[rank], t->config.device,
                      &t->price[rank], e);
    t->run[rank] = r;
    if (!r) {
        t->wire[rank]->poison(t->wire[rank], e);
        return;
    }
    store_initialise(r->store, SEED);
    if (t->of->prepare) t->of->prepare(t, r);
    MUST(run_upload(r, random_sequence, NULL, e));
}

static void pass_rank(void *context, int rank) {
    Trial *t = context;
    Run *r = t->run[rank];
    t->of->pass(r, &t->sample[t->pass][rank]);
    const Error *failed = device_failed(r->device);
    if (failed) t->error[rank] = *failed;
}

static bool all_ranks(Trial *t, void (*body)(void *context, int rank), Error *e) {
    if (!threads_run(RANKS, body, t, e)) return false;
    for (int r = 0; r < RANKS; r++)
        if (t->error[r].code != EXIT_DONE && (e->code == EXIT_DONE || e->code == EXIT_PEER)) *e = t->error[r];
    return e->code == EXIT_DONE;
}

static bool trial_open(Trial *t, Error *e) {
    return trial_settings(t, e) && wire_threads_open(t->wire, RANKS, t->config.comm_timeout, false, e) &&
           all_ranks(t, open_rank, e);
}

static void trial_close(Trial *t) {
    for (int r = 0; r < RANKS; r++) run_close(t->run[r]);
    for (int r = 0; r < RANKS; r++)
        if (t->wire[r]) t->wire[r]->close(t->wire[r]);
    spec_close(&t->spec);
    config_close(&t->config);
}

/* ---- Figures of a way --------------------------------------------------------------------------- */

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* A pass, from the first rank's start to the last one's end. */
static Clock pass_span(const Trial *t, int pass) {
    const Sample *s = t->sample[pass];
    Clock start = s[0].start, end = s[0].end;
    for (int r = 1; r < RANKS; r++) {
        start = (Clock){fmin(start.wall, s[r].start.wall), fmin(start.cpu, s[r].start.cpu)};
        end = (Clock){fmax(end.wall, s[r].end.wall), fmax(end.cpu, s[r].end.cpu)};
    }
    return (Clock){end.wall - start.wall, end.cpu - start.cpu};
}

/* Of the counted passes in the order of their seconds. */
static double seconds_ranked(const Trial *t, int place) {
    double seconds[MAX_PASSES];
    for (int p = 0; p < t->of->passes; p++) seconds[p] = pass_span(t, 1 + p).wall;
    qsort(seconds, (size_t)t->of->passes, sizeof *seconds, ascending);
    return seconds[place];
}

static double seconds_median(const Trial *t) {
    return seconds_ranked(t, t->of->passes / 2);
}
static double seconds_least(const Trial *t) {
    return seconds_ranked(t, 0);
}
static double seconds_most(const Trial *t) {
    return seconds_ranked(t, t->of->passes - 1);
}

static double cpu_mean(const Trial *t) {
    double sum = 0;
    for (int p = 1; p <= t->of->passes; p++) sum += pass_span(t, p).cpu;
    return sum / t->of->passes;
}

/* A figure of a rank's samples. */
typedef double (*SampleValue)(const Sample *s);

static double cpu_of(const Sample *s) {
    return s->cpu;
}
static double exposed_of(const Sample *s) {
    return s->exposed;
}
static double expert_seconds_of(const Sample *s) {
    return s->compute[COMPONENT_EXPERTS];
}
static double expert_flops_of(const Sample *s) {
    return (double)s->flops[COMPONENT_EXPERTS];
}
static double sent_of(const Sample *s) {
    double bytes = 0;
    for (int g = 0; g < AXIS_COUNT; g++) bytes += (double)s->sent[g];
    return bytes;
}
static double sent_ulysses_of(const Sample *s) {
    return (double)s->sent[AXIS_ULYSSES];
}
static double sent_ring_of(const Sample *s) {
    return (double)s->sent[AXIS_RING];
}

/* Mean over the counted passes; of the rank that has most of it, and of all. */
typedef struct {
    double most, mean;
} OverRanks;

static OverRanks over_ranks(const Trial *t, SampleValue value) {
    OverRanks out = {0};
    for (int r = 0; r < RANKS; r++) {
        double sum = 0;
        for (int p = 1; p <= t->of->passes; p++) sum += value(&t->sample[p][r]) / t->of->passes;
        out.most = fmax(out.most, sum);
        out.mean += sum / RANKS;
    }
    return out;
}

static double imbalance(OverRanks x) {
    return x.most / x.mean;
}

static double busiest_cpu(const Trial *t) {
    return over_ranks(t, cpu_of).most;
}
static double cpu_imbalance(const Trial *t) {
    return imbalance(over_ranks(t, cpu_of));
}
static double expert_seconds_imbalance(const Trial *t) {
    return imbalance(over_ranks(t, expert_seconds_of));
}
static double expert_flops_imbalance(const Trial *t) {
    return imbalance(over_ranks(t, expert_flops_of));
}
static double exposed(const Trial *t) {
    return over_ranks(t, exposed_of).mean;
}

static double mib(double bytes) {
    return bytes / (1 << 20);
}
static double sent(const Trial *t) {
    return mib(over_ranks(t, sent_of).most);
}
static double sent_ulysses(const Trial *t) {
    return mib(over_ranks(t, sent_ulysses_of).most);
}
static double sent_ring(const Trial *t) {
    return mib(over_ranks(t, sent_ring_of).most);
}

static double loss(const Trial *t) {
    double sum = 0;
    for (int r = 0; r < RANKS; r++) sum += t->sample[1][r].loss;
    return sum / (double)(t->of->sequences * t->of->length);
}

/* 1: mixture.loss_travel=auto takes this way. */
static double taken_by_auto(const Trial *t) {
    const MicroBatch *b = &t->run[0]->micro[0];
    const Spec *spec = &t->spec;
    if (t->config.mixture_vocabulary == 1) return 0;
    return t->config.mixture_loss_travel == loss_travel((LossTraffic){.members = t->config.mixture_vocabulary,
                                                                      .tokens = b->lookup.longest,
                                                                      .vocabulary = spec->vocabulary,
                                                                      .hidden = spec->hidden,
                                                                      .real = FP32,
                                                                      .sum = FP32,
                                                                      .training = true});
}

/* Rows of the busiest expert over the mean, as the router chose. */
static double routing_imbalance(const Trial *t) {
    double most = 0, sum = 0;
    for (int64_t x = 0; x < t->spec.experts; x++) {
        double rows = 0;
        for (int r = 0; r < RANKS; r++) rows += t->run[r]->model.load[x];
        most = fmax(most, rows);
        sum += rows;
    }
    return most * (double)t->spec.experts / sum;
}

/* Rows lie in scratch, or, where one round is kept for backward, partly in activations. This is all that both hold. */
static double rows_planned(const Trial *t) {
    double most = 0;
    for (int r = 0; r < RANKS; r++)
        most = fmax(most, (double)(t->price[r].bytes[ARENA_WORK] + t->price[r].bytes[ARENA_ACTIVATIONS]));
    return mib(most);
}

static double peak(const Trial *t, int rank, ArenaName a) {
    return (double)run_arena(t->run[rank], a)->peak;
}

static double rows_reached(const Trial *t) {
    double most = 0;
    for (int r = 0; r < RANKS; r++) most = fmax(most, peak(t, r, ARENA_WORK) + peak(t, r, ARENA_ACTIVATIONS));
    return mib(most);
}

/* What of that is the experts', when each arena is fullest. */
static double experts_reached(const Trial *t) {
    double most = 0;
    for (int r = 0; r < RANKS; r++) {
        const Arena *work = run_arena(t->run[r], ARENA_WORK), *kept = run_arena(t->run[r], ARENA_ACTIVATIONS);
        most = fmax(most, (double)(work->by_at_peak[COMPONENT_EXPERTS] + kept->by_at_peak[COMPONENT_EXPERTS]));
    }
    return mib(most);
}

static double work_reached(const Trial *t) {
    double most = 0;
    for (int r = 0; r < RANKS; r++) most = fmax(most, peak(t, r, ARENA_WORK));
    return mib(most);
}

/* Of embedding and head together: the plan's, which is what is opened. */
static double vocabulary_in(const Trial *t, ArenaName a) {
    double most = 0;
    for (int r = 0; r < RANKS; r++) most = fmax(most, (double)t->price[r].by[a][COMPONENT_VOCABULARY]);
    return mib(most);
}

static double vocabulary_kept(const Trial *t) {
    return vocabulary_in(t, ARENA_WEIGHTS) + vocabulary_in(t, ARENA_OPTIMIZER);
}
static double vocabulary_gradients_and_slots(const Trial *t) {
    return vocabulary_in(t, ARENA_GRADIENTS) + vocabulary_in(t, ARENA_SLOTS);
}

static const Column moe_columns[] = {
    {"seconds", 3, seconds_median},
    {"least", 3, seconds_least},
    {"most", 3, seconds_most},
    {"cpu_s", 3, cpu_mean},
    {"busiest_cpu_s", 3, busiest_cpu},
    {"cpu_imbalance", 2, cpu_imbalance},
    {"experts_s_imbalance", 2, expert_seconds_imbalance},
    {"experts_flops_imbalance", 2, expert_flops_imbalance},
    {"routing_imbalance", 2, routing_imbalance},
    {"planned_mib", 1, rows_planned},
    {"reached_mib", 1, rows_reached},
    {"of_it_experts_mib", 1, experts_reached},
    {"sent_mib", 2, sent},
    {0},
};

static const Column loss_columns[] = {
    {"seconds", 3, seconds_median},
    {"least", 3, seconds_least},
    {"most", 3, seconds_most},
    {"cpu_s", 3, cpu_mean},
    {"busiest_cpu_s", 3, busiest_cpu},
    {"exposed_s", 3, exposed},
    {"work_mib", 2, work_reached},
    {"weights_moments_mib", 2, vocabulary_kept},
    {"gradients_slots_mib", 2, vocabulary_gradients_and_slots},
    {"sent_mib", 2, sent},
    {"auto", 0, taken_by_auto},
    {"loss", 5, loss},
    {0},
};

static const Column sequence_columns[] = {
    {"seconds", 3, seconds_median},
    {"least", 3, seconds_least},
    {"most", 3, seconds_most},
    {"cpu_s", 3, cpu_mean},
    {"busiest_cpu_s", 3, busiest_cpu},
    {"cpu_imbalance", 2, cpu_imbalance},
    {"exposed_s", 3, exposed},
    {"sent_ulysses_mib", 2, sent_ulysses},
    {"sent_ring_mib", 2, sent_ring},
    {"work_mib", 2, work_reached},
    {0},
};

/* ---- The ways ----------------------------------------------------------------------------------- */

static int moe_ways(const Case *c, Way *out) {
    int64_t tokens = c->sequences * c->length / RANKS;
    int n = 0;
    for (int skewed = 0; skewed < 2; skewed++)
        for (int imports = 0; imports <= 2; imports += 2)
            for (int part = 8; part >= 1; part /= 2) {
                Way *w = &out[n++];
                *w = (Way){.skewed = skewed};
                snprintf(w->name, sizeof w->name, "%s, imports %d, c %lld", skewed ? "skewed" : "balanced", imports,
                         (long long)(tokens / part));
                snprintf(w->set[0], sizeof *w->set, "mixture.expert=%d", RANKS);
                snprintf(w->set[1], sizeof *w->set, "mixture.dispatch_tokens=%lld", (long long)(tokens / part));
                snprintf(w->set[2], sizeof *w->set, "mixture.balance_imports=%d", imports);
            }
    return n;
}

static int loss_ways(const Case *c, Way *out) {
    (void)c;
    static const Way ways[] = {
        {.name = "whole head"},
        {.name = "activations travel", .set = {"mixture.vocabulary=8", "mixture.loss_travel=activations"}},
        {.name = "weights travel", .set = {"mixture.vocabulary=8", "mixture.loss_travel=weights"}},
    };
    memcpy(out, ways, sizeof ways);
    return COUNT(ways);
}

/* Sequences of their own only where there is one for every rank. */
static int sequence_ways(const Case *c, Way *out) {
    static const Way ways[] = {
        {.name = "ulysses 8", .set = {"mixture.ulysses=8"}},
        {.name = "ulysses 4, ring 2", .set = {"mixture.ulysses=4", "mixture.ring=2"}},
        {.name = "ulysses 2, ring 4", .set = {"mixture.ulysses=2", "mixture.ring=4"}},
        {.name = "ring 8", .set = {"mixture.ring=8"}},
        {.name = "a sequence a rank"},
    };
    int n = c->sequences < RANKS ? COUNT(ways) - 1 : COUNT(ways);
    memcpy(out, ways, (size_t)n * sizeof *ways);
    return n;
}

/* Layer 0 is all that passes; its attention is narrow where experts are measured, its MLP where attention is. */
#define MODEL(hidden, heads, head_dim, vocabulary, rest)                                                               \
    "{\"model_type\": \"qwen3_moe\", \"hidden_size\": " #hidden ", \"num_attention_heads\": " #heads                   \
    ", \"num_key_value_heads\": " #heads ", \"head_dim\": " #head_dim ", \"vocab_size\": " #vocabulary                 \
    ", \"tie_word_embeddings\": false, " rest "}"
#define MOE_MODEL                                                                                                      \
    MODEL(128, 2, 32, 1024,                                                                                            \
          "\"num_hidden_layers\": 1, \"num_experts\": 64, \"num_experts_per_tok\": 4, \"moe_intermediate_size\": 128")
#define LOSS_MODEL(vocabulary)                                                                                         \
    MODEL(64, 2, 32, vocabulary,                                                                                       \
          "\"num_hidden_layers\": 1, \"num_experts\": 8, \"num_experts_per_tok\": 1, \"moe_intermediate_size\": 64")
#define SEQUENCE_MODEL                                                                                                 \
    MODEL(256, 8, 32, 1024,                                                                                            \
          "\"num_hidden_layers\": 2, \"mlp_only_layers\": [0], \"intermediate_size\": 64, \"num_experts\": 8, "        \
          "\"num_experts_per_tok\": 1, \"moe_intermediate_size\": 64")

#define MOE(n)                                                                                                         \
    {                                                                                                                  \
        "moe", "N " #n " tokens a rank, width 128, 64 experts of 128, 4 a token; a layer forward and backward",        \
            MOE_MODEL, RANKS, n, 3, moe_ways, steer_routing, layer_pass, moe_columns                                   \
    }
#define LOSS(v, n)                                                                                                     \
    {                                                                                                                  \
        "loss", "V " #v ", N " #n " tokens a rank, width 64; head and loss, forward and backward", LOSS_MODEL(v),      \
            RANKS, n, 3, loss_ways, NULL, head_pass, loss_columns                                                      \
    }
#define SEQUENCE(count, s)                                                                                             \
    {                                                                                                                  \
        "sequence",                                                                                                    \
            #count " x S " #s " over all ranks, width 256, 8 heads; a layer with a small dense MLP, forward and "      \
                   "backward",                                                                                         \
            SEQUENCE_MODEL, count, s, 3, sequence_ways, NULL, layer_pass, sequence_columns                             \
    }

static const Case cases[] = {
    MOE(256),        LOSS(4096, 128),   LOSS(4096, 768),   LOSS(50304, 16),
    LOSS(50304, 48), SEQUENCE(1, 1024), SEQUENCE(1, 3072), SEQUENCE(8, 384),
};

/* ---- Tables ------------------------------------------------------------------------------------- */

enum { NAME_WIDTH = 30 };

static int width_of(const Column *c) {
    return (int)max64((int64_t)strlen(c->name), 8);
}

static void print_head(const Case *c, double others) {
    printf("\n%s: 8 ranks, %s; fp32, %d passes", c->table, c->what, c->passes);
    if (others > 0) printf("; disturbed: other programs used %.1f processors", others);
    printf("\n\n| %-*s |", NAME_WIDTH, "way");
    for (const Column *k = c->columns; k->name; k++) printf(" %s |", k->name);
    printf("\n|%.*s|", NAME_WIDTH + 2, "--------------------------------------------------");
    for (const Column *k = c->columns; k->name; k++)
        printf("%.*s:|", width_of(k) + 1, "--------------------------------------------------");
    printf("\n");
}

static void print_row(const Trial *t) {
    printf("| %-*s |", NAME_WIDTH, t->way.name);
    for (const Column *k = t->of->columns; k->name; k++) printf(" %*.*f |", width_of(k), k->decimals, k->value(t));
    printf("\n");
    fflush(stdout);
}

static void print_json(const Trial *t, double others) {
    const Case *c = t->of;
    printf("{\"bench\": \"mixture\", \"table\": \"%s\", \"way\": \"%s\", \"ranks\": %d, \"threads\": 1, \"type\": "
           "\"fp32\", \"sequences\": %lld, \"sequence_length\": %lld, \"tokens_per_rank\": %lld, \"hidden\": %lld, "
           "\"vocabulary\": %lld, \"passes\": %d, \"other_load\": %.2f",
           c->table, t->way.name, RANKS, (long long)c->sequences, (long long)c->length,
           (long long)(c->sequences * c->length / RANKS), (long long)t->spec.hidden, (long long)t->spec.vocabulary,
           c->passes, others);
    for (const Column *k = c->columns; k->name; k++) printf(", \"%s\": %.6g", k->name, k->value(t));
    printf("}\n");
}

static bool pass_in_turn(Trial *trials, int ways, int passes, Error *e) {
    for (int p = 0; p <= passes; p++)
        for (int i = 0; i < ways; i++) {
            trials[i].pass = p;
            if (!all_ranks(&trials[i], pass_rank, e)) return false;
        }
    return true;
}

static bool case_run(const Case *c, Error *e) {
    Way ways[MAX_WAYS];
    int n = c->ways(c, ways);
    Trial *trials = calloc((size_t)n, sizeof *trials);
    MUST(trials);
    bool ok = true;
    for (int i = 0; ok && i < n; i++) {
        trials[i] = (Trial){.of = c, .way = ways[i]};
        ok = trial_open(&trials[i], e);
    }
    Samples machine = samples_begin();
    ok = ok && pass_in_turn(trials, n, c->passes, e);
    double others = samples_others(&machine);
    if (ok) print_head(c, others);
    for (int i = 0; ok && i < n; i++) print_row(&trials[i]);
    if (ok) printf("\n");
    for (int i = 0; ok && i < n; i++) print_json(&trials[i], others);
    for (int i = 0; i < n; i++) trial_close(&trials[i]);
    free(trials);
    return ok;
}

static bool wanted(const char *table, int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], table) == 0) return true;
    return argc == 1;
}

static bool known(const char *table) {
    for (size_t i = 0; i < COUNT(cases); i++)
        if (strcmp(cases[i].table, table) == 0) return true;
    return false;
}

int main(int argc, char **argv) {
    Error e = {0};
    for (int i = 1; i < argc; i++)
        if (!known(argv[i]))
            fail(&e, EXIT_USAGE, "no table \"%s\"; command line; bench_mixture [moe|loss|sequence]...", argv[i]);
    if (e.code != EXIT_DONE) return error_print(&e);
    for (size_t i = 0; i < COUNT(cases); i++)
        if (wanted(cases[i].table, argc, argv) && !case_run(&cases[i], &e)) return error_print(&e);
    return EXIT_DONE;
}
