/* Chapter 2: what the step size does: how long a state lasts, and what a step writes.
   SPDX-License-Identifier: MIT */
#define MAMBA_REAL double
#include "../mamba.c"
#include "small.h"
#include "plot.h"

enum { STATES = 16, ROWS = 32, STEPS = 8 };

/* What a step of size delta makes of the state, h = abar h + input u, for one number of state. */
static double abar(double delta, double A) { return exp(delta * A); }
static double input_zoh(double delta, double A, double B) { return expm1(delta * A) / A * B; }
static double input_euler(double delta, double B) { return delta * B; }

static double half_life(double delta, double A) { return log(2) / (delta * -A); }

/* softplus of mamba.c for one number */
static double softplus(double v) { return lanes_softplus(zero_lanes + v)[0]; }

static void print_half_lives(void) {
    const double delta[] = {0.001, 0.01, 0.1, 1};
    printf("steps until a number of the state has halved\n%8s%12s%12s%12s\n", "delta", "A = -1", "A = -4", "A = -16");
    for (int i = 0; i < 4; i++)
        printf("%8g%12.2f%12.2f%12.2f\n", delta[i], half_life(delta[i], -1), half_life(delta[i], -4),
               half_life(delta[i], -16));
}

static void print_rules(void) {
    const double a[] = {0.001, 0.01, 0.1, 0.5, 1, 1.6, 5};
    printf("\nweight of the input for A = -1, B = 1\n%8s%10s%10s%10s%14s\n", "delta", "abar", "ZOH", "Euler",
           "Euler / ZOH");
    for (int i = 0; i < 7; i++)
        printf("%8g%10.5f%10.5f%10.5f%14.4f\n", a[i], abar(a[i], -1), input_zoh(a[i], -1, 1), input_euler(a[i], 1),
               input_euler(a[i], 1) / input_zoh(a[i], -1, 1));
}

/* Theorem 1: with d_state 1, A = -1, B = 1 and delta = softplus(v), abar is 1 - sigmoid(v). */
static void print_gate(void) {
    printf("\nthe gate: A = -1, B = 1, delta = softplus(v)\n%6s%10s%10s%14s%10s%10s\n", "v", "delta", "abar",
           "1-sigmoid(v)", "ZOH", "Euler");
    for (int v = -6; v <= 6; v += 3) {
        double delta = softplus(v);
        printf("%6d%10.5f%10.5f%14.5f%10.5f%10.5f\n", v, delta, abar(delta, -1), 1 - 1 / (1 + exp(-v)),
               input_zoh(delta, -1, 1), input_euler(delta, 1));
    }
}

/* The textbook formula for softplus, in float as a model has it, beside ours. */
static void print_softplus(void) {
    const float v[] = {-20, -5, 5, 100};
    printf("\nsoftplus(v), by the textbook in float, and by mamba.c\n%6s%22s%14s\n", "v", "log(1 + exp(v))", "mamba.c");
    for (int i = 0; i < 4; i++) {
        volatile float e = expf(v[i]), sum = 1 + e;
        printf("%6g%22.4g%14.4g\n", v[i], logf(sum), softplus(v[i]));
    }
}

/* A number that is rounded to the 8 significant bits of a bfloat16. */
static double rounded_bf16(double v) {
    int exponent;
    double mantissa = frexp(v, &exponent);
    return ldexp(floor(mantissa * 256 + 0.5) / 256, exponent);
}

static void print_start(void) {
    Config c = config_of(1, 768, 1, STATES, 4);
    const double *bias, *A_log;
    double low = NAN, high = NAN;
    Model m;
    if (model_create(&m, &c) != 0) exit(1);
    model_init(&m, 1);
    bias = m.params.block[0].dt_bias, A_log = m.params.block[0].A_log;
    range_add(&low, &high, bias, c.d_inner);
    printf("\nat the start\ndt_bias of %d channels: %.2f to %.2f, delta = softplus(dt_bias): %.4f to %.4f\n", c.d_inner,
           low, high, softplus(low), softplus(high));
    printf("A of a channel: %.0f, %.0f, %.0f ... %.0f\n", -exp(A_log[0]), -exp(A_log[1]), -exp(A_log[2]),
           -exp(A_log[STATES - 1]));
    printf("half-lives: %.2f to %.1f steps\n", half_life(0.1, -STATES), half_life(0.001, -1));
    printf("abar of the longest: %.4f, rounded to bfloat16: %.4f\n", abar(0.001, -1), rounded_bf16(abar(0.001, -1)));
    printf("a full matrix for delta: %d numbers; by way of dt_rank %d: %d\n", c.d_inner * c.d_inner, c.dt_rank,
           2 * c.dt_rank * c.d_inner);
    model_free(&m);
}

/* A channel that starts with delta = 0.01 reads inputs of 1: the largest number of its state. With BREAK the softplus
   is left out. */
static void print_states(void) {
    double u[1000], delta[1000], B[1000 * STATES], y[1000], A_log[STATES], h[STATES], D = 0;
    double dt_bias = log(expm1(0.01));
    const int lengths[] = {1, 2, 3, 10, 100, 1000};
    printf("\nlargest number of a state that reads inputs of 1\n%8s%14s\n", "steps", "largest h");
    for (int n = 0; n < STATES; n++) A_log[n] = log(n + 1);
    for (int i = 0; i < 1000 * STATES; i++) B[i] = 1;
    for (int i = 0; i < 6; i++) {
        int len = lengths[i];
        double largest = 0;
        memset(h, 0, sizeof h);
        for (int t = 0; t < len; t++) u[t] = 1, delta[t] = 0; /* dt_proj dt is 0 here: the bias alone */
#ifdef BREAK
        for (int t = 0; t < len; t++) delta[t] += dt_bias;
#else
        delta_forward(delta, &dt_bias, len, 1);
#endif
        small_scan(y, NULL, u, delta, B, B, A_log, &D, h, len, 1, STATES);
        for (int n = 0; n < STATES; n++)
            if (!(fabs(h[n]) <= largest)) largest = fabs(h[n]);
        printf("%8d%14.4g\n", len, largest);
    }
}

static void draw_half_lives(const char *dir) {
    double v[ROWS * STATES];
    Axis colour = axis_make("half-life (steps)", LOG10, 0.04, 1e4);
    Axis y = axis_make("delta (units of time)", LOG10, 1e-4, 1);
    Picture p;
    Plot plot;
    for (int i = 0; i < ROWS; i++)
        for (int n = 0; n < STATES; n++) v[i * STATES + n] = half_life(pow(10, -4 * (i + 0.5) / ROWS), -(n + 1));
    picture_open(&p, dir, "02_half_life.svg", 640, 380, "How many steps halve a number of the state");
    plot = plot_begin(&p, 64, 66, 330, 260, axis_make("decay rate -A = n + 1 (per unit of time)", LINEAR, 0.5, 16.5),
                      y);
    plot_heat(&plot, v, ROWS, STATES, &colour, NULL);
    plot_heat_scale(&plot, &colour);
    for (int end = 0; end < 2; end++) {
        double at = plot_y(&plot, end ? 0.1 : 0.001);
        picture_line(&p, plot.left, at, plot.left + plot.width, at,
                     "stroke=\"#fff\" stroke-width=\"1.5\" "
                     "stroke-dasharray=\"5 4\"");
    }
    text_styled(&p, plot_x(&plot, 8.5), plot_y(&plot, 0.01), MIDDLE, " style=\"fill: #fff\"", "delta at the start");
    if (picture_close(&p) != 0) exit(1);
}

/* h' = -h + u with u = 1 from time 0 on: the exact course, and the two rules at their steps. */
static void draw_rules(const char *dir) {
    const double step[] = {0.4, 1.6};
    Picture p;
    picture_open(&p, dir, "02_rules.svg", 760, 340, "A constant input of 1, with A = -1 and B = 1");
    for (int i = 0; i < 2; i++) {
        double t[101], exact[101], at[41], zoh[41], euler[41], end = 20 * 0.4;
        int n = (int)(end / step[i] + 0.5) + 1;
        Plot plot = plot_begin(&p, 60 + 390 * i, 80, 240, 200, axis_make("time (units of 1/|A|)", LINEAR, 0, end),
                               axis_make("state h", LINEAR, 0, 2.2));
        for (int k = 0; k <= 100; k++) t[k] = end * k / 100, exact[k] = 1 - exp(-t[k]);
        at[0] = zoh[0] = euler[0] = 0;
        for (int k = 1; k < n; k++) {
            at[k] = k * step[i];
            zoh[k] = abar(step[i], -1) * zoh[k - 1] + input_zoh(step[i], -1, 1);
            euler[k] = abar(step[i], -1) * euler[k - 1] + input_euler(step[i], 1);
        }
        plot_line(&plot, INK, t, exact, 101, "exact");
        plot_line(&plot, 0, at, zoh, n, "ZOH");
        plot_line(&plot, 1, at, euler, n, "Euler");
        plot_end(&plot);
        picture_text(&p, 180 + 390 * i, 52, MIDDLE, "delta = %g", step[i]);
        printf("%s%8g%14.4f%14.4f\n",
               i == 0 ? "\nafter many steps of an input of 1\n   delta           ZOH         Euler\n" : "", step[i],
               input_zoh(step[i], -1, 1) / (1 - abar(step[i], -1)), input_euler(step[i], 1) / (1 - abar(step[i], -1)));
    }
    if (picture_close(&p) != 0) exit(1);
}

int main(int argc, char **argv) {
    const char *dir = argc > 1 ? argv[1] : ".";
    print_half_lives();
    print_rules();
    print_gate();
    print_softplus();
    print_start();
    print_states();
    draw_half_lives(dir);
    draw_rules(dir);
    return 0;
}
