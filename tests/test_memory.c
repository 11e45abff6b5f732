/* Memory is a contract: whatever the routing, no arena of any rank holds more than the plan says, and the routing
 * that the plan foresees for a rank needs all of it. What the experts of a layer need is the formula of
 * docs/parallel.md, of the rows that a round brings, which no routing makes more than R.
 *
 * Routings are made: every token id wants its own experts, each the most of what one feature of the hidden states
 * says. */
#include "trials.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { EXPERTS = 17, CHOICES = 2, HOT = 2, WIDTH = 24 };

/* Seventeen experts: over 8 ranks three each, so that one rank has two and two ranks have none. Two of them are 12 %.
 * */
#define MODEL(inner, tied)                                                                                             \
    "{\"model_type\": \"olmoe\", \"vocab_size\": 67, \"hidden_size\": 24, \"num_hidden_layers\": 2, "                  \
    "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"num_experts\": 17, \"num_experts_per_tok\": "           \
    "2, \"intermediate_size\": " inner ", \"norm_topk_prob\": false, \"rms_norm_eps\": 1e-5, "                         \
    "\"rope_theta\": 10000, \"tie_word_embeddings\": " tied ", \"hidden_act\": \"silu\"}"
static const char *const models[] = {MODEL("12", "false"), MODEL("12", "true")};
static const char wide_model[] = MODEL("256", "false");

/* ---- Routings --------------------------------------------------------------------------------- */

/* The expert that a token id wants first, second. `member`: whose experts, of how many members. */
typedef int64_t (*Want)(int64_t token, int choice, int64_t member, int64_t members);

static int64_t want_all_alike(int64_t token, int choice, int64_t member, int64_t members) {
    (void)member;
    (void)members;
    return (CHOICES * token + choice + HOT) % EXPERTS;
}

/* Four of five tokens want the hot experts, the others never. */
static int64_t want_hot(int64_t token, int choice, int64_t member, int64_t members) {
    (void)member;
    (void)members;
    return token % 5 > 0 ? choice : HOT + (CHOICES * token + choice) % (EXPERTS - HOT);
}

static int64_t want_member(int64_t token, int choice, int64_t member, int64_t members) {
    (void)token;
    return (member * ceil_div(EXPERTS, members) + choice) % EXPERTS;
}

/* Feature e of the hidden states comes from the embedding alone, and alone says how much expert e is wanted. */
static void steer(Collection *weights, Want want, int64_t member, int64_t members) {
    for (int64_t i = 0; i < weights->count; i++) {
        NamedTensor *t = &weights->tensor[i];
        bool embedding = strstr(t->name, "embed_tokens"), router = strstr(t->name, "mlp.gate.weight");
        bool adds = strstr(t->name, "o_proj") || strstr(t->name, "down_proj");
        bool norm = t->dims == 1 && t->dim[0] == WIDTH && !strstr(t->name, "q_norm") && !strstr(t->name, "k_norm");
        for (int64_t j = 0; norm && j < EXPERTS; j++) t->value[j] = 1;
        for (int64_t j = 0; adds && j < EXPERTS * t->dim[1]; j++) t->value[j] = 0;
        for (int64_t j = 0; router && j < t->count; j++) t->value[j] = j / WIDTH == j % WIDTH ? 6 : 0;
        for (int64_t token = 0; embedding && token < t->dim[0]; token++) {
            for (int64_t j = 0; j < EXPERTS; j++) t->value[token * WIDTH + j] = 0;
            for (int c = 0; c < CHOICES; c++)
                t->value[token * WIDTH + want(token, c, member, members)] = c == 0 ? 20 : 15;
        }
    }
}

/* Ranks, and their weights as they are before the first step. */
typedef struct {
    Ranks *ranks;
    Collection weights;
} Routed;

static Routed routed_open(Layout l, const Trial *trial) {
    Ranks *r = trial_open("", l, trial);
    assert_true(r->spec.experts == EXPERTS && r->spec.top_k == CHOICES && r->spec.hidden == WIDTH);
    return (Routed){r, ranks_collect(r, STORE_MASTER)};
}

static void routed_close(Routed *x) {
    collection_free(&x->weights);
    ranks_close(x->ranks);
}

/* From here on routing is another, and the peaks are those of what follows. */
static void route_by(Routed *x, Want want, int64_t member) {
    Ranks *r = x->ranks;
    steer(&x->weights, want, member, r->config.mixture_expert);
    ranks_put(r, STORE_MASTER, &x->weights);
    for (int i = 0; i < r->world; i++)
        for (int a = 0; a < ARENA_COUNT; a++) {
            Arena *arena = run_arena(r->run[i], (ArenaName)a);
            arena->peak = arena->used;
        }
}

/* JSONL of documents of up to 24 tokens that go round all ids, so that a batch has as many of each as of any other;
 * freed by the caller. */
static char *even_documents(int documents) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *f = open_memstream(&text, &bytes);
    assert_non_null(f);
    for (int d = 0, n = 0; d < documents; d++) {
        fprintf(f, "{\"input_ids\": [%d", n++ * 29 % TRIAL_VOCABULARY);
        for (int i = 0; i < 7 * d % 24; i++) fprintf(f, ", %d", n++ * 29 % TRIAL_VOCABULARY);
        fprintf(f, "]}\n");
    }
    fclose(f);
    return text;
}

/* Of all rows of the last step, those of the hot experts. */
static double hot_share(const Ranks *r) {
    double hot = 0, all = 0;
    for (int i = 0; i < r->world; i++)
        for (int e = 0; e < EXPERTS; e++) {
            hot += e < HOT ? r->run[i]->model.load[e] : 0;
            all += r->run[i]->model.load[e];
        }
    return hot / all;
}

/* ---- The plan --------------------------------------------------------------------------------- */

static double total(const Price *p) {
    double bytes = 0;
    for (int a = 0; a < ARENA_COUNT; a++) bytes += (double)p->bytes[a];
    return bytes;
}

static Price *use(const char *name, Routed *x, Want want, int64_t member) {
    route_by(x, want, member);
    ranks_run(x->ranks, do_everything, NULL);
    Price *used = ranks_prices(x->ranks);
    assert_within_plan(name, x->ranks, used);
    return used;
}

static void assert_share_of_hot(const char *name, Routed *x, Want want, double least, double most) {
    free(use(name, x, want, 0));
    double share = hot_share(x->ranks);
    if (share < least || share > most)
        fail_msg("%s: %.3f of all rows are of %d of %d experts", name, share, HOT, EXPERTS);
}

/* What the plan says of a rank, over what it used when all tokens went to the experts of its member number. Members
 * without experts need no more than they do here. */
static double worst_slack(const char *name, Routed *x) {
    const Ranks *r = x->ranks;
    double slack = 0;
    for (int64_t j = 0; j < r->config.mixture_expert; j++) {
        Price *used = use(name, x, want_member, j);
        for (int i = 0; i < r->world; i++)
            if (r->run[i]->comm.mesh.axis[AXIS_EXPERT].index == j)
                slack = fmax(slack, total(&r->price[i]) / total(&used[i]));
        free(used);
    }
    return slack;
}

static void no_mixture_needs_more_than_its_plan_and_the_worst_routing_needs_it(void **state) {
    (void)state;
    static const char *const types[] = {"compute.type=fp64", "compute.type=bf16", "compute.type=fp32"};
    char *documents = even_documents(12), name[300];
    double loosest = 0;
    for (size_t i = 0; i < mixtures; i++) {
        if (!trial_due()) continue;
        const Trial trial = {.spec = models[i % 2], .documents = documents, .options = {types[i % 3]}, .roomy = true};
        snprintf(name, sizeof name, "%d ranks, %s", mixture[i].world, mixture[i].settings);
        Routed x = routed_open(mixture[i], &trial);
        assert_share_of_hot(name, &x, want_all_alike, 0.08, 0.16);
        assert_share_of_hot(name, &x, want_hot, 0.77, 0.83);
        double slack = worst_slack(name, &x);
        if (slack > 1.03) fail_msg("%s: the plan says %.3f times what the worst routing uses", name, slack);
        loosest = fmax(loosest, slack);
        routed_close(&x);
    }
    printf("the plan is at most %.4f times what the worst routing uses\n", loosest);
    free(documents);
}

/* ---- The dispatch bound ------------------------------------------------------------------------ */

/* The letters of docs/parallel.md. */
typedef struct {
    int64_t E_p, T, M, K, k, H, I, b, f, imports;
    int64_t here, each; /* experts of this rank, of any */
    bool kept;
} Letters;

static Letters letters_of(const Run *r, int64_t micro) {
    const Config *c = r->config;
    int64_t rank = r->comm.mesh.rank, E_p = c->mixture_expert, each = ceil_div(EXPERTS, E_p);
    Letters x = {.E_p = E_p,
                 .T = r->micro[micro].tokens,
                 .k = CHOICES,
                 .H = WIDTH,
                 .I = r->spec->expert_hidden,
                 .b = (int64_t)type_bytes(c->compute_type),
                 .f = c->compute_type == FP64 ? 8 : 4,
                 .imports = E_p > 1 ? c->mixture_balance_imports : 0,
                 .each = each,
                 .here = max64(0, min64(each, EXPERTS - rank % E_p * each))};
    for (int i = 0; i < r->comm.mesh.world; i++) x.M = max64(x.M, run_tokens(r, i, micro));
    x.K = c->mixture_dispatch_tokens > 0 ? max64(1, ceil_div(x.M, c->mixture_dispatch_tokens)) : 1;
    x.kept = x.K == 1 && c->compute_activations == ACTIVATIONS_KEEP;
    return x;
}

/* R, the most rows that a round can bring. */
static int64_t bound(const Letters *x) {
    return x->E_p * ceil_div(x->M, x->K) * min64(x->k, x->imports > 0 ? x->each : x->here);
}

/* `n` buffers of so many numbers of so many bytes, each of which begins at a multiple of 64. */
static int64_t buffers(int64_t n, int64_t numbers, int64_t bytes) {
    return n * ((numbers * bytes + 63) / 64 * 64);
}

/* What does not depend on how many tokens there are, only on how many pass in a round: `rows` of them arrive. */
static int64_t round_bytes(const Letters *x, int64_t rows, bool backward) {
    int64_t slots = x->k * ceil_div(x->T, x->K), matrix = x->imports * x->I * x->H;
    int64_t two = x->K > 1 && x->E_p > 1 ? 2 : 1; /* rounds at a time */
    bool alone = x->E_p == 1, kept = backward && x->kept;
    int64_t sets = (kept ? 0 : two) + (backward ? two : 0), inner = backward && !x->kept ? 4 : 2;
    int64_t sends = alone ? 0 : backward ? 1 + !x->kept + (two == 2) : two;
    int64_t bytes = buffers(sets, rows * x->H, x->b) + buffers(inner, rows * x->I, x->b);
    bytes += alone ? 0 : buffers(sets, rows, x->f) + buffers(sends, slots * x->H, x->b);
    return bytes + buffers(3, matrix, x->b) + (backward ? buffers(3, matrix, x->f) : 0);
}

/* And what does: a number for each slot, and in backward the experts' input, its gradient and that of the routing
 * weights. */
static int64_t token_bytes(const Letters *x, bool backward) {
    int64_t numbers = backward ? 2 - (x->kept && x->E_p == 1) : 1;
    int64_t bytes = buffers(numbers, x->T * x->k, x->f);
    return bytes + (backward ? buffers(2, x->T * x->H, x->b) + buffers(1, x->T * x->k, x->f) : 0);
}

enum { PASSES = 2, MICRO_BATCHES = 3 };

/* What a rank saw and used: in evaluation, which is forward alone, and in a step, whose backward needs more. */
typedef struct {
    int64_t arrived[MICRO_BATCHES]; /* rows of the largest round, of any layer */
    int64_t reads, used;
    const Run *run;
} Watch;

static void see_table(void *context, ReadKind kind, const void *host, Tensor t) {
    Watch *w = context;
    const int64_t *table = host;
    if (kind != READ_ROUTING) return;
    int64_t micro = w->reads++ % w->run->micro_batches, first = w->run->comm.mesh.axis[AXIS_EXPERT].index;
    first *= ceil_div(EXPERTS, t.dim[0]);
    for (int64_t r = 0; r < t.dim[1]; r++) {
        int64_t rows = 0;
        for (int64_t j = 0; j < t.dim[0]; j++)
            for (int64_t e = first; e < min64(EXPERTS, first + ceil_div(EXPERTS, t.dim[0])); e++)
                rows += table[(j * t.dim[1] + r) * EXPERTS + e];
        w->arrived[micro] = max64(w->arrived[micro], rows);
    }
}

static bool watch(Run *r, void *context, Error *e) {
    Watch *all = context;
    Arena *work = run_arena(r, ARENA_WORK);
    StepResult step;
    Evaluation evaluation;
    bool ok = true;
    for (int pass = 0; ok && pass < PASSES; pass++) {
        Watch *w = &all[pass * r->comm.mesh.world + r->comm.mesh.rank];
        w->run = r;
        r->device->observe = see_table;
        r->device->read_context = w;
        work->peak = 0; /* of this pass alone */
        ok = pass == 1 ? train_step(r, 0, false, &step, e) : evaluate(r, &evaluation, e);
        w->used = (int64_t)work->by_at_peak[COMPONENT_EXPERTS];
    }
    r->device->observe = NULL;
    return ok;
}

/* Of the micro-batch that needs most; `most`: if as many rows came as can. */
static int64_t formula(const Run *r, const Watch *w, bool backward, bool most) {
    int64_t bytes = 0;
    for (int64_t i = 0; i < r->micro_batches; i++) {
        Letters x = letters_of(r, i);
        assert_true(w->arrived[i] <= bound(&x) || x.imports > 0);
        bool any = most || x.imports > 0; /* what moves is decided later */
        int64_t rows = x.E_p == 1 ? x.k * ceil_div(x.T, x.K) : any ? bound(&x) : w->arrived[i];
        bytes = max64(bytes, round_bytes(&x, rows, backward) + token_bytes(&x, backward));
    }
    return bytes;
}

static const Layout bounded[] = {
    {1, "dispatch_tokens=100"},
    {2, "dense=1 compute.activations=recompute"},
    {2, "expert=2"},
    {4, "expert=4 compute.type=bf16"},
    {4, "expert=2 expert_shard=2 compute.activations=recompute"},
    {4, "dense=1 expert=4 dispatch_tokens=36"},
    {3, "expert=3 dispatch_tokens=32 compute.activations=recompute compute.type=fp32"},
    {6, "ulysses=2 ring=3 expert=3 dispatch_tokens=24 compute.type=bf16"},
    {4, "expert=4 dispatch_tokens=36 balance_imports=2 balance_threshold=1"},
    {2, "expert=2 balance_imports=1 compute.type=fp32"},
    {8, "expert=8 dispatch_tokens=12 train.micro_batches=3"},
};

static void assert_bounded(const char *name, Routed *x, Want want, int64_t member) {
    const Ranks *r = x->ranks;
    size_t world = (size_t)r->world;
    Watch *all = calloc(PASSES * world, sizeof *all);
    assert_non_null(all);
    route_by(x, want, member);
    ranks_run(x->ranks, watch, all);
    for (size_t i = 0; i < PASSES * world; i++) {
        const Run *run = all[i].run;
        bool backward = i >= world;
        int64_t expected = formula(run, &all[i], backward, false), most = formula(run, &all[i], backward, true);
        Letters letters = letters_of(run, 0);
        int64_t slots = letters.k * ceil_div(letters.T, letters.K);
        bool busy = 2 * all[i].arrived[0] >= slots; /* else the arena is fullest with something else */
        if (busy ? all[i].used != expected : all[i].used > expected)
            fail_msg("%s: rank %d, %s: the experts use %lld bytes of work, the formula says %lld", name,
                     run->comm.mesh.rank, backward ? "backward" : "forward", (long long)all[i].used,
                     (long long)expected);
        assert_true(expected <= most);
        bool mine = run->comm.mesh.axis[AXIS_EXPERT].index == member && run->model.experts_here > 0;
        if (want == want_member && mine) assert_true(busy && expected == most);
    }
    for (size_t i = 0; i < world; i++) { /* the work arena is fullest in one of the passes */
        int64_t planned = (int64_t)r->price[i].by[ARENA_WORK][COMPONENT_EXPERTS];
        int64_t forward = formula(all[i].run, &all[i], false, true);
        int64_t backward = formula(all[i].run, &all[i], true, true);
        if (planned != forward && planned != backward)
            fail_msg("%s: rank %zu: the plan has %lld bytes of work for experts, the formula of R says %lld or %lld",
                     name, i, (long long)planned, (long long)forward, (long long)backward);
    }
    free(all);
}

static void experts_need_the_rows_of_a_round_and_never_more_than_the_bound(void **state) {
    (void)state;
    char *documents = even_documents(60);
    const Trial trial = {.spec = wide_model, .documents = documents, .options = {"train.sequences=24"}, .roomy = true};
    for (size_t i = 0; i < COUNT(bounded); i++) {
        Routed x = routed_open(bounded[i], &trial);
        assert_bounded(bounded[i].settings, &x, want_all_alike, 0);
        assert_bounded(bounded[i].settings, &x, want_hot, 0);
        for (int64_t member = 0; member < x.ranks->config.mixture_expert; member++)
            assert_bounded(bounded[i].settings, &x, want_member, member);
        routed_close(&x);
    }
    free(documents);
}

/* Of the plan: what is left when everything that is per token is taken away. */
static int64_t planned_for_rounds(const char *settings, const char *length) {
    const Trial trial = {.spec = wide_model, .options = {"train.sequences=8", length}};
    Ranks *r = trial_open("", (Layout){4, settings}, &trial);
    Letters x = letters_of(r->run[0], 0);
    int64_t planned = (int64_t)r->price[0].by[ARENA_WORK][COMPONENT_EXPERTS];
    ranks_close(r);
    return planned - token_bytes(&x, true);
}

static void twice_the_tokens_take_twice_the_rounds_and_no_more_memory(void **state) {
    (void)state;
    static const char *const settings[] = {
        "expert=4 dispatch_tokens=12", "expert=2 dispatch_tokens=8 compute.activations=recompute compute.type=bf16",
        "expert=4 dispatch_tokens=24 balance_imports=1", "ulysses=2 ring=2 expert=4 dispatch_tokens=24"};
    for (size_t i = 0; i < COUNT(settings); i++) {
        int64_t once = planned_for_rounds(settings[i], "train.sequence_length=48");
        assert_int_equal(planned_for_rounds(settings[i], "train.sequence_length=96"), once);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_mixture_needs_more_than_its_plan_and_the_worst_routing_needs_it),
        cmocka_unit_test(experts_need_the_rows_of_a_round_and_never_more_than_the_bound),
        cmocka_unit_test(twice_the_tokens_take_twice_the_rounds_and_no_more_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
