/* Mistakes of a configuration, collected so that all are told at once. */
#ifndef MOP_MISTAKES_H
#define MOP_MISTAKES_H

#include "base/base.h"

/* Starts as {0}. */
typedef struct {
    char text[sizeof(((Error *)0)->text) - 128]; /* lines, as many as fit beside a heading */
    int count, shown;
    bool out_of_memory; /* not the user's mistake: another exit code */
} Mistakes;

void mistakes_add(Mistakes *m, const char *line);
/* True when there was none; else they are the Error, the first of them as far as they fit, a line each. */
bool mistakes_report(const Mistakes *m, Error *e);

#endif
