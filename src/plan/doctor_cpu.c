/* What the processor can do at most (plan/peaks.h), and what products by others reach; AdamW, which moves memory as a
 * run does. */
#include "ops/kernels.h"
#include "plan/doctor_parts.h"
#include "plan/other_products.h"
#include "plan/peaks.h"

#include <stdlib.h>

static const char *threads_text(int threads, char *text, size_t bytes) {
    snprintf(text, bytes, threads == 1 ? "%d_thread" : "%d_threads", threads);
    return text;
}

/* ---- Peaks ------------------------------------------------------------------------------------------ */

typedef struct {
    Peaks *peaks;
    Peak peak;
} Once;

static void peak_once(void *context) {
    Once *o = context;
    peak_run(o->peaks, o->peak);
}

static void measure_peaks(Report *r, Peaks *p, const char *threads) {
    for (int k = 0; k < PEAK_COUNT; k++) {
        char key[KEY_BYTES];
        double work = peak_work(p, (Peak)k);
        if (work == 0) continue;
        snprintf(key, sizeof key, "%s_%s_%s_per_s", peak_name((Peak)k), threads, k < PEAK_COPY ? "flop" : "bytes");
        report_rate(r, key, work, peak_once, &(Once){p, (Peak)k});
    }
}

/* ---- AdamW ------------------------------------------------------------------------------------------ */

enum { WEIGHT, MEAN, SQUARE, GRADIENT, TENSORS };

typedef struct {
    Stream *stream;
    Tensor t[TENSORS];
} Update;

/* fp32: weight, moments and gradient are read, all but the gradient written. */
static void adamw_once(void *context) {
    Update *u = context;
    AdamW h = {.learning_rate = 1e-6,
               .beta1 = 0.9,
               .beta2 = 0.95,
               .epsilon = 1e-8,
               .weight_decay = 0.1,
               .correction1 = 0.1,
               .correction2 = 0.05,
               .clip = 1};
    adamw(u->stream, u->t[WEIGHT], NONE, u->t[MEAN], u->t[SQUARE], u->t[GRADIENT], h);
    event_wait(event_record(u->stream));
}

/* In arrays of their own, none in step with another in the caches. */
static void measure_adamw(Report *r, Device *d, size_t bytes, const char *threads, Error *e) {
    enum { STAGGER = 5 * 1024 / sizeof(float) };
    static const float scale[TENSORS] = {1e-3f, 1e-6f, 1e-6f, 1e-3f};
    int64_t n = (int64_t)(bytes / sizeof(float));
    char key[KEY_BYTES];
    Update u = {.stream = &d->stream[STREAM_COMPUTE]};
    Arena arena;
    if (!arena_open(&arena, d, "doctor", TIER_DEVICE, TENSORS * ((size_t)n + TENSORS * STAGGER) * sizeof(float), e))
        return;
    for (int i = 0; i < TENSORS; i++) {
        u.t[i] = tensor_rows(arena_tensor(&arena, FP32, DIM(n + i * STAGGER)), i * STAGGER, n);
        for (int64_t j = 0; j < n; j++) ((float *)u.t[i].data)[j] = scale[i] * (float)(j % 1000 + 1);
    }
    snprintf(key, sizeof key, "adamw_%s_bytes_per_s", threads);
    report_rate(r, key, 7.0 * sizeof(float) * (double)n, adamw_once, &u);
    arena_close(&arena);
}

/* Of an array: four times the last cache. */
static size_t array_bytes(const Host *h) {
    double bytes = 4.0 * (double)h->cache;
    if (bytes < 64 << 20) bytes = 64 << 20;
    if (bytes > 256 << 20) bytes = 256 << 20;
    if (h->available > 0 && bytes > h->available / 16) bytes = h->available / 16;
    return (size_t)bytes / 4096 * 4096;
}

void doctor_cpu(Report *r, const Host *h, int threads, Error *e) {
    char name[24];
    size_t bytes = array_bytes(h);
    Peaks peaks;
    Device *d = device_open("cpu", threads, kernels_for("cpu", e), e);
    if (!d) return;
    printf("\nprocessor, %d thread%s (arrays of %zu MiB)\n", threads, threads > 1 ? "s" : "", bytes >> 20);
    threads_text(threads, name, sizeof name);
    if (peaks_open(&peaks, d, bytes, e)) {
        measure_peaks(r, &peaks, name);
        peaks_close(&peaks);
        measure_adamw(r, d, bytes, name, e);
    }
    device_close(d);
}

/* ---- Products by others ------------------------------------------------------------------------------ */

static const int64_t squares[] = {1024, 1536, 2048}; /* the largest last */
static const double SQUARE_SECONDS = 0.5;            /* after which no further sample is taken */

/* Of one square; what it reached at most. */
static double time_square(const OtherProducts *o, Samples *s, int64_t n, float *c, const float *a, const float *b) {
    enum { LEAST = 2, MOST = 5 };
    double most = 0;
    if (!other_products_run(o, c, a, b, n, n, n)) return 0; /* warms up */
    for (*s = samples_begin(); s->n < MOST && (s->n < LEAST || seconds_now() - s->start < SQUARE_SECONDS);) {
        double start = seconds_now();
        other_products_run(o, c, a, b, n, n, n);
        double rate = 2.0 * (double)n * (double)n * (double)n / (seconds_now() - start);
        if (rate > most) most = rate;
        samples_add(s, rate);
    }
    return most;
}

/* The samples of the square that was fastest. */
static void time_library(Report *r, const OtherProducts *o, int threads, float *c, const float *a, const float *b) {
    Samples best = {0}, s;
    double most = 0;
    char key[KEY_BYTES], name[24];
    for (size_t i = 0; i < COUNT(squares); i++) {
        double reached = time_square(o, &s, squares[i], c, a, b);
        if (reached > most) best = s, most = reached;
    }
    snprintf(key, sizeof key, "%s_fp32_%s_flop_per_s", other_products_name(o->name),
             threads_text(threads, name, sizeof name));
    if (most > 0)
        report_samples(r, key, &best, false);
    else
        report_note(r, "%s refused to multiply", o->file);
}

void doctor_other_products(Report *r, const Host *h) {
    int64_t largest = squares[COUNT(squares) - 1];
    float *a = calloc((size_t)(3 * largest * largest), sizeof *a), *b = a + largest * largest,
          *c = b + largest * largest;
    MUST(a);
    for (int64_t i = 0; i < 2 * largest * largest; i++) a[i] = 1e-3f * (float)(i % 1999 - 1000);
    printf("\nproducts by others (fp32, the fastest square of %lld to %lld)\n", (long long)squares[0],
           (long long)largest);
    for (int n = 0; n < OTHER_COUNT; n++) {
        OtherProducts o;
        for (int threads = 1; other_products_open(&o, (OtherName)n, threads); threads = h->threads) {
            time_library(r, &o, threads, c, a, b);
            if (threads == h->threads) break;
        }
        if (!o.multiply)
            report_note(r, "%s is not installed (Debian: %s): products were not held against it",
                        other_products_name((OtherName)n), other_products_packages((OtherName)n));
    }
    free(a);
}
