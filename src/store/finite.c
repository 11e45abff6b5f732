#include "store/finite.h"

#include <math.h>

enum { ELEMENTS = 1 << 12 }; /* looked at together: on the stack */

/* x - x is 0 but for NaN and infinities; a loop without branches is a fast one. Of n values; n: all are finite. */
static int64_t find_single(const float *x, int64_t n) {
    float sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i] - x[i];
    if (sum == 0) return n;
    int64_t at = 0;
    while (isfinite(x[at])) at++;
    return at;
}

static int64_t find_double(const double *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i] - x[i];
    if (sum == 0) return n;
    int64_t at = 0;
    while (isfinite(x[at])) at++;
    return at;
}

static bool check_piece(Store *s, const Slice *slice, StoreKind kind, int64_t first, int64_t n, const char *where,
                        Error *e) {
    static const char *const kinds[] = {
        [STORE_MASTER] = "weight", [STORE_M] = "moment exp_avg of", [STORE_V] = "moment exp_avg_sq of"};
    union {
        float single[ELEMENTS];
        double twice[ELEMENTS];
    } values;
    bool single = store_type(s, kind) == FP32;
    store_copy_out(s, slice, kind, first, n, &values);
    int64_t at = single ? find_single(values.single, n) : find_double(values.twice, n);
    if (at == n) return true;
    double value = single ? (double)values.single[at] : values.twice[at];
    return fail(e, EXIT_DIVERGED,
                "the %s %s is %s at element %lld; %s; use weights that are finite in this compute.type", kinds[kind],
                slice->name, isnan(value) ? "not a number" : "infinite", (long long)(slice->first + first + at), where);
}

static bool check_kind(Store *s, StoreKind kind, const char *where, Error *e) {
    const Slice *slices;
    int64_t count = store_slices(s, &slices);
    for (int64_t i = 0; i < count; i++)
        for (int64_t first = 0; first < slices[i].count; first += ELEMENTS)
            if (!check_piece(s, &slices[i], kind, first, min64(ELEMENTS, slices[i].count - first), where, e))
                return false;
    return true;
}

bool store_check_finite(Store *s, Comm *comm, const char *where, bool moments, Error *e) {
    bool finite = check_kind(s, STORE_MASTER, where, e) &&
                  (!moments || (check_kind(s, STORE_M, where, e) && check_kind(s, STORE_V, where, e)));
    return host_agree(comm, finite, e);
}
