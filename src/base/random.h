/* Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011), so that no stream exists to save or to split
 * over ranks. A number is a function of (seed, purpose, step, global index) and of nothing else. */
#ifndef MOP_RANDOM_H
#define MOP_RANDOM_H

#include <stdint.h>

typedef enum {
    RANDOM_WEIGHTS = 1,
    RANDOM_ORDER = 2,
    RANDOM_SAMPLE = 3,
    RANDOM_TEST = 4,
    RANDOM_LAYOUT = 5
} RandomPurpose;

/* key: 2 words, counter: 4 words, out: 4 words. Known answers are tested against Random123's. */
void philox(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4]);

/* 64 random bits. `step` stays below 2^56. The three below are views of the same draw: with equal arguments they are
 * not independent, so give each use an index of its own. */
uint64_t random_bits(uint64_t seed, RandomPurpose purpose, uint64_t step, uint64_t index);
/* In (0, 1), ends excluded. */
double random_uniform(uint64_t seed, RandomPurpose purpose, uint64_t step, uint64_t index);
/* Mean 0, variance 1. */
double random_normal(uint64_t seed, RandomPurpose purpose, uint64_t step, uint64_t index);

/* A permutation of [0, n) without a table: where index i (0 <= i < n) of epoch `epoch` lands. */
int64_t random_permuted(uint64_t seed, uint64_t epoch, int64_t n, int64_t i);

#endif
