/* What is at a path, and whole small files. Reading grows its buffer by what has really arrived, never by a size that somebody states; writing
 * goes through a temporary name, because only rename() is atomic. */
#define _POSIX_C_SOURCE 200809L
#include "base/file.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- What is there ---------------------------------------------------------------------------- */

ExitCode file_code(int why) {
    if (why == ENOENT || why == ENOTDIR || why == EISDIR) return EXIT_DATA;
    return why == ENOMEM ? EXIT_MEMORY : EXIT_IO;
}

bool file_kind(const char *path, FileKind *kind, Error *e) {
    struct stat s;
    *kind = KIND_NONE;
    if (!*path) return fail(e, EXIT_DATA, "a path is longer than any may be; use shorter names of directories");
    if (stat(path, &s) == 0) {
        *kind = S_ISREG(s.st_mode) ? KIND_FILE : S_ISDIR(s.st_mode) ? KIND_DIRECTORY : KIND_OTHER;
        return true;
    }
    if (file_code(errno) != EXIT_DATA) {
        return fail(e, file_code(errno), "cannot tell what is there: %s; %s; check the disk, the path and its rights",
                    strerror(errno), path);
    }
    if (lstat(path, &s) != 0) return true; /* nothing, not even a link */
    return fail(e, EXIT_DATA, "a link leads nowhere; %s; restore what it leads to, or remove the link", path);
}

bool file_exists(const char *path, bool *exists, Error *e) {
    FileKind kind;
    bool known = file_kind(path, &kind, e);
    *exists = known && kind != KIND_NONE;
    return known;
}

bool directory_next(DIR *d, const char *path, const char **name, Error *e) {
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(d);
        *name = entry ? entry->d_name : NULL;
        if (!entry && errno != 0) {
            return fail(e, file_code(errno) == EXIT_MEMORY ? EXIT_MEMORY : EXIT_IO,
                        "cannot list a directory: %s; %s; check the disk and run the same command again",
                        strerror(errno), path);
        }
        if (!entry || (strcmp(*name, ".") != 0 && strcmp(*name, "..") != 0)) return true;
    }
}

/* ---- Reading ---------------------------------------------------------------------------------- */

static ssize_t read_some(int fd, char *to, size_t bytes) {
    ssize_t n;
    do n = read(fd, to, bytes);
    while (n < 0 && errno == EINTR);
    return n;
}

/* Reads to the end, at most one byte beyond the limit: that byte tells that the file is too large. */
static char *read_up_to(int fd, const char *path, size_t limit, size_t *bytes, Error *e) {
    size_t room = (limit < 65535 ? limit : 65535) + 1, n = 0; /* room for one byte more, and later for the NUL */
    char *text = malloc(room + 1);
    for (;;) {
        if (!text) {
            fail(e, EXIT_MEMORY, "%s: out of memory while reading; free some memory", path);
            return NULL;
        }
        ssize_t got = read_some(fd, text + n, room - n);
        if (got < 0) {
            fail(e, EXIT_IO, "%s: cannot read: %s; check the disk and the path", path, strerror(errno));
            break;
        }
        if (got == 0) {
            text[n] = 0;
            *bytes = n;
            return text;
        }
        n += (size_t)got;
        if (n > limit) {
            fail(e, EXIT_DATA, "%s: file is larger than the %zu bytes allowed; check that it is the right file", path,
                 limit);
            break;
        }
        if (n < room) continue;
        room = room < limit / 2 ? 2 * room : limit + 1;
        char *larger = realloc(text, room + 1);
        if (!larger) free(text);
        text = larger;
    }
    free(text);
    return NULL;
}

char *file_read(const char *path, size_t limit, size_t *bytes, Error *e) {
    MUST(limit < SIZE_MAX - 2);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        fail(e, file_code(errno),
             "%s: cannot open: %s; check the path (relative ones start at the file that names them, or at the current "
             "directory)",
             path, strerror(errno));
        return NULL;
    }
    struct stat s;
    char *text = NULL;
    if (fstat(fd, &s) != 0) {
        fail(e, EXIT_IO, "%s: cannot read: %s; check the disk", path, strerror(errno));
    } else if (S_ISDIR(s.st_mode)) {
        fail(e, EXIT_DATA, "%s: a file is needed, this is a directory; name a file in it", path);
    } else {
        text = read_up_to(fd, path, limit, bytes, e);
    }
    close(fd);
    return text;
}

/* ---- Writing ---------------------------------------------------------------------------------- */

static bool write_all(int fd, const char *data, size_t bytes) {
    while (bytes > 0) {
        ssize_t n = write(fd, data, bytes);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return false;
        data += n;
        bytes -= (size_t)n;
    }
    return true;
}

/* A name beside `path` that nobody else has, from the process and the clock; mkstemp would take away the group's
 * rights. */
static int open_beside(const char *path, char *name, size_t name_bytes) {
    for (;;) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        snprintf(name, name_bytes, "%s.tmp-%ld-%lx%08lx", path, (long)getpid(), (unsigned long)now.tv_sec,
                 (unsigned long)now.tv_nsec);
        int fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd >= 0 || errno != EEXIST) return fd;
    }
}

static char *directory_of(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
}

static bool sync_directory(const char *directory) {
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return false;
    bool done = fsync(fd) == 0;
    int why = errno;
    done = close(fd) == 0 && done;
    errno = why;
    return done;
}

bool file_sync_parent(const char *path, Error *e) {
    char *directory = directory_of(path);
    if (!directory) return fail(e, EXIT_MEMORY, "out of memory while writing; %s; free some memory", path);
    bool done = sync_directory(directory) ||
                fail(e, EXIT_IO, "cannot sync the directory: %s; %s; check the directory, its rights and the disk",
                     strerror(errno), directory);
    free(directory);
    return done;
}

bool file_write(const char *path, const void *data, size_t bytes, Error *e) {
    const char *hint = "check the directory, its rights and the space left";
    size_t name_bytes = strlen(path) + 64;
    char *name = malloc(name_bytes);
    if (!name) return fail(e, EXIT_MEMORY, "out of memory while writing; %s; free some memory", path);
    int fd = open_beside(path, name, name_bytes);
    if (fd < 0) {
        fail(e, EXIT_IO, "cannot create the file: %s; %s; %s", strerror(errno), path, hint);
        free(name);
        return false;
    }
    bool written = write_all(fd, data, bytes) && fsync(fd) == 0;
    int why = errno;
    if (close(fd) != 0 && written) {
        written = false;
        why = errno;
    }
    bool renamed = written && rename(name, path) == 0;
    if (written && !renamed) why = errno;
    if (!renamed) {
        fail(e, EXIT_IO, "cannot write the file: %s; %s; %s", strerror(why), path, hint);
        unlink(name);
    }
    free(name);
    return renamed && file_sync_parent(path, e);
}
