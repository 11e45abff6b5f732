/* Saving: every rank writes what it owns, rank 0 what is small, and a rename makes it a checkpoint.
 *
 *     rank 0     make step-N.tmp-R, files at full size with headers
 *     all        write slices, hash them, fdatasync                  | agree after each line: whoever fails, all stop,
 *     rank 0     gather hashes, small files, manifest, fsync, rename | and rank 0 removes the temporary directory
 */
#define _GNU_SOURCE
#include "checkpoint/checkpoints.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *advice = "free some space or check the disk";

/* The save at hand. */
typedef struct {
    Checkpoints *c;
    const TrainState *state;
    Path parent, directory, final;
    uint64_t random;
} Save;

static bool is_first(const Save *s) {
    return s->c->comm->mesh.rank == 0;
}

static bool cannot(const char *what, const char *path, Error *e) {
    return fail(e, EXIT_IO, "cannot %s: %s; %s; %s", what, strerror(errno), path, advice);
}

/* ---- Rank 0: files at full size --------------------------------------------------------------- */

static bool make_files(const Save *s, Error *e) {
    if (!directory_make(s->parent.text, e)) return false;
    if (mkdir(s->directory.text, 0777) != 0) return cannot("make a checkpoint's directory", s->directory.text, e);
    return placed_files_make(&s->c->placement, s->directory.text, e);
}

/* ---- All ranks: slices ------------------------------------------------------------------------ */

static bool open_file(const Save *s, int file, Error *e) {
    Checkpoints *c = s->c;
    if (c->fd[file] >= 0) return true;
    Path path = path_join(s->directory.text, c->placement.files[file].name);
    c->fd[file] = open(path.text, O_WRONLY | O_CLOEXEC);
    return c->fd[file] >= 0 || cannot("open a checkpoint's file", path.text, e);
}

static bool write_slice(const Save *s, const Slice *slice, StoreKind kind, Error *e) {
    Checkpoints *c = s->c;
    const Place *place = &slice_placed(c, slice)->at[kind];
    int64_t each = (int64_t)type_bytes(c->placement.type[kind]), room = EXTENT_BYTES / each;
    if (!open_file(s, place->file, e)) return false;
    for (int64_t done = 0, n; done < slice->count; done += n) {
        n = min64(room, slice->count - done);
        size_t bytes = (size_t)(n * each);
        int64_t at = place->begin + (slice->first + done) * each;
        store_copy_out(c->store, slice, kind, done, n, c->buffer);
        MUST(c->written_count < c->written_room);
        c->written[c->written_count++] =
            (Written){place->file, {at, at + (int64_t)bytes, extent_hash(c->buffer, bytes)}};
        if (!write_whole(c->fd[place->file], c->buffer, bytes, at))
            return cannot("write a checkpoint", path_join(s->directory.text, c->placement.files[place->file].name).text,
                          e);
    }
    return true;
}

static bool write_slices(const Save *s, Error *e) {
    Checkpoints *c = s->c;
    c->written_count = 0;
    for (int kind = 0; kind < PLACED_KINDS; kind++) {
        for (int64_t i = 0; i < c->slice_count; i++) {
            const Slice *slice = &c->slices[i];
            bool kept = slice_placed(c, slice)->at[kind].file >= 0;
            if (kept && slice->owner && !write_slice(s, slice, kind, e)) return false;
        }
    }
    return true;
}

/* Also after a failure: descriptors are closed either way. */
static bool sync_files(const Save *s, bool done, Error *e) {
    Checkpoints *c = s->c;
    for (int f = 0; f < c->placement.file_count; f++) {
        if (c->fd[f] < 0) continue;
        if (done && fdatasync(c->fd[f]) != 0)
            done = cannot("write a checkpoint to the disk",
                          path_join(s->directory.text, c->placement.files[f].name).text, e);
        close(c->fd[f]);
        c->fd[f] = -1;
    }
    return done;
}

/* ---- Hashes to rank 0 ------------------------------------------------------------------------- */

static int by_place(const void *x, const void *y) {
    const Written *a = x, *b = y;
    if (a->file != b->file) return a->file < b->file ? -1 : 1;
    return (a->extent.begin > b->extent.begin) - (a->extent.begin < b->extent.begin);
}

/* Everyone's, in rounds of bounded size; on rank 0 *all gets them, sorted, for the caller to free. */
static bool gather_written(const Save *s, Written **all, int64_t *total, Error *e) {
    Checkpoints *c = s->c;
    int world = c->comm->mesh.world;
    int64_t counts[world], most = 0;
    *all = NULL;
    *total = 0;
    if (!host_gather(c->comm, counts, &c->written_count, sizeof *counts, e)) return false;
    for (int r = 0; r < world; r++) {
        most = max64(most, counts[r]);
        *total += counts[r];
    }
    if (is_first(s)) *all = malloc((size_t)(*total + 1) * sizeof **all);
    bool here = !is_first(s) || *all ||
                fail(e, EXIT_MEMORY, "out of memory for a manifest; %s; free some memory", s->directory.text);
    if (!host_agree(c->comm, here, e)) return false;
    Written *mine = c->round, *theirs = c->round + WRITTEN_ROUND;
    for (int64_t done = 0, filled = 0; done < most; done += WRITTEN_ROUND) {
        int64_t n = max64(0, min64(WRITTEN_ROUND, c->written_count - done));
        if (n > 0) memcpy(mine, c->written + done, (size_t)n * sizeof *mine);
        if (!host_gather(c->comm, theirs, mine, WRITTEN_ROUND * sizeof *mine, e)) return false;
        for (int r = 0; *all && r < world; r++) {
            int64_t got = max64(0, min64(WRITTEN_ROUND, counts[r] - done));
            memcpy(*all + filled, theirs + (int64_t)r * WRITTEN_ROUND, (size_t)got * sizeof *theirs);
            filled += got;
        }
    }
    if (*all) qsort(*all, (size_t)*total, sizeof **all, by_place);
    return true;
}

/* ---- Rank 0: small files and manifest --------------------------------------------------------- */

/* Those of this save, then those that every save carries. */
static bool make_small_files(const Save *s, SmallFiles *made, Error *e) {
    const Checkpoints *c = s->c;
    return (c->placement.model_files == 1 ||
            small_files_add(made, "model.safetensors.index.json", placement_index(&c->placement), e)) &&
           small_files_add(made, "config.json", spec_config(c->spec, c->type), e) &&
           small_files_add(made, "state.json", state_json(s->state, c->type, c->licence.text), e) &&
           small_files_write(made, s->directory.text, e) && small_files_write(&c->carried, s->directory.text, e);
}

/* The header and what was written after it. That nothing is left out or written twice is the store's promise. */
static void list_placed(const PlacedFile *f, int64_t file, const Written *all, int64_t total, ManifestFile *m,
                        Extent *extents) {
    int64_t header = (int64_t)f->header.text.bytes, at = header;
    snprintf(m->name, sizeof m->name, "%s", f->name);
    m->bytes = f->bytes;
    m->extents = extents;
    m->extents[m->count++] = (Extent){0, header, extent_hash(f->header.text.text, (size_t)header)};
    for (int64_t i = 0; i < total; i++) {
        if (all[i].file != file) continue;
        MUST(all[i].extent.begin == at);
        at = all[i].extent.end;
        m->extents[m->count++] = all[i].extent;
    }
    MUST(at == f->bytes);
}

/* An empty file has no extent. */
static void list_small(const SmallFiles *files, Manifest *m, Extent **next) {
    for (int i = 0; i < files->count; i++) {
        const SmallFile *f = &files->file[i];
        ManifestFile *listed = &m->files[m->count++];
        MUST(strlen(f->name) < sizeof listed->name);
        strcpy(listed->name, f->name);
        listed->bytes = (int64_t)f->bytes;
        listed->extents = *next;
        if (f->bytes > 0) listed->extents[listed->count++] = (Extent){0, listed->bytes, extent_hash(f->text, f->bytes)};
        *next += listed->count;
    }
}

/* What was written is listed, whatever the directory's own list may be. */
static bool write_manifest(const Save *s, const Written *all, int64_t total, const SmallFiles *made, Error *e) {
    const Placement *p = &s->c->placement;
    int64_t files = p->file_count + made->count + s->c->carried.count;
    Manifest m = {.step = s->state->step, .files = calloc((size_t)files, sizeof *m.files)};
    Extent *extents = malloc((size_t)(total + files) * sizeof *extents), *next = extents;
    bool done = m.files && extents;
    if (!done) fail(e, EXIT_MEMORY, "out of memory for a manifest; %s; free some memory", s->directory.text);
    for (int f = 0; done && f < p->file_count; f++) {
        list_placed(&p->files[f], f, all, total, &m.files[f], next);
        next += m.files[f].count;
        m.count++;
    }
    if (done) {
        list_small(made, &m, &next);
        list_small(&s->c->carried, &m, &next);
    }
    done = done && manifest_write(&m, p, s->directory.text, e);
    free(extents);
    free(m.files);
    return done;
}

/* One directory becomes the checkpoint in one step. Where there is one of this name already, the two change places. */
static bool appear(const Save *s, Error *e) {
    const char *from = s->directory.text, *to = s->final.text;
    if (!directory_sync(from, e)) return false;
    bool exchanged = renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_EXCHANGE) == 0;
    if (!exchanged) { /* there was none, or the file system cannot exchange */
        if (!snapshot_remove(s->parent.text, snapshot_name(s->state->step).text, e)) return false;
        if (rename(from, to) != 0) return cannot("rename a checkpoint", to, e);
    }
    if (!directory_sync(s->parent.text, e)) return false;
    return !exchanged || snapshot_remove(s->parent.text, snapshot_temporary(s->state->step, "tmp", s->random).text, e);
}

static bool finish(const Save *s, const Written *all, int64_t total, Error *e) {
    SmallFiles made = {0};
    bool done = make_small_files(s, &made, e) && write_manifest(s, all, total, &made, e) && appear(s, e);
    small_files_close(&made);
    return done;
}

/* ---- The story -------------------------------------------------------------------------------- */

static bool save(const Save *s, Error *e) {
    Comm *comm = s->c->comm;
    bool first = is_first(s);
    if (!host_agree(comm, !first || make_files(s, e), e)) return false;
    if (!host_agree(comm, sync_files(s, write_slices(s, e), e), e)) return false;
    Written *all;
    int64_t total;
    bool gathered = gather_written(s, &all, &total, e);
    bool done = gathered && host_agree(comm, !first || finish(s, all, total, e), e);
    free(all);
    return done;
}

bool checkpoint_save(Checkpoints *c, const TrainState *state, SaveReport *report, Error *e) {
    double began = seconds_now();
    int world = c->comm->mesh.world;
    uint64_t own = snapshot_random(), all[world];
    MUST(*c->run.text && state->step >= 0);
    store_flush(c->store);
    if (!host_gather(c->comm, all, &own, sizeof own, e)) return false;
    Save s = {.c = c, .state = state, .parent = snapshot_parent(c->run.text), .random = all[0]};
    s.directory = path_join(s.parent.text, snapshot_temporary(state->step, "tmp", s.random).text);
    s.final = path_join(s.parent.text, snapshot_name(state->step).text);
    if (!save(&s, e)) {
        Error ignored = {0};
        if (is_first(&s))
            snapshot_remove(s.parent.text, snapshot_temporary(state->step, "tmp", s.random).text, &ignored);
        return false;
    }
    if (report) {
        *report = (SaveReport){.seconds = seconds_now() - began};
        snprintf(report->directory, sizeof report->directory, "%s", s.final.text);
        for (int f = 0; f < c->placement.file_count; f++) report->bytes += c->placement.files[f].bytes;
    }
    return true;
}

bool checkpoint_keep(Checkpoints *c, int64_t last, Error *e) {
    bool first = c->comm->mesh.rank == 0;
    return host_agree(c->comm, !first || snapshots_keep(snapshot_parent(c->run.text).text, last, NULL, e), e);
}
