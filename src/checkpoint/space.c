/* Room on the disk. The answer may change at once, so it is asked before each save too; what is found out here is only
 * told earlier and in better words than a write would. */
#define _GNU_SOURCE
#include "checkpoint/space.h"
#include "checkpoint/checkpoints.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { SMALL_FILES_BYTES = 1 << 20 };

int64_t checkpoint_bytes(const Checkpoints *c) {
    int64_t bytes = 0;
    for (int f = 0; f < c->placement.file_count; f++) bytes += c->placement.files[f].bytes;
    return bytes;
}

int64_t checkpoints_at_once(int64_t existing, int64_t ahead, int64_t keep) {
    if (ahead <= 0) return 0;
    if (keep == 0) return 1;
    return max64(1, min64(ahead, keep + 1 - existing)); /* a save comes before its deletions */
}

/* Of the disk that RUN/ckpt is on, or will be. */
static bool ask(const Checkpoints *c, struct statvfs *disk, Error *e) {
    Path parent = snapshot_parent(c->run.text);
    if (statvfs(parent.text, disk) == 0) return true;
    if (errno == ENOENT && statvfs(c->run.text, disk) == 0) return true;
    *disk = (struct statvfs){0};
    return errno == ENOSYS || errno == EOVERFLOW || /* it cannot say */
           fail(e, EXIT_IO, "cannot ask how much room there is: %s; %s; check the disk", strerror(errno), parent.text);
}

bool checkpoints_fit(const Checkpoints *c, int64_t count, Error *e) {
    struct statvfs disk;
    if (!ask(c, &disk, e)) return false;
    double blocks = (double)(geteuid() == 0 ? disk.f_bfree : disk.f_bavail); /* some are root's alone */
    double need = (double)count * (double)(checkpoint_bytes(c) + SMALL_FILES_BYTES),
           have = blocks * (double)disk.f_frsize;
    if (disk.f_blocks == 0 || need <= have) return true;
    return fail(
        e, EXIT_IO,
        "the disk has no room for %lld more checkpoint%s: %.1f MB are needed and %.1f MB free; %s; free some space, "
        "lower checkpoint.keep, or choose another disk with --run",
        (long long)count, count == 1 ? "" : "s", need / 1e6, have / 1e6, c->run.text);
}

bool checkpoints_will_fit(const Checkpoints *c, int64_t ahead, int64_t keep, Error *e) {
    int64_t *steps, existing;
    if (!snapshots_list(snapshot_parent(c->run.text).text, &steps, &existing, e)) return false;
    free(steps);
    return checkpoints_fit(c, checkpoints_at_once(existing, ahead, keep), e);
}
