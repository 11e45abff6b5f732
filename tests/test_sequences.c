/* A sequence spread over ranks, by heads (ulysses), by blocks (ring) and both, gives the numbers of one rank:
 * whatever the documents, the micro-batches and the other axes; and what only moves work changes no bit. */
#include "trials.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- The cut ---------------------------------------------------------------------------------- */

/* Every position is one rank's, a ring member's are those of its ranks in order, and a shorter text moves none. */
static void every_position_belongs_to_one_rank(void **state) {
    (void)state;
    for (int u = 1; u <= 5; u++)
        for (int r = 1; r <= 5; r++)
            for (int64_t length = 1; length <= 23; length++)
                for (int64_t limit = 0; limit <= length; limit += 1 + length / 3) {
                    Cut cut = {.ulysses = u, .ring = r, .length = length, .limit = limit};
                    int owner[23], owners = 0;
                    memset(owner, -1, sizeof owner);
                    for (int rank = 0; rank < u * r; rank++) {
                        Stretches s = cut_rank(&cut, rank);
                        assert_int_equal(s.tokens, s.part[0].count + s.part[1].count);
                        for (int i = 0; i < 2; i++)
                            for (int64_t p = 0; p < s.part[i].count; p++, owners++) {
                                assert_int_equal(owner[s.part[i].first + p], -1);
                                owner[s.part[i].first + p] = rank;
                            }
                    }
                    assert_int_equal(owners, limit);
                    for (int member = 0; member < r; member++) {
                        Stretches s = cut_ring_member(&cut, member);
                        int last = 0;
                        for (int64_t p = 0, row = 0; p < limit; p++) {
                            bool in = owner[p] / u == member;
                            assert_int_equal(stretches_below(&s, p), row);
                            if (!in) continue;
                            row++;
                            assert_true(owner[p] % u >= last);
                            last = owner[p] % u;
                        }
                    }
                }
}

/* Causal work: the pairs that the queries of a member see, over all blocks. */
static int64_t work_of(const Stretches *s) {
    int64_t pairs = 0;
    for (int i = 0; i < 2; i++)
        for (int64_t p = 0; p < s->part[i].count; p++) pairs += s->part[i].first + p + 1;
    return pairs;
}

static void one_long_document_is_the_same_work_for_every_ring_member(void **state) {
    (void)state;
    for (int ring = 1; ring <= 8; ring++)
        for (int64_t parts = 1; parts <= 4; parts++) {
            Cut cut = {.ulysses = 1, .ring = ring, .length = 2 * ring * parts, .limit = 2 * ring * parts};
            Stretches first = cut_ring_member(&cut, 0);
            for (int member = 1; member < ring; member++) {
                Stretches s = cut_ring_member(&cut, member);
                assert_int_equal(s.tokens, first.tokens);
                assert_int_equal(work_of(&s), work_of(&first));
            }
        }
}

/* ---- L4b -------------------------------------------------------------------------------------- */

/* All fixtures have 4 query heads; two have 2 KV heads, so that 4 ranks share each of them. */
static const Layout layouts[] = {
    {2, "ulysses=2"},
    {2, "ring=2 dense=1"},
    {3, "ring=3 train.micro_batches=2"},
    {4, "ulysses=4 dense=2"},
    {4, "ulysses=2 ring=2 expert=4"},
    {4, "ring=4 dense=1"},
    {4, "ulysses=2 expert=2 expert_shard=2 train.micro_batches=3"},
    {6, "ulysses=2 ring=3"},
    {6, "ring=2 expert=3 train.micro_batches=2"},
    {8, "ulysses=4 ring=2 expert=4 expert_shard=2"},
    {8, "ulysses=2 ring=4 dense=2 dispatch_tokens=2 balance_imports=1 balance_threshold=1"},
    {8, "ring=8 expert=8"},
    {8, "ulysses=2 ring=2 ulysses_heads=2 dense=4 train.micro_batches=2"},
};

static void a_sequence_on_many_ranks_equals_one_rank(void **state) {
    (void)state;
    const Trial trial = {0};
    for (size_t f = 0; f < FAMILIES; f++) {
        Outcome expected = trial_train(families[f], alone, &trial);
        for (size_t i = 0; i < COUNT(layouts); i++) assert_agrees(families[f], layouts[i], &trial, &expected, 1e-12);
        outcome_free(&expected);
    }
}

/* 12 query heads, 4 KV heads: slices of several KV heads on 2 ranks, KV heads that ranks share on 3 and 6, one each
 * on 4. */
static const char many_heads[] =
    "{\"model_type\": \"qwen3_moe\", \"vocab_size\": 67, \"hidden_size\": 20, \"num_hidden_layers\": 2, "
    "\"num_attention_heads\": 12, \"num_key_value_heads\": 4, \"head_dim\": 6, \"num_experts\": 5, "
    "\"num_experts_per_tok\": 2, \"moe_intermediate_size\": 7, \"norm_topk_prob\": true, \"rms_norm_eps\": 1e-6, "
    "\"rope_theta\": 10000, \"tie_word_embeddings\": false, \"hidden_act\": \"silu\", \"intermediate_size\": 9}";

static void heads_pass_in_slices_of_any_size_and_are_shared_where_ranks_outnumber_them(void **state) {
    (void)state;
    static const Layout own[] = {{2, "ulysses=2"},
                                 {2, "ulysses=2 ulysses_heads=2"},
                                 {4, "ulysses=2 ring=2 ulysses_heads=3"},
                                 {3, "ulysses=3 train.micro_batches=2"},
                                 {6, "ulysses=3 ring=2"},
                                 {6, "ulysses=6 expert=3"},
                                 {4, "ulysses=4 ulysses_heads=7"},
                                 {8, "ulysses=4 ring=2 expert=8"}};
    static const char *const activations[] = {"compute.activations=keep", "compute.activations=recompute"};
    const Trial trial = {.spec = many_heads};
    Outcome expected = trial_train("", alone, &trial);
    for (size_t a = 0; a < COUNT(activations); a++) {
        const Trial again = {.spec = many_heads, .options = {activations[a]}};
        for (size_t i = 0; i < COUNT(own); i++) assert_agrees("many heads", own[i], &again, &expected, 1e-12);
    }
    outcome_free(&expected);
}

/* Documents of up to 60 tokens fill sequences of 24 from end to end: those on ring=3 lie on three ranks and more. Then
 * sequences of fewer tokens than ranks: one key has a gradient of rounding noise, hence calm. */
static void documents_of_any_length_equal_one_rank(void **state) {
    (void)state;
    char *longer = random_documents(20, 60, TRIAL_VOCABULARY, 5),
         *shorter = random_documents(60, 6, TRIAL_VOCABULARY, 6);
    const Trial trials[] = {{.documents = longer},
                            {.documents = shorter, .options = {calm}},
                            {.documents = longer, .options = {"train.sequence_length=5", calm}},
                            {.documents = longer, .options = {"train.sequence_length=1", calm}},
                            {.documents = longer, .options = {"train.sequences=1"}}};
    for (size_t f = 0; f < FAMILIES; f++)
        for (size_t t = 0; t < COUNT(trials); t++) {
            Outcome expected = trial_train(families[f], alone, &trials[t]);
            assert_agrees(families[f], (Layout){3, "ring=3 expert=3"}, &trials[t], &expected, 1e-12);
            assert_agrees(families[f], (Layout){8, "ulysses=4 ring=2 expert=2 expert_shard=2"}, &trials[t], &expected,
                          1e-12);
            outcome_free(&expected);
        }
    free(longer);
    free(shorter);
}

/* ---- What changes no bit ------------------------------------------------------------------------ */

static void time_place_and_threads_change_no_bit(void **state) {
    (void)state;
    static const Layout own[] = {
        {4, "ulysses=2 ring=2 expert=4"}, {3, "ring=3 train.micro_batches=2"}, {6, "ulysses=6"}};
    static const char *const types[] = {"compute.type=fp32", "compute.type=bf16"};
    static const char *const ways[] = {"device=cpu:late", "compute.threads=2", "compute.activations=recompute",
                                       "optimizer.update=blocking"};
    for (size_t i = 0; i < COUNT(own); i++)
        for (size_t t = 0; t < COUNT(types); t++) {
            const Trial usual = {.spec = many_heads, .options = {types[t]}};
            Outcome expected = trial_train("", own[i], &usual);
            for (size_t w = 0; w < COUNT(ways); w++) {
                const Trial other = {.spec = many_heads, .options = {types[t], ways[w]}};
                Outcome got = trial_train("", own[i], &other);
                assert_outcomes_same_bits(ways[w], &got, &expected);
                outcome_free(&got);
            }
            outcome_free(&expected);
        }
}

/* ---- Forward only ------------------------------------------------------------------------------ */

static bool evaluate_rank(Run *r, void *context, Error *e) {
    Evaluation v;
    if (!evaluate(r, &v, e)) return false;
    if (r->comm.mesh.rank == 0) *(Evaluation *)context = v;
    return true;
}

static void an_evaluation_is_that_of_one_rank(void **state) {
    (void)state;
    const Trial trial = {0};
    for (size_t f = 0; f < FAMILIES; f++) {
        Evaluation expected, got;
        Ranks *r = trial_open(families[f], alone, &trial);
        ranks_run(r, evaluate_rank, &expected);
        ranks_close(r);
        r = trial_open(families[f], (Layout){4, "ulysses=2 ring=2"}, &trial);
        ranks_run(r, evaluate_rank, &got);
        ranks_close(r);
        assert_int_equal(got.trained, expected.trained);
        assert_near(families[f], "the loss", got.loss, expected.loss, 1e-12);
    }
}

/* ---- What is refused ---------------------------------------------------------------------------- */

static void groups_that_do_not_divide_are_refused_in_words(void **state) {
    (void)state;
    static const struct {
        const char *sets[2];
        const char *words;
    } rows[] = {
        {{"mixture.ulysses=8"}, "does not divide the model's 12 query heads"},
        {{"mixture.ulysses=3"}, "does not divide the 8 ranks"},
        {{"mixture.ulysses=4", "mixture.ring=4"}, "mixture.ulysses x mixture.ring = 16 does not divide the 8 ranks"}};
    Spec spec;
    Error e = {0};
    json_error_t where;
    json_t *json = json_loads(many_heads, 0, &where);
    assert_true(spec_from_json(&spec, json, "test", &e));
    json_decref(json);
    for (size_t i = 0; i < COUNT(rows); i++) {
        Config c;
        e = (Error){0};
        assert_true(config_read_text(&c, "", 0, "test", (const char **)rows[i].sets, rows[i].sets[1] ? 2 : 1, &e));
        assert_false(run_supported(&c, &spec, 8, &e));
        assert_int_equal(e.code, EXIT_USAGE);
        if (!strstr(e.text, rows[i].words)) fail_msg("\"%s\" lacks \"%s\"", e.text, rows[i].words);
        config_close(&c);
    }
    spec_close(&spec);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_position_belongs_to_one_rank),
        cmocka_unit_test(one_long_document_is_the_same_work_for_every_ring_member),
        cmocka_unit_test(a_sequence_on_many_ranks_equals_one_rank),
        cmocka_unit_test(heads_pass_in_slices_of_any_size_and_are_shared_where_ranks_outnumber_them),
        cmocka_unit_test(documents_of_any_length_equal_one_rank),
        cmocka_unit_test(time_place_and_threads_change_no_bit),
        cmocka_unit_test(an_evaluation_is_that_of_one_rank),
        cmocka_unit_test(groups_that_do_not_divide_are_refused_in_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
