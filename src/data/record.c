/* A line is {"text": ...} or {"input_ids": [...]} with columns beside it, a value for each id. A column that is obeyed
 * halfway trains on something else than its author meant and no number shows it, so each column is a row of the table
 * below, with one meaning, or the line is refused. Strings beside the ids mean nothing here and may be there. */
#include "data/record.h"
#include "base/json.h"
#include "data/token_file.h"
#include <stdlib.h>
#include <string.h>

enum { IGNORED = -100 };

/* ---- Room ------------------------------------------------------------------------------------- */

bool ids_reserve(Ids *ids, size_t count, const char *where, Error *e) {
    if (count <= ids->room) return true;
    ids_free(ids);
    ids->ids = malloc(count * sizeof *ids->ids);
    ids->labels = malloc(count * sizeof *ids->labels);
    ids->room = ids->ids && ids->labels ? count : 0;
    return ids->room > 0 || fail(e, EXIT_MEMORY, "out of memory while reading data; %s; free some memory", where);
}

void ids_free(Ids *ids) {
    free(ids->ids);
    free(ids->labels);
    *ids = (Ids){0};
}

/* ---- Columns ---------------------------------------------------------------------------------- */

/* A document as its columns are read, one after the other. */
typedef struct {
    int32_t *ids, *labels;     /* [count] */
    int64_t count, begin, end; /* [begin, end) is not padding */
    bool labelled;
} Record;

typedef bool (*ReadColumn)(Record *r, const json_t *list, const char *key, const char *where, Error *e);

static bool unexpected(const json_t *value, const char *key, int64_t i, const char *expected, const char *advice,
                       const char *where, Error *e) {
    char *shown = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
    fail(e, EXIT_DATA, "\"%s\"[%lld] is %s, %s is expected; %s; %s", key, (long long)i,
         shown ? text_shown(shown).text : "?", expected, where, advice);
    free(shown);
    return false;
}

static const char *correct = "correct the line";

/* Integers in [0, TOKEN_LARGEST], or -100 where that is allowed, which becomes -1. */
static bool read_integers(const json_t *list, const char *key, bool may_ignore, int32_t *out, const char *where,
                          Error *e) {
    static const char *const expected[] = {"an integer from 0 to 2147483646",
                                           "an integer from 0 to 2147483646, or -100,"};
    _Static_assert(TOKEN_LARGEST == 2147483646, "the text above says it");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *value = json_array_get(list, i);
        int64_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        bool ignored = may_ignore && id == IGNORED;
        if (!ignored && (id < 0 || id > TOKEN_LARGEST))
            return unexpected(value, key, (int64_t)i, expected[may_ignore], correct, where, e);
        out[i] = ignored ? -1 : (int32_t)id;
    }
    return true;
}

static bool read_labels(Record *r, const json_t *list, const char *key, const char *where, Error *e) {
    r->labelled = true;
    return read_integers(list, key, true, r->labels, where, e);
}

/* 0 or 1, however JSON spells them; -1: something else. */
static int bit_of(const json_t *value) {
    if (json_is_boolean(value)) return json_is_true(value);
    double x = json_is_number(value) ? json_number_value(value) : -1;
    return x == 0 ? 0 : x == 1 ? 1 : -1;
}

/* 1: the id is a target, as far as labels and other masks let it; 0: it is none. */
static bool read_mask(Record *r, const json_t *list, const char *key, const char *where, Error *e) {
    r->labelled = true;
    for (int64_t i = 0; i < r->count; i++) {
        const json_t *value = json_array_get(list, (size_t)i);
        int bit = bit_of(value);
        if (bit < 0) return unexpected(value, key, i, "0 or 1 (not trained, trained)", correct, where, e);
        if (bit == 0) r->labels[i] = -1;
    }
    return true;
}

/* 0 before or behind all others: padding, which is left out. */
static bool read_attention(Record *r, const json_t *list, const char *key, const char *where, Error *e) {
    int64_t ones = 0;
    for (int64_t i = 0; i < r->count; i++) {
        const json_t *value = json_array_get(list, (size_t)i);
        int bit = bit_of(value);
        if (bit < 0) return unexpected(value, key, i, "0 or 1 (padding, a token)", correct, where, e);
        if (bit == 0) continue;
        if (ones++ == 0) r->begin = i;
        r->end = i + 1;
    }
    if (ones == 0) r->end = r->begin;
    return r->end - r->begin == ones ||
           fail(e, EXIT_DATA,
                "\"%s\" hides ids between others, and mop knows padding at the ends only; %s; leave them "
                "out of input_ids",
                key, where);
}

/* What mop does anyway: positions rise by 1 from 0. */
static bool read_positions(Record *r, const json_t *list, const char *key, const char *where, Error *e) {
    for (int64_t i = r->begin; i < r->end; i++) {
        const json_t *value = json_array_get(list, (size_t)i);
        if (json_is_integer(value) && json_integer_value(value) == i - r->begin) continue;
        return unexpected(value, key, i, "its place from 0 on", "give documents that were packed a line each", where,
                          e);
    }
    return true;
}

static bool read_zeros(Record *r, const json_t *list, const char *key, const char *where, Error *e) {
    for (int64_t i = 0; i < r->count; i++) {
        const json_t *value = json_array_get(list, (size_t)i);
        if (bit_of(value) != 0)
            return unexpected(value, key, i, "0", "the models have no such types: remove the column", where, e);
    }
    return true;
}

/* In the order of reading: masks cut down what labels say, positions count from behind the padding. */
static const struct Column {
    const char *key;
    ReadColumn read;
} columns[] = {
    {"labels", read_labels},          {"completion_mask", read_mask}, /* TRL */
    {"assistant_masks", read_mask},                                   /* transformers' chat templates, TRL */
    {"assistant_mask", read_mask},    {"loss_mask", read_mask},       {"attention_mask", read_attention},
    {"position_ids", read_positions}, {"token_type_ids", read_zeros},
};

static bool is_known(const char *key) {
    for (size_t i = 0; i < COUNT(columns); i++) {
        if (strcmp(columns[i].key, key) == 0) return true;
    }
    return strcmp(key, "input_ids") == 0;
}

static bool as_long(const json_t *list, const json_t *ids, const char *key, const char *where, Error *e) {
    if (!json_is_array(list)) return fail(e, EXIT_DATA, "\"%s\" is not a list; %s; %s", key, where, correct);
    if (json_array_size(list) == json_array_size(ids)) return true;
    return fail(e, EXIT_DATA, "%zu input_ids but %zu in \"%s\"; %s; make them equally many", json_array_size(ids),
                json_array_size(list), key, where);
}

static bool read_columns(Record *r, const json_t *object, const json_t *ids, const char *where, Error *e) {
    for (size_t i = 0; i < COUNT(columns); i++) {
        const char *key = columns[i].key;
        const json_t *list = json_object_get(object, key);
        if (!list || json_is_null(list)) continue;
        if (!as_long(list, ids, key, where, e) || !columns[i].read(r, list, key, where, e)) return false;
    }
    return true;
}

static bool all_strings(const json_t *list) {
    for (size_t i = 0; i < json_array_size(list); i++) {
        if (!json_is_string(json_array_get(list, i))) return false;
    }
    return true;
}

/* Where documents packed into one line begin or end, which attention would have to know. */
static bool tells_of_packing(const char *key) {
    static const char *const keys[] = {"seq_lengths", "seq_lens", "sequence_lengths", "cu_seqlens",
                                       "cu_seq_lens", "seq_idx",  "document_ids"};
    for (size_t i = 0; i < COUNT(keys); i++) {
        if (strcmp(key, keys[i]) == 0) return true;
    }
    return false;
}

static bool no_unknown_columns(json_t *object, const json_t *ids, const char *where, Error *e) {
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value) {
        if (is_known(key) || json_is_null(value)) continue;
        if (tells_of_packing(key))
            return fail(e, EXIT_DATA, "\"%s\" packs several documents into a line; %s; give each a line of its own",
                        key, where);
        if (!json_is_array(value) || json_array_size(value) == 0 || json_array_size(value) != json_array_size(ids))
            continue;
        if (all_strings(value)) continue;
        return fail(e, EXIT_DATA,
                    "\"%s\" is as long as input_ids, and mop does not know what it means; %s; say it in \"labels\" "
                    "(-100: not trained), or remove it",
                    text_shown(key).text, where);
    }
    return true;
}

/* ---- The two kinds of line -------------------------------------------------------------------- */

static bool ids_of_line(json_t *object, const json_t *list, Ids *room, Part *part, const char *where, Error *e) {
    if (!json_is_array(list)) return fail(e, EXIT_DATA, "\"input_ids\" is not a list; %s; %s", where, correct);
    int64_t count = (int64_t)json_array_size(list);
    if (!ids_reserve(room, (size_t)count, where, e)) return false;
    Record r = {.ids = room->ids, .labels = room->labels, .count = count, .end = count};
    if (!read_integers(list, "input_ids", false, r.ids, where, e)) return false;
    if (count > 0) memcpy(r.labels, r.ids, (size_t)count * sizeof *r.ids);
    if (!read_columns(&r, object, list, where, e) || !no_unknown_columns(object, list, where, e)) return false;
    *part = (Part){.ids = r.ids + r.begin,
                   .labels = r.labelled ? r.labels + r.begin : NULL,
                   .count = r.end - r.begin,
                   .text_bytes = -1,
                   .ends = true};
    return true;
}

static bool text_of_line(json_t *object, const json_t *text, const Tokenizer *t, Ids *room, Part *part,
                         const char *where, Error *e) {
    if (!json_is_string(text)) return fail(e, EXIT_DATA, "\"text\" is not a string; %s; %s", where, correct);
    for (size_t i = 0; i < COUNT(columns); i++) {
        const json_t *column = json_object_get(object, columns[i].key);
        if (column && !json_is_null(column))
            return fail(e, EXIT_DATA, "\"%s\" belongs to \"input_ids\", this line has \"text\"; %s; remove it",
                        columns[i].key, where);
    }
    if (!tokenizer_ready(t, where, e)) return false;
    size_t bytes = json_string_length(text);
    if (!ids_reserve(room, bytes, where, e)) return false;
    int64_t count = tokenizer_encode(t, json_string_value(text), bytes, room->ids);
    *part = (Part){.ids = room->ids, .count = count, .text_bytes = (int64_t)bytes, .ends = true};
    return true;
}

static bool nothing_to_train(const json_t *object, const char *where, Error *e) {
    static const char *const spoken[] = {"messages", "conversations", "conversation",
                                         "prompt",   "completion",    "instruction"};
    for (size_t i = 0; i < COUNT(spoken); i++) {
        if (!json_object_get(object, spoken[i])) continue;
        return fail(
            e, EXIT_DATA,
            "the line has neither \"text\" nor \"input_ids\" but \"%s\", and conversations are not read yet; %s; "
            "make \"input_ids\" and \"labels\" of it with the model's chat template",
            spoken[i], where);
    }
    return fail(e, EXIT_DATA,
                "the line has neither \"text\" nor \"input_ids\"; %s; {\"text\": ...} or {\"input_ids\": [...]} is "
                "expected",
                where);
}

static bool document_of(json_t *object, const Tokenizer *t, Ids *room, Part *part, const char *where, Error *e) {
    if (!json_is_object(object))
        return fail(e, EXIT_DATA,
                    "the line is not an object; %s; {\"text\": ...} or {\"input_ids\": [...]} is expected", where);
    const json_t *text = json_object_get(object, "text"), *ids = json_object_get(object, "input_ids");
    if (json_is_null(text)) text = NULL;
    if (json_is_null(ids)) ids = NULL;
    if (!text && !ids) return nothing_to_train(object, where, e);
    if (text && ids)
        return fail(e, EXIT_DATA, "the line has both \"text\" and \"input_ids\"; %s; keep the one to train on", where);
    if (ids) return ids_of_line(object, ids, room, part, where, e);
    return text_of_line(object, text, t, room, part, where, e);
}

bool record_read(const char *line, size_t bytes, const Tokenizer *t, Ids *ids, Part *part, const char *where,
                 Error *e) {
    json_t *object = json_read_record(line, bytes, where, e);
    bool read = object && document_of(object, t, ids, part, where, e);
    json_decref(object);
    return read;
}
