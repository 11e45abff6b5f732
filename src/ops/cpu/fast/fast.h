/* The shared head of the fast kernels: one vector of REALs, as wide as the instruction set allows.
 *
 * Every .c file of this folder but select.c is compiled once for each REAL (float, double) and ISA (avx512bf16 for
 * float alone, avx512, avx2, portable); KERNEL(name) names the copy. The code is written on the compiler's vector
 * types, so that one text serves every instruction set. Products may be fused with sums (fma), nothing else is
 * reordered: NaN and infinities stay visible, and the order of every sum is written in the code. A copy compiled from
 * REAL = float also serves bf16 data: rows are widened to float when loaded and rounded when stored. Copies of REAL =
 * double see fp64 alone.
 *
 * What runs for each op stands in table.h. */
#ifndef MOP_FAST_H
#define MOP_FAST_H

#include "ops/kernels.h"
#include <math.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#if !defined(REAL) || !defined(REAL_BITS) || !defined(ISA)
#error "compiled once per REAL (with REAL_BITS) and ISA: see CMakeLists.txt"
#endif

#define FAST_JOIN(name, real, isa) name##_##real##_##isa
#define FAST_EXPAND(name, real, isa) FAST_JOIN(name, real, isa)
#define KERNEL(name) FAST_EXPAND(name, REAL, ISA) /* linear -> linear_float_avx512 */

/* Before a loop of constant length: no loop is left, and an array that it alone indexes lives in registers. */
#if defined(__clang__)
#define UNROLLED _Pragma("clang loop unroll(full)")
#else
#define UNROLLED _Pragma("GCC unroll 16")
#endif

#define INLINE static inline __attribute__((always_inline))

/* ---- Types ------------------------------------------------------------------------------------ */

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#define LANES (VECTOR_BYTES * 8 / REAL_BITS)

#if REAL_BITS == 32
#define REAL_TYPE FP32
typedef uint32_t Word;
#else
#define REAL_TYPE FP64
typedef uint64_t Word;
#endif

typedef REAL Vector __attribute__((vector_size(VECTOR_BYTES)));
typedef Word Words __attribute__((vector_size(VECTOR_BYTES))); /* the bits of a Vector */
typedef REAL LooseVector __attribute__((vector_size(VECTOR_BYTES), aligned(REAL_BITS / 8), may_alias));

/* ---- Vectors ---------------------------------------------------------------------------------- */

static inline Vector vector_all(REAL x) {
    return x - (Vector){0}; /* x - 0 is x for every x; x + 0 is not for -0 */
}

static inline Vector vector_load(const REAL *p) {
    return *(const LooseVector *)p;
}

static inline void vector_store(REAL *p, Vector v) {
    *(LooseVector *)p = v;
}

/* What the vector types have no operator for. vector_max and vector_min are, lane by lane, a > b ? a : b and a < b
 * ? a : b: a NaN in a is lost, one in b is kept. vector_sqrt is correctly rounded. Spelled out for x86: left to
 * the compiler, these often end up lane by lane. */
#if defined(__SSE2__)
#if VECTOR_BYTES == 64
#define X86_SINGLE(name) _mm512_##name##_ps
#define X86_DOUBLE(name) _mm512_##name##_pd
#elif VECTOR_BYTES == 32
#define X86_SINGLE(name) _mm256_##name##_ps
#define X86_DOUBLE(name) _mm256_##name##_pd
#else
#define X86_SINGLE(name) _mm_##name##_ps
#define X86_DOUBLE(name) _mm_##name##_pd
#endif
#if REAL_BITS == 32
#define X86_VECTOR X86_SINGLE
#else
#define X86_VECTOR X86_DOUBLE
#endif

static inline Vector vector_max(Vector a, Vector b) {
    return X86_VECTOR(max)(a, b);
}

static inline Vector vector_min(Vector a, Vector b) {
    return X86_VECTOR(min)(a, b);
}

static inline Vector vector_sqrt(Vector v) {
    return X86_VECTOR(sqrt)(v);
}
#else
static inline Vector vector_max(Vector a, Vector b) {
    Words mask = (Words)(a > b);
    return (Vector)(((Words)a & mask) | ((Words)b & ~mask));
}

static inline Vector vector_min(Vector a, Vector b) {
    Words mask = (Words)(a < b);
    return (Vector)(((Words)a & mask) | ((Words)b & ~mask));
}

static inline Vector vector_sqrt(Vector v) {
    for (int i = 0; i < LANES; i++) v[i] = (REAL)sqrt((double)v[i]); /* rounding twice does no harm here */
    return v;
}
#endif

/* Lane i of the result is lane i ^ distance of v; `distance` must be a constant once inlined: then it is one
 * shuffle. */
static inline __attribute__((always_inline)) Vector vector_exchange(Vector v, int distance) {
    Vector r;
    UNROLLED for (int i = 0; i < LANES; i++) r[i] = v[i ^ distance];
    return r;
}

/* Over the lanes, by halves: the order never changes. */
static inline REAL vector_sum(Vector v) {
    UNROLLED for (int half = LANES / 2; half > 0; half /= 2) v += vector_exchange(v, half);
    return v[0];
}

static inline REAL vector_highest(Vector v) {
    UNROLLED for (int half = LANES / 2; half > 0; half /= 2) v = vector_max(v, vector_exchange(v, half));
    return v[0];
}

/* ---- Transposing ------------------------------------------------------------------------------ */

#if LANES == 16
#define ZIP_LOW(a, b) __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define ZIP_HIGH(a, b) __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#elif LANES == 8
#define ZIP_LOW(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define ZIP_HIGH(a, b) __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#elif LANES == 4
#define ZIP_LOW(a, b) __builtin_shufflevector(a, b, 0, 4, 1, 5)
#define ZIP_HIGH(a, b) __builtin_shufflevector(a, b, 2, 6, 3, 7)
#else
#define ZIP_LOW(a, b) __builtin_shufflevector(a, b, 0, 2)
#define ZIP_HIGH(a, b) __builtin_shufflevector(a, b, 1, 3)
#endif

/* Zipping row i with row i + LANES/2 moves the highest bit of the row number to the lowest of the column number;
 * after as many rounds as these have bits the two have changed places. */
INLINE void transpose(Vector *v) {
    Vector zipped[LANES];
    UNROLLED for (int round = 1; round < LANES; round *= 2) {
        UNROLLED for (int i = 0; i < LANES / 2; i++) {
            zipped[2 * i] = ZIP_LOW(v[i], v[i + LANES / 2]);
            zipped[2 * i + 1] = ZIP_HIGH(v[i], v[i + LANES / 2]);
        }
        UNROLLED for (int i = 0; i < LANES; i++) v[i] = zipped[i];
    }
}

/* ---- Doubles ---------------------------------------------------------------------------------- */

/* The lanes of a Vector, in their order, as doubles: of floats in two vectors. */
typedef double Doubles __attribute__((vector_size(VECTOR_BYTES)));
typedef double LooseDoubles __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias));
enum { WIDE = 64 / REAL_BITS, WIDE_LANES = VECTOR_BYTES / 8 };

#if REAL_BITS == 32
typedef float HalfVector __attribute__((vector_size(VECTOR_BYTES / 2)));

INLINE void vector_widen(Doubles *wide, Vector x) {
    HalfVector half[WIDE];
    memcpy(half, &x, sizeof x);
    UNROLLED for (int i = 0; i < WIDE; i++) wide[i] = __builtin_convertvector(half[i], Doubles);
}

INLINE Vector vector_narrow(const Doubles *wide) {
    HalfVector half[WIDE];
    Vector x;
    UNROLLED for (int i = 0; i < WIDE; i++) half[i] = __builtin_convertvector(wide[i], HalfVector);
    memcpy(&x, half, sizeof x);
    return x;
}
#else
INLINE void vector_widen(Doubles *wide, Vector x) {
    wide[0] = x;
}

INLINE Vector vector_narrow(const Doubles *wide) {
    return wide[0];
}
#endif

/* Over the lanes, in their order. */
static inline double doubles_sum(const Doubles *wide) {
    double sum = 0;
    UNROLLED for (int i = 0; i < WIDE_LANES * WIDE; i++) sum += wide[i / WIDE_LANES][i % WIDE_LANES];
    return sum;
}

/* ---- exp -------------------------------------------------------------------------------------- */

/* x = n ln 2 + r with |r| <= ln 2 / 2; exp(x) = 2^n exp(r), exp(r) by its Taylor series, which at this degree errs
 * less than the rounding. n is found by adding EXP_ROUND: at that size the last bit of a REAL is worth 1, so the
 * sum's low bits are n, and with a bias in EXP_ROUND they are, moved up, the exponent of a power of two. That is
 * 2^(n - 1), and the series is that of 2 exp(r): so results reach up to infinity, and are 0 below twice the least
 * normal number. Errors up to 2 ulp. NaN stays NaN. */
#if REAL_BITS == 32
#define EXP_ROUND (0x1.8p23f + 126)
#define EXP_LOG2E 0x1.715476p0f
#define EXP_LN2_HIGH 0x1.62e4p-1f /* 15 bits: n times it is exact */
#define EXP_LN2_LOW 0x1.7f7d1cp-20f
#define EXP_LOWEST -87.33f /* n = -126: the power is 0 */
#define EXP_HIGHEST 89.0f
enum { EXP_DEGREE = 7, EXP_FRACTION = 23 };
#else
#define EXP_ROUND (0x1.8p52 + 1022)
#define EXP_LOG2E 0x1.71547652b82fep0
#define EXP_LN2_HIGH 0x1.62e42feep-1
#define EXP_LN2_LOW 0x1.a39ef35793c76p-33
#define EXP_LOWEST -708.39 /* n = -1022 */
#define EXP_HIGHEST 710.0
enum { EXP_DEGREE = 13, EXP_FRACTION = 52 };
#endif

/* Of several vectors (few, a constant), one step of all before the next: each step waits for the one before it, and
 * the processor looks only so far ahead. */
INLINE void vectors_exp(Vector *x, int vectors) {
    static const REAL factorial[] = {1,    1,     2,      6,       24,       120,       720,
                                     5040, 40320, 362880, 3628800, 39916800, 479001600, 6227020800};
    enum { MOST = 4 };
    Vector rounded[MOST], n[MOST], series[MOST];
    UNROLLED for (int v = 0; v < vectors; v++) x[v] =
        vector_max(vector_all(EXP_LOWEST), vector_min(vector_all(EXP_HIGHEST), x[v]));
    UNROLLED for (int v = 0; v < vectors; v++) rounded[v] = x[v] * EXP_LOG2E + EXP_ROUND;
    UNROLLED for (int v = 0; v < vectors; v++) n[v] = rounded[v] - EXP_ROUND;
    UNROLLED for (int v = 0; v < vectors; v++) x[v] -= n[v] * EXP_LN2_HIGH;
    UNROLLED for (int v = 0; v < vectors; v++) x[v] -= n[v] * EXP_LN2_LOW;
    UNROLLED for (int v = 0; v < vectors; v++) series[v] = vector_all(2 / factorial[EXP_DEGREE]);
    UNROLLED for (int i = EXP_DEGREE - 1; i >= 0; i--) {
        UNROLLED for (int v = 0; v < vectors; v++) series[v] = series[v] * x[v] + 2 / factorial[i];
    }
    UNROLLED for (int v = 0; v < vectors; v++) x[v] = series[v] * (Vector)((Words)rounded[v] << EXP_FRACTION);
}

static inline Vector vector_exp(Vector x) {
    vectors_exp(&x, 1);
    return x;
}

/* ---- Rows of tensors as REALs ----------------------------------------------------------------- */

#if REAL_BITS == 32
typedef uint16_t Halves __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef uint16_t LooseHalves __attribute__((vector_size(VECTOR_BYTES / 2), aligned(2), may_alias));
typedef int32_t Integers __attribute__((vector_size(VECTOR_BYTES)));

/* Halves to words and back, a row of instructions each: the compiler alone converts half a vector at a time, and masks
 * what it cuts off. halves_cut takes words that an int16_t could hold: packing saturates. */
#if VECTOR_BYTES == 32
static inline Words halves_widen(Halves h) {
    return (Words)_mm256_cvtepu16_epi32((__m128i)h);
}

static inline Halves halves_cut(Integers x) {
    __m256i whole = (__m256i)x;
    return (Halves)_mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
}
#else
static inline Words halves_widen(Halves h) {
    return __builtin_convertvector(h, Words);
}

static inline Halves halves_cut(Integers x) {
    return __builtin_convertvector(x, Halves);
}
#endif

static inline Vector vector_from_bf16(const uint16_t *p) {
    return (Vector)(halves_widen(*(const LooseHalves *)p) << 16);
}

/* As bf16_from_float, in the high halves; the low halves are of no value. */
static inline Words bf16_rounded(Vector v) {
    Words bits = (Words)v, number = (Words)(v == v);
    return (bits + (number & 0x8000u)) | (~number & 0x00400000u);
}

/* A shift that keeps the sign leaves what halves_cut can take. */
static inline void vector_to_bf16(uint16_t *p, Vector v) {
    *(LooseHalves *)p = halves_cut((Integers)bf16_rounded(v) >> 16);
}

static inline void values_widen(REAL *to, const uint16_t *from, int64_t count) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) vector_store(to + i, vector_from_bf16(from + i));
    for (; i < count; i++) to[i] = bf16_to_float(from[i]);
}

static inline void values_narrow(uint16_t *to, const REAL *from, int64_t count) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) vector_to_bf16(to + i, vector_load(from + i));
    for (; i < count; i++) to[i] = bf16_from_float(from[i]);
}

static inline bool type_fast(Type t) {
    return t == REAL_TYPE || t == BF16;
}
#else
/* No double copy is ever given bf16 data (type_fast). */
static inline void values_widen(REAL *to, const uint16_t *from, int64_t count) {
    for (int64_t i = 0; i < count; i++) to[i] = (REAL)bf16_to_float(from[i]);
}

static inline void values_narrow(uint16_t *to, const REAL *from, int64_t count) {
    for (int64_t i = 0; i < count; i++) to[i] = bf16_from_float((float)from[i]);
}

static inline bool type_fast(Type t) {
    return t == REAL_TYPE;
}
#endif

/* A row is the last dimension; rows are counted over all the others: head h of token t of [T, heads, d] is row t
 * heads + h. */
static inline int64_t row_width(Tensor t) {
    return t.dim[t.dims - 1];
}

/* ---- Vectors of tensors ----------------------------------------------------------------------- */

/* One element, whatever the type of the tensor. */
static inline REAL value_get(Tensor t, int64_t i) {
    if (t.type == REAL_TYPE) return ((const REAL *)t.data)[i];
    return (REAL)bf16_to_float(((const uint16_t *)t.data)[i]);
}

static inline void value_put(Tensor t, int64_t i, REAL x) {
    if (t.type == REAL_TYPE)
        ((REAL *)t.data)[i] = x;
    else
        ((uint16_t *)t.data)[i] = bf16_from_float((float)x);
}

/* A loop over a row goes in steps of LANES and hands each step the number of values that are left, `left`. Of a
 * last step that is not full, the lanes beyond are `other` (or 0) and are not stored; it is kept out of the loop's
 * way in a function. */
#define COLD __attribute__((noinline, cold, unused)) static

COLD Vector vector_get_last(Tensor t, int64_t i, int64_t left, Vector other) {
    for (int64_t lane = 0; lane < left; lane++) other[lane] = value_get(t, i + lane);
    return other;
}

COLD void vector_put_last(Tensor t, int64_t i, int64_t left, Vector v) {
    for (int64_t lane = 0; lane < left; lane++) value_put(t, i + lane, v[lane]);
}

#if REAL_BITS == 32
static inline Vector vector_get_or(Tensor t, int64_t i, int64_t left, Vector other) {
    if (left < LANES) return vector_get_last(t, i, left, other);
    if (t.type == REAL_TYPE) return vector_load((const REAL *)t.data + i);
    return vector_from_bf16((const uint16_t *)t.data + i);
}

static inline void vector_put(Tensor t, int64_t i, int64_t left, Vector v) {
    if (left < LANES)
        vector_put_last(t, i, left, v);
    else if (t.type == REAL_TYPE)
        vector_store((REAL *)t.data + i, v);
    else
        vector_to_bf16((uint16_t *)t.data + i, v);
}

/* As a tensor of type t would hold it. */
static inline Vector vector_rounded(Type t, Vector v) {
    return t == REAL_TYPE ? v : (Vector)(bf16_rounded(v) & 0xffff0000u);
}
#else
static inline Vector vector_get_or(Tensor t, int64_t i, int64_t left, Vector other) {
    return left < LANES ? vector_get_last(t, i, left, other) : vector_load((const REAL *)t.data + i);
}

static inline void vector_put(Tensor t, int64_t i, int64_t left, Vector v) {
    if (left < LANES)
        vector_put_last(t, i, left, v);
    else
        vector_store((REAL *)t.data + i, v);
}

static inline Vector vector_rounded(Type t, Vector v) {
    (void)t;
    return v;
}
#endif

static inline Vector vector_get(Tensor t, int64_t i, int64_t left) {
    return vector_get_or(t, i, left, (Vector){0});
}

#endif
