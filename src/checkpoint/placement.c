/* Tensors are taken in one order (embedding, layer after layer, head) and filled into files until one is full.
 * First names and sizes are gone through to find the files, then again to write their headers, then bytes are
 * counted from each header's end. */
#include "checkpoint/placement.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const int64_t placement_shard = 5000000000;

/* Of one tensor in its file: those of the optimizer side by side. */
static const struct {
    StoreKind kind;
    const char *suffix;
} rows[] = {{STORE_WEIGHT, ""}, {STORE_M, ".exp_avg"}, {STORE_V, ".exp_avg_sq"}, {STORE_MASTER, ".master"}};

/* ---- Tensors ---------------------------------------------------------------------------------- */

static bool is_once(ParameterName p) {
    return p == EMBED || p == FINAL_NORM || p == HEAD;
}

static int64_t add_parameter(Placement *p, ParameterName parameter, int64_t layer, bool write) {
    Shape s;
    if (!spec_shape(p->spec, parameter, layer, &s)) return 0;
    int64_t experts = s.expert ? s.dim[0] : 1;
    for (int64_t i = 0; write && i < experts; i++) {
        int64_t *dim = s.dim + s.expert;
        int dims = s.dims - s.expert;
        Placed t = {.parameter = parameter,
                    .layer = is_once(parameter) ? -1 : layer,
                    .expert = s.expert ? i : -1,
                    .dims = dims};
        t.dim[0] = dim[0];
        t.dim[1] = dims > 1 ? dim[1] : 1;
        t.elements = t.dim[0] * t.dim[1];
        for (int k = 0; k < PLACED_KINDS; k++) t.at[k].file = -1;
        p->tensors[p->count++] = t;
    }
    return experts;
}

/* How many tensors there are; with `write` they are listed too. */
static int64_t add_tensors(Placement *p, bool write) {
    int64_t count = add_parameter(p, EMBED, 0, write);
    for (int64_t layer = 0; layer < p->spec->layers; layer++) {
        for (int parameter = 0; parameter < PARAMETER_COUNT; parameter++) {
            if (!is_once(parameter)) count += add_parameter(p, parameter, layer, write);
        }
    }
    return count + add_parameter(p, FINAL_NORM, 0, write) + add_parameter(p, HEAD, 0, write);
}

void placed_name(const Placement *p, const Placed *t, StoreKind kind, char out[PLACED_NAME]) {
    spec_name(p->spec, t->parameter, t->layer, t->expert, out, PLACED_NAME - 16);
    for (size_t i = 0; i < COUNT(rows); i++) {
        if (rows[i].kind == kind) strcat(out, rows[i].suffix);
    }
}

static int64_t order(ParameterName parameter, int64_t layer, int64_t expert) {
    int64_t part = parameter == EMBED ? 0 : is_once(parameter) ? MAX_LAYERS + 1 : layer + 1;
    return (part * PARAMETER_COUNT + parameter) * (MAX_EXPERTS + 1) + expert + 1;
}

static int by_order(const void *x, const void *y) {
    const Placed *a = x, *b = y;
    int64_t i = order(a->parameter, a->layer, a->expert), j = order(b->parameter, b->layer, b->expert);
    return (i > j) - (i < j);
}

const Placed *placement_find(const Placement *p, ParameterName parameter, int64_t layer, int64_t expert) {
    Placed key = {.parameter = parameter, .layer = layer, .expert = expert};
    return bsearch(&key, p->tensors, (size_t)p->count, sizeof key, by_order);
}

/* ---- Files ------------------------------------------------------------------------------------ */

static bool is_model(StoreKind kind) {
    return kind == STORE_WEIGHT;
}

/* Gives every tensor of the model's (or the optimizer's) files a file; returns how many files that takes. */
static int fill_files(Placement *p, bool model, bool master, int first, int64_t shard) {
    int file = first;
    int64_t held = 0;
    for (int64_t i = 0; i < p->count; i++) {
        for (size_t r = 0; r < COUNT(rows); r++) {
            StoreKind kind = rows[r].kind;
            if (is_model(kind) != model || (kind == STORE_MASTER && !master)) continue;
            int64_t bytes = p->tensors[i].elements * (int64_t)type_bytes(p->type[kind]);
            if (held > 0 && held + bytes > shard) {
                file++;
                held = 0;
            }
            held += bytes;
            p->tensors[i].at[kind].file = file;
        }
    }
    return file + 1 - first;
}

static void name_files(Placement *p) {
    for (int f = 0; f < p->file_count; f++) {
        bool model = f < p->model_files;
        int number = model ? f + 1 : f - p->model_files + 1,
            of = model ? p->model_files : p->file_count - p->model_files;
        char *name = p->files[f].name;
        if (model && of == 1)
            snprintf(name, sizeof p->files[f].name, "model.safetensors");
        else
            snprintf(name, sizeof p->files[f].name, "%s-%05d-of-%05d.safetensors", model ? "model" : "optim", number,
                     of);
    }
}

static bool write_headers(Placement *p) {
    for (int f = 0; f < p->file_count; f++) header_begin(&p->files[f].header);
    for (int64_t i = 0; i < p->count; i++) {
        Placed *t = &p->tensors[i];
        for (size_t r = 0; r < COUNT(rows); r++) {
            Place *place = &t->at[rows[r].kind];
            char name[PLACED_NAME];
            if (place->file < 0) continue;
            Header *h = &p->files[place->file].header;
            placed_name(p, t, rows[r].kind, name);
            place->begin = h->data;
            header_add(h, name, stored_from(p->type[rows[r].kind]), t->dims, t->dim);
        }
    }
    for (int f = 0; f < p->file_count; f++) {
        Header *h = &p->files[f].header;
        if (!header_end(h)) return false;
        p->files[f].bytes = (int64_t)h->text.bytes + h->data;
    }
    return true;
}

static void begin_after_headers(Placement *p) {
    for (int64_t i = 0; i < p->count; i++) {
        for (int k = 0; k < PLACED_KINDS; k++) {
            Place *place = &p->tensors[i].at[k];
            if (place->file >= 0) place->begin += (int64_t)p->files[place->file].header.text.bytes;
        }
    }
}

bool placement_open(Placement *p, const Spec *spec, Type type, bool state, int64_t shard, Error *e) {
    Type sum = type_sum(type);
    *p = (Placement){.spec = spec,
                     .type = {[STORE_WEIGHT] = type, [STORE_MASTER] = sum, [STORE_M] = sum, [STORE_V] = sum}};
    p->tensors = calloc((size_t)add_tensors(p, false), sizeof *p->tensors);
    if (p->tensors) {
        add_tensors(p, true);
        p->model_files = fill_files(p, true, false, 0, shard);
        p->file_count = p->model_files + (state ? fill_files(p, false, type == BF16, p->model_files, shard) : 0);
        p->files = calloc((size_t)p->file_count, sizeof *p->files);
    }
    if (p->files && write_headers(p)) {
        name_files(p);
        begin_after_headers(p);
        return true;
    }
    placement_close(p);
    return fail(e, EXIT_MEMORY, "out of memory for the list of a checkpoint's tensors; checkpoint; free some memory");
}

void placement_close(Placement *p) {
    for (int f = 0; p->files && f < p->file_count; f++) free(p->files[f].header.text.text);
    free(p->files);
    free(p->tensors);
    *p = (Placement){0};
}

json_t *placement_index(const Placement *p) {
    MUST(p->model_files > 1);
    json_t *map = json_object();
    int64_t total = 0;
    for (int64_t i = 0; i < p->count; i++) {
        const Placed *t = &p->tensors[i];
        char name[PLACED_NAME];
        placed_name(p, t, STORE_WEIGHT, name);
        json_object_set_new(map, name, json_string(p->files[t->at[STORE_WEIGHT].file].name));
        total += t->elements * (int64_t)type_bytes(p->type[STORE_WEIGHT]);
    }
    return json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)total, "weight_map", map);
}
