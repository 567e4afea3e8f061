/* Exercises of chapter 1. Replace the bodies of the functions; `make ex-01` says PASS or what is wrong.
   SPDX-License-Identifier: MIT */
#define MAMBA_REAL double
#include "../mamba.c"
#include "small.h"
#include "exercise.h"

/* 1.1 How many numbers does attention keep after len tokens? In each of n_layer layers, a key and a value for each
   token; both are heads * head_width wide. */
static double cache_numbers(int n_layer, int heads, int head_width, int len) {
    return 0;
}

/* 1.2 How many numbers is the state of a Mamba model with this config, for one sequence? (Without state_stride.) */
static double state_numbers(const Config *c) {
    return 0;
}

/* 1.3 Grouped queries: several query heads share one key and value head, so that only kv_heads of them are kept. What
   is the smallest length at which the cache holds more numbers than a state of state_numbers? */
static int crossing(int n_layer, int kv_heads, int head_width, double state_numbers) {
    return 0;
}

int main(void) {
    Config c = config_of(1000, 96, 5, 8, 3);
    double right = 0, wrong = cache_numbers(12, 12, 64, 1000);
    exercise("1.1", close_to(wrong, 18432000),
             "12 layers of 12 heads of 64 keep 18432 numbers for each token, so 1000 "
             "tokens need 18432000; cache_numbers says %.10g%s",
             wrong,
             close_to(wrong, 9216000)    ? ": a key is kept, and a value"
             : close_to(wrong, 73728000) ? ": that is bytes"
                                         : "");
    for (int i = 0; i < 2; i++, c.d_state = 24, c.d_conv = 1) {
        right = (double)c.n_layer * state_stride(&c), wrong = state_numbers(&c);
        if (!close_to(wrong, right)) break;
    }
    exercise("1.2", close_to(wrong, right),
             "with d_inner %d, d_state %d, d_conv %d and %d blocks there are %.10g numbers; "
             "state_numbers says %.10g%s",
             c.d_inner, c.d_state, c.d_conv, c.n_layer, right, wrong,
             close_to(wrong, right + (double)c.n_layer * c.d_inner)
                 ? ": of its d_conv inputs the convolution must keep "
                   "one less, as the newest is always at hand"
             : close_to(wrong, (double)c.n_layer * c.d_inner * c.d_state)
                 ? ": that is h; the last inputs of the convolution are missing"
             : close_to(wrong, right / c.n_layer) ? ": that is one block's"
                                                  : "");
    wrong = crossing(12, 12, 64, 700416);
    right = crossing(24, 2, 64, 700416);
    exercise("1.3", wrong == 39 && right == 115,
             "12 layers of 12 heads of 64 cross 700416 numbers at 39 tokens, and 24 "
             "layers with 2 at 115; crossing says %.0f and %.0f%s",
             wrong, right, wrong == 38 && right == 114 ? ": there they are equal, and more is asked for" : "");
    return exercises_failed;
}
