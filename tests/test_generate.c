/* Where a generated text begins and ends, on every rank alike, and what it says when the model cannot go on. */
#include "store/finite.h"
#include "train/prompt.h"
#include "trials.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* cmocka.h wants these before it */
#include <cmocka.h>

enum { GIVEN = 4, MORE = 12, WORLD = 4 };

static const Layout layouts[] = {
    {1, ""}, {2, "vocabulary=2"}, {3, "expert=3 dense=1"}, {4, "ulysses=2 ring=2 expert=2"}};

typedef struct {
    Sampling how;
    bool ok[WORLD];
    Generated out[WORLD];
    int32_t ids[WORLD][GIVEN + MORE];
    Error error[WORLD];
} Written;

/* Always true: what a rank met is in the text. */
static bool write_text(Run *r, void *context, Error *e) {
    Written *t = context;
    int rank = r->comm.mesh.rank;
    Sampling how = t->how;
    (void)e;
    how.out = &t->out[rank];
    for (int i = 0; i < GIVEN; i++) t->ids[rank][i] = 9 * i + 2;
    t->ok[rank] = generate(r, t->ids[rank], GIVEN, MORE, how, &t->error[rank]);
    return true;
}

static Written text_of(Layout l, Sampling how) {
    Written t = {.how = how};
    Ranks *r = trial_open("olmoe", l, &(Trial){0});
    ranks_run(r, write_text, &t);
    ranks_close(r);
    return t;
}

static void a_text_stops_at_its_end_on_all_ranks_together(void **state) {
    (void)state;
    Written whole = text_of(layouts[0], (Sampling){0});
    const int32_t *ids = whole.ids[0];
    int64_t end = GIVEN + 5;
    TextEnds ends = {.id = {66, ids[end]}, .count = 2};
    assert_int_equal(whole.out[0].made, MORE);
    for (int64_t i = end - 1; i >= GIVEN; i--)
        if (ids[i] == ids[GIVEN + 5] || ids[i] == 66) end = i;
    for (size_t i = 0; i < COUNT(layouts); i++) {
        Written t = text_of(layouts[i], (Sampling){.ends = &ends});
        for (int rank = 0; rank < layouts[i].world; rank++) {
            assert_true(t.ok[rank]);
            assert_int_equal(t.out[rank].made, end - GIVEN);
            assert_memory_equal(t.ids[rank], ids, (size_t)end * sizeof *ids);
        }
    }
}

/* What is given may hold the end of another text. */
static void an_end_in_the_prompt_ends_nothing(void **state) {
    (void)state;
    Written whole = text_of(layouts[0], (Sampling){0});
    TextEnds ends = {.id = {9 * (GIVEN - 1) + 2}, .count = 1};
    for (int i = GIVEN; i < GIVEN + MORE; i++) assert_true(whole.ids[0][i] != ends.id[0]);
    assert_int_equal(text_of(layouts[1], (Sampling){.ends = &ends}).out[0].made, MORE);
}

static void texts_of_two_steps_are_drawn_apart_and_those_of_one_alike(void **state) {
    (void)state;
    Sampling how = {.temperature = 1, .top_p = 1, .seed = 5, .step = 10};
    Written first = text_of(layouts[0], how), again = text_of(layouts[1], how);
    how.step = 11;
    Written second = text_of(layouts[0], how);
    assert_memory_equal(first.ids[0], again.ids[0], sizeof first.ids[0]);
    assert_memory_not_equal(first.ids[0], second.ids[0], sizeof first.ids[0]);
}

static void extremes_of_sampling_are_the_likeliest_token_or_any(void **state) {
    (void)state;
    static const Sampling likeliest[] = {{.temperature = 1e-300, .top_p = 1}, {.temperature = 1, .top_p = 0}};
    Written greedy = text_of(layouts[0], (Sampling){0});
    for (size_t i = 0; i < COUNT(likeliest); i++) {
        Written t = text_of(layouts[0], likeliest[i]);
        assert_memory_equal(t.ids[0], greedy.ids[0], sizeof t.ids[0]);
    }
    Written wild = text_of(layouts[0], (Sampling){.temperature = 1e300, .top_p = 1, .seed = 3});
    assert_memory_not_equal(wild.ids[0], greedy.ids[0], sizeof wild.ids[0]);
    for (int i = 0; i < GIVEN + MORE; i++) assert_in_range(wild.ids[0][i], 0, TRIAL_VOCABULARY - 1);
}

/* ---- What is not finite ------------------------------------------------------------------------- */

static void make_too_large(Ranks *r, Collection *weights) {
    (void)r;
    for (int64_t i = 0; i < weights->count; i++)
        for (int64_t j = 0; strcmp(weights->tensor[i].name, "lm_head.weight") == 0 && j < weights->tensor[i].count; j++)
            weights->tensor[i].value[j] = 1e308;
}

static void a_prediction_that_overflows_ends_on_all_ranks_with_a_sentence(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(layouts); i++) {
        Written t = {0};
        Ranks *r = trial_open("olmoe", layouts[i], &(Trial){.rig = make_too_large});
        ranks_run(r, write_text, &t);
        ranks_close(r);
        for (int rank = 0; rank < layouts[i].world; rank++) {
            assert_false(t.ok[rank]);
            assert_int_equal(t.error[rank].code, EXIT_DIVERGED);
            assert_non_null(strstr(t.error[rank].text, "behind 4 tokens is not finite"));
            assert_int_equal(t.out[rank].made, 0);
        }
    }
}

typedef struct {
    bool moments, finite[WORLD];
    Error error[WORLD];
} Check;

static bool check_store(Run *r, void *context, Error *e) {
    Check *c = context;
    int rank = r->comm.mesh.rank;
    (void)e;
    c->finite[rank] = store_check_finite(r->store, &r->comm, "here", c->moments, &c->error[rank]);
    return true;
}

/* Wherever the element lives every rank names it. */
static void a_value_that_is_not_finite_is_named_by_every_rank(void **state) {
    (void)state;
    static const struct {
        StoreKind kind;
        const char *tensor;
        int64_t element;
        double value;
        const char *said;
    } rows[] = {
        {STORE_MASTER, "model.norm.weight", 3, NAN, "the weight model.norm.weight is not a number at element 3; here"},
        {STORE_MASTER, "model.layers.1.mlp.experts.6.down_proj.weight", 100, INFINITY,
         "the weight model.layers.1.mlp.experts.6.down_proj.weight is infinite at element 100; here"},
        {STORE_M, "model.embed_tokens.weight", 1000, -INFINITY,
         "the moment exp_avg of model.embed_tokens.weight is infinite at element 1000; here"},
        {STORE_V, "lm_head.weight", 66 * 24, NAN,
         "the moment exp_avg_sq of lm_head.weight is not a number at element 1584; here"}};
    static const char *const types[] = {"compute.type=fp64", "compute.type=fp32", "compute.type=bf16"};
    for (size_t l = 0; l < COUNT(layouts); l++)
        for (size_t i = 0; i < COUNT(rows); i++) {
            Ranks *r = trial_open("olmoe", layouts[l], &(Trial){.options = {types[(i + l) % COUNT(types)]}});
            Check whole = {.moments = true}, bad = {.moments = rows[i].kind != STORE_MASTER}, weights = {0};
            ranks_run(r, check_store, &whole);
            for (int rank = 0; rank < r->world; rank++)
                (void)ranks_poke(r, rank, rows[i].kind, rows[i].tensor, rows[i].element, rows[i].value);
            ranks_run(r, check_store, &bad);
            ranks_run(r, check_store, &weights);
            for (int rank = 0; rank < r->world; rank++) {
                assert_true(whole.finite[rank] && !bad.finite[rank]);
                assert_int_equal(bad.error[rank].code, EXIT_DIVERGED);
                if (!strstr(bad.error[rank].text, rows[i].said)) fail_msg("%s", bad.error[rank].text);
                assert_int_equal(weights.finite[rank], rows[i].kind != STORE_MASTER);
            }
            ranks_close(r);
        }
}

/* ---- What ends a text --------------------------------------------------------------------------- */

static void what_ends_a_text_is_an_id_a_list_or_nothing(void **state) {
    (void)state;
    static const struct {
        const char *config;
        int count;
        int32_t last;
    } rows[] = {{"{}", 0, 0},
                {"{\"eos_token_id\": null}", 0, 0},
                {"{\"eos_token_id\": 7}", 1, 7},
                {"{\"eos_token_id\": []}", 0, 0},
                {"{\"eos_token_id\": [5, 151645]}", 2, 151645}};
    static const char *const wrong[] = {"{\"eos_token_id\": \"</s>\"}", "{\"eos_token_id\": -1}",
                                        "{\"eos_token_id\": [1, [2]]}", "{\"eos_token_id\": 4294967296}"};
    TextEnds ends;
    for (size_t i = 0; i < COUNT(rows); i++) {
        Error e = {0};
        json_t *config = json_loads(rows[i].config, 0, NULL);
        assert_true(text_ends_read(&ends, "", config, &e));
        assert_int_equal(ends.count, rows[i].count);
        if (ends.count > 0) assert_int_equal(ends.id[ends.count - 1], rows[i].last);
        json_decref(config);
    }
    for (size_t i = 0; i < COUNT(wrong); i++) {
        Error e = {0};
        json_t *config = json_loads(wrong[i], 0, NULL);
        assert_false(text_ends_read(&ends, "", config, &e));
        assert_int_equal(e.code, EXIT_DATA);
        json_decref(config);
    }
}

static void what_a_waiting_person_reads_is_short_and_says_what_is_left(void **state) {
    (void)state;
    assert_string_equal(waiting_line("evaluate", 0.35, 18).text, "evaluate: 35 % after 18 s, 33 s left");
    assert_string_equal(waiting_line("evaluate", 0.999, 6000).text, "evaluate: 99 % after 1.7 h, 6 s left");
    assert_string_equal(waiting_line("generate", 0, 12).text, "generate: 12 s");
    assert_string_equal(waiting_line("generate", 1.5, 12).text, "generate: 100 % after 12 s, 0 s left");
    assert_string_equal(waiting_line("evaluate", 0.001, 100).text, "evaluate: 0 % after 2 min, 27.8 h left");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_text_stops_at_its_end_on_all_ranks_together),
        cmocka_unit_test(an_end_in_the_prompt_ends_nothing),
        cmocka_unit_test(texts_of_two_steps_are_drawn_apart_and_those_of_one_alike),
        cmocka_unit_test(extremes_of_sampling_are_the_likeliest_token_or_any),
        cmocka_unit_test(a_prediction_that_overflows_ends_on_all_ranks_with_a_sentence),
        cmocka_unit_test(a_value_that_is_not_finite_is_named_by_every_rank),
        cmocka_unit_test(what_ends_a_text_is_an_id_a_list_or_nothing),
        cmocka_unit_test(what_a_waiting_person_reads_is_short_and_says_what_is_left),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
