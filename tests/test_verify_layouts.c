/* What `mop verify-layouts` stands on: which layouts it makes, and that no difference escapes it, whoever holds it. */
#include "plan/layouts.h"
#include "ranks.h"
#include "testing.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- Which layouts ------------------------------------------------------------------------------ */

enum { MIXED = 24 };

typedef struct {
    Config own, alone;
    Spec spec;
    Layouts single, all; /* without mixed ones, and with */
    LayoutText *text;    /* [all.count] */
} List;

static List list_open(int world, const char *yaml) {
    List l;
    Error e = {0};
    if (!config_read_text(&l.own, yaml, strlen(yaml), "test", NULL, 0, &e)) fail_msg("%s", e.text);
    if (!spec_read(&l.spec, "examples/tiny.json", &e)) fail_msg("%s", e.text);
    l.alone = layout_alone(&l.own);
    l.single = layouts_make(&l.own, &l.spec, world, 0);
    l.all = layouts_make(&l.own, &l.spec, world, MIXED);
    l.text = calloc((size_t)l.all.count, sizeof *l.text);
    assert_non_null(l.text);
    for (int64_t i = 0; i < l.all.count; i++) l.text[i] = layout_text(&l.all.layout[i], &l.alone);
    return l;
}

static void list_close(List *l) {
    free(l->text);
    layouts_free(&l->single);
    layouts_free(&l->all);
    spec_close(&l->spec);
    config_close(&l->own);
}

__attribute__((format(printf, 2, 3))) static void assert_listed(const List *l, const char *format, ...) {
    char wanted[200];
    va_list args;
    va_start(args, format);
    vsnprintf(wanted, sizeof wanted, format, args);
    va_end(args);
    int found = 0;
    for (int64_t i = 0; i < l->single.count; i++) found += strcmp(l->text[i].text, wanted) == 0;
    if (found != 1) fail_msg("%s is there %d times", wanted, found);
}

static const int worlds[] = {2, 3, 4, 6, 8};
static const char usual[] = "train: {sequence_length: 64, sequences: 8, micro_batches: 2}";

static void each_axis_at_each_divisor_and_each_other_setting_is_a_layout_of_its_own(void **state) {
    (void)state;
    static const char *const axes[] = {"dense", "expert", "expert_shard", "ulysses", "ring", "vocabulary"};
    for (size_t w = 0; w < COUNT(worlds); w++) {
        int n = worlds[w];
        List l = list_open(n, usual);
        assert_listed(&l, "every axis 1");
        for (size_t a = 0; a < COUNT(axes); a++)
            for (int d = 2; d <= n; d++)
                if (n % d == 0) assert_listed(&l, "%s=%d", axes[a], d);
        assert_listed(&l, "micro_batches=2");
        assert_listed(&l, "micro_batches=3");
        assert_listed(&l, "activations=recompute");
        assert_listed(&l, "dispatch_tokens=22");
        assert_listed(&l, "expert=%d dispatch_tokens=22", n);
        assert_listed(&l, "expert=%d balance_imports=2", n);
        assert_listed(&l, "expert=%d balance_imports=2 balance_threshold=1", n);
        assert_listed(&l, "ulysses=%d ulysses_heads=2", n);
        assert_listed(&l, "vocabulary=%d loss_travel=activations", n);
        assert_listed(&l, "vocabulary=%d loss_travel=weights", n);
        for (int64_t i = 0; i < l.all.count; i++) assert_int_equal(l.all.layout[i].ranks, n);
        list_close(&l);
    }
}

static void no_layout_is_listed_twice_or_is_the_reference(void **state) {
    (void)state;
    for (int world = 1; world <= 8; world++) {
        List l = list_open(world, usual);
        for (int64_t i = 0; i < l.all.count; i++) {
            assert_true(world > 1 || strcmp(l.text[i].text, "every axis 1") != 0);
            for (int64_t j = 0; j < i; j++)
                if (strcmp(l.text[i].text, l.text[j].text) == 0) fail_msg("%s twice", l.text[i].text);
        }
        list_close(&l);
    }
}

/* Also: the list without them is its beginning, and the list is the same every time. */
static void as_many_mixed_layouts_as_asked_for_can_all_be_trained(void **state) {
    (void)state;
    for (size_t w = 0; w < COUNT(worlds); w++) {
        List l = list_open(worlds[w], usual), again = list_open(worlds[w], usual);
        assert_int_equal(l.all.count, l.single.count + MIXED);
        for (int64_t i = 0; i < l.all.count; i++) {
            Error e = {0};
            assert_string_equal(l.text[i].text, again.text[i].text);
            if (i < l.single.count) continue;
            assert_non_null(strchr(l.text[i].text, ' ')); /* several settings */
            if (!run_supported(&l.all.layout[i], &l.spec, worlds[w], &e)) fail_msg("%s", e.text);
        }
        list_close(&l);
        list_close(&again);
    }
}

static void the_layout_of_the_config_itself_comes_first_whether_it_fits_or_not(void **state) {
    (void)state;
    static const struct {
        const char *yaml, *text;
    } cases[] = {
        {usual, "dense=4 micro_batches=2"}, /* as it is by default, dense is all ranks */
        {"mixture: {dense: 2, expert: 4, dispatch_tokens: 5}", "dense=2 expert=4 dispatch_tokens=5"},
        {"mixture: {dense: 1, expert: 3}", "expert=3"},
        {"mixture: {dense: 1}", "every axis 1"},
        {"mixture: {loss_chunk: 7}", "dense=4"}, /* the reference has it too */
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        List l = list_open(4, cases[i].yaml);
        assert_string_equal(l.text[0].text, cases[i].text);
        list_close(&l);
    }
}

/* ---- Differences -------------------------------------------------------------------------------- */

/* Two ranks keep the same shard, of which one owns it. */
static Ranks *four_ranks(void) {
    return ranks_open((RanksSetup){.world = 4,
                                   .spec = "examples/tiny.json",
                                   .sets = {"compute.type=fp64", "mixture.dense=2", "mixture.expert=2"}});
}

static Difference compare(Ranks *r, const Collection *expected) {
    Deviation *of = calloc((size_t)(r->world * expected->count), sizeof *of);
    assert_non_null(of);
    for (int i = 0; i < r->world; i++)
        collection_deviate(of + i * expected->count, expected, r->run[i]->store, STORE_WEIGHT);
    Difference d = collection_difference(expected, of, r->world);
    free(of);
    return d;
}

static void one_element_that_differs_on_one_rank_names_its_tensor_be_it_the_owner_or_a_copy(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int64_t element;
    } cases[] = {{"model.layers.1.self_attn.q_proj.weight", 7},
                 {"model.layers.2.mlp.experts.5.down_proj.weight", 100},
                 {"model.embed_tokens.weight", 259 * 40 - 1}};
    Ranks *r = four_ranks();
    Collection expected = ranks_collect(r, STORE_WEIGHT);
    double *scale = collection_scales(&expected);
    assert_true(compare(r, &expected).relative == 0);
    for (size_t i = 0; i < COUNT(cases); i++) {
        NamedTensor *t = collection_find(&expected, cases[i].name);
        double before = t->value[cases[i].element], off = 1e-9 / scale[t - expected.tensor];
        int holders = 0;
        for (int rank = 0; rank < r->world; rank++) {
            if (!ranks_poke(r, rank, STORE_WEIGHT, t->name, cases[i].element, before + 1e-9)) continue;
            Difference d = compare(r, &expected);
            assert_string_equal(d.tensor, t->name);
            assert_true(fabs(d.relative - off) < 1e-5 * off);
            assert_true(ranks_poke(r, rank, STORE_WEIGHT, t->name, cases[i].element, before));
            holders++;
        }
        assert_int_equal(holders, 2);
        assert_true(compare(r, &expected).relative == 0);
    }
    free(scale);
    collection_free(&expected);
    ranks_close(r);
}

static void what_is_not_a_number_differs_infinitely(void **state) {
    (void)state;
    static const char name[] = "model.layers.0.mlp.gate.weight";
    Ranks *r = four_ranks();
    Collection expected = ranks_collect(r, STORE_WEIGHT);
    for (int rank = 0; rank < r->world; rank++) {
        if (!ranks_poke(r, rank, STORE_WEIGHT, name, 3, NAN)) continue;
        Difference d = compare(r, &expected);
        assert_true(d.relative == INFINITY);
        assert_string_equal(d.tensor, name);
        assert_true(ranks_poke(r, rank, STORE_WEIGHT, name, 3, collection_find(&expected, name)->value[3]));
    }
    collection_free(&expected);
    ranks_close(r);
}

static void difference_without_comparison(void *context) {
    const Collection *expected = context;
    Deviation *of = calloc((size_t)expected->count, sizeof *of);
    collection_difference(expected, of, 1);
}

static void elements_that_no_owner_compared_are_not_taken_for_equal(void **state) {
    (void)state;
    Ranks *r = four_ranks();
    Collection expected = ranks_collect(r, STORE_WEIGHT);
    assert_true(aborts(difference_without_comparison, &expected));
    collection_free(&expected);
    ranks_close(r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_axis_at_each_divisor_and_each_other_setting_is_a_layout_of_its_own),
        cmocka_unit_test(no_layout_is_listed_twice_or_is_the_reference),
        cmocka_unit_test(as_many_mixed_layouts_as_asked_for_can_all_be_trained),
        cmocka_unit_test(the_layout_of_the_config_itself_comes_first_whether_it_fits_or_not),
        cmocka_unit_test(one_element_that_differs_on_one_rank_names_its_tensor_be_it_the_owner_or_a_copy),
        cmocka_unit_test(what_is_not_a_number_differs_infinitely),
        cmocka_unit_test(elements_that_no_owner_compared_are_not_taken_for_equal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
