/* Front doors of routing: which expert, what it costs the losses, and who goes where. Exact integer work
 * costs bytes and no FLOPs. */
#include "ops/launch.h"

enum {
    ROUTE_FLOPS = 4,          /* a logit: subtract, exp, sum, divide */
    ROUTE_BACKWARD_FLOPS = 8, /* a logit: the auxiliary gradients, the softmax's dot product, dlogits */
    BALANCE_FLOPS = 5,        /* a count: two quotients, a product, a sum, E */
};

static bool sum_type(Type t) {
    return t == FP32 || t == FP64;
}

/* ---- The choice ------------------------------------------------------------------------------- */

void route(Stream *s, Tensor p, Tensor chosen, Tensor weight, Tensor lse, Tensor logits, bool normalise, Type round) {
    MUST(logits.dims == 2 && chosen.dims == 2 && type_real(round));
    int64_t tokens = logits.dim[0], experts = logits.dim[1], k = chosen.dim[1];
    Type sum = type_sum(round);
    MUST(logits.type == round || logits.type == sum);
    MUST(k >= 1 && k <= experts);
    MUST(tensor_is(p, sum, DIM(tokens, experts)) && tensor_is(chosen, INT32, DIM(tokens, k)));
    MUST(tensor_is(weight, sum, DIM(tokens, k)) && tensor_is(lse, sum, DIM(tokens)));
    RouteArgs args = {.p = p,
                      .chosen = chosen,
                      .weight = weight,
                      .lse = lse,
                      .logits = logits,
                      .normalise = normalise,
                      .round = round};
    op_run(s, OP_ROUTE, sum, ROUTE_FLOPS * tensor_count(logits), BYTES_OF(p, chosen, weight, lse, logits), &args,
           sizeof args);
}

/* ---- The auxiliary losses --------------------------------------------------------------------- */

void route_statistics(Stream *s, Tensor counts, Tensor mass, Tensor z, Tensor p, Tensor chosen, Tensor lse,
                      Tensor sequence) {
    MUST(sum_type(p.type) && p.dims == 2 && chosen.dims == 2 && counts.dims == 2);
    int64_t tokens = p.dim[0], experts = p.dim[1], sequences = counts.dim[0];
    MUST(tensor_is(counts, FP64, DIM(sequences, experts)) && tensor_same(mass, counts) && tensor_is(z, FP64, DIM(1)));
    MUST(tensor_is(chosen, INT32, DIM(tokens, chosen.dim[1])) && tensor_is(lse, p.type, DIM(tokens)));
    MUST(tensor_is(sequence, INT32, DIM(tokens)));
    RouteArgs args = {
        .p = p, .chosen = chosen, .lse = lse, .sequence = sequence, .counts = counts, .mass = mass, .z = z};
    int64_t bytes = tokens > 0 ? BYTES_OF(counts, counts, mass, mass, z, z, p, chosen, lse, sequence) : 0;
    op_run(s, OP_ROUTE_STATISTICS, p.type, tensor_count(p) + tensor_count(chosen) + 2 * tokens, bytes, &args,
           sizeof args);
}

void balance_loss(Stream *s, Tensor loss, Tensor counts, Tensor mass, Tensor rows) {
    MUST(counts.dims == 2 && tensor_is(counts, FP64, DIM(counts.dim[0], counts.dim[1])) && tensor_same(mass, counts));
    MUST(tensor_is(loss, FP64, DIM(1)) && tensor_is(rows, FP64, DIM(counts.dim[0])));
    RouteArgs args = {.counts = counts, .mass = mass, .rows = rows, .loss = loss};
    int64_t bytes = counts.dim[0] > 0 ? BYTES_OF(loss, loss, counts, mass, rows) : 0;
    op_run(s, OP_BALANCE_LOSS, DEFINITION, BALANCE_FLOPS * tensor_count(counts), bytes, &args, sizeof args);
}

void route_backward(Stream *s, Tensor dlogits, Tensor dweight, Tensor p, Tensor chosen, Tensor lse, Tensor counts,
                    Tensor rows, Tensor sequence, Tensor real_positions, RouteLoss loss) {
    MUST(sum_type(p.type) && p.dims == 2 && chosen.dims == 2);
    int64_t tokens = p.dim[0], experts = p.dim[1], k = chosen.dim[1];
    MUST(type_real(dlogits.type) && type_sum(dlogits.type) == p.type &&
         tensor_is(dlogits, dlogits.type, DIM(tokens, experts)));
    MUST(tensor_is(dweight, p.type, DIM(tokens, k)) && tensor_is(chosen, INT32, DIM(tokens, k)));
    MUST(tensor_is(lse, p.type, DIM(tokens)) && tensor_is(sequence, INT32, DIM(tokens)));
    MUST(loss.balance == 0 || (counts.dims == 2 && tensor_is(counts, FP64, DIM(rows.dim[0], experts))));
    MUST(loss.balance == 0 || tensor_is(rows, FP64, DIM(rows.dim[0])));
    MUST(loss.z == 0 || tensor_is(real_positions, FP64, DIM(1)));
    RouteBackwardArgs args = {.dlogits = dlogits,
                              .dweight = dweight,
                              .p = p,
                              .chosen = chosen,
                              .lse = lse,
                              .counts = counts,
                              .rows = rows,
                              .sequence = sequence,
                              .real_positions = real_positions,
                              .loss = loss};
    int64_t bytes = tokens > 0 ? BYTES_OF(dlogits, dweight, p, chosen, lse, counts, rows, sequence, real_positions) : 0;
    op_run(s, OP_ROUTE_BACKWARD, p.type, ROUTE_BACKWARD_FLOPS * tensor_count(p), bytes, &args, sizeof args);
}

/* ---- Who goes where --------------------------------------------------------------------------- */

void route_order(Stream *s, Tensor order, Tensor place, Tensor counts, Tensor chosen) {
    MUST(chosen.dims == 2 && counts.dims == 2 && counts.dim[0] >= 1);
    MUST(tensor_is(chosen, INT32, DIM(chosen.dim[0], chosen.dim[1])) && tensor_same(place, chosen));
    MUST(tensor_is(order, INT32, DIM(tensor_count(chosen))));
    MUST(tensor_is(counts, INT64, DIM(counts.dim[0], counts.dim[1])));
    OrderArgs args = {.order = order, .place = place, .counts = counts, .chosen = chosen};
    op_run(s, OP_ROUTE_ORDER, DEFINITION, 0, BYTES_OF(order, place, counts, chosen), &args, sizeof args);
}

void gather_rows(Stream *s, Tensor y, Tensor x, Tensor index, int64_t divide) {
    MUST(y.dims == 2 && x.dims == 2 && y.type == x.type && y.dim[1] == x.dim[1] && divide >= 1);
    MUST(tensor_is(index, INT32, DIM(y.dim[0])));
    RowsArgs args = {.y = y, .x = x, .index = index, .divide = divide};
    op_run(s, OP_GATHER_ROWS, y.type, 0, BYTES_OF(y, y, index), &args, sizeof args);
}

void sum_slots(Stream *s, Tensor y, Tensor base, Tensor rows, Tensor place, SlotRound round) {
    MUST(type_real(y.type) && y.dims == 2 && rows.dims == 2 && place.dims == 2);
    int64_t width = y.dim[1], k = place.dim[1];
    MUST(round.token >= 0 && round.step >= 1 && round.first >= 0);
    MUST(tensor_none(base) || tensor_same(base, y));
    MUST(tensor_is(rows, y.type, DIM(rows.dim[0], width)) && tensor_is(place, INT32, DIM(y.dim[0], k)));
    int64_t tokens = max64(0, ceil_div(y.dim[0] - round.token, round.step));
    RowsArgs args = {.y = y, .x = rows, .base = base, .place = place, .round = round};
    int64_t touched = (tensor_none(base) ? 1 : 2) + k; /* rows of a token */
    int64_t bytes = tokens * (touched * width * (int64_t)type_bytes(y.type) + k * (int64_t)type_bytes(INT32));
    op_run(s, OP_SUM_SLOTS, y.type, tokens * k * width, bytes, &args, sizeof args);
}
