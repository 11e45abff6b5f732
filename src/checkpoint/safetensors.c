/* Reading and making safetensors files. Sizes stated by a file are compared with what the file has before they
 * are used; the data is read with pread, not mapped, because a file that shrinks while it is mapped kills its
 * reader. */
#define _POSIX_C_SOURCE 200809L
#include "checkpoint/safetensors.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "safetensors files are little-endian and read in place");

static const int64_t header_limit = (int64_t)100 << 20; /* the format's own */
static const char *advice = "make or download the file again";

/* ---- Types ------------------------------------------------------------------------------------ */

static const struct {
    const char *name;
    int bytes;
} stored[STORED_COUNT] = {
    [STORED_F64] = {"F64", 8},         [STORED_F32] = {"F32", 4},         [STORED_F16] = {"F16", 2},
    [STORED_BF16] = {"BF16", 2},       [STORED_I64] = {"I64", 8},         [STORED_I32] = {"I32", 4},
    [STORED_I16] = {"I16", 2},         [STORED_I8] = {"I8", 1},           [STORED_U64] = {"U64", 8},
    [STORED_U32] = {"U32", 4},         [STORED_U16] = {"U16", 2},         [STORED_U8] = {"U8", 1},
    [STORED_BOOL] = {"BOOL", 1},       [STORED_F8_E4M3] = {"F8_E4M3", 1}, [STORED_F8_E5M2] = {"F8_E5M2", 1},
    [STORED_F8_E8M0] = {"F8_E8M0", 1},
};

const char *stored_name(StoredType t) {
    return stored[t].name;
}

int64_t stored_bytes(StoredType t) {
    return stored[t].bytes;
}

bool stored_is_real(StoredType t) {
    return t <= STORED_BF16;
}

StoredType stored_from(Type t) {
    MUST(t == FP32 || t == BF16 || t == FP64);
    return t == FP32 ? STORED_F32 : t == BF16 ? STORED_BF16 : STORED_F64;
}

/* Exact: every half-precision number is an fp32. Denormals are mantissa times 2^-24. */
static float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
    if (exponent == 0) {
        float small = (float)mantissa * 0x1p-24f;
        return sign ? -small : small;
    }
    uint32_t bits = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | mantissa << 13;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static double get(StoredType t, const char *at) {
    uint16_t half;
    float single;
    double x;
    switch (t) {
    case STORED_F64: memcpy(&x, at, sizeof x); return x;
    case STORED_F32: memcpy(&single, at, sizeof single); return (double)single;
    case STORED_F16: memcpy(&half, at, sizeof half); return (double)half_to_float(half);
    default: memcpy(&half, at, sizeof half); return (double)bf16_to_float(half);
    }
}

static void put(Type t, char *at, double x) {
    float single = (float)x;
    uint16_t half = bf16_from_float(single);
    if (t == FP64)
        memcpy(at, &x, sizeof x);
    else if (t == FP32)
        memcpy(at, &single, sizeof single);
    else
        memcpy(at, &half, sizeof half);
}

void stored_convert(Type to_type, void *to, StoredType from_type, const void *from, int64_t count) {
    MUST(stored_is_real(from_type));
    size_t each = type_bytes(to_type), step = (size_t)stored_bytes(from_type);
    if (from_type == stored_from(to_type)) { /* to the bit, NaNs included */
        memcpy(to, from, (size_t)count * each);
        return;
    }
    for (size_t i = 0; i < (size_t)count; i++)
        put(to_type, (char *)to + i * each, get(from_type, (const char *)from + i * step));
}

/* ---- Reading bytes ---------------------------------------------------------------------------- */

bool safetensors_read(const Safetensors *f, int64_t at, size_t bytes, void *out, Error *e) {
    for (char *to = out; bytes > 0;) {
        ssize_t n = pread(f->fd, to, bytes, (off_t)at);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0)
            return fail(e, EXIT_IO, "cannot read: %s; %s, byte %lld; check the disk", strerror(errno), f->path.text,
                        (long long)at);
        if (n == 0)
            return fail(e, EXIT_DATA, "file ends at byte %lld, while it is being read; %s; %s", (long long)at,
                        f->path.text, advice);
        to += n;
        at += n;
        bytes -= (size_t)n;
    }
    return true;
}

static bool bad(const Safetensors *f, const char *what, Error *e) {
    return fail(e, EXIT_DATA, "not a sound safetensors file: %s; %s; %s", what, f->path.text, advice);
}

static bool bad_tensor(const Safetensors *f, const char *name, const char *what, Error *e) {
    return fail(e, EXIT_DATA, "not a sound safetensors file: %s; %s, tensor %s; %s", what, f->path.text,
                text_shown(name).text, advice);
}

/* ---- The header ------------------------------------------------------------------------------- */

static bool read_size(Safetensors *f, int64_t *header, Error *e) {
    struct stat s;
    if (fstat(f->fd, &s) != 0)
        return fail(e, EXIT_IO, "cannot read: %s; %s; check the disk", strerror(errno), f->path.text);
    if (!S_ISREG(s.st_mode)) return fail(e, EXIT_DATA, "not a file; %s; name a .safetensors file", f->path.text);
    f->bytes = s.st_size;
    uint64_t stated;
    if (f->bytes < 8) return bad(f, "it is shorter than 8 bytes", e);
    if (!safetensors_read(f, 0, sizeof stated, &stated, e)) return false;
    if (stated > (uint64_t)header_limit) return bad(f, "its header states more than 100 MiB", e);
    if ((int64_t)stated > f->bytes - 8) return bad(f, "its header states more bytes than the file has", e);
    if (stated < 2) return bad(f, "its header states less than the two bytes of {}", e);
    *header = (int64_t)stated;
    f->data = 8 + *header;
    return true;
}

static bool read_header(Safetensors *f, int64_t bytes, Error *e) {
    char *text = malloc((size_t)f->data);
    if (!text)
        return fail(e, EXIT_MEMORY, "out of memory for a header of %lld bytes; %s; free some memory", (long long)bytes,
                    f->path.text);
    if (safetensors_read(f, 0, (size_t)f->data, text, e)) {
        f->hash = XXH3_128bits(text, (size_t)f->data);
        if (text[8] != '{')
            bad(f, "its header does not begin with {", e);
        else
            f->header = json_read_text(text + 8, (size_t)bytes, f->path.text, e);
    }
    free(text);
    return f->header != NULL;
}

static bool check_metadata(Safetensors *f, Error *e) {
    const char *key;
    json_t *value;
    f->metadata = json_object_get(f->header, "__metadata__");
    if (f->metadata && !json_is_object(f->metadata)) return bad(f, "its __metadata__ is not an object", e);
    json_object_foreach(f->metadata, key, value) {
        if (!json_is_string(value)) return bad(f, "its __metadata__ holds something that is not text", e);
    }
    return true;
}

static bool read_type(const Safetensors *f, StoredTensor *t, const json_t *entry, Error *e) {
    const char *type = json_string_value(json_object_get(entry, "dtype"));
    if (!type) return bad_tensor(f, t->name, "it has no \"dtype\"", e);
    for (int i = 0; i < STORED_COUNT; i++) {
        if (strcmp(stored[i].name, type) != 0) continue;
        t->type = i;
        return true;
    }
    return fail(e, EXIT_DATA, "type \"%s\" is unknown; %s, tensor %s; convert the file to F32 or BF16",
                text_shown(type).text, f->path.text, text_shown(t->name).text);
}

static bool read_shape(const Safetensors *f, StoredTensor *t, const json_t *entry, int64_t *bytes, Error *e) {
    const json_t *shape = json_object_get(entry, "shape"), *each;
    size_t i;
    if (!json_is_array(shape)) return bad_tensor(f, t->name, "it has no \"shape\"", e);
    if (json_array_size(shape) > STORED_DIMS) return bad_tensor(f, t->name, "it has more than 8 dimensions", e);
    t->elements = 1;
    json_array_foreach(shape, i, each) {
        if (!json_is_integer(each) || json_integer_value(each) < 0)
            return bad_tensor(f, t->name, "a size in its shape is not a whole number", e);
        t->dim[t->dims++] = json_integer_value(each);
        if (!mul_size(t->elements, json_integer_value(each), &t->elements))
            return bad_tensor(f, t->name, "its shape has more elements than can be counted", e);
    }
    if (!mul_size(t->elements, stored_bytes(t->type), bytes))
        return bad_tensor(f, t->name, "its shape has more bytes than can be counted", e);
    return true;
}

static bool read_offsets(const Safetensors *f, StoredTensor *t, const json_t *entry, int64_t bytes, Error *e) {
    const json_t *offsets = json_object_get(entry, "data_offsets");
    const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end))
        return bad_tensor(f, t->name, "it has no \"data_offsets\" of two whole numbers", e);
    int64_t first = json_integer_value(begin), last = json_integer_value(end);
    if (first < 0 || last < first) return bad_tensor(f, t->name, "its data ends before it begins", e);
    if (last > f->bytes - f->data) return bad_tensor(f, t->name, "its data lies beyond the end of the file", e);
    if (last - first != bytes) return bad_tensor(f, t->name, "its data is not as large as its type and shape", e);
    t->begin = f->data + first;
    t->end = f->data + last;
    return true;
}

static bool read_tensor(const Safetensors *f, StoredTensor *t, const json_t *entry, Error *e) {
    int64_t bytes = 0;
    if (!json_is_object(entry)) return bad_tensor(f, t->name, "its entry is not an object", e);
    return read_type(f, t, entry, e) && read_shape(f, t, entry, &bytes, e) && read_offsets(f, t, entry, bytes, e);
}

static int by_place(const void *x, const void *y) {
    const StoredTensor *a = x, *b = y;
    if (a->begin != b->begin) return a->begin < b->begin ? -1 : 1;
    return (a->end > b->end) - (a->end < b->end);
}

static int by_name(const void *x, const void *y) {
    const StoredTensor *a = x, *b = y;
    return strcmp(a->name, b->name);
}

/* One after another, from the first byte of data to the last. */
static bool check_cover(Safetensors *f, Error *e) {
    int64_t at = f->data;
    qsort(f->tensors, (size_t)f->count, sizeof *f->tensors, by_place);
    for (int64_t i = 0; i < f->count; i++) {
        const StoredTensor *t = &f->tensors[i];
        if (t->begin < at) return bad_tensor(f, t->name, "its data overlaps another tensor's", e);
        if (t->begin > at) return bad_tensor(f, t->name, "there is a hole before its data", e);
        at = t->end;
    }
    return at == f->bytes || bad(f, "bytes follow its last tensor", e);
}

static bool read_tensors(Safetensors *f, Error *e) {
    const char *name;
    json_t *entry;
    f->tensors = calloc(json_object_size(f->header) + 1, sizeof *f->tensors); /* no more than the header has bytes */
    if (!f->tensors)
        return fail(e, EXIT_MEMORY, "out of memory for a list of tensors; %s; free some memory", f->path.text);
    json_object_foreach(f->header, name, entry) {
        if (strcmp(name, "__metadata__") == 0) continue;
        StoredTensor *t = &f->tensors[f->count];
        t->name = name;
        if (!read_tensor(f, t, entry, e)) return false;
        f->count++;
    }
    if (!check_cover(f, e)) return false;
    qsort(f->tensors, (size_t)f->count, sizeof *f->tensors, by_name);
    return true;
}

/* ---- Files ------------------------------------------------------------------------------------ */

bool safetensors_open_fd(Safetensors *f, int fd, const char *name, Error *e) {
    int64_t header = 0;
    *f = (Safetensors){.fd = fd};
    snprintf(f->path.text, sizeof f->path.text, "%s", name);
    if (read_size(f, &header, e) && read_header(f, header, e) && check_metadata(f, e) && read_tensors(f, e))
        return true;
    safetensors_close(f);
    return false;
}

bool safetensors_open(Safetensors *f, const char *path, Error *e) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) return safetensors_open_fd(f, fd, path, e);
    *f = (Safetensors){.fd = -1};
    bool missing = errno == ENOENT || errno == ENOTDIR;
    return fail(e, missing ? EXIT_DATA : EXIT_IO, "%s: cannot open: %s; check the path", path, strerror(errno));
}

void safetensors_close(Safetensors *f) {
    json_decref(f->header);
    free(f->tensors);
    if (f->fd >= 0) close(f->fd);
    *f = (Safetensors){.fd = -1};
}

const StoredTensor *safetensors_find(const Safetensors *f, const char *name) {
    StoredTensor key = {.name = name};
    return f->count ? bsearch(&key, f->tensors, (size_t)f->count, sizeof key, by_name) : NULL;
}

/* ---- Making a header -------------------------------------------------------------------------- */

enum { HEADER_ALIGN = 8 };

void header_begin(Header *h) {
    *h = (Header){0};
    text_add(&h->text, "%8s{\"__metadata__\":{\"format\":\"pt\"}",
             ""); /* older transformers refuse a file without it */
}

void header_add(Header *h, const char *name, StoredType type, int dims, const int64_t *dim) {
    MUST(!strpbrk(name, "\"\\") && dims <= STORED_DIMS);
    int64_t bytes = stored_bytes(type);
    text_add(&h->text, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", name, stored_name(type));
    for (int i = 0; i < dims; i++) {
        text_add(&h->text, "%s%lld", i > 0 ? "," : "", (long long)dim[i]);
        bytes *= dim[i];
    }
    text_add(&h->text, "],\"data_offsets\":[%lld,%lld]}", (long long)h->data, (long long)(h->data + bytes));
    h->data += bytes;
}

bool header_end(Header *h) {
    text_add(&h->text, "}");
    size_t beyond = h->text.bytes % HEADER_ALIGN;
    if (beyond) text_add(&h->text, "%*s", (int)(HEADER_ALIGN - beyond), "");
    if (h->text.failed) return false;
    uint64_t stated = h->text.bytes - 8;
    memcpy(h->text.text, &stated, sizeof stated);
    return true;
}
