/* Words every file uses: element types, our-bug assertions, errors of the user's or the machine's making. */
#ifndef MOP_BASE_H
#define MOP_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- Element types ---------------------------------------------------------------------------- */

typedef enum { FP32, BF16, FP64, INT32, INT64, BYTE, TYPE_COUNT } Type;

size_t type_bytes(Type t);
const char *type_name(Type t); /* "fp32", "bf16", "fp64", "int32", "int64", "byte" */

/* The type in which sums over tokens, gradients, norms and losses of a run are kept: fp64 in an fp64 run, else fp32. */
Type type_sum(Type compute);

/* bf16 is the high half of an fp32, rounded half up in magnitude: hi = (bits + 0x8000) >> 16. The one cast of the whole
 * program: with the low 16 bits kept beside it, `bits = (hi << 16) + (int16)lo` restores every fp32 but a NaN exactly.
 * A NaN stays a NaN of its sign, made quiet; what rounds beyond the largest bf16 becomes infinite. */
uint16_t bf16_from_float(float x);
float bf16_to_float(uint16_t h);

/* ---- Our bugs --------------------------------------------------------------------------------- */

/* On in every build. A failed MUST is a defect of mop, never of its user: it prints where, and aborts. */
#define MUST(x) ((x) ? (void)0 : must_failed(#x, __FILE__, __LINE__))
_Noreturn void must_failed(const char *expression, const char *file, int line);

/* ---- The user's and the machine's errors ------------------------------------------------------ */

typedef enum {
    EXIT_DONE = 0,
    EXIT_WRONG = 1,    /* a check was made and its answer is no: doctor, ckpt diff, verify-layouts */
    EXIT_USAGE = 2,    /* command line or configuration */
    EXIT_DATA = 3,     /* bad input data or file */
    EXIT_MEMORY = 4,   /* out of memory, or the plan does not fit */
    EXIT_IO = 5,       /* disk full, EIO, permissions */
    EXIT_PEER = 6,     /* another rank was lost */
    EXIT_DIVERGED = 7, /* too many steps without a finite gradient */
    EXIT_STOPPED = 75, /* stopped early, checkpoint saved, run the same command again */
} ExitCode;

/* One failure: an exit code and one line "what; where; what to do". Code 0 means that nothing failed: start from {0}.
 * A function that can fail takes `Error *e` last and returns false after fail(). The first failure is kept.
 * The text is safe to print: fail() replaces control characters and ends a text that does not fit with "...". */
typedef struct {
    ExitCode code;
    char text[2048];
} Error;

bool fail(Error *e, ExitCode code, const char *format, ...) __attribute__((format(printf, 3, 4))); /* always false */

/* Prints "mop: error[CODE]: text" on standard error, once, and returns the code. */
int error_print(const Error *e);

/* ---- Text from outside ------------------------------------------------------------------------ */

/* Strings out of files made fit for a message: one line, control characters shown as '?', cut at 64 bytes. */
typedef struct {
    char text[72];
} Shown;
Shown text_shown(const char *text);

/* The fewest digits that read back as the same double: "0.003", "1e-8". */
Shown number_shown(double x);

/* Bytes of the UTF-8 character at `text` (1 to 4) and its code point; 0 when there is none or it is malformed. */
int utf8_next(const char *text, size_t bytes, uint32_t *code);

/* ---- Small helpers ---------------------------------------------------------------------------- */

static inline int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static inline int64_t max64(int64_t a, int64_t b) {
    return a > b ? a : b;
}
static inline int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

/* For sizes that come from files: false when a or b is negative, or on overflow. */
bool mul_size(int64_t a, int64_t b, int64_t *out);
bool add_size(int64_t a, int64_t b, int64_t *out);

/* FNV-1a: goes on from HASH_START, or from the hash of what came before. */
#define HASH_START UINT64_C(0xcbf29ce484222325)
uint64_t hash_more(uint64_t hash, const void *data, size_t bytes);
uint64_t hash_line(uint64_t hash, const char *text); /* and a line's end: "a", "b" is not "ab" */

double seconds_now(void); /* monotonic */

/* Gives the processor away a few times while *count is below target: what is waited for is often only another thread's
 * turn away, and to sleep and be woken takes longer than that. True when it came; else the caller sleeps. */
bool reached_soon(const _Atomic uint64_t *count, uint64_t target);

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

#endif
