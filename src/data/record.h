/* One line of JSON lines: the document that it holds, or why it holds none. */
#ifndef MOP_RECORD_H
#define MOP_RECORD_H

#include "data/documents.h"

/* Room for ids and as many labels, grown when needed. */
typedef struct {
    int32_t *ids, *labels; /* [room] */
    size_t room;
} Ids;

bool ids_reserve(Ids *ids, size_t count, const char *where, Error *e);
void ids_free(Ids *ids);

/* The part points into `ids`. `where` is the file and line, for messages. */
bool record_read(const char *line, size_t bytes, const Tokenizer *t, Ids *ids, Part *part, const char *where, Error *e);

#endif
