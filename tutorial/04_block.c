/* Chapter 4: a block with the shapes that it has in memory, its parameters, and what each position can see.
   SPDX-License-Identifier: MIT */
#define MAMBA_REAL double
#include "../mamba.c"
#include "small.h"
#include "plot.h"

enum { BATCH = 2, LEN = 8 };

/* The rows of a table of tensors whose names are looked up by their ends. */
static const Tensor *find_row(const Tensor *row, int n, const char *name) {
    for (int i = 0; i < n; i++) {
        size_t length = strlen(row[i].name), end = strlen(name);
        if (length >= end && strcmp(row[i].name + length - end, name) == 0) return &row[i];
    }
    return NULL;
}

static const char *shape_of(const Tensor *row) {
    static char text[4][64];
    static int turn;
    char *out = text[turn = (turn + 1) % 4];
    out[0] = 0;
    for (int k = 0; k < row->n_dim; k++)
        snprintf(out + strlen(out), 64 - strlen(out), "%s%d", k > 0 ? " x " : "", row->shape[k]);
    return out;
}

/* What a forward pass keeps, from the table that lays it out. */
static int activations(Tensor *row, const Config *c) {
    Table table = {NULL, 0, 0, NULL};
    BlockActs block[1];
    Acts acts;
    acts.block = block;
    table.row = row;
    acts_table(&table, c, &acts, BATCH, LEN, 0);
    return table.n_row;
}

static const char *const part[] = {
    "norm.weight",    "in_proj.weight", "conv1d.weight", "conv1d.bias", "x_proj.weight",
    "dt_proj.weight", "dt_proj.bias",   "A_log",         "D",           "out_proj.weight"};
enum { PARTS = sizeof part / sizeof *part };

static void print_shares(const Model *m) {
    double total = 0, sum = 0;
    for (int i = 0; i < PARTS; i++) total += find_row(m->tensor, m->n_tensor, part[i])->size;
    for (int i = 0; i < PARTS; i++) {
        const Tensor *t = find_row(m->tensor, m->n_tensor, part[i]);
        sum += t->size;
        printf("%-16s%-14s%9zu%8.2f%%\n", part[i], shape_of(t), t->size, 100 * t->size / total);
    }
    printf("%-30s%9.0f%8.2f%%\n", "a block", sum, 100 * sum / total);
}

/* Which outputs change if input number `changed` of eight does, as a row of marks. */
static void print_seen(const char *what, const double *before, const double *after, int width, int changed) {
    printf("%-12s%d  ", what, changed + 1);
    for (int t = 0; t < LEN; t++) {
        int differs = 0;
        for (int i = 0; i < width; i++) differs |= before[t * width + i] != after[t * width + i];
        printf(" %c", differs ? 'x' : '.');
    }
    printf("\n");
}

/* The convolution alone: one channel, four taps of 1/4, no bias. With BREAK it gets its input one position early. */
static void print_convolution(void) {
    double x[LEN + 1], u[2][LEN], w[4] = {0.25, 0.25, 0.25, 0.25}, state[3] = {0};
    for (int changed = 3; changed < 5; changed++) {
        for (int way = 0; way < 2; way++) {
            for (int t = 0; t <= LEN; t++) x[t] = t < LEN ? t + 1 + (way && t == changed) : 0;
#ifdef BREAK
            conv_forward(u[way], x + 1, 1, w, NULL, state, NULL, 0, 1, LEN, 1, 4);
#else
            conv_forward(u[way], x, 1, w, NULL, state, NULL, 0, 1, LEN, 1, 4);
#endif
        }
        print_seen("conv", u[0], u[1], 1, changed);
    }
}

/* A small model: the last norm's output after eight tokens of which one is changed, and with two of them swapped. */
static void print_model(void) {
    Config c = config_of(13, 16, 2, 4, 4);
    double logits[3][LEN * 13], worst = 0;
    int tokens[LEN] = {3, 1, 4, 1, 5, 9, 2, 6};
    Model m;
    Backend b;
    if (model_create(&m, &c) != 0 || cpu_backend(&b, &m, 1, 0) != 0) exit(1);
    model_init(&m, 1);
    for (int way = 0; way < 3; way++) {
        if (way == 1) tokens[3] = 7;
        if (way == 2) tokens[3] = 1, tokens[0] = 1, tokens[1] = 3;
        b.reset(b.self, 1);
        b.forward(b.self, tokens, LEN, logits[way], 1);
    }
    print_seen("model", logits[0], logits[1], 13, 3);
    for (int i = 0; i < 13; i++) worst = fmax(worst, fabs(logits[2][7 * 13 + i] - logits[0][7 * 13 + i]));
    printf("the first two tokens swapped: the last logits are %s\n", worst > 1e-9 ? "others" : "the same");
    b.close(b.self);
    model_free(&m);
}

/* What goes past the steps in between: from (x, y) out to by, down, and in again to (to, end). */
static void draw_past(Picture *p, double x, double y, double by, double to, double end) {
    fprintf(p->file, "<path d=\"M%g %.2fH%gV%.2f\" class=\"s%d\" fill=\"none\"/>\n", x, y, by, end, INK);
    picture_arrow(p, by, end, to, end, INK);
}

/* A box for each step, its area in proportion to the step's parameters, and what the step makes, with its shape. */
static void draw_block(const char *dir, const Model *m, const Tensor *acts, int n_acts) {
    const struct {
        const char *name, *part[3], *makes, *row;
        int series;
    } step[] = {{"RMSNorm", {"norm.weight"}, "normed", "normed", 5},
                {"in_proj", {"in_proj.weight"}, "x, z", "xz", 0},
                {"convolution, SiLU", {"conv1d.weight", "conv1d.bias"}, "u", "u", 2},
                {"x_proj", {"x_proj.weight"}, "dt, B, C", "dbc", 0},
                {"dt_proj, softplus", {"dt_proj.weight", "dt_proj.bias"}, "delta", "delta", 0},
                {"scan", {"A_log", "D"}, "y", "y", 1},
                {"gate: y silu(z)", {NULL}, "gated", "gated", 5},
                {"out_proj", {"out_proj.weight"}, "mixed", "normed", 0},
                {"add", {NULL}, "x of the next block", "x", 5}};
    const double middle = 170, scale = 0.085;
    double y = 84, top = 0, at[9];
    Picture p;
    picture_open(&p, dir, "04_block.svg", 760, 640,
                 "A block: areas in proportion to parameters, and what each step makes");
    picture_text(&p, 290, 52, LEFT, "step");
    picture_text(&p, 440, 52, LEFT, "parameters");
    picture_text(&p, 540, 52, LEFT, "makes, for batch 2, len 8");
    for (int i = 0; i < 9; i++) {
        double size = 0, side, half;
        for (int k = 0; k < 3 && step[i].part[k] != NULL; k++)
            size += find_row(m->tensor, m->n_tensor, step[i].part[k])->size;
        side = sqrt(size) * scale, half = fmax(side, 18) / 2;
        if (i == 0) picture_arrow(&p, middle, y - 36, middle, y + half - fmax(side, 6) / 2, INK), top = y - 24;
        picture_box(&p, middle - side / 2, y + half - side / 2, side, side, step[i].series, "");
        if (side < 6)
            fprintf(p.file, "<circle cx=\"%.2f\" cy=\"%.2f\" r=\"%d\" class=\"f%d\"/>\n", middle, y + half,
                    size > 0 ? 3 : 2, step[i].series);
        at[i] = y + half;
        picture_text(&p, 290, y + half + 4, LEFT, "%s", step[i].name);
        picture_text(&p, 440, y + half + 4, LEFT, "%.0f", size);
        picture_text(&p, 540, y + half + 4, LEFT, "%s: %s", step[i].makes,
                     shape_of(find_row(acts, n_acts, step[i].row)));
        if (i < 8) {
            double next = 0, next_side;
            for (int k = 0; k < 3 && step[i + 1].part[k] != NULL; k++)
                next += find_row(m->tensor, m->n_tensor, step[i + 1].part[k])->size;
            next_side = sqrt(next) * scale;
            picture_arrow(&p, middle, y + half + fmax(side, 6) / 2, middle,
                          y + 2 * half + 22 + fmax(next_side, 18) / 2 - fmax(next_side, 6) / 2, INK);
        } else {
            fprintf(p.file, "<path d=\"M%g %gH40V%.2fH%.2f\" class=\"s5\" fill=\"none\" stroke-dasharray=\"5 3\"/>\n",
                    middle, top, y + half, middle - 4);
            picture_text(&p, 46, y - 60, LEFT, "residual");
        }
        y += 2 * half + 22;
    }
    fprintf(p.file, "<path d=\"M%g %.2fH258V%.2fH%g\" class=\"s3\" fill=\"none\" stroke-dasharray=\"5 3\"/>\n",
            middle + sqrt(3072. * 768) * scale / 2, at[1], at[6], middle + 5);
    picture_text(&p, 252, at[6] - 40, RIGHT, "z");
    draw_past(&p, middle - 4, at[2], middle - 34, middle - 7, at[5]);
    picture_text(&p, middle - 40, at[3] + 4, RIGHT, "u");
    draw_past(&p, middle + 15, at[3], middle + 34, middle + 7, at[5]);
    picture_text(&p, middle + 38, at[4] + 4, LEFT, "B, C");
    if (picture_close(&p) != 0) exit(1);
}

int main(int argc, char **argv) {
    Config c = config_130m();
    Tensor acts[32];
    Model m;
    int n = activations(acts, &c);
    if (model_table(&m, &c) != 0) exit(1);
    printf("a block's activations, batch %d, len %d\n", BATCH, LEN);
    for (int i = 0; i < 6; i++) printf("%-10s%s\n", acts[i].name, shape_of(&acts[i]));
    printf("\n");
    print_shares(&m);
    printf("\nchanged input, and the positions 1 to 8 that see it\n");
    print_convolution();
    print_model();
    draw_block(argc > 1 ? argv[1] : ".", &m, acts, n);
    model_free(&m);
    return 0;
}
