/* Exercises of chapter 6. Replace the bodies of the functions; `make ex-06` says PASS or what is wrong.
   SPDX-License-Identifier: MIT */
#define MAMBA_REAL double
#include "../mamba.c"
#include "exercise.h"

/* 6.1 The cross entropy of n logits when the next token is `target`, in nats, and its gradient by each logit. Logits
   may be as large as 1000. */
static double loss_and_gradient(double *gradient, const double *logits, int target, int n) {
    return 0;
}

/* 6.2 One step of AdamW for one weight, counted from 1: m and v are its moments, g its gradient. Returns the new
   weight. (Without clipping.) */
static double adamw_weight(double w, double *m, double *v, double g, double lr, double beta1, double beta2, double eps,
                           double weight_decay, int step) {
    return w;
}

/* 6.3 The entropy, in nats, of a source that says one of n words, each equally probable, then with probability p the
   same word once more, and stops. */
static double entropy_of(int n, double p) {
    return 0;
}

int main(void) {
    double logits[3][4] = {{1, -2, 0.5, 0}, {1000, 999, 0, 998}, {-1000, -1001, -1000.5, -1000}};
    double copy[4], mine[4] = {0};
    double w = 0.7, m = 0, v = 0, right = 0, wrong = 0, second = 0, third = 0;
    double weights[16] = {0.7}, grads[16] = {0}, moment1[16] = {0}, moment2[16] = {0};
    AdamW o;
    Tensor tensor;
    int at = 0, index = 0, correct, same = 1, step;
    for (at = 0; at < 3 && same; at++) {
        memcpy(copy, logits[at], sizeof copy);
        right = cross_entropy(copy, 1, 4, 1, &correct);
        memset(mine, 0, sizeof mine);
        wrong = loss_and_gradient(mine, logits[at], 1, 4);
        same = close_to(wrong, right);
        for (index = 0; same && index < 4; index++) same = close_to(mine[index], copy[index]);
    }
    at--, index = index > 0 ? index - 1 : 0;
    exercise("6.1", same,
             "with logits %g %g %g %g and target 1 the loss is %.6g, yours %.6g, and its gradient by logit %d is %.6g, "
             "yours %.6g%s",
             logits[at][0], logits[at][1], logits[at][2], logits[at][3], right, wrong, index, copy[index], mine[index],
             !isfinite(wrong)           ? ": subtract the largest logit before exp; it may be negative"
             : !close_to(wrong, right)  ? ": start with the loss"
             : close_to(mine[index], -copy[index]) ? ": of the other sign"
                                        : "");
    memset(&tensor, 0, sizeof tensor), memset(&o, 0, sizeof o);
    o.beta1 = 0.9, o.beta2 = 0.95, o.eps = 1e-8, o.weight_decay = 0.1;
    tensor.size = 1, tensor.decay = 1, tensor.type = TYPE_REAL;
    same = 1;
    for (step = 1; step <= 20 && same; step++) {
        double g = cos(step) + 0.3;
        grads[0] = g;
        adamw_step(&tensor, 1, weights, grads, moment1, moment2, 16, &o, 0.01, step);
        w = adamw_weight(w, &m, &v, g, 0.01, 0.9, 0.95, 1e-8, 0.1, step);
        same = fabs(w - weights[0]) < 1e-9;
    }
    /* the first step goes by lr (m' / sqrt(v') + 0.1 w), and m' / sqrt(v') is 1; uncorrected 0.1 / sqrt(0.05) */
    exercise("6.2", same, "after step %d the weight is %.9g, yours %.9g%s", step - 1, weights[0], w,
             step != 2                                   ? ""
             : close_to(w, 0.7 - 0.01 * (0.447214 + 0.07)) ? ": m and v begin at 0; divide by 1 - beta^step"
             : close_to(w, 0.7 - 0.01)                   ? ": the decay is a part of the step, not of the gradient"
             : close_to(w, 0.7 - 0.01 - 0.1 * 0.7)       ? ": the decay is multiplied with lr, too"
                                                         : "");
    second = entropy_of(8, 0.5), third = entropy_of(10, 0);
    exercise("6.3", close_to(second, log(16)) && close_to(third, log(10)),
             "8 words and p = 1/2: log 8 + log 2 = %.6g, you say %.6g; 10 words and p = 0: %.6g, you say %.6g%s",
             log(16), second, log(10), third, close_to(second, log(16)) && isnan(third) ? ": 0 log 0 is 0" : "");
    return exercises_failed;
}
