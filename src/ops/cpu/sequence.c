/* The meaning of embedding, rotary positions and attention. Each forward, then its backward. */
#include "ops/cpu/plain.h"

/* ---- embedding -------------------------------------------------------------------------------- */

static int64_t token_at(const EmbeddingArgs *a, int64_t t) {
    int64_t token = index_at(a->token, t);
    MUST(token >= 0 && token < a->table.dim[0]);
    return token;
}

/* y[t] = table[token[t]] */
void plain_embedding(Stream *s, const void *arguments) {
    (void)s;
    const EmbeddingArgs *a = arguments;
    int64_t tokens = a->token.dim[0], width = a->table.dim[1];
    for (int64_t t = 0; t < tokens; t++) {
        int64_t token = token_at(a, t);
        for (int64_t i = 0; i < width; i++) tensor_put(a->y, t * width + i, tensor_get(a->table, token * width + i));
    }
}

/* dtable[token[t]] += dy[t], but for the frozen row */
void plain_embedding_backward(Stream *s, const void *arguments) {
    (void)s;
    const EmbeddingArgs *a = arguments;
    int64_t tokens = a->token.dim[0], width = a->table.dim[1];
    for (int64_t t = 0; t < tokens; t++) {
        int64_t token = token_at(a, t);
        if (token == a->frozen) continue;
        for (int64_t i = 0; i < width; i++) tensor_add(a->table, token * width + i, tensor_get(a->y, t * width + i));
    }
}

/* ---- rope ------------------------------------------------------------------------------------- */

/* table[t] = cos, sin of position[t] theta^(-2i/d) */
void plain_rope_table(Stream *s, const void *arguments) {
    (void)s;
    const RopeArgs *a = arguments;
    int64_t tokens = a->table.dim[0], d = a->table.dim[1];
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t i = 0; i < d / 2; i++) {
            double angle = tensor_get(a->position, t) * pow(a->theta, -2.0 * (double)i / (double)d);
            tensor_put(a->table, t * d + i, cos(angle));
            tensor_put(a->table, t * d + d / 2 + i, sin(angle));
        }
    }
}

/* Each pair (x[i], x[i + d/2]) turns by its angle; `inverse` turns it back. */
void plain_rope(Stream *s, const void *arguments) {
    (void)s;
    const RopeArgs *a = arguments;
    int64_t tokens = a->x.dim[0], heads = a->x.dim[1], d = a->x.dim[2];
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t h = 0; h < heads; h++) {
            for (int64_t i = 0; i < d / 2; i++) {
                int64_t low = (t * heads + h) * d + i, high = low + d / 2;
                double cosine = tensor_get(a->table, t * d + i), sine = tensor_get(a->table, t * d + d / 2 + i);
                if (a->inverse) sine = -sine;
                double x = tensor_get(a->x, low), y = tensor_get(a->x, high);
                tensor_put(a->y, low, x * cosine - y * sine);
                tensor_put(a->y, high, y * cosine + x * sine);
            }
        }
    }
}

/* ---- attention -------------------------------------------------------------------------------- */

/* The key rows first .. last - 1 that query row t sees; neither end ever falls as t grows. */
typedef struct {
    int64_t first, last;
} Seen;

static Seen seen_by(const AttentionArgs *a, int64_t t) {
    Seen seen = {index_at(a->first, t), index_at(a->last, t)};
    MUST(seen.first >= 0 && seen.first <= seen.last && seen.last <= a->k.dim[0]);
    if (t > 0) MUST(index_at(a->first, t - 1) <= seen.first && index_at(a->last, t - 1) <= seen.last);
    return seen;
}

/* Where the vector of (token, head) begins in a tensor [T, heads, d]. */
static int64_t vector_at(Tensor x, int64_t token, int64_t head) {
    return (token * x.dim[1] + head) * x.dim[2];
}

static double dot(Tensor x, int64_t x_at, Tensor y, int64_t y_at) {
    double sum = 0;
    for (int64_t i = 0; i < x.dim[2]; i++) sum += tensor_get(x, x_at + i) * tensor_get(y, y_at + i);
    return sum;
}

/* total[0..d) += factor x[x_at ..] */
static void add_vector(double *total, double factor, Tensor x, int64_t x_at) {
    for (int64_t i = 0; i < x.dim[2]; i++) total[i] += factor * tensor_get(x, x_at + i);
}

static void put_vector(Tensor y, int64_t y_at, const double *total) {
    for (int64_t i = 0; i < y.dim[2]; i++) tensor_put(y, y_at + i, total[i]);
}

/* The KV head that query head h reads. */
static int64_t kv_of(const AttentionArgs *a, int64_t h) {
    return h / (a->q.dim[1] / a->k.dim[1]);
}

static double score(const AttentionArgs *a, int64_t h, int64_t t, int64_t j) {
    return a->shape.scale * dot(a->q, vector_at(a->q, t, h), a->k, vector_at(a->k, j, kv_of(a, h)));
}

/* lse = log sum_j exp(score_j), out = sum_j exp(score_j - lse) v_j; in double the largest score is taken out
 * first. Of no keys: the sum of nothing, and its logarithm. */
void plain_attention(Stream *s, const void *arguments) {
    (void)s;
    const AttentionArgs *a = arguments;
    int64_t queries = a->q.dim[0], heads = a->q.dim[1];
    for (int64_t h = 0; h < heads; h++) {
        for (int64_t t = 0; t < queries; t++) {
            Seen seen = seen_by(a, t);
            double most = -INFINITY, sum = 0, total[MAX_HEAD_SIZE] = {0};
            for (int64_t j = seen.first; j < seen.last; j++) most = fmax(most, score(a, h, t, j));
            for (int64_t j = seen.first; j < seen.last; j++) sum += exp(score(a, h, t, j) - most);
            double lse = most + log(sum);
            for (int64_t j = seen.first; j < seen.last; j++)
                add_vector(total, exp(score(a, h, t, j) - lse), a->v, vector_at(a->v, j, kv_of(a, h)));
            put_vector(a->out, vector_at(a->out, t, h), total);
            tensor_put(a->lse, h * queries + t, lse);
        }
    }
}

/* lse = log(exp(l) + exp(l')), out = exp(l - lse) out + exp(l' - lse) out'; l is the lse before, ' is the part's. A
 * side that has seen nothing says nothing. */
void plain_attention_merge(Stream *s, const void *arguments) {
    (void)s;
    const AttentionRowsArgs *a = arguments;
    int64_t rows = a->out.dim[0], heads = a->out.dim[1];
    for (int64_t h = 0; h < heads; h++) {
        for (int64_t t = 0; t < rows; t++) {
            double ours = tensor_get(a->lse, h * rows + t), theirs = tensor_get(a->part_lse, h * rows + t);
            double most = fmax(ours, theirs), lse = most + log(exp(ours - most) + exp(theirs - most));
            if (ours == -INFINITY) lse = theirs;
            if (theirs == -INFINITY) lse = ours;
            double total[MAX_HEAD_SIZE] = {0};
            int64_t at = vector_at(a->out, t, h);
            if (ours != -INFINITY) add_vector(total, exp(ours - lse), a->out, at);
            if (theirs != -INFINITY) add_vector(total, exp(theirs - lse), a->part, at);
            put_vector(a->out, at, total);
            tensor_put(a->lse, h * rows + t, lse);
        }
    }
}

/* delta = dout out */
void plain_attention_delta(Stream *s, const void *arguments) {
    (void)s;
    const AttentionRowsArgs *a = arguments;
    int64_t rows = a->out.dim[0], heads = a->out.dim[1];
    for (int64_t h = 0; h < heads; h++) {
        for (int64_t t = 0; t < rows; t++) {
            int64_t at = vector_at(a->out, t, h);
            tensor_put(a->delta, h * rows + t, dot(a->dout, at, a->out, at));
        }
    }
}

/* With P = exp(score - lse), dP = dout v and delta = dout out: dS = P (dP - delta) is the gradient of a score. Of a row
 * that sees one key P is 1 and delta is dP: two sums of the same, of which only rounding would be left. */
static double probability(const AttentionArgs *a, int64_t h, int64_t t, int64_t j) {
    return exp(score(a, h, t, j) - tensor_get(a->lse, h * a->q.dim[0] + t));
}

static double dscore(const AttentionArgs *a, int64_t h, int64_t t, int64_t j) {
    if (index_at(a->keys, t) == 1) return 0;
    double dp = dot(a->dout, vector_at(a->dout, t, h), a->v, vector_at(a->v, j, kv_of(a, h)));
    return probability(a, h, t, j) * (dp - tensor_get(a->delta, h * a->q.dim[0] + t));
}

/* dq_t = scale sum_j dS_tj k_j */
static void query_gradient(const AttentionArgs *a, int64_t h, int64_t t) {
    double dq[MAX_HEAD_SIZE] = {0};
    Seen seen = seen_by(a, t);
    for (int64_t j = seen.first; j < seen.last; j++)
        add_vector(dq, a->shape.scale * dscore(a, h, t, j), a->k, vector_at(a->k, j, kv_of(a, h)));
    put_vector(a->dq, vector_at(a->dq, t, h), dq);
}

/* dk_j = scale sum_t dS_tj q_t, dv_j = sum_t P_tj dout_t; over every query that sees j, in all heads that
 * read this KV head */
static void key_gradient(const AttentionArgs *a, int64_t kv, int64_t j) {
    int64_t group = a->q.dim[1] / a->k.dim[1];
    double dk[MAX_HEAD_SIZE] = {0}, dv[MAX_HEAD_SIZE] = {0};
    for (int64_t h = kv * group; h < (kv + 1) * group; h++) {
        for (int64_t t = 0; t < a->q.dim[0]; t++) {
            Seen seen = seen_by(a, t);
            if (j < seen.first || j >= seen.last) continue;
            add_vector(dk, a->shape.scale * dscore(a, h, t, j), a->q, vector_at(a->q, t, h));
            add_vector(dv, probability(a, h, t, j), a->dout, vector_at(a->dout, t, h));
        }
    }
    put_vector(a->dk, vector_at(a->dk, j, kv), dk);
    put_vector(a->dv, vector_at(a->dv, j, kv), dv);
}

void plain_attention_backward(Stream *s, const void *arguments) {
    (void)s;
    const AttentionArgs *a = arguments;
    int64_t queries = a->q.dim[0], heads = a->q.dim[1], keys = a->k.dim[0], kv_heads = a->k.dim[1];
    for (int64_t h = 0; h < heads; h++) {
        for (int64_t t = 0; t < queries; t++) query_gradient(a, h, t);
    }
    for (int64_t kv = 0; kv < kv_heads; kv++) {
        for (int64_t j = 0; j < keys; j++) key_gradient(a, kv, j);
    }
}
