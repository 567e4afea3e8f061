/* mamba.cu: the model of mamba.c on a GPU, section by section under the same numbers.

   SPDX-License-Identifier: MIT

   1. CONTENTS, NOTATION ======================================================================================

   Letters and shapes are those of mamba.c, which this file includes: config, parameter table, initialisation, sampler's
   settings, tokenizer and files are shared, and so the binary holds the reference that the kernels are compared with.

   T is the type of weights in matrix products and of activations: float, or bf16 with float master weights. Whatever is summed is
   summed in float: the residual stream, delta, h, norms, softmax, gradients of parameters, the optimiser.
   Activations are (batch, len, channels), channels contiguous, so a warp reads 32 neighbouring channels of one position
   at a time and nothing is ever transposed. Sums over rows are taken in parts, then over the parts in a fixed order;
   there is no atomic addition of floats, and two runs give the same bits.

   Above each kernel: which loop of mamba.c became the grid, what a thread holds, what is reduced and how. */

#ifdef CUDA_ON_CPU
#include "tests/cuda_on_cpu.h" /* the kernels without a GPU: see there */
#else
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#endif
#include "mamba.c"

#ifndef CUDA_ON_CPU
template <class... P, class... A>
static cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, A... args) {
    kernel<<<grid, block, shared_bytes, stream>>>(args...);
    return cudaGetLastError();
}

/* The block's dynamic shared memory. */
template <class T> static __device__ __forceinline__ T *dynamic_shared() {
    extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[];
    return reinterpret_cast<T *>(dynamic_shared_bytes);
}
#endif

/* 2. CONFIG AND MEMORY ========================================================================================= */

typedef __nv_bfloat16 bf16;

#define TRY(call) do { if ((call) != 0) return -1; } while (0)
#define CUDA(call) do { cudaError_t error_ = (call); if (error_ != cudaSuccess) return fail("cuda: %s (%s)", cudaGetErrorString(error_), #call); } while (0)
#define CUBLAS(call) do { int status_ = (int)(call); if (status_ != 0) return fail("cublas: status %d (%s)", status_, #call); } while (0)

static int ceil_div(long a, long b) { return (int)((a + b - 1) / b); }

static __device__ __forceinline__ float to_float(float v) { return v; }
static __device__ __forceinline__ float to_float(bf16 v) { return __bfloat162float(v); }
static __device__ __forceinline__ void store(float *p, float v) { *p = v; }
static __device__ __forceinline__ void store(bf16 *p, float v) { *p = __float2bfloat16(v); }

/* One allocation on the device, cut into arrays. A first pass with base NULL counts. */
typedef struct { char *base; size_t bytes; } Arena;

template <class T> static void take(Arena *arena, T **field, size_t n) {
    if (arena->base != NULL) *field = (T *)(arena->base + arena->bytes);
    arena->bytes += (n * sizeof(T) + 255) / 256 * 256;
}

/* What changes from step to step; a CUDA graph replays kernels with the arguments it was captured with, so these are
   read from device memory. */
typedef struct {
    float scale;                                                    /* of the loss's gradient, over the number of targets */
    float beta1, beta2, eps, weight_decay, clip, lr, unbias1, unbias2;
} StepArgs;

/* A generate() call goes in pieces of GENERATE_TOKENS; the repetition penalty sees at most HISTORY_TOKENS; a prompt is fed in
   pieces of PIECE_TOKENS; logits take HEAD_BYTES at a time. */
constexpr int GENERATE_TOKENS = 256, HISTORY_TOKENS = 1024, PIECE_TOKENS = 8192, HEAD_BYTES = 256 << 20, BLAS_WORKSPACE = 32 << 20;

/* One stream's Sampler on the device. Its random numbers are drawn by the host, one for each token to come. */
typedef struct {
    float temperature, top_p, min_p, repetition_penalty;
    int top_k, n_vocab, banned, window, n_history, n_out;
} GpuSampler;

/* What a block's forward leaves for its backward; see BlockActs of mamba.c. dt is before dt_bias and softplus. In lean mode
   normed, u and dt are not kept but computed again: all blocks share one. */
template <class T> struct GpuBlockActs {
    float *input, *r, *kept;
    T *normed, *xz, *u, *dbc, *dt, *gated;
};

template <class T> struct Gpu {
    Model model;                   /* the table; its weights are read when the backend opens */
    int lean, tf32, multiprocessors;
    cudaStream_t stream;
    cublasHandle_t blas;
    void *blas_workspace, *parameter_memory, *acts_memory, *stream_memory;

    float *weights, *grads, *moment1, *moment2; /* flat, as the table says; the last three NULL where it does not train */
    T *compute;                    /* the weights in T, for matrix products; the weights themselves where T is float */
    unsigned char *decay;          /* (n_param / 16): does weight decay apply to these 16? Offsets are multiples of 16 */
    Params w, g;
    StepArgs *args;
    float *loss, *norm;            /* the loss since the last update; norm: (1 + NORM_PARTS) the gradient's norm and its parts */

    int batch, len, train;         /* what the activations are laid out for */
    GpuBlockActs<T> *block;        /* (n_layer); where it does not train all share one layer's memory */
    float *x, *dx, *r, *losses, *parts;
    int *correct;
    T *normed, *branch, *logits, *dbranch, *dnormed, *dgated, *dxz, *du, *ddt, *ddbc;
    float *scan_scratch;
    int head_rows;                 /* rows of logits at a time */
    int *tokens, *targets, *order, *segment; /* order: rows sorted by token; segment: where each token's rows begin there */
    int *host_ids;                 /* staging for the four, and counts of tokens */

    int streams;                   /* decoding: see STATE in mamba.c */
    float *state, *held, *step_x, *step_u, *step_z, *step_parts, *step_gated, *uniforms;
    GpuSampler *samplers;
    int *sampled, *history, *out;

    cudaGraphExec_t gradient_graph, update_graph, generate_graph; /* NULL: to be captured */
};

/* 3. LAYERS ==================================================================================================== */

/* Sum over a warp; every lane gets it. */
static __device__ __forceinline__ float warp_sum(float v) {
    for (int lanes = 16; lanes > 0; lanes /= 2) v += __shfl_xor_sync(0xffffffffu, v, lanes);
    return v;
}

static __device__ __forceinline__ float warp_max(float v) {
    for (int lanes = 16; lanes > 0; lanes /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, lanes));
    return v;
}

/* Sum over a block of up to 1024 threads, in a fixed order; every thread gets it. */
static __device__ float block_sum(float v) {
    __shared__ float warp[32];
    int lane = threadIdx.x % 32, n_warps = blockDim.x / 32;
    v = warp_sum(v);
    __syncthreads(); /* the last use of warp[] is over */
    if (lane == 0) warp[threadIdx.x / 32] = v;
    __syncthreads();
    return warp_sum(lane < n_warps ? warp[lane] : 0);
}

static __device__ float block_max(float v) {
    __shared__ float warp[32];
    int lane = threadIdx.x % 32, n_warps = blockDim.x / 32;
    v = warp_max(v);
    __syncthreads();
    if (lane == 0) warp[threadIdx.x / 32] = v;
    __syncthreads();
    return warp_max(lane < n_warps ? warp[lane] : -INFINITY);
}

/* Sums over rows, for the gradients of vectors: parts[i][j] = sum over the i-th share of the rows of term(row, j).
   The loop over columns became blockIdx.x and threadIdx.x, the loop over rows is shared by blockIdx.y and threadIdx.y. */
constexpr int SUM_COLUMNS = 32, SUM_LANES = 8, SUM_PARTS = 64;

template <class Term> static __global__ void __launch_bounds__(SUM_COLUMNS * SUM_LANES)
row_sums_kernel(float *parts, Term term, int rows, int dim) {
    __shared__ float lane_sum[SUM_LANES][SUM_COLUMNS];
    int j = blockIdx.x * SUM_COLUMNS + threadIdx.x;
    float sum = 0;
    for (int row = blockIdx.y * SUM_LANES + threadIdx.y; j < dim && row < rows; row += gridDim.y * SUM_LANES) sum += term(row, j);
    lane_sum[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && j < dim) {
        for (int i = 1; i < SUM_LANES; i++) sum += lane_sum[i][threadIdx.x];
        parts[(size_t)blockIdx.y * dim + j] = sum;
    }
}

/* out_j += sum_i parts[i][j].     parts: (n, dim) */
static __global__ void __launch_bounds__(SUM_COLUMNS * SUM_LANES) add_parts_kernel(float *out, const float *parts, int n, size_t dim) {
    __shared__ float lane_sum[SUM_LANES][SUM_COLUMNS];
    size_t j = (size_t)blockIdx.x * SUM_COLUMNS + threadIdx.x;
    float sum = 0;
    for (int i = threadIdx.y; j < dim && i < n; i += SUM_LANES) sum += parts[i * dim + j];
    lane_sum[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && j < dim) {
        for (int i = 1; i < SUM_LANES; i++) sum += lane_sum[i][threadIdx.x];
        out[j] += sum;
    }
}

template <class T> static int add_parts(Gpu<T> *gpu, float *out, const float *parts, int n, size_t dim) {
    CUDA(launch(add_parts_kernel, dim3(ceil_div((long)dim, SUM_COLUMNS)), dim3(SUM_COLUMNS, SUM_LANES), 0, gpu->stream, out, parts, n, dim));
    return 0;
}

/* out_j += sum over rows of term(row, j) */
template <class T, class Term> static int row_sums(Gpu<T> *gpu, float *out, Term term, int rows, int dim) {
    int n = min_int(SUM_PARTS, ceil_div(rows, SUM_LANES));
    CUDA(launch(row_sums_kernel<Term>, dim3(ceil_div(dim, SUM_COLUMNS), n), dim3(SUM_COLUMNS, SUM_LANES), 0, gpu->stream, gpu->parts,
                term, rows, dim));
    return add_parts(gpu, out, gpu->parts, n, (size_t)dim);
}

/* Embedding: a block per row. */
static __global__ void embedding_kernel(float *y, const float *W, const int *tokens, int d_model) {
    size_t row = blockIdx.x;
    for (int i = threadIdx.x; i < d_model; i += blockDim.x) y[row * d_model + i] = W[(size_t)tokens[row] * d_model + i];
}

/* dW[token] += the sum of dy over the rows that hold this token. Two threads must not add to the same place, so the host
   sorts the rows by token and the grid is over the tokens that occur (x) and 32 columns (y); the block's SUM_LANES rows
   of threads share a token's rows. segment: where the rows of the i-th token begin in order, -1 past the last. */
static __global__ void __launch_bounds__(SUM_COLUMNS * SUM_LANES)
embedding_backward_kernel(float *dW, const float *dy, const int *tokens, const int *order, const int *segment, int d_model) {
    __shared__ float lane_sum[SUM_LANES][SUM_COLUMNS];
    int first = segment[blockIdx.x], end = first < 0 ? -1 : segment[blockIdx.x + 1], j = blockIdx.y * SUM_COLUMNS + threadIdx.x;
    float sum = 0;
    for (int i = first + (int)threadIdx.y; j < d_model && i < end; i += SUM_LANES) sum += dy[(size_t)order[i] * d_model + j];
    lane_sum[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && j < d_model && first < end) {
        for (int i = 1; i < SUM_LANES; i++) sum += lane_sum[i][threadIdx.x];
        dW[(size_t)tokens[order[first]] * d_model + j] += sum;
    }
}

/* The residual connection and the RMSNorm behind it: out = x + branch + bias and y = out r w. A warp per row, its lanes
   stride over the columns. branch (and bias) may be NULL: then out is not written. */
template <class T> static __global__ void residual_rmsnorm_kernel(T *y, float *r, float *out, const float *x, const T *branch,
                                                                  const float *bias, const float *w, int rows, int dim, float eps) {
    int row = blockIdx.x * blockDim.y + threadIdx.y, lane = threadIdx.x;
    float sum = 0, scale;
    if (row >= rows) return;
    for (int i = lane; i < dim; i += 32) {
        size_t at = (size_t)row * dim + i;
        float v = x[at];
        if (branch != NULL) out[at] = v += to_float(branch[at]) + (bias != NULL ? bias[i] : 0);
        sum += v * v;
    }
    scale = rsqrtf(warp_sum(sum) / dim + eps);
    if (lane == 0) r[row] = scale;
    if (branch != NULL) x = out; /* a lane reads what it wrote itself */
    for (int i = lane; i < dim; i += 32) store(&y[(size_t)row * dim + i], x[(size_t)row * dim + i] * scale * w[i]);
}

/* dx += r (dy w - x r^2 mean(dy w x)), a warp per row; also in T, for the matrix products of the block before. */
template <class T> static __global__ void rmsnorm_backward_kernel(float *dx, T *dx_T, const T *dy, const float *x, const float *r,
                                                                  const float *w, int rows, int dim, int add) {
    int row = blockIdx.x * blockDim.y + threadIdx.y, lane = threadIdx.x;
    float sum = 0, scale, mean;
    if (row >= rows) return;
    dx += (size_t)row * dim, dx_T += (size_t)row * dim, dy += (size_t)row * dim, x += (size_t)row * dim;
    for (int i = lane; i < dim; i += 32) sum += to_float(dy[i]) * w[i] * x[i];
    mean = warp_sum(sum) / dim, scale = r[row];
    for (int i = lane; i < dim; i += 32) {
        float d = scale * (to_float(dy[i]) * w[i] - x[i] * scale * scale * mean) + (add ? dx[i] : 0);
        dx[i] = d;
        store(&dx_T[i], d);
    }
}

template <class T> struct NormTerm { /* dw_j = sum over rows of dy x r */
    const T *dy;
    const float *x, *r;
    int dim;
    __device__ float operator()(int row, int j) const { return to_float(dy[(size_t)row * dim + j]) * x[(size_t)row * dim + j] * r[row]; }
};

template <class T> struct BiasTerm { /* dbias_j = sum over rows of dy */
    const T *dy;
    size_t ld;
    __device__ float operator()(int row, int j) const { return to_float(dy[row * ld + j]); }
};

template <class T> static __global__ void add_bias_kernel(T *y, const float *bias, size_t rows, int dim) {
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < rows * dim; i += (size_t)gridDim.x * blockDim.x)
        store(&y[i], to_float(y[i]) + bias[i % dim]);
}

/* Matrix products are cuBLAS's. It numbers the elements of a matrix column by column, so what is (rows, columns) to us is
   (columns, rows) to it, and a product of ours is its product of the operands in the other order. */
static cudaDataType_t blas_type(const float *) { return CUDA_R_32F; }
static cudaDataType_t blas_type(const bf16 *) { return CUDA_R_16BF; }

template <class T, class C> static int gemm(Gpu<T> *gpu, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
                                            const T *a, size_t lda, const T *b, size_t ldb, C *c, size_t ldc, int add) {
    float alpha = 1, beta = add ? 1.0f : 0.0f;
    CUBLAS(cublasGemmEx(gpu->blas, op_a, op_b, m, n, k, &alpha, a, blas_type(a), (int)lda, b, blas_type(b), (int)ldb, &beta, c,
                        blas_type(c), (int)ldc, gpu->tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
    return 0;
}

/* y = x W^T.     x: (rows, in), row stride ldx; W: (out, in); y: (rows, out) */
template <class T, class C> static int linear_forward(Gpu<T> *gpu, C *y, const T *x, size_t ldx, const T *W, int rows, int in, int out) {
    return gemm(gpu, CUBLAS_OP_T, CUBLAS_OP_N, out, rows, in, W, (size_t)in, x, ldx, y, (size_t)out, 0);
}

/* dx = dy W (or +=, where add),     dW += dy^T x.     dx: row stride ldx */
template <class T> static int linear_backward(Gpu<T> *gpu, T *dx, float *dW, const T *dy, const T *x, size_t ldx, const T *W, int rows,
                                              int in, int out, int add) {
    TRY(gemm(gpu, CUBLAS_OP_N, CUBLAS_OP_N, in, rows, out, W, (size_t)in, dy, (size_t)out, dx, ldx, add));
    return gemm(gpu, CUBLAS_OP_N, CUBLAS_OP_T, in, out, rows, x, ldx, dy, (size_t)out, dW, (size_t)in, 1);
}

/* Four neighbours, moved by one instruction. */
template <class T> struct alignas(4 * sizeof(T)) Four { T v[4]; };

/* Four elements of a row of which only n exist; `aligned`: all rows begin at a multiple of four elements. */
template <class T> static __device__ __forceinline__ Four<T> load_four(const T *p, int n, bool aligned) {
    Four<T> r;
    if (aligned && n >= 4) return *(const Four<T> *)p;
    for (int i = 0; i < 4; i++) store(&r.v[i], i < n ? to_float(p[i]) : 0.0f);
    return r;
}

template <class T> static __device__ __forceinline__ void store_four(T *p, const float *v, int n, bool aligned) {
    Four<T> r;
    for (int i = 0; i < 4; i++) store(&r.v[i], v[i]);
    if (aligned && n >= 4) *(Four<T> *)p = r;
    else for (int i = 0; i < 4; i++) if (i < n) p[i] = r.v[i];
}

#ifdef CUDA_ON_CPU
static inline float exp2_fast(float x) { return exp2f(x); }
static inline float reciprocal(float x) { return 1.0f / x; }
#else
static __device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
static __device__ __forceinline__ float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#endif

constexpr float LOG2_E = 1.44269504f, LN_2 = 0.69314718f;

static __device__ __forceinline__ float sigmoid(float v) { return reciprocal(1.0f + exp2_fast(-LOG2_E * v)); }

/* softplus(v) = log(1 + exp(v)) = max(v, 0) + log1p(e), e = exp(-|v|), and log1p(e) = 2 artanh(r), r = e / (2 + e) <= 1/3: its series
   keeps the relative error small where delta is, which log(1 + e) does not. */
static __device__ __forceinline__ float softplus(float v) {
    float e = exp2_fast(-LOG2_E * fabsf(v)), r = e * reciprocal(2.0f + e), s = r * r;
    float series = 1 + s * (1.0f / 3 + s * (1.0f / 5 + s * (1.0f / 7 + s * (1.0f / 9 + s * (1.0f / 11)))));
    return fmaxf(v, 0.0f) + 2 * r * series;
}

/* One call of the scan. Tensors are (batch, len, d_inner), B and C (batch, len, d_state), channels contiguous; ld_ is the distance between
   positions. States are (batch, d_state, d_inner), ld_h from one sequence to the next. */
template <class T> struct Scan {
    int batch, len, d_inner, d_state;
    const T *u, *dt, *z, *B, *C;                  /* dt before dt_bias and softplus */
    size_t ld_u, ld_dt, ld_z, ld_bc;
    const float *A_log, *D, *dt_bias;
    const float *h_first;                         /* NULL: zeros */
    float *h_last;                                /* NULL: not wanted */
    size_t ld_h;
    T *out;                                       /* y silu(z) */
    size_t ld_out;
    float *checkpoints;                           /* h before every tile, for the backward pass; NULL: not wanted */
    float *scratch;
    /* backward only */
    const T *d_out;
    T *du, *ddt, *dz, *dB, *dC;
    size_t ld_d_out, ld_du, ld_ddt, ld_dz, ld_dbc;
    float *dA_log, *dD, *ddt_bias;                /* added to */
    /* filled in by the launchers */
    int chunks, chunk_len;                        /* len is cut into chunks that are walked at the same time */
    bool aligned, aligned_bc;
    float *chunk_delta, *chunk_end;               /* (batch, chunks, d_inner), (.., d_inner, states): sum of delta; state at the end, from h = 0 */
    float *part_bc, *part_channels;               /* shares of gradients, to be summed in a fixed order: (blocks, batch * len, 2, states);
                                                     (batch, chunks, d_inner * states + d_inner + d_inner) */
};

/* LANES threads share a channel and own STATES states each: LANES * STATES >= d_state. A block has 32 WARPS / LANES channels and takes TILE
   positions at a time. */
template <int LANES_, int STATES_, int TILE_, int GROUP_> struct ScanPlan {
    static constexpr int LANES = LANES_, STATES = STATES_, TILE = TILE_, WARPS = 4, GROUP = GROUP_, MIN_BLOCKS = 3, THREADS = 32 * WARPS, N = LANES * STATES;
    static constexpr int CHANNELS = THREADS / LANES, WARP_CHANNELS = 32 / LANES, QUADS = CHANNELS / 4;
    static constexpr int ITEMS = TILE * QUADS, PER_THREAD = (ITEMS + THREADS - 1) / THREADS; /* fours of a tile */
};

/* The recurrence is h' = a h + b, and doing `first`, then `second`, is a map of the same form: this operator is associative, so a chunk's
   map may be computed before the state it applies to is known. */
struct Affine { float a, b; };
static __device__ __forceinline__ Affine then(Affine first, Affine second) {
    return Affine{second.a * first.a, second.a * first.b + second.b};
}

/* Sums v[k] over the lanes of a channel (lane = state group * WARP_CHANNELS + channel), four positions k at a time: a fold halves
   the values a lane keeps while it doubles the lanes summed. Lane l gets position l / 8. */
template <int WARP_CHANNELS> static __device__ __forceinline__ float sum_states(const float *v) {
    bool upper = threadIdx.x & 16, odd = threadIdx.x & 8;
    float a = (upper ? v[2] : v[0]) + __shfl_xor_sync(~0u, upper ? v[0] : v[2], 16);
    float b = (upper ? v[3] : v[1]) + __shfl_xor_sync(~0u, upper ? v[1] : v[3], 16);
    float sum = (odd ? b : a) + __shfl_xor_sync(~0u, odd ? a : b, 8);
    for (int lanes = 4; lanes >= WARP_CHANNELS; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
    return sum;
}

/* B or C of a tile, as floats, zeros beyond d_state and len. */
template <class P, class T>
static __device__ __forceinline__ void load_states(float (*to)[P::N], const T *from, size_t ld, int rows, int d_state, bool aligned) {
    for (int i = threadIdx.x; i < P::TILE * P::N / 4; i += P::THREADS) {
        int t = i / (P::N / 4), n = i % (P::N / 4) * 4;
        Four<T> v = load_four(from + t * ld + n, t < rows ? d_state - n : 0, aligned);
        for (int k = 0; k < 4; k++) to[t][n + k] = to_float(v.v[k]);
    }
}

template <class P> struct ForwardShared {
    float2 dx[P::TILE][P::CHANNELS];              /* delta, delta u */
    float y[P::TILE][P::CHANNELS + 8];
    float B[P::TILE][P::N], C[P::TILE][P::N];
};

/* scan_forward of mamba.c. Its loops over b and d, and chunks of the loop over t, are the grid; the loop over n is LANES threads times STATES
   registers, which hold h. A tile's delta and delta u are computed with neighbouring threads on neighbouring channels and handed over
   in shared memory; y is summed over n by shuffles and returned the same way.
   SUMMARY: only the end state from h = 0 and the sum of delta; z, C and y are not touched. */
template <class T, class P, bool SUMMARY> static __global__ void __launch_bounds__(P::THREADS) scan_forward_kernel(Scan<T> s) {
    ForwardShared<P> &shared = *dynamic_shared<ForwardShared<P>>();
    int blocks = (s.d_inner + P::CHANNELS - 1) / P::CHANNELS, d0 = blockIdx.x % blocks * P::CHANNELS;
    int chunks = s.chunks - SUMMARY, chunk = blockIdx.x / blocks % chunks, b = blockIdx.x / blocks / chunks; /* the last: not asked */
    int begin = chunk * s.chunk_len, end = min(s.len, begin + s.chunk_len);
    int lane = threadIdx.x % 32, n0 = lane / P::WARP_CHANNELS * P::STATES;
    int channel = threadIdx.x / 32 * P::WARP_CHANNELS + lane % P::WARP_CHANNELS, d = d0 + channel;
    int c4 = threadIdx.x % P::QUADS * 4, t4 = threadIdx.x / P::QUADS, have = s.d_inner - d0 - c4; /* this thread's four channels */

    float A[P::STATES], h[P::STATES], bias[4], D[4], delta_sum = 0; /* A in units of log 2 */
    for (int i = 0; i < 4; i++) {
        bias[i] = i < have ? s.dt_bias[d0 + c4 + i] : 0;
        D[i] = i < have ? s.D[d0 + c4 + i] : 0;
    }
    for (int i = 0; i < P::STATES; i++) {
        bool real_state = d < s.d_inner && n0 + i < s.d_state;
        A[i] = real_state ? -LOG2_E * expf(s.A_log[(size_t)d * s.d_state + n0 + i]) : 0;
        h[i] = !SUMMARY && s.h_first != nullptr && real_state ? s.h_first[b * s.ld_h + (size_t)(n0 + i) * s.d_inner + d] : 0;
    }
    if (!SUMMARY && d < s.d_inner)
        for (int c = 0; c < chunk; c++) {          /* the chunks before this one */
            size_t at = ((size_t)b * s.chunks + c) * s.d_inner + d;
            for (int i = 0; i < P::STATES; i++)
                h[i] = then(Affine{0, h[i]}, Affine{exp2_fast(A[i] * s.chunk_delta[at]), s.chunk_end[at * P::N + n0 + i]}).b;
        }

    for (int tile = begin; tile < end; tile += P::TILE) {
        size_t row = (size_t)b * s.len + tile;
        Four<T> u[P::PER_THREAD], z[P::PER_THREAD];
        for (int k = 0; k < P::PER_THREAD; k++) {
            int t = t4 + k * (P::THREADS / P::QUADS);
            if (P::ITEMS % P::THREADS != 0 && t >= P::TILE) break;
            int n = tile + t < end ? have : 0;
            Four<T> dt = load_four(s.dt + (row + t) * s.ld_dt + d0 + c4, n, s.aligned);
            u[k] = load_four(s.u + (row + t) * s.ld_u + d0 + c4, n, s.aligned);
            if (!SUMMARY) z[k] = load_four(s.z + (row + t) * s.ld_z + d0 + c4, n, s.aligned);
            for (int i = 0; i < 4; i++) {
                float delta = i < n ? softplus(to_float(dt.v[i]) + bias[i]) : 0;
                shared.dx[t][c4 + i] = make_float2(delta, delta * to_float(u[k].v[i]));
            }
        }
        load_states<P>(shared.B, s.B + row * s.ld_bc, s.ld_bc, end - tile, s.d_state, s.aligned_bc);
        if (!SUMMARY) load_states<P>(shared.C, s.C + row * s.ld_bc, s.ld_bc, end - tile, s.d_state, s.aligned_bc);
        if (!SUMMARY && s.checkpoints != nullptr && d < s.d_inner) {
            float *to = s.checkpoints + (((size_t)b * ((s.len + P::TILE - 1) / P::TILE) + tile / P::TILE) * s.d_inner + d) * P::N + n0;
            for (int i = 0; i < P::STATES; i += 4) *(float4 *)(to + i) = make_float4(h[i], h[i + 1], h[i + 2], h[i + 3]);
        }
        __syncthreads();
#pragma unroll 2
        for (int t = 0; t < P::TILE; t += 4) {
            float y[4] = {};
            for (int k = 0; k < 4; k++) {
                float2 dx = shared.dx[t + k][channel];
                const float *B = shared.B[t + k] + n0, *C = shared.C[t + k] + n0;
                for (int i = 0; i < P::STATES; i++) {
                    h[i] = exp2_fast(dx.x * A[i]) * h[i] + dx.y * B[i];
                    if (!SUMMARY) y[k] += h[i] * C[i];
                }
                if (SUMMARY) delta_sum += dx.x;
            }
            if (!SUMMARY) {
                float sum = sum_states<P::WARP_CHANNELS>(y);
                if (lane % 8 < P::WARP_CHANNELS) shared.y[t + lane / 8][channel] = sum;
            }
        }
        __syncthreads();
        if (!SUMMARY)
            for (int k = 0; k < P::PER_THREAD; k++) {
                int t = t4 + k * (P::THREADS / P::QUADS);
                if (t >= P::TILE || tile + t >= end) break;
                float out[4];
                for (int i = 0; i < 4; i++) {
                    float gate = to_float(z[k].v[i]);
                    out[i] = (shared.y[t][c4 + i] + D[i] * to_float(u[k].v[i])) * gate * sigmoid(gate);
                }
                store_four(s.out + (row + t) * s.ld_out + d0 + c4, out, have, s.aligned);
            }
    }
    if (d >= s.d_inner) return;
    if (SUMMARY) {
        size_t at = ((size_t)b * s.chunks + chunk) * s.d_inner + d;
        for (int i = 0; i < P::STATES; i++) s.chunk_end[at * P::N + n0 + i] = h[i];
        if (n0 == 0) s.chunk_delta[at] = delta_sum;
    } else if (s.h_last != nullptr && end == s.len) {
        for (int i = 0; i < P::STATES; i++)
            if (n0 + i < s.d_state) s.h_last[b * s.ld_h + (size_t)(n0 + i) * s.d_inner + d] = h[i];
    }
}

template <class P> struct BackwardShared {
    float2 dx[P::TILE][P::CHANNELS];              /* delta, delta u; once used: sum over n of dh B, of A g h */
    float weight[2][P::TILE][P::CHANNELS];        /* delta u, of dh in dB; dy, of h in dC; once used: y, - */
    float B[P::TILE][P::N], C[P::TILE][P::N];
    float h[P::TILE / P::GROUP][P::THREADS][P::STATES];                   /* before each group of positions */
    float exchange[P::WARPS][4][2][P::WARP_CHANNELS * P::N + 16];         /* dh and h of four positions */
    float part[P::TILE][P::WARPS][2][P::N];                               /* dB, dC, summed over the channels of a warp */
};

/* scan_backward of mamba.c. The grid is the forward's; tiles, and in a tile groups of GROUP positions, are walked from the last to the first.
   With dh_t the gradient of h_t by everything that follows,
       dh_t = dy_t C_t + g_{t+1},  g_t = abar_t dh_t,  ddelta_t = sum_n dh_t (u_t B_t) + A g_t h_{t-1},  du_t = delta_t sum_n dh_t B_t + D dy_t,
       dA = sum_t delta_t g_t h_{t-1},  dB_t = sum_d delta_t u_t dh_t,  dC_t = sum_d dy_t h_t.
   h is computed again: once from the tile's checkpoint to keep it before every group (shared memory), then in each group to keep it and
   abar at every position (registers). Sums over n are shuffles, as in the forward; sums over the channels of a warp go through shared memory,
   four positions at a time, those over warps follow at the end of the tile, those over blocks in scan_gradients_kernel.
   SUMMARY: only g at the chunk's first position, from 0 behind its last, and the sum of delta. */
template <class T, class P, bool SUMMARY> static __global__ void __launch_bounds__(P::THREADS, P::MIN_BLOCKS) scan_backward_kernel(Scan<T> s) {
    BackwardShared<P> &shared = *dynamic_shared<BackwardShared<P>>();
    int blocks = (s.d_inner + P::CHANNELS - 1) / P::CHANNELS, block = blockIdx.x % blocks, d0 = block * P::CHANNELS;
    int chunks = s.chunks - SUMMARY, chunk = blockIdx.x / blocks % chunks + SUMMARY, b = blockIdx.x / blocks / chunks;
    int begin = chunk * s.chunk_len, end = min(s.len, begin + s.chunk_len), tiles = (s.len + P::TILE - 1) / P::TILE;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n0 = lane / P::WARP_CHANNELS * P::STATES;
    int channel = warp * P::WARP_CHANNELS + lane % P::WARP_CHANNELS, d = d0 + channel;
    int c4 = threadIdx.x % P::QUADS * 4, t4 = threadIdx.x / P::QUADS, have = s.d_inner - d0 - c4;

    float A[P::STATES], g[P::STATES], dA[P::STATES] = {}, bias[4], D[4], dbias[4] = {}, dD[4] = {}, delta_sum = 0;
    for (int i = 0; i < 4; i++) {
        bias[i] = i < have ? s.dt_bias[d0 + c4 + i] : 0;
        D[i] = i < have ? s.D[d0 + c4 + i] : 0;
    }
    for (int i = 0; i < P::STATES; i++) {
        A[i] = d < s.d_inner && n0 + i < s.d_state ? -LOG2_E * expf(s.A_log[(size_t)d * s.d_state + n0 + i]) : 0;
        g[i] = 0;
    }
    if (!SUMMARY && d < s.d_inner)
        for (int c = s.chunks - 1; c > chunk; c--) {
            size_t at = ((size_t)b * s.chunks + c) * s.d_inner + d;
            for (int i = 0; i < P::STATES; i++)
                g[i] = then(Affine{0, g[i]}, Affine{exp2_fast(A[i] * s.chunk_delta[at]), s.chunk_end[at * P::N + n0 + i]}).b;
        }

    for (int tile = begin + (end - 1 - begin) / P::TILE * P::TILE; tile >= begin; tile -= P::TILE) {
        size_t row = (size_t)b * s.len + tile;
        Four<T> u[P::PER_THREAD], dt[P::PER_THREAD], z[P::PER_THREAD], d_out[P::PER_THREAD];
        for (int k = 0; k < P::PER_THREAD; k++) {
            int t = t4 + k * (P::THREADS / P::QUADS), n = tile + t < end ? have : 0;
            if (P::ITEMS % P::THREADS != 0 && t >= P::TILE) break;
            dt[k] = load_four(s.dt + (row + t) * s.ld_dt + d0 + c4, n, s.aligned);
            if (!SUMMARY) u[k] = load_four(s.u + (row + t) * s.ld_u + d0 + c4, n, s.aligned);
            z[k] = load_four(s.z + (row + t) * s.ld_z + d0 + c4, n, s.aligned);
            d_out[k] = load_four(s.d_out + (row + t) * s.ld_d_out + d0 + c4, n, s.aligned);
            for (int i = 0; i < 4; i++) {
                float delta = i < n ? softplus(to_float(dt[k].v[i]) + bias[i]) : 0, x = SUMMARY ? 0 : delta * to_float(u[k].v[i]);
                float gate = to_float(z[k].v[i]);
                shared.dx[t][c4 + i] = make_float2(delta, x);
                shared.weight[0][t][c4 + i] = x;
                shared.weight[1][t][c4 + i] = to_float(d_out[k].v[i]) * gate * sigmoid(gate);
            }
        }
        if (!SUMMARY) load_states<P>(shared.B, s.B + row * s.ld_bc, s.ld_bc, end - tile, s.d_state, s.aligned_bc);
        load_states<P>(shared.C, s.C + row * s.ld_bc, s.ld_bc, end - tile, s.d_state, s.aligned_bc);
        float h[P::GROUP + 1][P::STATES] = {}, abar[P::GROUP][P::STATES];
        if (!SUMMARY && d < s.d_inner) {
            const float *from = s.checkpoints + (((size_t)b * tiles + tile / P::TILE) * s.d_inner + d) * P::N + n0;
            for (int i = 0; i < P::STATES; i++) h[0][i] = from[i];
        }
        __syncthreads();
        if (SUMMARY) {
#pragma unroll 4
            for (int t = P::TILE - 1; t >= 0; t--) {
                float delta = shared.dx[t][channel].x, dy = shared.weight[1][t][channel];
                for (int i = 0; i < P::STATES; i++) g[i] = (dy * shared.C[t][n0 + i] + g[i]) * exp2_fast(delta * A[i]);
                delta_sum += delta;
            }
            __syncthreads();
            continue;
        }
        for (int group = 0; group < P::TILE / P::GROUP; group++) {
            for (int i = 0; i < P::STATES; i++) shared.h[group][threadIdx.x][i] = h[0][i];
            if (group < P::TILE / P::GROUP - 1)
                for (int k = 0; k < P::GROUP; k++) {
                    int t = group * P::GROUP + k;
                    float2 dx = shared.dx[t][channel];
                    for (int i = 0; i < P::STATES; i++) h[0][i] = exp2_fast(dx.x * A[i]) * h[0][i] + dx.y * shared.B[t][n0 + i];
                }
        }
#pragma unroll 1
        for (int group = P::TILE / P::GROUP - 1; group >= 0; group--) {
            for (int i = 0; i < P::STATES; i++) h[0][i] = shared.h[group][threadIdx.x][i];
            for (int k = 0; k < P::GROUP; k++) {
                int t = group * P::GROUP + k;
                float2 dx = shared.dx[t][channel];
                for (int i = 0; i < P::STATES; i++) {
                    abar[k][i] = exp2_fast(dx.x * A[i]);
                    h[k + 1][i] = abar[k][i] * h[k][i] + dx.y * shared.B[t][n0 + i];
                }
            }
#pragma unroll
            for (int k4 = P::GROUP - 4; k4 >= 0; k4 -= 4) {
                int t = group * P::GROUP + k4;
                float dh_B[4], Agh[4], y[4];
#pragma unroll
                for (int k = 3; k >= 0; k--) {
                    float delta = shared.dx[t + k][channel].x, dy = shared.weight[1][t + k][channel], dh[P::STATES];
                    dh_B[k] = Agh[k] = y[k] = 0;
                    for (int i = 0; i < P::STATES; i++) {
                        float C = shared.C[t + k][n0 + i];
                        dh[i] = dy * C + g[i];
                        g[i] = dh[i] * abar[k4 + k][i];
                        float gh = g[i] * h[k4 + k][i];
                        dh_B[k] += dh[i] * shared.B[t + k][n0 + i];
                        Agh[k] += gh * A[i];
                        dA[i] += gh * delta;
                        y[k] += h[k4 + k + 1][i] * C;
                    }
                    float *to = &shared.exchange[warp][k][0][lane % P::WARP_CHANNELS * P::N + n0];
                    for (int i = 0; i < P::STATES; i += 4) {
                        float *now = h[k4 + k + 1] + i;
                        *(float4 *)(to + i) = make_float4(dh[i], dh[i + 1], dh[i + 2], dh[i + 3]);
                        *(float4 *)(to + P::WARP_CHANNELS * P::N + 16 + i) = make_float4(now[0], now[1], now[2], now[3]);
                    }
                }
                float sum_B = sum_states<P::WARP_CHANNELS>(dh_B), sum_A = LN_2 * sum_states<P::WARP_CHANNELS>(Agh);
                float sum_y = sum_states<P::WARP_CHANNELS>(y);
                __syncwarp();
                for (int i = lane; i < 2 * P::N; i += 32) {
                    int n = i % (P::N / 4) * 4, which = i / (P::N / 4) % 2, k = i / (P::N / 2);
                    float4 sum = make_float4(0, 0, 0, 0);
                    for (int c = 0; c < P::WARP_CHANNELS; c++) {
                        float4 v = *(const float4 *)&shared.exchange[warp][k][which][c * P::N + n];
                        float w = shared.weight[which][t + k][warp * P::WARP_CHANNELS + c];
                        sum = make_float4(sum.x + w * v.x, sum.y + w * v.y, sum.z + w * v.z, sum.w + w * v.w);
                    }
                    *(float4 *)&shared.part[t + k][warp][which][n] = sum;
                }
                __syncwarp();
                if (lane % 8 < P::WARP_CHANNELS) {
                    shared.dx[t + lane / 8][channel] = make_float2(sum_B, sum_A);
                    shared.weight[0][t + lane / 8][channel] = sum_y;
                }
            }
        }
        __syncthreads();
        for (int i = threadIdx.x; i < P::TILE * P::N / 2; i += P::THREADS) {
            int n = i % (P::N / 4) * 4, which = i / (P::N / 4) % 2, t = i / (P::N / 2);
            if (tile + t >= end) break;
            float4 sum = make_float4(0, 0, 0, 0);
            for (int w = 0; w < P::WARPS; w++) {
                float4 v = *(const float4 *)&shared.part[t][w][which][n];
                sum = make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
            }
            *(float4 *)&s.part_bc[(((size_t)block * s.batch * s.len + row + t) * 2 + which) * P::N + n] = sum;
        }
        for (int k = 0; k < P::PER_THREAD; k++) {
            int t = t4 + k * (P::THREADS / P::QUADS);
            if (t >= P::TILE || tile + t >= end) break;
            float du[4], ddt[4], dz[4];
            for (int i = 0; i < 4; i++) {
                float v = to_float(dt[k].v[i]) + bias[i], gate = to_float(z[k].v[i]), input = to_float(u[k].v[i]), open = sigmoid(gate);
                float2 sums = shared.dx[t][c4 + i];
                float dy = to_float(d_out[k].v[i]) * gate * open;
                du[i] = softplus(v) * sums.x + D[i] * dy;
                ddt[i] = (input * sums.x + sums.y) * sigmoid(v);
                dz[i] = (shared.weight[0][t][c4 + i] + D[i] * input) * to_float(d_out[k].v[i]) * open * (1 + gate * (1 - open));
                dD[i] += dy * input;
                dbias[i] += i < have ? ddt[i] : 0;
            }
            store_four(s.du + (row + t) * s.ld_du + d0 + c4, du, have, s.aligned);
            store_four(s.ddt + (row + t) * s.ld_ddt + d0 + c4, ddt, have, s.aligned);
            store_four(s.dz + (row + t) * s.ld_dz + d0 + c4, dz, have, s.aligned);
        }
        __syncthreads();
    }
    size_t at = (size_t)b * s.chunks + chunk;
    if (SUMMARY) {
        if (d >= s.d_inner) return;
        for (int i = 0; i < P::STATES; i++) s.chunk_end[(at * s.d_inner + d) * P::N + n0 + i] = g[i];
        if (n0 == 0) s.chunk_delta[at * s.d_inner + d] = delta_sum;
        return;
    }
    float *part = s.part_channels + at * s.d_inner * (P::N + 2);
    if (d < s.d_inner)
        for (int i = 0; i < P::STATES; i++) part[(size_t)d * P::N + n0 + i] = dA[i];
    float (*row_sums)[2][P::CHANNELS] = (float (*)[2][P::CHANNELS])shared.part; /* dD, dbias: (THREADS / QUADS, 2, CHANNELS) */
    for (int i = 0; i < 4; i++) row_sums[t4][0][c4 + i] = dD[i], row_sums[t4][1][c4 + i] = dbias[i];
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * P::CHANNELS; i += P::THREADS) {
        int which = i / P::CHANNELS, c = i % P::CHANNELS;
        float sum = 0;
        for (int k = 0; k < P::THREADS / P::QUADS; k++) sum += row_sums[k][which][c];
        if (d0 + c < s.d_inner) part[(size_t)s.d_inner * (P::N + which) + d0 + c] = sum;
    }
}

/* Sums what the blocks of scan_backward_kernel left, in a fixed order: dB and dC over channels, dA_log, dD and ddt_bias over sequences and chunks. A thread
   has one element; blocks from bc_blocks on do the parameters. dA_log = A dA. */
template <class T, class P> static __global__ void __launch_bounds__(256) scan_gradients_kernel(Scan<T> s, int bc_blocks) {
    size_t rows = (size_t)s.batch * s.len;
    if ((int)blockIdx.x < bc_blocks) {
        size_t i = (size_t)blockIdx.x * 256 + threadIdx.x, row = i / (2 * P::N);
        int n = i % P::N, which = i / P::N % 2, blocks = (s.d_inner + P::CHANNELS - 1) / P::CHANNELS;
        if (row >= rows || n >= s.d_state) return;
        float sum = 0;
#pragma unroll 8
        for (int k = 0; k < blocks; k++) sum += s.part_bc[(size_t)k * rows * 2 * P::N + i];
        store((which ? s.dC : s.dB) + row * s.ld_dbc + n, sum);
    } else {
        size_t i = (size_t)(blockIdx.x - bc_blocks) * 256 + threadIdx.x, width = (size_t)s.d_inner * (P::N + 2), d = i / P::N;
        int n = i % P::N;
        if (i >= width) return;
        float sum = 0;
#pragma unroll 8
        for (int k = 0; k < s.batch * s.chunks; k++) sum += s.part_channels[k * width + i];
        if (i >= width - s.d_inner) s.ddt_bias[i + s.d_inner - width] += sum;
        else if (i >= width - 2 * s.d_inner) s.dD[i + 2 * s.d_inner - width] += sum;
        else if (n < s.d_state) s.dA_log[d * s.d_state + n] -= sum * expf(s.A_log[d * s.d_state + n]);
    }
}

/* How the scan of a shape is cut up: one of three plans by d_state, and as many chunks of len as fill the device. */
typedef struct { int plan, tile, states, channels, chunks, chunk_len; } ScanShape;

typedef ScanPlan<4, 4, 32, 8> Plan16;
typedef ScanPlan<16, 4, 16, 8> Plan64;
typedef ScanPlan<32, 8, 4, 4> Plan256;

static ScanShape scan_shape(int batch, int len, int d_inner, int d_state, int multiprocessors) {
    ScanShape shape = {};
    shape.plan = d_state <= 16 ? 16 : d_state <= 64 ? 64 : 256;
    shape.tile = shape.plan == 16 ? Plan16::TILE : shape.plan == 64 ? Plan64::TILE : Plan256::TILE;
    shape.channels = shape.plan == 16 ? Plan16::CHANNELS : shape.plan == 64 ? Plan64::CHANNELS : Plan256::CHANNELS;
    shape.states = shape.plan;
    long blocks = (long)batch * ceil_div(d_inner, shape.channels), want = 3L * multiprocessors;
    int tiles = ceil_div(len, shape.tile);
    shape.chunks = blocks * 2 > want ? 1 : (int)min(want / blocks, (long)min(32, ceil_div(tiles, 4)));
    shape.chunk_len = ceil_div(tiles, shape.chunks) * shape.tile;
    shape.chunks = ceil_div(len, shape.chunk_len);
    return shape;
}

/* Floats for the checkpoints of one layer. */
static size_t scan_checkpoints(ScanShape shape, int batch, int len, int d_inner) {
    return (size_t)batch * ceil_div(len, shape.tile) * d_inner * shape.states;
}

/* Floats for scratch, which no call leaves anything in. */
static size_t scan_scratch(ScanShape shape, int batch, int len, int d_inner, int backward) {
    size_t summaries = shape.chunks > 1 ? (size_t)batch * shape.chunks * d_inner * (shape.states + 1) : 0;
    if (!backward) return summaries;
    return summaries + (size_t)batch * shape.chunks * d_inner * (shape.states + 2) +
           (size_t)ceil_div(d_inner, shape.channels) * batch * len * 2 * shape.states;
}

template <class T> static bool fours(const T *p, size_t ld) { return (uintptr_t)p % (4 * sizeof(T)) == 0 && ld % 4 == 0; }

template <class T> static void scan_prepare(Scan<T> *s, ScanShape shape) {
    s->chunks = shape.chunks, s->chunk_len = shape.chunk_len;
    s->aligned = fours(s->u, s->ld_u) && fours(s->dt, s->ld_dt) && fours(s->z, s->ld_z) && (s->out == nullptr || fours(s->out, s->ld_out));
    if (s->d_out != nullptr)
        s->aligned = s->aligned && fours(s->d_out, s->ld_d_out) && fours(s->du, s->ld_du) && fours(s->ddt, s->ld_ddt) && fours(s->dz, s->ld_dz);
    s->aligned_bc = fours(s->B, s->ld_bc) && fours(s->C, s->ld_bc);
    /* parts read as float4 come first */
    size_t summaries = shape.chunks > 1 ? (size_t)s->batch * shape.chunks * s->d_inner : 0;
    s->part_bc = s->scratch;
    s->chunk_end = s->part_bc + (s->d_out == nullptr ? 0 : (size_t)ceil_div(s->d_inner, shape.channels) * s->batch * s->len * 2 * shape.states);
    s->chunk_delta = s->chunk_end + summaries * shape.states;
    s->part_channels = s->chunk_delta + summaries;
}

template <class T, class P, bool SUMMARY> static int scan_launch(void (*kernel)(Scan<T>), size_t shared, const Scan<T> &s, cudaStream_t stream) {
    long blocks = (long)ceil_div(s.d_inner, P::CHANNELS) * s.batch * (s.chunks - SUMMARY);
    if (blocks > INT_MAX) return fail("scan: %ld blocks are too many", blocks);
    if (blocks == 0) return 0;
    CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    CUDA(launch(kernel, dim3((unsigned)blocks), dim3(P::THREADS), shared, stream, s));
    return 0;
}

template <class T, class P> static int scan_forward_plan(const Scan<T> &s, cudaStream_t stream) {
    TRY((scan_launch<T, P, true>(scan_forward_kernel<T, P, true>, sizeof(ForwardShared<P>), s, stream)));
    return scan_launch<T, P, false>(scan_forward_kernel<T, P, false>, sizeof(ForwardShared<P>), s, stream);
}

template <class T, class P> static int scan_backward_plan(const Scan<T> &s, cudaStream_t stream) {
    int bc_blocks = ceil_div((long)s.batch * s.len * 2 * P::N, 256), channel_blocks = ceil_div((long)s.d_inner * (P::N + 2), 256);
    TRY((scan_launch<T, P, true>(scan_backward_kernel<T, P, true>, sizeof(BackwardShared<P>), s, stream)));
    TRY((scan_launch<T, P, false>(scan_backward_kernel<T, P, false>, sizeof(BackwardShared<P>), s, stream)));
    CUDA(launch(scan_gradients_kernel<T, P>, dim3(bc_blocks + channel_blocks), dim3(256), 0, stream, s, bc_blocks));
    return 0;
}

template <class T> static int scan_forward(Scan<T> s, ScanShape shape, cudaStream_t stream) {
    s.d_out = nullptr;
    scan_prepare(&s, shape);
    if (shape.plan == 16) return scan_forward_plan<T, Plan16>(s, stream);
    if (shape.plan == 64) return scan_forward_plan<T, Plan64>(s, stream);
    return scan_forward_plan<T, Plan256>(s, stream);
}

template <class T> static int scan_backward(Scan<T> s, ScanShape shape, cudaStream_t stream) {
    scan_prepare(&s, shape);
    if (shape.plan == 16) return scan_backward_plan<T, Plan16>(s, stream);
    if (shape.plan == 64) return scan_backward_plan<T, Plan64>(s, stream);
    return scan_backward_plan<T, Plan256>(s, stream);
}

/* Causal convolution over the last d_conv positions of each channel, then SiLU. x and u: (batch, len, d_inner); weight: (d_inner, d_conv);
   states: (batch, d_conv - 1, d_inner), the inputs before the first position. */
template <class T> struct Conv {
    int batch, len, d_inner, d_conv;
    const T *x;
    size_t ld_x;
    const float *weight, *bias;                   /* bias NULL: none */
    const float *first;                           /* NULL: zeros */
    float *last;                                  /* NULL: not wanted; may be `first` */
    size_t ld_state;
    T *u;
    size_t ld_u;
    /* backward only */
    float *scratch;
    const T *du;
    T *dx;
    size_t ld_du, ld_dx;
    float *dweight, *dbias;                       /* added to; dbias NULL: none */
    bool aligned;                                 /* filled in by the launchers */
};

constexpr int CONV_STEPS = 32, CONV_WARPS = 8;    /* positions a thread walks; a block has CONV_WARPS such chunks of 128 channels */

/* The input at t < 0 comes from the state. */
template <class T> static __device__ __forceinline__ void conv_input(float *x, const Conv<T> &s, int b, int t, int d, int n) {
    Four<T> v = load_four(s.x + ((size_t)b * s.len + max(t, 0)) * s.ld_x + d, t >= 0 && t < s.len ? n : 0, s.aligned);
    for (int i = 0; i < 4; i++) x[i] = to_float(v.v[i]);
    if (t < 0 && s.first != nullptr && t > -s.d_conv)
        for (int i = 0; i < 4; i++)
            if (i < n) x[i] = s.first[b * s.ld_state + (size_t)(t + s.d_conv - 1) * s.d_inner + d + i];
}

/* Weights with zeros in front, so that there are TAPS of them. */
template <class T, int TAPS> static __device__ __forceinline__ void conv_weights(float (*w)[4], float *bias, const Conv<T> &s, int d, int n) {
    for (int k = 0; k < TAPS; k++)
        for (int i = 0; i < 4; i++) {
            int tap = k - TAPS + s.d_conv;
            w[k][i] = i < n && tap >= 0 ? s.weight[(size_t)(d + i) * s.d_conv + tap] : 0;
        }
    for (int i = 0; i < 4; i++) bias[i] = i < n && s.bias != nullptr ? s.bias[d + i] : 0;
}

/* conv_forward of mamba.c: a thread has four channels and walks CONV_STEPS positions with the last inputs in registers; the rest of its loops is the grid. */
template <class T, int TAPS> static __global__ void __launch_bounds__(32 * CONV_WARPS) conv_forward_kernel(Conv<T> s, int chunk_blocks) {
    int d = ((int)blockIdx.x * 32 + (int)threadIdx.x % 32) * 4, n = s.d_inner - d;
    int b = blockIdx.y / chunk_blocks, begin = ((int)blockIdx.y % chunk_blocks * CONV_WARPS + (int)threadIdx.x / 32) * CONV_STEPS;
    if (n <= 0 || begin >= s.len) return;
    float w[TAPS][4], bias[4], x[TAPS + 3][4];     /* x[TAPS - 1] is the input at t */
    conv_weights<T, TAPS>(w, bias, s, d, n);
    for (int k = 0; k < TAPS - 1; k++) conv_input(x[k], s, b, begin - TAPS + 1 + k, d, n);
#pragma unroll 2
    for (int t = begin; t < begin + CONV_STEPS; t += 4) {
        for (int j = 0; j < 4; j++) conv_input(x[TAPS - 1 + j], s, b, t + j, d, n);
        for (int j = 0; j < 4; j++) {
            float u[4];
            for (int i = 0; i < 4; i++) {
                float sum = bias[i];
                for (int k = 0; k < TAPS; k++) sum += w[k][i] * x[j + k][i];
                u[i] = sum * sigmoid(sum);
            }
            if (t + j < s.len) store_four(s.u + ((size_t)b * s.len + t + j) * s.ld_u + d, u, n, s.aligned);
        }
        for (int k = 0; k < TAPS - 1; k++)
            for (int i = 0; i < 4; i++) x[k][i] = x[k + 4][i];
    }
}

/* The state is the last d_conv - 1 of all inputs, those of the state before included. A thread has a channel of a sequence. */
template <class T> static __global__ void __launch_bounds__(128) conv_state_kernel(Conv<T> s) {
    int d = blockIdx.x * 128 + threadIdx.x, b = blockIdx.y;
    if (d >= s.d_inner) return;
    for (int k = 0; k < s.d_conv - 1; k++) {
        int t = s.len - s.d_conv + 1 + k;
        float before = t < 0 && s.first != nullptr ? s.first[b * s.ld_state + (size_t)(k + s.len) * s.d_inner + d] : 0;
        s.last[b * s.ld_state + (size_t)k * s.d_inner + d] = t < 0 ? before : to_float(s.x[((size_t)b * s.len + t) * s.ld_x + d]);
    }
}

/* conv_backward of mamba.c, on the forward's grid. Forward was u = silu(a), a_t = bias + sum_k w_k x_{t-K+1+k}; a is computed again, then da = du silu'(a),
       dx_t = sum_k w_k da_{t+K-1-k},  dw_k = sum_t da_t x_{t-K+1+k},  dbias = sum_t da_t.
   A thread goes K - 1 positions past its chunk, for dx alone. dw and dbias are summed over the chunks of a block here, over blocks in
   conv_gradients_kernel. */
template <class T, int TAPS> static __global__ void __launch_bounds__(32 * CONV_WARPS) conv_backward_kernel(Conv<T> s, int chunk_blocks) {
    __shared__ float4 part[CONV_WARPS][32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, d = ((int)blockIdx.x * 32 + lane) * 4, n = s.d_inner - d;
    int b = blockIdx.y / chunk_blocks, begin = ((int)blockIdx.y % chunk_blocks * CONV_WARPS + warp) * CONV_STEPS;
    int end = min(s.len, begin + CONV_STEPS);
    float w[TAPS][4], bias[4], x[TAPS][4], da[TAPS][4] = {}, dw[TAPS + 1][4] = {}; /* x[TAPS - 1], da[TAPS - 1]: at t; dw[TAPS]: dbias */
    conv_weights<T, TAPS>(w, bias, s, d, n);
    for (int k = 0; k < TAPS - 1; k++) conv_input(x[k], s, b, begin - TAPS + 1 + k, d, begin < s.len ? n : 0);
#pragma unroll 4
    for (int t = begin; t < begin + CONV_STEPS + TAPS - 1; t++) {
        int have = begin < s.len && t < s.len ? n : 0;
        Four<T> du = load_four(s.du + ((size_t)b * s.len + t) * s.ld_du + d, have, s.aligned);
        conv_input(x[TAPS - 1], s, b, t, d, have);
        float dx[4];
        for (int i = 0; i < 4; i++) {
            float sum = bias[i];
            for (int k = 0; k < TAPS; k++) sum += w[k][i] * x[k][i];
            float open = sigmoid(sum);
            da[TAPS - 1][i] = to_float(du.v[i]) * open * (1 + sum * (1 - open));
            if (t < end) {
                for (int k = 0; k < TAPS; k++) dw[k][i] += da[TAPS - 1][i] * x[k][i];
                dw[TAPS][i] += da[TAPS - 1][i];
            }
            dx[i] = 0;
            for (int k = 0; k < TAPS; k++) dx[i] += w[k][i] * da[TAPS - 1 - k][i];
        }
        int out = t - TAPS + 1;
        if (out >= begin && out < end) store_four(s.dx + ((size_t)b * s.len + out) * s.ld_dx + d, dx, n, s.aligned);
        for (int k = 0; k < TAPS - 1; k++)
            for (int i = 0; i < 4; i++) x[k][i] = x[k + 1][i], da[k][i] = da[k + 1][i];
    }
    for (int k = 0; k <= TAPS; k++) {
        __syncthreads();
        part[warp][lane] = make_float4(dw[k][0], dw[k][1], dw[k][2], dw[k][3]);
        __syncthreads();
        int c = threadIdx.x;
        if (c >= 128 || (int)blockIdx.x * 128 + c >= s.d_inner) continue;
        float sum = 0;
        for (int i = 0; i < CONV_WARPS; i++) sum += ((const float *)part[i])[c];
        s.scratch[((size_t)blockIdx.y * (TAPS + 1) + k) * s.d_inner + blockIdx.x * 128 + c] = sum;
    }
}

/* Sums dw and dbias over the blocks of conv_backward_kernel; a thread has one element. */
template <class T, int TAPS> static __global__ void __launch_bounds__(128) conv_gradients_kernel(Conv<T> s, int parts) {
    int i = blockIdx.x * 128 + threadIdx.x, d = i % s.d_inner, k = i / s.d_inner, tap = k - TAPS + s.d_conv;
    if (k > TAPS || tap < 0) return;
    float sum = 0;
#pragma unroll 8
    for (int p = 0; p < parts; p++) sum += s.scratch[((size_t)p * (TAPS + 1) + k) * s.d_inner + d];
    if (k < TAPS) s.dweight[(size_t)d * s.d_conv + tap] += sum;
    else if (s.dbias != nullptr) s.dbias[d] += sum;
}

static int conv_chunk_blocks(int len) { return ceil_div(len, CONV_STEPS * CONV_WARPS); }

/* Floats of scratch for the backward pass. */
static size_t conv_scratch(int batch, int len, int d_inner, int d_conv) {
    return (size_t)batch * conv_chunk_blocks(len) * (d_conv <= 4 ? 5 : 9) * d_inner;
}

template <class T> static int conv_forward(Conv<T> s, cudaStream_t stream) {
    int chunk_blocks = conv_chunk_blocks(s.len);
    dim3 grid(ceil_div(s.d_inner, 128), s.batch * chunk_blocks), block(32 * CONV_WARPS);
    if (s.d_conv < 1 || s.d_conv > 8) return fail("conv: d_conv is %d; the GPU supports 1 to 8", s.d_conv);
    s.aligned = fours(s.x, s.ld_x) && fours(s.u, s.ld_u);
    if (s.d_conv <= 4) CUDA(launch(conv_forward_kernel<T, 4>, grid, block, 0, stream, s, chunk_blocks));
    else CUDA(launch(conv_forward_kernel<T, 8>, grid, block, 0, stream, s, chunk_blocks));
    if (s.last != nullptr && s.d_conv > 1) CUDA(launch(conv_state_kernel<T>, dim3(ceil_div(s.d_inner, 128), s.batch), dim3(128), 0, stream, s));
    return 0;
}

template <class T> static int conv_backward(Conv<T> s, cudaStream_t stream) {
    int chunk_blocks = conv_chunk_blocks(s.len), parts = s.batch * chunk_blocks;
    dim3 grid(ceil_div(s.d_inner, 128), parts), block(32 * CONV_WARPS);
    if (s.d_conv < 1 || s.d_conv > 8) return fail("conv: d_conv is %d; the GPU supports 1 to 8", s.d_conv);
    s.aligned = fours(s.x, s.ld_x) && fours(s.du, s.ld_du) && fours(s.dx, s.ld_dx);
    if (s.d_conv <= 4) {
        CUDA(launch(conv_backward_kernel<T, 4>, grid, block, 0, stream, s, chunk_blocks));
        CUDA(launch(conv_gradients_kernel<T, 4>, dim3(ceil_div(5L * s.d_inner, 128)), dim3(128), 0, stream, s, parts));
    } else {
        CUDA(launch(conv_backward_kernel<T, 8>, grid, block, 0, stream, s, chunk_blocks));
        CUDA(launch(conv_gradients_kernel<T, 8>, dim3(ceil_div(9L * s.d_inner, 128)), dim3(128), 0, stream, s, parts));
    }
    return 0;
}

/* 4. BLOCK AND MODEL =========================================================================================== */

/* The place in `compute` of a parameter. */
template <class T> static const T *in_T(const Gpu<T> *gpu, const float *parameter) { return gpu->compute + (parameter - gpu->weights); }

constexpr int NORM_WARPS = 4;

template <class T> static int residual_rmsnorm(Gpu<T> *gpu, T *y, float *r, float *out, const float *x, const T *branch, const float *bias,
                                               const float *w, int rows) {
    const Config *c = &gpu->model.config;
    CUDA(launch(residual_rmsnorm_kernel<T>, dim3(ceil_div(rows, NORM_WARPS)), dim3(32, NORM_WARPS), 0, gpu->stream, y, r, out, x, branch, bias,
                w, rows, c->d_model, (float)c->norm_eps));
    return 0;
}

/* The convolution and the scan of a block as calls of section 3; the states of sequences are as in mamba.c. */
template <class T> static Conv<T> conv_of(Gpu<T> *gpu, const BlockParams *p, GpuBlockActs<T> *k, const float *from, float *to, size_t ldstate,
                                          int batch, int len) {
    const Config *c = &gpu->model.config;
    size_t E = c->d_inner;
    Conv<T> s = {};
    s.batch = batch, s.len = len, s.d_inner = c->d_inner, s.d_conv = c->d_conv;
    s.x = k->xz, s.ld_x = 2 * E, s.u = k->u, s.ld_u = E, s.weight = p->conv, s.bias = p->conv_bias;
    s.first = from, s.last = to, s.ld_state = ldstate, s.scratch = gpu->scan_scratch;
    return s;
}

template <class T> static Scan<T> scan_of(Gpu<T> *gpu, const BlockParams *p, GpuBlockActs<T> *k, const float *from, float *to, size_t ldstate,
                                          int batch, int len) {
    const Config *c = &gpu->model.config;
    size_t E = c->d_inner, conv = (c->d_conv - 1) * E; /* where h begins in a state */
    Scan<T> s = {};
    s.batch = batch, s.len = len, s.d_inner = c->d_inner, s.d_state = c->d_state;
    s.u = k->u, s.dt = k->dt, s.ld_u = s.ld_dt = E, s.z = k->xz + E, s.ld_z = 2 * E;
    s.B = k->dbc + c->dt_rank, s.C = s.B + c->d_state, s.ld_bc = dbc_width(c);
    s.A_log = p->A_log, s.D = p->D, s.dt_bias = p->dt_bias;
    s.h_first = from != NULL ? from + conv : NULL, s.h_last = to != NULL ? to + conv : NULL, s.ld_h = ldstate;
    s.out = k->gated, s.ld_out = E, s.checkpoints = k->kept, s.scratch = gpu->scan_scratch;
    return s;
}

static ScanShape scan_shape_of(const Config *c, int batch, int len, int multiprocessors) {
    return scan_shape(batch, len, c->d_inner, c->d_state, multiprocessors);
}

/* u and dt of a block, which lean mode computes in forward and again in backward (dbc it has kept). */
template <class T> static int block_scan_inputs(Gpu<T> *gpu, const BlockParams *p, GpuBlockActs<T> *k, const float *from, float *to,
                                                size_t ldstate, int batch, int len, int with_dbc) {
    const Config *c = &gpu->model.config;
    int rows = batch * len, E = c->d_inner, W = dbc_width(c);
    TRY(conv_forward(conv_of(gpu, p, k, from, to, ldstate, batch, len), gpu->stream));
    if (with_dbc) TRY(linear_forward(gpu, k->dbc, k->u, (size_t)E, in_T(gpu, p->x_proj), rows, E, W));
    return linear_forward(gpu, k->dt, k->dbc, (size_t)W, in_T(gpu, p->dt_proj), rows, c->dt_rank, E);
}

/* gpu->branch = mixer(k->normed), to be added to the residual stream by the next norm. state NULL: from zeros. */
template <class T> static int block_forward(Gpu<T> *gpu, const BlockParams *p, GpuBlockActs<T> *k, float *state, size_t ldstate, int batch, int len) {
    const Config *c = &gpu->model.config;
    int rows = batch * len, E = c->d_inner;
    TRY(linear_forward(gpu, k->xz, k->normed, (size_t)c->d_model, in_T(gpu, p->in_proj), rows, c->d_model, 2 * E));
    if (p->in_bias != NULL)
        CUDA(launch(add_bias_kernel<T>, dim3(8 * gpu->multiprocessors), dim3(256), 0, gpu->stream, k->xz, (const float *)p->in_bias,
                    (size_t)rows, 2 * E));
    TRY(block_scan_inputs(gpu, p, k, state, state, ldstate, batch, len, 1));
    TRY(scan_forward(scan_of(gpu, p, k, state, state, ldstate, batch, len), scan_shape_of(c, batch, len, gpu->multiprocessors), gpu->stream));
    return linear_forward(gpu, gpu->branch, k->gated, (size_t)E, in_T(gpu, p->out_proj), rows, E, c->d_model);
}

/* gpu->dx and dbranch come in as the gradient of the block's output, in float and in T, and leave as that of its input. */
template <class T> static int block_backward(Gpu<T> *gpu, const BlockParams *g, const BlockParams *p, GpuBlockActs<T> *k, int batch, int len) {
    const Config *c = &gpu->model.config;
    int rows = batch * len, D = c->d_model, R = c->dt_rank, W = dbc_width(c);
    size_t E = c->d_inner;
    Conv<T> conv = conv_of(gpu, p, k, (const float *)NULL, (float *)NULL, 0, batch, len);
    Scan<T> scan = scan_of(gpu, p, k, (const float *)NULL, (float *)NULL, 0, batch, len);
    scan.d_out = gpu->dgated, scan.du = gpu->du, scan.ddt = gpu->ddt, scan.ld_d_out = scan.ld_du = scan.ld_ddt = E;
    scan.dz = gpu->dxz + E, scan.ld_dz = 2 * E, scan.dB = gpu->ddbc + R, scan.dC = scan.dB + c->d_state, scan.ld_dbc = W;
    scan.dA_log = g->A_log, scan.dD = g->D, scan.ddt_bias = g->dt_bias;
    conv.du = gpu->du, conv.ld_du = E, conv.dx = gpu->dxz, conv.ld_dx = 2 * E, conv.dweight = g->conv, conv.dbias = g->conv_bias;
    if (gpu->lean) {
        TRY(residual_rmsnorm(gpu, k->normed, k->r, (float *)NULL, k->input, (const T *)NULL, (const float *)NULL, p->norm, rows));
        TRY(block_scan_inputs(gpu, p, k, (const float *)NULL, (float *)NULL, 0, batch, len, 0));
    }
    TRY(linear_backward(gpu, gpu->dgated, g->out_proj, gpu->dbranch, k->gated, E, in_T(gpu, p->out_proj), rows, (int)E, D, 0));
    if (g->out_bias != NULL) TRY(row_sums(gpu, g->out_bias, BiasTerm<float>{gpu->dx, (size_t)D}, rows, D));
    TRY(scan_backward(scan, scan_shape_of(c, batch, len, gpu->multiprocessors), gpu->stream));
    TRY(linear_backward(gpu, gpu->ddbc, g->dt_proj, gpu->ddt, k->dbc, (size_t)W, in_T(gpu, p->dt_proj), rows, R, (int)E, 0));
    TRY(linear_backward(gpu, gpu->du, g->x_proj, gpu->ddbc, k->u, E, in_T(gpu, p->x_proj), rows, (int)E, W, 1));
    TRY(conv_backward(conv, gpu->stream));
    TRY(linear_backward(gpu, gpu->dnormed, g->in_proj, gpu->dxz, k->normed, (size_t)D, in_T(gpu, p->in_proj), rows, D, 2 * (int)E, 0));
    if (g->in_bias != NULL) TRY(row_sums(gpu, g->in_bias, BiasTerm<T>{gpu->dxz, 2 * E}, rows, 2 * (int)E));
    return rmsnorm_backward(gpu, g->norm, gpu->dnormed, k->input, k->r, p->norm, rows, 1);
}
/* Backward of rmsnorm: gpu->dx (set, or added to), gpu->dbranch the same in T, dw. */
template <class T> static int rmsnorm_backward(Gpu<T> *gpu, float *dw, const T *dy, const float *x, const float *r, const float *w, int rows,
                                               int add) {
    int dim = gpu->model.config.d_model;
    CUDA(launch(rmsnorm_backward_kernel<T>, dim3(ceil_div(rows, NORM_WARPS)), dim3(32, NORM_WARPS), 0, gpu->stream, gpu->dx, gpu->dbranch, dy, x, r,
                w, rows, dim, add));
    return row_sums(gpu, dw, NormTerm<T>{dy, x, r, dim}, rows, dim);
}

/* gpu->normed = what the head reads, from gpu->tokens (batch, len). state: see mamba.c; NULL: zeros, not wanted. */
template <class T> static int model_forward(Gpu<T> *gpu, float *state, int batch, int len) {
    const Config *c = &gpu->model.config;
    int rows = batch * len, last = c->n_layer - 1;
    size_t stride = state_stride(c);
    GpuBlockActs<T> *k = gpu->block;
    CUDA(launch(embedding_kernel, dim3(rows), dim3(128), 0, gpu->stream, k[0].input, (const float *)gpu->w.embedding, (const int *)gpu->tokens,
                c->d_model));
    TRY(residual_rmsnorm(gpu, k[0].normed, k[0].r, (float *)NULL, k[0].input, (const T *)NULL, NULL, gpu->w.block[0].norm, rows));
    for (int l = 0; l <= last; l++) {
        TRY(block_forward(gpu, &gpu->w.block[l], &k[l], state != NULL ? state + (size_t)l * batch * stride : NULL, stride, batch, len));
        TRY(residual_rmsnorm(gpu, l < last ? k[l + 1].normed : gpu->normed, l < last ? k[l + 1].r : gpu->r, l < last ? k[l + 1].input : gpu->x,
                             k[l].input, gpu->branch, gpu->w.block[l].out_bias, l < last ? gpu->w.block[l + 1].norm : gpu->w.norm_f, rows));
    }
    return 0;
}

/* From gpu->dnormed to the gradients of all parameters before it. */
template <class T> static int model_backward(Gpu<T> *gpu, int batch, int len) {
    const Config *c = &gpu->model.config;
    int rows = batch * len;
    TRY(rmsnorm_backward(gpu, gpu->g.norm_f, gpu->dnormed, gpu->x, gpu->r, gpu->w.norm_f, rows, 0));
    for (int l = c->n_layer - 1; l >= 0; l--) TRY(block_backward(gpu, &gpu->g.block[l], &gpu->w.block[l], &gpu->block[l], batch, len));
    CUDA(launch(embedding_backward_kernel, dim3(min_int(rows, c->vocab_size), ceil_div(c->d_model, SUM_COLUMNS)), dim3(SUM_COLUMNS, SUM_LANES), 0,
                gpu->stream, gpu->g.embedding, (const float *)gpu->dx, (const int *)gpu->tokens, (const int *)gpu->order,
                (const int *)gpu->segment, c->d_model));
    return 0;
}

/* 5. LOSS AND OPTIMISER ======================================================================================== */

/* Cross entropy, a block per row: losses[row] = log(sum_j exp(logit_j)) - logit_target. Each thread carries the largest logit it
   has seen and the sum of exp(logit - largest), so that one pass over the row is enough. Where gradient, the logits become
   scale (softmax - one_hot). correct[row]: is the target's logit the largest? */
template <class T> static __global__ void cross_entropy_kernel(T *logits, float *losses, int *correct, const int *targets, int vocab_size,
                                                               const StepArgs *args, int gradient) {
    T *row = logits + (size_t)blockIdx.x * vocab_size;
    int target = targets[blockIdx.x];
    float top = -INFINITY, sum = 0, row_top, row_sum, of_target = target >= 0 ? to_float(row[target]) : 0, scale = args->scale;
    for (int j = threadIdx.x; j < vocab_size; j += blockDim.x) {
        float v = to_float(row[j]), larger = fmaxf(top, v);
        sum = sum * __expf(top - larger) + __expf(v - larger);
        top = larger;
    }
    row_top = block_max(top);
    row_sum = block_sum(top == -INFINITY ? 0 : sum * __expf(top - row_top));
    if (threadIdx.x == 0) {
        losses[blockIdx.x] = target >= 0 ? row_top - of_target + logf(row_sum) : 0;
        correct[blockIdx.x] = target >= 0 && of_target == row_top;
    }
    if (!gradient) return;
    for (int j = threadIdx.x; j < vocab_size; j += blockDim.x) {
        float d = target >= 0 ? scale * (__expf(to_float(row[j]) - row_top) / row_sum - (j == target ? 1.0f : 0.0f)) : 0;
        store(&row[j], d);
    }
}

/* *loss += scale times the sum of losses, by one block. */
static __global__ void add_losses_kernel(float *loss, const float *losses, int rows, const StepArgs *args) {
    float sum = 0;
    for (int i = threadIdx.x; i < rows; i += blockDim.x) sum += losses[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *loss += args->scale * sum;
}

/* *loss += args->scale times the losses of all rows; the head and the loss take gpu->head_rows rows at a time. Where gradient,
   also gpu->dnormed and the head's gradient. */
template <class T> static int head_loss(Gpu<T> *gpu, float *loss, int rows, int gradient) {
    int V = gpu->model.config.vocab_size, D = gpu->model.config.d_model;
    for (int first = 0; first < rows; first += gpu->head_rows) {
        int part = min_int(gpu->head_rows, rows - first);
        const T *normed = gpu->normed + (size_t)first * D;
        TRY(linear_forward(gpu, gpu->logits, normed, (size_t)D, in_T(gpu, gpu->w.head), part, D, V));
        CUDA(launch(cross_entropy_kernel<T>, dim3(part), dim3(V > 4096 ? 512 : 128), 0, gpu->stream, gpu->logits, gpu->losses + first,
                    gpu->correct + first, (const int *)gpu->targets + first, V, (const StepArgs *)gpu->args, gradient));
        if (gradient)
            TRY(linear_backward(gpu, gpu->dnormed + (size_t)first * D, gpu->g.head, gpu->logits, normed, (size_t)D, in_T(gpu, gpu->w.head), part, D,
                                V, 0));
    }
    CUDA(launch(add_losses_kernel, dim3(1), dim3(1024), 0, gpu->stream, loss, (const float *)gpu->losses, rows, (const StepArgs *)gpu->args));
    return 0;
}

constexpr int NORM_PARTS = 256, ADAMW_THREADS = NORM_PARTS;

/* parts[i] = the sum of squares of the i-th share of a flat array. */
static __global__ void __launch_bounds__(256) squares_kernel(float *parts, const float *v, size_t n) {
    float sum = 0;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) sum += v[i] * v[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

/* AdamW over the flat arrays of all parameters (see adamw_step), with the copy in T and the cleared gradient. Every block adds up the
   parts of the norm itself, in the same order. */
template <class T> static __global__ void __launch_bounds__(ADAMW_THREADS)
adamw_kernel(float *weights, T *compute, float *grads, float *moment1, float *moment2, const unsigned char *decay, size_t n, float *norm,
             const float *parts, const StepArgs *args) {
    StepArgs a = *args;
    float total = sqrtf(block_sum(parts[threadIdx.x])), clip = a.clip > 0 && total > a.clip ? a.clip / total : 1;
    if (blockIdx.x == 0 && threadIdx.x == 0) *norm = total;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        float g = grads[i] * clip, w = weights[i];
        float m = moment1[i] = a.beta1 * moment1[i] + (1 - a.beta1) * g;
        float v = moment2[i] = a.beta2 * moment2[i] + (1 - a.beta2) * g * g;
        w -= a.lr * (m * a.unbias1 / (sqrtf(v * a.unbias2) + a.eps) + (decay[i / 16] ? a.weight_decay : 0) * w);
        weights[i] = w;
        store(&compute[i], w);
        grads[i] = 0;
    }
}

template <class T> static __global__ void cast_kernel(T *out, const float *in, size_t n) {
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) store(&out[i], in[i]);
}

/* 6. GENERATION ================================================================================================

   One token of a few streams is a product of every weight with a vector or a few: the time is that of reading the
   weights. Three kernels a layer, each with enough warps to keep the memory busy, and what is small computed again in
   every block rather than passed through memory by a kernel of its own. Many streams go through model_forward instead. */

constexpr int STEP_STREAMS = 4, STEP_CHANNELS = 16, STEP_LANES = 16, STEP_SCAN_CHANNELS = 32, STEP_WARPS = 8, HEAD_ROWS_PER_WARP = 8;

/* Dot product of a row of weights with a vector in shared memory, by a warp; all lanes get it. */
template <class T> static __device__ __forceinline__ float warp_dot(const T *w, const float *x, int n, int lane) {
    float sum = 0;
    #pragma unroll 8
    for (int i = lane; i < n; i += 32) sum += to_float(w[i]) * x[i];
    return warp_sum(sum);
}

/* normed = x r w in shared memory, by the whole block. */
static __device__ void block_rmsnorm(float *normed, const float *x, const float *w, int dim, float eps) {
    float sum = 0, r;
    for (int i = threadIdx.x; i < dim; i += blockDim.x) {
        normed[i] = x[i];
        sum += x[i] * x[i];
    }
    r = rsqrtf(block_sum(sum) / dim + eps);
    for (int i = threadIdx.x; i < dim; i += blockDim.x) normed[i] *= r * w[i];
    __syncthreads();
}

static __global__ void step_embedding_kernel(float *x, const float *W, const int *tokens, int d_model) {
    for (int i = threadIdx.x; i < d_model; i += blockDim.x) x[blockIdx.x * d_model + i] = W[(size_t)tokens[blockIdx.x] * d_model + i];
}

/* RMSNorm, in_proj, convolution, SiLU, and this block's share of x_proj. A block has STEP_CHANNELS channels, x and z; blockIdx.y is the stream.
   parts: (streams, blocks, dbc_width), the sums over the block's channels. */
template <class T> static __global__ void __launch_bounds__(STEP_WARPS * 32)
step_in_kernel(float *u, float *z, float *parts, float *state, size_t ldstate, const float *x, const float *norm, const T *in_proj,
               const float *in_bias, const float *conv, const float *conv_bias, const T *x_proj, int d_model, int d_inner, int d_conv,
               int width, float eps) {
    __shared__ float xz[2 * STEP_CHANNELS];
    float *normed = dynamic_shared<float>();
    int b = blockIdx.y, d = blockIdx.x * STEP_CHANNELS, warp = threadIdx.x / 32, lane = threadIdx.x % 32, c = threadIdx.x;
    block_rmsnorm(normed, x + (size_t)b * d_model, norm, d_model, eps);
    for (int i = warp; i < 2 * STEP_CHANNELS; i += STEP_WARPS) { /* x's channels, then z's */
        int channel = d + i % STEP_CHANNELS, row = i / STEP_CHANNELS * d_inner + channel;
        if (channel >= d_inner) continue;
        float v = warp_dot(in_proj + (size_t)row * d_model, normed, d_model, lane);
        if (lane == 0) xz[i] = v + (in_bias != NULL ? in_bias[row] : 0);
    }
    __syncthreads();
    if (c < STEP_CHANNELS && d + c < d_inner) {
        float *before = state + b * ldstate + d + c, s = conv_bias != NULL ? conv_bias[d + c] : 0;
        for (int k = 0; k < d_conv; k++) {
            float v = k < d_conv - 1 ? before[(size_t)k * d_inner] : xz[c];
            s += conv[(size_t)(d + c) * d_conv + k] * v;
            if (k > 0) before[(size_t)(k - 1) * d_inner] = v;
        }
        s = s / (1 + __expf(-s));
        u[(size_t)b * d_inner + d + c] = s;
        z[(size_t)b * d_inner + d + c] = xz[STEP_CHANNELS + c];
        xz[c] = s;
    } else if (c < STEP_CHANNELS) xz[c] = 0;
    __syncthreads();
    for (int j = threadIdx.x; j < width; j += blockDim.x) {
        float sum = 0;
        for (int i = 0; i < min(STEP_CHANNELS, d_inner - d); i++) sum += to_float(x_proj[(size_t)j * d_inner + d + i]) * xz[i];
        parts[((size_t)b * gridDim.x + blockIdx.x) * width + j] = sum;
    }
}

/* The shares of x_proj added up, dt_proj, softplus, one step of the scan, gate. STEP_LANES threads have a channel. */
template <class T> static __global__ void __launch_bounds__(STEP_SCAN_CHANNELS * STEP_LANES)
step_scan_kernel(float *gated, float *h, size_t ldstate, const float *u, const float *z, const float *parts, int n_parts, const T *dt_proj,
                 const float *dt_bias, const float *A_log, const float *D, int d_inner, int dt_rank, int d_state) {
    int width = dt_rank + 2 * d_state, b = blockIdx.y, d = blockIdx.x * STEP_SCAN_CHANNELS + threadIdx.x / STEP_LANES;
    int lane = threadIdx.x % STEP_LANES, groups = max(1, (int)blockDim.x / width), there = d < d_inner;
    float *dbc = dynamic_shared<float>(), *sums = dbc + width, delta = 0, y = 0; /* sums: (groups, width) */
    parts += (size_t)b * n_parts * width;
    for (int j = threadIdx.x; j < groups * width; j += blockDim.x) {
        float sum = 0;
        #pragma unroll 8
        for (int i = j / width; i < n_parts; i += groups) sum += parts[(size_t)i * width + j % width];
        sums[j] = sum;
    }
    __syncthreads();
    for (int j = threadIdx.x; j < width; j += blockDim.x) {
        float sum = 0;
        for (int i = 0; i < groups; i++) sum += sums[i * width + j];
        dbc[j] = sum;
    }
    __syncthreads();
    for (int i = lane; there && i < dt_rank; i += STEP_LANES) delta += to_float(dt_proj[(size_t)d * dt_rank + i]) * dbc[i];
    for (int lanes = STEP_LANES / 2; lanes > 0; lanes /= 2) delta += __shfl_xor_sync(0xffffffffu, delta, lanes);
    if (there) {
        float ud = u[(size_t)b * d_inner + d];
        delta += dt_bias[d];
        delta = fmaxf(delta, 0.0f) + log1pf(__expf(-fabsf(delta)));
        for (int n = lane; n < d_state; n += STEP_LANES) {
            float *hn = h + b * ldstate + (size_t)n * d_inner + d;
            *hn = __expf(-delta * __expf(A_log[(size_t)d * d_state + n])) * *hn + delta * dbc[dt_rank + n] * ud;
            y += dbc[dt_rank + d_state + n] * *hn;
        }
    }
    for (int lanes = STEP_LANES / 2; lanes > 0; lanes /= 2) y += __shfl_xor_sync(0xffffffffu, y, lanes);
    if (there && lane == 0) {
        float zd = z[(size_t)b * d_inner + d];
        gated[(size_t)b * d_inner + d] = (y + D[d] * u[(size_t)b * d_inner + d]) * zd / (1 + __expf(-zd));
    }
}

/* out_proj and the residual connection: x += W gated + bias, a warp per row of W. */
template <class T> static __global__ void __launch_bounds__(STEP_WARPS * 32)
step_out_kernel(float *x, const float *gated, const T *out_proj, const float *out_bias, int d_model, int d_inner) {
    float *vector = dynamic_shared<float>();
    int b = blockIdx.y, row = blockIdx.x * STEP_WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int i = threadIdx.x; i < d_inner; i += blockDim.x) vector[i] = gated[(size_t)b * d_inner + i];
    __syncthreads();
    if (row >= d_model) return;
    float v = warp_dot(out_proj + (size_t)row * d_inner, vector, d_inner, lane);
    if (lane == 0) x[(size_t)b * d_model + row] += v + (out_bias != NULL ? out_bias[row] : 0);
}

/* The last norm and the head: a warp has HEAD_ROWS_PER_WARP tokens. */
template <class T> static __global__ void __launch_bounds__(STEP_WARPS * 32)
step_head_kernel(float *logits, const float *x, const float *norm_f, const T *head, int d_model, int vocab_size, float eps) {
    float *normed = dynamic_shared<float>();
    int b = blockIdx.y, first = (blockIdx.x * STEP_WARPS + threadIdx.x / 32) * HEAD_ROWS_PER_WARP, lane = threadIdx.x % 32;
    block_rmsnorm(normed, x + (size_t)b * d_model, norm_f, d_model, eps);
    for (int row = first; row < min(first + HEAD_ROWS_PER_WARP, vocab_size); row++) {
        float v = warp_dot(head + (size_t)row * d_model, normed, d_model, lane);
        if (lane == 0) logits[(size_t)b * vocab_size + row] = v;
    }
}

/* gpu->held = the logits after feeding gpu->tokens, one per stream. */
template <class T> static int step(Gpu<T> *gpu) {
    const Config *c = &gpu->model.config;
    int D = c->d_model, E = c->d_inner, W = dbc_width(c), n_parts = ceil_div(E, STEP_CHANNELS), B = gpu->streams;
    size_t stride = state_stride(c);
    CUDA(launch(step_embedding_kernel, dim3(B), dim3(256), 0, gpu->stream, gpu->step_x, (const float *)gpu->w.embedding, (const int *)gpu->sampled, D));
    for (int l = 0; l < c->n_layer; l++) {
        const BlockParams *p = &gpu->w.block[l];
        float *state = gpu->state + (size_t)l * B * stride;
        CUDA(launch(step_in_kernel<T>, dim3(n_parts, B), dim3(STEP_WARPS * 32), D * sizeof(float), gpu->stream, gpu->step_u, gpu->step_z, gpu->step_parts,
                    state, stride, (const float *)gpu->step_x, (const float *)p->norm, in_T(gpu, p->in_proj), (const float *)p->in_bias,
                    (const float *)p->conv, (const float *)p->conv_bias, in_T(gpu, p->x_proj), D, E, c->d_conv, W, (float)c->norm_eps));
        CUDA(launch(step_scan_kernel<T>, dim3(ceil_div(E, STEP_SCAN_CHANNELS), B), dim3(STEP_SCAN_CHANNELS * STEP_LANES),
                    (size_t)(W + max(W, STEP_SCAN_CHANNELS * STEP_LANES)) * sizeof(float), gpu->stream, gpu->step_gated,
                    state + (size_t)(c->d_conv - 1) * E, stride, (const float *)gpu->step_u, (const float *)gpu->step_z,
                    (const float *)gpu->step_parts, n_parts, in_T(gpu, p->dt_proj), (const float *)p->dt_bias, (const float *)p->A_log,
                    (const float *)p->D, E, c->dt_rank, c->d_state));
        CUDA(launch(step_out_kernel<T>, dim3(ceil_div(D, STEP_WARPS), B), dim3(STEP_WARPS * 32), E * sizeof(float), gpu->stream, gpu->step_x,
                    (const float *)gpu->step_gated, in_T(gpu, p->out_proj), (const float *)p->out_bias, D, E));
    }
    CUDA(launch(step_head_kernel<T>, dim3(ceil_div(c->vocab_size, STEP_WARPS * HEAD_ROWS_PER_WARP), B), dim3(STEP_WARPS * 32), D * sizeof(float),
                gpu->stream, gpu->held, (const float *)gpu->step_x, (const float *)gpu->w.norm_f, in_T(gpu, gpu->w.head), D, c->vocab_size,
                (float)c->norm_eps));
    return 0;
}

constexpr int SAMPLE_THREADS = 1024, ID_BITS = 20; /* vocab_size is at most 2^ID_BITS */

/* Orders candidates as sample() does, the more probable first and of equal ones the lower id: a larger key comes first. The logit's bits
   are turned into an integer with the order of the floats. 0: no candidate. */
static __device__ __forceinline__ unsigned long long rank_key(float logit, int id) {
    unsigned bits = __float_as_uint(logit);
    if (isnan(logit)) return 0;
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return ((unsigned long long)bits << ID_BITS) | (unsigned long long)((1 << ID_BITS) - 1 - id);
}

/* A candidate's probability over that of the most probable one; temperature 0: they only count. */
static __device__ __forceinline__ float weight_of(float logit, float top, float temperature) {
    return temperature == 0 || logit == top ? 1 : __expf((logit - top) / temperature);
}

/* The smallest set of candidates, first ranks first, whose weights sum up to `wanted`; returns its last key. The key is
   found bit by bit, with one pass over the logits for each. */
static __device__ unsigned long long key_reaching(const float *logits, const GpuSampler &s, unsigned long long floor, float top,
                                                  float temperature, float wanted) {
    unsigned long long last = 0;
    for (int bit = 31 + ID_BITS; bit >= 0; bit--) {
        unsigned long long trial = last | 1ull << bit;
        float sum = 0;
        for (int id = threadIdx.x; id < s.n_vocab; id += SAMPLE_THREADS) {
            unsigned long long key = id == s.banned ? 0 : rank_key(logits[id], id);
            if (key >= trial && key >= floor) sum += weight_of(logits[id], top, temperature);
        }
        if (block_sum(sum) >= wanted) last = trial;
    }
    return max(last, floor);
}

/* The n-th sample() of mamba.c for each stream, a block per stream, the threads sharing the vocabulary. The penalty changes the logits.
   history: (streams, HISTORY_TOKENS), a ring in the first `window`; uniforms, out: (streams, GENERATE_TOKENS) */
static __global__ void __launch_bounds__(SAMPLE_THREADS)
sample_kernel(float *all_logits, GpuSampler *samplers, int *all_history, const float *uniforms, int *next, int *out, int vocab_size) {
    __shared__ float sums[SAMPLE_THREADS];
    __shared__ float rest;
    __shared__ int chosen;
    GpuSampler s = samplers[blockIdx.x];
    float *logits = all_logits + (size_t)blockIdx.x * vocab_size, top = -INFINITY, sum = 0;
    int *history = all_history + (size_t)blockIdx.x * HISTORY_TOKENS, n_held = min(s.n_history, s.window);
    int share = (s.n_vocab + SAMPLE_THREADS - 1) / SAMPLE_THREADS, first = threadIdx.x * share, end = min(first + share, s.n_vocab);
    unsigned long long floor = 1;

    for (int i = threadIdx.x; i < n_held; i += SAMPLE_THREADS) {
        int id = history[i], seen = id < 0 || id >= s.n_vocab;
        for (int j = 0; j < i && !seen; j++) seen = history[j] == id;
        if (!seen) logits[id] = logits[id] > 0 ? logits[id] / s.repetition_penalty : logits[id] * s.repetition_penalty;
    }
    __syncthreads();
    for (int id = threadIdx.x; id < s.n_vocab; id += SAMPLE_THREADS)
        if (id != s.banned && !isnan(logits[id])) top = fmaxf(top, logits[id]);
    top = block_max(top);
    if (s.temperature == 0) floor = key_reaching(logits, s, floor, top, 0, 1);
    else {
        if (s.top_k > 0 && s.top_k < s.n_vocab) floor = key_reaching(logits, s, floor, top, 0, (float)s.top_k);
        if (s.top_p < 1) {
            for (int id = threadIdx.x; id < s.n_vocab; id += SAMPLE_THREADS)
                if (id != s.banned && rank_key(logits[id], id) >= floor) sum += weight_of(logits[id], top, s.temperature);
            floor = key_reaching(logits, s, floor, top, s.temperature, s.top_p * block_sum(sum));
        }
    }

    /* Draw one of the candidates from `floor` on, in the order of ids. Each thread sums a share of the vocabulary; the first
       finds the share in which the running sum passes u; its thread finds the id. */
    sum = 0;
    for (int id = first; id < end; id++) {
        float weight = weight_of(logits[id], top, s.temperature);
        if (id != s.banned && rank_key(logits[id], id) >= floor && weight >= s.min_p) sum += weight;
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        float total = 0, u;
        for (int t = 0; t < SAMPLE_THREADS; t++) total += sums[t];
        u = s.temperature == 0 ? 0 : uniforms[blockIdx.x * GENERATE_TOKENS + s.n_out] * total;
        chosen = 0, rest = 0;
        for (int t = 0; t < SAMPLE_THREADS; t++) {
            if (sums[t] > 0) chosen = t, rest = u;
            if (u < sums[t]) break;
            u -= sums[t];
        }
    }
    __syncthreads();
    if ((int)threadIdx.x == chosen) {
        float u = rest;
        int pick = 0;
        for (int id = first; id < end; id++) {
            float weight = weight_of(logits[id], top, s.temperature);
            if (id == s.banned || rank_key(logits[id], id) < floor || weight < s.min_p) continue;
            pick = id;
            if (u < weight) break;
            u -= weight;
        }
        next[blockIdx.x] = out[blockIdx.x * GENERATE_TOKENS + s.n_out] = pick;
        if (s.window > 0) {
            history[s.n_history % s.window] = pick;
            if (++s.n_history == 2 * s.window) s.n_history = s.window;
        }
        s.n_out++;
        samplers[blockIdx.x] = s;
    }
}

/* The activations for a batch, cut out of one allocation; with arena->base NULL only counts. */
template <class T> static void acts_layout(Gpu<T> *gpu, Arena *arena, int batch, int len, int train) {
    const Config *c = &gpu->model.config;
    size_t rows = (size_t)batch * len, D = c->d_model, E = c->d_inner, W = dbc_width(c), V = c->vocab_size;
    ScanShape shape = scan_shape_of(c, batch, len, gpu->multiprocessors);
    int keep_all = train && !gpu->lean;
    for (int l = 0; l < c->n_layer; l++) {
        GpuBlockActs<T> *k = &gpu->block[l];
        if (l == 0 || train) {
            take(arena, &k->input, rows * D);
            take(arena, &k->r, rows);
            take(arena, &k->xz, rows * 2 * E);
            take(arena, &k->dbc, rows * W);
            take(arena, &k->gated, rows * E);
            k->kept = NULL;
            if (train) take(arena, &k->kept, scan_checkpoints(shape, batch, len, c->d_inner));
        }
        if (l == 0 || keep_all) {
            take(arena, &k->normed, rows * D);
            take(arena, &k->u, rows * E);
            take(arena, &k->dt, rows * E);
        }
        if (l == 0) continue;
        if (!train) *k = gpu->block[0];
        if (!keep_all) k->normed = gpu->block[0].normed, k->u = gpu->block[0].u, k->dt = gpu->block[0].dt;
    }
    gpu->head_rows = (int)min(rows, max((size_t)1, HEAD_BYTES / (V * sizeof(T))));
    take(arena, &gpu->x, rows * D);
    take(arena, &gpu->r, rows);
    take(arena, &gpu->normed, rows * D);
    take(arena, &gpu->branch, rows * D);
    take(arena, &gpu->logits, max(gpu->head_rows, 2) * V); /* copy_logits has them in float, at least a row */
    take(arena, &gpu->losses, rows);
    take(arena, &gpu->correct, rows);
    take(arena, &gpu->tokens, rows);
    take(arena, &gpu->targets, rows);
    take(arena, &gpu->scan_scratch, max(scan_scratch(shape, batch, len, c->d_inner, train), conv_scratch(batch, len, c->d_inner, c->d_conv)));
    if (!train) return;
    take(arena, &gpu->order, rows);
    take(arena, &gpu->segment, rows + 1);
    take(arena, &gpu->parts, (size_t)SUM_PARTS * max(2 * E, D));
    take(arena, &gpu->dx, rows * D);
    take(arena, &gpu->dbranch, rows * D);
    take(arena, &gpu->dnormed, rows * D);
    take(arena, &gpu->dgated, rows * E);
    take(arena, &gpu->dxz, rows * 2 * E);
    take(arena, &gpu->du, rows * E);
    take(arena, &gpu->ddt, rows * E);
    take(arena, &gpu->ddbc, rows * W);
}

static void drop_graph(cudaGraphExec_t *graph) {
    if (*graph != NULL) cudaGraphExecDestroy(*graph);
    *graph = NULL;
}

template <class T> static int gpu_layout(Gpu<T> *gpu, int batch, int len, int train) {
    Arena arena = {NULL, 0};
    size_t rows = (size_t)batch * len, available = 0, total = 0;
    if (batch == gpu->batch && len == gpu->len && train == gpu->train) return 0;
    if ((double)batch * len > (1 << 30)) return fail("batch %d x len %d is too large: use a smaller one", batch, len);
    CUDA(cudaStreamSynchronize(gpu->stream));
    drop_graph(&gpu->gradient_graph);
    drop_graph(&gpu->generate_graph);
    cudaFree(gpu->acts_memory);
    release(gpu->host_ids);
    gpu->acts_memory = NULL, gpu->host_ids = NULL, gpu->batch = 0;
    acts_layout(gpu, &arena, batch, len, train);
    if (cudaMalloc((void **)&arena.base, arena.bytes) != cudaSuccess) {
        cudaGetLastError(); /* it is told here */
        cudaMemGetInfo(&available, &total);
        return fail("out of memory on the GPU: batch %d x len %d needs %.0f MiB of activations and %.0f MiB are free; try a batch of %d%s",
                    batch, len, arena.bytes / 1048576.0, available / 1048576.0,
                    max(1, (int)(0.9 * batch * available / arena.bytes)), train && !gpu->lean ? ", or the lean mode" : "");
    }
    gpu->acts_memory = arena.base;
    arena.bytes = 0;
    acts_layout(gpu, &arena, batch, len, train);
    gpu->host_ids = (int *)allocate(4 * rows + 1 + gpu->model.config.vocab_size + 1, sizeof(int));
    if (gpu->host_ids == NULL) return -1;
    gpu->batch = batch, gpu->len = len, gpu->train = train;
    return 0;
}

/* Replays a graph; the first time captures what `work` launches. One launch of a graph costs less than the launches in it. */
template <class T, class Work> static int replay(Gpu<T> *gpu, cudaGraphExec_t *exec, Work work) {
    if (*exec == NULL) {
        cudaGraph_t graph = NULL;
        int status;
        cudaError_t error;
        CUDA(cudaStreamBeginCapture(gpu->stream, cudaStreamCaptureModeRelaxed));
        status = work();
        error = cudaStreamEndCapture(gpu->stream, &graph);
        if (status == 0 && error == cudaSuccess) error = cudaGraphInstantiateWithFlags(exec, graph, 0);
        if (graph != NULL) cudaGraphDestroy(graph);
        TRY(status);
        CUDA(error);
    }
    CUDA(cudaGraphLaunch(*exec, gpu->stream));
    return 0;
}

template <class T> static int set_args(Gpu<T> *gpu, const StepArgs *args) {
    CUDA(cudaMemcpyAsync(gpu->args, args, sizeof *args, cudaMemcpyHostToDevice, gpu->stream));
    return 0;
}

/* order: the rows sorted by their token, stable; segment: where in it the rows of each token that occurs begin, then the end, then -1. */
static void sort_rows(int *order, int *segment, int *count, const int *tokens, int rows, int vocab_size) {
    int n = 0;
    memset(count, 0, (size_t)(vocab_size + 1) * sizeof *count);
    for (int r = 0; r < rows; r++) count[tokens[r] + 1]++;
    for (int v = 0; v < vocab_size; v++) {
        if (count[v + 1] > 0) segment[n++] = count[v];
        count[v + 1] += count[v];
    }
    for (int r = 0; r < rows; r++) order[count[tokens[r]]++] = r;
    segment[n++] = rows;
    while (n <= rows) segment[n++] = -1;
}

template <class T> static int upload_ids(Gpu<T> *gpu, int *device, const int *ids, size_t n) {
    CUDA(cudaMemcpyAsync(device, ids, n * sizeof *ids, cudaMemcpyHostToDevice, gpu->stream));
    return 0;
}

template <class T> static int gpu_gradient(void *self, const int *tokens, const int *targets, int batch, int len, double scale) {
    Gpu<T> *gpu = (Gpu<T> *)self;
    int rows = batch * len, n = 0, *order, *segment;
    StepArgs args = {};
    TRY(gpu_layout(gpu, batch, len, 1));
    order = gpu->host_ids, segment = order + rows;
    sort_rows(order, segment, segment + rows + 1, tokens, rows, gpu->model.config.vocab_size);
    for (int r = 0; r < rows; r++) n += targets[r] >= 0;
    args.scale = n > 0 ? (float)(scale / n) : 0;
    TRY(set_args(gpu, &args));
    TRY(upload_ids(gpu, gpu->tokens, tokens, rows));
    TRY(upload_ids(gpu, gpu->targets, targets, rows));
    TRY(upload_ids(gpu, gpu->order, order, rows));
    TRY(upload_ids(gpu, gpu->segment, segment, rows + 1));
    return replay(gpu, &gpu->gradient_graph, [=]() -> int {
        TRY(model_forward(gpu, (float *)NULL, batch, len));
        TRY(head_loss(gpu, gpu->loss, rows, 1));
        return model_backward(gpu, batch, len);
    });
}

template <class T> static int gpu_update(void *self, const AdamW *o, double lr, long step, double *loss, double *norm) {
    Gpu<T> *gpu = (Gpu<T> *)self;
    float host[2];
    StepArgs args = {0, (float)o->beta1, (float)o->beta2, (float)o->eps, (float)o->weight_decay, (float)o->clip, (float)lr,
                     (float)(1 / (1 - pow(o->beta1, (double)step))), (float)(1 / (1 - pow(o->beta2, (double)step)))};
    TRY(set_args(gpu, &args));
    TRY(replay(gpu, &gpu->update_graph, [=]() -> int {
        float *parts = gpu->norm + 1;
        CUDA(launch(squares_kernel, dim3(NORM_PARTS), dim3(256), 0, gpu->stream, parts, (const float *)gpu->grads, gpu->model.n_param));
        CUDA(launch(adamw_kernel<T>, dim3(4 * gpu->multiprocessors), dim3(ADAMW_THREADS), 0, gpu->stream, gpu->weights, gpu->compute, gpu->grads,
                    gpu->moment1, gpu->moment2, (const unsigned char *)gpu->decay, gpu->model.n_param, gpu->norm, (const float *)parts,
                    (const StepArgs *)gpu->args));
        return 0;
    }));
    if (loss != NULL || norm != NULL) { /* loss and norm are neighbours */
        CUDA(cudaMemcpyAsync(host, gpu->loss, sizeof host, cudaMemcpyDeviceToHost, gpu->stream));
        CUDA(cudaStreamSynchronize(gpu->stream));
        if (loss != NULL) *loss = host[0];
        if (norm != NULL) *norm = host[1];
    }
    CUDA(cudaMemsetAsync(gpu->loss, 0, sizeof *gpu->loss, gpu->stream));
    return 0;
}

template <class T> static int gpu_reset(void *self, int streams) {
    Gpu<T> *gpu = (Gpu<T> *)self;
    const Config *c = &gpu->model.config;
    size_t B = streams, E = c->d_inner;
    CUDA(cudaStreamSynchronize(gpu->stream));
    if (streams != gpu->streams) {
        Arena arena = {NULL, 0};
        drop_graph(&gpu->generate_graph);
        cudaFree(gpu->stream_memory);
        gpu->stream_memory = NULL, gpu->streams = 0;
        for (int pass = 0; pass < 2; pass++) {
            arena.bytes = 0;
            take(&arena, &gpu->state, state_size(c, streams));
            take(&arena, &gpu->step_x, B * c->d_model);
            take(&arena, &gpu->step_u, B * E);
            take(&arena, &gpu->step_z, B * E);
            take(&arena, &gpu->step_gated, B * E);
            take(&arena, &gpu->step_parts, B * ceil_div(c->d_inner, STEP_CHANNELS) * dbc_width(c));
            take(&arena, &gpu->samplers, B);
            take(&arena, &gpu->sampled, B);
            take(&arena, &gpu->history, B * HISTORY_TOKENS);
            take(&arena, &gpu->out, B * GENERATE_TOKENS);
            take(&arena, &gpu->uniforms, B * GENERATE_TOKENS);
            if (pass == 0 && cudaMalloc((void **)&arena.base, arena.bytes) != cudaSuccess) {
                cudaGetLastError();
                return fail("out of memory on the GPU: %d streams need %.0f MiB", streams, arena.bytes / 1048576.0);
            }
        }
        gpu->stream_memory = arena.base;
        gpu->streams = streams;
        gpu->held = gpu->state + (size_t)c->n_layer * B * state_stride(c);
    }
    CUDA(cudaMemsetAsync(gpu->state, 0, state_size(c, streams) * sizeof(float), gpu->stream));
    return 0;
}

/* The logits in float of `rows` rows of the normed stream, to the host. */
template <class T> static int copy_logits(Gpu<T> *gpu, float *logits, const T *normed, int rows) {
    int V = gpu->model.config.vocab_size, D = gpu->model.config.d_model, step = (int)max((size_t)1, gpu->head_rows * sizeof(T) / sizeof(float));
    for (int first = 0; first < rows; first += step) {
        int part = min(step, rows - first);
        TRY(linear_forward(gpu, (float *)gpu->logits, normed + (size_t)first * D, (size_t)D, in_T(gpu, gpu->w.head), part, D, V));
        CUDA(cudaMemcpyAsync(logits + (size_t)first * V, gpu->logits, (size_t)part * V * sizeof(float), cudaMemcpyDeviceToHost, gpu->stream));
    }
    CUDA(cudaStreamSynchronize(gpu->stream));
    return 0;
}

/* See cpu_feed. */
template <class T> static int gpu_feed(Gpu<T> *gpu, const int *tokens, const int *targets, int len, float *logits, int all, double *loss,
                                       long *n_correct) {
    const Config *c = &gpu->model.config;
    int B = gpu->streams, D = c->d_model, V = c->vocab_size, step = max(1, PIECE_TOKENS / B);
    long n = 0, right = 0;
    double sum = 0;
    StepArgs args = {};
    args.scale = 1;
    TRY(set_args(gpu, &args));
    for (int first = 0; first < len; first += step) {
        int part = min(step, len - first), rows = B * part;
        TRY(gpu_layout(gpu, B, part, 0));
        for (int b = 0; b < B; b++) {
            memcpy(gpu->host_ids + b * part, tokens + (size_t)b * len + first, part * sizeof(int));
            if (loss != NULL) memcpy(gpu->host_ids + rows + b * part, targets + (size_t)b * len + first, part * sizeof(int));
        }
        TRY(upload_ids(gpu, gpu->tokens, gpu->host_ids, rows));
        TRY(model_forward(gpu, gpu->state, B, part));
        if (loss != NULL) {
            float total;
            TRY(upload_ids(gpu, gpu->targets, gpu->host_ids + rows, rows));
            CUDA(cudaMemsetAsync(gpu->norm, 0, sizeof *gpu->norm, gpu->stream));
            TRY(head_loss(gpu, gpu->norm, rows, 0));
            CUDA(cudaMemcpyAsync(&total, gpu->norm, sizeof total, cudaMemcpyDeviceToHost, gpu->stream));
            CUDA(cudaMemcpyAsync(gpu->host_ids, gpu->correct, rows * sizeof(int), cudaMemcpyDeviceToHost, gpu->stream));
            CUDA(cudaStreamSynchronize(gpu->stream));
            for (int r = 0; r < rows; r++) {
                n += targets[(size_t)(r / part) * len + first + r % part] >= 0;
                right += gpu->host_ids[r];
            }
            sum += total;
        }
        for (int b = 0; logits != NULL && all && b < B; b++)
            TRY(copy_logits(gpu, logits + ((size_t)b * len + first) * V, gpu->normed + (size_t)b * part * D, part));
        if (first + part == len) /* the last positions are part rows apart */
            TRY(linear_forward(gpu, gpu->held, gpu->normed + (size_t)(part - 1) * D, (size_t)part * D, in_T(gpu, gpu->w.head), B, D, V));
    }
    if (logits != NULL && !all) {
        CUDA(cudaMemcpyAsync(logits, gpu->held, (size_t)B * V * sizeof *logits, cudaMemcpyDeviceToHost, gpu->stream));
        CUDA(cudaStreamSynchronize(gpu->stream));
    }
    if (loss != NULL) *loss = n > 0 ? sum / n : 0;
    if (n_correct != NULL) *n_correct = right;
    return 0;
}

template <class T> static int gpu_forward(void *self, const int *tokens, int len, float *logits, int all) {
    return gpu_feed((Gpu<T> *)self, tokens, NULL, len, logits, all, NULL, NULL);
}

template <class T> static int gpu_evaluate(void *self, const int *tokens, const int *targets, int len, double *loss, long *n_correct) {
    return gpu_feed((Gpu<T> *)self, tokens, targets, len, (float *)NULL, 0, loss, n_correct);
}

/* The settings, histories and random numbers of the samplers for the next n tokens, to the device. */
template <class T> static int upload_samplers(Gpu<T> *gpu, Sampler *sampler, int n) {
    for (int b = 0; b < gpu->streams; b++) {
        Sampler *s = &sampler[b];
        float uniforms[GENERATE_TOKENS];
        GpuSampler d = {(float)s->temperature, (float)s->top_p, (float)s->min_p, (float)s->repetition_penalty, s->top_k, s->n_vocab, s->banned,
                        s->penalty_window, s->n_history, 0};
        if (s->penalty_window > HISTORY_TOKENS) return fail("repetition window is %d, a GPU takes at most %d", s->penalty_window, HISTORY_TOKENS);
        for (int i = 0; i < n && s->temperature != 0; i++) uniforms[i] = (float)random_uniform(&s->rng);
        CUDA(cudaMemcpyAsync(gpu->samplers + b, &d, sizeof d, cudaMemcpyHostToDevice, gpu->stream));
        TRY(upload_ids(gpu, gpu->history + (size_t)b * HISTORY_TOKENS, s->history, s->penalty_window));
        if (s->temperature != 0)
            CUDA(cudaMemcpyAsync(gpu->uniforms + (size_t)b * GENERATE_TOKENS, uniforms, n * sizeof *uniforms, cudaMemcpyHostToDevice, gpu->stream));
    }
    return 0;
}

template <class T> static int gpu_generate(void *self, int *out, int n, Sampler *sampler) {
    Gpu<T> *gpu = (Gpu<T> *)self;
    const Config *c = &gpu->model.config;
    int B = gpu->streams, ids[GENERATE_TOKENS];
    if (B > STEP_STREAMS) TRY(gpu_layout(gpu, B, 1, 0));
    for (int first = 0; first < n; first += GENERATE_TOKENS) {
        int part = min(GENERATE_TOKENS, n - first);
        TRY(upload_samplers(gpu, sampler, part));
        for (int i = 0; i < part; i++)
            TRY(replay(gpu, &gpu->generate_graph, [=]() -> int {
                int *next = B > STEP_STREAMS ? gpu->tokens : gpu->sampled;
                CUDA(launch(sample_kernel, dim3(B), dim3(SAMPLE_THREADS), 0, gpu->stream, gpu->held, gpu->samplers, gpu->history,
                            (const float *)gpu->uniforms, next, gpu->out, c->vocab_size));
                if (B <= STEP_STREAMS) return step(gpu);
                TRY(model_forward(gpu, gpu->state, B, 1));
                return linear_forward(gpu, gpu->held, gpu->normed, (size_t)c->d_model, in_T(gpu, gpu->w.head), B, c->d_model, c->vocab_size);
            }));
        for (int b = 0; b < B; b++) {
            CUDA(cudaMemcpyAsync(ids, gpu->out + (size_t)b * GENERATE_TOKENS, part * sizeof *ids, cudaMemcpyDeviceToHost, gpu->stream));
            CUDA(cudaStreamSynchronize(gpu->stream));
            for (int i = 0; i < part; i++) sampler_accept(&sampler[b], out[(size_t)b * n + first + i] = ids[i]);
        }
    }
    return 0;
}

template <class T> static int refresh_compute(Gpu<T> *gpu) {
    if ((void *)gpu->compute == (void *)gpu->weights) return 0;
    CUDA(launch(cast_kernel<T>, dim3(4 * gpu->multiprocessors), dim3(256), 0, gpu->stream, gpu->compute, (const float *)gpu->weights,
                gpu->model.n_param));
    return 0;
}

template <class T> static int gpu_copy(void *self, Which which, float *host, int to_device) {
    Gpu<T> *gpu = (Gpu<T> *)self;
    float *array[] = {gpu->weights, gpu->moment1, gpu->moment2, gpu->state};
    size_t bytes = (which == STATE ? state_size(&gpu->model.config, gpu->streams) : gpu->model.n_param) * sizeof(float);
    assert(array[which] != NULL);
    CUDA(cudaStreamSynchronize(gpu->stream));
    if (to_device) CUDA(cudaMemcpy(array[which], host, bytes, cudaMemcpyHostToDevice));
    else CUDA(cudaMemcpy(host, array[which], bytes, cudaMemcpyDeviceToHost));
    return to_device && which == WEIGHTS ? refresh_compute(gpu) : 0;
}

template <class T> static void gpu_close(void *self) {
    Gpu<T> *gpu = (Gpu<T> *)self;
    drop_graph(&gpu->gradient_graph);
    drop_graph(&gpu->update_graph);
    drop_graph(&gpu->generate_graph);
    cudaFree(gpu->parameter_memory);
    cudaFree(gpu->acts_memory);
    cudaFree(gpu->stream_memory);
    if (gpu->blas != NULL) cublasDestroy(gpu->blas);
    if (gpu->stream != NULL) cudaStreamDestroy(gpu->stream);
    release(gpu->w.block);
    release(gpu->g.block);
    release(gpu->block);
    release(gpu->host_ids);
    release(gpu);
}

/* Parameters, and with train their gradients and moments, in one allocation. */
template <class T> static int parameters_create(Gpu<T> *gpu, int train) {
    const Config *c = &gpu->model.config;
    size_t n = gpu->model.n_param;
    Arena arena = {NULL, 0};
    Table table = {NULL, 0, 0, NULL};
    unsigned char *decay = (unsigned char *)allocate(n / 16, 1);
    if (decay == NULL) return -1;
    for (int pass = 0; pass < 2; pass++) {
        arena.bytes = 0;
        take(&arena, &gpu->weights, n);
        if (sizeof(T) != sizeof(float)) take(&arena, &gpu->compute, n);
        if (train) {
            take(&arena, &gpu->grads, n);
            take(&arena, &gpu->moment1, n);
            take(&arena, &gpu->moment2, n);
            take(&arena, &gpu->decay, n / 16);
        }
        take(&arena, &gpu->args, 1);
        take(&arena, &gpu->loss, 2 + NORM_PARTS);
        take(&arena, (char **)&gpu->blas_workspace, BLAS_WORKSPACE);
        if (pass == 0 && cudaMalloc((void **)&arena.base, arena.bytes) != cudaSuccess) {
            cudaGetLastError();
            release(decay);
            return fail("out of memory on the GPU: the model needs %.0f MiB", arena.bytes / 1048576.0);
        }
    }
    gpu->parameter_memory = arena.base;
    gpu->norm = gpu->loss + 1;
    if (sizeof(T) == sizeof(float)) gpu->compute = (T *)gpu->weights;
    for (int i = 0; i < gpu->model.n_tensor; i++)
        memset(decay + gpu->model.tensor[i].offset / 16, gpu->model.tensor[i].decay, (gpu->model.tensor[i].size + 15) / 16);
    CUDA(cudaMemset(gpu->loss, 0, (2 + NORM_PARTS) * sizeof(float)));
    for (int i = 0; train && i < 3; i++) CUDA(cudaMemset(i == 0 ? gpu->grads : i == 1 ? gpu->moment1 : gpu->moment2, 0, n * sizeof(float)));
    if (train) CUDA(cudaMemcpy(gpu->decay, decay, n / 16, cudaMemcpyHostToDevice));
    release(decay);
    table.base = gpu->weights;
    params_table(&table, c, &gpu->w);
    table.size = 0, table.base = gpu->grads;
    if (train) params_table(&table, c, &gpu->g);
    return gpu_copy<T>(gpu, WEIGHTS, gpu->model.weights, 1);
}

template <class T> static int gpu_open(Backend *backend, const Model *m, int tf32, int train, int lean) {
    Gpu<T> *gpu = (Gpu<T> *)allocate(1, sizeof *gpu);
    const Config *c = &m->config;
    struct cudaDeviceProp device;
    if (gpu == NULL) return -1;
    gpu->model = *m, gpu->tf32 = tf32, gpu->lean = lean;
    gpu->w.block = (BlockParams *)allocate((size_t)c->n_layer, sizeof(BlockParams));
    gpu->g.block = (BlockParams *)allocate((size_t)c->n_layer, sizeof(BlockParams));
    gpu->block = (GpuBlockActs<T> *)allocate((size_t)c->n_layer, sizeof *gpu->block);
    if (gpu->w.block == NULL || gpu->g.block == NULL || gpu->block == NULL) {
        gpu_close<T>(gpu);
        return -1;
    }
    CUDA(cudaGetDeviceProperties(&device, 0));
    gpu->multiprocessors = device.multiProcessorCount;
    CUDA(cudaStreamCreate(&gpu->stream));
    CUBLAS(cublasCreate(&gpu->blas));
    CUBLAS(cublasSetStream(gpu->blas, gpu->stream));
    if (parameters_create(gpu, train) != 0 || gpu_reset<T>(gpu, 1) != 0) {
        gpu_close<T>(gpu);
        return -1;
    }
    CUBLAS(cublasSetWorkspace(gpu->blas, gpu->blas_workspace, BLAS_WORKSPACE));
    memset(backend, 0, sizeof *backend);
    backend->device = "cuda";
    snprintf(backend->description, sizeof backend->description, "%.80s, %s%s", device.name, sizeof(T) == 2 ? "bf16" : tf32 ? "tf32" : "fp32",
             lean ? ", lean" : "");
    backend->config = *c, backend->self = gpu;
    backend->gradient = gpu_gradient<T>, backend->update = gpu_update<T>, backend->evaluate = gpu_evaluate<T>, backend->reset = gpu_reset<T>;
    backend->forward = gpu_forward<T>, backend->generate = gpu_generate<T>, backend->copy = gpu_copy<T>, backend->close = gpu_close<T>;
    return 0;
}

/* Opens the model on the first GPU. dtype: "fp32", "tf32" (matrix products round their operands to 10 bits of mantissa) or "bf16";
   train: with gradients and moments; lean: computes part of the activations again in backward rather than keeping them. */
extern "C" int cuda_backend(Backend *backend, const Model *m, const char *dtype, int train, int lean) {
    int n_devices = 0;
    if (cudaGetDeviceCount(&n_devices) != cudaSuccess || n_devices == 0) {
        cudaGetLastError();
        return fail("--device cuda: no GPU found");
    }
    if (strcmp(dtype, "bf16") == 0) return gpu_open<bf16>(backend, m, 0, train, lean);
    if (strcmp(dtype, "fp32") != 0 && strcmp(dtype, "tf32") != 0) return fail("--dtype: unknown type '%s', expected fp32, tf32 or bf16", dtype);
    return gpu_open<float>(backend, m, strcmp(dtype, "tf32") == 0, train, lean);
}
