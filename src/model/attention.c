/* Attention: norm, projections, rotary positions, causal attention within documents, output projection; forward, and
 * backward.
 *
 * Letters: T tokens of the micro-batch on this rank, H width, h query heads, g KV heads, d head size.
 * Kept for backward: inverse1, q, k, v before norm and rope, attention's output and log-sum-exp (so that attention is
 * never recomputed), and y, its sum with the input. Under compute.activations = recompute only attention and lse are
 * kept.
 */
#include "model/block.h"

/* QK-norm sees whole rows [T, h d] or single heads [T h, d]. */
static Tensor norm_rows(const Spec *spec, Tensor t) {
    return spec->qk_norm == QK_NORM_HEAD ? tensor_view(t, DIM(t.dim[0] * t.dim[1], t.dim[2]))
                                         : tensor_view(t, DIM(t.dim[0], t.dim[1] * t.dim[2]));
}

/* h = norm(x); q, k, v = h W. All into `home`. */
static void project(const Model *m, const Weights *w, Saved *k, MicroBatch *b, Arena *home) {
    const Spec *spec = m->spec;
    Stream *s = m->compute;
    int64_t T = b->tokens, d = spec->head_dim;
    k->inverse1 = arena_tensor(home, m->sum, DIM(T));
    k->q = arena_tensor(home, m->real, DIM(T, spec->heads, d));
    k->k = arena_tensor(home, m->real, DIM(T, spec->kv_heads, d));
    k->v = arena_tensor(home, m->real, DIM(T, spec->kv_heads, d));
    if (spec->qk_norm != QK_NORM_NONE) {
        k->q_inverse = arena_tensor(home, m->sum, DIM(norm_rows(spec, k->q).dim[0]));
        k->k_inverse = arena_tensor(home, m->sum, DIM(norm_rows(spec, k->k).dim[0]));
    }
    Mark mark = arena_mark(m->work);
    Tensor h = arena_tensor(m->work, m->real, DIM(T, spec->hidden)); /* [T, H] */
    rms_norm(s, h, k->inverse1, k->x, w->at[ATTENTION_NORM], spec->norm_epsilon);
    linear(s, tensor_view(k->q, DIM(T, spec->heads * d)), h, w->at[Q]);
    linear(s, tensor_view(k->k, DIM(T, spec->kv_heads * d)), h, w->at[K]);
    linear(s, tensor_view(k->v, DIM(T, spec->kv_heads * d)), h, w->at[V]);
    if (home != m->work) arena_reset(m->work, mark);
}

/* What attention sees of q or k: normed, then turned. */
static Tensor turned(const Model *m, const MicroBatch *b, Tensor raw, Tensor norm, Tensor inverse) {
    Tensor out = arena_tensor(m->work, m->real, raw.dims, raw.dim);
    if (m->spec->qk_norm == QK_NORM_NONE) {
        rope(m->compute, out, raw, b->rope, false);
        return out;
    }
    rms_norm(m->compute, norm_rows(m->spec, out), inverse, norm_rows(m->spec, raw), norm, m->spec->norm_epsilon);
    rope(m->compute, out, out, b->rope, false);
    return out;
}

/* y = x + attention W_o. */
static void project_out(const Model *m, const Weights *w, Saved *k, MicroBatch *b, Arena *home) {
    k->y = arena_tensor(home, m->real, DIM(b->tokens, m->spec->hidden));
    linear(m->compute, k->y, tensor_view(k->attention, DIM(b->tokens, m->spec->heads * m->spec->head_dim)), w->at[O]);
    add(m->compute, k->y, k->y, k->x);
}

void attention_forward(const Model *m, const Weights *w, Saved *k, MicroBatch *b, Arena *kept, Arena *home) {
    const Spec *spec = m->spec;
    k->attention = arena_tensor(kept, m->real, DIM(b->tokens, spec->heads, spec->head_dim));
    k->lse = arena_tensor(kept, m->sum, DIM(spec->heads / m->cut.ulysses, b->sharing.rows));
    project(m, w, k, b, home);
    Mark mark = arena_mark(m->work);
    Tensor q = turned(m, b, k->q, w->at[Q_NORM], k->q_inverse), kk = turned(m, b, k->k, w->at[K_NORM], k->k_inverse);
    shared_attention(m, b, k->attention, k->lse, q, kk, k->v);
    arena_reset(m->work, mark);
    project_out(m, w, k, b, home);
}

void attention_again(const Model *m, const Weights *w, Saved *k, MicroBatch *b) {
    project(m, w, k, b, m->work);
    project_out(m, w, k, b, m->work);
}

/* Gradient of one projection's raw output back through rope and norm, in place; then into its weight and into dh. */
static void back_through(const Model *m, const Weights *w, Weights *dw, const MicroBatch *b, Tensor dt, Tensor raw,
                         Tensor inverse, ParameterName norm, ParameterName projection, Tensor h, Tensor dh,
                         bool add_to_dh) {
    Stream *s = m->compute;
    Mark mark = arena_mark(m->work);
    Tensor draw = dt;
    if (norm != V) rope(s, dt, dt, b->rope, true);
    if (norm != V && m->spec->qk_norm != QK_NORM_NONE) {
        draw = arena_tensor(m->work, m->real, dt.dims, dt.dim);
        rms_norm_backward(s, norm_rows(m->spec, draw), dw->at[norm], norm_rows(m->spec, dt), norm_rows(m->spec, raw),
                          w->at[norm], inverse, false);
    }
    Tensor flat = tensor_view(draw, DIM(draw.dim[0], draw.dim[1] * draw.dim[2]));
    linear_dw(s, dw->at[projection], flat, h);
    linear_dx(s, dh, flat, w->at[projection], add_to_dh);
    arena_reset(m->work, mark);
}

/* b->x holds dy (the gradient of y) and becomes dx. */
void attention_backward_pass(const Model *m, const Weights *w, Weights *dw, Saved *k, MicroBatch *b) {
    const Spec *spec = m->spec;
    Stream *s = m->compute;
    int64_t T = b->tokens, d = spec->head_dim;
    Mark mark = arena_mark(m->work);
    Tensor dattention = arena_tensor(m->work, m->real, DIM(T, spec->heads, d));
    Tensor wide = tensor_view(k->attention, DIM(T, spec->heads * d));
    linear_dw(s, dw->at[O], b->x, wide);
    linear_dx(s, tensor_view(dattention, DIM(T, spec->heads * d)), b->x, w->at[O], false);

    Tensor dq = arena_tensor(m->work, m->real, DIM(T, spec->heads, d));
    Tensor dk = arena_tensor(m->work, m->real, DIM(T, spec->kv_heads, d));
    Tensor dv = arena_tensor(m->work, m->real, DIM(T, spec->kv_heads, d));
    Mark inner = arena_mark(m->work);
    Tensor delta = arena_tensor(m->work, m->sum, DIM(spec->heads, T));
    Tensor q = turned(m, b, k->q, w->at[Q_NORM], k->q_inverse), kk = turned(m, b, k->k, w->at[K_NORM], k->k_inverse);
    attention_delta(s, delta, dattention, k->attention);
    shared_attention_backward(m, b, dq, dk, dv, delta, dattention, k->lse, q, kk, k->v);
    arena_reset(m->work, inner);

    Tensor h = arena_tensor(m->work, m->real, DIM(T, spec->hidden)),
           dh = arena_tensor(m->work, m->real, DIM(T, spec->hidden));
    rms_norm(s, h, k->inverse1, k->x, w->at[ATTENTION_NORM], spec->norm_epsilon);
    back_through(m, w, dw, b, dq, k->q, k->q_inverse, Q_NORM, Q, h, dh, false);
    back_through(m, w, dw, b, dk, k->k, k->k_inverse, K_NORM, K, h, dh, true);
    back_through(m, w, dw, b, dv, k->v, (Tensor){0}, V, V, h, dh, true);
    rms_norm_backward(s, b->x, dw->at[ATTENTION_NORM], dh, k->x, w->at[ATTENTION_NORM], k->inverse1, true);
    arena_reset(m->work, mark);
}
