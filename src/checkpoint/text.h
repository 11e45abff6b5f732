/* Text that grows: headers, manifests and model cards are made in memory, so that they can be hashed before
 * they are written. */
#ifndef MOP_TEXT_H
#define MOP_TEXT_H

#include "base/base.h"

/* Starts as {0}; ends with free(text). After `failed` (out of memory) nothing more is added. */
typedef struct {
    char *text; /* NUL-terminated once something was added */
    size_t bytes, room;
    bool failed;
} Text;

void text_add(Text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A path made of two. Empty, which no file is named, when it would be longer than any path may be. */
typedef struct {
    char text[4096];
} Path;
Path path_join(const char *directory, const char *name);

#endif
