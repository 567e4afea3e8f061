/* Chapter 8: what the runs of the selectivity lab have left, as tables and pictures, ours beside the paper's.

       make lab                                  or lab.sh: the runs; their logs are committed in tutorial/lab
       build/08_lab DIR [LOGS]                   reads them, or those in LOGS; pictures go to DIR

   SPDX-License-Identifier: MIT */
#include "../mamba.c"
#include "plot.h"

enum { MAX_SEED = 9, MAX_STAGE = 8, MAX_POINT = 512, MAX_CASE = 12 };

/* What was measured in a stage of a run while it went on: after how many steps, which share of the answers and of whole
   samples was right. */
typedef struct {
    int len, items, n, step[MAX_POINT];
    double right[MAX_POINT], whole[MAX_POINT];
} Stage;

typedef struct {
    char device[64];
    int seed, n_stage, n_length, seconds;
    Stage stage[MAX_STAGE];
    int length[MAX_POINT];         /* of the table that the measurement at the end has printed */
    double right[MAX_POINT], whole[MAX_POINT];
    double nats, floor;            /* of a run on stories */
} Run;

typedef struct {
    double mean, low, high;
    int n;
} Spread;

static const char *logs = "tutorial/lab";
static Run run[MAX_CASE][MAX_SEED]; /* the seeds there are of each case, one after the other */

static Spread spread_of(const double *v, int n) {
    Spread s = {0, NAN, NAN, n};
    for (int i = 0; i < n; i++) s.mean += v[i] / n;
    range_add(&s.low, &s.high, v, n);
    return s;
}

/* A table in Markdown, cell by cell, in columns as wide as their widest cell. */
static struct {
    char cell[64][16][48];
    int row, column;
} table;

static void cell(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(table.cell[table.row][table.column++], sizeof table.cell[0][0], format, args);
    va_end(args);
}

static void next_row(void) { table.row++, table.column = 0; }

static void print_table(const char *title) {
    int width[16] = {0};
    printf("%s\n\n", title);
    for (int i = 0; i < table.row * 16; i++) {
        int n = (int)strlen(table.cell[i / 16][i % 16]);
        if (n > width[i % 16]) width[i % 16] = n;
    }
    for (int i = 0; i < table.row; i++) {
        for (int j = 0; j < 16 && width[j] > 0; j++)
            printf(j == 0 ? "| %-*s " : "| %*s ", width[j], table.cell[i][j]);
        printf("|\n");
        for (int j = 0; i == 0 && j < 16 && width[j] > 0; j++)
            printf("|%.*s%s", width[j] + 1, "------------------------------------------------", j == 0 ? "-" : ":");
        if (i == 0) printf("|\n");
    }
    printf("\n");
    memset(&table, 0, sizeof table);
}

/* A line of headings, separated by "|". */
static void headings(const char *text) {
    for (size_t n; *text != 0; text += n + (text[n] != 0)) {
        n = strcspn(text, "|");
        cell("%.*s", (int)n, text);
    }
    next_row();
}

/* The value of an option in a command, or what it is without. */
static int option_of(const char *line, const char *name, int otherwise) {
    const char *at = strstr(line, name);
    return at != NULL && at < line + strcspn(line, "\n") ? atoi(at + strlen(name)) : otherwise;
}

static void read_line(Run *r, const char *line) {
    Stage *s = r->n_stage > 0 ? &r->stage[r->n_stage - 1] : NULL;
    const char *held_out = strstr(line, "held-out "), *on = strstr(line, " parameters, on ");
    size_t n = strcspn(line, "\n");
    double right, whole, count;
    int length;
    if (strncmp(line, "$ ./train", 9) == 0 && r->n_stage < MAX_STAGE) {
        s = &r->stage[r->n_stage++];
        s->len = option_of(line, "--len ", 0), s->items = option_of(line, "--items ", 0);
    } else if (strncmp(line, "step ", 5) == 0 && held_out != NULL && held_out < line + n && s != NULL) {
        sscanf(held_out, "held-out %lf nats/token, %*f bits/byte (floor %lf", &r->nats, &r->floor);
        if (s->n < MAX_POINT && sscanf(held_out, "held-out %*f nats/answer, right %lf%% of answers (chance %*f%%), %lf",
                                       &s->right[s->n], &s->whole[s->n]) == 2)
            s->step[s->n++] = atoi(line + 5);
    } else if (sscanf(line, "| %d | %lf | %lf | %lf |", &length, &count, &right, &whole) == 4 &&
               r->n_length < MAX_POINT) {
        r->length[r->n_length] = length, r->right[r->n_length] = right, r->whole[r->n_length++] = whole;
    } else if (strncmp(line, "model: ", 7) == 0 && on != NULL && on < line + n) {
        on += strlen(" parameters, on ");
        snprintf(r->device, sizeof r->device, "%.*s", (int)(line + n - on), on);
    } else if (strncmp(line, "seconds: ", 9) == 0) r->seconds = atoi(line + 9);
}

/* The runs NAME-1.txt, NAME-2.txt and so on, as far as they are there; returns how many. */
static int read_runs(Run *r, const char *name) {
    int count = 0;
    for (int seed = 1; seed <= MAX_SEED; seed++) {
        char path[512], *text;
        size_t n;
        snprintf(path, sizeof path, "%s/%s-%d.txt", logs, name, seed);
        text = read_file(path, &n);
        if (text == NULL) continue;
        memset(&r[count], 0, sizeof *r);
        r[count].seed = seed;
        for (char *line = text; *line != 0; line += strcspn(line, "\n"), line += *line != 0) read_line(&r[count], line);
        release(text);
        count++;
    }
    return count;
}

static int there_are(const char *name) { return read_runs(run[0], name) > 0; }

static int seconds_of(const Run *r, int n) {
    int sum = 0;
    for (int i = 0; i < n; i++) sum += r[i].seconds;
    return sum;
}

/* How right the last measurement of a stage was; NAN if there is none. */
static double last_right(const Stage *s) { return s->n > 0 ? s->right[s->n - 1] : NAN; }
static double last_whole(const Stage *s) { return s->n > 0 ? s->whole[s->n - 1] : NAN; }

static double steps_of(const Run *r) {
    double sum = 0;
    for (int i = 0; i < r->n_stage; i++) sum += r->stage[i].n > 0 ? r->stage[i].step[r->stage[i].n - 1] : 0;
    return sum;
}

static const Stage *last_stage(const Run *r) { return &r->stage[r->n_stage - 1]; }

/* Of the table at the end of some runs, line by line: the spread over the runs that got so far. Returns its length. */
static int spread_by_length(const Run *r, int n, double *length, double *mean, double *low, double *high) {
    for (int i = 0; i < r->n_length; i++) {
        double right[MAX_SEED];
        int count = 0;
        Spread s;
        for (int k = 0; k < n; k++)
            if (i < r[k].n_length) right[count++] = r[k].right[i];
        s = spread_of(right, count);
        length[i] = r->length[i], mean[i] = s.mean, low[i] = s.low, high[i] = s.high;
    }
    return r->n_length;
}

/* COPYING ====================================================================================================== */

static const struct {
    const char *name, *what, *paper;
} copying_case[] = {
    {"copying-all", "selective", "99.8"},              {"copying-none", "time-invariant", "56.4"},
    {"copying-grown-all", "selective, grown", "99.8"}, {"copying-grown-none", "time-invariant, grown", "56.4"},
    {"quick-copying-all", "selective, quick", ""},     {"quick-copying-delta", "only delta, quick", ""},
    {"quick-copying-none", "time-invariant, quick", ""},
};
enum { N_COPYING = sizeof copying_case / sizeof *copying_case };

static const double published[] = {99.8, 56.4};

static void copying(const char *dir) {
    double length[MAX_POINT], mean[MAX_POINT], low[MAX_POINT], high[MAX_POINT], at = 4096;
    int quick = !there_are("copying-all");
    Picture p;
    Plot plot;
    headings("model|length|items|seeds|steps|tokens right, %|least to most|whole samples, %|paper, %|seconds");
    picture_open(&p, dir, "08_copying.svg", 720, 340,
                 quick ? "Selective Copying, trained at 64" : "Selective Copying, trained at 4096");
    plot = plot_begin(&p, 64, 66, 440, 210,
                      axis_make("length measured at (tokens)", LOG2, quick ? 64 : 256, quick ? 512 : 16384),
                      axis_make("tokens right (%)", LINEAR, 0, 100));
    for (int i = 0; i < N_COPYING; i++) {
        double right[MAX_SEED], whole[MAX_SEED], steps[MAX_SEED];
        int n = read_runs(run[i], copying_case[i].name), rows;
        for (int k = 0; k < n; k++) {
            right[k] = last_right(last_stage(&run[i][k])), whole[k] = last_whole(last_stage(&run[i][k]));
            steps[k] = steps_of(&run[i][k]);
        }
        if (n == 0) continue;
        cell("%s", copying_case[i].what), cell("%d", last_stage(run[i])->len), cell("%d", last_stage(run[i])->items);
        cell("%d", n), cell("%.0f", spread_of(steps, n).mean), cell("%.2f", spread_of(right, n).mean);
        cell("%.2f to %.2f", spread_of(right, n).low, spread_of(right, n).high);
        cell("%.2f", spread_of(whole, n).mean), cell("%s", copying_case[i].paper);
        cell("%d", seconds_of(run[i], n)), next_row();
        if (quick ? i < 4 : i > 1) continue;
        rows = spread_by_length(run[i], n, length, mean, low, high);
        plot_spread(&plot, i % 4, length, low, high, rows, 0);
        plot_line(&plot, i % 4, length, mean, rows, copying_case[i].what);
        if (quick) continue;
        plot_line(&plot, 3 + i, &at, &published[i], 1, i == 0 ? "selective, paper" : "time-invariant, paper");
    }
    plot_end(&plot);
    if (picture_close(&p) != 0) exit(1);
    print_table("Selective Copying");
    if (quick) return;
    cell("model");
    for (int i = 0; i < 4; i++) {
        int n = read_runs(run[i], copying_case[i].name), rows = spread_by_length(run[i], n, length, mean, low, high);
        for (int j = 0; i == 0 && j < rows; j++) cell("%.0f", length[j]);
        if (i == 0) next_row();
        cell("%s", copying_case[i].what);
        for (int j = 0; j < rows; j++) cell("%.1f", mean[j]);
        next_row();
    }
    print_table("Tokens right at other lengths than the last one trained at, mean of seeds, %");
}

/* INDUCTION ==================================================================================================== */

/* each: seeds are reported one by one. */
static const struct {
    const char *name, *what;
    int each;
} induction_case[] = {
    {"induction", "256", 1},
    {"induction-none", "256, time-invariant", 0},
    {"induction-long", "64 to 131072", 0},
    {"quick-induction-grown", "64, then 1024", 0},
};
enum { N_INDUCTION = sizeof induction_case / sizeof *induction_case };

/* A column of right answers against length, from the row of the first length on. */
static void column(int at, const double *mean, const double *least, int rows) {
    for (int j = 0; j < rows; j++)
        if (least == NULL) snprintf(table.cell[3 + j][at], sizeof table.cell[0][0], "%.1f", mean[j]);
        else snprintf(table.cell[3 + j][at], sizeof table.cell[0][0], "%.1f (%.1f)", mean[j], least[j]);
}

/* Right answers against length: of each seed, or the mean of the seeds and the least. */
static void induction(const char *dir) {
    static double length[MAX_POINT], mean[MAX_POINT], low[MAX_POINT], high[MAX_POINT];
    int most = 0, at = 1, quick = !there_are("induction");
    Picture p;
    Plot plot;
    picture_open(&p, dir, "08_induction.svg", 720, 340, "Induction Heads: right answers, by the length trained at");
    plot = plot_begin(&p, 64, 66, 440, 210, axis_make("length measured at (tokens)", LOG2, 64, quick ? 16384 : 1 << 20),
                      axis_make("answers right (%)", LINEAR, 0, 100));
    strcpy(table.cell[0][0], "trained at"), strcpy(table.cell[1][0], "seed"), strcpy(table.cell[2][0], "steps");
    for (int i = 0; i < N_INDUCTION; i++) {
        int n = read_runs(run[i], induction_case[i].name), each = induction_case[i].each;
        for (int k = 0; k < (each ? n : n > 0); k++, at++) {
            int rows = spread_by_length(&run[i][k], each ? 1 : n, length, mean, low, high);
            double steps[MAX_SEED];
            char label[64];
            for (int l = 0; l < n; l++) steps[l] = steps_of(&run[i][l]);
            snprintf(table.cell[0][at], sizeof table.cell[0][0], "%s", induction_case[i].what);
            snprintf(table.cell[1][at], sizeof table.cell[0][0], n == 1 || each ? "%d" : "%d seeds",
                     n == 1 || each ? run[i][k].seed : n);
            snprintf(table.cell[2][at], sizeof table.cell[0][0], "%.0f", each ? steps[k] : spread_of(steps, n).mean);
            column(at, mean, each || n == 1 ? NULL : low, rows);
            for (; most < rows; most++)
                snprintf(table.cell[3 + most][0], sizeof table.cell[0][0], "%.0f", length[most]);
            if (!quick && i == 3) continue;
            if (!each) plot_spread(&plot, i, length, low, high, rows, 0);
            if (each) snprintf(label, sizeof label, "%s: each of %d seeds", induction_case[i].what, n);
            else snprintf(label, sizeof label, "%s", induction_case[i].what);
            plot_line(&plot, i, length, mean, rows, k == 0 ? label : NULL);
        }
    }
    plot_end(&plot);
    if (picture_close(&p) != 0) exit(1);
    strcpy(table.cell[0][at], "paper, 256"), strcpy(table.cell[2][at], "204800");
    for (int j = 0; j < most; j++) strcpy(table.cell[3 + j][at], "100");
    table.row = 3 + most;
    print_table("Induction Heads: answers right, %; of several seeds the mean, and the least in parentheses");
}

/* RECALL ======================================================================================================= */

static const struct {
    const char *name, *states;
} recall_case[] = {
    {"recall-1", "1"}, {"recall-2", "2"}, {"recall-4", "4"}, {"recall-8", "8"}, {"recall-16", "16"},
    {"recall-64", "64"}, {"recall-none", "16, time-invariant"}, {"quick-recall-1", "1, quick"},
    {"quick-recall-2", "2, quick"}, {"quick-recall-4", "4, quick"},
};
enum { N_RECALL = sizeof recall_case / sizeof *recall_case };

/* A line for each size of the state, stage by stage: the number of pairs grows. The last column has the most pairs of
   which at least 90% are answered, in the mean of the seeds. */
static void recall(const char *dir) {
    int quick = !there_are("recall-1");
    Picture p;
    Plot plot;
    headings("states per channel|seeds|2 pairs|4|8|16|32|60|120|90% up to");
    picture_open(&p, dir, "08_recall.svg", 700, 340, "Recall: right answers against the pairs to remember");
    plot = plot_begin(&p, 64, 66, 440, 210, axis_make("pairs", LOG2, 2, 128),
                      axis_make("answers right (%)", LINEAR, 0, 100));
    for (int i = 0; i < N_RECALL; i++) {
        int n = read_runs(run[i], recall_case[i].name), up_to = 0, stages = n > 0 ? run[i][0].n_stage : 0;
        double x[MAX_STAGE], mean[MAX_STAGE], low[MAX_STAGE], high[MAX_STAGE], guess[MAX_STAGE], right[MAX_SEED];
        char label[64];
        if (n == 0) continue;
        cell("%s", recall_case[i].states), cell("%d", n);
        for (int j = 0; j < stages; j++) {
            Spread s;
            for (int k = 0; k < n; k++) right[k] = last_right(&run[i][k].stage[j]);
            s = spread_of(right, n);
            x[j] = run[i][0].stage[j].items, guess[j] = 100 / x[j];
            mean[j] = s.mean, low[j] = s.low, high[j] = s.high;
            if (mean[j] >= 90) up_to = (int)x[j];
            cell("%.1f (%.1f)", s.mean, s.low);
        }
        table.column = 9, cell("%d", up_to), next_row();
        if (quick ? i < 7 : i > 5) continue;
        snprintf(label, sizeof label, "states: %s", recall_case[i].states);
        plot_spread(&plot, i % 7, x, low, high, stages, 0);
        plot_line(&plot, i % 7, x, mean, stages, label);
        if (i == 5 || i == 9) plot_line(&plot, INK, x, guess, stages, "any of the pairs");
    }
    plot_end(&plot);
    if (picture_close(&p) != 0) exit(1);
    print_table("Recall: answers right, mean of seeds (least), %, against the pairs to remember");
}

/* STORIES ====================================================================================================== */

typedef struct {
    const char *name, *paper;      /* its perplexity there */
    Spread nats;
    int n;
} Ablation;

static int worse(const void *a, const void *b) {
    double difference = ((const Ablation *)b)->nats.mean - ((const Ablation *)a)->nats.mean;
    return (difference > 0) - (difference < 0);
}

/* Which of delta, B and C depends on the token: Table 7. */
static void stories(const char *dir) {
    static const char *const published[][2] = {
        {"none", "10.93"}, {"B", "10.15"}, {"C", "9.98"}, {"delta", "9.81"},
        {"B,C", ""}, {"delta,C", ""}, {"delta,B", ""}, {"all", "8.71"},
    };
    enum { N = sizeof published / sizeof *published };
    Ablation ablation[N];
    double floor = NAN, low = NAN, high = NAN;
    Picture p;
    Plot plot;
    for (int i = 0; i < N; i++) {
        double nats[MAX_SEED];
        char name[64];
        ablation[i].name = published[i][0], ablation[i].paper = published[i][1];
        snprintf(name, sizeof name, "stories-%s", ablation[i].name);
        ablation[i].n = read_runs(run[i], name);
        for (int k = 0; k < ablation[i].n; k++) nats[k] = run[i][k].nats, floor = run[i][k].floor;
        ablation[i].nats = spread_of(nats, ablation[i].n);
        range_add(&low, &high, nats, ablation[i].n);
    }
    if (!isfinite(high)) return;
    qsort(ablation, N, sizeof *ablation, worse);
    headings("selective|seeds|nats per token|least to most|above the floor|perplexity|the paper's");
    picture_open(&p, dir, "08_stories.svg", 680, 320, "Loss on stories, by what depends on the token");
    plot = plot_begin(&p, 64, 66, 580, 190, axis_make(NULL, LINEAR, -0.5, N - 0.5),
                      axis_make("held-out loss (nats per token)", LINEAR, 0, ceil(high * 10 + 0.5) / 10));
    for (int i = 0; i < N; i++) {
        const Spread *s = &ablation[i].nats;
        double x = i;
        if (ablation[i].n == 0) continue;
        cell("%s", ablation[i].name), cell("%d", s->n), cell("%.3f", s->mean), cell("%.3f to %.3f", s->low, s->high);
        cell("%.3f", s->mean - floor), cell("%.3f", exp(s->mean)), cell("%s", ablation[i].paper), next_row();
        plot_bar(&plot, 0, x - 0.3, 0, x + 0.3, s->mean);
        plot_spread(&plot, INK, &x, &s->low, &s->high, 1, 1);
        picture_text(&p, plot_x(&plot, x), 274, MIDDLE, "%s", ablation[i].name);
    }
    picture_text(&p, 354, 300, MIDDLE, "what depends on the token; line: entropy of the stories");
    picture_line(&p, 64, plot_y(&plot, floor), 644, plot_y(&plot, floor), "class=\"s1\" stroke-width=\"2\"");
    plot_end(&plot);
    if (picture_close(&p) != 0) exit(1);
    print_table("Stories: the loss by what depends on the token; the floor is the entropy of the stories");
}

/* COMPUTE ====================================================================================================== */

/* The runs and their seconds by what they ran on. */
static void compute(void) {
    static const char *const of[] = {"none", "B", "C", "delta", "B,C", "delta,C", "delta,B", "all"};
    char device[MAX_CASE][64];
    int runs[MAX_CASE] = {0}, total[MAX_CASE] = {0}, count = 0;
    for (int i = 0; i < N_COPYING + N_INDUCTION + N_RECALL + 8; i++) {
        int j = i - N_COPYING, l = j - N_INDUCTION, n;
        char name[64];
        snprintf(name, sizeof name, "stories-%s", of[l >= N_RECALL ? l - N_RECALL : 0]);
        n = read_runs(run[0], j < 0          ? copying_case[i].name
                              : l < 0        ? induction_case[j].name
                              : l < N_RECALL ? recall_case[l].name
                                             : name);
        for (int k = 0; k < n; k++) {
            int at = 0;
            while (at < count && strcmp(device[at], run[0][k].device) != 0) at++;
            if (at == count && count < MAX_CASE) strcpy(device[count++], run[0][k].device);
            runs[at]++, total[at] += run[0][k].seconds;
        }
    }
    headings("runs on|runs|seconds, in sum");
    for (int at = 0; at < count; at++)
        cell("%s", device[at]), cell("%d", runs[at]), cell("%d", total[at]), next_row();
    print_table("Compute");
}

int main(int argc, char **argv) {
    const char *dir = argc > 1 ? argv[1] : ".";
    if (argc > 2) logs = argv[2];
    copying(dir);
    induction(dir);
    recall(dir);
    stories(dir);
    compute();
    return 0;
}
