/* `mop inspect`: what is in a .safetensors file, a model's directory or a run, for people to read. A damaged
 * thing is told about like any other, with exit code 3. */
#define _POSIX_C_SOURCE 200809L
#include "base/file.h"
#include "checkpoint/checkpoints.h"
#include "checkpoint/source.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- One file --------------------------------------------------------------------------------- */

static int by_place(const void *x, const void *y) {
    const StoredTensor *a = x, *b = y;
    return (a->begin > b->begin) - (a->begin < b->begin);
}

static void print_tensor(const StoredTensor *t) {
    char shape[128] = "";
    size_t n = 0;
    for (int i = 0; i < t->dims && n < sizeof shape; i++)
        n += (size_t)snprintf(shape + n, sizeof shape - n, "%s%lld", i > 0 ? ", " : "", (long long)t->dim[i]);
    printf("  %-8s [%s]%*s %12lld bytes  ", stored_name(t->type), shape, (int)(n < 20 ? 20 - n : 0), "",
           (long long)(t->end - t->begin));
    for (const char *c = t->name; *c; c++) putchar((unsigned char)*c < 0x20 || *c == 0x7f ? '?' : *c);
    putchar('\n');
}

static void print_summary(const Safetensors *f) {
    int64_t elements = 0;
    for (int64_t i = 0; i < f->count; i++) elements += f->tensors[i].elements;
    printf("%s: %lld tensors, %lld elements, %lld bytes, header %lld bytes\n", f->path.text, (long long)f->count,
           (long long)elements, (long long)f->bytes, (long long)f->data);
}

static bool inspect_file(const char *path, Error *e) {
    Safetensors f;
    const char *key;
    json_t *value;
    if (!safetensors_open(&f, path, e)) return false;
    print_summary(&f);
    json_object_foreach(f.metadata, key, value)
        printf("  %s = %s\n", text_shown(key).text, text_shown(json_string_value(value)).text);
    qsort(f.tensors, (size_t)f.count, sizeof *f.tensors, by_place); /* as they lie; nothing is looked up from here on */
    for (int64_t i = 0; i < f.count; i++) print_tensor(&f.tensors[i]);
    safetensors_close(&f);
    return true;
}

/* ---- A model or checkpoint -------------------------------------------------------------------- */

static bool print_model(const char *directory, Error *e) {
    Spec s;
    if (!spec_read(&s, path_join(directory, "config.json").text, e)) return false;
    printf("model: %s, %lld layers of width %lld, %lld heads over %lld, %lld experts of %lld, %lld a token, vocabulary "
           "%lld\n"
           "       %lld parameters, %lld active\n",
           s.family->model_type, (long long)s.layers, (long long)s.hidden, (long long)s.heads, (long long)s.kv_heads,
           (long long)s.experts, (long long)s.expert_hidden, (long long)s.top_k, (long long)s.vocabulary,
           (long long)spec_parameters(&s), (long long)spec_active_parameters(&s));
    spec_close(&s);
    return true;
}

static bool print_state(const char *directory, Error *e) {
    TrainState s;
    Type type;
    if (!state_read(directory, &s, &type, e)) return false;
    printf("state: step %lld, %lld updates, %lld tokens, %lld sequences, %s; data %016llx, config %016llx\n",
           (long long)s.step, (long long)s.updates, (long long)s.tokens, (long long)s.sequences, type_name(type),
           (unsigned long long)s.data_hash, (unsigned long long)s.config_hash);
    return true;
}

static bool inspect_model(const char *directory, Error *e) {
    Source s;
    bool checkpoint;
    if (!manifest_exists(directory, &checkpoint, e) || !print_model(directory, e) ||
        (checkpoint && !print_state(directory, e)) || !source_open(&s, directory, checkpoint, e))
        return false;
    for (int i = 0; i < s.file_count; i++) print_summary(&s.files[i]);
    if (checkpoint) printf("headers and small files are as they were written; `mop ckpt verify` reads all\n");
    source_close(&s);
    return true;
}

/* ---- The command ------------------------------------------------------------------------------ */

static bool inspect_directory(const char *path, Error *e) {
    bool run, model;
    if (!file_exists(snapshot_parent(path).text, &run, e) ||
        !file_exists(path_join(path, "config.json").text, &model, e))
        return false;
    if (run) return checkpoints_print(path, stdout, e);
    if (!model) return checkpoint_none(path, e);
    if (inspect_model(path, e)) return true;
    checkpoint_gone(path, e);
    return false;
}

static bool inspect(const char *path, Error *e) {
    FileKind kind;
    if (!file_kind(path, &kind, e)) return false;
    if (kind == KIND_DIRECTORY) return inspect_directory(path, e);
    Error own = {0};
    if (inspect_file(path, &own)) return true;
    if (kind != KIND_NONE && own.code == EXIT_DATA && !strstr(path, ".safetensors"))
        return fail(e, EXIT_DATA,
                    "this is no .safetensors file; %s; name one, or a checkpoint's, a run's or a model's "
                    "directory",
                    path);
    return fail(e, own.code, "%s", own.text);
}

int inspect_command(int argc, char **argv) {
    Error e = {0};
    if (argc == 2)
        inspect(argv[1], &e);
    else
        fail(&e, EXIT_USAGE, "inspect takes one path; use mop inspect FILE.safetensors|CHECKPOINT|RUN");
    return e.code == EXIT_DONE ? EXIT_DONE : error_print(&e);
}
