/* Loading by name, with the major version that this program was compiled for: from where the toolkit was when it was
 * built, where the system keeps libraries, or LD_LIBRARY_PATH. */
#include "device/cuda/library.h"

#include <dlfcn.h>
#include <nccl.h>
#include <string.h>

#define TEXT_OF(x) #x
#define NUMBERED(name, major) name TEXT_OF(major)

typedef struct {
    const char *file, *what_for;
} Library;

typedef struct {
    const char *name;
    size_t offset; /* of the pointer in the table */
} Function;

static const Library cublas = {NUMBERED("libcublasLt.so.", CUBLAS_VER_MAJOR), "matrix products on a GPU"};
static const Library cudnn = {NUMBERED("libcudnn.so.", CUDNN_MAJOR), "attention on a GPU"};
static const Library nccl = {NUMBERED("libnccl.so.", NCCL_MAJOR), "collectives between GPUs"};

#define CUBLAS_ROW(function) {#function, offsetof(Cublas, function)},
#define CUDNN_ROW(function) {#function, offsetof(Cudnn, function)},
static const Function cublas_functions[] = {CUBLAS_FUNCTIONS(CUBLAS_ROW)};
static const Function cudnn_functions[] = {CUDNN_FUNCTIONS(CUDNN_ROW)};

/* dlerror of a program that is linked wrongly is NULL. */
static const char *last_error(void) {
    const char *text = dlerror();
    return text ? text : "no reason is given";
}

static void *open_library(const Library *l, Error *e) {
    void *library = dlopen(l->file, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        fail(e, EXIT_USAGE, "%s cannot be loaded: %s; %s needs it; install it, or put its directory in LD_LIBRARY_PATH",
             l->file, last_error(), l->what_for);
    return library;
}

static bool find_function(void *library, const Library *l, const char *name, void *out, Error *e) {
    void *address = dlsym(library, name);
    memcpy(out, &address, sizeof address); /* ISO C has no cast from an object's address to a function's */
    return address || fail(e, EXIT_USAGE, "%s has no %s: %s; %s needs it; install the version that mop was built with",
                           l->file, name, last_error(), l->what_for);
}

/* `table` begins with the library's handle. */
static bool load(void *table, const Library *l, const Function *f, size_t functions, Error *e) {
    void **library = table;
    if (*library) return true;
    void *opened = open_library(l, e);
    if (!opened) return false;
    for (size_t i = 0; i < functions; i++)
        if (!find_function(opened, l, f[i].name, (char *)table + f[i].offset, e)) return false;
    *library = opened;
    return true;
}

bool cublas_load(Cublas *out, Error *e) {
    return load(out, &cublas, cublas_functions, COUNT(cublas_functions), e);
}

bool cudnn_load(Cudnn *out, Error *e) {
    return load(out, &cudnn, cudnn_functions, COUNT(cudnn_functions), e);
}

bool nccl_version(int *out, Error *e) {
    __typeof__(ncclGetVersion) *version;
    void *library = open_library(&nccl, e);
    if (!library) return false;
    return find_function(library, &nccl, "ncclGetVersion", &version, e) &&
           (version(out) == ncclSuccess || fail(e, EXIT_USAGE, "%s does not tell its version", nccl.file));
}
