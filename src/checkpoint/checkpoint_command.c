/* `mop ckpt`: verify, list, prune and compare checkpoints, without ranks and while a run goes on. What a run is
 * about to rename or delete may vanish under these commands; they then say so and end. */
#define _POSIX_C_SOURCE 200809L
#include "base/file.h"
#include "checkpoint/checkpoints.h"
#include "checkpoint/source.h"
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char usage[] =
    "mop ckpt verify CHECKPOINT|RUN; mop ckpt list RUN; mop ckpt prune RUN --keep K; mop ckpt diff A B";

static bool misused(const char *what, Error *e) {
    return fail(e, EXIT_USAGE, "%s; use %s", what, usage);
}

/* ---- verify ----------------------------------------------------------------------------------- */

bool checkpoint_verify(const char *directory, Error *e) {
    Manifest m;
    if (!manifest_read(&m, directory, e)) return false;
    char *buffer = malloc(EXTENT_BYTES);
    bool sound = buffer || fail(e, EXIT_MEMORY, "out of memory while verifying; %s; free some memory", directory);
    for (int64_t f = 0; sound && f < m.count; f++) sound = manifest_verify_file(&m.files[f], directory, buffer, e);
    free(buffer);
    manifest_close(&m);
    return sound;
}

static bool verify_one(const char *directory, Error *e) {
    if (!checkpoint_verify(directory, e)) {
        checkpoint_gone(directory, e);
        return false;
    }
    printf("%s: whole\n", directory);
    return true;
}

/* All are looked at; the first failure is the command's. */
static bool verify_run(const char *run, Error *e) {
    int64_t *steps, count;
    Path parent = snapshot_parent(run);
    if (!snapshots_list(parent.text, &steps, &count, e)) return false;
    for (int64_t i = 0; i < count; i++) {
        Error own = {0};
        Path directory = path_join(parent.text, snapshot_name(steps[i]).text);
        if (verify_one(directory.text, &own)) continue;
        printf("%s: %s\n", directory.text, own.text);
        fail(e, own.code, "%s", own.text);
    }
    free(steps);
    return count > 0 ? e->code == EXIT_DONE : checkpoint_none(run, e);
}

static bool verify(int argc, char **argv, Error *e) {
    bool whole, run, model;
    if (argc != 1) return misused("verify takes one directory", e);
    if (!manifest_exists(argv[0], &whole, e) || !file_exists(snapshot_parent(argv[0]).text, &run, e) ||
        !file_exists(path_join(argv[0], "config.json").text, &model, e))
        return false;
    if (whole) return verify_one(argv[0], e);
    if (run || !model) return verify_run(argv[0], e);
    return fail(e, EXIT_DATA,
                "there is no manifest.json to verify it by; %s; only checkpoints of runs have one, and "
                "exports and downloads have none: `mop inspect` looks at those",
                argv[0]);
}

/* ---- list ------------------------------------------------------------------------------------- */

static bool sizes_match(const Manifest *m, const char *directory, int64_t *bytes, Error *e) {
    for (int64_t f = 0; f < m->count; f++) {
        struct stat s;
        Path path = path_join(directory, m->files[f].name);
        bool read = stat(path.text, &s) == 0;
        if (!read && file_code(errno) != EXIT_DATA)
            return fail(e, EXIT_IO, "cannot read: %s; %s; check the disk", strerror(errno), path.text);
        if (!read || s.st_size != m->files[f].bytes)
            return fail(e, EXIT_DATA, "a file is missing or of another size; %s; use another checkpoint", path.text);
        *bytes += s.st_size;
    }
    return true;
}

/* A checkpoint that is not whole is listed like the others; one that cannot be read ends the list. */
static bool print_checkpoint(const char *directory, int64_t step, FILE *f, Error *e) {
    Manifest m;
    TrainState state;
    Type type;
    Error own = {0};
    int64_t bytes = 0;
    bool sound = manifest_read(&m, directory, &own);
    if (sound) {
        sound = sizes_match(&m, directory, &bytes, &own) && state_read(directory, &state, &type, &own);
        manifest_close(&m);
    }
    if (sound) {
        fprintf(f, "step %lld  %.1f MB  %s  %lld tokens  %s\n", (long long)state.step, (double)bytes / 1e6,
                type_name(type), (long long)state.tokens, directory);
        return true;
    }
    checkpoint_gone(directory, &own);
    if (own.code == EXIT_DATA) fprintf(f, "step %lld  not whole: %s\n", (long long)step, own.text);
    return own.code == EXIT_DATA || fail(e, own.code, "%s", own.text);
}

bool checkpoints_print(const char *run, FILE *f, Error *e) {
    int64_t *steps, count;
    Path parent = snapshot_parent(run);
    if (!snapshots_list(parent.text, &steps, &count, e)) return false;
    bool done = true;
    for (int64_t i = 0; done && i < count; i++)
        done = print_checkpoint(path_join(parent.text, snapshot_name(steps[i]).text).text, steps[i], f, e);
    free(steps);
    if (count == 0) fprintf(f, "no checkpoints in %s\n", parent.text);
    return done;
}

/* One that has not saved yet has an empty list. */
static bool is_run(const char *path, Error *e) {
    bool checkpoints, settings;
    if (!file_exists(snapshot_parent(path).text, &checkpoints, e) ||
        !file_exists(path_join(path, "config.yaml").text, &settings, e))
        return false;
    return checkpoints || settings || checkpoint_none(path, e);
}

static bool list(int argc, char **argv, Error *e) {
    if (argc != 1) return misused("list takes one run", e);
    return is_run(argv[0], e) && checkpoints_print(argv[0], stdout, e);
}

/* ---- prune ------------------------------------------------------------------------------------ */

static bool prune_run(const char *parent, int64_t keep, Error *e) {
    int64_t *steps, count;
    if (!snapshots_list(parent, &steps, &count, e)) return false;
    free(steps);
    if (!snapshots_keep(parent, keep, stdout, e)) return false;
    printf("%lld removed, %lld kept in %s\n", (long long)max64(0, count - keep), (long long)min64(count, keep), parent);
    return true;
}

static bool prune(int argc, char **argv, Error *e) {
    char *end;
    if (argc != 3 || strcmp(argv[1], "--keep") != 0) return misused("prune takes a run and --keep K", e);
    errno = 0;
    long long keep = strtoll(argv[2], &end, 10);
    if (errno || *end || keep < 1) return misused("--keep takes a number of checkpoints, at least 1", e);
    return is_run(argv[0], e) && prune_run(snapshot_parent(argv[0]).text, keep, e);
}

/* ---- diff ------------------------------------------------------------------------------------- */

typedef struct {
    Source a, b;
    Found *in_a, *in_b;
    Placement placement;
    int64_t compared, different;
    double largest; /* |a - b| */
} Diff;

static bool diff_tensor(Diff *d, const Placed *t, StoreKind kind, Error *e) {
    int64_t at = (t - d->placement.tensors) * PLACED_KINDS + kind;
    double largest = 0, squares = 0, norm = 0;
    bool different = false;
    for (int64_t done = 0, n; done < t->elements; done += n) {
        n = source_piece(&d->a, &d->in_a[at], done, t->elements - done, FP64, e);
        if (n) n = source_piece(&d->b, &d->in_b[at], done, n, FP64, e);
        if (n == 0) return false;
        const double *x = (const double *)d->a.values, *y = (const double *)d->b.values;
        for (int64_t i = 0; i < n; i++) {
            double gap = fabs(x[i] - y[i]);
            if (memcmp(&x[i], &y[i], sizeof *x) != 0) different = true;
            largest = fmax(largest, gap);
            squares += gap * gap;
            norm += x[i] * x[i];
        }
    }
    char name[PLACED_NAME];
    placed_name(&d->placement, t, kind, name);
    if (different)
        printf("%s: largest %.3g, relative %.3g\n", name, largest, norm > 0 ? sqrt(squares / norm) : INFINITY);
    d->compared++;
    d->different += different;
    d->largest = fmax(d->largest, largest);
    return true;
}

static bool diff_tensors(Diff *d, bool state, Error *e) {
    d->in_a = source_bind(&d->a, &d->placement, state, e);
    d->in_b = d->in_a ? source_bind(&d->b, &d->placement, state, e) : NULL;
    bool done = d->in_b != NULL;
    for (int64_t i = 0; done && i < d->placement.count; i++) {
        for (int kind = 0; done && kind < PLACED_KINDS; kind++) {
            if (d->placement.tensors[i].at[kind].file >= 0) done = diff_tensor(d, &d->placement.tensors[i], kind, e);
        }
    }
    free(d->in_a);
    free(d->in_b);
    return done;
}

/* The optimizer's tensors are compared where both have them, of one compute type. */
static bool diff_opened(Diff *d, const Path *a, const Path *b, const Spec *spec, Error *e) {
    TrainState ignored;
    Type x = FP32, y = FP32;
    bool state, other;
    if (!manifest_exists(a->text, &state, e) || !manifest_exists(b->text, &other, e)) return false;
    state = state && other;
    if (state && (!state_read(a->text, &ignored, &x, e) || !state_read(b->text, &ignored, &y, e))) return false;
    state = state && x == y;
    if (!source_open(&d->a, a->text, state, e)) return false;
    bool done = source_open(&d->b, b->text, state, e);
    if (done) {
        done = placement_open(&d->placement, spec, x, state, placement_shard, e) && diff_tensors(d, state, e);
        placement_close(&d->placement);
        source_close(&d->b);
    }
    source_close(&d->a);
    return done;
}

static bool name_one(const char *path, NamedCheckpoint *out, Error *e) {
    if (!checkpoint_named(path, out, e)) return false;
    checkpoint_say_passed_over(out);
    return true;
}

static bool diff(int argc, char **argv, bool *different, Error *e) {
    NamedCheckpoint a, b;
    Spec spec;
    Diff d = {.largest = 0};
    if (argc != 2) return misused("diff takes two checkpoints", e);
    if (!name_one(argv[0], &a, e) || !name_one(argv[1], &b, e) ||
        !spec_read(&spec, path_join(a.directory.text, "config.json").text, e))
        return false;
    bool done = diff_opened(&d, &a.directory, &b.directory, &spec, e);
    if (done)
        printf("%lld of %lld tensors differ, by at most %.3g\n", (long long)d.different, (long long)d.compared,
               d.largest);
    if (!done) checkpoint_gone(a.directory.text, e);
    if (!done) checkpoint_gone(b.directory.text, e);
    *different = d.different > 0;
    spec_close(&spec);
    return done;
}

/* ---- The command ------------------------------------------------------------------------------ */

int checkpoint_command(int argc, char **argv) {
    Error e = {0};
    const char *verb = argc > 1 ? argv[1] : "";
    bool different = false;
    if (strcmp(verb, "verify") == 0)
        verify(argc - 2, argv + 2, &e);
    else if (strcmp(verb, "list") == 0)
        list(argc - 2, argv + 2, &e);
    else if (strcmp(verb, "prune") == 0)
        prune(argc - 2, argv + 2, &e);
    else if (strcmp(verb, "diff") == 0)
        diff(argc - 2, argv + 2, &different, &e);
    else
        misused("what to do with checkpoints?", &e);
    if (e.code != EXIT_DONE) return error_print(&e);
    return different ? EXIT_WRONG : EXIT_DONE;
}
