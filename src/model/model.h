/* What is computed: a pre-norm decoder with grouped-query attention and dropless mixture-of-experts, forward and, by
 * hand, backward. The model never knows where weights live: it is handed Weights (views) and gives gradients into
 * Weights. */
#ifndef MOP_MODEL_H
#define MOP_MODEL_H

#include "base/config.h"
#include "base/json.h"
#include "model/dispatch.h"
#include "model/lookup.h"
#include "ops/ops.h"

/* ---- Spec: a family is data ------------------------------------------------------------------- */

/* clang-format off */
typedef enum {
    EMBED,                                    /* [V, H] */
    ATTENTION_NORM, Q, K, V, O,               /* [H]; [heads d, H], [kv d, H], [kv d, H]; [H, heads d] */
    Q_NORM, K_NORM,                           /* [d] per head, or the whole [heads d], [kv d] */
    MLP_NORM,                                 /* [H] */
    MLP_GATE, MLP_UP, MLP_DOWN,               /* dense layers: [D, H], [D, H], [H, D] */
    ROUTER,                                   /* [E, H] */
    EXPERT_GATE, EXPERT_UP, EXPERT_DOWN,      /* stacked over experts: [E, I, H], [E, I, H], [E, H, I] */
    FINAL_NORM, HEAD,                         /* [H]; [V, H], absent when tied */
    PARAMETER_COUNT
} ParameterName;
/* clang-format on */

typedef enum { QK_NORM_NONE, QK_NORM_HEAD, QK_NORM_WHOLE } QkNorm;

enum { MAX_LAYERS = 512, MAX_EXPERTS = 4096 };

struct Spec;
typedef struct {
    const char *model_type, *architecture;
    /* Hugging Face names; "%L" is the layer, "%E" the expert. One row per parameter the family has; NULL: it has
     * none. */
    const char *name[PARAMETER_COUNT];
    /* The fused spelling of transformers 5 [E, 2I, H] and [E, H, I], read only. */
    const char *fused_gate_up, *fused_down, *fused_router;
    bool (*read)(struct Spec *s, const json_t *config, const char *where, Error *e); /* what this family alone has */
} Family;

/* A new field is a row of spec_compare.c too. */
typedef struct Spec {
    const Family *family;
    int64_t layers, hidden, heads, kv_heads, head_dim, vocabulary;
    int64_t experts, top_k, expert_hidden, dense_hidden;
    int64_t window; /* 0: none */
    int64_t pad;    /* pad_token_id, whose embedding transformers does not train; -1: none */
    double norm_epsilon, rope_theta, initializer_range, balance, router_z;
    bool normalise_top_k, tied;
    QkNorm qk_norm;
    bool dense[MAX_LAYERS]; /* layer has a dense MLP instead of experts */
    int64_t moe_layers;
    json_t *source; /* config.json as read: unknown keys survive an export */
} Spec;

/* Reads config.json, in v4 or v5 spelling; what mop cannot compute exactly is refused in words (EXIT_DATA). */
bool spec_read(Spec *s, const char *path, Error *e);
bool spec_from_json(Spec *s, const json_t *config, const char *where, Error *e);
void spec_close(Spec *s);
json_t *spec_config(const Spec *s, Type dtype); /* config.json to write, v4 keys; caller decrefs */
/* The id whose embedding gets no gradient of its own and starts as zeros, as in transformers; -1: none. A tied head
 * trains the row all the same. */
int64_t spec_frozen(const Spec *s, PadRow how);
int64_t spec_parameters(const Spec *s);
int64_t spec_active_parameters(const Spec *s); /* used by one token, embedding lookup not counted */

/* Shape of a parameter in a layer (layer ignored for EMBED, FINAL_NORM, HEAD). False when this model has none there. */
typedef struct {
    int dims;
    int64_t dim[3];
    bool expert; /* dim[0] counts experts */
    bool norm;   /* initialised to 1, else normal(0, initializer_range) */
    Component component;
} Shape;
bool spec_shape(const Spec *s, ParameterName p, int64_t layer, Shape *out);
/* Hugging Face's name of it (expert -1 for whole parameters). */
void spec_name(const Spec *s, ParameterName p, int64_t layer, int64_t expert, char *out, size_t bytes);

/* ---- Weights and gradients: views ------------------------------------------------------------- */

typedef struct {
    /* Experts: those that are here, [experts_here, ...]. EMBED and HEAD: with P > 1 the rows that are here,
     * [vocabulary.here, H]. */
    Tensor at[PARAMETER_COUNT];
} Weights;

/* ---- The model on one rank -------------------------------------------------------------------- */

/* Who has which rows of a micro-batch, among the ranks that share its sequences (comm/cut.h); in the host arena. Rows
 * of several sequences lie one sequence behind the other. */
typedef struct {
    int64_t *block;        /* [ring members] rows of a ring member: of all ranks of its Ulysses group */
    int64_t rows, largest; /* of this rank's ring member; of any */
    /* For the exchanges between a rank's own rows of all heads and its heads of all rows (ulysses.c): rows of its
     * ring member that are member j's, and rows of what is packed for member j; the same of a tensor that has heads
     * outside, [heads, rows]. */
    Spans whole, packed, whole_heads, packed_heads;
} Sharing;

/* One micro-batch on the device, and what its layers kept for backward. */
typedef struct {
    int64_t tokens, sequences; /* tokens: of this rank */
    int64_t most;              /* tokens of the rank that has most: it decides how many rounds all ranks take */
    Tensor token, target, position, sequence; /* int32 [tokens] */
    Sharing sharing;
    /* int32 [ring members, rows]: the rows of a member's block that each row of this rank's ring member sees, as
     * `attention` has them; and how many such pairs there are, [ring members]. */
    Tensor first, last;
    Tensor keys; /* int32 [rows]: how many rows each sees, of all members' blocks */
    int64_t *pairs;
    Tensor rows;         /* fp64 [sequences]: MoE layers x real positions */
    Tensor rope;         /* sum [tokens, head_dim] */
    Tensor counts, mass; /* fp64 [sequences, experts] */
    Tensor x;            /* the tensor between layers; in backward its gradient */
    Tensor gradient;     /* [T, H]: where that gradient lives */
    Lookup lookup;       /* P > 1: the tokens of those who share the vocabulary */
} MicroBatch;

/* What one layer and micro-batch keeps. Between forward and backward `x`, `attention` and `lse` always live; the
 * others live too, or are computed again in backward (compute.activations). */
typedef struct {
    Tensor x;                 /* [T, H] the layer's input */
    Tensor inverse1, q, k, v; /* before norm and rope */
    Tensor q_inverse, k_inverse;
    Tensor attention, lse; /* [T, heads, d]; [heads / D_u, rows of the ring member] */
    Tensor y, inverse2;    /* [T, H] after attention */
    Tensor gate, up;       /* [rows, I] (or dense [T, D]) */
    /* routing */
    Tensor logits, p, chosen, weight, z_lse, order, place;
    Tensor rows_in,
        rows_weight;   /* [rows, H], [rows, 1]: what the experts here got, by expert; none: it travels again */
    Dispatch dispatch; /* what travels where, in every round */
    int64_t room;      /* rows that a round's buffers hold */
} Saved;

typedef struct Model {
    const Spec *spec;
    Type real, sum;
    Device *device;
    Stream *compute, *network;
    Comm *comm;
    bool recompute;
    Cut cut;               /* of the sequences at hand */
    int64_t ulysses_heads; /* most KV heads that are here in full-sequence form at a time */
    int64_t loss_chunk;
    Travel loss_travel;
    int64_t frozen;                                   /* the id whose embedding is not trained; -1: none */
    Share vocabulary;                                 /* this rank's rows; P = 1: all */
    int64_t expert_first, experts_here, experts_each; /* this rank's experts; ceil(E / E_p) */
    int64_t dispatch_tokens;                          /* c: tokens of a rank in a round; 0: all */
    int64_t imports;                                  /* experts of others that a rank may work for; 0: none */
    double balance_threshold;
    Arena *saved, *work, *host; /* activations kept; scratch; host arrays */
    RouteLoss route_loss;       /* of the step at hand */
    Tensor z, real_positions;   /* fp64 [1]: sum of lse^2; real positions of the step over all ranks */
    double *load;               /* host [E]: rows that this rank has sent to each expert */
    bool evaluating;            /* keep nothing; a layer's output replaces its input */
} Model;

/* Fills b->sharing for m->cut, in the host arena; b->sequences are known. */
void share_sequences(const Model *m, MicroBatch *b);

/* b->x = table[token], b->x [T, H]. With P > 1 the ranks of the vocabulary group call it together, as everything
 * below. */
void embed_forward(const Model *m, const Weights *w, MicroBatch *b);
void embed_backward(const Model *m, Weights *dw, const MicroBatch *b);

/* b->x: the layer's input, then its output. `k` receives what backward needs, in m->saved. */
void layer_forward(const Model *m, int64_t layer, const Weights *w, Saved *k, MicroBatch *b);
/* b->x: the gradient of the layer's output, then of its input. dw is added to. */
void layer_backward(const Model *m, int64_t layer, const Weights *w, Weights *dw, Saved *k, MicroBatch *b);

/* Final norm, logits a chunk at a time, loss[1] (fp64) += sum over trained positions; with dw also the gradients, and
 * b->x becomes the gradient of the last layer's output. trained[1] (fp64): the step's trained positions over all
 * ranks. */
void head_loss(const Model *m, const Weights *w, Weights *dw, MicroBatch *b, Tensor loss, Tensor trained);
/* Logits of one row (generation), which rank `root` of the world has as row `row`; everybody else gives row -1.
 * logits sum [vocabulary_room]: the first V are they; written on the root, and with P > 1 on every rank. */
void head_logits(const Model *m, const Weights *w, const MicroBatch *b, int64_t row, int root, Tensor logits);
int64_t vocabulary_room(const Model *m); /* P ceil(V / P) */

#endif
