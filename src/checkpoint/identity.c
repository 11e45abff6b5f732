/* Which weights these are, for ranks that each read files of their own; and whether a checkpoint is of the run that
 * is to go on from it: paths may have changed since it was written, so its config.json and its tokenizer are held
 * against those at hand by what they mean. (The data has its hash in state.json.) */
#define _POSIX_C_SOURCE 200809L
#include "checkpoint/checkpoints.h"
#include "checkpoint/source.h"
#include <stdio.h>

/* ---- Which weights ---------------------------------------------------------------------------- */

/* A checkpoint's manifest has the hash of every byte. */
static uint64_t hash_manifest(const Manifest *m) {
    uint64_t hash = HASH_START;
    for (int64_t f = 0; f < m->count; f++)
        for (int64_t i = 0; i < m->files[f].count; i++)
            hash = hash_more(hash, &m->files[f].extents[i].hash, sizeof m->files[f].extents[i].hash);
    return hash;
}

/* Of other files the header, and some bytes of 16 places: to read all of a large model on every rank would take
 * longer than to load it, and two models of one shape differ everywhere. */
static bool hash_samples(const Safetensors *f, uint64_t *hash, Error *e) {
    enum { STEPS = 15, BYTES = 4096 };
    char bytes[BYTES];
    int64_t n = min64(BYTES, f->bytes - f->data), last = f->bytes - f->data - n;
    *hash = hash_more(*hash, &f->hash, sizeof f->hash);
    for (int64_t i = 0; i <= STEPS; i++) {
        int64_t at = f->data + last / STEPS * i + last % STEPS * i / STEPS; /* the first bytes, ..., the last */
        if (!safetensors_read(f, at, (size_t)n, bytes, e)) return false;
        *hash = hash_more(*hash, bytes, (size_t)n);
    }
    return true;
}

bool source_identity(const Source *s, uint64_t *hash, Error *e) {
    *hash = s->verified ? hash_manifest(&s->manifest) : HASH_START;
    for (int i = 0; !s->verified && i < s->file_count; i++)
        if (!hash_samples(&s->files[i], hash, e)) return false;
    return true;
}

bool weights_same(Comm *comm, uint64_t identity, Error *e) {
    const Shared weights = {"the weights to be read differ",
                            "give every host the same checkpoint, on a file system that all share", identity};
    return comm_same(comm, &weights, 1, e);
}

/* ---- Of this run ------------------------------------------------------------------------------ */

static bool refuse_model(const SpecChange *changes, int count, const char *path, Error *e) {
    char text[1024] = "";
    size_t used = 0;
    for (int i = 0; i < count; i++) {
        const SpecChange *c = &changes[i];
        if (c->field->use != SPEC_MODEL || used >= sizeof text) continue;
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%s was %s when the run began and is %s now",
                                 used ? ", " : "", c->field->name, c->before.text, c->now.text);
    }
    return used == 0 || fail(e, EXIT_USAGE,
                             "the model's config.json changed: %s; the run's own is %s; give that back, or begin a "
                             "new run with --run",
                             text, path);
}

static bool same_model(const Checkpoints *c, const char *directory, ModelChanges *changes, Error *e) {
    Spec before;
    Path path = path_join(directory, "config.json");
    if (!spec_read(&before, path.text, e)) return false;
    changes->count = spec_changes(&before, c->spec, changes->change);
    spec_close(&before);
    return refuse_model(changes->change, changes->count, path.text, e);
}

static bool same_tokenizer(const Checkpoints *c, const Source *s, Error *e) {
    Path path = path_join(s->path.text, "tokenizer.json");
    if (!c->tokenizer || !manifest_find(&s->manifest, "tokenizer.json")) return true;
    Tokenizer *before = tokenizer_open(path.text, e);
    if (!before) return false;
    bool same = tokenizer_hash(before) == tokenizer_hash(c->tokenizer);
    tokenizer_close(before);
    return same || fail(e, EXIT_USAGE,
                        "the tokenizer is not the one that the run began with; the run's own is %s; give that as "
                        "data.tokenizer, or begin a new run with --run",
                        path.text);
}

bool source_is_of(const Source *s, const Checkpoints *c, ModelChanges *changes, Error *e) {
    return same_model(c, s->path.text, changes, e) && same_tokenizer(c, s, e);
}
