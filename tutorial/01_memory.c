/* Chapter 1: what a Mamba model keeps of the past, beside what attention keeps.
   SPDX-License-Identifier: MIT */
#define MAMBA_REAL double
#include "../mamba.c"
#include "small.h"
#include "plot.h"

enum { LAYERS = 12, POINTS = 21 }; /* a Transformer of the same width and about the same size has half as many layers */

/* Numbers that attention keeps for each token: a key and a value, d_model wide, in every layer. */
static size_t cache_per_token(int n_layer, int d_model) { return (size_t)2 * n_layer * d_model; }

static void print_table(const Config *c) {
    Model m;
    size_t total = 0;
    if (model_table(&m, c) != 0) exit(1);
    printf("%-48s%-14s%10s\n", "tensor", "shape", "numbers");
    for (int i = 0; i < m.n_tensor; i++) {
        const Tensor *tensor = &m.tensor[i];
        char shape[64] = "";
        for (int k = 0; k < tensor->n_dim; k++)
            snprintf(shape + strlen(shape), sizeof shape - strlen(shape), "%s%d", k > 0 ? " x " : "", tensor->shape[k]);
        if (i <= 10 || i == m.n_tensor - 1) printf("%-48s%-14s%10zu\n", tensor->name, shape, tensor->size);
        total += tensor->size;
    }
    printf("%d tensors, %zu parameters\n\n", m.n_tensor, total);
    model_free(&m);
}

static void print_state(const Config *c) {
    size_t per_token = cache_per_token(LAYERS, c->d_model), state = c->n_layer * state_stride(c);
    size_t work = (size_t)3 * c->n_layer * c->d_inner * c->d_state;
    printf("state of a block: (%d + %d) x %d = %zu numbers\n", c->d_conv - 1, c->d_state, c->d_inner, state_stride(c));
    printf("in_proj and out_proj of a block: %d numbers, 6 x %d^2\n", 3 * c->d_inner * c->d_model, c->d_model);
    printf("state of all %d blocks: %zu numbers, %zu bytes as float\n", c->n_layer, state, 4 * state);
    printf("cache of %d layers: 2 x %d x %d = %zu numbers per token, %zu bytes\n", LAYERS, LAYERS, c->d_model,
           per_token, 4 * per_token);
    printf("they are equal at %zu tokens\n", state / per_token);
    printf("multiply-adds per token: scan %zu, attention %zu per position before it: equal at %zu positions\n\n", work,
           per_token, work / per_token);
    printf("%9s%16s%16s%10s\n", "tokens", "cache (MB)", "state (MB)", "ratio");
    for (int k = 6; k <= 20; k += 2) {
        double cache_mb = 4e-6 * per_token * (1 << k), state_mb = 4e-6 * state;
        printf("%9d%16.1f%16.1f%10.1f\n", 1 << k, cache_mb, state_mb, cache_mb / state_mb);
    }
}

static void draw(const Config *c, const char *dir) {
    double length[POINTS], cache[POINTS], state[POINTS];
    Picture p;
    Plot plot;
    for (int i = 0; i < POINTS; i++) {
        length[i] = pow(2, i);
        cache[i] = 4 * cache_per_token(LAYERS, c->d_model) * length[i];
        state[i] = 4. * c->n_layer * state_stride(c);
    }
    picture_open(&p, dir, "01_memory.svg", 640, 340, "What is kept of the past, for one sequence");
    plot = plot_begin(&p, 64, 66, 400, 220, axis_make("tokens read so far", LOG2, 1, length[POINTS - 1]),
                      axis_make("memory (bytes, float32)", LOG10, 1e4, 3e11));
    plot_line(&plot, 1, length, cache, POINTS, "keys and values");
    plot_line(&plot, 0, length, state, POINTS, "state of Mamba");
    plot_end(&plot);
    picture_text(&p, plot_x(&plot, 38) + 8, plot_y(&plot, 4. * c->n_layer * state_stride(c)) + 24, LEFT,
                 "equal at 38 tokens");
    if (picture_close(&p) != 0) exit(1);
}

/* The same 300 tokens in one call, in pieces of 7, and one by one: the largest difference of the last logits. */
static void print_split(void) {
    Config c = config_of(61, 32, 2, 16, 4);
    enum { LEN = 300 };
    int tokens[LEN];
    double logits[3][61], worst = 0;
    const int piece[] = {LEN, 7, 1};
    uint64_t rng = 1;
    Model m;
    Backend b;
    if (model_create(&m, &c) != 0 || cpu_backend(&b, &m, 1, 0) != 0) exit(1);
    model_init(&m, 1);
    for (int i = 0; i < LEN; i++) tokens[i] = (int)(random_bits(&rng) % 61);
    for (int way = 0; way < 3; way++) {
        b.reset(b.self, 1);
        for (int t = 0; t < LEN; t += piece[way])
            b.forward(b.self, tokens + t, min_int(piece[way], LEN - t), logits[way], 0);
    }
    for (int i = 0; i < 61; i++)
        for (int way = 1; way < 3; way++) worst = fmax(worst, fabs(logits[way][i] - logits[0][i]));
    printf("\n300 tokens at once, by 7, by 1: last logits differ by less than 1e-12: %s\n",
           worst < 1e-12 ? "yes" : "no");
    b.close(b.self);
    model_free(&m);
}

int main(int argc, char **argv) {
    Config c = config_130m();
    print_table(&c);
    print_state(&c);
    print_split();
    draw(&c, argc > 1 ? argv[1] : ".");
    return 0;
}
