/* The words every file uses: types, errors, text and files from outside, random numbers, JSON. */
#define _POSIX_C_SOURCE 200809L
#include "base/base.h"
#include "base/file.h"
#include "base/json.h"
#include "base/random.h"
#include <glob.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* cmocka.h wants setjmp.h before it; it has a macro fail(), hence the (fail)() below */
#include <cmocka.h>

static void assert_says(const Error *e, ExitCode code, const char *part) {
    if (e->code != code || !strstr(e->text, part))
        fail_msg("expected [%d] \"%s\", got [%d] \"%s\"", code, part, e->code, e->text);
}

/* ---- Types and bf16 --------------------------------------------------------------------------- */

static float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static void types_have_their_names_and_bytes(void **state) {
    (void)state;
    assert_string_equal(type_name(BF16), "bf16");
    assert_string_equal(type_name(INT64), "int64");
    assert_int_equal(type_bytes(FP32), sizeof(float));
    assert_int_equal(type_bytes(BF16), 2);
    assert_int_equal(type_bytes(FP64), sizeof(double));
    assert_int_equal(type_bytes(INT32), 4);
    assert_int_equal(type_bytes(INT64), 8);
    assert_int_equal(type_bytes(BYTE), 1);
}

static void sums_are_fp64_only_in_an_fp64_run(void **state) {
    (void)state;
    assert_int_equal(type_sum(FP64), FP64);
    assert_int_equal(type_sum(FP32), FP32);
    assert_int_equal(type_sum(BF16), FP32);
}

static void every_bf16_survives_the_way_through_fp32(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        float x = bf16_to_float((uint16_t)h);
        if (isnan(x))
            assert_true(isnan(bf16_to_float(bf16_from_float(x))));
        else
            assert_int_equal(bf16_from_float(x), h);
    }
}

static void bf16_and_the_low_half_restore_every_fp32(void **state) {
    (void)state;
    for (uint64_t b = 0; b < (uint64_t)1 << 32; b += 1021) {
        uint32_t bits = (uint32_t)b;
        if (isnan(float_of(bits))) continue;
        uint16_t hi = bf16_from_float(float_of(bits));
        assert_int_equal(hi, (uint16_t)((bits + 0x8000) >> 16));
        assert_int_equal(((uint32_t)hi << 16) + (uint32_t)(int32_t)(int16_t)(uint16_t)bits, bits);
    }
}

static void bf16_rounds_half_up_in_magnitude(void **state) {
    (void)state;
    assert_int_equal(bf16_from_float(float_of(0x3f808000)), 0x3f81); /* halfway, even below: up all the same */
    assert_int_equal(bf16_from_float(float_of(0x3f807fff)), 0x3f80);
    assert_int_equal(bf16_from_float(float_of(0xbf808000)), 0xbf81);
    assert_int_equal(bf16_from_float(float_of(0x7f7fffff)), 0x7f80); /* the largest fp32: infinite */
    assert_int_equal(bf16_from_float(-INFINITY), 0xff80);
}

static void nan_stays_nan_of_its_sign_in_bf16(void **state) {
    (void)state;
    const uint32_t nans[] = {0x7f800001, 0x7fffffff, 0xff800001, 0xffffffff, 0x7fc00000, 0x7fff8000};
    for (size_t i = 0; i < COUNT(nans); i++) {
        float x = bf16_to_float(bf16_from_float(float_of(nans[i])));
        assert_true(isnan(x));
        assert_int_equal(bits_of(x) >> 31, nans[i] >> 31);
    }
}

/* ---- Errors ----------------------------------------------------------------------------------- */

static void the_first_failure_is_kept(void **state) {
    (void)state;
    Error e = {0};
    assert_false((fail)(&e, EXIT_IO, "disk %d", 7));
    assert_false((fail)(&e, EXIT_DATA, "later"));
    assert_int_equal(e.code, EXIT_IO);
    assert_string_equal(e.text, "disk 7");
}

static void a_failure_that_does_not_fit_ends_in_dots(void **state) {
    (void)state;
    static char text[4096];
    memset(text, 'x', sizeof text - 1);
    Error e = {0};
    (fail)(&e, EXIT_DATA, "%s", text);
    assert_int_equal(strlen(e.text), sizeof e.text - 1);
    assert_string_equal(e.text + sizeof e.text - 5, "x...");
}

static void control_characters_never_reach_the_terminal(void **state) {
    (void)state;
    Error e = {0};
    (fail)(&e, EXIT_DATA, "name \033[2Jx\r\a, line\n");
    assert_string_equal(e.text, "name ?[2Jx??, line\n");
    assert_string_equal(text_shown("a\nb\033c").text, "a?b?c");
}

static void shown_text_is_cut_between_characters(void **state) {
    (void)state;
    char text[200];
    memset(text, 'a', 63);
    strcpy(text + 63, "\xc3\xa4zzzzz"); /* byte 64 is inside of this character */
    Shown shown = text_shown(text);
    assert_int_equal(strlen(shown.text), 63 + 3);
    assert_string_equal(shown.text + 62, "a...");
    memset(text, 'b', 64);
    text[64] = 0;
    assert_string_equal(text_shown(text).text, text);
}

static void aborted(int signal) {
    (void)signal;
    _exit(42);
}

static void a_failed_must_aborts(void **state) {
    (void)state;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        signal(SIGABRT, aborted);
        if (!freopen("/dev/null", "w", stderr)) _exit(1);
        MUST(1 + 1 == 3);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 42);
}

static void utf8_is_taken_apart_and_its_malformed_forms_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int bytes;
        uint32_t code;
    } rows[] = {
        {"A", 1, 'A'},
        {"\xc3\xa4", 2, 0xe4},
        {"\xe2\x82\xac", 3, 0x20ac},
        {"\xf0\x9f\x98\x80", 4, 0x1f600},
        {"\x80", 0, 0},
        {"\xc0\x80", 0, 0},
        {"\xc3", 0, 0},
        {"\xe0\x9f\xbf", 0, 0},
        {"\xed\xa0\x80", 0, 0},
        {"\xf4\x90\x80\x80", 0, 0},
        {"\xff", 0, 0},
        {"\xe2\x28\xa1", 0, 0},
        {"", 0, 0},
        {"\xf0\x8f\xbf\xbf", 0, 0},
        {"\xf8\x88\x80\x80\x80", 0, 0},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        uint32_t code = 0;
        assert_int_equal(utf8_next(rows[i].text, strlen(rows[i].text), &code), rows[i].bytes);
        assert_int_equal(code, rows[i].code);
    }
}

static void sizes_that_overflow_or_are_negative_are_refused(void **state) {
    (void)state;
    int64_t n;
    assert_true(mul_size(3, 5, &n));
    assert_int_equal(n, 15);
    assert_true(add_size(INT64_MAX - 1, 1, &n));
    assert_true(n == INT64_MAX);
    assert_false(add_size(INT64_MAX, 1, &n));
    assert_false(mul_size((int64_t)1 << 32, (int64_t)1 << 31, &n));
    assert_false(mul_size(-1, 1, &n));
    assert_false(mul_size(0, -1, &n));
    assert_false(add_size(-1, 5, &n));
}

static void the_clock_goes_forward(void **state) {
    (void)state;
    double before = seconds_now();
    assert_true(before > 0);
    assert_true(seconds_now() >= before);
}

/* ---- Files ------------------------------------------------------------------------------------ */

static char directory[64];

static int make_directory(void **state) {
    (void)state;
    strcpy(directory, "/tmp/mop-test-XXXXXX");
    return mkdtemp(directory) ? 0 : -1;
}

static const char *in_directory(const char *name) {
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return path;
}

static int entries(void) {
    glob_t found;
    int n = glob(in_directory("*"), 0, NULL, &found) == 0 ? (int)found.gl_pathc : 0;
    if (n) globfree(&found);
    return n;
}

static int remove_directory(void **state) {
    (void)state;
    glob_t found;
    if (glob(in_directory("*"), 0, NULL, &found) == 0) {
        for (size_t i = 0; i < found.gl_pathc; i++) unlink(found.gl_pathv[i]);
        globfree(&found);
    }
    return rmdir(directory);
}

static void assert_holds(const char *path, const char *text) {
    size_t bytes;
    Error e = {0};
    char *read = file_read(path, 1 << 20, &bytes, &e);
    assert_non_null(read);
    assert_int_equal(bytes, strlen(text));
    assert_string_equal(read, text);
    free(read);
}

static void a_file_is_read_back_as_written(void **state) {
    (void)state;
    Error e = {0};
    enum { BYTES = 300000 };
    char *text = malloc(BYTES + 1);
    for (int i = 0; i < BYTES; i++) text[i] = (char)('a' + i % 23);
    text[BYTES] = 0;
    assert_true(file_write(in_directory("large"), text, BYTES, &e));
    assert_holds(in_directory("large"), text);
    assert_true(file_write(in_directory("large"), "short", 5, &e));
    assert_holds(in_directory("large"), "short");
    assert_int_equal(entries(), 1);
    free(text);
}

static void a_file_at_the_limit_is_read_and_one_beyond_is_refused(void **state) {
    (void)state;
    Error e = {0};
    size_t bytes;
    enum { BYTES = 200001 };
    char *text = calloc(BYTES, 1);
    assert_true(file_write(in_directory("f"), text, BYTES, &e));
    free(text);
    text = file_read(in_directory("f"), BYTES, &bytes, &e);
    assert_non_null(text);
    assert_int_equal(bytes, BYTES);
    free(text);
    assert_null(file_read(in_directory("f"), BYTES - 1, &bytes, &e));
    assert_says(&e, EXIT_DATA, "larger than the 200000 bytes");
}

static void missing_files_and_directories_are_refused(void **state) {
    (void)state;
    size_t bytes;
    Error missing = {0}, folder = {0}, nowhere = {0};
    assert_null(file_read(in_directory("none"), 10, &bytes, &missing));
    assert_says(&missing, EXIT_DATA, "/none: cannot open: No such file or directory; check the path");
    assert_null(file_read(directory, 10, &bytes, &folder));
    assert_says(&folder, EXIT_DATA, "this is a directory");
    assert_false(file_write(in_directory("no/such"), "", 0, &nowhere));
    assert_says(&nowhere, EXIT_IO, "cannot create");
}

/* A full disk, as the process' own limit on file sizes plays it. */
static void a_write_that_fails_leaves_the_old_file_and_nothing_else(void **state) {
    (void)state;
    Error e = {0};
    assert_true(file_write(in_directory("f"), "old", 3, &e));
    struct rlimit before, small;
    getrlimit(RLIMIT_FSIZE, &before);
    small = before;
    small.rlim_cur = 1000;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    static char text[5000];
    bool written = file_write(in_directory("f"), text, sizeof text, &e);
    setrlimit(RLIMIT_FSIZE, &before);
    assert_false(written);
    assert_says(&e, EXIT_IO, "cannot write the file");
    assert_holds(in_directory("f"), "old");
    assert_int_equal(entries(), 1);
}

/* ---- Random numbers --------------------------------------------------------------------------- */

static void philox_gives_the_known_answers_of_random123(void **state) {
    (void)state;
    static const struct {
        uint32_t key[2], counter[4], out[4];
    } rows[] = {
        {{0, 0}, {0, 0, 0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0xa4093822, 0x299f31d0},
         {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        uint32_t out[4];
        philox(rows[i].key, rows[i].counter, out);
        assert_memory_equal(out, rows[i].out, sizeof out);
    }
}

static void every_argument_changes_the_draw(void **state) {
    (void)state;
    const uint64_t large = (uint64_t)1 << 40;
    uint64_t draws[] = {
        random_bits(1, RANDOM_WEIGHTS, 0, 0),         random_bits(2, RANDOM_WEIGHTS, 0, 0),
        random_bits(1 + large, RANDOM_WEIGHTS, 0, 0), random_bits(1, RANDOM_ORDER, 0, 0),
        random_bits(1, RANDOM_WEIGHTS, 1, 0),         random_bits(1, RANDOM_WEIGHTS, large, 0),
        random_bits(1, RANDOM_WEIGHTS, 0, 1),         random_bits(1, RANDOM_WEIGHTS, 0, large),
    };
    for (size_t i = 0; i < COUNT(draws); i++) {
        for (size_t j = 0; j < i; j++) assert_true(draws[i] != draws[j]);
    }
    assert_true(draws[0] == random_bits(1, RANDOM_WEIGHTS, 0, 0));
}

static void uniform_numbers_have_their_moments_and_bounds(void **state) {
    (void)state;
    enum { N = 100000 };
    double sum = 0, squares = 0;
    for (int i = 0; i < N; i++) {
        double x = random_uniform(7, RANDOM_TEST, 3, (uint64_t)i);
        assert_true(x > 0 && x < 1);
        sum += x;
        squares += (x - 0.5) * (x - 0.5);
    }
    assert_true(fabs(sum / N - 0.5) < 0.004);
    assert_true(fabs(squares / N - 1.0 / 12) < 0.002);
}

static void normal_numbers_have_their_moments(void **state) {
    (void)state;
    enum { N = 100000 };
    double moments[5] = {0};
    for (int i = 0; i < N; i++) {
        double x = random_normal(7, RANDOM_WEIGHTS, 0, (uint64_t)i), power = x;
        for (int m = 1; m < 5; m++, power *= x) moments[m] += power / N;
    }
    assert_true(fabs(moments[1]) < 0.015);
    assert_true(fabs(moments[2] - 1) < 0.025);
    assert_true(fabs(moments[3]) < 0.06);
    assert_true(fabs(moments[4] - 3) < 0.2);
}

static void permutations_are_bijective_for_every_n(void **state) {
    (void)state;
    enum { MOST = 300 };
    const int64_t large[] = {1023, 1024, 1025, 4096, 4097, 65537, 100003};
    for (int64_t k = 1; k <= MOST + (int64_t)COUNT(large); k++) {
        int64_t n = k <= MOST ? k : large[k - MOST - 1];
        char *seen = calloc((size_t)n, 1);
        for (int64_t i = 0; i < n; i++) {
            int64_t at = random_permuted(11, 5, n, i);
            assert_true(at >= 0 && at < n);
            assert_false(seen[at]);
            seen[at] = 1;
        }
        free(seen);
    }
}

static void permutations_differ_by_seed_and_epoch(void **state) {
    (void)state;
    enum { N = 1000 };
    int same_epoch = 0, same_seed = 0, fixed = 0;
    for (int64_t i = 0; i < N; i++) {
        same_epoch += random_permuted(1, 0, N, i) == random_permuted(1, 1, N, i);
        same_seed += random_permuted(1, 0, N, i) == random_permuted(2, 0, N, i);
        fixed += random_permuted(1, 0, N, i) == i;
    }
    assert_true(same_epoch < 10 && same_seed < 10 && fixed < 10); /* 1 is expected of each */
}

static void the_orders_of_five_things_are_equally_likely(void **state) {
    (void)state;
    enum { ORDERS = 120, EACH = 50 };
    static int count[3125]; /* the orders as numbers of base 5 */
    for (uint64_t epoch = 0; epoch < ORDERS * EACH; epoch++) {
        int order = 0;
        for (int64_t i = 0; i < 5; i++) order = 5 * order + (int)random_permuted(3, epoch, 5, i);
        count[order]++;
    }
    double chi = 0;
    int seen = 0;
    for (size_t order = 0; order < COUNT(count); order++) {
        if (count[order] == 0) continue;
        seen++;
        chi += (double)((count[order] - EACH) * (count[order] - EACH)) / EACH;
    }
    assert_int_equal(seen, ORDERS);
    assert_true(chi / (ORDERS - 1) < 1.4); /* by chance once in a thousand */
}

static void very_large_permutations_stay_in_range(void **state) {
    (void)state;
    const int64_t n = INT64_MAX;
    for (int64_t i = 0; i < 50; i++) {
        int64_t at = random_permuted(1, 0, n, n - 1 - i);
        assert_true(at >= 0 && at < n);
    }
}

/* ---- JSON ------------------------------------------------------------------------------------- */

static void malformed_json_is_refused_with_its_place(void **state) {
    (void)state;
    static const struct {
        const char *text, *says;
    } rows[] = {
        {"", "line 1"},
        {"5", "'[' or '{' expected"},
        {"\"text\"", "'[' or '{' expected"},
        {"{\"a\": 1", "line 1, column"},
        {"{\"a\": 1}\n{", "end of file expected"},
        {"{\"a\": 1,\n \"a\": 2}", "duplicate object key"},
        {"{\"a\": 1,\n \"b\": x}", "here, line 2"},
        {"[1, 2,]", "unexpected token"},
        {"[01]", "invalid token"},
        {"[NaN]", "invalid token"},
        {"[1e999]", "real number overflow"},
        {"[99999999999999999999]", "too big integer"},
        {"[\"\\u0000\"]", "\\u0000 is not allowed"},
        {"{\"a\\u0000b\": 1}", "NUL byte in object key"},
        {"[\"\\ud800\"]", "invalid Unicode"},
        {"[\"\xff\"]", "unable to decode byte 0xff"},
        {"[\"a\nb\"]", "unexpected newline"},
        {"[\"\\x\"]", "invalid escape"},
        {"{1: 2}", "string or '}' expected"},
        {"// no comments\n[]", "not valid JSON"},
        {"\xef\xbb\xbf[]", "not valid JSON"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        Error e = {0};
        assert_null(json_read_text(rows[i].text, strlen(rows[i].text), "here", &e));
        assert_says(&e, EXIT_DATA, rows[i].says);
        assert_says(&e, EXIT_DATA, "here, line ");
    }
}

static void json_nested_too_deep_is_refused_before_it_is_parsed(void **state) {
    (void)state;
    enum { DEEP = 100000 };
    char *text = malloc(DEEP);
    memset(text, '[', DEEP);
    Error e = {0};
    assert_null(json_read_text(text, DEEP, "here", &e));
    assert_says(&e, EXIT_DATA, "nested deeper than 64; here, line 1, column 65");
    free(text);
}

static void json_of_64_levels_is_read_and_brackets_in_strings_do_not_count(void **state) {
    (void)state;
    char text[512] = "";
    for (int i = 0; i < 64; i++) strcat(text, "[");
    strcat(text, "\"[[[[\\\"[{[{\"");
    for (int i = 0; i < 64; i++) strcat(text, "]");
    Error e = {0};
    json_t *j = json_read_text(text, strlen(text), "here", &e);
    assert_non_null(j);
    json_decref(j);
}

static void json_of_too_many_values_is_refused_before_it_is_parsed(void **state) {
    (void)state;
    enum { BYTES = 20 * 1024 * 1024 };
    char *text = malloc(BYTES);
    for (int i = 0; i < BYTES; i += 2) memcpy(text + i, "0,", 2);
    text[0] = '[';
    Error e = {0};
    assert_null(json_read_text(text, BYTES, "here", &e));
    assert_says(&e, EXIT_DATA, "more than 8388608 values; here, line 1");
    free(text);
}

static void json_files_are_limited_and_read_back(void **state) {
    (void)state;
    Error e = {0};
    json_t *j = json_pack("{s:i, s:f, s:[s,b,n]}", "a", 5, "b", 0.1, "c", "x\ny", 1);
    assert_true(json_write_file(j, in_directory("j.json"), &e));
    json_t *back = json_read_file(in_directory("j.json"), 1000, &e);
    assert_non_null(back);
    assert_true(json_equal(j, back));
    json_decref(back);
    json_decref(j);
    assert_null(json_read_file(in_directory("j.json"), 5, &e));
    assert_says(&e, EXIT_DATA, "larger than the 5 bytes");
}

static json_t *parsed(const char *text) {
    Error e = {0};
    json_t *j = json_read_text(text, strlen(text), "test", &e);
    assert_non_null(j);
    return j;
}

static void typed_members_are_read(void **state) {
    (void)state;
    json_t *j = parsed("{\"n\": 7, \"float\": 1e6, \"x\": 0.5, \"yes\": true, \"text\": \"t\", \"none\": null}");
    Error e = {0};
    int64_t n;
    double x;
    bool b;
    const char *text;
    assert_true(json_int(j, "n", 1, 0, 10, &n, "w", &e) && n == 7);
    assert_true(json_int(j, "float", 1, 0, 1000000, &n, "w", &e) && n == 1000000);
    assert_true(json_int(j, "none", -5, 0, 10, &n, "w", &e) && n == -5);
    assert_true(json_int(j, "missing", 3, 0, 10, &n, "w", &e) && n == 3);
    assert_true(json_double(j, "x", 1, &x, "w", &e) && x == 0.5);
    assert_true(json_double(j, "n", 1, &x, "w", &e) && x == 7);
    assert_true(json_double(j, "missing", 2.5, &x, "w", &e) && x == 2.5);
    assert_true(json_bool(j, "yes", false, &b, "w", &e) && b);
    assert_true(json_bool(j, "none", true, &b, "w", &e) && b);
    assert_true(json_text(j, "text", NULL, &text, "w", &e));
    assert_string_equal(text, "t");
    assert_true(json_text(j, "missing", NULL, &text, "w", &e) && text == NULL);
    json_decref(j);
}

static void members_of_another_type_or_range_are_refused(void **state) {
    (void)state;
    json_t *j = parsed("{\"n\": 7, \"half\": 8.5, \"huge\": 1e300, \"text\": \"7\", \"yes\": true, \"list\": [1]}");
    static const struct {
        const char *key, *says;
    } rows[] = {
        {"n", "\"n\" is 7, an integer from 8 to 9 is expected; w; correct"},
        {"half", "\"half\" is 8.5"},
        {"huge", "an integer from 8 to 9"},
        {"text", "\"text\" is \"7\", an integer"},
        {"yes", "\"yes\" is true"},
        {"list", "\"list\" is [1]"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        Error e = {0};
        int64_t n;
        assert_false(json_int(j, rows[i].key, 0, 8, 9, &n, "w", &e));
        assert_says(&e, EXIT_DATA, rows[i].says);
    }
    double x;
    bool b;
    const char *text;
    Error not_number = {0}, not_bool = {0}, not_text = {0}, not_object = {0};
    assert_false(json_double(j, "text", 0, &x, "w", &not_number));
    assert_says(&not_number, EXIT_DATA, "a number is expected");
    assert_false(json_bool(j, "n", 0, &b, "w", &not_bool));
    assert_says(&not_bool, EXIT_DATA, "true or false is expected");
    assert_false(json_text(j, "n", NULL, &text, "w", &not_text));
    assert_says(&not_text, EXIT_DATA, "a string is expected");
    assert_false(json_text(json_object_get(j, "list"), "n", NULL, &text, "w", &not_object));
    assert_says(&not_object, EXIT_DATA, "a JSON object with \"n\" is expected; w");
    json_decref(j);
}

int main(void) {
#define IN_DIRECTORY(test) cmocka_unit_test_setup_teardown(test, make_directory, remove_directory)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(types_have_their_names_and_bytes),
        cmocka_unit_test(sums_are_fp64_only_in_an_fp64_run),
        cmocka_unit_test(every_bf16_survives_the_way_through_fp32),
        cmocka_unit_test(bf16_and_the_low_half_restore_every_fp32),
        cmocka_unit_test(bf16_rounds_half_up_in_magnitude),
        cmocka_unit_test(nan_stays_nan_of_its_sign_in_bf16),
        cmocka_unit_test(the_first_failure_is_kept),
        cmocka_unit_test(a_failure_that_does_not_fit_ends_in_dots),
        cmocka_unit_test(control_characters_never_reach_the_terminal),
        cmocka_unit_test(shown_text_is_cut_between_characters),
        cmocka_unit_test(a_failed_must_aborts),
        cmocka_unit_test(utf8_is_taken_apart_and_its_malformed_forms_are_refused),
        cmocka_unit_test(sizes_that_overflow_or_are_negative_are_refused),
        cmocka_unit_test(the_clock_goes_forward),
        IN_DIRECTORY(a_file_is_read_back_as_written),
        IN_DIRECTORY(a_file_at_the_limit_is_read_and_one_beyond_is_refused),
        IN_DIRECTORY(missing_files_and_directories_are_refused),
        IN_DIRECTORY(a_write_that_fails_leaves_the_old_file_and_nothing_else),
        cmocka_unit_test(philox_gives_the_known_answers_of_random123),
        cmocka_unit_test(every_argument_changes_the_draw),
        cmocka_unit_test(uniform_numbers_have_their_moments_and_bounds),
        cmocka_unit_test(normal_numbers_have_their_moments),
        cmocka_unit_test(permutations_are_bijective_for_every_n),
        cmocka_unit_test(permutations_differ_by_seed_and_epoch),
        cmocka_unit_test(the_orders_of_five_things_are_equally_likely),
        cmocka_unit_test(very_large_permutations_stay_in_range),
        cmocka_unit_test(malformed_json_is_refused_with_its_place),
        cmocka_unit_test(json_nested_too_deep_is_refused_before_it_is_parsed),
        cmocka_unit_test(json_of_64_levels_is_read_and_brackets_in_strings_do_not_count),
        cmocka_unit_test(json_of_too_many_values_is_refused_before_it_is_parsed),
        IN_DIRECTORY(json_files_are_limited_and_read_back),
        cmocka_unit_test(typed_members_are_read),
        cmocka_unit_test(members_of_another_type_or_range_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
