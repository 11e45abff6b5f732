/* getcwd, held to UTF-8: a path that is written down must be read again. */
#define _POSIX_C_SOURCE 200809L
#include "base/directory.h"
#include "base/base.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

char *directory_now(void) {
    enum { LONGEST = 4096 };
    char *name = malloc(LONGEST + 2);
    if (!name || !getcwd(name, LONGEST)) {
        free(name);
        return NULL;
    }
    uint32_t code;
    size_t bytes = strlen(name);
    for (size_t at = 0, n = 1; at < bytes && n > 0; at += n) {
        n = (size_t)utf8_next(name + at, bytes - at, &code);
        if (n > 0) continue;
        free(name);
        errno = EILSEQ;
        return NULL;
    }
    if (name[bytes - 1] != '/') strcpy(name + bytes, "/");
    return name;
}
