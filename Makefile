# SPDX-License-Identifier: MIT
#
#   make            build ./train and ./run
#   make demo       train on the built-in stories and sample, about a minute on two cores
#   make test       build and run every test
#   make bench      speed, each figure beside the machine's limit
#   make CUDA=0     leave the GPU out;  make OPENMP=0 leave the threads out
#   make debug      build with sanitizers;  make vocabulary  rebuild tokenizer.bin

CC     = cc
CFLAGS = -std=gnu99 -O3 -march=native -fno-math-errno -fno-trapping-math -Wall -Wextra -pedantic -Wno-psabi
LDLIBS = -lm

# OpenMP where the compiler has it.
OPENMP := $(shell echo 'int main(void){return 0;}' | $(CC) -fopenmp -x c - -o /dev/null 2>/dev/null && echo 1 || echo 0)
ifeq ($(OPENMP),1)
CFLAGS += -fopenmp
endif

TESTS = $(patsubst tests/%.c,build/%,$(wildcard tests/test_*.c))
CHECK = -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined

.PHONY: all demo test bench clean
all: train run

train: train.c mamba.c
	$(CC) $(CFLAGS) $(CPPFLAGS) $< -o $@ $(LDLIBS)

run: run.c mamba.c
	$(CC) $(CFLAGS) $(CPPFLAGS) $< -o $@ $(LDLIBS)

build/%: tests/%.c tests/check.h mamba.c | build
	$(CC) $(CFLAGS) $(CPPFLAGS) $< -o $@ $(LDLIBS)

build:
	mkdir -p build

clean:
	rm -rf build train run
