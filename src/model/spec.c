/* What a config.json says, as numbers; what shapes and names follow from them; and the config.json that says it
 * again.
 *
 *     config.json (v4 or v5 spelling) --text_model, rope--> source --family->read--> Spec --> shapes, names, counts
 *
 * transformers fills in what a config leaves out by defaults of each class, and computes some settings that mop
 * does not. The first are the families' numbers; the second are refused, never ignored: a model that is almost
 * the same is the worst result. tests/fixtures/config_table.json holds both to transformers, key by key, and
 * docs/formats.md tells users. One setting is knowingly without effect: `output_router_logits` (the balance loss is
 * in the training loss whenever its coefficient is not 0). */
#define _POSIX_C_SOURCE 200809L
#include "model/families/families.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const Family *const families[] = {&family_mixtral, &family_olmoe, &family_qwen3_moe};

static const size_t config_limit = (size_t)16 << 20;

static bool is_given(const json_t *config, const char *key) {
    const json_t *value = json_object_get(config, key);
    return value && !json_is_null(value);
}

/* ---- Finding the family ------------------------------------------------------------------------ */

static const Family *family_of_type(const char *type) {
    for (size_t i = 0; i < COUNT(families); i++)
        if (type && strcmp(type, families[i]->model_type) == 0) return families[i];
    return NULL;
}

static const Family *find_family(const json_t *source, const char *where, Error *e) {
    const char *type;
    if (!json_text(source, "model_type", NULL, &type, where, e)) return NULL;
    const Family *family = family_of_type(type);
    if (family) return family;
    char known[256] = "";
    for (size_t i = 0; i < COUNT(families); i++) {
        size_t n = strlen(known);
        snprintf(known + n, sizeof known - n, "%s%s", i > 0 ? ", " : "", families[i]->model_type);
    }
    if (!type)
        fail(e, EXIT_DATA, "\"model_type\" is missing; %s; it is one of %s", where, known);
    else
        fail(e, EXIT_DATA, "\"model_type\" is \"%s\", mop knows %s; %s; use a model of these", text_shown(type).text,
             known, where);
    return NULL;
}

/* A copy of the config, or of the text model's inside that of a model with eyes or ears; the caller decrefs. */
static json_t *text_model(const json_t *config, const char *where, Error *e) {
    const json_t *text = json_object_get(config, "text_config");
    json_t *type = json_object_get(config, "model_type");
    bool inside = json_is_object(text);
    if (inside && family_of_type(json_string_value(type))) {
        fail(e, EXIT_DATA, "\"text_config\" stands inside a \"%s\", which is a text model itself; %s; remove one",
             json_string_value(type), where);
        return NULL;
    }
    json_t *source = json_deep_copy(inside ? text : config);
    if (!source) {
        fail(e, EXIT_MEMORY, "out of memory while reading a config; %s; free some memory", where);
        return NULL;
    }
    if (type && !json_object_get(source, "model_type")) json_object_set(source, "model_type", type);
    return source;
}

/* ---- What families read with ------------------------------------------------------------------ */

bool family_size(const json_t *config, const char *key, int64_t limit, int64_t *out, const char *where, Error *e) {
    if (!json_int(config, key, 0, 1, limit, out, where, e)) return false;
    return *out > 0 || fail(e, EXIT_DATA, "\"%s\" is missing; %s; add it", key, where);
}

static bool refuse_setting(const json_t *config, const char *key, const char *where, Error *e) {
    char *text = json_dumps(json_object_get(config, key), JSON_ENCODE_ANY | JSON_COMPACT);
    fail(e, EXIT_DATA, "\"%s\" is %s, which mop does not compute; %s; use a model without it", key,
         text ? text_shown(text).text : "set", where);
    free(text);
    return false;
}

bool family_without(const json_t *config, const char *key, const char *where, Error *e) {
    const json_t *value = json_object_get(config, key);
    if (!value || json_is_null(value) || json_is_false(value)) return true;
    if (json_is_number(value) && json_number_value(value) == 0) return true;
    if (json_is_object(value) && json_object_size(value) == 0) return true;
    return refuse_setting(config, key, where, e);
}

bool family_absent(const json_t *config, const char *key, const char *where, Error *e) {
    return !is_given(config, key) || refuse_setting(config, key, where, e);
}

bool family_not_null(const json_t *config, const char *const *keys, const char *where, Error *e) {
    for (; *keys; keys++)
        if (json_is_null(json_object_get(config, *keys)))
            return fail(e, EXIT_DATA, "\"%s\" is null; %s; give a value, or remove the key for the default", *keys,
                        where);
    return true;
}

static bool read_heads(Spec *s, const json_t *config, const char *where, FamilyDefaults defaults, Error *e) {
    if (!family_size(config, "num_attention_heads", MAX_HEADS, &s->heads, where, e)) return false;
    if (!defaults.heads_alike && !is_given(config, "num_key_value_heads"))
        return fail(e, EXIT_DATA, "\"num_key_value_heads\" is missing; %s; add it", where);
    if (!json_int(config, "num_key_value_heads", s->heads, 1, MAX_HEADS, &s->kv_heads, where, e) ||
        !json_int(config, "head_dim", 0, 1, MAX_WIDTH, &s->head_dim, where, e))
        return false;
    if (s->heads % s->kv_heads != 0) {
        return fail(e, EXIT_DATA,
                    "%lld attention heads cannot share %lld key and value heads evenly; %s; correct the file",
                    (long long)s->heads, (long long)s->kv_heads, where);
    }
    if (s->head_dim == 0 && s->hidden % s->heads != 0) {
        return fail(e, EXIT_DATA,
                    "hidden_size %lld is no multiple of %lld heads and there is no \"head_dim\"; %s; add it",
                    (long long)s->hidden, (long long)s->heads, where);
    }
    if (s->head_dim == 0) s->head_dim = s->hidden / s->heads;
    if (s->head_dim % 2 == 0) return true;
    return fail(e, EXIT_DATA,
                "heads of %lld elements: rope turns pairs, so the size must be even; %s; correct the file",
                (long long)s->head_dim, where);
}

static bool read_number(const json_t *config, const char *key, double fallback, bool zero, double *out,
                        const char *where, Error *e) {
    if (!json_double(config, key, fallback, out, where, e)) return false;
    if (isfinite(*out) && (*out > 0 || (zero && *out == 0))) return true;
    return fail(e, EXIT_DATA, "\"%s\" is %g, it must be %s; %s; correct the file", key, *out,
                zero ? "0 or positive" : "positive", where);
}

static bool check_activation(const json_t *config, const char *where, Error *e) {
    const char *name;
    if (!json_text(config, "hidden_act", "silu", &name, where, e)) return false;
    if (strcmp(name, "silu") == 0 || strcmp(name, "swish") == 0) return true; /* two names of one function */
    return fail(e, EXIT_DATA, "\"hidden_act\" is \"%s\", only \"silu\" is built; %s; use another model",
                text_shown(name).text, where);
}

static bool check_causal(const json_t *config, const char *where, Error *e) {
    bool causal;
    if (!json_bool(config, "is_causal", true, &causal, where, e)) return false;
    return causal || refuse_setting(config, "is_causal", where, e);
}

/* As torch.nn.Embedding has it, a negative id counts from the vocabulary's end. */
static bool read_pad(Spec *s, const json_t *config, const char *where, int64_t fallback, Error *e) {
    const char *key = "pad_token_id";
    s->pad = -1;
    if (json_is_null(json_object_get(config, key))) return true;
    if (!json_int(config, key, fallback, -s->vocabulary, s->vocabulary - 1, &s->pad, where, e)) return false;
    if (s->pad >= s->vocabulary)
        return fail(e, EXIT_DATA,
                    "\"pad_token_id\" is missing, its default is %lld, and the vocabulary has %lld ids; %s; add it, "
                    "or null for none",
                    (long long)s->pad, (long long)s->vocabulary, where);
    if (s->pad < 0 && json_object_get(config, key)) s->pad += s->vocabulary;
    return true;
}

bool family_read_decoder(Spec *s, const json_t *config, const char *where, FamilyDefaults defaults, Error *e) {
    static const char *const said[] = {
        "hidden_act",          "rms_norm_eps",      "initializer_range", "router_aux_loss_coef",
        "tie_word_embeddings", "attention_dropout", "is_causal",         NULL};
    return family_not_null(config, said, where, e) &&
           family_size(config, "num_hidden_layers", MAX_LAYERS, &s->layers, where, e) &&
           family_size(config, "hidden_size", MAX_WIDTH, &s->hidden, where, e) &&
           family_size(config, "vocab_size", MAX_VOCABULARY, &s->vocabulary, where, e) &&
           read_heads(s, config, where, defaults, e) && check_activation(config, where, e) &&
           check_causal(config, where, e) && family_without(config, "per_layer_config", where, e) &&
           read_pad(s, config, where, defaults.pad, e) && family_without(config, "attention_bias", where, e) &&
           family_without(config, "attention_dropout", where, e) &&
           family_without(config, "quantization_config", where, e) &&
           read_number(config, "rope_theta", defaults.rope_theta, false, &s->rope_theta, where, e) &&
           read_number(config, "rms_norm_eps", defaults.norm_epsilon, false, &s->norm_epsilon, where, e) &&
           read_number(config, "initializer_range", 0.02, false, &s->initializer_range, where, e) &&
           read_number(config, "router_aux_loss_coef", defaults.balance, true, &s->balance, where, e) &&
           read_number(config, "router_z_loss_coef", 0, true, &s->router_z, where, e) &&
           json_bool(config, "tie_word_embeddings", false, &s->tied, where, e);
}

bool family_read_experts(Spec *s, const json_t *config, const char *where, const char *key, const char *width,
                         Error *e) {
    const char *alias = strcmp(key, "num_experts") == 0 ? "num_local_experts" : "num_experts";
    const json_t *said = json_object_get(config, key), *also = json_object_get(config, alias);
    if (said && also && !json_is_null(said) && !json_is_null(also) &&
        json_number_value(said) != json_number_value(also))
        return fail(e, EXIT_DATA, "\"%s\" and \"%s\" differ; %s; correct the file", key, alias, where);
    const char *spelt = !is_given(config, key) && is_given(config, alias) ? alias : key;
    if (!family_size(config, spelt, MAX_EXPERTS, &s->experts, where, e) ||
        !family_size(config, "num_experts_per_tok", MAX_EXPERTS, &s->top_k, where, e) ||
        !family_size(config, width, MAX_WIDTH, &s->expert_hidden, where, e))
        return false;
    json_object_del(s->source, alias);
    json_object_set_new(s->source, key, json_integer(s->experts));
    if (s->top_k <= s->experts) return true;
    return fail(e, EXIT_DATA, "a token cannot go to %lld of %lld experts; %s; correct \"num_experts_per_tok\"",
                (long long)s->top_k, (long long)s->experts, where);
}

/* ---- Reading ---------------------------------------------------------------------------------- */

/* Every byte count of the model stays far below 2^63, whatever is kept of a parameter. */
static bool count_parameters(const Spec *s, int64_t experts, bool embedding, int64_t *total) {
    *total = 0;
    for (int64_t layer = 0; layer < s->layers; layer++) {
        for (int p = 0; p < PARAMETER_COUNT; p++) {
            bool once = p == EMBED || p == FINAL_NORM || p == HEAD;
            Shape shape;
            if ((once && layer > 0) || (p == EMBED && !embedding)) continue;
            if (!spec_shape(s, p, layer, &shape)) continue;
            if (shape.expert) shape.dim[0] = experts;
            int64_t n = 1;
            for (int i = 0; i < shape.dims; i++) {
                if (!mul_size(n, shape.dim[i], &n)) return false;
            }
            if (!add_size(*total, n, total)) return false;
        }
    }
    return *total < INT64_MAX / 64;
}

static bool check_whole(Spec *s, const char *where, Error *e) {
    for (int64_t layer = 0; layer < s->layers; layer++) s->moe_layers += !s->dense[layer];
    if (s->moe_layers == 0)
        return fail(e, EXIT_DATA, "no layer has experts, mop trains mixtures of experts; %s; use another model", where);
    int64_t total;
    if (count_parameters(s, s->experts, true, &total)) return true;
    return fail(e, EXIT_DATA, "the model has more parameters than can be counted; %s; check its sizes", where);
}

bool spec_from_json(Spec *s, const json_t *config, const char *where, Error *e) {
    *s = (Spec){0};
    if (!json_is_object(config))
        return fail(e, EXIT_DATA, "a model's config is a JSON object; %s; check the file", where);
    s->source = text_model(config, where, e);
    if (!s->source) return false;
    s->family = find_family(s->source, where, e); /* first: what follows is about families that are built */
    if (s->family && rope_in_v4_spelling(s->source, where, e) && s->family->read(s, s->source, where, e) &&
        check_whole(s, where, e))
        return true;
    spec_close(s);
    return false;
}

bool spec_read(Spec *s, const char *path, Error *e) {
    *s = (Spec){0};
    json_t *config = json_read_file(path, config_limit, e);
    if (!config) return false;
    bool done = spec_from_json(s, config, path, e);
    json_decref(config);
    return done;
}

void spec_close(Spec *s) {
    json_decref(s->source);
    *s = (Spec){0};
}

/* ---- Writing ---------------------------------------------------------------------------------- */

json_t *spec_config(const Spec *s, Type dtype) {
    static const char *const names[TYPE_COUNT] = {[FP32] = "float32", [BF16] = "bfloat16", [FP64] = "float64"};
    MUST(names[dtype]);
    json_t *config = json_deep_copy(s->source);
    MUST(config);
    json_object_set_new(config, "architectures", json_pack("[s]", s->family->architecture));
    json_object_set_new(config, "rope_theta", json_real(s->rope_theta));
    json_object_set_new(config, "rope_scaling", json_null());
    json_object_set_new(config, "torch_dtype", json_string(names[dtype]));
    json_object_set_new(config, "dtype", json_string(names[dtype]));
    return config;
}

/* ---- Shapes ----------------------------------------------------------------------------------- */

bool spec_shape(const Spec *s, ParameterName p, int64_t layer, Shape *out) {
    int64_t H = s->hidden, V_ = s->vocabulary, E = s->experts, I = s->expert_hidden, D = s->dense_hidden;
    int64_t q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim;
    bool whole = s->qk_norm == QK_NORM_WHOLE;
    const Shape shapes[PARAMETER_COUNT] = {
        [EMBED] = {2, {V_, H}, .component = COMPONENT_VOCABULARY},
        [ATTENTION_NORM] = {1, {H}, .norm = true, .component = COMPONENT_OTHER},
        [Q] = {2, {q, H}, .component = COMPONENT_ATTENTION},
        [K] = {2, {kv, H}, .component = COMPONENT_ATTENTION},
        [V] = {2, {kv, H}, .component = COMPONENT_ATTENTION},
        [O] = {2, {H, q}, .component = COMPONENT_ATTENTION},
        [Q_NORM] = {1, {whole ? q : s->head_dim}, .norm = true, .component = COMPONENT_ATTENTION},
        [K_NORM] = {1, {whole ? kv : s->head_dim}, .norm = true, .component = COMPONENT_ATTENTION},
        [MLP_NORM] = {1, {H}, .norm = true, .component = COMPONENT_OTHER},
        [MLP_GATE] = {2, {D, H}, .component = COMPONENT_DENSE},
        [MLP_UP] = {2, {D, H}, .component = COMPONENT_DENSE},
        [MLP_DOWN] = {2, {H, D}, .component = COMPONENT_DENSE},
        [ROUTER] = {2, {E, H}, .component = COMPONENT_ROUTER},
        [EXPERT_GATE] = {3, {E, I, H}, .expert = true, .component = COMPONENT_EXPERTS},
        [EXPERT_UP] = {3, {E, I, H}, .expert = true, .component = COMPONENT_EXPERTS},
        [EXPERT_DOWN] = {3, {E, H, I}, .expert = true, .component = COMPONENT_EXPERTS},
        [FINAL_NORM] = {1, {H}, .norm = true, .component = COMPONENT_OTHER},
        [HEAD] = {2, {V_, H}, .component = COMPONENT_VOCABULARY},
    };
    if (!s->family->name[p] || (p == HEAD && s->tied)) return false;
    bool dense = p == MLP_GATE || p == MLP_UP || p == MLP_DOWN;
    bool mixture = p == ROUTER || shapes[p].expert;
    if (dense || mixture) {
        MUST(layer >= 0 && layer < s->layers);
        if (s->dense[layer] != dense) return false;
    }
    *out = shapes[p];
    return true;
}

void spec_name(const Spec *s, ParameterName p, int64_t layer, int64_t expert, char *out, size_t bytes) {
    size_t n = 0;
    MUST(s->family->name[p] && bytes > 0);
    for (const char *c = s->family->name[p]; *c; c++) {
        if (*c != '%') {
            MUST(n + 1 < bytes);
            out[n++] = *c;
            continue;
        }
        int64_t number = *++c == 'L' ? layer : expert;
        MUST(number >= 0);
        n += (size_t)snprintf(out + n, bytes - n, "%lld", (long long)number);
        MUST(n < bytes);
    }
    out[n] = 0;
}

int64_t spec_frozen(const Spec *s, PadRow how) {
    return how == PAD_ROW_FROZEN ? s->pad : -1;
}

/* ---- Counts ----------------------------------------------------------------------------------- */

int64_t spec_parameters(const Spec *s) {
    int64_t total;
    MUST(count_parameters(s, s->experts, true, &total));
    return total;
}

int64_t spec_active_parameters(const Spec *s) {
    int64_t total, head;
    MUST(count_parameters(s, s->top_k, false, &total));
    MUST(mul_size(s->tied ? s->vocabulary : 0, s->hidden, &head) && add_size(total, head, &total));
    return total;
}
