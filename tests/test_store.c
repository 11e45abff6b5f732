/* What is written into a store stays there: an update that was due belonged to the values before. */
#include "trials.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static const double written = 0.5; /* of every type */

static bool write_all(Run *r, void *context, Error *e) {
    const Slice *slice;
    int64_t n = store_slices(r->store, &slice);
    (void)context;
    (void)e;
    for (int64_t i = 0; i < n; i++) {
        Type type = store_type(r->store, STORE_MASTER);
        void *bytes = calloc((size_t)slice[i].count, type_bytes(type));
        assert_non_null(bytes);
        Tensor values = tensor_at(bytes, type, DIM(slice[i].count));
        for (int64_t j = 0; j < slice[i].count; j++) tensor_put(values, j, written);
        store_copy_in(r->store, &slice[i], STORE_MASTER, 0, slice[i].count, bytes);
        free(bytes);
    }
    return true;
}

static void an_update_that_was_due_does_not_change_what_is_written_later(void **state) {
    (void)state;
    static const char *const types[] = {"compute.type=fp64", "compute.type=fp32", "compute.type=bf16"};
    static const Layout layouts[] = {{1, ""}, {2, "dense=2 expert=2"}, {4, "vocabulary=2 expert_shard=2"}};
    for (size_t i = 0; i < COUNT(layouts) * COUNT(types); i++) {
        const Trial trial = {.options = {types[i % COUNT(types)], "optimizer.update=deferred"}};
        Ranks *r = trial_open("olmoe", layouts[i / COUNT(types)], &trial);
        StepResult step;
        ranks_train(r, 0, 1, &step);
        assert_true(step.finite && step.learning_rate > 0); /* so that an update is due */
        ranks_run(r, write_all, NULL);
        Collection weights = ranks_collect(r, STORE_MASTER); /* applies what is due */
        for (int64_t t = 0; t < weights.count; t++)
            for (int64_t j = 0; j < weights.tensor[t].count; j++)
                if (weights.tensor[t].value[j] != written)
                    fail_msg("%s, %s: %s[%lld] is %.17g after %g was written", types[i % COUNT(types)],
                             layouts[i / COUNT(types)].settings, weights.tensor[t].name, (long long)j,
                             weights.tensor[t].value[j], written);
        collection_free(&weights);
        ranks_close(r);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_update_that_was_due_does_not_change_what_is_written_later),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
