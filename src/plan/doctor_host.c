/* What the machine is, as the system tells: processor, caches, memory and its limits, and what mop was built with.
 * Missing files mean a system that does not say; nothing here can fail. */
#define _GNU_SOURCE
#include "ops/kernels.h"
#include "plan/doctor_parts.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static const double GIB = 1 << 30;

/* The rest of the first line of `path` that begins with `key`, after colon and blanks; false: none. */
static bool line_of(const char *path, const char *key, char *out, size_t bytes) {
    char line[512];
    FILE *f = fopen(path, "r");
    bool found = false;
    while (f && !found && fgets(line, sizeof line, f)) {
        found = strncmp(line, key, strlen(key)) == 0;
        if (!found) continue;
        char *from = line + strlen(key);
        from += strspn(from, " \t:");
        from[strcspn(from, "\n")] = 0;
        snprintf(out, bytes, "%s", from);
    }
    if (f) fclose(f);
    return found;
}

static double number_of(const char *path, const char *key) {
    char text[64];
    return line_of(path, key, text, sizeof text) ? strtod(text, NULL) : 0;
}

/* ---- Processor ---------------------------------------------------------------------------------- */

static int processors_allowed(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : (int)sysconf(_SC_NPROCESSORS_ONLN);
}

static void look_at_processor(Host *h, Report *r) {
    if (!line_of("/proc/cpuinfo", "model name", h->model, sizeof h->model))
        snprintf(h->model, sizeof h->model, "unknown processor");
    int online = (int)sysconf(_SC_NPROCESSORS_ONLN), allowed = processors_allowed();
    long first = sysconf(_SC_LEVEL1_DCACHE_SIZE), second = sysconf(_SC_LEVEL2_CACHE_SIZE),
         third = sysconf(_SC_LEVEL3_CACHE_SIZE);
    Error e = {0};
    h->threads = (int)max64(1, allowed);
    h->cache = (size_t)max64(0, third > 0 ? third : second);
    printf("  %s, %d processors online", h->model, online);
    if (allowed < online) printf(", %d of them allowed", allowed);
    printf("; caches: L1 %ld KiB, L2 %ld KiB, L3 %ld KiB\n", max64(0, first) / 1024, max64(0, second) / 1024,
           max64(0, third) / 1024);
    printf("  kernels: %s\n", kernels_for("cpu", &e)->name);
    if (allowed < online && wire_mpi_world() > 0)
        report_note(r,
                    "mpirun bound this rank to %d of %d processors: the figures are of those; for the machine's, run "
                    "without mpirun",
                    allowed, online);
    else if (allowed < online)
        report_note(r,
                    "only %d of %d processors are allowed (taskset or cgroup), and mop starts a thread for each that "
                    "is online: set compute.threads",
                    allowed, online);
}

/* ---- Memory ------------------------------------------------------------------------------------- */

/* The smallest memory limit of this process's cgroup and of those around it, version 1 or 2; 0: none. */
static double cgroup_limit(void) {
    static const struct {
        const char *line, *root, *file; /* of /proc/self/cgroup; where the tree is mounted */
    } versions[] = {{"0::", "/sys/fs/cgroup", "memory.max"},
                    {"memory:", "/sys/fs/cgroup/memory", "memory.limit_in_bytes"}};
    double least = 0;
    for (size_t v = 0; v < COUNT(versions); v++) {
        char line[512], path[1200], group[512] = "";
        FILE *f = fopen("/proc/self/cgroup", "r");
        while (f && fgets(line, sizeof line, f)) {
            const char *at = strstr(line, versions[v].line);
            if (at)
                snprintf(group, sizeof group, "%.*s", (int)strcspn(at + strlen(versions[v].line), "\n"),
                         at + strlen(versions[v].line));
        }
        if (f) fclose(f);
        for (char *slash = group;; *slash = 0) {
            snprintf(path, sizeof path, "%s%s/%s", versions[v].root, group, versions[v].file);
            double limit = number_of(path, "");
            if (limit > 0 && limit < 1e15 && (least == 0 || limit < least)) least = limit;
            slash = strrchr(group, '/');
            if (!slash) break;
        }
    }
    return least;
}

static void look_at_memory(Host *h, Report *r) {
    double physical = 1024 * number_of("/proc/meminfo", "MemTotal"),
           available = 1024 * number_of("/proc/meminfo", "MemAvailable");
    double limit = cgroup_limit(), pages = number_of("/proc/meminfo", "HugePages_Total");
    char transparent[64] = "unknown";
    line_of("/sys/kernel/mm/transparent_hugepage/enabled", "", transparent, sizeof transparent);
    struct rlimit lock = {0};
    getrlimit(RLIMIT_MEMLOCK, &lock);
    h->available = limit > 0 && limit < available ? limit : available;
    printf("  memory: %.1f GiB, %.1f available, cgroup limit ", physical / GIB, available / GIB);
    if (limit > 0)
        printf("%.1f GiB\n", limit / GIB);
    else
        printf("none\n");
    printf("  huge pages: %.0f reserved, transparent: %s; memory that may be locked: ", pages, transparent);
    if (lock.rlim_cur == RLIM_INFINITY)
        printf("all\n");
    else
        printf("%.1f MiB\n", (double)lock.rlim_cur / (1 << 20));
    if (strstr(transparent, "[never]"))
        report_note(r, "transparent huge pages are off: large arrays are read slower; echo madvise > "
                       "/sys/kernel/mm/transparent_hugepage/enabled");
    if (available > 0 && h->available < GIB)
        report_broken(r, "only %.2f GiB of memory are available: the example needs 1 GiB; end other programs",
                      h->available / GIB);
}

/* ---- What mop can use --------------------------------------------------------------------------- */

static bool in_path(const char *program) {
    char directories[4096], name[4400];
    const char *path = getenv("PATH");
    snprintf(directories, sizeof directories, "%s", path ? path : "");
    for (char *rest, *one = strtok_r(directories, ":", &rest); one; one = strtok_r(NULL, ":", &rest)) {
        snprintf(name, sizeof name, "%s/%s", one, program);
        if (access(name, X_OK) == 0) return true;
    }
    return false;
}

static void look_at_build(Report *r) {
    bool built = wire_mpi_built(), launcher = in_path("mpirun");
    printf("  MPI: %s, mpirun %s\n", built ? "built in" : "not built in", launcher ? "found" : "not found");
    if (!built)
        report_note(r, "built without MPI: ranks are threads of one process, on one machine; for more install "
                       "libopenmpi-dev and openmpi-bin and build again");
    else if (!launcher)
        report_note(
            r, "mpirun is not in PATH: ranks are threads of one process, on one machine; for more install openmpi-bin");
    if (!built && wire_mpi_world() > 0)
        report_broken(r, "started by mpirun, but this mop has no MPI; install libopenmpi-dev and build again");
}

Host host_look(Report *r) {
    Host h = {0};
    printf("machine\n");
    look_at_processor(&h, r);
    look_at_memory(&h, r);
    look_at_build(r);
    return h;
}
