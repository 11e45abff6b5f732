/* The words every file uses, made true: each here is a few lines, and none knows of any other part of mop. */
#define _POSIX_C_SOURCE 200809L
#include "base/base.h"
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- Element types ---------------------------------------------------------------------------- */

static const struct {
    const char *name;
    size_t bytes;
} types[TYPE_COUNT] = {
    [FP32] = {"fp32", 4},   [BF16] = {"bf16", 2},   [FP64] = {"fp64", 8},
    [INT32] = {"int32", 4}, [INT64] = {"int64", 8}, [BYTE] = {"byte", 1},
};

size_t type_bytes(Type t) {
    MUST(t < TYPE_COUNT);
    return types[t].bytes;
}

const char *type_name(Type t) {
    MUST(t < TYPE_COUNT);
    return types[t].name;
}

Type type_sum(Type compute) {
    return compute == FP64 ? FP64 : FP32;
}

uint16_t bf16_from_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    if (is_nan) return (uint16_t)(bits >> 16 | 0x0040u); /* the quiet bit: the high half alone might be an infinity */
    return (uint16_t)((bits + 0x8000u) >> 16);
}

float bf16_to_float(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* ---- Errors ----------------------------------------------------------------------------------- */

void must_failed(const char *expression, const char *file, int line) {
    fprintf(stderr, "mop: defect: MUST(%s) failed at %s:%d; please report it\n", expression, file, line);
    abort();
}

static bool is_control(unsigned char c) {
    return c < 0x20 || c == 0x7f;
}

/* Names out of files may carry escape sequences that would act on the reader's terminal. */
static void hide_controls(char *text) {
    for (; *text; text++) {
        if (is_control((unsigned char)*text) && *text != '\n' && *text != '\t') *text = '?';
    }
}

bool fail(Error *e, ExitCode code, const char *format, ...) {
    MUST(code != EXIT_DONE);
    if (e->code != EXIT_DONE) return false;
    e->code = code;
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(e->text, sizeof e->text, format, arguments);
    va_end(arguments);
    if (length >= (int)sizeof e->text) memcpy(e->text + sizeof e->text - 4, "...", 4);
    hide_controls(e->text);
    return false;
}

int error_print(const Error *e) {
    fprintf(stderr, "mop: error[%d]: %s\n", (int)e->code, e->text);
    return (int)e->code;
}

/* ---- Text from outside ------------------------------------------------------------------------ */

Shown text_shown(const char *text) {
    enum { LONGEST = 64 };
    Shown shown;
    size_t n = strnlen(text, LONGEST + 1);
    bool cut = n > LONGEST;
    if (cut) {
        n = LONGEST;
        while (n > 0 && ((unsigned char)text[n] & 0xc0) == 0x80) n--; /* not inside a UTF-8 character */
    }
    memcpy(shown.text, text, n);
    for (size_t i = 0; i < n; i++) {
        if (is_control((unsigned char)shown.text[i])) shown.text[i] = '?';
    }
    strcpy(shown.text + n, cut ? "..." : "");
    return shown;
}

Shown number_shown(double x) {
    Shown shown;
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(shown.text, sizeof shown.text, "%.*g", digits, x);
        if (strtod(shown.text, NULL) == x) break;
    }
    char *exponent = strchr(shown.text, 'e');
    if (exponent) /* 1e-8, not 1e-08 */
        snprintf(exponent + 1, sizeof shown.text - (size_t)(exponent + 1 - shown.text), "%d", atoi(exponent + 1));
    return shown;
}

int utf8_next(const char *text, size_t bytes, uint32_t *code) {
    static const struct {
        uint8_t mask, lead; /* a first byte b is of this row when (b & mask) == lead */
        uint32_t least;     /* smaller code points are overlong */
    } rows[] = {{0x80, 0x00, 0}, {0xe0, 0xc0, 0x80}, {0xf0, 0xe0, 0x800}, {0xf8, 0xf0, 0x10000}};
    if (bytes == 0) return 0;
    const unsigned char *b = (const unsigned char *)text;
    for (int n = 1; n <= (int)COUNT(rows); n++) {
        if ((b[0] & rows[n - 1].mask) != rows[n - 1].lead) continue;
        if (bytes < (size_t)n) return 0;
        uint32_t c = b[0] & (uint32_t)(uint8_t)~rows[n - 1].mask;
        for (int i = 1; i < n; i++) {
            if ((b[i] & 0xc0) != 0x80) return 0;
            c = c << 6 | (b[i] & 0x3f);
        }
        bool surrogate = c >= 0xd800 && c <= 0xdfff;
        if (c < rows[n - 1].least || surrogate || c > 0x10ffff) return 0;
        *code = c;
        return n;
    }
    return 0;
}

/* ---- Small helpers ---------------------------------------------------------------------------- */

bool mul_size(int64_t a, int64_t b, int64_t *out) {
    return a >= 0 && b >= 0 && !__builtin_mul_overflow(a, b, out);
}

bool add_size(int64_t a, int64_t b, int64_t *out) {
    return a >= 0 && b >= 0 && !__builtin_add_overflow(a, b, out);
}

uint64_t hash_more(uint64_t hash, const void *data, size_t bytes) {
    const unsigned char *byte = data;
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ byte[i]) * UINT64_C(0x100000001b3);
    return hash;
}

uint64_t hash_line(uint64_t hash, const char *text) {
    return hash_more(hash_more(hash, text, strlen(text)), "\n", 1);
}

double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

bool reached_soon(const _Atomic uint64_t *count, uint64_t target) {
    enum { TURNS = 20 };
    for (int i = 0; i < TURNS; i++) {
        if (atomic_load(count) >= target) return true;
        sched_yield();
    }
    return atomic_load(count) >= target;
}
