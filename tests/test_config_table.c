/* Every key of a config.json, left out, null and at its other values: mop understands what transformers does, or
 * refuses in a sentence. tests/fixtures/config_table.py made the table and says what a row holds. */
#include "ranks.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
/* cmocka.h wants these before it */
#include <cmocka.h>

enum { LENGTH = 24 };

typedef struct {
    json_t *table;
    int32_t ids[LENGTH];
} Table;

static int open_table(void **state) {
    static Table t;
    Error e = {0};
    size_t i;
    json_t *id;
    t.table = json_read_file("tests/fixtures/config_table.json", 16 << 20, &e);
    if (!t.table) fail_msg("%s", e.text);
    json_array_foreach(json_object_get(t.table, "ids"), i, id) {
        assert_true(i < LENGTH);
        t.ids[i] = (int32_t)json_integer_value(id);
    }
    *state = &t;
    return 0;
}

static int close_table(void **state) {
    json_decref(((Table *)*state)->table);
    return 0;
}

/* ---- Rows --------------------------------------------------------------------------------------- */

typedef struct {
    const json_t *set, *spec; /* spec NULL: transformers refuses */
    double loss;              /* NAN: not compared */
    enum { READS, REFUSES } expected;
    json_t *config;
    char name[400];
} Row;

static Row row_of(const Table *t, const json_t *row) {
    const char *family = json_string_value(json_object_get(row, "family")),
               *mop = json_string_value(json_object_get(row, "mop")), *key;
    json_t *value;
    Row r = {.set = json_object_get(row, "set"), .spec = json_object_get(row, "spec"), .loss = NAN};
    bool refuses = mop ? strcmp(mop, "refuses") == 0 : r.spec == NULL;
    r.expected = refuses ? REFUSES : READS;
    if (json_is_number(json_object_get(row, "loss"))) r.loss = json_number_value(json_object_get(row, "loss"));
    r.config = json_deep_copy(json_object_get(json_object_get(t->table, "base"), family));
    assert_non_null(r.config);
    json_object_foreach((json_t *)r.set, key, value) {
        const char *text = json_string_value(value);
        if (text && strcmp(text, "ABSENT") == 0)
            json_object_del(r.config, key);
        else
            json_object_set(r.config, key, value);
    }
    char *set = json_dumps(r.set, JSON_COMPACT);
    snprintf(r.name, sizeof r.name, "%s %s", family, set);
    free(set);
    return r;
}

static bool same_number(const Row *r, const char *key, double got) {
    const json_t *value = json_object_get(r->spec, key);
    if (!value) return true; /* the model has none */
    double right = json_is_boolean(value) ? json_is_true(value) : json_is_null(value) ? -1 : json_number_value(value);
    if (got == right) return true;
    print_error("%s: %s is %.17g, transformers has %.17g\n", r->name, key, got, right);
    return false;
}

/* The window that a model has, and the keys that the last of LENGTH positions was seen to see. */
static bool same_window(const Row *r, const Spec *s) {
    const json_t *window = json_object_get(r->spec, "window");
    int64_t right = json_is_null(window) ? 0 : json_integer_value(window);
    int64_t seen = s->window ? min64(s->window, LENGTH) : LENGTH;
    if (s->window == right && same_number(r, "seen", (double)seen)) return true;
    print_error("%s: the window is %lld, transformers has %lld\n", r->name, (long long)s->window, (long long)right);
    return false;
}

static bool same_layers(const Row *r, const Spec *s) {
    const json_t *dense = json_object_get(r->spec, "dense"), *each;
    size_t i;
    bool same = true;
    json_array_foreach(dense, i, each) same = same && json_is_true(each) == s->dense[i];
    if (!same) print_error("%s: other layers are dense\n", r->name);
    return same;
}

static bool same_model(const Row *r, const Spec *s) {
    const struct {
        const char *key;
        double got;
    } numbers[] = {{"layers", (double)s->layers},
                   {"hidden", (double)s->hidden},
                   {"heads", (double)s->heads},
                   {"kv_heads", (double)s->kv_heads},
                   {"head_dim", (double)s->head_dim},
                   {"vocabulary", (double)s->vocabulary},
                   {"experts", (double)s->experts},
                   {"top_k", (double)s->top_k},
                   {"expert_hidden", (double)s->expert_hidden},
                   {"dense_hidden", (double)s->dense_hidden},
                   {"normalise_top_k", s->normalise_top_k},
                   {"tied", s->tied},
                   {"pad", (double)s->pad},
                   {"norm_epsilon", s->norm_epsilon},
                   {"rope_theta", s->rope_theta},
                   {"initializer_range", s->initializer_range},
                   {"balance", s->balance}};
    bool same = same_layers(r, s) && same_window(r, s);
    for (size_t i = 0; i < COUNT(numbers); i++) same = same_number(r, numbers[i].key, numbers[i].got) && same;
    return same;
}

/* Whether the row is as it must be; says so when it is not. */
static bool check_row(const Row *r) {
    Spec s;
    Error e = {0};
    bool read = spec_from_json(&s, r->config, "config.json", &e), same = true;
    if (read && r->expected == REFUSES) print_error("%s: read, though it is to be refused\n", r->name);
    if (!read && r->expected == READS) print_error("%s: refused: %s\n", r->name, e.text);
    if (!read && (e.code != EXIT_DATA || !strstr(e.text, "config.json"))) fail_msg("%s: %s", r->name, e.text);
    if (read && r->spec) same = same_model(r, &s);
    if (read) spec_close(&s);
    return same && read == (r->expected == READS);
}

static void every_key_means_what_transformers_means_or_is_refused(void **state) {
    const Table *t = *state;
    size_t i, wrong = 0;
    json_t *each, *rows = json_object_get(t->table, "rows");
    assert_true(json_array_size(rows) > 800);
    json_array_foreach(rows, i, each) {
        Row r = row_of(t, each);
        wrong += !check_row(&r);
        json_decref(r.config);
    }
    if (wrong) fail_msg("%zu of %zu rows are wrong", wrong, json_array_size(rows));
}

/* ---- What the model computes -------------------------------------------------------------------- */

/* config_table.py's weight(), into all that this rank holds. */
static bool fill_weights(Run *run, void *context, Error *e) {
    (void)context;
    (void)e;
    const Slice *slices;
    int64_t count = store_slices(run->store, &slices);
    for (int64_t i = 0; i < count; i++) {
        const Slice *slice = &slices[i];
        double phase = 0;
        for (const char *c = slice->name; *c; c++) phase += (unsigned char)*c;
        for (int64_t j = 0; j < slice->count; j++) {
            double at = (double)(slice->first + j), wave = sin(0.37 * at * at + phase);
            double value = strstr(slice->name, "norm") ? 1 + 0.3 * wave : 0.5 * wave;
            store_copy_in(run->store, slice, STORE_MASTER, j, 1, &value);
        }
    }
    return true;
}

typedef struct {
    const Table *table;
    double loss;
} Task;

static bool give_ids(Run *run, void *context, int64_t sequence, Batch *b, Error *e) {
    const Table *t = ((const Task *)context)->table;
    int64_t window = run->spec->window, V = run->spec->vocabulary;
    (void)sequence;
    (void)e;
    for (int32_t i = 0; i < LENGTH; i++) {
        b->token[i] = (int32_t)(t->ids[i] % V);
        b->target[i] = i + 1 < LENGTH ? (int32_t)(t->ids[i + 1] % V) : -1;
        b->position[i] = i;
        b->first[i] = window ? (int32_t)max64(0, i + 1 - window) : 0;
        b->last[i] = i + 1;
        b->sequence[i] = 0;
    }
    b->tokens = b->real[0] = LENGTH;
    b->trained = LENGTH - 1;
    return true;
}

static bool take_loss(Run *run, void *context, Error *e) {
    Task *task = context;
    StepResult result;
    if (!run_upload(run, give_ids, task, e) || !train_loaded_step(run, 0, false, &result, e)) return false;
    task->loss = result.loss;
    return true;
}

static double loss_of(const Table *t, const Row *r) {
    char *config = json_dumps(r->config, 0);
    Ranks *ranks = ranks_open((RanksSetup){
        .world = 1,
        .spec = config,
        .sets = {"compute.type=fp64", "train.sequence_length=24", "train.sequences=1", "compute.threads=1"}});
    Task task = {.table = t};
    ranks_run(ranks, fill_weights, NULL);
    ranks_run(ranks, take_loss, &task);
    ranks_close(ranks);
    free(config);
    return task.loss;
}

/* transformers computes norms and routing probabilities in fp32, whatever the model's type. */
static void every_config_that_is_read_gives_the_loss_of_transformers(void **state) {
    const Table *t = *state;
    size_t i;
    int64_t compared = 0;
    double worst = 0;
    json_t *each;
    json_array_foreach(json_object_get(t->table, "rows"), i, each) {
        Row r = row_of(t, each);
        if (!isnan(r.loss)) {
            double loss = loss_of(t, &r), error = fabs(loss - r.loss) / r.loss;
            if (!(error < 1e-6)) fail_msg("%s: loss %.10g, transformers %.10g", r.name, loss, r.loss);
            worst = fmax(worst, error);
            compared++;
        }
        json_decref(r.config);
    }
    print_message("    %lld losses, relative difference at most %.1e\n", (long long)compared, worst);
    assert_true(compared > 500);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_key_means_what_transformers_means_or_is_refused),
        cmocka_unit_test(every_config_that_is_read_gives_the_loss_of_transformers),
    };
    return cmocka_run_group_tests(tests, open_table, close_table);
}
