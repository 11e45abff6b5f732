/* A step of a config as sim predicts it on a machine, beside the same step taken: the whole, and op by op, which
 * says why they differ. */
#include "ops/kernels.h"
#include "plan/doctor_parts.h"
#include "plan/plan.h"
#include "train/session.h"

#include <stdlib.h>

enum { WARM = 2, STEPS = 7 };

typedef struct {
    double seconds[STEPS], others; /* others: cores that other programs used meanwhile */
    Meter profile;                 /* of one more step, rank 0 */
    double profiled;               /* its seconds */
} Taken;

static bool take_step(Run *r, int64_t step, double *seconds, Error *e) {
    StepResult result;
    meter_clear(r->device);
    double start = seconds_now();
    bool ok = train_step(r, step, false, &result, e);
    *seconds = seconds_now() - start;
    return ok;
}

static bool take_steps(Session *s, Run *r, Error *e) {
    Taken *t = s->context;
    double seconds;
    bool leads = r->comm.mesh.rank == 0;
    store_initialise(r->store, 1);
    Samples while_stepping = samples_begin();
    for (int i = 0; i < WARM + STEPS; i++) {
        if (!take_step(r, i, &seconds, e)) return false;
        if (leads && i >= WARM) t->seconds[i - WARM] = seconds;
    }
    if (leads) t->others = samples_others(&while_stepping);
    r->device->profile = true;
    if (!take_step(r, WARM + STEPS, &seconds, e)) return false;
    if (leads) t->profile = r->device->meter, t->profiled = seconds;
    return true;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_row(const char *name, double predicted, double measured) {
    printf("  %-24s %10.4f s %10.4f s %7.2f\n", name, predicted, measured, measured > 0 ? predicted / measured : 0);
}

static void print_both(const char *config, const char *machine, const Price *p, Taken *t) {
    double rest_predicted = p->seconds, rest_measured = t->profiled;
    qsort(t->seconds, STEPS, sizeof *t->seconds, ascending);
    printf("\na step of %s: predicted on sim:%s, and taken (%d steps, %.4f to %.4f s)\n", config, machine, STEPS,
           t->seconds[0], t->seconds[STEPS - 1]);
    if (t->others > 0)
        printf("  other programs used %.1f cores while steps were taken: the fastest step is nearest to what the "
               "machine can do\n",
               t->others);
    printf("  %-24s %12s %12s %7s\n", "", "predicted", "measured", "ratio");
    print_row("step, the median", p->seconds, t->seconds[STEPS / 2]);
    print_row("step, the fastest", p->seconds, t->seconds[0]);
    printf("  one more, of rank 0\n");
    print_row("step", p->seconds, t->profiled);
    for (int op = 0; op < OP_COUNT; op++) {
        double predicted = p->meter.op[op].seconds, measured = t->profile.op[op].seconds;
        if (predicted < 0.02 * p->seconds && measured < 0.02 * t->profiled) continue;
        print_row(op_name((Op)op), predicted, measured);
        rest_predicted -= predicted;
        rest_measured -= measured;
    }
    print_row("all else, and waiting", rest_predicted, rest_measured);
}

static int run_and_print(Session *s, const char *config, const char *machine) {
    char device[4200];
    Error e = {0};
    Taken taken = {0};
    Config sim = *s->config;
    Price *price = calloc((size_t)s->world, sizeof *price);
    if (!price) {
        fail(&e, EXIT_MEMORY, "no memory to plan %d ranks; use fewer ranks, or free some memory", s->world);
        return session_error(&e);
    }
    snprintf(device, sizeof device, "sim:%s", machine);
    sim.device = device;
    int code = plan_time(&sim, &s->spec, s->world, NULL, price, &e) ? session_run(s, plan_price, take_steps, &taken)
                                                                    : session_error(&e);
    if (code == EXIT_DONE) print_both(config, machine, &price[0], &taken);
    free(price);
    return code;
}

bool doctor_step_possible(const char *config, Error *e) {
    Config c;
    Session s = {0};
    if (!config_read(&c, config, NULL, 0, e)) return false;
    bool ok = session_open(&s, &c, e) && session_data(&s, e);
    session_close(&s);
    config_close(&c);
    return ok;
}

int doctor_step(const char *config, const char *machine) {
    Config c;
    Session s = {0};
    Error e = {0};
    if (!config_read(&c, config, NULL, 0, &e)) return error_print(&e);
    int code =
        session_open(&s, &c, &e) && session_data(&s, &e) ? run_and_print(&s, config, machine) : session_error(&e);
    session_close(&s);
    config_close(&c);
    return code;
}
