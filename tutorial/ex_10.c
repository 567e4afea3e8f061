/* Exercises of chapter 10. Replace the bodies of the functions; `make ex-10` says PASS or what is wrong.
   SPDX-License-Identifier: MIT */
#define MAMBA_REAL double
#include "../mamba.c"
#include "exercise.h"

/* 10.1 The least time in seconds for work that moves `bytes` and does `operations`, which overlap, on a machine that
   moves `bandwidth` bytes and does `rate` operations in a second. */
static double least_time(double bytes, double operations, double bandwidth, double rate) {
    return 0;
}

/* 10.2 A sum over the n lanes of a warp (a power of two) by exchanges: in each round every lane adds the value of the
   lane whose number differs from its own in one bit. In the end all lanes have the sum. `before` is room for n. */
static void sum_of_lanes(double *lane, double *before, int n) {
}

/* 10.3 Phase 2. A chunk of positions, walked from h = 0, ended in end[k], and delta_sum[k] is the sum of its deltas.
   begin[k]: the state that chunk k begins with, from h_first before the first. A is negative. */
static void enter_chunks(double *begin, const double *end, const double *delta_sum, double A, double h_first, int n) {
}

enum { LANES_OF_WARP = 32, CHUNKS = 5, STEPS = 4 };

int main(void) {
    double lane[LANES_OF_WARP], before[LANES_OF_WARP], sum = 0, end[CHUNKS], delta_sum[CHUNKS], right[CHUNKS];
    double begin[CHUNKS] = {0}, h = 1.5, A = -0.7, memory = least_time(400, 20, 2, 5), work = least_time(10, 400, 2, 5);
    uint64_t rng = 10;
    int i, k;
    exercise("10.1", close_to(memory, 200) && close_to(work, 80),
             "400 bytes and 20 operations at 2 and 5 a second take 200 s, yours %g; 10 bytes and 400 operations 80 s, "
             "yours %g%s", memory, work, close_to(memory, 204) ? ": they overlap, so the times are not added" : "");
    for (i = 0; i < LANES_OF_WARP; i++) sum += lane[i] = random_normal(&rng);
    sum_of_lanes(lane, before, LANES_OF_WARP);
    for (i = 0; i < LANES_OF_WARP - 1 && close_to(lane[i], sum); i++) { }
    exercise("10.2", close_to(lane[i], sum), "lane %d should have %g, and has %g%s", i, sum, lane[i],
             i > 0 ? ". Do all lanes add in each round, and does none read what the same round has written?" : "");
    for (k = 0; k < CHUNKS; k++) {
        right[k] = h, end[k] = delta_sum[k] = 0;
        for (i = 0; i < STEPS; i++) {
            double delta = random_uniform(&rng), input = random_normal(&rng);
            h = exp(delta * A) * h + input, end[k] = exp(delta * A) * end[k] + input, delta_sum[k] += delta;
        }
    }
    enter_chunks(begin, end, delta_sum, A, right[0], CHUNKS);
    for (k = 0; k < CHUNKS - 1 && close_to(begin[k], right[k]); k++) { }
    exercise("10.3", close_to(begin[k], right[k]), "chunk %d should begin with %.6g; yours begins with %.6g%s", k,
             right[k], begin[k],
             k == 0 ? ", which is to be h_first" : ". The map of a chunk is h -> exp(delta_sum A) h + end");
    return exercises_failed;
}
