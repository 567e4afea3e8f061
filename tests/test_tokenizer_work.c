/* That the tokenizer's work grows no faster than its input, on inputs that are made to be slow: loops are counted, not
   timed. And that a tokenizer.json, however made, takes no more than a small multiple of its length in memory.
   SPDX-License-Identifier: MIT */
#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

/* What mamba.c does between here and the #undef is counted: passes through its loops, bytes that it moves or compares,
   comparisons of a sort, and bytes that it allocates and frees. */
static double work_done, memory, peak;

static void *counted_alloc(size_t count, size_t size) {
    size_t *block = (size_t *)calloc(1, count * size + 16);
    if (block == NULL) return NULL;
    *block = count * size;
    memory += (double)*block;
    if (memory > peak) peak = memory;
    return block + 2;
}

static void counted_free(void *memory_block) {
    size_t *block = (size_t *)memory_block;
    if (block == NULL) return;
    memory -= (double)block[-2];
    free(block - 2);
}

#pragma GCC diagnostic ignored "-Wdangling-else"
#define for(...) for (__VA_ARGS__) if (work_done++, 0) { } else
#define while(...) while (work_done++, (__VA_ARGS__))
#define memcpy(to, from, n) (work_done += (double)(n) / 8, memcpy(to, from, n))
#define memmove(to, from, n) (work_done += (double)(n) / 8, memmove(to, from, n))
#define memcmp(a, b, n) (work_done += (double)(n) / 8, memcmp(a, b, n))
#define qsort(base, n, size, order) (work_done += (double)(n) * log2((double)(n) + 1), qsort(base, n, size, order))
#define calloc(count, size) counted_alloc(count, size)
#define free(block) counted_free(block)
#include "../mamba.c"
#undef for
#undef while
#undef memcpy
#undef memmove
#undef memcmp
#undef qsort
#undef calloc
#undef free
#include "check.h"

static const char path[] = "build/test_tokenizer_work.tmp";

/* n bytes of copies of a text, of which the last may be cut. */
static char *repeated(const char *text, size_t n) {
    char *out = (char *)allocate(n, 1);
    size_t length = strlen(text);
    for (size_t i = 0; i < n; i++) out[i] = text[i % length];
    return out;
}

static double work_to_encode(const Tokenizer *t, const char *text, size_t n) {
    int *ids = (int *)allocate(tokenizer_room(t, n) + 1, sizeof *ids);
    double before = work_done;
    CHECK(tokenizer_encode(t, text, n, ids) >= 0);
    release(ids);
    return work_done - before;
}

/* Eight times as much text takes about eight times as much work (the heap and sorting add a logarithm; what takes the
   square would take 64 times as much), and no byte takes very much. */
static void check_linear(const Tokenizer *t, const char *name, const char *text, size_t n) {
    double eighth = work_to_encode(t, text, n / 8), whole = work_to_encode(t, text, n);
    if (whole > 11 * eighth || whole > 400.0 * (double)n)
        printf("%s: %.0f passes for %zu bytes, %.0f for %zu\n", name, eighth, n / 8, whole, n);
    CHECK(whole < 11 * eighth && whole < 400.0 * (double)n);
}

static void test_encoding(const Tokenizer *t) {
    enum { N = 1000000 };
    static const char *const repeat[] = {
        "a", "ab", " ", "\n", " \n", "\r\n", "\xcc\x81", "\xcc\xa3\xcc\x81", "<|endoftext|", "<|endoftext|>", "<",
        "'", "1", "\xe1\x85\xa1", "\xe1\x84\x80\xe1\x85\xa1", "\xff", "\xc3", "\xf0\x9d\x85\xa0", "\xe0\xa5\x98",
        "e\xcc\x88\xcc\x81", "        x", "\xc3\xab\xcc\x81\xe1\xba\xad", "=", "the "};
    char *text;
    uint64_t seed = 1;
    for (size_t i = 0; i < sizeof repeat / sizeof *repeat; i++) {
        text = repeated(repeat[i], N);
        check_linear(t, repeat[i], text, N);
        release(text);
    }
    text = (char *)allocate(N, 1);
    for (size_t i = 0; i < N; i++) text[i] = (char)('a' + random_bits(&seed) % 26);
    check_linear(t, "letters at random", text, N);
    for (size_t i = 0; i + 1 < N; i += 2)
        memcpy(text + i, i == 0 || random_bits(&seed) % 2 ? "\xcc\x81" : "\xcc\xa3", 2);
    check_linear(t, "marks at random, of two orders", text, N);
    release(text);
}

/* Writes a tokenizer.json with these in its lists, after what each needs; returns its length. */
static size_t write_json(const char *added, const char *vocab, const char *merges, size_t copies) {
    FILE *file = fopen(path, "wb");
    long n;
    char text[4];
    fprintf(file, "{\"added_tokens\": [");
    for (size_t i = 0; *added != 0 && i < copies; i++) fprintf(file, added, i > 0 ? "," : "", 256 + i, i);
    fprintf(file, "], \"pre_tokenizer\": {\"type\": \"ByteLevel\"}, \"decoder\": {\"type\": \"ByteLevel\"}, \"model\": "
                  "{\"type\": \"BPE\", \"vocab\": {");
    for (int b = 0; b < 256; b++) {
        *utf8_put(text, byte_character(b)) = 0;
        fprintf(file, b == '"' || b == '\\' ? "%s\"\\%s\": %d" : "%s\"%s\": %d", b > 0 ? "," : "", text, b);
    }
    for (size_t i = 0; *vocab != 0 && i < copies; i++) fprintf(file, vocab, 256 + i, 256 + i);
    fprintf(file, "}, \"merges\": [");
    for (size_t i = 0; *merges != 0 && i < copies; i++) fprintf(file, merges, i > 0 ? "," : "", i);
    fprintf(file, "]}}\n");
    n = ftell(file);
    fclose(file);
    return (size_t)n;
}

/* Loads what was written; whether it is accepted, and at what cost. */
static void check_load(const char *name, size_t n, int accepted) {
    Tokenizer t;
    double before = work_done;
    int status;
    memory = peak = 0;
    status = tokenizer_load(&t, path);
    if (status == 0 && !accepted) printf("%s is accepted\n", name);
    if (status != 0 && accepted) printf("%s is refused: %s\n", name, error_message);
    CHECK(accepted ? status == 0 : status != 0 && strstr(error_message, path) != NULL);
    if (peak > 40.0 * (double)n + 1e5 || work_done - before > 200.0 * (double)n + 1e5)
        printf("%s: %zu bytes, %.0f bytes of memory, %.0f passes\n", name, n, peak, work_done - before);
    CHECK(peak < 40.0 * (double)n + 1e5 && work_done - before < 200.0 * (double)n + 1e5);
    if (status == 0) tokenizer_free(&t);
    CHECK(memory == 0);
}

static void test_loading(void) {
    enum { MANY = 30000 };
    static const char token[] = "%s{\"id\":%zu,\"normalized\":false,\"content\":\"y%zx\"}";
    char *deep;
    FILE *file;
    check_load("a large vocabulary", write_json("", ",\"x%zx\":%zu", "", MANY), 1);
    check_load("one id for all", write_json("", ",\"x%zx\":256", "", MANY), 0);
    check_load("huge ids", write_json("", ",\"x%zx\":1%08zu", "", MANY), 0);
    check_load("one token again and again", write_json("", ",\"x\":%zu", "", MANY), 0);
    check_load("merges of nothing", write_json("", "", "%s\"x%zx a\"", MANY), 0);
    check_load("small values", write_json("", "", "%s[]", MANY), 0);
    check_load("many added tokens", write_json(token, "", "", MANY), 1);
    deep = repeated("[", 1000000);
    memcpy(deep, "{\"model\":", 9);
    file = fopen(path, "wb");
    CHECK(fwrite(deep, 1, 1000000, file) == 1000000);
    fclose(file);
    check_load("deep nesting", 1000000, 0);
    release(deep);
    remove(path);
}

/* Pairs whose hashes would fall into 16 slots if it were known where they start. */
static void test_collisions(void) {
    enum { MANY = 8000, SLOTS = 1 << 14 };
    double passes = 0;
    int failed = 0;
    Pairs p;
    memset(&p, 0, sizeof p);
    for (int right = 0; p.n < MANY; right++) {
        uint64_t hash = pair_key(0, right);
        if (random_bits(&hash) % SLOTS >= 16) continue;
        passes -= work_done;
        failed |= pair_add(&p, 0, right) < 0;
        passes += work_done;
    }
    CHECK(!failed && p.n_slot >= SLOTS && passes < 50.0 * MANY);
    pairs_free(&p);
}

int main(void) {
    static const char *const json[] = {"tests/fixtures/tokenizer/tokenizer.json",
                                       "../shared/data/gpt-neox-20b-tokenizer.json"};
    Tokenizer t;
    for (int i = 0; i < 2; i++) {
        if (access(json[i], R_OK) != 0) {
            printf("skipped: %s is not at hand\n", json[i]);
            continue;
        }
        CHECK(tokenizer_load(&t, json[i]) == 0);
        test_encoding(&t);
        tokenizer_free(&t);
    }
    CHECK(tokenizer_bytes(&t) == 0);
    test_encoding(&t);
    tokenizer_free(&t);
    test_loading();
    test_collisions();
    return check_report();
}
