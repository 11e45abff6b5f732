/* Any bytes as a token file: as they are, and once more with a size and checksums that fit, so that what only checksums
 * guard is reached too. What opens must then pack into batches that keep every promise. */
#define _GNU_SOURCE
#include "data/data.h"
#include "data/token_file.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { LARGEST = 1 << 14, LENGTH = 64 };

static void pack(const Tokens *t, int64_t sequence_length) {
    int32_t token[LENGTH], target[LENGTH], position[LENGTH], first[LENGTH], last[LENGTH], sequence[LENGTH];
    int64_t real[1], trained = 0, seen = 0;
    TokensInfo info = tokens_info(t);
    Batch b = {.token = token,
               .target = target,
               .position = position,
               .first = first,
               .last = last,
               .sequence = sequence,
               .real = real};
    for (int64_t piece = 0; piece < tokens_pieces(t, sequence_length); piece++) {
        Error e = {0};
        MUST(batch_fill(&b, t, 1, piece, 1, 1, sequence_length, 0, &e));
        trained += b.trained;
        seen += real[0];
        for (int64_t i = 0; i < b.tokens; i++) {
            MUST(token[i] >= 0 && token[i] < info.vocabulary);
            MUST(target[i] >= -1 && target[i] < info.vocabulary);
            MUST(first[i] + position[i] == i && last[i] == i + 1);
        }
    }
    MUST(seen == info.tokens && trained == info.trained);
}

static void open_and_pack(const uint8_t *data, size_t bytes) {
    Error e = {0};
    int fd = memfd_create("tokens", MFD_CLOEXEC);
    MUST(fd >= 0 && write(fd, data, bytes) == (ssize_t)bytes);
    Tokens *t = tokens_open_fd(fd, "input", &e);
    MUST((t != NULL) == (e.code == EXIT_DONE) && (t || (e.code == EXIT_DATA && *e.text)));
    close(fd);
    if (!t) return;
    pack(t, 1);
    pack(t, 7);
    pack(t, LENGTH);
    tokens_close(t);
}

/* The file that the input's header describes, its sections from the input as far as that goes, then zeros. */
static void open_sealed(const uint8_t *data, size_t bytes) {
    static uint8_t file[LARGEST];
    TokenHeader h;
    int64_t offset[SECTION_COUNT + 1];
    if (bytes < sizeof h) return;
    memcpy(&h, data, sizeof h);
    memcpy(h.magic, TOKEN_MAGIC, sizeof h.magic);
    h.version = TOKEN_VERSION;
    if (!token_sections(&h, offset) || offset[SECTION_COUNT] > LARGEST) return;
    size_t size = (size_t)offset[SECTION_COUNT], have = bytes < size ? bytes : size;
    memset(file, 0, sizeof file);
    memcpy(file, data, have);
    for (int s = 0; s < SECTION_COUNT; s++) {
        h.section[s] = token_checksum(file + offset[s], (size_t)(offset[s + 1] - offset[s]));
    }
    h.header = token_checksum(&h, offsetof(TokenHeader, header));
    memcpy(file, &h, sizeof h);
    open_and_pack(file, size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    open_and_pack(data, bytes);
    open_sealed(data, bytes);
    return 0;
}
