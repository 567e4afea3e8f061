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
   message and exits. Nothing in this file prints or exits. */
static char error_message[1024];

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

/* The ranges of a config that `file` gave. They are far above any published model, and small enough that an int holds
   a product of two extents other than d_model, vocab_size and n_layer; those go through size_t. */
static int config_check(const Config *c, const char *file) {
    const struct {
        const char *name;
        int value, low, high;
    } field[] = {
        {"vocab_size", c->vocab_size, 1, 1 << 20},           {"hidden_size", c->d_model, 1, 1 << 14},
        {"num_hidden_layers", c->n_layer, 1, 1 << 10},       {"state_size", c->d_state, 1, 256},
        {"conv_kernel", c->d_conv, 1, 8},                    {"expand", c->expand, 1, 8},
        {"time_step_rank", c->dt_rank, 1, 1 << 12},          {"use_bias", c->proj_bias, 0, 1},
        {"use_conv_bias", c->conv_bias, 0, 1},               {"tie_word_embeddings", c->tied, 0, 1},
        {"bos_token_id", c->bos_id, -1, c->vocab_size - 1},  {"eos_token_id", c->eos_id, -1, c->vocab_size - 1},
        {"pad_token_id", c->pad_id, -1, c->vocab_size - 1},
    };
    double size;
    for (size_t i = 0; i < sizeof field / sizeof *field; i++) {
        if (field[i].value < field[i].low || field[i].value > field[i].high)
            return fail("%s: %s is %d, expected %d to %d", file, field[i].name, field[i].value, field[i].low,
                        field[i].high);
    }
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
