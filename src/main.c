/* mop: read a command line and a config, open a session, hand over. */
#include "checkpoint/checkpoint.h"
#include "plan/plan.h"
#include "train/train.h"

#include <stdlib.h>
#include <string.h>

/* ---- What was asked ---------------------------------------------------------------------------- */

typedef struct {
    const char *config, *run;
    const char **sets;
    int n_sets;
    GenerateOptions generate;
} Arguments;

static bool number(const char *flag, const char *text, double low, double high, double *out, Error *e) {
    char *end;
    *out = strtod(text, &end);
    if (end != text && !*end && *out >= low && *out <= high) return true;
    return fail(e, EXIT_USAGE, "%s %s: give a number from %g to %g", flag, text_shown(text).text, low, high);
}

static bool flag(Arguments *a, bool generates, const char *name, const char *value, Error *e) {
    double x = 0;
    if (strcmp(name, "--set") == 0) {
        a->sets[a->n_sets++] = value;
        return true;
    }
    if (strcmp(name, "--run") == 0) {
        a->run = value;
        return *value || fail(e, EXIT_USAGE, "--run needs a directory");
    }
    if (!generates) return fail(e, EXIT_USAGE, "unknown flag %s; see `mop help`", text_shown(name).text);
    if (strcmp(name, "--prompt") == 0) {
        a->generate.prompt = value;
        return true;
    }
    if (strcmp(name, "--tokens") == 0) {
        bool ok = number(name, value, 1, 1e6, &x, e);
        a->generate.tokens = (int64_t)x;
        return ok;
    }
    if (strcmp(name, "--temperature") == 0) return number(name, value, 0, 100, &a->generate.sampling.temperature, e);
    if (strcmp(name, "--top-p") == 0) return number(name, value, 0, 1, &a->generate.sampling.top_p, e);
    if (strcmp(name, "--seed") == 0) {
        bool ok = number(name, value, 0, 1e15, &x, e);
        a->generate.sampling.seed = (uint64_t)x;
        return ok;
    }
    return fail(e, EXIT_USAGE, "unknown flag %s; generate takes --prompt, --tokens, --temperature, --top-p, --seed, --set", text_shown(name).text);
}

/* Flags are "--name value" or "--name=value"; one word beside them is the config. */
static bool read_arguments(Arguments *a, int argc, char **argv, Error *e) {
    bool generates = strcmp(argv[0], "generate") == 0;
    a->sets = calloc((size_t)argc + 1, sizeof *a->sets);
    MUST(a->sets);
    a->generate = (GenerateOptions){.prompt = "", .tokens = 200, .sampling = {.temperature = 0.8, .top_p = 0.95, .seed = 1}};
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--", 2) != 0) {
            if (a->config) return fail(e, EXIT_USAGE, "two configs, %s and %s; give one", text_shown(a->config).text, text_shown(argv[i]).text);
            a->config = argv[i];
            continue;
        }
        char *equals = strchr(argv[i], '=');
        if (equals) *equals = 0;
        if (!equals && i + 1 == argc) return fail(e, EXIT_USAGE, "%s needs a value", text_shown(argv[i]).text);
        const char *name = argv[i], *value = equals ? equals + 1 : argv[++i];
        if (!flag(a, generates, name, value, e)) return false;
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
    default_run(a->config, run, sizeof run);
    if (a->run) snprintf(run, sizeof run, "%s", a->run);
    if (!session_open(&s, c, &e)) code = error_print(&e);
    else if (strcmp(command, "train") == 0) code = train_command(&s, run, plan_price);
    else if (strcmp(command, "evaluate") == 0) code = evaluate_command(&s, plan_price);
    else if (strcmp(command, "generate") == 0) code = generate_command(&s, plan_price, &a->generate);
    else code = plan_command(&s);
    session_close(&s);
    return code;
}

static int session_command(int argc, char **argv) {
    Arguments a = {0};
    Config c;
    Error e = {0};
    int code;
    if (!read_arguments(&a, argc, argv, &e) || !config_read(&c, a.config, a.sets, a.n_sets, &e)) {
        code = error_print(&e);
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

static int config_command(int argc, char **argv) {
    if (argc >= 2 && strcmp(argv[1], "show") == 0) return config_show(argc - 1, argv + 1);
    if (argc == 3 && strcmp(argv[1], "explain") == 0) {
        if (!config_explain(argv[2], stdout)) return EXIT_USAGE;
        if (strcmp(argv[2], "device") == 0) machine_list(stdout);
        return EXIT_DONE;
    }
    Error e = {0};
    fail(&e, EXIT_USAGE, "use `mop config show [CONFIG] [--set KEY=VALUE]` or `mop config explain KEY`");
    return error_print(&e);
}

static int help_command(int argc, char **argv);

static const struct {
    const char *name, *usage, *help;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"train", "CONFIG [--set KEY=VALUE]... [--run DIR]", "train; the same command again resumes", session_command},
    {"evaluate", "CONFIG --set model.path=DIR --set data.path=FILE", "loss of a checkpoint on a text, one JSON line", session_command},
    {"generate", "CONFIG --set model.path=DIR --prompt TEXT [--tokens N] [--temperature X] [--top-p X] [--seed N]", "continue a text", session_command},
    {"plan", "CONFIG [--set KEY=VALUE]...", "what a run will need: memory, FLOPs, bytes; nothing is loaded", session_command},
    {"data", "IN... --out FILE.tokens | --show FILE.tokens", "make or look at a token file", data_command},
    {"export", "RUN|CHECKPOINT --out DIR [--dtype fp32|bf16|fp64]", "a clean Hugging Face directory", export_command},
    {"inspect", "FILE.safetensors|CHECKPOINT|RUN", "what is in it", inspect_command},
    {"ckpt", "verify|list|prune|diff ...", "look after checkpoints", checkpoint_command},
    {"config", "show [CONFIG] [--set KEY=VALUE] | explain KEY", "settings: all of them resolved, or one explained", config_command},
    {"help", "", "this, and every setting", help_command},
};

static int help_command(int argc, char **argv) {
    (void)argc;
    (void)argv;
    printf("mop %s: trains mixture-of-experts language models\n\n", MOP_VERSION);
    for (size_t i = 0; i < COUNT(commands); i++) printf("  mop %-9s %s\n      %s\n", commands[i].name, commands[i].usage, commands[i].help);
    printf("\nExit codes: 0 done, 2 usage or configuration, 3 bad input, 4 does not fit in memory, 5 disk, 6 a rank was lost,\n"
           "7 diverged, 75 stopped early and saved: run the same command again.\n\n");
    config_help(stdout);
    return EXIT_DONE;
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "mop trains mixture-of-experts language models; try `mop help`, or `make run` in the source directory\n");
        return EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) return help_command(0, NULL);
    if (strcmp(argv[1], "--version") == 0) return printf("mop %s\n", MOP_VERSION) < 0;
    for (size_t i = 0; i < COUNT(commands); i++)
        if (strcmp(argv[1], commands[i].name) == 0) return commands[i].run(argc - 1, argv + 1);
    Error e = {0};
    fail(&e, EXIT_USAGE, "there is no command %s; see `mop help`", text_shown(argv[1]).text);
    return error_print(&e);
}
