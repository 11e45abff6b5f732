/* JSON from files nobody vouches for. jansson parses strictly, but recurses and allocates as the text says, so one
 * pass over the text counts depth and values first: whatever passes can cost at most a known amount of stack and
 * memory. */
#include "base/json.h"
#include "base/file.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DEPTH_LIMIT = 64, VALUE_LIMIT = 8 * 1024 * 1024 };

/* ---- Memory ----------------------------------------------------------------------------------- */

/* Beside signals the only mutable global: jansson's allocator has no context. */
static _Thread_local bool memory_failed;

static void *noting_malloc(size_t bytes) {
    void *p = malloc(bytes);
    if (!p) memory_failed = true;
    return p;
}

__attribute__((constructor)) static void note_failures(void) {
    json_set_alloc_funcs(noting_malloc, free);
}

bool json_had_memory(const char *where, Error *e) {
    bool failed = memory_failed;
    memory_failed = false;
    return !failed || fail(e, EXIT_MEMORY, "out of memory for JSON; %s; free some memory", where);
}

/* ---- Reading ---------------------------------------------------------------------------------- */

/* Values are counted as commas plus openings: never fewer than jansson will make, if the text is JSON at all. */
static bool within_limits(const char *text, size_t bytes, const char *where, Error *e) {
    int64_t line = 1, column = 0, values = 1;
    int depth = 0;
    bool quoted = false;
    for (size_t i = 0; i < bytes; i++) {
        char c = text[i];
        column++;
        if (c == '\n') line++, column = 0;
        if (quoted) {
            if (c == '\\' && i + 1 < bytes && text[i + 1] != '\n') i++, column++;
            if (c == '"') quoted = false;
            continue;
        }
        if (c == '"') quoted = true;
        if (c == ']' || c == '}') depth--;
        if (c == '[' || c == '{') depth++, values++;
        if (c == ',') values++;
        if (depth > DEPTH_LIMIT) {
            return fail(e, EXIT_DATA,
                        "JSON nested deeper than %d; %s, line %lld, column %lld; check that it is the right file",
                        DEPTH_LIMIT, where, (long long)line, (long long)column);
        }
        if (values > VALUE_LIMIT) {
            return fail(e, EXIT_DATA, "JSON with more than %d values; %s, line %lld; check that it is the right file",
                        VALUE_LIMIT, where, (long long)line);
        }
    }
    return true;
}

/* Why jansson read nothing. */
static void not_json(const json_error_t *problem, const char *where, Error *e) {
    fail(e, EXIT_DATA, "not valid JSON: %s; %s, line %d, column %d; correct it or make the file again", problem->text,
         where, problem->line, problem->column);
}

/* With jansson's flags; NULL without an Error: not JSON, as `problem` says. */
static json_t *parse(const char *text, size_t bytes, size_t flags, json_error_t *problem, const char *where, Error *e) {
    json_t *j = json_loadb(text, bytes, flags, problem);
    if (json_had_memory(where, e)) return j;
    json_decref(j);
    return NULL;
}

static json_t *read_text(const char *text, size_t bytes, size_t flags, const char *where, Error *e) {
    if (!within_limits(text, bytes, where, e)) return NULL;
    json_error_t problem;
    json_t *j = parse(text, bytes, flags, &problem, where, e);
    if (!j && e->code == EXIT_DONE) not_json(&problem, where, e);
    return j;
}

json_t *json_read_text(const char *text, size_t bytes, const char *where, Error *e) {
    return read_text(text, bytes, JSON_REJECT_DUPLICATES, where, e);
}

bool json_check_text(const char *text, size_t bytes, const char *where, Error *e) {
    json_t *j = read_text(text, bytes, JSON_DECODE_INT_AS_REAL | JSON_ALLOW_NUL, where, e);
    json_decref(j);
    return j != NULL;
}

json_t *json_read_file(const char *path, size_t limit, Error *e) {
    size_t bytes;
    char *text = file_read(path, limit, &bytes, e);
    if (!text) return NULL;
    json_t *j = json_read_text(text, bytes, path, e);
    free(text);
    return j;
}

/* ---- Records ---------------------------------------------------------------------------------- */

/* The place behind the string that begins at `i`. */
static size_t behind_string(const char *text, size_t bytes, size_t i) {
    for (i++; i < bytes && text[i] != '"'; i++) i += text[i] == '\\';
    return i + 1;
}

/* What Python writes for numbers that JSON has not; NULL: none. */
static const char *word_of_no_json(const char *text, size_t bytes, size_t *column) {
    static const char *const words[] = {"NaN", "-Infinity", "Infinity"};
    for (size_t i = 0; i < bytes; i = text[i] == '"' ? behind_string(text, bytes, i) : i + 1) {
        for (size_t w = 0; w < COUNT(words); w++) {
            size_t n = strlen(words[w]);
            if (n > bytes - i || memcmp(text + i, words[w], n) != 0) continue;
            *column = i + 1;
            return words[w];
        }
    }
    return NULL;
}

/* A number of `n` characters that jansson refuses becomes one in the same place that is as near as a double comes: of a
 * long integer 17 digits and an exponent, of what is larger than any double 1e308. */
static void tame_number(char *number, size_t n) {
    enum { DIGITS = 17, LONGEST_INTEGER = 18, LARGEST = 308 };
    char shown[32] = "1e308";
    size_t digits = 0, kept = 0;
    while (digits < n && number[digits] >= '0' && number[digits] <= '9') digits++;
    bool integer = digits == n, large = !integer && isinf(strtod(number, NULL));
    if (integer && n > LONGEST_INTEGER && n <= LARGEST) {
        kept = DIGITS;
        snprintf(shown, sizeof shown, "e%zu", n - DIGITS);
    } else if (!large && !(integer && n > LARGEST)) {
        return;
    }
    size_t length = strlen(shown);
    memset(number + kept, ' ', n - kept);
    memcpy(number + kept, shown, length);
}

static void tame_numbers(char *text, size_t bytes) {
    for (size_t i = 0, n; i < bytes; i += n) {
        n = strspn(text + i, "0123456789");
        if (n > 0) {
            n += strspn(text + i + n, "0123456789+-.eE");
            tame_number(text + i, n);
        } else {
            n = text[i] == '"' ? behind_string(text, bytes, i) - i : 1;
        }
    }
}

/* Again, with numbers that are too large for jansson tamed; they are rare, so the copy is too. */
static json_t *read_tamed(const char *text, size_t bytes, json_error_t *problem, const char *where, Error *e) {
    char *copy = malloc(bytes + 1);
    if (!copy) {
        fail(e, EXIT_MEMORY, "out of memory while reading JSON; %s; free some memory", where);
        return NULL;
    }
    memcpy(copy, text, bytes);
    copy[bytes] = 0;
    tame_numbers(copy, bytes);
    json_t *j = parse(copy, bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, problem, where, e);
    free(copy);
    return j;
}

json_t *json_read_record(const char *text, size_t bytes, const char *where, Error *e) {
    if (!within_limits(text, bytes, where, e)) return NULL;
    json_error_t problem;
    json_t *j = parse(text, bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &problem, where, e);
    if (!j && e->code == EXIT_DONE && json_error_code(&problem) == json_error_numeric_overflow)
        j = read_tamed(text, bytes, &problem, where, e);
    if (j || e->code != EXIT_DONE) return j;
    size_t column;
    const char *word = word_of_no_json(text, bytes, &column);
    if (word)
        fail(e, EXIT_DATA, "%s is not JSON; %s, column %zu; write null there (Python: allow_nan=False finds it)", word,
             where, column);
    else
        not_json(&problem, where, e);
    return NULL;
}

/* ---- Writing ---------------------------------------------------------------------------------- */

/* What an object was made of is asked here too: a member that found no memory is otherwise just not there. */
char *json_print(const json_t *j, size_t *bytes, const char *where, Error *e) {
    char *text = json_dumps(j, JSON_INDENT(2));
    if (!json_had_memory(where, e) || !text) {
        free(text);
        fail(e, EXIT_MEMORY, "out of memory for JSON; %s; free some memory", where);
        return NULL;
    }
    *bytes = strlen(text) + 1;
    text[*bytes - 1] = '\n'; /* in place of the NUL */
    return text;
}

bool json_write_file(const json_t *j, const char *path, Error *e) {
    size_t bytes;
    char *text = json_print(j, &bytes, path, e);
    bool done = text && file_write(path, text, bytes, e);
    free(text);
    return done;
}

/* ---- Typed members ---------------------------------------------------------------------------- */

/* The member, or NULL when it is missing or null; false when `object` is none. */
static bool member(const json_t *object, const char *key, const json_t **out, const char *where, Error *e) {
    *out = NULL;
    if (!json_is_object(object)) {
        return fail(e, EXIT_DATA, "a JSON object with \"%s\" is expected; %s; check that it is the right file",
                    text_shown(key).text, where);
    }
    *out = json_object_get(object, key);
    if (json_is_null(*out)) *out = NULL;
    return true;
}

static bool wrong(const char *key, const json_t *value, const char *expected, const char *where, Error *e) {
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
    fail(e, EXIT_DATA, "\"%s\" is %s, %s is expected; %s; correct the file", text_shown(key).text,
         text ? text_shown(text).text : "?", expected, where);
    free(text);
    return false;
}

static bool whole(const json_t *value, int64_t *out) {
    if (json_is_integer(value)) {
        *out = json_integer_value(value);
        return true;
    }
    double x = json_number_value(value);
    if (!json_is_real(value) || x != floor(x) || fabs(x) > 0x1p53) return false;
    *out = (int64_t)x;
    return true;
}

bool json_int(const json_t *object, const char *key, int64_t fallback, int64_t low, int64_t high, int64_t *out,
              const char *where, Error *e) {
    const json_t *value;
    if (!member(object, key, &value, where, e)) return false;
    *out = fallback;
    if (!value) return true;
    int64_t n;
    if (!whole(value, &n) || n < low || n > high) {
        char expected[96];
        snprintf(expected, sizeof expected, "an integer from %lld to %lld", (long long)low, (long long)high);
        return wrong(key, value, expected, where, e);
    }
    *out = n;
    return true;
}

bool json_double(const json_t *object, const char *key, double fallback, double *out, const char *where, Error *e) {
    const json_t *value;
    if (!member(object, key, &value, where, e)) return false;
    if (value && !json_is_number(value)) return wrong(key, value, "a number", where, e);
    *out = value ? json_number_value(value) : fallback;
    return true;
}

bool json_bool(const json_t *object, const char *key, bool fallback, bool *out, const char *where, Error *e) {
    const json_t *value;
    if (!member(object, key, &value, where, e)) return false;
    if (value && !json_is_boolean(value)) return wrong(key, value, "true or false", where, e);
    *out = value ? json_is_true(value) : fallback;
    return true;
}

bool json_text(const json_t *object, const char *key, const char *fallback, const char **out, const char *where,
               Error *e) {
    const json_t *value;
    if (!member(object, key, &value, where, e)) return false;
    if (value && !json_is_string(value)) return wrong(key, value, "a string", where, e);
    *out = value ? json_string_value(value) : fallback;
    return true;
}
