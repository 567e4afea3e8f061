/* Exercises of chapter 12. Replace the bodies of the functions; `make ex-12` says PASS or what is wrong.
   SPDX-License-Identifier: MIT */
#define MAMBA_REAL double
#include "../mamba.c"
#include "exercise.h"

/* 12.1 The p for which c x^p fits n measurements best: the slope of the straight line through the logarithms. */
static double power_of(const double *x, const double *y, int n) {
    return 0;
}

/* 12.2 The perplexity of n tokens, given the loss of each in nats. */
static double perplexity_of(const double *loss, int n) {
    return 0;
}

/* 12.3 The most tokens of a vocabulary that a state of `numbers` can hold without loss, if each number keeps `bits`. */
static double most_tokens(double numbers, double bits, double vocab_size) {
    return 0;
}

enum { N = 6 };

int main(void) {
    const double bend[N] = {-5, 7, 4, -4, -7, 5}; /* leaves the best straight line as it is */
    double x[N], y[N], loss[4] = {0, 0, 0, log(16)}, p, mean = (1 + 1 + 1 + 16) / 4., power, most;
    for (int i = 0; i < N; i++) x[i] = pow(2, i + 3), y[i] = 7 * pow(x[i], 1.5) * exp(bend[i] / 50);
    power = power_of(x, y, N);
    exercise("12.1", close_to(power, 1.5), "these six points about 7 x^1.5 have the power 1.5, yours is %g%s", power,
             close_to(power, log(y[N - 1] / y[0]) / log(x[N - 1] / x[0])) ? ": what of those between?" : "");
    p = perplexity_of(loss, 4);
    exercise("12.2", close_to(p, 2), "three certain tokens and one of 16: perplexity 2, yours is %g%s", p,
             close_to(p, mean) ? ". Take the mean of the losses, not of the perplexities" : "");
    most = most_tokens(700416, 8, 256);
    exercise("12.3", close_to(most, 700416) && close_to(most_tokens(10, 4, 16), 10) &&
             close_to(most_tokens(10, 4, 4), 20), "a byte fits into a number of 8 bits: 700416 of them, yours are %g%s",
             most, close_to(most * log(2), 700416) ? ": a token is log2(vocab_size) bits" : "");
    return exercises_failed;
}
