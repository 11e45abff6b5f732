/* Names, lists and removal of checkpoint directories. A rename is what makes one appear and disappear, because
 * a rename happens whole; deleting is of files directly inside one directory, never deeper, never through
 * links. */
#define _GNU_SOURCE
#include "checkpoint/snapshot.h"
#include "base/file.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *advice = "check the directory, its rights and the disk";

SnapshotName snapshot_name(int64_t step) {
    SnapshotName n;
    snprintf(n.text, sizeof n.text, "step-%08lld", (long long)step);
    return n;
}

SnapshotName snapshot_temporary(int64_t step, const char *kind, uint64_t random) {
    SnapshotName n;
    snprintf(n.text, sizeof n.text, "step-%08lld.%s-%016llx", (long long)step, kind, (unsigned long long)random);
    return n;
}

uint64_t snapshot_random(void) {
    uint64_t bits;
    MUST(getrandom(&bits, sizeof bits, 0) == sizeof bits);
    return bits;
}

Path snapshot_parent(const char *run) {
    return path_join(run, "ckpt");
}

/* -1: not exactly the name of a checkpoint. */
static int64_t step_of(const char *name) {
    char *end;
    if (strncmp(name, "step-", 5) != 0 || strspn(name + 5, "0123456789") < 8) return -1;
    errno = 0;
    long long step = strtoll(name + 5, &end, 10);
    return errno == 0 && strcmp(snapshot_name(step).text, name) == 0 ? step : -1;
}

static bool is_leftover(const char *name) {
    return strncmp(name, "step-", 5) == 0 && (strstr(name, ".tmp-") || strstr(name, ".old-"));
}

/* ---- Listing ---------------------------------------------------------------------------------- */

static int newest_first(const void *x, const void *y) {
    int64_t a = *(const int64_t *)x, b = *(const int64_t *)y;
    return (a < b) - (a > b);
}

static bool append(int64_t **steps, int64_t *count, int64_t step) {
    if ((*count & (*count - 1)) == 0) { /* full at every power of two */
        int64_t *larger = realloc(*steps, (size_t)(*count ? 2 * *count : 1) * sizeof **steps);
        if (!larger) return false;
        *steps = larger;
    }
    (*steps)[(*count)++] = step;
    return true;
}

static bool open_directory(const char *path, DIR **d, Error *e) {
    *d = opendir(path);
    if (*d || errno == ENOENT) return true;
    return fail(e, file_code(errno), "cannot list checkpoints: %s; %s; %s", strerror(errno), path, advice);
}

static bool list(DIR *d, const char *parent, int64_t **steps, int64_t *count, Error *e) {
    const char *name;
    do {
        if (!directory_next(d, parent, &name, e)) return false;
        int64_t step = name ? step_of(name) : -1;
        if (step >= 0 && !append(steps, count, step))
            return fail(e, EXIT_MEMORY, "out of memory while listing checkpoints; %s; free some memory", parent);
    } while (name);
    return true;
}

bool snapshots_list(const char *parent, int64_t **steps, int64_t *count, Error *e) {
    DIR *d;
    *steps = NULL;
    *count = 0;
    if (!open_directory(parent, &d, e)) return false;
    if (!d) return true;
    bool done = list(d, parent, steps, count, e);
    closedir(d);
    if (!done) {
        free(*steps);
        *steps = NULL;
        *count = 0;
    }
    if (*count) qsort(*steps, (size_t)*count, sizeof **steps, newest_first);
    return done;
}

/* ---- Removing --------------------------------------------------------------------------------- */

static bool remove_files(DIR *d, const char *path, Error *e) {
    const char *name;
    for (;;) {
        if (!directory_next(d, path, &name, e)) return false;
        if (!name) return true;
        if (unlinkat(dirfd(d), name, 0) != 0 && errno != ENOENT)
            return fail(e, EXIT_IO, "cannot delete a checkpoint's file: %s; %s/%s; %s", strerror(errno), path,
                        text_shown(name).text, advice);
    }
}

bool directory_remove(const char *path, Error *e) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (!d) {
        int why = errno;
        if (fd >= 0) close(fd);
        return (fd < 0 && why == ENOENT) ||
               fail(e, EXIT_IO, "cannot delete a checkpoint: %s; %s; %s", strerror(why), path, advice);
    }
    bool done = remove_files(d, path, e);
    closedir(d);
    if (!done) return false;
    if (rmdir(path) == 0 || errno == ENOENT) return true;
    return fail(e, EXIT_IO, "cannot delete a checkpoint: %s; %s; %s", strerror(errno), path, advice);
}

bool snapshot_remove(const char *parent, const char *name, Error *e) {
    if (is_leftover(name)) return directory_remove(path_join(parent, name).text, e);
    Path from = path_join(parent, name),
         to = path_join(parent, snapshot_temporary(step_of(name), "old", snapshot_random()).text);
    if (rename(from.text, to.text) != 0) {
        if (errno == ENOENT) return true;
        return fail(e, EXIT_IO, "cannot move a checkpoint aside: %s; %s; %s", strerror(errno), from.text, advice);
    }
    return directory_remove(to.text, e);
}

bool snapshots_clean(const char *parent, Error *e) {
    DIR *d;
    if (!open_directory(parent, &d, e)) return false;
    if (!d) return true;
    const char *name;
    bool done;
    do {
        done = directory_next(d, parent, &name, e) && (!name || !is_leftover(name) || snapshot_remove(parent, name, e));
    } while (done && name);
    closedir(d);
    return done;
}

bool snapshots_keep(const char *parent, int64_t last, FILE *f, Error *e) {
    int64_t *steps, count;
    if (last == 0) return true;
    if (!snapshots_list(parent, &steps, &count, e)) return false;
    bool done = true;
    for (int64_t i = last; done && i < count; i++) {
        SnapshotName name = snapshot_name(steps[i]);
        done = snapshot_remove(parent, name.text, e);
        if (done && f) fprintf(f, "removed %s/%s\n", parent, name.text);
    }
    free(steps);
    return done;
}

/* ---- Directories ------------------------------------------------------------------------------ */

bool directory_sync(const char *path, Error *e) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool done = fd >= 0 && fsync(fd) == 0;
    int why = errno;
    if (fd >= 0) close(fd);
    return done || fail(e, EXIT_IO, "cannot sync a directory: %s; %s; %s", strerror(why), path, advice);
}

static bool make_one(const char *path, Error *e) {
    FileKind kind;
    if (mkdir(path, 0777) == 0) return file_sync_parent(path, e);
    if (errno != EEXIST) return fail(e, EXIT_IO, "cannot make a directory: %s; %s; %s", strerror(errno), path, advice);
    if (!file_kind(path, &kind, e)) return false;
    return kind == KIND_DIRECTORY || fail(e, EXIT_IO, "not a directory; %s; move it out of the way", path);
}

bool directory_make(const char *path, Error *e) {
    Path p;
    snprintf(p.text, sizeof p.text, "%s", path);
    for (char *slash = p.text;;) {
        slash = strchr(slash + 1, '/');
        if (slash) *slash = 0;
        if (!make_one(p.text, e)) return false;
        if (!slash) return true;
        *slash = '/';
    }
}
