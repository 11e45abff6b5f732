/* What crosses the wires is what docs/parallel.md says, to the byte: the meter of every rank, of a training step and
 * of a pass of evaluation, against that page's formulas, which stand here as functions of its letters. Nothing is
 * taken from the code that moves the bytes but two facts about the data: how the router chose, and which tokens lie
 * where. What no formula explains fails. */
#include "model/balance.h"
#include "trials.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- Letters ---------------------------------------------------------------------------------- */

/* Those of docs/parallel.md. `rank` is the one that is asked about; what depends on another takes it as an argument. */
typedef struct {
    int64_t W, D_u, D_r, D, E_p, E_s, Z, P; /* ranks; members of groups */
    int64_t L, H, h, g, d, F, V, E, I, k;   /* the model */
    int64_t S, B, m;                        /* the batch: sequence length, sequences, micro-batches */
    int64_t c, c_v, heads, imports;         /* dispatch_tokens, loss_chunk, ulysses_heads, balance_imports */
    int64_t b, f;                           /* bytes of a number of the compute type, and of a sum */
    Travel travel;
    double threshold;
    bool tied, keeps;
    const Spec *spec;
    int64_t rank;
} Letters;

static Letters letters_of(const Ranks *r) {
    const Config *c = &r->config;
    const Spec *s = &r->spec;
    return (Letters){
        .W = r->world,
        .D_u = c->mixture_ulysses,
        .D_r = c->mixture_ring,
        .D = c->mixture_ulysses * c->mixture_ring,
        .E_p = c->mixture_expert,
        .E_s = c->mixture_expert_shard,
        .Z = c->mixture_dense,
        .P = c->mixture_vocabulary,
        .L = s->layers,
        .H = s->hidden,
        .h = s->heads,
        .g = s->kv_heads,
        .d = s->head_dim,
        .F = s->dense_hidden,
        .V = s->vocabulary,
        .E = s->experts,
        .I = s->expert_hidden,
        .k = s->top_k,
        .S = c->train_sequence_length,
        .B = c->train_sequences,
        .m = c->train_micro_batches,
        .c = c->mixture_dispatch_tokens,
        .c_v = c->mixture_loss_chunk,
        .heads = c->mixture_ulysses_heads,
        .imports = c->mixture_balance_imports,
        .b = (int64_t)type_bytes(c->compute_type),
        .f = c->compute_type == FP64 ? 8 : 4,
        .travel = c->mixture_loss_travel,
        .threshold = c->mixture_balance_threshold,
        .tied = s->tied,
        .keeps = c->compute_activations == ACTIVATIONS_KEEP,
        .spec = s,
    };
}

/* Sequences of a rank's group in micro-batch i. */
static int64_t sequences(const Letters *x, int64_t rank, int64_t i) {
    int64_t mine = 0;
    for (int64_t n = 0; n < x->B; n++) mine += n % (x->W / x->D) == rank / x->D;
    return mine / x->m + (i < mine % x->m);
}

/* Positions of a sequence on the ring member j: parts j and 2 D_r - 1 - j. */
static int64_t ring_positions(const Letters *x, int64_t j) {
    int64_t parts = 2 * x->D_r, other = parts - 1 - j;
    return (j + 1) * x->S / parts - j * x->S / parts + (other + 1) * x->S / parts - other * x->S / parts;
}

/* N: positions of a sequence on a rank. */
static int64_t positions(const Letters *x, int64_t rank) {
    int64_t u = rank % x->D_u, all = ring_positions(x, rank / x->D_u % x->D_r);
    return (u + 1) * all / x->D_u - u * all / x->D_u;
}

/* T: tokens of a rank in micro-batch i. */
static int64_t tokens(const Letters *x, int64_t rank, int64_t i) {
    return sequences(x, rank, i) * positions(x, rank);
}

/* M: tokens of the rank that has most in micro-batch i. */
static int64_t most_tokens(const Letters *x, int64_t i) {
    int64_t most = 0;
    for (int64_t r = 0; r < x->W; r++) most = max64(most, tokens(x, r, i));
    return most;
}

/* K: rounds of the experts. */
static int64_t rounds(const Letters *x, int64_t i) {
    return x->c > 0 ? max64(1, ceil_div(most_tokens(x, i), x->c)) : 1;
}

static int64_t experts_each(const Letters *x) {
    return ceil_div(x->E, x->E_p);
}

static int64_t experts_here(const Letters *x) {
    int64_t each = experts_each(x);
    return max64(0, min64(each, x->E - x->rank % x->E_p * each));
}

/* Rows of the vocabulary at member j. */
static int64_t vocabulary_rows(const Letters *x, int64_t j) {
    int64_t each = ceil_div(x->V, x->P);
    return max64(0, min64(each, x->V - j * each));
}

/* Slices of the heads, and KV heads that come to a rank in all of them. */
static int64_t slices(const Letters *x) {
    int64_t mine = x->h / x->D_u, share = x->h / x->g, n = 1;
    if (x->D_u == 1) return 1;
    if (x->g % x->D_u != 0) { /* the most query heads that divide both */
        for (int64_t i = 1; i <= share; i++)
            if (mine % i == 0 && share % i == 0) n = i;
        return mine / n;
    }
    for (int64_t i = 1; i <= min64(x->heads, x->g / x->D_u); i++)
        if (x->g / x->D_u % i == 0) n = i;
    return x->g / x->D_u / n;
}

static int64_t kv_heads(const Letters *x) {
    return x->g % x->D_u == 0 ? x->g / x->D_u : slices(x);
}

/* ---- What the data decides -------------------------------------------------------------------- */

enum { TABLES = 24, TOKENS = 400, MICRO_BATCHES = 4 };

/* The tables [E_p][K][E] that a rank read, one for each layer with experts and micro-batch, in that order; and its
 * tokens. */
typedef struct {
    int64_t *table[TABLES];
    int tables;
    int32_t token[MICRO_BATCHES][TOKENS];
    Meter meter;
} Seen;

enum { EVALUATION, TRAINING, PASSES };

static void keep_table(void *context, ReadKind kind, const void *host, Tensor t) {
    Seen *seen = context;
    if (kind != READ_ROUTING) return;
    assert_true(seen->tables < TABLES);
    int64_t *copy = calloc((size_t)tensor_count(t), sizeof *copy);
    MUST(copy);
    memcpy(copy, host, tensor_bytes(t));
    seen->table[seen->tables++] = copy;
}

static void keep_tokens(const Run *r, Seen *seen) {
    for (int64_t i = 0; i < r->micro_batches; i++) {
        assert_true(i < MICRO_BATCHES && r->micro[i].tokens <= TOKENS);
        for (int64_t t = 0; t < r->micro[i].tokens; t++) seen->token[i][t] = (int32_t)tensor_get(r->micro[i].token, t);
    }
}

/* Rows to and from other members, whole experts too. */
typedef struct {
    int64_t out, in, lent, borrowed;
} Exchanged;

/* Whose the rows of an expert in a round are, for every sender's: the owner's first, then those of the import slots. */
static void count_rows(const Letters *x, const int64_t *table, const Balance *plan, int64_t round, int64_t K, int64_t e,
                       Exchanged *out) {
    int64_t self = x->rank % x->E_p, total = 0, slot = 0, left = 0, n = 0;
    for (int64_t j = 0; j < x->E_p; j++) total += table[(j * K + round) * x->E + e];
    int64_t holder = e / experts_each(x), slots = x->E_p * x->imports;
    for (int64_t i = 0; i < slots; i++)
        if (plan->expert[i] == e) total -= plan->taken[i * K + round];
    left = total; /* rows that the holder still takes */
    for (int64_t j = 0; j < x->E_p; j++)
        for (n = table[(j * K + round) * x->E + e]; n > 0; n--, left--) {
            while (left == 0) {
                while (plan->expert[slot] != e) slot++;
                holder = slot / x->imports;
                left = plan->taken[slot++ * K + round];
            }
            out->out += j == self && holder != self;
            out->in += j != self && holder == self;
        }
}

static Exchanged exchanged(const Letters *x, const int64_t *table, int64_t i) {
    int64_t K = rounds(x, i), each = experts_each(x), self = x->rank % x->E_p;
    BalanceShape shape = {.members = x->E_p,
                          .rounds = K,
                          .experts = x->E,
                          .each = each,
                          .imports = x->imports,
                          .most = x->E_p * ceil_div(most_tokens(x, i), K) * min64(x->k, each),
                          .threshold = x->threshold};
    int64_t *memory = calloc((size_t)balance_words(&shape) + 1, sizeof *memory);
    assert_non_null(memory);
    Balance plan = {0};
    if (x->imports > 0) plan = balance_make(&shape, table, memory);
    Exchanged out = {0};
    for (int64_t r = 0; r < K; r++)
        for (int64_t e = 0; e < x->E; e++) count_rows(x, table, &plan, r, K, e, &out);
    for (int64_t slot = 0; slot < x->E_p * x->imports; slot++) {
        if (plan.expert[slot] < 0) continue;
        out.borrowed += slot / x->imports == self;
        out.lent += plan.expert[slot] / each == self;
    }
    free(memory);
    return out;
}

/* Rows of the embedding that this rank gives to others, and those that it gets. */
static Exchanged looked_up(const Letters *x, const Seen *seen, int64_t i) {
    int64_t first = x->rank / x->P * x->P, each = ceil_div(x->V, x->P);
    Exchanged out = {0};
    for (int64_t r = first; r < first + x->P; r++)
        for (int64_t t = 0; t < tokens(x, r, i); t++) {
            int64_t owner = first + seen[r].token[i][t] / each;
            out.out += owner == x->rank && r != x->rank;
            out.in += owner != x->rank && r == x->rank;
        }
    return out;
}

/* ---- What collectives cost -------------------------------------------------------------------- */

typedef struct {
    int64_t calls, sent, received;
} Fare;

typedef struct {
    Fare of[AXIS_COUNT][COLLECTIVE_COUNT];
} Bill;

static void pay(Bill *bill, AxisName axis, Collective c, int64_t calls, int64_t sent, int64_t received) {
    Fare *to = &bill->of[axis][c];
    to->calls += calls;
    to->sent += sent;
    to->received += received;
}

/* all_gather of `n` bytes a member, or reduce_scatter into as many. */
static void pay_parts(Bill *bill, AxisName axis, Collective c, int64_t G, int64_t n) {
    pay(bill, axis, c, 1, (G - 1) * n, (G - 1) * n);
}

/* all_reduce of n numbers of e bytes, by member j: everybody sends his to everybody; above 16 KiB each sums the part
 * that is his. */
static void pay_sum(Bill *bill, AxisName axis, int64_t G, int64_t j, int64_t n, int64_t e) {
    int64_t each = ceil_div(n, G), part = max64(0, min64(each, n - j * each));
    int64_t bytes = n * e <= 16 * 1024 ? (G - 1) * n * e : (n - part + (G - 1) * part) * e;
    pay(bill, axis, ALL_REDUCE, 1, bytes, bytes);
}

/* ---- The schemes ------------------------------------------------------------------------------ */

static void pay_world(Bill *bill, const Letters *x, bool training) {
    int64_t numbers = 4 + 3 * COMPONENT_COUNT + x->E;
    pay_sum(bill, AXIS_WORLD, x->W, x->rank, 2, 8);
    pay_sum(bill, AXIS_WORLD, x->W, x->rank, numbers, 8);
    if (training) pay_parts(bill, AXIS_WORLD, ALL_GATHER, x->W, 8);
    for (int64_t i = 0; i < x->m; i++)
        for (int t = 0; t < 2; t++)
            pay_sum(bill, AXIS_SEQUENCE, x->D, x->rank % x->D, sequences(x, x->rank, i) * x->E, 8);
}

/* A vector of n numbers that G ranks share: gathered so many times; in training its gradient goes to the shards.
 * Returns a shard's. */
static int64_t pay_shared(Bill *bill, const Letters *x, AxisName axis, int64_t G, int64_t n, int64_t gathers,
                          bool training) {
    int64_t shard = ceil_div(n, G);
    if (G == 1) return n;
    for (int64_t i = 0; i < gathers; i++) pay_parts(bill, axis, ALL_GATHER, G, shard * x->b);
    if (training) pay_parts(bill, axis, REDUCE_SCATTER, G, shard * x->f);
    return shard;
}

static void pay_dense_part(Bill *bill, const Letters *x, int64_t n, int64_t gathers, bool training) {
    int64_t shard = pay_shared(bill, x, AXIS_DENSE, x->Z, n, gathers, training);
    if (training) pay_sum(bill, AXIS_DENSE_REPLICA, x->W / x->Z, x->rank / x->Z, shard, x->f);
}

static int64_t dense_numbers(const Letters *x, int64_t layer) {
    int64_t wide = x->h * x->d, narrow = x->g * x->d;
    int64_t norms = x->spec->qk_norm == QK_NORM_NONE ? 0 : x->spec->qk_norm == QK_NORM_HEAD ? 2 * x->d : wide + narrow;
    int64_t mlp = x->spec->dense[layer] ? 3 * x->F * x->H : x->E * x->H;
    return 2 * x->H + 2 * wide * x->H + 2 * narrow * x->H + norms + mlp;
}

static void pay_dense(Bill *bill, const Letters *x, bool training) {
    int64_t embedding = x->P == 1 ? x->V * x->H : 0;
    if (embedding) pay_dense_part(bill, x, embedding, x->tied ? 2 : 1, training);
    for (int64_t l = 0; l < x->L; l++) pay_dense_part(bill, x, dense_numbers(x, l), training ? 2 : 1, training);
    pay_dense_part(bill, x, x->H + (x->tied ? 0 : embedding), 1, training);
}

static void pay_ring(Bill *bill, const Letters *x, int64_t i, bool training) {
    int64_t j = x->rank / x->D_u % x->D_r, n = slices(x), kv = kv_heads(x) * x->d, all = 0;
    if (x->D_r == 1) return;
    for (int64_t t = 0; t < x->D_r; t++) all += sequences(x, x->rank, i) * ring_positions(x, t);
    int64_t own = sequences(x, x->rank, i) * ring_positions(x, j),
            next = sequences(x, x->rank, i) * ring_positions(x, (j + 1) % x->D_r);
    for (int pass = 0; pass <= training; pass++)
        pay(bill, AXIS_RING, SHIFT, 2 * (x->D_r - 1) * n, 2 * (all - next) * kv * x->b, 2 * (all - own) * kv * x->b);
    if (training) pay(bill, AXIS_RING, SHIFT, 2 * x->D_r * n, 2 * all * kv * x->f, 2 * all * kv * x->f);
}

/* `there` bytes a row to the heads, `back` bytes a row home. */
static void pay_ulysses_pass(Bill *bill, const Letters *x, int64_t i, int64_t calls, int64_t there, int64_t back) {
    int64_t T = tokens(x, x->rank, i);
    int64_t Q = sequences(x, x->rank, i) * ring_positions(x, x->rank / x->D_u % x->D_r);
    int64_t others = Q - T, copies = (x->D_u - 1) * T;
    pay(bill, AXIS_ULYSSES, ALL_TO_ALL, calls, copies * there + others * back, others * there + copies * back);
}

static void pay_ulysses(Bill *bill, const Letters *x, int64_t i, bool training) {
    int64_t q = x->h / x->D_u, kv = kv_heads(x), n = slices(x);
    if (x->D_u == 1) return;
    pay_ulysses_pass(bill, x, i, 4 * n, (q + 2 * kv) * x->d * x->b, q * x->d * x->b);
    if (!training) return;
    int64_t kv_sums = x->g % x->D_u == 0 ? x->b : x->f;
    pay_ulysses_pass(bill, x, i, 8 * n, (2 * q + 2 * kv) * x->d * x->b + q * x->f,
                     (q * x->b + 2 * kv * kv_sums) * x->d);
}

/* One layer and micro-batch. */
static void pay_experts(Bill *bill, const Letters *x, int64_t i, const int64_t *table, bool training) {
    int64_t K = rounds(x, i), row = x->H * x->b, matrix = x->I * x->H;
    pay_parts(bill, AXIS_EXPERT, ALL_GATHER, x->E_p, 8 * K * x->E);
    if (x->E_p == 1) return;
    bool kept = x->keeps && K == 1;
    Exchanged n = exchanged(x, table, i);
    pay(bill, AXIS_EXPERT, ALL_TO_ALL, 3 * K, n.out * (x->f + row) + n.in * row, n.in * (x->f + row) + n.out * row);
    int64_t there = kept ? row : x->f + 2 * row, back = row + x->f;
    if (training)
        pay(bill, AXIS_EXPERT, ALL_TO_ALL, (kept ? 3 : 5) * K, n.out * there + n.in * back,
            n.in * there + n.out * back);
    if (x->imports == 0) return;
    for (int pass = 0; pass <= training; pass++)
        pay(bill, AXIS_EXPERT, ALL_TO_ALL, 3, 3 * n.lent * matrix * x->b, 3 * n.borrowed * matrix * x->b);
    if (training)
        pay(bill, AXIS_EXPERT, RETURN_SUMS, 3 * x->imports, 3 * n.borrowed * matrix * x->f, 3 * n.lent * matrix * x->f);
}

static void pay_expert_weights(Bill *bill, const Letters *x, bool training) {
    int64_t replicas = x->W / (x->E_p * x->E_s), whole = experts_here(x) * 3 * x->I * x->H;
    int64_t shard = pay_shared(bill, x, AXIS_EXPERT_SHARD, x->E_s, whole, training ? 2 : 1, training);
    if (training) pay_sum(bill, AXIS_EXPERT_REPLICA, replicas, x->rank / (x->E_p * x->E_s), shard, x->f);
}

static void pay_loss_activations(Bill *bill, const Letters *x, int64_t i, int64_t K, bool training) {
    int64_t first = x->rank / x->P * x->P, M_g = 0, P = x->P;
    for (int64_t r = first; r < first + P; r++) M_g = max64(M_g, tokens(x, r, i));
    int64_t there = (P - 1) * M_g * (x->H * x->b + 3 * P * x->f), back = (P - 1) * M_g * x->H * x->f;
    pay(bill, AXIS_VOCABULARY, ALL_GATHER, 2 * K, there, there);
    if (training) pay(bill, AXIS_VOCABULARY, REDUCE_SCATTER, K, back, back);
}

static void pay_loss_weights(Bill *bill, const Letters *x, bool training) {
    int64_t P = x->P, p = x->rank % P, own = vocabulary_rows(x, p), next = vocabulary_rows(x, (p + 1) % P),
            last = vocabulary_rows(x, (p + P - 1) % P);
    for (int pass = 0; pass <= training; pass++)
        pay(bill, AXIS_VOCABULARY, SHIFT, P - 1, (x->V - next) * x->H * x->b, (x->V - own) * x->H * x->b);
    if (training) pay(bill, AXIS_VOCABULARY, SHIFT, P - 1, (x->V - own) * x->H * x->f, (x->V - last) * x->H * x->f);
}

static bool weights_travel(const Letters *x, int64_t i, bool training) {
    int64_t P = x->P, activations = P * most_tokens(x, i) * (x->H * x->b + 3 * P * x->f + training * x->H * x->f),
            weights = x->V * x->H * (x->b + training * (x->b + x->f));
    return x->travel == TRAVEL_WEIGHTS || (x->travel == TRAVEL_AUTO && weights < activations);
}

static void pay_vocabulary(Bill *bill, const Letters *x, int64_t i, const Seen *seen, bool training) {
    int64_t K = max64(1, ceil_div(most_tokens(x, i), max64(1, x->c_v / x->P))), row = x->H * x->b;
    if (x->P == 1) return;
    Exchanged n = looked_up(x, seen, i);
    pay(bill, AXIS_VOCABULARY, ALL_TO_ALL, K, n.out * row, n.in * row);
    if (training) pay(bill, AXIS_VOCABULARY, ALL_TO_ALL, K, n.in * row, n.out * row);
    if (weights_travel(x, i, training))
        pay_loss_weights(bill, x, training);
    else
        pay_loss_activations(bill, x, i, K, training);
}

static void pay_vocabulary_weights(Bill *bill, const Letters *x, bool training) {
    if (x->P == 1 || !training) return;
    for (int part = 0; part < (x->tied ? 1 : 2); part++)
        pay_sum(bill, AXIS_VOCABULARY_REPLICA, x->W / x->P, x->rank / x->P, vocabulary_rows(x, x->rank % x->P) * x->H,
                x->f);
}

static Bill bill_of(const Letters *x, const Seen *seen, bool training) {
    Bill bill = {0};
    int table = 0;
    pay_world(&bill, x, training);
    pay_dense(&bill, x, training);
    pay_vocabulary_weights(&bill, x, training);
    for (int64_t i = 0; i < x->m; i++) pay_vocabulary(&bill, x, i, seen, training);
    for (int64_t l = 0; l < x->L; l++) {
        bool experts = !x->spec->dense[l];
        if (experts) pay_expert_weights(&bill, x, training);
        for (int64_t i = 0; i < x->m; i++) {
            pay_ulysses(&bill, x, i, training);
            pay_ring(&bill, x, i, training);
            if (experts) pay_experts(&bill, x, i, seen[x->rank].table[table++], training);
        }
    }
    assert_int_equal(table, seen[x->rank].tables);
    return bill;
}

/* ---- Layouts ---------------------------------------------------------------------------------- */

/* Query heads in twos and threes: KV heads in whole groups for two ranks, and shared by ranks and slices for others. */
static const char eight_heads[] =
    "{\"model_type\": \"olmoe\", \"vocab_size\": 67, \"hidden_size\": 32, \"num_hidden_layers\": 2, "
    "\"num_attention_heads\": 8, \"num_key_value_heads\": 4, \"num_experts\": 5, \"num_experts_per_tok\": 2, "
    "\"intermediate_size\": 9, \"norm_topk_prob\": false, \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000, "
    "\"tie_word_embeddings\": true, \"hidden_act\": \"silu\"}";
static const char six_heads[] =
    "{\"model_type\": \"olmoe\", \"vocab_size\": 67, \"hidden_size\": 24, \"num_hidden_layers\": 1, "
    "\"num_attention_heads\": 6, \"num_key_value_heads\": 3, \"num_experts\": 7, \"num_experts_per_tok\": 3, "
    "\"intermediate_size\": 10, \"norm_topk_prob\": true, \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000, "
    "\"tie_word_embeddings\": false, \"hidden_act\": \"silu\"}";

typedef struct {
    const char *family, *spec;
    Layout layout;
    Rig rig;
} Row;

/* clang-format off */
static const Row rows[] = {
    {"olmoe", .layout = {1, ""}},
    {"olmoe", .layout = {4, "dense=4"}},
    {"qwen3_moe", .layout = {3, "dense=3 train.micro_batches=2 compute.type=bf16 compute.activations=recompute"}},
    {"mixtral", .layout = {4, "dense=2 compute.type=fp32"}},
    {"olmoe", .layout = {2, "dense=1 ulysses=2"}},
    {"qwen3_moe", .layout = {4, "dense=1 ulysses=4 compute.type=bf16"}},
    {"", .spec = eight_heads, .layout = {2, "dense=1 ulysses=2 ulysses_heads=2 train.micro_batches=2"}},
    {"", .spec = eight_heads, .layout = {8, "dense=2 ulysses=8 compute.type=fp32 compute.activations=recompute"}},
    {"", .spec = six_heads, .layout = {2, "dense=1 ulysses=2 compute.type=bf16"}},
    {"mixtral", .layout = {3, "dense=1 ring=3 train.sequence_length=25"}},
    {"qwen3_moe", .layout = {8, "dense=1 ring=8 compute.type=bf16 train.micro_batches=2 train.sequence_length=23"}},
    {"", .spec = six_heads, .layout = {6, "dense=6 ulysses=2 ring=3 compute.type=bf16 train.sequence_length=25"}},
    {"", .spec = eight_heads, .layout = {8, "dense=4 ulysses=4 ring=2 ulysses_heads=1"}},
    {"olmoe", .layout = {4, "dense=1 expert=4"}},
    {"olmoe", .layout = {8, "dense=1 expert=8 compute.type=bf16 compute.activations=recompute"}},
    {"mixtral", .layout = {2, "dense=1 expert=2 dispatch_tokens=7 train.micro_batches=2"}},
    {"qwen3_moe_window", .layout = {6, "dense=2 expert=3 compute.type=fp32"}, .rig = to_the_last_experts},
    {"olmoe", .layout = {4, "dense=4 expert_shard=4"}},
    {"qwen3_moe", .layout = {6, "dense=1 expert=2 expert_shard=3 compute.type=bf16"}},
    {"olmoe", .layout = {4, "dense=1 expert=4 balance_imports=2 balance_threshold=1"}, .rig = to_the_first_experts},
    {"", .spec = eight_heads, .layout = {4, "expert=4 balance_imports=1 balance_threshold=1 dispatch_tokens=5 compute.type=bf16"}, .rig = to_the_last_experts},
    {"qwen3_moe_window", .layout = {6, "expert=6 balance_imports=2 dispatch_tokens=4 compute.activations=recompute"}},
    {"mixtral", .layout = {2, "dense=1 vocabulary=2"}},
    {"mixtral", .layout = {4, "dense=2 vocabulary=4 loss_travel=activations compute.type=bf16 train.micro_batches=2"}},
    {"olmoe", .layout = {8, "dense=8 vocabulary=4 loss_travel=weights compute.type=bf16 train.micro_batches=2"}},
    {"qwen3_moe", .layout = {6, "dense=1 vocabulary=3 loss_travel=weights loss_chunk=5"}},
    {"", .spec = eight_heads, .layout = {8, "vocabulary=8 loss_chunk=9 train.micro_batches=3 compute.type=fp32"}},
    {"mixtral", .layout = {8, "vocabulary=2 loss_travel=activations loss_chunk=7 train.sequences=3"}},
    {"olmoe", .layout = {8, "dense=8 ulysses=2 ring=2 expert=4 expert_shard=2 vocabulary=4"}},
    {"qwen3_moe", .layout = {8, "dense=2 ulysses=4 ring=2 expert=2 expert_shard=2 vocabulary=8 dispatch_tokens=3 compute.type=bf16"}},
    {"", .spec = six_heads, .layout = {6, "dense=3 ulysses=2 ring=3 expert=6 vocabulary=2 balance_imports=1 balance_threshold=1 dispatch_tokens=2 loss_travel=activations train.micro_batches=3"}},
    {"", .spec = six_heads, .layout = {6, "dense=2 ring=3 expert=3 expert_shard=2 vocabulary=6 balance_imports=2 balance_threshold=1 compute.activations=recompute compute.type=bf16"}},
    {"mixtral", .layout = {8, "dense=4 ring=4 expert=2 expert_shard=4 vocabulary=2 loss_travel=weights train.micro_batches=2 train.sequences=2"}},
    {"qwen3_moe_window", .layout = {8, "dense=1 ulysses=2 expert=8 vocabulary=4 dispatch_tokens=5 train.micro_batches=3 compute.type=fp32"}},
};
/* clang-format on */

/* ---- The proof -------------------------------------------------------------------------------- */

static bool evaluate_and_train(Run *r, void *context, Error *e) {
    Seen *seen[PASSES] = {context, (Seen *)context + r->comm.mesh.world};
    Evaluation evaluation;
    StepResult step;
    bool ok = true;
    r->device->observe = keep_table;
    for (int pass = 0; ok && pass < PASSES; pass++) {
        Seen *mine = seen[pass] + r->comm.mesh.rank;
        r->device->read_context = mine;
        meter_clear(r->device);
        ok = pass == TRAINING ? train_step(r, 0, false, &step, e) : evaluate(r, &evaluation, e);
        mine->meter = r->device->meter;
        keep_tokens(r, mine);
    }
    r->device->observe = NULL;
    return ok;
}

static void print_row(AxisName a, Collective c, const Fare *formula, const TrafficCount *counted) {
    if (formula->sent + formula->received + counted->sent + counted->received == 0) return;
    printf("    %-19s %-14s %5lld %9lld %9lld   %5lld %9lld %9lld\n", axis_name(a), collective_name(c),
           (long long)formula->calls, (long long)formula->sent, (long long)formula->received, (long long)counted->calls,
           (long long)counted->sent, (long long)counted->received);
}

static void print_bill(const Row *row, const Bill *bill, const Meter *meter, bool training) {
    printf("%s %s, %d ranks, %s: rank 0, %s\n", *row->family ? row->family : "olmoe", row->spec ? "of other heads" : "",
           row->layout.world, row->layout.settings, training ? "a training step" : "an evaluation");
    printf("    %-19s %-14s %25s   %25s\n", "group", "collective", "formula: calls sent got",
           "counted: calls sent got");
    for (int a = 0; a < AXIS_COUNT; a++)
        for (int c = 0; c < COLLECTIVE_COUNT; c++)
            print_row((AxisName)a, (Collective)c, &bill->of[a][c], &meter->traffic[a][c]);
}

/* How many pairs of group and collective the rows have shown, with bytes. */
static int assert_paid(const Row *row, int64_t rank, const Bill *bill, const Meter *meter,
                       bool shown[AXIS_COUNT][COLLECTIVE_COUNT]) {
    int wrong = 0;
    for (int a = 0; a < AXIS_COUNT; a++)
        for (int c = 0; c < COLLECTIVE_COUNT; c++) {
            const Fare *x = &bill->of[a][c];
            const TrafficCount *t = &meter->traffic[a][c];
            shown[a][c] = shown[a][c] || t->sent > 0;
            if (t->calls == x->calls && t->sent == x->sent && t->received == x->received) continue;
            print_message("%s, %d ranks, %s: rank %lld, %s over %s: %lld calls, %lld bytes sent, %lld received; the "
                          "formulas say %lld, %lld, %lld\n",
                          row->family, row->layout.world, row->layout.settings, (long long)rank,
                          collective_name((Collective)c), axis_name((AxisName)a), (long long)t->calls,
                          (long long)t->sent, (long long)t->received, (long long)x->calls, (long long)x->sent,
                          (long long)x->received);
            wrong++;
        }
    return wrong;
}

static int compare(const Row *row, const Ranks *r, const Seen *seen, bool training,
                   bool shown[AXIS_COUNT][COLLECTIVE_COUNT]) {
    Letters x = letters_of(r);
    int wrong = 0;
    for (x.rank = 0; x.rank < x.W; x.rank++) {
        Bill bill = bill_of(&x, seen, training);
        if (x.rank == 0) print_bill(row, &bill, &seen[0].meter, training);
        wrong += assert_paid(row, x.rank, &bill, &seen[x.rank].meter, shown);
    }
    return wrong;
}

static const struct {
    AxisName axis;
    Collective collective;
} schemes[] = {
    {AXIS_WORLD, ALL_GATHER},
    {AXIS_WORLD, ALL_REDUCE},
    {AXIS_SEQUENCE, ALL_REDUCE},
    {AXIS_ULYSSES, ALL_TO_ALL},
    {AXIS_RING, SHIFT},
    {AXIS_EXPERT, ALL_GATHER},
    {AXIS_EXPERT, ALL_TO_ALL},
    {AXIS_EXPERT, RETURN_SUMS},
    {AXIS_EXPERT_SHARD, ALL_GATHER},
    {AXIS_EXPERT_SHARD, REDUCE_SCATTER},
    {AXIS_EXPERT_REPLICA, ALL_REDUCE},
    {AXIS_DENSE, ALL_GATHER},
    {AXIS_DENSE, REDUCE_SCATTER},
    {AXIS_DENSE_REPLICA, ALL_REDUCE},
    {AXIS_VOCABULARY, ALL_GATHER},
    {AXIS_VOCABULARY, REDUCE_SCATTER},
    {AXIS_VOCABULARY, ALL_TO_ALL},
    {AXIS_VOCABULARY, SHIFT},
    {AXIS_VOCABULARY_REPLICA, ALL_REDUCE},
};

/* Few enough documents that one pass evaluates them all, so that the tokens that are there afterwards are those of
 * the pass. */
static void every_byte_between_ranks_is_explained_by_a_formula(void **state) {
    (void)state;
    bool shown[AXIS_COUNT][COLLECTIVE_COUNT] = {0};
    char *documents = random_documents(6, 12, TRIAL_VOCABULARY, 4);
    int wrong = 0;
    for (size_t i = 0; i < COUNT(rows); i++) {
        const Row *row = &rows[i];
        size_t world = (size_t)row->layout.world;
        Seen *seen = calloc(PASSES * world, sizeof *seen);
        assert_non_null(seen);
        const Trial trial = {.spec = row->spec, .documents = documents, .rig = row->rig};
        Ranks *r = trial_open(row->family, row->layout, &trial);
        assert_true(tokens_pieces(r->tokens, r->config.train_sequence_length) <= r->config.train_sequences);
        ranks_run(r, evaluate_and_train, seen);
        for (int pass = 0; pass < PASSES; pass++)
            wrong += compare(row, r, seen + (size_t)pass * world, pass == TRAINING, shown);
        ranks_close(r);
        for (size_t s = 0; s < PASSES * world; s++)
            for (int t = 0; t < seen[s].tables; t++) free(seen[s].table[t]);
        free(seen);
    }
    free(documents);
    assert_int_equal(wrong, 0);
    for (size_t i = 0; i < COUNT(schemes); i++)
        if (!shown[schemes[i].axis][schemes[i].collective])
            fail_msg("no layout here moves a byte by %s over %s", collective_name(schemes[i].collective),
                     axis_name(schemes[i].axis));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_byte_between_ranks_is_explained_by_a_formula),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
