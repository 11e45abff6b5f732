/* The GPU as a device: a CUDA stream for each of ours, events in rings, arenas of HBM and of pinned host memory.
 *
 * Work is issued by the thread of the rank, which is why a launch runs its function at once: the function only puts
 * kernels into the stream. A call that fails becomes the device's failure (device_fail), as a lost peer does: later
 * work is skipped, waits return, reads give zeros, and the run ends with the sentence. */
#include "device/backend.h"
#include "device/cuda/gpu.h"

#include <stdlib.h>
#include <string.h>

/* ---- Checkers ------------------------------------------------------------------------------------ */

/* "what; device, doing, step, layer; what to do" for all three libraries. */
static bool told(const Device *d, ExitCode code, const char *what, const char *name, const char *doing,
                 const char *call, const char *cure, Error *e) {
    char place[96] = "";
    if (d && d->layer >= 0)
        snprintf(place, sizeof place, ", step %lld, layer %lld", (long long)d->step, (long long)d->layer);
    else if (d)
        snprintf(place, sizeof place, ", step %lld", (long long)d->step);
    return fail(e, code, "%s (%s) from %.*s; %s, %s%s; %s", what, name, (int)strcspn(call, "("), call,
                d ? d->name : "GPUs", doing, place, cure);
}

bool cuda_check(const Device *d, cudaError_t status, const char *doing, const char *call, Error *e) {
    if (status == cudaSuccess) return true;
    cudaGetLastError(); /* or the next kernel is blamed for it, where the fault does not last */
    bool memory = status == cudaErrorMemoryAllocation;
    return told(d, memory ? EXIT_MEMORY : EXIT_PEER, cudaGetErrorString(status), cudaGetErrorName(status), doing, call,
                memory ? "end other programs on this GPU (nvidia-smi lists them) or use more GPUs"
                       : "see what the driver says (dmesg, nvidia-smi -q); the newest checkpoint is whole",
                e);
}

bool cublas_check(const Device *d, cublasStatus_t status, const char *doing, const char *call, Error *e) {
    if (status == CUBLAS_STATUS_SUCCESS) return true;
    return told(d, EXIT_PEER, "cuBLASLt failed", d->cuda->blas.cublasLtGetStatusString(status), doing, call,
                "check that its version is the one that mop was built with (mop doctor)", e);
}

bool cudnn_check(const Cudnn *c, const Device *d, cudnnStatus_t status, const char *doing, const char *call, Error *e) {
    if (status == CUDNN_STATUS_SUCCESS) return true;
    char detail[512] = "";
    c->cudnnGetLastErrorString(detail, sizeof detail);
    return told(d, EXIT_PEER, *detail ? detail : "cuDNN failed", c->cudnnGetErrorString(status), doing, call,
                "check that its version is the one that mop was built with (mop doctor)", e);
}

/* Where no Error is at hand. */
static bool issued(Device *d, cudaError_t status, const char *doing, const char *call) {
    Error e = {0};
    if (cuda_check(d, status, doing, call, &e)) return true;
    device_fail(d, &e);
    return false;
}
#define ISSUED(d, doing, call) issued(d, call, doing, #call)

/* ---- Opening ------------------------------------------------------------------------------------- */

bool gpu_count(int *count, int *driver, Error *e) {
    *count = *driver = 0;
    if (!CUDA(NULL, e, "looking for a driver", cudaDriverGetVersion(driver))) return false;
    if (*driver == 0)
        return fail(e, EXIT_USAGE,
                    "no NVIDIA driver is installed (libcuda.so.1 is not found), so that no GPU can be used");
    cudaError_t status = cudaGetDeviceCount(count);
    if (status == cudaErrorInsufficientDriver)
        return fail(
            e, EXIT_USAGE,
            "the NVIDIA driver has CUDA %d.%d and this mop was built for %d.%d: no GPU can be used; install a newer "
            "driver",
            *driver / 1000, *driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    if (status == cudaErrorNoDevice || (status == cudaSuccess && *count == 0))
        return fail(e, EXIT_USAGE,
                    "the NVIDIA driver finds no GPU; check nvidia-smi, and CUDA_VISIBLE_DEVICES if it is set");
    return cuda_check(NULL, status, "counting GPUs", "cudaGetDeviceCount", e);
}

/* cuda:N */
static bool read_ordinal(const char *name, int *ordinal, Error *e) {
    enum { PREFIX = 5, GPUS_MOST = 1024 };
    char *end;
    const char *digits = name + PREFIX;
    long n = strtol(digits, &end, 10);
    *ordinal = (int)n;
    if (*digits >= '0' && *digits <= '9' && !*end && n < GPUS_MOST) return true;
    return fail(e, EXIT_USAGE, "device: \"%s\" is not a GPU; write cuda: and its number, as in cuda:0",
                text_shown(name).text);
}

static bool open_streams(Device *d, Error *e) {
    CudaDevice *c = d->cuda;
    for (int i = 0; i < STREAM_COUNT; i++) {
        if (!CUDA(d, e, "opening", cudaStreamCreateWithFlags(&c->stream[i], cudaStreamNonBlocking))) return false;
        for (int j = 0; j < GPU_EVENTS; j++)
            if (!CUDA(d, e, "opening", cudaEventCreateWithFlags(&c->event[i][j], cudaEventDisableTiming))) return false;
    }
    return true;
}

static bool cuda_open(Device *d, Error *e) {
    int ordinal, count, driver;
    if (!read_ordinal(d->name, &ordinal, e) || !gpu_count(&count, &driver, e)) return false;
    if (ordinal >= count)
        return fail(e, EXIT_USAGE, "device: \"%s\", but there are %d GPUs here, cuda:0 to cuda:%d", d->name, count,
                    count - 1);
    d->cuda = calloc(1, sizeof *d->cuda);
    MUST(d->cuda);
    d->cuda->ordinal = ordinal;
    return CUDA(d, e, "opening", cudaSetDevice(ordinal)) && open_streams(d, e);
}

/* A device that has failed fails here again, and has nobody left to tell. */
static void cuda_close(Device *d) {
    CudaDevice *c = d->cuda;
    if (!c) return;
    cudaSetDevice(c->ordinal);
    for (int i = 0; i < STREAM_COUNT; i++)
        if (c->stream[i]) cudaStreamSynchronize(c->stream[i]);
    if (c->blas_handle) c->blas.cublasLtDestroy(c->blas_handle);
    if (c->dnn_handle) c->dnn.cudnnDestroy(c->dnn_handle);
    for (int i = 0; i < STREAM_COUNT; i++) {
        for (int j = 0; j < GPU_EVENTS; j++)
            if (c->event[i][j]) cudaEventDestroy(c->event[i][j]);
        if (c->stream[i]) cudaStreamDestroy(c->stream[i]);
    }
    free(c);
}

bool gpu_cublas(Device *d, Error *e) {
    CudaDevice *c = d->cuda;
    if (c->blas_handle) return true;
    return cublas_load(&c->blas, e) && CUDA(d, e, "opening cuBLASLt", cudaSetDevice(c->ordinal)) &&
           CUBLAS(d, e, "opening cuBLASLt", c->blas.cublasLtCreate(&c->blas_handle));
}

bool gpu_cudnn(Device *d, Error *e) {
    CudaDevice *c = d->cuda;
    if (c->dnn_handle) return true;
    return cudnn_load(&c->dnn, e) && CUDA(d, e, "opening cuDNN", cudaSetDevice(c->ordinal)) &&
           CUDNN(&c->dnn, d, e, "opening cuDNN", c->dnn.cudnnCreate(&c->dnn_handle));
}

/* ---- Memory -------------------------------------------------------------------------------------- */

static bool cuda_reserve(Arena *a, Error *e) {
    Device *d = a->device;
    size_t bytes = a->capacity > 0 ? a->capacity : 1;
    if (!CUDA(d, e, "reserving memory", cudaSetDevice(d->cuda->ordinal))) return false;
    cudaError_t status = a->tier == TIER_DEVICE ? cudaMalloc(&a->mapping, bytes)
                                                : cudaHostAlloc(&a->mapping, bytes, cudaHostAllocPortable);
    if (status == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        return fail(e, EXIT_MEMORY,
                    "cannot reserve %.1f MiB of %s for the %s arena; device %s; end other programs on it, "
                    "or use more GPUs or a smaller batch",
                    (double)a->capacity / (1 << 20), a->tier == TIER_DEVICE ? "GPU memory" : "pinned host memory",
                    a->name, d->name);
    }
    a->base = a->mapping;
    a->mapped = bytes;
    return cuda_check(d, status, "reserving memory", a->tier == TIER_DEVICE ? "cudaMalloc" : "cudaHostAlloc", e);
}

static void cuda_release(Arena *a) {
    Device *d = a->device;
    if (!a->mapping || !ISSUED(d, "giving memory back", cudaSetDevice(d->cuda->ordinal))) return;
    if (a->tier == TIER_DEVICE)
        ISSUED(d, "giving memory back", cudaFree(a->mapping));
    else
        ISSUED(d, "giving memory back", cudaFreeHost(a->mapping));
}

/* ---- Streams and events -------------------------------------------------------------------------- */

cudaStream_t gpu_stream(const Stream *s) {
    return s->device->cuda->stream[s->kind];
}

/* Every thread has a current GPU of its own; false on a device that has failed. */
static bool current(Device *d) {
    return !device_failed(d) && ISSUED(d, "turning to the GPU", cudaSetDevice(d->cuda->ordinal));
}

static void cuda_launch(Stream *s, LaunchFunction fn, const void *args, size_t bytes) {
    MUST(bytes <= LAUNCH_BYTES);
    s->charged = (Label){0};
    if (current(s->device)) fn(s, args);
}

static cudaEvent_t event_of(Event e) {
    const Stream *s = e.stream;
    MUST(s->device->backend == &backend_cuda);
    return s->device->cuda->event[s->kind][e.ticket % GPU_EVENTS];
}

static Event cuda_record(Stream *s) {
    Device *d = s->device;
    Event e = {.stream = s, .ticket = ++d->cuda->tickets[s->kind]};
    if (current(d)) ISSUED(d, "recording an event", cudaEventRecord(event_of(e), gpu_stream(s)));
    return e;
}

static void cuda_wait(Event e) {
    Device *d = e.stream->device;
    if (current(d)) ISSUED(d, "waiting for an event", cudaEventSynchronize(event_of(e)));
}

static void cuda_follow(Stream *s, Event e) {
    if (!e.stream || e.stream == s) return;
    if (current(s->device)) ISSUED(s->device, "ordering streams", cudaStreamWaitEvent(gpu_stream(s), event_of(e), 0));
}

/* ---- Copies -------------------------------------------------------------------------------------- */

/* All bytes set: NaN in fp32, bf16 and fp64, and -1 as an index. */
static void cuda_poison(Stream *s, void *at, size_t bytes) {
    if (current(s->device)) ISSUED(s->device, "poisoning", cudaMemsetAsync(at, 0xFF, bytes, gpu_stream(s)));
}

static void cuda_copy(Stream *s, void *to, const void *from, size_t bytes) {
    if (current(s->device))
        ISSUED(s->device, "copying", cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, gpu_stream(s)));
}

static void copy_and_wait(Stream *s, void *to, const void *from, size_t bytes) {
    cuda_copy(s, to, from, bytes);
    if (current(s->device)) ISSUED(s->device, "copying", cudaStreamSynchronize(gpu_stream(s)));
}

const Backend backend_cuda = {
    .open = cuda_open,
    .close = cuda_close,
    .reserve = cuda_reserve,
    .release = cuda_release,
    .poison = cuda_poison,
    .launch = cuda_launch,
    .copy = cuda_copy,
    .read = copy_and_wait,
    .write = copy_and_wait,
    .record = cuda_record,
    .wait = cuda_wait,
    .follow = cuda_follow,
};
