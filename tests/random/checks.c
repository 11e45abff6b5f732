/* Runs of a case in this process, on ranks that are threads, and what is held to what. */
#include "random/checks.h"

#include "base/random.h"
#include "checkpoint/checkpoint.h"
#include "ranks.h"

#include "ops/kernels.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* FLOOR is what layouts are held to elsewhere. Where a case is so ill-conditioned that kernels differ by UNSOUND, a
 * rounding has decided something (a tie of experts), and nothing can be said. */
static const double CONDITION = 16, FLOOR = 1e-12, UNSOUND = 1e-4;

_Noreturn void check_end(int code) {
    fflush(NULL);
    _exit(code);
}

_Noreturn void check_failed(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
    check_end(1);
}

_Noreturn void check_idle(const char *why) {
    printf("%s\n", why);
    check_end(2);
}

/* ---- A run -------------------------------------------------------------------------------------- */

enum { GRADIENT, WEIGHT, FIRST_MOMENT, SECOND_MOMENT, TENSORS };
static const StoreKind kinds[TENSORS] = {STORE_GRADIENT, STORE_MASTER, STORE_M, STORE_V};
static const char *const names[TENSORS] = {"gradient", "weight", "first moment", "second moment"};

typedef struct {
    StepResult step[MADE_STEPS];
    Collection tensor[TENSORS]; /* gradients of the last step; the rest after it */
} Result;

/* How a run differs from the case's own. */
typedef struct {
    const char *sets[12];
    bool alone;          /* one rank, one micro-batch, everything 1 */
    const char *run;     /* checkpoints go there or come from there; NULL: none */
    int64_t from, until; /* steps; until 0: the last. From > 0: of the newest checkpoint of `run` */
    bool saves;          /* after every step; else only when it ends before the last */
    uint64_t nudged;     /* not 0: weights begin one rounding away from where they would, to and fro by this seed */
} Way;

static const char *const alone_sets[] = {
    "mixture.dense=1",          "mixture.expert=1",         "mixture.expert_shard=1",
    "mixture.ulysses=1",        "mixture.ring=1",           "mixture.vocabulary=1",
    "train.micro_batches=1",    "compute.activations=keep", "mixture.dispatch_tokens=0",
    "mixture.balance_imports=0"};

typedef struct {
    const char *run;
    TrainState state;
} Disk;

static bool save(Run *r, void *context, Error *e) {
    const Disk *d = context;
    TrainState state = d->state;
    state.updates = r->updates;
    Checkpoints *c = checkpoints_open(d->run, "", r->spec, r->config->compute_type, r->store, NULL, &r->comm, e);
    bool ok = c && checkpoint_save(c, &state, NULL, e);
    checkpoints_close(c);
    return ok;
}

static bool load(Run *r, void *context, Error *e) {
    const Disk *d = context;
    ResumeReport report;
    Checkpoints *c = checkpoints_open(d->run, "", r->spec, r->config->compute_type, r->store, NULL, &r->comm, e);
    bool ok = c && checkpoint_resume(c, &report, e);
    checkpoints_close(c);
    if (!ok) return false;
    if (!report.found || report.state.step != d->state.step)
        check_failed("step %lld was saved and not found again", (long long)d->state.step);
    r->updates = report.state.updates;
    return true;
}

static Ranks *open_ranks(const Made *m, const Way *w) {
    RanksSetup setup = {.world = w->alone ? 1 : (int)m->world, .spec = m->spec, .documents = m->documents};
    size_t n = 0, room = COUNT(setup.sets) - 1;
    for (int i = 0; m->sets[i]; i++) setup.sets[n++] = m->sets[i];
    /* The last of a key counts, and a list is bounded: what is said again takes the place of what was said. */
    const char *const *more[] = {alone_sets, w->sets};
    size_t counts[] = {w->alone ? COUNT(alone_sets) : 0, 0};
    while (w->sets[counts[1]]) counts[1]++;
    for (int l = 0; l < 2; l++)
        for (size_t i = 0; i < counts[l]; i++) {
            size_t key = strcspn(more[l][i], "=") + 1, at = 0;
            while (at < n && strncmp(setup.sets[at], more[l][i], key) != 0) at++;
            assert_true(at < room);
            setup.sets[at] = more[l][i];
            if (at == n) n++;
        }
    return ranks_open(setup);
}

static void nudge(Ranks *r, uint64_t seed) {
    Collection weights = ranks_collect(r, STORE_MASTER);
    for (int64_t i = 0; i < weights.count; i++)
        for (int64_t j = 0; j < weights.tensor[i].count; j++) {
            bool up = random_bits(seed, RANDOM_TEST, (uint64_t)i, (uint64_t)j) % 2;
            weights.tensor[i].value[j] = nextafter(weights.tensor[i].value[j], up ? INFINITY : -INFINITY);
        }
    ranks_put(r, STORE_MASTER, &weights);
    collection_free(&weights);
}

static Result run(const Made *m, const Way *w) {
    Result out;
    Ranks *r = open_ranks(m, w);
    int64_t until = w->until ? w->until : MADE_STEPS;
    Disk disk = {.run = w->run, .state = {.step = w->from}};
    memset(&out, 0, sizeof out);
    if (w->from > 0) ranks_run(r, load, &disk);
    if (w->nudged) nudge(r, w->nudged);
    for (int64_t i = w->from; i < until; i++) {
        ranks_train(r, i, 1, &out.step[i]);
        disk.state.step = i + 1;
        if (w->run && (w->saves || (i + 1 == until && until < MADE_STEPS))) ranks_run(r, save, &disk);
    }
    for (int t = 0; t < TENSORS; t++) out.tensor[t] = ranks_collect(r, kinds[t]);
    Price *used = ranks_prices(r);
    assert_within_plan("the run", r, used);
    free(used);
    ranks_close(r);
    return out;
}

static void result_free(Result *r) {
    for (int t = 0; t < TENSORS; t++) collection_free(&r->tensor[t]);
}

/* ---- How far two are apart ----------------------------------------------------------------------- */

/* Of the numbers of every step, relative; of tensors, in units of collection_scales. */
enum { NUMBERS = TENSORS, DISTANCES };
typedef struct {
    double most[DISTANCES];
    char where[DISTANCES][220];
} Distance;

static void note(Distance *d, int which, double x, const char *what, const char *of) {
    if (isnan(x)) x = INFINITY;
    if (x < d->most[which] || (x == 0 && d->where[which][0])) return;
    d->most[which] = x;
    snprintf(d->where[which], sizeof d->where[which], "%s of %s", what, of);
}

static double relative(double got, double expected) {
    if (got == expected || (isnan(got) && isnan(expected))) return 0;
    return fabs(got - expected) / fmax(fabs(expected), 1e-9);
}

static void compare_numbers(Distance *d, const Result *got, const Result *expected, int64_t from) {
    for (int64_t i = from; i < MADE_STEPS; i++) {
        const StepResult *g = &got->step[i], *x = &expected->step[i];
        char step[32];
        snprintf(step, sizeof step, "step %lld", (long long)i);
        note(d, NUMBERS, relative(g->loss, x->loss), "the loss", step);
        note(d, NUMBERS, relative(g->balance, x->balance), "the balance loss", step);
        note(d, NUMBERS, relative(g->router_z, x->router_z), "the z loss", step);
        note(d, NUMBERS, relative(g->norm, x->norm), "the norm", step);
        note(d, NUMBERS, relative((double)g->trained, (double)x->trained), "the count of trained positions", step);
        note(d, NUMBERS, g->finite != x->finite, "finiteness", step);
    }
}

static void compare_tensors(Distance *d, int which, const Collection *got, const Collection *expected) {
    double *scale = collection_scales(expected);
    for (int64_t i = 0; i < expected->count; i++) {
        const NamedTensor *g = &got->tensor[i], *x = &expected->tensor[i];
        double squares = 0;
        assert_string_equal(g->name, x->name);
        for (int64_t j = 0; j < x->count; j++) squares += (g->value[j] - x->value[j]) * (g->value[j] - x->value[j]);
        note(d, which, squares == 0 ? 0 : sqrt(squares) / scale[i], names[which], x->name);
    }
    free(scale);
}

static Distance distance(const Result *got, const Result *expected, int64_t from) {
    Distance d = {0};
    compare_numbers(&d, got, expected, from);
    for (int t = 0; t < TENSORS; t++) compare_tensors(&d, t, &got->tensor[t], &expected->tensor[t]);
    return d;
}

static void assert_same_bits_of(const char *way, const Result *got, const Result *expected, int64_t from) {
    assert_results_same_bits(way, got->step + from, expected->step + from, MADE_STEPS - from);
    for (int t = 0; t < TENSORS; t++) {
        char what[300];
        snprintf(what, sizeof what, "%s: %s", way, names[t]);
        assert_collections_same_bits(what, &got->tensor[t], &expected->tensor[t]);
    }
}

/* ---- The bound ----------------------------------------------------------------------------------- */

static const char *const kernels[] = {"device=cpu:plain", "device=cpu:portable", "device=cpu:avx2",
                                      "device=cpu:avx512"};

static bool there(const char *device) {
    Error e = {0};
    (void)kernels_for(strchr(device, '=') + 1, &e);
    return e.code == EXIT_DONE;
}

static void note_noise(Distance *most, const Made *m, const Result *expected, const Way *w) {
    Result other = run(m, w);
    Distance d = distance(&other, expected, 0);
    for (int i = 0; i < DISTANCES; i++) note(most, i, d.most[i], d.where[i], w->nudged ? "nudged weights" : w->sets[0]);
    result_free(&other);
}

/* What one rank makes of the case with other kernels, and with weights that begin one rounding away, beside what it
 * makes of it itself. */
static Distance noise_of(const Made *m, const Result *expected) {
    enum { NUDGES = 3 };
    Distance most = {0};
    for (size_t k = 0; k < COUNT(kernels); k++)
        if (there(kernels[k])) note_noise(&most, m, expected, &(Way){.alone = true, .sets = {kernels[k]}});
    for (uint64_t i = 1; i <= NUDGES; i++) note_noise(&most, m, expected, &(Way){.alone = true, .nudged = i});
    for (int i = 0; i < DISTANCES; i++)
        if (most.most[i] > UNSOUND) check_idle("idle: kernels decide otherwise on one rank");
    return most;
}

static void assert_near_one_rank(const char *way, const Result *got, const Result *expected, const Distance *noise,
                                 int64_t from) {
    Distance d = distance(got, expected, from);
    double farthest = 0;
    for (int i = 0; i < DISTANCES; i++) {
        double allowed = fmax(FLOOR, CONDITION * noise->most[i]);
        farthest = fmax(farthest, d.most[i] / allowed);
        if (!(d.most[i] <= allowed))
            check_failed("%s: %s is %.3g away from one rank, allowed %.3g; roundings on one rank: %.3g (%s)", way,
                         d.where[i], d.most[i], allowed, noise->most[i], noise->where[i]);
    }
    printf("%s: %.3g of what is allowed\n", way, farthest);
}

/* ---- The checks ---------------------------------------------------------------------------------- */

static void finite_or_idle(const Result *r) {
    for (int i = 0; i < MADE_STEPS; i++)
        if (!r->step[i].finite) check_idle("idle: one rank diverges");
}

void check_layout(const Case *c, const char *directory) {
    (void)directory;
    Made *m = case_make(c);
    Result expected = run(m, &(Way){.alone = true});
    finite_or_idle(&expected);
    Distance noise = noise_of(m, &expected);
    Result got = run(m, &(Way){0});
    assert_near_one_rank("the layout", &got, &expected, &noise, 0);
    result_free(&expected);
    result_free(&got);
    made_free(m);
}

static const struct {
    const char *name;
    Way way;
} variants[] = {
    {"threads", {.sets = {"compute.threads=1"}}},
    {"threads", {.sets = {"compute.threads=3"}}},
    {"threads", {.sets = {"compute.threads=2"}}},
    {"a deferred update", {.sets = {"optimizer.update=deferred"}}},
    {"a blocking update", {.sets = {"optimizer.update=blocking"}}},
    {"everything kept", {.sets = {"compute.activations=keep"}}},
    {"everything recomputed", {.sets = {"compute.activations=recompute"}}},
    {"late streams and wires", {.sets = {"device=cpu:late"}}},
    {"late streams and wires, recomputed", {.sets = {"device=cpu:late", "compute.activations=recompute"}}},
    {"saves after every step", {.saves = true}},
    {"late saves", {.saves = true, .sets = {"device=cpu:late", "compute.threads=2"}}},
    {"the same again", {.alone = false}},
};

void check_bits(const Case *c, const char *directory) {
    Made *m = case_make(c);
    Result expected = run(m, &(Way){0});
    for (size_t i = (size_t)case_value(c, DRAWN_OTHER) % 2; i < COUNT(variants); i += 2) {
        Way way = variants[i].way;
        if (way.saves) way.run = directory;
        Result got = run(m, &way);
        assert_same_bits_of(variants[i].name, &got, &expected, 0);
        result_free(&got);
    }
    result_free(&expected);
    made_free(m);
}

void check_resume(const Case *c, const char *directory) {
    Made *m = case_make(c);
    int64_t stop = 1 + case_value(c, DRAWN_STOP) % (MADE_STEPS - 1);
    Result expected = run(m, &(Way){0});
    Result begun = run(m, &(Way){.run = directory, .until = stop});
    Result same = run(m, &(Way){.run = directory, .from = stop});
    assert_same_bits_of("stopped and resumed", &same, &expected, stop);
    bool fp64 = c->pick[DRAWN_TYPE] == 0;
    if (fp64) {
        Result one = run(m, &(Way){.alone = true});
        finite_or_idle(&one);
        Distance noise = noise_of(m, &one);
        Result elsewhere = run(m, &(Way){.alone = true, .run = directory, .from = stop});
        assert_near_one_rank("resumed on one rank", &elsewhere, &one, &noise, stop);
        result_free(&one);
        result_free(&elsewhere);
    }
    result_free(&begun);
    result_free(&same);
    result_free(&expected);
    made_free(m);
}
