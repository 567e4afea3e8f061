/* Exercises of chapter 9. Replace the bodies of the functions; `make ex-09` says PASS or what is wrong.
   SPDX-License-Identifier: MIT */
#define MAMBA_REAL double
#include "../mamba.c"
#include "exercise.h"

typedef struct { double a, b; } Map; /* h -> a h + b */

/* 9.1 The map that does first `first`, then `second`. */
static Map both(Map first, Map second) {
    return first;
}

/* Counts the calls of both() from here on. */
static long combined;
#define both(first, second) (combined++, both(first, second))

/* 9.2 In place of each of n maps (any n), the map of all from the first up to it, by doubling: at most as many rounds
   as n has bits, in each of which every map changes at most once. `before` is room for n maps; both() is above, and
   its calls are counted. */
static void scan_by_doubling(Map *map, Map *before, int n) {
}

/* 9.3 The backward recurrence g_t = C_t dy_t + abar_{t+1} g_{t+1}, with no g after the last, as maps: map[i] is the
   i-th to be applied, beginning at the end of the sequence, so that a scan of them has g_t at i = n - 1 - t. */
static void backward_maps(Map *map, const double *abar, const double *C, const double *dy, int n) {
}

enum { N = 13, MOST = 33 };

/* Whether scan_by_doubling is right for n maps, touches no others and calls both() as often as doubling does: in a
   round for each position that has something to combine with, at most for each position. Else says what is wrong. */
static int scans(int n, char *text, size_t size) {
    Map map[2 * MOST], before[2 * MOST], right[MOST], outside = {7, 7};
    long least = 0, most = 0;
    uint64_t rng = 9;
    int t;
    for (t = 0; t < 2 * MOST; t++) map[t] = before[t] = outside;
    for (t = 0; t < n; t++) {
        map[t].a = random_uniform(&rng), map[t].b = random_normal(&rng), right[t] = map[t];
        if (t > 0) right[t].a *= right[t - 1].a, right[t].b += map[t].a * right[t - 1].b;
    }
    combined = 0;
    scan_by_doubling(map, before, n);
    for (t = 0; t < n; t++)
        if (!close_to(map[t].a, right[t].a) || !close_to(map[t].b, right[t].b)) {
            snprintf(text, size,
                     "of %d maps, that at position %d of 0 to %d should be (%.6g, %.6g), and is (%.6g, %.6g)%s", n, t,
                     n - 1, right[t].a, right[t].b, map[t].a, map[t].b,
                     t > 1 ? ". The first ones are right: does a round read what the same round has written, or is "
                             "there one too few?" : "");
            return 0;
        }
    for (; t < 2 * MOST; t++)
        if (memcmp(map + t, &outside, sizeof outside) != 0 || memcmp(before + t, &outside, sizeof outside) != 0) {
            snprintf(text, size, "of %d maps, 0 to %d, something is written at %d", n, n - 1, t);
            return 0;
        }
    for (int reach = 1; reach < n; reach *= 2) least += n - reach;
    for (int bits = n; bits > 0; bits /= 2) most += n;
    snprintf(text, size, "the maps are right, but for %d of them both() was called %ld times; doubling takes %ld%s", n,
             combined, least, combined == n - 1 ? ". Is that the loop, one position after the other?" : "");
    return combined >= least && combined <= most;
}

int main(void) {
    Map f = {0.5, 3}, g = {-2, 0.25}, fg = both(f, g), map[N];
    double at_2 = g.a * (f.a * 2 + f.b) + g.b, abar[N], C[N], dy[N], state = 0, g_t = 0;
    uint64_t rng = 9;
    int solved = close_to(fg.a * 2 + fg.b, at_2) && close_to(fg.b, g.a * f.b + g.b), t, same = 1;
    char text[256];
    exercise("9.1", solved, "h -> 0.5 h + 3 and then h -> -2 h + 0.25 takes 2 to %g; yours takes it to %g%s", at_2,
             fg.a * 2 + fg.b, close_to(fg.b, f.a * g.b + f.b) ? ": it does `second` first" : "");
    for (int n = 1; n <= MOST && same; n++) same = scans(n, text, sizeof text);
    exercise("9.2", same, "%s%s", text, solved ? "" : ". First solve 9.1");
    for (t = 0; t < N; t++) abar[t] = random_uniform(&rng), C[t] = random_normal(&rng), dy[t] = random_normal(&rng);
    memset(map, 0, sizeof map);
    backward_maps(map, abar, C, dy, N);
    for (t = N - 1, same = 1; t >= 0 && same; t--) {
        g_t = C[t] * dy[t] + (t + 1 < N ? abar[t + 1] * g_t : 0);
        state = map[N - 1 - t].a * state + map[N - 1 - t].b;
        same = close_to(state, g_t);
    }
    exercise("9.3", same, "g at position %d of 0 to 12 is %.6g; your maps give %.6g%s", t + 1, g_t, state,
             map[1].a == abar[N - 2] ? ": which step's abar stands before g_{t+1}?" : "");
    return exercises_failed;
}
