/* Files at full size before their contents, and writing that does not stop halfway. */
#define _GNU_SOURCE
#include "checkpoint/checkpoints.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

bool write_whole(int fd, const void *data, size_t bytes, int64_t at) {
    for (const char *from = data; bytes > 0;) {
        ssize_t n = pwrite(fd, from, bytes, (off_t)at);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return false;
        from += n;
        at += n;
        bytes -= (size_t)n;
    }
    return true;
}

/* Takes the space where the file system can. */
static bool reserve(int fd, int64_t bytes) {
    if (fallocate(fd, 0, 0, (off_t)bytes) == 0) return true;
    return (errno == EOPNOTSUPP || errno == ENOSYS) && ftruncate(fd, (off_t)bytes) == 0;
}

static bool make(const PlacedFile *f, const char *path, Error *e) {
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    bool done = fd >= 0 && reserve(fd, f->bytes) && write_whole(fd, f->header.text.text, f->header.text.bytes, 0) &&
                fdatasync(fd) == 0;
    if (!done) {
        fail(e, EXIT_IO, "cannot make a file of %lld bytes: %s; %s; free some space or check the disk",
             (long long)f->bytes, strerror(errno), path);
    }
    if (fd >= 0) close(fd);
    return done;
}

bool placed_files_make(const Placement *p, const char *directory, Error *e) {
    for (int f = 0; f < p->file_count; f++) {
        if (!make(&p->files[f], path_join(directory, p->files[f].name).text, e)) return false;
    }
    return true;
}
