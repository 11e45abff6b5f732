/* One table of flags; an unknown one is told what it was probably meant to be: another flag, or a setting. */
#include "main/command_line.h"
#include "base/guess.h"
#include "base/options.h"

#include <stdlib.h>
#include <string.h>

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

/* ---- Unknown flags ----------------------------------------------------------------------------- */

/* The setting of this key, or the one whose key ends in it; NULL: none, or several. */
static const Option *setting_named(const char *name) {
    const Option *found = option_find(name);
    for (int i = 0; !found && i < option_count; i++) {
        size_t section = option_section(&options[i]);
        if (section == 0 || strcmp(options[i].key + section + 1, name) != 0) continue;
        for (int j = i + 1; j < option_count; j++) {
            size_t other = option_section(&options[j]);
            if (other > 0 && strcmp(options[j].key + other + 1, name) == 0) return NULL;
        }
        found = &options[i];
    }
    return found;
}

/* What it was meant to be, with a "; " behind it; "" when nobody knows. `value`: what stands after it, or NULL. */
static Hint flag_hint(const char *name, const char *command, const char *value) {
    Hint hint = {""};
    const char *bare = name + strspn(name, "-"), *nearest = NULL;
    const Option *setting = setting_named(bare);
    int least = NEAREST_NONE;
    for (size_t i = 0; i < COUNT(flags); i++)
        if (strstr(flags[i].commands, command) && name_near(bare, flags[i].name + 2, &least)) nearest = flags[i].name;
    if (setting)
        snprintf(hint.text, sizeof hint.text, "it is a setting: --set %s=%s; ", setting->key,
                 value ? text_shown(value).text : "VALUE");
    else if (nearest)
        snprintf(hint.text, sizeof hint.text, "the nearest is %s; ", nearest);
    else if (foreign_hint(bare))
        snprintf(hint.text, sizeof hint.text, "%s; ", foreign_hint(bare));
    return hint;
}

static bool unknown_flag(const char *name, const char *command, const char *value, Error *e) {
    char known[256] = "";
    for (size_t i = 0, n = 0; i < COUNT(flags); i++)
        if (strstr(flags[i].commands, command))
            n += (size_t)snprintf(known + n, sizeof known - n, "%s%s", n ? ", " : "", flags[i].name);
    return fail(e, EXIT_USAGE, "unknown flag %s; %s%s takes %s", text_shown(name).text,
                flag_hint(name, command, value).text, command, known);
}

/* ---- Known flags ------------------------------------------------------------------------------- */

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
bool arguments_read(Arguments *a, int argc, char **argv, Error *e) {
    *a = (Arguments){.sets = calloc((size_t)argc + 2, sizeof *a->sets)};
    if (!a->sets) return fail(e, EXIT_MEMORY, "out of memory for the command line; free some memory");
    a->sets[a->n_sets++] = NULL;
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
        const char *value = equals ? equals + 1 : i + 1 < argc ? argv[i + 1] : NULL;
        const struct Flag *f = find_flag(argv[0], argv[i]);
        if (!f) return unknown_flag(argv[i], argv[0], value, e);
        if (!value) return fail(e, EXIT_USAGE, "%s needs a value", f->name);
        if (!set_flag(a, f, value, e)) return false;
        i += !equals;
    }
    return true;
}

void arguments_close(Arguments *a) {
    free(a->sets);
}
