/* Any bytes as a configuration, the first line as a --set: refused with a sentence, or written and read back equal. */
#define _POSIX_C_SOURCE 200809L
#include "base/config.h"
#include "base/options.h"
#include <stdlib.h>
#include <string.h>

static void writes_and_reads_back(const Config *c) {
    char *text;
    size_t bytes;
    FILE *f = open_memstream(&text, &bytes);
    MUST(f);
    config_write(c, f);
    MUST(fclose(f) == 0);
    Config back;
    Error e = {0};
    MUST(bytes > 1024 * 1024 || config_read_text(&back, text, bytes, "written", NULL, 0, &e));
    if (e.code == EXIT_DONE && bytes <= 1024 * 1024) {
        for (int i = 0; i < option_count; i++) MUST(option_equal(&options[i], c, &back));
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
