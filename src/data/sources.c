/* Directories hold more than data: a card, a licence, yesterday's copy, pictures. Taking all of it trains on what nobody
 * meant, and refusing the directory helps nobody; so there is one rule by names, and whatever it leaves out is named. */
#define _GNU_SOURCE
#include "data/sources.h"
#include "data/token_file.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static bool no_memory(const char *where, Error *e) {
    return fail(e, EXIT_MEMORY, "out of memory while listing data; %s; free some memory", where);
}

bool cannot_read(const char *path, Error *e) {
    bool missing = errno == ENOENT || errno == ENOTDIR;
    return fail(
        e, missing ? EXIT_DATA : EXIT_IO,
        "%s: cannot read: %s; check the path and its rights (relative ones start at the file that names them, or at "
        "the current directory)",
        path, strerror(errno));
}

bool is_token_file(const char *path) {
    char magic[sizeof(TOKEN_MAGIC) - 1];
    struct stat status; /* a pipe that is opened and closed again has lost its writer */
    int fd = stat(path, &status) == 0 && S_ISREG(status.st_mode) ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return false;
    bool same =
        pread(fd, magic, sizeof magic, 0) == (ssize_t)sizeof magic && memcmp(magic, TOKEN_MAGIC, sizeof magic) == 0;
    close(fd);
    return same;
}

/* ---- Looking at a file ------------------------------------------------------------------------ */

bool format_is_readable(const Format *format, const char *path, Error *e) {
    if (format->kind == FORMAT_OTHER)
        return fail(e, EXIT_DATA, "%s, neither text nor JSON lines; %s; %s", format->what, path, format->advice);
    if (format->kind == FORMAT_TOKENS)
        return fail(e, EXIT_DATA,
                    "a token file cannot be joined with other data; %s; name it alone, or the files it was made of",
                    path);
    return true;
}

static bool read_head(const char *path, char head[FORMAT_BYTES], size_t *bytes, Error *e) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return cannot_read(path, e);
    ssize_t got = 1;
    *bytes = 0;
    while (*bytes < FORMAT_BYTES && got > 0) {
        do got = pread(fd, head + *bytes, FORMAT_BYTES - *bytes, (off_t)*bytes);
        while (got < 0 && errno == EINTR);
        if (got > 0) *bytes += (size_t)got;
    }
    bool read = got >= 0 || cannot_read(path, e);
    close(fd);
    return read;
}

/* Whole characters as far as the beginning goes, and none of them a NUL. */
static bool looks_like_text(const char *head, size_t bytes) {
    size_t i = 0;
    uint32_t code = 1;
    for (int n; i < bytes && (n = utf8_next(head + i, bytes - i, &code)) > 0 && code != 0;) i += (size_t)n;
    bool cut = bytes == FORMAT_BYTES && bytes - i < 4;
    return code != 0 && (i == bytes || cut);
}

/* ---- Notes ------------------------------------------------------------------------------------ */

static void note(DataNotes *n, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void note(DataNotes *n, const char *format, ...) {
    size_t used = strlen(n->text);
    va_list args;
    va_start(args, format);
    vsnprintf(n->text + used, sizeof n->text - used, format, args);
    va_end(args);
}

enum { NAMED = 8 }; /* of what was left out of a directory */

typedef struct {
    char names[NAMED * (sizeof(Shown) + 2) + 1];
    int64_t count;
} LeftOut;

static void leave_out(LeftOut *l, const char *name) {
    size_t used = strlen(l->names);
    if (l->count++ < NAMED)
        snprintf(l->names + used, sizeof l->names - used, "%s%s", used ? ", " : "", text_shown(name).text);
}

/* "a.png, b.png and 3 more"; "" for nothing. */
typedef struct {
    char text[sizeof(LeftOut) + 32];
} LeftOutShown;

static LeftOutShown left_out_shown(const LeftOut *l) {
    LeftOutShown shown = {""};
    if (l->count > NAMED)
        snprintf(shown.text, sizeof shown.text, "%s and %lld more", l->names, (long long)(l->count - NAMED));
    else
        snprintf(shown.text, sizeof shown.text, "%s", l->names);
    return shown;
}

/* ---- One file --------------------------------------------------------------------------------- */

/* Takes `path`. */
static bool add(Sources *s, char *path, Error *e) {
    if (s->count == s->room) {
        size_t room = s->room ? 2 * s->room : 16;
        char **larger = realloc(s->path, room * sizeof *larger);
        if (!larger) {
            no_memory(path, e);
            free(path);
            return false;
        }
        s->path = larger;
        s->room = room;
    }
    s->path[s->count++] = path;
    return true;
}

/* What is no regular file (a pipe) can be read only once: its kind is found then. */
static bool add_file(Sources *s, char *path, bool regular, Error *e) {
    char head[FORMAT_BYTES];
    size_t bytes;
    if (!add(s, path, e)) return false;
    if (!regular) return true;
    if (!read_head(path, head, &bytes, e)) return false;
    Format format = format_of(path, head, bytes);
    if (format.guessed)
        note(&s->notes, "%s%s is read as JSON lines, for it begins with an object", *s->notes.text ? "; " : "",
             text_shown(path).text);
    return format_is_readable(&format, path, e);
}

/* ---- Directories ------------------------------------------------------------------------------ */

/* Bytes, not the user's language, decide the order of documents. */
static int by_name(const struct dirent **a, const struct dirent **b) {
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int is_entry(const struct dirent *entry) {
    return strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
}

/* A bare name says nothing: its contents do. */
static bool bare_is_data(const char *path, bool *yes, Error *e) {
    char head[FORMAT_BYTES];
    size_t bytes;
    if (!read_head(path, head, &bytes, e)) return false;
    Format format = format_of(path, head, bytes);
    *yes = format.kind == FORMAT_LINES || format.kind == FORMAT_TOKENS ||
           (format.kind == FORMAT_TEXT && looks_like_text(head, bytes));
    return true;
}

static bool member_is_data(const char *path, const char *name, const struct stat *status, bool *yes, Error *e) {
    NameKind kind = name_kind(name);
    *yes = !S_ISDIR(status->st_mode) && (kind == NAME_LINES || kind == NAME_TEXT || has_suffix(name, ".tokens"));
    if (*yes || kind != NAME_BARE || !S_ISREG(status->st_mode)) return true;
    return bare_is_data(path, yes, e);
}

static bool add_member(Sources *s, const char *directory, const char *name, LeftOut *left, Error *e) {
    size_t bytes = strlen(directory) + strlen(name) + 2;
    char *path = malloc(bytes);
    if (!path) return no_memory(directory, e);
    snprintf(path, bytes, "%s%s%s", directory, has_suffix(directory, "/") ? "" : "/", name);
    struct stat status;
    bool data = false, about = name_kind(name) == NAME_ABOUT;
    bool known = about || stat(path, &status) == 0 || cannot_read(path, e);
    if (known && !about) known = member_is_data(path, name, &status, &data, e);
    if (known && data) return add_file(s, path, S_ISREG(status.st_mode), e);
    if (known) leave_out(left, name);
    free(path);
    return known;
}

static bool add_directory(Sources *s, const char *directory, Error *e) {
    struct dirent **entries;
    LeftOut left = {"", 0};
    size_t before = s->count;
    int count = scandir(directory, &entries, is_entry, by_name);
    if (count < 0) return cannot_read(directory, e);
    bool added = true;
    for (int i = 0; i < count; i++) {
        added = added && add_member(s, directory, entries[i]->d_name, &left, e);
        free(entries[i]);
    }
    free(entries);
    if (!added) return false;
    LeftOutShown shown = left_out_shown(&left);
    if (s->count == before)
        return fail(e, EXIT_DATA,
                    "no data in the directory, which has %s%s; %s; put .txt, .md or .jsonl files there, or name files "
                    "or directories themselves",
                    left.count ? "only " : "no file", shown.text, directory);
    if (left.count > 0)
        note(&s->notes, "%s%s: left out %s", *s->notes.text ? "; " : "", text_shown(directory).text, shown.text);
    return true;
}

/* ---- All of them ------------------------------------------------------------------------------ */

static bool add_path(Sources *s, const char *path, Error *e) {
    struct stat status;
    if (stat(path, &status) != 0) return cannot_read(path, e);
    if (S_ISDIR(status.st_mode)) return add_directory(s, path, e);
    char *copy = strdup(path);
    return copy ? add_file(s, copy, S_ISREG(status.st_mode), e) : no_memory(path, e);
}

bool sources_find(Sources *s, const char *const *paths, Error *e) {
    *s = (Sources){0};
    for (const char *const *path = paths; *path; path++) {
        if (!add_path(s, *path, e)) return false;
    }
    return s->count > 0 ||
           fail(e, EXIT_USAGE,
                "no data is named; data.path; give a text file, a .jsonl file, a directory or a token file");
}

void sources_close(Sources *s) {
    for (size_t i = 0; i < s->count; i++) free(s->path[i]);
    free(s->path);
    *s = (Sources){0};
}
