/* What a machine or a container lets a process have, and what sizes can ask for: known in words before it is needed,
 * never an overflow, never a defect. */
#include "base/limits.h"
#include "ops/kernels.h"
#include "plan/plan.h"
#include "ranks.h"
#include "testing.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* Sanitizers map terabytes of their own, and take memory beside every allocation. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
static const bool sanitized = true;
#else
static const bool sanitized = false;
#endif

/* ---- Limits of machines and control groups ------------------------------------------------------ */

static void limit_is_a_number_or_none(void **state) {
    (void)state;
    assert_true(limit_parse("536870912\n") == 536870912);
    assert_true(limit_parse("0") == 0);
    assert_true(isinf(limit_parse("max\n")));
    assert_true(isinf(limit_parse("")));
    assert_true(isinf(limit_parse("-1\n")));
    assert_true(isinf(limit_parse("nonsense")));
    assert_true(limit_parse("9223372036854771712\n") > 9e18); /* version 1 says so where there is none */
}

static void write_text(const char *root, const char *path, const char *text) {
    char name[512];
    snprintf(name, sizeof name, "%s/%s", root, path);
    for (char *slash = strchr(name + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(name, 0700);
        *slash = '/';
    }
    FILE *f = fopen(name, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void limit_of_a_group_is_the_least_of_those_it_lies_in(void **state) {
    (void)state;
    char root[] = "/tmp/mop-groups-XXXXXX", command[64];
    assert_non_null(mkdtemp(root));
    write_text(root, "memory.max", "max\n");
    write_text(root, "box/memory.max", "3000000\n");
    write_text(root, "box/inner/memory.max", "4000000\n");
    write_text(root, "box/small/memory.max", "1000000\n");
    write_text(root, "memory/memory.limit_in_bytes", "7000000\n");
    write_text(root, "memory/docker/a/memory.limit_in_bytes", "2000000\n");
    static const struct {
        const char *groups;
        double limit;
    } rows[] = {
        {"0::/\n", INFINITY},
        {"0::/box/inner\n", 3000000},
        {"0::/box/small\n", 1000000},
        {"0::/unseen/by/us\n", INFINITY},
        {"4:cpu,memory:/docker/a\n1:pids:/\n0::/\n", 2000000},
        {"4:memory:/docker/a/below/that\n", 2000000},
        {"4:memory:/seen/from/outside\n", 7000000}, /* the container's own is the root of what it sees */
        {"4:memoryless:/docker/a\n", INFINITY},
        {"4:memory:/docker/a\n0::/box/small\n", 1000000},
        {"nonsense\n::\n:\n\n", INFINITY},
        {"", INFINITY},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        double got = cgroup_limit(rows[i].groups, root, "memory", "memory.max", "memory.limit_in_bytes");
        if (got != rows[i].limit) fail_msg("row %zu: %g instead of %g", i, got, rows[i].limit);
    }
    snprintf(command, sizeof command, "rm -r %s", root);
    assert_int_equal(system(command), 0);
}

static void this_machine_has_memory_and_threads(void **state) {
    (void)state;
    assert_true(memory_limit() > 64e6 && memory_limit() < 1e16);
    assert_true(threads_limit() >= 8);
}

/* ---- Threads ------------------------------------------------------------------------------------ */

static void count_one(void *context, int index) {
    (void)index;
    atomic_fetch_add((atomic_int *)context, 1);
}

/* In a process of its own: `f` says with 0 that all is well. */
static void in_child(int (*f)(void)) {
    int status = -1;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) _exit(f());
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static int too_many_threads(void) {
    enum { THREADS = 4000 };
    Error e = {0};
    atomic_int begun = 0;
    struct rlimit all = {(rlim_t)1 << 30, (rlim_t)1 << 30}; /* room for some stacks, not for so many */
    if (setrlimit(RLIMIT_AS, &all) != 0) return 2;
    if (threads_run(THREADS, count_one, &begun, &e)) return 3;
    if (begun != 0) return 4;
    if (e.code != EXIT_MEMORY || !strstr(e.text, "of 4000 threads could be started")) return 5;
    return 0;
}

static void of_too_many_threads_none_begins(void **state) {
    (void)state;
    if (!sanitized) in_child(too_many_threads);
}

static int no_room_for_a_stream(void) {
    Error e = {0};
    static char *volatile held[64];
    struct rlimit all = {(rlim_t)256 << 20, (rlim_t)256 << 20};
    if (setrlimit(RLIMIT_AS, &all) != 0) return 2;
    for (size_t i = 0; i < COUNT(held); i++) held[i] = malloc(4 << 20); /* less than a stack is left */
    Device *d = device_open("cpu:late", 1, NULL, &e);
    return d || e.code != EXIT_MEMORY || !strstr(e.text, "cannot start the thread of the ") ? 3 : 0;
}

static void device_without_a_thread_for_a_stream_is_refused_in_words(void **state) {
    (void)state;
    if (!sanitized) in_child(no_room_for_a_stream);
}

/* ---- Sizes -------------------------------------------------------------------------------------- */

static Device *open_sim(void) {
    Error e = {0};
    Device *d = device_open("sim:h200", 1, NULL, &e);
    assert_non_null(d);
    device_rate(d, FP32);
    return d;
}

static Tensor nowhere(Type type, int dims, const int64_t *dim) {
    return tensor_at((void *)(uintptr_t)64, type, dims, dim);
}

/* 10 d heads pairs = 10 x 128 x 64 x 2^60 is about 2^77. */
static void flops_beyond_63_bits_are_counted(void **state) {
    (void)state;
    Device *d = open_sim();
    Stream *s = &d->stream[STREAM_COMPUTE];
    Tensor q = nowhere(FP32, DIM(1, 64, 128)), lse = nowhere(FP32, DIM(64, 1)), at = nowhere(INT32, DIM(1));
    AttentionShape shape = {.scale = 1, .pairs = (int64_t)1 << 60};
    attention(s, q, lse, q, q, q, at, at, shape);
    attention_backward(s, q, q, q, lse, q, lse, q, q, q, at, at, at, shape);
    assert_true(d->meter.op[OP_ATTENTION].flops == 4.0 * 128 * 64 * 0x1p60);
    assert_true(d->meter.op[OP_ATTENTION_BACKWARD].flops == 10.0 * 128 * 64 * 0x1p60);
    Tensor x = nowhere(FP32, DIM((int64_t)1 << 31, 1 << 20)), w = nowhere(FP32, DIM(1 << 20, 1 << 20));
    linear(s, x, x, w);
    assert_true(d->meter.op[OP_LINEAR].flops == 0x1p72);
    assert_true(s->clock > 0 && isfinite(s->clock));
    device_close(d);
}

static void arena_of_sim_that_ends_fails_the_device_and_gives_addresses_of_their_own(void **state) {
    (void)state;
    Error e = {0};
    Device *d = open_sim();
    Arena a, b;
    assert_true(arena_open(&a, d, "activations", TIER_DEVICE, (size_t)1 << SIM_ARENA_BITS, &e));
    assert_true(arena_open(&b, d, "work", TIER_DEVICE, (size_t)1 << SIM_ARENA_BITS, &e));
    Mark mark = arena_mark(&a);
    Tensor small = arena_tensor(&a, FP32, DIM(16));
    assert_null(device_failed(d));
    Tensor large = arena_tensor(&a, FP64, DIM((int64_t)1 << 31, 1 << 24));
    assert_non_null(device_failed(d));
    assert_int_equal(device_failed(d)->code, EXIT_MEMORY);
    assert_non_null(strstr(device_failed(d)->text, "1024 TiB in its activations arena"));
    Tensor other = arena_tensor(&a, FP64, DIM((int64_t)1 << 31, 1 << 24)), third = arena_tensor(&b, FP32, DIM(16));
    const void *all[] = {small.data, large.data, other.data, third.data};
    for (size_t i = 0; i < COUNT(all); i++)
        for (size_t j = 0; j < i; j++) assert_ptr_not_equal(all[i], all[j]);
    arena_reset(&a, mark);
    arena_close(&a);
    arena_close(&b);
    device_close(d);
}

/* ---- What is estimated -------------------------------------------------------------------------- */

typedef struct {
    const char *spec;
    int world;
    const char *sets[8];
} Row;

static void open_row(const Row *row, Config *c, Spec *spec) {
    Error e = {0};
    int n = 0;
    while (n < (int)COUNT(row->sets) && row->sets[n]) n++;
    if (!config_read_text(c, "", 0, "test", row->sets, n, &e) || !spec_read(spec, row->spec, &e))
        fail_msg("%s", e.text);
    c->ranks = row->world;
    if (c->mixture_dense == 0) c->mixture_dense = row->world;
    if (!run_supported(c, spec, row->world, &e)) fail_msg("%s", e.text);
}

static void close_row(Config *c, Spec *spec) {
    spec_close(spec);
    config_close(c);
}

static const Row host_rows[] = {
    {"examples/tiny.json", 1, {"train.sequence_length=64"}},
    {"examples/tiny.json", 1, {"train.sequence_length=640", "mixture.dispatch_tokens=1"}},
    {"examples/tiny.json", 4, {"mixture.expert=4", "mixture.dispatch_tokens=3", "train.micro_batches=2"}},
    {"examples/tiny.json",
     4,
     {"mixture.expert=4", "mixture.dispatch_tokens=3", "mixture.balance_imports=64", "mixture.balance_threshold=1"}},
    {"examples/tiny.json", 8, {"mixture.ulysses=2", "mixture.ring=4", "train.sequences=64", "mixture.expert=2"}},
    {"examples/tiny.json", 4, {"mixture.ulysses=4", "train.sequences=512", "train.sequence_length=8"}},
    {"tests/plans/qwen3-235b.json", 16, {"mixture.expert=16", "train.sequence_length=4096", "mixture.ulysses=4"}},
    {"tests/plans/qwen3-235b.json",
     8,
     {"mixture.expert=8", "train.sequence_length=4096", "mixture.dispatch_tokens=64", "mixture.balance_imports=2",
      "compute.activations=recompute"}},
    {"tests/plans/mixtral-8x7b.json", 2, {"mixture.dispatch_tokens=7", "train.micro_batches=4"}},
};

static void host_arena_holds_no_more_than_is_known_from_sizes(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(host_rows); i++) {
        const Row *row = &host_rows[i];
        Config c;
        Spec spec;
        Error e = {0};
        open_row(row, &c, &spec);
        Price *price = calloc((size_t)row->world, sizeof *price);
        assert_non_null(price);
        if (!plan_price(&c, &spec, row->world, price, &e)) fail_msg("row %zu: %s", i, e.text);
        double known = run_host_bytes(&c, &spec, row->world), most = 0;
        for (int r = 0; r < row->world; r++) most = fmax(most, (double)price[r].bytes[ARENA_HOST]);
        if (most > known || most < known / 3) fail_msg("row %zu: %.0f bytes are used, %.0f were known", i, most, known);
        free(price);
        close_row(&c, &spec);
    }
}

/* What a process that does nothing else takes at its height. */
static double planned_bytes(const Row *row) {
    Config c;
    Spec spec;
    Error e = {0};
    int ends[2], status;
    double peak = 0;
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct rusage u;
        open_row(row, &c, &spec);
        Price *price = calloc((size_t)row->world, sizeof *price);
        if (!price || !plan_price(&c, &spec, row->world, price, &e)) _exit(1);
        getrusage(RUSAGE_SELF, &u);
        peak = 1024.0 * (double)u.ru_maxrss;
        _exit(write(ends[1], &peak, sizeof peak) == sizeof peak ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(read(ends[0], &peak, sizeof peak), sizeof peak);
    close(ends[0]);
    close(ends[1]);
    return peak;
}

static const Row heap_rows[] = {
    {"examples/tiny.json", 256, {"train.sequence_length=64", "train.sequences=256"}},
    {"examples/tiny.json", 64, {"train.sequence_length=100000", "train.sequences=64", "mixture.loss_chunk=100000"}},
    {"examples/tiny.json", 64, {"mixture.vocabulary=64", "train.sequence_length=2000", "train.sequences=64"}},
    {"tests/plans/qwen3-235b.json", 64, {"mixture.expert=64", "train.sequences=64", "train.micro_batches=1"}},
};

/* What one rank more costs: the process of all of them less that of a few. */
static void memory_of_a_planned_rank_is_known_from_sizes(void **state) {
    (void)state;
    if (sanitized) return;
    for (size_t i = 0; i < COUNT(heap_rows); i++) {
        Row one = {.spec = "examples/tiny.json", .world = 1, .sets = {"train.sequence_length=64"}};
        const Row *row = &heap_rows[i];
        Config c;
        Spec spec;
        open_row(row, &c, &spec);
        double known = run_heap(&c, &spec, row->world, true);
        close_row(&c, &spec);
        double rank = (planned_bytes(row) - planned_bytes(&one)) / (row->world - 1);
        if (rank > known || rank < known / 3)
            fail_msg("row %zu: a rank takes %.0f bytes, %.0f were known", i, rank, known);
    }
}

static void plan_that_memory_is_too_small_for_says_what_it_needs(void **state) {
    (void)state;
    Row row = {"examples/tiny.json",
               64,
               {"train.sequence_length=2147483647", "train.sequences=1", "mixture.ring=64", "train.micro_batches=1",
                "mixture.loss_chunk=1000000"}};
    Config c;
    Spec spec;
    Error e = {0};
    Price *price = calloc((size_t)row.world, sizeof *price);
    open_row(&row, &c, &spec);
    assert_false(plan_price(&c, &spec, row.world, price, &e));
    assert_int_equal(e.code, EXIT_MEMORY);
    assert_non_null(strstr(e.text, "to plan 64 ranks takes about 4"));
    free(price);
    close_row(&c, &spec);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(limit_is_a_number_or_none),
        cmocka_unit_test(limit_of_a_group_is_the_least_of_those_it_lies_in),
        cmocka_unit_test(this_machine_has_memory_and_threads),
        cmocka_unit_test(of_too_many_threads_none_begins),
        cmocka_unit_test(device_without_a_thread_for_a_stream_is_refused_in_words),
        cmocka_unit_test(flops_beyond_63_bits_are_counted),
        cmocka_unit_test(arena_of_sim_that_ends_fails_the_device_and_gives_addresses_of_their_own),
        cmocka_unit_test(host_arena_holds_no_more_than_is_known_from_sizes),
        cmocka_unit_test(memory_of_a_planned_rank_is_known_from_sizes),
        cmocka_unit_test(plan_that_memory_is_too_small_for_says_what_it_needs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
