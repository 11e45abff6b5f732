/* An open token file from the inside, for tokens.c and batch.c. */
#ifndef MOP_TOKENS_H
#define MOP_TOKENS_H

#include "data/data.h"
#include "data/token_file.h"

struct Tokens {
    char *name; /* for messages */
    DataNotes notes;
    const uint8_t *map;
    int64_t bytes;
    TokenHeader header; /* a copy: what has been verified stays so */
    int64_t offset[SECTION_COUNT + 1];
    const void *ids;       /* [tokens] of header.id_bytes each */
    const void *labels;    /* the same; the ids themselves where the file has no labels */
    const uint64_t *first; /* [documents + 1] */
};

/* All ones, in either width, is -1. */
static inline int32_t token_value(const void *values, uint32_t id_bytes, int64_t i) {
    if (id_bytes == sizeof(uint32_t)) return ((const int32_t *)values)[i];
    uint16_t value = ((const uint16_t *)values)[i];
    return value == UINT16_MAX ? -1 : value;
}

static inline int32_t token_id(const Tokens *t, int64_t i) {
    return token_value(t->ids, t->header.id_bytes, i);
}

/* The target of position i - 1, should that be of the same document; -1: none. */
static inline int32_t token_label(const Tokens *t, int64_t i) {
    return token_value(t->labels, t->header.id_bytes, i);
}

#endif
