/* Mixtures: every axis of the mesh at once, chosen without regard to the others, over the same ranks, gives the
 * numbers of one rank: loss, norm, every gradient after the first step, every weight and moment after the fifth. In
 * the mixtures of trials.h; then under routing and data that leave experts, ranks and whole groups without work. */
#include "trials.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void assert_all_agree(const char *family, const Trial *trial, size_t first, size_t step, double bound) {
    Outcome expected = trial_train(family, alone, trial);
    for (size_t i = first; i < mixtures; i += step) assert_agrees(family, mixture[i], trial, &expected, bound);
    outcome_free(&expected);
}

static void mixtures_of_all_axes_equal_one_rank(void **state) {
    (void)state;
    const Trial trial = {0};
    for (size_t f = 0; f < FAMILIES; f++) {
        bool again = strstr(families[f], "window") != NULL; /* of a family that has been tried */
        assert_all_agree(families[f], &trial, 0, again ? 3 : 1, 1e-12);
    }
}

/* A quarter of the layouts for each family, together all. */
static void all_tokens_to_the_same_experts_equal_one_rank(void **state) {
    (void)state;
    const Trial trial = {.rig = to_the_last_experts, .options = {calm}};
    for (size_t f = 0; f < FAMILIES; f++) assert_all_agree(families[f], &trial, f, FAMILIES, 1e-12);
}

/* One choice a token, and all choose alike: one expert has every row, and all other ranks of its group have none. */
static const char one_choice[] =
    "{\"model_type\": \"olmoe\", \"vocab_size\": 67, \"hidden_size\": 24, \"num_hidden_layers\": 2, "
    "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"num_experts\": 7, \"num_experts_per_tok\": 1, "
    "\"intermediate_size\": 9, \"norm_topk_prob\": false, \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000, "
    "\"tie_word_embeddings\": true, \"hidden_act\": \"silu\"}";

static void all_tokens_to_one_expert_equal_one_rank(void **state) {
    (void)state;
    const Trial trial = {.spec = one_choice, .rig = to_the_first_experts, .options = {calm}};
    Outcome expected = trial_train("", alone, &trial);
    for (int i = 0; i < TRIAL_STEPS; i++) assert_true(expected.step[i].load == 7);
    outcome_free(&expected);
    /* The embedding's column of 20 is the head's too: logits near 100 whose gradients cancel to 0 in that column, which
     * leaves a rounding error of 1e-12 of the last norm's gradient (0.2e-12 where the head is apart). */
    assert_all_agree("", &trial, 0, 3, 1e-11);
}

/* One sequence, or two: most sequence groups have none, and take part in everything. */
static void ranks_without_tokens_equal_one_rank(void **state) {
    (void)state;
    static const char *const few[] = {"train.sequences=1", "train.sequences=2"};
    for (size_t f = 0; f < FAMILIES; f++) {
        const Trial trial = {.options = {few[f % 2]}};
        assert_all_agree(families[f], &trial, f, FAMILIES, 1e-12);
    }
}

/* Near-ties of the router may flip an expert in fp32; this data has none. */
static void mixtures_agree_in_fp32(void **state) {
    (void)state;
    const Trial trial = {.options = {"compute.type=fp32"}};
    assert_all_agree("qwen3_moe", &trial, 0, 5, 1e-5);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mixtures_of_all_axes_equal_one_rank),
        cmocka_unit_test(all_tokens_to_the_same_experts_equal_one_rank),
        cmocka_unit_test(all_tokens_to_one_expert_equal_one_rank),
        cmocka_unit_test(ranks_without_tokens_equal_one_rank),
        cmocka_unit_test(mixtures_agree_in_fp32),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
