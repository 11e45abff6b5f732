/* The layout table: parts, their parameters, and the slices of Hugging Face tensors that this rank holds. */
#include "store/layout.h"

#include <stdlib.h>

static const ParameterName embed_parameters[] = {EMBED};
static const ParameterName layer_parameters[] = {ATTENTION_NORM, Q,      K,           V,         O,
                                                 Q_NORM,         K_NORM, MLP_NORM,    MLP_GATE,  MLP_UP,
                                                 MLP_DOWN,       ROUTER, EXPERT_GATE, EXPERT_UP, EXPERT_DOWN};
static const ParameterName head_parameters[] = {FINAL_NORM, HEAD};

static int64_t elements(const Shape *s) {
    int64_t n = 1;
    for (int i = 0; i < s->dims; i++) n *= s->dim[i];
    return n;
}

/* Dense parameters first: their offsets count in the flat part; experts' follow the shard. */
static void lay_out(PartLayout *p, const Spec *spec, const Layout *l, const ParameterName *names, size_t n,
                    int64_t members) {
    for (int experts = 0; experts < 2; experts++) {
        int64_t at = experts ? p->shard : 0;
        for (size_t i = 0; i < n; i++) {
            Entry e = {.parameter = names[i], .at = at};
            if (!spec_shape(spec, names[i], p->layer, &e.shape) || e.shape.expert != (experts == 1)) continue;
            e.count = experts ? elements(&e.shape) / e.shape.dim[0] * l->experts_here : elements(&e.shape);
            at += e.count;
            p->entry[p->entries++] = e;
        }
        if (!experts) {
            p->dense_entries = p->entries;
            p->shard = ceil_div(at, members);
            p->whole = p->shard * members;
        }
        p->kept = experts ? at : p->shard;
    }
}

/* ---- Slices ----------------------------------------------------------------------------------- */

static void add_slice(Layout *l, const Spec *spec, const Slice *of, int64_t expert) {
    Slice *s = &l->slice[l->slices++];
    *s = *of;
    s->expert = expert;
    spec_name(spec, s->parameter, s->layer, expert, s->name, sizeof s->name);
}

static void slice_part(Layout *l, int64_t part, const Spec *spec, const Mesh *mesh) {
    const PartLayout *p = &l->part[part];
    int64_t begin = mesh->axis[AXIS_DENSE].index * p->shard, end = begin + p->shard;
    for (int i = 0; i < p->entries; i++) {
        const Entry *e = &p->entry[i];
        int lead = e->shape.expert ? 1 : 0; /* the tensor of one expert has no expert dimension */
        Slice s = {.dims = e->shape.dims - lead, .parameter = e->parameter, .layer = p->layer, .part = part};
        for (int d = 0; d < s.dims; d++) s.dim[d] = e->shape.dim[d + lead];
        if (!e->shape.expert) {
            int64_t from = max64(begin, e->at), to = min64(end, e->at + e->count);
            s.first = from - e->at;
            s.count = to - from;
            s.at = from - begin;
            s.owner = mesh->axis[AXIS_DENSE_REPLICA].index == 0;
            if (s.count > 0) add_slice(l, spec, &s, -1);
            continue;
        }
        s.count = l->experts_here ? e->count / l->experts_here : 0;
        s.owner = mesh->axis[AXIS_EXPERT_REPLICA].index == 0;
        for (int64_t x = 0; x < l->experts_here; x++) {
            s.at = e->at + x * s.count;
            add_slice(l, spec, &s, l->expert_first + x);
        }
    }
}

Layout *layout_open(const Spec *spec, const Mesh *mesh) {
    Layout *l = calloc(1, sizeof *l);
    MUST(l);
    Axis expert = mesh->axis[AXIS_EXPERT];
    int64_t members = mesh->axis[AXIS_DENSE].size;
    l->experts_each = max64(1, ceil_div(spec->experts, expert.size));
    l->expert_first = min64(spec->experts, expert.index * l->experts_each);
    l->experts_here = min64(l->experts_each, spec->experts - l->expert_first);
    l->parts = spec->layers + 2;
    l->part = calloc((size_t)l->parts, sizeof *l->part);
    l->slice = calloc((size_t)l->parts * (PARAMETER_COUNT + 3 * (size_t)l->experts_here), sizeof *l->slice);
    MUST(l->part && l->slice);
    for (int64_t i = 0; i < l->parts; i++) {
        PartLayout *p = &l->part[i];
        p->layer = i == 0 || i == l->parts - 1 ? -1 : i - 1;
        if (i == 0)
            lay_out(p, spec, l, embed_parameters, COUNT(embed_parameters), members);
        else if (i == l->parts - 1)
            lay_out(p, spec, l, head_parameters, COUNT(head_parameters), members);
        else
            lay_out(p, spec, l, layer_parameters, COUNT(layer_parameters), members);
    }
    for (int64_t i = 0; i < l->parts; i++) slice_part(l, i, spec, mesh);
    return l;
}

void layout_close(Layout *l) {
    if (!l) return;
    free(l->slice);
    free(l->part);
    free(l);
}
