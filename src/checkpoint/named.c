/* The checkpoint that a path means. A run means its newest checkpoint; an older one is taken only when the newest is
 * damaged, and is named then. A disk that fails, a limit or a lack of memory says nothing about a checkpoint: such an
 * error ends the command. */
#define _POSIX_C_SOURCE 200809L
#include "base/file.h"
#include "checkpoint/checkpoints.h"
#include "checkpoint/source.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LISTS = 100 }; /* as often is a run listed whose checkpoints are removed meanwhile */

/* ---- What a path is --------------------------------------------------------------------------- */

static bool is_model(const char *path, bool *yes, Error *e) {
    bool config, manifest;
    if (!file_exists(path_join(path, "config.json").text, &config, e) || !manifest_exists(path, &manifest, e))
        return false;
    *yes = config || manifest;
    return true;
}

/* The first run among the entries of a directory, for a hint; "" if there is none, or none can be seen. */
static Shown run_within(const char *path) {
    Shown found = {""};
    Error ignored = {0};
    const char *name = NULL;
    DIR *d = opendir(path);
    while (d && !*found.text && directory_next(d, path, &name, &ignored) && name) {
        bool run = false;
        Path each = path_join(path, name);
        if (file_exists(snapshot_parent(each.text).text, &run, &ignored) && run) found = text_shown(name);
    }
    if (d) closedir(d);
    return found;
}

bool checkpoint_none(const char *path, Error *e) {
    FileKind kind;
    if (!file_kind(path, &kind, e)) return false;
    if (kind == KIND_NONE) return fail(e, EXIT_DATA, "no checkpoint is there; %s; check the path", path);
    if (kind != KIND_DIRECTORY) {
        return fail(e, EXIT_DATA,
                    "a model's directory is needed, this is a file; %s; name the directory that it is in, "
                    "with its config.json",
                    path);
    }
    Shown run = run_within(path);
    if (*run.text)
        return fail(e, EXIT_DATA, "this directory holds runs; %s; name one of them, as in %s/%s", path, path, run.text);
    return fail(e, EXIT_DATA, "no checkpoint is there; %s; name a checkpoint's, a run's or a model's directory", path);
}

/* ---- The newest that is not damaged ----------------------------------------------------------- */

typedef enum { TAKEN, DAMAGED, GONE, FAILED } Trial;

/* Manifest, small files, sizes and headers: what can be told without reading all weights. */
static Trial try_one(const char *directory, Error *e) {
    Source s;
    FileKind kind;
    if (source_open(&s, directory, true, e)) {
        source_close(&s);
        return TAKEN;
    }
    if (e->code != EXIT_DATA || !file_kind(directory, &kind, e)) return FAILED;
    return kind == KIND_NONE ? GONE : DAMAGED;
}

static void pass_over(NamedCheckpoint *n, const Error *damage) {
    if (n->damaged++ == 0) snprintf(n->damage, sizeof n->damage, "%.1000s", damage->text);
}

/* The newest of the run before step `before`. GONE: list again. DAMAGED: none is left. */
static Trial try_run(NamedCheckpoint *n, int64_t before, int64_t *count, Error *e) {
    int64_t *steps;
    Path parent = snapshot_parent(n->run.text);
    if (!snapshots_list(parent.text, &steps, count, e)) return FAILED;
    Trial trial = DAMAGED;
    for (int64_t i = 0; i < *count && trial == DAMAGED; i++) {
        Error own = {0};
        if (steps[i] >= before) continue;
        n->step = steps[i];
        n->directory = path_join(parent.text, snapshot_name(steps[i]).text);
        trial = try_one(n->directory.text, &own);
        if (trial == FAILED) *e = own;
        if (trial == DAMAGED) pass_over(n, &own);
    }
    free(steps);
    return trial;
}

bool checkpoint_named(const char *path, NamedCheckpoint *out, Error *e) {
    FileKind kind;
    bool itself;
    int64_t count = 0;
    *out = (NamedCheckpoint){.damaged = 0};
    if (!file_kind(path, &kind, e)) return false;
    if (kind != KIND_DIRECTORY) return checkpoint_none(path, e);
    if (!is_model(path, &itself, e)) return false;
    snprintf(itself ? out->directory.text : out->run.text, sizeof out->run.text, "%s", path);
    if (itself) return true;
    Trial trial = GONE;
    for (int i = 0; trial == GONE && i < LISTS; i++) {
        out->damaged = 0;
        trial = try_run(out, INT64_MAX, &count, e);
    }
    if (trial == TAKEN) return true;
    if (trial == FAILED) return false;
    if (count == 0) return checkpoint_none(path, e);
    if (trial == GONE)
        return fail(e, EXIT_DATA, "its checkpoints are removed faster than they can be read; %s; name one of them",
                    path);
    return fail(e, EXIT_DATA, "all %lld checkpoints are damaged, the newest so: %s", (long long)out->damaged,
                out->damage);
}

bool checkpoint_older(NamedCheckpoint *n, const Error *damage, Error *e) {
    int64_t count;
    Trial trial = DAMAGED;
    *e = (Error){0};
    if (*n->run.text) {
        pass_over(n, damage);
        trial = try_run(n, n->step, &count, e);
    }
    if (trial == DAMAGED || trial == GONE) *e = *damage;
    return trial == TAKEN;
}

void checkpoint_say_passed_over(const NamedCheckpoint *n) {
    if (n->damaged == 0) return;
    fprintf(stderr, "mop: warning: %lld newer checkpoint%s passed over (%s); %s is taken instead\n",
            (long long)n->damaged, n->damaged == 1 ? " is" : "s are", n->damage, n->directory.text);
}

/* ---- Removed meanwhile ------------------------------------------------------------------------ */

bool checkpoint_gone(const char *directory, Error *e) {
    FileKind kind;
    if (e->code != EXIT_DATA || !file_kind(directory, &kind, &(Error){0}) || kind != KIND_NONE) return false;
    *e = (Error){0};
    fail(e, EXIT_DATA,
         "the checkpoint was removed while it was read, as a run that trains removes its older ones "
         "(checkpoint.keep); %s; run the same command again, or name a newer one",
         directory);
    return true;
}
