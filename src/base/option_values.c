/* What a row of the option table means for a value: how text becomes one, and how it becomes text again. */
#define _POSIX_C_SOURCE 200809L
#include "base/options.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- What a row allows ------------------------------------------------------------------------ */

static void print_number(double x, FILE *f) {
    fputs(number_shown(x).text, f);
}

static void print_range(const Option *o, FILE *f) {
    if (o->kind == OPTION_INTEGER) {
        fprintf(f, "an integer from %lld to %lld", (long long)o->low, (long long)o->high);
    } else {
        fputs("a number from ", f);
        print_number(o->low, f);
        fputs(" to ", f);
        print_number(o->high, f);
    }
    if (o->also != 0) {
        fputs(", or ", f);
        print_number(o->also, f);
    }
    if (*o->unit) fprintf(f, " (%s)", o->unit);
}

void option_print_allowed(const Option *o, FILE *f) {
    if (o->kind == OPTION_INTEGER || o->kind == OPTION_NUMBER) {
        print_range(o, f);
    } else if (o->choices) {
        fputs("one of ", f);
        for (int i = 0; o->choices[i]; i++) fprintf(f, "%s%s", i ? ", " : "", o->choices[i]);
    } else {
        fputs(o->kind == OPTION_LIST ? "UTF-8 text or a list of it" : "UTF-8 text", f);
    }
}

static bool refuse(const Option *o, const char *text, Error *e) {
    char allowed[256] = "";
    FILE *f = fmemopen(allowed, sizeof allowed, "w");
    if (f) {
        option_print_allowed(o, f);
        fclose(f);
    }
    return fail(e, EXIT_USAGE, "%s is \"%s\"; it must be %s", o->key, text_shown(text).text, allowed);
}

/* In "sim:FILE.json" the capitals stand for any text that is not empty. */
static bool matches_form(const char *text, const char *form) {
    const char *colon = strchr(form, ':');
    size_t capitals = colon ? strspn(colon + 1, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") : 0;
    if (capitals == 0) return strcmp(text, form) == 0;
    size_t before = (size_t)(colon - form) + 1, length = strlen(text);
    const char *after = colon + 1 + capitals;
    return strncmp(text, form, before) == 0 && length > before + strlen(after) &&
           strcmp(text + length - strlen(after), after) == 0;
}

/* ---- Paths ------------------------------------------------------------------------------------ */

const char *option_path(const Option *o, const char *text) {
    for (int i = 0; o->words && o->words[i]; i++)
        if (strcmp(text, o->words[i]) == 0) return NULL;
    if (o->path) return *text ? text : NULL;
    for (int i = 0; o->choices && o->choices[i]; i++) {
        const char *file = strstr(o->choices[i], ":FILE");
        if (file && matches_form(text, o->choices[i])) return text + (file - o->choices[i]) + 1;
    }
    return NULL;
}

char *option_located(const Option *o, const char *text, const char *base) {
    const char *path = option_path(o, text);
    bool relative = path && *path != '/' && *path != '~';
    size_t bytes = strlen(text) + strlen(base) + 1;
    char *located = malloc(bytes);
    int before = path ? (int)(path - text) : 0;
    if (located) snprintf(located, bytes, "%.*s%s%s", before, text, relative ? base : "", text + before);
    return located;
}

/* ---- Text becomes a value --------------------------------------------------------------------- */

/* What the strings of a Config live in: blocks, freed together. */
struct ConfigMemory {
    struct ConfigMemory *next;
    _Alignas(max_align_t) char bytes[];
};

static void *keep(Config *c, const void *data, size_t bytes, Error *e) {
    struct ConfigMemory *block = malloc(offsetof(struct ConfigMemory, bytes) + bytes);
    if (!block) {
        fail(e, EXIT_MEMORY, "out of memory while reading the configuration; free some memory");
        return NULL;
    }
    block->next = c->memory;
    c->memory = block;
    return data ? memcpy(block->bytes, data, bytes) : block->bytes;
}

void config_close(Config *c) {
    for (struct ConfigMemory *block = c->memory, *next; block; block = next) {
        next = block->next;
        free(block);
    }
    *c = (Config){0};
}

/* Decimal digits only: no hexadecimal, no nan or infinity, no blanks, nothing behind. */
static bool parse_number(const char *text, double *out) {
    if (!*text || text[strspn(text, "+-.0123456789eE")]) return false;
    char *end;
    *out = strtod(text, &end);
    return *end == 0 && isfinite(*out);
}

static bool parse_integer(const char *text, int64_t *out) {
    char *end;
    errno = 0;
    *out = strtoll(text, &end, 10);
    if (*text && text[strspn(text, "+-0123456789")] == 0) return *end == 0 && errno == 0;
    double x; /* 1e6 */
    if (!parse_number(text, &x) || x != floor(x) || fabs(x) > OPTION_MOST) return false;
    *out = (int64_t)x;
    return true;
}

static bool in_range(const Option *o, double x) {
    return (x >= o->low && x <= o->high) || (o->also != 0 && x == o->also);
}

static bool is_utf8(const char *text) {
    size_t bytes = strlen(text);
    for (uint32_t code; bytes > 0;) {
        int n = utf8_next(text, bytes, &code);
        if (n == 0) return false;
        text += n;
        bytes -= (size_t)n;
    }
    return true;
}

static bool is_allowed_text(const Option *o, const char *text) {
    if (!is_utf8(text)) return false;
    if (!o->choices) return true;
    for (int i = 0; o->choices[i]; i++) {
        if (matches_form(text, o->choices[i])) return true;
    }
    return false;
}

/* A shell would have replaced it, had it stood at a word's start. */
static bool refuse_tilde(const Option *o, const char *text, Error *e) {
    return fail(e, EXIT_USAGE, "%s is \"%s\"; mop does not know ~: write the home directory out", o->key,
                text_shown(text).text);
}

static bool is_tilde(const Option *o, const char *text) {
    const char *path = option_path(o, text);
    return path && path[0] == '~' && (path[1] == 0 || path[1] == '/');
}

static bool set_text(const Option *o, Config *c, const char *text, Error *e) {
    if (!is_allowed_text(o, text)) return refuse(o, text, e);
    if (is_tilde(o, text)) return refuse_tilde(o, text, e);
    const char *kept = keep(c, text, strlen(text) + 1, e);
    if (kept) *(const char **)((char *)c + o->offset) = kept;
    return kept != NULL;
}

static bool set_integer(const Option *o, Config *c, const char *text, Error *e) {
    int64_t n;
    if (!parse_integer(text, &n) || !in_range(o, (double)n)) return refuse(o, text, e);
    *(int64_t *)((char *)c + o->offset) = n;
    return true;
}

static bool set_number(const Option *o, Config *c, const char *text, Error *e) {
    double x;
    if (!parse_number(text, &x) || !in_range(o, x)) return refuse(o, text, e);
    *(double *)((char *)c + o->offset) = x + 0.0; /* -0 becomes 0 */
    return true;
}

static bool set_choice(const Option *o, Config *c, const char *text, Error *e) {
    for (int i = 0; o->choices[i]; i++) {
        if (strcmp(text, o->choices[i]) != 0) continue;
        memcpy((char *)c + o->offset, &i, sizeof i);
        return true;
    }
    return refuse(o, text, e);
}

bool option_set_list(const Option *o, Config *c, const char *const *items, size_t n, Error *e) {
    MUST(o->kind == OPTION_LIST);
    const char **list = keep(c, NULL, (n + 1) * sizeof *list, e);
    if (!list) return false;
    for (size_t i = 0; i < n; i++) {
        if (!*items[i]) return fail(e, EXIT_USAGE, "%s has an empty item; remove it", o->key);
        if (!is_utf8(items[i])) return refuse(o, items[i], e);
        if (is_tilde(o, items[i])) return refuse_tilde(o, items[i], e);
        list[i] = keep(c, items[i], strlen(items[i]) + 1, e);
        if (!list[i]) return false;
    }
    list[n] = NULL;
    *(const char ***)((char *)c + o->offset) = list;
    return true;
}

bool option_set(const Option *o, Config *c, const char *text, Error *e) {
    switch (o->kind) {
    case OPTION_TEXT: return set_text(o, c, text, e);
    case OPTION_LIST: return option_set_list(o, c, &text, *text ? 1 : 0, e);
    case OPTION_INTEGER: return set_integer(o, c, text, e);
    case OPTION_NUMBER: return set_number(o, c, text, e);
    case OPTION_CHOICE: return set_choice(o, c, text, e);
    }
    return false;
}

/* ---- A value becomes text --------------------------------------------------------------------- */

/* Characters that YAML may hold as they are in double quotes, and that no editor mistakes for a line's end. */
static bool is_plain(uint32_t c) {
    if (c == '"' || c == '\\') return false;
    if (c == 0x2028 || c == 0x2029 || c == 0xfeff) return false;
    return (c >= 0x20 && c <= 0x7e) || (c >= 0xa0 && c <= 0xd7ff) || (c >= 0xe000 && c <= 0xfffd) || c >= 0x10000;
}

static void print_quoted(const char *text, FILE *f) {
    size_t bytes = strlen(text);
    fputc('"', f);
    for (uint32_t code = 0; bytes > 0;) {
        int n = utf8_next(text, bytes, &code);
        MUST(n > 0);
        if (is_plain(code))
            fprintf(f, "%.*s", n, text);
        else if (code == '"' || code == '\\')
            fprintf(f, "\\%c", (char)code);
        else if (code == '\n')
            fputs("\\n", f);
        else
            fprintf(f, "\\u%04x", (unsigned)code); /* all others lie below 0x10000 */
        text += n;
        bytes -= (size_t)n;
    }
    fputc('"', f);
}

static const void *field(const Option *o, const Config *c) {
    return (const char *)c + o->offset;
}

static const char *choice(const Option *o, const Config *c) {
    int i;
    memcpy(&i, field(o, c), sizeof i);
    return o->choices[i];
}

static void print_text(const Option *o, const char *text, const char *base, FILE *f) {
    char *located = option_located(o, text, base);
    MUST(located);
    print_quoted(located, f);
    free(located);
}

static void print_list(const Option *o, const char *const *list, const char *base, FILE *f) {
    fputc('[', f);
    for (int i = 0; list[i]; i++) {
        if (i) fputs(", ", f);
        print_text(o, list[i], base, f);
    }
    fputc(']', f);
}

void option_print_located(const Option *o, const Config *c, const char *base, FILE *f) {
    switch (o->kind) {
    case OPTION_TEXT: print_text(o, *(const char *const *)field(o, c), base, f); break;
    case OPTION_LIST: print_list(o, *(const char *const *const *)field(o, c), base, f); break;
    case OPTION_INTEGER: fprintf(f, "%lld", (long long)*(const int64_t *)field(o, c)); break;
    case OPTION_NUMBER: print_number(*(const double *)field(o, c), f); break;
    case OPTION_CHOICE: fputs(choice(o, c), f); break;
    }
}

void option_print(const Option *o, const Config *c, FILE *f) {
    option_print_located(o, c, "", f);
}

char *option_text_located(const Option *o, const Config *c, const char *base) {
    char *text = NULL;
    size_t bytes;
    FILE *f = open_memstream(&text, &bytes);
    MUST(f);
    option_print_located(o, c, base, f);
    MUST(fclose(f) == 0);
    return text;
}

char *option_text(const Option *o, const Config *c) {
    return option_text_located(o, c, "");
}

static bool equal_lists(const char *const *a, const char *const *b) {
    for (; *a && *b; a++, b++) {
        if (strcmp(*a, *b) != 0) return false;
    }
    return *a == *b;
}

bool option_equal(const Option *o, const Config *a, const Config *b) {
    const void *x = field(o, a), *y = field(o, b);
    switch (o->kind) {
    case OPTION_TEXT: return strcmp(*(const char *const *)x, *(const char *const *)y) == 0;
    case OPTION_LIST: return equal_lists(*(const char *const *const *)x, *(const char *const *const *)y);
    case OPTION_INTEGER: return *(const int64_t *)x == *(const int64_t *)y;
    case OPTION_NUMBER: return *(const double *)x == *(const double *)y;
    case OPTION_CHOICE: return choice(o, a) == choice(o, b);
    }
    return false;
}
