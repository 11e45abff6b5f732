/* Scratch by formulas of its own. A plan is a run on a device that counts: what a pass leaks, the plan leaks as well,
 * and one held to the other shows nothing. So the work arena at its fullest is held to the sizes of what must be there
 * at that moment, for attention and for the loss; test_memory.c does so for the experts. Models are such that the arena
 * is fullest with what is asked for, in many slices of heads and chunks of tokens: what one of them leaves behind
 * shows. */
#include "trials.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

/* Many heads over a narrow model, and many words. */
static const char many_heads[] =
    "{\"model_type\": \"mixtral\", \"vocab_size\": 67, \"hidden_size\": 8, \"num_hidden_layers\": 2, "
    "\"num_attention_heads\": 12, \"num_key_value_heads\": 4, \"head_dim\": 16, \"num_local_experts\": 2, "
    "\"num_experts_per_tok\": 1, \"intermediate_size\": 3, \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000, "
    "\"tie_word_embeddings\": false, \"hidden_act\": \"silu\", \"sliding_window\": null}";
static const char many_words[] =
    "{\"model_type\": \"mixtral\", \"vocab_size\": 1201, \"hidden_size\": 8, \"num_hidden_layers\": 1, "
    "\"num_attention_heads\": 2, \"num_key_value_heads\": 1, \"head_dim\": 2, \"num_local_experts\": 2, "
    "\"num_experts_per_tok\": 1, \"intermediate_size\": 3, \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000, "
    "\"tie_word_embeddings\": false, \"hidden_act\": \"silu\", \"sliding_window\": null}";

/* The letters of docs/parallel.md; b bytes of a real, f of a sum. */
typedef struct {
    int64_t T, Q, largest, most; /* rows here, of the ring member, of any ring member; of any rank */
    int64_t H, h, g, d, b, f;
    int64_t D_u, D_r, q_s, g_s; /* heads of a slice */
    int64_t P, V, here, c;      /* here: rows of the vocabulary */
    bool shared;                /* some KV head is read by several ranks or slices */
} Letters;

static int64_t divisor_of_both(int64_t a, int64_t b) {
    int64_t n = a;
    while (a % n != 0 || b % n != 0) n--;
    return n;
}

static Letters letters_of(const Run *r) {
    const Config *c = r->config;
    const Spec *s = r->spec;
    const Cut *cut = &r->model.cut;
    int64_t sequences = run_sequences(r, r->comm.mesh.rank, 0);
    Letters x = {.T = r->micro[0].tokens,
                 .most = r->micro[0].most,
                 .H = s->hidden,
                 .h = s->heads,
                 .g = s->kv_heads,
                 .d = s->head_dim,
                 .b = (int64_t)type_bytes(c->compute_type),
                 .D_u = c->mixture_ulysses,
                 .D_r = c->mixture_ring,
                 .P = c->mixture_vocabulary,
                 .V = s->vocabulary,
                 .c = c->mixture_loss_chunk};
    x.f = c->compute_type == FP64 ? 8 : 4;
    x.Q = sequences * cut_ring_member(cut, r->comm.mesh.axis[AXIS_RING].index).tokens;
    for (int j = 0; j < cut->ring; j++) x.largest = max64(x.largest, sequences * cut_ring_member(cut, j).tokens);
    x.here = axis_share(&r->comm.mesh.axis[AXIS_VOCABULARY], x.V).here;
    int64_t mine = x.h / x.D_u, share = x.h / x.g;
    x.shared = x.D_u > 1 && mine % share != 0;
    x.g_s = x.D_u == 1 ? x.g : x.shared ? 1 : divisor_of_both(mine / share, c->mixture_ulysses_heads);
    x.q_s = x.shared ? divisor_of_both(mine, share) : x.g_s * share;
    return x;
}

/* `n` tensors of so many numbers of so many bytes, each of which begins at a multiple of 64. */
static int64_t tensors(int64_t n, int64_t numbers, int64_t bytes) {
    return n * ((numbers * bytes + 63) / 64 * 64);
}

/* ---- Attention -------------------------------------------------------------------------------- */

/* Blocks on their way round, and what one of them adds. */
static int64_t ring_forward(const Letters *x) {
    if (x->D_r == 1) return 0;
    int64_t outs = 1 + (x->b != x->f); /* a part's, and the sum of all where the result is no sum */
    return tensors(4, x->largest * x->g_s * x->d, x->b) + tensors(outs, x->Q * x->q_s * x->d, x->f) +
           tensors(1, x->q_s * x->Q, x->f);
}

static int64_t ring_backward(const Letters *x) {
    if (x->D_r == 1) return 0;
    return tensors(4, x->largest * x->g_s * x->d, x->b) + tensors(1, x->Q * x->q_s * x->d, x->f) +
           tensors(6, x->largest * x->g_s * x->d, x->f);
}

/* In evaluation, where everything of the layer is scratch, at the slice. */
static int64_t attention_forward_bytes(const Letters *x) {
    int64_t queries = x->T * x->h * x->d, keys = x->T * x->g * x->d;
    int64_t layer = tensors(3, queries, x->b) + tensors(3, keys, x->b) /* out, q, turned q; k, v, turned k */
                    + tensors(1, x->h / x->D_u * x->Q, x->f) + tensors(1, x->T, x->f) + tensors(1, x->T * x->H, x->b);
    if (x->D_u == 1) return layer + ring_forward(x);
    int64_t slice = tensors(2, x->Q * x->q_s * x->d, x->b) + tensors(2, x->Q * x->g_s * x->d, x->b);
    int64_t packed_q = tensors(1, x->D_u * x->T * x->q_s * x->d, x->b),
            packed_k = tensors(1, x->D_u * x->T * x->g_s * x->d, x->b);
    return layer + slice + max64(packed_q + 2 * packed_k, ring_forward(x));
}

static int64_t attention_backward_bytes(const Letters *x) {
    int64_t queries = x->T * x->h * x->d, keys = x->T * x->g * x->d;
    bool sums = x->shared || x->D_r > 1; /* gradients are made as sums */
    int64_t made = sums ? x->f : x->b;
    int64_t layer = tensors(3, queries, x->b) + tensors(3, keys, x->b) /* dout, dq, turned q; dk, dv, turned k */
                    + tensors(1, x->h * x->T, x->f);
    if (x->D_u == 1) {
        if (sums && x->b != x->f) layer += tensors(1, queries, x->f) + tensors(2, keys, x->f);
        return layer + ring_backward(x);
    }
    if (x->shared) layer += tensors(2, keys, x->f);
    int64_t q = x->Q * x->q_s * x->d, k = x->Q * x->g_s * x->d;
    int64_t packed_q = x->D_u * x->T * x->q_s * x->d, packed_k = x->D_u * x->T * x->g_s * x->d;
    int64_t results = tensors(1, q, made) + tensors(2, k, made);
    int64_t inputs = tensors(2, q, x->b) + tensors(2, k, x->b) + tensors(1, x->q_s * x->Q, x->f);
    int64_t packed = tensors(2, packed_q, x->b) + tensors(2, packed_k, x->b);
    bool narrower = made != x->b, kv_narrower = narrower && !x->shared;
    int64_t home_q = narrower * tensors(1, q, x->b) + tensors(1, packed_q, x->b);
    int64_t home_v = narrower * tensors(1, q, x->b) + kv_narrower * tensors(2, k, x->b) +
                     tensors(1, packed_k, x->shared ? x->f : x->b);
    return layer + results + max64(inputs + max64(packed, ring_backward(x)), max64(home_q, home_v));
}

/* ---- The loss --------------------------------------------------------------------------------- */

static int64_t loss_bytes(const Letters *x, bool backward, Travel travel) {
    int64_t part = ceil_div(x->V, x->P), c = max64(1, x->c / x->P), n = x->P * min64(c, x->most);
    bool rows_travel = x->P > 1 && travel == TRAVEL_ACTIVATIONS, parts_travel = x->P > 1 && !rows_travel;
    int64_t rows = rows_travel ? x->most : x->T, at_once = rows_travel ? n : min64(x->c, x->T);
    int64_t logits = at_once * (rows_travel ? x->here : part);
    int64_t bytes = tensors(1, x->T, x->f) + tensors(1 + backward, rows * x->H, x->b);
    bytes += tensors(1, logits, x->f) + (backward && x->b != x->f ? tensors(1, logits, x->b) : 0);
    if (rows_travel)
        bytes += tensors(1 + (ceil_div(x->most, c) > 1), n * x->H, x->b) + tensors(backward, n * x->H, x->f) +
                 tensors(1, x->P * n * LOSS_STATS, x->f) + tensors(1, n * LOSS_STATS, x->f);
    if (parts_travel)
        bytes += tensors(2, part * x->H, x->b) + tensors(2 * backward, part * x->H, x->f) +
                 tensors(1, x->P * x->T * LOSS_STATS, x->f) + tensors(1, x->T * LOSS_STATS, x->f) +
                 tensors(backward, x->T * x->H, x->f);
    return bytes;
}

/* ---- The proof -------------------------------------------------------------------------------- */

/* What a rank used at its fullest: in an evaluation, and in a step. */
enum { PASSES = 2, MOST_RANKS = 8 };
typedef struct {
    int64_t used[PASSES][MOST_RANKS];
    Component component;
} Watch;

static bool watch(Run *r, void *context, Error *e) {
    Watch *w = context;
    Arena *work = run_arena(r, ARENA_WORK);
    StepResult step;
    Evaluation evaluation;
    bool ok = true;
    for (int pass = 0; ok && pass < PASSES; pass++) {
        work->peak = 0; /* of this pass alone */
        ok = pass == 1 ? train_step(r, 0, false, &step, e) : evaluate(r, &evaluation, e);
        w->used[pass][r->comm.mesh.rank] = (int64_t)work->by_at_peak[w->component];
    }
    return ok;
}

static int64_t formula(const Run *r, Component component, bool backward) {
    Letters x = letters_of(r);
    if (component == COMPONENT_ATTENTION) return backward ? attention_backward_bytes(&x) : attention_forward_bytes(&x);
    return loss_bytes(&x, backward, r->config->mixture_loss_travel);
}

static void assert_formula(Layout l, const char *model, Component component, const char *length) {
    static const char *const types[] = {"compute.type=fp64", "compute.type=bf16", "compute.type=fp32"};
    for (size_t t = 0; t < COUNT(types); t++) {
        const Trial trial = {.spec = model, .options = {types[t], length, "train.sequences=24"}, .roomy = true};
        Ranks *r = trial_open("", l, &trial);
        Watch w = {.component = component};
        ranks_run(r, watch, &w);
        for (int pass = 0; pass < PASSES; pass++)
            for (int i = 0; i < r->world; i++) {
                int64_t expected = formula(r->run[i], component, pass == 1);
                if (w.used[pass][i] != expected)
                    fail_msg("%d ranks, %s, %s: rank %d, %s: %lld bytes of scratch, the formula says %lld", l.world,
                             l.settings, types[t], i, pass == 1 ? "a step" : "an evaluation",
                             (long long)w.used[pass][i], (long long)expected);
            }
        ranks_close(r);
    }
}

static void attention_needs_one_slice_of_heads_and_one_block_however_many_there_are(void **state) {
    (void)state;
    static const Layout layouts[] = {
        {1, ""},
        {2, "dense=1 ulysses=2"},
        {2, "dense=2 ulysses=2 ulysses_heads=2"},
        {4, "dense=1 ulysses=4"},
        {3, "dense=1 ulysses=3"},
        {6, "dense=1 ulysses=6"},
        {3, "dense=1 ring=3"},
        {4, "dense=1 ulysses=2 ring=2"},
        {6, "dense=1 ulysses=3 ring=2"},
        {8, "dense=1 ulysses=4 ring=2"},
    };
    for (size_t i = 0; i < COUNT(layouts); i++)
        assert_formula(layouts[i], many_heads, COMPONENT_ATTENTION, "train.sequence_length=25");
}

static void the_loss_needs_one_chunk_of_logits_however_many_there_are(void **state) {
    (void)state;
    static const Layout layouts[] = {
        {1, "loss_chunk=31"},
        {2, "dense=2 loss_chunk=41"},
        {2, "dense=1 vocabulary=2 loss_travel=activations loss_chunk=37"},
        {3, "dense=1 vocabulary=3 loss_travel=activations loss_chunk=60"},
        {2, "dense=1 vocabulary=2 loss_travel=weights loss_chunk=37"},
        {4, "dense=1 vocabulary=4 loss_travel=weights loss_chunk=19"},
    };
    for (size_t i = 0; i < COUNT(layouts); i++)
        assert_formula(layouts[i], many_words, COMPONENT_VOCABULARY, "train.sequence_length=24");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_needs_one_slice_of_heads_and_one_block_however_many_there_are),
        cmocka_unit_test(the_loss_needs_one_chunk_of_logits_however_many_there_are),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
