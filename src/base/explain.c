/* The option table and its manual, printed. */
#include "base/explain.h"
#include "base/guess.h"
#include "base/manual.h"
#include "base/options.h"
#include <string.h>

static const char *initial_text(const Option *o) {
    return *o->initial ? o->initial : "\"\"";
}

static bool in_section(const Option *o, const char *section) {
    size_t n = option_section(o);
    return n > 0 && strlen(section) == n && strncmp(o->key, section, n) == 0;
}

static bool same_section(const Option *a, const Option *b) {
    size_t n = option_section(a);
    return n == option_section(b) && strncmp(a->key, b->key, n) == 0;
}

void print_wrapped(const char *label, int indent, const char *text, FILE *f) {
    enum { COLUMNS = 96 };
    int column = fprintf(f, "%-*s", indent, label);
    for (const char *blank = ""; *text; blank = " ") {
        int word = (int)strcspn(text, " ");
        if (*blank && column + 1 + word > COLUMNS) {
            column = fprintf(f, "\n%*s", indent, "") - 1;
            blank = "";
        }
        column += fprintf(f, "%s%.*s", blank, word, text);
        text += word;
        text += strspn(text, " ");
    }
    fputc('\n', f);
}

static void print_row(const Option *o, FILE *f) {
    fprintf(f, "%-26s %-10s %-12s %s\n", o->key, initial_text(o), o->unit, o->help);
}

void config_help(FILE *f) {
    fputs("Settings: keys of the YAML file, or --set KEY=VALUE. Relative paths in a YAML file start at that file, "
          "those of\n"
          "--set at the current directory. `mop help KEY` explains one, `mop help SECTION` all of mixture, train, "
          "...\n\n",
          f);
    fprintf(f, "%-26s %-10s %-12s\n", "KEY", "DEFAULT", "UNIT");
    for (int i = 0; i < option_count; i++) {
        if (i > 0 && !same_section(&options[i], &options[i - 1])) fputc('\n', f);
        print_row(&options[i], f);
    }
}

static void explain_option(const Option *o, const Page *page, FILE *f) {
    fprintf(f, "%s: %s\n\n", o->key, o->help);
    print_wrapped("", 2, page->about, f);
    fputc('\n', f);
    print_wrapped("  when", 11, page->when, f);
    fprintf(f, "  example  --set %s\n  value    ", page->example);
    option_print_allowed(o, f);
    const char *resume = o->fixed      ? "must stay as the run began"
                         : o->contents ? "may be another path to the same contents when a run is resumed"
                                       : "may change when a run is resumed";
    fprintf(f, "\n  default  %s\n  resume   %s\n", initial_text(o), resume);
}

static void explain_section(const char *section, const Page *page, FILE *f) {
    fprintf(f, "%s\n\n", section);
    print_wrapped("", 2, page->about, f);
    fprintf(f, "\n  example  --set %s\n\n", page->example);
    for (int i = 0; i < option_count; i++)
        if (in_section(&options[i], section)) print_row(&options[i], f);
    fprintf(f, "\n`mop help KEY` explains one of them.\n");
}

bool config_explain(const char *name, FILE *f, Error *e) {
    const Option *o = option_find(name);
    const Page *page = manual_page(name);
    if (o)
        explain_option(o, page, f);
    else if (page)
        explain_section(name, page, f);
    else
        return fail(e, EXIT_USAGE, "there is no setting %s; %s", text_shown(name).text, key_hint(name).text);
    return true;
}
