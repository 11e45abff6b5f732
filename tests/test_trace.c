/* The trace and the times of a step: what the file says is what ran, on cpu and on sim, and looking changes nothing.
 * Events are read back from the file in whole nanoseconds. */
#include "base/json.h"
#include "ops/kernels.h"
#include "plan/plan.h"
#include "train/trace.h"
#include "trials.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static const char tiny[] = "examples/tiny.json";

/* ---- Runs that are traced --------------------------------------------------------------------- */

enum { WORLD_MOST = 8 };

typedef struct {
    int world;
    const char *spec, *sets[6];
} Row;

static const Row rows[] = {
    {1, tiny, {"device=cpu", "compute.threads=2"}},
    {2, tiny, {"device=cpu", "mixture.expert=2", "train.micro_batches=2"}},
    {3, tiny, {"device=cpu:late", "mixture.expert=3", "optimizer.update=blocking"}},
    {4, tiny, {"device=sim:h200", "mixture.dense=2", "mixture.expert=4", "compute.activations=recompute"}},
    {4, "tests/fixtures/qwen3_moe/config.json", {"device=sim:cpu", "mixture.expert=2", "optimizer.update=blocking"}},
};

typedef struct {
    char path[60];
    Trace *trace;
    TraceRank *rank[WORLD_MOST];
    int64_t first, count;           /* steps to take, from 0 */
    StepResult result[TRIAL_STEPS]; /* rank 0's */
    StreamTime before[WORLD_MOST][STREAM_COUNT], after[WORLD_MOST][STREAM_COUNT];
} Traced;

static Ranks *open_row(const Row *row, const char *documents, const char *more) {
    RanksSetup setup = {.world = row->world,
                        .spec = row->spec,
                        .documents = documents,
                        .sets = {"train.sequence_length=32", "train.sequences=5"}};
    int n = 2;
    for (size_t i = 0; i < COUNT(row->sets) && row->sets[i]; i++) setup.sets[n++] = row->sets[i];
    setup.sets[n] = more;
    return ranks_open(setup);
}

static Traced trace_make(const char *steps, int64_t room) {
    Traced t = {.path = "/tmp/mop-trace-XXXXXX"};
    int fd = mkstemp(t.path);
    assert_true(fd >= 0);
    close(fd);
    Error e = {0};
    if (!trace_open(&t.trace, &(TraceOptions){t.path, steps}, room, &e)) fail_msg("%s", e.text);
    return t;
}

static void copy_times(const Run *r, StreamTime *out) {
    for (int s = 0; s < STREAM_COUNT; s++) out[s] = r->device->stream[s].time;
}

static bool take_traced_steps(Run *r, void *context, Error *e) {
    Traced *t = context;
    int me = r->comm.mesh.rank;
    StepResult result;
    if (!t->rank[me] && !trace_join(t->trace, r, &t->rank[me], e)) return false;
    device_settle(r->device);
    meter_clear(r->device);
    copy_times(r, t->before[me]);
    for (int64_t i = 0; i < t->count; i++) {
        trace_begin(t->rank[me], t->first + i + 1);
        if (!train_step(r, t->first + i, false, &result, e)) return false;
        trace_end(t->rank[me]);
        if (me == 0) t->result[t->first + i] = result;
        if (!trace_write(t->rank[me], 0, e)) return false;
    }
    copy_times(r, t->after[me]);
    return true;
}

static void train_traced(Ranks *r, Traced *t, int64_t first, int64_t count) {
    t->first = first;
    t->count = count;
    ranks_run(r, take_traced_steps, t);
}

/* ---- Files read back -------------------------------------------------------------------------- */

typedef struct {
    const char *name, *category;
    int lane;
    int64_t start, end; /* ns */
    const json_t *args;
} Seen;

typedef struct {
    json_t *json;
    const char *lane[WORLD_MOST][1 + STREAM_COUNT]; /* names */
    bool named[WORLD_MOST];
    Seen *event[WORLD_MOST]; /* of each rank, in the file's order */
    int64_t count[WORLD_MOST];
    int64_t lost[WORLD_MOST][1 + STREAM_COUNT];
} Reading;

static const char *text_of(const json_t *o, const char *key) {
    const char *text = json_string_value(json_object_get(o, key));
    if (!text) fail_msg("an event has no %s: %s", key, json_dumps(o, 0));
    return text;
}

static int64_t number_of(const json_t *o, const char *key) {
    const json_t *value = json_object_get(o, key);
    if (!json_is_integer(value)) fail_msg("an event has no %s: %s", key, json_dumps(o, 0));
    return json_integer_value(value);
}

static int64_t nanoseconds_of(const json_t *o, const char *key) {
    const json_t *value = json_object_get(o, key);
    if (!json_is_real(value)) fail_msg("an event has no %s: %s", key, json_dumps(o, 0));
    return llround(json_real_value(value) * 1e3);
}

static void take_name(Reading *f, const json_t *o, int rank, int lane) {
    const char *name = text_of(json_object_get(o, "args"), "name");
    if (strcmp(text_of(o, "name"), "process_name") == 0) {
        char expected[30];
        snprintf(expected, sizeof expected, "rank %d", rank);
        assert_string_equal(name, expected);
        assert_false(f->named[rank]);
        f->named[rank] = true;
        return;
    }
    assert_string_equal(text_of(o, "name"), "thread_name");
    assert_null(f->lane[rank][lane]);
    f->lane[rank][lane] = name;
}

static void take_event(Reading *f, const json_t *o) {
    int64_t rank = number_of(o, "pid"), lane = number_of(o, "tid");
    const char *phase = text_of(o, "ph");
    assert_in_range(rank, 0, WORLD_MOST - 1);
    assert_in_range(lane, 0, STREAM_COUNT);
    if (*phase == 'M') {
        take_name(f, o, (int)rank, (int)lane);
        return;
    }
    assert_non_null(f->lane[rank][lane]);
    if (*phase == 'i') {
        f->lost[rank][lane] += number_of(json_object_get(o, "args"), "lost");
        return;
    }
    assert_string_equal(phase, "X");
    int64_t start = nanoseconds_of(o, "ts"), duration = nanoseconds_of(o, "dur");
    f->event[rank][f->count[rank]++] = (Seen){.name = text_of(o, "name"),
                                              .category = text_of(o, "cat"),
                                              .lane = (int)lane,
                                              .start = start,
                                              .end = start + duration,
                                              .args = json_object_get(o, "args")};
}

static Reading read_file(const char *path) {
    Error e = {0};
    Reading f = {.json = json_read_file(path, (size_t)1 << 28, &e)};
    if (!f.json) fail_msg("%s", e.text);
    assert_true(json_is_array(f.json));
    for (int r = 0; r < WORLD_MOST; r++) f.event[r] = calloc(json_array_size(f.json) + 1, sizeof(Seen));
    for (size_t i = 0; i < json_array_size(f.json); i++) take_event(&f, json_array_get(f.json, i));
    return f;
}

static void free_file(Reading *f) {
    for (int r = 0; r < WORLD_MOST; r++) free(f->event[r]);
    json_decref(f->json);
}

/* Closes what wrote the file, and reads it. */
static Reading finish(Traced *t) {
    Error e = {0};
    if (!trace_close(t->trace, true, &e)) fail_msg("%s", e.text);
    Reading f = read_file(t->path);
    unlink(t->path);
    return f;
}

static int lane_of(StreamKind s) {
    return 1 + (int)s;
}

/* ---- Form ------------------------------------------------------------------------------------- */

static void assert_lanes(const Reading *f, int world) {
    for (int r = 0; r < WORLD_MOST; r++) {
        assert_int_equal(f->named[r], r < world);
        if (r >= world) continue;
        assert_string_equal(f->lane[r][0], "step");
        assert_string_equal(f->lane[r][lane_of(STREAM_COMPUTE)], "compute");
        assert_string_equal(f->lane[r][lane_of(STREAM_NETWORK)], "network");
        assert_null(f->lane[r][lane_of(STREAM_UP)]); /* does nothing yet */
        assert_null(f->lane[r][lane_of(STREAM_DOWN)]);
    }
}

static void assert_ordered(const Reading *f, int rank) {
    int64_t free_from[1 + STREAM_COUNT] = {0};
    for (int64_t i = 0; i < f->count[rank]; i++) {
        const Seen *v = &f->event[rank][i];
        if (v->start < free_from[v->lane] || v->end < v->start)
            fail_msg("rank %d: %s in lane %s begins at %lld ns and ends at %lld, the one before ended at %lld", rank,
                     v->name, f->lane[rank][v->lane], (long long)v->start, (long long)v->end,
                     (long long)free_from[v->lane]);
        free_from[v->lane] = v->end;
    }
}

static void assert_within_steps(const Reading *f, int rank) {
    const Seen *step = NULL;
    for (int64_t i = 0; i < f->count[rank]; i++) {
        const Seen *v = &f->event[rank][i];
        if (v->lane == 0) step = v;
        assert_non_null(step);
        assert_int_equal(number_of(v->args, "step"), number_of(step->args, "step"));
        bool idle_before = strcmp(v->category, "wait") == 0; /* on sim a stream may stand still since the last step */
        if ((v->start < step->start && !idle_before) || v->end > step->end)
            fail_msg("rank %d: %s is not within its step", rank, v->name);
    }
}

static void a_trace_is_json_with_a_lane_for_each_stream_of_each_rank_and_nothing_overlaps(void **state) {
    (void)state;
    char *documents = random_documents(40, 50, 67, 3);
    for (size_t i = 0; i < COUNT(rows); i++) {
        Traced t = trace_make(NULL, TRACE_ROOM);
        Ranks *r = open_row(&rows[i], documents, NULL);
        train_traced(r, &t, 0, 3);
        ranks_close(r);
        Reading f = finish(&t);
        assert_lanes(&f, rows[i].world);
        for (int rank = 0; rank < rows[i].world; rank++) {
            assert_ordered(&f, rank);
            assert_within_steps(&f, rank);
            assert_true(f.count[rank] > 100);
        }
        free_file(&f);
    }
    free(documents);
}

static void only_the_steps_that_were_asked_for_are_in_it(void **state) {
    (void)state;
    Traced t = trace_make("2:3", TRACE_ROOM);
    Ranks *r = open_row(&rows[3], NULL, NULL);
    train_traced(r, &t, 0, 4);
    ranks_close(r);
    Reading f = finish(&t);
    for (int rank = 0; rank < rows[3].world; rank++) {
        int64_t steps = 0;
        for (int64_t i = 0; i < f.count[rank]; i++)
            if (f.event[rank][i].lane == 0) assert_int_equal(number_of(f.event[rank][i].args, "step"), 2 + steps++);
        assert_int_equal(steps, 2);
    }
    free_file(&f);
}

/* ---- What it says ------------------------------------------------------------------------------ */

static bool is_collective(const Seen *v, AxisName group, Collective c) {
    return strcmp(v->category, "collective") == 0 && strcmp(v->name, collective_name(c)) == 0 &&
           strcmp(text_of(v->args, "group"), axis_name(group)) == 0;
}

static void assert_traffic(const Reading *f, int rank, const Meter *m) {
    for (int g = 0; g < AXIS_COUNT; g++)
        for (int c = 0; c < COLLECTIVE_COUNT; c++) {
            const TrafficCount *t = &m->traffic[g][c];
            TrafficCount seen = {0};
            for (int64_t i = 0; i < f->count[rank]; i++) {
                const Seen *v = &f->event[rank][i];
                if (!is_collective(v, (AxisName)g, (Collective)c)) continue;
                assert_int_equal(v->lane, lane_of(STREAM_NETWORK));
                seen.calls++;
                seen.sent += number_of(v->args, "sent");
                seen.received += number_of(v->args, "received");
            }
            if (seen.calls != t->calls || seen.sent != t->sent || seen.received != t->received)
                fail_msg("rank %d, %s over %s: the trace has %lld calls, %lld and %lld bytes; the meter %lld, %lld and "
                         "%lld",
                         rank, collective_name((Collective)c), axis_name((AxisName)g), (long long)seen.calls,
                         (long long)seen.sent, (long long)seen.received, (long long)t->calls, (long long)t->sent,
                         (long long)t->received);
        }
}

/* Seconds of a lane's events of one component; waits, for one stream, or all else. */
static double seconds_of(const Reading *f, int rank, StreamKind lane, Component c, const char *wait, int64_t *events) {
    int64_t ns = 0;
    for (int64_t i = 0; i < f->count[rank]; i++) {
        const Seen *v = &f->event[rank][i];
        bool waits = strcmp(v->category, "wait") == 0;
        if (v->lane != lane_of(lane) || strcmp(text_of(v->args, "component"), component_name(c)) != 0) continue;
        if (wait ? !waits || strcmp(v->name, wait) != 0 : waits) continue;
        ns += v->end - v->start;
        ++*events;
    }
    return 1e-9 * (double)ns;
}

/* Each event is rounded to a nanosecond at both ends; on sim one that began before the first step is cut there. */
static void assert_sums(const Reading *f, int rank, const Traced *t) {
    for (int k = 0; k < COMPONENT_COUNT; k++) {
        const StreamTime *before = t->before[rank], *after = t->after[rank];
        const struct {
            const char *name, *wait;
            StreamKind lane;
            double counted;
        } sums[] = {
            {"compute", NULL, STREAM_COMPUTE, after[STREAM_COMPUTE].work[k] - before[STREAM_COMPUTE].work[k]},
            {"network", NULL, STREAM_NETWORK, after[STREAM_NETWORK].work[k] - before[STREAM_NETWORK].work[k]},
            {"exposed", "wait for network", STREAM_COMPUTE,
             after[STREAM_COMPUTE].wait[STREAM_NETWORK][k] - before[STREAM_COMPUTE].wait[STREAM_NETWORK][k]},
        };
        for (size_t i = 0; i < COUNT(sums); i++) {
            int64_t events = 0;
            double seconds = seconds_of(f, rank, sums[i].lane, (Component)k, sums[i].wait, &events);
            if (fabs(seconds - sums[i].counted) > 1e-9 * (double)(events + 1))
                fail_msg("rank %d, %s of %s: %.9f s in %lld events, %.9f s were counted", rank, sums[i].name,
                         component_name((Component)k), seconds, (long long)events, sums[i].counted);
        }
    }
}

static void every_collective_is_in_it_once_and_the_sums_are_what_the_streams_counted(void **state) {
    (void)state;
    char *documents = random_documents(40, 50, 67, 3);
    for (size_t i = 0; i < COUNT(rows); i++) {
        Traced t = trace_make(NULL, TRACE_ROOM);
        Ranks *r = open_row(&rows[i], documents, NULL);
        train_traced(r, &t, 0, 2);
        train_traced(r, &t, 2, 2); /* the meter is cleared between: its collectives are of these */
        Meter meter[WORLD_MOST];
        for (int rank = 0; rank < r->world; rank++) meter[rank] = r->run[rank]->device->meter;
        ranks_close(r);
        Reading f = finish(&t);
        for (int rank = 0; rank < rows[i].world; rank++) {
            int64_t kept = 0; /* the second half */
            for (int64_t j = 0; j < f.count[rank]; j++)
                if (number_of(f.event[rank][j].args, "step") > 2) f.event[rank][kept++] = f.event[rank][j];
            f.count[rank] = kept;
            assert_traffic(&f, rank, &meter[rank]);
            assert_sums(&f, rank, &t);
        }
        free_file(&f);
    }
    free(documents);
}

static void remove_record(const char *folder, const char *record, int world) {
    for (int i = 0; i < world; i++) {
        char path[100];
        snprintf(path, sizeof path, "%s.%d", record, i);
        assert_int_equal(unlink(path), 0);
    }
    assert_int_equal(rmdir(folder), 0);
}

/* The next of a rank's events of one lane and category, from *at on. */
static const Seen *next_of(const Reading *f, int rank, StreamKind lane, const char *category, int64_t *at) {
    while (*at < f->count[rank]) {
        const Seen *v = &f->event[rank][(*at)++];
        if (v->lane == lane_of(lane) && strcmp(v->category, category) == 0) return v;
    }
    return NULL;
}

static void assert_same_work(const Reading *cpu, const Reading *sim, int rank, StreamKind lane, const char *category) {
    int64_t i = 0, j = 0;
    for (;;) {
        const Seen *a = next_of(cpu, rank, lane, category, &i), *b = next_of(sim, rank, lane, category, &j);
        if (!a && !b) return;
        if (!a || !b) fail_msg("rank %d: only one of cpu and sim has a %s", rank, a ? a->name : b->name);
        assert_string_equal(a->name, b->name);
        if (!json_equal(a->args, b->args))
            fail_msg("rank %d: %s is %s on cpu and %s on sim", rank, a->name, json_dumps(a->args, 0),
                     json_dumps(b->args, 0));
    }
}

/* Name by name, with component, layer, group and bytes. */
static void the_same_run_has_the_same_ops_and_collectives_on_cpu_and_sim(void **state) {
    (void)state;
    const Row cpu_row = {4, tiny, {"device=cpu", "mixture.dense=2", "mixture.expert=4", "train.micro_batches=2"}};
    Row sim_row = cpu_row;
    sim_row.sets[0] = "device=sim:h200";
    char folder[] = "/tmp/mop-trace-XXXXXX", record[40], recording[60], replaying[60];
    assert_non_null(mkdtemp(folder));
    snprintf(record, sizeof record, "%s/routing", folder);
    snprintf(recording, sizeof recording, "sim.record=%s", record);
    snprintf(replaying, sizeof replaying, "sim.routing=replay:%s", record);
    char *documents = random_documents(40, 50, 67, 3);
    Reading f[2];
    for (int i = 0; i < 2; i++) {
        Traced t = trace_make(NULL, TRACE_ROOM);
        Ranks *r = open_row(i ? &sim_row : &cpu_row, documents, i ? replaying : recording);
        train_traced(r, &t, 0, 3);
        ranks_close(r);
        f[i] = finish(&t);
    }
    for (int rank = 0; rank < cpu_row.world; rank++) {
        assert_same_work(&f[0], &f[1], rank, STREAM_COMPUTE, "op");
        assert_same_work(&f[0], &f[1], rank, STREAM_NETWORK, "collective");
    }
    free_file(&f[0]);
    free_file(&f[1]);
    free(documents);
    remove_record(folder, record, cpu_row.world);
}

static void the_predicted_trace_ends_at_the_predicted_seconds(void **state) {
    (void)state;
    for (size_t i = 3; i < COUNT(rows); i++) {
        Error e = {0};
        Traced t = trace_make(NULL, TRACE_ROOM);
        Ranks *r = open_row(&rows[i], NULL, NULL);
        Price *price = calloc((size_t)r->world, sizeof *price);
        assert_non_null(price);
        if (!plan_time(&r->config, &r->spec, r->world, t.trace, price, &e)) fail_msg("%s", e.text);
        Reading f = finish(&t);
        assert_lanes(&f, r->world);
        for (int rank = 0; rank < r->world; rank++) {
            int64_t end = 0, step = -1;
            assert_ordered(&f, rank);
            for (int64_t j = 0; j < f.count[rank]; j++) {
                const Seen *v = &f.event[rank][j];
                assert_int_equal(number_of(v->args, "step"), 2);
                if (v->lane == 0) step = v->end - v->start;
                if (v->lane > 0 && v->end > end) end = v->end;
                if (v->lane == 0 && rank == 0) assert_int_equal(v->start, 0);
            }
            assert_true(llabs(step - llround(price[rank].seconds * 1e9)) <= 1);
            assert_int_equal(end, f.event[rank][0].end);
        }
        free_file(&f);
        free(price);
        ranks_close(r);
    }
}

/* ---- What does not fit ------------------------------------------------------------------------- */

static int64_t events_in(const Reading *f, int rank, int lane) {
    int64_t n = 0;
    for (int64_t i = 0; i < f->count[rank]; i++) n += f->event[rank][i].lane == lane;
    return n;
}

static void what_finds_no_room_is_counted_in_the_trace_and_told_once(void **state) {
    (void)state;
    enum { ROOM = 16, STEPS = 2 };
    char said[2000] = "", path[] = "/tmp/mop-trace-XXXXXX";
    int to = mkstemp(path), before = dup(STDERR_FILENO);
    assert_true(to >= 0 && before >= 0);
    fflush(stderr);
    dup2(to, STDERR_FILENO);
    Reading f[2];
    for (int i = 0; i < 2; i++) {
        Traced t = trace_make(NULL, i ? ROOM : TRACE_ROOM);
        Ranks *r = open_row(&rows[3], NULL, NULL);
        train_traced(r, &t, 0, STEPS);
        ranks_close(r);
        f[i] = finish(&t);
    }
    fflush(stderr);
    dup2(before, STDERR_FILENO);
    assert_true(pread(to, said, sizeof said - 1, 0) > 0);
    close(to);
    close(before);
    unlink(path);
    for (int rank = 0; rank < rows[3].world; rank++)
        for (int lane = 1; lane <= STREAM_COUNT; lane++) {
            int64_t all = events_in(&f[0], rank, lane), kept = events_in(&f[1], rank, lane);
            assert_int_equal(f[0].lost[rank][lane], 0);
            assert_int_equal(kept, all ? ROOM * STEPS : 0);
            assert_int_equal(kept + f[1].lost[rank][lane], all);
        }
    assert_non_null(strstr(said, "room for 16 events"));
    assert_ptr_equal(strchr(said, '\n'), said + strlen(said) - 1); /* one line */
    free_file(&f[0]);
    free_file(&f[1]);
}

static void wrong_options_and_files_are_said_in_words(void **state) {
    (void)state;
    static const char *const wrong[] = {"", "5", "5:", ":5", "0:3", "4:2", "1:2x", "1-2", "-1:2"};
    Trace *t;
    for (size_t i = 0; i < COUNT(wrong); i++) {
        Error e = {0};
        assert_false(trace_open(&t, &(TraceOptions){"/tmp/x.json", wrong[i]}, 1, &e));
        assert_int_equal(e.code, EXIT_USAGE);
        assert_non_null(strstr(e.text, "FIRST:LAST"));
        assert_null(t);
    }
    Error e = {0};
    assert_false(trace_open(&t, &(TraceOptions){NULL, "1:2"}, 1, &e));
    assert_int_equal(e.code, EXIT_USAGE);
    e = (Error){0};
    assert_true(trace_open(&t, &(TraceOptions){0}, 1, &e));
    assert_null(t);
    assert_true(trace_close(t, true, &e));

    Traced nowhere = {0};
    assert_true(trace_open(&nowhere.trace, &(TraceOptions){"/tmp/no/such/folder/out.json", NULL}, 1, &e));
    Ranks *r = open_row(&rows[3], NULL, NULL);
    nowhere.count = 1;
    assert_false(ranks_try(r, take_traced_steps, &nowhere));
    for (int i = 0; i < r->world; i++) {
        if (r->error[i].code == EXIT_PEER) continue; /* another was faster */
        assert_int_equal(r->error[i].code, EXIT_IO);
        assert_non_null(strstr(r->error[i].text, "the trace /tmp/no/such/folder/out.json cannot be written: No such"));
    }
    ranks_close(r);
    assert_true(trace_close(nowhere.trace, false, &e));
}

/* ---- What it changes ---------------------------------------------------------------------------- */

static Outcome train_with_trace(Layout l, const Trial *trial) {
    Outcome o;
    Traced t = trace_make(NULL, TRACE_ROOM);
    Ranks *r = trial_open("olmoe", l, trial);
    train_traced(r, &t, 0, 1);
    o.gradient = ranks_collect(r, STORE_GRADIENT);
    train_traced(r, &t, 1, TRIAL_STEPS - 1);
    o.master = ranks_collect(r, STORE_MASTER);
    o.m = ranks_collect(r, STORE_M);
    o.v = ranks_collect(r, STORE_V);
    ranks_close(r);
    Reading f = finish(&t);
    free_file(&f);
    memcpy(o.step, t.result, sizeof o.step);
    return o;
}

static void tracing_changes_no_bit(void **state) {
    (void)state;
    static const Layout layouts[] = {{1, ""}, {4, "dense=2 expert=4 train.micro_batches=2"}};
    const Trial trial = {0};
    for (size_t i = 0; i < COUNT(layouts); i++) {
        Outcome plain = trial_train("olmoe", layouts[i], &trial), traced = train_with_trace(layouts[i], &trial);
        assert_outcomes_same_bits(layouts[i].settings, &traced, &plain);
        outcome_free(&plain);
        outcome_free(&traced);
    }
}

/* ---- The times of a step ------------------------------------------------------------------------ */

typedef struct {
    Times told;                                              /* the sum of what steps said, mean over ranks */
    double counted[WORLD_MOST][TIME_KINDS][COMPONENT_COUNT]; /* by the streams, in steps and what is untold of them */
} Told;

static void count_times(const Run *r, double sign, double counted[TIME_KINDS][COMPONENT_COUNT]) {
    device_settle(r->device);
    for (int k = 0; k < COMPONENT_COUNT; k++) {
        counted[TIME_COMPUTE][k] += sign * r->device->stream[STREAM_COMPUTE].time.work[k];
        counted[TIME_NETWORK][k] += sign * r->device->stream[STREAM_NETWORK].time.work[k];
        counted[TIME_EXPOSED][k] += sign * r->device->stream[STREAM_COMPUTE].time.wait[STREAM_NETWORK][k];
    }
}

/* Steps with an evaluation between them. */
static bool take_told_steps(Run *r, void *context, Error *e) {
    Told *t = context;
    int me = r->comm.mesh.rank;
    for (int64_t i = 0; i < 3; i++) {
        StepResult result;
        Evaluation evaluation;
        count_times(r, -1, t->counted[me]);
        if (!train_step(r, i, false, &result, e)) return false;
        count_times(r, 1, t->counted[me]);
        for (int j = 0; j < TIME_KINDS && me == 0; j++)
            for (int k = 0; k < COMPONENT_COUNT; k++) t->told.by[j][k] += result.times.by[j][k];
        if (i < 2 && !evaluate(r, &evaluation, e)) return false;
    }
    count_times(r, -1, t->counted[me]); /* less what came behind the last telling: now - told */
    for (int j = 0; j < TIME_KINDS; j++)
        for (int k = 0; k < COMPONENT_COUNT; k++) t->counted[me][j][k] += r->told.by[j][k];
    return true;
}

static void steps_tell_all_that_their_streams_counted_and_nothing_else(void **state) {
    (void)state;
    char *documents = random_documents(40, 50, 67, 3);
    for (size_t i = 0; i < 3; i++) {
        Told t = {0};
        Ranks *r = open_row(&rows[i], documents, NULL);
        ranks_run(r, take_told_steps, &t);
        ranks_close(r);
        for (int j = 0; j < TIME_KINDS; j++)
            for (int k = 0; k < COMPONENT_COUNT; k++) {
                double mean = 0, told = t.told.by[j][k];
                for (int rank = 0; rank < rows[i].world; rank++) mean += t.counted[rank][j][k] / rows[i].world;
                if (fabs(mean - told) > 1e-9)
                    fail_msg("row %zu, %s of %s: told %.9f s, counted %.9f s", i, time_name((TimeKind)j),
                             component_name((Component)k), told, mean);
            }
        assert_true(t.told.by[TIME_COMPUTE][COMPONENT_EXPERTS] > 0);
        assert_true(t.told.by[TIME_COMPUTE][COMPONENT_OPTIMIZER] > 0);
        assert_true(t.told.by[TIME_NETWORK][COMPONENT_VOCABULARY] > 0);
    }
    free(documents);
}

/* Two ranks on sim: what waits is the jump of the clock, so that work and waits fill the step. */
static void on_sim_compute_and_waits_fill_the_predicted_step(void **state) {
    (void)state;
    Traced t = trace_make(NULL, TRACE_ROOM);
    Ranks *r = open_row(&rows[3], NULL, NULL);
    train_traced(r, &t, 0, 1);
    double begin[WORLD_MOST];
    for (int rank = 0; rank < r->world; rank++) begin[rank] = r->run[rank]->model.compute->clock;
    train_traced(r, &t, 1, 1);
    for (int rank = 0; rank < r->world; rank++) {
        const StreamTime *a = &t.before[rank][STREAM_COMPUTE], *b = &t.after[rank][STREAM_COMPUTE];
        double filled = 0, waited = 0, step = r->run[rank]->model.compute->clock - begin[rank];
        for (int k = 0; k < COMPONENT_COUNT; k++) {
            filled += b->work[k] - a->work[k];
            waited += b->wait[STREAM_NETWORK][k] - a->wait[STREAM_NETWORK][k];
        }
        assert_true(waited > 0 && filled > 0);
        assert_near("a step on sim", "compute and waits", filled + waited, step, 1e-9);
    }
    ranks_close(r);
    Reading f = finish(&t);
    free_file(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_trace_is_json_with_a_lane_for_each_stream_of_each_rank_and_nothing_overlaps),
        cmocka_unit_test(only_the_steps_that_were_asked_for_are_in_it),
        cmocka_unit_test(every_collective_is_in_it_once_and_the_sums_are_what_the_streams_counted),
        cmocka_unit_test(the_same_run_has_the_same_ops_and_collectives_on_cpu_and_sim),
        cmocka_unit_test(the_predicted_trace_ends_at_the_predicted_seconds),
        cmocka_unit_test(what_finds_no_room_is_counted_in_the_trace_and_told_once),
        cmocka_unit_test(wrong_options_and_files_are_said_in_words),
        cmocka_unit_test(tracing_changes_no_bit),
        cmocka_unit_test(steps_tell_all_that_their_streams_counted_and_nothing_else),
        cmocka_unit_test(on_sim_compute_and_waits_fill_the_predicted_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
