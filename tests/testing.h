/* What tests of tensors share: memory with guard words, random contents, comparisons that say where they failed. */
#ifndef MOP_TESTING_H
#define MOP_TESTING_H

#include "device/device.h"
#include "device/tensor.h"

/* Tensors from the heap, each with guard words before and after it; freed together. Start from {0}. */
typedef struct Memory {
    struct Block *blocks;
} Memory;

Tensor memory_tensor(Memory *m, Type type, int dims, const int64_t *dim); /* holds NaN, or -1 */
Tensor memory_copy(Memory *m, Tensor t);
void memory_check(const Memory *m, const char *what); /* fails the test where a guard word has changed */
void memory_free(Memory *m);

/* Real tensors: standard normal, never 0. A function of (seed, index) alone. */
void fill_normal(Tensor t, uint64_t seed);
/* Any tensor: whole numbers from `least` to `most`. */
void fill_integers(Tensor t, uint64_t seed, int64_t least, int64_t most);
void fill_value(Tensor t, double value);

/* Differences above bound x max(|expected|, root mean square of expected, least) fail, and so does a NaN where none is
 * expected; integers must be equal, and so must infinities. */
void assert_close(const char *what, Tensor got, Tensor expected, double bound, double least);
/* As assert_close, but a share of the elements, and always one, may differ by more. */
void assert_mostly_close(const char *what, Tensor got, Tensor expected, double bound, double least, double share);
void assert_same_bits(const char *what, Tensor got, Tensor expected);

/* A device of this name with its kernels, or NULL, said in words, where this processor has no such instructions. */
Device *test_device(const char *name, int threads);
/* The same where there must be one. */
Device *test_device_needed(const char *name, int threads);
/* Waits until everything issued on s has run. */
void stream_finish(Stream *s);

/* Whether f(context) ends the process by abort, as a failed MUST does. Its message is not shown. */
bool aborts(void (*f)(void *context), void *context);

#endif
