/* The store: fetch, release, give. Everything a rank keeps of a part is one vector (layout.h), so that one AdamW
 * updates it and one address holds it.
 *
 *   forward   fetch(l): due AdamW on the kept vector -> all_gather of its cut segments into slots   (l + 1 moves behind)
 *   backward  gradients(l): zeroed slots -> layer_backward adds -> give(l): reduce_scatter into the kept gradient, then all_reduce
 *             over the replicas; segment by segment
 *
 * Slots, for each segment that is cut: two for layers (l and its neighbour), one for the embedding, one for the head;
 * the last two share memory unless the embeddings are tied, when the head needs both. A segment that is not cut is
 * used where it is kept: nothing moves.
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
    Tensor whole[SEGMENT_COUNT];        /* [whole]: in a slot, or the kept vector's own memory */
    Tensor whole_gradient[SEGMENT_COUNT];
    bool moving, due;
    Event here, given;
} Part;

struct Store {
    const Spec *spec;
    Comm *comm;
    Device *device;
    Stream *compute, *network;
    Type real, sum;
    int64_t frozen; /* the embedding's row that starts as zeros; -1: none */
    Layout *layout;
    Part *part;
    StoreArenas arenas;
    AdamW update;
    Tensor norms, total, gathered; /* fp64: one per entry [entries, 1]; [1]; [world] */
};

int64_t store_parts(const Store *s) {
    return s->layout->parts;
}

StoreArenas *store_arenas(Store *s) {
    return &s->arenas;
}

/* ---- Opening ---------------------------------------------------------------------------------- */

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

/* This rank's shard of a segment, in a kept vector. */
static Tensor shard_of(Tensor kept, const Segment *g) {
    return tensor_rows(kept, g->at, g->shard);
}

static void alias_whole(Store *s, SegmentName name) {
    for (int64_t i = 0; i < s->layout->parts; i++) {
        Part *p = &s->part[i];
        p->whole[name] = shard_of(p->weight, &s->layout->part[i].segment[name]);
        p->whole_gradient[name] = shard_of(p->gradient, &s->layout->part[i].segment[name]);
    }
}

/* Slot memory of one segment and kind (weights or gradients). */
static void open_slots(Store *s, SegmentName name, bool gradients) {
    const Layout *l = s->layout;
    Type type = gradients ? s->sum : s->real;
    Arena *a = &s->arenas.slots;
    int64_t last = l->parts - 1, layer = 0;
    for (int64_t i = 1; i < last; i++) layer = max64(layer, l->part[i].segment[name].whole);
    int64_t embed = l->part[0].segment[name].whole, head = l->part[last].segment[name].whole;
    Component before = device_component(s->device, name == SEGMENT_EXPERTS ? COMPONENT_EXPERTS : COMPONENT_DENSE);
    Tensor slot[2] = {arena_tensor(a, type, DIM(layer)), arena_tensor(a, type, DIM(layer))};
    device_component(s->device, COMPONENT_VOCABULARY);
    Tensor first = arena_tensor(a, type, DIM(s->spec->tied ? embed : max64(embed, head)));
    Tensor second = s->spec->tied ? arena_tensor(a, type, DIM(head)) : first;
    device_component(s->device, before);
    for (int64_t i = 0; i <= last; i++) {
        Tensor memory = i == 0 ? first : i == last ? second : slot[i % 2];
        Tensor whole = tensor_rows(memory, 0, l->part[i].segment[name].whole);
        *(gradients ? &s->part[i].whole_gradient[name] : &s->part[i].whole[name]) = whole;
    }
}

static void open_norms(Store *s) {
    int64_t entries = 0;
    for (int64_t i = 0; i < s->layout->parts; i++) entries += s->layout->part[i].entries;
    s->norms = arena_tensor(&s->arenas.gradients, FP64, DIM(entries, 1));
    s->total = arena_tensor(&s->arenas.gradients, FP64, DIM(1));
    s->gathered = arena_tensor(&s->arenas.gradients, FP64, DIM(s->comm->mesh.world));
}

static Store *no_memory(Store *s, Error *e) {
    store_close(s);
    fail(e, EXIT_MEMORY, "no memory for the table of a rank's weights; use fewer ranks, or free some memory");
    return NULL;
}

Store *store_open(const Config *c, const Spec *spec, Comm *comm, const size_t capacity[4], Error *e) {
    Store *s = calloc(1, sizeof *s);
    Device *d = comm->device;
    if (!s) return no_memory(NULL, e);
    *s = (Store){.spec = spec,
                 .comm = comm,
                 .device = d,
                 .real = c->compute_type,
                 .sum = type_sum(c->compute_type),
                 .frozen = spec_frozen(spec, c->train_pad_row),
                 .compute = &d->stream[STREAM_COMPUTE],
                 .network = &d->stream[STREAM_NETWORK]};
    s->layout = layout_open(spec, &comm->mesh, !d->sim);
    if (s->layout) s->part = calloc((size_t)s->layout->parts, sizeof *s->part);
    if (!s->part) return no_memory(s, e);
    bool ok = arena_open(&s->arenas.weights, d, "weights", TIER_DEVICE, capacity[0], e) &&
              arena_open(&s->arenas.state, d, "optimizer", TIER_DEVICE, capacity[1], e) &&
              arena_open(&s->arenas.gradients, d, "gradients", TIER_DEVICE, capacity[2], e) &&
              arena_open(&s->arenas.slots, d, "slots", TIER_DEVICE, capacity[3], e);
    if (!ok) {
        store_close(s);
        return NULL;
    }
    for (int64_t i = 0; i < s->layout->parts; i++) open_part(s, i);
    for (int g = 0; g < SEGMENT_COUNT; g++) {
        if (!s->layout->part[0].segment[g].moves) { /* cut or not, alike in all parts */
            alias_whole(s, g);
            continue;
        }
        open_slots(s, g, false);
        open_slots(s, g, true);
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

static void view_part(const Store *s, int64_t part, const Tensor *whole, Weights *out) {
    const PartLayout *l = &s->layout->part[part];
    for (int i = 0; i < l->entries; i++) {
        const Entry *e = &l->entry[i];
        out->at[e->parameter] =
            tensor_view(tensor_rows(whole[e->segment], e->at, e->count), e->shape.dims, e->shape.dim);
    }
}

static bool is_head(const Store *s, int64_t part) {
    return part == s->layout->parts - 1;
}

/* ---- What the work is for ---------------------------------------------------------------------- */

typedef struct {
    Component component;
    int64_t layer;
} Purpose;

/* What is issued from here on is for this segment of a part. Returns what the last was for. */
static Purpose begin_segment(Store *s, int64_t part, int segment) {
    Device *d = s->device;
    Purpose before = {d->component, d->layer};
    d->layer = s->layout->part[part].layer;
    d->component = d->layer < 0                 ? COMPONENT_VOCABULARY
                   : segment == SEGMENT_EXPERTS ? COMPONENT_EXPERTS
                                                : COMPONENT_DENSE;
    return before;
}

static void end_segment(Store *s, Purpose before) {
    s->device->component = before.component;
    s->device->layer = before.layer;
}

/* The compute stream waits for what the network does for a part: for the segment that travels last. */
static void await(Store *s, int64_t part, Event e, bool given) {
    int last = 0;
    for (int i = 0; i < SEGMENT_COUNT; i++) {
        const Segment *g = &s->layout->part[part].segment[i];
        bool summed = given && s->comm->group[g->replicas].axis.size > 1;
        if (g->whole > 0 && (g->moves || summed)) last = i;
    }
    Purpose before = begin_segment(s, part, last);
    stream_wait(s->compute, e);
    end_segment(s, before);
}

/* ---- Fetch and release ------------------------------------------------------------------------ */

static void apply_due(Store *s, int64_t part) {
    Part *p = &s->part[part];
    if (!p->due) return;
    Purpose before = begin_segment(s, part, 0);
    s->device->component = COMPONENT_OPTIMIZER;
    adamw(s->compute, p->weight, p->low, p->m, p->v, p->gradient, s->update);
    end_segment(s, before);
    p->due = false;
}

/* Also where nothing of it is here: all ranks call the same collectives. */
static bool segment_moves(const Segment *g) {
    return g->moves && g->entries > 0;
}

static bool any_moves(const PartLayout *l) {
    for (int i = 0; i < SEGMENT_COUNT; i++)
        if (segment_moves(&l->segment[i])) return true;
    return false;
}

static void start_moving(Store *s, int64_t part) {
    Part *p = &s->part[part];
    if (p->moving) return;
    p->moving = true;
    apply_due(s, part);
    if (!any_moves(&s->layout->part[part])) return;
    stream_wait(s->network, event_record(s->compute)); /* the slots' last readers, and the update */
    for (int i = 0; i < SEGMENT_COUNT; i++) {
        const Segment *g = &s->layout->part[part].segment[i];
        if (!segment_moves(g)) continue;
        Purpose before = begin_segment(s, part, i);
        all_gather(&s->comm->group[g->shards], s->network, p->whole[i], shard_of(p->weight, g));
        end_segment(s, before);
    }
    p->here = event_record(s->network);
}

static void fetch_into(Store *s, int64_t part, Weights *out) {
    Part *p = &s->part[part];
    start_moving(s, part);
    await(s, part, p->here, false);
    view_part(s, part, p->whole, out);
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
    for (int i = 0; i < SEGMENT_COUNT; i++) {
        Purpose before = begin_segment(s, part, i);
        zero(s->compute, p->whole_gradient[i]);
        end_segment(s, before);
    }
    view_part(s, part, p->whole_gradient, out);
}

static bool same_slot(const Part *a, const Part *b) {
    for (int i = 0; i < SEGMENT_COUNT; i++)
        if (a->whole_gradient[i].data == b->whole_gradient[i].data) return true;
    return false;
}

/* The slots' last users may still be summing over the network. */
static void await_slots(Store *s, int64_t part) {
    for (int64_t i = 0; i < s->layout->parts; i++)
        if (same_slot(&s->part[i], &s->part[part])) await(s, i, s->part[i].given, true);
}

Weights store_gradients(Store *s, int64_t part) {
    Weights w = {0};
    if (part == 0 && s->spec->tied) { /* lent since the head */
        view_part(s, 0, s->part[0].whole_gradient, &w);
        return w;
    }
    await_slots(s, part);
    lend(s, part, &w);
    if (is_head(s, part) && s->spec->tied) {
        await_slots(s, 0);
        lend(s, 0, &w);
        w.at[HEAD] = w.at[EMBED];
    }
    return w;
}

void store_give(Store *s, int64_t part) {
    Part *p = &s->part[part];
    stream_wait(s->network, event_record(s->compute));
    for (int i = 0; i < SEGMENT_COUNT; i++) {
        const Segment *g = &s->layout->part[part].segment[i];
        if (g->entries == 0) continue;
        Tensor shard = shard_of(p->gradient, g);
        Purpose before = begin_segment(s, part, i);
        if (g->moves) reduce_scatter(&s->comm->group[g->shards], s->network, shard, p->whole_gradient[i]);
        all_reduce(&s->comm->group[g->replicas], s->network, shard);
        end_segment(s, before);
    }
    p->given = event_record(s->network);
}

/* ---- The norm --------------------------------------------------------------------------------- */

/* Nothing is under way: the host may look at what the store holds. */
static void settle(const Store *s) {
    event_wait(event_record(s->network));
    event_wait(event_record(s->compute));
}

/* Each element counts once: on the first of the ranks that keep it. */
static void square_sums(Store *s) {
    int64_t n = 0;
    for (int64_t i = 0; i < s->layout->parts; i++) {
        const PartLayout *l = &s->layout->part[i];
        for (int j = 0; j < l->entries; j++) {
            const Entry *e = &l->entry[j];
            Kept k = layout_kept(l, e, 0, e->count);
            Tensor out = tensor_view(tensor_rows(s->norms, n++, 1), DIM(1));
            if (s->comm->mesh.axis[l->segment[e->segment].replicas].index == 0)
                square_sum(s->compute, out, tensor_rows(s->part[i].gradient, k.at, k.count));
            else
                zero(s->compute, out);
        }
    }
}

static bool all_finite(const Store *s, const Slice *slice) {
    Tensor t = tensor_rows(s->part[slice->part].gradient, slice->at, slice->count);
    for (int64_t i = 0; i < slice->count; i++)
        if (!isfinite(tensor_get(t, i))) return false;
    return true;
}

/* The first of this rank's tensors whose gradient is not finite; "" when all are. Only a bad step reads gradients
 * here. */
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
    if (!all) return fail(e, EXIT_MEMORY, "no memory to ask %d ranks for their gradients; use fewer ranks", world);
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

/* In the order of the ranks: the same bits everywhere. */
static double sum_of_ranks(const Store *s) {
    double some[512], sum = 0;
    int64_t world = s->comm->mesh.world;
    for (int64_t first = 0; first < world; first += (int64_t)COUNT(some)) {
        int64_t n = min64((int64_t)COUNT(some), world - first);
        device_read(s->compute, some, tensor_rows(s->gathered, first, n), READ_NORMS);
        for (int64_t r = 0; r < n; r++) sum += some[r];
    }
    return sum;
}

bool store_norm(Store *s, GradientNorm *out, Error *e) {
    *out = (GradientNorm){.finite = true};
    await(s, 0, event_record(s->network), true); /* all gradients are given, the embedding's last */
    Component before = device_component(s->device, COMPONENT_OPTIMIZER);
    square_sums(s);
    sum_rows(s->compute, s->total, s->norms);
    stream_wait(s->network, event_record(s->compute));
    all_gather(&s->comm->group[AXIS_WORLD], s->network, s->gathered, s->total);
    stream_wait(s->compute, event_record(s->network));
    device_component(s->device, before);
    double square = sum_of_ranks(s);
    if (device_failed(s->device)) return fail(e, device_failed(s->device)->code, "%s", device_failed(s->device)->text);
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

Type store_type(const Store *s, StoreKind kind) {
    return kind == STORE_WEIGHT ? s->real : s->sum;
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
    double deviation;       /* 0: all ones */
    int64_t zeros, columns; /* elements [zeros, zeros + columns) of the whole tensor are 0; columns 0: none */
} Initialise;

/* The steps of FNV-1a from a start of its own, which all random weights so far have; the 56 bits that random.h takes. */
static uint64_t name_hash(const char *name) {
    uint64_t h = 1469598103934665603ull;
    for (; *name; name++) h = (h ^ (unsigned char)*name) * 1099511628211ull;
    return h >> 8;
}

static double initial_value(const Initialise *a, int64_t element) {
    if (element >= a->zeros && element < a->zeros + a->columns) return 0;
    if (a->deviation == 0) return 1;
    return a->deviation * random_normal(a->seed, RANDOM_WEIGHTS, a->name, (uint64_t)element);
}

static void initialise_chunk(void *context, int64_t chunk, int worker) {
    const Initialise *a = context;
    int64_t from = chunk * CHUNK, n = min64(CHUNK, a->slice->count - from);
    Type sum = a->store->sum;
    double *values = pool_scratch(a->store->device->pool, worker, CHUNK * (sizeof(double) + sizeof(float)));
    float *single = (float *)(values + CHUNK);
    for (int64_t i = 0; i < n; i++) values[i] = initial_value(a, a->slice->first + from + i);
    if (sum == FP64) {
        put(a->store, a->slice, STORE_MASTER, from, n, values);
        return;
    }
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
        if (slice->parameter == EMBED && s->frozen >= 0) {
            a.columns = s->spec->hidden;
            a.zeros = s->frozen * a.columns;
        }
        pool_run(s->device->pool, ceil_div(slice->count, CHUNK), initialise_chunk, &a);
    }
}
