/* From text to this rank's batch.
 *
 *     text, JSONL, directories --documents.c--> documents --prepare.c--> token file --tokens.c, batch.c--> Batch
 *
 * A token file holds documents as token ids; it is memory-mapped and shared by all threads. Packing:
 * documents are concatenated in file order and cut every `sequence_length` tokens into pieces, which are
 * visited in a seeded permutation per epoch: piece number i of the run (i counts sequences since step 0) is
 * a pure function of (seed, i). Attention and positions start anew at a cut and at every document; targets
 * do not care about cuts, only about documents. So a document of n tokens trains n-1 positions for every
 * sequence length. The tail of the data is padded, untrained.
 */
#ifndef MOP_DATA_H
#define MOP_DATA_H

#include "base/config.h"

typedef struct Tokens Tokens; /* an open token file */
typedef struct Tokenizer Tokenizer;

/* ---- Tokenizer: a tokenizer.json; here the byte-level vocabulary without merges --------------- */

/* path NULL or "": the built-in byte-level vocabulary (ids 0-255 are the bytes). A tokenizer.json of
 * another kind is refused in words. A tokenizer_config.json beside the file is read too, and kept for
 * tokenizer_write. */
Tokenizer *tokenizer_open(const char *path, Error *e);
void tokenizer_close(Tokenizer *t);
int64_t tokenizer_vocabulary(const Tokenizer *t); /* 1 + largest id, added tokens included */
/* Writes ids for bytes; `ids` has room for `bytes` of them. Returns how many. Text never becomes an added
 * token ("<eos>"): what a file says cannot act as a control. */
int64_t tokenizer_encode(const Tokenizer *t, const char *text, size_t bytes, int32_t *ids);
/* Bytes of one id (not terminated, owned by the tokenizer); length in *bytes. Empty for an id that the
 * vocabulary lacks, which a model with padded vocabulary may produce. */
const char *tokenizer_decode(const Tokenizer *t, int32_t id, size_t *bytes);
uint64_t tokenizer_hash(const Tokenizer *t); /* of what encode and decode do */
bool tokenizer_built_in(const Tokenizer *t);
/* The tokenizer.json that it was read from; NULL: from none. */
const char *tokenizer_path(const Tokenizer *t);
/* The text of a tokenizer.json and of a tokenizer_config.json that `transformers` loads; the caller frees. NULL:
 * EXIT_MEMORY. */
char *tokenizer_text(const Tokenizer *t, size_t *bytes, Error *e);
char *tokenizer_config_text(const Tokenizer *t, size_t *bytes, Error *e);
/* Writes both into `directory`. */
bool tokenizer_write(const Tokenizer *t, const char *directory, Error *e);

/* ---- Token files ------------------------------------------------------------------------------ */

/* `paths` ends with NULL. Reads text (any name but the following: one document a file, UTF-8), .jsonl
 * ({"text": ...} or {"input_ids": [...], "labels": [...]}, one document a line, labels optional, -100: no
 * target) and directories (their files in byte order of their names, hidden ones left out) into one token
 * file at `out`: atomic, with bounded memory. An existing `out` is replaced if it is a token file, and
 * refused otherwise. `t` may be NULL where no input is text. */
bool tokens_prepare(const char *const *paths, const Tokenizer *t, const char *out, Error *e);
/* The token file behind paths: a single token file itself; otherwise prepared into an unlinked temporary
 * file in /var/tmp. A file below 256 MiB is verified to the last bit; of a larger one only the header and
 * the document index are. */
Tokens *tokens_open(const char *const *paths, const Tokenizer *t, Error *e);
/* The token file open for reading at fd, which stays the caller's; `name` is for messages. */
Tokens *tokens_open_fd(int fd, const char *name, Error *e);
void tokens_close(Tokens *t);
/* Reads the whole file: every checksum, every id. */
bool tokens_verify(const Tokens *t, Error *e);
/* That every id and label is below the model's vocabulary; the message names the first that is not. */
bool tokens_fit(const Tokens *t, int64_t vocabulary, Error *e);

typedef struct {
    int64_t tokens, documents, trained; /* trained: positions with a target, whatever the packing */
    int64_t text_bytes;                 /* of the source; 0 when any of it was not text */
    int64_t vocabulary;                 /* 1 + largest id or label */
    int64_t skipped;                    /* documents of the source that were empty */
    int64_t id_bytes;                   /* 2 or 4 */
    bool labelled;                      /* some document came with labels of its own */
    uint64_t hash;                      /* of the contents: a resumed run must see the same */
} TokensInfo;
TokensInfo tokens_info(const Tokens *t);
int64_t tokens_pieces(const Tokens *t, int64_t sequence_length);

/* ---- Batches ---------------------------------------------------------------------------------- */

/* Whole sequences back to back, `tokens` = sequences x sequence_length rows
 * (possibly 0). The arrays are the caller's, with room for the largest. */
typedef struct {
    int64_t tokens, sequences;
    int32_t *token;    /* input ids; 0 where padded */
    int32_t *target;   /* what position i should predict; -1: nothing */
    int32_t *position; /* within the document's part in this piece, from 0 */
    int32_t *first; /* rows first .. last - 1 of this buffer are what a row sees: its document's part up to itself, */
    int32_t *last;  /* within `window` (0: none). Padding is a document of its own */
    int32_t *sequence; /* 0 .. sequences-1, -1 for padding */
    int64_t *real;     /* [sequences] positions that are not padding */
    int64_t trained;   /* targets >= 0 */
} Batch;

/* Fills sequences first, first + stride, ... (count of them) of the run's order into b: piece number i lies
 * in epoch i / pieces. tokens NULL (sim without data): one document a sequence, every position trained, all
 * ids 0. */
void batch_fill(Batch *b, const Tokens *t, int64_t seed, int64_t first, int64_t stride, int64_t count,
                int64_t sequence_length, int64_t window);
/* The same without permutation (evaluation): piece number i itself; pieces past the end are padding. */
void batch_fill_in_order(Batch *b, const Tokens *t, int64_t first, int64_t stride, int64_t count,
                         int64_t sequence_length, int64_t window);

/* ---- Command ---------------------------------------------------------------------------------- */

/* `mop data IN... --out FILE.tokens [--tokenizer tokenizer.json]` and `mop data --show FILE.tokens`;
 * argv[0] is "data". Prints what was made or found on standard output, errors on standard error; returns
 * the exit code. */
int data_command(int argc, char **argv);

#endif
