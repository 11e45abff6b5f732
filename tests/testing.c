/* The helpers of testing.h. */
#define _POSIX_C_SOURCE 200809L
#include "testing.h"
#include "base/random.h"
#include "ops/kernels.h"
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <setjmp.h> /* cmocka.h uses it */

#include <cmocka.h>

/* ---- Memory ----------------------------------------------------------------------------------- */

enum { GUARD_BYTES = 64, GUARD = 0xA5 };

typedef struct Block {
    struct Block *next;
    unsigned char *bytes; /* guard, data, guard */
    size_t data_bytes;
} Block;

static void *needed(void *memory) {
    assert_non_null(memory);
    return memory;
}

Tensor memory_tensor(Memory *m, Type type, int dims, const int64_t *dim) {
    Tensor t = tensor_at(NULL, type, dims, dim);
    Block *b = needed(malloc(sizeof *b));
    *b = (Block){.next = m->blocks, .data_bytes = tensor_bytes(t)};
    size_t all = (b->data_bytes + 3 * GUARD_BYTES - 1) / GUARD_BYTES * GUARD_BYTES;
    b->bytes = needed(aligned_alloc(GUARD_BYTES, all));
    memset(b->bytes, GUARD, GUARD_BYTES);
    memset(b->bytes + GUARD_BYTES, 0xFF, b->data_bytes);
    memset(b->bytes + GUARD_BYTES + b->data_bytes, GUARD, GUARD_BYTES);
    m->blocks = b;
    t.data = b->bytes + GUARD_BYTES;
    return t;
}

Tensor memory_copy(Memory *m, Tensor t) {
    if (tensor_none(t)) return NONE;
    Tensor copy = memory_tensor(m, t.type, t.dims, t.dim);
    memcpy(copy.data, t.data, tensor_bytes(t));
    return copy;
}

void memory_check(const Memory *m, const char *what) {
    for (const Block *b = m->blocks; b != NULL; b = b->next) {
        const unsigned char *after = b->bytes + GUARD_BYTES + b->data_bytes;
        for (int i = 0; i < GUARD_BYTES; i++) {
            if (b->bytes[i] != GUARD) fail_msg("%s: wrote %d bytes before a tensor", what, GUARD_BYTES - i);
            if (after[i] != GUARD) fail_msg("%s: wrote %d bytes after a tensor of %zu bytes", what, i, b->data_bytes);
        }
    }
}

void memory_free(Memory *m) {
    while (m->blocks != NULL) {
        Block *b = m->blocks;
        m->blocks = b->next;
        free(b->bytes);
        free(b);
    }
}

/* ---- Contents --------------------------------------------------------------------------------- */

void fill_normal(Tensor t, uint64_t seed) {
    for (int64_t i = 0; i < tensor_count(t); i++) {
        double x = random_normal(seed, RANDOM_TEST, 0, (uint64_t)i);
        tensor_put(t, i, fabs(x) < 1e-3 ? 1e-3 : x);
    }
}

void fill_integers(Tensor t, uint64_t seed, int64_t least, int64_t most) {
    for (int64_t i = 0; i < tensor_count(t); i++) {
        double u = random_uniform(seed, RANDOM_TEST, 1, (uint64_t)i);
        tensor_put(t, i, (double)least + floor(u * (double)(most - least + 1)));
    }
}

void fill_value(Tensor t, double value) {
    for (int64_t i = 0; i < tensor_count(t); i++) tensor_put(t, i, value);
}

/* ---- Comparison ------------------------------------------------------------------------------- */

/* Infinities say nothing of how large the others are. */
static double root_mean_square(Tensor t) {
    double sum = 0;
    int64_t count = tensor_count(t);
    for (int64_t i = 0; i < count; i++) sum += isinf(tensor_get(t, i)) ? 0 : tensor_get(t, i) * tensor_get(t, i);
    return count > 0 ? sqrt(sum / (double)count) : 0;
}

static bool is_integer(Type t) {
    return t == INT32 || t == INT64 || t == BYTE;
}

/* What errors are measured against, where an element is smaller. */
static double size_of_errors(Tensor expected, double least) {
    return fmax(root_mean_square(expected), least);
}

static bool is_close(double x, double y, double bound, double size) {
    if (isinf(y) || isnan(y)) return x == y || (isnan(x) && isnan(y));
    return fabs(x - y) <= bound * fmax(fabs(y), size);
}

void assert_close(const char *what, Tensor got, Tensor expected, double bound, double least) {
    if (!tensor_same(got, expected)) fail_msg("%s: another type or shape than expected", what);
    double size = size_of_errors(expected, least);
    if (is_integer(got.type)) bound = 0;
    for (int64_t i = 0; i < tensor_count(got); i++) {
        double x = tensor_get(got, i), y = tensor_get(expected, i);
        if (!is_close(x, y, bound, size))
            fail_msg("%s: [%lld] is %.17g, expected %.17g; they differ by %.3g, allowed %.3g", what, (long long)i, x, y,
                     fabs(x - y), bound * fmax(fabs(y), size));
    }
}

void assert_mostly_close(const char *what, Tensor got, Tensor expected, double bound, double least, double share) {
    double size = size_of_errors(expected, least);
    int64_t count = tensor_count(got), far = 0;
    for (int64_t i = 0; i < count; i++) far += !is_close(tensor_get(got, i), tensor_get(expected, i), bound, size);
    if ((double)far > fmax(1, share * (double)count))
        fail_msg("%s: %lld of %lld elements differ by more than %.3g", what, (long long)far, (long long)count, bound);
}

void assert_same_bits(const char *what, Tensor got, Tensor expected) {
    if (!tensor_same(got, expected)) fail_msg("%s: another type or shape than expected", what);
    size_t each = type_bytes(got.type);
    const char *a = got.data, *b = expected.data;
    int64_t count = tensor_count(got);
    for (int64_t i = 0; i < count; i++) {
        if (memcmp(a + (size_t)i * each, b + (size_t)i * each, each) != 0)
            fail_msg("%s: [%lld] is %.17g, expected the bits of %.17g", what, (long long)i, tensor_get(got, i),
                     tensor_get(expected, i));
    }
}

/* ---- Devices ---------------------------------------------------------------------------------- */

Device *test_device(const char *name, int threads) {
    Error e = {0};
    const Kernels *kernels = kernels_for(name, &e);
    if (e.code == EXIT_DONE) {
        Device *d = device_open(name, threads, kernels, &e);
        if (d != NULL) return d;
    }
    print_message("skipped %s: %s\n", name, e.text);
    return NULL;
}

Device *test_device_needed(const char *name, int threads) {
    return needed(test_device(name, threads));
}

void stream_finish(Stream *s) {
    event_wait(event_record(s));
}

/* ---- Defects ---------------------------------------------------------------------------------- */

static _Noreturn void run_quietly(void (*f)(void *context), void *context) {
    const struct rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    signal(SIGABRT, SIG_DFL); /* cmocka's own handler would jump back into the test */
    int nowhere = open("/dev/null", O_WRONLY);
    dup2(nowhere, STDERR_FILENO);
    f(context);
    _exit(0);
}

bool aborts(void (*f)(void *context), void *context) {
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) run_quietly(f, context);
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}
