/* From text to batches: tokenizers, token files and packing, each claim by its sentence; malformed input by tables. */
#define _GNU_SOURCE
#include "base/file.h"
#include "base/random.h"
#include "data/data.h"
#include "data/token_file.h"
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- A directory of its own ------------------------------------------------------------------- */

static int enter_directory(void **state) {
    char *name = strdup("/tmp/mop-data-XXXXXX");
    *state = name;
    return mkdtemp(name) ? chdir(name) : -1;
}

static int leave_directory(void **state) {
    char command[64];
    snprintf(command, sizeof command, "rm -rf '%s'", (char *)*state);
    int left = chdir("/tmp") || system(command);
    free(*state);
    return left;
}

static void put(const char *path, const void *data, size_t bytes) {
    Error e = {0};
    assert_true(file_write(path, data, bytes, &e));
}

static void put_text(const char *path, const char *text) {
    put(path, text, strlen(text));
}

static char *get(const char *path, size_t *bytes) {
    Error e = {0};
    char *data = file_read(path, (size_t)1 << 30, bytes, &e);
    assert_non_null(data);
    return data;
}

static void assert_failed(const Error *e, ExitCode code, const char *part, const char *name) {
    if (e->code == code && strstr(e->text, part) && strstr(e->text, "; ")) return;
    fail_msg("%s: expected [%d] \"...%s...\", got [%d] \"%s\"", name, (int)code, part, (int)e->code, e->text);
}

/* Opens what must open, with the built-in tokenizer. */
static Tokens *open_all(const char *const *paths) {
    Error e = {0};
    Tokenizer *tokenizer = tokenizer_open(NULL, &e);
    Tokens *t = tokens_open(paths, tokenizer, &e);
    if (!t) fail_msg("%s: %s", paths[0], e.text);
    tokenizer_close(tokenizer);
    return t;
}

#define OPEN(...) open_all((const char *const[]){__VA_ARGS__, NULL})

static void assert_refused(const char *path, ExitCode code, const char *part, const char *name) {
    Error e = {0};
    Tokenizer *tokenizer = tokenizer_open("", &e);
    const char *paths[] = {path, NULL};
    Tokens *t = tokens_open(paths, tokenizer, &e);
    if (t) fail_msg("%s: was not refused", name);
    assert_failed(&e, code, part, name);
    tokenizer_close(tokenizer);
}

/* ---- Batches for tests ------------------------------------------------------------------------ */

enum { ROWS = 4096 };

/* The arrays of one batch. What was not written stays -7. */
typedef struct {
    Batch b;
    int32_t token[ROWS], target[ROWS], position[ROWS], first[ROWS], last[ROWS], sequence[ROWS];
    int64_t real[ROWS];
} Room;

static Room *room_new(void) {
    Room *r = malloc(sizeof *r);
    assert_non_null(r);
    for (int i = 0; i < ROWS; i++) {
        r->token[i] = r->target[i] = r->position[i] = r->first[i] = r->last[i] = r->sequence[i] = -7;
        r->real[i] = -7;
    }
    r->b = (Batch){.token = r->token,
                   .target = r->target,
                   .position = r->position,
                   .first = r->first,
                   .last = r->last,
                   .sequence = r->sequence,
                   .real = r->real};
    return r;
}

static void fill(Batch *b, const Tokens *t, int64_t seed, int64_t first, int64_t stride, int64_t count, int64_t length,
                 int64_t window) {
    Error e = {0};
    if (!batch_fill(b, t, seed, first, stride, count, length, window, &e)) fail_msg("%s", e.text);
}

/* The sequence of an evaluation that begins at `token`. */
static void fill_uncut(Batch *b, const Tokens *t, int64_t token, int64_t length, int64_t window) {
    Error e = {0};
    if (!batch_fill_uncut(b, t, token, length, window, &e)) fail_msg("%s", e.text);
}

static void assert_rows(const char *what, const int32_t *got, const int32_t *expected, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        if (got[i] != expected[i]) fail_msg("%s[%d] is %d, not %d", what, (int)i, (int)got[i], (int)expected[i]);
    }
}

/* A JSONL file of `count` documents of length[d] tokens each; token i of the corpus has id i. */
static void put_counting_documents(const char *path, const int *length, int count) {
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    int id = 0;
    for (int d = 0; d < count; d++) {
        fprintf(f, "{\"input_ids\": [");
        for (int i = 0; i < length[d]; i++) fprintf(f, "%s%d", i ? "," : "", id++);
        fprintf(f, "]}\n");
    }
    assert_int_equal(fclose(f), 0);
}

/* ---- Tokenizer -------------------------------------------------------------------------------- */

static void every_byte_is_its_own_id(void **state) {
    (void)state;
    Error e = {0};
    Tokenizer *t = tokenizer_open(NULL, &e);
    assert_non_null(t);
    assert_int_equal(tokenizer_vocabulary(t), 256);
    char text[256];
    int32_t ids[256];
    for (int b = 0; b < 256; b++) text[b] = (char)b;
    assert_int_equal(tokenizer_encode(t, text, 256, ids), 256);
    for (int b = 0; b < 256; b++) {
        size_t bytes;
        assert_int_equal(ids[b], b);
        assert_memory_equal(tokenizer_decode(t, b, &bytes), &text[b], 1);
        assert_int_equal(bytes, 1);
    }
    tokenizer_close(t);
}

static void an_id_outside_the_vocabulary_decodes_to_nothing(void **state) {
    (void)state;
    Error e = {0};
    Tokenizer *t = tokenizer_open("", &e);
    const int32_t outside[] = {-1, 256, 260, INT32_MAX};
    for (size_t i = 0; i < COUNT(outside); i++) {
        size_t bytes = 99;
        assert_non_null(tokenizer_decode(t, outside[i], &bytes));
        assert_int_equal(bytes, 0);
    }
    tokenizer_close(t);
}

static void a_written_tokenizer_reads_back_the_same(void **state) {
    (void)state;
    Error e = {0};
    Tokenizer *t = tokenizer_open(NULL, &e);
    assert_int_equal(mkdir("written", 0777), 0);
    assert_int_equal(mkdir("again", 0777), 0);
    assert_true(tokenizer_write(t, "written", &e));
    Tokenizer *back = tokenizer_open("written/tokenizer.json", &e);
    if (!back) fail_msg("%s", e.text);
    /* What is beside it survives as it is, numbers beyond 64 bits included. */
    put_text("written/tokenizer_config.json", "{\"model_max_length\": 1000000000000000019884624838656}\n");
    Tokenizer *configured = tokenizer_open("written/tokenizer.json", &e);
    assert_true(tokenizer_write(configured, "again", &e));
    const char *names[][2] = {{"written/tokenizer.json", "again/tokenizer.json"},
                              {"written/tokenizer_config.json", "again/tokenizer_config.json"}};
    for (size_t i = 0; i < COUNT(names); i++) {
        size_t n, m;
        char *a = get(names[i][0], &n), *b = get(names[i][1], &m);
        assert_int_equal(n, m);
        assert_memory_equal(a, b, n);
        free(a);
        free(b);
    }
    assert_int_equal(tokenizer_vocabulary(back), 256);
    tokenizer_close(t);
    tokenizer_close(back);
    tokenizer_close(configured);
}

/* Writes the built-in tokenizer.json to `path` with the first `find` replaced; false where there is none. */
static bool put_edited_tokenizer(const char *path, const char *find, const char *replacement) {
    Error e = {0};
    Tokenizer *t = tokenizer_open(NULL, &e);
    assert_true(tokenizer_write(t, ".", &e));
    tokenizer_close(t);
    size_t bytes;
    char *text = get("tokenizer.json", &bytes), *at = strstr(text, find);
    if (at) {
        FILE *f = fopen(path, "w");
        fprintf(f, "%.*s%s%s", (int)(at - text), text, replacement, at + strlen(find));
        fclose(f);
    }
    free(text);
    return at != NULL;
}

static void ids_may_have_any_order_and_tokens_may_be_added(void **state) {
    (void)state;
    Error e = {0};
    assert_true(put_edited_tokenizer("swap1.json", "\"a\": 97", "\"a\": 300"));
    size_t bytes;
    char *text = get("swap1.json", &bytes);
    char *added = strstr(text, "\"added_tokens\": []");
    assert_non_null(added);
    FILE *f = fopen("other.json", "w");
    fprintf(f, "%.*s\"added_tokens\": [{\"id\": 97, \"content\": \"<eos>\"}, {\"id\": 400, \"content\": \"<pad>\"}]%s",
            (int)(added - text), text, added + strlen("\"added_tokens\": []"));
    fclose(f);
    free(text);
    Tokenizer *t = tokenizer_open("other.json", &e);
    if (!t) fail_msg("%s", e.text);
    assert_int_equal(tokenizer_vocabulary(t), 401);
    int32_t ids[8];
    assert_int_equal(tokenizer_encode(t, "ba<eos>", 7, ids), 7); /* text does not become a control */
    const int32_t expected[] = {'b', 300, '<', 'e', 'o', 's', '>'};
    assert_rows("id", ids, expected, 7);
    assert_memory_equal(tokenizer_decode(t, 97, &bytes), "<eos>", 5);
    assert_int_equal(bytes, 5);
    assert_memory_equal(tokenizer_decode(t, 300, &bytes), "a", 1);
    tokenizer_decode(t, 350, &bytes);
    assert_int_equal(bytes, 0);
    tokenizer_close(t);
}

static void a_template_that_adds_nothing_is_accepted(void **state) {
    (void)state;
    Error e = {0};
    assert_true(put_edited_tokenizer("template.json", "\"post_processor\": null",
                                     "\"post_processor\": {\"type\": \"TemplateProcessing\", \"special_tokens\": {}}"));
    Tokenizer *t = tokenizer_open("template.json", &e);
    assert_non_null(t);
    tokenizer_close(t);
}

static void tokenizers_of_another_kind_open_and_refuse_text_in_words(void **state) {
    (void)state;
    const struct {
        const char *find, *replacement, *message;
    } cases[] = {
        {"\"merges\": []", "\"merges\": [[\"t\", \"h\"]]", "has merges: BPE is not built yet"},
        {"\"merges\": []", "\"merges\": [\"t h\"]", "has merges: BPE is not built yet"},
        {"\"merges\": []", "\"merges\": \"t h\"", "merges are not a list"},
        {"\"type\": \"BPE\"", "\"type\": \"Unigram\"", "\"Unigram\""},
        {"\"type\": \"BPE\"", "\"type\": 7", "a string is expected"},
        {"\"model\": {", "\"modell\": {", "it has no \"model\""},
        {"\"vocab\": {", "\"vocabulary\": {", "no vocabulary"},
        {"\"normalizer\": null", "\"normalizer\": {\"type\": \"NFC\"}", "has a normalizer"},
        {"\"type\": \"ByteLevel\"", "\"type\": \"Whitespace\"", "not both ByteLevel"},
        {"\"add_prefix_space\": false", "\"add_prefix_space\": true", "puts a space before"},
        {"\"post_processor\": null",
         "\"post_processor\": {\"type\": \"TemplateProcessing\", \"special_tokens\": {\"<s>\": {}}}", "adds tokens"},
        {"\"post_processor\": null", "\"post_processor\": {\"type\": \"BertProcessing\"}", "adds tokens"},
        {"\"a\": 97,", "", "lacks byte 97"},
        {"\"a\": 97", "\"a\": 98", "two tokens have the id 98"},
        {"\"a\": 97", "\"a\": -1", "\"a\" has no valid id"},
        {"\"a\": 97", "\"a\": 2147483647", "\"a\" has no valid id"},
        {"\"a\": 97", "\"a\": \"97\"", "\"a\" has no valid id"},
        {"\"a\": 97", "\"a\": 97, \"the\": 256", "\"the\" is neither a byte nor an added token"},
        {"\"added_tokens\": []", "\"added_tokens\": {}", "not a list"},
        {"\"added_tokens\": []", "\"added_tokens\": [{\"id\": 256}]", "no valid id and content"},
        {"\"added_tokens\": []", "\"added_tokens\": [{\"id\": 1.5, \"content\": \"<s>\"}]", "no valid id and content"},
        {"\"added_tokens\": []", "\"added_tokens\": [{\"id\": 5, \"content\": \"<s>\"}]", "two tokens have the id 5"},
    };
    assert_int_equal(mkdir("written", 0777), 0);
    for (size_t i = 0; i < COUNT(cases); i++) {
        Error e = {0};
        if (!put_edited_tokenizer("edited.json", cases[i].find, cases[i].replacement)) fail_msg("no %s", cases[i].find);
        Tokenizer *t = tokenizer_open("edited.json", &e);
        if (!t) fail_msg("%s: %s", cases[i].replacement, e.text);
        if (tokenizer_ready(t, "a.txt", &e)) fail_msg("%s was not refused", cases[i].replacement);
        assert_failed(&e, EXIT_DATA, cases[i].message, cases[i].replacement);
        assert_failed(&e, EXIT_DATA, "edited.json", cases[i].replacement);
        assert_failed(&e, EXIT_DATA, "text needs a tokenizer (a.txt)", cases[i].replacement);
        assert_int_equal(tokenizer_vocabulary(t), 0);
        assert_true(tokenizer_write(t, "written", &(Error){0})); /* it is carried on as it is */
        size_t n, m;
        char *read = get("edited.json", &n), *written = get("written/tokenizer.json", &m);
        assert_int_equal(n, m);
        assert_memory_equal(read, written, n);
        free(read);
        free(written);
        tokenizer_close(t);
    }
    Error missing = {0}, root = {0};
    assert_null(tokenizer_open("nowhere/tokenizer.json", &missing));
    assert_failed(&missing, EXIT_DATA, "nowhere/tokenizer.json", "missing");
    put_text("list.json", "[1, 2]");
    Tokenizer *list = tokenizer_open("list.json", &root);
    assert_false(tokenizer_ready(list, "a.txt", &root));
    assert_failed(&root, EXIT_DATA, "no \"model\"", "list");
    tokenizer_close(list);
    const char *const broken[] = {"\"added_tokens\": [[[", "\"added_tokens\": 1, \"added_tokens\": 1"};
    for (size_t i = 0; i < COUNT(broken); i++) {
        Error e = {0};
        assert_true(put_edited_tokenizer("broken.json", "\"added_tokens\": []", broken[i]));
        assert_null(tokenizer_open("broken.json", &e));
        assert_failed(&e, EXIT_DATA, "not valid JSON", broken[i]);
    }
}

/* ---- Documents -------------------------------------------------------------------------------- */

/* The whole corpus as one sequence, in order. */
static Room *read_corpus(const Tokens *t) {
    Room *r = room_new();
    fill_uncut(&r->b, t, 0, tokens_info(t).tokens, 0);
    return r;
}

static void assert_corpus(Tokens *t, const char *text, int64_t documents) {
    Room *r = read_corpus(t);
    assert_int_equal(tokens_info(t).tokens, strlen(text));
    assert_int_equal(tokens_info(t).documents, documents);
    for (size_t i = 0; text[i]; i++) assert_int_equal(r->token[i], (unsigned char)text[i]);
    free(r);
    tokens_close(t);
}

static void a_text_file_is_one_document(void **state) {
    (void)state;
    put_text("a.txt", "one\n\ntwo\r\n");
    Tokens *t = OPEN("a.txt");
    TokensInfo info = tokens_info(t);
    assert_int_equal(info.trained, 9);
    assert_int_equal(info.text_bytes, 10);
    assert_int_equal(info.vocabulary, 1 + 'w');
    assert_int_equal(info.id_bytes, 2);
    assert_false(info.labelled);
    assert_corpus(t, "one\n\ntwo\r\n", 1);
}

static void a_directory_is_its_visible_files_in_byte_order(void **state) {
    (void)state;
    assert_int_equal(mkdir("corpus", 0777), 0);
    put_text("corpus/b.txt", "bb");
    put_text("corpus/B", "BB");
    put_text("corpus/a.jsonl", "{\"text\": \"aa\"}\n{\"text\": \"AA\"}");
    put_text("corpus/.hidden", "no");
    put_text("last.txt", "last");
    assert_corpus(OPEN("corpus", "last.txt"), "BBaaAAbblast", 5);
    assert_corpus(OPEN("corpus/"), "BBaaAAbb", 4);
}

static void empty_documents_are_skipped_and_counted(void **state) {
    (void)state;
    put_text("empty.txt", "");
    put_text("some.jsonl", "\n{\"text\": \"\"}\r\n  \n{\"text\": \"ab\", \"id\": 7}\r\n{\"input_ids\": []}\n\n");
    Tokens *t = OPEN("empty.txt", "some.jsonl");
    assert_int_equal(tokens_info(t).skipped, 3);
    assert_corpus(t, "ab", 1);
}

static void characters_cut_by_a_read_stay_whole(void **state) {
    (void)state;
    const size_t bytes = ((size_t)3 << 20) + 5;
    const char *character = "\xf0\x9f\x98\x80";
    for (size_t shift = 0; shift < 4; shift++) {
        char *text = malloc(bytes);
        memset(text, 'x', shift);
        for (size_t i = shift; i < bytes; i++)
            text[i] = i >= bytes - (bytes - shift) % 4 ? 'x' : character[(i - shift) % 4];
        put("long.txt", text, bytes);
        Tokens *t = OPEN("long.txt");
        assert_int_equal(tokens_info(t).tokens, bytes);
        assert_int_equal(tokens_info(t).documents, 1);
        Room *r = room_new();
        for (int64_t piece = 0; piece < tokens_pieces(t, ROWS); piece++) {
            fill_uncut(&r->b, t, piece * ROWS, ROWS, 0);
            for (int64_t i = 0; i < r->real[0]; i++) {
                assert_int_equal(r->token[i], (unsigned char)text[piece * ROWS + i]);
            }
        }
        free(r);
        tokens_close(t);
        free(text);
    }
}

static void text_bytes_are_known_only_where_all_is_text(void **state) {
    (void)state;
    put_text("text.jsonl", "{\"text\": \"a\u00e9\"}\n");
    put_text("both.jsonl", "{\"text\": \"a\u00e9\"}\n{\"input_ids\": [1, 2]}\n");
    Tokens *text = OPEN("text.jsonl"), *both = OPEN("both.jsonl");
    assert_int_equal(tokens_info(text).text_bytes, 3);
    assert_int_equal(tokens_info(both).text_bytes, 0);
    tokens_close(text);
    tokens_close(both);
}

static void labels_are_targets_where_they_are_given(void **state) {
    (void)state;
    put_text("labels.jsonl", "{\"input_ids\": [1, 2, 3]}\n"
                             "{\"input_ids\": [4, 5, 6, 7], \"labels\": [-100, 9, -100, 8]}\n"
                             "{\"input_ids\": [1, 2], \"labels\": null, \"attention_mask\": [1, 1]}\n");
    Tokens *t = OPEN("labels.jsonl");
    TokensInfo info = tokens_info(t);
    assert_true(info.labelled);
    assert_int_equal(info.trained, 2 + 2 + 1);
    assert_int_equal(info.vocabulary, 10);
    assert_int_equal(info.text_bytes, 0);
    Room *r = read_corpus(t);
    const int32_t token[] = {1, 2, 3, 4, 5, 6, 7, 1, 2}, target[] = {2, 3, -1, 9, -1, 8, -1, 2, -1};
    assert_rows("token", r->token, token, 9);
    assert_rows("target", r->target, target, 9);
    assert_int_equal(r->b.trained, 5);
    free(r);
    tokens_close(t);
}

static void an_id_that_two_bytes_cannot_hold_makes_the_file_wide(void **state) {
    (void)state;
    const struct {
        const char *lines;
        int64_t id_bytes;
    } cases[] = {
        {"{\"input_ids\": [3, 65534]}\n", 2},
        {"{\"input_ids\": [3, 65535]}\n", 4},
        {"{\"input_ids\": [3, 4], \"labels\": [1, 65535]}\n", 4},
        {"{\"input_ids\": [1, 2]}\n{\"input_ids\": [3, 4], \"labels\": [5, -100]}\n{\"input_ids\": [7, 2147483646]}\n",
         4},
        {"{\"input_ids\": [1, 2147483646]}\n{\"input_ids\": [3, 4], \"labels\": [-100, 5]}\n", 4},
    };
    const int32_t token[][6] = {{3, 65534}, {3, 65535}, {3, 4}, {1, 2, 3, 4, 7, 2147483646}, {1, 2147483646, 3, 4}};
    const int32_t target[][6] = {
        {65534, -1}, {65535, -1}, {65535, -1}, {2, -1, -1, -1, 2147483646, -1}, {2147483646, -1, 5, -1}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        put_text("wide.jsonl", cases[i].lines);
        Tokens *t = OPEN("wide.jsonl");
        assert_int_equal(tokens_info(t).id_bytes, cases[i].id_bytes);
        Room *r = read_corpus(t);
        assert_rows("token", r->token, token[i], r->b.tokens);
        assert_rows("target", r->target, target[i], r->b.tokens);
        free(r);
        tokens_close(t);
    }
}

static void malformed_lines_are_refused_with_their_number(void **state) {
    (void)state;
    const struct {
        const char *line, *message;
    } cases[] = {
        {"{\"id\": 1}", "neither \"text\" nor \"input_ids\""},
        {"{\"text\": \"a\", \"input_ids\": [1]}", "both \"text\" and \"input_ids\""},
        {"{\"text\": 5}", "\"text\" is not a string"},
        {"{\"text\": null}", "neither \"text\" nor \"input_ids\""},
        {"{\"text\": \"a\", \"labels\": [1]}", "\"labels\" belongs to \"input_ids\""},
        {"[1, 2]", "not an object"},
        {"7", "not valid JSON"},
        {"{\"text\": \"a\"", "not valid JSON"},
        {"{\"text\": \"a\"} {}", "not valid JSON"},
        {"{\"text\": \"a\", \"text\": \"b\"}", "not valid JSON"},
        {"{\"text\": \"\xff\"}", "not valid JSON"},
        {"{\"text\": \"\\ud800\"}", "not valid JSON"},
        {"{\"input_ids\": \"1 2\"}", "\"input_ids\" is not a list"},
        {"{\"input_ids\": null}", "neither \"text\" nor \"input_ids\""},
        {"{\"input_ids\": [1, -1]}", "\"input_ids\"[1] is -1"},
        {"{\"input_ids\": [-100]}", "\"input_ids\"[0] is -100"},
        {"{\"input_ids\": [1, 2147483647]}", "\"input_ids\"[1] is 2147483647"},
        {"{\"input_ids\": [99999999999999999999]}", "\"input_ids\"[0] is 1e20"},
        {"{\"input_ids\": [1.0]}", "\"input_ids\"[0] is 1.0"},
        {"{\"input_ids\": [\"\\u001b[2J\"]}", "\"input_ids\"[0] is \""},
        {"{\"input_ids\": [true]}", "\"input_ids\"[0] is true"},
        {"{\"input_ids\": [[1]]}", "\"input_ids\"[0] is [1]"},
        {"{\"input_ids\": [1, 2], \"labels\": [1]}", "2 input_ids but 1 in \"labels\""},
        {"{\"input_ids\": [1], \"labels\": [1, 2]}", "1 input_ids but 2 in \"labels\""},
        {"{\"input_ids\": [1], \"labels\": 3}", "\"labels\" is not a list"},
        {"{\"input_ids\": [1], \"labels\": [-1]}", "\"labels\"[0] is -1"},
        {"{\"input_ids\": [1], \"labels\": [-101]}", "or -100"},
        {"{\"input_ids\": [1], \"labels\": [2147483647]}", "\"labels\"[0] is 2147483647"},
        {"{\"input_ids\": [1, 0], \"attention_mask\": [1]}", "2 input_ids but 1 in \"attention_mask\""},
        {"\xef\xbb\xbf{\"text\": \"a\"}", "not valid JSON"},
        {"plain text", "not valid JSON"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        char lines[256];
        snprintf(lines, sizeof lines, "{\"text\": \"good\"}\n\n%s\n{\"text\": \"good\"}\n", cases[i].line);
        put_text("bad.jsonl", lines);
        assert_refused("bad.jsonl", EXIT_DATA, cases[i].message, cases[i].line);
        assert_refused("bad.jsonl", EXIT_DATA, "bad.jsonl:3", cases[i].line);
    }
}

static void a_line_too_long_is_refused_without_being_read_whole(void **state) {
    (void)state;
    int fd = open("endless.jsonl", O_WRONLY | O_CREAT, 0666);
    assert_int_equal(pwrite(fd, "{}", 2, ((off_t)1 << 40) - 2), 2); /* a terabyte of nothing */
    close(fd);
    assert_refused("endless.jsonl", EXIT_DATA, "line longer than 64 MiB; endless.jsonl:1", "long line");
    unlink("endless.jsonl");
}

static void data_that_cannot_be_used_is_refused(void **state) {
    (void)state;
    assert_int_equal(mkdir("nothing", 0777), 0);
    assert_int_equal(mkdir("outer", 0777), 0);
    assert_int_equal(mkdir("outer/inner", 0777), 0);
    assert_int_equal(mkdir("mixed", 0777), 0);
    assert_int_equal(symlink("nowhere", "dangling"), 0);
    assert_int_equal(symlink("loop", "loop"), 0);
    put_text("nothing/.hidden", "text");
    put_text("mixed/a.tokens", "text");
    put_text("void.txt", "");
    put_text("blank.jsonl", "\n\n");
    put_text("voids.jsonl", "{\"text\": \"\"}\n");
    put_text("short.txt", "x");
    put_text("ignored.jsonl", "{\"input_ids\": [1, 2], \"labels\": [1, -100]}\n");
    put_text("rows.json", "[{\"text\": \"a\"}]");
    put_text("latin1.txt", "caf\xe9 au lait");
    put_text("cut.txt", "caf\xc3");
    put_text("zip.txt", "PK\x03\x04\x80\x00");
    const struct {
        const char *path;
        ExitCode code;
        const char *message;
    } cases[] = {
        {"nowhere.txt", EXIT_DATA, "No such file"},
        {"nowhere.tokens", EXIT_DATA, "No such file"},
        {"short.txt/x", EXIT_DATA, "Not a directory"},
        {"dangling", EXIT_DATA, "No such file"},
        {"loop", EXIT_IO, "symbolic links"},
        {"nothing", EXIT_DATA, "no data in the directory, which has only .hidden; nothing"},
        {"outer", EXIT_DATA, "no data in the directory, which has only inner; outer"},
        {"mixed", EXIT_DATA, "a token file cannot be joined"},
        {"void.txt", EXIT_DATA, "every document is empty"},
        {"voids.jsonl", EXIT_DATA, "every document is empty"},
        {"blank.jsonl", EXIT_DATA, "there is no document"},
        {"short.txt", EXIT_DATA, "nothing to learn"},
        {"ignored.jsonl", EXIT_DATA, "nothing to learn"},
        {"rows.json", EXIT_DATA, ".jsonl"},
        {"latin1.txt", EXIT_DATA, "not UTF-8 text at byte 3"},
        {"cut.txt", EXIT_DATA, "not UTF-8 text at byte 3"},
        {"zip.txt", EXIT_DATA, "a zip archive"},
        {"/proc/self/mem", EXIT_IO, "Input/output error"},
        {"nothing.tokens/", EXIT_DATA, "No such file"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        assert_refused(cases[i].path, cases[i].code, cases[i].message, cases[i].path);
    }
    const char *none[] = {NULL}, *text[] = {"latin1.txt", NULL}, *line[] = {"voids.jsonl", NULL};
    Error no_path = {0}, no_tokenizer = {0}, no_tokenizer_line = {0};
    assert_null(tokens_open(none, NULL, &no_path));
    assert_failed(&no_path, EXIT_USAGE, "no data is named", "no path");
    assert_null(tokens_open(text, NULL, &no_tokenizer));
    assert_failed(&no_tokenizer, EXIT_USAGE, "text needs a tokenizer", "no tokenizer");
    assert_null(tokens_open(line, NULL, &no_tokenizer_line));
    assert_failed(&no_tokenizer_line, EXIT_USAGE, "text needs a tokenizer", "no tokenizer");
}

/* ---- Token files ------------------------------------------------------------------------------ */

static bool prepare(const char *in, const char *out, Error *e) {
    Tokenizer *t = tokenizer_open(NULL, e);
    const char *paths[] = {in, NULL};
    DataNotes notes;
    bool done = t && tokens_prepare(paths, t, out, &notes, e);
    tokenizer_close(t);
    return done;
}

/* A small file with every section: 3 documents, 9 tokens, labels. */
static char *put_example(const char *path, size_t *bytes) {
    Error e = {0};
    put_text("example.jsonl",
             "{\"input_ids\": [1, 2, 3]}\n{\"input_ids\": [4, 5, 6, 7], \"labels\": [-100, 9, -100, 8]}\n"
             "{\"input_ids\": [1, 2]}\n");
    if (!prepare("example.jsonl", path, &e)) fail_msg("%s", e.text);
    return get(path, bytes);
}

static void a_token_file_says_what_its_source_said(void **state) {
    (void)state;
    Error e = {0};
    size_t bytes;
    free(put_example("a.tokens", &bytes));
    assert_int_equal(rename("a.tokens", "renamed"), 0); /* known by its contents */
    Tokens *made = OPEN("renamed"), *source = OPEN("example.jsonl");
    TokensInfo a = tokens_info(made), b = tokens_info(source);
    assert_true(tokens_verify(made, &e));
    assert_int_equal(a.tokens, b.tokens);
    assert_int_equal(a.documents, b.documents);
    assert_int_equal(a.trained, b.trained);
    assert_int_equal(a.text_bytes, b.text_bytes);
    assert_int_equal(a.vocabulary, b.vocabulary);
    assert_int_equal(a.skipped, b.skipped);
    assert_int_equal(a.id_bytes, b.id_bytes);
    assert_int_equal(a.labelled, b.labelled);
    assert_int_equal(a.hash, b.hash);
    Room *x = read_corpus(made), *y = read_corpus(source);
    assert_rows("token", x->token, y->token, a.tokens);
    assert_rows("target", x->target, y->target, a.tokens);
    put_text("other.jsonl",
             "{\"input_ids\": [1, 2, 3]}\n{\"input_ids\": [4, 5, 6, 7], \"labels\": [-100, 8, -100, 9]}\n"
             "{\"input_ids\": [1, 2]}\n");
    Tokens *other = OPEN("other.jsonl");
    assert_true(tokens_info(other).hash != a.hash);
    free(x);
    free(y);
    tokens_close(made);
    tokens_close(source);
    tokens_close(other);
}

static void a_truncated_token_file_is_refused_at_every_length(void **state) {
    (void)state;
    size_t bytes;
    char *data = put_example("a.tokens", &bytes);
    for (size_t n = 0; n < bytes; n++) {
        put("cut.tokens", data, n);
        assert_refused("cut.tokens", EXIT_DATA, "truncated", "cut");
    }
    put("long.tokens", data, bytes + 1); /* the NUL that file_read added */
    assert_refused("long.tokens", EXIT_DATA, "longer than it should be", "long");
    free(data);
}

static void a_flipped_bit_anywhere_is_found(void **state) {
    (void)state;
    size_t bytes;
    char *data = put_example("a.tokens", &bytes);
    int fd = memfd_create("tokens", MFD_CLOEXEC);
    assert_int_equal(write(fd, data, bytes), bytes);
    for (size_t bit = 0; bit < 8 * bytes; bit++) {
        Error e = {0};
        char flipped = (char)(data[bit / 8] ^ 1 << bit % 8);
        assert_int_equal(pwrite(fd, &flipped, 1, (off_t)(bit / 8)), 1);
        Tokens *t = tokens_open_fd(fd, "flipped", &e);
        if (t) fail_msg("bit %zu was flipped and nobody knew", bit);
        assert_int_equal(e.code, EXIT_DATA);
        assert_int_equal(pwrite(fd, &data[bit / 8], 1, (off_t)(bit / 8)), 1);
    }
    Error e = {0};
    Tokens *t = tokens_open_fd(fd, "restored", &e);
    assert_non_null(t);
    tokens_close(t);
    close(fd);
    free(data);
}

/* Makes all checksums right again after an edit, as a writer with bad intent would. */
static void seal(char *data, size_t bytes) {
    TokenHeader h;
    int64_t offset[SECTION_COUNT + 1];
    memcpy(&h, data, sizeof h);
    bool laid_out = token_sections(&h, offset) && offset[SECTION_COUNT] <= (int64_t)bytes;
    for (int s = 0; s < SECTION_COUNT && laid_out; s++) {
        h.section[s] = token_checksum(data + offset[s], (size_t)(offset[s + 1] - offset[s]));
    }
    h.header = token_checksum(&h, offsetof(TokenHeader, header));
    memcpy(data, &h, sizeof h);
}

static void a_well_sealed_lie_is_refused(void **state) {
    (void)state;
    size_t bytes;
    char *data = put_example("a.tokens", &bytes);
    enum { IDS = 192, LABELS = 256, DOCUMENTS = 320 }; /* 9 x 2, 9 x 2, 4 x 8 bytes */
    const struct {
        const char *name;
        size_t at, bytes;
        uint64_t value;
        const char *message;
    } cases[] = {
        {"magic", 0, 1, 'M', "not a token file"},
        {"version 0", 8, 4, 0, "version 0"},
        {"version 2", 8, 4, 2, "version 2"},
        {"ids of 0 bytes", 12, 4, 0, "numbers cannot be"},
        {"ids of 3 bytes", 12, 4, 3, "numbers cannot be"},
        {"ids of 4 bytes", 12, 4, 4, "a label is not one"},
        {"labelled twice", 16, 4, 2, "numbers cannot be"},
        {"not labelled", 16, 4, 0, "numbers cannot be"},
        {"no tokens", 24, 8, 0, "numbers cannot be"},
        {"fewer tokens", 24, 8, 8, "document index does not rise"},
        {"more tokens", 24, 8, 100, "truncated"},
        {"2^60 tokens", 24, 8, (uint64_t)1 << 60, "truncated"},
        {"2^62 tokens", 24, 8, (uint64_t)1 << 62, "numbers cannot be"},
        {"2^63 tokens", 24, 8, (uint64_t)1 << 63, "numbers cannot be"},
        {"2^64 - 1 tokens", 24, 8, UINT64_MAX, "numbers cannot be"},
        {"no documents", 32, 8, 0, "numbers cannot be"},
        {"more documents than tokens", 32, 8, 10, "numbers cannot be"},
        {"fewer documents", 32, 8, 2, "document index does not rise"},
        {"more documents", 32, 8, 4, "document index does not rise"},
        {"another trained count", 40, 8, 4, "labels are not as many"},
        {"impossible trained count", 40, 8, 7, "numbers cannot be"},
        {"vocabulary 0", 48, 8, 0, "numbers cannot be"},
        {"vocabulary too small", 48, 8, 9, "not of the vocabulary"},
        {"vocabulary too large", 48, 8, 11, "not of the vocabulary"},
        {"vocabulary of no two bytes", 48, 8, 65536, "numbers cannot be"},
        {"id beyond the vocabulary", IDS + 4, 2, 10, "not of the vocabulary"},
        {"id that is none", IDS + 4, 2, 65535, "an id is not one"},
        {"label beyond the vocabulary", LABELS + 4, 2, 10, "not of the vocabulary"},
        {"another label ignored", LABELS + 4, 2, 65535, "labels are not as many"},
        {"first document later", DOCUMENTS, 8, 1, "document index does not rise"},
        {"empty document", DOCUMENTS + 8, 8, 7, "document index does not rise"},
        {"document index that falls", DOCUMENTS + 16, 8, 2, "document index does not rise"},
        {"document beyond the tokens", DOCUMENTS + 16, 8, (uint64_t)1 << 60, "document index does not rise"},
        {"end elsewhere", DOCUMENTS + 24, 8, 10, "document index does not rise"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        char *edited = malloc(bytes);
        memcpy(edited, data, bytes);
        memcpy(edited + cases[i].at, &cases[i].value, cases[i].bytes);
        seal(edited, bytes);
        put("lie.tokens", edited, bytes);
        assert_refused("lie.tokens", EXIT_DATA, cases[i].message, cases[i].name);
        free(edited);
    }
    seal(data, bytes);
    put("true.tokens", data, bytes);
    tokens_close(OPEN("true.tokens"));
    free(data);
}

/* In two bytes all ones are -1 and nothing is below; in four a label may be anything. */
static void a_label_below_minus_one_is_refused_at_opening(void **state) {
    (void)state;
    Error e = {0};
    size_t bytes;
    put_text("wide.jsonl", "{\"input_ids\": [1, 70000, 3, 4], \"labels\": [-100, 70000, -100, 4]}\n");
    if (!prepare("wide.jsonl", "wide.tokens", &e)) fail_msg("%s", e.text);
    char *data = get("wide.tokens", &bytes);
    const int32_t labels[] = {-5, INT32_MIN, -100, -2};
    for (size_t i = 0; i < COUNT(labels); i++) {
        memcpy(data + 256 + 8, &labels[i], 4); /* one that was ignored */
        seal(data, bytes);
        put("lie.tokens", data, bytes);
        assert_refused("lie.tokens", EXIT_DATA, "a label is not one", "label");
    }
    free(data);
}

static void text_named_tokens_is_refused(void **state) {
    (void)state;
    char text[300];
    memset(text, 'x', sizeof text);
    put("text.tokens", text, sizeof text);
    assert_refused("text.tokens", EXIT_DATA, "not a token file", "text");
    assert_int_equal(mkdir("directory.tokens", 0777), 0);
    assert_refused("directory.tokens", EXIT_DATA, "no file", "directory");
}

static void ids_beyond_the_models_vocabulary_are_named(void **state) {
    (void)state;
    put_text("fit.jsonl", "{\"input_ids\": [1, 2]}\n{\"input_ids\": [3, 4, 99, 100]}\n");
    Error fits = {0}, exceeds = {0};
    Tokens *t = OPEN("fit.jsonl");
    assert_true(tokens_fit(t, 101, &fits));
    assert_false(tokens_fit(t, 99, &exceeds));
    assert_failed(&exceeds, EXIT_DATA, "id 99 of the data is not below the model's vocabulary of 99", "fit");
    assert_failed(&exceeds, EXIT_DATA, "token 2 of document 1", "fit");
    tokens_close(t);
}

static void assert_only(const char *directory_of_one, const char *name) {
    char command[256];
    snprintf(command, sizeof command, "test \"$(ls -A %s)\" = '%s'", directory_of_one, name);
    if (system(command) != 0) fail_msg("%s holds more or less than %s", directory_of_one, name);
}

static void a_failed_preparation_leaves_what_was_there(void **state) {
    (void)state;
    Error first = {0}, second = {0}, full = {0}, third = {0};
    assert_int_equal(mkdir("out", 0777), 0);
    put_text("good.txt", "good text");
    put_text("bad.jsonl", "{\"text\": \"good\"}\n{\"text\": 1}\n");
    assert_false(prepare("bad.jsonl", "out/a.tokens", &first));
    assert_only("out", "");
    assert_true(prepare("good.txt", "out/a.tokens", &second));
    /* A disk that is full after 64 KiB. */
    char *text = malloc(1 << 20);
    memset(text, 'y', 1 << 20);
    put("large.txt", text, 1 << 20);
    free(text);
    struct rlimit before, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = (struct rlimit){1 << 16, before.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    bool written = prepare("large.txt", "out/a.tokens", &full);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_false(written);
    assert_failed(&full, EXIT_IO, "cannot write the token file: File too large; out/a.tokens", "full");
    assert_only("out", "a.tokens");
    assert_corpus(OPEN("out/a.tokens"), "good text", 1);
    assert_true(prepare("large.txt", "out/a.tokens", &third)); /* a token file may be replaced */
    Tokens *t = OPEN("out/a.tokens");
    assert_int_equal(tokens_info(t).tokens, 1 << 20);
    tokens_close(t);
}

static void only_token_files_are_overwritten(void **state) {
    (void)state;
    put_text("book.txt", "a book");
    Error text = {0}, device = {0}, nowhere = {0}, empty = {0};
    assert_false(prepare("book.txt", "book.txt", &text));
    assert_failed(&text, EXIT_USAGE, "exists and is not a token file; book.txt", "text");
    assert_corpus(OPEN("book.txt"), "a book", 1);
    assert_false(prepare("book.txt", "/dev/null", &device));
    assert_failed(&device, EXIT_USAGE, "/dev/null", "device");
    assert_false(prepare("book.txt", "nowhere/a.tokens", &nowhere));
    assert_failed(&nowhere, EXIT_IO, "nowhere/a.tokens", "no directory");
    put_text("made-by-mktemp", "");
    assert_true(prepare("book.txt", "made-by-mktemp", &empty));
    assert_corpus(OPEN("made-by-mktemp"), "a book", 1);
}

/* 300 MiB that the file system need not store, all ids 0 except the last. */
static void put_large_file(const char *path) {
    TokenHeader h = {.magic = TOKEN_MAGIC,
                     .version = TOKEN_VERSION,
                     .id_bytes = 2,
                     .tokens = 150 << 20,
                     .documents = 1,
                     .trained = (150 << 20) - 1,
                     .vocabulary = 3};
    int64_t offset[SECTION_COUNT + 1];
    assert_true(token_sections(&h, offset));
    int fd = open(path, O_RDWR | O_CREAT, 0666);
    assert_int_equal(ftruncate(fd, offset[SECTION_COUNT]), 0);
    char *map = mmap(NULL, (size_t)offset[SECTION_COUNT], PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(map != MAP_FAILED);
    memcpy(map + offset[SECTION_DOCUMENTS] + 8, &h.tokens, 8);
    map[offset[SECTION_LABELS] - 2] = 2;
    memcpy(map, &h, sizeof h);
    seal(map, (size_t)offset[SECTION_COUNT]);
    munmap(map, (size_t)offset[SECTION_COUNT]);
    close(fd);
}

static void a_large_file_opens_unread_and_its_damage_is_never_handed_out(void **state) {
    (void)state;
    put_large_file("large.tokens");
    Error sound = {0}, broken = {0}, index = {0};
    const char *paths[] = {"large.tokens", NULL};
    Tokens *t = tokens_open(paths, NULL, &sound);
    if (!t) fail_msg("%s", sound.text);
    assert_true(tokens_verify(t, &sound));
    tokens_close(t);
    int fd = open("large.tokens", O_RDWR);
    assert_int_equal(pwrite(fd, "\x03", 1, sizeof(TokenHeader) + 100),
                     1); /* token 50 is now 3: beyond the vocabulary */
    t = tokens_open(paths, NULL, &sound);
    assert_non_null(t);
    assert_false(tokens_verify(t, &broken));
    assert_failed(&broken, EXIT_DATA, "its ids have another checksum", "ids");
    Room *r = room_new();
    Error met = {0}, met_in_order = {0};
    assert_false(batch_fill_uncut(&r->b, t, 0, 128, 0, &met_in_order));
    assert_failed(&met_in_order, EXIT_DATA, "it holds 3 where ids are below 3; large.tokens, token 50", "evaluation");
    int64_t piece = 0;
    while (batch_fill(&r->b, t, 1, piece, 1, 1, 1 << 12, 0, &met)) piece++;
    Error no_target = {0}; /* a document's first token is nobody's target */
    assert_int_equal(pwrite(fd, "\x03", 1, sizeof(TokenHeader)), 1);
    assert_false(batch_fill_uncut(&r->b, t, 0, 1, 0, &no_target));
    assert_failed(&no_target, EXIT_DATA, "it holds 3 where ids are below 3; large.tokens, token 0", "first token");
    assert_failed(&met, EXIT_DATA, "damaged, or changed while in use", "training");
    free(r);
    tokens_close(t);
    struct stat s;
    fstat(fd, &s);
    assert_int_equal(pwrite(fd, "\x01", 1, s.st_size - 64), 1);
    assert_null(tokens_open(paths, NULL, &index));
    assert_failed(&index, EXIT_DATA, "its document index have another checksum", "index");
    close(fd);
    unlink("large.tokens");
}

/* ---- Packing ---------------------------------------------------------------------------------- */

static void four_documents_of_65_tokens_are_256_targets(void **state) {
    (void)state;
    const int length[] = {65, 65, 65, 65};
    put_counting_documents("four.jsonl", length, 4);
    Tokens *t = OPEN("four.jsonl");
    assert_int_equal(tokens_pieces(t, 260), 1);
    assert_int_equal(tokens_info(t).trained, 256);
    Room *r = room_new();
    fill(&r->b, t, 1, 0, 1, 1, 260, 0);
    assert_int_equal(r->b.trained, 256);
    assert_int_equal(r->real[0], 260);
    for (int i = 0; i < 260; i++) {
        assert_int_equal(r->token[i], i);
        assert_int_equal(r->target[i], i % 65 == 64 ? -1 : i + 1);
        assert_int_equal(r->position[i], i % 65);
        assert_int_equal(r->first[i], i / 65 * 65);
        assert_int_equal(r->last[i], i + 1);
        assert_int_equal(r->sequence[i], 0);
    }
    free(r);
    tokens_close(t);
}

/* The drawing at the top of batch.c. */
static void packing_is_as_drawn(void **state) {
    (void)state;
    const int length[] = {7, 2, 5};
    put_counting_documents("drawn.jsonl", length, 3);
    Tokens *t = OPEN("drawn.jsonl");
    assert_int_equal(tokens_pieces(t, 5), 3);
    Room *r = room_new();
    int64_t at[3]; /* where each piece comes in the epoch */
    for (int64_t i = 0; i < 3; i++) {
        fill(&r->b, t, 1, i, 1, 1, 5, 3);
        at[r->token[0] / 5] = i;
    }
    const int32_t token[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 0};
    const int32_t target[] = {1, 2, 3, 4, 5, 6, -1, 8, -1, 10, 11, 12, 13, -1, -1};
    const int32_t position[] = {0, 1, 2, 3, 4, 0, 1, 0, 1, 0, 0, 1, 2, 3, 0};
    const int32_t first[] = {0, 0, 0, 1, 2, 0, 0, 2, 2, 4, 0, 0, 0, 1, 4}; /* window 3 */
    const int32_t last[] = {1, 2, 3, 4, 5};
    const int32_t sequence[] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -1};
    const int64_t real[] = {5, 5, 4}, trained[] = {5, 3, 3};
    for (int p = 0; p < 3; p++) {
        fill(&r->b, t, 1, at[p], 1, 1, 5, 3);
        assert_rows("token", r->token, token + 5 * p, 5);
        assert_rows("target", r->target, target + 5 * p, 5);
        assert_rows("position", r->position, position + 5 * p, 5);
        assert_rows("first", r->first, first + 5 * p, 5);
        assert_rows("last", r->last, last, 5);
        assert_rows("sequence", r->sequence, sequence + 5 * p, 5);
        assert_int_equal(r->b.tokens, 5);
        assert_int_equal(r->b.sequences, 1);
        assert_int_equal(r->real[0], real[p]);
        assert_int_equal(r->b.trained, trained[p]);
        assert_int_equal(r->token[5], -7); /* nothing behind the batch is touched */
    }
    free(r);
    tokens_close(t);
}

enum { MANY = 23 };
static const int many[MANY] = {1, 2, 3, 50, 1, 1, 7, 64, 13, 2, 100, 5, 1, 31, 32, 33, 8, 8, 90, 4, 1, 17, 1};

static int many_tokens(void) {
    int tokens = 0;
    for (int d = 0; d < MANY; d++) tokens += many[d];
    return tokens;
}

static void every_document_of_n_tokens_trains_n_minus_1_for_every_length(void **state) {
    (void)state;
    put_counting_documents("many.jsonl", many, MANY);
    Tokens *t = OPEN("many.jsonl");
    int tokens = many_tokens();
    int32_t *target = malloc((size_t)tokens * sizeof *target);
    for (int d = 0, i = 0; d < MANY; d++) {
        for (int j = 0; j < many[d]; j++, i++) target[i] = j + 1 < many[d] ? i + 1 : -1;
    }
    Room *r = room_new();
    for (int length = 1; length <= tokens + 3; length++) {
        int64_t trained = 0, seen = 0, pieces = tokens_pieces(t, length);
        for (int64_t piece = 0; piece < pieces; piece++) {
            fill(&r->b, t, 5, piece, 1, 1, length, 0);
            trained += r->b.trained;
            seen += r->real[0];
            for (int64_t i = 0; i < r->real[0]; i++) assert_int_equal(r->target[i], target[r->token[i]]);
        }
        assert_int_equal(seen, tokens);
        assert_int_equal(trained, tokens - MANY);
        assert_int_equal(trained, tokens_info(t).trained);
    }
    free(r);
    free(target);
    tokens_close(t);
}

static void an_epoch_visits_every_piece_once(void **state) {
    (void)state;
    put_counting_documents("many.jsonl", many, MANY);
    Tokens *t = OPEN("many.jsonl");
    Room *r = room_new();
    const int lengths[] = {1, 4, 7, 50, 1000};
    for (size_t l = 0; l < COUNT(lengths); l++) {
        int64_t pieces = tokens_pieces(t, lengths[l]);
        for (int64_t epoch = 0; epoch < 3; epoch++) {
            int visits[ROWS] = {0};
            for (int64_t i = 0; i < pieces; i++) {
                fill(&r->b, t, 9, epoch * pieces + i, 1, 1, lengths[l], 0);
                visits[r->token[0] / lengths[l]]++;
            }
            for (int64_t p = 0; p < pieces; p++) assert_int_equal(visits[p], 1);
        }
    }
    free(r);
    tokens_close(t);
}

static void seeds_and_epochs_have_orders_of_their_own(void **state) {
    (void)state;
    put_counting_documents("many.jsonl", many, MANY);
    Tokens *t = OPEN("many.jsonl");
    int64_t pieces = tokens_pieces(t, 4), differ_by_epoch = 0, differ_by_seed = 0, differ_from_file = 0;
    Room *r = room_new(), *s = room_new();
    for (int64_t i = 0; i < pieces; i++) {
        fill(&r->b, t, 1, i, 1, 1, 4, 0);
        fill(&s->b, t, 1, pieces + i, 1, 1, 4, 0);
        differ_by_epoch += r->token[0] != s->token[0];
        fill(&s->b, t, 2, i, 1, 1, 4, 0);
        differ_by_seed += r->token[0] != s->token[0];
        differ_from_file += r->token[0] != 4 * i;
    }
    assert_true(differ_by_epoch > pieces / 2 && differ_by_seed > pieces / 2 && differ_from_file > pieces / 2);
    free(r);
    free(s);
    tokens_close(t);
}

static void a_batch_is_a_pure_function(void **state) {
    (void)state;
    put_counting_documents("many.jsonl", many, MANY);
    Tokens *t = OPEN("many.jsonl"), *again = OPEN("many.jsonl");
    Room *r = room_new(), *s = room_new();
    fill(&r->b, t, 3, 40, 2, 5, 16, 4);
    fill(&s->b, again, 8, 1, 1, 7, 30, 0);
    fill(&s->b, again, 3, 40, 2, 5, 16, 4);
    assert_rows("token", r->token, s->token, r->b.tokens);
    assert_rows("target", r->target, s->target, r->b.tokens);
    assert_rows("position", r->position, s->position, r->b.tokens);
    assert_rows("first", r->first, s->first, r->b.tokens);
    assert_rows("last", r->last, s->last, r->b.tokens);
    assert_rows("sequence", r->sequence, s->sequence, r->b.tokens);
    assert_int_equal(r->b.trained, s->b.trained);
    free(r);
    free(s);
    tokens_close(t);
    tokens_close(again);
}

static void ranks_together_hold_the_whole_step(void **state) {
    (void)state;
    enum { SEQUENCES = 13, LENGTH = 24, FIRST = 26 };
    put_counting_documents("many.jsonl", many, MANY);
    Tokens *t = OPEN("many.jsonl");
    Room *whole = room_new(), *part = room_new();
    fill(&whole->b, t, 4, FIRST, 1, SEQUENCES, LENGTH, 10);
    for (int ranks = 1; ranks <= 16; ranks++) { /* with 16 some have nothing */
        int64_t trained = 0, sequences = 0;
        for (int rank = 0; rank < ranks; rank++) {
            int64_t count = (SEQUENCES - rank + ranks - 1) / ranks;
            fill(&part->b, t, 4, FIRST + rank, ranks, count, LENGTH, 10);
            for (int64_t s = 0; s < count; s++) {
                int64_t same = rank + s * ranks;
                assert_rows("token", part->token + s * LENGTH, whole->token + same * LENGTH, LENGTH);
                assert_rows("target", part->target + s * LENGTH, whole->target + same * LENGTH, LENGTH);
                assert_int_equal(part->real[s], whole->real[same]);
            }
            assert_int_equal(part->b.tokens, count * LENGTH);
            trained += part->b.trained;
            sequences += part->b.sequences;
        }
        assert_int_equal(sequences, SEQUENCES);
        assert_int_equal(trained, whole->b.trained);
    }
    free(whole);
    free(part);
    tokens_close(t);
}

static void a_row_sees_its_document_up_to_itself_within_the_window(void **state) {
    (void)state;
    put_counting_documents("many.jsonl", many, MANY);
    Tokens *t = OPEN("many.jsonl");
    Room *r = room_new();
    for (int64_t window = 0; window < 70; window++) {
        fill(&r->b, t, 6, 0, 1, 8, 70, window);
        for (int64_t i = 0; i < r->b.tokens; i++) {
            int64_t document = r->position[i] + 1, seen = window > 0 && window < document ? window : document;
            assert_int_equal(r->last[i], i + 1);
            assert_int_equal(r->first[i], i + 1 - seen);
        }
    }
    free(r);
    tokens_close(t);
}

static void without_data_every_position_is_trained(void **state) {
    (void)state;
    Room *r = room_new();
    fill(&r->b, NULL, 1, 5, 3, 4, 10, 3);
    assert_int_equal(r->b.trained, 40);
    for (int i = 0; i < 40; i++) {
        assert_int_equal(r->token[i], 0);
        assert_int_equal(r->target[i], 0);
        assert_int_equal(r->position[i], i % 10);
        assert_int_equal(r->first[i], i - (i % 10 < 2 ? i % 10 : 2));
        assert_int_equal(r->last[i], i + 1);
        assert_int_equal(r->sequence[i], i / 10);
    }
    for (int s = 0; s < 4; s++) assert_int_equal(r->real[s], 10);
    free(r);
}

static void a_rank_without_sequences_gets_an_empty_batch(void **state) {
    (void)state;
    put_text("a.txt", "some text");
    Tokens *t = OPEN("a.txt");
    Room *r = room_new();
    fill(&r->b, t, 1, 3, 4, 0, 5, 0);
    assert_int_equal(r->b.tokens + r->b.sequences + r->b.trained, 0);
    assert_int_equal(r->token[0], -7);
    free(r);
    tokens_close(t);
}

/* ---- Command ---------------------------------------------------------------------------------- */

/* Runs `mop data` with its output in "out.txt" and "err.txt". */
static int run(char **argv) {
    int argc = 0;
    while (argv[argc]) argc++;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        if (!freopen("out.txt", "w", stdout) || !freopen("err.txt", "w", stderr)) _exit(99);
        int code = data_command(argc, argv);
        fflush(NULL);
        _exit(code);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

#define RUN(...) run((char *[]){"data", __VA_ARGS__, NULL})

static void assert_says(const char *path, const char *part) {
    size_t bytes;
    char *text = get(path, &bytes);
    if (!strstr(text, part)) fail_msg("%s does not say \"%s\" but \"%s\"", path, part, text);
    free(text);
}

static void the_command_prepares_and_shows(void **state) {
    (void)state;
    put_text("a.txt", "hello");
    put_text("b.jsonl", "{\"text\": \"\"}\n{\"text\": \"world\"}\n");
    assert_int_equal(RUN("a.txt", "--out", "ab.tokens", "b.jsonl"), EXIT_DONE);
    assert_says("out.txt", "documents                   2");
    assert_says("out.txt", "empty, skipped              1");
    assert_says("out.txt", "tokens                     10");
    assert_says("out.txt", "text bytes                 10");
    assert_int_equal(RUN("--show", "ab.tokens"), EXIT_DONE);
    assert_says("out.txt", "trained                     8");
    assert_int_equal(RUN("--show=ab.tokens"), EXIT_DONE);
    assert_true(put_edited_tokenizer("shifted.json", "\"h\": 104", "\"h\": 500"));
    assert_int_equal(RUN("a.txt", "--out=a.tokens", "--tokenizer", "shifted.json"), EXIT_DONE);
    assert_says("out.txt", "vocabulary                501");
}

static void the_command_refuses_in_one_line(void **state) {
    (void)state;
    put_text("a.txt", "hello");
    put_text("bad.jsonl", "{}\n");
    const struct {
        char *argument[5];
        ExitCode code;
        const char *message;
    } cases[] = {
        {{NULL}, EXIT_USAGE, "either inputs and --out, or --show alone"},
        {{"a.txt"}, EXIT_USAGE, "either inputs and --out"},
        {{"--out", "x.tokens"}, EXIT_USAGE, "either inputs and --out"},
        {{"a.txt", "--out"}, EXIT_USAGE, "--out needs a value"},
        {{"a.txt", "--out=a", "--out=b"}, EXIT_USAGE, "--out is given twice"},
        {{"a.txt", "--output", "b"}, EXIT_USAGE, "unknown option --output"},
        {{"a.txt", "--show", "x.tokens"}, EXIT_USAGE, "either inputs and --out"},
        {{"--show", "nowhere.tokens"}, EXIT_DATA, "nowhere.tokens"},
        {{"--show", "a.txt"}, EXIT_DATA, "a.txt: this is no token file"},
        {{"nowhere.txt", "--out", "x.tokens"}, EXIT_DATA, "nowhere.txt"},
        {{"bad.jsonl", "--out", "x.tokens"}, EXIT_DATA, "bad.jsonl:1"},
        {{"a.txt", "--out", "a.txt"}, EXIT_USAGE, "not a token file"},
        {{"a.txt", "--out", "no/x.tokens"}, EXIT_IO, "no/x.tokens"},
        {{"a.txt", "--out=x.tokens", "--tokenizer=no.json"}, EXIT_DATA, "no.json"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        char *argv[8] = {"data"};
        memcpy(argv + 1, cases[i].argument, sizeof cases[i].argument);
        assert_int_equal(run(argv), cases[i].code);
        assert_says("err.txt", cases[i].message);
        size_t bytes;
        char *text = get("err.txt", &bytes);
        assert_ptr_equal(strchr(text, '\n'), text + bytes - 1);
        free(text);
        assert_int_equal(access("x.tokens", F_OK), -1);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, enter_directory, leave_directory)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(every_byte_is_its_own_id),
        TEST(an_id_outside_the_vocabulary_decodes_to_nothing),
        TEST(a_written_tokenizer_reads_back_the_same),
        TEST(ids_may_have_any_order_and_tokens_may_be_added),
        TEST(a_template_that_adds_nothing_is_accepted),
        TEST(tokenizers_of_another_kind_open_and_refuse_text_in_words),
        TEST(a_text_file_is_one_document),
        TEST(a_directory_is_its_visible_files_in_byte_order),
        TEST(empty_documents_are_skipped_and_counted),
        TEST(characters_cut_by_a_read_stay_whole),
        TEST(text_bytes_are_known_only_where_all_is_text),
        TEST(labels_are_targets_where_they_are_given),
        TEST(an_id_that_two_bytes_cannot_hold_makes_the_file_wide),
        TEST(malformed_lines_are_refused_with_their_number),
        TEST(a_line_too_long_is_refused_without_being_read_whole),
        TEST(data_that_cannot_be_used_is_refused),
        TEST(a_token_file_says_what_its_source_said),
        TEST(a_truncated_token_file_is_refused_at_every_length),
        TEST(a_flipped_bit_anywhere_is_found),
        TEST(a_well_sealed_lie_is_refused),
        TEST(a_label_below_minus_one_is_refused_at_opening),
        TEST(text_named_tokens_is_refused),
        TEST(ids_beyond_the_models_vocabulary_are_named),
        TEST(a_failed_preparation_leaves_what_was_there),
        TEST(only_token_files_are_overwritten),
        TEST(a_large_file_opens_unread_and_its_damage_is_never_handed_out),
        TEST(four_documents_of_65_tokens_are_256_targets),
        TEST(packing_is_as_drawn),
        TEST(every_document_of_n_tokens_trains_n_minus_1_for_every_length),
        TEST(an_epoch_visits_every_piece_once),
        TEST(seeds_and_epochs_have_orders_of_their_own),
        TEST(a_batch_is_a_pure_function),
        TEST(ranks_together_hold_the_whole_step),
        TEST(a_row_sees_its_document_up_to_itself_within_the_window),
        TEST(without_data_every_position_is_trained),
        TEST(a_rank_without_sequences_gets_an_empty_batch),
        TEST(the_command_prepares_and_shows),
        TEST(the_command_refuses_in_one_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
