/* Every call that reaches the disk, counted, logged, and made to fail in turn. The test is linked with --wrap for each
 * (tests/CMakeLists.txt), so that the library's own calls come here; those of other libraries do not. */
#ifndef MOP_FILE_CALLS_H
#define MOP_FILE_CALLS_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef enum { CALL_OTHER, CALL_WRITE, CALL_SYNC, CALL_RENAME } CallKind;
typedef struct {
    CallKind kind;
    char path[512], to[512]; /* `to` of a rename */
} FileCall;

enum { FILE_CALLS = 20000, FILE_NUMBERS = 1024 };
static struct {
    pthread_mutex_t lock;
    bool counting;
    int count, fails, why; /* the call number `fails` (from 1; 0: none) fails with errno `why` */
    void (*instead)(void); /* or this happens before it; NULL: it fails */
    FileCall log[FILE_CALLS];
    int logged;
    char open[FILE_NUMBERS][512]; /* paths of descriptors */
} calls = {.lock = PTHREAD_MUTEX_INITIALIZER};

static inline void calls_begin(int fails, int why) {
    calls.count = calls.logged = 0;
    calls.fails = fails;
    calls.why = why;
    calls.counting = true;
}

/* Whether the call that was to fail came. */
static inline bool calls_end(void) {
    calls.counting = false;
    return calls.fails > 0 && calls.count >= calls.fails;
}

static inline bool call_fails(void) {
    pthread_mutex_lock(&calls.lock);
    bool now = calls.counting && ++calls.count == calls.fails;
    pthread_mutex_unlock(&calls.lock);
    if (now && calls.instead) {
        calls.instead();
        return false;
    }
    if (now) errno = calls.why;
    return now;
}

/* What was written to a file under its temporary name was written to it. */
static inline void call_log(CallKind kind, const char *path, const char *to) {
    pthread_mutex_lock(&calls.lock);
    if (calls.counting && calls.logged < FILE_CALLS) {
        for (int i = 0; kind == CALL_RENAME && i < calls.logged; i++) {
            if (strcmp(calls.log[i].path, path) == 0) snprintf(calls.log[i].path, sizeof calls.log[i].path, "%s", to);
        }
        FileCall *c = &calls.log[calls.logged++];
        c->kind = kind;
        snprintf(c->path, sizeof c->path, "%s", path);
        snprintf(c->to, sizeof c->to, "%s", to);
    }
    pthread_mutex_unlock(&calls.lock);
}

static inline const char *call_path(int fd) {
    return fd >= 0 && fd < FILE_NUMBERS ? calls.open[fd] : "";
}

/* ---- The calls -------------------------------------------------------------------------------- */

int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    mode_t mode = flags & O_CREAT ? va_arg(list, mode_t) : 0;
    va_end(list);
    if (call_fails()) return -1;
    int fd = __real_open(path, flags, mode);
    if (fd >= 0 && fd < FILE_NUMBERS) snprintf(calls.open[fd], sizeof calls.open[fd], "%s", path);
    return fd;
}

/* `WRAPPED(type failure name (parameters) (arguments) kind path)`: a call that fails in its turn and is logged when it
 * was made. */
#define WRAPPED(type, failure, name, parameters, arguments, kind, path, to)                                            \
    type __real_##name parameters;                                                                                     \
    type __wrap_##name parameters {                                                                                    \
        if (call_fails()) return failure;                                                                              \
        type result = __real_##name arguments;                                                                         \
        if (result != (type)failure && kind != CALL_OTHER) call_log(kind, path, to);                                   \
        return result;                                                                                                 \
    }

WRAPPED(DIR *, NULL, opendir, (const char *path), (path), CALL_OTHER, "", "")
WRAPPED(DIR *, NULL, fdopendir, (int fd), (fd), CALL_OTHER, "", "")
WRAPPED(struct dirent *, NULL, readdir, (DIR * d), (d), CALL_OTHER, "", "")
WRAPPED(int, -1, stat, (const char *path, struct stat *s), (path, s), CALL_OTHER, "", "")
WRAPPED(int, -1, lstat, (const char *path, struct stat *s), (path, s), CALL_OTHER, "", "")
WRAPPED(int, -1, fstat, (int fd, struct stat *s), (fd, s), CALL_OTHER, "", "")
WRAPPED(int, -1, access, (const char *path, int mode), (path, mode), CALL_OTHER, "", "")
WRAPPED(ssize_t, -1, read, (int fd, void *to, size_t bytes), (fd, to, bytes), CALL_OTHER, "", "")
WRAPPED(ssize_t, -1, pread, (int fd, void *to, size_t bytes, off_t at), (fd, to, bytes, at), CALL_OTHER, "", "")
WRAPPED(ssize_t, -1, write, (int fd, const void *from, size_t n), (fd, from, n), CALL_WRITE, call_path(fd), "")
WRAPPED(ssize_t, -1, pwrite, (int fd, const void *from, size_t n, off_t at), (fd, from, n, at), CALL_WRITE,
        call_path(fd), "")
WRAPPED(int, -1, fallocate, (int fd, int mode, off_t at, off_t n), (fd, mode, at, n), CALL_WRITE, call_path(fd), "")
WRAPPED(int, -1, rename, (const char *from, const char *to), (from, to), CALL_RENAME, from, to)
WRAPPED(int, -1, renameat2, (int a, const char *from, int b, const char *to, unsigned flags), (a, from, b, to, flags),
        CALL_RENAME, from, to)
WRAPPED(int, -1, mkdir, (const char *path, mode_t mode), (path, mode), CALL_OTHER, "", "")
WRAPPED(int, -1, unlink, (const char *path), (path), CALL_OTHER, "", "")
WRAPPED(int, -1, unlinkat, (int fd, const char *name, int flags), (fd, name, flags), CALL_OTHER, "", "")
WRAPPED(int, -1, rmdir, (const char *path), (path), CALL_OTHER, "", "")

/* No test takes the power away, so the disk itself is spared. */
int __wrap_fsync(int fd) {
    if (call_fails()) return -1;
    call_log(CALL_SYNC, call_path(fd), "");
    return 0;
}
int __wrap_fdatasync(int fd) {
    return __wrap_fsync(fd);
}

#endif
