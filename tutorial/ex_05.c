/* Exercises of chapter 5. Replace the bodies of the functions; `make ex-05` says PASS or what is wrong.
   SPDX-License-Identifier: MIT */
#define MAMBA_REAL double
#include "../mamba.c"
#include "small.h"
#include "exercise.h"

/* 5.1 For one channel with one number of state: g[t] = dL/dh_t, from dy, C and abar = exp(delta A), all (len). */
static void gradient_of_state(double *g, const double *dy, const double *C, const double *abar, int len) {
}

/* 5.2 dL/ddelta_t, which acts in two places, from g_t, abar_t, h_{t-1} (before), A, B_t, u_t. */
static double gradient_of_delta(double g, double abar, double before, double A, double B, double u) {
    return 0;
}

/* 5.3 The gate is out = y silu(z). What is dL/dz, from dL/dout, y and z? */
static double gradient_of_z(double dout, double y, double z) {
    return 0;
}

enum { LEN = 9 };

static double run(double *h, const double *delta, const double *u, const double *B, const double *C, double A) {
    double y, A_log = log(-A), D = 0, state = 0, sum = 0;
    for (int t = 0; t < LEN; t++) {
        small_scan(&y, NULL, u + t, delta + t, B + t, C + t, &A_log, &D, &state, 1, 1, 1);
        h[t] = state, sum += (t + 1) * y; /* so dy_t = t + 1 */
    }
    return sum;
}

int main(void) {
    double u[LEN], delta[LEN], B[LEN], C[LEN], dy[LEN], abar[LEN], h[LEN], other[LEN], g[LEN] = {0}, expected[LEN],
                                                                                       A = -0.7;
    double wrong = 0, right = 0;
    uint64_t rng = 4;
    int t;
    for (t = 0; t < LEN; t++) {
        u[t] = 1 + random_uniform(&rng), B[t] = 1 + random_uniform(&rng), C[t] = random_normal(&rng), dy[t] = t + 1;
        delta[t] = 0.1 + random_uniform(&rng), abar[t] = exp(delta[t] * A);
    }
    run(h, delta, u, B, C, A);
    for (t = 0; t < LEN; t++) { /* dL/dB_t is g_t delta_t u_t, and L is linear in B_t: so differences are exact */
        double value = B[t], before = run(other, delta, u, B, C, A);
        B[t] = value + 1, expected[t] = (run(other, delta, u, B, C, A) - before) / (delta[t] * u[t]), B[t] = value;
    }
    gradient_of_state(g, dy, C, abar, LEN);
    for (t = LEN - 1; t > 0 && close_to(g[t], expected[t]); t--) {
    }
    exercise("5.1", close_to(g[t], expected[t]),
             "g at position %d of 0 to %d is %.6g; what a difference says is %.6g%s", t, LEN - 1, g[t], expected[t],
             t == LEN - 1                                               ? ": nothing comes after it"
             : close_to(g[t], C[t] * dy[t] + abar[t] * expected[t + 1]) ? ": abar is that of the "
                                                                          "wrong step"
                                                                        : ". Positions after it are right");
    for (t = LEN - 1; t >= 0; t--) {
        double value = delta[t], up;
        delta[t] = value + 1e-5, up = run(other, delta, u, B, C, A);
        delta[t] = value - 1e-5, right = (up - run(other, delta, u, B, C, A)) / 2e-5, delta[t] = value;
        wrong = gradient_of_delta(expected[t], abar[t], t > 0 ? h[t - 1] : 0, A, B[t], u[t]);
        if (!close_to(wrong, right)) break;
    }
    t = t < 0 ? 0 : t;
    exercise("5.2", close_to(wrong, right), "at position %d gradient_of_delta says %.6g, a difference %.6g%s", t, wrong,
             right,
             close_to(wrong, expected[t] * B[t] * u[t])           ? ": delta is in abar, too"
             : close_to(wrong, right - expected[t] * B[t] * u[t]) ? ": delta is in delta B u, too"
             : t > 0 && close_to(wrong, expected[t] * (B[t] * u[t] + abar[t] * h[t - 1]))
                 ? ": the derivative of exp(delta A) by delta is A exp(delta A)"
                 : "");
    for (t = -4; t <= 4; t++) {
        double z = t, up = (z + 1e-5) / (1 + exp(-z - 1e-5)), down = (z - 1e-5) / (1 + exp(-z + 1e-5));
        right = 3 * 2 * (up - down) / 2e-5, wrong = gradient_of_z(3, 2, z);
        if (!close_to(wrong, right)) break;
    }
    exercise("5.3", close_to(wrong, right), "with dout 3, y 2, z %d it is %.6g; gradient_of_z says %.6g%s", t, right,
             wrong,
             close_to(wrong, 6 * exp(-t) / pow(1 + exp(-t), 2))
                 ? ": that is the slope of the sigmoid; silu(z) is z times the sigmoid"
                 : "");
    return exercises_failed;
}
