/* Chapter 12: how time, memory and perplexity go with the length.

       build/12_length DIR build/length    two models, build/length_32 and build/length_512, of the text
                                           build/length.txt; pictures go to DIR

   SPDX-License-Identifier: MIT */
#include "../mamba.c"
#include "small.h"
#include "plot.h"
#include <time.h>

enum { WIDTH = 128, HEAD = 64, MIN_POWER = 4, MAX_POWER = 12, LENGTHS = MAX_POWER - MIN_POWER + 1, QUERIES = 64 };
enum { CONTEXTS = 11, TARGETS = 16, PLACES = 128, SHORT = 32 }; /* contexts of 8 to 8192 */

/* Seconds of the processor for one call of run(of, len): the least of three measurements of some calls. */
static double time_of(void (*run)(void *, int), void *of, int len) {
    double least = 1e9;
    int calls = len < 1024 ? 2048 / len : 1;
    run(of, len); /* lays out its memory */
    for (int i = 0; i < 3; i++) {
        clock_t before = clock();
        for (int k = 0; k < calls; k++) run(of, len);
        least = fmin(least, (double)(clock() - before) / CLOCKS_PER_SEC / calls);
    }
    return least;
}

/* The exponent p of y = c x^p that fits best: the slope of log y against log x by least squares. */
static double slope_of(const double *x, const double *y, int n) {
    double mean_x = 0, mean_y = 0, xy = 0, xx = 0;
    for (int i = 0; i < n; i++) mean_x += log(x[i]) / n, mean_y += log(y[i]) / n;
    for (int i = 0; i < n; i++) {
        xy += (log(x[i]) - mean_x) * (log(y[i]) - mean_y);
        xx += (log(x[i]) - mean_x) * (log(x[i]) - mean_x);
    }
    return xy / xx;
}

static void random_reals(real *p, size_t n) {
    uint64_t rng = 1;
    for (size_t i = 0; i < n; i++) p[i] = (real)(random_normal(&rng) * 0.1);
}

/* A layer of a Transformer, as plain as the rest: queries, keys and values of all positions; for QUERIES positions at a
   time their scores with all positions up to the last of these, a softmax, a mean of the values; then the network. */
typedef struct {
    real *qkv_weight, *out_weight, *up_weight, *down_weight;
    real *x, *qkv, *scores, *mixed, *y, *wide;
} Transformer;

static Transformer transformer_create(int len) {
    const size_t D = WIDTH, n[10] = {3 * D * D, D * D, 4 * D * D, 4 * D * D, len * D, 3 * len * D,
                                     QUERIES * (size_t)len, len * D, len * D, 4 * len * D};
    Transformer t;
    real **field[10] = {&t.qkv_weight, &t.out_weight, &t.up_weight, &t.down_weight, &t.x, &t.qkv, &t.scores, &t.mixed,
                        &t.y, &t.wide};
    for (int i = 0; i < 10; i++) {
        *field[i] = (real *)allocate(n[i], sizeof(real));
        if (*field[i] == NULL) exit(1);
        if (i < 5) random_reals(*field[i], n[i]);
    }
    return t;
}

static void transformer_free(Transformer *t) {
    release(t->qkv_weight), release(t->out_weight), release(t->up_weight), release(t->down_weight), release(t->x);
    release(t->qkv), release(t->scores), release(t->mixed), release(t->y), release(t->wide);
}

/* score[j] becomes the weight of position j, which is 0 from `visible` on.     score: (n) */
static void causal_softmax(real *score, int visible, int n) {
    const real scale = (real)(1 / sqrt(HEAD));
    real top = score[0], total = 0;
    for (int j = 0; j < visible; j++) top = score[j] > top ? score[j] : top;
    for (int j = 0; j < n; j += LANES)
        lanes_store(score + j, lanes_exp((lanes_load(score + j, n - j) - top) * scale), n - j);
    for (int j = 0; j < visible; j++) total += score[j];
    for (int j = 0; j < n; j++) score[j] = j < visible ? score[j] / total : 0;
}

static void transformer_forward(void *self, int len) {
    const Transformer *t = (const Transformer *)self;
    const size_t D = WIDTH;
    linear_forward(t->qkv, t->x, D, as_matrix(t->qkv_weight), NULL, len, WIDTH, 3 * WIDTH);
    for (int h = 0; h < WIDTH; h += HEAD)
        for (int first = 0; first < len; first += QUERIES) {
            int rows = min_int(QUERIES, len - first), keys = first + rows;
            const real *q = t->qkv + first * 3 * D + h, *k = t->qkv + D + h, *v = t->qkv + 2 * D + h;
            matmul(t->scores, (size_t)keys, q, 3 * D, 1, as_matrix(k), 1, 3 * D, rows, keys, HEAD, 0);
            for (int i = 0; i < rows; i++) causal_softmax(t->scores + (size_t)i * keys, first + i + 1, keys);
            matmul(t->mixed + first * D + h, D, t->scores, (size_t)keys, 1, as_matrix(v), 3 * D, 1, rows, HEAD, keys,
                   0);
        }
    linear_forward(t->y, t->mixed, D, as_matrix(t->out_weight), NULL, len, WIDTH, WIDTH);
    linear_forward(t->wide, t->y, D, as_matrix(t->up_weight), NULL, len, WIDTH, 4 * WIDTH);
    for (size_t i = 0; i < 4 * D * len; i += LANES) {
        lanes a = lanes_load(t->wide + i, LANES);
        lanes_store(t->wide + i, a * lanes_sigmoid(a), LANES);
    }
    linear_forward(t->y, t->wide, 4 * D, as_matrix(t->down_weight), NULL, len, 4 * WIDTH, WIDTH);
}

typedef struct {
    Backend backend;
    int tokens[1 << MAX_POWER];
} Mamba;

static void mamba_forward(void *self, int len) {
    Mamba *m = (Mamba *)self;
    m->backend.reset(m->backend.self, 1);
    if (m->backend.forward(m->backend.self, m->tokens, len, NULL, 0) != 0) exit(1);
}

/* Two blocks of Mamba, which have as many parameters as a layer of a Transformer, beside that. */
static void print_times(const char *dir) {
    double length[LENGTHS], seconds[2][LENGTHS], per_token[2][LENGTHS], cross = NAN;
    Config c = config_of(16, WIDTH, 2, 16, 4);
    Transformer t = transformer_create(1 << MAX_POWER);
    Mamba mamba;
    Model m;
    Picture p;
    Plot plot;
    memset(&mamba, 0, sizeof mamba);
    if (model_create(&m, &c) != 0 || cpu_backend(&mamba.backend, &m, 1, 0) != 0) exit(1);
    model_init(&m, 1);
    printf("~ processor time of a whole sequence, one thread, per token (microseconds)\n"
           "~   tokens   two blocks of Mamba   layer of a Transformer\n");
    for (int i = 0; i < LENGTHS; i++) {
        int len = 1 << (MIN_POWER + i);
        length[i] = len;
        seconds[0][i] = time_of(mamba_forward, &mamba, len), seconds[1][i] = time_of(transformer_forward, &t, len);
        for (int k = 0; k < 2; k++) per_token[k][i] = 1e6 * seconds[k][i] / len;
        if (!isfinite(cross) && seconds[0][i] < seconds[1][i]) cross = len;
        printf("~ %8d%22.1f%25.1f\n", len, per_token[0][i], per_token[1][i]);
    }
    printf("~ time goes with length to the power, from 1024 tokens on: Mamba %.2f, Transformer %.2f\n",
           slope_of(length + 6, seconds[0] + 6, LENGTHS - 6), slope_of(length + 6, seconds[1] + 6, LENGTHS - 6));
    printf("~ the first of these lengths at which Mamba is faster: %.0f\n\n", cross);
    picture_open(&p, dir, "12_time.svg", 680, 340, "Time for a token, against the length of the sequence");
    p.measured = 1;
    plot = plot_begin(&p, 64, 66, 400, 220, axis_make("tokens in the sequence", LOG2, length[0], length[LENGTHS - 1]),
                      axis_make("processor time per token (microseconds)", LOG10, 1, 100));
    plot_line(&plot, 0, length, per_token[0], LENGTHS, "Mamba, two blocks");
    plot_line(&plot, 1, length, per_token[1], LENGTHS, "Transformer, one layer");
    plot_end(&plot);
    if (picture_close(&p) != 0) exit(1);
    mamba.backend.close(mamba.backend.self);
    model_free(&m);
    transformer_free(&t);
}

/* What the backend has allocated for activations, training and not. */
static void print_memory(void) {
    double length[LENGTHS], bytes[LENGTHS];
    Config c = config_of(16, WIDTH, 2, 16, 4);
    int tokens[1 << MAX_POWER] = {0};
    Model m;
    printf("~ memory of the same two blocks (KB)\n~   tokens     activations kept for training     state\n");
    for (int i = 0; i < LENGTHS; i += 2) {
        int len = 1 << (MIN_POWER + i);
        Backend b;
        if (model_create(&m, &c) != 0 || cpu_backend(&b, &m, 1, 1) != 0) exit(1);
        model_init(&m, 1);
        if (b.gradient(b.self, tokens, tokens, 1, len, 1) != 0) exit(1);
        length[i / 2] = len, bytes[i / 2] = (double)((const Cpu *)b.self)->acts_size * sizeof(real);
        printf("~ %8d%34.0f%10.0f\n", len, bytes[i / 2] / 1e3, 1e-3 * c.n_layer * state_stride(&c) * sizeof(real));
        b.close(b.self);
        model_free(&m);
    }
    printf("~ training's goes with length to the power, from 1024 tokens on: %.2f\n\n",
           slope_of(length + 3, bytes + 3, (LENGTHS + 1) / 2 - 3));
}

/* Of one context: the perplexity; the same with every number of h capped; the root mean square of h. */
typedef struct {
    double plain, capped, size;
} Measured;

/* Predicts the same TARGETS bytes at PLACES places of held-out text, given `context` bytes before each; then again,
   each number of h not larger than it has been after up to SHORT bytes. largest, state: room for a state. */
static Measured measure(Backend *b, const int *ids, int n, int context, real *largest, real *state) {
    const Config *c = &b->config;
    const int longest = 8 << (CONTEXTS - 1), held_out = n / 10;
    double plain = 0, capped = 0, squares = 0, loss;
    for (int place = 0; place < PLACES; place++) {
        const int *at = ids + n - held_out + longest + place * ((held_out - longest - TARGETS - 1) / PLACES);
        if (b->reset(b->self, 1) != 0 || b->forward(b->self, at - context, context, NULL, 0) != 0) exit(1);
        if (b->copy(b->self, STATE, state, 0) != 0) exit(1);
        if (b->evaluate(b->self, at, at + 1, TARGETS, &loss, NULL) != 0) exit(1);
        plain += loss / PLACES;
        for (size_t i = 0; i < c->n_layer * state_stride(c); i++) {
            if (i % state_stride(c) < (size_t)(c->d_conv - 1) * c->d_inner) continue; /* the convolution's inputs */
            squares += (double)state[i] * state[i] / PLACES;
            if (context <= SHORT) largest[i] = fmaxf(largest[i], fabsf(state[i]));
            state[i] = fminf(fmaxf(state[i], -largest[i]), largest[i]);
        }
        if (b->copy(b->self, STATE, state, 1) != 0) exit(1);
        if (b->evaluate(b->self, at, at + 1, TARGETS, &loss, NULL) != 0) exit(1);
        capped += loss / PLACES;
    }
    Measured m = {exp(plain), exp(capped), sqrt(squares / (c->n_layer * c->d_state * c->d_inner))};
    return m;
}

static void print_perplexity(const char *dir, const char *run) {
    static const char *const trained[2] = {"32", "512"};
    double context[CONTEXTS], plain[2][CONTEXTS], capped[2][CONTEXTS], size[2][CONTEXTS], low = NAN, high = NAN;
    Picture p;
    Plot plot;
    for (int k = 0; k < 2; k++) {
        char path[512], *text;
        size_t n_text;
        Tokenizer t;
        Backend b;
        Model m;
        real *largest, *state;
        int *ids, n;
        snprintf(path, sizeof path, "%s.txt", run);
        text = read_file(path, &n_text);
        snprintf(path, sizeof path, "%s_%s/tokenizer.bin", run, trained[k]);
        if (text == NULL || tokenizer_load(&t, path) != 0) exit(1);
        ids = (int *)allocate(tokenizer_room(&t, n_text) + 1, sizeof(int));
        n = ids != NULL ? (int)tokenizer_encode(&t, text, n_text, ids) : 0;
        snprintf(path, sizeof path, "%s_%s", run, trained[k]);
        if (n < 2000 || model_load(&m, path) != 0 || cpu_backend(&b, &m, 1, 0) != 0) exit(1);
        largest = (real *)allocate(state_size(&m.config, 1), sizeof(real));
        state = (real *)allocate(state_size(&m.config, 1), sizeof(real));
        if (largest == NULL || state == NULL) exit(1);
        for (int i = 0; i < CONTEXTS; i++) {
            Measured found = measure(&b, ids, n, 8 << i, largest, state);
            context[i] = 8 << i, plain[k][i] = found.plain, capped[k][i] = found.capped, size[k][i] = found.size;
        }
        range_add(&low, &high, plain[k], CONTEXTS);
        release(largest);
        release(state);
        b.close(b.self);
        model_free(&m);
        tokenizer_free(&t);
        release(ids);
        release(text);
    }
    printf("~ perplexity per byte of %d bytes of stories that were not trained on\n"
           "~             trained at 32                        trained at 512\n"
           "~   context   perplexity   size of h   h capped   perplexity   size of h   h capped\n", PLACES * TARGETS);
    for (int i = 0; i < CONTEXTS; i++) {
        printf("~ %9.0f", context[i]);
        for (int k = 0; k < 2; k++) printf("%13.3f%12.3f%11.3f", plain[k][i], size[k][i], capped[k][i]);
        printf("\n");
    }
    picture_open(&p, dir, "12_perplexity.svg", 680, 340, "The same bytes, with more and more text read before them");
    p.measured = 1;
    plot = plot_begin(&p, 64, 66, 420, 220,
                      axis_make("bytes read before, from an empty state", LOG2, context[0], context[CONTEXTS - 1]),
                      axis_make("perplexity per byte", LINEAR, floor(20 * low) / 20, ceil(20 * high) / 20));
    plot_line(&plot, 1, context, plain[0], CONTEXTS, "trained at 32");
    plot_line(&plot, 2, context, capped[0], CONTEXTS, "the same, h capped");
    plot_line(&plot, 0, context, plain[1], CONTEXTS, "trained at 512");
    plot_end(&plot);
    if (picture_close(&p) != 0) exit(1);
}

/* The most that a state could hold if every bit of it were used. */
static void print_capacity(void) {
    Config c = config_130m();
    double numbers = (double)c.n_layer * state_stride(&c), bits = log2(50277);
    printf("\n~ state of 130m: %.0f numbers; a token of 50277 is %.1f bits: at most %.0f tokens in floats\n"
           "~ and %.0f if a number keeps 4 bits\n", numbers, bits, numbers * 32 / bits, numbers * 4 / bits);
}

int main(int argc, char **argv) {
    const char *dir = argc > 1 ? argv[1] : ".";
    print_times(dir);
    print_memory();
    print_perplexity(dir, argc > 2 ? argv[2] : "build/length");
    print_capacity();
    return 0;
}
