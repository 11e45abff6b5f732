/* Matrix products on one thread: c = a b, or added to c.
 *
 * A transposed matrix is the same memory with its strides exchanged, so that x w^T, dy w and dy^T x are one code. bf16
 * operands are widened on their way in, or, both of them, multiplied in pairs where the processor does that; sums are
 * kept in REAL; a bf16 result is rounded once, at the end.
 *
 * Each element is summed over k in blocks of GEMM_DEPTH words, in order, wherever it lies: its value does not depend on
 * m, n, its place, the split into tasks, or which operand is packed. */
#ifndef MOP_FAST_GEMM_H
#define MOP_FAST_GEMM_H

#include "ops/cpu/fast/fast.h"

/* Element (i, j) of a matrix lies at data[i row + j column]; row or column is 1. Types: REAL or, for float, BF16. */
typedef struct {
    const void *data;
    Type type;
    int64_t row, column; /* strides in elements */
} Operand;

typedef struct {
    void *data;
    Type type;
    int64_t row, column;
    bool add; /* to what is there */
} Result;

/* c[m,n] (+)= a[m,k] b[k,n] */
typedef struct {
    Result c;
    Operand a, b;
    int64_t m, n, k;
} Product;

/* The kernel's tile of c lives in registers: TILE_ROWS x TILE_COLUMNS. */
#if VECTOR_BYTES == 64
enum { TILE_ROWS = 12 };
#else
enum { TILE_ROWS = 6 };
#endif
#if defined(__AVX512BF16__) && REAL_BITS == 32
#define PAIRED 1 /* there are dot products of bf16 pairs */
#else
#define PAIRED 0
#endif
enum {
    TILE_VECTORS = 2,
    TILE_COLUMNS = TILE_VECTORS * LANES,
    GEMM_DEPTH = 256,                /* words of a block: a panel and a tile's rows of a fit the first cache together */
    GEMM_COLUMNS = 8192 / REAL_BITS, /* of a block so deep: packed, it is half of a small second cache */
    GEMM_COLUMNS_MOST = 16 * GEMM_COLUMNS, /* of one that is less deep */
    GEMM_ROWS = 384,                       /* of c, when sums wait in scratch for the next block of k */
    LEFT_STRIDE = GEMM_DEPTH + LANES,      /* not a power of two: rows would fall on each other in the first cache */
    LEFT_STRIP = TILE_ROWS * LEFT_STRIDE,
    LEFT_STRIPS = 48 / TILE_ROWS, /* of a, copied at a time: whole cache lines */
    GEMM_SCRATCH = (GEMM_DEPTH + GEMM_ROWS + TILE_ROWS) * GEMM_COLUMNS + LEFT_STRIPS * LEFT_STRIP, /* REALs */
};

static inline Operand operand_transposed(Operand o) {
    return (Operand){o.data, o.type, o.column, o.row};
}

static inline int64_t real_bytes(Type t) {
    return t == BF16 ? 2 : (int64_t)sizeof(REAL);
}

static inline const void *element_at(Operand o, int64_t i, int64_t j) {
    return (const char *)o.data + (i * o.row + j * o.column) * real_bytes(o.type);
}

static inline void *result_at(Result c, int64_t i, int64_t j) {
    return (char *)c.data + (i * c.row + j * c.column) * real_bytes(c.type);
}

/* Of a block of b: where k is short it is the wider, so that rows of c are written in long runs. */
static inline int64_t block_columns(int64_t k) {
    return k >= GEMM_DEPTH ? GEMM_COLUMNS : min64(GEMM_COLUMNS_MOST, GEMM_COLUMNS * (GEMM_DEPTH / max64(k, 1)));
}

/* Rows [i, i + rows) and columns [j, j + columns) of c, summed over [k, k + depth). */
static inline Product product_part(const Product *p, int64_t i, int64_t j, int64_t k, int64_t rows, int64_t columns,
                                   int64_t depth) {
    Product part = *p;
    part.c.data = result_at(p->c, i, j);
    part.a.data = element_at(p->a, i, k);
    part.b.data = element_at(p->b, k, j);
    part.m = rows;
    part.n = columns;
    part.k = depth;
    return part;
}

/* The same product, c^T = b^T a^T, where that spares packing: of two operands that run along k the smaller should be
 * the one on the right, which is transposed while it is packed. */
Product KERNEL(gemm_turn)(Product p);

/* scratch: GEMM_SCRATCH REALs, 64-byte aligned. */
void KERNEL(gemm)(const Product *p, REAL *scratch);

#endif
