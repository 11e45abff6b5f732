/* Checkpoints: any layout reads any other's to the bit, damage is found wherever it is, a failed save leaves no
 * trace, weights come in every spelling that Hugging Face has. */
#define _GNU_SOURCE
#include "base/file.h"
#include "checkpoint/source.h"
#include "checkpoint_kills.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

/* ---- Saving and loading ----------------------------------------------------------------------- */

static bool save_step_5(Rank *r, void *context, Error *e) {
    (void)context;
    return content_save(r, 5, e);
}

static bool save_steps_5_and_6(Rank *r, void *context, Error *e) {
    (void)context;
    return content_save(r, 5, e) && content_save(r, 6, e);
}

/* Resumes and expects step *context. */
static bool resume(Rank *r, void *context, Error *e) {
    ResumeReport report;
    int64_t step = *(const int64_t *)context;
    content_fill(r, 999);
    if (!checkpoint_resume(r->checkpoints, &report, e)) return false;
    if (!report.found || !state_equals(&report.state, step))
        return differs(e, "step %lld instead", (long long)report.state.step);
    return content_check(r, (uint64_t)step, e);
}

static void a_checkpoint_saved_on_four_ranks_loads_on_one_two_three_and_eight(void **state) {
    (void)state;
    static const struct {
        const char *fixture, *type;
        int64_t shard;
    } rows[] = {{"olmoe", "fp32", 0},
                {"qwen3_moe", "bf16", 20000},
                {"mixtral", "fp64", 30000},
                {"qwen3_moe_window", "fp32", 0}};
    static const int layouts[][3] = {{1, 1, 1}, {2, 2, 1}, {2, 1, 2}, {3, 3, 3}, {8, 4, 8}}; /* world, dense, expert */
    int64_t step = 5;
    for (size_t i = 0; i < COUNT(rows); i++) {
        Path run = scratch_make();
        RankPlan plan = {rows[i].fixture, rows[i].type, 4, 4, 2, run.text, NULL, rows[i].shard};
        ranks_run(&plan, save_step_5, NULL);
        for (size_t k = 0; k < COUNT(layouts); k++) {
            plan.world = layouts[k][0];
            plan.dense = layouts[k][1];
            plan.expert = layouts[k][2];
            ranks_run(&plan, resume, &step);
        }
        scratch_remove(run.text);
    }
}

static void a_checkpoint_does_not_depend_on_the_layout_that_wrote_it(void **state) {
    (void)state;
    static const int layouts[][3] = {{1, 1, 1}, {3, 3, 1}, {4, 2, 4}};
    char *first = NULL;
    size_t first_bytes = 0;
    for (size_t k = 0; k < COUNT(layouts); k++) {
        Path run = scratch_make();
        RankPlan plan = {"olmoe", "fp32", layouts[k][0], layouts[k][1], layouts[k][2], run.text, NULL, 0};
        Error e = {0};
        ranks_run(&plan, save_step_5, NULL);
        size_t bytes;
        char *text = file_read(path_join(run.text, "ckpt/step-00000005/optim-00001-of-00001.safetensors").text, 1 << 24,
                               &bytes, &e);
        assert_non_null(text);
        if (!first) {
            first = text;
            first_bytes = bytes;
        } else {
            assert_int_equal(bytes, first_bytes);
            assert_memory_equal(text, first, bytes);
            free(text);
        }
        scratch_remove(run.text);
    }
    free(first);
}

static bool expect_nothing(Rank *r, void *context, Error *e) {
    ResumeReport report;
    (void)context;
    return checkpoint_resume(r->checkpoints, &report, e) && !report.found;
}

static void a_run_without_checkpoints_begins_anew(void **state) {
    (void)state;
    Path run = scratch_make();
    RankPlan plan = {"olmoe", "fp32", 2, 2, 2, run.text, NULL, 0};
    ranks_run(&plan, expect_nothing, NULL);
    scratch_remove(run.text);
}

static bool save_and_keep_two(Rank *r, void *context, Error *e) {
    (void)context;
    for (int64_t step = 1; step <= 4; step++) {
        if (!content_save(r, step, e) || !checkpoint_keep(r->checkpoints, 2, e)) return false;
    }
    return content_save(r, 4, e); /* again, in place of itself */
}

static void the_newest_are_kept_and_what_killed_runs_left_is_removed(void **state) {
    (void)state;
    Path run = scratch_make();
    RankPlan plan = {"olmoe", "fp32", 2, 2, 1, run.text, NULL, 0};
    ranks_run(&plan, save_and_keep_two, NULL);
    Path parent = snapshot_parent(run.text);
    assert_int_equal(entries_of(parent.text), 2);
    Path leftover = path_join(parent.text, "step-00000009.tmp-0123456789abcdef");
    assert_int_equal(mkdir(leftover.text, 0777), 0);
    close(creat(path_join(leftover.text, "model.safetensors").text, 0666));
    assert_int_equal(mkdir(path_join(parent.text, "step-00000001.old-0123456789abcdef").text, 0777), 0);
    int64_t step = 4;
    ranks_run(&plan, resume, &step);
    assert_int_equal(entries_of(parent.text), 2);
    scratch_remove(run.text);
}

/* ---- Damage ----------------------------------------------------------------------------------- */

static void flip(const char *path, int64_t bit) {
    int fd = open(path, O_RDWR);
    unsigned char byte;
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &byte, 1, bit / 8), 1);
    byte ^= (unsigned char)(1 << bit % 8);
    assert_int_equal(pwrite(fd, &byte, 1, bit / 8), 1);
    close(fd);
}

static int64_t size_of(const char *path) {
    struct stat s;
    assert_int_equal(stat(path, &s), 0);
    return s.st_size;
}

/* `count` bits spread evenly over a file are flipped, one at a time. */
static void check_flips(const char *directory, const char *name, int64_t count) {
    Path path = path_join(directory, name);
    int64_t bits = 8 * size_of(path.text);
    for (int64_t i = 0; i < count; i++) {
        int64_t bit = (bits - 1) * i / (count - 1);
        Error e = {0};
        flip(path.text, bit);
        if (checkpoint_verify(directory, &e))
            fail_msg("bit %lld of %s was flipped and not found", (long long)bit, name);
        if (e.code != EXIT_DATA || !strstr(e.text, name))
            fail_msg("bit %lld of %s: error[%d] %s", (long long)bit, name, e.code, e.text);
        flip(path.text, bit);
    }
}

static void a_flipped_bit_anywhere_is_found(void **state) {
    (void)state;
    Path run = scratch_make();
    RankPlan plan = {"qwen3_moe", "bf16", 3, 3, 3, run.text, NULL, 40000};
    ranks_run(&plan, save_step_5, NULL);
    Path directory = path_join(snapshot_parent(run.text).text, "step-00000005");
    Error e = {0};
    if (!checkpoint_verify(directory.text, &e)) fail_msg("%s", e.text);
    int64_t files = 0;
    DIR *d = opendir(directory.text);
    for (struct dirent *entry; (entry = readdir(d));) {
        if (entry->d_name[0] == '.') continue;
        check_flips(directory.text, entry->d_name, 40);
        files++;
    }
    closedir(d);
    assert_true(files >= 11); /* 2 + 7 of weights and moments, index, config, generation, state, tokenizer, manifest */
    if (!checkpoint_verify(directory.text, &e)) fail_msg("not put back: %s", e.text);
    scratch_remove(run.text);
}

static bool load_damaged(Rank *r, void *context, Error *e) {
    TrainState state;
    return checkpoint_load(r->checkpoints, context, &state, e);
}

static bool expect_pass_over(Rank *r, void *context, Error *e) {
    ResumeReport report;
    if (!checkpoint_resume(r->checkpoints, &report, e)) return false;
    if (report.damaged != 1 || !strstr(report.damage, context) || !state_equals(&report.state, 5))
        return differs(e, "%lld damaged: %s", (long long)report.damaged, report.damage);
    return content_check(r, 5, e);
}

static void loading_a_damaged_checkpoint_names_file_and_tensor_and_resuming_passes_over_it(void **state) {
    (void)state;
    Path run = scratch_make();
    RankPlan plan = {"olmoe", "fp32", 4, 4, 2, run.text, NULL, 0};
    ranks_run(&plan, save_steps_5_and_6, NULL);
    Path parent = snapshot_parent(run.text), newest = path_join(parent.text, "step-00000006");
    Path file = path_join(newest.text, "optim-00001-of-00001.safetensors");
    Safetensors f;
    Error e = {0}, errors[4] = {{0}};
    const char *name = "model.layers.1.mlp.experts.6.down_proj.weight.exp_avg_sq";
    assert_true(safetensors_open(&f, file.text, &e));
    flip(file.text, 8 * safetensors_find(&f, name)->begin + 77);
    safetensors_close(&f);
    assert_false(ranks_try(&plan, load_damaged, newest.text, errors));
    for (int r = 0; r < 4; r++) {
        assert_int_equal(errors[r].code, EXIT_DATA);
        assert_non_null(strstr(errors[r].text, name));
        assert_non_null(strstr(errors[r].text, file.text));
    }
    plan.world = plan.dense = 2; /* each rank sees damage, or none does */
    ranks_run(&plan, expect_pass_over, (void *)name);
    plan.world = plan.dense = 1, plan.expert = 1;
    ranks_run(&plan, expect_pass_over, (void *)name);

    Path older = path_join(parent.text, "step-00000005/config.json");
    flip(older.text, 99);
    assert_false(ranks_try(&plan, expect_nothing, NULL, errors));
    assert_int_equal(errors[0].code, EXIT_DATA);
    assert_non_null(strstr(errors[0].text, "all 2 checkpoints are damaged"));
    scratch_remove(run.text);
}

static void a_missing_longer_or_shorter_file_is_damage(void **state) {
    (void)state;
    Path run = scratch_make();
    RankPlan plan = {"olmoe", "fp32", 1, 1, 1, run.text, NULL, 0};
    static const char *const names[] = {"model.safetensors", "optim-00001-of-00001.safetensors", "state.json",
                                        "manifest.json"};
    for (size_t i = 0; i < COUNT(names); i++) {
        for (int change = -1; change <= 1; change++) {
            ranks_run(&plan, save_step_5, NULL);
            Path directory = path_join(snapshot_parent(run.text).text, "step-00000005"),
                 path = path_join(directory.text, names[i]);
            Error e = {0}, errors[1] = {{0}};
            if (change)
                assert_int_equal(truncate(path.text, size_of(path.text) + change), 0);
            else
                assert_int_equal(unlink(path.text), 0);
            assert_false(checkpoint_verify(directory.text, &e));
            assert_int_equal(e.code, EXIT_DATA);
            assert_false(ranks_try(&plan, load_damaged, directory.text, errors));
            assert_int_equal(errors[0].code, EXIT_DATA);
            assert_non_null(strstr(errors[0].text, directory.text));
        }
    }
    scratch_remove(run.text);
}

static void another_model_or_compute_type_is_refused_not_passed_over(void **state) {
    (void)state;
    Path run = scratch_make();
    Error errors[2] = {{0}};
    int64_t step = 5;
    RankPlan plan = {"olmoe", "fp32", 2, 2, 2, run.text, NULL, 0};
    ranks_run(&plan, save_step_5, NULL);
    plan.type = "bf16";
    assert_false(ranks_try(&plan, resume, &step, errors));
    assert_int_equal(errors[1].code, EXIT_DATA);
    assert_non_null(strstr(errors[1].text, "compute.type"));
    plan.type = "fp32";
    plan.fixture = "mixtral";
    assert_false(ranks_try(&plan, resume, &step, errors));
    assert_int_equal(errors[1].code, EXIT_USAGE);
    assert_non_null(strstr(errors[1].text, "model_type was olmoe when the run began and is mixtral now"));
    scratch_remove(run.text);
}

/* ---- Failing disks ---------------------------------------------------------------------------- */

/* In a child, where no file may grow beyond 60 000 bytes: what rank 0 gets for a full disk, the others hear of. */
static bool save_step_6(Rank *r, void *context, Error *e) {
    (void)context;
    return content_save(r, 6, e);
}

static int save_limited(const RankPlan *plan) {
    const struct rlimit limit = {60000, 60000};
    Error errors[16] = {{0}};
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
    if (ranks_try(plan, save_step_6, NULL, errors)) return 1;
    for (int r = 0; r < plan->world; r++) {
        if (errors[r].code != EXIT_IO || !strstr(errors[r].text, "step-00000006")) return 2;
    }
    return 0;
}

static void a_full_disk_is_an_error_on_all_ranks_and_leaves_older_checkpoints_alone(void **state) {
    (void)state;
    Path run = scratch_make();
    RankPlan plan = {"olmoe", "fp32", 3, 3, 1, run.text, NULL, 0};
    ranks_run(&plan, save_step_5, NULL);
    pid_t child = fork();
    if (child == 0) _exit(save_limited(&plan));
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    Path parent = snapshot_parent(run.text);
    assert_int_equal(entries_of(parent.text), 1);
    Error e = {0};
    assert_true(checkpoint_verify(path_join(parent.text, "step-00000005").text, &e));
    scratch_remove(run.text);
}

static void a_directory_that_cannot_be_made_is_an_error_on_all_ranks(void **state) {
    (void)state;
    Path run = scratch_make();
    RankPlan plan = {"olmoe", "fp32", 2, 2, 1, run.text, NULL, 0};
    Error errors[2] = {{0}};
    close(creat(path_join(run.text, "ckpt").text, 0666));
    assert_false(ranks_try(&plan, save_step_5, NULL, errors));
    for (int r = 0; r < 2; r++) assert_int_equal(errors[r].code, EXIT_IO);
    scratch_remove(run.text);
}

static void killed_at_random_points_of_saving_the_last_complete_checkpoint_loads(void **state) {
    (void)state;
    kill_trials(20, 1);
}

/* ---- Weights from elsewhere ------------------------------------------------------------------- */

/* Weights in one hash, whatever the layout. */
typedef struct {
    const char *path;
    XXH128_hash_t hash;
    pthread_mutex_t lock;
} Loaded;

static bool load_weights(Rank *r, void *context, Error *e) {
    Loaded *l = context;
    const Slice *slices;
    if (!checkpoint_load_weights(r->checkpoints, l->path, e)) return false;
    int64_t count = store_slices(r->store, &slices);
    for (int64_t i = 0; i < count; i++) {
        for (int64_t j = 0; slices[i].owner && j < slices[i].count; j++) {
            char element[256];
            uint64_t bits = 0;
            store_copy_out(r->store, &slices[i], STORE_MASTER, j, 1, &bits);
            int bytes = snprintf(element, sizeof element, "%s %lld %llx", slices[i].name,
                                 (long long)(slices[i].first + j), (unsigned long long)bits);
            XXH128_hash_t h = XXH3_128bits(element, (size_t)bytes);
            pthread_mutex_lock(&l->lock);
            l->hash.low64 += h.low64;
            l->hash.high64 += h.high64;
            pthread_mutex_unlock(&l->lock);
        }
    }
    return true;
}

static XXH128_hash_t weights_of(const char *fixture, const char *type, int world, int dense, int expert,
                                const char *path) {
    RankPlan plan = {fixture, type, world, dense, expert, "", NULL, 0};
    Loaded l = {.path = path, .lock = PTHREAD_MUTEX_INITIALIZER};
    ranks_run(&plan, load_weights, &l);
    return l.hash;
}

static void fused_weights_load_like_one_tensor_an_expert_in_any_layout(void **state) {
    (void)state;
    static const char *const fixtures[] = {"olmoe", "mixtral"};
    for (size_t i = 0; i < COUNT(fixtures); i++) {
        char one[128], fused[128], directory[128];
        snprintf(one, sizeof one, "tests/fixtures/%s/model.safetensors", fixtures[i]);
        snprintf(fused, sizeof fused, "tests/fixtures/%s/model-fused.safetensors", fixtures[i]);
        snprintf(directory, sizeof directory, "tests/fixtures/%s", fixtures[i]);
        XXH128_hash_t expected = weights_of(fixtures[i], "fp32", 1, 1, 1, one);
        assert_true(XXH128_isEqual(expected, weights_of(fixtures[i], "fp32", 1, 1, 1, fused)));
        assert_true(XXH128_isEqual(expected, weights_of(fixtures[i], "fp32", 3, 3, 3, fused)));
        assert_true(XXH128_isEqual(expected, weights_of(fixtures[i], "fp32", 4, 2, 4, directory)));
        assert_true(
            XXH128_isEqual(expected, weights_of(fixtures[i], "bf16", 2, 2, 2, fused))); /* the masters are fp32 */
    }
}

/* Rank 1 has a file of its own. */
static bool load_own(Rank *r, void *context, Error *e) {
    const char *const *paths = context;
    return checkpoint_load_weights(r->checkpoints, paths[r->mesh.rank == 1], e);
}

static void ranks_that_read_other_weights_are_refused(void **state) {
    (void)state;
    static const char whole[] = "tests/fixtures/olmoe/model.safetensors";
    Path scratch = scratch_make(), copy = path_join(scratch.text, "model.safetensors");
    RankPlan plan = {"olmoe", "fp32", 3, 3, 1, "", NULL, 0};
    Error errors[3] = {{0}}, e = {0};
    size_t bytes;
    char *text = file_read(whole, (size_t)1 << 24, &bytes, &e);
    assert_true(text && file_write(copy.text, text, bytes, &e));
    const char *paths[] = {whole, copy.text};
    ranks_run(&plan, load_own, paths);
    text[bytes - 1] ^= 1;
    assert_true(file_write(copy.text, text, bytes, &e));
    assert_false(ranks_try(&plan, load_own, paths, errors));
    for (int r = 0; r < 3; r++) {
        assert_int_equal(errors[r].code, EXIT_USAGE);
        assert_non_null(strstr(errors[r].text, "the weights to be read differ on rank 1: give every host the same"));
    }
    free(text);
    scratch_remove(scratch.text);
}

/* A file's header with changes made to it, before the same data, in `directory`. */
static void write_changed(const char *fixture, json_t *changes, const char *directory, const char *name) {
    char path[128];
    Error e = {0};
    Safetensors f;
    snprintf(path, sizeof path, "tests/fixtures/%s/model.safetensors", fixture);
    assert_true(safetensors_open(&f, path, &e));
    const char *key;
    json_t *value;
    json_object_foreach(changes, key, value) {
        json_t *entry = json_object_get(f.header, key);
        const char *renamed = json_string_value(value);
        assert_non_null(entry);
        if (renamed) {
            json_object_set(f.header, renamed, entry);
            json_object_del(f.header, key);
        } else {
            json_object_update(entry, value);
        }
    }
    char *text = json_dumps(f.header, JSON_COMPACT), *data = malloc((size_t)(f.bytes - f.data));
    uint64_t bytes = strlen(text);
    assert_true(safetensors_read(&f, f.data, (size_t)(f.bytes - f.data), data, &e));
    FILE *out = fopen(path_join(directory, name).text, "wb");
    assert_int_equal(
        fwrite(&bytes, 8, 1, out) + fwrite(text, bytes, 1, out) + fwrite(data, (size_t)(f.bytes - f.data), 1, out), 3);
    assert_int_equal(fclose(out), 0);
    free(text);
    free(data);
    safetensors_close(&f);
    json_decref(changes);
}

static void assert_refused(const char *fixture, const char *path, const char *message) {
    RankPlan plan = {fixture, "fp32", 2, 2, 2, "", NULL, 0};
    Error errors[2] = {{0}};
    Loaded l = {.path = path, .lock = PTHREAD_MUTEX_INITIALIZER};
    assert_false(ranks_try(&plan, load_weights, &l, errors));
    for (int r = 0; r < 2; r++) {
        if (errors[r].code != EXIT_DATA || !strstr(errors[r].text, message))
            fail_msg("rank %d: error[%d] %s; expected %s", r, errors[r].code, errors[r].text, message);
    }
}

static void missing_unused_and_misshapen_tensors_are_named(void **state) {
    (void)state;
    Path scratch = scratch_make(), path = path_join(scratch.text, "model.safetensors");
    write_changed("olmoe", json_pack("{s:s}", "model.norm.weight", "model.norm.extra"), scratch.text,
                  "model.safetensors");
    assert_refused("olmoe", path.text, "1 missing (model.norm.weight), 1 not used (model.norm.extra)");
    write_changed("olmoe", json_pack("{s:{s:[i,i]}}", "model.layers.1.mlp.experts.2.up_proj.weight", "shape", 24, 16),
                  scratch.text, "model.safetensors");
    assert_refused("olmoe", scratch.text,
                   "model.layers.1.mlp.experts.2.up_proj.weight F32 [24, 16] instead of [16, 24]");
    write_changed("olmoe", json_pack("{s:{s:s}}", "model.embed_tokens.weight", "dtype", "I32"), scratch.text,
                  "model.safetensors");
    assert_refused("olmoe", scratch.text, "model.embed_tokens.weight I32 [67, 24]");
    write_changed("qwen3_moe", json_pack("{s:s}", "model.norm.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"),
                  scratch.text, "model.safetensors");
    assert_refused("qwen3_moe", scratch.text, "not used (model.layers.0.self_attn.rotary_emb.inv_freq)");
    assert_refused("olmoe", "tests/fixtures/mixtral/model.safetensors",
                   "missing (model.layers.0.self_attn.q_norm.weight");
    assert_refused("mixtral", "tests/fixtures/olmoe/model-fused.safetensors",
                   "not used (model.layers.0.self_attn.k_norm.weight");
    assert_refused("olmoe", "tests/fixtures", "neither model.safetensors nor");
    assert_refused("olmoe", "tests/nowhere", "nothing is there");
    scratch_remove(scratch.text);
}

static void write_text(const char *directory, const char *name, const char *text) {
    Error e = {0};
    assert_true(file_write(path_join(directory, name).text, text, strlen(text), &e));
}

static void an_index_and_its_shards_must_agree(void **state) {
    (void)state;
    static const char index[] = "model.safetensors.index.json";
    Path scratch = scratch_make();
    write_text(scratch.text, index, "{\"weight_map\": 5}");
    assert_refused("olmoe", scratch.text, "no \"weight_map\"");
    write_text(scratch.text, index, "{\"weight_map\": {\"lm_head.weight\": \"../model.safetensors\"}}");
    assert_refused("olmoe", scratch.text, "names no file beside it");
    write_text(scratch.text, index, "{\"weight_map\": {\"lm_head.weight\": \"a.safetensors\"}}");
    assert_refused("olmoe", scratch.text, "a file that the index names is not there");
    write_changed("olmoe", json_object(), scratch.text, "a.safetensors");
    assert_refused("olmoe", scratch.text, "is in a.safetensors, where the index does not have it");
    write_text(scratch.text, index, "{\"weight_map\": {\"nowhere\": \"a.safetensors\"}}");
    assert_refused("olmoe", scratch.text, "tensor nowhere is not in a.safetensors");
    scratch_remove(scratch.text);
}

static void a_tensor_in_two_shards_is_named(void **state) {
    (void)state;
    Path scratch = scratch_make();
    Safetensors f;
    Error e = {0};
    write_changed("olmoe", json_object(), scratch.text, "a.safetensors");
    Header h; /* a second shard with one tensor of the first */
    header_begin(&h);
    header_add(&h, "model.norm.weight", STORED_F32, 1, (int64_t[]){24});
    assert_true(header_end(&h));
    FILE *out = fopen(path_join(scratch.text, "b.safetensors").text, "wb");
    fwrite(h.text.text, h.text.bytes, 1, out);
    fwrite((float[24]){0}, 96, 1, out);
    fclose(out);
    free(h.text.text);
    assert_true(safetensors_open(&f, path_join(scratch.text, "a.safetensors").text, &e));
    json_t *map = json_object();
    for (int64_t i = 0; i < f.count; i++) json_object_set_new(map, f.tensors[i].name, json_string("a.safetensors"));
    json_object_set_new(map, "model.norm.weight", json_string("b.safetensors"));
    json_t *index = json_pack("{s:o}", "weight_map", map);
    assert_true(json_write_file(index, path_join(scratch.text, "model.safetensors.index.json").text, &e));
    json_decref(index);
    safetensors_close(&f);
    assert_refused("olmoe", scratch.text,
                   "tensor model.norm.weight is in a.safetensors, where the index does not have it");
    scratch_remove(scratch.text);
}

/* ---- Export and commands ---------------------------------------------------------------------- */

static int run_command(int (*command)(int, char **), const char *const *arguments) {
    char *argv[8] = {0};
    int argc = 0;
    while (arguments[argc]) argv[argc] = (char *)arguments[argc], argc++;
    return quietly(command, argc, argv);
}
#define RUN(command, ...) run_command(command, (const char *const[]){__VA_ARGS__, NULL})

static void an_export_is_the_model_its_licence_and_nothing_else(void **state) {
    (void)state;
    Path run = scratch_make(), base = scratch_make(), out = path_join(run.text, "out"),
         narrow = path_join(run.text, "narrow");
    write_text(base.text, "LICENSE", "do what is right\n");
    write_text(base.text, "README.md", "---\nlanguage: en\nlicense: apache-2.0\n---\n# Base\n");
    RankPlan plan = {"olmoe", "fp32", 2, 2, 2, run.text, base.text, 40000};
    ranks_run(&plan, save_step_5, NULL);
    Path checkpoint = path_join(snapshot_parent(run.text).text, "step-00000005");
    assert_int_equal(RUN(export_command, "export", run.text, "--out", out.text), EXIT_DONE);
    assert_true(XXH128_isEqual(weights_of("olmoe", "fp32", 1, 1, 1, checkpoint.text),
                               weights_of("olmoe", "fp32", 1, 1, 1, out.text)));
    assert_int_equal(entries_of(out.text), 7); /* model, config, generation_config, tokenizer twice, README, LICENSE */
    Error e = {0};
    size_t bytes;
    char *card = file_read(path_join(out.text, "README.md").text, 1 << 20, &bytes, &e);
    assert_non_null(strstr(card, "\nlicense: apache-2.0\n"));
    free(card);
    assert_int_equal(RUN(export_command, "export", checkpoint.text, "--dtype", "bf16", "--out", narrow.text),
                     EXIT_DONE);
    Spec s;
    assert_true(spec_read(&s, path_join(narrow.text, "config.json").text, &e));
    assert_string_equal(json_string_value(json_object_get(s.source, "torch_dtype")), "bfloat16");
    spec_close(&s);
    weights_of("olmoe", "bf16", 1, 1, 1, narrow.text);

    assert_int_equal(RUN(export_command, "export", run.text, "--out", out.text), EXIT_USAGE);
    assert_int_equal(RUN(export_command, "export", run.text), EXIT_USAGE);
    assert_int_equal(RUN(export_command, "export", run.text, "--out"), EXIT_USAGE);
    assert_int_equal(RUN(export_command, "export", run.text, "--out", "/tmp/x", "--dtype", "int8"), EXIT_USAGE);
    assert_int_equal(RUN(export_command, "export", base.text, "--out", path_join(run.text, "none").text), EXIT_DATA);
    int64_t before = entries_of(run.text);
    flip(path_join(checkpoint.text, "model-00001-of-00003.safetensors").text, 8 * 20000);
    assert_int_equal(RUN(export_command, "export", checkpoint.text, "--out", path_join(run.text, "none").text),
                     EXIT_DATA);
    assert_int_equal(entries_of(run.text), before);
    scratch_remove(run.text);
    scratch_remove(base.text);
}

static void a_fused_model_exports_as_one_tensor_an_expert(void **state) {
    (void)state;
    Path scratch = scratch_make(), in = path_join(scratch.text, "in"), out = path_join(scratch.text, "out");
    Error e = {0};
    assert_int_equal(mkdir(in.text, 0777), 0);
    size_t bytes;
    char *text = file_read("tests/fixtures/mixtral/model-fused.safetensors", 1 << 24, &bytes, &e);
    assert_true(file_write(path_join(in.text, "model.safetensors").text, text, bytes, &e));
    free(text);
    text = file_read("tests/fixtures/mixtral/config.json", 1 << 20, &bytes, &e);
    assert_true(file_write(path_join(in.text, "config.json").text, text, bytes, &e));
    free(text);
    assert_int_equal(RUN(export_command, "export", in.text, "--out", out.text), EXIT_DONE);
    assert_true(XXH128_isEqual(weights_of("mixtral", "fp32", 1, 1, 1, "tests/fixtures/mixtral"),
                               weights_of("mixtral", "fp32", 1, 1, 1, out.text)));
    Safetensors f;
    assert_true(safetensors_open(&f, path_join(out.text, "model.safetensors").text, &e));
    assert_non_null(safetensors_find(&f, "model.layers.1.block_sparse_moe.experts.5.w2.weight"));
    safetensors_close(&f);
    scratch_remove(scratch.text);
}

static void commands_tell_whole_from_damaged_and_never_crash(void **state) {
    (void)state;
    Path run = scratch_make(), parent = snapshot_parent(run.text);
    RankPlan plan = {"mixtral", "fp32", 1, 1, 1, run.text, NULL, 0};
    ranks_run(&plan, save_steps_5_and_6, NULL);
    Path old = path_join(parent.text, "step-00000005"), new = path_join(parent.text, "step-00000006");
    Path model = path_join(new.text, "model.safetensors");
    assert_int_equal(RUN(checkpoint_command, "ckpt", "verify", run.text), EXIT_DONE);
    assert_int_equal(RUN(checkpoint_command, "ckpt", "verify", new.text), EXIT_DONE);
    assert_int_equal(RUN(checkpoint_command, "ckpt", "list", run.text), EXIT_DONE);
    assert_int_equal(RUN(checkpoint_command, "ckpt", "diff", new.text, new.text), EXIT_DONE);
    assert_int_equal(RUN(checkpoint_command, "ckpt", "diff", old.text, new.text), 1);
    assert_int_equal(RUN(checkpoint_command, "ckpt", "diff", old.text), EXIT_USAGE);
    assert_int_equal(RUN(checkpoint_command, "ckpt", "diff", old.text, "tests/fixtures/olmoe"), EXIT_DATA);
    assert_int_equal(RUN(checkpoint_command, "ckpt", "prune", run.text, "--keep", "0"), EXIT_USAGE);
    assert_int_equal(RUN(checkpoint_command, "ckpt"), EXIT_USAGE);
    assert_int_equal(RUN(checkpoint_command, "ckpt", "verify", "tests/fixtures"), EXIT_DATA);
    assert_int_equal(RUN(inspect_command, "inspect", run.text), EXIT_DONE);
    assert_int_equal(RUN(inspect_command, "inspect", new.text), EXIT_DONE);
    assert_int_equal(RUN(inspect_command, "inspect", model.text), EXIT_DONE);
    assert_int_equal(RUN(inspect_command, "inspect", "tests/fixtures/olmoe"), EXIT_DONE);
    assert_int_equal(RUN(inspect_command, "inspect", "tests/fixtures/olmoe/reference.safetensors"), EXIT_DONE);
    assert_int_equal(RUN(inspect_command, "inspect", "tests/fixtures"), EXIT_DATA);
    assert_int_equal(RUN(inspect_command, "inspect"), EXIT_USAGE);
    int64_t bytes = size_of(model.text);
    for (int64_t i = 0; i < 60; i++) { /* ever shorter, and a bit flipped in the header */
        flip(model.text, 8 * (i % 8) + i % 7);
        int code = RUN(inspect_command, "inspect", model.text);
        assert_true(code == EXIT_DONE || code == EXIT_DATA);
        flip(model.text, 8 * (i % 8) + i % 7);
        assert_int_equal(truncate(model.text, bytes - (bytes * i) / 60 - 1), 0);
        assert_int_equal(RUN(inspect_command, "inspect", model.text), EXIT_DATA);
        assert_int_equal(RUN(inspect_command, "inspect", new.text), EXIT_DATA);
    }
    assert_int_equal(RUN(checkpoint_command, "ckpt", "verify", run.text), EXIT_DATA);
    assert_int_equal(RUN(checkpoint_command, "ckpt", "list", run.text), EXIT_DONE);
    assert_int_equal(RUN(checkpoint_command, "ckpt", "prune", run.text, "--keep", "1"), EXIT_DONE);
    assert_int_equal(entries_of(parent.text), 1);
    scratch_remove(run.text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_checkpoint_saved_on_four_ranks_loads_on_one_two_three_and_eight),
        cmocka_unit_test(a_checkpoint_does_not_depend_on_the_layout_that_wrote_it),
        cmocka_unit_test(a_run_without_checkpoints_begins_anew),
        cmocka_unit_test(the_newest_are_kept_and_what_killed_runs_left_is_removed),
        cmocka_unit_test(a_flipped_bit_anywhere_is_found),
        cmocka_unit_test(loading_a_damaged_checkpoint_names_file_and_tensor_and_resuming_passes_over_it),
        cmocka_unit_test(a_missing_longer_or_shorter_file_is_damage),
        cmocka_unit_test(another_model_or_compute_type_is_refused_not_passed_over),
        cmocka_unit_test(a_full_disk_is_an_error_on_all_ranks_and_leaves_older_checkpoints_alone),
        cmocka_unit_test(a_directory_that_cannot_be_made_is_an_error_on_all_ranks),
        cmocka_unit_test(killed_at_random_points_of_saving_the_last_complete_checkpoint_loads),
        cmocka_unit_test(fused_weights_load_like_one_tensor_an_expert_in_any_layout),
        cmocka_unit_test(ranks_that_read_other_weights_are_refused),
        cmocka_unit_test(missing_unused_and_misshapen_tensors_are_named),
        cmocka_unit_test(an_index_and_its_shards_must_agree),
        cmocka_unit_test(a_tensor_in_two_shards_is_named),
        cmocka_unit_test(an_export_is_the_model_its_licence_and_nothing_else),
        cmocka_unit_test(a_fused_model_exports_as_one_tensor_an_expert),
        cmocka_unit_test(commands_tell_whole_from_damaged_and_never_crash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
