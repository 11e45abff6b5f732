# The few commands a person types; CMake does the work. Each first installs what is missing (tools/setup.sh, which takes no
# time when nothing is) and brings its build directory up to date.
JOBS := -j$(shell nproc)
TESTS_AT_ONCE := -j$(shell expr $$(nproc) + 1)
PREFIX ?= /usr/local
TEXT := data/bible.txt

MAKEFLAGS += --no-print-directory

.DEFAULT_GOAL := build
.PHONY: build cuda bench-cpu bench-gpu machines-doc run test test-debug test-tsan test-faults test-random bench format install clean

# $(call make,preset,target,packages): what was found is told the first time only.
folder = $(if $(filter default,$(1)),build,build-$(1))
define make
@tools/setup.sh $(3)
@cmake --preset $(1) $(if $(wildcard $(folder)/CMakeCache.txt),>/dev/null)
@cmake --build --preset $(1) --target $(2) $(JOBS)
endef

build:
	$(call make,default,mop,build)

# The same program with the GPU parts, in build-cuda/; needs the CUDA toolkit to build, and neither GPU nor driver to run.
cuda:
	$(call make,cuda,mop,build)

# Trains the example and prints a sample; `make run ARGS="--set train.steps=30"` passes options on.
run: build $(TEXT)
	build/mop train examples/bible.yaml $(ARGS)

$(TEXT):
	@tools/setup.sh text
	tools/text.sh $@

test:
	$(call make,default,all,build test)
	ctest --preset default $(TESTS_AT_ONCE) # one more than processors, since tests often wait

# The same suite with AddressSanitizer, UndefinedBehaviorSanitizer and poisoned arenas.
test-debug:
	$(call make,debug,all,build test)
	ctest --preset debug $(JOBS)

# The unit tests with ThreadSanitizer.
test-tsan:
	$(call make,tsan,all,build test)
	ctest --preset tsan $(JOBS)

# What takes too long for every day: crashes at random points, and the fuzzers for a short while each.
test-faults:
	$(call make,default,all,build test)
	ctest --preset slow
	$(call make,fuzz,all,build clang)
	ctest --preset fuzz $(JOBS)

# Drawn models, data, settings and layouts for as long as you like; the same seed draws the same trials.
RANDOM_SECONDS ?= 3600
test-random:
	$(call make,default,random_trials mop,build test)
	build/tests/random_trials --mop build/mop --seconds $(RANDOM_SECONDS) $(if $(RANDOM_SEED),--seed $(RANDOM_SEED))

bench: $(TEXT)
	$(call make,default,bench,build)

# What this machine can do, and a predicted step beside a measured one, into bench/results and docs/machines.md.
bench-cpu: build $(TEXT)
	bench/cpu.sh
	tools/machines_doc.sh

machines-doc:
	tools/machines_doc.sh

# On a machine with a GPU: builds, tests and measures everything there is for one, in one short run.
bench-gpu:
	bench/gpu.sh

format:
	@tools/setup.sh format
	find src tests bench \( -name '*.[ch]' -o -name '*.cu' \) -print0 | xargs -0 -r clang-format -i

install: build
	cmake --install build --prefix $(PREFIX)

clean:
	rm -rf build build-clang build-cuda build-debug build-fuzz build-tsan
