/* What a person sees while a command works for long before it prints: on a terminal a line on stderr that is rewritten
 * and cleared at the end, elsewhere a line every ten seconds. */
#ifndef MOP_WAITING_H
#define MOP_WAITING_H

#include "base/base.h"

typedef struct {
    const char *what; /* "evaluate" */
    bool terminal, open;
    double began, told;
} Waiting;

Waiting waiting_begin(const char *what);
void waiting_tell(Waiting *w, double share); /* of the work that is done, in [0, 1]; NULL: nobody waits */
void waiting_end(Waiting *w);

/* "evaluate: 35 % after 18 s, 34 s left" */
Shown waiting_line(const char *what, double share, double seconds);

#endif
