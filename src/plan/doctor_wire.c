/* The wire between ranks, through the collectives themselves: seconds of a small one, and bytes a second that a
 * rank sends, by what the collective charges, of larger ones. Ranks are threads, or the processes of an mpirun;
 * every rank makes the same calls. */
#include "ops/kernels.h"
#include "plan/doctor_parts.h"
#include "train/session.h"

#include <stdlib.h>
#include <string.h>

enum { TRIES = 9 };

static const struct {
    int64_t bytes; /* of the tensor that a rank gives */
    const char *name;
    int repeats;
} sizes[] = {{64, "64B", 50}, {64 << 10, "64KiB", 8}, {1 << 20, "1MiB", 2}, {16 << 20, "16MiB", 1}};

typedef struct {
    const char *kind;
    int world;
    bool leads, shared;
    Report *report; /* of the rank that leads */
    Wire *wire;
    Error *error;
} End;

typedef struct {
    Device *device;
    Comm comm;
    Arena arena;
    Tensor in, out;
    int64_t *rows;
} Rank;

static void run_collective(Rank *k, Collective c, int64_t n) {
    Group *g = &k->comm.group[AXIS_WORLD];
    Stream *s = &k->device->stream[STREAM_NETWORK];
    int64_t world = g->axis.size, part = n / world, before = (g->axis.index + world - 1) % world;
    Tensor in = tensor_rows(k->in, 0, n);
    for (int64_t j = 0; j < world; j++) k->rows[j] = part;
    if (c == RETURN_SUMS) /* each to the next: from the one before, to the beginning */
        for (int64_t j = 0; j < world; j++) k->rows[j] = j == before ? 0 : -1;
    switch (c) {
    case ALL_GATHER: all_gather(g, s, tensor_rows(k->out, 0, n * world), in); break;
    case REDUCE_SCATTER: reduce_scatter(g, s, tensor_rows(k->out, 0, part), tensor_rows(k->in, 0, part * world)); break;
    case ALL_REDUCE: all_reduce(g, s, in); break;
    case ALL_TO_ALL:
        all_to_all(g, s, tensor_rows(k->out, 0, part * world), k->rows, tensor_rows(k->in, 0, part * world), k->rows);
        break;
    case BROADCAST: broadcast(g, s, in, 0); break;
    case SHIFT: shift(g, s, tensor_rows(k->out, 0, n), in); break;
    case RETURN_SUMS: return_sums(g, s, tensor_rows(k->out, 0, n), k->rows, in, (g->axis.index + 1) % world); break;
    default: barrier(g, s); break;
    }
}

static bool run_repeatedly(Rank *k, Collective c, int64_t n, int repeats, double *seconds, Error *e) {
    double start = seconds_now();
    for (int i = 0; i < repeats; i++) run_collective(k, c, n);
    event_wait(event_record(&k->device->stream[STREAM_NETWORK]));
    *seconds = (seconds_now() - start) / repeats;
    const Error *failed = device_failed(k->device);
    return !failed || fail(e, failed->code, "%s", failed->text);
}

static bool time_collective(const End *end, Rank *k, Collective c, size_t size, Error *e) {
    int64_t n = sizes[size].bytes / (int64_t)sizeof(float);
    bool small = size == 0;
    double seconds;
    meter_clear(k->device);
    if (!run_repeatedly(k, c, n, 1, &seconds, e)) return false;
    double sent = (double)k->device->meter.traffic[AXIS_WORLD][c].sent;
    Samples s = samples_begin();
    for (int i = 0; i < TRIES; i++) {
        if (!run_repeatedly(k, c, n, sizes[size].repeats, &seconds, e)) return false;
        samples_add(&s, small ? seconds : sent / seconds);
    }
    if (!end->leads) return true;
    char key[KEY_BYTES];
    snprintf(key, sizeof key, "wire_%s_%d_%s_%s_%s", end->kind, end->world, collective_name(c), sizes[size].name,
             small ? "s" : "bytes_per_s");
    report_samples(end->report, key, &s, end->shared);
    return true;
}

static bool time_all(const End *end, Rank *k, Error *e) {
    for (int c = 0; c < COLLECTIVE_COUNT; c++)
        for (size_t size = 0; size < (c == BARRIER ? 1 : COUNT(sizes)); size++)
            if (!time_collective(end, k, (Collective)c, size, e)) return false;
    return true;
}

static bool open_rank(Rank *k, const End *end, Error *e) {
    Config c = {.mixture_expert = 1,
                .mixture_expert_shard = 1,
                .mixture_ulysses = 1,
                .mixture_ring = 1,
                .mixture_vocabulary = 1};
    Mesh m;
    int64_t largest = sizes[COUNT(sizes) - 1].bytes / (int64_t)sizeof(float);
    *k = (Rank){.rows = calloc((size_t)end->world, sizeof *k->rows)};
    if (!k->rows) return fail(e, EXIT_MEMORY, "no memory for a rank; free some memory");
    k->device = device_open("cpu", 1, kernels_for("cpu", e), e);
    if (!k->device || !mesh_plan(&m, &c, end->world, end->wire->rank, e) ||
        !comm_open(&k->comm, &m, end->wire, k->device, e))
        return false;
    if (!arena_open(&k->arena, k->device, "doctor", TIER_DEVICE,
                    (size_t)(end->world + 2) * (size_t)largest * sizeof(float), e))
        return false;
    k->in = arena_tensor(&k->arena, FP32, DIM(largest));
    k->out = arena_tensor(&k->arena, FP32, DIM(largest * end->world));
    for (int64_t i = 0; i < largest; i++)
        ((float *)k->in.data)[i] = 1e-30f * (float)(i % 100 + 1); /* sums stay finite */
    return true;
}

static void close_rank(Rank *k) {
    if (k->device) event_wait(event_record(&k->device->stream[STREAM_NETWORK]));
    arena_close(&k->arena);
    if (k->comm.device) comm_close(&k->comm);
    device_close(k->device);
    free(k->rows);
}

/* A rank stays open until all have finished: others may be reading its memory. */
static void measure_rank(void *context, int index) {
    End *end = (End *)context + index;
    Rank k;
    bool ok = open_rank(&k, end, end->error) && time_all(end, &k, end->error) && host_agree(&k.comm, true, end->error);
    if (!ok) end->wire->poison(end->wire, end->error);
    close_rank(&k);
}

void doctor_threads_wire(Report *r, int ranks) {
    Wire *wires[64];
    Error errors[64], e = {0};
    End ends[64];
    MUST(ranks >= 2 && ranks <= (int)COUNT(ends));
    printf("\nwire between %d threads (64 B: seconds of one; else bytes that a rank sends)\n", ranks);
    memset(errors, 0, sizeof errors);
    if (!wire_threads_open(wires, ranks, 60, false, &e)) {
        report_broken(r, "%s", e.text);
        return;
    }
    for (int i = 0; i < ranks; i++)
        ends[i] = (End){
            .kind = "threads", .world = ranks, .leads = i == 0, .report = r, .wire = wires[i], .error = &errors[i]};
    threads_run(ranks, measure_rank, ends, &e);
    for (int i = 0; i < ranks; i++) {
        wires[i]->close(wires[i]);
        if (errors[i].code != EXIT_DONE && e.code == EXIT_DONE) e = errors[i];
    }
    if (e.code != EXIT_DONE) report_broken(r, "ranks as threads: %s", e.text);
}

bool doctor_mpi_wire(Report *r, Error *e) {
    Wire *w = wire_mpi_open(60, e);
    if (!w) return false;
    if (w->rank == 0)
        printf("wire between the %d processes of mpirun (64 B: seconds of one; else bytes that a rank sends)\n",
               w->world);
    End end = {
        .kind = "mpi", .world = w->world, .leads = w->rank == 0, .shared = true, .report = r, .wire = w, .error = e};
    if (w->world > 1) measure_rank(&end, 0);
    w->close(w);
    return e->code == EXIT_DONE;
}
