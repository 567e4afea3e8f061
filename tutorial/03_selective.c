/* Chapter 3: eight steps of the scan, first the same at every position, then selective.
   SPDX-License-Identifier: MIT */
#define MAMBA_REAL double
#include "../mamba.c"
#include "small.h"
#include "eight.h"
#include "plot.h"

/* The selective example: what each position is, and what delta, B and C a trained model might give it. */
static const char *const token[EIGHT] = {"noise", "a", "noise", "noise", "b", "noise", "noise", "ask"};
static const real keep[EIGHT] = {0, 1, 0, 0, 1, 0, 0, 0}, ask[EIGHT] = {0, 0, 0, 0, 0, 0, 0, 1};

/* delta = softplus(v), 1 for data; v = -10 makes it nearly 0 for the rest. */
static void selective_delta(real *delta) {
    real no_bias = 0;
    for (int t = 0; t < EIGHT; t++) delta[t] = keep[t] ? log(expm1(1)) : -10;
    for (int t = 0; t < EIGHT; t++) delta_forward(&delta[t], &no_bias, 1, 1);
}

static void print_steps(const char *title, const real *delta, const real *C) {
    real y[EIGHT], h[EIGHT];
    eight_scan(y, h, eight_u, delta, eight_ones, C);
    printf("%s\n%3s%7s%4s%10s%10s%14s%14s\n", title, "t", "token", "u", "delta", "abar", "h", "y");
    for (int t = 0; t < EIGHT; t++)
        printf("%3d%7s%4g%10.5f%10.5f%14.7f%14.7f\n", t + 1, token[t], eight_u[t], delta[t],
               exp(-delta[t] * exp(eight_A_log())), h[t], y[t]);
}

/* With constant delta, B, C the output is a convolution: y_t = sum_k kernel_k u_{t-k}, kernel_k = C abar^k delta B. */
static void print_kernel(void) {
    real y[EIGHT], h[EIGHT];
    double worst = 0;
    eight_scan(y, h, eight_u, eight_ones, eight_ones, eight_ones);
    printf("\nkernel:");
    for (int k = 0; k < EIGHT; k++) printf(" %g", pow(0.5, k));
    for (int t = 0; t < EIGHT; t++) {
        double sum = 0;
        for (int k = 0; k <= t; k++) sum += pow(0.5, k) * eight_u[t - k];
        worst = fmax(worst, fabs(sum - y[t]));
    }
    printf("\nthe convolution differs from the scan by less than 1e-12: %s\n", worst < 1e-12 ? "yes" : "no");
}

/* Which of the three makes what difference: the answer at the last position, with the inputs of the noise as they are
   and 100 times as large. */
static void print_three(const real *delta) {
    const struct {
        const char *name;
        const real *delta, *B, *C;
    } way[] = {{"none", eight_ones, eight_ones, eight_ones},
               {"delta", delta, eight_ones, eight_ones},
               {"B", eight_ones, keep, eight_ones},
               {"C", eight_ones, eight_ones, ask},
               {"all", delta, eight_ones, ask}};
    printf("\nselective      answer   noise x 100   y before\n");
    for (int i = 0; i < 5; i++) {
        real y[EIGHT], h[EIGHT], loud[EIGHT], last;
        eight_scan(y, h, eight_u, way[i].delta, way[i].B, way[i].C);
        last = y[EIGHT - 1];
        printf("%-9s%12.5f", way[i].name, last);
        for (int t = 0; t < EIGHT; t++) loud[t] = eight_u[t] * (keep[t] || ask[t] ? 1 : 100);
        eight_scan(y, h, loud, way[i].delta, way[i].B, way[i].C);
        printf("%14.5f%11.5f\n", y[EIGHT - 1], y[EIGHT - 2]);
    }
}

/* h after n steps of the constant example with inputs of 1: by the recurrence, or, with BREAK, by the closed form
   h_t = p_t sum_{s<=t} u_s / p_s with p_t = abar^t. */
static void print_long(void) {
    printf("\ninputs of 1, in float\n%5s%10s\n", "t", "h");
    for (int n = 32; n <= 160; n += 32) {
        float h = 0;
#ifdef BREAK
        float p = 1, sum = 0;
        for (int t = 0; t < n; t++) p *= 0.5f, sum += 1 / p;
        h = p * sum;
#else
        for (int t = 0; t < n; t++) h = 0.5f * h + 1;
#endif
        printf("%5d%10s\n", n, isfinite(h) ? (snprintf(error_message, 32, "%.6g", h), error_message) : "no number");
    }
}

static void draw_strips(const char *dir, const real *delta) {
    const char *const name[] = {"delta", "state h", "output y"};
    Picture p;
    picture_open(&p, dir, "03_strips.svg", 760, 404,
                 "Eight positions, from left to right: steps that are all the same, and selective ones");
    for (int way = 0; way < 2; way++) {
        real y[EIGHT], h[EIGHT];
        const real *C = way ? ask : eight_ones, *d = way ? delta : eight_ones, *row[3];
        double top = 62 + 190 * way;
        row[0] = d, row[1] = h, row[2] = y;
        eight_scan(y, h, eight_u, d, eight_ones, C);
        picture_text(&p, 12, top, LEFT, way ? "selective" : "constant");
        for (int t = 0; t < EIGHT; t++) {
            char text[32];
            snprintf(text, sizeof text, "%s\nu = %g", token[t], eight_u[t]);
            picture_box(&p, 112 + 76 * t, top - 18, 72, 36, keep[t] ? 1 : ask[t] ? 2 : 5, text);
        }
        for (int i = 0; i < 3; i++) {
            Axis colour = axis_make(name[i], LINEAR, 0, i == 0 ? 1.2 : 15);
            Plot strip = plot_begin(&p, 112, top + 24 + 40 * i, 76 * EIGHT - 4, 36, axis_make(NULL, LINEAR, 0, 1),
                                    axis_make(NULL, LINEAR, 0, 1));
            plot_heat(&strip, row[i], 1, EIGHT, &colour, i == 0 ? "%.1g" : "%.5g");
            picture_text(&p, 104, top + 46 + 40 * i, RIGHT, "%s", name[i]);
        }
    }
    if (picture_close(&p) != 0) exit(1);
}

int main(int argc, char **argv) {
    real delta[EIGHT];
    selective_delta(delta);
    print_steps("constant", eight_ones, eight_ones);
    print_kernel();
    printf("\n");
    print_steps("selective", delta, ask);
    print_three(delta);
    print_long();
    draw_strips(argc > 1 ? argv[1] : ".", delta);
    return 0;
}
