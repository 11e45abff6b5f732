/* The manifest of a checkpoint: what files it consists of, and the hash of every piece of them. It is written
 * last, so that a directory with a good manifest is a whole checkpoint.
 *
 *     {"version": 1, "mop": "0.1.0", "step": 1200, "files": {
 *        "model.safetensors": {"bytes": 99952,
 *                              "extents": [[0, 6640, "hash"]],                     the header
 *                              "tensors": {"lm_head.weight": [[6640, 13072, "hash"]], ...}},
 *        "config.json": {"bytes": 812, "extents": [[0, 812, "hash"]], "tensors": {}}, ...},
 *      "checksum": "hash of all text before this line"}
 *
 * An extent is a run of bytes [begin, end) of the file that one rank wrote, hashed while it was written
 * (XXH3-128); of a tensor it is at most EXTENT_BYTES long, so that reading any slice verifies little more than
 * the slice. Extents cover every byte; an empty file has none. The files are the placement's and then the small ones, in
 * the order in which they were written, whatever order the directory lists them in. */
#ifndef MOP_MANIFEST_H
#define MOP_MANIFEST_H

#include "checkpoint/placement.h"

enum { EXTENT_BYTES = 1 << 20 };

typedef struct {
    int64_t begin, end;
    XXH128_canonical_t hash;
} Extent;
XXH128_canonical_t extent_hash(const void *data, size_t bytes);

typedef struct {
    char name[64];
    int64_t bytes;
    Extent *extents; /* by place; they cover [0, bytes) */
    int64_t count;
} ManifestFile;

typedef struct {
    int64_t step;
    ManifestFile *files;
    int64_t count;
} Manifest;

bool manifest_exists(const char *directory, bool *exists, Error *e);
/* EXIT_DATA when it is missing, was changed or does not cover its files. Looks at no other file. */
bool manifest_read(Manifest *m, const char *directory, Error *e);
void manifest_close(Manifest *m);                                       /* of one that was read */
const ManifestFile *manifest_find(const Manifest *m, const char *name); /* NULL: not in it */
/* The extent with byte `at`, which the file has. */
const Extent *manifest_extent(const ManifestFile *f, int64_t at);
/* Whether an extent's bytes have this hash; the message names the tensor. */
bool extent_check(const Extent *x, XXH128_hash_t hash, const char *path, Error *e);
/* Reads an extent through `buffer` [EXTENT_BYTES] and says whether its bytes are the ones that were written. */
bool extent_verify(const Extent *x, int fd, const char *path, void *buffer, Error *e);
/* Verifies a file from its first byte to its last, and that there are no more. `buffer` as above. */
bool manifest_verify_file(const ManifestFile *f, const char *directory, void *buffer, Error *e);

/* Writes the manifest, fsynced. The first files of `m` are the placement's, in its order. */
bool manifest_write(const Manifest *m, const Placement *p, const char *directory, Error *e);

#endif
