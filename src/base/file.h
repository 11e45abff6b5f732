/* Whole small files: read with a limit, written so that a crash at any moment leaves the old file or the new one. */
#ifndef MOP_FILE_H
#define MOP_FILE_H

#include "base/base.h"

/* The file's bytes and a NUL after them; the caller frees. NULL and an Error when it is missing, a directory or larger
 * than `limit` (EXIT_DATA), or cannot be read (EXIT_IO). */
char *file_read(const char *path, size_t limit, size_t *bytes, Error *e);

/* Writes beside `path`, fsyncs, renames, fsyncs the directory. On failure (EXIT_IO) `path` is as it was. */
bool file_write(const char *path, const void *data, size_t bytes, Error *e);

#endif
