/* Which layouts of a config are held to one rank: each setting on its own, and drawn mixtures, because parts that are
 * right alone may still disagree about an order, a size or a group. The full product would be thousands. */
#include "plan/layouts.h"

#include "base/options.h"
#include "base/random.h"
#include "train/run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_VALUES = 8, TRIES = 200, VALUE_BYTES = 24 };

/* What may differ between layouts. */
typedef struct {
    const char *key;
    const char *alone; /* on one rank; NULL: as the config has it */
    const char
        *values[MOST_VALUES]; /* "/3": a third of a sequence, rounded up; none: the divisors of the ranks but 1 */
    const char *beside;       /* tried also where this earlier row has its last value */
    bool only;                /* and only there: it changes nothing while that row is as on one rank */
} Row;

static const char third[] = "/3";

static const Row rows[] = {
    {"mixture.dense", .alone = "1"},
    {"mixture.expert", .alone = "1"},
    {"mixture.expert_shard", .alone = "1"},
    {"mixture.ulysses", .alone = "1"},
    {"mixture.ring", .alone = "1"},
    {"mixture.vocabulary", .alone = "1"},
    {"train.micro_batches", .alone = "1", .values = {"2", "3"}},
    {"compute.activations", .alone = "keep", .values = {"recompute"}},
    {"mixture.dispatch_tokens", .alone = "0", .values = {third}, .beside = "mixture.expert"},
    {"mixture.balance_imports", .alone = "0", .values = {"2"}, .beside = "mixture.expert", .only = true},
    {"mixture.balance_threshold", .values = {"1"}, .beside = "mixture.balance_imports", .only = true},
    {"mixture.ulysses_heads", .values = {"2"}, .beside = "mixture.ulysses", .only = true},
    {"mixture.loss_chunk", .values = {third}, .beside = "mixture.vocabulary"},
    {"mixture.loss_travel", .alone = "auto", .values = {"activations", "weights"}, .beside = "mixture.vocabulary",
     .only = true},
};

/* ---- One setting ------------------------------------------------------------------------------- */

static void set(Config *c, const Row *r, const char *text) {
    Error e = {0};
    MUST(option_set(option_find(r->key), c, text, &e));
}

static bool same(const Row *r, const Config *a, const Config *b) {
    return option_equal(option_find(r->key), a, b);
}

static const Row *row_of(const char *key) {
    size_t i = 0;
    while (i < COUNT(rows) && strcmp(rows[i].key, key) != 0) i++;
    MUST(i < COUNT(rows));
    return &rows[i];
}

static int divisors(int n) { /* but 1 */
    int count = 0;
    for (int d = 2; d <= n; d++) count += n % d == 0;
    return count;
}

static int divisor(int n, int index) {
    int d = 2;
    while (n % d != 0 || index-- > 0) d++;
    return d;
}

static int values_of(const Row *r, int world) {
    int n = 0;
    while (n < MOST_VALUES && r->values[n]) n++;
    return n > 0 ? n : divisors(world);
}

static void set_value(Config *c, const Row *r, int index) {
    char number[VALUE_BYTES];
    const char *text = r->values[0] ? r->values[index] : number;
    if (!r->values[0]) snprintf(number, sizeof number, "%d", divisor((int)c->ranks, index));
    if (text == third) {
        snprintf(number, sizeof number, "%lld", (long long)ceil_div(c->train_sequence_length, 3));
        text = number;
    }
    set(c, r, text);
}

/* ---- The list ---------------------------------------------------------------------------------- */

typedef struct {
    Layouts out;
    int64_t room;
    Config alone; /* on one rank */
    Config plain; /* the same on all ranks: each with its own sequences and nothing else */
} Making;

static bool same_layout(const Config *a, const Config *b) {
    for (size_t i = 0; i < COUNT(rows); i++)
        if (!same(&rows[i], a, b)) return false;
    return a->ranks == b->ranks;
}

static bool add_layout(Making *m, const Config *c) {
    if (same_layout(c, &m->alone)) return false;
    for (int64_t i = 0; i < m->out.count; i++)
        if (same_layout(c, &m->out.layout[i])) return false;
    MUST(m->out.count < m->room);
    m->out.layout[m->out.count++] = *c;
    return true;
}

/* Gives the row that r stands beside its last value, and whatever that one stands beside; false where it has none. */
static bool set_beside(Config *c, const Row *r) {
    const Row *b = row_of(r->beside);
    int n = values_of(b, (int)c->ranks);
    if (n == 0 || (b->only && !set_beside(c, b))) return false;
    set_value(c, b, n - 1);
    return true;
}

static void add_each(Making *m, const Row *r) {
    for (int i = 0; i < values_of(r, (int)m->plain.ranks); i++) {
        Config c = m->plain, beside = m->plain;
        set_value(&c, r, i);
        if (!r->only) add_layout(m, &c);
        if (!r->beside || !set_beside(&beside, r)) continue;
        set_value(&beside, r, i);
        add_layout(m, &beside);
    }
}

/* Every row has one of its values half of the time. */
static Config draw(const Making *m, uint64_t number) {
    Config c = m->plain;
    for (size_t i = 0; i < COUNT(rows); i++) {
        const Row *r = &rows[i];
        uint64_t n = (uint64_t)values_of(r, (int)c.ranks), bits = random_bits(1, RANDOM_LAYOUT, number, i);
        if (n == 0 || bits % 2 == 0 || (r->only && same(row_of(r->beside), &c, &m->plain))) continue;
        set_value(&c, r, (int)(bits / 2 % n));
    }
    return c;
}

static void add_mixed(Making *m, const Spec *spec, int64_t mixed) {
    int64_t found = 0;
    for (int64_t i = 0; found < mixed && i < TRIES * mixed; i++) {
        Error e = {0};
        Config c = draw(m, (uint64_t)i);
        if (run_supported(&c, spec, (int)c.ranks, &e)) found += add_layout(m, &c);
    }
}

Config layout_alone(const Config *own) {
    Config c = *own;
    c.ranks = 1;
    for (size_t i = 0; i < COUNT(rows); i++)
        if (rows[i].alone) set(&c, &rows[i], rows[i].alone);
    return c;
}

Layouts layouts_make(const Config *own, const Spec *spec, int world, int64_t mixed) {
    Making m = {.room = 2 + mixed, .alone = layout_alone(own)};
    for (size_t i = 0; i < COUNT(rows); i++) m.room += 2 * values_of(&rows[i], world);
    m.out.layout = calloc((size_t)m.room, sizeof *m.out.layout);
    MUST(m.out.layout);
    m.plain = m.alone;
    m.plain.ranks = world;
    Config here = *own;
    here.ranks = world;
    if (here.mixture_dense == 0) here.mixture_dense = world;
    add_layout(&m, &here);
    add_layout(&m, &m.plain);
    for (size_t i = 0; i < COUNT(rows); i++) add_each(&m, &rows[i]);
    add_mixed(&m, spec, mixed);
    return m.out;
}

void layouts_free(Layouts *l) {
    free(l->layout);
    *l = (Layouts){0};
}

/* ---- Words ------------------------------------------------------------------------------------- */

LayoutText layout_text(const Config *layout, const Config *alone) {
    LayoutText t = {""};
    FILE *f = fmemopen(t.text, sizeof t.text, "w");
    MUST(f);
    const char *between = "";
    for (size_t i = 0; i < COUNT(rows); i++) {
        const Option *o = option_find(rows[i].key);
        if (option_equal(o, layout, alone)) continue;
        fprintf(f, "%s%s=", between, o->key + option_section(o) + 1);
        option_print(o, layout, f);
        between = " ";
    }
    if (!*between) fprintf(f, "every axis 1");
    fclose(f);
    return t;
}
