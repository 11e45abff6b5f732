/* What a run is about to do, in a few lines, and what about it is probably not meant. */
#ifndef MOP_BANNER_H
#define MOP_BANNER_H

#include "train/session.h"

typedef struct {
    const Session *session;
    const Run *run;
    const char *directory;    /* the run's */
    const char *resumed;      /* the checkpoint that the run goes on from; "": none */
    int64_t step;             /* done before */
    int64_t checkpoint_bytes; /* of one */
} Banner;

/* Lines of at most 80 columns, unless a path is longer. */
void banner_print(const Banner *b);

enum { WARNINGS = 8, WARNING_BYTES = 400 };
/* A sentence for each thing that works and is hardly meant; returns how many. */
int banner_warnings(const Banner *b, char out[WARNINGS][WARNING_BYTES]);

#endif
