/* Writes a token file, document by document, in memory that does not grow with the corpus. The sections
 * grow at the same time, so each is a file: ids go behind the header of what becomes the token file, labels
 * and the document index to unlinked files beside it that are appended in the end. Checksums are taken
 * while writing.
 *
 * Two things are known only when they happen. The first document with labels of its own gives the documents
 * before it their ids as labels; the first id that two bytes cannot hold starts the file anew with four.
 * Each happens once at most. */
#define _POSIX_C_SOURCE 200809L
#include "data/prepare.h"
#include "base/file.h"
#include "data/documents.h"
#include "data/sources.h"
#include "data/token_file.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { VALUES = 1 << 13 }; /* ids converted at a time */

/* A section being written. */
typedef struct {
    FILE *file;
    XXH3_state_t *hash;
    int64_t bytes;
} Spool;

typedef struct {
    const char *place; /* for messages */
    const char *hint;
    const char *beside; /* temporary files are named "BESIDE.tmp-..." */
    bool named;         /* whether the ids' file keeps its name, to be renamed in the end */
    char *name;         /* that name while it lasts */
    TokenHeader header; /* counts so far */
    Spool spool[SECTION_COUNT];
    int64_t begun; /* tokens of the document at work */
    bool not_text; /* some document came as ids */
} Writer;

/* ---- Temporary files -------------------------------------------------------------------------- */

static bool cannot_write(const Writer *w, Error *e) {
    return fail(e, EXIT_IO, "cannot write the token file: %s; %s; %s", strerror(errno), w->place, w->hint);
}

static bool no_memory(const Writer *w, Error *e) {
    return fail(e, EXIT_MEMORY, "out of memory while writing tokens; %s; free some memory", w->place);
}

/* A new file, open for reading and writing. Its name is from the process and the clock: nobody else has it. */
static int open_temporary(const Writer *w, char *name, size_t room) {
    for (;;) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        snprintf(name, room, "%s.tmp-%ld-%lx%08lx", w->beside, (long)getpid(), (unsigned long)now.tv_sec,
                 (unsigned long)now.tv_nsec);
        int fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd >= 0 || errno != EEXIST) return fd;
    }
}

static FILE *temporary_file(Writer *w, bool named, Error *e) {
    size_t room = strlen(w->beside) + 64;
    char *name = malloc(room);
    if (!name) {
        no_memory(w, e);
        return NULL;
    }
    int fd = open_temporary(w, name, room);
    FILE *file = fd >= 0 ? fdopen(fd, "w+") : NULL;
    if (!file) cannot_write(w, e);
    if (file && named) {
        w->name = name;
        return file;
    }
    if (fd >= 0) unlink(name);
    if (fd >= 0 && !file) close(fd);
    free(name);
    return file;
}

/* ---- Sections --------------------------------------------------------------------------------- */

static bool spool_open(Writer *w, TokenSection section, Error *e) {
    Spool *s = &w->spool[section];
    s->hash = XXH3_createState();
    if (!s->hash) return no_memory(w, e);
    XXH3_128bits_reset(s->hash);
    s->file = temporary_file(w, section == SECTION_IDS && w->named, e);
    if (!s->file) return false;
    if (section != SECTION_IDS) return true;
    return fwrite(&w->header, sizeof w->header, 1, s->file) == 1 || cannot_write(w, e); /* its place, for now */
}

static void spool_close(Spool *s) {
    if (s->file) fclose(s->file);
    XXH3_freeState(s->hash);
    *s = (Spool){0};
}

static bool spool_write(const Writer *w, Spool *s, const void *data, size_t bytes, Error *e) {
    XXH3_128bits_update(s->hash, data, bytes);
    s->bytes += (int64_t)bytes;
    return fwrite(data, 1, bytes, s->file) == bytes || cannot_write(w, e);
}

/* Ids or labels; the -1 of a label becomes all ones in either width. */
static bool spool_values(const Writer *w, Spool *s, const int32_t *values, int64_t count, Error *e) {
    if (w->header.id_bytes == sizeof *values) return spool_write(w, s, values, (size_t)count * sizeof *values, e);
    uint16_t narrow[VALUES];
    for (int64_t done = 0; done < count; done += VALUES) {
        int64_t n = min64(VALUES, count - done);
        for (int64_t i = 0; i < n; i++) narrow[i] = (uint16_t)values[done + i];
        if (!spool_write(w, s, narrow, (size_t)n * sizeof *narrow, e)) return false;
    }
    return true;
}

/* Adds to `to` what `from` holds behind its first `skip` bytes: as it is, or two-byte values made four-byte
 * ones. */
static bool spool_copy(const Writer *w, const Spool *from, int64_t skip, Spool *to, bool widen, Error *e) {
    uint16_t values[VALUES];
    int32_t wide[VALUES];
    if (fflush(from->file) != 0) return cannot_write(w, e);
    for (int64_t done = 0; done < from->bytes;) {
        errno = EIO; /* should the file end early */
        size_t want = (size_t)min64((int64_t)sizeof values, from->bytes - done);
        ssize_t got = pread(fileno(from->file), values, want, skip + done);
        if (got != (ssize_t)want) return cannot_write(w, e);
        size_t count = want / sizeof *values;
        for (size_t i = 0; i < count; i++) wide[i] = values[i] == UINT16_MAX ? -1 : values[i];
        bool added = widen ? spool_write(w, to, wide, count * sizeof *wide, e) : spool_write(w, to, values, want, e);
        if (!added) return false;
        done += got;
    }
    return true;
}

/* ---- Documents -------------------------------------------------------------------------------- */

static bool writer_open(Writer *w, Error *e) {
    memcpy(w->header.magic, TOKEN_MAGIC, sizeof w->header.magic);
    w->header.version = TOKEN_VERSION;
    w->header.id_bytes = sizeof(uint16_t);
    return spool_open(w, SECTION_IDS, e) && spool_open(w, SECTION_DOCUMENTS, e);
}

/* Whatever was not finished is gone. */
static void writer_close(Writer *w) {
    for (int s = 0; s < SECTION_COUNT; s++) spool_close(&w->spool[s]);
    if (w->name) unlink(w->name);
    free(w->name);
    w->name = NULL;
}

/* An id does not fit two bytes: everything again with four. */
static bool writer_widen(Writer *w, Error *e) {
    Writer narrow = *w;
    memset(&narrow.spool[SECTION_DOCUMENTS], 0, sizeof(Spool)); /* has no ids and stays */
    w->name = NULL;
    w->spool[SECTION_IDS] = w->spool[SECTION_LABELS] = (Spool){0};
    w->header.id_bytes = sizeof(uint32_t);
    bool done = spool_open(w, SECTION_IDS, e) &&
                spool_copy(w, &narrow.spool[SECTION_IDS], sizeof w->header, &w->spool[SECTION_IDS], true, e);
    if (done && w->header.labelled) {
        done = spool_open(w, SECTION_LABELS, e) &&
               spool_copy(w, &narrow.spool[SECTION_LABELS], 0, &w->spool[SECTION_LABELS], true, e);
    }
    writer_close(&narrow);
    return done;
}

/* A document has labels of its own: until here they were the ids. */
static bool writer_label(Writer *w, Error *e) {
    w->header.labelled = 1;
    return spool_open(w, SECTION_LABELS, e) &&
           spool_copy(w, &w->spool[SECTION_IDS], sizeof w->header, &w->spool[SECTION_LABELS], false, e);
}

static bool end_document(Writer *w, Error *e) {
    if (w->begun == 0) {
        w->header.skipped++;
        return true;
    }
    uint64_t first = w->header.tokens - (uint64_t)w->begun;
    w->begun = 0;
    w->header.documents++;
    return spool_write(w, &w->spool[SECTION_DOCUMENTS], &first, sizeof first, e);
}

static bool add_part(Writer *w, const Part *part, Error *e) {
    const int32_t *labels = part->labels ? part->labels : part->ids;
    int64_t vocabulary = (int64_t)w->header.vocabulary;
    for (int64_t i = 0; i < part->count; i++) {
        vocabulary = max64(vocabulary, 1 + max64(part->ids[i], labels[i]));
        w->header.trained += labels[i] >= 0 && w->begun + i > 0; /* label i is the target of position i - 1 */
    }
    w->header.vocabulary = (uint64_t)vocabulary;
    if (vocabulary > TOKEN_NARROW && w->header.id_bytes == sizeof(uint16_t) && !writer_widen(w, e)) return false;
    if (part->labels && !w->header.labelled && !writer_label(w, e)) return false;
    if (!spool_values(w, &w->spool[SECTION_IDS], part->ids, part->count, e)) return false;
    if (w->header.labelled && !spool_values(w, &w->spool[SECTION_LABELS], labels, part->count, e)) return false;
    w->header.tokens += (uint64_t)part->count;
    w->begun += part->count;
    w->header.text_bytes += (uint64_t)max64(part->text_bytes, 0);
    w->not_text = w->not_text || part->text_bytes < 0;
    return !part->ends || end_document(w, e);
}

/* ---- The whole file --------------------------------------------------------------------------- */

static bool seal_section(Writer *w, TokenSection section, Error *e) {
    static const char zeros[TOKEN_ALIGN];
    Spool *s = &w->spool[section];
    if (!s->file) {
        w->header.section[section] = token_checksum(zeros, 0);
        return true;
    }
    size_t padding = (size_t)(-s->bytes & (TOKEN_ALIGN - 1));
    if (!spool_write(w, s, zeros, padding, e)) return false;
    XXH128_canonicalFromHash(&w->header.section[section], XXH3_128bits_digest(s->hash));
    return true;
}

static bool write_header(Writer *w, FILE *file, Error *e) {
    if (w->not_text) w->header.text_bytes = 0;
    w->header.header = token_checksum(&w->header, offsetof(TokenHeader, header));
    bool written =
        fseeko(file, 0, SEEK_SET) == 0 && fwrite(&w->header, sizeof w->header, 1, file) == 1 && fflush(file) == 0;
    return written || cannot_write(w, e);
}

static bool writer_finish(Writer *w, Error *e) {
    Spool *ids = &w->spool[SECTION_IDS];
    Spool *documents = &w->spool[SECTION_DOCUMENTS];
    if (!spool_write(w, documents, &w->header.tokens, sizeof w->header.tokens, e)) return false;
    for (int s = 0; s < SECTION_COUNT; s++) {
        if (!seal_section(w, s, e)) return false;
    }
    for (int s = SECTION_IDS + 1; s < SECTION_COUNT; s++) {
        if (w->spool[s].file && !spool_copy(w, &w->spool[s], 0, ids, false, e)) return false;
    }
    return write_header(w, ids->file, e);
}

static bool write_documents(Writer *w, Documents *d, Error *e) {
    if (!writer_open(w, e)) return false;
    for (Part part; documents_next(d, &part, e);) {
        if (!add_part(w, &part, e)) return false;
    }
    if (e->code != EXIT_DONE) return false;
    return writer_finish(w, e);
}

/* Writes everything behind `paths` into the writer's file. */
static bool write_tokens(Writer *w, const char *const *paths, const Tokenizer *t, DataNotes *notes, Error *e) {
    Documents *d = documents_open(paths, t, notes, e);
    bool written = d && write_documents(w, d, e);
    documents_close(d);
    if (written && w->header.tokens == 0) {
        written = fail(e, EXIT_DATA, "no tokens: %s; %s%s; give files with text in them",
                       w->header.skipped > 0 ? "every document is empty" : "there is no document", paths[0],
                       paths[1] ? " and the others" : "");
    }
    if (written && w->header.trained == 0) {
        written = fail(e, EXIT_DATA,
                       "nothing to learn: no document has a second token that is not ignored; %s%s; check the labels",
                       paths[0], paths[1] ? " and the others" : "");
    }
    return written;
}

int tokens_prepare_unnamed(const char *const *paths, const Tokenizer *t, DataNotes *notes, Error *e) {
    Writer w = {.place = "/var/tmp",
                .beside = "/var/tmp/mop-tokens",
                .hint = "free space there, or use `mop data` and its token file"};
    bool written = write_tokens(&w, paths, t, notes, e);
    int fd = written ? fcntl(fileno(w.spool[SECTION_IDS].file), F_DUPFD_CLOEXEC, 0) : -1;
    if (written && fd < 0) cannot_write(&w, e);
    writer_close(&w);
    return fd;
}

/* ---- Into place ------------------------------------------------------------------------------- */

/* `mop data book.txt --out book.txt` must not cost anybody a book. */
static bool may_replace(const char *out, Error *e) {
    struct stat s;
    if (stat(out, &s) != 0) {
        return file_code(errno) == EXIT_DATA || fail(e, EXIT_IO,
                                                     "cannot tell what is there: %s; %s; check the disk, "
                                                     "the path and its rights",
                                                     strerror(errno), out);
    }
    if (S_ISREG(s.st_mode) && (s.st_size == 0 || is_token_file(out))) return true;
    return fail(e, EXIT_USAGE, "it exists and is not a token file; %s; choose another name for the token file", out);
}

/* "DIRECTORY/.NAME": hidden, so that a file left by a crash is not taken for data. */
static char *hidden_beside(const char *out) {
    const char *slash = strrchr(out, '/');
    int directory = slash ? (int)(slash - out) + 1 : 0;
    size_t room = strlen(out) + 2;
    char *beside = malloc(room);
    if (beside) snprintf(beside, room, "%.*s.%s", directory, out, out + directory);
    return beside;
}

/* A rename is on the disk only when its directory is. */
static bool sync_directory_of(const char *path) {
    const char *slash = strrchr(path, '/');
    char *directory = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
    int fd = directory ? open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    free(directory);
    if (fd < 0) return false;
    bool done = fsync(fd) == 0;
    return close(fd) == 0 && done;
}

static bool put_in_place(Writer *w, const char *out, Error *e) {
    if (fsync(fileno(w->spool[SECTION_IDS].file)) != 0 || rename(w->name, out) != 0) return cannot_write(w, e);
    free(w->name);
    w->name = NULL;
    return sync_directory_of(out) || cannot_write(w, e);
}

bool tokens_prepare(const char *const *paths, const Tokenizer *t, const char *out, DataNotes *notes, Error *e) {
    if (!may_replace(out, e)) return false;
    Writer w = {.place = out,
                .beside = hidden_beside(out),
                .named = true,
                .hint = "check the directory, its rights and the space left"};
    bool done = w.beside ? write_tokens(&w, paths, t, notes, e) && put_in_place(&w, out, e) : no_memory(&w, e);
    writer_close(&w);
    free((char *)w.beside);
    return done;
}
