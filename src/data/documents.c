/* Files into documents. A text file is one document, read a megabyte at a time: byte-level ids do not care where text is
 * cut, and only whole characters are handed on. JSON lines are one document a line. What cannot be meant as text is
 * refused rather than trained on: other encodings, NUL bytes, and what formats.c knows. */
#define _POSIX_C_SOURCE 200809L
#include "data/documents.h"
#include "data/record.h"
#include "data/sources.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CHUNK = 1 << 20, LINE_LIMIT = 64 << 20 };

struct Documents {
    const Tokenizer *tokenizer;
    Sources sources;
    size_t next;    /* the source after the open one */
    int fd;         /* the open source, or -1 */
    Format format;  /* of it */
    bool at_end;    /* nothing more to read from fd */
    int64_t line;   /* of open JSON lines, from 1 */
    int64_t offset; /* bytes of the open text handed on */
    char *buffer;   /* [begin, end) is read and not yet handed on */
    size_t begin, end, buffer_room;
    Ids ids;
};

static bool no_memory(const char *where, Error *e) {
    return fail(e, EXIT_MEMORY, "out of memory while reading data; %s; free some memory", where);
}

Documents *documents_open(const char *const *paths, const Tokenizer *t, DataNotes *notes, Error *e) {
    Documents *d = calloc(1, sizeof *d);
    if (!d) {
        no_memory("data", e);
        return NULL;
    }
    d->tokenizer = t;
    d->fd = -1;
    bool found = sources_find(&d->sources, paths, e);
    *notes = d->sources.notes;
    if (found) return d;
    documents_close(d);
    return NULL;
}

void documents_close(Documents *d) {
    if (!d) return;
    if (d->fd >= 0) close(d->fd);
    sources_close(&d->sources);
    ids_free(&d->ids);
    free(d->buffer);
    free(d);
}

/* ---- Reading ---------------------------------------------------------------------------------- */

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
    if (!tokenizer_ready(d->tokenizer, path, e) || !read_more(d, path, e)) return false;
    size_t bytes = valid_utf8(d->buffer, d->end);
    size_t left = d->end - bytes;
    const char *nul = memchr(d->buffer, 0, bytes);
    if (nul) {
        return fail(e, EXIT_DATA,
                    "byte %lld is NUL, which no text has; %s; convert UTF-16 (iconv -t utf-8), leave binary files out, "
                    "or write \\u0000 in JSON lines if it is meant",
                    (long long)(d->offset + (nul - d->buffer)), path);
    }
    if (left > 3 || (left > 0 && d->at_end)) {
        return fail(e, EXIT_DATA,
                    "not UTF-8 text at byte %lld; %s; convert it (iconv -t utf-8), or name JSON lines .jsonl",
                    (long long)(d->offset + (int64_t)bytes), path);
    }
    if (!ids_reserve(&d->ids, (size_t)max64((int64_t)bytes, CHUNK), path, e)) return false;
    int64_t count = tokenizer_encode(d->tokenizer, d->buffer, bytes, d->ids.ids);
    d->begin = bytes;
    d->offset += (int64_t)bytes;
    *part = (Part){.ids = d->ids.ids, .count = count, .text_bytes = (int64_t)bytes, .ends = d->at_end};
    return true;
}

/* ---- JSON lines ------------------------------------------------------------------------------------ */

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

/* The next document of the open JSON lines; *any is false at its end. Blank lines are none. */
static bool next_document(Documents *d, const char *path, Part *part, bool *any, Error *e) {
    const char *line = NULL;
    size_t bytes = 0;
    do {
        if (!next_line(d, path, &line, &bytes, e)) return false;
        *any = line != NULL;
    } while (line && is_blank(line, bytes));
    if (!line) return true;
    char where[600];
    snprintf(where, sizeof where, "%.480s:%lld%s", path, (long long)d->line,
             d->format.guessed ? " (read as JSON lines, for the file begins with an object)" : "");
    return record_read(line, bytes, d->tokenizer, &d->ids, part, where, e);
}

/* ---- One after the other ---------------------------------------------------------------------- */

/* The kind is asked again of what is really read: a pipe has no beginning that can be looked at before. */
static bool open_next(Documents *d, Error *e) {
    const char *path = d->sources.path[d->next];
    d->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (d->fd < 0) return cannot_read(path, e);
    d->next++;
    d->at_end = false;
    d->begin = d->end = 0;
    d->line = 0;
    while (!d->at_end && d->end < FORMAT_BYTES) {
        if (!read_more(d, path, e)) return false;
    }
    d->format = format_of(path, d->buffer, d->end);
    d->begin = d->format.mark;
    d->offset = (int64_t)d->format.mark;
    return format_is_readable(&d->format, path, e);
}

static void close_current(Documents *d) {
    close(d->fd);
    d->fd = -1;
}

bool documents_next(Documents *d, Part *part, Error *e) {
    while (d->fd >= 0 || d->next < d->sources.count) {
        if (d->fd < 0 && !open_next(d, e)) return false;
        const char *path = d->sources.path[d->next - 1];
        if (d->format.kind == FORMAT_TEXT) {
            bool read = next_text(d, path, part, e);
            if (read && part->ends) close_current(d);
            return read;
        }
        bool any;
        if (!next_document(d, path, part, &any, e)) return false;
        if (any) return true;
        close_current(d);
    }
    return false;
}
