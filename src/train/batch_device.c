/* A step's sequences, onto the device: sequence i of a step goes to sequence group i mod (W / D); micro-batches cut
 * each group's list into runs that differ by at most one, and comm/cut.h says which of their positions are whose. A
 * group or micro-batch without sequences runs like any other.
 *
 * Whole sequences exist one at a time, on the host: of each a rank takes its own positions, and for the positions of
 * its ring member what they see of every ring member's. */
#include "train/run.h"

#include <string.h>

/* ---- Whose is what ---------------------------------------------------------------------------- */

/* Host values of the stretches, one behind the other, onto rows of t that begin at `row`. */
static void place(Run *r, Tensor t, int64_t row, const int32_t *values, const Stretches *s) {
    int64_t n = 0;
    for (int i = 0; i < 2; i++) {
        memcpy(r->row + n, values + s->part[i].first, (size_t)s->part[i].count * sizeof *values);
        n += s->part[i].count;
    }
    device_write(r->model.compute, tensor_rows(t, row, n), r->row);
}

/* `of` says 0 or, where padded, -1. */
static void place_sequence(Run *r, Tensor t, int64_t row, const int32_t *of, const Stretches *s, int32_t number) {
    int64_t n = 0;
    for (int i = 0; i < 2; i++)
        for (int64_t p = 0; p < s->part[i].count; p++) r->row[n++] = of[s->part[i].first + p] < 0 ? -1 : number;
    device_write(r->model.compute, tensor_rows(t, row, n), r->row);
}

static void place_own(Run *r, MicroBatch *m, int64_t number, const Batch *one) {
    Stretches own = cut_rank(&r->model.cut, r->comm.mesh.rank);
    int64_t row = number * own.tokens;
    place(r, m->token, row, one->token, &own);
    place(r, m->target, row, one->target, &own);
    place(r, m->position, row, one->position, &own);
    place_sequence(r, m->sequence, row, one->sequence, &own, (int32_t)number);
}

/* Positions `seen` [0, S] of this ring member's stretches, as rows of another member's. */
static void place_rows(Run *r, Tensor t, int64_t row, const int32_t *seen, const Stretches *mine,
                       const Stretches *theirs, int64_t first_row) {
    int64_t n = 0;
    for (int i = 0; i < 2; i++)
        for (int64_t p = 0; p < mine->part[i].count; p++)
            r->row[n++] = (int32_t)(first_row + stretches_below(theirs, seen[mine->part[i].first + p]));
    device_write(r->model.compute, tensor_rows(t, row, n), r->row);
}

static void place_keys(Run *r, Tensor t, int64_t row, const Batch *one, const Stretches *mine) {
    int64_t n = 0;
    for (int i = 0; i < 2; i++)
        for (int64_t p = mine->part[i].first; p < mine->part[i].first + mine->part[i].count; p++)
            r->row[n++] = one->last[p] - one->first[p];
    device_write(r->model.compute, tensor_rows(t, row, n), r->row);
}

static int64_t visible_pairs(const Batch *one, const Stretches *mine, const Stretches *theirs) {
    int64_t pairs = 0;
    for (int i = 0; i < 2; i++)
        for (int64_t p = mine->part[i].first; p < mine->part[i].first + mine->part[i].count; p++)
            pairs += stretches_below(theirs, one->last[p]) - stretches_below(theirs, one->first[p]);
    return pairs;
}

/* What the rows of this ring member see of every member's block. */
static void place_sights(Run *r, MicroBatch *m, int64_t number, const Batch *one) {
    const Cut *cut = &r->model.cut;
    Stretches mine = cut_ring_member(cut, r->comm.mesh.axis[AXIS_RING].index);
    place_keys(r, m->keys, number * mine.tokens, one, &mine);
    for (int j = 0; j < cut->ring; j++) {
        Stretches theirs = cut_ring_member(cut, j);
        Tensor first = tensor_rows(m->first, j, 1), last = tensor_rows(m->last, j, 1);
        int64_t rows = first.dim[1], row = number * mine.tokens, behind = number * theirs.tokens;
        place_rows(r, tensor_view(first, DIM(rows)), row, one->first, &mine, &theirs, behind);
        place_rows(r, tensor_view(last, DIM(rows)), row, one->last, &mine, &theirs, behind);
        m->pairs[j] += visible_pairs(one, &mine, &theirs);
    }
}

/* ---- Loading ---------------------------------------------------------------------------------- */

void run_place(Run *r, MicroBatch *m, int64_t number, const Batch *one) {
    double rows = (double)(one->real[0] * r->spec->moe_layers);
    place_own(r, m, number, one);
    place_sights(r, m, number, one);
    device_write(r->model.compute, tensor_rows(m->rows, number, 1), &rows);
}

/* A rank's first sequence of micro-batch `micro`, by its number in the step; the others follow `groups` apart. */
static int64_t first_sequence(const Run *r, int rank, int64_t micro, int64_t groups) {
    int64_t number = rank / r->comm.mesh.axis[AXIS_SEQUENCE].size;
    for (int64_t i = 0; i < micro; i++) number += groups * run_sequences(r, rank, i);
    return number;
}

typedef struct {
    SequenceSource fill;
    void *context;
    bool alike;   /* on sim without data: any sequence stands for all */
    int64_t held; /* the sequence that lies in r->one; -1: none */
} Source;

/* NULL: it cannot be had, and the error says why. */
static const Batch *whole(Run *r, Source *s, int64_t sequence, Error *e) {
    if (s->held == sequence) return &r->one;
    s->held = -1;
    if (!s->fill(r, s->context, sequence, &r->one, e)) return NULL;
    s->held = sequence;
    return &r->one;
}

/* Without data all sequences are alike: a step of billions of them is priced by one. */
static void place_alike(Run *r, MicroBatch *m, const Batch *one) {
    Meter *meter = &r->device->meter;
    int64_t before = meter->copied_up;
    if (m->sequences == 0) return;
    run_place(r, m, 0, one);
    for (int j = 0; j < r->model.cut.ring; j++) m->pairs[j] *= m->sequences;
    meter->copied_up += (m->sequences - 1) * (meter->copied_up - before);
}

/* Members that share a sequence lie side by side, so that it is made once for all of them. */
static bool upload_peers(Run *r, int64_t micro, Source *s, int64_t groups, Error *e) {
    int64_t most = s->alike ? 0 : run_sequences(r, 0, micro); /* the first group has as many as any */
    for (int64_t i = 0; i < most; i++)
        for (int64_t j = 0; j < peers_count(r); j++) {
            int rank = peers_rank(r, j);
            if (i >= run_sequences(r, rank, micro)) continue;
            const Batch *one = whole(r, s, first_sequence(r, rank, micro, groups) + i * groups, e);
            if (!one) return false;
            peers_take(r, j, i, one);
        }
    if (r->peers) peers_load(r, &r->micro[micro], micro);
    return true;
}

bool run_upload(Run *r, SequenceSource source, void *context, Error *e) {
    const Axis *a = &r->comm.mesh.axis[AXIS_SEQUENCE];
    int64_t groups = r->comm.mesh.world / a->size;
    Source s = {.fill = source, .context = context, .alike = r->device->sim && !r->tokens, .held = -1};
    double counts[2] = {0};
    for (int64_t i = 0; i < r->micro_batches; i++) {
        MicroBatch *m = &r->micro[i];
        int64_t first = first_sequence(r, r->comm.mesh.rank, i, groups);
        memset(m->pairs, 0, (size_t)r->model.cut.ring * sizeof *m->pairs);
        const Batch *any = s.alike ? whole(r, &s, 0, e) : NULL;
        if (s.alike && !any) return false;
        if (s.alike) place_alike(r, m, any);
        for (int64_t j = 0; j < m->sequences && !s.alike; j++) {
            const Batch *one = whole(r, &s, first + j * groups, e);
            if (!one) return false;
            run_place(r, m, j, one);
            if (a->index > 0) continue; /* a sequence counts once */
            counts[TRAINED] += (double)one->trained;
            counts[REAL] += (double)one->real[0];
        }
        if (!upload_peers(r, i, &s, groups, e)) return false;
    }
    device_write(r->model.compute, r->counts, counts);
    stream_wait(r->model.network, event_record(r->model.compute));
    all_reduce(&r->comm.group[AXIS_WORLD], r->model.network, r->counts);
    stream_wait(r->model.compute, event_record(r->model.network));
    return true;
}

static bool from_step(Run *r, void *context, int64_t sequence, Batch *one, Error *e) {
    const Config *c = r->config;
    const int64_t *step = context;
    return batch_fill(one, r->tokens, c->train_seed, *step * c->train_sequences + sequence, 1, 1,
                      c->train_sequence_length, r->spec->window, e);
}

bool run_load_batch(Run *r, int64_t step, Error *e) {
    return run_upload(r, from_step, &step, e);
}

/* Where the sequences of an evaluation's batch begin follows from one to the next. They are asked for in order but for a
 * few, and then the walk begins anew. */
typedef struct {
    int64_t first;         /* token that the batch begins with */
    int64_t number, begin; /* of the sequence that was asked for last */
} Walk;

static void walk_to(const Run *r, Walk *w, int64_t sequence) {
    if (sequence < w->number) *w = (Walk){.first = w->first, .begin = w->first};
    for (; w->number < sequence; w->number++)
        w->begin = tokens_uncut(r->tokens, w->begin, r->config->train_sequence_length);
}

static bool from_walk(Run *r, void *context, int64_t sequence, Batch *one, Error *e) {
    Walk *w = context;
    if (r->tokens) walk_to(r, w, sequence);
    return batch_fill_uncut(one, r->tokens, w->begin, r->config->train_sequence_length, r->spec->window, e);
}

bool run_load_uncut(Run *r, int64_t *token, Error *e) {
    Walk w = {.first = *token, .begin = *token};
    if (!run_upload(r, from_walk, &w, e)) return false;
    if (r->tokens) walk_to(r, &w, r->config->train_sequences);
    *token = w.begin;
    return true;
}

/* ---- Around a pass ---------------------------------------------------------------------------- */

void run_begin_micro_batch(Run *r, MicroBatch *b, bool training) {
    Model *m = &r->model;
    const Spec *spec = r->spec;
    share_sequences(m, b);
    b->x = arena_tensor(&r->activations, m->real, DIM(b->tokens, spec->hidden));
    b->rope = arena_tensor(&r->activations, m->sum, DIM(b->tokens, spec->head_dim));
    b->counts = arena_tensor(&r->activations, FP64, DIM(b->sequences, spec->experts));
    b->mass = arena_tensor(&r->activations, FP64, DIM(b->sequences, spec->experts));
    if (training) b->gradient = arena_tensor(&r->activations, m->real, DIM(b->tokens, spec->hidden));
    zero(m->compute, b->counts);
    zero(m->compute, b->mass);
    rope_table(m->compute, b->rope, b->position, spec->rope_theta);
}

void run_begin_pass(Run *r, bool training) {
    run_end_pass(r);
    memset(r->model.load, 0, (size_t)r->spec->experts * sizeof *r->model.load);
    zero(r->model.compute, r->stats);
    for (int64_t i = 0; i < r->micro_batches; i++) run_begin_micro_batch(r, &r->micro[i], training);
}

void run_end_pass(Run *r) {
    arena_reset(&r->activations, (Mark){0});
    arena_reset(&r->host, (Mark){0});
}
