/* The meaning of AdamW, of norms, and of the sums that collectives make. AdamW is defined to the bit
 * (ops.h): this file is compiled without contraction of a * b + c into one rounding (-ffp-contract=off). */
#include "ops/cpu/plain.h"
#include <string.h>

/* ---- adamw ------------------------------------------------------------------------------------ */

/* The fp32 master of element i: the weight itself, or a bf16 weight and its low half. */
static float master_get(const AdamWArgs *a, int64_t i) {
    if (a->weight.type == FP32) return ((const float *)a->weight.data)[i];
    uint16_t high = ((const uint16_t *)a->weight.data)[i];
    int16_t low;
    memcpy(&low, (const char *)a->low.data + 2 * i, sizeof low);
    uint32_t bits = ((uint32_t)high << 16) + (uint32_t)(int32_t)low;
    float master;
    memcpy(&master, &bits, sizeof master);
    return master;
}

static void master_put(const AdamWArgs *a, int64_t i, float master) {
    if (a->weight.type == FP32) {
        ((float *)a->weight.data)[i] = master;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &master, sizeof bits);
    uint16_t low = (uint16_t)bits;
    ((uint16_t *)a->weight.data)[i] = bf16_from_float(master);
    memcpy((char *)a->low.data + 2 * i, &low, sizeof low);
}

/* In float. */
static void adamw_single(const AdamWArgs *a) {
    const AdamW *h = &a->h;
    float decay = (float)(1 - h->learning_rate * h->weight_decay), clip = (float)h->clip, epsilon = (float)h->epsilon;
    float b1 = (float)h->beta1, c1 = (float)(1 - h->beta1), b2 = (float)h->beta2, c2 = (float)(1 - h->beta2);
    float step = (float)(h->learning_rate / h->correction1), root = (float)sqrt(h->correction2);
    float *m = a->m.data, *v = a->v.data;
    const float *gradient = a->gradient.data;
    for (int64_t i = 0; i < tensor_count(a->weight); i++) {
        float g = clip * gradient[i];
        float w = decay * master_get(a, i);
        m[i] = b1 * m[i] + c1 * g;
        v[i] = b2 * v[i] + (c2 * g) * g;
        master_put(a, i, w - (step * m[i]) / (sqrtf(v[i]) / root + epsilon));
    }
}

/* The same in double. */
static void adamw_double(const AdamWArgs *a) {
    const AdamW *h = &a->h;
    double decay = 1 - h->learning_rate * h->weight_decay, clip = h->clip, epsilon = h->epsilon;
    double b1 = h->beta1, c1 = 1 - h->beta1, b2 = h->beta2, c2 = 1 - h->beta2;
    double step = h->learning_rate / h->correction1, root = sqrt(h->correction2);
    double *weight = a->weight.data, *m = a->m.data, *v = a->v.data;
    const double *gradient = a->gradient.data;
    for (int64_t i = 0; i < tensor_count(a->weight); i++) {
        double g = clip * gradient[i];
        double w = decay * weight[i];
        m[i] = b1 * m[i] + c1 * g;
        v[i] = b2 * v[i] + (c2 * g) * g;
        weight[i] = w - (step * m[i]) / (sqrt(v[i]) / root + epsilon);
    }
}

void plain_adamw(Stream *s, const void *arguments) {
    (void)s;
    const AdamWArgs *a = arguments;
    (a->weight.type == FP64 ? adamw_double : adamw_single)(a);
}

/* ---- Sums ------------------------------------------------------------------------------------- */

void plain_square_sum(Stream *s, const void *arguments) {
    (void)s;
    const AddArgs *a = arguments;
    double sum = 0;
    for (int64_t i = 0; i < tensor_count(a->a); i++) sum += tensor_get(a->a, i) * tensor_get(a->a, i);
    tensor_put(a->y, 0, sum);
}

/* Integers are summed as integers: a double would round them beyond 2^53. */
static void sum_integer_rows(Tensor y, Tensor x) {
    int64_t rows = x.dim[0], width = x.dim[1], *to = y.data;
    const int64_t *from = x.data;
    for (int64_t i = 0; i < width; i++) {
        int64_t sum = 0;
        for (int64_t r = 0; r < rows; r++) sum += from[r * width + i];
        to[i] = sum;
    }
}

/* y[i] = ((x[0,i] + x[1,i]) + x[2,i]) + ..., each sum rounded to the type: every device gets the same bits. */
void plain_sum_rows(Stream *s, const void *arguments) {
    (void)s;
    const AddArgs *a = arguments;
    int64_t rows = a->a.dim[0], width = a->a.dim[1];
    if (a->a.type == INT64) {
        sum_integer_rows(a->y, a->a);
        return;
    }
    for (int64_t i = 0; i < width; i++) {
        double sum = tensor_get(a->a, i);
        for (int64_t r = 1; r < rows; r++) sum = type_round(a->y.type, sum + tensor_get(a->a, r * width + i));
        tensor_put(a->y, i, sum);
    }
}
