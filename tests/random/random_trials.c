/* The property test: small models, documents, settings and layouts are drawn, and what must hold for all of them is
 * checked for each, in a process of its own (checks.h). What fails is made simpler as long as it fails, and told as a
 * command.
 *
 *     random_trials [--mop PATH] [--seconds N] [--seed N] [--first N] [--trials N]     as many as there is time for
 *     random_trials [--mop PATH] --case "check=layout ranks=2 ..." [--write DIRECTORY]
 *
 * Trial `first` + i of a seed is the same whenever it is drawn. --write leaves the case's files there. */
#define _GNU_SOURCE
#include "random/checks.h"

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef struct {
    char mop[PATH_MAX]; /* "": none */
    const char *words, *write;
    char directory[40]; /* of trials: what one says, and a directory for it */
    double seconds;
    uint64_t seed;
    int64_t first, trials;
} Options;

typedef enum { HELD, FAILED, IDLE } Outcome;

enum { TRIAL_SECONDS = 150 };
static const double SHRINK_SECONDS = 120;

/* ---- One case ------------------------------------------------------------------------------------ */

static void clean(const Options *o) {
    char command[200];
    snprintf(command, sizeof command, "rm -rf %s/here && mkdir %s/here", o->directory, o->directory);
    MUST(system(command) == 0);
}

static void run_check(const Case *c, const Options *o, const char *directory) {
    switch ((Check)c->pick[DRAWN_CHECK]) {
    case CHECK_LAYOUT: check_layout(c, directory); return;
    case CHECK_BITS: check_bits(c, directory); return;
    case CHECK_RESUME: check_resume(c, directory); return;
    default: break;
    }
    if (!*o->mop) check_idle("idle: needs the program, --mop");
    if (c->pick[DRAWN_CHECK] == CHECK_KILLED) check_killed(c, directory, o->mop);
    if (c->pick[DRAWN_CHECK] == CHECK_MPI) check_mpi(c, directory, o->mop);
    if (c->pick[DRAWN_CHECK] == CHECK_NONSENSE) check_nonsense(c, directory, o->mop);
}

static _Noreturn void be_a_trial(const Case *c, const Options *o, const char *said) {
    char here[60];
    const struct rlimit no_core = {0, 0};
    int out = open(said, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    setrlimit(RLIMIT_CORE, &no_core);
    dup2(out, STDOUT_FILENO);
    dup2(out, STDERR_FILENO);
    snprintf(here, sizeof here, "%s/here", o->directory);
    setpgid(0, 0);
    run_check(c, o, here);
    check_end(0);
}

/* What it says is in `said`. */
static Outcome try_case(const Case *c, const Options *o, char *said, size_t bytes) {
    int status = 0;
    clean(o);
    snprintf(said, bytes, "%s/said", o->directory);
    fflush(stdout);
    pid_t child = fork();
    MUST(child >= 0);
    if (child == 0) be_a_trial(c, o, said);
    double began = seconds_now();
    while (waitpid(child, &status, WNOHANG) != child) {
        struct timespec t = {0, 2000000};
        nanosleep(&t, NULL);
        if (seconds_now() - began < TRIAL_SECONDS) continue;
        kill(-child, SIGKILL);
        waitpid(child, &status, 0);
        FILE *f = fopen(said, "a");
        if (f) fprintf(f, "no end after %d s\n", TRIAL_SECONDS);
        if (f) fclose(f);
        return FAILED;
    }
    if (!WIFEXITED(status)) return FAILED;
    return WEXITSTATUS(status) == 0 ? HELD : WEXITSTATUS(status) == 2 ? IDLE : FAILED;
}

static void show(const char *said) {
    char line[500];
    FILE *f = fopen(said, "r");
    while (f && fgets(line, sizeof line, f)) printf("    %s", line);
    if (f) fclose(f);
}

/* ---- Simpler ------------------------------------------------------------------------------------- */

/* Drawn by field its simplest value with which the case still fails, until nothing gets simpler or time is up. */
static Case shrink(Case c, const Options *o) {
    char said[120];
    double until = seconds_now() + SHRINK_SECONDS;
    for (bool simpler = true; simpler;) {
        simpler = false;
        for (int f = 0; f < DRAWN_COUNT; f++) {
            int tries = case_simpler(&c, (Drawn)f);
            for (int i = 0; i < tries && seconds_now() < until; i++) {
                Case next = c;
                next.pick[f] = i;
                if (try_case(&next, o, said, sizeof said) != FAILED) continue;
                c = next;
                simpler = true;
                break;
            }
        }
    }
    return c;
}

static void tell(const char *how, const Case *c, const char *program) {
    printf("%s: %s --mop build/mop --case \"", how, program);
    case_print(c, stdout);
    printf("\"\n");
}

/* ---- Many ---------------------------------------------------------------------------------------- */

static int many(const Options *o, const char *program) {
    int64_t count[3] = {0}, by[CHECKS] = {0};
    char said[120];
    double until = seconds_now() + o->seconds;
    printf("seed %llu, from trial %lld on\n", (unsigned long long)o->seed, (long long)o->first);
    for (int64_t i = o->first; seconds_now() < until && i - o->first < o->trials; i++) {
        Case c = case_draw(o->seed, i);
        Outcome out = try_case(&c, o, said, sizeof said);
        count[out]++;
        by[c.pick[DRAWN_CHECK]]++;
        if (out != FAILED) continue;
        printf("\ntrial %lld of seed %llu fails:\n", (long long)i, (unsigned long long)o->seed);
        show(said);
        tell("as drawn", &c, program);
        fflush(stdout);
        c = shrink(c, o);
        tell("simplest", &c, program);
        try_case(&c, o, said, sizeof said);
        show(said);
        fflush(stdout);
    }
    printf("%lld trials held, %lld failed, %lld say nothing:", (long long)count[HELD], (long long)count[FAILED],
           (long long)count[IDLE]);
    for (int i = 0; i < CHECKS; i++) {
        Case c = {{i}};
        printf(" %lld %s%s", (long long)by[i], case_check(&c), i + 1 < CHECKS ? "," : "\n");
    }
    return count[FAILED] > 0;
}

static int one(const Options *o, const char *program) {
    Case c;
    char said[120];
    if (!case_read(&c, o->words)) return 2;
    if (o->write) {
        Made *m = case_make(&c);
        mkdir(o->write, 0777);
        case_write(m, o->write);
        made_free(m);
    }
    Outcome out = try_case(&c, o, said, sizeof said);
    show(said);
    tell(out == HELD ? "holds" : out == IDLE ? "says nothing" : "FAILS", &c, program);
    return out == FAILED;
}

/* ---- Words --------------------------------------------------------------------------------------- */

static bool read_options(Options *o, int argc, char **argv) {
    for (int i = 1; i < argc; i += 2) {
        const char *word = argv[i], *value = argv[i + 1]; /* argv ends with NULL */
        if (!value) return false;
        if (strcmp(word, "--mop") == 0) {
            if (!realpath(value, o->mop)) return false;
        } else if (strcmp(word, "--case") == 0)
            o->words = value;
        else if (strcmp(word, "--write") == 0)
            o->write = value;
        else if (strcmp(word, "--seconds") == 0)
            o->seconds = atof(value);
        else if (strcmp(word, "--seed") == 0)
            o->seed = strtoull(value, NULL, 10);
        else if (strcmp(word, "--first") == 0)
            o->first = atoll(value);
        else if (strcmp(word, "--trials") == 0)
            o->trials = atoll(value);
        else
            return false;
    }
    return true;
}

int main(int argc, char **argv) {
    Options o = {
        .seconds = 10, .seed = (uint64_t)time(NULL), .trials = INT64_MAX, .directory = "/tmp/mop-random-XXXXXX"};
    if (!read_options(&o, argc, argv)) {
        fprintf(stderr, "usage: random_trials [--mop PATH] [--seconds N] [--seed N] [--first N] [--trials N] or --case "
                        "\"...\" [--write DIRECTORY]\n");
        return 2;
    }
    MUST(mkdtemp(o.directory));
    int code = o.words ? one(&o, argv[0]) : many(&o, argv[0]);
    char command[100];
    snprintf(command, sizeof command, "rm -rf %s", o.directory);
    if (system(command) != 0) return 2;
    return code;
}
