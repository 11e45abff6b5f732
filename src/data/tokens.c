/* Opens token files. Nothing in one is believed: sizes follow from the header and must equal the file's,
 * the document index must rise, checksums must match. A small file is read to the end at once; a large one
 * (a corpus of many gigabytes would keep every start waiting for its disk) only where addresses come from,
 * and batches check each id that they hand out. */
#define _POSIX_C_SOURCE 200809L
#include "data/tokens.h"
#include "data/prepare.h"
#include "data/sources.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const int64_t verified_at_once = (int64_t)256 << 20;
static const char *again = "make it again with `mop data`";

static const char *section_name[SECTION_COUNT] = {
    [SECTION_IDS] = "ids", [SECTION_LABELS] = "labels", [SECTION_DOCUMENTS] = "document index"};

/* ---- Layout ----------------------------------------------------------------------------------- */

static bool section_bytes(const TokenHeader *h, TokenSection section, int64_t *bytes) {
    int64_t tokens = (int64_t)h->tokens, documents = (int64_t)h->documents; /* beyond int64: negative, and refused */
    switch (section) {
    case SECTION_IDS: return mul_size(tokens, h->id_bytes, bytes);
    case SECTION_LABELS: return mul_size(h->labelled ? tokens : 0, h->id_bytes, bytes);
    default: return add_size(documents, 1, bytes) && mul_size(*bytes, sizeof(uint64_t), bytes);
    }
}

bool token_sections(const TokenHeader *h, int64_t offset[SECTION_COUNT + 1]) {
    int64_t at = sizeof *h;
    for (int s = 0; s < SECTION_COUNT; s++) {
        int64_t bytes;
        offset[s] = at;
        if (!section_bytes(h, s, &bytes) || !add_size(at, bytes, &at) || !add_size(at, TOKEN_ALIGN - 1, &at))
            return false;
        at -= at % TOKEN_ALIGN;
    }
    offset[SECTION_COUNT] = at;
    return true;
}

/* ---- Verifying -------------------------------------------------------------------------------- */

static bool damaged(const Tokens *t, const char *what, Error *e) {
    return fail(e, EXIT_DATA, "token file is damaged: %s; %s; %s", what, t->name, again);
}

static bool same_checksum(const XXH128_canonical_t *stated, const void *data, size_t bytes) {
    XXH128_canonical_t found = token_checksum(data, bytes);
    return memcmp(stated, &found, sizeof found) == 0;
}

static bool verify_header(Tokens *t, Error *e) {
    if (t->bytes < (int64_t)sizeof t->header) {
        return fail(e, EXIT_DATA, "token file is truncated: %lld bytes are less than a header; %s; %s",
                    (long long)t->bytes, t->name, again);
    }
    TokenHeader *h = &t->header;
    memcpy(h, t->map, sizeof *h);
    if (memcmp(h->magic, TOKEN_MAGIC, sizeof h->magic) != 0) {
        return fail(e, EXIT_DATA, "not a token file, for it does not begin with \"%s\"; %s; make one with `mop data`",
                    TOKEN_MAGIC, t->name);
    }
    if (h->version != TOKEN_VERSION) {
        return fail(e, EXIT_DATA, "token file of version %u, this mop reads version %d; %s; %s", h->version,
                    TOKEN_VERSION, t->name, again);
    }
    if (!same_checksum(&h->header, h, offsetof(TokenHeader, header)))
        return damaged(t, "its header has another checksum", e);
    bool narrow = h->id_bytes == sizeof(uint16_t) && h->vocabulary <= TOKEN_NARROW;
    bool wide = h->id_bytes == sizeof(uint32_t) && h->vocabulary <= (uint64_t)TOKEN_LARGEST + 1;
    bool counts =
        h->documents > 0 && h->documents <= h->tokens && h->trained <= h->tokens - h->documents && h->vocabulary > 0;
    if ((!narrow && !wide) || !counts || h->labelled > 1) return damaged(t, "its header's numbers cannot be", e);
    if (!h->labelled && h->trained != h->tokens - h->documents) return damaged(t, "its header's numbers cannot be", e);
    return true;
}

static bool verify_size(Tokens *t, Error *e) {
    if (!token_sections(&t->header, t->offset)) return damaged(t, "its header's numbers cannot be", e);
    int64_t expected = t->offset[SECTION_COUNT];
    if (t->bytes == expected) return true;
    return fail(e, EXIT_DATA, "token file is %s: %lld bytes instead of %lld; %s; %s",
                t->bytes < expected ? "truncated" : "longer than it should be", (long long)t->bytes,
                (long long)expected, t->name, again);
}

static bool verify_section(const Tokens *t, TokenSection section, Error *e) {
    const uint8_t *begin = t->map + t->offset[section];
    if (same_checksum(&t->header.section[section], begin, (size_t)(t->offset[section + 1] - t->offset[section])))
        return true;
    return fail(e, EXIT_DATA, "token file is damaged: its %s have another checksum; %s; %s", section_name[section],
                t->name, again);
}

static bool verify_documents(const Tokens *t, Error *e) {
    if (!verify_section(t, SECTION_DOCUMENTS, e)) return false;
    bool rises = t->first[0] == 0 && t->first[t->header.documents] == t->header.tokens;
    for (uint64_t d = 0; d < t->header.documents; d++) rises = rises && t->first[d] < t->first[d + 1];
    return rises || damaged(t, "its document index does not rise", e);
}

/* Counts what the header claims about ids and labels. */
static bool verify_values(const Tokens *t, Error *e) {
    int64_t vocabulary = 0, trained = 0;
    for (int64_t d = 0; d < (int64_t)t->header.documents; d++) {
        int64_t begin = (int64_t)t->first[d], end = (int64_t)t->first[d + 1];
        for (int64_t i = begin; i < end; i++) {
            int32_t id = token_id(t, i), label = token_label(t, i);
            if (id < 0) return damaged(t, "an id is not one", e);
            if (label < -1) return damaged(t, "a label is not one", e);
            vocabulary = max64(vocabulary, 1 + max64(id, label));
            trained += label >= 0 && i > begin;
        }
    }
    if (vocabulary != (int64_t)t->header.vocabulary)
        return damaged(t, "its ids are not of the vocabulary it states", e);
    return trained == (int64_t)t->header.trained || damaged(t, "its labels are not as many as it states", e);
}

bool tokens_verify(const Tokens *t, Error *e) {
    for (int s = 0; s < SECTION_COUNT; s++) {
        if (!verify_section(t, s, e)) return false;
    }
    return verify_documents(t, e) && verify_values(t, e);
}

bool tokens_fit(const Tokens *t, int64_t vocabulary, Error *e) {
    if ((int64_t)t->header.vocabulary <= vocabulary) return true;
    int64_t document = 0;
    for (int64_t i = 0; i < (int64_t)t->header.tokens; i++) {
        int64_t id = max64(token_id(t, i), token_label(t, i));
        if (i >= (int64_t)t->first[document + 1]) document++;
        if (id < vocabulary) continue;
        return fail(
            e, EXIT_DATA,
            "id %lld of the data is not below the model's vocabulary of %lld; %s, token %lld of document %lld; use the "
            "tokenizer that belongs to the model",
            (long long)id, (long long)vocabulary, t->name, (long long)(i - (int64_t)t->first[document]),
            (long long)document);
    }
    return damaged(t, "its ids are not of the vocabulary it states", e);
}

/* ---- Opening ---------------------------------------------------------------------------------- */

static bool map_file(Tokens *t, int fd, Error *e) {
    struct stat s;
    if (fstat(fd, &s) != 0) return fail(e, EXIT_IO, "cannot read: %s; %s; check the disk", strerror(errno), t->name);
    if (!S_ISREG(s.st_mode))
        return fail(e, EXIT_DATA, "a token file is needed, this is no file; %s; name a file", t->name);
    if (s.st_size == 0) return fail(e, EXIT_DATA, "token file is truncated: it is empty; %s; %s", t->name, again);
    void *map = mmap(NULL, (size_t)s.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        return fail(e, EXIT_IO, "cannot map: %s; %s; check the file system", strerror(errno), t->name);
    t->map = map;
    t->bytes = s.st_size;
    return true;
}

static bool verify_open(Tokens *t, Error *e) {
    if (!verify_header(t, e) || !verify_size(t, e)) return false;
    t->ids = t->map + t->offset[SECTION_IDS];
    t->labels = t->map + t->offset[t->header.labelled ? SECTION_LABELS : SECTION_IDS];
    t->first = (const uint64_t *)(const void *)(t->map + t->offset[SECTION_DOCUMENTS]);
    return t->bytes < verified_at_once ? tokens_verify(t, e) : verify_documents(t, e);
}

Tokens *tokens_open_fd(int fd, const char *name, Error *e) {
    Tokens *t = calloc(1, sizeof *t);
    if (t) t->name = strdup(name);
    if (!t || !t->name) {
        fail(e, EXIT_MEMORY, "out of memory while opening tokens; %s; free some memory", name);
    } else if (map_file(t, fd, e) && verify_open(t, e)) {
        return t;
    }
    tokens_close(t);
    return NULL;
}

static Tokens *open_named(const char *path, Error *e) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        bool missing = errno == ENOENT || errno == ENOTDIR;
        fail(e, missing ? EXIT_DATA : EXIT_IO, "%s: cannot open: %s; check the path and its rights", path,
             strerror(errno));
        return NULL;
    }
    Tokens *t = tokens_open_fd(fd, path, e);
    close(fd);
    return t;
}

Tokens *tokens_open(const char *const *paths, const Tokenizer *t, Error *e) {
    bool alone = paths[0] && !paths[1];
    if (alone && (has_suffix(paths[0], ".tokens") || is_token_file(paths[0]))) return open_named(paths[0], e);
    DataNotes notes;
    int fd = tokens_prepare_unnamed(paths, t, &notes, e);
    if (fd < 0) return NULL;
    Tokens *tokens = tokens_open_fd(fd, paths[0], e);
    if (tokens) tokens->notes = notes;
    close(fd);
    return tokens;
}

void tokens_close(Tokens *t) {
    if (!t) return;
    if (t->map) munmap((void *)t->map, (size_t)t->bytes);
    free(t->name);
    free(t);
}

/* ---- Asking ----------------------------------------------------------------------------------- */

TokensInfo tokens_info(const Tokens *t) {
    const TokenHeader *h = &t->header;
    return (TokensInfo){
        .tokens = (int64_t)h->tokens,
        .documents = (int64_t)h->documents,
        .trained = (int64_t)h->trained,
        .text_bytes = (int64_t)h->text_bytes,
        .vocabulary = (int64_t)h->vocabulary,
        .skipped = (int64_t)h->skipped,
        .id_bytes = h->id_bytes,
        .labelled = h->labelled,
        .hash = XXH128_hashFromCanonical(&h->header).low64,
    };
}

int64_t tokens_pieces(const Tokens *t, int64_t sequence_length) {
    MUST(sequence_length > 0);
    return ceil_div((int64_t)t->header.tokens, sequence_length);
}

const char *tokens_notes(const Tokens *t) {
    return t->notes.text;
}

/* Where every token is one byte, no spelling is needed. */
int64_t tokens_predicted_bytes(const Tokens *t, const Tokenizer *k) {
    if (t->header.text_bytes == 0) return -1;
    if (t->header.text_bytes == t->header.tokens) return (int64_t)t->header.trained;
    int64_t sum = 0;
    for (uint64_t d = 0; d < t->header.documents; d++) {
        for (uint64_t i = t->first[d] + 1; i < t->first[d + 1]; i++) {
            int32_t target = token_label(t, (int64_t)i);
            size_t bytes = 0;
            if (target < 0) continue;
            if (k) tokenizer_decode(k, target, &bytes);
            if (bytes == 0) return -1;
            sum += (int64_t)bytes;
        }
    }
    return sum;
}
