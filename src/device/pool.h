/* A small pool of threads: one loop of independent tasks at a time, handed out dynamically. The caller works
 * too. No sum is ever split by the number of threads: a task's result depends on its index alone, so results
 * never depend on the pool. */
#ifndef MOP_POOL_H
#define MOP_POOL_H

#include <stdint.h>

typedef struct Pool Pool;
typedef void (*PoolTask)(void *context, int64_t index, int worker); /* worker: 0 .. threads-1, for scratch memory */

Pool *pool_open(int threads); /* threads >= 1, the caller included; NULL: the machine refused threads or memory */
void pool_close(Pool *p);
int pool_threads(const Pool *p);
/* Runs task(context, 0..count-1), each once, in any order; returns when all are done. Not re-entrant. */
void pool_run(Pool *p, int64_t count, PoolTask task, void *context);
/* Scratch of worker w, kept for the pool's life: at least `bytes`, 64-byte aligned. Grown only before the first step
 * (POOL_SCRATCH_BYTES at open); asking for more is our bug. */
enum { POOL_SCRATCH_BYTES = 4 << 20 };
void *pool_scratch(Pool *p, int worker, int64_t bytes);

#endif
