/* Small files in memory: those that are made, and those that go with a model wherever its weights go. What is carried is
 * decided by name alone. Left behind by rule: other copies of the weights (pytorch_model.bin, consolidated.safetensors),
 * code (*.py), and the model card, which tells of other weights; of it only the licence stays. */
#define _POSIX_C_SOURCE 200809L
#include "checkpoint/small_files.h"
#include "base/file.h"
#include "checkpoint/text.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const size_t small_limit = (size_t)64 << 20;

typedef enum { OF_MODEL, OF_TOKENIZER } Belonging;

static const struct {
    const char *name;
    Belonging belonging;
    bool json;
} carried[] = {
    {"tokenizer.json", OF_TOKENIZER, true},
    {"tokenizer_config.json", OF_TOKENIZER, true},
    {"special_tokens_map.json", OF_TOKENIZER, true},
    {"added_tokens.json", OF_TOKENIZER, true},
    {"vocab.json", OF_TOKENIZER, true},
    {"vocab.txt", OF_TOKENIZER, false},
    {"merges.txt", OF_TOKENIZER, false},
    {"tokenizer.model", OF_TOKENIZER, false},
    {"tokenizer.model.v3", OF_TOKENIZER, false},
    {"tekken.json", OF_TOKENIZER, true},
    {"chat_template.jinja", OF_TOKENIZER, false},
    {"chat_template.json", OF_TOKENIZER, true},
    {"generation_config.json", OF_MODEL, true},
    {"LICENSE", OF_MODEL, false},
    {"LICENSE.txt", OF_MODEL, false},
    {"LICENSE.md", OF_MODEL, false},
    {"LICENSE-MODEL", OF_MODEL, false},
    {"LICENSE-CODE", OF_MODEL, false},
    {"LICENCE", OF_MODEL, false},
    {"NOTICE", OF_MODEL, false},
    {"NOTICE.txt", OF_MODEL, false},
    {"USE_POLICY.md", OF_MODEL, false},
};

/* ---- In memory -------------------------------------------------------------------------------- */

void small_files_close(SmallFiles *s) {
    for (int i = 0; i < s->count; i++) free(s->file[i].text);
    *s = (SmallFiles){0};
}

const SmallFile *small_files_find(const SmallFiles *s, const char *name) {
    for (int i = 0; i < s->count; i++) {
        if (strcmp(s->file[i].name, name) == 0) return &s->file[i];
    }
    return NULL;
}

bool small_files_take(SmallFiles *s, const char *name, char *text, size_t bytes, Error *e) {
    if (!text) return fail(e, EXIT_MEMORY, "out of memory for a small file; %s; free some memory", name);
    if (small_files_find(s, name)) {
        free(text);
        return true;
    }
    MUST(s->count < SMALL_FILES);
    int at = s->count++;
    for (; at > 0 && strcmp(s->file[at - 1].name, name) > 0; at--) s->file[at] = s->file[at - 1];
    s->file[at] = (SmallFile){name, text, bytes};
    return true;
}

bool small_files_add(SmallFiles *s, const char *name, json_t *json, Error *e) {
    size_t bytes = 0;
    char *text = json_print(json, &bytes, name, e);
    json_decref(json);
    return small_files_take(s, name, text, bytes, e);
}

bool small_files_write(const SmallFiles *s, const char *directory, Error *e) {
    for (int i = 0; i < s->count; i++) {
        const SmallFile *f = &s->file[i];
        if (!file_write(path_join(directory, f->name).text, f->text, f->bytes, e)) return false;
    }
    return true;
}

bool small_files_generation(SmallFiles *s, const json_t *config, Error *e) {
    static const char *const keys[] = {"bos_token_id", "eos_token_id", "pad_token_id"};
    if (small_files_find(s, "generation_config.json")) return true;
    json_t *json = json_pack("{s:b}", "_from_model_config", 1);
    for (size_t i = 0; i < COUNT(keys); i++) {
        json_t *value = json_object_get(config, keys[i]);
        if (value && !json_is_null(value)) json_object_set(json, keys[i], value);
    }
    return small_files_add(s, "generation_config.json", json, e);
}

/* ---- Carried ---------------------------------------------------------------------------------- */

/* One file of the table, if it is there. */
static bool carry(SmallFiles *s, size_t which, const char *path, Error *e) {
    FileKind kind;
    size_t bytes = 0;
    if (!file_kind(path, &kind, e)) return false;
    if (kind == KIND_NONE) return true;
    if (kind != KIND_FILE) {
        return fail(e, EXIT_DATA,
                    "a file by this name goes with the model, and this is no regular file; %s; put the "
                    "file in its place, or move it away",
                    path);
    }
    char *text = file_read(path, small_limit, &bytes, e);
    bool sound = text && (!carried[which].json || json_check_text(text, bytes, path, e));
    if (!sound) {
        free(text);
        return false;
    }
    return small_files_take(s, carried[which].name, text, bytes, e);
}

static bool carry_all(SmallFiles *s, const char *directory, Belonging belonging, Error *e) {
    for (size_t i = 0; *directory && i < COUNT(carried); i++) {
        if (carried[i].belonging == belonging && !carry(s, i, path_join(directory, carried[i].name).text, e))
            return false;
    }
    return true;
}

/* The tokenizer of mop itself. */
static bool make_tokenizer(SmallFiles *s, const Tokenizer *t, Error *e) {
    size_t file_bytes = 0, config_bytes = 0;
    char *file = tokenizer_text(t, &file_bytes, e);
    if (!small_files_take(s, "tokenizer.json", file, file_bytes, e)) return false;
    char *config = tokenizer_config_text(t, &config_bytes, e);
    return small_files_take(s, "tokenizer_config.json", config, config_bytes, e);
}

/* `path` may have another name than tokenizer.json, under which it then goes. */
static bool carry_tokenizer(SmallFiles *s, const char *path, Error *e) {
    Path directory;
    const char *slash = strrchr(path, '/');
    snprintf(directory.text, sizeof directory.text, "%.*s", slash ? (int)(slash - path) : 1, slash ? path : ".");
    return carry(s, 0, path, e) && carry_all(s, *directory.text ? directory.text : "/", OF_TOKENIZER, e);
}

bool small_files_carry(SmallFiles *s, const char *directory, const Tokenizer *t, Error *e) {
    const char *path = t ? tokenizer_path(t) : NULL;
    bool done = path                         ? carry_tokenizer(s, path, e)
                : t && tokenizer_built_in(t) ? make_tokenizer(s, t, e)
                                             : carry_all(s, directory, OF_TOKENIZER, e);
    return done && carry_all(s, directory, OF_MODEL, e);
}

bool directory_still_there(const char *directory, Error *e) {
    FileKind kind = KIND_NONE;
    if (!*directory) return true;
    if (!file_kind(directory, &kind, e)) return false;
    return kind != KIND_NONE ||
           fail(e, EXIT_DATA, "the model's directory was removed while it was read; %s; name one that stays",
                directory);
}

/* ---- Licences --------------------------------------------------------------------------------- */

/* "license: apache-2.0" between the first two lines of "---" of a model card. */
static void licence_of_card(const char *text, Licence *out) {
    static const char key[] = "\nlicense:";
    if (strncmp(text, "---\n", 4) != 0) return;
    const char *end = strstr(text + 3, "\n---"), *line = strstr(text + 3, key);
    if (!end || !line || line > end) return;
    line += sizeof key - 1;
    line += strspn(line, " \t\"'");
    size_t bytes = strspn(line, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-+_");
    snprintf(out->text, sizeof out->text, "%.*s", (int)(bytes < sizeof out->text ? bytes : 0), line);
}

static bool licence_of_state(const char *path, Licence *out, Error *e) {
    json_t *json = json_read_file(path, small_limit, e);
    const char *stated = json_string_value(json_object_get(json, "license"));
    if (stated) snprintf(out->text, sizeof out->text, "%s", stated);
    json_decref(json);
    return json != NULL;
}

bool licence_of(const char *directory, Licence *out, Error *e) {
    FileKind card_kind, state_kind;
    size_t bytes;
    *out = (Licence){""};
    if (!*directory) return true;
    Path card = path_join(directory, "README.md"), state = path_join(directory, "state.json");
    if (!file_kind(card.text, &card_kind, e) || !file_kind(state.text, &state_kind, e)) return false;
    if (card_kind == KIND_FILE) {
        char *text = file_read(card.text, small_limit, &bytes, e);
        if (!text) return false;
        licence_of_card(text, out);
        free(text);
    }
    return *out->text || state_kind != KIND_FILE || licence_of_state(state.text, out, e);
}
