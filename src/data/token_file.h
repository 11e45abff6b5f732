/* The token file, version 1: what lies where on the disk. Little-endian, read in place through mmap.
 *
 *     header      TokenHeader                  192 bytes
 *     ids         tokens x id_bytes
 *     labels      tokens x id_bytes            absent unless `labelled`; all ones: no target
 *     documents   (documents + 1) x 8 bytes    the first token of each, then the number of tokens; none is empty
 *
 * Each section is padded with zeros to a multiple of 64 bytes and has its XXH3-128 (padding included) in
 * the header, whose last 16 bytes are the XXH3-128 of the bytes before: a changed bit anywhere is found,
 * and the header's checksum alone names the contents. Ids take 2 bytes where the vocabulary is at most
 * 65535, so that all ones is never an id.
 */
#ifndef MOP_TOKEN_FILE_H
#define MOP_TOKEN_FILE_H

#include "base/base.h"
#include <xxhash.h>

#define TOKEN_MAGIC "moptoken"
enum { TOKEN_VERSION = 1, TOKEN_ALIGN = 64, TOKEN_NARROW = 65535, TOKEN_LARGEST = INT32_MAX - 1 };

typedef enum { SECTION_IDS, SECTION_LABELS, SECTION_DOCUMENTS, SECTION_COUNT } TokenSection;

typedef struct {
    char magic[8];
    uint32_t version, id_bytes;
    uint32_t labelled, zero;                                              /* labelled: 0 or 1 */
    uint64_t tokens, documents, trained, vocabulary, text_bytes, skipped; /* as in TokensInfo */
    XXH128_canonical_t section[SECTION_COUNT]; /* an absent one has the checksum of no bytes */
    uint8_t padding[56];
    XXH128_canonical_t header;
} TokenHeader;

_Static_assert(sizeof(TokenHeader) == 192, "a header is written as it lies in memory");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "token files are read in place");

/* Where each section begins and, last, where the file ends; false on counts that no file can have. */
bool token_sections(const TokenHeader *h, int64_t offset[SECTION_COUNT + 1]);

static inline XXH128_canonical_t token_checksum(const void *data, size_t bytes) {
    XXH128_canonical_t c;
    XXH128_canonicalFromHash(&c, XXH3_128bits(data, bytes));
    return c;
}

#endif
