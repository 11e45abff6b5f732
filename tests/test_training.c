/* What surrounds a step: the course of the learning rate, clipping, steps that change nothing, samples that are stopped,
 * and what people are shown. */
#include "base/file.h"
#include "checkpoint/checkpoints.h"
#include "checkpoint/space.h"
#include "train/journal.h"
#include "train/progress.h"
#include "trials.h"

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

static const char tiny[] = "examples/tiny.json";

/* ---- The learning rate ------------------------------------------------------------------------- */

/* Of steps counted from 0. Falling from 1 to 0.1 in 5 strides: 0.1 + 0.9 x (1 - i / 5), or x (1 + cos(pi i / 5)) / 2. */
static const struct {
    Schedule schedule;
    int64_t warmup, steps, step;
    double rate; /* of learning_rate 1 and minimum 0.1 */
} rates[] = {
    {SCHEDULE_CONSTANT, 0, 10, 0, 1},
    {SCHEDULE_CONSTANT, 4, 10, 0, 0.25},
    {SCHEDULE_CONSTANT, 4, 10, 3, 1},
    {SCHEDULE_CONSTANT, 4, 10, 4, 1},
    {SCHEDULE_CONSTANT, 4, 10, 9, 1},
    {SCHEDULE_LINEAR, 0, 6, 0, 1},
    {SCHEDULE_LINEAR, 0, 6, 1, 0.82},
    {SCHEDULE_LINEAR, 0, 6, 4, 0.28},
    {SCHEDULE_LINEAR, 0, 6, 5, 0.1},
    {SCHEDULE_LINEAR, 4, 10, 0, 0.25},
    {SCHEDULE_LINEAR, 4, 10, 1, 0.5},
    {SCHEDULE_LINEAR, 4, 10, 2, 0.75},
    {SCHEDULE_LINEAR, 4, 10, 3, 1},
    {SCHEDULE_LINEAR, 4, 10, 4, 1},
    {SCHEDULE_LINEAR, 4, 10, 5, 0.82},
    {SCHEDULE_LINEAR, 4, 10, 8, 0.28},
    {SCHEDULE_LINEAR, 4, 10, 9, 0.1},
    {SCHEDULE_COSINE, 0, 6, 0, 1},
    {SCHEDULE_COSINE, 0, 6, 1, 0.91405764746872633},
    {SCHEDULE_COSINE, 0, 6, 2, 0.68905764746872635},
    {SCHEDULE_COSINE, 0, 6, 3, 0.41094235253127374},
    {SCHEDULE_COSINE, 0, 6, 4, 0.18594235253127371},
    {SCHEDULE_COSINE, 0, 6, 5, 0.1},
    {SCHEDULE_COSINE, 4, 10, 3, 1},
    {SCHEDULE_COSINE, 4, 10, 4, 1},
    {SCHEDULE_COSINE, 4, 10, 6, 0.68905764746872635},
    {SCHEDULE_COSINE, 4, 10, 9, 0.1},
    /* One step; a rise to the last step, and beyond it; one step behind the rise; steps past the end. */
    {SCHEDULE_COSINE, 0, 1, 0, 1},
    {SCHEDULE_COSINE, 1, 1, 0, 1},
    {SCHEDULE_LINEAR, 8, 8, 7, 1},
    {SCHEDULE_LINEAR, 16, 8, 7, 0.5},
    {SCHEDULE_LINEAR, 7, 8, 7, 1},
    {SCHEDULE_COSINE, 4, 10, 25, 0.1},
};

static void the_learning_rate_of_every_step_is_what_the_schedule_says(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(rates); i++) {
        const Config c = {.optimizer_learning_rate = 1,
                          .optimizer_minimum = 0.1,
                          .optimizer_schedule = rates[i].schedule,
                          .optimizer_warmup = rates[i].warmup,
                          .train_steps = rates[i].steps};
        double rate = learning_rate_at(&c, rates[i].step);
        if (fabs(rate - rates[i].rate) > 4e-16) fail_msg("row %zu: %.17g instead of %.17g", i, rate, rates[i].rate);
    }
}

/* A run that goes on at some step takes that step's rate, whatever came before. */
static void a_step_is_taken_with_the_rate_of_its_number(void **state) {
    (void)state;
    static const struct {
        int64_t step;
        double rate;
    } taken[] = {{0, 0.25}, {1, 0.5}, {5, 0.82}, {9, 0.1}};
    char *documents = random_documents(20, 30, 67, 3);
    RanksSetup setup = {.world = 1,
                        .spec = tiny,
                        .documents = documents,
                        .sets = {"train.sequence_length=16", "train.sequences=1", "train.steps=10",
                                 "optimizer.schedule=linear", "optimizer.warmup=4", "optimizer.minimum=0.1",
                                 "optimizer.learning_rate=1"}};
    Ranks *r = ranks_open(setup);
    for (size_t i = 0; i < COUNT(taken); i++) {
        StepResult result;
        ranks_train(r, taken[i].step, 1, &result);
        assert_near("a step", "rate", result.learning_rate, taken[i].rate, 1e-15);
    }
    ranks_close(r);
    free(documents);
}

/* ---- Clipping ---------------------------------------------------------------------------------- */

/* After the first step the mean of gradients is (1 - beta1) x factor x gradient. torch.nn.utils.clip_grad_norm_:
 * factor = max_norm / (norm + 1e-6), at most 1. */
static void assert_clipped(double largest, const char *option) {
    char *documents = random_documents(20, 30, 67, 3);
    RanksSetup setup = {
        .world = 2,
        .spec = tiny,
        .documents = documents,
        .sets = {"compute.type=fp64", "train.sequence_length=16", "train.sequences=2", "optimizer.beta1=0.5", option}};
    Ranks *r = ranks_open(setup);
    StepResult result;
    ranks_train(r, 0, 1, &result);
    Collection gradient = ranks_collect(r, STORE_GRADIENT), m = ranks_collect(r, STORE_M);
    double factor = largest > 0 ? fmin(1, largest / (result.norm + 1e-6)) : 1, squares = 0;
    for (int64_t t = 0; t < gradient.count; t++) {
        const NamedTensor *g = &gradient.tensor[t], *mean = &m.tensor[t];
        assert_string_equal(g->name, mean->name);
        for (int64_t i = 0; i < g->count; i++) {
            double expected = 0.5 * factor * g->value[i];
            squares += g->value[i] * g->value[i];
            if (fabs(mean->value[i] - expected) > 1e-14 * fabs(expected))
                fail_msg("%s [%lld] with %s: %.17g instead of %.17g", g->name, (long long)i, option, mean->value[i],
                         expected);
        }
    }
    assert_near("a step", "norm", result.norm, sqrt(squares), 1e-12);
    collection_free(&gradient);
    collection_free(&m);
    ranks_close(r);
    free(documents);
}

static void gradients_are_clipped_by_the_factor_of_torch_to_the_digits_of_fp64(void **state) {
    (void)state;
    assert_clipped(0.01, "optimizer.clip=0.01");
    assert_clipped(1, "optimizer.clip=1");
    assert_clipped(1e9, "optimizer.clip=1e9"); /* a short gradient is as it was */
    assert_clipped(0, "optimizer.clip=0");
}

/* ---- Steps that change nothing ----------------------------------------------------------------- */

/* On sim the host is told what this says: all norms are 1, and 8 positions have a loss of this sum. */
static void answer_loss(void *context, ReadKind kind, void *host, Tensor t) {
    double *number = host;
    if (kind == READ_ROUTING) {
        memset(host, 0, tensor_bytes(t));
        return;
    }
    bool positions = tensor_count(t) == 2;
    for (int64_t i = 0; i < tensor_count(t); i++) number[i] = kind == READ_NORMS ? 1 : positions ? 8 : 0;
    if (kind == READ_LOSS && !positions) number[STAT_LOSS] = *(const double *)context;
}

static StepResult step_with_loss(Ranks *r, double loss) {
    StepResult result;
    r->run[0]->device->answer = answer_loss;
    r->run[0]->device->read_context = &loss;
    ranks_train(r, 0, 1, &result);
    return result;
}

static void a_loss_that_is_not_finite_makes_no_update_though_the_gradients_are_finite(void **state) {
    (void)state;
    static const double bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    RanksSetup setup = {.world = 1, .spec = tiny, .sets = {"device=sim:cpu", "train.sequence_length=16"}};
    Ranks *r = ranks_open(setup);
    StepResult good = step_with_loss(r, 40);
    assert_true(good.finite && good.loss == 5);
    assert_int_equal(r->run[0]->updates, 1);
    for (size_t i = 0; i < COUNT(bad); i++) {
        StepResult result = step_with_loss(r, bad[i]);
        assert_true(result.gradient.finite);
        assert_false(result.finite);
        assert_int_equal(r->run[0]->updates, 1);
        assert_int_equal(r->run[0]->bad_steps, i + 1);
    }
    good = step_with_loss(r, 40);
    assert_int_equal(r->run[0]->updates, 2);
    assert_int_equal(r->run[0]->bad_steps, 0);
    ranks_close(r);
}

static void write_text(const char *path, const char *text) {
    Error e = {0};
    if (!file_write(path, text, strlen(text), &e)) fail_msg("%s", e.text);
}

static void bad_steps_in_a_row_are_kept_and_an_older_state_has_none(void **state) {
    (void)state;
    char folder[] = "/tmp/mop-test-XXXXXX";
    assert_non_null(mkdtemp(folder));
    const TrainState written = {.step = 7, .updates = 3, .tokens = 100, .sequences = 14, .bad_steps = 4};
    TrainState read;
    Type type;
    Error e = {0};
    json_t *json = state_json(&written, FP32, "");
    assert_true(json_write_file(json, path_join(folder, "state.json").text, &e));
    json_decref(json);
    assert_true(state_read(folder, &read, &type, &e));
    assert_int_equal(read.bad_steps, 4);
    Path path = path_join(folder, "state.json");
    write_text(path.text,
               "{\"step\": 7, \"updates\": 3, \"tokens\": 100, \"sequences\": 14, \"compute_type\": \"fp32\", "
               "\"data_hash\": \"0000000000000000\", \"config_hash\": \"0000000000000000\"}");
    assert_true(state_read(folder, &read, &type, &e));
    assert_int_equal(read.bad_steps, 0);
    write_text(path.text, "{\"step\": 7, \"updates\": 3, \"tokens\": 100, \"sequences\": 14, \"bad_steps\": -1, "
                          "\"compute_type\": \"fp32\", \"data_hash\": \"0000000000000000\", "
                          "\"config_hash\": \"0000000000000000\"}");
    assert_false(state_read(folder, &read, &type, &e));
    assert_int_equal(e.code, EXIT_DATA);
    unlink(path.text);
    rmdir(folder);
}

/* ---- Samples ------------------------------------------------------------------------------------ */

enum { WORLD = 3, GIVEN = 4, MORE = 6, ASKED_AT = 2 };

static _Thread_local int asks_left; /* of this rank; -1: it is never asked to stop */

static bool asked_now(void) {
    return asks_left >= 0 && asks_left-- == 0;
}

typedef struct {
    int32_t ids[WORLD][GIVEN + MORE];
    Generated out[WORLD];
    bool (*asked)(void);
} Sample;

/* Rank 1 is asked to stop while the third token is made. */
static bool draw(Run *run, void *context, Error *e) {
    Sample *s = context;
    int me = run->comm.mesh.rank;
    asks_left = me == 1 ? ASKED_AT : -1;
    for (int i = 0; i < GIVEN; i++) s->ids[me][i] = i;
    Sampling how = {.temperature = 1, .top_p = 1, .seed = 1, .step = 3, .asked = s->asked, .out = &s->out[me]};
    StepResult result; /* and the ranks still agree on everything */
    return generate(run, s->ids[me], GIVEN, MORE, how, e) && train_step(run, 0, false, &result, e);
}

static void all_ranks_stop_a_sample_behind_the_same_token_when_one_is_asked(void **state) {
    (void)state;
    char *documents = random_documents(20, 30, 67, 3);
    RanksSetup setup = {.world = WORLD,
                        .spec = tiny,
                        .documents = documents,
                        .sets = {"train.sequence_length=16", "train.sequences=3", "mixture.expert=3"}};
    Ranks *r = ranks_open(setup);
    Sample whole = {.asked = NULL}, cut = {.asked = asked_now};
    ranks_run(r, draw, &whole);
    ranks_close(r);
    r = ranks_open(setup);
    ranks_run(r, draw, &cut);
    for (int rank = 0; rank < WORLD; rank++) {
        assert_true(whole.out[rank].made == MORE && !whole.out[rank].stopped);
        assert_true(cut.out[rank].made == ASKED_AT + 1 && cut.out[rank].stopped);
        assert_memory_equal(cut.ids[rank], whole.ids[0], (GIVEN + ASKED_AT + 1) * sizeof(int32_t));
    }
    ranks_close(r);
    free(documents);
}

/* ---- Room -------------------------------------------------------------------------------------- */

static void the_checkpoints_that_are_there_at_once_are_counted(void **state) {
    (void)state;
    static const struct {
        int64_t existing, ahead, keep, more;
    } rows[] = {
        {0, 10, 3, 4}, {0, 4, 3, 4},  {0, 3, 3, 3},  {0, 1, 3, 1},   {3, 10, 3, 1},
        {2, 10, 3, 2}, {9, 10, 3, 1}, {1, 1, 3, 1},  {3, 0, 3, 0},   {0, 0, 3, 0},
        {0, 5, 1, 2},  {1, 5, 1, 1},  {0, 50, 0, 1}, {10, 50, 0, 1}, {0, 0, 0, 0},
    };
    for (size_t i = 0; i < COUNT(rows); i++)
        assert_int_equal(checkpoints_at_once(rows[i].existing, rows[i].ahead, rows[i].keep), rows[i].more);
}

/* ---- The journal -------------------------------------------------------------------------------- */

static Journal *open_journal(const Session *s, const char *folder) {
    Error e = {0};
    Journal *j = journal_open(s, folder, 0, &e);
    if (!j) fail_msg("%s", e.text);
    return j;
}

/* What is written behind the last step, too. */
static void a_line_that_cannot_be_written_is_an_error_also_when_it_is_the_last(void **state) {
    (void)state;
    char folder[] = "/tmp/mop-test-XXXXXX";
    assert_non_null(mkdtemp(folder));
    Config config = {.train_steps = 1};
    const Session session = {.config = &config, .spec = {.vocabulary = 10}};
    const StepResult step = {.trained = 1, .loss = 2};
    struct rlimit before, small = {100, 100};
    Error e = {0};
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small.rlim_max = before.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    for (int kind = 0; kind < 3; kind++) {
        Journal *j = open_journal(&session, folder);
        assert_true(journal_flush(j, &e) && journal_sync(j, &e));
        setrlimit(RLIMIT_FSIZE, &small);
        if (kind == 0) journal_step(j, &step, 1, 1);
        if (kind == 1) journal_event(j, "checkpoint", 1, "%0200d", 1);
        bool closed = journal_close(j, &e);
        setrlimit(RLIMIT_FSIZE, &before);
        assert_true(closed == (kind == 2));
        if (kind < 2) assert_int_equal(e.code, EXIT_IO);
        if (kind < 2) assert_non_null(strstr(e.text, "metrics.jsonl or events.jsonl in /tmp/mop-test-"));
        e = (Error){0};
        unlink(path_join(folder, "metrics.jsonl").text);
        unlink(path_join(folder, "events.jsonl").text);
    }
    signal(SIGXFSZ, SIG_DFL);
    rmdir(folder);
}

/* ---- For people -------------------------------------------------------------------------------- */

static void people_never_see_a_nan(void **state) {
    (void)state;
    static const double not [] = {NAN, -NAN, INFINITY, -INFINITY};
    char line[PROGRESS_LINE];
    for (size_t i = 0; i < COUNT(not ); i++) {
        StepResult r = {.trained = 8, .loss = not [i], .balance = not [i], .norm = not [i]};
        assert_string_equal(metric_shown(not [i], 3).text, "not finite");
        progress_line(line, 200, &r, 10, 5, 5);
        assert_string_equal(line, "step 1/10  loss not finite  balance not finite  norm not finite  lr 0.00e+00  "
                                  "5 tokens/s  5 s left");
        Progress p = progress_begin(false);
        p.losses = 1;
        p.first_loss = p.last[0] = not [i];
        progress_summary(&p, line, sizeof line);
        assert_null(strstr(line, "nan"));
    }
    StepResult none = {.trained = 0, .loss = 0, .balance = 1, .norm = 2, .learning_rate = 1e-3};
    progress_line(line, 200, &none, 10, 5, 5);
    assert_string_equal(line, "step 1/10  loss -  balance 1.000  norm 2.000  lr 1.00e-03  5 tokens/s  5 s left");
}

static void the_progress_line_is_never_wider_than_the_terminal_and_drops_what_matters_least(void **state) {
    (void)state;
    static const int64_t numbers[] = {1, 12, 123456, 123456789, 9223372036854775806};
    static const double values[] = {0, 2.5, 123.456, 1e30, -1e300, NAN};
    char line[PROGRESS_LINE];
    for (size_t n = 0; n < COUNT(numbers); n++)
        for (size_t v = 0; v < COUNT(values); v++)
            for (int width = 0; width < PROGRESS_LINE; width++) {
                StepResult r = {.step = numbers[n],
                                .trained = 1,
                                .loss = values[v],
                                .balance = values[v],
                                .norm = values[v],
                                .learning_rate = 1e-3};
                progress_line(line, width, &r, numbers[n], 1e9, 1e9);
                if ((int)strlen(line) > width) fail_msg("%d columns: \"%s\"", width, line);
            }
    static const struct {
        int width;
        const char *line;
    } lines[] = {
        {200, "step 123456/200000  loss 2.1903  balance 1.023  norm 0.846  lr 1.20e-03  12345 tokens/s  25 min left"},
        {79, "step 123456/200000  loss 2.1903  lr 1.20e-03  12345 tokens/s  25 min left"},
        {59, "step 123456/200000  loss 2.1903  25 min left"},
        {39, "step 123456/200000  loss 2.1903"},
        {18, "step 123456/200000"},
        {10, "step 12345"},
    };
    StepResult r = {
        .step = 123455, .trained = 1, .loss = 2.1903, .balance = 1.023, .norm = 0.846, .learning_rate = 1.2e-3};
    for (size_t i = 0; i < COUNT(lines); i++) {
        progress_line(line, lines[i].width, &r, 200000, 12345, 1500);
        assert_string_equal(line, lines[i].line);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_learning_rate_of_every_step_is_what_the_schedule_says),
        cmocka_unit_test(a_step_is_taken_with_the_rate_of_its_number),
        cmocka_unit_test(gradients_are_clipped_by_the_factor_of_torch_to_the_digits_of_fp64),
        cmocka_unit_test(a_loss_that_is_not_finite_makes_no_update_though_the_gradients_are_finite),
        cmocka_unit_test(bad_steps_in_a_row_are_kept_and_an_older_state_has_none),
        cmocka_unit_test(all_ranks_stop_a_sample_behind_the_same_token_when_one_is_asked),
        cmocka_unit_test(the_checkpoints_that_are_there_at_once_are_counted),
        cmocka_unit_test(a_line_that_cannot_be_written_is_an_error_also_when_it_is_the_last),
        cmocka_unit_test(people_never_see_a_nan),
        cmocka_unit_test(the_progress_line_is_never_wider_than_the_terminal_and_drops_what_matters_least),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
