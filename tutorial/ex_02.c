/* Exercises of chapter 2. Replace the bodies of the functions; `make ex-02` says PASS or what is wrong.
   SPDX-License-Identifier: MIT */
#define MAMBA_REAL double
#include "../mamba.c"
#include "exercise.h"

/* 2.1 The bias that makes delta = softplus(bias) equal to step, for any step from 0.0001 to 1000. */
static double bias_for(double step) {
    return 0;
}

/* 2.2 After how many steps of size delta has a number of the state that decays with A (negative) halved? */
static double steps_to_half(double delta, double A) {
    return 0;
}

/* 2.3 The weight of the input under zero-order hold: (exp(delta A) - 1) / A times B, exact also where delta A is tiny.
 */
static double zoh_weight(double delta, double A, double B) {
    return 0;
}

int main(void) {
    const double step[] = {0.0001, 0.1, 3, 1000}, rate[] = {-1, -2, -1e-3};
    double at = 0, found = 0, expected = 0;
    for (int i = 0; i < 4 && close_to(found, at); i++) {
        at = step[i], found = 0;
        delta_forward(&found, (expected = bias_for(at), &expected), 1, 1);
        if (!(fabs(found - at) <= 1e-9 * at)) break;
        found = at;
    }
    exercise("2.1", found == at, "for step %g bias_for gives %g, and delta_forward makes %g of that%s", at, expected,
             found, isinf(expected) ? "; exp(1000) is too large for a double, but exp(-1000) is not" : "");
    for (int i = 0; i < 3; i++) {
        double h = 1, n;
        at = rate[i], n = steps_to_half(0.01, at);
        h = exp(n * 0.01 * at);
        found = n, expected = h;
        if (!close_to(h, 0.5)) break;
    }
    exercise("2.2", close_to(expected, 0.5),
             "with delta 0.01 and A %g you say %g steps; after as many, 1 has become %g", at, found, expected);
    for (int i = 0; i < 3; i++) {
        const double x[] = {0.5, 1e-6, 1e-14}; /* delta, with A = -1 and B = 3: the series of (1 - exp(-x)) 3 */
        double series = 0, term = 1;
        for (int k = 1; k < 20; k++) term *= (k == 1 ? x[i] : -x[i] / k), series += term;
        at = x[i], found = zoh_weight(at, -1, 3), expected = 3 * series;
        if (!(fabs(found - expected) <= 1e-9 * expected)) break;
    }
    exercise("2.3", fabs(found - expected) <= 1e-9 * expected,
             "with delta %g, A -1 and B 3 the weight is %.12g; zoh_weight "
             "says %.12g%s",
             at, expected, found,
             close_to(found, at * 3) && at > 0.1 ? "; that is Euler's rule"
             : at < 0.1 && close_to(found, expected)
                 ? "; exp(x) - 1 loses the digits of a small x, expm1(x) keeps them"
                 : "");
    return exercises_failed;
}
