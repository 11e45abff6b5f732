/* The figures of `mop doctor` as a machine that sim predicts with, as a file, and held against another machine. A
 * core's share is what all of them reached together, divided: in a run they all work. Medians count, as the median step
 * is what is predicted; of peaks the best sample, since nothing may be above them. */
#define _POSIX_C_SOURCE 200809L
#include "plan/doctor_parts.h"
#include "plan/other_products.h"
#include "plan/peaks.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <time.h>

static const char *const types[RATE_TYPES] = {[FP32] = "fp32", [BF16] = "bf16", [FP64] = "fp64"};

static const Figure *of_all_threads(const Report *r, const Host *h, const char *what, const char *unit) {
    char key[KEY_BYTES];
    snprintf(key, sizeof key, "%.24s_%d_thread%s_%.12s", what, h->threads, h->threads > 1 ? "s" : "", unit);
    return report_find(r, key);
}

static double share(const Report *r, const Host *h, const char *kind, const char *type) {
    char what[KEY_BYTES];
    snprintf(what, sizeof what, "%s_%s", kind, type);
    const Figure *f = of_all_threads(r, h, what, "flop_per_s");
    return f ? f->median / h->threads : 0;
}

/* With one thread or all. */
static double peak(const Report *r, const Host *h, const char *what) {
    char key[KEY_BYTES];
    snprintf(key, sizeof key, "%s_1_thread_flop_per_s", what);
    const Figure *one = report_find(r, key), *all = of_all_threads(r, h, what, "flop_per_s");
    double x = one ? one->most : 0, y = all ? all->most / h->threads : 0;
    return x > y ? x : y;
}

/* A product by somebody else, beside the same peak. */
static void check_other(Report *r, const Host *h, const char *name) {
    char what[KEY_BYTES];
    snprintf(what, sizeof what, "%s_fp32", name);
    const Figure *other = of_all_threads(r, h, what, "flop_per_s"),
                 *fma = of_all_threads(r, h, "fma_fp32", "flop_per_s");
    if (!other || !fma) return;
    double ratio = other->median / fma->median;
    report_note(
        r, "check: %s's fp32 products reach %.0f %% of the multiply-adds between registers%s", name, 100 * ratio,
        ratio > 0.8 && ratio < 1.02 ? "" : ": 80 to 100 is usual; the machine was busy, or it has no kernel for it");
}

/* Where products beat the peak, or our copy and memcpy differ much, something else was at work between the two
 * measurements. */
static bool check(Report *r, const Host *h, const Machine *m) {
    const Figure *ours = of_all_threads(r, h, "copy", "bytes_per_s"),
                 *theirs = of_all_threads(r, h, "memcpy", "bytes_per_s");
    const Figure *large = of_all_threads(r, h, "matrix_large_fp32", "flop_per_s"),
                 *fma = of_all_threads(r, h, "fma_fp32", "flop_per_s");
    if (ours && theirs) {
        double ratio = ours->median / theirs->median;
        report_note(r, "check: copy is %.0f %% of memcpy%s", 100 * ratio,
                    ratio > 0.9 && ratio < 1.1 ? ""
                    : peak_copy_streams()
                        ? ": within 10 is usual; the machine was busy, or its memory is shared with others"
                        : ": here copy writes through the caches, which read each line first; memcpy may not");
    }
    if (large && fma) {
        double ratio = large->median / fma->median;
        report_note(r, "check: large fp32 products reach %.0f %% of the multiply-adds between registers%s", 100 * ratio,
                    ratio > 1.02 || ratio < 0.6 ? ": 70 to 95 is usual; the machine was busy" : "");
    }
    for (int n = 0; n < OTHER_COUNT; n++) check_other(r, h, other_products_name((OtherName)n));
    for (int t = 0; t < RATE_TYPES; t++)
        for (int k = 0; k < RATE_COUNT; k++)
            if (m->achieved[k][t] > m->peak[t]) {
                report_note(r,
                            "%s products were faster than the peak: the machine was too busy to be measured; run again "
                            "when it is quiet",
                            types[t]);
                return false;
            }
    return true;
}

bool machine_of_report(Report *r, const Host *h, Machine *out) {
    time_t now = time(NULL);
    char date[32] = "";
    struct tm parts;
    if (gmtime_r(&now, &parts)) strftime(date, sizeof date, "%Y-%m-%d", &parts);
    const Figure *triad = of_all_threads(r, h, "triad", "bytes_per_s"),
                 *adamw = of_all_threads(r, h, "adamw", "bytes_per_s");
    const Figure *small = NULL, *large = NULL;
    for (int i = 0; i < r->figures; i++) { /* of the thread wire: mpirun's figures, where there are some, come first */
        if (strstr(r->figure[i].key, "all_gather_64B_s")) small = &r->figure[i];
        if (strstr(r->figure[i].key, "all_gather_16MiB_bytes")) large = &r->figure[i];
    }
    *out = (Machine){.cores = true, .nodes = 1, .units = h->threads};
    snprintf(out->name, sizeof out->name, "%.40s, %d cores", h->model, h->threads);
    snprintf(out->source, sizeof out->source, "mop doctor %s, %s: medians with all cores at work%s", MOP_VERSION, date,
             r->disturbed ? "; other programs worked too" : "");
    for (int t = 0; t < RATE_TYPES; t++) {
        out->achieved[RATE_MATRIX][t] = share(r, h, "matrix", types[t]);
        out->achieved[RATE_ATTENTION][t] = share(r, h, "attention", types[t]);
        out->achieved[RATE_ELEMENTWISE][t] = share(r, h, "elementwise", types[t]);
    }
    out->peak[FP32] = peak(r, h, "fma_fp32");
    out->peak[FP64] = peak(r, h, "fma_fp64");
    double dot = peak(r, h, "dot_bf16");
    out->peak[BF16] = dot > 0 ? dot : out->peak[FP32];
    out->bytes_per_s = triad && adamw ? (triad->median + adamw->median) / 2 / h->threads : 0;
    out->memory_bytes = h->available / h->threads;
    out->link.latency_s = small ? small->median : 20e-6; /* one processor: no wire was measured, and no run needs one */
    out->link.bytes_per_s = large ? large->median : out->bytes_per_s;
    out->network = out->link;
    return check(r, h, out);
}

/* With signals held back: nothing half-written stays beside the file. */
bool machine_write(const Machine *m, const Report *r, const char *path, Error *e) {
    json_t *file = machine_json(m);
    sigset_t all, before;
    MUST(json_object_set_new(file, "measured", report_json(r)) == 0);
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    bool ok = json_write_file(file, path, e);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    json_decref(file);
    return ok;
}

/* ---- Against another machine ------------------------------------------------------------------------ */

static void compare_row(const char *key, double measured, double file) {
    char a[32], b[32];
    if (measured <= 0 || file <= 0) return;
    printf("  %-46s %14s %14s %7.3g\n", key, figure_text(key, measured, a, sizeof a),
           figure_text(key, file, b, sizeof b), measured / file);
}

/* Both as files have them, number by number; what is new in one of them is left out. */
static void compare_numbers(const json_t *measured, const json_t *file) {
    const char *section, *key;
    json_t *inner, *value;
    json_object_foreach((json_t *)(uintptr_t)measured, section, inner) {
        if (!json_is_object(inner) || strcmp(section, "nodes") == 0) continue;
        json_object_foreach(inner, key, value) {
            char name[KEY_BYTES];
            snprintf(name, sizeof name, "%s.%s", section, key);
            if (strcmp(key, "memory_bytes") != 0)
                compare_row(name, json_number_value(value),
                            json_number_value(json_object_get(json_object_get(file, section), key)));
        }
    }
}

bool machine_compare(const Machine *m, const Report *r, const char *name, Error *e) {
    Machine other;
    if (!machine_open(name, &other, e)) return false;
    json_t *mine = machine_json(m), *theirs = machine_json(&other);
    printf("\nmeasured against %s, \"%s\"\n  %-46s %14s %14s %7s\n", name, other.name, "", "measured", "file", "ratio");
    compare_numbers(mine, theirs);
    json_decref(mine);
    json_decref(theirs);
    json_t *kept = machine_is_file(name) ? machine_measured(name, e) : NULL;
    for (int i = 0; kept && i < r->figures; i++) {
        json_t *one = json_object_get(kept, r->figure[i].key);
        compare_row(r->figure[i].key, r->figure[i].median, json_number_value(json_object_get(one, "median")));
    }
    json_decref(kept);
    return e->code == EXIT_DONE;
}
