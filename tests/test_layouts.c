/* Layouts agree: whatever the ranks, the groups and the micro-batches, the numbers are those of one rank; and what
 * only moves work or memory to another place or time changes no bit. The models are those of tests/fixtures, with
 * weights far enough from their usual start that every part matters; clipping and both auxiliary losses are on,
 * documents are packed and cut, sizes divide by nothing. */
#include "trials.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- L4b: layouts agree ----------------------------------------------------------------------- */

/* Every Z and E_p of these worlds, micro-batches taking turns so that each divisor pair meets every count in some
 * family. */
static void every_dense_and_expert_group_of_1_to_8_ranks_equals_one_rank(void **state) {
    (void)state;
    static const int worlds[] = {1, 2, 3, 4, 6, 8};
    char text[80];
    const Trial trial = {0};
    for (size_t f = 0; f < FAMILIES; f++) {
        Outcome expected = trial_train(families[f], alone, &trial);
        assert_true(expected.step[0].norm > 0.3); /* or nothing is clipped */
        int turn = (int)f;
        for (size_t i = 0; i < COUNT(worlds); i++)
            for (int z = 1; z <= worlds[i]; z++)
                for (int ep = 1; ep <= worlds[i]; ep++)
                    if (worlds[i] % z == 0 && worlds[i] % ep == 0) {
                        snprintf(text, sizeof text, "dense=%d expert=%d train.micro_batches=%d", z, ep, 1 + turn++ % 3);
                        assert_agrees(families[f], (Layout){worlds[i], text}, &trial, &expected, 1e-12);
                    }
        outcome_free(&expected);
    }
}

static void recomputed_activations_equal_one_rank(void **state) {
    (void)state;
    const Trial keep = {0}, again = {.options = {"compute.activations=recompute"}};
    for (size_t f = 0; f < FAMILIES; f++) {
        Outcome expected = trial_train(families[f], alone, &keep);
        assert_agrees(families[f], (Layout){4, "dense=2 expert=4 train.micro_batches=2"}, &again, &expected, 1e-12);
        outcome_free(&expected);
    }
}

/* Two sequences on 8 ranks: six have none, and take part in everything. */
static void ranks_without_sequences_equal_one_rank(void **state) {
    (void)state;
    const Trial trial = {.options = {"train.sequences=2"}};
    static const Layout layouts[] = {{8, "dense=8 expert=8"},
                                     {8, "dense=4 expert=2 train.micro_batches=2"},
                                     {3, "dense=3 expert=3 train.micro_batches=2"},
                                     {3, "dense=1"}};
    for (size_t f = 0; f < FAMILIES; f++) {
        Outcome expected = trial_train(families[f], alone, &trial);
        for (size_t i = 0; i < COUNT(layouts); i++) assert_agrees(families[f], layouts[i], &trial, &expected, 1e-12);
        outcome_free(&expected);
    }
}

/* Near-ties of the router may flip an expert in fp32; these few layouts and this data have none. */
static void layouts_agree_in_fp32(void **state) {
    (void)state;
    const Trial trial = {.options = {"compute.type=fp32"}};
    static const Layout layouts[] = {
        {2, "dense=2 expert=2"}, {3, "dense=3 train.micro_batches=2"}, {4, "dense=2 expert=4"}};
    for (size_t f = 0; f < FAMILIES; f++) {
        Outcome expected = trial_train(families[f], alone, &trial);
        for (size_t i = 0; i < COUNT(layouts); i++) assert_agrees(families[f], layouts[i], &trial, &expected, 1e-5);
        outcome_free(&expected);
    }
}

/* ---- Extreme routing -------------------------------------------------------------------------- */

/* top_k experts get every token: the busiest has experts / top_k times the mean. */
static void all_tokens_to_the_same_experts_equal_one_rank(void **state) {
    (void)state;
    static const Layout layouts[] = {{8, "dense=8 expert=8"},
                                     {4, "dense=2 expert=2 train.micro_batches=2"},
                                     {3, "dense=3 expert=3"},
                                     {6, "dense=1 expert=6 train.micro_batches=3"}};
    const Trial trials[] = {{.rig = to_the_last_experts, .options = {calm}},
                            {.rig = to_the_first_experts, .options = {calm}}};
    for (size_t f = 0; f < FAMILIES; f++)
        for (size_t t = 0; t < COUNT(trials); t++) {
            Outcome expected = trial_train(families[f], alone, &trials[t]);
            Ranks *r = trial_open(families[f], alone, &trials[t]);
            double most = (double)r->spec.experts / (double)r->spec.top_k;
            ranks_close(r);
            for (int i = 0; i < TRIAL_STEPS; i++) assert_true(expected.step[i].load == most);
            assert_zero_gradient(&expected.gradient, t == 0 ? "experts.0." : "experts.5.");
            for (size_t i = 0; i < COUNT(layouts); i++)
                assert_agrees(families[f], layouts[i], &trials[t], &expected, 1e-12);
            outcome_free(&expected);
        }
}

static void an_expert_without_tokens_has_exactly_zero_gradient_on_any_ranks(void **state) {
    (void)state;
    static const Layout layouts[] = {{8, "dense=2 expert=8"},
                                     {2, "dense=2 expert=2 train.micro_batches=2"},
                                     {3, "dense=1 expert=3 train.micro_batches=3"}};
    const Trial trial = {.rig = never_to_the_second_expert, .options = {calm}};
    for (size_t f = 0; f < FAMILIES; f++) {
        Outcome expected = trial_train(families[f], alone, &trial);
        assert_zero_gradient(&expected.gradient, "experts.1.");
        for (size_t i = 0; i < COUNT(layouts); i++) {
            Outcome o = trial_train(families[f], layouts[i], &trial);
            assert_zero_gradient(&o.gradient, "experts.1.");
            assert_outcomes_close(families[f], &o, &expected, 1e-12);
            outcome_free(&o);
        }
        outcome_free(&expected);
    }
}

/* ---- L2 and L4a: nothing but place and time changes -------------------------------------------- */

/* The example's model, whose 5 x 64 tokens are enough for several threads. */
static const Layout relocated[] = {{1, "train.micro_batches=2"},
                                   {4, "dense=4 expert=4 train.micro_batches=2"},
                                   {4, "dense=2 expert=2"},
                                   {3, "dense=1 expert=3 train.micro_batches=3"}};
static const char *const types[] = {"compute.type=fp32", "compute.type=bf16"};
enum { LAYOUTS = COUNT(relocated), TYPES = COUNT(types) };

typedef Outcome Usual[LAYOUTS][TYPES];

static Outcome train_relocated(size_t layout, size_t type, const char *option) {
    const Trial trial = {.spec = "examples/tiny.json",
                         .options = {types[type], "train.sequence_length=64", "mixture.loss_chunk=48", option}};
    return trial_train("", relocated[layout], &trial);
}

static int train_usual(void **state) {
    Usual *usual = malloc(sizeof *usual);
    assert_non_null(usual);
    for (size_t l = 0; l < LAYOUTS; l++)
        for (size_t t = 0; t < TYPES; t++) (*usual)[l][t] = train_relocated(l, t, NULL);
    *state = usual;
    return 0;
}

static int free_usual(void **state) {
    Usual *usual = *state;
    for (size_t l = 0; l < LAYOUTS; l++)
        for (size_t t = 0; t < TYPES; t++) outcome_free(&(*usual)[l][t]);
    free(usual);
    return 0;
}

static void assert_changes_no_bit(void **state, const char *option) {
    const Usual *usual = *state;
    for (size_t l = 0; l < LAYOUTS; l++)
        for (size_t t = 0; t < TYPES; t++) {
            char what[100];
            snprintf(what, sizeof what, "%s, %s, ranks %d", option, types[t], relocated[l].world);
            Outcome got = train_relocated(l, t, option);
            assert_outcomes_same_bits(what, &got, &(*usual)[l][t]);
            outcome_free(&got);
        }
}

static void the_same_run_twice_is_the_same_to_the_bit(void **state) {
    assert_changes_no_bit(state, "train.seed=1"); /* the default */
}

static void threads_change_no_bit(void **state) {
    assert_changes_no_bit(state, "compute.threads=2");
    assert_changes_no_bit(state, "compute.threads=3");
}

static void a_blocking_update_changes_no_bit(void **state) {
    assert_changes_no_bit(state, "optimizer.update=blocking");
}

static void recomputing_changes_no_bit(void **state) {
    assert_changes_no_bit(state, "compute.activations=recompute");
}

static void late_streams_and_wires_change_no_bit(void **state) {
    assert_changes_no_bit(state, "device=cpu:late");
}

/* ---- Steps that must change nothing ------------------------------------------------------------ */

/* A group's wire that, once, makes one number NaN in what this rank hands over. */
typedef struct {
    Wire wire, *inner;
    int exchanges; /* left until then */
} BadWire;

static bool bad_exchange(Wire *w, const Axis *axis, const Parcel *parcels, Error *e) {
    BadWire *b = (BadWire *)w;
    const Parcel *own = &parcels[axis->index];
    if (b->exchanges-- == 0) ((float *)(uintptr_t)own->send)[own->send_bytes / sizeof(float) - 1] = NAN;
    return b->inner->exchange(b->inner, axis, parcels, e);
}

static const Layout own_experts = {4, "dense=2 expert=4 train.micro_batches=2"};

/* Trains step 0, then step 1 with a NaN in the last element of rank 2's experts of the layer whose gradient comes
 * first. */
static Ranks *train_into_a_bad_step(BadWire *bad, const char *update, StepResult *out) {
    const Trial trial = {.options = {"compute.type=fp32", update}};
    Ranks *r = trial_open("olmoe", own_experts, &trial);
    ranks_train(r, 0, 1, &out[0]);
    Group *g = &r->run[2]->comm.group[AXIS_EXPERT_REPLICA];
    *bad = (BadWire){.wire = *g->wire, .inner = g->wire};
    bad->wire.exchange = bad_exchange;
    g->wire = &bad->wire;
    return r;
}

static void a_nan_in_one_gradient_element_on_one_rank_is_named_and_changes_nothing_anywhere(void **state) {
    (void)state;
    BadWire bad;
    StepResult out[2];
    Ranks *r = train_into_a_bad_step(&bad, "optimizer.update=deferred", out);
    static const StoreKind kinds[] = {STORE_MASTER, STORE_M, STORE_V};
    Collection before[3], after[3];
    for (int k = 0; k < 3; k++) before[k] = ranks_collect(r, kinds[k]);
    ranks_train(r, 1, 1, &out[1]);
    assert_true(out[0].finite);
    assert_false(out[1].finite);
    assert_true(isfinite(out[1].loss));
    assert_int_equal(out[1].gradient.rank, 2);
    assert_string_equal(out[1].gradient.bad, "model.layers.1.mlp.experts.5.down_proj.weight"); /* rank 2 has 4 and 5 */
    for (int i = 0; i < r->world; i++) {
        assert_int_equal(r->run[i]->bad_steps, 1);
        assert_int_equal(r->run[i]->updates, 1);
    }
    for (int k = 0; k < 3; k++) {
        after[k] = ranks_collect(r, kinds[k]);
        assert_collections_same_bits("after the bad step", &after[k], &before[k]);
        collection_free(&after[k]);
        collection_free(&before[k]);
    }
    ranks_train(r, 2, 1, &out[1]);
    assert_true(out[1].finite);
    for (int i = 0; i < r->world; i++) {
        assert_int_equal(r->run[i]->bad_steps, 0);
        assert_int_equal(r->run[i]->updates, 2);
    }
    ranks_close(r);
}

/* The update that a bad step finds pending is applied, the one it would have made is not; whenever updates happen. */
static void a_bad_step_among_deferred_updates_is_the_same_as_among_blocking_ones(void **state) {
    (void)state;
    static const char *const updates[] = {"optimizer.update=deferred", "optimizer.update=blocking"};
    StepResult out[2][4];
    Collection master[2];
    for (int i = 0; i < 2; i++) {
        BadWire bad;
        Ranks *r = train_into_a_bad_step(&bad, updates[i], out[i]);
        ranks_train(r, 1, 3, out[i] + 1);
        assert_false(out[i][1].finite);
        assert_true(out[i][3].finite);
        master[i] = ranks_collect(r, STORE_MASTER);
        ranks_close(r);
    }
    assert_results_same_bits("deferred against blocking", &out[0][2], &out[1][2], 2);
    assert_collections_same_bits("deferred against blocking", &master[0], &master[1]);
    for (int i = 0; i < 2; i++) collection_free(&master[i]);
}

/* What a NaN in a weight does to routing and sums must stay in bounds and be noticed, whatever it reaches. */
static void a_nan_weight_makes_a_bad_step_on_every_rank(void **state) {
    (void)state;
    static const char *const names[] = {"model.embed_tokens.weight", "model.layers.0.mlp.gate.weight",
                                        "model.layers.1.self_attn.k_proj.weight",
                                        "model.layers.1.mlp.experts.3.up_proj.weight", "lm_head.weight"};
    static const char *const own_types[] = {"compute.type=fp32", "compute.type=bf16", "compute.type=fp64"};
    for (size_t n = 0; n < COUNT(names); n++)
        for (size_t t = 0; t < COUNT(own_types); t++) {
            const Trial trial = {.options = {own_types[t]}};
            Ranks *r = trial_open("olmoe", own_experts, &trial);
            int poked = 0;
            for (int rank = 0; rank < r->world; rank++) poked += ranks_poke(r, rank, STORE_MASTER, names[n], 11, NAN);
            assert_true(poked > 0);
            Collection before = ranks_collect(r, STORE_MASTER);
            StepResult out[2];
            ranks_train(r, 0, 2, out);
            assert_false(out[0].finite || out[1].finite);
            assert_true(out[0].gradient.bad[0]);
            for (int i = 0; i < r->world; i++) assert_int_equal(r->run[i]->bad_steps, 2);
            Collection after = ranks_collect(r, STORE_MASTER);
            assert_collections_same_bits(names[n], &after, &before);
            collection_free(&before);
            collection_free(&after);
            ranks_close(r);
        }
}

/* ---- Nothing to train ------------------------------------------------------------------------- */

/* Four pieces, of which one is trained: an epoch of four steps has three without a target. */
static void a_batch_without_trained_tokens_has_loss_0_and_gradient_0(void **state) {
    (void)state;
    static const char documents[] =
        "{\"input_ids\": [3, 4, 5, 6, 7, 8, 9, 10], \"labels\": [3, -100, -100, -100, -100, -100, -100, -100]}\n"
        "{\"input_ids\": [1]}\n{\"input_ids\": [2]}\n{\"input_ids\": [9, 10], \"labels\": [9, -100]}\n"
        "{\"input_ids\": [11, 12, 13, 14]}\n";
    const Trial trial = {
        .documents = documents,
        .options = {"train.sequence_length=4", "train.sequences=1", "loss.balance=0", "loss.router_z=0"}};
    static const Layout layouts[] = {{1, ""}, {4, "dense=2 expert=4"}};
    for (size_t f = 0; f < FAMILIES; f++)
        for (size_t l = 0; l < COUNT(layouts); l++) {
            Ranks *r = trial_open(families[f], layouts[l], &trial);
            int untrained = 0;
            for (int i = 0; i < 4; i++) {
                StepResult out;
                ranks_train(r, i, 1, &out);
                if (out.trained > 0) continue;
                untrained++;
                assert_true(out.loss == 0 && out.norm == 0 && out.finite);
                Collection gradient = ranks_collect(r, STORE_GRADIENT);
                assert_zero_gradient(&gradient, "");
                collection_free(&gradient);
            }
            assert_int_equal(untrained, 3);
            ranks_close(r);
        }
}

/* Untrained documents beside trained ones add nothing, neither to the sum nor to what divides it. */
static void untrained_documents_add_nothing_to_loss_and_gradient(void **state) {
    (void)state;
    static const char trained[] = "{\"input_ids\": [3, 14, 15, 9, 26, 53, 58, 9]}\n";
    static const char both[] =
        "{\"input_ids\": [3, 14, 15, 9, 26, 53, 58, 9]}\n{\"input_ids\": [2, 7, 18, 28, 18, 28, 45, 9], "
        "\"labels\": [2, -100, -100, -100, -100, -100, -100, -100]}\n";
    const Trial one = {
        .documents = trained,
        .options = {"train.sequence_length=8", "train.sequences=1", "loss.balance=0", "loss.router_z=0"}};
    const Trial two = {
        .documents = both,
        .options = {"train.sequence_length=8", "train.sequences=2", "loss.balance=0", "loss.router_z=0"}};
    for (size_t f = 0; f < FAMILIES; f++) {
        Outcome expected = trial_train(families[f], alone, &one),
                got = trial_train(families[f], (Layout){2, "dense=2 expert=2"}, &two);
        assert_int_equal(expected.step[0].trained, 7);
        for (int i = 0; i < TRIAL_STEPS; i++) {
            assert_int_equal(got.step[i].trained, 7);
            assert_near(families[f], "the loss", got.step[i].loss, expected.step[i].loss, 1e-12);
            assert_near(families[f], "the gradient norm", got.step[i].norm, expected.step[i].norm, 1e-12);
        }
        assert_collections_close(families[f], &got.gradient, &expected.gradient, 1e-12);
        assert_collections_close(families[f], &got.master, &expected.master, 1e-12);
        outcome_free(&expected);
        outcome_free(&got);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_dense_and_expert_group_of_1_to_8_ranks_equals_one_rank),
        cmocka_unit_test(recomputed_activations_equal_one_rank),
        cmocka_unit_test(ranks_without_sequences_equal_one_rank),
        cmocka_unit_test(layouts_agree_in_fp32),
        cmocka_unit_test(all_tokens_to_the_same_experts_equal_one_rank),
        cmocka_unit_test(an_expert_without_tokens_has_exactly_zero_gradient_on_any_ranks),
        cmocka_unit_test(the_same_run_twice_is_the_same_to_the_bit),
        cmocka_unit_test(threads_change_no_bit),
        cmocka_unit_test(a_blocking_update_changes_no_bit),
        cmocka_unit_test(recomputing_changes_no_bit),
        cmocka_unit_test(late_streams_and_wires_change_no_bit),
        cmocka_unit_test(a_nan_in_one_gradient_element_on_one_rank_is_named_and_changes_nothing_anywhere),
        cmocka_unit_test(a_bad_step_among_deferred_updates_is_the_same_as_among_blocking_ones),
        cmocka_unit_test(a_nan_weight_makes_a_bad_step_on_every_rank),
        cmocka_unit_test(a_batch_without_trained_tokens_has_loss_0_and_gradient_0),
        cmocka_unit_test(untrained_documents_add_nothing_to_loss_and_gradient),
    };
    return cmocka_run_group_tests(tests, train_usual, free_usual);
}
