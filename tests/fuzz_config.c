/* Any bytes as a configuration, the first line as a --set: refused with a sentence, or written and read back equal. */
#define _POSIX_C_SOURCE 200809L
#include "base/config.h"
#include "base/options.h"
#include <stdlib.h>
#include <string.h>

static char *written(const Config *c, size_t *bytes) {
    char *text;
    FILE *f = open_memstream(&text, bytes);
    MUST(f);
    config_write(c, f);
    MUST(fclose(f) == 0);
    return text;
}

/* Paths are written whole, so that it is the second text which is equal. */
static void writes_and_reads_back(const Config *c) {
    size_t bytes, again;
    char *text = written(c, &bytes);
    Config back;
    Error e = {0};
    MUST(bytes > 1024 * 1024 || config_read_text(&back, text, bytes, "written", NULL, 0, &e));
    if (e.code == EXIT_DONE && bytes <= 1024 * 1024) {
        char *second = written(&back, &again);
        MUST(again == bytes && memcmp(text, second, bytes) == 0);
        free(second);
        config_close(&back);
    }
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    const uint8_t *end = memchr(data, '\n', bytes);
    size_t first = end ? (size_t)(end - data) : 0;
    char *set = strndup((const char *)data, first);
    const char *sets[] = {set};
    Config c;
    Error e = {0};
    if (config_read_text(&c, (const char *)data + first, bytes - first, "input", sets, *set ? 1 : 0, &e)) {
        MUST(e.code == EXIT_DONE);
        writes_and_reads_back(&c);
        config_close(&c);
    } else {
        MUST(e.code == EXIT_USAGE && *e.text && strlen(e.text) < sizeof e.text);
        MUST(c.memory == NULL);
    }
    free(set);
    return 0;
}
