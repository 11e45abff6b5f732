/* Attention as the composite graph that cuDNN recognises and fuses (its single attention node has no causal mask in
 * 9.19):
 *
 *   forward    s = scale q k^T;  s = row >= column ? s : -inf;  m = max s;  e = exp(s - m);  z = sum e
 *              lse = m + log z;  out = (e / z) v
 *   backward   delta = sum dout out;  p = exp(masked(scale q k^T - lse));  dv = sum_group p^T dout
 *              ds = scale p (dout v^T - delta);  dk = sum_group ds^T q;  dq = ds k
 *
 * Which intermediates have which type, and the order of the nodes, are part of what is recognised. Letters: b batch,
 * h heads, g KV heads, s length, d head size; cuDNN sees all tensors as [b, h, s, *] with strides. */
#include "ops/cuda/attention_graph.h"

#include <math.h>
#include <string.h>

typedef cudnnBackendDescriptor_t Descriptor;

enum { MAX_OPERATIONS = 32, MAX_CONFIGURATIONS = 8, RANK = 4, SCALE = GRAPH_TENSORS, NEGATIVE, ONE, UNNAMED };

/* What is under construction. After the first failure nothing more is asked of cuDNN. */
typedef struct {
    GraphPlan *plan;
    Descriptor operation[MAX_OPERATIONS];
    int operations;
    int64_t name; /* of the next unnamed tensor */
    Error *error;
} Builder;

static bool ok(Builder *b, cudnnStatus_t status, const char *call) {
    const GraphPlan *p = b->plan;
    return cudnn_check(p->cudnn, p->device, status,
                       p->shape.backward ? "planning attention_backward" : "planning attention", call, b->error);
}

/* ---- Descriptors --------------------------------------------------------------------------------- */

static bool failed(const Builder *b) {
    return b->error->code != EXIT_DONE;
}

static Descriptor make(Builder *b, cudnnBackendDescriptorType_t type) {
    GraphPlan *p = b->plan;
    Descriptor d = NULL;
    MUST(p->descriptors < GRAPH_DESCRIPTORS);
    if (!failed(b) && ok(b, p->cudnn->cudnnBackendCreateDescriptor(type, &d), "cudnnBackendCreateDescriptor"))
        p->made[p->descriptors++] = d;
    return d;
}

static void set(Builder *b, Descriptor d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                int64_t count, const void *value) {
    if (!failed(b))
        ok(b, b->plan->cudnn->cudnnBackendSetAttribute(d, name, type, count, value), "cudnnBackendSetAttribute");
}

static void set_descriptor(Builder *b, Descriptor d, cudnnBackendAttributeName_t name, Descriptor value) {
    set(b, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

static void finish(Builder *b, Descriptor d) {
    if (!failed(b)) ok(b, b->plan->cudnn->cudnnBackendFinalize(d), "cudnnBackendFinalize");
}

/* ---- Tensors ------------------------------------------------------------------------------------- */

typedef struct {
    int64_t dim[RANK], stride[RANK];
} Layout;

static Descriptor tensor(Builder *b, int64_t name, cudnnDataType_t type, Layout l, bool virtual, bool by_value) {
    static const int64_t alignment = 16;
    Descriptor d = make(b, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    set(b, d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &name);
    set(b, d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    set(b, d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, RANK, l.dim);
    set(b, d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, RANK, l.stride);
    set(b, d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    set(b, d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &virtual);
    set(b, d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &by_value);
    finish(b, d);
    return d;
}

/* [b, h, s, d] of memory [b, s, h, d], and the same with the last two exchanged. */
static Layout rows_of(GraphShape s, int64_t heads) {
    return (Layout){{s.batch, heads, s.length, s.head_size},
                    {s.length * heads * s.head_size, s.head_size, heads * s.head_size, 1}};
}

static Layout transposed(Layout l) {
    int64_t dim = l.dim[2], stride = l.stride[2];
    l.dim[2] = l.dim[3], l.stride[2] = l.stride[3];
    l.dim[3] = dim, l.stride[3] = stride;
    return l;
}

static Layout packed(int64_t batch, int64_t heads, int64_t rows, int64_t columns) {
    return (Layout){{batch, heads, rows, columns}, {heads * rows * columns, rows * columns, columns, 1}};
}

static Descriptor named(Builder *b, GraphTensor name, Layout l) {
    return tensor(b, name, CUDNN_DATA_BFLOAT16, l, false, false);
}

static Descriptor named_float(Builder *b, GraphTensor name, Layout l) {
    return tensor(b, name, CUDNN_DATA_FLOAT, l, false, false);
}

static Descriptor unnamed(Builder *b, cudnnDataType_t type, Layout l) {
    return tensor(b, b->name++, type, l, true, false);
}

static Descriptor scalar(Builder *b, int64_t name) {
    return tensor(b, name, CUDNN_DATA_FLOAT, packed(1, 1, 1, 1), false, true);
}

/* Scores [b, h, s, s] and one number for every row of them [b, h, s, 1]. */
static Layout square(const Builder *b) {
    GraphShape s = b->plan->shape;
    return packed(s.batch, s.heads, s.length, s.length);
}

static Layout column(const Builder *b) {
    GraphShape s = b->plan->shape;
    return packed(s.batch, s.heads, s.length, 1);
}

static Descriptor scores(Builder *b, cudnnDataType_t type) {
    return unnamed(b, type, square(b));
}

/* ---- Operations ---------------------------------------------------------------------------------- */

static void add_operation(Builder *b, Descriptor d) {
    MUST(b->operations < MAX_OPERATIONS);
    finish(b, d);
    b->operation[b->operations++] = d;
}

typedef struct {
    cudnnPointwiseMode_t mode;
    cudnnDataType_t computed_in;
    int64_t axis; /* of an index; else -1 */
} Pointwise;

/* y = mode(x, other, choice); absent ones are NULL. Returns y. */
static Descriptor pointwise(Builder *b, Pointwise how, Descriptor y, Descriptor x, Descriptor other,
                            Descriptor choice) {
    Descriptor p = make(b, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    set(b, p, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &how.mode);
    set(b, p, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &how.computed_in);
    if (how.axis >= 0) set(b, p, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &how.axis);
    finish(b, p);
    Descriptor o = make(b, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    set_descriptor(b, o, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, p);
    set_descriptor(b, o, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    if (other) set_descriptor(b, o, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, other);
    if (choice) set_descriptor(b, o, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, choice);
    set_descriptor(b, o, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    add_operation(b, o);
    return y;
}

static Descriptor in_float(Builder *b, cudnnPointwiseMode_t mode, Descriptor y, Descriptor x, Descriptor other) {
    return pointwise(b, (Pointwise){mode, CUDNN_DATA_FLOAT, -1}, y, x, other, NULL);
}

static Descriptor product(Builder *b, Descriptor y, Descriptor left, Descriptor right) {
    static const cudnnDataType_t type = CUDNN_DATA_FLOAT;
    Descriptor p = make(b, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    set(b, p, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    finish(b, p);
    Descriptor o = make(b, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    set_descriptor(b, o, CUDNN_ATTR_OPERATION_MATMUL_DESC, p);
    set_descriptor(b, o, CUDNN_ATTR_OPERATION_MATMUL_ADESC, left);
    set_descriptor(b, o, CUDNN_ATTR_OPERATION_MATMUL_BDESC, right);
    set_descriptor(b, o, CUDNN_ATTR_OPERATION_MATMUL_CDESC, y);
    add_operation(b, o);
    return y;
}

static Descriptor reduced(Builder *b, cudnnReduceTensorOp_t how, Descriptor y, Descriptor x) {
    static const cudnnDataType_t type = CUDNN_DATA_FLOAT;
    Descriptor p = make(b, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    set(b, p, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &how);
    set(b, p, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    finish(b, p);
    Descriptor o = make(b, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    set_descriptor(b, o, CUDNN_ATTR_OPERATION_REDUCTION_DESC, p);
    set_descriptor(b, o, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    set_descriptor(b, o, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
    add_operation(b, o);
    return y;
}

static Descriptor reshaped(Builder *b, Descriptor y, Descriptor x) {
    Descriptor o = make(b, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    set_descriptor(b, o, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x);
    set_descriptor(b, o, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y);
    add_operation(b, o);
    return y;
}

/* Row i sees columns 0 .. i. */
static Descriptor causal(Builder *b, Descriptor x) {
    Descriptor row = pointwise(b, (Pointwise){CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_INT32, 2},
                               scores(b, CUDNN_DATA_INT32), x, NULL, NULL);
    Descriptor at = pointwise(b, (Pointwise){CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_INT32, 3},
                              scores(b, CUDNN_DATA_INT32), x, NULL, NULL);
    Descriptor sees = pointwise(b, (Pointwise){CUDNN_POINTWISE_CMP_GE, CUDNN_DATA_BOOLEAN, -1},
                                scores(b, CUDNN_DATA_BOOLEAN), row, at, NULL);
    return pointwise(b, (Pointwise){CUDNN_POINTWISE_BINARY_SELECT, CUDNN_DATA_FLOAT, -1}, scores(b, CUDNN_DATA_FLOAT),
                     x, scalar(b, NEGATIVE), sees);
}

static Descriptor scaled(Builder *b, Descriptor scale, Descriptor x) {
    return in_float(b, CUDNN_POINTWISE_MUL, scores(b, CUDNN_DATA_FLOAT), x, scale);
}

/* ---- The graphs ---------------------------------------------------------------------------------- */

static void forward(Builder *b) {
    GraphShape s = b->plan->shape;
    const cudnnDataType_t single = CUDNN_DATA_FLOAT;
    Descriptor q = named(b, GRAPH_Q, rows_of(s, s.heads));
    Descriptor kt = named(b, GRAPH_K, transposed(rows_of(s, s.kv_heads)));
    Descriptor v = named(b, GRAPH_V, rows_of(s, s.kv_heads));
    Descriptor x = scaled(b, scalar(b, SCALE), product(b, scores(b, single), q, kt));
    x = causal(b, x);
    Descriptor most = reduced(b, CUDNN_REDUCE_TENSOR_MAX, unnamed(b, single, column(b)), x);
    Descriptor less = in_float(b, CUDNN_POINTWISE_SUB, scores(b, single), x, most);
    Descriptor raised = in_float(b, CUDNN_POINTWISE_EXP, scores(b, single), less, NULL);
    Descriptor total = reduced(b, CUDNN_REDUCE_TENSOR_ADD, unnamed(b, single, column(b)), raised);
    Descriptor log = in_float(b, CUDNN_POINTWISE_LOG, unnamed(b, single, column(b)), total, NULL);
    in_float(b, CUDNN_POINTWISE_ADD, named_float(b, GRAPH_LSE, column(b)), most, log);
    Descriptor p = in_float(b, CUDNN_POINTWISE_DIV, scores(b, CUDNN_DATA_BFLOAT16), raised, total);
    product(b, named(b, GRAPH_OUT, rows_of(s, s.heads)), p, v);
}

/* left^T right for every query head, summed over those that share a KV head: dk and dv. `left` is [b, h, s, s]. */
static void shared(Builder *b, GraphTensor name, Descriptor left, Descriptor right) {
    GraphShape s = b->plan->shape;
    Descriptor turned = reshaped(b, unnamed(b, CUDNN_DATA_BFLOAT16, transposed(square(b))), left);
    Descriptor out = named(b, name, rows_of(s, s.kv_heads));
    if (s.heads == s.kv_heads) {
        product(b, out, turned, right);
        return;
    }
    Descriptor each = unnamed(b, CUDNN_DATA_BFLOAT16, packed(s.batch, s.heads, s.length, s.head_size));
    reduced(b, CUDNN_REDUCE_TENSOR_ADD, out, product(b, each, turned, right));
}

static void backward(Builder *b) {
    GraphShape s = b->plan->shape;
    const cudnnDataType_t single = CUDNN_DATA_FLOAT;
    Descriptor q = named(b, GRAPH_Q, rows_of(s, s.heads));
    Descriptor kt = named(b, GRAPH_K, transposed(rows_of(s, s.kv_heads)));
    Descriptor vt = named(b, GRAPH_V, transposed(rows_of(s, s.kv_heads)));
    Descriptor out = named(b, GRAPH_OUT, rows_of(s, s.heads)), dout = named(b, GRAPH_DOUT, rows_of(s, s.heads));
    Descriptor lse = named_float(b, GRAPH_LSE, column(b)), scale = scalar(b, SCALE);
    Descriptor both = in_float(b, CUDNN_POINTWISE_MUL, unnamed(b, single, rows_of(s, s.heads)), dout, out);
    Descriptor summed = reduced(b, CUDNN_REDUCE_TENSOR_ADD, unnamed(b, single, column(b)), both);
    Descriptor delta = in_float(b, CUDNN_POINTWISE_MUL, named_float(b, GRAPH_DELTA, column(b)), summed, scalar(b, ONE));

    Descriptor x = scaled(b, scale, product(b, scores(b, single), q, kt));
    x = in_float(b, CUDNN_POINTWISE_SUB, scores(b, single), x, lse);
    Descriptor p = in_float(b, CUDNN_POINTWISE_EXP, scores(b, single), causal(b, x), NULL);
    shared(b, GRAPH_DV, p, dout);

    Descriptor dp = product(b, scores(b, single), dout, vt);
    dp = in_float(b, CUDNN_POINTWISE_SUB, scores(b, single), dp, delta);
    dp = in_float(b, CUDNN_POINTWISE_MUL, scores(b, single), dp, p);
    Descriptor ds = scaled(b, scale, dp);
    shared(b, GRAPH_DK, ds, q);

    Descriptor k = reshaped(b, unnamed(b, CUDNN_DATA_BFLOAT16, rows_of(s, s.kv_heads)), kt);
    Descriptor sum = named_float(b, GRAPH_DQ_SUM, packed(s.batch, s.heads, s.length, s.head_size));
    in_float(b, CUDNN_POINTWISE_IDENTITY, named(b, GRAPH_DQ, rows_of(s, s.heads)), product(b, sum, ds, k), NULL);
}

/* ---- Planning ------------------------------------------------------------------------------------ */

static Descriptor described_device(Builder *b, const char *json) {
    Descriptor d = make(b, CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
    set(b, d, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, (int64_t)strlen(json), json);
    finish(b, d);
    return d;
}

static Descriptor graph_of(Builder *b, cudnnHandle_t handle) {
    Descriptor g = make(b, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    if (handle) set(b, g, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
    set(b, g, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, b->operations, b->operation);
    finish(b, g);
    return g;
}

/* The ways to run the graph that cuDNN offers, the likeliest to be fast first. */
static int64_t configurations_of(Builder *b, Descriptor graph, Descriptor gpu, Descriptor *out) {
    static const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    int64_t found = 0;
    Descriptor h = make(b, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    set_descriptor(b, h, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
    set(b, h, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    if (gpu) set_descriptor(b, h, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, gpu);
    finish(b, h);
    for (int i = 0; i < MAX_CONFIGURATIONS; i++) out[i] = make(b, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    if (failed(b)) return 0;
    ok(b,
       b->plan->cudnn->cudnnBackendGetAttribute(h, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                                MAX_CONFIGURATIONS, &found, out),
       "cudnnBackendGetAttribute");
    return failed(b) ? 0 : found;
}

/* Whether this way works: it may not, and then the next one is tried. */
static bool plan_with(Builder *b, Descriptor configuration, cudnnHandle_t handle, Descriptor gpu) {
    GraphPlan *p = b->plan;
    Descriptor plan = make(b, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    int64_t count = 0;
    if (handle) set(b, plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
    set_descriptor(b, plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configuration);
    if (gpu) set_descriptor(b, plan, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, gpu);
    if (failed(b) || p->cudnn->cudnnBackendFinalize(plan) != CUDNN_STATUS_SUCCESS) return false;
    p->plan = plan;
    return ok(b,
              p->cudnn->cudnnBackendGetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1,
                                                 &count, &p->workspace_bytes),
              "cudnnBackendGetAttribute");
}

bool graph_plan(GraphPlan *p, const Cudnn *cudnn, const Device *d, cudnnHandle_t handle, const char *described,
                GraphShape shape, Error *e) {
    *p = (GraphPlan){.cudnn = cudnn,
                     .device = d,
                     .shape = shape,
                     .scale = (float)(1 / sqrt((double)shape.head_size)),
                     .negative = -3e38f,
                     .one = 1};
    MUST(shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0 && (handle != NULL) != (described != NULL));
    Builder b = {.plan = p, .name = UNNAMED, .error = e};
    Descriptor configuration[MAX_CONFIGURATIONS];
    (shape.backward ? backward : forward)(&b);
    Descriptor gpu = described ? described_device(&b, described) : NULL, graph = graph_of(&b, handle);
    p->configurations = (int)configurations_of(&b, graph, gpu, configuration);
    for (int i = 0; i < p->configurations && !p->plan && !failed(&b); i++) plan_with(&b, configuration[i], handle, gpu);
    if (p->plan && !failed(&b)) return true;
    fail(e, EXIT_USAGE,
         "cuDNN has no way to run attention%s, heads of %lld, length %lld, on this GPU (%d offered, none worked); use "
         "another "
         "version of cuDNN",
         shape.backward ? " backward" : "", (long long)shape.head_size, (long long)shape.length, p->configurations);
    graph_close(p);
    return false;
}

/* ---- Running ------------------------------------------------------------------------------------- */

static const GraphTensor forward_tensors[] = {GRAPH_Q, GRAPH_K, GRAPH_V, GRAPH_OUT, GRAPH_LSE};
static const GraphTensor backward_tensors[] = {GRAPH_Q,  GRAPH_K,  GRAPH_V,  GRAPH_OUT,   GRAPH_LSE,   GRAPH_DOUT,
                                               GRAPH_DQ, GRAPH_DK, GRAPH_DV, GRAPH_DELTA, GRAPH_DQ_SUM};

bool graph_bind(GraphPlan *p, void *const data[GRAPH_TENSORS], void *workspace, Error *e) {
    const GraphTensor *list = p->shape.backward ? backward_tensors : forward_tensors;
    size_t tensors = p->shape.backward ? COUNT(backward_tensors) : COUNT(forward_tensors), n = 0;
    int64_t name[UNNAMED];
    void *pointer[UNNAMED];
    Builder b = {.plan = p, .error = e};
    for (; n < tensors; n++) name[n] = list[n], pointer[n] = data[list[n]];
    name[n] = SCALE, pointer[n++] = &p->scale;
    name[n] = NEGATIVE, pointer[n++] = &p->negative;
    if (p->shape.backward) name[n] = ONE, pointer[n++] = &p->one;
    p->arguments = make(&b, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    set(&b, p->arguments, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, (int64_t)n, pointer);
    set(&b, p->arguments, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, (int64_t)n, name);
    set(&b, p->arguments, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
    finish(&b, p->arguments);
    return !failed(&b);
}

bool graph_run(const GraphPlan *p, cudnnHandle_t handle, Error *e) {
    const char *doing = p->shape.backward ? "attention_backward" : "attention";
    return CUDNN(p->cudnn, p->device, e, doing, p->cudnn->cudnnBackendExecute(handle, p->plan, p->arguments));
}

void graph_close(GraphPlan *p) {
    for (int i = p->descriptors - 1; i >= 0; i--) p->cudnn->cudnnBackendDestroyDescriptor(p->made[i]);
    p->descriptors = 0;
    p->plan = p->arguments = NULL;
}
