/* Qwen3-MoE: q and k normalised head by head, heads of any size, dense MLPs in the layers that
 * `mlp_only_layers` lists and where `decoder_sparse_step` does not divide the layer's number, counted from 1. A
 * window counts only where it is turned on. */
#include "model/families/families.h"

static bool is_listed(const json_t *layers, int64_t layer) {
    size_t i;
    const json_t *each;
    json_array_foreach(layers, i, each) {
        if (json_integer_value(each) == layer) return true;
    }
    return false;
}

static bool check_listed(const json_t *layers, const char *where, Error *e) {
    size_t i;
    const json_t *each;
    if (layers && !json_is_null(layers) && !json_is_array(layers))
        return fail(e, EXIT_DATA, "\"mlp_only_layers\" must be a list of layers; %s; correct the file", where);
    json_array_foreach(layers, i, each) {
        if (!json_is_integer(each) || json_integer_value(each) < 0)
            return fail(e, EXIT_DATA, "\"mlp_only_layers\" must hold layers, counted from 0; %s; correct the file",
                        where);
    }
    return true;
}

static bool read_dense_layers(Spec *s, const json_t *config, const char *where, Error *e) {
    const json_t *listed = json_object_get(config, "mlp_only_layers");
    int64_t step;
    if (!check_listed(listed, where, e) || !json_int(config, "decoder_sparse_step", 1, 1, INT32_MAX, &step, where, e))
        return false;
    bool any = false;
    for (int64_t layer = 0; layer < s->layers; layer++) {
        s->dense[layer] = is_listed(listed, layer) || (layer + 1) % step != 0;
        any = any || s->dense[layer];
    }
    return !any || family_size(config, "intermediate_size", MAX_WIDTH, &s->dense_hidden, where, e);
}

static bool read_window(Spec *s, const json_t *config, const char *where, Error *e) {
    bool on;
    int64_t unsaid = json_object_get(config, "sliding_window") ? 0 : 4096; /* null: none */
    if (!json_bool(config, "use_sliding_window", false, &on, where, e)) return false;
    return !on || json_int(config, "sliding_window", unsaid, 1, MAX_WINDOW, &s->window, where, e);
}

static bool read(Spec *s, const json_t *config, const char *where, Error *e) {
    const FamilyDefaults defaults = {.rope_theta = 1e4, .norm_epsilon = 1e-6, .balance = 0.001, .pad = -1};
    static const char *const said[] = {
        "num_key_value_heads", "head_dim",           "norm_topk_prob",    "attention_bias",
        "decoder_sparse_step", "use_sliding_window", "intermediate_size", NULL};
    s->qk_norm = QK_NORM_HEAD;
    return family_not_null(config, said, where, e) && family_read_decoder(s, config, where, defaults, e) &&
           family_read_experts(s, config, where, "num_experts", "moe_intermediate_size", e) &&
           read_dense_layers(s, config, where, e) && read_window(s, config, where, e) &&
           json_bool(config, "norm_topk_prob", false, &s->normalise_top_k, where, e);
}

const Family family_qwen3_moe = {
    .model_type = "qwen3_moe",
    .architecture = "Qwen3MoeForCausalLM",
    .name = {DECODER_NAMES, QK_NORM_NAMES, MLP_EXPERT_NAMES, [MLP_GATE] = "model.layers.%L.mlp.gate_proj.weight",
             [MLP_UP] = "model.layers.%L.mlp.up_proj.weight", [MLP_DOWN] = "model.layers.%L.mlp.down_proj.weight"},
    FUSED_NAMES,
    .read = read,
};
