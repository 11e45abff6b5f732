/* The figures of a GPU as a machine that sim predicts with. Medians of what a run does most: products of model shapes
 * and of experts with a thousand tokens or more, attention at 16K, memory as triad and AdamW use it. Compiled with
 * and without CUDA: it needs no GPU. */
#define _POSIX_C_SOURCE 200809L
#include "plan/doctor_parts.h"

#include <string.h>
#include <time.h>

/* Floating-point operations a cycle and multiprocessor: NVIDIA's data sheets, their peaks over multiprocessors and
 * clock. Dense. */
static const struct {
    int major, minor;
    double flops[RATE_TYPES];
} peaks[] = {
    {8, 0, {[FP32] = 128, [BF16] = 2048, [FP64] = 128}}, /* A100: 19.5, 312, 19.5 TFLOP/s; 108, 1.41 GHz */
    {9, 0, {[FP32] = 256, [BF16] = 4096, [FP64] = 256}}, /* H100, H200 SXM: 67, 989, 67; 132, 1.98 GHz (bf16: 1.83) */
};

typedef struct {
    const char *begins, *ends; /* of the key */
} Among;

/* The mean of the medians of the figures whose keys begin and end so; 0: there is none. */
static double mean_of(const Report *r, Among a) {
    double sum = 0;
    int n = 0;
    for (int i = 0; i < r->figures; i++) {
        const char *key = r->figure[i].key;
        size_t length = strlen(key), end = strlen(a.ends);
        bool is =
            strncmp(key, a.begins, strlen(a.begins)) == 0 && length >= end && strcmp(key + length - end, a.ends) == 0;
        if (is && !strstr(key, "square") && !strstr(key, "copies") && !strstr(key, "alone"))
            sum += r->figure[i].median, n++;
    }
    return n > 0 ? sum / n : 0;
}

static double median_of(const Report *r, const char *key) {
    const Figure *f = report_find(r, key);
    return f ? f->median : 0;
}

static double greater(double a, double b) {
    return a > b ? a : b;
}

/* Dense products and experts, equally. */
static double matrix_bf16(const Report *r) {
    double dense = mean_of(r, (Among){"gpu_matrix_bf16_", "_flop_per_s"}),
           few = mean_of(r, (Among){"gpu_experts_bf16_", "_1024_flop_per_s"}),
           many = mean_of(r, (Among){"gpu_experts_bf16_", "_4096_flop_per_s"});
    return few > 0 && many > 0 ? (dense + (few + many) / 2) / 2 : 0;
}

/* As long as both together: backward has 2.5 times the work of forward. */
static double attention_bf16(const Report *r) {
    double forward = median_of(r, "gpu_attention_d128_16K_flop_per_s"),
           backward = median_of(r, "gpu_attention_backward_d128_16K_flop_per_s");
    return forward > 0 && backward > 0 ? 3.5 / (1 / forward + 2.5 / backward) : 0;
}

static void fill_rates(const Report *r, Machine *m) {
    m->achieved[RATE_MATRIX][BF16] = matrix_bf16(r);
    m->achieved[RATE_MATRIX][FP32] = mean_of(r, (Among){"gpu_matrix_fp32_", "_flop_per_s"});
    m->achieved[RATE_MATRIX][FP64] = median_of(r, "gpu_matrix_fp64_square_flop_per_s");
    m->achieved[RATE_ATTENTION][BF16] = attention_bf16(r);
    m->achieved[RATE_ATTENTION][FP32] = m->achieved[RATE_MATRIX][FP32];
    m->achieved[RATE_ATTENTION][FP64] = m->achieved[RATE_MATRIX][FP64];
    for (int t = 0; t < RATE_TYPES; t++)
        m->achieved[RATE_ELEMENTWISE][t] = machine_row("h100x1")->achieved[RATE_ELEMENTWISE][t];
    double triad = median_of(r, "gpu_triad_bytes_per_s"), adamw = median_of(r, "gpu_adamw_bytes_per_s");
    m->bytes_per_s = triad > 0 && adamw > 0 ? (triad + adamw) / 2 : 0;
    m->link.bytes_per_s = median_of(r, "gpu_up_and_down_each_bytes_per_s");
    m->link.latency_s = median_of(r, "gpu_up_4KiB_s");
    m->network = m->link;
}

/* At the highest clock; of a GPU that is not in the table, the fastest product. */
static bool fill_peaks(const Report *r, const GpuFacts *g, Machine *m) {
    static const char *const squares[RATE_TYPES] = {[FP32] = "gpu_matrix_fp32_square_flop_per_s",
                                                    [BF16] = "gpu_matrix_bf16_square_flop_per_s",
                                                    [FP64] = "gpu_matrix_fp64_square_flop_per_s"};
    bool known = false;
    for (size_t i = 0; i < COUNT(peaks); i++) {
        if (peaks[i].major != g->major || peaks[i].minor != g->minor) continue;
        for (int t = 0; t < RATE_TYPES; t++) m->peak[t] = peaks[i].flops[t] * g->multiprocessors * g->clock;
        known = true;
    }
    for (int t = 0; t < RATE_TYPES; t++) {
        double reached =
            greater(median_of(r, squares[t]), greater(m->achieved[RATE_MATRIX][t], m->achieved[RATE_ATTENTION][t]));
        m->peak[t] = greater(m->peak[t], reached);
    }
    return known;
}

static bool complete(Report *r, const Machine *m) {
    const struct {
        const char *what;
        double value;
    } needed[] = {{"products in bf16", m->achieved[RATE_MATRIX][BF16]},
                  {"products in fp32", m->achieved[RATE_MATRIX][FP32]},
                  {"products in fp64", m->achieved[RATE_MATRIX][FP64]},
                  {"attention at 16K", m->achieved[RATE_ATTENTION][BF16]},
                  {"memory", m->bytes_per_s},
                  {"copies from and to the host", m->link.bytes_per_s},
                  {"small copies", m->link.latency_s}};
    char missing[200] = "";
    for (size_t i = 0, n = 0; i < COUNT(needed); i++)
        if (needed[i].value <= 0)
            n += (size_t)snprintf(missing + n, sizeof missing - n, "%s%s", n ? ", " : "", needed[i].what);
    if (*missing) report_note(r, "the GPU makes no machine for sim: not measured: %s", missing);
    return !*missing;
}

bool machine_of_gpu(Report *r, const GpuFacts *g, Machine *out) {
    char date[32] = "";
    time_t now = time(NULL);
    struct tm parts;
    if (gmtime_r(&now, &parts)) strftime(date, sizeof date, "%Y-%m-%d", &parts);
    *out = (Machine){.nodes = 1, .units = g->count, .memory_bytes = g->memory_bytes};
    fill_rates(r, out);
    bool known = fill_peaks(r, g, out);
    snprintf(out->name, sizeof out->name, "%d x %.48s", g->count, g->name);
    snprintf(out->source, sizeof out->source,
             "mop doctor %s, %s: medians, one GPU at work; matrix bf16: mean of model shapes and of experts with 1024 "
             "and 4096 "
             "tokens; attention bf16: forward and backward at 16K, head size 128; attention fp32 and fp64: as matrix, "
             "and elementwise as of an h100x1, assumed; memory: triad and AdamW; peaks: %s; link, network: copies both "
             "ways at once over PCIe stand in",
             MOP_VERSION, date,
             known ? "data sheet's operations a cycle, at the highest clock" : "the fastest product");
    return complete(r, out);
}
