/* The simulator is the trainer: the same run costs the same on cpu and on sim, to the FLOP and the byte; no run
 * needs more than the plan says, however it is routed; and what models of any size cost is kept as text in
 * tests/plans, so that a change shows. */
#include "ops/kernels.h"
#include "plan/plan.h"
#include "ranks.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static const char tiny[] = "examples/tiny.json";

/* ---- Identity --------------------------------------------------------------------------------- */

typedef struct {
    int world;
    const char *spec;
    const char *sets[8];
} Row;

static const Row rows[] = {
    {1, tiny, {"compute.type=fp32"}},
    {2, tiny, {"compute.type=bf16", "mixture.dense=2"}},
    {2, tiny, {"compute.type=fp64", "mixture.dense=1", "mixture.expert=2", "compute.activations=recompute"}},
    {3, tiny, {"compute.type=fp32", "mixture.expert=3", "train.micro_batches=3", "optimizer.update=blocking"}},
    {4,
     tiny,
     {"compute.type=bf16", "mixture.dense=2", "mixture.expert=4", "train.micro_batches=2",
      "compute.activations=recompute"}},
    {4,
     "tests/fixtures/qwen3_moe/config.json",
     {"mixture.dense=4", "mixture.expert=2", "compute.activations=recompute"}},
    {4, "tests/fixtures/mixtral/config.json", {"mixture.dense=1", "mixture.expert=4", "train.sequences=3"}},
    {8,
     "tests/fixtures/qwen3_moe_window/config.json",
     {"mixture.dense=4", "mixture.expert=8", "train.micro_batches=2"}},
    {1, tiny, {"mixture.dispatch_tokens=24"}},
    {4, tiny, {"compute.type=bf16", "mixture.expert=4", "mixture.dispatch_tokens=10"}},
    {3,
     tiny,
     {"mixture.expert=3", "mixture.dispatch_tokens=12", "mixture.balance_imports=1", "mixture.balance_threshold=1",
      "compute.activations=recompute"}},
    {4,
     "tests/fixtures/olmoe/config.json",
     {"mixture.expert=2", "mixture.balance_imports=2", "mixture.balance_threshold=1", "train.micro_batches=2"}},
    {8,
     "tests/fixtures/mixtral/config.json",
     {"mixture.expert=8", "mixture.dispatch_tokens=9", "mixture.balance_imports=1"}},
    {4, tiny, {"mixture.ulysses=2", "mixture.ring=2"}},
    {3, tiny, {"compute.type=bf16", "mixture.ring=3", "train.micro_batches=2"}},
    {8,
     "tests/fixtures/qwen3_moe/config.json",
     {"compute.type=bf16", "mixture.ulysses=4", "mixture.ring=2", "mixture.expert=4", "mixture.expert_shard=2"}},
    {6,
     "tests/fixtures/mixtral/config.json",
     {"mixture.ulysses=2", "mixture.ring=3", "mixture.expert=3", "compute.activations=recompute"}},
    {2, tiny, {"compute.type=bf16", "mixture.vocabulary=2", "mixture.loss_travel=activations"}},
    {4,
     tiny,
     {"mixture.vocabulary=4", "mixture.loss_travel=weights", "mixture.expert=2", "mixture.dense=2",
      "train.micro_batches=2"}},
    {6,
     "tests/fixtures/mixtral/config.json",
     {"mixture.vocabulary=3", "mixture.loss_travel=activations", "train.sequences=4", "train.micro_batches=2"}},
    {8,
     "tests/fixtures/qwen3_moe/config.json",
     {"compute.type=bf16", "mixture.vocabulary=8", "mixture.expert=4", "compute.activations=recompute"}},
};

static Ranks *open_row(const Row *row, const char *documents, const char *device, const char *routing) {
    RanksSetup setup = {
        .world = row->world,
        .spec = row->spec,
        .documents = documents,
        .sets = {"train.sequence_length=32", "train.sequences=5", "mixture.loss_chunk=24", device, routing}};
    for (int n = 5, i = 0; i < (int)COUNT(row->sets) && row->sets[i]; i++) setup.sets[n++] = row->sets[i];
    return ranks_open(setup);
}

static void assert_same_count(const char *what, const char *of, int64_t cpu, int64_t sim) {
    if (cpu != sim) fail_msg("%s of %s: %lld on cpu, %lld on sim", what, of, (long long)cpu, (long long)sim);
}

static void assert_same_meters(const Meter *cpu, const Meter *sim) {
    for (int i = 0; i < OP_COUNT; i++) {
        assert_same_count("calls", op_name((Op)i), cpu->op[i].calls, sim->op[i].calls);
        assert_same_count("FLOPs", op_name((Op)i), cpu->op[i].flops, sim->op[i].flops);
        assert_same_count("bytes", op_name((Op)i), cpu->op[i].bytes, sim->op[i].bytes);
    }
    for (int k = 0; k < COMPONENT_COUNT; k++)
        assert_same_count("FLOPs", component_name((Component)k), cpu->flops[k], sim->flops[k]);
    for (int g = 0; g < AXIS_COUNT; g++)
        for (int c = 0; c < COLLECTIVE_COUNT; c++) {
            const TrafficCount *x = &cpu->traffic[g][c], *y = &sim->traffic[g][c];
            char of[60];
            snprintf(of, sizeof of, "%s over %s", collective_name((Collective)c), axis_name((AxisName)g));
            assert_same_count("calls", of, x->calls, y->calls);
            assert_same_count("bytes sent", of, x->sent, y->sent);
            assert_same_count("bytes received", of, x->received, y->received);
        }
    assert_same_count("bytes", "copies up", cpu->copied_up, sim->copied_up);
    assert_same_count("bytes", "copies down", cpu->copied_down, sim->copied_down);
}

static void assert_same_peaks(const Price *cpu, const Price *sim) {
    for (int a = 0; a < ARENA_COUNT; a++) {
        assert_same_count("peak", cpu->name[a], (int64_t)cpu->bytes[a], (int64_t)sim->bytes[a]);
        for (int k = 0; k < COMPONENT_COUNT; k++)
            assert_same_count(component_name((Component)k), cpu->name[a], (int64_t)cpu->by[a][k],
                              (int64_t)sim->by[a][k]);
    }
}

static void remove_record(const char *folder, const char *record, int world) {
    for (int i = 0; i < world; i++) {
        char path[100];
        snprintf(path, sizeof path, "%s.%d", record, i);
        assert_int_equal(unlink(path), 0);
    }
    assert_int_equal(rmdir(folder), 0);
}

static void the_same_run_costs_the_same_on_cpu_and_sim_to_the_byte(void **state) {
    (void)state;
    char *documents = random_documents(40, 50, 67, 3);
    for (size_t i = 0; i < COUNT(rows); i++) {
        char folder[] = "/tmp/mop-sim-XXXXXX", record[40], recording[60], replaying[60];
        assert_non_null(mkdtemp(folder));
        snprintf(record, sizeof record, "%s/routing", folder);
        snprintf(recording, sizeof recording, "sim.record=%s", record);
        snprintf(replaying, sizeof replaying, "sim.routing=replay:%s", record);
        Ranks *cpu = open_row(&rows[i], documents, "device=cpu", recording);
        ranks_run(cpu, do_everything, NULL);
        Price *real = ranks_prices(cpu);
        ranks_close(cpu);
        Ranks *sim = open_row(&rows[i], documents, "device=sim:h200", replaying);
        ranks_run(sim, do_everything, NULL);
        Price *simulated = ranks_prices(sim);
        for (int rank = 0; rank < rows[i].world; rank++) {
            assert_same_meters(&real[rank].meter, &simulated[rank].meter);
            assert_same_peaks(&real[rank], &simulated[rank]);
        }
        assert_true(real[0].meter.flops[COMPONENT_EXPERTS] > 0);
        free(real);
        free(simulated);
        ranks_close(sim);
        remove_record(folder, record, rows[i].world);
    }
    free(documents);
}

/* A record of another layout, or one that ends early, is an error and no crash. */
static void a_record_that_does_not_fit_is_refused(void **state) {
    (void)state;
    char folder[] = "/tmp/mop-sim-XXXXXX", record[40], replaying[60];
    assert_non_null(mkdtemp(folder));
    snprintf(record, sizeof record, "%s/routing", folder);
    snprintf(replaying, sizeof replaying, "sim.routing=replay:%s", record);
    for (int i = 0; i < 2; i++) {
        char path[60];
        snprintf(path, sizeof path, "%s.%d", record, i);
        FILE *f = fopen(path, "wb");
        assert_non_null(f);
        const int64_t head[3] = {2, 1, 7 + i};
        fwrite(head, sizeof head, 1, f);
        fclose(f);
    }
    const Row row = {2, tiny, {"mixture.expert=2"}};
    Ranks *r = open_row(&row, NULL, "device=sim:cpu", replaying);
    assert_false(ranks_try(r, do_everything, NULL));
    bool said = false;
    for (int i = 0; i < 2; i++)
        said = said || (r->error[i].code == EXIT_DATA && strstr(r->error[i].text, "sim.record"));
    assert_true(said);
    ranks_close(r);
    remove_record(folder, record, 2);
}

/* The kernel is asked to read one byte of every arena: it says that there is none. */
static void nobody_may_touch_device_memory_on_sim(void **state) {
    (void)state;
    Ranks *r = open_row(&rows[4], NULL, "device=sim:h200", "sim.routing=balanced");
    ranks_train(r, 0, 2, NULL);
    int nowhere[2];
    assert_int_equal(pipe(nowhere), 0);
    for (int rank = 0; rank < r->world; rank++)
        for (int a = 0; a < ARENA_COUNT; a++) {
            const Arena *arena = run_arena(r->run[rank], (ArenaName)a);
            if (arena->tier != TIER_DEVICE) continue;
            assert_true(arena->peak > 0);
            for (size_t at = 0; at < arena->capacity; at += arena->capacity / 7 + 1) {
                assert_int_equal(write(nowhere[1], arena->base + at, 1), -1);
                assert_int_equal(errno, EFAULT);
            }
        }
    close(nowhere[0]);
    close(nowhere[1]);
    ranks_close(r);
}

/* ---- The plan bounds every run ---------------------------------------------------------------- */

static double wish_last(int64_t expert, int64_t experts) {
    return 6 * (double)(expert - experts);
}

static double wish_first(int64_t expert, int64_t experts) {
    (void)experts;
    return -6 * (double)expert;
}

static double wish_middle(int64_t expert, int64_t experts) {
    return expert > experts / 2 ? -3 * (double)(expert - experts / 2) : -4 * (double)(experts / 2 - expert);
}

/* All tokens to one rank's experts is what the plan foresees for it: the plan is reached, not only kept. */
static void no_routing_needs_more_than_the_plan_and_the_worst_needs_all_of_it(void **state) {
    (void)state;
    double (*const wishes[])(int64_t, int64_t) = {NULL, wish_first, wish_middle, wish_last};
    char *documents = random_documents(40, 50, 67, 3);
    for (size_t i = 0; i < COUNT(rows); i++) {
        bool reached[ARENA_COUNT] = {0};
        for (size_t w = 0; w < COUNT(wishes); w++) {
            RanksSetup setup = {.world = rows[i].world,
                                .spec = rows[i].spec,
                                .documents = documents,
                                .roomy = true,
                                .sets = {"train.sequence_length=32", "train.sequences=5"}};
            for (int n = 2, j = 0; j < (int)COUNT(rows[i].sets) && rows[i].sets[j]; j++)
                setup.sets[n++] = rows[i].sets[j];
            Ranks *r = ranks_open(setup);
            if (wishes[w]) {
                Collection weights = ranks_collect(r, STORE_MASTER);
                collection_steer(&weights, r->spec.experts, wishes[w]);
                ranks_put(r, STORE_MASTER, &weights);
                collection_free(&weights);
            }
            ranks_run(r, do_everything, NULL);
            Price *real = ranks_prices(r);
            assert_within_plan("a row of test_sim", r, real);
            for (int rank = 0; rank < r->world; rank++)
                for (int a = 0; a < ARENA_COUNT; a++)
                    reached[a] = reached[a] || real[rank].bytes[a] == r->price[rank].bytes[a];
            free(real);
            ranks_close(r);
        }
        for (int a = 0; a < ARENA_COUNT; a++)
            if (!reached[a]) fail_msg("row %zu: no rank ever needed what the plan says of arena %d", i, a);
    }
    free(documents);
}

/* ---- Price lists ------------------------------------------------------------------------------ */

static const struct {
    const char *name, *config, *set;
    int world;
} lists[] = {
    {"tiny-1", "examples/tiny.yaml", "mixture.expert=1", 1},
    {"tiny-4", "examples/tiny.yaml", "mixture.expert=1", 4},
    {"tiny-8-experts", "examples/tiny.yaml", "mixture.expert=8", 8},
    {"bible", "examples/bible.yaml", "compute.threads=1", 2},
    {"mixtral-8x7b", "tests/plans/mixtral-8x7b.yaml", "mixture.expert=8", 8},
    {"qwen3-235b", "tests/plans/qwen3-235b.yaml", "mixture.expert=32", 32},
    {"qwen3-235b-vocabulary", "tests/plans/qwen3-235b.yaml", "mixture.vocabulary=32", 32},
};
enum { SMALL_LISTS = 4 }; /* the first ones */

static void open_list(size_t i, Config *c, Spec *spec) {
    char ranks[30];
    snprintf(ranks, sizeof ranks, "ranks=%d", lists[i].world);
    Error e = {0};
    if (!config_read(c, lists[i].config, (const char *const[]){ranks, lists[i].set}, 2, &e)) fail_msg("%s", e.text);
    if (c->mixture_dense == 0) c->mixture_dense = lists[i].world;
    if (!spec_read(spec, c->model_config, &e)) fail_msg("%s", e.text);
}

static char *printed_plan(size_t i) {
    char *text = NULL;
    size_t bytes = 0;
    Config c;
    Spec spec;
    Error e = {0};
    open_list(i, &c, &spec);
    FILE *f = open_memstream(&text, &bytes);
    assert_non_null(f);
    if (!plan_print(&c, &spec, lists[i].world, NULL, f, &e)) fail_msg("%s", e.text);
    fclose(f);
    spec_close(&spec);
    config_close(&c);
    return text;
}

static void predicted_seconds_are_those_computed_and_those_waited_for_the_network(void **state) {
    (void)state;
    for (size_t i = 0; i < SMALL_LISTS; i++) {
        Config c;
        Spec spec;
        Error e = {0};
        open_list(i, &c, &spec);
        Price *price = calloc((size_t)lists[i].world, sizeof *price);
        assert_non_null(price);
        if (!plan_time(&c, &spec, lists[i].world, NULL, price, &e)) fail_msg("%s", e.text);
        for (int r = 0; r < lists[i].world; r++) {
            double sum[TIME_KINDS] = {0};
            for (int t = 0; t < TIME_KINDS; t++)
                for (int k = 0; k < COMPONENT_COUNT; k++) sum[t] += price[r].times.by[t][k];
            assert_true(sum[TIME_COMPUTE] > 0 && (lists[i].world == 1 || sum[TIME_NETWORK] > 0));
            if (!(fabs(sum[TIME_COMPUTE] + sum[TIME_EXPOSED] - price[r].seconds) <= 1e-9 * price[r].seconds))
                fail_msg("%s, rank %d: %.9g s computed and %.9g s waited, predicted %.9g s", lists[i].name, r,
                         sum[TIME_COMPUTE], sum[TIME_EXPOSED], price[r].seconds);
        }
        free(price);
        spec_close(&spec);
        config_close(&c);
    }
}

static char *text_of(const char *path) {
    FILE *f = fopen(path, "r");
    char *text = calloc(1, 1 << 16);
    assert_non_null(text);
    if (!f) return text;
    text[fread(text, 1, (1 << 16) - 1, f)] = 0;
    fclose(f);
    return text;
}

static bool has_line(const char *text, const char *line, size_t length) {
    for (; *text; text += strcspn(text, "\n"), text += *text == '\n')
        if (strcspn(text, "\n") == length && memcmp(text, line, length) == 0) return true;
    return false;
}

/* The lines of one text that the other has nowhere. */
static void print_lines_missing(const char *sign, const char *text, const char *other) {
    for (; *text; text += strcspn(text, "\n"), text += *text == '\n') {
        size_t length = strcspn(text, "\n");
        if (!has_line(other, text, length)) print_message("%s %.*s\n", sign, (int)length, text);
    }
}

static void price_lists_are_those_kept_in_tests_plans(void **state) {
    (void)state;
    int differ = 0;
    for (size_t i = 0; i < COUNT(lists); i++) {
        char path[80];
        snprintf(path, sizeof path, "tests/plans/%s.txt", lists[i].name);
        char *kept = text_of(path), *made = printed_plan(i);
        if (strcmp(kept, made) != 0) {
            print_lines_missing("-", kept, made);
            print_lines_missing("+", made, kept);
            print_message("the plan is not that of %s; where the change is meant, keep it:\n"
                          "    build/mop plan %s --set ranks=%d --set %s > %s\n",
                          path, lists[i].config, lists[i].world, lists[i].set, path);
            differ++;
        }
        free(kept);
        free(made);
    }
    assert_int_equal(differ, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_run_costs_the_same_on_cpu_and_sim_to_the_byte),
        cmocka_unit_test(a_record_that_does_not_fit_is_refused),
        cmocka_unit_test(nobody_may_touch_device_memory_on_sim),
        cmocka_unit_test(no_routing_needs_more_than_the_plan_and_the_worst_needs_all_of_it),
        cmocka_unit_test(predicted_seconds_are_those_computed_and_those_waited_for_the_network),
        cmocka_unit_test(price_lists_are_those_kept_in_tests_plans),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
