/* Packing: a batch is looked up, not made. The corpus is one long row of tokens; piece p is tokens [p S, p
 * S + S) of it, and what a position predicts is a question to the corpus, so a cut costs no target:
 *
 *     corpus    A A A A A A A|B B|C C C C C          sequence_length 5
 *     piece 0   A A A A A                            the last predicts A, the first token of piece 1
 *     piece 1             A A|B B|C                  three parts: positions 0 1, 0 1, 0
 *     piece 2                      C C C C . .       padding is a part of its own, and trains nothing
 *
 * Which piece comes when is a counter-based permutation: nothing is shuffled, stored or split over ranks. Evaluation takes
 * stretches that cut no document that fits (tokens_uncut) instead, in their order:
 *
 *     sequences A A A A A|A A B B .|C C C C C        A is longer than a sequence, C is not */
#include "base/random.h"
#include "data/tokens.h"
#include <string.h>

/* The document that holds token i. */
static int64_t document_of(const Tokens *t, int64_t i) {
    int64_t low = 0, high = (int64_t)t->header.documents; /* first[low] <= i < first[high] */
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if ((int64_t)t->first[middle] <= i)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* Rows [row, row + n) become one part: positions from 0, each seen by itself and by later ones of the part, within the
 * window. */
static void add_part(Batch *b, int64_t row, int64_t n, int64_t sequence, int64_t window) {
    for (int64_t i = 0; i < n; i++) {
        b->position[row + i] = (int32_t)i;
        b->first[row + i] = (int32_t)(row + (window > 0 ? max64(0, i + 1 - window) : 0));
        b->last[row + i] = (int32_t)(row + i + 1);
        b->sequence[row + i] = (int32_t)sequence;
    }
}

static void add_padding(Batch *b, int64_t row, int64_t n, int64_t window) {
    for (int64_t i = 0; i < n; i++) {
        b->token[row + i] = 0;
        b->target[row + i] = -1;
    }
    add_part(b, row, n, -1, window);
}

static bool is_wrong(const Tokens *t, int64_t i, int32_t value, Error *e) {
    return fail(e, EXIT_DATA,
                "the token file was damaged, or changed while in use: it holds %d where ids are below %lld; %s, token "
                "%lld; `mop data --show` verifies it, make it again with `mop data`",
                (int)value, (long long)t->header.vocabulary, t->name, (long long)i);
}

/* Tokens [from, from + n) of one document that ends before token `end`. */
static bool add_tokens(Batch *b, const Tokens *t, int64_t row, int64_t from, int64_t n, int64_t end, Error *e) {
    int64_t vocabulary = (int64_t)t->header.vocabulary;
    for (int64_t i = 0; i < n; i++) {
        int32_t id = token_id(t, from + i);
        int32_t target = from + i + 1 < end ? token_label(t, from + i + 1) : -1;
        if (id < 0 || id >= vocabulary) return is_wrong(t, from + i, id, e);
        if (target < -1 || target >= vocabulary) return is_wrong(t, from + i + 1, target, e);
        b->token[row + i] = id;
        b->target[row + i] = target;
        b->trained += target >= 0;
    }
    return true;
}

/* Tokens [begin, end) of the corpus, at most a sequence of them, and padding. */
static bool add_stretch(Batch *b, const Tokens *t, int64_t begin, int64_t end, int64_t sequence,
                        int64_t sequence_length, int64_t window, Error *e) {
    int64_t row = sequence * sequence_length, row_end = row + sequence_length;
    b->real[sequence] = end - begin;
    int64_t document = begin < end ? document_of(t, begin) : 0;
    for (int64_t at = begin; at < end; document++) {
        int64_t document_end = (int64_t)t->first[document + 1];
        int64_t n = min64(document_end, end) - at;
        if (!add_tokens(b, t, row, at, n, document_end, e)) return false;
        add_part(b, row, n, sequence, window);
        at += n;
        row += n;
    }
    if (row < row_end) add_padding(b, row, row_end - row, window);
    return true;
}

static bool add_piece(Batch *b, const Tokens *t, int64_t piece, int64_t sequence, int64_t sequence_length,
                      int64_t window, Error *e) {
    int64_t begin = piece * sequence_length;
    int64_t end = min64(begin + sequence_length, (int64_t)t->header.tokens);
    return add_stretch(b, t, begin, end, sequence, sequence_length, window, e);
}

/* Without data: one document that fills the sequence and goes on behind it. */
static void add_blank(Batch *b, int64_t sequence, int64_t sequence_length, int64_t window) {
    int64_t row = sequence * sequence_length;
    memset(b->token + row, 0, (size_t)sequence_length * sizeof *b->token);
    memset(b->target + row, 0, (size_t)sequence_length * sizeof *b->target);
    add_part(b, row, sequence_length, sequence, window);
    b->real[sequence] = sequence_length;
    b->trained += sequence_length;
}

static void begin(Batch *b, int64_t first, int64_t stride, int64_t count, int64_t sequence_length, int64_t window) {
    MUST(first >= 0 && stride >= 0 && count >= 0 && sequence_length > 0 && window >= 0);
    MUST(count <= INT32_MAX / sequence_length);
    b->tokens = count * sequence_length;
    b->sequences = count;
    b->trained = 0;
}

bool batch_fill(Batch *b, const Tokens *t, int64_t seed, int64_t first, int64_t stride, int64_t count,
                int64_t sequence_length, int64_t window, Error *e) {
    begin(b, first, stride, count, sequence_length, window);
    int64_t pieces = t ? tokens_pieces(t, sequence_length) : 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t number = first + i * stride;
        if (t) {
            int64_t piece = random_permuted((uint64_t)seed, (uint64_t)(number / pieces), pieces, number % pieces);
            if (!add_piece(b, t, piece, i, sequence_length, window, e)) return false;
        } else {
            add_blank(b, i, sequence_length, window);
        }
    }
    return true;
}

/* ---- Evaluation ------------------------------------------------------------------------------- */

int64_t tokens_uncut(const Tokens *t, int64_t begin, int64_t sequence_length) {
    int64_t tokens = (int64_t)t->header.tokens, end = min64(begin + sequence_length, tokens);
    if (end == tokens) return end;
    int64_t document =
        (int64_t)t->first[document_of(t, end)]; /* the document that `end` cuts, if it is not its first */
    return document > begin ? document : end;
}

bool batch_fill_uncut(Batch *b, const Tokens *t, int64_t first, int64_t sequence_length, int64_t window, Error *e) {
    begin(b, first, 1, 1, sequence_length, window);
    if (t) return add_stretch(b, t, first, tokens_uncut(t, first, sequence_length), 0, sequence_length, window, e);
    add_blank(b, 0, sequence_length, window);
    return true;
}
