/* Speed on this machine, each figure beside the limit measured in the same run: decoding beside the speed of reading
   the weights, prompts and training beside the matrix products alone at peak. Medians; the limits are measured between
   the runs, because clocks and neighbours change from one second to the next.

   SPDX-License-Identifier: MIT */
#include "../mamba.c"
#include <time.h>

enum { RUNS = 7 };

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *value, int n) {
    qsort(value, n, sizeof *value, by_value);
    return value[n / 2];
}

/* Bytes per second of reading an array that no cache holds, by all threads. */
static double read_speed(const real *array, size_t n) {
    enum { PIECES = 256, STEP = 8 * LANES };
    static real sink[PIECES];
    double start = seconds();
    PARALLEL_FOR
    for (int i = 0; i < PIECES; i++) {
        const real *piece = array + n / PIECES / STEP * STEP * i;
        lanes sum[8];
        memset(sum, 0, sizeof sum);
        for (size_t j = 0; j < n / PIECES / STEP * STEP; j += STEP)
            for (int k = 0; k < 8; k++) sum[k] += lanes_load(piece + j + k * LANES, LANES);
        for (int k = 1; k < 8; k++) sum[0] += sum[k];
        sink[i] += lanes_sum(sum[0]);
    }
    return (double)(n / PIECES / STEP * STEP * PIECES * sizeof *array) / (seconds() - start);
}

/* Floating-point operations per second of multiply-adds on all threads; 16 independent sums cover the latency. */
static double peak_flops(void) {
    enum { PIECES = 64, ROUNDS = 100000, SUMS = 16 };
    static real sink[PIECES];
    double start = seconds();
    PARALLEL_FOR
    for (int i = 0; i < PIECES; i++) {
        vec sum[SUMS], factor = *(vec *)sink + (real)0.5;
        for (int k = 0; k < SUMS; k++) sum[k] = factor + (real)k;
        for (int r = 0; r < ROUNDS; r++)
            for (int k = 0; k < SUMS; k++) sum[k] = sum[k] * factor + factor;
        for (int k = 1; k < SUMS; k++) sum[0] += sum[k];
        sink[i] = sum[0][0] > 1e30 ? 1 : 0;
    }
    return 2.0 * SUMS * (sizeof(vec) / sizeof(real)) * ROUNDS * PIECES / (seconds() - start);
}

/* Weights that matrix products read for one token: all but the embedding's table, which is read as the head. */
static double product_weights(const Config *c) {
    double E = c->d_inner, D = c->d_model;
    return c->n_layer * (3 * D * E + E * dbc_width(c) + E * c->dt_rank) + D * c->vocab_size;
}

static int open_model(Model *m, Backend *b, int d_model, int n_layer, int vocab_size, int train) {
    Config c = {0};
    c.vocab_size = vocab_size, c.d_model = d_model, c.n_layer = n_layer, c.d_state = 16, c.d_conv = 4, c.expand = 2;
    c.dt_rank = (d_model + 15) / 16, c.d_inner = 2 * d_model, c.conv_bias = 1, c.tied = 1, c.norm_eps = 1e-5;
    if (config_check(&c, "bench") != 0 || model_create(m, &c) != 0) return -1;
    model_init(m, 1);
    return cpu_backend(b, m, 0, train);
}

static int bench_inference(void) {
    enum { NEW = 16, PROMPT = 512 };
    Model m;
    Backend b;
    Sampler s;
    int ids[PROMPT];
    double decode[RUNS], prompt[RUNS], read[RUNS], flops[RUNS], start;
    uint64_t rng = 1;
    if (open_model(&m, &b, 768, 24, 50280, 0) != 0 || sampler_create(&s, m.config.vocab_size, 0, 1) != 0) return -1;
    s.temperature = 0;
    for (int i = 0; i < PROMPT; i++) ids[i] = (int)(random_bits(&rng) % m.config.vocab_size);
    for (int run = 0; run < RUNS; run++) {
        int out[NEW];
        flops[run] = peak_flops();
        if (b.reset(b.self, 1) != 0) return -1;
        start = seconds();
        if (b.forward(b.self, ids, PROMPT, NULL, 0) != 0) return -1;
        prompt[run] = PROMPT / (seconds() - start);
        read[run] = read_speed(m.weights, m.n_param);
        start = seconds();
        if (b.generate(b.self, out, NEW, &s) != 0) return -1;
        decode[run] = NEW / (seconds() - start);
    }
    double limit = median(read, RUNS) / (4 * product_weights(&m.config)),
           head = (double)m.config.d_model * m.config.vocab_size;
    double prompt_limit = median(flops, RUNS) / (2 * (product_weights(&m.config) - head));
    printf("130m: d_model 768, 24 layers, vocab 50280, %s\n", b.description);
    printf("  decode            %10.1f tokens/s   limit %10.1f (reading weights, %.1f GB/s)   share %.2f\n",
           median(decode, RUNS), limit, median(read, RUNS) / 1e9, median(decode, RUNS) / limit);
    printf("  prompt of %d     %10.1f tokens/s   limit %10.1f (multiply-adds, %.1f GFLOP/s) share %.2f\n", PROMPT,
           median(prompt, RUNS), prompt_limit, median(flops, RUNS) / 1e9, median(prompt, RUNS) / prompt_limit);
    b.close(b.self);
    sampler_free(&s);
    model_free(&m);
    return 0;
}

static int bench_training(int d_model, int n_layer, int vocab_size, int batch, int len) {
    Model m;
    Backend b;
    AdamW adamw = {0.9, 0.95, 1e-8, 0.1, 1.0};
    double speed[RUNS], flops[RUNS], loss, limit;
    uint64_t rng = 1;
    int rows = batch * len, *ids = (int *)allocate(rows + 1, sizeof(int));
    if (ids == NULL || open_model(&m, &b, d_model, n_layer, vocab_size, 1) != 0) return -1;
    for (int i = 0; i <= rows; i++) ids[i] = (int)(random_bits(&rng) % vocab_size);
    for (int run = -1; run < RUNS; run++) { /* the first warms up */
        double peak = peak_flops(), start = seconds();
        if (b.gradient(b.self, ids, ids + 1, batch, len, 1) != 0) return -1;
        if (b.update(b.self, &adamw, 1e-3, run + 2, &loss, NULL) != 0) return -1;
        if (run >= 0) speed[run] = rows / (seconds() - start), flops[run] = peak;
    }
    limit = median(flops, RUNS) / (6 * product_weights(&m.config));
    printf("train d_model %d, %d layers, vocab %d, %d x %d\n  step              %10.0f tokens/s   limit %10.0f (matrix "
           "products at peak)"
           "             share %.2f\n",
           d_model, n_layer, vocab_size, batch, len, median(speed, RUNS), limit, median(speed, RUNS) / limit);
    b.close(b.self);
    release(ids);
    model_free(&m);
    return 0;
}

int main(void) {
    if (bench_inference() == 0 && bench_training(128, 4, 512, 8, 256) == 0 && bench_training(256, 6, 4096, 4, 512) == 0)
        return 0;
    printf("bench: %s\n", error_message);
    return 1;
}
