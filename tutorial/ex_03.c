/* Exercises of chapter 3. Replace the bodies of the functions; `make ex-03` says PASS or what is wrong.
   SPDX-License-Identifier: MIT */
#define MAMBA_REAL double
#include "../mamba.c"
#include "small.h"
#include "eight.h"
#include "exercise.h"

/* 3.1 The selective scan of one channel. u, delta: one number per position. B, C: d_state numbers per position, those
   of position t at B[t * d_state]. A: (d_state), negative. h: (d_state), the state, to be read first and updated.
   Writes y: (len). */
static void scan_channel(double *y, double *h, const double *u, const double *delta, const double *B, const double *C,
                         const double *A, double D, int len, int d_state) {
}

/* 3.2 In the running example, choose the eight deltas (none negative) so that the last state is 3, the third input, to
   within a hundredth. */
static void choose_delta(double *delta) {
    for (int t = 0; t < EIGHT; t++) delta[t] = 1;
}

/* 3.3 Where delta, B and C are the same at every position, y is a convolution of u with a kernel. What is its entry k,
   for one number of state? (k = 0 is the weight of the current input.) */
static double kernel(int k, double delta, double A, double B, double C) {
    return 0;
}

enum { LEN = 20, STATES = 5 };

static void fill(double *v, int n, double low, double high, uint64_t *rng) {
    for (int i = 0; i < n; i++) v[i] = low + (high - low) * random_uniform(rng);
}

/* What would explain y at the first position where it is wrong: known slips, the positions before it being right. */
static const char *slip(double y, int at, const double *u, const double *delta, const double *B, const double *C,
                        const double *A, double D) {
    double zoh = 0, late = 0, no_delta = 0, no_D = 0, first = 0, h[4][STATES] = {{0}};
    for (int t = 0; t <= at; t++) {
        zoh = late = no_delta = first = D * u[t], no_D = 0;
        for (int n = 0; n < STATES; n++) {
            double a = exp(delta[t] * A[n]), b = B[t * STATES + n] * u[t], c = C[t * STATES + n];
            late += c * h[0][n];
            h[0][n] = a * h[0][n] + delta[t] * b, no_D += c * h[0][n];
            h[1][n] = a * h[1][n] + (a - 1) / A[n] * b, zoh += c * h[1][n];
            h[2][n] = a * h[2][n] + b, no_delta += c * h[2][n];
            h[3][n] = a * h[3][n] + delta[t] * B[n] * u[t], first += C[n] * h[3][n];
        }
    }
    return isnan(y)                  ? ": nothing was written there, or added to what was not written"
           : close_to(y, zoh)      ? ": that is ZOH; the code uses delta B"
           : close_to(y, late)     ? ": y_t is made from h_t, not from h_{t-1}"
           : close_to(y, no_delta) ? ": the input is weighed with delta B, not with B"
           : close_to(y, no_D)     ? ": D u_t is missing"
           : close_to(y, first)    ? ": position t's B and C begin at t * d_state"
                                   : "";
}

int main(void) {
    double u[LEN], delta[LEN], B[LEN * STATES], C[LEN * STATES], A[STATES], A_log[STATES], D = 0.7, y[LEN], right[LEN];
    double h[STATES] = {0}, mine[STATES] = {0}, d[EIGHT], out[EIGHT], state[EIGHT];
    uint64_t rng = 3;
    int at = 0, same = 1, negative = 0;
    fill(u, LEN, -1, 1, &rng), fill(delta, LEN, 0.1, 1, &rng);
    fill(B, LEN * STATES, -1, 1, &rng), fill(C, LEN * STATES, -1, 1, &rng), fill(A_log, STATES, -1, 1, &rng);
    for (int n = 0; n < STATES; n++) A[n] = -exp(A_log[n]);
    for (int t = 0; t < LEN; t++) y[t] = NAN;
    small_scan(right, NULL, u, delta, B, C, A_log, &D, h, LEN, 1, STATES);
    scan_channel(y, mine, u, delta, B, C, A, D, LEN, STATES);
    while (at < LEN - 1 && close_to(y[at], right[at])) at++;
    for (int n = 0; n < STATES; n++) same &= close_to(mine[n], h[n]);
    exercise("3.1", close_to(y[at], right[at]) && same, "y at position %d of 0 to %d is %.6g, scan_forward says %.6g%s",
             at, LEN - 1, y[at], right[at],
             close_to(y[at], right[at]) ? ": y is right everywhere, but the state that is left in h is not"
                                        : slip(y[at], at, u, delta, B, C, A, D));

    for (int t = 0; t < EIGHT; t++) d[t] = 0;
    choose_delta(d);
    for (int t = 0; t < EIGHT; t++) negative |= d[t] < 0;
    eight_scan(out, state, eight_u, d, eight_ones, eight_ones);
    exercise("3.2", !negative && fabs(state[EIGHT - 1] - 3) <= 0.01, "%s the last state is %.6g, not 3",
             negative ? "a delta is negative;" : "with these deltas", state[EIGHT - 1]);

    for (int t = 0; t < LEN; t++) delta[t] = 0.3, B[t] = 0.5, C[t] = -2, u[t] = t == 0;
    D = h[0] = 0, A_log[0] = log(0.8), at = 0;
    small_scan(right, NULL, u, delta, B, C, A_log, &D, h, LEN, 1, 1); /* of 1, 0, 0, ...: the kernel itself */
    while (at < LEN - 1 && close_to(kernel(at, 0.3, -0.8, 0.5, -2), right[at])) at++;
    exercise("3.3", close_to(kernel(at, 0.3, -0.8, 0.5, -2), right[at]),
             "with delta 0.3, A -0.8, B 0.5 and C -2, entry %d of your kernel is %.6g; the scan of 1, 0, 0, ... has "
             "%.6g at position %d%s",
             at, kernel(at, 0.3, -0.8, 0.5, -2), right[at], at,
             at == 0 && close_to(kernel(0, 0.3, -0.8, 0.5, -2), -1) ? ": the input is weighed with delta B, not with B"
                                                                    : "");
    return exercises_failed;
}
