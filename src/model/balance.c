/* The plan of balance.h. */
#include "model/balance.h"

#include <string.h>

typedef struct {
    const BalanceShape *of;
    Balance out;
    int64_t *left; /* [rounds][experts] rows that are still the owner's */
    int64_t *room; /* [rounds][members] rows that a member could still take */
    int64_t *rows; /* [experts] left, over all rounds */
    int64_t *load; /* [members] rows, over all rounds */
    int64_t *shut; /* [members] 1: gives and takes no more */
    int64_t mean;  /* of the loads, rounded up */
} Plan;

static int64_t slots(const BalanceShape *of) {
    return of->members * of->imports;
}

int64_t balance_words(const BalanceShape *of) {
    return slots(of) * (1 + of->rounds) + of->rounds * (of->experts + of->members) + of->experts + 2 * of->members;
}

/* Hands out the memory, cleared. */
static Plan plan_open(const BalanceShape *of, int64_t *memory) {
    memset(memory, 0, (size_t)balance_words(of) * sizeof *memory);
    Plan p = {.of = of};
    const struct {
        int64_t **at, words;
    } parts[] = {{&p.out.expert, slots(of)},
                 {&p.out.taken, slots(of) * of->rounds},
                 {&p.left, of->rounds * of->experts},
                 {&p.room, of->rounds * of->members},
                 {&p.rows, of->experts},
                 {&p.load, of->members},
                 {&p.shut, of->members}};
    for (size_t i = 0; i < COUNT(parts); i++) {
        *parts[i].at = memory;
        memory += parts[i].words;
    }
    for (int64_t i = 0; i < slots(of); i++) p.out.expert[i] = -1;
    return p;
}

/* True when the busiest member has too much. */
static bool measure(Plan *p, const int64_t *table) {
    const BalanceShape *of = p->of;
    int64_t cells = of->rounds * of->experts, total = 0, busiest = 0;
    for (int64_t source = 0; source < of->members; source++)
        for (int64_t i = 0; i < cells; i++) p->left[i] += table[source * cells + i];
    for (int64_t i = 0; i < of->rounds * of->members; i++) p->room[i] = of->most;
    for (int64_t r = 0; r < of->rounds; r++)
        for (int64_t e = 0; e < of->experts; e++) {
            int64_t rows = p->left[r * of->experts + e];
            p->rows[e] += rows;
            p->load[e / of->each] += rows;
            p->room[r * of->members + e / of->each] -= rows;
        }
    for (int64_t m = 0; m < of->members; m++) {
        total += p->load[m];
        busiest = max64(busiest, p->load[m]);
    }
    p->mean = ceil_div(total, of->members);
    return (double)busiest * (double)of->members > of->threshold * (double)total;
}

static int64_t hottest_member(const Plan *p) {
    int64_t found = -1;
    for (int64_t m = 0; m < p->of->members; m++)
        if (!p->shut[m] && p->load[m] > p->mean && (found < 0 || p->load[m] > p->load[found])) found = m;
    return found;
}

static int64_t hottest_expert(const Plan *p, int64_t member) {
    int64_t first = member * p->of->each, end = min64(first + p->of->each, p->of->experts), found = first;
    for (int64_t e = first; e < end; e++)
        if (p->rows[e] > p->rows[found]) found = e;
    return found;
}

/* The slot of a member that has the expert, or could; -1: none. */
static int64_t slot_for(const Plan *p, int64_t member, int64_t expert) {
    int64_t first = member * p->of->imports;
    for (int64_t i = first; i < first + p->of->imports; i++) /* they are filled in order */
        if (p->out.expert[i] == expert || p->out.expert[i] < 0) return i;
    return -1;
}

static int64_t least_loaded_taker(const Plan *p, int64_t expert) {
    int64_t found = -1;
    for (int64_t m = 0; m < p->of->members; m++)
        if (!p->shut[m] && p->load[m] < p->mean && (found < 0 || p->load[m] < p->load[found]) &&
            slot_for(p, m, expert) >= 0)
            found = m;
    return found;
}

static int64_t *left_of(const Plan *p, int64_t round, int64_t expert) {
    return &p->left[round * p->of->experts + expert];
}

static int64_t *room_of(const Plan *p, int64_t round, int64_t member) {
    return &p->room[round * p->of->members + member];
}

/* Rows of the expert that could go to the member in a round. */
static int64_t movable(const Plan *p, int64_t round, int64_t expert, int64_t to) {
    return max64(0, min64(*left_of(p, round, expert), *room_of(p, round, to)));
}

/* Moves `wanted` rows, or as many as fit, and says how many. Each round gives its share of what is still to come, so
 * the shares add up exactly and none exceeds what the round has. (Rows of a round are below 2^31: see rows_fit in
 * train/run.c.) */
static int64_t move(Plan *p, int64_t expert, int64_t to, int64_t wanted) {
    int64_t could = 0, slot = slot_for(p, to, expert);
    for (int64_t r = 0; r < p->of->rounds; r++) could += movable(p, r, expert, to);
    int64_t moved = min64(wanted, could), still = moved;
    if (moved == 0) return 0;
    for (int64_t r = 0; r < p->of->rounds && still > 0; r++) {
        int64_t here = movable(p, r, expert, to), rows = still * here / could;
        p->out.taken[slot * p->of->rounds + r] += rows;
        *left_of(p, r, expert) -= rows;
        *room_of(p, r, to) -= rows;
        could -= here;
        still -= rows;
    }
    p->out.expert[slot] = expert;
    p->rows[expert] -= moved;
    p->load[expert / p->of->each] -= moved;
    p->load[to] += moved;
    return moved;
}

Balance balance_make(const BalanceShape *of, const int64_t *table, int64_t *memory) {
    Plan p = plan_open(of, memory);
    if (!measure(&p, table)) return p.out;
    for (int64_t from; (from = hottest_member(&p)) >= 0;) {
        int64_t expert = hottest_expert(&p, from), to = least_loaded_taker(&p, expert);
        if (to < 0) {
            p.shut[from] = 1;
            continue;
        }
        int64_t wanted = min64(min64(p.load[from] - p.mean, p.rows[expert]), p.mean - p.load[to]);
        if (move(&p, expert, to, wanted) == 0) p.shut[to] = 1;
    }
    return p.out;
}
