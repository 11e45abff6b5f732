/* The short form of test_slow_extremes.c: every setting in a plan, and a share of the rest. */
#include "extremes.h"

static void plan_of_every_setting_at_its_ends_ends_in_words(void **state) {
    (void)state;
    Walk w = walk_open();
    walk_options(&w, "plan", 0, SANITIZED ? 5 : 1);
    walk_close(&w);
}

static void run_of_some_settings_at_their_ends_ends_in_words(void **state) {
    (void)state;
    Walk w = walk_open();
    if (!SANITIZED) walk_options(&w, "train", 1, 6);
    walk_close(&w);
}

static void plan_of_some_large_settings_together_ends_in_words(void **state) {
    (void)state;
    Walk w = walk_open();
    walk_pairs(&w, "plan", 0, SANITIZED ? 40 : 8);
    walk_close(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plan_of_every_setting_at_its_ends_ends_in_words),
        cmocka_unit_test(run_of_some_settings_at_their_ends_ends_in_words),
        cmocka_unit_test(plan_of_some_large_settings_together_ends_in_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
