/* Causal attention with grouped KV heads in bf16, as a cuDNN graph: forward with the log-sum-exp of every row, and
 * backward.
 *
 * A plan is made for one shape and takes up to seconds, so that shapes must be few. It can be made without a GPU for
 * one that is described in JSON, which proves that the graph is accepted and says what scratch it needs.
 */
#ifndef MOP_ATTENTION_GRAPH_H
#define MOP_ATTENTION_GRAPH_H

#include "device/cuda/gpu.h"

/* q, out, dout, dq [batch, length, heads, head_size]; k, v, dk, dv [batch, length, kv_heads, head_size]: bf16,
 * contiguous. lse, delta fp32 [batch, heads, length]; dq_sum fp32 [batch, heads, length, head_size], scratch. */
typedef struct {
    int64_t batch, heads, kv_heads, length, head_size;
    bool backward;
} GraphShape;

typedef enum {
    GRAPH_Q = 1, /* cuDNN wants names above 0 */
    GRAPH_K,
    GRAPH_V,
    GRAPH_OUT,
    GRAPH_LSE,
    GRAPH_DOUT,
    GRAPH_DQ,
    GRAPH_DK,
    GRAPH_DV,
    GRAPH_DELTA,
    GRAPH_DQ_SUM,
    GRAPH_TENSORS, /* and after them the scalars */
} GraphTensor;

enum { GRAPH_DESCRIPTORS = 128 };

/* Start from {0}. */
typedef struct {
    const Cudnn *cudnn;
    const Device *device; /* NULL without a GPU */
    GraphShape shape;
    cudnnBackendDescriptor_t made[GRAPH_DESCRIPTORS]; /* of the graph, of the plan, of the arguments */
    int descriptors, configurations;                  /* made; that cuDNN offered for the graph */
    cudnnBackendDescriptor_t plan, arguments;
    int64_t workspace_bytes;
    float scale, negative, one; /* arguments too, by value */
} GraphPlan;

/* `handle` is that of the device; or NULL, and `described` is the JSON of a GPU that need not be there. False: e says
 * why. */
bool graph_plan(GraphPlan *p, const Cudnn *cudnn, const Device *d, cudnnHandle_t handle, const char *described,
                GraphShape shape, Error *e);
/* The memory of tensor i at data[i]; those that the direction does not have are not looked at. 64-byte aligned. */
bool graph_bind(GraphPlan *p, void *const data[GRAPH_TENSORS], void *workspace, Error *e);
/* Into the stream of the handle (cudnnSetStream). */
bool graph_run(const GraphPlan *p, cudnnHandle_t handle, Error *e);
void graph_close(GraphPlan *p);

#endif
