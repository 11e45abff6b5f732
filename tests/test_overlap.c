/* Communication hides behind work: on sim, whose clocks are exact, the compute stream waits for only a part of what
 * the network stream carries wherever the schedule lets the two run side by side. Machines, models and lengths are
 * such that there is enough work to hide behind; how much a real machine hides its trace shows. */
#include "ranks.h"

#include "ops/kernels.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Wide enough that products take longer than their operands' way between the GPUs of a node. */
static const char wide[] =
    "{\"model_type\": \"qwen3_moe\", \"vocab_size\": 65536, \"hidden_size\": 4096, \"num_hidden_layers\": 4, "
    "\"num_attention_heads\": 64, \"num_key_value_heads\": 8, \"head_dim\": 128, \"num_experts\": 16, "
    "\"num_experts_per_tok\": 2, \"moe_intermediate_size\": 4096, \"norm_topk_prob\": true, \"rms_norm_eps\": 1e-6, "
    "\"rope_theta\": 10000, \"tie_word_embeddings\": false, \"hidden_act\": \"silu\", \"intermediate_size\": 4096}";

/* Of one step on rank 0, for one component: seconds that the network carried, and that compute waited for it. */
typedef struct {
    double carried, exposed;
} Exposure;

typedef struct {
    Component component;
    bool
        forward; /* an evaluation instead of a step: without the sums of gradients, which are queued before what a layer wants at once */
    Exposure out;
} Question;

static Exposure so_far(const Run *r, Component c) {
    return (Exposure){r->device->stream[STREAM_NETWORK].time.work[c],
                      r->device->stream[STREAM_COMPUTE].time.wait[STREAM_NETWORK][c]};
}

static bool pass(Run *r, const Question *q, int64_t step, Error *e) {
    StepResult result;
    Evaluation evaluation;
    return q->forward ? evaluate(r, &evaluation, e) : train_step(r, step, false, &result, e);
}

/* The second time: a second step finds the updates of a first one. */
static bool ask(Run *r, void *context, Error *e) {
    Question *q = context;
    if (!pass(r, q, 0, e)) return false;
    Exposure before = so_far(r, q->component);
    if (!pass(r, q, 1, e)) return false;
    Exposure after = so_far(r, q->component);
    if (r->comm.mesh.rank == 0) q->out = (Exposure){after.carried - before.carried, after.exposed - before.exposed};
    return true;
}

/* Dense weights that every rank has whole: nothing else is on the network when a layer's own exchanges want it. */
static const char apart[] = "mixture.dense=1";

static Exposure expose(Question q, const char *length, const char *dense, const char *a, const char *b) {
    RanksSetup setup = {.world = 8,
                        .spec = wide,
                        .sets = {"device=sim:h200", "compute.type=bf16", "train.sequences=8", "mixture.loss_chunk=4096",
                                 length, dense, a, b}};
    Ranks *r = ranks_open(setup);
    ranks_run(r, ask, &q);
    ranks_close(r);
    print_message("    %s %s: carried %.4f s, waited for %.4f s\n", a, b ? b : "", q.out.carried, q.out.exposed);
    assert_true(q.out.carried > 0);
    return q.out;
}

/* Of a whole step; of an evaluation, without the sums of gradients, which are queued before what a layer wants at
 * once. */
static Question step_of(Component c) {
    return (Question){.component = c};
}

static Question forward_of(Component c) {
    return (Question){.component = c, .forward = true};
}

static void the_next_block_of_a_ring_comes_while_one_is_worked_on(void **state) {
    (void)state;
    Exposure x = expose(step_of(COMPONENT_ATTENTION), "train.sequence_length=65536", apart, "mixture.ring=8", NULL);
    assert_true(x.exposed < 0.25 * x.carried);
}

/* In one round nothing can hide. */
static void the_next_round_arrives_while_experts_work(void **state) {
    (void)state;
    const char *length = "train.sequence_length=8192";
    Exposure one = expose(forward_of(COMPONENT_EXPERTS), length, apart, "mixture.expert=8",
                          "mixture.dispatch_tokens=8192"),
             eight = expose(forward_of(COMPONENT_EXPERTS), length, apart, "mixture.expert=8",
                            "mixture.dispatch_tokens=1024");
    assert_true(one.exposed > 0.9 * one.carried);
    assert_true(eight.exposed < 0.5 * eight.carried);
    assert_true(eight.exposed < 0.5 * one.exposed);
}

static void weights_of_the_next_layer_come_while_one_is_worked_on(void **state) {
    (void)state;
    Exposure dense =
        expose(step_of(COMPONENT_DENSE), "train.sequence_length=16384", "mixture.dense=8", "mixture.expert=8", NULL);
    assert_true(dense.exposed < 0.25 * dense.carried);
    Exposure experts =
        expose(step_of(COMPONENT_EXPERTS), "train.sequence_length=16384", apart, "mixture.expert_shard=8", NULL);
    assert_true(experts.exposed < 0.25 * experts.carried);
}

static void the_loss_of_one_round_is_made_while_the_next_one_arrives(void **state) {
    (void)state;
    Exposure rows = expose(forward_of(COMPONENT_VOCABULARY), "train.sequence_length=8192", apart,
                           "mixture.vocabulary=8", "mixture.loss_travel=activations"),
             parts = expose(forward_of(COMPONENT_VOCABULARY), "train.sequence_length=8192", apart,
                            "mixture.vocabulary=8", "mixture.loss_travel=weights");
    assert_true(rows.exposed < 0.75 * rows.carried);
    assert_true(parts.exposed < 0.75 * parts.carried);
}

/* ---- What must not overlap ---------------------------------------------------------------------- */

static const char one_layer[] =
    "{\"model_type\": \"mixtral\", \"vocab_size\": 262144, \"hidden_size\": 512, \"num_hidden_layers\": 1, "
    "\"num_attention_heads\": 4, \"num_key_value_heads\": 4, \"head_dim\": 8, \"num_local_experts\": 2, "
    "\"num_experts_per_tok\": 1, \"intermediate_size\": 8, \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000, "
    "\"tie_word_embeddings\": false, \"hidden_act\": \"silu\", \"sliding_window\": null}";

/* What rank 0 did in a step. */
typedef struct {
    Timeline line[STREAM_COUNT];
    int64_t step;
} Watched;

static bool watch_step(Run *r, void *context, Error *e) {
    enum { ROOM = 1 << 14 };
    Watched *w = context;
    StepResult step;
    bool watched = r->comm.mesh.rank == 0;
    for (int64_t i = 0; i < w->step; i++)
        if (!train_step(r, i, false, &step, e)) return false;
    device_settle(r->device);
    for (int s = 0; s < STREAM_COUNT && watched; s++) {
        w->line[s] = (Timeline){.work = calloc(ROOM, sizeof(Timed)), .room = ROOM};
        assert_non_null(w->line[s].work);
        r->device->stream[s].timeline = &w->line[s];
    }
    bool ok = train_step(r, w->step, false, &step, e);
    for (int s = 0; s < STREAM_COUNT && watched; s++) {
        assert_int_equal(w->line[s].lost, 0);
        r->device->stream[s].timeline = NULL;
    }
    return ok;
}

static Watched watch(RanksSetup setup, int64_t step) {
    Watched w = {.step = step};
    Ranks *r = ranks_open(setup);
    ranks_run(r, watch_step, &w);
    ranks_close(r);
    return w;
}

static void watched_free(Watched *w) {
    for (int s = 0; s < STREAM_COUNT; s++) free(w->line[s].work);
}

static bool is_work(const Timed *t, WorkKind kind, int what, Component component) {
    return t->label.kind == kind && t->label.what == what && t->label.component == component;
}

/* Head and embedding lie in one slot. With one narrow layer between them nothing else that the embedding's gradients
 * wait for comes behind the sum of the head's. */
static void a_slot_of_gradients_is_not_used_again_while_its_sum_travels(void **state) {
    (void)state;
    Watched w = watch((RanksSetup){.world = 8,
                                   .spec = one_layer,
                                   .sets = {"device=sim:h200", "compute.type=bf16", "train.sequences=8",
                                            "mixture.dense=8", "train.sequence_length=8"}},
                      0);
    const Timeline *network = &w.line[STREAM_NETWORK], *compute = &w.line[STREAM_COMPUTE];
    double summed = 0, zeroed = 0;
    for (int64_t i = 0; i < network->count && summed == 0; i++) /* the head's is the first */
        if (is_work(&network->work[i], WORK_COLLECTIVE, REDUCE_SCATTER, COMPONENT_VOCABULARY))
            summed = network->work[i].end;
    for (int64_t i = 0; i < compute->count; i++) /* the embedding's slot is the last */
        if (is_work(&compute->work[i], WORK_OP, OP_ZERO, COMPONENT_VOCABULARY) &&
            compute->work[i].end > compute->work[i].start)
            zeroed = compute->work[i].start;
    print_message("    summed at %.6f s, zeroed at %.6f s\n", summed, zeroed);
    assert_true(summed > 0 && zeroed >= summed);
    watched_free(&w);
}

/* When the AdamW of a part ended: parts are updated in the order in which they are fetched, the embedding first. */
static double updated_at(const Timeline *compute, int64_t part) {
    for (int64_t i = 0; i < compute->count; i++)
        if (is_work(&compute->work[i], WORK_OP, OP_ADAMW, COMPONENT_OPTIMIZER) && part-- == 0)
            return compute->work[i].end;
    fail_msg("no part %lld was updated", (long long)part);
    return 0;
}

/* The next layer's weights set off while this one works, and not before they are what they will be. */
static void weights_are_gathered_when_their_update_has_been_made(void **state) {
    (void)state;
    enum { LAYERS = 4 };
    Watched w = watch((RanksSetup){.world = 8,
                                   .spec = wide,
                                   .sets = {"device=sim:h200", "compute.type=bf16", "train.sequences=8",
                                            "mixture.dense=8", "train.sequence_length=8"}},
                      1);
    const Timeline *network = &w.line[STREAM_NETWORK], *compute = &w.line[STREAM_COMPUTE];
    bool gathered[LAYERS] = {false};
    for (int64_t i = 0; i < network->count; i++) {
        const Timed *t = &network->work[i];
        if (!is_work(t, WORK_COLLECTIVE, ALL_GATHER, COMPONENT_DENSE) || gathered[t->label.layer]) continue;
        gathered[t->label.layer] = true; /* in forward; in backward it is gathered again */
        assert_true(t->start >= updated_at(compute, t->label.layer + 1));
    }
    for (int i = 0; i < LAYERS; i++) assert_true(gathered[i]);
    watched_free(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_next_block_of_a_ring_comes_while_one_is_worked_on),
        cmocka_unit_test(the_next_round_arrives_while_experts_work),
        cmocka_unit_test(weights_of_the_next_layer_come_while_one_is_worked_on),
        cmocka_unit_test(the_loss_of_one_round_is_made_while_the_next_one_arrives),
        cmocka_unit_test(a_slot_of_gradients_is_not_used_again_while_its_sum_travels),
        cmocka_unit_test(weights_are_gathered_when_their_update_has_been_made),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
