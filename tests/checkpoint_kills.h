/* Kill -9 at random points of saving. A child of two ranks resumes and saves step after step, keeping two; it
 * tells of each save that has returned, and is killed. Whatever then is named a checkpoint must be whole, and
 * no older than what was told. */
#ifndef MOP_CHECKPOINT_KILLS_H
#define MOP_CHECKPOINT_KILLS_H

#include "checkpoint_ranks.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

static inline bool save_for_ever(Rank *r, void *context, Error *e) {
    int told = *(const int *)context;
    ResumeReport report;
    if (!checkpoint_resume(r->checkpoints, &report, e)) return false;
    for (int64_t step = report.state.step + 1;; step++) {
        if (!content_save(r, step, e) || !checkpoint_keep(r->checkpoints, 2, e)) return false;
        if (r->mesh.rank == 0 && write(told, &step, sizeof step) != sizeof step) return false;
    }
}

/* Runs a child for a while; returns the last step that it told of. */
static inline int64_t kill_a_saver(const RankPlan *plan, double seconds, int64_t told_before) {
    int ends[2], status;
    MUST(pipe(ends) == 0);
    pid_t child = fork();
    MUST(child >= 0);
    if (child == 0) {
        close(ends[0]);
        ranks_try(plan, save_for_ever, &ends[1], NULL);
        _exit(1);
    }
    close(ends[1]);
    struct timespec wait = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&wait, NULL);
    kill(child, SIGKILL);
    MUST(waitpid(child, &status, 0) == child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL); /* it did not end by itself */
    int64_t step, told = told_before;
    while (read(ends[0], &step, sizeof step) == sizeof step) told = step;
    close(ends[0]);
    return told;
}

static inline bool resume_whole(Rank *r, void *context, Error *e) {
    const int64_t *told = context;
    ResumeReport report;
    if (!checkpoint_resume(r->checkpoints, &report, e)) return false;
    if (report.damaged > 0) return differs(e, "not whole: %s", report.damage);
    if (report.state.step < *told)
        return differs(e, "step %lld, after %lld was saved", (long long)report.state.step, (long long)*told);
    if (!report.found) return true;
    return state_equals(&report.state, report.state.step) ? content_check(r, (uint64_t)report.state.step, e)
                                                          : differs(e, "another state");
}

static inline void kill_trials(int trials, uint64_t seed) {
    static const int layouts[][3] = {{1, 1, 1}, {2, 2, 1}, {2, 1, 2}, {3, 3, 3}};
    Path run = scratch_make();
    int64_t told = 0;
    for (int i = 0; i < trials; i++) {
        RankPlan saver = {"olmoe", "bf16", 2, 2, 2, run.text, NULL, 60000};
        told = kill_a_saver(&saver, 0.4 * random_uniform(seed, RANDOM_TEST, 0, (uint64_t)i), told);
        const int *layout = layouts[i % (int)COUNT(layouts)];
        RankPlan loader = {"olmoe", "bf16", layout[0], layout[1], layout[2], run.text, NULL, 60000};
        ranks_run(&loader, resume_whole, &told);
    }
    print_message("%d kills, %lld saves\n", trials, (long long)told);
    assert_true(told > 0);
    scratch_remove(run.text);
}

#endif
