/* The families mop knows. A family is one file of numbers, a table of names and what it alone has; a new one
 * starts as a copy of the simplest (mixtral.c) and a line here and in spec.c's table.
 *
 * A family's read() goes over a config in v4 spelling: spec_from_json has already moved v5's keys to where v4
 * has them. / */
#ifndef MOP_FAMILIES_H
#define MOP_FAMILIES_H

#include "model/model.h"

extern const Family family_mixtral, family_olmoe, family_qwen3_moe;

/* What a class of transformers assumes where a config.json is silent. */
typedef struct {
    double rope_theta, norm_epsilon, balance;
    int64_t pad;      /* pad_token_id; -1: none */
    bool heads_alike; /* without num_key_value_heads every head has keys of its own; else the key must be there */
} FamilyDefaults;

/* What all decoders of the Llama line share: sizes, rope, norms, initialisation, balance loss; refuses what no
 * family here computes. Widths of MLPs, experts' number and choice and all that differs are the family's own to
 * read. */
bool family_read_decoder(Spec *s, const json_t *config, const char *where, FamilyDefaults defaults, Error *e);
/* s->experts from `key` or its alias of transformers 5, s->top_k, s->expert_hidden from `width`. The source
 * keeps `key`. */
bool family_read_experts(Spec *s, const json_t *config, const char *where, const char *key, const char *width,
                         Error *e);

/* A size that must be there, in [1, limit]. */
bool family_size(const json_t *config, const char *key, int64_t limit, int64_t *out, const char *where, Error *e);
/* Refuses a setting that mop does not compute; missing, null, false, 0 and {} pass. */
bool family_without(const json_t *config, const char *key, const char *where, Error *e);
/* The same where 0 or false means something too: missing and null pass. */
bool family_absent(const json_t *config, const char *key, const char *where, Error *e);
/* Refuses null in keys (up to NULL) where the class of transformers takes none. */
bool family_not_null(const json_t *config, const char *const *keys, const char *where, Error *e);
/* Rotary positions, however they are spelt, into the source's "rope_theta" (spec_rope.c). */
bool rope_in_v4_spelling(json_t *source, const char *where, Error *e);

enum { MAX_WIDTH = 1 << 20, MAX_HEADS = 1 << 14, MAX_WINDOW = 1 << 30 };

/* clang-format off */
#define DECODER_NAMES \
    [EMBED] = "model.embed_tokens.weight", \
    [ATTENTION_NORM] = "model.layers.%L.input_layernorm.weight", \
    [Q] = "model.layers.%L.self_attn.q_proj.weight", \
    [K] = "model.layers.%L.self_attn.k_proj.weight", \
    [V] = "model.layers.%L.self_attn.v_proj.weight", \
    [O] = "model.layers.%L.self_attn.o_proj.weight", \
    [MLP_NORM] = "model.layers.%L.post_attention_layernorm.weight", \
    [FINAL_NORM] = "model.norm.weight", \
    [HEAD] = "lm_head.weight"

#define QK_NORM_NAMES \
    [Q_NORM] = "model.layers.%L.self_attn.q_norm.weight", \
    [K_NORM] = "model.layers.%L.self_attn.k_norm.weight"

#define MLP_EXPERT_NAMES \
    [ROUTER] = "model.layers.%L.mlp.gate.weight", \
    [EXPERT_GATE] = "model.layers.%L.mlp.experts.%E.gate_proj.weight", \
    [EXPERT_UP] = "model.layers.%L.mlp.experts.%E.up_proj.weight", \
    [EXPERT_DOWN] = "model.layers.%L.mlp.experts.%E.down_proj.weight"

#define FUSED_NAMES \
    .fused_gate_up = "model.layers.%L.mlp.experts.gate_up_proj", \
    .fused_down = "model.layers.%L.mlp.experts.down_proj", \
    .fused_router = "model.layers.%L.mlp.gate.weight"
/* clang-format on */

#endif
