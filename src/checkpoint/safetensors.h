/* The safetensors format, which Hugging Face keeps weights in:
 *
 *     8 bytes   N, little-endian
 *     N bytes   JSON: {"name": {"dtype": "F32", "shape": [67, 24], "data_offsets": [begin, end]}, ...,
 *               "__metadata__": {...}}
 *     the rest  the tensors' bytes, row-major, little-endian; offsets count from here
 *
 * A file is believed in nothing: the header's size, each type, shape and pair of offsets is checked, tensors
 * must cover the data exactly (no holes, no overlaps, no tail), and names are unique. */
#ifndef MOP_SAFETENSORS_H
#define MOP_SAFETENSORS_H

#include "base/json.h"
#include "checkpoint/text.h"
#include <xxhash.h>

/* Types of the format that fill whole bytes. The first four are real numbers and can be converted; the others
 * are only listed. */
typedef enum {
    STORED_F64,
    STORED_F32,
    STORED_F16,
    STORED_BF16,
    STORED_I64,
    STORED_I32,
    STORED_I16,
    STORED_I8,
    STORED_U64,
    STORED_U32,
    STORED_U16,
    STORED_U8,
    STORED_BOOL,
    STORED_F8_E4M3,
    STORED_F8_E5M2,
    STORED_F8_E8M0,
    STORED_COUNT
} StoredType;

const char *stored_name(StoredType t); /* "F32" */
int64_t stored_bytes(StoredType t);
bool stored_is_real(StoredType t);
StoredType stored_from(Type t); /* of FP32, BF16, FP64 */

/* `count` real values of another type. To bf16 by way of fp32, with the program's one rounding. `to` and `from`
 * do not overlap. */
void stored_convert(Type to_type, void *to, StoredType from_type, const void *from, int64_t count);

enum { STORED_DIMS = 8 };

typedef struct {
    const char *name; /* owned by the file's header */
    StoredType type;
    int dims;
    int64_t dim[STORED_DIMS];
    int64_t elements;
    int64_t begin, end; /* bytes of the file */
} StoredTensor;

typedef struct {
    Path path; /* for messages */
    int fd;
    int64_t bytes, data;   /* size of the file; where tensors begin */
    StoredTensor *tensors; /* by name */
    int64_t count;
    json_t *metadata; /* borrowed from `header`; may be NULL */
    json_t *header;
    XXH128_hash_t hash; /* of the first `data` bytes */
} Safetensors;

/* EXIT_DATA when the file is not whole and sound, EXIT_IO when it cannot be read. After false `f` needs no close. */
bool safetensors_open(Safetensors *f, const char *path, Error *e);
/* The same from a descriptor, which from now on is the file's; `name` is for messages. */
bool safetensors_open_fd(Safetensors *f, int fd, const char *name, Error *e);
void safetensors_close(Safetensors *f);
const StoredTensor *safetensors_find(const Safetensors *f, const char *name); /* NULL: none of this name */
/* Bytes [at, at + bytes) of the file. A file that has shrunk since it was opened is EXIT_DATA. */
bool safetensors_read(const Safetensors *f, int64_t at, size_t bytes, void *out, Error *e);

/* A header under construction: tensors lie in the order in which they are added. `data` counts their bytes. */
typedef struct {
    Text text; /* after header_end: the file's first bytes, N included, a multiple of 8 */
    int64_t data;
} Header;
void header_begin(Header *h);
void header_add(Header *h, const char *name, StoredType type, int dims, const int64_t *dim);
bool header_end(Header *h); /* false: out of memory. The caller frees text.text either way. */

#endif
