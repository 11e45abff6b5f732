/* Least-loaded placement of experts (the idea is that of LLEP, arXiv 2601.17111): when the busiest member of an
 * expert group has far more rows than the mean, ranges of the rows of its hottest experts go to the least loaded
 * members, and the experts' weights with them. A pure function of the table that every member has, in whole numbers:
 * all members make the same plan, and nothing is said about it over a wire.
 *
 *   table [source][round][expert]  ->  which expert lies in which import slot, and how many of its rows of each round go there
 *
 *   one round, 4 members with 2 experts each, an import slot each; rows by expert:
 *       8 0 | 2 0 | 1 1 | 0 0    loads 8 2 2 0, mean 3: member 3 takes 3 rows of expert 0, then members 1 and 2 take 1 each
 *       3 0 | 2 0 | 1 1 | 0 0  and imported:  - | 1 | 1 | 3
 *
 * Greedy: as long as a member is above the mean, its hottest expert gives to the least loaded member that is below
 * the mean and has an import slot left (or that expert in one already), down to the mean here, up to the mean there.
 * A member that gives never takes and one that takes never gives, so each expert's owner keeps the first rows of a
 * round and importers follow in the order of their slots. Rows are taken from all rounds in proportion, but never
 * more than would bring the taker above `most` in a round: what does not fit stays. Left out: what moving the weights
 * costs; the threshold stands for it. */
#ifndef MOP_BALANCE_H
#define MOP_BALANCE_H

#include "base/base.h"

typedef struct {
    int64_t members, rounds, experts;
    int64_t each;     /* expert e is member e / each's own */
    int64_t imports;  /* slots of a member */
    int64_t most;     /* rows of a round that a member has room for */
    double threshold; /* nothing moves while busiest / mean, over all rounds, is at most this */
} BalanceShape;

/* Slot i of member m is number m imports + i. */
typedef struct {
    int64_t *expert; /* [members x imports] what lies in the slot; -1: nothing */
    int64_t *taken;  /* [members x imports][rounds] rows of it that go there */
} Balance;

/* `memory` [balance_words]: what the result lives in, and scratch. */
int64_t balance_words(const BalanceShape *shape);
Balance balance_make(const BalanceShape *shape, const int64_t *table, int64_t *memory);

#endif
