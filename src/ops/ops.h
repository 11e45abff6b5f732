/* The mathematics: every op of the model, its loss and its update. Each is a front door: it checks shapes and types
 * (MUST), charges the meter, and launches the device's kernel on the stream. The plain kernels in ops/cpu are the
 * definitions.
 *
 * Letters: T tokens, H width, E experts, k experts per token, I expert width, V vocabulary, d head size.
 * Types: "real" is the compute type (fp32, bf16, fp64); "sum" is fp64 for fp64 and fp32 otherwise. Every reduction is
 * made in the sum type, in an order that depends on shapes alone. Gradients of weights are kept in the sum type and
 * are ADDED to; gradients of activations are real and are written unless `add` is said. `none` (no data, no dims)
 * means absent. Any row count may be 0. Memory of host arrays (`rows`) must live until the op has run.
 */
#ifndef MOP_OPS_H
#define MOP_OPS_H

#include "device/device.h"

/* ---- dense.c: products and elementwise -------------------------------------------------------- */

/* y[m,n] = x[m,k] w[n,k]^T.   dx[m,k] (+)= dy[m,n] w[n,k].   dw[n,k] += dy[m,n]^T x[m,k].
 * y and dx are real or sum; dw is sum; the rest real. 2mnk FLOPs each. */
void linear(Stream *s, Tensor y, Tensor x, Tensor w);
void linear_dx(Stream *s, Tensor dx, Tensor dy, Tensor w, bool add);
void linear_dw(Stream *s, Tensor dw, Tensor dy, Tensor x);

/* The same for each expert e over its own rows: x is the concatenation of rows[0], rows[1], ... rows; w[e,n,k]. An
 * expert without rows adds nothing to its dw. */
void experts_linear(Stream *s, Tensor y, Tensor x, Tensor w, const int64_t *rows);
void experts_linear_dx(Stream *s, Tensor dx, Tensor dy, Tensor w, const int64_t *rows, bool add);
void experts_linear_dw(Stream *s, Tensor dw, Tensor dy, Tensor x, const int64_t *rows);

/* y[i] = weight[row] * silu(gate[i]) * up[i], silu(a) = a / (1 + exp(-a)). gate, up, y: [rows, I]; weight: sum [rows]
 * or none (1); y may be gate. Backward: dgate, dup [rows, I] (may be the same memory as dy), dweight[row] = sum_i dy
 * * silu(gate) * up; none with weight none. */
void swiglu(Stream *s, Tensor y, Tensor gate, Tensor up, Tensor weight);
void swiglu_backward(Stream *s, Tensor dgate, Tensor dup, Tensor dweight, Tensor dy, Tensor gate, Tensor up,
                     Tensor weight);

/* y = round(x * inverse[row]) * w over the last dimension H of [rows, H]; inverse[row] = 1 / sqrt(mean(x^2) +
 * epsilon) (sum type, written). `round` is to the real type, as the references do. w real [H]. Backward: dx (+)=
 * inverse (dy w - xhat mean(dy w xhat)), xhat = x inverse; dw[H] (sum) += sum_rows dy xhat. */
void rms_norm(Stream *s, Tensor y, Tensor inverse, Tensor x, Tensor w, double epsilon);
void rms_norm_backward(Stream *s, Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor inverse, bool add);

void add(Stream *s, Tensor y, Tensor a, Tensor b); /* y = a + b; y may be a or b; all of one type */
void zero(Stream *s, Tensor t);
void copy(Stream *s, Tensor y, Tensor x); /* same count; converts between real types */
/* y[r, y_column + i] = x[r, x_column + i], i < columns, for every row r of y [rows, *] and x [rows, *]. Of one type,
 * any, or between bf16 and fp32. With `add` it is added instead: y is then of the sum type of x. y and x share no
 * memory. */
void copy_columns(Stream *s, Tensor y, int64_t y_column, Tensor x, int64_t x_column, int64_t columns, bool add);

/* ---- sequence.c: what looks across tokens ----------------------------------------------------- */

/* y[t] = table[token[t]].  Backward: dtable[token[t]] (sum) += dy[t], in the order of t; the row `frozen` (-1: none)
 * gets nothing. token int32 [T], table [V,H]. */
void embedding(Stream *s, Tensor y, Tensor token, Tensor table);
void embedding_backward(Stream *s, Tensor dtable, Tensor dy, Tensor token, int64_t frozen);

/* table[t] = (cos, sin)(position[t] * theta^(-2i/d)), i = 0..d/2-1: cosines then sines. table sum [T, d], position
 * int32 [T]. rope: halves rotate: y[i] = x[i] cos - x[i+d/2] sin, y[i+d/2] = x[i+d/2] cos + x[i] sin, for each head
 * of [T, heads, d]; `inverse` turns back (the gradient). y may be x. */
void rope_table(Stream *s, Tensor table, Tensor position, double theta);
void rope(Stream *s, Tensor y, Tensor x, Tensor table, bool inverse);

/* Attention of Tq query rows to Tk key rows, with grouped KV heads; scores are never materialised.
 * q, out [Tq, heads, d]; k, v [Tk, kv, d]. Query head h reads KV head h / (heads / kv).
 * Who sees whom: query row t sees key rows first[t] <= j < last[t]; first, last int32 [Tq], both non-decreasing in t,
 * 0 <= first[t] <= last[t] <= Tk. Causality, documents and a window are such intervals:
 *
 *     key row     0 1 2 3 4 5 6 7            first  last
 *     query 0     x . . . . . . .              0     1       two documents (rows 0 .. 4, 5 .. 7), window 3
 *     query 3     . x x x . . . .              1     4
 *     query 6     . . . . . x x .              5     7
 *
 * The keys of a row may come in blocks (a ring), one call each and then merged; a block is any k, v with the first
 * and last that say who sees what of it. out = softmax(scale q k^T) v; lse [heads, Tq] (sum) = log sum exp of the
 * scaled scores. A row that sees nothing: out 0, lse -infinity. out is real, or of the sum type if it is to be
 * merged. `pairs` is the number of visible (t, j), for the charge: 4 d pairs FLOPs a head forward, 10 d backward. */
enum { MAX_HEAD_SIZE = 1024 }; /* d */
typedef struct {
    double scale; /* > 0 */
    int64_t pairs;
} AttentionShape;
void attention(Stream *s, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor first, Tensor last,
               AttentionShape shape);
/* out and lse, of some keys, become those of these and of the part's keys (log-sum-exp): out, part [T, heads, d];
 * lse, part_lse [heads, T]; all of one sum type. A side whose lse is -infinity has seen nothing, and its row is not
 * read. */
void attention_merge(Stream *s, Tensor out, Tensor lse, Tensor part, Tensor part_lse);
/* delta[h,t] (sum) = sum_c dout[t,h,c] out[t,h,c], which backward needs: of the whole row, made once. dout and out
 * [T, heads, d] are each real or of the sum type. */
void attention_delta(Stream *s, Tensor delta, Tensor dout, Tensor out);
/* Writes dq, dk, dv, all real or all of the sum type. lse and delta are those of the whole row, and of keys that come
 * in blocks each call gives dk, dv of its block and what the block adds to dq. A key that nobody sees: dk = dv = 0; a
 * row that sees nothing: dq = 0. keys int32 [Tq]: how many keys a row sees, of all blocks. Where that is one, its
 * weight is 1 whatever the score: the score's gradient is exactly 0, in every type and however the keys are cut. */
void attention_backward(Stream *s, Tensor dq, Tensor dk, Tensor dv, Tensor delta, Tensor dout, Tensor lse, Tensor q,
                        Tensor k, Tensor v, Tensor first, Tensor last, Tensor keys, AttentionShape shape);

/* ---- routing.c: which expert, and who goes where ---------------------------------------------- */

/* p[T,E] = softmax(logits) in the sum type; chosen int32 [T,k]: the k largest logits, largest first, ties to the lower
 * index (by logits, not p: whatever p rounds to, every device chooses alike; a NaN still gives k different experts);
 * weight[T,k] (sum, rounded to the real type of logits) = p of the chosen, divided by their sum when `normalise`.
 * lse[T] (sum) = log sum exp of the logits. logits real or sum [T,E]. `round` names the real type. */
void route(Stream *s, Tensor p, Tensor chosen, Tensor weight, Tensor lse, Tensor logits, bool normalise, Type round);

/* The auxiliary losses are pooled over all MoE layers, per sequence, over real positions, so that neither ranks nor
 * micro-batches change them (balance: Shazeer 2017 / Switch, pooled as Hugging Face pools; z: ST-MoE).
 * sequence int32 [T]: the sequence of position t within the micro-batch, or -1 for padding.
 * counts[n,E] += how often e was chosen; mass[n,E] += sum of p; z[1] (fp64) += sum lse^2. counts, mass: fp64. */
void route_statistics(Stream *s, Tensor counts, Tensor mass, Tensor z, Tensor p, Tensor chosen, Tensor lse,
                      Tensor sequence);
/* loss[1] (fp64) += sum_s E sum_e (counts[s,e] / rows[s]) (mass[s,e] / rows[s]); rows fp64 [n] = MoE layers x real
 * positions; a sequence with rows 0 adds 0, here and in the gradient. */
void balance_loss(Stream *s, Tensor loss, Tensor counts, Tensor mass, Tensor rows);

/* dlogits (type of logits) from dweight[T,k] (sum) through renormalisation and softmax, plus the auxiliary gradients:
 * dp[t,e] += balance E counts[s,e] / rows[s]^2 and dlogits += z 2 lse p / real_positions[0], for real positions
 * (sequence >= 0); counts are constants. real_positions fp64 [1]: those of the whole step. counts and rows may be
 * none when balance is 0, real_positions when z is 0. What cannot change has a gradient of exactly 0: the weight of
 * one expert that is chosen and normalised, and the balance of experts that are all chosen. */
typedef struct {
    bool normalise;
    double balance; /* coefficient / sequences of the step */
    double z;       /* coefficient / MoE layers */
} RouteLoss;
void route_backward(Stream *s, Tensor dlogits, Tensor dweight, Tensor p, Tensor chosen, Tensor lse, Tensor counts,
                    Tensor rows, Tensor sequence, Tensor real_positions, RouteLoss loss);

/* Stable counting sort of the T x k slots by round and expert; token t passes in round t mod K. order int32 [Tk]:
 * slot (t k + j) of each sorted row; place int32 [T,k]: the inverse; counts int64 [K,E]. */
void route_order(Stream *s, Tensor order, Tensor place, Tensor counts, Tensor chosen);

/* y[i] = x[index[i] / divide]; x, y [rows, H] */
void gather_rows(Stream *s, Tensor y, Tensor x, Tensor index, int64_t divide);
/* y[t] = base[t] + sum_j rows[place[t,j] - first] (j ascending, sum type), for t = token, token + step, ...; other
 * tokens are untouched. base none: 0; y may be base. */
typedef struct {
    int64_t token, step; /* a round, and how many there are */
    int64_t first;       /* the round's first place */
} SlotRound;
void sum_slots(Stream *s, Tensor y, Tensor base, Tensor rows, Tensor place, SlotRound round);

/* ---- loss.c ----------------------------------------------------------------------------------- */

enum { MAX_VOCABULARY = 1 << 20 }; /* a row of logits is in a thread's scratch */
/* loss[1] (fp64) += sum over rows with target >= 0 of lse(logits) - logits[target];
 * dlogits = (softmax(logits) - onehot(target)) / trained[0] (0 where target < 0 or trained is 0). logits sum [n,V];
 * dlogits real, none in evaluation, may be logits itself when the types agree; target int32 [n], trained fp64 [1]. */
void cross_entropy(Stream *s, Tensor loss, Tensor dlogits, Tensor logits, Tensor target, Tensor trained);

/* The same over a vocabulary in parts. A part is its rows first, first + 1, ...: logits sum [n,Vp], possibly of no
 * row at all; targets are numbered over the whole. What a part says of a row of logits is (m, sum exp(logit - m),
 * logit of the target): stats sum [n,LOSS_STATS], m the largest logit; the last is -infinity where the target lies in
 * another part or is none.
 *   cross_entropy_part       writes the stats of one part; of a part without rows: -infinity, 0, -infinity
 *   cross_entropy_join       y [n,LOSS_STATS]: the stats of all, from those of each in order, x [parts,n,LOSS_STATS]; y may be x[0]
 *   cross_entropy_sum        loss[1] (fp64) += sum over rows with target >= 0 of m + log(sum) - logit of the target
 *   cross_entropy_gradient   dlogits [n,Vp] of one part as above, from the stats of all; dlogits may be logits */
enum { LOSS_LARGEST, LOSS_SUM, LOSS_TARGET, LOSS_STATS };
void cross_entropy_part(Stream *s, Tensor stats, Tensor logits, Tensor target, int64_t first);
void cross_entropy_join(Stream *s, Tensor y, Tensor x);
void cross_entropy_sum(Stream *s, Tensor loss, Tensor stats, Tensor target);
void cross_entropy_gradient(Stream *s, Tensor dlogits, Tensor logits, Tensor stats, Tensor target, int64_t first,
                            Tensor trained);

/* ---- update.c --------------------------------------------------------------------------------- */

/* AdamW (Loshchilov & Hutter 2019), torch's order: w *= 1 - lr wd; m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2;
 * w -= lr / bc1 * m / (sqrt(v) / sqrt(bc2) + epsilon), bc = 1 - beta^t, g = clip * gradient.
 * weight real [n]; m, v, gradient sum [n]; low: BYTE [2n], int16 halves beside a bf16 weight (the fp32 master is
 * (weight << 16) + (int16)low), none otherwise.
 * Every device gets the same bits: the scalars decay = 1 - lr wd, b1, c1 = 1 - b1, b2, c2 = 1 - b2, step = lr / bc1,
 * root = sqrt(bc2), epsilon and clip are made in double and rounded to the sum type once; then, in the sum type, each
 * operation rounded by itself (no fused multiply-add):
 *   g = clip * gradient;   w = decay * w;   m = b1 * m + c1 * g;   v = b2 * v + (c2 * g) * g;
 *   w = w - (step * m) / (sqrt(v) / root + epsilon). */
typedef struct {
    double learning_rate, beta1, beta2, epsilon, weight_decay, correction1, correction2, clip;
} AdamW;
void adamw(Stream *s, Tensor weight, Tensor low, Tensor m, Tensor v, Tensor gradient, AdamW h);

/* out[1] (fp64) = sum x^2, in blocks of fixed size; NaN and Inf show */
void square_sum(Stream *s, Tensor out, Tensor x);

/* y[i] = sum_r x[r,i], r ascending; x [ranks, n]; y may be x[0]. What collectives add with; sum types, fp64, int64. */
void sum_rows(Stream *s, Tensor y, Tensor x);

#endif
