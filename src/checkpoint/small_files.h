/* The small files of a checkpoint or an export: made or read whole in memory, written from there, and listed in the
 * manifest from there too, so that what a manifest says was never read back from a disk.
 *
 *     made       config.json, the index, state.json; generation_config.json and byte tokenizer where the source has none
 *     carried    what lies beside the weights that training began from and is no weight: the table in small_files.c has
 *                the names. mop carries these byte for byte, also a tokenizer.json that it cannot read itself */
#ifndef MOP_SMALL_FILES_H
#define MOP_SMALL_FILES_H

#include "base/json.h"
#include "data/data.h"

typedef struct {
    const char *name; /* lives for ever */
    char *text;
    size_t bytes;
} SmallFile;

enum { SMALL_FILES = 40 };

/* Starts as {0}. By name, whatever order they came in: a resumed run lists them as one that was never stopped. */
typedef struct {
    SmallFile file[SMALL_FILES];
    int count;
} SmallFiles;

void small_files_close(SmallFiles *s);
const SmallFile *small_files_find(const SmallFiles *s, const char *name); /* NULL: none of this name */

/* Takes `text` (NULL: false, and `e` says why already). A name that is there already stays as it is. */
bool small_files_take(SmallFiles *s, const char *name, char *text, size_t bytes, Error *e);
/* Takes `json`; NULL is EXIT_MEMORY. */
bool small_files_add(SmallFiles *s, const char *name, json_t *json, Error *e);

/* All files of the table that are in `directory` ("": none), which may be a file's path. With a tokenizer, those that
 * belong to one come from beside its tokenizer.json instead, or are made where it is built in. EXIT_DATA when one is no
 * regular file, too large, or a JSON file that is not JSON. */
bool small_files_carry(SmallFiles *s, const char *directory, const Tokenizer *t, Error *e);
/* The licence's name, as the model card or the state.json in a directory states it; "" if neither does. */
typedef struct {
    char text[64];
} Licence;
bool licence_of(const char *directory, Licence *out, Error *e);
/* generation_config.json: what of the model's config is about generating. Nothing where one was carried. */
bool small_files_generation(SmallFiles *s, const json_t *config, Error *e);

/* To ask once everything of a directory was read: a run that trains may have moved it away meanwhile, and then what looked
 * absent was not. EXIT_DATA. */
bool directory_still_there(const char *directory, Error *e);

/* Writes all, each on the disk when it returns. */
bool small_files_write(const SmallFiles *s, const char *directory, Error *e);

#endif
