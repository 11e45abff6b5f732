/* The commands that open ranks. Each takes a settled Config, prints for its user, and returns the exit code. */
#ifndef MOP_TRAIN_H
#define MOP_TRAIN_H

#include "train/session.h"
#include "train/trace.h"

/* Trains from the run directory's newest checkpoint, or from the first weights, to train.steps. SIGINT, SIGTERM and
 * SIGUSR1 finish the step, save, and end with EXIT_STOPPED; under mpirun only SIGUSR1 does. A second signal ends at
 * once. */
int train_command(Session *s, const char *run, const TraceOptions *trace, PriceFunction price);
/* One JSON line: loss, tokens, perplexity, bits_per_byte of the whole of data.path, and of what they are. */
int evaluate_command(Session *s, PriceFunction price);

typedef struct {
    const char *prompt;
    int64_t tokens;
    Sampling sampling;
} GenerateOptions;
int generate_command(Session *s, PriceFunction price, const GenerateOptions *options);
/* `mop report RUN [--json]`: what metrics.jsonl says of a run, also while it trains. */
int report_command(int argc, char **argv);

#endif
