/* From a Config to open ranks. Everything that can be refused is refused here, before a file is created or a weight
 * is read. */
#include "train/session.h"

#include "checkpoint/checkpoints.h"
#include "store/finite.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- Threads ----------------------------------------------------------------------------------- */

typedef struct {
    void (*body)(void *context, int index);
    void *context;
    int index;
    pthread_t thread;
} Job;

static void *start_job(void *p) {
    Job *j = p;
    j->body(j->context, j->index);
    return NULL;
}

void threads_run(int n, void (*body)(void *context, int index), void *context) {
    Job *jobs = calloc((size_t)n, sizeof *jobs);
    MUST(jobs);
    for (int i = 0; i < n; i++) {
        jobs[i] = (Job){.body = body, .context = context, .index = i};
        MUST(pthread_create(&jobs[i].thread, NULL, start_job, &jobs[i]) == 0);
    }
    for (int i = 0; i < n; i++) pthread_join(jobs[i].thread, NULL);
    free(jobs);
}

/* ---- What is trained, on how many ranks -------------------------------------------------------- */

bool session_settle(Session *s, Config *c, Error *e) {
    int launched = wire_mpi_world();
    s->config = c;
    if (launched > 0 && c->ranks > 0 && c->ranks != launched)
        return fail(e, EXIT_USAGE, "ranks = %lld, but mpirun started %d; leave ranks out under mpirun",
                    (long long)c->ranks, launched);
    s->world = launched > 0 ? launched : c->ranks > 0 ? (int)c->ranks : 1;
    s->local = launched > 0 ? 1 : s->world;
    s->first = launched > 0 ? wire_mpi_rank() : 0;
    c->ranks = s->world;
    if (c->mixture_dense == 0) c->mixture_dense = s->world;
    if (c->compute_threads > 0) return true;
    int here = launched > 0 ? wire_mpi_local() : s->local;
    c->compute_threads = max64(1, sysconf(_SC_NPROCESSORS_ONLN) / here);
    return true;
}

/* A run as model.path means its newest checkpoint. */
static bool read_spec(Session *s, Error *e) {
    const Config *c = s->config;
    s->weights = s->model.text;
    if (!*c->model_path && !*c->model_config)
        return fail(e, EXIT_USAGE,
                    "no model: give model.config (a Hugging Face config.json, random weights) or model.path (a "
                    "checkpoint directory)");
    if (!*c->model_path) return spec_read(&s->spec, c->model_config, e);
    return checkpoint_named(c->model_path, &s->model, e) &&
           spec_read(&s->spec, path_join(s->weights, "config.json").text, e);
}

/* data.tokenizer, else the one beside the model, else bytes. */
static bool open_tokenizer(Session *s, Error *e) {
    const Config *c = s->config;
    Path beside = path_join(s->weights, "tokenizer.json");
    bool found = *s->weights && access(beside.text, R_OK) == 0;
    s->tokenizer = tokenizer_open(*c->data_tokenizer ? c->data_tokenizer : found ? beside.text : NULL, e);
    return s->tokenizer != NULL;
}

bool session_open(Session *s, Config *c, Error *e) {
    *s = (Session){0};
    return session_settle(s, c, e) && read_spec(s, e) && run_supported(c, &s->spec, s->world, e) &&
           open_tokenizer(s, e);
}

bool session_data(Session *s, Error *e) {
    const Config *c = s->config;
    if (!c->data_path[0])
        return fail(e, EXIT_USAGE, "no data: give data.path (text files, JSONL, .tokens files or directories)");
    s->tokens = tokens_open(c->data_path, s->tokenizer, e);
    return s->tokens && tokens_fit(s->tokens, s->spec.vocabulary, e);
}

void session_close(Session *s) {
    tokens_close(s->tokens);
    tokenizer_close(s->tokenizer);
    spec_close(&s->spec);
    *s = (Session){0};
}

bool session_leads(const Session *s) {
    return s->first == 0;
}

/* ---- Ranks -------------------------------------------------------------------------------------- */

double memory_physical(void) {
    return (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
}

double price_bytes(const Price *price, int ranks) {
    double bytes = 0;
    for (int i = 0; i < ranks; i++)
        for (int a = 0; a < ARENA_COUNT; a++) bytes += (double)price[i].bytes[a];
    return bytes;
}

static bool fits(const Session *s, Error *e) {
    double need = price_bytes(s->price + s->first, s->local), have = memory_physical(), gib = 1 << 30;
    if (s->config->device[0] == 's' || need <= have) return true;
    return fail(e, EXIT_MEMORY,
                "the run needs up to %.1f GiB and this machine has %.1f; see `mop plan` with the same settings; what "
                "helps most: "
                "compute.activations=recompute, more train.micro_batches with it, a smaller train.sequences or "
                "train.sequence_length",
                need / gib, have / gib);
}

static bool open_wires(Session *s, Error *e) {
    const Config *c = s->config;
    s->wires = calloc((size_t)s->local, sizeof(Wire *));
    s->errors = calloc((size_t)s->local, sizeof *s->errors);
    MUST(s->wires && s->errors);
    if (wire_mpi_world() == 0)
        return wire_threads_open(s->wires, s->world, c->comm_timeout, strcmp(c->device, "cpu:late") == 0, e);
    s->wires[0] = wire_mpi_open(c->comm_timeout, e);
    return s->wires[0] != NULL;
}

enum { GRACE_SECONDS = 3 }; /* for the other ranks of a process to return when one has failed */

typedef struct {
    Session *session;
    Run **runs;
    pthread_mutex_t lock;
    pthread_cond_t returned;
    int left;    /* ranks that have not returned */
    bool failed; /* one of those that have */
} Ranks;

/* Ranks of one mpirun mostly fail alike: rank 0 speaks, which ends the job; the others speak when it has not done so.
 * */
static void let_leader_speak(void) {
    if (wire_mpi_rank() > 0) sleep(3);
}

int session_error(const Error *e) {
    Error own = *e;
    let_leader_speak();
    if (wire_mpi_rank() > 0 && !strstr(own.text, "(rank ")) error_place(&own, " (rank %d)", wire_mpi_rank());
    return error_print(&own);
}

void error_place(Error *e, const char *format, ...) {
    size_t used = strlen(e->text);
    va_list args;
    va_start(args, format);
    vsnprintf(e->text + used, sizeof e->text - used, format, args);
    va_end(args);
}

static void rank_returns(Ranks *all, int index, const Error *e, bool ok) {
    pthread_mutex_lock(&all->lock);
    all->session->errors[index] = *e;
    all->failed = all->failed || !ok;
    all->left--;
    pthread_cond_signal(&all->returned);
    pthread_mutex_unlock(&all->lock);
}

/* A rank that fails tells the others; its Run stays open until all have returned, since they may be reading its
 * memory. */
static void rank_main(void *context, int index) {
    Ranks *all = context;
    Session *s = all->session;
    Error e = {0};
    Wire *w = s->wires[index];
    Common common = {s->config, &s->spec, s->tokenizer, s->tokens, s->request};
    all->runs[index] = run_open(&common, w, s->config->device, &s->price[w->rank], &e);
    if (!all->runs[index] && s->world > 1 && e.code != EXIT_USAGE) error_place(&e, " (rank %d)", w->rank);
    bool ok = (all->runs[index] && s->body(s, all->runs[index], &e)) || e.code == EXIT_STOPPED;
    if (!ok) {
        let_leader_speak();
        w->poison(w, &e);
    }
    rank_returns(all, index, &e, ok);
}

/* The first rank with an error of its own speaks; those that only lost a peer do not. */
static const Error *worst_error(const Session *s) {
    const Error *found = NULL;
    for (int i = 0; i < s->local; i++) {
        const Error *e = &s->errors[i];
        if (e->code == EXIT_DONE || (found && (found->code != EXIT_PEER || e->code == EXIT_PEER))) continue;
        found = e;
    }
    return found;
}

/* The ranks of this process that have failed end it, also when another never returns: nobody can end a thread. */
static void *guard_ranks(void *context) {
    Ranks *all = context;
    struct timespec until = {0};
    pthread_mutex_lock(&all->lock);
    while (all->left > 0 && !all->failed) pthread_cond_wait(&all->returned, &all->lock);
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += GRACE_SECONDS;
    while (all->left > 0)
        if (pthread_cond_timedwait(&all->returned, &all->lock, &until) == ETIMEDOUT && all->left > 0) {
            fflush(stdout);
            _exit(session_error(worst_error(all->session)));
        }
    pthread_mutex_unlock(&all->lock);
    return NULL;
}

static int run_ranks(Session *s) {
    Ranks all = {.session = s,
                 .runs = calloc((size_t)s->local, sizeof(Run *)),
                 .left = s->local,
                 .lock = PTHREAD_MUTEX_INITIALIZER,
                 .returned = PTHREAD_COND_INITIALIZER};
    pthread_t guard;
    MUST(all.runs && pthread_create(&guard, NULL, guard_ranks, &all) == 0);
    threads_run(s->local, rank_main, &all);
    pthread_join(guard, NULL);
    for (int i = 0; i < s->local; i++) run_close(all.runs[i]);
    free(all.runs);
    const Error *worst = worst_error(s);
    if (!worst) return EXIT_DONE;
    return worst->code == EXIT_STOPPED ? EXIT_STOPPED : session_error(worst);
}

static void close_ranks(Session *s) {
    for (int i = 0; s->wires && i < s->local; i++)
        if (s->wires[i]) s->wires[i]->close(s->wires[i]);
    free(s->wires);
    free(s->price);
    free(s->errors);
    s->wires = NULL;
    s->price = NULL;
    s->errors = NULL;
}

int session_run(Session *s, PriceFunction price, RankBody body, void *context) {
    Error e = {0};
    s->body = body;
    s->context = context;
    s->price = calloc((size_t)s->world, sizeof *s->price);
    MUST(s->price);
    bool ready = price(s->config, &s->spec, s->world, s->price, &e) && fits(s, &e) && open_wires(s, &e);
    int code = ready ? run_ranks(s) : session_error(&e);
    close_ranks(s);
    return code;
}

bool session_weights(Session *s, Run *r, Checkpoints *c, Error *e) {
    if (r->device->sim) return true;
    if (*s->weights)
        return checkpoint_load_weights(c, s->weights, e) &&
               store_check_finite(r->store, &r->comm, s->weights, false, e);
    store_initialise(r->store, (uint64_t)s->config->train_seed);
    return true;
}

Checkpoints *session_checkpoints(Session *s, Run *r, const char *run, Error *e) {
    return checkpoints_open(run, s->weights, &s->spec, s->config->compute_type, r->store, s->tokenizer, &r->comm, e);
}

bool session_read_weights(Session *s, Run *r, Error *e) {
    Checkpoints *c = session_checkpoints(s, r, "", e);
    bool ok = c && session_weights(s, r, c, e);
    checkpoints_close(c);
    return ok;
}
