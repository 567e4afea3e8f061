/* Exercises of chapter 4. Replace the bodies of the functions; `make ex-04` says PASS or what is wrong.
   SPDX-License-Identifier: MIT */
#define MAMBA_REAL double
#include "../mamba.c"
#include "small.h"
#include "exercise.h"

/* 4.1 How many parameters has a block? in_proj and out_proj have no bias, the convolution and dt_proj have one. */
static double block_parameters(int d_model, int d_inner, int d_state, int d_conv, int dt_rank) {
    return 0;
}

/* 4.2 One step of the convolution of one channel, with SiLU: takes the input x of a position and returns u. before
   holds the d_conv - 1 inputs of the positions before it, oldest first, and is to be updated. w: (d_conv), the last tap
   is for the current input. */
static double conv_step(double *before, double x, const double *w, double bias, int d_conv) {
    return 0;
}

/* 4.3 If every B were 0, the scan would remember nothing, and only the convolutions would look back. Of how many
   positions, itself included, could an output of a model of n_layer blocks know? */
static int seen_without_scan(int n_layer, int d_conv) {
    return 0;
}

/* What seen_without_scan should say, by trying: how many outputs change if the first of 30 tokens does. */
static int count_seen(int n_layer, int d_conv) {
    Config c = config_of(7, 8, n_layer, 2, d_conv);
    double logits[2][30 * 7];
    int tokens[30] = {0}, seen = 0;
    Model m;
    Backend b;
    if (model_create(&m, &c) != 0 || cpu_backend(&b, &m, 1, 0) != 0) exit(1);
    model_init(&m, 1);
    for (int i = 0; i < m.n_tensor; i++)
        if (strstr(m.tensor[i].name, "x_proj") != NULL) /* (dt_rank + 2 d_state, d_inner); the rows of B */
            memset(m.weights + m.tensor[i].offset + c.dt_rank * c.d_inner, 0, c.d_state * c.d_inner * sizeof(real));
    for (int way = 0; way < 2; way++) {
        tokens[0] = way;
        b.reset(b.self, 1);
        b.forward(b.self, tokens, 30, logits[way], 1);
    }
    for (int t = 0; t < 30; t++) {
        int differs = 0;
        for (int i = 0; i < 7; i++) differs |= logits[0][t * 7 + i] != logits[1][t * 7 + i];
        seen += differs;
    }
    b.close(b.self);
    model_free(&m);
    return seen;
}

int main(void) {
    const double w[4] = {0.1, -0.4, 0.8, 0.3}, bias = 0.2;
    double before[3] = {0}, start[3] = {0}, x[10], u[10], mine = 0, mirrored = 0, right = 0;
    int t, layers, taps, found = 0, expected = 0;
    Config c = config_of(1, 24, 1, 5, 3);
    Model m;
    c.dt_rank = 7;
    if (model_table(&m, &c) != 0) return 1;
    for (int i = 1; i < m.n_tensor - 1; i++) right += m.tensor[i].size;
    model_free(&m);
    mine = block_parameters(24, 48, 5, 3, 7);
    exercise("4.1", mine == right,
             "with d_model 24, d_inner 48, d_state 5, d_conv 3, dt_rank 7 there are %.0f; "
             "block_parameters says %.0f%s",
             right, mine,
             mine == right - 24   ? ": the norm is missing"
             : mine == right - 48 ? ": d_inner of them are missing, a bias or D"
                                  : "");

    for (t = 0; t < 10; t++) x[t] = sin(3 * t + 1);
    conv_forward(u, x, 1, w, &bias, start, NULL, 0, 1, 10, 1, 4);
    for (t = 0; t < 10; t++) {
        double s = bias;
        for (int k = 0; k < 4; k++) s += t >= k ? w[k] * x[t - k] : 0;
        mirrored = s / (1 + exp(-s)), mine = conv_step(before, x[t], w, bias, 4);
        if (!close_to(mine, u[t])) break;
    }
    exercise("4.2", t == 10, "at position %d conv_step gives %.6g, conv_forward %.6g%s", t, mine, t < 10 ? u[t] : 0.,
             close_to(mine, mirrored)                                ? ": the taps are in reverse order"
             : close_to(mine / (1 + exp(-mine)), t < 10 ? u[t] : 0.) ? ": SiLU is missing"
             : t > 0 && t < 10 && before[2] != x[t]                  ? ": the newest input belongs at the end of before"
                                                                     : "");

    for (layers = 1; layers <= 3 && found == expected; layers++)
        for (taps = 2; taps <= 4 && found == expected; taps++)
            found = seen_without_scan(layers, taps), expected = count_seen(layers, taps);
    exercise("4.3", found == expected, "n_layer %d with d_conv %d sees %d positions; seen_without_scan says %d%s",
             layers - 1, taps - 1, expected, found,
             found == expected - 1 ? ": the position itself counts, too"
             : found == (layers - 1) * (taps - 1) && layers > 2
                 ? ": the current input is a tap in each block, but only one position"
                 : "");
    return exercises_failed;
}
