/* The program at the ends of its settings: every row of the option table at its lowest, its highest and odd values, and
 * the most dangerous ones together. Whatever they are, the program ends soon, in bounded memory, with one of its exit
 * codes, and never with a defect. $MOP is the program. */
#include "base/options.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* Sanitizers map terabytes of their own, and what the memory limit forbids here the machine would have to give. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

enum { SECONDS = 120, PATIENCE = 600, SETS_MOST = 8, LONG_TEXT = 100000 };

typedef struct {
    char program[4096];
    char directory[32]; /* where it runs; a link there leads to the examples */
    int runs, refused;
} Walk;

static Walk walk_open(void) {
    const char *program = getenv("MOP");
    Walk w = {.directory = "/tmp/mop-extremes-XXXXXX"};
    char here[4096], from[4200], to[64];
    if (!program || !realpath(program, w.program)) fail_msg("MOP must name the program");
    assert_non_null(mkdtemp(w.directory));
    assert_non_null(getcwd(here, sizeof here));
    snprintf(from, sizeof from, "%s/examples", here);
    snprintf(to, sizeof to, "%s/examples", w.directory);
    assert_int_equal(symlink(from, to), 0);
    return w;
}

static void walk_close(Walk *w) {
    char command[64];
    snprintf(command, sizeof command, "rm -r %s", w->directory);
    assert_int_equal(system(command), 0);
    printf("%d runs, of which %d ended with an error\n", w->runs, w->refused);
}

static void become(const Walk *w, const char *command, const char *const *sets, int n) {
    enum { ARGUMENTS = 2 * SETS_MOST + 16 };
    static const rlim_t memory = (rlim_t)6 << 30;
    const char *argument[ARGUMENTS] = {w->program, command, "examples/tiny.yaml"};
    int at = 3;
    if (strcmp(command, "train") == 0) {
        argument[at++] = "--run";
        argument[at++] = "run";
        argument[at++] = "--set";
        argument[at++] = "train.steps=1";
    }
    for (int i = 0; i < n; i++) {
        argument[at++] = "--set";
        argument[at++] = sets[i];
    }
    if (chdir(w->directory) != 0) _exit(99);
    if (!freopen("said", "w", stderr) || !freopen("/dev/null", "w", stdout)) _exit(99);
    if (!SANITIZED) setrlimit(RLIMIT_AS, &(struct rlimit){memory, memory});
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    setrlimit(RLIMIT_CPU, &(struct rlimit){SECONDS, SECONDS}); /* a busy machine takes longer for the same work */
    alarm(PATIENCE);                                           /* a default action: the end */
    execv(w->program, (char *const *)(uintptr_t)argument);
    _exit(99);
}

static void fail_with(const Walk *w, const char *command, const char *const *sets, int n, const char *how) {
    char text[2000] = "", name[64], said[800] = "";
    snprintf(name, sizeof name, "%s/said", w->directory);
    FILE *f = fopen(name, "r");
    if (f) said[fread(said, 1, sizeof said - 1, f)] = 0;
    if (f) fclose(f);
    for (int i = 0; i < n; i++) {
        size_t used = strlen(text);
        snprintf(text + used, sizeof text - used, " %s", text_shown(sets[i]).text);
    }
    fail_msg("%s%s: %s; it says: %s", command, text, how, said);
}

/* 1 is for checks, 6 for lost peers: a timeout of 0.01 s may lose one. */
static bool documented(int code) {
    static const int codes[] = {0, 2, 3, 4, 5, 6, 7, 75};
    for (size_t i = 0; i < COUNT(codes); i++)
        if (code == codes[i]) return true;
    return false;
}

static void try(Walk *w, const char *command, const char *const *sets, int n) {
    char how[64], clean[64];
    int status;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) become(w, command, sets, n);
    assert_int_equal(waitpid(child, &status, 0), child);
    w->runs++;
    w->refused += !WIFEXITED(status) || WEXITSTATUS(status) != 0;
    snprintf(clean, sizeof clean, "rm -rf %s/run", w->directory);
    if (strcmp(command, "train") == 0) assert_int_equal(system(clean), 0);
    if (WIFEXITED(status) && documented(WEXITSTATUS(status))) return;
    if (WIFSIGNALED(status))
        snprintf(how, sizeof how, "ended by signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    else
        snprintf(how, sizeof how, "exit code %d", WEXITSTATUS(status));
    fail_with(w, command, sets, n, how);
}

/* ---- One setting at a time ---------------------------------------------------------------------- */

static void try_value(Walk *w, const char *command, const Option *o, const char *value) {
    static char set[LONG_TEXT + 200];
    snprintf(set, sizeof set, "%s=%s", o->key, value);
    try(w, command, &(const char *){set}, 1);
}

static void try_number(Walk *w, const char *command, const Option *o, double value) {
    char text[64];
    snprintf(text, sizeof text, "%.17g", value);
    try_value(w, command, o, text);
}

static void try_numbers(Walk *w, const char *command, const Option *o) {
    const double values[] = {o->low, o->high, o->low + 1, 3, 7, o->high - 1, o->also};
    size_t n = COUNT(values) - (o->also == 0);
    for (size_t i = 0; i < n; i++) try_number(w, command, o, values[i]);
}

static void try_texts(Walk *w, const char *command, const Option *o) {
    static char endless[LONG_TEXT + 1];
    memset(endless, 'x', LONG_TEXT);
    const char *const values[] = {"", "x", endless, "\001\033[31m\n\t", "\377\376", "a\"b'c: [d, {e", "../../.."};
    for (size_t i = 0; i < COUNT(values); i++) try_value(w, command, o, values[i]);
}

static void try_choices(Walk *w, const char *command, const Option *o) {
    for (int i = 0; o->choices[i]; i++) try_value(w, command, o, o->choices[i]);
}

static void walk_option(Walk *w, const char *command, const Option *o) {
    if (o->kind == OPTION_INTEGER || o->kind == OPTION_NUMBER) try_numbers(w, command, o);
    if (o->kind == OPTION_TEXT || o->kind == OPTION_LIST) try_texts(w, command, o);
    if (o->choices) try_choices(w, command, o);
}

/* A run of so many steps is as long as it says. */
static bool may_be_long(const char *command, const Option *o) {
    return strcmp(command, "train") == 0 && strcmp(o->key, "train.steps") == 0;
}

/* Every `share`th option, from `first` on. */
static void walk_options(Walk *w, const char *command, int first, int share) {
    for (int i = first; i < option_count; i += share)
        if (!may_be_long(command, &options[i])) walk_option(w, command, &options[i]);
}

/* ---- Several at once ---------------------------------------------------------------------------- */

/* What multiplies. */
static const char *const dangerous[][6] = {
    {"train.sequence_length=1", "train.sequence_length=100000", "train.sequence_length=2147483647"},
    {"train.sequences=1", "train.sequences=7", "train.sequences=2147483647"},
    {"ranks=1", "ranks=4", "ranks=48", "ranks=65536"},
    {"train.micro_batches=1", "train.micro_batches=1024"},
    {"mixture.dispatch_tokens=1", "mixture.dispatch_tokens=2147483647"},
    {"mixture.loss_chunk=1", "mixture.loss_chunk=2147483647"},
    {"mixture.ulysses_heads=2147483647", "mixture.ulysses=4", "mixture.ring=4"},
    {"mixture.expert=4", "mixture.expert=65536", "mixture.balance_imports=4096"},
    {"mixture.vocabulary=4", "mixture.vocabulary=65536"},
    {"compute.type=fp64", "compute.activations=recompute", "device=sim:h200"},
};

/* A step on so many tokens is work for minutes. */
static bool trains_long(const char *command, const char *a, const char *b) {
    static const char length[] = "train.sequence_length=100000";
    return strcmp(command, "train") == 0 && (strcmp(a, length) == 0 || strcmp(b, length) == 0);
}

static void walk_pairs(Walk *w, const char *command, int first, int share) {
    int number = 0;
    for (size_t a = 0; a < COUNT(dangerous); a++)
        for (size_t b = 0; b < a; b++)
            for (int i = 0; dangerous[a][i]; i++)
                for (int j = 0; dangerous[b][j]; j++)
                    if (!trains_long(command, dangerous[a][i], dangerous[b][j]) && number++ % share == first)
                        try(w, command, (const char *const[]){dangerous[a][i], dangerous[b][j]}, 2);
}
