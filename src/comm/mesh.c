/* The mesh: every group of every rank, by division and remainder alone. */
#include "comm/mesh.h"

#include <string.h>

const char *axis_name(AxisName a) {
    static const char *const names[AXIS_COUNT] = {
        [AXIS_WORLD] = "world",
        [AXIS_SEQUENCE] = "sequence",
        [AXIS_ULYSSES] = "ulysses",
        [AXIS_RING] = "ring",
        [AXIS_EXPERT] = "expert",
        [AXIS_EXPERT_SHARD] = "expert_shard",
        [AXIS_EXPERT_REPLICA] = "expert_replica",
        [AXIS_DENSE] = "dense",
        [AXIS_DENSE_REPLICA] = "dense_replica",
        [AXIS_VOCABULARY] = "vocabulary",
        [AXIS_VOCABULARY_REPLICA] = "vocabulary_replica",
    };
    MUST(a >= 0 && a < AXIS_COUNT);
    return names[a];
}

/* The axis of `size` ranks that lie `stride` apart, among blocks of size * stride contiguous ranks. */
static Axis axis(AxisName name, int rank, int size, int stride) {
    int index = rank / stride % size;
    return (Axis){.name = name, .size = size, .index = index, .first = rank - index * stride, .stride = stride};
}

static bool divides(const char *keys, int64_t size, int world, Error *e) {
    if (size >= 1 && size <= world && world % size == 0) return true;
    return fail(e, EXIT_USAGE, "%s = %lld does not divide the %d ranks; use a divisor of %d", keys, (long long)size,
                world, world);
}

bool mesh_plan(Mesh *m, const Config *c, int world, int rank, Error *e) {
    int64_t dense = c->mixture_dense > 0 ? c->mixture_dense : world;
    if (!divides("mixture.dense", dense, world, e)) return false;
    if (!divides("mixture.vocabulary", c->mixture_vocabulary, world, e)) return false;
    if (!divides("mixture.ulysses", c->mixture_ulysses, world, e)) return false;
    if (!divides("mixture.ring", c->mixture_ring, world, e)) return false;
    if (!divides("mixture.ulysses x mixture.ring", c->mixture_ulysses * c->mixture_ring, world, e)) return false;
    if (!divides("mixture.expert", c->mixture_expert, world, e)) return false;
    if (!divides("mixture.expert_shard", c->mixture_expert_shard, world, e)) return false;
    if (!divides("mixture.expert x mixture.expert_shard", c->mixture_expert * c->mixture_expert_shard, world, e))
        return false;

    int z = (int)dense, p = (int)c->mixture_vocabulary, u = (int)c->mixture_ulysses, r = (int)c->mixture_ring;
    int ep = (int)c->mixture_expert, es = (int)c->mixture_expert_shard;
    *m = (Mesh){.world = world, .rank = rank};
    m->axis[AXIS_WORLD] = axis(AXIS_WORLD, rank, world, 1);
    m->axis[AXIS_SEQUENCE] = axis(AXIS_SEQUENCE, rank, u * r, 1);
    m->axis[AXIS_ULYSSES] = axis(AXIS_ULYSSES, rank, u, 1);
    m->axis[AXIS_RING] = axis(AXIS_RING, rank, r, u);
    m->axis[AXIS_EXPERT] = axis(AXIS_EXPERT, rank, ep, 1);
    m->axis[AXIS_EXPERT_SHARD] = axis(AXIS_EXPERT_SHARD, rank, es, ep);
    m->axis[AXIS_EXPERT_REPLICA] = axis(AXIS_EXPERT_REPLICA, rank, world / (ep * es), ep * es);
    m->axis[AXIS_DENSE] = axis(AXIS_DENSE, rank, z, 1);
    m->axis[AXIS_DENSE_REPLICA] = axis(AXIS_DENSE_REPLICA, rank, world / z, z);
    m->axis[AXIS_VOCABULARY] = axis(AXIS_VOCABULARY, rank, p, 1);
    m->axis[AXIS_VOCABULARY_REPLICA] = axis(AXIS_VOCABULARY_REPLICA, rank, world / p, p);
    return true;
}

Share axis_share(const Axis *a, int64_t n) {
    int64_t each = ceil_div(n, a->size), first = min64(n, a->index * each);
    return (Share){.each = each, .first = first, .here = min64(each, n - first)};
}

void mesh_print_axis(const Config *c, int world, AxisName a, FILE *f) {
    fprintf(f, "%-19s", axis_name(a));
    for (int rank = 0; rank < world; rank++) {
        Mesh m;
        Error e = {0};
        MUST(mesh_plan(&m, c, world, rank, &e));
        Axis x = m.axis[a];
        if (x.index != 0) continue;
        fprintf(f, " {");
        for (int j = 0; j < x.size; j++) fprintf(f, "%s%d", j ? " " : "", x.first + j * x.stride);
        fprintf(f, "}");
    }
    fprintf(f, "\n");
}

void mesh_print(const Config *c, int world, FILE *f) {
    for (int a = 0; a < AXIS_COUNT; a++) mesh_print_axis(c, world, (AxisName)a, f);
}
