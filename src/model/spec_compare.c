/* The table of a Spec's fields, and what walks it. A field that is forgotten here is a model that differs in silence:
 * the size of a Spec is asserted, and tests/test_spec.c finds bytes that no row covers. */
#include "model/spec_compare.h"

#include <stdio.h>
#include <string.h>

/* clang-format off */
#define ROW(field, of_kind, key, used) \
    {.name = (key), .kind = (of_kind), .offset = offsetof(Spec, field), \
     .bytes = sizeof(((Spec *)0)->field), .use = (used)}

const SpecField spec_fields[SPEC_FIELDS] = {
    ROW(family, KIND_FAMILY, "model_type", SPEC_MODEL),
    ROW(layers, KIND_INTEGER, "num_hidden_layers", SPEC_MODEL),
    ROW(hidden, KIND_INTEGER, "hidden_size", SPEC_MODEL),
    ROW(heads, KIND_INTEGER, "num_attention_heads", SPEC_MODEL),
    ROW(kv_heads, KIND_INTEGER, "num_key_value_heads", SPEC_MODEL),
    ROW(head_dim, KIND_INTEGER, "head_dim", SPEC_MODEL),
    ROW(vocabulary, KIND_INTEGER, "vocab_size", SPEC_MODEL),
    ROW(experts, KIND_INTEGER, "num_experts", SPEC_MODEL),
    ROW(top_k, KIND_INTEGER, "num_experts_per_tok", SPEC_MODEL),
    ROW(expert_hidden, KIND_INTEGER, "intermediate size of experts", SPEC_MODEL),
    ROW(dense_hidden, KIND_INTEGER, "intermediate size of dense layers", SPEC_MODEL),
    ROW(window, KIND_INTEGER, "sliding_window", SPEC_MODEL),
    ROW(pad, KIND_INTEGER, "pad_token_id", SPEC_MODEL),
    ROW(norm_epsilon, KIND_NUMBER, "rms_norm_eps", SPEC_MODEL),
    ROW(rope_theta, KIND_NUMBER, "rope_theta", SPEC_MODEL),
    ROW(initializer_range, KIND_NUMBER, "initializer_range", SPEC_BEGINNING),
    ROW(balance, KIND_NUMBER, "router_aux_loss_coef", SPEC_COEFFICIENT),
    ROW(router_z, KIND_NUMBER, "router_z_loss_coef", SPEC_COEFFICIENT),
    ROW(normalise_top_k, KIND_SWITCH, "norm_topk_prob", SPEC_MODEL),
    ROW(tied, KIND_SWITCH, "tie_word_embeddings", SPEC_MODEL),
    ROW(qk_norm, KIND_QK_NORM, "norm of queries and keys", SPEC_MODEL),
    ROW(dense, KIND_LAYERS, "dense layers", SPEC_MODEL),
};
/* clang-format on */

_Static_assert(sizeof(Spec) == 13 * sizeof(int64_t) + 5 * sizeof(double) + 2 * sizeof(void *) + 8 + MAX_LAYERS,
               "a Spec has a field more or less: give it a row, and count it here");

static const void *value(const SpecField *f, const Spec *s) {
    return (const char *)s + f->offset;
}

static int64_t integer(const SpecField *f, const Spec *s) {
    return *(const int64_t *)value(f, s);
}

static double number(const SpecField *f, const Spec *s) {
    return *(const double *)value(f, s);
}

static bool is_on(const SpecField *f, const Spec *s) {
    return *(const bool *)value(f, s);
}

static const char *qk_norm_name(QkNorm n) {
    static const char *const names[] = {
        [QK_NORM_NONE] = "none", [QK_NORM_HEAD] = "by head", [QK_NORM_WHOLE] = "of all heads"};
    return names[n];
}

/* "1 3 5"; what does not fit ends in "...". */
static Shown layers_shown(const Spec *s) {
    char text[8 * MAX_LAYERS] = "";
    size_t used = 0;
    for (int64_t i = 0; i < s->layers; i++)
        if (s->dense[i])
            used += (size_t)snprintf(text + used, sizeof text - used, "%s%lld", used ? " " : "", (long long)i);
    return text_shown(used ? text : "none");
}

static Shown shown(const SpecField *f, const Spec *s) {
    char text[32];
    switch (f->kind) {
    case KIND_FAMILY: return text_shown(s->family->model_type);
    case KIND_INTEGER: snprintf(text, sizeof text, "%lld", (long long)integer(f, s)); return text_shown(text);
    case KIND_NUMBER: return number_shown(number(f, s));
    case KIND_SWITCH: return text_shown(is_on(f, s) ? "true" : "false");
    case KIND_QK_NORM: return text_shown(qk_norm_name(s->qk_norm));
    case KIND_LAYERS: return layers_shown(s);
    }
    MUST(false && "every kind is shown");
    return text_shown("");
}

static bool equal(const SpecField *f, const Spec *a, const Spec *b) {
    switch (f->kind) {
    case KIND_FAMILY: return strcmp(a->family->model_type, b->family->model_type) == 0;
    case KIND_NUMBER: return number(f, a) == number(f, b);
    default: return memcmp(value(f, a), value(f, b), f->bytes) == 0;
    }
}

static uint64_t hash_field(uint64_t hash, const SpecField *f, const Spec *s) {
    hash = hash_line(hash, f->name);
    if (f->kind == KIND_FAMILY) return hash_line(hash, s->family->model_type);
    if (f->kind != KIND_NUMBER) return hash_more(hash, value(f, s), f->bytes);
    double x = number(f, s) + 0.0; /* -0 is 0 */
    return hash_more(hash, &x, sizeof x);
}

uint64_t spec_hash(const Spec *s) {
    uint64_t hash = HASH_START;
    for (int i = 0; i < SPEC_FIELDS; i++) hash = hash_field(hash, &spec_fields[i], s);
    return hash;
}

int spec_changes(const Spec *before, const Spec *now, SpecChange out[SPEC_FIELDS]) {
    int count = 0;
    for (int i = 0; i < SPEC_FIELDS; i++) {
        const SpecField *f = &spec_fields[i];
        if (!equal(f, before, now)) out[count++] = (SpecChange){f, shown(f, before), shown(f, now)};
    }
    return count;
}
