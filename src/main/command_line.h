/* The words behind `mop train` and the other commands that read a config. */
#ifndef MOP_COMMAND_LINE_H
#define MOP_COMMAND_LINE_H

#include "plan/verify_layouts.h"
#include "train/train.h"

typedef struct {
    const char *config, *run; /* NULL: not given */
    const char **sets;        /* the first is a place for one that CONFIG implies */
    int n_sets;
    GenerateOptions generate;
    VerifyOptions verify;
    TraceOptions trace;
} Arguments;

/* argv[0] is the command. Free with arguments_close, whatever came back. */
bool arguments_read(Arguments *a, int argc, char **argv, Error *e);
void arguments_close(Arguments *a);

#endif
