/* What breaks other readers of such files: each item by name, tried with ./run from outside. A file that lies ends it
   with exit status 1, nothing on standard output, and one line that names the file and the field; what it makes the
   program allocate is a small multiple of its length. Also: what is unusual and must load.
   SPDX-License-Identifier: MIT */
#include "counting.h"
#define main run_main
#include "../run.c"
#undef main
#include "check.h"
#include "work.h"

#include <sys/wait.h>

/* THE PROGRAM ================================================================================================== */

typedef struct { char *out, *error; size_t n_out, allocated; int status, counted; } Result;

/* Runs main in a process of its own, with one thread, since others do not survive a fork. Arguments are apart by a
   space; '' is an empty one. */
static Result run(const char *arguments) {
    static char text[1 << 14], *argv[32], *word;
    Result r;
    size_t n;
    int argc = 1;
    pid_t child;
    snprintf(text, sizeof text, "%s --threads 1", arguments);
    argv[0] = work;
    for (word = strtok(text, " "); word != NULL; word = strtok(NULL, " "))
        argv[argc++] = strdup(strcmp(word, "''") == 0 ? "" : at(word));
    fflush(stdout);
    if ((child = fork()) == 0) {
        int status, to = open(at("@/out"), O_WRONLY | O_CREAT | O_TRUNC, 0666);
        alarm(60);                 /* nothing may wait for ever */
        dup2(to, 1);
        dup2(open(at("@/error"), O_WRONLY | O_CREAT | O_TRUNC, 0666), 2);
        dup2(open("/dev/null", O_RDONLY), 0);
        allocated = 0;
        status = run_main(argc, argv);
        put("@/allocated", &allocated, sizeof allocated);
        for (int i = 1; i < argc; i++) free(argv[i]);
        exit(status);
    }
    memset(&r, 0, sizeof r);
    CHECK(waitpid(child, &r.status, 0) == child);
    r.status = WIFEXITED(r.status) ? WEXITSTATUS(r.status) : -1;
    for (int i = 1; i < argc; i++) free(argv[i]);
    r.out = read_file(at("@/out"), &r.n_out), r.error = read_file(at("@/error"), &n);
    word = read_file(at("@/allocated"), &n);
    r.counted = word != NULL && n == sizeof r.allocated;
    if (r.counted) memcpy(&r.allocated, word, n);
    release(word);
    remove(at("@/allocated"));
    return r;
}

static void done(Result *r) { release(r->out), release(r->error); }

/* Is refused: exit status 1, and one line that names the file and says what is wrong with it. length: of the file. */
static void refuses(const char *item, const char *arguments, const char *file, const char *says, size_t length) {
    Result r = run(arguments);
    size_t n = strlen(r.error);
    int ok = r.status == 1 && r.n_out == 0 && n > 1 && strchr(r.error, '\n') == r.error + n - 1;
    ok &= strstr(r.error, at(file)) != NULL && strstr(r.error, says) != NULL;
    ok &= r.counted && r.allocated <= (1 << 20) + 16 * length;
    CHECK(ok);
    if (!ok)
        printf("  %s: exit %d, %zu bytes allocated for a file of %zu, expected '%s', said: %.300s\n", item, r.status,
               r.allocated, length, says, r.error);
    done(&r);
}

static void accepts(const char *item, const char *arguments) {
    Result r = run(arguments);
    CHECK(r.status == 0 && r.n_out > 0);
    if (r.status != 0 || r.n_out == 0) printf("  %s: exit %d: %.300s\n", item, r.status, r.error);
    done(&r);
}

/* A DIRECTORY ================================================================================================== */

enum { VOCAB = 264 };
static const char good_config[] =
    "{\"model_type\":\"mamba\",\"vocab_size\":264,\"hidden_size\":16,\"num_hidden_layers\":1,\"state_size\":2,"
    "\"conv_kernel\":8,\"expand\":2,\"time_step_rank\":2,\"layer_norm_epsilon\":1e-05,\"eos_token_id\":0}";
static char *good_weights, *good_tokenizer;
static size_t n_weights, n_tokenizer, n_header; /* n_header: of the weights, less its 8 bytes of length */

/* @/bad as it must be; then tests break it. Without the optional files. */
static void start_over(void) {
    static const char *const other[] = {"@/bad/model.safetensors.index.json", "@/bad/pytorch_model.bin", "@/bad/a",
        "@/bad/b"};
    for (size_t i = 0; i < sizeof other / sizeof *other; i++) remove(at(other[i]));
    put_text("@/bad/config.json", good_config);
    put("@/bad/model.safetensors", good_weights, n_weights);
    put("@/bad/tokenizer.bin", good_tokenizer, n_tokenizer);
}

/* Fewer states than taps: whoever takes the one for the other writes past an end. */
static void make_good(void) {
    Config c;
    Model m;
    Tokenizer t;
    uint64_t length;
    memset(&c, 0, sizeof c);
    c.vocab_size = VOCAB, c.d_model = 16, c.n_layer = 1, c.d_state = 2, c.d_conv = 8, c.expand = 2, c.dt_rank = 2;
    c.d_inner = 32, c.conv_bias = c.tied = 1, c.norm_eps = 1e-5;
    CHECK(mkdir(at("@/bad"), 0777) == 0 && model_create(&m, &c) == 0);
    model_init(&m, 1);
    CHECK(model_save(&m, at("@/bad")) == 0);
    model_free(&m);
    CHECK(tokenizer_bytes(&t) == 0 && tokenizer_save(&t, at("@/bad/tokenizer.bin")) == 0);
    tokenizer_free(&t);
    good_weights = read_file(at("@/bad/model.safetensors"), &n_weights);
    good_tokenizer = read_file(at("@/bad/tokenizer.bin"), &n_tokenizer);
    CHECK(good_weights != NULL && good_tokenizer != NULL);
    memcpy(&length, good_weights, 8);
    n_header = (size_t)length;
}

/* Writes a text, or the weights with another header, in which the first `from` has become `to`; returns the length. */
static size_t put_changed(const char *name, const char *from, const char *to) {
    int is_header = strstr(name, "safetensors") != NULL;
    const char *text = is_header ? good_weights + 8 : good_config, *place = strstr(text, from);
    size_t n = is_header ? n_weights - 8 : sizeof good_config - 1, before, n_from = strlen(from), n_to = strlen(to);
    char *file = (char *)malloc(8 + n + n_to);
    uint64_t length = n_header + n_to - n_from;
    CHECK(place != NULL);
    if (place == NULL || file == NULL) return 0;
    before = (size_t)(place - text);
    memcpy(file, &length, 8);
    memcpy(file + 8, text, before);
    memcpy(file + 8 + before, to, n_to);
    memcpy(file + 8 + before + n_to, place + n_from, n - before - n_from);
    n = n + n_to - n_from;
    put(name, file + (is_header ? 0 : 8), is_header ? n + 8 : n);
    free(file);
    return n;
}

/* FILES THAT LIE =============================================================================================== */

#define CONFIG "@/bad/config.json"
#define WEIGHTS_ "@/bad/model.safetensors"

static void test_changed(void) {
    static const struct { const char *item, *file, *from, *to, *says; } cases[] = {
        {"sizes that overflow an int when multiplied", CONFIG, "e\":16", "e\":65536",
         "hidden_size is 65536, expected 1 to"},
        {"sizes that overflow an int when multiplied", CONFIG, "d\":2", "d\":134217728", "expand is 134217728"},
        {"the largest sizes that the limits let pass", CONFIG, "\"vocab_size\":264,\"hidden_size\":16",
         "\"vocab_size\":1048576,\"hidden_size\":16384", "model.safetensors: tensor"},
        {"sizes that overflow an int when multiplied", WEIGHTS_, "[264,16]", "[65536,65537]",
         "shape [65536,65537], expected"},
        {"sizes that overflow size_t when multiplied", WEIGHTS_, "[264,16]", "[4294967296,4294967297]", "[4294967296,"},
        {"an offset that overflows when added", WEIGHTS_, "[0,16896]", "[18446744073709551615,16895]",
         "data_offsets ["},
        {"a size never compared with the file's length", WEIGHTS_, "[0,16896]", "[0,16900]", "data_offsets [0,16900]"},
        {"a size never compared with the file's length", WEIGHTS_, "[0,16896]", "[900719925474000,900719925490896]",
         "begins at byte 16896 of the data, expected 0"}, /* the next tensor, then, is the first */
        {"[0,-1] offsets", WEIGHTS_, "[0,16896]", "[0,-1]",
         "embeddings.weight has data_offsets [0,-1], expected 16896"},
        {"negative offsets", WEIGHTS_, "[0,16896]", "[-16896,0]", "embeddings.weight has data_offsets [-16896,0]"},
        {"offsets the wrong way round", WEIGHTS_, "[0,16896]", "[16896,0]",
         "embeddings.weight has data_offsets [16896,0]"},
        {"offsets that overlap", WEIGHTS_, "[0,16896]", "[4,16900]", "begins at byte"},
        {"a negative vocabulary", CONFIG, "264", "-264", "vocab_size is -264, expected 1 to 1048576"},
        {"a huge vocabulary", CONFIG, "264", "2147483647", "vocab_size is 2147483647, expected 1 to 1048576"},
        {"an id not compared with the table", CONFIG, "eos_token_id\":0", "eos_token_id\":264",
         "eos_token_id is 264, expected -1 to 263"},
        {"an extra tensor", WEIGHTS_, "{\"__",
         "{\"extra\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},\"__",
         "unexpected tensor extra of shape [0]"},
        {"a missing tensor", WEIGHTS_, "norm_f", "norm_g", "unexpected tensor backbone.norm_g.weight"},
        {"a wrong dtype", WEIGHTS_, "F32", "I64", "dtype I64, expected F32, F16, BF16 or F64"},
        {"a dtype of another size", WEIGHTS_, "F32", "F64", "expected 33792 bytes"},
        {"a tensor twice", WEIGHTS_, "{\"__", "{\"backbone.embeddings.weight\":{\"dtype\":\"F32\",\"shape\":[264,16],"
         "\"data_offsets\":[0,16896]},\"__", "backbone.embeddings.weight occurs twice"},
        {"an untied head that is not there", CONFIG, "{", "{\"tie_word_embeddings\":false,", "lm_head.weight of shape"},
        {"the wrong config", CONFIG, "state_size\":2", "state_size\":4", "A_log has shape [32,2], expected [32,4]"},
        {"another kind of model", CONFIG, "mamba", "mamba2", "model_type is \"mamba2\", expected \"mamba\""},
        {"another kind of model", CONFIG, "mamba", "falcon_mamba",
         "model_type is \"falcon_mamba\", expected \"mamba\""},
        {"another kind of model", CONFIG, "mamba", "jamba", "model_type is \"jamba\", expected \"mamba\""},
        {"no kind of model", CONFIG, "model_type", "type", "model_type is missing"},
        {"NaN", CONFIG, "e\":16", "e\":NaN", "hidden_size is NaN, expected an integer"},
        {"NaN", CONFIG, "1e-05", "NaN", "layer_norm_epsilon is nan"},
        {"Infinity", CONFIG, "1e-05", "Infinity", "layer_norm_epsilon is inf"},
        {"Infinity", CONFIG, "e\":16", "e\":-Infinity", "hidden_size is -Infinity"},
        {"a number as a string", CONFIG, "e\":16", "e\":\"16\"", "hidden_size is 16, expected an integer"},
        {"a float for an integer", CONFIG, "e\":16", "e\":16.5", "hidden_size is 16.5, expected an integer"},
        {"a number beyond a double", CONFIG, "e\":16", "e\":1e400", "hidden_size is 1e400, expected an integer"},
        {"a negative number", CONFIG, "e\":16", "e\":-16", "hidden_size is -16, expected 1 to"},
        {"a bool for an integer", CONFIG, "e\":16", "e\":true", "hidden_size is true"},
        {"the last of two equal keys counts", CONFIG, "e\":16", "e\":16,\"hidden_size\":-3", "hidden_size is -3"},
        {"a byte order mark", CONFIG, "{", "\xef\xbb\xbf{", "config.json: not JSON"},
        {"no JSON", CONFIG, "}", "", "config.json: not JSON"},
        {"a control character in a name", WEIGHTS_, "norm_f", "\\u001b[2J\\u009b", "unexpected tensor backbone.?[2J"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *says = cases[i].says;
        int of_weights = strstr(says, "model.safetensors") || strstr(says, "lm_head") || strstr(says, "A_log");
        start_over();
        size_t n = put_changed(cases[i].file, cases[i].from, cases[i].to);
        refuses(cases[i].item, "@/bad -p x -n 1", of_weights ? WEIGHTS_ : cases[i].file, says, n);
    }
}

/* Names and values far longer than any buffer on a stack, and brackets far deeper than it. */
static void test_long(void) {
    enum { N = 1000000 };
    char *text = (char *)malloc(N + 100), *name = (char *)malloc(N);
    Result r;
    memset(name, 'x', N - 1), name[N - 1] = 0;
    snprintf(text, N + 100, "%s%s", name, "norm_f");
    start_over();
    refuses("a long tensor name", "@/bad -p x -n 1", WEIGHTS_, "unexpected tensor backbone.xxx",
            put_changed(WEIGHTS_, "norm_f", text));
    start_over();
    refuses("a long value", "@/bad -p x -n 1", CONFIG, "model_type is \"xxx", put_changed(CONFIG, "mamba", name));
    start_over();
    snprintf(text, N + 100, "{\"%s\":1,", name);
    put_changed(CONFIG, "{", text);
    accepts("a long key", "@/bad -p x -n 1");
    for (int k = 0; k < 2; k++) {
        memset(name, k ? '{' : '[', N - 1);
        start_over();
        refuses("brackets a million deep", "@/bad -p x -n 1", CONFIG, "nested deeper than 64",
                put_changed(CONFIG, "{", name));
        start_over();
        refuses("brackets a million deep", "@/bad -p x -n 1", WEIGHTS_, "nested deeper than 64",
                put_changed(WEIGHTS_, "{", name));
    }
    start_over();
    memset(name, 'y', 100000);
    put("@/prompt", name, 100000);
    r = run("@/bad -f @/prompt -n 0");
    CHECK(r.status == 0 && r.n_out == 100000 && memcmp(r.out, name, 100000) == 0); /* a long prompt */
    done(&r);
    free(text), free(name);
}

static void test_lengths(void) {
    char *file = (char *)malloc(n_weights + 1);
    static const uint64_t header[] = {0, 7, 99999999, 100000001, (uint64_t)1 << 40, UINT64_MAX};
    static const struct { size_t at; const char *bytes; size_t n; const char *item, *says; } patch[] = {
        {12, "\xff\xff\xff\xff", 4, "a negative vocabulary", "n_vocab is 4294967295"},
        {12, "\xff\xff\xff\x7f", 4, "a huge vocabulary", "n_vocab is 2147483647"},
        {12, "\x02\x01", 2, "more tokens than there are", "the file ends in token 257"},
    };
    memcpy(file, good_weights, n_weights), file[n_weights] = 0;
    start_over();
    put(WEIGHTS_, file, 8 + n_header);
    refuses("only a header: it would load as zeros", "@/bad -p x -n 1", WEIGHTS_, "0 bytes of data, but tensors of",
            n_header);
    for (size_t n = n_weights - 1; n <= n_weights + 1; n += 2) {
        put(WEIGHTS_, file, n);
        refuses("a byte less or more", "@/bad -p x -n 1", WEIGHTS_, "bytes of data, but tensors of", n_weights);
    }
    put(WEIGHTS_, file, 0);
    refuses("an empty file", "@/bad -p x -n 1", WEIGHTS_, "the file is truncated", 0);
    for (size_t i = 0; i < sizeof header / sizeof *header; i++) {
        memcpy(file, &header[i], 8);
        put(WEIGHTS_, file, n_weights);
        refuses("a header of another length", "@/bad -p x -n 1", WEIGHTS_, i < 2 ? "not JSON" : "a header of",
                n_weights);
    }
    free(file);
    for (size_t i = 0; i < sizeof patch / sizeof *patch; i++) {
        file = (char *)malloc(n_tokenizer);
        memcpy(file, good_tokenizer, n_tokenizer);
        memcpy(file + patch[i].at, patch[i].bytes, patch[i].n);
        put("@/bad/tokenizer.bin", file, n_tokenizer);
        refuses(patch[i].item, "@/bad -p x -n 1", "@/bad/tokenizer.bin", patch[i].says, n_tokenizer);
        free(file);
    }
    put("@/bad/tokenizer.bin", good_tokenizer, 20);
    refuses("only a header", "@/bad -p x -n 1", "@/bad/tokenizer.bin", "room for", 20);
    put("@/bad/tokenizer.bin", good_tokenizer, n_tokenizer - 1);
    refuses("a token longer than the file", "@/bad -p x -n 1", "@/bad/tokenizer.bin", "the file ends in token 256",
            n_tokenizer);
}

/* Ids, wherever they come from, are compared with the table. */
static void test_ids(void) {
    start_over();
    refuses("an id not compared with the table", "@/bad -n 1 --ids 264", "option --ids", "id 264, expected 0 to 263",
            0);
    refuses("an id not compared with the table", "@/bad -n 1 --ids -1", "option --ids", "id -1, expected 0 to 263", 0);
    put_text("@/ids", "5 257");
    refuses("an id not compared with the table", "@/bad --decode @/ids", "@/ids", "id 257, expected 0 to 256", 5);
    put("@/ids", "5\0006", 3);
    refuses("a NUL among the ids", "@/bad --decode @/ids", "@/ids", "is not an id", 3);
    accepts("an empty prompt", "@/bad -p '' -n 9 --ignore-eos");
}

/* A state file with recent ids beyond the table, bytes that are none, states that are no numbers: text comes out. */
static void test_state(void) {
    float wrong[] = {1e30f, -1e30f, NAN, INFINITY, 264, 3.5f};
    size_t n, data;
    char *file;
    uint64_t length;
    Result r;
    start_over();
    accepts("a state", "@/bad -p abc -n 3 --ignore-eos --save-state @/state");
    file = read_file(at("@/state"), &n);
    CHECK(file != NULL && n > 8);
    memcpy(&length, file, 8);
    data = 8 + (size_t)length; /* by name: held, recent, state */
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        for (int k = 0; k < 3; k++) {
            size_t place = data + 4 * (k == 0 ? 0 : k == 1 ? MAX_HELD + 1 : MAX_HELD + MAX_RECENT + 2);
            char *bad = (char *)malloc(n);
            memcpy(bad, file, n);
            for (int j = 0; j < 20; j++) memcpy(bad + place + 4 * j, &wrong[i], 4);
            put("@/bad_state", bad, n);
            accepts("a state of wrong numbers",
                    "@/bad -p x -n 3 --ignore-eos --repetition-penalty 1.1 --load-state @/bad_state");
            free(bad);
        }
    }
    put("@/bad_state", file, n - 1);
    r = run("@/bad -p x -n 1 --load-state @/bad_state");
    CHECK(r.status == 1 && strstr(r.error, at("@/bad_state")) != NULL && strstr(r.error, "bytes of data") != NULL);
    done(&r);
    release(file);
}

/* DIRECTORIES ================================================================================================== */

static void test_shards(void) {
    static const struct { const char *item, *index, *file, *says; } cases[] = {
        {"a path out of the directory", "{\"weight_map\":{\"x\":\"../../etc/passwd\"}}",
         "@/bad/model.safetensors.index.json",
         "weight_map names ../../etc/passwd, expected a file beside it"},
        {"an absolute path", "{\"weight_map\":{\"x\":\"/etc/passwd\"}}", "@/bad/model.safetensors.index.json",
         "weight_map names /etc/passwd, expected a file beside it"},
        {"a path in escapes", "{\"weight_map\":{\"x\":\"\\u002e\\u002e\\u002fa\"}}",
         "@/bad/model.safetensors.index.json",
         "weight_map names ../a, expected a file beside it"},
        {"the directory itself", "{\"weight_map\":{\"x\":\"..\"}}", "@/bad/..", "not a regular file"},
        {"a shard that is not there", "{\"weight_map\":{\"x\":\"a\",\"y\":\"missing\"}}", "@/bad/missing",
         "No such file"},
        {"a tensor in two shards", "{\"weight_map\":{\"x\":\"a\",\"y\":\"b\"}}", "@/bad/b",
         "tensor backbone.embeddings.weight occurs twice"},
        {"no shards", "{\"weight_map\":{}}", "@/bad/model.safetensors.index.json", "is missing"},
    };
    start_over();
    remove(at(WEIGHTS_));
    put("@/bad/a", good_weights, n_weights), put("@/bad/b", good_weights, n_weights);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        put_text("@/bad/model.safetensors.index.json", cases[i].index);
        refuses(cases[i].item, "@/bad -p x -n 1", cases[i].file, cases[i].says, strlen(cases[i].index));
    }
    put_text("@/bad/model.safetensors.index.json", "{\"weight_map\":{\"x\":\"a\",\"y\":\"a\"}}");
    accepts("two tensors in a shard", "@/bad -p x -n 1");
    remove(at("@/bad/model.safetensors.index.json"));
    put_text("@/bad/pytorch_model.bin", "PK");
    refuses("a pickle", "@/bad -p x -n 1", "@/bad/pytorch_model.bin", "from_pretrained(dir).save_pretrained(dir", 2);
    remove(at("@/bad/pytorch_model.bin"));
    refuses("no weights", "@/bad -p x -n 1", "@/bad", "has no model.safetensors", 0);
}

/* Directories, pipes that nobody writes to and devices in the place of files; links to files are as good as these. */
static void test_no_files(void) {
    static const char *const place[] = {CONFIG, WEIGHTS_, "@/bad/tokenizer.bin"};
    for (int k = 0; k < 3; k++) {
        const char *path;
        for (int kind = 0; kind < 4; kind++) {
            start_over();
            path = at(place[k]);
            remove(at("@/kept"));
            CHECK(rename(path, at("@/kept")) == 0);
            if (kind == 0) CHECK(mkdir(path, 0777) == 0);
            if (kind == 1) CHECK(mkfifo(path, 0666) == 0);
            if (kind == 2) CHECK(symlink("/dev/zero", path) == 0);
            if (kind == 3) CHECK(symlink("../kept", path) == 0);
            if (kind == 3) accepts("a link", "@/bad -p x -n 1");
            else refuses("no file", "@/bad -p x -n 1", place[k], "cannot read: not a regular file", 0);
            CHECK(remove(at(place[k])) == 0);
        }
    }
}

/* WHAT MUST LOAD =============================================================================================== */

/* A number that every type has, as this type has it; returns what follows. */
static unsigned char *put_number(unsigned char *out, float value, int type) {
    double full = value;
    int exponent;
    uint32_t bits;
    uint16_t half = (uint16_t)((int)(1024 * (2 * frexp(fabs(value), &exponent) - 1)) | (value < 0 ? 0x8000 : 0));
    half = value == 0 ? 0 : (uint16_t)(half | (exponent + 14) << 10);
    memcpy(&bits, &value, 4);
    if (type == TYPE_F64) memcpy(out, &full, 8);
    if (type == TYPE_F32) memcpy(out, &value, 4);
    if (type == TYPE_F16) memcpy(out, &half, 2);
    if (type == TYPE_BF16) bits >>= 16, memcpy(out, &bits, 2);
    return out + type_size[type];
}

/* The weights are multiples of 1/8, in this type; the embedding has this name; with `head`, a tied
   one is there, too. A head is a copy of the embedding. */
static void put_weights(int type, const char *embedding, int head) {
    static char header[1 << 14];
    static unsigned char data[1 << 18];
    unsigned char *out = data;
    char *p = header + 8, *end = header + sizeof header, shape[48];
    uint64_t length;
    Config c;
    Model m;
    FILE *file;
    CHECK(config_load(&c, at("@/bad")) == 0 && model_table(&m, &c) == 0);
    p = append(p, end, "{");
    for (int k = 0; k < m.n_tensor + head; k++) {
        const Tensor *t = &m.tensor[k % m.n_tensor];
        const char *name = k == m.n_tensor ? "lm_head.weight" : k == 0 ? embedding : t->name;
        size_t begin = (size_t)(out - data);
        uint64_t rng = strcmp(name, "lm_head.weight") == 0 ? 0 : (uint64_t)k;
        for (size_t i = 0; i < t->size; i++) out = put_number(out, (float)(random_bits(&rng) % 33) / 8 - 2, type);
        shape_text(shape, t);
        p = append(p, end, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}", k > 0 ? "," : "",
                   name,
                   type_name[type], shape, begin, (size_t)(out - data));
    }
    p = append(p, end, "}");
    length = (uint64_t)(p - header - 8);
    memcpy(header, &length, 8);
    file = fopen(at(WEIGHTS_), "wb");
    CHECK(file != NULL && fwrite(header, 1, (size_t)(p - header), file) == (size_t)(p - header));
    CHECK(fwrite(data, 1, (size_t)(out - data), file) == (size_t)(out - data) && fclose(file) == 0);
    model_free(&m);
}

/* One model in every type, with the names of the first release, with a head or tied: the same text. */
static void test_releases(void) {
    static const struct { int type; const char *embedding; int head, tied; } cases[] = {
        {TYPE_F32, "backbone.embeddings.weight", 0, 1}, {TYPE_F64, "backbone.embeddings.weight", 0, 1},
        {TYPE_F16, "backbone.embeddings.weight", 0, 1}, {TYPE_BF16, "backbone.embeddings.weight", 0, 1},
        {TYPE_F32, "backbone.embedding.weight", 0, 1}, {TYPE_F32, "backbone.embeddings.weight", 1, 1},
        {TYPE_BF16, "backbone.embedding.weight", 1, 1}, {TYPE_F32, "backbone.embeddings.weight", 0, 0},
    };
    Result first, r;
    start_over();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        put_changed(CONFIG, "{", cases[i].tied ? "{" : "{\"tie_word_embeddings\":false,");
        put_weights(cases[i].type, cases[i].embedding, cases[i].head);
        r = run("@/bad --ids 5,6,7 -n 12 --temperature 0 --ignore-eos");
        CHECK(r.status == 0 && r.n_out > 12);
        if (r.status != 0) printf("  release %zu: %s\n", i, r.error);
        if (i == 0) first = r;
        else CHECK(r.n_out == first.n_out && memcmp(r.out, first.out, r.n_out) == 0), done(&r);
    }
    done(&first);
}

int main(void) {
    CHECK(mkdtemp(work) != NULL);
    make_good();
    start_over();
    accepts("fewer states than taps", "@/bad -p x -n 20 --ignore-eos");
    put_changed(CONFIG, "{", "{\"hidden_size\":5,\"intermediate_size\":32,\"time_step_limit\":[0.0,Infinity],");
    accepts("the last of two equal keys counts", "@/bad -p x -n 1");
    test_changed();
    test_long();
    test_lengths();
    test_ids();
    test_state();
    test_shards();
    test_no_files();
    test_releases();
    release(good_weights), release(good_tokenizer);
    if (check_failed == 0) shell("rm -r @");
    return check_report();
}
