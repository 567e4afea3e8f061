/* Exercises of chapter 8. Replace the bodies of the functions; `make ex-08` says PASS or what is wrong.
   SPDX-License-Identifier: MIT */
#define MAMBA_REAL double
#include "../mamba.c"
#include "small.h"
#include "exercise.h"

/* 8.1 The weight that a time-invariant layer gives, in one channel, to the input of k positions ago: what scan_forward
   does with constant delta, B and C, without D. A, B, C: (d_state); A is below 0. */
static double kernel(int k, double delta, const double *A, const double *B, const double *C, int d_state) {
    return 0;
}

/* 8.2 From what a model said, how many answers are right, and how many samples have no wrong one. A target below 0 is
   no question. said, target: (samples, len) */
static void score(const int *said, const int *target, int samples, int len, int *answers, int *whole) {
}

/* 8.3 Induction heads by hand, with two numbers of memory, which are 0 at first, and no other. Reads a token (0 to
   vocabulary - 1). If it is the trigger, and not for the first time, returns what followed the trigger when it came
   first; else -1. Samples have any length; the trigger may be any token, and come more than twice. */
static int induction_reader(int memory[2], int token, int trigger) {
    return 0;
}

enum { LEN = 24, N = 3, SAMPLES = 40, ROW = 4, SHORT = 10 };

/* Whether induction_reader is right at every token of short samples in which the trigger comes often: of one, or of two
   at once, each with a memory of its own. Else says where it is not. */
static int reads_short(int at_once, uint64_t seed, char *text, size_t size) {
    int token[2][SHORT], trigger[2], memory[2][2] = {{0, 0}, {0, 0}}, first[2] = {-1, -1};
    for (int s = 0; s < at_once; s++) trigger[s] = random_below(&seed, 4);
    for (int i = 0; i < SHORT; i++)
        for (int s = 0; s < at_once; s++) {
            int wanted, found, n;
            token[s][i] = random_below(&seed, 4);
            wanted = first[s] >= 0 && token[s][i] == trigger[s] ? token[s][first[s] + 1] : -1;
            found = induction_reader(memory[s], token[s][i], trigger[s]);
            if (first[s] < 0 && token[s][i] == trigger[s]) first[s] = i;
            if (found == wanted) continue;
            n = snprintf(text, size, "with trigger %d and the tokens", trigger[s]);
            for (int j = 0; j <= i; j++) n += snprintf(text + n, size - n, " %d", token[s][j]);
            snprintf(text + n, size - n, " it should return %d at the last, and returns %d%s", wanted, found,
                     at_once == 2 ? ". One sample at a time is right: does it keep anything outside of memory?" : "");
            return 0;
        }
    return 1;
}

int main(void) {
    double A_log[N] = {0, log(2), log(3)}, A[N] = {-1, -2, -3}, B[LEN * N], C[LEN * N], u[LEN] = {1};
    double delta[LEN], y[LEN], h[N] = {0}, kept[LEN * N + N], D[1] = {0}, mine = 0;
    const int said[3 * ROW] = {5, 1, 2, 9, 5, 1, 3, 9, 0, 1, 2, 3};
    const int target[3 * ROW] = {-1, 1, 2, -1, -1, 1, 2, -1, 5, 1, 2, 3};
    int answers = -1, whole = -1, same = 1, t, right = 0, wrong_len = 0, reads = 1;
    char text[256];
    static Task task;
    for (t = 0; t < LEN; t++) {
        delta[t] = 0.3;
        for (int n = 0; n < N; n++) B[t * N + n] = 0.5 + n, C[t * N + n] = 1 - 0.7 * n;
    }
    small_scan(y, kept, u, delta, B, C, A_log, D, h, LEN, 1, N);
    for (t = 0; t < LEN && same; t++) mine = kernel(t, 0.3, A, B, C, N), same = close_to(mine, y[t]);
    t -= t > 0;
    exercise("8.1", same, "an input of 1 makes %.6g after %d positions; kernel says %.6g", y[t], t, mine);

    score(said, target, 3, ROW, &answers, &whole);
    exercise("8.2", answers == 6 && whole == 1, "6 of 8 answers are right, and 1 of 3 samples; score says %d and %d%s",
             answers, whole, answers == 5 && whole == 0 ? ": it adds to what was there before" : "");

    for (int k = 0; k < 2 * SAMPLES && reads; k++) reads = reads_short(k < SAMPLES ? 1 : 2, k, text, sizeof text);
    for (int k = 0; k < SAMPLES; k++) {
        int memory[2] = {0, 0}, token, wanted, found = -1, len = 3 << k % 12;
        if (task_create(&task, INDUCTION, len, 16, 1) != 0) return 1;
        task_begin(&task, (uint64_t)k);
        for (int i = 0; i < len; i++) {
            task_read(&task, &token, &wanted, 1);
            found = induction_reader(memory, token, 15);
        }
        if (found == wanted) right++;
        else wrong_len = len;
    }
    if (reads) snprintf(text, sizeof text, "%d of %d samples are right, but not one of %d tokens", right, SAMPLES,
                        wrong_len);
    exercise("8.3", reads && right == SAMPLES, "%s", text);
    return exercises_failed;
}
