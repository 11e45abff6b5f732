/* Lack of memory within jansson is told as such: not as a mistake in the text, and never by a value that is only nearly
 * what was written. The test is linked with --wrap=malloc, and each allocation fails in turn. */
#include "base/json.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static int allocations, fails; /* the allocation number `fails` (from 1; 0: none) fails */

void *__real_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes) {
    return fails > 0 && ++allocations == fails ? NULL : __real_malloc(bytes);
}

static void begin(int n) {
    allocations = 0;
    fails = n;
}

/* Whether the allocation that was to fail was asked for. */
static bool end(void) {
    bool came = fails > 0 && allocations >= fails;
    fails = 0;
    return came;
}

/* Strings and keys longer than jansson's first buffers, which grow while they are read. */
static const char text[] =
    "{\"text\": \"0123456789abcdef0123456789abcdef0123456789abcdef 0123456789\\u00e9 of a document\", "
    "\"a key of more than sixteen bytes\": [1, 2.5, true, null, {\"deep\": \"deeper\"}], \"n\": -3}";

static void reading_without_memory_is_exit_4_or_every_byte(void **state) {
    (void)state;
    Error none = {0};
    json_t *whole = json_read_text(text, strlen(text), "here", &none);
    assert_non_null(whole);
    bool came = true;
    int told = 0;
    for (int n = 1; came; n++) {
        Error e = {0};
        begin(n);
        json_t *j = json_read_text(text, strlen(text), "here", &e);
        came = end();
        if (j ? !json_equal(j, whole) : e.code != EXIT_MEMORY)
            fail_msg("allocation %d: error[%d] %s", n, e.code, e.text);
        told += !j;
        json_decref(j);
    }
    assert_true(told > 10);
    json_decref(whole);
}

static void printing_without_memory_is_exit_4_or_every_byte(void **state) {
    (void)state;
    Error none = {0};
    size_t bytes;
    json_t *whole = json_read_text(text, strlen(text), "here", &none);
    json_object_set_new(whole, "later", json_integer(7));
    char *right = json_print(whole, &bytes, "here", &none);
    assert_non_null(right);
    bool came = true;
    int told = 0;
    for (int n = 1; came; n++) {
        Error e = {0};
        size_t got = 0;
        begin(n);
        json_t *copy = json_read_text(text, strlen(text), "here", &e);
        if (copy) json_object_set_new(copy, "later", json_integer(7)); /* without memory it would just not be there */
        char *printed = json_print(copy, &got, "here", &e);
        came = end();
        if (printed ? got != bytes || memcmp(printed, right, bytes) != 0 : e.code != EXIT_MEMORY)
            fail_msg("allocation %d: error[%d] %s, %.*s", n, e.code, e.text, (int)got, printed ? printed : "");
        told += !printed;
        free(printed);
        json_decref(copy);
    }
    assert_true(told > 10);
    free(right);
    json_decref(whole);
}

static void a_failure_is_told_once(void **state) {
    (void)state;
    Error e = {0}, again = {0};
    begin(1);
    assert_null(json_read_text(text, strlen(text), "here", &e));
    end();
    assert_int_equal(e.code, EXIT_MEMORY);
    json_t *j = json_read_text(text, strlen(text), "here", &again);
    assert_non_null(j);
    json_decref(j);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reading_without_memory_is_exit_4_or_every_byte),
        cmocka_unit_test(printing_without_memory_is_exit_4_or_every_byte),
        cmocka_unit_test(a_failure_is_told_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
