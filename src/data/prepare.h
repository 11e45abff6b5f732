/* Writing token files: tokens_prepare of data.h, and the same for a run that names its texts directly. */
#ifndef MOP_PREPARE_H
#define MOP_PREPARE_H

#include "data/data.h"

/* A token file without a name, open for reading; the caller closes the descriptor, and then it is gone. -1
 * after a failure. */
int tokens_prepare_unnamed(const char *const *paths, const Tokenizer *t, DataNotes *notes, Error *e);

#endif
