/* Front doors of what looks across tokens: embedding, positions, attention. */
#include "ops/launch.h"

enum {
    ROPE_FLOPS = 3,       /* an element: two products and a sum */
    ROPE_TABLE_FLOPS = 2, /* an element: the angle, and its cosine or sine */
    MERGE_FLOPS = 3,      /* an element: two products and a sum */
    DELTA_FLOPS = 2,      /* an element: a product and a sum */
};

/* ---- Embedding -------------------------------------------------------------------------------- */

void embedding(Stream *s, Tensor y, Tensor token, Tensor table) {
    MUST(type_real(table.type) && table.dims == 2 && token.dims == 1);
    int64_t tokens = token.dim[0], width = table.dim[1];
    MUST(tensor_is(token, INT32, DIM(tokens)) && tensor_is(y, table.type, DIM(tokens, width)));
    EmbeddingArgs args = {.y = y, .token = token, .table = table};
    op_run(s, OP_EMBEDDING, y.type, 0, BYTES_OF(y, y, token), &args, sizeof args);
}

void embedding_backward(Stream *s, Tensor dtable, Tensor dy, Tensor token, int64_t frozen) {
    MUST(type_real(dy.type) && dtable.dims == 2 && token.dims == 1);
    int64_t tokens = token.dim[0], width = dtable.dim[1];
    MUST(dtable.type == type_sum(dy.type) && frozen < dtable.dim[0]);
    MUST(tensor_is(token, INT32, DIM(tokens)) && tensor_is(dy, dy.type, DIM(tokens, width)));
    EmbeddingArgs args = {.y = dy, .token = token, .table = dtable, .frozen = frozen};
    int64_t rows_touched = 2 * tensor_count(dy) * (int64_t)type_bytes(dtable.type); /* read and written */
    op_run(s, OP_EMBEDDING_BACKWARD, dy.type, tensor_count(dy), BYTES_OF(dy, token) + rows_touched, &args, sizeof args);
}

/* ---- Rotary positions ------------------------------------------------------------------------- */

void rope_table(Stream *s, Tensor table, Tensor position, double theta) {
    MUST((table.type == FP32 || table.type == FP64) && table.dims == 2 && table.dim[1] % 2 == 0);
    MUST(tensor_is(position, INT32, DIM(table.dim[0])));
    RopeArgs args = {.table = table, .position = position, .theta = theta};
    op_run(s, OP_ROPE_TABLE, table.type, ROPE_TABLE_FLOPS * tensor_count(table), BYTES_OF(table, position), &args,
           sizeof args);
}

void rope(Stream *s, Tensor y, Tensor x, Tensor table, bool inverse) {
    MUST(type_real(x.type) && x.dims == 3 && x.dim[2] % 2 == 0 && tensor_same(y, x));
    MUST(tensor_is(table, type_sum(x.type), DIM(x.dim[0], x.dim[2])));
    RopeArgs args = {.y = y, .x = x, .table = table, .inverse = inverse};
    int64_t bytes = tensor_count(x) > 0 ? BYTES_OF(y, x, table) : 0;
    op_run(s, OP_ROPE, x.type, ROPE_FLOPS * tensor_count(x), bytes, &args, sizeof args);
}

/* ---- Attention -------------------------------------------------------------------------------- */

/* Results may be kept as data are, or as sums are. */
static bool real_or_sum(Type t, Type real) {
    return t == real || t == type_sum(real);
}

static void check_attention(Tensor q, Tensor k, Tensor v, Tensor first, Tensor last, AttentionShape shape) {
    MUST(type_real(q.type) && q.dims == 3 && k.dims == 3);
    int64_t queries = q.dim[0], heads = q.dim[1], keys = k.dim[0], kv = k.dim[1], d = q.dim[2];
    MUST(tensor_is(k, q.type, DIM(keys, kv, d)) && tensor_same(v, k));
    MUST(kv > 0 && heads % kv == 0 && d > 0 && d <= MAX_HEAD_SIZE);
    MUST(tensor_is(first, INT32, DIM(queries)) && tensor_same(last, first));
    MUST(shape.scale > 0 && shape.pairs >= 0);
}

void attention(Stream *s, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor first, Tensor last,
               AttentionShape shape) {
    check_attention(q, k, v, first, last, shape);
    int64_t queries = q.dim[0], heads = q.dim[1], d = q.dim[2];
    MUST(real_or_sum(out.type, q.type) && tensor_is(out, out.type, DIM(queries, heads, d)));
    MUST(tensor_is(lse, type_sum(q.type), DIM(heads, queries)));
    AttentionArgs args = {.out = out, .lse = lse, .q = q, .k = k, .v = v, .first = first, .last = last, .shape = shape};
    op_run(s, OP_ATTENTION, q.type, 4.0 * (double)(d * heads) * (double)shape.pairs,
           BYTES_OF(out, lse, q, k, v, first, last), &args, sizeof args);
}

void attention_merge(Stream *s, Tensor out, Tensor lse, Tensor part, Tensor part_lse) {
    MUST(out.dims == 3 && type_real(out.type) && out.type == type_sum(out.type) && tensor_same(part, out));
    MUST(out.dim[2] <= MAX_HEAD_SIZE && tensor_is(lse, out.type, DIM(out.dim[1], out.dim[0])));
    MUST(tensor_same(part_lse, lse));
    AttentionRowsArgs args = {.out = out, .lse = lse, .part = part, .part_lse = part_lse};
    op_run(s, OP_ATTENTION_MERGE, out.type, MERGE_FLOPS * tensor_count(out),
           BYTES_OF(out, out, lse, lse, part, part_lse), &args, sizeof args);
}

void attention_delta(Stream *s, Tensor delta, Tensor dout, Tensor out) {
    MUST(dout.dims == 3 && type_real(dout.type) && type_real(out.type));
    int64_t rows = dout.dim[0], heads = dout.dim[1], d = dout.dim[2];
    MUST(type_sum(out.type) == type_sum(dout.type) && tensor_is(out, out.type, DIM(rows, heads, d)));
    MUST(tensor_is(delta, type_sum(dout.type), DIM(heads, rows)));
    AttentionRowsArgs args = {.out = out, .delta = delta, .dout = dout};
    op_run(s, OP_ATTENTION_DELTA, dout.type, DELTA_FLOPS * tensor_count(dout), BYTES_OF(delta, dout, out), &args,
           sizeof args);
}

void attention_backward(Stream *s, Tensor dq, Tensor dk, Tensor dv, Tensor delta, Tensor dout, Tensor lse, Tensor q,
                        Tensor k, Tensor v, Tensor first, Tensor last, Tensor keys, AttentionShape shape) {
    check_attention(q, k, v, first, last, shape);
    int64_t queries = q.dim[0], heads = q.dim[1], d = q.dim[2];
    MUST(tensor_same(keys, first));
    MUST(tensor_same(dout, q) && real_or_sum(dq.type, q.type) && tensor_is(dq, dq.type, DIM(queries, heads, d)));
    MUST(tensor_is(dk, dq.type, DIM(k.dim[0], k.dim[1], d)) && tensor_same(dv, dk));
    MUST(tensor_is(lse, type_sum(q.type), DIM(heads, queries)) && tensor_same(delta, lse));
    AttentionArgs args = {.lse = lse,
                          .q = q,
                          .k = k,
                          .v = v,
                          .first = first,
                          .last = last,
                          .keys = keys,
                          .dq = dq,
                          .dk = dk,
                          .dv = dv,
                          .delta = delta,
                          .dout = dout,
                          .shape = shape};
    op_run(s, OP_ATTENTION_BACKWARD, q.type, 10.0 * (double)(d * heads) * (double)shape.pairs,
           BYTES_OF(dq, dk, dv, delta, dout, lse, q, k, v, first, last, keys), &args, sizeof args);
}
