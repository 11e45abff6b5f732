/* What is cut into shards comes to what one rank has: experts over E_s, the vocabulary over P, whatever moves. */
#include "trials.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* One divisor of n after the other, as `turn` counts. */
static int divisor(int n, int turn) {
    int d = 1 + turn % n;
    while (n % d != 0) d--;
    return d;
}

/* ---- Experts over E_p x E_s ------------------------------------------------------------------- */

/* Every E_s > 1 and E_p of these worlds; Z and micro-batches take turns. */
static void experts_cut_over_any_expert_shard_group_equal_one_rank(void **state) {
    (void)state;
    static const int worlds[] = {2, 3, 4, 6, 8};
    for (size_t f = 0; f < FAMILIES; f++) {
        Outcome expected = trial_train(families[f], alone, &(Trial){0});
        int turn = (int)f;
        for (size_t i = 0; i < COUNT(worlds); i++)
            for (int es = 2; es <= worlds[i]; es++)
                for (int ep = 1; es * ep <= worlds[i]; ep++) {
                    if (worlds[i] % (es * ep) != 0) continue;
                    char words[120];
                    snprintf(words, sizeof words, "expert=%d expert_shard=%d dense=%d train.micro_batches=%d", ep, es,
                             divisor(worlds[i], turn), 1 + turn % 3);
                    assert_agrees(families[f], (Layout){worlds[i], words}, &(Trial){0}, &expected, 1e-12);
                    turn++;
                }
        outcome_free(&expected);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(experts_cut_over_any_expert_shard_group_equal_one_rank),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
