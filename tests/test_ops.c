/* The mathematics: every kernel table agrees with the definitions, the definitions with finite differences,
 * and the front doors charge what ops.h says. The ops and their shapes are rows of ops_table.h. */
#include "ops_table.h"
#include <stdio.h>
#include <string.h>

#include <setjmp.h> /* cmocka.h uses it */

#include <cmocka.h>

static const Type real_types[] = {FP32, BF16, FP64};

/* ---- One trial -------------------------------------------------------------------------------- */

static void restore(Slot *slots) {
    for (int i = 0; i < MOST_SLOTS; i++) {
        if (tensor_count(slots[i].tensor) > 0)
            memcpy(slots[i].tensor.data, slots[i].initial.data, tensor_bytes(slots[i].tensor));
    }
}

static void remember(Trial *t, Slot *slots) {
    for (int i = 0; i < MOST_SLOTS; i++) slots[i].initial = memory_copy(&t->memory, slots[i].tensor);
}

static Trial trial_open(const Case *row, Device *device, Type real) {
    Trial t = {.row = row, .device = device, .stream = &device->stream[STREAM_COMPUTE], .real = real};
    t.sum = type_sum(real);
    t.n = row->n;
    row->make(&t);
    remember(&t, t.x);
    remember(&t, t.y);
    remember(&t, t.dy);
    remember(&t, t.dx);
    return t;
}

static void trial_close(Trial *t) {
    memory_free(&t->memory);
}

/* "rms_norm [rows,width,add] 5 11 1 bf16 on cpu:avx2: " and what more there is to say. */
typedef struct {
    char text[256];
} Where;

static Where where(const Trial *t, const char *slot, int i) {
    Where w;
    int used = snprintf(w.text, sizeof w.text, "%s:", t->row->name);
    for (int k = 0; k < MOST_NUMBERS; k++)
        used += snprintf(w.text + used, sizeof w.text - (size_t)used, " %lld", (long long)t->n[k]);
    snprintf(w.text + used, sizeof w.text - (size_t)used, ", %s on %s, %s[%d]", type_name(t->real), t->device->name,
             slot, i);
    return w;
}

static void check_unchanged(const Trial *t, const char *name, const Slot *slots) {
    for (int i = 0; i < MOST_SLOTS; i++) {
        if (!tensor_none(slots[i].tensor)) assert_same_bits(where(t, name, i).text, slots[i].tensor, slots[i].initial);
    }
}

static void run_forward(Trial *t) {
    restore(t->y);
    t->row->forward(t);
    stream_finish(t->stream);
}

static void run_backward(Trial *t) {
    restore(t->dx);
    t->row->backward(t);
    stream_finish(t->stream);
}

/* What a run must never do, whatever it computes. */
static void check_bystanders(const Trial *t) {
    memory_check(&t->memory, where(t, "any", 0).text);
    check_unchanged(t, "x", t->x);
    check_unchanged(t, "dy", t->dy);
}

/* Both directions; a backward starts from outputs that `forward` made (those of t itself when NULL). */
static void run_from(Trial *t, const Trial *forward) {
    run_forward(t);
    if (t->row->backward == NULL) return;
    for (int i = 0; forward != NULL && i < MOST_SLOTS; i++) {
        if (tensor_count(t->y[i].tensor) > 0)
            memcpy(t->y[i].tensor.data, forward->y[i].tensor.data, tensor_bytes(t->y[i].tensor));
    }
    run_backward(t);
}

/* ---- (a) Every table agrees with the definitions ---------------------------------------------- */

static bool held_in_bf16(const Trial *t, const Slot *slot) {
    return slot->tensor.type == BF16 || (slot->flags & ROUNDED && t->real == BF16);
}

/* Sums of a few hundred terms in any order. In bf16, results on different sides of a rounding differ by one step of 8
 * bits: that is rare where both round at the same points. */
static void compare_slot(const Trial *got, const char *what, const Slot *slot, const Slot *expected) {
    const double bound = got->real == FP64 ? 1e-12 : 1e-5, bf16_step = 0x1p-7, bf16_share = 0.05;
    double least = got->row->cancelled;
    if (slot->flags & EXACT) {
        assert_same_bits(what, slot->tensor, expected->tensor);
        return;
    }
    if (!held_in_bf16(got, slot)) {
        assert_close(what, slot->tensor, expected->tensor, bound, least);
        return;
    }
    assert_close(what, slot->tensor, expected->tensor, bf16_step, least);
    assert_mostly_close(what, slot->tensor, expected->tensor, bound, least, bf16_share);
}

static void compare(const Trial *got, const char *name, const Slot *slots, const Slot *expected) {
    for (int i = 0; i < MOST_SLOTS; i++) {
        if (!tensor_none(slots[i].tensor)) compare_slot(got, where(got, name, i).text, &slots[i], &expected[i]);
    }
}

static void agrees(const Case *row, Type real, Device *device, Device *plain) {
    Trial expected = trial_open(row, plain, real), got = trial_open(row, device, real);
    run_from(&expected, NULL);
    check_bystanders(&expected);
    run_forward(&got);
    compare(&got, "y", got.y, expected.y);
    run_from(&got, &expected);
    compare(&got, "dx", got.dx, expected.dx);
    check_bystanders(&got);
    trial_close(&expected);
    trial_close(&got);
}

static void table_agrees(const char *name) {
    Device *device = test_device(name, 2);
    if (device == NULL) skip();
    Device *plain = test_device_needed("cpu:plain", 1);
    for (size_t i = 0; i < COUNT(cases); i++) {
        for (size_t k = 0; k < COUNT(real_types); k++) agrees(&cases[i], real_types[k], device, plain);
    }
    device_close(plain);
    device_close(device);
}

static void cpu_agrees_with_the_definitions(void **state) {
    (void)state;
    table_agrees("cpu");
}

static void avx512bf16_agrees_with_the_definitions(void **state) {
    (void)state;
    table_agrees("cpu:avx512bf16");
}

static void avx512_agrees_with_the_definitions(void **state) {
    (void)state;
    table_agrees("cpu:avx512");
}

static void avx2_agrees_with_the_definitions(void **state) {
    (void)state;
    table_agrees("cpu:avx2");
}

static void portable_agrees_with_the_definitions(void **state) {
    (void)state;
    table_agrees("cpu:portable");
}

/* ---- (b) Gradients are those of finite differences -------------------------------------------- */

/* L = sum dy y, from outputs that began anew. */
static double loss_of(Trial *t) {
    double loss = 0;
    run_forward(t);
    for (int i = 0; i < MOST_SLOTS; i++) {
        Slot y = t->y[i], dy = t->dy[i];
        for (int64_t k = 0; !tensor_none(dy.tensor) && k < tensor_count(y.tensor); k++) {
            double before = y.flags & ADDED ? tensor_get(y.initial, k) : 0;
            loss += tensor_get(dy.tensor, k) * (tensor_get(y.tensor, k) - before);
        }
    }
    return loss;
}

static double difference_quotient(Trial *t, Tensor x, int64_t at) {
    const double step = 1e-5;
    double middle = tensor_get(x, at);
    tensor_put(x, at, middle + step);
    double above = loss_of(t);
    tensor_put(x, at, middle - step);
    double below = loss_of(t);
    tensor_put(x, at, middle);
    return (above - below) / (2 * step);
}

/* About 60 elements of each input; the error is measured against the largest gradient. */
static void check_gradient(Trial *t, int slot) {
    enum { PROBES = 60 };
    const Slot *dx = &t->dx[slot];
    Tensor x = t->x[slot].tensor;
    int64_t count = tensor_count(x), stride = max64(1, count / PROBES);
    double largest = 0;
    for (int64_t i = 0; i < count; i++) {
        double before = dx->flags & ADDED ? tensor_get(dx->initial, i) : 0;
        largest = fmax(largest, fabs(tensor_get(dx->tensor, i) - before));
    }
    for (int64_t i = 0; i < count; i += stride) {
        double before = dx->flags & ADDED ? tensor_get(dx->initial, i) : 0;
        double gradient = tensor_get(dx->tensor, i) - before, expected = difference_quotient(t, x, i);
        double error = fabs(gradient - expected);
        if (!(error <= 1e-6 * largest + 1e-10))
            fail_msg("%s: gradient [%lld] is %.12g, the quotient of differences %.12g; largest %.3g",
                     where(t, "dx", slot).text, (long long)i, gradient, expected, largest);
    }
}

static void gradients_agree(const char *name) {
    enum { MOST_ELEMENTS = 1500 }; /* larger rows say nothing new here */
    Device *device = test_device_needed(name, 1);
    for (size_t i = 0; i < COUNT(cases); i++) {
        if (cases[i].backward == NULL) continue;
        Trial t = trial_open(&cases[i], device, FP64);
        run_from(&t, NULL);
        for (int k = 0; k < MOST_SLOTS; k++) {
            bool differentiable = t.x[k].tensor.type == FP64 && !tensor_none(t.dx[k].tensor);
            if (differentiable && tensor_count(t.x[k].tensor) <= MOST_ELEMENTS) check_gradient(&t, k);
        }
        trial_close(&t);
    }
    device_close(device);
}

static void gradients_of_the_definitions_equal_finite_differences(void **state) {
    (void)state;
    gradients_agree("cpu:plain");
}

static void gradients_of_the_fast_kernels_equal_finite_differences(void **state) {
    (void)state;
    gradients_agree("cpu");
}

/* ---- (d) Threads ------------------------------------------------------------------------------ */

static void same_on_threads(const Case *row, Type real, Device *one, Device *several) {
    Trial expected = trial_open(row, one, real), got = trial_open(row, several, real);
    run_from(&expected, NULL);
    run_from(&got, NULL);
    for (int i = 0; i < MOST_SLOTS; i++) {
        if (!tensor_none(got.y[i].tensor))
            assert_same_bits(where(&got, "y", i).text, got.y[i].tensor, expected.y[i].tensor);
        if (!tensor_none(got.dx[i].tensor))
            assert_same_bits(where(&got, "dx", i).text, got.dx[i].tensor, expected.dx[i].tensor);
    }
    trial_close(&expected);
    trial_close(&got);
}

static void results_do_not_depend_on_the_number_of_threads(void **state) {
    (void)state;
    Device *one = test_device_needed("cpu", 1);
    for (int threads = 2; threads <= 3; threads++) {
        Device *several = test_device_needed("cpu", threads);
        for (size_t i = 0; i < COUNT(cases); i++) {
            for (size_t k = 0; k < COUNT(real_types); k++) same_on_threads(&cases[i], real_types[k], one, several);
        }
        device_close(several);
    }
    device_close(one);
}

/* ---- In place --------------------------------------------------------------------------------- */

typedef struct {
    Device *device;
    Stream *stream;
    Memory memory;
    uint64_t draws;
} Bench;

static Bench bench_open(const char *name) {
    Device *device = test_device_needed(name, 2);
    return (Bench){.device = device, .stream = &device->stream[STREAM_COMPUTE]};
}

static void bench_close(Bench *b) {
    stream_finish(b->stream);
    memory_check(&b->memory, b->device->name);
    memory_free(&b->memory);
    device_close(b->device);
}

static Tensor normal(Bench *b, Type type, int dims, const int64_t *dim) {
    Tensor t = memory_tensor(&b->memory, type, dims, dim);
    fill_normal(t, ++b->draws);
    return t;
}

static Tensor integers(Bench *b, Type type, const int64_t *values, int dims, const int64_t *dim) {
    Tensor t = memory_tensor(&b->memory, type, dims, dim);
    for (int64_t i = 0; i < tensor_count(t); i++) tensor_put(t, i, (double)values[i]);
    return t;
}

#define INTEGERS(...) ((const int64_t[]){__VA_ARGS__})

static void swiglu_in_place(Bench *b, Type real) {
    Tensor dy = normal(b, real, DIM(9, 33)), gate = normal(b, real, DIM(9, 33)), up = normal(b, real, DIM(9, 33));
    Tensor weight = normal(b, type_sum(real), DIM(9)), dweight = normal(b, type_sum(real), DIM(9));
    Tensor dgate = normal(b, real, DIM(9, 33)), dup = normal(b, real, DIM(9, 33)), again = memory_copy(&b->memory, dy);
    Tensor other = normal(b, real, DIM(9, 33)), dweight_again = normal(b, type_sum(real), DIM(9));
    swiglu_backward(b->stream, dgate, dup, dweight, dy, gate, up, weight);
    swiglu_backward(b->stream, again, other, dweight_again, again, gate, up, weight);
    stream_finish(b->stream);
    assert_same_bits("swiglu_backward, dgate is dy", again, dgate);
    assert_same_bits("swiglu_backward, dgate is dy: dup", other, dup);
    assert_same_bits("swiglu_backward, dgate is dy: dweight", dweight_again, dweight);
    swiglu_backward(b->stream, other, dy, dweight_again, dy, gate, up, weight);
    stream_finish(b->stream);
    assert_same_bits("swiglu_backward, dup is dy", dy, dup);
    assert_same_bits("swiglu_backward, dup is dy: dgate", other, dgate);
    swiglu(b->stream, other, gate, up, weight);
    swiglu(b->stream, gate, gate, up, weight);
    stream_finish(b->stream);
    assert_same_bits("swiglu, y is gate", gate, other);
}

static void rope_in_place(Bench *b, Type real) {
    Tensor x = normal(b, real, DIM(5, 3, 34)), y = normal(b, real, DIM(5, 3, 34)),
           table = normal(b, type_sum(real), DIM(5, 34));
    rope(b->stream, y, x, table, false);
    rope(b->stream, x, x, table, false);
    stream_finish(b->stream);
    assert_same_bits("rope in place", x, y);
}

static void add_in_place(Bench *b, Type real) {
    Tensor x = normal(b, real, DIM(777)), z = normal(b, real, DIM(777)), y = normal(b, real, DIM(777));
    Tensor left = memory_copy(&b->memory, x), right = memory_copy(&b->memory, z);
    add(b->stream, y, x, z);
    add(b->stream, left, left, z);
    add(b->stream, right, x, right);
    stream_finish(b->stream);
    assert_same_bits("add onto a", left, y);
    assert_same_bits("add onto b", right, y);
}

static void slots_in_place(Bench *b, Type real) {
    Tensor base = normal(b, real, DIM(3, 37)), rows = normal(b, real, DIM(6, 37)), y = normal(b, real, DIM(3, 37));
    Tensor place = integers(b, INT32, INTEGERS(5, 0, 2, 1, 4, 3), DIM(3, 2));
    sum_slots(b->stream, y, base, rows, place, (SlotRound){0, 1, 0});
    sum_slots(b->stream, base, base, rows, place, (SlotRound){0, 1, 0});
    stream_finish(b->stream);
    assert_same_bits("sum_slots onto base", base, y);
}

static void ranks_in_place(Bench *b, Type real) {
    Tensor x = normal(b, type_sum(real), DIM(3, 517)), y = normal(b, type_sum(real), DIM(517));
    sum_rows(b->stream, y, x);
    sum_rows(b->stream, tensor_view(tensor_rows(x, 0, 1), DIM(517)), x);
    stream_finish(b->stream);
    assert_same_bits("sum_rows onto the first row", tensor_view(tensor_rows(x, 0, 1), DIM(517)), y);
}

static void loss_in_place(Bench *b, Type real) {
    Type sum = type_sum(real);
    Tensor logits = normal(b, sum, DIM(3, 67)), dlogits = normal(b, sum, DIM(3, 67));
    Tensor target = integers(b, INT32, INTEGERS(66, -1, 0), DIM(3));
    Tensor trained = normal(b, FP64, DIM(1)), loss = normal(b, FP64, DIM(1)),
           loss_again = memory_copy(&b->memory, loss);
    cross_entropy(b->stream, loss, dlogits, logits, target, trained);
    cross_entropy(b->stream, loss_again, logits, logits, target, trained);
    stream_finish(b->stream);
    assert_same_bits("cross_entropy onto logits", logits, dlogits);
    assert_same_bits("cross_entropy onto logits: loss", loss_again, loss);
}

static void parts_of_a_loss_in_place(Bench *b, Type real) {
    Type sum = type_sum(real);
    Tensor x = normal(b, sum, DIM(2, 5, LOSS_STATS)), y = normal(b, sum, DIM(5, LOSS_STATS)),
           first = tensor_view(tensor_rows(x, 0, 1), DIM(5, LOSS_STATS));
    Tensor logits = normal(b, sum, DIM(5, 67)), dlogits = normal(b, sum, DIM(5, 67));
    Tensor target = integers(b, INT32, INTEGERS(66, -1, 0, 3, 90), DIM(5)), trained = normal(b, FP64, DIM(1));
    cross_entropy_join(b->stream, y, x);
    cross_entropy_join(b->stream, first, x);
    cross_entropy_gradient(b->stream, dlogits, logits, y, target, 3, trained);
    cross_entropy_gradient(b->stream, logits, logits, y, target, 3, trained);
    stream_finish(b->stream);
    assert_same_bits("cross_entropy_join onto the first part", first, y);
    assert_same_bits("cross_entropy_gradient onto logits", logits, dlogits);
}

static void results_may_take_the_place_of_their_inputs(void **state) {
    (void)state;
    static const char *const names[] = {"cpu:plain", "cpu"};
    for (size_t i = 0; i < COUNT(names); i++) {
        Bench b = bench_open(names[i]);
        for (size_t k = 0; k < COUNT(real_types); k++) {
            swiglu_in_place(&b, real_types[k]);
            rope_in_place(&b, real_types[k]);
            add_in_place(&b, real_types[k]);
            slots_in_place(&b, real_types[k]);
            ranks_in_place(&b, real_types[k]);
            loss_in_place(&b, real_types[k]);
            parts_of_a_loss_in_place(&b, real_types[k]);
        }
        bench_close(&b);
    }
}

/* ---- (e) Examples worked by hand -------------------------------------------------------------- */

static void assert_integers(const char *what, Tensor got, const int64_t *expected) {
    for (int64_t i = 0; i < tensor_count(got); i++) {
        if ((int64_t)tensor_get(got, i) != expected[i])
            fail_msg("%s: [%lld] is %g, expected %lld", what, (long long)i, tensor_get(got, i), (long long)expected[i]);
    }
}

static Tensor numbers(Bench *b, Type type, const double *values, int dims, const int64_t *dim) {
    Tensor t = memory_tensor(&b->memory, type, dims, dim);
    for (int64_t i = 0; i < tensor_count(t); i++) tensor_put(t, i, values[i]);
    return t;
}

#define NUMBERS(...) ((const double[]){__VA_ARGS__})

static void assert_numbers(Bench *b, const char *what, Tensor got, const double *expected) {
    stream_finish(b->stream);
    assert_close(what, got, numbers(b, got.type, expected, got.dims, got.dim), 1e-6, 0);
}

static void products_and_norms_worked_by_hand(Bench *b) {
    Tensor x = numbers(b, FP32, NUMBERS(1, 2, 3, 4), DIM(2, 2)),
           w = numbers(b, FP32, NUMBERS(1, 0, 5, -1, 1, 1), DIM(3, 2));
    Tensor y = normal(b, FP32, DIM(2, 3)), inverse = normal(b, FP32, DIM(1));
    linear(b->stream, y, x, w);
    assert_numbers(b, "linear", y, NUMBERS(1, 3, 3, 3, 11, 7));
    Tensor row = numbers(b, FP32, NUMBERS(3, 4), DIM(1, 2)), scale = numbers(b, FP32, NUMBERS(1, -2), DIM(2));
    Tensor normed = normal(b, FP32, DIM(1, 2));
    rms_norm(b->stream, normed, inverse, row, scale, 0.5);
    assert_numbers(b, "rms_norm", normed, NUMBERS(3 / sqrt(13), -8 / sqrt(13)));
    Tensor ones = numbers(b, FP32, NUMBERS(1, -1), DIM(1, 2)), weight = numbers(b, FP32, NUMBERS(0.5), DIM(1));
    Tensor gated = normal(b, FP32, DIM(1, 2));
    swiglu(b->stream, gated, ones, row, weight);
    assert_numbers(b, "swiglu", gated, NUMBERS(1.5 / (1 + exp(-1)), -2 / (1 + exp(1))));
}

static void sequences_worked_by_hand(Bench *b) {
    Tensor position = integers(b, INT32, INTEGERS(2), DIM(1)), table = normal(b, FP32, DIM(1, 4));
    rope_table(b->stream, table, position, 16);
    assert_numbers(b, "rope_table", table, NUMBERS(cos(2), cos(0.5), sin(2), sin(0.5)));
    Tensor x = numbers(b, FP32, NUMBERS(1, 0, 0, 1), DIM(1, 1, 4));
    rope(b->stream, x, x, table, false);
    assert_numbers(b, "rope", x, NUMBERS(cos(2), -sin(0.5), sin(2), cos(0.5)));

    /* equal keys: every visible value counts alike; the second document begins at row 2 */
    Tensor q = normal(b, FP32, DIM(4, 1, 2)), k = numbers(b, FP32, NUMBERS(0, 0, 0, 0, 0, 0, 0, 0), DIM(4, 1, 2));
    Tensor v = numbers(b, FP32, NUMBERS(1, 2, 3, 6, 5, 0, 9, 4), DIM(4, 1, 2)), out = normal(b, FP32, DIM(4, 1, 2));
    Tensor first = integers(b, INT32, INTEGERS(0, 0, 2, 2), DIM(4)),
           last = integers(b, INT32, INTEGERS(1, 2, 3, 4), DIM(4));
    Tensor lse = normal(b, FP32, DIM(1, 4));
    attention(b->stream, out, lse, q, k, v, first, last, (AttentionShape){.scale = 1, .pairs = 6});
    assert_numbers(b, "attention", out, NUMBERS(1, 2, 2, 4, 5, 0, 7, 2));
    assert_numbers(b, "attention, lse", lse, NUMBERS(0, log(2), 0, log(2)));

    /* one key with the weight 1, three with the weight 3, and a part that has seen nothing */
    Tensor part = numbers(b, FP32, NUMBERS(5, 10, 6, 8, 9, 9, 9, 9), DIM(4, 1, 2));
    Tensor part_lse = numbers(b, FP32, NUMBERS(log(3), log(2), -INFINITY, log(2)), DIM(1, 4));
    attention_merge(b->stream, out, lse, part, part_lse);
    assert_numbers(b, "attention_merge", out, NUMBERS(4, 8, 4, 6, 5, 0, 8, 5.5));
    assert_numbers(b, "attention_merge, lse", lse, NUMBERS(log(4), log(4), 0, log(4)));
    Tensor delta = normal(b, FP32, DIM(1, 4));
    attention_delta(b->stream, delta, part, out);
    assert_numbers(b, "attention_delta", delta, NUMBERS(100, 72, 45, 121.5));
}

/* A vocabulary of three, as two, one and none; targets 1, none, 2. */
static void parts_of_a_loss_worked_by_hand(Bench *b) {
    Tensor target = integers(b, INT32, INTEGERS(1, -1, 2), DIM(3)), trained = numbers(b, FP64, NUMBERS(2), DIM(1));
    Tensor left = numbers(b, FP32, NUMBERS(0, log(2), 7, 7, log(3), 0), DIM(3, 2)),
           right = numbers(b, FP32, NUMBERS(0, 7, log(4)), DIM(3, 1)), none = normal(b, FP32, DIM(3, 0));
    Tensor stats = normal(b, FP32, DIM(3, 3, LOSS_STATS)), all = normal(b, FP32, DIM(3, LOSS_STATS));
    const Tensor parts[] = {left, right, none};
    const int64_t first[] = {0, 2, 3};
    for (int p = 0; p < 3; p++)
        cross_entropy_part(b->stream, tensor_view(tensor_rows(stats, p, 1), DIM(3, LOSS_STATS)), parts[p], target,
                           first[p]);
    const double no = -INFINITY;
    assert_numbers(b, "cross_entropy_part", stats,
                   NUMBERS(log(2), 1.5, log(2), 7, 2, no, log(3), 4.0 / 3, no, /* */
                           0, 1, no, 7, 1, no, log(4), 1, log(4), no, 0, no, no, 0, no, no, 0, no));
    cross_entropy_join(b->stream, all, stats);
    assert_numbers(b, "cross_entropy_join", all, NUMBERS(log(2), 2, log(2), 7, 3, no, log(4), 2, log(4)));
    Tensor loss = numbers(b, FP64, NUMBERS(10), DIM(1));
    cross_entropy_sum(b->stream, loss, all, target);
    assert_numbers(b, "cross_entropy_sum", loss, NUMBERS(10 + log(2) + log(2)));
    for (int p = 0; p < 3; p++) cross_entropy_gradient(b->stream, parts[p], parts[p], all, target, first[p], trained);
    assert_numbers(b, "cross_entropy_gradient, left", left, NUMBERS(0.125, -0.25, 0, 0, 3.0 / 16, 1.0 / 16));
    assert_numbers(b, "cross_entropy_gradient, right", right, NUMBERS(0.125, 0, -0.25));
}

static void losses_worked_by_hand(Bench *b) {
    Tensor logits = numbers(b, FP32, NUMBERS(0, log(2), 0, 7, 7, 7), DIM(2, 3)), dlogits = normal(b, FP32, DIM(2, 3));
    Tensor target = integers(b, INT32, INTEGERS(1, -1), DIM(2)), trained = numbers(b, FP64, NUMBERS(2), DIM(1));
    Tensor loss = numbers(b, FP64, NUMBERS(10), DIM(1));
    cross_entropy(b->stream, loss, dlogits, logits, target, trained);
    assert_numbers(b, "cross_entropy", loss, NUMBERS(10 + log(2)));
    assert_numbers(b, "cross_entropy, dlogits", dlogits, NUMBERS(0.125, -0.25, 0.125, 0, 0, 0));

    Tensor p = normal(b, FP32, DIM(2, 3)), lse = normal(b, FP32, DIM(2)), weight = normal(b, FP32, DIM(2, 2));
    Tensor chosen = memory_tensor(&b->memory, INT32, DIM(2, 2));
    route(b->stream, p, chosen, weight, lse, logits, true, FP32);
    assert_numbers(b, "route, p", p, NUMBERS(0.25, 0.5, 0.25, 1.0 / 3, 1.0 / 3, 1.0 / 3));
    assert_numbers(b, "route, weight", weight, NUMBERS(2.0 / 3, 1.0 / 3, 0.5, 0.5));
    route(b->stream, p, chosen, weight, lse, logits, false, FP32);
    assert_numbers(b, "route, weight as it is", weight, NUMBERS(0.5, 0.25, 1.0 / 3, 1.0 / 3));

    Tensor sequence = integers(b, INT32, INTEGERS(0, -1), DIM(2)), rows = numbers(b, FP64, NUMBERS(1), DIM(1));
    Tensor counts = numbers(b, FP64, NUMBERS(0, 0, 0), DIM(1, 3)), mass = numbers(b, FP64, NUMBERS(0, 0, 0), DIM(1, 3));
    Tensor z = numbers(b, FP64, NUMBERS(1), DIM(1));
    route_statistics(b->stream, counts, mass, z, p, chosen, lse, sequence);
    assert_numbers(b, "counts", counts, NUMBERS(1, 1, 0));
    assert_numbers(b, "mass", mass, NUMBERS(0.25, 0.5, 0.25));
    assert_numbers(b, "z", z, NUMBERS(1 + log(4) * log(4)));
    balance_loss(b->stream, loss, counts, mass, rows);
    assert_numbers(b, "balance_loss", loss, NUMBERS(10 + log(2) + 3 * 0.75));
}

static void updates_worked_by_hand(Bench *b) {
    Tensor w = numbers(b, FP32, NUMBERS(2), DIM(1)), m = numbers(b, FP32, NUMBERS(1), DIM(1));
    Tensor v = numbers(b, FP32, NUMBERS(4), DIM(1)), gradient = numbers(b, FP32, NUMBERS(6), DIM(1));
    AdamW h = {.learning_rate = 0.1,
               .beta1 = 0.75,
               .beta2 = 0.5,
               .epsilon = 1,
               .weight_decay = 0.5,
               .correction1 = 0.5,
               .correction2 = 0.25,
               .clip = 0.5};
    adamw(b->stream, w, NONE, m, v, gradient, h);
    assert_numbers(b, "adamw, m", m, NUMBERS(1.5));
    assert_numbers(b, "adamw, v", v, NUMBERS(6.5));
    assert_numbers(b, "adamw, w", w, NUMBERS(1.9 - 0.2 * 1.5 / (sqrt(6.5) / 0.5 + 1)));
    Tensor sum = normal(b, FP64, DIM(1));
    square_sum(b->stream, sum, numbers(b, FP32, NUMBERS(3, -4, 12), DIM(3)));
    assert_numbers(b, "square_sum", sum, NUMBERS(169));

    static const int64_t beyond_double = (INT64_C(1) << 53) + 1;
    Tensor large = integers(b, INT64, INTEGERS(0, 0), DIM(2, 1)), total = integers(b, INT64, INTEGERS(0), DIM(1));
    ((int64_t *)large.data)[0] = beyond_double;
    sum_rows(b->stream, total, large);
    stream_finish(b->stream);
    assert_int_equal(*(int64_t *)total.data, beyond_double);
    zero(b->stream, large);
    zero(b->stream, w);
    assert_numbers(b, "zero", w, NUMBERS(0));
    assert_numbers(b, "zero of integers", large, NUMBERS(0, 0));
}

static void results_equal_those_worked_by_hand(void **state) {
    (void)state;
    static const char *const names[] = {"cpu:plain", "cpu"};
    for (size_t i = 0; i < COUNT(names); i++) {
        Bench b = bench_open(names[i]);
        products_and_norms_worked_by_hand(&b);
        sequences_worked_by_hand(&b);
        losses_worked_by_hand(&b);
        parts_of_a_loss_worked_by_hand(&b);
        updates_worked_by_hand(&b);
        bench_close(&b);
    }
}

static void equal_logits_choose_the_lower_expert(void **state) {
    (void)state;
    static const char *const names[] = {"cpu:plain", "cpu"};
    static const double given[4][5] = {{1, 2, 2, 2, 1}, {0, 0, 0, 0, 0}, {3, -1, 3, 4, 4}, {2, 2, 2, 5, 2}};
    for (size_t i = 0; i < COUNT(names); i++) {
        for (size_t k = 0; k < COUNT(real_types); k++) {
            Bench b = bench_open(names[i]);
            Type real = real_types[k], sum = type_sum(real);
            Tensor logits = normal(&b, real, DIM(4, 5)), p = normal(&b, sum, DIM(4, 5)), lse = normal(&b, sum, DIM(4));
            Tensor weight = normal(&b, sum, DIM(4, 3)), chosen = memory_tensor(&b.memory, INT32, DIM(4, 3));
            for (int64_t e = 0; e < 20; e++) tensor_put(logits, e, given[e / 5][e % 5]);
            route(b.stream, p, chosen, weight, lse, logits, true, real);
            stream_finish(b.stream);
            assert_integers("chosen", chosen, INTEGERS(1, 2, 3, 0, 1, 2, 3, 4, 0, 3, 0, 1));
            for (int64_t j = 3; j < 6; j++) assert_true(fabs(tensor_get(weight, j) - 1.0 / 3) < 2e-3);
            bench_close(&b);
        }
    }
}

static void a_logit_that_is_not_a_number_still_chooses_different_experts(void **state) {
    (void)state;
    static const char *const names[] = {"cpu:plain", "cpu"};
    for (size_t i = 0; i < COUNT(names); i++) {
        Bench b = bench_open(names[i]);
        enum { E = 19, K = 6 };
        Tensor logits = normal(&b, FP32, DIM(E, E)), p = normal(&b, FP32, DIM(E, E)), lse = normal(&b, FP32, DIM(E));
        Tensor weight = normal(&b, FP32, DIM(E, K)), chosen = memory_tensor(&b.memory, INT32, DIM(E, K));
        for (int64_t t = 0; t < E; t++) {
            for (int64_t e = 0; e < t; e++) tensor_put(logits, t * E + (e * 7 + t) % E, NAN);
        }
        route(b.stream, p, chosen, weight, lse, logits, true, FP32);
        stream_finish(b.stream);
        for (int64_t t = 0; t < E; t++) {
            uint32_t seen = 0;
            for (int64_t j = 0; j < K; j++) {
                int64_t e = (int64_t)tensor_get(chosen, t * K + j);
                assert_true(e >= 0 && e < E && !(seen >> e & 1));
                seen |= 1u << e;
            }
            if (t > 0) assert_true(isnan(tensor_get(lse, t)));
        }
        bench_close(&b);
    }
}

static void slots_are_sorted_by_round_and_expert_and_stay_in_order_within_one(void **state) {
    (void)state;
    Bench b = bench_open("cpu");
    Tensor chosen = integers(&b, INT32, INTEGERS(2, 0, 3, 2, 0, 3), DIM(3, 2));
    Tensor order = memory_tensor(&b.memory, INT32, DIM(6)), place = memory_tensor(&b.memory, INT32, DIM(3, 2));
    Tensor counts = memory_tensor(&b.memory, INT64, DIM(1, 5)), of_rounds = memory_tensor(&b.memory, INT64, DIM(2, 5));
    route_order(b.stream, order, place, counts, chosen);
    stream_finish(b.stream);
    assert_integers("counts", counts, INTEGERS(2, 0, 2, 2, 0));
    assert_integers("order", order, INTEGERS(1, 4, 0, 3, 2, 5));
    assert_integers("place", place, INTEGERS(2, 0, 4, 3, 1, 5));
    route_order(b.stream, order, place, of_rounds, chosen); /* tokens 0 and 2, then token 1 */
    stream_finish(b.stream);
    assert_integers("counts of rounds", of_rounds, INTEGERS(2, 0, 1, 1, 0, 0, 0, 1, 1, 0));
    assert_integers("order by rounds", order, INTEGERS(1, 4, 0, 5, 3, 2));
    assert_integers("place by rounds", place, INTEGERS(2, 0, 5, 4, 1, 3));
    bench_close(&b);
}

/* The rounds together are one sum over all slots, to the bit, and each leaves the others' tokens alone. */
static void rounds_of_slots_sum_to_the_same_bits_as_one(void **state) {
    (void)state;
    static const char *const devices[] = {"cpu", "cpu:plain"};
    enum { LINES = 41, CHOICES = 3, BREADTH = 19, KINDS = 7, PARTS = 4 };
    for (size_t d = 0; d < COUNT(devices); d++) {
        Bench b = bench_open(devices[d]);
        Tensor chosen = memory_tensor(&b.memory, INT32, DIM(LINES, CHOICES));
        for (int64_t i = 0; i < LINES * CHOICES; i++) tensor_put(chosen, i, (double)(i * 5 % KINDS));
        Tensor order = memory_tensor(&b.memory, INT32, DIM(LINES * CHOICES)),
               place = memory_tensor(&b.memory, INT32, DIM(LINES, CHOICES)),
               counts = memory_tensor(&b.memory, INT64, DIM(PARTS, KINDS));
        Tensor base = normal(&b, BF16, DIM(LINES, BREADTH)), rows = normal(&b, BF16, DIM(LINES * CHOICES, BREADTH));
        Tensor whole = normal(&b, BF16, DIM(LINES, BREADTH)), parts = normal(&b, BF16, DIM(LINES, BREADTH));
        route_order(b.stream, order, place, counts, chosen);
        sum_slots(b.stream, whole, base, rows, place, (SlotRound){0, 1, 0});
        for (int64_t r = 0, first = 0; r < PARTS; r++) {
            int64_t tokens = (LINES - r + PARTS - 1) / PARTS;
            Tensor before = memory_copy(&b.memory, parts);
            sum_slots(b.stream, parts, base, tensor_rows(rows, first, tokens * CHOICES), place,
                      (SlotRound){r, PARTS, first});
            stream_finish(b.stream);
            for (int64_t t = 0; t < LINES; t++)
                if (t % PARTS != r)
                    assert_same_bits("a token of another round", tensor_rows(parts, t, 1), tensor_rows(before, t, 1));
            first += tokens * CHOICES;
        }
        assert_same_bits("rounds", parts, whole);
        bench_close(&b);
    }
}

static void experts_without_rows_get_no_gradient(void **state) {
    (void)state;
    Bench b = bench_open("cpu");
    static const int64_t rows[] = {2, 0, 3};
    Tensor x = normal(&b, FP32, DIM(5, 4)), dy = normal(&b, FP32, DIM(5, 6)), dw = normal(&b, FP32, DIM(3, 6, 4));
    Tensor before = memory_copy(&b.memory, dw);
    experts_linear_dw(b.stream, dw, dy, x, rows);
    stream_finish(b.stream);
    assert_same_bits("dw of the expert without rows", tensor_rows(dw, 1, 1), tensor_rows(before, 1, 1));
    bench_close(&b);
}

/* One product of every direction, and the same for a part of its rows and columns alone. */
static void parts_equal_the_whole(Bench *b, Type real) {
    enum { M = 301, N = 389, K = 523, TOP = 100, HEIGHT = 55, LEFT = 131, WIDTH = 27 };
    Type sum = type_sum(real);
    Tensor x = normal(b, real, DIM(M, K)), w = normal(b, real, DIM(N, K)), dy = normal(b, real, DIM(M, N));
    Tensor y = normal(b, real, DIM(M, N)), dx = normal(b, sum, DIM(M, K)),
           dw = memory_tensor(&b->memory, sum, DIM(N, K));
    Tensor y_part = normal(b, real, DIM(HEIGHT, WIDTH)), dx_part = normal(b, sum, DIM(HEIGHT, K));
    Tensor dw_part = memory_tensor(&b->memory, sum, DIM(WIDTH, K)), columns = normal(b, real, DIM(M, WIDTH));
    zero(b->stream, dw);
    zero(b->stream, dw_part);
    copy_columns(b->stream, columns, 0, dy, LEFT, WIDTH, false);
    linear(b->stream, y, x, w);
    linear(b->stream, y_part, tensor_rows(x, TOP, HEIGHT), tensor_rows(w, LEFT, WIDTH));
    linear_dx(b->stream, dx, dy, w, false);
    linear_dx(b->stream, dx_part, tensor_rows(dy, TOP, HEIGHT), w, false);
    linear_dw(b->stream, dw, dy, x);
    linear_dw(b->stream, dw_part, columns, x);
    Tensor y_rows = normal(b, real, DIM(HEIGHT, WIDTH));
    copy_columns(b->stream, y_rows, 0, tensor_rows(y, TOP, HEIGHT), LEFT, WIDTH, false);
    stream_finish(b->stream);
    assert_same_bits("linear", y_part, y_rows);
    assert_same_bits("linear_dx", dx_part, tensor_rows(dx, TOP, HEIGHT));
    assert_same_bits("linear_dw", dw_part, tensor_rows(dw, LEFT, WIDTH));
}

static void an_element_of_a_product_does_not_depend_on_its_place(void **state) {
    (void)state;
    static const char *const names[] = {"cpu:avx512bf16", "cpu:avx512", "cpu:avx2", "cpu:portable"};
    for (size_t i = 0; i < COUNT(names); i++) {
        Device *there = test_device(names[i], 1);
        if (there == NULL) continue;
        device_close(there);
        Bench b = bench_open(names[i]);
        for (size_t k = 0; k < COUNT(real_types); k++) parts_equal_the_whole(&b, real_types[k]);
        bench_close(&b);
    }
}

static void not_a_number_and_infinity_show_in_square_sums(void **state) {
    (void)state;
    Bench b = bench_open("cpu");
    for (int64_t at = 0; at < 5000; at += 1249) {
        Tensor x = normal(&b, FP32, DIM(5000)), out = normal(&b, FP64, DIM(1));
        tensor_put(x, at, INFINITY);
        square_sum(b.stream, out, x);
        stream_finish(b.stream);
        assert_true(isinf(tensor_get(out, 0)));
        tensor_put(x, at, NAN);
        square_sum(b.stream, out, x);
        stream_finish(b.stream);
        assert_true(isnan(tensor_get(out, 0)));
    }
    bench_close(&b);
}

/* A logit that is not a number must reach the loss, whatever part it lies in; a part of -infinities alone is as good
 * as none. */
static void not_a_number_shows_in_a_joined_loss_and_infinity_does_not(void **state) {
    (void)state;
    static const char *const names[] = {"cpu:plain", "cpu"};
    static const double bad[] = {NAN, -INFINITY};
    for (size_t i = 0; i < COUNT(names); i++)
        for (size_t k = 0; k < COUNT(bad); k++) {
            Bench b = bench_open(names[i]);
            Tensor part[] = {normal(&b, FP32, DIM(1, 3)), normal(&b, FP32, DIM(1, 3))};
            Tensor stats = normal(&b, FP32, DIM(2, 1, LOSS_STATS)), loss = normal(&b, FP64, DIM(1));
            fill_value(part[1], bad[k]);
            for (int p = 0; p < 2; p++)
                cross_entropy_part(b.stream, tensor_view(tensor_rows(stats, p, 1), DIM(1, LOSS_STATS)), part[p],
                                   integers(&b, INT32, INTEGERS(1), DIM(1)), 3 * p);
            Tensor all = tensor_view(tensor_rows(stats, 0, 1), DIM(1, LOSS_STATS));
            cross_entropy_join(b.stream, all, stats);
            cross_entropy_sum(b.stream, loss, all, integers(&b, INT32, INTEGERS(1), DIM(1)));
            stream_finish(b.stream);
            assert_true(isnan(tensor_get(loss, 0)) == isnan(bad[k]));
            bench_close(&b);
        }
}

static void no_trained_tokens_give_no_gradient(void **state) {
    (void)state;
    Bench b = bench_open("cpu");
    Tensor logits = normal(&b, FP32, DIM(2, 5)), dlogits = normal(&b, FP32, DIM(2, 5));
    Tensor loss = normal(&b, FP64, DIM(1)), before = memory_copy(&b.memory, loss), trained = normal(&b, FP64, DIM(1));
    fill_value(trained, 0);
    cross_entropy(b.stream, loss, dlogits, logits, integers(&b, INT32, INTEGERS(-1, -1), DIM(2)), trained);
    stream_finish(b.stream);
    assert_same_bits("loss", loss, before);
    for (int64_t i = 0; i < 10; i++) assert_true(tensor_get(dlogits, i) == 0);
    cross_entropy(b.stream, loss, dlogits, logits, integers(&b, INT32, INTEGERS(1, 2), DIM(2)), trained);
    stream_finish(b.stream);
    for (int64_t i = 0; i < 10; i++) assert_true(tensor_get(dlogits, i) == 0);
    fill_value(dlogits, 1);
    Tensor stats = normal(&b, FP32, DIM(2, LOSS_STATS));
    cross_entropy_gradient(b.stream, dlogits, logits, stats, integers(&b, INT32, INTEGERS(1, 2), DIM(2)), 0, trained);
    stream_finish(b.stream);
    for (int64_t i = 0; i < 10; i++) assert_true(tensor_get(dlogits, i) == 0);
    bench_close(&b);
}

/* What lies outside a row's interval may be anything. */
static void attention_ignores_what_a_token_may_not_see(void **state) {
    (void)state;
    Bench b = bench_open("cpu");
    enum { T = 41, DOCUMENT = 17, WINDOW = 5 };
    Tensor q = normal(&b, FP32, DIM(T, 2, 8)), k = normal(&b, FP32, DIM(T, 1, 8)), v = normal(&b, FP32, DIM(T, 1, 8));
    Tensor first = memory_tensor(&b.memory, INT32, DIM(T)), last = memory_tensor(&b.memory, INT32, DIM(T));
    Tensor out = normal(&b, FP32, DIM(T, 2, 8)), again = normal(&b, FP32, DIM(T, 2, 8)),
           lse = normal(&b, FP32, DIM(2, T));
    for (int64_t t = 0; t < T; t++) {
        tensor_put(first, t, (double)max64(t < DOCUMENT ? 0 : DOCUMENT, t + 1 - WINDOW));
        tensor_put(last, t, (double)(t + 1));
    }
    AttentionShape shape = {.scale = 0.5};
    attention(b.stream, out, lse, q, k, v, first, last, shape);
    stream_finish(b.stream);
    for (int64_t t = 0; t < T; t++) {
        bool seen_by_29 = t > 29 - WINDOW && t <= 29;
        for (int64_t i = 0; i < 8 && !seen_by_29; i++) {
            tensor_put(k, t * 8 + i, 1e4 * tensor_get(k, t * 8 + i));
            tensor_put(v, t * 8 + i, 1e30);
        }
    }
    attention(b.stream, again, lse, q, k, v, first, last, shape);
    stream_finish(b.stream);
    assert_close("out of token 29", tensor_rows(again, 29, 1), tensor_rows(out, 29, 1), 1e-5, 0);
    bench_close(&b);
}

/* ---- Keys in blocks --------------------------------------------------------------------------- */

enum { QUERIES = 131, KEYS = 173, HEADS = 4, KV_HEADS = 2, HEAD = 16 };
static const AttentionShape block_shape = {.scale = 0.25};

/* One attention: its inputs, and results in the sum type. */
typedef struct {
    Tensor q, k, v, dout, first, last, keys;
    Tensor out, lse, delta, dq, dk, dv;
} Attended;

static void count_keys(Attended *a) {
    for (int64_t t = 0; t < QUERIES; t++) tensor_put(a->keys, t, tensor_get(a->last, t) - tensor_get(a->first, t));
}

static Attended attended_new(Bench *b, Type real) {
    Type sum = type_sum(real);
    Attended a = {.q = normal(b, real, DIM(QUERIES, HEADS, HEAD)),
                  .k = normal(b, real, DIM(KEYS, KV_HEADS, HEAD)),
                  .v = normal(b, real, DIM(KEYS, KV_HEADS, HEAD)),
                  .dout = normal(b, real, DIM(QUERIES, HEADS, HEAD)),
                  .first = memory_tensor(&b->memory, INT32, DIM(QUERIES)),
                  .last = memory_tensor(&b->memory, INT32, DIM(QUERIES)),
                  .keys = memory_tensor(&b->memory, INT32, DIM(QUERIES)),
                  .out = normal(b, sum, DIM(QUERIES, HEADS, HEAD)),
                  .lse = normal(b, sum, DIM(HEADS, QUERIES)),
                  .delta = normal(b, sum, DIM(HEADS, QUERIES)),
                  .dq = normal(b, sum, DIM(QUERIES, HEADS, HEAD)),
                  .dk = normal(b, sum, DIM(KEYS, KV_HEADS, HEAD)),
                  .dv = normal(b, sum, DIM(KEYS, KV_HEADS, HEAD))};
    fill_integers(a.first, 1, 0, KEYS);
    fill_integers(a.last, 2, 0, KEYS);
    fill_sight(a.first, a.last, KEYS);
    count_keys(&a);
    return a;
}

/* What of an interval lies in keys at .. at + count - 1, counted from there. */
static void clip_sight(Tensor to, Tensor from, int64_t at, int64_t count) {
    for (int64_t t = 0; t < QUERIES; t++)
        tensor_put(to, t, (double)min64(max64((int64_t)tensor_get(from, t) - at, 0), count));
}

/* The same through blocks of keys, in this order. */
static void attend_in_blocks(Bench *b, const Attended *whole, Attended *a, const int64_t *cut, const int *order,
                             int blocks) {
    Tensor part = normal(b, a->out.type, DIM(QUERIES, HEADS, HEAD)), lse = normal(b, a->lse.type, DIM(HEADS, QUERIES));
    Tensor first = memory_tensor(&b->memory, INT32, DIM(QUERIES)),
           last = memory_tensor(&b->memory, INT32, DIM(QUERIES));
    Tensor wide = tensor_view(a->dq, DIM(QUERIES, HEADS * HEAD));
    fill_value(a->lse, -INFINITY);
    for (int i = 0; i < blocks; i++) {
        int64_t at = cut[order[i]], count = cut[order[i] + 1] - at;
        clip_sight(first, whole->first, at, count);
        clip_sight(last, whole->last, at, count);
        attention(b->stream, part, lse, whole->q, tensor_rows(whole->k, at, count), tensor_rows(whole->v, at, count),
                  first, last, block_shape);
        attention_merge(b->stream, a->out, a->lse, part, lse);
    }
    attention_delta(b->stream, a->delta, whole->dout, a->out);
    zero(b->stream, a->dq);
    for (int i = 0; i < blocks; i++) {
        int64_t at = cut[order[i]], count = cut[order[i] + 1] - at;
        clip_sight(first, whole->first, at, count);
        clip_sight(last, whole->last, at, count);
        attention_backward(b->stream, part, tensor_rows(a->dk, at, count), tensor_rows(a->dv, at, count), a->delta,
                           whole->dout, a->lse, whole->q, tensor_rows(whole->k, at, count),
                           tensor_rows(whole->v, at, count), first, last, whole->keys, block_shape);
        copy_columns(b->stream, wide, 0, tensor_view(part, DIM(QUERIES, HEADS * HEAD)), 0, HEADS * HEAD, true);
        stream_finish(b->stream);
    }
}

static void blocks_equal_the_whole(Bench *b, Type real) {
    static const int64_t cut[] = {0, 1, 50, 50, 120, KEYS};
    static const int order[] = {3, 0, 4, 2, 1};
    const double bound = real == FP64 ? 1e-14 : 1e-5;
    Attended a = attended_new(b, real), whole = a, blocks = attended_new(b, real);
    attention(b->stream, a.out, a.lse, a.q, a.k, a.v, a.first, a.last, block_shape);
    attention_delta(b->stream, a.delta, a.dout, a.out);
    attention_backward(b->stream, a.dq, a.dk, a.dv, a.delta, a.dout, a.lse, a.q, a.k, a.v, a.first, a.last, a.keys,
                       block_shape);
    stream_finish(b->stream);
    attend_in_blocks(b, &whole, &blocks, cut, order, COUNT(order));
    assert_close("out of blocks", blocks.out, a.out, bound, 0);
    assert_close("lse of blocks", blocks.lse, a.lse, bound, 1);
    assert_close("delta of blocks", blocks.delta, a.delta, bound, 0);
    assert_close("dq of blocks", blocks.dq, a.dq, bound, 0);
    assert_close("dk of blocks", blocks.dk, a.dk, bound, 0);
    assert_close("dv of blocks", blocks.dv, a.dv, bound, 0);
}

static void keys_in_blocks_give_what_they_give_in_one(void **state) {
    (void)state;
    static const char *const names[] = {"cpu:plain", "cpu", "cpu:avx512", "cpu:avx2", "cpu:portable"};
    for (size_t i = 0; i < COUNT(names); i++) {
        Device *there = test_device(names[i], 1);
        if (there == NULL) continue;
        device_close(there);
        Bench b = bench_open(names[i]);
        for (size_t k = 0; k < COUNT(real_types); k++) blocks_equal_the_whole(&b, real_types[k]);
        bench_close(&b);
    }
}

static void assert_all_zero(const char *what, Tensor t) {
    for (int64_t i = 0; i < tensor_count(t); i++) {
        if (tensor_get(t, i) != 0) fail_msg("%s: [%lld] is %g, not 0", what, (long long)i, tensor_get(t, i));
    }
}

/* Their outputs and gradients are 0 to the bit, whatever stands next to them. */
static void rows_that_see_nothing_and_keys_that_nobody_sees_are_zero(void **state) {
    (void)state;
    static const char *const names[] = {"cpu:plain", "cpu"};
    for (size_t i = 0; i < COUNT(names); i++) {
        Bench b = bench_open(names[i]);
        for (size_t k = 0; k < COUNT(real_types); k++) {
            Attended a = attended_new(&b, real_types[k]);
            attention(b.stream, a.out, a.lse, a.q, a.k, a.v, a.first, a.last, block_shape);
            attention_delta(b.stream, a.delta, a.dout, a.out);
            attention_backward(b.stream, a.dq, a.dk, a.dv, a.delta, a.dout, a.lse, a.q, a.k, a.v, a.first, a.last,
                               a.keys, block_shape);
            stream_finish(b.stream);
            bool seen[KEYS] = {0};
            int64_t blind = 0, unseen = 0;
            for (int64_t t = 0; t < QUERIES; t++) {
                int64_t first = (int64_t)tensor_get(a.first, t), last = (int64_t)tensor_get(a.last, t);
                for (int64_t j = first; j < last; j++) seen[j] = true;
                if (first < last) continue;
                blind++;
                assert_all_zero("out", tensor_rows(a.out, t, 1));
                assert_all_zero("dq", tensor_rows(a.dq, t, 1));
                for (int64_t h = 0; h < HEADS; h++) assert_true(tensor_get(a.lse, h * QUERIES + t) == -INFINITY);
            }
            for (int64_t j = 0; j < KEYS; j++) {
                if (seen[j]) continue;
                unseen++;
                assert_all_zero("dk", tensor_rows(a.dk, j, 1));
                assert_all_zero("dv", tensor_rows(a.dv, j, 1));
            }
            assert_true(blind > QUERIES / 16 && unseen > 2); /* or this shows nothing */
        }
        bench_close(&b);
    }
}

/* dv of one query is dout times its weights. Those below the normal numbers may be 0. */
static void weights_of_any_size_are_those_of_the_definition(void **state) {
    (void)state;
    static const char *const names[] = {"cpu:plain", "cpu", "cpu:avx2", "cpu:portable"};
    static const Type types[] = {FP32, FP64};
    enum { SCORES = 12 };
    for (size_t i = 0; i < COUNT(names) * COUNT(types); i++) {
        Device *there = test_device(names[i / 2], 1);
        if (there == NULL) continue;
        device_close(there);
        Type type = types[i % 2];
        Bench b = bench_open(names[i / 2]);
        Tensor one = numbers(&b, type, NUMBERS(1), DIM(1, 1, 1)), out = normal(&b, type, DIM(1, 1, 1));
        Tensor k = numbers(&b, type, NUMBERS(-3, 0, -1e30, -1, -20.5, -86, -87.6, -88.3, -95, -706, -710, -1e4),
                           DIM(SCORES, 1, 1));
        Tensor v = normal(&b, type, DIM(SCORES, 1, 1)), dk = normal(&b, type, DIM(SCORES, 1, 1));
        Tensor dv = normal(&b, type, DIM(SCORES, 1, 1)), dq = normal(&b, type, DIM(1, 1, 1));
        Tensor lse = normal(&b, type, DIM(1, 1)), delta = normal(&b, type, DIM(1, 1));
        Tensor first = memory_tensor(&b.memory, INT32, DIM(1)), last = memory_tensor(&b.memory, INT32, DIM(1));
        fill_value(first, 0);
        fill_value(last, SCORES);
        AttentionShape shape = {.scale = 1};
        attention(b.stream, out, lse, one, k, v, first, last, shape);
        attention_delta(b.stream, delta, one, out);
        attention_backward(b.stream, dq, dk, dv, delta, one, lse, one, k, v, first, last, last, shape);
        stream_finish(b.stream);
        for (int64_t j = 0; j < SCORES; j++) {
            double expected = exp(tensor_get(k, j) - tensor_get(lse, 0)), got = tensor_get(dv, j);
            double least = type == FP32 ? 0x1p-126 : 0x1p-1022;
            if (!(fabs(got - expected) <= 1e-5 * expected + least))
                fail_msg("%s, %s: score %g weighs %g, not %g", names[i / 2], type_name(type), tensor_get(k, j), got,
                         expected);
            if (tensor_get(k, j) < -1000) assert_true(got == 0);
        }
        bench_close(&b);
    }
}

static void a_row_that_is_not_a_number_stays_so_when_merged(void **state) {
    (void)state;
    static const char *const names[] = {"cpu:plain", "cpu"};
    for (size_t i = 0; i < COUNT(names); i++) {
        Bench b = bench_open(names[i]);
        Tensor out = normal(&b, FP32, DIM(2, 1, 5)), part = normal(&b, FP32, DIM(2, 1, 5));
        Tensor lse = numbers(&b, FP32, NUMBERS(NAN, 1), DIM(1, 2)),
               part_lse = numbers(&b, FP32, NUMBERS(1, NAN), DIM(1, 2));
        attention_merge(b.stream, out, lse, part, part_lse);
        stream_finish(b.stream);
        for (int64_t k = 0; k < 10; k++) assert_true(isnan(tensor_get(out, k)));
        for (int64_t k = 0; k < 2; k++) assert_true(isnan(tensor_get(lse, k)));
        bench_close(&b);
    }
}

/* ---- (f) The 16+16 split ---------------------------------------------------------------------- */

static uint32_t bits_of(Tensor t, int64_t i) {
    return ((const uint32_t *)t.data)[i];
}

static void a_bf16_weight_and_its_low_halves_step_like_the_fp32_master(void **state) {
    (void)state;
    enum { N = 4099, STEPS = 5 };
    Bench b = bench_open("cpu");
    Tensor master = normal(&b, FP32, DIM(N)), gradient = normal(&b, FP32, DIM(N));
    Tensor high = memory_tensor(&b.memory, BF16, DIM(N)), low = memory_tensor(&b.memory, BYTE, DIM(2 * N));
    Tensor m = normal(&b, FP32, DIM(N)), v = normal(&b, FP32, DIM(N));
    fill_value(m, 0);
    fill_value(v, 0);
    Tensor m_split = memory_copy(&b.memory, m), v_split = memory_copy(&b.memory, v);
    for (int64_t i = 0; i < N; i++) {
        uint16_t half = (uint16_t)bits_of(master, i);
        tensor_put(high, i, tensor_get(master, i));
        memcpy((char *)low.data + 2 * i, &half, sizeof half);
    }
    for (int step = 1; step <= STEPS; step++) {
        AdamW h = adamw_settings;
        h.correction1 = 1 - pow(h.beta1, step);
        h.correction2 = 1 - pow(h.beta2, step);
        adamw(b.stream, master, NONE, m, v, gradient, h);
        adamw(b.stream, high, low, m_split, v_split, gradient, h);
        stream_finish(b.stream);
        for (int64_t i = 0; i < N; i++) {
            int16_t half;
            memcpy(&half, (const char *)low.data + 2 * i, sizeof half);
            uint32_t joined = ((uint32_t)((const uint16_t *)high.data)[i] << 16) + (uint32_t)(int32_t)half;
            assert_int_equal(joined, bits_of(master, i));
        }
        assert_same_bits("m", m_split, m);
        assert_same_bits("v", v_split, v);
        fill_normal(gradient, (uint64_t)(100 + step));
    }
    bench_close(&b);
}

/* ---- Empty tensors ---------------------------------------------------------------------------- */

static void empty_tensors_may_share_an_address(void **state) {
    (void)state;
    Bench b = bench_open("cpu");
    Tensor e = normal(&b, BF16, DIM(0, 4)), weight = normal(&b, FP32, DIM(0)), loss = normal(&b, FP64, DIM(1));
    Tensor logits = tensor_at(e.data, FP32, DIM(0, 4)), target = tensor_at(e.data, INT32, DIM(0));
    swiglu_backward(b.stream, e, e, weight, e, e, e, weight);
    cross_entropy(b.stream, loss, e, logits, target, loss);
    square_sum(b.stream, loss, e);
    stream_finish(b.stream);
    assert_true(tensor_get(loss, 0) == 0); /* the one that has something to write */
    bench_close(&b);
}

/* ---- Charges ---------------------------------------------------------------------------------- */

static OpCount charged(Bench *b, Op op) {
    stream_finish(b->stream);
    OpCount count = b->device->meter.op[op];
    meter_clear(b->device);
    return count;
}

static void assert_charged(OpCount count, int64_t flops, int64_t bytes) {
    assert_int_equal(count.calls, 1);
    assert_int_equal(count.flops, flops);
    assert_int_equal(count.bytes, bytes);
}

static void doors_charge_what_the_formulas_say(void **state) {
    (void)state;
    Bench b = bench_open("cpu");
    enum { M = 6, N = 5, K = 7 };
    Tensor x = normal(&b, FP32, DIM(M, K)), w = normal(&b, FP32, DIM(N, K)), out = normal(&b, FP32, DIM(M, N));
    meter_clear(b.device);
    linear(b.stream, out, x, w);
    assert_charged(charged(&b, OP_LINEAR), 2 * M * N * K, 4 * (M * K + N * K + M * N));
    linear_dx(b.stream, x, out, w, false);
    assert_charged(charged(&b, OP_LINEAR_DX), 2 * M * N * K, 4 * (M * K + N * K + M * N));
    linear_dw(b.stream, w, out, x); /* dw is read and written */
    assert_charged(charged(&b, OP_LINEAR_DW), 2 * M * N * K, 4 * (M * K + 2 * N * K + M * N));

    static const int64_t rows[] = {2, 0, 4};
    Tensor experts = normal(&b, FP32, DIM(3, N, K)); /* two of three have rows */
    experts_linear(b.stream, out, x, experts, rows);
    assert_charged(charged(&b, OP_EXPERTS_LINEAR), 2 * M * N * K, 4 * (M * K + 2 * N * K + M * N));

    Tensor none = normal(&b, FP32, DIM(0, K)), nothing = normal(&b, FP32, DIM(0, N));
    linear(b.stream, nothing, none, w);
    assert_charged(charged(&b, OP_LINEAR), 0, 0);

    AttentionShape shape = {.scale = 1, .pairs = 21};
    Tensor q = normal(&b, FP32, DIM(M, 4, 8)), k = normal(&b, FP32, DIM(M, 2, 8)), v = normal(&b, FP32, DIM(M, 2, 8));
    Tensor lse = normal(&b, FP32, DIM(4, M)), delta = normal(&b, FP32, DIM(4, M)),
           attended = normal(&b, FP32, DIM(M, 4, 8));
    Tensor first = integers(&b, INT32, INTEGERS(0, 0, 0, 0, 0, 0), DIM(M)),
           last = integers(&b, INT32, INTEGERS(1, 2, 3, 4, 5, 6), DIM(M));
    attention(b.stream, attended, lse, q, k, v, first, last, shape);
    assert_charged(charged(&b, OP_ATTENTION), 4 * 8 * 4 * 21, 4 * (M * (32 + 16 + 16 + 32) + 4 * M + 2 * M));
    attention_merge(b.stream, attended, lse, q, delta); /* out and lse are read and written */
    assert_charged(charged(&b, OP_ATTENTION_MERGE), 3 * M * 32, 4 * 3 * (M * 32 + M * 4));
    attention_delta(b.stream, delta, q, attended);
    assert_charged(charged(&b, OP_ATTENTION_DELTA), 2 * M * 32, 4 * (2 * M * 32 + M * 4));
    Tensor dq = normal(&b, FP32, DIM(M, 4, 8)), dk = normal(&b, FP32, DIM(M, 2, 8)),
           dv = normal(&b, FP32, DIM(M, 2, 8));
    attention_backward(b.stream, dq, dk, dv, delta, attended, lse, q, k, v, first, last, last, shape);
    assert_charged(charged(&b, OP_ATTENTION_BACKWARD), 10 * 8 * 4 * 21, 4 * (3 * M * 32 + 4 * M * 16 + 8 * M + 3 * M));
    Tensor target = integers(&b, INT32, INTEGERS(0, 1, 2, 3, 4, -1), DIM(M)), trained = normal(&b, FP64, DIM(1));
    Tensor stats = normal(&b, FP32, DIM(M, LOSS_STATS)), parts = normal(&b, FP32, DIM(2, M, LOSS_STATS));
    cross_entropy_part(b.stream, stats, out, target, 0);
    assert_charged(charged(&b, OP_CROSS_ENTROPY_PART), 3 * M * N, 4 * (3 * M + M * N + M));
    cross_entropy_join(b.stream, stats, parts);
    assert_charged(charged(&b, OP_CROSS_ENTROPY_JOIN), 4 * 2 * M, 4 * 3 * 3 * M);
    cross_entropy_sum(b.stream, trained, stats, target); /* the loss is read and written */
    assert_charged(charged(&b, OP_CROSS_ENTROPY_SUM), 4 * M, 4 * 4 * M + 2 * 8);
    cross_entropy_gradient(b.stream, out, out, stats, target, 0, trained);
    assert_charged(charged(&b, OP_CROSS_ENTROPY_GRADIENT), 4 * M * N, 4 * (2 * M * N + 4 * M) + 8);
    copy_columns(b.stream, x, 4, out, 1, 3, false);
    assert_charged(charged(&b, OP_COPY_COLUMNS), 0, 4 * 2 * M * 3);
    copy_columns(b.stream, x, 4, out, 1, 3, true);
    assert_charged(charged(&b, OP_COPY_COLUMNS), M * 3, 4 * 3 * M * 3);
    bench_close(&b);
}

static void every_op_has_a_name_of_its_own(void **state) {
    (void)state;
    for (int i = 0; i < OP_COUNT; i++) {
        for (int k = 0; k < i; k++) assert_string_not_equal(op_name((Op)i), op_name((Op)k));
        assert_non_null(kernels_plain.run[0][i]);
        assert_non_null(kernels_plain.run[1][i]);
    }
}

/* ---- Refusals --------------------------------------------------------------------------------- */

static void mismatched_product(void *context) {
    Bench *b = context;
    linear(b->stream, normal(b, FP32, DIM(2, 3)), normal(b, FP32, DIM(2, 4)), normal(b, FP32, DIM(3, 5)));
}

static void mistyped_product(void *context) {
    Bench *b = context;
    linear(b->stream, normal(b, FP32, DIM(2, 3)), normal(b, FP32, DIM(2, 4)), normal(b, FP64, DIM(3, 4)));
}

static void miscounted_experts(void *context) {
    Bench *b = context;
    static const int64_t rows[] = {1, 2};
    experts_linear(b->stream, normal(b, FP32, DIM(2, 3)), normal(b, FP32, DIM(2, 4)), normal(b, FP32, DIM(2, 3, 4)),
                   rows);
}

static void bf16_without_low_halves(void *context) {
    Bench *b = context;
    Tensor m = normal(b, FP32, DIM(4));
    adamw(b->stream, normal(b, BF16, DIM(4)), NONE, m, m, m, adamw_settings);
}

static void columns_beyond_the_row(void *context) {
    Bench *b = context;
    copy_columns(b->stream, normal(b, FP32, DIM(2, 4)), 1, normal(b, FP32, DIM(2, 9)), 5, 4, false);
}

static void added_to_less_than_sums(void *context) {
    Bench *b = context;
    copy_columns(b->stream, normal(b, BF16, DIM(2, 4)), 0, normal(b, FP32, DIM(2, 4)), 0, 4, true);
}

static void falling_interval(void *context) {
    Bench *b = context;
    Tensor q = normal(b, FP32, DIM(2, 1, 4)), k = normal(b, FP32, DIM(3, 1, 4)), lse = normal(b, FP32, DIM(1, 2));
    Tensor first = integers(b, INT32, INTEGERS(0, 0), DIM(2)), last = integers(b, INT32, INTEGERS(3, 2), DIM(2));
    attention(b->stream, normal(b, FP32, DIM(2, 1, 4)), lse, q, k, k, first, last, (AttentionShape){.scale = 1});
    stream_finish(b->stream);
}

static void merged_halves(void *context) {
    Bench *b = context;
    Tensor out = normal(b, BF16, DIM(2, 1, 4)), lse = normal(b, FP32, DIM(1, 2));
    attention_merge(b->stream, out, lse, out, lse);
}

static void doors_refuse_wrong_shapes_and_types(void **state) {
    (void)state;
    static void (*const wrong[])(void *) = {mismatched_product,      mistyped_product,       miscounted_experts,
                                            bf16_without_low_halves, columns_beyond_the_row, added_to_less_than_sums,
                                            falling_interval,        merged_halves};
    static const char *const names[] = {"cpu:plain", "cpu"};
    for (size_t k = 0; k < COUNT(names); k++) {
        Bench b = bench_open(names[k]);
        for (size_t i = 0; i < COUNT(wrong); i++) assert_true(aborts(wrong[i], &b));
        bench_close(&b);
    }
}

/* ---- All -------------------------------------------------------------------------------------- */

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cpu_agrees_with_the_definitions),
        cmocka_unit_test(avx512bf16_agrees_with_the_definitions),
        cmocka_unit_test(avx512_agrees_with_the_definitions),
        cmocka_unit_test(avx2_agrees_with_the_definitions),
        cmocka_unit_test(portable_agrees_with_the_definitions),
        cmocka_unit_test(gradients_of_the_definitions_equal_finite_differences),
        cmocka_unit_test(gradients_of_the_fast_kernels_equal_finite_differences),
        cmocka_unit_test(results_do_not_depend_on_the_number_of_threads),
        cmocka_unit_test(results_may_take_the_place_of_their_inputs),
        cmocka_unit_test(results_equal_those_worked_by_hand),
        cmocka_unit_test(equal_logits_choose_the_lower_expert),
        cmocka_unit_test(a_logit_that_is_not_a_number_still_chooses_different_experts),
        cmocka_unit_test(slots_are_sorted_by_round_and_expert_and_stay_in_order_within_one),
        cmocka_unit_test(rounds_of_slots_sum_to_the_same_bits_as_one),
        cmocka_unit_test(experts_without_rows_get_no_gradient),
        cmocka_unit_test(an_element_of_a_product_does_not_depend_on_its_place),
        cmocka_unit_test(not_a_number_and_infinity_show_in_square_sums),
        cmocka_unit_test(not_a_number_shows_in_a_joined_loss_and_infinity_does_not),
        cmocka_unit_test(no_trained_tokens_give_no_gradient),
        cmocka_unit_test(attention_ignores_what_a_token_may_not_see),
        cmocka_unit_test(keys_in_blocks_give_what_they_give_in_one),
        cmocka_unit_test(rows_that_see_nothing_and_keys_that_nobody_sees_are_zero),
        cmocka_unit_test(weights_of_any_size_are_those_of_the_definition),
        cmocka_unit_test(a_row_that_is_not_a_number_stays_so_when_merged),
        cmocka_unit_test(a_bf16_weight_and_its_low_halves_step_like_the_fp32_master),
        cmocka_unit_test(empty_tensors_may_share_an_address),
        cmocka_unit_test(doors_charge_what_the_formulas_say),
        cmocka_unit_test(every_op_has_a_name_of_its_own),
        cmocka_unit_test(doors_refuse_wrong_shapes_and_types),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
