/* The GPUs of `mop doctor`: what is there, and then everything a run on one depends on, measured on the first.
 *
 * A figure is the median of several samples between two CUDA events, after a warm-up, on random numbers: products of
 * zeros draw less power and are faster than any that a model has. */
#include "ops/kernels.h"
#include "plan/cuda/doctor_gpu_parts.h"

#include <string.h>

static const double GIB = 1 << 30;
static const double SECONDS_ALL = 55, SECONDS_WARM = 0.03; /* of all figures; before a figure */

/* ---- Failure --------------------------------------------------------------------------------------- */

bool gpu_failed(Gpu *g) {
    const Error *f = device_failed(g->device);
    if (f) fail(&g->error, f->code, "%s", f->text);
    return g->error.code != EXIT_DONE;
}

void gpu_issue(Gpu *g, cudaError_t status, const char *doing, const char *call) {
    Error e = {0};
    if (!cuda_check(g->device, status, doing, call, &e)) device_fail(g->device, &e);
}

/* ---- Figures --------------------------------------------------------------------------------------- */

bool gpu_time(Gpu *g, GpuWork once, void *context, double *seconds) {
    float ms = 0;
    cudaStream_t s = gpu_stream(g->compute);
    GPU_ISSUE(g, "timing", cudaEventRecord(g->mark[0], s));
    once(context);
    GPU_ISSUE(g, "timing", cudaEventRecord(g->mark[1], s));
    GPU_ISSUE(g, "timing", cudaEventSynchronize(g->mark[1]));
    if (gpu_failed(g)) return false;
    GPU_ISSUE(g, "timing", cudaEventElapsedTime(&ms, g->mark[0], g->mark[1]));
    *seconds = ms > 1e-4f ? 1e-3 * (double)ms : 1e-7; /* events tell half microseconds */
    return !gpu_failed(g);
}

bool gpu_rate(Gpu *g, const char *key, double work, GpuWork once, void *context) {
    double seconds, begun = seconds_now();
    do {
        if (!gpu_time(g, once, context, &seconds)) return false;
    } while (seconds_now() - begun < SECONDS_WARM);
    Samples s = samples_begin();
    while (samples_wanted(&s)) {
        if (!gpu_time(g, once, context, &seconds)) return false;
        samples_add(&s, work > 0 ? work / seconds : seconds);
    }
    report_samples(g->report, key, &s, true); /* the GPU's time, not the processors' */
    return true;
}

bool gpu_may(Gpu *g, const char *what, double bytes) {
    double room = (double)(g->memory.capacity - g->memory.used);
    if (seconds_now() > g->deadline)
        report_note(g->report, "%s was left out: measuring the GPU had taken %.0f s already", what, SECONDS_ALL);
    else if (bytes > room)
        report_note(g->report, "%s was left out: it needs %.1f GiB of the GPU's memory and %.1f were free", what,
                    bytes / GIB, room / GIB);
    else
        return true;
    return false;
}

Tensor gpu_random(Gpu *g, Type type, int dims, const int64_t *dim) {
    static const GpuType types[TYPE_COUNT] = {[FP32] = GPU_FP32, [BF16] = GPU_BF16, [FP64] = GPU_FP64};
    Tensor t = arena_tensor(&g->memory, type, dims, dim);
    uint32_t seed = (uint32_t)((uintptr_t)t.data >> 6);
    GPU_ISSUE(g, "filling", gpu_fill(gpu_stream(g->compute), t.data, types[type], tensor_count(t), seed));
    return t;
}

void gpu_check_finite(Gpu *g, const char *what, Tensor t) {
    static const GpuType types[TYPE_COUNT] = {[FP32] = GPU_FP32, [BF16] = GPU_BF16, [FP64] = GPU_FP64};
    Mark mark = arena_mark(&g->memory);
    Tensor count = arena_tensor(&g->memory, INT64, DIM(1));
    int64_t none = 0, found = 0;
    device_write(g->compute, count, &none);
    GPU_ISSUE(g, "checking",
              gpu_count_unfinite(gpu_stream(g->compute), t.data, types[t.type], tensor_count(t), count.data));
    device_read(g->compute, &found, count, READ_LOSS);
    arena_reset(&g->memory, mark);
    if (found > 0)
        report_broken(g->report,
                      "%s gave %lld of %lld numbers that are not finite: this GPU or its library is not to be used",
                      what, (long long)found, (long long)tensor_count(t));
}

/* ---- What is there --------------------------------------------------------------------------------- */

static void print_version(const char *name, int64_t major, int64_t minor, int64_t patch) {
    printf("  %s %lld.%lld.%lld\n", name, (long long)major, (long long)minor, (long long)patch);
}

/* Versions as numbers: 130100 or 13 * 10000 + ... for cuBLASLt, 91900 for cuDNN, 22809 for NCCL. */
static void look_at_libraries(Report *r) {
    Cublas blas = {0};
    Cudnn dnn = {0};
    Error missing[3] = {{0}};
    int nccl = 0;
    if (cublas_load(&blas, &missing[0])) {
        int64_t v = (int64_t)blas.cublasLtGetVersion();
        print_version("cuBLASLt", v / 10000, v / 100 % 100, v % 100);
    }
    if (cudnn_load(&dnn, &missing[1])) {
        int64_t v = (int64_t)dnn.cudnnGetVersion();
        print_version("cuDNN", v / 10000, v / 100 % 100, v % 100);
    }
    if (nccl_version(&nccl, &missing[2])) print_version("NCCL", nccl / 10000, nccl / 100 % 100, nccl % 100);
    for (size_t i = 0; i < COUNT(missing); i++)
        if (missing[i].code != EXIT_DONE) report_note(r, "%s", missing[i].text);
}

static bool look_at(int i, GpuFacts *f, struct cudaDeviceProp *p, Error *e) {
    int clock = 0;
    if (!CUDA(NULL, e, "asking what it is", cudaGetDeviceProperties(p, i)) ||
        !CUDA(NULL, e, "asking for its clock", cudaDeviceGetAttribute(&clock, cudaDevAttrClockRate, i)))
        return false;
    *f = (GpuFacts){
        .major = p->major, .minor = p->minor, .multiprocessors = p->multiProcessorCount, .clock = 1e3 * clock};
    snprintf(f->name, sizeof f->name, "%s", p->name);
    printf("  cuda:%d  %s, compute capability %d.%d, %d multiprocessors at up to %.0f MHz, %.1f GiB, ECC %s, PCI "
           "%04x:%02x:%02x\n",
           i, p->name, p->major, p->minor, p->multiProcessorCount, clock / 1e3, (double)p->totalGlobalMem / GIB,
           p->ECCEnabled ? "on" : "off", (unsigned)p->pciDomainID, (unsigned)p->pciBusID, (unsigned)p->pciDeviceID);
    return true;
}

/* ---- Opening --------------------------------------------------------------------------------------- */

static size_t free_bytes(Gpu *g) {
    size_t left = 0, all = 0;
    GPU_ISSUE(g, "asking for free memory", cudaMemGetInfo(&left, &all));
    return left;
}

/* The context takes memory that no arena can have; so do the libraries, when they are opened. */
static void print_taken(const char *who, size_t before, size_t after) {
    printf("  memory: %.2f GiB are free; %s %.0f MiB\n", (double)after / GIB, who,
           ((double)before - (double)after) / (1 << 20));
}

static bool open_arenas(Gpu *g) {
    static const size_t most = (size_t)20 << 30, workspace = (size_t)64 << 20, pinned = (size_t)1280 << 20;
    size_t left = free_bytes(g), bytes = left / 10 * 8 < most ? left / 10 * 8 : most;
    size_t host =
        g->host->available > 0 && g->host->available / 4 < (double)pinned ? (size_t)(g->host->available / 4) : pinned;
    if (gpu_failed(g)) return false;
    if (!arena_open(&g->memory, g->device, "doctor", TIER_DEVICE, bytes, &g->error) ||
        !arena_open(&g->pinned, g->device, "pinned", TIER_HOST, host, &g->error))
        return false;
    g->workspace = arena_tensor(&g->memory, BYTE, DIM((int64_t)workspace));
    return true;
}

static bool gpu_open(Gpu *g, size_t total, double *usable) {
    Error missing = {0};
    g->device = device_open("cuda:0", 1, &kernels_cuda, &g->error);
    if (!g->device) return false;
    g->compute = &g->device->stream[STREAM_COMPUTE];
    g->up = &g->device->stream[STREAM_UP];
    g->down = &g->device->stream[STREAM_DOWN];
    for (int i = 0; i < GPU_MARKS; i++)
        if (!CUDA(g->device, &g->error, "opening", cudaEventCreate(&g->mark[i]))) return false;
    size_t opened = free_bytes(g), left = opened;
    print_taken("others and mop's context have", total, opened);
    if (gpu_cublas(g->device, &missing) && gpu_cudnn(g->device, &missing)) left = free_bytes(g);
    if (missing.code == EXIT_DONE) print_taken("cuBLASLt and cuDNN, when opened, take", opened, left);
    *usable = 0.98 * (double)left; /* fragments */
    return !gpu_failed(g) && open_arenas(g);
}

static void gpu_close(Gpu *g) {
    if (!g->device) return;
    for (int i = 0; i < STREAM_COUNT; i++) event_wait(event_record(&g->device->stream[i]));
    for (int i = 0; i < GPU_MARKS; i++)
        if (g->mark[i]) GPU_ISSUE(g, "closing", cudaEventDestroy(g->mark[i]));
    arena_close(&g->memory);
    arena_close(&g->pinned);
    gpu_failed(g);
    device_close(g->device);
}

/* ---- All of it ------------------------------------------------------------------------------------- */

static GpuAnswer measure(Report *r, const Host *h, GpuFacts *f, size_t total, Machine *out) {
    Gpu g = {.report = r, .host = h, .deadline = seconds_now() + SECONDS_ALL};
    bool ok = gpu_open(&g, total, &f->memory_bytes) && doctor_gpu_products(&g) && doctor_gpu_memory(&g) &&
              doctor_gpu_update(&g) && doctor_gpu_attention(&g);
    gpu_close(&g);
    if (ok && g.error.code == EXIT_DONE) return machine_of_gpu(r, f, out) ? GPU_MACHINE : GPU_INCOMPLETE;
    report_broken(r, "the GPU: %s", g.error.text);
    return GPU_INCOMPLETE;
}

GpuAnswer doctor_gpus(Report *r, const Host *h, Machine *out) {
    struct cudaDeviceProp first, other;
    GpuFacts facts, others;
    Error e = {0};
    int count, driver;
    double begun = seconds_now();
    bool found = gpu_count(&count, &driver, &e);
    printf("\nGPUs\n  this mop was built with CUDA %d.%d, cuBLASLt %d.%d, cuDNN %d.%d; the driver has CUDA ",
           CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10, CUBLAS_VER_MAJOR, CUBLAS_VER_MINOR, CUDNN_MAJOR,
           CUDNN_MINOR);
    printf(driver > 0 ? "%d.%d\n" : "none\n", driver / 1000, driver % 1000 / 10);
    look_at_libraries(r);
    if (!found) {
        report_note(r, "%s; nothing was measured on one, and runs use the CPU", e.text);
        return GPU_NONE;
    }
    for (int i = 0; i < count; i++)
        if (!look_at(i, i == 0 ? &facts : &others, i == 0 ? &first : &other, &e)) {
            report_broken(r, "%s", e.text);
            return GPU_INCOMPLETE;
        }
    report_note(r, "runs use the CPU: this mop measures a GPU and has no ops on one yet");
    if (count > 1)
        report_note(r, "of %d GPUs only cuda:0 was measured, alone; the others are taken to be like it", count);
    facts.count = count;
    GpuAnswer answer = measure(r, h, &facts, first.totalGlobalMem, out);
    printf("  measured in %.0f s\n", seconds_now() - begun);
    return answer;
}
