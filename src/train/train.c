/* The training loop around step.c: resume, step, journal, sample, checkpoint, stop. */
#include "train/train.h"
#include "checkpoint/space.h"
#include "store/finite.h"
#include "train/banner.h"
#include "train/prompt.h"
#include "train/settings.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- Signals ----------------------------------------------------------------------------------- */

/* What a handler may touch: the only mutable global of the program. Any thread may run the handler, and all ranks
 * read it. */
static atomic_int signals_seen;
_Static_assert(ATOMIC_INT_LOCK_FREE == 2, "a handler may touch only what needs no lock");

static void count_signal(int number) {
    if (atomic_fetch_add(&signals_seen, 1) > 0) _exit(128 + number);
}

static bool asked_to_stop(void) {
    return atomic_load(&signals_seen) > 0;
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
    Trace *trace; /* NULL: none */
    Claim claim;  /* of the run directory; rank 0's */
    const char *run;
} Training;

typedef struct {
    Session *session;
    Run *run;
    Checkpoints *checkpoints;
    Journal *journal; /* rank 0 */
    TraceRank *trace; /* NULL: none */
    int32_t *text;    /* room for a sample; NULL: none is drawn */
    int64_t step;     /* at work, from 1; 0: none yet */
    TrainState state;
    Path saved; /* the last checkpoint */
} Trainer;

static bool due(int64_t every, int64_t step) {
    return every > 0 && step % every == 0;
}

/* Checkpoints that are still to be made: those that are due, and the last step's. */
static int64_t saves_ahead(const Config *c, int64_t step) {
    int64_t every = c->checkpoint_every, left = c->train_steps - step;
    if (left <= 0) return 0;
    if (every == 0) return 1;
    return c->train_steps / every - step / every + !due(every, c->train_steps);
}

static bool take_text(Trainer *t, Error *e) {
    const Config *c = t->session->config;
    if (c->train_sample_every < 0) return true;
    t->text = calloc(strlen(c->train_sample_prompt) + 1 + (size_t)c->train_sample_tokens, sizeof *t->text);
    return t->text || fail(e, EXIT_MEMORY, "no memory for a sample of %lld tokens; lower train.sample_tokens",
                           (long long)c->train_sample_tokens);
}

static void tell_warnings(Trainer *t, const Banner *b) {
    const Config *c = t->session->config;
    char text[WARNINGS][WARNING_BYTES];
    int count = banner_warnings(b, text);
    for (int i = 0; i < count; i++) journal_event(t->journal, "warning", b->step, "%s", text[i]);
    Error all = {0};
    if (c->checkpoint_keep == 0 && !checkpoints_fit(t->checkpoints, saves_ahead(c, b->step), &all))
        journal_event(t->journal, "warning", b->step, "%s", all.text);
}

/* Rank 0's: from here on the run directory tells of this run. */
static bool open_journal(Trainer *t, const char *run, const ResumeReport *report, Error *e) {
    t->journal = journal_open(t->session, run, t->state.step, e);
    if (!t->journal) return false;
    const Banner banner = {.session = t->session,
                           .run = t->run,
                           .directory = run,
                           .resumed = report->directory,
                           .step = t->state.step,
                           .checkpoint_bytes = checkpoint_bytes(t->checkpoints)};
    banner_print(&banner);
    if (t->state.step < t->session->config->train_steps) tell_warnings(t, &banner);
    const Session *s = t->session;
    if (s->model.damaged && !report->found)
        journal_event(t->journal, "damaged", 0, "%lld newer checkpoint%s of model.path passed over: %s; taken: %s",
                      (long long)s->model.damaged, s->model.damaged == 1 ? "" : "s", s->model.damage, s->weights);
    if (report->damaged)
        journal_event(t->journal, "damaged", t->state.step, "%lld newer checkpoint%s passed over: %s",
                      (long long)report->damaged, report->damaged == 1 ? "" : "s", report->damage);
    if (report->found) journal_event(t->journal, "resume", t->state.step, "from %s", report->directory);
    return settings_record(t->journal, run, t->session->config, report, e);
}

/* What the run directory holds is written when all that was read has been found good. */
static bool start(Trainer *t, Training *training, Error *e) {
    Session *s = t->session;
    const char *run = training->run;
    bool leads = t->run->comm.mesh.rank == 0;
    ResumeReport report;
    bool here = take_text(t, e) && trace_join(training->trace, t->run, &t->trace, e);
    if (!host_agree(&t->run->comm, here, e)) return false; /* all ranks are open, and the directory may be made */
    if (leads && !journal_take(&training->claim, s->config, e)) return false;
    t->checkpoints = session_checkpoints(s, t->run, run, e);
    if (!t->checkpoints || !checkpoint_resume(t->checkpoints, &report, e)) return false;
    if (report.found && report.state.data_hash != tokens_info(s->tokens).hash)
        return fail(e, EXIT_DATA,
                    "the data is not what this run was trained on so far; %s; give the same data.path, or start a new "
                    "run with --run",
                    report.directory);
    if (report.found && !store_check_finite(t->run->store, &t->run->comm, report.directory, true, e)) return false;
    t->state = report.found
                   ? report.state
                   : (TrainState){.data_hash = tokens_info(s->tokens).hash, .config_hash = config_hash(s->config)};
    if (leads &&
        !checkpoints_will_fit(t->checkpoints, saves_ahead(s->config, t->state.step), s->config->checkpoint_keep, e))
        return false;
    if (!report.found && !session_weights(s, t->run, t->checkpoints, e)) return false;
    t->run->updates = t->state.updates;
    t->run->bad_steps = t->state.bad_steps;
    return !leads || open_journal(t, run, &report, e);
}

/* What a save needs, looked at by rank 0 while there is still nothing to remove. */
static bool ready_to_save(Trainer *t, Error *e) {
    bool ready = !t->journal || (journal_sync(t->journal, e) && checkpoints_fit(t->checkpoints, 1, e));
    return host_agree(&t->run->comm, ready, e);
}

static bool save(Trainer *t, Error *e) {
    SaveReport report;
    t->state.updates = t->run->updates;
    t->state.bad_steps = t->run->bad_steps;
    if (!ready_to_save(t, e) || !checkpoint_save(t->checkpoints, &t->state, &report, e)) return false;
    int64_t keep = t->session->config->checkpoint_keep;
    if (keep > 0 && !checkpoint_keep(t->checkpoints, keep, e)) return false;
    snprintf(t->saved.text, sizeof t->saved.text, "%s", report.directory);
    if (t->journal)
        journal_event(t->journal, "checkpoint", t->state.step, "%s, %.1f MB in %.2f s", report.directory,
                      (double)report.bytes / 1e6, report.seconds);
    return true;
}

static bool print_sample(Trainer *t, int64_t tokens, Error *e) {
    char *text = NULL;
    size_t bytes = 0, n = 0;
    FILE *f = open_memstream(&text, &bytes);
    MUST(f);
    for (int64_t i = 0; i < tokens; i++) {
        const char *piece = tokenizer_decode(t->session->tokenizer, t->text[i], &n);
        fwrite(piece, 1, n, f);
    }
    fclose(f);
    journal_sample(t->journal, t->state.step, text, bytes);
    free(text);
    return journal_flush(t->journal, e);
}

/* `stop`: some rank was asked to, and the sample is as long as it had come. */
static bool sample(Trainer *t, bool *stop, Error *e) {
    const Config *c = t->session->config;
    size_t length = strlen(c->train_sample_prompt);
    int64_t given = 1; /* without a prompt it begins with id 0 */
    Generated out;
    if (length) given = tokenizer_encode(t->session->tokenizer, c->train_sample_prompt, length, t->text);
    Sampling how = {.temperature = 0.8,
                    .top_p = 0.95,
                    .seed = (uint64_t)c->train_seed,
                    .step = (uint64_t)t->state.step,
                    .asked = asked_to_stop,
                    .ends = &t->session->ends,
                    .out = &out};
    if (!generate(t->run, t->text, given, c->train_sample_tokens, how, e)) return false;
    *stop = out.stopped;
    return !t->journal || print_sample(t, given + out.made, e);
}

static bool bad_step(Trainer *t, const StepResult *result, Error *e) {
    const GradientNorm *g = &result->gradient;
    if (t->journal && g->finite)
        journal_event(t->journal, "not_finite", t->state.step, "the loss is not finite; the step changes nothing");
    if (t->journal && !g->finite)
        journal_event(t->journal, "not_finite", t->state.step,
                      "the gradient of %s on rank %d is not finite; the step changes nothing", g->bad, g->rank);
    if (t->run->bad_steps < t->session->config->train_max_bad_steps) return true;
    return fail(e, EXIT_DIVERGED,
                "%lld steps in a row had no finite loss and gradient; lower optimizer.learning_rate and start from an "
                "earlier checkpoint",
                (long long)t->run->bad_steps);
}

static bool one_step(Trainer *t, bool *stop, Error *e) {
    const Config *c = t->session->config;
    StepResult result;
    t->step = t->state.step + 1;
    trace_begin(t->trace, t->step);
    double begin = seconds_now();
    if (!train_step(t->run, t->state.step, asked_to_stop(), &result, e)) return false;
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

/* The weights of the last good step are saved and useful; that the run went well is not said of them, now or when it
 * is started again. */
static bool ended_well(Trainer *t, Error *e) {
    int64_t bad = t->run->bad_steps;
    return bad == 0 ||
           fail(e, EXIT_DIVERGED,
                "the last %lld step%s had no finite loss and gradient and changed nothing, so the weights are those "
                "after step %lld; lower optimizer.learning_rate and start from an earlier checkpoint, or raise "
                "train.steps to go on",
                (long long)bad, bad == 1 ? "" : "s", (long long)(t->state.step - bad));
}

static bool end(Trainer *t, bool stop, int64_t began, Error *e) {
    int64_t step = t->state.step, steps = t->session->config->train_steps;
    if (stop && step < steps) {
        if (t->journal)
            journal_event(t->journal, "stopped", step, "after step %lld; the same command continues", (long long)step);
        return fail(e, EXIT_STOPPED, "stopped after step %lld", (long long)step);
    }
    if (!ended_well(t, e)) return false;
    if (!t->journal) return true;
    if (began < steps)
        journal_done(t->journal, step, t->saved.text);
    else
        journal_event(t->journal, "done", step, "this run has made its %lld steps; raise train.steps to go on",
                      (long long)steps);
    return true;
}

/* A checkpoint that is due comes before a sample, which may fail, or be stopped. */
static bool loop(Trainer *t, Error *e) {
    const Config *c = t->session->config;
    int64_t began = t->state.step;
    bool stop = false;
    while (t->state.step < c->train_steps && !stop) {
        if (!one_step(t, &stop, e)) return false;
        bool last = t->state.step == c->train_steps, saving = due(c->checkpoint_every, t->state.step) || last || stop;
        bool show = t->text && (due(c->train_sample_every, t->state.step) || last) && !stop;
        if (saving && !save(t, e)) return false;
        if (show && !sample(t, &stop, e)) return false;
        if (stop && !saving && !save(t, e)) return false;
    }
    return end(t, stop, began, e);
}

static bool train_rank(Session *s, Run *r, Error *e) {
    Trainer t = {.session = s, .run = r};
    Training *training = s->context;
    Error unwritten = {0};
    bool ok = start(&t, training, e) && loop(&t, e), failed = !ok && e->code != EXIT_STOPPED;
    if (failed && t.step > 0 && e->code != EXIT_PEER)
        error_place(e, " (rank %d, step %lld)", r->comm.mesh.rank, (long long)t.step);
    if (failed && t.journal) journal_error(t.journal, t.state.step, e);
    if (!journal_close(t.journal, &unwritten) && !failed) { /* also the last event was to be told */
        *e = unwritten;
        ok = false;
    }
    if (r->comm.mesh.rank == 0) journal_release(&training->claim); /* a rank that fails may never come back from here */
    checkpoints_close(t.checkpoints);
    free(t.text);
    return ok;
}

static bool sample_possible(Session *s, Error *e) {
    const Config *c = s->config;
    return c->train_sample_every < 0 || (tokenizer_ready(s->tokenizer, "train.sample_every", e) &&
                                         prompt_check(s, "train.sample_prompt", c->train_sample_prompt, e));
}

int train_command(Session *s, const char *run, const TraceOptions *trace, PriceFunction price) {
    Error e = {0};
    if (device_counts(s->config->device)) {
        fail(&e, EXIT_USAGE, "device %s only meters; use `mop plan` for it, and device cpu to train",
             s->config->device);
        return session_error(&e);
    }
    Training training = {.run = run, .claim = {.lock = -1}};
    int code;
    if (!trace_open(&training.trace, trace, TRACE_ROOM, &e)) return session_error(&e);
    if (!session_data(s, &e) || !sample_possible(s, &e) ||
        (session_leads(s) && !journal_claim(&training.claim, run, s->config, &e))) {
        code = session_error(&e);
    } else {
        watch_signals();
        s->request = hash_line(HASH_START, "train");
        code = session_run(s, price, train_rank, &training);
    }
    if (!trace_close(training.trace, code == EXIT_DONE, &e) && code == EXIT_DONE) code = session_error(&e);
    journal_release(&training.claim);
    return code;
}
