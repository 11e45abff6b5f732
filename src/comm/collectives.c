/* Collectives, all made of one primitive: every member hands over a parcel per member. A front door charges the bytes
 * that this rank sends to and receives from others, and queues the exchange; sums are made here, in member order,
 * from a bounded staging area. On sim the members' clocks meet instead.
 *
 *   bytes sent by a rank (n = bytes of the part named)           G = members
 *   all_gather      (G-1) n        of its input n
 *   reduce_scatter  (G-1) n        of its output n
 *   all_reduce      2 (G-1) n / G  of t, or (G-1) n when t is small (one exchange instead of two)
 *   all_to_all      the rows for others
 *   shift           in, when G > 1
 *   return_sums     in, when it goes to another
 */
#include "comm/calls.h"
#include "ops/kernels.h"

#include <stdlib.h>
#include <string.h>

enum { SMALL_BYTES = 16 << 10 }; /* all_reduce of at most this: everybody gets everything and sums it */

const char *collective_name(Collective c) {
    static const char *const names[COLLECTIVE_COUNT] = {
        [ALL_GATHER] = "all_gather", [REDUCE_SCATTER] = "reduce_scatter", [ALL_REDUCE] = "all_reduce",
        [ALL_TO_ALL] = "all_to_all", [BROADCAST] = "broadcast",           [BARRIER] = "barrier",
        [SHIFT] = "shift",           [RETURN_SUMS] = "return_sums",
    };
    MUST(c >= 0 && c < COLLECTIVE_COUNT);
    return names[c];
}

bool comm_open(Comm *c, const Mesh *m, Wire *w, Device *d, Error *e) {
    *c = (Comm){.mesh = *m, .wire = w, .device = d};
    int largest = 1;
    for (int a = 0; a < AXIS_COUNT; a++) largest = (int)max64(largest, m->axis[a].size);
    size_t staging = (size_t)largest * COMM_ROUND_BYTES;
    if (!arena_open(&c->arena, d, "staging", TIER_DEVICE, staging, e)) return false;
    Tensor t = arena_tensor(&c->arena, BYTE, DIM((int64_t)staging));
    stream_wait(&d->stream[STREAM_NETWORK], event_record(&d->stream[STREAM_COMPUTE])); /* memory begins as compute's */
    for (int a = 0; a < AXIS_COUNT; a++) {
        Parcel *parcels = d->sim ? NULL : calloc((size_t)m->axis[a].size, sizeof *parcels);
        c->group[a] = (Group){.axis = m->axis[a], .wire = w, .device = d, .staging = t, .parcels = parcels};
        if (!parcels && !d->sim)
            return fail(e, EXIT_MEMORY, "no memory for what %d ranks exchange; use fewer ranks, or free some memory",
                        m->axis[a].size);
    }
    return true;
}

void comm_close(Comm *c) {
    for (int a = 0; a < AXIS_COUNT; a++) free(c->group[a].parcels);
    arena_close(&c->arena);
}

/* ---- Charging and queueing -------------------------------------------------------------------- */

typedef struct CollectiveArgs CollectiveArgs;
struct CollectiveArgs {
    void (*run)(Stream *s, const CollectiveArgs *a);
    Group *group;
    Tensor out, in;
    const int64_t *out_rows, *in_rows;
    Spans to, from;
    const int64_t *at;
    int64_t member; /* broadcast: the root; return_sums: where to, or -1 */
};
_Static_assert(sizeof(CollectiveArgs) <= LAUNCH_BYTES, "arguments travel by value through the queue of a stream");
_Static_assert((int)COLLECTIVE_COUNT <= (int)MAX_COLLECTIVES, "the meter has a row for every collective");

/* Sim: the members' clocks meet, and the larger of both directions takes its time. Returns it. */
static double predict(Group *g, Stream *s, int64_t bytes) {
    if (g->axis.size == 1) return 0;
    double start = g->wire->meet(g->wire, &g->axis, s->clock);
    int last = g->axis.first + (g->axis.size - 1) * g->axis.stride;
    const Link *link = machine_link(&g->device->machine, g->device->threads, g->axis.first, last);
    double seconds = link->latency_s + (double)bytes / link->bytes_per_s;
    s->clock = start + seconds;
    return seconds;
}

static void run_collective(Stream *s, const void *args) {
    const CollectiveArgs *a = args;
    calls_begin(a->group->wire->calls);
    a->run(s, a);
    if (!device_failed(s->device)) calls_end(a->group->wire->calls);
}

/* The way of every collective: counts its traffic, writes it down, and runs, queues or predicts it. */
static void issue(Stream *s, Collective c, int64_t sent, int64_t received, CollectiveArgs a) {
    Group *g = a.group;
    Device *d = g->device;
    TrafficCount *t = &d->meter.traffic[g->axis.name][c];
    t->calls++;
    t->sent += sent;
    t->received += received;
    calls_queue(g->wire->calls,
                (Call){.axis = g->axis, .collective = c, .bytes = sent, .step = d->step, .layer = d->layer});
    Label l = stream_label(s, WORK_COLLECTIVE, (int)c);
    l.group = (int)g->axis.name;
    l.sent = sent;
    l.received = received;
    if (!d->sim) {
        s->charged = l;
        stream_launch(s, run_collective, &a, sizeof a);
        return;
    }
    double start = s->clock;
    calls_begin(g->wire->calls);
    t->seconds += predict(g, s, max64(sent, received));
    calls_end(g->wire->calls);
    stream_spend(s, &l, start, s->clock);
}

/* Sums that are made on the way, by the collective itself, whose launch follows: on sim they take their time before
 * it. */
static void charge_adding(Stream *s, int op, int64_t additions, int64_t elements, Type type) {
    (void)charge(s, (Cost){.op = op,
                           .flops = type == INT64 ? 0 : (double)additions,
                           .bytes = elements * (int64_t)type_bytes(type)});
}

/* The sum of a reduction: a row of `count` elements from every rank. */
static void charge_sum(Group *g, Stream *s, int64_t count, Type type) {
    charge_adding(s, OP_SUM_ROWS, count * (g->axis.size - 1), count * (g->axis.size + 1), type);
}

static void exchange(Stream *s, Group *g) {
    Error e = {0};
    if (!g->wire->exchange(g->wire, &g->axis, g->parcels, &e)) device_fail(s->device, &e);
}

static Parcel parcel(const void *send, void *receive, size_t send_bytes, size_t receive_bytes) {
    return (Parcel){.send = send, .receive = receive, .send_bytes = send_bytes, .receive_bytes = receive_bytes};
}

static Tensor flat(Tensor t) {
    return tensor_view(t, DIM(tensor_count(t)));
}

/* Elements [first, first + count) of a flat tensor. */
static Tensor slice(Tensor t, int64_t first, int64_t count) {
    return tensor_rows(flat(t), first, count);
}

/* ---- all_gather, broadcast, barrier, all_to_all ------------------------------------------------ */

static void run_all_gather(Stream *s, const CollectiveArgs *a) {
    size_t bytes = tensor_bytes(a->in);
    for (int j = 0; j < a->group->axis.size; j++)
        a->group->parcels[j] = parcel(a->in.data, (char *)a->out.data + (size_t)j * bytes, bytes, bytes);
    exchange(s, a->group);
}

void all_gather(Group *g, Stream *s, Tensor out, Tensor in) {
    MUST(out.type == in.type && tensor_count(out) == g->axis.size * tensor_count(in));
    int64_t bytes = (g->axis.size - 1) * (int64_t)tensor_bytes(in);
    CollectiveArgs a = {.run = run_all_gather, .group = g, .out = out, .in = in};
    issue(s, ALL_GATHER, bytes, bytes, a);
}

static void run_broadcast(Stream *s, const CollectiveArgs *a) {
    Group *g = a->group;
    size_t bytes = tensor_bytes(a->in);
    bool root = g->axis.index == a->member;
    for (int j = 0; j < g->axis.size; j++)
        g->parcels[j] = parcel(a->in.data, a->in.data, root ? bytes : 0, j == a->member ? bytes : 0);
    exchange(s, g);
}

void broadcast(Group *g, Stream *s, Tensor t, int root) {
    int64_t bytes = (int64_t)tensor_bytes(t);
    bool sends = g->axis.index == root;
    CollectiveArgs a = {.run = run_broadcast, .group = g, .in = t, .member = root};
    issue(s, BROADCAST, sends ? (g->axis.size - 1) * bytes : 0, sends ? 0 : bytes, a);
}

static void run_barrier(Stream *s, const CollectiveArgs *a) {
    Group *g = a->group;
    char *in = g->staging.data;
    static const char token = 1;
    for (int j = 0; j < g->axis.size; j++) g->parcels[j] = parcel(&token, in + j, 1, 1);
    exchange(s, g);
}

void barrier(Group *g, Stream *s) {
    CollectiveArgs a = {.run = run_barrier, .group = g};
    issue(s, BARRIER, g->axis.size - 1, g->axis.size - 1, a);
}

static int64_t row_bytes(Tensor t) {
    return (t.dims > 1 ? t.dim[1] : 1) * (int64_t)type_bytes(t.type);
}

static void run_all_to_all(Stream *s, const CollectiveArgs *a) {
    Group *g = a->group;
    size_t row = (size_t)row_bytes(a->in);
    char *in = a->in.data, *out = a->out.data;
    for (int j = 0; j < g->axis.size; j++) {
        size_t sent = (size_t)a->in_rows[j] * row, received = (size_t)a->out_rows[j] * row;
        g->parcels[j] = parcel(in, out, sent, received);
        in += sent;
        out += received;
    }
    exchange(s, g);
}

void all_to_all(Group *g, Stream *s, Tensor out, const int64_t *out_rows, Tensor in, const int64_t *in_rows) {
    int64_t row = row_bytes(in), sent = 0, received = 0;
    MUST(out.type == in.type && row_bytes(out) == row);
    for (int j = 0; j < g->axis.size; j++) {
        sent += in_rows[j];
        received += out_rows[j];
    }
    MUST(sent <= in.dim[0] && received <= out.dim[0]);
    int own = g->axis.index;
    CollectiveArgs a = {
        .run = run_all_to_all, .group = g, .out = out, .in = in, .out_rows = out_rows, .in_rows = in_rows};
    issue(s, ALL_TO_ALL, (sent - in_rows[own]) * row, (received - out_rows[own]) * row, a);
}

/* Rows of one member, whose spans begin at `span`. */
static int64_t rows_of(const Span *span, int64_t spans) {
    int64_t rows = 0;
    for (int64_t i = 0; i < spans; i++) rows += span[i].count;
    return rows;
}

static void run_all_to_all_spans(Stream *s, const CollectiveArgs *a) {
    Group *g = a->group;
    const Span *from = a->from.span, *to = a->to.span;
    size_t row = (size_t)row_bytes(a->in);
    for (int j = 0; j < g->axis.size; j++) {
        g->parcels[j] = (Parcel){.send = a->in.data,
                                 .receive = a->out.data,
                                 .send_bytes = (size_t)rows_of(from, a->from.spans[j]) * row,
                                 .receive_bytes = (size_t)rows_of(to, a->to.spans[j]) * row,
                                 .send_spans = from,
                                 .receive_spans = to,
                                 .row_bytes = row};
        from += a->from.spans[j];
        to += a->to.spans[j];
    }
    exchange(s, g);
}

/* The rows of all members but the own; every span must lie in the tensor. */
static int64_t rows_of_others(const Group *g, Spans s, Tensor t) {
    const Span *span = s.span;
    int64_t rows = 0;
    for (int j = 0; j < g->axis.size; j++) {
        for (int64_t i = 0; i < s.spans[j]; i++)
            MUST(span[i].first >= 0 && span[i].count >= 0 && span[i].first + span[i].count <= t.dim[0]);
        if (j != g->axis.index) rows += rows_of(span, s.spans[j]);
        span += s.spans[j];
    }
    return rows;
}

void all_to_all_spans(Group *g, Stream *s, Tensor out, Spans to, Tensor in, Spans from) {
    int64_t row = row_bytes(in);
    MUST(out.type == in.type && row_bytes(out) == row);
    int64_t sent = rows_of_others(g, from, in), received = rows_of_others(g, to, out);
    CollectiveArgs a = {.run = run_all_to_all_spans, .group = g, .out = out, .in = in, .to = to, .from = from};
    issue(s, ALL_TO_ALL, sent * row, received * row, a);
}

/* ---- shift ------------------------------------------------------------------------------------ */

static void run_shift(Stream *s, const CollectiveArgs *a) {
    Group *g = a->group;
    int size = g->axis.size, next = (g->axis.index + 1) % size, last = (g->axis.index + size - 1) % size;
    for (int j = 0; j < size; j++)
        g->parcels[j] =
            parcel(a->in.data, a->out.data, j == next ? tensor_bytes(a->in) : 0, j == last ? tensor_bytes(a->out) : 0);
    exchange(s, g);
}

void shift(Group *g, Stream *s, Tensor out, Tensor in) {
    bool moves = g->axis.size > 1;
    MUST(out.type == in.type && (moves || tensor_count(out) == tensor_count(in)));
    CollectiveArgs a = {.run = run_shift, .group = g, .out = out, .in = in};
    issue(s, SHIFT, moves ? (int64_t)tensor_bytes(in) : 0, moves ? (int64_t)tensor_bytes(out) : 0, a);
}

/* ---- Reductions ------------------------------------------------------------------------------- */

static void run_kernel(Stream *s, int op, AddArgs a) {
    int column = a.y.type == FP64;
    LaunchFunction kernel = a.y.type == INT64 ? NULL : s->device->kernels->run[column][op];
    if (!kernel) kernel = kernels_plain.run[column][op];
    kernel(s, &a);
}

static void sum_staged(Stream *s, Tensor out, Tensor staged) {
    run_kernel(s, OP_SUM_ROWS, (AddArgs){.y = out, .a = staged});
}

/* out[c] = sum over members of in[index * c ...]: member j's part is [j c, min(n, (j+1) c)) of in [n]. In rounds, so
 * that staging is bounded. */
static void reduce_parts(Stream *s, Group *g, Tensor out, Tensor in, int64_t c) {
    int64_t n = tensor_count(in), element = (int64_t)type_bytes(in.type), round = COMM_ROUND_BYTES / element;
    int64_t first = g->axis.index * c, mine = max64(0, min64(c, n - first));
    for (int64_t at = 0; at < c; at += round) {
        int64_t got = max64(0, min64(round, mine - at));
        for (int j = 0; j < g->axis.size; j++) {
            int64_t theirs = max64(0, min64(round, min64(c, n - j * c) - at));
            g->parcels[j] =
                parcel((char *)in.data + (j * c + at) * element, (char *)g->staging.data + j * got * element,
                       (size_t)(theirs * element), (size_t)(got * element));
        }
        exchange(s, g);
        if (device_failed(s->device) || got == 0) continue;
        sum_staged(s, slice(out, at, got), tensor_at(g->staging.data, in.type, DIM(g->axis.size, got)));
    }
}

static void run_reduce_scatter(Stream *s, const CollectiveArgs *a) {
    reduce_parts(s, a->group, a->out, a->in, tensor_count(a->out));
}

void reduce_scatter(Group *g, Stream *s, Tensor out, Tensor in) {
    MUST(out.type == in.type && tensor_count(in) == g->axis.size * tensor_count(out));
    int64_t bytes = (g->axis.size - 1) * (int64_t)tensor_bytes(out);
    charge_sum(g, s, tensor_count(out), out.type);
    CollectiveArgs a = {.run = run_reduce_scatter, .group = g, .out = out, .in = in};
    issue(s, REDUCE_SCATTER, bytes, bytes, a);
}

static void run_all_reduce_small(Stream *s, const CollectiveArgs *a) {
    Group *g = a->group;
    size_t bytes = tensor_bytes(a->in);
    for (int j = 0; j < g->axis.size; j++)
        g->parcels[j] = parcel(a->in.data, (char *)g->staging.data + (size_t)j * bytes, bytes, bytes);
    exchange(s, g);
    if (device_failed(s->device)) return;
    sum_staged(s, flat(a->in), tensor_at(g->staging.data, a->in.type, DIM(g->axis.size, tensor_count(a->in))));
}

/* Everybody sums his part, then everybody gets all parts. */
static void run_all_reduce(Stream *s, const CollectiveArgs *a) {
    Group *g = a->group;
    int64_t n = tensor_count(a->in), element = (int64_t)type_bytes(a->in.type), c = ceil_div(n, g->axis.size);
    int64_t first = min64(n, g->axis.index * c), mine = min64(c, n - first);
    char *data = a->in.data;
    reduce_parts(s, g, slice(a->in, first, mine), flat(a->in), c);
    for (int j = 0; j < g->axis.size; j++) {
        int64_t from = min64(n, j * c), count = min64(c, n - from);
        g->parcels[j] =
            parcel(data + first * element, data + from * element, (size_t)(mine * element), (size_t)(count * element));
    }
    exchange(s, g);
}

void all_reduce(Group *g, Stream *s, Tensor t) {
    int64_t n = tensor_count(t), bytes = (int64_t)tensor_bytes(t), element = (int64_t)type_bytes(t.type);
    int64_t c = ceil_div(n, g->axis.size), first = min64(n, g->axis.index * c), mine = min64(c, n - first);
    bool small = bytes <= SMALL_BYTES;
    int64_t others = n - mine, peers = g->axis.size - 1;
    int64_t sent = small ? peers * bytes : (others + peers * mine) * element;
    int64_t received = small ? peers * bytes : (peers * mine + others) * element;
    CollectiveArgs a = {.run = small ? run_all_reduce_small : run_all_reduce, .group = g, .in = t};
    charge_sum(g, s, small ? n : mine, t.type);
    issue(s, ALL_REDUCE, sent, received, a);
}

/* A round takes the same elements of every contribution, each into its own place of the staging area, and adds them
 * there. */
static void run_return_sums(Stream *s, const CollectiveArgs *a) {
    Group *g = a->group;
    int64_t n = tensor_count(a->in), element = (int64_t)type_bytes(a->in.type), round = COMM_ROUND_BYTES / element;
    for (int64_t first = 0; first < n; first += round) {
        int64_t count = min64(round, n - first);
        Tensor part = slice(a->in, first, count);
        for (int j = 0; j < g->axis.size; j++)
            g->parcels[j] = parcel(part.data, (char *)g->staging.data + (size_t)j * COMM_ROUND_BYTES,
                                   j == a->member ? tensor_bytes(part) : 0, a->at[j] >= 0 ? tensor_bytes(part) : 0);
        exchange(s, g);
        if (device_failed(s->device)) return;
        for (int j = 0; j < g->axis.size; j++) {
            if (a->at[j] < 0) continue;
            Tensor y = slice(a->out, a->at[j] + first, count);
            run_kernel(s, OP_ADD, (AddArgs){.y = y, .a = y, .b = tensor_at(g->parcels[j].receive, y.type, DIM(count))});
        }
    }
}

void return_sums(Group *g, Stream *s, Tensor out, const int64_t *at, Tensor in, int64_t to) {
    int64_t n = tensor_count(in), bytes = (int64_t)tensor_bytes(in), added = 0;
    int own = g->axis.index;
    MUST(out.type == in.type && (in.type == FP32 || in.type == FP64) && to >= -1 && to < g->axis.size);
    MUST((at[own] >= 0) == (to == own));
    for (int j = 0; j < g->axis.size; j++) {
        MUST(at[j] >= -1 && (at[j] < 0 || at[j] + n <= tensor_count(out)));
        for (int k = 0; k < j; k++) /* else rounds would change the order */
            MUST(at[j] < 0 || at[k] < 0 || at[j] == at[k] || at[j] + n <= at[k] || at[k] + n <= at[j]);
        added += at[j] >= 0;
    }
    int64_t received = added - (at[own] >= 0);
    charge_adding(s, OP_ADD, added * n, 3 * added * n, out.type);
    CollectiveArgs a = {.run = run_return_sums, .group = g, .out = out, .in = in, .at = at, .member = to};
    issue(s, RETURN_SUMS, to >= 0 && to != own ? bytes : 0, received * bytes, a);
}

/* ---- Host messages ---------------------------------------------------------------------------- */

bool host_exchange(Group *g, void *all, const void *mine, size_t bytes, Error *e) {
    Wire *w = g->wire;
    if (g->device->sim) { /* ranks that only count have nothing to say */
        memcpy((char *)all + (size_t)g->axis.index * bytes, mine, bytes);
        return true;
    }
    for (int j = 0; j < g->axis.size; j++) g->parcels[j] = parcel(mine, (char *)all + (size_t)j * bytes, bytes, bytes);
    calls_queue(w->calls, (Call){.axis = g->axis,
                                 .collective = HOST_MESSAGE,
                                 .bytes = (g->axis.size - 1) * (int64_t)bytes,
                                 .step = g->device->step,
                                 .layer = g->device->layer});
    calls_begin(w->calls);
    bool ok = w->exchange(w, &g->axis, g->parcels, e);
    if (ok) calls_end(w->calls);
    return ok;
}

bool host_gather(Comm *c, void *all, const void *mine, size_t bytes, Error *e) {
    event_wait(event_record(&c->device->stream[STREAM_NETWORK])); /* the wire is ours until we return */
    return host_exchange(&c->group[AXIS_WORLD], all, mine, bytes, e);
}

typedef struct {
    bool ok;
    Error error;
} Opinion;

bool host_agree(Comm *c, bool mine, Error *e) {
    int world = c->mesh.world;
    Opinion own = {.ok = mine, .error = *e}, *all = calloc((size_t)world, sizeof *all);
    if (!all) return fail(e, EXIT_MEMORY, "no memory for what %d ranks say; use fewer ranks", world);
    bool agreed = host_gather(c, all, &own, sizeof own, e);
    for (int r = 0; agreed && r < world; r++) {
        if (all[r].ok) continue;
        *e = all[r].error;
        agreed = false;
    }
    free(all);
    return agreed;
}
