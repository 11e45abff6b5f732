/* Experts agree: however many rounds tokens take to them, whoever works for whom, and whatever the routing, the
 * numbers are those of one rank in one round; the rows that lie on a rank at once are bounded; and the placement is a
 * fair plan that all ranks make alike. */
#include "trials.h"

#include "base/random.h"
#include "model/balance.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- Rounds and placement change no number ----------------------------------------------------- */

/* Every E_p of these worlds with tokens of a round from 1 to more than there are, imports, micro-batches and
 * activations taking turns. A rank has up to 120 tokens; 6 or 7 experts leave some of 8 ranks without any. */
static void every_number_of_rounds_and_imports_on_1_to_8_ranks_equals_one_rank(void **state) {
    (void)state;
    static const int worlds[] = {1, 2, 3, 4, 6, 8}, tokens[] = {7, 1, 24, 1000, 11}, imports[] = {1, 0, 3, 2};
    static const char *const activations[] = {"keep", "recompute"};
    char text[200];
    const Trial trial = {0};
    for (size_t f = 0; f < FAMILIES; f++) {
        Outcome expected = trial_train(families[f], alone, &trial);
        size_t turn = f;
        for (size_t i = 0; i < COUNT(worlds); i++)
            for (int ep = 1; ep <= worlds[i]; ep++) {
                if (worlds[i] % ep != 0) continue;
                snprintf(text, sizeof text,
                         "expert=%d dispatch_tokens=%d balance_imports=%d balance_threshold=1 train.micro_batches=%zu "
                         "compute.activations=%s",
                         ep, tokens[turn % COUNT(tokens)], imports[turn % COUNT(imports)], 1 + turn % 3,
                         activations[turn % 2]);
                assert_agrees(families[f], (Layout){worlds[i], text}, &trial, &expected, 1e-12);
                turn++;
            }
        outcome_free(&expected);
    }
}

/* Two sequences on 8 or 3 ranks. */
static void ranks_without_tokens_equal_one_rank(void **state) {
    (void)state;
    const Trial trial = {.options = {"train.sequences=2"}};
    static const Layout layouts[] = {
        {8, "expert=8 dispatch_tokens=5 balance_imports=2 balance_threshold=1"},
        {8, "expert=4 dispatch_tokens=9 train.micro_batches=2 compute.activations=recompute"},
        {3, "expert=3 dispatch_tokens=1 balance_imports=1 balance_threshold=1 train.micro_batches=3"},
        {3, "expert=3 balance_imports=2 balance_threshold=1"}};
    for (size_t f = 0; f < FAMILIES; f++) {
        Outcome expected = trial_train(families[f], alone, &trial);
        for (size_t i = 0; i < COUNT(layouts); i++) assert_agrees(families[f], layouts[i], &trial, &expected, 1e-12);
        outcome_free(&expected);
    }
}

static void all_tokens_to_the_same_experts_equal_one_rank(void **state) {
    (void)state;
    static const Layout layouts[] = {{8, "expert=8 dispatch_tokens=6 balance_imports=1"},
                                     {8, "expert=8 balance_imports=2 compute.activations=recompute"},
                                     {4, "expert=2 dispatch_tokens=5 train.micro_batches=2"},
                                     {3, "expert=3 dispatch_tokens=8 balance_imports=3"},
                                     {6, "expert=6 dispatch_tokens=100 balance_imports=1 train.micro_batches=3"}};
    const Trial trials[] = {{.rig = to_the_last_experts, .options = {calm}},
                            {.rig = to_the_first_experts, .options = {calm}}};
    for (size_t f = 0; f < FAMILIES; f++)
        for (size_t t = 0; t < COUNT(trials); t++) {
            Outcome expected = trial_train(families[f], alone, &trials[t]);
            assert_zero_gradient(&expected.gradient, t == 0 ? "experts.0." : "experts.5.");
            for (size_t i = 0; i < COUNT(layouts); i++)
                assert_agrees(families[f], layouts[i], &trials[t], &expected, 1e-12);
            outcome_free(&expected);
        }
}

static void an_expert_without_tokens_has_exactly_zero_gradient_in_any_rounds(void **state) {
    (void)state;
    static const Layout layouts[] = {{8, "expert=8 dispatch_tokens=5 balance_imports=2 balance_threshold=1"},
                                     {2, "expert=2 dispatch_tokens=7 balance_imports=1 balance_threshold=1"}};
    const Trial trial = {.rig = never_to_the_second_expert, .options = {calm}};
    for (size_t f = 0; f < FAMILIES; f++) {
        Outcome expected = trial_train(families[f], alone, &trial);
        for (size_t i = 0; i < COUNT(layouts); i++) {
            Outcome o = trial_train(families[f], layouts[i], &trial);
            assert_zero_gradient(&o.gradient, "experts.1.");
            assert_outcomes_close(families[f], &o, &expected, 1e-12);
            outcome_free(&o);
        }
        outcome_free(&expected);
    }
}

static const char eight_experts[] =
    "{\"model_type\": \"olmoe\", \"vocab_size\": 67, \"hidden_size\": 24, \"num_hidden_layers\": 2, "
    "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"num_experts\": 8, \"num_experts_per_tok\": 2, "
    "\"intermediate_size\": 12, \"norm_topk_prob\": false, \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000, "
    "\"tie_word_embeddings\": false, \"hidden_act\": \"silu\"}";

/* A member can work for the experts of others and for no more: further slots take no memory, and nothing that is as
 * long as the experts are many is asked for more. */
static void import_slots_that_no_expert_can_fill_are_not_there(void **state) {
    (void)state;
    static const struct {
        int world;
        const char *most, *all;
    } rows[] = {
        {2, "expert=2 balance_imports=4 balance_threshold=1", "expert=2 balance_imports=4096 balance_threshold=1"},
        {3, "expert=3 balance_imports=6 balance_threshold=1", "expert=3 balance_imports=13 balance_threshold=1"},
        {6, "expert=6 dispatch_tokens=5 balance_imports=8 balance_threshold=1", /* the last two have no expert */
         "expert=6 dispatch_tokens=5 balance_imports=999 balance_threshold=1"},
    };
    const Trial trial = {.spec = eight_experts, .rig = to_the_first_experts, .options = {calm}};
    Outcome expected = trial_train("", alone, &trial);
    for (size_t i = 0; i < COUNT(rows); i++) {
        Ranks *most = trial_open("", (Layout){rows[i].world, rows[i].most}, &trial),
              *all = trial_open("", (Layout){rows[i].world, rows[i].all}, &trial);
        for (int r = 0; r < rows[i].world; r++)
            for (int a = 0; a < ARENA_COUNT; a++) assert_int_equal(all->price[r].bytes[a], most->price[r].bytes[a]);
        ranks_close(most);
        ranks_close(all);
        assert_agrees("", (Layout){rows[i].world, rows[i].all}, &trial, &expected, 1e-12);
    }
    outcome_free(&expected);
}

static void late_streams_and_wires_change_no_bit(void **state) {
    (void)state;
    static const char *const settings[] = {"expert=4 dispatch_tokens=7",
                                           "expert=4 dispatch_tokens=7 balance_imports=2 balance_threshold=1",
                                           "expert=2 dispatch_tokens=20 compute.activations=recompute",
                                           "expert=4 balance_imports=1 balance_threshold=1 train.micro_batches=2"};

    const Trial trial = {.options = {"compute.type=bf16"}},
                late = {.options = {"compute.type=bf16", "device=cpu:late"}};
    for (size_t i = 0; i < COUNT(settings); i++) {

        Outcome usual = trial_train("olmoe", (Layout){4, settings[i]}, &trial),
                got = trial_train("olmoe", (Layout){4, settings[i]}, &late);
        assert_outcomes_same_bits(settings[i], &got, &usual);
        outcome_free(&usual);
        outcome_free(&got);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_number_of_rounds_and_imports_on_1_to_8_ranks_equals_one_rank),
        cmocka_unit_test(ranks_without_tokens_equal_one_rank),
        cmocka_unit_test(all_tokens_to_the_same_experts_equal_one_rank),
        cmocka_unit_test(an_expert_without_tokens_has_exactly_zero_gradient_in_any_rounds),
        cmocka_unit_test(import_slots_that_no_expert_can_fill_are_not_there),
        cmocka_unit_test(late_streams_and_wires_change_no_bit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
