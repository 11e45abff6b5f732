/* The files behind a list of paths, all found before any is read. */
#ifndef MOP_SOURCES_H
#define MOP_SOURCES_H

#include "data/data.h"
#include "data/formats.h"

typedef struct {
    char **path; /* [count] */
    size_t count, room;
    DataNotes notes; /* what was left out of directories, what is read otherwise than its name says */
} Sources;

/* A directory stands for its files in byte order of their names: those that a name says to be data (name_kind: lines or
 * text), and bare names whose contents are text or JSON lines. All else in it is left out and noted, directories too.
 * What is named itself, or is called data, but cannot be read as such is an error. */
bool sources_find(Sources *s, const char *const *paths, Error *e);
void sources_close(Sources *s);

/* What may be read as documents: text and JSON lines. Else an error that says what it is and what to do. */
bool format_is_readable(const Format *format, const char *path, Error *e);

/* Whether the file at `path` begins like a token file; false too when it cannot be read. */
bool is_token_file(const char *path);

/* False, with an Error of what errno says of a file of the user's data. */
bool cannot_read(const char *path, Error *e);

#endif
