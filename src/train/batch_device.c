/* This rank's share of a step's sequences, onto the device: sequence i of a step goes to rank i mod W (of the sequence-parallel
 * groups, when there are any); micro-batches cut each rank's list into runs that differ by at most one. A rank or micro-batch without
 * sequences runs like any other. */
#include "train/run.h"

#include <string.h>

static void write_ints(Run *r, Tensor t, const int32_t *host) {
    device_write(r->model.compute, t, host);
}

void run_upload(Run *r) {
    double counts[2] = {0}, rows[4096];
    for (int64_t i = 0; i < r->micro_batches; i++) {
        MicroBatch *m = &r->micro[i];
        const Batch *b = &r->batch[i];
        write_ints(r, m->token, b->token);
        write_ints(r, m->target, b->target);
        write_ints(r, m->position, b->position);
        write_ints(r, m->first, b->first);
        write_ints(r, m->last, b->last);
        write_ints(r, m->sequence, b->sequence);
        m->pairs = b->pairs;
        counts[TRAINED] += (double)b->trained;
        for (int64_t s = 0; s < b->sequences; s += (int64_t)COUNT(rows)) {
            int64_t n = min64((int64_t)COUNT(rows), b->sequences - s);
            for (int64_t j = 0; j < n; j++) {
                rows[j] = (double)(b->real[s + j] * r->spec->moe_layers);
                counts[REAL] += (double)b->real[s + j];
            }
            device_write(r->model.compute, tensor_rows(m->rows, s, n), rows);
        }
    }
    device_write(r->model.compute, r->counts, counts);
    stream_wait(r->model.network, event_record(r->model.compute));
    all_reduce(&r->comm.group[AXIS_WORLD], r->model.network, r->counts);
    stream_wait(r->model.compute, event_record(r->model.network));
}

/* Micro-batch `micro` of any rank, of the step's sequences that begin with number `first`. */
static void fill(const Run *r, Batch *b, int rank, int64_t micro, int64_t first, bool in_order) {
    const Config *c = r->config;
    int64_t world = r->comm.mesh.world, count = run_sequences(c, world, rank, micro);
    first += rank;
    for (int64_t i = 0; i < micro; i++) first += world * run_sequences(c, world, rank, i);
    if (in_order)
        batch_fill_in_order(b, r->tokens, first, world, count, c->train_sequence_length, r->spec->window);
    else
        batch_fill(b, r->tokens, c->train_seed, first, world, count, c->train_sequence_length, r->spec->window);
}

static void load(Run *r, int64_t first, bool in_order) {
    for (int64_t i = 0; i < r->micro_batches; i++) {
        fill(r, &r->batch[i], r->comm.mesh.rank, i, first, in_order);
        for (int64_t j = 0; j < peers_count(r); j++) fill(r, peers_batch(r, j), peers_rank(r, j), i, first, in_order);
        if (r->peers) peers_load(r, &r->micro[i]);
    }
    run_upload(r);
}

void run_load_batch(Run *r, int64_t step) {
    load(r, step * r->config->train_sequences, false);
}

void run_load_in_order(Run *r, int64_t first_piece) {
    load(r, first_piece, true);
}

void run_begin_pass(Run *r, bool training) {
    Model *m = &r->model;
    const Spec *spec = r->spec;
    arena_reset(&r->activations, (Mark){0});
    arena_reset(&r->host, (Mark){0});
    memset(m->load, 0, (size_t)spec->experts * sizeof *m->load);
    zero(m->compute, r->stats);
    for (int64_t i = 0; i < r->micro_batches; i++) {
        MicroBatch *b = &r->micro[i];
        b->x = arena_tensor(&r->activations, m->real, DIM(b->tokens, spec->hidden));
        b->rope = arena_tensor(&r->activations, m->sum, DIM(b->tokens, spec->head_dim));
        b->counts = arena_tensor(&r->activations, FP64, DIM(b->sequences, spec->experts));
        b->mass = arena_tensor(&r->activations, FP64, DIM(b->sequences, spec->experts));
        if (training) b->gradient = arena_tensor(&r->activations, m->real, DIM(b->tokens, spec->hidden));
        zero(m->compute, b->counts);
        zero(m->compute, b->mass);
        rope_table(m->compute, b->rope, b->position, spec->rope_theta);
    }
}

void run_end_pass(Run *r) {
    arena_reset(&r->activations, (Mark){0});
    arena_reset(&r->host, (Mark){0});
}
