/* The journal. Numbers are printed with all their digits, so that two runs can be compared to the bit. */
#include "train/journal.h"

#include "base/file.h"
#include "base/json.h"
#include "train/progress.h"
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
    const char *run;
    const Config *config;
    int64_t vocabulary;
    bool router_z; /* is trained with */
    FILE *metrics, *events;
    Progress progress;
};

/* ---- The run directory ------------------------------------------------------------------------- */

enum { LONGEST_NAME = 256 }; /* of what is joined to the run directory's path, checkpoints' files included */

/* Everything below the run directory must have a path that fits. */
static bool path_fits(const char *run, Error *e) {
    return strlen(run) + LONGEST_NAME < sizeof(Path) ||
           fail(e, EXIT_USAGE,
                "the path of the run directory has %zu bytes, more than the %zu that are built; choose "
                "a shorter one with --run",
                strlen(run), sizeof(Path) - LONGEST_NAME);
}

/* Makes the directory and those above it; false: see errno. `kept`: bytes of the path that were there already. */
static bool make_directories(const char *path, size_t *kept) {
    Path part;
    snprintf(part.text, sizeof part.text, "%s", path);
    for (char *p = part.text + 1;; p++) {
        if (*p && *p != '/') continue;
        char was = *p;
        *p = 0;
        bool named = p[-1] != '/', made = named && mkdir(part.text, 0777) == 0; /* of "a//b/" only a and a//b */
        if (named && !made && errno != EEXIST) return false;
        if (named && !made) *kept = strlen(part.text);
        if (!was) return true;
        *p = was;
    }
}

/* The lock is the directory's own and goes with the process. Where a file system has none, two runs are not told
 * apart. */
static bool lock_directory(const char *run, int *lock, Error *e) {
    *lock = open(run, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*lock < 0)
        return errno == ENOENT ||
               fail(e, EXIT_IO, "the run directory %s cannot be opened: %s; choose another with --run", run,
                    strerror(errno));
    if (flock(*lock, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) return true;
    close(*lock);
    *lock = -1;
    return fail(e, EXIT_USAGE, "another process is training in %s; let it end, or choose another directory with --run",
                run);
}

/* A start that failed may have removed its directory between our opening and our locking it. */
static bool is_there(int lock, const char *run) {
    struct stat locked, named;
    return lock >= 0 && fstat(lock, &locked) == 0 && stat(run, &named) == 0 && locked.st_dev == named.st_dev &&
           locked.st_ino == named.st_ino;
}

bool journal_take(Claim *claim, const Config *c, Error *e) {
    enum { TRIES = 100 };
    const char *run = claim->run;
    if (claim->lock >= 0) return true;
    for (int i = 0; i < TRIES && !is_there(claim->lock, run); i++) {
        if (claim->lock >= 0) close(claim->lock);
        claim->lock = -1;
        claim->kept = 0;
        bool made = make_directories(run, &claim->kept);
        if (!made && errno != ENOENT) break;
        if (made && !lock_directory(run, &claim->lock, e)) return false;
    }
    if (is_there(claim->lock, run)) return settings_resumable(run, c, e);
    return fail(e, EXIT_IO, "the run directory %s cannot be made: %s; choose another with --run", run, strerror(errno));
}

bool journal_claim(Claim *claim, const char *run, const Config *c, Error *e) {
    *claim = (Claim){.run = run, .lock = -1, .kept = strlen(run)};
    if (!path_fits(run, e)) return false;
    bool absent = access(run, F_OK) != 0 && errno == ENOENT;
    return absent || journal_take(claim, c, e);
}

void journal_release(Claim *claim) {
    Path path;
    if (claim->lock < 0) return;
    snprintf(path.text, sizeof path.text, "%s", claim->run);
    for (size_t length = strlen(path.text); length > claim->kept; length--) {
        if (path.text[length] && path.text[length] != '/') continue;
        path.text[length] = 0;
        if (rmdir(path.text) != 0 && errno != ENOENT) break; /* something is in it, and stays */
    }
    close(claim->lock);
    claim->lock = -1;
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
    Path path = path_join(run, name);
    if (!drop_later(path.text, step, e)) return NULL;
    FILE *f = fopen(path.text, "a");
    if (!f) fail(e, EXIT_IO, "%s cannot be written: %s; check the directory's permissions", path.text, strerror(errno));
    return f;
}

Journal *journal_open(const Session *s, const char *run, int64_t step, Error *e) {
    const Config *c = s->config;
    Journal *j = calloc(1, sizeof *j);
    MUST(j);
    *j = (Journal){.run = run, .config = c, .vocabulary = s->spec.vocabulary};
    j->router_z = (c->loss_router_z >= 0 ? c->loss_router_z : s->spec.router_z) > 0;
    /* mpirun gives rank 0 a terminal, whoever reads it */
    j->progress = progress_begin(isatty(STDOUT_FILENO) && wire_mpi_world() == 0);
    j->metrics = open_lines(run, "metrics.jsonl", step, e);
    j->events = j->metrics ? open_lines(run, "events.jsonl", INT64_MAX, e) : NULL; /* what happened stays */
    if (j->events) return j;
    if (j->metrics) fclose(j->metrics);
    free(j);
    return NULL;
}

static bool cannot_write(const Journal *j, Error *e) {
    return fail(
        e, EXIT_IO,
        "metrics.jsonl or events.jsonl in %s cannot be written: %s; free some space and run the same command again",
        j->run, strerror(errno));
}

bool journal_flush(Journal *j, Error *e) {
    fflush(stdout);
    if (fflush(j->metrics) == 0 && fflush(j->events) == 0 && !ferror(j->metrics) && !ferror(j->events)) return true;
    return cannot_write(j, e);
}

bool journal_sync(Journal *j, Error *e) {
    return journal_flush(j, e) &&
           ((fsync(fileno(j->metrics)) == 0 && fsync(fileno(j->events)) == 0) || cannot_write(j, e));
}

bool journal_close(Journal *j, Error *e) {
    if (!j) return true;
    progress_end_line(&j->progress);
    bool ok = journal_flush(j, e);
    bool closed = fclose(j->metrics) == 0, also = fclose(j->events) == 0;
    if (ok && !(closed && also)) ok = cannot_write(j, e);
    free(j);
    return ok;
}

/* ---- For people -------------------------------------------------------------------------------- */

void journal_text(const char *text, size_t bytes, bool terminal) {
    for (size_t i = 0; i < bytes; i++) {
        unsigned char c = (unsigned char)text[i];
        bool control = (c < 0x20 && c != '\n' && c != '\t') || c == 0x7f;
        putchar(terminal && control ? '?' : c);
    }
}

void journal_sample(Journal *j, int64_t step, const char *text, size_t bytes) {
    progress_end_line(&j->progress);
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
    fprintf(j->metrics, "{\"step\": %lld, ", (long long)r->step + 1);
    print_number(j->metrics, "loss", r->trained > 0 ? r->loss : NAN); /* the mean of nothing is no number */
    print_number(j->metrics, "balance_loss", r->balance);
    if (j->router_z) print_number(j->metrics, "router_z_loss", r->router_z);
    print_number(j->metrics, "grad_norm", r->norm);
    print_number(j->metrics, "lr", r->learning_rate);
    fprintf(j->metrics, "\"tokens\": %lld, \"seconds\": %.6f, \"tokens_per_s\": %.1f, \"memory_bytes\": %zu, ",
            (long long)r->trained, seconds, seconds > 0 ? (double)r->trained / seconds : 0, memory);
    print_times(j->metrics, &r->times);
    fprintf(j->metrics, "\"expert_load_max_over_mean\": %.4f}\n", r->load);
    fflush(j->metrics);
    progress_step(&j->progress, j->config, j->vocabulary, r, seconds);
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
    progress_end_line(&j->progress);
    write_event(j, "error", step, (int)e->code, e->text);
}

void journal_event(Journal *j, const char *event, int64_t step, const char *format, ...) {
    char text[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    write_event(j, event, step, 0, text);
    progress_end_line(&j->progress);
    printf("%s: %s\n", event, text);
    fflush(stdout);
}

void journal_done(Journal *j, int64_t step, const char *checkpoint) {
    char summary[400];
    progress_summary(&j->progress, summary, sizeof summary);
    journal_event(j, "done", step, "%s", summary);
    printf("saved      %s\n", checkpoint);
    printf("next       mop generate %s --prompt TEXT\n", j->run);
    printf("           mop evaluate %s --set data.path=FILE\n", j->run);
    printf("           mop report %s\n", j->run);
    fflush(stdout);
}
