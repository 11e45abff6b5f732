/* What ranks must have in common before they begin, and the sentence that says which have not. Every rank sees every
 * hash, so all of them come to the same words without asking again. */
#include "comm/comm.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Things that are the same ------------------------------------------------------------------ */

/* Hashes of one thing: rank r's is at[r * stride]. */
typedef struct {
    const uint64_t *at;
    size_t stride;
    int world;
} Hashes;

static uint64_t hash_of(const Hashes *h, int rank) {
    return h->at[(size_t)rank * h->stride];
}

/* What more than half of the ranks have (the vote of Boyer and Moore), or else rank 0. */
static uint64_t usual(const Hashes *h) {
    uint64_t candidate = 0;
    int votes = 0, have = 0;
    for (int r = 0; r < h->world; r++) {
        if (votes == 0) candidate = hash_of(h, r);
        votes += hash_of(h, r) == candidate ? 1 : -1;
    }
    for (int r = 0; r < h->world; r++) have += hash_of(h, r) == candidate;
    return 2 * have > h->world ? candidate : hash_of(h, 0);
}

typedef struct {
    char text[1500]; /* leaves room in an Error */
    size_t used;
} Words;

__attribute__((format(printf, 2, 3))) static void add(Words *w, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = vsnprintf(w->text + w->used, sizeof w->text - w->used, format, args);
    va_end(args);
    w->used = (size_t)min64((int64_t)w->used + n, sizeof w->text - 1);
}

/* "1", "1, 4-7 and others": ranks whose hash is not the usual one. Returns how many there are. */
static int add_others(Words *w, const Hashes *h) {
    enum { STRETCHES = 8 };
    uint64_t most = usual(h);
    int stretches = 0, others = 0;
    for (int first = 0, end; first < h->world; first = end) {
        end = first + 1;
        if (hash_of(h, first) == most) continue;
        while (end < h->world && hash_of(h, end) != most) end++;
        others += end - first;
        if (++stretches > STRETCHES) continue;
        add(w, stretches > 1 ? ", %d" : "%d", first);
        if (end > first + 1) add(w, "-%d", end - 1);
    }
    if (stretches > STRETCHES) add(w, " and others");
    return others;
}

static void add_difference(Words *w, const Shared *thing, const Hashes *h) {
    Words ranks = {0};
    int others = add_others(&ranks, h);
    if (others == 0) return;
    add(w, "%s%s on rank%s %s: %s", w->used ? "; " : "", thing->differs, others > 1 ? "s" : "", ranks.text,
        thing->remedy);
}

bool comm_same(Comm *c, const Shared *things, int count, Error *e) {
    size_t world = (size_t)c->mesh.world, n = (size_t)count;
    uint64_t *all = calloc(world * n, sizeof *all), *own = calloc(n, sizeof *own);
    Words differences = {0};
    bool ok = (all && own) || fail(e, EXIT_MEMORY, "no memory to compare %zu ranks; use fewer ranks", world);
    for (int i = 0; ok && i < count; i++) own[i] = things[i].hash;
    ok = ok && host_gather(c, all, own, n * sizeof *own, e);
    for (int i = 0; ok && i < count; i++)
        add_difference(&differences, &things[i], &(Hashes){.at = all + i, .stride = n, .world = c->mesh.world});
    free(own);
    free(all);
    return ok && (differences.used == 0 || fail(e, EXIT_USAGE, "%s", differences.text));
}

/* ---- Greeting --------------------------------------------------------------------------------- */

/* Through a group once: who answers as member j must be member j by his own mesh. */
static bool try_group(Group *g, Axis *members, Error *e) {
    if (!host_exchange(g, members, &g->axis, sizeof g->axis, e)) return false;
    for (int j = 0; j < g->axis.size; j++) {
        Axis m = members[j], a = g->axis;
        MUST(m.name == a.name && m.size == a.size && m.first == a.first && m.stride == a.stride && m.index == j);
    }
    return true;
}

bool comm_greet(Comm *c, const Shared *things, int count, Error *e) {
    Axis *members = calloc((size_t)c->mesh.world, sizeof *members);
    if (!members) return fail(e, EXIT_MEMORY, "no memory to greet %d ranks; use fewer ranks", c->mesh.world);
    bool ok = comm_same(c, things, 1, e) && comm_same(c, things + 1, count - 1, e);
    for (int a = 0; ok && a < AXIS_COUNT; a++) ok = try_group(&c->group[a], members, e);
    free(members);
    return ok;
}
