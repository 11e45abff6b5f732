/* Token embeddings and rotary positions: rows by token. */
#include "ops/cpu/fast/fast.h"

enum {
    TOKENS = 32,   /* of a task */
    COLUMNS = 128, /* of a task of the embedding's gradient */
};

/* ---- embedding -------------------------------------------------------------------------------- */

static int64_t token_at(const EmbeddingArgs *a, int64_t t) {
    int64_t token = ((const int32_t *)a->token.data)[t];
    MUST(token >= 0 && token < a->table.dim[0]);
    return token;
}

/* y[t] = table[token[t]] */
static void embed_tokens(void *context, int64_t index, int worker) {
    (void)worker;
    const EmbeddingArgs *a = context;
    size_t row = (size_t)a->table.dim[1] * type_bytes(a->table.type);
    for (int64_t t = index * TOKENS; t < min64((index + 1) * TOKENS, a->token.dim[0]); t++) {
        const char *from = (const char *)a->table.data + (size_t)token_at(a, t) * row;
        memcpy((char *)a->y.data + (size_t)t * row, from, row);
    }
}

void KERNEL(embedding)(Stream *s, const void *args) {
    const EmbeddingArgs *a = args;
    parallel(stream_pool(s), ceil_div(a->token.dim[0], TOKENS), embed_tokens, (void *)args);
}

/* table[token[t]] += y[t]: a task owns some columns of the whole table, so that the order of t is kept for every
 * token. */
static void embed_backward_columns(void *context, int64_t index, int worker) {
    (void)worker;
    const EmbeddingArgs *a = context;
    const Tensor table = a->table, dy = a->y;
    int64_t width = table.dim[1], end = min64((index + 1) * COLUMNS, width);
    for (int64_t t = 0; t < a->token.dim[0]; t++) {
        int64_t token = token_at(a, t), row = token * width;
        if (token == a->frozen) continue;
        for (int64_t i = index * COLUMNS; i < end; i += LANES) {
            Vector sum = vector_get(table, row + i, end - i) + vector_get(dy, t * width + i, end - i);
            vector_put(table, row + i, end - i, sum);
        }
    }
}

void KERNEL(embedding_backward)(Stream *s, const void *args) {
    const EmbeddingArgs *a = args;
    parallel(stream_pool(s), ceil_div(a->table.dim[1], COLUMNS), embed_backward_columns, (void *)args);
}

/* ---- rope ------------------------------------------------------------------------------------- */

/* table[t] = cos, sin of position[t] theta^(-2i/d): in double, for angles reach far beyond what a float resolves. */
static void rope_table_tokens(void *context, int64_t index, int worker) {
    (void)worker;
    const RopeArgs *a = context;
    int64_t d = a->table.dim[1], half = d / 2, end = min64((index + 1) * TOKENS, a->table.dim[0]);
    const int32_t *position = a->position.data;
    REAL *table = a->table.data;
    for (int64_t i = 0; i < half; i++) {
        double frequency = pow(a->theta, -2.0 * (double)i / (double)d);
        for (int64_t t = index * TOKENS; t < end; t++) {
            double angle = (double)position[t] * frequency;
            table[t * d + i] = (REAL)cos(angle);
            table[t * d + half + i] = (REAL)sin(angle);
        }
    }
}

void KERNEL(rope_table)(Stream *s, const void *args) {
    const RopeArgs *a = args;
    parallel(stream_pool(s), ceil_div(a->table.dim[0], TOKENS), rope_table_tokens, (void *)args);
}

/* Each pair (x[i], x[i + d/2]) turns by its angle; `inverse` turns it back. */
static void rope_tokens(void *context, int64_t index, int worker) {
    (void)worker;
    const RopeArgs *a = context;
    const Tensor y = a->y, x = a->x, table = a->table;
    int64_t heads = x.dim[1], d = x.dim[2], half = d / 2;
    REAL sign = a->inverse ? -1 : 1;
    for (int64_t t = index * TOKENS; t < min64((index + 1) * TOKENS, x.dim[0]); t++) {
        for (int64_t low = t * heads * d; low < (t + 1) * heads * d; low += d) {
            for (int64_t i = 0; i < half; i += LANES) {
                int64_t left = half - i;
                Vector cosine = vector_get(table, t * d + i, left);
                Vector sine = sign * vector_get(table, t * d + half + i, left);
                Vector u = vector_get(x, low + i, left), v = vector_get(x, low + half + i, left);
                vector_put(y, low + i, left, u * cosine - v * sine);
                vector_put(y, low + half + i, left, v * cosine + u * sine);
            }
        }
    }
}

void KERNEL(rope)(Stream *s, const void *args) {
    const RopeArgs *a = args;
    parallel(stream_pool(s), ceil_div(a->x.dim[0], TOKENS), rope_tokens, (void *)args);
}
