/* Which stored tensor is which of the model's: by name and shape, in the per-expert or the fused spelling. All
 * that does not fit is gathered first and said together, because one wrong config makes a thousand wrong
 * tensors. */
#include "checkpoint/source.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAMED = 3 }; /* names of each kind of trouble that a message tells */

typedef struct {
    int64_t count;
    char names[NAMED * 208];
} Trouble;

typedef struct {
    const Source *source;
    const Placement *placement;
    Found *found;
    bool *used; /* of the files' tensors, file after file */
    Trouble missing, unused, misshapen;
} Binding;

__attribute__((format(printf, 2, 3))) static void note(Trouble *t, const char *format, ...) {
    size_t n = strlen(t->names);
    if (t->count++ >= NAMED) return;
    if (n > 0) n += (size_t)snprintf(t->names + n, sizeof t->names - n, ", ");
    va_list list;
    va_start(list, format);
    vsnprintf(t->names + n, sizeof t->names - n, format, list);
    va_end(list);
}

/* ---- Looking ---------------------------------------------------------------------------------- */

/* False when it was used before: a fused tensor is looked for by every expert, and in trouble only once. */
static bool mark(Binding *b, const Found *f) {
    int64_t at = f->tensor - b->source->files[f->file].tensors;
    for (int i = 0; i < f->file; i++) at += b->source->files[i].count;
    bool first = !b->used[at];
    b->used[at] = true;
    return first;
}

/* Among the model's files, or among the optimizer's. */
static Found look(const Binding *b, const char *name, bool state) {
    const Source *s = b->source;
    int first = state ? s->model_files : 0, end = state ? s->file_count : s->model_files;
    for (int i = first; i < end; i++) {
        const StoredTensor *t = safetensors_find(&s->files[i], name);
        if (t) return (Found){.file = i, .tensor = t};
    }
    return (Found){0};
}

/* transformers 5's tensor of all experts, and where in it this one's matrix begins. `dim` gets its shape. */
static Found look_fused(const Binding *b, const Placed *t, int *dims, int64_t dim[3]) {
    const Family *family = b->placement->spec->family;
    const char *pattern = t->parameter == ROUTER        ? family->fused_router
                          : t->expert < 0               ? NULL
                          : t->parameter == EXPERT_DOWN ? family->fused_down
                                                        : family->fused_gate_up;
    const char *layer = pattern ? strstr(pattern, "%L") : NULL;
    char name[PLACED_NAME];
    if (!layer) return (Found){0};
    snprintf(name, sizeof name, "%.*s%lld%s", (int)(layer - pattern), pattern, (long long)t->layer, layer + 2);
    Found f = look(b, name, false);
    if (t->parameter == ROUTER) return f;
    int64_t halves = t->parameter == EXPERT_DOWN ? 1 : 2;
    *dims = 3;
    dim[0] = b->placement->spec->experts;
    dim[1] = halves * t->dim[0];
    dim[2] = t->dim[1];
    f.first = (halves * t->expert + (t->parameter == EXPERT_UP)) * t->elements;
    return f;
}

/* ---- Binding ---------------------------------------------------------------------------------- */

static void shape_text(int dims, const int64_t *dim, char *out, size_t bytes) {
    size_t n = 0;
    for (int i = 0; i < dims && n < bytes; i++)
        n += (size_t)snprintf(out + n, bytes - n, i > 0 ? ", %lld" : "%lld", (long long)dim[i]);
}

static bool fits(const Found *f, int dims, const int64_t *dim) {
    const StoredTensor *t = f->tensor;
    return stored_is_real(t->type) && t->dims == dims && memcmp(t->dim, dim, (size_t)dims * sizeof *dim) == 0;
}

static void note_misshapen(Binding *b, const StoredTensor *t, int dims, const int64_t *dim) {
    char is[48] = "", must[48] = "";
    shape_text(t->dims, t->dim, is, sizeof is);
    shape_text(dims, dim, must, sizeof must);
    note(&b->misshapen, "%s %s [%s] instead of [%s]", text_shown(t->name).text, stored_name(t->type), is, must);
}

static void bind_one(Binding *b, const Placed *t, StoreKind kind) {
    char name[PLACED_NAME];
    int dims = t->dims;
    int64_t dim[3] = {t->dim[0], t->dim[1]};
    placed_name(b->placement, t, kind, name);
    Found f = look(b, name, kind != STORE_WEIGHT);
    if (!f.tensor && kind == STORE_WEIGHT) f = look_fused(b, t, &dims, dim);
    if (!f.tensor) {
        note(&b->missing, "%s", text_shown(name).text);
        return;
    }
    bool first = mark(b, &f);
    if (fits(&f, dims, dim))
        b->found[(t - b->placement->tensors) * PLACED_KINDS + kind] = f;
    else if (first)
        note_misshapen(b, f.tensor, dims, dim);
}

static void note_unused(Binding *b) {
    const Source *s = b->source;
    int64_t at = 0;
    for (int i = 0; i < s->file_count; i++) {
        for (int64_t k = 0; k < s->files[i].count; k++, at++) {
            if (!b->used[at]) note(&b->unused, "%s", text_shown(s->files[i].tensors[k].name).text);
        }
    }
}

/* ---- A tied head that is stored too ----------------------------------------------------------- */

enum { COMPARED = 1 << 16 }; /* bytes at a time */

static bool same_bytes(const Source *s, const Found *x, const Found *y, bool *same, Error *e) {
    const StoredTensor *a = x->tensor, *b = y->tensor;
    int64_t bytes = a->end - a->begin;
    *same = a->type == b->type && b->end - b->begin == bytes;
    char *memory = malloc(2 * COMPARED);
    bool done =
        memory || fail(e, EXIT_MEMORY, "out of memory while finding tensors; %s; free some memory", s->path.text);
    for (int64_t at = 0; done && *same && at < bytes; at += COMPARED) {
        size_t n = (size_t)min64(COMPARED, bytes - at);
        done = safetensors_read(&s->files[x->file], a->begin + at, n, memory, e) &&
               safetensors_read(&s->files[y->file], b->begin + at, n, memory + COMPARED, e);
        *same = done && memcmp(memory, memory + COMPARED, n) == 0;
    }
    free(memory);
    return done;
}

/* Some programs store it although it is the embedding. Equal to the bit it says nothing; another one says that config.json
 * or the file is wrong, and only the user knows which. */
static bool check_tied_head(Binding *b, Error *e) {
    const Spec *spec = b->placement->spec;
    char name[PLACED_NAME];
    if (!spec->tied) return true;
    spec_name(spec, HEAD, -1, -1, name, sizeof name);
    Found head = look(b, name, false);
    const Placed *embedding = placement_find(b->placement, EMBED, -1, -1);
    const Found *found = &b->found[(embedding - b->placement->tensors) * PLACED_KINDS + STORE_WEIGHT];
    if (!head.tensor || !found->tensor) return true;
    bool same;
    mark(b, &head);
    if (!same_bytes(b->source, &head, found, &same, e)) return false;
    return same || fail(e, EXIT_DATA,
                        "config.json ties the head to the embedding, and another head is stored too; %s, "
                        "tensor %s; set tie_word_embeddings to false if it is meant, or leave it out of the file",
                        b->source->path.text, text_shown(name).text);
}

/* ---- All together ----------------------------------------------------------------------------- */

static bool report(const Binding *b, Error *e) {
    const struct {
        const Trouble *trouble;
        const char *what;
    } all[] = {{&b->missing, "missing"}, {&b->misshapen, "of another shape or type"}, {&b->unused, "not used"}};
    char text[sizeof(Trouble) * COUNT(all)] = "";
    for (size_t i = 0; i < COUNT(all); i++) {
        size_t n = strlen(text);
        int64_t count = all[i].trouble->count;
        if (count == 0) continue;
        snprintf(text + n, sizeof text - n, "%s%lld %s (%s%s)", n > 0 ? ", " : "", (long long)count, all[i].what,
                 all[i].trouble->names, count > NAMED ? ", ..." : "");
    }
    if (!*text) return true;
    return fail(e, EXIT_DATA, "tensors do not fit the model: %s; %s; check that config.json belongs to them", text,
                b->source->path.text);
}

Found *source_bind(const Source *s, const Placement *p, bool state, Error *e) {
    Binding b = {.source = s, .placement = p};
    int64_t stored = 0;
    for (int i = 0; i < s->file_count; i++) stored += s->files[i].count;
    b.found = calloc((size_t)p->count * PLACED_KINDS, sizeof *b.found);
    b.used = calloc((size_t)stored + 1, sizeof *b.used);
    bool done = b.found && b.used;
    if (!done) fail(e, EXIT_MEMORY, "out of memory while finding tensors; %s; free some memory", s->path.text);
    for (int64_t i = 0; done && i < p->count; i++) {
        for (int k = 0; k < PLACED_KINDS; k++) {
            bool kept = k == STORE_WEIGHT || (state && p->tensors[i].at[k].file >= 0);
            if (kept) bind_one(&b, &p->tensors[i], k);
        }
    }
    done = done && check_tied_head(&b, e);
    if (done) note_unused(&b);
    done = done && report(&b, e);
    free(b.used);
    if (done) return b.found;
    free(b.found);
    return NULL;
}
