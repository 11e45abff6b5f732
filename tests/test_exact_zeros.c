/* What cannot change has a gradient of exactly 0. A softmax of one is 1 whatever its score, and a sum of all that is
 * counted alike moves nothing. Rounding in the place of such a 0 is not small to AdamW, which divides it by its own
 * size, and it differs between layouts, kernels and types. */
#include "testing.h"

#include "ops/kernels.h"
#include "ops/ops.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

static const char *const devices[] = {"cpu:plain", "cpu", "cpu:avx512", "cpu:avx2", "cpu:portable"};
static const Type types[] = {FP32, BF16, FP64};

typedef struct {
    Device *device;
    Stream *stream;
    Memory memory;
    Type real, sum;
    uint64_t seed;
} Bench;

typedef void (*Check)(Bench *b);

/* On every kernel and type; with 3 threads the tasks of attention are blocks instead of heads. */
static void on_all(Check check) {
    static const int threads[] = {1, 3};
    for (size_t i = 0; i < COUNT(devices) * COUNT(threads) * COUNT(types); i++) {
        Device *d = test_device(devices[i / COUNT(types) / COUNT(threads)], threads[i / COUNT(types) % COUNT(threads)]);
        if (!d) continue;
        Type real = types[i % COUNT(types)];
        Bench b = {.device = d, .stream = &d->stream[STREAM_COMPUTE], .real = real, .sum = type_sum(real)};
        check(&b);
        memory_check(&b.memory, devices[i / COUNT(types) / COUNT(threads)]);
        device_close(d);
        memory_free(&b.memory);
    }
}

static Tensor normal(Bench *b, Type type, int dims, const int64_t *dim) {
    Tensor t = memory_tensor(&b->memory, type, dims, dim);
    fill_normal(t, ++b->seed);
    return t;
}

static Tensor constant(Bench *b, Type type, double value, int dims, const int64_t *dim) {
    Tensor t = memory_tensor(&b->memory, type, dims, dim);
    fill_value(t, value);
    return t;
}

static void assert_zero(const Bench *b, const char *what, Tensor t) {
    stream_finish(b->stream);
    for (int64_t i = 0; i < tensor_count(t); i++)
        if (tensor_get(t, i) != 0)
            fail_msg("%s, %s: %s[%lld] is %g, not 0", b->device->kernels->name, type_name(b->real), what, (long long)i,
                     tensor_get(t, i));
}

/* ---- One key ---------------------------------------------------------------------------------- */

enum { QUERIES = 131, HEADS = 4, KV_HEADS = 2, HEAD = 21 };
static const AttentionShape shape = {.scale = 0.25};

typedef struct {
    Tensor q, k, v, dout, first, last, keys;
    Tensor out, lse, delta, dq, dk, dv;
} Attended;

static Attended attended(Bench *b) {
    Tensor at = constant(b, INT32, 0, DIM(QUERIES));
    Attended a = {.first = at, .last = memory_copy(&b->memory, at), .keys = memory_copy(&b->memory, at)};
    Tensor *wide[] = {&a.q, &a.dout}, *narrow[] = {&a.k, &a.v}, *kv[] = {&a.dk, &a.dv}, *row[] = {&a.lse, &a.delta},
           *sums[] = {&a.out, &a.dq};
    for (int i = 0; i < 2; i++) {
        *wide[i] = normal(b, b->real, DIM(QUERIES, HEADS, HEAD));
        *narrow[i] = normal(b, b->real, DIM(QUERIES, KV_HEADS, HEAD));
        *kv[i] = normal(b, b->sum, DIM(QUERIES, KV_HEADS, HEAD));
        *row[i] = normal(b, b->sum, DIM(HEADS, QUERIES));
        *sums[i] = normal(b, b->sum, DIM(QUERIES, HEADS, HEAD));
    }
    return a;
}

/* Query t sees key t, and of three queries two see up to `more` keys more. */
static void see(Attended *a, int64_t more) {
    for (int64_t t = 0; t < QUERIES; t++) {
        int64_t last = t + 1 + (t % 3 == 0 ? 0 : min64(more, 3 - t % 3));
        tensor_put(a->first, t, (double)t);
        tensor_put(a->last, t, (double)min64(last, QUERIES));
        tensor_put(a->keys, t, tensor_get(a->last, t) - (double)t);
    }
}

static void attend(Bench *b, Attended *a) {
    attention(b->stream, a->out, a->lse, a->q, a->k, a->v, a->first, a->last, shape);
    attention_delta(b->stream, a->delta, a->dout, a->out);
    attention_backward(b->stream, a->dq, a->dk, a->dv, a->delta, a->dout, a->lse, a->q, a->k, a->v, a->first, a->last,
                       a->keys, shape);
    stream_finish(b->stream);
}

static void lone_queries_alone(Bench *b) {
    Attended a = attended(b);
    see(&a, 0);
    attend(b, &a);
    assert_zero(b, "dq", a.dq);
    assert_zero(b, "dk", a.dk);
    for (int64_t t = 0; t < QUERIES; t++) /* dv of a key is dout of its query, of the heads that read it */
        for (int64_t c = 0; c < HEAD; c++) {
            double expected =
                tensor_get(a.dout, (t * HEADS + 2) * HEAD + c) + tensor_get(a.dout, (t * HEADS + 3) * HEAD + c);
            assert_true(fabs(tensor_get(a.dv, (t * KV_HEADS + 1) * HEAD + c) - expected) <=
                        1e-5 * fmax(1, fabs(expected)));
        }
}

/* A query that sees two keys or three keeps the bits that it has without that rule: `keys` then says two for all. */
static void lone_queries_beside_others(Bench *b) {
    Attended a = attended(b), plain;
    see(&a, 2);
    attend(b, &a);
    Tensor dq = memory_copy(&b->memory, a.dq);
    plain = a;
    plain.keys = constant(b, INT32, 2, DIM(QUERIES));
    attend(b, &plain);
    int64_t lone = 0;
    for (int64_t t = 0; t < QUERIES; t++) {
        bool one = tensor_get(a.keys, t) == 1;
        lone += one;
        if (one)
            assert_zero(b, "dq", tensor_rows(dq, t, 1));
        else
            assert_same_bits("dq of other queries", tensor_rows(dq, t, 1), tensor_rows(a.dq, t, 1));
    }
    assert_true(lone > QUERIES / 4 && lone < QUERIES / 2);
}

/* The keys in two blocks, as over a ring: what each sees in all is one, wherever it lies; and one key in one block is
 * not one key in all. */
static void lone_queries_over_blocks(Bench *b) {
    enum { CUT = 50 };
    static const int64_t at[] = {0, CUT, QUERIES};
    Attended a = attended(b);
    Tensor dq[2], dk = normal(b, b->sum, DIM(QUERIES, KV_HEADS, HEAD));
    see(&a, 2);
    attention(b->stream, a.out, a.lse, a.q, a.k, a.v, a.first, a.last, shape);
    attention_delta(b->stream, a.delta, a.dout, a.out);
    attend(b, &a);
    for (int i = 0; i < 2; i++) {
        int64_t from = at[i], count = at[i + 1] - at[i];
        Tensor first = memory_copy(&b->memory, a.first), last = memory_copy(&b->memory, a.last);
        for (int64_t t = 0; t < QUERIES; t++) {
            tensor_put(first, t, (double)min64(count, max64(0, (int64_t)tensor_get(first, t) - from)));
            tensor_put(last, t, (double)min64(count, max64(0, (int64_t)tensor_get(last, t) - from)));
        }
        dq[i] = normal(b, b->sum, DIM(QUERIES, HEADS, HEAD));
        attention_backward(b->stream, dq[i], tensor_rows(dk, from, count), tensor_rows(a.dv, from, count), a.delta,
                           a.dout, a.lse, a.q, tensor_rows(a.k, from, count), tensor_rows(a.v, from, count), first,
                           last, a.keys, shape);
        stream_finish(b->stream);
    }
    for (int64_t t = 0; t < QUERIES; t++) {
        if (tensor_get(a.keys, t) != 1) continue;
        assert_zero(b, "dq of the first block", tensor_rows(dq[0], t, 1));
        assert_zero(b, "dq of the second block", tensor_rows(dq[1], t, 1));
    }
    add(b->stream, dq[0], dq[0], dq[1]);
    stream_finish(b->stream);
    assert_close("dq of blocks", dq[0], a.dq, 1e-5, 0);
    assert_close("dk of blocks", dk, a.dk, 1e-5, 0);
}

static void a_query_that_sees_one_key_gives_its_score_no_gradient(void **state) {
    (void)state;
    on_all(lone_queries_alone);
    on_all(lone_queries_beside_others);
    on_all(lone_queries_over_blocks);
}

/* ---- One expert, all experts ------------------------------------------------------------------ */

enum { TOKENS = 77, SEQUENCES = 2 };

typedef struct {
    int64_t experts, k;
    bool normalise;
    double balance;
} Router;

/* The gradient of the logits; `weights`: how the loss changes with the routing weights. */
static Tensor route_gradient(Bench *b, Router r, double weights) {
    int64_t E = r.experts, k = r.k;
    Tensor logits = normal(b, b->real, DIM(TOKENS, E)), p = normal(b, b->sum, DIM(TOKENS, E));
    Tensor weight = normal(b, b->sum, DIM(TOKENS, k)), chosen = constant(b, INT32, 0, DIM(TOKENS, k));
    Tensor lse = normal(b, b->sum, DIM(TOKENS)), dlogits = normal(b, b->real, DIM(TOKENS, E));
    Tensor sequence = constant(b, INT32, 0, DIM(TOKENS)), z = constant(b, FP64, 0, DIM(1));
    Tensor counts = constant(b, FP64, 0, DIM(SEQUENCES, E)), mass = constant(b, FP64, 0, DIM(SEQUENCES, E));
    Tensor rows = constant(b, FP64, TOKENS / 2, DIM(SEQUENCES)), real = constant(b, FP64, TOKENS, DIM(1));
    Tensor dweight = normal(b, b->sum, DIM(TOKENS, k));
    for (int64_t i = 0; i < tensor_count(dweight); i++) tensor_put(dweight, i, weights * tensor_get(dweight, i));
    fill_integers(sequence, 3, -1, SEQUENCES - 1);
    route(b->stream, p, chosen, weight, lse, logits, r.normalise, b->real);
    route_statistics(b->stream, counts, mass, z, p, chosen, lse, sequence);
    route_backward(b->stream, dlogits, dweight, p, chosen, lse, counts, rows, sequence, real,
                   (RouteLoss){.normalise = r.normalise, .balance = r.balance});
    stream_finish(b->stream);
    for (int64_t i = 0; i < tensor_count(weight) && k == 1 && r.normalise; i++) assert_true(tensor_get(weight, i) == 1);
    return dlogits;
}

static void one_normalised_choice(Bench *b) {
    assert_zero(b, "dlogits, one of many", route_gradient(b, (Router){33, 1, true, 0}, 1));
    assert_zero(b, "dlogits, one of two", route_gradient(b, (Router){2, 1, true, 0}, 1));
}

static void one_expert_in_all(Bench *b) {
    assert_zero(b, "dlogits", route_gradient(b, (Router){1, 1, false, 0.3}, 1));
    assert_zero(b, "dlogits, normalised", route_gradient(b, (Router){1, 1, true, 0.3}, 1));
}

static void all_experts_chosen(Bench *b) {
    assert_zero(b, "dlogits", route_gradient(b, (Router){7, 7, false, 0.3}, 0));
    assert_zero(b, "dlogits, normalised", route_gradient(b, (Router){19, 19, true, 0.3}, 0));
}

static void the_weight_of_one_normalised_choice_is_1_and_gives_the_router_no_gradient(void **state) {
    (void)state;
    on_all(one_normalised_choice);
}

static void a_router_of_one_expert_has_no_gradient(void **state) {
    (void)state;
    on_all(one_expert_in_all);
}

static void experts_that_are_all_chosen_are_in_balance(void **state) {
    (void)state;
    on_all(all_experts_chosen);
}

/* ---- One word --------------------------------------------------------------------------------- */

static void one_word(Bench *b) {
    Tensor logits = normal(b, b->sum, DIM(TOKENS, 1)), dlogits = normal(b, b->real, DIM(TOKENS, 1));
    Tensor target = constant(b, INT32, 0, DIM(TOKENS)), trained = constant(b, FP64, TOKENS, DIM(1));
    Tensor loss = constant(b, FP64, 0, DIM(1)), stats = normal(b, b->sum, DIM(TOKENS, LOSS_STATS));
    cross_entropy(b->stream, loss, dlogits, logits, target, trained);
    assert_zero(b, "dlogits", dlogits);
    cross_entropy_part(b->stream, stats, logits, target, 0);
    cross_entropy_sum(b->stream, loss, stats, target);
    assert_zero(b, "loss", loss);
    fill_value(dlogits, 1);
    cross_entropy_gradient(b->stream, dlogits, logits, stats, target, 0, trained);
    assert_zero(b, "dlogits of a part", dlogits);
}

/* A row of which the target is far ahead, on top of logits near 1000: what is left is log(1 + 2 e^-20), and not what a
 * rounding of 1000 leaves of it. Sums are doubles in an fp64 run alone. */
static void one_certain_word(Bench *b) {
    if (b->real != FP64) return;
    Tensor logits = constant(b, FP64, 1000, DIM(1, 3)), target = constant(b, INT32, 1, DIM(1));
    Tensor loss = constant(b, FP64, 0, DIM(1)), parts = constant(b, FP64, 0, DIM(1));
    Tensor trained = constant(b, FP64, 1, DIM(1)), stats = normal(b, FP64, DIM(1, LOSS_STATS));
    tensor_put(logits, 1, 1020);
    cross_entropy(b->stream, loss, NONE, logits, target, trained);
    cross_entropy_part(b->stream, stats, logits, target, 0);
    cross_entropy_sum(b->stream, parts, stats, target);
    stream_finish(b->stream);
    double expected = log(1 + 2 * exp(-20));
    assert_true(fabs(tensor_get(loss, 0) - expected) <= 1e-6 * expected);
    assert_true(fabs(tensor_get(parts, 0) - expected) <= 1e-6 * expected);
}

static void a_small_loss_is_not_lost_beside_large_logits(void **state) {
    (void)state;
    on_all(one_certain_word);
}

static void a_vocabulary_of_one_has_no_loss_and_no_gradient(void **state) {
    (void)state;
    on_all(one_word);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_query_that_sees_one_key_gives_its_score_no_gradient),
        cmocka_unit_test(the_weight_of_one_normalised_choice_is_1_and_gives_the_router_no_gradient),
        cmocka_unit_test(a_router_of_one_expert_has_no_gradient),
        cmocka_unit_test(experts_that_are_all_chosen_are_in_balance),
        cmocka_unit_test(a_vocabulary_of_one_has_no_loss_and_no_gradient),
        cmocka_unit_test(a_small_loss_is_not_lost_beside_large_logits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
