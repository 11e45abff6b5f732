/* The training loop around step.c: resume, step, journal, sample, checkpoint, stop. */
#include "train/train.h"
#include "store/finite.h"
#include "train/prompt.h"
#include "train/settings.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- Signals ----------------------------------------------------------------------------------- */

/* What a handler may touch: the only mutable global of the program. */
static volatile sig_atomic_t signals_seen;

static void count_signal(int number) {
    signals_seen = signals_seen + 1;
    if (signals_seen > 1) _exit(128 + number);
}

static void count_signal_and_say(int number) {
    static const char text[] = "\nmop: finishing the step and saving; a second signal ends at once\n";
    int before = errno;
    count_signal(number);
    ssize_t told = write(STDERR_FILENO, text, sizeof text - 1);
    (void)told; /* nobody may be listening */
    errno = before;
}

/* mpirun sends SIGTERM (and SIGINT) to the survivors of a dead rank: there only SIGUSR1 asks for a checkpoint. */
static void watch_signals(void) {
    struct sigaction a = {.sa_handler = wire_mpi_rank() == 0 ? count_signal_and_say : count_signal,
                          .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &a, NULL);
    if (wire_mpi_world() > 0) return;
    sigaction(SIGINT, &a, NULL);
    sigaction(SIGTERM, &a, NULL);
}

/* ---- One rank ----------------------------------------------------------------------------------- */

typedef struct {
    const char *run;
    Trace *trace; /* NULL: none */
    int lock;     /* on the run directory; -1: none yet. Rank 0's */
} Training;

typedef struct {
    Session *session;
    Run *run;
    Checkpoints *checkpoints;
    Journal *journal; /* rank 0 */
    TraceRank *trace; /* NULL: none */
    int64_t step;     /* at work, from 1; 0: none yet */
    TrainState state;
} Trainer;

/* The run directory is made when all that was read has been found good. */
static bool start(Trainer *t, Training *training, Error *e) {
    Session *s = t->session;
    const char *run = training->run;
    ResumeReport report;
    t->checkpoints = session_checkpoints(s, t->run, run, e);
    if (!t->checkpoints || !checkpoint_resume(t->checkpoints, &report, e)) return false;
    if (report.found && report.state.data_hash != tokens_info(s->tokens).hash)
        return fail(e, EXIT_DATA,
                    "the data is not what this run was trained on so far; %s; give the same data.path, or start a new "
                    "run with --run",
                    report.directory);
    if (!report.found && !session_weights(s, t->run, t->checkpoints, e)) return false;
    if (report.found && !store_check_finite(t->run->store, &t->run->comm, report.directory, true, e)) return false;
    t->state = report.found
                   ? report.state
                   : (TrainState){.data_hash = tokens_info(s->tokens).hash, .config_hash = config_hash(s->config)};
    t->run->updates = t->state.updates;
    if (!trace_join(training->trace, t->run, &t->trace, e)) return false;
    if (t->run->comm.mesh.rank != 0) return true;
    if (journal_prepare(run, &training->lock, e))
        t->journal = journal_open(run, s->config, t->state.step, e);
    if (!t->journal) return false;
    journal_banner(t->journal, s, t->run, t->state.step);
    if (report.damaged)
        journal_event(t->journal, "damaged", t->state.step, "%lld newer checkpoint%s passed over: %s",
                      (long long)report.damaged, report.damaged == 1 ? "" : "s", report.damage);
    if (report.found) journal_event(t->journal, "resume", t->state.step, "from %s", report.directory);
    return settings_record(t->journal, run, s->config, &report, e);
}

static bool save(Trainer *t, Error *e) {
    SaveReport report;
    t->state.updates = t->run->updates;
    if (!checkpoint_save(t->checkpoints, &t->state, &report, e)) return false;
    int64_t keep = t->session->config->checkpoint_keep;
    if (keep > 0 && !checkpoint_keep(t->checkpoints, keep, e)) return false;
    if (t->journal)
        journal_event(t->journal, "checkpoint", t->state.step, "%s, %.1f MB in %.2f s", report.directory,
                      (double)report.bytes / 1e6, report.seconds);
    return true;
}

static bool sample(Trainer *t, Error *e) {
    const Config *c = t->session->config;
    const Tokenizer *k = t->session->tokenizer;
    size_t length = strlen(c->train_sample_prompt);
    int32_t *ids = calloc(length + 1 + (size_t)c->train_sample_tokens, sizeof *ids);
    MUST(ids);
    int64_t given = length ? tokenizer_encode(k, c->train_sample_prompt, length, ids) : 1;
    Generated out;
    Sampling how = {.temperature = 0.8,
                    .top_p = 0.95,
                    .seed = (uint64_t)c->train_seed,
                    .step = (uint64_t)t->state.step,
                    .ends = &t->session->ends,
                    .out = &out};
    bool ok = generate(t->run, ids, given, c->train_sample_tokens, how, e);
    if (ok && t->journal) {
        char *text = NULL;
        size_t bytes = 0, n = 0;
        FILE *f = open_memstream(&text, &bytes);
        MUST(f);
        for (int64_t i = 0; i < given + out.made; i++) {
            const char *piece = tokenizer_decode(k, ids[i], &n);
            fwrite(piece, 1, n, f);
        }
        fclose(f);
        journal_sample(t->journal, t->state.step, text, bytes);
        free(text);
    }
    free(ids);
    return ok;
}

static bool bad_step(Trainer *t, const StepResult *result, Error *e) {
    const GradientNorm *g = &result->gradient;
    if (t->journal)
        journal_event(t->journal, "not_finite", result->step + 1,
                      "loss %g, gradient of %s on rank %d is not finite; the step changes nothing", result->loss,
                      g->finite ? "nothing" : g->bad, g->rank);
    if (t->run->bad_steps < t->session->config->train_max_bad_steps) return true;
    return fail(e, EXIT_DIVERGED,
                "%lld steps in a row had no finite gradient; lower optimizer.learning_rate and start from an earlier "
                "checkpoint",
                (long long)t->run->bad_steps);
}

static bool one_step(Trainer *t, bool *stop, Error *e) {
    const Config *c = t->session->config;
    StepResult result;
    t->step = t->state.step + 1;
    trace_begin(t->trace, t->step);
    double begin = seconds_now();
    if (!train_step(t->run, t->state.step, signals_seen > 0, &result, e)) return false;
    double seconds = seconds_now() - begin;
    trace_end(t->trace);
    t->state.step++;
    t->state.sequences += c->train_sequences;
    t->state.tokens += result.trained;
    *stop = result.stop;
    MUST(run_within(t->run, &t->session->price[t->run->comm.mesh.rank])); /* also kept by every allocation */
    if (t->journal) journal_step(t->journal, &result, seconds, run_memory(t->run));
    if (t->journal && !journal_flush(t->journal, e)) return false;
    if (!trace_write(t->trace, 0, e)) return false;
    return result.finite || bad_step(t, &result, e);
}

static bool due(int64_t every, int64_t step) {
    return every > 0 && step % every == 0;
}

static bool loop(Trainer *t, Error *e) {
    const Config *c = t->session->config;
    bool stop = false, saved = t->state.step >= c->train_steps;
    if (saved && t->journal)
        journal_event(t->journal, "done", t->state.step, "this run has made its %lld steps; raise train.steps to go on",
                      (long long)c->train_steps);
    while (t->state.step < c->train_steps && !stop) {
        if (!one_step(t, &stop, e)) return false;
        saved = false;
        bool last = t->state.step == c->train_steps;
        bool show = due(c->train_sample_every, t->state.step) || (last && c->train_sample_every >= 0);
        if (show && !stop && !sample(t, e)) return false;
        if (!due(c->checkpoint_every, t->state.step) && !last && !stop) continue;
        if (!save(t, e)) return false;
        saved = true;
    }
    if (!stop || t->state.step >= c->train_steps) return true;
    if (t->journal)
        journal_event(t->journal, "stopped", t->state.step, "after step %lld; the same command continues",
                      (long long)t->state.step);
    return fail(e, EXIT_STOPPED, "stopped after step %lld", (long long)t->state.step);
}

static bool train_rank(Session *s, Run *r, Error *e) {
    Trainer t = {.session = s, .run = r};
    bool ok = start(&t, s->context, e) && loop(&t, e), failed = !ok && e->code != EXIT_STOPPED;
    if (failed && t.step > 0 && e->code != EXIT_PEER)
        error_place(e, " (rank %d, step %lld)", r->comm.mesh.rank, (long long)t.step);
    if (failed && t.journal) journal_error(t.journal, t.state.step, e);
    journal_close(t.journal);
    checkpoints_close(t.checkpoints);
    return ok;
}

static bool sample_possible(Session *s, Error *e) {
    const Config *c = s->config;
    return c->train_sample_every < 0 || prompt_check(s, "train.sample_prompt", c->train_sample_prompt, e);
}

int train_command(Session *s, const char *run, const TraceOptions *trace, PriceFunction price) {
    Error e = {0};
    if (s->config->device[0] == 's') {
        fail(&e, EXIT_USAGE, "device %s only meters; use `mop plan` for it, and device cpu to train",
             s->config->device);
        return session_error(&e);
    }
    Training training = {.run = run, .lock = -1};
    int code;
    if (!trace_open(&training.trace, trace, TRACE_ROOM, &e)) return session_error(&e);
    if (!session_data(s, &e) || !sample_possible(s, &e) || (session_leads(s) && !journal_claim(run, s->config, &training.lock, &e))) {
        code = session_error(&e);
    } else {
        watch_signals();
        s->request = hash_line(HASH_START, "train");
        code = session_run(s, price, train_rank, &training);
    }
    if (training.lock >= 0) close(training.lock);
    if (!trace_close(training.trace, code == EXIT_DONE, &e) && code == EXIT_DONE) code = session_error(&e);
    return code;
}
