/* Settings: what YAML and --set may say, how mistakes are told, and that what is written reads back. */
#define _POSIX_C_SOURCE 200809L
#include "base/config.h"
#include "base/explain.h"
#include "base/guess.h"
#include "base/manual.h"
#include "base/options.h"
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static bool read_with(Config *c, const char *text, const char *const *sets, int n_sets, Error *e) {
    *e = (Error){0};
    return config_read_text(c, text, strlen(text), "run.yaml", sets, n_sets, e);
}

static Config config_of(const char *text) {
    Config c;
    Error e;
    if (!read_with(&c, text, NULL, 0, &e)) fail_msg("%s", e.text);
    return c;
}

static void assert_says(const Error *e, const char *part) {
    if (e->code != EXIT_USAGE || !strstr(e->text, part))
        fail_msg("expected \"%s\", got [%d] \"%s\"", part, e->code, e->text);
}

static void assert_same(const Config *a, const Config *b) {
    for (int i = 0; i < option_count; i++) {
        if (!option_equal(&options[i], a, b)) fail_msg("%s differs", options[i].key);
    }
}

/* The same wherever it is read: relative paths, which are written whole, count from here. */
static void assert_same_from_here(const Config *a, const Config *b) {
    char here[4096], *texts[2];
    assert_non_null(getcwd(here, sizeof here - 2));
    strcat(here, "/");
    for (int i = 0; i < option_count; i++) {
        for (int side = 0; side < 2; side++) {
            size_t bytes;
            FILE *f = open_memstream(&texts[side], &bytes);
            option_print_located(&options[i], side ? b : a, here, f);
            fclose(f);
        }
        assert_string_equal(texts[0], texts[1]);
        free(texts[0]);
        free(texts[1]);
    }
}

static char *written(const Config *c) {
    char *text;
    size_t bytes;
    FILE *f = open_memstream(&text, &bytes);
    config_write(c, f);
    fclose(f);
    return text;
}

/* ---- The table -------------------------------------------------------------------------------- */

static void every_row_has_a_key_a_field_and_a_help_of_its_own(void **state) {
    (void)state;
    for (int i = 0; i < option_count; i++) {
        const Option *o = &options[i];
        assert_true(strlen(o->key) > 0 && strlen(o->help) > 5);
        assert_true(o->unit && o->initial);
        assert_true(o->offset < offsetof(Config, memory));
        assert_ptr_equal(option_find(o->key), o);
        for (int j = 0; j < i; j++) assert_int_not_equal(o->offset, options[j].offset);
    }
}

static void rows_cover_every_field_of_a_config(void **state) {
    (void)state;
    static const size_t sizes[] = {[OPTION_TEXT] = sizeof(char *),
                                   [OPTION_LIST] = sizeof(char **),
                                   [OPTION_INTEGER] = sizeof(int64_t),
                                   [OPTION_NUMBER] = sizeof(double),
                                   [OPTION_CHOICE] = sizeof(int)};
    char covered[offsetof(Config, memory)] = {0};
    for (int i = 0; i < option_count; i++) memset(covered + options[i].offset, 1, sizes[options[i].kind]);
    int gap = 0; /* padding after a choice is at most four bytes */
    for (size_t i = 0; i < sizeof covered; i++) {
        gap = covered[i] ? 0 : gap + 1;
        assert_true(gap <= 4);
    }
}

static void defaults_are_what_the_header_promises(void **state) {
    (void)state;
    Config c;
    Error e = {0};
    assert_true(config_read(&c, NULL, NULL, 0, &e));
    assert_string_equal(c.model_config, "");
    assert_null(c.data_path[0]);
    assert_int_equal(c.train_steps, 100);
    assert_int_equal(c.train_sequence_length, 512);
    assert_int_equal(c.train_sample_every, -1);
    assert_int_equal(c.compute_type, FP32);
    assert_string_equal(c.device, "cpu");
    assert_int_equal(c.ranks, 0);
    assert_true(c.optimizer_learning_rate == 3e-4 && c.optimizer_beta2 == 0.95 && c.optimizer_epsilon == 1e-8);
    assert_int_equal(c.optimizer_schedule, SCHEDULE_COSINE);
    assert_int_equal(c.optimizer_update, UPDATE_DEFERRED);
    assert_true(c.loss_balance == -1 && c.loss_router_z == -1);
    assert_int_equal(c.mixture_dense, 0);
    assert_int_equal(c.mixture_expert, 1);
    assert_string_equal(c.sim_routing, "balanced");
    config_close(&c);
}

/* ---- What is accepted ------------------------------------------------------------------------- */

static void sections_and_dotted_keys_say_the_same(void **state) {
    (void)state;
    Config a =
        config_of("train:\n  steps: 7\n  seed: 3\ncompute: {type: fp64, activations: recompute}\ndevice: sim:h200\n");
    Config b = config_of("train.steps: 7\ntrain: {seed: 3}\ncompute.type: fp64\ncompute.activations: "
                         "recompute\n\"device\": 'sim:h200'\n");
    assert_int_equal(a.train_steps, 7);
    assert_int_equal(a.train_seed, 3);
    assert_int_equal(a.compute_type, FP64);
    assert_int_equal(a.compute_activations, ACTIVATIONS_RECOMPUTE);
    assert_string_equal(a.device, "sim:h200");
    assert_same(&a, &b);
    config_close(&a);
    config_close(&b);
}

static void scalars_are_typed_by_the_table(void **state) {
    (void)state;
    Config c = config_of(
        "model.config: 123\ntrain.steps: 1e6\ntrain.sequences: '16'\ntrain.sequence_length: 2.5e2\n"
        "optimizer.learning_rate: 2e-3\noptimizer.clip: 0\nloss.balance: -1.0\ntrain.sample_prompt: |\n  a\n  b\n");
    assert_string_equal(c.model_config, "123");
    assert_int_equal(c.train_steps, 1000000);
    assert_int_equal(c.train_sequences, 16);
    assert_int_equal(c.train_sequence_length, 250);
    assert_true(c.optimizer_learning_rate == 2e-3 && c.optimizer_clip == 0 && c.loss_balance == -1);
    assert_string_equal(c.train_sample_prompt, "a\nb\n");
    config_close(&c);
}

static void a_single_string_is_a_list_of_one(void **state) {
    (void)state;
    Config one = config_of("data.path: a b.txt"), two = config_of("data:\n  path:\n    - a\n    - \"b\"\n"),
           none = config_of("data.path: \"\""), empty = config_of("data: {path: []}");
    assert_string_equal(one.data_path[0], "a b.txt");
    assert_null(one.data_path[1]);
    assert_string_equal(two.data_path[0], "a");
    assert_string_equal(two.data_path[1], "b");
    assert_null(two.data_path[2]);
    assert_null(none.data_path[0]);
    assert_null(empty.data_path[0]);
    config_close(&one);
    config_close(&two);
    config_close(&none);
    config_close(&empty);
}

static void an_empty_text_is_all_defaults(void **state) {
    (void)state;
    const char *const texts[] = {"", "# nothing\n", "---\n", "{}", "train:\nmodel:\n", "\xef\xbb\xbf", "---\n...\n"};
    Config defaults = config_of("");
    for (size_t i = 0; i < COUNT(texts); i++) {
        Config c = config_of(texts[i]);
        assert_same(&c, &defaults);
        config_close(&c);
    }
    config_close(&defaults);
}

static void windows_files_with_a_byte_order_mark_are_read(void **state) {
    (void)state;
    Config c = config_of("\xef\xbb\xbftrain:\r\n  steps: 5\r\n  seed: 6\r\nranks: 2\r\n");
    assert_int_equal(c.train_steps, 5);
    assert_int_equal(c.train_seed, 6);
    assert_int_equal(c.ranks, 2);
    config_close(&c);
}

static void sets_come_after_the_file_and_the_last_one_wins(void **state) {
    (void)state;
    const char *const sets[] = {"train.steps=8",      "train.steps=9",   "train.sample_prompt=a: \"b\" = c",
                                "data.path=x, y.txt", "device=sim:NAME", "model.path="};
    Config c;
    Error e;
    assert_true(read_with(&c, "train.steps: 7\nmodel.path: m\ndata.path: [p, q]", sets, COUNT(sets), &e));
    assert_int_equal(c.train_steps, 9);
    assert_string_equal(c.train_sample_prompt, "a: \"b\" = c");
    assert_string_equal(c.data_path[0], "x, y.txt");
    assert_null(c.data_path[1]);
    assert_string_equal(c.device, "sim:NAME");
    assert_string_equal(c.model_path, "");
    config_close(&c);
}

static void a_set_in_brackets_is_a_list(void **state) {
    (void)state;
    const char *const sets[] = {"data.path=[x, 'y, z']"};
    Config c;
    Error e;
    assert_true(read_with(&c, "", sets, 1, &e));
    assert_string_equal(c.data_path[0], "x");
    assert_string_equal(c.data_path[1], "y, z");
    assert_null(c.data_path[2]);
    config_close(&c);
}

/* ---- What is refused -------------------------------------------------------------------------- */

static void malformed_configurations_are_refused_with_line_and_reason(void **state) {
    (void)state;
    static const struct {
        const char *text, *says;
    } rows[] = {
        /* keys */
        {"train:\n  step: 5\n", "run.yaml:2: unknown key \"train.step\"; the nearest is train.steps"},
        {"\n\nlearning_rate: 1\n", "run.yaml:3: unknown key \"learning_rate\"; the nearest is optimizer.learning_rate"},
        {"optimiser:\n  beta1: 0.9\n", "run.yaml:2: unknown key \"optimiser.beta1\"; the nearest is optimizer.beta1"},
        {"optimiser: {}\n", "run.yaml:1: unknown key \"optimiser\"; the nearest is optimizer"},
        {"train: {sample.every: 1}", "unknown key \"train.sample.every\"; the nearest is train.sample_every"},
        {"train: {train.steps: 1}", "unknown key \"train.train.steps\"; the nearest is train.steps"},
        {"Ranks: 1", "unknown key \"Ranks\"; the nearest is ranks"},
        {"\"\": 1", "unknown key \"\""},
        {"\"train.steps\\0x\": 1", "run.yaml:1: a key must be a plain name"},
        {"\"a\\nb\": 1", "unknown key \"a?b\""},
        {"? [a]\n: 1\n", "run.yaml:1: a key must be a plain name"},
        {"? {a: b}\n: {c: d}\n", "run.yaml:1: a key must be a plain name"},
        /* twice */
        {"train.steps: 1\ntrain.steps: 1\n", "run.yaml:2: train.steps is given twice, first in line 1"},
        {"train: {steps: 1}\n\ntrain.steps: 2\n", "run.yaml:3: train.steps is given twice, first in line 1"},
        {"train: {steps: 1}\ntrain: {seed: 1}\n", "run.yaml:2: train is given twice, first in line 1"},
        /* kinds */
        {"train.steps:\n", "train.steps has no value; give one or remove the line"},
        {"model.path: ~", "model.path has no value"},
        {"model.path: null", "model.path has no value"},
        {"train.steps: [1]", "train.steps takes one value, not a list"},
        {"train.steps: {a: 1}", "train.steps takes a value, not a map"},
        {"train: 5", "train is a section; put its keys below it"},
        {"train: [steps]", "train is a section"},
        {"data.path: [a, [b]]", "data.path is a list of text; this item is none"},
        {"data.path:\n  - a\n  - b: c\n", "run.yaml:3: data.path is a list of text"},
        {"data.path: [a, null]", "data.path is a list of text"},
        {"data.path: [a, \"\"]", "data.path has an empty item"},
        {"data.path: {a: b}", "data.path takes a value, not a map"},
        {"model.path: \"a\\0b\"", "model.path holds a NUL character"},
        {"data.path: [\"a\\0b\"]", "data.path is a list of text"},
        /* integers */
        {"train.steps: abc", "train.steps is \"abc\"; it must be an integer from 1 to 2147483647 (steps)"},
        {"train.steps: 0", "train.steps is \"0\"; it must be"},
        {"train.steps: -5", "train.steps is \"-5\""},
        {"train.steps: 1.5", "train.steps is \"1.5\""},
        {"train.steps: 1_000", "train.steps is \"1_000\""},
        {"train.steps: 0x10", "train.steps is \"0x10\""},
        {"train.steps: 10 20", "train.steps is \"10 20\""},
        {"train.steps: 99999999999999999999", "train.steps is \"99999999999999999999\""},
        {"train.steps: 1e400", "train.steps is \"1e400\""},
        {"train.steps: ''", "train.steps is \"\""},
        {"train.steps: '-'", "train.steps is \"-\""},
        {"train.steps: true", "train.steps is \"true\""},
        {"train.seed: 1e17", "train.seed is \"1e17\""},
        {"ranks: 1e9", "ranks is \"1e9\"; it must be an integer from 0 to 65536 (ranks)"},
        {"mixture.expert: 0", "mixture.expert is \"0\"; it must be an integer from 1"},
        /* numbers */
        {"optimizer.learning_rate: fast", "optimizer.learning_rate is \"fast\"; it must be a number from 0 to 1000"},
        {"optimizer.learning_rate: -1e-3", "optimizer.learning_rate is \"-1e-3\""},
        {"optimizer.learning_rate: .nan", "optimizer.learning_rate is \".nan\""},
        {"optimizer.learning_rate: nan", "optimizer.learning_rate is \"nan\""},
        {"optimizer.learning_rate: inf", "optimizer.learning_rate is \"inf\""},
        {"optimizer.learning_rate: 1e999", "optimizer.learning_rate is \"1e999\""},
        {"optimizer.beta1: 1", "optimizer.beta1 is \"1\"; it must be a number from 0 to 0.9999999"},
        {"optimizer.epsilon: 0", "optimizer.epsilon is \"0\"; it must be a number from 1e-30 to 1"},
        {"loss.balance: -0.5", "loss.balance is \"-0.5\"; it must be a number from 0 to 1e6, or -1"},
        {"comm.timeout: 0", "comm.timeout is \"0\"; it must be a number from 0.01 to 1e6 (seconds)"},
        /* choices and forms */
        {"compute.type: fp16", "compute.type is \"fp16\"; it must be one of fp32, bf16, fp64"},
        {"compute.type: FP32", "compute.type is \"FP32\""},
        {"optimizer.schedule: cosin", "it must be one of constant, linear, cosine"},
        {"device: gpu",
         "device is \"gpu\"; it must be one of cpu, cpu:plain, cpu:late, cpu:avx512bf16, cpu:avx512, cpu:avx2, "
         "cpu:portable, cuda:N, sim:NAME"},
        {"device: 'sim:'", "device is \"sim:\""},
        {"device: cpu:3", "device is \"cpu:3\""},
        {"sim.routing: replay", "sim.routing is \"replay\"; it must be one of balanced, worst, replay:FILE"},
        /* YAML that has no use here, or is none */
        {"model: {path: &x a}", "run.yaml:1: anchors and aliases (x) are not supported"},
        {"model: {path: *x}", "anchors and aliases (x) are not supported"},
        {"a: &a [*a, *a]", "anchors and aliases (a)"},
        {"train.steps: !!int 5", "tags (tag:yaml.org,2002:int) are not supported"},
        {"train: !!map {}", "tags (tag:yaml.org,2002:map)"},
        {"<<: {train.steps: 1}", "unknown key \"<<.train.steps\""},
        {"--- {}\n--- {}\n", "run.yaml:2: a second document begins; keep one"},
        {"- a\n- b\n", "run.yaml:1: a map of keys and values is expected"},
        {"hello", "run.yaml:1: a map of keys and values is expected"},
        {"train:\n\tsteps: 1\n", "run.yaml:2: not YAML: found character that cannot start any token"},
        {"train: {steps: 1\n", "not YAML: did not find expected ',' or '}'"},
        {"train:\n  steps: 1\n seed: 2\n", "run.yaml:3: not YAML"},
        {"model.path: \"a", "not YAML: found unexpected end of stream"},
        {"model.path: \"\\q\"", "not YAML: found unknown escape character"},
        {"model.path: \xff", "run.yaml:1: not YAML: invalid leading UTF-8 octet"},
        {"model.path: \x01", "not YAML: control characters are not allowed"},
        {"%YAML 3.0\n---\n", "not YAML: found incompatible YAML document"},
        {"a: [[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]", "nested deeper than 16"},
        {"a: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: 1}}}}}}}}}}}}}}}}}",
         "nested deeper than 16"},
        /* together */
        {"device: sim:h200\nsim.record: f", "sim.record is given, but a sim device has no routing"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        Config c;
        Error e;
        if (read_with(&c, rows[i].text, NULL, 0, &e)) fail_msg("accepted: %s", rows[i].text);
        assert_says(&e, rows[i].says);
        assert_null(c.memory);
    }
}

static void sets_are_checked_like_the_file(void **state) {
    (void)state;
    static const struct {
        const char *set, *says;
    } rows[] = {
        {"train.steps", "--set: \"train.steps\" has no value; write --set key=value"},
        {"", "--set: \"\" has no value"},
        {"=5", "--set: unknown key \"\""},
        {"train.step=5", "--set: unknown key \"train.step\"; the nearest is train.steps"},
        {"train=5", "--set: unknown key \"train\""},
        {"train.steps=", "--set: train.steps is \"\"; it must be an integer"},
        {"train.steps= 5", "--set: train.steps is \" 5\""},
        {"model.path=\xff", "--set: model.path is"},
        {"data.path=[a", "not YAML: did not find expected ',' or ']'"},
        {"data.path=[a] b", "--set:1: not YAML"},
        {"data.path=[&a b]", "anchors and aliases (a)"},
        {"data.path=[{a: b}]", "data.path is a list of text"},
        {"sim.record=f", "sim.record is given"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        Config c;
        Error e;
        if (read_with(&c, "device: sim:x", &rows[i].set, 1, &e)) fail_msg("accepted: %s", rows[i].set);
        assert_says(&e, rows[i].says);
    }
}

static void keys_of_other_trainers_are_answered_with_those_of_mop(void **state) {
    (void)state;
    static const struct {
        const char *text, *says;
    } rows[] = {
        {"lr: 1", "unknown key \"lr\"; here it is optimizer.learning_rate"},
        {"train: {batch_size: 1}", "unknown key \"train.batch_size\"; here it is train.sequences"},
        {"per_device_train_batch_size: 1", "train.micro_batches its parts"},
        {"gradient_accumulation_steps: 4", "here it is train.micro_batches"},
        {"num_train_epochs: 4", "mop counts steps, train.steps"},
        {"max_steps: 4", "here it is train.steps"},
        {"base_model: x/y", "here it is model.path"},
        {"datasets:\n  - path: x\n    type: y\n", "unknown key \"datasets\"; here it is data.path"},
        {"fsdp_config: {a: 1, b: {c: 2}}\n", "unknown key \"fsdp_config\"; here it is mixture.dense"},
        {"bf16: true", "here it is compute.type: fp32, bf16 or fp64"},
        {"fp16: true", "mop has no fp16"},
        {"output_dir: ./x", "--run DIR"},
        {"Max-Grad-Norm: 1", "here it is optimizer.clip"},
        {"context_length: 1", "here it is train.sequence_length"},
        {"gradient_checkpointing: true", "here it is compute.activations: recompute"},
        {"tensor_parallel_size: 2", "mop has no tensor parallelism"},
        {"expert_parallel: 2", "here it is mixture.expert"},
        {"num_gpus: 8", "here it is ranks"},
        {"hidden_size: 64", "model.config names"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        Config c;
        Error e;
        if (read_with(&c, rows[i].text, NULL, 0, &e)) fail_msg("accepted: %s", rows[i].text);
        assert_says(&e, rows[i].says);
        assert_null(strstr(e.text, "mistakes")); /* one each, whatever is below the key */
    }
}

static void names_that_are_far_from_all_keys_get_no_suggestion(void **state) {
    (void)state;
    static const struct {
        const char *key, *hint;
    } rows[] = {
        {"nothing", "`mop help` lists all keys"},
        {"q", "`mop help` lists all keys"},
        {"unknown_5", "`mop help` lists all keys"},
        {"", "`mop help` lists all keys"},
        {"rnaks", "the nearest is ranks"},
        {"train.sequence_lenght", "the nearest is train.sequence_length"},
        {"model.learning_rate", "the nearest is optimizer.learning_rate"},
        {"chekpoint", "the nearest is checkpoint"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) assert_string_equal(key_hint(rows[i].key).text, rows[i].hint);
}

static void all_mistakes_are_told_at_once(void **state) {
    (void)state;
    const char *text =
        "train:\n  steps: many\n  sequences: 4\n  sequences: 5\n  tokens: 3\ncompute.type: int8\ndata.path: [[a]]\n"
        "optimizer: {beta1: 2, schedule: linear}\n";
    const char *const sets[] = {"ranks=-1", "steps=4"};
    const char *const lines[] = {
        "8 mistakes in the configuration:\n",
        "\n  run.yaml:2: train.steps is \"many\"",
        "\n  run.yaml:4: train.sequences is given twice, first in line 3",
        "\n  run.yaml:5: unknown key \"train.tokens\"",
        "\n  run.yaml:6: compute.type is \"int8\"",
        "\n  run.yaml:7: data.path is a list of text",
        "\n  run.yaml:8: optimizer.beta1 is \"2\"",
        "\n  --set: ranks is \"-1\"",
        "\n  --set: unknown key \"steps\"; the nearest is train.steps",
    };
    Config c;
    Error e;
    assert_false(read_with(&c, text, sets, COUNT(sets), &e));
    for (size_t i = 0; i < COUNT(lines); i++) assert_says(&e, lines[i]);
}

static void mistakes_before_and_after_broken_yaml_are_told_too(void **state) {
    (void)state;
    const char *const sets[] = {"ranks=-1"};
    Config c;
    Error e;
    assert_false(read_with(&c, "train.steps: x\nmodel: {\n", sets, 1, &e));
    assert_says(&e, "3 mistakes in the configuration:\n  run.yaml:1: train.steps");
    assert_says(&e, "\n  run.yaml:3: not YAML");
    assert_says(&e, "\n  --set: ranks");
}

static void more_mistakes_than_fit_are_counted(void **state) {
    (void)state;
    char text[4096] = "";
    for (int i = 0; i < 200; i++) sprintf(text + strlen(text), "unknown_%d: 1\n", i);
    Config c;
    Error e;
    assert_false(read_with(&c, text, NULL, 0, &e));
    assert_says(&e, "200 mistakes in the configuration:\n  run.yaml:1: ");
    int lines = 0, left = 0;
    for (const char *at = e.text; *at; at++) lines += *at == '\n';
    assert_int_equal(sscanf(strstr(e.text, "and "), "and %d more", &left), 1);
    assert_int_equal(lines - 1 + left, 200);
    assert_int_equal(e.text[strlen(e.text) - 1], 'e'); /* nothing is cut */
}

static void hostile_names_are_shown_short_and_clean(void **state) {
    (void)state;
    char text[3000];
    memset(text, 'k', sizeof text);
    strcpy(text + 900, "\": \"\\e[2J\"");
    text[0] = '"';
    Config c;
    Error e;
    assert_false(read_with(&c, text, NULL, 0, &e));
    assert_says(&e, "kkk...\"; `mop help` lists all keys");
    assert_true(strlen(e.text) < 200);
    assert_false(read_with(&c, "device: \"\\e[2J\"", NULL, 0, &e));
    assert_says(&e, "device is \"?[2J\"");
}

static void a_text_beyond_a_mebibyte_is_refused(void **state) {
    (void)state;
    enum { BYTES = (1 << 20) + 1 };
    char *text = malloc(BYTES);
    memset(text, '#', BYTES);
    Config c;
    Error e = {0};
    assert_true(config_read_text(&c, text, BYTES - 1, "run.yaml", NULL, 0, &e));
    config_close(&c);
    assert_false(config_read_text(&c, text, BYTES, "run.yaml", NULL, 0, &e));
    assert_says(&e, "run.yaml: larger than 1048576 bytes");
    free(text);
}

static void a_missing_file_is_a_mistake_of_usage(void **state) {
    (void)state;
    Config c;
    Error e = {0}, folder = {0};
    assert_false(config_read(&c, "/nowhere/run.yaml", NULL, 0, &e));
    assert_says(&e, "/nowhere/run.yaml");
    assert_null(c.memory);
    assert_false(config_read(&c, "/", NULL, 0, &folder));
    assert_says(&folder, "this is a directory");
}

/* ---- Writing ---------------------------------------------------------------------------------- */

static void what_is_written_reads_back_the_same(void **state) {
    (void)state;
    static const char *const texts[] = {
        "",
        "optimizer: {learning_rate: 0.1234567890123456789, epsilon: 1.5e-17, weight_decay: 1e3, minimum: 4e-320, clip: "
        "12345678.9}",
        "train.seed: 9007199254740992\ntrain.sample_every: 0\nloss.balance: 0.01\ncompute.type: "
        "bf16\noptimizer.update: blocking\n",
        "model.path: \"quote \\\" backslash \\\\ colon: # hash 'single'\"\ndata.path: [\"- a\", \"[b]\", \"~a\", "
        "\"null\", \"{c: d}\", \"&e\"]",
        "train.sample_prompt: \" lead and trail \\n\\t\\r\\a\\x7f\\x80a \\u2028 b \\u2029 c "
        "\\ufeff\\uffff\\ud7ff\\U0010ffff \xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80 \"",
        "train.sample_prompt: \"\\N\\_\\L\\P\\e\\v%@`!|>\"\ndata.path: [\"a\\nb\", 'it''s']",
    };
    for (size_t i = 0; i < COUNT(texts); i++) {
        Config c = config_of(texts[i]);
        char *once = written(&c);
        Config back = config_of(once);
        assert_same_from_here(&c, &back);
        char *twice = written(&back);
        assert_string_equal(once, twice);
        free(once);
        free(twice);
        config_close(&c);
        config_close(&back);
    }
}

static void every_key_is_written_with_its_help(void **state) {
    (void)state;
    Config c = config_of("");
    char *text = written(&c);
    for (int i = 0; i < option_count; i++) assert_non_null(strstr(text, options[i].help));
    assert_non_null(strstr(text, "\noptimizer:\n  learning_rate: 0.0003 "));
    assert_non_null(strstr(text, "\n  epsilon: 1e-8 "));
    assert_non_null(strstr(text, "\ndevice: \"cpu\" "));
    free(text);
    config_close(&c);
}

static void a_file_is_read_from_disk(void **state) {
    (void)state;
    char path[] = "/tmp/mop-config-XXXXXX";
    FILE *f = fdopen(mkstemp(path), "w");
    fputs("train.steps: 3\nranks: x\n", f);
    fclose(f);
    Config c;
    Error e = {0}, none = {0};
    const char *const sets[] = {"train.steps=4"};
    assert_false(config_read(&c, path, sets, 1, &e));
    assert_says(&e, path);
    assert_says(&e, ":2: ranks is \"x\"");
    f = fopen(path, "w");
    fputs("train.steps: 3\nranks: 2\n", f);
    fclose(f);
    assert_true(config_read(&c, path, sets, 1, &none));
    assert_int_equal(c.train_steps, 4);
    assert_int_equal(c.ranks, 2);
    config_close(&c);
    unlink(path);
}

static void put_file(const char *path, const char *text) {
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void paths_in_a_file_start_at_that_file_and_those_of_sets_do_not(void **state) {
    (void)state;
    char folder[] = "/tmp/mop-paths-XXXXXX", path[64], expected[128];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/run.yaml", folder);
    put_file(path, "model: {config: m/c.json, path: /whole}\ndata: {path: [a.txt, ../b.txt, /c.txt], tokenizer: \"\"}\n"
                   "device: sim:h200.json\nsim.routing: replay:r.bin\ntrain.sample_prompt: a.txt\n");
    Config c, at_home;
    Error e = {0};
    const char *const sets[] = {"sim.routing=replay:here.bin", "data.tokenizer=t.json"};
    if (!config_read(&c, path, sets, 2, &e)) fail_msg("%s", e.text);
    snprintf(expected, sizeof expected, "%s/m/c.json", folder);
    assert_string_equal(c.model_config, expected);
    assert_string_equal(c.model_path, "/whole");
    snprintf(expected, sizeof expected, "%s/a.txt", folder);
    assert_string_equal(c.data_path[0], expected);
    snprintf(expected, sizeof expected, "%s/../b.txt", folder);
    assert_string_equal(c.data_path[1], expected);
    assert_string_equal(c.data_path[2], "/c.txt");
    snprintf(expected, sizeof expected, "sim:%s/h200.json", folder);
    assert_string_equal(c.device, expected);
    assert_string_equal(c.train_sample_prompt, "a.txt");
    assert_string_equal(c.sim_routing, "replay:here.bin");
    assert_string_equal(c.data_tokenizer, "t.json");
    config_close(&c);

    put_file(path, "device: sim:h200x1-of-mine\nsim.routing: worst\ndata.tokenizer: bytes\n");
    const char *const list[] = {"data.path=[x.txt, /y.txt]"}; /* names are no paths, and a set's list starts here */
    assert_true(config_read(&at_home, path, list, 1, &e));
    assert_string_equal(at_home.data_path[0], "x.txt");
    assert_string_equal(at_home.data_path[1], "/y.txt");
    assert_string_equal(at_home.device, "sim:h200x1-of-mine");
    assert_string_equal(at_home.sim_routing, "worst");
    assert_string_equal(at_home.model_path, "");
    assert_string_equal(at_home.data_tokenizer, "bytes");
    config_close(&at_home);
    unlink(path);
    rmdir(folder);
}

static void what_is_written_means_the_same_from_any_directory(void **state) {
    (void)state;
    char here[4096], folder[] = "/tmp/mop-paths-XXXXXX", path[64], expected[8192];
    assert_non_null(getcwd(here, sizeof here));
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/config.yaml", folder);
    Config c = config_of("model.config: m.json\ndata.path: [a, /b]\nsim.routing: replay:r\ndevice: sim:x.json"), back;
    char *text = written(&c);
    put_file(path, text);
    Error e = {0};
    if (!config_read(&back, path, NULL, 0, &e)) fail_msg("%s", e.text);
    snprintf(expected, sizeof expected, "%s/m.json", here);
    assert_string_equal(back.model_config, expected);
    snprintf(expected, sizeof expected, "%s/a", here);
    assert_string_equal(back.data_path[0], expected);
    assert_string_equal(back.data_path[1], "/b");
    snprintf(expected, sizeof expected, "replay:%s/r", here);
    assert_string_equal(back.sim_routing, expected);
    snprintf(expected, sizeof expected, "sim:%s/x.json", here);
    assert_string_equal(back.device, expected);
    assert_true(config_resumable(&c, &back, &e));
    free(text);
    config_close(&back);
    config_close(&c);
    unlink(path);
    rmdir(folder);
}

static void a_tilde_is_refused_where_a_path_begins_with_it(void **state) {
    (void)state;
    static const char *const texts[] = {"model.path: ~/x", "data.path: [a, ~/b]", "sim.routing: replay:~/r",
                                        "data.path: \"~\""};
    for (size_t i = 0; i < COUNT(texts); i++) {
        Config c;
        Error e;
        assert_false(read_with(&c, texts[i], NULL, 0, &e));
        assert_says(&e, "mop does not know ~: write the home directory out");
    }
    Config c = config_of("train.sample_prompt: ~/x\nmodel.path: ./~/x\ndata.path: a~");
    config_close(&c);
}

static void a_current_directory_that_cannot_be_written_down_is_refused(void **state) {
    (void)state;
    char here[4096], folder[] = "/tmp/mop-paths-XXXXXX", odd[64];
    assert_non_null(getcwd(here, sizeof here));
    assert_non_null(mkdtemp(folder));
    snprintf(odd, sizeof odd, "%s/\xff", folder);
    assert_int_equal(mkdir(odd, 0700), 0);
    Config c;
    Error e;
    assert_int_equal(chdir(odd), 0);
    bool accepted = read_with(&c, "", NULL, 0, &e);
    assert_int_equal(chdir(here), 0);
    assert_false(accepted);
    assert_says(&e, "the current directory has no name in UTF-8");
    rmdir(odd);
    rmdir(folder);
}

/* ---- Telling ---------------------------------------------------------------------------------- */

static char *explained(const char *name) {
    char *text;
    size_t bytes;
    Error e = {0};
    FILE *f = open_memstream(&text, &bytes);
    if (!config_explain(name, f, &e)) fail_msg("%s", e.text);
    fclose(f);
    return text;
}

static void an_option_is_explained_in_full(void **state) {
    (void)state;
    static const char *const parts[] = {"optimizer.warmup: ",
                                        "In the first steps the learning rate rises",
                                        "\n  when     ",
                                        "\n  example  --set optimizer.warmup=100\n",
                                        "\n  value    an integer from 0 to 2147483647 (steps)\n",
                                        "\n  default  0\n",
                                        "may change when a run is resumed"};
    char *text = explained("optimizer.warmup");
    for (size_t i = 0; i < COUNT(parts); i++)
        if (!strstr(text, parts[i])) fail_msg("no \"%s\" in\n%s", parts[i], text);
    free(text);
}

static void a_section_is_explained_with_all_its_keys(void **state) {
    (void)state;
    char *text = explained("mixture");
    assert_non_null(strstr(text, "divided among the ranks"));
    for (int i = 0; i < option_count; i++) {
        char row[64];
        snprintf(row, sizeof row, "\n%s ", options[i].key);
        bool belongs = strncmp(options[i].key, "mixture.", 8) == 0;
        assert_true(belongs == (strstr(text, row) != NULL));
    }
    free(text);
}

static int words_of(const char *text) {
    int words = 0;
    for (; *text; text++) words += *text != ' ' && (text[1] == ' ' || text[1] == 0);
    return words;
}

/* The example is a setting of the option itself and is accepted. */
static void assert_example(const char *key, const Page *page) {
    Config c;
    Error e = {0};
    if (!config_read(&c, NULL, &page->example, 1, &e)) fail_msg("%s: %s", page->name, e.text);
    config_close(&c);
    size_t n = strlen(key);
    if (strncmp(page->example, key, n) != 0 || !strchr("=.", page->example[n]))
        fail_msg("%s: its example is %s", key, page->example);
}

static void every_option_and_section_has_a_page_with_an_example_that_is_accepted(void **state) {
    (void)state;
    enum { FEWEST = 15 };
    for (int i = 0; i < option_count; i++) {
        const Option *o = &options[i];
        const Page *page = manual_page(o->key);
        if (!page) fail_msg("manual.c has no page for %s", o->key);
        if (words_of(page->about) < FEWEST || words_of(page->when) < 1)
            fail_msg("%s is explained in %d words", o->key, words_of(page->about));
        assert_int_equal(page->about[strlen(page->about) - 1], '.');
        assert_int_equal(page->when[strlen(page->when) - 1], '.');
        assert_example(o->key, page);
        char section[64];
        size_t n = option_section(o);
        snprintf(section, sizeof section, "%.*s", (int)n, o->key);
        if (n > 0 && !manual_page(section)) fail_msg("manual.c has no page for the section %s", section);
        if (n > 0) assert_example(section, manual_page(section));
    }
}

static void what_cannot_be_explained_is_told_with_what_may_be_meant(void **state) {
    (void)state;
    static const struct {
        const char *name, *says;
    } rows[] = {
        {"warm_up", "there is no setting warm_up; the nearest is optimizer.warmup"},
        {"mixtures", "there is no setting mixtures; the nearest is mixture"},
        {"lr", "there is no setting lr; here it is optimizer.learning_rate"},
        {"elephant", "there is no setting elephant; `mop help` lists all keys"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        Error e = {0};
        assert_false(config_explain(rows[i].name, stdout, &e));
        assert_says(&e, rows[i].says);
    }
}

static void long_sentences_are_broken_into_lines_behind_their_label(void **state) {
    (void)state;
    char *text;
    size_t bytes;
    FILE *f = open_memstream(&text, &bytes);
    print_wrapped("  when", 8,
                  "123456789 123456789 123456789 123456789 123456789 123456789 123456789 123456789 12345678 9 end", f);
    fclose(f);
    assert_string_equal(
        text, "  when  123456789 123456789 123456789 123456789 123456789 123456789 123456789 123456789 12345678\n"
              "        9 end\n");
    free(text);
}

static void help_lists_every_option(void **state) {
    (void)state;
    char *text;
    size_t bytes;
    FILE *f = open_memstream(&text, &bytes);
    config_help(f);
    fclose(f);
    for (int i = 0; i < option_count; i++) {
        const char *line = strstr(text, options[i].key);
        assert_non_null(line);
        assert_non_null(strstr(line, options[i].help));
    }
    free(text);
}

/* ---- Resuming --------------------------------------------------------------------------------- */

static void placement_and_length_may_change_at_a_resume(void **state) {
    (void)state;
    Config before = config_of("train.seed: 4\nmodel.config: m");
    Config now = config_of(
        "train.seed: 4\nmodel.config: m\ntrain.steps: 9\nranks: 4\nmixture.dense: 2\ncompute.threads: 3\n"
        "train.micro_batches: 2\noptimizer.learning_rate: 1\noptimizer.update: blocking\nmixture.loss_chunk: 7\n"
        "checkpoint.every: 1\ndevice: cpu:late\ncomm.timeout: 1\nloss.balance: 0\ncompute.activations: recompute\n");
    Error e = {0};
    assert_true(config_resumable(&now, &before, &e));
    assert_true(config_hash(&now) == config_hash(&before));
    config_close(&now);
    config_close(&before);
}

static void numerics_may_not_change_at_a_resume(void **state) {
    (void)state;
    static const char *const changes[] = {"train.seed: 4", "train.sequences: 3", "train.sequence_length: 5",
                                          "compute.type: fp64"};
    Config before = config_of("");
    for (size_t i = 0; i < COUNT(changes); i++) {
        Config now = config_of(changes[i]);
        Error e = {0};
        assert_false(config_resumable(&now, &before, &e));
        char key[64];
        snprintf(key, sizeof key, "%.*s was ", (int)strcspn(changes[i], ":"), changes[i]);
        assert_says(&e, key);
        assert_true(config_hash(&now) != config_hash(&before));
        config_close(&now);
    }
    Config now = config_of("train.seed: 4\ntrain.sequences: 3\n");
    Error e = {0};
    assert_false(config_resumable(&now, &before, &e));
    assert_says(&e, "train.seed was 1 when the run began and is 4 now; set it back, or begin a new run with --run");
    assert_says(&e, "train.sequences was 8 when the run began and is 3 now");
    config_close(&now);
    config_close(&before);
}

static void paths_to_what_is_compared_by_contents_may_differ(void **state) {
    (void)state;
    static const char *const paths[] = {"data.path: [a, b]", "data.tokenizer: t", "model.config: n", "model.path: p"};
    Config before = config_of("model.config: m");
    for (size_t i = 0; i < COUNT(paths); i++) {
        Config now = config_of(paths[i]);
        Error e = {0};
        assert_true(config_resumable(&now, &before, &e));
        assert_true(config_hash(&now) == config_hash(&before) && config_shared(&now) == config_shared(&before));
        config_close(&now);
    }
    Config now = config_of("model.config: m\nsim.record: r");
    assert_true(config_shared(&now) != config_shared(&before));
    config_close(&now);
    config_close(&before);
}

static void take_change(void *context, const char *key, const char *before, const char *now) {
    char *text = context;
    sprintf(text + strlen(text), "%s %s -> %s\n", key, before, now);
}

static void what_changed_is_told_as_it_is_written_but_for_the_machines_own(void **state) {
    (void)state;
    char text[1024] = "";
    Config before = config_of("optimizer.learning_rate: 3e-3\ncompute.threads: 2\ndata.path: /a\nsim.record: r");
    Config now = config_of("optimizer.learning_rate: 0.001\ncompute.threads: 4\ndata.path: [/a, \"/b\\n\"]\n"
                           "optimizer.schedule: linear\n");
    char here[4096], record[4200]; /* another spelling of the same path is no change */
    assert_non_null(getcwd(here, sizeof here));
    snprintf(record, sizeof record, "%s/r", here);
    now.sim_record = record;
    config_changes(&now, &before, take_change, text);
    assert_string_equal(text, "data.path [\"/a\"] -> [\"/a\", \"/b\\n\"]\n"
                              "optimizer.learning_rate 0.003 -> 0.001\n"
                              "optimizer.schedule cosine -> linear\n");
    config_changes(&now, &now, take_change, text);
    config_close(&now);
    config_close(&before);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_row_has_a_key_a_field_and_a_help_of_its_own),
        cmocka_unit_test(rows_cover_every_field_of_a_config),
        cmocka_unit_test(defaults_are_what_the_header_promises),
        cmocka_unit_test(sections_and_dotted_keys_say_the_same),
        cmocka_unit_test(scalars_are_typed_by_the_table),
        cmocka_unit_test(a_single_string_is_a_list_of_one),
        cmocka_unit_test(an_empty_text_is_all_defaults),
        cmocka_unit_test(windows_files_with_a_byte_order_mark_are_read),
        cmocka_unit_test(sets_come_after_the_file_and_the_last_one_wins),
        cmocka_unit_test(a_set_in_brackets_is_a_list),
        cmocka_unit_test(malformed_configurations_are_refused_with_line_and_reason),
        cmocka_unit_test(sets_are_checked_like_the_file),
        cmocka_unit_test(keys_of_other_trainers_are_answered_with_those_of_mop),
        cmocka_unit_test(names_that_are_far_from_all_keys_get_no_suggestion),
        cmocka_unit_test(all_mistakes_are_told_at_once),
        cmocka_unit_test(mistakes_before_and_after_broken_yaml_are_told_too),
        cmocka_unit_test(more_mistakes_than_fit_are_counted),
        cmocka_unit_test(hostile_names_are_shown_short_and_clean),
        cmocka_unit_test(a_text_beyond_a_mebibyte_is_refused),
        cmocka_unit_test(a_missing_file_is_a_mistake_of_usage),
        cmocka_unit_test(what_is_written_reads_back_the_same),
        cmocka_unit_test(every_key_is_written_with_its_help),
        cmocka_unit_test(a_file_is_read_from_disk),
        cmocka_unit_test(paths_in_a_file_start_at_that_file_and_those_of_sets_do_not),
        cmocka_unit_test(what_is_written_means_the_same_from_any_directory),
        cmocka_unit_test(a_tilde_is_refused_where_a_path_begins_with_it),
        cmocka_unit_test(a_current_directory_that_cannot_be_written_down_is_refused),
        cmocka_unit_test(an_option_is_explained_in_full),
        cmocka_unit_test(a_section_is_explained_with_all_its_keys),
        cmocka_unit_test(every_option_and_section_has_a_page_with_an_example_that_is_accepted),
        cmocka_unit_test(what_cannot_be_explained_is_told_with_what_may_be_meant),
        cmocka_unit_test(long_sentences_are_broken_into_lines_behind_their_label),
        cmocka_unit_test(help_lists_every_option),
        cmocka_unit_test(placement_and_length_may_change_at_a_resume),
        cmocka_unit_test(numerics_may_not_change_at_a_resume),
        cmocka_unit_test(paths_to_what_is_compared_by_contents_may_differ),
        cmocka_unit_test(what_changed_is_told_as_it_is_written_but_for_the_machines_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
