/* What a newcomer wants to know of each setting and each section, in whole sentences. `mop config explain` and
 * `mop help` print it; a test holds that every row of the option table has a page here, and that its example is
 * accepted. */
#ifndef MOP_MANUAL_H
#define MOP_MANUAL_H

typedef struct {
    const char *name;    /* a key, or a section */
    const char *about;   /* what it means */
    const char *when;    /* when to change it; of a section "" */
    const char *example; /* "key=value", as --set takes it; of a section the setting to begin with */
} Page;

const Page *manual_page(const char *name); /* NULL: there is none */

#endif
