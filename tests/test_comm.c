/* Who talks to whom: the mesh as arithmetic; every collective against its plain definition, to the bit, in bytes
 * too; and what ranks learn when one of them fails or does not come. A rank of these tests is a thread with a
 * device and a Comm of its own; it never asserts, but says in its Error what is wrong. (cmocka has a macro of the
 * name `fail`; in parentheses it is ours.) */
#include "comm/calls.h"
#include "ops/kernels.h"
#include "plan/plan.h"
#include "ranks.h"
#include "testing.h"

#include "base/random.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

static Config config_of(const char *const *sets, int n) {
    Config c;
    Error e = {0};
    if (!config_read_text(&c, "", 0, "test", sets, n, &e)) fail_msg("%s", e.text);
    return c;
}

/* ---- Mesh ------------------------------------------------------------------------------------- */

static int member(const Axis *a, int j) {
    return a->first + j * a->stride;
}

static void assert_partitions(const Mesh *mesh, int world, AxisName name) {
    for (int r = 0; r < world; r++) {
        const Axis *a = &mesh[r].axis[name];
        assert_int_equal(a->name, name);
        assert_in_range(a->index, 0, a->size - 1);
        assert_int_equal(member(a, a->index), r);
        for (int j = 0; j < a->size; j++) {
            assert_in_range(member(a, j), 0, world - 1);
            const Axis *theirs = &mesh[member(a, j)].axis[name];
            assert_int_equal(theirs->first, a->first);
            assert_int_equal(theirs->stride, a->stride);
            assert_int_equal(theirs->size, a->size);
            assert_int_equal(theirs->index, j);
        }
    }
}

/* Two axes that meet in one rank and together name every rank of their product. */
static void assert_crosses(const Mesh *mesh, int world, AxisName a, AxisName b) {
    for (int r = 0; r < world; r++)
        for (int q = 0; q < r; q++) {
            bool same_a = mesh[r].axis[a].first == mesh[q].axis[a].first,
                 same_b = mesh[r].axis[b].first == mesh[q].axis[b].first;
            if (same_a && same_b)
                fail_msg("ranks %d and %d share their %s and their %s group", q, r, axis_name(a), axis_name(b));
        }
}

static void check_mixture(int world, int z, int p, int u, int ring, int ep, int es) {
    Config c = {.mixture_dense = z,
                .mixture_vocabulary = p,
                .mixture_ulysses = u,
                .mixture_ring = ring,
                .mixture_expert = ep,
                .mixture_expert_shard = es};
    Mesh mesh[12];
    Error e = {0};
    for (int r = 0; r < world; r++) assert_true(mesh_plan(&mesh[r], &c, world, r, &e));
    for (int a = 0; a < AXIS_COUNT; a++) assert_partitions(mesh, world, (AxisName)a);
    const struct {
        AxisName name;
        int size, stride;
    } rows[] = {
        {AXIS_WORLD, world, 1},
        {AXIS_SEQUENCE, u * ring, 1},
        {AXIS_ULYSSES, u, 1},
        {AXIS_RING, ring, u},
        {AXIS_EXPERT, ep, 1},
        {AXIS_EXPERT_SHARD, es, ep},
        {AXIS_EXPERT_REPLICA, world / ep / es, ep * es},
        {AXIS_DENSE, z, 1},
        {AXIS_DENSE_REPLICA, world / z, z},
        {AXIS_VOCABULARY, p, 1},
        {AXIS_VOCABULARY_REPLICA, world / p, p},
    };
    assert_int_equal(COUNT(rows), AXIS_COUNT);
    for (size_t i = 0; i < COUNT(rows); i++) {
        assert_int_equal(mesh[world - 1].axis[rows[i].name].size, rows[i].size);
        assert_int_equal(mesh[world - 1].axis[rows[i].name].stride, rows[i].stride);
    }
    assert_crosses(mesh, world, AXIS_ULYSSES, AXIS_RING);
    assert_crosses(mesh, world, AXIS_EXPERT, AXIS_EXPERT_SHARD);
    assert_crosses(mesh, world, AXIS_DENSE, AXIS_DENSE_REPLICA);
    assert_crosses(mesh, world, AXIS_VOCABULARY, AXIS_VOCABULARY_REPLICA);
    for (int r = 0; r < world; r++) /* an Ulysses x ring group is the sequence group */
        for (int q = 0; q < world; q++) {
            bool sequence = mesh[r].axis[AXIS_SEQUENCE].first == mesh[q].axis[AXIS_SEQUENCE].first;
            assert_int_equal(sequence, r / (u * ring) == q / (u * ring));
        }
}

/* Dense and vocabulary groups are chosen alike, so that their divisors go together; as do the pairs (D_u, D_r) and
 * (E_p, E_s). */
static void groups_partition_the_ranks_for_every_mixture_of_up_to_12(void **state) {
    (void)state;
    for (int world = 1; world <= 12; world++)
        for (int z = 1; z <= world; z++)
            for (int u = 1; u <= world; u++)
                for (int ring = 1; u * ring <= world; ring++)
                    if (world % z == 0 && world % (u * ring) == 0) {
                        check_mixture(world, z, world / z, u, ring, u, ring);
                        check_mixture(world, z, z, u, ring, ring, u);
                    }
}

static void the_printed_mesh_is_this_text(void **state) {
    (void)state;
    static const char *const sets[] = {"mixture.dense=4", "mixture.vocabulary=2", "mixture.ulysses=2",
                                       "mixture.ring=2",  "mixture.expert=4",     "mixture.expert_shard=2"};
    static const char expected[] = "world               {0 1 2 3 4 5 6 7}\n"
                                   "sequence            {0 1 2 3} {4 5 6 7}\n"
                                   "ulysses             {0 1} {2 3} {4 5} {6 7}\n"
                                   "ring                {0 2} {1 3} {4 6} {5 7}\n"
                                   "expert              {0 1 2 3} {4 5 6 7}\n"
                                   "expert_shard        {0 4} {1 5} {2 6} {3 7}\n"
                                   "expert_replica      {0} {1} {2} {3} {4} {5} {6} {7}\n"
                                   "dense               {0 1 2 3} {4 5 6 7}\n"
                                   "dense_replica       {0 4} {1 5} {2 6} {3 7}\n"
                                   "vocabulary          {0 1} {2 3} {4 5} {6 7}\n"
                                   "vocabulary_replica  {0 2 4 6} {1 3 5 7}\n";
    Config c = config_of(sets, COUNT(sets));
    char *text = NULL;
    size_t bytes = 0;
    FILE *f = open_memstream(&text, &bytes);
    assert_non_null(f);
    mesh_print(&c, 8, f);
    fclose(f);
    assert_string_equal(text, expected);
    free(text);
    config_close(&c);
}

static void sizes_that_do_not_divide_the_ranks_are_refused_in_a_sentence(void **state) {
    (void)state;
    static const struct {
        int world;
        const char *sets[2], *said;
    } rows[] = {
        {8, {"mixture.dense=3"}, "mixture.dense = 3 does not divide the 8 ranks"},
        {4, {"mixture.dense=8"}, "mixture.dense = 8 does not divide the 4 ranks"},
        {6, {"mixture.expert=4"}, "mixture.expert = 4 does not divide the 6 ranks"},
        {6, {"mixture.expert_shard=5"}, "mixture.expert_shard = 5"},
        {6, {"mixture.expert=2", "mixture.expert_shard=6"}, "mixture.expert x mixture.expert_shard = 12"},
        {6, {"mixture.ulysses=4"}, "mixture.ulysses = 4"},
        {6, {"mixture.ring=4"}, "mixture.ring = 4"},
        {8, {"mixture.ulysses=4", "mixture.ring=4"}, "mixture.ulysses x mixture.ring = 16"},
        {7, {"mixture.vocabulary=2"}, "mixture.vocabulary = 2 does not divide the 7 ranks"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        Config c = config_of(rows[i].sets, rows[i].sets[1] ? 2 : 1);
        Mesh m;
        Error e = {0};
        assert_false(mesh_plan(&m, &c, rows[i].world, 0, &e));
        assert_int_equal(e.code, EXIT_USAGE);
        if (!strstr(e.text, rows[i].said)) fail_msg("\"%s\" does not say \"%s\"", e.text, rows[i].said);
        config_close(&c);
    }
}

/* ---- Ranks ------------------------------------------------------------------------------------ */

typedef struct Peers Peers;
typedef bool (*PeerBody)(Peers *p, int rank, Error *e);

struct Peers {
    int world;
    double timeout;
    bool late;
    const char *sets[4];
    Config config;
    Wire *wire[8];
    Device *device[8];
    Comm comm[8];
    Error error[8];
    Memory memory[8]; /* freed when all have returned: others may read what a rank has handed to its network stream */
    PeerBody body;
    void *context;
};

/* Under mpirun this program is one rank of its size: the tests of that size run, over the MPI wire. */
static Wire *launched_wire(void) {
    static Wire *wire;
    Error e = {0};
    if (!wire && wire_mpi_world() > 0 && !(wire = wire_mpi_open(60, &e))) fail_msg("%s", e.text);
    return wire;
}

static void peer_main(void *context, int rank) {
    Peers *p = context;
    Error *e = &p->error[rank];
    Mesh mesh;
    bool ok = mesh_plan(&mesh, &p->config, p->world, rank, e) &&
              comm_open(&p->comm[rank], &mesh, p->wire[rank], p->device[rank], e);
    if (!ok || !p->body(p, rank, e)) p->wire[rank]->poison(p->wire[rank], e);
}

/* Runs the body on every rank that is here; what they return is in p->error. */
static void peers_try(Peers *p, PeerBody body, void *context) {
    Wire *launched = launched_wire();
    int first = launched ? launched->rank : 0, end = launched ? first + 1 : p->world, n = 0;
    while (n < (int)COUNT(p->sets) && p->sets[n]) n++;
    p->config = config_of(p->sets, n);
    p->body = body;
    p->context = context;
    Error e = {0};
    if (launched)
        p->wire[first] = launched;
    else
        assert_true(wire_threads_open(p->wire, p->world, p->timeout > 0 ? p->timeout : 60, p->late, &e));
    for (int r = first; r < end; r++) p->device[r] = test_device_needed(p->late ? "cpu:late" : "cpu", 1);
    if (launched)
        peer_main(p, first);
    else
        assert_true(threads_run(p->world, peer_main, p, &e));
    for (int r = first; r < end; r++) event_wait(event_record(&p->device[r]->stream[STREAM_NETWORK]));
    for (int r = first; r < end; r++) comm_close(&p->comm[r]);
    for (int r = first; r < end; r++) device_close(p->device[r]);
    for (int r = first; r < end; r++) memory_check(&p->memory[r], "a collective");
    for (int r = first; r < end; r++) memory_free(&p->memory[r]);
    for (int r = first; r < end && !launched; r++) p->wire[r]->close(p->wire[r]);
    config_close(&p->config);
}

static void peers_run(Peers p, PeerBody body, void *context) {
    if (launched_wire() && launched_wire()->world != p.world) return;
    peers_try(&p, body, context);
    for (int r = 0; r < p.world; r++)
        if (p.error[r].code != EXIT_DONE && p.error[r].code != EXIT_PEER)
            fail_msg("rank %d of %d: %s", r, p.world, p.error[r].text);
    for (int r = 0; r < p.world; r++)
        if (p.error[r].code != EXIT_DONE) fail_msg("rank %d of %d: %s", r, p.world, p.error[r].text);
}

/* ---- Collectives against their definitions ---------------------------------------------------- */

typedef struct {
    Collective collective;
    AxisName axis;
    Type type;
    int64_t count; /* elements of the smaller side; rows for all_to_all, give or take */
    bool in_place;
    int root;
} Case;

/* Element i of what rank `rank` brings: sizes over 40 powers of two, so that the order of a sum shows. */
static double brought(int rank, int64_t i, Type type) {
    uint64_t h = ((uint64_t)rank + 1) * 0x9E3779B97F4A7C15ull ^ ((uint64_t)i + 1) * 0xC2B2AE3D27D4EB4Full;
    h = (h ^ h >> 29) * 0xBF58476D1CE4E5B9ull;
    int64_t digits = (int64_t)(h >> 40) - (1 << 23);
    if (type == INT64 || type == INT32) return (double)digits;
    if (type == BYTE) return (double)(h >> 56);
    return type_round(type, (double)digits * (double)(1ull << (h & 31)) / (double)(1 << 20));
}

static double plus(double a, double b, Type type) {
    return type == FP32 ? (double)((float)a + (float)b) : a + b;
}

/* The sum over the members, first member first. */
static double summed(const Axis *a, int64_t i, Type type) {
    double sum = brought(member(a, 0), i, type);
    for (int j = 1; j < a->size; j++) sum = plus(sum, brought(member(a, j), i, type), type);
    return sum;
}

/* Rows that member `from` has for member `to`; some have none. */
static int64_t rows_between(const Case *c, int from, int to) {
    return c->count == 0 ? 0 : (from * 3 + to * 5 + 1) % 4 * ((c->count + 2) / 3);
}

typedef struct {
    const Case *c;
    Group *group;
    Tensor in, out;
    int64_t in_rows[8], out_rows[8];
} Try;

enum { WIDTH = 3 }; /* elements of an all_to_all's row */

static void open_try(Try *t, Memory *memory) {
    const Case *c = t->c;
    const Axis *a = &t->group->axis;
    int64_t in = c->count, out = c->count, rank = member(a, a->index);
    if (c->collective == ALL_GATHER) out = a->size * c->count;
    if (c->collective == REDUCE_SCATTER) in = a->size * c->count;
    if (c->collective == ALL_TO_ALL) {
        in = out = 0;
        for (int j = 0; j < a->size; j++) {
            in += t->in_rows[j] = rows_between(c, a->index, j);
            out += t->out_rows[j] = rows_between(c, j, a->index);
        }
        t->in = memory_tensor(memory, c->type, DIM(in, WIDTH));
        t->out = memory_tensor(memory, c->type, DIM(out, WIDTH));
    } else {
        t->in = memory_tensor(memory, c->type, DIM(in));
        t->out = c->collective == ALL_REDUCE || c->collective == BROADCAST ? t->in
                                                                           : memory_tensor(memory, c->type, DIM(out));
        if (c->in_place && c->collective == ALL_GATHER) t->in = tensor_rows(t->out, a->index * c->count, c->count);
        if (c->collective == BARRIER) t->out = tensor_rows(t->in, 0, 0);
        if (c->in_place && c->collective == REDUCE_SCATTER) t->out = tensor_rows(t->in, a->index * c->count, c->count);
    }
    for (int64_t i = 0; i < tensor_count(t->in); i++) tensor_put(t->in, i, brought((int)rank, i, c->type));
}

static void start_try(Try *t, Stream *s) {
    const Case *c = t->c;
    Group *g = t->group;
    switch (c->collective) {
    case ALL_GATHER: all_gather(g, s, t->out, t->in); break;
    case REDUCE_SCATTER: reduce_scatter(g, s, t->out, t->in); break;
    case ALL_REDUCE: all_reduce(g, s, t->in); break;
    case ALL_TO_ALL: all_to_all(g, s, t->out, t->out_rows, t->in, t->in_rows); break;
    case BROADCAST: broadcast(g, s, t->in, c->root % g->axis.size); break;
    default: barrier(g, s);
    }
}

/* Element i of the result, by definition. */
static double expected_at(const Try *t, int64_t i) {
    const Case *c = t->c;
    const Axis *a = &t->group->axis;
    if (c->collective == ALL_GATHER) return brought(member(a, (int)(i / c->count)), i % c->count, c->type);
    if (c->collective == REDUCE_SCATTER) return summed(a, a->index * c->count + i, c->type);
    if (c->collective == ALL_REDUCE) return summed(a, i, c->type);
    if (c->collective == BROADCAST) return brought(member(a, c->root % a->size), i, c->type);
    int from = 0;
    for (; i >= t->out_rows[from] * WIDTH; from++) i -= t->out_rows[from] * WIDTH;
    for (int j = 0; j < a->index; j++)
        i += rows_between(c, from, j) * WIDTH; /* behind what he has for members before this one */
    return brought(member(a, from), i, c->type);
}

static bool check_try(const Try *t, Error *e) {
    const Case *c = t->c;
    for (int64_t i = 0; i < tensor_count(t->out); i++) {
        double got = tensor_get(t->out, i), expected = expected_at(t, i);
        if (memcmp(&got, &expected, sizeof got) != 0)
            return (fail)(e, EXIT_DATA, "%s of %lld %s over %s: [%lld] is %.17g, expected %.17g",
                          collective_name(c->collective), (long long)c->count, type_name(c->type), axis_name(c->axis),
                          (long long)i, got, expected);
    }
    return true;
}

/* Bytes to and from others, as the table in collectives.c says. */
static TrafficCount expected_traffic(const Try *t) {
    const Case *c = t->c;
    const Axis *a = &t->group->axis;
    int64_t peers = a->size - 1, each = (int64_t)type_bytes(c->type), n = c->count, part = ceil_div(n, a->size);
    int64_t mine = min64(part, max64(0, n - a->index * part)), sent = peers * n, received = sent;
    if (c->collective == ALL_REDUCE && n * each > 16 << 10) sent = received = n - mine + peers * mine;
    if (c->collective == ALL_TO_ALL) {
        sent = received = 0;
        for (int j = 0; j < a->size; j++) {
            sent += j == a->index ? 0 : t->in_rows[j] * WIDTH;
            received += j == a->index ? 0 : t->out_rows[j] * WIDTH;
        }
    }
    if (c->collective == BROADCAST) {
        bool root = a->index == c->root % a->size;
        sent = root ? peers * n : 0;
        received = root ? 0 : n;
    }
    return (TrafficCount){.calls = 1, .sent = sent * each, .received = received * each};
}

static bool check_traffic(const Device *d, const TrafficCount expected[AXIS_COUNT][COLLECTIVE_COUNT], Error *e) {
    for (int a = 0; a < AXIS_COUNT; a++)
        for (int c = 0; c < COLLECTIVE_COUNT; c++) {
            const TrafficCount *x = &expected[a][c], *g = &d->meter.traffic[a][c];
            if (g->calls != x->calls || g->sent != x->sent || g->received != x->received)
                return (fail)(e, EXIT_DATA,
                              "%s over %s: %lld calls, %lld bytes sent, %lld received; expected %lld, %lld, %lld",
                              collective_name((Collective)c), axis_name((AxisName)a), (long long)g->calls,
                              (long long)g->sent, (long long)g->received, (long long)x->calls, (long long)x->sent,
                              (long long)x->received);
        }
    return true;
}

typedef struct {
    const Case *cases;
    size_t count;
} Cases;

/* All cases are queued before any is waited for. */
static bool try_cases(Peers *p, int rank, Error *e) {
    const Cases *all = p->context;
    Try *tries = calloc(all->count, sizeof *tries);
    TrafficCount expected[AXIS_COUNT][COLLECTIVE_COUNT] = {0};
    Memory *memory = &p->memory[rank];
    MUST(tries);
    for (size_t i = 0; i < all->count; i++) {
        const Case *c = &all->cases[i];
        tries[i] = (Try){.c = c, .group = &p->comm[rank].group[c->axis]};
        open_try(&tries[i], memory);
        TrafficCount x = expected_traffic(&tries[i]), *sum = &expected[c->axis][c->collective];
        *sum =
            (TrafficCount){.calls = sum->calls + 1, .sent = sum->sent + x.sent, .received = sum->received + x.received};
    }
    Stream *network = &p->device[rank]->stream[STREAM_NETWORK];
    for (size_t i = 0; i < all->count; i++) start_try(&tries[i], network);
    event_wait(event_record(network));
    const Error *failed = device_failed(p->device[rank]);
    bool ok = failed ? (fail)(e, failed->code, "%s", failed->text) : true;
    for (size_t i = 0; ok && i < all->count; i++) ok = check_try(&tries[i], e);
    ok = ok && check_traffic(p->device[rank], (const TrafficCount(*)[COLLECTIVE_COUNT])expected, e);
    free(tries);
    return ok;
}

/* Odd counts, none, fewer than members, beyond what is small, beyond a round of staging (1 MiB a member). */
static const int64_t counts[] = {0, 1, 5, 33, 3001, 4999};
enum { BEYOND_A_ROUND = COMM_ROUND_BYTES / 4 + 333 };

static void try_everything(Peers p, AxisName axis) {
    static const struct {
        Collective collective;
        Type type;
        bool in_place;
    } rows[] = {
        {ALL_GATHER, FP32, false},    {ALL_GATHER, INT32, true},      {ALL_GATHER, INT64, false},
        {ALL_GATHER, BF16, false},    {ALL_GATHER, BYTE, true},       {REDUCE_SCATTER, FP32, false},
        {REDUCE_SCATTER, FP64, true}, {REDUCE_SCATTER, INT64, false}, {REDUCE_SCATTER, FP32, true},
        {ALL_REDUCE, FP32, true},     {ALL_REDUCE, FP64, true},       {ALL_REDUCE, INT64, true},
        {ALL_TO_ALL, FP32, false},    {ALL_TO_ALL, FP64, false},      {ALL_TO_ALL, BF16, false},
        {BROADCAST, FP32, true},      {BROADCAST, INT64, true},
    };
    Case cases[COUNT(rows) * (COUNT(counts) + 1)];
    size_t n = 0;
    for (size_t i = 0; i < COUNT(rows); i++)
        for (size_t k = 0; k < COUNT(counts); k++)
            cases[n++] = (Case){rows[i].collective, axis, rows[i].type, counts[k], rows[i].in_place, (int)(i + k)};
    cases[n++] = (Case){.collective = BARRIER, .axis = axis, .type = BYTE, .count = 1};
    peers_run(p, try_cases, &(Cases){cases, n});
}

static void collectives_equal_their_definitions_in_groups_of_1_to_8(void **state) {
    (void)state;
    for (int world = 1; world <= 8; world++) try_everything((Peers){.world = world}, AXIS_WORLD);
}

static void collectives_equal_their_definitions_in_strided_groups(void **state) {
    (void)state;
    try_everything((Peers){.world = 8, .sets = {"mixture.expert=2"}}, AXIS_EXPERT_REPLICA);
    try_everything((Peers){.world = 6, .sets = {"mixture.dense=2"}}, AXIS_DENSE_REPLICA);
    try_everything((Peers){.world = 8, .sets = {"mixture.ulysses=2", "mixture.ring=2"}}, AXIS_RING);
}

static void collectives_larger_than_a_round_of_staging_equal_their_definitions(void **state) {
    (void)state;
    static const Case cases[] = {
        {REDUCE_SCATTER, AXIS_WORLD, FP32, BEYOND_A_ROUND, true, 0},
        {REDUCE_SCATTER, AXIS_WORLD, FP64, BEYOND_A_ROUND, false, 0},
        {ALL_REDUCE, AXIS_WORLD, FP32, 3 * BEYOND_A_ROUND + 1, true, 0},
        {ALL_REDUCE, AXIS_WORLD, INT64, 2 * BEYOND_A_ROUND, true, 0},
        {ALL_GATHER, AXIS_WORLD, FP32, BEYOND_A_ROUND, true, 0},
        {ALL_TO_ALL, AXIS_WORLD, FP32, BEYOND_A_ROUND / 2, false, 0},
        {BROADCAST, AXIS_WORLD, FP64, BEYOND_A_ROUND, true, 2},
    };
    peers_run((Peers){.world = 3}, try_cases, &(Cases){cases, COUNT(cases)});
    peers_run((Peers){.world = 2}, try_cases, &(Cases){cases, COUNT(cases)});
}

/* Groups of several axes at once, whose members differ, on a wire and streams that delay at random. */
static void late_wires_and_mixed_groups_give_the_same_bits(void **state) {
    (void)state;
    static const AxisName axes[] = {AXIS_WORLD, AXIS_EXPERT, AXIS_DENSE_REPLICA, AXIS_DENSE, AXIS_EXPERT_REPLICA};
    static const Collective kinds[] = {ALL_REDUCE, ALL_TO_ALL, ALL_GATHER, REDUCE_SCATTER, BROADCAST};
    Case cases[50];
    for (size_t i = 0; i < COUNT(cases); i++)
        cases[i] = (Case){kinds[i % 5],
                          axes[i * 7 / 5 % 5],
                          i % 3 ? FP32 : FP64,
                          counts[i * 3 % COUNT(counts)] * (int64_t)(1 + i % 4),
                          false,
                          (int)i};
    const Peers peers = {.world = 8, .sets = {"mixture.expert=2", "mixture.dense=4"}};
    Peers late = peers;
    late.late = true;
    peers_run(peers, try_cases, &(Cases){cases, COUNT(cases)});
    peers_run(late, try_cases, &(Cases){cases, COUNT(cases)});
}

/* Were it not so, equality with `summed` would not prove the order. */
static void the_order_of_the_members_shows_in_these_sums(void **state) {
    (void)state;
    const Axis a = {AXIS_WORLD, 8, 0, 0, 1};
    int differ = 0;
    for (int64_t i = 0; i < 1000; i++) {
        double backward = brought(7, i, FP32);
        for (int j = 6; j >= 0; j--) backward = plus(backward, brought(j, i, FP32), FP32);
        differ += backward != summed(&a, i, FP32);
    }
    assert_true(differ > 300);
}

/* ---- Spans, shifts and sums on their way home ---------------------------------------------------- */

/* Numbers below `below` that all ranks draw alike. */
typedef struct {
    uint64_t seed, drawn;
} Draws;

static int64_t draw(Draws *d, int64_t below) {
    return (int64_t)(random_bits(d->seed, RANDOM_TEST, 0, d->drawn++) % (uint64_t)below);
}

enum { SOURCE_ROWS = 40, MOST_SPANS = 8 };

typedef struct {
    AxisName axis;
    Type type;
    uint64_t seed;
    bool blocks; /* members of even index call all_to_all: their rows lie in one block per member */
} SpansCase;

/* How `from` cuts what it has for `to`, and how much that is: none for a third of the members, and for some spans. */
static int64_t sent_spans(const SpansCase *c, int from, int to, Span *spans, int64_t *rows) {
    Draws d = {c->seed * 64 + (uint64_t)(from * 8 + to), 0};
    int64_t n = draw(&d, 3) == 0 ? 0 : draw(&d, MOST_SPANS + 1);
    *rows = 0;
    for (int64_t i = 0; i < n; i++) {
        spans[i] = (Span){draw(&d, SOURCE_ROWS), draw(&d, 2) * draw(&d, 7)};
        spans[i].count = min64(spans[i].count, SOURCE_ROWS - spans[i].first);
        *rows += spans[i].count;
    }
    return n;
}

static bool in_block(const SpansCase *c, int index) {
    return c->blocks && index % 2 == 0;
}

/* The row of member `from` that is number `i` of those for `to`. */
static int64_t source_row(const SpansCase *c, int from, int to, int64_t i) {
    Span spans[MOST_SPANS];
    int64_t rows, before = 0;
    for (int j = 0; in_block(c, from) && j < to; j++) {
        sent_spans(c, from, j, spans, &rows);
        before += rows;
    }
    if (in_block(c, from)) return before + i;
    sent_spans(c, from, to, spans, &rows);
    for (const Span *s = spans;; s++) {
        if (i < s->count) return s->first + i;
        i -= s->count;
    }
}

typedef struct {
    Tensor in, out;
    Span from[8 * MOST_SPANS], to[8 * 64];
    int64_t from_spans[8], to_spans[8], from_rows[8], to_rows[8];
    struct {
        int from; /* -1: nothing comes here */
        int64_t number;
    } origin[8 * MOST_SPANS * 7 * 2]; /* of each row of out */
} SpansTry;

/* What arrives is cut anew, and the pieces lie with gaps, those of one member in falling order. */
static int64_t place_received(SpansTry *t, int from, int64_t rows, Draws *d, Span *spans) {
    int64_t at = 0, n = 0, pieces[64];
    for (int64_t i = 0; i < rows; i += pieces[n - 1]) pieces[n++] = min64(rows - i, draw(d, 5));
    for (int64_t i = n - 1; i >= 0; i--) {
        at += draw(d, 2);
        for (int64_t k = 0; k < pieces[i]; k++)
            if (t->origin[at + k].from >= 0) {
                at += k + 1;
                k = -1;
            }
        spans[i] = (Span){at, pieces[i]};
        for (int64_t k = 0; k < pieces[i]; k++) t->origin[at + k].from = from;
        at += pieces[i];
    }
    int64_t number = 0;
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < spans[i].count; k++) t->origin[spans[i].first + k].number = number++;
    return n;
}

static void place_block(SpansTry *t, int from, int64_t first, int64_t rows) {
    for (int64_t k = 0; k < rows; k++) {
        t->origin[first + k].from = from;
        t->origin[first + k].number = k;
    }
}

static bool try_spans(Peers *p, int rank, Error *e) {
    const SpansCase *c = p->context;
    Group *g = &p->comm[rank].group[c->axis];
    const Axis *a = &g->axis;
    Stream *network = &p->device[rank]->stream[STREAM_NETWORK];
    SpansTry *t = calloc(1, sizeof *t);
    MUST(t);
    Draws d = {c->seed * 64 + 1000003 * (uint64_t)(rank + 1), 0};
    bool block = in_block(c, a->index);
    int64_t from = 0, to = 0, sent = 0, received = 0;
    for (size_t i = 0; i < COUNT(t->origin); i++) t->origin[i].from = -1;
    for (int j = 0; j < a->size; j++) {
        Span theirs[MOST_SPANS];
        t->from_spans[j] = sent_spans(c, a->index, j, &t->from[from], &t->from_rows[j]);
        sent_spans(c, j, a->index, theirs, &t->to_rows[j]);
        if (block)
            place_block(t, j, received, t->to_rows[j]);
        else
            t->to_spans[j] = place_received(t, j, t->to_rows[j], &d, &t->to[to]);
        from += t->from_spans[j];
        to += t->to_spans[j];
        sent += t->from_rows[j];
        received += t->to_rows[j];
    }
    t->in = memory_tensor(&p->memory[rank], c->type, DIM(max64(sent, SOURCE_ROWS), WIDTH));
    t->out = memory_tensor(&p->memory[rank], c->type, DIM((int64_t)COUNT(t->origin), WIDTH));
    for (int64_t i = 0; i < tensor_count(t->in); i++) tensor_put(t->in, i, brought(rank, i, c->type));
    fill_value(t->out, 77);
    if (block)
        all_to_all(g, network, t->out, t->to_rows, t->in, t->from_rows);
    else
        all_to_all_spans(g, network, t->out, (Spans){t->to, t->to_spans}, t->in, (Spans){t->from, t->from_spans});
    event_wait(event_record(network));
    bool ok = !device_failed(p->device[rank]);
    for (int64_t i = 0; ok && i < tensor_count(t->out); i++) {
        int64_t row = i / WIDTH, column = i % WIDTH;
        int source = t->origin[row].from;
        double expected = 77, got = tensor_get(t->out, i);
        if (source >= 0)
            expected = brought(member(a, source),
                               source_row(c, source, a->index, t->origin[row].number) * WIDTH + column, c->type);
        if (got != expected)
            ok = (fail)(e, EXIT_DATA, "seed %llu: row %lld from %d is %g, expected %g", (unsigned long long)c->seed,
                        (long long)row, source, got, expected);
    }
    const TrafficCount *x = &p->device[rank]->meter.traffic[c->axis][ALL_TO_ALL];
    int64_t each = WIDTH * (int64_t)type_bytes(c->type);
    if (ok && (x->calls != 1 || x->sent != (sent - t->from_rows[a->index]) * each ||
               x->received != (received - t->to_rows[a->index]) * each))
        ok = (fail)(e, EXIT_DATA, "seed %llu: %lld bytes sent, %lld received", (unsigned long long)c->seed,
                    (long long)x->sent, (long long)x->received);
    free(t);
    return ok;
}

static void rows_go_from_any_spans_to_any_spans_and_nothing_else_is_touched(void **state) {
    (void)state;
    for (int world = 1; world <= 8; world++)
        for (uint64_t seed = 0; seed < 12; seed++) {
            SpansCase c = {AXIS_WORLD, seed % 3 ? FP32 : BF16, seed, seed % 4 == 3};
            peers_run((Peers){.world = world, .late = seed % 2}, try_spans, &c);
        }
    for (uint64_t seed = 100; seed < 104; seed++) {
        SpansCase c = {AXIS_EXPERT_REPLICA, FP64, seed, seed % 2};
        peers_run((Peers){.world = 8, .late = seed % 2, .sets = {"mixture.expert=2"}}, try_spans, &c);
        peers_run((Peers){.world = 6, .late = seed % 2, .sets = {"mixture.expert=2"}}, try_spans, &c);
    }
}

/* Each member brings as many elements as its index says, and some. */
static bool try_shifts(Peers *p, int rank, Error *e) {
    AxisName name = *(const AxisName *)p->context;
    Group *g = &p->comm[rank].group[name];
    const Axis *a = &g->axis;
    Stream *network = &p->device[rank]->stream[STREAM_NETWORK];
    int last = (a->index + a->size - 1) % a->size;
    int64_t sent = 0, received = 0;
    for (int64_t n = 0; n < 300; n = 3 * n + 7) {
        Tensor in = memory_tensor(&p->memory[rank], FP32, DIM(n + a->index));
        Tensor out = memory_tensor(&p->memory[rank], FP32, DIM(n + last));
        for (int64_t i = 0; i < tensor_count(in); i++) tensor_put(in, i, brought(rank, i, FP32));
        shift(g, network, out, in);
        event_wait(event_record(network));
        for (int64_t i = 0; i < tensor_count(out); i++)
            if (tensor_get(out, i) != brought(member(a, last), i, FP32))
                return (fail)(e, EXIT_DATA, "element %lld of %lld is not the last member's", (long long)i,
                              (long long)n);
        sent += a->size > 1 ? (int64_t)tensor_bytes(in) : 0;
        received += a->size > 1 ? (int64_t)tensor_bytes(out) : 0;
    }
    const TrafficCount *x = &p->device[rank]->meter.traffic[name][SHIFT];
    return (x->sent == sent && x->received == received) ||
           (fail)(e, EXIT_DATA, "%lld bytes sent, %lld received", (long long)x->sent, (long long)x->received);
}

static void a_shift_brings_what_the_member_before_has(void **state) {
    (void)state;
    AxisName world_axis = AXIS_WORLD, ring = AXIS_RING;
    for (int late = 0; late < 2; late++) {
        for (int world = 1; world <= 8; world++)
            peers_run((Peers){.world = world, .late = late}, try_shifts, &world_axis);
        peers_run((Peers){.world = 8, .late = late, .sets = {"mixture.ulysses=2", "mixture.ring=4"}}, try_shifts,
                  &ring);
        peers_run((Peers){.world = 6, .late = late, .sets = {"mixture.ulysses=2", "mixture.ring=3"}}, try_shifts,
                  &ring);
        peers_run((Peers){.world = 4, .late = late, .sets = {"mixture.ulysses=2", "mixture.ring=2"}}, try_shifts,
                  &ring);
    }
}

typedef struct {
    AxisName axis;
    Type type;
    int64_t count;
    uint64_t seed;
} ReturnCase;

/* Where `from` sends (-1: to nobody), and where that lands there: in one of two places, so that some meet. */
static int64_t return_to(const ReturnCase *c, const Axis *a, int from, int64_t *at) {
    Draws d = {c->seed * 64 + (uint64_t)from, 0};
    *at = 3 + draw(&d, 2) * (c->count + 5);
    return draw(&d, a->size + 1) - 1;
}

static bool try_returns(Peers *p, int rank, Error *e) {
    const ReturnCase *c = p->context;
    Group *g = &p->comm[rank].group[c->axis];
    const Axis *a = &g->axis;
    Stream *network = &p->device[rank]->stream[STREAM_NETWORK];
    Memory *memory = &p->memory[rank];
    int64_t at[8], place, n = c->count, room = 2 * n + 10, comes = 0, to = return_to(c, a, a->index, &place);
    Tensor in = memory_tensor(memory, c->type, DIM(n)), out = memory_tensor(memory, c->type, DIM(room));
    Tensor expected = memory_tensor(memory, c->type, DIM(room));
    for (int64_t i = 0; i < n; i++) tensor_put(in, i, brought(rank, i, c->type));
    for (int64_t i = 0; i < room; i++) tensor_put(out, i, brought(rank + 100, i, c->type));
    for (int64_t i = 0; i < room; i++) tensor_put(expected, i, brought(rank + 100, i, c->type));
    for (int j = 0; j < a->size; j++) {
        at[j] = return_to(c, a, j, &place) == a->index ? place : -1;
        comes += at[j] >= 0 && j != a->index;
        for (int64_t i = 0; at[j] >= 0 && i < n; i++)
            tensor_put(expected, at[j] + i,
                       plus(tensor_get(expected, at[j] + i), brought(member(a, j), i, c->type), c->type));
    }
    return_sums(g, network, out, at, in, to);
    event_wait(event_record(network));
    if (memcmp(out.data, expected.data, tensor_bytes(out)) != 0)
        return (fail)(e, EXIT_DATA, "seed %llu, %lld elements: not the sum in member order",
                      (unsigned long long)c->seed, (long long)n);
    const TrafficCount *x = &p->device[rank]->meter.traffic[c->axis][RETURN_SUMS];
    int64_t bytes = (int64_t)tensor_bytes(in);
    return (x->calls == 1 && x->sent == (to >= 0 && to != a->index ? bytes : 0) && x->received == comes * bytes) ||
           (fail)(e, EXIT_DATA, "%lld bytes sent, %lld received", (long long)x->sent, (long long)x->received);
}

static void sums_come_home_in_member_order_to_the_bit(void **state) {
    (void)state;
    static const int64_t sizes[] = {0, 1, 33, 4999};
    for (int world = 1; world <= 8; world++)
        for (uint64_t seed = 0; seed < 8; seed++) {
            ReturnCase c = {AXIS_WORLD, seed % 3 ? FP32 : FP64, sizes[seed % 4], seed};
            peers_run((Peers){.world = world, .late = seed % 2}, try_returns, &c);
        }
    for (uint64_t seed = 20; seed < 24; seed++) {
        ReturnCase c = {AXIS_EXPERT_REPLICA, seed % 2 ? FP32 : FP64, BEYOND_A_ROUND, seed};
        peers_run((Peers){.world = 8, .sets = {"mixture.expert=2"}}, try_returns, &c);
        peers_run((Peers){.world = 6, .sets = {"mixture.expert=2"}}, try_returns, &c);
        c.axis = AXIS_WORLD;
        peers_run((Peers){.world = 3}, try_returns, &c);
        peers_run((Peers){.world = 2}, try_returns, &c);
    }
}

/* ---- Barriers --------------------------------------------------------------------------------- */

static bool pass_barriers(Peers *p, int rank, Error *e) {
    atomic_int *came = p->context;
    Stream *network = &p->device[rank]->stream[STREAM_NETWORK];
    for (int i = 0; i < 20; i++) {
        atomic_fetch_add(&came[i], 1);
        barrier(&p->comm[rank].group[AXIS_WORLD], network);
        event_wait(event_record(network));
        if (atomic_load(&came[i]) != p->world)
            return (fail)(e, EXIT_DATA, "passed barrier %d, to which %d ranks had come", i, came[i]);
    }
    return true;
}

static void nobody_passes_a_barrier_before_all_have_come(void **state) {
    (void)state;
    atomic_int came[2][20] = {0};
    peers_run((Peers){.world = 5}, pass_barriers, came[0]);
    peers_run((Peers){.world = 5, .late = true}, pass_barriers, came[1]);
}

/* ---- Host messages ---------------------------------------------------------------------------- */

static bool agree_on(Peers *p, int rank, Error *e) {
    const char *const *complaints = p->context;
    Error mine = {0};
    if (complaints[rank]) (fail)(&mine, EXIT_IO, "%s", complaints[rank]);
    const char *first = NULL;
    for (int r = p->world - 1; r >= 0; r--)
        if (complaints[r]) first = complaints[r];
    bool agreed = host_agree(&p->comm[rank], !complaints[rank], &mine);
    if (agreed != !first) return (fail)(e, EXIT_DATA, "agreed: %d", agreed);
    if (first && (mine.code != EXIT_IO || strcmp(mine.text, first) != 0))
        return (fail)(e, EXIT_DATA, "was told \"%s\"", mine.text);
    return true;
}

static void ranks_agree_only_when_all_do_and_else_all_learn_the_first_reason(void **state) {
    (void)state;
    static const char *const nobody[4] = {NULL}, *const one[4] = {NULL, NULL, "disk full", NULL};
    static const char *const several[4] = {NULL, "no such file", "disk full", "read-only"}, *const first[4] = {
                                                                                                "quota", NULL, NULL,
                                                                                                NULL};
    const char *const *rows[] = {nobody, one, several, first};
    for (size_t i = 0; i < COUNT(rows); i++) peers_run((Peers){.world = 4}, agree_on, (void *)(uintptr_t)rows[i]);
}

static bool gather_on_host(Peers *p, int rank, Error *e) {
    int64_t mine[2] = {rank, rank * rank}, all[8][2];
    if (!host_gather(&p->comm[rank], all, mine, sizeof mine, e)) return false;
    for (int r = 0; r < p->world; r++)
        if (all[r][0] != r || all[r][1] != r * r) return (fail)(e, EXIT_DATA, "rank %d's message is wrong", r);
    return true;
}

static void host_messages_arrive_in_rank_order(void **state) {
    (void)state;
    for (int world = 1; world <= 8; world++) peers_run((Peers){.world = world}, gather_on_host, NULL);
}

/* ---- Failures --------------------------------------------------------------------------------- */

enum { FAILING = 2, ABSENT = 3 };

static void nap(double seconds) {
    struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&t, NULL);
}

/* Collectives of groups with and without the failing rank, until one fails. */
static bool talk_for_ever(Peers *p, int rank, Error *e) {
    Tensor t = memory_tensor(&p->memory[rank], FP32, DIM(1000));
    fill_value(t, 0);
    Stream *network = &p->device[rank]->stream[STREAM_NETWORK];
    for (int i = 0; !device_failed(p->device[rank]); i++) {
        if (rank == FAILING && i == 20) return (fail)(e, EXIT_IO, "disk full; step 20; free some space");
        all_reduce(&p->comm[rank].group[AXIS_EXPERT], network, t);
        all_reduce(&p->comm[rank].group[AXIS_WORLD], network, t);
        event_wait(event_record(network));
    }
    return (fail)(e, device_failed(p->device[rank])->code, "%s", device_failed(p->device[rank])->text);
}

static void when_a_rank_fails_all_others_return_within_5_seconds_with_its_reason(void **state) {
    (void)state;
    for (int late = 0; late < 2; late++) {
        Peers p = {.world = 6, .late = late, .sets = {"mixture.expert=2"}};
        double start = seconds_now();
        peers_try(&p, talk_for_ever, NULL);
        assert_true(seconds_now() - start < 5);
        for (int r = 0; r < p.world; r++) {
            assert_int_equal(p.error[r].code, r == FAILING ? EXIT_IO : EXIT_PEER);
            assert_string_equal(p.error[r].text, "disk full; step 20; free some space");
        }
    }
}

enum { CUT_MEMBERS = 4 };

typedef struct {
    double delay; /* before rank CUT_MEMBERS poisons the wire; 0: it never does, and members nap until one times out */
    int64_t exchanges[CUT_MEMBERS];
} Cutting;

/* The first group exchanges until the first rank of the other one poisons the wire, or until one has waited too long.
 * */
static bool exchange_until_cut(Peers *p, int rank, Error *e) {
    Cutting *cut = p->context;
    if (rank > CUT_MEMBERS || (rank == CUT_MEMBERS && cut->delay == 0)) return true;
    if (rank == CUT_MEMBERS) {
        nap(cut->delay);
        return (fail)(e, EXIT_IO, "cut");
    }
    const Axis *a = &p->comm[rank].group[AXIS_EXPERT].axis;
    Draws d = {(uint64_t)rank, 0};
    for (;; cut->exchanges[rank]++) {
        int64_t mine = cut->exchanges[rank], got[CUT_MEMBERS];
        Parcel parcels[CUT_MEMBERS];
        for (int j = 0; j < CUT_MEMBERS; j++)
            parcels[j] =
                (Parcel){.send = &mine, .receive = &got[j], .send_bytes = sizeof mine, .receive_bytes = sizeof mine};
        if (cut->delay == 0) nap(1e-6 * (double)draw(&d, 1200));
        if (!p->wire[rank]->exchange(p->wire[rank], a, parcels, e)) return false;
        for (int j = 0; j < CUT_MEMBERS; j++)
            if (got[j] != mine) return (fail)(e, EXIT_DATA, "got %lld from %d", (long long)got[j], j);
    }
}

static void assert_all_or_none(Peers p, Cutting cut) {
    peers_try(&p, exchange_until_cut, &cut);
    for (int rank = 0; rank < CUT_MEMBERS; rank++) {
        assert_int_equal(p.error[rank].code, EXIT_PEER);
        assert_string_equal(p.error[rank].text, p.error[0].text);
        assert_int_equal(cut.exchanges[rank], cut.exchanges[0]);
    }
}

/* Whoever gives up takes his arrival back; were he to do so after the last has come, some would exchange and some
 * not. */
static void an_exchange_happens_for_all_its_members_or_for_none(void **state) {
    (void)state;
    for (int i = 0; i < 100; i++)
        assert_all_or_none((Peers){.world = 8, .late = i % 2, .sets = {"mixture.expert=4"}},
                           (Cutting){.delay = 2e-5 * (i + 1)});
    for (int i = 0; i < 30; i++) /* timeouts of about as long as the others nap */
        assert_all_or_none((Peers){.world = 8, .timeout = 9e-4 + 1e-5 * i, .sets = {"mixture.expert=4"}}, (Cutting){0});
}

static bool come_but_for_one(Peers *p, int rank, Error *e) {
    if (rank == ABSENT) {
        nap(0.8);
        return true;
    }
    int64_t mine = rank, all[8];
    return host_gather(&p->comm[rank], all, &mine, sizeof mine, e);
}

static void a_rank_that_never_comes_is_a_timeout_that_says_so(void **state) {
    (void)state;
    Peers p = {.world = 4, .timeout = 0.4};
    double start = seconds_now();
    peers_try(&p, come_but_for_one, NULL);
    assert_true(seconds_now() - start < 5);
    assert_int_equal(p.error[ABSENT].code, EXIT_DONE);
    for (int r = 0; r < p.world; r++) {
        if (r == ABSENT) continue;
        assert_int_equal(p.error[r].code, EXIT_PEER);
        assert_non_null(strstr(p.error[r].text, "rank 3 had come to no collective yet after rank "));
        assert_non_null(strstr(p.error[r].text, "collective 1 (host_message over world {0 1 2 3}, step 0"));
        assert_non_null(strstr(p.error[r].text, "comm.timeout"));
    }
}

/* What the Error says of these numbers of 4 ranks (-1: no answer); rank 0 has noticed. */
static Error named(const int64_t *numbers) {
    Tail tails[4] = {0};
    Error e = {0};
    for (int r = 0; r < 4; r++) {
        CallLog *l = calls_open();
        for (int64_t n = 0; n < numbers[r]; n++) {
            calls_queue(l, (Call){.axis = {AXIS_RING, 2, r / 2, r % 2, 2},
                                  .collective = n % 2 ? HOST_MESSAGE : ALL_REDUCE,
                                  .step = n / 10,
                                  .layer = n % 10 - 1});
            calls_begin(l);
            if (n + 1 < numbers[r]) calls_end(l);
        }
        if (numbers[r] >= 0) tails[r] = calls_tail(l);
        calls_close(l);
    }
    assert_false(calls_fail(&e, tails, 4, 0, 30));
    return e;
}

static void a_lost_rank_is_named_by_its_number_or_its_silence(void **state) {
    (void)state;
    static const struct {
        int64_t numbers[4];
        const char *said;
    } rows[] = {
        {{603, 602, 603, 603}, "rank 1 is behind: at collective 602 (host_message over ring {1 3}, step 60, layer 0)"},
        {{602, 601, 603, 601}, "ranks 1, 3 are behind: at collective 601 (all_reduce over ring {1 3}, step 60)"},
        {{602, 601, -1, 602}, "rank 2 did not answer after rank 0 had waited 30 s in collective 602 (host_message"},
        {{9, -1, -1, -1}, "ranks 1, 2, 3 did not answer"},
        {{1, 0, 1, 1}, "rank 1 had come to no collective yet after rank 0 had waited 30 s in collective 1 (all_reduce"},
        {{7, 7, 7, 7},
         "nothing moved for 30 s although all ranks have come to collective 7 (all_reduce over ring {0 2}"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        Error e = named(rows[i].numbers);
        assert_int_equal(e.code, EXIT_PEER);
        if (strncmp(e.text, rows[i].said, strlen(rows[i].said)) != 0)
            fail_msg("\"%s\" does not begin with \"%s\"", e.text, rows[i].said);
    }
}

static void a_tail_shows_the_call_at_hand_and_those_around_it(void **state) {
    (void)state;
    CallLog *l = calls_open();
    for (int n = 1; n <= 1300; n++) {
        calls_queue(l, (Call){.step = n});
        if (n <= 1000) calls_begin(l);
        if (n <= 999) calls_end(l);
    }
    Tail t = calls_tail(l);
    assert_true(t.known && t.queued == 1300 && t.begun == 1000 && t.done == 999);
    assert_true(t.count == CALLS_TOLD && t.first + t.count == 1003);
    for (uint64_t i = 0; i < t.count; i++) assert_true((uint64_t)t.call[i].step == t.first + i);
    calls_close(l);
}

enum { THINGS = 4 };

/* Hashes of every rank [8][THINGS]. */
static bool greet(Peers *p, int rank, Error *e) {
    static const Meter nothing;
    const uint64_t(*hash)[THINGS] = p->context;
    static const char *const names[THINGS][2] = {
        {"the version differs", "install one"},
        {"the settings differ", "give the same"},
        {"the model differs", "copy it"},
        {"the data differs", "copy them"},
    };
    Shared things[THINGS];
    for (int i = 0; i < THINGS; i++) things[i] = (Shared){names[i][0], names[i][1], hash[rank][i]};
    bool ok = comm_greet(&p->comm[rank], things, THINGS, e);
    if (memcmp(&p->device[rank]->meter, &nothing, sizeof nothing) != 0)
        return (fail)(e, EXIT_DATA, "a greeting is metered");
    return ok;
}

/* Rank `rank` has another hash of `thing`. */
typedef struct {
    int rank, thing;
} Odd;

static void what_differs_is_said_with_its_ranks_in_the_same_words_everywhere(void **state) {
    (void)state;
    static const struct {
        int world;
        Odd odd[8];
        int count;
        const char *said;
    } rows[] = {
        {8, {{5, 1}}, 1, "the settings differ on rank 5: give the same"},
        {8, {{0, 3}}, 1, "the data differs on rank 0: copy them"}, /* most ranks are right */
        {2, {{0, 3}}, 1, "the data differs on rank 1: copy them"}, /* none are most: rank 0 is */
        {8, {{1, 2}, {3, 2}, {4, 2}}, 3, "the model differs on ranks 1, 3-4: copy it"},
        {8, {{7, 2}, {2, 3}}, 2, "the model differs on rank 7: copy it; the data differs on rank 2: copy them"},
        {8, {{6, 0}, {6, 1}, {2, 3}}, 3, "the version differs on rank 6: install one"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        uint64_t hash[8][THINGS] = {0};
        Peers p = {.world = rows[i].world};
        for (int r = 0; r < 8; r++)
            for (int t = 0; t < THINGS; t++) hash[r][t] = UINT64_C(1) << (50 + t);
        peers_run(p, greet, hash);
        for (int j = 0; j < rows[i].count; j++) hash[rows[i].odd[j].rank][rows[i].odd[j].thing] += 1 + (uint64_t)j;
        if (launched_wire()) continue; /* a refused rank would end the others' process */
        peers_try(&p, greet, hash);
        for (int r = 0; r < p.world; r++) {
            assert_int_equal(p.error[r].code, EXIT_USAGE);
            assert_string_equal(p.error[r].text, rows[i].said);
        }
    }
}

/* ---- Runs that are not the same ---------------------------------------------------------------- */

/* Two ranks in one process, each opened with what it has. */
typedef struct {
    Common common[2];
    Wire *wire[2];
    Price price[2];
    Error error[2];
} Pair;

static void open_one(void *context, int rank) {
    Pair *p = context;
    Run *r = run_open(&p->common[rank], p->wire[rank], "cpu", &p->price[rank], &p->error[rank]);
    if (!r) p->wire[rank]->poison(p->wire[rank], &p->error[rank]);
    run_close(r);
}

static void assert_refused(Common a, Common b, const char *said) {
    Pair p = {.common = {a, b}};
    Error e = {0};
    assert_true(plan_price(a.config, a.spec, 2, p.price, &e) && wire_threads_open(p.wire, 2, 60, false, &e));
    assert_true(threads_run(2, open_one, &p, &e));
    for (int r = 0; r < 2; r++) {
        assert_int_equal(p.error[r].code, said ? EXIT_USAGE : EXIT_DONE);
        assert_string_equal(p.error[r].text, said ? said : "");
        p.wire[r]->close(p.wire[r]);
    }
}

static void ranks_of_another_model_text_tokenizer_or_command_do_not_begin(void **state) {
    (void)state;
    char *documents = random_documents(20, 30, 67, 1), *others = random_documents(20, 30, 67, 2);
    RanksSetup setup = {.world = 2,
                        .spec = "tests/fixtures/olmoe/config.json",
                        .documents = documents,
                        .sets = {"train.sequence_length=16", "train.sequences=2"}};
    Ranks *one = ranks_open(setup);
    setup.documents = others;
    Ranks *other = ranks_open(setup);
    Error e = {0};
    Tokenizer *bytes = tokenizer_open(NULL, &e);
    assert_non_null(bytes);
    Spec turned = one->spec;
    turned.rope_theta *= 5;
    Common a = {&one->config, &one->spec, bytes, one->tokens, 1}, b = a;
    assert_refused(a, b, NULL);
    b.spec = &turned;
    assert_refused(a, b, "the model's description differs on rank 1: give every host the same config.json");
    b = a;
    b.tokens = other->tokens;
    assert_refused(a, b, "the data differs on rank 1: give every host the same files at data.path");
    b = a;
    b.tokenizer = NULL;
    assert_refused(a, b, "the tokenizer differs on rank 1: give every host the same tokenizer.json");
    b = a;
    b.request = 2;
    assert_refused(a, b, "the command or its arguments differ on rank 1: give every rank the same command line");
    tokenizer_close(bytes);
    ranks_close(other);
    ranks_close(one);
    free(others);
    free(documents);
}

static bool train_until_one_fails(Run *r, void *context, Error *e) {
    StepResult out;
    (void)context;
    for (int64_t step = 0;; step++) {
        if (step == 3 && r->comm.mesh.rank == FAILING) return (fail)(e, EXIT_IO, "the disk of rank 2 is full");
        if (!train_step(r, step, false, &out, e)) return false;
    }
}

static void a_rank_that_fails_between_steps_ends_the_training_of_all(void **state) {
    (void)state;
    char *documents = random_documents(20, 30, 67, 1);
    static const char *const devices[] = {"device=cpu", "device=cpu:late"};
    for (size_t i = 0; i < COUNT(devices); i++) {
        Ranks *r = ranks_open((RanksSetup){.world = 4,
                                           .spec = "tests/fixtures/olmoe/config.json",
                                           .documents = documents,
                                           .sets = {devices[i], "mixture.dense=2", "mixture.expert=4",
                                                    "train.sequences=4", "train.sequence_length=16"}});
        double start = seconds_now();
        assert_false(ranks_try(r, train_until_one_fails, NULL));
        assert_true(seconds_now() - start < 5);
        for (int rank = 0; rank < r->world; rank++) {
            assert_int_equal(r->error[rank].code, rank == FAILING ? EXIT_IO : EXIT_PEER);
            assert_string_equal(r->error[rank].text, "the disk of rank 2 is full");
        }
        ranks_close(r);
    }
    free(documents);
}

int main(void) {
    const struct CMUnitTest launched[] = {
        cmocka_unit_test(collectives_equal_their_definitions_in_groups_of_1_to_8),
        cmocka_unit_test(collectives_equal_their_definitions_in_strided_groups),
        cmocka_unit_test(collectives_larger_than_a_round_of_staging_equal_their_definitions),
        cmocka_unit_test(rows_go_from_any_spans_to_any_spans_and_nothing_else_is_touched),
        cmocka_unit_test(a_shift_brings_what_the_member_before_has),
        cmocka_unit_test(sums_come_home_in_member_order_to_the_bit),
        cmocka_unit_test(host_messages_arrive_in_rank_order),
    };
    const struct CMUnitTest threads[] = {
        cmocka_unit_test(groups_partition_the_ranks_for_every_mixture_of_up_to_12),
        cmocka_unit_test(the_printed_mesh_is_this_text),
        cmocka_unit_test(sizes_that_do_not_divide_the_ranks_are_refused_in_a_sentence),
        cmocka_unit_test(late_wires_and_mixed_groups_give_the_same_bits),
        cmocka_unit_test(nobody_passes_a_barrier_before_all_have_come),
        cmocka_unit_test(the_order_of_the_members_shows_in_these_sums),
        cmocka_unit_test(ranks_agree_only_when_all_do_and_else_all_learn_the_first_reason),
        cmocka_unit_test(when_a_rank_fails_all_others_return_within_5_seconds_with_its_reason),
        cmocka_unit_test(an_exchange_happens_for_all_its_members_or_for_none),
        cmocka_unit_test(a_rank_that_never_comes_is_a_timeout_that_says_so),
        cmocka_unit_test(a_lost_rank_is_named_by_its_number_or_its_silence),
        cmocka_unit_test(a_tail_shows_the_call_at_hand_and_those_around_it),
        cmocka_unit_test(what_differs_is_said_with_its_ranks_in_the_same_words_everywhere),
        cmocka_unit_test(ranks_of_another_model_text_tokenizer_or_command_do_not_begin),
        cmocka_unit_test(a_rank_that_fails_between_steps_ends_the_training_of_all),
    };
    int failed = cmocka_run_group_tests_name("collectives", launched, NULL, NULL);
    if (!launched_wire()) return failed + cmocka_run_group_tests_name("ranks", threads, NULL, NULL);
    launched_wire()->close(launched_wire());
    return failed;
}
