/* A decoder layer: attention, then experts or a dense MLP; a block forward and, right below, backward. Read this
 * first, then attention.c and moe.c. */
#include "model/block.h"

/* Where a forward pass puts things. In evaluation nothing is kept and the layer's output replaces its input. */
static Arena *kept_arena(const Model *m) {
    return m->evaluating ? m->work : m->saved;
}

static Arena *home_arena(const Model *m) {
    return m->evaluating || m->recompute ? m->work : m->saved;
}

void layer_forward(const Model *m, int64_t layer, const Weights *w, Saved *k, MicroBatch *b) {
    Arena *kept = kept_arena(m), *home = home_arena(m);
    Component before = device_component(m->device, COMPONENT_ATTENTION);
    m->device->layer = layer;
    Mark mark = arena_mark(m->work);
    *k = (Saved){.x = b->x};
    Tensor out = m->evaluating ? b->x : arena_tensor(m->saved, m->real, DIM(b->tokens, m->spec->hidden));
    attention_forward(m, w, k, b, kept, home);
    device_component(m->device, COMPONENT_DENSE);
    if (m->spec->dense[layer])
        mlp_forward(m, w, k, b, out, home);
    else
        moe_forward(m, w, k, b, out, home);
    arena_reset(m->work, mark);
    b->x = out;
    device_component(m->device, before);
    m->device->layer = -1;
}

void layer_backward(const Model *m, int64_t layer, const Weights *w, Weights *dw, Saved *k, MicroBatch *b) {
    bool dense = m->spec->dense[layer];
    Component before = device_component(m->device, COMPONENT_ATTENTION);
    m->device->layer = layer;
    Mark mark = arena_mark(m->work);
    if (m->recompute) {
        attention_again(m, w, k, b);
        device_component(m->device, COMPONENT_DENSE);
        if (dense)
            mlp_again(m, w, k, b);
        else
            moe_again(m, w, k, b);
    }
    device_component(m->device, COMPONENT_DENSE);
    if (dense)
        mlp_backward(m, w, dw, k, b);
    else
        moe_backward(m, w, dw, k, b);
    device_component(m->device, COMPONENT_ATTENTION);
    attention_backward_pass(m, w, dw, k, b);
    arena_reset(m->work, mark);
    device_component(m->device, before);
    m->device->layer = -1;
}
