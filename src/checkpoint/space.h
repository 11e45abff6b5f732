/* Whether checkpoints fit on the disk, asked before there is anything to lose: their size is known when a run opens. */
#ifndef MOP_SPACE_H
#define MOP_SPACE_H

#include "checkpoint/checkpoint.h"

/* Of weights and optimizer state of one checkpoint. */
int64_t checkpoint_bytes(const Checkpoints *c);
/* How many more than the `existing` ones will be there at once at most, when `ahead` are still to be saved and all but
 * the last `keep` are deleted after each save (0: none is, and what will be moved away nobody knows: 1). */
int64_t checkpoints_at_once(int64_t existing, int64_t ahead, int64_t keep);
/* EXIT_IO with need, have and place when the disk of the run's checkpoints has no room for `count` more. A file system
 * that does not say how large it is, is believed to have room. What a quota leaves cannot be asked: a save takes all
 * its space before it writes, so that a quota ends it early and harms nothing. Not collective. */
bool checkpoints_fit(const Checkpoints *c, int64_t count, Error *e);
/* At the start of a run that will save `ahead` times. */
bool checkpoints_will_fit(const Checkpoints *c, int64_t ahead, int64_t keep, Error *e);

#endif
