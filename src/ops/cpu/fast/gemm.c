/* c = a b in three steps: b is packed, block by block, into panels that the kernel reads in sequence; a is read where
 * it lies, or copied some strips at a time where it must be widened or lies across; one kernel keeps a tile of c in
 * registers.
 *
 *        right: panels of TILE_COLUMNS            for each block of k (GEMM_DEPTH)
 *        +------+------+------+                       pack b
 *   k    |      |      |      |                       for each TILE_ROWS rows of a
 *        |panel |panel |panel |                           for each panel: the kernel
 *        +------+------+------+
 *   left                                      A tile reads its rows of a (first cache) against a panel of b (second
 *   +--+ +------+------+------+               cache): TILE_ROWS + TILE_VECTORS loads for TILE_ROWS * TILE_VECTORS
 *   |  | | tile |      |      |  TILE_ROWS    multiply-adds.
 *   +--+ +------+------+------+
 *
 * What runs along k are words: elements as REALs, or, where both operands are bf16 and the processor has dot products
 * of pairs (avx512bf16), two neighbours along k side by side. A pair is as wide as a float, so that panels, squares,
 * strips and tiles are one code: only the multiplication and the way from elements to words know the difference. The
 * dot product rounds as the processor likes (the sum of two products may be rounded between them) and takes denormals
 * for 0: its results are as good as those of widened operands, not the same.
 *
 * Results that are not rows of REALs (bf16, or turned) are summed in scratch and brought home after the last block of
 * k. Operands are often larger than the caches: while the kernel works it asks for the memory that is packed next. */
#include "ops/cpu/fast/gemm.h"

/* ---- Words ------------------------------------------------------------------------------------ */

typedef enum {
    WORD_REAL, /* an element */
    WORD_WIDE, /* a bf16 element, widened */
    WORD_PAIR, /* two bf16 elements, the first one low; beyond an odd k 0 */
} WordKind;

typedef Word LooseWord __attribute__((aligned(2), may_alias)); /* pairs are read where they lie */

static bool is_paired(const Product *p) {
    return PAIRED && p->a.type == BF16 && p->b.type == BF16;
}

/* How the words of one operand are made. */
static WordKind word_kind(Operand o, bool paired) {
    return paired ? WORD_PAIR : o.type == REAL_TYPE ? WORD_REAL : WORD_WIDE;
}

static int64_t word_count(int64_t k, bool paired) {
    return paired ? (k + 1) / 2 : k;
}

static inline Words words_all(Word x) {
    return x - (Words){0};
}

#if PAIRED
/* Lane by lane sum + a b, the dot product of two pairs. */
INLINE Vector pairs_add(Vector sum, Vector a, Vector b) {
    return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
#else
INLINE Vector pairs_add(Vector sum, Vector a, Vector b) {
    (void)a, (void)b;
    return sum; /* is_paired is false */
}
#endif

INLINE const void *element_of(const void *row, int64_t i, WordKind kind) {
    return (const char *)row + (size_t)i * (kind == WORD_REAL ? sizeof(REAL) : 2);
}

enum { PACKED_COLUMNS = 4 * TILE_COLUMNS }; /* of the right side, packed at a time */

/* The second of two rows of pairs, where k ends with the first. */
static const uint16_t no_row[PACKED_COLUMNS];

#if REAL_BITS == 32
INLINE REAL word_load(const void *p, const uint16_t *next, WordKind kind) {
    if (kind == WORD_REAL) return *(const REAL *)p;
    if (kind == WORD_WIDE) return bf16_to_float(*(const uint16_t *)p);
    Word pair = *(const uint16_t *)p | (Word)*next << 16;
    REAL word;
    memcpy(&word, &pair, sizeof word);
    return word;
}

/* LANES words from contiguous elements; of pairs the second elements are at `next`. */
INLINE Vector words_load(const void *p, const uint16_t *next, WordKind kind) {
    if (kind == WORD_REAL) return vector_load(p);
    Vector first = vector_from_bf16(p);
    if (kind == WORD_WIDE) return first;
    return (Vector)((Words)first >> 16 | (Words)vector_from_bf16(next));
}
#else
INLINE REAL word_load(const void *p, const uint16_t *next, WordKind kind) {
    (void)next, (void)kind;
    return *(const REAL *)p;
}

INLINE Vector words_load(const void *p, const uint16_t *next, WordKind kind) {
    (void)next, (void)kind;
    return vector_load(p);
}
#endif

/* LANES words from elements that are contiguous along k. */
INLINE Vector words_load_along(const void *p, WordKind kind) {
    if (kind == WORD_WIDE) return words_load(p, NULL, kind);
    Vector v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* Words across k take their first elements from one row of o and their second from the next; k rows in all. */
INLINE const uint16_t *second_row(Operand o, int64_t p, int64_t k, WordKind kind) {
    return kind == WORD_PAIR && 2 * p + 1 < k ? element_at(o, 2 * p + 1, 0) : no_row;
}

/* ---- The kernel ------------------------------------------------------------------------------- */

/* What the kernel asks the memory for while it works: two cache lines, neighbours or, of pairs, `second` bytes apart;
 * `step` bytes further at each step of depth. */
typedef struct {
    const char *data;
    int64_t second, step;
} Ahead;

/* One tile: c[rows, columns] (+)= left right over `depth` words. */
typedef struct {
    int64_t depth;
    bool paired;
    const LooseWord *left; /* word (i, p) at left[i row + p step] */
    int64_t left_row, left_step;
    const REAL *right; /* row p at right[p right_step] */
    int64_t right_step;
    REAL *c;
    int64_t c_row;
    bool add;
    Ahead ahead;
} Tile;

/* Rows are reached from one pointer in three: the other addresses are base + row and base + 2 row, which the processor
 * computes within the load, so that all pointers stay in registers. */
INLINE void tile_product(const Tile *t, const int rows, const int vectors, const bool paired) {
    Vector sum[TILE_ROWS][TILE_VECTORS];
    UNROLLED for (int i = 0; i < rows; i++) {
        UNROLLED for (int v = 0; v < vectors; v++) sum[i][v] = vector_all(0);
    }
    UNROLLED for (int i = 0; i < rows; i++) {
        UNROLLED for (int v = 0; v < vectors; v++) __builtin_prefetch(t->c + i * t->c_row + v * LANES, 1);
    }
    const int64_t row = t->left_row;
    const LooseWord *left[TILE_ROWS / 3];
    UNROLLED for (int i = 0; i < TILE_ROWS / 3; i++) left[i] = t->left + 3 * i * row;
    const REAL *right = t->right;
    const char *ahead = t->ahead.data;
    const int64_t second = paired ? t->ahead.second : 64;
    for (int64_t p = t->depth; p > 0; p--) {
        __builtin_prefetch(ahead, 0, 2);
        __builtin_prefetch(ahead + second, 0, 2);
        ahead += t->ahead.step;
        Vector b[TILE_VECTORS];
        UNROLLED for (int v = 0; v < vectors; v++) b[v] = vector_load(right + v * LANES);
        UNROLLED for (int i = 0; i < rows; i++) {
            Vector a = (Vector)words_all(left[i / 3][i % 3 * row]);
            UNROLLED for (int v = 0; v < vectors; v++) {
                sum[i][v] = paired ? pairs_add(sum[i][v], a, b[v]) : sum[i][v] + a * b[v];
            }
        }
        UNROLLED for (int i = 0; i < TILE_ROWS / 3; i++) left[i] += t->left_step;
        right += t->right_step;
    }
    if (t->add) { /* all loads, then all stores: rows a multiple of 4 KiB apart look alike to a load behind a store */
        UNROLLED for (int i = 0; i < rows; i++) {
            UNROLLED for (int v = 0; v < vectors; v++) sum[i][v] += vector_load(t->c + i * t->c_row + v * LANES);
        }
    }
    UNROLLED for (int i = 0; i < rows; i++) {
        UNROLLED for (int v = 0; v < vectors; v++) vector_store(t->c + i * t->c_row + v * LANES, sum[i][v]);
    }
}

typedef void (*TileFunction)(const Tile *t);

/* clang-format off */
#define TILE(rows)                                                                                                     \
    static void tile_##rows##_1(const Tile *t) { tile_product(t, rows, 1, false); }                                    \
    static void tile_##rows##_2(const Tile *t) { tile_product(t, rows, 2, false); }                                    \
    static void pairs_##rows##_1(const Tile *t) { tile_product(t, rows, 1, PAIRED); }                                  \
    static void pairs_##rows##_2(const Tile *t) { tile_product(t, rows, 2, PAIRED); }
#define TILE_ENTRY(rows) {{tile_##rows##_1, tile_##rows##_2}, {pairs_##rows##_1, pairs_##rows##_2}}

TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6)
#if VECTOR_BYTES == 64
TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12)
#endif

static const TileFunction tile_functions[TILE_ROWS][2][TILE_VECTORS] = {
    TILE_ENTRY(1), TILE_ENTRY(2), TILE_ENTRY(3), TILE_ENTRY(4), TILE_ENTRY(5), TILE_ENTRY(6),
#if VECTOR_BYTES == 64
    TILE_ENTRY(7), TILE_ENTRY(8), TILE_ENTRY(9), TILE_ENTRY(10), TILE_ENTRY(11), TILE_ENTRY(12),
#endif
};
/* clang-format on */

/* `columns` of c may end within a vector; the tile is then made beside and copied. */
static void tile_run(Tile t, int64_t rows, int64_t columns) {
    int64_t vectors = ceil_div(columns, LANES);
    TileFunction run = tile_functions[rows - 1][t.paired][vectors - 1];
    if (columns == vectors * LANES) {
        run(&t);
        return;
    }
    REAL beside[TILE_ROWS * TILE_COLUMNS] __attribute__((aligned(VECTOR_BYTES)));
    REAL *c = t.c;
    int64_t c_row = t.c_row;
    bool add = t.add;
    t.c = beside;
    t.c_row = TILE_COLUMNS;
    t.add = false;
    run(&t);
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < columns; j++) {
            REAL x = beside[i * TILE_COLUMNS + j];
            c[i * c_row + j] = add ? c[i * c_row + j] + x : x;
        }
    }
}

/* ---- Packing the right side ------------------------------------------------------------------- */

/* Panel q: right[q panel + p TILE_COLUMNS + j] = word p of column q TILE_COLUMNS + j, zeros beyond `columns`. Here rows
 * of b are contiguous, and are read some panels long: whole cache lines, and few pages at a time. */
INLINE void pack_rows(REAL *right, Operand b, int64_t panel, int64_t columns, int64_t k, const WordKind kind) {
    const int64_t depth = word_count(k, kind == WORD_PAIR), step = kind == WORD_PAIR ? 2 : 1;
    const int64_t whole = columns / TILE_COLUMNS * TILE_COLUMNS, end = ceil_div(columns, TILE_COLUMNS) * TILE_COLUMNS;
    for (int64_t p = 0; p < depth; p++, right += TILE_COLUMNS) {
        const void *row = element_at(b, p * step, 0);
        const uint16_t *next = second_row(b, p, k, kind);
        REAL *to = right;
        for (int64_t j = 0; j < whole; j += TILE_COLUMNS, to += panel) {
            UNROLLED for (int v = 0; v < TILE_COLUMNS; v += LANES) {
                vector_store(to + v, words_load(element_of(row, j + v, kind), next + j + v, kind));
            }
        }
        for (int64_t j = whole; j < end; j++, to++) {
            *to = j < columns ? word_load(element_of(row, j, kind), next + j, kind) : 0;
        }
    }
}

/* Columns of b are contiguous: squares of LANES are transposed. */
INLINE void pack_columns(REAL *panel, Operand b, int64_t columns, int64_t k, const WordKind kind) {
    const int64_t depth = word_count(k, kind == WORD_PAIR), step = kind == WORD_PAIR ? 2 : 1, whole = k / step;
    for (int64_t j = 0; j < TILE_COLUMNS; j += LANES) {
        int64_t p = 0;
        for (; j + LANES <= columns && p + LANES <= whole; p += LANES) {
            Vector square[LANES];
            UNROLLED for (int i = 0; i < LANES; i++) {
                square[i] = words_load_along(element_at(b, p * step, j + i), kind);
            }
            transpose(square);
            UNROLLED for (int i = 0; i < LANES; i++) vector_store(panel + (p + i) * TILE_COLUMNS + j, square[i]);
        }
        for (; p < depth; p++) {
            for (int64_t i = j; i < j + LANES; i++) {
                const uint16_t *next = p < whole ? element_at(b, p * step + 1, i) : no_row;
                panel[p * TILE_COLUMNS + i] = i < columns ? word_load(element_at(b, p * step, i), next, kind) : 0;
            }
        }
    }
}

INLINE void pack(REAL *right, Operand b, int64_t n, int64_t k, const WordKind kind) {
    MUST(b.row == 1 || b.column == 1);
    const int64_t panel = TILE_COLUMNS * word_count(k, kind == WORD_PAIR);
    const int64_t width = b.row == 1 ? TILE_COLUMNS : PACKED_COLUMNS;
    for (int64_t j = 0; j < n; j += width, right += width / TILE_COLUMNS * panel) {
        Operand part = {element_at(b, 0, j), b.type, b.row, b.column};
        int64_t columns = min64(width, n - j);
        if (b.row == 1) {
            pack_columns(right, part, columns, k, kind);
        } else {
            pack_rows(right, part, panel, columns, k, kind);
        }
    }
}

/* ---- The left side ---------------------------------------------------------------------------- */

/* Strips of equal height: strip s of a block is rows strip_row(s) .. strip_row(s + 1) - 1. */
typedef struct {
    int64_t count, rows;
} Strips;

static Strips strips_of(int64_t rows) {
    return (Strips){ceil_div(rows, TILE_ROWS), rows};
}

static int64_t strip_row(Strips s, int64_t strip) {
    return strip * (s.rows / s.count) + min64(strip, s.rows % s.count);
}

/* The words of some strips of a: where they lie, or copied, which is done for LEFT_STRIPS at once so that rows of a^T
 * are read in whole cache lines. */
typedef struct {
    const void *data;
    int64_t row, step; /* in words */
    bool copied;       /* strip i of the group begins at i LEFT_STRIP */
} Left;

/* Word p of row i of a strip goes to p TILE_ROWS + i. Vectors may be longer than a strip is high: what is too much is
 * overwritten by the next word, or lies behind the last; near the end of a row of a^T there is not as much to read. */
INLINE Left left_copy_across(REAL *buffer, Operand a, Strips strips, int64_t first, int64_t end, int64_t k,
                             const WordKind kind) {
    enum { READ = (TILE_ROWS + LANES - 1) / LANES * LANES };
    const int64_t depth = word_count(k, kind == WORD_PAIR), step = kind == WORD_PAIR ? 2 : 1;
    const Operand across = operand_transposed(a);
    for (int64_t p = 0; p < depth; p++) {
        const void *from = element_at(across, p * step, 0);
        const uint16_t *next = second_row(across, p, k, kind);
        REAL *to = buffer + p * TILE_ROWS;
        for (int64_t s = first; s < end; s++, to += LEFT_STRIP) {
            int64_t row = strip_row(strips, s), rows = strip_row(strips, s + 1) - row;
            const uint16_t *second = next == no_row ? no_row : next + row;
            if (row + READ <= strips.rows) {
                UNROLLED for (int i = 0; i < READ; i += LANES) {
                    vector_store(to + i, words_load(element_of(from, row + i, kind), second + i, kind));
                }
                continue;
            }
            for (int64_t i = 0; i < rows; i++) to[i] = word_load(element_of(from, row + i, kind), second + i, kind);
        }
    }
    return (Left){buffer, 1, TILE_ROWS, true};
}

/* Rows that lie along k, LEFT_STRIDE apart; pairs end with a zero where k is odd. */
static void left_copy_row(REAL *to, const void *from, int64_t k, WordKind kind) {
    if (kind == WORD_WIDE) {
        values_widen(to, from, k);
        return;
    }
    uint16_t *pairs = (uint16_t *)to;
    memcpy(pairs, from, (size_t)k * sizeof *pairs);
    if (k % 2 == 1) pairs[k] = 0;
}

static Left left_copy_rows(REAL *buffer, Operand a, Strips strips, int64_t first, int64_t end, int64_t k,
                           WordKind kind) {
    REAL *to = buffer;
    for (int64_t s = first; s < end; s++, to += LEFT_STRIP) {
        int64_t row = strip_row(strips, s), rows = strip_row(strips, s + 1) - row;
        for (int64_t i = 0; i < rows; i++) left_copy_row(to + i * LEFT_STRIDE, element_at(a, row + i, 0), k, kind);
    }
    return (Left){buffer, LEFT_STRIDE, 1, true};
}

/* Strips [first, end) of a. */
static Left left_get(REAL *buffer, Operand a, Strips strips, int64_t first, int64_t end, int64_t k, bool paired) {
    MUST(a.row == 1 || a.column == 1);
    const WordKind kind = word_kind(a, paired);
    if (a.column == 1) {
        bool pairs_in_place = kind == WORD_PAIR && k % 2 == 0 && a.row % 2 == 0;
        if (kind == WORD_REAL) return (Left){a.data, a.row, 1, false};
        if (pairs_in_place) return (Left){a.data, a.row / 2, 1, false};
        return left_copy_rows(buffer, a, strips, first, end, k, kind);
    }
    switch (kind) { /* for each kind a copy of the code */
    case WORD_REAL: return left_copy_across(buffer, a, strips, first, end, k, WORD_REAL);
    case WORD_WIDE: return left_copy_across(buffer, a, strips, first, end, k, WORD_WIDE);
    case WORD_PAIR: break;
    }
    return left_copy_across(buffer, a, strips, first, end, k, WORD_PAIR);
}

/* ---- Bringing sums home ----------------------------------------------------------------------- */

/* `count` sums to contiguous elements. */
INLINE void values_home(void *home, Type type, const REAL *sum, int64_t count, bool add) {
    if (type == REAL_TYPE) {
        REAL *c = home;
        for (int64_t j = 0; j < count; j++) c[j] = add ? c[j] + sum[j] : sum[j];
        return;
    }
    if (!add) {
        values_narrow(home, sum, count);
        return;
    }
    REAL total[LANES];
    for (int64_t j = 0; j < count; j += LANES) {
        int64_t part = min64(LANES, count - j);
        uint16_t *c = (uint16_t *)home + j;
        values_widen(total, c, part);
        for (int64_t i = 0; i < part; i++) total[i] += sum[j + i];
        values_narrow(c, total, part);
    }
}

/* Sums of a strip of at most TILE_ROWS rows, `stride` apart, to a c whose columns are contiguous: by squares. */
static void sums_home_across(Result c, const REAL *sum, int64_t stride, int64_t rows, int64_t columns) {
    enum { SQUARES = (TILE_ROWS + LANES - 1) / LANES };
    REAL across[LANES][SQUARES * LANES] __attribute__((aligned(VECTOR_BYTES)));
    for (int64_t j = 0; j < columns; j += LANES) {
        for (int s = 0; s < SQUARES; s++) {
            Vector square[LANES];
            UNROLLED for (int i = 0; i < LANES; i++) {
                bool inside = s * LANES + i < TILE_ROWS; /* sum has TILE_ROWS rows, whatever `rows` is */
                square[i] = inside ? vector_load(sum + (s * LANES + i) * stride + j) : vector_all(0);
            }
            transpose(square);
            UNROLLED for (int i = 0; i < LANES; i++) vector_store(across[i] + s * LANES, square[i]);
        }
        for (int64_t i = 0; i < min64(LANES, columns - j); i++) {
            void *home = result_at(c, 0, j + i);
            if (rows == TILE_ROWS) {
                values_home(home, c.type, across[i], TILE_ROWS, c.add);
            } else {
                values_home(home, c.type, across[i], rows, c.add);
            }
        }
    }
}

static void sums_home(Result c, const REAL *sum, int64_t stride, int64_t rows, int64_t columns) {
    if (c.column != 1) {
        MUST(c.row == 1);
        sums_home_across(c, sum, stride, rows, columns);
        return;
    }
    for (int64_t i = 0; i < rows; i++) values_home(result_at(c, i, 0), c.type, sum + i * stride, columns, c.add);
}

/* ---- The product ------------------------------------------------------------------------------ */

/* Panel q of the right side begins at data + q panel; its rows are `step` apart. */
typedef struct {
    const REAL *data;
    int64_t panel, step;
} Right;

static bool is_direct(Result c) {
    return c.type == REAL_TYPE && c.column == 1;
}

/* Packed into `buffer`; but rows of REALs that few tiles will read are read where they lie. */
static Right right_get(REAL *buffer, const Product *p) {
    bool vectors = p->b.type == REAL_TYPE && p->b.column == 1 && p->n % LANES == 0, paired = is_paired(p);
    if (vectors && p->m <= 2 * TILE_ROWS) return (Right){p->b.data, TILE_COLUMNS, p->b.row};
    switch (word_kind(p->b, paired)) { /* for each kind a copy of the code */
    case WORD_REAL: pack(buffer, p->b, p->n, p->k, WORD_REAL); break;
    case WORD_WIDE: pack(buffer, p->b, p->n, p->k, WORD_WIDE); break;
    case WORD_PAIR: pack(buffer, p->b, p->n, p->k, WORD_PAIR); break;
    }
    return (Right){buffer, TILE_COLUMNS * word_count(p->k, paired), TILE_COLUMNS};
}

/* Asks the memory for rows [first, end). */
static void rows_ask(Operand o, int64_t first, int64_t end, int64_t width) {
    const int64_t line = 64 / real_bytes(o.type);
    for (int64_t i = first; i < end; i++) {
        for (int64_t j = 0; j < width; j += line) __builtin_prefetch(element_at(o, i, j));
    }
}

/* A block is one stretch of k (all of its product's k). Sums that cannot go straight home wait in `sums`, rows
 * `sums_row` apart: each strip in rows of its own until the last block; where the first is the last, all in the same
 * rows. */
typedef struct {
    bool first, last;
    REAL *sums, *left;
    int64_t sums_row;
    Product next; /* the block after this one, or nothing */
} Phase;

/* What the kernel asks for while it makes the tiles of a group of strips: of what lies across k, columns two cache
 * lines wide, of pairs one line of two rows. First those of a for the next group, then, going on through the groups,
 * those of b for the next block; then only what is near. */
typedef struct {
    Operand a, b; /* begin with the first column that nobody has asked for */
    int64_t a_columns, b_columns;
    bool paired;
    const void *near;
} Asking;

/* Columns of o as wide as one tile asks for; none where o lies along k. */
static int64_t asked_columns(Operand o, int64_t width, bool paired) {
    return o.column == 1 ? ceil_div(width * real_bytes(o.type), paired ? 64 : 128) : 0;
}

static Ahead column_ask(Operand *o, bool paired) {
    int64_t row = real_bytes(o->type) * o->row;
    const char *data = o->data;
    o->data = data + (paired ? 64 : 128);
    return paired ? (Ahead){data, row, 2 * row} : (Ahead){data, 64, row};
}

static Ahead ask(Asking *q) {
    if (q->a_columns > 0) {
        q->a_columns--;
        return column_ask(&q->a, q->paired);
    }
    if (q->b_columns > 0) {
        q->b_columns--;
        return column_ask(&q->b, q->paired);
    }
    return (Ahead){q->near, 0, 0};
}

/* Before a group of strips that ends at `end`: what the next group copies of a, here or in the next block. */
static void asking_group(Asking *q, const Product *p, const Product *next, Strips strips, int64_t end) {
    const Product *of = end < strips.count ? p : next;
    int64_t row = of == p ? strip_row(strips, end) : 0, rows = min64(of->m - row, LEFT_STRIPS * TILE_ROWS);
    q->a_columns = asked_columns(operand_transposed(of->a), rows, q->paired);
    if (q->a_columns == 0) return;
    q->a = operand_transposed(of->a);
    q->a.data = element_at(q->a, 0, row);
}

/* Strip `strip` of a block, which is strip `place` of its group, to `c`, which are rows of REALs. */
static void strip_run(const Product *p, Right right, Left left, Strips strips, int64_t strip, int64_t place, REAL *c,
                      int64_t c_row, bool add, Asking *asking) {
    const bool paired = is_paired(p);
    const int64_t row = strip_row(strips, strip), rows = strip_row(strips, strip + 1) - row;
    const int64_t offset = left.copied ? place * LEFT_STRIP : row * left.row;
    Tile t = {.depth = word_count(p->k, paired),
              .paired = paired,
              .left = (const LooseWord *)left.data + offset,
              .left_row = left.row,
              .left_step = left.step,
              .right_step = right.step,
              .c_row = c_row,
              .add = add};
    /* Of what lies along k, the rows of the strip that will stand where this one stands. */
    int64_t panels = ceil_div(p->n, TILE_COLUMNS), next = strip + (left.copied ? LEFT_STRIPS : 1);
    int64_t ask_row = p->a.column == 1 && next < strips.count ? strip_row(strips, next) : p->m;
    int64_t ask_end = min64(ask_row + TILE_ROWS, p->m), ask_share = ceil_div(TILE_ROWS, panels);
    for (int64_t j = 0; j < p->n; j += TILE_COLUMNS, ask_row += ask_share) {
        rows_ask(p->a, ask_row, min64(ask_row + ask_share, ask_end), p->k);
        t.right = right.data + j / TILE_COLUMNS * right.panel;
        t.c = c + j;
        t.ahead = ask(asking);
        tile_run(t, rows, min64(TILE_COLUMNS, p->n - j));
    }
}

static void block_run(const Product *p, Right right, const Phase *phase) {
    const bool direct = is_direct(p->c), keep = !(phase->first && phase->last), paired = is_paired(p);
    const Strips strips = strips_of(p->m);
    Asking asking = {.b = phase->next.b,
                     .b_columns = asked_columns(phase->next.b, phase->next.n, paired),
                     .paired = paired,
                     .near = right.data};
    Left left = {0};
    for (int64_t s = 0; s < strips.count; s++) {
        int64_t place = s % LEFT_STRIPS, row = strip_row(strips, s), rows = strip_row(strips, s + 1) - row;
        if (place == 0) {
            int64_t end = min64(s + LEFT_STRIPS, strips.count);
            left = left_get(phase->left, p->a, strips, s, end, p->k, paired);
            asking_group(&asking, p, &phase->next, strips, end);
        }
        if (direct) {
            REAL *c = result_at(p->c, row, 0);
            strip_run(p, right, left, strips, s, place, c, p->c.row, p->c.add || !phase->first, &asking);
            continue;
        }
        REAL *sums = phase->sums + (keep ? row * phase->sums_row : 0);
        strip_run(p, right, left, strips, s, place, sums, phase->sums_row, !phase->first, &asking);
        if (phase->last) {
            Result home = p->c;
            home.data = result_at(p->c, row, 0);
            sums_home(home, sums, phase->sums_row, rows, p->n);
        }
    }
}

/* GEMM_DEPTH words, in elements. */
static int64_t block_depth(const Product *p) {
    return is_paired(p) ? 2 * GEMM_DEPTH : GEMM_DEPTH;
}

/* The block at (i, j, k), as large as blocks are; empty beyond the end. */
static Product block_at(const Product *p, int64_t i, int64_t j, int64_t k, int64_t height) {
    if (j >= p->n) return (Product){0};
    int64_t rows = min64(height, p->m - i), columns = min64(block_columns(p->k), p->n - j);
    return product_part(p, i, j, k, rows, columns, min64(block_depth(p), p->k - k));
}

void KERNEL(gemm)(const Product *p, REAL *scratch) {
    REAL *right = scratch, *sums = right + GEMM_DEPTH * GEMM_COLUMNS;
    REAL *left = sums + (GEMM_ROWS + TILE_ROWS) * GEMM_COLUMNS;
    const int64_t columns = block_columns(p->k);
    int64_t height = is_direct(p->c) || p->k <= block_depth(p) ? p->m : GEMM_ROWS;
    for (int64_t j = 0; j < p->n; j += columns) {
        for (int64_t i = 0; i < p->m; i += height) {
            int64_t k = 0;
            do { /* once for k = 0, too: the sum of nothing is 0 */
                Product block = block_at(p, i, j, k, height);
                Phase phase = {
                    .first = k == 0, .last = k + block.k == p->k, .sums = sums, .left = left, .sums_row = columns};
                k += block.k;
                phase.next = phase.last ? block_at(p, i, j + columns, 0, height) : block_at(p, i, j, k, height);
                block_run(&block, right_get(right, &block), &phase);
            } while (k < p->k);
        }
    }
}

Product KERNEL(gemm_turn)(Product p) {
    bool along_k = p.a.column == 1 && p.b.row == 1;
    if (!along_k || p.m >= p.n) return p;
    Product turned = p;
    turned.a = operand_transposed(p.b);
    turned.b = operand_transposed(p.a);
    turned.c.row = p.c.column;
    turned.c.column = p.c.row;
    turned.m = p.n;
    turned.n = p.m;
    return turned;
}
