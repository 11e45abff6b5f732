/* From a Config to open ranks. Everything that can be refused is refused here, before a file is created or a weight
 * is read. */
#include "train/session.h"

#include "base/file.h"
#include "base/limits.h"
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

/* Threads wait here until all of them are there: ranks that had begun would wait for those that never come. */
typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t moved;
    bool decided, open;
} Gate;

typedef struct {
    void (*body)(void *context, int index);
    void *context;
    Gate *gate;
    int index;
    pthread_t thread;
} Job;

static bool gate_lets_through(Gate *g) {
    pthread_mutex_lock(&g->lock);
    while (!g->decided) pthread_cond_wait(&g->moved, &g->lock);
    pthread_mutex_unlock(&g->lock);
    return g->open;
}

static void gate_decide(Gate *g, bool open) {
    pthread_mutex_lock(&g->lock);
    g->decided = true;
    g->open = open;
    pthread_cond_broadcast(&g->moved);
    pthread_mutex_unlock(&g->lock);
}

static void *start_job(void *p) {
    Job *j = p;
    if (gate_lets_through(j->gate)) j->body(j->context, j->index);
    return NULL;
}

bool threads_run(int n, void (*body)(void *context, int index), void *context, Error *e) {
    Gate gate = {.lock = PTHREAD_MUTEX_INITIALIZER, .moved = PTHREAD_COND_INITIALIZER};
    Job *jobs = calloc((size_t)n, sizeof *jobs);
    int started = 0, refused = jobs ? 0 : ENOMEM;
    while (started < n && refused == 0) {
        Job *j = &jobs[started];
        *j = (Job){.body = body, .context = context, .gate = &gate, .index = started};
        refused = pthread_create(&j->thread, NULL, start_job, j);
        started += refused == 0;
    }
    gate_decide(&gate, refused == 0);
    for (int i = 0; i < started; i++) pthread_join(jobs[i].thread, NULL);
    free(jobs);
    return refused == 0 ||
           fail(e, EXIT_MEMORY,
                "only %d of %d threads could be started: %s; use fewer ranks, or raise the limits of processes and of "
                "address space (ulimit -u, ulimit -v)",
                started, n, strerror(refused));
}

bool threads_fit(double threads, const char *what, Error *e) {
    double have = threads_limit();
    return threads <= have || fail(e, EXIT_MEMORY,
                                   "%s: they need %.0f threads, and this machine lets all its programs have %.0f; use "
                                   "fewer of them",
                                   what, threads, have);
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
    s->weights = s->model.directory.text;
    if (!*c->model_path && !*c->model_config)
        return fail(e, EXIT_USAGE,
                    "no model: give model.config (a Hugging Face config.json, random weights) or model.path (a "
                    "checkpoint directory)");
    if (!*c->model_path) return spec_read(&s->spec, c->model_config, e);
    if (!checkpoint_named(c->model_path, &s->model, e)) return false;
    if (session_leads(s)) checkpoint_say_passed_over(&s->model);
    if (spec_read(&s->spec, path_join(s->weights, "config.json").text, e)) return true;
    checkpoint_gone(s->weights, e);
    return false;
}

/* Where the model's files lie: model.path, or the directory of model.config. */
static Path model_directory(const Session *s) {
    const char *config = s->config->model_config, *slash = strrchr(config, '/');
    Path directory;
    snprintf(directory.text, sizeof directory.text, "%s", s->weights);
    if (*s->weights) return directory;
    size_t bytes = slash && slash > config ? (size_t)(slash - config) : 1; /* "." or "/" by itself */
    snprintf(directory.text, sizeof directory.text, "%.*s", (int)bytes, slash ? config : ".");
    return directory;
}

static bool open_tokenizer(Session *s, Error *e) {
    s->tokenizer = tokenizer_choose(s->config->data_tokenizer, model_directory(s).text, s->spec.vocabulary, e);
    return s->tokenizer != NULL;
}

bool session_open(Session *s, Config *c, Error *e) {
    *s = (Session){0};
    return session_settle(s, c, e) && read_spec(s, e) && run_supported(c, &s->spec, s->world, e) &&
           open_tokenizer(s, e);
}

/* A token file does not say which tokenizer made it; but one id a byte, all of it text, is the work of bytes, and no other
 * tokenizer's. */
static bool tokenizer_made_them(const Session *s, Error *e) {
    TokensInfo info = tokens_info(s->tokens);
    bool bytes = info.text_bytes > 0 && info.text_bytes == info.tokens;
    return !bytes || strcmp(s->config->data_tokenizer, "none") == 0 ||
           tokenizer_ready(s->tokenizer, "the token file was made of bytes, one id each", e);
}

bool session_data(Session *s, Error *e) {
    const Config *c = s->config;
    if (!c->data_path[0])
        return fail(e, EXIT_USAGE, "no data: give data.path (text files, JSONL, .tokens files or directories)");
    s->tokens = tokens_open(c->data_path, s->tokenizer, e);
    if (!s->tokens) return false;
    if (*tokens_notes(s->tokens) && session_leads(s)) fprintf(stderr, "mop: data: %s\n", tokens_notes(s->tokens));
    return tokens_fit(s->tokens, s->spec.vocabulary, e) && tokenizer_made_them(s, e);
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

double price_bytes(const Price *price, int ranks) {
    double bytes = 0;
    for (int i = 0; i < ranks; i++)
        for (int a = 0; a < ARENA_COUNT; a++) bytes += (double)price[i].bytes[a];
    return bytes;
}

static bool fits(const Session *s, Error *e) {
    double need =
        price_bytes(s->price + s->first, s->local) + s->local * run_heap(s->config, &s->spec, s->world, false);
    double have = memory_limit(), gib = 1 << 30;
    if (device_counts(s->config->device) || need <= have) return true;
    return fail(
        e, EXIT_MEMORY,
        "the run needs up to %.1f GiB and this machine has %.1f; see `mop plan` with the same settings; what "
        "helps most: compute.activations=recompute, more train.micro_batches with it, a smaller train.sequences or "
        "train.sequence_length",
        need / gib, have / gib);
}

static bool no_memory(const Session *s, Error *e) {
    return fail(e, EXIT_MEMORY, "no memory for %d ranks; use fewer ranks, or free some memory", s->world);
}

/* A rank's own, those of its pool, and one for its network. */
static bool enough_threads(const Session *s, Error *e) {
    char what[64];
    if (device_counts(s->config->device)) return true;
    snprintf(what, sizeof what, "%d ranks x %lld threads", s->local, (long long)s->config->compute_threads);
    return threads_fit((double)s->local * ((double)s->config->compute_threads + 1), what, e);
}

static bool open_wires(Session *s, Error *e) {
    const Config *c = s->config;
    s->wires = calloc((size_t)s->local, sizeof(Wire *));
    s->errors = calloc((size_t)s->local, sizeof *s->errors);
    if (!s->wires || !s->errors) return no_memory(s, e);
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
    pthread_cond_t returned; /* its clock is monotonic: one that is set meanwhile is no time gone by */
    int left;                /* ranks that have not returned */
    bool failed;             /* one of those that have */
} Ranks;

/* Ranks of one mpirun mostly fail alike: rank 0 speaks, which ends the job; the others do when it has not. */
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
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += GRACE_SECONDS;
    while (all->left > 0)
        if (pthread_cond_timedwait(&all->returned, &all->lock, &until) == ETIMEDOUT && all->left > 0) {
            fflush(stdout);
            _exit(session_error(worst_error(all->session)));
        }
    pthread_mutex_unlock(&all->lock);
    return NULL;
}

static void dismiss_guard(Ranks *all) {
    pthread_mutex_lock(&all->lock);
    all->left = 0;
    pthread_cond_signal(&all->returned);
    pthread_mutex_unlock(&all->lock);
}

/* False when the ranks could not begin: nobody waits for them then, neither here nor in other processes. */
static bool start_ranks(Ranks *all, Error *e) {
    Session *s = all->session;
    pthread_t guard;
    int refused = pthread_create(&guard, NULL, guard_ranks, all);
    if (refused)
        fail(e, EXIT_MEMORY,
             "cannot start a thread: %s; raise the limits of processes and of address space (ulimit -u, ulimit -v)",
             strerror(refused));
    bool ok = !refused && threads_run(s->local, rank_main, all, e);
    if (!ok) s->wires[0]->poison(s->wires[0], e);
    if (!ok) dismiss_guard(all);
    if (!refused) pthread_join(guard, NULL);
    return ok;
}

static int run_ranks(Session *s) {
    Error e = {0};
    Ranks all = {.session = s,
                 .runs = calloc((size_t)s->local, sizeof(Run *)),
                 .left = s->local,
                 .lock = PTHREAD_MUTEX_INITIALIZER};
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&all.returned, &monotonic);
    bool ran = all.runs ? start_ranks(&all, &e) : no_memory(s, &e);
    for (int i = 0; all.runs && i < s->local; i++) run_close(all.runs[i]);
    free(all.runs);
    pthread_cond_destroy(&all.returned);
    pthread_condattr_destroy(&monotonic);
    const Error *worst = ran ? worst_error(s) : &e;
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
    bool ready = (s->price || no_memory(s, &e)) && enough_threads(s, &e) &&
                 price(s->config, &s->spec, s->world, s->price, &e) && fits(s, &e) && open_wires(s, &e);
    int code = ready ? run_ranks(s) : session_error(&e);
    close_ranks(s);
    return code;
}

bool session_weights(Session *s, Run *r, Checkpoints *c, Error *e) {
    if (r->device->sim) return true;
    if (!*s->weights) {
        store_initialise(r->store, (uint64_t)s->config->train_seed);
        return true;
    }
    NamedCheckpoint taken = s->model;
    if (!checkpoint_load_named(c, &taken, e)) return false;
    if (r->comm.mesh.rank == 0 && taken.damaged > s->model.damaged) {
        checkpoint_say_passed_over(&taken);
        s->model = taken; /* for the journal, which is this rank's too */
    }
    return store_check_finite(r->store, &r->comm, taken.directory.text, false, e);
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
