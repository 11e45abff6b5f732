/* Matrix products by somebody else, where they are installed: what ours are held against. A library is loaded by name
 * when it is asked for, so that mop is neither linked with it nor needs it.
 *
 *     OtherProducts o;
 *     if (other_products_open(&o, OTHER_ONEDNN, threads)) other_products_run(&o, c, a, b, m, n, k);
 *
 * A library stays loaded until the program ends, because threads of its own may be waiting for work. For a while
 * after a product they wait busily: measure others last.
 */
#ifndef MOP_OTHER_PRODUCTS_H
#define MOP_OTHER_PRODUCTS_H

#include <stdbool.h>
#include <stdint.h>

typedef enum { OTHER_ONEDNN, OTHER_OPENBLAS, OTHER_COUNT } OtherName;

typedef struct {
    OtherName name;
    const char *file; /* that was loaded: "libdnnl.so.3" */
    void (*set_threads)(int threads);
    void (*multiply)(void); /* of its own type */
} OtherProducts;

const char *other_products_name(OtherName n);     /* "onednn"; what keys of figures begin with */
const char *other_products_packages(OtherName n); /* "libdnnl3 or libdnnl2": Debian's */
/* With `threads` threads from now on; false: not installed, or without the functions that are needed. */
bool other_products_open(OtherProducts *o, OtherName n, int threads);
/* c = a b in fp32, rows one after the other: a [m,k], b [k,n], c [m,n]; false: the library refused. */
bool other_products_run(const OtherProducts *o, float *c, const float *a, const float *b, int64_t m, int64_t n,
                        int64_t k);

#endif
