/* Evaluation scores each document that fits whole and uncut, whatever its neighbours, the sequence length, the layout
 * and the number of sequences in a step; bits per byte count the bytes that are predicted. And data that turns out to be
 * damaged in the middle of a run ends all ranks with a sentence. */
#define _GNU_SOURCE
#include "ranks.h"

#include "base/file.h"
#include "data/tokens.h"

#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { ROWS = 512, VOCABULARY = 67 };

/* ---- Data and one sequence -------------------------------------------------------------------- */

static Tokens *open_lines(const char *lines) {
    Error e = {0};
    char path[] = "/tmp/mop-evaluation-XXXXXX.jsonl";
    int fd = mkstemps(path, 6);
    assert_true(fd >= 0 && write(fd, lines, strlen(lines)) == (ssize_t)strlen(lines));
    close(fd);
    Tokenizer *k = tokenizer_open(NULL, &e);
    Tokens *t = tokens_open((const char *const[]){path, NULL}, k, &e);
    if (!t) fail_msg("%s", e.text);
    tokenizer_close(k);
    unlink(path);
    return t;
}

/* Documents of so many tokens, up to a 0; token i of all has id i. */
static Tokens *open_counting(const int *length) {
    char lines[8192] = "";
    size_t n = 0;
    for (int id = 0; *length; length++) {
        n += (size_t)sprintf(lines + n, "{\"input_ids\": [");
        for (int i = 0; i < *length; i++) n += (size_t)sprintf(lines + n, "%s%d", i ? "," : "", id++);
        n += (size_t)sprintf(lines + n, "]}\n");
    }
    return open_lines(lines);
}

typedef struct {
    Batch b;
    int32_t token[ROWS], target[ROWS], position[ROWS], first[ROWS], last[ROWS], sequence[ROWS];
    int64_t real[1];
} Room;

static void fill(Room *r, const Tokens *t, int64_t token, int64_t length) {
    Error e = {0};
    r->b = (Batch){.token = r->token,
                   .target = r->target,
                   .position = r->position,
                   .first = r->first,
                   .last = r->last,
                   .sequence = r->sequence,
                   .real = r->real};
    if (!batch_fill_uncut(&r->b, t, token, length, 0, &e)) fail_msg("%s", e.text);
}

/* ---- What is laid where ----------------------------------------------------------------------- */

static void a_document_that_does_not_fit_in_the_rest_begins_the_next_sequence(void **state) {
    (void)state;
    const int length[] = {7, 2, 5, 1, 3, 0};
    Tokens *t = open_counting(length);
    /* 5 a sequence: A A A A A|A A B B .|C C C C C|D E E E .|padding */
    const int64_t begin[] = {0, 5, 9, 14, 18, 18}, trained[] = {5, 1 + 1, 4, 2, 0};
    const int32_t position[][5] = {{0, 1, 2, 3, 4}, {0, 1, 0, 1, 0}, {0, 1, 2, 3, 4}, {0, 0, 1, 2, 0}, {0, 1, 2, 3, 4}};
    Room r;
    for (int s = 0; s < 5; s++) {
        fill(&r, t, begin[s], 5);
        assert_int_equal(tokens_uncut(t, begin[s], 5), begin[s + 1]);
        assert_int_equal(r.real[0], begin[s + 1] - begin[s]);
        assert_int_equal(r.b.trained, trained[s]);
        for (int i = 0; i < 5; i++) {
            bool real = i < r.real[0];
            assert_int_equal(r.position[i], position[s][i]);
            assert_int_equal(r.token[i], real ? begin[s] + i : 0);
            assert_int_equal(r.sequence[i], real ? 0 : -1);
            if (!real) assert_int_equal(r.target[i], -1);
        }
    }
    tokens_close(t);
}

static void no_document_that_fits_is_cut_and_no_token_is_lost_for_any_length(void **state) {
    (void)state;
    const int length[] = {1, 2, 3, 50, 1, 1, 7, 64, 13, 2, 100, 5, 1, 31, 32, 33, 8, 8, 90, 4, 1, 17, 1, 0};
    Tokens *t = open_counting(length);
    TokensInfo info = tokens_info(t);
    Room r;
    for (int64_t S = 1; S <= ROWS; S++) {
        int64_t trained = 0, token = 0;
        while (token < info.tokens) {
            fill(&r, t, token, S);
            for (int64_t i = 0; i < r.real[0]; i++) {
                uint64_t d = 0;
                while (t->first[d + 1] <= (uint64_t)(token + i)) d++;
                int64_t n = (int64_t)(t->first[d + 1] - t->first[d]), at = token + i - (int64_t)t->first[d];
                assert_int_equal(r.token[i], token + i);
                assert_int_equal(r.position[i], at % S); /* also of one that is cut, from its own beginning on */
                if (n <= S) assert_int_equal(r.position[i], at);
            }
            trained += r.b.trained;
            token += r.real[0];
        }
        assert_int_equal(trained, info.trained);
        fill(&r, t, token, S); /* behind the end there is padding alone */
        assert_int_equal(r.real[0] + r.b.trained, 0);
    }
    tokens_close(t);
}

/* ---- The loss --------------------------------------------------------------------------------- */

static bool evaluate_body(Run *run, void *context, Error *e) {
    Evaluation own, *out = context;
    if (!evaluate(run, &own, e)) return false;
    if (run->comm.mesh.rank == 0) *out = own;
    return true;
}

static Evaluation evaluation_of(const char *documents, int world, const char *const *sets) {
    RanksSetup setup = {.world = world,
                        .spec = "tests/fixtures/qwen3_moe/config.json",
                        .documents = documents,
                        .yaml = "compute:\n  type: fp64\n  threads: 1\n"};
    for (int i = 0; sets[i]; i++) setup.sets[i] = sets[i];
    Ranks *r = ranks_open(setup);
    Evaluation v;
    ranks_run(r, evaluate_body, &v);
    Price *used = ranks_prices(r);
    assert_within_plan("evaluation", r, used);
    free(used);
    ranks_close(r);
    return v;
}

static char *reversed_lines(const char *lines) {
    size_t n = strlen(lines), done = 0;
    char *out = calloc(n + 1, 1);
    assert_non_null(out);
    for (size_t end = n; end > 0;) {
        size_t begin = end - 1; /* the newline */
        while (begin > 0 && lines[begin - 1] != '\n') begin--;
        memcpy(out + done, lines + begin, end - begin);
        done += end - begin;
        end = begin;
    }
    return out;
}

static void documents_that_fit_are_scored_the_same_whatever_is_around_them(void **state) {
    (void)state;
    char *documents = random_documents(13, 21, VOCABULARY, 3), *reversed = reversed_lines(documents);
    const struct {
        int world;
        const char *sets[6];
    } cases[] = {
        {1, {"train.sequence_length=21", "train.sequences=1"}},
        {1, {"train.sequence_length=22", "train.sequences=3"}},
        {1, {"train.sequence_length=40", "train.sequences=64", "train.micro_batches=3"}},
        {1, {"train.sequence_length=400", "train.sequences=2"}},
        {3, {"train.sequence_length=24", "train.sequences=5", "mixture.expert=3"}},
        {4, {"train.sequence_length=32", "train.sequences=3", "mixture.vocabulary=2", "train.micro_batches=2"}},
        {4, {"train.sequence_length=28", "train.sequences=7", "mixture.vocabulary=4", "train.micro_batches=2"}},
        {2, {"train.sequence_length=24", "train.sequences=2", "mixture.ring=2", "mixture.vocabulary=2"}},
    };
    Evaluation expected = evaluation_of(documents, 1, cases[0].sets);
    assert_true(expected.trained > 50);
    for (size_t i = 0; i < COUNT(cases); i++) {
        Evaluation v = evaluation_of(documents, cases[i].world, cases[i].sets);
        Evaluation w = evaluation_of(reversed, cases[i].world, cases[i].sets);
        assert_int_equal(v.trained, expected.trained);
        assert_int_equal(w.trained, expected.trained);
        double off = fmax(fabs(v.loss - expected.loss), fabs(w.loss - expected.loss)) / expected.loss;
        if (!(off <= 1e-12)) fail_msg("case %zu: the loss is %g off", i, off);
    }
    free(documents);
    free(reversed);
}

/* ---- Bits per byte ---------------------------------------------------------------------------- */

static void predicted_bytes_are_those_of_targets_alone(void **state) {
    (void)state;
    Error e = {0};
    Tokenizer *k = tokenizer_open(NULL, &e);
    const struct {
        const char *lines;
        int64_t bytes;
    } cases[] = {
        {"{\"text\": \"a\"}\n{\"text\": \"ab\"}\n", 1},
        {"{\"text\": \"abcdefghij\"}\n{\"text\": \"\"}\n", 9},
        {"{\"text\": \"\u00e9\u00e9\"}\n", 3}, /* the first byte is predicted by nobody */
        {"{\"text\": \"ab\"}\n{\"input_ids\": [97, 98]}\n", -1},
        {"{\"input_ids\": [97, 98], \"loss_mask\": [0, 1]}\n", -1},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        Tokens *t = open_lines(cases[i].lines);
        assert_int_equal(tokens_predicted_bytes(t, k), cases[i].bytes);
        if (cases[i].bytes > 0) assert_int_equal(tokens_predicted_bytes(t, NULL), cases[i].bytes);
        tokens_close(t);
    }
    tokenizer_close(k);
}

/* A tokenizer with a token of five bytes, and a file that says to be made of text with it. */
static void a_token_of_many_bytes_counts_them_all_or_nothing_is_known(void **state) {
    (void)state;
    Error e = {0};
    Tokenizer *bytes = tokenizer_open(NULL, &e);
    char directory[] = "/tmp/mop-evaluation-XXXXXX", path[64];
    assert_non_null(mkdtemp(directory));
    assert_true(tokenizer_write(bytes, directory, &e));
    snprintf(path, sizeof path, "%s/tokenizer.json", directory);
    size_t n;
    char *text = file_read(path, 1 << 20, &n, &e), *edited = calloc(1, n + 200),
         *at = strstr(text, "\"added_tokens\": []");
    sprintf(edited, "%.*s\"added_tokens\": [{\"id\": 300, \"content\": \"hello\"}]%s", (int)(at - text), text,
            at + strlen("\"added_tokens\": []"));
    assert_true(file_write(path, edited, strlen(edited), &e));
    Tokenizer *k = tokenizer_open(path, &e);
    if (!k) fail_msg("%s", e.text);
    Tokens *t =
        open_lines("{\"input_ids\": [300, 97, 300, 98]}\n{\"input_ids\": [300, 300], \"labels\": [300, -100]}\n");
    t->header.text_bytes = 22;
    assert_int_equal(tokens_predicted_bytes(t, k), 1 + 5 + 1);
    assert_int_equal(tokens_predicted_bytes(t, bytes), -1);
    assert_int_equal(tokens_predicted_bytes(t, NULL), -1);
    tokens_close(t);
    tokenizer_close(k);
    tokenizer_close(bytes);
    free(text);
    free(edited);
    char command[96];
    snprintf(command, sizeof command, "rm -r %s", directory);
    assert_int_equal(system(command), 0);
}

/* ---- Damage ----------------------------------------------------------------------------------- */

static bool train_body(Run *run, void *context, Error *e) {
    (void)context;
    StepResult result;
    for (int64_t step = 0; step < 4; step++)
        if (!train_step(run, step, false, &result, e)) return false;
    return true;
}

static void data_damaged_in_use_ends_every_rank_with_a_sentence(void **state) {
    (void)state;
    char path[] = "/tmp/mop-evaluation-XXXXXX.tokens", set[96], *documents = random_documents(40, 21, VOCABULARY, 5);
    Tokens *source = open_lines(documents);
    int fd = mkstemps(path, 7);
    assert_true(fd >= 0 && write(fd, source->map, (size_t)source->bytes) == source->bytes);
    snprintf(set, sizeof set, "data.path=%s", path);
    const struct {
        int world;
        const char *set;
        RanksBody body;
    } cases[] = {{1, "mixture.vocabulary=1", train_body}, {4, "mixture.vocabulary=1", train_body},
                 {4, "mixture.vocabulary=2", train_body}, {4, "device=cpu:late", train_body},
                 {4, "mixture.expert=4", evaluate_body},  {4, "mixture.vocabulary=4", evaluate_body}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        const uint16_t wrong = VOCABULARY + 1;
        uint16_t right;
        off_t at = (off_t)(sizeof(TokenHeader) + 2 * (size_t)(source->header.tokens / 2));
        Ranks *r = ranks_open((RanksSetup){.world = cases[i].world,
                                           .spec = "tests/fixtures/qwen3_moe/config.json",
                                           .yaml = "train:\n  sequence_length: 24\n  sequences: 6\n",
                                           .sets = {set, cases[i].set, "compute.threads=1"}});
        assert_int_equal(pread(fd, &right, sizeof right, at), sizeof right);
        assert_int_equal(pwrite(fd, &wrong, sizeof wrong, at), sizeof wrong);
        Evaluation v;
        assert_false(ranks_try(r, cases[i].body, &v));
        int found = 0;
        for (int rank = 0; rank < r->world; rank++) {
            found +=
                r->error[rank].code == EXIT_DATA && strstr(r->error[rank].text, "damaged, or changed while in use");
            assert_true(r->error[rank].code == EXIT_DATA || r->error[rank].code == EXIT_PEER);
        }
        assert_true(found > 0);
        ranks_close(r);
        assert_int_equal(pwrite(fd, &right, sizeof right, at), sizeof right);
    }
    close(fd);
    unlink(path);
    tokens_close(source);
    free(documents);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_document_that_does_not_fit_in_the_rest_begins_the_next_sequence),
        cmocka_unit_test(no_document_that_fits_is_cut_and_no_token_is_lost_for_any_length),
        cmocka_unit_test(documents_that_fit_are_scored_the_same_whatever_is_around_them),
        cmocka_unit_test(predicted_bytes_are_those_of_targets_alone),
        cmocka_unit_test(a_token_of_many_bytes_counts_them_all_or_nothing_is_known),
        cmocka_unit_test(data_damaged_in_use_ends_every_rank_with_a_sentence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
