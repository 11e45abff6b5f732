/* Files into documents. A plain file is one document of UTF-8 text, read a megabyte at a time: byte-level
 * ids do not care where text is cut, and only whole characters are handed on. A .jsonl file is one document
 * a line. What cannot be meant as text is refused rather than trained on: other encodings, archives and
 * Parquet (not UTF-8), .json, padded token lists. */
#define _POSIX_C_SOURCE 200809L
#include "data/documents.h"
#include "base/json.h"
#include "data/token_file.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { CHUNK = 1 << 20, LINE_LIMIT = 64 << 20, IGNORED = -100 };

typedef struct {
    char *path;
    bool lines; /* JSONL */
} Source;

struct Documents {
    const Tokenizer *tokenizer;
    Source *sources; /* [count] */
    size_t count, room;
    size_t next;    /* the source after the open one */
    int fd;         /* the open source, or -1 */
    bool at_end;    /* nothing more to read from fd */
    int64_t line;   /* of the open JSONL source, from 1 */
    int64_t offset; /* bytes of the open text source handed on */
    char *buffer;   /* [begin, end) is read and not yet handed on */
    size_t begin, end, buffer_room;
    int32_t *ids, *labels; /* [ids_room] */
    size_t ids_room;
};

/* ---- The list of files ------------------------------------------------------------------------ */

bool has_suffix(const char *path, const char *suffix) {
    size_t n = strlen(path), m = strlen(suffix);
    return n >= m && strcmp(path + n - m, suffix) == 0;
}

bool is_token_file(const char *path) {
    char magic[sizeof(TOKEN_MAGIC) - 1];
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return false;
    bool same =
        pread(fd, magic, sizeof magic, 0) == (ssize_t)sizeof magic && memcmp(magic, TOKEN_MAGIC, sizeof magic) == 0;
    close(fd);
    return same;
}

static bool no_memory(const char *where, Error *e) {
    return fail(e, EXIT_MEMORY, "out of memory while reading data; %s; free some memory", where);
}

static bool cannot_read(const char *path, Error *e) {
    bool missing = errno == ENOENT || errno == ENOTDIR;
    return fail(e, missing ? EXIT_DATA : EXIT_IO,
                "%s: cannot read: %s; check the path and its rights (relative ones start at the file that names them, or at "
                "the current directory)",
                path, strerror(errno));
}

/* Takes `path`. */
static bool add_source(Documents *d, char *path, Error *e) {
    if (d->count == d->room) {
        size_t room = d->room ? 2 * d->room : 16;
        Source *larger = realloc(d->sources, room * sizeof *larger);
        if (!larger) {
            no_memory(path, e);
            free(path);
            return false;
        }
        d->sources = larger;
        d->room = room;
    }
    d->sources[d->count++] = (Source){path, has_suffix(path, ".jsonl")};
    if (has_suffix(path, ".json")) {
        return fail(e, EXIT_DATA,
                    "a .json file is neither text nor JSONL; %s; one document a line, and the name .jsonl", path);
    }
    if (has_suffix(path, ".tokens") || is_token_file(path)) {
        return fail(e, EXIT_DATA,
                    "a token file cannot be joined with other data; %s; name it alone, or the files it was made of",
                    path);
    }
    return true;
}

static bool is_directory(const char *path, bool *yes, Error *e) {
    struct stat s;
    if (stat(path, &s) != 0) return cannot_read(path, e);
    *yes = S_ISDIR(s.st_mode);
    return true;
}

static int is_visible(const struct dirent *entry) {
    return entry->d_name[0] != '.';
}

/* Bytes, not the user's language, decide the order of documents. */
static int by_name(const struct dirent **a, const struct dirent **b) {
    return strcmp((*a)->d_name, (*b)->d_name);
}

static bool add_member(Documents *d, const char *directory, const char *name, Error *e) {
    size_t bytes = strlen(directory) + strlen(name) + 2;
    char *path = malloc(bytes);
    if (!path) return no_memory(directory, e);
    snprintf(path, bytes, "%s%s%s", directory, has_suffix(directory, "/") ? "" : "/", name);
    bool nested = false;
    if (!is_directory(path, &nested, e)) {
        free(path);
        return false;
    }
    if (nested) {
        fail(e, EXIT_DATA, "a directory within a data directory; %s; name such directories one by one", path);
        free(path);
        return false;
    }
    return add_source(d, path, e);
}

static bool add_directory(Documents *d, const char *directory, Error *e) {
    struct dirent **entries;
    int count = scandir(directory, &entries, is_visible, by_name);
    if (count < 0) return cannot_read(directory, e);
    bool added = true;
    for (int i = 0; i < count; i++) {
        added = added && add_member(d, directory, entries[i]->d_name, e);
        free(entries[i]);
    }
    free(entries);
    if (count == 0)
        return fail(e, EXIT_DATA, "no files in the directory; %s; put text or .jsonl files there", directory);
    return added;
}

static bool add_path(Documents *d, const char *path, Error *e) {
    bool directory = false;
    if (!is_directory(path, &directory, e)) return false;
    if (directory) return add_directory(d, path, e);
    char *copy = strdup(path);
    return copy ? add_source(d, copy, e) : no_memory(path, e);
}

Documents *documents_open(const char *const *paths, const Tokenizer *t, Error *e) {
    Documents *d = calloc(1, sizeof *d);
    if (!d) {
        no_memory("data", e);
        return NULL;
    }
    d->tokenizer = t;
    d->fd = -1;
    bool found = true;
    for (const char *const *path = paths; found && *path; path++) found = add_path(d, *path, e);
    if (found && d->count == 0) {
        found = fail(e, EXIT_USAGE,
                     "no data is named; data.path; give a text file, a .jsonl file, a directory or a token file");
    }
    if (found) return d;
    documents_close(d);
    return NULL;
}

void documents_close(Documents *d) {
    if (!d) return;
    for (size_t i = 0; i < d->count; i++) free(d->sources[i].path);
    if (d->fd >= 0) close(d->fd);
    free(d->sources);
    free(d->buffer);
    free(d->ids);
    free(d->labels);
    free(d);
}

/* ---- Buffers ---------------------------------------------------------------------------------- */

/* Room for `count` ids and as many labels. */
static bool reserve_ids(Documents *d, size_t count, const char *where, Error *e) {
    if (count <= d->ids_room) return true;
    free(d->ids);
    free(d->labels);
    d->ids = malloc(count * sizeof *d->ids);
    d->labels = malloc(count * sizeof *d->labels);
    d->ids_room = d->ids && d->labels ? count : 0;
    return d->ids_room > 0 || no_memory(where, e);
}

/* Reads once more behind what is buffered, making room first: by moving to the front, or else by growing. */
static bool read_more(Documents *d, const char *path, Error *e) {
    if (d->begin > 0) {
        memmove(d->buffer, d->buffer + d->begin, d->end - d->begin);
        d->end -= d->begin;
        d->begin = 0;
    }
    if (d->end == d->buffer_room) {
        size_t room = d->buffer_room ? 2 * d->buffer_room : CHUNK;
        char *larger = realloc(d->buffer, room);
        if (!larger) return no_memory(path, e);
        d->buffer = larger;
        d->buffer_room = room;
    }
    ssize_t got;
    do got = read(d->fd, d->buffer + d->end, d->buffer_room - d->end);
    while (got < 0 && errno == EINTR);
    if (got < 0) return cannot_read(path, e);
    d->at_end = got == 0;
    d->end += (size_t)got;
    return true;
}

/* ---- Text ------------------------------------------------------------------------------------- */

/* How many of the bytes are whole, valid characters. */
static size_t valid_utf8(const char *text, size_t bytes) {
    size_t i = 0;
    uint32_t code;
    while (i < bytes) {
        int length = (unsigned char)text[i] < 0x80 ? 1 : utf8_next(text + i, bytes - i, &code);
        if (length == 0) break;
        i += (size_t)length;
    }
    return i;
}

/* The next megabyte of the open text; the part at the end of the file is empty. A character that the end of
 * the buffer cuts (at most three bytes of it) waits for the next read. */
static bool next_text(Documents *d, const char *path, Part *part, Error *e) {
    if (!d->tokenizer) return fail(e, EXIT_USAGE, "text needs a tokenizer; %s; give one, or the built-in bytes", path);
    if (!read_more(d, path, e)) return false;
    size_t bytes = valid_utf8(d->buffer, d->end);
    size_t left = d->end - bytes;
    if (left > 3 || (left > 0 && d->at_end)) {
        return fail(e, EXIT_DATA,
                    "not UTF-8 text at byte %lld; %s; convert it (iconv -t utf-8), or name JSON lines .jsonl",
                    (long long)(d->offset + (int64_t)bytes), path);
    }
    if (!reserve_ids(d, max64((int64_t)bytes, CHUNK), path, e)) return false;
    int64_t count = tokenizer_encode(d->tokenizer, d->buffer, bytes, d->ids);
    d->begin = bytes;
    d->offset += (int64_t)bytes;
    *part = (Part){.ids = d->ids, .count = count, .text_bytes = (int64_t)bytes, .ends = d->at_end};
    return true;
}

/* ---- JSONL ------------------------------------------------------------------------------------ */

/* The next line, without its newline; *line NULL at the end of the file. It lives until the next read. */
static bool next_line(Documents *d, const char *path, const char **line, size_t *bytes, Error *e) {
    size_t searched = 0;
    d->line++;
    for (;;) {
        size_t have = d->end - d->begin;
        char *newline = have > searched ? memchr(d->buffer + d->begin + searched, '\n', have - searched) : NULL;
        *bytes = newline ? (size_t)(newline - (d->buffer + d->begin)) : have;
        if (*bytes > LINE_LIMIT) {
            return fail(e, EXIT_DATA, "line longer than %d MiB; %s:%lld; split the document", LINE_LIMIT >> 20, path,
                        (long long)d->line);
        }
        if (newline || d->at_end) {
            *line = newline || have > 0 ? d->buffer + d->begin : NULL;
            d->begin += *bytes + (newline != NULL);
            return true;
        }
        searched = have;
        if (!read_more(d, path, e)) return false;
    }
}

static bool is_blank(const char *line, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) {
        if (!strchr(" \t\r", line[i]) || line[i] == 0) return false;
    }
    return true;
}

/* One list of integers: in [0, TOKEN_LARGEST], or -100 where that is allowed, which becomes -1. */
static bool read_list(const json_t *list, const char *key, bool may_ignore, int32_t *out, const char *where, Error *e) {
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *value = json_array_get(list, i);
        int64_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        bool ignored = may_ignore && id == IGNORED;
        if (!ignored && (id < 0 || id > TOKEN_LARGEST)) {
            char *shown = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
            fail(e, EXIT_DATA, "\"%s\"[%zu] is %s, an integer from 0 to %d%s is expected; %s; correct the line", key, i,
                 shown ? text_shown(shown).text : "?", TOKEN_LARGEST, may_ignore ? ", or -100," : "", where);
            free(shown);
            return false;
        }
        out[i] = ignored ? -1 : (int32_t)id;
    }
    return true;
}

/* An optional list as long as `ids`: NULL when missing. */
static bool companion(const json_t *object, const char *key, const json_t *ids, const json_t **out, const char *where,
                      Error *e) {
    *out = json_object_get(object, key);
    if (json_is_null(*out)) *out = NULL;
    if (!*out) return true;
    if (!json_is_array(*out)) return fail(e, EXIT_DATA, "\"%s\" is not a list; %s; correct the line", key, where);
    if (json_array_size(*out) != json_array_size(ids)) {
        return fail(e, EXIT_DATA, "%zu input_ids but %zu in \"%s\"; %s; make them equally many", json_array_size(ids),
                    json_array_size(*out), key, where);
    }
    return true;
}

/* Padding that the mask hides would be trained here. */
static bool nothing_masked(const json_t *mask, const char *where, Error *e) {
    for (size_t i = 0; i < json_array_size(mask); i++) {
        if (json_integer_value(json_array_get(mask, i)) == 1) continue;
        return fail(e, EXIT_DATA, "\"attention_mask\"[%zu] is not 1; %s; leave padding out of input_ids", i, where);
    }
    return true;
}

static bool ids_of_line(Documents *d, const json_t *object, const json_t *ids, Part *part, const char *where,
                        Error *e) {
    const json_t *labels, *mask;
    if (!json_is_array(ids)) return fail(e, EXIT_DATA, "\"input_ids\" is not a list; %s; correct the line", where);
    if (!companion(object, "labels", ids, &labels, where, e) ||
        !companion(object, "attention_mask", ids, &mask, where, e)) {
        return false;
    }
    if (!reserve_ids(d, json_array_size(ids), where, e) || !read_list(ids, "input_ids", false, d->ids, where, e) ||
        !read_list(labels, "labels", true, d->labels, where, e) || !nothing_masked(mask, where, e)) {
        return false;
    }
    *part = (Part){d->ids, labels ? d->labels : NULL, (int64_t)json_array_size(ids), -1, true};
    return true;
}

static bool text_of_line(Documents *d, const json_t *text, Part *part, const char *where, Error *e) {
    if (!json_is_string(text)) return fail(e, EXIT_DATA, "\"text\" is not a string; %s; correct the line", where);
    if (!d->tokenizer) return fail(e, EXIT_USAGE, "text needs a tokenizer; %s; give one, or the built-in bytes", where);
    size_t bytes = json_string_length(text);
    if (!reserve_ids(d, bytes, where, e)) return false;
    int64_t count = tokenizer_encode(d->tokenizer, json_string_value(text), bytes, d->ids);
    *part = (Part){.ids = d->ids, .count = count, .text_bytes = (int64_t)bytes, .ends = true};
    return true;
}

static bool document_of(Documents *d, const json_t *object, Part *part, const char *where, Error *e) {
    static const char *expected = "{\"text\": ...} or {\"input_ids\": [...]}";
    if (!json_is_object(object)) {
        return fail(e, EXIT_DATA, "the line is not an object; %s; %s is expected", where, expected);
    }
    const json_t *text = json_object_get(object, "text"), *ids = json_object_get(object, "input_ids");
    if (!text && !ids) {
        return fail(e, EXIT_DATA, "the line has neither \"text\" nor \"input_ids\"; %s; %s is expected", where,
                    expected);
    }
    if (text && ids) {
        return fail(e, EXIT_DATA, "the line has both \"text\" and \"input_ids\"; %s; keep the one to train on", where);
    }
    if (ids) return ids_of_line(d, object, ids, part, where, e);
    if (json_object_get(object, "labels")) {
        return fail(e, EXIT_DATA, "\"labels\" belong to \"input_ids\", this line has \"text\"; %s; remove them", where);
    }
    return text_of_line(d, text, part, where, e);
}

/* The next document of the open JSONL file; *any is false at its end. Blank lines are none. */
static bool next_document(Documents *d, const char *path, Part *part, bool *any, Error *e) {
    const char *line = NULL;
    size_t bytes = 0;
    do {
        if (!next_line(d, path, &line, &bytes, e)) return false;
        *any = line != NULL;
    } while (line && is_blank(line, bytes));
    if (!line) return true;
    char where[512];
    snprintf(where, sizeof where, "%.480s:%lld", path, (long long)d->line);
    json_t *object = json_read_text(line, bytes, where, e);
    bool read = object && document_of(d, object, part, where, e);
    json_decref(object);
    return read;
}

/* ---- One after the other ---------------------------------------------------------------------- */

static bool open_next(Documents *d, Error *e) {
    const char *path = d->sources[d->next].path;
    d->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (d->fd < 0) return cannot_read(path, e);
    d->next++;
    d->at_end = false;
    d->begin = d->end = 0;
    d->line = d->offset = 0;
    return true;
}

static void close_current(Documents *d) {
    close(d->fd);
    d->fd = -1;
}

bool documents_next(Documents *d, Part *part, Error *e) {
    while (d->fd >= 0 || d->next < d->count) {
        if (d->fd < 0 && !open_next(d, e)) return false;
        const Source *source = &d->sources[d->next - 1];
        if (!source->lines) {
            bool read = next_text(d, source->path, part, e);
            if (read && part->ends) close_current(d);
            return read;
        }
        bool any;
        if (!next_document(d, source->path, part, &any, e)) return false;
        if (any) return true;
        close_current(d);
    }
    return false;
}
