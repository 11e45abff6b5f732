/* Tokenizers from the inside, for tokenizer.c and tokenizer_choice.c. */
#ifndef MOP_TOKENIZER_H
#define MOP_TOKENIZER_H

#include "data/data.h"

/* One without a file, which must be refused next. */
Tokenizer *tokenizer_none(Error *e);
/* It is not for text from now on, and this is why: "what; where; what to do". The first reason stays. */
void tokenizer_refuse(Tokenizer *t, ExitCode code, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
