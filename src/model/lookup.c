/* From everybody's tokens to spans. */
#include "model/lookup.h"

#include <stdlib.h>
#include <string.h>

/* An empty micro-batch has a round, too. */
static int64_t rounds_of(int64_t longest, int64_t tokens) {
    return max64(1, ceil_div(longest, tokens));
}

bool lookup_open(Lookup *l, const Axis *group, int64_t vocabulary, int64_t tokens, int64_t most, int64_t longest,
                 Error *e) {
    *l = (Lookup){.members = group->size,
                  .index = group->index,
                  .vocabulary = vocabulary,
                  .each = axis_share(group, vocabulary).each,
                  .tokens = tokens,
                  .most = most,
                  .longest = longest,
                  .rounds = rounds_of(longest, tokens),
                  .most_room = most,
                  .round_room = rounds_of(longest, tokens)};
    size_t rounds = (size_t)l->rounds, blocks = rounds * (size_t)l->members;
    l->round = calloc(rounds, sizeof *l->round);
    l->span = calloc((size_t)most + blocks, sizeof *l->span);
    l->spans = calloc(2 * blocks, sizeof *l->spans);
    if (l->round && l->span && l->spans) return true;
    lookup_close(l);
    return fail(e, EXIT_MEMORY,
                "no memory for the rows of %lld tokens in %lld rounds; use a larger mixture.loss_chunk or a smaller "
                "mixture.vocabulary",
                (long long)most, (long long)l->rounds);
}

void lookup_close(Lookup *l) {
    free(l->round);
    free(l->span);
    free(l->spans);
    l->round = NULL;
    l->span = NULL;
    l->spans = NULL;
}

int64_t lookup_round_tokens(const Lookup *l, int64_t r) {
    return max64(0, min64(l->tokens, l->most - r * l->tokens));
}

/* Positions [first, end) of a member's tokens. */
typedef struct {
    int64_t first, end;
} Positions;

static Positions positions_of(const Lookup *l, int64_t r, int64_t tokens) {
    int64_t first = min64(tokens, r * l->tokens);
    return (Positions){first, min64(tokens, first + l->tokens)};
}

static int64_t owner_of(const Lookup *l, int32_t token) {
    MUST(token >= 0 && token < l->vocabulary);
    return token / l->each;
}

/* Where this member's tokens of one owner lie: neighbours are one span. Returns the end of what was written. */
static Span *find_mine(const Lookup *l, const int32_t *token, Positions p, int64_t owner, Span *out) {
    Span *begin = out;
    for (int64_t t = p.first; t < p.end; t++) {
        if (owner_of(l, token[t]) != owner) continue;
        if (out > begin && out[-1].first + out[-1].count == t)
            out[-1].count++;
        else
            *out++ = (Span){t, 1};
    }
    return out;
}

/* Which rows of this member the tokens of another ask for. Returns the end of what was written. */
static int32_t *find_theirs(const Lookup *l, const int32_t *token, Positions p, int32_t *out) {
    for (int64_t t = p.first; t < p.end; t++)
        if (owner_of(l, token[t]) == l->index) *out++ = (int32_t)(token[t] - l->index * l->each);
    return out;
}

void lookup_fill(Lookup *l, int64_t longest, const int32_t *const *token, const int64_t *tokens, int32_t *id) {
    int64_t *spans = l->spans;
    Span *span = l->span;
    int32_t *at = id;
    l->longest = longest;
    l->rounds = rounds_of(longest, l->tokens);
    l->most = 0;
    for (int64_t j = 0; j < l->members; j++) l->most = max64(l->most, tokens[j]);
    MUST(l->most <= l->most_room && l->rounds <= l->round_room);
    for (int64_t r = 0; r < l->rounds; r++) {
        LookupRound *round = &l->round[r];
        round->mine = (Spans){span, spans};
        for (int64_t j = 0; j < l->members; j++) {
            Span *end = find_mine(l, token[l->index], positions_of(l, r, tokens[l->index]), j, span);
            *spans++ = end - span;
            span = end;
        }
        round->theirs = (Spans){span, spans};
        round->first = at - id;
        for (int64_t j = 0; j < l->members; j++) {
            int32_t *end = find_theirs(l, token[j], positions_of(l, r, tokens[j]), at);
            *span++ = (Span){at - id - round->first, end - at};
            *spans++ = 1;
            at = end;
        }
        round->rows = at - id - round->first;
    }
    l->ids = at - id;
}

void lookup_order(const Lookup *l, const int32_t *const *target, const int64_t *tokens, int32_t *out) {
    for (int64_t r = 0; r < l->rounds; r++) {
        int64_t n = lookup_round_tokens(l, r);
        for (int64_t j = 0; j < l->members; j++, out += n) {
            Positions p = positions_of(l, r, tokens[j]);
            for (int64_t i = 0; i < n; i++) out[i] = p.first + i < p.end ? target[j][p.first + i] : -1;
        }
    }
}
