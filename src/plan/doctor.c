/* `mop doctor`: look, measure, say. Everything is measured with the program's own loops, ops, collectives and
 * files, so that a rate here is one that a run can have. Nothing stays behind but the file that --out names. */
#include "plan/doctor.h"
#include "plan/doctor_parts.h"
#include "train/session.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *usage = "mop doctor [--out FILE.json] [--compare FILE.json|NAME] [--disk DIR] [--step CONFIG]";

typedef struct {
    const char *out, *compare, *disk, *step; /* NULL: not given */
} Arguments;

/* Flags are "--name value" or "--name=value". */
static bool read_arguments(Arguments *a, int argc, char **argv, Error *e) {
    const struct {
        const char *name, **value;
    } flags[] = {{"--out", &a->out}, {"--compare", &a->compare}, {"--disk", &a->disk}, {"--step", &a->step}};
    for (int i = 1; i < argc; i++) {
        size_t length = strcspn(argv[i], "="), f = 0;
        while (f < COUNT(flags) && (strlen(flags[f].name) != length || strncmp(argv[i], flags[f].name, length) != 0))
            f++;
        if (f == COUNT(flags)) return fail(e, EXIT_USAGE, "unknown argument %s; %s", text_shown(argv[i]).text, usage);
        bool joined = argv[i][length] == '=';
        const char *value = joined ? argv[i] + length + 1 : i + 1 < argc ? argv[++i] : "";
        if (!*value) return fail(e, EXIT_USAGE, "%s needs a value; %s", flags[f].name, usage);
        if (*flags[f].value) return fail(e, EXIT_USAGE, "%s is given twice; %s", flags[f].name, usage);
        *flags[f].value = value;
    }
    if (a->out && !machine_is_file(a->out))
        return fail(e, EXIT_USAGE, "--out is \"%s\"; a machine file's name ends in .json; %s", text_shown(a->out).text,
                    usage);
    if (a->step && !a->out && !a->compare)
        return fail(e, EXIT_USAGE, "--step predicts with a machine: that of --out, else of --compare; give one; %s",
                    usage);
    if (a->step && wire_mpi_world() > 0)
        return fail(e, EXIT_USAGE, "--step takes steps on ranks that are threads; leave mpirun out");
    return true;
}

/* On standard error where the figures go elsewhere, so that whoever waits sees what for. */
static void say(const char *what, int threads) {
    if (isatty(STDOUT_FILENO)) return; /* there each figure shows as soon as it is known */
    fprintf(stderr, "mop: doctor: measuring %s", what);
    if (threads > 0) fprintf(stderr, " with %d thread%s", threads, threads == 1 ? "" : "s");
    fprintf(stderr, "\n");
}

static bool measure(Report *r, const Host *h, const char *disk, Error *e) {
    for (int threads = 1;; threads = h->threads) {
        say("the processor and its memory", threads);
        doctor_cpu(r, h, threads, e);
        if (e->code == EXIT_DONE) say("products", threads);
        if (e->code == EXIT_DONE) doctor_products(r, h, threads, e);
        if (e->code != EXIT_DONE) return false;
        if (threads == h->threads) break;
    }
    say("products of other libraries", 0);
    doctor_other_products(r, h);
    say("the disk", 0);
    doctor_disk(r, disk);
    int ranks = (int)max64(2, min64(8, h->threads));
    say("the wire between ranks", ranks);
    doctor_threads_wire(r, ranks);
    return true;
}

/* What was asked for besides the figures. Files are written before anything is compared or run. The machine is its
 * GPUs where it has any. */
static int conclude(Report *r, const Host *h, const Arguments *a, GpuAnswer gpus, const Machine *gpu) {
    Machine m;
    Error e = {0};
    if (gpus == GPU_MACHINE) m = *gpu;
    bool known = gpus == GPU_MACHINE || (gpus == GPU_NONE && machine_of_report(r, h, &m));
    bool steps = a->step && gpus == GPU_NONE;
    if (!known && (a->out || a->compare))
        report_broken(r, "no machine file can be made of these figures; see the notes");
    if (a->step && !steps)
        report_broken(r, "--step: the machine measured is a GPU, and steps are taken on the CPU: nothing to compare");
    bool ok = !known || ((!a->out || machine_write(&m, r, a->out, &e)) &&
                         (!a->compare || machine_compare(&m, r, a->compare, &e)));
    int code = ok ? EXIT_DONE : error_print(&e);
    if (ok && known && steps) code = doctor_step(a->step, a->out ? a->out : a->compare);
    report_notes_print(r);
    if (code != EXIT_DONE) return code;
    return r->broken ? EXIT_WRONG : EXIT_DONE;
}

static int examine(Report *r, const Arguments *a) {
    Error e = {0};
    Machine gpu;
    bool mpi = wire_mpi_world() > 0 && wire_mpi_built();
    if (mpi && !doctor_mpi_wire(r, &e)) return session_error(&e);
    if (mpi && wire_mpi_rank() > 0) return EXIT_DONE;
    if (mpi) printf("\n");
    Host h = host_look(r);
    if (!measure(r, &h, a->disk ? a->disk : ".", &e)) return error_print(&e);
    GpuAnswer gpus = doctor_gpus(r, &h, &gpu);
    return conclude(r, &h, a, gpus, &gpu);
}

/* What can only fail is refused before a minute is spent. */
static bool directory_takes_files(const char *path, Error *e) {
    char directory[4096];
    const char *slash = strrchr(path, '/');
    size_t length = slash ? (size_t)(slash - path) + 1 : 0;
    if (length >= sizeof directory) return fail(e, EXIT_USAGE, "--out: the path is too long; %.80s...", path);
    snprintf(directory, sizeof directory, "%.*s", (int)length, length ? path : "");
    return access(length ? directory : ".", W_OK | X_OK) == 0 ||
           fail(e, EXIT_IO, "--out: no file can be made there: %s; %s; make the directory, or name another",
                strerror(errno), path);
}

static bool is_directory_for_files(const char *path, Error *e) {
    struct stat s;
    int refused = stat(path, &s) != 0              ? errno
                  : !S_ISDIR(s.st_mode)            ? ENOTDIR
                  : access(path, W_OK | X_OK) != 0 ? errno
                                                   : 0;
    return refused == 0 ||
           fail(e, EXIT_IO, "--disk: no file can be made there: %s; %s; make the directory, or name another",
                strerror(refused), path);
}

static bool possible(const Arguments *a, Error *e) {
    Machine other;
    return (!a->disk || is_directory_for_files(a->disk, e)) && (!a->out || directory_takes_files(a->out, e)) &&
           (!a->compare || machine_open(a->compare, &other, e)) && (!a->step || doctor_step_possible(a->step, e));
}

int doctor_command(int argc, char **argv) {
    Arguments a = {0};
    Error e = {0};
    if (!read_arguments(&a, argc, argv, &e) || !possible(&a, &e)) return session_error(&e);
    Report *r = calloc(1, sizeof *r);
    MUST(r);
    int code = examine(r, &a);
    free(r);
    return code;
}
