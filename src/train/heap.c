/* What a rank takes beside its device arenas, from sizes alone: what must be known before a rank exists, to refuse a
 * thousand of them in words. It is an upper estimate, and not far above the truth (tests/test_limits.c holds it to
 * that); what a device arena takes is never estimated but planned.
 *
 *   stack and wire    a thread's stack as far as it is used, its calls, its meetings, its queue
 *   whole sequences   one at a time, on the host, with all that is said of a position
 *   parts             what the store knows of each layer
 *   slices            the tensors that a rank has bytes of; not on sim
 *   what is kept      for every layer and micro-batch, in the host arena: who sends which rows where, in every round
 */
#include "train/run.h"

#include <math.h>

enum {
    FIXED_BYTES = 64 << 10,      /* of a rank that only counts */
    RUNNING_BYTES = 1 << 20,     /* what a rank has more when it runs */
    PART_BYTES = 5 << 10,        /* of the store */
    SEQUENCE_INTS = 8,           /* int32 of a position of the whole sequence: 7, and a token of a text */
    PIECE_BYTES = 64,            /* an arena rounds each piece up, by less than this */
    LAYER_PARAMETERS_EXPERT = 3, /* tensors of an expert */
};

/* The sizes of an exchange with the experts, in double: they are only multiplied. */
typedef struct {
    double members, rounds, experts, here, imports;
} Exchange;

static Exchange exchange_of(const Config *c, const Spec *spec, int world) {
    double members = (double)c->mixture_expert;
    return (Exchange){.members = members,
                      .rounds = (double)run_dispatch_rounds(c, world),
                      .experts = (double)spec->experts,
                      .here = (double)ceil_div(spec->experts, c->mixture_expert),
                      .imports = members > 1 ? fmin((double)c->mixture_balance_imports, (double)spec->experts) : 0};
}

/* dispatch_reserve: kept from forward to backward. */
static double dispatch_kept(const Exchange *x) {
    double span = sizeof(Span), word = sizeof(int64_t), pieces = 6 * PIECE_BYTES;
    double round = sizeof(Round) + pieces + span * x->members * (1 + 2 * x->imports) +
                   span * x->members * (x->here + x->imports) + word * (2 * x->members + x->here + x->imports);
    double imports = 2 * pieces + (span + word) * (x->members + 1) * (x->imports + 1);
    return x->rounds * round + imports;
}

/* dispatch_make: given back at once. */
static double dispatch_scratch(const Exchange *x) {
    double word = sizeof(int64_t), slots = x->members * x->imports, pieces = 12 * PIECE_BYTES;
    double table = word * x->members * x->rounds * x->experts;
    double plan =
        word * (slots * (1 + x->rounds) + x->rounds * (x->experts + x->members) + x->experts + 2 * x->members);
    double view = word * (4 * x->experts + 2 * slots + 4 * (x->here + x->imports));
    return table + (x->imports > 0 ? plan : 0) + view + pieces;
}

/* share_sequences, of a micro-batch. */
static double sharing(const Config *c, const Spec *spec, int world) {
    double members = (double)c->mixture_ulysses, span = sizeof(Span), word = sizeof(int64_t);
    double groups = (double)world / (members * (double)c->mixture_ring);
    double sequences = ceil(ceil((double)c->train_sequences / groups) / (double)c->train_micro_batches);
    double ring = word * (double)c->mixture_ring + PIECE_BYTES;
    if (members == 1) return ring;
    double heads = (double)spec->heads / members;
    return ring + 8 * PIECE_BYTES + members * (span * sequences * (1 + heads) + 2 * span + 4 * word);
}

double run_host_bytes(const Config *c, const Spec *spec, int world) {
    Exchange x = exchange_of(c, spec, world);
    double micro = (double)c->train_micro_batches;
    return micro * ((double)spec->moe_layers * dispatch_kept(&x) + sharing(c, spec, world)) + dispatch_scratch(&x);
}

/* With P > 1: the tokens of those who share the vocabulary, and where their rows lie. */
static double vocabulary_bytes(const Config *c, int world) {
    double members = (double)c->mixture_vocabulary, most = (double)run_largest_batch(c, world);
    double rounds = (double)run_loss_rounds(c, world), micro = (double)c->train_micro_batches;
    if (members == 1) return 0;
    return 3 * sizeof(int32_t) * members * most +
           micro * (rounds * sizeof(LookupRound) + sizeof(Span) * (most + 2 * rounds * members));
}

static double parcel_bytes(const Config *c, int world) {
    Mesh m;
    Error e = {0};
    double members = 0;
    if (!mesh_plan(&m, c, world, 0, &e)) return 0; /* refused elsewhere */
    for (int a = 0; a < AXIS_COUNT; a++) members += m.axis[a].size;
    return members * sizeof(Parcel);
}

double run_heap(const Config *c, const Spec *spec, int world, bool sim) {
    double layers = (double)spec->layers, micro = (double)c->train_micro_batches, parts = layers + 2;
    double here = (double)ceil_div(spec->experts, c->mixture_expert);
    double bytes = FIXED_BYTES + SEQUENCE_INTS * sizeof(int32_t) * (double)c->train_sequence_length;
    bytes += parts * PART_BYTES + layers * sizeof(Mark) + 3 * sizeof(double) * (double)spec->experts;
    bytes += micro * (sizeof(MicroBatch) + layers * sizeof(Saved) + sizeof(int64_t) * (double)c->mixture_ring);
    bytes += vocabulary_bytes(c, world) + run_host_bytes(c, spec, world);
    if (sim) return bytes;
    bytes += RUNNING_BYTES + parcel_bytes(c, world);
    return bytes + parts * sizeof(Slice) * (PARAMETER_COUNT + LAYER_PARAMETERS_EXPERT * here);
}
