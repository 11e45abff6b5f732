/* Settings back to YAML, and held against those that a run began with. */
#define _POSIX_C_SOURCE 200809L
#include "base/config.h"
#include "base/directory.h"
#include "base/mistakes.h"
#include "base/options.h"
#include <stdlib.h>
#include <string.h>

/* ---- Writing ---------------------------------------------------------------------------------- */

static bool same_section(const Option *a, const Option *b) {
    size_t n = option_section(a);
    return n == option_section(b) && strncmp(a->key, b->key, n) == 0;
}

void config_write(const Config *c, FILE *f) {
    char *directory = directory_now();
    MUST(directory); /* what is written was read, which checks it */
    fputs("# Every setting of a run of mop. `mop config explain KEY` tells more of one.\n"
          "# Paths are whole here; a relative one would start at this file.\n",
          f);
    for (int i = 0; i < option_count; i++) {
        const Option *o = &options[i];
        size_t section = option_section(o);
        if (i == 0 || !same_section(o, o - 1)) {
            fputc('\n', f);
            if (section) fprintf(f, "%.*s:\n", (int)section, o->key);
        }
        char *value = option_text_located(o, c, directory);
        int used = fprintf(f, "%s%s: %s", section ? "  " : "", o->key + (section ? section + 1 : 0), value);
        fprintf(f, "%*s# %s\n", (int)max64(2, 36 - used), "", o->help);
        free(value);
    }
    free(directory);
}

/* ---- Resuming --------------------------------------------------------------------------------- */

bool config_resumable(const Config *now, const Config *before, Error *e) {
    Mistakes mistakes = {0};
    for (int i = 0; i < option_count; i++) {
        const Option *o = &options[i];
        if (!o->fixed || option_equal(o, now, before)) continue;
        char *is = option_text(o, now), *was = option_text(o, before);
        char line[512];
        snprintf(line, sizeof line,
                 "%s was %.150s when the run began and is %.150s now; set it back, or begin a new run with --run",
                 o->key, was, is);
        mistakes_add(&mistakes, line);
        free(is);
        free(was);
    }
    return mistakes_report(&mistakes, e);
}
