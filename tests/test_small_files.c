/* What lies beside the weights: small files go with the model byte for byte, through every checkpoint, a resume and an
 * export; and what has two answers is refused. */
#define _GNU_SOURCE
#include "base/file.h"
#include "checkpoint/source.h"
#include "checkpoint_ranks.h"
#include <fcntl.h>
#include <sys/stat.h>

static void write_text(const char *directory, const char *name, const char *text) {
    Error e = {0};
    if (!file_write(path_join(directory, name).text, text, strlen(text), &e)) fail_msg("%s", e.text);
}

static void assert_text(const char *directory, const char *name, const char *text) {
    Error e = {0};
    size_t bytes = 0;
    char *found = file_read(path_join(directory, name).text, 1 << 20, &bytes, &e);
    if (!found || strlen(text) != bytes || memcmp(found, text, bytes) != 0)
        fail_msg("%s in %s is '%s', not '%s' (%s)", name, directory, found ? found : "", text, e.text);
    free(found);
}

static void copy_file(const char *from, const char *directory, const char *name) {
    Error e = {0};
    size_t bytes = 0;
    char *text = file_read(from, 1 << 24, &bytes, &e);
    if (!text || !file_write(path_join(directory, name).text, text, bytes, &e)) fail_msg("%s", e.text);
    free(text);
}

/* ---- Carried ---------------------------------------------------------------------------------- */

/* A tokenizer with merges, and numbers that are none of int64's: nothing that mop reads. */
static const struct {
    const char *name, *text;
} companions[] = {
    {"tokenizer.json",
     "{\"model\": {\"type\": \"BPE\", \"merges\": [\"a b\"], \"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2}}}"},
    {"tokenizer_config.json", "{\"model_max_length\": 1000000000000000019884624838656}"},
    {"special_tokens_map.json", "{\"eos_token\": \"<|eos|>\"}"},
    {"added_tokens.json", "{\"<|eos|>\": 256}"},
    {"generation_config.json", "{\"eos_token_id\": [256, 10], \"do_sample\": true}"},
    {"chat_template.jinja", "{{ messages }}"},
    {"vocab.json", "{\"a\": 0}"},
    {"merges.txt", "#version: 0.2\na b\n"},
    {"tokenizer.model", "\n\x0b\n\x05<unk>"},
    {"LICENSE", ""},
    {"NOTICE", "note\n"},
};

static Path base_make(void) {
    Path base = scratch_make();
    for (size_t i = 0; i < COUNT(companions); i++) write_text(base.text, companions[i].name, companions[i].text);
    write_text(base.text, "README.md", "---\nlicense: mit\n---\n");
    write_text(base.text, "pytorch_model.bin", "other weights");
    return base;
}

static void assert_companions(const char *directory) {
    for (size_t i = 0; i < COUNT(companions); i++) assert_text(directory, companions[i].name, companions[i].text);
    assert_int_equal(access(path_join(directory, "pytorch_model.bin").text, F_OK), -1);
}

/* As a run whose data are ids: no tokenizer is understood. */
static Checkpoints *reopened(Rank *r, const char *base, Error *e) {
    checkpoints_close(r->checkpoints);
    r->checkpoints = checkpoints_open(r->plan->run, base, &r->spec, FP32, r->store, NULL, &r->comm, e);
    return r->checkpoints;
}

static bool save_with_base(Rank *r, void *context, Error *e) {
    return reopened(r, context, e) && content_save(r, 5, e);
}

static bool resume_and_save(Rank *r, void *context, Error *e) {
    ResumeReport report;
    return reopened(r, context, e) && checkpoint_resume(r->checkpoints, &report, e) && content_save(r, 6, e);
}

static void small_files_go_through_checkpoints_a_resume_without_the_source_and_an_export(void **state) {
    (void)state;
    Path run = scratch_make(), base = base_make(), old = path_join(run.text, "ckpt/step-00000005"),
         new = path_join(run.text, "ckpt/step-00000006"), out = path_join(run.text, "out");
    RankPlan plan = {"olmoe", "fp32", 2, 2, 2, run.text, NULL, 0};
    Error e = {0};
    ranks_run(&plan, save_with_base, base.text);
    assert_companions(old.text);
    if (!checkpoint_verify(old.text, &e)) fail_msg("%s", e.text);
    scratch_remove(base.text);
    ranks_run(&plan, resume_and_save, "");
    assert_companions(new.text);
    if (!checkpoint_verify(new.text, &e)) fail_msg("%s", e.text);
    write_text(new.text, "merges.txt", "#version: 0.2\nb a\n");
    assert_false(checkpoint_verify(new.text, &e)); /* they are in the manifest */
    write_text(new.text, "merges.txt", "#version: 0.2\na b\n");
    char *argv[] = {"export", run.text, "--out", out.text};
    assert_int_equal(quietly(export_command, 4, argv), EXIT_DONE);
    assert_companions(out.text);
    Licence licence;
    assert_true(licence_of(out.text, &licence, &(Error){0}));
    assert_string_equal(licence.text, "mit");
    scratch_remove(run.text);
}

static void a_tokenizer_of_ones_own_replaces_the_sources_with_all_that_belongs_to_it(void **state) {
    (void)state;
    Path base = base_make(), own = scratch_make();
    Error e = {0};
    Tokenizer *bytes = tokenizer_open(NULL, &e);
    assert_true(tokenizer_write(bytes, own.text, &e));
    tokenizer_close(bytes);
    write_text(own.text, "tokenizer_config.json", "{\"mine\": 1}");
    assert_int_equal(rename(path_join(own.text, "tokenizer.json").text, path_join(own.text, "mine.json").text), 0);
    Tokenizer *t = tokenizer_open(path_join(own.text, "mine.json").text, &e);
    assert_non_null(t);
    SmallFiles files = {0};
    if (!small_files_carry(&files, base.text, t, &e)) fail_msg("%s", e.text);
    const SmallFile *tokenizer = small_files_find(&files, "tokenizer.json"),
                    *config = small_files_find(&files, "tokenizer_config.json");
    assert_non_null(strstr(tokenizer->text, "ByteLevel"));
    assert_string_equal(config->text, "{\"mine\": 1}");
    assert_null(small_files_find(&files, "merges.txt"));
    assert_null(small_files_find(&files, "chat_template.jinja"));
    assert_non_null(small_files_find(&files, "generation_config.json"));
    assert_non_null(small_files_find(&files, "LICENSE"));
    small_files_close(&files);
    tokenizer_close(t);
    scratch_remove(base.text);
    scratch_remove(own.text);
}

static void assert_not_carried(const char *base, const char *message) {
    SmallFiles files = {0};
    Error e = {0};
    assert_false(small_files_carry(&files, base, NULL, &e));
    small_files_close(&files);
    if (e.code != EXIT_DATA || !strstr(e.text, message)) fail_msg("error[%d] %s; expected %s", e.code, e.text, message);
}

static void a_small_file_that_is_broken_huge_or_no_file_is_refused_in_words(void **state) {
    (void)state;
    Path base = base_make(), file = path_join(base.text, "chat_template.jinja");
    write_text(base.text, "generation_config.json", "{\"eos_token_id\": ");
    assert_not_carried(base.text, "not valid JSON");
    write_text(base.text, "generation_config.json", "{}");
    assert_int_equal(truncate(file.text, (off_t)65 << 20), 0);
    assert_not_carried(base.text, "larger than the");
    assert_int_equal(unlink(file.text), 0);
    assert_int_equal(mkdir(file.text, 0777), 0);
    assert_not_carried(base.text, "no regular file");
    assert_int_equal(rmdir(file.text), 0);
    assert_int_equal(mkfifo(file.text, 0666), 0); /* reading it would never end */
    assert_not_carried(base.text, "no regular file");
    assert_int_equal(unlink(file.text), 0);
    assert_int_equal(symlink("nowhere", file.text), 0); /* as in a cache whose blobs were deleted */
    assert_not_carried(base.text, "a link leads nowhere");
    scratch_remove(base.text);
}

/* ---- One answer ------------------------------------------------------------------------------- */

static Path model_make(const char *fixture) {
    Path model = scratch_make(), from = path_join("tests/fixtures", fixture);
    copy_file(path_join(from.text, "config.json").text, model.text, "config.json");
    copy_file(path_join(from.text, "model.safetensors").text, model.text, "model.safetensors");
    return model;
}

static void assert_opens(const char *path, const char *message) {
    Source s;
    Error e = {0};
    bool done = source_open(&s, path, false, &e);
    if (done) source_close(&s);
    if (done != (message == NULL) || (message && (e.code != EXIT_DATA || !strstr(e.text, message))))
        fail_msg("%s: error[%d] %s; expected %s", path, e.code, e.text, message ? message : "none");
}

static void a_second_set_of_weights_is_refused_and_both_are_named(void **state) {
    (void)state;
    assert_opens("tests/cases/single_and_index/model", "model.safetensors.index.json and model.safetensors");
    Path model = model_make("olmoe");
    assert_opens(model.text, NULL);
    static const char *const ignored[] = {"pytorch_model.bin", "consolidated.safetensors", "model.fp16.safetensors",
                                          "tf_model.h5"};
    for (size_t i = 0; i < COUNT(ignored); i++) write_text(model.text, ignored[i], "not what transformers loads");
    assert_opens(model.text, NULL);
    copy_file("tests/fixtures/olmoe/model.safetensors", model.text, "model-00001-of-00002.safetensors");
    assert_opens(model.text, "model.safetensors and model-00001-of-00002.safetensors");
    assert_int_equal(unlink(path_join(model.text, "model-00001-of-00002.safetensors").text), 0);
    write_text(model.text, "adapter_config.json", "{}");
    assert_opens(model.text, "an adapter lies beside the weights");
    scratch_remove(model.text);
}

static void weights_that_mop_does_not_read_are_named_with_what_to_do(void **state) {
    (void)state;
    Path model = model_make("olmoe");
    assert_int_equal(unlink(path_join(model.text, "model.safetensors").text), 0);
    assert_opens(model.text, "neither model.safetensors nor");
    write_text(model.text, "adapter_config.json", "{}");
    assert_opens(model.text, "an adapter is there and not the model");
    write_text(model.text, "pytorch_model.bin", "x");
    assert_opens(model.text, "pytorch_model.bin alone");
    scratch_remove(model.text);
}

/* ---- A tied head that is stored too ----------------------------------------------------------- */

/* The fixture's embedding and head, and whether config.json ties them. */
static Path tied_make(bool equal) {
    Path model = model_make("olmoe"), path = path_join(model.text, "model.safetensors");
    Error e = {0};
    Safetensors f;
    json_t *config = json_read_file(path_join(model.text, "config.json").text, 1 << 20, &e);
    assert_non_null(config);
    json_object_set_new(config, "tie_word_embeddings", json_true());
    assert_true(json_write_file(config, path_join(model.text, "config.json").text, &e));
    json_decref(config);
    assert_true(safetensors_open(&f, path.text, &e));
    const StoredTensor *embedding = safetensors_find(&f, "model.embed_tokens.weight"),
                       *head = safetensors_find(&f, "lm_head.weight");
    size_t bytes = (size_t)(head->end - head->begin);
    char *values = malloc(bytes);
    assert_true(safetensors_read(&f, embedding->begin, bytes, values, &e));
    if (!equal) values[bytes - 1] ^= 1;
    int fd = open(path.text, O_WRONLY);
    assert_int_equal(pwrite(fd, values, bytes, head->begin), (ssize_t)bytes);
    close(fd);
    free(values);
    safetensors_close(&f);
    return model;
}

static void a_tied_head_that_is_stored_too_must_be_the_embedding_to_the_bit(void **state) {
    (void)state;
    for (int equal = 0; equal <= 1; equal++) {
        Path model = tied_make(equal), out = path_join(model.text, "out");
        char *argv[] = {"export", model.text, "--out", out.text};
        Spec spec;
        Placement p;
        Source s;
        Error e = {0};
        assert_true(spec_read(&spec, path_join(model.text, "config.json").text, &e));
        assert_true(placement_open(&p, &spec, FP32, false, placement_shard, &e));
        assert_true(source_open(&s, model.text, false, &e));
        Found *found = source_bind(&s, &p, false, &e);
        assert_int_equal(found != NULL, equal);
        if (!equal) assert_int_equal(e.code, EXIT_DATA);
        if (!equal) assert_non_null(strstr(e.text, "tensor lm_head.weight"));
        assert_int_equal(quietly(export_command, 4, argv), equal ? EXIT_DONE : EXIT_DATA);
        free(found);
        source_close(&s);
        placement_close(&p);
        spec_close(&spec);
        scratch_remove(model.text);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_files_go_through_checkpoints_a_resume_without_the_source_and_an_export),
        cmocka_unit_test(a_tokenizer_of_ones_own_replaces_the_sources_with_all_that_belongs_to_it),
        cmocka_unit_test(a_small_file_that_is_broken_huge_or_no_file_is_refused_in_words),
        cmocka_unit_test(a_second_set_of_weights_is_refused_and_both_are_named),
        cmocka_unit_test(weights_that_mop_does_not_read_are_named_with_what_to_do),
        cmocka_unit_test(a_tied_head_that_is_stored_too_must_be_the_embedding_to_the_bit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
