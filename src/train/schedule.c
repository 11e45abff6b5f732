/* The learning rate: linear warm-up over `optimizer.warmup` steps, then constant, or falling to learning_rate x
 * minimum at the last step. */
#include "train/run.h"

#include <math.h>

static double decay(Schedule s, double progress) { /* 1 at the start, 0 at the end */
    switch (s) {
    case SCHEDULE_LINEAR: return 1 - progress;
    case SCHEDULE_COSINE: return 0.5 * (1 + cos(M_PI * progress));
    default: return 1;
    }
}

double learning_rate_at(const Config *c, int64_t step) {
    double peak = c->optimizer_learning_rate, warmup = (double)c->optimizer_warmup, at = (double)step;
    if (at < warmup) return peak * (at + 1) / warmup;
    double length = (double)c->train_steps - warmup;
    double progress = length > 1 ? fmin(1, (at - warmup) / (length - 1)) : 0;
    double low = c->optimizer_schedule == SCHEDULE_CONSTANT ? 1 : c->optimizer_minimum;
    return peak * (low + (1 - low) * decay(c->optimizer_schedule, progress));
}
