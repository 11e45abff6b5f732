/* The same steps in many layouts, held to one rank. The reference is taken once: the numbers of every step, the
 * gradients of the first and the weights and moments after the last. Then one layout after the other trains on ranks
 * that are threads, and every rank compares what it holds with the reference, so that a layout costs no more than its
 * run. */
#include "plan/verify_layouts.h"
#include "base/limits.h"

#include "plan/layouts.h"
#include "plan/plan.h"
#include "store/collection.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { USUAL_RANKS = 4, MOST_RANKS = 64 };

/* fp32 has near-ties: a router whose two best experts differ by less than rounding may choose the other one, and then
 * agrees with nothing. */
static const struct Precision {
    const char *name;
    Type type;
    double bound;
} precisions[] = {{"fp64", FP64, 1e-12}, {"fp32", FP32, 1e-5}};

/* What is compared of the tensors: gradients after the first step, the rest after the last. */
enum { GRADIENT, WEIGHT, FIRST_MOMENT, SECOND_MOMENT, TENSORS };
static const struct {
    StoreKind kind;
    const char *name;
} tensors[TENSORS] = {
    [GRADIENT] = {STORE_GRADIENT, "gradient"},
    [WEIGHT] = {STORE_WEIGHT, "weight"},
    [FIRST_MOMENT] = {STORE_M, "first moment"},
    [SECOND_MOMENT] = {STORE_V, "second moment"},
};

/* And of a step's result. */
enum { LOSS, BALANCE, ROUTER_Z, NORM, NUMBERS };
static const size_t numbers[NUMBERS] = {
    [LOSS] = offsetof(StepResult, loss),
    [BALANCE] = offsetof(StepResult, balance),
    [ROUTER_Z] = offsetof(StepResult, router_z),
    [NORM] = offsetof(StepResult, norm),
};

/* What one rank of a layout found. */
typedef struct {
    double number[NUMBERS];        /* the worst relative difference of any step */
    Deviation *deviation[TENSORS]; /* [tensors of the reference] */
} Finding;

typedef struct {
    const struct Precision *precision;
    int64_t steps;
    Config alone;                  /* the reference's settings */
    StepResult *step;              /* [steps] of the reference */
    Collection reference[TENSORS]; /* empty until it is taken */
    Finding *finding;              /* [ranks] */
} Verification;

typedef struct {
    double number[NUMBERS];
    Difference tensor[TENSORS];
} Comparison;

/* ---- One rank ---------------------------------------------------------------------------------- */

/* What a rank does with every result, and with its store when there is something in it to compare: keep it, or
 * compare it. */
typedef struct {
    void (*result)(Verification *v, Run *r, const StepResult *one);
    bool (*tensor)(Verification *v, Run *r, int which, Error *e);
} Look;

static bool train_steps(Session *s, Run *r, Look look, Error *e) {
    Verification *v = s->context;
    if (!session_read_weights(s, r, e)) return false;
    for (int64_t i = 0; i < v->steps; i++) {
        StepResult one;
        if (!train_step(r, i, false, &one, e)) return false;
        MUST(run_within(r, &s->price[r->comm.mesh.rank]));
        look.result(v, r, &one);
        if (i == 0 && !look.tensor(v, r, GRADIENT, e)) return false;
    }
    store_flush(r->store);
    bool ok = true;
    for (int i = WEIGHT; ok && i < TENSORS; i++) ok = look.tensor(v, r, i, e);
    return ok;
}

static void keep_result(Verification *v, Run *r, const StepResult *one) {
    (void)r;
    v->step[one->step] = *one;
}

static bool keep_tensor(Verification *v, Run *r, int which, Error *e) {
    if (!collection_open(&v->reference[which], &r->store, 1, e)) return false;
    collection_take(&v->reference[which], r->store, tensors[which].kind);
    return true;
}

static bool take_reference(Session *s, Run *r, Error *e) {
    Verification *v = s->context;
    if (!train_steps(s, r, (Look){keep_result, keep_tensor}, e)) return false;
    for (int64_t i = 0; i < v->steps; i++)
        if (!v->step[i].finite)
            return fail(e, EXIT_DIVERGED,
                        "loss or gradient of step %lld on one rank is not finite, so that nothing can be compared with "
                        "it; use a smaller optimizer.learning_rate or fewer --steps",
                        (long long)i + 1);
    return true;
}

static double number_of(const StepResult *one, int which) {
    return *(const double *)((const char *)one + numbers[which]);
}

/* INFINITY where one is not a number, or only the expected one is 0. */
static double relative(double got, double expected) {
    if (got == expected) return 0;
    double x = fabs(got - expected) / fabs(expected);
    return isnan(x) ? INFINITY : x;
}

static void compare_result(Verification *v, Run *r, const StepResult *one) {
    double *worst = v->finding[r->comm.mesh.rank].number;
    for (int i = 0; i < NUMBERS; i++)
        worst[i] = fmax(worst[i], relative(number_of(one, i), number_of(&v->step[one->step], i)));
}

static bool compare_tensor(Verification *v, Run *r, int which, Error *e) {
    (void)e;
    collection_deviate(v->finding[r->comm.mesh.rank].deviation[which], &v->reference[which], r->store,
                       tensors[which].kind);
    return true;
}

static bool compare_rank(Session *s, Run *r, Error *e) {
    return train_steps(s, r, (Look){compare_result, compare_tensor}, e);
}

/* ---- One layout -------------------------------------------------------------------------------- */

/* [ranks][tensors], a rank's where its Finding points; NULL: no memory. */
static Deviation *open_deviations(Verification *v, int ranks, int which) {
    int64_t n = v->reference[which].count;
    Deviation *all = calloc((size_t)(ranks * n), sizeof *all);
    for (int r = 0; all && r < ranks; r++) v->finding[r].deviation[which] = all + r * n;
    return all;
}

static int no_memory(int ranks) {
    Error e = {0};
    fail(&e, EXIT_MEMORY, "no memory for the results of %d ranks; use fewer --ranks, or free some memory", ranks);
    return session_error(&e);
}

static int compare_layout(Verification *v, Session *s, Comparison *out) {
    Deviation *deviations[TENSORS] = {NULL};
    v->finding = calloc((size_t)s->world, sizeof *v->finding);
    bool room = v->finding != NULL;
    for (int i = 0; room && i < TENSORS; i++) room = (deviations[i] = open_deviations(v, s->world, i));
    int code = room ? session_run(s, plan_price, compare_rank, v) : no_memory(s->world);
    *out = (Comparison){0};
    for (int i = 0; code == EXIT_DONE && i < NUMBERS; i++)
        for (int r = 0; r < s->world; r++) out->number[i] = fmax(out->number[i], v->finding[r].number[i]);
    for (int i = 0; code == EXIT_DONE && i < TENSORS; i++)
        out->tensor[i] = collection_difference(&v->reference[i], deviations[i], s->world);
    for (int i = 0; i < TENSORS; i++) free(deviations[i]);
    free(v->finding);
    return code;
}

/* ---- The table --------------------------------------------------------------------------------- */

/* The worst of all layouts. */
typedef struct {
    double difference;
    char where[600];
} Worst;

/* A tensor's name without what all have: "layers.2.mlp.experts.5.up_proj". */
static Shown short_name(const char *name) {
    static const char before[] = "model.", after[] = ".weight";
    if (strncmp(name, before, sizeof before - 1) == 0) name += sizeof before - 1;
    Shown s = text_shown(name);
    char *end = strstr(s.text, after);
    if (end && !end[sizeof after - 1]) *end = 0;
    return s;
}

/* Which of the weights and moments is farthest off. */
static int worst_state(const Comparison *c) {
    int at = WEIGHT;
    for (int i = WEIGHT; i < TENSORS; i++)
        if (c->tensor[i].relative > c->tensor[at].relative) at = i;
    return at;
}

static double worst_loss(const Comparison *c) {
    return fmax(c->number[LOSS], fmax(c->number[BALANCE], c->number[ROUTER_Z]));
}

static void note_worst(Worst *w, double difference, const char *what, const char *name, const char *layout) {
    if (difference <= w->difference && w->where[0]) return;
    w->difference = difference;
    snprintf(w->where, sizeof w->where, "%s%s%s, %s", what, *name ? " of " : "", name, layout);
}

static bool print_comparison(const Verification *v, const Comparison *c, const char *layout, Worst *worst) {
    int state = worst_state(c);
    const Difference *g = &c->tensor[GRADIENT], *w = &c->tensor[state];
    double losses = worst_loss(c), norm = c->number[NORM];
    bool agrees = fmax(fmax(losses, norm), fmax(g->relative, w->relative)) <= v->precision->bound;
    printf("%9.1e %9.1e %9.1e %9.1e  %-8s %s  (gradient of %s, %s of %s)\n", losses, norm, g->relative, w->relative,
           agrees ? "ok" : "DIFFERS", layout, short_name(g->tensor).text, tensors[state].name,
           short_name(w->tensor).text);
    note_worst(worst, losses, "losses", "", layout);
    note_worst(worst, norm, "gradient norm", "", layout);
    note_worst(worst, g->relative, "gradient", g->tensor, layout);
    note_worst(worst, w->relative, tensors[state].name, w->tensor, layout);
    return agrees;
}

static void print_head(const Verification *v, const Layouts *all) {
    const Config *c = &v->alone;
    int64_t ranks = all->layout[0].ranks;
    printf("reference: one rank, %lld step%s of %lld x %lld tokens, %s: loss %.4f, after the last step's %.4f\n",
           (long long)v->steps, v->steps == 1 ? "" : "s", (long long)c->train_sequences,
           (long long)c->train_sequence_length, v->precision->name, v->step[0].loss, v->step[v->steps - 1].loss);
    printf("%lld layouts on %lld rank%s, and how far the farthest of each is from it: losses and gradient norm of a "
           "step (relative), gradients\n",
           (long long)all->count, (long long)ranks, ranks == 1 ? "" : "s");
    printf("of the first step, weights and moments after the last (norm of the difference over the tensor's norm, or "
           "over 1e-3 of all tensors')\n\n");
    printf("%9s %9s %9s %9s\n", "losses", "norm", "gradients", "weights");
}

static void print_end(const Verification *v, int64_t agree, int64_t compared, int64_t refused, const Worst *worst) {
    double bound = v->precision->bound;
    if (agree == compared)
        printf("\n%lld layouts agree with one rank within %g", (long long)agree, bound);
    else
        printf("\n%lld of %lld layouts DIFFER from one rank by more than %g", (long long)(compared - agree),
               (long long)compared, bound);
    printf(", worst %.1e (%s); %lld refused\n", worst->difference, worst->where, (long long)refused);
}

/* ---- All of them ------------------------------------------------------------------------------- */

/* The largest run, and what is kept of the reference beside it. */
static bool all_fit(const Verification *v, Session *s, const Layouts *all, Error *e) {
    double kept = TENSORS * sizeof(double) * (double)spec_parameters(&s->spec), most = 0, gib = 1 << 30;
    Price *price = calloc(MOST_RANKS, sizeof *price);
    bool ok = price || fail(e, EXIT_MEMORY, "no memory to plan the layouts; free some memory");
    ok = ok && plan_price(&v->alone, &s->spec, 1, price, e);
    if (ok) most = price_bytes(price, 1);
    for (int64_t i = 0; ok && i < all->count; i++) {
        const Config *c = &all->layout[i];
        Error refused = {0};
        if (!run_supported(c, &s->spec, (int)c->ranks, &refused)) continue;
        ok = plan_price(c, &s->spec, (int)c->ranks, price, e);
        if (ok) most = fmax(most, price_bytes(price, (int)c->ranks));
    }
    free(price);
    double have = memory_limit();
    if (!ok || most + kept <= have) return ok;
    return fail(e, EXIT_MEMORY,
                "the largest layout needs up to %.1f GiB, the results to compare it with %.1f, and this machine has "
                "%.1f; use fewer --ranks, or a smaller model, train.sequences or train.sequence_length",
                most / gib, kept / gib, have / gib);
}

static int compare_all(Verification *v, Session *s, const Layouts *all) {
    int64_t agree = 0, refused = 0;
    Worst worst = {0};
    print_head(v, all);
    for (int64_t i = 0; i < all->count; i++) {
        Error e = {0};
        Comparison c;
        LayoutText text = layout_text(&all->layout[i], &v->alone);
        fflush(stdout);
        if (!run_supported(&all->layout[i], &s->spec, (int)all->layout[i].ranks, &e)) {
            printf("%39s  refused  %s: %s\n", "", text.text, e.text);
            refused++;
            continue;
        }
        int code = session_settle(s, &all->layout[i], &e) ? compare_layout(v, s, &c) : session_error(&e);
        if (code != EXIT_DONE) {
            printf("%39s  failed   %s\n", "", text.text);
            return code;
        }
        agree += print_comparison(v, &c, text.text, &worst);
    }
    print_end(v, agree, all->count - refused, refused, &worst);
    return agree == all->count - refused ? EXIT_DONE : EXIT_WRONG;
}

static int verify(Verification *v, Session *s, Config *own, const VerifyOptions *o, int world) {
    Error e = {0};
    Layouts all = layouts_make(own, &s->spec, world, o->layouts);
    int code = all_fit(v, s, &all, &e) ? session_run(s, plan_price, take_reference, v) : session_error(&e);
    if (code == EXIT_DONE) code = compare_all(v, s, &all);
    for (int i = 0; i < TENSORS; i++) collection_free(&v->reference[i]);
    layouts_free(&all);
    return code;
}

/* ---- The command ------------------------------------------------------------------------------- */

static const struct Precision *precision_named(const char *name) {
    for (size_t i = 0; i < COUNT(precisions); i++)
        if (strcmp(precisions[i].name, name) == 0) return &precisions[i];
    return NULL;
}

static bool check(const Config *own, const VerifyOptions *o, Error *e) {
    if (wire_mpi_world() > 0)
        return fail(e, EXIT_USAGE, "verify-layouts makes its own ranks, threads of one process; leave mpirun out");
    if (!precision_named(o->type))
        return fail(e, EXIT_USAGE, "--type is \"%s\"; it must be fp64 or fp32", text_shown(o->type).text);
    if (device_counts(own->device))
        return fail(e, EXIT_USAGE, "device %s only meters, and has nothing to compare; use device cpu", own->device);
    return true;
}

int verify_layouts_command(const Config *own, const VerifyOptions *o) {
    Error e = {0};
    Session s = {0};
    if (!check(own, o, &e)) return session_error(&e);
    int64_t usual = own->ranks > 1 && own->ranks <= MOST_RANKS ? own->ranks : USUAL_RANKS;
    Config c = *own;
    c.compute_type = precision_named(o->type)->type;
    c.sim_record = ""; /* a file */
    Verification v = {.precision = precision_named(o->type), .steps = o->steps, .alone = layout_alone(&c)};
    v.step = calloc((size_t)o->steps, sizeof *v.step);
    if (!v.step) {
        fail(&e, EXIT_MEMORY, "no memory for the results of %lld steps; use fewer --steps", (long long)o->steps);
        return session_error(&e);
    }
    int code = session_open(&s, &v.alone, &e) && session_data(&s, &e)
                   ? verify(&v, &s, &c, o, (int)(o->ranks > 0 ? o->ranks : usual))
                   : session_error(&e);
    session_close(&s);
    free(v.step);
    return code;
}
