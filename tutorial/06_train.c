/* Chapter 6: what a training run has left: its loss beside the entropy of its data, and what became of delta.

       ./train stories -o build/story ...        the Makefile says with which options
       build/06_train DIR build/story            reads it; pictures go to DIR

   SPDX-License-Identifier: MIT */
#include "../mamba.c"
#include "plot.h"

enum { MAX_ROWS = 4096, BINS = 40, MAX_TOKENS = 4096 };

static double tokens[MAX_ROWS], loss[MAX_ROWS], held_out[MAX_ROWS], entropy[MAX_ROWS];

/* The rows of log.csv: step, tokens, seconds, rate, loss, norm, and where it was measured held-out loss, bits per byte
   and floor. Returns their number. */
static int read_log(const char *dir) {
    char path[512], *text, *line;
    size_t n;
    int rows = 0;
    snprintf(path, sizeof path, "%s/log.csv", dir);
    text = read_file(path, &n);
    if (text == NULL) return -1;
    for (line = strchr(text, '\n'); line != NULL && line[1] != 0 && rows < MAX_ROWS; line = strchr(line + 1, '\n')) {
        double seconds, rate, norm, bits;
        long step;
        held_out[rows] = entropy[rows] = NAN;
        if (sscanf(line, "\n%ld,%lf,%lf,%lf,%lf,%lf,%lf,%lf,%lf", &step, &tokens[rows], &seconds, &rate, &loss[rows],
                   &norm, &held_out[rows], &bits, &entropy[rows]) >= 6)
            rows++;
    }
    release(text);
    return rows;
}

static void print_log(int rows) {
    printf("~ %9s%12s%12s%10s\n", "tokens", "loss", "held-out", "floor");
    for (int i = 0; i < rows; i++)
        if (i == 0) printf("~ %9.0f%12.3f\n", tokens[i], loss[i]);
        else if (isfinite(held_out[i]))
            printf("~ %9.0f%12.3f%12.3f%10.3f\n", tokens[i], loss[i], held_out[i], entropy[i]);
}

static void draw_loss(const char *dir, int rows) {
    double at[MAX_ROWS], measured[MAX_ROWS], floor[2], ends[2];
    int n = 0;
    Picture p;
    Plot plot;
    for (int i = 0; i < rows; i++)
        if (isfinite(held_out[i])) at[n] = tokens[i], measured[n++] = held_out[i], floor[0] = floor[1] = entropy[i];
    ends[0] = tokens[0], ends[1] = tokens[rows - 1];
    picture_open(&p, dir, "06_loss.svg", 680, 360, "Loss while training on the built-in stories");
    p.measured = 1;
    plot = plot_begin(&p, 64, 66, 440, 230, axis_make("tokens trained on", LOG10, tokens[0], tokens[rows - 1]),
                      axis_make("loss (nats per token)", LOG10, 0.15, 8));
    plot_line(&plot, 0, tokens, loss, rows, "training");
    plot_line(&plot, 1, at, measured, n, "held out");
    plot_line(&plot, 2, ends, floor, 2, "entropy");
    plot_end(&plot);
    if (picture_close(&p) != 0) exit(1);
}

/* The deltas of every block for a text, whose activations the gradient leaves behind. delta: (n_layer, n, d_inner) */
static double *deltas_of(const Model *m, const int *ids, int n) {
    const Config *c = &m->config;
    double *delta = (double *)allocate((size_t)c->n_layer * n * c->d_inner, sizeof *delta);
    Backend b;
    if (delta == NULL || cpu_backend(&b, m, 1, 1) != 0 || b.gradient(b.self, ids, ids, 1, n, 1) != 0) return NULL;
    for (int l = 0; l < c->n_layer; l++)
        for (int i = 0; i < n * c->d_inner; i++)
            delta[(size_t)l * n * c->d_inner + i] = ((Cpu *)b.self)->acts.block[l].delta[i];
    b.close(b.self);
    return delta;
}

static int rising(const void *a, const void *b) {
    double difference = *(const double *)a - *(const double *)b;
    return (difference > 0) - (difference < 0);
}

/* How many times its smallest delta over the text a channel's largest is: the median over the channels of a block. */
static double median_range(const double *delta, int n, int d_inner) {
    double range[8192];
    for (int d = 0; d < d_inner; d++) {
        double low = NAN, high = NAN;
        for (int t = 0; t < n; t++) range_add(&low, &high, delta + (size_t)t * d_inner + d, 1);
        range[d] = high / low;
    }
    qsort(range, (size_t)d_inner, sizeof *range, rising);
    return range[d_inner / 2];
}

static void compare_deltas(const char *dir, const Model *end, const int *ids, int n) {
    const Config *c = &end->config;
    const char *const when[] = {"start", "end"};
    double *delta[2], bin[BINS], share[BINS];
    Model start;
    Picture p;
    if (model_create(&start, c) != 0) exit(1);
    model_init(&start, 1); /* train's own --seed */
    delta[0] = deltas_of(&start, ids, n), delta[1] = deltas_of(end, ids, n);
    if (delta[0] == NULL || delta[1] == NULL) exit(1);
    picture_open(&p, dir, "06_delta.svg", 760, 340, "Delta over all channels and the tokens of a story");
    p.measured = 1;
    printf("\n~ largest over smallest delta of a channel within a story, median over channels\n");
    printf("~ %6s%12s%12s\n", "block", "start", "end");
    for (int l = 0; l < c->n_layer && l < 2; l++) {
        size_t first = (size_t)l * n * c->d_inner, count = (size_t)n * c->d_inner;
        Plot plot = plot_begin(&p, 60 + 370 * l, 80, 240, 200, axis_make("delta", LOG10, 1e-5, 10),
                               axis_make("share of each bin (%)", LINEAR, 0, 15));
        picture_text(&p, 180 + 370 * l, 52, MIDDLE, "block %d", l + 1);
        printf("~ %6d", l + 1);
        for (int way = 0; way < 2; way++) {
            memset(share, 0, sizeof share);
            for (int i = 0; i < BINS; i++) bin[i] = pow(10, -5 + 6 * (i + 0.5) / BINS);
            for (size_t i = 0; i < count; i++) {
                int k = (int)floor((log10(delta[way][first + i]) + 5) / 6 * BINS);
                share[k < 0 ? 0 : min_int(k, BINS - 1)] += 100. / (double)count;
            }
            plot_line(&plot, way, bin, share, BINS, when[way]);
            printf("%12.2f", median_range(delta[way] + first, n, c->d_inner));
        }
        printf("\n");
        plot_end(&plot);
    }
    if (picture_close(&p) != 0) exit(1);
    for (int way = 0; way < 2; way++) release(delta[way]);
    model_free(&start);
}

int main(int argc, char **argv) {
    const char *dir = argc > 1 ? argv[1] : ".", *run = argc > 2 ? argv[2] : "build/story";
    char path[512], *text;
    int ids[MAX_TOKENS], n, rows = read_log(run);
    size_t size;
    Tokenizer tokenizer;
    Model m;
    snprintf(path, sizeof path, "%s/tokenizer.bin", run);
    text = read_file("tutorial/story.txt", &size);
    if (rows <= 0 || text == NULL || size > MAX_TOKENS || model_load(&m, run) != 0 ||
        tokenizer_load(&tokenizer, path) != 0) {
        fprintf(stderr, "%s: %s\n", argv[0], error_message);
        return 1;
    }
    n = (int)tokenizer_encode(&tokenizer, text, size, ids);
    print_log(rows);
    draw_loss(dir, rows);
    compare_deltas(dir, &m, ids, n);
    release(text);
    tokenizer_free(&tokenizer);
    model_free(&m);
    return 0;
}
