/* What mop's own ops reach on this processor: the three products of a linear, attention forward and backward, and the
 * elementwise ops of a layer, each in the types that runs use. Small: the example's width, which is what sim predicts
 * with; large: to be held against the peak. */
#include "ops/kernels.h"
#include "plan/doctor_parts.h"

#include <string.h>

enum { TOKENS = 2048, SMALL = 256, LARGE = 1024, DOCUMENT = 256, HEADS = 4, HEAD = 64, MAX_TENSORS = 13 };

typedef struct {
    Stream *stream;
    Arena *arena;
    Type real, sum;
    Tensor t[MAX_TENSORS];
} Work;

/* Numbers in [-1, 1), none of them 0. */
static Tensor random_tensor(Work *w, Type type, int dims, const int64_t *dim) {
    Tensor t = arena_tensor(w->arena, type, dims, dim);
    uint32_t state = 1;
    for (int64_t i = 0; i < tensor_count(t); i++) {
        state = state * 1664525u + 1013904223u;
        tensor_put(t, i, ((double)(state >> 8) + 0.5) / (1 << 23) - 1);
    }
    return t;
}

enum { Y, X, W, DX, DW };

static void linear_once(void *context) {
    Work *w = context;
    linear(w->stream, w->t[Y], w->t[X], w->t[W]);
    linear_dx(w->stream, w->t[DX], w->t[Y], w->t[W], false);
    linear_dw(w->stream, w->t[DW], w->t[Y], w->t[X]);
    event_wait(event_record(w->stream));
}

static void prepare_linear(Work *w, int64_t width) {
    w->t[Y] = random_tensor(w, w->real, DIM(TOKENS, width));
    w->t[X] = random_tensor(w, w->real, DIM(TOKENS, width));
    w->t[W] = random_tensor(w, w->real, DIM(width, width));
    w->t[DX] = random_tensor(w, w->real, DIM(TOKENS, width));
    w->t[DW] = random_tensor(w, w->sum, DIM(width, width));
}

static void prepare_small(Work *w) {
    prepare_linear(w, SMALL);
}

static void prepare_large(Work *w) {
    prepare_linear(w, LARGE);
}

enum { OUT, Q, K, V, DQ, DK, DV, DOUT, LSE, DELTA, FIRST, LAST, KEYS };

static void prepare_attention(Work *w) {
    for (int i = OUT; i <= DOUT; i++) w->t[i] = random_tensor(w, w->real, DIM(TOKENS, HEADS, HEAD));
    for (int i = LSE; i <= DELTA; i++) w->t[i] = random_tensor(w, w->sum, DIM(HEADS, TOKENS));
    for (int i = FIRST; i <= KEYS; i++) w->t[i] = arena_tensor(w->arena, INT32, DIM(TOKENS));
    for (int64_t i = 0; i < TOKENS; i++) {
        tensor_put(w->t[FIRST], i, (double)(i / DOCUMENT * DOCUMENT));
        tensor_put(w->t[LAST], i, (double)(i + 1));
        tensor_put(w->t[KEYS], i, (double)(i % DOCUMENT + 1));
    }
}

static void attention_once(void *context) {
    Work *w = context;
    Tensor *t = w->t;
    AttentionShape shape = {.scale = 0.125, .pairs = (int64_t)(TOKENS / DOCUMENT) * DOCUMENT * (DOCUMENT + 1) / 2};
    attention(w->stream, t[OUT], t[LSE], t[Q], t[K], t[V], t[FIRST], t[LAST], shape);
    attention_delta(w->stream, t[DELTA], t[DOUT], t[OUT]);
    attention_backward(w->stream, t[DQ], t[DK], t[DV], t[DELTA], t[DOUT], t[LSE], t[Q], t[K], t[V], t[FIRST], t[LAST],
                       t[KEYS], shape);
    event_wait(event_record(w->stream));
}

enum { GATE, UP, DGATE, DUP, ROWS_X, ROWS_Y, WEIGHT, DWEIGHT, INVERSE, SCALE, DSCALE, TABLE };

static void prepare_elementwise(Work *w) {
    for (int i = GATE; i <= ROWS_Y; i++) w->t[i] = random_tensor(w, w->real, DIM(TOKENS, SMALL));
    for (int i = WEIGHT; i <= INVERSE; i++) w->t[i] = random_tensor(w, w->sum, DIM(TOKENS));
    w->t[SCALE] = random_tensor(w, w->real, DIM(SMALL));
    w->t[DSCALE] = random_tensor(w, w->sum, DIM(SMALL));
    w->t[TABLE] = random_tensor(w, w->sum, DIM(TOKENS, HEAD));
}

/* Once each, as in a layer. */
static void elementwise_once(void *context) {
    Work *w = context;
    Tensor *t = w->t, heads = tensor_at(t[ROWS_Y].data, w->real, DIM(TOKENS, HEADS, HEAD));
    swiglu(w->stream, t[ROWS_Y], t[GATE], t[UP], t[WEIGHT]);
    swiglu_backward(w->stream, t[DGATE], t[DUP], t[DWEIGHT], t[ROWS_X], t[GATE], t[UP], t[WEIGHT]);
    rms_norm(w->stream, t[ROWS_Y], t[INVERSE], t[ROWS_X], t[SCALE], 1e-5);
    rms_norm_backward(w->stream, t[DGATE], t[DSCALE], t[DUP], t[ROWS_X], t[SCALE], t[INVERSE], false);
    rope(w->stream, heads, heads, t[TABLE], false);
    event_wait(event_record(w->stream));
}

/* The all-thread rates of a machine are these; others are looked at only. */
static const double SECONDS_LOOK = 0.25, SECONDS_MACHINE = 0.9;

static const struct {
    const char *what;
    bool machine;
    void (*prepare)(Work *w);
    void (*once)(void *context);
} cases[] = {
    {"matrix", true, prepare_small, linear_once},
    {"matrix_large", false, prepare_large, linear_once},
    {"attention", true, prepare_attention, attention_once},
    {"elementwise", true, prepare_elementwise, elementwise_once},
};

/* The work is what the ops themselves charge. */
static double flops_of(Work *w, void (*once)(void *context)) {
    Meter *m = &w->stream->device->meter;
    double flops = 0;
    meter_clear(w->stream->device);
    once(w);
    for (int op = 0; op < OP_COUNT; op++) flops += (double)m->op[op].flops;
    return flops;
}

static void measure(Report *r, Work *w, int threads, bool all) {
    for (size_t i = 0; i < COUNT(cases); i++) {
        char key[KEY_BYTES];
        Mark mark = arena_mark(w->arena);
        cases[i].prepare(w);
        snprintf(key, sizeof key, "%s_%s_%d_thread%s_flop_per_s", cases[i].what, type_name(w->real), threads,
                 threads > 1 ? "s" : "");
        report_rate_over(r, all && cases[i].machine ? SECONDS_MACHINE : SECONDS_LOOK, key, flops_of(w, cases[i].once),
                         cases[i].once, w);
        arena_reset(w->arena, mark);
    }
}

void doctor_products(Report *r, const Host *h, int threads, Error *e) {
    static const Type types[RATE_TYPES] = {FP32, BF16, FP64};
    Device *d = device_open("cpu", threads, kernels_for("cpu", e), e);
    Arena arena = {0};
    if (!d) return;
    if (arena_open(&arena, d, "doctor", TIER_DEVICE, (size_t)256 << 20, e)) {
        printf("\nproducts as runs make them, %d thread%s (linear forward and backward, %d tokens, width %d or %d; "
               "attention, %d tokens, head size %d; SwiGLU, norms and rotary positions, width %d)\n",
               threads, threads > 1 ? "s" : "", TOKENS, SMALL, LARGE, DOCUMENT, HEAD, SMALL);
        for (size_t i = 0; i < COUNT(types); i++) {
            Work w = {
                .stream = &d->stream[STREAM_COMPUTE], .arena = &arena, .real = types[i], .sum = type_sum(types[i])};
            measure(r, &w, threads, threads == h->threads);
        }
        arena_close(&arena);
    }
    device_close(d);
}
