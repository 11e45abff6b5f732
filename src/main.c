/* mop: read a command line and a config, open a session, hand over. */
#include "base/explain.h"
#include "base/guess.h"
#include "checkpoint/checkpoint.h"
#include "main/command_line.h"
#include "main/given.h"
#include "plan/doctor.h"
#include "plan/plan.h"

#include <errno.h>
#include <string.h>

/* ---- Commands ---------------------------------------------------------------------------------- */

/* Where `train` keeps a run: --run, the run that CONFIG is, else runs/ and the config's name. */
static bool choose_run(const Arguments *a, const Given *given, Path *out, Error *e) {
    const char *slash = a->config ? strrchr(a->config, '/') : NULL, *base = slash ? slash + 1 : a->config;
    if (a->run || *given->run.text)
        snprintf(out->text, sizeof out->text, "%s", a->run ? a->run : given->run.text);
    else if (a->config)
        snprintf(out->text, sizeof out->text, "runs/%.*s", (int)strcspn(base, "."), base);
    else
        return fail(e, EXIT_USAGE, "which run? Without CONFIG give it a directory, as in --run runs/first");
    return true;
}

/* The settings, and what CONFIG stands for beside them. */
static bool read_config(const char *command, Arguments *a, Config *c, Given *given, Error *e) {
    char set[sizeof given->model.text + 16];
    if (!config_given(command, a->config, given, e)) return false;
    snprintf(set, sizeof set, "model.path=%s", given->model.text);
    bool implied = *given->model.text;
    a->sets[0] = set;
    return config_read(c, *given->config.text ? given->config.text : NULL, a->sets + !implied, a->n_sets - !implied, e);
}

static int run_session(const char *command, const Arguments *a, const Given *given, Config *c) {
    Session s;
    Error e = {0};
    int code;
    Path run;
    bool trains = strcmp(command, "train") == 0;
    if (strcmp(command, "verify-layouts") == 0) return verify_layouts_command(c, &a->verify);
    if (trains && !choose_run(a, given, &run, &e)) return session_error(&e);
    if (!session_open(&s, c, &e))
        code = session_error(&e);
    else if (trains)
        code = train_command(&s, run.text, &a->trace, plan_price);
    else if (strcmp(command, "evaluate") == 0)
        code = evaluate_command(&s, plan_price);
    else if (strcmp(command, "generate") == 0)
        code = generate_command(&s, plan_price, &a->generate);
    else
        code = plan_command(&s, &a->trace);
    session_close(&s);
    return code;
}

static int session_command(int argc, char **argv) {
    Arguments a;
    Given given;
    Config c;
    Error e = {0};
    int code;
    if (!arguments_read(&a, argc, argv, &e) || !read_config(argv[0], &a, &c, &given, &e)) {
        code = session_error(&e);
    } else {
        code = run_session(argv[0], &a, &given, &c);
        config_close(&c);
    }
    arguments_close(&a);
    return code;
}

static int config_show(int argc, char **argv) {
    Arguments a;
    Given given;
    Config c;
    Error e = {0};
    bool ok = arguments_read(&a, argc, argv, &e) && read_config(argv[0], &a, &c, &given, &e);
    if (ok) {
        config_write(&c, stdout);
        config_close(&c);
    }
    arguments_close(&a);
    return ok ? EXIT_DONE : error_print(&e);
}

static int explain(const char *name) {
    Error e = {0};
    if (!config_explain(name, stdout, &e)) return error_print(&e);
    if (strcmp(name, "device") == 0) machine_list(stdout);
    return EXIT_DONE;
}

static int config_command(int argc, char **argv) {
    if (argc >= 2 && strcmp(argv[1], "show") == 0) return config_show(argc - 1, argv + 1);
    if (argc == 3 && strcmp(argv[1], "explain") == 0) return explain(argv[2]);
    Error e = {0};
    fail(&e, EXIT_USAGE, "use `mop config show [CONFIG] [--set KEY=VALUE]` or `mop config explain KEY|SECTION`");
    return error_print(&e);
}

static int help_command(int argc, char **argv);

#define CONFIG_HELP                                                                                                    \
    "CONFIG        a YAML file of settings (examples/ has some), or a run's directory, which has one\n"                \
    "--set K=V     another value for one setting, as often as needed; `mop help` lists them\n"

static const struct {
    const char *name, *usage, *help;
    const char *words; /* what each word of the usage means, a line each; "" where the usage says it */
    int (*run)(int argc, char **argv);
} commands[] = {
    {"train", "CONFIG [--set KEY=VALUE]... [--run DIR] [--trace FILE.json] [--trace-steps FIRST:LAST]",
     "train; the same command again resumes",
     CONFIG_HELP
     "--run DIR     where the run lives: settings, metrics, checkpoints; runs/NAME for NAME.yaml\n"
     "--trace F     a timeline of each step for ui.perfetto.dev; under mpirun a file for each rank, F.rank3.json\n"
     "--trace-steps FIRST:LAST   of these steps only, counted from 1\n"
     "Ctrl-C saves and ends with 75 (under mpirun: SIGUSR1 to the ranks); a second one ends at once.\n",
     session_command},
    {"evaluate", "CONFIG|RUN|CHECKPOINT [--set model.path=RUN|CHECKPOINT] [--set data.path=FILE]",
     "loss of a checkpoint on a text, one JSON line",
     CONFIG_HELP "RUN           its newest checkpoint, with its settings and its data\n"
                 "CHECKPOINT    these weights; a Hugging Face directory is one too\n",
     session_command},
    {"generate",
     "CONFIG|RUN|CHECKPOINT [--set model.path=RUN|CHECKPOINT] --prompt TEXT [--tokens 200] [--temperature 0.8] "
     "[--top-p "
     "0.95] [--seed 1]",
     "continue a text",
     CONFIG_HELP "RUN, CHECKPOINT   whose weights; a Hugging Face directory is a checkpoint too\n"
                 "--prompt      the text to continue\n"
                 "--tokens      how many tokens to add\n"
                 "--temperature 0: always the likeliest token; 1: as the model says; more: wilder\n"
                 "--top-p       draw only among the likeliest tokens that together have this probability\n"
                 "--seed        another number, another text\n",
     session_command},
    {"plan", "CONFIG [--set KEY=VALUE]... [--trace FILE.json]",
     "what a run will need: memory, FLOPs, time, bytes; nothing is loaded",
     CONFIG_HELP "--trace F     the timeline that is predicted, for ui.perfetto.dev\n", session_command},
    {"verify-layouts", "CONFIG [--set KEY=VALUE]... [--ranks N] [--steps 3] [--layouts 24] [--type fp64|fp32]",
     "proof that many ways of dividing the model train as one rank does",
     CONFIG_HELP
     "--ranks       ranks to divide over; the config's, or 4\n"
     "--steps       steps that are compared\n"
     "--layouts     how many mixed layouts, beside each axis by itself\n"
     "--type        fp64: equal within 1e-12; fp32: within 1e-5, where a near-tie of the router may choose\n"
     "              another expert and is no fault\n",
     session_command},
    {"report", "RUN [--json]", "where the time of a run goes: what its metrics say, also while it trains",
     "--json        the same as one JSON object\n", report_command},
    {"doctor", "[--out FILE.json] [--compare FILE.json|NAME] [--disk DIR] [--step CONFIG]",
     "what this machine can do and what will hurt, in about a minute",
     "--out F       writes the rates, for device=sim:F\n"
     "--compare     beside those of a file, or of a built-in machine (`mop help device` lists them)\n"
     "--disk DIR    measures the disk there; the current directory where nothing is said\n"
     "--step CONFIG a step of this run predicted from the rates, beside the same step taken\n",
     doctor_command},
    {"data", "IN... --out FILE.tokens [--tokenizer tokenizer.json] | --show FILE.tokens",
     "make or look at a token file",
     "IN            text (UTF-8), .jsonl, or directories of them\n"
     "--out         the token file, for data.path\n"
     "--tokenizer   bytes where nothing is said: id = byte\n"
     "--show        what is in a token file; reads and checks all of it\n",
     data_command},
    {"export", "RUN|CHECKPOINT --out DIR [--dtype fp32|bf16|fp64]", "a clean Hugging Face directory",
     "RUN           its newest checkpoint\n"
     "--out         a new directory, which transformers loads\n"
     "--dtype       the type of the weights; as they are stored where nothing is said\n",
     export_command},
    {"inspect", "FILE.safetensors|CHECKPOINT|RUN", "what is in it", "", inspect_command},
    {"ckpt", "verify CHECKPOINT|RUN | list RUN | prune RUN --keep K | diff A B", "look after checkpoints",
     "verify        reads every byte of a checkpoint, or of all of a run, and compares its checksums\n"
     "list          the checkpoints of a run: step, size, type, tokens\n"
     "prune         deletes all but the newest K of a run\n"
     "diff          compares the tensors of two checkpoints or runs; ends with 1 when any differ\n",
     checkpoint_command},
    {"config", "show [CONFIG] [--set KEY=VALUE]... | explain KEY|SECTION",
     "settings: all of them resolved, or one, or a section, explained", "", config_command},
    {"help", "[COMMAND|KEY|SECTION]", "this, and every setting; or one of them", "", help_command},
};

static int command_find(const char *name) {
    for (int i = 0; i < (int)COUNT(commands); i++)
        if (strcmp(commands[i].name, name) == 0) return i;
    return -1;
}

static int help_one(const char *name) {
    int i = command_find(name);
    if (i < 0) return explain(name);
    printf("mop %s %s\n    %s\n", commands[i].name, commands[i].usage, commands[i].help);
    if (*commands[i].words) printf("\n%s", commands[i].words);
    return EXIT_DONE;
}

static int help_command(int argc, char **argv) {
    if (argc > 1) return help_one(argv[1]);
    printf("mop %s: trains mixture-of-experts language models. `mop help COMMAND` tells of each word.\n\n",
           MOP_VERSION);
    for (size_t i = 0; i < COUNT(commands); i++)
        printf("  mop %-9s %s\n      %s\n", commands[i].name, commands[i].usage, commands[i].help);
    printf(
        "\nExit codes: 0 done, 1 a check says no (doctor, ckpt diff, verify-layouts), 2 usage or configuration, 3 bad "
        "input,\n"
        "4 does not fit in memory, 5 disk, 6 a rank was lost, 7 diverged, 75 stopped early and saved: run the same "
        "command again.\n\n");
    config_help(stdout);
    return EXIT_DONE;
}

static bool asks_for_help(const char *word) {
    return strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0;
}

/* Anywhere, but as the value of a flag. */
static bool any_asks_for_help(int argc, char **argv) {
    for (int i = 0; i < argc; i++)
        if (asks_for_help(argv[i]) && (i == 0 || strncmp(argv[i - 1], "--", 2) != 0 || strchr(argv[i - 1], '=')))
            return true;
    return false;
}

static int unknown_command(const char *word) {
    Error e = {0};
    const char *nearest = NULL;
    int least = NEAREST_NONE;
    for (size_t i = 0; i < COUNT(commands); i++)
        if (name_near(word, commands[i].name, &least)) nearest = commands[i].name;
    if (nearest)
        fail(&e, EXIT_USAGE, "there is no command %s; the nearest is %s", text_shown(word).text, nearest);
    else
        fail(&e, EXIT_USAGE, "there is no command %s; see `mop help`", text_shown(word).text);
    return error_print(&e);
}

static int run_command(int argc, char **argv) {
    int i = command_find(argv[1]);
    if (i < 0) return unknown_command(argv[1]);
    if (any_asks_for_help(argc - 2, argv + 2)) return help_one(argv[1]);
    return commands[i].run(argc - 1, argv + 1);
}

/* An answer that did not arrive is no success. */
static int flushed(int code) {
    bool arrived = fflush(stdout) == 0 && !ferror(stdout);
    if (arrived || code != EXIT_DONE) return code;
    Error e = {0};
    fail(&e, EXIT_IO, "what was asked cannot be written: %s; standard output; free some space or send it elsewhere",
         strerror(errno));
    return error_print(&e);
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(
            stderr,
            "mop trains mixture-of-experts language models; try `mop help`, or `make run` in the source directory\n");
        return EXIT_USAGE;
    }
    if (asks_for_help(argv[1])) return flushed(help_command(0, NULL));
    if (strcmp(argv[1], "--version") == 0) {
        printf("mop %s\n", MOP_VERSION);
        return flushed(EXIT_DONE);
    }
    return flushed(run_command(argc, argv));
}
