#include "train/prompt.h"

#include "base/file.h"
#include "base/json.h"

#include <stdlib.h>
#include <string.h>

/* ---- Where a text ends -------------------------------------------------------------------------- */

static const char key[] = "eos_token_id";

static bool add_end(TextEnds *out, const json_t *id, const char *where, Error *e) {
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > INT32_MAX)
        return fail(e, EXIT_DATA, "\"%s\" must be a token's id or a list of them; %s; correct the file", key, where);
    if (out->count == TEXT_ENDS)
        return fail(e, EXIT_DATA, "\"%s\" lists more than %d ids; %s; correct the file", key, TEXT_ENDS, where);
    out->id[out->count++] = (int32_t)json_integer_value(id);
    return true;
}

static bool add_ends(TextEnds *out, const json_t *value, const char *where, Error *e) {
    size_t i;
    const json_t *each;
    if (!value || json_is_null(value)) return true;
    if (!json_is_array(value)) return add_end(out, value, where, e);
    json_array_foreach(value, i, each) {
        if (!add_end(out, each, where, e)) return false;
    }
    return true;
}

bool text_ends_read(TextEnds *out, const char *directory, const json_t *config, Error *e) {
    Path path = path_join(directory, "generation_config.json");
    *out = (TextEnds){0};
    bool there = false;
    if (*directory && !file_exists(path.text, &there, e)) return false;
    json_t *generation = there ? json_read_file(path.text, (size_t)1 << 20, e) : NULL;
    bool ok = !there || generation;
    ok = ok && add_ends(out, json_object_get(generation, key), path.text, e);
    json_decref(generation);
    if (!ok || out->count > 0) return ok;
    return add_ends(out, json_object_get(config, key), "the model's config.json", e);
}

/* ---- What it begins with ------------------------------------------------------------------------- */

static bool check_ids(const Session *s, const char *name, const int32_t *ids, int64_t count, Error *e) {
    if (count == 0) return fail(e, EXIT_USAGE, "%s makes no token; give a text that the tokenizer knows", name);
    for (int64_t i = 0; i < count; i++) {
        if (ids[i] < s->spec.vocabulary) continue;
        return fail(e, EXIT_USAGE,
                    "token %lld of %s has id %d, and the model knows ids below %lld; use a prompt and a tokenizer "
                    "(data.tokenizer) that are the model's",
                    (long long)(i + 1), name, ids[i], (long long)s->spec.vocabulary);
    }
    return true;
}

bool prompt_check(Session *s, const char *name, const char *prompt, Error *e) {
    size_t length = strlen(prompt);
    if (!text_ends_read(&s->ends, s->weights, s->spec.source, e)) return false;
    if (length == 0) return true;
    int32_t *ids = malloc(length * sizeof *ids);
    if (!ids) return fail(e, EXIT_MEMORY, "no memory for %s of %zu bytes; use a shorter one", name, length);
    bool ok = check_ids(s, name, ids, tokenizer_encode(s->tokenizer, prompt, length, ids), e);
    free(ids);
    return ok;
}
