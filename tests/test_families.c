/* Whole models and whole steps: from the same weights and tokens mop computes what transformers computes, in every
 * family and however it is run, and its gradients are the derivatives of its losses. tests/fixtures/make.py makes the
 * references and tells what is in them.
 *
 * Letters: B sequences a step, S tokens a sequence, V vocabulary. */
#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"
#include "ranks.h"
#include "testing.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* cmocka.h wants these before it */
#include <cmocka.h>

enum { STEPS = 5, B = 2, S = 24 };

typedef struct {
    const char *name; /* folder in tests/fixtures */
    bool fused;       /* it has model-fused.safetensors too */
} Fixture;

/* A way to run a model. */
typedef struct {
    const char *name, *config, *weights; /* files of the fixture; weights "": the folder itself */
    int world;
    const char *sets[4]; /* of the configuration */
} Way;

/* ---- References ------------------------------------------------------------------------------- */

typedef struct {
    Safetensors file;
    int64_t *tokens, *targets, *positions; /* [STEPS, B, S]; logits and gradients are of step 0's */
} Reference;

static const StoredTensor *stored(const Reference *r, const char *prefix, const char *name) {
    char full[256];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    const StoredTensor *t = safetensors_find(&r->file, full);
    if (!t) fail_msg("%s has no tensor %s", r->file.path.text, full);
    return t;
}

/* The bytes of a tensor; the caller frees. */
static void *stored_values(const Reference *r, const StoredTensor *t) {
    Error e = {0};
    size_t bytes = (size_t)(t->end - t->begin);
    void *values = malloc(bytes);
    assert_non_null(values);
    if (!safetensors_read(&r->file, t->begin, bytes, values, &e)) fail_msg("%s", e.text);
    return values;
}

static int64_t *stored_integers(const Reference *r, const char *name) {
    const StoredTensor *t = stored(r, "", name);
    assert_true(t->type == STORED_I64 && t->elements == STEPS * B * S);
    return stored_values(r, t);
}

static double *stored_reals(const Reference *r, const StoredTensor *t) {
    void *raw = stored_values(r, t);
    double *values = malloc((size_t)t->elements * sizeof *values);
    assert_non_null(values);
    stored_convert(FP64, values, t->type, raw, t->elements);
    free(raw);
    return values;
}

static double stored_number(const Reference *r, const char *name, int64_t at) {
    const StoredTensor *t = stored(r, "", name);
    assert_true(at < t->elements);
    double *values = stored_reals(r, t), number = values[at];
    free(values);
    return number;
}

static Reference open_reference(const Fixture *f) {
    Reference r = {0};
    Error e = {0};
    char path[256];
    snprintf(path, sizeof path, "tests/fixtures/%s/reference.safetensors", f->name);
    if (!safetensors_open(&r.file, path, &e)) fail_msg("%s", e.text);
    r.tokens = stored_integers(&r, "steps.tokens");
    r.targets = stored_integers(&r, "steps.targets");
    r.positions = stored_integers(&r, "steps.positions");
    return r;
}

static void close_reference(Reference *r) {
    free(r->tokens);
    free(r->targets);
    free(r->positions);
    safetensors_close(&r->file);
}

/* ---- Ranks with the fixture's weights --------------------------------------------------------- */

static bool load_weights(Run *run, void *path, Error *e) {
    Checkpoints *c = checkpoints_open("", "", run->spec, run->config->compute_type, run->store, NULL, &run->comm, e);
    bool ok = c && checkpoint_load_weights(c, path, e);
    checkpoints_close(c);
    return ok;
}

static void add_sets(RanksSetup *s, const char *const *more, size_t most) {
    size_t n = 0;
    while (s->sets[n]) n++;
    for (size_t i = 0; i < most && more[i]; i++) s->sets[n++] = more[i];
    assert_true(n < COUNT(s->sets));
}

/* `more` ends with NULL. */
static Ranks *open_ranks(const Fixture *f, const Way *way, const char *const *more) {
    static const char *const common[] = {
        "train.sequence_length=24",    "mixture.loss_chunk=7",       "optimizer.learning_rate=5e-3",
        "optimizer.schedule=constant", "optimizer.beta1=0.9",        "optimizer.beta2=0.95",
        "optimizer.epsilon=1e-8",      "optimizer.weight_decay=0.1", "optimizer.clip=2.2"};
    char config[256], weights[256];
    snprintf(config, sizeof config, "tests/fixtures/%s/%s", f->name, way->config);
    snprintf(weights, sizeof weights, "tests/fixtures/%s/%s", f->name, way->weights);
    RanksSetup setup = {.world = way->world, .spec = config};
    add_sets(&setup, common, COUNT(common));
    add_sets(&setup, way->sets, COUNT(way->sets));
    add_sets(&setup, more, 8);
    Ranks *r = ranks_open(setup);
    ranks_run(r, load_weights, weights);
    return r;
}

/* ---- Batches ---------------------------------------------------------------------------------- */

typedef struct {
    const Reference *reference;
    int64_t step;
} Given;

/* A sequence of the reference's batch `step`. */
static bool give_sequence(Run *run, void *context, int64_t sequence, Batch *b, Error *e) {
    (void)e;
    const Given *given = context;
    const Reference *ref = given->reference;
    int64_t window = run->spec->window;
    int32_t start = 0;
    b->trained = 0;
    for (int32_t i = 0; i < S; i++) {
        int64_t at = (given->step * B + sequence) * S + i, target = ref->targets[at], position = ref->positions[at];
        if (position == 0) start = i;
        b->token[i] = (int32_t)ref->tokens[at];
        b->target[i] = target < 0 ? -1 : (int32_t)target;
        b->position[i] = (int32_t)position;
        b->first[i] = window ? (int32_t)max64(start, i + 1 - window) : start;
        b->last[i] = i + 1;
        b->sequence[i] = 0;
        b->trained += target >= 0;
    }
    b->tokens = b->real[0] = S;
    return true;
}

static bool give_batch(Run *run, const Reference *ref, int64_t step, Error *e) {
    Given given = {ref, step};
    return run_upload(run, give_sequence, &given, e);
}

/* ---- What ranks are asked --------------------------------------------------------------------- */

typedef struct {
    const Reference *reference;
    int64_t step;
    StepResult result; /* rank 0's */
    double *logits;    /* [B, S, V] */
} Task;

static bool step_body(Run *run, void *context, Error *e) {
    Task *t = context;
    StepResult result;
    if (!give_batch(run, t->reference, t->step, e) || !train_loaded_step(run, t->step, false, &result, e)) return false;
    if (run->comm.mesh.rank == 0) t->result = result;
    return true;
}

/* One step on the reference's batch; its gradients stay in the stores. */
static StepResult take_step(Ranks *r, const Reference *ref, int64_t step) {
    Task t = {.reference = ref, .step = step};
    ranks_run(r, step_body, &t);
    return t.result;
}

/* Logits of a micro-batch whose first sequence is number `sequence` of the batch. */
static void copy_logits(Run *run, const Weights *head, const MicroBatch *b, int64_t sequence, double *out) {
    int64_t V = run->spec->vocabulary;
    double host[128];
    MUST(V <= (int64_t)COUNT(host));
    Mark mark = arena_mark(&run->work);
    Tensor logits = arena_tensor(&run->work, run->model.sum, DIM(vocabulary_room(&run->model)));
    Tensor values = tensor_at(host, run->model.sum, DIM(V));
    for (int64_t row = 0; row < b->tokens; row++) {
        head_logits(&run->model, head, b, row, run->comm.mesh.rank, logits);
        device_read(run->model.compute, host, logits, READ_LOSS);
        int64_t at = ((sequence + row / S * run->comm.mesh.world) * S + row % S) * V;
        for (int64_t v = 0; v < V; v++) out[at + v] = tensor_get(values, v);
    }
    arena_reset(&run->work, mark);
}

static void forward_layers(Run *run) {
    Saved kept;
    Weights w = store_fetch(run->store, 0, 1);
    for (int64_t i = 0; i < run->micro_batches; i++) embed_forward(&run->model, &w, &run->micro[i]);
    store_release(run->store, 0);
    for (int64_t l = 0; l < run->spec->layers; l++) {
        w = store_fetch(run->store, l + 1, l + 2);
        for (int64_t i = 0; i < run->micro_batches; i++) layer_forward(&run->model, l, &w, &kept, &run->micro[i]);
        store_release(run->store, l + 1);
    }
}

static bool logits_body(Run *run, void *context, Error *e) {
    Task *t = context;
    int64_t sequence = run->comm.mesh.rank, head = run->spec->layers + 1;
    if (!give_batch(run, t->reference, 0, e)) return false;
    run->model.evaluating = true;
    run_begin_pass(run, false);
    forward_layers(run);
    Weights w = store_fetch(run->store, head, -1);
    for (int64_t i = 0; i < run->micro_batches; i++) {
        copy_logits(run, &w, &run->micro[i], sequence, t->logits);
        sequence += run->micro[i].sequences * run->comm.mesh.world;
    }
    store_release(run->store, head);
    run_end_pass(run);
    run->model.evaluating = false;
    return true;
}

/* ---- Errors ----------------------------------------------------------------------------------- */

/* How an answer and the reference [n] lie to each other. */
typedef struct {
    double difference, answer, reference; /* norms */
    double product;
} Agreement;

static Agreement agree(const Reference *r, const StoredTensor *t, const double *answer) {
    double *expected = stored_reals(r, t);
    Agreement sum = {0};
    for (int64_t i = 0; i < t->elements; i++) {
        sum.difference += (answer[i] - expected[i]) * (answer[i] - expected[i]);
        sum.answer += answer[i] * answer[i];
        sum.reference += expected[i] * expected[i];
        sum.product += answer[i] * expected[i];
    }
    free(expected);
    return (Agreement){sqrt(sum.difference), sqrt(sum.answer), sqrt(sum.reference), sum.product};
}

static Agreement join(Agreement a, Agreement b) {
    return (Agreement){hypot(a.difference, b.difference), hypot(a.answer, b.answer), hypot(a.reference, b.reference),
                       a.product + b.product};
}

/* The largest relative errors of a way. */
typedef struct {
    double logits, loss, norm, gradient;
    char worst[200]; /* tensor, of `gradient` */
    double cosine;   /* between all gradients and the reference's */
} Errors;

static void raise_to(double *most, double error) {
    if (error > *most || isnan(error)) *most = error; /* no bound holds for NaN */
}

static void measure_number(double *most, double answer, double expected) {
    raise_to(most, fabs(answer - expected) / fabs(expected));
}

static Agreement agree_gradient(const Reference *r, const char *prefix, const NamedTensor *t) {
    const StoredTensor *s = stored(r, prefix, t->name);
    bool same = s->dims == t->dims && memcmp(s->dim, t->dim, (size_t)t->dims * sizeof *t->dim) == 0;
    if (!same) fail_msg("%s is of another shape", t->name);
    return agree(r, s, t->value);
}

/* A gradient's error is the norm of the difference over the norm of the tensor, or over a thousandth of the norm of
 * all where that is more. What is exactly zero in the reference (an expert without tokens) is exactly zero here. */
static void measure_gradients(Ranks *ranks, const Reference *r, const char *prefix, Errors *out) {
    Collection c = ranks_collect(ranks, STORE_GRADIENT);
    Agreement all = {0};
    int64_t zeros = 0, there = 0;
    for (int64_t i = 0; i < r->file.count; i++) there += strncmp(r->file.tensors[i].name, prefix, strlen(prefix)) == 0;
    assert_int_equal(there, c.count);
    for (int64_t i = 0; i < c.count; i++) all = join(all, agree_gradient(r, prefix, &c.tensor[i]));
    for (int64_t i = 0; i < c.count; i++) {
        Agreement one = agree_gradient(r, prefix, &c.tensor[i]);
        double error = one.difference / fmax(one.reference, 1e-3 * all.reference);
        if (one.reference == 0 && one.answer != 0) fail_msg("%s must be zero, not %g", c.tensor[i].name, one.answer);
        zeros += one.reference == 0;
        if (!(error <= out->gradient)) snprintf(out->worst, sizeof out->worst, "%s%s", prefix, c.tensor[i].name);
        raise_to(&out->gradient, error);
    }
    assert_true(zeros >= 3); /* gate, up and down of the expert that make.py keeps idle */
    out->cosine = fmin(out->cosine, all.product / (all.answer * all.reference));
    collection_free(&c);
}

static void measure_logits(Ranks *ranks, const Reference *r, Errors *out) {
    const StoredTensor *s = stored(r, "", "logits");
    Task t = {.reference = r, .logits = malloc((size_t)s->elements * sizeof *t.logits)};
    assert_non_null(t.logits);
    ranks_run(ranks, logits_body, &t);
    Agreement a = agree(r, s, t.logits);
    out->logits = a.difference / a.reference;
    free(t.logits);
}

/* ---- Against transformers --------------------------------------------------------------------- */

/* STEPS of AdamW. make.py leaves the balance loss out of them and of their gradients; its value is compared all the
 * same: ours is the mean over sequences. */
static void measure_steps(const Fixture *f, const Way *way, const Reference *r, Errors *out) {
    Ranks *ranks = open_ranks(f, way, (const char *const[]){"train.sequences=2", "loss.balance=0", NULL});
    measure_logits(ranks, r, out);
    for (int64_t step = 0; step < STEPS; step++) {
        StepResult one = take_step(ranks, r, step);
        measure_number(&out->loss, one.loss, stored_number(r, "steps.loss", step));
        measure_number(&out->norm, one.norm, stored_number(r, "steps.grad_norm", step));
        if (step > 0) continue;
        measure_gradients(ranks, r, "grad.", out);
        double each[] = {stored_number(r, "balance_loss_each", 0), stored_number(r, "balance_loss_each", 1)};
        measure_number(&out->loss, one.balance, (each[0] + each[1]) / B);
    }
    ranks_close(ranks);
}

/* The first sequence alone, where the mean over sequences and transformers' pooling over the batch are one, with the
 * model's own coefficient of the balance loss. */
static void measure_balance(const Fixture *f, const Way *way, const Reference *r, Errors *out) {
    Ranks *ranks = open_ranks(f, way, (const char *const[]){"train.sequences=1", NULL});
    StepResult one = take_step(ranks, r, 0);
    measure_gradients(ranks, r, "balance.grad.", out);
    measure_number(&out->loss, one.loss, stored_number(r, "balance.loss", 0));
    measure_number(&out->loss, one.balance, stored_number(r, "balance.balance_loss", 0));
    measure_number(&out->loss, one.loss + ranks->spec.balance * one.balance, stored_number(r, "balance.total", 0));
    ranks_close(ranks);
}

static Errors measure(const Fixture *f, const Way *way) {
    Reference r = open_reference(f);
    Errors out = {.cosine = 1};
    measure_steps(f, way, &r, &out);
    measure_balance(f, way, &r, &out);
    print_message("    %-31s logits %.1e  losses %.1e  norms %.1e  gradients %.1e  %s\n", way->name, out.logits,
                  out.loss, out.norm, out.gradient, out.worst);
    close_reference(&r);
    return out;
}

static const Way exact_ways[] = {
    {"as saved", "config.json", "", 1, {0}},
    {"v4 config, plain kernels", "config-v4.json", "model.safetensors", 1, {"device=cpu:plain"}},
    {"fused experts, recomputed", "config.json", "model-fused.safetensors", 1, {"compute.activations=recompute"}},
    {"micro-batches, updates at once", "config.json", "", 1, {"train.micro_batches=2", "optimizer.update=blocking"}},
    {"2 ranks, all sharded", "config.json", "", 2, {"mixture.expert=2"}},
    {"2 ranks, all copied, fused", "config.json", "model-fused.safetensors", 2, {"mixture.dense=1"}},
    {"3 ranks, sharded, recomputed", "config-v4.json", "", 3, {"mixture.expert=3", "compute.activations=recompute"}},
    {"3 ranks, only dense sharded", "config.json", "", 3, {0}},
    {"fp64", "config.json", "", 1, {"compute.type=fp64"}},
    {"fp64, experts sharded", "config.json", "", 2, {"compute.type=fp64", "mixture.dense=1", "mixture.expert=2"}},
};

/* What is left are the roundings of the reference: fp64 comes no nearer. The first steps of AdamW make updates of
 * full size out of gradients that are nothing but rounding, so their losses and norms are further off. */
static void logits_gradients_and_first_losses_are_those_of_transformers(void **state) {
    const Fixture *f = *state;
    for (size_t i = 0; i < COUNT(exact_ways); i++) {
        if (!f->fused && strstr(exact_ways[i].weights, "fused")) continue;
        Errors found = measure(f, &exact_ways[i]);
        assert_true(found.logits < 1e-5);
        assert_true(found.gradient < 1e-4);
        assert_true(found.loss < 1e-5);
        assert_true(found.norm < 1e-4);
    }
}

/* The row of the padding token after STEPS, over what it was, element by element: least and most. */
static void row_after_steps(const Fixture *f, const char *how, int world, double *least, double *most) {
    static const Way one = {"", "config.json", "", 1, {"compute.type=fp64"}},
                     two = {"", "config.json", "", 2, {"compute.type=fp64", "mixture.vocabulary=2"}};
    const char *const more[] = {"train.sequences=2", how, NULL};
    Reference r = open_reference(f);
    Ranks *ranks = open_ranks(f, world == 1 ? &one : &two, more);
    int64_t H = ranks->spec.hidden, first = ranks->spec.pad * H;
    Collection before = ranks_collect(ranks, STORE_WEIGHT);
    for (int64_t step = 0; step < STEPS; step++) take_step(ranks, &r, step);
    Collection after = ranks_collect(ranks, STORE_WEIGHT);
    *least = INFINITY;
    *most = -INFINITY;
    for (int64_t i = 0; i < before.count; i++) {
        if (strcmp(before.tensor[i].name, "model.embed_tokens.weight") != 0) continue;
        for (int64_t j = first; j < first + H; j++) {
            double ratio = after.tensor[i].value[j] / before.tensor[i].value[j];
            *least = fmin(*least, ratio);
            *most = fmax(*most, ratio);
        }
    }
    collection_free(&before);
    collection_free(&after);
    ranks_close(ranks);
    close_reference(&r);
}

/* A gradient of zeros is a gradient: torch's AdamW decays the row, and so do we. */
static void the_embedding_of_padding_decays_and_is_not_trained(void **state) {
    double least, most, decay = pow(1 - 5e-3 * 0.1, STEPS);
    for (int world = 1; world <= 2; world++) {
        row_after_steps(*state, "train.pad_row=frozen", world, &least, &most);
        assert_true(fabs(least - decay) < 1e-12 && fabs(most - decay) < 1e-12);
    }
}

static void the_embedding_of_padding_is_trained_where_it_is_asked_for(void **state) {
    double least, most, decay = pow(1 - 5e-3 * 0.1, STEPS);
    for (int world = 1; world <= 2; world++) {
        row_after_steps(*state, "train.pad_row=trained", world, &least, &most);
        assert_true(fabs(least - decay) > 1e-3 && fabs(most - decay) > 1e-3);
    }
}

static void bf16_is_as_near_to_transformers_as_its_rounding_lets_it(void **state) {
    static const Way way = {"bf16", "config.json", "", 1, {"compute.type=bf16"}};
    Errors found = measure(*state, &way);
    print_message("    cosine of the gradients %.5f\n", found.cosine);
    assert_true(found.loss < 0.02);
    assert_true(found.cosine > 0.99);
}

/* ---- Against differences ---------------------------------------------------------------------- */

static const double z_coefficient = 0.02, step_length = 2e-4;

typedef struct {
    Ranks *ranks;
    const Reference *reference;
    Collection weights;
    double *load; /* [E] rows of each expert before anything moved */
} Slopes;

/* The loss of training, with its balance and z parts. The gradient of the balance part takes the counts of tokens per
 * expert for constants; so they must be. */
static double total_loss(const Slopes *p) {
    const Ranks *r = p->ranks;
    StepResult s = take_step(p->ranks, p->reference, 0);
    assert_memory_equal(r->run[0]->model.load, p->load, (size_t)r->spec.experts * sizeof *p->load);
    return s.loss + r->spec.balance * s.balance + z_coefficient * s.router_z;
}

static double norm_of(const double *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
    return sqrt(sum);
}

/* d loss / dt of `t` + t direction at t = 0, from five points; the error falls with the fourth power of the step. */
static double slope(const Slopes *p, NamedTensor *t, const double *direction) {
    static const struct { double at, share; } points[] = {{-2, 1. / 12}, {-1, -8. / 12}, {1, 8. / 12}, {2, -1. / 12}};
    double sum = 0, h = step_length / norm_of(direction, t->count), *resting = t->value;
    t->value = malloc((size_t)t->count * sizeof *t->value);
    assert_non_null(t->value);
    for (size_t i = 0; i < COUNT(points); i++) {
        for (int64_t j = 0; j < t->count; j++) t->value[j] = resting[j] + points[i].at * h * direction[j];
        ranks_put(p->ranks, STORE_WEIGHT, &p->weights);
        sum += points[i].share * total_loss(p) / h;
    }
    free(t->value);
    t->value = resting;
    return sum;
}

/* Moves a whole tensor in a random direction, so that every element counts. */
static double slope_error(const Slopes *p, NamedTensor *t, const NamedTensor *gradient, double least, uint64_t seed) {
    double *direction = malloc((size_t)t->count * sizeof *direction), expected = 0;
    assert_non_null(direction);
    fill_normal(tensor_at(direction, FP64, DIM(t->count)), seed);
    for (int64_t i = 0; i < t->count; i++) expected += gradient->value[i] * direction[i];
    double error = fabs(slope(p, t, direction) - expected) / fmax(norm_of(gradient->value, t->count), least);
    free(direction);
    return error;
}

static void gradients_are_slopes_of_the_loss(void **state) {
    static const Way way = {"fp64", "config.json", "", 1, {"compute.type=fp64"}};
    static const char *const sets[] = {"train.sequences=2", "optimizer.learning_rate=0", "loss.router_z=0.02", NULL};
    Reference r = open_reference(*state);
    Slopes p = {.ranks = open_ranks(*state, &way, sets), .reference = &r};
    double load[MAX_EXPERTS], worst = 0;
    StepResult first = take_step(p.ranks, &r, 0);
    Collection gradients = ranks_collect(p.ranks, STORE_GRADIENT);
    p.weights = ranks_collect(p.ranks, STORE_WEIGHT);
    p.load = memcpy(load, p.ranks->run[0]->model.load, (size_t)p.ranks->spec.experts * sizeof *load);
    for (int64_t i = 0; i < p.weights.count; i++) {
        NamedTensor *t = &p.weights.tensor[i];
        double error = slope_error(&p, t, &gradients.tensor[i], 1e-3 * first.norm, (uint64_t)i);
        if (!(error < 1e-6)) fail_msg("the gradient of %s is off by %.1e", t->name, error);
        worst = fmax(worst, error);
    }
    print_message("    %lld tensors, largest error %.1e\n", (long long)p.weights.count, worst);
    collection_free(&gradients);
    collection_free(&p.weights);
    ranks_close(p.ranks);
    close_reference(&r);
}

/* ---- Families --------------------------------------------------------------------------------- */

static const Fixture olmoe = {"olmoe", true}, mixtral = {"mixtral", true}, qwen3_moe = {"qwen3_moe", false},
                     qwen3_moe_window = {"qwen3_moe_window", false}, olmoe_pad = {"olmoe_pad", false},
                     qwen3_moe_pad = {"qwen3_moe_pad", false};

#define OF(test, fixture)                                                                                              \
    { #test " (" #fixture ")", test, NULL, NULL, (void *)(uintptr_t) & (fixture) }
#define OF_ALL(test) OF(test, olmoe), OF(test, mixtral), OF(test, qwen3_moe), OF(test, qwen3_moe_window)

int main(void) {
    const struct CMUnitTest tests[] = {
        OF_ALL(logits_gradients_and_first_losses_are_those_of_transformers),
        OF(logits_gradients_and_first_losses_are_those_of_transformers, olmoe_pad),
        OF(logits_gradients_and_first_losses_are_those_of_transformers, qwen3_moe_pad),
        OF(the_embedding_of_padding_decays_and_is_not_trained, olmoe_pad),
        OF(the_embedding_of_padding_is_trained_where_it_is_asked_for, olmoe_pad),
        OF_ALL(bf16_is_as_near_to_transformers_as_its_rounding_lets_it),
        OF_ALL(gradients_are_slopes_of_the_loss),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
