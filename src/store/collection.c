/* Whole tensors of a model that lies in slices; see collection.h. */
#include "store/collection.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- Names ------------------------------------------------------------------------------------ */

static int by_name(const void *a, const void *b) {
    return strcmp(((const NamedTensor *)a)->name, ((const NamedTensor *)b)->name);
}

NamedTensor *collection_find(const Collection *c, const char *name) {
    NamedTensor key = {0};
    memcpy(key.name, name, strnlen(name, sizeof key.name - 1));
    NamedTensor *found = bsearch(&key, c->tensor, (size_t)c->count, sizeof key, by_name);
    MUST(found);
    return found;
}

static NamedTensor named(const Slice *s) {
    NamedTensor t = {.dims = s->dims, .count = 1};
    memcpy(t.name, s->name, sizeof t.name);
    for (int d = 0; d < s->dims; d++) t.count *= t.dim[d] = s->dim[d];
    return t;
}

static bool no_memory(Collection *c, Error *e) {
    collection_free(c);
    return fail(e, EXIT_MEMORY,
                "no memory for a copy of all tensors in fp64; use a smaller model, or free some memory");
}

bool collection_open(Collection *out, Store *const *stores, int count, Error *e) {
    int64_t most = 0, kept = 0;
    *out = (Collection){0};
    const Slice *slice;
    for (int i = 0; i < count; i++) most += store_slices(stores[i], &slice);
    Collection c = {.tensor = calloc((size_t)most + 1, sizeof *c.tensor)};
    if (!c.tensor) return no_memory(&c, e);
    for (int i = 0; i < count; i++) {
        int64_t n = store_slices(stores[i], &slice);
        for (int64_t j = 0; j < n; j++) c.tensor[c.count++] = named(&slice[j]);
    }
    qsort(c.tensor, (size_t)c.count, sizeof *c.tensor, by_name);
    for (int64_t i = 0; i < c.count; i++)
        if (kept == 0 || strcmp(c.tensor[kept - 1].name, c.tensor[i].name) != 0) c.tensor[kept++] = c.tensor[i];
    c.count = kept;
    for (int64_t i = 0; i < kept; i++) {
        c.tensor[i].value = calloc((size_t)c.tensor[i].count, sizeof(double));
        if (!c.tensor[i].value) return no_memory(&c, e);
    }
    *out = c;
    return true;
}

void collection_free(Collection *c) {
    for (int64_t i = 0; i < c->count; i++) free(c->tensor[i].value);
    free(c->tensor);
    *c = (Collection){0};
}

/* ---- Values ----------------------------------------------------------------------------------- */

enum { CHUNK = 4096 };

/* Elements [from, from + count) of a slice, at most CHUNK. */
static void read_values(double *out, Store *s, const Slice *slice, StoreKind kind, int64_t from, int64_t count) {
    double room[CHUNK]; /* for any type */
    store_copy_out(s, slice, kind, from, count, room);
    Tensor t = tensor_at(room, store_type(s, kind), DIM(count));
    for (int64_t i = 0; i < count; i++) out[i] = tensor_get(t, i);
}

void collection_take(const Collection *c, Store *s, StoreKind kind) {
    const Slice *slice;
    int64_t n = store_slices(s, &slice);
    for (int64_t i = 0; i < n; i++) {
        if (!slice[i].owner) continue;
        double *value = collection_find(c, slice[i].name)->value + slice[i].first;
        for (int64_t j = 0; j < slice[i].count; j += CHUNK)
            read_values(value + j, s, &slice[i], kind, j, min64(CHUNK, slice[i].count - j));
    }
}

/* ---- Differences ------------------------------------------------------------------------------ */

double *collection_scales(const Collection *c) {
    double *scale = calloc((size_t)c->count + 1, sizeof *scale), all = 0;
    MUST(scale);
    for (int64_t i = 0; i < c->count; i++) {
        const NamedTensor *t = &c->tensor[i];
        double squares = 0;
        for (int64_t j = 0; j < t->count; j++) squares += t->value[j] * t->value[j];
        scale[i] = sqrt(squares);
        all = hypot(all, scale[i]);
    }
    for (int64_t i = 0; i < c->count; i++) scale[i] = fmax(scale[i], 1e-3 * all);
    return scale;
}

static double squares_off(Store *s, const Slice *slice, StoreKind kind, const double *expected) {
    double got[CHUNK], squares = 0;
    for (int64_t i = 0; i < slice->count; i += CHUNK) {
        int64_t n = min64(CHUNK, slice->count - i);
        read_values(got, s, slice, kind, i, n);
        for (int64_t j = 0; j < n; j++) squares += (got[j] - expected[i + j]) * (got[j] - expected[i + j]);
    }
    return squares;
}

void collection_deviate(Deviation *out, const Collection *expected, Store *s, StoreKind kind) {
    const Slice *slice;
    int64_t n = store_slices(s, &slice);
    for (int64_t i = 0; i < n; i++) {
        const NamedTensor *t = collection_find(expected, slice[i].name);
        Deviation *d = &out[t - expected->tensor];
        double squares = squares_off(s, &slice[i], kind, t->value + slice[i].first);
        *(slice[i].owner ? &d->owned : &d->copied) += squares;
        if (slice[i].owner) d->elements += slice[i].count;
    }
}

static bool farther(double x, double than) {
    return isnan(x) || x > than;
}

Difference collection_difference(const Collection *expected, const Deviation *of, int ranks) {
    double *scale = collection_scales(expected);
    Difference worst = {.tensor = ""};
    for (int64_t i = 0; i < expected->count; i++) {
        double owned = 0, most = 0;
        int64_t elements = 0;
        for (int r = 0; r < ranks; r++) {
            const Deviation *d = &of[r * expected->count + i];
            owned += d->owned;
            elements += d->elements;
            if (farther(d->copied, most)) most = d->copied;
        }
        MUST(elements == expected->tensor[i].count);
        if (farther(owned, most)) most = owned;
        double relative = most == 0 ? 0 : sqrt(most) / scale[i];
        if (isnan(relative)) relative = INFINITY;
        if (relative > worst.relative || i == 0) worst = (Difference){relative, expected->tensor[i].name};
    }
    free(scale);
    return worst;
}
