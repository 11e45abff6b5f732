/* Directories are told apart by what they hold, files by their names, and JSON by its keys. */
#define _POSIX_C_SOURCE 200809L
#include "main/given.h"
#include "base/json.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static bool only_runs_forward(const char *command) {
    return strcmp(command, "evaluate") == 0 || strcmp(command, "generate") == 0;
}

/* Whether something of this name is there. False with an Error where that cannot be known. */
static bool holds(const char *directory, const char *name, Error *e) {
    struct stat s;
    Path path = path_join(directory, name);
    if (stat(path.text, &s) == 0) return true;
    if (errno != ENOENT && errno != ENOTDIR)
        fail(e, EXIT_IO, "%s: cannot be looked at: %s; check the disk and the rights", path.text, strerror(errno));
    return false;
}

/* ---- Directories ------------------------------------------------------------------------------- */

static bool ends_in(const char *name, const char *end) {
    size_t n = strlen(name), m = strlen(end);
    return n > m && strcmp(name + n - m, end) == 0;
}

/* "a.yaml, b.yaml", as many as fit, and the first of them by itself; false when there is none. */
static bool list_configs(const char *directory, char *names, size_t bytes, char *first, Error *e) {
    DIR *d = opendir(directory);
    size_t n = 0;
    while (d) {
        errno = 0;
        const struct dirent *entry = readdir(d);
        if (!entry) break;
        if (!ends_in(entry->d_name, ".yaml") && !ends_in(entry->d_name, ".yml")) continue;
        if (n == 0) snprintf(first, bytes, "%s", entry->d_name);
        if (n + strlen(entry->d_name) + 3 < bytes)
            n += (size_t)snprintf(names + n, bytes - n, "%s%s", n ? ", " : "", entry->d_name);
    }
    bool read = d && errno == 0;
    if (!read) fail(e, EXIT_IO, "%s: cannot be listed: %s; check its rights", directory, strerror(errno));
    if (d) closedir(d);
    return read && n > 0;
}

static bool refuse_directory(const char *command, const char *directory, Error *e) {
    char names[512] = "", first[512] = "";
    bool found = list_configs(directory, names, sizeof names, first, e);
    if (e->code != EXIT_DONE) return false;
    if (!found)
        return fail(
            e, EXIT_USAGE,
            "%s: a configuration is needed, this is a directory without one; give a YAML file, or a run's directory",
            directory);
    return fail(e, EXIT_USAGE, "%s: a configuration is needed, this is a directory; it holds %s: type mop %s %s/%s",
                directory, names, command, directory, first);
}

/* A checkpoint inside a run has that run's settings. */
static bool take_model(const char *command, const char *directory, Given *out, Error *e) {
    if (!only_runs_forward(command))
        return fail(
            e, EXIT_USAGE,
            "%s: a configuration is needed, this is a model; to start from its weights, type --set model.path=%s",
            directory, directory);
    snprintf(out->model.text, sizeof out->model.text, "%s", directory);
    if (holds(directory, "manifest.json", e) && holds(directory, "../../config.yaml", e))
        out->config = path_join(directory, "../../config.yaml");
    return e->code == EXIT_DONE;
}

static bool take_run(const char *command, const char *directory, Given *out) {
    out->config = path_join(directory, "config.yaml");
    Path *also = only_runs_forward(command) ? &out->model : strcmp(command, "train") == 0 ? &out->run : NULL;
    if (also) snprintf(also->text, sizeof also->text, "%s", directory);
    return true;
}

static bool take_directory(const char *command, const char *given, Given *out, Error *e) {
    Path directory;
    snprintf(directory.text, sizeof directory.text, "%s", given);
    for (size_t n = strlen(directory.text); n > 1 && directory.text[n - 1] == '/'; n--) directory.text[n - 1] = 0;
    if (holds(directory.text, "config.yaml", e)) return take_run(command, directory.text, out);
    if (e->code == EXIT_DONE && holds(directory.text, "config.json", e))
        return take_model(command, directory.text, out, e);
    return e->code == EXIT_DONE && refuse_directory(command, directory.text, e);
}

/* ---- Files that are something else --------------------------------------------------------------- */

typedef struct {
    const char *sign; /* the end of a name, or a key */
    const char *what, *set;
} Sign;

static const Sign names[] = {
    {".jsonl", "this is data", "data.path="},
    {".txt", "this is data", "data.path="},
    {".tokens", "this is data", "data.path="},
    {".safetensors", "these are weights", "model.path=DIRECTORY"},
};

static const Sign keys[] = {
    {"model_type", "this is a model's description", "model.config="},
    {"architectures", "this is a model's description", "model.config="},
    {"mop_machine", "these are a machine's rates", "device=sim:"},
    {"weight_map", "this is an index of weights", "model.path=DIRECTORY"},
    {"added_tokens", "this is a tokenizer", "data.tokenizer="},
};

static const Sign *sign_of_name(const char *path) {
    for (size_t i = 0; i < COUNT(names); i++)
        if (ends_in(path, names[i].sign)) return &names[i];
    return NULL;
}

/* JSON is YAML too: without a sign, or where it cannot be read, it is left to who reads configurations. */
static const Sign *sign_of_json(const char *path) {
    Error ignored = {0};
    const Sign *found = NULL;
    json_t *json = ends_in(path, ".json") ? json_read_file(path, 32 << 20, &ignored) : NULL;
    for (size_t i = 0; json && !found && i < COUNT(keys); i++)
        if (json_object_get(json, keys[i].sign)) found = &keys[i];
    json_decref(json);
    return found;
}

static bool refuse_other(const char *path, const Sign *sign, Error *e) {
    bool open = sign->set[strlen(sign->set) - 1] == '=' || sign->set[strlen(sign->set) - 1] == ':';
    return fail(e, EXIT_USAGE, "%s: a configuration is needed, %s; name it with --set %s%s", path, sign->what,
                sign->set, open ? path : "");
}

bool config_given(const char *command, const char *given, Given *out, Error *e) {
    struct stat s;
    *out = (Given){0};
    if (!given) return true;
    if (strlen(given) >= sizeof out->config.text - 64)
        return fail(e, EXIT_USAGE, "CONFIG is a path longer than any may be; check it");
    bool there = stat(given, &s) == 0;
    if (there && S_ISDIR(s.st_mode)) return take_directory(command, given, out, e);
    const Sign *sign = there ? sign_of_name(given) : NULL;
    if (there && !sign) sign = sign_of_json(given);
    if (sign) return refuse_other(given, sign, e);
    snprintf(out->config.text, sizeof out->config.text, "%s", given);
    return true;
}
