/* Chapter 9: the eight steps as a tree: by doubling, by an up-sweep and a down-sweep, and in chunks.
   SPDX-License-Identifier: MIT */
#define MAMBA_REAL double
#include "../mamba.c"
#include "small.h"
#include "eight.h"
#include "plot.h"

enum { LEVELS = 3 }; /* log2 of EIGHT */

/* A step, or several: the map h -> a h + b. */
typedef struct {
    double a, b;
} Affine;

static long applied; /* how often `then` was called */

/* The map that does `first` and then `second`: second.a (first.a h + first.b) + second.b. */
static Affine then(Affine first, Affine second) {
    Affine both = {second.a * first.a, second.a * first.b + second.b};
    applied++;
    return both;
}

static void steps(Affine *p) {
    for (int t = 0; t < EIGHT; t++) p[t].a = 0.5, p[t].b = eight_u[t];
}

/* The b of a row; the pictures have the a, too. */
static void print_row(const char *name, const Affine *p) {
    printf("%-9s", name);
    for (int t = 0; t < EIGHT; t++) printf(" %11.9g", p[t].b);
    printf("\n");
}

/* Doubling: after level k every position has put together the 2^k steps that end there. Returns the levels, level[0]
   being the steps. With BREAK a level works in place: some read what others have written in it. */
static void doubling(Affine level[LEVELS + 1][EIGHT]) {
    for (int k = 0, reach = 1; k < LEVELS; k++, reach *= 2) {
        memcpy(level[k + 1], level[k], sizeof level[k]);
#ifdef BREAK
        for (int t = reach; t < EIGHT; t++) level[k + 1][t] = then(level[k + 1][t - reach], level[k + 1][t]);
#else
        for (int t = reach; t < EIGHT; t++) level[k + 1][t] = then(level[k][t - reach], level[k][t]);
#endif
    }
}

/* Up: the last position of each group of 2, 4, 8 gets the map of the group. Down: each group, told what comes before
   it, tells its halves: the left one the same, the right one that, then the left one's map. What comes out at t is
   what comes before t. */
static void sweeps(Affine up[LEVELS + 1][EIGHT], Affine down[LEVELS + 1][EIGHT]) {
    const Affine nothing = {1, 0};
    for (int k = 0; k < LEVELS; k++) {
        int group = 2 << k;
        memcpy(up[k + 1], up[k], sizeof up[k]);
        for (int t = group - 1; t < EIGHT; t += group) up[k + 1][t] = then(up[k][t - group / 2], up[k][t]);
    }
    memcpy(down[0], up[LEVELS], sizeof down[0]);
    down[0][EIGHT - 1] = nothing;
    for (int k = 0; k < LEVELS; k++) {
        int group = EIGHT >> k;
        memcpy(down[k + 1], down[k], sizeof down[k]);
        for (int t = group - 1; t < EIGHT; t += group) {
            Affine before = down[k][t];
            down[k + 1][t] = then(before, up[LEVELS - 1 - k][t - group / 2]);
            down[k + 1][t - group / 2] = before;
        }
    }
}

/* In chunks of `length`: each alone, then the chunks' maps in turn, then each again from where it begins. */
static void chunked(double *h, const Affine *step, int length) {
    Affine whole[EIGHT];
    double start[EIGHT] = {0};
    int chunks = EIGHT / length;
    for (int c = 0; c < chunks; c++) {
        whole[c] = step[c * length];
        for (int i = 1; i < length; i++) whole[c] = then(whole[c], step[c * length + i]);
    }
    for (int c = 0; c + 1 < chunks; c++) start[c + 1] = whole[c].a * start[c] + whole[c].b;
    for (int c = 0; c < chunks; c++) {
        double state = start[c];
        for (int i = 0; i < length; i++)
            h[c * length + i] = state = step[c * length + i].a * state + step[c * length + i].b;
        printf("chunk %d: map (%g, %g), begins at %g\n", c + 1, whole[c].a, whole[c].b, start[c]);
    }
}

static void print_counts(void) {
    printf("\n%9s%24s%24s%24s\n%9s%12s%12s%12s%12s%12s%12s\n", "", "loop", "doubling", "sweeps", "steps", "work",
           "depth", "work", "depth", "work", "depth");
    for (int k = 3; k <= 20; k += k < 10 ? 7 : 10) {
        double n = pow(2, k);
        printf("%9.0f%12.0f%12.0f%12.0f%12d%12.0f%12d\n", n, n - 1, n - 1, n * k - n + 1, k, 2 * (n - 1), 2 * k);
    }
}

/* A box for each pair, a row for each level, arrows from what it was made of. */
static void draw_doubling(const char *dir, Affine level[LEVELS + 1][EIGHT]) {
    Picture p;
    picture_open(&p, dir, "09_doubling.svg", 840, 400, "Doubling: each box is a map (a, b), made of two above it");
    for (int k = 0; k <= LEVELS; k++)
        for (int t = 0; t < EIGHT; t++) {
            double x = 20 + 101 * t, y = 40 + 92 * k;
            char text[64];
            int reach = 1 << k >> 1, made = k > 0 && t >= reach;
            snprintf(text, sizeof text, "%.7g\n%.9g", level[k][t].a, level[k][t].b);
            picture_box(&p, x, y, 92, 44, t < 1 << k ? 1 : made ? 0 : 5, text);
            if (made) picture_arrow(&p, x + 36 - 101 * reach, y - 48, x + 30, y, 0);
            if (made) picture_arrow(&p, x + 46, y - 48, x + 46, y, INK);
        }
    picture_text(&p, 20, 388, LEFT, "Orange: complete, that is, all steps from the first on. Then b is h.");
    if (picture_close(&p) != 0) exit(1);
}

static void draw_sweeps(const char *dir, Affine up[LEVELS + 1][EIGHT], Affine down[LEVELS + 1][EIGHT]) {
    Picture p;
    picture_open(&p, dir, "09_sweeps.svg", 840, 640, "Up: maps of groups. Down: what comes before each group");
    for (int k = 0; k <= LEVELS; k++)
        for (int way = 0; way < 2; way++) {
            int group = way ? EIGHT >> k : 1 << k;
            for (int t = group - 1; t < EIGHT; t += group) {
                const Affine *pair = way ? &down[k][t] : &up[k][t];
                double x = 20 + 101 * (t - (group - 1) / 2.), y = way ? 344 + 72 * k : 40 + 72 * k;
                char text[64];
                snprintf(text, sizeof text, "%.7g\n%.9g", pair->a, pair->b);
                picture_box(&p, x, y, 92, 40, way ? 1 : 0, text);
                for (int half = 0; half < 2 && (way ? k < LEVELS : k > 0); half++) {
                    double other = x + 46 + (half ? 1 : -1) * 101 * group / 4.;
                    if (way) picture_arrow(&p, x + 46 + (half ? 12 : -12), y + 40, other, y + 72, 1);
                    else picture_arrow(&p, other, y - 32, x + 46 + (half ? 12 : -12), y, 0);
                }
            }
        }
    picture_text(&p, 20, 336, LEFT,
                 "The root is told (1, 0). A left half is told what its parent was; a right half that, "
                 "then the left half's map.");
    if (picture_close(&p) != 0) exit(1);
}

int main(int argc, char **argv) {
    const char *dir = argc > 1 ? argv[1] : ".";
    Affine step[EIGHT], level[LEVELS + 1][EIGHT], up[LEVELS + 1][EIGHT], down[LEVELS + 1][EIGHT];
    double y[EIGHT], right[EIGHT], h[EIGHT], worst[3] = {0};
    char name[16];
    long count[2];
    steps(step), steps(level[0]), steps(up[0]);
    eight_scan(y, right, eight_u, eight_ones, eight_ones, eight_ones);
    applied = 0, doubling(level), count[0] = applied;
    applied = 0, sweeps(up, down), count[1] = applied;
    printf("doubling: b at each position\n");
    for (int k = 0; k <= LEVELS; k++) snprintf(name, sizeof name, "level %d", k), print_row(name, level[k]);
    printf("\nsweeps: b at each position\n");
    for (int k = 0; k <= LEVELS; k++) snprintf(name, sizeof name, "up %d", k), print_row(name, up[k]);
    for (int k = 0; k <= LEVELS; k++) snprintf(name, sizeof name, "down %d", k), print_row(name, down[k]);
    printf("\nchunks of 4\n");
    chunked(h, step, 4);
    for (int t = 0; t < EIGHT; t++) {
        worst[0] = fmax(worst[0], fabs(level[LEVELS][t].b - right[t]));
        worst[1] = fmax(worst[1], fabs(then(down[LEVELS][t], step[t]).b - right[t]));
        worst[2] = fmax(worst[2], fabs(h[t] - right[t]));
    }
    printf("\nas scan_forward, to 1e-12: doubling %s, sweeps %s, chunks %s\n", worst[0] < 1e-12 ? "yes" : "no",
           worst[1] < 1e-12 ? "yes" : "no", worst[2] < 1e-12 ? "yes" : "no");
    printf("applied: doubling %ld times, sweeps %ld times and once more at each position\n", count[0], count[1]);
    print_counts();
    draw_doubling(dir, level);
    draw_sweeps(dir, up, down);
    return 0;
}
