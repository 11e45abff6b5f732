/* Who talks to whom. A Group is one axis of the mesh with a wire under it; a collective is a front door that charges
 * bytes and queues the exchange on a stream (STREAM_NETWORK). Wires only move bytes: every sum is ours, in the order
 * of the group's members, so that threads, MPI and later NCCL's transports give the same bits. Every member calls the
 * same collectives in the same order whatever the data: routing changes sizes, never which collectives run. A group
 * of one copies.
 */
#ifndef MOP_COMM_H
#define MOP_COMM_H

#include "comm/cut.h"
#include "device/device.h"

/* ---- Wires ------------------------------------------------------------------------------------ */

/* To and from one member. A side is one block of bytes, or, where its spans are given, the rows that they name, of
 * `row_bytes` each, counted from the pointer on: a stream of bytes either way, so that one side's spans may meet the
 * other's block. */
typedef struct {
    const void *send;
    void *receive;
    size_t send_bytes, receive_bytes; /* spans included */
    const Span *send_spans, *receive_spans;
    size_t row_bytes;
} Parcel;

/* One rank's end of a wire that joins all ranks. The one primitive: every member of an axis hands over a parcel per
 * member. */
typedef struct Wire Wire;
struct Wire {
    int world, rank;
    double timeout;        /* seconds without progress before a peer counts as lost */
    struct CallLog *calls; /* calls.h: what this rank has asked of its groups lately */
    /* Blocks until done. False, with an Error naming what is known, when a peer failed; after `timeout` the last
     * calls of every rank are printed before, and the Error names the rank that is behind. */
    bool (*exchange)(Wire *w, const Axis *axis, const Parcel *parcels, Error *e);
    /* Sim: the members' clocks meet; returns the latest. */
    double (*meet)(Wire *w, const Axis *axis, double clock);
    /* Tells every rank that this one has failed: their exchanges return. */
    void (*poison)(Wire *w, const Error *e);
    void (*close)(Wire *w);
};

/* `world` ranks that are threads of this process: wires[r] is rank r's end. `late`: random delays before each
 * delivery (tests). */
bool wire_threads_open(Wire **wires, int world, double timeout, bool late, Error *e);
/* The ranks of this mpirun. wire_mpi_world: how many, without starting MPI; 0 when not under mpirun. */
int wire_mpi_world(void);
int wire_mpi_rank(void);
int wire_mpi_local(void); /* how many of them on this machine */
Wire *wire_mpi_open(double timeout, Error *e);
bool wire_mpi_built(void);

/* ---- Groups ----------------------------------------------------------------------------------- */

typedef struct Group {
    Axis axis;
    Wire *wire;
    Device *device;
    Tensor staging;  /* BYTE: where reductions receive; bounds a round, not the size of the tensor */
    Parcel *parcels; /* [size]: of the exchange at hand; NULL on sim, which exchanges nothing */
} Group;

typedef struct Comm {
    Mesh mesh;
    Wire *wire;
    Device *device;
    Arena arena; /* staging */
    Group group[AXIS_COUNT];
} Comm;

/* Staging of one rank: reductions run in rounds of at most COMM_ROUND_BYTES per member. */
enum { COMM_ROUND_BYTES = 1 << 20 };
bool comm_open(Comm *c, const Mesh *m, Wire *w, Device *d, Error *e);
/* One of the things that must be the same on all ranks. */
typedef struct {
    const char *differs; /* "the data differs" */
    const char *remedy;  /* "give every host the same files" */
    uint64_t hash;
} Shared;
/* All ranks have the same hashes; else EXIT_USAGE, in the same words everywhere: what differs on which ranks from most
 * others (where no most agree, from rank 0). Every rank gives the same list. Not metered. */
bool comm_same(Comm *c, const Shared *things, int count, Error *e);
/* Before anything is made: comm_same, and every group has been used once, by exactly the members that the mesh says.
 * things[0] is the program's version. It is compared first and alone, by a message that no version may change, because
 * another version may have another list. */
bool comm_greet(Comm *c, const Shared *things, int count, Error *e);
void comm_close(Comm *c);

/* ---- Collectives (s: the network stream; shapes by element counts) ----------------------------- */

typedef enum {
    ALL_GATHER,
    REDUCE_SCATTER,
    ALL_REDUCE,
    ALL_TO_ALL,
    BROADCAST,
    BARRIER,
    SHIFT,
    RETURN_SUMS,
    COLLECTIVE_COUNT
} Collective;
const char *collective_name(Collective c);

/* out [size * n] = in [n] of member 0, 1, ... `in` may be this member's part of out. */
void all_gather(Group *g, Stream *s, Tensor out, Tensor in);
/* out [n] = sum over members of their in [size * n]'s part for this member, in member order. `out` may be this
 * member's part of `in`. Sum types. */
void reduce_scatter(Group *g, Stream *s, Tensor out, Tensor in);
/* t [n] = sum over members, in member order: the same bits everywhere. */
void all_reduce(Group *g, Stream *s, Tensor t);
/* Rows: in holds in_rows[0] rows for member 0, then in_rows[1] for member 1, ...; out gets out_rows[j] rows from
 * member j. The arrays must live until the collective has run. dim[1] (or 1) is the row. */
void all_to_all(Group *g, Stream *s, Tensor out, const int64_t *out_rows, Tensor in, const int64_t *in_rows);
/* The same with rows that lie anywhere: those of `in` in from's spans of member j go to member j, and what comes from
 * member j fills to's spans of member j, in order, as one stream of rows, however it was cut there. Rows of `out` in
 * no span are untouched; `out` and `in` are different memory. The arrays must live until the collective has run. */
typedef struct {
    const Span *span;     /* those of member 0, then those of member 1, ... */
    const int64_t *spans; /* [size]: how many are member j's */
} Spans;
void all_to_all_spans(Group *g, Stream *s, Tensor out, Spans to, Tensor in, Spans from);
/* A ring: `in` goes to the next member, the one before this one fills `out`; behind the last comes the first. The
 * sizes may differ from member to member. */
void shift(Group *g, Stream *s, Tensor out, Tensor in);
/* Sums on their way home: `in` [n] goes to member `to` (-1: to nobody, this one too), and the n elements of every
 * member j that sends to this one are added to out[at[j]], out[at[j] + 1], ... (at[j] -1: nothing comes), in member
 * order. Two such places are the same or apart. Sum types; n is the same on all members, and alone decides how many
 * exchanges it takes. `at` [size] must live until it has run. */
void return_sums(Group *g, Stream *s, Tensor out, const int64_t *at, Tensor in, int64_t to);
void broadcast(Group *g, Stream *s, Tensor t, int root);
void barrier(Group *g, Stream *s);

/* Host messages, outside the step (checkpoints, start-up): every rank gives `bytes`, gets everyone's one after
 * another in `all` [world * bytes]. Blocks. On sim nobody says anything: only this rank's own part is written. */
bool host_gather(Comm *c, void *all, const void *mine, size_t bytes, Error *e);
/* The same inside one group: [size * bytes]. */
bool host_exchange(Group *g, void *all, const void *mine, size_t bytes, Error *e);
/* host_agree: true when every rank says true; otherwise false everywhere, with the first failing rank's Error in *e. */
bool host_agree(Comm *c, bool mine, Error *e);

#endif
