/* Which tokenizer a model has. Ids of the wrong one are plausible and train to the end, so whatever is ambiguous is not
 * guessed at: it gives a tokenizer that refuses text, in words that say what to set. Data made of ids needs none of
 * this. */
#include "base/file.h"
#include "data/tokenizer.h"
#include <stdio.h>
#include <string.h>

enum { BYTES = 256, MOST_BYTES = 512 }; /* ids of a model of bytes; above 256 are special tokens */

/* Other files that tell of a tokenizer. */
static const char *const other_files[] = {"tokenizer.model",      "vocab.json",     "vocab.txt",
                                          "merges.txt",           "tiktoken.model", "tekken.json",
                                          "tokenizer_config.json"};

static const char *advice =
    "set data.tokenizer to a tokenizer.json, or to bytes, or give data as {\"input_ids\": [...]}";

typedef struct {
    char text[4200];
} Beside;

static Beside beside(const char *directory, const char *name) {
    Beside b;
    snprintf(b.text, sizeof b.text, "%s/%s", directory, name);
    return b;
}

/* The model's own, or NULL (no failure): it has none. */
static Tokenizer *of_model(const char *directory, Error *e) {
    bool there = false;
    Beside file = beside(directory, "tokenizer.json");
    if (!*directory || !file_exists(file.text, &there, e)) return NULL;
    if (there) return tokenizer_open(file.text, e);
    for (size_t i = 0; i < COUNT(other_files); i++) {
        Beside other = beside(directory, other_files[i]);
        if (!file_exists(other.text, &there, e)) return NULL;
        if (!there) continue;
        Tokenizer *t = tokenizer_none(e);
        if (t)
            tokenizer_refuse(t, EXIT_DATA, "the model has no tokenizer.json but a tokenizer of another kind; %s; %s",
                             other.text, advice);
        return t;
    }
    return NULL;
}

/* Nothing says which: bytes, where the vocabulary can be meant for them. */
static Tokenizer *guess(int64_t vocabulary, Error *e) {
    if (vocabulary >= BYTES && vocabulary <= MOST_BYTES) return tokenizer_open(NULL, e);
    Tokenizer *t = tokenizer_none(e);
    if (t)
        tokenizer_refuse(t, EXIT_USAGE, "the model has none and %lld ids, which are not %d bytes; data.tokenizer; %s",
                         (long long)vocabulary, BYTES, advice);
    return t;
}

static Tokenizer *fitting(Tokenizer *t, int64_t vocabulary) {
    if (t && tokenizer_vocabulary(t) > vocabulary)
        tokenizer_refuse(t, EXIT_DATA, "the one beside the model has %lld ids and the model %lld; %s; %s",
                         (long long)tokenizer_vocabulary(t), (long long)vocabulary, tokenizer_shown(t).text, advice);
    return t;
}

Tokenizer *tokenizer_choose(const char *asked, const char *directory, int64_t vocabulary, Error *e) {
    if (strcmp(asked, "bytes") == 0) return tokenizer_open(NULL, e);
    bool none = strcmp(asked, "none") == 0;
    if (*asked && !none) return tokenizer_open(asked, e);
    Tokenizer *t = of_model(directory, e);
    if (e->code != EXIT_DONE) return NULL;
    if (!none) return t ? fitting(t, vocabulary) : guess(vocabulary, e);
    if (!t) t = tokenizer_none(e);
    if (t) tokenizer_refuse(t, EXIT_USAGE, "data.tokenizer is none; data.tokenizer; %s", advice);
    return t;
}
