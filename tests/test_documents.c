/* What data is made of: which files are text and which JSON lines, which columns beside ids mean what, what is refused
 * and in which words. tests/cases has inputs that once went wrong. */
#define _GNU_SOURCE
#include "base/file.h"
#include "data/formats.h"
#include "data/tokens.h"
#include <fcntl.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- A directory of its own ------------------------------------------------------------------- */

static char source_root[4096];

static int enter_directory(void **state) {
    char *name = strdup("/tmp/mop-documents-XXXXXX");
    *state = name;
    return mkdtemp(name) ? chdir(name) : -1;
}

static int leave_directory(void **state) {
    char command[64];
    snprintf(command, sizeof command, "rm -rf '%s'", (char *)*state);
    int left = chdir(source_root) || system(command);
    free(*state);
    return left;
}

static void put(const char *path, const void *data, size_t bytes) {
    Error e = {0};
    if (!file_write(path, data, bytes, &e)) fail_msg("%s", e.text);
}

static void put_text(const char *path, const char *text) {
    put(path, text, strlen(text));
}

static void assert_failed(const Error *e, ExitCode code, const char *part, const char *name) {
    if (e->code == code && strstr(e->text, part) && strstr(e->text, "; ")) return;
    fail_msg("%s: expected [%d] \"...%s...\", got [%d] \"%s\"", name, (int)code, part, (int)e->code, e->text);
}

static Tokens *try_open(const char *path, Error *e) {
    const char *paths[] = {path, NULL};
    Tokenizer *k = tokenizer_open(NULL, e);
    Tokens *t = tokens_open(paths, k, e);
    tokenizer_close(k);
    return t;
}

static Tokens *open_path(const char *path) {
    Error e = {0};
    Tokens *t = try_open(path, &e);
    if (!t) fail_msg("%s: %s", path, e.text);
    return t;
}

static void assert_refused(const char *path, ExitCode code, const char *part) {
    Error e = {0};
    if (try_open(path, &e)) fail_msg("%s was not refused, though it is %s", path, part);
    assert_failed(&e, code, part, path);
}

/* "DOCUMENT|DOCUMENT" of the ids as bytes. */
static void assert_documents(const char *path, const char *expected) {
    Tokens *t = open_path(path);
    char text[4096];
    size_t n = 0;
    for (uint64_t d = 0; d < t->header.documents; d++) {
        if (d > 0) text[n++] = '|';
        for (uint64_t i = t->first[d]; i < t->first[d + 1]; i++) text[n++] = (char)token_id(t, (int64_t)i);
    }
    text[n] = 0;
    if (strcmp(text, expected) != 0) fail_msg("%s is \"%s\", not \"%s\"", path, text, expected);
    tokens_close(t);
}

/* ---- Columns beside ids ----------------------------------------------------------------------- */

enum { NONE = -1 };

static void a_column_beside_ids_is_obeyed_or_refused(void **state) {
    (void)state;
    const struct {
        const char *line;
        int32_t ids[4], labels[4];
        int64_t count;
    } obeyed[] = {
        {"{\"input_ids\": [1, 2, 3, 4], \"completion_mask\": [0, 0, 1, 1]}", {1, 2, 3, 4}, {NONE, NONE, 3, 4}, 4},
        {"{\"input_ids\": [1, 2, 3, 4], \"assistant_masks\": [0, 0, 1, 1]}", {1, 2, 3, 4}, {NONE, NONE, 3, 4}, 4},
        {"{\"input_ids\": [1, 2, 3, 4], \"assistant_mask\": [0, 1, 0, 1]}", {1, 2, 3, 4}, {NONE, 2, NONE, 4}, 4},
        {"{\"input_ids\": [1, 2, 3, 4], \"loss_mask\": [0.0, 1.0, false, true]}", {1, 2, 3, 4}, {NONE, 2, NONE, 4}, 4},
        {"{\"input_ids\": [1, 2, 3, 4], \"loss_mask\": [0, 1, 1, 1], \"labels\": [1, 9, -100, 8]}",
         {1, 2, 3, 4},
         {NONE, 9, NONE, 8},
         4}, /* trained where both say so */
        {"{\"input_ids\": [1, 2, 3, 4], \"loss_mask\": [1, 1, 0, 1], \"completion_mask\": [0, 1, 1, 1]}",
         {1, 2, 3, 4},
         {NONE, 2, NONE, 4},
         4},
        {"{\"input_ids\": [1, 2, 3, 4], \"loss_mask\": null, \"labels\": null, \"weights\": null}",
         {1, 2, 3, 4},
         {1, 2, 3, 4},
         4},
        {"{\"input_ids\": [1, 2, 3, 4], \"attention_mask\": [true, true, 1, 1]}", {1, 2, 3, 4}, {1, 2, 3, 4}, 4},
        {"{\"input_ids\": [1, 2, 0, 0], \"attention_mask\": [1, 1, 0, 0]}", {1, 2}, {1, 2}, 2},
        {"{\"input_ids\": [0, 0, 1, 2], \"attention_mask\": [0, 0, 1, 1], \"labels\": [-100, -100, 1, 2], "
         "\"position_ids\": [0, 0, 0, 1]}",
         {1, 2},
         {1, 2},
         2},
        {"{\"input_ids\": [1, 2, 3, 4], \"position_ids\": [0, 1, 2, 3]}", {1, 2, 3, 4}, {1, 2, 3, 4}, 4},
        {"{\"input_ids\": [1, 2, 3, 4], \"token_type_ids\": [0, 0, 0, 0]}", {1, 2, 3, 4}, {1, 2, 3, 4}, 4},
        {"{\"input_ids\": [1, 2, 3, 4], \"tokens\": [\"a\", \"b\", \"c\", \"d\"], \"other\": [1, 2, 3]}",
         {1, 2, 3, 4},
         {1, 2, 3, 4},
         4},
    };
    for (size_t i = 0; i < COUNT(obeyed); i++) {
        put_text("a.jsonl", obeyed[i].line);
        Tokens *t = open_path("a.jsonl");
        if (tokens_info(t).tokens != obeyed[i].count)
            fail_msg("%s: %d ids", obeyed[i].line, (int)tokens_info(t).tokens);
        for (int64_t j = 0; j < obeyed[i].count; j++)
            if (token_id(t, j) != obeyed[i].ids[j] || token_label(t, j) != obeyed[i].labels[j])
                fail_msg("%s: id %d is %d, its label %d", obeyed[i].line, (int)j, (int)token_id(t, j),
                         (int)token_label(t, j));
        tokens_close(t);
    }
}

static void columns_that_cannot_be_obeyed_are_refused_by_name_and_line(void **state) {
    (void)state;
    const struct {
        const char *line, *message;
    } cases[] = {
        {"{\"input_ids\": [1, 2], \"completion_mask\": [0]}", "2 input_ids but 1 in \"completion_mask\""},
        {"{\"input_ids\": [1, 2], \"completion_mask\": [0, 2]}", "\"completion_mask\"[1] is 2, 0 or 1"},
        {"{\"input_ids\": [1, 2], \"loss_mask\": [0, 0.5]}", "\"loss_mask\"[1] is 0.5"},
        {"{\"input_ids\": [1, 2], \"loss_mask\": [0, \"1\"]}", "\"loss_mask\"[1] is \"1\""},
        {"{\"input_ids\": [1, 2], \"loss_mask\": 1}", "\"loss_mask\" is not a list"},
        {"{\"input_ids\": [1, 2, 3], \"attention_mask\": [1, 0, 1]}", "\"attention_mask\" hides ids between others"},
        {"{\"input_ids\": [1, 2], \"attention_mask\": [1, -1]}", "\"attention_mask\"[1] is -1"},
        {"{\"input_ids\": [1, 2], \"attention_mask\": [[1, 0], [1, 1]]}", "\"attention_mask\"[0] is [1,0]"},
        {"{\"input_ids\": [1, 2, 3, 4], \"position_ids\": [0, 1, 0, 1]}", "\"position_ids\"[2] is 0"},
        {"{\"input_ids\": [1, 2], \"position_ids\": [1, 2]}", "\"position_ids\"[0] is 1"},
        {"{\"input_ids\": [1, 2], \"token_type_ids\": [0, 1]}", "\"token_type_ids\"[1] is 1"},
        {"{\"input_ids\": [1, 2], \"weights\": [0.5, 1]}", "\"weights\" is as long as input_ids"},
        {"{\"input_ids\": [1, 2], \"special_tokens_mask\": [0, 1]}", "\"special_tokens_mask\" is as long as input_ids"},
        {"{\"input_ids\": [1, 2], \"offset_mapping\": [[0, 1], [1, 2]]}", "\"offset_mapping\" is as long as input_ids"},
        {"{\"input_ids\": [1, 2, 3], \"seq_lengths\": [1, 2]}", "\"seq_lengths\" packs several documents"},
        {"{\"input_ids\": [1, 2, 3], \"cu_seqlens\": [0, 3]}", "\"cu_seqlens\" packs several documents"},
        {"{\"text\": \"ab\", \"loss_mask\": [0, 1]}", "\"loss_mask\" belongs to \"input_ids\""},
        {"{\"messages\": [{\"role\": \"user\"}]}", "but \"messages\", and conversations are not read yet"},
        {"{\"prompt\": \"a\", \"completion\": \"b\"}", "but \"prompt\", and conversations are not read yet"},
        {"{\"input_ids\": null, \"text\": null}", "neither \"text\" nor \"input_ids\""},
        {"{\"text\": \"a\", \"score\": NaN}", "NaN is not JSON; bad.jsonl:2, column 24"},
        {"{\"text\": \"NaN\", \"score\": [1, -Infinity]}", "-Infinity is not JSON"},
        {"{\"text\": \"\\\"NaN\", \"score\": Infinity}", "Infinity is not JSON"},
        {"{\"text\": \"a\", \"score\": nan}", "not valid JSON"},
        {"{\"text\": \"a\", \"\\u0000\": 1}", "not valid JSON"},
        {"{\"input_ids\": [1, 123456789012345678901]}", "\"input_ids\"[1] is 1.234567890123"},
        {"{\"input_ids\": [1, 1e400]}", "\"input_ids\"[1] is 1e308"},
        {"\xef\xbb\xbf{\"text\": \"a\"}", "not valid JSON"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        char lines[512];
        snprintf(lines, sizeof lines, "{\"text\": \"good\"}\n%s\n", cases[i].line);
        put_text("bad.jsonl", lines);
        assert_refused("bad.jsonl", EXIT_DATA, cases[i].message);
        assert_refused("bad.jsonl", EXIT_DATA, "bad.jsonl:2");
    }
}

static void valid_json_is_read_whatever_its_other_members(void **state) {
    (void)state;
    const char *const lines[] = {
        "{\"text\": \"hello\", \"id\": 123456789012345678901234567890}",
        "{\"id\": -12345678901234567890, \"text\": \"hello\"}",
        "{\"id\": [1, {\"a\": 9999999999999999999}], \"quoted \\\" 99999999999999999999\": 1e999, \"text\": \"hello\"}",
        "{\"text\": \"hello\", \"x\": -1.5e+400, \"y\": 0.1e-400, \"z\": 10000000000000000000}",
        "{\"text\": \"hello\", \"input_ids\": null}",
        "{\"text\": null, \"input_ids\": [104, 101, 108, 108, 111]}",
        "{\"text\": \"hello\", \"labels\": null}",
        "\xef\xbb\xbf{\"text\": \"hello\"}",
        "\xef\xbb\xbf\n \t\r\n{\"text\": \"hello\"}\r\n",
        "{\"text\":\"\\u0068\\u0065llo\"}",
    };
    for (size_t i = 0; i < COUNT(lines); i++) {
        put_text("a.jsonl", lines[i]);
        assert_documents("a.jsonl", "hello");
    }
    char digits[1200] = "{\"text\": \"hello\", \"id\": 1";
    size_t n = strlen(digits);
    memset(digits + n, '7', 1000);
    strcpy(digits + n + 1000, "}");
    put_text("a.jsonl", digits);
    assert_documents("a.jsonl", "hello");
    put_text("nul.jsonl", "{\"text\": \"a\\u0000b\"}");
    Tokens *t = open_path("nul.jsonl");
    assert_int_equal(tokens_info(t).tokens, 3);
    assert_int_equal(token_id(t, 1), 0);
    tokens_close(t);
}

/* ---- Kinds of files --------------------------------------------------------------------------- */

static void json_lines_are_known_by_name_or_contents(void **state) {
    (void)state;
    static const char *const names[] = {"a.jsonl", "A.JSONL", "a.ndjson", "a.jsonlines", "a.jsonl.txt", "a.txt",
                                        "a",       "a.md",    "a.json",   "a.bak",       "a.log"};
    for (size_t i = 0; i < COUNT(names); i++) {
        put_text(names[i], "{\"text\": \"one\"}\n{\"text\": \"two\"}\n");
        assert_documents(names[i], "one|two");
        put_text(names[i], "\xef\xbb\xbf\n { \"id\" : 1, \"text\": \"one\"}\n{\"text\": \"two\"}");
        assert_documents(names[i], "one|two");
    }
    put_text("prose.txt", "{\"text\": \"one\"}\nand then prose\n");
    assert_refused("prose.txt", EXIT_DATA, "prose.txt:2 (read as JSON lines, for the file begins with an object)");
    put_text("set.txt", "{a} is a set, {\"b\"} too");
    assert_documents("set.txt", "{a} is a set, {\"b\"} too");
    put_text("pretty.txt", "{\n  \"text\": \"one\"\n}\n");
    assert_refused("pretty.txt", EXIT_DATA, "pretty.txt:1");
    put_text("list.txt", "[\n  {\"text\": \"one\"}\n]\n");
    assert_refused("list.txt", EXIT_DATA, "a JSON list, neither text nor JSON lines");
    put_text("number.json", "7");
    assert_refused("number.json", EXIT_DATA, "a .json file");
    put_text("plain.jsonl", "prose");
    assert_refused("plain.jsonl", EXIT_DATA, "plain.jsonl:1");
    Tokens *t = open_path("a.txt");
    assert_string_equal(tokens_notes(t), "a.txt is read as JSON lines, for it begins with an object");
    tokens_close(t);
    t = open_path("a.jsonl");
    assert_string_equal(tokens_notes(t), "");
    tokens_close(t);
}

static void a_pipe_is_known_by_its_contents(void **state) {
    (void)state;
    assert_int_equal(mkfifo("pipe", 0600), 0);
    assert_int_equal(system("printf '{\"text\": \"one\"}\\n{\"text\": \"two\"}\\n' >pipe &"), 0);
    assert_documents("pipe", "one|two");
    assert_int_equal(system("printf 'PAR1 and more' >pipe &"), 0);
    assert_refused("pipe", EXIT_DATA, "a Parquet file");
}

static void other_formats_are_refused_by_their_first_bytes_or_their_name(void **state) {
    (void)state;
    static char tar[600];
    memset(tar, 'a', sizeof tar);
    memcpy(tar + 257, "ustar", 5);
    const struct {
        const char *name;
        const char *head;
        size_t bytes;
        const char *what;
    } cases[] = {
#define HEAD(bytes) bytes, sizeof bytes - 1
        {"a.txt", HEAD("PAR1 plain ASCII"), "a Parquet file"},
        {"a.parquet", HEAD("plain ASCII"), "a Parquet file"},
        {"a.arrow", HEAD("plain ASCII"), "an Arrow file"},
        {"a.txt", HEAD("ARROW1\0\0"), "an Arrow file"},
        {"a.txt", HEAD("\xff\xff\xff\xff\x10\0\0\0"), "an Arrow stream"},
        {"a.txt", HEAD("SQLite format 3\0"), "an SQLite database"},
        {"a.jsonl", HEAD("\x1f\x8b\x08\0"), "a gzip file"},
        {"a.jsonl.gz", HEAD("plain ASCII"), "a gzip file"},
        {"a.txt", HEAD("\x28\xb5\x2f\xfd"), "a zstd file"},
        {"a.jsonl.ZST", HEAD("plain ASCII"), "a zstd file"},
        {"a.txt", HEAD("BZh91AY&SY"), "a bzip2 file"},
        {"a.txt",
         HEAD("\xfd"
              "7zXZ\0"),
         "an xz file"},
        {"a.txt", HEAD("PK\x03\x04 ASCII"), "a zip archive"},
        {"a.pt", HEAD("plain ASCII"), "a file of PyTorch or Python"},
        {"a.txt", HEAD("\x80\x02\x8a\nl\xfc"), "a file of PyTorch or Python"},
        {"a.txt", HEAD("\x08\0\0\0\0\0\0\0{\"a\":1}"), "a safetensors file"},
        {"a.txt", HEAD("\x89PNG\r\n"), "a PNG image"},
        {"a.txt", HEAD("%PDF-1.4\nplain"), "a PDF file"},
        {"a.txt", HEAD("GGUF\x03"), "a GGUF file"},
        {"a.csv", HEAD("text,label\nhello,1\n"), "a table"},
        {"a.txt",
         HEAD("\x7f"
              "ELF"),
         "a program"},
        {"a.txt", HEAD("\xff\xfeh\0i\0"), "UTF-16 text"},
        {"a.jsonl", HEAD("\xfe\xff\0{\0}"), "UTF-16 text"},
        {"a.txt", HEAD("\xff\xfe\0\0h\0\0\0"), "UTF-32 text"},
        {"a.txt", HEAD("\0\0\xfe\xff\0\0\0h"), "UTF-32 text"},
        {"a.txt", HEAD("h\0i\0"), "byte 1 is NUL"},
        {"a.txt", HEAD("\xef\xbb\xbfhi\0"), "byte 5 is NUL"},
        {"a.txt", tar, sizeof tar, "a tar archive"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        put(cases[i].name, cases[i].head, cases[i].bytes);
        assert_refused(cases[i].name, EXIT_DATA, cases[i].what);
        assert_refused(cases[i].name, EXIT_DATA, cases[i].name);
    }
}

static void a_byte_order_mark_is_no_text(void **state) {
    (void)state;
    put_text("a.txt", "\xef\xbb\xbfhello");
    assert_documents("a.txt", "hello");
    Tokens *t = open_path("a.txt");
    assert_int_equal(tokens_info(t).text_bytes, 5);
    tokens_close(t);
    put_text("a.txt", "\xef\xbb\xbfhell\xe9");
    assert_refused("a.txt", EXIT_DATA, "not UTF-8 text at byte 7");
}

/* ---- Directories ------------------------------------------------------------------------------ */

static void a_directory_is_its_data_and_says_what_it_left_out(void **state) {
    (void)state;
    static const char *const data[] = {"corpus/b.txt", "corpus/c.md", "corpus/wiki_00", "corpus/A.TEXT"};
    static const char *const others[] = {"corpus/README.md", "corpus/LICENSE",       "corpus/a.jsonl.bak",
                                         "corpus/b.txt~",    "corpus/.hidden.jsonl", "corpus/a.png",
                                         "corpus/a.json",    "corpus/SHA256SUMS"};
    assert_int_equal(mkdir("corpus", 0777), 0);
    assert_int_equal(mkdir("corpus/inner.txt", 0777), 0);
    for (size_t i = 0; i < COUNT(data); i++) put_text(data[i], strrchr(data[i], '/') + 1);
    for (size_t i = 0; i < COUNT(others); i++) put_text(others[i], "do not train on this");
    put_text("corpus/a.jsonl", "{\"text\": \"jsonl\"}\n");
    put("corpus/model", "\x08\0\0\0\0\0\0\0{\"a\":1}", 15);
    put("corpus/latin", "caf\xe9", 4);
    assert_documents("corpus", "A.TEXT|jsonl|b.txt|c.md|wiki_00");
    Tokens *t = open_path("corpus");
    assert_string_equal(tokens_notes(t), "corpus: left out .hidden.jsonl, LICENSE, README.md, SHA256SUMS, a.json, "
                                         "a.jsonl.bak, a.png, b.txt~ and 3 more");
    tokens_close(t);
}

static void what_a_directory_calls_data_must_be_data(void **state) {
    (void)state;
    assert_int_equal(mkdir("corpus", 0777), 0);
    put_text("corpus/a.txt", "text");
    put("corpus/b.txt", "caf\xe9", 4);
    assert_refused("corpus", EXIT_DATA, "not UTF-8 text at byte 3; corpus/b.txt");
    put("corpus/b.txt", "PAR1", 4);
    assert_refused("corpus", EXIT_DATA, "a Parquet file, neither text nor JSON lines; corpus/b.txt");
    put_text("corpus/b.txt", "moptoken");
    assert_refused("corpus", EXIT_DATA, "a token file cannot be joined with other data; corpus/b.txt");
    assert_int_equal(unlink("corpus/b.txt"), 0);
    assert_int_equal(symlink("nowhere", "corpus/b.txt"), 0);
    assert_refused("corpus", EXIT_DATA, "corpus/b.txt: cannot read: No such file or directory");
    assert_int_equal(mkdir("cards", 0777), 0);
    put_text("cards/README.md", "text");
    assert_refused("cards", EXIT_DATA, "no data in the directory, which has only README.md; cards");
    assert_int_equal(mkdir("empty", 0777), 0);
    assert_refused("empty", EXIT_DATA, "no data in the directory, which has no file; empty");
}

/* ---- The tokenizer of a model ----------------------------------------------------------------- */

static const char bpe[] = "{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0}, \"merges\": [[\"a\", \"a\"]]}}";

static void nothing_ambiguous_is_taken_for_a_tokenizer(void **state) {
    (void)state;
    Error made = {0};
    static const char *const directories[] = {"bare", "bytes", "bpe", "pieces"};
    for (size_t i = 0; i < COUNT(directories); i++) assert_int_equal(mkdir(directories[i], 0777), 0);
    Tokenizer *built_in = tokenizer_open(NULL, &made);
    assert_true(tokenizer_write(built_in, "bytes", &made));
    tokenizer_close(built_in);
    put_text("bpe/tokenizer.json", bpe);
    put_text("pieces/tokenizer.model", "sentencepiece");
    const struct {
        const char *asked, *directory;
        int64_t vocabulary;
        const char *shown, *refusal; /* NULL: text may be tokenised */
    } cases[] = {
        {"", "", 256, "bytes (256 ids)", NULL},
        {"", "bare", 259, "bytes (256 ids)", NULL},
        {"", "bare", 512, "bytes (256 ids)", NULL},
        {"", "bare", 513, "none", "the model has none and 513 ids"},
        {"", "bare", 151936, "none", "the model has none and 151936 ids"},
        {"", "bare", 255, "none", "the model has none and 255 ids"},
        {"bytes", "bare", 151936, "bytes (256 ids)", NULL},
        {"bytes", "bpe", 151936, "bytes (256 ids)", NULL},
        {"none", "bare", 256, "none", "data.tokenizer is none"},
        {"none", "bpe", 256, "bpe/tokenizer.json, not usable for text: the tokenizer has merges", "the tokenizer has"},
        {"none", "bytes", 256, "bytes/tokenizer.json, not usable for text: data.tokenizer is none",
         "data.tokenizer is none"},
        {"", "bytes", 151936, "bytes/tokenizer.json (256 ids)", NULL},
        {"", "bytes", 255,
         "bytes/tokenizer.json, not usable for text: the one beside the model has 256 ids and the "
         "model 255",
         "has 256 ids and the model 255"},
        {"", "bpe", 151936, "bpe/tokenizer.json, not usable for text: the tokenizer has merges: BPE is not built yet",
         "has merges: BPE is not built yet"},
        {"", "pieces", 32000, "none", "no tokenizer.json but a tokenizer of another kind; pieces/tokenizer.model"},
        {"bytes/tokenizer.json", "bpe", 300, "bytes/tokenizer.json (256 ids)", NULL},
        {"bpe/tokenizer.json", "bytes", 300, "bpe/tokenizer.json, not usable for text", "has merges"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        Error e = {0};
        Tokenizer *t = tokenizer_choose(cases[i].asked, cases[i].directory, cases[i].vocabulary, &e);
        if (!t) fail_msg("case %zu: %s", i, e.text);
        TokenizerShown shown = tokenizer_shown(t);
        if (strncmp(shown.text, cases[i].shown, strlen(cases[i].shown)) != 0)
            fail_msg("case %zu: it is called %s, not %s", i, shown.text, cases[i].shown);
        if (tokenizer_ready(t, "the prompt", &e) != !cases[i].refusal) fail_msg("case %zu: %s", i, e.text);
        if (cases[i].refusal) assert_failed(&e, e.code, cases[i].refusal, cases[i].asked);
        if (cases[i].refusal) assert_failed(&e, e.code, "text needs a tokenizer (the prompt)", cases[i].asked);
        tokenizer_close(t);
    }
    Error missing = {0}, unreadable = {0}, broken = {0};
    assert_null(tokenizer_choose("nowhere.json", "bare", 256, &missing));
    assert_failed(&missing, EXIT_DATA, "nowhere.json", "missing");
    assert_int_equal(symlink("tokenizer.json", "bare/tokenizer.json"), 0); /* it cannot be told whether it is there */
    assert_null(tokenizer_choose("", "bare", 256, &unreadable));
    assert_failed(&unreadable, EXIT_IO, "cannot tell what is there", "unreadable");
    put_text("bytes/tokenizer.json", "{");
    assert_null(tokenizer_choose("", "bytes", 256, &broken));
    assert_failed(&broken, EXIT_DATA, "not valid JSON", "broken");
}

static void a_tokenizer_is_the_same_whether_it_is_used_or_not(void **state) {
    (void)state;
    Error e = {0};
    put_text("bpe.json", bpe);
    put_text("other.json", "{\"model\": {\"type\": \"BPE\", \"vocab\": {\"b\": 0}, \"merges\": [[\"b\", \"b\"]]}}");
    Tokenizer *bytes = tokenizer_open(NULL, &e);
    assert_true(tokenizer_write(bytes, ".", &e));
    Tokenizer *refused = tokenizer_choose("none", ".", 256, &e), *one = tokenizer_open("bpe.json", &e),
              *again = tokenizer_open("bpe.json", &e), *other = tokenizer_open("other.json", &e);
    assert_true(tokenizer_hash(refused) == tokenizer_hash(bytes));
    assert_true(tokenizer_hash(one) == tokenizer_hash(again));
    assert_true(tokenizer_hash(one) != tokenizer_hash(other));
    assert_true(tokenizer_hash(one) != tokenizer_hash(bytes));
    Tokenizer *all[] = {bytes, refused, one, again, other};
    for (size_t i = 0; i < COUNT(all); i++) tokenizer_close(all[i]);
}

static void a_tokenizer_of_another_kind_is_needed_only_for_text(void **state) {
    (void)state;
    Error e = {0}, text = {0}, line = {0};
    put_text("tokenizer.json", bpe);
    put_text("ids.jsonl", "{\"input_ids\": [1, 2, 70000]}");
    put_text("a.txt", "text");
    put_text("a.jsonl", "{\"text\": \"text\"}");
    Tokenizer *k = tokenizer_choose("", ".", 151936, &e);
    Tokens *t = tokens_open((const char *const[]){"ids.jsonl", NULL}, k, &e);
    if (!t) fail_msg("%s", e.text);
    tokens_close(t);
    assert_null(tokens_open((const char *const[]){"a.txt", NULL}, k, &text));
    assert_failed(&text, EXIT_DATA, "text needs a tokenizer (a.txt), and the tokenizer has merges", "text");
    assert_null(tokens_open((const char *const[]){"a.jsonl", NULL}, k, &line));
    assert_failed(&line, EXIT_DATA, "text needs a tokenizer (a.jsonl:1), and the tokenizer has merges", "line");
    tokenizer_close(k);
}

/* ---- Cases ------------------------------------------------------------------------------------ */

static void the_cases_are_read_or_refused(void **state) {
    (void)state;
    assert_int_equal(chdir(source_root), 0);
    static const char three[] = "hello world|hello world|hello world";
    static const struct {
        const char *path, *documents;
    } read[] = {
        {"tests/cases/jsonl_by_name/UPPER.JSONL", three},
        {"tests/cases/jsonl_by_name/plain.jsonl", three},
        {"tests/cases/jsonl_by_name/x.jsonl.txt", three},
        {"tests/cases/jsonl_by_name/x.jsonlines", three},
        {"tests/cases/jsonl_by_name/x.ndjson", three},
        {"tests/cases/jsonl_by_name/directory", three},
        {"tests/cases/valid_json_refused/bom.jsonl", three},
        {"tests/cases/valid_json_refused/bom.txt", "hello world"},
        {"tests/cases/valid_json_refused/bigint.jsonl", "hello"},
        {"tests/cases/valid_json_refused/bothnull.jsonl", "hello"},
        {"tests/cases/valid_json_refused/bothnull2.jsonl", "\1\2\3"},
        {"tests/cases/valid_json_refused/masktrue.jsonl", "\1\2\3"},
    };
    static const char *const masked[] = {"tests/cases/masks_ignored/assistmask.jsonl",
                                         "tests/cases/masks_ignored/compmask.jsonl",
                                         "tests/cases/masks_ignored/lossmask.jsonl"};
    for (size_t i = 0; i < COUNT(read); i++) assert_documents(read[i].path, read[i].documents);
    for (size_t i = 0; i < COUNT(masked); i++) {
        Tokens *t = open_path(masked[i]);
        assert_int_equal(tokens_info(t).trained, 2);
        for (int64_t j = 0; j < 4; j++) assert_int_equal(token_label(t, j), j < 2 ? -1 : j + 1);
        tokens_close(t);
    }
    assert_refused("tests/cases/masks_ignored/posids.jsonl", EXIT_DATA, "\"position_ids\"[2] is 0");
    assert_refused("tests/cases/valid_json_refused/nan.jsonl", EXIT_DATA, "NaN is not JSON");
    Tokens *nul = open_path("tests/cases/valid_json_refused/nul.jsonl");
    assert_int_equal(tokens_info(nul).tokens, 3);
    tokens_close(nul);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, enter_directory, leave_directory)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_column_beside_ids_is_obeyed_or_refused),
        TEST(columns_that_cannot_be_obeyed_are_refused_by_name_and_line),
        TEST(valid_json_is_read_whatever_its_other_members),
        TEST(json_lines_are_known_by_name_or_contents),
        TEST(a_pipe_is_known_by_its_contents),
        TEST(other_formats_are_refused_by_their_first_bytes_or_their_name),
        TEST(a_byte_order_mark_is_no_text),
        TEST(a_directory_is_its_data_and_says_what_it_left_out),
        TEST(what_a_directory_calls_data_must_be_data),
        TEST(nothing_ambiguous_is_taken_for_a_tokenizer),
        TEST(a_tokenizer_is_the_same_whether_it_is_used_or_not),
        TEST(a_tokenizer_of_another_kind_is_needed_only_for_text),
        TEST(the_cases_are_read_or_refused),
    };
    if (!getcwd(source_root, sizeof source_root)) return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
