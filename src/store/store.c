/* The store: fetch, release, give. Everything a rank keeps of a part is one vector (layout.h), so that one AdamW updates it and one
 * address holds it.
 *
 *   forward   fetch(l): due AdamW on the kept vector -> all_gather of the dense shard into a slot   (l + 1 moves behind)
 *   backward  gradients(l): zeroed slot -> layer_backward adds -> give(l): reduce_scatter into the shard's gradient, then all_reduce over
 *             the replicas; experts' gradients are added to in place and all_reduced over their replicas
 *
 * Slots: two for layers (l and its neighbour), one for the embedding, one for the head; the last two share memory unless the
 * embeddings are tied, when the head needs both. With Z = 1 the slot is the kept vector itself and nothing moves.
 */
#include "store/layout.h"

#include "base/random.h"
#include "device/pool.h"
#include "ops/kernels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    Tensor weight, low, m, v, gradient; /* [kept]; low only beside bf16 weights */
    Tensor whole, whole_gradient;       /* [whole]: the slot's memory */
    bool moving, due;
    Event here, given;
} Part;

struct Store {
    const Spec *spec;
    Comm *comm;
    Device *device;
    Stream *compute, *network;
    Type real, sum;
    Layout *layout;
    Part *part;
    StoreArenas arenas;
    AdamW update;
    Tensor norms, totals, gathered; /* fp64: one per dense then expert entry; [2]; [world] */
    int64_t dense_norms, expert_norms;
};

int64_t store_parts(const Store *s) {
    return s->layout->parts;
}

StoreArenas *store_arenas(Store *s) {
    return &s->arenas;
}

/* ---- Opening ---------------------------------------------------------------------------------- */

static bool sharded(const Store *s) {
    return s->comm->mesh.axis[AXIS_DENSE].size > 1;
}

static Component part_component(const Store *s, int64_t part) {
    return part == 0 || part == s->layout->parts - 1 ? COMPONENT_VOCABULARY
           : s->spec->dense[part - 1]                ? COMPONENT_DENSE
                                                     : COMPONENT_EXPERTS;
}

static void open_part(Store *s, int64_t i) {
    Part *p = &s->part[i];
    int64_t n = s->layout->part[i].kept;
    Component before = device_component(s->device, part_component(s, i));
    p->weight = arena_tensor(&s->arenas.weights, s->real, DIM(n));
    if (s->real == BF16) p->low = arena_tensor(&s->arenas.state, BYTE, DIM(2 * n));
    p->m = arena_tensor(&s->arenas.state, s->sum, DIM(n));
    p->v = arena_tensor(&s->arenas.state, s->sum, DIM(n));
    p->gradient = arena_tensor(&s->arenas.gradients, s->sum, DIM(n));
    zero(s->compute, p->weight);
    if (s->real == BF16) zero(s->compute, p->low);
    zero(s->compute, p->m);
    zero(s->compute, p->v);
    device_component(s->device, before);
}

static Tensor whole_view(Tensor slot, int64_t elements) {
    return tensor_rows(slot, 0, elements);
}

/* Slot memory of one kind (weights or gradients); returns through whole() which part uses what. */
static void open_slots(Store *s, bool gradients) {
    const Layout *l = s->layout;
    Type type = gradients ? s->sum : s->real;
    Arena *a = &s->arenas.slots;
    int64_t last = l->parts - 1, layer = 0;
    for (int64_t i = 1; i < last; i++) layer = max64(layer, l->part[i].whole);
    int64_t embed = l->part[0].whole, head = l->part[last].whole;
    Component before = device_component(s->device, COMPONENT_DENSE);
    Tensor slot[2] = {arena_tensor(a, type, DIM(layer)), arena_tensor(a, type, DIM(layer))};
    device_component(s->device, COMPONENT_VOCABULARY);
    Tensor first = arena_tensor(a, type, DIM(s->spec->tied ? embed : max64(embed, head)));
    Tensor second = s->spec->tied ? arena_tensor(a, type, DIM(head)) : first;
    device_component(s->device, before);
    for (int64_t i = 0; i <= last; i++) {
        Tensor memory = whole_view(i == 0 ? first : i == last ? second : slot[i % 2], l->part[i].whole);
        *(gradients ? &s->part[i].whole_gradient : &s->part[i].whole) = memory;
    }
}

static void alias_slots(Store *s) {
    for (int64_t i = 0; i < s->layout->parts; i++) {
        Part *p = &s->part[i];
        p->whole = tensor_rows(p->weight, 0, s->layout->part[i].whole);
        p->whole_gradient = tensor_rows(p->gradient, 0, s->layout->part[i].whole);
    }
}

static void open_norms(Store *s) {
    for (int64_t i = 0; i < s->layout->parts; i++) {
        s->dense_norms += s->layout->part[i].dense_entries;
        s->expert_norms += s->layout->part[i].entries - s->layout->part[i].dense_entries;
    }
    s->norms = arena_tensor(&s->arenas.gradients, FP64, DIM(s->dense_norms + s->expert_norms, 1));
    s->totals = arena_tensor(&s->arenas.gradients, FP64, DIM(2, 1));
    s->gathered = arena_tensor(&s->arenas.gradients, FP64, DIM(s->comm->mesh.world));
}

Store *store_open(const Config *c, const Spec *spec, Comm *comm, const size_t capacity[4], Error *e) {
    Store *s = calloc(1, sizeof *s);
    MUST(s);
    Device *d = comm->device;
    *s = (Store){.spec = spec,
                 .comm = comm,
                 .device = d,
                 .real = c->compute_type,
                 .sum = type_sum(c->compute_type),
                 .compute = &d->stream[STREAM_COMPUTE],
                 .network = &d->stream[STREAM_NETWORK]};
    s->layout = layout_open(spec, &comm->mesh);
    s->part = calloc((size_t)s->layout->parts, sizeof *s->part);
    MUST(s->part);
    bool ok = arena_open(&s->arenas.weights, d, "weights", TIER_DEVICE, capacity[0], e) &&
              arena_open(&s->arenas.state, d, "optimizer", TIER_DEVICE, capacity[1], e) &&
              arena_open(&s->arenas.gradients, d, "gradients", TIER_DEVICE, capacity[2], e) &&
              arena_open(&s->arenas.slots, d, "slots", TIER_DEVICE, capacity[3], e);
    if (!ok) {
        store_close(s);
        return NULL;
    }
    for (int64_t i = 0; i < s->layout->parts; i++) open_part(s, i);
    if (sharded(s)) {
        open_slots(s, false);
        open_slots(s, true);
    } else {
        alias_slots(s);
    }
    open_norms(s);
    return s;
}

void store_close(Store *s) {
    if (!s) return;
    arena_close(&s->arenas.slots);
    arena_close(&s->arenas.gradients);
    arena_close(&s->arenas.state);
    arena_close(&s->arenas.weights);
    layout_close(s->layout);
    free(s->part);
    free(s);
}

/* ---- Views ------------------------------------------------------------------------------------ */

static Tensor view_entry(const Entry *e, Tensor whole, Tensor kept, int64_t experts_here) {
    Shape shape = e->shape;
    if (shape.expert) shape.dim[0] = experts_here;
    return tensor_view(tensor_rows(shape.expert ? kept : whole, e->at, e->count), shape.dims, shape.dim);
}

static void view_part(const Store *s, int64_t part, Tensor whole, Tensor kept, Weights *out) {
    const PartLayout *l = &s->layout->part[part];
    for (int i = 0; i < l->entries; i++)
        out->at[l->entry[i].parameter] = view_entry(&l->entry[i], whole, kept, s->layout->experts_here);
}

static bool is_head(const Store *s, int64_t part) {
    return part == s->layout->parts - 1;
}

/* ---- Fetch and release ------------------------------------------------------------------------ */

static void apply_due(Store *s, int64_t part) {
    Part *p = &s->part[part];
    if (!p->due) return;
    Component before = device_component(s->device, COMPONENT_OPTIMIZER);
    adamw(s->compute, p->weight, p->low, p->m, p->v, p->gradient, s->update);
    device_component(s->device, before);
    p->due = false;
}

static void start_moving(Store *s, int64_t part) {
    Part *p = &s->part[part];
    if (p->moving) return;
    p->moving = true;
    apply_due(s, part);
    if (!sharded(s)) return;
    stream_wait(s->network, event_record(s->compute)); /* the slot's last reader, and the update */
    all_gather(&s->comm->group[AXIS_DENSE], s->network, p->whole,
               tensor_rows(p->weight, 0, s->layout->part[part].shard));
    p->here = event_record(s->network);
}

static void fetch_into(Store *s, int64_t part, Weights *out) {
    Part *p = &s->part[part];
    start_moving(s, part);
    stream_wait(s->compute, p->here);
    view_part(s, part, p->whole, p->weight, out);
}

Weights store_fetch(Store *s, int64_t part, int64_t next) {
    Weights w = {0};
    fetch_into(s, part, &w);
    if (is_head(s, part) && s->spec->tied) {
        fetch_into(s, 0, &w);
        w.at[HEAD] = w.at[EMBED];
    }
    if (next >= 0) start_moving(s, next);
    return w;
}

void store_release(Store *s, int64_t part) {
    s->part[part].moving = false;
    if (is_head(s, part) && s->spec->tied) s->part[0].moving = false;
}

/* ---- Gradients -------------------------------------------------------------------------------- */

static void lend(Store *s, int64_t part, Weights *out) {
    Part *p = &s->part[part];
    const PartLayout *l = &s->layout->part[part];
    if (sharded(s)) zero(s->compute, p->whole_gradient);
    zero(s->compute, sharded(s) ? tensor_rows(p->gradient, l->shard, l->kept - l->shard) : p->gradient);
    view_part(s, part, p->whole_gradient, p->gradient, out);
}

/* The slot's last user may still be summing it over the network. */
static void await_slot(Store *s, int64_t part) {
    for (int64_t i = 0; i < s->layout->parts; i++)
        if (s->part[i].whole_gradient.data == s->part[part].whole_gradient.data)
            stream_wait(s->compute, s->part[i].given);
}

Weights store_gradients(Store *s, int64_t part) {
    Weights w = {0};
    if (part == 0 && s->spec->tied) { /* lent since the head */
        view_part(s, 0, s->part[0].whole_gradient, s->part[0].gradient, &w);
        return w;
    }
    await_slot(s, part);
    lend(s, part, &w);
    if (is_head(s, part) && s->spec->tied) {
        await_slot(s, 0);
        lend(s, 0, &w);
        w.at[HEAD] = w.at[EMBED];
    }
    return w;
}

void store_give(Store *s, int64_t part) {
    Part *p = &s->part[part];
    const PartLayout *l = &s->layout->part[part];
    Tensor shard = tensor_rows(p->gradient, 0, l->shard),
           experts = tensor_rows(p->gradient, l->shard, l->kept - l->shard);
    stream_wait(s->network, event_record(s->compute));
    if (sharded(s)) reduce_scatter(&s->comm->group[AXIS_DENSE], s->network, shard, p->whole_gradient);
    all_reduce(&s->comm->group[AXIS_DENSE_REPLICA], s->network, shard);
    if (l->entries > l->dense_entries) all_reduce(&s->comm->group[AXIS_EXPERT_REPLICA], s->network, experts);
    p->given = event_record(s->network);
}

/* ---- The norm --------------------------------------------------------------------------------- */

/* Nothing is under way: the host may look at what the store holds. */
static void settle(const Store *s) {
    event_wait(event_record(s->network));
    event_wait(event_record(s->compute));
}

/* The piece of an entry's gradient that this rank keeps; possibly empty. */
static Tensor kept_gradient(const Store *s, int64_t part, const Entry *e) {
    const PartLayout *l = &s->layout->part[part];
    if (e->shape.expert) return tensor_rows(s->part[part].gradient, e->at, e->count);
    int64_t begin = s->comm->mesh.axis[AXIS_DENSE].index * l->shard;
    int64_t from = max64(begin, e->at), to = max64(from, min64(begin + l->shard, e->at + e->count));
    if (from == to) return tensor_rows(s->part[part].gradient, 0, 0);
    return tensor_rows(s->part[part].gradient, from - begin, to - from);
}

static void square_sums(Store *s) {
    int64_t dense = 0, expert = s->dense_norms;
    for (int64_t i = 0; i < s->layout->parts; i++) {
        const PartLayout *l = &s->layout->part[i];
        for (int j = 0; j < l->entries; j++) {
            int64_t at = l->entry[j].shape.expert ? expert++ : dense++;
            square_sum(s->compute, tensor_view(tensor_rows(s->norms, at, 1), DIM(1)),
                       kept_gradient(s, i, &l->entry[j]));
        }
    }
}

/* Each element counts once: on the first of the ranks that hold it. */
static void total(Store *s, AxisName replica, int64_t first, int64_t count, int64_t slot) {
    Tensor out = tensor_rows(s->totals, slot, 1);
    if (s->comm->mesh.axis[replica].index == 0 && count > 0)
        sum_rows(s->compute, tensor_view(out, DIM(1)), tensor_rows(s->norms, first, count));
    else
        zero(s->compute, out);
}

static bool all_finite(const Store *s, const Slice *slice) {
    Tensor t = tensor_rows(s->part[slice->part].gradient, slice->at, slice->count);
    for (int64_t i = 0; i < slice->count; i++)
        if (!isfinite(tensor_get(t, i))) return false;
    return true;
}

/* The first of this rank's tensors whose gradient is not finite; "" when all are. Only a bad step reads gradients here. */
static void name_bad(const Store *s, char *out, size_t bytes) {
    settle(s);
    *out = 0;
    for (int64_t i = 0; i < s->layout->slices; i++) {
        const Slice *slice = &s->layout->slice[i];
        if (all_finite(s, slice)) continue;
        snprintf(out, bytes, "%s", slice->name);
        return;
    }
}

static bool find_bad(Store *s, GradientNorm *out, Error *e) {
    int world = s->comm->mesh.world;
    char mine[sizeof out->bad], *all = calloc((size_t)world, sizeof mine);
    MUST(all);
    name_bad(s, mine, sizeof mine);
    bool ok = host_gather(s->comm, all, mine, sizeof mine, e);
    for (int r = world - 1; ok && r >= 0; r--) {
        if (!all[(size_t)r * sizeof mine]) continue;
        out->rank = r;
        memcpy(out->bad, all + (size_t)r * sizeof mine, sizeof mine);
    }
    free(all);
    return ok;
}

bool store_norm(Store *s, GradientNorm *out, Error *e) {
    *out = (GradientNorm){.finite = true};
    stream_wait(s->compute, event_record(s->network)); /* all gradients are given */
    Component before = device_component(s->device, COMPONENT_OPTIMIZER);
    square_sums(s);
    total(s, AXIS_DENSE_REPLICA, 0, s->dense_norms, 0);
    total(s, AXIS_EXPERT_REPLICA, s->dense_norms, s->expert_norms, 1);
    Tensor sum = tensor_view(tensor_rows(s->totals, 0, 1), DIM(1));
    sum_rows(s->compute, sum, s->totals);
    stream_wait(s->network, event_record(s->compute));
    all_gather(&s->comm->group[AXIS_WORLD], s->network, s->gathered, sum);
    stream_wait(s->compute, event_record(s->network));
    device_component(s->device, before);
    double squares[4096], square = 0;
    MUST(s->comm->mesh.world <= (int)COUNT(squares));
    device_read(s->compute, squares, s->gathered, READ_NORMS);
    if (device_failed(s->device)) return fail(e, device_failed(s->device)->code, "%s", device_failed(s->device)->text);
    for (int r = 0; r < s->comm->mesh.world; r++) square += squares[r];
    out->norm = sqrt(square);
    out->finite = isfinite(square);
    return out->finite || find_bad(s, out, e);
}

void store_update(Store *s, AdamW h) {
    s->update = h;
    for (int64_t i = 0; i < s->layout->parts; i++) s->part[i].due = true;
}

void store_flush(Store *s) {
    for (int64_t i = 0; i < s->layout->parts; i++) apply_due(s, i);
}

/* ---- Slices ----------------------------------------------------------------------------------- */

int64_t store_slices(const Store *s, const Slice **out) {
    *out = s->layout->slice;
    return s->layout->slices;
}

static Tensor kind_vector(const Part *p, StoreKind kind) {
    switch (kind) {
    case STORE_M: return p->m;
    case STORE_V: return p->v;
    case STORE_GRADIENT: return p->gradient;
    default: return p->weight;
    }
}

void store_copy_out(Store *s, const Slice *slice, StoreKind kind, int64_t offset, int64_t count, void *out) {
    const Part *p = &s->part[slice->part];
    MUST(offset >= 0 && count >= 0 && offset + count <= slice->count);
    settle(s);
    int64_t at = slice->at + offset;
    if (kind != STORE_MASTER || s->real != BF16) {
        Tensor t = tensor_rows(kind_vector(p, kind), at, count);
        memcpy(out, t.data, tensor_bytes(t));
        return;
    }
    const uint16_t *high = p->weight.data;
    const int16_t *low = p->low.data;
    uint32_t *bits = out;
    for (int64_t i = 0; i < count; i++) bits[i] = ((uint32_t)high[at + i] << 16) + (uint32_t)(int32_t)low[at + i];
}

static void put(const Store *s, const Slice *slice, StoreKind kind, int64_t offset, int64_t count, const void *in) {
    const Part *p = &s->part[slice->part];
    int64_t at = slice->at + offset;
    if (kind != STORE_MASTER || s->real != BF16) {
        Tensor t = tensor_rows(kind_vector(p, kind), at, count);
        memcpy(t.data, in, tensor_bytes(t));
        return;
    }
    const float *master = in;
    uint16_t *high = p->weight.data;
    int16_t *low = p->low.data;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &master[i], sizeof bits);
        high[at + i] = bf16_from_float(master[i]);
        low[at + i] = (int16_t)(bits & 0xffff);
    }
}

void store_copy_in(Store *s, const Slice *slice, StoreKind kind, int64_t offset, int64_t count, const void *in) {
    MUST(offset >= 0 && count >= 0 && offset + count <= slice->count);
    settle(s);
    s->part[slice->part].due = s->part[slice->part].moving = false; /* what was pending belonged to the old values */
    put(s, slice, kind, offset, count, in);
}

/* ---- Random weights --------------------------------------------------------------------------- */

enum { CHUNK = 1 << 14 };

typedef struct {
    Store *store;
    const Slice *slice;
    uint64_t seed, name;
    double deviation; /* 0: all ones */
} Initialise;

static uint64_t name_hash(const char *name) { /* FNV-1a, the 56 bits that random.h takes */
    uint64_t h = 1469598103934665603ull;
    for (; *name; name++) h = (h ^ (unsigned char)*name) * 1099511628211ull;
    return h >> 8;
}

static void initialise_chunk(void *context, int64_t chunk, int worker) {
    const Initialise *a = context;
    (void)worker;
    int64_t from = chunk * CHUNK, n = min64(CHUNK, a->slice->count - from);
    Type sum = a->store->sum;
    double values[CHUNK];
    for (int64_t i = 0; i < n; i++)
        values[i] = a->deviation == 0 ? 1
                                      : a->deviation * random_normal(a->seed, RANDOM_WEIGHTS, a->name,
                                                                     (uint64_t)(a->slice->first + from + i));
    if (sum == FP64) {
        put(a->store, a->slice, STORE_MASTER, from, n, values);
        return;
    }
    float single[CHUNK];
    for (int64_t i = 0; i < n; i++) single[i] = (float)values[i];
    put(a->store, a->slice, STORE_MASTER, from, n, single);
}

void store_initialise(Store *s, uint64_t seed) {
    settle(s);
    for (int64_t i = 0; i < s->layout->slices; i++) {
        const Slice *slice = &s->layout->slice[i];
        Shape shape;
        MUST(spec_shape(s->spec, slice->parameter, slice->layer, &shape));
        Initialise a = {.store = s,
                        .slice = slice,
                        .seed = seed,
                        .name = name_hash(slice->name),
                        .deviation = shape.norm ? 0 : s->spec->initializer_range};
        pool_run(s->device->pool, ceil_div(slice->count, CHUNK), initialise_chunk, &a);
    }
}
