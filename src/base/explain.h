/* What is told of settings: all of them, one, or a section. */
#ifndef MOP_EXPLAIN_H
#define MOP_EXPLAIN_H

#include "base/base.h"
#include <stdio.h>

/* Every option, a line each, by section. */
void config_help(FILE *f);
/* One option or one section in full. EXIT_USAGE and what may have been meant when there is none of this name. */
bool config_explain(const char *name, FILE *f, Error *e);

/* Words broken into lines of at most 96 columns, each behind `indent` blanks; the first has `label` in their place. */
void print_wrapped(const char *label, int indent, const char *text, FILE *f);

#endif
