/* Limits are read from small files of the kernel. Nobody promises that they are there: on other systems, or with
 * /proc hidden, only the machine's own numbers count. */
#define _DEFAULT_SOURCE
#include "base/limits.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum { FILE_BYTES = 4096, PATH_BYTES = 4096 };

/* "" when there is no such file. */
static void read_small(const char *path, char out[FILE_BYTES]) {
    FILE *f = fopen(path, "r");
    size_t n = f ? fread(out, 1, FILE_BYTES - 1, f) : 0;
    out[n] = 0;
    if (f) fclose(f);
}

double limit_parse(const char *text) {
    if (*text < '0' || *text > '9') return INFINITY;
    return strtod(text, NULL);
}

static double file_limit(const char *path) {
    char text[FILE_BYTES];
    read_small(path, text);
    return limit_parse(text);
}

/* ---- Control groups --------------------------------------------------------------------------- */

/* From the group at `path` up to the root, all of which bind. A container may not see the upper ones, or not even its
 * own path: what cannot be read does not count. */
static double least_upwards(const char *mount, char *path, const char *file) {
    char name[PATH_BYTES];
    double least = INFINITY;
    for (;;) {
        int n = snprintf(name, sizeof name, "%s%s/%s", mount, path, file);
        if (n > 0 && n < (int)sizeof name) least = fmin(least, file_limit(name));
        char *slash = strrchr(path, '/');
        if (!slash) return least;
        *slash = 0;
    }
}

static bool names(const char *list, const char *controller) {
    size_t n = strlen(controller);
    for (const char *at = list; *at; at += strcspn(at, ",") + (at[strcspn(at, ",")] == ','))
        if (strcspn(at, ",") == n && strncmp(at, controller, n) == 0) return true;
    return false;
}

/* A line is number:controllers:path; without controllers it is version 2's. */
static double line_limit(char *line, const char *root, const char *controller, const char *file, const char *old_file) {
    char mount[PATH_BYTES], *list = strchr(line, ':'), *path = list ? strchr(list + 1, ':') : NULL;
    if (!path) return INFINITY;
    *path++ = 0;
    list++;
    if (*path == '/' && !path[1]) *path = 0;
    if (!*list) return least_upwards(root, path, file);
    if (!names(list, controller)) return INFINITY;
    snprintf(mount, sizeof mount, "%s/%s", root, controller);
    return least_upwards(mount, path, old_file);
}

double cgroup_limit(const char *groups, const char *root, const char *controller, const char *file,
                    const char *old_file) {
    char text[FILE_BYTES], *rest = NULL;
    double least = INFINITY;
    snprintf(text, sizeof text, "%s", groups);
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
        least = fmin(least, line_limit(line, root, controller, file, old_file));
    return least;
}

static double own_group(const char *controller, const char *file, const char *old_file) {
    char groups[FILE_BYTES];
    read_small("/proc/self/cgroup", groups);
    return cgroup_limit(groups, "/sys/fs/cgroup", controller, file, old_file);
}

/* ---- The answers ------------------------------------------------------------------------------ */

double memory_limit(void) {
    double physical = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    return fmin(physical, own_group("memory", "memory.max", "memory.limit_in_bytes"));
}

/* The user's own limit does not bind root. */
static double user_processes(void) {
    struct rlimit r;
    bool bound = geteuid() != 0 && getrlimit(RLIMIT_NPROC, &r) == 0 && r.rlim_cur != RLIM_INFINITY;
    return bound ? (double)r.rlim_cur : INFINITY;
}

double threads_limit(void) {
    enum { MAPPINGS = 2 }; /* of a thread: its stack, and the page that guards it */
    double least = fmin(user_processes(), own_group("pids", "pids.max", "pids.max"));
    least = fmin(least, file_limit("/proc/sys/kernel/threads-max"));
    least = fmin(least, file_limit("/proc/sys/kernel/pid_max"));
    return fmin(least, floor(file_limit("/proc/sys/vm/max_map_count") / MAPPINGS));
}
