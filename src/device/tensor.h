/* Tensor: a view by value (address, type, up to four sizes), contiguous and row-major. It owns nothing: the
 * memory is an Arena's, and lives until the mark below it is reset. An empty tensor (a size of 0) is valid
 * everywhere. */
#ifndef MOP_TENSOR_H
#define MOP_TENSOR_H

#include "base/base.h"

enum { MAX_DIMS = 4 };

typedef struct {
    void *data;
    Type type;
    int dims;
    int64_t dim[MAX_DIMS];
} Tensor;

/* An argument that is not given: no data, no dims. */
#define NONE ((Tensor){0})
static inline bool tensor_none(Tensor t) {
    return t.dims == 0;
}

#define DIM(...)                                                                                                       \
    (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (const int64_t[]) {                                     \
        __VA_ARGS__                                                                                                    \
    }

Tensor tensor_at(void *data, Type type, int dims, const int64_t *dim); /* tensor_at(p, FP32, DIM(tokens, width)) */
int64_t tensor_count(Tensor t);                                        /* elements; 0 for none */
size_t tensor_bytes(Tensor t);
Tensor tensor_view(Tensor t, int dims, const int64_t *dim);        /* the same elements, other sizes */
Tensor tensor_rows(Tensor t, int64_t first, int64_t rows);         /* a slice of dim[0] */
bool tensor_is(Tensor t, Type type, int dims, const int64_t *dim); /* exactly this type and shape */
bool tensor_same(Tensor a, Tensor b);                              /* same type and shape */

/* Element access for plain definitions and tests: any type, in double. bf16 rounds half up, as everywhere. */
double tensor_get(Tensor t, int64_t i);
void tensor_put(Tensor t, int64_t i, double x);
double type_round(Type t, double x); /* x as a tensor of type t would hold it */

#endif
