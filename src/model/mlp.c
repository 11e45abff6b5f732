/* The dense MLP of layers without experts: norm, gate and up, SwiGLU, down.  Letters: T tokens, H width, D its inner
 * width. */
#include "model/block.h"

static Tensor normed(const Model *m, const Weights *w, Saved *k, MicroBatch *b) {
    Tensor h = arena_tensor(m->work, m->real, DIM(b->tokens, m->spec->hidden)); /* [T, H] */
    rms_norm(m->compute, h, k->inverse2, k->y, w->at[MLP_NORM], m->spec->norm_epsilon);
    return h;
}

static void gate_and_up(const Model *m, const Weights *w, Saved *k, MicroBatch *b, Arena *home) {
    k->inverse2 = arena_tensor(home, m->sum, DIM(b->tokens));
    k->gate = arena_tensor(home, m->real, DIM(b->tokens, m->spec->dense_hidden)); /* [T, D] */
    k->up = arena_tensor(home, m->real, DIM(b->tokens, m->spec->dense_hidden));
    Mark mark = arena_mark(m->work);
    Tensor h = normed(m, w, k, b);
    linear(m->compute, k->gate, h, w->at[MLP_GATE]);
    linear(m->compute, k->up, h, w->at[MLP_UP]);
    arena_reset(m->work, mark);
}

void mlp_forward(const Model *m, const Weights *w, Saved *k, MicroBatch *b, Tensor out, Arena *home) {
    gate_and_up(m, w, k, b, home);
    Mark mark = arena_mark(m->work);
    Tensor inner = arena_tensor(m->work, m->real, DIM(b->tokens, m->spec->dense_hidden));
    swiglu(m->compute, inner, k->gate, k->up, (Tensor){0});
    linear(m->compute, out, inner, w->at[MLP_DOWN]);
    add(m->compute, out, out, k->y);
    arena_reset(m->work, mark);
}

void mlp_again(const Model *m, const Weights *w, Saved *k, MicroBatch *b) {
    gate_and_up(m, w, k, b, m->work);
}

void mlp_backward(const Model *m, const Weights *w, Weights *dw, Saved *k, MicroBatch *b) {
    Stream *s = m->compute;
    Mark mark = arena_mark(m->work);
    Tensor h = normed(m, w, k, b), dh = arena_tensor(m->work, m->real, DIM(b->tokens, m->spec->hidden));
    Tensor inner = arena_tensor(m->work, m->real, DIM(b->tokens, m->spec->dense_hidden));
    Tensor dgate = arena_tensor(m->work, m->real, DIM(b->tokens, m->spec->dense_hidden));
    swiglu(s, inner, k->gate, k->up, (Tensor){0});
    linear_dw(s, dw->at[MLP_DOWN], b->x, inner);
    Tensor dup = inner; /* its value has been used */
    linear_dx(s, dup, b->x, w->at[MLP_DOWN], false);
    swiglu_backward(s, dgate, dup, (Tensor){0}, dup, k->gate, k->up, (Tensor){0});
    linear_dw(s, dw->at[MLP_GATE], dgate, h);
    linear_dw(s, dw->at[MLP_UP], dup, h);
    linear_dx(s, dh, dgate, w->at[MLP_GATE], false);
    linear_dx(s, dh, dup, w->at[MLP_UP], true);
    rms_norm_backward(s, b->x, dw->at[MLP_NORM], dh, k->y, w->at[MLP_NORM], k->inverse2, true);
    arena_reset(m->work, mark);
}
