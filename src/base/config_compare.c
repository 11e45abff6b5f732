/* Settings of two moments, or of two ranks, against each other: by hashes that travel, and one by one. */
#include "base/directory.h"
#include "base/options.h"
#include <stdlib.h>
#include <string.h>

static uint64_t hash_option(uint64_t hash, const Option *o, const Config *c) {
    char *value = option_text(o, c);
    hash = hash_line(hash_line(hash, o->key), value);
    free(value);
    return hash;
}

uint64_t config_hash(const Config *c) {
    uint64_t hash = HASH_START;
    for (int i = 0; i < option_count; i++)
        if (options[i].fixed) hash = hash_option(hash, &options[i], c);
    return hash;
}

uint64_t config_shared(const Config *c) {
    uint64_t hash = HASH_START;
    for (int i = 0; i < option_count; i++)
        if (!options[i].own && !options[i].contents) hash = hash_option(hash, &options[i], c);
    return hash;
}

/* In whole paths: one may say from here what the other says in full. */
void config_changes(const Config *now, const Config *before, ConfigChange told, void *context) {
    char *directory = directory_now();
    MUST(directory); /* both have been read, which checks it */
    for (int i = 0; i < option_count; i++) {
        const Option *o = &options[i];
        if (o->fixed || o->own) continue;
        char *is = option_text_located(o, now, directory), *was = option_text_located(o, before, directory);
        if (strcmp(is, was) != 0) told(context, o->key, was, is);
        free(is);
        free(was);
    }
    free(directory);
}
