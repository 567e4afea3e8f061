/* Chapter 5: the backward pass of the scan: on paper's scale, against finite differences, and what it stores.
   SPDX-License-Identifier: MIT */
#define MAMBA_REAL double
#include "../mamba.c"
#include "small.h"
#include "eight.h"
#include "plot.h"

enum { LEN = 20, INNER = 3, STATES = 4, STEPS = 27 };
enum { VOCAB = 11, ROWS = 20, ALL = 22, MODEL_STEPS = 25 }; /* of the whole model: 2 sequences of 10; its tensors */

/* The backward pass of one channel with one number of state, as the formulas stand. h: (len), of the forward pass,
   which began at 0; g, q, du, ddelta, dB, dC: (len). With BREAK, abar of the wrong step takes g back. */
static void backward_plain(double *g, double *q, double *du, double *ddelta, double *dB, double *dC, double *dA_log,
                           const double *dy, const double *h, const double *u, const double *delta, const double *B,
                           const double *C, double A, double D, int len) {
    *dA_log = 0;
    for (int t = len - 1; t >= 0; t--) {
        double abar = exp(delta[t] * A), before = t > 0 ? h[t - 1] : 0;
        g[t] = C[t] * dy[t];
#ifdef BREAK
        if (t + 1 < len) g[t] += abar * g[t + 1];
#else
        if (t + 1 < len) g[t] += exp(delta[t + 1] * A) * g[t + 1];
#endif
        q[t] = g[t] * abar * before;
        dC[t] = dy[t] * h[t];
        dB[t] = g[t] * delta[t] * u[t];
        du[t] = g[t] * delta[t] * B[t] + D * dy[t];
        ddelta[t] = g[t] * B[t] * u[t] + q[t] * A;
        *dA_log += q[t] * delta[t] * A;
    }
}

/* The eight steps backwards, for a loss that is the sum of all y. */
static void print_eight(const char *dir) {
    double y[EIGHT], h[EIGHT], g[EIGHT], q[EIGHT], du[EIGHT], ddelta[EIGHT], dB[EIGHT], dC[EIGHT], dA_log;
    const char *const name[] = {"input u", "state h", "g = dL/dh", "dL/ddelta"};
    const double *row[4];
    Picture p;
    eight_scan(y, h, eight_u, eight_ones, eight_ones, eight_ones);
    backward_plain(g, q, du, ddelta, dB, dC, &dA_log, eight_ones, h, eight_u, eight_ones, eight_ones, eight_ones,
                   -log(2), 0, EIGHT);
    printf("the eight steps backwards, L = sum of y\n%3s%4s%13s%12s%12s%12s%12s\n", "t", "u", "h", "g", "du", "dC",
           "ddelta");
    for (int t = 0; t < EIGHT; t++)
        printf("%3d%4g%13.7f%12.7f%12.7f%12.7f%12.6f\n", t + 1, eight_u[t], h[t], g[t], du[t], dC[t], ddelta[t]);
    printf("dA_log = %.6f\n", dA_log);
    row[0] = eight_u, row[1] = h, row[2] = g, row[3] = ddelta;
    picture_open(&p, dir, "05_strips.svg", 760, 230,
                 "Forward, h gathers from the left; backward, g gathers from the right");
    for (int i = 0; i < 4; i++) {
        double low = 0, high = 0;
        Axis colour;
        Plot strip = plot_begin(&p, 112, 44 + 46 * i, 76 * EIGHT, 40, axis_make(NULL, LINEAR, 0, 1),
                                axis_make(NULL, LINEAR, 0, 1));
        range_add(&low, &high, row[i], EIGHT);
        colour = axis_make(name[i], LINEAR, low, high);
        plot_heat(&strip, row[i], 1, EIGHT, &colour, "%.5g");
        picture_text(&p, 104, 68 + 46 * i, RIGHT, "%s", name[i]);
    }
    if (picture_close(&p) != 0) exit(1);
}

/* A scan of INNER channels with everything that goes in side by side, so that it can be moved number by number. */
typedef struct {
    double u[LEN * INNER], delta[LEN * INNER], B[LEN * STATES], C[LEN * STATES], A_log[INNER * STATES], D[INNER];
} Input;

static const struct {
    const char *name;
    size_t at, size;
} tensor[] = {{"u", offsetof(Input, u), LEN *INNER},
              {"delta", offsetof(Input, delta), LEN *INNER},
              {"B", offsetof(Input, B), LEN *STATES},
              {"C", offsetof(Input, C), LEN *STATES},
              {"A_log", offsetof(Input, A_log), INNER *STATES},
              {"D", offsetof(Input, D), INNER}};
enum { TENSORS = 6 };

static double *numbers(Input *in, int i) { return (double *)((char *)in + tensor[i].at); }

/* L = sum of w sin(y): its gradient by y is w cos(y). The sine, so that L is linear in nothing. */
static double loss(const Input *in, const double *w, double *dy, double *kept) {
    double y[LEN * INNER], zero[STATES * INNER] = {0}, sum = 0;
    small_scan(y, kept, in->u, in->delta, in->B, in->C, in->A_log, in->D, zero, LEN, INNER, STATES);
    for (int i = 0; i < LEN * INNER; i++) {
        sum += w[i] * sin(y[i]);
        if (dy != NULL) dy[i] = w[i] * cos(y[i]);
    }
    return sum;
}

/* |gradient - central difference| / |gradient| over all numbers of a tensor. */
static double error_of(Input *in, const double *w, int i, const double *gradient, double step) {
    double *v = numbers(in, i), error = 0, norm = 0;
    for (size_t j = 0; j < tensor[i].size; j++) {
        double value = v[j], up, difference;
        v[j] = value + step, up = loss(in, w, NULL, NULL);
        v[j] = value - step, difference = (up - loss(in, w, NULL, NULL)) / (2 * step);
        v[j] = value;
        error += (gradient[j] - difference) * (gradient[j] - difference), norm += gradient[j] * gradient[j];
    }
    return sqrt(error / norm);
}

static ScanInput scan_input(Input *in) {
    ScanInput scan = {in->u, in->delta, {in->B, in->C, STATES, STATES}, in->A_log, in->D};
    return scan;
}

/* d: the gradients of the loss, by scan_backward. */
static void gradient_of(Input *d, Input *in, const double *w) {
    double dy[LEN * INNER], kept[2 * STATES * INNER], part_BC[2 * LEN * STATES], part_A[(STATES + 1) * INNER];
    ScanWork work = {part_BC, part_A, (double *)allocate(share_size(STATES) * scan_shares(INNER), sizeof(double))};
    memset(d, 0, sizeof *d);
    loss(in, w, dy, kept);
    scan_backward(scan_input(d), dy, kept, scan_input(in), work, 1, LEN, INNER, STATES);
    release(work.share);
}

static void random_input(Input *in, double *w) {
    uint64_t rng = 5;
    for (int i = 0; i < TENSORS; i++)
        for (size_t j = 0; j < tensor[i].size; j++) numbers(in, i)[j] = random_normal(&rng);
    for (int i = 0; i < LEN * INNER; i++) in->delta[i] = 0.1 + random_uniform(&rng), w[i] = random_normal(&rng);
}

static void print_differences(const char *dir) {
    double w[LEN * INNER], x[STEPS], e[TENSORS][STEPS];
    Input in, d;
    Picture p;
    Plot plot;
    random_input(&in, w);
    gradient_of(&d, &in, w);
    for (int k = 0; k < STEPS; k++) {
        x[k] = pow(10, -(STEPS - 1 - k) / 2.);
        for (int i = 0; i < TENSORS; i++) e[i][k] = error_of(&in, w, i, numbers(&d, i), x[k]);
    }
    printf("\nscan_backward against central differences: relative error\n%8s", "step");
    for (int i = 0; i < TENSORS; i++) printf("%9s", tensor[i].name);
    for (int k = STEPS - 3; k > 0; k -= 2) {
        printf("\n%s%6.0e", x[k] > 5e-4 ? "  " : "~ ", x[k]);
        for (int i = 0; i < TENSORS; i++) printf("%9.0e", e[i][k]);
    }
    printf("\n");
    picture_open(&p, dir, "05_differences.svg", 640, 380, "scan_backward against central differences");
    p.measured = 1;
    plot = plot_begin(&p, 64, 66, 440, 250, axis_make("step of the difference", LOG10, x[0], 1),
                      axis_make("relative error", LOG10, 1e-12, 10));
    for (int i = 0; i < TENSORS; i++) plot_line(&plot, i, x, e[i], STEPS, tensor[i].name);
    plot_end(&plot);
    if (picture_close(&p) != 0) exit(1);
}

/* |gradient - central difference| / |gradient| for tensor i of a model, by the loss in double and rounded to float;
   factor: on the gradient, to plant an error. */
static void model_error(double error[2], Backend *b, const Model *m, int i, const int *tokens, double step,
                        double factor) {
    double *w = m->weights + m->tensor[i].offset, *g = ((Cpu *)b->self)->grads + m->tensor[i].offset, norm = 0;
    error[0] = error[1] = 0;
    for (size_t j = 0; j < m->tensor[i].size; j++) {
        double value = w[j], mine = g[j] * factor, loss[2];
        for (int way = 0; way < 2; way++) {
            w[j] = value + (way ? -step : step);
            b->reset(b->self, 2);
            b->evaluate(b->self, tokens, tokens + ROWS, ROWS / 2, &loss[way], NULL);
        }
        w[j] = value, norm += mine * mine;
        error[0] += pow((loss[0] - loss[1]) / (2 * step) - mine, 2);
        error[1] += pow(((float)loss[0] - (float)loss[1]) / (2 * step) - mine, 2);
    }
    for (int way = 0; way < 2; way++) error[way] = sqrt(error[way] / norm);
}

/* The errors as a map, a row for each tensor, and below it one with a gradient that is a percent too large. */
static void draw_model(const char *dir, const double *error, char name[ALL + 1][64]) {
    Axis colour = axis_make("relative error", LOG10, 1e-11, 1);
    Picture p;
    picture_open(&p, dir, "05_model.svg", 760, 470, "Every tensor of a model against central differences");
    p.measured = 1;
    for (int part = 0; part < 2; part++) {
        int rows = part ? 1 : ALL;
        double top = part ? 404 : 60;
        Plot plot = plot_begin(&p, 220, top, 400, 15 * rows,
                               axis_make(part ? "step of the difference" : NULL, LOG10, pow(10, -12.25), pow(10, 0.25)),
                               axis_make(NULL, LINEAR, 0, 1));
        plot_heat(&plot, error + part * ALL * MODEL_STEPS, rows, MODEL_STEPS, &colour, NULL);
        if (!part) plot_heat_scale(&plot, &colour);
        for (int i = 0; i < rows; i++) picture_text(&p, 212, top + 15 * i + 12, RIGHT, "%s", name[part * ALL + i]);
    }
    if (picture_close(&p) != 0) exit(1);
}

/* The same test of a whole model, with its cross entropy as the loss. */
static void print_model(const char *dir) {
    static double error[(ALL + 1) * MODEL_STEPS];
    static char name[ALL + 1][64];
    Config c = config_of(VOCAB, 6, 2, 4, 4);
    int tokens[2 * ROWS]; /* and the targets */
    double worst = 0, parameters = 0;
    uint64_t rng = 7;
    Model m;
    Backend b;
    if (model_create(&m, &c) != 0 || cpu_backend(&b, &m, 1, 1) != 0 || m.n_tensor != ALL) exit(1);
    model_init(&m, 1);
    for (size_t i = 0; i < m.n_param; i++) m.weights[i] += 0.3 * random_normal(&rng); /* no tensor is special */
    for (int i = 0; i < 2 * ROWS; i++) tokens[i] = (int)(random_bits(&rng) % VOCAB);
    b.gradient(b.self, tokens, tokens + ROWS, 2, ROWS / 2, 1);
    for (int i = 0; i < ALL; i++) parameters += m.tensor[i].size;
    printf("\na model of %d blocks, %d tensors, %.0f parameters: relative error\n", c.n_layer, ALL, parameters);
    printf("~ %-26s%10s%10s%10s%16s\n", "", "step 0.01", "0.0001", "the best", "loss in float");
    for (int i = 0; i <= ALL; i++) {
        int of = i < ALL ? i : ALL - 3; /* D of the last block */
        const char *mixer = strstr(m.tensor[of].name, "mixer."), *layer = strstr(m.tensor[of].name, "layers.");
        double best[2] = {1, 1};
        for (int k = 0; k < MODEL_STEPS; k++) {
            double both[2];
            model_error(both, &b, &m, of, tokens, pow(10, (k - MODEL_STEPS + 1) / 2.), i < ALL ? 1 : 1.01);
            for (int way = 0; way < 2; way++) best[way] = fmin(best[way], both[way]);
            error[i * MODEL_STEPS + k] = both[0];
        }
        if (layer != NULL)
            snprintf(name[i], sizeof name[i], "block %c: %s%s", layer[7] + 1, mixer != NULL ? mixer + 6 : layer + 9,
                     i < ALL ? "" : ", 1% wrong");
        else snprintf(name[i], sizeof name[i], "%s", strchr(m.tensor[of].name, '.') + 1);
        printf("~ %-26s%10.0e%10.0e%10.0e%16.0e\n", name[i], error[i * MODEL_STEPS + 20], error[i * MODEL_STEPS + 16],
               best[0], best[1]);
        if (i < ALL) worst = fmax(worst, best[0]);
    }
    printf("without the last row, at the best step, all below 1e-7: %s\n", worst < 1e-7 ? "yes" : "no");
    draw_model(dir, error, name);
    b.close(b.self);
    model_free(&m);
}

/* One channel, one number of state, with steps that differ: the plain formulas against central differences. */
static void print_plain(void) {
    double u[LEN], delta[LEN], B[LEN], C[LEN], h[LEN], y[LEN], g[LEN], q[LEN], d[4][LEN], dA_log, ones[LEN], state,
        D = 0;
    double *in[] = {u, delta, B, C}, A_log = -0.5;
    const char *const name[] = {"u", "delta", "B", "C"};
    uint64_t rng = 2;
    for (int t = 0; t < LEN; t++) {
        u[t] = random_normal(&rng), B[t] = random_normal(&rng), C[t] = random_normal(&rng);
        delta[t] = 0.1 + random_uniform(&rng), ones[t] = 1;
    }
    state = 0;
    for (int t = 0; t < LEN; t++) {
        small_scan(y + t, NULL, u + t, delta + t, B + t, C + t, &A_log, &D, &state, 1, 1, 1);
        h[t] = state;
    }
    backward_plain(g, q, d[0], d[1], d[2], d[3], &dA_log, ones, h, u, delta, B, C, -exp(A_log), D, LEN);
    printf("\nthe plain formulas, with steps that differ: relative error of the gradients\n");
    for (int i = 0; i < 4; i++) {
        double error = 0, norm = 0;
        for (int t = 0; t < LEN; t++) {
            double sum[2] = {0}, value = in[i][t], difference;
            for (int way = 0; way < 2; way++) {
                double h_start = 0;
                in[i][t] = value + (way ? -1e-5 : 1e-5);
                small_scan(y, NULL, u, delta, B, C, &A_log, &D, &h_start, LEN, 1, 1);
                for (int s = 0; s < LEN; s++) sum[way] += y[s];
            }
            in[i][t] = value, difference = (sum[0] - sum[1]) / 2e-5;
            error += (difference - d[i][t]) * (difference - d[i][t]), norm += d[i][t] * d[i][t];
        }
        error = sqrt(error / norm);
        if (error < 1e-8) printf("%-6s below 1e-8\n", name[i]);
        else printf("%-6s %.3f\n", name[i], error);
    }
}

/* h found again from the state after it, h_{t-1} = (h_t - b_t) / abar_t, in float: how far off, going back from 64. */
static void print_undo(void) {
    float h[65] = {0}, b[65] = {0}, back;
    uint64_t rng = 1;
    for (int t = 1; t <= 64; t++) b[t] = (float)random_uniform(&rng), h[t] = 0.5f * h[t - 1] + b[t];
    back = h[64];
    printf("\nundoing steps of abar = 0.5, in float\n%6s%12s%16s\n", "steps", "h", "found again");
    for (int t = 64; t > 0; t--) {
        back = (back - b[t]) / 0.5f;
        if ((64 - t + 1) % 16 == 0) printf("%6d%12.4f%16.4g\n", 64 - t + 1, h[t - 1], back);
    }
}

static void print_memory(void) {
    double y = 8. * 2048 * 1536;
    printf("\n130m, batch 8, len 2048, numbers for each block\n");
    printf("y                    %10.0f\nevery h              %10.0f\none h in %-12d%10.0f\n", y, y * 16, SCAN_CHUNK,
           8. * scan_chunks(2048) * 16 * 1536);
}

int main(int argc, char **argv) {
    const char *dir = argc > 1 ? argv[1] : ".";
    print_eight(dir);
    print_plain();
    print_differences(dir);
    print_model(dir);
    print_undo();
    print_memory();
    return 0;
}
