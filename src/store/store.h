/* Where weights, gradients and optimizer state live. A part is the embedding (0), a layer (1 .. L), or the head (L +
 * 1).
 *
 * Dense parameters of a part are one flat vector, cut evenly over the dense axis (Z): each rank keeps one shard of
 * weight, moments and gradient, and borrows a slot for the whole while the part is in use. So are the ceil(E / E_p)
 * experts of a rank, over the expert_shard axis (E_s), in a slot of their own. Rows of a vocabulary that is split (P
 * > 1) stay where they are.
 *
 *    dense part: | norm | q | k | v | o | norm | router | pad |     Z = 2
 *                |<--- shard of member 0 -->|<-- member 1 --->|
 *
 * Three verbs: fetch (apply the due update, gather; the next part starts moving), release, give (sum the gradient
 * over its ranks). An update is due from the end of a backward pass to the part's next fetch; store_flush applies all
 * that is due. What any forward sees is exactly what the textbook loop would show it.
 */
#ifndef MOP_STORE_H
#define MOP_STORE_H

#include "model/model.h"

typedef struct Store Store;

typedef struct {
    Arena weights, state, gradients,
        slots; /* persistent shards; moments and low halves; gradient shards; gathered parts */
} StoreArenas;

Store *store_open(const Config *c, const Spec *spec, Comm *comm, const size_t capacity[4],
                  Error *e); /* capacity: of the arenas, in order */
void store_close(Store *s);
int64_t store_parts(const Store *s); /* layers + 2 */
StoreArenas *store_arenas(Store *s);

/* Whole dense weights, this rank's experts, and with P > 1 its rows of the vocabulary. `next`: the part whose
 * gathering may start behind this one; -1: none. */
Weights store_fetch(Store *s, int64_t part, int64_t next);
void store_release(Store *s, int64_t part);
/* Where backward adds gradients; zeroed. The head's of a tied model is the embedding's too, and is given with part 0.
 * */
Weights store_gradients(Store *s, int64_t part);
void store_give(Store *s, int64_t part);

/* After all parts are given: the global norm (every parameter counted once), the same bits on every rank. When it is
 * not finite, `bad` names the first tensor on the first rank, and the pending gradients are dropped. */
typedef struct {
    double norm;
    bool finite;
    int rank;
    char bad[200];
} GradientNorm;
bool store_norm(Store *s, GradientNorm *out, Error *e);
/* Makes the update of every part due with these numbers. */
void store_update(Store *s, AdamW h);
void store_flush(Store *s);

/* ---- Slices: for initialisation, checkpoints and tests ------------------------------------------ */

typedef enum { STORE_WEIGHT, STORE_MASTER, STORE_M, STORE_V, STORE_GRADIENT } StoreKind;

/* A run of consecutive elements of one Hugging Face tensor that this rank holds. */
typedef struct {
    char name[200]; /* logical name, for example model.layers.3.mlp.experts.5.up_proj.weight */
    int dims;
    int64_t dim[2];       /* of the whole tensor */
    int64_t first, count; /* elements [first, first + count) of it */
    bool owner;           /* exactly one rank owns each element: the one that writes it */
    ParameterName parameter;
    int64_t layer, expert; /* -1: none */
    int64_t part, at;      /* place in this rank's shard (private) */
} Slice;
int64_t store_slices(const Store *s, const Slice **out);
/* What a kind is copied as: the compute type for STORE_WEIGHT, the type of sums otherwise. */
Type store_type(const Store *s, StoreKind kind);
/* Copies a slice out of or into the store, [offset, offset + count) within the slice, as values of store_type.
 * STORE_MASTER of an fp32 or fp64 run is the weight itself; writing it sets weight and low half. Synchronous; flush
 * first. */
void store_copy_out(Store *s, const Slice *slice, StoreKind kind, int64_t offset, int64_t count, void *out);
void store_copy_in(Store *s, const Slice *slice, StoreKind kind, int64_t offset, int64_t count, const void *in);
/* Random weights from (seed, name, element index): independent of any layout. Norms are 1. */
void store_initialise(Store *s, uint64_t seed);

#endif
