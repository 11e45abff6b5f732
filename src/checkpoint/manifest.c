/* Writing and reading manifests. The text ends with its own hash at a fixed distance from its end, so one
 * flipped bit in the manifest is as visible as one in the weights; only then is it parsed, and still believed
 * in nothing. */
#define _POSIX_C_SOURCE 200809L
#include "checkpoint/manifest.h"
#include "base/file.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MANIFEST_VERSION = 1, HEX = 2 * sizeof(XXH128_canonical_t) };

static const size_t manifest_limit = (size_t)1 << 30;
static const char trailer_begin[] = ",\n \"checksum\": \"", trailer_end[] = "\"}\n";
enum { TRAILER = sizeof trailer_begin - 1 + HEX + sizeof trailer_end - 1 };
static const char *advice = "use another checkpoint";

XXH128_canonical_t extent_hash(const void *data, size_t bytes) {
    XXH128_canonical_t c;
    XXH128_canonicalFromHash(&c, XXH3_128bits(data, bytes));
    return c;
}

typedef struct {
    char text[HEX + 1];
} Hex;

static Hex hex_of(XXH128_canonical_t hash) {
    Hex h;
    for (size_t i = 0; i < sizeof hash.digest; i++) snprintf(h.text + 2 * i, 3, "%02x", hash.digest[i]);
    return h;
}

static bool hash_from(const char *hex, XXH128_canonical_t *out) {
    static const char digits[] = "0123456789abcdef";
    if (!hex || strlen(hex) != HEX || strspn(hex, digits) != HEX) return false;
    for (size_t i = 0; i < sizeof out->digest; i++) {
        size_t high = (size_t)(strchr(digits, hex[2 * i]) - digits),
               low = (size_t)(strchr(digits, hex[2 * i + 1]) - digits);
        out->digest[i] = (unsigned char)(high << 4 | low);
    }
    return true;
}

/* ---- Writing ---------------------------------------------------------------------------------- */

/* The extents from *next on that begin before `end`, as a JSON list. */
static void add_extents(Text *t, const ManifestFile *f, int64_t *next, int64_t end) {
    text_add(t, "[");
    for (bool first = true; *next < f->count && f->extents[*next].begin < end; first = false) {
        const Extent *x = &f->extents[(*next)++];
        text_add(t, "%s[%lld,%lld,\"%s\"]", first ? "" : ",", (long long)x->begin, (long long)x->end,
                 hex_of(x->hash).text);
    }
    text_add(t, "]");
}

/* Kinds in the order in which they lie in a file. */
static void add_tensors(Text *t, const ManifestFile *f, int64_t *next, const Placement *p, int file) {
    static const StoreKind in_order[PLACED_KINDS] = {STORE_WEIGHT, STORE_M, STORE_V, STORE_MASTER};
    bool first = true;
    for (int64_t i = 0; i < p->count; i++) {
        for (int k = 0; k < PLACED_KINDS; k++) {
            const Placed *tensor = &p->tensors[i];
            StoreKind kind = in_order[k];
            char name[PLACED_NAME];
            if (tensor->at[kind].file != file) continue;
            placed_name(p, tensor, kind, name);
            text_add(t, "%s\n   \"%s\": ", first ? "" : ",", name);
            add_extents(t, f, next, tensor->at[kind].begin + tensor->elements * (int64_t)type_bytes(p->type[kind]));
            first = false;
        }
    }
}

static void add_file(Text *t, const ManifestFile *f, const Placement *p, int file) {
    bool placed = file < p->file_count;
    int64_t next = 0, header = placed ? (int64_t)p->files[file].header.text.bytes : f->bytes;
    text_add(t, "%s\n  \"%s\": {\"bytes\": %lld, \"extents\": ", file > 0 ? "," : "", f->name, (long long)f->bytes);
    add_extents(t, f, &next, header);
    text_add(t, ", \"tensors\": {");
    if (placed) add_tensors(t, f, &next, p, file);
    text_add(t, "}}");
    MUST(next == f->count || t->failed);
}

bool manifest_write(const Manifest *m, const Placement *p, const char *directory, Error *e) {
    Text t = {0};
    text_add(&t, "{\"version\": %d, \"mop\": \"%s\", \"step\": %lld, \"files\": {", MANIFEST_VERSION, MOP_VERSION,
             (long long)m->step);
    for (int64_t f = 0; f < m->count; f++) add_file(&t, &m->files[f], p, (int)f);
    text_add(&t, "}");
    if (!t.failed) text_add(&t, "%s%s%s", trailer_begin, hex_of(extent_hash(t.text, t.bytes)).text, trailer_end);
    Path path = path_join(directory, "manifest.json");
    bool done = t.failed ? fail(e, EXIT_MEMORY, "out of memory for a manifest; %s; free some memory", path.text)
                         : file_write(path.text, t.text, t.bytes, e);
    free(t.text);
    return done;
}

/* ---- Reading ---------------------------------------------------------------------------------- */

static bool bad(const char *path, const char *what, const char *name, Error *e) {
    return fail(e, EXIT_DATA, "checkpoint is damaged: %s; %s%s%s; %s", what, path, *name ? ", file " : "",
                text_shown(name).text, advice);
}

static bool check_trailer(const char *text, size_t bytes, const char *path, Error *e) {
    if (bytes <= TRAILER) return bad(path, "its manifest is cut short", "", e);
    const char *tail = text + bytes - TRAILER, *hex = tail + sizeof trailer_begin - 1;
    Hex found = hex_of(extent_hash(text, bytes - TRAILER));
    if (memcmp(tail, trailer_begin, sizeof trailer_begin - 1) == 0 && memcmp(hex, found.text, HEX) == 0 &&
        memcmp(hex + HEX, trailer_end, sizeof trailer_end - 1) == 0)
        return true;
    return bad(path, "its manifest is not as it was written", "", e);
}

static size_t count_extents(const json_t *file) {
    const char *name;
    json_t *list;
    size_t count = json_array_size(json_object_get(file, "extents"));
    json_object_foreach(json_object_get(file, "tensors"), name, list) count += json_array_size(list);
    return count;
}

static bool take_extents(ManifestFile *f, const json_t *list) {
    size_t i;
    const json_t *entry;
    json_array_foreach(list, i, entry) {
        const json_t *begin = json_array_get(entry, 0), *end = json_array_get(entry, 1);
        Extent *x = &f->extents[f->count++];
        if (!json_is_integer(begin) || !json_is_integer(end) ||
            !hash_from(json_string_value(json_array_get(entry, 2)), &x->hash))
            return false;
        x->begin = json_integer_value(begin);
        x->end = json_integer_value(end);
    }
    return true;
}

static int by_begin(const void *x, const void *y) {
    const Extent *a = x, *b = y;
    return (a->begin > b->begin) - (a->begin < b->begin);
}

static bool covers(const ManifestFile *f) {
    int64_t at = 0;
    for (int64_t i = 0; i < f->count; i++) {
        if (f->extents[i].begin != at || f->extents[i].end <= at) return false;
        at = f->extents[i].end;
    }
    return at == f->bytes;
}

/* A plain name: it is joined with the directory, and must not leave it. */
static bool is_plain(const char *name) {
    return *name && *name != '.' && !strchr(name, '/') && strlen(name) < sizeof((ManifestFile *)0)->name;
}

static bool read_file(ManifestFile *f, const char *name, const json_t *file, const char *path, Error *e) {
    const char *tensor;
    json_t *list;
    if (!is_plain(name)) return bad(path, "its manifest names a file that cannot be", name, e);
    snprintf(f->name, sizeof f->name, "%s", name);
    if (!json_int(file, "bytes", -1, 0, INT64_MAX, &f->bytes, path, e)) return false;
    f->extents =
        calloc(count_extents(file) + 1, sizeof *f->extents); /* no more than the text that was read has brackets */
    if (!f->extents) return fail(e, EXIT_MEMORY, "out of memory for a manifest; %s; free some memory", path);
    bool taken = take_extents(f, json_object_get(file, "extents"));
    json_object_foreach(json_object_get(file, "tensors"), tensor, list) taken = taken && take_extents(f, list);
    if (!taken) return bad(path, "its manifest has a malformed extent", name, e);
    qsort(f->extents, (size_t)f->count, sizeof *f->extents, by_begin);
    return covers(f) || bad(path, "its manifest does not cover a file", name, e);
}

static bool read_files(Manifest *m, const json_t *json, const char *path, Error *e) {
    int64_t version;
    if (!json_int(json, "version", 0, 0, INT32_MAX, &version, path, e)) return false;
    if (version != MANIFEST_VERSION) {
        return fail(e, EXIT_USAGE, /* whole, so no older one may be taken for it */
                    "checkpoint of version %lld, this mop reads version %d; %s; use the mop that wrote it",
                    (long long)version, MANIFEST_VERSION, path);
    }
    if (!json_int(json, "step", 0, 0, INT64_MAX, &m->step, path, e)) return false;
    const json_t *files = json_object_get(json, "files");
    const char *name;
    json_t *file;
    m->files = calloc(json_object_size(files) + 1, sizeof *m->files);
    if (!m->files) return fail(e, EXIT_MEMORY, "out of memory for a manifest; %s; free some memory", path);
    json_object_foreach((json_t *)files, name, file) {
        if (!read_file(&m->files[m->count++], name, file, path, e)) return false;
    }
    return true;
}

bool manifest_exists(const char *directory, bool *exists, Error *e) {
    return file_exists(path_join(directory, "manifest.json").text, exists, e);
}

bool manifest_read(Manifest *m, const char *directory, Error *e) {
    *m = (Manifest){0};
    Path path = path_join(directory, "manifest.json");
    size_t bytes;
    char *text = file_read(path.text, manifest_limit, &bytes, e);
    if (!text) return false;
    json_t *json = check_trailer(text, bytes, path.text, e) ? json_read_text(text, bytes, path.text, e) : NULL;
    free(text);
    bool done = json && read_files(m, json, path.text, e);
    json_decref(json);
    if (!done) manifest_close(m);
    return done;
}

void manifest_close(Manifest *m) {
    for (int64_t i = 0; i < m->count; i++) free(m->files[i].extents);
    free(m->files);
    *m = (Manifest){0};
}

const ManifestFile *manifest_find(const Manifest *m, const char *name) {
    for (int64_t i = 0; i < m->count; i++) {
        if (strcmp(m->files[i].name, name) == 0) return &m->files[i];
    }
    return NULL;
}

const Extent *manifest_extent(const ManifestFile *f, int64_t at) {
    int64_t low = 0, high = f->count;
    MUST(at >= 0 && at < f->bytes);
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (f->extents[middle].begin <= at)
            low = middle;
        else
            high = middle;
    }
    return &f->extents[low];
}

/* ---- Verifying -------------------------------------------------------------------------------- */

/* The tensor at a byte of a sound file, for messages. */
static void name_tensor(const char *path, int64_t at, char *out, size_t bytes) {
    Safetensors f;
    Error ignored = {0};
    snprintf(out, bytes, "byte %lld", (long long)at);
    if (!strstr(path, ".safetensors") || !safetensors_open(&f, path, &ignored)) return;
    if (at < f.data) snprintf(out, bytes, "the header");
    for (int64_t i = 0; i < f.count; i++) {
        if (at >= f.tensors[i].begin && at < f.tensors[i].end) snprintf(out, bytes, "tensor %s", f.tensors[i].name);
    }
    safetensors_close(&f);
}

static bool hash_bytes(const Extent *x, int fd, const char *path, void *buffer, XXH3_state_t *state, Error *e) {
    for (int64_t at = x->begin; at < x->end;) {
        ssize_t n = pread(fd, buffer, (size_t)min64(EXTENT_BYTES, x->end - at), (off_t)at);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0)
            return fail(e, EXIT_IO, "cannot read: %s; %s, byte %lld; check the disk", strerror(errno), path,
                        (long long)at);
        if (n == 0)
            return fail(e, EXIT_DATA, "checkpoint is damaged: a file ends at byte %lld; %s; %s", (long long)at, path,
                        advice);
        XXH3_128bits_update(state, buffer, (size_t)n);
        at += n;
    }
    return true;
}

bool extent_verify(const Extent *x, int fd, const char *path, void *buffer, Error *e) {
    XXH3_state_t *state = XXH3_createState();
    if (!state) return fail(e, EXIT_MEMORY, "out of memory while verifying; %s; free some memory", path);
    XXH3_128bits_reset(state);
    bool read = hash_bytes(x, fd, path, buffer, state, e);
    XXH128_hash_t hash = XXH3_128bits_digest(state);
    XXH3_freeState(state);
    return read && extent_check(x, hash, path, e);
}

bool extent_check(const Extent *x, XXH128_hash_t hash, const char *path, Error *e) {
    XXH128_canonical_t found;
    XXH128_canonicalFromHash(&found, hash);
    if (memcmp(&found, &x->hash, sizeof found) == 0) return true;
    char tensor[256];
    name_tensor(path, x->begin, tensor, sizeof tensor);
    return fail(e, EXIT_DATA, "checkpoint is damaged: bytes %lld to %lld are not those that were written; %s, %s; %s",
                (long long)x->begin, (long long)x->end, path, tensor, advice);
}

static bool check_size(const ManifestFile *f, int fd, const char *path, Error *e) {
    struct stat s;
    if (fstat(fd, &s) != 0) return fail(e, EXIT_IO, "cannot read: %s; %s; check the disk", strerror(errno), path);
    if (S_ISREG(s.st_mode) && s.st_size == f->bytes) return true;
    return fail(e, EXIT_DATA, "checkpoint is damaged: a file has %lld bytes instead of %lld; %s; %s",
                (long long)s.st_size, (long long)f->bytes, path, advice);
}

bool manifest_verify_file(const ManifestFile *f, const char *directory, void *buffer, Error *e) {
    Path path = path_join(directory, f->name);
    int fd = open(path.text, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        ExitCode code = file_code(errno);
        if (code == EXIT_DATA) return bad(path.text, "one of its files is missing", f->name, e);
        return fail(e, code, "cannot open: %s; %s; check the disk, the path and its rights", strerror(errno),
                    path.text);
    }
    bool sound = check_size(f, fd, path.text, e);
    for (int64_t i = 0; sound && i < f->count; i++) sound = extent_verify(&f->extents[i], fd, path.text, buffer, e);
    close(fd);
    return sound;
}
