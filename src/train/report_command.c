/* `mop report RUN`: where the time of a run goes, from its metrics.jsonl alone, so that it may still be training.
 * Memory is bounded for any number of steps: of a long run every second, fourth, ... step is kept for the medians;
 * sums and extremes are of all. */
#include "base/json.h"
#include "train/progress.h"
#include "train/train.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS_KEPT = 4096, LINE_BYTES = 1 << 16 };
static const double LARGEST = 1e15; /* of any number in a line, so that sums are finite */

enum { TOTAL = COMPONENT_COUNT, COLUMNS };

/* A step. Of each kind of time the components, and their total. */
typedef struct {
    double seconds, rate;
    double host; /* neither computed nor exposed */
    double by[TIME_KINDS][COLUMNS];
} Row;

typedef struct {
    double value; /* NAN: null */
    bool trained; /* some position was: without any there is no loss */
} Loss;

typedef struct {
    Path path;
    int64_t lines, first_step, last_step;
    Loss first_loss, last_loss;
    double seconds, memory; /* sum without the first step; the largest, bytes */
    Row first;
    Row *row; /* [ROWS_KEPT], without the first step */
    int64_t rows, stride;
} Summary;

/* ---- Reading ---------------------------------------------------------------------------------- */

static bool missing(const char *key, const char *where, Error *e) {
    return fail(e, EXIT_DATA,
                "there is no \"%s\"; %s; give a run of this version of mop, or take the line out if it is damaged", key,
                where);
}

/* NAN when it is null, which only `may_be_null` allows. */
static bool read_number(const json_t *o, const char *key, bool may_be_null, double *out, const char *where, Error *e) {
    if (!json_double(o, key, NAN, out, where, e)) return false;
    if (isnan(*out)) return (may_be_null && json_object_get(o, key)) || missing(key, where, e);
    return fabs(*out) < LARGEST ||
           fail(e, EXIT_DATA, "\"%s\" is %g, which no run writes; %s; correct the file", key, *out, where);
}

static bool read_times(const json_t *o, Row *row, const char *where, Error *e) {
    for (int i = 0; i < TIME_KINDS; i++) {
        const char *key = time_name((TimeKind)i);
        const json_t *one = json_object_get(o, key);
        if (!one) return missing(key, where, e);
        row->by[i][TOTAL] = 0;
        for (int k = 0; k < COMPONENT_COUNT; k++) {
            if (!read_number(one, component_name((Component)k), false, &row->by[i][k], where, e)) return false;
            row->by[i][TOTAL] += row->by[i][k];
        }
    }
    row->host = fmax(0, row->seconds - row->by[TIME_COMPUTE][TOTAL] - row->by[TIME_EXPOSED][TOTAL]);
    return true;
}

static void keep_row(Summary *s, const Row *row) {
    int64_t index = s->lines - 2; /* of the steps behind the first */
    s->seconds += row->seconds;
    if (index % s->stride != 0) return;
    if (s->rows == ROWS_KEPT) {
        for (int64_t i = 0; i < ROWS_KEPT / 2; i++) s->row[i] = s->row[2 * i];
        s->rows = ROWS_KEPT / 2;
        s->stride *= 2;
        if (index % s->stride != 0) return;
    }
    s->row[s->rows++] = *row;
}

static bool read_line(Summary *s, const char *line, Error *e) {
    char where[4300];
    Row row;
    double memory;
    int64_t tokens;
    Loss loss;
    snprintf(where, sizeof where, "%s, line %lld", s->path.text, (long long)++s->lines);
    json_t *o = json_read_text(line, strlen(line), where, e);
    bool ok = o && json_int(o, "step", 0, 1, INT64_MAX, &s->last_step, where, e) &&
              read_number(o, "loss", true, &loss.value, where, e) &&
              json_int(o, "tokens", 1, 0, INT64_MAX, &tokens, where, e) &&
              read_number(o, "seconds", false, &row.seconds, where, e) &&
              read_number(o, "tokens_per_s", false, &row.rate, where, e) &&
              read_number(o, "memory_bytes", false, &memory, where, e) && read_times(o, &row, where, e);
    json_decref(o);
    if (!ok) return false;
    loss.trained = tokens > 0;
    s->last_loss = loss;
    s->memory = fmax(s->memory, memory);
    if (s->lines > 1) {
        keep_row(s, &row);
        return true;
    }
    s->first_step = s->last_step;
    s->first_loss = loss;
    s->first = row;
    return true;
}

/* A last line without an end is being written: it counts next time. */
static bool read_lines(Summary *s, FILE *f, Error *e) {
    char line[LINE_BYTES];
    while (fgets(line, sizeof line, f)) {
        size_t length = strlen(line);
        bool whole = length > 0 && line[length - 1] == '\n';
        if (!whole && feof(f)) break;
        if (!whole)
            return fail(e, EXIT_DATA, "the line is no object of metrics; %s, line %lld; check that it is a run's",
                        s->path.text, (long long)s->lines + 1);
        if (!read_line(s, line, e)) return false;
    }
    if (ferror(f))
        return fail(e, EXIT_IO, "cannot read: %s; %s; check the disk and the path", strerror(errno), s->path.text);
    return s->lines > 0 ||
           fail(e, EXIT_DATA, "no step is written there yet; %s; wait for the run's first step", s->path.text);
}

static bool read_metrics(Summary *s, const char *run, Error *e) {
    s->path = path_join(run, "metrics.jsonl");
    FILE *f = fopen(s->path.text, "r");
    if (!f)
        return fail(e, errno == ENOENT || errno == ENOTDIR ? EXIT_DATA : EXIT_IO,
                    "%s: cannot open the metrics of a run: %s; name a run's directory, as in runs/tiny", s->path.text,
                    strerror(errno));
    bool ok = read_lines(s, f, e);
    fclose(f);
    if (!ok || s->rows > 0) return ok;
    s->row[s->rows++] = s->first; /* a run of one step has only that */
    s->seconds = s->first.seconds;
    return true;
}

/* ---- Medians ---------------------------------------------------------------------------------- */

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of one number of the rows: offsetof(Row, seconds). */
static double median(const Summary *s, size_t field) {
    double sorted[ROWS_KEPT];
    for (int64_t i = 0; i < s->rows; i++) sorted[i] = *(const double *)((const char *)&s->row[i] + field);
    qsort(sorted, (size_t)s->rows, sizeof *sorted, ascending);
    return (sorted[(s->rows - 1) / 2] + sorted[s->rows / 2]) / 2;
}

static double median_time(const Summary *s, int kind, int column) {
    return median(s, offsetof(Row, by) + (size_t)(kind * COLUMNS + column) * sizeof(double));
}

static double mean_seconds(const Summary *s) {
    return s->seconds / (double)max64(1, s->lines - 1);
}

static double share(const Summary *s, double seconds) {
    double step = median(s, offsetof(Row, seconds));
    return step > 0 ? seconds / step : 0;
}

/* ---- For people -------------------------------------------------------------------------------- */

static Shown shown(Loss l) {
    return l.trained ? metric_shown(l.value, 4) : (Shown){"-"};
}

static void print_column(const Summary *s, int column) {
    double compute = median_time(s, TIME_COMPUTE, column), network = median_time(s, TIME_NETWORK, column),
           exposed = median_time(s, TIME_EXPOSED, column);
    if (column != TOTAL && compute + network + exposed == 0) return;
    printf("%-12s %11.6f %11.6f %11.6f %8.1f %%\n", column == TOTAL ? "total" : component_name((Component)column),
           compute, network, exposed, 100 * share(s, exposed));
}

static void print_text(const Summary *s, const char *run) {
    double host = median(s, offsetof(Row, host));
    printf("run     %s\n", run);
    printf("steps   %lld, %lld to %lld%s\n", (long long)s->lines, (long long)s->first_step, (long long)s->last_step,
           s->lines > 1 ? "; the first is left out of all times" : "");
    printf("step    %.6f s, mean %.6f\n", median(s, offsetof(Row, seconds)), mean_seconds(s));
    printf("tokens  %.1f a second\n", median(s, offsetof(Row, rate)));
    printf("loss    %s -> %s\n", shown(s->first_loss).text, shown(s->last_loss).text);
    printf("memory  %.1f MiB at most, rank 0\n\n", s->memory / (1 << 20));
    printf("%-12s %11s %11s %11s %10s   a step: mean over ranks, median over ", "component", "compute s", "network s",
           "exposed s", "exposed");
    if (s->stride > 1)
        printf("every %lldth step\n", (long long)s->stride);
    else
        printf("steps\n");
    for (int k = 0; k < COLUMNS; k++) print_column(s, k);
    printf("%-12s %11.6f %35.1f %%   neither computed nor exposed\n", "host", host, 100 * share(s, host));
}

/* ---- For scripts ------------------------------------------------------------------------------- */

static json_t *column_json(const Summary *s, int column) {
    json_t *o = json_object();
    for (int i = 0; i < TIME_KINDS; i++)
        json_object_set_new(o, time_name((TimeKind)i), json_real(median_time(s, i, column)));
    json_object_set_new(o, "exposed_share", json_real(share(s, median_time(s, TIME_EXPOSED, column))));
    return o;
}

static json_t *loss_json(Loss l) {
    return isnan(l.value) || !l.trained ? json_null() : json_real(l.value);
}

/* A path may be any bytes, a JSON string may not. */
static json_t *name_json(const char *path) {
    json_t *text = json_string(path);
    return text ? text : json_null();
}

static void print_json(const Summary *s, const char *run) {
    json_t *components = json_object();
    for (int k = 0; k < COMPONENT_COUNT; k++)
        json_object_set_new(components, component_name((Component)k), column_json(s, k));
    json_t *o =
        json_pack("{s:o, s:I, s:I, s:I, s:f, s:f, s:f, s:o, s:o, s:I, s:o, s:o, s:f}", "run", name_json(run), "steps",
                  (json_int_t)s->lines, "first_step", (json_int_t)s->first_step, "last_step", (json_int_t)s->last_step,
                  "seconds_median", median(s, offsetof(Row, seconds)), "seconds_mean", mean_seconds(s), "tokens_per_s",
                  median(s, offsetof(Row, rate)), "loss_first", loss_json(s->first_loss), "loss_last",
                  loss_json(s->last_loss), "memory_bytes", (json_int_t)s->memory, "components", components, "total",
                  column_json(s, TOTAL), "host_s", median(s, offsetof(Row, host)));
    MUST(o);
    json_dumpf(o, stdout, JSON_REAL_PRECISION(12));
    printf("\n");
    json_decref(o);
}

/* ---- The command ------------------------------------------------------------------------------ */

static bool read_words(int argc, char **argv, const char **run, bool *json, Error *e) {
    *run = NULL;
    *json = false;
    for (int i = 1; i < argc; i++) {
        bool flag = argv[i][0] == '-';
        if (flag && strcmp(argv[i], "--json") == 0)
            *json = true;
        else if (flag || *run)
            return fail(e, EXIT_USAGE, "%s is not understood; use mop report RUN [--json]", text_shown(argv[i]).text);
        else
            *run = argv[i];
    }
    return *run || fail(e, EXIT_USAGE, "report needs a run's directory; use mop report RUN [--json]");
}

int report_command(int argc, char **argv) {
    Error e = {0};
    const char *run;
    bool json;
    Summary *s = calloc(1, sizeof *s);
    MUST(s);
    s->row = calloc(ROWS_KEPT, sizeof *s->row);
    s->stride = 1;
    MUST(s->row);
    if (read_words(argc, argv, &run, &json, &e) && read_metrics(s, run, &e)) {
        if (json)
            print_json(s, run);
        else
            print_text(s, run);
    }
    free(s->row);
    free(s);
    return e.code == EXIT_DONE ? EXIT_DONE : error_print(&e);
}
