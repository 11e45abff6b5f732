/* Whose rows of the embedding go where, when P ranks split it by rows: what the host makes of a micro-batch's tokens.
 * A batch is a pure function of seed, step and rank, so every member knows what the others will ask for; nothing is
 * asked over the network. Pure arithmetic: it moves nothing.
 *
 * Positions r c .. (r + 1) c - 1 of every member pass in round r. The owner of a row puts it into its buffer, by the
 * member that asked and by its position there; where it arrives it goes straight to its place. In backward the same
 * spans are read the other way.
 *
 *   P = 2, V = 6, c = 2         member 0 has 1 4 | 4          member 1 has 0 2 | 5
 *   round 0, owner 0 (0 1 2)    buffer 1, 0 2:   its row 0 goes to position 0 of member 0, rows 1 and 2 to 0 and 1 of member 1
 *   round 0, owner 1 (3 4 5)    buffer 4:        its row 0 goes to position 1 of member 0
 *   round 1, owner 1            buffer 4, 5
 *
 * The loss (vocabulary_loss.c) takes tokens in the same rounds.
 * Letters: P members, V rows in all, c tokens of each member in a round, K rounds, M tokens of the member that has
 * most. */
#ifndef MOP_LOOKUP_H
#define MOP_LOOKUP_H

#include "comm/comm.h"

typedef struct {
    Spans mine;          /* rows of this member's tokens, by owner */
    Spans theirs;        /* rows of the buffer here, by the member that they are for */
    int64_t first, rows; /* of `id`: those in the buffer */
} LookupRound;

typedef struct {
    int64_t members, index, vocabulary, each; /* each: ceil(V / P), the rows of a member */
    int64_t tokens, most;                     /* c, M */
    int64_t longest;                          /* tokens of the rank of the world that has most */
    int64_t rounds; /* K = ceil(longest / c), at least 1: all ranks run as many, whatever their groups have */
    LookupRound *round;
    int64_t ids;   /* rows that this member gives, over all rounds */
    Tensor id;     /* int32 [P M]: which, numbered from its first; by round, member and position */
    Tensor target; /* int32 [P M]: what everybody's tokens predict, in that order; -1 behind a member's last */
    int64_t most_room, round_room; /* the M and K that there is memory for */
    Span *span;                    /* [M + K P]: the rounds' spans; from the heap, as all here */
    int64_t *spans;                /* [2 K P] */
} Lookup;

/* Memory for micro-batches of up to `most` tokens a member and `longest` a rank, whatever they are; the tensors are
 * the caller's. False (EXIT_MEMORY): there is none. */
bool lookup_open(Lookup *l, const Axis *group, int64_t vocabulary, int64_t tokens, int64_t most, int64_t longest,
                 Error *e);
void lookup_close(Lookup *l);

/* Tokens of every member in round r; of a member that has fewer, the last are missing. */
int64_t lookup_round_tokens(const Lookup *l, int64_t r);

/* Makes the rounds for token[j][0 .. tokens[j] - 1] of every member j, and host `id` [P M]. No larger than what was
 * opened. */
void lookup_fill(Lookup *l, int64_t longest, const int32_t *const *token, const int64_t *tokens, int32_t *id);
/* target[j][...] into the order of l->target, after lookup_fill; out: host [P M]. */
void lookup_order(const Lookup *l, const int32_t *const *target, const int64_t *tokens, int32_t *out);

#endif
