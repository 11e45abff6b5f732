/* A rank that does not come ends the program, with exit 6 and its name, also when it is a thread that never returns.
 * The program is a child of this one, so that its exit can be seen. */
#define _POSIX_C_SOURCE 200809L
#include "plan/plan.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { LOST = 2 };

/* Three steps; then rank 2 hangs in something that no timeout can reach. */
static bool train_until_it_hangs(Session *s, Run *r, Error *e) {
    StepResult out;
    if (!session_weights(s, r, NULL, e)) return false;
    for (int64_t step = 0;; step++) {
        if (step == 3 && r->comm.mesh.rank == LOST) pause();
        if (!train_step(r, step, false, &out, e)) return false;
    }
}

/* The same between the ranks that are left before the first step. */
static bool hang_at_once(Session *s, Run *r, Error *e) {
    char mine = 0, all[8];
    (void)s;
    if (r->comm.mesh.rank == LOST) pause();
    return host_gather(&r->comm, all, &mine, 1, e);
}

static bool fail_alone(Session *s, Run *r, Error *e) {
    if (r->comm.mesh.rank == 0) return (fail)(e, EXIT_IO, "the disk is full");
    return hang_at_once(s, r, e);
}

/* Asked by ThreadSanitizer: that a program ends while a thread of it hangs is what is tested here, and no leak. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void) {
    return "report_thread_leaks=0";
}

/* Exits with the session's code. */
static void run_program(RankBody body) {
    static const char *const sets[] = {"ranks=4", "comm.timeout=1", "mixture.expert=2"};
    Config c;
    Session s;
    Error e = {0};
    if (!config_read(&c, "examples/tiny.yaml", sets, COUNT(sets), &e) || !session_open(&s, &c, &e) ||
        !session_data(&s, &e))
        _exit(error_print(&e));
    _exit(session_run(&s, plan_price, body, NULL));
}

/* What the program says on standard error, and its exit code and seconds. */
static char *said_by(RankBody body, int *code, double *seconds) {
    static char text[1 << 16];
    int ends[2], status;
    double start = seconds_now();
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        run_program(body);
    }
    close(ends[1]);
    size_t n = 0;
    for (ssize_t got; (got = read(ends[0], text + n, sizeof text - 1 - n)) > 0;) n += (size_t)got;
    text[n] = 0;
    close(ends[0]);
    assert_true(waitpid(child, &status, 0) == child && WIFEXITED(status));
    *code = WEXITSTATUS(status);
    *seconds = seconds_now() - start;
    return text;
}

static int count_of(const char *text, const char *word) {
    int n = 0;
    for (; (text = strstr(text, word)); text++) n++;
    return n;
}

static void a_rank_that_hangs_ends_the_program_with_its_name_and_the_last_calls_of_all(void **state) {
    (void)state;
    static const struct {
        RankBody body;
        int code;
        const char *said;
    } rows[] = {
        {train_until_it_hangs, EXIT_PEER, "mop: error[6]: rank 2 is behind: at collective "},
        {hang_at_once, EXIT_PEER,
         "mop: error[6]: rank 2 is behind: at collective 13 (host_message over vocabulary_replica"},
        {fail_alone, EXIT_IO, "mop: error[5]: the disk is full"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        int code;
        double seconds;
        const char *text = said_by(rows[i].body, &code, &seconds);
        if (code != rows[i].code || !strstr(text, rows[i].said) || count_of(text, "mop: error") != 1)
            fail_msg("row %zu: exit %d, \"%s\"", i, code, text);
        assert_int_equal(count_of(text, "rank   number"), code == EXIT_PEER);
        assert_int_equal(count_of(text, "running"), code == EXIT_PEER ? 3 : 0);
        assert_true(seconds < 10);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_rank_that_hangs_ends_the_program_with_its_name_and_the_last_calls_of_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
