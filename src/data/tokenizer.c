/* The byte-level vocabulary: every byte is a token, so that any text has ids and any ids have text.
 *
 * It is kept as the tokenizer.json that `transformers` reads: a BPE model without merges over the 256
 * symbols of GPT-2's byte alphabet, in which a byte that prints is itself and the 68 others are the
 * characters from U+0100 on. The built-in vocabulary is such a file made in memory, and goes through the
 * same reading as one from the disk. Files with merges are not usable: whoever has them needs real BPE, and
 * byte ids would be plausible and wrong. Files are kept as the bytes that were read, and written so. */
#define _POSIX_C_SOURCE 200809L
#include "data/tokenizer.h"
#include "base/file.h"
#include "base/json.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BYTES = 256 };
static const char file_name[] = "tokenizer.json", config_name[] = "tokenizer_config.json";
static const size_t file_limit = (size_t)64 << 20;

typedef struct {
    int32_t id;
    size_t bytes;
    const char *text; /* borrowed from `byte` or `file` of the tokenizer */
} Symbol;

/* A file as it is; nothing in tokenizer_config.json matters here, and jansson has no room for its customary
 * model_max_length of 10^30. */
typedef struct {
    char *text; /* NULL: there is none */
    size_t bytes;
} Kept;

struct Tokenizer {
    char *path; /* NULL: the built-in one, or none */
    int32_t id_of_byte[BYTES];
    char byte[BYTES];
    Symbol *symbols; /* [count], by id */
    size_t count;
    bool understood; /* the file is of a kind that text can be tokenised with */
    json_t *json;    /* tokenizer.json */
    Kept file, config;
    Error unusable; /* why text cannot be tokenised, though it may be understood; code 0: it can */
};

static const char *advice =
    "give data as {\"input_ids\": [...]} that Python's tokenizers made, or set data.tokenizer to "
    "a byte-level tokenizer.json or to bytes";

/* ---- GPT-2's byte alphabet -------------------------------------------------------------------- */

static bool prints(int byte) {
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
}

static uint32_t code_of_byte(int byte) {
    if (prints(byte)) return (uint32_t)byte;
    uint32_t code = BYTES;
    for (int b = 0; b < byte; b++) code += !prints(b);
    return code;
}

/* The byte that a vocabulary entry stands for; -1 when it stands for none. */
static int byte_of_symbol(const char *symbol, const uint32_t code_of[BYTES]) {
    uint32_t code;
    size_t bytes = strlen(symbol);
    int length = utf8_next(symbol, bytes, &code);
    if (length == 0 || (size_t)length != bytes) return -1;
    for (int b = 0; b < BYTES; b++) {
        if (code_of[b] == code) return b;
    }
    return -1;
}

/* ---- The built-in file ------------------------------------------------------------------------ */

static json_t *built_in_vocabulary(void) {
    json_t *vocabulary = json_object();
    for (int b = 0; b < BYTES; b++) {
        uint32_t code = code_of_byte(b);
        char symbol[3] = {(char)code};
        if (code >= 0x80) {
            symbol[0] = (char)(0xc0 | code >> 6);
            symbol[1] = (char)(0x80 | (code & 0x3f));
        }
        json_object_set_new(vocabulary, symbol, json_integer(b));
    }
    return vocabulary;
}

static json_t *byte_level(void) {
    return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1, "use_regex",
                     0);
}

static json_t *built_in_file(void) {
    json_t *model = json_pack("{s:s, s:n, s:n, s:n, s:n, s:b, s:b, s:b, s:o, s:[]}", "type", "BPE", "dropout",
                              "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 0,
                              "byte_fallback", 0, "ignore_merges", 0, "vocab", built_in_vocabulary(), "merges");
    return json_pack("{s:s, s:n, s:n, s:[], s:n, s:o, s:n, s:o, s:o}", "version", "1.0", "truncation", "padding",
                     "added_tokens", "normalizer", "pre_tokenizer", byte_level(), "post_processor", "decoder",
                     byte_level(), "model", model);
}

/* `transformers` would else feed token_type_ids to models that know none, and mend the spaces of decoded
 * text. */
static const char built_in_config[] = "{\n"
                                      "  \"tokenizer_class\": \"PreTrainedTokenizerFast\",\n"
                                      "  \"clean_up_tokenization_spaces\": false,\n"
                                      "  \"model_input_names\": [\"input_ids\", \"attention_mask\"]\n"
                                      "}\n";

/* ---- Reading ---------------------------------------------------------------------------------- */

static bool is_a(const char *type, const json_t *part) {
    const char *found = json_string_value(json_object_get(part, "type"));
    return found && strcmp(found, type) == 0;
}

/* `transformers` saves a template even where it has nothing to add. */
static bool adds_tokens(const json_t *after) {
    if (!after || json_is_null(after) || is_a("ByteLevel", after)) return false;
    const json_t *special = json_object_get(after, "special_tokens");
    return !is_a("TemplateProcessing", after) || !json_is_object(special) || json_object_size(special) > 0;
}

/* That nothing in the file but the vocabulary decides ids: they are then what the bytes say. */
static bool only_bytes_decide(const json_t *file, const char *where, Error *e) {
    const json_t *model = json_object_get(file, "model");
    if (!json_is_object(model)) {
        return fail(e, EXIT_DATA, "not a tokenizer.json: it has no \"model\"; %s; %s", where, advice);
    }
    const char *type;
    if (!json_text(model, "type", "BPE", &type, where, e)) return false;
    if (strcmp(type, "BPE") != 0) {
        return fail(e, EXIT_DATA, "the tokenizer's model is \"%s\", only byte-level ones are built yet; %s; %s",
                    text_shown(type).text, where, advice);
    }
    const json_t *merges = json_object_get(model, "merges");
    if (json_array_size(merges) > 0) {
        return fail(e, EXIT_DATA, "the tokenizer has merges: BPE is not built yet; %s; %s", where, advice);
    }
    if (merges && !json_is_array(merges)) {
        return fail(e, EXIT_DATA, "the tokenizer's merges are not a list; %s; %s", where, advice);
    }
    const json_t *normalizer = json_object_get(file, "normalizer");
    if (normalizer && !json_is_null(normalizer)) {
        return fail(e, EXIT_DATA, "the tokenizer has a normalizer, which would change the text's bytes; %s; %s", where,
                    advice);
    }
    const json_t *before = json_object_get(file, "pre_tokenizer");
    if (!is_a("ByteLevel", before) || !is_a("ByteLevel", json_object_get(file, "decoder"))) {
        return fail(e, EXIT_DATA, "the tokenizer's pre_tokenizer and decoder are not both ByteLevel; %s; %s", where,
                    advice);
    }
    bool prefix;
    if (!json_bool(before, "add_prefix_space", true, &prefix, where, e)) return false;
    if (prefix) return fail(e, EXIT_DATA, "the tokenizer puts a space before the text; %s; %s", where, advice);
    if (adds_tokens(json_object_get(file, "post_processor"))) {
        return fail(e, EXIT_DATA, "the tokenizer's post_processor adds tokens to every document; %s; %s", where,
                    advice);
    }
    return true;
}

static bool valid_id(const json_t *id) {
    return json_is_integer(id) && json_integer_value(id) >= 0 && json_integer_value(id) < INT32_MAX;
}

/* An added token may stand in the vocabulary too: `names` holds them as keys. */
static bool read_bytes(Tokenizer *t, json_t *vocabulary, const json_t *names, const char *where, Error *e) {
    uint32_t code_of[BYTES];
    for (int b = 0; b < BYTES; b++) code_of[b] = code_of_byte(b);
    memset(t->id_of_byte, -1, sizeof t->id_of_byte);
    const char *symbol;
    json_t *id;
    json_object_foreach(vocabulary, symbol, id) {
        int byte = byte_of_symbol(symbol, code_of);
        if (byte < 0 && json_object_get(names, symbol)) continue;
        if (byte < 0) {
            return fail(e, EXIT_DATA, "the vocabulary's \"%s\" is neither a byte nor an added token; %s; %s",
                        text_shown(symbol).text, where, advice);
        }
        if (!valid_id(id)) {
            return fail(e, EXIT_DATA, "the vocabulary's \"%s\" has no valid id; %s; %s", text_shown(symbol).text, where,
                        advice);
        }
        t->id_of_byte[byte] = (int32_t)json_integer_value(id);
        t->byte[byte] = (char)byte;
        t->symbols[t->count++] = (Symbol){t->id_of_byte[byte], 1, &t->byte[byte]};
    }
    for (int b = 0; b < BYTES; b++) {
        if (t->id_of_byte[b] < 0) return fail(e, EXIT_DATA, "the vocabulary lacks byte %d; %s; %s", b, where, advice);
    }
    return true;
}

static bool read_added(Tokenizer *t, const json_t *added, json_t *names, const char *where, Error *e) {
    if (added && !json_is_null(added) && !json_is_array(added)) {
        return fail(e, EXIT_DATA, "\"added_tokens\" is not a list; %s; %s", where, advice);
    }
    for (size_t i = 0; i < json_array_size(added); i++) {
        const json_t *token = json_array_get(added, i), *id = json_object_get(token, "id");
        const json_t *content = json_object_get(token, "content");
        if (!json_is_string(content) || !valid_id(id)) {
            return fail(e, EXIT_DATA, "added token %zu has no valid id and content; %s; %s", i, where, advice);
        }
        t->symbols[t->count++] =
            (Symbol){(int32_t)json_integer_value(id), json_string_length(content), json_string_value(content)};
        json_object_set_new(names, json_string_value(content), json_true());
    }
    return true;
}

static int by_id(const void *a, const void *b) {
    int32_t x = ((const Symbol *)a)->id, y = ((const Symbol *)b)->id;
    return (x > y) - (x < y);
}

static bool read_file(Tokenizer *t, const char *where, Error *e) {
    if (!only_bytes_decide(t->json, where, e)) return false;
    json_t *vocabulary = json_object_get(json_object_get(t->json, "model"), "vocab");
    const json_t *added = json_object_get(t->json, "added_tokens");
    if (!json_is_object(vocabulary))
        return fail(e, EXIT_DATA, "the tokenizer has no vocabulary; %s; %s", where, advice);
    t->symbols = calloc(json_object_size(vocabulary) + json_array_size(added) + 1, sizeof *t->symbols);
    if (!t->symbols) return fail(e, EXIT_MEMORY, "out of memory for the vocabulary; %s; free some memory", where);
    json_t *names = json_object();
    bool read = read_added(t, added, names, where, e) && read_bytes(t, vocabulary, names, where, e);
    json_decref(names);
    if (!read) return false;
    qsort(t->symbols, t->count, sizeof *t->symbols, by_id);
    for (size_t i = 1; i < t->count; i++) {
        if (t->symbols[i].id == t->symbols[i - 1].id) {
            return fail(e, EXIT_DATA, "two tokens have the id %d; %s; %s", (int)t->symbols[i].id, where, advice);
        }
    }
    return true;
}

/* "DIRECTORY/NAME", where the directory may be part of `path`; the caller frees. */
static char *path_in(const char *path, size_t directory, const char *name, Error *e) {
    size_t room = directory + strlen(name) + 2;
    char *joined = malloc(room);
    if (joined)
        snprintf(joined, room, "%.*s/%s", (int)directory, path, name);
    else
        fail(e, EXIT_MEMORY, "out of memory; %s; free some memory", path);
    return joined;
}

/* The tokenizer_config.json beside a tokenizer.json: it may hold a chat template and the names of special
 * tokens. */
static bool keep_config(Tokenizer *t, Error *e) {
    const char *slash = strrchr(t->path, '/');
    char *beside = slash ? path_in(t->path, (size_t)(slash - t->path), config_name, e) : strdup(config_name);
    bool there = false, done = beside && file_exists(beside, &there, e);
    if (there) t->config.text = file_read(beside, file_limit, &t->config.bytes, e);
    done = done && (!there || t->config.text);
    free(beside);
    return done;
}

static bool keep_built_in(Tokenizer *t, Error *e) {
    t->json = built_in_file();
    t->file.text = json_print(t->json, &t->file.bytes, "the built-in tokenizer", e);
    return t->file.text != NULL;
}

static bool keep_file(Tokenizer *t, Error *e) {
    t->file.text = file_read(t->path, file_limit, &t->file.bytes, e);
    if (t->file.text) t->json = json_read_text(t->file.text, t->file.bytes, t->path, e);
    return t->json && keep_config(t, e);
}

/* Where a file has no tokenizer_config.json beside it, `transformers` gets what suits bytes. */
static bool suit_bytes(Tokenizer *t) {
    if (t->config.text) return true;
    t->config.text = strdup(built_in_config);
    t->config.bytes = strlen(built_in_config);
    return t->config.text != NULL;
}

Tokenizer *tokenizer_open(const char *path, Error *e) {
    if (path && !*path) path = NULL;
    const char *where = path ? path : "the built-in tokenizer";
    Tokenizer *t = calloc(1, sizeof *t);
    if (t && path) t->path = strdup(path);
    bool kept = t && (path ? t->path && keep_file(t, e) : keep_built_in(t, e));
    if (kept) t->understood = read_file(t, where, &t->unusable);
    if (kept && (t->understood ? suit_bytes(t) : t->unusable.code != EXIT_MEMORY)) return t;
    fail(e, EXIT_MEMORY, "out of memory; %s; free some memory", where); /* unless something else has failed before */
    tokenizer_close(t);
    return NULL;
}

Tokenizer *tokenizer_none(Error *e) {
    Tokenizer *t = calloc(1, sizeof *t);
    if (!t) fail(e, EXIT_MEMORY, "out of memory; the tokenizer; free some memory");
    return t;
}

void tokenizer_refuse(Tokenizer *t, ExitCode code, const char *format, ...) {
    char why[sizeof t->unusable.text];
    va_list args;
    va_start(args, format);
    vsnprintf(why, sizeof why, format, args);
    va_end(args);
    if (t->unusable.code == EXIT_DONE) fail(&t->unusable, code, "%s", why);
}

void tokenizer_close(Tokenizer *t) {
    if (!t) return;
    json_decref(t->json);
    free(t->file.text);
    free(t->config.text);
    free(t->symbols);
    free(t->path);
    free(t);
}

/* ---- Use -------------------------------------------------------------------------------------- */

static bool is_ready(const Tokenizer *t) {
    return t && t->unusable.code == EXIT_DONE;
}

bool tokenizer_ready(const Tokenizer *t, const char *what, Error *e) {
    if (is_ready(t)) return true;
    if (!t) return fail(e, EXIT_USAGE, "text needs a tokenizer; %s; give one, or the built-in bytes", what);
    return fail(e, t->unusable.code, "text needs a tokenizer (%s), and %s", what, t->unusable.text);
}

int64_t tokenizer_vocabulary(const Tokenizer *t) {
    return is_ready(t) ? (int64_t)t->symbols[t->count - 1].id + 1 : 0;
}

TokenizerShown tokenizer_shown(const Tokenizer *t) {
    TokenizerShown shown = {"none"};
    if (is_ready(t))
        snprintf(shown.text, sizeof shown.text, "%.300s (%lld ids)", t->path ? t->path : "bytes",
                 (long long)tokenizer_vocabulary(t));
    else if (t && t->path)
        snprintf(shown.text, sizeof shown.text, "%.200s, not usable for text: %.*s", t->path,
                 (int)strcspn(t->unusable.text, ";"), t->unusable.text);
    return shown;
}

int64_t tokenizer_encode(const Tokenizer *t, const char *text, size_t bytes, int32_t *ids) {
    MUST(is_ready(t));
    for (size_t i = 0; i < bytes; i++) ids[i] = t->id_of_byte[(unsigned char)text[i]];
    return (int64_t)bytes;
}

uint64_t tokenizer_hash(const Tokenizer *t) {
    if (!t->understood) return t->file.text ? hash_more(HASH_START, t->file.text, t->file.bytes) : HASH_START;
    uint64_t hash = hash_more(HASH_START, t->id_of_byte, sizeof t->id_of_byte);
    for (size_t i = 0; i < t->count; i++) {
        const Symbol *s = &t->symbols[i];
        hash = hash_more(hash, &s->id, sizeof s->id);
        hash = hash_more(hash, &s->bytes, sizeof s->bytes);
        hash = hash_more(hash, s->text, s->bytes);
    }
    return hash;
}

const char *tokenizer_decode(const Tokenizer *t, int32_t id, size_t *bytes) {
    const Symbol wanted = {.id = id};
    const Symbol *symbol = is_ready(t) ? bsearch(&wanted, t->symbols, t->count, sizeof *t->symbols, by_id) : NULL;
    *bytes = symbol ? symbol->bytes : 0;
    return symbol ? symbol->text : "";
}

bool tokenizer_built_in(const Tokenizer *t) {
    return !t->path && t->json;
}

const char *tokenizer_path(const Tokenizer *t) {
    return t->path;
}

static char *copy_of(const Kept *k, const char *name, size_t *bytes, Error *e) {
    char *text = malloc(k->bytes + 1);
    if (text)
        memcpy(text, k->text, k->bytes);
    else
        fail(e, EXIT_MEMORY, "out of memory; %s; free some memory", name);
    *bytes = k->bytes;
    return text;
}

char *tokenizer_text(const Tokenizer *t, size_t *bytes, Error *e) {
    return copy_of(&t->file, file_name, bytes, e);
}

char *tokenizer_config_text(const Tokenizer *t, size_t *bytes, Error *e) {
    return copy_of(&t->config, config_name, bytes, e);
}

static bool write_kept(const Kept *k, const char *directory, const char *name, Error *e) {
    if (!k->text) return true;
    char *path = path_in(directory, strlen(directory), name, e);
    bool done = path && file_write(path, k->text, k->bytes, e);
    free(path);
    return done;
}

bool tokenizer_write(const Tokenizer *t, const char *directory, Error *e) {
    return write_kept(&t->file, directory, file_name, e) && write_kept(&t->config, directory, config_name, e);
}
