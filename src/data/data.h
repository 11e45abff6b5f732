/* From text to this rank's batch.
 *
 *     text, JSON lines, directories --sources.c, documents.c, record.c--> documents --prepare.c--> token file
 *     token file --tokens.c, batch.c--> Batch
 *
 * A token file holds documents as token ids; it is memory-mapped and shared by all threads. Packing:
 * documents are concatenated in file order and cut every `sequence_length` tokens into pieces, which are
 * visited in a seeded permutation per epoch: piece number i of the run (i counts sequences since step 0) is
 * a pure function of (seed, i). Attention and positions start anew at a cut and at every document; targets
 * do not care about cuts, only about documents. So a document of n tokens trains n-1 positions for every
 * sequence length. The tail of the data is padded, untrained.
 *
 * Evaluation cuts nothing that fits: documents are laid in file order, one that does not fit in the rest of a sequence
 * begins the next one, and only one longer than a sequence is cut, every `sequence_length` tokens from its own
 * beginning. So what a document is scored depends on it and, where it is longer, on the length; never on its neighbours.
 */
#ifndef MOP_DATA_H
#define MOP_DATA_H

#include "base/config.h"

typedef struct Tokens Tokens; /* an open token file */
typedef struct Tokenizer Tokenizer;

/* ---- Tokenizer: a tokenizer.json; here the byte-level vocabulary without merges --------------- */

/* A tokenizer is ready or not: one of a kind that this version cannot use is opened all the same, because data made of
 * ids needs none and a checkpoint carries its file on unchanged. Only whoever has text to tokenise is refused.
 *
 * path NULL or "": the built-in byte-level vocabulary (ids 0-255 are the bytes). A tokenizer_config.json beside the
 * file is read too, and kept for tokenizer_write. NULL and an Error for what cannot be read or is not JSON. */
Tokenizer *tokenizer_open(const char *path, Error *e);
/* The tokenizer of a model, by data.tokenizer: "none", "bytes" (the built-in one), a path, or "": the one beside the
 * model (in `directory`; "": no model), else bytes where the model's vocabulary is one of bytes, 256 to 512 ids. What
 * else "" could mean is ambiguous: a tokenizer of another kind beside the model, more ids than the model has, a larger
 * vocabulary and no tokenizer. That gives a tokenizer that is not ready and says so. */
Tokenizer *tokenizer_choose(const char *asked, const char *directory, int64_t vocabulary, Error *e);
void tokenizer_close(Tokenizer *t);
/* Whether text can be tokenised; else an error that begins with `what` ("corpus.txt", "the prompt") and says why not. A
 * NULL t never is. */
bool tokenizer_ready(const Tokenizer *t, const char *what, Error *e);
int64_t tokenizer_vocabulary(const Tokenizer *t); /* 1 + largest id, added tokens included; 0 when not ready */
/* For people: "bytes (256 ids)", "PATH (256 ids)", "PATH, not usable for text: ...", "none". */
typedef struct {
    char text[512];
} TokenizerShown;
TokenizerShown tokenizer_shown(const Tokenizer *t);
/* Writes ids for bytes; `ids` has room for `bytes` of them. Returns how many. Text never becomes an added
 * token ("<eos>"): what a file says cannot act as a control. */
int64_t tokenizer_encode(const Tokenizer *t, const char *text, size_t bytes, int32_t *ids);
/* Bytes of one id (not terminated, owned by the tokenizer); length in *bytes. Empty for an id that the
 * vocabulary lacks, which a model with padded vocabulary may produce. */
const char *tokenizer_decode(const Tokenizer *t, int32_t id, size_t *bytes);
/* Of what its file says, whether that can be used here or not: the same for the tokenizer that a checkpoint carried. */
uint64_t tokenizer_hash(const Tokenizer *t);
/* One to be carried has a path, or is built in; tokenizer_none's is neither. */
bool tokenizer_built_in(const Tokenizer *t);
/* The tokenizer.json that it was read from; NULL: from none. */
const char *tokenizer_path(const Tokenizer *t);
/* The built-in one's tokenizer.json and tokenizer_config.json, which `transformers` loads; the caller frees. NULL:
 * EXIT_MEMORY. */
char *tokenizer_text(const Tokenizer *t, size_t *bytes, Error *e);
char *tokenizer_config_text(const Tokenizer *t, size_t *bytes, Error *e);
/* Writes tokenizer.json and tokenizer_config.json into `directory`, the bytes that were read; of the built-in one files
 * that `transformers` loads. Nothing where there is none. */
bool tokenizer_write(const Tokenizer *t, const char *directory, Error *e);

/* ---- Token files ------------------------------------------------------------------------------ */

/* For people, one line; "" when there is nothing to say: what was left out of directories, what is read otherwise than
 * its name says. */
typedef struct {
    char text[2048];
} DataNotes;

/* `paths` ends with NULL. Reads text (one document a file, UTF-8), JSON lines ({"text": ...} or {"input_ids": [...],
 * "labels": [...]} and masks, one document a line, see docs/formats.md) and directories (sources.h) into one token file
 * at `out`: atomic, with bounded memory. An existing `out` is replaced if it is a token file, and refused otherwise. */
bool tokens_prepare(const char *const *paths, const Tokenizer *t, const char *out, DataNotes *notes, Error *e);
/* The token file behind paths: a single token file itself; otherwise prepared into an unlinked temporary
 * file in /var/tmp. A file below 256 MiB is verified to the last bit; of a larger one only the header and
 * the document index are, and an id out of place is an error of the batch that meets it. */
Tokens *tokens_open(const char *const *paths, const Tokenizer *t, Error *e);
const char *tokens_notes(const Tokens *t);
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
/* Where the sequence of an evaluation that begins at token `begin` ends: at most `sequence_length` later. */
int64_t tokens_uncut(const Tokens *t, int64_t begin, int64_t sequence_length);
/* Bytes of the tokens that are predicted, as the tokenizer spells them: what bits per byte divides by. -1 when they are
 * not known: data that came as ids, or a token whose spelling is not known. */
int64_t tokens_predicted_bytes(const Tokens *t, const Tokenizer *k);

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
 * ids 0. False (EXIT_DATA) when the token file holds an id or label that cannot be: it was damaged, or changed in use. */
bool batch_fill(Batch *b, const Tokens *t, int64_t seed, int64_t first, int64_t stride, int64_t count,
                int64_t sequence_length, int64_t window, Error *e);
/* One sequence, of the tokens [begin, tokens_uncut(begin)) and padding; behind the data of padding alone. */
bool batch_fill_uncut(Batch *b, const Tokens *t, int64_t begin, int64_t sequence_length, int64_t window, Error *e);

/* ---- Command ---------------------------------------------------------------------------------- */

/* `mop data IN... --out FILE.tokens [--tokenizer FILE|bytes|none]` and `mop data --show FILE.tokens`;
 * argv[0] is "data". Prints what was made or found on standard output, errors on standard error; returns
 * the exit code. */
int data_command(int argc, char **argv);

#endif
