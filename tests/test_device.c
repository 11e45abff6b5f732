/* The contract of device.h, the same for every kind of device that has memory: arenas, the order of streams, events,
 * copies, failure; and AdamW, which has the same bits everywhere. A GPU that is not there is skipped, in words. */
#include "device/device.h"
#include "ops/kernels.h"
#include "testing.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char *const devices[] = {"cpu", "cpu:late", "cuda:0"};

/* The device of this test, with an arena in each tier. */
typedef struct {
    Device *device;
    Arena memory, host;
    Stream *compute, *up, *down;
} Bench;

enum { MEMORY_BYTES = 96 << 20, HOST_BYTES = 64 << 20 };

static Bench *bench_open(void **state) {
    Error e = {0};
    Bench *b = calloc(1, sizeof *b);
    assert_non_null(b);
    b->device = test_device(*state, 2);
    if (b->device == NULL) {
        free(b);
        skip();
        return NULL;
    }
    if (!arena_open(&b->memory, b->device, "memory", TIER_DEVICE, MEMORY_BYTES, &e) ||
        !arena_open(&b->host, b->device, "host", TIER_HOST, HOST_BYTES, &e))
        fail_msg("%s", e.text);
    b->compute = &b->device->stream[STREAM_COMPUTE];
    b->up = &b->device->stream[STREAM_UP];
    b->down = &b->device->stream[STREAM_DOWN];
    return b;
}

static void bench_close(Bench *b) {
    for (int i = 0; i < STREAM_COUNT; i++) stream_finish(&b->device->stream[i]);
    const Error *failed = device_failed(b->device);
    char text[sizeof failed->text] = "";
    if (failed) snprintf(text, sizeof text, "%s", failed->text);
    arena_close(&b->memory);
    arena_close(&b->host);
    device_close(b->device);
    free(b);
    if (*text) fail_msg("the device failed: %s", text);
}

/* What was just taken from an arena is the compute stream's (poisoned in its order): the others come after it. */
static void bench_share(Bench *b) {
    Event taken = event_record(b->compute);
    stream_wait(b->up, taken);
    stream_wait(b->down, taken);
}

/* ---- Arenas ----------------------------------------------------------------------------------------- */

static void an_arena_is_a_stack_of_aligned_memory(void **state) {
    Bench *b = bench_open(state);
    Arena *const arenas[] = {&b->memory, &b->host};
    for (size_t i = 0; i < COUNT(arenas); i++) {
        Arena *a = arenas[i];
        Component before = device_component(b->device, COMPONENT_EXPERTS);
        Tensor first = arena_tensor(a, FP32, DIM(3, 5));
        Mark m = arena_mark(a);
        Tensor second = arena_tensor(a, BF16, DIM(1000));
        device_component(b->device, before);
        assert_int_equal((uintptr_t)first.data % 64, 0);
        assert_int_equal((char *)second.data - (char *)first.data, 64);
        assert_int_equal(a->used, 64 + 2048);
        assert_int_equal(a->by[COMPONENT_EXPERTS], a->used);
        arena_reset(a, m);
        assert_ptr_equal(arena_tensor(a, BYTE, DIM(1)).data, second.data);
        assert_int_equal(a->used, 128);
        assert_int_equal(a->peak, 64 + 2048);
        assert_ptr_equal(arena_tensor(a, FP64, DIM(0)).data, (char *)second.data + 64); /* an empty tensor is valid */
    }
    bench_close(b);
}

static void an_arena_of_nothing_and_a_second_one_open_and_close(void **state) {
    Bench *b = bench_open(state);
    Arena none, other;
    Error e = {0};
    assert_true(arena_open(&none, b->device, "none", TIER_DEVICE, 0, &e));
    assert_true(arena_open(&other, b->device, "other", TIER_HOST, 4096, &e));
    memset(arena_bytes(&other, 4096), 1, 4096); /* the host may write it */
    arena_close(&none);
    arena_close(&other);
    bench_close(b);
}

/* ---- Copies ------------------------------------------------------------------------------------------ */

static void what_is_written_is_read_back_and_counted(void **state) {
    static const int64_t counts[] = {0, 1, 7, 4096, 1000003};
    Bench *b = bench_open(state);
    Memory m = {0};
    int64_t bytes = 0;
    for (size_t i = 0; i < COUNT(counts); i++) {
        Tensor host = memory_tensor(&m, INT32, DIM(counts[i])), back = memory_tensor(&m, INT32, DIM(counts[i]));
        Tensor t = arena_tensor(&b->memory, INT32, DIM(counts[i])), gone = memory_copy(&m, host);
        fill_integers(host, i, -1000, 1000);
        memcpy(gone.data, host.data, tensor_bytes(host));
        device_write(b->compute, t, gone.data);
        fill_value(gone, 7); /* it was the caller's again */
        device_read(b->compute, back.data, t, READ_LOSS);
        assert_same_bits(*state, back, host);
        bytes += (int64_t)tensor_bytes(t);
    }
    assert_int_equal(b->device->meter.copied_up, bytes);
    assert_int_equal(b->device->meter.copied_down, bytes);
    memory_check(&m, *state);
    memory_free(&m);
    bench_close(b);
}

static void copies_between_tiers_are_counted_by_direction(void **state) {
    Bench *b = bench_open(state);
    Tensor host = arena_tensor(&b->host, FP32, DIM(1000)), t = arena_tensor(&b->memory, FP32, DIM(1000));
    Tensor back = arena_tensor(&b->host, FP32, DIM(1000));
    bench_share(b);
    fill_normal(host, 1);
    stream_copy(b->up, t, host);
    stream_wait(b->down, event_record(b->up));
    stream_copy(b->down, back, t);
    stream_finish(b->down);
    assert_same_bits(*state, back, host);
    assert_int_equal(b->device->meter.copied_up, 4000);
    assert_int_equal(b->device->meter.copied_down, 4000);
    bench_close(b);
}

/* ---- Order -------------------------------------------------------------------------------------------- */

static void work_on_a_stream_runs_in_the_order_it_was_issued(void **state) {
    enum { TIMES = 50, N = 1 << 16 };
    Bench *b = bench_open(state);
    Tensor t = arena_tensor(&b->memory, INT32, DIM(N)), back = arena_tensor(&b->host, INT32, DIM(N));
    Tensor from = arena_tensor(&b->host, INT32, DIM(TIMES, N));
    bench_share(b);
    for (int64_t i = 0; i < TIMES; i++) fill_value(tensor_view(tensor_rows(from, i, 1), DIM(N)), (double)i);
    for (int64_t i = 0; i < TIMES; i++) stream_copy(b->up, t, tensor_view(tensor_rows(from, i, 1), DIM(N)));
    device_read(b->up, back.data, t, READ_LOSS);
    for (int64_t i = 0; i < N; i++) assert_int_equal(((int32_t *)back.data)[i], TIMES - 1);
    bench_close(b);
}

/* Two slots of device memory carry many pieces: up into a slot, down out of it, and up again only after that. Far
 * more events than any device keeps. */
static void events_order_two_streams_that_share_memory(void **state) {
    enum { PIECES = 300, SLOTS = 2, N = 1 << 14 };
    Bench *b = bench_open(state);
    Tensor from = arena_tensor(&b->host, INT32, DIM(PIECES, N)), to = arena_tensor(&b->host, INT32, DIM(PIECES, N));
    Tensor slot[SLOTS];
    Event emptied[SLOTS] = {{0}};
    for (int i = 0; i < SLOTS; i++) slot[i] = arena_tensor(&b->memory, INT32, DIM(1, N));
    bench_share(b);
    for (int64_t i = 0; i < PIECES * N; i++) ((int32_t *)from.data)[i] = (int32_t)i;
    memset(to.data, 0, tensor_bytes(to));
    for (int64_t i = 0; i < PIECES; i++) {
        stream_wait(b->up, emptied[i % SLOTS]);
        stream_copy(b->up, slot[i % SLOTS], tensor_rows(from, i, 1));
        stream_wait(b->down, event_record(b->up));
        stream_copy(b->down, tensor_rows(to, i, 1), slot[i % SLOTS]);
        emptied[i % SLOTS] = event_record(b->down);
    }
    stream_finish(b->down);
    assert_int_equal(memcmp(to.data, from.data, tensor_bytes(to)), 0);
    bench_close(b);
}

static void an_old_event_still_waits_for_its_work(void **state) {
    enum { LATER = 200, N = 1 << 20 };
    Bench *b = bench_open(state);
    Tensor from = arena_tensor(&b->host, INT32, DIM(N)), to = arena_tensor(&b->host, INT32, DIM(N));
    Tensor t = arena_tensor(&b->memory, INT32, DIM(N));
    fill_integers(from, 3, 1, 1000000);
    memset(to.data, 0, tensor_bytes(to));
    device_write(b->compute, t, from.data);
    stream_wait(b->down, event_record(b->compute));
    stream_copy(b->down, to, t);
    Event old = event_record(b->down);
    for (int i = 0; i < LATER; i++) event_record(b->down);
    event_wait(old);
    assert_same_bits(*state, to, from);
    event_wait((Event){0}); /* no event: nothing to wait for */
    stream_wait(b->up, (Event){0});
    bench_close(b);
}

typedef struct {
    int *out, value;
} NoteArgs;

static void note(Stream *s, const void *args) {
    const NoteArgs *a = args;
    (void)s;
    *a->out = a->value;
}

static void a_launch_takes_its_arguments_by_value(void **state) {
    Bench *b = bench_open(state);
    for (int i = 0; i < STREAM_COUNT; i++) {
        int out = 0;
        NoteArgs a = {&out, 5};
        stream_launch(&b->device->stream[i], note, &a, sizeof a);
        a.value = 6;
        stream_finish(&b->device->stream[i]);
        assert_int_equal(out, 5);
    }
    bench_close(b);
}

static void a_failed_device_skips_work_and_reads_zeros(void **state) {
    Bench *b = bench_open(state);
    Tensor t = arena_tensor(&b->memory, INT32, DIM(4));
    int32_t values[4] = {1, 2, 3, 4};
    int out = 0;
    Error lost = {0}, second = {0};
    device_write(b->compute, t, values);
    (fail)(&lost, EXIT_PEER, "a rank was lost");
    (fail)(&second, EXIT_IO, "and then this");
    device_fail(b->device, &lost);
    device_fail(b->device, &second);
    assert_string_equal(device_failed(b->device)->text, "a rank was lost");
    stream_launch(b->compute, note, &(NoteArgs){&out, 5}, sizeof(NoteArgs));
    stream_wait(b->down, event_record(b->compute));
    stream_finish(b->down);
    assert_int_equal(out, 0);
    device_read(b->compute, values, t, READ_LOSS);
    for (int i = 0; i < 4; i++) assert_int_equal(values[i], 0);
    arena_close(&b->memory);
    arena_close(&b->host);
    device_close(b->device);
    free(b);
}

/* ---- AdamW -------------------------------------------------------------------------------------------- */

enum { WEIGHT, LOW, M, V, GRADIENT, STATE };

static void fill_state(Tensor *t, uint64_t seed) {
    fill_normal(t[WEIGHT], seed);
    if (!tensor_none(t[LOW])) fill_integers(t[LOW], seed + 1, 0, 255);
    fill_normal(t[M], seed + 2);
    fill_normal(t[V], seed + 3);
    fill_normal(t[GRADIENT], seed + 4);
    for (int64_t i = 0; i < tensor_count(t[V]); i++) { /* over many magnitudes, subnormal ones too */
        double v = tensor_get(t[V], i), scale = i % 5 == 0 ? 1e-40 : i % 5 == 1 ? 1e6 : 1;
        tensor_put(t[V], i, v * v * scale);
        tensor_put(t[GRADIENT], i, tensor_get(t[GRADIENT], i) * (i % 7 == 0 ? 1e-30 : 1));
    }
}

/* `skip` elements at the beginning are not updated, so that arrays begin anywhere. */
static void adamw_row(Bench *b, Device *plain, Type type, int64_t count, int64_t skip_first) {
    Memory m = {0};
    Tensor expected[STATE], got[STATE], t[STATE], part[STATE], plain_part[STATE];
    Type sum = type_sum(type);
    int64_t all = count + skip_first;
    for (int i = 0; i < STATE; i++) {
        Type of = i == WEIGHT ? type : i == LOW ? BYTE : sum;
        int64_t each = i == LOW ? 2 : 1;
        expected[i] = got[i] = t[i] = part[i] = plain_part[i] = NONE;
        if (i == LOW && type != BF16) continue;
        expected[i] = memory_tensor(&m, of, DIM(each * all));
        got[i] = memory_tensor(&m, of, DIM(each * all));
        t[i] = arena_tensor(&b->memory, of, DIM(each * all));
        part[i] = tensor_rows(t[i], each * skip_first, each * count);
        plain_part[i] = tensor_rows(expected[i], each * skip_first, each * count);
    }
    fill_state(expected, (uint64_t)count);
    for (int i = 0; i < STATE; i++)
        if (!tensor_none(t[i])) device_write(b->compute, t[i], expected[i].data);
    for (int step = 1; step <= 3; step++) {
        AdamW h = {.learning_rate = 3e-3,
                   .beta1 = 0.9,
                   .beta2 = 0.95,
                   .epsilon = 1e-8,
                   .weight_decay = 0.1,
                   .correction1 = 0.1 * step,
                   .correction2 = 0.05 * step,
                   .clip = 0.7};
        adamw(b->compute, part[WEIGHT], part[LOW], part[M], part[V], part[GRADIENT], h);
        adamw(&plain->stream[STREAM_COMPUTE], plain_part[WEIGHT], plain_part[LOW], plain_part[M], plain_part[V],
              plain_part[GRADIENT], h);
    }
    static const char *const names[] = {"weight", "low", "m", "v", "gradient"};
    for (int i = 0; i < STATE; i++) {
        char what[64];
        if (tensor_none(t[i])) continue;
        snprintf(what, sizeof what, "%s, %s, %lld after %lld", names[i], type_name(type), (long long)count,
                 (long long)skip_first);
        device_read(b->compute, got[i].data, t[i], READ_LOSS);
        assert_same_bits(what, got[i], expected[i]);
    }
    memory_check(&m, "adamw");
    memory_free(&m);
}

static void adamw_has_the_bits_of_its_definition(void **state) {
    static const Type types[] = {FP32, BF16, FP64};
    static const struct {
        int64_t count, skip;
    } rows[] = {{1, 0}, {3, 0}, {4, 0}, {1027, 0}, {100003, 0}, {4096, 1}, {4099, 4}, {5, 3}};
    Bench *b = bench_open(state);
    Device *plain = test_device_needed("cpu:plain", 1);
    for (size_t t = 0; t < COUNT(types); t++)
        for (size_t i = 0; i < COUNT(rows); i++) {
            Mark mark = arena_mark(&b->memory);
            adamw_row(b, plain, types[t], rows[i].count, rows[i].skip);
            arena_reset(&b->memory, mark);
        }
    device_close(plain);
    bench_close(b);
}

/* ---- What is no device -------------------------------------------------------------------------------- */

static void a_name_that_is_no_gpu_is_refused_in_a_sentence(void **state) {
    static const char *const names[] = {"cuda:", "cuda:x", "cuda:0x", "cuda:-1", "cuda:1000", "cuda", "gpu:0"};
    (void)state;
    for (size_t i = 0; i < COUNT(names); i++) {
        Error e = {0};
        assert_null(device_open(names[i], 1, &kernels_cuda, &e));
        assert_int_equal(e.code, EXIT_USAGE);
        if (!strstr(e.text, "device") && !strstr(e.text, "driver")) fail_msg("%s", e.text);
    }
}

typedef struct {
    const char *name;
    CMUnitTestFunction function;
} Case;
#define CASE(f)                                                                                                        \
    { #f, f }

int main(void) {
    static const Case cases[] = {
        CASE(an_arena_is_a_stack_of_aligned_memory),
        CASE(an_arena_of_nothing_and_a_second_one_open_and_close),
        CASE(what_is_written_is_read_back_and_counted),
        CASE(copies_between_tiers_are_counted_by_direction),
        CASE(work_on_a_stream_runs_in_the_order_it_was_issued),
        CASE(events_order_two_streams_that_share_memory),
        CASE(an_old_event_still_waits_for_its_work),
        CASE(a_launch_takes_its_arguments_by_value),
        CASE(a_failed_device_skips_work_and_reads_zeros),
        CASE(adamw_has_the_bits_of_its_definition),
    };
    enum { TESTS = (int)(COUNT(cases) * COUNT(devices)) };
    static char names[TESTS][96];
    static struct CMUnitTest tests[TESTS + 1];
    for (size_t d = 0, n = 0; d < COUNT(devices); d++)
        for (size_t i = 0; i < COUNT(cases); i++, n++) {
            snprintf(names[n], sizeof names[n], "%s: %s", devices[d], cases[i].name);
            tests[n] = (struct CMUnitTest){names[n], cases[i].function, NULL, NULL, (void *)(uintptr_t)devices[d]};
        }
    tests[TESTS] = (struct CMUnitTest)cmocka_unit_test(a_name_that_is_no_gpu_is_refused_in_a_sentence);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
