/* Whole models, whole steps: mop computes what transformers computes from the same weights and tokens, in every family and however
 * it is run, and its gradients are the derivatives of its losses.
 *
 * The references are made by tests/fixtures/make.py, which tells what is in them. A trial opens ranks as the program does, runs the
 * reference's steps, and puts each answer where the reference has its own: in an array of doubles laid out like the file, NaN until
 * answered. Ranks only write answers; what they are worth is decided by the test's own thread.
 *
 * Letters: B sequences a step, S tokens a sequence, V vocabulary. */
#include "checkpoint/safetensors.h"
#include "plan/plan.h"
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

/* ---- References ------------------------------------------------------------------------------- */

typedef struct {
    Safetensors file;
    double *value;                         /* every fp32 tensor, where the file has it */
    int64_t count;                         /* of `value` */
    int64_t *tokens, *targets, *positions; /* [STEPS, B, S]; logits and gradients are of step 0's */
} Reference;

static int64_t place_of(const Reference *r, const StoredTensor *t) {
    return (t->begin - r->file.data) / (int64_t)sizeof(float);
}

static const StoredTensor *tensor_of(const Reference *r, const char *prefix, const char *name) {
    char full[256];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    const StoredTensor *t = safetensors_find(&r->file, full);
    MUST(t);
    return t;
}

static int64_t *read_integers(const Reference *r, const char *name) {
    const StoredTensor *t = tensor_of(r, "", name);
    Error e = {0};
    int64_t *values = malloc(STEPS * B * S * sizeof *values);
    MUST(values && t->type == STORED_I64 && t->elements == STEPS * B * S);
    if (!safetensors_read(&r->file, t->begin, STEPS * B * S * sizeof *values, values, &e)) fail_msg("%s", e.text);
    return values;
}

static void read_values(Reference *r) {
    Error e = {0};
    r->count = (r->file.bytes - r->file.data) / (int64_t)sizeof(float);
    r->value = calloc((size_t)r->count, sizeof *r->value);
    float *stored = malloc((size_t)r->count * sizeof *stored);
    MUST(r->value && stored);
    if (!safetensors_read(&r->file, r->file.data, (size_t)r->count * sizeof *stored, stored, &e)) fail_msg("%s", e.text);
    for (int64_t i = 0; i < r->file.count; i++) {
        const StoredTensor *t = &r->file.tensors[i];
        int64_t at = place_of(r, t);
        for (int64_t j = 0; t->type == STORED_F32 && j < t->elements; j++) r->value[at + j] = stored[at + j];
    }
    free(stored);
}

static Reference open_reference(const Fixture *f) {
    Reference r = {0};
    Error e = {0};
    char path[256];
    snprintf(path, sizeof path, "tests/fixtures/%s/reference.safetensors", f->name);
    if (!safetensors_open(&r.file, path, &e)) fail_msg("%s", e.text);
    read_values(&r);
    r.tokens = read_integers(&r, "steps.tokens");
    r.targets = read_integers(&r, "steps.targets");
    r.positions = read_integers(&r, "steps.positions");
    return r;
}

static void close_reference(Reference *r) {
    free(r->tokens);
    free(r->targets);
    free(r->positions);
    free(r->value);
    safetensors_close(&r->file);
}

/* ---- Ranks ------------------------------------------------------------------------------------ */

/* A way to run a model. */
typedef struct {
    const char *name, *config, *weights; /* files of the fixture; weights "": the folder itself */
    const char *sets[4];                 /* of the configuration */
    bool fused;                          /* only for fixtures that have the fused spelling */
} Way;

static void add_sets(const char **sets, int *n, const char *const *more, size_t most) {
    for (size_t i = 0; i < most && more[i]; i++) sets[(*n)++] = more[i];
}

/* Runs `body` on the ranks of a world that the way's sets and `more` (ends with NULL) configure. */
static void run_ranks(const Fixture *f, const Way *way, const char *const *more, RankBody body, void *context) {
    static const char *const common[] = {
        "train.sequence_length=24", "compute.threads=1", "loss.chunk=7", "optimizer.schedule=constant", "optimizer.beta1=0.9",
        "optimizer.beta2=0.95", "optimizer.epsilon=1e-8", "optimizer.weight_decay=0.1", "optimizer.clip=2.2"};
    const char *sets[32];
    char model[256];
    int n = 1;
    Config c;
    Session s;
    Error e = {0};
    snprintf(model, sizeof model, "model.config=tests/fixtures/%s/%s", f->name, way->config);
    sets[0] = model;
    add_sets(sets, &n, common, COUNT(common));
    add_sets(sets, &n, way->sets, COUNT(way->sets));
    add_sets(sets, &n, more, 8);
    if (!config_read(&c, NULL, sets, n, &e) || !session_open(&s, &c, &e)) fail_msg("%s", e.text);
    int code = session_run(&s, plan_price, body, context);
    session_close(&s);
    config_close(&c);
    assert_int_equal(code, EXIT_DONE);
}

static bool load_weights(Session *s, Run *r, const Fixture *f, const Way *way, Error *e) {
    char path[256];
    snprintf(path, sizeof path, "tests/fixtures/%s%s%s", f->name, *way->weights ? "/" : "", way->weights);
    Checkpoints *c = session_checkpoints(s, r, "", e);
    bool ok = c && checkpoint_load_weights(c, path, e);
    checkpoints_close(c);
    return ok;
}

/* ---- Batches ---------------------------------------------------------------------------------- */

/* The reference's sequence `from`, as sequence `to` of a batch. */
static void give_sequence(const Reference *ref, int64_t from, Batch *b, int32_t to, int64_t window) {
    int32_t start = 0;
    for (int32_t i = 0; i < S; i++) {
        int64_t at = from * S + i, target = ref->targets[at], position = ref->positions[at];
        int32_t row = to * S + i;
        if (position == 0) start = row;
        b->token[row] = (int32_t)ref->tokens[at];
        b->target[row] = target < 0 ? -1 : (int32_t)target;
        b->position[row] = (int32_t)position;
        b->start[row] = start;
        b->sequence[row] = to;
        b->trained += target >= 0;
        b->pairs += window ? min64(position + 1, window) : position + 1;
    }
    b->real[to] = S;
}

/* This rank's share of the reference's batch `step`, dealt as run_load_batch deals. */
static void give_batch(Run *r, const Reference *ref, int64_t step) {
    int64_t sequence = step * B + r->comm.mesh.rank;
    for (int64_t i = 0; i < r->micro_batches; i++) {
        Batch *b = &r->batch[i];
        b->sequences = r->micro[i].sequences;
        b->tokens = r->micro[i].tokens;
        b->trained = b->pairs = 0;
        for (int32_t s = 0; s < b->sequences; s++, sequence += r->comm.mesh.world) give_sequence(ref, sequence, b, s, r->spec->window);
    }
    run_upload(r);
}

/* ---- Answers of a rank ------------------------------------------------------------------------ */

typedef struct {
    const Fixture *fixture;
    const Way *way;
    Reference reference;
    double *answer; /* laid out like reference.value */
    StepResult result[STEPS];
} Trial;

/* Logits of the rows of one micro-batch, whose first sequence is number `sequence` of the batch. */
static void answer_rows(Run *r, const Weights *head, const MicroBatch *b, int64_t sequence, double *answer) {
    int64_t V = r->spec->vocabulary;
    Mark mark = arena_mark(&r->work);
    Tensor logits = arena_tensor(&r->work, r->model.sum, DIM(1, V));
    double host[128];
    MUST(V <= (int64_t)COUNT(host));
    for (int64_t row = 0; row < b->tokens; row++) {
        head_logits(&r->model, head, b, row, logits);
        device_read(r->model.compute, host, logits, READ_LOSS);
        Tensor values = tensor_at(host, r->model.sum, DIM(V));
        int64_t at = ((sequence + row / S * r->comm.mesh.world) * S + row % S) * V;
        for (int64_t v = 0; v < V; v++) answer[at + v] = tensor_get(values, v);
    }
    arena_reset(&r->work, mark);
}

static void answer_logits(Run *r, Trial *t) {
    Model *m = &r->model;
    Saved kept;
    m->evaluating = true;
    run_begin_pass(r, false);
    Weights w = store_fetch(r->store, 0, 1);
    for (int64_t i = 0; i < r->micro_batches; i++) embed_forward(m, &w, &r->micro[i]);
    store_release(r->store, 0);
    for (int64_t l = 0; l < r->spec->layers; l++) {
        w = store_fetch(r->store, l + 1, l + 2);
        for (int64_t i = 0; i < r->micro_batches; i++) layer_forward(m, l, &w, &kept, &r->micro[i]);
        store_release(r->store, l + 1);
    }
    w = store_fetch(r->store, r->spec->layers + 1, -1);
    double *answer = t->answer + place_of(&t->reference, tensor_of(&t->reference, "", "logits"));
    int64_t sequence = r->comm.mesh.rank;
    for (int64_t i = 0; i < r->micro_batches; i++) {
        answer_rows(r, &w, &r->micro[i], sequence, answer);
        sequence += r->micro[i].sequences * r->comm.mesh.world;
    }
    store_release(r->store, r->spec->layers + 1);
    run_end_pass(r);
    m->evaluating = false;
}

/* A slice's gradients, in doubles; the caller frees. */
static double *slice_gradient(Run *r, const Slice *slice) {
    void *raw = malloc((size_t)slice->count * sizeof(double));
    double *values = malloc((size_t)slice->count * sizeof *values);
    MUST(raw && values);
    store_copy_out(r->store, slice, STORE_GRADIENT, 0, slice->count, raw);
    Tensor t = tensor_at(raw, r->model.sum, DIM(slice->count));
    for (int64_t i = 0; i < slice->count; i++) values[i] = tensor_get(t, i);
    free(raw);
    return values;
}

/* Every element from its owner. */
static void answer_gradients(Run *r, Trial *t, const char *prefix) {
    const Slice *slices;
    int64_t n = store_slices(r->store, &slices);
    for (int64_t i = 0; i < n; i++) {
        const Slice *slice = &slices[i];
        const StoredTensor *theirs = tensor_of(&t->reference, prefix, slice->name);
        MUST(theirs->dims == slice->dims && memcmp(theirs->dim, slice->dim, (size_t)slice->dims * sizeof *slice->dim) == 0);
        if (!slice->owner) continue;
        double *values = slice_gradient(r, slice);
        memcpy(t->answer + place_of(&t->reference, theirs) + slice->first, values, (size_t)slice->count * sizeof *values);
        free(values);
    }
}

static bool follow_steps(Session *s, Run *r, Error *e) {
    Trial *t = s->context;
    if (!load_weights(s, r, t->fixture, t->way, e)) return false;
    for (int64_t step = 0; step < STEPS; step++) {
        StepResult result;
        give_batch(r, &t->reference, step);
        if (step == 0) answer_logits(r, t);
        if (!train_loaded_step(r, step, false, &result, e)) return false;
        if (step == 0) answer_gradients(r, t, "grad.");
        if (r->comm.mesh.rank == 0) t->result[step] = result;
    }
    return true;
}

/* The first sequence as a batch of its own, with the model's coefficient of the balance loss. */
static bool balance_one(Session *s, Run *r, Error *e) {
    Trial *t = s->context;
    StepResult result;
    if (!load_weights(s, r, t->fixture, t->way, e)) return false;
    give_batch(r, &t->reference, 0);
    if (!train_loaded_step(r, 0, false, &result, e)) return false;
    answer_gradients(r, t, "balance.grad.");
    if (r->comm.mesh.rank == 0) t->result[0] = result;
    return true;
}

/* ---- What answers are worth ------------------------------------------------------------------- */

/* The largest relative errors. */
typedef struct {
    double logits, gradient, loss, norm;
    const char *worst; /* gradient */
} Errors;

/* A NaN is larger than all. */
static double larger(double a, double b) {
    return a > b || isnan(a) ? a : b;
}

/* How an answer [n] and a reference lie to each other. */
typedef struct {
    double difference, answer, reference; /* norms */
    double product;
} Agreement;

static Agreement agree(const Trial *t, const StoredTensor *of) {
    const double *a = t->answer + place_of(&t->reference, of), *b = t->reference.value + place_of(&t->reference, of);
    Agreement sum = {0};
    for (int64_t i = 0; i < of->elements; i++) {
        sum.difference += (a[i] - b[i]) * (a[i] - b[i]);
        sum.answer += a[i] * a[i];
        sum.reference += b[i] * b[i];
        sum.product += a[i] * b[i];
    }
    return (Agreement){sqrt(sum.difference), sqrt(sum.answer), sqrt(sum.reference), sum.product};
}

/* All tensors whose names begin with `prefix`, as one. */
static Agreement agree_all(const Trial *t, const char *prefix) {
    Agreement sum = {0};
    for (int64_t i = 0; i < t->reference.file.count; i++) {
        const StoredTensor *of = &t->reference.file.tensors[i];
        if (strncmp(of->name, prefix, strlen(prefix)) != 0) continue;
        Agreement one = agree(t, of);
        sum = (Agreement){hypot(sum.difference, one.difference), hypot(sum.answer, one.answer),
                          hypot(sum.reference, one.reference), sum.product + one.product};
    }
    return sum;
}

/* A gradient's error is the norm of the difference over the norm of the tensor, or over a thousandth of all gradients' norm where
 * that is more. What is exactly zero in the reference, as for an expert without tokens, is exactly zero here. */
static void measure_gradients(const Trial *t, const char *prefix, Errors *out) {
    double least = 1e-3 * agree_all(t, prefix).reference;
    int zeros = 0;
    for (int64_t i = 0; i < t->reference.file.count; i++) {
        const StoredTensor *of = &t->reference.file.tensors[i];
        if (strncmp(of->name, prefix, strlen(prefix)) != 0) continue;
        Agreement one = agree(t, of);
        if (one.reference == 0 && one.answer != 0) fail_msg("%s, %s: %s is not zero", t->fixture->name, t->way->name, of->name);
        zeros += one.reference == 0;
        double error = one.difference / fmax(one.reference, least);
        if (error <= out->gradient) continue;
        out->gradient = larger(error, out->gradient);
        out->worst = of->name;
    }
    assert_true(zeros >= 3); /* the idle expert's gate, up and down */
}

static double theirs(const Trial *t, const char *name, int64_t at) {
    return t->reference.value[place_of(&t->reference, tensor_of(&t->reference, "", name)) + at];
}

static void measure_scalar(double *most, double answer, double expected) {
    *most = larger(fabs(answer - expected) / fabs(expected), *most);
}

static void measure_steps(const Trial *t, Errors *out) {
    Agreement logits = agree(t, tensor_of(&t->reference, "", "logits"));
    out->logits = logits.difference / logits.reference;
    measure_gradients(t, "grad.", out);
    for (int64_t i = 0; i < STEPS; i++) {
        measure_scalar(&out->loss, t->result[i].loss, theirs(t, "steps.loss", i));
        measure_scalar(&out->norm, t->result[i].norm, theirs(t, "steps.grad_norm", i));
    }
    measure_scalar(&out->loss, t->result[0].balance, (theirs(t, "balance_loss_each", 0) + theirs(t, "balance_loss_each", 1)) / B);
}

static void measure_balance(const Trial *t, Errors *out) {
    measure_gradients(t, "balance.grad.", out);
    measure_scalar(&out->loss, t->result[0].loss, theirs(t, "balance.loss", 0));
    measure_scalar(&out->loss, t->result[0].balance, theirs(t, "balance.balance_loss", 0));
}

/* ---- Against transformers --------------------------------------------------------------------- */

/* STEPS of AdamW without the balance loss, which make.py leaves out of its gradients and steps. */
static const char *const of_steps[] = {"train.sequences=2", "loss.balance=0", "optimizer.learning_rate=5e-3", NULL};
/* One step on the first sequence alone, with the model's own coefficient: there both definitions of the balance loss are one. */
static const char *const of_balance[] = {"train.sequences=1", "loss.balance=-1", NULL};

static Errors try_way(const Fixture *f, const Way *way, double *cosine) {
    Trial t = {.fixture = f, .way = way, .reference = open_reference(f)};
    Errors found = {.worst = "none"};
    t.answer = malloc((size_t)t.reference.count * sizeof *t.answer);
    MUST(t.answer);
    for (int64_t i = 0; i < t.reference.count; i++) t.answer[i] = NAN;
    run_ranks(f, way, of_steps, follow_steps, &t);
    measure_steps(&t, &found);
    run_ranks(f, way, of_balance, balance_one, &t);
    measure_balance(&t, &found);
    Agreement all = agree_all(&t, "grad.");
    *cosine = all.product / (all.answer * all.reference);
    print_message("    %-32s logits %.1e  gradients %.1e  losses %.1e  norms %.1e  worst: %s\n", way->name, found.logits, found.gradient,
                  found.loss, found.norm, found.worst);
    free(t.answer);
    close_reference(&t.reference);
    return found;
}

static const Way exact_ways[] = {
    {"as saved", "config.json", "", {0}, false},
    {"v4 config, plain kernels", "config-v4.json", "model.safetensors", {"device=cpu:plain"}, false},
    {"fused experts, recomputed", "config.json", "model-fused.safetensors", {"compute.activations=recompute"}, true},
    {"two micro-batches, blocking", "config.json", "", {"train.micro_batches=2", "optimizer.update=blocking"}, false},
    {"2 ranks, all sharded", "config.json", "", {"ranks=2", "mixture.expert=2"}, false},
    {"2 ranks, all copied", "config.json", "", {"ranks=2", "mixture.dense=1"}, false},
    {"3 ranks, all sharded, recomputed", "config-v4.json", "", {"ranks=3", "mixture.expert=3", "compute.activations=recompute"}, false},
    {"fp64", "config.json", "", {"compute.type=fp64"}, false},
    {"fp64, 2 ranks, experts sharded", "config.json", "", {"compute.type=fp64", "ranks=2", "mixture.dense=1", "mixture.expert=2"}, false},
};

static void logits_gradients_and_first_losses_are_those_of_transformers(void **state) {
    const Fixture *f = *state;
    for (size_t i = 0; i < COUNT(exact_ways); i++) {
        double cosine;
        if (exact_ways[i].fused && !f->fused) continue;
        Errors found = try_way(f, &exact_ways[i], &cosine);
        assert_true(found.logits < 1e-5);
        assert_true(found.gradient < 1e-4);
        assert_true(found.loss < 1e-5);
        assert_true(found.norm < 1e-4);
    }
}

static void bf16_loses_no_more_than_its_rounding(void **state) {
    static const Way way = {"bf16", "config.json", "", {"compute.type=bf16"}, false};
    double cosine;
    Errors found = try_way(*state, &way, &cosine);
    print_message("    cosine of the gradient %.5f\n", cosine);
    assert_true(found.loss < 0.02);
    assert_true(cosine > 0.99);
}

/* ---- Against differences ---------------------------------------------------------------------- */

/* Each tensor moves along a random direction, so that every element counts. The loss is that of training: with balance and z loss.
 * Its balance part is differentiated at constant counts; they are constant as long as no token changes its experts, which is
 * watched. */
typedef struct {
    const Fixture *fixture;
    const Way *way;
    Reference reference;
    double z;
    double *load; /* rows of each expert in the unmoved model */
    double worst; /* error, relative to the tensor's gradient */
    char name[200];
    int flips, tensors;
} Slopes;

static const double step_length = 2e-4;

/* Losses with their coefficients. */
static bool total_loss(Run *r, Slopes *p, double *out, Error *e) {
    StepResult result;
    if (!train_loaded_step(r, 0, false, &result, e)) return false;
    *out = result.loss + r->spec->balance * result.balance + p->z * result.router_z;
    p->flips += memcmp(p->load, r->model.load, (size_t)r->spec->experts * sizeof *p->load) != 0;
    return true;
}

/* d loss / d t of weight + t direction at t = 0, from five points. */
static bool slope(Run *r, Slopes *p, const Slice *slice, const double *weight, const double *direction, double h, double *out, Error *e) {
    static const double at[] = {-2, -1, 1, 2}, share[] = {1. / 12, -8. / 12, 8. / 12, -1. / 12};
    double *moved = malloc((size_t)slice->count * sizeof *moved), loss;
    MUST(moved);
    *out = 0;
    bool ok = true;
    for (size_t i = 0; ok && i < COUNT(at); i++) {
        for (int64_t j = 0; j < slice->count; j++) moved[j] = weight[j] + at[i] * h * direction[j];
        store_copy_in(r->store, slice, STORE_WEIGHT, 0, slice->count, moved);
        ok = total_loss(r, p, &loss, e);
        if (ok) *out += share[i] * loss / h;
    }
    store_copy_in(r->store, slice, STORE_WEIGHT, 0, slice->count, weight);
    free(moved);
    return ok;
}

static double norm_of(const double *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
    return sqrt(sum);
}

static bool compare_slope(Run *r, Slopes *p, const Slice *slice, const double *gradient, double global, uint64_t seed, Error *e) {
    int64_t n = slice->count;
    double *weight = malloc((size_t)n * sizeof *weight), *direction = malloc((size_t)n * sizeof *direction), found, expected = 0;
    MUST(weight && direction);
    fill_normal(tensor_at(direction, FP64, DIM(n)), seed);
    store_copy_out(r->store, slice, STORE_WEIGHT, 0, n, weight);
    bool ok = slope(r, p, slice, weight, direction, step_length / norm_of(direction, n), &found, e);
    for (int64_t i = 0; i < n; i++) expected += gradient[i] * direction[i];
    double error = fabs(found - expected) / fmax(norm_of(gradient, n), 1e-3 * global);
    if (!(error <= p->worst)) {
        p->worst = larger(error, p->worst);
        snprintf(p->name, sizeof p->name, "%s", slice->name);
    }
    p->tensors++;
    free(weight);
    free(direction);
    return ok;
}

static bool compare_slopes(Session *s, Run *r, Error *e) {
    Slopes *p = s->context;
    const Slice *slices;
    int64_t n = store_slices(r->store, &slices);
    double **gradient = calloc((size_t)n, sizeof *gradient);
    StepResult result;
    MUST(gradient);
    bool ok = load_weights(s, r, p->fixture, p->way, e);
    if (ok) give_batch(r, &p->reference, 0);
    ok = ok && train_loaded_step(r, 0, false, &result, e);
    if (ok) memcpy(p->load, r->model.load, (size_t)r->spec->experts * sizeof *p->load);
    for (int64_t i = 0; ok && i < n; i++) gradient[i] = slice_gradient(r, &slices[i]);
    for (int64_t i = 0; ok && i < n; i++) ok = compare_slope(r, p, &slices[i], gradient[i], result.norm, (uint64_t)i, e);
    for (int64_t i = 0; i < n; i++) free(gradient[i]);
    free(gradient);
    return ok;
}

static void gradients_are_slopes_of_the_loss(void **state) {
    static const Way way = {"slopes", "config.json", "", {"compute.type=fp64"}, false};
    static const char *const sets[] = {"train.sequences=2", "optimizer.learning_rate=0", "loss.balance=-1", "loss.router_z=0.02", NULL};
    double load[MAX_EXPERTS];
    Slopes p = {.fixture = *state, .way = &way, .reference = open_reference(*state), .z = 0.02, .load = load};
    run_ranks(p.fixture, &way, sets, compare_slopes, &p);
    print_message("    %d tensors, largest error %.1e: %s\n", p.tensors, p.worst, p.name);
    close_reference(&p.reference);
    assert_int_equal(p.flips, 0);
    assert_true(p.worst < 1e-6);
}

/* ---- Families --------------------------------------------------------------------------------- */

static const Fixture olmoe = {"olmoe", true}, qwen3_moe = {"qwen3_moe", false}, qwen3_moe_window = {"qwen3_moe_window", false},
                     mixtral = {"mixtral", true};

#define OF(test, fixture) {#test " (" #fixture ")", test, NULL, NULL, (void *)(uintptr_t)&(fixture)}
#define OF_ALL(test) OF(test, olmoe), OF(test, qwen3_moe), OF(test, qwen3_moe_window), OF(test, mixtral)

int main(void) {
    const struct CMUnitTest tests[] = {
        OF_ALL(logits_gradients_and_first_losses_are_those_of_transformers),
        OF_ALL(bf16_loses_no_more_than_its_rounding),
        OF_ALL(gradients_are_slopes_of_the_loss),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
