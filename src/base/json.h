/* JSON read with limits, through jansson. Everything read from a file is hostile: size, depth (64) and the number of
 * values (8 million) are checked before parsing, duplicate keys and NUL characters are refused, and every refusal is a
 * sentence with file, line and column. Integers must fit int64, except in a record. */
#ifndef MOP_JSON_H
#define MOP_JSON_H

#include "base/base.h"
#include <jansson.h>

/* Reads a whole file: an object or an array. NULL and an Error (EXIT_DATA; EXIT_IO when the disk or permissions fail)
 * when it is missing, larger than `limit` bytes, or not JSON. The caller json_decrefs. */
json_t *json_read_file(const char *path, size_t limit, Error *e);
/* The same from memory; `where` names it in messages. */
json_t *json_read_text(const char *text, size_t bytes, const char *where, Error *e);
/* Whether text that is carried on unread is JSON at all. What other readers take is let through: numbers beyond int64,
 * duplicate keys, NUL characters. */
bool json_check_text(const char *text, size_t bytes, const char *where, Error *e);
/* As it is written to files, with a newline at its end; the caller frees. NULL: EXIT_MEMORY. */
char *json_print(const json_t *j, size_t *bytes, const char *where, Error *e);
/* One object of a data set, of which most members are not read: a number too large for 64 bits is its nearest double, and
 * strings may hold NUL characters (json_string_length). */
json_t *json_read_record(const char *text, size_t bytes, const char *where, Error *e);
/* Writes to `path` through a temporary file and rename (file_write): readers see the old file or the new one. */
bool json_write_file(const json_t *j, const char *path, Error *e);

/* jansson takes most failed allocations for a mistake in the text, or for nothing. So they are noted, for each thread;
 * reading and printing ask, and so must whoever calls jansson alone: false and EXIT_MEMORY when an allocation has failed
 * since the last question. */
bool json_had_memory(const char *where, Error *e);

/* Typed members of an object. Missing (or null): `fallback`, no error. Another type, a fraction, out of [low, high],
 * or something that is no object: an error (EXIT_DATA) that names `where` and the key. Integers may be spelled as
 * floats (1e6). */
bool json_int(const json_t *object, const char *key, int64_t fallback, int64_t low, int64_t high, int64_t *out,
              const char *where, Error *e);
bool json_double(const json_t *object, const char *key, double fallback, double *out, const char *where, Error *e);
bool json_bool(const json_t *object, const char *key, bool fallback, bool *out, const char *where, Error *e);
/* `out` is borrowed from the object; NULL when missing and `fallback` is NULL. */
bool json_text(const json_t *object, const char *key, const char *fallback, const char **out, const char *where,
               Error *e);

#endif
