/* What every rank has asked of its groups lately, for the moment when nothing moves any more.
 *
 * All ranks call the same collectives in the same order (comm.h), host messages included, and number them from 1. So
 * numbers compare between ranks, whatever groups they are in: a rank waits only for ranks whose number is lower, and
 * who has the lowest is who keeps the others waiting.
 *
 *   rank 0   ... 40 41 42 waits          queued: issued by the step
 *   rank 1   ... 40 41 42 waits          begun:  its turn on the network stream has come
 *   rank 2   ... 40 41                   done:   its parcels have been exchanged
 *                     ^ rank 2 is behind
 *
 * The memory is of fixed size and taken when the wire opens. Queueing and running are different threads, asking may
 * be a third.
 */
#ifndef MOP_CALLS_H
#define MOP_CALLS_H

#include "comm/comm.h"

#include <stdio.h>

enum {
    CALLS_KEPT = 512, /* 64 of those that are done, and all that a stream's queue can hold */
    CALLS_TOLD = 8,   /* of every rank, when nothing moves */
    HOST_MESSAGE = COLLECTIVE_COUNT,
};

typedef struct {
    Axis axis;
    int collective;      /* a Collective or HOST_MESSAGE */
    int64_t bytes;       /* to others */
    int64_t step, layer; /* -1: none */
} Call;

typedef struct CallLog CallLog;
CallLog *calls_open(void); /* NULL: no memory */
void calls_close(CallLog *l);
void calls_queue(CallLog *l, Call c);
/* They run in the order in which they were queued. */
void calls_begin(CallLog *l);
void calls_end(CallLog *l);

/* The last of a rank's calls, around the one at hand: plain bytes, which travel between processes. */
typedef struct {
    uint64_t queued, begun, done; /* numbers; 0: none */
    uint64_t first, count;        /* call[i] is number first + i */
    Call call[CALLS_TOLD];
    bool known; /* false: the rank did not answer */
} Tail;
Tail calls_tail(CallLog *l);

/* tails [world]: a table of them all, and who is behind, as an Error of EXIT_PEER: those that do not answer, else
 * those with the lowest number. `rank` is the one that noticed, after waiting `timeout` seconds. */
void calls_print(const Tail *tails, int world, FILE *f);
bool calls_fail(Error *e, const Tail *tails, int world, int rank, double timeout);

#endif
