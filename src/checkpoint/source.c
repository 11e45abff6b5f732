/* Opening weights and reading them in bounded pieces. Where there is a manifest, the piece is a whole extent:
 * it is read once, its hash is checked, and then it serves every slice that begins in it. */
#define _POSIX_C_SOURCE 200809L
#include "checkpoint/source.h"
#include "base/file.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const size_t index_limit = (size_t)256 << 20;
static const char *advice = "use another checkpoint";

/* ---- Which files ------------------------------------------------------------------------------ */

static bool out_of_memory(const Source *s, Error *e) {
    return fail(e, EXIT_MEMORY, "out of memory while opening weights; %s; free some memory", s->path.text);
}

static bool add_file(Source *s, const char *path, Error *e) {
    Safetensors *larger = realloc(s->files, (size_t)(s->file_count + 1) * sizeof *s->files);
    if (!larger) return out_of_memory(s, e);
    s->files = larger;
    if (!safetensors_open(&s->files[s->file_count], path, e)) return false;
    s->file_count++;
    return true;
}

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static int find_file(const Source *s, const char *name) {
    for (int i = 0; i < s->file_count; i++) {
        if (strcmp(base_name(s->files[i].path.text), name) == 0) return i;
    }
    return -1;
}

/* Every tensor of a shard is there by the index's word, so none is there twice. */
static bool check_shard(const Safetensors *f, const char *path, const json_t *map, Error *e) {
    for (int64_t i = 0; i < f->count; i++) {
        const char *name = f->tensors[i].name, *said = json_string_value(json_object_get(map, name));
        if (said && strcmp(said, base_name(f->path.text)) == 0) continue;
        return fail(e, EXIT_DATA, "tensor %s is in %s, where the index does not have it; %s; download both again",
                    text_shown(name).text, base_name(f->path.text), path);
    }
    return true;
}

static bool add_shard(Source *s, const char *index, const char *tensor, const char *name, Error *e) {
    bool there;
    Path path = path_join(s->path.text, name);
    if (!file_exists(path.text, &there, e)) return false;
    if (!there) {
        return fail(e, EXIT_DATA, "a file that the index names is not there (%s, of tensor %s); %s; download it too",
                    text_shown(name).text, text_shown(tensor).text, index);
    }
    return add_file(s, path.text, e);
}

/* The shards that an index names, each of which must hold exactly the tensors that the index says. */
static bool add_shards(Source *s, const char *path, const json_t *map, Error *e) {
    const char *tensor;
    json_t *value;
    if (!json_is_object(map)) return fail(e, EXIT_DATA, "the index has no \"weight_map\"; %s; download it again", path);
    json_object_foreach((json_t *)map, tensor, value) {
        const char *name = json_string_value(value);
        if (!name || !*name || *name == '.' || strchr(name, '/'))
            return fail(e, EXIT_DATA, "the index names no file beside it for tensor %s; %s; download it again",
                        text_shown(tensor).text, path);
        if (find_file(s, name) < 0 && !add_shard(s, path, tensor, name, e)) return false;
        if (!safetensors_find(&s->files[find_file(s, name)], tensor)) {
            return fail(e, EXIT_DATA, "tensor %s is not in %s, as the index says; %s; download both again",
                        text_shown(tensor).text, text_shown(name).text, path);
        }
    }
    for (int i = 0; i < s->file_count; i++) {
        if (!check_shard(&s->files[i], path, map, e)) return false;
    }
    return true;
}

static bool add_indexed(Source *s, const char *index, Error *e) {
    json_t *json = json_read_file(index, index_limit, e);
    bool done = json && add_shards(s, index, json_object_get(json, "weight_map"), e);
    json_decref(json);
    return done;
}

/* "model.safetensors", or "model-00001-of-00003.safetensors": what transformers loads by itself. */
static bool is_model_file(const char *name) {
    int read = 0;
    sscanf(name, "model-%*5[0-9]-of-%*5[0-9].safetensors%n", &read);
    return strcmp(name, "model.safetensors") == 0 || (read > 0 && !name[read]);
}

/* Whoever asks for the weights of a directory gets one answer. A second set of them, left by another save or
 * download, is refused, since only the user knows which is meant. */
static bool check_one_set(const Source *s, Error *e) {
    const char *name = NULL;
    DIR *d = opendir(s->path.text);
    if (!d)
        return fail(e, file_code(errno), "cannot list a directory: %s; %s; check the disk", strerror(errno),
                    s->path.text);
    bool done;
    do {
        done = directory_next(d, s->path.text, &name, e);
        if (!name || !is_model_file(name) || find_file(s, name) >= 0) continue;
        done = fail(e, EXIT_DATA, "two sets of weights are there, %s and %s; %s; move the one that is not meant away",
                    s->file_count > 1 || strcmp(base_name(s->files[0].path.text), "model.safetensors") != 0
                        ? "model.safetensors.index.json"
                        : "model.safetensors",
                    name, s->path.text);
    } while (done && name);
    closedir(d);
    return done;
}

/* Weights that mop does not read, by the file that tells of them. */
static const struct {
    const char *name, *what;
} foreign[] = {
    {"pytorch_model.bin", "weights are there as pytorch_model.bin alone"},
    {"pytorch_model.bin.index.json", "weights are there as pytorch_model.bin shards alone"},
    {"consolidated.safetensors", "weights are there as consolidated.safetensors alone"},
    {"consolidated.00.pth", "weights are there as consolidated.*.pth alone"},
    {"adapter_config.json", "an adapter is there and not the model that it changes"},
};

static bool no_weights(const Source *s, Error *e) {
    for (size_t i = 0; i < COUNT(foreign); i++) {
        bool there;
        if (!file_exists(path_join(s->path.text, foreign[i].name).text, &there, e)) return false;
        if (!there) continue;
        return fail(e, EXIT_DATA,
                    "%s; %s; load it in Python with transformers (an adapter with peft, and merge it), "
                    "and write it with model.save_pretrained(DIR)",
                    foreign[i].what, s->path.text);
    }
    return fail(e, EXIT_DATA,
                "neither model.safetensors nor model.safetensors.index.json is there; %s; name a model's directory",
                s->path.text);
}

static bool add_model(Source *s, Error *e) {
    FileKind kind;
    if (!file_kind(s->path.text, &kind, e)) return false;
    if (kind == KIND_NONE)
        return fail(e, EXIT_DATA, "%s: cannot open weights: nothing is there; check the path", s->path.text);
    if (kind != KIND_DIRECTORY) return add_file(s, s->path.text, e);
    Path index = path_join(s->path.text, "model.safetensors.index.json"),
         whole = path_join(s->path.text, "model.safetensors"), adapter = path_join(s->path.text, "adapter_config.json");
    bool indexed, single, adapted;
    if (!file_exists(index.text, &indexed, e) || !file_exists(whole.text, &single, e) ||
        !file_exists(adapter.text, &adapted, e))
        return false;
    if (!indexed && !single) return no_weights(s, e);
    if (adapted) {
        return fail(e, EXIT_DATA,
                    "an adapter lies beside the weights, which transformers would add to them; %s; merge "
                    "it, or move adapter_config.json away",
                    s->path.text);
    }
    bool added = indexed ? add_indexed(s, index.text, e) : add_file(s, whole.text, e);
    return added && check_one_set(s, e);
}

static bool add_state(Source *s, Error *e) {
    for (int64_t i = 0; i < s->manifest.count; i++) {
        const char *name = s->manifest.files[i].name;
        if (strncmp(name, "optim-", 6) == 0 && !add_file(s, path_join(s->path.text, name).text, e)) return false;
    }
    return s->file_count > s->model_files ||
           fail(e, EXIT_DATA, "the checkpoint holds no optimizer state; %s; load it with model.path", s->path.text);
}

/* ---- Against the manifest --------------------------------------------------------------------- */

static bool is_weights(const char *name) {
    return strstr(name, ".safetensors") && !strstr(name, ".json");
}

/* A file's header was hashed when it was parsed; its tensors are when they are read. */
static bool check_header(const Source *s, int i, Error *e) {
    const Safetensors *f = &s->files[i];
    const ManifestFile *m = s->listed[i];
    if (!m)
        return fail(e, EXIT_DATA, "checkpoint is damaged: a file is not in its manifest; %s; %s", f->path.text, advice);
    if (m->bytes != f->bytes) {
        return fail(e, EXIT_DATA, "checkpoint is damaged: a file has %lld bytes instead of %lld; %s; %s",
                    (long long)f->bytes, (long long)m->bytes, f->path.text, advice);
    }
    if (m->extents[0].end != f->data)
        return fail(e, EXIT_DATA, "checkpoint is damaged: a header is not as it was written; %s; %s", f->path.text,
                    advice);
    return extent_check(&m->extents[0], f->hash, f->path.text, e);
}

static bool check_listed(Source *s, Error *e) {
    s->listed = calloc((size_t)s->file_count, sizeof *s->listed);
    if (!s->listed) return out_of_memory(s, e);
    for (int i = 0; i < s->file_count; i++) {
        s->listed[i] = manifest_find(&s->manifest, base_name(s->files[i].path.text));
        if (!check_header(s, i, e)) return false;
    }
    for (int64_t i = 0; i < s->manifest.count; i++) {
        const ManifestFile *m = &s->manifest.files[i];
        if (!is_weights(m->name) && !manifest_verify_file(m, s->path.text, s->raw, e)) return false;
    }
    return true;
}

/* ---- Opening ---------------------------------------------------------------------------------- */

static bool open_all(Source *s, bool state, Error *e) {
    s->values = malloc(EXTENT_BYTES);
    s->raw = malloc(EXTENT_BYTES);
    if (!s->values || !s->raw) return out_of_memory(s, e);
    bool there;
    if (!manifest_exists(s->path.text, &there, e)) return false;
    s->verified = state || there;
    if (s->verified && !manifest_read(&s->manifest, s->path.text, e)) return false;
    if (!add_model(s, e)) return false;
    s->model_files = s->file_count;
    return (!state || add_state(s, e)) && (!s->verified || check_listed(s, e));
}

bool source_open(Source *s, const char *path, bool state, Error *e) {
    *s = (Source){.raw_file = -1};
    snprintf(s->path.text, sizeof s->path.text, "%s", path);
    if (open_all(s, state, e)) return true;
    source_close(s);
    return false;
}

void source_close(Source *s) {
    for (int i = 0; i < s->file_count; i++) safetensors_close(&s->files[i]);
    manifest_close(&s->manifest);
    free(s->files);
    free(s->listed);
    free(s->values);
    free(s->raw);
    *s = (Source){.raw_file = -1};
}

/* ---- Reading ---------------------------------------------------------------------------------- */

static bool hold(Source *s, int file, int64_t begin, int64_t end, Error *e) {
    s->raw_file = -1;
    if (!safetensors_read(&s->files[file], begin, (size_t)(end - begin), s->raw, e)) return false;
    s->raw_file = file;
    s->raw_begin = begin;
    s->raw_end = end;
    return true;
}

static bool hold_extent(Source *s, int file, const StoredTensor *t, int64_t at, Error *e) {
    const Extent *x = manifest_extent(s->listed[file], at);
    const char *path = s->files[file].path.text;
    if (x->begin < t->begin || x->end > t->end || x->end - x->begin > EXTENT_BYTES ||
        (x->begin - t->begin) % stored_bytes(t->type) != 0 || (x->end - t->begin) % stored_bytes(t->type) != 0) {
        return fail(e, EXIT_DATA, "checkpoint is damaged: its manifest does not follow its tensors; %s, tensor %s; %s",
                    path, t->name, advice);
    }
    if (!hold(s, file, x->begin, x->end, e)) return false;
    if (extent_check(x, XXH3_128bits(s->raw, (size_t)(x->end - x->begin)), path, e)) return true;
    s->raw_file = -1;
    return false;
}

int64_t source_piece(Source *s, const Found *f, int64_t at, int64_t count, Type type, Error *e) {
    const StoredTensor *t = f->tensor;
    int64_t each = stored_bytes(t->type), begin = t->begin + (f->first + at) * each;
    MUST(count > 0 && at >= 0 && begin + count * each <= t->end);
    bool held = s->raw_file == f->file && begin >= s->raw_begin && begin < s->raw_end;
    if (!held && s->verified && !hold_extent(s, f->file, t, begin, e)) return 0;
    if (!held && !s->verified && !hold(s, f->file, begin, begin + min64(count * each, EXTENT_BYTES), e)) return 0;
    int64_t n = min64(count, min64((s->raw_end - begin) / each, EXTENT_BYTES / (int64_t)type_bytes(type)));
    stored_convert(type, s->values, t->type, s->raw + (begin - s->raw_begin), n);
    return n;
}
