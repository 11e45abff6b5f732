/* The safetensors format: malformed files are refused by name, sound ones are read to the bit, and what we
 * write is sound. */
#define _GNU_SOURCE
#include "checkpoint/safetensors.h"
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
/* cmocka.h wants these before it */
#include <cmocka.h>

/* A file in memory: the size that it states, the header's text, zeros as data. */
static int file_of(uint64_t stated, const char *header, size_t header_bytes, size_t data_bytes) {
    int fd = memfd_create("safetensors", MFD_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, &stated, 8), 8);
    assert_int_equal(write(fd, header, header_bytes), (ssize_t)header_bytes);
    assert_int_equal(ftruncate(fd, (off_t)(8 + header_bytes + data_bytes)), 0);
    return fd;
}

/* ---- Malformed files -------------------------------------------------------------------------- */

typedef struct {
    const char *name, *header;
    size_t data;
    int64_t more; /* the stated header size minus the real one */
    ExitCode code;
    const char *message;
} Malformed;

#define ONE(dtype, shape, offsets) "{\"a\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"
#define TWO(x, y)                                                                                                      \
    "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":" x                                                      \
    "},\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":" y "}}"

static const Malformed malformed[] = {
    {"header of no bytes", "", 0, 0, EXIT_DATA, "less than the two bytes"},
    {"header of one byte", "{", 0, 0, EXIT_DATA, "less than the two bytes"},
    {"header longer than the file", "{}", 0, 1, EXIT_DATA, "more bytes than the file has"},
    {"header of 2^63 bytes", "{}", 0, INT64_MAX, EXIT_DATA, "more than 100 MiB"},
    {"header of 2^64 - 1 bytes", "{}", 0, -3, EXIT_DATA, "more than 100 MiB"},
    {"header of 100 MiB and a byte", "{}", 0, (100 << 20) - 1, EXIT_DATA, "more than 100 MiB"},
    {"header cut short", ONE("\"F32\"", "[2]", "[0,8]"), 8, -4, EXIT_DATA, "not valid JSON"},
    {"header with data in it", ONE("\"F32\"", "[2]", "[0,8]"), 8, 8, EXIT_DATA, "not valid JSON"},
    {"not JSON", "{a}", 0, 0, EXIT_DATA, "not valid JSON"},
    {"a list", "[]", 0, 0, EXIT_DATA, "does not begin with {"},
    {"a space first", " {}", 0, 0, EXIT_DATA, "does not begin with {"},
    {"not UTF-8", "{\"\xff\":1}", 0, 0, EXIT_DATA, "not valid JSON"},
    {"a name twice",
     "{\"a\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},\"a\":{\"dtype\":\"F32\",\"shape\":[0],\"data_"
     "offsets\":[0,0]}}",
     0, 0, EXIT_DATA, "duplicate object key"},
    {"a name with NUL", "{\"a\\u0000\":1}", 0, 0, EXIT_DATA, "not valid JSON"},
    {"deep nesting",
     "{\"a\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[", 0,
     0, EXIT_DATA, "nested deeper"},
    {"metadata that is a list", "{\"__metadata__\":[]}", 0, 0, EXIT_DATA, "__metadata__ is not an object"},
    {"metadata with a number", "{\"__metadata__\":{\"format\":1}}", 0, 0, EXIT_DATA, "not text"},
    {"an entry that is a number", "{\"a\":1}", 0, 0, EXIT_DATA, "not an object"},
    {"an entry that is null", "{\"a\":null}", 0, 0, EXIT_DATA, "not an object"},
    {"no dtype", "{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 8, 0, EXIT_DATA, "no \"dtype\""},
    {"dtype a number", ONE("4", "[2]", "[0,8]"), 8, 0, EXIT_DATA, "no \"dtype\""},
    {"unknown dtype", ONE("\"F4\"", "[2]", "[0,1]"), 1, 0, EXIT_DATA, "type \"F4\" is unknown"},
    {"dtype in small letters", ONE("\"f32\"", "[2]", "[0,8]"), 8, 0, EXIT_DATA, "type \"f32\" is unknown"},
    {"no shape", "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 8, 0, EXIT_DATA, "no \"shape\""},
    {"shape a number", ONE("\"F32\"", "2", "[0,8]"), 8, 0, EXIT_DATA, "no \"shape\""},
    {"shape of nine sizes", ONE("\"F32\"", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4, 0, EXIT_DATA, "more than 8 dimensions"},
    {"negative size", ONE("\"F32\"", "[-2]", "[0,8]"), 8, 0, EXIT_DATA, "not a whole number"},
    {"fractional size", ONE("\"F32\"", "[2.0]", "[0,8]"), 8, 0, EXIT_DATA, "not a whole number"},
    {"size beyond int64", ONE("\"F32\"", "[9223372036854775808]", "[0,8]"), 8, 0, EXIT_DATA, "not valid JSON"},
    {"elements overflow", ONE("\"F32\"", "[4294967296,4294967296]", "[0,8]"), 8, 0, EXIT_DATA, "more elements"},
    {"bytes overflow", ONE("\"F64\"", "[4611686018427387904]", "[0,0]"), 0, 0, EXIT_DATA, "more bytes"},
    {"no offsets", "{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, 0, EXIT_DATA, "no \"data_offsets\""},
    {"one offset", ONE("\"F32\"", "[2]", "[0]"), 8, 0, EXIT_DATA, "no \"data_offsets\""},
    {"three offsets", ONE("\"F32\"", "[2]", "[0,8,16]"), 8, 0, EXIT_DATA, "no \"data_offsets\""},
    {"offsets that are text", ONE("\"F32\"", "[2]", "[\"0\",\"8\"]"), 8, 0, EXIT_DATA, "no \"data_offsets\""},
    {"negative offset", ONE("\"F32\"", "[2]", "[-8,0]"), 8, 0, EXIT_DATA, "ends before it begins"},
    {"end before begin", ONE("\"F32\"", "[2]", "[8,0]"), 8, 0, EXIT_DATA, "ends before it begins"},
    {"beyond the end", ONE("\"F32\"", "[4]", "[0,16]"), 8, 0, EXIT_DATA, "beyond the end of the file"},
    {"smaller than its shape", ONE("\"F32\"", "[4]", "[0,8]"), 8, 0, EXIT_DATA, "not as large as its type and shape"},
    {"larger than its shape", ONE("\"BF16\"", "[2]", "[0,8]"), 8, 0, EXIT_DATA, "not as large as its type and shape"},
    {"overlapping", TWO("[0,8]", "[4,12]"), 12, 0, EXIT_DATA, "tensor b"},
    {"the same place twice", TWO("[0,8]", "[0,8]"), 8, 0, EXIT_DATA, "overlaps"},
    {"a hole between", TWO("[0,8]", "[12,20]"), 20, 0, EXIT_DATA, "hole before its data"},
    {"a hole at the start", TWO("[4,12]", "[12,20]"), 20, 0, EXIT_DATA, "hole before its data"},
    {"bytes after the last", TWO("[0,8]", "[8,16]"), 17, 0, EXIT_DATA, "bytes follow its last tensor"},
    {"bytes and no tensor", "{}", 1, 0, EXIT_DATA, "bytes follow its last tensor"},
};

static void malformed_files_are_refused_by_name(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(malformed); i++) {
        const Malformed *m = &malformed[i];
        Safetensors f;
        Error e = {0};
        size_t bytes = strlen(m->header);
        if (safetensors_open_fd(&f, file_of(bytes + (uint64_t)m->more, m->header, bytes, m->data), "bad.safetensors",
                                &e))
            fail_msg("%s: accepted", m->name);
        if (e.code != m->code || !strstr(e.text, m->message) || !strstr(e.text, "bad.safetensors"))
            fail_msg("%s: error[%d] \"%s\", expected error[%d] \"%s\"", m->name, e.code, e.text, m->code, m->message);
        assert_int_equal(f.fd, -1);
    }
}

static void a_file_shorter_than_its_first_eight_bytes_is_refused(void **state) {
    (void)state;
    for (off_t bytes = 0; bytes < 8; bytes++) {
        Safetensors f;
        Error e = {0};
        int fd = memfd_create("short", MFD_CLOEXEC);
        assert_int_equal(ftruncate(fd, bytes), 0);
        assert_false(safetensors_open_fd(&f, fd, "short", &e));
        assert_int_equal(e.code, EXIT_DATA);
    }
}

static void missing_files_and_directories_are_refused(void **state) {
    (void)state;
    Safetensors f;
    Error missing = {0}, directory = {0};
    assert_false(safetensors_open(&f, "tests/nowhere.safetensors", &missing));
    assert_int_equal(missing.code, EXIT_DATA);
    assert_false(safetensors_open(&f, "tests", &directory));
    assert_int_equal(directory.code, EXIT_DATA);
}

static void a_file_that_shrinks_while_open_is_an_error_not_a_crash(void **state) {
    (void)state;
    static const char header[] = ONE("\"F32\"", "[2]", "[0,8]");
    int fd = file_of(sizeof header - 1, header, sizeof header - 1, 8);
    Safetensors f;
    Error e = {0};
    float values[2];
    assert_true(safetensors_open_fd(&f, fd, "shrinking", &e));
    assert_int_equal(ftruncate(fd, 8 + sizeof header - 1 + 4), 0);
    assert_false(safetensors_read(&f, f.tensors[0].begin, 8, values, &e));
    assert_int_equal(e.code, EXIT_DATA);
    safetensors_close(&f);
}

/* ---- Sound files ------------------------------------------------------------------------------ */

static void sound_files_are_read(void **state) {
    (void)state;
    static const char header[] = "{\"__metadata__\":{\"format\":\"pt\"},\"of "
                                 "nothing\":{\"dtype\":\"F32\",\"shape\":[0,3],\"data_offsets\":[4,4]},"
                                 "\"scalar\":{\"dtype\":\"I32\",\"shape\":[],\"data_offsets\":[0,4],\"unknown\":1},"
                                 "\"z\":{\"dtype\":\"BOOL\",\"shape\":[3],\"data_offsets\":[4,7]}}   ";
    Safetensors f;
    Error e = {0};
    assert_true(safetensors_open_fd(&f, file_of(sizeof header - 1, header, sizeof header - 1, 7), "sound", &e));
    assert_int_equal(f.count, 3);
    assert_string_equal(json_string_value(json_object_get(f.metadata, "format")), "pt");
    const StoredTensor *scalar = safetensors_find(&f, "scalar"), *nothing = safetensors_find(&f, "of nothing");
    assert_int_equal(scalar->dims, 0);
    assert_int_equal(scalar->elements, 1);
    assert_int_equal(scalar->begin, f.data);
    assert_int_equal(nothing->elements, 0);
    assert_int_equal(safetensors_find(&f, "z")->end, f.bytes);
    assert_null(safetensors_find(&f, "nowhere"));
    assert_null(safetensors_find(&f, "__metadata__"));
    safetensors_close(&f);
}

static void what_the_header_maker_makes_is_read_back(void **state) {
    (void)state;
    Header h;
    header_begin(&h);
    header_add(&h, "b.weight", STORED_F32, 2, (int64_t[]){3, 5});
    header_add(&h, "a.weight", STORED_BF16, 1, (int64_t[]){7});
    assert_true(header_end(&h));
    assert_int_equal(h.text.bytes % 8, 0);
    assert_int_equal(h.data, 60 + 14);
    int fd = memfd_create("made", MFD_CLOEXEC);
    assert_int_equal(write(fd, h.text.text, h.text.bytes), (ssize_t)h.text.bytes);
    assert_int_equal(ftruncate(fd, (off_t)h.text.bytes + h.data), 0);
    Safetensors f;
    Error e = {0};
    if (!safetensors_open_fd(&f, fd, "made", &e)) fail_msg("%s", e.text);
    const StoredTensor *b = safetensors_find(&f, "b.weight"), *a = safetensors_find(&f, "a.weight");
    assert_int_equal(f.data, h.text.bytes);
    assert_int_equal(b->begin, f.data);
    assert_int_equal(a->begin, f.data + 60);
    assert_true(b->dims == 2 && b->dim[0] == 3 && b->dim[1] == 5 && b->type == STORED_F32);
    assert_string_equal(json_string_value(json_object_get(f.metadata, "format")), "pt");
    safetensors_close(&f);
    free(h.text.text);
}

/* ---- Conversion ------------------------------------------------------------------------------- */

static void half_precision_numbers_convert_exactly(void **state) {
    (void)state;
    static const struct {
        uint16_t half;
        double value;
    } rows[] = {{0x0000, 0.0},
                {0x3c00, 1.0},
                {0xc000, -2.0},
                {0x7bff, 65504.0},
                {0x0400, 0x1p-14},
                {0x0001, 0x1p-24},
                {0x83ff, -1023 * 0x1p-24},
                {0x3555, 0x1.554p-2},
                {0x7c00, INFINITY},
                {0xfc00, -INFINITY}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        double x;
        float y;
        stored_convert(FP64, &x, STORED_F16, &rows[i].half, 1);
        stored_convert(FP32, &y, STORED_F16, &rows[i].half, 1);
        assert_true(x == rows[i].value && (double)y == rows[i].value);
    }
    double x;
    stored_convert(FP64, &x, STORED_F16, &(uint16_t){0x7e01}, 1);
    assert_true(isnan(x));
    stored_convert(FP64, &x, STORED_F16, &(uint16_t){0x8000}, 1);
    assert_true(x == 0 && signbit(x));
}

static void values_convert_between_all_real_types(void **state) {
    (void)state;
    const float values[4] = {1.5f, -0.15625f, 3.0e38f, 1.00390625f}; /* the last rounds up in bf16 */
    double wide[4];
    uint16_t narrow[4];
    stored_convert(FP64, wide, STORED_F32, values, 4);
    stored_convert(BF16, narrow, STORED_F32, values, 4);
    for (int i = 0; i < 4; i++) {
        assert_true(wide[i] == (double)values[i]);
        assert_int_equal(narrow[i], bf16_from_float(values[i]));
    }
    float back[4];
    stored_convert(FP32, back, STORED_BF16, narrow, 4);
    for (int i = 0; i < 4; i++) assert_true(back[i] == bf16_to_float(narrow[i]));
    stored_convert(FP32, back, STORED_F64, wide, 4);
    assert_memory_equal(back, values, sizeof back);
    const uint32_t strange[2] = {0x7fa00001, 0xffffffff}; /* NaNs pass to the bit where the type stays */
    uint32_t copy[2];
    stored_convert(FP32, copy, STORED_F32, strange, 2);
    assert_memory_equal(copy, strange, sizeof copy);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(malformed_files_are_refused_by_name),
        cmocka_unit_test(a_file_shorter_than_its_first_eight_bytes_is_refused),
        cmocka_unit_test(missing_files_and_directories_are_refused),
        cmocka_unit_test(a_file_that_shrinks_while_open_is_an_error_not_a_crash),
        cmocka_unit_test(sound_files_are_read),
        cmocka_unit_test(what_the_header_maker_makes_is_read_back),
        cmocka_unit_test(half_precision_numbers_convert_exactly),
        cmocka_unit_test(values_convert_between_all_real_types),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
