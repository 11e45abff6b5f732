/* Settings from YAML and from `--set`. The reader follows libyaml's events, so that a name or a value
 * is looked at where it stands and a mistake carries its line; it goes on after a mistake, because somebody who must
 * wait for a machine wants to hear of all of them. Of YAML it takes maps, one level of sections (dotted keys say the
 * same), scalars and lists of scalars; anchors, aliases, tags and second documents are refused: of no use here. */
#define _POSIX_C_SOURCE 200809L
#include "base/config.h"
#include "base/directory.h"
#include "base/file.h"
#include "base/guess.h"
#include "base/mistakes.h"
#include "base/options.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

enum { BYTES_LIMIT = 1024 * 1024, DEPTH_LIMIT = 16, ROWS_LIMIT = 128 };

/* ---- The reader ------------------------------------------------------------------------------- */

typedef struct {
    Config *config;
    Mistakes *mistakes;
    const char *where; /* the file's name, or "--set" */
    const char *base;  /* where relative paths start: the file's directory with its '/', or "" */
    yaml_parser_t parser;
    yaml_event_t event; /* the one being looked at */
    int depth;
    int line_of[ROWS_LIMIT];    /* where a row got its value; 0: nowhere yet */
    int section_of[ROWS_LIMIT]; /* where the section that begins with this row began */
} Reader;

static int line_now(const Reader *r) {
    return (int)r->event.start_mark.line + 1;
}

/* `line` 0: of the whole. */
__attribute__((format(printf, 3, 4))) static void note(Reader *r, int line, const char *format, ...) {
    char text[512];
    int used = line ? snprintf(text, 200, "%.180s:%d: ", r->where, line) : snprintf(text, 200, "%.180s: ", r->where);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text + used, sizeof text - (size_t)used, format, arguments);
    va_end(arguments);
    mistakes_add(r->mistakes, text);
}

static void note_error(Reader *r, int line, const Error *e) {
    if (e->code == EXIT_MEMORY) r->mistakes->out_of_memory = true;
    note(r, line, "%s", e->text);
}

static void note_syntax(Reader *r) {
    const yaml_parser_t *p = &r->parser;
    if (p->error == YAML_MEMORY_ERROR) r->mistakes->out_of_memory = true;
    bool has_mark = p->error == YAML_SCANNER_ERROR || p->error == YAML_PARSER_ERROR;
    int line = (int)(has_mark ? p->problem_mark.line : p->mark.line) + 1;
    int column = (int)(has_mark ? p->problem_mark.column : p->mark.column) + 1;
    note(r, line, "not YAML: %s (column %d)", p->problem ? p->problem : "out of memory", column);
}

static const char *event_anchor(const yaml_event_t *event) {
    switch (event->type) {
    case YAML_ALIAS_EVENT: return (const char *)event->data.alias.anchor;
    case YAML_SCALAR_EVENT: return (const char *)event->data.scalar.anchor;
    case YAML_SEQUENCE_START_EVENT: return (const char *)event->data.sequence_start.anchor;
    case YAML_MAPPING_START_EVENT: return (const char *)event->data.mapping_start.anchor;
    default: return NULL;
    }
}

static const char *event_tag(const yaml_event_t *event) {
    switch (event->type) {
    case YAML_SCALAR_EVENT: return (const char *)event->data.scalar.tag;
    case YAML_SEQUENCE_START_EVENT: return (const char *)event->data.sequence_start.tag;
    case YAML_MAPPING_START_EVENT: return (const char *)event->data.mapping_start.tag;
    default: return NULL;
    }
}

static int opens(const yaml_event_t *event) {
    switch (event->type) {
    case YAML_SEQUENCE_START_EVENT:
    case YAML_MAPPING_START_EVENT: return 1;
    case YAML_SEQUENCE_END_EVENT:
    case YAML_MAPPING_END_EVENT: return -1;
    default: return 0;
    }
}

/* On to the next event. False: nothing more can be understood, and it has been said why. */
static bool next(Reader *r) {
    yaml_event_delete(&r->event);
    if (!yaml_parser_parse(&r->parser, &r->event)) {
        note_syntax(r);
        return false;
    }
    const char *anchor = event_anchor(&r->event), *tag = event_tag(&r->event);
    if (anchor)
        note(r, line_now(r), "anchors and aliases (%s) are not supported; write the value out",
             text_shown(anchor).text);
    if (tag) note(r, line_now(r), "tags (%s) are not supported; remove it", text_shown(tag).text);
    r->depth += opens(&r->event);
    if (r->depth > DEPTH_LIMIT) {
        note(r, line_now(r), "nested deeper than %d; is this a configuration of mop?", DEPTH_LIMIT);
        return false;
    }
    return true;
}

/* From the first event of a value to its last. */
static bool skip(Reader *r) {
    for (int level = opens(&r->event); level > 0; level += opens(&r->event)) {
        if (!next(r)) return false;
    }
    return true;
}

/* The scalar as a C string; NULL when it holds a NUL. */
static const char *scalar_text(const yaml_event_t *event) {
    const char *text = (const char *)event->data.scalar.value;
    return strlen(text) == event->data.scalar.length ? text : NULL;
}

static bool is_nothing(const yaml_event_t *event) {
    if (event->type != YAML_SCALAR_EVENT || event->data.scalar.style != YAML_PLAIN_SCALAR_STYLE) return false;
    const char *text = (const char *)event->data.scalar.value;
    return !*text || strcmp(text, "~") == 0 || strcmp(text, "null") == 0;
}

/* ---- Values ----------------------------------------------------------------------------------- */

static void note_memory(Reader *r) {
    r->mistakes->out_of_memory = true;
    note(r, line_now(r), "out of memory");
}

/* A path in a file starts at that file. */
static void set_located(Reader *r, const Option *o, const char *text) {
    Error e = {0};
    char *located = option_located(o, text, r->base);
    if (!located)
        note_memory(r);
    else if (!option_set(o, r->config, located, &e))
        note_error(r, line_now(r), &e);
    free(located);
}

static void set_scalar(Reader *r, const Option *o) {
    const char *text = scalar_text(&r->event);
    if (is_nothing(&r->event))
        note(r, line_now(r), "%s has no value; give one or remove the line", o->key);
    else if (!text)
        note(r, line_now(r), "%s holds a NUL character; remove it", o->key);
    else
        set_located(r, o, text);
}

typedef struct {
    char **items;
    size_t n, room;
} Items;

/* Takes `text`, which may be NULL: out of memory. */
static bool add_item(Items *list, char *text) {
    if (!text) return false;
    if (list->n == list->room) {
        size_t room = list->room ? 2 * list->room : 16;
        char **larger = realloc(list->items, room * sizeof *larger);
        if (!larger) free(text);
        if (!larger) return false;
        list->items = larger;
        list->room = room;
    }
    list->items[list->n++] = text;
    return true;
}

/* Collects to the end of the list; false when reading cannot go on. */
static bool collect_items(Reader *r, const Option *o, Items *list, bool *sound) {
    for (;;) {
        if (!next(r)) return false;
        if (r->event.type == YAML_SEQUENCE_END_EVENT) return true;
        const char *text = r->event.type == YAML_SCALAR_EVENT ? scalar_text(&r->event) : NULL;
        if (text && !is_nothing(&r->event)) {
            if (add_item(list, option_located(o, text, r->base))) continue;
            note_memory(r);
            return false;
        }
        note(r, line_now(r), "%s is a list of text; this item is none", o->key);
        *sound = false;
        if (!skip(r)) return false;
    }
}

static bool set_list(Reader *r, const Option *o) {
    int line = line_now(r);
    Items list = {0};
    bool sound = true;
    bool ended = collect_items(r, o, &list, &sound);
    Error e = {0};
    if (ended && sound && !option_set_list(o, r->config, (const char *const *)list.items, list.n, &e))
        note_error(r, line, &e);
    for (size_t i = 0; i < list.n; i++) free(list.items[i]);
    free(list.items);
    return ended;
}

static bool set_value(Reader *r, const Option *o) {
    switch (r->event.type) {
    case YAML_SCALAR_EVENT: set_scalar(r, o); return true;
    case YAML_ALIAS_EVENT: return true; /* next() has refused it */
    case YAML_SEQUENCE_START_EVENT:
        if (o->kind == OPTION_LIST) return set_list(r, o);
        note(r, line_now(r), "%s takes one value, not a list", o->key);
        return skip(r);
    default: note(r, line_now(r), "%s takes a value, not a map", o->key); return skip(r);
    }
}

/* ---- Keys ------------------------------------------------------------------------------------- */

/* The first row of the section of this name; NULL: no such section. */
static const Option *find_section(const char *name) {
    for (int i = 0; i < option_count; i++) {
        size_t n = option_section(&options[i]);
        if (n > 0 && strncmp(options[i].key, name, n) == 0 && name[n] == 0) return &options[i];
    }
    return NULL;
}

static void note_twice(Reader *r, int line, const char *key, int *first) {
    if (*first)
        note(r, line, "%s is given twice, first in line %d; remove one", key, *first);
    else
        *first = line;
}

static void note_unknown(Reader *r, int line, const char *key) {
    note(r, line, "unknown key \"%s\"; %s", text_shown(key).text, key_hint(key).text);
}

static bool read_map(Reader *r, const char *section);

static bool read_section(Reader *r, const Option *first, const char *name, int line) {
    note_twice(r, line, name, &r->section_of[first - options]);
    if (r->event.type == YAML_MAPPING_START_EVENT) return read_map(r, name);
    if (!is_nothing(&r->event)) note(r, line, "%s is a section; put its keys below it, indented", name);
    return skip(r);
}

static bool read_entry(Reader *r, const char *key, int line) {
    const Option *o = option_find(key);
    if (o) {
        note_twice(r, line, key, &r->line_of[o - options]);
        return set_value(r, o);
    }
    const Option *first = find_section(key);
    if (first) return read_section(r, first, key, line);
    if (foreign_hint(key)) {
        note_unknown(r, line, key);
        return skip(r);
    }
    int before = r->mistakes->count;
    if (r->event.type == YAML_MAPPING_START_EVENT) {
        if (!read_map(r, key)) return false;
        if (r->mistakes->count > before) return true; /* each key has been told of, as one of a section */
    }
    note_unknown(r, line, key);
    return skip(r);
}

/* The entries of a map up to its end; `section` is NULL at the top. */
static bool read_map(Reader *r, const char *section) {
    for (;;) {
        if (!next(r)) return false;
        if (r->event.type == YAML_MAPPING_END_EVENT) return true;
        int line = line_now(r);
        const char *name = r->event.type == YAML_SCALAR_EVENT ? scalar_text(&r->event) : NULL;
        if (!name) {
            note(r, line, "a key must be a plain name");
            if (!skip(r) || !next(r) || !skip(r)) return false;
            continue;
        }
        char key[128]; /* no real key is cut by it */
        snprintf(key, sizeof key, "%s%s%s", section ? section : "", section ? "." : "", name);
        if (!next(r) || !read_entry(r, key, line)) return false;
    }
}

/* ---- Documents -------------------------------------------------------------------------------- */

static void open_text(Reader *r, const char *text, size_t bytes) {
    MUST(yaml_parser_initialize(&r->parser));
    yaml_parser_set_encoding(&r->parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&r->parser, (const unsigned char *)text, bytes);
    r->depth = 0;
}

static void close_text(Reader *r) {
    yaml_event_delete(&r->event);
    yaml_parser_delete(&r->parser);
}

/* To the first event of the document's value; false when there is none. */
static bool begin_document(Reader *r) {
    if (!next(r) || !next(r)) return false; /* the stream's start, the document's */
    return r->event.type != YAML_STREAM_END_EVENT && next(r);
}

static void end_document(Reader *r) {
    if (!next(r) || !next(r)) return;
    if (r->event.type != YAML_STREAM_END_EVENT) note(r, line_now(r), "a second document begins; keep one");
}

static void read_yaml(Reader *r, const char *text, size_t bytes) {
    /* libyaml would count a byte order mark as indentation. */
    size_t mark = bytes >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
    open_text(r, text + mark, bytes - mark);
    if (begin_document(r)) {
        bool ended;
        if (r->event.type == YAML_MAPPING_START_EVENT) {
            ended = read_map(r, NULL);
        } else {
            if (!is_nothing(&r->event)) note(r, line_now(r), "a map of keys and values is expected");
            ended = skip(r);
        }
        if (ended) end_document(r);
    }
    close_text(r);
}

static void read_flow_list(Reader *r, const Option *o, const char *text) {
    open_text(r, text, strlen(text));
    if (begin_document(r) && set_value(r, o)) end_document(r);
    close_text(r);
}

/* "key=value": the value is taken literally (no quotes, no escapes); [a, b] is read as a list. */
static void apply_set(Reader *r, const char *set) {
    char key[128];
    size_t n = strcspn(set, "=");
    snprintf(key, sizeof key, "%.*s", (int)min64((int64_t)n, sizeof key - 1), set);
    const Option *o = option_find(key);
    Error e = {0};
    if (set[n] != '=')
        note(r, 0, "\"%s\" has no value; write --set key=value", text_shown(set).text);
    else if (!o)
        note_unknown(r, 0, key);
    else if (o->kind == OPTION_LIST && set[n + 1] == '[')
        read_flow_list(r, o, set + n + 1);
    else if (!option_set(o, r->config, set + n + 1, &e))
        note_error(r, 0, &e);
}

/* ---- Reading ---------------------------------------------------------------------------------- */

/* What no single row can see. */
static void check_together(Reader *r) {
    const Config *c = r->config;
    char *directory = directory_now();
    if (!directory)
        note(r, 0, "the current directory has no name in UTF-8 (%s); start mop in another", strerror(errno));
    free(directory);
    if (*c->sim_record && strncmp(c->device, "sim:", 4) == 0) {
        note(r, 0, "sim.record is given, but a sim device has no routing to record; use device: cpu");
    }
}

static bool set_defaults(Config *c, Error *e) {
    for (int i = 0; i < option_count; i++) {
        if (!option_set(&options[i], c, options[i].initial, e)) return false;
    }
    return true;
}

static bool read_text(Config *c, const char *text, size_t bytes, const char *where, const char *base,
                      const char *const *sets, int n_sets, Error *e) {
    MUST(option_count <= ROWS_LIMIT);
    *c = (Config){0};
    Mistakes mistakes = {0};
    Reader r = {.config = c, .mistakes = &mistakes, .where = where, .base = base};
    bool done = set_defaults(c, e);
    if (done) {
        if (bytes > BYTES_LIMIT)
            note(&r, 0, "larger than %d bytes; is this a configuration of mop?", BYTES_LIMIT);
        else
            read_yaml(&r, text, bytes);
        r.where = "--set";
        r.base = "";
        for (int i = 0; i < n_sets; i++) apply_set(&r, sets[i]);
        r.where = where;
        check_together(&r);
        done = mistakes_report(&mistakes, e);
    }
    if (!done) config_close(c);
    return done;
}

bool config_read_text(Config *c, const char *text, size_t bytes, const char *where, const char *const *sets, int n_sets,
                      Error *e) {
    return read_text(c, text, bytes, where, "", sets, n_sets, e);
}

bool config_read(Config *c, const char *path, const char *const *sets, int n_sets, Error *e) {
    *c = (Config){0};
    if (!path) return config_read_text(c, "", 0, "configuration", sets, n_sets, e);
    size_t bytes;
    char *text = file_read(path, BYTES_LIMIT, &bytes, e);
    if (!text) {
        if (e->code == EXIT_DATA) e->code = EXIT_USAGE; /* a configuration is no input data */
        return false;
    }
    const char *slash = strrchr(path, '/');
    char *base = strndup(path, slash ? (size_t)(slash - path) + 1 : 0);
    bool done = base ? read_text(c, text, bytes, path, base, sets, n_sets, e)
                     : fail(e, EXIT_MEMORY, "%s: out of memory while reading; free some memory", path);
    free(base);
    free(text);
    return done;
}
