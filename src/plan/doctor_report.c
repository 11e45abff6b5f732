/* Figures and sentences of `mop doctor`. A figure is a handful of samples: least, median, most. While they are
 * taken the processors' own clock tells how much of them other programs used; a figure taken on a busy machine is
 * marked. */
#include "plan/doctor_parts.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static const double SECONDS_LEAST = 0.25, SECONDS_MOST = 1.2;
static const double OTHERS_MOST = 0.15, OTHERS_SEEN = 0.04; /* cores; seconds, since /proc/stat counts hundredths */
enum { SAMPLES_LEAST = 5, SAMPLES_USUAL = 15 };

/* ---- Who used the processors ---------------------------------------------------------------------- */

/* Processor seconds of all programs, and those that the host of a virtual machine took away, from /proc/stat; 0
 * where there is none. */
static double seconds_busy(void) {
    long long user = 0, nice = 0, system = 0, idle = 0, wait = 0, interrupt = 0, soft = 0, steal = 0;
    FILE *f = fopen("/proc/stat", "r");
    if (!f) return 0;
    int fields = fscanf(f, "cpu %lld %lld %lld %lld %lld %lld %lld %lld", &user, &nice, &system, &idle, &wait,
                        &interrupt, &soft, &steal);
    fclose(f);
    return fields == 8 ? (double)(user + nice + system + interrupt + soft + steal) / (double)sysconf(_SC_CLK_TCK) : 0;
}

static double seconds_own(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + 1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

/* ---- Samples --------------------------------------------------------------------------------------- */

Samples samples_begin(void) {
    return (Samples){.least = SECONDS_LEAST, .start = seconds_now(), .busy = seconds_busy(), .own = seconds_own()};
}

void samples_add(Samples *s, double value) {
    MUST(s->n < MAX_SAMPLES);
    s->value[s->n++] = value;
}

bool samples_wanted(const Samples *s) {
    double taken = seconds_now() - s->start;
    if (s->n < SAMPLES_LEAST) return true;
    return s->n < MAX_SAMPLES && taken < SECONDS_MOST && (s->n < SAMPLES_USUAL || taken < s->least);
}

double samples_others(const Samples *s) {
    double foreign = seconds_busy() - s->busy - (seconds_own() - s->own), others = foreign / (seconds_now() - s->start);
    return foreign > OTHERS_SEEN && others > OTHERS_MOST ? others : 0;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* ---- Figures ---------------------------------------------------------------------------------------- */

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

const char *figure_text(const char *key, double value, char *text, size_t bytes) {
    if (ends_with(key, "flop_per_s"))
        snprintf(text, bytes, value < 1e13 ? "%.1f GFLOP/s" : "%.1f TFLOP/s", value / (value < 1e13 ? 1e9 : 1e12));
    else if (ends_with(key, "parameters_per_s"))
        snprintf(text, bytes, "%.3f G/s", value / 1e9);
    else if (ends_with(key, "bytes_per_s"))
        snprintf(text, bytes, value < 1e9 ? "%.0f MB/s" : "%.2f GB/s", value / (value < 1e9 ? 1e6 : 1e9));
    else
        snprintf(text, bytes, value < 1e-2 ? "%.1f us" : "%.1f ms", value * (value < 1e-2 ? 1e6 : 1e3));
    return text;
}

void report_samples(Report *r, const char *key, const Samples *s, bool shared) {
    double sorted[MAX_SAMPLES], others = shared ? 0 : samples_others(s);
    MUST(s->n > 0 && r->figures < MAX_FIGURES && strlen(key) < KEY_BYTES);
    memcpy(sorted, s->value, (size_t)s->n * sizeof *sorted);
    qsort(sorted, (size_t)s->n, sizeof *sorted, ascending);
    Figure *f = &r->figure[r->figures++];
    *f = (Figure){.least = sorted[0], .median = sorted[s->n / 2], .most = sorted[s->n - 1]};
    snprintf(f->key, sizeof f->key, "%s", key);
    char least[32], median[32], most[32];
    printf("  %-46s %14s  (%s to %s)", key, figure_text(key, f->median, median, sizeof median),
           figure_text(key, f->least, least, sizeof least), figure_text(key, f->most, most, sizeof most));
    if (others > 0) printf("  others used %.1f cores", others);
    printf("\n");
    fflush(stdout);
    r->disturbed += others > 0;
}

/* Seconds of one of `times` runs. */
static double seconds_of(void (*once)(void *context), void *context, int times) {
    double start = seconds_now();
    for (int i = 0; i < times; i++) once(context);
    return (seconds_now() - start) / times;
}

/* Of short work a sample is several runs, so that the samples cover the time. */
void report_rate_over(Report *r, double seconds, const char *key, double work, void (*once)(void *context),
                      void *context) {
    once(context);
    int times = 1 + (int)(seconds / (MAX_SAMPLES * seconds_of(once, context, 1)));
    Samples s = samples_begin();
    s.least = seconds;
    while (samples_wanted(&s)) {
        double each = seconds_of(once, context, times);
        samples_add(&s, work > 0 ? work / each : each);
    }
    report_samples(r, key, &s, false);
}

void report_rate(Report *r, const char *key, double work, void (*once)(void *context), void *context) {
    report_rate_over(r, SECONDS_LEAST, key, work, once, context);
}

const Figure *report_find(const Report *r, const char *key) {
    for (int i = 0; i < r->figures; i++)
        if (strcmp(r->figure[i].key, key) == 0) return &r->figure[i];
    return NULL;
}

/* Four digits: the rest is noise. */
static json_t *rounded(double x) {
    char text[32];
    snprintf(text, sizeof text, "%.4g", x);
    return json_real(strtod(text, NULL));
}

json_t *report_json(const Report *r) {
    json_t *all = json_object();
    for (int i = 0; i < r->figures; i++) {
        const Figure *f = &r->figure[i];
        json_t *one = json_pack("{s:o, s:o, s:o}", "min", rounded(f->least), "median", rounded(f->median), "max",
                                rounded(f->most));
        MUST(one && json_object_set_new(all, f->key, one) == 0);
    }
    return all;
}

/* ---- Notes ------------------------------------------------------------------------------------------- */

static void add_note(Report *r, const char *before, const char *format, va_list args) {
    MUST(r->notes < MAX_NOTES);
    char *note = r->note[r->notes++];
    int used = snprintf(note, sizeof r->note[0], "%s", before);
    vsnprintf(note + used, sizeof r->note[0] - (size_t)used, format, args);
}

void report_note(Report *r, const char *format, ...) {
    va_list args;
    va_start(args, format);
    add_note(r, "", format, args);
    va_end(args);
}

void report_broken(Report *r, const char *format, ...) {
    va_list args;
    va_start(args, format);
    add_note(r, "WILL NOT WORK: ", format, args);
    va_end(args);
    r->broken = true;
}

void report_notes_print(const Report *r) {
    printf("\nnotes\n");
    if (r->disturbed > 0)
        printf("  the machine was busy: other programs used its processors during %d of %d figures, which are lower "
               "than it can do; run again when it is quiet\n",
               r->disturbed, r->figures);
    for (int i = 0; i < r->notes; i++) printf("  %s\n", r->note[i]);
    if (r->disturbed == 0 && r->notes == 0) printf("  nothing is missing and nothing hurts\n");
}
