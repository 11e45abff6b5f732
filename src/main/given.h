/* What CONFIG means on a command line. Mostly it is a YAML file; but people type what they have at hand: a run, a
 * checkpoint, a model's config.json, the data. What is clear is taken, the rest is told what to type instead. */
#ifndef MOP_GIVEN_H
#define MOP_GIVEN_H

#include "checkpoint/text.h"

typedef struct {
    Path config; /* the YAML file; "": none, defaults */
    Path model;  /* model.path that goes with it, before what --set says; "": none */
    Path run;    /* the run that `train` goes on with; "": none */
} Given;

/* A run's directory stands for its config.yaml, with its newest weights to evaluate and to generate, and itself to
 * train on; a checkpoint or a Hugging Face directory stands for its weights where no training is asked for. `given` may be
 * NULL. */
bool config_given(const char *command, const char *given, Given *out, Error *e);

#endif
