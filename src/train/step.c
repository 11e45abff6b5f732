/* One step, as data flows:
 *
 *   batch -> embed -> [fetch -> layer_forward -> release] x L -> head and loss -> [fetch -> layer_backward -> give] x L reversed
 *         -> embed backward -> norm -> clip factor -> numbers
 *
 * Layers outside, micro-batches inside: all micro-batches pass layer l before l + 1, forward and backward, so each
 * weight is gathered once per pass and each gradient is final once. There is no update phase: fetch applies the
 * update that is due, so an update happens inside the next step's forward, just before its layer runs.
 */
#include "train/run.h"

#include <math.h>
#include <string.h>

static Saved *saved_slot(Run *r, int64_t layer, int64_t micro) {
    return &r->saved[layer * r->micro_batches + micro];
}

static int64_t part_of(int64_t layer) {
    return layer + 1;
}

static void forward(Run *r) {
    Model *m = &r->model;
    Weights w = store_fetch(r->store, 0, part_of(0));
    for (int64_t i = 0; i < r->micro_batches; i++) embed_forward(m, &w, &r->micro[i]);
    store_release(r->store, 0);
    for (int64_t l = 0; l < r->spec->layers; l++) {
        r->marks[l] = arena_mark(&r->activations);
        w = store_fetch(r->store, part_of(l), part_of(l + 1)); /* the head's part follows the last layer's */
        for (int64_t i = 0; i < r->micro_batches; i++) layer_forward(m, l, &w, saved_slot(r, l, i), &r->micro[i]);
        store_release(r->store, part_of(l));
    }
}

/* The balance loss is of whole sequences: what their ranks counted is summed, beside the head's work. */
static void share_statistics(Run *r) {
    const Model *m = &r->model;
    Group *g = &r->comm.group[AXIS_SEQUENCE];
    stream_wait(m->network, event_record(m->compute));
    for (int64_t i = 0; i < r->micro_batches; i++) {
        all_reduce(g, m->network, r->micro[i].counts);
        all_reduce(g, m->network, r->micro[i].mass);
    }
    r->shared = event_record(m->network);
}

static void head(Run *r, bool training) {
    int64_t part = part_of(r->spec->layers);
    Tensor loss = tensor_rows(r->stats, STAT_LOSS, 1), trained = tensor_rows(r->counts, TRAINED, 1);
    Weights w = store_fetch(r->store, part, training ? part - 1 : -1), dw = {0};
    if (training) dw = store_gradients(r->store, part);
    for (int64_t i = 0; i < r->micro_batches; i++)
        head_loss(&r->model, &w, training ? &dw : NULL, &r->micro[i], loss, trained);
    store_release(r->store, part);
    if (training) store_give(r->store, part);
}

static void backward(Run *r) {
    Model *m = &r->model;
    stream_wait(m->compute, r->shared);
    for (int64_t l = r->spec->layers - 1; l >= 0; l--) {
        Weights w = store_fetch(r->store, part_of(l), l > 0 ? part_of(l - 1) : -1),
                dw = store_gradients(r->store, part_of(l));
        for (int64_t i = 0; i < r->micro_batches; i++) layer_backward(m, l, &w, &dw, saved_slot(r, l, i), &r->micro[i]);
        store_release(r->store, part_of(l));
        store_give(r->store, part_of(l));
        arena_reset(&r->activations, r->marks[l]);
    }
    Weights dw = store_gradients(r->store, 0);
    for (int64_t i = 0; i < r->micro_batches; i++) embed_backward(m, &dw, &r->micro[i]);
    store_give(r->store, 0);
}

/* Everybody's loss, auxiliary losses, wish to stop, times and expert loads, in one small collective. */
static bool numbers(Run *r, bool stop, StepResult *out, Error *e) {
    Model *m = &r->model;
    int64_t experts = r->spec->experts, n = STAT_LOAD + experts;
    stream_wait(m->compute, r->shared);
    for (int64_t i = 0; i < r->micro_batches; i++)
        if (r->comm.mesh.axis[AXIS_SEQUENCE].index == 0) /* once a sequence */
            balance_loss(m->compute, tensor_rows(r->stats, STAT_BALANCE, 1), r->micro[i].counts, r->micro[i].mass,
                         r->micro[i].rows);
    double asked = stop;
    device_write(m->compute, tensor_rows(r->stats, STAT_STOP, 1), &asked);
    device_write(m->compute, tensor_rows(r->stats, STAT_TIMES, TIMES), &out->times);
    device_write(m->compute, tensor_rows(r->stats, STAT_LOAD, experts), m->load);
    stream_wait(m->network, event_record(m->compute));
    all_reduce(&r->comm.group[AXIS_WORLD], m->network, r->stats);
    stream_wait(m->compute, event_record(m->network));
    device_read(m->compute, r->stats_host, r->stats, READ_LOSS);
    device_read(m->compute, r->stats_host + n, r->counts, READ_LOSS);
    const Error *failed = device_failed(r->device);
    if (failed) return fail(e, failed->code, "%s", failed->text);

    const double *s = r->stats_host, trained = s[n + TRAINED], real = s[n + REAL];
    out->trained = (int64_t)trained;
    out->loss = trained > 0 ? s[STAT_LOSS] / trained : 0;
    out->balance = s[STAT_BALANCE] / (double)r->config->train_sequences;
    out->router_z = real > 0 && r->spec->moe_layers ? s[STAT_Z] / (real * (double)r->spec->moe_layers) : 0;
    out->stop = s[STAT_STOP] > 0;
    out->times = times_mean(s + STAT_TIMES, r->comm.mesh.world);
    double sum = 0, most = 0;
    for (int64_t x = 0; x < experts; x++) {
        sum += s[STAT_LOAD + x];
        most = fmax(most, s[STAT_LOAD + x]);
    }
    out->load = sum > 0 ? most * (double)experts / sum : 1;
    return true;
}

/* The clip factor is torch's: max_norm / (norm + 1e-6), at most 1. A gradient that is not finite makes no update
 * anywhere. */
static void make_update_due(Run *r, int64_t step, StepResult *out) {
    const Config *c = r->config;
    out->learning_rate = learning_rate_at(c, step);
    if (!out->finite) {
        r->bad_steps++;
        return;
    }
    r->bad_steps = 0;
    r->updates++;
    double clip = c->optimizer_clip > 0 ? fmin(1, c->optimizer_clip / (out->norm + 1e-6)) : 1;
    store_update(r->store, (AdamW){.learning_rate = out->learning_rate,
                                   .beta1 = c->optimizer_beta1,
                                   .beta2 = c->optimizer_beta2,
                                   .epsilon = c->optimizer_epsilon,
                                   .weight_decay = c->optimizer_weight_decay,
                                   .clip = clip,
                                   .correction1 = 1 - pow(c->optimizer_beta1, (double)r->updates),
                                   .correction2 = 1 - pow(c->optimizer_beta2, (double)r->updates)});
    if (c->optimizer_update == UPDATE_BLOCKING) store_flush(r->store);
}

bool train_loaded_step(Run *r, int64_t step, bool stop, StepResult *out, Error *e) {
    *out = (StepResult){.step = step};
    r->device->step = step;
    run_begin_pass(r, true);
    forward(r);
    share_statistics(r);
    head(r, true);
    backward(r);
    bool ok = store_norm(r->store, &out->gradient, e);
    if (ok) out->times = times_tell(r);
    ok = ok && numbers(r, stop, out, e);
    run_end_pass(r);
    if (!ok) return false;
    out->norm = out->gradient.norm;
    out->finite = out->gradient.finite && isfinite(out->loss);
    make_update_due(r, step, out);
    times_end(r);
    return true;
}

bool train_step(Run *r, int64_t step, bool stop, StepResult *out, Error *e) {
    times_begin(r);
    return run_load_batch(r, step, e) && train_loaded_step(r, step, stop, out, e);
}

/* ---- Forward only ------------------------------------------------------------------------------ */

bool evaluate(Run *r, Evaluation *out, Error *e) {
    *out = (Evaluation){0};
    int64_t tokens = r->tokens ? tokens_info(r->tokens).tokens : 0, token = 0;
    store_flush(r->store);
    r->model.evaluating = true;
    bool ok = true;
    do {
        StepResult one = {0};
        ok = run_load_uncut(r, &token, e); /* sequences past the end are padding */
        if (!ok) break;
        run_begin_pass(r, false);
        forward(r);
        share_statistics(r);
        head(r, false);
        ok = numbers(r, false, &one, e);
        run_end_pass(r);
        out->loss += one.loss * (double)one.trained;
        out->trained += one.trained;
        if (tokens > 0) waiting_tell(r->waiting, (double)token / (double)tokens);
    } while (ok && token < tokens);
    r->model.evaluating = false;
    return ok;
}
