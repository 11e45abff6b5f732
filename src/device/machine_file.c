/* Machine files: JSON, written by `mop doctor --out` or by a person. A file is checked whole, and everything that
 * is missing, unknown or impossible is listed at once. One table says what the numbers are; reading and writing
 * walk it.
 *
 *   {"mop_machine": 1, "name": "twelve nodes", "like": "h200", "nodes": {"count": 12, "bytes_per_s": 40e9}}
 *
 * describes a cluster: what a file does not say is taken from the row that "like" names; without "like" everything
 * must be said.
 */
#include "device/machines.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { VERSION = 1, FILE_BYTES_MOST = 1 << 20 };

/* ---- What a file holds -------------------------------------------------------------------------- */

typedef struct {
    const char *section, *key;
    size_t offset; /* of a double in Machine; of an int64_t where `whole` */
    double low, high;
    bool whole;
    bool network; /* may be missing where there is one node: the link's value then */
} Number;

#define RATE(kind, text, type)                                                                                         \
    { "unit_rates", text "_flop_per_s", offsetof(Machine, achieved[kind][type]), 1e6, 1e18, false, false }
#define PEAK(text, type)                                                                                               \
    { "unit_rates", text "_flop_per_s", offsetof(Machine, peak[type]), 1e6, 1e18, false, false }
static const Number numbers[] = {
    {"nodes", "count", offsetof(Machine, nodes), 1, MACHINE_UNITS_MOST, true, false},
    {"nodes", "units", offsetof(Machine, units), 1, MACHINE_UNITS_MOST, true, false},
    {"nodes", "bytes_per_s", offsetof(Machine, network.bytes_per_s), 1e5, 1e14, false, true},
    {"nodes", "latency_s", offsetof(Machine, network.latency_s), 1e-9, 10, false, true},
    {"link", "bytes_per_s", offsetof(Machine, link.bytes_per_s), 1e5, 1e14, false, false},
    {"link", "latency_s", offsetof(Machine, link.latency_s), 1e-9, 10, false, false},
    PEAK("peak_fp32", FP32),
    PEAK("peak_bf16", BF16),
    PEAK("peak_fp64", FP64),
    RATE(RATE_MATRIX, "matrix_fp32", FP32),
    RATE(RATE_MATRIX, "matrix_bf16", BF16),
    RATE(RATE_MATRIX, "matrix_fp64", FP64),
    RATE(RATE_ATTENTION, "attention_fp32", FP32),
    RATE(RATE_ATTENTION, "attention_bf16", BF16),
    RATE(RATE_ATTENTION, "attention_fp64", FP64),
    RATE(RATE_ELEMENTWISE, "elementwise_fp32", FP32),
    RATE(RATE_ELEMENTWISE, "elementwise_bf16", BF16),
    RATE(RATE_ELEMENTWISE, "elementwise_fp64", FP64),
    {"unit_rates", "memory_bytes_per_s", offsetof(Machine, bytes_per_s), 1e6, 1e15, false, false},
    {"unit_rates", "memory_bytes", offsetof(Machine, memory_bytes), 1e6, 1e16, false, false},
};
static const char *const sections[] = {"nodes", "link", "unit_rates"};
static const char *const others[] = {"mop_machine", "name", "source", "unit", "like", "measured"};
static const char *const units[] = {"_flop_per_s", "_bytes_per_s", "_parameters_per_s",
                                    "_s"}; /* how the names of measured figures end */

bool machine_is_file(const char *name) {
    size_t n = strlen(name);
    return n > 5 && strcmp(name + n - 5, ".json") == 0;
}

/* ---- Problems are collected ---------------------------------------------------------------------- */

typedef struct {
    char text[1800];
    int count, shown;
} Problems;

__attribute__((format(printf, 2, 3))) static void problem(Problems *p, const char *format, ...) {
    char line[320];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    size_t used = strlen(p->text);
    p->count++;
    if (p->shown < p->count - 1 || used + strlen(line) + 4 > sizeof p->text) return; /* the first ones, without gaps */
    snprintf(p->text + used, sizeof p->text - used, "\n  %s", line);
    p->shown++;
}

static bool report(const Problems *p, const char *where, Error *e) {
    if (p->count == 0) return true;
    int hidden = p->count - p->shown;
    char more[32] = "";
    if (hidden > 0) snprintf(more, sizeof more, "\n  and %d more", hidden);
    return fail(e, EXIT_USAGE,
                "no machine can be like this; %.150s; correct the file or make it again with `mop doctor --out`:%s%s",
                where, p->text, more);
}

/* ---- Reading -------------------------------------------------------------------------------------- */

static bool among(const char *key, const char *const *list, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (strcmp(key, list[i]) == 0) return true;
    return false;
}

static bool is_number_of(const char *section, const char *key) {
    for (size_t i = 0; i < COUNT(numbers); i++)
        if (strcmp(numbers[i].section, section) == 0 && strcmp(numbers[i].key, key) == 0) return true;
    return false;
}

static void check_keys(const json_t *file, Problems *p) {
    const char *key, *inner;
    json_t *value, *ignored;
    json_object_foreach((json_t *)(uintptr_t)file, key, value) {
        bool section = among(key, sections, COUNT(sections));
        if (!section && !among(key, others, COUNT(others))) problem(p, "\"%s\": unknown", text_shown(key).text);
        if (section && !json_is_object(value)) problem(p, "\"%s\": must be an object", key);
        if (!section || !json_is_object(value)) continue;
        json_object_foreach(value, inner, ignored) if (!is_number_of(key, inner))
            problem(p, "\"%s\" in \"%s\": unknown", text_shown(inner).text, key);
    }
}

/* A text of this file; keeps what `like` gave when it is missing and need not be there. */
static void read_text(const json_t *file, const char *key, char *out, size_t bytes, bool needed, Problems *p) {
    const json_t *value = json_object_get(file, key);
    const char *text = json_string_value(value);
    if (!value && needed) problem(p, "\"%s\": missing", key);
    if (value && !text) problem(p, "\"%s\": must be text", key);
    if (!text) return;
    if (!*text || strlen(text) >= bytes)
        problem(p, "\"%s\": must have 1 to %zu bytes, has %zu", key, bytes - 1, strlen(text));
    else
        snprintf(out, bytes, "%s", text);
}

static void read_number(const json_t *file, const Number *n, Machine *m, bool like, Problems *p) {
    const json_t *value = json_object_get(json_object_get(file, n->section), n->key);
    double x = json_number_value(value);
    if (!value) {
        if (!like && !n->network) problem(p, "\"%s\" in \"%s\": missing", n->key, n->section);
        return;
    }
    if (!json_is_number(value)) {
        problem(p, "\"%s\" in \"%s\": must be a number", n->key, n->section);
    } else if (!(x >= n->low && x <= n->high)) {
        problem(p, "\"%s\" in \"%s\" is %g: must be from %g to %g", n->key, n->section, x, n->low, n->high);
    } else if (n->whole && x != floor(x)) {
        problem(p, "\"%s\" in \"%s\" is %g: must be whole", n->key, n->section, x);
    } else if (n->whole) {
        *(int64_t *)((char *)m + n->offset) = (int64_t)x;
    } else {
        *(double *)((char *)m + n->offset) = x;
    }
}

static void read_unit(const json_t *file, Machine *m, bool like, Problems *p) {
    const json_t *value = json_object_get(file, "unit");
    const char *text = json_string_value(value);
    if (!value && like) return;
    bool core = text && strcmp(text, "core") == 0, gpu = text && strcmp(text, "gpu") == 0;
    if (!core && !gpu)
        problem(p, "\"unit\": %s", value ? "must be \"core\" or \"gpu\"" : "missing; \"core\" or \"gpu\"");
    m->cores = core;
}

/* Values that are possible one by one and not together. */
static void check_together(const Machine *m, Problems *p) {
    static const char *const kinds[] = {
        [RATE_MATRIX] = "matrix", [RATE_ATTENTION] = "attention", [RATE_ELEMENTWISE] = "elementwise"};
    for (int k = 0; k < RATE_COUNT; k++)
        for (int t = 0; t < RATE_TYPES; t++)
            if (m->peak[t] > 0 && m->achieved[k][t] > m->peak[t])
                problem(p, "%s_%s_flop_per_s is %g: above peak_%s_flop_per_s, %g", kinds[k], type_name((Type)t),
                        m->achieved[k][t], type_name((Type)t), m->peak[t]);
    if (m->nodes * m->units > MACHINE_UNITS_MOST)
        problem(p, "\"count\" x \"units\" in \"nodes\": more than %d", MACHINE_UNITS_MOST);
    if (m->nodes > 1 && m->network.bytes_per_s == 0)
        problem(p, "\"bytes_per_s\" in \"nodes\": missing, with more than one node");
    if (m->nodes > 1 && m->network.latency_s == 0)
        problem(p, "\"latency_s\" in \"nodes\": missing, with more than one node");
}

static void check_figure(const char *key, const json_t *figure, Problems *p) {
    static const char *const parts[] = {"min", "median", "max"};
    double x[COUNT(parts)];
    bool named = false;
    for (size_t i = 0; i < COUNT(units); i++) {
        size_t n = strlen(key), end = strlen(units[i]);
        named = named || (n > end && strcmp(key + n - end, units[i]) == 0);
    }
    if (!named)
        problem(p, "\"%s\" in \"measured\": its name must end with a unit: _flop_per_s, _bytes_per_s or _s",
                text_shown(key).text);
    for (size_t i = 0; i < COUNT(parts); i++) {
        const json_t *value = json_object_get(figure, parts[i]);
        x[i] = json_number_value(value);
        if (json_is_number(value) && x[i] > 0) continue;
        problem(p, "\"%s\" in \"measured\": \"%s\" must be a number above 0", text_shown(key).text, parts[i]);
        return;
    }
    if (x[0] > x[1] || x[1] > x[2])
        problem(p, "\"%s\" in \"measured\": min, median and max are not in order", text_shown(key).text);
}

static void check_measured(const json_t *file, Problems *p) {
    json_t *measured = json_object_get(file, "measured"), *figure;
    const char *key;
    if (measured && !json_is_object(measured)) problem(p, "\"measured\": must be an object");
    json_object_foreach(measured, key, figure) check_figure(key, figure, p);
}

static void read_version(const json_t *file, Problems *p) {
    const json_t *version = json_object_get(file, "mop_machine");
    if (!version)
        problem(p, "\"mop_machine\": missing; it is the version of the file, %d", VERSION);
    else if (!json_is_integer(version) || json_integer_value(version) != VERSION)
        problem(p, "\"mop_machine\": must be %d, the version that this mop reads", VERSION);
}

static bool read_like(const json_t *file, Machine *out, Problems *p) {
    const json_t *like = json_object_get(file, "like");
    const char *name = json_string_value(like);
    const Machine *row = name ? machine_row(name) : NULL;
    if (like && !row) problem(p, "\"like\": must name a built-in machine; `mop config explain device` lists them");
    if (row) *out = *row;
    return row != NULL;
}

static void read_machine(const json_t *file, Machine *out, Problems *p) {
    check_keys(file, p);
    read_version(file, p);
    bool like = read_like(file, out, p);
    read_text(file, "name", out->name, sizeof out->name, true, p);
    read_text(file, "source", out->source, sizeof out->source, !like, p);
    read_unit(file, out, like, p);
    for (size_t i = 0; i < COUNT(numbers); i++) read_number(file, &numbers[i], out, like, p);
    check_together(out, p);
    check_measured(file, p);
    if (out->network.bytes_per_s == 0) out->network.bytes_per_s = out->link.bytes_per_s;
    if (out->network.latency_s == 0) out->network.latency_s = out->link.latency_s;
}

/* A file of the user's naming that is no machine file is a mistake of usage. */
static bool parse(const json_t *file, const char *where, Machine *out, Error *e) {
    Problems p = {0};
    *out = (Machine){0};
    if (!file) {
        if (e->code == EXIT_DATA) e->code = EXIT_USAGE;
        return false;
    }
    if (json_is_object(file))
        read_machine(file, out, &p);
    else
        problem(&p, "it is no object");
    return report(&p, where, e);
}

bool machine_parse(const char *text, size_t bytes, const char *where, Machine *out, Error *e) {
    json_t *file = json_read_text(text, bytes, where, e);
    bool ok = parse(file, where, out, e);
    json_decref(file);
    return ok;
}

bool machine_open(const char *name, Machine *out, Error *e) {
    if (machine_is_file(name)) {
        json_t *file = json_read_file(name, FILE_BYTES_MOST, e);
        bool ok = parse(file, name, out, e);
        json_decref(file);
        return ok;
    }
    const Machine *row = machine_row(name);
    if (!row)
        return fail(
            e, EXIT_USAGE,
            "device: no machine is named \"%s\"; `mop config explain device` lists them; a file's name ends in .json",
            text_shown(name).text);
    *out = *row;
    return true;
}

json_t *machine_measured(const char *path, Error *e) {
    json_t *file = json_read_file(path, FILE_BYTES_MOST, e), *measured = json_object_get(file, "measured");
    json_incref(measured);
    json_decref(file);
    return measured;
}

/* ---- Writing -------------------------------------------------------------------------------------- */

json_t *machine_json(const Machine *m) {
    json_t *file = json_pack("{s:i, s:s, s:s, s:s}", "mop_machine", VERSION, "name", m->name, "source", m->source,
                             "unit", m->cores ? "core" : "gpu");
    MUST(file);
    for (size_t i = 0; i < COUNT(sections); i++) MUST(json_object_set_new(file, sections[i], json_object()) == 0);
    for (size_t i = 0; i < COUNT(numbers); i++) {
        const char *at = (const char *)m + numbers[i].offset;
        json_t *value = numbers[i].whole ? json_integer(*(const int64_t *)at) : json_real(*(const double *)at);
        MUST(json_object_set_new(json_object_get(file, numbers[i].section), numbers[i].key, value) == 0);
    }
    return file;
}
