/* The sim's answers and their recording; opened and closed by run.c. */
#ifndef MOP_ANSWERS_H
#define MOP_ANSWERS_H

#include "train/run.h"

typedef struct Answers Answers;
Answers *answers_open(Run *r, Error *e);
void answers_close(Answers *a);

#endif
