/* Mixture of experts, dropless, over the expert group (E_p ranks, each with its own tokens and ceil(E / E_p)
 * experts), in K rounds: tokens r, r + K, ... pass in round r, so that no routing ever brings more than R rows at a
 * time to a rank.
 *
 *   tokens [T, H] --route--> slots [T k], sorted by round and expert --gather--> send [k c, H]
 *       --all_to_all--> rows [R, H], by expert and sender --experts, over their input--> the same way back --> [k c, H] --sum the k slots--> [T, H]
 *
 *   network     dispatch 0 | dispatch 1 |          | home 0 | dispatch 2 | home 1 | ...        (in this order, whatever the routing)
 *   compute                | experts 0             | experts 1           | sum 0, experts 2 ...
 *
 * The next round arrives, and the one before goes home, while the experts work: two sets of rows in forward (2 R H),
 * and in backward, where the inputs travel once more beside the gradients, four (4 R H). With one round that is kept
 * for backward (compute.activations) inputs travel once; rounds of many are never kept. A group of one moves nothing.
 *
 * Every rank runs the same collectives whatever the routing; only their sizes differ. The routing weight travels with
 * its row and scales the expert's inner activation instead of its output (down is linear), so that backward needs no
 * expert output.
 *
 * With least-loaded placement (balance.h) a rank may work for a few experts of others: their weights come before the
 * first round, in both passes, and their gradients go home after the last. What a routing asks of a rank no longer
 * says what another could, so then rows are always reserved for R.
 *
 * Letters: T tokens, H width, E experts, k per token, I expert width, c tokens of a round, K rounds, R rows that a
 * round can bring. Kept for backward: inverse2, the routing, the spans of every round (host); rows_in, rows_weight,
 * gate and up of a kept round.
 */
#include "model/block.h"

#include <string.h>

/* ---- Routing ---------------------------------------------------------------------------------- */

static Group *expert_group(const Model *m) {
    return &m->comm->group[AXIS_EXPERT];
}

/* With all experts here, a rank's sorted order is the experts' order: what is sent is what arrives. */
static bool alone(const Model *m) {
    return expert_group(m)->axis.size == 1;
}

/* From what all ranks know without asking: they call the same collectives, also those of another group. */
static int64_t rounds_of(const Model *m, const MicroBatch *b) {
    return m->dispatch_tokens > 0 ? max64(1, ceil_div(b->most, m->dispatch_tokens)) : 1;
}

static Tensor normed(const Model *m, const Weights *w, Saved *k, MicroBatch *b) {
    Tensor h = arena_tensor(m->work, m->real, DIM(b->tokens, m->spec->hidden)); /* [T, H] */
    rms_norm(m->compute, h, k->inverse2, k->y, w->at[MLP_NORM], m->spec->norm_epsilon);
    return h;
}

/* h is normed(y); decides who goes where. Returns counts int64 [K, E] of this rank's slots, in scratch. */
static Tensor choose(const Model *m, const Weights *w, Saved *k, MicroBatch *b, Tensor h) {
    const Spec *spec = m->spec;
    linear(m->compute, k->logits, h, w->at[ROUTER]);
    route(m->compute, k->p, k->chosen, k->weight, k->z_lse, k->logits, spec->normalise_top_k, m->real);
    Tensor counts = arena_tensor(m->work, INT64, DIM(rounds_of(m, b), spec->experts));
    route_order(m->compute, k->order, k->place, counts, k->chosen);
    return counts;
}

static void make_routing(const Model *m, Saved *k, const MicroBatch *b, Arena *home) {
    const Spec *spec = m->spec;
    int64_t T = b->tokens, E = spec->experts, top = spec->top_k;
    k->inverse2 = arena_tensor(home, m->sum, DIM(T));
    k->logits = arena_tensor(home, m->real, DIM(T, E));
    k->p = arena_tensor(home, m->sum, DIM(T, E));
    k->chosen = arena_tensor(home, INT32, DIM(T, top));
    k->weight = arena_tensor(home, m->sum, DIM(T, top));
    k->z_lse = arena_tensor(home, m->sum, DIM(T));
    k->order = arena_tensor(home, INT32, DIM(T * top));
    k->place = arena_tensor(home, INT32, DIM(T, top));
}

/* The counts of the whole expert group, and from them what the host must know of every round. */
static void learn_rounds(const Model *m, Saved *k, const MicroBatch *b, Tensor counts) {
    const Axis *group = &expert_group(m)->axis;
    int64_t members = group->size, E = m->spec->experts, K = rounds_of(m, b), tokens = ceil_div(b->most, K);
    DispatchShape shape = {.group = {.members = members,
                                     .rounds = K,
                                     .experts = E,
                                     .each = m->experts_each,
                                     .imports = m->imports,
                                     .most = members * tokens * min64(m->spec->top_k, m->experts_each),
                                     .threshold = m->balance_threshold},
                           .index = group->index,
                           .first = m->expert_first,
                           .here = m->experts_here,
                           .matrix = m->spec->hidden * m->spec->expert_hidden};
    Tensor all = arena_tensor(m->work, INT64, DIM(members, K, E));
    stream_wait(m->network, event_record(m->compute));
    all_gather(expert_group(m), m->network, all, counts);
    stream_wait(m->compute, event_record(m->network));

    dispatch_reserve(&k->dispatch, &shape, m->host);
    Mark mark = arena_mark(m->host);
    int64_t *table = arena_bytes(m->host, (size_t)(members * K * E) * sizeof *table);
    device_read(m->compute, table, all, READ_ROUTING);
    for (int64_t i = 0; i < K * E; i++) m->load[i % E] += (double)table[group->index * K * E + i];
    dispatch_make(&k->dispatch, &shape, m->host, table);
    arena_reset(m->host, mark);
    k->room = m->imports > 0 ? shape.group.most : k->dispatch.most;
    if (alone(m)) k->room = ceil_div(b->tokens, K) * m->spec->top_k;
}

/* ---- A pass over the rounds -------------------------------------------------------------------- */

enum { WEIGHTS = EXPERT_DOWN - EXPERT_GATE + 1 }; /* matrices of an expert */

/* Of two buffers a round has that of its parity; they are the same where nothing overlaps. */
typedef struct {
    const Model *m;
    const Weights *w;
    Weights *dw; /* NULL in forward */
    Saved *k;
    const MicroBatch *b;
    bool kept; /* the only round's inputs, gate and up live until backward */
    int64_t rounds;
    Tensor h;                     /* [T, H] what experts are given */
    Tensor base, out;             /* [T, H] out = base (or 0) + what comes home, summed over a token's slots */
    Tensor weight, dweight;       /* [T k, 1] sorted */
    Tensor send_x, send_dy, back; /* [k c, H] */
    Tensor x[2], rows[2];         /* [R, H]; rows: outputs; in backward their gradients, then those of x */
    Tensor rows_weight[2], rows_dweight[2];       /* [R, 1] */
    Tensor borrowed[WEIGHTS], dborrowed[WEIGHTS]; /* as the stacks of the experts here, over the import slots */
    Event arrived[2], home;
} Pass;

static Tensor column(Tensor t) {
    return tensor_view(t, DIM(tensor_count(t), 1));
}

static const Round *round_at(const Pass *p, int64_t r) {
    return &p->k->dispatch.round[r];
}

/* The round's part of what is sorted by round and expert: slots of tokens r, r + K, ... behind those of all earlier
 * rounds. */
static int64_t first_slot(const Pass *p, int64_t r) {
    int64_t T = p->b->tokens, K = p->rounds;
    return (r * (T / K) + min64(r, T % K)) * p->m->spec->top_k;
}

static Tensor part(const Pass *p, Tensor sorted, int64_t r) {
    int64_t first = first_slot(p, r);
    return tensor_rows(sorted, first, first_slot(p, r + 1) - first);
}

/* The rows of a round at the front of a buffer that has room for any. */
static Tensor arrived(const Pass *p, Tensor rows, int64_t r) {
    return tensor_rows(rows, 0, round_at(p, r)->arrived);
}

static Tensor leaving(const Pass *p, Tensor send, int64_t r) {
    return tensor_rows(send, 0, first_slot(p, r + 1) - first_slot(p, r));
}

static Tensor flat(Tensor t) {
    return tensor_view(t, DIM(tensor_count(t)));
}

static Tensor weight_of(const Pass *p, int64_t r) {
    return flat(arrived(p, alone(p->m) ? part(p, p->weight, r) : p->rows_weight[r % 2], r));
}

static Tensor dweight_of(const Pass *p, int64_t r) {
    return flat(arrived(p, alone(p->m) ? part(p, p->dweight, r) : p->rows_dweight[r % 2], r));
}

static Tensor wide(const Pass *p, int64_t rows) {
    return arena_tensor(p->m->work, p->m->real, DIM(rows, p->m->spec->hidden));
}

static Tensor narrow(const Pass *p, int64_t rows) {
    return arena_tensor(p->m->work, p->m->sum, DIM(rows, 1));
}

static void make_buffers(Pass *p) {
    const Saved *k = p->k;
    bool backward = p->dw != NULL, one = alone(p->m), sends_x = !backward || !p->kept;
    bool overlap = p->rounds > 1 && !one;
    int64_t R = k->room, slots = first_slot(p, 1);
    for (int i = 0; i < 2; i++) {
        bool same = i == 1 && !overlap;
        p->x[i] = same ? p->x[0] : p->kept ? k->rows_in : wide(p, R);
        p->rows[i] = same ? p->rows[0] : backward || p->kept ? wide(p, R) : p->x[i];
        if (one) continue;
        p->rows_weight[i] = same ? p->rows_weight[0] : p->kept ? k->rows_weight : narrow(p, R);
        if (backward) p->rows_dweight[i] = same ? p->rows_dweight[0] : narrow(p, R);
    }
    if (sends_x) p->send_x = one ? p->x[0] : wide(p, slots);
    if (backward) p->send_dy = one ? p->rows[0] : wide(p, slots);
    p->back = one ? p->rows[0] : overlap ? wide(p, slots) : backward ? p->send_dy : p->send_x;
    p->weight = one && p->kept ? k->rows_weight : narrow(p, tensor_count(k->order));
    if (backward) p->dweight = narrow(p, tensor_count(k->order));
    if (sends_x) gather_rows(p->m->compute, p->weight, column(k->weight), k->order, 1);
}

static void exchange(const Model *m, Tensor out, Spans to, Tensor in, Spans from) {
    all_to_all_spans(expert_group(m), m->network, out, to, in, from);
}

static void dispatch_round(Pass *p, int64_t r) {
    const Model *m = p->m;
    const Round *round = round_at(p, r);
    int64_t top = m->spec->top_k;
    Tensor slots = part(p, p->k->order, r);
    bool sends_x = !tensor_none(p->send_x), sends_dy = !tensor_none(p->send_dy);
    if (sends_x) gather_rows(m->compute, leaving(p, p->send_x, r), p->h, slots, top);
    if (sends_dy) gather_rows(m->compute, leaving(p, p->send_dy, r), p->b->x, slots, top);
    if (alone(m)) return;
    stream_wait(m->network, event_record(m->compute));
    if (sends_x) {
        exchange(m, p->rows_weight[r % 2], round->receive, part(p, p->weight, r), round->send);
        exchange(m, p->x[r % 2], round->receive, p->send_x, round->send);
    }
    if (sends_dy) exchange(m, p->rows[r % 2], round->receive, p->send_dy, round->send);
    p->arrived[r % 2] = event_record(m->network);
}

static void send_home(Pass *p, int64_t r) {
    const Model *m = p->m;
    const Round *round = round_at(p, r);
    if (alone(m)) return;
    stream_wait(m->network, event_record(m->compute));
    exchange(m, p->back, round->send, p->rows[r % 2], round->receive);
    if (p->dw) exchange(m, part(p, p->dweight, r), round->send, p->rows_dweight[r % 2], round->receive);
    p->home = event_record(m->network);
}

/* All slots of a token pass in one round, so its sum is made at once, in the order of its choices. */
static void sum_home(Pass *p, int64_t r) {
    stream_wait(p->m->compute, p->home);
    sum_slots(p->m->compute, p->out, p->base, p->back, p->k->place, (SlotRound){r, p->rounds, first_slot(p, r)});
}

/* ---- Experts ---------------------------------------------------------------------------------- */

/* The rows of the experts that live here, and those of the borrowed ones. */
static Tensor own(const Pass *p, Tensor rows, int64_t r) {
    return tensor_rows(rows, 0, round_at(p, r)->own);
}

static Tensor foreign(const Pass *p, Tensor rows, int64_t r) {
    const Round *round = round_at(p, r);
    return tensor_rows(rows, round->own, round->arrived - round->own);
}

static const int64_t *foreign_rows(const Pass *p, int64_t r) {
    return round_at(p, r)->rows + p->m->experts_here;
}

static void product(const Pass *p, int64_t r, Tensor y, Tensor x, ParameterName name) {
    Stream *s = p->m->compute;
    experts_linear(s, own(p, y, r), own(p, x, r), p->w->at[name], round_at(p, r)->rows);
    if (p->m->imports == 0) return;
    experts_linear(s, foreign(p, y, r), foreign(p, x, r), p->borrowed[name - EXPERT_GATE], foreign_rows(p, r));
}

static void product_dx(const Pass *p, int64_t r, Tensor dx, Tensor dy, ParameterName name, bool add) {
    Stream *s = p->m->compute;
    experts_linear_dx(s, own(p, dx, r), own(p, dy, r), p->w->at[name], round_at(p, r)->rows, add);
    if (p->m->imports == 0) return;
    experts_linear_dx(s, foreign(p, dx, r), foreign(p, dy, r), p->borrowed[name - EXPERT_GATE], foreign_rows(p, r),
                      add);
}

static void product_dw(const Pass *p, int64_t r, ParameterName name, Tensor dy, Tensor x) {
    Stream *s = p->m->compute;
    experts_linear_dw(s, p->dw->at[name], own(p, dy, r), own(p, x, r), round_at(p, r)->rows);
    if (p->m->imports == 0) return;
    experts_linear_dw(s, p->dborrowed[name - EXPERT_GATE], foreign(p, dy, r), foreign(p, x, r), foreign_rows(p, r));
}

static Tensor inner(const Pass *p, Arena *home) {
    return arena_tensor(home, p->m->real, DIM(p->k->room, p->m->spec->expert_hidden)); /* [R, I] */
}

static void gate_and_up(const Pass *p, int64_t r, Tensor gate, Tensor up) {
    Tensor x = arrived(p, p->x[r % 2], r);
    product(p, r, gate, x, EXPERT_GATE);
    product(p, r, up, x, EXPERT_UP);
}

static void experts_forward(Pass *p, int64_t r) {
    Arena *work = p->m->work;
    Mark mark = arena_mark(work);
    Tensor gate = arrived(p, p->kept ? p->k->gate : inner(p, work), r);
    Tensor up = arrived(p, p->kept ? p->k->up : inner(p, work), r);
    Tensor active = p->kept ? arrived(p, inner(p, work), r) : gate;
    gate_and_up(p, r, gate, up);
    swiglu(p->m->compute, active, gate, up, weight_of(p, r));
    product(p, r, arrived(p, p->rows[r % 2], r), active, EXPERT_DOWN);
    arena_reset(work, mark);
}

/* The round's rows hold the gradients of its outputs and become those of its inputs. */
static void experts_backward(Pass *p, int64_t r) {
    Stream *s = p->m->compute;
    Arena *work = p->m->work;
    Mark mark = arena_mark(work);
    Tensor x = arrived(p, p->x[r % 2], r), rows = arrived(p, p->rows[r % 2], r), weight = weight_of(p, r);
    Tensor gate = arrived(p, p->kept ? p->k->gate : inner(p, work), r);
    Tensor up = arrived(p, p->kept ? p->k->up : inner(p, work), r);
    Tensor active = arrived(p, inner(p, work), r), dgate = arrived(p, inner(p, work), r);
    if (!p->kept) gate_and_up(p, r, gate, up);
    swiglu(s, active, gate, up, weight);
    product_dw(p, r, EXPERT_DOWN, rows, active);
    Tensor dup = active; /* its value has been used */
    product_dx(p, r, dup, rows, EXPERT_DOWN, false);
    swiglu_backward(s, dgate, dup, dweight_of(p, r), dup, gate, up, weight);
    product_dw(p, r, EXPERT_GATE, dgate, x);
    product_dw(p, r, EXPERT_UP, dup, x);
    product_dx(p, r, rows, dgate, EXPERT_GATE, false);
    product_dx(p, r, rows, dup, EXPERT_UP, true);
    arena_reset(work, mark);
}

/* ---- Imported experts -------------------------------------------------------------------------- */

static Tensor matrix_rows(Tensor stack) {
    return tensor_view(stack, DIM(stack.dim[0], stack.dim[1] * stack.dim[2]));
}

/* Their weights come ahead of the first round's rows; in backward their gradients begin at 0. */
static void borrow_experts(Pass *p) {
    const Model *m = p->m;
    const Dispatch *d = &p->k->dispatch;
    if (m->imports == 0) return;
    for (int i = 0; i < WEIGHTS; i++) {
        Tensor own = p->w->at[EXPERT_GATE + i];
        p->borrowed[i] = arena_tensor(m->work, m->real, DIM(m->imports, own.dim[1], own.dim[2]));
        if (!p->dw) continue;
        p->dborrowed[i] = arena_tensor(m->work, m->sum, DIM(m->imports, own.dim[1], own.dim[2]));
        zero(m->compute, p->dborrowed[i]);
    }
    stream_wait(m->network, event_record(m->compute));
    for (int i = 0; i < WEIGHTS; i++)
        exchange(m, matrix_rows(p->borrowed[i]), d->borrow, matrix_rows(p->w->at[EXPERT_GATE + i]), d->lend);
}

/* An owner adds what comes from the others to its own sum, in the order of members for each slot. */
static void return_gradients(Pass *p) {
    const Model *m = p->m;
    const Dispatch *d = &p->k->dispatch;
    Group *g = expert_group(m);
    if (m->imports == 0) return;
    stream_wait(m->network, event_record(m->compute));
    for (int64_t i = 0; i < m->imports; i++)
        for (int t = 0; t < WEIGHTS; t++) {
            Tensor sums = flat(tensor_rows(p->dborrowed[t], i, 1));
            return_sums(g, m->network, flat(p->dw->at[EXPERT_GATE + t]), d->at + i * g->axis.size, sums, d->owner[i]);
        }
    stream_wait(m->compute, event_record(m->network));
}

/* ---- The rounds ------------------------------------------------------------------------------- */

static void run_experts(Pass *p, int64_t r) {
    if (p->dw)
        experts_backward(p, r);
    else
        experts_forward(p, r);
}

static void run_rounds_alone(Pass *p) {
    for (int64_t r = 0; r < p->rounds; r++) {
        dispatch_round(p, r);
        run_experts(p, r);
        sum_home(p, r);
    }
}

static void run_rounds(Pass *p) {
    borrow_experts(p);
    dispatch_round(p, 0);
    for (int64_t r = 0; r < p->rounds; r++) {
        stream_wait(p->m->compute, p->arrived[r % 2]);
        if (r + 1 < p->rounds) dispatch_round(p, r + 1);
        run_experts(p, r);
        if (r > 0) sum_home(p, r - 1); /* its memory is the next to come home */
        send_home(p, r);
    }
    sum_home(p, p->rounds - 1);
    if (p->dw) return_gradients(p);
}

static void run_pass(Pass *p) {
    make_buffers(p);
    if (alone(p->m))
        run_rounds_alone(p);
    else
        run_rounds(p);
}

/* ---- Forward ---------------------------------------------------------------------------------- */

static void make_kept(const Model *m, Saved *k, Arena *home) {
    int64_t R = k->room, H = m->spec->hidden, I = m->spec->expert_hidden;
    k->rows_weight = arena_tensor(home, m->sum, DIM(R, 1));
    k->rows_in = arena_tensor(home, m->real, DIM(R, H));
    k->gate = arena_tensor(home, m->real, DIM(R, I));
    k->up = arena_tensor(home, m->real, DIM(R, I));
}

void moe_forward(const Model *m, const Weights *w, Saved *k, MicroBatch *b, Tensor out, Arena *home) {
    device_component(m->device, COMPONENT_ROUTER);
    make_routing(m, k, b, home);
    Mark mark = arena_mark(m->work);
    Tensor h = normed(m, w, k, b);
    Tensor counts = choose(m, w, k, b, h);
    route_statistics(m->compute, b->counts, b->mass, m->z, k->p, k->chosen, k->z_lse, b->sequence);
    learn_rounds(m, k, b, counts);
    device_component(m->device, COMPONENT_EXPERTS);
    int64_t K = rounds_of(m, b);
    bool kept = home == m->saved && K == 1;
    if (kept) make_kept(m, k, home);
    Pass p = {.m = m, .w = w, .k = k, .b = b, .kept = kept, .rounds = K, .h = h, .base = k->y, .out = out};
    run_pass(&p);
    arena_reset(m->work, mark);
}

/* ---- Backward --------------------------------------------------------------------------------- */

void moe_again(const Model *m, const Weights *w, Saved *k, MicroBatch *b) {
    device_component(m->device, COMPONENT_ROUTER);
    make_routing(m, k, b, m->work);
    Mark mark = arena_mark(m->work);
    choose(m, w, k, b, normed(m, w, k, b));
    arena_reset(m->work, mark);
}

void moe_backward(const Model *m, const Weights *w, Weights *dw, Saved *k, MicroBatch *b) {
    const Spec *spec = m->spec;
    Stream *s = m->compute;
    int64_t T = b->tokens, slots = T * spec->top_k;
    device_component(m->device, COMPONENT_EXPERTS);
    Mark mark = arena_mark(m->work);
    Tensor dh = arena_tensor(m->work, m->real, DIM(T, spec->hidden));
    Tensor dweight = arena_tensor(m->work, m->sum, DIM(T, spec->top_k));
    Tensor h = normed(m, w, k, b);
    Mark rounds = arena_mark(m->work);
    Pass p = {.m = m, .w = w, .dw = dw, .k = k, .b = b, .kept = !tensor_none(k->rows_in), .h = h, .out = dh};
    p.rounds = rounds_of(m, b);
    run_pass(&p);
    gather_rows(s, column(dweight), p.dweight, tensor_view(k->place, DIM(slots)), 1);
    arena_reset(m->work, rounds);

    device_component(m->device, COMPONENT_ROUTER);
    Tensor dlogits = arena_tensor(m->work, m->real, DIM(T, spec->experts));
    route_backward(s, dlogits, dweight, k->p, k->chosen, k->z_lse, b->counts, b->rows, b->sequence, m->real_positions,
                   m->route_loss);
    linear_dw(s, dw->at[ROUTER], dlogits, h);
    linear_dx(s, dh, dlogits, w->at[ROUTER], true);
    rms_norm_backward(s, b->x, dw->at[MLP_NORM], dh, k->y, w->at[MLP_NORM], k->inverse2, true);
    arena_reset(m->work, mark);
}
