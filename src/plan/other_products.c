/* oneDNN has dnnl_sgemm, in row-major order; its threads are those of OpenMP, of which the number is asked for.
 * OpenBLAS has cblas_sgemm and counts its own threads. */
#include "plan/other_products.h"
#include "base/base.h"

#include <dlfcn.h>
#include <limits.h>
#include <string.h>

typedef int (*DnnlSgemm)(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
                         const float *a, int64_t a_row, const float *b, int64_t b_row, float beta, float *c,
                         int64_t c_row);
typedef void (*CblasSgemm)(int order, int transpose_a, int transpose_b, int m, int n, int k, float alpha,
                           const float *a, int a_row, const float *b, int b_row, float beta, float *c, int c_row);
enum { CBLAS_ROW_MAJOR = 101, CBLAS_NO_TRANSPOSE = 111 };

static const struct {
    const char *name, *packages, *files[2], *multiply, *set_threads; /* files: the newest first */
} libraries[OTHER_COUNT] = {
    [OTHER_ONEDNN] =
        {"onednn", "libdnnl3 or libdnnl2", {"libdnnl.so.3", "libdnnl.so.2"}, "dnnl_sgemm", "omp_set_num_threads"},
    [OTHER_OPENBLAS] = {"openblas", "libopenblas0", {"libopenblas.so.0"}, "cblas_sgemm", "openblas_set_num_threads"},
};

const char *other_products_name(OtherName n) {
    return libraries[n].name;
}

const char *other_products_packages(OtherName n) {
    return libraries[n].packages;
}

bool other_products_open(OtherProducts *o, OtherName n, int threads) {
    void *library = NULL;
    *o = (OtherProducts){.name = n};
    for (size_t i = 0; i < COUNT(libraries[n].files) && libraries[n].files[i] && !library; i++) {
        o->file = libraries[n].files[i];
        library = dlopen(o->file, RTLD_NOW | RTLD_LOCAL);
    }
    if (!library) return false;
    void *multiply = dlsym(library, libraries[n].multiply), *set_threads = dlsym(library, libraries[n].set_threads);
    if (!multiply || !set_threads) return false;
    memcpy(&o->multiply, &multiply, sizeof multiply); /* ISO C has no cast from an object's address to a function's */
    memcpy(&o->set_threads, &set_threads, sizeof set_threads);
    o->set_threads(threads);
    return true;
}

bool other_products_run(const OtherProducts *o, float *c, const float *a, const float *b, int64_t m, int64_t n,
                        int64_t k) {
    if (o->name == OTHER_ONEDNN) return ((DnnlSgemm)o->multiply)('N', 'N', m, n, k, 1, a, k, b, n, 0, c, n) == 0;
    MUST(m <= INT_MAX && n <= INT_MAX && k <= INT_MAX);
    ((CblasSgemm)o->multiply)(CBLAS_ROW_MAJOR, CBLAS_NO_TRANSPOSE, CBLAS_NO_TRANSPOSE, (int)m, (int)n, (int)k, 1, a,
                              (int)k, b, (int)n, 0, c, (int)n);
    return true;
}
