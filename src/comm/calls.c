/* The calls of a rank, and what they say when nothing moves. */
#include "comm/calls.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct CallLog {
    pthread_mutex_t lock;
    uint64_t queued, begun, done;
    Call call[CALLS_KEPT]; /* number n is at n mod CALLS_KEPT */
};

CallLog *calls_open(void) {
    CallLog *l = calloc(1, sizeof *l);
    if (l) pthread_mutex_init(&l->lock, NULL);
    return l;
}

void calls_close(CallLog *l) {
    if (l) pthread_mutex_destroy(&l->lock);
    free(l);
}

void calls_queue(CallLog *l, Call c) {
    pthread_mutex_lock(&l->lock);
    l->call[++l->queued % CALLS_KEPT] = c;
    pthread_mutex_unlock(&l->lock);
}

void calls_begin(CallLog *l) {
    pthread_mutex_lock(&l->lock);
    l->begun++;
    pthread_mutex_unlock(&l->lock);
}

void calls_end(CallLog *l) {
    pthread_mutex_lock(&l->lock);
    l->done = l->begun;
    pthread_mutex_unlock(&l->lock);
}

Tail calls_tail(CallLog *l) {
    pthread_mutex_lock(&l->lock);
    Tail t = {.queued = l->queued, .begun = l->begun, .done = l->done, .known = true};
    uint64_t last = t.queued < t.begun + 2 ? t.queued : t.begun + 2; /* what comes next is worth two lines */
    t.count = last < CALLS_TOLD ? last : CALLS_TOLD;
    t.first = last - t.count + 1;
    for (uint64_t i = 0; i < t.count; i++) t.call[i] = l->call[(t.first + i) % CALLS_KEPT];
    pthread_mutex_unlock(&l->lock);
    return t;
}

/* ---- Words ------------------------------------------------------------------------------------ */

typedef struct {
    char text[160];
} Words;

static const char *call_name(const Call *c) {
    return c->collective == HOST_MESSAGE ? "host_message" : collective_name((Collective)c->collective);
}

/* "dense {0 2 4 6}", of many members "world {0 1 2 .. 63}". */
static Words group_words(const Axis *a) {
    Words w;
    int n = snprintf(w.text, sizeof w.text, "%s {", axis_name(a->name));
    for (int j = 0; j < a->size; j++) {
        bool left_out = a->size > 8 && j > 2 && j < a->size - 1;
        if (left_out && j > 3) continue;
        const char *space = j ? " " : "";
        n += left_out ? snprintf(w.text + n, sizeof w.text - (size_t)n, " ..")
                      : snprintf(w.text + n, sizeof w.text - (size_t)n, "%s%d", space, a->first + j * a->stride);
    }
    snprintf(w.text + n, sizeof w.text - (size_t)n, "}");
    return w;
}

/* "collective 42 (all_gather over dense {0 1}, step 3, layer 1)" */
static Words call_words(const Tail *t, uint64_t number) {
    Words w;
    int n = snprintf(w.text, sizeof w.text, "collective %llu", (unsigned long long)number);
    if (number < t->first || number >= t->first + t->count) return w;
    const Call *c = &t->call[number - t->first];
    n += snprintf(w.text + n, sizeof w.text - (size_t)n, " (%s over %s", call_name(c), group_words(&c->axis).text);
    if (c->step >= 0) n += snprintf(w.text + n, sizeof w.text - (size_t)n, ", step %lld", (long long)c->step);
    if (c->layer >= 0) n += snprintf(w.text + n, sizeof w.text - (size_t)n, ", layer %lld", (long long)c->layer);
    snprintf(w.text + n, sizeof w.text - (size_t)n, ")");
    return w;
}

static Words number_words(int64_t n) {
    Words w = {"-"};
    if (n >= 0) snprintf(w.text, sizeof w.text, "%lld", (long long)n);
    return w;
}

/* ---- The table -------------------------------------------------------------------------------- */

static void print_tail(const Tail *t, int rank, FILE *f) {
    if (!t->known) {
        fprintf(f, "%4d  does not answer\n", rank);
        return;
    }
    if (t->count == 0) fprintf(f, "%4d  has called none\n", rank);
    for (uint64_t i = 0; i < t->count; i++) {
        uint64_t number = t->first + i;
        const Call *c = &t->call[i];
        const char *state = number <= t->done ? "done" : number <= t->begun ? "running" : "queued";
        fprintf(f, "%4d %8llu  %-14s  %-28s %12lld %7s %6s  %s\n", rank, (unsigned long long)number, call_name(c),
                group_words(&c->axis).text, (long long)c->bytes, number_words(c->step).text,
                number_words(c->layer).text, state);
    }
}

void calls_print(const Tail *tails, int world, FILE *f) {
    flockfile(f);
    fprintf(f, "rank   number  collective      group                               bytes    step  layer  state\n");
    for (int r = 0; r < world; r++) print_tail(&tails[r], r, f);
    fflush(f);
    funlockfile(f);
}

/* ---- Who is behind ---------------------------------------------------------------------------- */

/* The ranks for which `is` holds, at least one: "rank 3" or "ranks 1, 2, 3, 4, 5, 6, 7, 8 and 9 more". */
static Words rank_words(const bool *is, int world) {
    Words w;
    int count = 0, told = 0, n = 0;
    for (int r = 0; r < world; r++) count += is[r];
    for (int r = 0; r < world && told < 8; r++)
        if (is[r])
            n += snprintf(w.text + n, sizeof w.text - (size_t)n,
                          told++      ? ", %d"
                          : count > 1 ? "ranks %d"
                                      : "rank %d",
                          r);
    if (count > told) snprintf(w.text + n, sizeof w.text - (size_t)n, " and %d more", count - told);
    return w;
}

bool calls_fail(Error *e, const Tail *tails, int world, int rank, double timeout) {
    const char *hint = "raise comm.timeout if it is only slow";
    Words mine = call_words(&tails[rank], tails[rank].begun);
    bool *is = calloc((size_t)world, sizeof *is), silent = false;
    if (!is) return fail(e, EXIT_PEER, "rank %d had waited %g s in %s; %s", rank, timeout, mine.text, hint);
    uint64_t least = UINT64_MAX;
    int one = 0, count = 0; /* of those behind */
    for (int r = 0; r < world; r++) {
        is[r] = !tails[r].known;
        silent = silent || is[r];
        if (!is[r] && tails[r].begun < least) least = tails[one = r].begun;
    }
    for (int r = 0; r < world && !silent; r++) {
        is[r] = tails[r].begun == least;
        count += is[r];
    }
    Words who = rank_words(is, world), there = call_words(&tails[one], least);
    free(is);
    if (silent)
        return fail(e, EXIT_PEER,
                    "%s did not answer after rank %d had waited %g s in %s; look whether it was stopped or cut off, %s",
                    who.text, rank, timeout, mine.text, hint);
    if (count == world)
        return fail(e, EXIT_PEER,
                    "nothing moved for %g s although all ranks have come to %s; look at the network, or %s", timeout,
                    mine.text, hint);
    if (least == 0)
        return fail(e, EXIT_PEER, "%s had come to no collective yet after rank %d had waited %g s in %s; %s", who.text,
                    rank, timeout, mine.text, hint);
    return fail(e, EXIT_PEER, "%s %s behind: at %s after rank %d had waited %g s in %s; %s", who.text,
                count > 1 ? "are" : "is", there.text, rank, timeout, mine.text, hint);
}
