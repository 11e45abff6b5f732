/* What is at a path, and whole small files: read with a limit, written so that a crash at any moment leaves the old
 * file or the new one.
 *
 * An error is never an absence or an end. "There is no such file" is said by ENOENT and ENOTDIR alone; a listing has
 * ended when readdir says so without an error. Everything else fails. */
#ifndef MOP_FILE_H
#define MOP_FILE_H

#include "base/base.h"
#include <dirent.h>

/* The exit code for an errno: what is missing or of another kind is EXIT_DATA, no memory EXIT_MEMORY, everything else
 * EXIT_IO. */
ExitCode file_code(int why);

typedef enum { KIND_NONE, KIND_FILE, KIND_DIRECTORY, KIND_OTHER } FileKind;
/* What `path` leads to; links are followed, and one that leads nowhere is an error (EXIT_DATA). */
bool file_kind(const char *path, FileKind *kind, Error *e);
bool file_exists(const char *path, bool *exists, Error *e);

/* The next name in a directory, hidden ones too but not "." and ".."; NULL after the last one. `path` is for messages. */
bool directory_next(DIR *d, const char *path, const char **name, Error *e);

/* The file's bytes and a NUL after them; the caller frees. NULL and an Error when it is missing, a directory or larger
 * than `limit` (EXIT_DATA), or cannot be read (EXIT_IO). */
char *file_read(const char *path, size_t limit, size_t *bytes, Error *e);

/* Writes beside `path`, fsyncs, renames, fsyncs the directory. On failure (EXIT_IO) `path` is as it was. */
bool file_write(const char *path, const void *data, size_t bytes, Error *e);

/* fsyncs the directory that `path` is in: only then is a rename, or a new directory, on the disk. */
bool file_sync_parent(const char *path, Error *e);

#endif
