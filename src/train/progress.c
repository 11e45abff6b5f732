/* The progress line: as many of its fields as the terminal has room for, so that it never wraps, because a line that
 * wraps cannot be overwritten. */
#include "train/progress.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* ---- Numbers ----------------------------------------------------------------------------------- */

Shown parameters_shown(int64_t n) {
    Shown s;
    if (n < 1000000)
        snprintf(s.text, sizeof s.text, "%.1f thousand", (double)n / 1e3);
    else if (n < 1000000000)
        snprintf(s.text, sizeof s.text, "%.1f million", (double)n / 1e6);
    else
        snprintf(s.text, sizeof s.text, "%.1f billion", (double)n / 1e9);
    return s;
}

Shown bytes_shown(double bytes) {
    static const char *const units[] = {"bytes", "kB", "MB", "GB", "TB"};
    size_t unit = 0;
    Shown s;
    for (; bytes >= 1000 && unit + 1 < COUNT(units); unit++) bytes /= 1000;
    snprintf(s.text, sizeof s.text, "%.*f %s", unit > 0, bytes, units[unit]);
    return s;
}

Shown duration_shown(double seconds) {
    Shown s;
    if (seconds < 100)
        snprintf(s.text, sizeof s.text, "%.0f s", seconds);
    else if (seconds < 6000)
        snprintf(s.text, sizeof s.text, "%.0f min", seconds / 60);
    else
        snprintf(s.text, sizeof s.text, "%.1f h", seconds / 3600);
    return s;
}

Shown metric_shown(double x, int digits) {
    Shown s;
    if (!isfinite(x))
        snprintf(s.text, sizeof s.text, "not finite");
    else
        snprintf(s.text, sizeof s.text, fabs(x) < 1e5 ? "%.*f" : "%.*e", digits, x);
    return s;
}

Shown loss_shown(const StepResult *r) {
    return r->trained > 0 ? metric_shown(r->loss, 4) : (Shown){"-"};
}

/* ---- The line ---------------------------------------------------------------------------------- */

typedef struct {
    int matters; /* the smallest goes first */
    char text[sizeof(Shown) + 48];
} Field;

/* The fields that matter at least so much; returns the columns. */
static int join(char *out, const Field *field, int count, int matters) {
    int used = 0;
    *out = 0;
    for (int i = 0; i < count; i++) {
        if (field[i].matters < matters) continue;
        used += snprintf(out + used, (size_t)(PROGRESS_LINE - used), "%s%s", used ? "  " : "", field[i].text);
        MUST(used < PROGRESS_LINE);
    }
    return used;
}

enum { FIELD_STEP, FIELD_LOSS, FIELD_BALANCE, FIELD_NORM, FIELD_RATE, FIELD_SPEED, FIELD_LEFT, FIELDS };

void progress_line(char *out, int width, const StepResult *r, int64_t steps, double tokens_per_s, double left) {
    Field f[FIELDS] = {
        [FIELD_STEP] = {7, ""}, [FIELD_LOSS] = {6, ""},  [FIELD_BALANCE] = {1, ""}, [FIELD_NORM] = {2, ""},
        [FIELD_RATE] = {3, ""}, [FIELD_SPEED] = {4, ""}, [FIELD_LEFT] = {5, ""}};
    snprintf(f[FIELD_STEP].text, sizeof f->text, "step %lld/%lld", (long long)r->step + 1, (long long)steps);
    snprintf(f[FIELD_LOSS].text, sizeof f->text, "loss %s", loss_shown(r).text);
    snprintf(f[FIELD_BALANCE].text, sizeof f->text, "balance %s", metric_shown(r->balance, 3).text);
    snprintf(f[FIELD_NORM].text, sizeof f->text, "norm %s", metric_shown(r->norm, 3).text);
    snprintf(f[FIELD_RATE].text, sizeof f->text, "lr %.2e", r->learning_rate);
    snprintf(f[FIELD_SPEED].text, sizeof f->text, "%.0f tokens/s", tokens_per_s);
    snprintf(f[FIELD_LEFT].text, sizeof f->text, "%s left", duration_shown(left).text);
    for (int matters = 1; join(out, f, FIELDS, matters) > width && matters < FIELDS; matters++) continue;
    if (width < PROGRESS_LINE) out[width] = 0; /* not even the step fits */
}

/* The last column stays free: some terminals go to the next line when it is written. */
static int line_width(bool terminal) {
    struct winsize size = {0};
    if (!terminal) return INT_MAX;
    bool told = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
    return told ? size.ws_col - 1 : 79;
}

/* ---- A run's progress -------------------------------------------------------------------------- */

Progress progress_begin(bool terminal) {
    return (Progress){.terminal = terminal, .started = seconds_now()};
}

void progress_end_line(Progress *p) {
    if (p->line_open) printf("\n");
    p->line_open = false;
}

static void count(Progress *p, const StepResult *r, double seconds) {
    p->steps++;
    p->seconds += seconds;
    p->tokens += r->trained;
    if (r->trained == 0 || !isfinite(r->loss)) return;
    if (p->losses == 0) p->first_loss = r->loss;
    p->last[p->losses++ % PROGRESS_LAST] = r->loss;
}

/* On a terminal at most ten times a second; elsewhere at first, about every 5 seconds, and at the end. */
static bool is_due(const Progress *p, bool last, double now) {
    return p->steps <= 1 || last || now - p->printed > (p->terminal ? 0.1 : 5);
}

void progress_step(Progress *p, const Config *c, int64_t vocabulary, const StepResult *r, double seconds) {
    char line[PROGRESS_LINE];
    double now = seconds_now();
    count(p, r, seconds);
    if (!is_due(p, r->step + 1 == c->train_steps, now)) return;
    double left = (double)(c->train_steps - r->step - 1) * p->seconds / (double)p->steps;
    p->printed = now;
    if (r->step == 0)
        printf("initial loss %s; a random guess among %lld ids has %.4f\n", loss_shown(r).text, (long long)vocabulary,
               log((double)vocabulary));
    progress_line(line, line_width(p->terminal), r, c->train_steps, seconds > 0 ? (double)r->trained / seconds : 0,
                  left);
    printf("%s%s%s", p->terminal ? "\r\033[K" : "", line, p->terminal ? "" : "\n");
    p->line_open = p->terminal;
    fflush(stdout);
}

void progress_summary(const Progress *p, char *out, size_t room) {
    double sum = 0, rate = p->seconds > 0 ? (double)p->tokens / p->seconds : 0;
    int n = (int)max64(p->losses > 0, min64(p->losses / 10, PROGRESS_LAST)); /* of a short run one is enough */
    for (int i = 1; i <= n; i++) sum += p->last[(p->losses - i) % PROGRESS_LAST];
    Shown first = n > 0 ? metric_shown(p->first_loss, 4) : (Shown){"-"};
    Shown last = n > 0 ? metric_shown(sum / n, 4) : (Shown){"-"};
    snprintf(out, room, "%lld step%s in %s, %.0f tokens/s, loss %s -> %s%s", (long long)p->steps,
             p->steps == 1 ? "" : "s", duration_shown(seconds_now() - p->started).text, rate, first.text, last.text,
             n > 1 ? " (mean of the last)" : "");
    if (n <= 1) return;
    size_t used = strlen(out) - 1; /* the bracket */
    snprintf(out + used, room - used, " %d)", n);
}
