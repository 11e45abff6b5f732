/* Mixture of experts, dropless, over the expert group (E_p ranks, each with its own tokens and ceil(E / E_p) experts).
 *
 *   tokens [T, H] --route--> slots [T k] --sort by expert--> rows for member 0 | member 1 | ...
 *       --all_to_all--> [source][expert] --regroup--> [expert][source] --experts--> back the same way --sum the k slots--> [T, H]
 *
 * Every rank runs the same collectives whatever the routing; only their sizes differ. The routing weight travels with its row and
 * scales the expert's inner activation instead of its output (down is linear), so that backward needs no expert output.
 *
 * Letters: T tokens, H width, E experts, k per token, I expert width, R rows that arrived here.
 * Kept for backward: inverse2, the routing, the rows and their weights, gate, up. Only the host's row counts survive a recompute.
 */
#include "model/block.h"

#include <string.h>

/* ---- Routing ---------------------------------------------------------------------------------- */

static Tensor normed(const Model *m, const Weights *w, Saved *k, MicroBatch *b) {
    Tensor h = arena_tensor(m->work, m->real, DIM(b->tokens, m->spec->hidden)); /* [T, H] */
    rms_norm(m->compute, h, k->inverse2, k->y, w->at[MLP_NORM], m->spec->norm_epsilon);
    return h;
}

static Group *expert_group(const Model *m) {
    return &m->comm->group[AXIS_EXPERT];
}

/* h is normed(y); decides who goes where. Returns counts int64 [E] of this rank's slots, in scratch. */
static Tensor choose(const Model *m, const Weights *w, Saved *k, MicroBatch *b, Tensor h) {
    const Spec *spec = m->spec;
    linear(m->compute, k->logits, h, w->at[ROUTER]);
    route(m->compute, k->p, k->chosen, k->weight, k->z_lse, k->logits, spec->normalise_top_k, m->real);
    Tensor counts = arena_tensor(m->work, INT64, DIM(spec->experts));
    route_order(m->compute, k->order, k->place, counts, k->chosen);
    (void)b;
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

/* ---- Moving rows ------------------------------------------------------------------------------ */

static void exchange_rows(const Model *m, Tensor out, const int64_t *out_rows, Tensor in, const int64_t *in_rows) {
    stream_wait(m->network, event_record(m->compute));
    all_to_all(expert_group(m), m->network, out, out_rows, in, in_rows);
    stream_wait(m->compute, event_record(m->network));
}

/* The counts of the whole expert group, and from them what the host must know: how many rows go and come, and how many each
 * expert here gets. Returns the gathered counts int64 [E_p, E], in scratch. */
static Tensor learn_sizes(const Model *m, Saved *k, Tensor counts) {
    Group *g = expert_group(m);
    int64_t members = g->axis.size, E = m->spec->experts;
    Tensor all = arena_tensor(m->work, INT64, DIM(members, E));
    stream_wait(m->network, event_record(m->compute));
    all_gather(g, m->network, all, counts);
    stream_wait(m->compute, event_record(m->network));

    int64_t *table = arena_bytes(m->host, (size_t)(members * E) * sizeof *table);
    k->send = arena_bytes(m->host, (size_t)members * sizeof *k->send);
    k->receive = arena_bytes(m->host, (size_t)members * sizeof *k->receive);
    k->expert_rows = arena_bytes(m->host, (size_t)(m->experts_here + 1) * sizeof *k->expert_rows);
    device_read(m->compute, table, all, READ_ROUTING);
    memset(k->send, 0, (size_t)members * sizeof *k->send);
    memset(k->receive, 0, (size_t)members * sizeof *k->receive);
    memset(k->expert_rows, 0, (size_t)(m->experts_here + 1) * sizeof *k->expert_rows);
    k->arrived = 0;
    for (int64_t e = 0; e < E; e++) {
        k->send[e / m->experts_each] += table[g->axis.index * E + e];
        m->load[e] += (double)table[g->axis.index * E + e];
    }
    for (int64_t j = 0; j < members; j++)
        for (int64_t e = 0; e < m->experts_here; e++) {
            int64_t rows = table[j * E + m->expert_first + e];
            k->receive[j] += rows;
            k->expert_rows[e] += rows;
            k->arrived += rows;
        }
    return all;
}

/* With all experts here, a rank's sorted order is the experts' order: both names of the rows are one tensor, and nothing moves. */
static bool alone(const Model *m) {
    return expert_group(m)->axis.size == 1;
}

/* Memory for rows on the other side of the exchange. */
static Tensor other_side(const Model *m, Tensor here, int64_t rows) {
    return alone(m) ? here : arena_tensor(m->work, here.type, DIM(rows, here.dim[1]));
}

/* Rows in this rank's sorted order [T k, .] -> rows of the experts here, expert-major [R, .]. */
static void to_experts(const Model *m, const Saved *k, Tensor out, Tensor sorted) {
    if (alone(m)) return;
    Mark mark = arena_mark(m->work);
    Tensor arriving = arena_tensor(m->work, out.type, out.dims, out.dim);
    exchange_rows(m, arriving, k->receive, sorted, k->send);
    gather_rows(m->compute, out, arriving, k->index, 1);
    arena_reset(m->work, mark);
}

/* The way back: expert-major [R, .] -> this rank's sorted order [T k, .]. */
static void from_experts(const Model *m, const Saved *k, Tensor sorted, Tensor rows) {
    if (alone(m)) return;
    Mark mark = arena_mark(m->work);
    Tensor leaving = arena_tensor(m->work, rows.type, rows.dims, rows.dim);
    gather_rows(m->compute, leaving, rows, k->back, 1);
    exchange_rows(m, sorted, k->send, leaving, k->receive);
    arena_reset(m->work, mark);
}

static Tensor column(Tensor t) {
    return tensor_view(t, DIM(tensor_count(t), 1));
}

/* Sends h's rows and their weights to the experts: k->rows_in, k->rows_weight. */
static void dispatch(const Model *m, Saved *k, const MicroBatch *b, Tensor h) {
    int64_t slots = b->tokens * m->spec->top_k;
    Mark mark = arena_mark(m->work);
    Tensor weight = other_side(m, column(k->rows_weight), slots);
    gather_rows(m->compute, weight, column(k->weight), k->order, 1);
    to_experts(m, k, column(k->rows_weight), weight);
    Tensor sorted = other_side(m, k->rows_in, slots);
    gather_rows(m->compute, sorted, h, k->order, m->spec->top_k);
    to_experts(m, k, k->rows_in, sorted);
    arena_reset(m->work, mark);
}

static void make_rows(const Model *m, Saved *k, Arena *home) {
    int64_t R = k->arrived, H = m->spec->hidden, I = m->spec->expert_hidden;
    k->index = arena_tensor(home, INT32, DIM(R));
    k->back = arena_tensor(home, INT32, DIM(R));
    k->rows_weight = arena_tensor(home, m->sum, DIM(R));
    k->rows_in = arena_tensor(home, m->real, DIM(R, H));
    k->gate = arena_tensor(home, m->real, DIM(R, I));
    k->up = arena_tensor(home, m->real, DIM(R, I));
}

static void gate_and_up(const Model *m, const Weights *w, const Saved *k) {
    device_component(m->device, COMPONENT_EXPERTS);
    experts_linear(m->compute, k->gate, k->rows_in, w->at[EXPERT_GATE], k->expert_rows);
    experts_linear(m->compute, k->up, k->rows_in, w->at[EXPERT_UP], k->expert_rows);
}

/* ---- Forward ---------------------------------------------------------------------------------- */

static void combine(const Model *m, const Weights *w, const Saved *k, const MicroBatch *b, Tensor out) {
    int64_t slots = b->tokens * m->spec->top_k;
    Mark mark = arena_mark(m->work);
    Tensor sorted = arena_tensor(m->work, m->real, DIM(slots, m->spec->hidden));
    Mark inner = arena_mark(m->work);
    Tensor rows = other_side(m, sorted, k->arrived);
    Tensor active = arena_tensor(m->work, m->real, DIM(k->arrived, m->spec->expert_hidden));
    swiglu(m->compute, active, k->gate, k->up, k->rows_weight);
    experts_linear(m->compute, rows, active, w->at[EXPERT_DOWN], k->expert_rows);
    from_experts(m, k, sorted, rows);
    arena_reset(m->work, inner);
    sum_slots(m->compute, out, k->y, sorted, k->place);
    arena_reset(m->work, mark);
}

void moe_forward(const Model *m, const Weights *w, Saved *k, MicroBatch *b, Tensor out, Arena *home) {
    device_component(m->device, COMPONENT_ROUTER);
    make_routing(m, k, b, home);
    Mark mark = arena_mark(m->work);
    Tensor h = normed(m, w, k, b);
    Tensor counts = choose(m, w, k, b, h);
    route_statistics(m->compute, b->counts, b->mass, m->z, k->p, k->chosen, k->z_lse, b->sequence);
    Tensor all = learn_sizes(m, k, counts);
    device_component(m->device, COMPONENT_EXPERTS);
    make_rows(m, k, home);
    regroup_order(m->compute, k->index, k->back, all, m->expert_first, m->experts_here);
    dispatch(m, k, b, h);
    if (home != m->work) arena_reset(m->work, mark);
    gate_and_up(m, w, k);
    combine(m, w, k, b, out);
}

/* ---- Backward --------------------------------------------------------------------------------- */

void moe_again(const Model *m, const Weights *w, Saved *k, MicroBatch *b) {
    Group *g = expert_group(m);
    device_component(m->device, COMPONENT_ROUTER);
    make_routing(m, k, b, m->work);
    Tensor h = normed(m, w, k, b);
    Tensor counts = choose(m, w, k, b, h);
    Tensor all = arena_tensor(m->work, INT64, DIM(g->axis.size, m->spec->experts));
    stream_wait(m->network, event_record(m->compute));
    all_gather(g, m->network, all, counts);
    stream_wait(m->compute, event_record(m->network));
    device_component(m->device, COMPONENT_EXPERTS);
    make_rows(m, k, m->work);
    regroup_order(m->compute, k->index, k->back, all, m->expert_first, m->experts_here);
    dispatch(m, k, b, h);
    gate_and_up(m, w, k);
}

/* Gradients of the experts' rows: drows [R, H] holds that of their outputs and becomes that of their inputs. dweight [R]. */
static void experts_backward(const Model *m, const Weights *w, Weights *dw, const Saved *k, Tensor drows,
                             Tensor dweight) {
    Stream *s = m->compute;
    Mark mark = arena_mark(m->work);
    Tensor active = arena_tensor(m->work, m->real, DIM(k->arrived, m->spec->expert_hidden));
    Tensor dgate = arena_tensor(m->work, m->real, DIM(k->arrived, m->spec->expert_hidden));
    swiglu(s, active, k->gate, k->up, k->rows_weight);
    experts_linear_dw(s, dw->at[EXPERT_DOWN], drows, active, k->expert_rows);
    Tensor dup = active; /* its value has been used */
    experts_linear_dx(s, dup, drows, w->at[EXPERT_DOWN], k->expert_rows, false);
    swiglu_backward(s, dgate, dup, dweight, dup, k->gate, k->up, k->rows_weight);
    experts_linear_dw(s, dw->at[EXPERT_GATE], dgate, k->rows_in, k->expert_rows);
    experts_linear_dw(s, dw->at[EXPERT_UP], dup, k->rows_in, k->expert_rows);
    experts_linear_dx(s, drows, dgate, w->at[EXPERT_GATE], k->expert_rows, false);
    experts_linear_dx(s, drows, dup, w->at[EXPERT_UP], k->expert_rows, true);
    arena_reset(m->work, mark);
}

void moe_backward(const Model *m, const Weights *w, Weights *dw, Saved *k, MicroBatch *b) {
    const Spec *spec = m->spec;
    Stream *s = m->compute;
    int64_t T = b->tokens, H = spec->hidden, slots = T * spec->top_k;
    device_component(m->device, COMPONENT_EXPERTS);
    Mark mark = arena_mark(m->work);
    Tensor dh = arena_tensor(m->work, m->real, DIM(T, H));
    Tensor dweight = arena_tensor(m->work, m->sum, DIM(T, spec->top_k));
    Mark rows_mark = arena_mark(m->work);
    Tensor sorted = arena_tensor(m->work, m->real, DIM(slots, H)),
           sorted_dweight = arena_tensor(m->work, m->sum, DIM(slots, 1));
    Tensor drows = other_side(m, sorted, k->arrived), rows_dweight = other_side(m, sorted_dweight, k->arrived);
    gather_rows(s, sorted, b->x, k->order, spec->top_k);
    to_experts(m, k, drows, sorted);
    experts_backward(m, w, dw, k, drows, tensor_view(rows_dweight, DIM(k->arrived)));
    from_experts(m, k, sorted, drows);
    from_experts(m, k, sorted_dweight, rows_dweight);
    sum_slots(s, dh, (Tensor){0}, sorted, k->place);
    gather_rows(s, column(dweight), sorted_dweight, tensor_view(k->place, DIM(slots)), 1);
    arena_reset(m->work, rows_mark);

    device_component(m->device, COMPONENT_ROUTER);
    Tensor dlogits = arena_tensor(m->work, m->real, DIM(T, spec->experts)), h = normed(m, w, k, b);
    route_backward(s, dlogits, dweight, k->p, k->chosen, k->z_lse, b->counts, b->rows, b->sequence, m->real_positions,
                   m->route_loss);
    linear_dw(s, dw->at[ROUTER], dlogits, h);
    linear_dx(s, dh, dlogits, w->at[ROUTER], true);
    rms_norm_backward(s, b->x, dw->at[MLP_NORM], dh, k->y, w->at[MLP_NORM], k->inverse2, true);
    arena_reset(m->work, mark);
}
