/* Any bytes as JSON: refused with a sentence, or read; typed members hold what they promise, and what is dumped reads
 * back. */
#include "base/json.h"
#include <stdlib.h>
#include <string.h>

static void members_keep_their_promises(const json_t *j) {
    int64_t n;
    double x;
    bool b;
    const char *text;
    Error e = {0}, not_number = {0}, not_bool = {0}, not_text = {0};
    if (json_int(j, "n", 5, 0, 1000, &n, "input", &e))
        MUST(n >= 0 && n <= 1000);
    else
        MUST(e.code == EXIT_DATA);
    if (!json_double(j, "x", 1, &x, "input", &not_number)) MUST(not_number.code == EXIT_DATA);
    if (!json_bool(j, "b", true, &b, "input", &not_bool)) MUST(not_bool.code == EXIT_DATA);
    if (json_text(j, "t", "", &text, "input", &not_text)) MUST(strlen(text) < SIZE_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    Error e = {0};
    json_t *j = json_read_text((const char *)data, bytes, "input", &e);
    if (!j) {
        MUST(e.code == EXIT_DATA && *e.text);
        return 0;
    }
    members_keep_their_promises(j);
    char *text = json_dumps(j, JSON_COMPACT);
    json_t *back = json_read_text(text, strlen(text), "dumped", &e);
    MUST(back && json_equal(j, back));
    json_decref(back);
    json_decref(j);
    free(text);
    return 0;
}
