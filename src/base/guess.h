/* What an unknown name was meant to be: the nearest known one, or what another trainer calls so. A far name is no help,
 * so none is given then. */
#ifndef MOP_GUESS_H
#define MOP_GUESS_H

#include "base/base.h"

/* True when `name` is so near to `word` that it may be a slip of the fingers (one edit in three characters; a swap of
 * neighbours is one edit), and nearer than *least, which it then lowers. Start from *least = NEAREST_NONE:
 *
 *     for (i ...) if (name_near(word, known[i], &least)) found = known[i];
 */
enum { NEAREST_NONE = 1000 };
bool name_near(const char *word, const char *name, int *least);

/* The sentence for an unknown key, to stand behind "unknown key ...; ": "the nearest is train.steps", "here it is
 * optimizer.learning_rate", or where all keys are listed. */
typedef struct {
    char text[256];
} Hint;
Hint key_hint(const char *key);

/* What another trainer calls `name` (its last part, in any case), and how mop does it; NULL: not known. */
const char *foreign_hint(const char *name);

#endif
