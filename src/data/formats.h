/* What a file is, by its first bytes and its name: text, JSON lines, a token file, or something that must not be taken
 * for text although its bytes might pass for it. */
#ifndef MOP_FORMATS_H
#define MOP_FORMATS_H

#include "base/base.h"

typedef enum { FORMAT_TEXT, FORMAT_LINES, FORMAT_TOKENS, FORMAT_OTHER } FormatKind;

typedef struct {
    FormatKind kind;
    bool guessed; /* of FORMAT_LINES: the contents say so, the name does not */
    size_t mark;  /* bytes of a UTF-8 byte order mark before the contents */
    /* Of FORMAT_OTHER, for a message: "a Parquet file", and what to do with it. */
    const char *what, *advice;
} Format;

enum { FORMAT_BYTES = 4096 }; /* of a file's beginning, which are enough to tell */

/* `head`: the file's first `bytes` bytes; fewer than FORMAT_BYTES only where the file is shorter. */
Format format_of(const char *path, const char *head, size_t bytes);

/* What a name says, whatever lies in the file. No case matters. */
typedef enum {
    NAME_LINES, /* .jsonl .ndjson .jsonlines .jsonl.txt */
    NAME_TEXT,  /* .txt .text .md .markdown .rst */
    NAME_BARE,  /* no extension */
    NAME_ABOUT, /* hidden, a backup, or about the data: README, LICENSE ... */
    NAME_OTHER
} NameKind;
NameKind name_kind(const char *path);

bool has_suffix(const char *path, const char *suffix); /* no case matters */

#endif
