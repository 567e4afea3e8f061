/* Chapter 7: a trained model reads a story, token by token: its deltas, its losses, its time, its state.

       build/07_state DIR build/story            the model of chapter 6; pictures go to DIR

   SPDX-License-Identifier: MIT */
#include "../mamba.c"
#include "plot.h"
#include <time.h>

enum { MAX_TOKENS = 4096, SHOWN = 40, COLUMNS = 10, LAYERS = 2, WINDOW = 256, WINDOWS = 32 };

static Tokenizer tokenizer;

static const char *token_text(int id) {
    static char text[64];
    size_t n;
    const char *piece = tokenizer_piece(&tokenizer, id, &n);
    snprintf(text, sizeof text, "%.*s", (int)n, piece);
    return text;
}

/* Reads ids one by one, as generating does. delta: (LAYERS, n), those of the channel of each block whose delta varies
   most; channel: (LAYERS), which that is; surprise: (n), -log of the probability that the model had given to the token.
 */
static void read_story(Backend *b, const int *ids, int n, double *delta, int *channel, double *surprise) {
    const Config *c = &b->config;
    const Cpu *cpu = (const Cpu *)b->self;
    real *logits = (real *)allocate((size_t)c->vocab_size, sizeof *logits);
    if (logits == NULL || b->gradient(b->self, ids, ids, 1, n, 1) != 0) exit(1);
    for (int l = 0; l < LAYERS; l++) {
        const real *block = cpu->acts.block[l].delta; /* the gradient leaves its activations behind */
        double widest = 0;
        for (int d = 0; d < c->d_inner; d++) {
            double v[MAX_TOKENS], low = NAN, high = NAN;
            for (int t = 0; t < n; t++) v[t] = block[(size_t)t * c->d_inner + d];
            range_add(&low, &high, v, n);
            if (high / low <= widest) continue;
            widest = high / low, channel[l] = d;
            memcpy(delta + l * n, v, n * sizeof *v);
        }
        printf("~ block %d: the delta of channel %d varies most, %.0f times\n", l + 1, channel[l], widest);
    }
    b->reset(b->self, 1);
    for (int t = 0; t < n; t++) {
        int correct;
        if (t > 0) surprise[t] = cross_entropy(logits, ids[t], c->vocab_size, 0, &correct);
        b->forward(b->self, ids + t, 1, logits, 0);
    }
    release(logits);
}

static void draw_story(const char *dir, const int *ids, int first, int n, const double *delta, const double *surprise) {
    Axis step = axis_make("", LOG10, 1e-4, 10), nats = axis_make("", LINEAR, 0, 4);
    Picture p;
    picture_open(&p, dir, "07_story.svg", 840, 600, "Delta in one channel of each block, and the loss of each token");
    p.measured = 1;
    for (int line = 0; line < SHOWN / COLUMNS; line++) {
        double top = 56 + 136 * line;
        for (int i = 0; i < COLUMNS; i++)
            picture_text(&p, 112 + 71 * i + 35, top, MIDDLE, "%s", token_text(ids[first + line * COLUMNS + i]));
        for (int row = 0; row < 3; row++) {
            const double *v = row < LAYERS ? delta + row * n : surprise;
            Plot strip = plot_begin(&p, 112, top + 8 + 36 * row, 71 * COLUMNS, 32, axis_make(NULL, LINEAR, 0, 1),
                                    axis_make(NULL, LINEAR, 0, 1));
            plot_heat(&strip, v + first + line * COLUMNS, 1, COLUMNS, row < LAYERS ? &step : &nats,
                      row < LAYERS ? "%.1g" : "%.2f");
            if (row < LAYERS)
                picture_text(&p, 104, top + 28 + 36 * row, RIGHT, "delta, block %d", row + 1);
            else picture_text(&p, 104, top + 28 + 36 * row, RIGHT, "loss (nats)");
        }
    }
    if (picture_close(&p) != 0) exit(1);
}

/* The tokens of the story with the largest and the smallest deltas, each text once. */
static void print_extremes(const int *ids, int n, const double *delta) {
    for (int way = 1; way >= -1; way -= 2) {
        int used[MAX_TOKENS] = {0};
        printf("~ %s:", way > 0 ? "largest" : "smallest");
        for (int k = 0; k < 8; k++) {
            int best = -1;
            for (int t = 1; t < n; t++)
                if (!used[t] && (best < 0 || way * delta[t] > way * delta[best])) best = t;
            printf(" [%s] %.2g", token_text(ids[best]), delta[best]);
            for (int t = 0; t < n; t++) used[t] |= ids[t] == ids[best];
        }
        printf("\n");
    }
}

/* The loss of the tokens in which something is chosen or remembered, and the whole. */
static void print_losses(const int *ids, int first, int n, const double *surprise) {
    double sum = 0;
    for (int t = 1; t < n; t++) sum += surprise[t] / (n - 1);
    printf(
        "\n~ mean loss of the story: %.3f nats per token\n~ tokens that cost more than 0.5, from the first shown on:",
        sum);
    for (int t = first; t < first + SHOWN; t++)
        if (surprise[t] > 0.5) printf(" [%s] %.2f", token_text(ids[t]), surprise[t]);
    printf("\n~ a choice among 3, 9, 10, 23 costs %.2f, %.2f, %.2f, %.2f\n", log(3), log(9), log(10), log(23));
}

/* Time for a token, the processor's, in windows of tokens: the best of three runs for each window. */
static void print_times(Backend *b, const char *dir) {
    double position[WINDOWS], best[WINDOWS];
    uint64_t rng = 1;
    Picture p;
    Plot plot;
    for (int run = 0; run < 3; run++) {
        b->reset(b->self, 1);
        for (int w = 0; w < WINDOWS; w++) {
            clock_t before = clock();
            double microseconds;
            for (int t = 0; t < WINDOW; t++) {
                int id = (int)(random_bits(&rng) % b->config.vocab_size);
                b->forward(b->self, &id, 1, NULL, 0);
            }
            microseconds = 1e6 * (double)(clock() - before) / CLOCKS_PER_SEC / WINDOW;
            position[w] = (w + 0.5) * WINDOW;
            if (run == 0 || microseconds < best[w]) best[w] = microseconds;
        }
    }
    printf("\n~ microseconds of processor time for a token, best of three runs\n");
    for (int w = 0; w < WINDOWS; w = 2 * w + 1)
        printf("~ tokens %5d to %5d:%8.1f\n", w * WINDOW + 1, (w + 1) * WINDOW, best[w]);
    picture_open(&p, dir, "07_time.svg", 600, 300, "Time for a token, against how many the model has read");
    p.measured = 1;
    plot = plot_begin(&p, 64, 66, 400, 170, axis_make("tokens read before", LINEAR, 0, WINDOW * WINDOWS),
                      axis_make("processor time (microseconds)", LINEAR, 0, 2 * best[WINDOWS / 2]));
    plot_line(&plot, 0, position, best, WINDOWS, "one token");
    plot_end(&plot);
    if (picture_close(&p) != 0) exit(1);
}

/* The state after half of the story, put into another stream, goes on to the same logits. */
static void print_state(Backend *b, const Model *m, const int *ids, int n) {
    const Config *c = &m->config;
    size_t size = state_size(c, 1);
    real *state = (real *)allocate(size, sizeof *state),
         *logits = (real *)allocate((size_t)2 * c->vocab_size, sizeof *logits);
    Backend other;
    if (state == NULL || logits == NULL || cpu_backend(&other, m, 1, 0) != 0) exit(1);
    b->reset(b->self, 1);
    b->forward(b->self, ids, n / 2, NULL, 0);
    b->copy(b->self, STATE, state, 0);
    b->forward(b->self, ids + n / 2, n - n / 2, logits, 0);
    other.copy(other.self, STATE, state, 1);
    other.forward(other.self, ids + n / 2, n - n / 2, logits + c->vocab_size, 0);
    printf("\n~ state: %zu numbers, and %d held logits\n", size - c->vocab_size, c->vocab_size);
    printf("~ another stream goes on from it, bit for bit: %s\n",
           memcmp(logits, logits + c->vocab_size, (size_t)c->vocab_size * sizeof *logits) == 0 ? "yes" : "no");
    other.close(other.self);
    release(state);
    release(logits);
}

int main(int argc, char **argv) {
    static double delta[LAYERS * MAX_TOKENS], surprise[MAX_TOKENS];
    const char *dir = argc > 1 ? argv[1] : ".", *run = argc > 2 ? argv[2] : "build/story";
    char path[512], *text;
    int ids[MAX_TOKENS], channel[LAYERS], n, first;
    size_t size;
    Model m;
    Backend b;
    snprintf(path, sizeof path, "%s/tokenizer.bin", run);
    text = read_file("tutorial/story.txt", &size);
    if (text == NULL || size > MAX_TOKENS || model_load(&m, run) != 0 || tokenizer_load(&tokenizer, path) != 0 ||
        m.config.n_layer != LAYERS || cpu_backend(&b, &m, 1, 1) != 0) {
        fprintf(stderr, "%s: %s\n", argv[0], error_message);
        return 1;
    }
    ids[0] = tokenizer.end_of_text;
    n = 1 + (int)tokenizer_encode(&tokenizer, text, size, ids + 1);
    for (first = 1; first < n - SHOWN && strcmp(token_text(ids[first]), " Rufus") != 0; first++) {
    }
    read_story(&b, ids, n, delta, channel, surprise);
    draw_story(dir, ids, first, n, delta, surprise);
    print_extremes(ids, n, delta + n);
    print_losses(ids, first, n, surprise);
    print_times(&b, dir);
    print_state(&b, &m, ids, n);
    b.close(b.self);
    release(text);
    tokenizer_free(&tokenizer);
    model_free(&m);
    return 0;
}
