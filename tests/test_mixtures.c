/* Mixtures: every axis of the mesh at once, chosen without regard to the others, over the same ranks, gives the numbers of one rank: loss,
 * norm, every gradient after the first step, every weight and moment after the fifth. First each axis alone as wide as the
 * world, then 50 drawn mixtures; then routing and data that leave experts, ranks and whole groups without work. */
#include "trials.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

/* clang-format off */
static const Layout layouts[] = {
    {2, "dense=1 ulysses=2"},
    {2, "dense=1 ring=2"},
    {2, "dense=1 expert=2"},
    {2, "dense=1 expert_shard=2"},
    {2, "dense=1 vocabulary=2"},
    {2, "dense=2 ulysses=2 expert=2 vocabulary=2 dispatch_tokens=11 balance_imports=1 balance_threshold=1 loss_travel=activations ulysses_heads=2 train.micro_batches=3"},
    {2, "dense=1 ulysses=2 expert_shard=2 vocabulary=2 dispatch_tokens=2 loss_travel=activations train.micro_batches=3"},
    {2, "dense=2 ring=2 expert=2 balance_imports=2 balance_threshold=1 compute.activations=recompute"},
    {2, "dense=1 ulysses=2 expert_shard=2 dispatch_tokens=11 ulysses_heads=2 train.micro_batches=3"},
    {3, "dense=1 ring=3"},
    {3, "dense=1 expert=3"},
    {3, "dense=1 expert_shard=3"},
    {3, "dense=1 vocabulary=3"},
    {3, "dense=3 ring=3 expert=3 vocabulary=3 balance_imports=2 balance_threshold=1 loss_travel=weights train.micro_batches=3 compute.activations=recompute"},
    {3, "dense=1 ring=3 expert=3 balance_imports=1 balance_threshold=1 train.micro_batches=3"},
    {3, "dense=1 ring=3 expert=3 vocabulary=3 dispatch_tokens=3 loss_travel=weights train.micro_batches=2"},
    {3, "dense=3 expert=3 vocabulary=3 train.micro_batches=2"},
    {3, "dense=3 expert=3 vocabulary=3 balance_imports=2 balance_threshold=1 train.micro_batches=3"},
    {3, "dense=3 ring=3 vocabulary=3 dispatch_tokens=5 loss_travel=weights"},
    {3, "dense=3 expert_shard=3 vocabulary=3 dispatch_tokens=11 loss_travel=activations"},
    {3, "dense=1 ring=3 expert_shard=3 vocabulary=3 train.micro_batches=2"},
    {4, "dense=1 ulysses=4"},
    {4, "dense=1 ring=4"},
    {4, "dense=1 expert=4"},
    {4, "dense=1 expert_shard=4"},
    {4, "dense=1 vocabulary=4"},
    {4, "dense=4 ulysses=2 ring=2 expert_shard=2 vocabulary=4 dispatch_tokens=5 loss_travel=weights train.micro_batches=3"},
    {4, "dense=4 ulysses=2 ring=2 expert=2 balance_imports=2 balance_threshold=1 train.micro_batches=2"},
    {4, "dense=1 ring=2 expert_shard=2 vocabulary=4 dispatch_tokens=5 loss_travel=weights"},
    {4, "dense=2 ulysses=4 expert=4 vocabulary=2 dispatch_tokens=5 balance_imports=2 balance_threshold=1 loss_travel=activations train.micro_batches=2 compute.activations=recompute"},
    {4, "dense=1 expert=2 expert_shard=2 vocabulary=4 dispatch_tokens=11 train.micro_batches=2"},
    {4, "dense=4 expert=2 expert_shard=2 balance_imports=2 balance_threshold=1 train.micro_batches=3"},
    {4, "dense=2 ulysses=2 ring=2 expert=2 vocabulary=2 dispatch_tokens=2 loss_travel=weights"},
    {4, "dense=4 ulysses=2 expert_shard=2 vocabulary=4 ulysses_heads=2 train.micro_batches=2"},
    {4, "dense=2 ulysses=4 expert_shard=2 vocabulary=2 loss_travel=weights train.micro_batches=3 compute.activations=recompute"},
    {4, "dense=2 ulysses=4 expert_shard=2 vocabulary=2 loss_travel=activations ulysses_heads=2 compute.activations=recompute"},
    {4, "dense=2 ring=4 expert=2 expert_shard=2 vocabulary=4 balance_imports=1 balance_threshold=1 compute.activations=recompute"},
    {4, "dense=1 ulysses=4 expert_shard=4 vocabulary=2 loss_travel=activations train.micro_batches=2"},
    {6, "dense=1 ring=6"},
    {6, "dense=1 expert=6"},
    {6, "dense=1 expert_shard=6"},
    {6, "dense=1 vocabulary=6"},
    {6, "dense=3 ring=2 expert=2 expert_shard=3 dispatch_tokens=3 balance_imports=2 balance_threshold=1 train.micro_batches=2"},
    {6, "dense=6 ulysses=2 ring=3 expert=3 expert_shard=2 train.micro_batches=3 compute.activations=recompute"},
    {6, "dense=6 ulysses=2 ring=3 expert=3 vocabulary=2 train.micro_batches=3"},
    {6, "dense=6 ring=3 expert=2 expert_shard=3 vocabulary=6 balance_imports=2 balance_threshold=1 train.micro_batches=2"},
    {6, "dense=2 ulysses=2 ring=3 expert=6 dispatch_tokens=2 balance_imports=1 balance_threshold=1 train.micro_batches=3"},
    {6, "dense=1 ulysses=2 ring=3 expert=3 vocabulary=6 loss_travel=weights compute.activations=recompute"},
    {6, "dense=2 ring=6 expert=3 expert_shard=2 vocabulary=6 dispatch_tokens=11 balance_imports=1 balance_threshold=1 loss_travel=activations train.micro_batches=2"},
    {6, "dense=2 ring=3 expert_shard=3 vocabulary=2 dispatch_tokens=5 loss_travel=weights train.micro_batches=2 compute.activations=recompute"},
    {6, "dense=3 ring=3 expert=2 expert_shard=3"},
    {6, "dense=6 ring=6 expert_shard=2 vocabulary=6 dispatch_tokens=3 loss_travel=weights train.micro_batches=3"},
    {6, "dense=3 expert=2 expert_shard=3 vocabulary=6 dispatch_tokens=5 loss_travel=weights train.micro_batches=2"},
    {8, "dense=1 ring=8"},
    {8, "dense=1 expert=8"},
    {8, "dense=1 expert_shard=8"},
    {8, "dense=1 vocabulary=8"},
    {8, "dense=2 ulysses=4 ring=2 expert_shard=8 dispatch_tokens=11"},
    {8, "dense=8 ulysses=2 expert=8 dispatch_tokens=3 train.micro_batches=2 compute.activations=recompute"},
    {8, "dense=1 ulysses=2 ring=2 expert=8 dispatch_tokens=3 balance_imports=1 balance_threshold=1 train.micro_batches=2"},
    {8, "dense=8 ulysses=2 ring=2 expert=4 expert_shard=2 vocabulary=2 dispatch_tokens=3 loss_travel=weights compute.activations=recompute"},
    {8, "dense=4 ulysses=2 ring=2 expert=4 expert_shard=2 vocabulary=2 dispatch_tokens=5 ulysses_heads=2 train.micro_batches=3"},
    {8, "dense=8 ulysses=4 expert=2 vocabulary=2 balance_imports=1 balance_threshold=1 loss_travel=weights compute.activations=recompute"},
    {8, "dense=4 ring=4 expert_shard=4 vocabulary=4 loss_travel=weights train.micro_batches=2"},
    {8, "dense=8 ulysses=2 expert=2 expert_shard=4 vocabulary=8 loss_travel=weights"},
    {8, "dense=4 ring=2 expert=4 vocabulary=2 dispatch_tokens=3 balance_imports=2 balance_threshold=1 train.micro_batches=2"},
    {8, "dense=1 ulysses=4 ring=2 expert=8 vocabulary=2 dispatch_tokens=2 balance_imports=1 balance_threshold=1 loss_travel=activations ulysses_heads=2 train.micro_batches=3 compute.activations=recompute"},
    {8, "dense=1 ulysses=4 expert_shard=8 vocabulary=4 dispatch_tokens=2 ulysses_heads=2 train.micro_batches=2"},
    {8, "dense=1 expert=2 expert_shard=2 vocabulary=8 loss_travel=weights"},
    {8, "dense=1 ulysses=2 ring=2 expert=8 vocabulary=4 dispatch_tokens=3 loss_travel=activations train.micro_batches=3 compute.activations=recompute"},
    {8, "dense=1 ulysses=2 ring=2 expert=2 vocabulary=8"},
    {8, "dense=1 ring=4 expert=4 vocabulary=8 dispatch_tokens=3 loss_travel=weights train.micro_batches=2"},
};
/* clang-format on */

static void assert_all_agree(const char *family, const Trial *trial, size_t first, size_t step, double bound) {
    Outcome expected = trial_train(family, alone, trial);
    for (size_t i = first; i < COUNT(layouts); i += step) assert_agrees(family, layouts[i], trial, &expected, bound);
    outcome_free(&expected);
}

static void mixtures_of_all_axes_equal_one_rank(void **state) {
    (void)state;
    const Trial trial = {0};
    for (size_t f = 0; f < FAMILIES; f++) assert_all_agree(families[f], &trial, 0, 1, 1e-12);
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
    assert_all_agree("", &trial, 0, 3, 1e-12);
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
