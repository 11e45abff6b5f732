/* Settings of two moments, or of two ranks, against each other: by hashes that travel, and one by one. */
#include "base/options.h"
#include <stdlib.h>

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

void config_changes(const Config *now, const Config *before, ConfigChange told, void *context) {
    for (int i = 0; i < option_count; i++) {
        const Option *o = &options[i];
        if (o->fixed || o->own || option_equal(o, now, before)) continue;
        char *is = option_text(o, now), *was = option_text(o, before);
        told(context, o->key, was, is);
        free(is);
        free(was);
    }
}
