/* state.json: what a run needs beside weights and moments to go on. Hashes are text, because JSON numbers of 64 bits do
 * not survive every reader. */
#define _POSIX_C_SOURCE 200809L
#include "checkpoint/checkpoints.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STATE_LIMIT = 1 << 20 };

static json_t *hash_text(uint64_t hash) {
    char text[17];
    snprintf(text, sizeof text, "%016" PRIx64, hash);
    return json_string(text);
}

json_t *state_json(const TrainState *s, Type type, const char *licence) {
    json_t *json =
        json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:s, s:o, s:o}", "mop", MOP_VERSION, "step", (json_int_t)s->step,
                  "updates", (json_int_t)s->updates, "tokens", (json_int_t)s->tokens, "sequences",
                  (json_int_t)s->sequences, "bad_steps", (json_int_t)s->bad_steps, "compute_type", type_name(type),
                  "data_hash", hash_text(s->data_hash), "config_hash", hash_text(s->config_hash));
    if (json && *licence) json_object_set_new(json, "license", json_string(licence));
    return json;
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
