/* The MPI wire: ranks that are processes of one mpirun. Touches Open MPI here and nowhere else. An exchange is a send
 * and a receive per member; waiting tests and sleeps, since a spinning rank would take the core that a computing one
 * needs.
 *
 * Beside it every process has a watchman, a thread that answers other ranks at any time, whatever the rest of its
 * process is busy with, and that notices when this rank has waited too long. Then it asks all ranks for their last
 * calls and gives them two seconds: who has not answered by then is stopped, gone or cut off. It tells and ends the
 * job. Of several that ask at once the lowest rank speaks; the others go on answering and speak when they have not
 * been ended after all.
 *
 *   rank 1 waits ..... timeout  --ASK-->  0 2 3        rank 3 is stopped
 *                               <-TELL--  0 2          2 s later: table, "rank 3 did not answer", MPI_Abort(6)
 *
 * MPI is called by one thread at a time. */
#include "comm/calls.h"
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
#include <pthread.h>
#include <stdio.h>
#include <time.h>

enum { MESSAGE_BYTES = 1 << 30, NAPS = 100 };
enum { TAG = 77, TAG_ASK, TAG_TELL };
static const double ANSWER_SECONDS = 2, PATIENCE_SECONDS = 4;
static const long LOOK_NANOSECONDS = 20000000; /* the watchman's round */

/* What the watchman knows. */
typedef struct {
    pthread_t thread;
    bool closing;
    double asked;         /* when this rank asked; 0: it has not */
    double patient_until; /* another asks: it will speak */
    Tail *heard, *told;   /* [world]: answers to this rank, and its answers to others */
    MPI_Request *telling; /* [world]: of `told` */
    MPI_Request asking;   /* of the one question at hand */
} Watch;

typedef struct {
    Wire wire;
    MPI_Request *requests; /* grown to the largest exchange so far */
    int used, room;
    int *lengths; /* of a message's blocks, and where they lie: grown to the most that a message had so far */
    MPI_Aint *places;
    int blocks, block_room;
    pthread_mutex_t lock; /* held for every call of MPI, and for what follows */
    double waits_since;   /* in an exchange; 0: in none */
    Watch watch;
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

/* `array` points at what is grown, and stays as it was when there is no memory. */
static bool grow(void *array, int count, size_t element, Error *e) {
    void *old, *larger;
    memcpy(&old, array, sizeof old);
    larger = realloc(old, (size_t)count * element);
    if (!larger) return fail(e, EXIT_MEMORY, "no memory for a message between ranks; free some memory");
    memcpy(array, &larger, sizeof larger);
    return true;
}

static bool make_room(MpiWire *m, const Axis *axis, const Parcel *parcels, Error *e) {
    int n = 0;
    for (int j = 0; j < axis->size; j++) n += messages(parcels[j].send_bytes) + messages(parcels[j].receive_bytes);
    m->used = 0;
    if (n <= m->room) return true;
    if (!grow(&m->requests, n, sizeof *m->requests, e)) return false;
    m->room = n;
    return true;
}

static bool more_blocks(MpiWire *m, Error *e) {
    int room = m->block_room ? 2 * m->block_room : 64;
    if (!grow(&m->lengths, room, sizeof *m->lengths, e) || !grow(&m->places, room, sizeof *m->places, e)) return false;
    m->block_room = room;
    return true;
}

/* The blocks of the next `bytes` of a walk, or of fewer; returns how many bytes they have, 0 for want of memory. */
static size_t collect_blocks(MpiWire *m, Walk *w, size_t bytes, Error *e) {
    size_t found = 0, block;
    for (m->blocks = 0; found < bytes && (block = walk_block(w)) > 0; m->blocks++) {
        if (m->blocks == m->block_room && !more_blocks(m, e)) return 0;
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

/* Both ends cut the same stream after the same bytes, so that messages meet whatever blocks they are made of. Two
 * ranks send each other everything in program order, so one tag serves all groups: MPI keeps the order of a pair. */
static bool post(MpiWire *m, Walk w, int peer, bool receive, Error *e) {
    while (w.left > 0) {
        size_t bytes = collect_blocks(m, &w, MESSAGE_BYTES, e);
        int code;
        if (bytes == 0) return false;
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

static bool post_all(MpiWire *m, const Axis *axis, const Parcel *parcels, Error *e) {
    if (!make_room(m, axis, parcels, e)) return false;
    for (int j = 0; j < axis->size; j++) {
        int peer = axis->first + j * axis->stride;
        if (j != axis->index && !post(m, walk_received(&parcels[j]), peer, true, e)) return false;
    }
    for (int j = 0; j < axis->size; j++) {
        int peer = axis->first + j * axis->stride;
        if (j != axis->index && !post(m, walk_sent(&parcels[j]), peer, false, e)) return false;
    }
    return true;
}

/* Tests until everything has arrived; naps longer the longer it takes, at most 0.1 ms. The watchman ends what takes
 * too long. */
static bool wait_all(MpiWire *m, Error *e) {
    for (long nap = 0;; nap += nap < NAPS) {
        int done = 0;
        pthread_mutex_lock(&m->lock);
        bool ok = mpi_ok(MPI_Testall(m->used, m->requests, &done, MPI_STATUSES_IGNORE), "waiting for a collective", e);
        if (!ok || done) m->waits_since = 0;
        pthread_mutex_unlock(&m->lock);
        if (!ok || done) return ok;
        if (nap > 10) nanosleep(&(struct timespec){0, nap * 1000}, NULL);
    }
}

static bool mpi_exchange(Wire *w, const Axis *axis, const Parcel *parcels, Error *e) {
    MpiWire *m = (MpiWire *)w;
    pthread_mutex_lock(&m->lock);
    bool ok = post_all(m, axis, parcels, e);
    m->waits_since = seconds_now();
    pthread_mutex_unlock(&m->lock);
    const Parcel *own = &parcels[axis->index];
    walk_copy(walk_received(own), walk_sent(own));
    return ok && wait_all(m, e);
}

/* ---- The watchman (with the lock) --------------------------------------------------------------- */

static void ask_all(MpiWire *m) {
    static const char question = 1;
    m->watch.asked = seconds_now();
    for (int r = 0; r < m->wire.world; r++) {
        m->watch.heard[r] = (Tail){0};
        if (r == m->wire.rank) continue;
        MPI_Isend(&question, 1, MPI_BYTE, r, TAG_ASK, MPI_COMM_WORLD, &m->watch.asking);
        MPI_Request_free(&m->watch.asking); /* a stopped rank never takes it */
    }
    m->watch.heard[m->wire.rank] = calls_tail(m->wire.calls);
}

static void answer(MpiWire *m, int rank) {
    Watch *w = &m->watch;
    int sent = 1;
    MPI_Test(&w->telling[rank], &sent, MPI_STATUS_IGNORE);
    if (!sent) return;
    w->told[rank] = calls_tail(m->wire.calls);
    MPI_Isend(&w->told[rank], (int)sizeof(Tail), MPI_BYTE, rank, TAG_TELL, MPI_COMM_WORLD, &w->telling[rank]);
    if (w->asked > 0 && m->wire.rank < rank) return;
    w->asked = 0;
    w->patient_until = seconds_now() + PATIENCE_SECONDS;
}

/* Takes every message of the tag. */
static void take(MpiWire *m, int tag) {
    while (true) {
        int found = 0;
        char question;
        MPI_Status from;
        MPI_Iprobe(MPI_ANY_SOURCE, tag, MPI_COMM_WORLD, &found, &from);
        if (!found) return;
        int rank = from.MPI_SOURCE;
        if (tag == TAG_TELL) {
            MPI_Recv(&m->watch.heard[rank], (int)sizeof(Tail), MPI_BYTE, rank, tag, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            continue;
        }
        MPI_Recv(&question, 1, MPI_BYTE, rank, tag, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        answer(m, rank);
    }
}

static bool heard_all(const MpiWire *m) {
    for (int r = 0; r < m->wire.world; r++)
        if (!m->watch.heard[r].known) return false;
    return true;
}

static void speak(MpiWire *m) {
    Error e = {0};
    calls_print(m->watch.heard, m->wire.world, stderr);
    calls_fail(&e, m->watch.heard, m->wire.world, m->wire.rank, m->wire.timeout);
    error_print(&e);
    MPI_Abort(MPI_COMM_WORLD, e.code);
}

static void look(MpiWire *m) {
    Watch *w = &m->watch;
    double now = seconds_now();
    bool waited = m->waits_since > 0 && now - m->waits_since > m->wire.timeout;
    take(m, TAG_TELL);
    take(m, TAG_ASK); /* after the answers: who asked before he answered is seen to ask before he is counted */
    if (!waited)
        w->asked = 0;
    else if (w->asked > 0 && (heard_all(m) || now - w->asked > ANSWER_SECONDS))
        speak(m);
    else if (w->asked == 0 && now > w->patient_until)
        ask_all(m);
}

static void *watch_over(void *context) {
    MpiWire *m = context;
    for (bool closing = false; !closing;) {
        nanosleep(&(struct timespec){0, LOOK_NANOSECONDS}, NULL);
        pthread_mutex_lock(&m->lock);
        look(m);
        closing = m->watch.closing;
        pthread_mutex_unlock(&m->lock);
    }
    return NULL;
}

static bool watch_open(MpiWire *m, Error *e) {
    Watch *w = &m->watch;
    size_t world = (size_t)m->wire.world;
    w->heard = calloc(world, sizeof *w->heard);
    w->told = calloc(world, sizeof *w->told);
    w->telling = calloc(world, sizeof *w->telling);
    if (!w->heard || !w->told || !w->telling)
        return fail(e, EXIT_MEMORY, "no memory to watch over %zu ranks; use fewer ranks, or free some memory", world);
    for (size_t r = 0; r < world; r++) w->telling[r] = MPI_REQUEST_NULL;
    int refused = pthread_create(&w->thread, NULL, watch_over, m);
    return refused == 0 || fail(e, EXIT_MEMORY,
                                "cannot start the thread that watches over the ranks: %s; raise the limits of "
                                "processes and of address space (ulimit -u, ulimit -v)",
                                strerror(refused));
}

static void watch_close(MpiWire *m) {
    Watch *w = &m->watch;
    pthread_mutex_lock(&m->lock);
    w->closing = true;
    pthread_mutex_unlock(&m->lock);
    pthread_join(w->thread, NULL);
    free(w->heard);
    free(w->told);
    free(w->telling);
}

/* ---- The wire ----------------------------------------------------------------------------------- */

static double mpi_meet(Wire *w, const Axis *axis, double clock) {
    (void)w;
    (void)axis;
    return clock; /* sim's ranks are threads */
}

/* Other ranks cannot go on: the launcher ends them, with our exit code. */
static void mpi_poison(Wire *w, const Error *e) {
    MpiWire *m = (MpiWire *)w;
    error_print(e);
    pthread_mutex_lock(&m->lock);
    MPI_Abort(MPI_COMM_WORLD, e->code);
    pthread_mutex_unlock(&m->lock);
}

/* MPI's own end waits for everybody without end: so all meet before, while they are watched. */
static void meet_to_part(MpiWire *m) {
    char token = 1, *all = calloc((size_t)m->wire.world, 1);
    Parcel *parcels = calloc((size_t)m->wire.world, sizeof *parcels);
    Axis everyone = {AXIS_WORLD, m->wire.world, m->wire.rank, 0, 1};
    Error e = {0};
    for (int r = 0; all && parcels && r < m->wire.world; r++)
        parcels[r] = (Parcel){.send = &token, .receive = all + r, .send_bytes = 1, .receive_bytes = 1};
    calls_queue(m->wire.calls, (Call){.axis = everyone, .collective = HOST_MESSAGE, .step = -1, .layer = -1});
    calls_begin(m->wire.calls);
    if (all && parcels) mpi_exchange(&m->wire, &everyone, parcels, &e);
    free(parcels);
    free(all);
}

static void mpi_close(Wire *w) {
    MpiWire *m = (MpiWire *)w;
    meet_to_part(m);
    watch_close(m);
    MPI_Finalize();
    calls_close(w->calls);
    pthread_mutex_destroy(&m->lock);
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
    CallLog *calls = calls_open();
    if (!m || !calls) {
        fail(e, EXIT_MEMORY, "no memory for the wire of this rank; free some memory");
        return NULL;
    }
    m->wire = (Wire){
        .timeout = timeout, .exchange = mpi_exchange, .meet = mpi_meet, .poison = mpi_poison, .close = mpi_close};
    MPI_Comm_size(MPI_COMM_WORLD, &m->wire.world);
    MPI_Comm_rank(MPI_COMM_WORLD, &m->wire.rank);
    m->wire.calls = calls;
    pthread_mutex_init(&m->lock, NULL);
    return watch_open(m, e) ? &m->wire : NULL; /* the launcher ends the others when this process ends */
}

#endif
