/* The MPI wire: ranks that are processes of one mpirun. Touches Open MPI here and nowhere else. An exchange is a send and a
 * receive per member; waiting tests and sleeps, since a spinning rank would take the core that a computing one needs. */
#include "comm/parcel.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* Open MPI's launcher says who we are before MPI is started. */
static int launcher_number(const char *name, int fallback) {
    const char *text = getenv(name);
    if (!text) return fallback;
    char *end;
    long n = strtol(text, &end, 10);
    return end != text && *end == 0 && n >= 0 && n <= INT_MAX ? (int)n : fallback;
}

int wire_mpi_world(void) {
    return launcher_number("OMPI_COMM_WORLD_SIZE", 0);
}

int wire_mpi_rank(void) {
    return launcher_number("OMPI_COMM_WORLD_RANK", 0);
}

int wire_mpi_local(void) {
    int n = launcher_number("OMPI_COMM_WORLD_LOCAL_SIZE", 1);
    return n > 0 ? n : 1;
}

#ifndef MOP_MPI

bool wire_mpi_built(void) {
    return false;
}

Wire *wire_mpi_open(double timeout, Error *e) {
    (void)timeout;
    fail(e, EXIT_USAGE,
         "started by mpirun, but this mop was built without MPI; install libopenmpi-dev and build again");
    return NULL;
}

#else

#include <mpi.h>
#include <time.h>

enum { MESSAGE_BYTES = 1 << 30, TAG = 77, NAPS = 100 };

typedef struct {
    Wire wire;
    MPI_Request *requests; /* grown to the largest exchange so far */
    int used, room;
    int *lengths; /* of a message's blocks, and where they lie: grown to the most that a message had so far */
    MPI_Aint *places;
    int blocks, block_room;
} MpiWire;

static bool mpi_ok(int code, const char *what, Error *e) {
    if (code == MPI_SUCCESS) return true;
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    MPI_Error_string(code, text, &length);
    return fail(e, EXIT_PEER, "MPI failed while %s: %.*s", what, length, text);
}

static int messages(size_t bytes) {
    return (int)((bytes + MESSAGE_BYTES - 1) / MESSAGE_BYTES);
}

static void *grown(void *p, int count, size_t element) {
    p = realloc(p, (size_t)count * element);
    MUST(p);
    return p;
}

static void make_room(MpiWire *m, const Axis *axis, const Parcel *parcels) {
    int n = 0;
    for (int j = 0; j < axis->size; j++) n += messages(parcels[j].send_bytes) + messages(parcels[j].receive_bytes);
    m->used = 0;
    if (n <= m->room) return;
    m->requests = grown(m->requests, n, sizeof *m->requests);
    m->room = n;
}

/* The blocks of the next `bytes` of a walk, or of fewer; returns how many bytes they have. */
static size_t collect_blocks(MpiWire *m, Walk *w, size_t bytes) {
    size_t found = 0, block;
    for (m->blocks = 0; found < bytes && (block = walk_block(w)) > 0; m->blocks++) {
        if (m->blocks == m->block_room) {
            m->block_room = m->block_room ? 2 * m->block_room : 64;
            m->lengths = grown(m->lengths, m->block_room, sizeof *m->lengths);
            m->places = grown(m->places, m->block_room, sizeof *m->places);
        }
        if (block > bytes - found) block = bytes - found;
        m->lengths[m->blocks] = (int)block;
        m->places[m->blocks] = walk_take(w, block) - w->base;
        found += block;
    }
    return found;
}

static int start(MpiWire *m, void *data, int count, MPI_Datatype type, int peer, bool receive) {
    MPI_Request *r = &m->requests[m->used++];
    return receive ? MPI_Irecv(data, count, type, peer, TAG, MPI_COMM_WORLD, r)
                   : MPI_Isend(data, count, type, peer, TAG, MPI_COMM_WORLD, r);
}

/* Both ends cut the same stream after the same bytes, so that messages meet whatever blocks they are made of. Two ranks send each
 * other everything in program order, so one tag serves all groups: MPI keeps the order of a pair. */
static bool post(MpiWire *m, Walk w, int peer, bool receive, Error *e) {
    while (w.left > 0) {
        size_t bytes = collect_blocks(m, &w, MESSAGE_BYTES);
        int code;
        if (m->blocks == 1) {
            code = start(m, w.base + m->places[0], (int)bytes, MPI_BYTE, peer, receive);
        } else {
            MPI_Datatype blocks;
            code = MPI_Type_create_hindexed(m->blocks, m->lengths, m->places, MPI_BYTE, &blocks);
            if (code == MPI_SUCCESS) code = MPI_Type_commit(&blocks);
            if (code == MPI_SUCCESS) code = start(m, w.base, 1, blocks, peer, receive);
            if (code == MPI_SUCCESS) code = MPI_Type_free(&blocks); /* lives on until its message is through */
        }
        if (!mpi_ok(code, "starting a message", e)) return false;
    }
    return true;
}

/* Tests until everything has arrived; naps longer the longer it takes, at most 0.1 ms. */
static bool wait_all(MpiWire *m, const Axis *axis, Error *e) {
    double start = seconds_now();
    for (long nap = 0;; nap += nap < NAPS) {
        int done = 0;
        if (!mpi_ok(MPI_Testall(m->used, m->requests, &done, MPI_STATUSES_IGNORE), "waiting for a collective", e))
            return false;
        if (done) return true;
        if (seconds_now() - start > m->wire.timeout)
            return fail(e, EXIT_PEER,
                        "a rank of the %s group (%d ranks from %d) did not come to a collective within %.0f s; rank %d "
                        "waited; raise comm.timeout if it is only slow",
                        axis_name(axis->name), axis->size, axis->first, m->wire.timeout, m->wire.rank);
        if (nap > 10) nanosleep(&(struct timespec){0, nap * 1000}, NULL);
    }
}

static bool mpi_exchange(Wire *w, const Axis *axis, const Parcel *parcels, Error *e) {
    MpiWire *m = (MpiWire *)w;
    make_room(m, axis, parcels);
    for (int j = 0; j < axis->size; j++) {
        int peer = axis->first + j * axis->stride;
        if (j != axis->index && !post(m, walk_received(&parcels[j]), peer, true, e)) return false;
    }
    for (int j = 0; j < axis->size; j++) {
        int peer = axis->first + j * axis->stride;
        if (j != axis->index && !post(m, walk_sent(&parcels[j]), peer, false, e)) return false;
    }
    const Parcel *own = &parcels[axis->index];
    walk_copy(walk_received(own), walk_sent(own));
    return wait_all(m, axis, e);
}

static double mpi_meet(Wire *w, const Axis *axis, double clock) {
    (void)w;
    (void)axis;
    return clock; /* sim's ranks are threads */
}

/* Other ranks cannot go on: the launcher ends them, with our exit code. */
static void mpi_poison(Wire *w, const Error *e) {
    (void)w;
    error_print(e);
    MPI_Abort(MPI_COMM_WORLD, e->code);
}

static void mpi_close(Wire *w) {
    MPI_Finalize();
    MpiWire *m = (MpiWire *)w;
    free(m->requests);
    free(m->lengths);
    free(m->places);
    free(m);
}

bool wire_mpi_built(void) {
    return true;
}

Wire *wire_mpi_open(double timeout, Error *e) {
    int granted = 0;
    if (!mpi_ok(MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &granted), "starting", e)) return NULL;
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    if (granted < MPI_THREAD_SERIALIZED) {
        fail(e, EXIT_PEER, "this MPI allows calls from its first thread only; use Open MPI as Debian builds it");
        return NULL;
    }
    MpiWire *m = calloc(1, sizeof *m);
    MUST(m);
    m->wire = (Wire){
        .timeout = timeout, .exchange = mpi_exchange, .meet = mpi_meet, .poison = mpi_poison, .close = mpi_close};
    MPI_Comm_size(MPI_COMM_WORLD, &m->wire.world);
    MPI_Comm_rank(MPI_COMM_WORLD, &m->wire.rank);
    return &m->wire;
}

#endif
