/* Plans by running: ranks are sim devices, one thread each, joined by the thread wire so that their clocks meet. */
#include "plan/plan.h"
#include "base/limits.h"
#include "plan/progress.h"
#include "train/journal.h"
#include "train/progress.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const Config *config;
    const Spec *spec;
    const char *device;
    Wire **wires;
    Price *out;
    Error *errors;
    Run **runs;
    Trace *trace; /* NULL: none */
    TraceRank **traced;
    PlanProgress *progress; /* NULL: nobody is told */
} Pricing;

enum { PRICED_STEP = 2 };

/* Arenas remember their peaks; the meter and the trace are of the second step, which applies the first one's update. */
static bool price_steps(const Pricing *p, Run *r, Error *e) {
    TraceRank *traced = p->traced[r->comm.mesh.rank];
    Price *out = &p->out[r->comm.mesh.rank];
    StepResult result;
    plan_progress_at(p->progress, PROGRESS_STEP_1);
    if (!train_step(r, 0, false, &result, e)) return false;
    meter_clear(r->device);
    double before = r->model.compute->clock;
    Times began = times_now(r);
    trace_begin(traced, PRICED_STEP);
    plan_progress_at(p->progress, PROGRESS_STEP_2);
    if (!train_step(r, PRICED_STEP - 1, false, &result, e)) return false;
    trace_end(traced);
    double seconds = r->model.compute->clock - before;
    Times ended = times_now(r);
    Meter meter = r->device->meter;
    Evaluation evaluation;
    int64_t longest = r->config->train_sequence_length;
    int32_t *ids = calloc((size_t)longest + 1, sizeof *ids);
    if (!ids)
        return fail(e, EXIT_MEMORY, "no memory for a text of %lld tokens; use a smaller train.sequence_length",
                    (long long)longest);
    plan_progress_at(p->progress, PROGRESS_EVALUATE);
    bool ok = evaluate(r, &evaluation, e);
    plan_progress_at(p->progress, PROGRESS_GENERATE);
    ok = ok && generate(r, ids, longest, 1, (Sampling){0}, e);
    free(ids);
    const Error *failed = device_failed(r->device);
    if (ok && failed) ok = fail(e, failed->code, "%s", failed->text);
    run_price(r, out);
    out->meter = meter;
    out->seconds = seconds;
    out->times = times_between(&began, &ended);
    return ok;
}

static void price_rank(void *context, int rank) {
    Pricing *p = context;
    Error *e = &p->errors[rank];
    p->runs[rank] = run_open(&(Common){.config = p->config, .spec = p->spec}, p->wires[rank], p->device, NULL, e);
    plan_progress_at(p->progress, PROGRESS_OPEN);
    bool ok =
        p->runs[rank] && trace_join(p->trace, p->runs[rank], &p->traced[rank], e) && price_steps(p, p->runs[rank], e);
    plan_progress_at(p->progress, PROGRESS_DONE);
    if (!ok) p->wires[rank]->poison(p->wires[rank], e);
}

/* A run on the CPU is priced on the built-in one. */
static const char *plan_device(const Config *c) {
    return device_counts(c->device) ? c->device : "sim:cpu";
}

static const char *plan_machine(const Config *c) {
    return plan_device(c) + 4;
}

/* Rank after rank, on one clock: that of the rank whose step began first. */
static bool write_trace(const Pricing *p, int world, Error *e) {
    double zero = trace_began(p->traced[0]);
    for (int r = 1; r < world; r++) zero = fmin(zero, trace_began(p->traced[r]));
    for (int r = 0; r < world; r++)
        if (!trace_write(p->traced[r], zero, e)) return false;
    return true;
}

static bool no_memory(int world, Error *e) {
    return fail(e, EXIT_MEMORY, "no memory to plan %d ranks; use fewer ranks, or free some memory", world);
}

/* A rank that only counts still is a thread, with tables of its own. */
static bool can_plan(const Config *c, const Spec *spec, int world, Error *e) {
    double rank = run_heap(c, spec, world, true) + 2 * sizeof(Price) + sizeof(Error), gib = 1 << 30;
    double need = world * rank, have = memory_limit();
    char what[64];
    snprintf(what, sizeof what, "a plan of %d ranks", world);
    if (!threads_fit(world, what, e)) return false;
    return need <= have ||
           fail(e, EXIT_MEMORY,
                "to plan %d rank%s takes about %.1f GiB here, %.3g MiB each, and this machine has %.1f; "
                "plan fewer ranks, or use a smaller train.sequence_length, a larger "
                "mixture.dispatch_tokens or fewer train.micro_batches",
                world, world == 1 ? "" : "s", need / gib, rank / (1 << 20), have / gib);
}

static bool price_with(const Config *c, const Spec *spec, int world, const char *routing, Trace *trace, Price *out,
                       Error *e) {
    Config sim = *c;
    if (!can_plan(c, spec, world, e)) return false;
    sim.sim_routing = routing;
    sim.sim_record = "";
    Pricing p = {.config = &sim, .spec = spec, .out = out, .device = plan_device(c), .trace = trace};
    p.wires = calloc((size_t)world, sizeof(Wire *));
    p.errors = calloc((size_t)world, sizeof *p.errors);
    p.runs = calloc((size_t)world, sizeof(Run *));
    p.traced = calloc((size_t)world, sizeof *p.traced);
    bool room = (p.wires && p.errors && p.runs && p.traced) || no_memory(world, e);
    bool ok = room && wire_threads_open(p.wires, world, 300, false, e);
    if (ok) p.progress = plan_progress_open(spec, p.wires, world, routing);
    ok = ok && threads_run(world, price_rank, &p, e);
    plan_progress_close(p.progress);
    for (int r = 0; r < world; r++) ok = ok && p.errors[r].code == EXIT_DONE;
    if (ok && trace) ok = write_trace(&p, world, e);
    for (int r = 0; room && r < world; r++) {
        run_close(p.runs[r]);
        if (p.wires[r]) p.wires[r]->close(p.wires[r]);
        if (p.errors[r].code == EXIT_DONE) continue;
        if (e->code == EXIT_DONE || (e->code == EXIT_PEER && p.errors[r].code != EXIT_PEER)) *e = p.errors[r];
        ok = false;
    }
    free(p.traced);
    free(p.runs);
    free(p.errors);
    free(p.wires);
    return ok;
}

bool plan_price(const Config *c, const Spec *spec, int world, Price *out, Error *e) {
    return price_with(c, spec, world, "worst", NULL, out, e);
}

bool plan_time(const Config *c, const Spec *spec, int world, Trace *trace, Price *out, Error *e) {
    return price_with(c, spec, world, "balanced", trace, out, e);
}

/* ---- The price list ---------------------------------------------------------------------------- */

static void print_bytes(FILE *f, double bytes) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    size_t u = 0;
    for (; bytes >= 1024 && u + 1 < COUNT(units); u++) bytes /= 1024;
    if (bytes == 0)
        fprintf(f, "%10s", "-");
    else
        fprintf(f, "%*.*f %s", 9 - (int)strlen(units[u]), u ? 1 : 0, bytes, units[u]);
}

/* The rank whose total is largest stands for all. */
static int heaviest(const Price *p, int world) {
    int at = 0;
    double most = -1;
    for (int r = 0; r < world; r++) {
        double sum = 0;
        for (int a = 0; a < ARENA_COUNT; a++) sum += (double)p[r].bytes[a];
        if (sum <= most) continue;
        most = sum;
        at = r;
    }
    return at;
}

static void print_memory(const Price *p, FILE *f) {
    static const char *const tiers[TIER_COUNT] = {"device", "host"};
    fprintf(f, "%-8s %-12s %10s  ", "tier", "arena", "peak");
    for (int k = 0; k < COMPONENT_COUNT; k++) fprintf(f, " %10s", component_name((Component)k));
    fprintf(f, "\n");
    for (int t = 0; t < TIER_COUNT; t++) {
        double total = 0;
        for (int a = 0; a < ARENA_COUNT; a++) {
            if ((int)p->tier[a] != t) continue;
            total += (double)p->bytes[a];
            fprintf(f, "%-8s %-12s ", tiers[t], p->name[a]);
            print_bytes(f, (double)p->bytes[a]);
            fprintf(f, "  ");
            for (int k = 0; k < COMPONENT_COUNT; k++) {
                fprintf(f, " ");
                print_bytes(f, (double)p->by[a][k]);
            }
            fprintf(f, "\n");
        }
        fprintf(f, "%-8s %-12s ", tiers[t], "total");
        print_bytes(f, total);
        fprintf(f, "\n");
    }
}

static void print_traffic(const Meter *m, FILE *f) {
    fprintf(f, "\n%-19s %-15s %8s %10s %10s   a step, this rank\n", "group", "collective", "calls", "sent", "received");
    for (int g = 0; g < AXIS_COUNT; g++)
        for (int c = 0; c < COLLECTIVE_COUNT; c++) {
            const TrafficCount *t = &m->traffic[g][c];
            if (t->sent + t->received == 0) continue;
            fprintf(f, "%-19s %-15s %8lld ", axis_name((AxisName)g), collective_name((Collective)c),
                    (long long)t->calls);
            print_bytes(f, (double)t->sent);
            fprintf(f, " ");
            print_bytes(f, (double)t->received);
            fprintf(f, "\n");
        }
    fprintf(f, "host to device ");
    print_bytes(f, (double)m->copied_up);
    fprintf(f, ", device to host ");
    print_bytes(f, (double)m->copied_down);
    fprintf(f, "\n");
}

/* The axes with more than one member: their groups while they fit on a screen, else how they divide the ranks. */
static void print_groups(const Config *c, int world, FILE *f) {
    Mesh m;
    Error e = {0};
    MUST(mesh_plan(&m, c, world, 0, &e));
    for (int a = AXIS_WORLD + 1; a < AXIS_COUNT; a++) {
        const Axis *x = &m.axis[a];
        if (x->size == 1) continue;
        if (world <= 16)
            mesh_print_axis(c, world, x->name, f);
        else
            fprintf(f, "%-19s %d x %d ranks, stride %d\n", axis_name(x->name), world / x->size, x->size, x->stride);
    }
}

/* FLOPs, and the seconds of each kind, of one component or of all of them. */
static void print_work_row(FILE *f, const char *name, double flops, double share, const double *seconds) {
    fprintf(f, "%-12s %10.2f  %5.1f %%", name, flops / 1e9, 100 * share);
    for (int i = 0; i < TIME_KINDS; i++) {
        if (seconds[i] > 0)
            fprintf(f, " %12.6f", seconds[i]);
        else
            fprintf(f, " %12s", "-");
    }
    fprintf(f, "\n");
}

static void print_work(const Price *p, FILE *f) {
    double flops = 0, sum[TIME_KINDS] = {0};
    for (int k = 0; k < COMPONENT_COUNT; k++) {
        flops += (double)p->meter.flops[k];
        for (int i = 0; i < TIME_KINDS; i++) sum[i] += p->times.by[i][k];
    }
    fprintf(f, "\n%-12s %10s  %7s", "component", "GFLOP", "of all");
    for (int i = 0; i < TIME_KINDS; i++) fprintf(f, " %12s", time_name((TimeKind)i));
    fprintf(f, "   a step, this rank\n");
    for (int k = 0; k < COMPONENT_COUNT; k++) {
        double of[TIME_KINDS], any = (double)p->meter.flops[k];
        for (int i = 0; i < TIME_KINDS; i++) any += of[i] = p->times.by[i][k];
        double own = (double)p->meter.flops[k];
        if (any > 0) print_work_row(f, component_name((Component)k), own, flops > 0 ? own / flops : 0, of);
    }
    print_work_row(f, "total", flops, 1, sum);
}

/* Which machine the time is of, and whether the run needs more of it than there is. */
static bool print_time(const Config *c, int world, double seconds, FILE *f, Error *e) {
    Machine m;
    if (!machine_open(plan_machine(c), &m, e)) return false;
    int64_t per_node = machine_ranks_per_node(&m, (int)max64(1, c->compute_threads)), nodes = ceil_div(world, per_node);
    fprintf(f, "\npredicted %.3f s a step with balanced routing on machine \"%s\": %lld node%s of %lld %s%s\n", seconds,
            m.name, (long long)nodes, nodes > 1 ? "s" : "", (long long)m.units, m.cores ? "core" : "GPU",
            m.units > 1 ? "s" : "");
    if (world % per_node != 0 && nodes > 1)
        fprintf(f, "the last node has only %lld of %lld ranks: another number of ranks would use all of it\n",
                (long long)(world % per_node), (long long)per_node);
    if (m.nodes > 0 && nodes > m.nodes)
        fprintf(f, "the machine has only %lld: its network is assumed between more\n", (long long)m.nodes);
    return true;
}

bool plan_print(const Config *c, const Spec *spec, int world, Trace *trace, FILE *f, Error *e) {
    Price *worst = calloc((size_t)world, sizeof *worst), *usual = calloc((size_t)world, sizeof *usual);
    bool ok = (worst && usual) || no_memory(world, e);
    ok = ok && plan_price(c, spec, world, worst, e) && plan_time(c, spec, world, trace, usual, e);
    if (ok) {
        int r = heaviest(worst, world);
        fprintf(f, "model     %s, %s parameters, %s active\n", spec->family->model_type,
                parameters_shown(spec_parameters(spec)).text, parameters_shown(spec_active_parameters(spec)).text);
        fprintf(f, "step      %lld sequences x %lld tokens in %lld micro-batch%s, %s\n", (long long)c->train_sequences,
                (long long)c->train_sequence_length, (long long)c->train_micro_batches,
                c->train_micro_batches == 1 ? "" : "es", type_name(c->compute_type));
        fprintf(f, "ranks     %d\n", world);
        print_groups(c, world, f);
        fprintf(f, "\nmemory of rank %d (the largest) for any routing\n", r);
        print_memory(&worst[r], f);
        print_work(&usual[r], f);
        print_traffic(&usual[r].meter, f);
        ok = print_time(c, world, usual[r].seconds, f, e);
    }
    free(usual);
    free(worst);
    return ok;
}

int plan_command(Session *s, const TraceOptions *options) {
    Error e = {0};
    Trace *trace;
    if (!trace_open(&trace, options, TRACE_ROOM, &e)) return error_print(&e);
    bool ok = plan_print(s->config, &s->spec, s->world, trace, stdout, &e);
    bool closed = trace_close(trace, ok, &e);
    return ok && closed ? EXIT_DONE : error_print(&e);
}
