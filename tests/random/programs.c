/* Checks of the program itself: killed and begun again, under mpirun, and given nonsense. */
#define _GNU_SOURCE
#include "random/checks.h"

#include "base/options.h"
#include "base/random.h"

#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST_ARGUMENTS = 120, PATIENCE = 60 };

/* ---- Running a program --------------------------------------------------------------------------- */

typedef struct {
    const char *word[MOST_ARGUMENTS];
    int count;
} Command;

static void say(Command *c, const char *word) {
    MUST(c->count < MOST_ARGUMENTS - 1);
    c->word[c->count++] = word;
}

static void say_set(Command *c, const char *set) {
    say(c, "--set");
    say(c, set);
}

static char *text_of(const char *format, ...) __attribute__((format(printf, 1, 2)));
static char *text_of(const char *format, ...) {
    char *text;
    va_list args;
    va_start(args, format);
    MUST(vasprintf(&text, format, args) > 0);
    va_end(args);
    return text; /* never freed: a check is a process that ends soon */
}

static const char *path_of(const char *directory, const char *name) {
    return text_of("%s/%s", directory, name);
}

static pid_t start(const Command *c, const char *directory) {
    pid_t child = fork();
    MUST(child >= 0);
    if (child > 0) return child;
    int out = open(path_of(directory, "out"), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    dup2(out, STDOUT_FILENO);
    dup2(out, STDERR_FILENO);
    setpgid(0, 0);
    if (chdir(directory) == 0) execvp(c->word[0], (char *const *)c->word);
    _exit(127);
}

static void pause_for(double seconds) {
    struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&t, NULL);
}

/* Its status when it ends within `seconds`; else it is killed, and -1. */
static int wait_for(pid_t child, double seconds) {
    int status;
    for (double waited = 0; waited < seconds; waited += 0.002) {
        if (waitpid(child, &status, WNOHANG) == child) return status;
        pause_for(0.002);
    }
    kill(-child, SIGKILL);
    waitpid(child, &status, 0);
    return -1;
}

static void show_command(const Command *c) {
    for (int i = 0; i < c->count; i++) printf("%s%s", i ? " " : "", c->word[i]);
    printf("\n");
}

static void show_output(const char *directory) {
    char line[400];
    FILE *f = fopen(path_of(directory, "out"), "r");
    for (int i = 0; f && i < 12 && fgets(line, sizeof line, f); i++) printf("    %s", line);
    if (f) fclose(f);
}

/* ---- A run of the case --------------------------------------------------------------------------- */

void case_write(const Made *m, const char *directory) {
    FILE *spec = fopen(path_of(directory, "config.json"), "w"), *data = fopen(path_of(directory, "data.jsonl"), "w"),
         *yaml = fopen(path_of(directory, "settings.yaml"), "w");
    MUST(spec && data && yaml);
    fputs(m->spec, spec);
    fputs(m->documents, data);
    fprintf(yaml, "# mop train settings.yaml --set ranks=%lld", (long long)m->world);
    for (int i = 0; m->sets[i]; i++) fprintf(yaml, " --set %s", m->sets[i]);
    fprintf(yaml, "\nmodel:\n    config: config.json\ndata:\n    path: data.jsonl\n");
    fclose(spec);
    fclose(data);
    fclose(yaml);
}

static void say_case(Command *c, const char *mop, const char *command, const Made *m) {
    say(c, mop);
    say(c, command);
    say(c, "settings.yaml");
    for (int i = 0; m->sets[i]; i++) say_set(c, m->sets[i]);
}

static Command train(const char *mop, const Made *m, const char *run, bool threads) {
    Command c = {.count = 0};
    if (!threads) {
        say(&c, "mpirun");
        say(&c, "--oversubscribe");
        say(&c, "-n");
        say(&c, text_of("%lld", (long long)m->world));
    }
    say_case(&c, mop, "train", m);
    if (threads) say_set(&c, text_of("ranks=%lld", (long long)m->world));
    say_set(&c, "checkpoint.every=1");
    say(&c, "--run");
    say(&c, run);
    return c;
}

/* A run that must come to its end; diverged ones show nothing. */
static void to_the_end(const Command *c, const char *directory) {
    int status = wait_for(start(c, directory), PATIENCE);
    if (status == 0) return;
    bool diverged = WIFEXITED(status) && WEXITSTATUS(status) == EXIT_DIVERGED;
    if (status != -1 && diverged) check_idle("idle: the run diverges");
    show_command(c);
    show_output(directory);
    check_failed("the run ended with status %d", status);
}

static void assert_same_runs(const char *what, const char *directory, const char *a, const char *b) {
    char *compare =
        text_of("cd %s && numbers() { sed -E 's/\"seconds\".*\"expert_load/\"expert_load/' $1/metrics.jsonl; }; "
                "numbers %s >a.numbers; numbers %s >b.numbers; cmp a.numbers b.numbers && "
                "last=$(ls %s/ckpt | tail -n 1) && diff -rq %s/ckpt/$last %s/ckpt/$last",
                directory, a, b, a, a, b);
    if (system(compare) != 0) check_failed("%s: metrics or checkpoints differ", what);
}

void check_killed(const Case *c, const char *directory, const char *mop) {
    enum { KILLS = 4 };
    Made *m = case_make(c);
    case_write(m, directory);
    Command whole = train(mop, m, "whole", true), killed = train(mop, m, "killed", true);
    double began = seconds_now();
    to_the_end(&whole, directory);
    double seconds = seconds_now() - began;
    for (int i = 0; i < KILLS; i++) {
        double after = seconds * random_uniform((uint64_t)case_value(c, DRAWN_DATA), RANDOM_TEST, 3, (uint64_t)i);
        int status = wait_for(start(&killed, directory), after);
        if (status > 0) {
            show_output(directory);
            check_failed("killed %d times and begun again, the run ends with status %d", i, status);
        }
    }
    to_the_end(&killed, directory);
    assert_same_runs("killed and begun again", directory, "whole", "killed");
    made_free(m);
}

void check_mpi(const Case *c, const char *directory, const char *mop) {
    enum { MOST_PROCESSES = 4 };
    Made *m = case_make(c);
    if (m->world > MOST_PROCESSES) check_idle("idle: many processes");
    if (system("command -v mpirun >/dev/null") != 0) check_idle("idle: no mpirun here");
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
    setenv("ASAN_OPTIONS", "detect_leaks=0", 1); /* Open MPI leaves memory behind at its end */
    case_write(m, directory);
    Command version = {.word = {"mpirun", "--oversubscribe", "-n", "1", mop, "generate", "settings.yaml", "--set",
                                "model.config=config.json", "--prompt", "", "--tokens", "1"},
                       .count = 13};
    int works = wait_for(start(&version, directory), PATIENCE);
    char *refused = text_of("grep -q 'built without MPI' %s/out", directory);
    if (works != 0 && system(refused) == 0) check_idle("idle: built without MPI");
    Command threads = train(mop, m, "threads", true), processes = train(mop, m, "processes", false);
    to_the_end(&threads, directory);
    to_the_end(&processes, directory);
    assert_same_runs("processes and threads", directory, "processes", "threads");
    made_free(m);
}

/* ---- Nonsense ------------------------------------------------------------------------------------ */

static const char *const values[] = {"-1",
                                     "0",
                                     "1",
                                     "2",
                                     "3",
                                     "7",
                                     "64",
                                     "1000000",
                                     "2147483647",
                                     "2147483648",
                                     "9007199254740992",
                                     "1e300",
                                     "-1e300",
                                     "1e-300",
                                     "nan",
                                     "inf",
                                     "\"\"",
                                     "x",
                                     "[]",
                                     "{}",
                                     "true",
                                     "null",
                                     "0.5",
                                     "-0",
                                     "1e5",
                                     "65536",
                                     "[1, 2]",
                                     "../x",
                                     "/",
                                     "cpu:portable"};
static const char *const model_keys[] = {"vocab_size",
                                         "hidden_size",
                                         "num_hidden_layers",
                                         "num_attention_heads",
                                         "num_key_value_heads",
                                         "head_dim",
                                         "num_experts",
                                         "num_local_experts",
                                         "num_experts_per_tok",
                                         "intermediate_size",
                                         "moe_intermediate_size",
                                         "rms_norm_eps",
                                         "rope_theta",
                                         "initializer_range",
                                         "tie_word_embeddings",
                                         "norm_topk_prob",
                                         "sliding_window",
                                         "use_sliding_window",
                                         "mlp_only_layers",
                                         "decoder_sparse_step",
                                         "router_aux_loss_coef",
                                         "rope_scaling",
                                         "model_type",
                                         "pad_token_id",
                                         "hidden_act"};
/* What a large value of makes a legal run long or large. */
static const char *const lasting[] = {"train.steps",     "train.sample_tokens",   "train.sequences",
                                      "comm.timeout",    "train.sequence_length", "ranks",
                                      "compute.threads", "train.micro_batches"};
/* Files, and devices that are not there to be tried. */
static const char *const other_tests[] = {"data.path", "model.path", "model.config", "sim.record", "data.tokenizer"};

static bool is_one_of(const char *key, const char *const *list, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (strcmp(list[i], key) == 0) return true;
    return false;
}

static bool is_large(const char *value) {
    return strtod(value, NULL) > 64;
}

/* An option, or a key of the model's description, and its value. */
static void add_nonsense(Command *c, const char *directory, int64_t number) {
    const char *value = values[number % (int64_t)COUNT(values)];
    int64_t which = number / (int64_t)COUNT(values) % (option_count + (int64_t)COUNT(model_keys));
    if (number == 0) return;
    if (which >= option_count) {
        bool text = strchr("x./cni", value[0]) != NULL && strcmp(value, "null") != 0;
        char *edit = text_of("sed -i 's|^{|{\"%s\": %s%s%s, |' %s/config.json", model_keys[which - option_count],
                             text ? "\"" : "", value, text ? "\"" : "", directory);
        MUST(system(edit) == 0);
        return;
    }
    const char *key = options[which].key;
    if (is_one_of(key, other_tests, COUNT(other_tests)) || (is_large(value) && is_one_of(key, lasting, COUNT(lasting))))
        return;
    say_set(c, text_of("%s=%s", key, value));
}

void check_nonsense(const Case *c, const char *directory, const char *mop) {
    static const int documented[] = {EXIT_DONE, EXIT_USAGE, EXIT_DATA,     EXIT_MEMORY,
                                     EXIT_IO,   EXIT_PEER,  EXIT_DIVERGED, EXIT_STOPPED};
    static const Drawn fields[] = {DRAWN_NONSENSE1, DRAWN_NONSENSE2, DRAWN_NONSENSE3};
    static const char *const commands[] = {"train", "plan", "evaluate", "generate"};
    const char *command = commands[case_value(c, DRAWN_COMMAND)];
    Made *m = case_make(c);
    Command run = {.count = 0};
    case_write(m, directory);
    say_case(&run, mop, command, m);
    say_set(&run, text_of("ranks=%lld", (long long)m->world));
    if (strcmp(command, "train") == 0) {
        say(&run, "--run");
        say(&run, "run");
    }
    if (strcmp(command, "generate") == 0) {
        say(&run, "--tokens");
        say(&run, "3");
    }
    for (size_t i = 0; i < COUNT(fields); i++) add_nonsense(&run, directory, case_value(c, fields[i]));
    int status = wait_for(start(&run, directory), PATIENCE);
    if (status == -1) check_idle("idle: it takes long");
    for (size_t i = 0; i < COUNT(documented); i++)
        if (WIFEXITED(status) && WEXITSTATUS(status) == documented[i]) return;
    show_command(&run);
    show_output(directory);
    check_failed("%s %d is no documented end", WIFEXITED(status) ? "exit code" : "signal",
                 WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
}
