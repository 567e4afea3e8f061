/* mamba.c: the Mamba language model in plain C, to be read from top to bottom.

   A program says #include "mamba.c" and gets all of it as static functions; train.c and run.c do so, and so do the
   tests and the tutorial. The same model on a GPU is in mamba.cu, under the same section numbers.

   SPDX-License-Identifier: MIT

   1. CONTENTS, NOTATION, DEPARTURES FROM THE PAPER ==========================================================

      1. Contents, notation, departures      4. Block and model           7. Tokenizer
      2. Config and memory                   5. Loss and optimiser        8. Files
      3. Layers, forward and backward        6. Generation                9. Tasks, 10. Unicode

   The paper is A. Gu and T. Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
   arXiv:2312.00752v2.

   A token becomes a vector, its row of the embedding. The vectors of a sequence pass through n_layer blocks, each of
   which adds something to them; after a last RMSNorm the product with a row of the head (mostly the embedding itself)
   is a logit of the next token. All that is specific to Mamba is in the block. For one sequence, v = RMSNorm(input):

      x, z = in_proj v                                               two branches, d_inner channels each
      u_t = silu(conv_bias + sum_k conv_k x_{t - (d_conv-1) + k})    a short causal convolution in each channel
      dt_t, B_t, C_t = x_proj u_t                                    selection: the scan depends on the token
      delta_t = softplus(dt_proj dt_t + dt_bias)                     ... which sets how far the scan steps
      h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t                 the scan: d_state numbers of memory per channel
      y_t = sum_n C_t h_t + D u_t                                    ... read, n being the index in d_state
      output = input + out_proj (y silu(z))                          the gate, and the way back to d_model

      letter   shape                  meaning                                                 in the paper  made by
      x        (batch, len, d_inner)  input of the convolution                                Figure 3      in_proj
      z        (batch, len, d_inner)  the gate                                                Figure 3      in_proj
      u        (batch, len, d_inner)  input of the scan                                       x in Eq. 2    conv
      dt       (batch, len, dt_rank)  the step size in short, before dt_proj widens it        Section 3.6   x_proj
      B, C     (batch, len, d_state)  how a token is written to h, and how h is read          Algorithm 2   x_proj
      delta    (batch, len, d_inner)  step size: large, the token replaces h; small, h stays  Algorithm 2   delta
      A        (d_inner, d_state)     decay rates, -exp(A_log); diagonal, a row per channel   Algorithm 2
      h        (d_inner, d_state)     the state of one sequence at one time; transposed in    Eq. 2a        scan
                                      memory, so that channels are contiguous
      D        (d_inner)              weight of the direct path from u to y                   not in Eq. 2
      y        (batch, len, d_inner)  output of the scan, before the gate                     Eq. 2b        scan
      batch, len                      sequences, and positions in each; rows = batch * len    B, L
      d_model, d_inner, d_state       widths; d_inner = expand * d_model                      D, ED, N
      d_conv, dt_rank                 taps of the convolution; the extent of dt               -, R
      n_layer, vocab_size             blocks; tokens
      b, t, d, n                      index of a sequence, a position, a channel, a state

   The last index of a shape is contiguous in memory. Letters that collide in the paper: D is a width there, here the
   parameter; B is a batch size there and a matrix, here the matrix; x is the input of the block, of the convolution and
   of the scan there, here that of the convolution. (Layers of general use, such as RMSNorm, also call their input x and
   their output y, and so does the residual stream.) A "d" in front of a tensor's name makes it the gradient of the loss
   by that tensor: ddelta is dL/ddelta. (dt is no gradient; checkpoints call it so.) The discretised A, exp(delta A), is
   "abar".

   Where the code differs from the paper, it follows the authors' released code, so that their checkpoints run:
   - B is discretised by Euler's rule, Bbar = delta B, not by zero-order hold (Eq. 4). For a = delta |A| the ratio of
     the two is a / (1 - exp(-a)): 1.05 at a = 0.1, 2.0 at a = 1.6.
   - delta starts log-uniform in [0.001, 0.1], not uniform.
   - A block is x + mixer(RMSNorm(x)): the norm comes first, and one more follows the last block.
   - A_log is stored, never A: A = -exp(A_log) is negative whatever the optimiser does, so exp(delta A) < 1 and the
     recurrence cannot blow up. */

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
#ifdef __AVX2__
#include <immintrin.h>
#endif

#ifdef __GNUC__
#pragma GCC diagnostic ignored "-Wunused-function" /* a program uses only part of what it includes */
#endif

/* The scalar. Tests define MAMBA_REAL as double, to check every gradient by central differences. */
#ifndef MAMBA_REAL
#define MAMBA_REAL float
#endif
typedef MAMBA_REAL real;

/* 2. CONFIG AND MEMORY =========================================================================================

   Errors, threads and memory in general; then Config, the shape of a model; then Table, which says what lies where in a
   flat array of numbers, and with it Model, the parameters; then their first values. */

/* The message of the last error. A function that can fail returns -1 (or NULL) after fail(...); a program prints the
   message and exits. Nothing in this file prints or exits. (With a GPU this file is part of two objects, the program's
   and that of mamba.cu, which defines the message for both.) */
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
    for (char *p = error_message, last = 0; *p != 0; last = *p++) { /* a file's names shall not steer a terminal: */
        unsigned char c = (unsigned char)*p;                         /* no U+0000 to 1F and 7F to 9F, these in UTF-8 */
        if (c < 32 || c == 127 || (c >= 128 && c < 160 && (unsigned char)last == 0xC2)) *p = '?';
    }
    return -1;
}

/* After fail(): puts the file before its message, if that does not begin with it, as for want of memory. */
static int fail_in(const char *file) {
    char message[sizeof error_message];
    size_t n = strlen(file);
    snprintf(message, sizeof message, "%s", error_message);
    return strncmp(message, file, n < 200 ? n : 200) == 0 ? -1 : fail("%.200s: %s", file, message);
}

/* In front of a loop: its iterations are divided among the threads; without OpenMP one thread does them all. Each
   iteration writes a part of the result of its own and sums in a fixed order, so the bits do not depend on the number
   of threads. */
#ifdef _OPENMP
#define PARALLEL_FOR _Pragma("omp parallel for schedule(static)")
#else
#define PARALLEL_FOR
#endif

/* count * size bytes, zeroed, aligned for vectors, on huge pages where the system has them (weights are read at the
   speed of memory, and small pages cost up to a third of it). NULL after fail() if there is no memory. */
static void *allocate(size_t count, size_t size) {
    size_t bytes = count * size, align = bytes < ((size_t)8 << 20) ? 128 : (size_t)2 << 20;
    char *raw = NULL, *aligned;
    if (size == 0 || count <= (SIZE_MAX - 2 * align) / size) raw = (char *)calloc(1, bytes + align + sizeof(void *));
    if (raw == NULL) {
        fail("out of memory: %zu elements of %zu bytes", count, size);
        return NULL;
    }
    aligned = raw + sizeof(void *);
    aligned += (align - (uintptr_t)aligned % align) % align;
    ((void **)aligned)[-1] = raw; /* for release */
#ifdef MADV_HUGEPAGE
    if (align > 128) madvise(aligned, bytes, MADV_HUGEPAGE);
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
    int constant_delta, constant_B, constant_C; /* 1: a parameter, the same at every position; Mamba has none */
} Config;

/* A field of config.json: where its value goes, what it is if the file lacks it, and its limits. The lower limit tells
   the type: 1 a size, 0 true or false, -1 a token's id (null is -1). */
typedef struct {
    const char *name;
    int *value, initial, low, high;
} Field;

enum { N_FIELD = 17, N_MAMBA_FIELD = 14 }; /* the rest is our own; the file of a Mamba has none of it */

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
        {"constant_delta", &c->constant_delta, 0, 0, 1}, {"constant_B", &c->constant_B, 0, 0, 1},
        {"constant_C", &c->constant_C, 0, 0, 1},
    };
    memcpy(field, fields, sizeof fields);
}

/* Extents of what x_proj makes for a position: dt, then dt, B and C together. A constant one is not made. */
static int dt_width(const Config *c) { return c->constant_delta ? 0 : c->dt_rank; }
static int dbc_width(const Config *c) {
    return dt_width(c) + (2 - c->constant_B - c->constant_C) * c->d_state;
}

static int has_constants(const Config *c) { return c->constant_delta || c->constant_B || c->constant_C; }

/* 0 if a model can have this config, or -1 after fail(), which names `file`. */
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

/* How a parameter starts; see tensor_init. */
typedef enum { INIT_ZERO, INIT_ONE, INIT_NORMAL, INIT_UNIFORM, INIT_A_LOG, INIT_DT_BIAS } Init;

/* Types of numbers in files and in memory. What is computed, and what is trained, is of type real. */
enum {
    TYPE_F64, TYPE_F32, TYPE_F16, TYPE_BF16, N_TYPE,
    TYPE_REAL = sizeof(real) == 8 ? TYPE_F64 : TYPE_F32,
    TYPE_STORED = N_TYPE           /* asks model_load_as for what the files have */
};
static const char *const type_name[] = {"F64", "F32", "F16", "BF16"};
static const size_t type_size[] = {8, 4, 2, 2};

/* One tensor. Parameters, gradients, the optimiser's moments, activations and states are each one flat array of reals
   and a table of these rows that says what lies where. */
typedef struct {
    char name[64];                 /* in a checkpoint */
    int n_dim, shape[3];
    size_t size;                   /* how many numbers */
    size_t offset;                 /* its place, in reals; a multiple of 16, so that vectors are aligned */
    int type, matrix;              /* of the numbers in memory; matrix 1: a field of type Matrix points to it */
    Init init;
    double scale;                  /* INIT_NORMAL: standard deviation; INIT_UNIFORM: in +-scale; else not used */
    int decay;                     /* 1: weight decay applies */
} Tensor;

typedef struct {
    Tensor *row;                   /* NULL: rows are counted, not kept */
    int n_row;
    size_t size;                   /* of the flat array */
    real *base;                    /* the flat array that fields are pointed into; NULL: fields are left alone */
} Table;

/* Adds a row of the given type and shape (a 0 ends it). */
static Tensor *table_row(Table *table, const char *name, int type, int dim0, int dim1, int dim2) {
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
    row->type = type, row->offset = table->size;
    table->n_row++;
    table->size += ((row->size * type_size[type] + sizeof(real) - 1) / sizeof(real) + 15) / 16 * 16;
    return row;
}

/* Adds a row of reals and points *field to its place in table->base. */
static Tensor *table_add(Table *table, real **field, const char *name, int dim0, int dim1, int dim2) {
    Tensor *row = table_row(table, name, TYPE_REAL, dim0, dim1, dim2);
    if (table->base != NULL) *field = table->base + row->offset;
    return row;
}

/* The matrix of a linear layer, or the embedding. Decoding reads all of them for each token, and takes as long as
   memory needs to hand them over. So a model that only runs may hold them in the 16 bits that its files have. */
typedef struct {
    int type;                      /* TYPE_REAL, TYPE_F16 or TYPE_BF16 */
    real *full;                    /* TYPE_REAL: the numbers, else NULL */
    uint16_t *half;                /* the others: the numbers, else NULL */
} Matrix;

/* The parameters of a block, and of a model. Gradients have the same type. Shapes: params_table; uses: section 4. */
typedef struct {
    real *norm, *in_bias, *conv, *conv_bias, *dt_bias, *A_log, *D, *out_bias;
    Matrix in_proj, x_proj, dt_proj, out_proj;
    real *B, *C;                   /* where they are constant */
} BlockParams;

typedef struct {
    real *norm_f;
    Matrix embedding, head;
    BlockParams *block;            /* (n_layer) */
} Params;

/* Adds a parameter's row, named prefix + name. */
static void param(Table *table, real **field, const char *prefix, const char *name, int dim0, int dim1, int dim2,
                  Init init, double scale, int decay) {
    char full[64];
    Tensor *row;
    snprintf(full, sizeof full, "%s%s", prefix, name);
    row = table_add(table, field, full, dim0, dim1, dim2);
    row->init = init, row->scale = scale, row->decay = decay;
}

/* The same for a matrix. */
static void matrix(Table *table, Matrix *field, const char *prefix, const char *name, int type, int out, int in,
                   Init init, double scale, int decay) {
    char full[64];
    Tensor *row;
    real *place;
    snprintf(full, sizeof full, "%s%s", prefix, name);
    row = table_row(table, full, type, out, in, 0);
    row->init = init, row->scale = scale, row->decay = decay;
    row->matrix = 1;
    if (table->base == NULL) return;
    place = table->base + row->offset;
    field->type = type, field->full = NULL, field->half = NULL;
    if (type == TYPE_REAL) field->full = place;
    else field->half = (uint16_t *)place;
}

/* One row per parameter, in the order of their use: its name, shape, initialisation, and whether it decays (A_log, D,
   biases, norms and the embedding do not). A matrix W of a linear layer y = x W^T has a row per output. A tied head is
   no row: it points to the embedding. type: of the matrices. p->block has n_layer elements; it may be NULL when only
   rows are wanted.

   With delta, B and C all constant, the layer is a time-invariant one: S4 with a real diagonal A (S4D-Real), but that B
   and C are shared by the channels, of which each has its own there. dt_bias alone is then what sets delta. */
static void params_table(Table *table, const Config *c, Params *p, int type) {
    int dim = c->d_model, inner = c->d_inner, rank = dt_width(c), x_out = dbc_width(c);
    double from_model = 1 / sqrt(dim), from_inner = 1 / sqrt(inner), from_conv = 1 / sqrt(c->d_conv);
    double from_rank = 1 / sqrt(c->dt_rank);         /* 1/sqrt(fan-in) */
    double residual = from_inner / sqrt(c->n_layer); /* n_layer blocks add to one residual stream */
    matrix(table, &p->embedding, "backbone.", "embeddings.weight", type, c->vocab_size, dim, INIT_NORMAL, 0.02, 0);
    for (int l = 0; l < c->n_layer; l++) {
        BlockParams unkept, *b = p->block != NULL ? &p->block[l] : &unkept;
        char in[40];
        snprintf(in, sizeof in, "backbone.layers.%d.", l);
        param(table, &b->norm, in, "norm.weight", dim, 0, 0, INIT_ONE, 0, 0);
        matrix(table, &b->in_proj, in, "mixer.in_proj.weight", type, 2 * inner, dim, INIT_UNIFORM, from_model, 1);
        if (c->proj_bias) param(table, &b->in_bias, in, "mixer.in_proj.bias", 2 * inner, 0, 0, INIT_ZERO, 0, 0);
        else b->in_bias = NULL;
        param(table, &b->conv, in, "mixer.conv1d.weight", inner, 1, c->d_conv, INIT_UNIFORM, from_conv, 1);
        if (c->conv_bias) param(table, &b->conv_bias, in, "mixer.conv1d.bias", inner, 0, 0, INIT_UNIFORM, from_conv, 0);
        else b->conv_bias = NULL;
        if (x_out > 0)
            matrix(table, &b->x_proj, in, "mixer.x_proj.weight", type, x_out, inner, INIT_UNIFORM, from_inner, 1);
        if (rank > 0)
            matrix(table, &b->dt_proj, in, "mixer.dt_proj.weight", type, inner, rank, INIT_UNIFORM, from_rank, 1);
        param(table, &b->dt_bias, in, "mixer.dt_proj.bias", inner, 0, 0, INIT_DT_BIAS, 0, 0);
        if (c->constant_B) param(table, &b->B, in, "mixer.B", c->d_state, 0, 0, INIT_ONE, 0, 0);
        if (c->constant_C) param(table, &b->C, in, "mixer.C", c->d_state, 0, 0, INIT_NORMAL, 1, 0);
        param(table, &b->A_log, in, "mixer.A_log", inner, c->d_state, 0, INIT_A_LOG, 0, 0);
        param(table, &b->D, in, "mixer.D", inner, 0, 0, INIT_ONE, 0, 0);
        matrix(table, &b->out_proj, in, "mixer.out_proj.weight", type, dim, inner, INIT_UNIFORM, residual, 1);
        if (c->proj_bias) param(table, &b->out_bias, in, "mixer.out_proj.bias", dim, 0, 0, INIT_ZERO, 0, 0);
        else b->out_bias = NULL;
    }
    param(table, &p->norm_f, "backbone.", "norm_f.weight", dim, 0, 0, INIT_ONE, 0, 0);
    if (!c->tied) matrix(table, &p->head, "lm_head.", "weight", type, c->vocab_size, dim, INIT_NORMAL, 0.02, 1);
    else if (table->base != NULL) p->head = p->embedding;
}

typedef struct {
    Config config;
    Tensor *tensor;                /* (n_tensor), the table of params_table */
    int n_tensor;
    int type;                      /* of the matrices */
    size_t n_param;                /* length of weights, in reals, the padding between tensors included */
    real *weights;
    Params params;                 /* point into weights */
} Model;

static void model_free(Model *m) {
    release(m->weights);
    release(m->params.block);
    release(m->tensor);
    memset(m, 0, sizeof *m);
}

/* The table alone, without places: a loader compares it with the files before it trusts them with memory for the
   weights. */
static int model_table(Model *m, const Config *c) {
    Table table = {NULL, 0, 0, NULL};
    memset(m, 0, sizeof *m);
    m->config = *c;
    params_table(&table, c, &m->params, TYPE_REAL);
    m->n_tensor = table.n_row;
    m->tensor = (Tensor *)allocate((size_t)m->n_tensor, sizeof *m->tensor);
    m->params.block = (BlockParams *)allocate((size_t)c->n_layer, sizeof *m->params.block);
    if (m->tensor == NULL || m->params.block == NULL) {
        model_free(m);
        return -1;
    }
    table.row = m->tensor, table.n_row = 0, table.size = 0;
    params_table(&table, c, &m->params, TYPE_REAL);
    return 0;
}

/* Zeroed weights, the matrices of the given type. */
static int model_allocate(Model *m, int type) {
    Table table = {m->tensor, 0, 0, NULL};
    params_table(&table, &m->config, &m->params, type);
    m->type = type, m->n_param = table.size;
    m->weights = (real *)allocate(m->n_param, sizeof(real));
    if (m->weights == NULL) return -1;
    table.n_row = 0, table.size = 0, table.base = m->weights;
    params_table(&table, &m->config, &m->params, type);
    return 0;
}

/* A model with zeroed weights. The config has passed config_check. */
static int model_create(Model *m, const Config *c) {
    if (model_table(m, c) != 0) return -1;
    if (model_allocate(m, TYPE_REAL) == 0) return 0;
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
        case INIT_DT_BIAS: /* dt log-uniform in [0.001, 0.1]; softplus(bias) = dt where bias = log(exp(dt) - 1) */
            dt = 0.001 * pow(100, random_uniform(&state));
            value = dt + log(-expm1(-dt));
            break;
        }
        w[i] = (real)value;
    }
}

/* Fresh weights. Every tensor has a random stream of its own, so tensors may be filled in any order. */
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

   Each layer is a forward and a backward function. Forward overwrites its output. Backward takes the gradient of that
   output, overwrites the gradients of activations and adds to those of parameters; a bias that is NULL has none.

   First come tools, which may be taken on trust: numbers side by side (lanes), exp and what is made of it, the matrix
   product. The layers begin at add_forward. */

/* A vector register: the bytes it holds, and how many rows of a matrix product's tile (below) fit in all of them. */
#if defined(__AVX512F__)
enum { VECTOR_BYTES = 64, TILE_ROWS = 8 };
#elif defined(__AVX__)
enum { VECTOR_BYTES = 32, TILE_ROWS = 4 };
#elif defined(__aarch64__)
enum { VECTOR_BYTES = 16, TILE_ROWS = 8 };
#else
enum { VECTOR_BYTES = 16, TILE_ROWS = 4 };
#endif

enum { LANES = VECTOR_BYTES / sizeof(real), MAX_STATE = 256, MAX_CONV = 8 };

static int min_int(int a, int b) { return a < b ? a : b; }

/* LANES reals side by side in a register. Channels are independent nearly everywhere, so loops over them take LANES at
   a time, one in each lane; arithmetic on this type is lane by lane. vec: the same, from any place in memory. */
typedef real lanes __attribute__((vector_size(VECTOR_BYTES)));
typedef real vec __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));
static const lanes zero_lanes = {0};
typedef __typeof__(zero_lanes < zero_lanes) lane_bits; /* integers as wide as a real; a comparison gives -1 or 0 */

/* From and to the next `width` reals in memory, at most LANES of them; lanes past the last are loaded as 0. */
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

/* A register of floats, the same as integers, and as many numbers of 16 bits. Widened, these are floats of the same
   value, or integers. Where there is no instruction for it, a float is put together: F16 has 5 bits of exponent, biased
   by 15, and 10 of fraction; moved to where a float has its 8 and 23, they mean a number 2^(15 - 127) times too small,
   also if the exponent is 0. But the largest exponent means infinity or NaN. (The masks, all ones, keep a warning of
   GCC 12 away.) */
typedef float float_vec __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t word_vec __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t half_vec __attribute__((vector_size(VECTOR_BYTES / 2)));
#if defined(__AVX512F__)
static inline word_vec widen(half_vec half) { return (word_vec)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)half); }
static inline float_vec widen_f16(half_vec half) { return (float_vec)_mm512_maskz_cvtph_ps(0xffff, (__m256i)half); }
#elif defined(__AVX2__) && defined(__F16C__)
static inline word_vec widen(half_vec half) { return (word_vec)_mm256_cvtepu16_epi32((__m128i)half); }
static inline float_vec widen_f16(half_vec half) { return (float_vec)_mm256_cvtph_ps((__m128i)half); }
#else
static inline word_vec widen(half_vec half) { return __builtin_convertvector(half, word_vec); }
static inline float_vec widen_f16(half_vec half) {
    word_vec word = widen(half), special = (word_vec)((word & 0x7c00) == 0x7c00) & 0x7f800000;
    float_vec value = (float_vec)((word & 0x7fff) << 13 | (word & 0x8000) << 16) * 0x1p112f;
    return (float_vec)((word_vec)value | special);
}
#endif

/* The next `width` numbers of type BF16, which is the upper half of a float, or F16; as lanes_load. */
static inline lanes half_load(const void *memory, int type, int width) {
    half_vec half = {0};
    float_vec value;
    lanes v;
    memcpy(&half, memory, (width >= LANES ? LANES : width) * sizeof(uint16_t));
    value = type == TYPE_F16 ? widen_f16(half) : (float_vec)(widen(half) << 16);
    if (sizeof(real) == sizeof(float)) memcpy(&v, &value, sizeof v);
    else
        for (int c = 0; c < LANES; c++) v[c] = value[c];
    return v;
}

/* The next `width` numbers of a matrix from number i on, as lanes_load. */
static inline lanes matrix_load(Matrix m, size_t i, int width) {
    return m.type == TYPE_REAL ? lanes_load(m.full + i, width) : half_load(m.half + i, m.type, width);
}

/* Reals as a matrix that is read only. */
static inline Matrix as_matrix(const real *full) {
    Matrix m = {TYPE_REAL, (real *)full, NULL};
    return m;
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

/* exp(x) = 2^k exp(r) with k = round(x / ln 2) and r = x - k ln 2, so |r| <= ln(2)/2. Returns exp(r) - 1 by its Taylor
   series, whose remainder is below the rounding error, and sets *power to 2^k.
   To round, 1.5 * 2^m is added, m being the bits of the mantissa: no bit is left for a fraction, and the low ones hold
   k; moved up to the exponent, they make 2^k. ln 2 is the sum of two numbers, the first so short that k times it is
   exact. x is cut to +-limit, min(a, b) being -max(-a, -b). */
static inline lanes exp_parts(lanes x, lanes *power) {
    static const double inverse_factorial[] = {
        1, 1, 1 / 2., 1 / 6., 1 / 24., 1 / 120., 1 / 720., 1 / 5040., 1 / 40320., 1 / 362880., 1 / 3628800.,
        1 / 39916800., 1 / 479001600., 1 / 6227020800.};
    enum { SINGLE = sizeof(real) == 4, TERMS = SINGLE ? 7 : 13 };
    const int mantissa = SINGLE ? 23 : 52, bias = SINGLE ? 127 : 1023;
    const real round = SINGLE ? (real)12582912 : (real)6755399441055744, limit = SINGLE ? (real)87.3 : (real)708;
    const real inverse_ln2 = (real)1.44269504088896340736;
    const real ln2_high = SINGLE ? (real)0.693359375 : (real)0.693147180369123816490;
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
   log(1 + e) = 2 artanh(s) = 2 (s + s^3/3 + s^5/5 + ...) with s = e / (2 + e) <= 1/3: exact to rounding, however small
   e is. */
static inline lanes lanes_softplus(lanes x) {
    enum { TERMS = sizeof(real) == 4 ? 7 : 17 };
    lanes positive = lanes_max(x, zero_lanes), e = lanes_exp(-lanes_max(x, -x)), s = e / (2 + e), sum = zero_lanes;
    for (int i = TERMS; i >= 0; i--) sum = sum * s * s + (real)(1. / (2 * i + 1));
    return positive + 2 * s * sum;
}

/* silu(x) = x sigmoid(x). As sigmoid' = sigmoid (1 - sigmoid), silu'(x) = sigmoid(x) (1 + x (1 - sigmoid(x))). */
static inline lanes lanes_silu(lanes x) { return x * lanes_sigmoid(x); }
static inline lanes lanes_silu_slope(lanes x) {
    lanes s = lanes_sigmoid(x);
    return s * (1 + x * (1 - s));
}

enum {
    TILE_VECS = 3,
    TILE_COLS = TILE_VECS * LANES,
    BLOCK_K = 1024 / sizeof(real), /* so long a panel of B, TILE_COLS wide, stays in the first cache */
    BLOCK_N = 3072,                /* columns of B packed at a time */
    UNIT_ROWS = 64,                /* rows of A that a thread works on with one panel */
    MATVEC_ROWS = 4,
    PREFETCH = 8192                /* how many bytes ahead matvec asks for weights */
};

/* Packs up to LANES columns of B from number `first` on, k long, as panel[p][column]. Lanes past the last column repeat
   it; what comes of them is not stored. Where columns are contiguous, squares are transposed in registers. */
static void pack(real *panel, Matrix B, size_t first, size_t b_row, size_t b_col, int cols, int k) {
    int p = 0;
    if (b_row == 1)
        for (; p + LANES <= k; p += LANES) {
            lanes column[LANES];
            for (int j = 0; j < LANES; j++) column[j] = matrix_load(B, first + p + min_int(j, cols - 1) * b_col, LANES);
            for (int i = 0; i < LANES; i++)
                for (int j = 0; j < LANES; j++) panel[(p + i) * LANES + j] = column[j][i];
        }
    else if (b_col == 1 && cols == LANES)
        for (; p < k; p++) *(vec *)&panel[p * LANES] = matrix_load(B, first + p * b_row, LANES);
    for (; p < k; p++)
        for (int j = 0; j < LANES; j++)
            panel[p * LANES + j] = matrix_load(B, first + p * b_row + min_int(j, cols - 1) * b_col, 1)[0];
}

/* A tile of C, TILE_ROWS by n vectors of which only `rows` and `cols` are there, = or += rows of A times n packed
   panels. The sums stay in registers. Inlined with constant n, so that the loops over the tile unroll. */
__attribute__((always_inline))
static inline void tile(real *C, size_t ldc, const real *A, size_t a_row, size_t a_col, const real *B, int n, int rows,
                        int cols, int k, int add) {
    vec sum[TILE_ROWS][TILE_VECS] = {{{0}}};
    const real *a[TILE_ROWS];
    for (int i = 0; i < TILE_ROWS; i++) {
        int row = min_int(i, rows - 1);
        a[i] = A + row * a_row;
        for (int v = 0; v < n; v++) __builtin_prefetch(&C[row * ldc + v * LANES], 1);
    }
    for (int p = 0; p < k; p++)
        for (int i = 0; i < TILE_ROWS; i++)
            for (int v = 0; v < n; v++) sum[i][v] += a[i][p * a_col] * *(const vec *)&B[(v * k + p) * LANES];
    if (rows >= TILE_ROWS && cols >= n * LANES) {
        for (int i = 0; i < TILE_ROWS; i++)
            for (int v = 0; v < n; v++) {
                vec *c = (vec *)&C[i * ldc + v * LANES];
                if (add) sum[i][v] += *c;
                *c = sum[i][v];
            }
    } else {
        real part[TILE_ROWS][TILE_COLS];
        memcpy(part, sum, sizeof part);
        for (int i = 0; i < min_int(rows, TILE_ROWS); i++)
            for (int j = 0; j < min_int(cols, n * LANES); j++)
                C[i * ldc + j] = add ? C[i * ldc + j] + part[i][j] : part[i][j];
    }
}

/* C[i][j] = or += sum_p A(i,p) B(p,j) with A(i,p) = A[i*a_row + p*a_col], B(p,j) = B[p*b_row + j*b_col]; C: (m, n) with
   rows ldc apart. So a linear layer's y = x W^T, dx = dy W and dW += dy^T x differ only in strides.
   B goes block by block into panels that tiles read front to back; A is read in place. Each element of C is summed over
   p in the same order wherever it lies, so the bits do not depend on threads. One product at a time, for B_pack. */
static void matmul(real *C, size_t ldc, const real *A, size_t a_row, size_t a_col, Matrix B, size_t b_row,
                   size_t b_col, int m, int n, int k, int accumulate) {
    static real B_pack[BLOCK_N * BLOCK_K] __attribute__((aligned(VECTOR_BYTES)));
    if (k == 0 && !accumulate)
        for (int i = 0; i < m; i++) memset(C + i * ldc, 0, n * sizeof *C);
    for (int j0 = 0; j0 < n; j0 += BLOCK_N)
        for (int p0 = 0; p0 < k; p0 += BLOCK_K) {
            int block_n = min_int(n - j0, BLOCK_N), block_k = min_int(k - p0, BLOCK_K);
            int panels = (block_n + LANES - 1) / LANES, groups = (block_n + TILE_COLS - 1) / TILE_COLS;
            int units = (m + UNIT_ROWS - 1) / UNIT_ROWS * groups, add = accumulate || p0 > 0;
            PARALLEL_FOR
            for (int panel = 0; panel < panels; panel++) {
                int j = panel * LANES;
                pack(B_pack + j * block_k, B, p0 * b_row + (j0 + j) * b_col, b_row, b_col, min_int(block_n - j, LANES),
                     block_k);
            }
            PARALLEL_FOR
            for (int unit = 0; unit < units; unit++) {
                int i = unit / groups * UNIT_ROWS, end = min_int(i + UNIT_ROWS, m);
                int j = unit % groups * TILE_COLS, cols = block_n - j;
                const real *b = B_pack + j * block_k;
                for (; i < end; i += TILE_ROWS) {
                    const real *a = A + i * a_row + p0 * a_col;
                    real *c = C + i * ldc + j0 + j;
                    if (cols > 2 * LANES) tile(c, ldc, a, a_row, a_col, b, 3, end - i, cols, block_k, add);
                    else if (cols > LANES) tile(c, ldc, a, a_row, a_col, b, 2, end - i, cols, block_k, add);
                    else tile(c, ldc, a, a_row, a_col, b, 1, end - i, cols, block_k, add);
                }
            }
        }
}

/* One output of matvec, from the weights `first` on, for n rows of x, of which only `rows` are there; inlined with
   constant n. */
__attribute__((always_inline))
static inline void matvec_output(real *y, size_t ldy, const real *x, size_t ldx, Matrix W, size_t first, real bias,
                                 int n, int rows, int in) {
    vec sum[MATVEC_ROWS] = {{0}};
    const char *place = W.type == TYPE_REAL ? (const char *)(W.full + first) : (const char *)(W.half + first);
    int i = 0;
    for (; i + LANES <= in; i += LANES) {
        lanes wi = matrix_load(W, first + i, LANES);
        __builtin_prefetch(place + i * type_size[W.type] + PREFETCH);
        for (int r = 0; r < n; r++) sum[r] += wi * *(const vec *)&x[min_int(r, rows - 1) * ldx + i];
    }
    for (int r = 0; r < min_int(n, rows); r++) {
        real part[LANES];
        if (i < in) sum[r] += matrix_load(W, first + i, in - i) * lanes_load(&x[r * ldx + i], in - i);
        memcpy(part, &sum[r], sizeof part);
        for (int half = LANES / 2; half > 0; half /= 2)
            for (int lane = 0; lane < half; lane++) part[lane] += part[lane + half];
        y[r * ldy] = part[0] + bias;
    }
}

/* y = x W^T + bias for up to MATVEC_ROWS rows, as in decoding, where all the time goes into reading W: each thread
   reads its part once, from front to back.
   x: (rows, in), rows ldx apart; W: (out, in); bias: (out) or NULL; y: (rows, out), rows ldy apart */
static void matvec(real *y, size_t ldy, const real *x, size_t ldx, Matrix W, const real *bias, int rows, int in,
                   int out) {
    PARALLEL_FOR
    for (int o = 0; o < out; o++) {
        size_t first = (size_t)o * in;
        real b = bias != NULL ? bias[o] : 0;
        if (rows == 1) matvec_output(y + o, ldy, x, ldx, W, first, b, 1, 1, in);
        else matvec_output(y + o, ldy, x, ldx, W, first, b, MATVEC_ROWS, rows, in);
    }
}

/* out = x + y: the residual connection.     n reals */
static void add_forward(real *out, const real *x, const real *y, size_t n) {
    for (size_t i = 0; i < n; i++) out[i] = x[i] + y[i];
}

/* Embedding: y_r = W[token_r].     W: (vocab_size, d_model); y: (rows, d_model) */
static void embedding_forward(real *y, Matrix W, const int *tokens, int rows, int d_model) {
    for (int r = 0; r < rows; r++) {
        real *y_r = y + (size_t)r * d_model;
        size_t row = (size_t)tokens[r] * d_model;
        for (int i = 0; i < d_model; i += LANES)
            lanes_store(y_r + i, matrix_load(W, row + i, d_model - i), d_model - i);
    }
}

/* dW[token_r] += dy_r. Threads share the columns, since two rows may hold the same token. */
static void embedding_backward(Matrix dW, const real *dy, const int *tokens, int rows, int d_model) {
    PARALLEL_FOR
    for (int i0 = 0; i0 < d_model; i0 += LANES)
        for (int r = 0; r < rows; r++)
            for (int i = i0; i < min_int(i0 + LANES, d_model); i++)
                dW.full[(size_t)tokens[r] * d_model + i] += dy[(size_t)r * d_model + i];
}

/* RMSNorm: y = x r w with r = 1 / sqrt(mean(x^2) + eps).
   x, y: (rows, dim); w: (dim); r: (rows), kept for the backward pass */
static void rmsnorm_forward(real *y, real *r, const real *x, const real *w, int rows, int dim, double eps) {
    PARALLEL_FOR
    for (int row = 0; row < rows; row++) {
        const real *x_row = x + (size_t)row * dim;
        lanes sum = zero_lanes;
        for (int i = 0; i < dim; i += LANES) {
            lanes xi = lanes_load(x_row + i, dim - i);
            sum += xi * xi;
        }
        r[row] = (real)(1 / sqrt(lanes_sum(sum) / dim + eps));
        for (int i = 0; i < dim; i++) y[(size_t)row * dim + i] = x_row[i] * r[row] * w[i];
    }
}

/* Forward was y_i = x_i r w_i with dr/dx_j = -r^3 x_j / dim, so
   dx_j += r (dy_j w_j - x_j r^2 mean_i(dy_i w_i x_i)),     dw_i += sum over rows of dy_i x_i r.
   It adds to dx, which already holds the gradient that went past the block on the residual connection. */
static void rmsnorm_backward(real *dx, real *dw, const real *dy, const real *x, const real *r, const real *w, int rows,
                             int dim) {
    PARALLEL_FOR
    for (int row = 0; row < rows; row++) {
        const real *x_row = x + (size_t)row * dim, *dy_row = dy + (size_t)row * dim;
        lanes sum = zero_lanes;
        real mean;
        for (int i = 0; i < dim; i += LANES)
            sum += lanes_load(dy_row + i, dim - i) * lanes_load(w + i, dim - i) * lanes_load(x_row + i, dim - i);
        mean = lanes_sum(sum) / dim;
        for (int i = 0; i < dim; i++)
            dx[(size_t)row * dim + i] += r[row] * (dy_row[i] * w[i] - x_row[i] * r[row] * r[row] * mean);
    }
    PARALLEL_FOR
    for (int i = 0; i < dim; i += LANES) {
        lanes sum = lanes_load(dw + i, dim - i);
        for (int row = 0; row < rows; row++) {
            size_t at = (size_t)row * dim + i;
            sum += lanes_load(dy + at, dim - i) * lanes_load(x + at, dim - i) * r[row];
        }
        lanes_store(dw + i, sum, dim - i);
    }
}

/* dbias += the sum of dy over its rows.     dy: (rows, dim), rows lddy apart */
static void bias_backward(real *dbias, const real *dy, size_t lddy, int rows, int dim) {
    PARALLEL_FOR
    for (int i = 0; i < dim; i += LANES) {
        lanes sum = lanes_load(dbias + i, dim - i);
        for (int row = 0; row < rows; row++) sum += lanes_load(dy + row * lddy + i, dim - i);
        lanes_store(dbias + i, sum, dim - i);
    }
}

/* Linear: y = x W^T + bias.     x: (rows, in), row stride ldx; W: (out, in); bias: (out) or NULL; y: (rows, out) */
static void linear_forward(real *y, const real *x, size_t ldx, Matrix W, const real *bias, int rows, int in,
                           int out) {
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

/* Forward was y_o = sum_i W_oi x_i + bias_o, so dx_i = sum_o dy_o W_oi, and over the rows dW_oi += sum dy_o x_i: as
   products, dx = dy W (with add: dx += dy W),     dW += dy^T x,     dbias += sum of dy.     dx: row stride ldx */
static void linear_backward(real *dx, Matrix dW, real *dbias, const real *dy, const real *x, size_t ldx, Matrix W,
                            int rows, int in, int out, int add) {
    matmul(dx, ldx, dy, (size_t)out, 1, W, (size_t)in, 1, rows, in, out, add);
    matmul(dW.full, (size_t)in, dy, 1, (size_t)out, as_matrix(x), ldx, 1, out, in, rows, 1);
    if (dbias != NULL) bias_backward(dbias, dy, (size_t)out, rows, out);
}

/* A sequence's state in a block is (d_conv - 1 + d_state, d_inner): the inputs of the convolution that later positions
   still need, oldest first, then h transposed. The convolution and the scan read the state `from` and leave the new one
   in `to` (the same place, or NULL: not wanted). From one sequence's state to the next it is ldstate reals (0: all
   start from the same one).

   conv_input: the channels' inputs at position t, which for t < 0 are in the state. */
static const real *conv_input(const real *x, size_t ldx, const real *from, int t, int d_inner, int d_conv) {
    return t >= 0 ? x + t * ldx : from + (size_t)(d_conv - 1 + t) * d_inner;
}

/* The taps of `width` channels side by side.     tap: (d_conv); w: (width, d_conv) */
static void lanes_taps(lanes *tap, const real *w, int width, int d_conv) {
    for (int k = 0; k < d_conv; k++) {
        tap[k] = zero_lanes;
        for (int c = 0; c < min_int(LANES, width); c++) tap[k][c] = w[c * d_conv + k];
    }
}

/* Causal convolution, a filter of its own for each channel, then SiLU; the last tap is for the current position:
   u_t = silu(s_t),     s_t = bias + sum_k w_k x_{t - (d_conv-1) + k}.
   u: (batch, len, d_inner); x: the same with row stride ldx; w: (d_inner, d_conv); bias: (d_inner) or NULL;
   from, to: the convolution's part of the state, see above */
static void conv_forward(real *u, const real *x, size_t ldx, const real *w, const real *bias, const real *from,
                         real *to, size_t ldstate, int batch, int len, int d_inner, int d_conv) {
    int blocks = (d_inner + LANES - 1) / LANES;
    PARALLEL_FOR
    for (int i = 0; i < batch * blocks; i++) {
        int b = i / blocks, d = i % blocks * LANES, width = d_inner - d;
        const real *x_b = x + (size_t)b * len * ldx + d, *from_b = from + b * ldstate + d;
        lanes tap[MAX_CONV], bias_d = bias != NULL ? lanes_load(bias + d, width) : zero_lanes;
        lanes_taps(tap, w + (size_t)d * d_conv, width, d_conv);
        for (int t = 0; t < len; t++) {
            lanes s = bias_d;
            for (int k = 0; k < d_conv; k++)
                s += tap[k] * lanes_load(conv_input(x_b, ldx, from_b, t - (d_conv - 1) + k, d_inner, d_conv), width);
            lanes_store(u + ((size_t)b * len + t) * d_inner + d, lanes_silu(s), width);
        }
        for (int k = 0; to != NULL && k < d_conv - 1; k++) { /* from x, or from a later row: to may be from */
            const real *last = conv_input(x_b, ldx, from_b, len - (d_conv - 1) + k, d_inner, d_conv);
            lanes_store(to + b * ldstate + (size_t)k * d_inner + d, lanes_load(last, width), width);
        }
    }
}

/* Forward was u_t = silu(s_t), s_t = bias + sum_k w_k x_{t - (d_conv-1) + k}, so ds_t = du_t silu'(s_t), and for each k
   dx_{t - (d_conv-1) + k} += w_k ds_t,     dw_k += ds_t x_{t - (d_conv-1) + k},     dbias += ds_t.
   s is computed again rather than kept. dx has the row stride of x; what comes before the sequence gets no gradient. */
static void conv_backward(real *dx, real *dw, real *dbias, const real *du, const real *x, size_t ldx, const real *w,
                          const real *bias, const real *from, size_t ldstate, int batch, int len, int d_inner,
                          int d_conv) {
    PARALLEL_FOR
    for (int d = 0; d < d_inner; d += LANES) {
        int width = d_inner - d;
        lanes tap[MAX_CONV], dtap[MAX_CONV], bias_d = bias != NULL ? lanes_load(bias + d, width) : zero_lanes;
        lanes dbias_d = zero_lanes;
        lanes_taps(tap, w + (size_t)d * d_conv, width, d_conv);
        memset(dtap, 0, sizeof dtap);
        for (int i = 0; i < batch * len; i++) {
            int b = i / len, t = i % len;
            const real *x_b = x + (size_t)b * len * ldx + d, *from_b = from + b * ldstate + d;
            real *dx_b = dx + (size_t)b * len * ldx + d;
            lanes s = bias_d, ds, input[MAX_CONV];
            for (int k = 0; k < d_conv; k++) {
                input[k] = lanes_load(conv_input(x_b, ldx, from_b, t - (d_conv - 1) + k, d_inner, d_conv), width);
                s += tap[k] * input[k];
            }
            ds = lanes_load(du + (size_t)i * d_inner + d, width) * lanes_silu_slope(s);
            dbias_d += ds;
            for (int k = 0; k < d_conv; k++) { /* position t is the source of step t first, so that step sets its dx */
                int source = t - (d_conv - 1) + k;
                lanes before = source < t && source >= 0 ? lanes_load(dx_b + source * ldx, width) : zero_lanes;
                dtap[k] += ds * input[k];
                if (source >= 0) lanes_store(dx_b + source * ldx, before + tap[k] * ds, width);
            }
        }
        for (int k = 0; k < d_conv; k++)
            for (int c = 0; c < min_int(LANES, width); c++) dw[(size_t)(d + c) * d_conv + k] += dtap[k][c];
        if (dbias != NULL) lanes_store(dbias + d, lanes_load(dbias + d, width) + dbias_d, width);
    }
}

/* Discretisation, first half: the step size delta = softplus(v + dt_bias), where v = dt_proj dt.
   v is in delta and is overwritten.     delta: (rows, d_inner)
   The second half, abar = exp(delta A) and Bbar = delta B, is inside the scan and is not stored: either would be
   d_state times as large as delta. */
static void delta_forward(real *delta, const real *dt_bias, int rows, int d_inner) {
    PARALLEL_FOR
    for (int row = 0; row < rows; row++)
        for (int d = 0; d < d_inner; d += LANES) {
            size_t at = (size_t)row * d_inner + d;
            lanes v = lanes_load(delta + at, d_inner - d), bias = lanes_load(dt_bias + d, d_inner - d);
            lanes_store(delta + at, lanes_softplus(v + bias), d_inner - d);
        }
}

/* Forward was delta = softplus(v + dt_bias). softplus' = sigmoid, and sigmoid(s) = 1 - exp(-softplus(s)), so
   dv = ddelta (1 - exp(-delta)), in place of ddelta,     ddt_bias += sum over rows of dv. */
static void delta_backward(real *ddelta, real *ddt_bias, const real *delta, int rows, int d_inner) {
    PARALLEL_FOR
    for (int row = 0; row < rows; row++)
        for (int d = 0; d < d_inner; d += LANES) {
            size_t at = (size_t)row * d_inner + d;
            lanes slope = lanes_one_minus_exp(-lanes_load(delta + at, d_inner - d));
            lanes_store(ddelta + at, lanes_load(ddelta + at, d_inner - d) * slope, d_inner - d);
        }
    bias_backward(ddt_bias, ddelta, (size_t)d_inner, rows, d_inner);
}

/* A = -exp(A_log) of `width` channels side by side.     A: (d_state); A_log: (width, d_state) */
static void lanes_A(lanes *A, const real *A_log, int width, int d_state) {
    for (int n = 0; n < d_state; n++) {
        lanes a = zero_lanes;
        for (int c = 0; c < min_int(LANES, width); c++) a[c] = A_log[c * d_state + n];
        A[n] = -lanes_exp(a);
    }
}

/* Backward needs every h_t. Of those, forward keeps one in SCAN_CHUNK, and backward computes the others again from it:
   d_state / SCAN_CHUNK reals are stored per element of y instead of d_state, for the price of a second forward scan. */
enum { SCAN_CHUNK = 16 };
static int scan_chunks(int len) { return (len + SCAN_CHUNK - 1) / SCAN_CHUNK; }

/* B and C of all positions, or their gradients, each with its row stride; 0: one B or C for all positions. */
typedef struct { real *B, *C; size_t ldb, ldc; } BC;

/* All that y depends on, beside the first state; or the gradients by it.
   u, delta: (batch, len, d_inner); bc: (batch, len, d_state) each; A_log: (d_inner, d_state); D: (d_inner) */
typedef struct {
    real *u, *delta;
    BC bc;
    real *A_log, *D;
} ScanInput;

/* The selective scan (Eq. 2 with the delta, B and C of each position): for each channel and n from 0 to d_state - 1
   h_t[n] = exp(delta_t A[n]) h_{t-1}[n] + delta_t B_t[n] u_t,     y_t = sum_n C_t[n] h_t[n] + D u_t.
   y: (batch, len, d_inner); kept: (batch, scan_chunks(len), d_state, d_inner), h before each chunk, or NULL; from, to:
   h in the state, see conv_input */
static void scan_forward(real *y, real *kept, ScanInput in, const real *from, real *to, size_t ldstate, int batch,
                         int len, int d_inner, int d_state) {
    int blocks = (d_inner + LANES - 1) / LANES, chunks = scan_chunks(len);
    PARALLEL_FOR
    for (int i = 0; i < batch * blocks; i++) {
        int b = i / blocks, d = i % blocks * LANES, width = d_inner - d;
        lanes A[MAX_STATE], h[MAX_STATE], D_d = lanes_load(in.D + d, width);
        lanes_A(A, in.A_log + (size_t)d * d_state, width, d_state);
        for (int n = 0; n < d_state; n++) h[n] = lanes_load(from + b * ldstate + (size_t)n * d_inner + d, width);
        for (int t = 0; t < len; t++) {
            size_t row = (size_t)b * len + t, at = row * d_inner + d;
            const real *B_t = in.bc.B + row * in.bc.ldb, *C_t = in.bc.C + row * in.bc.ldc;
            lanes u_t = lanes_load(in.u + at, width), delta_t = lanes_load(in.delta + at, width), y_t = D_d * u_t;
            for (int n = 0; kept != NULL && t % SCAN_CHUNK == 0 && n < d_state; n++)
                lanes_store(kept + (((size_t)b * chunks + t / SCAN_CHUNK) * d_state + n) * d_inner + d, h[n], width);
            for (int n = 0; n < d_state; n++) {
                h[n] = lanes_exp(delta_t * A[n]) * h[n] + delta_t * u_t * B_t[n];
                y_t += h[n] * C_t[n];
            }
            lanes_store(y + at, y_t, width);
        }
        for (int n = 0; to != NULL && n < d_state; n++)
            lanes_store(to + b * ldstate + (size_t)n * d_inner + d, h[n], width);
    }
}

/* The work of scan_backward is cut into shares: SCAN_BLOCKS blocks of LANES channels of one sequence. dB and dC are
   sums over all channels; a share adds its blocks lane by lane, then the lanes once, and leaves partial sums, which are
   added in the order of the shares, whichever thread had them. */
enum { SCAN_BLOCKS = 4 };
static int scan_shares(int d_inner) { return (d_inner + SCAN_BLOCKS * LANES - 1) / (SCAN_BLOCKS * LANES); }

/* The memory of scan_backward. */
typedef struct {
    real *part_BC;                 /* (scan_shares, batch, len, 2 d_state): of each share, for dB and dC */
    real *part_A;                  /* (batch, d_state + 1, d_inner): of each sequence, for dA_log and dD */
    real *share;                   /* (batch, scan_shares, share_size): where the shares work, see Share */
} ScanWork;

/* What a share works in. */
typedef struct {
    lanes *h;                      /* (1 + SCAN_CHUNK, d_state): before a chunk, then after each of its steps */
    lanes *abar;                   /* (SCAN_CHUNK, d_state) */
    lanes *dB, *dC;                /* (SCAN_CHUNK, d_state): sums over the share's blocks */
    lanes *A, *dA, *next;          /* (SCAN_BLOCKS, d_state); next: abar g of the position after */
    lanes *dD;                     /* (SCAN_BLOCKS) */
} Share;

/* Its size in reals. */
static size_t share_size(int d_state) {
    return ((size_t)(1 + 4 * SCAN_CHUNK + 3 * SCAN_BLOCKS) * d_state + SCAN_BLOCKS) * LANES;
}

/* Its parts, in so much memory. */
static Share share_in(real *memory, int d_state) {
    int in_chunk = SCAN_CHUNK * d_state, in_blocks = SCAN_BLOCKS * d_state;
    Share s;
    s.h = (lanes *)memory;
    s.abar = s.h + d_state + in_chunk;
    s.dB = s.abar + in_chunk;
    s.dC = s.dB + in_chunk;
    s.A = s.dC + in_chunk;
    s.dA = s.A + in_blocks;
    s.next = s.dA + in_blocks;
    s.dD = s.next + in_blocks;
    return s;
}

/* The forward scan of a chunk again, in the block of channels from d on: from h before it, in h[0], the h and abar of
   each step.     first: the chunk's first row; h: (1 + steps, d_state); abar: (steps, d_state) */
static void scan_again(lanes *h, lanes *abar, const lanes *A, ScanInput in, size_t first, int d, int steps, int d_inner,
                       int d_state) {
    for (size_t row = first; row < first + steps; row++, h += d_state, abar += d_state) {
        const real *B_t = in.bc.B + row * in.bc.ldb;
        lanes u_t = lanes_load(in.u + row * d_inner + d, d_inner - d);
        lanes delta_t = lanes_load(in.delta + row * d_inner + d, d_inner - d);
        for (int n = 0; n < d_state; n++) {
            abar[n] = lanes_exp(delta_t * A[n]);
            h[d_state + n] = abar[n] * h[n] + delta_t * u_t * B_t[n];
        }
    }
}

/* Forward was h_t = abar_t h_{t-1} + delta_t B_t u_t and y_t = sum_n C_t h_t + D u_t with abar_t = exp(delta_t A).
   Let g_t be dL/dh_t, by way of y_t and all that follows, and q_t = g_t abar_t h_{t-1}, which is dL/d(delta_t A). Then
   g_t = C_t dy_t + abar_{t+1} g_{t+1}                   the same recurrence, run backwards
   dC_t = sum_d dy_t h_t,     dB_t = sum_d g_t delta_t u_t
   du_t = sum_n g_t delta_t B_t + D dy_t,     ddelta_t = sum_n (g_t B_t u_t + q_t A)
   dD = sum_t dy_t u_t,     dA = sum_t q_t delta_t,     dA_log = dA A, as A = -exp(A_log); t runs over all sequences.
   This is a chunk, from its last step to its first, in block j of a share, the channels from d on. */
static void scan_chunk_backward(ScanInput grad, const real *dy, Share s, int j, ScanInput in, size_t first, int d,
                                int steps, int d_inner, int d_state) {
    int width = d_inner - d;
    const lanes *A = s.A + j * d_state, D_d = lanes_load(in.D + d, width);
    lanes *dA = s.dA + j * d_state, *next = s.next + j * d_state;
    for (int i = steps - 1; i >= 0; i--) {
        size_t row = first + i, at = row * d_inner + d;
        const real *B_t = in.bc.B + row * in.bc.ldb, *C_t = in.bc.C + row * in.bc.ldc;
        const lanes *before = s.h + i * d_state, *h_t = before + d_state, *abar_t = s.abar + i * d_state;
        lanes u_t = lanes_load(in.u + at, width), delta_t = lanes_load(in.delta + at, width);
        lanes dy_t = lanes_load(dy + at, width), sum_gB = zero_lanes, sum_qA = zero_lanes;
        lanes *dB_t = s.dB + i * d_state, *dC_t = s.dC + i * d_state;
        for (int n = 0; n < d_state; n++) {
            lanes g_t = dy_t * C_t[n] + next[n], q_t = g_t * abar_t[n] * before[n];
            dC_t[n] += dy_t * h_t[n];
            dB_t[n] += g_t * (delta_t * u_t);
            dA[n] += q_t * delta_t;
            sum_gB += g_t * B_t[n];
            sum_qA += q_t * A[n];
            next[n] = g_t * abar_t[n];
        }
        s.dD[j] += dy_t * u_t;
        lanes_store(grad.u + at, sum_gB * delta_t + D_d * dy_t, width);
        lanes_store(grad.delta + at, sum_gB * u_t + sum_qA, width);
    }
}

/* From the partial sums of scan_backward: dB, dC = sums over shares, or for a constant += their sum over all rows;
   dA_log, dD += sums over sequences. */
static void scan_add_parts(ScanInput grad, ScanWork work, int batch, int len, int d_inner, int d_state) {
    int rows = batch * len, shares = scan_shares(d_inner);
    size_t width = 2 * (size_t)d_state;
    BC sums = grad.bc;
    PARALLEL_FOR
    for (int row = 0; row < rows; row++) {
        real *sum = work.part_BC + row * width; /* in place of the first share's */
        for (int share = 1; share < shares; share++)
            for (int n = 0; n < 2 * d_state; n++) sum[n] += sum[share * rows * width + n];
        if (sums.ldb > 0) memcpy(sums.B + row * sums.ldb, sum, d_state * sizeof *sums.B);
        if (sums.ldc > 0) memcpy(sums.C + row * sums.ldc, sum + d_state, d_state * sizeof *sums.C);
    }
    if (sums.ldb == 0) bias_backward(sums.B, work.part_BC, width, rows, d_state);
    if (sums.ldc == 0) bias_backward(sums.C, work.part_BC + d_state, width, rows, d_state);
    PARALLEL_FOR
    for (int d = 0; d < d_inner; d++)
        for (int b = 0; b < batch; b++) {
            const real *part = work.part_A + (size_t)b * (d_state + 1) * d_inner + d;
            for (int n = 0; n < d_state; n++) grad.A_log[(size_t)d * d_state + n] += part[(size_t)n * d_inner];
            grad.D[d] += part[(size_t)d_state * d_inner];
        }
}

/* The gradients of the scan, by scan_chunk_backward: du, ddelta, dB and dC are overwritten, but where B or C is
   constant its gradient is added to, as are dA_log and dD.     dy: (batch, len, d_inner); kept: from scan_forward */
static void scan_backward(ScanInput grad, const real *dy, const real *kept, ScanInput in, ScanWork work, int batch,
                          int len, int d_inner, int d_state) {
    int shares = scan_shares(d_inner), chunks = scan_chunks(len), rows = batch * len;
    PARALLEL_FOR
    for (int i = 0; i < batch * shares; i++) {
        int b = i / shares, share = i % shares;
        int d_first = share * SCAN_BLOCKS * LANES, d_end = min_int(d_first + SCAN_BLOCKS * LANES, d_inner);
        Share s = share_in(work.share + i * share_size(d_state), d_state);
        memset(s.dA, 0, (2 * d_state + 1) * SCAN_BLOCKS * sizeof *s.dA); /* next and dD, too: nothing comes after */
        for (int d = d_first, j = 0; d < d_end; d += LANES, j++)
            lanes_A(s.A + j * d_state, in.A_log + (size_t)d * d_state, d_inner - d, d_state);
        for (int chunk = chunks - 1; chunk >= 0; chunk--) {
            int steps = min_int(SCAN_CHUNK, len - chunk * SCAN_CHUNK);
            size_t first = (size_t)b * len + chunk * SCAN_CHUNK;
            memset(s.dB, 0, 2 * SCAN_CHUNK * d_state * sizeof *s.dB); /* and dC */
            for (int d = d_first, j = 0; d < d_end; d += LANES, j++) {
                const real *kept_h = kept + ((size_t)b * chunks + chunk) * d_state * d_inner + d;
                for (int n = 0; n < d_state; n++) s.h[n] = lanes_load(kept_h + (size_t)n * d_inner, d_inner - d);
                scan_again(s.h, s.abar, s.A + j * d_state, in, first, d, steps, d_inner, d_state);
                scan_chunk_backward(grad, dy, s, j, in, first, d, steps, d_inner, d_state);
            }
            for (int step = 0; step < steps; step++)
                for (int n = 0; n < d_state; n++) {
                    real *part = work.part_BC + ((size_t)share * rows + first + step) * 2 * d_state + n;
                    part[0] = lanes_sum(s.dB[step * d_state + n]), part[d_state] = lanes_sum(s.dC[step * d_state + n]);
                }
        }
        for (int d = d_first, j = 0; d < d_end; d += LANES, j++) {
            real *part = work.part_A + (size_t)b * (d_state + 1) * d_inner + d;
            for (int n = j * d_state; n < (j + 1) * d_state; n++, part += d_inner)
                lanes_store(part, s.dA[n] * s.A[n], d_inner - d); /* dA_log */
            lanes_store(part, s.dD[j], d_inner - d);
        }
    }
    scan_add_parts(grad, work, batch, len, d_inner, d_state);
}

/* The gate: out = y silu(z).     out, y: (rows, d_inner); z: the same with row stride ldz */
static void gate_forward(real *out, const real *y, const real *z, size_t ldz, int rows, int d_inner) {
    PARALLEL_FOR
    for (int row = 0; row < rows; row++)
        for (int d = 0; d < d_inner; d += LANES) {
            size_t at = (size_t)row * d_inner + d;
            lanes z_d = lanes_load(z + row * ldz + d, d_inner - d);
            lanes_store(out + at, lanes_load(y + at, d_inner - d) * lanes_silu(z_d), d_inner - d);
        }
}

/* Forward was out = y silu(z), so dy = dout silu(z), which takes the place of dout, and dz = dout y silu'(z).
   dz has the row stride of z. */
static void gate_backward(real *dout, real *dz, const real *y, const real *z, size_t ldz, int rows, int d_inner) {
    PARALLEL_FOR
    for (int row = 0; row < rows; row++)
        for (int d = 0; d < d_inner; d += LANES) {
            size_t at = (size_t)row * d_inner + d;
            lanes dout_d = lanes_load(dout + at, d_inner - d), z_d = lanes_load(z + row * ldz + d, d_inner - d);
            lanes dsilu = dout_d * lanes_load(y + at, d_inner - d);
            lanes_store(dz + row * ldz + d, dsilu * lanes_silu_slope(z_d), d_inner - d);
            lanes_store(dout + at, dout_d * lanes_silu(z_d), d_inner - d);
        }
}

/* 4. BLOCK AND MODEL ===========================================================================================

   x --+-- RMSNorm -- in_proj --+-- x -- conv, SiLU -- u --+------------------------- scan -- y -- * -- out_proj -- + --
       |                        |                          +-- x_proj --+-- B, C ------'           |                |
       |                        |                                       +-- dt_proj -- delta --'   |                |
       |                        +-- z ---------------------------------------------------- SiLU ---'                |
       +------------------------------------------------------------------------------------------------------------+ */

/* What a block's forward leaves for its backward. A row of xz is x and z (d_inner each), one of dbc is dt (dt_rank), B
   and C (d_state each), side by side; the layers read them where they are. r is RMSNorm's, kept the scan's. Cheap to
   compute again, and so not among these: the normed input, the convolution before SiLU, the gated output. */
typedef struct {
    real *input, *r, *xz, *u, *dbc, *delta, *y, *kept;
} BlockActs;

/* The activations of a model and, where it trains, the gradients of one block's activations. Shapes are in acts_table.
   x is the residual stream: what a block gets and adds to. */
typedef struct {
    BlockActs *block;              /* n_layer when training, else 1, which all blocks share */
    real *x, *normed, *gated, *r, *zero_state, *logits, *losses;
    real *dx, *dnormed, *dgated, *dxz, *du, *ddelta, *ddbc;
    ScanWork scan;
} Acts;

enum { HEAD_ROWS = 256 };          /* the head and the loss take so many rows at a time: logits are large */

static size_t state_stride(const Config *c) { return (size_t)(c->d_conv - 1 + c->d_state) * c->d_inner; }

static void acts_table(Table *table, const Config *c, Acts *a, int batch, int len, int train) {
    int rows = batch * len, dim = c->d_model, inner = c->d_inner, d_state = c->d_state;
    for (int l = 0; l < (train ? c->n_layer : 1); l++) {
        BlockActs *block = &a->block[l];
        if (train) table_add(table, &block->input, "input", rows, dim, 0);
        table_add(table, &block->r, "r", rows, 0, 0);
        table_add(table, &block->xz, "xz", rows, 2 * inner, 0);
        table_add(table, &block->u, "u", rows, inner, 0);
        table_add(table, &block->dbc, "dbc", rows, dbc_width(c), 0);
        table_add(table, &block->delta, "delta", rows, inner, 0);
        table_add(table, &block->y, "y", rows, inner, 0);
        if (train) table_add(table, &block->kept, "kept", batch * scan_chunks(len), d_state, inner);
        else block->kept = NULL; /* not where a training layout had it */
    }
    table_add(table, &a->x, "x", rows, dim, 0);
    table_add(table, &a->normed, "normed", rows, dim, 0);
    table_add(table, &a->gated, "gated", rows, inner, 0);
    table_add(table, &a->r, "r", rows, 0, 0);
    table_add(table, &a->zero_state, "zero_state", c->d_conv - 1 + d_state, inner, 0);
    table_add(table, &a->logits, "logits", HEAD_ROWS, c->vocab_size, 0);
    table_add(table, &a->losses, "losses", HEAD_ROWS, 0, 0);
    if (!train) return;
    table_add(table, &a->dx, "dx", rows, dim, 0);
    table_add(table, &a->dnormed, "dnormed", rows, dim, 0);
    table_add(table, &a->dgated, "dgated", rows, inner, 0);
    table_add(table, &a->dxz, "dxz", rows, 2 * inner, 0);
    table_add(table, &a->du, "du", rows, inner, 0);
    table_add(table, &a->ddelta, "ddelta", rows, inner, 0);
    table_add(table, &a->ddbc, "ddbc", rows, dbc_width(c), 0);
    table_add(table, &a->scan.part_BC, "part_BC", scan_shares(inner), rows, 2 * d_state);
    table_add(table, &a->scan.part_A, "part_A", batch, d_state + 1, inner);
    table_add(table, &a->scan.share, "share", batch, scan_shares(inner), (int)share_size(d_state));
}

/* B and C of a block, or their gradients: columns of dbc behind dt, or, with row stride 0, constants of p. */
static BC block_BC(const Config *c, const BlockParams *p, real *dbc) {
    BC at = {p->B, p->C, 0, 0};
    dbc += dt_width(c);
    if (!c->constant_B) at.B = dbc, at.ldb = (size_t)dbc_width(c), dbc += c->d_state;
    if (!c->constant_C) at.C = dbc, at.ldc = (size_t)dbc_width(c);
    return at;
}

/* out = x + mixer(RMSNorm(x)).     x, out: (batch, len, d_model), may be the same; from, to: states, see conv_input */
static void block_forward(real *out, const real *x, const BlockParams *p, BlockActs *k, Acts *a, const Config *c,
                          const real *from, real *to, size_t ldstate, int batch, int len) {
    int rows = batch * len, dim = c->d_model, inner = c->d_inner, width = dbc_width(c);
    size_t h_at = (size_t)(c->d_conv - 1) * inner; /* where h begins in a state */
    const real *dt = k->dbc, *z = k->xz + inner, *h_from = from + h_at;
    real *mixed = a->normed, *h_to = to != NULL ? to + h_at : NULL;
    ScanInput in = {k->u, k->delta, block_BC(c, p, k->dbc), p->A_log, p->D};
    rmsnorm_forward(a->normed, k->r, x, p->norm, rows, dim, c->norm_eps);
    linear_forward(k->xz, a->normed, dim, p->in_proj, p->in_bias, rows, dim, 2 * inner);
    conv_forward(k->u, k->xz, 2 * inner, p->conv, p->conv_bias, from, to, ldstate, batch, len, inner, c->d_conv);
    linear_forward(k->dbc, k->u, inner, p->x_proj, NULL, rows, inner, width);
    if (c->constant_delta) memset(k->delta, 0, (size_t)rows * inner * sizeof *k->delta); /* dt_bias makes it alone */
    else linear_forward(k->delta, dt, width, p->dt_proj, NULL, rows, c->dt_rank, inner);
    delta_forward(k->delta, p->dt_bias, rows, inner);
    scan_forward(k->y, k->kept, in, h_from, h_to, ldstate, batch, len, inner, c->d_state);
    gate_forward(a->gated, k->y, z, 2 * inner, rows, inner);
    /* normed is done with: mixed takes its place */
    linear_forward(mixed, a->gated, inner, p->out_proj, p->out_bias, rows, inner, dim);
    add_forward(out, x, mixed, (size_t)rows * dim);
}

/* The steps of block_forward in reverse, for sequences that started at state zero. a->dx comes in as the gradient of
   out and leaves as that of x: the residual connection hands it on as it is, and rmsnorm_backward adds the mixer's. */
static void block_backward(const BlockParams *g, const BlockParams *p, const BlockActs *k, Acts *a, const Config *c,
                           int batch, int len) {
    int rows = batch * len, dim = c->d_model, inner = c->d_inner, width = dbc_width(c);
    const real *dt = k->dbc, *z = k->xz + inner;
    real *ddt = a->ddbc, *dz = a->dxz + inner, *dy = a->dgated;
    ScanInput in = {k->u, k->delta, block_BC(c, p, k->dbc), p->A_log, p->D};
    ScanInput grad = {a->du, a->ddelta, block_BC(c, g, a->ddbc), g->A_log, g->D};
    gate_forward(a->gated, k->y, z, 2 * inner, rows, inner);
    linear_backward(a->dgated, g->out_proj, g->out_bias, a->dx, a->gated, inner, p->out_proj, rows, inner, dim, 0);
    gate_backward(a->dgated, dz, k->y, z, 2 * inner, rows, inner); /* a->dgated is dy now */
    scan_backward(grad, dy, k->kept, in, a->scan, batch, len, inner, c->d_state);
    delta_backward(a->ddelta, g->dt_bias, k->delta, rows, inner);
    if (!c->constant_delta)
        linear_backward(ddt, g->dt_proj, NULL, a->ddelta, dt, width, p->dt_proj, rows, c->dt_rank, inner, 0);
    linear_backward(a->du, g->x_proj, NULL, a->ddbc, k->u, inner, p->x_proj, rows, inner, width, 1);
    conv_backward(a->dxz, g->conv, g->conv_bias, a->du, k->xz, 2 * inner, p->conv, p->conv_bias, a->zero_state, 0,
                  batch, len, inner, c->d_conv);
    rmsnorm_forward(a->normed, k->r, k->input, p->norm, rows, dim, c->norm_eps);
    linear_backward(a->dnormed, g->in_proj, g->in_bias, a->dxz, a->normed, dim, p->in_proj, rows, dim, 2 * inner, 0);
    rmsnorm_backward(a->dx, g->norm, a->dnormed, k->input, k->r, p->norm, rows, dim);
}

/* a->normed = what the head reads, from tokens (batch, len). state: (n_layer, batch, state_stride), updated; NULL: the
   sequences start here, at zero. train: what model_backward needs is kept, for each block by itself; state is NULL. */
static void model_forward(Acts *a, const Params *p, const Config *c, const int *tokens, real *state, int batch, int len,
                          int train) {
    int rows = batch * len;
    size_t stride = state_stride(c);
    embedding_forward(train ? a->block[0].input : a->x, p->embedding, tokens, rows, c->d_model);
    for (int l = 0; l < c->n_layer; l++) {
        real *to = state != NULL ? state + (size_t)l * batch * stride : NULL, *from = to != NULL ? to : a->zero_state;
        real *x = train ? a->block[l].input : a->x, *out = train && l + 1 < c->n_layer ? a->block[l + 1].input : a->x;
        block_forward(out, x, &p->block[l], &a->block[train ? l : 0], a, c, from, to, to != NULL ? stride : 0, batch,
                      len);
    }
    rmsnorm_forward(a->normed, a->r, a->x, p->norm_f, rows, c->d_model, c->norm_eps);
}

/* From a->dnormed, the gradient of what the head read, to the gradients g of all parameters but the head, which was
   head_loss's part. */
static void model_backward(const Params *g, Acts *a, const Params *p, const Config *c, const int *tokens, int batch,
                           int len) {
    int rows = batch * len;
    memset(a->dx, 0, (size_t)rows * c->d_model * sizeof *a->dx);
    rmsnorm_backward(a->dx, g->norm_f, a->dnormed, a->x, a->r, p->norm_f, rows, c->d_model);
    for (int l = c->n_layer - 1; l >= 0; l--)
        block_backward(&g->block[l], &p->block[l], &a->block[l], a, c, batch, len);
    embedding_backward(g->embedding, a->dx, tokens, rows, c->d_model);
}

/* 5. LOSS AND OPTIMISER ======================================================================================== */

/* Cross entropy of a row: loss = log(sum_j exp(logit_j)) - logit_target, in nats. The logits are overwritten; where
   dloss, the gradient by this loss, is not 0, by their gradient, dloss (softmax(logits) - one_hot(target)). A negative
   target has loss and gradient 0. *correct: whether no logit is larger than the target's.     logits: (vocab_size) */
static real cross_entropy(real *logits, int target, int vocab_size, double dloss, int *correct) {
    real top = logits[0], total, loss;
    for (int j = 1; j < vocab_size; j++) top = logits[j] > top ? logits[j] : top;
    *correct = target >= 0 && logits[target] == top;
    if (target < 0) {
        if (dloss != 0) memset(logits, 0, vocab_size * sizeof *logits);
        return 0;
    }
    loss = top - logits[target];
    for (int j = 0; j < vocab_size; j += LANES)
        lanes_store(logits + j, lanes_exp(lanes_load(logits + j, vocab_size - j) - top), vocab_size - j);
    total = sum_of(logits, vocab_size);
    if (dloss != 0) {
        for (int j = 0; j < vocab_size; j++) logits[j] *= (real)dloss / total;
        logits[target] -= (real)dloss;
    }
    return loss + (real)log(total);
}

/* Mean cross entropy of the head's logits over the targets >= 0; 0 if there is none. Where scale is not 0, a->dnormed
   becomes the gradient of scale times that, and g->head gets its share. n_correct: how many targets have the largest
   logit, or NULL. */
static double head_loss(Acts *a, const Params *g, const Params *p, const Config *c, const int *targets, int rows,
                        double scale, long *n_correct) {
    int n = 0, vocab_size = c->vocab_size, dim = c->d_model;
    double loss = 0;
    if (n_correct != NULL) *n_correct = 0;
    for (int r = 0; r < rows; r++) n += targets[r] >= 0;
    if (n == 0) n = 1; /* a mean over no targets: loss and gradient 0 */
    for (int first = 0; first < rows; first += HEAD_ROWS) {
        int part = min_int(HEAD_ROWS, rows - first), correct[HEAD_ROWS];
        real *normed = a->normed + (size_t)first * dim;
        linear_forward(a->logits, normed, dim, p->head, NULL, part, dim, vocab_size);
        PARALLEL_FOR
        for (int r = 0; r < part; r++) {
            real *logits = a->logits + (size_t)r * vocab_size;
            a->losses[r] = cross_entropy(logits, targets[first + r], vocab_size, scale / n, &correct[r]);
        }
        for (int r = 0; r < part; r++) {
            loss += a->losses[r];
            if (n_correct != NULL) *n_correct += correct[r];
        }
        if (scale != 0)
            linear_backward(a->dnormed + (size_t)first * dim, g->head, NULL, a->logits, normed, dim, p->head, part, dim,
                            vocab_size, 0);
    }
    return loss / n;
}

/* AdamW (decoupled weight decay), with gradients clipped to a norm first. */
typedef struct {
    double beta1, beta2, eps, weight_decay, clip; /* clip: largest norm of the whole gradient; 0: any */
} AdamW;

/* Over the first `warmup` steps in a line from 0 up to peak, then along half a cosine down to floor at the last step:
   floor + (peak - floor) (1 + cos(pi way)) / 2, where `way` goes from 0 to 1.     step: from 1 to total */
static double learning_rate(long step, long warmup, long total, double peak, double floor) {
    double way;
    if (step <= warmup) return peak * (double)step / (double)warmup;
    way = total > warmup ? (double)(step - warmup) / (double)(total - warmup) : 1;
    return floor + (peak - floor) * 0.5 * (1 + cos(3.14159265358979323846 * (way < 1 ? way : 1)));
}

/* sqrt(sum of v^2) of a flat array, summed in double, in pieces whose bounds do not depend on the threads. */
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

/* One step of AdamW over all parameters, with g the gradient, scaled down to the norm `clip` if it is longer:
   m = beta1 m + (1 - beta1) g,     v = beta2 v + (1 - beta2) g^2,
   w -= lr (m' / (sqrt(v') + eps) + weight_decay w)     with m' = m / (1 - beta1^step), v' = v / (1 - beta2^step),
   which are weighted means of the g and g^2 so far, where m and v count the zeros that they started with.
   Clears the gradients; returns their norm before clipping. */
static double adamw_step(const Tensor *tensor, int n_tensor, real *weights, real *grads, real *moment1, real *moment2,
                         size_t n_param, const AdamW *o, double lr, long step) {
    double norm = norm_of(grads, n_param);
    real clip = (real)(o->clip > 0 && norm > o->clip ? o->clip / norm : 1), rate = (real)lr, eps = (real)o->eps;
    real beta1 = (real)o->beta1, beta2 = (real)o->beta2;
    real unbias1 = (real)(1 / (1 - pow(o->beta1, (double)step)));
    real unbias2 = (real)(1 / (1 - pow(o->beta2, (double)step)));
    for (int i = 0; i < n_tensor; i++) {
        real decay = (real)(tensor[i].decay ? o->weight_decay : 0);
        real *w = weights + tensor[i].offset, *g = grads + tensor[i].offset;
        real *m = moment1 + tensor[i].offset, *v = moment2 + tensor[i].offset;
        ptrdiff_t size = (ptrdiff_t)tensor[i].size;
        PARALLEL_FOR
        for (ptrdiff_t j = 0; j < size; j++) {
            real gj = g[j] * clip;
            m[j] = beta1 * m[j] + (1 - beta1) * gj;
            v[j] = beta2 * v[j] + (1 - beta2) * gj * gj;
            w[j] -= rate * (m[j] * unbias1 / ((real)sqrt(v[j] * unbias2) + eps) + decay * w[j]);
            g[j] = 0;
        }
    }
    return norm;
}

/* 6. GENERATION ================================================================================================

   A step is model_forward with length 1: it takes the states that the tokens before have left, and leaves new ones. The
   head's logits go to a sampler, and the token that it draws is the input of the next step. First comes the sampler,
   then Backend, what a program needs of a model wherever that is, then the backend that is this file. */

/* An id that may be drawn; weight: its probability over that of the most probable one. */
typedef struct { double weight; real logit; int id; } Candidate;

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
typedef struct {
    double temperature, top_p, min_p, repetition_penalty;
    int top_k, n_vocab, banned;    /* banned: an id that is never sampled, or -1 */
    int penalty_window;
    int *history;                  /* (penalty_window) ring of the last ids; the next goes to n_history % its size */
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

/* In a heap of n candidates each, say heap[i], ranks before its children heap[2i + 1] and heap[2i + 2], so heap[0]
   ranks first. Where only heap[i] may break that rule, this lets it sink to its place. */
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

/* Moves the first in rank to heap[n - 1] and leaves a heap of n - 1; returns its weight. Taking k of n costs
   O(n + k log n), less than a sort; they end up behind the others, the first one last. */
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
    for (int i = 1; i < n; i++)
        if (c[i].logit > c[best].logit) best = i;
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
    kept = 0;
    for (int i = 0; i < n; i++) { /* the test for the largest keeps infinity - infinity out */
        double weight = c[i].logit == largest ? 1 : exp(((double)c[i].logit - largest) / s->temperature);
        total += weight;
        if (weight == 0 || weight < s->min_p) continue; /* step 6 comes before 5: what it drops is the last in rank */
        c[kept] = c[i];
        c[kept++].weight = weight;
        sum += weight;
    }
    n = kept;
    if (s->top_p < 1) {
        heap_build(c, n);
        for (sum = 0, kept = 0; kept < n && (kept == 0 || sum < s->top_p * total); kept++)
            sum += heap_take(c, n - kept);
        c += n - kept;
    }
    u = random_uniform(&s->rng) * sum;
    for (; kept > 1 && (u -= c->weight) >= 0; kept--) c++; /* the last one, should rounding leave something of u */
    sampler_accept(s, c->id);
    return c->id;
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

    /* One step of AdamW, counted from 1; clears the gradients. loss: the sum of scale times loss over the calls of
       gradient since the last step; norm: of the gradient before clipping. Either may be NULL: a GPU need not wait. */
    int (*update)(void *self, const AdamW *adamw, double lr, long step, double *loss, double *norm);

    /* Feeds the streams as forward does, and gives the mean cross entropy over the targets >= 0 and how many of them
       have the largest logit (or NULL). tokens, targets: (streams, len) */
    int (*evaluate)(void *self, const int *tokens, const int *targets, int len, double *loss, long *n_correct);

    /* Sets the number of streams, sequences that go on from call to call, and their states to zero. */
    int (*reset)(void *self, int streams);

    /* Feeds every stream len >= 1 more tokens and holds the logits of its last position for generate.
       tokens: (streams, len); logits: NULL, or (streams, vocab_size) of the last positions, or with all != 0
       (streams, len, vocab_size) */
    int (*forward)(void *self, const int *tokens, int len, real *logits, int all);

    /* n times: samples every stream's next token from the held logits and feeds it.
       out: (streams, n); sampler: (streams) */
    int (*generate)(void *self, int *out, int n, Sampler *sampler);

    /* Copies a flat array from the device to the host (to_device 0) or back. WEIGHTS, MOMENT1, MOMENT2 lie as the
       parameter table says; STATE is state_size() reals: (n_layer, streams, d_conv - 1 + d_state, d_inner), then the
       held logits, (streams, vocab_size). */
    int (*copy)(void *self, Which which, real *host, int to_device);

    void (*close)(void *self);
} Backend;

#ifdef MAMBA_CUDA /* in mamba.cu */
#ifdef __cplusplus
extern "C" {
#endif
int cuda_find(void);               /* 0: there is a GPU; 1: there is none; -1: there is one that cannot be used */
int cuda_backend(Backend *backend, const Model *m, const char *dtype, int train, int lean);
#ifdef __cplusplus
}
#endif
#endif

/* Reals in STATE: as many at every position, which is the point of a recurrent model. */
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
            return fail("out of memory: batch %d x len %d needs %.0f MiB of activations; try a smaller batch", batch,
                        len, table.size * sizeof(real) / 1048576.0);
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
    double unclipped = adamw_step(m->tensor, m->n_tensor, m->weights, cpu->grads, cpu->moment1, cpu->moment2,
                                  m->n_param, adamw, lr, step);
    if (loss != NULL) *loss = cpu->loss;
    if (norm != NULL) *norm = unclipped;
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
        cpu->next = (int *)allocate(streams + 2 * ((size_t)PIECE_ROWS + streams), sizeof(int)); /* and piece */
        if (cpu->state == NULL || cpu->next == NULL) return -1;
        cpu->piece = cpu->next + streams;
        cpu->streams = streams;
        cpu->held = cpu->state + (size_t)c->n_layer * streams * state_stride(c);
    }
    memset(cpu->state, 0, state_size(c, streams) * sizeof(real));
    return 0;
}

/* Feeds tokens (streams, len) piece by piece. loss: NULL, or targets are compared; logits: NULL, or the last or all. */
static int cpu_feed(Cpu *cpu, const int *tokens, const int *targets, int len, real *logits, int all, double *loss,
                    long *n_correct) {
    const Config *c = &cpu->model.config;
    const Params *p = &cpu->model.params;
    Acts *a = &cpu->acts;
    int streams = cpu->streams, dim = c->d_model, vocab_size = c->vocab_size;
    int step = PIECE_ROWS / streams > 1 ? PIECE_ROWS / streams : 1;
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
            linear_forward(logits + ((size_t)b * len + first) * vocab_size, a->normed + (size_t)b * part * dim, dim,
                           p->head, NULL, part, dim, vocab_size);
        if (first + part == len) /* the streams' last positions are `part` rows apart */
            linear_forward(cpu->held, a->normed + (size_t)(part - 1) * dim, (size_t)part * dim, p->head, NULL, streams,
                           dim, vocab_size);
    }
    if (logits != NULL && !all) memcpy(logits, cpu->held, (size_t)streams * vocab_size * sizeof *logits);
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
        const real *logits = cpu->held;
        for (int b = 0; b < cpu->streams; b++, logits += cpu->model.config.vocab_size)
            cpu->next[b] = out[(size_t)b * n + i] = sample(&sampler[b], logits);
        if (cpu_feed(cpu, cpu->next, NULL, 1, NULL, 0, NULL, NULL) != 0) return -1;
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

/* Opens the backend; threads: 0 for as many as the machine has; train: with gradients and moments, for reals only. */
static int cpu_backend(Backend *backend, const Model *m, int threads, int train) {
    Cpu *cpu = (Cpu *)allocate(1, sizeof *cpu);
    const Config *c = &m->config;
    Table table = {NULL, 0, 0, NULL};
    int failed;
    assert(!train || m->type == TYPE_REAL);
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
        if (!failed) params_table(&table, c, &cpu->g, TYPE_REAL);
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
    snprintf(backend->description, sizeof backend->description, "cpu, %d thread%s%s", threads, threads == 1 ? "" : "s",
             m->type == TYPE_F16 ? ", f16" : m->type == TYPE_BF16 ? ", bf16" : "");
    backend->config = *c, backend->self = cpu;
    backend->gradient = cpu_gradient, backend->update = cpu_update, backend->evaluate = cpu_evaluate;
    backend->reset = cpu_reset, backend->forward = cpu_forward, backend->generate = cpu_generate;
    backend->copy = cpu_copy, backend->close = cpu_close;
    return 0;
}

/* 7. TOKENIZER =================================================================================================

   Byte-level byte-pair encoding (BPE). A text is cut into pieces: words, numbers, punctuation, white space. A piece
   starts as its bytes, one token each; then, as long as two neighbours have a merge, the two whose merge has the lowest
   rank become one token, the leftmost first. All 256 bytes are tokens, so that any input can be encoded and the tokens
   of a text spell it.

   A vocabulary of ours is: id 0 <|endoftext|>, ids 1 to 256 the bytes 0 to 255, then the merges in the order in which
   training found them, so that id order is rank order. tokenizer.bin holds one; its integers are little-endian:

      "MAMBATOK"                      8 bytes
      version, n_vocab                2 x uint32; version is 2
      length, bytes                   1 byte, then that many, n_vocab times: the tokens in id order

   No merge is stored: the two halves of a token are what its bytes encode to with the tokens before it. That they are
   two also shows that the token can be reached and is not there twice.

   Vocabularies of other models come as tokenizer.json, which section 8 reads. They may ask for two things more: the
   text is normalised (below), and there are special tokens that are found in it only then. What they may lack are the
   13 bytes that never occur in UTF-8. */

static char *read_file(const char *path, size_t *n);                       /* these three in section 8 */
static int write_file(const char *path, const char *data, size_t n);
static char *json_utf8(char *out, long code);

#define END_OF_TEXT "<|endoftext|>"
#define N_BASE 257                 /* the end of text and the bytes; the ids from here on are merges */
#define MAX_TOKEN 255              /* bytes in a token of ours, since its length is one byte in the file */

/* Makes room for n elements in a growing array; `array` is the address of the pointer to it. */
static int reserve(void *array, size_t *room, size_t n, size_t size) {
    void *old, *larger;
    if (n <= *room) return 0;
    if ((larger = allocate(2 * n, size)) == NULL) return -1;
    memcpy(&old, array, sizeof old);
    if (old != NULL) memcpy(larger, old, *room * size);
    release(old);
    memcpy(array, &larger, sizeof larger);
    *room = 2 * n;
    return 0;
}

/* Pairs of integers, numbered from 0 in the order of arrival, in a hash table with linear probing. */
typedef struct {
    int left, right;
    int64_t value;                 /* of a merge: the token that it makes; when training: how often the pair occurs */
    int first, last;               /* when training: the places where the pair occurs; -1: none */
} Pair;

typedef struct {
    Pair *pair;                    /* (n) */
    int *slot;                     /* (n_slot) a power of two, more than n; the number + 1 of a pair, 0 if free */
    size_t n, n_slot, room;
} Pairs;

static void pairs_free(Pairs *p) { release(p->pair), release(p->slot); }

static uint64_t pair_key(int left, int right) { return (uint64_t)left << 32 | (uint32_t)right; }

/* Hashes start from where this program lies in memory, so that no file can choose keys that fall into one slot. */
static uint64_t hash_start(void) { return (uint64_t)(uintptr_t)error_message; }

/* The slot of a pair, or the free one where it belongs. */
static size_t pair_slot(const Pairs *p, int left, int right) {
    uint64_t hash = hash_start() ^ pair_key(left, right);
    size_t i = (size_t)random_bits(&hash), mask = p->n_slot - 1;
    for (i &= mask; p->slot[i] != 0; i = (i + 1) & mask) {
        const Pair *here = &p->pair[p->slot[i] - 1];
        if (here->left == left && here->right == right) break;
    }
    return i;
}

/* The number of a pair, -1 if it is not there. */
static int pair_find(const Pairs *p, int left, int right) {
    return p->n_slot == 0 ? -1 : p->slot[pair_slot(p, left, right)] - 1;
}

/* The number of a pair, which is added with value 0 if it is not there; -1 after fail(). */
static int pair_add(Pairs *p, int left, int right) {
    int number = pair_find(p, left, right);
    if (number >= 0) return number;
    if (p->n > INT_MAX / 2) return fail("more than %d pairs of tokens", INT_MAX / 2);
    if (reserve(&p->pair, &p->room, p->n + 1, sizeof *p->pair)) return -1;
    if (2 * p->n >= p->n_slot) {
        size_t n_slot = p->n_slot == 0 ? 1024 : 2 * p->n_slot;
        int *slot = (int *)allocate(n_slot, sizeof *slot);
        if (slot == NULL) return -1;
        release(p->slot);
        p->slot = slot, p->n_slot = n_slot;
        for (size_t i = 0; i < p->n; i++) slot[pair_slot(p, p->pair[i].left, p->pair[i].right)] = (int)i + 1;
    }
    number = (int)p->n++;
    p->pair[number].left = left, p->pair[number].right = right;
    p->pair[number].value = 0, p->pair[number].first = p->pair[number].last = -1;
    p->slot[pair_slot(p, left, right)] = number + 1;
    return number;
}

/* The merges that may be next, in a binary heap: the lowest rank comes out first, among equals the lowest key. */
typedef struct { int64_t rank; uint64_t key; } Ranked;

typedef struct {
    Ranked *item;                  /* (n); item[i] does not come before item[(i - 1) / 2] */
    size_t n, room;
} Heap;

static int comes_before(const Ranked *a, const Ranked *b) {
    return a->rank < b->rank || (a->rank == b->rank && a->key < b->key);
}

static int heap_push(Heap *heap, int64_t rank, uint64_t key) {
    Ranked added, *item;
    size_t i = heap->n;
    if (reserve(&heap->item, &heap->room, heap->n + 1, sizeof *item)) return -1;
    added.rank = rank, added.key = key;
    item = heap->item;
    for (; i > 0 && comes_before(&added, &item[(i - 1) / 2]); i = (i - 1) / 2) item[i] = item[(i - 1) / 2];
    item[i] = added;
    heap->n++;
    return 0;
}

static Ranked heap_pop(Heap *heap) {
    Ranked *item = heap->item, top = item[0], last = item[--heap->n];
    size_t i = 0, child;
    for (; (child = 2 * i + 1) < heap->n; i = child) {
        if (child + 1 < heap->n && comes_before(&item[child + 1], &item[child])) child++;
        if (!comes_before(&item[child], &last)) break;
        item[i] = item[child];
    }
    item[i] = last;
    return top;
}

/* Characters. A byte that is in no character of UTF-8 counts as one of its own, with a code after those of Unicode; it
   is of class OTHER, as the sign for it, U+FFFD, is. So any bytes are a text; normalising leaves such as they are. */
typedef enum { OTHER, LETTER, NUMBER, SPACE } CharClass;
enum { N_UNICODE = 0x110000, N_CHARACTER = N_UNICODE + 256, N_COMPOSITION = 2060 };

static struct {
    unsigned kind : 2;             /* CharClass */
    unsigned unstable : 1;         /* normalising may change it or what is before it */
    unsigned order : 8;            /* canonical combining class: 0 a starter, else a mark's place among others */
    unsigned parts : 12;           /* the number + 1 of its row in composition[], 0: there is none */
} character[N_CHARACTER];

/* A character and the two that it is canonically equivalent to, in the order of `last` and `first`. last: twice the
   second of the two, or 0 if there is just one; plus 1 if these are never to be composed. */
static struct Composition { uint32_t last, first, whole; } composition[N_COMPOSITION];

static const char *const *unicode_strings(void);                           /* at the end of this file */

/* Numbers are written in printable characters: the last digit has base 68, those before it base 24 and values from 68
   on. A backslash is replaced by an exclamation mark. */
static int32_t unicode_number(const char **p) {
    int32_t value = 0, digit;
    while ((digit = (**p == '!' ? '\\' : **p) - '#') >= 68) value = 24 * value + digit - 68, ++*p;
    return ++*p, 68 * value + digit;
}

static int by_parts(const void *a, const void *b) {
    const struct Composition *x = (const struct Composition *)a, *y = (const struct Composition *)b;
    if (x->last != y->last) return x->last < y->last ? -1 : 1;
    if (x->first != y->first) return x->first < y->first ? -1 : 1;
    return x->whole < y->whole ? -1 : 1;
}

/* Unpacks the table, once: runs of classes; for each order, the runs that have it; for each `last`, what ends in it. */
static void unicode_load(void) {
    const char *const *string = unicode_strings(), *p = string[0];
    int32_t code = 0, n, value, row = 0;
    if (composition[0].whole != 0) return;
    while (*p != 0)
        for (value = unicode_number(&p), code += value / 3, n = unicode_number(&p); n >= 0; n--)
            character[code++].kind = value % 3 + 1;
    for (p = string[1]; *p != 0;)
        for (value = unicode_number(&p), code = 0; (n = unicode_number(&p)) > 0;)
            for (code += n, n = unicode_number(&p); n >= 0; n--)
                character[code].order = value, character[code++].unstable = 1;
    for (int i = 2; i < 4; i++)
        for (p = string[i], value = 0; *p != 0;) {
            int32_t first = 0, whole = 0;
            for (value += unicode_number(&p); (n = unicode_number(&p)) > 0; row++) {
                whole += n, n = unicode_number(&p), first += n % 2 ? -(n / 2) - 1 : n / 2;
                composition[row].last = value, composition[row].first = first, composition[row].whole = whole;
            }
        }
    qsort(composition, N_COMPOSITION, sizeof *composition, by_parts);
    for (row = 0; row < N_COMPOSITION; row++) {
        character[composition[row].whole].parts = row + 1;
        if (composition[row].last % 2) character[composition[row].whole].unstable = 1;
        else character[composition[row].last / 2].unstable = 1;
    }
    for (code = 0x1161; code < 0x11C3; code++) character[code].unstable |= code < 0x1176 || code > 0x11A7; /* Hangul */
}

/* The character at text, and its length. n > 0. */
static uint32_t utf8_get(const char *text, size_t n, size_t *length) {
    static const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
    const unsigned char *byte = (const unsigned char *)text;
    size_t more = byte[0] < 0xC0 ? 0 : byte[0] < 0xE0 ? 1 : byte[0] < 0xF0 ? 2 : 3, i;
    uint32_t code = byte[0] & (0x7Fu >> more);
    *length = 1;
    if (byte[0] < 128) return code;
    for (i = 1; i <= more && i < n && (byte[i] & 0xC0) == 0x80; i++) code = code << 6 | (byte[i] & 0x3F);
    if (more == 0 || i <= more || code < least[more] || code >= N_UNICODE || code >> 11 == 0x1B) /* a surrogate */
        return N_UNICODE + byte[0];
    *length = i;
    return code;
}

static char *utf8_put(char *out, uint32_t code) {
    if (code < N_UNICODE) return json_utf8(out, (long)code);
    *out = (char)(code - N_UNICODE);
    return out + 1;
}

/* Special tokens, which are found in the text before it is cut into pieces. */
typedef struct {
    int *id;                       /* (n) in the order of their bytes */
    size_t n, room;
    unsigned char starts[256];     /* 1: one of them starts with this byte */
} Specials;

typedef struct {
    int n_vocab, end_of_text;      /* end_of_text: its id, or -1 */
    int normalises;                /* 1: the text is put into normal form C */
    int growth;                    /* the most ids that a byte of text becomes, on average over any text */
    char *bytes;                   /* all tokens, one after the other */
    size_t *start;                 /* (n_vocab + 1) the bytes of a token are those from start[id] to start[id + 1] */
    int byte_id[256];              /* the token of a byte, -1 if it has none */
    Pairs merge;                   /* the number of a pair is the rank of its merge */
    Specials special[2];           /* those found before normalising, and after it */
    size_t bytes_room, start_room;
    char *json;                    /* (n_json) the tokenizer.json that it came from, or NULL */
    size_t n_json;
} Tokenizer;

static void tokenizer_free(Tokenizer *t) {
    release(t->bytes), release(t->start), release(t->json);
    release(t->special[0].id), release(t->special[1].id);
    pairs_free(&t->merge);
    memset(t, 0, sizeof *t);
}

/* The bytes of a token, *n of them; none for an id outside of the vocabulary. */
static const char *tokenizer_piece(const Tokenizer *t, int id, size_t *n) {
    int known = id >= 0 && id < t->n_vocab;
    *n = known ? t->start[id + 1] - t->start[id] : 0;
    return known ? t->bytes + t->start[id] : "";
}

/* The functions that append a token return its id, or -1 after fail(). */
static int add_token(Tokenizer *t, const char *bytes, size_t n) {
    size_t used = t->n_vocab > 0 ? t->start[t->n_vocab] : 0;
    if (reserve(&t->bytes, &t->bytes_room, used + n, 1)) return -1;
    if (reserve(&t->start, &t->start_room, (size_t)t->n_vocab + 2, sizeof *t->start)) return -1;
    memcpy(t->bytes + used, bytes, n);
    t->start[t->n_vocab + 1] = used + n;
    return t->n_vocab++;
}

static int add_byte(Tokenizer *t, int byte) {
    char c = (char)byte;
    return t->byte_id[byte] = add_token(t, &c, 1);
}

static int add_merge(Tokenizer *t, int left, int right) {
    char bytes[MAX_TOKEN];
    size_t n_left, n_right;
    int rank;
    const char *piece = tokenizer_piece(t, left, &n_left);
    memcpy(bytes, piece, n_left);
    piece = tokenizer_piece(t, right, &n_right);
    assert(n_left + n_right <= MAX_TOKEN && pair_find(&t->merge, left, right) < 0);
    memcpy(bytes + n_left, piece, n_right);
    if ((rank = pair_add(&t->merge, left, right)) < 0) return -1;
    t->merge.pair[rank].value = t->n_vocab;
    return add_token(t, bytes, n_left + n_right);
}

/* Whether the bytes of token a come before those of token b. */
static int piece_precedes(const Tokenizer *t, int a, int b) {
    size_t n_a, n_b;
    const char *piece_a = tokenizer_piece(t, a, &n_a), *piece_b = tokenizer_piece(t, b, &n_b);
    int order = memcmp(piece_a, piece_b, n_a < n_b ? n_a : n_b);
    return order < 0 || (order == 0 && n_a < n_b);
}

/* Makes a token special. No other has the same bytes. */
static int add_special(Tokenizer *t, Specials *s, int id) {
    size_t low = 0, high = s->n, n;
    if (id < 0 || reserve(&s->id, &s->room, s->n + 1, sizeof *s->id)) return -1;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (piece_precedes(t, s->id[middle], id)) low = middle + 1;
        else high = middle;
    }
    memmove(s->id + low + 1, s->id + low, (s->n++ - low) * sizeof *s->id);
    s->id[low] = id;
    s->starts[(unsigned char)tokenizer_piece(t, id, &n)[0]] = 1;
    return id;
}

/* Of the special tokens from number low to high - 1, the first whose byte k is c or more. */
static size_t special_bound(const Tokenizer *t, const Specials *s, size_t low, size_t high, size_t k, int c) {
    while (low < high) {
        size_t middle = (low + high) / 2, n;
        if ((unsigned char)tokenizer_piece(t, s->id[middle], &n)[k] < c) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* The longest special token that the text starts with, -1 if there is none. n > 0. */
static int special_at(const Tokenizer *t, const Specials *s, const char *text, size_t n) {
    size_t low = 0, high = s->n, length;
    int found = -1;
    if (!s->starts[(unsigned char)text[0]]) return -1;
    for (size_t k = 0; low < high; k++) {        /* those from low to high - 1 have the first k bytes of the text */
        tokenizer_piece(t, s->id[low], &length);
        if (length == k) found = s->id[low++];
        if (k == n) break;
        low = special_bound(t, s, low, high, k, (unsigned char)text[k]);
        high = special_bound(t, s, low, high, k, (unsigned char)text[k] + 1);
    }
    return found;
}

/* How many bytes there are before the first special token. *id: the token, if there are none, otherwise -1. */
static size_t special_find(const Tokenizer *t, const Specials *s, const char *text, size_t n, int *id) {
    size_t i = 0;
    for (*id = -1; i < n; i++)
        if ((*id = special_at(t, s, text + i, n - i)) >= 0) break;
    if (i > 0) *id = -1;
    return i;
}

/* Normal form C of Unicode: what is canonically equivalent, such as e and an accent or the one letter with it, is
   written in one way. Each character is replaced by the parts that it is equivalent to, and those by theirs; marks that
   follow one starter are sorted by their order, which keeps those of one order as they are; then parts are composed.
   Only characters from a stable one up to the next stable one can act on each other. */
typedef struct {
    char *text;                    /* (n) what is done */
    uint64_t *part;                /* (n_part) bits 56 to 63: order, 21 to 55: place, 0 to 20: code */
    size_t n, room, n_part, part_room;
} Normal;

enum { CODE_MASK = (1 << 21) - 1 };

static int normal_add(Normal *normal, const char *text, size_t n) {
    if (reserve(&normal->text, &normal->room, normal->n + n + 1, 1)) return -1;
    memcpy(normal->text + normal->n, text, n);
    normal->n += n;
    return 0;
}

/* Syllables of Hangul, from U+AC00, are composed of 19 x 21 x (1 + 27) parts, of which the last may be absent. */
static int decompose(Normal *normal, uint32_t code) {
    uint32_t syllable = code - 0xAC00, row = character[code].parts;
    if (syllable < 19 * 21 * 28)
        return decompose(normal, 0x1100 + syllable / (21 * 28)) ||
               decompose(normal, 0x1161 + syllable / 28 % 21) ||
               (syllable % 28 > 0 && decompose(normal, 0x11A7 + syllable % 28));
    if (row > 0)
        return decompose(normal, composition[row - 1].first) ||
               (composition[row - 1].last > 1 && decompose(normal, composition[row - 1].last / 2));
    if (reserve(&normal->part, &normal->part_room, normal->n_part + 1, sizeof *normal->part)) return -1;
    normal->part[normal->n_part] = (uint64_t)character[code].order << 56 | (uint64_t)normal->n_part << 21 | code;
    normal->n_part++;
    return 0;
}

/* What two characters compose to, 0: nothing. */
static uint32_t composed(uint32_t first, uint32_t second) {
    struct Composition wanted = {2 * second, first, 0};
    size_t low = 0, high = N_COMPOSITION;
    if (!character[second].unstable) return 0;
    if (first - 0x1100 < 19 && second - 0x1161 < 21) return 0xAC00 + ((first - 0x1100) * 21 + second - 0x1161) * 28;
    if (first - 0xAC00 < 19 * 21 * 28 && (first - 0xAC00) % 28 == 0 && second - 0x11A8 < 27)
        return first + second - 0x11A7;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (by_parts(&composition[middle], &wanted) < 0) low = middle + 1;
        else high = middle;
    }
    wanted = composition[low < N_COMPOSITION ? low : 0];
    return wanted.last == 2 * second && wanted.first == first ? wanted.whole : 0;
}

static int by_order(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Normalises characters from a stable one, or the first, up to the next stable one, or the end. */
static int normalise_some(Normal *normal, const char *text, size_t n) {
    uint64_t *part;
    size_t length, end, n_done = 0, starter = SIZE_MAX;
    normal->n_part = 0;
    for (size_t at = 0; at < n; at += length)
        if (decompose(normal, utf8_get(text + at, n - at, &length))) return -1;
    part = normal->part;
    for (size_t i = 0; i < normal->n_part; i = end) {
        for (end = i; end < normal->n_part && part[end] >> 56 > 0; end++) { }
        if (end > i + 1) qsort(part + i, end - i, sizeof *part, by_order);
        end += end == i;
    }
    for (size_t i = 0; i < normal->n_part; i++) {
        uint32_t code = part[i] & CODE_MASK, whole = 0;
        /* What is between the two and remained must have a lower order. */
        if (starter != SIZE_MAX && (n_done == starter + 1 || part[n_done - 1] >> 56 < part[i] >> 56))
            whole = composed(part[starter] & CODE_MASK, code);
        if (whole > 0) part[starter] = whole;
        else if (part[i] >> 56 == 0) part[starter = n_done++] = part[i];
        else part[n_done++] = part[i];
    }
    for (size_t i = 0; i < n_done; i++) {
        char bytes[4];
        if (normal_add(normal, bytes, (size_t)(utf8_put(bytes, part[i] & CODE_MASK) - bytes))) return -1;
    }
    return 0;
}

/* Points *text to its normal form, if it has another one, which is then in *normal; *n becomes that one's length. */
static int normalise(Normal *normal, const char **text, size_t *n) {
    size_t stable = 0, done = 0, at = 0, length;
    normal->n = 0;
    while (at < *n) {
        if (!character[utf8_get(*text + at, *n - at, &length)].unstable) {
            stable = at, at += length;
            continue;
        }
        do at += length;
        while (at < *n && character[utf8_get(*text + at, *n - at, &length)].unstable);
        if (normal_add(normal, *text + done, stable - done) || normalise_some(normal, *text + stable, at - stable))
            return -1;
        done = stable = at;
    }
    if (done == 0) return 0;
    if (normal_add(normal, *text + done, *n - done)) return -1;
    *text = normal->text, *n = normal->n;
    return 0;
}

/* The length of the piece at text. n > 0. The pattern is GPT-NeoX's (\p{L} a letter, \p{N} a number, \s white space):
   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static size_t piece_length(const char *text, size_t n) {
    size_t start = text[0] == ' ' && n > 1, end, last, length;
    uint32_t kind;
    if (text[0] == '\'' && n > 1 && memchr("stmd", text[1], 4) != NULL) return 2;
    if (text[0] == '\'' && n > 2)
        for (const char *two = "revell"; *two != 0; two += 2)
            if (memcmp(text + 1, two, 2) == 0) return 3;
    kind = character[utf8_get(text + start, n - start, &length)].kind;
    for (last = start, end = start + length; end < n; last = end, end += length)
        if (character[utf8_get(text + end, n - end, &length)].kind != kind) break;
    /* White space leaves its last character to what follows, unless it has no other: \s+(?!\S)|\s+ */
    return kind == SPACE && end < n && last > 0 ? last : end;
}

/* A text on its way through what comes before merging: special tokens are found; what is between them is normalised;
   those that are found only then are; and what is between them is cut into pieces. */
typedef struct {
    const char *text, *plain;
    size_t n, n_plain, n_word;     /* what is left of the text; of a part that is normalised; up to a special token */
    Normal normal;
} Cutter;

static void cutter_open(Cutter *c, const char *text, size_t n) {
    memset(c, 0, sizeof *c);
    c->text = text, c->n = n;
}

static void cutter_close(Cutter *c) { release(c->normal.text), release(c->normal.part); }

/* Cuts the next piece off. Returns its length, 0 at the end of the text, -1 after fail(). *special: the special token
   that it is, or -1. */
static long next_piece(const Tokenizer *t, Cutter *c, const char **piece, int *special) {
    size_t length;
    *special = -1;
    if (c->n_plain == 0) {
        if (c->n == 0) return 0;
        length = special_find(t, &t->special[0], *piece = c->text, c->n, special);
        if (*special >= 0) tokenizer_piece(t, *special, &length);
        else c->plain = c->text, c->n_plain = length;
        c->text += length, c->n -= length;
        if (*special >= 0) return (long)length;
        if (t->normalises && normalise(&c->normal, &c->plain, &c->n_plain)) return -1;
    }
    if (c->n_word == 0) c->n_word = special_find(t, &t->special[1], c->plain, c->n_plain, special);
    if (*special >= 0) tokenizer_piece(t, *special, &length);
    else c->n_word -= length = piece_length(c->plain, c->n_word);
    *piece = c->plain, c->plain += length, c->n_plain -= length;
    return (long)length;
}

/* A piece while it is merged: a linked list of tokens, and a heap of the merges that are possible, so that n bytes take
   O(n log n) time. Item: the rank of a merge and the index of its left token. */
typedef struct {
    int id, prev, next;
    int rank;                      /* of the merge with the next token; -1: there is none, or this token is no more */
} Symbol;

typedef struct {
    Symbol *symbol;
    Heap possible;
    size_t room;
} Merger;

static void merger_free(Merger *m) { release(m->symbol), release(m->possible.item); }

/* Looks for a merge of symbol i and the next one. n: length of the piece. */
static int find_merge(const Tokenizer *t, Merger *m, int i, int n) {
    Symbol *s = &m->symbol[i];
    s->rank = s->next < n ? pair_find(&t->merge, s->id, m->symbol[s->next].id) : -1;
    return s->rank < 0 ? 0 : heap_push(&m->possible, s->rank, (uint64_t)i);
}

/* Starts the list with the tokens of the bytes, returns how many; -1 after fail(). A byte that has none, since it never
   occurs in UTF-8, becomes U+FFFD. */
static int list_bytes(const Tokenizer *t, Merger *m, const char *piece, size_t length) {
    int n = 0;
    if (length > INT_MAX / 3) return fail("a word of %zu bytes is too long", length);
    if (reserve(&m->symbol, &m->room, 3 * length, sizeof *m->symbol)) return -1;
    for (size_t i = 0; i < length; i++) {
        int id = t->byte_id[(unsigned char)piece[i]];
        const char *bytes = id < 0 ? "\xEF\xBF\xBD" : piece + i;
        for (int k = 0; k < (id < 0 ? 3 : 1); k++, n++) {
            Symbol *s = &m->symbol[n];
            s->id = t->byte_id[(unsigned char)bytes[k]], s->prev = n - 1, s->next = n + 1;
        }
    }
    return n;
}

/* Encodes one piece; returns the number of ids, or -1 after fail(). */
static long encode_piece(const Tokenizer *t, Merger *m, const char *piece, size_t length, int *ids) {
    int n = list_bytes(t, m, piece, length), i;
    long count = 0;
    for (i = 0; i < n; i++)
        if (find_merge(t, m, i, n)) return -1;
    while (m->possible.n > 0) {
        Ranked best = heap_pop(&m->possible);
        Symbol *left = &m->symbol[best.key], *right = &m->symbol[left->next];
        if (left->rank != best.rank) continue;   /* one of the two has been merged since */
        left->id = (int)t->merge.pair[best.rank].value, left->next = right->next, right->rank = -1;
        if (left->next < n) m->symbol[left->next].prev = (int)best.key;
        if (find_merge(t, m, (int)best.key, n) || (left->prev >= 0 && find_merge(t, m, left->prev, n))) return -1;
    }
    for (i = 0; i < n; i = m->symbol[i].next) ids[count++] = m->symbol[i].id;
    return n < 0 ? -1 : count;
}

/* The most ids that n bytes become. Normal form C, and U+FFFD in place of a byte, are up to three times as long. */
static size_t tokenizer_room(const Tokenizer *t, size_t n) { return t->growth * n; }

/* Encodes n bytes of any kind; a special token in the text becomes its id. ids has room for tokenizer_room(t, n).
   Returns the number of ids, or -1 after fail(). */
static long tokenizer_encode(const Tokenizer *t, const char *text, size_t n, int *ids) {
    const char *piece;
    long count = 0, more = 0, length;
    int special;
    Merger m;
    Cutter c;
    memset(&m, 0, sizeof m);
    cutter_open(&c, text, n);
    while (more >= 0 && (length = next_piece(t, &c, &piece, &special)) != 0) {
        if (special >= 0) ids[count] = special, more = 1;
        else more = length < 0 ? -1 : encode_piece(t, &m, piece, (size_t)length, ids + count);
        count += more;
    }
    cutter_close(&c);
    merger_free(&m);
    return more < 0 ? -1 : count;
}

/* The vocabulary without merges. */
static int tokenizer_bytes(Tokenizer *t) {
    int failed;
    unicode_load();
    memset(t, 0, sizeof *t);
    t->growth = 1;
    failed = add_special(t, &t->special[0], add_token(t, END_OF_TEXT, strlen(END_OF_TEXT))) < 0;
    for (int byte = 0; byte < 256 && !failed; byte++) failed = add_byte(t, byte) < 0;
    if (failed) tokenizer_free(t);
    return failed ? -1 : 0;
}

/* Training: until the vocabulary is large enough, the two neighbouring tokens that occur together most often become
   one; among equals, those with the lowest left id, then the lowest right id. Each distinct word is kept once, with its
   count, and a merge visits only the places where its pair stands, and corrects the counts there.

   No two merges make the same token. Say that l r became s, and that neighbours l' r' spell s at some later time. No
   merge has crossed the two ends of l' r', and what merges do between such ends does not depend on what lies beyond.
   So l' r' was l r at that time, and became s. (This takes merges from left to right: a a a becomes aa a everywhere.
   The places of a pair do ascend: all were entered in one pass, the one that made the newer of its tokens.) */
typedef struct {
    int id, prev, next;            /* a token in a word and the places of its neighbours; -1: none */
    int before, after;             /* the places of the same pair before and after this one; -1: none */
    int word;
} Place;

typedef struct {
    Pairs word;                    /* a tree: word w is the word left - 1, or the empty one if left is 0, and a byte */
    Pairs neighbours;              /* ids of neighbouring tokens */
    Place *place;
    size_t n_place, place_room;
    Heap frequent;                 /* rank: -count; key: pair_key. The count may have fallen since */
} Trainer;

/* Enters place i as the last one of the pair that it is the left half of. */
static int enter_place(Trainer *tr, int i) {
    Place *place = &tr->place[i];
    Pair *pair;
    int p;
    if (place->next < 0) return 0;
    if ((p = pair_add(&tr->neighbours, place->id, tr->place[place->next].id)) < 0) return -1;
    pair = &tr->neighbours.pair[p];
    place->before = pair->last, place->after = -1;
    if (pair->last >= 0) tr->place[pair->last].after = i;
    else pair->first = i;
    pair->last = i;
    pair->value += tr->word.pair[place->word].value;
    return 0;
}

static void leave_place(Trainer *tr, int i) {
    const Place *place = &tr->place[i];
    Pair *pair;
    if (place->next < 0) return;
    pair = &tr->neighbours.pair[pair_find(&tr->neighbours, place->id, tr->place[place->next].id)];
    if (place->before >= 0) tr->place[place->before].after = place->after;
    else pair->first = place->after;
    if (place->after >= 0) tr->place[place->after].before = place->before;
    else pair->last = place->before;
    pair->value -= tr->word.pair[place->word].value;
}

/* Counts the words of the text, lays out the bytes of each new one, then enters their places. */
static int count_words(const Tokenizer *t, Trainer *tr, const char *text, size_t n) {
    const char *piece;
    long length, i;
    int special;
    Cutter c;
    cutter_open(&c, text, n);
    while ((length = next_piece(t, &c, &piece, &special)) > 0) {
        int word = -1;
        if (special >= 0) continue;
        for (i = 0; i < length; i++)
            if ((word = pair_add(&tr->word, word + 1, (unsigned char)piece[i])) < 0) return -1;
        if (tr->word.pair[word].value++ > 0) continue;
        if ((size_t)length > INT_MAX - tr->n_place)
            return fail("the text has words of more than %d bytes in all", INT_MAX);
        if (reserve(&tr->place, &tr->place_room, tr->n_place + (size_t)length, sizeof *tr->place)) return -1;
        for (i = 0; i < length; i++) {
            int here = (int)tr->n_place++;
            Place *place = &tr->place[here];
            place->id = t->byte_id[(unsigned char)piece[i]], place->word = word;
            place->prev = i > 0 ? here - 1 : -1, place->next = i + 1 < length ? here + 1 : -1;
        }
    }
    for (size_t k = 0; k < tr->n_place; k++)
        if (enter_place(tr, (int)k)) return -1;
    return 0;
}

/* Makes the pairs from number p on candidates. A pair that occurs once would save nothing. */
static int push_pairs(const Tokenizer *t, Trainer *tr, size_t p) {
    size_t n_left, n_right;
    for (; p < tr->neighbours.n; p++) {
        const Pair *pair = &tr->neighbours.pair[p];
        tokenizer_piece(t, pair->left, &n_left), tokenizer_piece(t, pair->right, &n_right);
        if (pair->value < 2 || n_left + n_right > MAX_TOKEN) continue;
        if (heap_push(&tr->frequent, -pair->value, pair_key(pair->left, pair->right))) return -1;
    }
    return 0;
}

/* Takes the most frequent pair; -1 if no pair occurs twice. */
static int pop_pair(Trainer *tr) {
    while (tr->frequent.n > 0) {
        Ranked top = heap_pop(&tr->frequent);
        int p = pair_find(&tr->neighbours, (int)(top.key >> 32), (int)(top.key & INT_MAX));
        int64_t count = tr->neighbours.pair[p].value;
        if (count == -top.rank) return p;
        if (count >= 2) heap_push(&tr->frequent, -count, top.key);   /* cannot fail: a candidate has just left */
    }
    return -1;
}

/* Makes the pair p one token wherever it stands. */
static int merge_places(Trainer *tr, int p, int id) {
    int i;
    while ((i = tr->neighbours.pair[p].first) >= 0) {
        Place *left = &tr->place[i], *right = &tr->place[left->next];
        if (left->prev >= 0) leave_place(tr, left->prev);
        leave_place(tr, left->next);
        leave_place(tr, i);
        left->id = id, left->next = right->next;
        if (left->next >= 0) tr->place[left->next].prev = i;
        if ((left->prev >= 0 && enter_place(tr, left->prev)) || enter_place(tr, i)) return -1;
    }
    return 0;
}

static int learn(Tokenizer *t, Trainer *tr, const char *text, size_t n, int vocab_size) {
    size_t n_pushed = 0;
    if (vocab_size < N_BASE)
        return fail("vocab_size is %d, expected at least %d: the end of text and 256 bytes", vocab_size, N_BASE);
    if (count_words(t, tr, text, n)) return -1;
    while (t->n_vocab < vocab_size) {
        int p;
        if (push_pairs(t, tr, n_pushed)) return -1;
        n_pushed = tr->neighbours.n;
        if ((p = pop_pair(tr)) < 0)
            return fail("vocab_size is %d, but the text repeats enough for %d tokens only", vocab_size, t->n_vocab);
        if (merge_places(tr, p, t->n_vocab)) return -1;
        if (add_merge(t, tr->neighbours.pair[p].left, tr->neighbours.pair[p].right) < 0) return -1;
    }
    return 0;
}

/* Adds merges learned from the text to what tokenizer_bytes has made, until there are vocab_size tokens. The same text
   gives the same merges. On failure the tokenizer is freed. */
static int tokenizer_learn(Tokenizer *t, const char *text, size_t n, int vocab_size) {
    Trainer tr;
    int failed;
    memset(&tr, 0, sizeof tr);
    failed = learn(t, &tr, text, n, vocab_size);
    pairs_free(&tr.word), pairs_free(&tr.neighbours), release(tr.place), release(tr.frequent.item);
    if (failed) tokenizer_free(t);
    return failed;
}

/* A vocabulary of vocab_size tokens. */
static int tokenizer_train(Tokenizer *t, const char *text, size_t n, int vocab_size) {
    return tokenizer_bytes(t) ? -1 : tokenizer_learn(t, text, n, vocab_size);
}

static uint32_t get_u32(const char *p) {
    const unsigned char *byte = (const unsigned char *)p;
    return byte[0] | (uint32_t)byte[1] << 8 | (uint32_t)byte[2] << 16 | (uint32_t)byte[3] << 24;
}

static char *put_u32(char *p, uint32_t value) {
    for (int shift = 0; shift < 32; shift += 8) *p++ = (char)(value >> shift & 255);
    return p;
}

/* Appends the next token of a file. */
static int load_token(Tokenizer *t, Merger *m, const char *path, const char *bytes, size_t n) {
    int id = t->n_vocab, part[MAX_TOKEN];
    long n_part;
    if (n == 0) return fail("%s: token %d has length 0", path, id);
    if (id == 0 && (n != strlen(END_OF_TEXT) || memcmp(bytes, END_OF_TEXT, n) != 0))
        return fail("%s: token 0 is not " END_OF_TEXT, path);
    if (id == 0) return add_special(t, &t->special[0], add_token(t, bytes, n));
    if (special_at(t, &t->special[0], bytes, n) >= 0)
        return fail("%s: token %d starts with token 0, the end of text", path, id);
    if (id < N_BASE && (n > 1 || (unsigned char)bytes[0] != id - 1))
        return fail("%s: token %d is not the byte %d", path, id, id - 1);
    if (id < N_BASE) return add_byte(t, id - 1);
    if ((n_part = encode_piece(t, m, bytes, n, part)) == 2) return add_merge(t, part[0], part[1]);
    return n_part < 0    ? -1
           : n_part == 1 ? fail("%s: token %d is the same as token %d", path, id, part[0])
                         : fail("%s: token %d is not made of two tokens before it", path, id);
}

static int load_all(Tokenizer *t, Merger *m, const char *path, const char *data, size_t size) {
    uint32_t n_vocab;
    size_t at = 16, length;
    if (size < at || memcmp(data, "MAMBATOK", 8) != 0)
        return fail("%s: does not start as a tokenizer.bin or tokenizer.json", path);
    if (get_u32(data + 8) != 2) return fail("%s: version is %u, expected 2", path, (unsigned)get_u32(data + 8));
    n_vocab = get_u32(data + 12);
    if (n_vocab < N_BASE || n_vocab > INT_MAX || n_vocab > (size - at) / 2)
        return fail("%s: n_vocab is %u, expected at least %d, with room for %zu", path, (unsigned)n_vocab, N_BASE,
                    (size - at) / 2);
    t->growth = 1;
    for (; t->n_vocab < (int)n_vocab; at += 1 + length) {
        length = at < size ? (unsigned char)data[at] : 0;
        if (length >= size - at) return fail("%s: the file ends in token %d", path, t->n_vocab);
        if (load_token(t, m, path, data + at + 1, length) < 0) return -1;
    }
    return at == size ? 0 : fail("%s: %zu bytes follow the last token", path, size - at);
}

static int tokenizer_json_load(Tokenizer *t, const char *path, char *text, size_t n); /* in section 8 */

/* Loads a tokenizer.bin or, if it starts as one, a tokenizer.json. */
static int tokenizer_load(Tokenizer *t, const char *path) {
    size_t size;
    char *data = read_file(path, &size);
    Merger m;
    int failed;
    memset(t, 0, sizeof *t);
    if (data == NULL) return -1;
    unicode_load();
    if (data[strspn(data, " \t\r\n")] == '{') {
        failed = tokenizer_json_load(t, path, data, size);
    } else {
        memset(&m, 0, sizeof m);
        failed = load_all(t, &m, path, data, size);
        merger_free(&m);
        release(data);
    }
    if (failed) tokenizer_free(t);
    return failed ? fail_in(path) : 0;
}

/* Saves a vocabulary of ours. */
static int tokenizer_save(const Tokenizer *t, const char *path) {
    size_t size = 16 + (size_t)t->n_vocab + t->start[t->n_vocab], n;
    char *data = (char *)allocate(size, 1), *at;
    int failed;
    if (data == NULL) return fail_in(path);
    memcpy(data, "MAMBATOK", 8);
    at = put_u32(put_u32(data + 8, 2), (uint32_t)t->n_vocab);
    for (int id = 0; id < t->n_vocab; id++, at += n) {
        const char *piece = tokenizer_piece(t, id, &n);
        *at++ = (char)n;
        memcpy(at, piece, n);
    }
    failed = write_file(path, data, size);
    release(data);
    return failed;
}

/* 8. FILES =====================================================================================================

   A checkpoint is a directory that Transformers loads too: config.json, the shape of the model, and model.safetensors,
   its weights, or shards of them that model.safetensors.index.json lists. No file is trusted: what it says of lengths
   is compared with the config and with the file's own length before memory is allocated for it. */

/* What is not standard C: files over 2 GiB, directories, writing through to the disk, replacing a file. */
#include <sys/stat.h>
#ifdef _WIN32
#include <direct.h>
#include <io.h>
#ifdef __cplusplus
extern "C"
#endif
__declspec(dllimport) int __stdcall MoveFileExA(const char *from, const char *to, unsigned long flags);
#define rename_file(from, to) (MoveFileExA(from, to, 1 | 8) ? 0 : (errno = EACCES, -1))
#define sync_directory(path) 0 /* the 8 says: through to the disk */
#define make_directory(path) _mkdir(path)
#define sync_file(file) _commit(_fileno(file))
#define seek_file _fseeki64
#define tell_file _ftelli64
#else
#include <fcntl.h>
#include <unistd.h>
#define rename_file(from, to) rename(from, to)
#define make_directory(path) mkdir(path, 0777)
#define sync_file(file) fsync(fileno(file))
#define seek_file fseeko
#define tell_file ftello
#endif

enum { PATH_SIZE = 4096, NAME_SIZE = 128 };

static int join_path(char path[PATH_SIZE], const char *dir, const char *name) {
    int n = snprintf(path, PATH_SIZE, "%s/%s", dir, name);
    return n >= 0 && n < PATH_SIZE ? 0 : fail("%.200s...: the path is too long", dir);
}

/* Whether there is something else than a file: a directory, a device that must not be replaced, a pipe to wait for. */
static int is_no_file(const char *path) {
    struct stat status;
    return stat(path, &status) == 0 && (status.st_mode & S_IFMT) != S_IFREG;
}

/* Opens a file for reading and tells its length. NULL after fail(). */
static FILE *open_file(const char *path, uint64_t *size) {
    int no_file = is_no_file(path);
    FILE *file = no_file ? NULL : fopen(path, "rb");
    int64_t end = -1;
    if (file != NULL && seek_file(file, 0, SEEK_END) == 0) end = (int64_t)tell_file(file);
    *size = (uint64_t)end;
    if (end >= 0 && seek_file(file, 0, SEEK_SET) == 0) return file;
    fail("%s: cannot read: %s", path, no_file ? "not a regular file" : strerror(errno));
    if (file != NULL) fclose(file);
    return NULL;
}

static int read_bytes(FILE *file, const char *path, void *data, size_t n) {
    if (fread(data, 1, n, file) == n) return 0;
    return fail("%s: cannot read: %s", path, ferror(file) ? strerror(errno) : "the file is truncated");
}

/* The next n bytes and a NUL; the caller releases them. NULL after fail(). */
static char *read_text(FILE *file, const char *path, uint64_t n) {
    char *text = n < SIZE_MAX ? (char *)allocate((size_t)n + 1, 1) : NULL;
    if (text == NULL) fail("%s: no memory for %.0f bytes", path, (double)n);
    if (text == NULL || read_bytes(file, path, text, (size_t)n) == 0) return text;
    release(text);
    return NULL;
}

/* The whole file and a NUL; *n does not count the NUL. */
static char *read_file(const char *path, size_t *n) {
    uint64_t size;
    FILE *file = open_file(path, &size);
    char *text = file != NULL ? read_text(file, path, size) : NULL;
    *n = (size_t)size;
    if (file != NULL) fclose(file);
    return text;
}

#ifndef _WIN32
/* Writes through that a file of this path has got its name. */
static int sync_directory(const char *path) {
    char dir[PATH_SIZE];
    const char *slash = strrchr(path, '/');
    int n = slash != NULL ? (int)(slash - path) + 1 : 1, file, failed;
    snprintf(dir, sizeof dir, "%.*s", n, slash != NULL ? path : ".");
    if ((file = open(dir, O_RDONLY)) < 0) return 0; /* a directory that only lets write; its turn comes */
    failed = fsync(file) != 0 && errno != EINVAL && errno != ENOTSUP; /* of file systems that have no such thing */
    close(file);
    return failed ? -1 : 0;
}
#endif

/* A file in the making. It has a temporary name beside its own, and gets that when it is complete and on the disk. */
typedef struct {
    FILE *file;
    int error;                     /* errno of the first failure, which output_close reports */
    char path[PATH_SIZE], temporary[PATH_SIZE + 4];
} Output;

static int output_open(Output *out, const char *path) {
    int n = snprintf(out->path, PATH_SIZE, "%s", path);
    if (n < 0 || n >= PATH_SIZE) return fail("%.200s...: the path is too long", path);
    if (is_no_file(path)) return fail("%s: cannot write: not a regular file", path);
    snprintf(out->temporary, sizeof out->temporary, "%s.tmp", out->path);
    remove(out->temporary); /* what a killed run has left, or a link that leads elsewhere */
    out->error = 0;
    out->file = fopen(out->temporary, "wb");
    return out->file != NULL ? 0 : fail("%s: cannot write: %s", path, strerror(errno));
}

static void output_write(Output *out, const void *data, size_t n) {
    if (out->error == 0 && fwrite(data, 1, n, out->file) != n) out->error = errno;
}

static int output_close(Output *out) {
    if (out->error == 0 && (fflush(out->file) != 0 || sync_file(out->file) != 0)) out->error = errno;
    if (fclose(out->file) != 0 && out->error == 0) out->error = errno;
    if (out->error == 0 && rename_file(out->temporary, out->path) != 0) out->error = errno;
    if (out->error == 0 && sync_directory(out->path) != 0) out->error = errno;
    if (out->error == 0) return 0;
    remove(out->temporary);
    return fail("%s: cannot write: %s", out->path, strerror(out->error));
}

static int write_file(const char *path, const char *data, size_t n) {
    Output out;
    if (output_open(&out, path) != 0) return -1;
    output_write(&out, data, n);
    return output_close(&out);
}

/* Appends to a text that ends before `end` at the latest; returns its new end. */
#ifdef __GNUC__
__attribute__((format(printf, 3, 4)))
#endif
static char *append(char *text, const char *end, const char *format, ...) {
    va_list args;
    int n;
    va_start(args, format);
    n = vsnprintf(text, (size_t)(end - text), format, args);
    va_end(args);
    assert(n >= 0 && n < end - text);
    return text + n;
}

/* JSON as in RFC 8259, and NaN, Infinity and -Infinity as Python writes them. A text becomes an array of nodes in the
   order of the text, at most 12 bytes for one of the text. The first character of a node is its type: { [ " t f n, or
   that of a number. Children of an object are key, value, key, value; of equal keys the last counts, as in Python.
   Strings are decoded in place and end in a NUL, for which reason U+0000 is refused. */
typedef struct {
    uint32_t begin, length;        /* in the text; for a string: its opening quote, and its length when decoded */
    uint32_t next;                 /* sibling; 0: none, since 0 is the root */
} JsonNode;

typedef struct {
    char *text;
    JsonNode *node;
    uint32_t n_node;
} Json;

enum { JSON_DEPTH = 64 };

/* The four hexadecimal digits of an escape; 0, which is refused anyway, if there are fewer. */
static long json_hex(const char *s) {
    char digits[5] = {0};
    if (strspn(s, "0123456789abcdefABCDEF") < 4) return 0;
    memcpy(digits, s, 4);
    return strtol(digits, NULL, 16);
}

static char *json_utf8(char *out, long code) {
    static const int first[] = {0, 0xc0, 0xe0, 0xf0};
    int more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3; /* bytes after the first, 6 bits in each */
    *out++ = (char)(first[more] | code >> 6 * more);
    while (more-- > 0) *out++ = (char)(0x80 | (code >> 6 * more & 63));
    return out;
}

/* Decodes a string in place (it never grows), from its first character. Returns what follows it, NULL if it is bad. */
static char *json_decode(char *in, uint32_t *length) {
    static const char escape[] = "\"\\/bfnrt", meaning[] = "\"\\/\b\f\n\r\t";
    char *start = in, *out = in;
    while (*in != '"') {
        const char *e;
        if ((unsigned char)*in < 32) return NULL; /* the NUL after the text, too */
        if (*in != '\\') {
            *out++ = *in++;
        } else if (in[1] == 'u') {
            long code = json_hex(in + 2), low;
            if (code == 0) return NULL;
            in += 6;
            if (code >> 10 == 0x36 && in[0] == '\\' && in[1] == 'u') { /* U+D800: the first of a pair of surrogates */
                low = json_hex(in + 2);
                if (low >> 10 == 0x37) code = 0x10000 + ((code & 0x3ff) << 10) + (low & 0x3ff), in += 6;
            }
            if (code >> 11 == 0x1b) return NULL; /* one without the other */
            out = json_utf8(out, code);
        } else {
            if (in[1] == 0 || (e = strchr(escape, in[1])) == NULL) return NULL;
            *out++ = meaning[e - escape];
            in += 2;
        }
    }
    *out = 0;
    *length = (uint32_t)(out - start);
    return in + 1;
}

/* Length of the number, or true, false or null, that s starts with; 0: of none. */
static uint32_t json_scalar(const char *s) {
    static const char *const word[] = {"true", "false", "null", "NaN", "Infinity", "-Infinity"};
    size_t n = strspn(s, "0123456789+-.eE"), minus = *s == '-';
    const char *point = (const char *)memchr(s, '.', n);
    char *end;
    for (size_t i = 0; i < sizeof word / sizeof *word; i++)
        if (strncmp(s, word[i], strlen(word[i])) == 0) return (uint32_t)strlen(word[i]);
    if (s[minus] < '0' || s[minus] > '9' || (s[minus] == '0' && s[minus + 1] >= '0' && s[minus + 1] <= '9')) return 0;
    if (point != NULL && (point[1] < '0' || point[1] > '9')) return 0;
    strtod(s, &end); /* the rest of the grammar is the same */
    return end == s + n ? (uint32_t)n : 0;
}

static char *json_skip(char *p) { return p + strspn(p, " \t\r\n"); }

static char json_type(const Json *json, uint32_t i) { return json->text[json->node[i].begin]; }

/* Adds the value at p and all in it; returns what follows it, or NULL. */
static char *json_value(Json *json, char *p, int depth) {
    uint32_t index = json->n_node++, last = 0;
    JsonNode *node = &json->node[index];
    int object = *p == '{', key = object;
    char close = (char)(*p + 2); /* in ASCII: from { to }, from [ to ] */
    node->begin = (uint32_t)(p - json->text);
    if (*p == '"') return json_decode(p + 1, &node->length);
    if (*p != '{' && *p != '[') {
        node->length = json_scalar(p);
        return node->length > 0 ? p + node->length : NULL;
    }
    if (depth == JSON_DEPTH) return NULL;
    p = json_skip(p + 1);
    while (*p != close || last != 0) {
        if (key && *p != '"') return NULL;
        if (last != 0) json->node[last].next = json->n_node;
        last = json->n_node;
        if ((p = json_value(json, p, depth + 1)) == NULL) return NULL;
        p = json_skip(p);
        if (*p != (key ? ':' : ',')) break;
        p = json_skip(p + 1);
        key = object && !key;
    }
    if (*p != close || (last != 0 && key)) return NULL;
    node->length = (uint32_t)(++p - json->text) - node->begin;
    return p;
}

static void json_free(Json *json) {
    release(json->text);
    release(json->node);
}

/* Parses n bytes with a NUL after them, which then belong to *json. After fail() there is nothing to free. */
static int json_parse(Json *json, char *text, size_t n, const char *file) {
    size_t bound = 1; /* every node but the root follows one of these characters */
    char *end = NULL;
    for (size_t i = 0; i < n; i++) bound += text[i] == '{' || text[i] == '[' || text[i] == ',' || text[i] == ':';
    json->text = text, json->n_node = 0;
    json->node = n < UINT32_MAX ? (JsonNode *)allocate(bound, sizeof(JsonNode)) : NULL;
    if (json->node == NULL) fail("%s: no memory for %zu bytes of JSON", file, n);
    else if ((end = json_value(json, json_skip(text), 0)) == NULL || json_skip(end) != text + n) {
        uint32_t where = end != NULL ? (uint32_t)(end - text) : json->node[json->n_node - 1].begin;
        fail("%s: not JSON, or nested deeper than %d: see byte %u", file, JSON_DEPTH, (unsigned)where);
        end = NULL;
    }
    if (end == NULL) json_free(json);
    return end != NULL ? 0 : -1;
}

/* First child of an object or array, 0 if it is empty. The next is node[].next of it; the value of a key k is k + 1. */
static uint32_t json_first(const Json *json, uint32_t i) {
    const JsonNode *node = &json->node[i];
    return i + 1 < json->n_node && node[1].begin < node->begin + node->length ? i + 1 : 0;
}

/* The value under a key; 0: there is none, or node i is no object. To visit all keys, follow the siblings instead. */
static uint32_t json_find(const Json *json, uint32_t i, const char *key) {
    uint32_t found = 0;
    if (json_type(json, i) != '{') return 0;
    for (uint32_t k = json_first(json, i); k != 0; k = json->node[k + 1].next)
        if (strcmp(json->text + json->node[k].begin + 1, key) == 0) found = k + 1;
    return found;
}

/* NULL if node i is not a string. */
static const char *json_string(const Json *json, uint32_t i) {
    return json_type(json, i) == '"' ? json->text + json->node[i].begin + 1 : NULL;
}

/* NaN if node i is not a number. */
static double json_number(const Json *json, uint32_t i) {
    return strchr("-0123456789NI", json_type(json, i)) != NULL ? strtod(json->text + json->node[i].begin, NULL) : NAN;
}

/* What a message quotes of a node; use with %.*s. */
#define JSON_EXCERPT(json, i) (int)((json)->node[i].length < 60 ? (json)->node[i].length : 60), \
    (json)->text + (json)->node[i].begin + (json_type(json, i) == '"')

static int config_field(const Json *json, const char *file, const Field *f) {
    uint32_t i = json_find(json, 0, f->name);
    char type = json_type(json, i);
    double number = json_number(json, i);
    *f->value = f->initial;
    if (i == 0) return 0;
    if (f->low == 0 && (type == 't' || type == 'f')) *f->value = type == 't';
    else if (f->low == -1 && type == 'n') *f->value = -1;
    else if (f->low != 0 && fabs(number) <= INT_MAX && number == floor(number)) *f->value = (int)number;
    else
        return fail("%s: %s is %.*s, expected %s", file, f->name, JSON_EXCERPT(json, i),
                    f->low == 0 ? "true or false" : "an integer");
    return 0;
}

/* A model with constants has a type of its own, so that no other reader takes it for a Mamba. */
static const char *const model_type[] = {"mamba", "mamba_with_constants"};
static const char *const architecture[] = {"MambaForCausalLM", "MambaWithConstants"};

static int config_parse(Config *c, const Json *json, const char *file) {
    const char *type = json_string(json, json_find(json, 0, "model_type")), *rank, *act;
    uint32_t i;
    Field field[N_FIELD];
    int n_field = N_MAMBA_FIELD;
    if (json_type(json, 0) != '{') return fail("%s: not a JSON object", file);
    if (type == NULL) return fail("%s: model_type is missing, expected \"mamba\"", file);
    if (strcmp(type, model_type[1]) == 0) n_field = N_FIELD;
    else if (strcmp(type, model_type[0]) != 0)
        return fail("%s: model_type is \"%.60s\", expected \"mamba\"", file, type);
    config_fields(field, c);
    for (Field *f = field; f < field + n_field; f++) {
        rank = f->value == &c->dt_rank ? json_string(json, json_find(json, 0, f->name)) : NULL;
        if (f->value == &c->dt_rank) f->initial = c->d_model / 16 + (c->d_model % 16 > 0);
        if (f->value == &c->d_inner) /* wraps only where config_check refuses the factors */
            f->initial = (int)((unsigned)c->expand * (unsigned)c->d_model);
        if (rank != NULL && strcmp(rank, "auto") == 0) *f->value = f->initial;
        else if (config_field(json, file, f) != 0) return -1;
    }
    i = json_find(json, 0, "layer_norm_epsilon");
    c->norm_eps = i != 0 ? json_number(json, i) : 1e-5;
    i = json_find(json, 0, "hidden_act");
    act = json_string(json, i);
    if (i != 0 && (act == NULL || strcmp(act, "silu") != 0)) return fail("%s: hidden_act is not \"silu\"", file);
    return config_check(c, file);
}

static int config_load(Config *c, const char *dir) {
    char path[PATH_SIZE], *text;
    size_t n;
    Json json;
    int status;
    memset(c, 0, sizeof *c);
    if (join_path(path, dir, "config.json") != 0 || (text = read_file(path, &n)) == NULL) return -1;
    if (json_parse(&json, text, n, path) != 0) return -1;
    status = config_parse(c, &json, path);
    json_free(&json);
    return status;
}

static int config_save(const Config *c, const char *dir) {
    char path[PATH_SIZE], text[2048], eps[32], *p = text, *end = text + sizeof text;
    Config copy = *c;
    Field field[N_FIELD];
    int digits = 0, own = has_constants(c);
    do snprintf(eps, sizeof eps, "%.*g", ++digits, c->norm_eps); /* no more digits than it takes */
    while (digits < 17 && strtod(eps, NULL) != c->norm_eps);
    p = append(p, end, "{\n  \"architectures\": [\"%s\"],\n  \"model_type\": \"%s\",\n"
                       "  \"torch_dtype\": \"%s\",\n  \"hidden_act\": \"silu\",\n  \"residual_in_fp32\": true,\n"
                       "  \"layer_norm_epsilon\": %s", architecture[own], model_type[own],
               sizeof(real) == 8 ? "float64" : "float32", eps);
    config_fields(field, &copy);
    for (const Field *f = field; f < field + (own ? N_FIELD : N_MAMBA_FIELD); f++) {
        p = append(p, end, ",\n  \"%s\": ", f->name);
        if (f->low == 0) p = append(p, end, "%s", *f->value ? "true" : "false");
        else if (*f->value == -1) p = append(p, end, "null");
        else p = append(p, end, "%d", *f->value);
    }
    p = append(p, end, "\n}\n");
    return join_path(path, dir, "config.json") == 0 ? write_file(path, text, (size_t)(p - text)) : -1;
}

/* safetensors: 8 bytes, the length N of the header, little-endian; N bytes of JSON; the data. The header maps a name to
   {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, where offsets count from the end of the header, and
   "__metadata__" to an object of strings. The tensors fill the data to the end of the file, without a hole. */

/* Tensors of a file: the rows of a table and the flat array they lie in. */
typedef struct {
    const char *prefix;            /* before the names: "", or what tells moments from weights */
    const Tensor *row;
    int n_row, optional;           /* optional: the file may lack these */
    real *base;                    /* NULL: they are not read, but it is checked that they are there */
} Group;

/* A string that goes with the tensors. When read, a value that is not empty is required, an empty one is filled in. */
typedef struct { const char *key; char value[NAME_SIZE]; } Metadata;

/* A tensor that is wanted, and where it was found. */
typedef struct {
    char name[NAME_SIZE];
    const Group *group;
    const Tensor *row;
    int type, file;                /* which file has it; -1: none yet */
    uint64_t begin;                /* in the data of the file */
} Entry;

typedef struct {
    FILE *file;
    char path[PATH_SIZE];
    uint64_t start, size, used;    /* of the data: its place in the file, its bytes, how many of them are tensors */
} Source;

/* Tensors that one or more files together hold. */
typedef struct {
    Entry *entry;                  /* (n_entry) by name, until they are found */
    size_t n_entry;
    Source *source;                /* (n_source) */
    int n_source;
} Archive;

enum { MAX_SOURCE = 128 };

static int by_name(const void *a, const void *b) { return strcmp(((const Entry *)a)->name, ((const Entry *)b)->name); }

static int by_place(const void *a, const void *b) {
    const Entry *x = (const Entry *)a, *y = (const Entry *)b;
    if (x->file != y->file) return x->file < y->file ? -1 : 1;
    return x->begin < y->begin ? -1 : x->begin > y->begin ? 1 : by_name(a, b);
}

static void archive_close(Archive *a) {
    for (int i = 0; i < a->n_source; i++) fclose(a->source[i].file);
    release(a->source);
    release(a->entry);
}

/* Lists the tensors of the groups. After fail() there is nothing to close. */
static int archive_list(Archive *a, const Group *group, int n_group, const char *path) {
    const uint16_t one = 1;
    Entry *e;
    memset(a, 0, sizeof *a);
    if (*(const char *)&one != 1) return fail("%s: its bytes are little-endian, this machine is not", path);
    for (int g = 0; g < n_group; g++) a->n_entry += (size_t)group[g].n_row;
    a->entry = e = (Entry *)allocate(a->n_entry, sizeof *a->entry);
    a->source = (Source *)allocate(MAX_SOURCE, sizeof *a->source);
    if (a->entry == NULL || a->source == NULL) {
        archive_close(a);
        return -1;
    }
    for (const Group *g = group; g < group + n_group; g++) {
        for (const Tensor *row = g->row; row < g->row + g->n_row; row++, e++) {
            snprintf(e->name, sizeof e->name, "%s%s", g->prefix, row->name);
            e->group = g, e->row = row, e->file = -1;
        }
    }
    qsort(a->entry, a->n_entry, sizeof *a->entry, by_name);
    return 0;
}

static void shape_text(char text[48], const Tensor *row) {
    char *end = text + 48;
    text = append(text, end, "[");
    for (int i = 0; i < row->n_dim; i++) text = append(text, end, i == 0 ? "%d" : ",%d", row->shape[i]);
    append(text, end, "]");
}

/* Whether node i is an array of n sizes or offsets, which *number becomes. */
static int json_array(const Json *json, uint32_t i, double *number, int n) {
    int k = 0;
    for (i = json_first(json, i); i != 0; i = json->node[i].next, k++) {
        double value = json_number(json, i);
        if (k == n || !(value >= 0 && value < 9007199254740992.0 && value == floor(value))) return 0;
        number[k] = value;
    }
    return k == n;
}

/* Notes where the tensor is that a header has under a key. Its shape and its length are those of the row, or it is
   refused, so that no extent of a file is ever multiplied. */
static int archive_note(Archive *a, const Json *json, uint32_t key) {
    const Source *s = &a->source[a->n_source - 1];
    const char *name = json_string(json, key), *type = json_string(json, json_find(json, key + 1, "dtype"));
    uint32_t shape = json_find(json, key + 1, "shape"), offsets = json_find(json, key + 1, "data_offsets");
    double extent[3], range[2];
    char expected[48];
    Entry wanted, *e;
    size_t bytes;
    int same;
    if (type == NULL || json_type(json, shape) != '[' || json_type(json, offsets) != '[')
        return fail("%s: tensor %.100s lacks a dtype, shape or data_offsets", s->path, name);
    if (strcmp(name, "backbone.embedding.weight") == 0) name = "backbone.embeddings.weight"; /* the first release */
    snprintf(wanted.name, NAME_SIZE, "%s", name);
    e = (Entry *)bsearch(&wanted, a->entry, a->n_entry, sizeof wanted, by_name);
    if (e == NULL || strcmp(e->name, name) != 0)
        return fail("%s: unexpected tensor %.100s of shape %.*s", s->path, name, JSON_EXCERPT(json, shape));
    if (e->file >= 0) return fail("%s: tensor %s occurs twice", s->path, name);
    same = json_array(json, shape, extent, e->row->n_dim);
    for (int i = 0; same && i < e->row->n_dim; i++) same = extent[i] == e->row->shape[i];
    shape_text(expected, e->row);
    if (!same)
        return fail("%s: tensor %s has shape %.*s, expected %s", s->path, name, JSON_EXCERPT(json, shape), expected);
    for (e->type = 0; e->type < N_TYPE && strcmp(type, type_name[e->type]) != 0;) e->type++;
    if (e->type == N_TYPE)
        return fail("%s: tensor %s has dtype %.20s, expected F32, F16, BF16 or F64", s->path, name, type);
    bytes = e->row->size * type_size[e->type];
    if (!json_array(json, offsets, range, 2) || range[1] - range[0] != (double)bytes)
        return fail("%s: tensor %s has data_offsets %.*s, expected %zu bytes", s->path, name,
                    JSON_EXCERPT(json, offsets), bytes);
    e->begin = (uint64_t)range[0], e->file = a->n_source - 1;
    return 0;
}

static int archive_header(Archive *a, const Json *json, Metadata *metadata, int n_metadata) {
    const char *path = a->source[a->n_source - 1].path, *value;
    uint32_t strings = json_find(json, 0, "__metadata__"), i;
    if (json_type(json, 0) != '{') return fail("%s: the header is not a JSON object", path);
    for (i = strings != 0 ? json_first(json, strings) : 0; i != 0; i = json->node[i + 1].next)
        if (json_type(json, strings) != '{' || json_type(json, i + 1) != '"')
            return fail("%s: __metadata__ is not an object of strings", path);
    for (int k = 0; k < n_metadata; k++) {
        Metadata *m = &metadata[k];
        i = strings != 0 ? json_find(json, strings, m->key) : 0;
        value = json_string(json, i);
        if (value == NULL || strlen(value) >= sizeof m->value)
            return fail("%s: __metadata__ has no valid %s", path, m->key);
        if (m->value[0] != 0 && strcmp(value, m->value) != 0)
            return fail("%s: %s is \"%s\", expected \"%s\"", path, m->key, value, m->value);
        snprintf(m->value, sizeof m->value, "%s", value);
    }
    for (i = json_first(json, 0); i != 0; i = json->node[i + 1].next)
        if (strcmp(json_string(json, i), "__metadata__") != 0 && archive_note(a, json, i) != 0) return -1;
    return 0;
}

/* Adds a file: opens it and compares its header with the list. */
static int archive_add(Archive *a, const char *path, Metadata *metadata, int n_metadata) {
    Source *s = &a->source[a->n_source];
    uint64_t size, length;
    char *text;
    Json json;
    int status;
    if ((s->file = open_file(path, &size)) == NULL) return -1;
    a->n_source++;
    snprintf(s->path, PATH_SIZE, "%s", path);
    if (read_bytes(s->file, path, &length, 8) != 0) return -1;
    if (size < 8 || length > size - 8 || length > 100000000)
        return fail("%s: a header of %llu bytes in a file of %llu (limit: 100000000)", path, (unsigned long long)length,
                    (unsigned long long)size);
    s->start = 8 + length, s->size = size - s->start;
    text = read_text(s->file, path, length);
    if (text == NULL || json_parse(&json, text, (size_t)length, path) != 0) return -1;
    status = archive_header(a, &json, metadata, n_metadata);
    json_free(&json);
    return status;
}

/* With all files added: nothing is missing, and the tensors fill each file without a hole or an overlap. */
static int archive_check(Archive *a, const char *where) {
    char expected[48];
    qsort(a->entry, a->n_entry, sizeof *a->entry, by_place);
    for (const Entry *e = a->entry; e < a->entry + a->n_entry; e++) {
        Source *s = &a->source[e->file < 0 ? 0 : e->file];
        shape_text(expected, e->row);
        if (e->file < 0 && e->group->optional) continue;
        if (e->file < 0) return fail("%s: tensor %s of shape %s is missing", where, e->name, expected);
        if (e->begin != s->used)
            return fail("%s: tensor %s begins at byte %llu of the data, expected %llu", s->path, e->name,
                        (unsigned long long)e->begin, (unsigned long long)s->used);
        s->used += e->row->size * type_size[e->type];
    }
    for (const Source *s = a->source; s < a->source + a->n_source; s++)
        if (s->used != s->size)
            return fail("%s: %llu bytes of data, but tensors of %llu", s->path, (unsigned long long)s->size,
                        (unsigned long long)s->used);
    return 0;
}

/* n numbers of a file as reals. They may lie at any address, so each is copied before it is a number. */
static void convert(real *out, const unsigned char *in, size_t n, int type) {
    for (size_t i = 0; i < n; i++) {
        double full;
        float single;
        if (type == TYPE_F64) memcpy(&full, in + 8 * i, 8), out[i] = (real)full;
        else if (type == TYPE_F32) memcpy(&single, in + 4 * i, 4), out[i] = (real)single;
        else if (i % LANES == 0) lanes_store(out + i, half_load(in + 2 * i, type, (int)(n - i)), (int)(n - i));
    }
}

/* Reals as BF16, rounded to the nearest, or of two to the even one. */
static void round_to_bf16(uint16_t *out, const real *in, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float value = (float)in[i];
        uint32_t bits;
        memcpy(&bits, &value, 4);
        if (isnan(value)) bits |= 1 << 22; /* rounded, it could become infinity */
        else bits += 0x7fff + (bits >> 16 & 1);
        out[i] = (uint16_t)(bits >> 16);
    }
}

/* Reads the tensors in the order of the files, straight to their places where they keep their type. */
static int archive_read(const Archive *a) {
    unsigned char buffer[1 << 14];
    real piece[sizeof buffer / 2];
    for (const Entry *e = a->entry; e < a->entry + a->n_entry; e++) {
        const Source *s = &a->source[e->file < 0 ? 0 : e->file];
        size_t most = sizeof buffer / type_size[e->type], n;
        real *out;
        if (e->file < 0 || e->group->base == NULL) continue;
        out = e->group->base + e->row->offset;
        if (seek_file(s->file, (int64_t)(s->start + e->begin), SEEK_SET) != 0)
            return fail("%s: cannot read: %s", s->path, strerror(errno));
        if (e->type == e->row->type) {
            if (read_bytes(s->file, s->path, out, e->row->size * type_size[e->type]) != 0) return -1;
            continue;
        }
        for (size_t done = 0; done < e->row->size; done += n) {
            n = e->row->size - done < most ? e->row->size - done : most;
            if (read_bytes(s->file, s->path, buffer, n * type_size[e->type]) != 0) return -1;
            convert(e->row->type == TYPE_REAL ? out + done : piece, buffer, n, e->type);
            if (e->row->type != TYPE_REAL) round_to_bf16((uint16_t *)out + done, piece, n);
        }
    }
    return 0;
}

/* Reads a file that has exactly the tensors of the groups, and the metadata. After fail() some may have been read. */
static int tensors_load(const char *path, const Group *group, int n_group, Metadata *metadata, int n_metadata) {
    Archive a;
    int status;
    if (archive_list(&a, group, n_group, path) != 0) return fail_in(path);
    status = archive_add(&a, path, metadata, n_metadata);
    if (status == 0) status = archive_check(&a, path);
    if (status == 0) status = archive_read(&a);
    archive_close(&a);
    return status;
}

/* Appends a JSON string, which takes at most 6 bytes for one. */
static char *append_string(char *out, const char *end, const char *string) {
    out = append(out, end, "\"");
    for (; *string != 0; string++) {
        int quoted = *string == '"' || *string == '\\', control = (unsigned char)*string < 32;
        out = append(out, end, control ? "\\u%04x" : quoted ? "\\%c" : "%c", *string);
    }
    return append(out, end, "\"");
}

/* Writes the tensors of the groups and the metadata. All have one dtype, so that their order is that of their names. */
static int tensors_save(const char *path, const Group *group, int n_group, const Metadata *metadata, int n_metadata) {
    Archive a;
    Output out;
    uint64_t begin = 0, length;
    char *header, *p, *end, shape[48];
    size_t room;
    if (archive_list(&a, group, n_group, path) != 0) return fail_in(path);
    room = (a.n_entry + (size_t)n_metadata + 1) * 16 * NAME_SIZE;
    header = p = (char *)allocate(room, 1);
    if (header == NULL || output_open(&out, path) != 0) {
        release(header);
        archive_close(&a);
        return fail_in(path);
    }
    end = header + room;
    p = append(p, end, "{\"__metadata__\":{\"format\":\"pt\"");
    for (int i = 0; i < n_metadata; i++) {
        p = append_string(append(p, end, ","), end, metadata[i].key);
        p = append_string(append(p, end, ":"), end, metadata[i].value);
    }
    p = append(p, end, "}");
    for (const Entry *e = a.entry; e < a.entry + a.n_entry; e++) {
        size_t bytes = e->row->size * sizeof(real);
        assert(e->row->type == TYPE_REAL);
        shape_text(shape, e->row);
        p = append(p, end, ",\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%llu,%llu]}", e->name,
                   type_name[TYPE_REAL], shape, (unsigned long long)begin, (unsigned long long)(begin + bytes));
        begin += bytes;
    }
    p = append(p, end, "}");
    while ((p - header) % 8 != 0) p = append(p, end, " ");
    length = (uint64_t)(p - header);
    output_write(&out, &length, 8);
    output_write(&out, header, (size_t)length);
    for (const Entry *e = a.entry; e < a.entry + a.n_entry; e++)
        output_write(&out, e->group->base + e->row->offset, e->row->size * sizeof(real));
    release(header);
    archive_close(&a);
    return output_close(&out);
}

/* Adds the files that the "weight_map" of an index names. */
static int archive_add_listed(Archive *a, const Json *json, const char *dir, const char *index) {
    uint32_t map = json_find(json, 0, "weight_map"), i;
    char path[PATH_SIZE];
    int k;
    if (map == 0 || json_type(json, map) != '{') return fail("%s: weight_map is missing", index);
    for (i = json_first(json, map); i != 0; i = json->node[i + 1].next) {
        const char *name = json_string(json, i + 1);
        if (name == NULL || *name == 0 || strpbrk(name, "/\\:") != NULL) /* it could lead out of the directory */
            return fail("%s: weight_map names %.*s, expected a file beside it", index, JSON_EXCERPT(json, i + 1));
        if (join_path(path, dir, name) != 0) return -1;
        for (k = 0; k < a->n_source && strcmp(a->source[k].path, path) != 0;) k++;
        if (k == MAX_SOURCE) return fail("%s: more than %d files", index, MAX_SOURCE);
        if (k == a->n_source && archive_add(a, path, NULL, 0) != 0) return -1;
    }
    return 0;
}

static int archive_add_index(Archive *a, const char *dir, const char *index) {
    size_t n;
    Json json;
    char *text = read_file(index, &n);
    int status;
    if (text == NULL || json_parse(&json, text, n, index) != 0) return -1;
    status = archive_add_listed(a, &json, dir, index);
    json_free(&json);
    return status;
}

/* Whether there is such a file in a directory; makes its path. */
static int is_there(char path[PATH_SIZE], const char *dir, const char *name) {
    struct stat status;
    return join_path(path, dir, name) == 0 && stat(path, &status) == 0;
}

static int archive_add_dir(Archive *a, const char *dir, char where[PATH_SIZE]) {
    if (is_there(where, dir, "model.safetensors")) return archive_add(a, where, NULL, 0);
    if (is_there(where, dir, "model.safetensors.index.json")) return archive_add_index(a, dir, where);
    if (is_there(where, dir, "pytorch_model.bin") || is_there(where, dir, "pytorch_model.bin.index.json"))
        return fail("%s: is a Python pickle; with Transformers, save the model as safetensors: "
                    "MambaForCausalLM.from_pretrained(dir).save_pretrained(dir, safe_serialization=True)", where);
    return fail("%s: has no model.safetensors: %s", dir, strerror(errno));
}

/* The type that the matrices keep: the one that all of them have in the files if it is of 16 bits, or that of reals. */
static int archive_half(const Archive *a) {
    int type = N_TYPE;
    for (const Entry *e = a->entry; e < a->entry + a->n_entry; e++)
        if (e->row->matrix) type = type == N_TYPE || type == e->type ? e->type : TYPE_REAL;
    return type == TYPE_F16 || type == TYPE_BF16 ? type : TYPE_REAL;
}

/* A model from config.json and the safetensors of a directory. type: of its matrices, TYPE_REAL, which is what training
   and a GPU need, TYPE_BF16, or TYPE_STORED, 16 bits where the files have them. Memory for the weights is allocated
   when the headers have shown that they are there. model_free frees it; after fail() there is nothing to free. */
static int model_load_as(Model *m, const char *dir, int type) {
    char where[PATH_SIZE];
    Config c;
    Tensor head;
    Table table = {&head, 0, 0, NULL};
    Group group[2] = {{"", NULL, 0, 0, NULL}, {"", &head, 1, 1, NULL}}; /* a tied head may have been written, too */
    Archive a;
    int status;
    memset(m, 0, sizeof *m);
    if (config_load(&c, dir) != 0 || model_table(m, &c) != 0) return fail_in(dir);
    group[0].row = m->tensor, group[0].n_row = m->n_tensor;
    table_add(&table, NULL, "lm_head.weight", c.vocab_size, c.d_model, 0);
    status = archive_list(&a, group, c.tied ? 2 : 1, dir);
    if (status == 0) {
        status = archive_add_dir(&a, dir, where);
        if (status == 0) status = archive_check(&a, where);
        if (status == 0) status = model_allocate(m, type == TYPE_STORED ? archive_half(&a) : type);
        group[0].base = m->weights;
        if (status == 0) status = archive_read(&a);
        archive_close(&a);
    }
    if (status == 0) return 0;
    model_free(m);
    return fail_in(dir);
}

static int model_load(Model *m, const char *dir) { return model_load_as(m, dir, TYPE_REAL); }

/* Makes the directory if need be. Weights first: if they do not fit on the disk, the old checkpoint is still whole. */
static int model_save(const Model *m, const char *dir) {
    Group group = {"", m->tensor, m->n_tensor, 0, m->weights};
    char path[PATH_SIZE];
    if (join_path(path, dir, "model.safetensors") != 0) return -1;
    if (make_directory(dir) != 0 && errno != EEXIST) return fail("%s: cannot make it: %s", dir, strerror(errno));
    return tensors_save(path, &group, 1, NULL, 0) != 0 ? -1 : config_save(&m->config, dir);
}

/* tokenizer.json, as the `tokenizers` library writes it for byte-level BPE: "model" has the vocabulary, which maps
   strings to ids, and the merges in the order of their ranks; "added_tokens" are the special tokens, in the vocabulary
   or not. In the strings of the model a byte stands for itself if it is a printable character of Latin 1 and no space;
   the others are, in their order, the characters from U+0100 on. All that could lead to other ids is refused. */
typedef struct { const char *key, *value[2]; } Allowed; /* a key and the values that it may have, as JSON; none: any */

/* Whether the value of node i is one of those; a string begins with a quote here, and does not end in one. */
static int json_is(const Json *json, uint32_t i, const char *const value[2]) {
    const char *text = json->text + json->node[i].begin;
    size_t n = json->node[i].length + (*text == '"');
    for (int k = 0; k < 2 && value[k] != NULL; k++)
        if (strlen(value[k]) == n && memcmp(value[k], text, n) == 0) return 1;
    return value[0] == NULL;
}

/* Checks that an object, which the file calls `name`, has none but allowed keys and values, and has the first one. */
static int json_check(const Json *json, uint32_t object, const char *file, const char *name, const Allowed *allowed) {
    if (json_type(json, object) != '{') return fail("%s: %s is not an object", file, name);
    if (json_find(json, object, allowed->key) == 0) return fail("%s: %s: %s is missing", file, name, allowed->key);
    for (uint32_t k = json_first(json, object); k != 0; k = json->node[k + 1].next) {
        const Allowed *a = allowed;
        const char *key = json_string(json, k);
        while (a->key != NULL && strcmp(a->key, key) != 0) a++;
        if (a->key == NULL) return fail("%s: %s: %.60s is not known here", file, name, key);
        if (!json_is(json, k + 1, a->value))
            return fail("%s: %s: %s is %.*s, which is not supported", file, name, key, JSON_EXCERPT(json, k + 1));
    }
    return 0;
}

static int json_is_null(const Json *json, uint32_t i) { return i == 0 || json_type(json, i) == 'n'; }

/* Checks all but the vocabulary. truncation and padding are about batches; Transformers sets them for each call. What
   comes after the model may correct offsets, but not add tokens. */
static int tokenizer_json_check(const Json *json, const char *file) {
    static const Allowed root[] = {{"model", {NULL}}, {"version", {NULL}}, {"truncation", {NULL}}, {"padding", {NULL}},
                                   {"added_tokens", {NULL}}, {"normalizer", {NULL}}, {"pre_tokenizer", {NULL}},
                                   {"post_processor", {NULL}}, {"decoder", {NULL}}, {NULL, {NULL}}};
    static const Allowed normalizer[] = {{"type", {"\"NFC"}}, {NULL, {NULL}}};
    static const Allowed pre_tokenizer[] = {{"type", {"\"ByteLevel"}}, {"add_prefix_space", {"false"}},
                                            {"trim_offsets", {NULL}}, {"use_regex", {"true"}}, {NULL, {NULL}}};
    static const Allowed decoder[] = {{"type", {"\"ByteLevel"}}, {"add_prefix_space", {NULL}}, {"trim_offsets", {NULL}},
                                      {"use_regex", {NULL}}, {NULL, {NULL}}};
    static const Allowed post_processor[] = {{"type", {"\"ByteLevel", "\"TemplateProcessing"}}, {"single", {NULL}},
                                             {"pair", {NULL}}, {"special_tokens", {NULL}}, {"add_prefix_space", {NULL}},
                                             {"trim_offsets", {NULL}}, {"use_regex", {NULL}}, {NULL, {NULL}}};
    static const Allowed model[] = {{"type", {"\"BPE"}}, {"dropout", {"null"}}, {"unk_token", {"null"}},
                                    {"continuing_subword_prefix", {"null", "\""}}, {"fuse_unk", {NULL}},
                                    {"end_of_word_suffix", {"null", "\""}}, {"byte_fallback", {"false"}},
                                    {"ignore_merges", {"false"}}, {"vocab", {NULL}}, {"merges", {NULL}},
                                    {NULL, {NULL}}};
    static const struct { const char *name; const Allowed *allowed; int may_lack; } part[] = {
        {"normalizer", normalizer, 1}, {"pre_tokenizer", pre_tokenizer, 0}, {"post_processor", post_processor, 1},
        {"decoder", decoder, 0}, {"model", model, 0}};
    uint32_t i, list;
    if (json_check(json, 0, file, "the file", root)) return -1;
    for (int k = 0; k < 5; k++) {
        i = json_find(json, 0, part[k].name);
        if (json_is_null(json, i) && part[k].may_lack) continue;
        if (i == 0) return fail("%s: %s is missing", file, part[k].name);
        if (json_check(json, i, file, part[k].name, part[k].allowed)) return -1;
    }
    list = json_find(json, json_find(json, 0, "post_processor"), "single");
    for (i = list != 0 ? json_first(json, list) : 0; i != 0; i = json->node[i].next)
        if (json_find(json, i, "Sequence") == 0)
            return fail("%s: post_processor: single has %.*s, which is not supported", file, JSON_EXCERPT(json, i));
    return 0;
}

/* The strings of a vocabulary, by id and in a hash table with linear probing. */
typedef struct {
    const char *file;
    Json json;
    uint32_t *string;              /* (n_most) the node of a token's string; 0: no token has this id */
    unsigned char *is_added;       /* (n_most) 1: an added token: its string is its bytes */
    int *slot;                     /* (n_slot) a power of two, more than n_most; an id + 1, 0 if free */
    size_t n_most, n_slot;
    int n_vocab;
} JsonVocab;

/* The slot of a string, or the free one where it belongs. */
static size_t vocab_slot(const JsonVocab *v, const char *text, size_t n) {
    uint64_t hash = hash_start();
    for (size_t i = 0; i < n; i++) hash ^= (unsigned char)text[i], hash = random_bits(&hash);
    for (size_t i = (size_t)hash;; i++) {
        int id = v->slot[i &= v->n_slot - 1] - 1;
        const JsonNode *node = &v->json.node[id < 0 ? 0 : v->string[id]];
        if (id < 0 || (node->length == n && memcmp(v->json.text + node->begin + 1, text, n) == 0)) return i;
    }
}

/* The id of a string, -1 if it is not in the vocabulary. */
static int vocab_find(const JsonVocab *v, const char *text, size_t n) { return v->slot[vocab_slot(v, text, n)] - 1; }

/* Enters the string of one node with the id of another; returns the id. The string may be there if it has this id. */
static int vocab_add(JsonVocab *v, const char *name, uint32_t string, uint32_t number) {
    const char *text = json_string(&v->json, string);
    double id = json_number(&v->json, number);
    size_t n = v->json.node[string].length, slot;
    if (text == NULL || n == 0) return fail("%s: %s: a token is empty, or no string", v->file, name);
    if (!(id >= 0 && id < (double)v->n_most && id == floor(id)))
        return fail("%s: %s: the id of \"%.60s\" is %.*s, expected 0 to %zu", v->file, name, text,
                    JSON_EXCERPT(&v->json, number), v->n_most - 1);
    slot = vocab_slot(v, text, n);
    if (v->slot[slot] - 1 == (int)id) return (int)id;
    if (v->slot[slot] != 0)
        return fail("%s: %s: \"%.60s\" has the ids %d and %d", v->file, name, text, v->slot[slot] - 1, (int)id);
    if (v->string[(int)id] != 0)
        return fail("%s: %s: the id of \"%.60s\", %d, is that of another token", v->file, name, text, (int)id);
    v->string[(int)id] = string;
    v->slot[slot] = (int)id + 1;
    if ((int)id >= v->n_vocab) v->n_vocab = (int)id + 1;
    return (int)id;
}

/* The two strings of a merge, "a b" or ["a", "b"]. Puts them together; *n: their lengths. NULL if it is none. */
static char *merge_strings(const Json *json, uint32_t i, size_t n[2]) {
    uint32_t a = json_type(json, i) == '[' ? json_first(json, i) : i, b = a != i && a != 0 ? json->node[a].next : 0;
    char *left = json->text + json->node[a].begin + 1, *right = left + strcspn(left, " ");
    if (json_string(json, a) == NULL) return NULL;
    if (a == i) { /* one string: a space in it ends the first part */
        n[0] = (size_t)(right - left), n[1] = *right != 0 ? strlen(++right) : 0;
    } else {
        if (b == 0 || json_string(json, b) == NULL || json->node[b].next != 0) return NULL;
        right = json->text + json->node[b].begin + 1;
        n[0] = json->node[a].length, n[1] = json->node[b].length;
    }
    memmove(left + n[0], right, n[1]);
    return left;
}

static int load_merges(Tokenizer *t, const JsonVocab *v) {
    uint32_t i = json_find(&v->json, json_find(&v->json, 0, "model"), "merges");
    if (json_type(&v->json, i) != '[') return fail("%s: model: merges is missing, or no array", v->file);
    for (i = json_first(&v->json, i); i != 0; i = v->json.node[i].next) {
        size_t n[2];
        const char *text = merge_strings(&v->json, i, n);
        int left, right, whole, rank = (int)t->merge.n;
        if (text == NULL) return fail("%s: model: merges[%d] is not a pair of strings", v->file, rank);
        left = vocab_find(v, text, n[0]), right = vocab_find(v, text + n[0], n[1]);
        whole = vocab_find(v, text, n[0] + n[1]);
        if (left < 0 || right < 0 || whole < 0)
            return fail("%s: model: merges[%d]: \"%.*s\" is not in vocab", v->file, rank,
                        min_int((int)(left < 0 ? n[0] : right < 0 ? n[1] : n[0] + n[1]), 60),
                        text + (left >= 0 && right < 0 ? n[0] : 0));
        if (pair_find(&t->merge, left, right) >= 0)
            return fail("%s: model: merges[%d] is there twice", v->file, rank);
        if (pair_add(&t->merge, left, right) < 0) return -1;
        t->merge.pair[rank].value = whole;
    }
    return 0;
}

/* The character that stands for a byte. */
static uint32_t byte_character(int byte) {
    return (uint32_t)(byte < 33 ? 256 + byte : byte < 127 ? byte : byte < 161 ? 162 + byte : byte == 173 ? 323 : byte);
}

/* Replaces a string by the bytes that it stands for; returns how many. If it has other characters, it stands for
   itself. */
static size_t string_bytes(char *text, size_t n, const int byte[324]) {
    size_t n_byte = 0, length;
    for (size_t at = 0; at < n; at += length) {
        uint32_t code = utf8_get(text + at, n - at, &length);
        if (code >= 324 || byte[code] < 0) return n;
    }
    for (size_t at = 0; at < n; at += length) text[n_byte++] = (char)byte[utf8_get(text + at, n - at, &length)];
    return n_byte;
}

/* Finds the tokens of the bytes. */
static int load_bytes(Tokenizer *t, const JsonVocab *v) {
    char text[4];
    for (int b = 0; b < 256; b++) {
        int is_never = b == 0xC0 || b == 0xC1 || b > 0xF4;         /* in UTF-8 */
        t->byte_id[b] = vocab_find(v, text, (size_t)(utf8_put(text, byte_character(b)) - text));
        if (t->byte_id[b] < 0 && !is_never) return fail("%s: model: vocab has no token for the byte %d", v->file, b);
    }
    return 0;
}

/* Adds all tokens, now that their ids are known. */
static int load_tokens(Tokenizer *t, const JsonVocab *v) {
    int byte[324];
    memset(byte, -1, sizeof byte);
    for (int b = 0; b < 256; b++) byte[byte_character(b)] = b;
    for (int id = 0; id < v->n_vocab; id++) {
        const JsonNode *node = &v->json.node[v->string[id]];
        char *text = v->json.text + node->begin + 1;
        if (v->string[id] == 0) return fail("%s: model: vocab has no token with the id %d", v->file, id);
        if (add_token(t, text, v->is_added[id] ? node->length : string_bytes(text, node->length, byte)) < 0) return -1;
    }
    return 0;
}

static int load_added(JsonVocab *v, uint32_t list) {
    static const Allowed added[] = {{"normalized", {"true", "false"}}, {"id", {NULL}}, {"content", {NULL}},
                                    {"special", {NULL}}, {"single_word", {"false"}}, {"lstrip", {"false"}},
                                    {"rstrip", {"false"}}, {NULL, {NULL}}};
    const Json *json = &v->json;
    for (uint32_t i = list != 0 ? json_first(json, list) : 0; i != 0; i = json->node[i].next) {
        uint32_t string = json_find(json, i, "content");
        int id;
        if (json_check(json, i, v->file, "added_tokens", added)) return -1;
        if ((id = vocab_add(v, "added_tokens", string, json_find(json, i, "id"))) < 0) return -1;
        if (json->node[string].length > MAX_TOKEN || v->is_added[id])
            return fail("%s: added_tokens: \"%.60s\" is there twice, or has more than %d bytes", v->file,
                        json_string(json, string), MAX_TOKEN);
        v->string[id] = string, v->is_added[id] = 1;
    }
    return 0;
}

/* Makes the added tokens special. */
static int load_specials(Tokenizer *t, const JsonVocab *v, uint32_t list) {
    const Json *json = &v->json;
    Normal normal;
    int failed = 0;
    memset(&normal, 0, sizeof normal);
    for (uint32_t i = list != 0 ? json_first(json, list) : 0; i != 0 && !failed; i = json->node[i].next) {
        int id = (int)json_number(json, json_find(json, i, "id"));
        int normalised = json_type(json, json_find(json, i, "normalized")) == 't';
        size_t n, n_normal;
        const char *piece = tokenizer_piece(t, id, &n), *text = piece;
        if (n == strlen(END_OF_TEXT) && memcmp(text, END_OF_TEXT, n) == 0) t->end_of_text = id;
        n_normal = n;
        if (normalised && t->normalises && normalise(&normal, &text, &n_normal)) failed = 1;
        else if (n_normal != n || memcmp(text, piece, n) != 0)
            failed = fail("%s: added_tokens: the token %d is not in normal form C", v->file, id);
        else failed = add_special(t, &t->special[normalised], id) < 0;
    }
    release(normal.text), release(normal.part);
    return failed;
}

static int load_vocab(Tokenizer *t, JsonVocab *v) {
    const Json *json = &v->json;
    uint32_t vocab = json_find(json, json_find(json, 0, "model"), "vocab"), i;
    uint32_t added = json_find(json, 0, "added_tokens");
    if (json_type(json, vocab) != '{' || vocab == 0) return fail("%s: model: vocab is missing, or no object", v->file);
    if (added != 0 && json_type(json, added) != '[') return fail("%s: added_tokens is no array", v->file);
    for (i = json_first(json, vocab); i != 0; i = json->node[i + 1].next) v->n_most++;
    for (i = added != 0 ? json_first(json, added) : 0; i != 0; i = json->node[i].next) v->n_most++;
    for (v->n_slot = 1; v->n_slot <= 2 * v->n_most;) v->n_slot *= 2;
    v->string = (uint32_t *)allocate(v->n_most, sizeof *v->string);
    v->is_added = (unsigned char *)allocate(v->n_most, 1);
    v->slot = (int *)allocate(v->n_slot, sizeof *v->slot);
    if (v->string == NULL || v->is_added == NULL || v->slot == NULL) return -1;
    for (i = json_first(json, vocab); i != 0; i = json->node[i + 1].next)
        if (vocab_add(v, "model: vocab", i, i + 1) < 0) return -1;
    t->growth = 3, t->end_of_text = -1;
    t->normalises = !json_is_null(json, json_find(json, 0, "normalizer"));
    return load_merges(t, v) || load_bytes(t, v) || load_added(v, added) || load_tokens(t, v) ||
           load_specials(t, v, added) ? -1 : 0;
}

/* The text is n bytes with a NUL after them, which are released. */
static int tokenizer_json_load(Tokenizer *t, const char *path, char *text, size_t n) {
    JsonVocab v;
    int failed;
    memset(&v, 0, sizeof v);
    v.file = path;
    t->n_json = n;
    if ((t->json = (char *)allocate(n, 1)) == NULL) {
        release(text);
        return -1;
    }
    memcpy(t->json, text, n);                    /* parsing decodes strings in their places */
    if (json_parse(&v.json, text, n, path) != 0) return -1;
    failed = tokenizer_json_check(&v.json, path) || load_vocab(t, &v);
    release(v.string), release(v.is_added), release(v.slot);
    json_free(&v.json);
    return failed ? -1 : 0;
}

/* Appends the characters that stand for the bytes of a token. */
static char *put_string(char *out, const Tokenizer *t, int id) {
    size_t n;
    const char *piece = tokenizer_piece(t, id, &n);
    for (size_t i = 0; i < n; i++) out = utf8_put(out, byte_character((unsigned char)piece[i]));
    *out = 0;
    return out;
}

static void output_text(Output *out, const char *text) { output_write(out, text, strlen(text)); }

/* Saves a vocabulary of ours so that the `tokenizers` library gives the same ids. */
static int tokenizer_json_save(const Tokenizer *t, const char *path) {
    char string[4 * MAX_TOKEN + 2], text[2 * sizeof string + 32], *end = text + sizeof text, *p;
    Output out;
    if (output_open(&out, path) != 0) return -1;
    output_text(&out, "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n"
                      "  \"added_tokens\": [{\"id\": 0, \"content\": \"" END_OF_TEXT "\", \"single_word\": false, "
                      "\"lstrip\": false, \"rstrip\": false, \"normalized\": false, \"special\": true}],\n"
                      "  \"normalizer\": null,\n  \"pre_tokenizer\": {\"type\": \"ByteLevel\", "
                      "\"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": true},\n"
                      "  \"post_processor\": null,\n  \"decoder\": {\"type\": \"ByteLevel\", "
                      "\"add_prefix_space\": true, \"trim_offsets\": true, \"use_regex\": true},\n"
                      "  \"model\": {\n    \"type\": \"BPE\",\n    \"dropout\": null,\n    \"unk_token\": null,\n"
                      "    \"continuing_subword_prefix\": null,\n    \"end_of_word_suffix\": null,\n"
                      "    \"fuse_unk\": false,\n    \"vocab\": {");
    for (int id = 0; id < t->n_vocab; id++) {
        put_string(string, t, id);
        p = append_string(append(text, end, id == 0 ? "\n      " : ",\n      "), end, string);
        append(p, end, ": %d", id);
        output_text(&out, text);
    }
    output_text(&out, "\n    },\n    \"merges\": [");
    for (size_t i = 0; i < t->merge.n; i++) {
        p = put_string(string, t, t->merge.pair[i].left);
        *p++ = ' ';
        put_string(p, t, t->merge.pair[i].right);
        append_string(append(text, end, i == 0 ? "\n      " : ",\n      "), end, string);
        output_text(&out, text);
    }
    output_text(&out, "\n    ]\n  }\n}\n");
    return output_close(&out);
}

/* Whether a directory has a tokenizer: its tokenizer.bin or, if there is none, its tokenizer.json, whose path is set. */
static int tokenizer_is_there(char path[PATH_SIZE], const char *dir) {
    return is_there(path, dir, "tokenizer.bin") || is_there(path, dir, "tokenizer.json");
}

static int tokenizer_load_dir(Tokenizer *t, const char *dir) {
    char path[PATH_SIZE];
    if (tokenizer_is_there(path, dir)) return tokenizer_load(t, path);
    memset(t, 0, sizeof *t);
    return fail("%s: has no tokenizer.bin or tokenizer.json: %s", dir, strerror(errno));
}

/* Saves the tokenizer: one of ours in both formats, another as the tokenizer.json that it came from, byte for byte. And
   tokenizer_config.json, from which Transformers' AutoTokenizer learns what to make of it. */
static int tokenizer_save_dir(const Tokenizer *t, const char *dir) {
    const char *config = t->end_of_text < 0 ? "{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\"\n}\n"
                                            : "{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\",\n"
                                              "  \"bos_token\": \"" END_OF_TEXT "\",\n"
                                              "  \"eos_token\": \"" END_OF_TEXT "\"\n}\n";
    char path[PATH_SIZE];
    if (join_path(path, dir, "tokenizer.bin") != 0) return -1;
    if (t->json != NULL) remove(path);           /* it would be another one's */
    else if (tokenizer_save(t, path) != 0) return -1;
    if (join_path(path, dir, "tokenizer.json") != 0 ||
        (t->json != NULL ? write_file(path, t->json, t->n_json) : tokenizer_json_save(t, path)) != 0) return -1;
    return join_path(path, dir, "tokenizer_config.json") != 0 ? -1 : write_file(path, config, strlen(config));
}

/* 9. TASKS =====================================================================================================

   Made-up data that asks for one ability at a time: train.c trains on it and run.c measures with it. A sample is a
   sequence of len tokens. At some positions it puts a question; the answer is the target there, and the other positions
   have none. A sample is read from front to back, in memory that does not grow with its length.

   copying     Selective Copying: `items` data tokens, 1 to vocab - 2, lie scattered in noise, token 0. Behind all that
               come as many markers, token vocab - 1, which ask for the data tokens in their order.
   induction   Induction Heads: random tokens, 0 to vocab - 2, and somewhere the trigger, token vocab - 1. The last
               token is the trigger again, and asks for what followed the first.
   recall      Multi-query associative recall: `items` pairs of a key, 1 to vocab / 2 - 1, and its value, from
               vocab / 2 on; no key and no value comes twice. Then random tokens, among which each key comes again and
               asks for its value: 2 g positions behind the pairs, where g is k with probability about 1/k.

   The first two are those of Section 4.1 of the paper, the third that of S. Arora et al., "Zoology: Measuring and
   Improving Recall in Efficient Language Models", arXiv:2312.04927. */

enum { MAX_ITEMS = 1024 };

typedef enum { COPYING, INDUCTION, RECALL, N_TASK } TaskKind;

typedef struct {
    TaskKind kind;
    int len, vocab, items;
    int n_answer;                  /* how many tokens can be an answer: a guess is right once in so many times */
    int t, n;                      /* next position; items that have come (copying) or were asked for (recall) */
    int value[MAX_ITEMS], key[MAX_ITEMS], asked[MAX_ITEMS], gap[MAX_ITEMS]; /* asked, gap: in order of the questions */
    uint64_t rng;
} Task;

static int random_below(uint64_t *rng, int n) { return (int)(random_bits(rng) % (uint64_t)n); }

static int is_among(const int *list, int n, int wanted) {
    while (n > 0 && list[n - 1] != wanted) n--;
    return n > 0;
}

/* These three: the token at position t of a sample; returns the answer, or -1 where none is asked. */
static int copying_next(Task *s, int *token) {
    int left = s->len - s->items - s->t; /* positions before the markers */
    *token = left > 0 ? 0 : s->vocab - 1;
    if (left <= 0) return s->value[-left];
    if (random_below(&s->rng, left) < s->items - s->n) /* any choice of positions is as likely as any other */
        *token = s->value[s->n++] = 1 + random_below(&s->rng, s->vocab - 2);
    return -1;
}

static int induction_next(Task *s, int *token) {
    if (s->t == 0) s->gap[0] = random_below(&s->rng, s->len - 2);
    *token = s->t == s->gap[0] || s->t == s->len - 1 ? s->vocab - 1 : random_below(&s->rng, s->vocab - 1);
    if (s->t == s->gap[0] + 1) s->value[0] = *token;
    return s->t == s->len - 1 ? s->value[0] : -1;
}

/* The pairs, and where each key will come again, sorted. */
static void recall_begin(Task *s) {
    int half = s->vocab / 2, places = (s->len - 2 * s->items) / 2;
    for (int i = 0; i < s->items; i++) {
        int gap, j;
        do s->key[i] = 1 + random_below(&s->rng, half - 1);
        while (is_among(s->key, i, s->key[i]));
        do s->value[i] = half + random_below(&s->rng, s->vocab - half);
        while (is_among(s->value, i, s->value[i]));
        do gap = (int)pow(places + 1, random_uniform(&s->rng)) - 1;
        while (is_among(s->gap, i, gap));
        for (j = i; j > 0 && s->gap[j - 1] > gap; j--) s->gap[j] = s->gap[j - 1], s->asked[j] = s->asked[j - 1];
        s->gap[j] = gap, s->asked[j] = i;
    }
}

static int recall_next(Task *s, int *token) {
    int i = s->t / 2;
    if (s->t == 0) recall_begin(s);
    if (i < s->items) {
        *token = s->t % 2 == 0 ? s->key[i] : s->value[i];
    } else if (s->n < s->items && s->t == 2 * (s->items + s->gap[s->n])) {
        *token = s->key[s->asked[s->n]];
        return s->value[s->asked[s->n++]];
    } else {
        *token = random_below(&s->rng, s->vocab);
    }
    return -1;
}

static const struct {
    const char *name;
    int (*next)(Task *task, int *token);
    int len, vocab, items, len_per_item; /* the first three as published; the last: at least */
} task_table[N_TASK] = {
    {"copying", copying_next, 4096, 16, 16, 2},
    {"induction", induction_next, 256, 16, 1, 3},
    {"recall", recall_next, 256, 8192, 16, 4},
};

/* The TaskKind of this name; N_TASK: there is none. */
static int task_find(const char *name) {
    int kind = 0;
    while (kind < N_TASK && strcmp(name, task_table[kind].name) != 0) kind++;
    return kind;
}

/* Settings of a task; a 0 takes the published one. */
static int task_create(Task *s, int kind, long long len, long long vocab, long long items) {
    const char *name = task_table[kind].name;
    long long most = MAX_ITEMS, answers = 0, shortest;
    memset(s, 0, sizeof *s);
    if (len == 0) len = task_table[kind].len;
    if (vocab == 0) vocab = task_table[kind].vocab;
    if (items == 0) items = task_table[kind].items;
    s->kind = (TaskKind)kind;
    switch (s->kind) {
    case COPYING: answers = vocab - 2; break;
    case INDUCTION: answers = vocab - 1, most = 1; break;
    default: answers = vocab - vocab / 2, most = vocab / 2 - 1 < most ? vocab / 2 - 1 : most;
    }
    shortest = items * task_table[kind].len_per_item;
    if (vocab < 4 || vocab > 1 << 20)
        return fail("%s: a vocabulary (--vocab-size) of %lld, expected 4 to 2^20", name, vocab);
    if (items < 1 || items > most)
        return fail("%s: --items %lld with a vocabulary of %lld, expected 1 to %lld", name, items, vocab, most);
    if (len < shortest || len > 1 << 30)
        return fail("%s: --len %lld with --items %lld, expected %lld to 2^30", name, len, items, shortest);
    s->len = (int)len, s->vocab = (int)vocab, s->items = (int)items, s->n_answer = (int)answers;
    return 0;
}

/* Begins the sample of this seed. */
static void task_begin(Task *s, uint64_t seed) {
    s->rng = seed, s->t = s->n = 0;
}

/* The next n positions of the sample; returns how many of them have a target. */
static int task_read(Task *s, int *tokens, int *targets, int n) {
    int questions = 0;
    for (int i = 0; i < n; i++, s->t++) {
        targets[i] = task_table[s->kind].next(s, &tokens[i]);
        questions += targets[i] >= 0;
    }
    return questions;
}

/* 10. UNICODE ==================================================================================================

   What the `tokenizers` library takes characters for, by tests/unicode_table.py: the classes of Unicode 16; order,
   decomposition and composition of Unicode 9. (Later versions leave these as they are for the characters that there
   were.) unicode_load in section 7 unpacks it. */

static const char *const unicode_table[] = {
    "@'[#Q,8<5<C#h/#>#9$&#-###'%&9&A&mT/.M'8#&#lR'&$)&&#5#&%&#&6&h1&i%;i@&H)#5Kj,=/&hfMc,/$&hA&#P$8$$,#%)#S#&@h6h7D#N,"
    "#C>$/#28/#>#,#h$;8-2:&(VLiIX,#Y#8,0,&2/*)$)8&)&#,&,#S#J$&%0,#$*()#;(/$)8&)&$&$&$h<&&#9,)%S+&%&8&)&$&',#Y#P$0,>#D*"
    ")$)8&)&$&',#h9$&%0,&#$(D#&(,%&&,$&#&$,$,%,.e#c/Y*&%&9&2,#h-%)#)$0,<)&#/*&%&9&,&',#h<$&$0,&$V+&%&K)#S#2%')#%05&(24"
    ",:&+&#))h=,VR&$G)?,hT$&#&'&:&#&,&$>#)'&#?,)&h?#h=6G*&Fh0'l(M_#$,5(/&,#,$8%//G#',5H&#2#)M&k_&&))&#&&)K&&)C&&))&#&&"
    ")1&[&&)eN6,2Sh4)(,p*)3%##<2h)-%#*84J5M4M/&%PVhH#/#-,6,f,5h78')D&#2h$AAhU,#@)'DN/<6-hN9>Wha,6,J#k*QV*-,hZ@J$$,#Nh-"
    "Fh4,,%$,#F)-2M)%hZ&&(&$,#2iZi[k()()H)()*&#&#&#&A)W&)&#,%&),&)(//2%&).-h8$4#i*#T###*(2#$,5/kB#/#),&#,'5#&#&#&&&-)&"
    "2'/#'U#$$'ho&^jB8hjZ@ihcj;5&,$?#)H&#2#)Z8#S9>)&)&)&)&)&)&)&)jG#{E#/$$#h++8'*%#$/h45%&h8&&2M&h<-&ABi+2h@,h:*'1h@,h"
    "U1u+kgbi[tt[idP)jc,2$,#$_QSA)h$$,hT+)hE)e)$&#&*b2&%&&&9K(AVMTh4,h'(,#&$',#>A9h*?8Qh3#$,5'&,$,#'&Kh$%&*0,59,#,T&#,"
    "$)')#&#h'%)-8%G()()(>)&)&M&05hQK,5m{6G9/Svs_l<)hHhQ)G'2#&,&/&'&#&$&$&hJhBl9Yb)XhW.l+'&he],8<5<Dh7,()()()%hH.&<&5&"
    "$&1)0hEhYHOH[W$qW?,ST=/B$&>6$##*$#2HA@)F/*''h]i8*,5F/F/J;VG-&1&)&$&-&1&)&$,VGkI>8A*h'(&L&+j&()#&N&$,#)9**#9*)#A<+"
    "i+5&$3'#8$(/<j)Z0$#$$2*P##P&&%&?B+h$?$$&?$%h?*&>6'SXA8**#53*#4h%)jGh'i@UJU9(#FH,6,#>>9pNA&L5$S%iL?$,##;8E&h04i%7$"
    ")_9GWh.@&$)#JOh?;9,>FQ,/#)#;E,#GRM&E,##&#06D4&;!$iX)&#&&&1&,8QW,D*)$)8&)&$&',#Y#G'h9,&#)#&H&#h*#&#hcWY&3,2%h9R_$&"
    "#<,n9QhZ&hKR_#E,hQMJ#9,66h3=c./)o.Nl+b$5G*)#)*&$&:P#&#N,j)*)IS#&#h3#AJ8#b#DP!#Yh'oXCQ,5+&GV#Q?2@kc)&$&Hb#?,5(&$&B"
    "M#9,tQ5P#&/&Dh4,jY#Q7h`tHkFhMVi^k{7h?PvVV(h*iqU2oIstZ@Z,jkEo;8A',5h-',5@YRS&H,')&725z'O-,oUb$9kNh)2#ia/i[$&#h3jy2"
    ";y0hZ,wq0&&)&$&k5P#h6%)#M&;lZkl[hI2/,+8,nwF,ix26H6kX;ldh3&h%&$)#)$)&&.&#&)&c&&)*&)&>&&&'&#,)&kf);&;&A&;&A&;&A&;&A"
    "&;&**Tjn'A5(rF`mAOA)*,/#u.@YN0,{U>0,pA@)#$,|>)&&&$&1&i_*+i+f8#0,hqa]'%'&j<O'1oI&&=&$&#)#&,&&&#&#5#/#&#&#&%&$&#)#&"
    "#&#&#&#&$&#)&&)&&&&&#&,&32%&'&3hhL/lie,h|Ahik2h?it(5j4)jsTMkt_Pp,ksYndiyAjgM2itN",
    "$s''kg>#0)uT$'%-$&$hsu8#vk)'sz@#jm3%#*hqW#h^#h^#h^#h^#lN#t)#hx;#iL#h/#}kN#wj]#iS#h5#hJ#iM#h1#j`#h[#jS#jM#hpgU##+n"
    "ud$#,hr$#h^#h^#h^#h^#h^#h^#h^#h^#h[#hN#k!#iO$hhX#B#i8#pL#j:#hD$h%$iy&#zl5#iX#i)#hK#kH#jM#uz(#}Q#[#!#hX$i&#hS#iO#h"
    "A#jK#h^#jS#h^#hU#hS#z*##-|?##.|@##/|A##0|B##1|C##2|D##3|E##4|F##5|G#1##6|H$#7|J##8|K##9|L##:|N##;|P##<|Q##=hvp=##"
    ">~R#pc##?~S#pc##@~T#pc##A}c#X##B}d#X##C}e#X##D~X##E~Y##Fhg3##GhiL##h3h}@##h:h}A##hFilG$#hJilW&#hUin?$#hYinO&#h`iq"
    ",##haiq-#*&%##hciq/##ierX$'$kk:##j-kw1##j/rR#h|L#i}uV$*'#j1nt9##j3rM&%'%&%-(&-%&$'&%$o9#'#'#)(%#=#i*$(#%#hb#)#%#f"
    "#%#%%$$$#&#$#$#$#iD#hE%hf#%#%#&%)#%$h6#|T$>#$#i)#ia#hoP#j3#hE#X(%#iI#l7'%&0#j+#*#'#P#$#qc#&&|o^%lU#ti-)u:#j9#hj##"
    "O#iF#hnjK**$jvK)#j5|)#5#jhJ#ju>##j7nt=$#j9jhg0##j;|=#i~A#jwD##j=r77K%%#&#&%&%'#&#*/k&'ja&$%%()$$$%#7#h**^$%'$$hV)"
    "%&$#%$%$f#$$$$&#%#$%$#$#$#$$i;)$#E&$+$%$'iA0%$$$$%)%$$%'h0#$$~4$%$u@%w`#l+#j3#h<*V')$iI#$)l+%*$'#6#&$ia$$)$$'G(#%"
    "#qL$%&&$'#(#$#)#h|-%jEBy|>#',C$h/$n54mI#$$&$($$#th])*$z]'hgW#K#iG#}e%of)&'ty6)wh-'C&i/%ijR)$3%)$$$'hq4(#j?rL#'#`#"
    "ngV##j@sO#%#%#kk,##jAsP$$$kjB##jGs8##",
    "$s3}K$%%GTiN-yV,jOkp)}5%%%%%%%]%%%%ai*&hE.h@%%+1+.+h++f&4$~P-~_%)%|D&pzS$%k8o|B'hh:$jKnEuz]$%hpt%hk}I$rx&$src$v*$"
    "ppL$qlL$hya$~y)$#$}h4$xx?$y|b$hk5$ix;$mpe$i{K$iiO$r-$p;$ip-$si4$~9$hk/$}U$lj5$kj1$iw1$~vd$ht5$np=$il=$mn+$ns5${nb"
    "$l{)$m{W$hj%$siP$px]$h~5$s~0$iuE$h~M$hxc$poG${rF$wE$oQ$luW$h|M$imE$hsA$i{G$h|9$iG$ip%$i|U$hna$z-$rxZ$n-$hn)$h}=$k"
    "yQ$juA$mk$$vw0$h}5$pl'$hn#$kq2$ig3$mm;$jk]$zrT$hiO$kn)$hkA$p)$kq;$nW$nt7$|k$$uo5$uvD$B$svG$hj;$h}Q$lz?$jqD$sy<$im"
    "1$qo;$zhH$kn#$hn=$miE$u=$qyL$r|7$s}B$k~[$lsJ$pvE$in.$nq/$s~D$hqQ$puQ$kk#$ig%$pwb$rmW$rgR$i~Z$qg1$pz@$ltY$sjD${I$i"
    "[$nj'$mpK$hxO$iv-$ikM$zx2$pY$hv)$hx1$ijI$jke$i|'$o}Q$hrQ$hnA$hM$~|T$mn]$hr9$rmA$vo>$~?$j7$zK$jn9$w/$hgC$hvI$hn;$y"
    "Q$kuY$jkb$js=$~U${q`$k+$v[$oz-$nsG$u;$ty<$o[$hiG$itU$lkS$iy,$rr8$is]$ht+$tU$xc$mjC$l=$js5$l'$lv#$hr[$i?$m+$}y4$tl"
    "5$ns_$htW$w|<$ly0$xG$jr?$i=$i}?$hp1$iqS$hpG$ku_$juK$kxA$x|8$u}W$|l8$mtS$jG$hvc$q1$hw]$p_$~+$hqe$otK$}m,$lm-$wpS$}"
    "h8$kh;$lmM$qq;$u}H$se$ij=$ju+$q~E$|qT$u7$iuW$jg_$p5$q/$hna$ilQ$u#$jg1$i}7$G$iz-$hu7$|l4$oua$oo<$pnM${c$lq_$llA$hy"
    "c$x/$xm:$h}S$mnA$ilH$iE$q_$jhb$w0$op=$zg2$wr#$voZ$hD$j~%$hnA$oj]$qq!$lsE$ig6$sx-$ik0$kpA$kg&$tpN$km0$hp_&zK%kq/&m"
    "qf$qqS$hj7$y?$h#$1$h3$po1$oo2$}I%h~Q%hs_&hvG$lY'ir[$=$h7$hq3$kgN$h{%$}m!$p1$j#$r/$Y$j1$x7$j)$i_$t_$j'$hk+$7$hn3$m"
    "3$h+$ic$hh9$k9$l-$uS$ht3$kY$nW$x7$lI$uY$hp=$l)$9$$$3$/$1$h?$%$l3$ha$p=$wK$M$hO$oe$k9$u;$k+$#$u'$hrI$jc$qQ$hO$s'$h"
    "I${/$j[$ii1$o;$hW$xrb$mnoU$l{zB&wn*$hiY$i4$u:$t9$hU$pM$hE$z]$i*$i#$i-$yK$iM$k5$C$nc$l[$hjK$1$k3$i#$oY$jC$i&$jc$h:"
    "$k7$hc$rW$iK$hK$nO$o?$kY$+$hU$hn-$ha$rE$s'$B$iI$n?$p_$h}]$hwf$jK$jM$pM$k=$hI$mO$'$l%$E$U$iG$6$rO$u5$ne$lE$mK$kE$p"
    "S$l]$hg]$kM$hiO$t?$i%$C$oU$hQ$h8$hK$($D$i3$i=$r3$wC$p3$oQ$mE$hm7$j%$j=$ja$h'$;$h?$|=$hq/$ljkO$.$jv)$mukB$hpU$e$m}"
    "n'$jn5$qw)$mmqZ$i1jn{Zhhs4$,$5$lwq=$lwhb$i7$=$i)$jG$a$i7$R$o{4$mihW$lxhX$1$C$I$lww-$mhwH$o~c$h+$lww_$lwwJ$=$|>$|O"
    "$5$nsy/$nsw6$?$pj>$pl'$9$h7$-$pl2$pnK$'$Y$O$9$%$E$hC$3$5$U$7$'$#$#$lxue$lot&$o~R$M$lx|7$lx{b$/$M$kC$if$C$c$hS$iC$"
    "W$he$C$e$#$M$G$3$A$q#$nf$o%$lZ$h%$hp8$ije$oB$h+$U$jZ$ka$$$jM$lzoS$lzmN$-$A$K$3$h_$lzwO$hc$lzuF$h=$;$i8$k/$rj&$?$r"
    "n?$hK$#$l{i/$lz}4$M$A$;$l{mU$l{m<$1$hg]$hg$$rrX$rtM$?$i?$hD$l{~5$l{x`$l{xe$l{wR$($E$ie$%$rz!$r{O$h5$M$h7$r}8$mpq]"
    "$mpq($r~O$)$)$K$nukc$nuj>$l|{Y$#$lq|.$q}H$#$sgX$muxA$uy_$mxpN$5$si*$sjE$hE$7$h#$k#$snT$^$sp/$l}s3$l}qT$jY$+$'$&$h"
    ";$K$h'$>$9$h=$K$+$W$9$hc$iC$h%$jO$l}~?$l}~d$h`$j/$Y$i]$l~hY$l}~d$iT$Z$tg8$tle$M$a$h*$tkH$tqa$]$l~|+$l~xL$o-$l,$tt"
    ".$tv7$tvX$h&$niW$)$mx5$ib$ok5$zhf$rh;$+$/$hY$8$mgq[$mum>$ugE$j@$m%$hE$mgm[$mgmH$j4$n1$um8$unQ$i]$i)$lK$mgn=$mgl^$"
    "uw($uy-$mgz#$mgxD$uy&$uyc$h9$Y$%$mhkW$pm.$pp=$mhjN$mhw_$mhtH$?$if$l-$h/$hQ$hJ$h/$A$=$mhqM$mhsf$n=$h]$vqP$vt?$*$mh"
    "tc$mhzf$qe$mht/$h?$mhrf$j=$X$($v{<$v|W$hE$.$hK$lm|?$lmwb$mh}'$mhzD$mil-$mih$$=$Y$mixO$miw2$M$mjgC$mI$mjg6$E$wu($w"
    "u]$wuD$#$wz5$M$M$K$i%$w{0$w}]$mjy_$mjy*$mj{[$mjz:$lune$luj4$mktQ$Q$k+$m|xN$;$xlG$mkwa$$$h-$W$mkxH$%$#$h5$xmL$xoG$"
    "xo,$i;$m}y)$mlmH$h[$h_$xsd$m~n-$mlu*$mlxG$h5$mlx*$iS$xz.$x|Q$7$-$mmna$oY$#$mms$$x{J$ngw5$mmt8$)$yhb$ng|A$mmrR$ym."
    "$ym[$,$]$mnp+$mnm0$ynJ$yqG$hU$he$ysT$nio+$a$ninb$nis3$mnvD$mnyC$mnxP$ie$9$moiE$i-$mohd$mol_$mol>$lwqY$mrr*$zi5$i="
    "$zj&$zkY$si,$m{wG$?$woF$5$lwgX$)$km?$~u0$zrc$.$G$vgV$vh;$'$7$h1$mpk_$mpk`$hO$i'$i/$k&$kG$h3$j7$nN$jE$'$C$mpl#$p)$"
    "k>$nlhR${g/$'$h%$mrk[$mriF$mpvW$nlx!$+$nl|O$oE$nml!${oM$;$9$'$h_$d$jc$h6$kA$i<$he$Y${uH${x3$c${x.${ze$)$mq~O$mq{2"
    "$1${|`${}U$hiq8$nt}Q$l?$nosB$5$|m]$i5$kM$le$mrx%$mruD$O$iO$iS$msjG$htp4$k}vX$@$hG$k}|+$k}u>$ic$mtw7$Y$mtm!$iU$c$m"
    "tsM$mts8$o=$kQ$%$iR$r1$[$mui%$mtv$$~zb$~|3$mugc$ntzX$hgiU$x|P$ygE$muy_$m5$nviR$3$hgm_$mvq/$nvv6$nvz?$mvt$$#$_$mv{"
    "M$mvv.$hgo`$hgr#$jS$Y$hW$hgsR$nxsW$mwvb$o_$lI$hhjT$a$hhlc$mxwQ$ny}6$ny~a$nY$j]$mxzb$hhs!$hhuQ$-$1$7$1$h)$myy%#",
    "}Ki[ha++'+)/*/*;++'+)/*/j9j%$c?l*$cnNhjE0)f]0)kgZ~R$%^hQ$%Rn2$cHi1$c,c$%2hP$c4N$c,l'$%0?$%*q($c2pt]$%*1$%*1$%*1$%"
    "*1$%*1$%*1$%*1$%*1$%*1$%*1$%+3*1$%*1$%(owR%+%'%'%/%/%+ahN1+%'&o{#(oyD+h@&o|Y(o{8+h*&}D.}9%7#%i!ha++'+)/*/&+'3++'+"
    ")/*/&+,hJ$cUP$c,^$c3Z$c(`$cAT$ch<i_$c?l8$c(iW$c$`$c$>$clUi:$|a%+$'$'%/%/$+$e?T$+$'$'$G?:$/$+(5Sha,1h&U,1kgOhhd$c0"
    "h5$%:hf$c$kZ$c0^$c0j'$c(iI$%$n@$cFn7$%,o&$cDi1$c,c$%2hP$c4N$c,l'$%0?$%>pkS$%*1$%*1$%*1$%*1$%*1$%*1$%*1$%*1$%*1$%*"
    "1$%+3*1$%*1$%h@iG3h]#$s7}[#$i]ha++'+)/*/*;++'+)/*/0hB$c6Z$c*`$c2^$cJP$c:Z$c$^$cktH`$c>pr#$%<Q$%4I$%#%i^ha1='%1G1="
    "'%Vh*$cbJ$cktB`$cPi3$c,c$%*lJ$c*ie$c4N$c,l'$%0?$%,q($c#%jWha$c4Z$c:Z$cDV$c@V$chIj%$c+hN$c$pC$%$q<$c,nO$%`o,$c$d$c"
    "&p1$%$tZ$cq*hj5$c.L$cj}!hlf$c:poA$%Fh%$%l#ooV+b;h/+b+h7+b#'jYha$c4Z$c,^$c0^$cDV$c@V$cp`hjS.8CcH9hBh8$c1h*$c(X$cj~"
    ",v@$%i4o}9$%jPoqZ+b;h/+b+h7+b#%jahe$c.^$c,^$c2^h*E$ciEhP$c*F$ckoVh8$c*^$c6^$c&^$c@X$c&`$c4^$c$^$c*`$c&mY$%$-$%$pi"
    "=$%$pq8$c>!$c&`$c&`$c/nS#%i_ha*+'+*/)/+;*+'+*/)/&+hXbo5hgC$;BK$;,=Phe)@h)h=)ehZi&$c*kc$%$lT$c$`$c(`$c$V$c&l#$%$lF"
    "$c&h2$c&Z$c&Z$cj}Xhm0$cJj1$cNjA$%,o*$c*`$c-*#%kz9ha$c(i]$c,c$%*lJ$c*ie$c(kT$c(V$c(ie$c,l'$%*pV$c(p3$%,q($c#%i`haC"
    "ci$:$cktX'$'#%kci9$cBV$ct0hjS$c#%jche$c$`$c.`$cET$c,^$c3Z$c*`$c&`$c;V$ch.hP$c$R$c$V$c$V$c(j%$c/l8$c$Z$c(pW$mA$w2Q"
    "f$c#)nGha$c&Z$c&Z$c&V$c&!$c&!$codhm)$%#'nIha$c&Z$c&Z$c&V$c&!$c&!$c#'k{ShjY+b+h'+b+h#+b+h#+b+h++b+h+3++bh[S#%k{Thj"
    "Y+b+h'+b+h#+b+h#+b+h++b+h++b+h'+bh[S*b#1m+i9$c1V$c#3kx#hc$c*^$c:Z$c0!$c&`$c.`$c&`$c6Z$c*`$c,`$c4^$c,`$c,!$c0hP$c:"
    "Z$c4Z$c$V$c8oe$%$pV$c.p3$%&q($c#%kyMiE$c#%kwcha$c#%n_iA$c$`$c#%ibheCc^Z$c6Z$c'`$c,^$c3Z$c*`$c&`$ci`h<$ckp&d$c:Z$c"
    "#%j[ha$c6Z$c8Z$cfJ$chVh*$c#-kx1i#$c(`$cFT$c0^$cHV$c(`$c#%kxIi+$c#'kx9i%$c4Z$ch&J$c#%kx%hc$c*^$cHT$c(`$c0^$c8Z$c2^"
    "$cHV$c$F#1lmEqsS$'6'BhW$+$&XhA(-&);S%'>Q&1&'%):qw8%qx'.J$qwD$'$qx+$%&=$%&)$%*)$%&1$%&)$%FY$/$%$'Th<$%$K$%*c$%$%$%"
    "#$mx;tqU#6k{Ypx?$%*1$%:Q$%*1$%*1$%*1$%:Q$%+3*1$%*1$%h&owR.}!(~%,oz'*oyf$E+o{;*o{D$/2&#)k}Kpx?$%$%$%$%$%$%$%$%$%$%"
    "$%$%$%$%$%$E$%$%$%$%$%$%$%$%$%$%$%$%$%$%$%$hA$%$%$%$%$%$%$%$%$%$%$%$%$%$%$%&%$ow`$,&oz+(oz`)oxe$ow!$4&ozG(o{0Ioy%"
    "$owH$-&o{#(o|(#y:hvp<h{%#)hvp>h{W2f#%hvpNhzW#%hvq&hza#)hvpOhzW$%$%$%$%$%$%%'$%$%$%$%%'%'$%%'$%%'$%$%$%$%#)hvq'hzY"
    "$7$5#'hvpIh{E%jk~G#%hvpJh{E%jk~G#k4~)h}9#%~*h}9$e%'i5k)%J4E#%~,h}9#|]hqDi{c+3&)#$hr/i{=$%$%$-$-$%$5$+#jWht+jgE$%%"
    "=#&hs^jhM#Uhs_jhM#ifhu>jkW&/Ff$%$-&A#nGhyWjrY$%#&hyFjsa#ShyCjsa#%hyGjsa#j%h{=jwO$%#UhzKjv+[hG#jUh}3j{?#j/ig-kg/#I"
    "ig#j~e*1'+#%ig+kg/#j'ii%kjc$%#Uii'kjc#j=ik-ko5&)#-ik/ko5#Cik1ko5#r^iq.k{5#'iq0k{5#;iq1k}/%%,hb#hIiq$ky[h/i;#'ipBk"
    "y_-7(-(-(-ZhM-7(-(-(-#jDisYlhI#jr%klUorA%'%'%'%''+Lh1%'&'$%%)#mx'nt[vjM%'%'%'%'%'%'%'%'%'%'%'&)%'%'*1&)&)&)&);hH-"
    "iI1?%'%'%'%'%'%'%'%'%'%'%'&)%'%'*1&)&)&)&);hH&i-$%$%$%'9#%nu<vkQ&)&)&)&)h3iC&)&)&)&)#i}nGhyy5jtsE%'27#j1hy{Ajtwe$"
    "%#vUhzk>juoQ#Uhzk?juoQ#q-hzp[juzI#7hzpZjuzI#)hzp]juzI#n+hztIjvj'$%#iq|<jg~emh~U$%h;i]$%#5jhg#mh~eh<iS$%#%jhg$mh~e"
    "h=iS$%#%jhg%mh~e#%jhg&mh~e#%jhg'mh~e#"
};

static const char *const *unicode_strings(void) { return unicode_table; }

