/* Loading: each rank reads the elements of its own slices, wherever the files have them. In the layout that
 * saved, every extent is read once; in another, little more than the slices.
 *
 * Two kinds of failure are told apart: damage (the bytes are not those that were written), after which an older
 * checkpoint may serve, and everything else (another model, another compute type, a failing disk), after which
 * none is tried. */
#define _POSIX_C_SOURCE 200809L
#include "checkpoint/checkpoints.h"
#include "checkpoint/source.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum { LOAD_DONE, LOAD_DAMAGED, LOAD_FAILED } Outcome;

/* ---- Outcomes --------------------------------------------------------------------------------- */

static Outcome outcome_of(const Error *e) {
    return e->code == EXIT_DATA ? LOAD_DAMAGED : LOAD_FAILED;
}

/* The same on every rank: failure before damage, and the first rank's words. All have read the same. */
static Outcome agree(Checkpoints *c, Outcome outcome, uint64_t identity, const Error *own, Error *e) {
    *e = *own;
    if (!host_agree(c->comm, outcome != LOAD_FAILED, e)) return LOAD_FAILED;
    *e = *own;
    if (!host_agree(c->comm, outcome == LOAD_DONE, e)) return outcome_of(e);
    return weights_same(c->comm, identity, e) ? LOAD_DONE : LOAD_FAILED;
}

/* ---- Slices ----------------------------------------------------------------------------------- */

static bool load_slice(Checkpoints *c, Source *s, const Found *f, const Slice *slice, StoreKind kind, Error *e) {
    for (int64_t done = 0, n; done < slice->count; done += n) {
        n = source_piece(s, f, slice->first + done, slice->count - done, c->placement.type[kind], e);
        if (n == 0) return false;
        store_copy_in(c->store, slice, kind, done, n, s->values);
    }
    return true;
}

/* One kind of every slice, from the tensors of kind `from`. Weights go in as masters: where the two differ,
 * both are set. */
static bool load_kind(Checkpoints *c, Source *s, const Found *found, StoreKind kind, StoreKind from, Error *e) {
    for (int64_t i = 0; i < c->slice_count; i++) {
        const Slice *slice = &c->slices[i];
        const Found *f = &found[(slice_placed(c, slice) - c->placement.tensors) * PLACED_KINDS + from];
        if (!load_slice(c, s, f, slice, kind, e)) return false;
    }
    return true;
}

static bool load_all(Checkpoints *c, Source *s, const Found *found, Error *e) {
    StoreKind masters = c->type == BF16 ? STORE_MASTER : STORE_WEIGHT;
    return load_kind(c, s, found, STORE_MASTER, masters, e) && load_kind(c, s, found, STORE_M, STORE_M, e) &&
           load_kind(c, s, found, STORE_V, STORE_V, e);
}

/* ---- Weights only ----------------------------------------------------------------------------- */

static Outcome load_weights(Checkpoints *c, const char *path, uint64_t *identity, Error *e) {
    Source s;
    if (!source_open(&s, path, false, e)) return outcome_of(e);
    Found *found = source_bind(&s, &c->placement, false, e);
    Outcome outcome = LOAD_FAILED;
    if (found && source_identity(&s, identity, e))
        outcome = load_kind(c, &s, found, STORE_MASTER, STORE_WEIGHT, e) ? LOAD_DONE : outcome_of(e);
    free(found);
    source_close(&s);
    return outcome;
}

static Outcome load_weights_together(Checkpoints *c, const char *path, Error *e) {
    Error own = {0};
    uint64_t identity = 0;
    store_flush(c->store);
    Outcome outcome = load_weights(c, path, &identity, &own);
    return agree(c, outcome, identity, &own, e);
}

bool checkpoint_load_weights(Checkpoints *c, const char *path, Error *e) {
    return load_weights_together(c, path, e) == LOAD_DONE;
}

/* Rank 0 looks for it, and all take its word. One that is gone is not damaged, and no older one is what was meant. */
static bool older_together(Checkpoints *c, NamedCheckpoint *n, Error *e) {
    int64_t steps[c->comm->mesh.world], step = -1;
    Error damage = *e;
    if (c->comm->mesh.rank == 0) {
        if (!checkpoint_gone(n->directory.text, e) && checkpoint_older(n, &damage, e)) step = n->step;
    }
    Error heard = {0};
    if (!host_gather(c->comm, steps, &step, sizeof step, &heard)) {
        *e = heard;
        return false;
    }
    if (steps[0] < 0) return host_agree(c->comm, false, e);
    *e = (Error){0};
    n->step = steps[0];
    n->directory = path_join(snapshot_parent(n->run.text).text, snapshot_name(n->step).text);
    return true;
}

bool checkpoint_load_named(Checkpoints *c, NamedCheckpoint *n, Error *e) {
    Outcome outcome;
    do outcome = load_weights_together(c, n->directory.text, e);
    while (outcome == LOAD_DAMAGED && older_together(c, n, e));
    return outcome == LOAD_DONE;
}

/* ---- Everything ------------------------------------------------------------------------------- */

static bool check_state(const Checkpoints *c, const char *directory, TrainState *state, Error *e) {
    Type type;
    if (!state_read(directory, state, &type, e)) return false;
    if (type == c->type) return true;
    return fail(
        e, EXIT_DATA,
        "the checkpoint is of an %s run, this is an %s run; %s; set compute.type to %s, or begin a new run with "
        "model.path set to the checkpoint",
        type_name(type), type_name(c->type), directory, type_name(type));
}

/* What a rank finds in a checkpoint beside weights and moments. */
typedef struct {
    TrainState state;
    ModelChanges changes;
    uint64_t identity;
} Loaded;

static Outcome load_here(Checkpoints *c, const char *directory, Loaded *out, Error *e) {
    Source s;
    if (!source_open(&s, directory, true, e)) return outcome_of(e);
    bool of_this_run = check_state(c, directory, &out->state, e) && source_is_of(&s, c, &out->changes, e) &&
                       source_identity(&s, &out->identity, e);
    Found *found = of_this_run ? source_bind(&s, &c->placement, true, e) : NULL;
    Outcome outcome = LOAD_FAILED;
    if (found) outcome = load_all(c, &s, found, e) ? LOAD_DONE : outcome_of(e);
    free(found);
    source_close(&s);
    return outcome;
}

static Outcome load_together(Checkpoints *c, const char *directory, Loaded *out, Error *e) {
    Error own = {0};
    Outcome outcome = load_here(c, directory, out, &own);
    return agree(c, outcome, out->identity, &own, e);
}

bool checkpoint_load(Checkpoints *c, const char *directory, TrainState *state, Error *e) {
    Loaded loaded = {0};
    store_flush(c->store);
    bool done = load_together(c, directory, &loaded, e) == LOAD_DONE;
    *state = loaded.state;
    return done;
}

/* ---- The newest that is whole ----------------------------------------------------------------- */

/* Rank 0's list on every rank: another rank's view of a shared file system may be a moment older. */
static bool list_together(Checkpoints *c, const char *parent, int64_t **steps, int64_t *count, Error *e) {
    bool first = c->comm->mesh.rank == 0;
    int world = c->comm->mesh.world;
    int64_t counts[world];
    *steps = NULL;
    *count = 0;
    bool listed = !first || (snapshots_clean(parent, e) && snapshots_list(parent, steps, count, e));
    if (!host_agree(c->comm, listed, e) || !host_gather(c->comm, counts, count, sizeof *counts, e)) return false;
    *count = counts[0];
    int64_t *all = calloc((size_t)(world * *count) + 1, sizeof *all), *own = calloc((size_t)*count + 1, sizeof *own);
    bool here =
        (all && own) || fail(e, EXIT_MEMORY, "out of memory for a list of checkpoints; %s; free some memory", parent);
    if (here && first && *count) memcpy(own, *steps, (size_t)*count * sizeof *own);
    bool done = host_agree(c->comm, here, e) && host_gather(c->comm, all, own, (size_t)*count * sizeof *own, e);
    free(*steps);
    free(own);
    *steps = all;
    return done;
}

static bool none_is_whole(const char *parent, const ResumeReport *r, Error *e) {
    return fail(e, EXIT_DATA, "all %lld checkpoints are damaged, the newest so: %s; %s; move them away to begin anew",
                (long long)r->damaged, r->damage, parent);
}

static void take_report(ResumeReport *report, const Loaded *loaded, const Path *directory) {
    report->state = loaded->state;
    report->changes = loaded->changes;
    snprintf(report->directory, sizeof report->directory, "%s", directory->text);
}

bool checkpoint_resume(Checkpoints *c, ResumeReport *report, Error *e) {
    Path parent = snapshot_parent(c->run.text);
    int64_t *steps, count;
    *report = (ResumeReport){0};
    store_flush(c->store);
    bool listed = list_together(c, parent.text, &steps, &count, e);
    Outcome outcome = listed ? LOAD_DAMAGED : LOAD_FAILED;
    for (int64_t i = 0; i < count && outcome == LOAD_DAMAGED; i++) {
        Path directory = path_join(parent.text, snapshot_name(steps[i]).text);
        Loaded loaded = {0};
        Error own = {0};
        outcome = load_together(c, directory.text, &loaded, &own);
        if (outcome == LOAD_DONE) take_report(report, &loaded, &directory);
        if (outcome == LOAD_FAILED) *e = own;
        if (outcome == LOAD_DAMAGED && report->damaged++ == 0)
            snprintf(report->damage, sizeof report->damage, "%s", own.text);
    }
    free(steps);
    report->found = outcome == LOAD_DONE;
    if (outcome == LOAD_DAMAGED && report->damaged > 0) return none_is_whole(parent.text, report, e);
    if (!report->found) return outcome != LOAD_FAILED;
    bool first =
        c->comm->mesh.rank == 0; /* what goes with the weights is the run's own now, whatever model.path says */
    return host_agree(c->comm, !first || checkpoints_carry(c, report->directory, NULL, e), e);
}
