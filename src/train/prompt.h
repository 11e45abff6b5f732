/* What generation begins with and where it ends: asked of the model and its tokenizer before anything is opened. */
#ifndef MOP_PROMPT_H
#define MOP_PROMPT_H

#include "train/session.h"

/* Refuses (EXIT_USAGE) a prompt that makes no token or one that the model does not know, and reads what ends a text
 * into s->ends. `name` is what the user calls the prompt; an empty one is the caller's business. Every process of an
 * mpirun says the same. */
bool prompt_check(Session *s, const char *name, const char *prompt, Error *e);

/* eos_token_id of generation_config.json beside the weights, else of config.json: an id, several, or none. */
bool text_ends_read(TextEnds *out, const char *directory, const json_t *config, Error *e);

#endif
