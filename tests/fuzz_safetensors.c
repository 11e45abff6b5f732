/* Any bytes as a safetensors file: refused with a sentence, or opened with tensors that lie inside the file,
 * one after another. */
#define _GNU_SOURCE
#include "checkpoint/safetensors.h"
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static void tensors_keep_their_promises(const Safetensors *f) {
    int64_t bytes = 0;
    Error e = {0};
    for (int64_t i = 0; i < f->count; i++) {
        const StoredTensor *t = &f->tensors[i];
        MUST(t->begin >= f->data && t->end >= t->begin && t->end <= f->bytes);
        MUST(t->end - t->begin == t->elements * stored_bytes(t->type));
        MUST(safetensors_find(f, t->name) == t);
        bytes += t->end - t->begin;
        int64_t count = t->elements < 64 ? t->elements : 64;
        char in[512];
        double out[64];
        MUST(safetensors_read(f, t->begin, (size_t)(count * stored_bytes(t->type)), in, &e));
        if (stored_is_real(t->type)) stored_convert(FP64, out, t->type, in, count);
    }
    MUST(bytes == f->bytes - f->data);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    Safetensors f;
    Error e = {0};
    int fd = memfd_create("input", MFD_CLOEXEC);
    MUST(fd >= 0 && write(fd, data, bytes) == (ssize_t)bytes);
    if (safetensors_open_fd(&f, fd, "input", &e)) {
        tensors_keep_their_promises(&f);
        safetensors_close(&f);
    } else {
        MUST(e.code == EXIT_DATA && *e.text);
    }
    return 0;
}
