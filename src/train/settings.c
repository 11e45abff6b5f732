/* A comparison with what the file says, because the file has the settings that the newest steps were made with: it is
 * written before the first of them. Comments, because config.yaml stays a configuration that anybody may train with. */
#include "train/settings.h"

#include "base/file.h"
#include "checkpoint/snapshot.h"

#include <stdlib.h>
#include <string.h>

/* config.yaml's text, for the caller to free; NULL where there is none, and with an Error where it cannot be read. */
static char *read_text(const char *run, size_t *bytes, Error *e) {
    Path path = path_join(run, "config.yaml");
    bool there;
    if (file_exists(path.text, &there, e) && there) return file_read(path.text, (size_t)1 << 20, bytes, e);
    return NULL;
}

static bool read_before(Config *before, const char *run, const char *text, size_t bytes, Error *e) {
    return config_read_text(before, text, bytes, path_join(run, "config.yaml").text, NULL, 0, e);
}

/* Without a checkpoint there is nothing that other settings could disagree with. */
bool settings_resumable(const char *run, const Config *c, Error *e) {
    int64_t *steps, checkpoints;
    size_t bytes;
    if (!snapshots_list(snapshot_parent(run).text, &steps, &checkpoints, e)) return false;
    free(steps);
    char *text = checkpoints > 0 ? read_text(run, &bytes, e) : NULL;
    if (!text) return e->code == EXIT_DONE;
    Config before;
    bool ok = read_before(&before, run, text, bytes, e);
    free(text);
    if (!ok) return false;
    ok = config_resumable(c, &before, e);
    config_close(&before);
    return ok;
}

/* ---- What changed ------------------------------------------------------------------------------ */

typedef struct {
    Journal *journal;
    int64_t step; /* that the resume begins after */
    Text lines;   /* what was told, oldest first */
} History;

/* Those of the file; `text` is taken apart. */
static void keep_told(History *h, char *text) {
    for (char *line = text, *end; line; line = end) {
        long long step;
        int used = 0;
        end = strchr(line, '\n');
        if (end) *end++ = 0;
        if (sscanf(line, "# after step %lld: %n", &step, &used) != 1 || used == 0) continue;
        text_add(&h->lines, "# after step %lld: %s\n", (long long)min64(step, h->step), line + used);
    }
}

/* A list of files may be long, and the file has to stay a configuration: at most so many bytes of a value, whole
 * characters. */
static int bytes_told(const char *value) {
    enum { MOST = 200 };
    int n = (int)strnlen(value, MOST);
    while (n == MOST && n > 0 && ((unsigned char)value[n] & 0xc0) == 0x80) n--;
    return n;
}

static void tell(void *context, const char *key, const char *before, const char *now) {
    History *h = context;
    char change[512];
    int was = bytes_told(before), is = bytes_told(now);
    snprintf(change, sizeof change, "%s %.*s%s -> %.*s%s", key, was, before, before[was] ? "..." : "", is, now,
             now[is] ? "..." : "");
    journal_event(h->journal, "changed", h->step, "%s", change);
    text_add(&h->lines, "# after step %lld: %s\n", (long long)h->step, change);
}

/* Not settings of this file: each checkpoint has its own in its config.json. */
static void tell_model(Journal *j, const ResumeReport *report) {
    for (int i = 0; i < report->changes.count; i++) {
        const SpecChange *c = &report->changes.change[i];
        if (c->field->use == SPEC_COEFFICIENT)
            journal_event(j, "changed", report->state.step, "the model's %s %s -> %s", c->field->name, c->before.text,
                          c->now.text);
    }
}

static bool without_settings(const Config *c, const ResumeReport *report, Error *e) {
    if (config_hash(c) == report->state.config_hash) return true;
    return fail(e, EXIT_USAGE,
                "a setting that may not change is another one than when the run began, and config.yaml, "
                "which would "
                "say which, is missing; %s; give the settings of then, or begin a new run with --run",
                report->directory);
}

static bool tell_changes(History *h, const char *run, const Config *c, const ResumeReport *report, Error *e) {
    size_t bytes;
    char *text = read_text(run, &bytes, e);
    if (!text) return e->code == EXIT_DONE && without_settings(c, report, e);
    Config before;
    bool ok = read_before(&before, run, text, bytes, e);
    if (ok) {
        keep_told(h, text);
        config_changes(c, &before, tell, h);
        config_close(&before);
    }
    free(text);
    return ok;
}

/* ---- Writing ----------------------------------------------------------------------------------- */

/* The newest lines, as many as leave the file a configuration. */
static void print_told(const Text *lines, FILE *f) {
    enum { MOST = 1 << 18 };
    const char *from = lines->text;
    if (!from) return;
    while (lines->text + lines->bytes - from > MOST) from = strchr(from, '\n') + 1;
    fprintf(f, "\n# What was changed when the run was resumed, as events.jsonl has it:\n%s", from);
}

static bool write_settings(const char *run, const Config *c, const Text *lines, Error *e) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *f = open_memstream(&text, &bytes);
    MUST(f);
    config_write(c, f);
    print_told(lines, f);
    MUST(fclose(f) == 0);
    bool ok = file_write(path_join(run, "config.yaml").text, text, bytes, e);
    free(text);
    return ok;
}

bool settings_record(Journal *j, const char *run, const Config *c, const ResumeReport *report, Error *e) {
    History h = {.journal = j, .step = report->state.step};
    bool ok = !report->found || tell_changes(&h, run, c, report, e);
    MUST(!h.lines.failed);
    if (ok && report->found) tell_model(j, report);
    ok = ok && journal_flush(j, e) && write_settings(run, c, &h.lines, e);
    free(h.lines.text);
    return ok;
}
