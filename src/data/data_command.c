/* `mop data`: text into a token file, and what is in one. */
#include "base/file.h"
#include "data/sources.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *usage =
    "mop data IN... --out FILE.tokens [--tokenizer tokenizer.json|bytes|none], or mop data --show FILE.tokens";

typedef struct {
    const char **inputs; /* ends with NULL */
    int count;
    const char *out, *tokenizer, *show; /* NULL: not given */
} Arguments;

/* The value of option `name` at argv[*i], as "--name VALUE" (which moves *i) or "--name=VALUE"; false on
 * another word. */
static bool option(int argc, char **argv, int *i, const char *name, const char **value, Error *e) {
    size_t length = strlen(name);
    const char *word = argv[*i];
    if (strncmp(word, name, length) != 0 || (word[length] != 0 && word[length] != '=')) return false;
    if (*value) fail(e, EXIT_USAGE, "%s is given twice; %s", name, usage);
    bool joined = word[length] == '=';
    *value = joined ? word + length + 1 : argv[*i + (*i + 1 < argc)];
    if (!joined && ++*i == argc) fail(e, EXIT_USAGE, "%s needs a value; %s", name, usage);
    return true;
}

static bool read_arguments(Arguments *a, int argc, char **argv, Error *e) {
    for (int i = 1; i < argc && e->code == EXIT_DONE; i++) {
        const struct {
            const char *name, **value;
        } options[] = {{"--out", &a->out}, {"--tokenizer", &a->tokenizer}, {"--show", &a->show}};
        bool known = false;
        for (size_t o = 0; o < COUNT(options) && !known; o++) {
            known = option(argc, argv, &i, options[o].name, options[o].value, e);
        }
        if (known) continue;
        if (strncmp(argv[i], "--", 2) == 0) {
            return fail(e, EXIT_USAGE, "unknown option %s; %s", text_shown(argv[i]).text, usage);
        }
        a->inputs[a->count++] = argv[i];
    }
    if (e->code != EXIT_DONE) return false;
    bool make = a->count > 0 && a->out && !a->show, show = a->show && a->count == 0 && !a->out && !a->tokenizer;
    return make || show || fail(e, EXIT_USAGE, "either inputs and --out, or --show alone; %s", usage);
}

static void print_info(const char *path, const TokensInfo *info) {
    const struct {
        const char *name;
        int64_t value;
    } rows[] = {
        {"documents", info->documents},  {"empty, skipped", info->skipped}, {"tokens", info->tokens},
        {"trained", info->trained},      {"text bytes", info->text_bytes},  {"vocabulary", info->vocabulary},
        {"bytes an id", info->id_bytes},
    };
    printf("%s\n", path);
    for (size_t i = 0; i < COUNT(rows); i++) printf("  %-15s%14" PRId64 "\n", rows[i].name, rows[i].value);
    printf("  %-15s%14s\n", "labels", info->labelled ? "yes" : "no");
    printf("  %-15s%016" PRIx64 "\n", "contents", info->hash);
}

/* Opens and verifies the whole file, however large. */
static bool show(const char *path, Error *e) {
    const char *paths[] = {path, NULL};
    Tokens *t = tokens_open(paths, NULL, e);
    bool whole = t && tokens_verify(t, e);
    if (whole) {
        TokensInfo info = tokens_info(t);
        print_info(path, &info);
    }
    tokens_close(t);
    return whole;
}

static bool show_token_file(const char *path, Error *e) {
    bool there;
    if (!file_exists(path, &there, e)) return false;
    if (!there || has_suffix(path, ".tokens") || is_token_file(path)) return show(path, e);
    return fail(e, EXIT_DATA, "%s: this is no token file; make one of it with mop data %s --out FILE.tokens", path,
                path);
}

/* Without a model bytes are what text is read as; the answer says so. */
static bool make(const Arguments *a, Error *e) {
    DataNotes notes = {""};
    Tokenizer *tokenizer = tokenizer_choose(a->tokenizer && *a->tokenizer ? a->tokenizer : "bytes", "", 0, e);
    bool made = tokenizer && tokens_prepare(a->inputs, tokenizer, a->out, &notes, e);
    if (made && *notes.text) fprintf(stderr, "mop: data: %s\n", notes.text);
    made = made && show(a->out, e);
    if (made) printf("  %-15s%s\n", "tokenizer", tokenizer_shown(tokenizer).text);
    tokenizer_close(tokenizer);
    return made;
}

int data_command(int argc, char **argv) {
    Error e = {0};
    Arguments a = {.inputs = calloc((size_t)argc + 1, sizeof *a.inputs)};
    if (!a.inputs) {
        fail(&e, EXIT_MEMORY, "out of memory; free some memory");
    } else if (read_arguments(&a, argc, argv, &e)) {
        if (a.show)
            show_token_file(a.show, &e);
        else
            make(&a, &e);
    }
    free(a.inputs);
    return e.code == EXIT_DONE ? EXIT_DONE : error_print(&e);
}
