/* The documents behind a list of paths, one part at a time, so that memory is bounded by the longest JSONL
 * line and not by the corpus. */
#ifndef MOP_DOCUMENTS_H
#define MOP_DOCUMENTS_H

#include "data/data.h"

typedef struct Documents Documents;

/* A document is one or more parts; the last one `ends` it. The arrays live until the next call. */
typedef struct {
    const int32_t *ids;
    const int32_t *labels; /* -1: no target; NULL: the ids themselves */
    int64_t count;         /* may be 0 */
    int64_t text_bytes;    /* what the ids were made of; -1: they came as ids */
    bool ends;
} Part;

/* Finds every file before any is read; `notes` says what was left out. */
Documents *documents_open(const char *const *paths, const Tokenizer *t, DataNotes *notes, Error *e);
bool documents_next(Documents *d, Part *part, Error *e); /* false: no more, or a failure if e says so */
void documents_close(Documents *d);

#endif
