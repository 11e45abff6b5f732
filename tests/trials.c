/* Trials: see trials.h. */
#include "trials.h"

#include "base/random.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

const char *const families[FAMILIES] = {"olmoe", "qwen3_moe", "qwen3_moe_window", "mixtral"};
const Layout alone = {1, ""};

/* clang-format off */
const Layout mixture[] = {
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
const size_t mixtures = COUNT(mixture);

void outcome_free(Outcome *o) {
    Collection *all[] = {&o->gradient, &o->master, &o->m, &o->v};
    for (size_t i = 0; i < COUNT(all); i++) collection_free(all[i]);
}

/* ---- What is trained -------------------------------------------------------------------------- */

static double draw(const char *name, int64_t i) {
    uint64_t seed = 7;
    for (; *name; name++) seed = seed * 31 + (unsigned char)*name;
    return random_normal(seed, RANDOM_TEST, 3, (uint64_t)i);
}

/* Norms that are not 1, matrices of a size that bends things. */
static void strengthen(Collection *weights) {
    for (int64_t i = 0; i < weights->count; i++) {
        NamedTensor *t = &weights->tensor[i];
        for (int64_t j = 0; j < t->count; j++)
            t->value[j] = t->dims == 1 ? 1 + 0.3 * draw(t->name, j) : t->value[j] * 6;
    }
}

/* A layout's words as settings, in `memory`; returns how many. */
static int layout_sets(Layout l, const char **sets, int room, char *memory, size_t bytes) {
    int n = 0;
    for (const char *at = l.settings; *at; n++) {
        size_t length = strcspn(at, " ");
        bool whole = memchr(at, '.', strcspn(at, "= ")) != NULL;
        int used = snprintf(memory, bytes, "%s%.*s", whole ? "" : "mixture.", (int)length, at);
        assert_true(n < room && used > 0 && (size_t)used < bytes);
        sets[n] = memory;
        memory += used + 1;
        bytes -= (size_t)used + 1;
        at += length + strspn(at + length, " ");
    }
    return n;
}

Ranks *trial_open(const char *family, Layout l, const Trial *trial) {
    char path[64], words[400], *documents = random_documents(40, 30, TRIAL_VOCABULARY, 1);
    snprintf(path, sizeof path, "tests/fixtures/%s/config.json", family);
    RanksSetup setup = {
        .world = l.world,
        .spec = trial->spec ? trial->spec : path,
        .documents = trial->documents ? trial->documents : documents,
        .roomy = trial->roomy,
        .sets = {"compute.type=fp64", "train.sequence_length=24", "train.sequences=5", "loss.balance=0.02",
                 "loss.router_z=0.003", "mixture.loss_chunk=20", "optimizer.clip=0.3", "optimizer.learning_rate=3e-3",
                 "optimizer.weight_decay=0.1"},
    };
    int n = 0, room = (int)COUNT(setup.sets) - 1;
    while (setup.sets[n]) n++;
    for (int i = 0; i < TRIAL_OPTIONS && trial->options[i]; i++) setup.sets[n++] = trial->options[i];
    layout_sets(l, setup.sets + n, room - n, words, sizeof words);
    Ranks *r = ranks_open(setup);
    free(documents);
    Collection weights = ranks_collect(r, STORE_MASTER);
    strengthen(&weights);
    if (trial->rig) trial->rig(r, &weights);
    ranks_put(r, STORE_MASTER, &weights);
    collection_free(&weights);
    return r;
}

Outcome trial_train(const char *family, Layout l, const Trial *trial) {
    Outcome o;
    Ranks *r = trial_open(family, l, trial);
    ranks_train(r, 0, 1, o.step);
    o.gradient = ranks_collect(r, STORE_GRADIENT);
    ranks_train(r, 1, TRIAL_STEPS - 1, o.step + 1);
    o.master = ranks_collect(r, STORE_MASTER);
    o.m = ranks_collect(r, STORE_M);
    o.v = ranks_collect(r, STORE_V);
    ranks_close(r);
    return o;
}

/* ---- What came of it -------------------------------------------------------------------------- */

void assert_near(const char *what, const char *number, double got, double expected, double bound) {
    if (!(fabs(got - expected) <= bound * fabs(expected)))
        fail_msg("%s: %s is %.17g, expected %.17g; off by %.3g, allowed %.3g", what, number, got, expected,
                 fabs(got - expected) / fabs(expected), bound);
}

void assert_outcomes_close(const char *what, const Outcome *got, const Outcome *expected, double bound) {
    for (int i = 0; i < TRIAL_STEPS; i++) {
        const StepResult *g = &got->step[i], *x = &expected->step[i];
        assert_near(what, "the loss", g->loss, x->loss, bound);
        assert_near(what, "the balance loss", g->balance, x->balance, bound);
        assert_near(what, "the z loss", g->router_z, x->router_z, bound);
        assert_near(what, "the gradient norm", g->norm, x->norm, bound);
        assert_int_equal(g->trained, x->trained);
        assert_true(g->load == x->load);
        assert_true(g->finite);
    }
    char text[400];
    const struct {
        const char *name;
        const Collection *got, *expected;
    } rows[] = {{"gradients of step 1", &got->gradient, &expected->gradient},
                {"weights", &got->master, &expected->master},
                {"first moments", &got->m, &expected->m},
                {"second moments", &got->v, &expected->v}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        snprintf(text, sizeof text, "%s, %s", what, rows[i].name);
        assert_collections_close(text, rows[i].got, rows[i].expected, bound);
    }
}

void assert_outcomes_same_bits(const char *what, const Outcome *got, const Outcome *expected) {
    assert_results_same_bits(what, got->step, expected->step, TRIAL_STEPS);
    assert_collections_same_bits(what, &got->gradient, &expected->gradient);
    assert_collections_same_bits(what, &got->master, &expected->master);
    assert_collections_same_bits(what, &got->m, &expected->m);
    assert_collections_same_bits(what, &got->v, &expected->v);
}

bool trial_due(void) {
    static int asked;
    return asked++ % MOP_TEST_SHARE == 0;
}

void assert_agrees(const char *family, Layout l, const Trial *trial, const Outcome *expected, double bound) {
    char what[300];
    if (!trial_due()) return;
    snprintf(what, sizeof what, "%s, %d ranks, %s", family, l.world, l.settings);
    Outcome o = trial_train(family, l, trial);
    assert_outcomes_close(what, &o, expected, bound);
    outcome_free(&o);
}

void assert_zero_gradient(const Collection *gradient, const char *part) {
    int found = 0;
    for (int64_t i = 0; i < gradient->count; i++) {
        const NamedTensor *t = &gradient->tensor[i];
        if (!strstr(t->name, part)) continue;
        found++;
        for (int64_t j = 0; j < t->count; j++)
            if (t->value[j] != 0)
                fail_msg("%s[%lld] has gradient %g, expected exactly 0", t->name, (long long)j, t->value[j]);
    }
    assert_true(found > 0);
}

/* ---- Rigs ------------------------------------------------------------------------------------- */

const char calm[] = "optimizer.epsilon=1e-4";

static double wish_last(int64_t expert, int64_t experts) {
    return 6 * (double)(expert - experts);
}

static double wish_first(int64_t expert, int64_t experts) {
    (void)experts;
    return -6 * (double)expert;
}

static double wish_not_second(int64_t expert, int64_t experts) {
    (void)experts;
    return expert == 1 ? -30 : 0;
}

void to_the_last_experts(Ranks *r, Collection *weights) {
    collection_steer(weights, r->spec.experts, wish_last);
}

void to_the_first_experts(Ranks *r, Collection *weights) {
    collection_steer(weights, r->spec.experts, wish_first);
}

void never_to_the_second_expert(Ranks *r, Collection *weights) {
    collection_steer(weights, r->spec.experts, wish_not_second);
}
