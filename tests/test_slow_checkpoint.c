/* The long form of what test_checkpoint.c shows in short: two hundred saves killed at random points. */
#include "checkpoint_kills.h"

static void killed_two_hundred_times_while_saving_the_last_complete_checkpoint_loads(void **state) {
    (void)state;
    kill_trials(200, 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(killed_two_hundred_times_while_saving_the_last_complete_checkpoint_loads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
