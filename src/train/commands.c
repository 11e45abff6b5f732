/* evaluate and generate: commands that only run forward. */
#include "train/journal.h"
#include "train/prompt.h"
#include "train/train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool open_weights(Session *s, Run *r, Error *e) {
    if (!*s->weights && r->comm.mesh.rank == 0)
        fprintf(stderr, "mop: model.path is not given: the weights are random\n");
    return session_read_weights(s, r, e);
}

/* ---- evaluate ---------------------------------------------------------------------------------- */

/* JSON has no NaN and no infinity. */
static void print_number(const char *name, double x) {
    if (isfinite(x))
        printf("\"%s\": %.17g, ", name, x);
    else
        printf("\"%s\": null, ", name);
}

static void print_quoted(const char *text) {
    json_t *string = json_string(text);
    char *quoted = string ? json_dumps(string, JSON_ENCODE_ANY) : NULL;
    fputs(quoted ? quoted : "null", stdout);
    free(quoted);
    json_decref(string);
}

/* Whose loss on what: the model and the paths of the data, as they were given. */
static void print_subject(const Session *s) {
    const Config *c = s->config;
    printf("\"model\": ");
    print_quoted(*s->weights ? s->weights : c->model_config);
    printf(", \"random_weights\": %s, \"data\": [", *s->weights ? "false" : "true");
    for (int i = 0; c->data_path[i]; i++) {
        if (i) printf(", ");
        print_quoted(c->data_path[i]);
    }
    printf("]}\n");
}

static bool evaluate_waiting(Run *r, Evaluation *v, Error *e) {
    Waiting waiting = waiting_begin("evaluate");
    if (r->comm.mesh.rank == 0) r->waiting = &waiting;
    bool ok = evaluate(r, v, e);
    r->waiting = NULL;
    waiting_end(&waiting);
    return ok;
}

static bool evaluate_rank(Session *s, Run *r, Error *e) {
    Evaluation v;
    if (!open_weights(s, r, e) || !evaluate_waiting(r, &v, e)) return false;
    if (r->comm.mesh.rank != 0) return true;
    if (v.trained == 0)
        return fail(e, EXIT_DATA, "data.path has no position to predict; give documents of at least two tokens");
    int64_t bytes = tokens_predicted_bytes(s->tokens, s->tokenizer);
    double loss = v.loss / (double)v.trained;
    putchar('{');
    print_number("loss", loss);
    printf("\"tokens\": %lld, ", (long long)v.trained);
    print_number("perplexity", exp(loss));
    print_number("bits_per_byte", bytes > 0 ? v.loss / log(2) / (double)bytes : NAN);
    print_subject(s);
    return true;
}

int evaluate_command(Session *s, PriceFunction price) {
    Error e = {0};
    if (!session_data(s, &e)) return session_error(&e);
    s->request = hash_line(HASH_START, "evaluate");
    return session_run(s, price, evaluate_rank, NULL);
}

/* ---- generate ---------------------------------------------------------------------------------- */

static bool generate_waiting(Session *s, Run *r, int32_t *ids, int64_t given, Generated *out, Error *e) {
    const GenerateOptions *o = s->context;
    Waiting waiting = waiting_begin("generate");
    Sampling how = o->sampling;
    how.ends = &s->ends;
    how.out = out;
    if (r->comm.mesh.rank == 0) r->waiting = &waiting;
    bool ok = generate(r, ids, given, o->tokens, how, e);
    r->waiting = NULL;
    waiting_end(&waiting);
    return ok;
}

static bool generate_rank(Session *s, Run *r, Error *e) {
    const GenerateOptions *o = s->context;
    size_t length = strlen(o->prompt);
    int32_t *ids = calloc(length + (size_t)o->tokens + 1, sizeof *ids);
    if (!ids) return fail(e, EXIT_MEMORY, "no memory for the text; use fewer --tokens or a shorter --prompt");
    int64_t given = tokenizer_encode(s->tokenizer, o->prompt, length, ids);
    Generated out;
    bool ok = open_weights(s, r, e) && generate_waiting(s, r, ids, given, &out, e);
    for (int64_t i = 0; ok && r->comm.mesh.rank == 0 && i < given + out.made; i++) {
        size_t n;
        const char *piece = tokenizer_decode(s->tokenizer, ids[i], &n);
        journal_text(piece, n, isatty(STDOUT_FILENO));
    }
    if (ok && r->comm.mesh.rank == 0) printf("\n");
    free(ids);
    return ok;
}

static uint64_t generate_request(const GenerateOptions *o) {
    double sampling[] = {o->sampling.temperature, o->sampling.top_p};
    uint64_t hash = hash_line(hash_line(HASH_START, "generate"), o->prompt);
    hash = hash_more(hash, &o->tokens, sizeof o->tokens);
    hash = hash_more(hash, &o->sampling.seed, sizeof o->sampling.seed);
    return hash_more(hash, sampling, sizeof sampling);
}

int generate_command(Session *s, PriceFunction price, const GenerateOptions *options) {
    Error e = {0};
    if (!*options->prompt) {
        fail(&e, EXIT_USAGE, "generate needs a prompt: --prompt TEXT");
        return session_error(&e);
    }
    if (!tokenizer_ready(s->tokenizer, "--prompt", &e) || !prompt_check(s, "--prompt", options->prompt, &e))
        return session_error(&e);
    s->request = generate_request(options);
    return session_run(s, price, generate_rank, (void *)(uintptr_t)options);
}
