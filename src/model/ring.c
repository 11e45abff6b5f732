/* Ring attention: the ring members' blocks of keys and values travel round, and what a block adds is merged by its
 * log-sum-exp.
 *
 *   4 members, seen by member 2
 *
 *   step         0           1           2           3
 *   here      block 2     block 1     block 0     block 3        the next block comes in while one is worked on
 *   forward   attention   + merge     + merge     + merge
 *   backward  dq          dq +=       dq +=       dq +=
 *             dk 2, dv 2  dk 1, dv 1  dk 0, dv 0  dk 3, dv 3     begun by the block's own member, added to by each
 *
 * In backward the gradients of a block travel behind it, in the sum type: they arrive, are added to, and go on. After
 * as many shifts as there are members they are home, complete.
 *
 * Who sees whom is said for each block by intervals of its rows (MicroBatch.first, last), so packed documents,
 * windows and the zigzag order of comm/cut.h need nothing here. A block of which nobody here sees anything is passed
 * on and costs no work. Two buffers of the largest block for keys and values, two more for their gradients. A ring of
 * one is plain attention.
 */
#include "model/block.h"

typedef struct {
    const Model *m;
    const MicroBatch *b;
    Group *group;
    int64_t heads, d;
    Tensor k, v;                 /* this member's own */
    Tensor slot_k[2], slot_v[2]; /* [largest, kv heads, d] */
    Event here;                  /* the block that comes next */
} Ring;

static Ring ring_open(const Model *m, const MicroBatch *b, Tensor k, Tensor v) {
    Ring r = {.m = m, .b = b, .group = &m->comm->group[AXIS_RING], .heads = k.dim[1], .d = k.dim[2], .k = k, .v = v};
    for (int i = 0; i < 2 && r.group->axis.size > 1; i++) {
        r.slot_k[i] = arena_tensor(m->work, k.type, DIM(b->sharing.largest, r.heads, r.d));
        r.slot_v[i] = arena_tensor(m->work, k.type, DIM(b->sharing.largest, r.heads, r.d));
    }
    return r;
}

static int steps(const Ring *r) {
    return r->group->axis.size;
}

/* The member whose block is here at a step. */
static int owner_at(const Ring *r, int step) {
    int size = r->group->axis.size;
    return (r->group->axis.index + size - step % size) % size;
}

static Tensor block_rows(const Ring *r, Tensor buffer, int step) {
    return tensor_rows(buffer, 0, r->b->sharing.block[owner_at(r, step)]);
}

static Tensor keys_at(const Ring *r, int step) {
    return step == 0 ? r->k : block_rows(r, r->slot_k[step % 2], step);
}

static Tensor values_at(const Ring *r, int step) {
    return step == 0 ? r->v : block_rows(r, r->slot_v[step % 2], step);
}

/* The compute stream may use the block of this step; that of the next one begins to come in. */
static void next_block(Ring *r, int step) {
    const Model *m = r->m;
    if (step > 0) stream_wait(m->compute, r->here);
    if (step + 1 == steps(r)) return;
    stream_wait(m->network, event_record(m->compute)); /* the last user of what it overwrites */
    shift(r->group, m->network, keys_at(r, step + 1), keys_at(r, step));
    shift(r->group, m->network, values_at(r, step + 1), values_at(r, step));
    r->here = event_record(m->network);
}

static Tensor interval(const Ring *r, Tensor of, int step) {
    return tensor_view(tensor_rows(of, owner_at(r, step), 1), DIM(of.dim[1]));
}

static AttentionShape shape_at(const Ring *r, int step) {
    return (AttentionShape){.scale = 1.0 / sqrt((double)r->d), .pairs = r->b->pairs[owner_at(r, step)]};
}

static bool seen(const Ring *r, int step) {
    return step == 0 || r->b->pairs[owner_at(r, step)] > 0;
}

/* ---- Forward ---------------------------------------------------------------------------------- */

static void attend(const Ring *r, int step, Tensor out, Tensor lse, Tensor q) {
    attention(r->m->compute, out, lse, q, keys_at(r, step), values_at(r, step), interval(r, r->b->first, step),
              interval(r, r->b->last, step), shape_at(r, step));
}

void ring_attention(const Model *m, const MicroBatch *b, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v) {
    Mark mark = arena_mark(m->work);
    Ring r = ring_open(m, b, k, v);
    if (steps(&r) == 1) {
        attend(&r, 0, out, lse, q);
        arena_reset(m->work, mark);
        return;
    }
    Tensor sum = out.type == m->sum ? out : arena_tensor(m->work, m->sum, out.dims, out.dim);
    Tensor part = arena_tensor(m->work, m->sum, out.dims, out.dim);
    Tensor part_lse = arena_tensor(m->work, m->sum, lse.dims, lse.dim);
    for (int i = 0; i < steps(&r); i++) {
        next_block(&r, i);
        if (!seen(&r, i)) continue;
        attend(&r, i, i == 0 ? sum : part, i == 0 ? lse : part_lse, q);
        if (i > 0) attention_merge(m->compute, sum, lse, part, part_lse);
    }
    if (out.type != m->sum) copy(m->compute, out, sum);
    arena_reset(m->work, mark);
}

/* ---- Backward --------------------------------------------------------------------------------- */

/* What a backward pass has beside the ring: gradients of queries, and two sets of those of a block, one being added
 * to and one on its way. */
typedef struct {
    Tensor dq, delta, dout, lse, q;
    Tensor part_q, part_k, part_v; /* what one block adds */
    Tensor slot_dk[2], slot_dv[2];
    Event arrived; /* the gradients of the block at hand */
} Return;

static void attend_backward(const Ring *r, const Return *g, int step, Tensor dq, Tensor dk, Tensor dv) {
    attention_backward(r->m->compute, dq, dk, dv, g->delta, g->dout, g->lse, g->q, keys_at(r, step), values_at(r, step),
                       interval(r, r->b->first, step), interval(r, r->b->last, step), r->b->keys, shape_at(r, step));
}

/* What this member adds to the block at hand and gets from it. */
static void add_block(const Ring *r, Return *g, int step, Tensor dk, Tensor dv) {
    Stream *s = r->m->compute;
    if (step == 0) {
        attend_backward(r, g, step, g->dq, dk, dv);
        return;
    }
    Tensor part_k = block_rows(r, g->part_k, step), part_v = block_rows(r, g->part_v, step);
    if (seen(r, step)) attend_backward(r, g, step, g->part_q, part_k, part_v);
    stream_wait(s, g->arrived);
    if (!seen(r, step)) return;
    add(s, g->dq, g->dq, g->part_q);
    add(s, dk, dk, part_k);
    add(s, dv, dv, part_v);
}

/* The gradients of the block at hand go on; those of the next one come, in the end this member's own. */
static void pass_on(const Ring *r, Return *g, int step, Tensor dk, Tensor dv) {
    const Model *m = r->m;
    stream_wait(m->network, event_record(m->compute));
    shift(r->group, m->network, block_rows(r, g->slot_dk[(step + 1) % 2], step + 1), dk);
    shift(r->group, m->network, block_rows(r, g->slot_dv[(step + 1) % 2], step + 1), dv);
    g->arrived = event_record(m->network);
}

static Tensor sums(const Ring *r, int64_t rows, int64_t heads) {
    return arena_tensor(r->m->work, r->m->sum, DIM(rows, heads, r->d));
}

void ring_attention_backward(const Model *m, const MicroBatch *b, Tensor dq, Tensor dk, Tensor dv, Tensor delta,
                             Tensor dout, Tensor lse, Tensor q, Tensor k, Tensor v) {
    Mark mark = arena_mark(m->work);
    Ring r = ring_open(m, b, k, v);
    Return g = {.dq = dq, .delta = delta, .dout = dout, .lse = lse, .q = q};
    if (steps(&r) == 1) {
        attend_backward(&r, &g, 0, dq, dk, dv);
        arena_reset(m->work, mark);
        return;
    }
    int64_t largest = b->sharing.largest;
    g.part_q = sums(&r, q.dim[0], q.dim[1]);
    g.part_k = sums(&r, largest, r.heads);
    g.part_v = sums(&r, largest, r.heads);
    for (int i = 0; i < 2; i++) {
        g.slot_dk[i] = sums(&r, largest, r.heads);
        g.slot_dv[i] = sums(&r, largest, r.heads);
    }
    for (int i = 0; i < steps(&r); i++) {
        Tensor block_dk = block_rows(&r, g.slot_dk[i % 2], i), block_dv = block_rows(&r, g.slot_dv[i % 2], i);
        next_block(&r, i);
        add_block(&r, &g, i, block_dk, block_dv);
        pass_on(&r, &g, i, block_dk, block_dv);
    }
    stream_wait(m->compute, g.arrived);
    copy(m->compute, dk, block_rows(&r, g.slot_dk[steps(&r) % 2], steps(&r)));
    copy(m->compute, dv, block_rows(&r, g.slot_dv[steps(&r) % 2], steps(&r)));
    arena_reset(m->work, mark);
}
