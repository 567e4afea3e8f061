/* train.c: that the entropy of the stories is exact, that every held-out token is measured once, that the samples of
   the tasks are what section 9 of mamba.c says, and what the program does from outside: runs that go on bit for bit,
   Ctrl-C, output in a pipe, refusals. Called with "train" as the first argument, this program is ./train, so that it is
   tested as it was built here, sanitizers included.
   SPDX-License-Identifier: MIT */
#include <stdlib.h>

/* No file here is so large that it justifies more. */
static void *modest_calloc(size_t n, size_t size) { return n > ((size_t)1 << 28) / size ? NULL : calloc(n, size); }

#define calloc modest_calloc
#define main train_main
#include "../train.c"
#undef main
#include "check.h"
#include "work.h"

#include <fcntl.h>
#include <sys/wait.h>

static char program[PATH_SIZE];

#if defined(__SANITIZE_ADDRESS__)
enum { N_STORY = 3000 };
#else
enum { N_STORY = 100000 };
#endif

/* STORIES ====================================================================================================== */

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Reading finds the choices again, and at none of them does a second alternative fit: story_choose would slip. */
static void test_stories_are_unambiguous(void) {
    static Story told, read;
    uint64_t *hash = (uint64_t *)malloc(N_STORY * sizeof *hash);
    size_t longest = 0;
    int slips = 0, twice = 0;
    for (int k = 0; k < N_STORY; k++) {
        story_write(&told, (uint64_t)k);
        slips += !story_read(&read, told.text) || strcmp(read.text, told.text) != 0;
        slips += fabs(read.nats - told.nats) > 1e-9;
        for (int c = 'a'; c <= 'z'; c++) slips += read.called[c] != told.called[c];
        if (told.n > longest) longest = told.n;
        hash[k] = hash_bytes(FNV_START, told.text, told.n);
    }
    qsort(hash, N_STORY, sizeof *hash, by_value);
    for (int k = 1; k < N_STORY; k++) twice += hash[k] == hash[k - 1];
    CHECK(slips == 0);
    CHECK(twice == 0); /* at 55 nats a story, two of them are the same with a chance of 1e-14 */
    CHECK(longest < sizeof told.text / 2);
    free(hash);
}

/* A text with one fact wrong, or cut short, or with more after its end, is no story. */
static void test_other_texts_are_refused(void) {
    static Story told, read;
    char text[sizeof told.text];
    int accepted = 0;
    for (int k = 0; k < 200; k++) {
        size_t at;
        story_write(&told, (uint64_t)k);
        memcpy(text, told.text, told.n + 1);
        at = told.n * (size_t)k / 200;
        text[at] = text[at] == 'q' ? 'x' : 'q';
        accepted += story_read(&read, text) || read.n > at;
        memcpy(text, told.text, told.n + 1);
        text[at] = 0;
        accepted += story_read(&read, text);
        memcpy(text, told.text, told.n + 1);
        strcat(text, " ");
        accepted += story_read(&read, text);
    }
    CHECK(accepted == 0);
    CHECK(!story_read(&read, ""));
    memset(&told, 0, sizeof told);
    told.script = "abc";
    story_tell(&told, "{a|ab}c"); /* two alternatives fit: the texts would not tell the choices */
    CHECK(told.slipped);
}

/* A small grammar, whose texts can be counted: the probability of each is exp(-nats), and they sum to 1. */
static void test_probabilities(void) {
    enum { N_DRAW = 60000, MOST = 64 };
    static Story s;
    static char text[MOST][64];
    double probability[MOST], sum = 0, worst = 0;
    int count[MOST] = {0}, n = 0, wrong = 0;
    for (int k = 0; k < N_DRAW; k++) {
        int i = 0;
        memset(&s, 0, sizeof s);
        s.rng = (uint64_t)k;
        story_tell(&s, "{one|two <x=climber> {and|or} <y=digger>|three <x=climber>, <y+climber>}.");
        while (i < n && strcmp(text[i], s.text) != 0) i++;
        if (i == n) {
            memcpy(text[n], s.text, sizeof text[n] - 1); /* they are shorter */
            probability[n] = exp(-s.nats), sum += probability[n++];
        }
        wrong += fabs(probability[i] - exp(-s.nats)) > 1e-12;
        count[i]++;
    }
    CHECK(n == 1 + 3 * 2 * 5 + 3 * 2 && wrong == 0);
    CHECK_NEAR(sum, 1, 1e-12);
    for (int i = 0; i < n; i++) {
        double deviation = fabs(count[i] - N_DRAW * probability[i]) / sqrt(N_DRAW * probability[i]);
        if (deviation > worst) worst = deviation;
    }
    CHECK(worst < 5);
}

/* DATA ========================================================================================================= */

static void write_text(const char *name, size_t n) {
    char *text = (char *)malloc(n + 1);
    uint64_t rng = n;
    for (size_t i = 0; i < n; i++) text[i] = (char)("etaoin shrdlu\n\xc3\xa9"[random_bits(&rng) % 16]);
    put(name, text, n);
    free(text);
}

/* Loads data as the program would, given these arguments. */
static void open_data(Data *d, const char *arguments) {
    static char text[PATH_SIZE];
    char *argv[32], *word;
    int argc = 1;
    expand(text, arguments);
    argv[0] = program;
    for (word = strtok(text, " "); word != NULL; word = strtok(NULL, " ")) argv[argc++] = word;
    memset(d, 0, sizeof *d);
    memset(&o, 0, sizeof o);
    memset(option_given, 0, sizeof option_given);
    CHECK(parse_options(argc, argv) == 0 && load_data(d, program) == 0);
}

/* Every held-out token is predicted by one row, with at least a window before it, and they spell the held-out bytes. */
static void test_rows(const char *arguments) {
    Data d;
    int *times, wrong = 0;
    double nats = 0, told = 0;
    size_t bytes = 0, n;
    open_data(&d, arguments);
    times = (int *)calloc((size_t)d.n, sizeof *times);
    for (int i = 0; i < d.n_row; i++) {
        const Row *row = &d.row[i];
        wrong += row->to > d.row_len || row->start < 0 || row->start + row->to >= d.n;
        wrong += d.is_stories ? d.ids[row->start] != d.tokenizer.end_of_text || row->from != 0 : row->from < 50;
        for (int t = row->from; t < row->to; t++) times[row->start + t + 1]++;
        nats += row->nats;
    }
    for (long i = 0; i < d.n; i++) {
        int is_held = i >= d.n_train + d.is_stories; /* the <|endoftext|> before a story is there to begin with */
        wrong += times[i] != is_held;
        tokenizer_piece(&d.tokenizer, d.ids[i], &n);
        if (is_held) bytes += n;
    }
    CHECK(wrong == 0);
    if (d.is_stories) {
        static Story s;
        n = 0;
        for (int k = 54; k < 60; k++) story_write(&s, (uint64_t)k), told += s.nats, n += s.n + strlen(END_OF_TEXT);
        CHECK_NEAR(nats, told, 1e-9);
        CHECK(bytes == n);
    } else {
        CHECK(bytes == 1000 || bytes == 999); /* of 10000; the cut is not within the two bytes of a character */
    }
    free(times);
    data_free(&d);
}

/* Windows of stories hold whole stories; and where <|endoftext|> is not in the text, some windows begin with one. */
static void test_windows(void) {
    enum { BATCH = 64, LEN = 600 };
    Data d;
    int *tokens = (int *)malloc(BATCH * LEN * sizeof(int)), *targets = (int *)malloc(BATCH * LEN * sizeof(int));
    int wrong = 0, n_end = 0;
    uint64_t rng = 1;
    open_data(&d, "stories -o x --stories 60 --batch 64 --len 600");
    draw_windows(&d, &rng, tokens, targets);
    for (int b = 0; b < BATCH; b++) {
        wrong += tokens[b * LEN] != d.tokenizer.end_of_text;
        for (int t = 1; t < LEN; t++) wrong += tokens[b * LEN + t] != targets[b * LEN + t - 1];
    }
    CHECK(wrong == 0);
    d.is_stories = d.has_ends = 0;
    draw_windows(&d, &rng, tokens, targets);
    for (int b = 0; b < BATCH; b++) n_end += tokens[b * LEN] == d.tokenizer.end_of_text;
    CHECK(n_end > 0 && n_end < 30);
    free(tokens);
    free(targets);
    data_free(&d);
}

/* TASKS ======================================================================================================== */

enum { LONGEST = 300, N_SAMPLE = 4000 };

static Task task;
static int tokens[LONGEST], targets[LONGEST];

static void open_task(const char *name, int len, int vocab, int items) {
    CHECK(task_create(&task, task_find(name), len, vocab, items) == 0);
}

/* The sample of a seed; whether it has as many questions as there are items. */
static int read_sample(int seed) {
    int n = 0, counted;
    task_begin(&task, (uint64_t)seed);
    counted = task_read(&task, tokens, targets, task.len);
    for (int t = 0; t < task.len; t++) n += targets[t] >= 0;
    return n == task.items && counted == n;
}

/* A sample is the same in one piece and in several, and another seed's is another. */
static void test_samples(const char *name, int len, int vocab, int items) {
    int first[LONGEST], part[LONGEST], answer[LONGEST], n = 0;
    open_task(name, len, vocab, items);
    CHECK(read_sample(7));
    memcpy(first, tokens, sizeof first);
    task_begin(&task, 7);
    for (int t = 0, step = 1; t < len; t += step, step = min_int(step + 2, len - t))
        n += task_read(&task, part + t, answer + t, step);
    CHECK(n == items && memcmp(part, tokens, len * sizeof *part) == 0);
    CHECK(memcmp(answer, targets, len * sizeof *part) == 0);
    CHECK(read_sample(8) && memcmp(first, tokens, len * sizeof *first) != 0);
}

/* Whether a count of N_SAMPLE samples is what a probability lets expect. */
static int is_likely(int count, double p) { return fabs(count - N_SAMPLE * p) <= 5 * sqrt(N_SAMPLE * p * (1 - p)); }

static void test_copying(int len, int vocab, int items) {
    int wrong = 0, seen_first = 0, seen_last = 0, seen_one = 0;
    open_task("copying", len, vocab, items);
    CHECK(task.n_answer == vocab - 2);
    for (int k = 0; k < N_SAMPLE; k++) {
        int n = 0;
        wrong += !read_sample(k);
        for (int t = 0; t < len - items; t++) {
            wrong += targets[t] != -1 || tokens[t] < 0 || tokens[t] > vocab - 2;
            if (tokens[t] > 0 && n < items) wrong += targets[len - items + n++] != tokens[t];
            else wrong += tokens[t] > 0;
        }
        for (int t = len - items; t < len; t++) wrong += tokens[t] != vocab - 1;
        wrong += n != items;
        seen_first += tokens[0] > 0, seen_last += tokens[len - items - 1] > 0, seen_one += targets[len - 1] == 1;
    }
    CHECK(wrong == 0);
    CHECK(is_likely(seen_first, (double)items / (len - items)) && is_likely(seen_last, (double)items / (len - items)));
    CHECK(is_likely(seen_one, 1.0 / (vocab - 2)));
}

static void test_induction(int len, int vocab) {
    int wrong = 0, at_first = 0, at_last = 0, seen_zero = 0;
    open_task("induction", len, vocab, 1);
    CHECK(task.n_answer == vocab - 1);
    for (int k = 0; k < N_SAMPLE; k++) {
        int trigger = 0;
        wrong += !read_sample(k) || tokens[len - 1] != vocab - 1;
        while (trigger < len - 1 && tokens[trigger] != vocab - 1) trigger++;
        wrong += trigger > len - 3 || targets[len - 1] != tokens[trigger + 1];
        for (int t = 0; t < len - 1; t++)
            wrong += targets[t] != -1 || tokens[t] < 0 || (tokens[t] >= vocab - 1 && t != trigger);
        at_first += trigger == 0, at_last += trigger == len - 3, seen_zero += targets[len - 1] == 0;
    }
    CHECK(wrong == 0);
    CHECK(is_likely(at_first, 1.0 / (len - 2)) && is_likely(at_last, 1.0 / (len - 2)));
    CHECK(is_likely(seen_zero, 1.0 / (vocab - 1)));
}

static void test_recall(int len, int vocab, int items) {
    int wrong = 0, next_to = 0, is_first = 0, half = vocab / 2;
    open_task("recall", len, vocab, items);
    CHECK(task.n_answer == vocab - half);
    for (int k = 0; k < N_SAMPLE; k++) {
        int *asked = (int *)calloc((size_t)vocab, sizeof *asked);
        wrong += !read_sample(k);
        for (int i = 0; i < items; i++) {
            int key = tokens[2 * i], value = tokens[2 * i + 1];
            wrong += key < 1 || key >= half || value < half || value >= vocab || asked[key] > 0 || asked[value] > 0;
            asked[key] = value, asked[value] = 1;
        }
        for (int t = 0; t < len; t++) {
            wrong += tokens[t] < 0 || tokens[t] >= vocab;
            if (targets[t] < 0) continue;
            wrong += t < 2 * items || t % 2 != 0 || tokens[t] >= half || targets[t] != asked[tokens[t]];
            asked[tokens[t]] = 0; /* once only */
        }
        next_to += targets[2 * items] >= 0, is_first += targets[2 * items] == tokens[1];
        free(asked);
    }
    CHECK(wrong == 0);
    if (items == 1) CHECK(is_likely(next_to, log(2) / log(len / 2))); /* 1/k, in bins: log of (k + 1) / k */
    else CHECK(next_to > is_first && is_first > N_SAMPLE / items / 4);
}

static void test_task_limits(void) {
    int copying = task_find("copying"), recall = task_find("recall");
    CHECK(task_find("stories") == N_TASK && task_create(&task, copying, 0, 0, 0) == 0);
    CHECK(task.len == 4096 && task.vocab == 16 && task.items == 16);
    CHECK(task_create(&task, copying, 31, 0, 0) != 0 && strstr(error_message, "--len 31 with --items 16") != NULL);
    CHECK(task_create(&task, copying, 0, 3, 0) != 0 && strstr(error_message, "(--vocab-size) of 3") != NULL);
    CHECK(task_create(&task, copying, 0, 0, MAX_ITEMS) == 0 && task_create(&task, copying, 0, 0, MAX_ITEMS + 1) != 0);
    CHECK(task_create(&task, recall, 28, 16, 7) == 0 && task_create(&task, recall, 28, 16, 8) != 0);
    CHECK(task_create(&task, task_find("induction"), 0, 0, 2) != 0 && strstr(error_message, "1 to 1") != NULL);
    CHECK(task_create(&task, copying, 1LL << 31, 0, 0) != 0 && task_create(&task, copying, -1, 0, 0) != 0);
}

/* What a batch is trained on: a sample in each row; with --every-token, the next token where there is no question. */
static void test_draws(void) {
    enum { BATCH = 3, LEN = 40 };
    Data d;
    int drawn[BATCH * LEN], wanted[BATCH * LEN], all[BATCH * LEN], wrong = 0;
    uint64_t rng = 5;
    open_data(&d, "recall -o x --batch 3 --len 40 --vocab-size 24 --items 5");
    d.kind->draw(&d, &rng, drawn, wanted);
    rng = 5, o.every_token = 1;
    d.kind->draw(&d, &rng, drawn, all);
    for (int b = 0; b < BATCH; b++) {
        int n = 0;
        for (int t = 0; t < LEN; t++) {
            int *at = &wanted[b * LEN + t];
            n += *at >= 0;
            wrong += all[b * LEN + t] != (*at >= 0 || t == LEN - 1 ? *at : drawn[b * LEN + t + 1]);
        }
        wrong += n != 5;
    }
    CHECK(wrong == 0 && memcmp(drawn, drawn + LEN, LEN * sizeof *drawn) != 0);
    data_free(&d);
}

/* The accuracies are those of the logits, counted here. */
static void test_measure(void) {
    static real logits[50 * 9];
    Config c = {9, 6, 1, 3, 4, 2, 1, 12, 0, 1, 1, 1e-5, -1, -1, -1, 0, 0, 0};
    Score score;
    Model m;
    Backend b;
    Data d;
    long right = 0, whole = 0;
    memset(&score, 0, sizeof score);
    open_data(&d, "copying -o x --batch 2 --len 50 --vocab-size 9 --items 2");
    CHECK(d.n_vocab == 9 && model_create(&m, &c) == 0 && cpu_backend(&b, &m, 1, 0) == 0);
    model_init(&m, 3);
    for (size_t i = 0; i < m.n_param; i++) m.weights[i] *= 3;
    CHECK(d.kind->measure(&d, &b, 50 * 300 - 49, &score) == 0);
    task = d.task;
    for (int k = 0; k < 300; k++) {
        int good = 0;
        CHECK(read_sample(k) && b.reset(b.self, 1) == 0 && b.forward(b.self, tokens, 50, logits, 1) == 0);
        for (int t = 48; t < 50; t++) {
            int best = 0;
            for (int j = 1; j < 9; j++) best = logits[t * 9 + j] > logits[t * 9 + best] ? j : best;
            good += best == targets[t];
        }
        right += good, whole += good == 2;
    }
    CHECK(score.n_tokens == 600 && score.n_samples == 300 && score.right == right && score.samples_right == whole);
    CHECK(whole > 0 && right > 2 * whole);
    memset(&score, 0, sizeof score);
    CHECK(d.kind->measure(&d, &b, 0, &score) == 0 && score.n_samples == 500 && score.n_tokens == 1000);
    b.close(b.self);
    model_free(&m);
    data_free(&d);
}

/* THE PROGRAM ================================================================================================== */

/* Runs the program in a shell, after `before`; the exit status. Output goes to @/out and @/err. */
static int run(const char *before, const char *arguments) {
    char line[8192];
    int status;
    snprintf(line, sizeof line, "%s %s train %s >@/out 2>@/err </dev/null", before, program, arguments);
    status = system(at(line));
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

#define TINY_TASK " --d-model 8 --n-layer 1 --d-state 4 --batch 2 --len 32 "
#define TINY TINY_TASK "--sample-tokens 8 --held-out 0.03 "

static void expect_success(const char *arguments) {
    int status = run("", arguments);
    size_t n;
    char *error = slurp("@/err", &n);
    CHECK(status == 0 && n == 0);
    if (status != 0 || n != 0) printf("  train %s\n  exit status %d: %s\n", arguments, status, error);
    release(error);
}

/* Exit status 1, one line on standard error that has both words, and no new directory, @/new. */
static void expect_refusal_after(const char *before, const char *arguments, const char *word, const char *other) {
    int status = run(before, arguments), good;
    size_t n;
    char *error = slurp("@/err", &n);
    good = status == 1 && n > 0 && strchr(error, '\n') == error + n - 1 && strstr(error, word) != NULL &&
           strstr(error, other) != NULL;
    CHECK(good && !exists("@/new"));
    if (!good) printf("  train %s\n  exit status %d, expected 1 and a line with '%s', '%s': %s\n", arguments, status,
                      word, other, error);
    release(error);
}

static void expect_refusal(const char *arguments, const char *word, const char *other) {
    expect_refusal_after("", arguments, word, other);
}

/* A run in one piece and in pieces leaves the same bytes, whatever was measured, sampled or saved in between. */
static void test_resume(void) {
    expect_success("stories -o @/whole --steps 24 --stories 40 --accumulate 2" TINY);
    expect_success("stories -o @/parts --steps 24 --stories 40 --accumulate 2 --stop 7" TINY
                   "--eval-every 3 --sample-every 2 --save-every 5");
    CHECK(!is_same("@/whole/model.safetensors", "@/parts/model.safetensors"));
    expect_success("--resume -o @/parts --stop 8");
    expect_success("--resume stories -o @/parts --lr 5e-3 --steps 24 "
                   "--eval-every 100 --sample-every 200 --save-every 1000");
    CHECK(is_same("@/whole/model.safetensors", "@/parts/model.safetensors"));
    CHECK(is_same("@/whole/optimizer.safetensors", "@/parts/optimizer.safetensors"));
    CHECK(is_same("@/whole/config.json", "@/parts/config.json"));
    CHECK(is_same("@/whole/tokenizer.bin", "@/parts/tokenizer.bin"));
    expect_success("@/text -o @/whole2 --tokenizer bytes --steps 6 --seed 5" TINY);
    expect_success("@/text -o @/parts2 --tokenizer bytes --steps 6 --seed 5 --stop 3" TINY);
    expect_success("--resume -o @/parts2");
    CHECK(is_same("@/whole2/optimizer.safetensors", "@/parts2/optimizer.safetensors"));
    expect_success("@/text -o @/other --tokenizer bytes --steps 6 --seed 6" TINY);
    CHECK(!is_same("@/whole2/model.safetensors", "@/other/model.safetensors"));
    expect_refusal("--resume -o @/whole", "/whole", "complete");
    expect_refusal("--resume -o @/none", "none/config.json", "");
}

/* A line per logged step, in order, also after a resume from an earlier step than the last line. */
static void test_log(void) {
    static const char header[] = "step,tokens,seconds,learning_rate,loss,gradient_norm,held_out_nats_per_token,";
    long step = 0, lines = 0, bad = 0, measured = 0;
    char *text, *line;
    size_t n;
    expect_success("stories -o @/log --steps 12 --stories 40 --log-every 2 --eval-every 4 --stop 6" TINY);
    shell("printf '8,512,9.00,0,0,0,,,\\n' >>@/log/log.csv");
    expect_success("--resume -o @/log");
    text = slurp("@/log/log.csv", &n);
    CHECK(strncmp(text, header, strlen(header)) == 0);
    for (line = strchr(text, '\n') + 1; *line != 0; line = strchr(line, '\n') + 1, lines++) {
        double tokens, loss, held, bits, least;
        int fields = sscanf(line, "%*d,%lf,%*f,%*f,%lf,%*f,%lf,%lf,%lf", &tokens, &loss, &held, &bits, &least);
        bad += atol(line) != step + 2 || tokens != 64 * (double)atol(line) || !(loss > 1 && loss < 8);
        step = atol(line);
        if (fields == 5) bad += !(least > 0.1 && least < held && bits > 0 && bits < held / log(2));
        measured += fields == 5;
        bad += fields != (step % 4 == 0 ? 5 : 2);
    }
    CHECK(lines == 6 && measured == 3 && bad == 0);
    release(text);
}

/* Ctrl-C: what was done is saved, the exit status is 0, and the run goes on as if nothing had been. */
static void test_interrupt(void) {
    static char path[PATH_SIZE], arguments[2048], *argv[64], *word;
    int status = -1, n = 0;
    expand(path, "@/stopped/log.csv");
    expand(arguments, "train stories -o @/stopped --steps 300 --stories 40 --log-every 1" TINY);
    argv[n++] = program;
    for (word = strtok(arguments, " "); word != NULL; word = strtok(NULL, " ")) argv[n++] = word;
    pid_t child = fork();
    if (child == 0) {
        int to = open("/dev/null", O_WRONLY);
        dup2(to, 1);
        execv(program, argv);
        _exit(127);
    }
    for (int i = 0; i < 6000; i++) { /* until some steps are done */
        size_t size = 0;
        char *text = exists("@/stopped/log.csv") ? read_file(path, &size) : NULL;
        release(text);
        if (size > 300) break;
        usleep(5000);
    }
    CHECK(kill(child, SIGINT) == 0 && waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(exists("@/stopped/optimizer.safetensors") && exists("@/stopped/model.safetensors"));
    expect_success("--resume -o @/stopped");
    expect_success("stories -o @/unstopped --steps 300 --stories 40 --log-every 1" TINY);
    CHECK(is_same("@/stopped/optimizer.safetensors", "@/unstopped/optimizer.safetensors"));
}

/* In a pipe, lines; no carriage return and no escape. Held-out loss, the floor and a sample are there. */
static void test_output(void) {
    char *text;
    size_t n;
    expect_success("stories -o @/output --steps 4 --stories 40 --eval-every 2" TINY);
    text = slurp("@/out", &n);
    CHECK(strchr(text, '\r') == NULL && strchr(text, 27) == NULL);
    CHECK(strstr(text, "\nstep 2  0:0") != NULL && strstr(text, "\nstep 4  0:00 left  ") != NULL);
    CHECK(strstr(text, " nats/token, ") != NULL && strstr(text, " bits/byte (floor 0.") != NULL);
    CHECK(strstr(text, " tokens/s  loss ") != NULL && strstr(text, "of 16 samples are stories") != NULL);
    release(text);
    CHECK(run("", "--help") == 0);
    text = slurp("@/out", &n);
    for (int i = 0; i < N_OPTION; i++) CHECK(strstr(text, option[i].name) != NULL);
    release(text);
}

/* A run in minutes ends in time, its rate has decayed, and its last line has the loss and the norm of the last step,
   also where none was logged before. */
static void test_minutes(void) {
    char *text, *last;
    double rate, loss, norm;
    size_t n;
    expect_success("stories -o @/minutes --minutes 0.02 --stories 40 --log-every 1000000 --eval-every 0" TINY);
    text = slurp("@/minutes/log.csv", &n);
    text[n - 1] = 0;
    last = strrchr(text, '\n') + 1;
    CHECK(sscanf(last, "%*d,%*f,%*f,%lf,%lf,%lf", &rate, &loss, &norm) == 3 && rate < 1e-3 && loss > 0 && norm > 0);
    release(text);
}

static void test_init(void) {
    expect_success("@/text -o @/fresh --tokenizer bytes --steps 30 --eval-every 0 --log-every 1" TINY);
    expect_success("@/text -o @/tuned --init @/fresh --steps 1 --lr 0 --lr-min 0 --batch 2 --len 32 --sample-tokens 8");
    CHECK(is_same("@/fresh/model.safetensors", "@/tuned/model.safetensors"));
    CHECK(is_same("@/fresh/tokenizer.bin", "@/tuned/tokenizer.bin"));
    expect_success("@/text -o @/json --tokenizer tests/fixtures/tokenizer/tokenizer.json --steps 2" TINY);
    CHECK(!exists("@/json/tokenizer.bin") && exists("@/json/tokenizer_config.json"));
    shell("cmp tests/fixtures/tokenizer/tokenizer.json @/json/tokenizer.json");
    shell("cd @/json && "
          "echo '{\"eos_token\": \"<|endoftext|>\"}' | tee special_tokens_map.json >tokenizer_config.json");
    expect_success("@/text -o @/json2 --init @/json --steps 4 --stop 2 --batch 2 --len 32 --sample-tokens 8");
    expect_success("--resume -o @/json2");
    shell("cd @ && for f in tokenizer.json tokenizer_config.json special_tokens_map.json; do "
          "cmp json/$f json2/$f; done");
    expect_success("stories -o @/json3 --init @/json2 --stories 40 --steps 2 --batch 2 --len 32 --sample-tokens 8");
    expect_refusal("@/text -o @/new --init @/fresh --d-model 8", "--init", "--d-model");
    expect_refusal("@/text -o @/new --init @/nothing", "nothing", "has no tokenizer");
    shell("cp -r @/fresh @/broken && head -c 3000 @/fresh/model.safetensors >@/broken/model.safetensors");
    expect_refusal("@/text -o @/new --init @/broken", "broken/model.safetensors", "");
}

/* A run's files that say something else than train writes: each is named. */
static void test_lies(void) {
    static const struct { const char *from, *to, *says; } lie[] = {
        {"step\":\"3\"", "step\":\"0\"", "step or seconds"}, {"step\":\"3\"", "step\":\"x\"", "step or seconds"},
        {"seconds\":\"0.000", "seconds\":\"1.e99", "step or seconds"}, {"seconds\":\"0", "seconds\":\"n",
         "step or seconds"},
        {"lean\":\"0\"", "lean\":\"5\"", "option --lean: '5' is not"},
        {"batch\":\"2\"", "batch\":\"0\"", "option --batch: '0' is not"},
    };
    char line[500];
    for (size_t i = 0; i < sizeof lie / sizeof *lie; i++) {
        shell("cp -r @/parts3 @/lies");
        snprintf(line, sizeof line, "LC_ALL=C sed -i 's/%s/%s/' @/lies/optimizer.safetensors", lie[i].from, lie[i].to);
        shell(line);
        expect_refusal("--resume -o @/lies", "lies/optimizer.safetensors", lie[i].says);
        shell("rm -r @/lies");
    }
    shell("cp -r @/parts3 @/lies && sed -i 's/hidden_size\": 8/hidden_size\": 16384/; "
          "s/vocab_size\": [0-9]*/vocab_size\": 1048576/; "
          "s/intermediate_size\": 16/intermediate_size\": 32768/' @/lies/config.json");
    expect_refusal("--resume -o @/lies", "lies/optimizer.safetensors",
                   "expected [1048576,16384]"); /* not: out of memory */
    shell("rm -r @/lies");
}

/* A task is trained like a text: it resumes bit for bit. The rest of a model may be constant. */
static void test_tasks(void) {
    char *text, *last;
    size_t n;
    expect_success("copying -o @/task --vocab-size 7 --items 3 --steps 12 --selective delta,C" TINY_TASK);
    expect_success("copying -o @/task2 --vocab-size 7 --items 3 --steps 12 --selective delta,C --stop 5" TINY_TASK
                   "--eval-every 2");
    text = slurp("@/out", &n);
    CHECK(strstr(text, "constant: B ") != NULL && strstr(text, "held-out 1.9") != NULL);
    CHECK(strstr(text, "(chance 20.00%)") != NULL && !exists("@/task2/tokenizer.bin"));
    release(text);
    expect_refusal("--resume -o @/task2 --selective all", "--selective", "all");
    expect_refusal("--resume induction -o @/task2", "induction", "--items 3");
    expect_success("--resume -o @/task2");
    CHECK(is_same("@/task/model.safetensors", "@/task2/model.safetensors"));
    expect_success("recall -o @/until --vocab-size 6 --items 2 --steps 12 --eval-every 3 --until 0.01" TINY_TASK);
    text = slurp("@/until/log.csv", &n);
    text[n - 1] = 0;
    last = strrchr(text, '\n') + 1;
    CHECK(atol(last) == 3 && strchr(text, '\n') + 1 == last); /* one line, of the last measuring */
    release(text);
    expect_success("@/text -o @/none --tokenizer bytes --selective none --steps 2" TINY);
    expect_refusal("@/text -o @/new --tokenizer bytes --selective delta,D", "--selective", "delta,D");
    expect_refusal("@/text -o @/new --tokenizer bytes --selective ''", "--selective", "''");
    expect_refusal("@/text -o @/new --tokenizer bytes --selective B, ", "--selective", "B,");
    expect_refusal("@/text -o @/new --init @/none --selective all", "--init", "--selective");
    expect_refusal("copying -o @/new --len 20", "copying", "--len 20 with --items 16, expected 32 to");
    expect_refusal("copying -o @/new --vocab-size 3", "copying", "(--vocab-size) of 3, expected 4 to");
    expect_refusal("recall -o @/new --vocab-size 32", "recall", "--items 16 with a vocabulary of 32, expected 1 to 15");
    expect_refusal("induction -o @/new --items 2", "induction", "--items 2");
    expect_refusal("induction -o @/new --init @/none/such", "none/such/config.json", "");
    expect_success("induction -o @/onward --init @/task --len 20 --steps 2 --stop 1");
    expect_success("--resume -o @/onward");
    text = slurp("@/out", &n);
    CHECK(strstr(text, "samples of 20 tokens, vocabulary 7, 1 to remember") != NULL);
    release(text);
}

/* Options without an effect on DATA that is a text, stories or a task, on --resume too. */
static void test_options_of_others(void) {
    static const char *const of_task[] = {"--items 3", "--every-token", "--until 0.5", NULL};
    static const char *const of_texts[] = {"--stories 40", "--tokenizer bytes", "--held-out 0.2", "--temperature 0.5",
                                           "--top-p 1", NULL};
    char line[256], name[32];
    for (int i = 0; of_task[i] != NULL; i++) {
        sscanf(of_task[i], "%31s", name);
        snprintf(line, sizeof line, "stories -o @/new --stories 40 --steps 1" TINY "%s", of_task[i]);
        expect_refusal(line, name, "on stories");
        snprintf(line, sizeof line, "@/text -o @/new --tokenizer bytes --steps 1" TINY "%s", of_task[i]);
        expect_refusal(line, name, "/text");
    }
    for (int i = 0; of_texts[i] != NULL; i++) {
        sscanf(of_texts[i], "%31s", name);
        snprintf(line, sizeof line, "recall -o @/new --items 2 --steps 1" TINY_TASK "%s", of_texts[i]);
        expect_refusal(line, name, "on recall");
    }
    expect_refusal("@/text -o @/new --tokenizer bytes --stories 40 --steps 1" TINY, "--stories", "/text");
    expect_refusal("--resume -o @/parts3 --until 0.5", "--until", "on stories");
}

static void test_refusals(void) {
    expect_refusal("", "DATA", "");
    expect_refusal("@/text", "-o", "");
    expect_refusal("@/text @/text -o @/new", "one DATA", "");
    expect_refusal("@/missing -o @/new --tokenizer bytes", "missing", "");
    expect_refusal("@ -o @/new --tokenizer bytes", "cannot read", "not a regular file");
    expect_refusal("@/empty -o @/new --tokenizer bytes", "empty", "--len");
    expect_refusal("@/short -o @/new --tokenizer bytes", "short", "--len");
    expect_refusal("@/text -o @/new --tokenizer @/text", "text", "tokenizer");
    expect_refusal("@/text -o @/new --tokenizer @/missing", "missing", "");
    expect_refusal("@/text -o @/new --tokenizer bytes --vocab-size 300", "--tokenizer", "--vocab-size");
    expect_refusal("@/text -o @/new --vocab-size 100", "--vocab-size", "257");
    expect_refusal("@/short -o @/new --vocab-size 1000", "short", "--vocab-size");
    expect_refusal("stories -o @/new --stories 10 --len 100000", "stories", "--len");
    expect_refusal("stories -o @/new --steps 10 --minutes 1", "--steps", "--minutes");
    expect_refusal("stories -o @/new --steps -1", "--steps", "-1");
    expect_refusal("stories -o @/new --steps 1.5", "--steps", "1.5");
    expect_refusal("stories -o @/new --steps 1x", "--steps", "1x");
    expect_refusal("stories -o @/new --steps 99999999999999999999", "--steps", "");
    expect_refusal("stories -o @/new --steps", "--steps", "expected N");
    expect_refusal("stories -o @/new --step 5", "--step", "none");
    expect_refusal("stories -o @/new --lr nan", "--lr", "nan");
    expect_refusal("stories -o @/new --lr ''", "--lr", "");
    expect_refusal("stories -o @/new --beta2 1", "--beta2", "1");
    expect_refusal("stories -o ''", "-o", "directory"); /* not: in the root */
    expect_refusal("stories -o @/new --batch 0", "--batch", "0");
    expect_refusal("stories -o @/new --batch 1048576 --len 65", "--batch 1048576 x --len 65", "2^26");
    expect_refusal("stories -o @/new --d-state 257", "--d-state", "257");
    expect_refusal("stories -o @/new --device tpu", "--device", "tpu");
    expect_refusal("stories -o @/new --device cpu --dtype bf16", "--dtype", "");
    expect_refusal("stories -o @/file", "file", "");
    expect_refusal("stories -o @/file/new", "file", "");
    expect_refusal("stories -o @/whole2", "whole2/model.safetensors", "--resume");
    expect_refusal("--resume -o @/parts3 --batch 3", "parts3/optimizer.safetensors", "--batch 2");
    expect_refusal("--resume -o @/parts3 --steps 7", "parts3/optimizer.safetensors", "--steps 6");
    expect_refusal("--resume @/text -o @/parts3", "text", "parts3");
    test_lies();
    shell("printf x >>@/parts3/optimizer.safetensors");
    expect_refusal("--resume -o @/parts3", "parts3/optimizer.safetensors", "");
    shell("head -c 5000 @/parts3/optimizer.safetensors >@/half && mv @/half @/parts3/optimizer.safetensors");
    expect_refusal("--resume -o @/parts3", "parts3/optimizer.safetensors", "");
}

/* A path that is too long to be stored must be given again. */
static void test_long_path(void) {
    char line[1024], name[161];
    memset(name, 'x', 160);
    name[160] = 0;
    snprintf(line, sizeof line, "cp @/text @/%s", name);
    shell(line);
    snprintf(line, sizeof line, "@/%s -o @/long --tokenizer bytes --steps 2 --stop 1" TINY, name);
    expect_success(line);
    expect_refusal("--resume -o @/long", "long/optimizer.safetensors", "DATA");
    snprintf(line, sizeof line, "--resume @/%s -o @/long", name);
    expect_success(line);
}

/* A disk with room for some KiB: an error that names the file, no temporary file, and what was saved before stays. */
static void test_full_disk(void) {
    char *text;
    size_t n;
    shell("cp -r @/parts4 @/before");
    CHECK(run("trap '' XFSZ; ulimit -f 4;", "--resume -o @/parts4") == 1);
    text = slurp("@/err", &n);
    CHECK(strchr(text, '\n') == text + n - 1);
    CHECK(strstr(text, "parts4/") != NULL && strstr(text, "cannot write") != NULL);
    release(text);
    CHECK(is_same("@/parts4/model.safetensors", "@/before/model.safetensors"));
    CHECK(is_same("@/parts4/optimizer.safetensors", "@/before/optimizer.safetensors"));
    shell("test -z \"$(find @/parts4 -name '*.tmp')\"");
    expect_success("--resume -o @/parts4");
    CHECK(is_same("@/parts4/optimizer.safetensors", "@/whole2/optimizer.safetensors"));
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "train") == 0) return train_main(argc - 1, argv + 1);
    snprintf(program, sizeof program, "%s", argv[0]);
    CHECK(mkdtemp(work) != NULL && setenv("OMP_NUM_THREADS", "1", 1) == 0);
    test_stories_are_unambiguous();
    test_other_texts_are_refused();
    test_probabilities();
    write_text("@/text", 10000);
    write_text("@/short", 20);
    write_text("@/empty", 0);
    write_text("@/file", 1);
    test_rows("@/text -o x --tokenizer bytes --len 50");
    test_rows("stories -o x --tokenizer bytes --len 50 --stories 60");
    test_windows();
    test_samples("copying", 60, 9, 7);
    test_samples("induction", 60, 9, 1);
    test_samples("recall", 60, 31, 7);
    test_copying(50, 6, 7);
    test_copying(8, 16, 4);
    test_copying(33, 4, 1);
    test_induction(20, 9);
    test_induction(3, 4);
    test_recall(60, 30, 9);
    test_recall(28, 17, 7);
    test_recall(42, 10, 1);
    test_task_limits();
    test_draws();
    test_measure();
    test_resume();
    test_log();
    test_interrupt();
    test_output();
    test_minutes();
    test_init();
    test_tasks();
    expect_success("stories -o @/parts3 --stories 40 --steps 6 --stop 3" TINY);
    test_options_of_others();
    test_refusals();
    expect_success("@/text -o @/parts4 --tokenizer bytes --steps 6 --seed 5 --stop 3" TINY);
    test_full_disk();
    test_long_path();
    if (check_failed == 0) shell("rm -r @");
    return check_report();
}
