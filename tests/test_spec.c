/* config.json: both spellings say the same model, what mop cannot compute is refused by name, and shapes, names
 * and counts are those of the tensors that transformers wrote. */
#include "model/spec_compare.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* cmocka.h wants these before it */
#include <cmocka.h>

static const char *const fixtures[] = {"olmoe", "qwen3_moe", "qwen3_moe_window", "mixtral"};

static json_t *config_of(const char *fixture, const char *file) {
    char path[128];
    Error e = {0};
    snprintf(path, sizeof path, "tests/fixtures/%s/%s", fixture, file);
    json_t *config = json_read_file(path, 1 << 20, &e);
    if (!config) fail_msg("%s", e.text);
    return config;
}

static Spec spec_of(const json_t *config) {
    Spec s;
    Error e = {0};
    if (!spec_from_json(&s, config, "config.json", &e)) fail_msg("%s", e.text);
    return s;
}

static Spec fixture_spec(const char *fixture) {
    json_t *config = config_of(fixture, "config.json");
    Spec s = spec_of(config);
    json_decref(config);
    return s;
}

/* Everything but the source. */
static void assert_same_model(Spec a, Spec b) {
    json_t *none = NULL;
    a.source = b.source = none;
    assert_ptr_equal(a.family, b.family);
    assert_memory_equal(a.dense, b.dense, sizeof a.dense);
    int64_t whole[][2] = {{a.layers, b.layers},
                          {a.hidden, b.hidden},
                          {a.heads, b.heads},
                          {a.kv_heads, b.kv_heads},
                          {a.head_dim, b.head_dim},
                          {a.vocabulary, b.vocabulary},
                          {a.experts, b.experts},
                          {a.top_k, b.top_k},
                          {a.expert_hidden, b.expert_hidden},
                          {a.dense_hidden, b.dense_hidden},
                          {a.window, b.window},
                          {a.pad, b.pad},
                          {a.moe_layers, b.moe_layers},
                          {a.qk_norm, b.qk_norm},
                          {a.normalise_top_k, b.normalise_top_k},
                          {a.tied, b.tied}};
    for (size_t i = 0; i < COUNT(whole); i++) assert_int_equal(whole[i][0], whole[i][1]);
    double real[][2] = {{a.norm_epsilon, b.norm_epsilon},
                        {a.rope_theta, b.rope_theta},
                        {a.balance, b.balance},
                        {a.initializer_range, b.initializer_range},
                        {a.router_z, b.router_z}};
    for (size_t i = 0; i < COUNT(real); i++) assert_true(real[i][0] == real[i][1]);
}

static void both_spellings_of_a_config_are_the_same_model(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(fixtures); i++) {
        json_t *v5 = config_of(fixtures[i], "config.json"), *v4 = config_of(fixtures[i], "config-v4.json");
        Spec a = spec_of(v5), b = spec_of(v4);
        assert_same_model(a, b);
        json_t *x = spec_config(&a, FP32), *y = spec_config(&b, FP32);
        json_object_del(x, "transformers_version");
        json_object_del(y, "transformers_version");
        assert_true(json_equal(x, y));
        json_decref(x);
        json_decref(y);
        spec_close(&a);
        spec_close(&b);
        json_decref(v4);
        json_decref(v5);
    }
}

static void fixtures_say_what_their_script_made(void **state) {
    (void)state;
    Spec olmoe = fixture_spec("olmoe"), qwen = fixture_spec("qwen3_moe"), window = fixture_spec("qwen3_moe_window"),
         mixtral = fixture_spec("mixtral");
    assert_int_equal(olmoe.qk_norm, QK_NORM_WHOLE);
    assert_int_equal(olmoe.head_dim, 6);
    assert_int_equal(olmoe.experts, 7);
    assert_int_equal(olmoe.top_k, 3);
    assert_int_equal(olmoe.expert_hidden, 16);
    assert_int_equal(olmoe.moe_layers, 2);
    assert_false(olmoe.normalise_top_k);
    assert_true(olmoe.norm_epsilon == 2e-3 && olmoe.rope_theta == 1e4 && olmoe.balance == 0.05);
    assert_int_equal(qwen.qk_norm, QK_NORM_HEAD);
    assert_int_equal(qwen.head_dim, 10);
    assert_true(qwen.tied && qwen.normalise_top_k);
    assert_int_equal(qwen.window, 0);
    assert_true(!qwen.dense[0] && qwen.dense[1] && !qwen.dense[2]);
    assert_int_equal(qwen.dense_hidden, 40);
    assert_int_equal(window.window, 4);
    assert_true(window.dense[0] && !window.dense[1] && window.dense[2]);
    assert_int_equal(mixtral.window, 5);
    assert_int_equal(mixtral.qk_norm, QK_NORM_NONE);
    assert_true(mixtral.normalise_top_k);
    assert_int_equal(mixtral.expert_hidden, 15);
    spec_close(&olmoe);
    spec_close(&qwen);
    spec_close(&window);
    spec_close(&mixtral);
}

static void a_silent_config_means_the_defaults_of_its_class(void **state) {
    (void)state;
    static const struct {
        const char *fixture;
        double theta, epsilon, balance;
        bool normalise;
    } rows[] = {
        {"olmoe", 1e4, 1e-5, 0.01, false}, {"qwen3_moe", 1e4, 1e-6, 0.001, false}, {"mixtral", 1e6, 1e-5, 0.001, true}};
    static const char *const silent[] = {"rope_theta",     "rope_scaling",      "rms_norm_eps", "router_aux_loss_coef",
                                         "norm_topk_prob", "initializer_range", "hidden_act",   "tie_word_embeddings",
                                         "head_dim",       "sliding_window"};
    for (size_t i = 0; i < COUNT(rows); i++) {
        json_t *config = config_of(rows[i].fixture, "config-v4.json");
        for (size_t k = 0; k < COUNT(silent); k++) json_object_del(config, silent[k]);
        json_object_set_new(config, "hidden_size", json_integer(24));
        Spec s = spec_of(config);
        assert_true(s.rope_theta == rows[i].theta && s.norm_epsilon == rows[i].epsilon && s.balance == rows[i].balance);
        assert_int_equal(s.normalise_top_k, rows[i].normalise);
        assert_true(s.initializer_range == 0.02 && s.router_z == 0);
        assert_int_equal(s.head_dim, s.hidden / s.heads);
        assert_int_equal(s.window, 0);
        assert_false(s.tied);
        spec_close(&s);
        json_decref(config);
    }
}

/* ---- Refusals --------------------------------------------------------------------------------- */

/* What is unknown of a family that mop does not know is no news: its name comes first. */
static void an_unknown_family_is_named_before_any_detail(void **state) {
    (void)state;
    static const char *const configs[] = {
        "{\"model_type\": \"deepseek_v3\", \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 40}, \"hidden_size\": 8}",
        "{\"model_type\": \"llama\", \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8.0}}",
        "{\"model_type\": \"glm4_moe\", \"partial_rotary_factor\": 0.5, \"attention_bias\": true}",
        "{\"model_type\": \"gpt_oss\", \"rope_scaling\": {\"rope_type\": \"yarn\"}, \"num_local_experts\": 32}",
        "{\"model_type\": \"wrapper\", \"text_config\": {\"model_type\": \"qwen3_vl_moe_text\", \"rope_scaling\": 5}}"};
    static const char *const names[] = {"deepseek_v3", "llama", "glm4_moe", "gpt_oss", "qwen3_vl_moe_text"};
    for (size_t i = 0; i < COUNT(configs); i++) {
        char expected[128];
        Spec s;
        Error e = {0};
        json_t *config = json_loads(configs[i], 0, NULL);
        assert_non_null(config);
        assert_false(spec_from_json(&s, config, "config.json", &e));
        snprintf(expected, sizeof expected, "\"model_type\" is \"%s\", mop knows mixtral, olmoe, qwen3_moe", names[i]);
        assert_int_equal(e.code, EXIT_DATA);
        if (!strstr(e.text, expected)) fail_msg("%s", e.text);
        json_decref(config);
    }
}

/* `set` is merged into the fixture's v5 config; a key with the value "DELETE" is removed. */
typedef struct {
    const char *fixture, *set, *message;
} Refusal;

static const Refusal refusals[] = {
    {"olmoe", "{\"model_type\": \"llama\"}", "mop knows mixtral, olmoe, qwen3_moe"},
    {"olmoe", "{\"model_type\": \"DELETE\"}", "\"model_type\" is missing"},
    {"olmoe", "{\"model_type\": 5}", "a string is expected"},
    {"olmoe", "{\"clip_qkv\": 8.0}", "\"clip_qkv\" is 8.0"},
    {"olmoe", "{\"attention_bias\": true}", "\"attention_bias\" is true"},
    {"qwen3_moe", "{\"attention_bias\": true}", "\"attention_bias\" is true"},
    {"olmoe", "{\"attention_dropout\": 0.1}", "\"attention_dropout\" is 0.1"},
    {"olmoe", "{\"quantization_config\": {\"bits\": 4}}", "\"quantization_config\" is"},
    {"olmoe", "{\"head_dim\": 8}", "share out hidden_size"},
    {"olmoe", "{\"hidden_act\": \"gelu\"}", "\"hidden_act\" is \"gelu\""},
    {"olmoe", "{\"rope_parameters\": {\"rope_type\": \"yarn\", \"rope_theta\": 10000.0, \"factor\": 4}}",
     "type \"yarn\""},
    {"olmoe", "{\"rope_parameters\": null, \"rope_scaling\": {\"type\": \"linear\", \"factor\": 2}}",
     "type \"linear\""},
    {"olmoe", "{\"rope_parameters\": null, \"rope_theta\": 6, \"rope_scaling\": {\"rope_theta\": 5}}", "differ"},
    {"olmoe", "{\"rope_parameters\": null, \"rope_scaling\": 4}", "must be an object"},
    {"olmoe", "{\"rope_parameters\": {\"full_attention\": {\"rope_theta\": 1}}}", "kind of layer"},
    {"olmoe", "{\"rope_parameters\": {\"rope_theta\": 1e4, \"partial_rotary_factor\": 0.5}}", "whole heads"},
    {"olmoe", "{\"partial_rotary_factor\": 0.25}", "whole heads"},
    {"olmoe", "{\"rope_theta\": 20000}", "\"rope_theta\" and that in \"rope_parameters\" differ"},
    {"olmoe", "{\"rope_parameters\": null, \"rope_theta\": 0}", "\"rope_theta\" is 0, it must be positive"},
    {"olmoe", "{\"rms_norm_eps\": 0}", "\"rms_norm_eps\" is 0"},
    {"olmoe", "{\"rms_norm_eps\": \"small\"}", "a number is expected"},
    {"olmoe", "{\"initializer_range\": -0.1}", "it must be positive"},
    {"olmoe", "{\"router_aux_loss_coef\": -1}", "0 or positive"},
    {"olmoe", "{\"tie_word_embeddings\": 1}", "true or false is expected"},
    {"olmoe", "{\"hidden_size\": \"DELETE\"}", "\"hidden_size\" is missing"},
    {"olmoe", "{\"hidden_size\": 0}", "an integer from 1 to"},
    {"olmoe", "{\"hidden_size\": 24.5}", "an integer from 1 to"},
    {"olmoe", "{\"hidden_size\": 26}", "no multiple of 4 heads"},
    {"olmoe", "{\"hidden_size\": 1e300}", "an integer from 1 to"},
    {"olmoe", "{\"vocab_size\": null}", "\"vocab_size\" is missing"},
    {"olmoe", "{\"vocab_size\": 4611686018427387904}", "an integer from 1 to"},
    {"olmoe", "{\"num_hidden_layers\": 513}", "an integer from 1 to 512"},
    {"olmoe", "{\"num_hidden_layers\": -1}", "an integer from 1 to 512"},
    {"olmoe", "{\"num_attention_heads\": 0}", "an integer from 1 to"},
    {"olmoe", "{\"num_key_value_heads\": 3}", "cannot share 3 key and value heads"},
    {"qwen3_moe", "{\"num_key_value_heads\": \"DELETE\"}", "\"num_key_value_heads\" is missing"},
    {"olmoe", "{\"rope_parameters\": {\"rope_type\": \"default\"}, \"rope_scaling\": {\"type\": \"default\"}}",
     "both given"},
    {"olmoe", "{\"rope_parameters\": null, \"rope_theta\": null}", "\"rope_theta\" is null"},
    {"olmoe", "{\"is_causal\": false}", "\"is_causal\" is false"},
    {"olmoe", "{\"per_layer_config\": {\"0\": {\"num_experts_per_tok\": 1}}}", "\"per_layer_config\" is"},
    {"olmoe", "{\"clip_qkv\": 0.0}", "\"clip_qkv\" is 0.0"},
    {"olmoe", "{\"pad_token_id\": 67}", "an integer from -67 to 66"},
    {"olmoe", "{\"vocab_size\": 1, \"pad_token_id\": \"DELETE\"}", "its default is 1"},
    {"olmoe", "{\"text_config\": {\"hidden_size\": 8}}", "stands inside a \"olmoe\""},
    {"qwen3_moe", "{\"head_dim\": null}", "\"head_dim\" is null"},
    {"olmoe", "{\"num_attention_heads\": 8}", "the size must be even"},
    {"olmoe", "{\"num_experts\": 4097}", "an integer from 1 to 4096"},
    {"olmoe", "{\"num_experts\": \"DELETE\"}", "\"num_experts\" is missing"},
    {"olmoe", "{\"num_local_experts\": 8}", "differ"},
    {"olmoe", "{\"num_experts_per_tok\": 8}", "8 of 7 experts"},
    {"olmoe", "{\"intermediate_size\": \"wide\"}", "an integer from 1 to"},
    {"qwen3_moe", "{\"head_dim\": 9}", "the size must be even"},
    {"qwen3_moe", "{\"mlp_only_layers\": 1}", "must be a list of layers"},
    {"qwen3_moe", "{\"mlp_only_layers\": [\"1\"]}", "must hold layers"},
    {"qwen3_moe", "{\"mlp_only_layers\": [-1]}", "must hold layers"},
    {"qwen3_moe", "{\"mlp_only_layers\": [0, 1, 2]}", "no layer has experts"},
    {"qwen3_moe", "{\"decoder_sparse_step\": 0}", "an integer from 1 to"},
    {"qwen3_moe", "{\"intermediate_size\": \"DELETE\"}", "\"intermediate_size\" is missing"},
    {"qwen3_moe", "{\"moe_intermediate_size\": \"DELETE\"}", "\"moe_intermediate_size\" is missing"},
    {"qwen3_moe", "{\"use_sliding_window\": true, \"sliding_window\": 0}", "an integer from 1 to"},
    {"mixtral", "{\"router_jitter_noise\": 0.1}", "\"router_jitter_noise\" is 0.1"},
    {"mixtral", "{\"sliding_window\": -5}", "an integer from 1 to"},
    {"mixtral",
     "{\"hidden_size\": 1048576, \"intermediate_size\": 1048576, \"num_local_experts\": 4096, \"num_hidden_layers\": "
     "512}",
     "more parameters than can be counted"},
};

static void merge(json_t *config, const char *set) {
    json_error_t problem;
    json_t *changes = json_loads(set, 0, &problem), *value;
    const char *key;
    assert_non_null(changes);
    json_object_foreach(changes, key, value) {
        const char *text = json_string_value(value);
        if (text && strcmp(text, "DELETE") == 0)
            json_object_del(config, key);
        else
            json_object_set(config, key, value);
    }
    json_decref(changes);
}

static void what_mop_cannot_compute_is_refused_by_name(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(refusals); i++) {
        json_t *config = config_of(refusals[i].fixture, "config.json");
        merge(config, refusals[i].set);
        Spec s;
        Error e = {0};
        if (spec_from_json(&s, config, "config.json", &e)) fail_msg("%s was accepted", refusals[i].set);
        assert_null(s.source);
        assert_int_equal(e.code, EXIT_DATA);
        if (!strstr(e.text, refusals[i].message) || !strstr(e.text, "config.json"))
            fail_msg("%s: \"%s\" does not say \"%s\"", refusals[i].set, e.text, refusals[i].message);
        json_decref(config);
    }
    Spec s;
    Error e = {0}, missing = {0};
    json_t *list = json_array();
    assert_false(spec_from_json(&s, list, "config.json", &e));
    assert_int_equal(e.code, EXIT_DATA);
    assert_false(spec_read(&s, "tests/fixtures/nowhere/config.json", &missing));
    assert_int_equal(missing.code, EXIT_DATA);
    json_decref(list);
}

static void settings_without_effect_here_are_accepted(void **state) {
    (void)state;
    static const Refusal rows[] = {
        {"olmoe", "{\"sliding_window\": 4}", ""},
        {"qwen3_moe", "{\"use_sliding_window\": false, \"sliding_window\": 4096}", ""},
        {"mixtral", "{\"sliding_window\": null}", ""},
        {"mixtral", "{\"num_local_experts\": 6.0, \"num_experts\": 6}", ""},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        json_t *config = config_of(rows[i].fixture, "config.json");
        merge(config, rows[i].set);
        Spec s = spec_of(config);
        assert_int_equal(s.window, 0 + (i == 3 ? 5 : 0));
        spec_close(&s);
        json_decref(config);
    }
}

static void a_text_config_inside_a_wrapper_is_read(void **state) {
    (void)state;
    json_t *config = config_of("qwen3_moe", "config.json");
    json_t *wrapped = json_pack("{s:s, s:O}", "model_type", "wrapper", "text_config", config);
    Spec a = spec_of(config), b = spec_of(wrapped);
    assert_same_model(a, b);
    spec_close(&a);
    spec_close(&b);
    json_decref(wrapped);
    json_decref(config);
}

/* ---- What is written -------------------------------------------------------------------------- */

static void a_written_config_is_v4_reads_back_and_keeps_unknown_keys(void **state) {
    (void)state;
    static const char *const dtype[TYPE_COUNT] = {[FP32] = "float32", [BF16] = "bfloat16", [FP64] = "float64"};
    for (size_t i = 0; i < COUNT(fixtures); i++) {
        json_t *config = config_of(fixtures[i], "config.json");
        json_object_set_new(config, "of_nobody", json_pack("{s:i}", "deep", 7));
        Spec s = spec_of(config);
        for (int type = FP32; type <= FP64; type++) {
            json_t *out = spec_config(&s, type);
            assert_string_equal(json_string_value(json_object_get(out, "torch_dtype")), dtype[type]);
            assert_string_equal(json_string_value(json_object_get(out, "dtype")), dtype[type]);
            assert_int_equal(json_integer_value(json_object_get(json_object_get(out, "of_nobody"), "deep")), 7);
            bool mixtral = strcmp(s.family->model_type, "mixtral") == 0;
            assert_int_equal(json_object_get(out, "num_local_experts") != NULL, mixtral);
            assert_int_equal(json_object_get(out, "num_experts") != NULL, !mixtral);
            assert_null(json_object_get(out, "rope_parameters"));
            assert_true(json_is_null(json_object_get(out, "rope_scaling")));
            assert_true(json_number_value(json_object_get(out, "rope_theta")) == s.rope_theta);
            Spec back = spec_of(out);
            assert_same_model(s, back);
            spec_close(&back);
            json_decref(out);
        }
        spec_close(&s);
        json_decref(config);
    }
}

/* ---- Shapes, names, counts -------------------------------------------------------------------- */

/* The tensors of a fixture as their file's header states them, read here by hand. */
static json_t *header_of(const char *fixture) {
    char path[128];
    snprintf(path, sizeof path, "tests/fixtures/%s/model.safetensors", fixture);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    uint64_t bytes;
    assert_int_equal(fread(&bytes, 1, 8, f), 8);
    assert_true(bytes < 1 << 20);
    char *text = malloc(bytes);
    assert_int_equal(fread(text, 1, bytes, f), bytes);
    fclose(f);
    json_t *header = json_loadb(text, bytes, 0, NULL);
    assert_non_null(header);
    free(text);
    json_object_del(header, "__metadata__");
    return header;
}

static int64_t check_tensor(json_t *header, const Spec *s, ParameterName p, int64_t layer, int64_t expert,
                            Shape shape) {
    char name[200];
    spec_name(s, p, layer, expert, name, sizeof name);
    const json_t *stated = json_object_get(json_object_get(header, name), "shape");
    if (!stated) fail_msg("transformers wrote no %s", name);
    int skip = expert >= 0;
    assert_int_equal(json_array_size(stated), shape.dims - skip);
    int64_t count = 1;
    for (int i = skip; i < shape.dims; i++) {
        assert_int_equal(json_integer_value(json_array_get(stated, (size_t)(i - skip))), shape.dim[i]);
        count *= shape.dim[i];
    }
    json_object_del(header, name);
    return count;
}

static void shapes_names_and_counts_are_those_of_the_tensors_transformers_wrote(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(fixtures); i++) {
        Spec s = fixture_spec(fixtures[i]);
        json_t *header = header_of(fixtures[i]);
        int64_t total = 0, idle = 0, embed = 0;
        for (int64_t layer = 0; layer < s.layers; layer++) {
            for (int p = 0; p < PARAMETER_COUNT; p++) {
                Shape shape;
                bool once = p == EMBED || p == FINAL_NORM || p == HEAD;
                if ((once && layer > 0) || !spec_shape(&s, p, layer, &shape)) continue;
                assert_int_equal(shape.norm, strstr(s.family->name[p], "norm") != NULL);
                for (int64_t expert = shape.expert ? 0 : -1; expert < (shape.expert ? shape.dim[0] : 0); expert++) {
                    int64_t n = check_tensor(header, &s, p, layer, expert, shape);
                    total += n;
                    if (expert >= s.top_k) idle += n;
                    if (p == EMBED && !s.tied) embed = n;
                }
            }
        }
        assert_int_equal(json_object_size(header), 0);
        assert_int_equal(spec_parameters(&s), total);
        assert_int_equal(spec_active_parameters(&s), total - idle - embed);
        json_decref(header);
        spec_close(&s);
    }
}

/* ---- Compared ---------------------------------------------------------------------------------- */

static void every_byte_of_a_spec_but_its_source_has_a_row(void **state) {
    (void)state;
    char covered[sizeof(Spec)] = {0};
    for (int i = 0; i < SPEC_FIELDS; i++) {
        const SpecField *f = &spec_fields[i];
        assert_true(f->name && *f->name);
        for (size_t at = f->offset; at < f->offset + f->bytes; at++) assert_int_equal(covered[at]++, 0);
    }
    memset(covered + offsetof(Spec, source), 1, sizeof(json_t *));
    memset(covered + offsetof(Spec, moe_layers), 1, sizeof(int64_t)); /* follows from `dense` */
    int gap = 0; /* padding before an enum is at most three bytes */
    for (size_t i = 0; i < sizeof covered; i++) {
        gap = covered[i] ? 0 : gap + 1;
        assert_true(gap <= 3);
    }
}

static void every_field_of_a_spec_changes_its_hash_and_is_named(void **state) {
    (void)state;
    Spec a = fixture_spec("qwen3_moe"), other = fixture_spec("mixtral");
    SpecChange changes[SPEC_FIELDS];
    assert_int_equal(spec_changes(&a, &a, changes), 0);
    for (int i = 0; i < SPEC_FIELDS; i++) {
        const SpecField *f = &spec_fields[i];
        Spec b = a;
        char *at = (char *)&b + f->offset;
        if (f->kind == KIND_FAMILY)
            b.family = other.family;
        else if (f->kind == KIND_NUMBER)
            *(double *)(void *)at += 0.25;
        else if (f->kind == KIND_QK_NORM)
            b.qk_norm = QK_NORM_WHOLE;
        else /* the lowest byte of an integer, a switch, layer 0 */
            *at ^= 1;
        assert_true(spec_hash(&b) != spec_hash(&a));
        assert_int_equal(spec_changes(&a, &b, changes), 1);
        assert_ptr_equal(changes[0].field, f);
        if (strcmp(changes[0].before.text, changes[0].now.text) == 0) fail_msg("%s changed unseen", f->name);
    }
    spec_close(&other);
    spec_close(&a);
}

static void another_spelling_or_a_written_config_is_no_change(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(fixtures); i++) {
        json_t *v4 = config_of(fixtures[i], "config-v4.json");
        Spec a = fixture_spec(fixtures[i]), b = spec_of(v4);
        json_t *written = spec_config(&a, BF16);
        json_object_set_new(written, "a_key_of_somebody", json_true());
        Spec c = spec_of(written);
        SpecChange changes[SPEC_FIELDS];
        assert_int_equal(spec_changes(&a, &b, changes) + spec_changes(&a, &c, changes), 0);
        assert_true(spec_hash(&a) == spec_hash(&b) && spec_hash(&a) == spec_hash(&c));
        spec_close(&a);
        spec_close(&b);
        spec_close(&c);
        json_decref(written);
        json_decref(v4);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_spellings_of_a_config_are_the_same_model),
        cmocka_unit_test(fixtures_say_what_their_script_made),
        cmocka_unit_test(a_silent_config_means_the_defaults_of_its_class),
        cmocka_unit_test(an_unknown_family_is_named_before_any_detail),
        cmocka_unit_test(what_mop_cannot_compute_is_refused_by_name),
        cmocka_unit_test(settings_without_effect_here_are_accepted),
        cmocka_unit_test(a_text_config_inside_a_wrapper_is_read),
        cmocka_unit_test(a_written_config_is_v4_reads_back_and_keeps_unknown_keys),
        cmocka_unit_test(every_byte_of_a_spec_but_its_source_has_a_row),
        cmocka_unit_test(every_field_of_a_spec_changes_its_hash_and_is_named),
        cmocka_unit_test(another_spelling_or_a_written_config_is_no_change),
        cmocka_unit_test(shapes_names_and_counts_are_those_of_the_tensors_transformers_wrote),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
