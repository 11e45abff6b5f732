/* Any bytes as a line of JSON lines and as the beginning of a file: a line gives a document that keeps every promise or
 * one sentence, and every beginning is of some kind. */
#include "data/formats.h"
#include "data/record.h"
#include "data/token_file.h"
#include <string.h>

static void read_line(const char *line, size_t bytes) {
    static Tokenizer *tokenizer;
    static Ids ids;
    Error e = {0};
    Part part;
    if (!tokenizer) tokenizer = tokenizer_open(NULL, &e);
    bool read = record_read(line, bytes, tokenizer, &ids, &part, "line:1", &e);
    MUST(read == (e.code == EXIT_DONE) && (read || (e.code == EXIT_DATA && *e.text)));
    if (!read) return;
    MUST(part.ends && part.count >= 0 && part.text_bytes >= -1 && part.count <= (int64_t)bytes);
    for (int64_t i = 0; i < part.count; i++) {
        MUST(part.ids[i] >= 0 && part.ids[i] <= TOKEN_LARGEST);
        MUST(!part.labels || (part.labels[i] >= -1 && part.labels[i] <= TOKEN_LARGEST));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static const char *const names[] = {"a.txt", "a.jsonl", "a", "a.json", "a.csv"};
    read_line((const char *)data, bytes);
    for (size_t i = 0; i < COUNT(names); i++) {
        Format format = format_of(names[i], (const char *)data, bytes);
        MUST(format.mark <= bytes && (format.kind == FORMAT_OTHER) == (format.what && format.advice));
    }
    return 0;
}
