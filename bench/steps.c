/* Whole training steps, against what the machine could do and against the plan.
 *
 *   bench_steps [TEXT] [small|many|half|tokens]...      data/bible.txt and the three models unless said
 *
 * small, many, half: in fp32 and bf16, on one rank with all processors and on two that share them (half: when it is
 * asked for by name); the same shapes and batches as the PyTorch measurements in docs/performance.md. Possible is what
 * the step's own charge would take at the rates that this program measures first: of each op its FLOPs at the rate of
 * multiply-adds between registers (bf16: of dot products, where the kernels have them) or its bytes at the rate of
 * copying large arrays, whichever takes longer. Below a step stands where the time of its last counted step went on
 * rank 0, by op: "of possible" is again possible over taken. Memory is what all ranks planned, and beside it the peak
 * of a process of its own less what it had before it opened the run.
 *
 * tokens: one layer, by number of sequences and by length: at a fixed length everything grows with the tokens; with the
 * length only attention grows faster, with the pairs of tokens that see each other.
 *
 * A line each of JSON follows every row. */
#include "plan/doctor_parts.h"
#include "plan/plan.h"
#include "possible.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_STEPS = 8 };

typedef struct {
    const char *name, *model;
    int64_t sequences, length;
    int steps; /* counted, after one that is not */
    int ranks; /* at most so many, unless the model is asked for by name */
} Case;

#define MODEL(layers, width, heads, experts, inner, top, vocabulary)                                                   \
    "{\"model_type\": \"olmoe\", \"hidden_size\": " #width ", \"intermediate_size\": " #inner                          \
    ", \"num_hidden_layers\": " #layers ", \"num_attention_heads\": " #heads ", \"num_key_value_heads\": " #heads      \
    ", \"num_experts\": " #experts ", \"num_experts_per_tok\": " #top ", \"vocab_size\": " #vocabulary                 \
    ", \"tie_word_embeddings\": false}"

static const Case models[] = {
    {"small", MODEL(6, 256, 4, 8, 256, 2, 256), 16, 512, 2, 2},
    {"many", MODEL(4, 256, 4, 128, 128, 4, 256), 4, 1024, 3, 2},
    {"half", MODEL(8, 512, 8, 64, 512, 4, 50304), 2, 1024, 1, 1},
};

#define LAYER MODEL(1, 128, 2, 8, 128, 2, 256)
static const Case tokens[] = {
    {"tokens", LAYER, 1, 1024, 5, 1},  {"tokens", LAYER, 2, 1024, 5, 1},  {"tokens", LAYER, 4, 1024, 5, 1},
    {"tokens", LAYER, 8, 1024, 3, 1},  {"tokens", LAYER, 16, 1024, 3, 1}, {"tokens", LAYER, 32, 1024, 3, 1},
    {"tokens", LAYER, 1, 2048, 5, 1},  {"tokens", LAYER, 1, 4096, 3, 1},  {"tokens", LAYER, 1, 8192, 3, 1},
    {"tokens", LAYER, 1, 16384, 1, 1}, {"tokens", LAYER, 1, 32768, 1, 1},
};

/* What one case came to, on rank 0. */
typedef struct {
    const Case *of;
    int ranks, threads; /* of a rank */
    Type type;
    double seconds[MAX_STEPS], others; /* others: processors that other programs used meanwhile */
    double loss;
    double memory; /* bytes, planned by all ranks */
    Meter meter;   /* of the last step */
    double before; /* bytes of the process, before the run was opened */
} Result;

/* ---- Taking steps ------------------------------------------------------------------------------ */

static bool take_steps(Session *s, Run *r, Error *e) {
    Result *out = s->context;
    bool leads = r->comm.mesh.rank == 0;
    store_initialise(r->store, 1);
    r->device->profile = true;
    Samples meanwhile = samples_begin();
    for (int i = 0; i <= out->of->steps; i++) {
        StepResult step;
        if (leads && i == 1) meanwhile = samples_begin();
        meter_clear(r->device);
        double start = seconds_now();
        if (!train_step(r, i, false, &step, e)) return false;
        if (!leads || i == 0) continue;
        out->seconds[i - 1] = seconds_now() - start;
        out->loss = step.loss;
    }
    if (!leads) return true;
    out->others = samples_others(&meanwhile);
    out->meter = r->device->meter;
    out->memory = price_bytes(s->price, s->world);
    return true;
}

static double resident_peak(void) {
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    return 1024 * (double)use.ru_maxrss;
}

static int open_and_take(Result *r, const char *text) {
    char yaml[1024], model[] = "/tmp/mop-bench-XXXXXX";
    const Case *c = r->of;
    int fd = mkstemp(model);
    if (fd < 0 || dprintf(fd, "%s", c->model) < 0) return EXIT_IO;
    close(fd);
    snprintf(yaml, sizeof yaml,
             "model.config: %s\ndata.path: %s\nranks: %d\ncompute.threads: %d\ncompute.type: %s\ntrain.sequences: "
             "%lld\ntrain.sequence_length: %lld\n",
             model, text, r->ranks, r->threads, type_name(r->type), (long long)c->sequences, (long long)c->length);
    Config config;
    Session s = {0};
    Error e = {0};
    int code = EXIT_DONE;
    r->before = resident_peak();
    if (!config_read_text(&config, yaml, strlen(yaml), "bench", NULL, 0, &e))
        code = error_print(&e);
    else if (!session_open(&s, &config, &e) || !session_data(&s, &e))
        code = error_print(&e);
    else
        code = session_run(&s, plan_price, take_steps, r);
    session_close(&s);
    config_close(&config);
    unlink(model);
    return code;
}

/* ---- Reporting --------------------------------------------------------------------------------- */

/* Of all processors' rates the part of one of `ranks` that share them. */
static double op_possible(const Result *r, const OpCount *c, const Possible *p) {
    return r->ranks * possible_seconds(p, r->type, (double)c->flops, (double)c->bytes);
}

static double step_possible(const Result *r, const Possible *p) {
    double seconds = 0;
    for (int op = 0; op < OP_COUNT; op++) seconds += op_possible(r, &r->meter.op[op], p);
    return seconds;
}

static double step_flops(const Result *r) {
    double flops = 0;
    for (int op = 0; op < OP_COUNT; op++) flops += (double)r->meter.op[op].flops;
    return flops * r->ranks;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The ops that took 1 % of the step or more, longest first. */
static void report_profile(const Result *r, const Possible *p, double step) {
    double left = step;
    bool shown[OP_COUNT] = {false};
    for (int n = 0; n < OP_COUNT; n++) {
        int at = -1;
        for (int op = 0; op < OP_COUNT; op++)
            if (!shown[op] && (at < 0 || r->meter.op[op].seconds > r->meter.op[at].seconds)) at = op;
        const OpCount *c = &r->meter.op[at];
        shown[at] = true;
        left -= c->seconds;
        if (c->seconds < 0.01 * step) continue;
        printf("    %-22s %5.1f %%  %8.4f s  %6lld calls  %7.1f GFLOP/s  %6.1f GB/s  %5.1f %% of possible\n",
               op_name((Op)at), 100 * c->seconds / step, c->seconds, (long long)c->calls,
               (double)c->flops / c->seconds / 1e9, (double)c->bytes / c->seconds / 1e9,
               100 * op_possible(r, c, p) / c->seconds);
    }
    printf("    %-22s %5.1f %%  %8.4f s\n", "waiting and the host", 100 * left / step, left);
}

static void report(const Result *r, const Possible *p) {
    const Case *c = r->of;
    double last = r->seconds[c->steps - 1], sorted[MAX_STEPS], bound = step_possible(r, p);
    memcpy(sorted, r->seconds, sizeof sorted);
    qsort(sorted, (size_t)c->steps, sizeof *sorted, ascending);
    double median = sorted[c->steps / 2], peak = resident_peak() - r->before;
    printf("%-8s %s  %d x %d threads  %lld x %lld  %7.3f s (%.3f to %.3f)  possible %.3f s: %.0f %%  %.1f GFLOP/s  "
           "memory %.0f MiB planned, %.0f MiB peak%s\n",
           c->name, type_name(r->type), r->ranks, r->threads, (long long)c->sequences, (long long)c->length, median,
           sorted[0], sorted[c->steps - 1], bound, 100 * bound / median, step_flops(r) / median / 1e9,
           r->memory / (1 << 20), peak / (1 << 20), r->others > 0 ? "  disturbed by other programs" : "");
    report_profile(r, p, last);
    printf("{\"bench\": \"step\", \"model\": \"%s\", \"type\": \"%s\", \"ranks\": %d, \"threads\": %d, \"sequences\": "
           "%lld, \"length\": %lld, \"tokens_per_rank\": %lld, \"seconds\": %.4f, \"possible_seconds\": %.4f, "
           "\"flops\": %.0f, \"planned_bytes\": %.0f, \"peak_bytes\": %.0f, \"loss\": %.6f, \"other_load\": %.2f}\n",
           c->name, type_name(r->type), r->ranks, r->threads, (long long)c->sequences, (long long)c->length,
           (long long)(c->sequences * c->length / r->ranks), median, bound, step_flops(r), r->memory, peak, r->loss,
           r->others);
}

/* Attention's share from the last step. */
static void report_tokens(const Result *r) {
    static const Op ops[] = {OP_ATTENTION, OP_ATTENTION_DELTA, OP_ATTENTION_BACKWARD};
    const Case *c = r->of;
    double step = r->seconds[c->steps - 1], attention = 0;
    for (size_t i = 0; i < COUNT(ops); i++) attention += r->meter.op[ops[i]].seconds;
    double count = (double)(c->sequences * c->length), pairs = count * (double)(c->length + 1) / 2;
    printf("%9lld %9lld %10.3f %10.3f %14.2f %14.2f%s\n", (long long)c->sequences, (long long)c->length, step,
           attention, 1e6 * (step - attention) / count, 1e9 * attention / pairs,
           r->others > 0 ? "  disturbed by other programs" : "");
    printf("{\"bench\": \"tokens\", \"sequences\": %lld, \"length\": %lld, \"seconds\": %.4f, \"attention_seconds\": "
           "%.4f, \"other_load\": %.2f}\n",
           (long long)c->sequences, (long long)c->length, step, attention, r->others);
}

/* In a process of its own, whose peak is this case's. */
static int run_case(const Case *c, const char *text, Type type, int ranks, int processors, const Possible *possible) {
    fflush(stdout);
    pid_t child = fork();
    if (child < 0) return EXIT_IO;
    if (child == 0) {
        Result r = {.of = c, .ranks = ranks, .threads = processors / ranks, .type = type};
        int code = open_and_take(&r, text);
        if (code == EXIT_DONE && possible != NULL) report(&r, possible);
        if (code == EXIT_DONE && possible == NULL) report_tokens(&r);
        fflush(stdout);
        _exit(code);
    }
    int status;
    while (waitpid(child, &status, 0) < 0) continue;
    return WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_WRONG;
}

static bool named(const char *name, int argc, char **argv) {
    for (int i = 2; i < argc; i++)
        if (strcmp(argv[i], name) == 0) return true;
    return false;
}

static int bench_models(const char *text, int processors, int argc, char **argv) {
    static const Type types[] = {FP32, BF16};
    Error e = {0};
    Possible possible;
    Device *d = device_open("cpu", processors, kernels_for("cpu", &e), &e);
    bool measured = d && possible_measure(d, &possible, &e);
    if (d) device_close(d);
    if (!measured) return error_print(&e);
    for (size_t i = 0; i < COUNT(models); i++) {
        if (argc > 2 && !named(models[i].name, argc, argv)) continue;
        int most = argc > 2 ? 2 : models[i].ranks;
        for (size_t t = 0; t < COUNT(types); t++) {
            for (int ranks = 1; ranks <= most && ranks <= processors; ranks++) {
                int code = run_case(&models[i], text, types[t], ranks, processors, &possible);
                if (code != EXIT_DONE) return code;
            }
        }
    }
    return EXIT_DONE;
}

static int bench_tokens(const char *text, int processors) {
    printf("%9s %9s %10s %10s %14s %14s\n", "sequences", "length", "step s", "attention", "others us/token",
           "attn ns/pair");
    for (size_t i = 0; i < COUNT(tokens); i++) {
        int code = run_case(&tokens[i], text, FP32, 1, processors, NULL);
        if (code != EXIT_DONE) return code;
    }
    return EXIT_DONE;
}

int main(int argc, char **argv) {
    const char *text = argc > 1 ? argv[1] : "data/bible.txt";
    int processors = (int)sysconf(_SC_NPROCESSORS_ONLN), code = EXIT_DONE;
    for (int i = 2; i < argc; i++) {
        bool known = strcmp(argv[i], "tokens") == 0;
        for (size_t m = 0; m < COUNT(models); m++) known |= strcmp(argv[i], models[m].name) == 0;
        Error e = {0};
        if (!known)
            fail(&e, EXIT_USAGE,
                 "\"%s\" is none of small, many, half, tokens; command line; bench_steps "
                 "[TEXT] [NAME]...",
                 text_shown(argv[i]).text);
        if (!known) return error_print(&e);
    }
    bool only_tokens = argc == 3 && named("tokens", argc, argv);
    if (!only_tokens) code = bench_models(text, processors, argc, argv);
    if (code == EXIT_DONE && named("tokens", argc, argv)) code = bench_tokens(text, processors);
    return code;
}
