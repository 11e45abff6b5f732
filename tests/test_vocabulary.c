/* Embedding and head split over the ranks agree with those of one rank: however many ranks share the vocabulary, whatever travels for
 * the loss, in however many rounds; and the meter counts the bytes that the choice of what travels goes by. */
#include "trials.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char *const travels[] = {"activations", "weights"};

/* A fixture's config.json with one value changed; freed by the caller. */
static char *changed(const char *family, const char *from, const char *to) {
    char path[100], *text = calloc(1, 1 << 14);
    assert_non_null(text);
    snprintf(path, sizeof path, "tests/fixtures/%s/config.json", family);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    char *file = calloc(1, 1 << 13);
    assert_non_null(file);
    assert_true(fread(file, 1, (1 << 13) - 1, f) > 0);
    fclose(f);
    char *at = strstr(file, from);
    if (!at) fail_msg("%s does not say %s", path, from);
    snprintf(text, 1 << 14, "%.*s%s%s", (int)(at - file), file, to, at + strlen(from));
    free(file);
    return text;
}

/* The next divisor of n, as `turn` counts. */
static int divisor(int n, size_t turn) {
    int d = 1 + (int)(turn % (size_t)n);
    while (n % d != 0) d--;
    return d;
}

static void every_group_equals_one_rank(const char *family, const Trial *trial, size_t turn) {
    static const int worlds[] = {2, 3, 4, 6, 8}, chunks[] = {20, 1, 3, 1000, 9};
    static const char *const activations[] = {"keep", "recompute"};
    char text[240];
    Outcome expected = trial_train(family, alone, trial);
    for (size_t i = 0; i < COUNT(worlds); i++)
        for (int p = 2; p <= worlds[i]; p++) {
            if (worlds[i] % p != 0) continue;
            for (size_t t = 0; t < COUNT(travels); t++) {
                snprintf(text, sizeof text,
                         "vocabulary=%d loss_travel=%s loss_chunk=%d dense=%d expert=%d train.micro_batches=%zu "
                         "compute.activations=%s",
                         p, travels[t], chunks[turn % COUNT(chunks)], divisor(worlds[i], turn / 2),
                         divisor(worlds[i], turn / 3), 1 + turn % 3, activations[turn % 2]);
                assert_agrees(family, (Layout){worlds[i], text}, trial, &expected, 1e-12);
                turn++;
            }
        }
    outcome_free(&expected);
}

static void every_vocabulary_group_of_2_to_8_ranks_equals_one_rank(void **state) {
    (void)state;
    for (size_t f = 0; f < FAMILIES; f++) every_group_equals_one_rank(families[f], &(Trial){0}, 7 * f);
}

/* One fixture is tied; so this is the other one of every family. */
static void tied_embeddings_untied_and_untied_ones_tied_equal_one_rank(void **state) {
    (void)state;
    static const char yes[] = "\"tie_word_embeddings\": true", no[] = "\"tie_word_embeddings\": false";
    for (size_t f = 0; f < FAMILIES; f++) {
        bool tied = strcmp(families[f], "qwen3_moe") == 0;
        char *other = changed(families[f], tied ? yes : no, tied ? no : yes);
        every_group_equals_one_rank(families[f], &(Trial){.spec = other}, 7 * f + 3);
        free(other);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_vocabulary_group_of_2_to_8_ranks_equals_one_rank),
        cmocka_unit_test(tied_embeddings_untied_and_untied_ones_tied_equal_one_rank),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
