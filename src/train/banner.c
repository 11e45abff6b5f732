/* The banner names everything that decides a run's numbers and that a command line leaves open: which tokenizer, which
 * weights, which data, which kernels, which course of the learning rate. */
#include "train/banner.h"

#include "ops/kernels.h"
#include "train/progress.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char *plural(int64_t n) {
    return n == 1 ? "" : "s";
}

static int64_t step_tokens(const Config *c) {
    return c->train_sequences * c->train_sequence_length;
}

/* ---- Lines ------------------------------------------------------------------------------------- */

static void print_model(const Session *s) {
    printf("mop        %s: %s parameters, %s active a token; %s\n", s->spec.family->model_type,
           parameters_shown(spec_parameters(&s->spec)).text, parameters_shown(spec_active_parameters(&s->spec)).text,
           type_name(s->config->compute_type));
}

static void print_weights(const Banner *b) {
    const Session *s = b->session;
    if (*b->resumed)
        printf("weights    go on from %s\n", b->resumed);
    else if (*s->weights)
        printf("weights    begin as those of %s\n", s->weights);
    else
        printf("weights    begin at random, by train.seed %lld\n", (long long)s->config->train_seed);
}

static void print_tokenizer(const Session *s) {
    printf("tokenizer  %s; the model has %lld\n", tokenizer_shown(s->tokenizer).text, (long long)s->spec.vocabulary);
}

static void print_data(const Session *s) {
    const char *const *path = s->config->data_path;
    int64_t more = 0, tokens = tokens_info(s->tokens).tokens;
    while (path[more + 1]) more++;
    printf("data       %s", path[0]);
    if (more > 0) printf(" and %lld more", (long long)more);
    if (tokens < 10000)
        printf(": %lld token%s\n", (long long)tokens, plural(tokens));
    else
        printf(": %s tokens\n", parameters_shown(tokens).text);
}

/* An epoch is a visit of every piece of the data. */
static void print_steps(const Banner *b) {
    const Config *c = b->session->config;
    double pieces = (double)tokens_pieces(b->session->tokens, c->train_sequence_length);
    double visits = (double)c->train_steps * (double)c->train_sequences;
    if (b->step < c->train_steps)
        printf("steps      %lld to %lld", (long long)b->step + 1, (long long)c->train_steps);
    else
        printf("steps      all %lld are made", (long long)c->train_steps);
    printf("; %.3g epochs of %.3g steps\n", visits / pieces, pieces / (double)c->train_sequences);
    printf("step       %lld tokens: %lld sequence%s of %lld", (long long)step_tokens(c), (long long)c->train_sequences,
           plural(c->train_sequences), (long long)c->train_sequence_length);
    if (c->train_micro_batches > 1) printf(", in %lld micro-batches", (long long)c->train_micro_batches);
    printf("\n");
}

static void print_rate(const Config *c) {
    double top = c->optimizer_learning_rate;
    printf("lr         ");
    if (c->optimizer_warmup > 0)
        printf("rises over %lld step%s to ", (long long)c->optimizer_warmup, plural(c->optimizer_warmup));
    printf("%.3g", top);
    if (c->optimizer_schedule == SCHEDULE_CONSTANT)
        printf(", and stays there\n");
    else
        printf(", then falls %s to %.3g\n", c->optimizer_schedule == SCHEDULE_COSINE ? "as a cosine" : "linearly",
               top * c->optimizer_minimum);
}

/* What the ranks divide: "dense weights by 8, experts by 4". */
static void print_division(const Mesh *m) {
    static const struct {
        AxisName axis;
        const char *what;
    } divided[] = {
        {AXIS_DENSE, "dense weights"}, {AXIS_ULYSSES, "attention heads"},       {AXIS_RING, "sequences"},
        {AXIS_EXPERT, "experts"},      {AXIS_EXPERT_SHARD, "bytes of experts"}, {AXIS_VOCABULARY, "vocabulary"}};
    const char *before = "divided    ";
    int columns = 0;
    for (size_t i = 0; i < COUNT(divided); i++) {
        int size = m->axis[divided[i].axis].size;
        if (size == 1) continue;
        if (columns > 60) {
            before = ",\n           ";
            columns = 0;
        }
        columns += printf("%s%s by %d", before, divided[i].what, size);
        before = ", ";
    }
    if (columns > 0) printf("\n");
}

static void print_ranks(const Session *s, const Run *r) {
    const Config *c = s->config;
    printf("ranks      %d x %lld thread%s (%s kernels); memory at most %.1f MiB a rank\n", s->world,
           (long long)c->compute_threads, plural(c->compute_threads), r->device->kernels->name,
           price_bytes(&s->price[r->comm.mesh.rank], 1) / (1 << 20));
    print_division(&r->comm.mesh);
}

static void print_saves(const Config *c, int64_t bytes) {
    printf("saves      ");
    if (c->checkpoint_every > 0)
        printf("every %lld step%s and at the end", (long long)c->checkpoint_every, plural(c->checkpoint_every));
    else
        printf("at the end");
    printf(", %s each", bytes_shown((double)bytes).text);
    if (c->checkpoint_keep > 0)
        printf("; the last %lld stay\n", (long long)c->checkpoint_keep);
    else
        printf("; all stay\n");
}

void banner_print(const Banner *b) {
    const Session *s = b->session;
    print_model(s);
    print_weights(b);
    print_tokenizer(s);
    print_data(s);
    print_steps(b);
    print_rate(s->config);
    print_ranks(s, b->run);
    print_saves(s->config, b->checkpoint_bytes);
    printf("run        %s\n", b->directory);
    fflush(stdout);
}

/* ---- Warnings ---------------------------------------------------------------------------------- */

static bool say(char *out, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(out, WARNING_BYTES, format, args);
    va_end(args);
    return true;
}

static bool little_data(const Session *s, char *out) {
    int64_t have = tokens_info(s->tokens).tokens, step = step_tokens(s->config);
    return have < step && say(out,
                              "the data is %lld token%s, less than the %lld of a step: each step sees it several "
                              "times; lower train.sequences or train.sequence_length, or give more data",
                              (long long)have, plural(have), (long long)step);
}

static bool long_warmup(const Session *s, char *out) {
    const Config *c = s->config;
    return c->optimizer_warmup >= c->train_steps &&
           say(out, "optimizer.warmup is %lld of %lld steps: the learning rate only rises; make it shorter",
               (long long)c->optimizer_warmup, (long long)c->train_steps);
}

static int64_t sequence_groups(const Session *s) {
    return s->world / (s->config->mixture_ulysses * s->config->mixture_ring);
}

static bool idle_ranks(const Session *s, char *out) {
    int64_t groups = sequence_groups(s), sequences = s->config->train_sequences;
    return groups > sequences &&
           say(out,
               "%lld of %d ranks have no sequence: a step has %lld and there are %lld groups of ranks; raise "
               "train.sequences, mixture.ulysses or mixture.ring, or use fewer ranks",
               (long long)((groups - sequences) * (s->world / groups)), s->world, (long long)sequences,
               (long long)groups);
}

static bool empty_micro_batches(const Session *s, char *out) {
    int64_t most = ceil_div(s->config->train_sequences, sequence_groups(s)), parts = s->config->train_micro_batches;
    return parts > most &&
           say(out,
               "train.micro_batches is %lld and no group of ranks has more than %lld sequence%s of a step: the others "
               "are empty; lower it",
               (long long)parts, (long long)most, plural(most));
}

static bool crowded_cores(const Session *s, char *out) {
    int64_t here = wire_mpi_world() > 0 ? wire_mpi_local() : s->local, cores = sysconf(_SC_NPROCESSORS_ONLN);
    return here * s->config->compute_threads > cores &&
           say(out,
               "%lld rank%s of %lld thread%s share %lld core%s of this machine: they take turns; use fewer ranks or "
               "compute.threads",
               (long long)here, plural(here), (long long)s->config->compute_threads, plural(s->config->compute_threads),
               (long long)cores, plural(cores));
}

int banner_warnings(const Banner *b, char out[WARNINGS][WARNING_BYTES]) {
    static bool (*const check[])(const Session *, char *) = {little_data, long_warmup, idle_ranks, empty_micro_batches,
                                                             crowded_cores};
    _Static_assert(COUNT(check) <= WARNINGS, "each has room");
    int count = 0;
    for (size_t i = 0; i < COUNT(check); i++) count += check[i](b->session, out[count]);
    return count;
}
