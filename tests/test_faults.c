/* Each call that reaches the disk fails in turn while checkpoints are listed, read, saved, exported and pruned: an error is
 * told as one and never taken for an end or an absence. And the order of a save's calls is the one that a power loss
 * cannot harm. */
#define _GNU_SOURCE
#include "base/file.h"
#include "checkpoint_ranks.h"
#include "file_calls.h"

static const int errors_tried[] = {EIO, EMFILE};

static bool save_steps_5_and_6(Rank *r, void *context, Error *e) {
    (void)context;
    return content_save(r, 5, e) && content_save(r, 6, e);
}

static Path run_of_two(RankPlan *plan) {
    Path run = scratch_make();
    *plan = (RankPlan){"olmoe", "fp32", 1, 1, 1, "", NULL, 0};
    plan->run = run.text;
    ranks_run(plan, save_steps_5_and_6, NULL);
    return run;
}

/* ---- Reading ---------------------------------------------------------------------------------- */

typedef struct {
    int call, why;
    bool came; /* the call that was to fail */
    ResumeReport report;
} Resumed;

static bool resume_with_a_fault(Rank *r, void *context, Error *e) {
    Resumed *x = context;
    calls_begin(x->call, x->why);
    bool done = checkpoint_resume(r->checkpoints, &x->report, e);
    x->came = calls_end();
    return done;
}

static void a_resume_with_one_failed_call_ends_with_its_error_or_at_the_newest_checkpoint(void **state) {
    (void)state;
    RankPlan plan;
    Path run = run_of_two(&plan);
    plan.run = run.text;
    Resumed x = {.why = EIO, .came = true};
    int told = 0;
    for (x.call = 1; x.came; x.call++) {
        Error errors[1] = {{0}};
        bool done = ranks_try(&plan, resume_with_a_fault, &x, errors);
        if (done && (!x.report.found || x.report.state.step != 6 || x.report.damaged > 0))
            fail_msg("call %d failed, and the run resumes from step %lld, %lld damaged", x.call,
                     (long long)x.report.state.step, (long long)x.report.damaged);
        if (!done && errors[0].code != EXIT_IO)
            fail_msg("call %d: error[%d] %s", x.call, errors[0].code, errors[0].text);
        told += !done;
    }
    assert_true(told > 20);
    scratch_remove(run.text);
}

static void a_run_means_its_newest_checkpoint_or_an_error_when_one_call_fails(void **state) {
    (void)state;
    RankPlan plan;
    Path run = run_of_two(&plan);
    for (size_t w = 0; w < COUNT(errors_tried); w++) {
        bool came = true;
        int told = 0;
        for (int call = 1; came; call++) {
            NamedCheckpoint named;
            Error e = {0};
            calls_begin(call, errors_tried[w]);
            bool done = checkpoint_named(run.text, &named, &e);
            came = calls_end();
            if (done ? named.damaged > 0 || !strstr(named.directory.text, "step-00000006") : e.code != EXIT_IO)
                fail_msg("call %d failed with %s: %s, error[%d] %s", call, strerror(errors_tried[w]),
                         named.directory.text, e.code, e.text);
            told += !done;
        }
        assert_true(told > 20);
    }
    scratch_remove(run.text);
}

static void spoil(const char *path) {
    FILE *f = fopen(path, "r+");
    assert_non_null(f);
    fputc('?', f);
    assert_int_equal(fclose(f), 0);
}

static void a_run_whose_newest_checkpoint_is_damaged_means_the_older_one_and_says_so(void **state) {
    (void)state;
    static const char *const names[] = {"manifest.json", "state.json", "tokenizer.json", "model.safetensors"};
    for (size_t i = 0; i <= COUNT(names); i++) {
        RankPlan plan;
        Path run = run_of_two(&plan), newest = path_join(run.text, "ckpt/step-00000006");
        NamedCheckpoint named;
        Error e = {0};
        if (i < COUNT(names))
            spoil(path_join(newest.text, names[i]).text);
        else
            assert_int_equal(unlink(path_join(newest.text, "manifest.json").text), 0);
        assert_true(checkpoint_named(run.text, &named, &e));
        assert_int_equal(named.damaged, 1);
        assert_non_null(strstr(named.directory.text, "step-00000005"));
        assert_non_null(strstr(named.damage, "step-00000006"));
        scratch_remove(run.text);
    }
}

/* ---- Exports ---------------------------------------------------------------------------------- */

static void assert_same_files(const char *a, const char *b) {
    Error e = {0};
    DIR *d = opendir(a);
    assert_non_null(d);
    for (struct dirent *entry; (entry = readdir(d));) {
        size_t x = 0, y = 0;
        if (entry->d_name[0] == '.') continue;
        char *one = file_read(path_join(a, entry->d_name).text, 1 << 24, &x, &e),
             *other = file_read(path_join(b, entry->d_name).text, 1 << 24, &y, &e);
        if (!one || !other || x != y || memcmp(one, other, x) != 0) fail_msg("%s differs: %s", entry->d_name, e.text);
        free(one);
        free(other);
    }
    closedir(d);
    assert_int_equal(entries_of(a), entries_of(b));
}

static void an_export_with_one_failed_call_is_whole_or_not_there(void **state) {
    (void)state;
    RankPlan plan;
    Path run = run_of_two(&plan), whole = path_join(run.text, "whole"), out = path_join(run.text, "out");
    char *argv[] = {"export", run.text, "--out", whole.text};
    assert_int_equal(quietly(export_command, 4, argv), EXIT_DONE);
    argv[3] = out.text;
    bool came = true;
    int told = 0;
    for (int call = 1; came; call++) {
        calls_begin(call, EIO);
        int code = quietly(export_command, 4, argv);
        came = calls_end();
        if (code != EXIT_DONE && code != EXIT_IO) fail_msg("call %d failed: export ended with %d", call, code);
        if (code == EXIT_DONE || entries_of(out.text) >= 0) assert_same_files(whole.text, out.text);
        scratch_remove(out.text);
        told += code == EXIT_IO;
    }
    assert_true(told > 20);
    scratch_remove(run.text);
}

/* ---- While a run trains ------------------------------------------------------------------------ */

/* A run saves step 7 and removes step 6, in the middle of whatever is going on. */
static Path trained, next; /* its directory of checkpoints; where step 7 lies until then */

static void go_on(void) {
    Path seven = path_join(trained.text, "step-00000007"), six = path_join(trained.text, "step-00000006"),
         old = path_join(trained.text, "step-00000006.old-0123456789abcdef");
    MUST(__real_rename(next.text, seven.text) == 0 && __real_rename(six.text, old.text) == 0);
}

static void go_back(void) {
    Path seven = path_join(trained.text, "step-00000007"), six = path_join(trained.text, "step-00000006"),
         old = path_join(trained.text, "step-00000006.old-0123456789abcdef");
    MUST(__real_rename(seven.text, next.text) == 0 && __real_rename(old.text, six.text) == 0);
}

static Path training_run(void) {
    RankPlan plan;
    Path run = run_of_two(&plan);
    trained = path_join(run.text, "ckpt");
    next = path_join(run.text, "next");
    assert_int_equal(rename(path_join(trained.text, "step-00000005").text, next.text), 0);
    calls.instead = go_on;
    return run;
}

static void a_checkpoint_that_a_run_removes_meanwhile_is_not_called_damaged(void **state) {
    (void)state;
    Path run = training_run();
    bool came = true;
    int newer = 0;
    for (int call = 1; came; call++) {
        NamedCheckpoint named;
        Error e = {0};
        calls_begin(call, 0);
        bool done = checkpoint_named(run.text, &named, &e);
        came = calls_end();
        if (!done || named.damaged > 0) fail_msg("gone at call %d: error[%d] %s", call, e.code, e.text);
        newer += strstr(named.directory.text, "step-00000007") != NULL;
        if (came) go_back();
    }
    assert_true(newer > 5);
    calls.instead = NULL;
    scratch_remove(run.text);
}

static void an_export_of_a_checkpoint_that_a_run_removes_meanwhile_is_whole_or_refused(void **state) {
    (void)state;
    Path run = training_run(), six = path_join(run.text, "six"), seven = path_join(run.text, "seven"),
         out = path_join(run.text, "out");
    char *argv[] = {"export", run.text, "--out", six.text}, *other[] = {"export", next.text, "--out", seven.text};
    assert_int_equal(quietly(export_command, 4, argv), EXIT_DONE);
    assert_int_equal(quietly(export_command, 4, other), EXIT_DONE);
    argv[3] = out.text;
    bool came = true;
    int whole = 0, refused = 0;
    for (int call = 1; came; call++) {
        calls_begin(call, 0);
        int code = quietly(export_command, 4, argv);
        came = calls_end();
        if (code != EXIT_DONE && code != EXIT_DATA) fail_msg("gone at call %d: export ended with %d", call, code);
        size_t bytes;
        char *weights = code == EXIT_DONE
                            ? file_read(path_join(out.text, "model.safetensors").text, 1 << 24, &bytes, &(Error){0})
                            : NULL;
        char *sixth =
            weights ? file_read(path_join(six.text, "model.safetensors").text, 1 << 24, &bytes, &(Error){0}) : NULL;
        if (weights)
            assert_same_files(memcmp(weights, sixth, bytes) == 0 ? six.text : seven.text, out.text);
        else
            assert_int_equal(entries_of(out.text), -1);
        free(weights);
        free(sixth);
        scratch_remove(out.text);
        whole += code == EXIT_DONE;
        refused += code == EXIT_DATA;
        if (came) go_back();
    }
    assert_true(whole > 20 && refused > 5);
    calls.instead = NULL;
    scratch_remove(run.text);
}

static void cannot_open(Error *e) {
    snprintf(e->text, sizeof e->text, "cannot open");
    e->code = EXIT_DATA;
}

static void a_checkpoint_that_is_gone_is_told_as_such(void **state) {
    (void)state;
    Error e = {0}, other = {0};
    cannot_open(&e);
    checkpoint_gone("tests/nowhere", &e);
    assert_int_equal(e.code, EXIT_DATA);
    assert_non_null(strstr(e.text, "the checkpoint was removed while it was read"));
    cannot_open(&other);
    checkpoint_gone("tests", &other);
    assert_string_equal(other.text, "cannot open");
}

/* ---- Saving and removing ---------------------------------------------------------------------- */

static bool save_with_a_fault(Rank *r, void *context, Error *e) {
    Resumed *x = context;
    calls_begin(x->call, x->why);
    bool done = content_save(r, 6, e);
    x->came = calls_end();
    return done;
}

static void assert_all_is_listed(const char *directory) {
    Manifest m;
    Error e = {0};
    if (!checkpoint_verify(directory, &e) || !manifest_read(&m, directory, &e)) fail_msg("%s", e.text);
    assert_int_equal(m.count + 1, entries_of(directory)); /* and the manifest itself */
    assert_non_null(manifest_find(&m, "state.json"));
    manifest_close(&m);
}

static void a_save_with_one_failed_call_fails_or_protects_every_file(void **state) {
    (void)state;
    RankPlan plan;
    Path run = run_of_two(&plan), old = path_join(run.text, "ckpt/step-00000005"),
         new = path_join(run.text, "ckpt/step-00000006");
    plan.run = run.text;
    Resumed x = {.why = EIO, .came = true};
    int told = 0;
    for (x.call = 1; x.came; x.call++) {
        Error errors[1] = {{0}};
        scratch_remove(new.text);
        bool done = ranks_try(&plan, save_with_a_fault, &x, errors);
        if (!done && errors[0].code != EXIT_IO)
            fail_msg("call %d: error[%d] %s", x.call, errors[0].code, errors[0].text);
        if (done) assert_all_is_listed(new.text);
        assert_all_is_listed(old.text);
        told += !done;
    }
    assert_true(told > 20);
    scratch_remove(run.text);
}

static void a_prune_with_one_failed_call_fails_or_is_done(void **state) {
    (void)state;
    Path run = scratch_make(), parent = path_join(run.text, "ckpt");
    char *argv[] = {"ckpt", "prune", run.text, "--keep", "1"};
    bool came = true;
    int told = 0;
    for (int call = 1; came; call++) {
        assert_int_equal(mkdir(parent.text, 0777), 0);
        for (int64_t step = 1; step <= 3; step++) {
            Path each = path_join(parent.text, snapshot_name(step).text);
            assert_int_equal(mkdir(each.text, 0777), 0);
            close(creat(path_join(each.text, "manifest.json").text, 0666));
        }
        calls_begin(call, EIO);
        int code = quietly(checkpoint_command, 5, argv);
        came = calls_end();
        if (code != EXIT_DONE && code != EXIT_IO) fail_msg("call %d: prune ended with %d", call, code);
        assert_int_equal(entries_of(path_join(parent.text, "step-00000003").text), 1);
        if (code == EXIT_DONE && entries_of(parent.text) != 1) fail_msg("call %d: prune left some", call);
        scratch_remove(parent.text);
        told += code == EXIT_IO;
    }
    assert_true(told > 5);
    scratch_remove(run.text);
}

/* ---- The order of calls ----------------------------------------------------------------------- */

static int last_call(CallKind kind, const char *path, int before) {
    for (int i = before - 1; i >= 0; i--) {
        if (calls.log[i].kind == kind && strcmp(calls.log[i].path, path) == 0) return i;
    }
    return -1;
}

/* The rename that made `final`. */
static int rename_to(const char *final) {
    for (int i = 0; i < calls.logged; i++) {
        if (calls.log[i].kind == CALL_RENAME && strcmp(calls.log[i].to, final) == 0) return i;
    }
    fail_msg("nothing was renamed to %s", final);
    return -1;
}

/* (In the log a directory's own calls have its last name, and calls of files in it their first.) Every file of `final` was
 * synced after its last write, then the directory they are in, and only then did it get its
 * name, after which the parent was synced. */
static void assert_order(const char *final, const char *parent, int files) {
    int appeared = rename_to(final), last = -1, seen = 0;
    for (int i = 0; i < appeared; i++) {
        const FileCall *c = &calls.log[i];
        if (c->kind != CALL_WRITE) continue;
        int written = last_call(CALL_WRITE, c->path, appeared), synced = last_call(CALL_SYNC, c->path, appeared);
        if (synced < written) fail_msg("%s was not synced after it was written and before %s appeared", c->path, final);
        last = synced > last ? synced : last;
        seen += i == written;
    }
    assert_int_equal(seen, files);
    if (last_call(CALL_SYNC, final, appeared) < last) fail_msg("%s was not synced after its files", final);
    for (int i = appeared + 1; i < calls.logged; i++) {
        if (calls.log[i].kind == CALL_SYNC && strcmp(calls.log[i].path, parent) == 0) return;
    }
    fail_msg("%s was not synced after %s appeared in it", parent, final);
}

static bool save_logged(Rank *r, void *context, Error *e) {
    (void)context;
    if (r->mesh.rank == 0) calls_begin(0, 0);
    if (!host_agree(&r->comm, true, e)) return false;
    bool done = content_save(r, 7, e);
    if (r->mesh.rank == 0) calls_end();
    return done;
}

static void every_file_of_a_save_is_on_the_disk_before_the_checkpoint_appears(void **state) {
    (void)state;
    Path run = scratch_make(), base = scratch_make(), parent = path_join(run.text, "ckpt"),
         final = path_join(parent.text, "step-00000007");
    Error e = {0};
    assert_true(file_write(path_join(base.text, "LICENSE").text, "do what is right\n", 17, &e));
    RankPlan plan = {"olmoe", "fp32", 2, 2, 2, run.text, base.text, 40000};
    ranks_run(&plan, save_logged, NULL);
    assert_order(final.text, parent.text, (int)entries_of(final.text));
    scratch_remove(run.text);
    scratch_remove(base.text);
}

static void every_file_of_an_export_is_on_the_disk_before_the_export_appears(void **state) {
    (void)state;
    Path scratch = scratch_make(), out = path_join(scratch.text, "out"), parent = path_join(scratch.text, "");
    char *argv[] = {"export", "tests/fixtures/olmoe", "--out", out.text};
    calls_begin(0, 0);
    assert_int_equal(quietly(export_command, 4, argv), EXIT_DONE);
    calls_end();
    assert_order(out.text, parent.text, (int)entries_of(out.text));
    scratch_remove(scratch.text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_resume_with_one_failed_call_ends_with_its_error_or_at_the_newest_checkpoint),
        cmocka_unit_test(a_run_means_its_newest_checkpoint_or_an_error_when_one_call_fails),
        cmocka_unit_test(a_run_whose_newest_checkpoint_is_damaged_means_the_older_one_and_says_so),
        cmocka_unit_test(an_export_with_one_failed_call_is_whole_or_not_there),
        cmocka_unit_test(a_checkpoint_that_a_run_removes_meanwhile_is_not_called_damaged),
        cmocka_unit_test(an_export_of_a_checkpoint_that_a_run_removes_meanwhile_is_whole_or_refused),
        cmocka_unit_test(a_checkpoint_that_is_gone_is_told_as_such),
        cmocka_unit_test(a_save_with_one_failed_call_fails_or_protects_every_file),
        cmocka_unit_test(a_prune_with_one_failed_call_fails_or_is_done),
        cmocka_unit_test(every_file_of_a_save_is_on_the_disk_before_the_checkpoint_appears),
        cmocka_unit_test(every_file_of_an_export_is_on_the_disk_before_the_export_appears),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
