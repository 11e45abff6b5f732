/* The journal. Numbers are printed with all their digits, so that two runs can be compared to the bit. */
#include "train/journal.h"

#include "base/file.h"
#include "base/json.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct Journal {
    char run[4096];
    const Config *config;
    int64_t vocabulary;
    FILE *metrics, *events;
    bool terminal, line_open; /* line_open: a progress line waits to be overwritten */
    double started, seconds;  /* training's start; of all steps so far in this process */
    int64_t steps;            /* in this process */
    double printed;           /* when the last line was */
};

/* ---- The run directory ------------------------------------------------------------------------- */

static bool make_directories(const char *path, Error *e) {
    char part[4096];
    snprintf(part, sizeof part, "%s", path);
    for (char *p = part + 1;; p++) {
        if (*p && *p != '/') continue;
        char was = *p;
        *p = 0;
        if (mkdir(part, 0777) != 0 && errno != EEXIST)
            return fail(e, EXIT_IO, "the run directory %s cannot be made: %s; choose another with --run", path, strerror(errno));
        if (!was) return true;
        *p = was;
    }
}

static bool same_settings(const char *path, const Config *c, Error *e) {
    if (access(path, F_OK) != 0) return true;
    Config before;
    if (!config_read(&before, path, NULL, 0, e)) return false;
    bool ok = config_resumable(c, &before, e);
    config_close(&before);
    return ok;
}

bool journal_prepare(const char *run, const Config *c, Error *e) {
    char path[4200], *text = NULL;
    size_t bytes = 0;
    snprintf(path, sizeof path, "%s/config.yaml", run);
    if (!same_settings(path, c, e) || !make_directories(run, e)) return false;
    FILE *f = open_memstream(&text, &bytes);
    MUST(f);
    config_write(c, f);
    fclose(f);
    bool ok = file_write(path, text, bytes, e);
    free(text);
    return ok;
}

/* Keeps the lines whose "step" is below `step`. */
static bool drop_later(const char *path, int64_t step, Error *e) {
    size_t bytes = 0, kept = 0;
    if (access(path, F_OK) != 0) return true;
    char *text = file_read(path, (size_t)1 << 32, &bytes, e);
    if (!text) return false;
    for (char *line = text; line < text + bytes;) {
        char *end = memchr(line, '\n', bytes - (size_t)(line - text));
        if (!end) break; /* the killed run's unfinished line */
        json_error_t ignored;
        json_t *j = json_loadb(line, (size_t)(end - line), 0, &ignored);
        int64_t at = json_integer_value(json_object_get(j, "step"));
        json_decref(j);
        if (j && at <= step) {
            memmove(text + kept, line, (size_t)(end - line) + 1);
            kept += (size_t)(end - line) + 1;
        }
        line = end + 1;
    }
    bool ok = kept == bytes || file_write(path, text, kept, e);
    free(text);
    return ok;
}

static FILE *open_lines(const char *run, const char *name, int64_t step, Error *e) {
    char path[4200];
    snprintf(path, sizeof path, "%s/%s", run, name);
    if (!drop_later(path, step, e)) return NULL;
    FILE *f = fopen(path, "a");
    if (!f) fail(e, EXIT_IO, "%s cannot be written: %s; check the directory's permissions", path, strerror(errno));
    return f;
}

Journal *journal_open(const char *run, const Config *c, int64_t step, Error *e) {
    Journal *j = calloc(1, sizeof *j);
    MUST(j);
    snprintf(j->run, sizeof j->run, "%s", run);
    j->config = c;
    j->terminal = isatty(STDOUT_FILENO);
    j->started = seconds_now();
    j->metrics = open_lines(run, "metrics.jsonl", step, e);
    j->events = j->metrics ? open_lines(run, "events.jsonl", step, e) : NULL;
    if (j->events) return j;
    journal_close(j);
    return NULL;
}

void journal_close(Journal *j) {
    if (!j) return;
    if (j->line_open) printf("\n");
    if (j->metrics) fclose(j->metrics);
    if (j->events) fclose(j->events);
    free(j);
}

bool journal_flush(Journal *j, Error *e) {
    fflush(stdout);
    if (fflush(j->metrics) == 0 && fflush(j->events) == 0 && !ferror(j->metrics) && !ferror(j->events)) return true;
    return fail(e, EXIT_IO, "metrics.jsonl or events.jsonl in %s cannot be written: %s; free some space and run the same command again", j->run, strerror(errno));
}

/* ---- For people -------------------------------------------------------------------------------- */

static void end_line(Journal *j) {
    if (j->line_open) printf("\n");
    j->line_open = false;
}

void journal_banner(Journal *j, const Session *s, const Run *r, int64_t step) {
    const Config *c = j->config;
    double plan = 0;
    j->vocabulary = s->spec.vocabulary;
    for (int a = 0; a < ARENA_COUNT; a++) plan += (double)s->price[r->comm.mesh.rank].bytes[a];
    printf("mop    %s: %.1f M parameters, %.1f M active a token; %s\n", s->spec.family->model_type, (double)spec_parameters(&s->spec) / 1e6,
           (double)spec_active_parameters(&s->spec) / 1e6, type_name(c->compute_type));
    printf("ranks  %d x %lld thread%s; dense over %lld, experts over %lld; memory at most %.1f MiB a rank\n", s->world, (long long)c->compute_threads,
           c->compute_threads == 1 ? "" : "s", (long long)c->mixture_dense, (long long)c->mixture_expert, plan / (1 << 20));
    printf("data   %lld tokens; %lld a step (%lld x %lld); steps %lld to %lld\n", s->tokens ? (long long)tokens_info(s->tokens).tokens : 0,
           (long long)(c->train_sequences * c->train_sequence_length), (long long)c->train_sequences, (long long)c->train_sequence_length,
           (long long)step + 1, (long long)c->train_steps);
    double seconds = s->price[r->comm.mesh.rank].seconds * (double)(c->train_steps - step);
    printf("time   about %.0f s for %lld steps, as planned for an AVX-512 core a rank\n", seconds, (long long)(c->train_steps - step));
    printf("run    %s\n", j->run);
    fflush(stdout);
}

/* On a terminal one line is rewritten; elsewhere a line at first, about every 5 seconds, and at the end. */
static void progress(Journal *j, const StepResult *r, double rate) {
    double now = seconds_now(), left = (double)(j->config->train_steps - r->step - 1) * j->seconds / (double)j->steps;
    bool last = r->step + 1 == j->config->train_steps, due = j->steps <= 1 || last || now - j->printed > 5;
    if (!j->terminal && !due) return;
    if (j->terminal && !last && j->steps > 1 && now - j->printed < 0.1) return;
    j->printed = now;
    if (r->step == 0) printf("initial loss %.4f, ln(vocabulary) %.4f\n", r->loss, log((double)j->vocabulary));
    printf("%sstep %lld/%lld  loss %.4f  balance %.3f  norm %.3f  lr %.2e  %.0f tokens/s  %ds left%s", j->terminal ? "\r\033[K" : "",
           (long long)r->step + 1, (long long)j->config->train_steps, r->loss, r->balance, r->norm, r->learning_rate, rate, (int)(left + 0.5), j->terminal ? "" : "\n");
    j->line_open = j->terminal;
    fflush(stdout);
}

void journal_sample(Journal *j, int64_t step, const char *text, size_t bytes) {
    end_line(j);
    printf("--- sample after step %lld ---\n%.*s\n---\n", (long long)step, (int)bytes, text);
    fflush(stdout);
}

/* ---- For scripts ------------------------------------------------------------------------------- */

static void print_number(FILE *f, const char *key, double x) {
    if (isfinite(x)) fprintf(f, "\"%s\": %.17g, ", key, x);
    else fprintf(f, "\"%s\": null, ", key); /* JSON has no NaN */
}

void journal_step(Journal *j, const StepResult *r, double seconds, size_t memory) {
    double rate = seconds > 0 ? (double)r->trained / seconds : 0;
    j->steps++;
    j->seconds += seconds;
    fprintf(j->metrics, "{\"step\": %lld, ", (long long)r->step + 1);
    print_number(j->metrics, "loss", r->loss);
    print_number(j->metrics, "balance_loss", r->balance);
    print_number(j->metrics, "router_z_loss", r->router_z);
    print_number(j->metrics, "grad_norm", r->norm);
    print_number(j->metrics, "lr", r->learning_rate);
    fprintf(j->metrics, "\"tokens\": %lld, \"seconds\": %.6f, \"tokens_per_s\": %.1f, \"memory_bytes\": %zu, \"expert_load_max_over_mean\": %.4f}\n",
            (long long)r->trained, seconds, rate, memory, r->load);
    fflush(j->metrics);
    progress(j, r, rate);
}

void journal_event(Journal *j, const char *event, int64_t step, const char *format, ...) {
    char text[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    json_t *o = json_pack("{s:s, s:I, s:f, s:s}", "event", event, "step", (json_int_t)step, "time", (double)time(NULL), "text", text);
    char *line = o ? json_dumps(o, JSON_COMPACT) : NULL;
    fprintf(j->events, "%s\n", line ? line : "{\"event\": \"unprintable\"}");
    fflush(j->events);
    free(line);
    json_decref(o);
    end_line(j);
    printf("%s: %s\n", event, text);
    fflush(stdout);
}
