/* Opening and closing a Run: everything that one rank holds, reserved before the first step. */
#include "train/run.h"
#include "train/answers.h"

#include "model/spec_compare.h"

#include "ops/kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Sequences in micro-batch `micro` of a rank's sequence group: sequence i of a step is group i mod (W / D)'s, whose
 * list is cut into micro-batches that differ by at most one. */
static int64_t sequences_of(const Config *c, int world, int rank, int64_t micro) {
    int64_t size = c->mixture_ulysses * c->mixture_ring, groups = world / size;
    int64_t mine = (c->train_sequences - rank / size + groups - 1) / groups;
    return mine / c->train_micro_batches + (micro < mine % c->train_micro_batches);
}

int64_t run_largest_batch(const Config *c, int world) {
    Cut cut = cut_of(c);
    int64_t most = 0;
    for (int r = 0; r < cut.ulysses * cut.ring; r++)
        most = max64(most, sequences_of(c, world, r, 0) * cut_rank(&cut, r).tokens);
    return most;
}

/* Slots of a micro-batch and rows of a round are numbered in 32 bits: all that may come to one rank must fit. */
static bool rows_fit(const Config *c, const Spec *spec, int world, Error *e) {
    double tokens = (double)run_largest_batch(c, world), round = tokens, k = (double)spec->top_k;
    if (c->mixture_dispatch_tokens > 0) round = fmin(round, (double)c->mixture_dispatch_tokens);
    double rows = k * fmax(tokens, round * (double)c->mixture_expert);
    double whole = (double)sequences_of(c, world, 0, 0) * (double)c->train_sequence_length;
    if (whole > INT32_MAX)
        return fail(e, EXIT_USAGE,
                    "a micro-batch has %.2g tokens of whole sequences, and rows are numbered in 32 bits; use more "
                    "train.micro_batches or a smaller train.sequence_length",
                    whole);
    if (rows <= INT32_MAX) return true;
    return fail(e, EXIT_USAGE,
                "a micro-batch of %.0f tokens a rank, %.0f of them in a round, may bring %.2g rows to one rank's "
                "experts, and rows are numbered in 32 bits; "
                "use a smaller mixture.dispatch_tokens, more train.micro_batches or more ranks",
                tokens, round, rows);
}

int64_t run_dispatch_rounds(const Config *c, int world) {
    int64_t most = run_largest_batch(c, world);
    return c->mixture_dispatch_tokens > 0 ? max64(1, ceil_div(most, c->mixture_dispatch_tokens)) : 1;
}

int64_t run_loss_rounds(const Config *c, int world) {
    int64_t most = run_largest_batch(c, world), tokens = max64(1, c->mixture_loss_chunk / c->mixture_vocabulary);
    return max64(1, ceil_div(most, tokens));
}

/* More would be work for days, in a plan too. Layers and micro-batches have their own rounds. */
static bool rounds_are_few(const Config *c, const Spec *spec, int world, Error *e) {
    enum { MOST_ROUNDS = 1 << 22 };
    const struct {
        const char *key;
        int64_t rounds, times;
    } rows[] = {{"mixture.dispatch_tokens", run_dispatch_rounds(c, world), spec->moe_layers},
                {"mixture.loss_chunk", run_loss_rounds(c, world), 1}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        int64_t rounds = rows[i].rounds * rows[i].times * c->train_micro_batches;
        if (rounds > MOST_ROUNDS)
            return fail(
                e, EXIT_USAGE,
                "%s cuts the up to %lld tokens of a micro-batch into so many parts that a step has %lld rounds, "
                "and %d are the most; use a larger %s",
                rows[i].key, (long long)run_largest_batch(c, world), (long long)rounds, MOST_ROUNDS, rows[i].key);
    }
    return true;
}

static bool heads_divide(const Config *c, const Spec *spec, Error *e) {
    if (spec->heads % c->mixture_ulysses == 0) return true;
    return fail(
        e, EXIT_USAGE,
        "mixture.ulysses = %lld does not divide the model's %lld query heads; use a divisor of both %lld and the "
        "ranks, or mixture.ring",
        (long long)c->mixture_ulysses, (long long)spec->heads, (long long)spec->heads);
}

bool run_supported(const Config *c, const Spec *spec, int world, Error *e) {
    Mesh m;
    if (strncmp(c->device, "cuda:", 5) == 0)
        return fail(
            e, EXIT_USAGE,
            "device %s: this version has no ops on a GPU and cannot run a model there; `mop doctor` measures it; use "
            "cpu, or sim:h100x1 to plan for one",
            text_shown(c->device).text);
    if (spec->moe_layers == 0)
        return fail(e, EXIT_DATA,
                    "the model has no layer with experts; mop trains mixture-of-experts models; check model.config");
    if (spec->head_dim > MAX_HEAD_SIZE)
        return fail(e, EXIT_DATA, "head_dim %lld is larger than %d, the largest that is built; use another model",
                    (long long)spec->head_dim, MAX_HEAD_SIZE);
    return mesh_plan(&m, c, world, 0, e) && heads_divide(c, spec, e) && rows_fit(c, spec, world, e) &&
           rounds_are_few(c, spec, world, e);
}

int64_t run_sequences(const Run *r, int rank, int64_t micro) {
    if (r->generating) return rank < r->comm.mesh.axis[AXIS_SEQUENCE].size;
    return sequences_of(r->config, r->comm.mesh.world, rank, micro);
}

int64_t run_tokens(const Run *r, int rank, int64_t micro) {
    return run_sequences(r, rank, micro) * cut_rank(&r->model.cut, rank).tokens;
}

/* The first sequence group has as many sequences as any. */
int64_t run_most_tokens(const Run *r, int64_t micro) {
    int64_t most = 0;
    for (int rank = 0; rank < r->comm.mesh.axis[AXIS_SEQUENCE].size; rank++)
        most = max64(most, run_tokens(r, rank, micro));
    return most;
}

/* ---- The batch's memory ------------------------------------------------------------------------ */

static bool open_one(Run *r, Error *e) {
    int64_t S = r->config->train_sequence_length;
    int32_t *host = calloc((size_t)(7 * S), sizeof *host);
    int64_t *real = calloc(1, sizeof *real);
    r->one = (Batch){.token = host,
                     .target = host + S,
                     .position = host + 2 * S,
                     .first = host + 3 * S,
                     .last = host + 4 * S,
                     .sequence = host + 5 * S,
                     .real = real};
    r->row = host + 6 * S;
    if (host && real) return true;
    return fail(e, EXIT_MEMORY, "no memory for a sequence of %lld tokens; use a smaller train.sequence_length",
                (long long)S);
}

static bool no_memory(const Run *r, Error *e) {
    return fail(e, EXIT_MEMORY,
                "no memory for the tables of a rank with %lld micro-batches; use fewer ranks or train.micro_batches",
                (long long)r->micro_batches);
}

static bool open_batches(Run *r, Error *e) {
    const Cut *cut = &r->model.cut;
    Arena *a = &r->batch_arena;
    int ring = cut->ring, own = r->comm.mesh.axis[AXIS_RING].index;
    if (!open_one(r, e)) return false;
    for (int64_t i = 0; i < r->micro_batches; i++) {
        MicroBatch *m = &r->micro[i];
        m->sequences = run_sequences(r, r->comm.mesh.rank, i);
        m->tokens = run_tokens(r, r->comm.mesh.rank, i);
        m->most = run_most_tokens(r, i);
        Tensor *ints[] = {&m->token, &m->target, &m->position, &m->sequence};
        for (size_t j = 0; j < COUNT(ints); j++) *ints[j] = arena_tensor(a, INT32, DIM(m->tokens));
        int64_t rows = m->sequences * cut_ring_member(cut, own).tokens;
        m->first = arena_tensor(a, INT32, DIM(ring, rows));
        m->last = arena_tensor(a, INT32, DIM(ring, rows));
        m->keys = arena_tensor(a, INT32, DIM(rows));
        m->rows = arena_tensor(a, FP64, DIM(m->sequences));
        m->pairs = calloc((size_t)ring, sizeof *m->pairs);
        if (!m->pairs) return no_memory(r, e);
    }
    r->counts = arena_tensor(a, FP64, DIM(2));
    r->stats = arena_tensor(a, FP64, DIM(STAT_LOAD + r->spec->experts));
    r->stats_host = calloc((size_t)(STAT_LOAD + r->spec->experts + 2), sizeof *r->stats_host);
    r->model.load = calloc((size_t)r->spec->experts, sizeof *r->model.load);
    return (r->stats_host && r->model.load) || no_memory(r, e);
}

/* No member can work for more experts than others have: all but its own, of which the last member has fewest. All
 * members have as many slots. */
static int64_t import_slots(const Config *c, const Spec *spec, const Axis *expert) {
    if (expert->size == 1) return 0;
    int64_t fewest = max64(0, spec->experts - (expert->size - 1) * ceil_div(spec->experts, expert->size));
    return min64(c->mixture_balance_imports, spec->experts - fewest);
}

static void open_model(Run *r) {
    const Config *c = r->config;
    const Spec *spec = r->spec;
    Axis expert = r->comm.mesh.axis[AXIS_EXPERT];
    double balance = c->loss_balance >= 0 ? c->loss_balance : spec->balance,
           z = c->loss_router_z >= 0 ? c->loss_router_z : spec->router_z;
    Model *m = &r->model;
    m->spec = spec;
    m->real = c->compute_type;
    m->sum = type_sum(c->compute_type);
    m->device = r->device;
    m->compute = &r->device->stream[STREAM_COMPUTE];
    m->network = &r->device->stream[STREAM_NETWORK];
    m->comm = &r->comm;
    m->recompute = c->compute_activations == ACTIVATIONS_RECOMPUTE;
    m->ulysses_heads = c->mixture_ulysses_heads;
    m->loss_chunk = c->mixture_loss_chunk;
    m->loss_travel = c->mixture_loss_travel;
    m->vocabulary = axis_share(&r->comm.mesh.axis[AXIS_VOCABULARY], spec->vocabulary);
    m->frozen = spec_frozen(spec, c->train_pad_row);
    m->experts_each = ceil_div(spec->experts, expert.size);
    m->expert_first = min64(spec->experts, expert.index * m->experts_each);
    m->experts_here = min64(m->experts_each, spec->experts - m->expert_first);
    m->dispatch_tokens = c->mixture_dispatch_tokens;
    m->imports = import_slots(c, spec, &expert);
    m->balance_threshold = c->mixture_balance_threshold;
    m->saved = &r->activations;
    m->work = &r->work;
    m->host = &r->host;
    m->z = tensor_rows(r->stats, STAT_Z, 1);
    m->real_positions = tensor_rows(r->counts, REAL, 1);
    m->route_loss = (RouteLoss){.normalise = spec->normalise_top_k,
                                .balance = balance / (double)c->train_sequences,
                                .z = z / (double)spec->moe_layers};
}

static bool open_arenas(Run *r, const size_t *bytes, Error *e) {
    Device *d = r->device;
    return arena_open(&r->activations, d, "activations", TIER_DEVICE, bytes[ARENA_ACTIVATIONS], e) &&
           arena_open(&r->work, d, "work", TIER_DEVICE, bytes[ARENA_WORK], e) &&
           arena_open(&r->batch_arena, d, "batch", TIER_DEVICE, bytes[ARENA_BATCH], e) &&
           arena_open(&r->host, d, "host", TIER_HOST, bytes[ARENA_HOST], e);
}

static bool greet(Comm *comm, const Common *c, Error *e) {
    const Shared things[] = {
        {"the version of mop differs", "install the same mop on every host", hash_line(HASH_START, MOP_VERSION)},
        {"the command or its arguments differ", "give every rank the same command line", c->request},
        {"the settings differ", "give every rank the same configuration and the same --set", config_shared(c->config)},
        {"the model's description differs", "give every host the same config.json", spec_hash(c->spec)},
        {"the tokenizer differs", "give every host the same tokenizer.json",
         c->tokenizer ? tokenizer_hash(c->tokenizer) : 0},
        {"the data differs", "give every host the same files at data.path",
         c->tokens ? tokens_info(c->tokens).hash : 0},
    };
    return comm_greet(comm, things, COUNT(things), e);
}

static bool open_all(Run *r, Wire *wire, const char *device, const size_t *bytes, const Common *common, Error *e) {
    const Config *c = r->config;
    Mesh mesh;
    if (!mesh_plan(&mesh, c, wire->world, wire->rank, e)) return false;
    const Kernels *kernels = kernels_for(device, e);
    if (e->code != EXIT_DONE) return false;
    r->device = device_open(device, (int)max64(1, c->compute_threads), kernels, e);
    if (!r->device) return false;
    device_rate(r->device, c->compute_type);
    r->comm.device = r->device;
    if (!comm_open(&r->comm, &mesh, wire, r->device, e)) return false;
    if (!r->device->sim && !greet(&r->comm, common, e)) return false;
    if (!open_arenas(r, bytes, e)) return false;
    r->store = store_open(c, r->spec, &r->comm, bytes, e);
    if (!r->store) return false;
    r->model.cut = cut_of(c);
    if (!open_batches(r, e) || !peers_open(r, e)) return false;
    open_model(r);
    r->answers = answers_open(r, e);
    if (!r->answers) return false;
    const Error *failed = device_failed(r->device); /* sim: more than any machine has */
    return !failed || fail(e, failed->code, "%s", failed->text);
}

Run *run_open(const Common *common, Wire *wire, const char *device, const Price *sizes, Error *e) {
    const Config *c = common->config;
    const Spec *spec = common->spec;
    enum { HOST_SPARE = 1 << 20 };
    size_t bytes[ARENA_COUNT];
    for (int a = 0; a < ARENA_COUNT; a++)
        bytes[a] = sizes             ? sizes->bytes[a]
                   : a == ARENA_HOST ? (size_t)run_host_bytes(c, spec, wire->world) + HOST_SPARE
                                     : (size_t)1 << SIM_ARENA_BITS;
    Run *r = calloc(1, sizeof *r);
    if (!r) {
        fail(e, EXIT_MEMORY, "no memory for a rank; use fewer ranks, or free some memory");
        return NULL;
    }
    *r = (Run){.config = c, .spec = spec, .tokens = common->tokens, .micro_batches = c->train_micro_batches};
    r->micro = calloc((size_t)r->micro_batches, sizeof *r->micro);
    r->saved = calloc((size_t)(r->micro_batches * spec->layers), sizeof *r->saved);
    r->marks = calloc((size_t)spec->layers, sizeof *r->marks);
    bool ok = (r->micro && r->saved && r->marks) || no_memory(r, e);
    if (ok && open_all(r, wire, device, bytes, common, e)) return r;
    run_close(r);
    return NULL;
}

void run_close(Run *r) {
    if (!r) return;
    if (r->device) device_settle(r->device);
    answers_close(r->answers);
    peers_close(r);
    store_close(r->store);
    if (r->comm.device) comm_close(&r->comm);
    arena_close(&r->activations);
    arena_close(&r->work);
    arena_close(&r->batch_arena);
    arena_close(&r->host);
    device_close(r->device);
    for (int64_t i = 0; r->micro && i < r->micro_batches; i++) free(r->micro[i].pairs);
    free(r->one.token);
    free(r->one.real);
    free(r->stats_host);
    free(r->model.load);
    free(r->micro);
    free(r->saved);
    free(r->marks);
    free(r);
}

/* ---- Memory ------------------------------------------------------------------------------------ */

Arena *run_arena(Run *r, ArenaName a) {
    StoreArenas *s = store_arenas(r->store);
    Arena *const arenas[ARENA_COUNT] = {
        [ARENA_WEIGHTS] = &s->weights,   [ARENA_OPTIMIZER] = &s->state,         [ARENA_GRADIENTS] = &s->gradients,
        [ARENA_SLOTS] = &s->slots,       [ARENA_ACTIVATIONS] = &r->activations, [ARENA_WORK] = &r->work,
        [ARENA_BATCH] = &r->batch_arena, [ARENA_STAGING] = &r->comm.arena,      [ARENA_HOST] = &r->host,
    };
    return arenas[a];
}

void run_price(Run *r, Price *out) {
    *out = (Price){.meter = r->device->meter};
    for (int a = 0; a < ARENA_COUNT; a++) {
        const Arena *arena = run_arena(r, (ArenaName)a);
        out->name[a] = arena->name;
        out->tier[a] = arena->tier;
        out->bytes[a] = arena->peak;
        memcpy(out->by[a], arena->by_at_peak, sizeof out->by[a]);
    }
    for (int s = 0; s < STREAM_COUNT; s++)
        if (r->device->stream[s].clock > out->seconds) out->seconds = r->device->stream[s].clock;
}

bool run_within(Run *r, const Price *plan) {
    for (int a = 0; a < ARENA_COUNT; a++)
        if (run_arena(r, (ArenaName)a)->peak > plan->bytes[a]) return false;
    return true;
}

size_t run_memory(Run *r) {
    size_t bytes = 0;
    for (int a = 0; a < ARENA_COUNT; a++) bytes += run_arena(r, (ArenaName)a)->peak;
    return bytes;
}
