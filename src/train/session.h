/* A session: what a command needs before ranks exist (model, data, tokenizer, world), and the ranks themselves, as
 * threads of this process or as this process among those of an mpirun. */
#ifndef MOP_SESSION_H
#define MOP_SESSION_H

#include "checkpoint/checkpoint.h"
#include "train/run.h"

typedef struct Session Session;

/* What a rank does once its Run is open. False: the Error says why; the other ranks are told. */
typedef bool (*RankBody)(Session *s, Run *r, Error *e);
/* Prices every rank of a world without running it (plan/plan.h). */
typedef bool (*PriceFunction)(const Config *c, const Spec *spec, int world, Price *out, Error *e);

struct Session {
    Config *config;
    Spec spec;
    Tokenizer *tokenizer;
    Tokens *tokens;
    NamedCheckpoint model;   /* what model.path means */
    TextEnds ends;           /* what ends a text that is generated (prompt.c) */
    const char *weights;     /* its directory: a checkpoint to start from; "": random */
    uint64_t request;        /* a hash of the command and its arguments, which all ranks must share */
    int world, local, first; /* ranks in all; in this process; the first of those */
    Price *price;            /* [world]; this and what follows only while ranks run */
    Wire **wires;            /* [local] */
    void *context;           /* the command's own */
    RankBody body;
    Error *errors; /* [local] */
};

/* Takes these settings, and decides how many ranks and threads they mean. An open session may take others of the same
 * model and data, one after the other, and run each. */
bool session_settle(Session *s, Config *c, Error *e);
/* Settles, and reads the model's description (model.path or model.config). */
bool session_open(Session *s, Config *c, Error *e);
/* Opens data.path; none is an error. */
bool session_data(Session *s, Error *e);
/* Prices the run, refuses what does not fit, opens wires and ranks, loads or makes weights is the body's part.
 * Returns the exit code, its error printed. */
int session_run(Session *s, PriceFunction price, RankBody body, void *context);
void session_close(Session *s);

/* For bodies: this rank's way to the checkpoints of `run` ("": none), and the first weights: model.path's, or random
 * ones. */
Checkpoints *session_checkpoints(Session *s, Run *r, const char *run, Error *e);
bool session_weights(Session *s, Run *r, Checkpoints *c, Error *e);
bool session_read_weights(Session *s, Run *r, Error *e); /* the first weights, where there is no run directory */
bool session_leads(const Session *s);                    /* this process has rank 0 */

double price_bytes(const Price *price, int ranks); /* of all arenas of these ranks */

/* Prints an error that every process of an mpirun may have, once if they all do; returns its exit code. */
int session_error(const Error *e);
/* Adds to an error's text where it happened. */
void error_place(Error *e, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Runs body(context, rank) on `n` threads; waits for all. False (EXIT_MEMORY) when so many cannot be started: then none
 * has begun. */
bool threads_run(int n, void (*body)(void *context, int index), void *context, Error *e);
/* False (EXIT_MEMORY) when this machine never has so many threads. `what` needs them: "8192 ranks". */
bool threads_fit(double threads, const char *what, Error *e);

#endif
