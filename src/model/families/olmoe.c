/* OLMoE: q and k are normalised as whole projected vectors, before they are cut into heads, so heads have no
 * size of their own. Experts in every layer, never a window whatever the config says. */
#include "model/families/families.h"

static bool read(Spec *s, const json_t *config, const char *where, Error *e) {
    const FamilyDefaults defaults = {
        .rope_theta = 1e4, .norm_epsilon = 1e-5, .balance = 0.01, .pad = 1, .heads_alike = true};
    static const char *const said[] = {"norm_topk_prob", "attention_bias", "head_dim", NULL};
    s->qk_norm = QK_NORM_WHOLE;
    if (!family_not_null(config, said, where, e) || !family_read_decoder(s, config, where, defaults, e) ||
        !family_read_experts(s, config, where, "num_experts", "intermediate_size", e) ||
        !family_absent(config, "clip_qkv", where, e) ||
        !json_bool(config, "norm_topk_prob", false, &s->normalise_top_k, where, e))
        return false;
    if (s->heads * s->head_dim == s->hidden) return true;
    return fail(
        e, EXIT_DATA,
        "OLMoE's heads share out hidden_size: %lld heads of head_dim %lld are not %lld; %s; correct head_dim or "
        "remove it",
        (long long)s->heads, (long long)s->head_dim, (long long)s->hidden, where);
}

const Family family_olmoe = {
    .model_type = "olmoe",
    .architecture = "OlmoeForCausalLM",
    .name = {DECODER_NAMES, QK_NORM_NAMES, MLP_EXPERT_NAMES},
    FUSED_NAMES,
    .read = read,
};
