/* Whole training steps of three models: the example, one with many experts, one of half a billion parameters. Prints
 * the median step, the FLOP rate of its own charge, and memory; a JSON line each. Usage: bench_steps [TEXT]
 * [example|many|half]...
 *
 * After the counted steps one more is profiled: time by op, and what is left (waiting for other ranks, and the host's
 * own work).
 *
 * The same shapes and batches as the PyTorch measurements in docs/performance.md: compare in the same hour on the
 * same machine.
 */
#include "ops/kernels.h"
#include "plan/plan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

typedef struct {
    const char *name, *model;
    int64_t sequences, length;
    int steps; /* counted, after two that are not */
} Case;

#define MODEL(layers, width, heads, experts, inner, top, vocabulary)                                                   \
    "{\"model_type\": \"olmoe\", \"hidden_size\": " #width ", \"intermediate_size\": " #inner                          \
    ", \"num_hidden_layers\": " #layers ", \"num_attention_heads\": " #heads ", \"num_key_value_heads\": " #heads      \
    ", \"num_experts\": " #experts ", \"num_experts_per_tok\": " #top ", \"vocab_size\": " #vocabulary                 \
    ", \"tie_word_embeddings\": false}"

static const Case cases[] = {
    {"example", MODEL(6, 256, 4, 8, 256, 2, 256), 16, 512, 5},
    {"many", MODEL(4, 256, 4, 128, 128, 4, 256), 4, 1024, 5},
    {"half", MODEL(8, 512, 8, 64, 512, 4, 50304), 2, 1024, 3},
};

typedef struct {
    const Case *of;
    double seconds[16], loss;
    int64_t flops;
    size_t memory;
    Meter profile; /* of one more step, rank 0 */
    double profiled;
} Result;

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static bool measure(Session *s, Run *r, Error *e) {
    Result *out = s->context;
    bool leads = r->comm.mesh.rank == 0;
    store_initialise(r->store, 1);
    for (int i = 0; i < out->of->steps + 2; i++) {
        StepResult step;
        meter_clear(r->device);
        double start = seconds_now();
        if (!train_step(r, i, false, &step, e)) return false;
        if (!leads) continue;
        if (i >= 2) out->seconds[i - 2] = seconds_now() - start;
        out->loss = step.loss;
    }
    if (!leads) return true;
    for (int k = 0; k < COMPONENT_COUNT; k++) out->flops += r->device->meter.flops[k];
    out->memory = run_memory(r);
    return true;
}

static bool measure_and_profile(Session *s, Run *r, Error *e) {
    Result *out = s->context;
    StepResult step;
    if (!measure(s, r, e)) return false;
    meter_clear(r->device);
    r->device->profile = true;
    double start = seconds_now();
    if (!train_step(r, out->of->steps + 2, false, &step, e)) return false;
    if (r->comm.mesh.rank != 0) return true;
    out->profiled = seconds_now() - start;
    out->profile = r->device->meter;
    return true;
}

/* The ops that took 1 % of the step or more, longest first. */
static void report_profile(const Result *r) {
    double left = r->profiled;
    bool shown[OP_COUNT] = {false};
    for (int n = 0; n < OP_COUNT; n++) {
        int at = -1;
        for (int op = 0; op < OP_COUNT; op++)
            if (!shown[op] && (at < 0 || r->profile.op[op].seconds > r->profile.op[at].seconds)) at = op;
        const OpCount *c = &r->profile.op[at];
        shown[at] = true;
        left -= c->seconds;
        if (c->seconds < 0.01 * r->profiled) continue;
        printf("    %-22s %5.1f %%  %8.4f s  %6lld calls  %7.1f GFLOP/s  %6.1f GB/s\n", op_name((Op)at),
               100 * c->seconds / r->profiled, c->seconds, (long long)c->calls, (double)c->flops / c->seconds / 1e9,
               (double)c->bytes / c->seconds / 1e9);
    }
    printf("    %-22s %5.1f %%  %8.4f s\n", "waiting and the host", 100 * left / r->profiled, left);
}

static void report(const Case *c, int ranks, int threads, const Result *r, const char *type) {
    double sorted[16];
    memcpy(sorted, r->seconds, sizeof sorted);
    qsort(sorted, (size_t)c->steps, sizeof *sorted, ascending);
    double median = sorted[c->steps / 2], rate = (double)r->flops * ranks / median / 1e9;
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    printf("%-8s %s  %d x %d threads  %lld x %lld  %7.3f s (%.3f to %.3f)  %6.1f GFLOP/s  %7.1f MiB planned a rank, "
           "process peak %.0f MiB\n",
           c->name, type, ranks, threads, (long long)c->sequences, (long long)c->length, median, sorted[0],
           sorted[c->steps - 1], rate, (double)r->memory / (1 << 20), (double)use.ru_maxrss / 1024);
    printf("{\"bench\": \"step\", \"model\": \"%s\", \"type\": \"%s\", \"ranks\": %d, \"threads\": %d, "
           "\"tokens_per_rank\": %lld, \"seconds\": %.4f, \"gflops\": %.1f, \"memory_bytes\": %zu, \"loss\": %.6f}\n",
           c->name, type, ranks, threads, (long long)(c->sequences * c->length / ranks), median, rate, r->memory,
           r->loss);
    fflush(stdout);
}

static int run_case(const Case *c, const char *text, const char *type, int ranks, int threads) {
    char yaml[1024], model[] = "/tmp/mop-bench-XXXXXX";
    int fd = mkstemp(model);
    if (fd < 0 || dprintf(fd, "%s", c->model) < 0) return EXIT_IO;
    snprintf(yaml, sizeof yaml,
             "model.config: %s\ndata.path: %s\nranks: %d\ncompute.threads: %d\ncompute.type: %s\ntrain.sequences: "
             "%lld\ntrain.sequence_length: %lld\n",
             model, text, ranks, threads, type, (long long)c->sequences, (long long)c->length);
    Config config;
    Session s = {0};
    Error e = {0};
    Result result = {.of = c};
    int code = EXIT_DONE;
    if (!config_read_text(&config, yaml, strlen(yaml), "bench", NULL, 0, &e))
        code = error_print(&e);
    else if (!session_open(&s, &config, &e) || !session_data(&s, &e))
        code = error_print(&e);
    else
        code = session_run(&s, plan_price, measure_and_profile, &result);
    session_close(&s);
    config_close(&config);
    unlink(model);
    if (code != EXIT_DONE) return code;
    report(c, ranks, threads, &result, type);
    report_profile(&result);
    return code;
}

static bool wanted(const char *name, int argc, char **argv) {
    for (int i = 2; i < argc; i++)
        if (strcmp(argv[i], name) == 0) return true;
    return argc <= 2;
}

int main(int argc, char **argv) {
    static const char *const types[] = {"fp32", "bf16"};
    const char *text = argc > 1 ? argv[1] : "data/bible.txt";
    for (size_t i = 0; i < COUNT(cases); i++)
        for (size_t t = 0; t < COUNT(types) && wanted(cases[i].name, argc, argv); t++)
            for (int ranks = 1; ranks <= 2; ranks++) {
                int code = run_case(&cases[i], text, types[t], ranks, 3 - ranks);
                if (code != EXIT_DONE) return code;
            }
    return EXIT_DONE;
}
