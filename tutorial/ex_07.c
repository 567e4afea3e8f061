/* Exercises of chapter 7. Replace the bodies of the functions; `make ex-07` says PASS or what is wrong.
   SPDX-License-Identifier: MIT */
#define MAMBA_REAL double
#include "../mamba.c"
#include "small.h"
#include "exercise.h"

/* 7.1 The probability with which a sampler at this temperature (above 0) draws the token id. Logits may be large. */
static double probability(const double *logits, int n, int id, double temperature) {
    return 0;
}

/* 7.2 How many tokens does top-p keep? p: (n), the probabilities, largest first; kept are the fewest whose sum is at
   least top_p. */
static int kept_by_top_p(const double *p, int n, double top_p) {
    return 0;
}

/* 7.3 A text of n tokens, and k tokens that may follow it: logits (k, vocab_size) after each of them. The text may be
   read once only. b has been reset; b->forward(b->self, ids, len, logits, 0) reads on, and
   b->copy(b->self, STATE, array, 0) takes the state out, with 1 in place of 0 back. state: room for it. */
static void try_each(Backend *b, const int *text, int n, const int *next, int k, double *logits, double *state) {
}

enum { N = 40, K = 3, VOCAB = 16 };
static int n_read;
static int (*real_forward)(void *self, const int *tokens, int len, real *logits, int all);

static int counting_forward(void *self, const int *tokens, int len, real *logits, int all) {
    n_read += len;
    return real_forward(self, tokens, len, logits, all);
}

int main(void) {
    const double logits[4] = {1000, 1001, 998, 1001.5}, sorted[5] = {0.5, 0.25, 0.125, 0.0625, 0.0625};
    const double share[4] = {0.6, 0.75, 0.9, 0.01};
    double right[K * VOCAB], mine[K * VOCAB] = {0}, *state, total, found = 0, expected = 0, worst = 0;
    const int next[K] = {3, 9, 4}, kept[4] = {2, 2, 4, 1};
    int text[N], same = 1, i;
    Config c = config_of(VOCAB, 16, 2, 4, 4);
    Model m;
    Backend b;
    for (i = 0; i < 3 && same; i++) {
        double temperature = i == 0 ? 1 : i == 1 ? 0.5 : 3;
        total = 0;
        for (int j = 0; j < 4; j++) total += exp((logits[j] - 1001.5) / temperature);
        expected = exp((logits[1] - 1001.5) / temperature) / total, found = probability(logits, 4, 1, temperature);
        same = close_to(found, expected);
        total = temperature;
    }
    exercise("7.1", same, "at temperature %g it is %.6g; probability says %.6g%s", total, expected, found,
             isnan(found) ? ": subtract the largest logit first" : "");
    for (i = 0, same = 1; i < 4 && same; i++) same = kept_by_top_p(sorted, 5, share[i]) == kept[i];
    exercise("7.2", same, "of 0.5 0.25 0.125 0.0625 0.0625 top_p %g keeps %d; kept_by_top_p says %d", share[i - 1],
             kept[i - 1], kept_by_top_p(sorted, 5, share[i - 1]));
    if (model_create(&m, &c) != 0 || cpu_backend(&b, &m, 1, 0) != 0) return 1;
    model_init(&m, 1);
    state = (double *)allocate(state_size(&c, 1), sizeof *state);
    for (i = 0; i < N; i++) text[i] = (i * i + 3) % VOCAB;
    for (i = 0; i < K; i++) {
        b.reset(b.self, 1);
        b.forward(b.self, text, N, NULL, 0);
        b.forward(b.self, next + i, 1, right + i * VOCAB, 0);
    }
    b.reset(b.self, 1);
    real_forward = b.forward, b.forward = counting_forward;
    try_each(&b, text, N, next, K, mine, state);
    for (i = 0; i < K * VOCAB && worst < 1e-9; i++) worst = fmax(worst, fabs(mine[i] - right[i]));
    exercise("7.3", worst < 1e-9 && n_read <= N + K,
             worst < 1e-9 ? "you fed %d tokens, not %d: the text more than once"
                          : "you fed %d tokens of %d, and the logits after next[%d] are the first that are not those",
             n_read, N + K, (i - 1) / VOCAB);
    b.close(b.self);
    model_free(&m);
    release(state);
    return exercises_failed;
}
