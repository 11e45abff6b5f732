/* The helpers of ranks.h. */
#include "ranks.h"

#include "base/random.h"
#include "ops/kernels.h"
#include "plan/plan.h"

#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static void *needed(size_t count, size_t bytes) {
    void *p = calloc(count ? count : 1, bytes);
    assert_non_null(p);
    return p;
}

/* ---- Opening ---------------------------------------------------------------------------------- */

static void read_config(Ranks *r, const RanksSetup *setup) {
    const char *yaml = setup->yaml ? setup->yaml : "";
    int n = 0;
    while (n < (int)COUNT(setup->sets) && setup->sets[n]) n++;
    Error e = {0};
    if (!config_read_text(&r->config, yaml, strlen(yaml), "test", setup->sets, n, &e)) fail_msg("%s", e.text);
    Config *c = &r->config;
    c->ranks = r->world;
    if (c->mixture_dense == 0) c->mixture_dense = r->world;
    if (c->compute_threads == 0) c->compute_threads = 1;
}

static void read_spec(Ranks *r, const char *spec) {
    Error e = {0};
    bool ok;
    if (*spec == '{') {
        json_error_t where;
        json_t *config = json_loads(spec, 0, &where);
        if (!config) fail_msg("the spec's text: %s in line %d", where.text, where.line);
        ok = spec_from_json(&r->spec, config, "test", &e);
        json_decref(config);
    } else {
        ok = spec_read(&r->spec, spec, &e);
    }
    if (!ok) fail_msg("%s", e.text);
}

static Tokens *open_paths(const char *const *paths) {
    Error e = {0};
    Tokenizer *t = tokenizer_open(NULL, &e);
    Tokens *tokens = t ? tokens_open(paths, t, &e) : NULL;
    tokenizer_close(t);
    if (!tokens) fail_msg("%s", e.text);
    return tokens;
}

static Tokens *open_text(const char *jsonl) {
    char path[] = "/tmp/mop-test-XXXXXX.jsonl";
    int fd = mkstemps(path, 6);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, jsonl, strlen(jsonl)), strlen(jsonl));
    close(fd);
    Tokens *t = open_paths((const char *const[]){path, NULL});
    unlink(path);
    return t;
}

static void open_tokens(Ranks *r, const char *documents) {
    Error e = {0};
    if (documents)
        r->tokens = open_text(documents);
    else if (r->config.data_path[0])
        r->tokens = open_paths(r->config.data_path);
    if (r->tokens && !tokens_fit(r->tokens, r->spec.vocabulary, &e)) fail_msg("%s", e.text);
}

static void open_rank(void *context, int rank) {
    Ranks *r = context;
    Error *e = &r->error[rank];
    Price sizes = r->price[rank];
    for (int a = 0; r->roomy && a < ARENA_COUNT; a++) sizes.bytes[a] = 2 * sizes.bytes[a] + (1 << 20);
    Common common = {.config = &r->config, .spec = &r->spec, .tokens = r->tokens};
    r->run[rank] = run_open(&common, r->wires[rank], r->config.device, &sizes, e);
    if (!r->run[rank])
        r->wires[rank]->poison(r->wires[rank], e);
    else if (!r->run[rank]->device->sim)
        store_initialise(r->run[rank]->store, (uint64_t)r->config.train_seed);
}

static void assert_no_errors(const Ranks *r) {
    for (int i = 0; i < r->world; i++)
        if (r->error[i].code != EXIT_DONE && r->error[i].code != EXIT_PEER)
            fail_msg("rank %d: %s", i, r->error[i].text);
    for (int i = 0; i < r->world; i++)
        if (r->error[i].code != EXIT_DONE) fail_msg("rank %d: %s", i, r->error[i].text);
}

Ranks *ranks_open(RanksSetup setup) {
    Ranks *r = needed(1, sizeof *r);
    size_t world = (size_t)setup.world;
    *r = (Ranks){.world = setup.world,
                 .roomy = setup.roomy,
                 .wires = needed(world, sizeof(Wire *)),
                 .price = needed(world, sizeof *r->price),
                 .run = needed(world, sizeof(Run *)),
                 .error = needed(world, sizeof *r->error)};
    Error e = {0};
    read_config(r, &setup);
    read_spec(r, setup.spec);
    open_tokens(r, setup.documents);
    if (!run_supported(&r->config, &r->spec, r->world, &e)) fail_msg("%s", e.text);
    if (!plan_price(&r->config, &r->spec, r->world, r->price, &e)) fail_msg("%s", e.text);
    bool late = strcmp(r->config.device, "cpu:late") == 0;
    if (!wire_threads_open(r->wires, r->world, r->config.comm_timeout, late, &e)) fail_msg("%s", e.text);
    if (!threads_run(r->world, open_rank, r, &e)) fail_msg("%s", e.text);
    assert_no_errors(r);
    return r;
}

void ranks_close(Ranks *r) {
    for (int i = 0; i < r->world; i++) run_close(r->run[i]);
    for (int i = 0; i < r->world; i++) r->wires[i]->close(r->wires[i]);
    tokens_close(r->tokens);
    spec_close(&r->spec);
    config_close(&r->config);
    free(r->wires);
    free(r->price);
    free(r->run);
    free(r->error);
    free(r);
}

/* ---- Running ---------------------------------------------------------------------------------- */

typedef struct {
    Ranks *ranks;
    RanksBody body;
    void *context;
} Job;

static void run_body(void *context, int rank) {
    Job *j = context;
    Error *e = &j->ranks->error[rank];
    *e = (Error){0};
    if (!j->body(j->ranks->run[rank], j->context, e)) j->ranks->wires[rank]->poison(j->ranks->wires[rank], e);
}

bool ranks_try(Ranks *r, RanksBody body, void *context) {
    Error e = {0};
    if (!threads_run(r->world, run_body, &(Job){r, body, context}, &e)) fail_msg("%s", e.text);
    for (int i = 0; i < r->world; i++)
        if (r->error[i].code != EXIT_DONE) return false;
    return true;
}

void ranks_run(Ranks *r, RanksBody body, void *context) {
    ranks_try(r, body, context);
    assert_no_errors(r);
}

typedef struct {
    int64_t first, count;
    StepResult *results; /* [world][count] */
} Training;

static bool train(Run *run, void *context, Error *e) {
    Training *t = context;
    StepResult *mine = t->results + run->comm.mesh.rank * t->count;
    for (int64_t i = 0; i < t->count; i++)
        if (!train_step(run, t->first + i, false, &mine[i], e)) return false;
    return true;
}

void ranks_train(Ranks *r, int64_t first, int64_t count, StepResult *out) {
    Training t = {first, count, needed((size_t)(r->world * count), sizeof(StepResult))};
    ranks_run(r, train, &t);
    for (int i = 1; i < r->world; i++)
        assert_results_same_bits("a rank against rank 0", t.results + i * count, t.results, count);
    if (out) memcpy(out, t.results, (size_t)count * sizeof *out);
    free(t.results);
}

bool do_everything(Run *r, void *context, Error *e) {
    StepResult out;
    Evaluation evaluation;
    int32_t ids[40] = {0};
    (void)context;
    return train_step(r, 0, false, &out, e) && train_step(r, 1, false, &out, e) && evaluate(r, &evaluation, e) &&
           generate(r, ids, 20, 1, (Sampling){0}, e) && train_step(r, 2, false, &out, e);
}

Price *ranks_prices(Ranks *r) {
    Price *p = needed((size_t)r->world, sizeof *p);
    for (int i = 0; i < r->world; i++) run_price(r->run[i], &p[i]);
    return p;
}

void assert_within_plan(const char *what, Ranks *r, const Price *used) {
    for (int i = 0; i < r->world; i++)
        for (int a = 0; a < ARENA_COUNT; a++)
            if (used[i].bytes[a] > r->price[i].bytes[a])
                fail_msg("%s: rank %d of %d used %zu bytes of %s, the plan says %zu", what, i, r->world,
                         used[i].bytes[a], used[i].name[a], r->price[i].bytes[a]);
}

static bool same_bits(double a, double b) {
    return memcmp(&a, &b, sizeof a) == 0;
}

void assert_results_same_bits(const char *what, const StepResult *got, const StepResult *expected, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        const StepResult *g = &got[i], *x = &expected[i];
        const struct {
            const char *name;
            double got, expected;
        } rows[] = {
            {"loss", g->loss, x->loss},
            {"balance loss", g->balance, x->balance},
            {"z loss", g->router_z, x->router_z},
            {"gradient norm", g->norm, x->norm},
            {"learning rate", g->learning_rate, x->learning_rate},
            {"load", g->load, x->load},
            {"trained positions", (double)g->trained, (double)x->trained},
            {"finite", g->finite, x->finite},
        };
        for (size_t j = 0; j < COUNT(rows); j++)
            if (!same_bits(rows[j].got, rows[j].expected))
                fail_msg("%s: %s of step %lld is %.17g, expected the bits of %.17g", what, rows[j].name,
                         (long long)x->step, rows[j].got, rows[j].expected);
    }
}

/* ---- Collections ------------------------------------------------------------------------------ */

/* Counts the owners of every element that this rank owns, in the order of c's elements; of all others this rank must
 * hold what their owner holds. */
static void check_slices(Run *run, StoreKind kind, const Collection *c, unsigned char *owners, const int64_t *at) {
    const Slice *slice;
    int64_t n = store_slices(run->store, &slice);
    Type type = store_type(run->store, kind);
    for (int64_t i = 0; i < n; i++) {
        const Slice *s = &slice[i];
        const NamedTensor *t = collection_find(c, s->name);
        for (int64_t j = 0; s->owner && j < s->count; j++) owners[at[t - c->tensor] + s->first + j]++;
        if (s->owner) continue;
        void *bytes = needed((size_t)s->count, type_bytes(type));
        store_copy_out(run->store, s, kind, 0, s->count, bytes);
        Tensor values = tensor_at(bytes, type, DIM(s->count));
        for (int64_t j = 0; j < s->count; j++) {
            double x = tensor_get(values, j);
            if (!same_bits(x, t->value[s->first + j]))
                fail_msg("rank %d holds %.17g for %s[%lld], its owner %.17g", run->comm.mesh.rank, x, s->name,
                         (long long)(s->first + j), t->value[s->first + j]);
        }
        free(bytes);
    }
}

static Collection open_collection(Ranks *r) {
    Store **stores = needed((size_t)r->world, sizeof(Store *));
    for (int i = 0; i < r->world; i++) stores[i] = r->run[i]->store;
    Collection c;
    Error e = {0};
    if (!collection_open(&c, stores, r->world, &e)) fail_msg("%s", e.text);
    free(stores);
    return c;
}

Collection ranks_collect(Ranks *r, StoreKind kind) {
    Collection c = open_collection(r);
    int64_t *at = needed((size_t)c.count, sizeof *at), all = 0;
    for (int64_t i = 0; i < c.count; i++) {
        at[i] = all;
        all += c.tensor[i].count;
    }
    assert_int_equal(all, spec_parameters(&r->spec));
    unsigned char *owners = needed((size_t)all, 1);
    for (int i = 0; i < r->world && kind != STORE_GRADIENT; i++) store_flush(r->run[i]->store);
    for (int i = 0; i < r->world; i++) collection_take(&c, r->run[i]->store, kind);
    for (int i = 0; i < r->world; i++) check_slices(r->run[i], kind, &c, owners, at);
    for (int64_t i = 0; i < c.count; i++)
        for (int64_t j = 0; j < c.tensor[i].count; j++)
            if (owners[at[i] + j] != 1)
                fail_msg("%s[%lld] has %d owners", c.tensor[i].name, (long long)j, owners[at[i] + j]);
    free(owners);
    free(at);
    return c;
}

static void put_values(Run *run, const Slice *s, StoreKind kind, int64_t offset, int64_t count, const double *value) {
    Type type = store_type(run->store, kind);
    void *bytes = needed((size_t)count, type_bytes(type));
    Tensor values = tensor_at(bytes, type, DIM(count));
    for (int64_t j = 0; j < count; j++) tensor_put(values, j, value[j]);
    store_copy_in(run->store, s, kind, offset, count, bytes);
    free(bytes);
}

void ranks_put(Ranks *r, StoreKind kind, const Collection *c) {
    for (int i = 0; i < r->world; i++) {
        const Slice *slice;
        int64_t n = store_slices(r->run[i]->store, &slice);
        store_flush(r->run[i]->store);
        for (int64_t j = 0; j < n; j++)
            put_values(r->run[i], &slice[j], kind, 0, slice[j].count,
                       collection_find(c, slice[j].name)->value + slice[j].first);
    }
}

bool ranks_poke(Ranks *r, int rank, StoreKind kind, const char *name, int64_t element, double value) {
    const Slice *slice;
    int64_t n = store_slices(r->run[rank]->store, &slice);
    store_flush(r->run[rank]->store);
    for (int64_t i = 0; i < n; i++) {
        const Slice *s = &slice[i];
        if (strcmp(s->name, name) != 0 || element < s->first || element >= s->first + s->count) continue;
        put_values(r->run[rank], s, kind, element - s->first, 1, &value);
        return true;
    }
    return false;
}

/* Feature 0 comes from the embedding alone, and alone goes into the router. */
void collection_steer(Collection *weights, int64_t experts, double (*wish)(int64_t expert, int64_t experts)) {
    for (int64_t i = 0; i < weights->count; i++) {
        NamedTensor *t = &weights->tensor[i];
        int64_t columns = t->dims == 2 ? t->dim[1] : 0;
        bool embedding = strstr(t->name, "embed_tokens"),
             router = strstr(t->name, "mlp.gate.weight") || strstr(t->name, "moe.gate.weight");
        bool adds = strstr(t->name, "o_proj") || strstr(t->name, "down_proj") || strstr(t->name, "w2");
        if (t->dims == 1 && !strstr(t->name, "q_norm") && !strstr(t->name, "k_norm")) t->value[0] = 1;
        for (int64_t j = 0; embedding && j < t->dim[0]; j++) t->value[j * columns] = 20;
        for (int64_t j = 0; adds && j < columns; j++) t->value[j] = 0;
        for (int64_t e = 0; router && e < t->dim[0]; e++) t->value[e * columns] = wish(e, experts);
    }
}

/* ---- Comparison ------------------------------------------------------------------------------- */

static void assert_same_names(const char *what, const Collection *got, const Collection *expected) {
    if (got->count != expected->count)
        fail_msg("%s: %lld tensors, expected %lld", what, (long long)got->count, (long long)expected->count);
    for (int64_t i = 0; i < got->count; i++) {
        const NamedTensor *g = &got->tensor[i], *x = &expected->tensor[i];
        if (strcmp(g->name, x->name) != 0 || g->count != x->count)
            fail_msg("%s: tensor %s of %lld elements, expected %s of %lld", what, g->name, (long long)g->count, x->name,
                     (long long)x->count);
    }
}

void assert_collections_close(const char *what, const Collection *got, const Collection *expected, double bound) {
    assert_same_names(what, got, expected);
    double *scale = collection_scales(expected);
    for (int64_t i = 0; i < expected->count; i++) {
        const NamedTensor *g = &got->tensor[i], *x = &expected->tensor[i];
        double sum = 0;
        for (int64_t j = 0; j < x->count; j++) sum += (g->value[j] - x->value[j]) * (g->value[j] - x->value[j]);
        if (!(sqrt(sum) <= bound * scale[i]))
            fail_msg("%s: %s is off by %.3g of its scale %.3g, allowed %.3g", what, x->name, sqrt(sum) / scale[i],
                     scale[i], bound);
    }
    free(scale);
}

void assert_collections_same_bits(const char *what, const Collection *got, const Collection *expected) {
    assert_same_names(what, got, expected);
    for (int64_t i = 0; i < expected->count; i++) {
        const NamedTensor *g = &got->tensor[i], *x = &expected->tensor[i];
        for (int64_t j = 0; j < x->count; j++)
            if (!same_bits(g->value[j], x->value[j]))
                fail_msg("%s: %s[%lld] is %.17g, expected the bits of %.17g", what, x->name, (long long)j, g->value[j],
                         x->value[j]);
    }
}

/* ---- Documents -------------------------------------------------------------------------------- */

char *random_documents(int documents, int longest, int vocabulary, uint64_t seed) {
    size_t room = (size_t)documents * (32 + (size_t)longest * 8), used = 0;
    char *text = needed(room, 1);
    uint64_t draw = 0;
    for (int d = 0; d < documents; d++) {
        int n = 1 + (int)(random_bits(seed, RANDOM_TEST, 2, draw++) % (uint64_t)longest);
        used += (size_t)snprintf(text + used, room - used, "{\"input_ids\": [");
        for (int i = 0; i < n; i++) {
            int id = (int)(random_bits(seed, RANDOM_TEST, 2, draw++) % (uint64_t)vocabulary);
            used += (size_t)snprintf(text + used, room - used, "%s%d", i ? ", " : "", id);
        }
        used += (size_t)snprintf(text + used, room - used, "]}\n");
    }
    return text;
}
