/* A sequence spread over ranks, by heads (ulysses), by blocks (ring) and both, gives the numbers of one rank: whatever the documents,
 * the micro-batches and the other axes; and what only moves work changes no bit. */
#include "trials.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- The cut ---------------------------------------------------------------------------------- */

/* Every position is one rank's, a ring member's are those of its ranks in order, and a shorter text moves none. */
static void every_position_belongs_to_one_rank(void **state) {
    (void)state;
    for (int u = 1; u <= 5; u++)
        for (int r = 1; r <= 5; r++)
            for (int64_t length = 1; length <= 23; length++)
                for (int64_t limit = 0; limit <= length; limit += 1 + length / 3) {
                    Cut cut = {.ulysses = u, .ring = r, .length = length, .limit = limit};
                    int owner[23], owners = 0;
                    memset(owner, -1, sizeof owner);
                    for (int rank = 0; rank < u * r; rank++) {
                        Stretches s = cut_rank(&cut, rank);
                        assert_int_equal(s.tokens, s.part[0].count + s.part[1].count);
                        for (int i = 0; i < 2; i++)
                            for (int64_t p = 0; p < s.part[i].count; p++, owners++) {
                                assert_int_equal(owner[s.part[i].first + p], -1);
                                owner[s.part[i].first + p] = rank;
                            }
                    }
                    assert_int_equal(owners, limit);
                    for (int member = 0; member < r; member++) {
                        Stretches s = cut_ring_member(&cut, member);
                        int last = 0;
                        for (int64_t p = 0, row = 0; p < limit; p++) {
                            bool in = owner[p] / u == member;
                            assert_int_equal(stretches_below(&s, p), row);
                            if (!in) continue;
                            row++;
                            assert_true(owner[p] % u >= last);
                            last = owner[p] % u;
                        }
                    }
                }
}

/* ---- L4b -------------------------------------------------------------------------------------- */

/* All fixtures have 4 query heads; two have 2 KV heads, so that 4 ranks share each of them. */
static const Layout layouts[] = {
    {2, "ulysses=2"},
    {2, "ring=2 dense=1"},
    {3, "ring=3 train.micro_batches=2"},
    {4, "ulysses=4 dense=2"},
    {4, "ulysses=2 ring=2 expert=4"},
    {4, "ring=4 dense=1"},
    {4, "ulysses=2 expert=2 expert_shard=2 train.micro_batches=3"},
    {6, "ulysses=2 ring=3"},
    {6, "ring=2 expert=3 train.micro_batches=2"},
    {8, "ulysses=4 ring=2 expert=4 expert_shard=2"},
    {8, "ulysses=2 ring=4 dense=2 dispatch_tokens=2 balance_imports=1 balance_threshold=1"},
    {8, "ring=8 expert=8"},
    {8, "ulysses=2 ring=2 ulysses_heads=2 dense=4 train.micro_batches=2"},
};

static void a_sequence_on_many_ranks_equals_one_rank(void **state) {
    (void)state;
    const Trial trial = {0};
    for (size_t f = 0; f < FAMILIES; f++) {
        Outcome expected = trial_train(families[f], alone, &trial);
        for (size_t i = 0; i < COUNT(layouts); i++) assert_agrees(families[f], layouts[i], &trial, &expected, 1e-12);
        outcome_free(&expected);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_position_belongs_to_one_rank),
        cmocka_unit_test(a_sequence_on_many_ranks_equals_one_rank),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
