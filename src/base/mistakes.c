/* Mistakes: kept in order, without gaps, and counted beyond what fits. */
#include "base/mistakes.h"
#include <stdio.h>
#include <string.h>

void mistakes_add(Mistakes *m, const char *line) {
    size_t used = strlen(m->text), more = strlen(line) + 3;
    m->count++;
    if (m->shown < m->count - 1 || used + more >= sizeof m->text) return; /* keep the first ones, without gaps */
    snprintf(m->text + used, sizeof m->text - used, "\n  %s", line);
    m->shown++;
}

bool mistakes_report(const Mistakes *m, Error *e) {
    ExitCode code = m->out_of_memory ? EXIT_MEMORY : EXIT_USAGE;
    if (m->count == 0) return true;
    if (m->count == 1) return fail(e, code, "%s", m->text + 3);
    if (m->shown == m->count) return fail(e, code, "%d mistakes in the configuration:%s", m->count, m->text);
    return fail(e, code, "%d mistakes in the configuration:%s\n  and %d more", m->count, m->text, m->count - m->shown);
}
