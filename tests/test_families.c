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
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* cmocka.h wants these before it */
#include <cmocka.h>

enum { STEPS = 5, B = 2, S = 24, MOST_SETS = 32 };

typedef struct {
    const char *name; /* its folder in tests/fixtures */
    bool fused;       /* has model-fused.safetensors */
} Model5;

static const Model5 models[] = {{"olmoe", true}, {"qwen3_moe", false}, {"qwen3_moe_window", false}, {"mixtral", true}};

/* ---- References ------------------------------------------------------------------------------- */

typedef struct {
    Safetensors file;
    double *value;                          /* of every fp32 tensor, as the file has them */
    int64_t count;                          /* of `value` */
    int64_t *tokens, *targets, *positions;  /* [STEPS, B, S]; step 0 is also what logits and gradients are of */
} Reference;

static int64_t place_of(const Reference *r, const StoredTensor *t) {
    return (t->begin - r->file.data) / (int64_t)sizeof(float);
}

static const StoredTensor *tensor_of(const Reference *r, const char *prefix, const char *name) {
    char full[256];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    const StoredTensor *t = safetensors_find(&r->file, full);
    if (!t) fprintf(stderr, "the reference has no %s\n", full);
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

static Reference open_reference(const Model5 *m) {
    Reference r = {0};
    Error e = {0};
    char path[256];
    snprintf(path, sizeof path, "tests/fixtures/%s/reference.safetensors", m->name);
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

/* ---- Trials ----------------------------------------------------------------------------------- */

typedef struct {
    const Model5 *model;
    const char *config, *weights; /* files of its folder; weights "": the folder itself */
    const char *const *sets;      /* ends with NULL */
    const Reference *reference;
    double *answer;               /* laid out like reference->value */
    StepResult result[STEPS];
    double worst;                 /* of differences() */
    char worst_name[200];
} Trial;

static void open_trial(Trial *t) {
    t->answer = malloc((size_t)t->reference->count * sizeof *t->answer);
    MUST(t->answer);
    for (int64_t i = 0; i < t->reference->count; i++) t->answer[i] = NAN;
}

static void close_trial(Trial *t) {
    free(t->answer);
}

/* Runs `body` on ranks of a world that is configured by the trial's sets and `more`. */
static void run_ranks(Trial *t, const char *const *more, RankBody body) {
    static const char *const common[] = {"train.sequence_length=24", "train.steps=5", "compute.threads=1", "loss.chunk=7",
                                         "optimizer.schedule=constant", "optimizer.beta1=0.9", "optimizer.beta2=0.95",
                                         "optimizer.epsilon=1e-8", "optimizer.weight_decay=0.1", "optimizer.clip=2.2"};
    const char *sets[MOST_SETS];
    char model[256];
    int n = 0;
    Config c;
    Session s;
    Error e = {0};
    snprintf(model, sizeof model, "model.config=tests/fixtures/%s/%s", t->model->name, t->config);
    sets[n++] = model;
    for (size_t i = 0; i < COUNT(common); i++) sets[n++] = common[i];
    for (int i = 0; t->sets[i]; i++) sets[n++] = t->sets[i];
    for (int i = 0; more[i]; i++) sets[n++] = more[i];
    if (!config_read(&c, NULL, sets, n, &e)) fail_msg("%s", e.text);
    if (!session_open(&s, &c, &e)) fail_msg("%s", e.text);
    int code = session_run(&s, plan_price, body, t);
    session_close(&s);
    config_close(&c);
    assert_int_equal(code, EXIT_DONE);
}

/* ---- What a rank does ------------------------------------------------------------------------- */

static bool load_weights(Session *s, Run *r, const Trial *t, Error *e) {
    char path[256];
    snprintf(path, sizeof path, "tests/fixtures/%s%s%s", t->model->name, *t->weights ? "/" : "", t->weights);
    Checkpoints *c = session_checkpoints(s, r, "", e);
    bool ok = c && checkpoint_load_weights(c, path, e);
    checkpoints_close(c);
    return ok;
}

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
    double *answer = t->answer + place_of(t->reference, tensor_of(t->reference, "", "logits"));
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
        const StoredTensor *theirs = tensor_of(t->reference, prefix, slice->name);
        MUST(theirs->dims == slice->dims && memcmp(theirs->dim, slice->dim, (size_t)slice->dims * sizeof *slice->dim) == 0);
        if (!slice->owner) continue;
        double *values = slice_gradient(r, slice);
        memcpy(t->answer + place_of(t->reference, theirs) + slice->first, values, (size_t)slice->count * sizeof *values);
        free(values);
    }
}

static bool follow_steps(Session *s, Run *r, Error *e) {
    Trial *t = s->context;
    if (!load_weights(s, r, t, e)) return false;
    for (int64_t step = 0; step < STEPS; step++) {
        StepResult result;
        give_batch(r, t->reference, step);
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
    if (!load_weights(s, r, t, e)) return false;
    give_batch(r, t->reference, 0);
    if (!train_loaded_step(r, 0, false, &result, e)) return false;
    answer_gradients(r, t, "balance.grad.");
    if (r->comm.mesh.rank == 0) t->result[0] = result;
    return true;
}

/* ---- What answers are worth ------------------------------------------------------------------- */

typedef struct {
    double difference, norm; /* of answer - reference, and of the reference */
    double product;          /* answer . reference */
    double own;              /* norm of the answer */
} Agreement;

static Agreement agreement(const Trial *t, const StoredTensor *of) {
    const double *a = t->answer + place_of(t->reference, of), *b = t->reference->value + place_of(t->reference, of);
    Agreement sum = {0};
    for (int64_t i = 0; i < of->elements; i++) {
        sum.difference += (a[i] - b[i]) * (a[i] - b[i]);
        sum.norm += b[i] * b[i];
        sum.product += a[i] * b[i];
        sum.own += a[i] * a[i];
    }
    return (Agreement){sqrt(sum.difference), sqrt(sum.norm), sum.product, sqrt(sum.own)};
}

static Agreement all_agreement(const Trial *t, const char *prefix) {
    Agreement sum = {0};
    for (int64_t i = 0; i < t->reference->file.count; i++) {
        const StoredTensor *of = &t->reference->file.tensors[i];
        if (strncmp(of->name, prefix, strlen(prefix)) != 0) continue;
        Agreement one = agreement(t, of);
        sum = (Agreement){hypot(sum.difference, one.difference), hypot(sum.norm, one.norm), sum.product + one.product, hypot(sum.own, one.own)};
    }
    return sum;
}

/* A tensor's error is the norm of the difference over its norm, or over a thousandth of all gradients' norm where that is more. What
 * is exactly zero in the reference (an expert without tokens) must be so here. Returns the largest, with its name. */
static double gradient_error(const Trial *t, const char *prefix, const char **worst) {
    double most = 0, floor = 1e-3 * all_agreement(t, prefix).norm;
    int zeros = 0;
    for (int64_t i = 0; i < t->reference->file.count; i++) {
        const StoredTensor *of = &t->reference->file.tensors[i];
        if (strncmp(of->name, prefix, strlen(prefix)) != 0) continue;
        Agreement one = agreement(t, of);
        if (one.norm == 0 && one.own != 0) fail_msg("%s: %s must be exactly zero, its norm is %g", t->model->name, of->name, one.own);
        zeros += one.norm == 0;
        double error = one.difference / fmax(one.norm, floor);
        if (error <= most) continue; /* a NaN goes on */
        most = error;
        *worst = of->name;
    }
    assert_true(zeros >= 3); /* the idle expert's gate, up and down */
    return most;
}

static double scalar_error(const Trial *t, const char *name, int64_t at, double answer) {
    double theirs = t->reference->value[place_of(t->reference, tensor_of(t->reference, "", name)) + at];
    return fabs(answer - theirs) / fabs(theirs);
}

/* The larger of two errors; a NaN is larger than all. */
static double larger(double a, double b) {
    return a > b || isnan(a) ? a : b;
}

typedef struct {
    double logits, gradient, loss, norm;
    const char *worst; /* gradient */
} Errors;

static void measure_steps(const Trial *t, Errors *out) {
    Agreement logits = agreement(t, tensor_of(t->reference, "", "logits"));
    out->logits = logits.difference / logits.norm;
    out->gradient = gradient_error(t, "grad.", &out->worst);
    for (int64_t i = 0; i < STEPS; i++) {
        out->loss = larger(out->loss, scalar_error(t, "steps.loss", i, t->result[i].loss));
        out->norm = larger(out->norm, scalar_error(t, "steps.grad_norm", i, t->result[i].norm));
    }
    const double *each = t->reference->value + place_of(t->reference, tensor_of(t->reference, "", "balance_loss_each"));
    double balance = (each[0] + each[1]) / B;
    out->loss = larger(out->loss, fabs(t->result[0].balance - balance) / balance);
}

static void measure_balance(const Trial *t, double coefficient, Errors *out) {
    const char *worst = "";
    double gradient = gradient_error(t, "balance.grad.", &worst);
    if (!(gradient <= out->gradient)) out->worst = worst;
    out->gradient = larger(out->gradient, gradient);
    const StepResult *r = &t->result[0];
    out->loss = larger(out->loss, scalar_error(t, "balance.loss", 0, r->loss));
    out->loss = larger(out->loss, scalar_error(t, "balance.balance_loss", 0, r->balance));
    out->loss = larger(out->loss, scalar_error(t, "balance.total", 0, r->loss + coefficient * r->balance));
}
