/* Ulysses: inside a group of D_u ranks, attention is split by heads instead of rows. Every rank has its own rows of
 * all heads; for attention it gets all rows of its ring member for its own heads, and gives what comes of them back
 * to the rows' owners.
 *
 *     own rows        | head 0   head 1   head 2   head 3 |          D_u = 2, four heads, slices of one head
 *     packed          | rows of 0 | rows of 2 |                      slice 0: head 0 is member 0's, head 2 member 1's
 *     all_to_all  ->  | rows of member 0, of member 1: all of head 0 |  -> ring_attention -> the same way back
 *
 * Heads pass in slices, so that only one slice's q, k and v exist in full-sequence form. A slice is the same number
 * of query heads on every rank, and the KV heads that they read: whole groups of at most `mixture.ulysses_heads` KV
 * heads where D_u divides the KV heads; else so many query heads that all of a slice read one KV head, which goes to
 * every rank that needs it (replication). The gradients of a KV head that several ranks or slices read are summed by
 * the rows' owner in the order of slices and, in each, of ranks, in the sum type.
 *
 * A group of one has everything already: no slices, no copies.
 *
 * Letters: T rows of this rank, R rows of its ring member (all of its Ulysses group's), d head size.
 */
#include "model/block.h"

/* How heads pass. */
typedef struct {
    Group *group;
    int64_t members, mine; /* query heads of a rank */
    int64_t queries, keys; /* query heads and KV heads of a slice */
    int64_t share;         /* query heads that read one KV head */
    int64_t slices;
    bool replicated; /* some KV head is read by several ranks or slices */
} Slices;

static int64_t common_divisor(int64_t a, int64_t b) {
    while (b != 0) {
        int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* The largest divisor of n that is at most `most`. */
static int64_t divisor_below(int64_t n, int64_t most) {
    int64_t d = min64(n, most);
    while (n % d != 0) d--;
    return d;
}

static Slices slices_of(const Model *m) {
    const Spec *spec = m->spec;
    Slices s = {.group = &m->comm->group[AXIS_ULYSSES], .share = spec->heads / spec->kv_heads};
    s.members = s.group->axis.size;
    s.mine = spec->heads / s.members;
    s.replicated = s.mine % s.share != 0;
    s.keys = s.replicated ? 1 : divisor_below(s.mine / s.share, m->ulysses_heads);
    s.queries = s.replicated ? common_divisor(s.mine, s.share) : s.keys * s.share;
    s.slices = s.mine / s.queries;
    return s;
}

/* The first query head and the first KV head of a member's slice. */
static int64_t query_head(const Slices *s, int64_t member, int64_t slice) {
    return member * s->mine + slice * s->queries;
}

static int64_t key_head(const Slices *s, int64_t member, int64_t slice) {
    return query_head(s, member, slice) / s->share;
}

typedef int64_t (*FirstHead)(const Slices *s, int64_t member, int64_t slice);

/* ---- Spans ------------------------------------------------------------------------------------ */

typedef struct {
    Span *span;
    int64_t *spans;
} Writer;

static Writer reserve(const Model *m, int64_t members, int64_t each, Spans *out) {
    Writer w = {.span = arena_bytes(m->host, (size_t)(members * each) * sizeof(Span)),
                .spans = arena_bytes(m->host, (size_t)members * sizeof(int64_t))};
    *out = (Spans){.span = w.span, .spans = w.spans};
    return w;
}

/* Rows of a member in the ring member's, sequence by sequence, `heads` times over. */
static void write_whole(const Model *m, const MicroBatch *b, int64_t heads, Spans *out) {
    const Axis *a = &m->comm->group[AXIS_ULYSSES].axis;
    Writer w = reserve(m, a->size, heads * b->sequences, out);
    int64_t each = b->sequences > 0 ? b->sharing.rows / b->sequences : 0, at = 0;
    for (int j = 0; j < a->size; j++) {
        int64_t count = cut_rank(&m->cut, a->first + j * a->stride).tokens;
        for (int64_t i = 0; i < heads * b->sequences; i++) w.span[i] = (Span){i * each + at, count};
        w.span += w.spans[j] = heads * b->sequences;
        at += count;
    }
}

/* Blocks of `rows` rows `stride` apart, one for each member. */
static void write_packed(const Model *m, int64_t rows, int64_t stride, Spans *out) {
    int members = m->comm->group[AXIS_ULYSSES].axis.size;
    Writer w = reserve(m, members, 1, out);
    for (int j = 0; j < members; j++) {
        w.span[j] = (Span){j * stride, rows};
        w.spans[j] = 1;
    }
}

void share_sequences(const Model *m, MicroBatch *b) {
    const Axis *ring = &m->comm->group[AXIS_RING].axis;
    Slices s = slices_of(m);
    Sharing *out = &b->sharing;
    Component before = device_component(m->device, COMPONENT_ATTENTION);
    *out = (Sharing){.block = arena_bytes(m->host, (size_t)ring->size * sizeof *out->block)};
    for (int j = 0; j < ring->size; j++) {
        out->block[j] = b->sequences * cut_ring_member(&m->cut, j).tokens;
        out->largest = max64(out->largest, out->block[j]);
    }
    out->rows = out->block[ring->index];
    if (s.members > 1) {
        write_whole(m, b, 1, &out->whole);
        write_packed(m, b->tokens, b->tokens, &out->packed);
        write_whole(m, b, s.queries, &out->whole_heads);
        write_packed(m, s.queries * b->tokens, s.mine * b->tokens, &out->packed_heads);
    }
    device_component(m->device, before);
}

/* ---- There and back ---------------------------------------------------------------------------- */

static Tensor flat_heads(Tensor t) {
    return tensor_view(t, DIM(t.dim[0], t.dim[1] * t.dim[2]));
}

static Tensor heads_of(const Model *m, Type type, int64_t rows, int64_t heads) {
    return arena_tensor(m->work, type, DIM(rows, heads, m->spec->head_dim));
}

/* Of x [T, heads, d] what each member needs of this rank's rows, to where all rows of this rank's heads are, whole
 * [R, heads of a slice, d]. */
static void gather_heads(const Model *m, const MicroBatch *b, const Slices *s, Tensor whole, Tensor x, FirstHead first,
                         int64_t slice) {
    int64_t T = b->tokens, width = whole.dim[1] * whole.dim[2];
    Tensor packed = arena_tensor(m->work, x.type, DIM(s->members * T, width));
    for (int64_t j = 0; j < s->members; j++)
        copy_columns(m->compute, tensor_rows(packed, j * T, T), 0, flat_heads(x), first(s, j, slice) * x.dim[2], width,
                     false);
    stream_wait(m->network, event_record(m->compute));
    all_to_all_spans(s->group, m->network, flat_heads(whole), b->sharing.whole, packed, b->sharing.packed);
}

/* The way back: into x's columns, or added to them. */
static void return_heads(const Model *m, const MicroBatch *b, const Slices *s, Tensor x, Tensor whole, FirstHead first,
                         int64_t slice, bool add) {
    int64_t T = b->tokens, width = whole.dim[1] * whole.dim[2];
    Mark mark = arena_mark(m->work);
    Tensor packed = arena_tensor(m->work, whole.type, DIM(s->members * T, width));
    stream_wait(m->network, event_record(m->compute));
    all_to_all_spans(s->group, m->network, packed, b->sharing.packed, flat_heads(whole), b->sharing.whole);
    stream_wait(m->compute, event_record(m->network));
    for (int64_t j = 0; j < s->members; j++)
        copy_columns(m->compute, flat_heads(x), first(s, j, slice) * x.dim[2], tensor_rows(packed, j * T, T), 0, width,
                     add);
    arena_reset(m->work, mark);
}

/* delta [heads, T] -> whole [heads of the slice, R]: heads lie outside, so nothing is packed. */
static void gather_delta(const Model *m, const MicroBatch *b, const Slices *s, Tensor whole, Tensor delta,
                         int64_t slice) {
    int64_t skipped = slice * s->queries * b->tokens, all = tensor_count(delta);
    Tensor from = tensor_rows(tensor_view(delta, DIM(all)), skipped, all - skipped);
    stream_wait(m->network, event_record(m->compute));
    all_to_all_spans(s->group, m->network, tensor_view(whole, DIM(tensor_count(whole))), b->sharing.whole_heads, from,
                     b->sharing.packed_heads);
}

/* x itself, or x in another type. */
static Tensor as_type(const Model *m, Tensor x, Type type) {
    if (x.type == type) return x;
    Tensor out = arena_tensor(m->work, type, x.dims, x.dim);
    copy(m->compute, out, x);
    return out;
}

static Tensor slice_lse(const Slices *s, Tensor lse, int64_t slice) {
    return tensor_rows(lse, slice * s->queries, s->queries);
}

/* ---- Forward ---------------------------------------------------------------------------------- */

static void forward_slice(const Model *m, const MicroBatch *b, const Slices *s, int64_t slice, Tensor out, Tensor lse,
                          Tensor q, Tensor k, Tensor v) {
    int64_t R = b->sharing.rows;
    Mark mark = arena_mark(m->work);
    Tensor whole_q = heads_of(m, m->real, R, s->queries), whole_out = heads_of(m, m->real, R, s->queries);
    Tensor whole_k = heads_of(m, m->real, R, s->keys), whole_v = heads_of(m, m->real, R, s->keys);
    Mark packing = arena_mark(m->work);
    gather_heads(m, b, s, whole_q, q, query_head, slice);
    gather_heads(m, b, s, whole_k, k, key_head, slice);
    gather_heads(m, b, s, whole_v, v, key_head, slice);
    stream_wait(m->compute, event_record(m->network));
    arena_reset(m->work, packing);
    ring_attention(m, b, whole_out, slice_lse(s, lse, slice), whole_q, whole_k, whole_v);
    return_heads(m, b, s, out, whole_out, query_head, slice, false);
    arena_reset(m->work, mark);
}

void shared_attention(const Model *m, const MicroBatch *b, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v) {
    Slices s = slices_of(m);
    if (s.members == 1) {
        ring_attention(m, b, out, lse, q, k, v);
        return;
    }
    for (int64_t i = 0; i < s.slices; i++) forward_slice(m, b, &s, i, out, lse, q, k, v);
}

/* ---- Backward --------------------------------------------------------------------------------- */

typedef struct {
    Tensor dq, dk, dv; /* dk, dv: of the sum type where KV heads are replicated */
    Tensor delta, dout, lse, q, k, v;
} Gradients;

static Type gradient_type(const Model *m, const Slices *s) {
    return s->replicated || m->comm->group[AXIS_RING].axis.size > 1 ? m->sum : m->real;
}

static void backward_slice(const Model *m, const MicroBatch *b, const Slices *s, int64_t slice, const Gradients *g) {
    int64_t R = b->sharing.rows;
    Type type = gradient_type(m, s);
    Mark mark = arena_mark(m->work);
    Tensor dq = heads_of(m, type, R, s->queries), dk = heads_of(m, type, R, s->keys),
           dv = heads_of(m, type, R, s->keys);
    Mark inputs = arena_mark(m->work);
    Tensor q = heads_of(m, m->real, R, s->queries), dout = heads_of(m, m->real, R, s->queries);
    Tensor k = heads_of(m, m->real, R, s->keys), v = heads_of(m, m->real, R, s->keys);
    Tensor delta = arena_tensor(m->work, m->sum, DIM(s->queries, R));
    Mark packing = arena_mark(m->work);
    gather_heads(m, b, s, q, g->q, query_head, slice);
    gather_heads(m, b, s, k, g->k, key_head, slice);
    gather_heads(m, b, s, v, g->v, key_head, slice);
    gather_heads(m, b, s, dout, g->dout, query_head, slice);
    gather_delta(m, b, s, delta, g->delta, slice);
    stream_wait(m->compute, event_record(m->network));
    arena_reset(m->work, packing);
    ring_attention_backward(m, b, dq, dk, dv, delta, dout, slice_lse(s, g->lse, slice), q, k, v);
    arena_reset(m->work, inputs);
    return_heads(m, b, s, g->dq, as_type(m, dq, m->real), query_head, slice, false);
    return_heads(m, b, s, g->dk, as_type(m, dk, g->dk.type), key_head, slice, s->replicated);
    return_heads(m, b, s, g->dv, as_type(m, dv, g->dv.type), key_head, slice, s->replicated);
    arena_reset(m->work, mark);
}

static Tensor zeros(const Model *m, Tensor like) {
    Tensor out = arena_tensor(m->work, m->sum, like.dims, like.dim);
    zero(m->compute, out);
    return out;
}

/* Over a ring alone: no slices, but sums until the blocks' gradients are home. */
static void backward_alone(const Model *m, const MicroBatch *b, const Slices *s, const Gradients *g) {
    Type type = gradient_type(m, s);
    const Tensor results[] = {g->dq, g->dk, g->dv};
    Tensor made[COUNT(results)];
    for (size_t i = 0; i < COUNT(results); i++)
        made[i] = results[i].type == type ? results[i] : arena_tensor(m->work, type, results[i].dims, results[i].dim);
    ring_attention_backward(m, b, made[0], made[1], made[2], g->delta, g->dout, g->lse, g->q, g->k, g->v);
    for (size_t i = 0; i < COUNT(results); i++)
        if (made[i].type != results[i].type) copy(m->compute, results[i], made[i]);
}

void shared_attention_backward(const Model *m, const MicroBatch *b, Tensor dq, Tensor dk, Tensor dv, Tensor delta,
                               Tensor dout, Tensor lse, Tensor q, Tensor k, Tensor v) {
    Slices s = slices_of(m);
    Gradients g = {.dq = dq, .dk = dk, .dv = dv, .delta = delta, .dout = dout, .lse = lse, .q = q, .k = k, .v = v};
    Mark mark = arena_mark(m->work);
    if (s.members == 1) {
        backward_alone(m, b, &s, &g);
        arena_reset(m->work, mark);
        return;
    }
    if (s.replicated) {
        g.dk = zeros(m, dk);
        g.dv = zeros(m, dv);
    }
    for (int64_t i = 0; i < s.slices; i++) backward_slice(m, b, &s, i, &g);
    if (s.replicated) {
        copy(m->compute, dk, g.dk);
        copy(m->compute, dv, g.dv);
    }
    arena_reset(m->work, mark);
}
