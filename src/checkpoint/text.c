/* Text that grows by doubling; a failed allocation is kept as a flag, so that the story of who writes has one
 * check at its end. */
#include "checkpoint/text.h"
#include <stdio.h>
#include <stdlib.h>

static bool reserve(Text *t, size_t more) {
    if (t->room - t->bytes > more) return true;
    size_t room = t->room ? t->room : 256;
    while (room - t->bytes <= more) room *= 2;
    char *text = realloc(t->text, room);
    if (!text) {
        t->failed = true;
        return false;
    }
    t->text = text;
    t->room = room;
    return true;
}

void text_add(Text *t, const char *format, ...) {
    if (t->failed) return;
    va_list list, again;
    va_start(list, format);
    va_copy(again, list);
    int bytes = vsnprintf(NULL, 0, format, list);
    MUST(bytes >= 0);
    if (reserve(t, (size_t)bytes)) {
        vsnprintf(t->text + t->bytes, t->room - t->bytes, format, again);
        t->bytes += (size_t)bytes;
    }
    va_end(again);
    va_end(list);
}

Path path_join(const char *directory, const char *name) {
    Path p;
    int bytes = snprintf(p.text, sizeof p.text, "%s/%s", directory, name);
    if (bytes < 0 || (size_t)bytes >= sizeof p.text) p.text[0] = 0;
    return p;
}
