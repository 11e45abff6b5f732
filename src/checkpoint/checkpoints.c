/* Opening a rank's way to checkpoints: all that saving needs in memory is sized and taken here, so that a save
 * deep in a run does not end for want of it (rank 0's manifest, made of everyone's hashes, is the exception). */
#define _POSIX_C_SOURCE 200809L
#include "checkpoint/checkpoints.h"
#include <stdio.h>
#include <stdlib.h>

const Placed *slice_placed(const Checkpoints *c, const Slice *s) {
    const Placed *t = placement_find(&c->placement, s->parameter, s->layer, s->expert);
    MUST(t && s->first >= 0 && s->first + s->count <= t->elements);
    return t;
}

/* How many extents this rank writes in a save. */
static int64_t count_extents(const Checkpoints *c) {
    int64_t count = 0;
    for (int64_t i = 0; i < c->slice_count; i++) {
        const Placed *t = slice_placed(c, &c->slices[i]);
        for (int kind = 0; kind < PLACED_KINDS; kind++) {
            bool written = t->at[kind].file >= 0 && c->slices[i].owner;
            if (written)
                count += ceil_div(c->slices[i].count, EXTENT_BYTES / (int64_t)type_bytes(c->placement.type[kind]));
        }
    }
    return count;
}

static bool take_memory(Checkpoints *c, Error *e) {
    size_t round = ((size_t)c->comm->mesh.world + 1) * WRITTEN_ROUND;
    c->written_room = count_extents(c);
    c->buffer = malloc(EXTENT_BYTES);
    c->written = calloc((size_t)c->written_room + 1, sizeof *c->written);
    c->round = calloc(round, sizeof *c->round);
    c->fd = malloc((size_t)c->placement.file_count * sizeof *c->fd);
    if (!c->buffer || !c->written || !c->round || !c->fd)
        return fail(e, EXIT_MEMORY, "out of memory for checkpoints; %s; free some memory", c->run.text);
    for (int f = 0; f < c->placement.file_count; f++) c->fd[f] = -1;
    return true;
}

bool checkpoints_carry(Checkpoints *c, const char *directory, const Tokenizer *tokenizer, Error *e) {
    small_files_close(&c->carried);
    return small_files_carry(&c->carried, directory, tokenizer, e) &&
           small_files_generation(&c->carried, c->spec->source, e) && licence_of(directory, &c->licence, e) &&
           directory_still_there(directory, e);
}

Checkpoints *checkpoints_open_sharded(const char *run, const char *base, const Spec *spec, Type type, Store *store,
                                      const Tokenizer *tokenizer, Comm *comm, int64_t shard, Error *e) {
    Checkpoints *c = calloc(1, sizeof *c);
    if (!c) {
        fail(e, EXIT_MEMORY, "out of memory for checkpoints; %s; free some memory", run);
        return NULL;
    }
    *c = (Checkpoints){.spec = spec, .type = type, .store = store, .tokenizer = tokenizer, .comm = comm};
    snprintf(c->run.text, sizeof c->run.text, "%s", run);
    c->slice_count = store_slices(store, &c->slices);
    bool saves = *run && comm->mesh.rank == 0;
    if (placement_open(&c->placement, spec, type, true, shard, e) && take_memory(c, e) &&
        (!saves || checkpoints_carry(c, base, tokenizer, e)))
        return c;
    checkpoints_close(c);
    return NULL;
}

Checkpoints *checkpoints_open(const char *run, const char *base, const Spec *spec, Type type, Store *store,
                              const Tokenizer *tokenizer, Comm *comm, Error *e) {
    return checkpoints_open_sharded(run, base, spec, type, store, tokenizer, comm, placement_shard, e);
}

void checkpoints_close(Checkpoints *c) {
    if (!c) return;
    placement_close(&c->placement);
    small_files_close(&c->carried);
    free(c->buffer);
    free(c->written);
    free(c->round);
    free(c->fd);
    free(c);
}
