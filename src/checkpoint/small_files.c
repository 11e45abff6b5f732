/* The small files of a checkpoint that are neither weights nor manifest: the run's state, what generation wants
 * to know, licences. Hashes are text in state.json, because JSON numbers of 64 bits do not survive every
 * reader. */
#define _POSIX_C_SOURCE 200809L
#include "base/file.h"
#include "checkpoint/checkpoints.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STATE_LIMIT = 1 << 20 };
static const size_t copy_limit = (size_t)256 << 20;

/* ---- state.json ------------------------------------------------------------------------------- */

static json_t *hash_text(uint64_t hash) {
    char text[17];
    snprintf(text, sizeof text, "%016" PRIx64, hash);
    return json_string(text);
}

bool state_write(const char *directory, const TrainState *s, Type type, const char *licence, Error *e) {
    json_t *json =
        json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:s, s:o, s:o}", "mop", MOP_VERSION, "step", (json_int_t)s->step,
                  "updates", (json_int_t)s->updates, "tokens", (json_int_t)s->tokens, "sequences",
                  (json_int_t)s->sequences, "bad_steps", (json_int_t)s->bad_steps, "compute_type", type_name(type),
                  "data_hash", hash_text(s->data_hash), "config_hash", hash_text(s->config_hash));
    if (json && *licence) json_object_set_new(json, "license", json_string(licence));
    Path path = path_join(directory, "state.json");
    bool done = json ? json_write_file(json, path.text, e)
                     : fail(e, EXIT_MEMORY, "out of memory for a checkpoint's state; %s; free some memory", path.text);
    json_decref(json);
    return done;
}

static bool read_hash(const json_t *json, const char *key, uint64_t *out, const char *where, Error *e) {
    const char *text;
    char *end;
    if (!json_text(json, key, "", &text, where, e)) return false;
    *out = strtoull(text, &end, 16);
    return (strlen(text) == 16 && !*end) ||
           fail(e, EXIT_DATA, "\"%s\" is not a hash of 16 hexadecimal digits; %s; use another checkpoint", key, where);
}

bool state_read(const char *directory, TrainState *s, Type *type, Error *e) {
    Path path = path_join(directory, "state.json");
    json_t *json = json_read_file(path.text, STATE_LIMIT, e);
    const char *name = NULL;
    bool done = json && json_int(json, "step", -1, 0, INT64_MAX, &s->step, path.text, e) &&
                json_int(json, "updates", -1, 0, INT64_MAX, &s->updates, path.text, e) &&
                json_int(json, "tokens", -1, 0, INT64_MAX, &s->tokens, path.text, e) &&
                json_int(json, "sequences", -1, 0, INT64_MAX, &s->sequences, path.text, e) &&
                json_int(json, "bad_steps", 0, 0, INT64_MAX, &s->bad_steps, path.text, e) && /* not in older ones */
                read_hash(json, "data_hash", &s->data_hash, path.text, e) &&
                read_hash(json, "config_hash", &s->config_hash, path.text, e) &&
                json_text(json, "compute_type", "", &name, path.text, e);
    *type = TYPE_COUNT;
    for (int t = FP32; done && t <= FP64; t++) {
        if (strcmp(type_name(t), name) == 0) *type = t;
    }
    if (done && (*type == TYPE_COUNT || s->step < 0 || s->updates < 0 || s->tokens < 0 || s->sequences < 0))
        done = fail(e, EXIT_DATA, "the state is not complete; %s; use another checkpoint", path.text);
    json_decref(json);
    return done;
}

/* ---- generation_config.json ------------------------------------------------------------------- */

bool generation_config_write(const char *directory, const json_t *config, Error *e) {
    static const char *const keys[] = {"bos_token_id", "eos_token_id", "pad_token_id"};
    json_t *json = json_pack("{s:b}", "_from_model_config", 1);
    for (size_t i = 0; i < COUNT(keys); i++) {
        json_t *value = json_object_get(config, keys[i]);
        if (value && !json_is_null(value)) json_object_set(json, keys[i], value);
    }
    bool done = json_write_file(json, path_join(directory, "generation_config.json").text, e);
    json_decref(json);
    return done;
}

/* ---- Copies and licences ---------------------------------------------------------------------- */

bool small_file_copy(const char *from, const char *to, const char *name, Error *e) {
    Path source = path_join(from, name);
    size_t bytes;
    if (access(source.text, F_OK) != 0) return true;
    char *text = file_read(source.text, copy_limit, &bytes, e);
    bool copied = text && file_write(path_join(to, name).text, text, bytes, e);
    free(text);
    return copied;
}

bool licence_copy(const char *from, const char *to, Error *e) {
    static const char *const names[] = {"LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "NOTICE", "NOTICE.txt"};
    for (size_t i = 0; i < COUNT(names); i++) {
        if (!small_file_copy(from, to, names[i], e)) return false;
    }
    return true;
}

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

Licence licence_of(const char *directory) {
    Licence out = {""};
    Error none = {0}; /* what cannot be read states no licence */
    size_t bytes;
    Path card = path_join(directory, "README.md"), state = path_join(directory, "state.json");
    if (!*directory) return out;
    char *text = access(card.text, R_OK) == 0 ? file_read(card.text, STATE_LIMIT, &bytes, &none) : NULL;
    if (text) licence_of_card(text, &out);
    free(text);
    json_t *json = !*out.text && access(state.text, R_OK) == 0 ? json_read_file(state.text, STATE_LIMIT, &none) : NULL;
    const char *stated = json_string_value(json_object_get(json, "license"));
    if (stated) snprintf(out.text, sizeof out.text, "%s", stated);
    json_decref(json);
    return out;
}
