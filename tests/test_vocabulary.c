/* Embedding and head split over the ranks agree with those of one rank: however many ranks share the vocabulary,
 * whatever travels for the loss, in however many rounds; and the meter counts the bytes that the choice of what
 * travels goes by. */
#include "comm/calls.h"
#include "model/vocabulary.h"
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

/* With each of the ways to the loss, or, of `ways` 1, with one after the other. */
static void every_group_equals_one_rank(const char *family, const Trial *trial, size_t ways, size_t turn) {
    static const int worlds[] = {2, 3, 4, 6, 8}, chunks[] = {20, 5, 1000, 2, 9};
    static const char *const activations[] = {"keep", "recompute"};
    char text[240];
    Outcome expected = trial_train(family, alone, trial);
    for (size_t i = 0; i < COUNT(worlds); i++)
        for (int p = 2; p <= worlds[i]; p++) {
            if (worlds[i] % p != 0) continue;
            for (size_t way = 0; way < ways; way++) {
                snprintf(text, sizeof text,
                         "vocabulary=%d loss_travel=%s loss_chunk=%d dense=%d expert=%d train.micro_batches=%zu "
                         "compute.activations=%s",
                         p, travels[(ways == 1 ? turn : way) % COUNT(travels)], chunks[turn % COUNT(chunks)],
                         divisor(worlds[i], turn / 2), divisor(worlds[i], turn / 3), 1 + turn % 3,
                         activations[turn % 2]);
                assert_agrees(family, (Layout){worlds[i], text}, trial, &expected, 1e-12);
                turn++;
            }
        }
    outcome_free(&expected);
}

static void every_vocabulary_group_of_2_to_8_ranks_equals_one_rank(void **state) {
    (void)state;
    for (size_t f = 0; f < FAMILIES; f++) every_group_equals_one_rank(families[f], &(Trial){0}, COUNT(travels), 7 * f);
}

/* One fixture is tied; so this is the other one of every family. */
static void tied_embeddings_untied_and_untied_ones_tied_equal_one_rank(void **state) {
    (void)state;
    static const char yes[] = "\"tie_word_embeddings\": true", no[] = "\"tie_word_embeddings\": false";
    for (size_t f = 0; f < FAMILIES; f++) {
        bool tied = strcmp(families[f], "qwen3_moe") == 0;
        char *other = changed(families[f], tied ? yes : no, tied ? no : yes);
        every_group_equals_one_rank(families[f], &(Trial){.spec = other}, 1, 7 * f + 3);
        free(other);
    }
}

/* Padding's row is one rank's, wherever the vocabulary is cut; the documents hold its id. */
static void a_frozen_row_agrees_with_one_rank_wherever_it_lives(void **state) {
    (void)state;
    static const char *const pads[] = {"\"pad_token_id\": 0", "\"pad_token_id\": 66", "\"pad_token_id\": 33",
                                       "\"pad_token_id\": 11"};
    for (size_t f = 0; f < FAMILIES; f++) {
        char *padded = changed(families[f], "\"pad_token_id\": null", pads[f]);
        every_group_equals_one_rank(families[f], &(Trial){.spec = padded}, 1, 7 * f + 5);
        free(padded);
    }
}

/* As transformers begins; a run that trains the row begins with another one. */
static void a_frozen_row_begins_as_zeros(void **state) {
    (void)state;
    char *padded = changed("olmoe", "\"pad_token_id\": null", "\"pad_token_id\": 41");
    for (int world = 1; world <= 3; world += 2)
        for (int trained = 0; trained < 2; trained++) {
            Ranks *r = ranks_open((RanksSetup){.world = world,
                                               .spec = padded,
                                               .sets = {world == 1 ? "mixture.vocabulary=1" : "mixture.vocabulary=3",
                                                        trained ? "train.pad_row=trained" : "train.pad_row=frozen"}});
            Collection c = ranks_collect(r, STORE_WEIGHT);
            int64_t H = r->spec.hidden;
            for (int64_t i = 0; i < c.count; i++)
                for (int64_t j = 0; j < c.tensor[i].count; j++) {
                    bool row = strcmp(c.tensor[i].name, "model.embed_tokens.weight") == 0 && j / H == 41 && !trained;
                    assert_int_equal(c.tensor[i].value[j] == 0, row);
                }
            collection_free(&c);
            ranks_close(r);
        }
    free(padded);
}

/* ---- Rows of the embedding ---------------------------------------------------------------------- */

static void assert_spans(Spans got, const int64_t *spans, int members, const Span *span) {
    for (int j = 0, at = 0; j < members; j++) {
        assert_int_equal(got.spans[j], spans[j]);
        for (int64_t i = 0; i < spans[j]; i++, at++) {
            assert_int_equal(got.span[at].first, span[at].first);
            assert_int_equal(got.span[at].count, span[at].count);
        }
    }
}

/* The example of lookup.h, as member 1 sees it; member 0 has 1 4 | 4, member 1 has 0 2 | 5. */
static void a_lookup_is_the_one_drawn(void **state) {
    (void)state;
    const Axis group = {.name = AXIS_VOCABULARY, .size = 2, .index = 1, .stride = 1};
    const int32_t first[] = {1, 4, 4}, second[] = {0, 2, 5}, *const token[] = {first, second};
    const int64_t tokens[] = {3, 3}, fewer[] = {3, 2};
    int32_t id[6], target[6];
    Lookup l;
    Error e = {0};
    assert_true(lookup_open(&l, &group, 6, 2, 3, 3, &e));
    lookup_fill(&l, 3, token, tokens, id);
    assert_int_equal(l.rounds, 2);
    assert_int_equal(l.ids, 3);
    static const int32_t ids[] = {1, 1, 2};
    assert_memory_equal(id, ids, sizeof ids);
    assert_int_equal(l.round[0].rows, 1);
    assert_int_equal(l.round[1].first, 1);
    assert_int_equal(l.round[1].rows, 2);
    assert_spans(l.round[0].mine, (int64_t[]){1, 0}, 2, (Span[]){{0, 2}});
    assert_spans(l.round[1].mine, (int64_t[]){0, 1}, 2, (Span[]){{2, 1}});
    assert_spans(l.round[0].theirs, (int64_t[]){1, 1}, 2, (Span[]){{0, 1}, {1, 0}});
    assert_spans(l.round[1].theirs, (int64_t[]){1, 1}, 2, (Span[]){{0, 1}, {1, 1}});
    lookup_fill(&l, 3, token, fewer, id);
    lookup_order(&l, token, fewer, target);
    static const int32_t targets[] = {1, 4, 0, 2, 4, -1};
    assert_memory_equal(target, targets, sizeof targets);
    lookup_close(&l);
}

/* ---- Odd sizes ---------------------------------------------------------------------------------- */

/* Two sequences on up to 8 ranks: some have none, some groups have none, and take part in everything. */
static void ranks_without_sequences_equal_one_rank(void **state) {
    (void)state;
    const Trial trial = {.options = {"train.sequences=2"}};
    static const Layout layouts[] = {
        {8, "vocabulary=8 loss_travel=activations dense=4 expert=8"},
        {8, "vocabulary=2 loss_travel=weights dense=8 expert=2 train.micro_batches=2"},
        {8, "vocabulary=4 loss_travel=activations loss_chunk=7 dense=2 train.micro_batches=3"},
        {3, "vocabulary=3 loss_travel=weights loss_chunk=5 dense=3 expert=3 train.micro_batches=2"}};
    for (size_t f = 0; f < FAMILIES; f++) {
        Outcome expected = trial_train(families[f], alone, &trial);
        for (size_t i = 0; i < COUNT(layouts); i++) assert_agrees(families[f], layouts[i], &trial, &expected, 1e-12);
        outcome_free(&expected);
    }
}

/* Of 5 rows in threes, twos or ones some of 4 or 8 members have none. */
static const Layout sparse[] = {{4, "vocabulary=4 loss_travel=activations loss_chunk=30 dense=2 expert=4"},
                                {4, "vocabulary=4 loss_travel=weights loss_chunk=30 train.micro_batches=2"},
                                {8, "vocabulary=8 loss_travel=activations loss_chunk=1 dense=4 expert=8"},
                                {8, "vocabulary=8 loss_travel=weights loss_chunk=9 expert=2"},
                                {8, "vocabulary=4 loss_travel=weights loss_chunk=9 compute.activations=recompute"}};

typedef struct {
    char *spec, *documents;
} SmallVocabulary;

static SmallVocabulary small_vocabulary(bool tied) {
    const char *family = tied ? "qwen3_moe" : "mixtral";
    return (SmallVocabulary){changed(family, "\"vocab_size\": 67", "\"vocab_size\": 5"),
                             random_documents(40, 30, 5, 1)};
}

static void small_vocabulary_free(SmallVocabulary s) {
    free(s.spec);
    free(s.documents);
}

static void members_without_rows_equal_one_rank(void **state) {
    (void)state;
    for (int tied = 0; tied < 2; tied++) {
        SmallVocabulary s = small_vocabulary(tied);
        const Trial trial = {.spec = s.spec, .documents = s.documents};
        Outcome expected = trial_train("", alone, &trial);
        for (size_t i = 0; i < COUNT(sparse); i++) assert_agrees("five rows", sparse[i], &trial, &expected, 1e-12);
        outcome_free(&expected);
        small_vocabulary_free(s);
    }
}

/* The numbers of collectives compare between ranks (comm/calls.h) only if all have called as many. */
static void all_ranks_call_as_many_collectives(void **state) {
    (void)state;
    SmallVocabulary s = small_vocabulary(false);
    const Trial trial = {.spec = s.spec, .documents = s.documents, .options = {"train.sequences=3"}};
    for (size_t i = 0; i < COUNT(sparse); i++) {
        Ranks *r = trial_open("", sparse[i], &trial);
        ranks_train(r, 0, 2, NULL);
        uint64_t expected = calls_tail(r->wires[0]->calls).queued;
        for (int rank = 1; rank < r->world; rank++)
            assert_int_equal(calls_tail(r->wires[rank]->calls).queued, expected);
        ranks_close(r);
    }
    small_vocabulary_free(s);
}

static void layouts_agree_in_fp32_and_bf16(void **state) {
    (void)state;
    static const Layout layouts[] = {{2, "vocabulary=2 loss_travel=activations"},
                                     {3, "vocabulary=3 loss_travel=weights train.micro_batches=2"},
                                     {4, "vocabulary=2 loss_travel=weights expert=4 loss_chunk=9"}};
    static const struct {
        const char *type;
        double bound;
    } rows[] = {{"compute.type=fp32", 1e-5}, {"compute.type=bf16", 0.05}};
    for (size_t t = 0; t < COUNT(rows); t++) {
        const Trial trial = {.options = {rows[t].type}};
        Outcome expected = trial_train("mixtral", alone, &trial);
        for (size_t i = 0; i < COUNT(layouts); i++)
            assert_agrees("mixtral", layouts[i], &trial, &expected, rows[t].bound);
        outcome_free(&expected);
    }
}

/* ---- Time and place ----------------------------------------------------------------------------- */

static void assert_changes_no_bit(const char *option) {
    static const Layout layouts[] = {
        {4, "vocabulary=4 loss_travel=activations loss_chunk=24 expert=4 compute.type=bf16"},
        {4, "vocabulary=2 loss_travel=weights loss_chunk=11 dense=2 compute.type=bf16 train.micro_batches=2"},
        {3, "vocabulary=3 loss_travel=activations compute.type=fp32 train.micro_batches=3"},
        {2, "vocabulary=2 loss_travel=weights compute.type=fp32 compute.activations=recompute"}};
    for (size_t f = 0; f < 2; f++) /* untied, tied */
        for (size_t i = 0; i < COUNT(layouts); i++) {
            char what[200];
            snprintf(what, sizeof what, "%s, %s, %s", option, families[f], layouts[i].settings);
            Outcome usual = trial_train(families[f], layouts[i], &(Trial){0}),
                    got = trial_train(families[f], layouts[i], &(Trial){.options = {option}});
            assert_outcomes_same_bits(what, &got, &usual);
            outcome_free(&usual);
            outcome_free(&got);
        }
}

static void late_streams_and_wires_change_no_bit(void **state) {
    (void)state;
    assert_changes_no_bit("device=cpu:late");
}

static void threads_change_no_bit(void **state) {
    (void)state;
    assert_changes_no_bit("compute.threads=3");
}

static void a_blocking_update_changes_no_bit(void **state) {
    (void)state;
    assert_changes_no_bit("optimizer.update=blocking");
}

/* ---- Forward only ------------------------------------------------------------------------------- */

enum { GIVEN = 5, MORE = 22 };

typedef struct {
    Evaluation evaluation[8];
    int32_t ids[8][GIVEN + MORE];
} Said;

/* One step, so that an update is due; the context outgrows the sequence length of 24. */
static bool evaluate_and_generate(Run *r, void *context, Error *e) {
    Said *said = context;
    StepResult out;
    int rank = r->comm.mesh.rank;
    for (int i = 0; i < GIVEN; i++) said->ids[rank][i] = 7 * i + 3;
    return train_step(r, 0, false, &out, e) && evaluate(r, &said->evaluation[rank], e) &&
           generate(r, said->ids[rank], GIVEN, MORE, (Sampling){0}, e) && train_step(r, 1, false, &out, e);
}

static void assert_says(const char *family, Layout l, const Trial *trial, const Said *expected) {
    Said said = {0};
    Ranks *r = trial_open(family, l, trial);
    ranks_run(r, evaluate_and_generate, &said);
    ranks_close(r);
    for (int rank = 0; rank < l.world; rank++) {
        assert_int_equal(said.evaluation[rank].trained, expected->evaluation[0].trained);
        assert_near(l.settings, "the loss", said.evaluation[rank].loss, expected->evaluation[0].loss, 1e-12);
        for (int i = 0; i < GIVEN + MORE; i++)
            if (said.ids[rank][i] != expected->ids[0][i])
                fail_msg("%s, %s: rank %d says %d at %d, expected %d", family, l.settings, rank, said.ids[rank][i], i,
                         expected->ids[0][i]);
    }
}

static void evaluation_and_generated_text_equal_those_of_one_rank(void **state) {
    (void)state;
    static const Layout layouts[] = {
        {2, "vocabulary=2 loss_travel=activations"},
        {4, "dense=2 expert=4"}, /* every rank knows what is said, shared vocabulary or not */
        {4, "vocabulary=2 loss_travel=weights dense=2 expert=4 loss_chunk=7"},
        {8, "vocabulary=8 loss_travel=activations loss_chunk=100 expert=2 train.micro_batches=2"},
        {3, "vocabulary=3 loss_travel=weights loss_chunk=1000"},
        {4, "vocabulary=4 loss_travel=activations loss_chunk=9"}};
    for (size_t f = 0; f < FAMILIES; f++) {
        Said expected = {0};
        Ranks *r = trial_open(families[f], alone, &(Trial){0});
        ranks_run(r, evaluate_and_generate, &expected);
        ranks_close(r);
        for (size_t i = 0; i < COUNT(layouts); i++)
            assert_says(families[f], layouts[i], &(Trial){.options = {i == 2 ? "device=cpu:late" : "device=cpu"}},
                        &expected);
    }
}

/* ---- What it costs ------------------------------------------------------------------------------ */

static bool step_and_evaluation(Run *r, void *context, Error *e) {
    Meter *meter = context; /* [2][world] */
    StepResult out;
    Evaluation evaluation;
    meter_clear(r->device);
    if (!train_step(r, 0, false, &out, e)) return false;
    meter[r->comm.mesh.rank] = r->device->meter;
    meter_clear(r->device);
    if (!evaluate(r, &evaluation, e)) return false;
    meter[r->comm.mesh.world + r->comm.mesh.rank] = r->device->meter;
    return true;
}

/* Sent and received by the members of the first group, in total: of one kind of pass. */
static void assert_traffic(const char *what, const Meter *meter, int members, Collective c, int64_t expected) {
    int64_t sent = 0, received = 0;
    for (int j = 0; j < members; j++) {
        sent += meter[j].traffic[AXIS_VOCABULARY][c].sent;
        received += meter[j].traffic[AXIS_VOCABULARY][c].received;
    }
    if (sent != expected || received != expected)
        fail_msg("%s: %s sent %lld and received %lld bytes, expected %lld", what, collective_name(c), (long long)sent,
                 (long long)received, (long long)expected);
}

/* Of the first group's members, of step 0: rows whose owner is another. */
static int64_t rows_of_others(Ranks *r, int members) {
    int64_t rows = 0;
    for (int j = 0; j < members; j++) {
        const Run *run = r->run[j];
        for (int64_t i = 0; i < run->micro_batches; i++)
            for (int64_t t = 0; t < run->micro[i].tokens; t++)
                rows += (int64_t)tensor_get(run->micro[i].token, t) / run->model.vocabulary.each != j;
    }
    return rows;
}

static bool load_first_batch(Run *r, void *context, Error *e) {
    (void)context;
    return run_load_batch(r, 0, e);
}

static void the_meter_counts_the_bytes_that_the_choice_goes_by(void **state) {
    (void)state;
    static const Layout layouts[] = {{2, "vocabulary=2 train.micro_batches=2"},
                                     {6, "vocabulary=3 loss_chunk=7"},
                                     {4, "vocabulary=4 loss_chunk=30 compute.type=bf16"}};
    Meter *meter = calloc(16, sizeof *meter);
    assert_non_null(meter);
    for (size_t i = 0; i < COUNT(layouts); i++)
        for (size_t w = 0; w < COUNT(travels); w++) {
            char settings[100];
            snprintf(settings, sizeof settings, "%s loss_travel=%s", layouts[i].settings, travels[w]);
            Ranks *r = trial_open("mixtral", (Layout){layouts[i].world, settings}, &(Trial){0});
            const Run *run = r->run[0];
            int members = run->comm.mesh.axis[AXIS_VOCABULARY].size;
            int64_t sequences = 0; /* of an evaluation */
            for (int64_t token = 0; token < tokens_info(r->tokens).tokens; sequences++)
                token = tokens_uncut(r->tokens, token, 24);
            int64_t batches = ceil_div(sequences, 5);
            ranks_run(r, step_and_evaluation, meter);
            ranks_run(r, load_first_batch, NULL);
            int64_t row = r->spec.hidden * (int64_t)type_bytes(run->model.real), bytes[2] = {0};
            for (int training = 0; training < 2; training++)
                for (int64_t k = 0; k < run->micro_batches; k++) {
                    LossTraffic t = {.members = members,
                                     .tokens = run->micro[k].lookup.most,
                                     .vocabulary = r->spec.vocabulary,
                                     .hidden = r->spec.hidden,
                                     .real = run->model.real,
                                     .sum = run->model.sum,
                                     .training = training};
                    bytes[training] += w == 0 ? loss_activations_bytes(t) : loss_weights_bytes(t);
                }
            int64_t back = 0; /* gradients of hidden states, in a collective of their own */
            for (int64_t k = 0; w == 0 && k < run->micro_batches; k++)
                back += members * (members - 1) * run->micro[k].lookup.most * r->spec.hidden *
                        (int64_t)type_bytes(run->model.sum);
            Collective c = w == 0 ? ALL_GATHER : SHIFT;
            assert_traffic(settings, meter, members, c, bytes[1] - back);
            assert_traffic(settings, meter, members, REDUCE_SCATTER, back);
            assert_traffic(settings, meter, members, ALL_TO_ALL, 2 * rows_of_others(r, members) * row);
            assert_traffic(settings, meter + r->world, members, c, batches * bytes[0]);
            assert_traffic(settings, meter + r->world, members, REDUCE_SCATTER, 0);
            ranks_close(r);
        }
    free(meter);
}

static void fewer_bytes_travel(void **state) {
    (void)state;
    LossTraffic t = {.members = 2, .tokens = 3, .vocabulary = 5, .hidden = 4, .real = FP32, .sum = FP32};
    assert_int_equal(loss_activations_bytes(t), 240); /* 6 times 4 + 3 x 2 numbers */
    assert_int_equal(loss_weights_bytes(t), 80);      /* 20 numbers */
    assert_int_equal(loss_travel(t), TRAVEL_WEIGHTS);
    t.training = true;
    assert_int_equal(loss_activations_bytes(t), 336);
    assert_int_equal(loss_weights_bytes(t), 240);
    t.tokens = 2;
    assert_int_equal(loss_activations_bytes(t), 224);
    assert_int_equal(loss_travel(t), TRAVEL_ACTIVATIONS);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_vocabulary_group_of_2_to_8_ranks_equals_one_rank),
        cmocka_unit_test(a_frozen_row_agrees_with_one_rank_wherever_it_lives),
        cmocka_unit_test(a_frozen_row_begins_as_zeros),
        cmocka_unit_test(tied_embeddings_untied_and_untied_ones_tied_equal_one_rank),
        cmocka_unit_test(a_lookup_is_the_one_drawn),
        cmocka_unit_test(ranks_without_sequences_equal_one_rank),
        cmocka_unit_test(members_without_rows_equal_one_rank),
        cmocka_unit_test(all_ranks_call_as_many_collectives),
        cmocka_unit_test(layouts_agree_in_fp32_and_bf16),
        cmocka_unit_test(late_streams_and_wires_change_no_bit),
        cmocka_unit_test(threads_change_no_bit),
        cmocka_unit_test(a_blocking_update_changes_no_bit),
        cmocka_unit_test(evaluation_and_generated_text_equal_those_of_one_rank),
        cmocka_unit_test(the_meter_counts_the_bytes_that_the_choice_goes_by),
        cmocka_unit_test(fewer_bytes_travel),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
