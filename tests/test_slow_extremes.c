/* Every setting at its ends and the most dangerous ones together, planned and trained. */
#include "extremes.h"

static void run_of_every_setting_at_its_ends_ends_in_words(void **state) {
    (void)state;
    Walk w = walk_open();
    if (!SANITIZED) walk_options(&w, "train", 0, 1);
    walk_close(&w);
}

static void plan_of_large_settings_together_ends_in_words(void **state) {
    (void)state;
    Walk w = walk_open();
    walk_pairs(&w, "plan", 0, SANITIZED ? 10 : 1);
    walk_close(&w);
}

static void run_of_large_settings_together_ends_in_words(void **state) {
    (void)state;
    Walk w = walk_open();
    if (!SANITIZED) walk_pairs(&w, "train", 0, 1);
    walk_close(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(run_of_every_setting_at_its_ends_ends_in_words),
        cmocka_unit_test(plan_of_large_settings_together_ends_in_words),
        cmocka_unit_test(run_of_large_settings_together_ends_in_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
