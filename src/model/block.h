/* The halves of a layer, each in its own file; used by layer.c alone.
 *
 * Arenas: `kept` is what always survives until backward; `home` is where the rest goes (the same, or scratch when it
 * will be computed again). In backward b->x is the gradient of the half's output and becomes that of its input,
 * residual included.
 */
#ifndef MOP_BLOCK_H
#define MOP_BLOCK_H

#include "model/model.h"

#include <math.h>

/* attention.c: k->x -> k->y = x + attention(x). */
void attention_forward(const Model *m, const Weights *w, Saved *k, MicroBatch *b, Arena *kept, Arena *home);
void attention_again(const Model *m, const Weights *w, Saved *k,
                     MicroBatch *b); /* all but attention itself, into scratch */
void attention_backward_pass(const Model *m, const Weights *w, Weights *dw, Saved *k, MicroBatch *b);

/* ulysses.c: attention of this rank's rows to all that their sequences have, wherever it lies. out, q [T, heads, d];
 * k, v [T, kv, d]; lse sum [heads / D_u, rows]: what backward needs, of this rank's heads. delta is that of its own
 * rows, [heads, T]. */
void shared_attention(const Model *m, const MicroBatch *b, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v);
void shared_attention_backward(const Model *m, const MicroBatch *b, Tensor dq, Tensor dk, Tensor dv, Tensor delta,
                               Tensor dout, Tensor lse, Tensor q, Tensor k, Tensor v);

/* ring.c: the same for some heads of all rows of this ring member, the other members' rows coming by. The gradients
 * are all real or all of the sum type; over more than one member of the sum type. */
void ring_attention(const Model *m, const MicroBatch *b, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v);
void ring_attention_backward(const Model *m, const MicroBatch *b, Tensor dq, Tensor dk, Tensor dv, Tensor delta,
                             Tensor dout, Tensor lse, Tensor q, Tensor k, Tensor v);

/* mlp.c: k->y -> out = y + mlp(y), a dense MLP. */
void mlp_forward(const Model *m, const Weights *w, Saved *k, MicroBatch *b, Tensor out, Arena *home);
void mlp_again(const Model *m, const Weights *w, Saved *k, MicroBatch *b);
void mlp_backward(const Model *m, const Weights *w, Weights *dw, Saved *k, MicroBatch *b);

/* moe.c: k->y -> out = y + experts(y), over the expert group. `again`: route and dispatch as before, without
 * statistics. */
void moe_forward(const Model *m, const Weights *w, Saved *k, MicroBatch *b, Tensor out, Arena *home);
void moe_again(const Model *m, const Weights *w, Saved *k, MicroBatch *b);
void moe_backward(const Model *m, const Weights *w, Weights *dw, Saved *k, MicroBatch *b);

#endif
