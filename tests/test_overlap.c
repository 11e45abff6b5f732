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

/* Of a step on rank 0: when the sum of the head's gradients has ended, and when the embedding's are set to 0. */
typedef struct {
    double summed, zeroed;
} Reuse;

enum { ROOM = 1 << 14 };

static bool find_reuse(Run *r, void *context, Error *e) {
    Reuse *out = context;
    StepResult step;
    Timeline line[STREAM_COUNT] = {{0}};
    device_settle(r->device);
    for (int s = 0; s < STREAM_COUNT; s++) {
        line[s] = (Timeline){.work = calloc(ROOM, sizeof(Timed)), .room = ROOM};
        r->device->stream[s].timeline = &line[s];
    }
    bool ok = train_step(r, 0, false, &step, e), found = false;
    const Timeline *network = &line[STREAM_NETWORK], *compute = &line[STREAM_COMPUTE];
    for (int64_t i = 0; r->comm.mesh.rank == 0 && i < network->count && !found; i++) {
        const Timed *t = &network->work[i];
        found = t->label.kind == WORK_COLLECTIVE && t->label.what == REDUCE_SCATTER &&
                t->label.component == COMPONENT_VOCABULARY;
        out->summed = t->end;
    }
    for (int64_t i = 0; r->comm.mesh.rank == 0 && i < compute->count; i++) {
        const Timed *t = &compute->work[i];
        bool zero = t->label.kind == WORK_OP && t->label.what == OP_ZERO;
        if (zero && t->label.component == COMPONENT_VOCABULARY && t->end > t->start) out->zeroed = t->start;
    }
    if (r->comm.mesh.rank == 0) assert_true(found && network->lost + compute->lost == 0);
    for (int s = 0; s < STREAM_COUNT; s++) {
        r->device->stream[s].timeline = NULL;
        free(line[s].work);
    }
    return ok;
}

/* Head and embedding lie in one slot. With one narrow layer between them nothing else that the embedding's gradients
 * wait for comes behind the sum of the head's. */
static void a_slot_of_gradients_is_not_used_again_while_its_sum_travels(void **state) {
    (void)state;
    RanksSetup setup = {.world = 8,
                        .spec = one_layer,
                        .sets = {"device=sim:h200", "compute.type=bf16", "train.sequences=8", "mixture.dense=8",
                                 "train.sequence_length=8"}};
    Reuse reuse = {0};
    Ranks *r = ranks_open(setup);
    ranks_run(r, find_reuse, &reuse);
    ranks_close(r);
    print_message("    summed at %.6f s, zeroed at %.6f s\n", reuse.summed, reuse.zeroed);
    assert_true(reuse.summed > 0 && reuse.zeroed >= reuse.summed);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_next_block_of_a_ring_comes_while_one_is_worked_on),
        cmocka_unit_test(the_next_round_arrives_while_experts_work),
        cmocka_unit_test(weights_of_the_next_layer_come_while_one_is_worked_on),
        cmocka_unit_test(the_loss_of_one_round_is_made_while_the_next_one_arrives),
        cmocka_unit_test(a_slot_of_gradients_is_not_used_again_while_its_sum_travels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
