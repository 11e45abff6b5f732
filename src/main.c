/* mop: read a command line and a config, open a session, hand over. */
#include "base/options.h"
#include "checkpoint/checkpoint.h"
#include "plan/doctor.h"
#include "plan/plan.h"
#include "plan/verify_layouts.h"
#include "train/train.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- What was asked ---------------------------------------------------------------------------- */

typedef struct {
    const char *config, *run;
    const char **sets;
    int n_sets;
    GenerateOptions generate;
    VerifyOptions verify;
    TraceOptions trace;
} Arguments;

typedef enum { FLAG_SET, FLAG_TEXT, FLAG_INTEGER, FLAG_NUMBER } FlagKind;

static const struct Flag {
    const char *name, *commands; /* which of those that read a config take it */
    FlagKind kind;
    size_t offset; /* in Arguments */
    double low, high;
} flags[] = {
    {"--set", "train evaluate generate plan show verify-layouts", FLAG_SET, 0, 0, 0},
    {"--run", "train", FLAG_TEXT, offsetof(Arguments, run), 0, 0},
    {"--trace", "train plan", FLAG_TEXT, offsetof(Arguments, trace.path), 0, 0},
    {"--trace-steps", "train", FLAG_TEXT, offsetof(Arguments, trace.steps), 0, 0},
    {"--prompt", "generate", FLAG_TEXT, offsetof(Arguments, generate.prompt), 0, 0},
    {"--tokens", "generate", FLAG_INTEGER, offsetof(Arguments, generate.tokens), 1, 1e6},
    {"--temperature", "generate", FLAG_NUMBER, offsetof(Arguments, generate.sampling.temperature), 0, 100},
    {"--top-p", "generate", FLAG_NUMBER, offsetof(Arguments, generate.sampling.top_p), 0, 1},
    {"--seed", "generate", FLAG_INTEGER, offsetof(Arguments, generate.sampling.seed), 0, 1e15},
    {"--ranks", "verify-layouts", FLAG_INTEGER, offsetof(Arguments, verify.ranks), 1, 64},
    {"--steps", "verify-layouts", FLAG_INTEGER, offsetof(Arguments, verify.steps), 1, 1e6},
    {"--layouts", "verify-layouts", FLAG_INTEGER, offsetof(Arguments, verify.layouts), 0, 1e4},
    {"--type", "verify-layouts", FLAG_TEXT, offsetof(Arguments, verify.type), 0, 0},
};

static bool unknown_flag(const char *name, const char *command, Error *e) {
    char known[256] = "";
    for (size_t i = 0, n = 0; i < COUNT(flags); i++)
        if (strstr(flags[i].commands, command))
            n += (size_t)snprintf(known + n, sizeof known - n, "%s%s", n ? ", " : "", flags[i].name);
    return fail(e, EXIT_USAGE, "unknown flag %s; %s takes %s", text_shown(name).text, command, known);
}

static bool set_flag(Arguments *a, const struct Flag *f, const char *value, Error *e) {
    void *field = (char *)a + f->offset;
    if (f->kind == FLAG_SET) {
        a->sets[a->n_sets++] = value;
        return true;
    }
    if (f->kind == FLAG_TEXT) {
        *(const char **)field = value;
        return *value || fail(e, EXIT_USAGE, "%s is empty; give it a value", f->name);
    }
    char *end;
    double x = strtod(value, &end);
    bool right = end != value && !*end && x >= f->low && x <= f->high;
    if (f->kind == FLAG_INTEGER && right && x == (double)(int64_t)x)
        *(int64_t *)field = (int64_t)x;
    else if (f->kind == FLAG_NUMBER && right)
        *(double *)field = x;
    else
        return fail(e, EXIT_USAGE, "%s is \"%s\"; it must be %s from %.16g to %.16g", f->name, text_shown(value).text,
                    f->kind == FLAG_INTEGER ? "an integer" : "a number", f->low, f->high);
    return true;
}

static const struct Flag *find_flag(const char *command, const char *name) {
    for (size_t i = 0; i < COUNT(flags); i++)
        if (strcmp(flags[i].name, name) == 0 && strstr(flags[i].commands, command)) return &flags[i];
    return NULL;
}

/* Flags are "--name value" or "--name=value"; one word beside them is the config. */
static bool read_arguments(Arguments *a, int argc, char **argv, Error *e) {
    a->sets = calloc((size_t)argc + 1, sizeof *a->sets);
    MUST(a->sets);
    a->generate =
        (GenerateOptions){.prompt = "", .tokens = 200, .sampling = {.temperature = 0.8, .top_p = 0.95, .seed = 1}};
    a->verify = (VerifyOptions){.steps = 3, .layouts = 24, .type = "fp64"};
    for (int i = 1; i < argc; i++) {
        if (argv[i][0] != '-') {
            if (a->config)
                return fail(e, EXIT_USAGE, "two configs, %s and %s; give one", text_shown(a->config).text,
                            text_shown(argv[i]).text);
            a->config = argv[i];
            continue;
        }
        char *equals = strchr(argv[i], '=');
        if (equals) *equals = 0;
        const struct Flag *f = find_flag(argv[0], argv[i]);
        if (!f) return unknown_flag(argv[i], argv[0], e);
        if (!equals && i + 1 == argc) return fail(e, EXIT_USAGE, "%s needs a value", f->name);
        if (!set_flag(a, f, equals ? equals + 1 : argv[++i], e)) return false;
    }
    return true;
}

/* runs/ and the config's name. */
static void default_run(const char *config, char *out, size_t bytes) {
    const char *slash = config ? strrchr(config, '/') : NULL, *base = slash ? slash + 1 : config ? config : "run";
    size_t length = strcspn(base, ".");
    snprintf(out, bytes, "runs/%.*s", (int)length, base);
}

/* ---- Commands ---------------------------------------------------------------------------------- */

static int run_session(const char *command, const Arguments *a, Config *c) {
    Session s;
    Error e = {0};
    int code;
    char run[4096];
    if (strcmp(command, "verify-layouts") == 0) return verify_layouts_command(c, &a->verify);
    default_run(a->config, run, sizeof run);
    if (a->run) snprintf(run, sizeof run, "%s", a->run);
    if (!session_open(&s, c, &e))
        code = session_error(&e);
    else if (strcmp(command, "train") == 0)
        code = train_command(&s, run, &a->trace, plan_price);
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
    Arguments a = {0};
    Config c;
    Error e = {0};
    int code;
    if (!read_arguments(&a, argc, argv, &e) || !config_read(&c, a.config, a.sets, a.n_sets, &e)) {
        code = session_error(&e);
    } else {
        code = run_session(argv[0], &a, &c);
        config_close(&c);
    }
    free(a.sets);
    return code;
}

static int config_show(int argc, char **argv) {
    Arguments a = {0};
    Config c;
    Error e = {0};
    bool ok = read_arguments(&a, argc, argv, &e) && config_read(&c, a.config, a.sets, a.n_sets, &e);
    if (ok) {
        config_write(&c, stdout);
        config_close(&c);
    }
    free(a.sets);
    return ok ? EXIT_DONE : error_print(&e);
}

static int explain(const char *key) {
    Error e = {0};
    if (!option_find(key)) {
        fail(&e, EXIT_USAGE, "there is no setting %s; the nearest is %s", text_shown(key).text,
             option_nearest(key)->key);
        return error_print(&e);
    }
    config_explain(key, stdout);
    if (strcmp(key, "device") == 0) machine_list(stdout);
    return EXIT_DONE;
}

static int config_command(int argc, char **argv) {
    if (argc >= 2 && strcmp(argv[1], "show") == 0) return config_show(argc - 1, argv + 1);
    if (argc == 3 && strcmp(argv[1], "explain") == 0) return explain(argv[2]);
    Error e = {0};
    fail(&e, EXIT_USAGE, "use `mop config show [CONFIG] [--set KEY=VALUE]` or `mop config explain KEY`");
    return error_print(&e);
}

static int help_command(int argc, char **argv);

static const struct {
    const char *name, *usage, *help;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"train", "CONFIG [--set KEY=VALUE]... [--run DIR] [--trace FILE.json] [--trace-steps FIRST:LAST]",
     "train; the same command again resumes. --trace: a timeline of all steps or of those, for ui.perfetto.dev;\n"
     "      under mpirun a file for each rank, FILE.rank3.json",
     session_command},
    {"evaluate", "CONFIG --set model.path=RUN|CHECKPOINT [--set data.path=FILE]",
     "loss of a checkpoint on a text, one JSON line", session_command},
    {"generate",
     "CONFIG --set model.path=RUN|CHECKPOINT --prompt TEXT [--tokens 200] [--temperature 0.8] [--top-p 0.95] [--seed "
     "1]",
     "continue a text; temperature 0: always the likeliest token", session_command},
    {"plan", "CONFIG [--set KEY=VALUE]... [--trace FILE.json]",
     "what a run will need: memory, FLOPs, bytes; nothing is loaded. --trace: the timeline that is predicted",
     session_command},
    {"verify-layouts", "CONFIG [--set KEY=VALUE]... [--ranks N] [--steps 3] [--layouts 24] [--type fp64|fp32]",
     "proof that layouts of so many ranks (the config's, or 4), 24 of them mixed, train as one rank does: within "
     "1e-12;\n"
     "      in fp32 within 1e-5, where a near-tie of the router may choose another expert and is no fault",
     session_command},
    {"report", "RUN [--json]", "where the time of a run goes: what its metrics say, also while it trains",
     report_command},
    {"doctor", "[--out FILE.json] [--compare FILE.json|NAME] [--disk DIR] [--step CONFIG]",
     "what this machine can do and what will hurt; its rates as a file for device=sim:FILE.json", doctor_command},
    {"data", "IN... --out FILE.tokens | --show FILE.tokens", "make or look at a token file", data_command},
    {"export", "RUN|CHECKPOINT --out DIR [--dtype fp32|bf16|fp64]", "a clean Hugging Face directory", export_command},
    {"inspect", "FILE.safetensors|CHECKPOINT|RUN", "what is in it", inspect_command},
    {"ckpt", "verify|list|prune|diff ...", "look after checkpoints", checkpoint_command},
    {"config", "show [CONFIG] [--set KEY=VALUE] | explain KEY", "settings: all of them resolved, or one explained",
     config_command},
    {"help", "[COMMAND|KEY]", "this, and every setting; or one of them", help_command},
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
    return EXIT_DONE;
}

static int help_command(int argc, char **argv) {
    if (argc > 1) return help_one(argv[1]);
    printf("mop %s: trains mixture-of-experts language models\n\n", MOP_VERSION);
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

static int run_command(int argc, char **argv) {
    int i = command_find(argv[1]);
    if (i >= 0 && argc > 2 && asks_for_help(argv[2])) return help_one(argv[1]);
    if (i >= 0) return commands[i].run(argc - 1, argv + 1);
    Error e = {0};
    fail(&e, EXIT_USAGE, "there is no command %s; see `mop help`", text_shown(argv[1]).text);
    return error_print(&e);
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
