/* `mop export`: a clean Hugging Face directory out of a checkpoint, for others to load: weights of the type
 * asked for, one tensor an expert, config, tokenizer, a model card, the licence. Read piece by piece with every
 * hash checked, so that no rank, no device and little memory is needed. It appears under its name when it is
 * complete. */
#define _POSIX_C_SOURCE 200809L
#include "base/file.h"
#include "checkpoint/checkpoints.h"
#include "checkpoint/source.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char usage[] = "mop export CHECKPOINT|RUN --out DIR [--dtype fp32|bf16|fp64]";

typedef struct {
    const char *from, *out, *dtype;
    NamedCheckpoint source;
    Path making;  /* the directory until it is complete */
    bool damaged; /* what the export failed at is the checkpoint's bytes */
    Spec spec;
    Type type;
} Export;

/* ---- Weights ---------------------------------------------------------------------------------- */

static bool write_tensor(const Placement *p, const Placed *t, Source *s, const Found *f, int fd, const char *path,
                         Error *e) {
    const Place *place = &t->at[STORE_WEIGHT];
    Type type = p->type[STORE_WEIGHT];
    int64_t each = (int64_t)type_bytes(type);
    for (int64_t done = 0, n; done < t->elements; done += n) {
        n = source_piece(s, f, done, t->elements - done, type, e);
        if (n == 0) return false;
        if (!write_whole(fd, s->values, (size_t)(n * each), place->begin + done * each))
            return fail(e, EXIT_IO, "cannot write: %s; %s; free some space or check the disk", strerror(errno), path);
    }
    return true;
}

static bool write_file(const Export *x, const Placement *p, int file, Source *s, const Found *found, Error *e) {
    Path path = path_join(x->making.text, p->files[file].name);
    int fd = open(path.text, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return fail(e, EXIT_IO, "cannot write: %s; %s; check the disk", strerror(errno), path.text);
    bool done = true;
    for (int64_t i = 0; done && i < p->count; i++) {
        if (p->tensors[i].at[STORE_WEIGHT].file == file)
            done = write_tensor(p, &p->tensors[i], s, &found[i * PLACED_KINDS + STORE_WEIGHT], fd, path.text, e);
    }
    if (done && fdatasync(fd) != 0)
        done = fail(e, EXIT_IO, "cannot write: %s; %s; check the disk", strerror(errno), path.text);
    close(fd);
    return done;
}

static bool write_index(const Export *x, const Placement *p, Error *e) {
    if (p->model_files == 1) return true;
    json_t *index = placement_index(p);
    bool done = json_write_file(index, path_join(x->making.text, "model.safetensors.index.json").text, e);
    json_decref(index);
    return done;
}

static bool write_weights(Export *x, Source *s, Error *e) {
    Placement p;
    if (!placement_open(&p, &x->spec, x->type, false, placement_shard, e)) return false;
    Found *found = source_bind(s, &p, false, e);
    bool done = found && placed_files_make(&p, x->making.text, e) && write_index(x, &p, e);
    for (int f = 0; done && f < p.file_count; f++) done = write_file(x, &p, f, s, found, e);
    x->damaged = found && e->code == EXIT_DATA;
    free(found);
    placement_close(&p);
    return done;
}

/* ---- Everything else -------------------------------------------------------------------------- */

static bool write_card(const Export *x, Error *e) {
    Text t = {0};
    Licence licence;
    if (!licence_of(x->source.directory.text, &licence, e)) return false;
    text_add(&t, "---\nlibrary_name: transformers\npipeline_tag: text-generation\n");
    if (*licence.text) text_add(&t, "license: %s\n", licence.text);
    text_add(&t, "---\n\n# %s\n\nA mixture-of-experts language model (`%s`), trained with mop %s.\n\n",
             x->spec.family->architecture, x->spec.family->model_type, MOP_VERSION);
    text_add(&t,
             "| | |\n|---|---|\n| parameters | %lld, of which %lld are active |\n| layers | %lld of width %lld |\n"
             "| experts | %lld of width %lld, %lld for each token |\n| vocabulary | %lld |\n| type | %s |\n",
             (long long)spec_parameters(&x->spec), (long long)spec_active_parameters(&x->spec),
             (long long)x->spec.layers, (long long)x->spec.hidden, (long long)x->spec.experts,
             (long long)x->spec.expert_hidden, (long long)x->spec.top_k, (long long)x->spec.vocabulary,
             type_name(x->type));
    text_add(&t, "\n```python\nfrom transformers import AutoModelForCausalLM\nmodel = "
                 "AutoModelForCausalLM.from_pretrained(\".\")\n```\n");
    Path path = path_join(x->making.text, "README.md");
    bool done = t.failed ? fail(e, EXIT_MEMORY, "out of memory for a model card; %s; free some memory", path.text)
                         : file_write(path.text, t.text, t.bytes, e);
    free(t.text);
    return done;
}

static bool write_small_files(const Export *x, Error *e) {
    SmallFiles files = {0};
    bool done = small_files_add(&files, "config.json", spec_config(&x->spec, x->type), e) &&
                small_files_carry(&files, x->source.directory.text, NULL, e) &&
                small_files_generation(&files, x->spec.source, e) && small_files_write(&files, x->making.text, e);
    small_files_close(&files);
    return done;
}

/* ---- The command ------------------------------------------------------------------------------ */

static bool misused(const char *what, Error *e) {
    return fail(e, EXIT_USAGE, "%s; use %s", what, usage);
}

static bool read_arguments(Export *x, int argc, char **argv, Error *e) {
    for (int i = 1; i < argc; i++) {
        const char **value = strcmp(argv[i], "--out") == 0     ? &x->out
                             : strcmp(argv[i], "--dtype") == 0 ? &x->dtype
                                                               : NULL;
        if (value && (*value || i + 1 == argc)) return misused("--out and --dtype take one value each", e);
        if (value)
            *value = argv[++i];
        else if (argv[i][0] == '-' || x->from)
            return misused("export takes one checkpoint or run", e);
        else
            x->from = argv[i];
    }
    return (x->from && x->out) || misused("export needs a checkpoint or run, and --out", e);
}

/* The type that is asked for; else that of the weights. */
static bool choose_type(Export *x, const Source *s, Error *e) {
    static const Type types[] = {FP32, BF16, FP64};
    x->type = FP32;
    for (size_t i = 0; i < COUNT(types); i++) {
        bool asked = x->dtype && strcmp(x->dtype, type_name(types[i])) == 0;
        bool stored = !x->dtype && s->files[0].count > 0 && s->files[0].tensors[0].type == stored_from(types[i]);
        if (asked || stored) x->type = types[i];
        if (asked) return true;
    }
    return !x->dtype || misused("--dtype is fp32, bf16 or fp64", e);
}

/* Nothing there, or an empty directory, which the rename replaces. */
static bool check_free(const char *out, Error *e) {
    const char *name = NULL;
    FileKind kind;
    if (!file_kind(out, &kind, e)) return false;
    if (kind == KIND_NONE) return true;
    DIR *d = kind == KIND_DIRECTORY ? opendir(out) : NULL;
    if (kind == KIND_DIRECTORY && !d)
        return fail(e, EXIT_IO, "cannot list a directory: %s; %s; check its rights", strerror(errno), out);
    bool listed = !d || directory_next(d, out, &name, e);
    if (d) closedir(d);
    if (!listed) return false;
    return (d && !name) || fail(e, EXIT_USAGE, "something is there already; %s; name a new or empty directory", out);
}

static bool make_directory(Export *x, Error *e) {
    Text name = {0};
    size_t bytes = strlen(x->out);
    while (bytes > 1 && x->out[bytes - 1] == '/') bytes--;
    text_add(&name, "%.*s.tmp-%016llx", (int)bytes, x->out, (unsigned long long)snapshot_random());
    if (!name.failed) snprintf(x->making.text, sizeof x->making.text, "%s", name.text);
    free(name.text);
    return directory_make(x->making.text, e);
}

static bool export_into(Export *x, Source *s, Error *e) {
    return write_weights(x, s, e) && write_small_files(x, e) && write_card(x, e) &&
           directory_still_there(x->source.directory.text, e) && directory_sync(x->making.text, e) &&
           (rename(x->making.text, x->out) == 0 ||
            fail(e, EXIT_IO, "cannot rename: %s; %s; check the directory and its rights", strerror(errno), x->out)) &&
           file_sync_parent(x->out, e);
}

static bool export_source(Export *x, Source *s, Error *e) {
    if (!choose_type(x, s, e) || !make_directory(x, e)) return false;
    if (export_into(x, s, e)) return true;
    directory_remove(x->making.text, &(Error){0});
    return false;
}

static bool export_checkpoint(Export *x, Error *e) {
    Source s;
    const char *directory = x->source.directory.text;
    if (!spec_read(&x->spec, path_join(directory, "config.json").text, e)) return false;
    bool done = source_open(&s, directory, false, e);
    x->damaged = e->code == EXIT_DATA;
    if (done) {
        done = export_source(x, &s, e);
        source_close(&s);
    }
    spec_close(&x->spec);
    return done;
}

int export_command(int argc, char **argv) {
    Export x = {0};
    Error e = {0};
    bool named = read_arguments(&x, argc, argv, &e) && check_free(x.out, &e) && checkpoint_named(x.from, &x.source, &e);
    if (!named) return error_print(&e);
    for (;;) {
        checkpoint_say_passed_over(&x.source);
        if (export_checkpoint(&x, &e)) break;
        Error damage = e;
        if (checkpoint_gone(x.source.directory.text, &e) || !x.damaged || !checkpoint_older(&x.source, &damage, &e))
            return error_print(&e);
    }
    printf("%s: %s of %s\n", x.out, type_name(x.type), x.source.directory.text);
    return EXIT_DONE;
}
