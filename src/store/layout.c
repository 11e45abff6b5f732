/* The layout table: parts, their segments and parameters, and the slices of Hugging Face tensors that this rank
 * holds. */
#include "store/layout.h"

#include <stdlib.h>

static const ParameterName embed_parameters[] = {EMBED};
static const ParameterName layer_parameters[] = {ATTENTION_NORM, Q,      K,           V,         O,
                                                 Q_NORM,         K_NORM, MLP_NORM,    MLP_GATE,  MLP_UP,
                                                 MLP_DOWN,       ROUTER, EXPERT_GATE, EXPERT_UP, EXPERT_DOWN};
static const ParameterName head_parameters[] = {FINAL_NORM, HEAD};

static const struct {
    AxisName shards, replicas;
} axes[SEGMENT_COUNT] = {
    [SEGMENT_DENSE] = {AXIS_DENSE, AXIS_DENSE_REPLICA},
    [SEGMENT_EXPERTS] = {AXIS_EXPERT_SHARD, AXIS_EXPERT_REPLICA},
    [SEGMENT_VOCABULARY] = {AXIS_VOCABULARY, AXIS_VOCABULARY_REPLICA},
};

static int64_t elements(const Shape *s) {
    int64_t n = 1;
    for (int i = 0; i < s->dims; i++) n *= s->dim[i];
    return n;
}

/* A parameter as this rank uses it: whole, its experts, or its rows of the vocabulary. */
static Entry entry_of(const Layout *l, const Mesh *mesh, ParameterName name, Shape shape) {
    bool rows = (name == EMBED || name == HEAD) && mesh->axis[AXIS_VOCABULARY].size > 1;
    Entry e = {.parameter = name, .segment = SEGMENT_DENSE, .shape = shape, .tensors = 1};
    if (shape.expert) {
        e.segment = SEGMENT_EXPERTS;
        e.tensors = e.shape.dim[0] = l->experts.here;
    } else if (rows) {
        e.segment = SEGMENT_VOCABULARY;
        e.shape.dim[0] = l->vocabulary.here;
        e.first_element = l->vocabulary.first * shape.dim[1];
    }
    e.count = elements(&e.shape);
    return e;
}

static void lay_out(PartLayout *p, const Spec *spec, const Mesh *mesh, const Layout *l, const ParameterName *names,
                    size_t n) {
    for (size_t i = 0; i < n; i++) {
        Shape shape;
        if (!spec_shape(spec, names[i], p->layer, &shape)) continue;
        Entry *e = &p->entry[p->entries++];
        *e = entry_of(l, mesh, names[i], shape);
        e->at = p->segment[e->segment].whole;
        p->segment[e->segment].whole += e->count;
        p->segment[e->segment].entries++;
    }
    for (int i = 0; i < SEGMENT_COUNT; i++) {
        Segment *s = &p->segment[i];
        const Axis *a = &mesh->axis[axes[i].shards];
        int64_t members = i == SEGMENT_VOCABULARY ? 1 : a->size; /* its rows are already those of this rank */
        s->shards = axes[i].shards;
        s->replicas = axes[i].replicas;
        s->moves = members > 1;
        s->shard = ceil_div(s->whole, members);
        s->whole = s->shard * members;
        s->begin = s->moves ? a->index * s->shard : 0;
        s->at = p->kept;
        p->kept += s->shard;
    }
}

/* ---- Slices ----------------------------------------------------------------------------------- */

Kept layout_kept(const PartLayout *p, const Entry *e, int64_t first, int64_t count) {
    const Segment *s = &p->segment[e->segment];
    int64_t from = max64(s->begin, e->at + first), to = min64(s->begin + s->shard, e->at + first + count);
    if (from >= to) return (Kept){.at = s->at};
    return (Kept){.at = s->at + from - s->begin, .count = to - from, .first = from - e->at};
}

/* What this rank keeps of one entry: a slice of each of its tensors, where it has any of it. */
static void slice_entry(Layout *l, int64_t part, const Entry *e, const Spec *spec, const Mesh *mesh) {
    const PartLayout *p = &l->part[part];
    Shape whole;
    MUST(spec_shape(spec, e->parameter, p->layer, &whole));
    int lead = whole.expert ? 1 : 0; /* the tensor of one expert has no expert dimension */
    Slice s = {.dims = whole.dims - lead, .parameter = e->parameter, .layer = p->layer, .part = part};
    for (int d = 0; d < s.dims; d++) s.dim[d] = whole.dim[d + lead];
    s.owner = mesh->axis[p->segment[e->segment].replicas].index == 0;
    for (int64_t x = 0; x < e->tensors; x++) {
        int64_t each = e->count / e->tensors;
        Kept k = layout_kept(p, e, x * each, each);
        if (k.count == 0) continue;
        s.expert = whole.expert ? l->experts.first + x : -1;
        s.first = e->first_element + k.first - x * each;
        s.count = k.count;
        s.at = k.at;
        spec_name(spec, s.parameter, s.layer, s.expert, s.name, sizeof s.name);
        l->slice[l->slices++] = s;
    }
}

/* The parts, and room for what slices they have. */
static bool make_room(Layout *l, bool slices) {
    l->part = calloc((size_t)l->parts, sizeof *l->part);
    if (!slices || !l->part) return l->part != NULL;
    l->slice = calloc((size_t)l->parts * (PARAMETER_COUNT + 3 * (size_t)l->experts.here), sizeof *l->slice);
    return l->slice != NULL;
}

Layout *layout_open(const Spec *spec, const Mesh *mesh, bool slices) {
    Layout *l = calloc(1, sizeof *l);
    if (!l) return NULL;
    l->experts = axis_share(&mesh->axis[AXIS_EXPERT], spec->experts);
    l->vocabulary = axis_share(&mesh->axis[AXIS_VOCABULARY], spec->vocabulary);
    l->parts = spec->layers + 2;
    if (!make_room(l, slices)) {
        layout_close(l);
        return NULL;
    }
    for (int64_t i = 0; i < l->parts; i++) {
        PartLayout *p = &l->part[i];
        p->layer = i == 0 || i == l->parts - 1 ? -1 : i - 1;
        if (i == 0)
            lay_out(p, spec, mesh, l, embed_parameters, COUNT(embed_parameters));
        else if (i == l->parts - 1)
            lay_out(p, spec, mesh, l, head_parameters, COUNT(head_parameters));
        else
            lay_out(p, spec, mesh, l, layer_parameters, COUNT(layer_parameters));
    }
    for (int64_t i = 0; slices && i < l->parts; i++)
        for (int j = 0; j < l->part[i].entries; j++) slice_entry(l, i, &l->part[i].entry[j], spec, mesh);
    return l;
}

void layout_close(Layout *l) {
    if (!l) return;
    free(l->slice);
    free(l->part);
    free(l);
}
