/* The two ends: embedding lookup, and the head with its loss. Logits exist for one chunk of tokens at a time; loss, the gradient of
 * the hidden states and that of the head's weight come from one pass over them.  Letters: T tokens, H width, V vocabulary. */
#include "model/model.h"

void embed_forward(const Model *m, const Weights *w, MicroBatch *b) {
    Component before = device_component(m->device, COMPONENT_VOCABULARY);
    embedding(m->compute, b->x, b->token, w->at[EMBED]);
    device_component(m->device, before);
}

void embed_backward(const Model *m, Weights *dw, const MicroBatch *b) {
    Component before = device_component(m->device, COMPONENT_VOCABULARY);
    embedding_backward(m->compute, dw->at[EMBED], b->x, b->token);
    device_component(m->device, before);
}

/* One chunk: hidden [c, H] -> loss, and with dw: dhidden [c, H] and the head's gradient. */
static void chunk_loss(const Model *m, const Weights *w, Weights *dw, Tensor hidden, Tensor dhidden, Tensor target,
                       Tensor loss, Tensor trained) {
    Stream *s = m->compute;
    int64_t c = hidden.dim[0], V = m->spec->vocabulary;
    Mark mark = arena_mark(m->work);
    Tensor logits = arena_tensor(m->work, m->sum, DIM(c, V));
    linear(s, logits, hidden, w->at[HEAD]);
    if (!dw) {
        cross_entropy(s, loss, (Tensor){0}, logits, target, trained);
    } else {
        Tensor dlogits = m->real == m->sum ? logits : arena_tensor(m->work, m->real, DIM(c, V));
        cross_entropy(s, loss, dlogits, logits, target, trained);
        linear_dx(s, dhidden, dlogits, w->at[HEAD], false);
        linear_dw(s, dw->at[HEAD], dlogits, hidden);
    }
    arena_reset(m->work, mark);
}

void head_loss(const Model *m, const Weights *w, Weights *dw, MicroBatch *b, Tensor loss, Tensor trained) {
    int64_t T = b->tokens, H = m->spec->hidden;
    Component before = device_component(m->device, COMPONENT_VOCABULARY);
    Mark mark = arena_mark(m->work);
    Tensor inverse = arena_tensor(m->work, m->sum, DIM(T));
    Tensor hidden = arena_tensor(m->work, m->real, DIM(T, H)), dhidden = hidden;
    if (dw) dhidden = arena_tensor(m->work, m->real, DIM(T, H));
    rms_norm(m->compute, hidden, inverse, b->x, w->at[FINAL_NORM], m->spec->norm_epsilon);
    for (int64_t at = 0; at < T; at += m->loss_chunk) {
        int64_t c = min64(m->loss_chunk, T - at);
        chunk_loss(m, w, dw, tensor_rows(hidden, at, c), tensor_rows(dhidden, at, c), tensor_rows(b->target, at, c),
                   loss, trained);
    }
    if (dw) {
        rms_norm_backward(m->compute, b->gradient, dw->at[FINAL_NORM], dhidden, b->x, w->at[FINAL_NORM], inverse,
                          false);
        b->x = b->gradient;
    }
    arena_reset(m->work, mark);
    device_component(m->device, before);
}

void head_logits(const Model *m, const Weights *w, const MicroBatch *b, int64_t row, Tensor logits) {
    Component before = device_component(m->device, COMPONENT_VOCABULARY);
    Mark mark = arena_mark(m->work);
    Tensor inverse = arena_tensor(m->work, m->sum, DIM(1)),
           hidden = arena_tensor(m->work, m->real, DIM(1, m->spec->hidden));
    rms_norm(m->compute, hidden, inverse, tensor_rows(b->x, row, 1), w->at[FINAL_NORM], m->spec->norm_epsilon);
    linear(m->compute, logits, hidden, w->at[HEAD]);
    arena_reset(m->work, mark);
    device_component(m->device, before);
}
