#!/usr/bin/env bash
# cuDNN accepts and compiles the graphs of attention for GPUs that are only described. It wants a driver to be there:
# one is made here that has every function and does nothing, from the names in the toolkit's own stub.
set -euo pipefail
: "${PLAN_ATTENTION:?is the program}" "${CUDA_LIBRARIES:?is where the toolkit keeps its libraries}"
stub=$CUDA_LIBRARIES/stubs/libcuda.so
for needed in "$stub" "$(command -v nm)" "$(command -v gcc)"; do
    [[ -e $needed ]] || { echo "skipped: no stub of libcuda in $CUDA_LIBRARIES/stubs, or no nm or gcc"; exit 77; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# These give something back. All others say "stub" (34), but for those that handle modules and streams, which succeed.
cat >"$work/driver.c" <<'C'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#define HANDLE(name) int name(void **out) { *out = (void *)4096; return 0; }
HANDLE(cuLibraryLoadData)
HANDLE(cuLibraryGetKernel)
HANDLE(cuLibraryGetModule)
HANDLE(cuModuleLoadData)
HANDLE(cuModuleLoadDataEx)
HANDLE(cuModuleGetFunction)
HANDLE(cuKernelGetFunction)
#define NUMBER(name, value) int name(int *out) { *out = value; return 0; }
NUMBER(cuDriverGetVersion, 13000)
NUMBER(cuDeviceGetCount, 0)
NUMBER(cuDeviceGet, 0)
NUMBER(cuKernelGetAttribute, 0)
NUMBER(cuFuncGetAttribute, 0)
NUMBER(cuOccupancyMaxActiveBlocksPerMultiprocessor, 1)
int cuCtxGetCurrent(void **out) { *out = NULL; return 0; }
int cuGetErrorString(int error, const char **out) { (void)error; *out = "no driver"; return 0; }
int cuGetErrorName(int error, const char **out) { (void)error; *out = "NO_DRIVER"; return 0; }
int cuGetProcAddress_v2(const char *name, void **out, int version, unsigned long flags, int *found) {
    (void)version, (void)flags;
    *out = dlsym(dlopen("libcuda.so.1", RTLD_NOW), name);
    if (found) *found = *out ? 0 : 1;
    return *out ? 0 : 500;
}
int cuGetProcAddress(const char *name, void **out, int version, unsigned long flags) {
    return cuGetProcAddress_v2(name, out, version, flags, NULL);
}
C
given=" $(grep -oE '\bcu[A-Z][A-Za-z_0-9]*' "$work/driver.c" | sort -u | tr '\n' ' ')"
nm -D --defined-only "$stub" | awk '$2 == "T" && $3 ~ /^cu[A-Z]/ { print $3 }' | while read -r name; do
    [[ $given == *" $name "* ]] && continue
    case $name in
        cuLibrary* | cuKernel* | cuFunc* | cuModule* | cuInit | cuStream*) echo "int $name(void) { return 0; }" ;;
        *) echo "int $name(void) { return 34; }" ;;
    esac
done >>"$work/driver.c"
gcc -w -shared -fPIC "$work/driver.c" -o "$work/libcuda.so.1" -Wl,-soname,libcuda.so.1 -ldl

export LD_LIBRARY_PATH=$work:$CUDA_LIBRARIES${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
"$PLAN_ATTENTION" tests/cuda/h100.json 4096 65536
"$PLAN_ATTENTION" tests/cuda/a100.json 16384
