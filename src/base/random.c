/* Random numbers as a function of where they are used. Philox encrypts a counter: ten rounds, each two 32x32 -> 64 bit
 * products whose low halves move on and whose high halves are mixed with the other two words and a key that grows by a
 * constant a round (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3; SC 2011).
 *
 *     key      seed                               64 bits
 *     counter  index | step | purpose             64 + 56 + 8 bits: no two uses can meet */
#include "base/random.h"
#include "base/base.h"
#include <math.h>

void philox(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4]) {
    uint32_t k0 = key[0], k1 = key[1];
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xd2511f53u * c0;
        uint64_t p1 = (uint64_t)0xcd9e8d57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9e3779b9u; /* the golden ratio */
        k1 += 0xbb67ae85u; /* sqrt(3) - 1 */
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

typedef struct {
    uint64_t first, second;
} Draw;

static Draw draw(uint64_t seed, RandomPurpose purpose, uint64_t step, uint64_t index) {
    MUST(step >> 56 == 0);
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t counter[4] = {(uint32_t)index, (uint32_t)(index >> 32), (uint32_t)step,
                           (uint32_t)(step >> 32) | (uint32_t)purpose << 24};
    uint32_t out[4];
    philox(key, counter, out);
    return (Draw){out[0] | (uint64_t)out[1] << 32, out[2] | (uint64_t)out[3] << 32};
}

/* 52 bits and a half: never 0, never 1, and exact in a double. */
static double unit_interval(uint64_t bits) {
    return ((double)(bits >> 12) + 0.5) * 0x1p-52;
}

uint64_t random_bits(uint64_t seed, RandomPurpose purpose, uint64_t step, uint64_t index) {
    return draw(seed, purpose, step, index).first;
}

double random_uniform(uint64_t seed, RandomPurpose purpose, uint64_t step, uint64_t index) {
    return unit_interval(draw(seed, purpose, step, index).first);
}

/* Box and Muller (1958), one of the pair: a radius and an angle. */
double random_normal(uint64_t seed, RandomPurpose purpose, uint64_t step, uint64_t index) {
    const double two_pi = 6.283185307179586;
    Draw d = draw(seed, purpose, step, index);
    return sqrt(-2 * log(unit_interval(d.first))) * cos(two_pi * unit_interval(d.second));
}

/* A Feistel network permutes the numbers of 2 x half bits whatever its round function is: (l, r) -> (r, l xor f(r))
 * can be undone. Applied until it falls inside [0, n), it permutes [0, n): walking the cycle of a permutation from one
 * member of a subset to the next one permutes the subset. A domain at most four times n makes that four walks or fewer
 * on average; it is never below 64, since a network of very few bits prefers some orders to others. */
int64_t random_permuted(uint64_t seed, uint64_t epoch, int64_t n, int64_t i) {
    MUST(0 <= i && i < n);
    enum { ROUNDS = 8 };
    int half = 3;
    while (half < 32 && (uint64_t)n > (uint64_t)1 << 2 * half) half++;
    uint64_t mask = ((uint64_t)1 << half) - 1;
    uint64_t at = (uint64_t)i;
    do {
        uint64_t left = at >> half, right = at & mask;
        for (uint64_t round = 0; round < ROUNDS; round++) {
            uint64_t mixed = left ^ (random_bits(seed, RANDOM_ORDER, epoch, round << 32 | right) & mask);
            left = right;
            right = mixed;
        }
        at = left << half | right;
    } while (at >= (uint64_t)n);
    return (int64_t)at;
}
