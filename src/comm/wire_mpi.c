/* The MPI wire: ranks that are processes of one mpirun. Touches Open MPI here and nowhere else. An exchange is a send and a
 * receive per member; waiting tests and sleeps, since a spinning rank would take the core that a computing one needs. */
#include "comm/comm.h"

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

static void make_room(MpiWire *m, const Axis *axis, const Parcel *parcels) {
    int n = 0;
    for (int j = 0; j < axis->size; j++) n += messages(parcels[j].send_bytes) + messages(parcels[j].receive_bytes);
    m->used = 0;
    if (n <= m->room) return;
    m->requests = realloc(m->requests, (size_t)n * sizeof *m->requests);
    MUST(m->requests);
    m->room = n;
}

/* Two ranks send each other everything in program order, so one tag serves all groups: MPI keeps the order of a pair. */
static bool post(MpiWire *m, void *data, size_t bytes, int peer, bool receive, Error *e) {
    for (size_t at = 0; at < bytes; at += MESSAGE_BYTES) {
        int piece = (int)(bytes - at < MESSAGE_BYTES ? bytes - at : MESSAGE_BYTES);
        char *p = (char *)data + at;
        MPI_Request *r = &m->requests[m->used++];
        int code = receive ? MPI_Irecv(p, piece, MPI_BYTE, peer, TAG, MPI_COMM_WORLD, r)
                           : MPI_Isend(p, piece, MPI_BYTE, peer, TAG, MPI_COMM_WORLD, r);
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
        if (j != axis->index && !post(m, parcels[j].receive, parcels[j].receive_bytes, peer, true, e)) return false;
    }
    for (int j = 0; j < axis->size; j++) {
        int peer = axis->first + j * axis->stride;
        if (j != axis->index && !post(m, (void *)(uintptr_t)parcels[j].send, parcels[j].send_bytes, peer, false, e))
            return false;
    }
    const Parcel *own = &parcels[axis->index];
    MUST(own->send_bytes == own->receive_bytes);
    if (own->send_bytes && own->receive != own->send) memmove(own->receive, own->send, own->send_bytes);
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
    free(((MpiWire *)w)->requests);
    free(w);
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
