/* Names lie and contents are ambiguous, so both are asked. Contents that begin like a known binary format are never text,
 * whatever the name; neither is a name of such a format, whatever the contents. What begins like a JSON object is JSON
 * lines under any name: a book does not begin so, and what is no JSON further on is refused with its line. */
#define _GNU_SOURCE
#include "data/formats.h"
#include "data/token_file.h"
#include <string.h>
#include <strings.h>

/* ---- What is no text -------------------------------------------------------------------------- */

static const char unpack[] = "unpack it first";
static const char to_lines[] = "write its text as JSON lines, {\"text\": ...} each, in a .jsonl file";
static const char to_utf8[] = "convert it to UTF-8 (iconv -f utf-16 -t utf-8, or utf-32)";
static const char not_data[] = "name a text or .jsonl file";

/* Known by its magic bytes, by its name, or by either. */
static const struct Other {
    const char *what, *magic;
    size_t bytes, at; /* of the magic */
    const char *suffix, *advice;
} others[] = {
    {"a Parquet file", "PAR1", 4, 0, ".parquet", to_lines},
    {"an Arrow file", "ARROW1", 6, 0, ".arrow", to_lines},
    {"an Arrow stream", "\xff\xff\xff\xff", 4, 0, NULL, to_lines},
    {"a Feather file", "FEA1", 4, 0, ".feather", to_lines},
    {"an ORC file", NULL, 0, 0, ".orc", to_lines},
    {"an Avro file", "Obj\x01", 4, 0, ".avro", to_lines},
    {"an SQLite database", "SQLite format 3", 16, 0, ".sqlite", to_lines},
    {"an HDF5 file", "\x89HDF", 4, 0, ".h5", to_lines},
    {"a table", NULL, 0, 0, ".csv", to_lines},
    {"a table", NULL, 0, 0, ".tsv", to_lines},
    {"a spreadsheet", NULL, 0, 0, ".xlsx", to_lines},
    {"a PDF file", "%PDF-", 5, 0, ".pdf", to_lines},
    {"a gzip file", "\x1f\x8b", 2, 0, ".gz", unpack},
    {"a zstd file", "\x28\xb5\x2f\xfd", 4, 0, ".zst", unpack},
    {"an xz file",
     "\xfd"
     "7zXZ",
     6, 0, ".xz", unpack},
    {"a bzip2 file", "1AY&SY", 6, 4, ".bz2", unpack},
    {"an lz4 file", "\x04\x22\x4d\x18", 4, 0, ".lz4", unpack},
    {"a zip archive (.zip, .pt, .npz, .docx)", "PK\x03\x04", 4, 0, ".zip", unpack},
    {"an empty zip archive", "PK\x05\x06", 4, 0, NULL, not_data},
    {"a 7-Zip archive", "7z\xbc\xaf\x27\x1c", 6, 0, ".7z", unpack},
    {"a tar archive", "ustar", 5, 257, ".tar", unpack},
    {"a file of PyTorch or Python (pickle)", NULL, 0, 0, ".pt", to_lines},
    {"a file of PyTorch or Python (pickle)", NULL, 0, 0, ".pth", to_lines},
    {"a file of PyTorch or Python (pickle)", NULL, 0, 0, ".pkl", to_lines},
    {"a NumPy file", "\x93NUMPY", 6, 0, ".npy", to_lines},
    {"a NumPy file", NULL, 0, 0, ".npz", to_lines},
    {"a safetensors file", NULL, 0, 0, ".safetensors", not_data},
    {"a GGUF file", "GGUF", 4, 0, ".gguf", not_data},
    {"a PNG image", "\x89PNG", 4, 0, ".png", not_data},
    {"a JPEG image", "\xff\xd8\xff", 3, 0, ".jpg", not_data},
    {"a GIF image", "GIF8", 4, 0, ".gif", not_data},
    {"a program",
     "\x7f"
     "ELF",
     4, 0, NULL, not_data},
    {"UTF-32 text", "\xff\xfe\0", 4, 0, NULL, to_utf8},
    {"UTF-32 text", "\0\0\xfe\xff", 4, 0, NULL, to_utf8},
    {"UTF-16 text", "\xff\xfe", 2, 0, NULL, to_utf8},
    {"UTF-16 text", "\xfe\xff", 2, 0, NULL, to_utf8},
};

bool has_suffix(const char *path, const char *suffix) {
    size_t n = strlen(path), m = strlen(suffix);
    return n >= m && strcasecmp(path + n - m, suffix) == 0;
}

static bool matches(const struct Other *o, const char *path, const char *head, size_t bytes) {
    if (o->suffix && has_suffix(path, o->suffix)) return true;
    return o->magic && bytes >= o->at + o->bytes && memcmp(head + o->at, o->magic, o->bytes) == 0;
}

/* Protocols 2 to 5; older ones are not told from text. */
static bool is_pickle(const char *head, size_t bytes) {
    return bytes >= 2 && (unsigned char)head[0] == 0x80 && head[1] >= 2 && head[1] <= 5;
}

/* The length of a JSON header, at most 100 MB, and the header. */
static bool is_safetensors(const char *head, size_t bytes) {
    uint64_t length;
    if (bytes < sizeof length + 1) return false;
    memcpy(&length, head, sizeof length);
    return length > 1 && length <= 100000000 && head[sizeof length] == '{';
}

/* ---- JSON ------------------------------------------------------------------------------------- */

static const char *skip_blanks(const char *at, const char *end) {
    while (at < end && strchr(" \t\r\n", *at) && *at) at++;
    return at;
}

static const char *skip(const char *at, const char *end, char expected) {
    if (!at) return NULL;
    at = skip_blanks(at, end);
    return at < end && *at == expected ? at + 1 : NULL;
}

/* `{ "key" :` */
static bool begins_object(const char *at, const char *end) {
    at = skip(skip(at, end, '{'), end, '"');
    while (at && at < end && *at != '"') at += 1 + (*at == '\\' && at + 1 < end);
    return at && skip(skip(at, end, '"'), end, ':');
}

static bool begins_list_of_objects(const char *at, const char *end) {
    at = skip(at, end, '[');
    return at && begins_object(at, end);
}

/* ---- Names ------------------------------------------------------------------------------------ */

/* "README", "readme.md", "LICENSE-CC"; not "readmes". */
static bool is_about(const char *name) {
    static const char *const words[] = {"readme", "license",   "licence",      "copying",
                                        "notice", "changelog", "contributing", "checksums"};
    for (size_t i = 0; i < COUNT(words); i++) {
        size_t n = strlen(words[i]);
        if (strncasecmp(name, words[i], n) == 0 && (!name[n] || strchr("._-", name[n]))) return true;
    }
    return has_suffix(name, "sums") && !strchr(name, '.'); /* SHA256SUMS */
}

static bool is_any(const char *path, const char *const *suffixes, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (has_suffix(path, suffixes[i])) return true;
    }
    return false;
}

static bool is_lines(const char *path) {
    static const char *const suffixes[] = {".jsonl", ".ndjson", ".jsonlines", ".jsonl.txt"};
    return is_any(path, suffixes, COUNT(suffixes));
}

NameKind name_kind(const char *path) {
    static const char *const suffixes[] = {".txt", ".text", ".md", ".markdown", ".rst"};
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    size_t length = strlen(name);
    if (name[0] == '.' || (length > 0 && strchr("~#", name[length - 1]))) return NAME_ABOUT;
    if (is_lines(name)) return NAME_LINES;
    if (is_about(name)) return NAME_ABOUT;
    if (is_any(name, suffixes, COUNT(suffixes))) return NAME_TEXT;
    return strchr(name, '.') ? NAME_OTHER : NAME_BARE;
}

/* ---- The kind --------------------------------------------------------------------------------- */

static Format other(const char *what, const char *advice) {
    return (Format){.kind = FORMAT_OTHER, .what = what, .advice = advice};
}

Format format_of(const char *path, const char *head, size_t bytes) {
    static const char *json = "write one document a line, {\"text\": ...}, and name the file .jsonl";
    if (bytes >= strlen(TOKEN_MAGIC) && memcmp(head, TOKEN_MAGIC, strlen(TOKEN_MAGIC)) == 0)
        return (Format){.kind = FORMAT_TOKENS};
    if (has_suffix(path, ".tokens")) return (Format){.kind = FORMAT_TOKENS};
    if (is_safetensors(head, bytes)) return other("a safetensors file", not_data);
    if (is_pickle(head, bytes)) return other("a file of PyTorch or Python (pickle)", to_lines);
    for (size_t i = 0; i < COUNT(others); i++) {
        if (matches(&others[i], path, head, bytes)) return other(others[i].what, others[i].advice);
    }
    size_t mark = bytes >= 3 && memcmp(head, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
    const char *begin = head + mark, *end = head + bytes;
    if (is_lines(path)) return (Format){.kind = FORMAT_LINES, .mark = mark};
    if (begins_object(begin, end)) return (Format){.kind = FORMAT_LINES, .guessed = true, .mark = mark};
    if (begins_list_of_objects(begin, end)) return other("a JSON list", json);
    if (has_suffix(path, ".json")) return other("a .json file", json);
    return (Format){.kind = FORMAT_TEXT, .mark = mark};
}
