/* mamba.c: the Mamba language model in plain C, to be read from top to bottom.

   A program says #include "mamba.c" and gets all of it as static functions; train.c and run.c do so, and so do the
   tests and the tutorial. The same model on a GPU is in mamba.cu, under the same section numbers.

   SPDX-License-Identifier: MIT

   1. CONTENTS, NOTATION, DEPARTURES FROM THE PAPER ==========================================================

      1. Contents, notation, departures      4. Block and model           7. Tokenizer
      2. Config and memory                   5. Loss and optimiser        8. Files
      3. Layers, forward and backward        6. Generation

   The paper is A. Gu and T. Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
   arXiv:2312.00752v2. A matrix is stored row by row; the last index is contiguous.

      letter          shape                     meaning, and its place in the paper
      x               (batch, len, d_inner)     input of the convolution; "u" after it, the input of the scan (x in Eq. 2)
      z               (batch, len, d_inner)     the gate (Figure 3, right branch)
      delta           (batch, len, d_inner)     step size, softplus(dt + dt_bias) (Algorithm 2, line 5)
      A               (d_inner, d_state)        decay rates, -exp(A_log), diagonal, so a row per channel
      B, C            (batch, len, d_state)     what a token writes into the state and reads from it, for all channels
      D               (d_inner)                 weight of the direct path from u to y
      h               (d_inner, d_state)        the state of one sequence at one time (Eq. 2a)
      y               (batch, len, d_inner)     output of the scan (Eq. 2b), before the gate
      batch, len                                sequences in a batch, positions in a sequence; rows = batch * len
      d_model, d_inner, d_state                 D, ED and N in the paper; d_inner = expand * d_model
      d_conv, dt_rank                           taps of the convolution; rank of the projection that makes dt
      n_layer, vocab_size                       blocks, tokens
      b, t, d, n                                index of a sequence, a position, a channel, a state

   Letters that collide in the paper: D is a width there and a parameter, here only the parameter; B is a batch size
   there and a matrix, here only the matrix; L is a length there, here "len". A "d" in front of a name is the gradient
   of the loss by it and nothing else; the discretised A is "abar".

   Where the code differs from the paper, it follows the authors' released code, so that their checkpoints run:
   - B is discretised by Euler's rule, Bbar = delta B, not by zero-order hold (Eq. 4). For x = delta |A| the ratio of the
     two is x / (1 - exp(-x)): 1.05 at x = 0.1, 2.0 at x = 1.6.
   - dt is initialised log-uniform in [0.001, 0.1], not uniform.
   - A block is x + mixer(RMSNorm(x)): the norm comes first, and one more follows the last block.
   - A_log is stored, never A: A = -exp(A_log) is negative whatever the optimiser does, so the recurrence cannot blow up. */

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

#ifdef __GNUC__
#pragma GCC diagnostic ignored "-Wunused-function" /* a program uses only part of what it includes */
#endif

/* The scalar. Tests define MAMBA_REAL as double, to check every gradient by central differences. */
#ifndef MAMBA_REAL
#define MAMBA_REAL float
#endif
typedef MAMBA_REAL real;

/* 2. CONFIG AND MEMORY ========================================================================================= */

/* The message of the last error. A function that can fail returns -1 (or NULL) after fail(...); a program prints the
   message and exits. Nothing in this file prints or exits. (With a GPU, this file is in two objects, for mamba.cu too.) */
#ifdef MAMBA_CUDA
extern char error_message[1024];
#else
static char error_message[1024];
#endif

#ifdef __GNUC__
__attribute__((format(printf, 1, 2)))
#endif
static int fail(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(error_message, sizeof error_message, format, args);
    va_end(args);
    return -1;
}

/* Loops marked so are shared by the threads; without OpenMP they run on one. Each iteration writes its own part of the
   result and sums in a fixed order, so the bits do not depend on the number of threads. */
#ifdef _OPENMP
#define PARALLEL_FOR _Pragma("omp parallel for schedule(static)")
#else
#define PARALLEL_FOR
#endif

/* count * size bytes, zeroed, aligned for vectors, on huge pages where the system has them (weights are read at the
   speed of memory, and small pages cost up to a third of it). NULL after fail() if there is no memory. */
static void *allocate(size_t count, size_t size) {
    size_t bytes = count * size, align = bytes < ((size_t)8 << 20) ? 64 : (size_t)2 << 20;
    char *raw = NULL, *aligned;
    if (size == 0 || count <= (SIZE_MAX - 2 * align) / size) raw = (char *)calloc(1, bytes + align + sizeof(void *));
    if (raw == NULL) {
        fail("out of memory: %zu elements of %zu bytes", count, size);
        return NULL;
    }
    aligned = raw + sizeof(void *);
    aligned += (align - (uintptr_t)aligned % align) % align;
    ((void **)aligned)[-1] = raw;
#ifdef __linux__
    if (align > 64) madvise(aligned, bytes, MADV_HUGEPAGE);
#endif
    return aligned;
}

static void release(void *memory) {
    if (memory != NULL) free(((void **)memory)[-1]);
}

/* The shape of a model, as config.json of a checkpoint gives it. */
typedef struct {
    int vocab_size, d_model, n_layer;
    int d_state, d_conv, expand, dt_rank;
    int d_inner;                   /* expand * d_model */
    int proj_bias, conv_bias;      /* 1: in_proj and out_proj have a bias; the convolution has one */
    int tied;                      /* 1: the head is the embedding */
    double norm_eps;
    int bos_id, eos_id, pad_id;
} Config;

/* How a parameter starts; `scale` is the half-width, the deviation or 1/sqrt(fan_in) as the rule says. */
typedef enum { INIT_ZERO, INIT_ONE, INIT_NORMAL, INIT_UNIFORM, INIT_A_LOG, INIT_DT_BIAS } Init;

/* One tensor. Parameters, gradients, the optimiser's moments, activations and states are each one flat array of reals
   and a table of these rows that says what lies where. */
typedef struct {
    char name[64];                 /* in a checkpoint */
    int n_dim, shape[3];
    size_t size, offset;           /* in reals; offsets are multiples of 16, so that vectors are aligned */
    Init init;
    double scale;
    int decay;                     /* 1: weight decay applies */
} Tensor;

typedef struct {
    Tensor *row;                   /* NULL: rows are counted, not kept */
    int n_row;
    size_t size;                   /* of the flat array */
    real *base;                    /* the flat array that fields are pointed into; NULL: fields are left alone */
} Table;

/* Adds a row of the given shape (a 0 ends it) and points *field to its place. */
static Tensor *table_add(Table *table, real **field, const char *name, int dim0, int dim1, int dim2) {
    static Tensor unkept;
    Tensor *row = table->row != NULL ? &table->row[table->n_row] : &unkept;
    int shape[3], i;
    memset(row, 0, sizeof *row);
    shape[0] = dim0, shape[1] = dim1, shape[2] = dim2;
    snprintf(row->name, sizeof row->name, "%s", name);
    for (row->size = 1, i = 0; i < 3 && shape[i] > 0; i++) {
        row->shape[row->n_dim++] = shape[i];
        row->size *= (size_t)shape[i];
    }
    row->offset = table->size;
    if (table->base != NULL) *field = table->base + row->offset;
    table->n_row++;
    table->size += (row->size + 15) / 16 * 16;
    return row;
}

static void table_init(Tensor *row, Init init, double scale, int decay) {
    row->init = init, row->scale = scale, row->decay = decay;
}

/* The parameters of a block, and of a model. Gradients have the same type. The shapes are in params_table. */
typedef struct {
    real *norm, *in_proj, *in_bias, *conv, *conv_bias, *x_proj, *dt_proj, *dt_bias, *A_log, *D, *out_proj, *out_bias;
} BlockParams;

typedef struct {
    real *embedding, *norm_f, *head;
    BlockParams *block;            /* (n_layer) */
} Params;


/* A field of config.json. Its low tells what it is: 1 a size, 0 a truth value, -1 a token's id (-1 stands for null). */
typedef struct {
    const char *name;
    int *value, initial, low, high;
} Field;

enum { N_FIELD = 14 };

/* The limits are far above any published model, and so low that an int holds a product of two extents other than
   d_model, vocab_size and n_layer; those go through size_t. */
static void config_fields(Field field[N_FIELD], Config *c) {
    const Field fields[N_FIELD] = {
        {"vocab_size", &c->vocab_size, 50280, 1, 1 << 20}, {"hidden_size", &c->d_model, 768, 1, 1 << 14},
        {"num_hidden_layers", &c->n_layer, 32, 1, 1 << 10}, {"state_size", &c->d_state, 16, 1, 256},
        {"conv_kernel", &c->d_conv, 4, 1, 8}, {"expand", &c->expand, 2, 1, 8},
        {"intermediate_size", &c->d_inner, 0, 1, 1 << 17}, {"time_step_rank", &c->dt_rank, 0, 1, 1 << 12},
        {"use_bias", &c->proj_bias, 0, 0, 1}, {"use_conv_bias", &c->conv_bias, 1, 0, 1},
        {"tie_word_embeddings", &c->tied, 1, 0, 1}, {"bos_token_id", &c->bos_id, 0, -1, c->vocab_size - 1},
        {"eos_token_id", &c->eos_id, 0, -1, c->vocab_size - 1}, {"pad_token_id", &c->pad_id, 0, -1, c->vocab_size - 1},
    };
    memcpy(field, fields, sizeof fields);
}

/* Whether the config that `file` gave is one of a model. */
static int config_check(const Config *c, const char *file) {
    Config copy = *c;
    Field field[N_FIELD];
    double size;
    config_fields(field, &copy);
    for (const Field *f = field; f < field + N_FIELD; f++)
        if (*f->value < f->low || *f->value > f->high)
            return fail("%s: %s is %d, expected %d to %d", file, f->name, *f->value, f->low, f->high);
    if (c->d_inner != c->expand * c->d_model)
        return fail("%s: intermediate_size is %d, expected expand * hidden_size = %d", file, c->d_inner,
                    c->expand * c->d_model);
    if (!(c->norm_eps > 0 && c->norm_eps < 1))
        return fail("%s: layer_norm_epsilon is %g, expected between 0 and 1", file, c->norm_eps);
    /* Weights, gradients and two moments in double, with all padding, must be addressable (size_t may have 32 bits). */
    size = 2.0 * c->vocab_size * c->d_model + 64 + c->n_layer * (200 + 4.0 * c->d_model +
           (double)c->d_inner * (3.0 * c->d_model + 2.0 * c->dt_rank + 3.0 * c->d_state + c->d_conv + 5));
    if (size > (double)(SIZE_MAX / 64)) return fail("%s: %.3g parameters are too many for this machine", file, size);
    return 0;
}

/* Adds a parameter's row, named prefix + name. */
static void param(Table *table, real **field, const char *prefix, const char *name, int dim0, int dim1, int dim2,
                  Init init, double scale, int decay) {
    char full[64];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    table_init(table_add(table, field, full, dim0, dim1, dim2), init, scale, decay);
}

/* One row per parameter, in the order of their use. p->block has n_layer elements; it may be NULL when only rows are
   wanted. A tied head is no row: it points to the embedding. No decay on A_log, D, biases, norms and the embedding. */
static void params_table(Table *table, const Config *c, Params *p) {
    int dim = c->d_model, inner = c->d_inner, rank = c->dt_rank;
    double from_model = 1 / sqrt(dim), from_inner = 1 / sqrt(inner), from_rank = 1 / sqrt(rank);
    double from_conv = 1 / sqrt(c->d_conv);
    double residual = from_inner / sqrt(c->n_layer); /* n_layer blocks add to one residual stream */
    param(table, &p->embedding, "backbone.", "embeddings.weight", c->vocab_size, dim, 0, INIT_NORMAL, 0.02, 0);
    for (int l = 0; l < c->n_layer; l++) {
        BlockParams unkept, *b = p->block != NULL ? &p->block[l] : &unkept;
        char in[40];
        snprintf(in, sizeof in, "backbone.layers.%d.", l);
        param(table, &b->norm, in, "norm.weight", dim, 0, 0, INIT_ONE, 0, 0);
        param(table, &b->in_proj, in, "mixer.in_proj.weight", 2 * inner, dim, 0, INIT_UNIFORM, from_model, 1);
        if (c->proj_bias) param(table, &b->in_bias, in, "mixer.in_proj.bias", 2 * inner, 0, 0, INIT_ZERO, 0, 0);
        else b->in_bias = NULL;
        param(table, &b->conv, in, "mixer.conv1d.weight", inner, 1, c->d_conv, INIT_UNIFORM, from_conv, 1);
        if (c->conv_bias) param(table, &b->conv_bias, in, "mixer.conv1d.bias", inner, 0, 0, INIT_UNIFORM, from_conv, 0);
        else b->conv_bias = NULL;
        param(table, &b->x_proj, in, "mixer.x_proj.weight", rank + 2 * c->d_state, inner, 0, INIT_UNIFORM, from_inner,
              1);
        param(table, &b->dt_proj, in, "mixer.dt_proj.weight", inner, rank, 0, INIT_UNIFORM, from_rank, 1);
        param(table, &b->dt_bias, in, "mixer.dt_proj.bias", inner, 0, 0, INIT_DT_BIAS, 0, 0);
        param(table, &b->A_log, in, "mixer.A_log", inner, c->d_state, 0, INIT_A_LOG, 0, 0);
        param(table, &b->D, in, "mixer.D", inner, 0, 0, INIT_ONE, 0, 0);
        param(table, &b->out_proj, in, "mixer.out_proj.weight", dim, inner, 0, INIT_UNIFORM, residual, 1);
        if (c->proj_bias) param(table, &b->out_bias, in, "mixer.out_proj.bias", dim, 0, 0, INIT_ZERO, 0, 0);
        else b->out_bias = NULL;
    }
    param(table, &p->norm_f, "backbone.", "norm_f.weight", dim, 0, 0, INIT_ONE, 0, 0);
    if (!c->tied) param(table, &p->head, "lm_head.", "weight", c->vocab_size, dim, 0, INIT_NORMAL, 0.02, 1);
    else if (table->base != NULL) p->head = p->embedding;
}

typedef struct {
    Config config;
    Tensor *tensor;                /* (n_tensor), the table of params_table */
    int n_tensor;
    size_t n_param;                /* length of weights, padding included */
    real *weights;
    Params params;                 /* point into weights */
} Model;

static void model_free(Model *m) {
    release(m->weights);
    release(m->params.block);
    release(m->tensor);
    memset(m, 0, sizeof *m);
}

/* The table alone: a loader compares it with the files before it trusts them with memory for the weights. */
static int model_table(Model *m, const Config *c) {
    Table table = {NULL, 0, 0, NULL};
    memset(m, 0, sizeof *m);
    m->config = *c;
    params_table(&table, c, &m->params);
    m->n_tensor = table.n_row, m->n_param = table.size;
    m->tensor = (Tensor *)allocate((size_t)m->n_tensor, sizeof *m->tensor);
    m->params.block = (BlockParams *)allocate((size_t)c->n_layer, sizeof *m->params.block);
    if (m->tensor == NULL || m->params.block == NULL) {
        model_free(m);
        return -1;
    }
    table.row = m->tensor, table.n_row = 0, table.size = 0;
    params_table(&table, c, &m->params);
    return 0;
}

static int model_allocate(Model *m) {
    Table table = {m->tensor, 0, 0, (real *)allocate(m->n_param, sizeof(real))};
    if (table.base == NULL) return -1;
    m->weights = table.base;
    params_table(&table, &m->config, &m->params);
    return 0;
}

/* A model with zeroed weights. The config has passed config_check. */
static int model_create(Model *m, const Config *c) {
    if (model_table(m, c) != 0) return -1;
    if (model_allocate(m) == 0) return 0;
    model_free(m);
    return -1;
}

/* splitmix64 (Steele, Lea and Flood 2014): 64 random bits; the state may be any number. */
static uint64_t random_bits(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Uniform in [0, 1). */
static double random_uniform(uint64_t *state) {
    return (double)(random_bits(state) >> 11) * (1.0 / 9007199254740992.0);
}

/* Mean 0, variance 1 (Box and Muller). */
static double random_normal(uint64_t *state) {
    double radius = sqrt(-2 * log(1 - random_uniform(state)));
    return radius * cos(6.283185307179586 * random_uniform(state));
}

/* Fills one tensor by its rule. */
static void tensor_init(real *w, const Tensor *tensor, uint64_t state) {
    size_t last = (size_t)tensor->shape[tensor->n_dim - 1];
    for (size_t i = 0; i < tensor->size; i++) {
        double value = 0, dt;
        switch (tensor->init) {
        case INIT_ZERO: break;
        case INIT_ONE: value = 1; break;
        case INIT_NORMAL: value = tensor->scale * random_normal(&state); break;
        case INIT_UNIFORM: value = tensor->scale * (2 * random_uniform(&state) - 1); break;
        case INIT_A_LOG: value = log((double)(i % last + 1)); break; /* A = -1, -2, ..., -d_state in every channel */
        case INIT_DT_BIAS: /* delta starts log-uniform in [0.001, 0.1]; the bias is the inverse of softplus */
            dt = 0.001 * pow(100, random_uniform(&state));
            value = dt + log(-expm1(-dt));
            break;
        }
        w[i] = (real)value;
    }
}

/* Fresh weights. Every tensor has a random stream of its own, so they may be drawn in any order. */
static void model_init(Model *m, uint64_t seed) {
    PARALLEL_FOR
    for (int i = 0; i < m->n_tensor; i++) {
        uint64_t state = seed;
        state = random_bits(&state) ^ (uint64_t)i;
        state = random_bits(&state);
        tensor_init(m->weights + m->tensor[i].offset, &m->tensor[i], state);
    }
}

/* 3. LAYERS ====================================================================================================

   Each layer is a forward and, where the model trains, a backward function. Forward overwrites its output. Backward
   overwrites the gradients of activations and adds to those of parameters, which may be NULL where the parameter is. */

enum { LANES = 16, MAX_STATE = 256, MAX_CONV = 8 };

static int min_int(int a, int b) { return a < b ? a : b; }

/* LANES reals side by side. Channels are independent nearly everywhere, so loops over them take LANES at a time, one in each
   lane of the vector registers; arithmetic on this type is lane by lane. The compiler cuts it to the registers it has. */
typedef real lanes __attribute__((vector_size(LANES * sizeof(real))));
static const lanes zero_lanes = {0};
typedef __typeof__(zero_lanes < zero_lanes) lane_bits; /* integers as wide as a real; a comparison gives -1 or 0 */

/* From and to `width` consecutive reals; lanes past the last are 0. */
static inline lanes lanes_load(const real *memory, int width) {
    lanes v = zero_lanes;
    if (width >= LANES) memcpy(&v, memory, sizeof v);
    else memcpy(&v, memory, width * sizeof *memory);
    return v;
}

static inline void lanes_store(real *memory, lanes v, int width) {
    if (width >= LANES) memcpy(memory, &v, sizeof v);
    else memcpy(memory, &v, width * sizeof *memory);
}

static inline lanes lanes_max(lanes a, lanes b) {
    lane_bits a_less = a < b;
    return (lanes)(((lane_bits)a & ~a_less) | ((lane_bits)b & a_less));
}

static inline real lanes_sum(lanes v) {
    real sum = 0;
    for (int c = 0; c < LANES; c++) sum += v[c];
    return sum;
}

/* Sum of n reals, in a fixed order that suits vectors: the compiler may not reorder a plain sum. */
static real sum_of(const real *v, int n) {
    lanes sum = zero_lanes;
    for (int i = 0; i < n; i += LANES) sum += lanes_load(v + i, n - i);
    return lanes_sum(sum);
}

/* exp(x) = 2^k exp(r) with k = round(x / ln 2) and |r| <= ln(2)/2. Returns exp(r) - 1 by its Taylor series, whose rest is below
   the rounding error, and sets *power to 2^k, made of its bits: adding 1.5 * 2^(bits of the mantissa) leaves k in the low bits. */
static inline lanes exp_parts(lanes x, lanes *power) {
    static const double inverse_factorial[] = {1, 1, 1 / 2., 1 / 6., 1 / 24., 1 / 120., 1 / 720., 1 / 5040., 1 / 40320., 1 / 362880.,
                                               1 / 3628800., 1 / 39916800., 1 / 479001600., 1 / 6227020800.};
    enum { SINGLE = sizeof(real) == 4, TERMS = SINGLE ? 7 : 13 };
    const int mantissa = SINGLE ? 23 : 52, bias = SINGLE ? 127 : 1023;
    const real round = SINGLE ? (real)12582912 : (real)6755399441055744, limit = SINGLE ? (real)87.3 : (real)708;
    const real ln2_high = SINGLE ? (real)0.693359375 : (real)0.693147180369123816490, inverse_ln2 = (real)1.44269504088896340736;
    const real ln2_low = SINGLE ? (real)-2.12194440e-4 : (real)1.90821492927058770002e-10;
    lanes clamped = -lanes_max(-lanes_max(x, zero_lanes - limit), zero_lanes - limit);
    lanes shifted = clamped * inverse_ln2 + round, k = shifted - round, r = (clamped - k * ln2_high) - k * ln2_low;
    lanes sum = zero_lanes + (real)inverse_factorial[TERMS];
    for (int i = TERMS - 1; i > 0; i--) sum = sum * r + (real)inverse_factorial[i];
    *power = (lanes)(((lane_bits)shifted + bias) << mantissa);
    return sum * r;
}

/* exp(x); arguments are cut to +-87.3 (in double 708), where a float ends. Error below 1.6 units in the last place. */
static inline lanes lanes_exp(lanes x) {
    lanes power, rest = exp_parts(x, &power);
    return power + power * rest;
}

/* 1 - exp(x), exact to rounding also where exp(x) is nearly 1. */
static inline lanes lanes_one_minus_exp(lanes x) {
    lanes power, rest = exp_parts(x, &power);
    return (1 - power) - power * rest;
}

static inline lanes lanes_sigmoid(lanes x) { return 1 / (1 + lanes_exp(-x)); }

/* softplus(x) = log(1 + exp(x)) = max(x, 0) + log(1 + e) with e = exp(-|x|), so nothing overflows; and
   log(1 + e) = 2 artanh(s) = 2 (s + s^3/3 + s^5/5 + ...) with s = e / (2 + e) <= 1/3, exact to rounding also for tiny e. */
static inline lanes lanes_softplus(lanes x) {
    enum { TERMS = sizeof(real) == 4 ? 7 : 17 };
    lanes positive = lanes_max(x, zero_lanes), e = lanes_exp(-lanes_max(x, -x)), s = e / (2 + e), sum = zero_lanes;
    for (int i = TERMS; i >= 0; i--) sum = sum * s * s + (real)(1. / (2 * i + 1));
    return positive + 2 * s * sum;
}

/* silu(x) = x sigmoid(x), and its derivative sigmoid(x) (1 + x (1 - sigmoid(x))). */
static inline lanes lanes_silu(lanes x) { return x * lanes_sigmoid(x); }
static inline lanes lanes_silu_slope(lanes x) {
    lanes s = lanes_sigmoid(x);
    return s * (1 + x * (1 - s));
}

/* A register of reals. (`lanes` may take several; what follows must know how many numbers the registers hold.) In memory
   it may start at any real. */
#if defined(__AVX512F__)
#define VEC_BYTES 64
#elif defined(__AVX__)
#define VEC_BYTES 32
#else
#define VEC_BYTES 16
#endif
typedef real vec __attribute__((vector_size(VEC_BYTES), aligned(sizeof(real)), may_alias));

enum {
    VEC_LANES = VEC_BYTES / sizeof(real),
    TILE_ROWS = VEC_BYTES == 64 ? 8 : VEC_LANES < 4 ? VEC_LANES : 4, TILE_VECS = 3,     /* sums that fit in the registers */
    BLOCK_K = 1024 / sizeof(real), BLOCK_M = 1024, BLOCK_N = 3072,              /* operands packed at a time */
    UNIT_M = 128, UNIT_N = 768,                                                 /* a thread's share of a block */
    MATVEC_ROWS = 4, PREFETCH = 8192 / sizeof(real)                             /* reals ahead of where W is read */
};

/* Transposes a square of VEC_LANES rows, of which those from `rows` on repeat the last. To exchange the halves of an
   element's index, i.e. its row and column, its bits are rotated one by one: a perfect shuffle, which vectorises. */
static void transpose(real *to, const real *from, size_t row, int rows) {
    enum { SIZE = VEC_LANES * VEC_LANES };
    real square[2][SIZE];
    int s = 0;
    for (int i = 0; i < VEC_LANES; i++)
        *(vec *)&square[0][i * VEC_LANES] = *(const vec *)&from[min_int(i, rows - 1) * row];
    for (int bit = 1; bit < VEC_LANES; bit *= 2, s ^= 1)
        for (int i = 0; i < SIZE / 2; i++) {
            square[s ^ 1][2 * i] = square[s][i];
            square[s ^ 1][2 * i + 1] = square[s][i + SIZE / 2];
        }
    memcpy(to, square[s], sizeof square[s]);
}

/* Packs up to VEC_LANES rows of length k into panel[p][lane], lane being the row. Lanes past the last row repeat it;
   what comes of them is not stored. */
static void pack(real *panel, const real *from, size_t row, size_t col, int rows, int k) {
    int p = 0;
    if (col == 1)
        for (; p + VEC_LANES <= k; p += VEC_LANES) transpose(panel + p * VEC_LANES, from + p, row, rows);
    else if (row == 1 && rows == VEC_LANES)
        for (; p < k; p++) *(vec *)&panel[p * VEC_LANES] = *(const vec *)&from[p * col];
    for (; p < k; p++)
        for (int lane = 0; lane < VEC_LANES; lane++)
            panel[p * VEC_LANES + lane] = from[min_int(lane, rows - 1) * row + p * col];
}

/* A tile of C, TILE_ROWS by n vectors, (+)= the product of packed panels; all its sums stay in registers. Of the tile
   only rows and cols are there. Inlined for each n, so that the loops over the tile unroll. */
__attribute__((always_inline))
static inline void tile(real *C, size_t ldc, const real *A, const real *B, int n, int rows, int cols, int k, int add) {
    vec sum[TILE_ROWS][TILE_VECS] = {{{0}}};
    for (int i = 0; i < min_int(rows, TILE_ROWS); i++)
        for (int v = 0; v < n; v++) __builtin_prefetch(&C[i * ldc + v * VEC_LANES], 1);
    for (int p = 0; p < k; p++)
        for (int i = 0; i < TILE_ROWS; i++)
            for (int v = 0; v < n; v++)
                sum[i][v] += A[p * VEC_LANES + i] * *(const vec *)&B[(v * k + p) * VEC_LANES];
    if (rows >= TILE_ROWS && cols >= n * VEC_LANES) {
        for (int i = 0; i < TILE_ROWS; i++)
            for (int v = 0; v < n; v++) {
                vec *c = (vec *)&C[i * ldc + v * VEC_LANES];
                if (add) sum[i][v] += *c;
                *c = sum[i][v];
            }
    } else {
        real part[TILE_ROWS][TILE_VECS * VEC_LANES];
        for (int i = 0; i < TILE_ROWS; i++)
            for (int v = 0; v < n; v++) *(vec *)&part[i][v * VEC_LANES] = sum[i][v];
        for (int i = 0; i < min_int(rows, TILE_ROWS); i++)
            for (int j = 0; j < min_int(cols, n * VEC_LANES); j++)
                C[i * ldc + j] = add ? C[i * ldc + j] + part[i][j] : part[i][j];
    }
}

/* The product of packed blocks: C (m, n) (+)= A B. */
static void unit(real *C, size_t ldc, const real *A, const real *B, int m, int n, int k, int add) {
    for (int j = 0; j < n; j += TILE_VECS * VEC_LANES)
        for (int i = 0; i < m; i += TILE_ROWS) {
            real *c = C + i * ldc + j;
            const real *a = A + i / VEC_LANES * k * VEC_LANES + i % VEC_LANES, *b = B + j * k;
            int rows = m - i, cols = n - j;
            if (cols > 2 * VEC_LANES) tile(c, ldc, a, b, 3, rows, cols, k, add);
            else if (cols > VEC_LANES) tile(c, ldc, a, b, 2, rows, cols, k, add);
            else tile(c, ldc, a, b, 1, rows, cols, k, add);
        }
}

/* C[i][j] = or += sum_p A(i,p) B(p,j) with A(i,p) = A[i*a_row + p*a_col], B(p,j) = B[p*b_row + j*b_col]; C: (m, n) with
   rows ldc apart. So a linear layer y = x W^T, its dx = dy W and its dW += dy^T x differ in strides only.
   Blocks of A and B are packed into panels that the tiles read front to back. Every element of C is summed over p in
   the same order wherever it lies, so the bits depend on k alone. */
static void matmul(real *C, size_t ldc, const real *A, size_t a_row, size_t a_col, const real *B, size_t b_row,
                   size_t b_col, int m, int n, int k, int accumulate) {
    static real A_pack[BLOCK_M * BLOCK_K] __attribute__((aligned(64)));
    static real B_pack[BLOCK_N * BLOCK_K] __attribute__((aligned(64)));
    if (k == 0 && !accumulate)
        for (int i = 0; i < m; i++) memset(C + i * ldc, 0, (size_t)n * sizeof(real));
    for (int j0 = 0; j0 < n; j0 += BLOCK_N)
        for (int i0 = 0; i0 < m; i0 += BLOCK_M)
            for (int p0 = 0; p0 < k; p0 += BLOCK_K) {
                int bm = min_int(m - i0, BLOCK_M), bn = min_int(n - j0, BLOCK_N), bk = min_int(k - p0, BLOCK_K);
                int a_panels = (bm + VEC_LANES - 1) / VEC_LANES, b_panels = (bn + VEC_LANES - 1) / VEC_LANES;
                int units_m = (bm + UNIT_M - 1) / UNIT_M, units_n = (bn + UNIT_N - 1) / UNIT_N;
                PARALLEL_FOR
                for (int i = 0; i < a_panels + b_panels; i++) {
                    if (i < a_panels)
                        pack(A_pack + i * VEC_LANES * bk, A + (i0 + i * VEC_LANES) * a_row + p0 * a_col, a_row, a_col,
                             min_int(bm - i * VEC_LANES, VEC_LANES), bk);
                    else {
                        int j = i - a_panels;
                        pack(B_pack + j * VEC_LANES * bk, B + (j0 + j * VEC_LANES) * b_col + p0 * b_row, b_col, b_row,
                             min_int(bn - j * VEC_LANES, VEC_LANES), bk);
                    }
                }
                PARALLEL_FOR
                for (int u = 0; u < units_m * units_n; u++) {
                    int i = u / units_n * UNIT_M, j = u % units_n * UNIT_N;
                    unit(C + (i0 + i) * ldc + j0 + j, ldc, A_pack + i * bk, B_pack + j * bk,
                         min_int(bm - i, UNIT_M), min_int(bn - j, UNIT_N), bk, accumulate || p0 > 0);
                }
            }
}

/* One output of matvec for n rows of x, at least 1 of which are there. */
__attribute__((always_inline))
static inline void matvec_output(real *y, size_t ldy, const real *x, size_t ldx, const real *w, real bias, int n,
                                 int rows, int in) {
    vec sum[MATVEC_ROWS] = {{0}};
    int vector_in = in / VEC_LANES * VEC_LANES;
    for (int i = 0; i < vector_in; i += VEC_LANES) {
        vec wi = *(const vec *)&w[i];
        __builtin_prefetch(&w[i + PREFETCH]);
        for (int r = 0; r < n; r++) sum[r] += wi * *(const vec *)&x[min_int(r, rows - 1) * ldx + i];
    }
    for (int r = 0; r < min_int(n, rows); r++) {
        real total = bias;
        for (int lane = 0; lane < VEC_LANES; lane++) total += sum[r][lane];
        for (int i = vector_in; i < in; i++) total += w[i] * x[r * ldx + i];
        y[r * ldy] = total;
    }
}

/* y = x W^T + bias for up to MATVEC_ROWS rows, as in decoding, where all the time goes into reading W: each thread reads
   its part once, from front to back.     x: (rows, in), rows ldx apart; W: (out, in); bias: (out) or NULL; y: (rows, out) */
static void matvec(real *y, size_t ldy, const real *x, size_t ldx, const real *W, const real *bias, int rows, int in,
                   int out) {
    PARALLEL_FOR
    for (int o = 0; o < out; o++) {
        const real *w = W + (size_t)o * in;
        real b = bias != NULL ? bias[o] : 0;
        if (rows == 1) matvec_output(y + o, ldy, x, ldx, w, b, 1, 1, in);
        else matvec_output(y + o, ldy, x, ldx, w, b, MATVEC_ROWS, rows, in);
    }
}


/* out = x + y: the residual connection.     n reals */
static void add_forward(real *out, const real *x, const real *y, size_t n) {
    for (size_t i = 0; i < n; i++) out[i] = x[i] + y[i];
}

/* Embedding: y_r = W[token_r].     W: (vocab_size, d_model); y: (rows, d_model) */
static void embedding_forward(real *y, const real *W, const int *tokens, int rows, int d_model) {
    for (int r = 0; r < rows; r++)
        memcpy(y + (size_t)r * d_model, W + (size_t)tokens[r] * d_model, d_model * sizeof *y);
}

/* dW[token_r] += dy_r. Threads share the columns, since two rows may hold the same token. */
static void embedding_backward(real *dW, const real *dy, const int *tokens, int rows, int d_model) {
    PARALLEL_FOR
    for (int i0 = 0; i0 < d_model; i0 += LANES)
        for (int r = 0; r < rows; r++)
            for (int i = i0; i < min_int(i0 + LANES, d_model); i++)
                dW[(size_t)tokens[r] * d_model + i] += dy[(size_t)r * d_model + i];
}

/* RMSNorm: y = x r w with r = 1 / sqrt(mean(x^2) + eps).     x, y: (rows, dim); w: (dim); r: (rows), kept for backward */
static void rmsnorm_forward(real *y, real *r, const real *x, const real *w, int rows, int dim, double eps) {
    PARALLEL_FOR
    for (int row = 0; row < rows; row++) {
        const real *xr = x + (size_t)row * dim;
        lanes sum = zero_lanes;
        for (int i = 0; i < dim; i += LANES) {
            lanes xi = lanes_load(xr + i, dim - i);
            sum += xi * xi;
        }
        r[row] = (real)(1 / sqrt(lanes_sum(sum) / dim + eps));
        for (int i = 0; i < dim; i++) y[(size_t)row * dim + i] = xr[i] * r[row] * w[i];
    }
}

/* Forward was y_i = x_i r w_i with dr/dx_j = -r^3 x_j / dim, so
   dx_j += r (dy_j w_j - x_j r^2 mean_i(dy_i w_i x_i)),     dw_i += sum over rows of dy_i x_i r.
   Adds to dx, because x also went past the block. */
static void rmsnorm_backward(real *dx, real *dw, const real *dy, const real *x, const real *r, const real *w, int rows, int dim) {
    PARALLEL_FOR
    for (int row = 0; row < rows; row++) {
        const real *xr = x + (size_t)row * dim, *dyr = dy + (size_t)row * dim;
        lanes sum = zero_lanes;
        real mean;
        for (int i = 0; i < dim; i += LANES)
            sum += lanes_load(dyr + i, dim - i) * lanes_load(w + i, dim - i) * lanes_load(xr + i, dim - i);
        mean = lanes_sum(sum) / dim;
        for (int i = 0; i < dim; i++) dx[(size_t)row * dim + i] += r[row] * (dyr[i] * w[i] - xr[i] * r[row] * r[row] * mean);
    }
    PARALLEL_FOR
    for (int i = 0; i < dim; i += LANES) {
        lanes sum = lanes_load(dw + i, dim - i);
        for (int row = 0; row < rows; row++)
            sum += lanes_load(dy + (size_t)row * dim + i, dim - i) * lanes_load(x + (size_t)row * dim + i, dim - i) * r[row];
        lanes_store(dw + i, sum, dim - i);
    }
}

/* dbias += the sum of dy over its rows.     dy: (rows, dim) */
static void bias_backward(real *dbias, const real *dy, int rows, int dim) {
    PARALLEL_FOR
    for (int i = 0; i < dim; i += LANES) {
        lanes sum = lanes_load(dbias + i, dim - i);
        for (int row = 0; row < rows; row++) sum += lanes_load(dy + (size_t)row * dim + i, dim - i);
        lanes_store(dbias + i, sum, dim - i);
    }
}

/* Linear: y = x W^T + bias.     x: (rows, in), row stride ldx; W: (out, in); bias: (out) or NULL; y: (rows, out) */
static void linear_forward(real *y, const real *x, size_t ldx, const real *W, const real *bias, int rows, int in, int out) {
    if (rows <= MATVEC_ROWS) {
        matvec(y, (size_t)out, x, ldx, W, bias, rows, in, out);
        return;
    }
    matmul(y, (size_t)out, x, ldx, 1, W, 1, (size_t)in, rows, out, in, 0);
    if (bias == NULL) return;
    PARALLEL_FOR
    for (int row = 0; row < rows; row++)
        for (int i = 0; i < out; i++) y[(size_t)row * out + i] += bias[i];
}

/* dx = dy W,     dW += dy^T x,     dbias += sum over rows of dy.     dx: row stride ldx; add: dx += dy W instead */
static void linear_backward(real *dx, real *dW, real *dbias, const real *dy, const real *x, size_t ldx, const real *W, int rows,
                            int in, int out, int add) {
    matmul(dx, ldx, dy, (size_t)out, 1, W, (size_t)in, 1, rows, in, out, add);
    matmul(dW, (size_t)in, dy, 1, (size_t)out, x, ldx, 1, out, in, rows, 1);
    if (dbias != NULL) bias_backward(dbias, dy, rows, out);
}

/* A sequence's state in a layer is (d_conv - 1 + d_state, d_inner): the inputs of the convolution that later positions still
   need, oldest first, then h transposed, so that channels are contiguous. Layers read the state `from` and leave the
   new one in `to` (the same place, or NULL: not wanted); ldstate is the distance of two sequences' states. */

/* The input at position t, which for t < 0 is in the state. */
static const real *conv_input(const real *x, size_t ldx, const real *from, int t, int d_inner, int d_conv) {
    return t >= 0 ? x + t * ldx : from + (size_t)(d_conv - 1 + t) * d_inner;
}

/* The taps of LANES channels, from rows of d_conv to rows of lanes. */
static void lanes_taps(lanes *tap, const real *w, int width, int d_conv) {
    for (int k = 0; k < d_conv; k++) {
        tap[k] = zero_lanes;
        for (int c = 0; c < min_int(LANES, width); c++) tap[k][c] = w[c * d_conv + k];
    }
}

/* Causal convolution, a filter of its own for each channel, then SiLU; the last tap is the current position:
   u_t = silu(s_t),     s_t = bias + sum_k w_k x_{t - (d_conv-1) + k}.
   u: (batch, len, d_inner); x: the same with row stride ldx; w: (d_inner, d_conv); bias: (d_inner) or NULL */
static void conv_forward(real *u, const real *x, size_t ldx, const real *w, const real *bias, const real *from, real *to,
                         size_t ldstate, int batch, int len, int d_inner, int d_conv) {
    int blocks = (d_inner + LANES - 1) / LANES;
    PARALLEL_FOR
    for (int i = 0; i < batch * blocks; i++) {
        int b = i / blocks, d = i % blocks * LANES, width = d_inner - d;
        const real *xb = x + (size_t)b * len * ldx + d, *fromb = from + b * ldstate + d;
        lanes tap[MAX_CONV], bias_d = bias != NULL ? lanes_load(bias + d, width) : zero_lanes;
        lanes_taps(tap, w + (size_t)d * d_conv, width, d_conv);
        for (int t = 0; t < len; t++) {
            lanes s = bias_d;
            for (int k = 0; k < d_conv; k++)
                s += tap[k] * lanes_load(conv_input(xb, ldx, fromb, t - (d_conv - 1) + k, d_inner, d_conv), width);
            lanes_store(u + ((size_t)b * len + t) * d_inner + d, lanes_silu(s), width);
        }
        for (int k = 0; to != NULL && k < d_conv - 1; k++) /* each comes from its own place or a later one */
            lanes_store(to + b * ldstate + d + (size_t)k * d_inner,
                        lanes_load(conv_input(xb, ldx, fromb, len - (d_conv - 1) + k, d_inner, d_conv), width), width);
    }
}

/* ds_t = du_t silu'(s_t),     dx_{t - (d_conv-1) + k} += w_k ds_t,     dw_k += ds_t x_{t - (d_conv-1) + k},     dbias += ds_t.
   s is computed again rather than kept. dx has the row stride of x. */
static void conv_backward(real *dx, real *dw, real *dbias, const real *du, const real *x, size_t ldx, const real *w, const real *bias,
                          const real *from, size_t ldstate, int batch, int len, int d_inner, int d_conv) {
    PARALLEL_FOR
    for (int d = 0; d < d_inner; d += LANES) {
        int width = d_inner - d;
        lanes tap[MAX_CONV], dtap[MAX_CONV], bias_d = bias != NULL ? lanes_load(bias + d, width) : zero_lanes, dbias_d = zero_lanes;
        lanes_taps(tap, w + (size_t)d * d_conv, width, d_conv);
        memset(dtap, 0, sizeof dtap);
        for (int i = 0; i < batch * len; i++) {
            int b = i / len, t = i % len;
            const real *xb = x + (size_t)b * len * ldx + d, *fromb = from + b * ldstate + d;
            real *dxb = dx + (size_t)b * len * ldx + d;
            lanes s = bias_d, ds, input[MAX_CONV];
            for (int k = 0; k < d_conv; k++) {
                input[k] = lanes_load(conv_input(xb, ldx, fromb, t - (d_conv - 1) + k, d_inner, d_conv), width);
                s += tap[k] * input[k];
            }
            ds = lanes_load(du + (size_t)i * d_inner + d, width) * lanes_silu_slope(s);
            dbias_d += ds;
            for (int k = 0; k < d_conv; k++) {
                int source = t - (d_conv - 1) + k;
                lanes before = source < t && source >= 0 ? lanes_load(dxb + source * ldx, width) : zero_lanes;
                dtap[k] += ds * input[k];
                if (source >= 0) lanes_store(dxb + source * ldx, before + tap[k] * ds, width);
            }
        }
        for (int k = 0; k < d_conv; k++)
            for (int c = 0; c < min_int(LANES, width); c++) dw[(size_t)(d + c) * d_conv + k] += dtap[k][c];
        if (dbias != NULL) lanes_store(dbias + d, lanes_load(dbias + d, width) + dbias_d, width);
    }
}

/* Discretisation, first half: the step size delta = softplus(dt + dt_bias), in place.     delta: (rows, d_inner)
   The second half, abar = exp(delta A) and Bbar = delta B, is inside the scan, which has no room to store either:
   they would be d_state times as large as delta. */
static void delta_forward(real *delta, const real *dt_bias, int rows, int d_inner) {
    PARALLEL_FOR
    for (int row = 0; row < rows; row++)
        for (int d = 0; d < d_inner; d += LANES) {
            real *at = delta + (size_t)row * d_inner + d;
            lanes_store(at, lanes_softplus(lanes_load(at, d_inner - d) + lanes_load(dt_bias + d, d_inner - d)), d_inner - d);
        }
}

/* softplus' = sigmoid, and sigmoid(v) = 1 - exp(-softplus(v)); so, in place,
   ddt = ddelta (1 - exp(-delta)),     ddt_bias += sum over rows of ddt. */
static void delta_backward(real *ddelta, real *ddt_bias, const real *delta, int rows, int d_inner) {
    PARALLEL_FOR
    for (int row = 0; row < rows; row++)
        for (int d = 0; d < d_inner; d += LANES) {
            size_t at = (size_t)row * d_inner + d;
            lanes_store(ddelta + at, lanes_load(ddelta + at, d_inner - d) * lanes_one_minus_exp(-lanes_load(delta + at, d_inner - d)), d_inner - d);
        }
    bias_backward(ddt_bias, ddelta, rows, d_inner);
}

/* A = -exp(A_log) of LANES channels, a row of lanes per state.     A: (d_state); A_log: (width, d_state) */
static void lanes_A(lanes *A, const real *A_log, int width, int d_state) {
    for (int n = 0; n < d_state; n++) {
        lanes a = zero_lanes;
        for (int c = 0; c < min_int(LANES, width); c++) a[c] = A_log[c * d_state + n];
        A[n] = -lanes_exp(a);
    }
}

/* Steps from one kept state to the next. Backward needs every h_t; keeping one in SCAN_CHUNK and computing the others
   again stores d_state / SCAN_CHUNK reals per element of y where all of them would be d_state. */
enum { SCAN_CHUNK = 16 };
static int scan_chunks(int len) { return (len + SCAN_CHUNK - 1) / SCAN_CHUNK; }

/* The selective scan (Eq. 2 with the delta, B and C of each position): for each channel and state n
   h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,     y_t = sum_n C_t h_t + D u_t.
   y, u, delta: (batch, len, d_inner); B, C: (batch, len, d_state), row stride ldbc; A_log: (d_inner, d_state); D: (d_inner);
   kept: (batch, scan_chunks(len), d_state, d_inner), the state before each chunk, or NULL; from, to: h, see above. */
static void scan_forward(real *y, real *kept, const real *u, const real *delta, const real *B, const real *C, size_t ldbc,
                         const real *A_log, const real *D, const real *from, real *to, size_t ldstate,
                         int batch, int len, int d_inner, int d_state) {
    int blocks = (d_inner + LANES - 1) / LANES, chunks = scan_chunks(len);
    PARALLEL_FOR
    for (int i = 0; i < batch * blocks; i++) {
        int b = i / blocks, d = i % blocks * LANES, width = d_inner - d;
        lanes A[MAX_STATE], h[MAX_STATE], D_d = lanes_load(D + d, width);
        lanes_A(A, A_log + (size_t)d * d_state, width, d_state);
        for (int n = 0; n < d_state; n++) h[n] = lanes_load(from + b * ldstate + (size_t)n * d_inner + d, width);
        for (int t = 0; t < len; t++) {
            size_t row = (size_t)b * len + t;
            const real *Bt = B + row * ldbc, *Ct = C + row * ldbc;
            lanes ut = lanes_load(u + row * d_inner + d, width), dt = lanes_load(delta + row * d_inner + d, width), yt = D_d * ut;
            for (int n = 0; kept != NULL && t % SCAN_CHUNK == 0 && n < d_state; n++)
                lanes_store(kept + (((size_t)b * chunks + t / SCAN_CHUNK) * d_state + n) * d_inner + d, h[n], width);
            for (int n = 0; n < d_state; n++) {
                h[n] = lanes_exp(dt * A[n]) * h[n] + dt * ut * Bt[n];
                yt += h[n] * Ct[n];
            }
            lanes_store(y + row * d_inner + d, yt, width);
        }
        for (int n = 0; to != NULL && n < d_state; n++) lanes_store(to + b * ldstate + (size_t)n * d_inner + d, h[n], width);
    }
}

/* A thread's share of the backward is SCAN_BLOCKS blocks of LANES channels of one sequence. It sums dB and dC lane by lane over its
   blocks, so that the lanes are added up once for all of them. A share's place in every sum is fixed, whoever computes it. */
enum { SCAN_BLOCKS = 4 };
static int scan_shares(int d_inner) { return (d_inner + SCAN_BLOCKS * LANES - 1) / (SCAN_BLOCKS * LANES); }

/* What a share works in: of a chunk the states h, the decays abar and the sums of dB and dC, all (SCAN_CHUNK, d_state); of each
   block A, the sum of dA, and g, all (SCAN_BLOCKS, d_state). In reals: */
static size_t scan_work(int d_state) { return (size_t)(4 * SCAN_CHUNK + 1 + 3 * SCAN_BLOCKS) * d_state * LANES; }

/* The states of a chunk again, from the one before it in h[0], and the decays. */
static void scan_again(lanes *h, lanes *abar, const lanes *A, const real *u, const real *delta, const real *B, size_t ldbc, int steps,
                       int width, int d_inner, int d_state) {
    for (int s = 0; s < steps; s++, h += d_state, abar += d_state, u += d_inner, delta += d_inner, B += ldbc) {
        lanes ut = lanes_load(u, width), dt = lanes_load(delta, width);
        for (int n = 0; n < d_state; n++) {
            abar[n] = lanes_exp(dt * A[n]);
            h[d_state + n] = abar[n] * h[n] + dt * ut * B[n];
        }
    }
}

/* With g_t = dL/dh_t over all that follows t, forward was h_t = abar_t h_{t-1} + delta_t B_t u_t and y_t = C_t h_t + D u_t, so
   g_t = C_t dy_t + abar_{t+1} g_{t+1}                   the same recurrence, run backwards
   dC_t = sum_d dy_t h_t,     dB_t = sum_d g_t delta_t u_t,     du_t = sum_n g_t delta_t B_t + D dy_t,     dD = sum_t dy_t u_t
   ddelta_t = sum_n g_t (A abar_t h_{t-1} + B_t u_t),     dA = sum_t g_t delta_t abar_t h_{t-1},     dA_log = dA A.
   dB, dC have the row stride of B, C. work: (batch, scan_shares, scan_work);
   part_BC: (scan_shares, batch, len, 2 d_state), part_A: (batch, d_state + 1, d_inner), dA_log's and dD's sums over a sequence. */
static void scan_backward(real *du, real *ddelta, real *dB, real *dC, real *dA_log, real *dD, real *part_BC, real *part_A, real *work,
                          const real *dy, const real *kept, const real *u, const real *delta, const real *B, const real *C,
                          size_t ldbc, const real *A_log, const real *D, int batch, int len, int d_inner, int d_state) {
    int shares = scan_shares(d_inner), chunks = scan_chunks(len), N = d_state, rows = batch * len;
    PARALLEL_FOR
    for (int i = 0; i < batch * shares; i++) {
        int b = i / shares, share = i % shares, d_first = share * SCAN_BLOCKS * LANES, d_end = min_int(d_first + SCAN_BLOCKS * LANES, d_inner);
        lanes *h = (lanes *)(work + i * scan_work(N)), *abar = h + (SCAN_CHUNK + 1) * N, *sumB = abar + SCAN_CHUNK * N;
        lanes *sumC = sumB + SCAN_CHUNK * N, *A = sumC + SCAN_CHUNK * N, *dA = A + SCAN_BLOCKS * N, *g = dA + SCAN_BLOCKS * N;
        lanes sumD[SCAN_BLOCKS];
        memset(dA, 0, 2 * SCAN_BLOCKS * N * sizeof *dA); /* and g: nothing follows the last position */
        memset(sumD, 0, sizeof sumD);
        for (int d = d_first, j = 0; d < d_end; d += LANES, j++) lanes_A(A + j * N, A_log + (size_t)d * N, d_inner - d, N);
        for (int chunk = chunks - 1; chunk >= 0; chunk--) {
            int steps = min_int(SCAN_CHUNK, len - chunk * SCAN_CHUNK);
            size_t first_row = (size_t)b * len + chunk * SCAN_CHUNK;
            memset(sumB, 0, 2 * SCAN_CHUNK * N * sizeof *sumB); /* and sumC */
            for (int d = d_first, j = 0; d < d_end; d += LANES, j++) {
                int width = d_inner - d;
                lanes *A_d = A + j * N, *dA_d = dA + j * N, *g_d = g + j * N, D_d = lanes_load(D + d, width);
                for (int n = 0; n < N; n++) h[n] = lanes_load(kept + (((size_t)b * chunks + chunk) * N + n) * d_inner + d, width);
                scan_again(h, abar, A_d, u + first_row * d_inner + d, delta + first_row * d_inner + d, B + first_row * ldbc, ldbc, steps, width,
                           d_inner, N);
                for (int s = steps - 1; s >= 0; s--) {
                    size_t row = first_row + s, at = row * d_inner + d;
                    const real *Bt = B + row * ldbc, *Ct = C + row * ldbc;
                    const lanes *before = h + s * N, *after = before + N, *abar_t = abar + s * N;
                    lanes ut = lanes_load(u + at, width), dt = lanes_load(delta + at, width), dyt = lanes_load(dy + at, width);
                    lanes sum_gB = zero_lanes, sum_qA = zero_lanes, *dBt = sumB + s * N, *dCt = sumC + s * N;
                    for (int n = 0; n < N; n++) {
                        lanes gt = dyt * Ct[n] + g_d[n], q = gt * abar_t[n] * before[n]; /* q = dL / d(delta A) */
                        dCt[n] += dyt * after[n];
                        dBt[n] += gt * (dt * ut);
                        dA_d[n] += q * dt;
                        sum_gB += gt * Bt[n];
                        sum_qA += q * A_d[n];
                        g_d[n] = gt * abar_t[n];
                    }
                    sumD[j] += dyt * ut;
                    lanes_store(du + at, sum_gB * dt + D_d * dyt, width);
                    lanes_store(ddelta + at, sum_gB * ut + sum_qA, width);
                }
            }
            for (int s = 0; s < steps; s++)
                for (int n = 0; n < N; n++) {
                    real *part = part_BC + ((size_t)share * rows + first_row + s) * 2 * N + n;
                    part[0] = lanes_sum(sumB[s * N + n]), part[N] = lanes_sum(sumC[s * N + n]);
                }
        }
        for (int d = d_first, j = 0; d < d_end; d += LANES, j++) {
            real *part = part_A + (size_t)b * (N + 1) * d_inner + d;
            for (int n = 0; n < N; n++) lanes_store(part + (size_t)n * d_inner, dA[j * N + n] * A[j * N + n], d_inner - d);
            lanes_store(part + (size_t)N * d_inner, sumD[j], d_inner - d);
        }
    }
    PARALLEL_FOR
    for (int row = 0; row < rows; row++)
        for (int n = 0; n < N; n++) {
            const real *part = part_BC + (size_t)row * 2 * N + n;
            real sum_B = 0, sum_C = 0;
            for (int share = 0; share < shares; share++, part += (size_t)rows * 2 * N) sum_B += part[0], sum_C += part[N];
            dB[row * ldbc + n] = sum_B, dC[row * ldbc + n] = sum_C;
        }
    PARALLEL_FOR
    for (int d = 0; d < d_inner; d++)
        for (int b = 0; b < batch; b++) {
            const real *part = part_A + (size_t)b * (N + 1) * d_inner + d;
            for (int n = 0; n < N; n++) dA_log[(size_t)d * N + n] += part[(size_t)n * d_inner];
            dD[d] += part[(size_t)N * d_inner];
        }
}

/* The gate: y silu(z).     out, y: (rows, d_inner); z: the same with row stride ldz */
static void gate_forward(real *out, const real *y, const real *z, size_t ldz, int rows, int d_inner) {
    PARALLEL_FOR
    for (int row = 0; row < rows; row++)
        for (int d = 0; d < d_inner; d += LANES) {
            size_t at = (size_t)row * d_inner + d;
            lanes_store(out + at, lanes_load(y + at, d_inner - d) * lanes_silu(lanes_load(z + row * ldz + d, d_inner - d)), d_inner - d);
        }
}

/* dy = dout silu(z) in place of dout,     dz = dout y silu'(z), row stride of z */
static void gate_backward(real *dout, real *dz, const real *y, const real *z, size_t ldz, int rows, int d_inner) {
    PARALLEL_FOR
    for (int row = 0; row < rows; row++)
        for (int d = 0; d < d_inner; d += LANES) {
            size_t at = (size_t)row * d_inner + d;
            lanes g = lanes_load(dout + at, d_inner - d), v = lanes_load(z + row * ldz + d, d_inner - d);
            lanes_store(dz + row * ldz + d, g * lanes_load(y + at, d_inner - d) * lanes_silu_slope(v), d_inner - d);
            lanes_store(dout + at, g * lanes_silu(v), d_inner - d);
        }
}

/* 4. BLOCK AND MODEL ===========================================================================================

       x --+-- RMSNorm -- in_proj --+-- x -- conv, SiLU -- u --+--------------------- scan -- y -- * -- out_proj -- + --
           |                        |                          +-- x_proj --+-- B, C --'           |                |
           |                        |                                       +-- dt_proj -- delta --'                |
           |                        +-- z ------------------------------------------------- SiLU --'                |
           +--------------------------------------------------------------------------------------------------------+  */

/* What a block's forward leaves for its backward. x_proj's rows hold dt (dt_rank), B (d_state) and C (d_state), side by
   side; the layers read them where they are. Not kept, because cheap to compute again: the normed input, the
   convolution before SiLU, the gated output. */
typedef struct {
    real *input, *r, *xz, *u, *dbc, *delta, *y, *kept;
} BlockActs;

/* The activations of a model and, where it trains, the gradients of one layer's activations. Shapes are in acts_table. */
typedef struct {
    BlockActs *block;              /* n_layer when training, else 1, which all layers share */
    real *x, *normed, *gated, *r, *zero_state, *logits, *losses;
    real *dx, *dnormed, *dgated, *dxz, *du, *ddelta, *ddbc, *part_BC, *part_A, *work;
} Acts;

enum { HEAD_ROWS = 256 };          /* the head and the loss take so many rows at a time: logits are large */

static size_t state_stride(const Config *c) { return (size_t)(c->d_conv - 1 + c->d_state) * c->d_inner; }
static int dbc_width(const Config *c) { return c->dt_rank + 2 * c->d_state; }

static void acts_table(Table *table, const Config *c, Acts *a, int batch, int len, int train) {
    int rows = batch * len, D = c->d_model, E = c->d_inner, N = c->d_state;
    for (int l = 0; l < (train ? c->n_layer : 1); l++) {
        BlockActs *block = &a->block[l];
        if (train) table_add(table, &block->input, "input", rows, D, 0);
        table_add(table, &block->r, "r", rows, 0, 0);
        table_add(table, &block->xz, "xz", rows, 2 * E, 0);
        table_add(table, &block->u, "u", rows, E, 0);
        table_add(table, &block->dbc, "dbc", rows, dbc_width(c), 0);
        table_add(table, &block->delta, "delta", rows, E, 0);
        table_add(table, &block->y, "y", rows, E, 0);
        if (train) table_add(table, &block->kept, "kept", batch * scan_chunks(len), N, E);
        else block->kept = NULL; /* not where a training layout had it */
    }
    table_add(table, &a->x, "x", rows, D, 0);
    table_add(table, &a->normed, "normed", rows, D, 0);
    table_add(table, &a->gated, "gated", rows, E, 0);
    table_add(table, &a->r, "r", rows, 0, 0);
    table_add(table, &a->zero_state, "zero_state", c->d_conv - 1 + N, E, 0);
    table_add(table, &a->logits, "logits", HEAD_ROWS, c->vocab_size, 0);
    table_add(table, &a->losses, "losses", HEAD_ROWS, 0, 0);
    if (!train) return;
    table_add(table, &a->dx, "dx", rows, D, 0);
    table_add(table, &a->dnormed, "dnormed", rows, D, 0);
    table_add(table, &a->dgated, "dgated", rows, E, 0);
    table_add(table, &a->dxz, "dxz", rows, 2 * E, 0);
    table_add(table, &a->du, "du", rows, E, 0);
    table_add(table, &a->ddelta, "ddelta", rows, E, 0);
    table_add(table, &a->ddbc, "ddbc", rows, dbc_width(c), 0);
    table_add(table, &a->part_BC, "part_BC", scan_shares(E), rows, 2 * N);
    table_add(table, &a->part_A, "part_A", batch, N + 1, E);
    table_add(table, &a->work, "work", batch, scan_shares(E), (int)scan_work(N));
}

/* out = x + mixer(RMSNorm(x)).     x, out: (batch, len, d_model), may be the same; state: see conv_forward */
static void block_forward(real *out, const real *x, const BlockParams *p, BlockActs *k, Acts *a, const Config *c, const real *from,
                          real *to, size_t ldstate, int batch, int len) {
    int rows = batch * len, E = c->d_inner, R = c->dt_rank, N = c->d_state, W = dbc_width(c);
    size_t conv = (size_t)(c->d_conv - 1) * E; /* where h begins in a state */
    rmsnorm_forward(a->normed, k->r, x, p->norm, rows, c->d_model, c->norm_eps);
    linear_forward(k->xz, a->normed, c->d_model, p->in_proj, p->in_bias, rows, c->d_model, 2 * E);
    conv_forward(k->u, k->xz, 2 * E, p->conv, p->conv_bias, from, to, ldstate, batch, len, E, c->d_conv);
    linear_forward(k->dbc, k->u, E, p->x_proj, NULL, rows, E, W);
    linear_forward(k->delta, k->dbc, W, p->dt_proj, NULL, rows, R, E);
    delta_forward(k->delta, p->dt_bias, rows, E);
    scan_forward(k->y, k->kept, k->u, k->delta, k->dbc + R, k->dbc + R + N, W, p->A_log, p->D, from + conv,
                 to != NULL ? to + conv : NULL, ldstate, batch, len, E, N);
    gate_forward(a->gated, k->y, k->xz + E, 2 * E, rows, E);
    linear_forward(a->normed, a->gated, E, p->out_proj, p->out_bias, rows, E, c->d_model);
    add_forward(out, x, a->normed, (size_t)rows * c->d_model);
}

/* The steps of block_forward in reverse. a->dx comes in as the gradient of out and leaves as that of x. */
static void block_backward(const BlockParams *g, const BlockParams *p, const BlockActs *k, Acts *a, const Config *c, int batch, int len) {
    int rows = batch * len, E = c->d_inner, R = c->dt_rank, N = c->d_state, W = dbc_width(c);
    gate_forward(a->gated, k->y, k->xz + E, 2 * E, rows, E);
    linear_backward(a->dgated, g->out_proj, g->out_bias, a->dx, a->gated, E, p->out_proj, rows, E, c->d_model, 0);
    gate_backward(a->dgated, a->dxz + E, k->y, k->xz + E, 2 * E, rows, E);
    scan_backward(a->du, a->ddelta, a->ddbc + R, a->ddbc + R + N, g->A_log, g->D, a->part_BC, a->part_A, a->work, a->dgated, k->kept, k->u,
                  k->delta, k->dbc + R, k->dbc + R + N, W, p->A_log, p->D, batch, len, E, N);
    delta_backward(a->ddelta, g->dt_bias, k->delta, rows, E);
    linear_backward(a->ddbc, g->dt_proj, NULL, a->ddelta, k->dbc, W, p->dt_proj, rows, R, E, 0);
    linear_backward(a->du, g->x_proj, NULL, a->ddbc, k->u, E, p->x_proj, rows, E, W, 1);
    conv_backward(a->dxz, g->conv, g->conv_bias, a->du, k->xz, 2 * E, p->conv, p->conv_bias, a->zero_state, 0, batch, len, E, c->d_conv);
    rmsnorm_forward(a->normed, k->r, k->input, p->norm, rows, c->d_model, c->norm_eps);
    linear_backward(a->dnormed, g->in_proj, g->in_bias, a->dxz, a->normed, c->d_model, p->in_proj, rows, c->d_model, 2 * E, 0);
    rmsnorm_backward(a->dx, g->norm, a->dnormed, k->input, k->r, p->norm, rows, c->d_model);
}

/* a->normed = what the head reads, from tokens (batch, len). state: (n_layer, batch, state_stride), updated; NULL: the
   sequences start here and, where train, block inputs and states are kept for model_backward. */
static void model_forward(Acts *a, const Params *p, const Config *c, const int *tokens, real *state, int batch, int len, int train) {
    int rows = batch * len;
    size_t stride = state_stride(c);
    embedding_forward(train ? a->block[0].input : a->x, p->embedding, tokens, rows, c->d_model);
    for (int l = 0; l < c->n_layer; l++) {
        real *layer_state = state != NULL ? state + (size_t)l * batch * stride : NULL;
        real *x = train ? a->block[l].input : a->x, *out = train && l + 1 < c->n_layer ? a->block[l + 1].input : a->x;
        block_forward(out, x, &p->block[l], &a->block[train ? l : 0], a, c, state != NULL ? layer_state : a->zero_state, layer_state,
                      state != NULL ? stride : 0, batch, len);
    }
    rmsnorm_forward(a->normed, a->r, a->x, p->norm_f, rows, c->d_model, c->norm_eps);
}

/* From a->dnormed, the gradient of what the head read, to the gradients g of all parameters before it. */
static void model_backward(const Params *g, Acts *a, const Params *p, const Config *c, const int *tokens, int batch, int len) {
    int rows = batch * len;
    memset(a->dx, 0, (size_t)rows * c->d_model * sizeof *a->dx);
    rmsnorm_backward(a->dx, g->norm_f, a->dnormed, a->x, a->r, p->norm_f, rows, c->d_model);
    for (int l = c->n_layer - 1; l >= 0; l--) block_backward(&g->block[l], &p->block[l], &a->block[l], a, c, batch, len);
    embedding_backward(g->embedding, a->dx, tokens, rows, c->d_model);
}

/* 5. LOSS AND OPTIMISER ======================================================================================== */

/* Cross entropy of a row: loss = log(sum_j exp(logit_j)) - logit_target, in nats. Where dscale is not 0 the logits
   become their gradient, dscale (softmax(logits) - one_hot(target)). A negative target has loss and gradient 0. */
static real cross_entropy(real *logits, int target, int vocab_size, double dscale, int *correct) {
    real top = logits[0], total, loss;
    for (int j = 1; j < vocab_size; j++) top = logits[j] > top ? logits[j] : top;
    *correct = target >= 0 && logits[target] == top;
    if (target < 0) {
        if (dscale != 0) memset(logits, 0, vocab_size * sizeof *logits);
        return 0;
    }
    loss = top - logits[target];
    for (int j = 0; j < vocab_size; j += LANES)
        lanes_store(logits + j, lanes_exp(lanes_load(logits + j, vocab_size - j) - top), vocab_size - j);
    total = sum_of(logits, vocab_size);
    if (dscale != 0) {
        for (int j = 0; j < vocab_size; j++) logits[j] *= (real)dscale / total;
        logits[target] -= (real)dscale;
    }
    return loss + (real)log(total);
}

/* Mean cross entropy of the head's logits over the targets >= 0. Where scale is not 0, a->dnormed and g->head receive
   the gradient of scale times that. n_correct: how many targets have the largest logit, or NULL. */
static double head_loss(Acts *a, const Params *g, const Params *p, const Config *c, const int *targets, int rows, double scale, long *n_correct) {
    int n = 0, V = c->vocab_size, D = c->d_model;
    double loss = 0;
    if (n_correct != NULL) *n_correct = 0;
    for (int r = 0; r < rows; r++) n += targets[r] >= 0;
    for (int first = 0; first < rows; first += HEAD_ROWS) {
        int part = min_int(HEAD_ROWS, rows - first), correct[HEAD_ROWS];
        real *normed = a->normed + (size_t)first * D;
        linear_forward(a->logits, normed, D, p->head, NULL, part, D, V);
        PARALLEL_FOR
        for (int r = 0; r < part; r++)
            a->losses[r] = cross_entropy(a->logits + (size_t)r * V, targets[first + r], V, n > 0 ? scale / n : 0, &correct[r]);
        for (int r = 0; r < part; r++) {
            loss += a->losses[r];
            if (n_correct != NULL) *n_correct += correct[r];
        }
        if (scale != 0)
            linear_backward(a->dnormed + (size_t)first * D, g->head, NULL, a->logits, normed, D, p->head, part, D, V, 0);
    }
    return n > 0 ? loss / n : 0;
}

/* AdamW (decoupled weight decay), with gradients clipped to a norm first. */
typedef struct {
    double beta1, beta2, eps, weight_decay, clip; /* clip: largest norm of the whole gradient; 0: any */
} AdamW;

/* Linear warm-up over the first steps, then half a cosine from peak to floor at the last.     step: from 1 to total */
static double learning_rate(long step, long warmup, long total, double peak, double floor) {
    double way;
    if (step <= warmup) return peak * (double)step / (double)warmup;
    way = total > warmup ? (double)(step - warmup) / (double)(total - warmup) : 1;
    return floor + (peak - floor) * 0.5 * (1 + cos(3.14159265358979323846 * (way < 1 ? way : 1)));
}

/* The norm of a flat array, summed in double, in pieces whose bounds do not depend on the threads. */
static double norm_of(const real *v, size_t n) {
    enum { PIECES = 64 };
    double piece[PIECES], sum = 0;
    PARALLEL_FOR
    for (int i = 0; i < PIECES; i++) {
        double lane[LANES] = {0};
        for (size_t j = n / LANES * i / PIECES * LANES; j < n / LANES * (i + 1) / PIECES * LANES; j += LANES)
            for (int c = 0; c < LANES; c++) lane[c] += (double)v[j + c] * v[j + c];
        piece[i] = 0;
        for (int c = 0; c < LANES; c++) piece[i] += lane[c];
    }
    for (int i = 0; i < PIECES; i++) sum += piece[i];
    return sqrt(sum); /* a flat array's length is a multiple of 16, so there is no rest */
}

/* One step of AdamW over all parameters: with the gradient g, clipped,
   m = beta1 m + (1 - beta1) g,     v = beta2 v + (1 - beta2) g^2,     w -= lr (mhat / (sqrt(vhat) + eps) + weight_decay w),
   mhat and vhat being m and v over 1 - beta^step. Clears the gradients and returns their norm before clipping. */
static double adamw_step(const Tensor *tensor, int n_tensor, real *weights, real *grads, real *moment1, real *moment2, size_t n_param,
                         const AdamW *o, double lr, long step) {
    double norm = norm_of(grads, n_param);
    real clip = (real)(o->clip > 0 && norm > o->clip ? o->clip / norm : 1), rate = (real)lr, eps = (real)o->eps;
    real beta1 = (real)o->beta1, beta2 = (real)o->beta2;
    real unbias1 = (real)(1 / (1 - pow(o->beta1, (double)step))), unbias2 = (real)(1 / (1 - pow(o->beta2, (double)step)));
    for (int i = 0; i < n_tensor; i++) {
        real decay = (real)(tensor[i].decay ? o->weight_decay : 0);
        real *w = weights + tensor[i].offset, *g = grads + tensor[i].offset;
        real *m = moment1 + tensor[i].offset, *v = moment2 + tensor[i].offset;
        long size = (long)tensor[i].size;
        PARALLEL_FOR
        for (long j = 0; j < size; j++) {
            real gj = g[j] * clip;
            m[j] = beta1 * m[j] + (1 - beta1) * gj;
            v[j] = beta2 * v[j] + (1 - beta2) * gj * gj;
            w[j] -= rate * (m[j] * unbias1 / ((real)sqrt(v[j] * unbias2) + eps) + decay * w[j]);
            g[j] = 0;
        }
    }
    return norm;
}

/* 6. GENERATION ================================================================================================ */

/* How the next token is drawn from its logits. In this order:
   1. Left out are ids from n_vocab on (rows that only pad the vocabulary), the id `banned`, and logits that are NaN.
   2. repetition_penalty r: each id among the last penalty_window ones has its logit divided by r if positive, otherwise
      multiplied by r, once however often it occurred.
   3. temperature 0: the largest logit wins and the rest does not apply. Otherwise p = softmax(logit / temperature).
   4. top_k: the k most probable are kept (0: all).
   5. top_p: of those, the fewest, most probable first, whose share of the probability left after 4 reaches top_p.
   6. min_p: of those, the ones at least min_p times as probable as the most probable one.
   7. One is drawn in proportion to p, with one random number.
   Of equal logits the lower id comes first. The logits are not changed. */
typedef struct { double weight; real logit; int id; } Candidate;

typedef struct {
    double temperature, top_p, min_p, repetition_penalty;
    int top_k, n_vocab, banned;    /* banned: an id that is never sampled, or -1 */
    int penalty_window;
    int *history;                  /* (penalty_window) ring of the last ids; the next goes to n_history % penalty_window */
    int n_history;                 /* counts up to 2 * penalty_window, then on from penalty_window: no overflow */
    uint64_t rng;
    Candidate *candidate;          /* (vocab_size) scratch */
} Sampler;

/* Settings that change nothing (temperature 1, no filter); the caller then sets its own. */
static int sampler_create(Sampler *s, int vocab_size, int penalty_window, uint64_t seed) {
    memset(s, 0, sizeof *s);
    s->temperature = s->top_p = s->repetition_penalty = 1;
    s->n_vocab = vocab_size, s->banned = -1;
    s->penalty_window = penalty_window, s->rng = seed;
    s->history = (int *)allocate((size_t)penalty_window, sizeof(int));
    s->candidate = (Candidate *)allocate((size_t)vocab_size, sizeof(Candidate));
    return s->history == NULL || s->candidate == NULL ? -1 : 0;
}

static void sampler_free(Sampler *s) {
    release(s->history);
    release(s->candidate);
    memset(s, 0, sizeof *s);
}

/* Notes an id for the repetition penalty. sample() does it for what it returns, the caller for a prompt. */
static void sampler_accept(Sampler *s, int id) {
    if (s->penalty_window == 0) return;
    s->history[s->n_history % s->penalty_window] = id;
    if (++s->n_history == 2 * s->penalty_window) s->n_history = s->penalty_window;
}

static int ranks_before(const Candidate *a, const Candidate *b) {
    return a->logit > b->logit || (a->logit == b->logit && a->id < b->id);
}

/* In a heap each candidate ranks before its children 2i + 1 and 2i + 2; this lets heap[i] sink to its place. */
static void heap_sink(Candidate *heap, int n, int i) {
    Candidate sinking = heap[i];
    for (int child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && ranks_before(&heap[child + 1], &heap[child])) child++;
        if (!ranks_before(&heap[child], &sinking)) break;
        heap[i] = heap[child];
    }
    heap[i] = sinking;
}

static void heap_build(Candidate *heap, int n) {
    for (int i = n / 2 - 1; i >= 0; i--) heap_sink(heap, n, i);
}

/* Moves the first in rank behind the others: taking k of n costs O(n + k log n), no full sort. Returns its weight. */
static double heap_take(Candidate *heap, int n) {
    Candidate first = heap[0];
    heap[0] = heap[n - 1];
    heap[n - 1] = first;
    heap_sink(heap, n - 1, 0);
    return first.weight;
}

/* Fills s->candidate in the order of ids, after steps 1 and 2; returns how many there are. */
static int sampler_candidates(Sampler *s, const real *logits) {
    Candidate *c = s->candidate;
    int n_held = s->n_history < s->penalty_window ? s->n_history : s->penalty_window, n = 0;
    for (int id = 0; id < s->n_vocab; id++) c[id].logit = logits[id];
    for (int i = 0; i < n_held; i++) {
        int id = s->history[i];
        if (id < 0 || id >= s->n_vocab) continue;
        c[id].logit = (real)(logits[id] > 0 ? logits[id] / s->repetition_penalty : logits[id] * s->repetition_penalty);
    }
    for (int id = 0; id < s->n_vocab; id++) {
        if (id == s->banned || isnan(c[id].logit)) continue;
        c[n].logit = c[id].logit, c[n].id = id;
        n++;
    }
    return n;
}

/* The next id, also noted in the history. If no logit is a number, 0. */
static int sample(Sampler *s, const real *logits) {
    Candidate *c = s->candidate;
    int n = sampler_candidates(s, logits), best = 0, kept;
    double total = 0, sum = 0, u;
    real largest;
    for (int i = 1; i < n; i++) {
        if (c[i].logit > c[best].logit) best = i;
    }
    if (n == 0 || s->temperature == 0) {
        int id = n == 0 ? 0 : c[best].id;
        sampler_accept(s, id);
        return id;
    }
    largest = c[best].logit;
    if (s->top_k > 0 && s->top_k < n) {
        heap_build(c, n);
        for (kept = 0; kept < s->top_k; kept++) heap_take(c, n - kept);
        c += n - kept, n = kept;
    }
    for (int i = 0; i < n; i++) { /* weight = p / (largest p); the test keeps infinity - infinity out */
        c[i].weight = c[i].logit == largest ? 1 : exp(((double)c[i].logit - largest) / s->temperature);
        total += c[i].weight;
    }
    if (s->top_p < 1) {
        heap_build(c, n);
        for (kept = 0; kept < n && (kept == 0 || sum < s->top_p * total); kept++) sum += heap_take(c, n - kept);
        c += n - kept, n = kept;
    }
    total = 0, kept = 0;
    for (int i = 0; i < n; i++) {
        if (c[i].weight == 0 || c[i].weight < s->min_p) continue;
        total += c[i].weight;
        c[kept++] = c[i];
    }
    u = random_uniform(&s->rng) * total;
    for (n = 0; n < kept - 1 && (u -= c[n].weight) >= 0; n++) { }
    sampler_accept(s, c[n].id);
    return c[n].id;
}

typedef enum { WEIGHTS, MOMENT1, MOMENT2, STATE } Which;

/* A model on a device, with what it takes to run it and, if asked for, to train it: the one interface that train.c and
   run.c use, so that they need not know where the model is. Every function returns 0, or -1 after fail(). */
typedef struct {
    const char *device;            /* "cpu" or "cuda" */
    char description[128];
    Config config;
    void *self;

    /* Adds the gradient of scale times the mean cross entropy over the targets >= 0. States start at zero.
       tokens, targets: (batch, len) */
    int (*gradient)(void *self, const int *tokens, const int *targets, int batch, int len, double scale);

    /* One step of AdamW, counted from 1; clears the gradients. loss: the sum of scale times loss over the calls of gradient
       since the last step; norm: of the gradient before clipping. Either may be NULL, so that a GPU need not wait. */
    int (*update)(void *self, const AdamW *adamw, double lr, long step, double *loss, double *norm);

    /* Feeds the streams as forward does, and gives the mean cross entropy over the targets >= 0 and how many of them have the
       largest logit (or NULL). tokens, targets: (streams, len) */
    int (*evaluate)(void *self, const int *tokens, const int *targets, int len, double *loss, long *n_correct);

    /* Zero states for `batch` streams. */
    int (*reset)(void *self, int batch);

    /* Feeds every stream len >= 1 more tokens and holds the logits of its last position for generate. tokens: (streams, len);
       logits: NULL, or (streams, vocab_size) of the last positions, or with all != 0 (streams, len, vocab_size) */
    int (*forward)(void *self, const int *tokens, int len, real *logits, int all);

    /* n times: samples every stream's next token from the held logits and feeds it. out: (streams, n); sampler: (streams) */
    int (*generate)(void *self, int *out, int n, Sampler *sampler);

    /* Copies a flat array from the device to the host (to_device 0) or back. WEIGHTS, MOMENT1, MOMENT2 lie as the parameter
       table says; STATE is state_size() reals: (n_layer, streams, d_conv - 1 + d_state, d_inner), then the held logits. */
    int (*copy)(void *self, Which which, real *host, int to_device);

    void (*close)(void *self);
} Backend;

#ifdef MAMBA_CUDA
#ifdef __cplusplus
extern "C"
#endif
int cuda_backend(Backend *backend, const Model *m, const char *dtype, int train, int lean); /* in mamba.cu */
#endif

/* Reals in the state of `streams` streams: the same at every position, which is the point of a recurrent model. */
static size_t state_size(const Config *c, int streams) {
    return ((size_t)c->n_layer * state_stride(c) + (size_t)c->vocab_size) * streams;
}

/* The backend on the CPU. It works on the weights of the model that it was given, which must outlive it. */
typedef struct {
    Model model;
    real *grads, *moment1, *moment2; /* NULL where it does not train */
    Params g;
    Acts acts;
    real *acts_memory;
    size_t acts_size;              /* reals there */
    int batch, len, train;         /* what the activations are laid out for */
    real *state, *held;            /* of the streams: as STATE says; the held logits are its end */
    int streams, *next, *piece;    /* next: (streams) sampled tokens; piece: tokens and targets of a piece */
    double loss;
} Cpu;

enum { PIECE_ROWS = 512 };         /* a prompt is fed in pieces of about so many rows, which bounds the activations */

/* Lays out the activations for a batch, in more memory if they need more. */
static int cpu_layout(Cpu *cpu, int batch, int len, int train) {
    const Config *c = &cpu->model.config;
    Table table = {NULL, 0, 0, NULL};
    if (batch == cpu->batch && len == cpu->len && train == cpu->train) return 0;
    if ((double)batch * len * (2.0 * c->d_inner + dbc_width(c)) > INT_MAX / 2.0)
        return fail("batch %d x len %d is too large: use a smaller one", batch, len);
    acts_table(&table, c, &cpu->acts, batch, len, train);
    if (table.size > cpu->acts_size) {
        release(cpu->acts_memory);
        cpu->batch = 0, cpu->acts_size = 0;
        cpu->acts_memory = (real *)allocate(table.size, sizeof(real));
        if (cpu->acts_memory == NULL)
            return fail("out of memory: batch %d x len %d needs %.0f MiB of activations; try a smaller batch", batch, len,
                        table.size * sizeof(real) / 1048576.0);
        cpu->acts_size = table.size;
    }
    memset(&table, 0, sizeof table);
    table.base = cpu->acts_memory;
    acts_table(&table, c, &cpu->acts, batch, len, train);
    memset(cpu->acts.zero_state, 0, state_stride(c) * sizeof(real));
    cpu->batch = batch, cpu->len = len, cpu->train = train;
    return 0;
}

static int cpu_gradient(void *self, const int *tokens, const int *targets, int batch, int len, double scale) {
    Cpu *cpu = (Cpu *)self;
    const Config *c = &cpu->model.config;
    assert(cpu->grads != NULL);
    if (cpu_layout(cpu, batch, len, 1) != 0) return -1;
    model_forward(&cpu->acts, &cpu->model.params, c, tokens, NULL, batch, len, 1);
    cpu->loss += scale * head_loss(&cpu->acts, &cpu->g, &cpu->model.params, c, targets, batch * len, scale, NULL);
    model_backward(&cpu->g, &cpu->acts, &cpu->model.params, c, tokens, batch, len);
    return 0;
}

static int cpu_update(void *self, const AdamW *adamw, double lr, long step, double *loss, double *norm) {
    Cpu *cpu = (Cpu *)self;
    Model *m = &cpu->model;
    double before = adamw_step(m->tensor, m->n_tensor, m->weights, cpu->grads, cpu->moment1, cpu->moment2, m->n_param, adamw, lr, step);
    if (loss != NULL) *loss = cpu->loss;
    if (norm != NULL) *norm = before;
    cpu->loss = 0;
    return 0;
}

static int cpu_reset(void *self, int streams) {
    Cpu *cpu = (Cpu *)self;
    const Config *c = &cpu->model.config;
    if (streams != cpu->streams) {
        release(cpu->state);
        release(cpu->next);
        cpu->streams = 0;
        cpu->state = (real *)allocate(state_size(c, streams), sizeof(real));
        cpu->next = (int *)allocate((size_t)streams * 3 + 2 * PIECE_ROWS, sizeof(int));
        if (cpu->state == NULL || cpu->next == NULL) return -1;
        cpu->piece = cpu->next + streams;
        cpu->streams = streams;
        cpu->held = cpu->state + (size_t)c->n_layer * streams * state_stride(c);
    }
    memset(cpu->state, 0, state_size(c, streams) * sizeof(real));
    return 0;
}

/* Feeds tokens (streams, len) piece by piece. loss: NULL, or targets are compared; logits: NULL, or the last or all. */
static int cpu_feed(Cpu *cpu, const int *tokens, const int *targets, int len, real *logits, int all, double *loss, long *n_correct) {
    const Config *c = &cpu->model.config;
    const Params *p = &cpu->model.params;
    Acts *a = &cpu->acts;
    int streams = cpu->streams, D = c->d_model, V = c->vocab_size, step = PIECE_ROWS / streams > 1 ? PIECE_ROWS / streams : 1;
    double sum = 0;
    long n = 0, right = 0;
    for (int first = 0; first < len; first += step) {
        int part = min_int(step, len - first), *ids = cpu->piece, *wanted = ids + streams * part;
        if (cpu_layout(cpu, streams, part, 0) != 0) return -1;
        for (int b = 0; b < streams; b++) {
            memcpy(ids + b * part, tokens + (size_t)b * len + first, part * sizeof *ids);
            if (loss != NULL) memcpy(wanted + b * part, targets + (size_t)b * len + first, part * sizeof *ids);
        }
        model_forward(a, p, c, ids, cpu->state, streams, part, 0);
        if (loss != NULL) {
            long n_part = 0, right_part;
            for (int r = 0; r < streams * part; r++) n_part += wanted[r] >= 0;
            sum += n_part * head_loss(a, NULL, p, c, wanted, streams * part, 0, &right_part);
            n += n_part, right += right_part;
        }
        for (int b = 0; logits != NULL && all && b < streams; b++)
            linear_forward(logits + ((size_t)b * len + first) * V, a->normed + (size_t)b * part * D, D, p->head, NULL, part, D, V);
        if (first + part == len) /* the last positions are part rows apart */
            linear_forward(cpu->held, a->normed + (size_t)(part - 1) * D, (size_t)part * D, p->head, NULL, streams, D, V);
    }
    if (logits != NULL && !all) memcpy(logits, cpu->held, (size_t)streams * V * sizeof *logits);
    if (loss != NULL) *loss = n > 0 ? sum / n : 0;
    if (n_correct != NULL) *n_correct = right;
    return 0;
}

static int cpu_forward(void *self, const int *tokens, int len, real *logits, int all) {
    return cpu_feed((Cpu *)self, tokens, NULL, len, logits, all, NULL, NULL);
}

static int cpu_evaluate(void *self, const int *tokens, const int *targets, int len, double *loss, long *n_correct) {
    return cpu_feed((Cpu *)self, tokens, targets, len, NULL, 0, loss, n_correct);
}

static int cpu_generate(void *self, int *out, int n, Sampler *sampler) {
    Cpu *cpu = (Cpu *)self;
    for (int i = 0; i < n; i++) {
        int *next = cpu->next;
        for (int b = 0; b < cpu->streams; b++)
            next[b] = out[(size_t)b * n + i] = sample(&sampler[b], cpu->held + (size_t)b * cpu->model.config.vocab_size);
        if (cpu_feed(cpu, next, NULL, 1, NULL, 0, NULL, NULL) != 0) return -1;
    }
    return 0;
}

static int cpu_copy(void *self, Which which, real *host, int to_device) {
    Cpu *cpu = (Cpu *)self;
    real *array[] = {cpu->model.weights, cpu->moment1, cpu->moment2, cpu->state};
    size_t n = which == STATE ? state_size(&cpu->model.config, cpu->streams) : cpu->model.n_param;
    assert(array[which] != NULL);
    if (to_device) memcpy(array[which], host, n * sizeof(real));
    else memcpy(host, array[which], n * sizeof(real));
    return 0;
}

static void cpu_close(void *self) {
    Cpu *cpu = (Cpu *)self;
    release(cpu->grads);
    release(cpu->moment1);
    release(cpu->moment2);
    release(cpu->g.block);
    release(cpu->acts.block);
    release(cpu->acts_memory);
    release(cpu->state);
    release(cpu->next);
    release(cpu);
}

/* Opens the backend; threads: 0 for as many as the machine has; train: with gradients and moments. */
static int cpu_backend(Backend *backend, const Model *m, int threads, int train) {
    Cpu *cpu = (Cpu *)allocate(1, sizeof *cpu);
    const Config *c = &m->config;
    Table table = {NULL, 0, 0, NULL};
    int failed;
    if (cpu == NULL) return -1;
    cpu->model = *m;
    cpu->acts.block = (BlockActs *)allocate((size_t)c->n_layer, sizeof *cpu->acts.block);
    failed = cpu->acts.block == NULL;
    if (train && !failed) {
        cpu->grads = (real *)allocate(m->n_param, sizeof(real));
        cpu->moment1 = (real *)allocate(m->n_param, sizeof(real));
        cpu->moment2 = (real *)allocate(m->n_param, sizeof(real));
        cpu->g.block = (BlockParams *)allocate((size_t)c->n_layer, sizeof *cpu->g.block);
        failed = cpu->grads == NULL || cpu->moment1 == NULL || cpu->moment2 == NULL || cpu->g.block == NULL;
        table.base = cpu->grads;
        if (!failed) params_table(&table, c, &cpu->g);
    }
    if (failed || cpu_reset(cpu, 1) != 0) {
        cpu_close(cpu);
        return -1;
    }
#ifdef _OPENMP
    if (threads > 0) omp_set_num_threads(threads);
    threads = omp_get_max_threads();
#else
    threads = 1;
#endif
    memset(backend, 0, sizeof *backend);
    backend->device = "cpu";
    snprintf(backend->description, sizeof backend->description, "cpu, %d thread%s", threads, threads == 1 ? "" : "s");
    backend->config = *c, backend->self = cpu;
    backend->gradient = cpu_gradient, backend->update = cpu_update, backend->evaluate = cpu_evaluate, backend->reset = cpu_reset;
    backend->forward = cpu_forward, backend->generate = cpu_generate, backend->copy = cpu_copy, backend->close = cpu_close;
    return 0;
}
