/* The cut of cut.h. */
#include "comm/cut.h"

Cut cut_of(const Config *c) {
    return (Cut){.ulysses = (int)c->mixture_ulysses,
                 .ring = (int)c->mixture_ring,
                 .length = c->train_sequence_length,
                 .limit = c->train_sequence_length};
}

/* Positions [first, end), as far as they exist. */
static Span stretch(const Cut *c, int64_t first, int64_t end) {
    first = min64(first, c->limit);
    return (Span){.first = first, .count = max64(0, min64(end, c->limit) - first)};
}

static Stretches stretches(Span a, Span b) {
    return (Stretches){.part = {a, b}, .tokens = a.count + b.count};
}

static int64_t part_begin(const Cut *c, int part) {
    return part * c->length / (2 * c->ring);
}

Stretches cut_ring_member(const Cut *c, int ring) {
    int second = 2 * c->ring - 1 - ring;
    return stretches(stretch(c, part_begin(c, ring), part_begin(c, ring + 1)),
                     stretch(c, part_begin(c, second), part_begin(c, second + 1)));
}

/* Rows [from, to) of two stretches that lie one behind the other. */
static Span overlap(Span s, int64_t before, int64_t from, int64_t to) {
    int64_t first = max64(0, min64(from - before, s.count)), end = max64(first, min64(to - before, s.count));
    return (Span){.first = s.first + first, .count = end - first};
}

Stretches cut_rank(const Cut *c, int rank) {
    Cut whole = *c;
    whole.limit = c->length;
    int ulysses = rank % c->ulysses, ring = rank / c->ulysses % c->ring;
    Stretches all = cut_ring_member(&whole, ring);
    int64_t from = ulysses * all.tokens / c->ulysses, to = (ulysses + 1) * all.tokens / c->ulysses;
    Span a = overlap(all.part[0], 0, from, to), b = overlap(all.part[1], all.part[0].count, from, to);
    return stretches(stretch(c, a.first, a.first + a.count), stretch(c, b.first, b.first + b.count));
}

int64_t stretches_below(const Stretches *s, int64_t position) {
    int64_t rows = 0;
    for (int i = 0; i < 2; i++) rows += max64(0, min64(position - s->part[i].first, s->part[i].count));
    return rows;
}
