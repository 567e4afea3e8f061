/* plot.h: pictures as SVG files, for the programs of the tutorial and of the lab.

   A Picture is a file. On it stand texts, boxes and arrows, in pixels from the top left, and Plots: frames with two
   axes in which lines, bands, error bars, bars and heat maps are drawn in the units of the data. A value that is not
   finite, or not positive on a logarithmic axis, is a gap.

   Colours change with the reader's preference for light or dark. Series differ by colour, by marker and by dash; the
   colours are those of M. Okabe and K. Ito, "Color Universal Design" (2008), which colour-blind readers can tell apart
   (in dark some are a little lighter).
   The ramp of heat maps runs from dark blue by grey to yellow, lightness rising all the way, as that of J. Nunez,
   C. Anderton and R. Renslow, "Optimizing colormaps with consideration for color vision deficiency" (2018).

   Every text is taken down with its estimated extent. One that overlaps another or leaves the picture is printed as an
   error and counted by picture_close.

   SPDX-License-Identifier: MIT */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __GNUC__
#pragma GCC diagnostic ignored "-Wunused-function"
#endif

enum { PLOT_TEXTS = 2048, PLOT_LABELS = 12, PLOT_TICKS = 16, FONT = 12, INK = 6 };

typedef enum { LEFT, MIDDLE, RIGHT } Anchor;
typedef struct {
    double left, top, right, bottom;
} Extent;

typedef struct {
    FILE *file;
    char name[64];
    double width, height;
    Extent text[PLOT_TEXTS]; /* of every text so far */
    int n_text, n_fault, n_clip;
    int measured; /* 1: another machine or run gives other values; set before picture_close */
} Picture;

typedef enum { LINEAR, LOG2, LOG10 } Scale;
typedef struct {
    const char *name; /* with its unit */
    Scale scale;
    double low, high;
} Axis;

typedef struct {
    double x, y;
    int series;
    char text[64];
} Label;

typedef struct {
    Picture *picture;
    double left, top, width, height;
    Axis x, y;
    Label label[PLOT_LABELS]; /* of lines, placed by plot_end */
    int n_label, clip;
} Plot;

/* In the order of series 0 to 5, then INK, the colour of text: in light, in dark, dashes, marker. */
static const struct {
    const char *light, *dark, *dash, *marker;
} plot_style[] = {
    {"#0072b2", "#56b4e9", "none", "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z"},
    {"#d55e00", "#e8742a", "7 3", "M-3.5 -3.5h7v7h-7z"},
    {"#009e73", "#19b88a", "2 3", "M0 -4.5L4.5 3.5H-4.5z"},
    {"#cc79a7", "#cc79a7", "9 3 2 3", "M0 -5L5 0L0 5L-5 0z"},
    {"#e69f00", "#e69f00", "12 4", "M-1.5 -5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z"},
    {"#56606b", "#a8b3bf", "5 2 1 2 1 2", "M0 4.5L4.5 -3.5H-4.5z"},
    {"#1f2328", "#e6edf3", "none", ""},
};

/* Low and high become the least and the largest of v too, as far as those are finite; start with NAN for neither. */
static void range_add(double *low, double *high, const double *v, int n) {
    for (int i = 0; i < n; i++) {
        if (!isfinite(v[i])) continue;
        if (!(*low <= v[i])) *low = v[i];
        if (!(*high >= v[i])) *high = v[i];
    }
}

/* Where a value is on the axis, from 0 at low to 1 at high, or NAN. */
static double axis_place(const Axis *a, double value) {
    double place =
        a->scale == LINEAR ? (value - a->low) / (a->high - a->low) : log(value / a->low) / log(a->high / a->low);
    return isfinite(place) && (a->scale == LINEAR || value > 0) ? place : NAN;
}

/* The same axis with a range that can be drawn. */
static Axis axis_make(const char *name, Scale scale, double low, double high) {
    Axis a = {name, scale, low, high};
    int usable = isfinite(low) && isfinite(high) && (scale == LINEAR || (low > 0 && high > 0));
    if (!usable) a.low = scale == LINEAR ? 0 : 1, a.high = scale == LINEAR ? 1 : 10;
    else if (!(low < high) && scale == LINEAR) a.low = low - 0.5, a.high = low + 0.5;
    else if (!(low < high)) a.low = low / 2, a.high = low * 2;
    return a;
}

/* Round values in the range, at most PLOT_TICKS of them: linear in steps of 1, 2 or 5 times a power of ten; logarithmic
   at powers of the base, a step of so many powers that few remain, or, in a short range of LOG10, at 1, 2 and 5 too. */
static int axis_ticks(const Axis *a, double *tick) {
    const double nice[] = {1, 2, 5, 10}, slack = 1e-9;
    int n = 0;
    if (a->scale == LINEAR) {
        double span = a->high - a->low, unit = pow(10, floor(log10(span / 5))), step = unit;
        for (int i = 0; i < 4 && span / step > 6; i++) step = unit * nice[i];
        for (double k = ceil(a->low / step - slack); k <= floor(a->high / step + slack) && n < PLOT_TICKS; k++)
            tick[n++] = k == 0 ? 0 : k * step;
    } else {
        double base = a->scale == LOG2 ? 2 : 10, low = log(a->low) / log(base), high = log(a->high) / log(base);
        int stride = (int)ceil((high - low) / 8), parts = a->scale == LOG10 && high - low < 2.5 ? 3 : 1;
        for (int k = (int)floor(low); k <= high + slack; k++)
            for (int i = 0; i < parts; i++) {
                double value = nice[i] * pow(base, k);
                if (k % (stride > 1 ? stride : 1) == 0 && value >= a->low * (1 - slack) &&
                    value <= a->high * (1 + slack) && n < PLOT_TICKS)
                    tick[n++] = value;
            }
    }
    return n;
}

static void tick_text(char *out, size_t size, const Axis *a, double value) {
    double power = log(value) / log(a->scale == LOG2 ? 2 : 10), whole = floor(power + 0.5);
    int is_power = a->scale != LINEAR && fabs(power - whole) < 1e-6;
    if (is_power && a->scale == LOG2 && a->high > 1024 && whole > 3) snprintf(out, size, "2^%.0f", whole);
    else if (is_power && a->scale == LOG10 && fabs(whole) > 3) snprintf(out, size, "10^%.0f", whole);
    else if (a->scale == LOG10 && fabs(floor(power)) > 3)
        snprintf(out, size, "%.0f\u00b7""10^%.0f", value / pow(10, floor(power)), floor(power));
    else snprintf(out, size, "%.6g", value);
}

/* Text with the characters that XML gives a meaning escaped; ^ raises what follows. */
static void put_text(FILE *f, const char *text) {
    int raised = 0;
    for (const char *p = text; *p != 0; p++) {
        if (*p == '^' && !raised) raised = 1, fputs("<tspan dy=\"-4\" font-size=\"10\">", f);
        else if (*p == '&') fputs("&amp;", f);
        else if (*p == '<') fputs("&lt;", f);
        else if (*p == '>') fputs("&gt;", f);
        else if (*p == '"') fputs("&quot;", f);
        else fputc((unsigned char)*p < 32 ? ' ' : *p, f);
    }
    if (raised) fputs("</tspan>", f);
}

static void fault(Picture *p, const char *what, const char *text) {
    fprintf(stderr, "%s: \"%s\" %s\n", p->name, text, what);
    p->n_fault++;
}

/* Text at (x, y), its baseline. style: more attributes of the element, "" for none. */
static void text_styled(Picture *p, double x, double y, Anchor anchor, const char *style, const char *text) {
    const char *const anchors[] = {"start", "middle", "end"};
    double width = 0;
    Extent e;
    if (*text == 0) return;
    for (const char *c = text; *c != 0; c++) width += *c == '^' || ((unsigned char)*c & 0xc0) == 0x80 ? 0 : 0.58 * FONT;
    e.left = x - width * anchor / 2, e.right = e.left + width, e.top = y - 0.75 * FONT, e.bottom = y + 0.2 * FONT;
    if (e.left < 0 || e.right > p->width || e.top < 0 || e.bottom > p->height) fault(p, "leaves the picture", text);
    for (int i = 0; i < p->n_text; i++) {
        const Extent *o = &p->text[i];
        if (e.left < o->right && o->left < e.right && e.top < o->bottom && o->top < e.bottom)
            fault(p, "overlaps a text before it", text);
    }
    if (p->n_text < PLOT_TEXTS) p->text[p->n_text++] = e;
    fprintf(p->file, "<text x=\"%.2f\" y=\"%.2f\" text-anchor=\"%s\"%s>", x, y, anchors[anchor], style);
    put_text(p->file, text);
    fputs("</text>\n", p->file);
}

#ifdef __GNUC__
__attribute__((format(printf, 5, 6)))
#endif
static void
picture_text(Picture *p, double x, double y, Anchor anchor, const char *format, ...) {
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    text_styled(p, x, y, anchor, "", text);
}

/* Starts the file dir/name, its size in pixels. The title stands on top and is what a screen reader says. */
static void picture_open(Picture *p, const char *dir, const char *name, double width, double height,
                         const char *title) {
    char path[512];
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "%s", name);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    p->width = width, p->height = height;
    p->file = fopen(path, "w");
    if (p->file == NULL) {
        fprintf(stderr, "%s: cannot be written\n", path);
        exit(1);
    }
    fprintf(p->file,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%g\" height=\"%g\" viewBox=\"0 0 %g %g\" "
            "role=\"img\" font-family=\"Helvetica, Arial, sans-serif\" font-size=\"%d\">\n<title>",
            width, height, width, height, FONT);
    put_text(p->file, title);
    fputs("</title>\n<style>\n", p->file);
    for (int dark = 0; dark < 2; dark++) {
        if (dark) fputs("@media (prefers-color-scheme: dark) {\n", p->file);
        fprintf(p->file, ".page { fill: %s } .grid { stroke: %s }\n", dark ? "#0d1117" : "#ffffff",
                dark ? "#30363d" : "#d8dee4");
        for (int s = 0; s <= INK; s++) {
            const char *colour = dark ? plot_style[s].dark : plot_style[s].light;
            fprintf(p->file, ".s%d { stroke: %s } .f%d { fill: %s }\n", s, colour, s, colour);
        }
        fprintf(p->file, "text { fill: %s }\n", dark ? plot_style[INK].dark : plot_style[INK].light);
        if (dark) fputs("}\n", p->file);
    }
    fputs("</style>\n<rect class=\"page\" width=\"100%\" height=\"100%\"/>\n", p->file);
    text_styled(p, 12, 20, LEFT, " font-weight=\"bold\"", title);
}

/* Ends the file. Returns how many texts overlap or are cut off: no program of the tutorial leaves any. */
static int picture_close(Picture *p) {
    fputs(p->measured ? "<!-- measured -->\n</svg>\n" : "</svg>\n", p->file);
    if (fclose(p->file) != 0) fault(p, "was the last name before a write error", p->name);
    return p->n_fault;
}

static void picture_line(Picture *p, double x0, double y0, double x1, double y1, const char *style) {
    fprintf(p->file, "<path d=\"M%.2f %.2fL%.2f %.2f\" %s/>\n", x0, y0, x1, y1, style);
}

/* A box with a line of text in it, or two, separated by a newline; series gives its colour. */
static void picture_box(Picture *p, double x, double y, double width, double height, int series, const char *text) {
    char line[256];
    size_t first = strcspn(text, "\n");
    double middle = y + height / 2 + 0.35 * FONT, shift = text[first] != 0 ? 0.6 * FONT : 0;
    fprintf(p->file,
            "<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" class=\"s%d f%d\" fill-opacity=\"0.18\" "
            "rx=\"3\"/>\n",
            x, y, width, height, series, series);
    snprintf(line, sizeof line, "%.*s", (int)first, text);
    picture_text(p, x + width / 2, middle - shift, MIDDLE, "%s", line);
    if (shift > 0) picture_text(p, x + width / 2, middle + shift, MIDDLE, "%s", text + first + 1);
}

static void picture_arrow(Picture *p, double x0, double y0, double x1, double y1, int series) {
    double angle = atan2(y1 - y0, x1 - x0);
    fprintf(p->file,
            "<path d=\"M%.2f %.2fL%.2f %.2f\" class=\"s%d\" fill=\"none\"/>\n"
            "<path d=\"M0 0L-7 -3.5V3.5z\" class=\"f%d\" transform=\"translate(%.2f %.2f) rotate(%.1f)\"/>\n",
            x0, y0, x1 - 3 * cos(angle), y1 - 3 * sin(angle), series, series, x1, y1, angle * 180 / 3.14159265358979);
}

static double plot_x(const Plot *plot, double x) { return plot->left + plot->width * axis_place(&plot->x, x); }
static double plot_y(const Plot *plot, double y) { return plot->top + plot->height * (1 - axis_place(&plot->y, y)); }

/* A frame at (left, top) with its grid, ticks and the axes' names. Around it room is needed for the texts: about 50 to
   the left, 45 below, 25 above, and to the right for the labels of lines. An axis without a name is not drawn. */
static Plot plot_begin(Picture *p, double left, double top, double width, double height, Axis x, Axis y) {
    Plot plot;
    double tick[PLOT_TICKS];
    char text[32];
    memset(&plot, 0, sizeof plot);
    plot.picture = p, plot.left = left, plot.top = top, plot.width = width, plot.height = height;
    plot.x = x, plot.y = y, plot.clip = p->n_clip++;
    fprintf(p->file, "<clipPath id=\"c%d\"><rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\"/></clipPath>\n",
            plot.clip, left - 5, top - 5, width + 10, height + 10);
    for (int i = 0, n = x.name != NULL ? axis_ticks(&plot.x, tick) : 0; i < n; i++) {
        double at = plot_x(&plot, tick[i]);
        picture_line(p, at, top, at, top + height, "class=\"grid\"");
        tick_text(text, sizeof text, &plot.x, tick[i]);
        picture_text(p, at, top + height + 17, MIDDLE, "%s", text);
    }
    for (int i = 0, n = y.name != NULL ? axis_ticks(&plot.y, tick) : 0; i < n; i++) {
        double at = plot_y(&plot, tick[i]);
        picture_line(p, left, at, left + width, at, "class=\"grid\"");
        tick_text(text, sizeof text, &plot.y, tick[i]);
        picture_text(p, left - 6, at + 4, RIGHT, "%s", text);
    }
    if (x.name != NULL) picture_text(p, left + width / 2, top + height + 36, MIDDLE, "%s", x.name);
    if (y.name != NULL) picture_text(p, left - 42 > 12 ? left - 42 : 12, top - 10, LEFT, "%s", y.name);
    return plot;
}

static void put_marker(Picture *p, double x, double y, int series) {
    fprintf(p->file, "<path d=\"%s\" class=\"f%d\" transform=\"translate(%.2f %.2f)\"/>\n", plot_style[series].marker,
            series, x, y);
}

/* A line through n points, in pieces where there are gaps, with a few markers. label: at its end, or NULL for none. */
static void plot_line(Plot *plot, int series, const double *x, const double *y, int n, const char *label) {
    FILE *f = plot->picture->file;
    int stride = n > 24 ? n / 8 : 1, down = 0;
    Label end = {NAN, NAN, series, ""};
    fprintf(f,
            "<g clip-path=\"url(#c%d)\">\n<path fill=\"none\" stroke-width=\"2\" stroke-dasharray=\"%s\" class=\"s%d\" "
            "d=\"",
            plot->clip, plot_style[series].dash, series);
    for (int i = 0; i < n; i++) {
        double px = plot_x(plot, x[i]), py = plot_y(plot, y[i]);
        int drawn = isfinite(px) && isfinite(py);
        if (drawn) fprintf(f, "%s%.2f %.2f", down ? "L" : "M", px, py);
        if (drawn) end.x = px, end.y = py;
        down = drawn;
    }
    fputs("\"/>\n", f);
    for (int i = stride / 2; i < n; i += stride)
        if (isfinite(plot_x(plot, x[i])) && isfinite(plot_y(plot, y[i])))
            put_marker(plot->picture, plot_x(plot, x[i]), plot_y(plot, y[i]), series);
    fputs("</g>\n", f);
    if (label == NULL || !isfinite(end.x) || plot->n_label == PLOT_LABELS) return;
    snprintf(end.text, sizeof end.text, "%s", label);
    plot->label[plot->n_label++] = end;
}

/* The spread of a series: the area between low and high; or, with bars, an upright line at each point. */
static void plot_spread(Plot *plot, int series, const double *x, const double *low, const double *high, int n,
                        int bars) {
    FILE *f = plot->picture->file;
    fprintf(f, "<g clip-path=\"url(#c%d)\" class=\"s%d f%d\" stroke-width=\"1.5\">\n", plot->clip, series, series);
    for (int i = 0; i + !bars < n; i++) {
        int j = bars ? i : i + 1;
        double x0 = plot_x(plot, x[i]), x1 = plot_x(plot, x[j]), corner[4];
        corner[0] = plot_y(plot, low[i]), corner[1] = plot_y(plot, high[i]);
        corner[2] = plot_y(plot, high[j]), corner[3] = plot_y(plot, low[j]);
        if (!isfinite(x0 + x1 + corner[0] + corner[1] + corner[2] + corner[3])) continue;
        if (bars)
            fprintf(f, "<path d=\"M%.2f %.2fV%.2fm-4 0h8M%.2f %.2fh8\"/>\n", x0, corner[0], corner[1], x0 - 4,
                    corner[0]);
        else
            fprintf(f, "<path stroke=\"none\" fill-opacity=\"0.25\" d=\"M%.2f %.2fV%.2fL%.2f %.2fV%.2fz\"/>\n", x0,
                    corner[0], corner[1], x1, corner[2], corner[3]);
    }
    fputs("</g>\n", f);
}

/* A filled rectangle between two corners in the units of the axes: a bar of a bar chart. */
static void plot_bar(Plot *plot, int series, double x0, double y0, double x1, double y1) {
    double left = plot_x(plot, x0), right = plot_x(plot, x1), bottom = plot_y(plot, y0), top = plot_y(plot, y1);
    if (!isfinite(left + right + bottom + top)) return;
    fprintf(plot->picture->file,
            "<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" class=\"f%d\" "
            "clip-path=\"url(#c%d)\"/>\n",
            fmin(left, right), fmin(top, bottom), fabs(right - left), fabs(top - bottom), series, plot->clip);
}

/* The ramp at place 0 to 1, as 0xrrggbb. */
static int ramp(double place) {
    static const double anchor[3][3] = {{0, 32, 76}, {124, 123, 120}, {255, 234, 70}};
    double at = 2 * fmin(fmax(place, 0), 1), colour = 0;
    int i = at < 1 ? 0 : 1;
    for (int c = 0; c < 3; c++)
        colour = colour * 256 + floor(0.5 + anchor[i][c] + (at - i) * (anchor[i + 1][c] - anchor[i][c]));
    return (int)colour;
}

/* A heat map of (rows, columns) values that divides the frame evenly, row 0 on top; colour maps values to the ramp.
   format: how each cell's value is written in it, or NULL for not at all. A strip over time is a map of one row. */
static void plot_heat(Plot *plot, const double *v, int rows, int columns, const Axis *colour, const char *format) {
    Picture *p = plot->picture;
    double width = plot->width / columns, height = plot->height / rows;
    for (int i = 0; i < rows * columns; i++) {
        double place = axis_place(colour, v[i]), x = plot->left + i % columns * width;
        double y = plot->top + i / columns * height;
        char text[32];
        if (!isfinite(place)) continue;
        fprintf(p->file,
                "<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" fill=\"#%06x\" "
                "shape-rendering=\"crispEdges\"/>\n",
                x, y, width, height, ramp(place));
        if (format == NULL) continue;
        snprintf(text, sizeof text, format, v[i]);
        text_styled(p, x + width / 2, y + height / 2 + 4, MIDDLE,
                    place < 0.5 ? " style=\"fill: #fff\"" : " style=\"fill: #000\"", text);
    }
}

/* The scale of a heat map, to the right of its frame. */
static void plot_heat_scale(Plot *plot, const Axis *colour) {
    const Axis unit = axis_make(NULL, LINEAR, 0, 1);
    Plot scale = *plot;
    double tick[PLOT_TICKS], place[64];
    char text[32];
    scale.left += plot->width + 18, scale.width = 12, scale.y = *colour;
    for (int i = 0; i < 64; i++) place[i] = (63.5 - i) / 64;
    plot_heat(&scale, place, 64, 1, &unit, NULL);
    for (int i = 0, n = axis_ticks(colour, tick); i < n; i++) {
        tick_text(text, sizeof text, colour, tick[i]);
        picture_text(plot->picture, scale.left + 17, plot_y(&scale, tick[i]) + 4, LEFT, "%s", text);
    }
    picture_text(plot->picture, scale.left - 6, plot->top - 10, LEFT, "%s", colour->name);
}

static int label_higher(const void *a, const void *b) {
    double difference = ((const Label *)a)->y - ((const Label *)b)->y;
    return difference < 0 ? -1 : difference > 0;
}

/* Writes the lines' labels to the right of the frame, in the order of the lines' ends and far enough apart, and dots
   from each line's end to its label. */
static void plot_end(Plot *plot) {
    const double gap = 1.3 * FONT;
    double y[PLOT_LABELS], lowest = plot->top + plot->height, x = plot->left + plot->width + 20;
    int n = plot->n_label;
    qsort(plot->label, (size_t)n, sizeof *plot->label, label_higher);
    for (int i = 0; i < n; i++) {
        y[i] = fmax(plot->top, plot->label[i].y);
        if (i > 0) y[i] = fmax(y[i], y[i - 1] + gap);
    }
    for (int i = n - 1; i >= 0; i--) {
        y[i] = fmin(y[i], lowest);
        lowest = y[i] - gap;
    }
    for (int i = 0; i < n; i++) {
        const Label *l = &plot->label[i];
        char style[64];
        snprintf(style, sizeof style, "class=\"s%d\" stroke-dasharray=\"1 4\"", l->series);
        picture_line(plot->picture, l->x, fmax(plot->top, fmin(l->y, plot->top + plot->height)), x - 6, y[i], style);
        put_marker(plot->picture, x, y[i], l->series);
        picture_text(plot->picture, x + 9, y[i] + 4, LEFT, "%s", l->text);
    }
}
