# SPDX-License-Identifier: MIT
#
#   make              ./train and ./run, with the GPU backend if nvcc is found
#   make demo         train on the built-in stories and sample, in about a minute on two cores
#   make test         build and run every test; make test-gpu runs those of mamba.cu on a GPU, make sanitize-gpu under
#                     compute-sanitizer
#   make tutorial     run the chapters' programs: their outputs and pictures, tutorial/out
#   make chapter-NN   run chapter NN's program and show what it prints
#   make ex-NN        check your solutions of chapter NN's exercises, tutorial/ex_NN.c
#   make break-NN     run chapter NN's program with its error planted, and show what that changes
#   make lab          train and measure what chapter 8 shows; QUICK=1 in a small way, on two cores
#   make bench        speed, each figure beside the machine's limit; make bench-gpu on a GPU
#   make fuzz         made-up files, FUZZ_SECONDS=60 of each kind; needs clang
#   make vocabulary   train tokenizer.bin again
#   make clean
#
# Variables: CUDA=0 leaves the GPU out, CUDA_ARCH=all builds for every GPU from sm_75 on, OPENMP=0 leaves the threads
# out.

CC     = cc
CXX    = c++
CFLAGS = -std=gnu99 -O3 -march=native -fno-math-errno -fno-trapping-math -Wall -Wextra -pedantic -Wno-psabi
LDLIBS = -lm

# What the compilers have.
works   = $(shell echo 'int main(void) { return 0; }' | $(1) -x c - -o /dev/null 2>/dev/null && echo 1 || echo 0)
OPENMP := $(call works,$(CC) -fopenmp)
NVCC   := $(shell command -v nvcc 2>/dev/null)
CUDA   := $(if $(NVCC),1,0)
CUDA_ARCH = native

THREADS = $(if $(filter 1,$(OPENMP)),-fopenmp,-Wno-unknown-pragmas)

# GNU's OpenMP: a thread that waits for another looks 1,000 times before it sleeps, not 300,000. Beside other programs,
# as tests are beside each other, what make runs is then many times as fast; alone it is some percent slower.
export GOMP_SPINCOUNT = 1000

ifeq ($(CUDA),1)
CUDA_HOME  = $(patsubst %/bin/nvcc,%,$(realpath $(NVCC)))
NVCCFLAGS  = -std=c++17 -O3 -diag-suppress 128,177 -arch=$(or $($(CUDA_ARCH)_ARCH),$(CUDA_ARCH))
all_ARCH   = all-major
native_ARCH := $(shell nvidia-smi -L >/dev/null 2>&1 && echo native || echo sm_75)
GPU_OBJECT = build/mamba_cuda.o
GPU_LIBS   = -L$(CUDA_HOME)/lib64 -Wl,-rpath,$(CUDA_HOME)/lib64 -lcublas -lcudart -lstdc++
GPU_FLAGS  = -DMAMBA_CUDA
endif

.PHONY: all demo test test-gpu sanitize-gpu fuzz tutorial lab bench bench-gpu vocabulary clean
all: train run

train run: %: %.c mamba.c $(GPU_OBJECT)
	$(CC) $(CFLAGS) $(THREADS) $(GPU_FLAGS) $< $(GPU_OBJECT) -o $@ $(LDLIBS) $(GPU_LIBS)

build/mamba_cuda.o: mamba.cu mamba.c | build
	$(NVCC) $(NVCCFLAGS) -DMAMBA_CUDA -c $< -o $@

build:
	@mkdir -p build

demo: train run
	rm -rf build/demo
	./train stories -o build/demo --minutes 0.8 --d-model 96 --n-layer 1 --lr 0.01
	./run build/demo -p '' -n 200 --samples 3

clean:
	rm -rf build train run

# Tests: each tests/test_*.c, .cpp or .cu is a program that ends with "N passed, N failed". All are built twice, as
# shipped and with the sanitizers. The .cpp and .cu ones run the kernels of mamba.cu on the CPU; tests/suite.sh runs the
# programs and adds up.
NAMES     = $(sort $(basename $(notdir $(wildcard tests/test_*.c tests/test_*.cpp tests/test_*.cu))))
TESTS     = $(NAMES:%=build/%) $(NAMES:%=build/sanitized_%)
SANITIZE  = -O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=undefined
TEST_DEPS = tests/check.h tests/work.h mamba.c | build
ON_CPU    = -x c++ -std=c++17 -DCUDA_ON_CPU -fno-strict-aliasing -march=native -Wall -Wextra -Wno-psabi \
            -Wno-unknown-pragmas

build/test_run build/sanitized_test_run build/test_hostile build/sanitized_test_hostile: run.c tests/counting.h
build/test_train build/sanitized_test_train: train.c
build/test_cuda build/sanitized_test_cuda: mamba.cu tests/cuda_on_cpu.h
build/test_cuda_on_cpu build/sanitized_test_cuda_on_cpu: tests/cuda_on_cpu.h
build/test_plot build/sanitized_test_plot: tutorial/plot.h

build/%: tests/%.c $(TEST_DEPS)
	$(CC) $(CFLAGS) $(THREADS) $< -o $@ $(LDLIBS)

build/sanitized_%: tests/%.c $(TEST_DEPS)
	$(CC) $(CFLAGS) $(SANITIZE) -Wno-unknown-pragmas $< -o $@ $(LDLIBS)

build/%: tests/%.cpp $(TEST_DEPS)
	$(CXX) $(ON_CPU) -O1 -g $< -o $@ $(LDLIBS)

build/sanitized_%: tests/%.cpp $(TEST_DEPS)
	$(CXX) $(ON_CPU) $(SANITIZE) $< -o $@ $(LDLIBS)

build/%: tests/%.cu $(TEST_DEPS)
	$(CXX) $(ON_CPU) -O1 -g $< -o $@ $(LDLIBS)

build/sanitized_%: tests/%.cu $(TEST_DEPS)
	$(CXX) $(ON_CPU) $(SANITIZE) $< -o $@ $(LDLIBS)

# Each chapter's program prints what the chapter quotes, and writes its pictures into the directory that it is given.
# Some plant an error if BREAK is defined. tests/test_tutorial.c compares the text with tutorial/out, and that with what
# the programs write now.
CHAPTERS = $(basename $(notdir $(wildcard tutorial/[0-9][0-9]_*.c tutorial/[0-9][0-9]_*.cu)))
BROKEN   = $(addsuffix _break,$(basename $(notdir $(shell grep -l BREAK tutorial/[0-9][0-9]_*.c*))))
OUTPUTS  = $(filter-out $(STORY) $(LENGTH),$(CHAPTERS:%=build/tutorial/%.txt) $(BROKEN:%=build/tutorial/%.txt))
STORY    = build/tutorial/06_train.txt build/tutorial/07_state.txt
LENGTH   = build/tutorial/12_length.txt
TUTORIAL = $(CC) $(CFLAGS) -O1 -Wno-unknown-pragmas

build/%: tutorial/%.c $(wildcard tutorial/*.h) mamba.c | build
	$(TUTORIAL) $< -o $@ $(LDLIBS)

build/%_break: tutorial/%.c $(wildcard tutorial/*.h) mamba.c | build
	$(TUTORIAL) -DBREAK $< -o $@ $(LDLIBS)

build/%: tutorial/%.cu $(wildcard tutorial/*.h) tests/cuda_on_cpu.h mamba.cu mamba.c | build
	$(CXX) $(ON_CPU) -g $< -o $@ $(LDLIBS)

build/%_break: tutorial/%.cu $(wildcard tutorial/*.h) tests/cuda_on_cpu.h mamba.cu mamba.c | build
	$(CXX) $(ON_CPU) -g -DBREAK $< -o $@ $(LDLIBS)

build/tutorial/%_break.txt: build/%_break
	mkdir -p build/tutorial/broken
	build/$*_break build/tutorial/broken >$@.part && mv $@.part $@

build/tutorial/%.txt: build/%
	mkdir -p build/tutorial
	build/$* build/tutorial >$@.part && mv $@.part $@

# The chapters about training read the log and the model of a run of a minute or two.
build/story/model.safetensors: | train
	rm -rf build/story
	./train stories -o build/story --steps 1000 --d-model 64 --n-layer 2 --lr 0.01 --log-every 5

$(STORY): build/tutorial/%.txt: build/% build/story/model.safetensors
	mkdir -p build/tutorial
	build/$* build/tutorial build/story >$@.part && mv $@.part $@

# Chapter 10 stops a thread of a kernel in the debugger, where that is allowed.
build/tutorial/10_step.txt: build/10_kernel tutorial/10_step.gdb build/tutorial/10_kernel.txt
	gdb -q -nx -batch -x tutorial/10_step.gdb build/10_kernel 2>&1 | sed -n 's/^\$$/~ &/p' >$@.part
	if [ -s $@.part ]; then mv $@.part $@; else rm $@.part; fi

# Chapter 12 has two models of the same text, which differ in the length of the windows that they were trained on.
build/stories: train.c
build/length.txt: | build/stories
	build/stories 2000 >$@

build/length_%/model.safetensors: build/length.txt | train
	rm -rf build/length_$*
	./train $< --tokenizer bytes -o build/length_$* --len $* --batch $$((2048 / $*)) --steps 1000 \
	    --d-model 48 --n-layer 2 --lr 0.01 --eval-every 0 --sample-every 0

build/12_length: TUTORIAL += -O3
$(LENGTH): build/12_length build/length_32/model.safetensors build/length_512/model.safetensors
	mkdir -p build/tutorial
	build/12_length build/tutorial build/length >$@.part && mv $@.part $@

.SECONDARY:
# What is measured differs from machine to machine: the committed files, which the text quotes, are replaced only by
# make tutorial MEASURED=1.
tutorial: $(OUTPUTS) $(STORY) $(LENGTH) $(if $(shell command -v gdb),build/tutorial/10_step.txt)
	for f in build/tutorial/*.txt build/tutorial/*.svg; do \
	    case $$(head -c 1 $$f; tail -n 2 $$f) in \
	    '~'* | *measured*) [ -n "$(MEASURED)" ] && cp $$f tutorial/out ;; \
	    *) cp $$f tutorial/out ;; \
	    esac; \
	done; true

# The selectivity lab, tutorial/lab.sh: four parts, LAB=copying, induction, recall or stories, each under ten minutes
# on a GPU. What is complete is not run again. Chapter 8's program reads the committed logs: RESULTS=tutorial/lab.
lab: train run build/08_lab
	sh tutorial/lab.sh $(LAB)
	build/08_lab build/lab build/lab

build/tutorial/08_lab.txt: $(wildcard tutorial/lab/*.txt)

chapter = $(or $(filter $*_%,$(CHAPTERS)),$(error there is no program of chapter $*))
broken  = $(or $(filter $*_%,$(BROKEN)),$(error no error is planted in chapter $*; there is one in $(BROKEN:%_break=%)))

chapter-%:
	@$(MAKE) -s --no-print-directory build/tutorial/$(chapter).txt
	@cat build/tutorial/$(chapter).txt

# What differs, paragraph by paragraph; lines that begin with ~ differ from machine to machine.
break-%:
	@$(MAKE) -s --no-print-directory build/tutorial/$(broken).txt
	@awk -v RS= '{ same = $$0; gsub(/~[^\n]*/, "", same) } \
	    FNR == NR { right[FNR] = same; text[FNR] = $$0; next } \
	    same != right[FNR] { print "as it should be:\n" text[FNR] "\n\nwith the error:\n" $$0 "\n" }' \
	    tutorial/out/$(broken:%_break=%).txt build/tutorial/$(broken).txt

ex-%: | build
	@[ -f tutorial/ex_$*.c ] || { echo "there is no tutorial/ex_$*.c"; false; }
	@$(TUTORIAL) -Wno-unused-parameter tutorial/ex_$*.c -o build/ex_$* $(LDLIBS)
	@build/ex_$*

test: all $(TESTS) $(OUTPUTS)
	CC="$(CC)" sh tests/suite.sh $(TESTS) tests/builds.sh tests/lab.sh tests/exercises.sh

# Each kind of file that run and train read, see tests/fuzz.c. A failure leaves its input in build/fuzz. What is used
# before it has a value is found after make clean with FUZZ_SANITIZE=memory.
FUZZ_SECONDS = 60
FUZZ_SANITIZE = address,undefined,float-cast-overflow
FUZZ_TARGETS = json config model index tokenizer tokenizer_json ids state stream
FUZZ_OPTIONS = -max_total_time=$(FUZZ_SECONDS) -timeout=20 -malloc_limit_mb=64 -artifact_prefix=build/fuzz/ \
               -print_final_stats=1

build/fuzz_%: tests/fuzz.c tests/counting.h mamba.c %.c | build
	@command -v clang >/dev/null || { echo "make fuzz needs clang, which has libFuzzer" >&2; exit 1; }
	clang -std=gnu99 -g -O1 -march=native -Wall -Wextra -Wno-unknown-pragmas -fno-sanitize-recover=all \
	    -fsanitize=fuzzer,$(FUZZ_SANITIZE) $(if $(filter train,$*),-DFUZZ_TRAIN) \
	    $< -o $@ $(LDLIBS)

fuzz: build/fuzz_run build/fuzz_train
	for target in $(FUZZ_TARGETS); do echo "$$target:"; build/fuzz_run $$target $(FUZZ_OPTIONS) || exit 1; done
	build/fuzz_train optimizer $(FUZZ_OPTIONS)

bench: build/bench
	env -u GOMP_SPINCOUNT build/bench

# The same agreement tests, and the bench, on a GPU.
build/gpu_%: tests/%.cu mamba.cu mamba.c tests/check.h | build
	$(NVCC) $(NVCCFLAGS) $< -o $@ -lcublas

test-gpu: build/gpu_test_cuda
	build/gpu_test_cuda

# And under compute-sanitizer, each access to memory once, in parts that may run side by side (-j8: three minutes on an
# H100). memcheck is not to report the memory that a test makes run out.
TOOLS = memcheck racecheck synccheck initcheck
sanitize-gpu: $(foreach tool,$(TOOLS),$(foreach part,layers fp32 bf16 rest,sanitize-$(tool)-$(part)))
sanitize-memcheck-%:  TOOL_OPTIONS = --report-api-errors no
sanitize-initcheck-%: SELECTION = unpoisoned
sanitize-%: build/gpu_test_cuda
	PATH="$$PATH:$(CUDA_HOME)/bin" compute-sanitizer --tool $(word 1,$(subst -, ,$*)) --error-exitcode 1 \
	    $(TOOL_OPTIONS) $< brief $(word 2,$(subst -, ,$*)) $(SELECTION)

bench-gpu: build/gpu_bench_cuda
	build/gpu_bench_cuda

# The default vocabulary: 4096 tokens from the built-in stories, this repository's own text and, where it is at hand,
# the first 90% of tinyshakespeare (the rest stays unseen, for measuring on).
SHAKESPEARE = $(wildcard ../shared/data/tinyshakespeare.txt)
build/shakespeare: | build
	$(if $(SHAKESPEARE),head -c 1003854 $(SHAKESPEARE),true) >$@

build/vocabulary: train.c
vocabulary: build/vocabulary build/shakespeare
	build/vocabulary tokenizer.bin 4096 README.md mamba.c train.c build/shakespeare
