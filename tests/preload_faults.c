/* Loaded before libc (LD_PRELOAD) by end_to_end tests: the calls named in FAULT_CALL (stat, open, readdir, read) fail with
 * EIO where their path contains FAULT_PATH, as on a disk or a network file system that fails. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static bool fails(const char *call, const char *path) {
    const char *named = getenv("FAULT_CALL"), *part = getenv("FAULT_PATH");
    if (!named || !part || strcmp(named, call) != 0 || !strstr(path, part)) return false;
    errno = EIO;
    return true;
}

static bool fails_open(const char *call, int fd) {
    char link[64], path[4096] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t bytes = readlink(link, path, sizeof path - 1);
    return bytes > 0 && fails(call, path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int stat(const char *restrict path, struct stat *restrict s) {
    return fails("stat", path) ? -1 : NEXT(stat)(path, s);
}

int open(const char *path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    mode_t mode = flags & O_CREAT ? va_arg(list, mode_t) : 0;
    va_end(list);
    return fails("open", path) ? -1 : NEXT(open)(path, flags, mode);
}

struct dirent *readdir(DIR *d) {
    return fails_open("readdir", dirfd(d)) ? NULL : NEXT(readdir)(d);
}

ssize_t read(int fd, void *to, size_t bytes) {
    return fails_open("read", fd) ? -1 : NEXT(read)(fd, to, bytes);
}
