/* Machines: built-in rows and files. A file is damaged in one way at a time, and each damage has its sentence; then
 * in many ways at once. */
#include "device/device.h"
#include "ops/kernels.h"
#include "plan/doctor_parts.h"
#include "plan/other_products.h"
#include "plan/peaks.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const rows[] = {"cpu", "h200", "h100", "h200x1", "h100x1", "a100x1"};

static json_t *whole_file(void) {
    Machine m;
    Error e = {0};
    assert_true(machine_open("cpu", &m, &e));
    m.nodes = 1;
    json_t *file = machine_json(&m);
    assert_int_equal(json_object_set_new(file, "measured",
                                         json_pack("{s:{s:f, s:f, s:f}}", "fma_fp32_1_thread_flop_per_s", "min", 1.0,
                                                   "median", 2.0, "max", 3.0)),
                     0);
    return file;
}

static bool accepted(const json_t *file, Machine *m, Error *e) {
    char *text = json_dumps(file, JSON_ENCODE_ANY);
    assert_non_null(text);
    bool ok = machine_parse(text, strlen(text), "test.json", m, e);
    free(text);
    return ok;
}

/* ---- Damage ------------------------------------------------------------------------------------------ */

#define FIGURE "fma_fp32_1_thread_flop_per_s"

static const struct {
    const char *section, *key, *value; /* of the file, or of its section; NULL: taken away */
    const char *sentence;
} damages[] = {
    {NULL, "mop_machine", NULL, "\"mop_machine\": missing"},
    {NULL, "mop_machine", "2", "\"mop_machine\": must be 1"},
    {NULL, "mop_machine", "\"1\"", "\"mop_machine\": must be 1"},
    {NULL, "mop_machine", "1.5", "\"mop_machine\": must be 1"},
    {NULL, "name", NULL, "\"name\": missing"},
    {NULL, "name", "7", "\"name\": must be text"},
    {NULL, "name", "\"\"", "\"name\": must have 1 to 63 bytes, has 0"},
    {NULL, "name", "\"0123456789012345678901234567890123456789012345678901234567890123\"",
     "\"name\": must have 1 to 63 bytes, has 64"},
    {NULL, "source", NULL, "\"source\": missing"},
    {NULL, "source", "[]", "\"source\": must be text"},
    {NULL, "unit", NULL, "\"unit\": missing"},
    {NULL, "unit", "\"tpu\"", "\"unit\": must be \"core\" or \"gpu\""},
    {NULL, "like", "\"h3000\"", "\"like\": must name a built-in machine"},
    {NULL, "like", "3", "\"like\": must name a built-in machine"},
    {NULL, "colour", "1", "\"colour\": unknown"},
    {NULL, "nodes", NULL, "\"count\" in \"nodes\": missing"},
    {NULL, "nodes", "3", "\"nodes\": must be an object"},
    {NULL, "link", NULL, "\"bytes_per_s\" in \"link\": missing"},
    {NULL, "link", "[]", "\"link\": must be an object"},
    {NULL, "unit_rates", NULL, "\"memory_bytes\" in \"unit_rates\": missing"},
    {"nodes", "count", "0", "\"count\" in \"nodes\" is 0: must be from 1"},
    {"nodes", "count", "1.5", "\"count\" in \"nodes\" is 1.5: must be whole"},
    {"nodes", "count", "2000000", "\"count\" in \"nodes\" is 2e+06"},
    {"nodes", "count", "1000000", "\"count\" x \"units\" in \"nodes\": more than"},
    {"nodes", "units", NULL, "\"units\" in \"nodes\": missing"},
    {"nodes", "units", "-1", "\"units\" in \"nodes\" is -1"},
    {"nodes", "bytes_per_s", "\"fast\"", "\"bytes_per_s\" in \"nodes\": must be a number"},
    {"nodes", "ranks", "8", "\"ranks\" in \"nodes\": unknown"},
    {"link", "bytes_per_s", "0", "\"bytes_per_s\" in \"link\" is 0: must be from"},
    {"link", "bytes_per_s", "1e300", "\"bytes_per_s\" in \"link\" is 1e+300"},
    {"link", "latency_s", "-1e-6", "\"latency_s\" in \"link\" is -1e-06"},
    {"link", "latency_s", "60", "\"latency_s\" in \"link\" is 60"},
    {"link", "latency_us", "20", "\"latency_us\" in \"link\": unknown"},
    {"unit_rates", "matrix_fp32_flop_per_s", NULL, "\"matrix_fp32_flop_per_s\" in \"unit_rates\": missing"},
    {"unit_rates", "matrix_fp32_flop_per_s", "null", "\"matrix_fp32_flop_per_s\" in \"unit_rates\": must be a number"},
    {"unit_rates", "matrix_bf16_flop_per_s", "100",
     "\"matrix_bf16_flop_per_s\" in \"unit_rates\" is 100: must be from"},
    {"unit_rates", "matrix_fp64_flop_per_s", "9e11", "matrix_fp64_flop_per_s is 9e+11: above peak_fp64_flop_per_s"},
    {"unit_rates", "attention_fp32_flop_per_s", "9e11",
     "attention_fp32_flop_per_s is 9e+11: above peak_fp32_flop_per_s"},
    {"unit_rates", "elementwise_fp32_flop_per_s", "9e11",
     "elementwise_fp32_flop_per_s is 9e+11: above peak_fp32_flop_per_s"},
    {"unit_rates", "peak_fp32_flop_per_s", "true", "\"peak_fp32_flop_per_s\" in \"unit_rates\": must be a number"},
    {"unit_rates", "memory_bytes_per_s", "-5e9", "\"memory_bytes_per_s\" in \"unit_rates\" is -5e+09"},
    {"unit_rates", "memory_bytes", "1", "\"memory_bytes\" in \"unit_rates\" is 1: must be from"},
    {NULL, "measured", "[1]", "\"measured\": must be an object"},
    {"measured", "fma", "{\"min\": 1, \"median\": 1, \"max\": 1}",
     "\"fma\" in \"measured\": its name must end with a unit"},
    {"measured", FIGURE, "5", "\"" FIGURE "\" in \"measured\": \"min\" must be a number above 0"},
    {"measured", FIGURE, "{\"min\": 1, \"median\": 2}",
     "\"" FIGURE "\" in \"measured\": \"max\" must be a number above 0"},
    {"measured", FIGURE, "{\"min\": 0, \"median\": 2, \"max\": 3}", "\"min\" must be a number above 0"},
    {"measured", FIGURE, "{\"min\": 3, \"median\": 2, \"max\": 3}", "min, median and max are not in order"},
};

static void each_of_many_damages_has_its_sentence(void **state) {
    (void)state;
    assert_true(COUNT(damages) >= 30);
    for (size_t i = 0; i < COUNT(damages); i++) {
        json_t *file = whole_file(), *at = damages[i].section ? json_object_get(file, damages[i].section) : file;
        if (damages[i].value)
            assert_int_equal(
                json_object_set_new(at, damages[i].key, json_loads(damages[i].value, JSON_DECODE_ANY, NULL)), 0);
        else
            assert_int_equal(json_object_del(at, damages[i].key), 0);
        Machine m;
        Error e = {0};
        if (accepted(file, &m, &e)) fail_msg("accepted: %s", damages[i].sentence);
        if (e.code != EXIT_USAGE || !strstr(e.text, damages[i].sentence) || !strstr(e.text, "test.json"))
            fail_msg("expected \"%s\", got %d: %s", damages[i].sentence, e.code, e.text);
        json_decref(file);
    }
}

static void text_that_is_no_machine_is_refused(void **state) {
    static const char *const texts[] = {
        "", "{", "[]", "7", "{\"mop_machine\": 1, \"mop_machine\": 1}", "{\"mop_machine\": 1e999}"};
    (void)state;
    for (size_t i = 0; i < COUNT(texts); i++) {
        Machine m;
        Error e = {0};
        if (machine_parse(texts[i], strlen(texts[i]), "test.json", &m, &e)) fail_msg("accepted: %s", texts[i]);
        assert_int_equal(e.code, EXIT_USAGE);
    }
}

static void all_problems_are_listed_at_once(void **state) {
    (void)state;
    json_t *file = whole_file();
    json_object_del(file, "name");
    json_object_set_new(file, "colour", json_integer(1));
    json_object_set_new(json_object_get(file, "link"), "latency_s", json_integer(0));
    json_object_set_new(json_object_get(file, "nodes"), "units", json_string("two"));
    Machine m;
    Error e = {0};
    assert_false(accepted(file, &m, &e));
    static const char *const expected[] = {"\"name\": missing", "\"colour\": unknown", "\"latency_s\" in \"link\" is 0",
                                           "\"units\" in \"nodes\": must be a number"};
    for (size_t i = 0; i < COUNT(expected); i++)
        if (!strstr(e.text, expected[i])) fail_msg("no %s in %s", expected[i], e.text);
    json_decref(file);
    Error empty = {0};
    assert_false(machine_parse("{}", 2, "test.json", &m, &empty));
    assert_non_null(strstr(empty.text, "\"memory_bytes\" in \"unit_rates\": missing"));
}

/* ---- What is accepted --------------------------------------------------------------------------------- */

static void every_row_written_as_a_file_reads_back_the_same(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        Machine row, back;
        Error e = {0};
        if (!machine_open(rows[i], &row, &e)) fail_msg("%s", e.text);
        assert_true(strlen(row.source) > 40 && strlen(row.source) + 1 < sizeof row.source);
        row.nodes = 1;
        json_t *file = machine_json(&row), *again;
        if (!accepted(file, &back, &e)) fail_msg("%s: %s", rows[i], e.text);
        again = machine_json(&back);
        assert_true(json_equal(file, again));
        json_decref(file);
        json_decref(again);
    }
}

static void a_cluster_is_described_by_a_line(void **state) {
    (void)state;
    static const char text[] = "{\"mop_machine\": 1, \"name\": \"twelve\", \"like\": \"h200\", \"nodes\": {\"count\": "
                               "12, \"bytes_per_s\": 20e9}}";
    Machine m;
    Error e = {0};
    if (!machine_parse(text, sizeof text - 1, "test.json", &m, &e)) fail_msg("%s", e.text);
    assert_string_equal(m.name, "twelve");
    assert_true(m.nodes == 12 && m.units == 8 && !m.cores);
    assert_true(m.network.bytes_per_s == 20e9 && m.network.latency_s == machine_row("h200")->network.latency_s);
    assert_true(m.achieved[RATE_MATRIX][BF16] == machine_row("h200")->achieved[RATE_MATRIX][BF16]);
}

static void several_nodes_need_a_network(void **state) {
    (void)state;
    json_t *file = whole_file(), *nodes = json_object_get(file, "nodes");
    json_object_del(nodes, "bytes_per_s");
    Machine m;
    Error e = {0};
    assert_true(accepted(file, &m, &e)); /* one node needs none */
    assert_true(m.network.bytes_per_s == m.link.bytes_per_s);
    json_object_set_new(nodes, "count", json_integer(2));
    assert_false(accepted(file, &m, &e));
    assert_non_null(strstr(e.text, "\"bytes_per_s\" in \"nodes\": missing, with more than one node"));
    json_decref(file);
}

static void ranks_of_two_nodes_meet_over_the_network(void **state) {
    (void)state;
    const Machine *gpus = machine_row("h200"), *cores = machine_row("cpu");
    assert_ptr_equal(machine_link(gpus, 4, 0, 7), &gpus->link);
    assert_ptr_equal(machine_link(gpus, 4, 8, 15), &gpus->link);
    assert_ptr_equal(machine_link(gpus, 4, 7, 8), &gpus->network);
    assert_ptr_equal(machine_link(cores, 1, 0, 1), &cores->link);
    assert_ptr_equal(machine_link(cores, 2, 0, 1), &cores->network); /* two cores a rank: a node each */
}

/* ---- Who uses them -------------------------------------------------------------------------------------- */

static void put_file(char *path, size_t bytes, const json_t *file) {
    Error e = {0};
    snprintf(path, bytes, "/tmp/mop-test-machine-%ld.json", (long)getpid());
    if (!json_write_file(file, path, &e)) fail_msg("%s", e.text);
}

static void sim_counts_at_the_rates_of_a_file(void **state) {
    (void)state;
    char path[80], name[90];
    Machine m;
    Error e = {0};
    json_t *file = whole_file();
    assert_true(accepted(file, &m, &e));
    put_file(path, sizeof path, file);
    snprintf(name, sizeof name, "sim:%s", path);
    Device *d = device_open(name, 3, NULL, &e);
    if (!d) fail_msg("%s", e.text);
    device_rate(d, FP64);
    Stream *s = &d->stream[STREAM_COMPUTE];
    assert_false(charge(s, (Cost){.flops = 3000000}));
    double seconds = 1e6 / m.achieved[RATE_MATRIX][FP64];
    assert_true(fabs(s->clock - seconds) < 1e-9 * seconds);
    charge(s, (Cost){.flops = 3000000, .rate = RATE_ATTENTION});
    seconds += 1e6 / m.achieved[RATE_ATTENTION][FP64];
    assert_true(fabs(s->clock - seconds) < 1e-9 * seconds);
    charge(s, (Cost){.flops = 3000000, .rate = RATE_ELEMENTWISE});
    seconds += 1e6 / m.achieved[RATE_ELEMENTWISE][FP64];
    assert_true(fabs(s->clock - seconds) < 1e-9 * seconds);
    charge(s, (Cost){.flops = 1, .bytes = 3000000});
    seconds += 1e6 / m.bytes_per_s;
    assert_true(fabs(s->clock - seconds) < 1e-9 * seconds);
    device_close(d);
    unlink(path);
    json_decref(file);
}

static void a_machine_that_is_not_there_is_an_error_of_usage(void **state) {
    static const char *const names[] = {"sim:h3000", "sim:/nowhere/machine.json", "sim:.json"};
    (void)state;
    for (size_t i = 0; i < COUNT(names); i++) {
        Error e = {0};
        assert_null(device_open(names[i], 1, NULL, &e));
        assert_int_equal(e.code, EXIT_USAGE);
    }
}

/* ---- What doctor makes ------------------------------------------------------------------------------------ */

static void add_figure(Report *r, const char *key, double median) {
    Figure *f = &r->figure[r->figures++];
    *f = (Figure){.least = 0.9 * median, .median = median, .most = 1.1 * median};
    snprintf(f->key, sizeof f->key, "%s", key);
}

/* A machine of two cores whose products run at `share` of a peak of 100 GFLOP/s a core. */
static void fill_report(Report *r, double share) {
    static const char *const types[] = {"fp32", "bf16", "fp64"}, *const peaks[] = {"fma_fp32", "dot_bf16", "fma_fp64"};
    char key[KEY_BYTES];
    for (int i = 0; i < 3; i++) {
        snprintf(key, sizeof key, "%s_2_threads_flop_per_s", peaks[i]);
        add_figure(r, key, 200e9);
        snprintf(key, sizeof key, "matrix_%s_2_threads_flop_per_s", types[i]);
        add_figure(r, key, share * 200e9);
        snprintf(key, sizeof key, "attention_%s_2_threads_flop_per_s", types[i]);
        add_figure(r, key, 60e9);
        snprintf(key, sizeof key, "elementwise_%s_2_threads_flop_per_s", types[i]);
        add_figure(r, key, 10e9);
    }
    add_figure(r, "triad_2_threads_bytes_per_s", 40e9);
    add_figure(r, "adamw_2_threads_bytes_per_s", 20e9);
    add_figure(r, "wire_threads_2_all_gather_64B_s", 3e-5);
    add_figure(r, "wire_threads_2_all_gather_16MiB_bytes_per_s", 5e9);
}

static bool near(double x, double expected) {
    return fabs(x - expected) < 1e-9 * expected;
}

static void figures_become_a_file_that_is_accepted(void **state) {
    (void)state;
    Report *r = calloc(1, sizeof *r);
    Host h = {.model = "a processor with a name that is longer than sixty-three bytes are, and more",
              .threads = 2,
              .available = 8e9};
    Machine m, back;
    Error e = {0};
    char path[80];
    assert_non_null(r);
    fill_report(r, 0.8);
    assert_true(machine_of_report(r, &h, &m));
    snprintf(path, sizeof path, "/tmp/mop-test-doctor-%ld.json", (long)getpid());
    if (!machine_write(&m, r, path, &e) || !machine_open(path, &back, &e)) fail_msg("%s", e.text);
    assert_true(back.cores && back.units == 2 && near(back.achieved[RATE_MATRIX][FP32], 80e9) &&
                near(back.achieved[RATE_ATTENTION][FP64], 30e9) && near(back.achieved[RATE_ELEMENTWISE][BF16], 5e9));
    assert_true(near(back.peak[BF16], 110e9) && near(back.bytes_per_s, 15e9) && back.memory_bytes == 4e9);
    assert_true(near(back.link.latency_s, 3e-5) && near(back.link.bytes_per_s, 5e9));
    json_t *measured = machine_measured(path, &e);
    assert_int_equal(json_object_size(measured), r->figures);
    json_decref(measured);
    unlink(path);
    free(r);
}

static void products_above_the_peak_make_no_machine(void **state) {
    (void)state;
    Report *r = calloc(1, sizeof *r);
    Host h = {.model = "busy", .threads = 2, .available = 8e9};
    Machine m;
    assert_non_null(r);
    fill_report(r, 1.2);
    assert_false(machine_of_report(r, &h, &m));
    assert_non_null(strstr(r->note[r->notes - 1], "too busy to be measured"));
    free(r);
}

/* Where there is such a library. */
static void products_by_others_are_products(void **state) {
    enum { ROWS = 3, COLUMNS = 5, INNER = 4 };
    (void)state;
    for (int n = 0; n < OTHER_COUNT; n++) {
        OtherProducts o;
        float a[ROWS * INNER], b[INNER * COLUMNS], c[ROWS * COLUMNS];
        if (!other_products_open(&o, (OtherName)n, 1)) {
            print_message("%s is not installed\n", other_products_name((OtherName)n));
            continue;
        }
        for (int i = 0; i < ROWS * INNER; i++) a[i] = (float)(i * i % 7);
        for (int i = 0; i < INNER * COLUMNS; i++) b[i] = (float)(i * 3 % 11);
        assert_true(other_products_run(&o, c, a, b, ROWS, COLUMNS, INNER));
        for (int i = 0; i < ROWS * COLUMNS; i++) {
            float sum = 0;
            for (int j = 0; j < INNER; j++) sum += a[i / COLUMNS * INNER + j] * b[j * COLUMNS + i % COLUMNS];
            assert_true(c[i] == sum); /* small whole numbers */
        }
    }
}

/* On three threads, whose parts do not divide the arrays evenly. */
static void sweeps_move_what_they_say(void **state) {
    enum { BYTES = 1000 * 64 };
    (void)state;
    Error e = {0};
    Peaks p;
    Device *d = device_open("cpu", 3, kernels_for("cpu", &e), &e);
    if (!d || !peaks_open(&p, d, BYTES, &e)) fail_msg("%s", e.text);
    const float *a = p.array[0].data, *b = p.array[1].data, *c = p.array[2].data;
    int64_t n = tensor_count(p.array[0]);
    assert_int_equal(n * (int64_t)sizeof(float), BYTES);
    for (int k = PEAK_COPY; k < PEAK_COUNT; k++) {
        memset(p.array[0].data, 0, BYTES);
        peak_run(&p, (Peak)k);
        assert_true(peak_work(&p, (Peak)k) == (k == PEAK_TRIAD ? 3.0 : 2.0) * BYTES);
        for (int64_t i = 0; i < n; i++) assert_true(a[i] == (k == PEAK_TRIAD ? b[i] + 0.5f * c[i] : b[i]));
    }
    assert_true(peak_rate(&p, PEAK_FMA_FP32) > 0);
    peaks_close(&p);
    device_close(d);
}

static const char *const gpu_figures[] = {"gpu_matrix_bf16_square_flop_per_s",
                                          "gpu_matrix_fp32_square_flop_per_s",
                                          "gpu_matrix_fp64_square_flop_per_s",
                                          "gpu_matrix_bf16_olmoe_q_flop_per_s",
                                          "gpu_matrix_fp32_olmoe_q_flop_per_s",
                                          "gpu_experts_bf16_olmoe_128_flop_per_s",
                                          "gpu_experts_bf16_olmoe_1024_flop_per_s",
                                          "gpu_experts_bf16_olmoe_4096_flop_per_s",
                                          "gpu_matrix_bf16_alone_flop_per_s",
                                          "gpu_matrix_bf16_beside_copies_flop_per_s",
                                          "gpu_attention_d128_16K_flop_per_s",
                                          "gpu_attention_backward_d128_16K_flop_per_s",
                                          "gpu_triad_bytes_per_s",
                                          "gpu_adamw_bytes_per_s",
                                          "gpu_up_and_down_each_bytes_per_s",
                                          "gpu_up_4KiB_s"};
static const double gpu_values[COUNT(gpu_figures)] = {700e12, 50e12, 60e12,  500e12, 40e12, 100e12, 300e12, 400e12,
                                                      1,      1,     600e12, 500e12, 3e12,  2e12,   40e9,   1e-5};

static Report *gpu_report(size_t without) {
    Report *r = calloc(1, sizeof *r);
    assert_non_null(r);
    for (size_t i = 0; i < COUNT(gpu_figures); i++)
        if (i != without) add_figure(r, gpu_figures[i], gpu_values[i]);
    add_figure(r, "gpu_adamw_streamed_parameters_per_s", 3e9);
    return r;
}

static void figures_of_gpus_become_a_file_that_is_accepted(void **state) {
    (void)state;
    GpuFacts facts = {.name = "a GPU with a name that is longer than sixty-three bytes are, and more",
                      .count = 4,
                      .major = 9,
                      .multiprocessors = 132,
                      .clock = 1.98e9,
                      .memory_bytes = 80e9};
    Report *r = gpu_report(COUNT(gpu_figures));
    Machine m, back;
    Error e = {0};
    char path[80];
    assert_true(machine_of_gpu(r, &facts, &m));
    snprintf(path, sizeof path, "/tmp/mop-test-gpu-%ld.json", (long)getpid());
    if (!machine_write(&m, r, path, &e) || !machine_open(path, &back, &e)) fail_msg("%s", e.text);
    unlink(path);
    assert_true(!back.cores && back.units == 4 && back.memory_bytes == 80e9);
    assert_true(near(back.achieved[RATE_MATRIX][BF16], 425e12)); /* (500 + (300 + 400) / 2) / 2 */
    assert_true(near(back.achieved[RATE_MATRIX][FP32], 40e12) && near(back.achieved[RATE_ATTENTION][FP32], 40e12));
    assert_true(near(back.achieved[RATE_ATTENTION][BF16], 3.5 / (1 / 600e12 + 2.5 / 500e12)));
    assert_true(near(back.peak[BF16], 4096 * 132 * 1.98e9) && near(back.bytes_per_s, 2.5e12));
    assert_true(near(back.link.bytes_per_s, 40e9) && near(back.link.latency_s, 1e-5));
    facts.major = 99; /* unknown: the fastest product is the peak */
    assert_true(machine_of_gpu(r, &facts, &m));
    assert_true(near(m.peak[BF16], 700e12));
    free(r);
}

static void a_gpu_without_a_figure_makes_no_machine(void **state) {
    (void)state;
    GpuFacts facts = {.name = "a GPU", .count = 1, .memory_bytes = 80e9};
    static const char *const needed[] = {"gpu_experts_bf16_olmoe_1024_flop_per_s", "gpu_attention_d128_16K_flop_per_s",
                                         "gpu_triad_bytes_per_s", "gpu_up_4KiB_s"};
    for (size_t i = 0; i < COUNT(needed); i++) {
        size_t without = 0;
        Machine m;
        while (strcmp(gpu_figures[without], needed[i]) != 0) without++;
        Report *r = gpu_report(without);
        assert_false(machine_of_gpu(r, &facts, &m));
        assert_non_null(strstr(r->note[r->notes - 1], "not measured: "));
        free(r);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_of_many_damages_has_its_sentence),
        cmocka_unit_test(text_that_is_no_machine_is_refused),
        cmocka_unit_test(all_problems_are_listed_at_once),
        cmocka_unit_test(every_row_written_as_a_file_reads_back_the_same),
        cmocka_unit_test(a_cluster_is_described_by_a_line),
        cmocka_unit_test(several_nodes_need_a_network),
        cmocka_unit_test(ranks_of_two_nodes_meet_over_the_network),
        cmocka_unit_test(sim_counts_at_the_rates_of_a_file),
        cmocka_unit_test(a_machine_that_is_not_there_is_an_error_of_usage),
        cmocka_unit_test(figures_become_a_file_that_is_accepted),
        cmocka_unit_test(products_above_the_peak_make_no_machine),
        cmocka_unit_test(products_by_others_are_products),
        cmocka_unit_test(sweeps_move_what_they_say),
        cmocka_unit_test(figures_of_gpus_become_a_file_that_is_accepted),
        cmocka_unit_test(a_gpu_without_a_figure_makes_no_machine),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
