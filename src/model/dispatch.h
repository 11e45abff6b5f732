/* Who sends which rows where: what the host makes of the gathered table, for the exchanges of a layer and
 * micro-batch. Pure arithmetic; it moves nothing. Made in forward, replayed in backward.
 *
 * Tokens r, r + K, r + 2K, ... pass in round r of K. Their sender has sorted them by expert; where they arrive they
 * lie by expert, and by sender within one, so that an expert's rows are one block. With least-loaded placement
 * (balance.h) a rank also works for some experts of others; their rows lie behind those of its own.
 *
 *   here:   own expert 0            own expert 1       ...   import slot 0           ...
 *           from 0 | from 1 | ...   from 0 | from 1 | ...    from 0 | from 1 | ...
 *
 * An expert's rows of a round are numbered by sender, and by its own order within one: the owner works on the first
 * of them, then come its importers, in the order of their slots. So every share is one range, and what a sender owes
 * a member is where the sender's own range meets the member's. */
#ifndef MOP_DISPATCH_H
#define MOP_DISPATCH_H

#include "comm/comm.h"
#include "model/balance.h"

typedef struct {
    Spans send;    /* this rank's rows of the round, sorted by expert: what goes to each member */
    Spans receive; /* where what comes from each member lies here */
    int64_t *rows; /* [experts here + imports] */
    int64_t own;   /* rows of the experts that live here; they come first */
    int64_t arrived;
} Round;

/* All of it in the host arena. */
typedef struct {
    Round *round; /* [rounds] */
    int64_t most; /* rows of the largest round here */
    /* Imported experts: rows are whole experts, of the owner's stack and of this rank's import slots. */
    Spans lend, borrow;
    int64_t *owner; /* [imports] the member that a slot's expert comes from; -1: the slot is empty */
    int64_t *
        at; /* [imports][members] where the matrix that lies in that slot of a member begins in the stack here; -1: none */
} Dispatch;

typedef struct {
    BalanceShape group;
    int64_t index;       /* this rank's place in the group */
    int64_t first, here; /* its own experts */
    int64_t matrix;      /* elements of each of an expert's matrices */
} DispatchShape;

/* Takes the same memory whatever the routing. */
void dispatch_reserve(Dispatch *d, const DispatchShape *shape, Arena *host);
/* table [members][rounds][experts]: rows. Uses more of the arena and gives it back. */
void dispatch_make(Dispatch *d, const DispatchShape *shape, Arena *host, const int64_t *table);

#endif
