/* The pictures of the tutorial: ranges, ticks, places on axes, escaping, gaps, labels, and what picture_close finds.
   SPDX-License-Identifier: MIT */
#include "../tutorial/plot.h"
#include "check.h"

#define N(array) ((int)(sizeof(array) / sizeof *(array)))

static char svg[1 << 20];

/* Reads the picture that was closed into svg. */
static void read_back(const char *name) {
    FILE *f = fopen(name, "rb");
    size_t n = f != NULL ? fread(svg, 1, sizeof svg - 1, f) : 0;
    svg[n] = 0;
    if (f != NULL) fclose(f);
    remove(name);
}

static int count(const char *what) {
    int n = 0;
    for (const char *p = svg; (p = strstr(p, what)) != NULL; p++) n++;
    return n;
}

static int ticks_are(Axis a, const double *expected, int n) {
    double tick[PLOT_TICKS];
    int found = axis_ticks(&a, tick), same = found == n;
    for (int i = 0; same && i < n; i++) same = fabs(tick[i] - expected[i]) <= 1e-12 * fabs(expected[i]);
    return same;
}

static void test_range(void) {
    double low = NAN, high = NAN, v[] = {NAN, 3, -2, INFINITY, -INFINITY, 7};
    range_add(&low, &high, v, 1);
    CHECK(isnan(low) && isnan(high));
    range_add(&low, &high, v, N(v));
    CHECK(low == -2 && high == 7);
    range_add(&low, &high, v, 0);
    CHECK(low == -2 && high == 7);
}

static void test_axis(void) {
    Axis linear = axis_make("x", LINEAR, -1, 3), log2_axis = axis_make("x", LOG2, 2, 32);
    CHECK_NEAR(axis_place(&linear, 0), 0.25, 1e-15);
    CHECK_NEAR(axis_place(&linear, 5), 1.5, 1e-15);
    CHECK_NEAR(axis_place(&log2_axis, 8), 0.5, 1e-15);
    CHECK(isnan(axis_place(&linear, NAN)) && isnan(axis_place(&linear, INFINITY)));
    CHECK(isnan(axis_place(&log2_axis, 0)) && isnan(axis_place(&log2_axis, -4)));
    /* a range that cannot be drawn becomes one that can */
    linear = axis_make("x", LINEAR, 4, 4);
    CHECK(linear.low == 3.5 && linear.high == 4.5);
    linear = axis_make("x", LINEAR, NAN, 4);
    CHECK(linear.low == 0 && linear.high == 1);
    log2_axis = axis_make("x", LOG2, 0, 4);
    CHECK(log2_axis.low > 0 && log2_axis.low < log2_axis.high);
    log2_axis = axis_make("x", LOG2, 4, 4);
    CHECK(log2_axis.low == 2 && log2_axis.high == 8);
}

static void test_ticks(void) {
    const double fifths[] = {0, 0.2, 0.4, 0.6, 0.8, 1}, fives[] = {-5, 0, 5, 10, 15}, decades[] = {0.001, 0.01, 0.1, 1};
    const double parts[] = {2, 5, 10, 20, 50}, even[] = {1, 4, 16, 64, 256, 1024};
    char text[32];
    Axis a = axis_make("", LINEAR, 0, 1);
    CHECK(ticks_are(a, fifths, N(fifths)));
    CHECK(ticks_are(axis_make("", LINEAR, -5, 15), fives, N(fives)));
    CHECK(ticks_are(axis_make("", LOG10, 0.001, 1), decades, N(decades)));
    CHECK(ticks_are(axis_make("", LOG10, 1.5, 60), parts, N(parts)));
    CHECK(ticks_are(axis_make("", LOG2, 1, 1024), even, N(even)));
    for (double span = 1e-6; span < 1e9; span *= 3.7) {
        double tick[PLOT_TICKS];
        int n;
        a = axis_make("", LINEAR, -span / 3, span);
        n = axis_ticks(&a, tick);
        CHECK(n >= 2 && n <= 8 && tick[0] >= a.low && tick[n - 1] <= a.high);
    }
    tick_text(text, sizeof text, &a, 0.25);
    CHECK(strcmp(text, "0.25") == 0);
    a = axis_make("", LOG2, 1, 4096);
    tick_text(text, sizeof text, &a, 1024);
    CHECK(strcmp(text, "2^10") == 0);
    a.high = 1024;
    tick_text(text, sizeof text, &a, 1024);
    CHECK(strcmp(text, "1024") == 0);
    a.scale = LOG10;
    tick_text(text, sizeof text, &a, 1e-7);
    CHECK(strcmp(text, "10^-7") == 0);
    tick_text(text, sizeof text, &a, 0.05);
    CHECK(strcmp(text, "0.05") == 0);
}

/* Everything that is drawn, from data full of gaps: nothing in the file may be "nan" or "inf". */
static void test_gaps(void) {
    const double x[] = {0, 1, 2, 3, NAN, 5, 6, 7}, y[] = {1, 2, NAN, 4, 5, INFINITY, 7, 8};
    double nothing[8];
    Picture p;
    Plot plot;
    Axis colour = axis_make("value", LINEAR, 0, 8);
    for (int i = 0; i < 8; i++) nothing[i] = NAN;
    picture_open(&p, "build", "gaps.svg", 500, 300, "Gaps");
    plot = plot_begin(&p, 60, 60, 200, 150, axis_make("x", LINEAR, 0, 7), axis_make("y", LINEAR, 0, 8));
    plot_line(&plot, 0, x, y, 8, "three pieces");
    plot_line(&plot, 1, x, nothing, 8, "never seen");
    plot_line(&plot, 2, x, y, 0, "empty");
    plot_spread(&plot, 0, x, nothing, y, 8, 0);
    plot_spread(&plot, 0, x, y, nothing, 8, 1);
    plot_bar(&plot, 0, 0, 0, 1, NAN);
    plot_heat(&plot, y, 2, 4, &colour, NULL);
    plot_end(&plot);
    CHECK(picture_close(&p) == 0);
    read_back("build/gaps.svg");
    CHECK(strstr(svg, "nan") == NULL && strstr(svg, "inf") == NULL);
    CHECK(count("three pieces") == 1 && count("never seen") == 0 && count("empty") == 0);
    CHECK(count("fill=\"#") == 6); /* the cells that are numbers */
    CHECK(strstr(svg, "M60.00 191.25L88.57 172.50M145.71 135.00M231.43 78.75L260.00 60.00") != NULL);
    CHECK(count("prefers-color-scheme: dark") == 1);
}

static void test_text(void) {
    Picture p;
    Plot plot;
    const double x[] = {0, 1}, y[] = {3, 3};
    double at[3];
    picture_open(&p, "build", "text.svg", 400, 200, "a < b & \"c\" > d\n");
    picture_text(&p, 20, 60, LEFT, "%d^-3", 10);
    plot = plot_begin(&p, 60, 100, 200, 50, axis_make(NULL, LINEAR, 0, 1), axis_make(NULL, LINEAR, 0, 4));
    for (int s = 0; s < 3; s++) plot_line(&plot, s, x, y, 2, s == 0 ? "alpha" : s == 1 ? "beta" : "gamma");
    plot_end(&plot);
    CHECK(picture_close(&p) == 0);
    read_back("build/text.svg");
    CHECK(count("a &lt; b &amp; &quot;c&quot; &gt; d ") == 2 && count("d\n<") == 0);
    CHECK(strstr(svg, "10<tspan dy=\"-4\" font-size=\"10\">-3</tspan></text>") != NULL);
    for (int s = 0; s < 3; s++) { /* three lines end at one place; their labels do not */
        char *label = strstr(svg, s == 0 ? "alpha" : s == 1 ? "beta" : "gamma"), *where = label;
        CHECK(label != NULL);
        while (label != NULL && strncmp(where, " y=\"", 4) != 0) where--;
        at[s] = label != NULL ? atof(where + 4) : 0;
    }
    CHECK(fabs(at[0] - at[1]) >= FONT && fabs(at[1] - at[2]) >= FONT && fabs(at[0] - at[2]) >= FONT);
}

static void test_faults(void) {
    Picture p;
    picture_open(&p, "build", "faults.svg", 200, 100, "Faults");
    CHECK(p.n_fault == 0);
    picture_text(&p, 100, 60, MIDDLE, "first");
    picture_text(&p, 110, 62, MIDDLE, "over it");
    CHECK(p.n_fault == 1);
    picture_text(&p, 190, 90, LEFT, "cut off");
    CHECK(p.n_fault == 2);
    p.measured = 1;
    CHECK(picture_close(&p) == 2);
    read_back("build/faults.svg");
    CHECK(count("<!-- measured -->") == 1);
}

/* The ramp gets lighter all the way, also without colours. */
static void test_ramp(void) {
    double before = -1;
    CHECK(ramp(-1) == 0x00204c && ramp(0) == 0x00204c && ramp(1) == 0xffea46 && ramp(2) == 0xffea46);
    for (int i = 0; i <= 100; i++) {
        int c = ramp(i / 100.);
        double lightness = 0.2126 * (c >> 16) + 0.7152 * (c >> 8 & 255) + 0.0722 * (c & 255);
        CHECK(lightness > before);
        before = lightness;
    }
}

int main(void) {
    test_range();
    test_axis();
    test_ticks();
    test_gaps();
    test_text();
    test_faults();
    test_ramp();
    return check_report();
}
