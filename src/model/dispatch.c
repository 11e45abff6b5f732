/* From the table to spans. */
#include "model/dispatch.h"

#include <string.h>

/* ---- Memory ----------------------------------------------------------------------------------- */

static int64_t *words(Arena *host, int64_t count) {
    return arena_bytes(host, (size_t)count * sizeof(int64_t));
}

static Spans reserve_spans(Arena *host, int64_t members, int64_t most) {
    return (Spans){.span = arena_bytes(host, (size_t)most * sizeof(Span)), .spans = words(host, members)};
}

/* A member's own experts are one run of a sender's rows; every import cuts a piece out of some owner's. */
void dispatch_reserve(Dispatch *d, const DispatchShape *of, Arena *host) {
    const BalanceShape *g = &of->group;
    int64_t imports = g->members * g->imports, here = of->here + g->imports;
    *d = (Dispatch){.round = arena_bytes(host, (size_t)g->rounds * sizeof *d->round)};
    for (int64_t r = 0; r < g->rounds; r++)
        d->round[r] = (Round){.send = reserve_spans(host, g->members, g->members + 2 * imports),
                              .receive = reserve_spans(host, g->members, g->members * here),
                              .rows = words(host, here)};
    if (imports == 0) return;
    d->lend = reserve_spans(host, g->members, imports);
    d->borrow = reserve_spans(host, g->members, g->imports);
    d->owner = words(host, g->imports);
    d->at = words(host, imports);
}

/* ---- Spans, written one after another ---------------------------------------------------------- */

typedef struct {
    Span *span;
    int64_t *spans;
    int64_t used;
} Writer;

static Writer writer_of(Spans s, int64_t members) {
    Writer w = {.span = (Span *)(uintptr_t)s.span, .spans = (int64_t *)(uintptr_t)s.spans}; /* ours until handed out */
    memset(w.spans, 0, (size_t)members * sizeof *w.spans);
    return w;
}

/* Members come in order. What goes on where the last span ended is one with it. */
static void write_span(Writer *w, int64_t member, int64_t first, int64_t count) {
    if (count == 0) return;
    Span *last = w->used > 0 ? &w->span[w->used - 1] : NULL;
    if (w->spans[member] > 0 && last->first + last->count == first) {
        last->count += count;
        return;
    }
    w->span[w->used++] = (Span){first, count};
    w->spans[member]++;
}

/* ---- Shares ----------------------------------------------------------------------------------- */

/* Rows [first, end) of an expert's rows in a round. */
typedef struct {
    int64_t first, end;
} Range;

static int64_t overlap(Range a, Range b) {
    return max64(0, min64(a.end, b.end) - max64(a.first, b.first));
}

/* One round, seen by one rank; the rest is scratch. */
typedef struct {
    const DispatchShape *of;
    const int64_t *table;
    const Balance *plan; /* read only where there are imports */
    int64_t index;       /* of the round */
    Range *kept;         /* [experts] by their owners */
    Range *given;        /* [members x imports] to the slots */
    int64_t *before;     /* [experts] rows of earlier senders */
    int64_t *start;      /* [experts] where this rank's rows begin in its sorted order */
    int64_t *expert;     /* [each + imports] that the member at hand works for */
    Range *share;        /* [each + imports] and its share of their rows */
    int64_t *at;         /* [each + imports] where the next of them will lie */
    int64_t *passed;     /* [each + imports] rows of its expert that earlier senders have */
} View;

static Range *ranges(Arena *host, int64_t count) {
    return arena_bytes(host, (size_t)count * sizeof(Range));
}

static View view_open(const DispatchShape *of, const int64_t *table, const Balance *plan, Arena *host) {
    const BalanceShape *g = &of->group;
    int64_t here = g->each + g->imports;
    return (View){.of = of,
                  .table = table,
                  .plan = plan,
                  .kept = ranges(host, g->experts),
                  .given = ranges(host, g->members * g->imports),
                  .before = words(host, g->experts),
                  .start = words(host, g->experts),
                  .expert = words(host, here),
                  .share = ranges(host, here),
                  .at = words(host, here),
                  .passed = words(host, here)};
}

/* Rows of all experts that a sender has in the round. */
static const int64_t *sent_by(const View *v, int64_t member) {
    const BalanceShape *g = &v->of->group;
    return v->table + (member * g->rounds + v->index) * g->experts;
}

/* Owners keep what no importer takes; importers follow in the order of their slots. */
static void divide(View *v) {
    const BalanceShape *g = &v->of->group;
    memset(v->kept, 0, (size_t)g->experts * sizeof *v->kept);
    for (int64_t j = 0; j < g->members; j++)
        for (int64_t e = 0; e < g->experts; e++) v->kept[e].end += sent_by(v, j)[e];
    for (int64_t i = 0; i < g->members * g->imports; i++)
        if (v->plan->expert[i] >= 0) v->kept[v->plan->expert[i]].end -= v->plan->taken[i * g->rounds + v->index];
    for (int64_t e = 0; e < g->experts; e++) v->before[e] = v->kept[e].end;
    for (int64_t i = 0; i < g->members * g->imports; i++) {
        if (v->plan->expert[i] < 0) continue;
        int64_t *next = &v->before[v->plan->expert[i]];
        v->given[i].first = *next;
        v->given[i].end = *next += v->plan->taken[i * g->rounds + v->index];
    }
}

/* The experts that a member works for in the round, and its share of their rows; returns how many. Empty slots:
 * nobody's, no rows. */
static int64_t shares_of(View *v, int64_t member) {
    const BalanceShape *g = &v->of->group;
    int64_t first = min64(g->experts, member * g->each), end = min64(g->experts, first + g->each), n = 0;
    for (int64_t e = first; e < end; e++, n++) {
        v->expert[n] = e;
        v->share[n] = v->kept[e];
    }
    for (int64_t i = member * g->imports; i < (member + 1) * g->imports; i++, n++) {
        bool empty = v->plan->expert[i] < 0;
        v->expert[n] = empty ? 0 : v->plan->expert[i];
        v->share[n] = empty ? (Range){0} : v->given[i];
    }
    return n;
}

/* ---- One round -------------------------------------------------------------------------------- */

/* This rank's rows are sorted by expert; each member gets what lies in its shares, expert by expert. */
static void make_send(View *v, Round *out) {
    const BalanceShape *g = &v->of->group;
    const int64_t *mine = sent_by(v, v->of->index);
    Writer w = writer_of(out->send, g->members);
    memset(v->before, 0, (size_t)g->experts * sizeof *v->before);
    for (int64_t j = 0; j < v->of->index; j++)
        for (int64_t e = 0; e < g->experts; e++) v->before[e] += sent_by(v, j)[e];
    for (int64_t e = 0, row = 0; e < g->experts; row += mine[e++]) v->start[e] = row;
    for (int64_t j = 0; j < g->members; j++) {
        int64_t n = shares_of(v, j);
        for (int64_t x = 0; x < n; x++) {
            int64_t e = v->expert[x];
            Range own = {v->before[e], v->before[e] + mine[e]};
            int64_t from = max64(own.first, v->share[x].first) - own.first;
            write_span(&w, j, v->start[e] + from, overlap(own, v->share[x]));
        }
    }
}

/* Expert by expert, and by sender within one: each sender's rows go on where those of the one before it ended. */
static void make_receive(View *v, Round *out) {
    const BalanceShape *g = &v->of->group;
    Writer w = writer_of(out->receive, g->members);
    int64_t n = shares_of(v, v->of->index);
    out->arrived = out->own = 0;
    for (int64_t x = 0; x < n; x++) {
        out->rows[x] = v->share[x].end - v->share[x].first;
        v->at[x] = out->arrived;
        v->passed[x] = 0;
        out->arrived += out->rows[x];
        if (x < v->of->here) out->own += out->rows[x];
    }
    for (int64_t j = 0; j < g->members; j++)
        for (int64_t x = 0; x < n; x++) {
            int64_t end = v->passed[x] + sent_by(v, j)[v->expert[x]];
            int64_t count = overlap((Range){v->passed[x], end}, v->share[x]);
            write_span(&w, j, v->at[x], count);
            v->at[x] += count;
            v->passed[x] = end;
        }
}

/* ---- Imported experts -------------------------------------------------------------------------- */

static void make_imports(Dispatch *d, const DispatchShape *of, const Balance *plan) {
    const BalanceShape *g = &of->group;
    Writer lend = writer_of(d->lend, g->members), borrow = writer_of(d->borrow, g->members);
    for (int64_t j = 0; j < g->members; j++)
        for (int64_t i = 0; i < g->imports; i++) {
            int64_t e = plan->expert[j * g->imports + i];
            bool ours = e >= of->first && e < of->first + of->here;
            d->at[i * g->members + j] = ours ? (e - of->first) * of->matrix : -1;
            if (ours) write_span(&lend, j, e - of->first, 1);
        }
    for (int64_t i = 0; i < g->imports; i++) {
        int64_t e = plan->expert[of->index * g->imports + i];
        d->owner[i] = e < 0 ? -1 : e / g->each;
    }
    for (int64_t j = 0; j < g->members; j++)
        for (int64_t i = 0; i < g->imports; i++)
            if (d->owner[i] == j) write_span(&borrow, j, i, 1);
}

void dispatch_make(Dispatch *d, const DispatchShape *of, Arena *host, const int64_t *table) {
    const BalanceShape *g = &of->group;
    Mark mark = arena_mark(host);
    Balance plan = {0};
    if (g->imports > 0) {
        plan = balance_make(g, table, words(host, balance_words(g)));
        make_imports(d, of, &plan);
    }
    View v = view_open(of, table, &plan, host);
    d->most = 0;
    for (v.index = 0; v.index < g->rounds; v.index++) {
        Round *r = &d->round[v.index];
        divide(&v);
        make_send(&v, r);
        make_receive(&v, r);
        d->most = max64(d->most, r->arrived);
    }
    arena_reset(host, mark);
}
