/* evaluate and generate: commands that only run forward. */
#include "train/journal.h"
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

static bool evaluate_rank(Session *s, Run *r, Error *e) {
    Evaluation v;
    if (!open_weights(s, r, e) || !evaluate(r, &v, e)) return false;
    if (r->comm.mesh.rank != 0) return true;
    if (v.trained == 0)
        return fail(e, EXIT_DATA, "data.path has no position to predict; give documents of at least two tokens");
    int64_t bytes = tokens_predicted_bytes(s->tokens, s->tokenizer);
    double loss = v.loss / (double)v.trained;
    printf("{\"loss\": %.17g, \"tokens\": %lld, \"perplexity\": %.17g, ", loss, (long long)v.trained, exp(loss));
    if (bytes > 0)
        printf("\"bits_per_byte\": %.17g}\n", v.loss / log(2) / (double)bytes);
    else
        printf("\"bits_per_byte\": null}\n");
    return true;
}

int evaluate_command(Session *s, PriceFunction price) {
    Error e = {0};
    if (!session_data(s, &e)) return session_error(&e);
    s->request = hash_line(HASH_START, "evaluate");
    return session_run(s, price, evaluate_rank, NULL);
}

/* ---- generate ---------------------------------------------------------------------------------- */

static bool generate_rank(Session *s, Run *r, Error *e) {
    const GenerateOptions *o = s->context;
    size_t length = strlen(o->prompt);
    int32_t *ids = calloc(length + (size_t)o->tokens + 1, sizeof *ids);
    if (!ids) return fail(e, EXIT_MEMORY, "no memory for the text; use fewer --tokens or a shorter --prompt");
    int64_t given = tokenizer_encode(s->tokenizer, o->prompt, length, ids);
    bool ok = open_weights(s, r, e) && generate(r, ids, given, o->tokens, o->sampling, e);
    for (int64_t i = 0; ok && r->comm.mesh.rank == 0 && i < given + o->tokens; i++) {
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
    if (!tokenizer_ready(s->tokenizer, "--prompt", &e)) return session_error(&e);
    s->request = generate_request(options);
    return session_run(s, price, generate_rank, (void *)(uintptr_t)options);
}
