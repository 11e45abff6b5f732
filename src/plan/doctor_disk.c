/* A directory's disk: one file is written and read without the page cache, and a small write is made to last. The
 * file has no name from the start (O_TMPFILE; elsewhere its name is taken away at once), so that nothing is left
 * however this ends. */
#define _GNU_SOURCE
#include "plan/doctor_parts.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { BLOCK = 4 << 20, BLOCKS = 48, SYNCS = 12, PAGE = 4096 };
static const double SECONDS_MOST = 4; /* of writing, and of reading */

/* With all signals held back while the file has a name. */
static int open_named(const char *directory, int flags) {
    char path[4096];
    sigset_t all, before;
    if ((size_t)snprintf(path, sizeof path, "%s/mop-doctor-XXXXXX", directory) >= sizeof path) return -1;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    int fd = mkostemp(path, flags);
    if (fd >= 0) unlink(path);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return fd;
}

static int open_unnamed(const char *directory, int flags) {
    int fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC | flags, 0600);
    return fd >= 0 || errno == ENOENT || errno == EACCES || errno == ENOTDIR ? fd
                                                                             : open_named(directory, O_CLOEXEC | flags);
}

typedef ssize_t (*Transfer)(int fd, char *data, off_t at);

static ssize_t write_block(int fd, char *data, off_t at) {
    return pwrite(fd, data, BLOCK, at);
}

static ssize_t read_block(int fd, char *data, off_t at) {
    return pread(fd, data, BLOCK, at);
}

/* Blocks 0, 1, ... `most`, until time is up; how many went through. */
static int transfer(Report *r, const char *key, int fd, char *data, int most, Transfer one) {
    Samples s = samples_begin();
    double start = seconds_now();
    int n = 0;
    while (n < most && (n < 2 || seconds_now() - start < SECONDS_MOST)) {
        double before = seconds_now();
        if (one(fd, data, (off_t)n * BLOCK) != BLOCK) break;
        samples_add(&s, BLOCK / (seconds_now() - before));
        n++;
    }
    if (n > 0) report_samples(r, key, &s, true); /* the disk's time, not the processors' */
    return n;
}

static bool time_syncs(Report *r, int fd, char *data) {
    Samples s = samples_begin();
    for (int i = 0; i < SYNCS; i++) {
        double before = seconds_now();
        if (pwrite(fd, data, PAGE, (off_t)i * PAGE) != PAGE || fsync(fd) != 0) return false;
        samples_add(&s, seconds_now() - before);
    }
    report_samples(r, "disk_fsync_s", &s, true);
    return true;
}

static void measure(Report *r, const char *directory, int fd, char *data) {
    int written = transfer(r, "disk_write_bytes_per_s", fd, data, BLOCKS, write_block);
    bool ok = written > 0 && fsync(fd) == 0 &&
              transfer(r, "disk_read_bytes_per_s", fd, data, written, read_block) == written && time_syncs(r, fd, data);
    if (!ok)
        report_broken(
            r,
            "a file in %s cannot be written and read: %s; runs there will fail; choose another directory with --disk",
            directory, strerror(errno));
}

void doctor_disk(Report *r, const char *directory) {
    printf("\ndisk of %s (blocks of 4 MiB, past the page cache)\n", directory);
    struct statvfs s;
    if (statvfs(directory, &s) == 0) {
        double room = (double)s.f_bavail * (double)s.f_frsize;
        printf("  free: %.1f GiB\n", room / (1 << 30));
        if (room < 4.0 * BLOCK * BLOCKS) {
            report_note(
                r, "%s has only %.0f MiB free: its disk was not measured, and checkpoints need more; free some space",
                directory, room / (1 << 20));
            return;
        }
    }
    int fd = open_unnamed(directory, O_DIRECT);
    if (fd < 0 && (errno == EINVAL || errno == EOPNOTSUPP)) {
        fd = open_unnamed(directory, 0);
        if (fd >= 0) report_note(r, "%s cannot be read past the page cache: its rates are those of memory", directory);
    }
    void *data = NULL;
    if (fd < 0) {
        report_broken(r, "no file can be made in %s: %s; runs there will fail; choose another directory with --disk",
                      directory, strerror(errno));
        return;
    }
    MUST(posix_memalign(&data, PAGE, BLOCK) == 0);
    uint64_t x = 1;
    for (size_t i = 0; i < BLOCK / sizeof x; i++)
        ((uint64_t *)data)[i] = x = x * 6364136223846793005u + 1442695040888963407u; /* nothing to compress */
    measure(r, directory, fd, data);
    free(data);
    close(fd);
}
