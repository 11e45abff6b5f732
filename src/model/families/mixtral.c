/* Mixtral: the plain decoder, experts in every layer, chosen probabilities always renormalised. One window for
 * all layers. */
#include "model/families/families.h"

static bool read(Spec *s, const json_t *config, const char *where, Error *e) {
    const FamilyDefaults defaults = {.rope_theta = 1e6, .norm_epsilon = 1e-5, .balance = 0.001, .pad = -1};
    static const char *const said[] = {"num_key_value_heads", "router_jitter_noise", NULL};
    s->normalise_top_k = true;
    return family_not_null(config, said, where, e) && family_read_decoder(s, config, where, defaults, e) &&
           family_read_experts(s, config, where, "num_local_experts", "intermediate_size", e) &&
           family_without(config, "router_jitter_noise", where, e) &&
           json_int(config, "sliding_window", 0, 1, MAX_WINDOW, &s->window, where, e);
}

const Family family_mixtral = {
    .model_type = "mixtral",
    .architecture = "MixtralForCausalLM",
    .name = {DECODER_NAMES, [ROUTER] = "model.layers.%L.block_sparse_moe.gate.weight",
             [EXPERT_GATE] = "model.layers.%L.block_sparse_moe.experts.%E.w1.weight",
             [EXPERT_UP] = "model.layers.%L.block_sparse_moe.experts.%E.w3.weight",
             [EXPERT_DOWN] = "model.layers.%L.block_sparse_moe.experts.%E.w2.weight"},
    FUSED_NAMES,
    .read = read,
};
