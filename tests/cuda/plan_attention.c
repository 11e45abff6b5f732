/* Plans the attention that `mop doctor` measures, for a GPU that is described in a file and need not be there: every
 * graph must be accepted and compiled, and must not need scratch that grows with the square of the length.
 *
 *     plan_attention GPU.json LENGTH...
 */
#include "ops/cuda/attention_graph.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS = 65536, HEADS = 32, KV_HEADS = 8 };

static bool plan(const Cudnn *cudnn, const char *gpu, GraphShape s) {
    GraphPlan p;
    Error e = {0};
    double start = seconds_now();
    if (!graph_plan(&p, cudnn, NULL, NULL, gpu, s, &e)) {
        printf("%s\n", e.text);
        return false;
    }
    double elements = (double)s.batch * (double)s.length * (double)s.heads * (double)s.head_size;
    bool small = (double)p.workspace_bytes <= 16 * elements;
    printf("attention%s, %lld x %lld, head size %lld: %d ways offered, %.1f MiB of scratch%s, planned in %.1f s\n",
           s.backward ? "_backward" : "", (long long)s.batch, (long long)s.length, (long long)s.head_size,
           p.configurations, (double)p.workspace_bytes / (1 << 20),
           small ? "" : ": more than 16 bytes for every element of q", seconds_now() - start);
    graph_close(&p);
    return small;
}

static bool plan_all(const Cudnn *cudnn, const char *gpu, int64_t length) {
    static const int64_t head_sizes[] = {64, 128};
    bool ok = length > 0;
    for (size_t i = 0; ok && i < 2 * COUNT(head_sizes); i++)
        ok = plan(cudnn, gpu,
                  (GraphShape){.batch = max64(1, TOKENS / length),
                               .heads = HEADS,
                               .kv_heads = KV_HEADS,
                               .length = length,
                               .head_size = head_sizes[i / 2],
                               .backward = i % 2 == 1});
    return ok;
}

int main(int argc, char **argv) {
    Cudnn cudnn = {0};
    Error e = {0};
    char gpu[4096] = "";
    FILE *f = argc > 2 ? fopen(argv[1], "r") : NULL;
    if (!f || fread(gpu, 1, sizeof gpu - 1, f) == 0 || !cudnn_load(&cudnn, &e)) {
        fprintf(stderr, "plan_attention GPU.json LENGTH...: no such file, or no cuDNN; %s\n", e.text);
        return 1;
    }
    fclose(f);
    gpu[strcspn(gpu, "\n")] = 0; /* one line */
    bool ok = true;
    for (int i = 2; i < argc; i++) ok = plan_all(&cudnn, gpu, atoll(argv[i])) && ok;
    return !ok;
}
