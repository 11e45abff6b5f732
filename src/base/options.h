/* The option table: one row says everything about one setting, and whoever reads, writes, explains or compares settings
 * walks the rows. A new setting is a field of Config, a row in options.c, and its page in manual.c. */
#ifndef MOP_OPTIONS_H
#define MOP_OPTIONS_H

#include "base/config.h"

#define OPTION_MOST 0x1p53 /* integers that a double holds exactly */

typedef enum { OPTION_TEXT, OPTION_LIST, OPTION_INTEGER, OPTION_NUMBER, OPTION_CHOICE } OptionKind;

typedef struct {
    const char *key; /* "train.steps": section and name; or a name alone */
    OptionKind kind;
    size_t offset;       /* of the field in Config: const char *, const char **, int64_t, double, an enum */
    const char *initial; /* the default, as text */
    const char *unit;    /* "" where there is none */
    double low, high;    /* of integers and numbers, both allowed */
    double also;         /* one value more outside of [low, high]; 0: none */
    /* NULL-terminated. Of a choice: the names of the enum's values, in its order. Of a text: the forms it may have,
     * where capitals after a colon stand for any text, FILE for a path; NULL: any text at all. */
    const char *const *choices;
    bool path;                /* the text, or each of the list, is the path of a file or a directory */
    const char *const *words; /* NULL-terminated values that are no paths all the same; NULL: none */
    bool fixed;               /* may not change when a run is resumed */
    bool own;                 /* may differ between the ranks of a run, and between its resumes without a word */
    bool contents; /* a path: it may differ between ranks and at a resume, but what it leads to is compared */
    const char *help;
} Option;

extern const Option options[];
extern const int option_count;

const Option *option_find(const char *key); /* NULL: no such key */
size_t option_section(const Option *o);     /* bytes of the key that are its section; 0: none */

/* Gives the field its value; EXIT_USAGE with "key is ...; it must be ..." when the text is not allowed. A list becomes
 * a list of one, or of none when the text is "". */
bool option_set(const Option *o, Config *c, const char *text, Error *e);
bool option_set_list(const Option *o, Config *c, const char *const *items, size_t n, Error *e);

/* Where in `text`, a value of the option, a path begins: "replay:FILE" is one from its eighth character on. NULL: it
 * holds none. */
const char *option_path(const Option *o, const char *text);
/* `text` with its path, if that is relative, behind `base`, which is "" or ends in '/'. NULL: out of memory. The caller
 * frees. */
char *option_located(const Option *o, const char *text, const char *base);

void option_print(const Option *o, const Config *c, FILE *f); /* the value, as YAML on one line */
char *option_text(const Option *o, const Config *c);          /* the same; the caller frees */
/* The same with relative paths located at `base`. */
void option_print_located(const Option *o, const Config *c, const char *base, FILE *f);
char *option_text_located(const Option *o, const Config *c, const char *base);
void option_print_allowed(const Option *o, FILE *f); /* "an integer from 1 to 8 (steps)" */
bool option_equal(const Option *o, const Config *a, const Config *b);

#endif
