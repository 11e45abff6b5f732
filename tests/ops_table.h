/* Every op as rows of one table: shapes (odd, prime, empty, large enough for several threads), how to make
 * its arguments, its forward and its backward. test_ops.c runs each row in several modes: against the
 * definition, against finite differences, within guard words, on any number of threads.
 *
 * A Trial is one row on one device in one type. Inputs x and gradients dy of outputs are random; y and dx
 * are written, and begin as random numbers too, so that an op that forgets to write, or to add, shows. With
 * `dy[i]` the gradient of the loss L = sum dy y, dx[i] is that of L by x[i]. */
#ifndef MOP_OPS_TABLE_H
#define MOP_OPS_TABLE_H

#include "ops/kernels.h"
#include "testing.h"
#include <math.h>

enum { MOST_SLOTS = 12, MOST_NUMBERS = 8, MOST_EXPERTS = 8 };

typedef enum {
    ADDED = 1,   /* the op adds to what was there */
    EXACT = 2,   /* defined to the bit in every type */
    ROUNDED = 4, /* of the sum type, but rounded to the real type */
} SlotFlag;

typedef struct {
    Tensor tensor, initial;
    int flags;
} Slot;

typedef struct Case Case;

typedef struct {
    const Case *row;
    Device *device;
    Stream *stream;
    Type real, sum;
    const int64_t *n; /* the row's numbers */
    Memory memory;
    uint64_t draws;
    Slot x[MOST_SLOTS], y[MOST_SLOTS], dy[MOST_SLOTS], dx[MOST_SLOTS];
} Trial;

struct Case {
    const char *name;
    int64_t n[MOST_NUMBERS];
    void (*make)(Trial *t);
    void (*forward)(Trial *t);
    void (*backward)(Trial *t); /* NULL: no gradient */
    int64_t rows[MOST_EXPERTS]; /* of experts */
    double cancelled;           /* size of terms of which hardly anything is left, and that set the error */
};

/* ---- Making arguments ------------------------------------------------------------------------- */

/* A slot of normal numbers, or of zeros where the type is an integer's. */
static Tensor make(Trial *t, Slot *slot, int flags, Type type, int dims, const int64_t *dim) {
    slot->flags = flags;
    slot->tensor = memory_tensor(&t->memory, type, dims, dim);
    t->draws++;
    fill_value(slot->tensor, 0);
    if (type == FP32 || type == BF16 || type == FP64) fill_normal(slot->tensor, t->draws);
    return slot->tensor;
}

static Tensor make_integers(Trial *t, Slot *slot, int64_t least, int64_t most, int dims, const int64_t *dim) {
    Tensor made = make(t, slot, EXACT, INT32, dims, dim);
    fill_integers(made, t->draws, least, most);
    return made;
}

static Tensor make_value(Trial *t, Slot *slot, int flags, double value) {
    Tensor made = make(t, slot, flags, FP64, DIM(1));
    tensor_put(made, 0, value);
    return made;
}

/* dx[i], as x[i] is and in its own type or, for weights, in the sum type. */
static void make_gradient(Trial *t, int i, int flags, Type type) {
    Tensor x = t->x[i].tensor;
    make(t, &t->dx[i], flags, type, x.dims, x.dim);
}

static void make_dy(Trial *t, int i, Type type) {
    Tensor y = t->y[i].tensor;
    make(t, &t->dy[i], 0, type, y.dims, y.dim);
}

/* first and last, whole numbers from 0 to `most`, become bounds that never fall, the first not above the last: they
 * rise by uneven steps, far apart in the middle and equal here and there; half way come an empty stretch and a leap.
 * */
static void fill_sight(Tensor first, Tensor last, int64_t most) {
    int64_t n = tensor_count(first), low = 0, high = 0;
    for (int64_t i = 0; i < n; i++) {
        double along = ((double)i + 0.5) / (double)n, span = (double)most;
        bool empty = i >= n / 2 && i <= n / 2 + n / 8;
        high = max64(high, (int64_t)(span * sqrt(along) + tensor_get(last, i) / 8));
        low = max64(low, (int64_t)(span * along * along + tensor_get(first, i) / 8));
        if (i == n / 2) high += most / 8;
        high = min64(high, most);
        if (empty) low = high;
        low = min64(low, high);
        tensor_put(first, i, (double)low);
        tensor_put(last, i, (double)high);
    }
}

/* Short names for the four rows of slots. */
static Tensor x(const Trial *t, int i) {
    return t->x[i].tensor;
}
static Tensor y(const Trial *t, int i) {
    return t->y[i].tensor;
}
static Tensor dx(const Trial *t, int i) {
    return t->dx[i].tensor;
}
static Tensor dy(const Trial *t, int i) {
    return t->dy[i].tensor;
}

/* ---- linear: n = m, n, k ---------------------------------------------------------------------- */

static void linear_make(Trial *t) {
    int64_t m = t->n[0], n = t->n[1], k = t->n[2];
    make(t, &t->x[0], 0, t->real, DIM(m, k));
    make(t, &t->x[1], 0, t->real, DIM(n, k));
    make(t, &t->y[0], 0, t->real, DIM(m, n));
    make_dy(t, 0, t->real);
    make_gradient(t, 0, 0, t->real);
    make_gradient(t, 1, ADDED, t->sum);
}

static void linear_forward(Trial *t) {
    linear(t->stream, y(t, 0), x(t, 0), x(t, 1));
}

static void linear_backward(Trial *t) {
    linear_dx(t->stream, dx(t, 0), dy(t, 0), x(t, 1), false);
    linear_dw(t->stream, dx(t, 1), dy(t, 0), x(t, 0));
}

/* Logits in the sum type, and a gradient that is added to another. */
static void logits_make(Trial *t) {
    linear_make(t);
    make(t, &t->y[0], 0, t->sum, DIM(t->n[0], t->n[1]));
    t->dx[0].flags = ADDED;
}

static void logits_backward(Trial *t) {
    linear_dx(t->stream, dx(t, 0), dy(t, 0), x(t, 1), true);
    linear_dw(t->stream, dx(t, 1), dy(t, 0), x(t, 0));
}

/* The gradient in the sum type, too: written, or added with n[3]. */
static void sums_make(Trial *t) {
    logits_make(t);
    make_gradient(t, 0, t->n[3] ? ADDED : 0, t->sum);
}

static void sums_backward(Trial *t) {
    linear_dx(t->stream, dx(t, 0), dy(t, 0), x(t, 1), t->n[3]);
    linear_dw(t->stream, dx(t, 1), dy(t, 0), x(t, 0));
}

/* ---- experts_linear: n = experts, n, k, add; rows of each expert ------------------------------ */

static int64_t experts_rows(const Trial *t) {
    int64_t sum = 0;
    for (int64_t e = 0; e < t->n[0]; e++) sum += t->row->rows[e];
    return sum;
}

static void experts_make(Trial *t) {
    int64_t experts = t->n[0], n = t->n[1], k = t->n[2], m = experts_rows(t);
    make(t, &t->x[0], 0, t->real, DIM(m, k));
    make(t, &t->x[1], 0, t->real, DIM(experts, n, k));
    make(t, &t->y[0], 0, t->real, DIM(m, n));
    make_dy(t, 0, t->real);
    make_gradient(t, 0, t->n[3] ? ADDED : 0, t->real);
    make_gradient(t, 1, ADDED, t->sum);
}

static void experts_forward(Trial *t) {
    experts_linear(t->stream, y(t, 0), x(t, 0), x(t, 1), t->row->rows);
}

static void experts_backward(Trial *t) {
    experts_linear_dx(t->stream, dx(t, 0), dy(t, 0), x(t, 1), t->row->rows, t->n[3]);
    experts_linear_dw(t->stream, dx(t, 1), dy(t, 0), x(t, 0), t->row->rows);
}

/* ---- swiglu: n = rows, width, weighted -------------------------------------------------------- */

static void swiglu_make(Trial *t) {
    int64_t rows = t->n[0], width = t->n[1];
    make(t, &t->x[0], 0, t->real, DIM(rows, width));
    make(t, &t->x[1], 0, t->real, DIM(rows, width));
    make(t, &t->y[0], 0, t->real, DIM(rows, width));
    make_dy(t, 0, t->real);
    make_gradient(t, 0, 0, t->real);
    make_gradient(t, 1, 0, t->real);
    if (!t->n[2]) return;
    make(t, &t->x[2], 0, t->sum, DIM(rows));
    make_gradient(t, 2, 0, t->sum);
}

static void swiglu_forward(Trial *t) {
    swiglu(t->stream, y(t, 0), x(t, 0), x(t, 1), x(t, 2));
}

static void swiglu_gradient(Trial *t) {
    swiglu_backward(t->stream, dx(t, 0), dx(t, 1), dx(t, 2), dy(t, 0), x(t, 0), x(t, 1), x(t, 2));
}

/* ---- rms_norm: n = rows, width, add ----------------------------------------------------------- */

static void norm_make(Trial *t) {
    int64_t rows = t->n[0], width = t->n[1];
    make(t, &t->x[0], 0, t->real, DIM(rows, width));
    make(t, &t->x[1], 0, t->real, DIM(width));
    make(t, &t->y[0], 0, t->real, DIM(rows, width));
    make(t, &t->y[1], 0, t->sum, DIM(rows));
    make_dy(t, 0, t->real);
    make_gradient(t, 0, t->n[2] ? ADDED : 0, t->real);
    make_gradient(t, 1, ADDED, t->sum);
}

static void norm_forward(Trial *t) {
    rms_norm(t->stream, y(t, 0), y(t, 1), x(t, 0), x(t, 1), 1e-5);
}

static void norm_backward(Trial *t) {
    rms_norm_backward(t->stream, dx(t, 0), dx(t, 1), dy(t, 0), x(t, 0), x(t, 1), y(t, 1), t->n[2]);
}

/* ---- Elementwise: n = count ------------------------------------------------------------------- */

static void add_make(Trial *t) {
    make(t, &t->x[0], 0, t->real, DIM(t->n[0]));
    make(t, &t->x[1], 0, t->real, DIM(t->n[0]));
    make(t, &t->y[0], EXACT, t->real, DIM(t->n[0]));
}

static void add_forward(Trial *t) {
    add(t->stream, y(t, 0), x(t, 0), x(t, 1));
}

static void zero_make(Trial *t) {
    make(t, &t->y[0], EXACT, t->real, DIM(t->n[0]));
    make(t, &t->y[1], EXACT, t->sum, DIM(t->n[0]));
    make_integers(t, &t->y[2], 1, 9, DIM(t->n[0]));
}

static void zero_forward(Trial *t) {
    for (int i = 0; i < 3; i++) zero(t->stream, y(t, i));
}

/* Between every two real types, and of integers. */
static void copy_make(Trial *t) {
    make(t, &t->x[0], 0, t->real, DIM(t->n[0]));
    make_integers(t, &t->x[1], -9, 9, DIM(t->n[0]));
    make(t, &t->y[0], EXACT, FP32, DIM(t->n[0]));
    make(t, &t->y[1], EXACT, BF16, DIM(t->n[0]));
    make(t, &t->y[2], EXACT, FP64, DIM(t->n[0]));
    make(t, &t->y[3], EXACT, INT32, DIM(t->n[0]));
}

static void copy_forward(Trial *t) {
    for (int i = 0; i < 4; i++) copy(t->stream, y(t, i), x(t, i == 3));
}

/* ---- copy_columns: n = rows, width, columns --------------------------------------------------- */

enum { COLUMN = 3 }; /* of the result, more or less */

/* From data and from sums into either, data added to sums, and integers. */
static void columns_make(Trial *t) {
    int64_t rows = t->n[0], width = t->n[1], columns = t->n[2];
    make(t, &t->x[0], 0, t->real, DIM(rows, width));
    make(t, &t->x[1], 0, t->sum, DIM(rows, columns));
    make_integers(t, &t->x[2], -9, 9, DIM(rows, width));
    Type types[] = {t->real, t->real, t->sum, t->sum, t->sum, INT32};
    for (int i = 0; i < (int)COUNT(types); i++) make(t, &t->y[i], EXACT, types[i], DIM(rows, columns + COLUMN + i));
}

static void columns_forward(Trial *t) {
    int64_t columns = t->n[2], from = t->n[1] - columns;
    copy_columns(t->stream, y(t, 0), COLUMN, x(t, 0), from, columns, false);
    copy_columns(t->stream, y(t, 1), COLUMN, x(t, 1), 0, columns, false);
    copy_columns(t->stream, y(t, 2), 0, x(t, 0), from, columns, false);
    copy_columns(t->stream, y(t, 3), COLUMN + 3, x(t, 0), from / 2, columns, true);
    copy_columns(t->stream, y(t, 4), 1, x(t, 1), 0, columns, true);
    copy_columns(t->stream, y(t, 5), 2, x(t, 2), from, columns, false);
}

/* ---- embedding: n = tokens, vocabulary, width, the frozen row and 1 ------------------------------------------------- */

static void embedding_make(Trial *t) {
    int64_t tokens = t->n[0], vocabulary = t->n[1], width = t->n[2];
    make(t, &t->x[0], 0, t->real, DIM(vocabulary, width));
    make_integers(t, &t->x[1], 0, vocabulary - 1, DIM(tokens));
    make(t, &t->y[0], EXACT, t->real, DIM(tokens, width));
    make_dy(t, 0, t->real);
    make_gradient(t, 0, ADDED, t->sum);
}

static void embedding_forward(Trial *t) {
    embedding(t->stream, y(t, 0), x(t, 1), x(t, 0));
    const int32_t *token = x(t, 1).data; /* what does not depend on the table has no gradient */
    for (int64_t i = 0; i < t->n[0]; i++)
        if (token[i] == t->n[3] - 1) zero(t->stream, tensor_rows(y(t, 0), i, 1));
}

static void embedding_gradient(Trial *t) {
    embedding_backward(t->stream, dx(t, 0), dy(t, 0), x(t, 1), t->n[3] - 1);
}

/* ---- rope: n = tokens, heads, d --------------------------------------------------------------- */

static void rope_make(Trial *t) {
    int64_t tokens = t->n[0], heads = t->n[1], d = t->n[2];
    make(t, &t->x[0], 0, t->real, DIM(tokens, heads, d));
    make_integers(t, &t->x[1], 0, 100000, DIM(tokens));
    make(t, &t->y[0], 0, t->real, DIM(tokens, heads, d));
    make(t, &t->y[1], 0, t->sum, DIM(tokens, d));
    make_dy(t, 0, t->real);
    make_gradient(t, 0, 0, t->real);
}

static void rope_forward(Trial *t) {
    rope_table(t->stream, y(t, 1), x(t, 1), 10000);
    rope(t->stream, y(t, 0), x(t, 0), y(t, 1), false);
}

static void rope_backward(Trial *t) {
    rope(t->stream, dx(t, 0), dy(t, 0), y(t, 1), true);
}

/* ---- attention: n = queries, heads, kv heads, d, keys, sight, results in the sum type --------- */

/* Which keys queries see: any two bounds that never fall, so that some rows see nothing, some keys are seen by nobody
 * and intervals are of any length; or documents of 1 to 3 times some length under a window, each row seeing itself
 * and what came before; or all. */
typedef enum { SIGHT_ANY, SIGHT_CAUSAL, SIGHT_WINDOW, SIGHT_ALL } Sight;

static void make_sight(Trial *t, Slot *first_slot, Slot *last_slot, Slot *keys_slot) {
    enum { DOCUMENT = 29, WINDOW = 11 };
    int64_t queries = t->n[0], keys = t->n[4];
    Sight sight = (Sight)t->n[5];
    Tensor first = make_integers(t, first_slot, 0, keys, DIM(queries));
    Tensor last = make_integers(t, last_slot, 0, keys, DIM(queries));
    Tensor seen = make_integers(t, keys_slot, 0, keys, DIM(queries));
    fill_sight(first, last, keys);
    for (int64_t i = 0; i < queries && sight != SIGHT_ANY; i++) {
        int64_t begin = sight == SIGHT_ALL ? 0 : i - i % DOCUMENT;
        if (sight == SIGHT_WINDOW) begin = max64(begin, i + 1 - WINDOW);
        tensor_put(first, i, (double)begin);
        tensor_put(last, i, (double)(sight == SIGHT_ALL ? keys : i + 1));
    }
    for (int64_t i = 0; i < queries; i++) tensor_put(seen, i, tensor_get(last, i) - tensor_get(first, i));
}

static AttentionShape attention_shape(const Trial *t) {
    AttentionShape shape = {.scale = 1 / sqrt((double)t->n[3])};
    for (int64_t i = 0; i < t->n[0]; i++)
        shape.pairs += (int64_t)(tensor_get(t->x[4].tensor, i) - tensor_get(t->x[3].tensor, i));
    return shape;
}

/* x: q, k, v, first, last, keys. y: out, lse, delta. */
static void attention_make(Trial *t) {
    int64_t queries = t->n[0], heads = t->n[1], kv = t->n[2], d = t->n[3], keys = t->n[4];
    Type result = t->n[6] ? t->sum : t->real;
    make(t, &t->x[0], 0, t->real, DIM(queries, heads, d));
    make(t, &t->x[1], 0, t->real, DIM(keys, kv, d));
    make(t, &t->x[2], 0, t->real, DIM(keys, kv, d));
    make_sight(t, &t->x[3], &t->x[4], &t->x[5]);
    make(t, &t->y[0], 0, result, DIM(queries, heads, d));
    make(t, &t->y[1], 0, t->sum, DIM(heads, queries));
    make_dy(t, 0, t->real);
    for (int i = 0; i < 3; i++) make_gradient(t, i, 0, result);
    make(t, &t->dx[3], 0, t->sum, DIM(heads, queries)); /* delta */
}

static void attention_forward(Trial *t) {
    attention(t->stream, y(t, 0), y(t, 1), x(t, 0), x(t, 1), x(t, 2), x(t, 3), x(t, 4), attention_shape(t));
}

static void attention_gradient(Trial *t) {
    attention_delta(t->stream, dx(t, 3), dy(t, 0), y(t, 0));
    attention_backward(t->stream, dx(t, 0), dx(t, 1), dx(t, 2), dx(t, 3), dy(t, 0), y(t, 1), x(t, 0), x(t, 1), x(t, 2),
                       x(t, 3), x(t, 4), x(t, 5), attention_shape(t));
}

/* ---- attention_merge: n = rows, heads, d ------------------------------------------------------ */

/* Every fourth row of either side, but not the same, has seen nothing: what stands there is not read. */
static void merge_make(Trial *t) {
    int64_t rows = t->n[0], heads = t->n[1], d = t->n[2];
    for (int i = 0; i < 2; i++) {
        Slot *out = i == 0 ? &t->y[0] : &t->x[0], *lse = i == 0 ? &t->y[1] : &t->x[1];
        make(t, out, ADDED, t->sum, DIM(rows, heads, d));
        make(t, lse, ADDED, t->sum, DIM(heads, rows));
        for (int64_t k = 0; k < heads * rows; k++) {
            if ((i == 0 ? k : k / 2) % 4 > 0) continue;
            tensor_put(lse->tensor, k, -INFINITY);
            int64_t row = k % rows * heads + k / rows;
            for (int64_t c = 0; c < d; c++) tensor_put(out->tensor, row * d + c, NAN);
        }
    }
}

static void merge_forward(Trial *t) {
    attention_merge(t->stream, y(t, 0), y(t, 1), x(t, 0), x(t, 1));
}

/* ---- route: n = tokens, experts, k, normalise, auxiliary losses, logits in the sum type ------- */

enum { SEQUENCES = 3 };
static const double balance_coefficient = 0.3, z_coefficient = 0.2, real_positions = 17;

/* x: logits, sequence, pooled counts, rows, real positions. y: weight, balance loss, z, mass, then p, lse,
 * chosen, counts. */
static void route_make(Trial *t) {
    int64_t tokens = t->n[0], experts = t->n[1], k = t->n[2];
    Type logits = t->n[5] ? t->sum : t->real;
    make(t, &t->x[0], 0, logits, DIM(tokens, experts));
    make_integers(t, &t->x[1], -1, SEQUENCES - 1, DIM(tokens));
    int64_t most = k == experts ? 1 : 9; /* where all are chosen they are counted alike */
    fill_integers(make(t, &t->x[2], 0, FP64, DIM(SEQUENCES, experts)), 1, 1, most);
    Tensor rows = make(t, &t->x[3], 0, FP64, DIM(SEQUENCES));
    for (int i = 0; i < SEQUENCES; i++) tensor_put(rows, i, 5 * i); /* the first has none */
    make_value(t, &t->x[4], 0, real_positions);
    make(t, &t->y[0], ROUNDED, t->sum, DIM(tokens, k));
    make(t, &t->y[1], ADDED, FP64, DIM(1));
    make(t, &t->y[2], ADDED, FP64, DIM(1));
    fill_value(make(t, &t->y[3], ADDED, FP64, DIM(SEQUENCES, experts)), 0);
    make(t, &t->y[4], 0, t->sum, DIM(tokens, experts));
    make(t, &t->y[5], 0, t->sum, DIM(tokens));
    make(t, &t->y[6], EXACT, INT32, DIM(tokens, k));
    make(t, &t->y[7], ADDED, FP64, DIM(SEQUENCES, experts));
    make_dy(t, 0, t->sum);
    make_gradient(t, 0, 0, logits);
    if (!t->n[4]) return;
    make_value(t, &t->dy[1], 0, balance_coefficient);
    make_value(t, &t->dy[2], 0, z_coefficient / real_positions);
}

static void route_forward(Trial *t) {
    route(t->stream, y(t, 4), y(t, 6), y(t, 0), y(t, 5), x(t, 0), t->n[3], t->real);
    route_statistics(t->stream, y(t, 7), y(t, 3), y(t, 2), y(t, 4), y(t, 6), y(t, 5), x(t, 1));
    balance_loss(t->stream, y(t, 1), x(t, 2), y(t, 3), x(t, 3));
}

static void route_gradient(Trial *t) {
    RouteLoss loss = {.normalise = t->n[3]};
    if (t->n[4]) {
        loss.balance = balance_coefficient;
        loss.z = z_coefficient;
    }
    route_backward(t->stream, dx(t, 0), dy(t, 0), y(t, 4), y(t, 6), y(t, 5), x(t, 2), x(t, 3), x(t, 1), x(t, 4), loss);
}

/* ---- Rows that travel: n = tokens, k, width, experts, rounds ---------------------------------- */

static void order_make(Trial *t) {
    int64_t tokens = t->n[0], k = t->n[1], experts = t->n[3];
    make_integers(t, &t->x[0], 0, experts - 1, DIM(tokens, k));
    make(t, &t->y[0], EXACT, INT32, DIM(tokens * k));
    make(t, &t->y[1], EXACT, INT32, DIM(tokens, k));
    make(t, &t->y[2], EXACT, INT64, DIM(t->n[4], experts));
}

static void order_forward(Trial *t) {
    route_order(t->stream, y(t, 0), y(t, 1), y(t, 2), x(t, 0));
}

/* To experts: each token's row is sent k times; its gradient is the sum of theirs. The order is scattered by
 * a stride that shares no factor with the count. */
static void travel_make(Trial *t) {
    int64_t tokens = t->n[0], k = t->n[1], width = t->n[2], slots = tokens * k;
    make(t, &t->x[0], 0, t->real, DIM(tokens, width));
    Tensor order = make(t, &t->x[1], EXACT, INT32, DIM(slots)), place = make(t, &t->x[2], EXACT, INT32, DIM(tokens, k));
    for (int64_t i = 0; i < slots; i++) {
        int64_t slot = i * 10007 % slots;
        tensor_put(order, i, (double)slot);
        tensor_put(place, slot, (double)i);
    }
    make(t, &t->y[0], EXACT, t->real, DIM(slots, width));
    make_dy(t, 0, t->real);
    make_gradient(t, 0, 0, t->real);
}

static void travel_forward(Trial *t) {
    gather_rows(t->stream, y(t, 0), x(t, 0), x(t, 1), t->n[1]);
}

static void travel_backward(Trial *t) {
    sum_slots(t->stream, dx(t, 0), NONE, dy(t, 0), x(t, 2), (SlotRound){0, 1, 0});
}

/* And back: the k results of each token are added to its row. The gradient of the row is dy itself: not an op. */
static void combine_make(Trial *t) {
    int64_t tokens = t->n[0], k = t->n[1], width = t->n[2];
    travel_make(t);
    make(t, &t->x[0], 0, t->real, DIM(tokens * k, width));
    make(t, &t->x[3], 0, t->real, DIM(tokens, width));
    make(t, &t->y[0], 0, t->real, DIM(tokens, width));
    make_dy(t, 0, t->real);
    make_gradient(t, 0, EXACT, t->real);
}

static void combine_forward(Trial *t) {
    sum_slots(t->stream, y(t, 0), x(t, 3), x(t, 0), x(t, 2), (SlotRound){0, 1, 0});
}

static void combine_backward(Trial *t) {
    gather_rows(t->stream, dx(t, 0), dy(t, 0), x(t, 1), t->n[1]);
}

/* ---- cross_entropy: n = rows, vocabulary ------------------------------------------------------ */

static void loss_make(Trial *t) {
    int64_t rows = t->n[0], vocabulary = t->n[1];
    make(t, &t->x[0], 0, t->sum, DIM(rows, vocabulary));
    Tensor target = make_integers(t, &t->x[1], 0, vocabulary - 1, DIM(rows));
    for (int64_t i = 1; i < rows; i += 4) tensor_put(target, i, -1);
    make_value(t, &t->x[2], 0, 7);
    make(t, &t->y[0], ADDED, FP64, DIM(1));
    make_value(t, &t->dy[0], 0, 1.0 / 7);
    make(t, &t->dx[0], 0, t->real, DIM(rows, vocabulary));
    make(t, &t->dx[1], ADDED, FP64, DIM(1));
}

static void loss_forward(Trial *t) {
    cross_entropy(t->stream, y(t, 0), NONE, x(t, 0), x(t, 1), NONE);
}

/* The gradient comes with the loss once more, in dx[1]. */
static void loss_backward(Trial *t) {
    cross_entropy(t->stream, dx(t, 1), dx(t, 0), x(t, 0), x(t, 1), x(t, 2));
}

/* ---- cross_entropy in parts: n = rows, vocabulary, parts, rows of each ------------------------- */

/* y: the loss, the stats of all and of every part, and the parts' logits from PART on; there in dx their gradients. */
enum { PART = 4 };

static int64_t part_first(const Trial *t, int64_t part) {
    return min64(part * t->n[3], t->n[1]);
}

static int64_t part_rows(const Trial *t, int64_t part) {
    return part_first(t, part + 1) - part_first(t, part);
}

static Tensor part_stats(const Trial *t, int64_t part) {
    return tensor_view(tensor_rows(y(t, 2), part, 1), DIM(t->n[0], LOSS_STATS));
}

static void parts_make(Trial *t) {
    int64_t rows = t->n[0], parts = t->n[2];
    loss_make(t);
    t->dx[1] = (Slot){0};
    make(t, &t->y[1], 0, t->sum, DIM(rows, LOSS_STATS));
    make(t, &t->y[2], 0, t->sum, DIM(parts, rows, LOSS_STATS));
    for (int64_t p = 0; p < parts; p++) {
        make(t, &t->y[PART + p], 0, t->sum, DIM(rows, part_rows(t, p)));
        make(t, &t->dx[PART + p], 0, t->real, DIM(rows, part_rows(t, p)));
    }
}

static void parts_forward(Trial *t) {
    for (int64_t p = 0; p < t->n[2]; p++) {
        Tensor logits = y(t, (int)(PART + p));
        copy_columns(t->stream, logits, 0, x(t, 0), part_first(t, p), part_rows(t, p), false);
        cross_entropy_part(t->stream, part_stats(t, p), logits, x(t, 1), part_first(t, p));
    }
    cross_entropy_join(t->stream, y(t, 1), y(t, 2));
    cross_entropy_sum(t->stream, y(t, 0), y(t, 1), x(t, 1));
}

static void parts_backward(Trial *t) {
    for (int64_t p = 0; p < t->n[2]; p++) {
        Tensor logits = y(t, (int)(PART + p)), dlogits = dx(t, (int)(PART + p));
        cross_entropy_gradient(t->stream, dlogits, logits, y(t, 1), x(t, 1), part_first(t, p), x(t, 2));
        copy_columns(t->stream, dx(t, 0), part_first(t, p), dlogits, 0, part_rows(t, p), false);
    }
}

/* ---- adamw, square_sum, sum_rows: n = count, ranks -------------------------------------------- */

static const AdamW adamw_settings = {.learning_rate = 3e-3,
                                     .beta1 = 0.9,
                                     .beta2 = 0.95,
                                     .epsilon = 1e-8,
                                     .weight_decay = 0.1,
                                     .correction1 = 0.271,
                                     .correction2 = 0.142625,
                                     .clip = 0.37};

static void adamw_make(Trial *t) {
    int64_t count = t->n[0];
    make(t, &t->x[0], 0, t->sum, DIM(count));
    make(t, &t->y[0], EXACT, t->real, DIM(count));
    make(t, &t->y[1], EXACT, t->sum, DIM(count));
    Tensor v = make(t, &t->y[2], EXACT, t->sum, DIM(count));
    for (int64_t i = 0; i < count; i++) tensor_put(v, i, fabs(tensor_get(v, i)));
    if (t->real == BF16) fill_integers(make(t, &t->y[3], EXACT, BYTE, DIM(2 * count)), 3, 0, 255);
}

static void adamw_forward(Trial *t) {
    adamw(t->stream, y(t, 0), y(t, 3), y(t, 1), y(t, 2), x(t, 0), adamw_settings);
}

static void square_make(Trial *t) {
    make(t, &t->x[0], 0, t->real, DIM(t->n[0]));
    make(t, &t->y[0], 0, FP64, DIM(1));
}

static void square_forward(Trial *t) {
    square_sum(t->stream, y(t, 0), x(t, 0));
}

static void ranks_make(Trial *t) {
    int64_t count = t->n[0], ranks = t->n[1];
    make(t, &t->x[0], 0, t->sum, DIM(ranks, count));
    fill_integers(make(t, &t->x[1], 0, INT64, DIM(ranks, count)), 1, -5, 5);
    for (int64_t i = 0; i < tensor_count(x(t, 1)); i++) ((int64_t *)x(t, 1).data)[i] += INT64_C(1) << 60 >> i % 8;
    make(t, &t->y[0], EXACT, t->sum, DIM(count));
    make(t, &t->y[1], EXACT, INT64, DIM(count));
}

static void ranks_forward(Trial *t) {
    for (int i = 0; i < 2; i++) sum_rows(t->stream, y(t, i), x(t, i));
}

/* ---- The table -------------------------------------------------------------------------------- */

#define LINEAR "linear [m,n,k]", .make = linear_make, .forward = linear_forward, .backward = linear_backward
#define LOGITS                                                                                                         \
    "linear to logits, dx added [m,n,k]", .make = logits_make, .forward = linear_forward, .backward = logits_backward
#define SUMS "linear, dx a sum [m,n,k,add]", .make = sums_make, .forward = linear_forward, .backward = sums_backward
#define EXPERTS                                                                                                        \
    "experts_linear [E,n,k,add]", .make = experts_make, .forward = experts_forward, .backward = experts_backward
#define SWIGLU                                                                                                         \
    "swiglu [rows,width,weighted]", .make = swiglu_make, .forward = swiglu_forward, .backward = swiglu_gradient
#define NORM "rms_norm [rows,width,add]", .make = norm_make, .forward = norm_forward, .backward = norm_backward
#define ADD "add [n]", .make = add_make, .forward = add_forward
#define ZERO "zero [n]", .make = zero_make, .forward = zero_forward
#define COPY "copy [n]", .make = copy_make, .forward = copy_forward
#define COLUMNS "copy_columns [rows,width,columns]", .make = columns_make, .forward = columns_forward
#define EMBEDDING                                                                                                      \
    "embedding [T,V,H,frozen]", .make = embedding_make, .forward = embedding_forward, .backward = embedding_gradient
#define ROPE "rope [T,heads,d]", .make = rope_make, .forward = rope_forward, .backward = rope_backward
#define ATTENTION                                                                                                      \
    "attention [Tq,heads,kv,d,Tk,sight,sums]", .make = attention_make, .forward = attention_forward,                   \
                                               .backward = attention_gradient
#define MERGE "attention_merge [T,heads,d]", .make = merge_make, .forward = merge_forward
#define ROUTE                                                                                                          \
    "route [T,E,k,normalise,auxiliary,sum]", .make = route_make, .forward = route_forward, .backward = route_gradient
#define ORDER "route_order [T,k,-,E,rounds]", .make = order_make, .forward = order_forward
#define TRAVEL "gather_rows [T,k,H]", .make = travel_make, .forward = travel_forward, .backward = travel_backward
#define COMBINE "sum_slots [T,k,H]", .make = combine_make, .forward = combine_forward, .backward = combine_backward
#define LOSS "cross_entropy [n,V]", .make = loss_make, .forward = loss_forward, .backward = loss_backward
#define PARTED                                                                                                         \
    "cross_entropy in parts [n,V,parts,each]", .make = parts_make, .forward = parts_forward, .backward = parts_backward
#define ADAMW "adamw [n]", .make = adamw_make, .forward = adamw_forward
#define SQUARE "square_sum [n]", .make = square_make, .forward = square_forward
#define RANKS "sum_rows [n,ranks]", .make = ranks_make, .forward = ranks_forward

static const Case cases[] = {
    {LINEAR, .n = {0, 5, 7}},
    {LINEAR, .n = {1, 1, 1}},
    {LINEAR, .n = {7, 0, 5}},
    {LINEAR, .n = {7, 13, 5}},
    {LINEAR, .n = {16, 32, 32}},
    {LINEAR, .n = {67, 131, 97}},
    {LINEAR, .n = {13, 35, 1027}}, /* sums of several blocks */
    {LINEAR, .n = {1025, 6, 3}},
    {LINEAR, .n = {49, 97, 515}}, /* beyond each size that products are cut by, in each direction */
    {LINEAR, .n = {97, 515, 47}},
    {LINEAR, .n = {515, 48, 257}},
    {SUMS, .n = {5, 0, 3}}, /* dx of nothing is 0 */
    {SUMS, .n = {7, 13, 5}},
    {SUMS, .n = {13, 1027, 35, true}},
    {SUMS, .n = {67, 131, 97, true}},
    {LOGITS, .n = {3, 2, 11}},
    {LOGITS, .n = {61, 103, 37}},
    {EXPERTS, .n = {3, 4, 5}, .rows = {0, 0, 0}},
    {EXPERTS, .n = {4, 5, 3}, .rows = {3, 0, 5, 1}},
    {EXPERTS, .n = {4, 5, 3, true}, .rows = {0, 2, 1, 0}},
    {EXPERTS, .n = {5, 53, 37}, .rows = {17, 0, 1, 41, 64}},
    {EXPERTS, .n = {3, 259, 131}, .rows = {8, 257, 49}},
    {SWIGLU, .n = {0, 5, true}},
    {SWIGLU, .n = {3, 7, false}},
    {SWIGLU, .n = {5, 9, true}},
    {SWIGLU, .n = {131, 67, true}},
    {SWIGLU, .n = {2, 128, false}},
    {SWIGLU, .n = {3, 8209, true}}, /* more than a task */
    {NORM, .n = {0, 8}},
    {NORM, .n = {1, 1}, .cancelled = 1},
    {NORM, .n = {3, 17, false}},
    {NORM, .n = {5, 11, true}},
    {NORM, .n = {151, 96, true}},
    {NORM, .n = {9, 131, false}},
    {ADD, .n = {0}},
    {ADD, .n = {37}},
    {ADD, .n = {40009}},
    {ZERO, .n = {0}},
    {ZERO, .n = {37}},
    {ZERO, .n = {40009}},
    {COPY, .n = {0}},
    {COPY, .n = {37}},
    {COPY, .n = {40009}},
    {COLUMNS, .n = {0, 3, 2}},
    {COLUMNS, .n = {5, 7, 0}},
    {COLUMNS, .n = {5, 7, 7}},
    {COLUMNS, .n = {13, 57, 35}},
    {COLUMNS, .n = {307, 131, 64}},
    {EMBEDDING, .n = {0, 3, 4}},
    {EMBEDDING, .n = {11, 5, 7}},
    {EMBEDDING, .n = {307, 53, 33}},
    {EMBEDDING, .n = {11, 5, 7, 3}},
    {EMBEDDING, .n = {307, 53, 133, 53}},
    {ROPE, .n = {0, 2, 4}},
    {ROPE, .n = {3, 2, 2}},
    {ROPE, .n = {5, 3, 14}},
    {ROPE, .n = {97, 4, 32}},
    {ATTENTION, .n = {0, 2, 2, 4, 0, SIGHT_ANY}},
    {ATTENTION, .n = {0, 2, 2, 4, 7, SIGHT_ANY}}, /* keys without queries */
    {ATTENTION, .n = {5, 2, 1, 4, 0, SIGHT_ANY}}, /* queries without keys */
    {ATTENTION, .n = {1, 1, 1, 3, 1, SIGHT_ALL}, .cancelled = 1},
    {ATTENTION, .n = {13, 4, 2, 6, 13, SIGHT_CAUSAL}},
    {ATTENTION, .n = {13, 6, 2, 5, 13, SIGHT_WINDOW}},
    {ATTENTION, .n = {7, 2, 1, 8, 19, SIGHT_ANY, true}},
    {ATTENTION, .n = {23, 2, 1, 5, 6, SIGHT_ANY}},
    {ATTENTION, .n = {71, 4, 2, 16, 71, SIGHT_CAUSAL, true}},
    {ATTENTION, .n = {139, 3, 1, 7, 139, SIGHT_WINDOW}},
    {ATTENTION, .n = {113, 4, 2, 48, 113, SIGHT_CAUSAL}}, /* dq made with dk and dv: in place, in fp32 */
    {ATTENTION, .n = {101, 2, 2, 20, 101, SIGHT_WINDOW, true}},
    {ATTENTION, .n = {127, 3, 1, 13, 211, SIGHT_ANY, true}},
    {ATTENTION, .n = {211, 4, 2, 16, 97, SIGHT_ANY, true}}, /* fused, in place in bf16 too */
    {ATTENTION, .n = {109, 2, 2, 8, 307, SIGHT_ANY}},
    {ATTENTION, .n = {99, 2, 2, 16, 101, SIGHT_ALL, true}},
    {ATTENTION, .n = {25, 2, 1, 3, 65, SIGHT_ALL}},   /* one more than a strip and a chunk, */
    {ATTENTION, .n = {193, 1, 1, 9, 191, SIGHT_ALL}}, /* than a block, and one less */
    {ATTENTION, .n = {191, 2, 2, 8, 193, SIGHT_ANY, true}},
    {ATTENTION, .n = {5, 1, 1, MAX_HEAD_SIZE, 7, SIGHT_ALL}}, /* as large as scratch must hold */
    {ATTENTION, .n = {99, 1, 1, 256, 97, SIGHT_ALL, true}},   /* blocks of fewer rows */
    {MERGE, .n = {0, 2, 3}},
    {MERGE, .n = {1, 1, 1}},
    {MERGE, .n = {7, 3, 5}},
    {MERGE, .n = {131, 4, 37}},
    {ROUTE, .n = {0, 4, 2, true, true, false}},
    {ROUTE, .n = {5, 3, 3, false, true, false}},
    {ROUTE, .n = {9, 7, 2, true, true, false}},
    {ROUTE, .n = {9, 7, 2, false, true, true}},
    {ROUTE, .n = {9, 8, 1, true, false, false}},
    {ROUTE, .n = {211, 61, 8, true, true, true}},
    {ROUTE, .n = {211, 16, 4, false, true, false}},
    {ROUTE, .n = {67, 128, 8, true, true, false}},
    {ROUTE, .n = {17, 33, 33, true, true, true}},
    {ORDER, .n = {0, 2, 0, 5, 1}},
    {ORDER, .n = {7, 2, 0, 5, 1}},
    {ORDER, .n = {3, 2, 0, 5, 4}},
    {ORDER, .n = {503, 3, 0, 17, 6}},
    {TRAVEL, .n = {0, 2, 3}},
    {TRAVEL, .n = {7, 2, 5}},
    {TRAVEL, .n = {199, 3, 41}},
    {COMBINE, .n = {0, 2, 3}},
    {COMBINE, .n = {7, 3, 5}},
    {COMBINE, .n = {199, 3, 41}},
    {COMBINE, .n = {5, 8, 131}},
    {LOSS, .n = {0, 5}},
    {LOSS, .n = {6, 11}},
    {LOSS, .n = {53, 257}},
    {LOSS, .n = {3, 1024}}, /* a piece of the sum, and more */
    {LOSS, .n = {6, 2111}},
    {PARTED, .n = {0, 5, 2, 3}},
    {PARTED, .n = {6, 11, 1, 11}},
    {PARTED, .n = {7, 5, 4, 2}}, /* the last is empty */
    {PARTED, .n = {1, 1, 3, 1}},
    {PARTED, .n = {53, 257, 5, 52}},
    {PARTED, .n = {307, 67, 8, 9}},
    {PARTED, .n = {3, 1201, 2, 1093}},
    {ADAMW, .n = {0}},
    {ADAMW, .n = {37}},
    {ADAMW, .n = {10007}},
    {ADAMW, .n = {16411}}, /* more than a task */
    {SQUARE, .n = {0}},
    {SQUARE, .n = {37}},
    {SQUARE, .n = {100003}},
    {RANKS, .n = {0, 3}},
    {RANKS, .n = {37, 1}},
    {RANKS, .n = {5003, 5}},
    {RANKS, .n = {16411, 2}},
};

#endif
