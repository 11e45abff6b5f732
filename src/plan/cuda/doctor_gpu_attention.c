/* What cuDNN reaches in causal attention, forward and backward, in bf16 with four query heads to a KV head: short to
 * long sequences of as many tokens. First a small case is held against the CPU's definition of the ops. */
#include "ops/cuda/attention_graph.h"
#include "ops/kernels.h"
#include "plan/cuda/doctor_gpu_parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS = 65536, HEADS = 32, KV_HEADS = 8, SCRATCH_ALIGNMENT = 256 };

static const int64_t lengths[] = {4096, 16384, 65536};
static const int64_t head_sizes[] = {64, 128};

typedef struct {
    Gpu *gpu;
    GraphShape shape;
    Tensor t[GRAPH_TENSORS];
    Tensor scratch;
    GraphPlan forward, backward;
} Work;

/* ---- Tensors and plans -------------------------------------------------------------------------------- */

static Tensor heads_of(Work *w, int64_t heads) {
    return gpu_random(w->gpu, BF16, DIM(w->shape.batch * w->shape.length, heads, w->shape.head_size));
}

static double bytes_of(GraphShape s, double scratch) {
    double rows = (double)(s.batch * s.length), q = rows * (double)(s.heads * s.head_size),
           kv = rows * (double)(s.kv_heads * s.head_size);
    return 4 * 2 * q + 4 * 2 * kv + 4 * q + 2 * 4 * rows * (double)s.heads + scratch + 8192;
}

static void make_tensors(Work *w) {
    GraphShape s = w->shape;
    static const GraphTensor queries[] = {GRAPH_Q, GRAPH_OUT, GRAPH_DOUT, GRAPH_DQ},
                             keys[] = {GRAPH_K, GRAPH_V, GRAPH_DK, GRAPH_DV};
    for (size_t i = 0; i < COUNT(queries); i++) w->t[queries[i]] = heads_of(w, s.heads);
    for (size_t i = 0; i < COUNT(keys); i++) w->t[keys[i]] = heads_of(w, s.kv_heads);
    w->t[GRAPH_LSE] = gpu_random(w->gpu, FP32, DIM(s.batch, s.heads, s.length));
    w->t[GRAPH_DELTA] = gpu_random(w->gpu, FP32, DIM(s.batch, s.heads, s.length));
    w->t[GRAPH_DQ_SUM] = gpu_random(w->gpu, FP32, DIM(s.batch, s.heads, s.length, s.head_size));
}

/* False: there is no way, or no room, or the GPU has failed; the reason is noted. */
static bool make_plans(Work *w, const char *what) {
    Gpu *g = w->gpu;
    CudaDevice *c = g->device->cuda;
    Error none = {0};
    GraphShape s = w->shape;
    if (!gpu_may(g, what, 0)) return false;
    bool ok = graph_plan(&w->forward, &c->dnn, g->device, c->dnn_handle, NULL, s, &none);
    s.backward = true;
    ok = ok && graph_plan(&w->backward, &c->dnn, g->device, c->dnn_handle, NULL, s, &none);
    if (!ok) {
        report_note(g->report, "%s was left out: %s", what, none.text);
        return false;
    }
    int64_t scratch = max64(64, max64(w->forward.workspace_bytes, w->backward.workspace_bytes));
    if (!gpu_may(g, what, bytes_of(s, (double)scratch))) return false;
    make_tensors(w);
    Tensor room = arena_tensor(&g->memory, BYTE, DIM(scratch + SCRATCH_ALIGNMENT));
    w->scratch = tensor_rows(room, (int64_t)(-(uintptr_t)room.data % SCRATCH_ALIGNMENT), scratch);
    void *data[GRAPH_TENSORS];
    for (int i = 0; i < GRAPH_TENSORS; i++) data[i] = w->t[i].data;
    return graph_bind(&w->forward, data, w->scratch.data, &g->error) &&
           graph_bind(&w->backward, data, w->scratch.data, &g->error);
}

static void close_plans(Work *w) {
    event_wait(event_record(w->gpu->compute));
    graph_close(&w->forward);
    graph_close(&w->backward);
}

static void run(Work *w, const GraphPlan *p) {
    Error e = {0};
    if (!graph_run(p, w->gpu->device->cuda->dnn_handle, &e)) device_fail(w->gpu->device, &e);
}

static void forward_once(void *context) {
    Work *w = context;
    run(w, &w->forward);
}

static void backward_once(void *context) {
    Work *w = context;
    run(w, &w->backward);
}

/* ---- Against the definition ----------------------------------------------------------------------------- */

enum { CHECK_LENGTH = 256, CHECK_HEADS = 8, CHECK_KV = 2 };

/* The same tensors on the CPU: of one sequence the layouts are equal. */
typedef struct {
    Device *device;
    Arena arena;
    Tensor t[GRAPH_TENSORS], first, last;
} Mirror;

static bool mirror_open(Mirror *m, Work *w) {
    Error *e = &w->gpu->error;
    *m = (Mirror){.device = device_open("cpu:plain", 1, &kernels_plain, e)};
    if (!m->device || !arena_open(&m->arena, m->device, "check", TIER_DEVICE, (size_t)32 << 20, e)) return false;
    for (int i = GRAPH_Q; i < GRAPH_DQ_SUM; i++) {
        Tensor like = w->t[i];
        bool sum = i == GRAPH_LSE || i == GRAPH_DELTA;
        m->t[i] = sum ? arena_tensor(&m->arena, FP32, DIM(CHECK_HEADS, CHECK_LENGTH))
                      : arena_tensor(&m->arena, BF16, like.dims, like.dim);
        device_read(w->gpu->compute, m->t[i].data, like, READ_LOSS);
    }
    m->first = arena_tensor(&m->arena, INT32, DIM(CHECK_LENGTH));
    m->last = arena_tensor(&m->arena, INT32, DIM(CHECK_LENGTH));
    for (int64_t i = 0; i < CHECK_LENGTH; i++) {
        tensor_put(m->first, i, 0);
        tensor_put(m->last, i, (double)i + 1);
    }
    return true;
}

static void mirror_close(Mirror *m) {
    arena_close(&m->arena);
    device_close(m->device);
}

static void mirror_run(Mirror *m, int64_t head_size) {
    Stream *s = &m->device->stream[STREAM_COMPUTE];
    Tensor *t = m->t;
    AttentionShape shape = {.scale = 1 / sqrt((double)head_size), .pairs = CHECK_LENGTH * (CHECK_LENGTH + 1) / 2};
    attention(s, t[GRAPH_OUT], t[GRAPH_LSE], t[GRAPH_Q], t[GRAPH_K], t[GRAPH_V], m->first, m->last, shape);
    attention_delta(s, t[GRAPH_DELTA], t[GRAPH_DOUT], t[GRAPH_OUT]);
    /* first is 0, so that last counts the keys of a row too */
    attention_backward(s, t[GRAPH_DQ], t[GRAPH_DK], t[GRAPH_DV], t[GRAPH_DELTA], t[GRAPH_DOUT], t[GRAPH_LSE],
                       t[GRAPH_Q], t[GRAPH_K], t[GRAPH_V], m->first, m->last, m->last, shape);
    event_wait(event_record(s));
}

/* The largest difference over the root mean square. */
static double difference(Gpu *g, Tensor expected, Tensor got) {
    Tensor host = expected;
    double squares = 0, most = 0;
    host.data = malloc(tensor_bytes(expected));
    MUST(host.data);
    device_read(g->compute, host.data, got, READ_LOSS);
    for (int64_t i = 0; i < tensor_count(expected); i++) {
        double x = tensor_get(expected, i), far = fabs(tensor_get(host, i) - x);
        squares += x * x;
        most = far <= most ? most : far; /* a NaN counts, too */
    }
    free(host.data);
    return most / sqrt(squares / (double)tensor_count(expected));
}

static bool check(Gpu *g, int64_t head_size) {
    static const struct {
        GraphTensor tensor;
        const char *name;
    } results[] = {{GRAPH_OUT, "out"}, {GRAPH_LSE, "lse"}, {GRAPH_DQ, "dq"}, {GRAPH_DK, "dk"}, {GRAPH_DV, "dv"}};
    static const double bound = 0.05; /* bf16 has 8 bits, and sums of p and ds are made of numbers rounded to it */
    Mark mark = arena_mark(&g->memory);
    Work w = {
        .gpu = g,
        .shape = {
            .batch = 1, .heads = CHECK_HEADS, .kv_heads = CHECK_KV, .length = CHECK_LENGTH, .head_size = head_size}};
    Mirror m = {0};
    bool ok = make_plans(&w, "checking attention") && mirror_open(&m, &w);
    if (ok) {
        mirror_run(&m, head_size);
        forward_once(&w);
        backward_once(&w);
    }
    for (size_t i = 0; ok && i < COUNT(results) && !gpu_failed(g); i++) {
        double far = difference(g, m.t[results[i].tensor], w.t[results[i].tensor]);
        if (!(far <= bound))
            report_broken(g->report,
                          "attention by cuDNN, head size %lld: %s differs from the definition by %.2g (allowed %.2g)",
                          (long long)head_size, results[i].name, far, bound);
    }
    mirror_close(&m);
    close_plans(&w);
    arena_reset(&g->memory, mark);
    return !gpu_failed(g);
}

/* ---- Figures ------------------------------------------------------------------------------------------- */

/* Visible pairs: 4 FLOPs for each and each element of a head forward, 10 backward. */
static double flops_of(GraphShape s, double each) {
    double pairs = (double)s.length * ((double)s.length + 1) / 2;
    return each * (double)(s.batch * s.heads * s.head_size) * pairs;
}

static bool measure(Gpu *g, int64_t length, int64_t head_size) {
    Mark mark = arena_mark(&g->memory);
    char forward[KEY_BYTES], backward[KEY_BYTES];
    Work w = {
        .gpu = g,
        .shape = {
            .batch = TOKENS / length, .heads = HEADS, .kv_heads = KV_HEADS, .length = length, .head_size = head_size}};
    snprintf(forward, sizeof forward, "gpu_attention_d%lld_%lldK_flop_per_s", (long long)head_size,
             (long long)length / 1024);
    snprintf(backward, sizeof backward, "gpu_attention_backward_d%lld_%lldK_flop_per_s", (long long)head_size,
             (long long)length / 1024);
    if (make_plans(&w, forward) && gpu_rate(g, forward, flops_of(w.shape, 4), forward_once, &w) &&
        gpu_rate(g, backward, flops_of(w.shape, 10), backward_once, &w)) {
        gpu_check_finite(g, forward, w.t[GRAPH_OUT]);
        gpu_check_finite(g, backward, w.t[GRAPH_DQ]);
        gpu_check_finite(g, backward, w.t[GRAPH_DK]);
    }
    close_plans(&w);
    arena_reset(&g->memory, mark);
    return !gpu_failed(g);
}

bool doctor_gpu_attention(Gpu *g) {
    Error missing = {0};
    CudaDevice *c = g->device->cuda;
    if (!gpu_cudnn(g->device, &missing)) {
        report_note(g->report, "no attention was measured on the GPU: %s", missing.text);
        return true;
    }
    printf("\nattention on the GPU (cuDNN, bf16, causal; %d tokens, %d heads, %d KV heads; d: head size, K: 1024 "
           "tokens a sequence)\n",
           TOKENS, HEADS, KV_HEADS);
    if (!CUDNN(&c->dnn, g->device, &g->error, "opening cuDNN",
               c->dnn.cudnnSetStream(c->dnn_handle, gpu_stream(g->compute))))
        return false;
    for (size_t i = 0; i < COUNT(head_sizes); i++)
        if (!check(g, head_sizes[i])) return false;
    for (size_t i = 0; i < COUNT(head_sizes); i++)
        for (size_t j = 0; j < COUNT(lengths); j++)
            if (!measure(g, lengths[j], head_sizes[i])) return false;
    return true;
}
