/* Files: what is saved loads back bit for bit, and no file, however broken, is taken for something else. Every call
   that can fail is made to fail once, and the power is cut after each. Also built with MAMBA_REAL=double.
   SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "check.h"

/* The fault-th of the calls below from now on fails, as for want of memory or on a full disk; 0: none. Reading and
   writing then stop half way. */
static int fault, fault_was_fclose;
static size_t allocated;           /* bytes asked for since this was set to 0 */

static int faulty(void) {
    if (fault == 0 || --fault > 0) return 0;
    errno = ENOSPC;
    return 1;
}

/* The cut-th operation that writes is not done, nor any after it; 0: none. LOSE_PROCESS: what was handed to the system
   stays. LOSE_DATA: what was written to a file and not synced is lost, although its name may be there. LOSE_NAMES: so
   are names that changed since their directory was synced. */
enum { LOSE_PROCESS, LOSE_DATA, LOSE_NAMES };
static int cut, loss;
static struct { char path[300]; int file, synced; } written[8];
static struct { char from[300], to[300]; } renamed[8];
static int n_written, n_renamed, shrink_at; /* shrink_at: at this call of fread, DIR/shrinking loses its end */

static void writes(void) {
    char before[310];
    if (cut == 0 || --cut > 0) return;
    for (int i = 0; i < n_written && loss != LOSE_PROCESS; i++)
        if (!written[i].synced && truncate(written[i].path, 0) != 0) _exit(3);
    while (n_renamed-- > 0 && loss == LOSE_NAMES) {
        snprintf(before, sizeof before, "%s.before", renamed[n_renamed].to);
        if (rename(renamed[n_renamed].to, renamed[n_renamed].from) != 0) _exit(3);
        if (rename(before, renamed[n_renamed].to) != 0 && errno != ENOENT) _exit(3);
    }
    _exit(0);
}

static void *test_calloc(size_t n, size_t size) {
    allocated += n * size;
    return faulty() ? NULL : calloc(n, size);
}
static FILE *test_fopen(const char *path, const char *mode) {
    FILE *f;
    if (*mode == 'w') writes();
    f = faulty() ? NULL : fopen(path, mode);
    if (f != NULL && *mode == 'w' && cut > 0) {
        snprintf(written[n_written].path, sizeof written->path, "%s", path);
        written[n_written].file = fileno(f), written[n_written++].synced = 0;
    }
    return f;
}
static size_t test_fread(void *p, size_t size, size_t n, FILE *f) {
    if (shrink_at > 0 && --shrink_at == 0 && truncate("build/checkpoints/shrinking/model.safetensors", 100)) return 0;
    return fread(p, size, faulty() ? n / 2 : n, f);
}
static size_t test_fwrite(const void *p, size_t size, size_t n, FILE *f) {
    int full = faulty();
    size_t done;
    writes();
    done = fwrite(p, size, full ? n / 2 : n, f);
    if (full) errno = ENOSPC;
    return done;
}
static int test_fflush(FILE *f) { return writes(), faulty() ? -1 : fflush(f); }
static int test_fsync(int file) {
    struct stat status;
    int failed;
    writes();
    failed = faulty() ? -1 : fsync(file);
    if (failed == 0 && fstat(file, &status) == 0 && S_ISDIR(status.st_mode)) n_renamed = 0;
    for (int i = 0; i < n_written && failed == 0; i++)
        if (written[i].file == file) written[i].synced = 1;
    return failed;
}
static int test_fseeko(FILE *f, off_t to, int from) { return faulty() ? -1 : fseeko(f, to, from); }
static off_t test_ftello(FILE *f) { return faulty() ? -1 : ftello(f); }
static int test_mkdir(const char *path, mode_t mode) { return writes(), faulty() ? -1 : mkdir(path, mode); }
static int test_rename(const char *from, const char *to) {
    char before[310];
    writes();
    if (faulty()) return -1;
    if (cut > 0) {
        snprintf(before, sizeof before, "%s.before", to);
        remove(before);
        if (link(to, before) != 0 && errno != ENOENT) _exit(3);
        snprintf(renamed[n_renamed].from, sizeof renamed->from, "%s", from);
        snprintf(renamed[n_renamed++].to, sizeof renamed->to, "%s", to);
        for (int i = 0; i < n_written; i++)
            if (strcmp(written[i].path, from) == 0) snprintf(written[i].path, sizeof written->path, "%s", to);
    }
    return rename(from, to);
}
static int test_fclose(FILE *f) {
    int failed = faulty();
    writes();
    for (int i = 0; i < n_written; i++)
        if (written[i].file == fileno(f)) written[i].file = -1;
    fault_was_fclose |= failed;
    return fclose(f) != 0 || failed ? -1 : 0;
}

#define calloc test_calloc
#define fopen test_fopen
#define fread test_fread
#define fwrite test_fwrite
#define fflush test_fflush
#define fsync test_fsync
#define fseeko test_fseeko
#define ftello test_ftello
#define mkdir test_mkdir
#define rename test_rename
#define fclose test_fclose
#include "../mamba.c"
#include "work.h"

#define DIR "build/checkpoints"

/* What any refused file here may make us allocate: the table and list of the largest model, 1024 blocks. */
enum { MOST_ALLOCATED = 4 << 20 };

/* Fails with a message that has `part` in it, without allocating much. */
#define CHECK_FAILS(call, part) (error_message[0] = 0, allocated = 0, CHECK((call) != 0), check_says(part, __LINE__))

static void check_says(const char *part, int line) {
    if (strstr(error_message, part) == NULL) printf("line %d: \"%s\" does not say \"%s\"\n", line, error_message, part);
    CHECK(strstr(error_message, part) != NULL);
    CHECK(allocated < MOST_ALLOCATED);
}

/* JSON, here written with ' for " */
static void put_json(const char *path, const char *json) {
    char text[8192];
    snprintf(text, sizeof text, "%s", json);
    for (char *p = text; (p = strchr(p, '\'')) != NULL;) *p = '"';
    put_text(path, text);
}

/* A safetensors file: a header with ' for ", then n bytes of data, 0 1 2 ... */
static void put_tensors(const char *path, const char *header, size_t n) {
    static unsigned char file[1 << 17];
    uint64_t length = strlen(header);
    memcpy(file, &length, 8);
    for (size_t i = 0; i < length; i++) file[8 + i] = header[i] == '\'' ? '"' : (unsigned char)header[i];
    for (size_t i = 0; i < n; i++) file[8 + length + i] = (unsigned char)i;
    put(path, file, 8 + length + n);
}

/* An empty directory of that name. */
static const char *fresh(const char *name) {
    static char dir[256];
    static const char *const file[] = {"config.json", "model.safetensors", "model.safetensors.index.json",
                                       "a.safetensors", "b.safetensors", "pytorch_model.bin", "config.json.tmp",
                                       "model.safetensors.tmp", "optimizer.safetensors", "optimizer.safetensors.tmp"};
    char path[512];
    snprintf(dir, sizeof dir, DIR "/%s", name);
    mkdir(dir, 0777);
    for (size_t i = 0; i < sizeof file / sizeof *file; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, file[i]);
        remove(path);
    }
    return dir;
}

static Config small_config(int tied, int bias) {
    Config c;
    memset(&c, 0, sizeof c);
    c.vocab_size = 11, c.d_model = 6, c.n_layer = 2, c.d_state = 3, c.d_conv = 4, c.expand = 2, c.dt_rank = 1;
    c.d_inner = 12, c.proj_bias = bias, c.conv_bias = !bias, c.tied = tied, c.norm_eps = 1e-5;
    c.bos_id = 1, c.eos_id = -1, c.pad_id = 10;
    return c;
}

static Model small_model(int tied, int bias, uint64_t seed) {
    Config c = small_config(tied, bias);
    Model m;
    CHECK(config_check(&c, "test") == 0 && model_create(&m, &c) == 0);
    model_init(&m, seed);
    return m;
}

static int same_model(const Model *a, const Model *b) {
    return memcmp(&a->config, &b->config, sizeof a->config) == 0 && a->n_param == b->n_param &&
           memcmp(a->weights, b->weights, a->n_param * sizeof(real)) == 0;
}

/* ROUND TRIPS ================================================================================================== */

static void test_round_trip(void) {
    for (int k = 0; k < 4; k++) {
        Model m = small_model(k % 2, k / 2, (uint64_t)k), copy;
        const char *dir = fresh("round");
        size_t n;
        uint64_t length = 0;
        char *file;
        m.weights[0] = -0.0f, m.weights[1] = (real)1e-42, m.weights[2] = INFINITY, m.weights[3] = NAN;
        CHECK(model_save(&m, dir) == 0);
        CHECK(model_load(&copy, dir) == 0 && same_model(&m, &copy));
        CHECK(copy.params.head.full == copy.weights + (k % 2 ? 0 : copy.tensor[copy.n_tensor - 1].offset));
        CHECK(model_save(&copy, fresh("again")) == 0 && !exists(DIR "/again/model.safetensors.tmp"));
        CHECK(is_same(DIR "/round/model.safetensors", DIR "/again/model.safetensors"));
        CHECK(is_same(DIR "/round/config.json", DIR "/again/config.json"));
        file = read_file(DIR "/round/model.safetensors", &n);
        CHECK(file != NULL);
        memcpy(&length, file, 8);
        CHECK(length % 8 == 0 && length < n - 8);
        CHECK(strncmp(file + 8, "{\"__metadata__\":{\"format\":\"pt\"},\"backbone.embeddings.weight\":{\"", 61) == 0);
        release(file);
        model_free(&copy);
        model_free(&m);
    }
}

/* Names with prefixes, metadata, one-dimensional and scalar tensors. */
static void test_generic(void) {
    static Tensor row[3];
    Table table = {row, 0, 0, NULL};
    real moments[48], weights[48], got[2][48] = {{0}};
    Group group[2] = {{"", row, 3, 0, weights}, {"moment1.", row, 3, 0, moments}};
    Group back[2] = {{"", row, 3, 0, got[0]}, {"moment1.", row, 3, 0, got[1]}};
    Metadata metadata[2] = {{"step", "12"}, {"say", "\"\\\n\x01 \xc3\xa9"}}, read[2] = {{"say", ""}, {"step", "12"}};
    Metadata other[1] = {{"step", "13"}}, absent[1] = {{"no", ""}};
    table_add(&table, NULL, "a", 3, 1, 4);
    table_add(&table, NULL, "scalar", 0, 0, 0);
    table_add(&table, NULL, "b", 5, 0, 0);
    for (int i = 0; i < 48; i++) weights[i] = (real)i / 3, moments[i] = (real)-i / 7;
    CHECK(table.size == 48 && tensors_save(DIR "/generic", group, 2, metadata, 2) == 0);
    CHECK(tensors_load(DIR "/generic", back, 2, read, 2) == 0 && strcmp(read[0].value, metadata[1].value) == 0);
    for (int t = 0; t < 3; t++) {
        size_t at = row[t].offset, bytes = row[t].size * sizeof(real);
        CHECK(memcmp(got[0] + at, weights + at, bytes) == 0 && memcmp(got[1] + at, moments + at, bytes) == 0);
    }
    CHECK(got[0][13] == 0); /* padding is not touched */
    CHECK_FAILS(tensors_load(DIR "/generic", back, 2, other, 1), "generic: step is \"12\", expected \"13\"");
    CHECK_FAILS(tensors_load(DIR "/generic", back, 2, absent, 1), "no");
    CHECK_FAILS(tensors_load(DIR "/generic", back, 1, NULL, 0), "unexpected tensor moment1.a of shape [3,1,4]");
    CHECK(tensors_save(DIR "/generic", group, 1, NULL, 0) == 0);
    CHECK_FAILS(tensors_load(DIR "/generic", back, 2, NULL, 0), "tensor moment1.a of shape [3,1,4] is missing");
    CHECK_FAILS(tensors_load(DIR "/generic", back, 1, read, 2), "__metadata__ has no valid say");
}

/* A name that is longer than the longest that can be wanted, and begins like it. */
static void test_long_name(void) {
    char prefix[65] = {0}, header[512];
    Tensor row;
    Table table = {&row, 0, 0, NULL};
    real w[16];
    Group group = {prefix, &row, 1, 0, w};
    table_add(&table, NULL, "w", 2, 0, 0);
    memset(prefix, 'p', 64), memset(row.name, 'n', 63);
    snprintf(header, sizeof header, "{'%s%s':{'dtype':'F32','shape':[2],'data_offsets':[0,8]}}", prefix, row.name);
    put_tensors(DIR "/long", header, 8);
    CHECK(tensors_load(DIR "/long", &group, 1, NULL, 0) == 0);
    snprintf(header, sizeof header, "{'%s%sx':{'dtype':'F32','shape':[2],'data_offsets':[0,8]}}", prefix, row.name);
    put_tensors(DIR "/long", header, 8);
    CHECK_FAILS(tensors_load(DIR "/long", &group, 1, NULL, 0), "unexpected tensor ppp");
}

/* Numbers of each type against their values. Of F16 and BF16, test_half.c has all. */
static void test_types(void) {
    static const float value[] = {0, -0.0f, 1, -2.5f, 0.09375f, 65504, INFINITY, -INFINITY};
    static const uint16_t as_half[] = {0, 0x8000, 0x3c00, 0xc100, 0x2e00, 0x7bff, 0x7c00, 0xfc00};
    char file[512] = {0};
    uint64_t length;
    Tensor row[4];
    Table table = {row, 0, 0, NULL};
    real got[64];
    Group group = {"", row, 4, 0, got};
    strcpy(file + 8, "{\"w\":{\"dtype\":\"F16\",\"shape\":[8],\"data_offsets\":[0,16]},"
                     "\"x\":{\"dtype\":\"BF16\",\"shape\":[8],\"data_offsets\":[16,32]},"
                     "\"y\":{\"shape\":[8],\"data_offsets\":[32,64],\"dtype\":\"F32\"},"
                     "\"z\":{\"dtype\":\"F64\",\"shape\":[8],\"data_offsets\":[64,128]} }");
    length = strlen(file + 8);
    CHECK(length % 2 == 1); /* so that all data is unaligned */
    memcpy(file, &length, 8);
    for (int i = 0; i < 8; i++) {
        double full = value[i];
        uint32_t bits;
        uint16_t upper;
        char *data = file + 8 + length;
        memcpy(&bits, &value[i], 4);
        upper = (uint16_t)(bits >> 16);
        memcpy(data + 2 * i, &as_half[i], 2), memcpy(data + 16 + 2 * i, &upper, 2);
        memcpy(data + 32 + 4 * i, &value[i], 4), memcpy(data + 64 + 8 * i, &full, 8);
    }
    put(DIR "/types", file, 8 + (size_t)length + 128);
    table_add(&table, NULL, "w", 8, 0, 0), table_add(&table, NULL, "x", 8, 0, 0);
    table_add(&table, NULL, "y", 8, 0, 0), table_add(&table, NULL, "z", 8, 0, 0);
    CHECK(tensors_load(DIR "/types", &group, 1, NULL, 0) == 0);
    for (int t = 0; t < 4; t++)
        for (int i = 0; i < 8; i++) {
            real x = got[row[t].offset + (size_t)i], y = (real)value[i];
            if (t == 1 && i == 5) y = 65280; /* 65504 in BF16, cut off */
            CHECK(x == y && !signbit(x) == !signbit(y));
        }
}

/* BROKEN FILES ================================================================================================= */

/* a (2,3) and b (4), as wanted by the next tests. */
static Tensor small_row[2];
static real small_data[32];
static const Group small_group = {"", small_row, 2, 0, small_data};

static int load_small(const char *header, size_t n) {
    put_tensors(DIR "/small", header, n);
    return tensors_load(DIR "/small", &small_group, 1, NULL, 0);
}

#define A "'a':{'dtype':'F32','shape':[2,3],'data_offsets':[0,24]}"
#define F "'dtype':'F32'"
#define B "'b':{'dtype':'F32','shape':[4],'data_offsets':[24,40]}"

static void test_headers(void) {
    static const struct {
        const char *header;
        size_t n;
        const char *says;
    } bad[] = {
        {"{" A "," B "}", 0, "small: 0 bytes of data, but tensors of 40"}, /* only a header: not zeros */
        {"{" A "," B "}", 39, "39 bytes of data"},
        {"{" A "," B "}", 41, "41 bytes of data"},
        {"{" A "}", 24, "small: tensor b of shape [4] is missing"},
        {"{" A "," A "," B "}", 40, "tensor a occurs twice"},
        {"{" A "," B ",'c':{'shape':[0],'data_offsets':[40,40]," F "}}", 40, "unexpected tensor c of shape [0]"},
        {"{" A ",'b':{'shape':[5],'data_offsets':[24,44]," F "}}", 44, "tensor b has shape [5], expected [4]"},
        {"{" A ",'b':{'shape':[4,1],'data_offsets':[24,40]," F "}}", 40, "shape [4,1], expected [4]"},
        {"{" A ",'b':{'shape':[],'data_offsets':[24,28]," F "}}", 28, "shape [], expected [4]"},
        {"{" A ",'b':{'shape':[-4],'data_offsets':[24,40]," F "}}", 40, "shape [-4], expected [4]"},
        {"{" A ",'b':{'shape':[4294967300],'data_offsets':[24,40]," F "}}", 40, "shape [4294967300]"},
        {"{" A ",'b':{'shape':[4294967296,4294967296],'data_offsets':[24,24]," F "}}", 24, "shape [4294967296,"},
        {"{" A ",'b':{'shape':[1e400],'data_offsets':[24,40]," F "}}", 40, "shape [1e400], expected [4]"},
        {"{" A ",'b':{'shape':['4'],'data_offsets':[24,40]," F "}}", 40, "expected [4]"},
        {"{" A ",'b':{'shape':4,'data_offsets':[24,40]," F "}}", 40, "tensor b lacks a dtype, shape"},
        {"{" A ",'b':{'data_offsets':[24,40]," F "}}", 40, "tensor b lacks"},
        {"{" A ",'b':{'shape':[4],'data_offsets':[24,40]}}", 40, "tensor b lacks"},
        {"{" A ",'b':{'shape':[4]," F "}}", 40, "tensor b lacks"},
        {"{" A ",'b':[4]}", 40, "tensor b lacks"},
        {"{" A ",'b':{'shape':[4],'data_offsets':[24,40],'dtype':'I32'}}", 40, "dtype I32, expected F32, F16, BF16 or"},
        {"{" A ",'b':{'shape':[4],'data_offsets':[24,40],'dtype':'F16'}}", 40, "[24,40], expected 8 bytes"},
        {"{" A ",'b':{'shape':[4],'data_offsets':[24,-1]," F "}}", 40, "data_offsets [24,-1]"},
        {"{" A ",'b':{'shape':[4],'data_offsets':[-16,0]," F "}}", 40, "data_offsets [-16,0]"},
        {"{" A ",'b':{'shape':[4],'data_offsets':[40,24]," F "}}", 40, "data_offsets [40,24]"},
        {"{" A ",'b':{'shape':[4],'data_offsets':[24]," F "}}", 40, "data_offsets [24]"},
        {"{" A ",'b':{'shape':[4],'data_offsets':[24,40,41]," F "}}", 40, "data_offsets [24,40,41]"},
        {"{" A ",'b':{'shape':[4],'data_offsets':[24.5,40.5]," F "}}", 40, "data_offsets [24.5,40.5]"},
        {"{" A ",'b':{'shape':[4],'data_offsets':[20,36]," F "}}", 40, "begins at byte 20 of the data, expected 24"},
        {"{" A ",'b':{'shape':[4],'data_offsets':[28,44]," F "}}", 44, "begins at byte 28 of the data, expected 24"},
        {"{" A ",'b':{'shape':[4],'data_offsets':[900719925474000,900719925474016]," F "}}", 40, "begins at byte 900"},
        {"{'a':{'shape':[2,3],'data_offsets':[4,28]," F "},'b':{'shape':[4],'data_offsets':[28,44]," F "}}", 44,
         "begins at byte 4 of the data, expected 0"},
        {"{'__metadata__':{'x':1}," A "," B "}", 40, "__metadata__ is not an object of strings"},
        {"{'__metadata__':['x']," A "," B "}", 40, "__metadata__ is not an object of strings"},
        {"{" A "," B, 40, "not JSON"},
        {"{" A "," B "}}", 40, "not JSON"},
        {"[]", 0, "the header is not a JSON object"},
        {"", 0, "not JSON"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK_FAILS(load_small(bad[i].header, bad[i].n), bad[i].says);
        CHECK_FAILS(load_small(bad[i].header, bad[i].n), DIR "/small");
    }
    CHECK(load_small("{" A "," B "}  ", 40) == 0 && small_data[0] != 0);
    CHECK(load_small("{'__metadata__':{}," B ", " A "}", 40) == 0); /* the header may be in any order */
    CHECK(load_small("{'a':{'dtype':'F32','shape':[2,3],'data_offsets':[16,40]},'b':{'dtype':'F32','shape':[4],"
                     "'data_offsets':[0,16]}}", 40) == 0);
}

/* Every shorter file, one longer, a file with each byte of its header changed, and lengths of headers out of range. */
static void test_damage(void) {
    static const uint64_t length[] = {0, 1, 1000, 100000000, 100000001, (uint64_t)1 << 32, (uint64_t)1 << 63,
                                      UINT64_MAX - 7, UINT64_MAX};
    static const char put_in[] = {0, '"', '{', '}', '[', ']', ',', ':', '-', '9', '\\', ' ', '\x80', 'e', '.'};
    size_t n;
    char *file, kept;
    CHECK(load_small("{" A "," B "}", 40) == 0);
    file = read_file(DIR "/small", &n);
    CHECK(file != NULL);
    for (size_t k = 0; k < n; k++) {
        put(DIR "/cut", file, k);
        CHECK_FAILS(tensors_load(DIR "/cut", &small_group, 1, NULL, 0), DIR "/cut");
    }
    put(DIR "/cut", file, n + 1);
    CHECK_FAILS(tensors_load(DIR "/cut", &small_group, 1, NULL, 0), "41 bytes of data");
    for (size_t k = 8; k < n - 40; k++) {
        kept = file[k];
        for (size_t i = 0; i < sizeof put_in; i++) {
            file[k] = put_in[i];
            put(DIR "/cut", file, n);
            error_message[0] = 0;
            CHECK(tensors_load(DIR "/cut", &small_group, 1, NULL, 0) == 0 || strstr(error_message, DIR "/cut") != NULL);
        }
        file[k] = kept;
    }
    for (size_t i = 0; i < sizeof length / sizeof *length; i++) {
        memcpy(file, &length[i], 8);
        put(DIR "/cut", file, n);
        CHECK_FAILS(tensors_load(DIR "/cut", &small_group, 1, NULL, 0), i < 2 ? "not JSON" : "a header of");
    }
    release(file);
    CHECK_FAILS(tensors_load(DIR, &small_group, 1, NULL, 0), "cannot read");
    CHECK_FAILS(tensors_load(DIR "/absent", &small_group, 1, NULL, 0), "absent: cannot read: No such file");
}

static void test_read_file(void) {
    size_t n;
    char *text, zeros[3] = {'x', 0, 'y'};
    put(DIR "/text", zeros, 3);
    text = read_file(DIR "/text", &n);
    CHECK(text != NULL && n == 3 && memcmp(text, "x\0y", 4) == 0);
    release(text);
    put(DIR "/text", zeros, 0);
    text = read_file(DIR "/text", &n);
    CHECK(text != NULL && n == 0 && text[0] == 0);
    release(text);
    CHECK_FAILS(read_file(DIR, &n) == NULL, DIR ": cannot read");
    CHECK_FAILS(read_file(DIR "/none", &n) == NULL, DIR "/none: cannot read");
}

/* JSON ========================================================================================================= */

static int parse(Json *json, const char *source) {
    size_t n = strlen(source);
    char *text = (char *)allocate(n + 1, 1);
    memcpy(text, source, n);
    return json_parse(json, text, n, "test");
}

static void test_json(void) {
    static const char *const good[] = {"0", " -0 ", "1.5e-3", "1E+2", "\"\"", "[]", "{}", "[[],{}]", "null", "true",
        "NaN", "[-Infinity,Infinity]", "{\"a\":{\"b\":[1,2,{}]},\"a\":0}", "\t[ 1 , 2 ]\r\n", "\"\xc3\xa9\"",
        "[\"\\\\\",\"\\\"\"]"};
    static const char *const bad[] = {"", " ", "01", "-", "+1", ".5", "1.", "1.e5", "1e", "1e+", "0x10", "1 2", "inf",
        "nan", "nul", "True", "-NaN", "--1", "1-2", "[", "]", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "[1}", "{", "{1:2}",
        "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{\"a\" 1}", "{\"a\",1}", "{,}", "{\"a\":1 \"b\":2}", "{\"a\":1:2}",
        "[1:2]", "{\"a\":1", "{\"a\":1]", "\"", "\"a", "\"\\", "\"\\\"", "\"\\x\"", "\"\\u12\"", "\"\\u12", "\"\\u",
        "\"\\u12g4\"",
        "\"\\u0000\"", "\"\\ud800\"", "\"\\udc00\"", "\"\\ud800\\u0041\"", "\"\\ud800\\", "\"\\ud800\\udc0\"", "\"\n\"",
        "\"\x1f\"", "'a'", "[1]]", "{}{}", "//", "\xef\xbb\xbf{}"};
    char deep[200];
    Json json;
    uint32_t i, n = 0;
    for (size_t k = 0; k < sizeof good / sizeof *good; k++) {
        int status = parse(&json, good[k]);
        if (status != 0) printf("%s\n", good[k]);
        CHECK(status == 0);
        if (status == 0) json_free(&json);
    }
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) {
        int status = parse(&json, bad[k]);
        if (status == 0) printf("%s\n", bad[k]), json_free(&json);
        CHECK(status != 0 && strncmp(error_message, "test: ", 6) == 0);
    }
    CHECK(parse(&json, "{\"\\u0041\\n\\/\":\"\\u00e9\\u20AC\\ud83d\\ude00\\t\", \"n\":-1.5e2,"
                       "\"n\":[3, {\"x\":[]}, \"y\"], \"e\":{}}") == 0);
    CHECK(strcmp(json_string(&json, json_find(&json, 0, "A\n/")), "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\t") == 0);
    i = json_find(&json, 0, "n"); /* the last of two */
    CHECK(json_type(&json, i) == '[' && isnan(json_number(&json, i)) && json_string(&json, i) == NULL);
    i = json_first(&json, i);
    CHECK(json_number(&json, i) == 3);
    i = json.node[i].next;
    CHECK(json_type(&json, i) == '{' && json_first(&json, json_find(&json, i, "x")) == 0);
    i = json.node[i].next;
    CHECK(strcmp(json_string(&json, i), "y") == 0 && json.node[i].next == 0);
    CHECK(json_find(&json, 0, "x") == 0 && json_find(&json, i, "x") == 0);
    CHECK(json_first(&json, json_find(&json, 0, "e")) == 0);
    json_free(&json);

    for (int levels = 64; levels <= 65; levels++) {
        memset(deep, '[', (size_t)levels), memset(deep + levels, ']', (size_t)levels), deep[2 * levels] = 0;
        CHECK(parse(&json, deep) == (levels > 64 ? -1 : 0));
        if (levels <= 64) json_free(&json);
    }

    char *big = (char *)allocate(4000000, 1), *p = big; /* a walk over 200,000 keys is linear */
    p += sprintf(p, "{");
    for (int k = 0; k < 200000; k++) p += sprintf(p, "%s\"k%d\":%d", k > 0 ? "," : "", k, k);
    p += sprintf(p, "}");
    clock_t start = clock();
    CHECK(json_parse(&json, big, (size_t)(p - big), "test") == 0 && json.n_node == 400001);
    for (i = json_first(&json, 0); i != 0; i = json.node[i + 1].next) n += json_number(&json, i + 1) == n;
    CHECK(n == 200000 && clock() - start < 2 * CLOCKS_PER_SEC);
    json_free(&json);
}

/* CONFIG ======================================================================================================= */

static int load_config(Config *c, const char *text) {
    put_json(DIR "/config.json", text);
    return config_load(c, DIR);
}

static void test_config(void) {
    static const char *const bad[][2] = {
        {"{'model_type':'mamba2'}", "config.json: model_type is \"mamba2\", expected \"mamba\""},
        {"{}", "model_type is missing"}, {"{'model_type':3}", "model_type is missing"},
        {"[]", "config.json: not a JSON object"}, {"'mamba'", "not a JSON object"}, {"", "config.json: not JSON"},
        {"'vocab_size':0", "config.json: vocab_size is 0, expected 1 to 1048576"},
        {"'vocab_size':-5", "vocab_size is -5"},
        {"'vocab_size':1e9", "vocab_size is 1000000000"},
        {"'vocab_size':1e300", "vocab_size is 1e300, expected an integer"},
        {"'vocab_size':4294967297", "vocab_size is 4294967297, expected an integer"},
        {"'vocab_size':NaN", "vocab_size is NaN"},
        {"'vocab_size':'9'", "vocab_size is 9, expected an integer"}, {"'vocab_size':1.5", "vocab_size is 1.5"},
        {"'vocab_size':null", "vocab_size is null"}, {"'vocab_size':true", "vocab_size is true"},
        {"'vocab_size':[1]", "vocab_size is [1]"}, {"'hidden_size':0", "hidden_size is 0"},
        {"'hidden_size':2147483647", "hidden_size is 2147483647"}, {"'num_hidden_layers':0", "num_hidden_layers is 0"},
        {"'num_hidden_layers':2000000000", "num_hidden_layers is"},
        {"'state_size':257", "state_size is 257, expected 1 to 256"},
        {"'conv_kernel':9", "conv_kernel is 9, expected 1 to 8"}, {"'conv_kernel':0", "conv_kernel is 0"},
        {"'expand':0", "expand is 0"}, {"'expand':2147483647,'hidden_size':2147483647", "expected"},
        {"'intermediate_size':1000", "intermediate_size is 1000, expected expand * hidden_size = 1536"},
        {"'time_step_rank':0", "time_step_rank is 0"}, {"'time_step_rank':'none'", "time_step_rank is none"},
        {"'use_bias':1", "use_bias is 1, expected true or false"}, {"'use_conv_bias':null", "use_conv_bias is null"},
        {"'tie_word_embeddings':'yes'", "tie_word_embeddings is yes"},
        {"'bos_token_id':50280", "bos_token_id is 50280"},
        {"'pad_token_id':[0]", "pad_token_id is [0]"}, {"'eos_token_id':-2", "eos_token_id is -2"},
        {"'layer_norm_epsilon':0", "layer_norm_epsilon is 0"}, {"'layer_norm_epsilon':'x'", "layer_norm_epsilon"},
        {"'layer_norm_epsilon':Infinity", "layer_norm_epsilon is inf"}, {"'hidden_act':'gelu'", "hidden_act"},
    };
    char text[256];
    Config c, back;
    CHECK(load_config(&c, "{'model_type':'mamba'}") == 0);
    CHECK(c.vocab_size == 50280 && c.d_model == 768 && c.n_layer == 32 && c.d_state == 16 && c.d_conv == 4);
    CHECK(c.expand == 2 && c.dt_rank == 48 && c.d_inner == 1536 && !c.proj_bias && c.conv_bias && c.tied);
    CHECK(c.norm_eps == 1e-5 && c.bos_id == 0 && c.eos_id == 0 && c.pad_id == 0);
    CHECK(load_config(&c, "{'model_type':'mamba','hidden_size':17,'time_step_rank':'auto','expand':3.0,'use_bias':true,"
                          "'intermediate_size':51,'eos_token_id':null,'time_step_limit':[0.0,Infinity],'x':{}}") == 0);
    CHECK(c.dt_rank == 2 && c.d_inner == 51 && c.proj_bias == 1 && c.eos_id == -1);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        int whole = bad[i][0][0] != '\'' || bad[i][0][6] == '\'';
        snprintf(text, sizeof text, whole ? "%s" : "{'model_type':'mamba',%s}", bad[i][0]);
        CHECK_FAILS(load_config(&c, text), bad[i][1]);
        CHECK_FAILS(load_config(&c, text), DIR "/config.json: ");
    }
    c = small_config(0, 1);
    c.norm_eps = 0.1 + 0.2, c.dt_rank = 5;
    CHECK(config_save(&c, DIR) == 0 && config_load(&back, DIR) == 0 && memcmp(&c, &back, sizeof c) == 0);
    CHECK_FAILS(config_load(&c, DIR "/nowhere"), "nowhere/config.json: cannot read: No such file");
}

/* CHECKPOINTS ================================================================================================== */

/* The rows [from, to) of a model as a file of their own. */
static void save_rows(const char *path, const Model *m, int from, int to) {
    Group group = {"", m->tensor + from, to - from, 0, m->weights};
    CHECK(tensors_save(path, &group, 1, NULL, 0) == 0);
}

static void test_shards(void) {
    Model m = small_model(0, 0, 5), got;
    const char *dir = fresh("shards"), *const index = DIR "/shards/model.safetensors.index.json";
    char text[8192], *p;
    CHECK(config_save(&m.config, dir) == 0);
    save_rows(DIR "/shards/a.safetensors", &m, 0, 7);
    save_rows(DIR "/shards/b.safetensors", &m, 7, m.n_tensor);
    p = text + sprintf(text, "{'metadata':{'total_size':1},'weight_map':{");
    for (int i = 0; i < m.n_tensor; i++)
        p += sprintf(p, "%s'%s':'%c.safetensors'", i > 0 ? "," : "", m.tensor[i].name, i < 7 ? 'a' : 'b');
    strcpy(p, "}}");
    put_json(index, text);
    CHECK(model_load(&got, dir) == 0 && same_model(&m, &got));
    model_free(&got);

    save_rows(DIR "/shards/b.safetensors", &m, 6, m.n_tensor);
    CHECK_FAILS(model_load(&got, dir), "b.safetensors: tensor backbone.layers.0.mixer.dt_proj.weight occurs twice");
    save_rows(DIR "/shards/b.safetensors", &m, 8, m.n_tensor);
    CHECK_FAILS(model_load(&got, dir), "tensor backbone.layers.0.mixer.dt_proj.bias of shape [12] is missing");
    remove(DIR "/shards/b.safetensors");
    CHECK_FAILS(model_load(&got, dir), "shards/b.safetensors: cannot read: No such file");
    put_json(index, "{'weight_map':{'x':'../round/model.safetensors'}}");
    CHECK_FAILS(model_load(&got, dir), "weight_map names ../round/model.safetensors, expected a file beside it");
    put_json(index, "{'weight_map':{'x':'..\\\\model.safetensors'}}");
    CHECK_FAILS(model_load(&got, dir), "weight_map names");
    put_json(index, "{'weight_map':{'x':'..'}}");
    CHECK_FAILS(model_load(&got, dir), "shards/..: cannot read");
    put_json(index, "{'weight_map':{'x':''}}");
    CHECK_FAILS(model_load(&got, dir), "weight_map names");
    put_json(index, "{'weight_map':{'x':7}}");
    CHECK_FAILS(model_load(&got, dir), "weight_map names 7");
    put_json(index, "{'weight_map':[]}");
    CHECK_FAILS(model_load(&got, dir), "weight_map is missing");
    put_json(index, "{}");
    CHECK_FAILS(model_load(&got, dir), "weight_map is missing");
    put_json(index, "{'weight_map':{}}");
    CHECK_FAILS(model_load(&got, dir), "index.json: tensor backbone.embeddings.weight of shape [11,6] is missing");
    put_json(index, "{");
    CHECK_FAILS(model_load(&got, dir), "index.json: not JSON");
    p = text + sprintf(text, "{'weight_map':{");
    for (int i = 0; i <= MAX_SOURCE; i++) {
        char path[64];
        snprintf(path, sizeof path, DIR "/shards/%d", i);
        put_tensors(path, "{}", 0);
        p += sprintf(p, "%s'%d':'%d'", i > 0 ? "," : "", i, i);
    }
    strcpy(p, "}}");
    put_json(index, text);
    CHECK_FAILS(model_load(&got, dir), "index.json: more than 128 files");
    model_free(&m);
}

/* Names of other releases, a head that is tied and there, formats that are not read. */
static void test_directories(void) {
    Model m = small_model(1, 0, 6), got;
    const char *dir = fresh("names");
    Tensor head;
    Table table = {&head, 0, 0, NULL};
    Group group[2] = {{"", m.tensor, m.n_tensor, 0, m.weights}, {"", &head, 1, 0, m.weights}};
    table_add(&table, NULL, "lm_head.weight", 11, 6, 0);
    CHECK_FAILS(model_load(&got, dir), "names/config.json: cannot read: No such file");
    CHECK(config_save(&m.config, dir) == 0);
    CHECK_FAILS(model_load(&got, dir), "names: has no model.safetensors");
    put_text(DIR "/names/pytorch_model.bin", "PK");
    CHECK_FAILS(model_load(&got, dir), "save_pretrained(dir, safe_serialization=True)");
    strcpy(m.tensor[0].name, "backbone.embedding.weight");
    CHECK(tensors_save(DIR "/names/model.safetensors", group, 2, NULL, 0) == 0);
    CHECK(model_load(&got, dir) == 0 && same_model(&m, &got) && got.params.head.full == got.params.embedding.full);
    model_free(&got);
    head.shape[0] = 10, head.size = 60;
    CHECK(tensors_save(DIR "/names/model.safetensors", group, 2, NULL, 0) == 0);
    CHECK_FAILS(model_load(&got, dir), "model.safetensors: tensor lm_head.weight has shape [10,6], expected [11,6]");
    CHECK_FAILS(model_load(&got, DIR "/none"), "none/config.json: cannot read");
    remove(DIR "/names/model.safetensors"), mkdir(DIR "/names/model.safetensors", 0777);
    CHECK_FAILS(model_load(&got, dir), "names/model.safetensors: cannot read");
    CHECK_FAILS(model_save(&m, dir), "names/model.safetensors: cannot write: not a regular file");
    rmdir(DIR "/names/model.safetensors");
    model_free(&m);
}

/* The config says one thing, the tensors another. */
static void test_contradiction(void) {
    Model m = small_model(1, 0, 7), got;
    const char *dir = fresh("contradiction");
    Config c = m.config;
    CHECK(model_save(&m, dir) == 0);
    c.n_layer = 1;
    CHECK(config_save(&c, dir) == 0);
    CHECK_FAILS(model_load(&got, dir), "unexpected tensor backbone.layers.1.mixer.A_log of shape [12,3]");
    c.n_layer = 3;
    CHECK(config_save(&c, dir) == 0);
    CHECK_FAILS(model_load(&got, dir), "tensor backbone.layers.2.mixer.A_log of shape [12,3] is missing");
    c = m.config, c.d_state = 4;
    CHECK(config_save(&c, dir) == 0);
    CHECK_FAILS(model_load(&got, dir), "tensor backbone.layers.0.mixer.A_log has shape [12,3], expected [12,4]");
    c = m.config, c.d_conv = 3;
    CHECK(config_save(&c, dir) == 0);
    CHECK_FAILS(model_load(&got, dir), "conv1d.weight has shape [12,1,4], expected [12,1,3]");
    c = m.config, c.tied = 0;
    CHECK(config_save(&c, dir) == 0);
    CHECK_FAILS(model_load(&got, dir), "tensor lm_head.weight of shape [11,6] is missing");
    /* the largest config that there is: refused by the file, before its terabytes are asked for */
    put_json(DIR "/contradiction/config.json", "{'model_type':'mamba','vocab_size':1048576,'hidden_size':16384,"
             "'expand':8,'num_hidden_layers':1024,'state_size':256,'conv_kernel':8,'time_step_rank':4096}");
    CHECK_FAILS(model_load(&got, dir), "embeddings.weight has shape [11,6], expected [1048576,16384]");
    model_free(&m);
}

/* Errors of the system: afterwards the old checkpoint is there, and no temporary file. */
static void test_failed_save(void) {
    Model old = small_model(1, 0, 8), m = small_model(1, 0, 9), got;
    const char *dir = fresh("failed");
    char name[300];
    int n, status, failed = 1;
    CHECK(model_save(&old, dir) == 0);
    for (n = 1; failed; n++) {
        fault = n;
        error_message[0] = 0;
        status = model_save(&m, dir);
        failed = fault == 0;
        fault = 0;
        CHECK(failed ? status != 0 && error_message[0] != 0 : status == 0);
        CHECK(status == 0 || strstr(error_message, DIR "/failed") != NULL);
        CHECK(!exists(DIR "/failed/model.safetensors.tmp") && !exists(DIR "/failed/config.json.tmp"));
        CHECK(model_load(&got, dir) == 0 && (same_model(&old, &got) || same_model(&m, &got)));
        model_free(&got);
    }
    CHECK(n > 20); /* so many calls can fail */
    put_text(DIR "/plain", "a file");
    CHECK_FAILS(model_save(&m, DIR "/plain"), "checkpoints/plain/model.safetensors: cannot write: Not a directory");
    CHECK_FAILS(model_save(&m, DIR "/no/where"), "checkpoints/no/where: cannot make it: No such file");
    if (geteuid() != 0) {
        chmod(dir, 0555);
        CHECK_FAILS(model_save(&m, dir), "failed/model.safetensors: cannot write: Permission denied");
        chmod(dir, 0777);
    }
    memset(name, 'x', 299), name[299] = 0;
    CHECK_FAILS(model_save(&m, name), "File name too long");
    remove(DIR "/pipe"); /* it stands for /dev/null, which a test must not try to replace */
    CHECK(mkfifo(DIR "/pipe", 0666) == 0);
    CHECK_FAILS(write_file(DIR "/pipe", "x", 1), "pipe: cannot write: not a regular file");
    char *path = (char *)allocate(5001, 1);
    memset(path, 'y', 5000);
    CHECK_FAILS(model_save(&m, path), "the path is too long");
    CHECK_FAILS(model_load(&got, path), "the path is too long");
    CHECK_FAILS(write_file(path, "x", 1), "the path is too long");
    release(path);
    model_free(&m);
    model_free(&old);
}

static void test_failed_load(void) {
    Model m = small_model(1, 0, 10), got;
    const char *dir = fresh("load");
    int n, status, failed = 1, n_success = 0;
    CHECK(model_save(&m, dir) == 0);
    for (n = 1; failed; n++) {
        fault = n;
        error_message[0] = 0;
        status = model_load(&got, dir);
        failed = fault == 0;
        fault = 0;
        CHECK(status == 0 ? same_model(&m, &got) : got.weights == NULL && got.tensor == NULL);
        CHECK(status == 0 || strncmp(error_message, DIR "/load", strlen(DIR "/load")) == 0);
        n_success += status == 0;
        if (status == 0) model_free(&got);
    }
    CHECK(n > 50 && n_success == 3); /* the last, and two where only fclose failed after reading */
    model_free(&m);
}

/* Calls of everything that reads or writes, for the next test. */
static Model called_model;

static int call_config(void) {
    Config c;
    return config_load(&c, DIR "/faults");
}
static int call_shards(void) {
    Model m;
    int status = model_load(&m, DIR "/faults");
    if (status == 0) CHECK(same_model(&m, &called_model)), model_free(&m);
    else CHECK(m.weights == NULL && m.tensor == NULL && m.params.block == NULL);
    return status;
}
static int call_save_state(void) {
    Group group = {"moment1.", called_model.tensor, called_model.n_tensor, 0, called_model.weights};
    Metadata metadata = {"step", "7"};
    return tensors_save(DIR "/faults/state", &group, 1, &metadata, 1);
}
static int call_state(void) {
    static real values[4096];
    Group group = {"moment1.", called_model.tensor, called_model.n_tensor, 0, values};
    Metadata metadata = {"step", ""};
    CHECK(called_model.n_param <= 4096);
    return tensors_load(DIR "/faults/state", &group, 1, &metadata, 1);
}
static int call_save_tokenizer(void) {
    Tokenizer t;
    int status = tokenizer_train(&t, "ab ab cd cd", 11, 260);
    if (status != 0) return fail_in(DIR "/faults");
    status = tokenizer_save(&t, DIR "/faults/tokenizer.bin");
    tokenizer_free(&t);
    return status;
}
static int call_tokenizer(void) {
    Tokenizer t;
    int status = tokenizer_load(&t, DIR "/faults/tokenizer.bin");
    if (status == 0) CHECK(t.n_vocab == 260), tokenizer_free(&t);
    else CHECK(t.n_vocab == 0 && t.bytes == NULL);
    return status;
}

/* Each call of the system fails in turn, in everything that reads or writes: that is an error, but for closing what has
   been read; a file that is there stays as it was. (What is not freed the sanitizer finds.) */
static void test_every_fault(void) {
    static const struct {
        int (*call)(void);
        const char *file;          /* that it writes */
        int least;                 /* so many calls of the system there are at least */
    } calls[] = {{call_save_state, "state", 8}, {call_save_tokenizer, "tokenizer.bin", 20}, {call_config, NULL, 6},
                 {call_shards, NULL, 40}, {call_state, NULL, 20}, {call_tokenizer, NULL, 15}};
    const char *dir = fresh("faults");
    char path[300];
    called_model = small_model(0, 0, 11);
    put_text(DIR "/old", "old");
    CHECK(config_save(&called_model.config, dir) == 0);
    save_rows(DIR "/faults/a.safetensors", &called_model, 0, 7);
    save_rows(DIR "/faults/b.safetensors", &called_model, 7, called_model.n_tensor);
    put_json(DIR "/faults/model.safetensors.index.json", "{'weight_map':{'x':'a.safetensors','y':'b.safetensors'}}");
    for (size_t k = 0; k < sizeof calls / sizeof *calls; k++) {
        int n, failed = 1, n_replaced = 0;
        snprintf(path, sizeof path, DIR "/faults/%s", calls[k].file != NULL ? calls[k].file : "");
        CHECK(calls[k].call() == 0 && (calls[k].file == NULL || rename(path, DIR "/new") == 0));
        for (n = 0; failed; n++) {
            int status;
            if (calls[k].file != NULL) put_text(path, "old");
            fault = n + 1, error_message[0] = 0, fault_was_fclose = 0;
            status = calls[k].call();
            failed = fault == 0, fault = 0;
            if (status == 0) CHECK(!failed || (fault_was_fclose && calls[k].file == NULL));
            else CHECK(failed && strncmp(error_message, DIR "/faults", strlen(DIR "/faults")) == 0);
            if (status != 0 && calls[k].file != NULL && !is_same(path, DIR "/old"))
                n_replaced++, CHECK(is_same(path, DIR "/new"));
        }
        CHECK(n > calls[k].least && n_replaced == (calls[k].file != NULL)); /* once: its directory is not synced */
        if (calls[k].file != NULL) CHECK(is_same(path, DIR "/new"));
    }
    model_free(&called_model);
}

/* What train does: weights, config, then the optimiser's state. */
static int save_both(const Model *m, const char *dir, const char *state) {
    Group group = {"weight.", m->tensor, m->n_tensor, 0, m->weights};
    Metadata metadata = {"step", "7"};
    return model_save(m, dir) != 0 || tensors_save(state, &group, 1, &metadata, 1) != 0 ? -1 : 0;
}

/* Whatever the last operation was: each file is the old one or the new one. When a save has returned, it is the new
   one, whatever happens then. */
static void test_power_cut(void) {
    Model old = small_model(1, 0, 12), m = small_model(1, 0, 13), got;
    const char *const state = DIR "/power/optimizer.safetensors", *dir = fresh("reference");
    CHECK(save_both(&old, dir, DIR "/old_state") == 0 && save_both(&m, dir, DIR "/new_state") == 0);
    for (int kind = LOSE_PROCESS; kind <= LOSE_NAMES; kind++) {
        int n, status = 0, n_old = 0, n_new = 0;
        for (n = 1; status == 0 && n < 200; n++) {
            pid_t child;
            dir = fresh("power");
            CHECK(save_both(&old, dir, state) == 0);
            fflush(stdout);
            if ((child = fork()) == 0) {
                cut = n, loss = kind;
                status = save_both(&m, dir, state);
                cut = 1;
                if (status == 0 && n_renamed == 0) _exit(1);
                writes();
            }
            CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) <= 1);
            status = WIFEXITED(status) ? WEXITSTATUS(status) : 3;
            CHECK(model_load(&got, dir) == 0 && (same_model(&old, &got) || same_model(&m, &got)));
            if (same_model(&m, &got)) n_new++;
            model_free(&got);
            CHECK(is_same(state, DIR "/old_state") || is_same(state, DIR "/new_state"));
            n_old += is_same(state, DIR "/old_state");
        }
        CHECK(status == 1 && is_same(state, DIR "/new_state"));
        CHECK(n > 40 && n_old > 30 && n_new > 10);
    }
    model_free(&m);
    model_free(&old);
}

/* A file from which another program takes away the end while it is read. */
static void test_shrinking(void) {
    Model m = small_model(1, 0, 14), got;
    const char *dir = fresh("shrinking");
    int n, status = -1;
    for (n = 1; status != 0; n++) {
        CHECK(model_save(&m, dir) == 0);
        shrink_at = n;
        error_message[0] = 0;
        status = model_load(&got, dir);
        CHECK(status == 0 || strstr(error_message, DIR "/shrinking/model.safetensors: ") != NULL);
        if (status == 0) CHECK(same_model(&m, &got)), model_free(&got);
        if (shrink_at > 0) break;
    }
    shrink_at = 0;
    CHECK(n > 3);
    model_free(&m);
}

/* Where a file is expected: a directory, a pipe that nobody writes to, a device without an end; links to files are
   followed. A link in the place of the temporary file is not. */
static void test_no_files(void) {
    static const char *const place[] = {"config.json", "model.safetensors", "tokenizer.bin"};
    Model m = small_model(1, 0, 15), got;
    const char *dir = fresh("places");
    char path[300], says[400];
    Tokenizer t;
    size_t n;
    CHECK(model_save(&m, dir) == 0 && tokenizer_bytes(&t) == 0 && tokenizer_save(&t, DIR "/places/tokenizer.bin") == 0);
    tokenizer_free(&t);
    alarm(60); /* a pipe that is opened would be waited for */
    for (int k = 0; k < 3; k++) {
        snprintf(path, sizeof path, DIR "/places/%s", place[k]);
        snprintf(says, sizeof says, "%s: cannot read: not a regular file", path);
        CHECK(rename(path, DIR "/kept") == 0);
        for (int kind = 0; kind < 3; kind++) {
            CHECK((kind == 0 ? mkdir(path, 0777) : kind == 1 ? mkfifo(path, 0666) : symlink("/dev/zero", path)) == 0);
            CHECK_FAILS(k == 2 ? tokenizer_load(&t, path) : model_load(&got, dir), says);
            CHECK_FAILS(write_file(path, "x", 1), "cannot write: not a regular file");
            CHECK(remove(path) == 0);
        }
        CHECK(rename(DIR "/kept", path) == 0);
    }
    remove(DIR "/places.real");
    CHECK(rename(DIR "/places/model.safetensors", DIR "/places.real") == 0);
    CHECK(symlink("../places.real", DIR "/places/model.safetensors") == 0);
    CHECK(model_load(&got, dir) == 0 && same_model(&m, &got));
    model_free(&got);
    put_text(DIR "/elsewhere", "mine");
    CHECK(symlink("../elsewhere", DIR "/places/model.safetensors.tmp") == 0);
    CHECK(mkfifo(DIR "/places/config.json.tmp", 0666) == 0);
    CHECK(model_save(&m, dir) == 0 && model_load(&got, dir) == 0 && same_model(&m, &got));
    model_free(&got);
    char *text = read_file(DIR "/elsewhere", &n);
    CHECK(text != NULL && strcmp(text, "mine") == 0);
    release(text);
    alarm(0);
    model_free(&m);
}

/* A message is one line that a terminal shows, whatever a file has for names. */
static void test_messages(void) {
    fail("%s", "a\nb\x1b[2J\x7f\xc2\x9b" "31m \xc3\xa9\xe2\x82\xac\xc2\xa0\r");
    CHECK(strcmp(error_message, "a?b?[2J?\xc2?31m \xc3\xa9\xe2\x82\xac\xc2\xa0?") == 0);
    CHECK_FAILS(load_small("{" A ",'\\u001b]0;owned\\u0007':{'shape':[4],'data_offsets':[24,40]," F "}}", 40),
                "small: unexpected tensor ?]0;owned? of shape [4]");
}

/* However a JSON text is made, at most 12 bytes are allocated for each of its own. */
static void test_json_memory(void) {
    static const char *const unit[] = {"[", "{", ",", ":", "\"", "1,", "[]", "[],", "{\"\":", "\\u0041", "\xff", " "};
    enum { N = 1000000 };
    Json json;
    for (size_t k = 0; k < sizeof unit / sizeof *unit; k++) {
        char *text = (char *)allocate(N + 1, 1);
        size_t length = strlen(unit[k]);
        for (size_t i = 0; i + length < N; i += length) memcpy(text + i, unit[k], length);
        text[0] = k % 2 ? text[0] : '[';
        allocated = 0;
        CHECK(json_parse(&json, text, strlen(text), "test") != 0 && strncmp(error_message, "test: not JSON", 14) == 0);
        CHECK(allocated <= 12 * N + (3 << 20)); /* what is large is aligned to pages of 2 MiB */
    }
}

int main(void) {
    Table table = {small_row, 0, 0, NULL};
    table_add(&table, NULL, "a", 2, 3, 0);
    table_add(&table, NULL, "b", 4, 0, 0);
    mkdir("build", 0777), mkdir(DIR, 0777);
    test_round_trip();
    test_generic();
    test_long_name();
    test_types();
    test_headers();
    test_damage();
    test_read_file();
    test_json();
    test_config();
    test_shards();
    test_directories();
    test_contradiction();
    test_failed_save();
    test_failed_load();
    test_every_fault();
    test_power_cut();
    test_shrinking();
    test_no_files();
    test_messages();
    test_json_memory();
    return check_report();
}
