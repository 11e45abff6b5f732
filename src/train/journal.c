/* The journal. Numbers are printed with all their digits, so that two runs can be compared to the bit. */
#include "train/journal.h"

#include "base/file.h"
#include "base/json.h"
#include "train/settings.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct Journal {
    char run[4096];
    const Config *config;
    int64_t vocabulary;
    bool router_z; /* is trained with */
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
            return fail(e, EXIT_IO, "the run directory %s cannot be made: %s; choose another with --run", path,
                        strerror(errno));
        if (!was) return true;
        *p = was;
    }
}

/* The lock is the directory's own and goes with the process. Where a file system has none, two runs are not told
 * apart. */
static bool lock_directory(const char *run, int *lock, Error *e) {
    if (*lock < 0) *lock = open(run, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*lock < 0)
        return fail(e, EXIT_IO, "the run directory %s cannot be opened: %s; choose another with --run", run,
                    strerror(errno));
    if (flock(*lock, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) return true;
    return fail(e, EXIT_USAGE, "another process is training in %s; let it end, or choose another directory with --run",
                run);
}

bool journal_claim(const char *run, const Config *c, int *lock, Error *e) {
    bool absent = access(run, F_OK) != 0 && errno == ENOENT;
    return absent || (lock_directory(run, lock, e) && settings_resumable(run, c, e));
}

bool journal_prepare(const char *run, int *lock, Error *e) {
    return make_directories(run, e) && lock_directory(run, lock, e);
}

/* Keeps the whole lines whose "step" is at most `step`. */
static bool drop_later(const char *path, int64_t step, Error *e) {
    size_t bytes = 0, kept = 0;
    bool there;
    if (!file_exists(path, &there, e)) return false;
    if (!there) return true;
    char *text = file_read(path, (size_t)1 << 32, &bytes, e);
    if (!text) return false;
    for (char *line = text; line < text + bytes;) {
        char *end = memchr(line, '\n', bytes - (size_t)(line - text));
        if (!end) break; /* the killed run's unfinished line */
        json_error_t ignored;
        json_t *j = json_loadb(line, (size_t)(end - line), 0, &ignored);
        int64_t at = json_integer_value(json_object_get(j, "step"));
        json_decref(j);
        if (!json_had_memory(path, e)) { /* then the line may be whole */
            free(text);
            return false;
        }
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
    j->terminal = isatty(STDOUT_FILENO) && wire_mpi_world() == 0; /* mpirun gives rank 0 a terminal, whoever reads it */
    j->started = seconds_now();
    j->metrics = open_lines(run, "metrics.jsonl", step, e);
    j->events = j->metrics ? open_lines(run, "events.jsonl", INT64_MAX, e) : NULL; /* what happened stays */
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
    return fail(
        e, EXIT_IO,
        "metrics.jsonl or events.jsonl in %s cannot be written: %s; free some space and run the same command again",
        j->run, strerror(errno));
}

/* ---- For people -------------------------------------------------------------------------------- */

static void end_line(Journal *j) {
    if (j->line_open) printf("\n");
    j->line_open = false;
}

/* Numbers to take in at a glance. */
Shown parameters_shown(int64_t n) {
    Shown s;
    if (n < 1000000)
        snprintf(s.text, sizeof s.text, "%.1f thousand", (double)n / 1e3);
    else if (n < 1000000000)
        snprintf(s.text, sizeof s.text, "%.1f million", (double)n / 1e6);
    else
        snprintf(s.text, sizeof s.text, "%.1f billion", (double)n / 1e9);
    return s;
}

static Shown duration_shown(double seconds) {
    Shown s;
    if (seconds < 100)
        snprintf(s.text, sizeof s.text, "%.0f s", seconds);
    else if (seconds < 6000)
        snprintf(s.text, sizeof s.text, "%.0f min", seconds / 60);
    else
        snprintf(s.text, sizeof s.text, "%.1f h", seconds / 3600);
    return s;
}

/* The groups that divide something: "; dense 8, expert 4". */
static void print_mixture(const Mesh *m) {
    static const AxisName shown[] = {AXIS_DENSE,  AXIS_ULYSSES,      AXIS_RING,
                                     AXIS_EXPERT, AXIS_EXPERT_SHARD, AXIS_VOCABULARY};
    const char *between = "; ";
    for (size_t i = 0; i < COUNT(shown); i++) {
        const Axis *a = &m->axis[shown[i]];
        if (a->size == 1) continue;
        printf("%s%s %d", between, axis_name(a->name), a->size);
        between = ", ";
    }
}

void journal_banner(Journal *j, const Session *s, const Run *r, int64_t step) {
    const Config *c = j->config;
    double plan = 0;
    j->vocabulary = s->spec.vocabulary;
    j->router_z = (c->loss_router_z >= 0 ? c->loss_router_z : s->spec.router_z) > 0;
    for (int a = 0; a < ARENA_COUNT; a++) plan += (double)s->price[r->comm.mesh.rank].bytes[a];
    printf("mop    %s: %s parameters, %s active a token; %s\n", s->spec.family->model_type,
           parameters_shown(spec_parameters(&s->spec)).text, parameters_shown(spec_active_parameters(&s->spec)).text,
           type_name(c->compute_type));
    printf("ranks  %d x %lld thread%s", s->world, (long long)c->compute_threads, c->compute_threads == 1 ? "" : "s");
    print_mixture(&r->comm.mesh);
    printf("; memory at most %.1f MiB a rank\n", plan / (1 << 20));
    printf("data   %lld tokens; %lld a step (%lld x %lld)\n", s->tokens ? (long long)tokens_info(s->tokens).tokens : 0,
           (long long)(c->train_sequences * c->train_sequence_length), (long long)c->train_sequences,
           (long long)c->train_sequence_length);
    if (step < c->train_steps) printf("steps  %lld to %lld\n", (long long)step + 1, (long long)c->train_steps);
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
    printf("%sstep %lld/%lld  loss %.4f  balance %.3f  norm %.3f  lr %.2e  %.0f tokens/s  %s left%s",
           j->terminal ? "\r\033[K" : "", (long long)r->step + 1, (long long)j->config->train_steps, r->loss,
           r->balance, r->norm, r->learning_rate, rate, duration_shown(left).text, j->terminal ? "" : "\n");
    j->line_open = j->terminal;
    fflush(stdout);
}

void journal_text(const char *text, size_t bytes, bool terminal) {
    for (size_t i = 0; i < bytes; i++) {
        unsigned char c = (unsigned char)text[i];
        bool control = (c < 0x20 && c != '\n' && c != '\t') || c == 0x7f;
        putchar(terminal && control ? '?' : c);
    }
}

void journal_sample(Journal *j, int64_t step, const char *text, size_t bytes) {
    end_line(j);
    printf("--- sample after step %lld ---\n", (long long)step);
    journal_text(text, bytes, true);
    printf("\n---\n");
    fflush(stdout);
}

/* ---- For scripts ------------------------------------------------------------------------------- */

static void print_number(FILE *f, const char *key, double x) {
    if (isfinite(x))
        fprintf(f, "\"%s\": %.17g, ", key, x);
    else
        fprintf(f, "\"%s\": null, ", key); /* JSON has no NaN */
}

static void print_times(FILE *f, const Times *t) {
    for (int i = 0; i < TIME_KINDS; i++) {
        fprintf(f, "\"%s\": {", time_name((TimeKind)i));
        for (int k = 0; k < COMPONENT_COUNT; k++)
            fprintf(f, "%s\"%s\": %.9f", k ? ", " : "", component_name((Component)k), t->by[i][k]);
        fprintf(f, "}, ");
    }
}

void journal_step(Journal *j, const StepResult *r, double seconds, size_t memory) {
    double rate = seconds > 0 ? (double)r->trained / seconds : 0;
    j->steps++;
    j->seconds += seconds;
    fprintf(j->metrics, "{\"step\": %lld, ", (long long)r->step + 1);
    print_number(j->metrics, "loss", r->loss);
    print_number(j->metrics, "balance_loss", r->balance);
    if (j->router_z) print_number(j->metrics, "router_z_loss", r->router_z);
    print_number(j->metrics, "grad_norm", r->norm);
    print_number(j->metrics, "lr", r->learning_rate);
    fprintf(j->metrics, "\"tokens\": %lld, \"seconds\": %.6f, \"tokens_per_s\": %.1f, \"memory_bytes\": %zu, ",
            (long long)r->trained, seconds, rate, memory);
    print_times(j->metrics, &r->times);
    fprintf(j->metrics, "\"expert_load_max_over_mean\": %.4f}\n", r->load);
    fflush(j->metrics);
    progress(j, r, rate);
}

/* `code` 0: none. */
static void write_event(Journal *j, const char *event, int64_t step, int code, const char *text) {
    json_t *o = json_pack("{s:s, s:I, s:I, s:s}", "event", event, "step", (json_int_t)step, "time",
                          (json_int_t)time(NULL), "text", text);
    if (o && code) json_object_set_new(o, "code", json_integer(code));
    char *line = o ? json_dumps(o, 0) : NULL;
    fprintf(j->events, "%s\n", line ? line : "{\"event\": \"unprintable\"}");
    fflush(j->events);
    free(line);
    json_decref(o);
}

void journal_error(Journal *j, int64_t step, const Error *e) {
    end_line(j);
    write_event(j, "error", step, (int)e->code, e->text);
}

void journal_event(Journal *j, const char *event, int64_t step, const char *format, ...) {
    char text[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    write_event(j, event, step, 0, text);
    end_line(j);
    printf("%s: %s\n", event, text);
    fflush(stdout);
}
