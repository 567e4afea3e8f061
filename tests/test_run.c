/* Drives run from outside over a small model that it makes: what is printed, what is refused. run.c is included, with
   another name for main: parts of it are tested alone, and "test_run run ..." is ./run as this test was compiled.
   SPDX-License-Identifier: MIT */
#include "counting.h"

#define main run_main
#include "../run.c"
#undef main
#include "check.h"
#include "work.h"

#include <sys/stat.h>
#include <sys/wait.h>

static const char *program, *limits = ""; /* this program; what to start it from */

/* What a command printed. `status` is its exit status; `error` the first 1000 bytes of standard error. */
typedef struct { Text out; char error[1000]; int status; } Result;

/* Starts run with arguments for the shell, in which @ stands for the directory. The default input is /dev/null. */
static Result run(const char *arguments) {
    Result r;
    char command[16384], *end;
    FILE *pipe;
    size_t n;
    memset(&r, 0, sizeof r);
    n = (size_t)snprintf(command, sizeof command, "</dev/null 2>%s/error %s%s run ", work, limits, program);
    expand(command + n, arguments);
    pipe = popen(command, "r");
    CHECK(pipe != NULL && read_all(pipe, command, &r.out) == 0 && text_add(&r.out, "", 1) == 0);
    r.status = pclose(pipe);
    r.status = WIFEXITED(r.status) ? WEXITSTATUS(r.status) : -1;
    r.out.n--;
    end = slurp("@/error", &n);
    snprintf(r.error, sizeof r.error, "%s", end != NULL ? end : "");
    release(end);
    return r;
}

static int same(const Text *a, const Text *b) {
    return a->n == b->n && (a->n == 0 || memcmp(a->data, b->data, a->n) == 0);
}

static void done(Result *r) { free(r->out.data); }

/* Runs and expects success and this output. */
static void expect(const char *arguments, const char *output) {
    Result r = run(arguments);
    CHECK(r.status == 0);
    CHECK(strcmp(r.out.data, output) == 0);
    if (r.status != 0 || strcmp(r.out.data, output) != 0)
        printf("  run %s\n  printed '%s', expected '%s'\n  %s\n", arguments, r.out.data, output, r.error);
    done(&r);
}

/* Runs and expects exit status 1 and one line on standard error that holds both words. */
static void refuses(const char *arguments, const char *word1, const char *word2) {
    Result r = run(arguments);
    size_t n = strlen(r.error);
    int ok = r.status == 1 && r.out.n == 0 && n > 1 && strchr(r.error, '\n') == r.error + n - 1 &&
             strstr(r.error, word1) != NULL && strstr(r.error, word2) != NULL;
    CHECK(ok);
    if (!ok) printf("  run %s\n  exit %d, said: %s\n", arguments, r.status, r.error);
    done(&r);
}

/* The model: bytes and the end of text, a vocabulary padded with ids that would be likely if they were not barred. */
enum { VOCAB = 264, N_VOCAB = 257 };

static Config small_config(void) {
    Config c;
    memset(&c, 0, sizeof c);
    c.vocab_size = VOCAB, c.d_model = 16, c.n_layer = 2, c.d_state = 4, c.d_conv = 4;
    c.expand = 2, c.dt_rank = 2, c.d_inner = 32;
    c.conv_bias = c.tied = 1, c.norm_eps = 1e-5;
    return c;
}

static void make_model(const char *name, uint64_t seed) {
    char path[4096];
    Config c = small_config();
    Model m;
    Tokenizer t;
    memset(&t, 0, sizeof t);
    snprintf(path, sizeof path, "%s/%s", work, name);
    CHECK(mkdir(path, 0777) == 0 && model_create(&m, &c) == 0);
    model_init(&m, seed);
    for (int i = 0; i < VOCAB * c.d_model; i++) m.params.embedding.full[i] *= 20; /* so that logits differ */
    for (int i = N_VOCAB * c.d_model; i < VOCAB * c.d_model; i++) m.params.embedding.full[i] *= 5;
    CHECK(model_save(&m, path) == 0);
    snprintf(path, sizeof path, "%s/%s/tokenizer.bin", work, name);
    CHECK(tokenizer_bytes(&t) == 0 && tokenizer_save(&t, path) == 0);
    tokenizer_free(&t);
    model_free(&m);
}

/* A vocabulary of five, no tokenizer, and constants: as train leaves it for a task. */
static void make_task_model(void) {
    Config c = small_config();
    Model m;
    c.vocab_size = 5, c.bos_id = c.eos_id = c.pad_id = -1, c.constant_B = 1;
    CHECK(model_create(&m, &c) == 0);
    model_init(&m, 4);
    for (size_t i = 0; i < m.n_param; i++) m.weights[i] *= 4;
    CHECK(model_save(&m, at("@/task")) == 0);
    model_free(&m);
}

/* However a text is cut into pieces, what comes out is the text, and each output ends where a character does. */
static void test_utf8(void) {
    const char text[] = "a\xC3\xA9z\xE2\x82\xAC\xF0\x9F\x90\x8D\xED\x9F\xBF\xEE\x80\x80\xF4\x8F\xBF\xBF.";
    const char invalid[] = "\xC3(\xFF\xE2\x82(\x80\x80\x80\x80\xF0\x9F\xC0\xAF\xED\xA0\x80\xF8\x88\xC3";
    const char *const whole[] = {"", "a", "\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x90\x8D", "\x80", "\xA9\xA9\xA9\xA9",
                                 "\xC0", "\xC1", "\xF5", "\xFF", "\xE0\x80", "\xED\xA0", "\xF0\x80", "\xF4\x90",
                                 "\xC3\xA9\xA9", "\xE2\x28"};
    const char *const begun[] = {"\xC3", "\xE2", "\xE2\x82", "\xF0", "\xF0\x9F", "\xF0\x9F\x90", "\xE0\xA0", "\xED\x9F",
                                 "\xF4\x8F"};
    size_t n = sizeof text - 1;
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++)
        CHECK(utf8_complete(whole[i], strlen(whole[i])) == strlen(whole[i]));
    for (size_t i = 0; i < sizeof begun / sizeof *begun; i++) CHECK(utf8_complete(begun[i], strlen(begun[i])) == 0);
    for (unsigned split = 0; split < 1u << (n - 1); split += 1 + split % 7) { /* bit i: cut after byte i */
        Stream s;
        size_t from = 0, said = 0;
        int ok = 1;
        memset(&s, 0, sizeof s);
        for (size_t i = 0; i < n; i++) {
            if (i + 1 < n && !(split >> i & 1)) continue;
            ok &= stream_put(&s, text + from, i + 1 - from, "") == 0;
            ok &= s.out.n == n || (text[s.out.n] & 0xC0) != 0x80; /* the next byte begins a character */
            ok &= s.out.n + s.held.n == i + 1 && s.held.n < 4 && s.out.n >= said;
            from = i + 1, said = s.out.n;
        }
        ok &= s.out.n == n && memcmp(s.out.data, text, n) == 0;
        if (!ok || split < 8) CHECK(ok);
        free(s.out.data), free(s.held.data);
    }
    for (size_t cut = 0; cut < sizeof invalid; cut++) {
        Stream s;
        memset(&s, 0, sizeof s);
        CHECK(stream_put(&s, invalid, cut, "") == 0);
        CHECK(stream_put(&s, invalid + cut, sizeof invalid - 1 - cut, "") == 0);
        CHECK(s.held.n == 1 && stream_flush(&s, s.held.n) == 0); /* the last byte could begin a character */
        CHECK(s.out.n == sizeof invalid - 1 && memcmp(s.out.data, invalid, s.out.n) == 0);
        free(s.out.data), free(s.held.data);
    }
}

/* The stop text in all its places, however the text is cut: never even partly printed. */
static void test_stop(void) {
    const struct { const char *text, *stop, *out; } cases[] = {
        {"one. two", ". ", "one"}, {"aaab", "aab", "a"}, {"abababac", "ababac", "ab"}, {"the end", "end", "the "},
        {"xyz", "x", ""}, {"\xC3\xA9\xE2\x82\xAC!", "\xE2\x82\xAC", "\xC3\xA9"}, {"no such", "suck", "no such"},
        {"almos", "most", "almos"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t n = strlen(cases[i].text), length = strlen(cases[i].out);
        for (unsigned split = 0; split < 1u << (n - 1); split++) {
            Stream s;
            size_t from = 0;
            int stopped = 0, ok = 1;
            memset(&s, 0, sizeof s);
            for (size_t k = 0; k < n && !stopped; k++) {
                if (k + 1 < n && !(split >> k & 1)) continue;
                stopped = stream_put(&s, cases[i].text + from, k + 1 - from, cases[i].stop);
                ok &= s.out.n <= length && strncmp(s.out.n > 0 ? s.out.data : "", cases[i].out, s.out.n) == 0;
                from = k + 1;
            }
            if (!stopped) ok &= stream_flush(&s, s.held.n) == 0;
            ok &= s.out.n == length && stopped == (length < n);
            if (!ok || split == 0) CHECK(ok);
            free(s.out.data), free(s.held.data);
        }
    }
}

/* A directory with a tokenizer.json says what one with the same tokenizer.bin says; what --encode prints is decoded. */
static void test_tokenizer_json(void) {
    char all[256 + 13], *file;
    size_t n;
    Tokenizer t;
    Result a, b;
    shell("cd @ && cp -r m json && rm json/tokenizer.bin && mkdir foreign");
    CHECK(tokenizer_bytes(&t) == 0 && tokenizer_json_save(&t, at("@/json/tokenizer.json")) == 0);
    tokenizer_free(&t);
    a = run("@/m -p 'it is' -n 40 --seed 3"), b = run("@/json -p 'it is' -n 40 --seed 3");
    CHECK(a.status == 0 && b.status == 0 && a.out.n > 5 && same(&a.out, &b.out));
    done(&a), done(&b);
    for (int c = 0; c < 256; c++) all[c] = (char)c;
    memcpy(all + 256, "<|endoftext|>", 13);
    put("@/all", all, sizeof all);
    a = run("@/m --encode @/all > @/tokens"), b = run("@/json --encode @/all | cmp - @/tokens");
    CHECK(a.status == 0 && b.status == 0);
    done(&a), done(&b);
    a = run("@/m --decode @/tokens | cmp - @/all"), b = run("@/json --decode @/tokens | cmp - @/all");
    CHECK(a.status == 0 && b.status == 0);
    done(&a), done(&b);
    shell("cp tests/fixtures/tokenizer/tokenizer.json @/foreign"); /* no model is needed */
    put("@/odd", "e\xCC\x81 \xFF\n   \xF0\x9F\x98\x80", 13);
    expect("@/foreign --encode @/odd", "311\t\\xc3\\xa9\n209\t \n171\t\\xef\n125\t\\xbf\n123\t\\xbd\n187\t\\n\n"
                                     "705\t   \n709\t\\xf0\\x9f\\x98\\x80\n");
    a = run("@/foreign --encode @/odd > @/tokens"), b = run("@/foreign --decode @/tokens > @/decoded");
    file = slurp("@/decoded", &n);
    CHECK(n == 14 && memcmp(file, "\xC3\xA9 \xEF\xBF\xBD\n   \xF0\x9F\x98\x80", 14) == 0);
    release(file);
    done(&a), done(&b);
}

static void test_output(void) {
    Result a, b;
    size_t n;
    char *file;
    expect("@/m -p 'Hello' -n 0", "Hello");
    expect("@/m -p 'Hello' -n 0 --no-echo", "");
    expect("@/m -n 0 --ids '1 2 3'", "");
    expect("--help | head -c 5", "./run");
    put("@/prompt", "from a file\n", 12);
    expect("@/m -f @/prompt -n 0", "from a file\n");
    expect("@/m -n 0 < @/prompt", "from a file");
    a = run("@/m -p 'Once' -n 40 --seed 3"), b = run("@/m -p 'Once' -n 40 --seed 3");
    CHECK(a.status == 0 && a.out.n > 4 && same(&a.out, &b.out));
    CHECK(strstr(a.error, "tokens/s") != NULL);
    done(&b);
    b = run("@/m -p 'Once' -n 40 --seed 4");
    CHECK(!same(&a.out, &b.out));
    done(&a), done(&b);
    a = run("@/m -n 300 --top-p 1 --temperature 5 --ids '5' --seed 1 --ignore-eos"); /* padding would come up */
    {
        int *ids = NULL, in_range = 1, some_end = 0;
        long count = parse_ids(a.out.data, a.out.n, "output", VOCAB, &ids);
        CHECK(count == 300 && a.out.data[a.out.n - 1] == '\n');
        for (long i = 0; i < count; i++) in_range &= ids[i] < N_VOCAB, some_end |= ids[i] == 0;
        CHECK(in_range && some_end); /* goes on after the end of text */
        release(ids);
    }
    done(&a);
    a = run("@/m -n -1 --top-p 1 --temperature 5 --ids '5' --seed 1"); /* no limit but the end of text, id 0 */
    CHECK(a.status == 0 && a.out.n > 2 && strcmp(a.out.data + a.out.n - 3, " 0\n") == 0);
    done(&a);
    a = run("@/m -n 20 --temperature 0"), b = run("@/m -n 20 --temperature 0 -p ''"); /* start from the end of text */
    CHECK(a.status == 0 && same(&a.out, &b.out));
    done(&a), done(&b);
    a = run("@/m -n 20 --temperature 0 --ids ''"), b = run("@/m -n 20 --temperature 0 --ids 0");
    CHECK(a.status == 0 && same(&a.out, &b.out));
    done(&a), done(&b);
    a = run("@/untokenized -n 5 --ids '3, 1 4'"); /* needs no tokenizer */
    CHECK(a.status == 0 && a.out.n > 5);
    done(&a);
    put("@/bytes", "tab\t\xC3\xA9\n<|endoftext|>\\", 21);
    expect("@/m --encode @/bytes", "117\tt\n98\ta\n99\tb\n10\t\\t\n196\t\\xc3\n170\t\\xa9\n11\t\\n\n0\t<|endoftext|>\n"
                                   "93\t\\x5c\n");
    a = run("@/m --encode @/bytes | cut -f 1 > @/ids");
    done(&a);
    a = run("@/m --decode @/ids > @/decoded");
    file = slurp("@/decoded", &n);
    CHECK(a.status == 0 && n == 21 && memcmp(file, "tab\t\xC3\xA9\n<|endoftext|>\\", 21) == 0);
    release(file);
    done(&a);
    test_tokenizer_json();
}

/* The end is the eos of the config or the end of text of the tokenizer, whichever comes; --ignore-eos goes on; the pad
   of the config is never sampled. */
static void test_eos(void) {
    int ended[3] = {0, 0, 0}; /* by the end of text, by eos, after 60 tokens */
    char command[200];
    shell("cp -r @/m @/eos && sed -i 's/eos_token_id\": 0/eos_token_id\": 97/; "
          "s/pad_token_id\": 0/pad_token_id\": 98/' @/eos/config.json");
    for (int seed = 1; seed <= 13; seed++) {
        int *ids = NULL, wrong = 0, n_eos = 0, ignore = seed == 13;
        Result r;
        long n;
        snprintf(command, sizeof command, "@/eos -n %d --top-p 1 --temperature 20 --ids 5 --seed %d%s",
                 ignore ? 2000 : 60,
                 seed, ignore ? " --ignore-eos" : "");
        r = run(command);
        n = parse_ids(r.out.data, r.out.n, "output", N_VOCAB, &ids);
        for (long i = 0; i < n; i++) {
            wrong += ids[i] == 98 || (!ignore && i + 1 < n && (ids[i] == 0 || ids[i] == 97));
            n_eos += ids[i] == 97;
        }
        CHECK(n > 0 && wrong == 0);
        if (ignore) CHECK(n == 2000 && n_eos > 0);
        else CHECK(n == 60 || ids[n - 1] == 0 || ids[n - 1] == 97);
        if (!ignore && n > 0) ended[ids[n - 1] == 0 ? 0 : ids[n - 1] == 97 ? 1 : 2]++;
        release(ids);
        done(&r);
    }
    CHECK(ended[0] > 0 && ended[1] > 0);
}

/* Two runs, the second from where the first left off, print what one run does; also in the middle of a character. */
static void test_state(void) {
    const char settings[] = "--repetition-penalty 1.2 --top-p 1 --ignore-eos";
    char command[500];
    Result all, first, second;
    snprintf(command, sizeof command, "@/m -p 'Once upon' -n 60 --seed 9 %s", settings);
    all = run(command);
    for (int n = 0; n <= 30; n += 5) {
        snprintf(command, sizeof command, "@/m -p 'Once upon' -n %d --seed 9 %s --save-state @/state", n, settings);
        first = run(command);
        snprintf(command, sizeof command, "@/m -p '' -n %d %s --load-state @/state", 60 - n, settings);
        second = run(command);
        CHECK(first.status == 0 && text_add(&first.out, second.out.data, second.out.n) == 0);
        CHECK(second.status == 0 && same(&first.out, &all.out));
        done(&first), done(&second);
    }
    done(&all);
    all = run("@/m -p 'One two \xF0\x9F\x90\x8D' -n 30 --seed 2"); /* reading in two goes is reading in one */
    first = run("@/m -p 'One two \xF0\x9F' -n 0 --save-state @/state");
    second = run("@/m -p '\x90\x8D' -n 30 --seed 2 --load-state @/state");
    CHECK(first.out.n == 8 && text_add(&first.out, second.out.data, second.out.n) == 0 && same(&first.out, &all.out));
    done(&all), done(&first), done(&second);
    all = run("@/m -p '' -n 9 --seed 6 --samples 2 --load-state @/state"); /* one text read, continued in two ways */
    first = run("@/m -p '' -n 9 --seed 6 --load-state @/state");
    second = run("@/m -p '' -n 9 --seed 7 --load-state @/state");
    snprintf(command, sizeof command, "--- sample 1 of 2 ---\n%s\n--- sample 2 of 2 ---\n%s\n", first.out.data,
             second.out.data);
    CHECK(all.status == 0 && strcmp(all.out.data, command) == 0);
    done(&all), done(&first), done(&second);
    refuses("@/other -p x -n 1 --load-state @/state", "state", "model is");
    refuses("@/m -p x -n 1 --load-state @/m/tokenizer.bin", "tokenizer.bin", "");
    refuses("@/m -p x -n 1 --load-state @/m/model.safetensors", "model.safetensors", "");
    refuses("@/m -p x -n 1 --load-state @/none", "none", "No such file");
    shell("cd @ && head -c 3000 state > short && cat state state > long");
    refuses("@/m -p x -n 1 --load-state @/short", "short", "");
    refuses("@/m -p x -n 1 --load-state @/long", "long", "");
    refuses("@/m -p x -n 1 --save-state @/none/state > /dev/null", "none/state", "No such file");
}

/* --logits has the logits of each position, as found by feeding one token at a time. */
static void test_logits(void) {
    const char text[] = "The quick brown fox jumps over the lazy dog 1234567890 times, and then the next; and so on.";
    char *file;
    size_t n, length = sizeof text - 1;
    Model m;
    Backend backend;
    Result r;
    static real expected[VOCAB];
    double worst = 0, largest = 0;
    put("@/text", text, length);
    r = run("@/m -f @/text -n 0 --logits @/logits");
    file = slurp("@/logits", &n);
    CHECK(r.status == 0 && n == length * VOCAB * 4);
    CHECK(model_load(&m, at("@/m")) == 0 && cpu_backend(&backend, &m, 1, 0) == 0);
    for (size_t t = 0; t < length && n == length * VOCAB * 4; t++) {
        int id = (unsigned char)text[t] + 1;
        CHECK(backend.forward(backend.self, &id, 1, expected, 0) == 0);
        for (int v = 0; v < VOCAB; v++) {
            float logit;
            memcpy(&logit, file + (t * VOCAB + v) * 4, 4);
            if (fabs(logit - expected[v]) > worst) worst = fabs(logit - expected[v]);
            if (fabs(logit) > largest) largest = fabs(logit);
        }
    }
    CHECK(largest > 1);
    CHECK_NEAR(worst, 0, 1e-5 * largest);
    release(file);
    done(&r);
    backend.close(backend.self);
    model_free(&m);
    refuses("@/m -p x -n 0 --logits @/none/logits > /dev/null", "none/logits", "No such file");
    limits = "sh -c 'trap \"\" XFSZ; ulimit -f 8; exec \"$@\"' sh "; /* as good as a full disk */
    refuses("@/m -p 'Quite a few positions' -n 0 --logits @/too_large > /dev/null", "too_large", "too large");
    limits = "";
    shell("! ls @ | grep too_large > /dev/null"); /* nothing half written is left */
}

/* Each sample of a batch is what its seed gives alone. */
static void test_samples(void) {
    Result batch = run("@/m -p 'Once' -n 30 --samples 3 --seed 11 --repetition-penalty 1.1"), alone;
    Text expected = {NULL, 0, 0};
    char line[200];
    for (int k = 0; k < 3; k++) {
        snprintf(line, sizeof line, "@/m -p 'Once' -n 30 --seed %d --repetition-penalty 1.1", 11 + k);
        alone = run(line);
        snprintf(line, sizeof line, "--- sample %d of 3 ---\n", k + 1);
        CHECK(text_add(&expected, line, strlen(line)) == 0);
        CHECK(text_add(&expected, alone.out.data, alone.out.n) == 0 && text_add(&expected, "\n", 1) == 0);
        done(&alone);
    }
    CHECK(batch.status == 0 && same(&batch.out, &expected));
    free(expected.data);
    done(&batch);
    alone = run("@/m -n 8 --temperature 0 --ids '7 8'");
    snprintf(line, sizeof line, "--- sample 1 of 2 ---\n%s--- sample 2 of 2 ---\n%s", alone.out.data, alone.out.data);
    expect("@/m -n 8 --samples 2 --temperature 0 --ids '7 8'", line);
    done(&alone);
}

/* The text ends before the stop text, which is cut from what is generated without it. */
static void test_stop_text(void) {
    Result all = run("@/m -p Q -n 40 --seed 5 --no-echo"), stopped;
    char command[300];
    CHECK(all.out.n > 20);
    for (size_t at = 3; at + 3 <= 15; at++) {
        char stop[4], quoted[64], *end = quoted;
        size_t first = 0;
        memcpy(stop, all.out.data + at, 3), stop[3] = '\0';
        if (memchr(stop, 0, 3) != NULL || stop[2] == '\n') continue; /* the shell cannot pass these on */
        while (memcmp(all.out.data + first, stop, 3) != 0) first++;
        for (int k = 0; k < 3; k++) end += sprintf(end, "\\%03o", (unsigned char)stop[k]);
        snprintf(command, sizeof command, "@/m -p Q -n 40 --seed 5 --no-echo --stop \"$(printf '%s')\"", quoted);
        stopped = run(command);
        CHECK(stopped.status == 0 && stopped.out.n == first && memcmp(stopped.out.data, all.out.data, first) == 0);
        done(&stopped);
    }
    done(&all);
}

/* Lines typed one after the other continue one state. */
static void test_interactive(void) {
    Result r, one, two;
    put("@/lines", "Once\nthen\n", 10);
    r = run("@/m -i -n 10 --temperature 0 < @/lines");
    one = run("@/m -p Once -n 10 --temperature 0 --no-echo --save-state @/state");
    two = run("@/m -p then -n 10 --temperature 0 --no-echo --load-state @/state");
    CHECK(text_add(&one.out, "\n", 1) == 0 && text_add(&one.out, two.out.data, two.out.n) == 0);
    CHECK(text_add(&one.out, "\n", 1) == 0 && r.status == 0 && same(&r.out, &one.out));
    done(&r), done(&one), done(&two);
}

/* Perplexity over several blocks is what the model says of the whole text at once. */
static void test_perplexity(void) {
    enum { N = TEXT_BLOCK + 7777 };
    char *text = (char *)allocate(N, 1);
    int *ids = (int *)allocate(N + 1, sizeof(int));
    uint64_t rng = 5;
    double loss, nats, perplexity, bits, tokens, bytes;
    Model m;
    Backend backend;
    Result r;
    for (int i = 0; i < N; i++) {
        text[i] = "etaoin shrdlu\n"[random_bits(&rng) % 14];
        ids[i + 1] = (unsigned char)text[i] + 1;
    }
    put("@/long", text, N);
    r = run("@/m --perplexity @/long");
    CHECK(model_load(&m, at("@/m")) == 0 && cpu_backend(&backend, &m, 0, 0) == 0);
    CHECK(backend.evaluate(backend.self, ids, ids + 1, N, &loss, NULL) == 0); /* ids[0] is the end of text */
    CHECK(r.status == 0);
    CHECK(sscanf(r.out.data, "%lf tokens, %lf bytes: %lf nats per token, perplexity %lf, %lf bits", &tokens, &bytes,
                 &nats, &perplexity, &bits) == 5);
    CHECK(tokens == N && bytes == N);
    CHECK_NEAR(nats, loss, 1e-5);
    CHECK_NEAR(perplexity, exp(loss), 1e-3 * exp(loss));
    CHECK_NEAR(bits, loss / log(2), 1e-5);
    done(&r);
    backend.close(backend.self);
    model_free(&m);
    release(text), release(ids);
    put("@/empty", "", 0);
    refuses("@/m --perplexity @/empty", "empty", "nothing");
    refuses("@/m --perplexity @/none", "none", "No such file");
    refuses("@/m --perplexity @/m", "/m:", "");
}

/* The right answers in a sample, from one pass over it. */
static int right_answers(Backend *b, Task *task, uint64_t seed) {
    int *tokens = (int *)malloc(2 * (size_t)task->len * sizeof *tokens), *targets = tokens + task->len;
    double loss;
    long right = 0;
    task_begin(task, seed);
    task_read(task, tokens, targets, task->len);
    CHECK(b->reset(b->self, 1) == 0 && b->evaluate(b->self, tokens, targets, task->len, &loss, &right) == 0);
    free(tokens);
    return (int)right;
}

/* A line per length from first to last, and what is right as in one pass over each sample. */
static void check_table(Backend *b, int items, int first, int last, int sequences) {
    static Task task;
    char command[200], *line;
    int wrong = 0;
    Result r;
    snprintf(command, sizeof command, "@/task --task copying --items %d --len %d:%d --sequences %d --seed 5", items,
             first,
             last, sequences);
    r = run(command);
    line = strstr(r.out.data, "|--:|");
    CHECK(r.status == 0 && line != NULL);
    for (int len = first; len <= last && line != NULL; len *= 2) {
        double length, n, right, whole, chance, answers = (double)items * sequences;
        int expected = 0, expected_whole = 0;
        line = strchr(line, '\n');
        wrong += line == NULL ||
                 sscanf(++line, "| %lf | %lf | %lf | %lf | %lf |", &length, &n, &right, &whole, &chance) != 5;
        CHECK(task_create(&task, task_find("copying"), len, 5, items) == 0);
        for (int k = 0; k < sequences; k++) {
            int answered = right_answers(b, &task, (uint64_t)(5 + k));
            expected += answered, expected_whole += answered == items;
        }
        wrong += length != len || n != sequences || fabs(chance - 100 / 3.0) > 0.005;
        wrong += fabs(right - 100 * expected / answers) > 0.005 || expected == 0;
        wrong += fabs(whole - 100. * expected_whole / sequences) > 0.005;
    }
    CHECK(wrong == 0 && line != NULL && strchr(line, '\n')[1] == 0);
    done(&r);
}

/* After a sample of two blocks one of eight allocates nothing. */
static void check_memory(const Backend *b) {
    static Run r;
    static Task task;
    int *tokens = (int *)malloc(2 * TASK_BLOCK * sizeof(int));
    r.backend = *b;
    for (int len = 2 * TASK_BLOCK; len <= 8 * TASK_BLOCK; len *= 4) {
        allocated = 0;
        CHECK(task_create(&task, task_find("induction"), len, 5, 0) == 0);
        CHECK(measure_sample(&r, &task, 3, tokens, tokens + TASK_BLOCK) >= 0);
        CHECK(task.t == len);
    }
    CHECK(allocated == 0);
    free(tokens);
}

/* The table of a task. Samples, and the questions in them, may go over several blocks of 16384 positions. */
static void test_task(void) {
    Model m;
    Backend backend;
    Result r;
    make_task_model();
    CHECK(model_load(&m, at("@/task")) == 0 && cpu_backend(&backend, &m, 1, 0) == 0);
    check_table(&backend, 900, 8600, 34400, 3);
    check_table(&backend, 2, 5, 20, 100);
    check_memory(&backend);
    r = run("@/task --task induction --sequences 2");
    CHECK(r.status == 0 && strstr(r.out.data, "\n| 256 | 2 | ") != NULL);
    done(&r);
    backend.close(backend.self);
    model_free(&m);
    refuses("@/task --task sorting", "--task", "sorting");
    refuses("@/task --task copying --len 31", "copying", "--len 31 with --items 16, expected 32 to");
    refuses("@/task --task copying --len 64:", "--len", "64:");
    refuses("@/task --task copying --len 64:32", "--len", "64:32");
    refuses("@/task --task copying --len 64:9999999999", "--len", "2^30");
    refuses("@/task --task copying --len x", "--len", "'x'");
    refuses("@/task --task recall --items 2", "recall", "--items 2 with a vocabulary of 5, expected 1 to 1");
    refuses("@/task --task copying -p a", "--task", "-p");
    refuses("@/task -p a", "tokenizer.bin", "");
}

/* Cutting at last_cut does not change the tokens, with a vocabulary that has merges, and special tokens with white
   space in them. */
static void test_cut(void) {
    static const char *const special[] = {"the cat", "mat.\n\nIt", " 12 o'"};
    const char words[] = "the cat sat on the  mat.\n\nIt's  12 o'clock,\tsaid the cat;   the mat said\r\n "
                         "nothing\xC3\xA9 \xE2\x80\x83 the\n end ";
    char text[3000];
    int whole[3000], parts[3000];
    size_t n = 0;
    Tokenizer t;
    memset(&t, 0, sizeof t);
    while (n + sizeof words < sizeof text) memcpy(text + n, words, sizeof words - 1), n += sizeof words - 1;
    CHECK(tokenizer_train(&t, text, n, 290) == 0);
    for (int k = 0; k < 4; k++) {
        long n_whole = tokenizer_encode(&t, text, n, whole);
        for (size_t block = 48; block < 300; block += 7) {
            long n_parts = 0;
            for (size_t at = 0; at < n;) {
                size_t length = n - at <= block ? n - at : last_cut(&t, text + at, block);
                CHECK(n - at <= block || length < block); /* there is a place */
                n_parts += tokenizer_encode(&t, text + at, length, parts + n_parts);
                at += length;
            }
            CHECK(n_parts == n_whole && memcmp(parts, whole, (size_t)n_whole * sizeof(int)) == 0);
        }
        if (k < 3) CHECK(add_special(&t, &t.special[k % 2], add_token(&t, special[k], strlen(special[k]))) > 0);
    }
    tokenizer_free(&t);
}

static void test_refusals(void) {
    refuses("", "directory", "--help");
    refuses("'' -p x", "directory", "--help");
    refuses("@/none", "/none", "has no tokenizer");
    refuses("@/m extra", "extra", "one directory");
    refuses("@/m --nonsense", "--nonsense", "none of this name");
    refuses("@/m -n", "-n", "N is missing");
    refuses("@/m -n x", "-n", "whole number");
    refuses("@/m -n 1x", "-n", "whole number");
    refuses("@/m -n 99999999999999999999", "-n", "whole number");
    refuses("@/m -n -2", "-n", "whole number");
    refuses("@/m --temperature -1", "--temperature", "number");
    refuses("@/m --temperature nan", "--temperature", "number");
    refuses("@/m --top-p 1.5", "--top-p", "number from 0 to 1");
    refuses("@/m --min-p ''", "--min-p", "number");
    refuses("@/m --repetition-penalty 0", "--repetition-penalty", "number");
    refuses("@/m --samples 0", "--samples", "whole number");
    refuses("@/m --samples 1000", "--samples", "whole number");
    refuses("@/m --device tpu", "--device", "tpu");
    refuses("@/m --device cpu --dtype fp3", "--dtype", "fp32");
    refuses("@/m -p a -f b", "-p", "-f");
    refuses("@/m --ids 1 -p a", "--ids", "-p");
    refuses("@/m --samples 2 -i", "--samples", "-i");
    refuses("@/m -f @/none", "none", "No such file");
    refuses("@/m -f @/m", "/m", "directory");
    refuses("@/m --ids '1 x'", "--ids", "'x' is not an id");
    refuses("@/m --ids '1 264'", "--ids", "id 264, expected 0 to 263");
    refuses("@/m --ids '-1'", "--ids", "id -1");
    refuses("@/m --ids '99999999999999999999'", "--ids", "expected 0 to 263");
    refuses("@/m --ids '0x10'", "--ids", "is not an id");
    refuses("@/m --decode @/prompt", "prompt", "'from' is not an id");
    refuses("@/m --decode @/none", "none", "No such file");
    refuses("@/m --encode @/none", "none", "No such file");
    refuses("@/untokenized -p x", "untokenized", "has no tokenizer");
    refuses("@/bad_tokenizer -p x", "tokenizer.bin", "");
    refuses("@/large_tokenizer -p x", "large_tokenizer", "vocab_size");
    refuses("@/truncated -p x", "truncated", "");
    if (access("/dev/full", W_OK) == 0) {
        Result r = run("@/m -p x -n 1 > /dev/full");
        CHECK(r.status == 1 && strstr(r.error, "standard output") != NULL);
        done(&r);
        r = run("@/m --decode @/ids > /dev/full");
        CHECK(r.status == 1 && strstr(r.error, "standard output") != NULL);
        done(&r);
    }
}

/* Directories with something wrong in them. */
static void make_bad_models(void) {
    shell("cd @ && cp -r m untokenized && rm untokenized/tokenizer.bin && cp -r m large_tokenizer && "
          "cp -r m bad_tokenizer && head -c 100 m/tokenizer.bin > bad_tokenizer/tokenizer.bin && cp -r m truncated && "
          "for f in m/model.*; do head -c 5000 $f > truncated/${f##*/}; done");
    {
        Tokenizer t;
        const char text[] = "ab ac ad ae af ag ba bc bd be bf bg ca cb cd ab ac ad ae af ag ba bc bd be bf bg ca cb cd";
        memset(&t, 0, sizeof t);
        CHECK(tokenizer_train(&t, text, sizeof text - 1, 270) == 0);
        CHECK(tokenizer_save(&t, at("@/large_tokenizer/tokenizer.bin")) == 0);
        tokenizer_free(&t);
    }
}

/* --dtype bf16 is the model whose matrices are rounded, whatever their type in memory; a state belongs to values. */
static void test_dtype(void) {
    Model half, full;
    Result one, two;
    CHECK(model_load(&full, at("@/m")) == 0 && model_load_as(&half, at("@/m"), TYPE_BF16) == 0);
    for (int i = 0; i < full.n_tensor; i++)
        convert(full.weights + full.tensor[i].offset, (unsigned char *)(half.weights + half.tensor[i].offset),
                full.tensor[i].size, half.tensor[i].type);
    CHECK(model_save(&full, at("@/rounded")) == 0);
    model_free(&full);
    model_free(&half);
    shell("cp @/m/tokenizer.bin @/rounded");
    one = run("@/rounded -p Once -n 40 --seed 3");
    two = run("@/m -p Once -n 40 --seed 3 --device cpu --dtype bf16");
    CHECK(one.status == 0 && two.status == 0 && same(&one.out, &two.out));
    CHECK(strstr(two.error, ", bf16:") != NULL && strstr(one.error, "bf16") == NULL);
    done(&two);
    two = run("@/rounded -p Once -n 15 --seed 3 --save-state @/state");
    CHECK(two.status == 0);
    done(&two);
    two = run("@/m -p '' -n 25 --device cpu --dtype bf16 --load-state @/state");
    CHECK(two.status == 0 && two.out.n > 0 && strcmp(one.out.data + one.out.n - two.out.n, two.out.data) == 0);
    done(&one), done(&two);
    refuses("@/m -p x -n 1 --device cpu --dtype fp32 --load-state @/state", "state", "model is");
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "run") == 0) return run_main(argc - 1, argv + 1);
    program = argv[0];
    CHECK(mkdtemp(work) != NULL && setenv("OMP_NUM_THREADS", "1", 1) == 0);
    make_model("m", 1);
    make_model("other", 2);
    make_bad_models();
    test_utf8();
    test_stop();
    test_cut();
    test_output();
    test_eos();
    test_state();
    test_logits();
    test_samples();
    test_stop_text();
    test_interactive();
    test_perplexity();
    test_dtype();
    test_task();
    test_refusals();
    if (check_failed == 0) shell("rm -r @");
    return check_report();
}
