/* mamba.cu: the model of mamba.c on a GPU, section by section under the same numbers.

   SPDX-License-Identifier: MIT

   1. CONTENTS, NOTATION ======================================================================================

   Letters and shapes are those of mamba.c, which this file includes: config, parameter table, initialisation, sampler's
   settings, tokenizer and files are shared, and so the binary holds the reference that the kernels are compared with.
   Above each kernel: which loop of mamba.c became the grid, what a thread holds, what is reduced and how. Sections 3,
   5 and 6 have, in this order,

      for mamba.c's                                  these kernels
      bias_backward                                  bias_backward_kernel, add_parts_kernel
      embedding_forward                              embedding_kernel
      embedding_backward                             embedding_fold_kernel, embedding_backward_kernel
      add_forward, rmsnorm_forward                   residual_rmsnorm_kernel
      rmsnorm_backward                               rmsnorm_backward_kernel, add_parts_kernel
      linear_forward, linear_backward                cuBLAS's, add_bias_kernel
      conv_forward                                   conv_forward_kernel, conv_state_kernel
      conv_backward                                  conv_backward_kernel, conv_gradients_kernel
      delta_forward, scan_forward, gate_forward      scan_forward_kernel
      gate_backward, scan_backward, delta_backward   scan_backward_kernel, scan_gradients_kernel
      cross_entropy, head_loss                       cross_entropy_kernel, add_losses_kernel
      norm_of, adamw_step                            squares_kernel, adamw_kernel; cast_kernel for the first weights
      cpu_feed of one position                       few_kernel, many_kernel
      sample                                         sample_kernel

   T is the type of weights in matrix products and of activations: float, or bf16 with float master weights. Whatever is
   summed is summed in float: the residual stream, delta, h, norms, softmax, gradients of parameters, the optimiser.
   Activations are (batch, len, channels), channels contiguous, so a warp reads 32 neighbouring channels of one position
   at a time and nothing is ever transposed.

   Two runs give the same bits. A sum of floats depends on its order, as each addition rounds. By atomic additions the
   order would be that in which threads happen to come. Here it follows from their indices alone: a thread adds its own
   terms, a warp or a block adds its threads' sums in a fixed tree, and what several blocks have are parts, written to a
   place each, that the next kernel (in section 6 the next phase) adds in an order as fixed. (Another GPU may give other
   bits: the number of its multiprocessors says how much is cut up.)

   Words that are used all over, besides those of CUDA:

      part            a partial sum in global memory, see above
      four            four neighbouring elements of a row, which a thread moves at once: 16 bytes, or 8 of bf16
      FAST            form of a kernel for the usual shapes: rows begin, and end, at multiples of what is moved at once
      chunk           positions of a sequence that one block walks. mamba.c's SCAN_CHUNK is another thing, here TILE:
      tile            32 positions, which the scan has in shared memory at a time; h is kept before each
      slice           16 states, which is what a launch of the scan takes; most models have no more
      launch_bounds   a block's threads at most; then, how many blocks are to fit on a multiprocessor at a time, so that
                      the compiler limits the registers of a thread */

#ifdef CUDA_ON_CPU
#include "tests/cuda_on_cpu.h" /* the kernels without a GPU: see there */
#else
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#endif
#include "mamba.c"
#ifdef MAMBA_CUDA
char error_message[1024]; /* of this object and of the program that it is linked with */
#endif

#ifndef CUDA_ON_CPU
/* A function for kernel<<<...>>>(args), so that tests/cuda_on_cpu.h can have one of its own. */
template <class... P, class... A> static cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block,
                                                            size_t shared_bytes, cudaStream_t stream, A... args) {
    kernel<<<grid, block, shared_bytes, stream>>>(args...);
    return cudaGetLastError();
}

/* Two special launches, for section 6. A kernel launched early may start while the ones ahead of it in the stream still
   run (programmatic dependent launch, from compute capability 9.0 on): until wait_for_previous() it must touch nothing
   that the kernel ahead writes. Of one launched together, all blocks are on the GPU at the same time (a cooperative
   launch), and one may wait for what another computes; it may start early, too. */

template <bool TOGETHER, class... P, class... A>
static cudaError_t launch_special(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                                  A... args) {
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attributes[2] = {};
    int major = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
    attributes[0].id = cudaLaunchAttributeCooperative, attributes[0].val.cooperative = TOGETHER;
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization,
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared_bytes, config.stream = stream;
    config.attrs = attributes + !TOGETHER, config.numAttrs = TOGETHER + (major >= 9);
    return cudaLaunchKernelEx(&config, kernel, P(args)...);
}
#define launch_early launch_special<false>
#define launch_together launch_special<true>

static __device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

static __device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* The block's dynamic shared memory. */
template <class T> static __device__ __forceinline__ T *dynamic_shared() {
    extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[];
    return reinterpret_cast<T *>(dynamic_shared_bytes);
}
#else
#define launch_early launch /* there kernels follow one another */
static inline void let_next_start() {}
static inline void wait_for_previous() {}
#endif

/* 2. CONFIG AND MEMORY ========================================================================================= */

typedef __nv_bfloat16 bf16;

#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        if ((call) != 0) return -1;                                                                                    \
    } while (0)
#define CUDA(call)                                                                                                     \
    do {                                                                                                               \
        cudaError_t error_ = (call);                                                                                   \
        if (error_ != cudaSuccess) return fail("cuda: %s (%s)", cudaGetErrorString(error_), #call);                    \
    } while (0)
#define CUBLAS(call)                                                                                                   \
    do {                                                                                                               \
        int status_ = (int)(call);                                                                                     \
        if (status_ != 0) return fail("cublas: status %d (%s)", status_, #call);                                       \
    } while (0)

static __host__ __device__ int ceil_div(long a, long b) { return (int)((a + b - 1) / b); }

static __device__ __forceinline__ float to_float(float v) { return v; }
static __device__ __forceinline__ float to_float(bf16 v) { return __bfloat162float(v); }
static __device__ __forceinline__ void store(float *p, float v) { *p = v; }
static __device__ __forceinline__ void store(bf16 *p, float v) { *p = __float2bfloat16(v); }

/* N neighbours, moved by one instruction where they are 16 bytes or less. */
template <class T, int N> struct alignas(N * sizeof(T)) Pack { T v[N]; };

/* v = N elements of a row, in float, of which only the first `have` exist, the others being `fill`. aligned: rows begin
   at multiples of N and are multiples of N long, so that where one element exists all N do. */
template <int N, class T>
static __device__ __forceinline__ void load_pack(float *v, const T *p, int have, bool aligned, float fill = 0) {
    if (aligned) {
        Pack<T, N> pack = *(const Pack<T, N> *)p;
        for (int i = 0; i < N; i++) v[i] = to_float(pack.v[i]);
    } else
        for (int i = 0; i < N; i++) v[i] = i < have ? to_float(p[i]) : fill;
}

template <int N, class T>
static __device__ __forceinline__ void store_pack(T *p, const float *v, int have, bool aligned) {
    Pack<T, N> pack;
    for (int i = 0; i < N; i++) store(&pack.v[i], v[i]);
    if (aligned) *(Pack<T, N> *)p = pack;
    else
        for (int i = 0; i < N && i < have; i++) p[i] = pack.v[i];
}

/* One allocation on the device, cut into arrays in the order of take(). A first pass with base NULL only counts. */
typedef struct {
    char *base;
    size_t bytes;
} Arena;

template <class T> static void take(Arena *arena, T **field, size_t n) {
    if (arena->base != NULL) *field = (T *)(arena->base + arena->bytes);
    arena->bytes += (n * sizeof(T) + 255) / 256 * 256;
}

/* What changes from step to step; a CUDA graph replays kernels with the arguments it was captured with, so these are
   read from device memory. */
typedef struct {
    float scale; /* of the loss's gradient, over the number of targets */
    float beta1, beta2, rest1, rest2; /* rest1 = 1 - beta1, taken in double: in float the difference loses digits */
    float eps, weight_decay, clip, lr, unbias1, unbias2;
} UpdateArgs;

/* A generate() call goes in pieces of GENERATE_TOKENS; the repetition penalty sees at most HISTORY_TOKENS; a prompt is
   fed in pieces of PIECE_TOKENS; logits take HEAD_BYTES at a time. */
constexpr int GENERATE_TOKENS = 256, HISTORY_TOKENS = 1024, PIECE_TOKENS = 8192, HEAD_BYTES = 256 << 20,
              BLAS_WORKSPACE = 32 << 20;

/* One stream's Sampler on the device. Its random numbers are drawn by the host, one for each token to come. */
typedef struct {
    float temperature, top_p, min_p, repetition_penalty;
    int top_k, n_vocab, banned, window, n_history, n_out;
} GpuSampler;

/* What a block's forward leaves for its backward; see BlockActs of mamba.c. kept: h before every tile, see Scan. dbc:
   what x_proj makes, the columns of dt, B and C, see dbc_columns. dt, widened by dt_proj but before dt_bias and
   softplus, is not kept but computed again from dbc: all blocks share one. In lean mode that is so of normed and u,
   too. */
template <class T> struct GpuBlockActs {
    float *input, *r, *kept;
    T *normed, *xz, *u, *dbc, *dt, *gated;
};

/* How one token for each stream is made: layer by layer, or by few_kernel or many_kernel, see section 6. */
enum Way { BY_LAYERS, FEW_KERNEL, MANY_KERNEL };

template <class T> struct Gpu {
    Model model; /* the table; its weights are read when the backend opens */
    int lean, tf32, multiprocessors;
    cudaStream_t stream;
    cublasHandle_t blas;
    void *blas_workspace, *parameter_memory, *acts_memory, *stream_memory;

    float *weights, *grads, *moment1, *moment2; /* flat, as the table says; the last three NULL if it does not train */
    T *compute; /* the weights in T, for matrix products; the weights themselves where T is float */
    unsigned char *decay; /* (n_param / 16): does weight decay apply to these 16? Offsets are multiples of 16 */
    Params w, g;
    UpdateArgs *args;
    float *loss, *norm; /* the loss since the last update; norm: (1 + NORM_PARTS) the gradient's norm and its parts */

    int batch, len, train; /* what the activations are laid out for */
    GpuBlockActs<T> *block; /* (n_layer); where it does not train all share one layer's memory */
    float *x, *dx, *r; /* the residual stream behind the last block, its gradient, and its 1 / rms */
    float *losses, *parts; /* of each row; of gradients, see bias_backward */
    int *correct; /* of each row: is the target's logit the largest? */
    T *normed, *branch, *logits; /* what the head reads; what a block adds to the stream; of head_rows rows at a time */
    T *dbranch, *dnormed, *dgated, *dxz, *du, *ddt, *ddbc; /* one block's at a time */
    float *scan_scratch; /* of the convolution, too */
    int head_rows;
    int *tokens, *targets, *order, *segment; /* order: rows by token; segment: where in it each token's begin */
    int *host_ids; /* staging for the four, and counts of tokens */

    int streams; /* decoding: see STATE in mamba.c */
    float *state, *held, *few_u, *uniforms; /* held: the last logits; few_u: FewStep's u */
    Way way;      /* how a step is made */
    char *handed; /* two sets of what blocks hand each other, see NOT_YET; NULL where they do not */
    int set;      /* the one that the next token uses */
    GpuSampler *samplers;
    int *history, *out;

    cudaGraphExec_t gradient_graph, update_graph, generate_graph; /* NULL: to be captured */
};

/* 3. LAYERS ==================================================================================================== */

/* First come tools: sums over the threads of a warp and of a block.

   Sum over a warp, or over each LANES neighbours of one. In each round a lane adds the value of the lane whose number
   differs from its own in one bit. Both do the same addition, so every lane gets the sum, and all get the same bits. */
template <int LANES = 32> static __device__ __forceinline__ float warp_sum(float v) {
    for (int lanes = LANES / 2; lanes > 0; lanes /= 2) v += __shfl_xor_sync(0xffffffffu, v, lanes);
    return v;
}

static __device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
static __device__ __forceinline__ unsigned long long larger(unsigned long long a, unsigned long long b) {
    return max(a, b);
}

template <class V> static __device__ __forceinline__ V warp_max(V v) {
    for (int lanes = 16; lanes > 0; lanes /= 2) v = larger(v, __shfl_xor_sync(0xffffffffu, v, lanes));
    return v;
}

/* Sum over a block of up to 1024 threads; every thread gets it. Each warp adds up the sums of all warps. */
static __device__ float block_sum(float v) {
    __shared__ float warp[32];
    int lane = threadIdx.x % 32, n_warps = blockDim.x / 32;
    v = warp_sum(v);
    __syncthreads(); /* the last use of warp[] is over */
    if (lane == 0) warp[threadIdx.x / 32] = v;
    __syncthreads();
    return warp_sum(lane < n_warps ? warp[lane] : 0);
}

template <class V> static __device__ V block_max(V v) {
    __shared__ V warp[32];
    int lane = threadIdx.x % 32, n_warps = blockDim.x / 32;
    v = warp_max(v);
    __syncthreads();
    if (lane == 0) warp[threadIdx.x / 32] = v;
    __syncthreads();
    return warp_max(warp[lane < n_warps ? lane : 0]);
}

/* bias_backward of mamba.c, and other sums over rows. The loop over columns is the grid in x, 32 of them for a block,
   so that a warp reads neighbours; the loop over rows is shared by SUM_WARPS warps of a block and by the up to
   SUM_PARTS blocks in y: parts[y][j] = sum of dy_j over that block's rows. */
constexpr int SUM_COLUMNS = 32, SUM_WARPS = 8, SUM_PARTS = 64;

template <class Y> static __global__ void __launch_bounds__(SUM_COLUMNS *SUM_WARPS)
    bias_backward_kernel(float *parts, const Y *dy, size_t ld, int rows, int dim) {
    __shared__ float of_warp[SUM_WARPS][SUM_COLUMNS];
    int j = blockIdx.x * SUM_COLUMNS + threadIdx.x;
    float sum = 0;
    for (int row = blockIdx.y * SUM_WARPS + threadIdx.y; j < dim && row < rows; row += gridDim.y * SUM_WARPS)
        sum += to_float(dy[row * ld + j]);
    of_warp[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && j < dim) {
        for (int i = 1; i < SUM_WARPS; i++) sum += of_warp[i][threadIdx.x];
        parts[(size_t)blockIdx.y * dim + j] = sum;
    }
}

/* out_j += sum_i parts[i][j]. The loop over columns is the grid, 8 of them for a block: with 32 there would be few
   blocks, and fewer than 8, which are 32 bytes, would not be less to read. Up to 128 threads share a column's parts,
   and add up what they have by halves.     parts: (n, dim) */
static __global__ void __launch_bounds__(1024) add_parts_kernel(float *out, const float *parts, int n, int dim) {
    __shared__ float share[128][8];
    int j = blockIdx.x * 8 + threadIdx.x;
    float sum = 0;
#pragma unroll 8
    for (int i = threadIdx.y; i < n; i += blockDim.y) sum += j < dim ? parts[(size_t)i * dim + j] : 0;
    share[threadIdx.y][threadIdx.x] = sum;
    for (unsigned half = blockDim.y / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.y < half) share[threadIdx.y][threadIdx.x] += share[threadIdx.y + half][threadIdx.x];
    }
    if (threadIdx.y == 0 && j < dim) out[j] += share[0][threadIdx.x];
}

template <class T> static int add_parts(Gpu<T> *gpu, float *out, const float *parts, int n, int dim) {
    int shares = 4;
    while (shares < 128 && 2 * shares <= n) shares *= 2;
    CUDA(launch(add_parts_kernel, dim3(ceil_div(dim, 8)), dim3(8, shares), 0, gpu->stream, out, parts, n, dim));
    return 0;
}

/* dbias += the sum of dy over its rows.     dy: (rows, dim), rows ld apart */
template <class T, class Y>
static int bias_backward(Gpu<T> *gpu, float *dbias, const Y *dy, size_t ld, int rows, int dim) {
    int n = min_int(SUM_PARTS, ceil_div(rows, SUM_WARPS));
    CUDA(launch(bias_backward_kernel<Y>, dim3(ceil_div(dim, SUM_COLUMNS), n), dim3(SUM_COLUMNS, SUM_WARPS), 0,
                gpu->stream, gpu->parts, dy, ld, rows, dim));
    return add_parts(gpu, dbias, gpu->parts, n, dim);
}

/* embedding_forward of mamba.c. The loop over rows is the grid; the threads of a block share the columns. */
static __global__ void embedding_kernel(float *y, const float *W, const int *tokens, int d_model) {
    size_t row = blockIdx.x;
    for (int i = threadIdx.x; i < d_model; i += blockDim.x) y[row * d_model + i] = W[(size_t)tokens[row] * d_model + i];
}

/* embedding_backward of mamba.c: dW[token] += the sum of dy over the rows that hold this token. There the grid could be
   no more than the loop over columns, since two rows may hold the same token and must not add to one place at a time.
   So the host sorts the rows by token, and a block has a token (x) and 32 fours of columns (y). As one token may have
   nearly all rows, blocks of another kernel first sum every FOLD_ROWS neighbours in that order which hold the same
   token; the sum takes the place of the first of them. */
constexpr int FOLD_ROWS = 256;

/* For each of a block's columns, four a thread, the sum of n rows of dy, the k-th being row_at(k). They are shared by
   the SUM_WARPS warps; the first one gets the sum. */
template <class RowAt> static __device__ __forceinline__
void sum_rows(float *sum, const float *dy, int n, RowAt row_at, int j, int d_model) {
    __shared__ float of_warp[SUM_WARPS][32][4];
    bool aligned = d_model % 4 == 0;
    float v[4];
    for (int c = 0; c < 4; c++) sum[c] = 0;
#pragma unroll 8
    for (int k = threadIdx.y; k < (j < d_model ? n : 0); k += SUM_WARPS) {
        load_pack<4>(v, dy + (size_t)row_at(k) * d_model + j, d_model - j, aligned);
        for (int c = 0; c < 4; c++) sum[c] += v[c];
    }
    for (int c = 0; c < 4; c++) of_warp[threadIdx.y][threadIdx.x][c] = sum[c];
    __syncthreads();
    for (int i = 1; threadIdx.y == 0 && i < min(SUM_WARPS, n); i++)
        for (int c = 0; c < 4; c++) sum[c] += of_warp[i][threadIdx.x][c];
}

/* The grid: every FOLD_ROWS neighbours in the order (x), 32 fours of columns (y). The order is sorted, so if the first
   and the last of them hold the same token, all do. */
static __global__ void __launch_bounds__(32 * SUM_WARPS)
    embedding_fold_kernel(float *dy, const int *tokens, const int *order, int d_model) {
    int first = blockIdx.x * FOLD_ROWS, j = (blockIdx.y * 32 + threadIdx.x) * 4;
    if (tokens[order[first]] != tokens[order[first + FOLD_ROWS - 1]]) return;
    float sum[4];
    sum_rows(sum, dy, FOLD_ROWS, [=](int k) { return order[first + k]; }, j, d_model);
    if (threadIdx.y == 0 && j < d_model)
        store_pack<4>(dy + (size_t)order[first] * d_model + j, sum, d_model - j, d_model % 4 == 0);
}

/* segment: where the rows of the i-th token that occurs begin in order, -1 past the last. Of those, `alone` come before
   the first multiple of FOLD_ROWS; then come `folded` sums, each in the place of FOLD_ROWS rows; then the rest. */
static __global__ void __launch_bounds__(32 * SUM_WARPS)
    embedding_backward_kernel(float *dW, const float *dy, const int *tokens, const int *order, const int *segment,
                              int d_model) {
    int first = segment[blockIdx.x], j = (blockIdx.y * 32 + threadIdx.x) * 4, have = d_model - j;
    if (first < 0 || segment[blockIdx.x + 1] < 0) return;
    int end = segment[blockIdx.x + 1], alone = min(end, ceil_div(first, FOLD_ROWS) * FOLD_ROWS) - first;
    int folded = (end - first - alone) / FOLD_ROWS, n = end - first - folded * (FOLD_ROWS - 1);
    bool aligned = d_model % 4 == 0;
    float sum[4], v[4], *to = dW + (size_t)tokens[order[first]] * d_model + j;
    auto row_at = [=](int k) {
        int past = k - alone;
        return order[first + k + max(0, min(past, folded)) * (FOLD_ROWS - 1)];
    };
    sum_rows(sum, dy, n, row_at, j, d_model);
    if (threadIdx.y > 0 || have <= 0) return;
    load_pack<4>(v, to, have, aligned);
    for (int c = 0; c < 4; c++) sum[c] += v[c];
    store_pack<4>(to, sum, have, aligned);
}

/* order, segment: see sort_rows. dy is overwritten. */
static int embedding_backward(float *dW, float *dy, const int *tokens, const int *order, const int *segment, int rows,
                              int vocab_size, int d_model, cudaStream_t stream) {
    dim3 block(32, SUM_WARPS);
    int fours = ceil_div(d_model, 128);
    if (rows >= FOLD_ROWS)
        CUDA(launch(embedding_fold_kernel, dim3(rows / FOLD_ROWS, fours), block, 0, stream, dy, tokens, order,
                    d_model));
    CUDA(launch(embedding_backward_kernel, dim3(min_int(rows, vocab_size), fours), block, 0, stream, dW,
                (const float *)dy, tokens, order, segment, d_model));
    return 0;
}

/* The residual connection and the RMSNorm behind it, add_forward and rmsnorm_forward of mamba.c: out = x + branch +
   bias and y = out r w. The loop over rows is the grid; a thread has FOURS times four columns at most, in registers
   between the sum of squares and the product with r, so that x is read once. branch (and bias) may be NULL: then out is
   not written. */
template <class T, int FOURS> static __global__ void __launch_bounds__(1024)
    residual_rmsnorm_kernel(T *y, float *r, float *out, const float *x, const T *branch, const float *bias,
                            const float *w, int dim, float eps) {
    size_t row = blockIdx.x;
    bool aligned = dim % 4 == 0;
    float v[FOURS][4], other[4], sum = 0, scale;     /* v: out; other: branch, then w */
#pragma unroll
    for (int k = 0; k < FOURS; k++) {
        int i = (threadIdx.x + k * blockDim.x) * 4, have = dim - i;
        if (have <= 0) break;
        load_pack<4>(v[k], x + row * dim + i, have, aligned);
        if (branch != NULL) {
            load_pack<4>(other, branch + row * dim + i, have, aligned);
            for (int c = 0; c < 4; c++) v[k][c] += other[c] + (bias != NULL && c < have ? bias[i + c] : 0);
            store_pack<4>(out + row * dim + i, v[k], have, aligned);
        }
        for (int c = 0; c < 4; c++) sum += v[k][c] * v[k][c];
    }
    scale = rsqrtf(block_sum(sum) / dim + eps);
    if (threadIdx.x == 0) r[row] = scale;
#pragma unroll
    for (int k = 0; k < FOURS; k++) {
        int i = (threadIdx.x + k * blockDim.x) * 4, have = dim - i;
        if (have <= 0) break;
        load_pack<4>(other, w + i, have, aligned);
        for (int c = 0; c < 4; c++) v[k][c] *= scale * other[c];
        store_pack<4>(y + row * dim + i, v[k], have, aligned);
    }
}

/* rmsnorm_backward of mamba.c: dx += r (dy w - x r^2 mean(dy w x)), also in T, for the matrix products of the block
   before. The loop over rows is the grid, a block taking every gridDim.x-th; a thread has the same columns of each,
   whose dw it sums: parts[block] = sum over the block's rows of dy x r. add: 0 where dx is set rather than added to. */
template <class T, int FOURS> static __global__ void __launch_bounds__(1024)
    rmsnorm_backward_kernel(float *dx, T *dx_T, float *parts, const T *dy, const float *x, const float *r,
                            const float *w, int rows, int dim, int add) {
    bool aligned = dim % 4 == 0;
    float dw[FOURS][4] = {};
    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        float g[FOURS][4], v[FOURS][4], d[4], sum = 0, scale = r[row], mean; /* g: dy w; v: x; d: w, then dx */
        size_t first = (size_t)row * dim;
#pragma unroll
        for (int k = 0; k < FOURS; k++) {
            int i = (threadIdx.x + k * blockDim.x) * 4, have = dim - i;
            if (have <= 0) break;
            load_pack<4>(g[k], dy + first + i, have, aligned);
            load_pack<4>(v[k], x + first + i, have, aligned);
            load_pack<4>(d, w + i, have, aligned);
            for (int c = 0; c < 4; c++) {
                dw[k][c] += g[k][c] * v[k][c] * scale;
                g[k][c] *= d[c];
                sum += g[k][c] * v[k][c];
            }
        }
        mean = block_sum(sum) / dim;
#pragma unroll
        for (int k = 0; k < FOURS; k++) {
            int i = (threadIdx.x + k * blockDim.x) * 4, have = dim - i;
            if (have <= 0) break;
            for (int c = 0; c < 4; c++) d[c] = 0;
            if (add) load_pack<4>(d, dx + first + i, have, aligned);
            for (int c = 0; c < 4; c++) d[c] += scale * (g[k][c] - v[k][c] * scale * scale * mean);
            store_pack<4>(dx + first + i, d, have, aligned);
            store_pack<4>(dx_T + first + i, d, have, aligned);
        }
    }
#pragma unroll
    for (int k = 0; k < FOURS; k++) {
        int i = (threadIdx.x + k * blockDim.x) * 4, have = dim - i;
        if (have > 0) store_pack<4>(parts + (size_t)blockIdx.x * dim + i, dw[k], have, aligned);
    }
}

constexpr int NORM_BLOCKS = 1024; /* at most so many share the rows of rmsnorm_backward_kernel */

/* A thread for four columns, in whole warps; of more than 4096 columns, up to the 2^14 of config_check, each thread has
   several fours. */
static int norm_threads(int dim) { return min_int(1024, ceil_div(dim, 128) * 32); }

template <class T> static int residual_rmsnorm(Gpu<T> *gpu, T *y, float *r, float *out, const float *x, const T *branch,
                                               const float *bias, const float *w, int rows) {
    const Config *c = &gpu->model.config;
    CUDA(launch(c->d_model <= 4096 ? residual_rmsnorm_kernel<T, 1> : residual_rmsnorm_kernel<T, 4>, dim3(rows),
                dim3(norm_threads(c->d_model)), 0, gpu->stream, y, r, out, x, branch, bias, w, c->d_model,
                (float)c->norm_eps));
    return 0;
}

/* gpu->dx (set, or added to), gpu->dbranch the same in T, dw */
template <class T> static int rmsnorm_backward(Gpu<T> *gpu, float *dw, const T *dy, const float *x, const float *r,
                                               const float *w, int rows, int add) {
    int dim = gpu->model.config.d_model, blocks = min_int(rows, NORM_BLOCKS);
    CUDA(launch(dim <= 4096 ? rmsnorm_backward_kernel<T, 1> : rmsnorm_backward_kernel<T, 4>, dim3(blocks),
                dim3(norm_threads(dim)), 0, gpu->stream, gpu->dx, gpu->dbranch, gpu->parts, dy, x, r, w, rows, dim,
                add));
    return add_parts(gpu, dw, gpu->parts, blocks, dim);
}

/* y += bias, as linear_forward of mamba.c does. The loops over rows and columns are one loop here, which all threads of
   the grid share, neighbouring threads having neighbouring elements. */
template <class T> static __global__ void add_bias_kernel(T *y, const float *bias, size_t rows, int dim) {
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < rows * dim; i += (size_t)gridDim.x * blockDim.x)
        store(&y[i], to_float(y[i]) + bias[i % dim]);
}

template <class T, class Y> static int add_bias(Gpu<T> *gpu, Y *y, const float *bias, int rows, int dim) {
    CUDA(launch(add_bias_kernel<Y>, dim3(8 * gpu->multiprocessors), dim3(256), 0, gpu->stream, y, bias, (size_t)rows,
                dim));
    return 0;
}

/* Matrix products are cuBLAS's. It numbers the elements of a matrix column by column, so what is (rows, columns) to us
   is (columns, rows) to it, and a product of ours is its product of the operands in the other order. */
static cudaDataType_t blas_type(const float *) { return CUDA_R_32F; }
static cudaDataType_t blas_type(const bf16 *) { return CUDA_R_16BF; }

template <class T, class C> static int gemm(Gpu<T> *gpu, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n,
                                            int k, const T *a, size_t lda, const T *b, size_t ldb, C *c, size_t ldc,
                                            int add) {
    float alpha = 1, beta = add ? 1.0f : 0.0f;
    CUBLAS(cublasGemmEx(gpu->blas, op_a, op_b, m, n, k, &alpha, a, blas_type(a), (int)lda, b, blas_type(b), (int)ldb,
                        &beta, c, blas_type(c), (int)ldc, gpu->tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F,
                        CUBLAS_GEMM_DEFAULT));
    return 0;
}

/* As in mamba.c, y = x W^T, but for the bias.     x: (rows, in), row stride ldx; W: (out, in); y: (rows, out) */
template <class T, class C>
static int linear_forward(Gpu<T> *gpu, C *y, const T *x, size_t ldx, const T *W, int rows, int in, int out) {
    return gemm(gpu, CUBLAS_OP_T, CUBLAS_OP_N, out, rows, in, W, (size_t)in, x, ldx, y, (size_t)out, 0);
}

/* dx = dy W (or +=, where add),     dW += dy^T x.     dx: row stride ldx */
template <class T> static int linear_backward(Gpu<T> *gpu, T *dx, float *dW, const T *dy, const T *x, size_t ldx,
                                              const T *W, int rows, int in, int out, int add) {
    TRY(gemm(gpu, CUBLAS_OP_N, CUBLAS_OP_N, in, rows, out, W, (size_t)in, dy, (size_t)out, dx, ldx, add));
    return gemm(gpu, CUBLAS_OP_N, CUBLAS_OP_T, in, out, rows, x, ldx, dy, (size_t)out, dW, (size_t)in, 1);
}

/* N neighbours, 16 bytes at most, as they lie in memory, moved by one instruction. This is for what is loaded long
   before it is used: load_pack makes floats of what it loads, and so waits for it; load_few (where it is FAST) only
   starts the load, and the wait is at unpack(). Whole words are kept because registers are words: to take halves out of
   one would be to wait for it. */
template <int BYTES> struct Words;
template <> struct Words<4> { typedef unsigned type; };
template <> struct Words<8> { typedef uint2 type; };
template <> struct Words<16> { typedef uint4 type; };
template <class T, int N> struct Few {
    typename Words<N * sizeof(T)>::type bits;
    __device__ __forceinline__ unsigned &word(int i) { return ((unsigned *)&bits)[i]; }
};

template <int N> static __device__ __forceinline__ void unpack(float *to, Few<float, N> v) {
    for (int i = 0; i < N; i++) to[i] = __uint_as_float(v.word(i));
}
template <int N> static __device__ __forceinline__ void unpack(float *to, Few<bf16, N> v) { /* a float's upper half */
    for (int i = 0; i < N / 2; i++) {
        to[2 * i] = __uint_as_float(v.word(i) << 16);
        to[2 * i + 1] = __uint_as_float(v.word(i) & 0xffff0000u);
    }
}
template <int N> static __device__ __forceinline__ void pack(Few<float, N> *to, const float *v) {
    for (int i = 0; i < N; i++) to->word(i) = __float_as_uint(v[i]);
}
template <int N> static __device__ __forceinline__ void pack(Few<bf16, N> *to, const float *v) {
    for (int i = 0; i < N / 2; i++) {
        __nv_bfloat162 two = __floats2bfloat162_rn(v[2 * i], v[2 * i + 1]);
        to->word(i) = *(unsigned *)&two;
    }
}

/* N elements of a row of which n exist, zeros for the others. FAST: they are aligned, and all N exist or none. */
template <int N, bool FAST, class T> static __device__ __forceinline__ Few<T, N> load_few(const T *p, int n) {
    Few<T, N> few = {};
    if (FAST) {
        if (n > 0) few = *(const Few<T, N> *)p;
    } else {
        float v[N];
        for (int i = 0; i < N; i++) v[i] = i < n ? to_float(p[i]) : 0;
        pack(&few, v);
    }
    return few;
}

template <int N, bool FAST, class T> static __device__ __forceinline__ void store_few(T *p, const float *v, int n) {
    if (FAST) {
        Few<T, N> few;
        pack(&few, v);
        if (n > 0) __stcg((decltype(few.bits) *)p, few.bits); /* a plain store may become two */
    } else
        for (int i = 0; i < N; i++)
            if (i < n) store(p + i, v[i]);
}

/* Do all rows begin at a multiple of n elements? */
template <class T> static bool aligned(const T *p, size_t ld, int n) {
    return (uintptr_t)p % (n * sizeof(T)) == 0 && ld % n == 0;
}

#ifdef CUDA_ON_CPU
constexpr float EX2_SHORT = 0;
static inline float exp2_fast(float x) { return exp2f(x); }
static inline float reciprocal(float x) { return 1.0f / x; }
#else
constexpr float EX2_SHORT = 2e-8f; /* what exp2_fast(x) lacks of 2^x, on average over x from -1/2 to -2^-7 */
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

/* An element of a tensor whose rows are ld apart; one multiplication of 32 bits by 32, with a result of 64. */
template <class T> static __device__ __forceinline__ T *element(T *p, unsigned row, int ld, int column) {
    return p + (size_t)row * (unsigned)ld + column;
}

/* Causal convolution, a filter of its own for each channel, then SiLU:
       u_t = silu(s_t),  s_t = bias + sum_k w_k x_{t-(K-1)+k},  K = d_conv.
   x and u: (batch, len, d_inner); weight: (d_inner, K); states: (batch, K - 1, d_inner), the inputs before the first
   position. */
template <class T> struct Conv {
    int batch, len, d_inner, d_conv, multiprocessors;
    const T *x;
    int ld_x;
    const float *weight, *bias;                   /* bias NULL: none */
    const float *first;                           /* NULL: zeros */
    float *last;                                  /* NULL: not wanted; may be `first` */
    size_t ld_state;
    T *u;
    int ld_u;
    /* backward only */
    float *scratch;
    const T *du;
    T *dx;
    int ld_du, ld_dx;
    float *dweight, *dbias;                       /* added to; dbias NULL: none */
    /* filled in by the launchers */
    int steps;                                    /* positions that a thread walks */
};

/* A thread has CONV_WIDTH channels, in bf16 a word, a warp 32 times as many; the CONV_WARPS warps of a block follow one
   another along the sequence, each walking `steps` positions. A block's chunk is so CONV_WARPS * steps positions. */
constexpr int CONV_WIDTH = 2, CONV_CHANNELS = 32 * CONV_WIDTH, CONV_WARPS = 4;

/* Where a thread works: sequence; positions begin..end - 1; channels from d on, of which n still exist (all if that is
   CONV_WIDTH or more, none if it is 0 or less); part: which of the blocks that share these channels. */
struct ConvPlace { int b, begin, end, d, n, part; };
template <class T> static __device__ __forceinline__ ConvPlace conv_place(const Conv<T> &s) {
    int groups = (s.d_inner + CONV_CHANNELS - 1) / CONV_CHANNELS;
    int chunks = (s.len + CONV_WARPS * s.steps - 1) / (CONV_WARPS * s.steps);
    ConvPlace p;
    p.part = blockIdx.x / groups, p.b = p.part / chunks;
    p.begin = (p.part % chunks * CONV_WARPS + (int)threadIdx.x / 32) * s.steps;
    p.end = min(s.len, p.begin + s.steps);
    p.d = blockIdx.x % groups * CONV_CHANNELS + threadIdx.x % 32 * CONV_WIDTH, p.n = s.d_inner - p.d;
    return p;
}

/* ROWS positions from t on, zeros before 0 and from `end` on. */
template <bool FAST, class T, int ROWS> static __device__ __forceinline__
void conv_load(Few<T, CONV_WIDTH> (&to)[ROWS], const T *p, int ld, int t, int end, int n) {
    for (int j = 0; j < ROWS; j++)
        to[j] = load_few<CONV_WIDTH, FAST>(p + j * (ptrdiff_t)ld, (unsigned)(t + j) < (unsigned)end ? n : 0);
}

/* Where a sequence begins, the inputs before the first position: those of the state. */
template <int BEFORE, class T> static __device__ __forceinline__
void conv_first(float (*x)[CONV_WIDTH], const Conv<T> &s, const ConvPlace &p) {
    if (p.begin > 0 || s.first == nullptr) return;
    for (int k = 0; k < BEFORE; k++) {
        int tap = k - BEFORE + s.d_conv - 1;
        const float *first = s.first + p.b * s.ld_state + (ptrdiff_t)tap * s.d_inner + p.d;
        for (int i = 0; i < CONV_WIDTH; i++) x[k][i] = i < p.n && tap >= 0 ? first[i] : 0;
    }
}

/* Weights with zeros in front, so that there are TAPS of them. */
template <class T, int TAPS> static __device__ __forceinline__
void conv_weights(float (*w)[CONV_WIDTH], float *bias, const Conv<T> &s, const ConvPlace &p) {
    for (int i = 0; i < CONV_WIDTH; i++) {
        for (int k = 0; k < TAPS; k++) {
            int tap = k - TAPS + s.d_conv;
            w[k][i] = i < p.n && tap >= 0 ? s.weight[(size_t)(p.d + i) * s.d_conv + tap] : 0;
        }
        bias[i] = i < p.n && s.bias != nullptr ? s.bias[p.d + i] : 0;
    }
}

/* conv_forward of mamba.c. Its loop over sequences and blocks of channels, and chunks of the loop over t, are the grid.
   A thread walks its positions, ROWS at a time, with the last inputs in registers and the next ROWS on their way. */
template <class T, int TAPS, bool FAST>
static __global__ void __launch_bounds__(32 * CONV_WARPS, FAST ? 8 : 1) conv_forward_kernel(Conv<T> s) {
    constexpr int ROWS = 8, BEFORE = TAPS - 1;
    const ConvPlace p = conv_place(s);
    if (p.n <= 0 || p.begin >= s.len) return;
    float w[TAPS][CONV_WIDTH], bias[CONV_WIDTH], x[BEFORE + ROWS][CONV_WIDTH]; /* x[BEFORE] is the one at t */
    Few<T, CONV_WIDTH> before[BEFORE], next[ROWS];
    const T *x_at = element(s.x, p.b * s.len + p.begin, s.ld_x, p.d);
    T *u_at = element(s.u, p.b * s.len + p.begin, s.ld_u, p.d);
    conv_load<FAST>(before, x_at - BEFORE * (ptrdiff_t)s.ld_x, s.ld_x, p.begin - BEFORE, p.end, p.n);
    conv_load<FAST>(next, x_at, s.ld_x, p.begin, p.end, p.n);
    conv_weights<T, TAPS>(w, bias, s, p);
    for (int k = 0; k < BEFORE; k++) unpack(x[k], before[k]);
    conv_first<BEFORE>(x, s, p);
    for (int t = p.begin; t < p.end; t += ROWS) {
        for (int j = 0; j < ROWS; j++) unpack(x[BEFORE + j], next[j]);
        x_at += ROWS * (ptrdiff_t)s.ld_x;
        conv_load<FAST>(next, x_at, s.ld_x, t + ROWS, p.end, p.n);
        for (int j = 0; j < ROWS; j++) {
            float u[CONV_WIDTH];
            for (int i = 0; i < CONV_WIDTH; i++) {
                float sum = bias[i];
                for (int k = 0; k < TAPS; k++) sum += w[k][i] * x[j + k][i];
                u[i] = sum * sigmoid(sum);
            }
            store_few<CONV_WIDTH, FAST>(u_at + j * (ptrdiff_t)s.ld_u, u, t + j < p.end ? p.n : 0);
        }
        u_at += ROWS * (ptrdiff_t)s.ld_u;
        for (int k = 0; k < BEFORE; k++)
            for (int i = 0; i < CONV_WIDTH; i++) x[k][i] = x[k + ROWS][i];
    }
}

/* The state that conv_forward of mamba.c leaves: the last K - 1 of all inputs, those of the state before included. A
   thread has a channel of a sequence. A launch of its own, since it may write over what blocks above still read. */
template <class T> static __global__ void __launch_bounds__(128) conv_state_kernel(Conv<T> s) {
    int d = blockIdx.x * 128 + threadIdx.x, b = blockIdx.y;
    if (d >= s.d_inner) return;
    for (int k = 0; k < s.d_conv - 1; k++) {
        int t = s.len - s.d_conv + 1 + k;
        float before = t < 0 && s.first != nullptr ? s.first[b * s.ld_state + (size_t)(k + s.len) * s.d_inner + d] : 0;
        float *last = s.last + b * s.ld_state + (size_t)k * s.d_inner + d;
        *last = t < 0 ? before : to_float(*element(s.x, b * s.len + t, s.ld_x, d));
    }
}

/* conv_backward of mamba.c, on the forward's grid. s_t is computed again, then ds_t = du_t silu'(s_t), and
       dx_t = sum_k w_k ds_{t+(K-1)-k},     dw_k = sum_t ds_t x_{t-(K-1)+k},     dbias = sum_t ds_t.
   dx_t needs the ds of K - 1 later positions, so a thread walks on for as many past its last and writes dx that far
   behind. Its sums dw and dbias are added over the warps of a block here, over blocks in conv_gradients_kernel. */
template <class T, int TAPS, bool FAST>
static __global__ void __launch_bounds__(32 * CONV_WARPS, FAST ? 6 : 1) conv_backward_kernel(Conv<T> s) {
    constexpr int ROWS = 4, BEFORE = TAPS - 1;
    __shared__ float part[TAPS + 1][CONV_WARPS][CONV_CHANNELS];
    const ConvPlace p = conv_place(s);
    float w[TAPS][CONV_WIDTH], bias[CONV_WIDTH], dw[TAPS + 1][CONV_WIDTH] = {};         /* dw[TAPS]: dbias */
    float x[BEFORE + ROWS][CONV_WIDTH], ds[BEFORE + ROWS][CONV_WIDTH] = {};             /* [BEFORE]: at t */
    if (p.begin < s.len) {
        Few<T, CONV_WIDTH> before[BEFORE], next_x[ROWS], next_du[ROWS];
        int row = p.b * s.len + p.begin, end = min(s.len, p.end + BEFORE);
        const T *x_at = element(s.x, row, s.ld_x, p.d), *du_at = element(s.du, row, s.ld_du, p.d);
        T *dx_at = element(s.dx, row, s.ld_dx, p.d) - BEFORE * (ptrdiff_t)s.ld_dx;
        conv_load<FAST>(before, x_at - BEFORE * (ptrdiff_t)s.ld_x, s.ld_x, p.begin - BEFORE, end, p.n);
        conv_load<FAST>(next_x, x_at, s.ld_x, p.begin, end, p.n);
        conv_load<FAST>(next_du, du_at, s.ld_du, p.begin, end, p.n);
        conv_weights<T, TAPS>(w, bias, s, p);
        for (int k = 0; k < BEFORE; k++) unpack(x[k], before[k]);
        conv_first<BEFORE>(x, s, p);
#pragma unroll 1
        for (int t = p.begin; t < p.end + BEFORE; t += ROWS) {
            for (int j = 0; j < ROWS; j++) unpack(x[BEFORE + j], next_x[j]), unpack(ds[BEFORE + j], next_du[j]);
            x_at += ROWS * (ptrdiff_t)s.ld_x, du_at += ROWS * (ptrdiff_t)s.ld_du;
            conv_load<FAST>(next_x, x_at, s.ld_x, t + ROWS, end, p.n);
            conv_load<FAST>(next_du, du_at, s.ld_du, t + ROWS, end, p.n);
            for (int j = 0; j < ROWS; j++)
                for (int i = 0; i < CONV_WIDTH; i++) {
                    float sum = bias[i];
                    for (int k = 0; k < TAPS; k++) sum += w[k][i] * x[j + k][i];
                    float open = sigmoid(sum), *ds_t = &ds[BEFORE + j][i];
                    *ds_t *= open + sum * (open - open * open);
                    float mine = t + j < p.end ? *ds_t : 0;
                    for (int k = 0; k < TAPS; k++) dw[k][i] += mine * x[j + k][i];
                    dw[TAPS][i] += mine;
                }
            for (int j = 0; j < ROWS; j++) {      /* of position t - BEFORE + j */
                float dx[CONV_WIDTH] = {};
                for (int i = 0; i < CONV_WIDTH; i++)
                    for (int k = 0; k < TAPS; k++) dx[i] += w[k][i] * ds[j + BEFORE - k][i];
                bool exists = t - BEFORE + j >= p.begin && t - BEFORE + j < p.end;
                store_few<CONV_WIDTH, FAST>(dx_at + j * (ptrdiff_t)s.ld_dx, dx, exists ? p.n : 0);
            }
            dx_at += ROWS * (ptrdiff_t)s.ld_dx;
            for (int k = 0; k < BEFORE; k++)
                for (int i = 0; i < CONV_WIDTH; i++) x[k][i] = x[k + ROWS][i], ds[k][i] = ds[k + ROWS][i];
        }
    }
    for (int k = 0; k <= TAPS; k++)
        for (int i = 0; i < CONV_WIDTH; i++) part[k][threadIdx.x / 32][threadIdx.x % 32 * CONV_WIDTH + i] = dw[k][i];
    __syncthreads();
    for (int i = threadIdx.x; i < (TAPS + 1) * CONV_CHANNELS; i += 32 * CONV_WARPS) {
        int k = i / CONV_CHANNELS, c = i % CONV_CHANNELS, d = p.d - (int)threadIdx.x % 32 * CONV_WIDTH + c;
        float sum = 0;
        for (int warp = 0; warp < CONV_WARPS; warp++) sum += part[k][warp][c];
        if (d < s.d_inner) s.scratch[((size_t)p.part * (TAPS + 1) + k) * s.d_inner + d] = sum;
    }
}

/* Sums dw and dbias over the blocks of conv_backward_kernel; eight threads share an element, 32 elements a block. */
template <class T, int TAPS> static __global__ void __launch_bounds__(256) conv_gradients_kernel(Conv<T> s, int parts) {
    __shared__ float share[8][32];
    int i = blockIdx.x * 32 + threadIdx.x % 32, j = threadIdx.x / 32, size = (TAPS + 1) * s.d_inner;
    float sum = 0;
#pragma unroll 4
    for (int p = j; p < parts && i < size; p += 8) sum += s.scratch[(size_t)p * size + i];
    share[j][threadIdx.x % 32] = sum;
    __syncthreads();
    int d = i % s.d_inner, k = i / s.d_inner, tap = k - TAPS + s.d_conv;
    if (j > 0 || i >= size || tap < 0) return;
    for (j = 1; j < 8; j++) sum += share[j][threadIdx.x];
    if (k < TAPS) s.dweight[(size_t)d * s.d_conv + tap] += sum;
    else if (s.dbias != nullptr) s.dbias[d] += sum;
}

/* Positions that a thread walks: many, as it loads K - 1 before its first, too, but not so many that a multiprocessor
   has fewer than 20 warps. */
static int conv_steps(int batch, int len, int d_inner, int multiprocessors) {
    int steps = 128;
    long warps_per_chunk = (long)batch * ceil_div(d_inner, CONV_CHANNELS);
    while (steps > 16 && warps_per_chunk * ceil_div(len, steps) < 20L * multiprocessors) steps /= 2;
    return steps;
}

/* Blocks along batch and len. */
static long conv_parts(int batch, int len, int steps) { return (long)batch * ceil_div(len, CONV_WARPS * steps); }

/* Floats of scratch for the backward pass: sums for eight taps and the bias. */
static size_t conv_scratch(int batch, int len, int d_inner, int multiprocessors) {
    return (size_t)conv_parts(batch, len, conv_steps(batch, len, d_inner, multiprocessors)) * 9 * d_inner;
}

template <class T, int TAPS, bool FAST> static int conv_forward_taps(const Conv<T> &s, cudaStream_t stream) {
    long blocks = conv_parts(s.batch, s.len, s.steps) * ceil_div(s.d_inner, CONV_CHANNELS);
    if (blocks > INT_MAX || (long)s.batch * s.len > INT_MAX)
        return fail("conv: %d x %d positions are too many", s.batch, s.len);
    CUDA(launch(conv_forward_kernel<T, TAPS, FAST>, dim3((unsigned)blocks), dim3(32 * CONV_WARPS), 0, stream, s));
    if (s.last == nullptr || s.d_conv == 1) return 0;
    CUDA(launch(conv_state_kernel<T>, dim3(ceil_div(s.d_inner, 128), s.batch), dim3(128), 0, stream, s));
    return 0;
}

template <class T, int TAPS, bool FAST> static int conv_backward_taps(const Conv<T> &s, cudaStream_t stream) {
    long parts = conv_parts(s.batch, s.len, s.steps), blocks = parts * ceil_div(s.d_inner, CONV_CHANNELS);
    int sums = ceil_div((TAPS + 1L) * s.d_inner, 32);
    if (blocks > INT_MAX || (long)s.batch * s.len > INT_MAX)
        return fail("conv: %d x %d positions are too many", s.batch, s.len);
    CUDA(launch(conv_backward_kernel<T, TAPS, FAST>, dim3((unsigned)blocks), dim3(32 * CONV_WARPS), 0, stream, s));
    CUDA(launch(conv_gradients_kernel<T, TAPS>, dim3(sums), dim3(256), 0, stream, s, (int)parts));
    return 0;
}

/* Refuses what the kernels cannot do. */
template <class T> static int conv_prepare(Conv<T> *s) {
    s->steps = conv_steps(s->batch, s->len, s->d_inner, s->multiprocessors);
    return s->d_conv >= 1 && s->d_conv <= 8 ? 0 : fail("conv: d_conv is %d; the GPU supports 1 to 8", s->d_conv);
}

/* The usual case: up to four taps, everything aligned. */
template <class T> static int conv_forward(Conv<T> s, cudaStream_t stream) {
    TRY(conv_prepare(&s));
    bool fast = s.d_conv <= 4 && s.d_inner % CONV_WIDTH == 0 && aligned(s.x, s.ld_x, CONV_WIDTH) &&
                aligned(s.u, s.ld_u, CONV_WIDTH);
    return fast ? conv_forward_taps<T, 4, true>(s, stream) : conv_forward_taps<T, 8, false>(s, stream);
}

template <class T> static int conv_backward(Conv<T> s, cudaStream_t stream) {
    TRY(conv_prepare(&s));
    bool fast = s.d_conv <= 4 && s.d_inner % CONV_WIDTH == 0 && aligned(s.x, s.ld_x, CONV_WIDTH) &&
                aligned(s.du, s.ld_du, CONV_WIDTH) && aligned(s.dx, s.ld_dx, CONV_WIDTH);
    return fast ? conv_backward_taps<T, 4, true>(s, stream) : conv_backward_taps<T, 8, false>(s, stream);
}

/* Discretisation, first half: delta = softplus(v), v = dt + dt_bias, is computed in the scan's kernels and not stored.
   softplus(v) = log(1 + exp(v)) = max(v, 0) + log1p(e), e = exp(-|v|), and log1p(e) = 2 artanh(r), r = e / (2 + e) <=
   1/3. Unlike log(1 + e) this has a small relative error where delta is small. The series 1 + r^2/3 + r^4/5 + .. of
   artanh(r) / r is cut, its coefficients bent to stay within 2e-7. *slope: the derivative, sigmoid(v). */
static __device__ __forceinline__ float softplus(float v, float *slope) {
    float e = exp2_fast(-LOG2_E * fabsf(v)), r = e * reciprocal(2.0f + e), s = r * r;
    *slope = (v < 0 ? e : 1.0f) * reciprocal(1.0f + e);
    return fmaxf(v, 0.0f) + 2 * r * (1 + s * (0.33336742f + s * (0.19817984f + s * 0.16991788f)));
}

/* Second half: abar = exp(delta A), A in units of log 2. A product of hundreds of factors near 1 would show what
   exp2_fast lacks, so its argument makes up for it. */
static __device__ __forceinline__ float decay(float delta, float A) { return exp2_fast(fmaf(delta, A, EX2_SHORT)); }

/* The selective scan with what is around it, from dt to the gate:
       h_t[n] = exp(delta_t A[n]) h_{t-1}[n] + delta_t B_t[n] u_t,     y_t = sum_n C_t[n] h_t[n] + D u_t,
       out_t = y_t silu(z_t).
   One call of it: tensors are (batch, len, d_inner), B and C (batch, len, d_state); ld_ is the distance between
   positions. States are (batch, d_state, d_inner), ld_h from one sequence to the next. */
template <class T> struct Scan {
    int batch, len, d_inner, d_state;
    const T *u, *dt, *z, *B, *C;                  /* dt before dt_bias and softplus */
    int ld_u, ld_dt, ld_z, ld_b, ld_c;            /* 0 where B or C is the same at every position */
    const float *A_log, *D, *dt_bias;
    const float *h_first;                         /* NULL: zeros */
    float *h_last;                                /* NULL: not wanted; may be h_first */
    size_t ld_h;
    T *out;                                       /* y silu(z) */
    int ld_out;
    float *checkpoints;                           /* h before every tile, for the backward pass; NULL: not wanted.
                                                     (batch, tiles, slices, d_inner, SCAN_STATES) */
    float *scratch;
    /* backward only */
    const T *d_out;
    T *du, *ddt, *dz, *dB, *dC;
    int ld_d_out, ld_du, ld_ddt, ld_dz, ld_dbc;
    float *dA_log, *dD, *ddt_bias;                /* added to */
    /* filled in by the launchers */
    int n_first, slices;                          /* a slice of the states is SCAN_STATES of them, from n_first on */
    int chunks, chunk_len;                        /* len is cut into chunks that are walked at the same time */
    float *chunk_delta, *chunk_end;               /* (batch, chunks, d_inner), (.., SCAN_STATES): see chunk_end_at */
    float *earlier;                               /* (batch * len, d_inner, 1 or 3): sums over n, of earlier slices */
    float *part_bc;                               /* (blocks, batch * len, 2, SCAN_STATES): shares of dB, dC */
    float *part_channels;                         /* (batch, chunks, d_inner * (SCAN_STATES + 2)): dA, dD, ddt_bias */
};

/* A launch takes a slice of SCAN_STATES states, a block 32 channels of one sequence, TILE positions at a time. Four
   lanes of a warp share a channel and own four states each, in registers: of 1, 2, 4, 8 and 16 lanes, 4 were the
   fastest on an H100. With fewer there are fewer warps to go on with while others wait; with more, more lanes repeat
   what does not depend on the state. Warp w has

       lanes       0 .. 7         8 .. 15        16 .. 23       24 .. 31
       states      0 .. 3         4 .. 7         8 .. 11        12 .. 15
       channels    8 w .. 8 w + 7 in each of the four

   so a sum over states is one over lanes that differ in the bits 8 and 16, a sum over channels in the bits 1, 2 and 4.
   To be moved, a tile of u is two fours of channels for each of the 128 threads, one of B is one four of states. */
constexpr int SCAN_STATES = 16, SCAN_CHANNELS = 32, SCAN_WARPS = 4, SCAN_THREADS = 32 * SCAN_WARPS;
constexpr int TILE = 32, GROUP = 8;               /* GROUP: positions for which the backward keeps h in registers */
constexpr int FORWARD_BLOCKS = 4, BACKWARD_BLOCKS = 3;    /* that a multiprocessor is meant to hold: backward, FAST
                                                     blocks have 70 KiB of shared memory each, of 227 on an H100 */

/* Over time the scan is parallel where batch and channels do not fill the device. A step is a map h -> a h + b, and
   `first`, then `second`, is a map of the same form: this operator is associative, so neighbouring steps may be put
   together before the state that they apply to is known. In three phases:
   1. every chunk of positions alone, from h = 0: its end state is the b of its map, and its a is exp(A sum of delta);
   2. every chunk puts together the maps of the chunks before it, and so has the state that it begins with;
   3. every chunk again, from there, with all outputs.
   Phase 1 is a kernel with SUMMARY set, the others one without; of a single chunk there is only phase 3. The a and b of
   this operator, called `then`, are those of one state of one channel. */
struct Affine { float a, b; };
static __device__ __forceinline__ Affine then(Affine first, Affine second) {
    return Affine{second.a * first.a, second.a * first.b + second.b};
}

/* Where a thread works. It has a place of each of three kinds: for walking through time, for moving tiles of channels
   between global and shared memory, and for moving B and C. */
struct ScanPlace {
    int b, block, chunk, begin, end;              /* sequence; block of channels; chunk of positions begin..end - 1 */
    int warp, lane, channel, d, n;                /* walking: a channel of the block, which is d; its states n..n + 3 */
    int t, c, n_channels;                         /* moving tiles: positions t and t + 16, channels c..c + 3 */
    int bc_t, bc_n, n_states;                     /* moving B and C: position bc_t, states bc_n..bc_n + 3 */
};                                                /* n_channels, n_states: how many there are from c, from bc_n on */

/* Neighbouring blocks have neighbouring channels of the same positions, as they read the same B and C. */
template <class T> static __device__ __forceinline__
ScanPlace scan_place(const Scan<T> &s, int first_chunk, int chunks) {
    int blocks = (s.d_inner + SCAN_CHANNELS - 1) / SCAN_CHANNELS, i = threadIdx.x;
    ScanPlace p;
    p.block = blockIdx.x % blocks, p.b = blockIdx.x / blocks / chunks;
    p.chunk = first_chunk + blockIdx.x / blocks % chunks;
    p.begin = p.chunk * s.chunk_len, p.end = min(s.len, p.begin + s.chunk_len);
    p.warp = i / 32, p.lane = i % 32, p.channel = p.warp * 8 + p.lane % 8, p.n = p.lane / 8 * 4;
    p.d = p.block * SCAN_CHANNELS + p.channel;
    p.t = i / 8, p.c = i % 8 * 4, p.n_channels = s.d_inner - p.block * SCAN_CHANNELS - p.c;
    p.bc_t = i / 4, p.bc_n = i % 4 * 4, p.n_states = s.d_state - s.n_first - p.bc_n;
    return p;
}

/* A thread's share of the input of a tile, in registers, on its way from global to shared memory. */
template <class T> struct TileInput { Few<T, 4> u[2], dt[2], z[2], d_out[2], B, C; };

/* Two rows of a tile, 16 positions apart; n and n_16: how many elements there are. */
template <bool FAST, class T> static __device__ __forceinline__
void load_rows(Few<T, 4> *to, const T *p, int ld, int n, int n_16) {
    to[0] = load_few<4, FAST>(p, n), to[1] = load_few<4, FAST>(p + 16 * (ptrdiff_t)ld, n_16);
}

/* The tile that begins at position `tile`; nothing from `end` on. WALK: what h needs, OUTPUT: what y needs, GRADIENT:
   d_out. */
template <bool FAST, bool WALK, bool OUTPUT, bool GRADIENT, class T>
static __device__ __forceinline__
void load_tile(TileInput<T> *in, const Scan<T> &s, const ScanPlace &p, int tile, int end) {
    unsigned row = p.b * s.len + tile + p.t, row_bc = p.b * s.len + tile + p.bc_t;
    int d = p.block * SCAN_CHANNELS + p.c, n_bc = tile + p.bc_t < end ? p.n_states : 0;
    int n = tile + p.t < end ? p.n_channels : 0, n_16 = tile + p.t + 16 < end ? p.n_channels : 0;
    load_rows<FAST>(in->dt, element(s.dt, row, s.ld_dt, d), s.ld_dt, n, n_16);
    if (WALK) load_rows<FAST>(in->u, element(s.u, row, s.ld_u, d), s.ld_u, n, n_16);
    if (OUTPUT) load_rows<FAST>(in->z, element(s.z, row, s.ld_z, d), s.ld_z, n, n_16);
    if (GRADIENT) load_rows<FAST>(in->d_out, element(s.d_out, row, s.ld_d_out, d), s.ld_d_out, n, n_16);
    if (WALK) in->B = load_few<4, FAST>(element(s.B, row_bc, s.ld_b, s.n_first + p.bc_n), n_bc);
    if (OUTPUT) in->C = load_few<4, FAST>(element(s.C, row_bc, s.ld_c, s.n_first + p.bc_n), n_bc);
}

static __device__ __forceinline__ void store_float4(float *to, const float *v) {
    *(float4 *)to = make_float4(v[0], v[1], v[2], v[3]);
}

/* A tile of 32 channels in shared memory, a row for each position, with 8 more that nobody uses. Shared memory is in 32
   banks, word i in bank i % 32, and lanes that need different words of one bank wait for each other. A warp often needs
   8 channels of 4 rows at once (the four lanes of a channel, a row each). Rows of 32 words would all begin in bank 0,
   and four lanes would meet in each of 8 banks; rows of 40 begin in the banks 0, 8, 16 and 24, and no two lanes meet.

   Steps: delta and delta u side by side. Nearly always a warp reads one row of it. */
constexpr int PADDED = SCAN_CHANNELS + 8;
typedef float Plane[TILE][PADDED];
typedef float2 Steps[TILE][PADDED];
static __device__ __forceinline__ void store_steps(float2 *to, const float *delta, const float *delta_u) {
    *(float4 *)to = make_float4(delta[0], delta_u[0], delta[1], delta_u[1]);
    *(float4 *)(to + 2) = make_float4(delta[2], delta_u[2], delta[3], delta_u[3]);
}

/* The map of a chunk, for each channel and state, has b = chunk_end and a = exp(A chunk_delta), from the sum of its
   deltas. */
template <class T> static __device__ __forceinline__
float *chunk_end_at(const Scan<T> &s, const ScanPlace &p, int chunk) {
    return s.chunk_end + ((((size_t)p.b * s.chunks + chunk) * s.d_inner + p.d) * SCAN_STATES + p.n);
}

/* Phase 2: on h act the maps of the chunks from `from` on, in steps of `step`, up to the one before p.chunk. A known
   state is the map h -> 0 h + state. h[i] is the state p.n + (i ^ order); order is 0 but in the backward pass, see
   fold_swapped. */
template <class T> static __device__ __forceinline__
void scan_enter_chunk(float *h, const float *A, const Scan<T> &s, const ScanPlace &p, int from, int step, int order) {
    for (int k = from; k != p.chunk; k += step) {
        float delta = s.chunk_delta[((size_t)p.b * s.chunks + k) * s.d_inner + p.d];
        const float *end = chunk_end_at(s, p, k);
        for (int i = 0; i < 4; i++) h[i] = then(Affine{0, h[i]}, Affine{decay(delta, A[i]), end[i ^ order]}).b;
    }
}

/* A in units of log 2, of the states n..n + 3 in the order i ^ order; 0 for states that do not exist, and h stays 0. */
template <class T> static __device__ __forceinline__
void load_A(float *A, const Scan<T> &s, const ScanPlace &p, int order) {
    for (int i = 0; i < 4; i++) {
        int n = s.n_first + p.n + (i ^ order);
        A[i] = p.d < s.d_inner && n < s.d_state ? -LOG2_E * expf(s.A_log[(size_t)p.d * s.d_state + n]) : 0;
    }
}

template <class T> static __device__ __forceinline__
float *checkpoint_at(const Scan<T> &s, const ScanPlace &p, int tile) {
    unsigned at = (p.b * ((s.len + TILE - 1) / TILE) + tile / TILE) * s.slices + s.n_first / SCAN_STATES;
    return element(s.checkpoints, at, s.d_inner * SCAN_STATES, p.d * SCAN_STATES + p.n);
}

struct ForwardShared {
    Steps steps;
    float y[TILE][4][PADDED];                     /* of each of a channel's lanes */
    float B[TILE][SCAN_STATES], C[TILE][SCAN_STATES];
};

/* Tile to shared memory: delta and delta u, a thread having neighbouring channels of two positions; B and C. */
template <bool SUMMARY, class T> static __device__ __forceinline__
void forward_begin(ForwardShared &shared, const TileInput<T> &in, const float *bias, const ScanPlace &p, int tile) {
    for (int k = 0; k < 2; k++) {
        int t = p.t + 16 * k;
        float delta[4], delta_u[4], slope;
        unpack(delta, in.dt[k]), unpack(delta_u, in.u[k]);
        for (int i = 0; i < 4; i++) {
            delta[i] = softplus(delta[i] + bias[i], &slope);
            if (tile + t >= p.end) delta[i] = 0;  /* abar = 1, Bbar = 0: behind the end h stays as it is */
            delta_u[i] *= delta[i];
        }
        store_steps(&shared.steps[t][p.c], delta, delta_u);
    }
    unpack(&shared.B[p.bc_t][p.bc_n], in.B);
    if (!SUMMARY) unpack(&shared.C[p.bc_t][p.bc_n], in.C);
}

/* Tile from shared memory: y, added over the four lanes of a channel, D u and the gate. */
template <bool FAST, class T> static __device__ __forceinline__
void forward_end(ForwardShared &shared, const Few<T, 4> *u, const Few<T, 4> *z, const float *D, const Scan<T> &s,
                 const ScanPlace &p, int tile) {
    unsigned row = p.b * s.len + tile + p.t;
    int d = p.block * SCAN_CHANNELS + p.c;
    T *out = element(s.out, row, s.ld_out, d);
    for (int k = 0; k < 2; k++) {
        int t = p.t + 16 * k, n = tile + t < p.end ? p.n_channels : 0;
        float y[4] = {}, input[4], gate[4];
        unpack(input, u[k]), unpack(gate, z[k]);
        for (int lane = 0; lane < 4; lane++)
            for (int i = 0; i < 4; i++) y[i] += shared.y[t][lane][p.c + i];
        if (!FAST)
            for (int i = 0; i < 4 && i < n; i++) {
                float *earlier = element(s.earlier, row + 16 * k, s.d_inner, d + i);
                if (s.n_first > 0) y[i] += *earlier;
                if (s.n_first + SCAN_STATES < s.d_state) *earlier = y[i];
            }
        for (int i = 0; i < 4; i++) y[i] = (y[i] + D[i] * input[i]) * gate[i] * sigmoid(gate[i]);
        store_few<4, FAST>(out + k * 16 * (ptrdiff_t)s.ld_out, y, n);
    }
}

/* h becomes the state that p.chunk begins with. Phase 1 begins with 0. It also keeps h_first where phase 3 finds it, as
   there the last chunk may write h_last over it: in the last chunk's place of chunk_end, which phase 1 leaves free. */
template <bool SUMMARY, class T> static __device__ __forceinline__
void forward_enter(float *h, const float *A, const Scan<T> &s, const ScanPlace &p) {
    bool first = SUMMARY ? p.chunk == 0 : s.chunks == 1;
    for (int i = 0; i < 4; i++) {
        size_t n = s.n_first + p.n + i;
        bool exists = p.d < s.d_inner && n < (size_t)s.d_state && s.h_first != nullptr;
        h[i] = first && exists ? s.h_first[p.b * s.ld_h + n * s.d_inner + p.d] : 0;
    }
    if (p.d >= s.d_inner || s.chunks == 1) return;
    float *kept = chunk_end_at(s, p, s.chunks - 1);
    if (SUMMARY && first) store_float4(kept, h);
    for (int i = 0; i < 4; i++) h[i] = SUMMARY ? 0 : kept[i];
    if (!SUMMARY) scan_enter_chunk(h, A, s, p, 0, 1, 0);
}

/* delta_forward, scan_forward and gate_forward of mamba.c. Their loops over b and d, and chunks of the loop over t, are
   the grid; the loop over n is four lanes times four registers, which hold h. What all four lanes need of a tile of
   positions is computed once, with neighbouring threads on neighbouring channels, and handed over in shared memory;
   what they have of y goes back the same way and is added there. The next tile is on its way to registers meanwhile.
   Two barriers for a tile are enough: forward_end reads only y, which nobody writes before the next first barrier.
   SUMMARY: phase 1, of all chunks but the last, behind which none comes; z, C and y are not touched. */
template <class T, bool FAST, bool SUMMARY>
static __global__ void __launch_bounds__(SCAN_THREADS, FORWARD_BLOCKS) scan_forward_kernel(Scan<T> s) {
    ForwardShared &shared = *dynamic_shared<ForwardShared>();
    const ScanPlace p = scan_place(s, 0, s.chunks - SUMMARY);
    float A[4], h[4], bias[4], D[4], delta_sum = 0;
    load_A(A, s, p, 0);
    for (int i = 0; i < 4; i++) {
        int d = p.block * SCAN_CHANNELS + p.c + i;
        bias[i] = i < p.n_channels ? s.dt_bias[d] : 0;
        D[i] = i < p.n_channels ? s.D[d] : 0;
    }
    forward_enter<SUMMARY>(h, A, s, p);
    TileInput<T> in;
    load_tile<FAST, true, !SUMMARY, false>(&in, s, p, p.begin, p.end);
    for (int tile = p.begin; tile < p.end; tile += TILE) {
        Few<T, 4> u[2] = {in.u[0], in.u[1]}, z[2] = {in.z[0], in.z[1]}; /* for forward_end; in goes on */
        forward_begin<SUMMARY>(shared, in, bias, p, tile);
        if (!SUMMARY && s.checkpoints != nullptr && p.d < s.d_inner) store_float4(checkpoint_at(s, p, tile), h);
        __syncthreads();
        load_tile<FAST, true, !SUMMARY, false>(&in, s, p, tile + TILE, p.end);
        for (int t = 0; t < TILE; t += 8) {
            float y[8] = {};                      /* stored together: a store would hold up the loads behind it */
            for (int k = 0; k < 8; k++) {
                float2 step = shared.steps[t + k][p.channel]; /* delta, delta u */
                for (int i = 0; i < 4; i++) {
                    h[i] = decay(step.x, A[i]) * h[i] + step.y * shared.B[t + k][p.n + i];
                    if (!SUMMARY) y[k] += h[i] * shared.C[t + k][p.n + i];
                }
                delta_sum += SUMMARY ? step.x : 0;
            }
            for (int k = 0; !SUMMARY && k < 8; k++) shared.y[t + k][p.lane / 8][p.channel] = y[k];
        }
        __syncthreads();
        if (!SUMMARY) forward_end<FAST>(shared, u, z, D, s, p, tile);
    }
    if (p.d >= s.d_inner) return;
    if (SUMMARY) {
        store_float4(chunk_end_at(s, p, p.chunk), h);
        if (p.n == 0) s.chunk_delta[((size_t)p.b * s.chunks + p.chunk) * s.d_inner + p.d] = delta_sum;
    } else if (s.h_last != nullptr && p.end == s.len)
        for (int i = 0; i < 4; i++) {
            size_t n = s.n_first + p.n + i;
            if (n < (size_t)s.d_state) s.h_last[p.b * s.ld_h + n * s.d_inner + p.d] = h[i];
        }
}

/* The backward pass: gate_backward, scan_backward and delta_backward of mamba.c. With v = dt + dt_bias,
       dy_t = dout_t silu(z_t),     dz_t = dout_t silu'(z_t) y_t,
       g_t = dy_t C_t + abar_{t+1} g_{t+1},     q_t = g_t abar_t h_{t-1},
       du_t = delta_t sum_n g_t B_t + D dy_t,     ddelta_t = sum_n (g_t B_t u_t + q_t A),
       ddt_t = ddelta_t sigmoid(v_t),     dA = sum_t q_t delta_t,     dD = sum_t dy_t u_t,     ddt_bias = sum_t ddt_t,
       dB_t = sum_d g_t delta_t u_t,     dC_t = sum_d dy_t h_t.
   g is walked from the last position to the first, and needs h on the way, which is walked from the first to the last.
   So h is computed again, twice: of a tile from its checkpoint, to keep it before every group of GROUP positions, in
   shared memory (backward_keep_h); then of a group from there, to keep it and abar at every position, in registers
   (backward_group). The groups of a tile, and the tiles, are walked from the last to the first. Sums over t are taken
   on the way, in registers (Carry). Sums over n are over four registers and, by shuffles, over the four lanes of a
   channel. Sums over d are, by shuffles, over the 8 channels of a warp, then over the warps when the tile is done
   (backward_end), then over blocks in scan_gradients_kernel. */

/* Sums over lanes, of several values at once. One round, over lanes that differ in `bit`: of COUNT values a lane keeps
   the sums of half, the upper half where its bit is set, and sends the others. After k rounds, 2^k lanes hold the COUNT
   sums, COUNT / 2^k each. warp_sum of each value would take COUNT shuffles in every round; this takes COUNT / 2 in the
   first and half as many in each as in the one before. */
template <int COUNT> static __device__ __forceinline__ void fold(float *v, int bit) {
    bool upper = threadIdx.x & bit;
    for (int i = 0; i < COUNT / 2; i++) {
        float keep = upper ? v[i + COUNT / 2] : v[i], send = upper ? v[i] : v[i + COUNT / 2];
        v[i] = keep + __shfl_xor_sync(~0u, send, bit);
    }
}

/* The same where lanes whose bit is set have the halves the other way round: then every lane keeps its lower one, and
   need not choose. For that the lanes of the FAST form hold their four states in different orders, i ^ order for i =
   0..3, where order = lane % 8 / 2: halves are swapped where bit 4 of the lane is set, neighbours where bit 2 is. B and
   C are in shared memory in all four orders. */
template <int COUNT> static __device__ __forceinline__ void fold_swapped(float *v, int bit) {
    for (int i = 0; i < COUNT / 2; i++) v[i] += __shfl_xor_sync(~0u, v[i + COUNT / 2], bit);
}

/* Sums of v[k] over the lanes of a channel, for four positions k at once: lane l gets that of position l / 8. */
static __device__ __forceinline__ float sum_states(float *v) {
    fold<4>(v, 16);
    fold<2>(v, 8);
    return v[0];
}

template <int ORDERS> struct BackwardShared {
    Steps steps;                                  /* delta = softplus(v), v = dt + dt_bias; delta u */
    Plane dy;                                     /* d_out silu(z) */
    Plane u, slope, dgate;                        /* u; slope of softplus at v; d_out silu'(z); then du, ddt, dz */
    float B[TILE][4][ORDERS][4], C[TILE][4][ORDERS][4];   /* [t][j][order][i]: of the state 4 j + (i ^ order) */
    float4 h[TILE / GROUP][SCAN_THREADS];         /* before each group of positions, every thread's own */
    float part[TILE][SCAN_WARPS][2][SCAN_STATES]; /* dB and dC, summed over the channels of a warp */
};

/* What a thread of the backward pass carries from position to position, in registers. next: abar g of t + 1. dA is of
   its four states; of dD and ddt_bias a channel's four lanes have a share each, as of every four positions each has
   one. */
struct Carry { float A[4], next[4], dA[4], D, dD, dbias; };

/* Tile to shared memory: what the walk needs of every channel and position. */
template <bool SUMMARY, int ORDERS, class T> static __device__ __forceinline__
void backward_begin(BackwardShared<ORDERS> &shared, const TileInput<T> &in, const float *bias, const ScanPlace &p,
                    int tile) {
    for (int k = 0; k < 2; k++) {
        int t = p.t + 16 * k;
        float delta[4], slope[4], delta_u[4], u[4] = {}, dy[4], dgate[4], gate[4];
        unpack(delta, in.dt[k]), unpack(gate, in.z[k]), unpack(dy, in.d_out[k]);
        if (!SUMMARY) unpack(u, in.u[k]);
        for (int i = 0; i < 4; i++) {
            float open = sigmoid(gate[i]);
            delta[i] = softplus(delta[i] + bias[i], &slope[i]);
            if (tile + t >= p.end) delta[i] = 0;
            delta_u[i] = delta[i] * u[i];
            dy[i] *= open;
            dgate[i] = dy[i] + dy[i] * gate[i] * (1 - open);
            dy[i] *= gate[i];
        }
        store_steps(&shared.steps[t][p.c], delta, delta_u);
        store_float4(&shared.dy[t][p.c], dy);
        if (SUMMARY) continue;
        store_float4(&shared.u[t][p.c], u);
        store_float4(&shared.slope[t][p.c], slope);
        store_float4(&shared.dgate[t][p.c], dgate);
    }
    float B[4], C[4];
    unpack(C, in.C);
    if (!SUMMARY) unpack(B, in.B);
    for (int k = 0; k < ORDERS; k++) {
        *(float4 *)shared.C[p.bc_t][p.bc_n / 4][k] = make_float4(C[0 ^ k], C[1 ^ k], C[2 ^ k], C[3 ^ k]);
        if (!SUMMARY) *(float4 *)shared.B[p.bc_t][p.bc_n / 4][k] = make_float4(B[0 ^ k], B[1 ^ k], B[2 ^ k], B[3 ^ k]);
    }
}

/* The forward scan of a tile again, from its checkpoint, to keep h before every group. */
template <int ORDERS> static __device__ __forceinline__
void backward_keep_h(BackwardShared<ORDERS> &shared, const float *A, float4 checkpoint, const ScanPlace &p, int order) {
    float4 v = order & 2 ? make_float4(checkpoint.z, checkpoint.w, checkpoint.x, checkpoint.y) : checkpoint;
    float h[4] = {order & 1 ? v.y : v.x, order & 1 ? v.x : v.y, order & 1 ? v.w : v.z, order & 1 ? v.z : v.w};
    store_float4((float *)&shared.h[0][threadIdx.x], h);
    for (int group = 1; group < TILE / GROUP; group++) {
        for (int t = (group - 1) * GROUP; t < group * GROUP; t++) {
            float2 step = shared.steps[t][p.channel];
            for (int i = 0; i < 4; i++)
                h[i] = decay(step.x, A[i]) * h[i] + step.y * shared.B[t][p.n / 4][order][i];
        }
        store_float4((float *)&shared.h[group][threadIdx.x], h);
    }
}

/* GROUP positions: forwards to have h and abar of each in registers, then backwards, four positions at a time: the sums
   over n are taken of all four together, and that leaves one position to each of a channel's four lanes. It finishes
   du, ddt and dz of it (for dz y is computed again), and writes them over u, slope and dgate, which only it reads. */
template <bool FAST, class T, int ORDERS> static __device__ __forceinline__
void backward_group(BackwardShared<ORDERS> &shared, Carry &r, const Scan<T> &s, const ScanPlace &p, int tile, int group,
                    int order) {
    float4 before = shared.h[group / GROUP][threadIdx.x];
    float h[GROUP + 1][4] = {{before.x, before.y, before.z, before.w}}, abar[GROUP][4];
    for (int k = 0; k < GROUP; k++) {
        float2 step = shared.steps[group + k][p.channel];
        for (int i = 0; i < 4; i++) {
            abar[k][i] = decay(step.x, r.A[i]);
            h[k + 1][i] = abar[k][i] * h[k][i] + step.y * shared.B[group + k][p.n / 4][order][i];
        }
    }
#pragma unroll
    for (int four = GROUP - 4; four >= 0; four -= 4) {
        float sum_gB[4] = {}, sum_qA[4] = {}, sum_y[4] = {}, dB[4][4], dC[4][4];
#pragma unroll
        for (int k = 3; k >= 0; k--) {
            int t = group + four + k;
            float2 step = shared.steps[t][p.channel];
            float dy = shared.dy[t][p.channel], *h_t = h[four + k + 1];
            for (int i = 0; i < 4; i++) {
                float B = shared.B[t][p.n / 4][order][i], C = shared.C[t][p.n / 4][order][i], g = dy * C + r.next[i];
                r.next[i] = abar[four + k][i] * g;
                float q = r.next[i] * h[four + k][i];
                sum_gB[k] += g * B, sum_qA[k] += q * r.A[i], sum_y[k] += h_t[i] * C;
                dB[k][i] = g * step.y, dC[k][i] = h_t[i] * dy;
                r.dA[i] += q * step.x;
            }
            /* over the channels of the warp, bit 4; then 2, and 1 */
            if (FAST) fold_swapped<4>(dB[k], 4), fold_swapped<4>(dC[k], 4);
            else fold<4>(dB[k], 4), fold<4>(dC[k], 4);
        }
        for (int k = 0; k < 4; k++) {
            if (FAST) fold_swapped<2>(dB[k], 2), fold_swapped<2>(dC[k], 2);
            else fold<2>(dB[k], 2), fold<2>(dC[k], 2);
        }
        for (int k = 0; k < 4; k++) {             /* lane c is left with state c / 2, of dB if c is even, else of dC */
            float both[2] = {dB[k][0], dC[k][0]};
            fold<2>(both, 1);
            shared.part[group + four + k][p.warp][p.lane % 2][p.n + p.lane % 8 / 2] = both[0];
        }
        int t = group + four + p.lane / 8, c = p.channel; /* r.A is in units of log 2, and so is sum_qA */
        float gB = sum_states(sum_gB), qA = LN_2 * sum_states(sum_qA), y = sum_states(sum_y);
        if (!FAST && tile + t < p.end && p.d < s.d_inner) {
            float *earlier = element(s.earlier, p.b * s.len + tile + t, 3 * s.d_inner, 3 * p.d);
            if (s.n_first > 0) gB += earlier[0], qA += earlier[1], y += earlier[2];
            if (s.n_first + SCAN_STATES < s.d_state) earlier[0] = gB, earlier[1] = qA, earlier[2] = y;
        }
        float dy = shared.dy[t][c], u = shared.u[t][c], ddt = (u * gB + qA) * shared.slope[t][c];
        shared.u[t][c] = shared.steps[t][c].x * gB + r.D * dy;
        shared.slope[t][c] = ddt;
        shared.dgate[t][c] *= y + r.D * u;
        r.dD += dy * u;
        r.dbias += ddt;
    }
}

/* Tile from shared memory: du, ddt, dz, and this block's share of dB and dC. */
template <bool FAST, int ORDERS, class T> static __device__ __forceinline__
void backward_end(BackwardShared<ORDERS> &shared, const Scan<T> &s, const ScanPlace &p, int tile) {
    unsigned row = p.b * s.len + tile + p.t;
    int d = p.block * SCAN_CHANNELS + p.c;
    T *du = element(s.du, row, s.ld_du, d), *ddt = element(s.ddt, row, s.ld_ddt, d);
    T *dz = element(s.dz, row, s.ld_dz, d);
    float *part = element(s.part_bc + (size_t)p.block * s.batch * s.len * 2 * SCAN_STATES, row, 2 * SCAN_STATES, p.c);
    for (int k = 0; k < 2; k++) {
        int t = p.t + 16 * k, n = tile + t < p.end ? p.n_channels : 0;
        store_few<4, FAST>(du + k * 16 * (ptrdiff_t)s.ld_du, &shared.u[t][p.c], n);
        store_few<4, FAST>(ddt + k * 16 * (ptrdiff_t)s.ld_ddt, &shared.slope[t][p.c], n);
        store_few<4, FAST>(dz + k * 16 * (ptrdiff_t)s.ld_dz, &shared.dgate[t][p.c], n);
        float sum[4] = {};                        /* p.c runs over 32: 16 of dB, 16 of dC */
        for (int w = 0; w < SCAN_WARPS; w++)
            for (int i = 0; i < 4; i++) sum[i] += (&shared.part[t][w][0][0])[p.c + i];
        if (tile + t < p.end) store_float4(part + k * 16 * 2 * SCAN_STATES, sum);
    }
}

/* gate_backward, scan_backward and delta_backward of mamba.c, as told above fold. The loops that became the grid, and
   what lanes and registers have, are the forward's; but chunks and tiles, and a tile's groups, come from the last to
   the first. Over time this is a scan of the same form as the forward's, of next = abar g, which a chunk is given by
   the one behind it and leaves to the one before it. SUMMARY: phase 1, of all chunks but the first; next is all it
   walks. */
template <class T, bool FAST, bool SUMMARY>
static __global__ void __launch_bounds__(SCAN_THREADS, BACKWARD_BLOCKS) scan_backward_kernel(Scan<T> s) {
    constexpr int ORDERS = FAST ? 4 : 1;
    BackwardShared<ORDERS> &shared = *dynamic_shared<BackwardShared<ORDERS>>();
    const ScanPlace p = scan_place(s, SUMMARY, s.chunks - SUMMARY);
    int order = FAST ? p.lane % 8 / 2 : 0;
    Carry r = {};
    float bias[4], delta_sum = 0;
    load_A(r.A, s, p, order);
    for (int i = 0; i < 4; i++) bias[i] = i < p.n_channels ? s.dt_bias[p.block * SCAN_CHANNELS + p.c + i] : 0;
    if (p.d < s.d_inner) {
        r.D = s.D[p.d];
        if (!SUMMARY) scan_enter_chunk(r.next, r.A, s, p, s.chunks - 1, -1, order);
    }
    int tile = (p.end - 1) / TILE * TILE;
    TileInput<T> in;
    float4 checkpoint;
    auto load = [&](int tile, int end) {
        load_tile<FAST, !SUMMARY, true, true>(&in, s, p, tile, end);
        bool exists = !SUMMARY && tile < end && p.d < s.d_inner;
        checkpoint = exists ? *(const float4 *)checkpoint_at(s, p, tile) : make_float4(0, 0, 0, 0);
    };
    load(tile, p.end);
    for (; tile >= p.begin; tile -= TILE) {
        int before = tile - TILE, before_end = tile > p.begin ? tile : before; /* before the first: an empty one */
        backward_begin<SUMMARY>(shared, in, bias, p, tile);
        __syncthreads();
        if (SUMMARY) {
            load(before, before_end);
#pragma unroll 4
            for (int t = TILE - 1; t >= 0; t--) {
                float delta = shared.steps[t][p.channel].x, dy = shared.dy[t][p.channel];
                for (int i = 0; i < 4; i++)
                    r.next[i] = (dy * shared.C[t][p.n / 4][order][i] + r.next[i]) * decay(delta, r.A[i]);
                delta_sum += delta;
            }
        } else {
            backward_keep_h(shared, r.A, checkpoint, p, order);
#pragma unroll 1
            for (int group = TILE - GROUP; group >= 0; group -= GROUP)
                backward_group<FAST>(shared, r, s, p, tile, group, order);
            load(before, before_end);             /* not earlier: the groups need the registers */
            __syncthreads();                      /* all have left what backward_end moves */
            backward_end<FAST>(shared, s, p, tile);
        }
        __syncthreads();
    }
    for (int lanes = 16; lanes >= 8; lanes /= 2) { /* the four lanes of a channel */
        r.dD += __shfl_xor_sync(~0u, r.dD, lanes);
        r.dbias += __shfl_xor_sync(~0u, r.dbias, lanes);
    }
    if (p.d >= s.d_inner) return;
    size_t at = (size_t)p.b * s.chunks + p.chunk;
    float *part = s.part_channels + at * s.d_inner * (SCAN_STATES + 2);
    for (int i = 0; i < 4; i++) {
        if (SUMMARY) chunk_end_at(s, p, p.chunk)[i ^ order] = r.next[i];
        else part[(size_t)p.d * SCAN_STATES + p.n + (i ^ order)] = r.dA[i];
    }
    if (p.n > 0) return;
    if (SUMMARY) s.chunk_delta[at * s.d_inner + p.d] = delta_sum;
    else {
        part[(size_t)s.d_inner * SCAN_STATES + p.d] = r.dD;
        part[(size_t)s.d_inner * (SCAN_STATES + 1) + p.d] = r.dbias;
    }
}

/* scan_add_parts of mamba.c: adds what the blocks of scan_backward_kernel have left, each element by one thread, from
   the first block to the last: dB and dC over blocks of channels; dA_log = A dA, dD and ddt_bias over sequences and
   chunks. Blocks from bc_blocks on do the parameters. */
template <class T> static __global__ void __launch_bounds__(256) scan_gradients_kernel(Scan<T> s, int bc_blocks) {
    size_t rows = (size_t)s.batch * s.len, i = (size_t)blockIdx.x * 256 + threadIdx.x;
    float sum = 0;
    if ((int)blockIdx.x < bc_blocks) {
        size_t row = i / (2 * SCAN_STATES);
        int n = s.n_first + i % SCAN_STATES, is_dC = i / SCAN_STATES % 2;
        int blocks = (s.d_inner + SCAN_CHANNELS - 1) / SCAN_CHANNELS;
        if (row >= rows || n >= s.d_state) return;
#pragma unroll 8
        for (int k = 0; k < blocks; k++) sum += s.part_bc[(size_t)k * rows * 2 * SCAN_STATES + i];
        store((is_dC ? s.dC : s.dB) + row * s.ld_dbc + n, sum);
    } else {
        size_t d_inner = s.d_inner, width = d_inner * (SCAN_STATES + 2), d, n;
        i -= (size_t)bc_blocks * 256, d = i / SCAN_STATES, n = s.n_first + i % SCAN_STATES;
        if (i >= width) return;
#pragma unroll 8
        for (int k = 0; k < s.batch * s.chunks; k++) sum += s.part_channels[k * width + i];
        if (d < d_inner) {
            if (n < (size_t)s.d_state) s.dA_log[d * s.d_state + n] -= sum * expf(s.A_log[d * s.d_state + n]);
        } else if (s.n_first + SCAN_STATES >= s.d_state) { /* dD and ddt_bias are whole with the last states */
            i -= d_inner * SCAN_STATES;
            if (i < d_inner) s.dD[i] += sum;
            else s.ddt_bias[i - d_inner] += sum;
        }
    }
}

/* How a scan is cut up: states into slices, len into chunks where batch and channels do not fill the device. */
typedef struct { int slices, tiles, blocks, chunks, chunks_backward; } ScanShape;

/* The number of chunks that takes least time, by estimate. A multiprocessor gets `n` blocks and walks `resident` of
   them at a time; k < resident take about (k + 0.6) / (resident + 0.6) of the time of that many. The summaries, of all
   chunks but one, cost `summary` of the walk. */
static int best_chunks(long blocks, int tiles, int multiprocessors, int resident, double summary) {
    int best = 1;
    double least = 1e300;
    for (int chunks = 1; chunks <= 32 && (chunks == 1 || chunks * 4 <= tiles); chunks++) {
        long n = (blocks * chunks + multiprocessors - 1) / multiprocessors, rest = n % resident;
        double rounds = (double)(n / resident) + (rest > 0 ? (rest + 0.6) / (resident + 0.6) : 0);
        double time = rounds * ceil_div(tiles, chunks) * (1 + summary * (chunks - 1) / chunks);
        if (time < least) least = time, best = chunks;
    }
    return ceil_div(tiles, ceil_div(tiles, best)); /* none is empty */
}

static ScanShape scan_shape(int batch, int len, int d_inner, int d_state, int multiprocessors) {
    multiprocessors = max(multiprocessors, 1);
    ScanShape shape = {ceil_div(d_state, SCAN_STATES), ceil_div(len, TILE), ceil_div(d_inner, SCAN_CHANNELS), 1, 1};
    long blocks = (long)batch * shape.blocks;
    shape.chunks = best_chunks(blocks, shape.tiles, multiprocessors, FORWARD_BLOCKS, 0.8); /* twice all but y */
    shape.chunks_backward = best_chunks(blocks, shape.tiles, multiprocessors, BACKWARD_BLOCKS, 0.25); /* only g */
    return shape;
}

/* Floats for the checkpoints of one layer. */
static size_t scan_checkpoints(ScanShape shape, int batch, int len, int d_inner) {
    return (size_t)batch * ceil_div(len, TILE) * shape.slices * d_inner * SCAN_STATES;
}

/* Cuts the scratch up; returns its size in floats. */
template <class T> static size_t scan_prepare(Scan<T> *s, ScanShape shape, int backward) {
    size_t rows = (size_t)s->batch * s->len, used = 0, chunks;
    auto take = [&](size_t n) { float *p = s->scratch + used; used += (n + 3) / 4 * 4; return p; };
    s->slices = shape.slices, s->chunks = backward ? shape.chunks_backward : shape.chunks;
    s->chunk_len = ceil_div(shape.tiles, s->chunks) * TILE;
    chunks = (size_t)s->batch * s->chunks;
    if (s->chunks > 1) s->chunk_delta = take(chunks * s->d_inner);
    if (s->chunks > 1) s->chunk_end = take(chunks * s->d_inner * SCAN_STATES);
    if (s->slices > 1) s->earlier = take((backward ? 3 : 1) * rows * s->d_inner);
    if (backward) s->part_bc = take(shape.blocks * rows * 2 * SCAN_STATES);
    if (backward) s->part_channels = take(chunks * s->d_inner * (SCAN_STATES + 2));
    return used;
}

/* Floats of scratch; nothing in it outlives a call. */
static size_t scan_scratch(ScanShape shape, int batch, int len, int d_inner, int backward) {
    Scan<float> s = {};
    s.batch = batch, s.len = len, s.d_inner = d_inner;
    return scan_prepare(&s, shape, backward);
}

template <class T>
static int scan_launch(void (*kernel)(Scan<T>), size_t shared, const Scan<T> &s, int chunks, cudaStream_t stream) {
    long blocks = (long)ceil_div(s.d_inner, SCAN_CHANNELS) * s.batch * chunks;
    if (blocks > INT_MAX || (long)s.batch * s.len > INT_MAX)
        return fail("scan: %d x %d positions are too many", s.batch, s.len);
    if (blocks == 0) return 0;
    CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    CUDA(launch(kernel, dim3((unsigned)blocks), dim3(SCAN_THREADS), shared, stream, s));
    return 0;
}

template <class T, bool FAST> static int scan_forward_slices(Scan<T> s, cudaStream_t stream) {
    for (s.n_first = 0; s.n_first < s.d_state; s.n_first += SCAN_STATES) {
        TRY(scan_launch(scan_forward_kernel<T, FAST, true>, sizeof(ForwardShared), s, s.chunks - 1, stream));
        TRY(scan_launch(scan_forward_kernel<T, FAST, false>, sizeof(ForwardShared), s, s.chunks, stream));
    }
    return 0;
}

template <class T, bool FAST> static int scan_backward_slices(Scan<T> s, cudaStream_t stream) {
    int bc_blocks = ceil_div((long)s.batch * s.len * 2 * SCAN_STATES, 256);
    int channel_blocks = ceil_div((long)s.d_inner * (SCAN_STATES + 2), 256);
    size_t shared = sizeof(BackwardShared<FAST ? 4 : 1>);
    for (s.n_first = 0; s.n_first < s.d_state; s.n_first += SCAN_STATES) {
        TRY(scan_launch(scan_backward_kernel<T, FAST, true>, shared, s, s.chunks - 1, stream));
        TRY(scan_launch(scan_backward_kernel<T, FAST, false>, shared, s, s.chunks, stream));
        CUDA(launch(scan_gradients_kernel<T>, dim3(bc_blocks + channel_blocks), dim3(256), 0, stream, s, bc_blocks));
    }
    return 0;
}

/* FAST kernels are for fours that are aligned, and one launch. */
template <class T> static bool scan_is_fast(const Scan<T> &s) {
    return s.slices == 1 && s.d_inner % 4 == 0 && s.d_state % 4 == 0 && aligned(s.u, s.ld_u, 4) &&
           aligned(s.dt, s.ld_dt, 4) && aligned(s.z, s.ld_z, 4) && aligned(s.B, s.ld_b, 4) && aligned(s.C, s.ld_c, 4);
}

static int scan_check(int d_state) {
    if (d_state >= 1 && d_state <= MAX_STATE) return 0;
    return fail("scan: d_state is %d; the GPU supports 1 to %d", d_state, (int)MAX_STATE);
}

template <class T> static int scan_forward(Scan<T> s, ScanShape shape, cudaStream_t stream) {
    TRY(scan_check(s.d_state));
    scan_prepare(&s, shape, 0);
    if (scan_is_fast(s) && aligned(s.out, s.ld_out, 4)) return scan_forward_slices<T, true>(s, stream);
    return scan_forward_slices<T, false>(s, stream);
}

template <class T> static int scan_backward(Scan<T> s, ScanShape shape, cudaStream_t stream) {
    int device, limit;                            /* of shared memory; before sm_80 the FAST kernel does not fit */
    CUDA(cudaGetDevice(&device));
    CUDA(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    TRY(scan_check(s.d_state));
    scan_prepare(&s, shape, 1);
    bool fast = sizeof(BackwardShared<4>) <= (size_t)limit && scan_is_fast(s) && aligned(s.d_out, s.ld_d_out, 4) &&
                aligned(s.du, s.ld_du, 4) && aligned(s.ddt, s.ld_ddt, 4) && aligned(s.dz, s.ld_dz, 4);
    if (fast) return scan_backward_slices<T, true>(s, stream);
    return scan_backward_slices<T, false>(s, stream);
}

/* 4. BLOCK AND MODEL =========================================================================================== */

/* The place in `compute` of a parameter; NULL for one that the model lacks. */
template <class T> static const T *in_T(const Gpu<T> *gpu, const float *parameter) {
    return parameter != NULL ? gpu->compute + (parameter - gpu->weights) : NULL;
}
template <class T> static const T *in_T(const Gpu<T> *gpu, Matrix parameter) { return in_T(gpu, parameter.full); }

/* dbc and its gradient have columns of dt, B and C, as x_proj makes them. Where B or C is constant, its columns come
   behind those; they are for the gradient at each position, and the scan reads the parameter instead. A constant delta
   has no columns. */
static int dbc_columns(const Config *c) { return dt_width(c) + 2 * c->d_state; }
static int column_of_B(const Config *c) { return dt_width(c) + (c->constant_B && !c->constant_C ? c->d_state : 0); }
static int column_of_C(const Config *c) { return dt_width(c) + (c->constant_B && !c->constant_C ? 0 : c->d_state); }

/* The convolution and the scan of a block as calls of section 3. from, to: the states of sequences, as in mamba.c. */
template <class T> static Conv<T> conv_of(Gpu<T> *gpu, const BlockParams *p, GpuBlockActs<T> *k, const float *from,
                                          float *to, size_t stream_stride, int batch, int len) {
    const Config *c = &gpu->model.config;
    size_t E = c->d_inner;
    Conv<T> s = {};
    s.batch = batch, s.len = len, s.d_inner = c->d_inner, s.d_conv = c->d_conv;
    s.multiprocessors = gpu->multiprocessors;
    s.x = k->xz, s.ld_x = 2 * E, s.u = k->u, s.ld_u = E, s.weight = p->conv, s.bias = p->conv_bias;
    s.first = from, s.last = to, s.ld_state = stream_stride, s.scratch = gpu->scan_scratch;
    return s;
}

template <class T> static Scan<T> scan_of(Gpu<T> *gpu, const BlockParams *p, GpuBlockActs<T> *k, const float *from,
                                          float *to, size_t stream_stride, int batch, int len) {
    const Config *c = &gpu->model.config;
    size_t E = c->d_inner, conv = (c->d_conv - 1) * E; /* where h begins in a state */
    Scan<T> s = {};
    s.batch = batch, s.len = len, s.d_inner = c->d_inner, s.d_state = c->d_state;
    s.u = k->u, s.dt = k->dt, s.ld_u = s.ld_dt = E, s.z = k->xz + E, s.ld_z = 2 * E;
    s.B = k->dbc + column_of_B(c), s.C = k->dbc + column_of_C(c), s.ld_b = s.ld_c = dbc_columns(c);
    if (c->constant_B) s.B = in_T(gpu, p->B), s.ld_b = 0;
    if (c->constant_C) s.C = in_T(gpu, p->C), s.ld_c = 0;
    s.A_log = p->A_log, s.D = p->D, s.dt_bias = p->dt_bias;
    s.h_first = from != NULL ? from + conv : NULL, s.h_last = to != NULL ? to + conv : NULL, s.ld_h = stream_stride;
    s.out = k->gated, s.ld_out = E, s.checkpoints = k->kept, s.scratch = gpu->scan_scratch;
    return s;
}

/* k->dbc = x_proj u */
template <class T> static int dbc_forward(Gpu<T> *gpu, const BlockParams *p, GpuBlockActs<T> *k, int rows) {
    const Config *c = &gpu->model.config;
    int E = c->d_inner, made = dbc_width(c), W = dbc_columns(c);
    if (made == 0) return 0;
    return gemm(gpu, CUBLAS_OP_T, CUBLAS_OP_N, made, rows, E, in_T(gpu, p->x_proj), (size_t)E, (const T *)k->u,
                (size_t)E, k->dbc, (size_t)W, 0);
}

/* From gpu->ddbc: gpu->du += ddbc x_proj,     dx_proj += ddbc^T u,     for a constant the sum over all positions. */
template <class T> static int dbc_backward(Gpu<T> *gpu, const BlockParams *g, const BlockParams *p,
                                           GpuBlockActs<T> *k, int rows) {
    const Config *c = &gpu->model.config;
    int E = c->d_inner, made = dbc_width(c), N = c->d_state;
    size_t W = dbc_columns(c);
    if (c->constant_B) TRY(bias_backward(gpu, g->B, gpu->ddbc + column_of_B(c), W, rows, N));
    if (c->constant_C) TRY(bias_backward(gpu, g->C, gpu->ddbc + column_of_C(c), W, rows, N));
    if (made == 0) return 0;
    TRY(gemm(gpu, CUBLAS_OP_N, CUBLAS_OP_N, E, rows, made, in_T(gpu, p->x_proj), (size_t)E, (const T *)gpu->ddbc, W,
             gpu->du, (size_t)E, 1));
    return gemm(gpu, CUBLAS_OP_N, CUBLAS_OP_T, E, made, rows, (const T *)k->u, (size_t)E, (const T *)gpu->ddbc, W,
                g->x_proj.full, (size_t)E, 1);
}

static ScanShape scan_shape_of(const Config *c, int batch, int len, int multiprocessors) {
    return scan_shape(batch, len, c->d_inner, c->d_state, multiprocessors);
}

/* k->dt from the columns of k->dbc */
template <class T> static int dt_forward(Gpu<T> *gpu, const BlockParams *p, GpuBlockActs<T> *k, int rows) {
    const Config *c = &gpu->model.config;
    int E = c->d_inner;
    if (!c->constant_delta)
        return linear_forward(gpu, k->dt, k->dbc, (size_t)dbc_columns(c), in_T(gpu, p->dt_proj), rows, c->dt_rank, E);
    CUDA(cudaMemsetAsync(k->dt, 0, (size_t)rows * E * sizeof *k->dt, gpu->stream)); /* dt_bias makes delta alone */
    return 0;
}

/* gpu->branch = mixer(k->normed), to be added to the residual stream by the next norm. state NULL: from zeros. */
template <class T> static int block_forward(Gpu<T> *gpu, const BlockParams *p, GpuBlockActs<T> *k, float *state,
                                            size_t stream_stride, int batch, int len) {
    const Config *c = &gpu->model.config;
    int rows = batch * len, E = c->d_inner;
    TRY(linear_forward(gpu, k->xz, k->normed, (size_t)c->d_model, in_T(gpu, p->in_proj), rows, c->d_model, 2 * E));
    if (p->in_bias != NULL) TRY(add_bias(gpu, k->xz, p->in_bias, rows, 2 * E));
    TRY(conv_forward(conv_of(gpu, p, k, state, state, stream_stride, batch, len), gpu->stream));
    TRY(dbc_forward(gpu, p, k, rows));
    TRY(dt_forward(gpu, p, k, rows));
    TRY(scan_forward(scan_of(gpu, p, k, state, state, stream_stride, batch, len),
                     scan_shape_of(c, batch, len, gpu->multiprocessors), gpu->stream));
    return linear_forward(gpu, gpu->branch, k->gated, (size_t)E, in_T(gpu, p->out_proj), rows, E, c->d_model);
}

/* gpu->dx and dbranch come in as the gradient of the block's output, in float and in T, and leave as its input's. */
template <class T> static int block_backward(Gpu<T> *gpu, const BlockParams *g, const BlockParams *p,
                                             GpuBlockActs<T> *k, int batch, int len) {
    const Config *c = &gpu->model.config;
    int rows = batch * len, D = c->d_model, W = dbc_columns(c);
    size_t E = c->d_inner;
    Conv<T> conv = conv_of(gpu, p, k, (const float *)NULL, (float *)NULL, 0, batch, len);
    Scan<T> scan = scan_of(gpu, p, k, (const float *)NULL, (float *)NULL, 0, batch, len);
    scan.d_out = gpu->dgated, scan.du = gpu->du, scan.ddt = gpu->ddt, scan.ld_d_out = scan.ld_du = scan.ld_ddt = E;
    scan.dz = gpu->dxz + E, scan.ld_dz = 2 * E;
    scan.dB = gpu->ddbc + column_of_B(c), scan.dC = gpu->ddbc + column_of_C(c), scan.ld_dbc = W;
    scan.dA_log = g->A_log, scan.dD = g->D, scan.ddt_bias = g->dt_bias;
    conv.du = gpu->du, conv.ld_du = E, conv.dx = gpu->dxz, conv.ld_dx = 2 * E, conv.dweight = g->conv,
    conv.dbias = g->conv_bias;
    if (gpu->lean) {
        TRY(residual_rmsnorm(gpu, k->normed, k->r, (float *)NULL, k->input, (const T *)NULL, (const float *)NULL,
                             p->norm, rows));
        TRY(conv_forward(conv, gpu->stream));
    }
    TRY(dt_forward(gpu, p, k, rows));
    TRY(linear_backward(gpu, gpu->dgated, g->out_proj.full, gpu->dbranch, k->gated, E, in_T(gpu, p->out_proj), rows,
                        (int)E, D, 0));
    if (g->out_bias != NULL) TRY(bias_backward(gpu, g->out_bias, gpu->dx, (size_t)D, rows, D));
    TRY(scan_backward(scan, scan_shape_of(c, batch, len, gpu->multiprocessors), gpu->stream));
    if (!c->constant_delta)
        TRY(linear_backward(gpu, gpu->ddbc, g->dt_proj.full, gpu->ddt, k->dbc, (size_t)W, in_T(gpu, p->dt_proj), rows,
                            c->dt_rank, (int)E, 0));
    TRY(dbc_backward(gpu, g, p, k, rows));
    TRY(conv_backward(conv, gpu->stream));
    TRY(linear_backward(gpu, gpu->dnormed, g->in_proj.full, gpu->dxz, k->normed, (size_t)D, in_T(gpu, p->in_proj), rows,
                        D, 2 * (int)E, 0));
    if (g->in_bias != NULL) TRY(bias_backward(gpu, g->in_bias, gpu->dxz, 2 * E, rows, 2 * (int)E));
    return rmsnorm_backward(gpu, g->norm, gpu->dnormed, k->input, k->r, p->norm, rows, 1);
}
/* gpu->normed = what the head reads, from the embeddings in the first block's input, (batch, len, d_model). state: see
   mamba.c; NULL: zeros, not wanted. */
template <class T> static int blocks_forward(Gpu<T> *gpu, float *state, int batch, int len) {
    const Config *c = &gpu->model.config;
    int rows = batch * len, last = c->n_layer - 1;
    size_t stride = state_stride(c);
    GpuBlockActs<T> *k = gpu->block;
    TRY(residual_rmsnorm(gpu, k[0].normed, k[0].r, (float *)NULL, k[0].input, (const T *)NULL, NULL,
                         gpu->w.block[0].norm, rows));
    for (int l = 0; l <= last; l++) {
        TRY(block_forward(gpu, &gpu->w.block[l], &k[l], state != NULL ? state + (size_t)l * batch * stride : NULL,
                          stride, batch, len));
        TRY(residual_rmsnorm(gpu, l < last ? k[l + 1].normed : gpu->normed, l < last ? k[l + 1].r : gpu->r,
                             l < last ? k[l + 1].input : gpu->x, k[l].input, gpu->branch, gpu->w.block[l].out_bias,
                             l < last ? gpu->w.block[l + 1].norm : gpu->w.norm_f, rows));
    }
    return 0;
}

/* The same from gpu->tokens. */
template <class T> static int model_forward(Gpu<T> *gpu, float *state, int batch, int len) {
    CUDA(launch(embedding_kernel, dim3(batch * len), dim3(128), 0, gpu->stream, gpu->block[0].input,
                (const float *)gpu->w.embedding.full, (const int *)gpu->tokens, gpu->model.config.d_model));
    return blocks_forward(gpu, state, batch, len);
}

/* From gpu->dnormed to the gradients of all parameters before it. */
template <class T> static int model_backward(Gpu<T> *gpu, int batch, int len) {
    const Config *c = &gpu->model.config;
    int rows = batch * len;
    TRY(rmsnorm_backward(gpu, gpu->g.norm_f, gpu->dnormed, gpu->x, gpu->r, gpu->w.norm_f, rows, 0));
    for (int l = c->n_layer - 1; l >= 0; l--)
        TRY(block_backward(gpu, &gpu->g.block[l], &gpu->w.block[l], &gpu->block[l], batch, len));
    return embedding_backward(gpu->g.embedding.full, gpu->dx, gpu->tokens, gpu->order, gpu->segment, rows,
                              c->vocab_size, c->d_model, gpu->stream);
}

/* 5. LOSS AND OPTIMISER ======================================================================================== */

/* cross_entropy of mamba.c: losses[row] = log(sum_j exp(logit_j)) - logit_target. The loop over rows is the grid, the
   threads of a block share the loop over the vocabulary, 16 bytes at a time. Each carries the largest logit it has seen
   and the sum of exp(logit - largest), scaled down when a larger one comes, so that one pass over the row is enough.
   Where gradient, the logits become scale (softmax - one_hot). correct[row]: is the target's logit the largest? */
template <class T> static __global__ void __launch_bounds__(1024)
    cross_entropy_kernel(T *logits, float *losses, int *correct, const int *targets, int vocab_size,
                         const UpdateArgs *args, int gradient) {
    constexpr int N = 16 / sizeof(T);
    T *row = logits + (size_t)blockIdx.x * vocab_size;
    bool aligned = vocab_size % N == 0;
    int target = targets[blockIdx.x];
    float top = -INFINITY, sum = 0, row_top, row_sum, of_target = target >= 0 ? to_float(row[target]) : 0, share, v[N];
    for (int j = threadIdx.x * N; j < vocab_size; j += blockDim.x * N) {
        float now = top;
        load_pack<N>(v, row + j, vocab_size - j, aligned, -INFINITY);
        for (int i = 0; i < N; i++) now = fmaxf(now, v[i]);
        sum *= __expf(top - now);
        for (int i = 0; i < N; i++) sum += __expf(v[i] - now);
        top = now;
    }
    row_top = block_max(top);
    row_sum = block_sum(top == -INFINITY ? 0 : sum * __expf(top - row_top));
    if (threadIdx.x == 0) {
        losses[blockIdx.x] = target >= 0 ? row_top - of_target + logf(row_sum) : 0;
        correct[blockIdx.x] = target >= 0 && of_target == row_top;
    }
    if (!gradient) return;
    share = target >= 0 ? args->scale / row_sum : 0;
    for (int j = threadIdx.x * N; j < vocab_size; j += blockDim.x * N) {
        load_pack<N>(v, row + j, vocab_size - j, aligned);
        for (int i = 0; i < N; i++) v[i] = share * __expf(v[i] - row_top) - (j + i == target ? args->scale : 0);
        store_pack<N>(row + j, v, vocab_size - j, aligned);
    }
}

/* About four times 16 bytes of logits for each thread. */
static int cross_entropy_threads(int vocab_size, size_t size) {
    return max(32, min_int(1024, ceil_div((long)vocab_size * size, 16 * 4 * 32) * 32));
}

/* *loss += scale times the sum of losses: the loop over rows of head_loss, by one block, since it is one number. */
static __global__ void add_losses_kernel(float *loss, const float *losses, int rows, const UpdateArgs *args) {
    float sum = 0;
    for (int i = threadIdx.x; i < rows; i += blockDim.x) sum += losses[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *loss += args->scale * sum;
}

/* *loss += args->scale times the losses of all rows; the head and the loss take gpu->head_rows rows at a time. Where
   gradient, also gpu->dnormed and the head's gradient. */
template <class T> static int head_loss(Gpu<T> *gpu, float *loss, int rows, int gradient) {
    int V = gpu->model.config.vocab_size, D = gpu->model.config.d_model;
    for (int first = 0; first < rows; first += gpu->head_rows) {
        int part = min_int(gpu->head_rows, rows - first);
        const T *normed = gpu->normed + (size_t)first * D;
        TRY(linear_forward(gpu, gpu->logits, normed, (size_t)D, in_T(gpu, gpu->w.head), part, D, V));
        CUDA(launch(cross_entropy_kernel<T>, dim3(part), dim3(cross_entropy_threads(V, sizeof(T))), 0, gpu->stream,
                    gpu->logits, gpu->losses + first, gpu->correct + first, (const int *)gpu->targets + first, V,
                    (const UpdateArgs *)gpu->args, gradient));
        if (gradient)
            TRY(linear_backward(gpu, gpu->dnormed + (size_t)first * D, gpu->g.head.full, gpu->logits, normed, (size_t)D,
                                in_T(gpu, gpu->w.head), part, D, V, 0));
    }
    CUDA(launch(add_losses_kernel, dim3(1), dim3(1024), 0, gpu->stream, loss, (const float *)gpu->losses, rows,
                (const UpdateArgs *)gpu->args));
    return 0;
}

constexpr int NORM_PARTS = 256, ADAMW_THREADS = NORM_PARTS; /* a thread for each part of the norm */

/* norm_of of mamba.c: parts[i] = the sum of squares of the i-th block's share of a flat array, whose length is a
   multiple of 16. All threads of the grid share the loop, four elements at a time; adamw_kernel takes the root. */
static __global__ void __launch_bounds__(1024) squares_kernel(float *parts, const float *v, size_t n) {
    float sum = 0;
#pragma unroll 4
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n / 4; i += (size_t)gridDim.x * blockDim.x) {
        float4 four = ((const float4 *)v)[i];
        sum += four.x * four.x + four.y * four.y + four.z * four.z + four.w * four.w;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

/* adamw_step of mamba.c, with the copy in T and the cleared gradient. The loops over tensors and their elements are
   one, over the flat arrays, which all threads of the grid share, four elements at a time. Every block adds up the
   parts of the norm itself, by the same tree, so that all have the same bits. */
template <class T> static __global__ void __launch_bounds__(ADAMW_THREADS)
    adamw_kernel(float *weights, T *compute, float *grads, float *moment1, float *moment2, const unsigned char *decay,
                 size_t n, float *norm, const float *parts, int n_parts, const UpdateArgs *args) {
    UpdateArgs a = *args;
    float total = sqrtf(block_sum((int)threadIdx.x < n_parts ? parts[threadIdx.x] : 0)),
          clip = a.clip > 0 && total > a.clip ? a.clip / total : 1;
    if (blockIdx.x == 0 && threadIdx.x == 0) *norm = total;
    for (size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 4; i < n;
         i += (size_t)gridDim.x * blockDim.x * 4) {
        float w[4], g[4], m[4], v[4], weight_decay = decay[i / 16] ? a.weight_decay : 0, zeros[4] = {};
        load_pack<4>(w, weights + i, 4, true);
        load_pack<4>(g, grads + i, 4, true);
        load_pack<4>(m, moment1 + i, 4, true);
        load_pack<4>(v, moment2 + i, 4, true);
        for (int k = 0; k < 4; k++) {
            g[k] *= clip;
            m[k] = a.beta1 * m[k] + a.rest1 * g[k];
            v[k] = a.beta2 * v[k] + a.rest2 * g[k] * g[k];
            w[k] -= a.lr * (m[k] * a.unbias1 / (sqrtf(v[k] * a.unbias2) + a.eps) + weight_decay * w[k]);
        }
        store_pack<4>(weights + i, w, 4, true);
        store_pack<4>(compute + i, w, 4, true);
        store_pack<4>(moment1 + i, m, 4, true);
        store_pack<4>(moment2 + i, v, 4, true);
        store_pack<4>(grads + i, zeros, 4, true);
    }
}

/* The weights in T, when a model is opened; later adamw_kernel sees to it. All threads of the grid share the loop. */
template <class T> static __global__ void cast_kernel(T *out, const float *in, size_t n) {
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        store(&out[i], in[i]);
}

/* 6. GENERATION ================================================================================================

   One token of a few streams is a product of every weight with a few vectors: the time is that of reading the weights.
   So that memory is busy all the time, one launch takes the token through all layers. Each of its blocks, one on a
   multiprocessor, owns the same rows of every layer's matrices, and reads those of the next layer into registers while
   it waits for what the other blocks compute. A layer has three phases, and each needs what all blocks gave in the ones
   before, see NOT_YET:

   in      x: norm, rows of in_proj, convolution, SiLU, and these channels' share of x_proj   to z, u, parts
   scan    parts, u, z: dt, B and C; rows of dt_proj, softplus, a step of the scan, gate      to gated
   out     gated: rows of out_proj, residual connection                                       to the next layer's x

   Many streams in bf16 go a similar way, see ManyStep. For all else (many in float, beyond MAX_STREAMS, or before
   compute capability 9.0; shapes that do not fit; a constant delta, B or C) a step is blocks_forward() of one position
   and the head.

   Here a stream is a sequence that is being generated, a step one token of each stream; tile, chunk and phase are other
   things than above, and a share is what a lane, a warp or a block adds to a sum. */

constexpr int FEW_STREAMS = 4, STEP_WARPS = 12, STEP_THREADS = 32 * STEP_WARPS, FEW_ROWS = 2, SHARED_BYTES = 48 << 10;
constexpr int SCAN_LANES = 16, FEW_CHANNELS = STEP_THREADS / SCAN_LANES, RANK_FETCH = 4, SHARE_LANES = 4;

/* Rows of a matrix times a vector in shared memory, by LANES threads: w has `rows` rows of n, one every ld; n and ld
   are multiples of a pack, which is 16 bytes. load() puts a lane's first PACKS of each row into registers, when the
   vector need not be known yet; add() adds the lane's share of the products to y. */
template <class T, int ROWS, int PACKS, int LANES> struct LaneRows {
    static constexpr int N = 16 / sizeof(T);
    Few<T, N> pack[ROWS][PACKS];
    __device__ __forceinline__ void load(const T *w, int rows, int n, int ld, int lane) {
        for (int r = 0; r < ROWS; r++)
            for (int k = 0; k < PACKS; k++) {
                int i = (k * LANES + lane) * N;
                pack[r][k] = load_few<N, true>(w + (size_t)r * ld + i, r < rows ? n - i : 0);
            }
    }
    static __device__ __forceinline__ float product(Few<T, N> few, const float *x) {
        float at[N], sum = 0;
        unpack(at, few);
        for (int c = 0; c < N; c++) sum += at[c] * x[c];
        return sum;
    }
    __device__ __forceinline__ void add(float *y, const float *x, const T *w, int rows, int n, int ld, int lane) const {
        float v[PACKS][N] = {};
        for (int k = 0; k < PACKS; k++) {
            int i = (k * LANES + lane) * N;
            for (int c = 0; c < N; c += 4)
                if (i < n) load_pack<4>(v[k] + c, x + i + c, 4, true);
        }
        for (int k = 0; k < PACKS; k++)
            for (int r = 0; r < ROWS; r++) y[r] += product(pack[r][k], v[k]);
#pragma unroll 1
        for (int i = (PACKS * LANES + lane) * N; i < n; i += LANES * N) { /* what did not fit into registers */
            for (int c = 0; c < N; c += 4) load_pack<4>(v[0] + c, x + i + c, 4, true);
            for (int r = 0; r < ROWS; r++)
                if (r < rows) y[r] += product(load_few<N, true>(w + (size_t)r * ld + i, N), v[0]);
        }
    }
};

/* softplus for what need not be fast: see lanes_softplus of mamba.c. */
static __device__ __forceinline__ float softplus_once(float v) { return fmaxf(v, 0.0f) + log1pf(__expf(-fabsf(v))); }

static __device__ __forceinline__ float silu(float v) { return __fdividef(v, 1 + __expf(-v)); }

/* The convolution of a channel at one position. load: its taps and the inputs before, into registers; prepare: what
   does not need x, which moves the state on; step: silu(bias + the taps of the inputs before and of x). */
template <int MAX> struct ConvStep {
    float tap[MAX], before[MAX - 1], bias;
    __device__ __forceinline__ void load(const float *taps, const float *bias_, const float *state, int d_inner,
                                         int d_conv) {
        for (int k = 0; k < MAX; k++) tap[k] = k < d_conv ? taps[k] : 0;
        for (int k = 0; k < MAX - 1; k++) before[k] = k < d_conv - 1 ? state[(size_t)k * d_inner] : 0;
        bias = bias_ != NULL ? *bias_ : 0;
    }
    __device__ __forceinline__ void prepare(float *state, int d_inner, int d_conv) {
        for (int k = 0; k < MAX - 1; k++) {
            bias += k < d_conv - 1 ? tap[k] * before[k] : 0;
            if (k > 0 && k < d_conv - 1) state[(size_t)(k - 1) * d_inner] = before[k];
        }
        /* tap[0] becomes the last tap, x's: by an index known only at run time, taps would lie in memory */
        for (int k = 1; k < MAX; k++) tap[0] = k == d_conv - 1 ? tap[k] : tap[0];
    }
    __device__ __forceinline__ float step(float *state, float x, int d_inner, int d_conv) const {
        if (d_conv > 1) state[(size_t)(d_conv - 2) * d_inner] = x;
        return silu(bias + tap[0] * x);
    }
};

/* Blocks that run at the same time hand each other numbers without a barrier between them all. Each number has a place
   of its own, in every layer, which holds NOT_YET until it is there: a NaN of bits that arithmetic does not make. (Of
   bf16 two share a place, see give().) So the place is its own flag, and 16 bytes are there when each of their four
   places says so. There are two sets of places, used in turn, and who fills a place clears it in the other set: its
   readers were in the step before, and that is over. */
constexpr unsigned NOT_YET = 0xffffffffu;

static __device__ __forceinline__ bool is_there(float v) { return __float_as_uint(v) != NOT_YET; }

static __device__ __forceinline__ float sendable(float v) { return is_there(v) ? v : NAN; }

static __device__ __forceinline__ void give(float *place, ptrdiff_t other, float v) {
    __stcg(place, sendable(v));
    __stcg(place + other, __uint_as_float(NOT_YET));
}

/* What is at a place that another block may be writing: read from memory each time, never kept in a register or in the
   cache of the multiprocessor. */
static __device__ __forceinline__ float look(const float *p) {
#ifdef CUDA_ON_CPU
    if (!is_there(*p)) cuda_on_cpu::wait_for(p);
    return *p;
#else
    float v;
    asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory");
    return v;
#endif
}

/* Of all four: NOT_YET is the largest unsigned. One look may find some there and others not. */
static __device__ __forceinline__ bool is_there(uint4 v) { return max(max(v.x, v.y), max(v.z, v.w)) != NOT_YET; }

static __device__ __forceinline__ uint4 look(const uint4 *p) {
#ifdef CUDA_ON_CPU
    if (!is_there(*p)) cuda_on_cpu::wait_for(p);
    return *p;
#else
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
#endif
}

/* Copies from global to shared memory by a unit of its own (cp.async.bulk), so that no thread's other loads wait behind
   them: multiples of 16 bytes. An Arrival (mbarrier) counts the bytes of one use after the other: one thread expects
   them and starts the copies, and wait_for_bytes(arrival, i) returns when those of use i = 0, 1, ... have come. It only
   tells odd from even: i is the use that is under way, or the one before. From compute capability 9.0 on. */
typedef unsigned long long Arrival;
#ifdef CUDA_ON_CPU
using cuda_on_cpu::arrival_init, cuda_on_cpu::expect, cuda_on_cpu::copy_bytes, cuda_on_cpu::wait_for_bytes,
    cuda_on_cpu::prefetch_bytes;
#else
static __device__ __forceinline__ unsigned shared_address(const void *p) {
    return (unsigned)__cvta_generic_to_shared(p);
}

static __device__ __forceinline__ void arrival_init(Arrival *arrival) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(arrival)) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

static __device__ __forceinline__ void expect(Arrival *arrival, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); /* behind what threads wrote there */
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(arrival)), "r"(bytes)
                 : "memory");
#endif
}

static __device__ __forceinline__ void copy_bytes(void *to, const void *from, unsigned bytes, Arrival *arrival) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(arrival))
                 : "memory");
#endif
}

static __device__ __forceinline__ void wait_for_bytes(Arrival *arrival, int use) {
#if __CUDA_ARCH__ >= 900
    unsigned done = 0;
    while (!done)
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done)
                     : "r"(shared_address(arrival)), "r"(use % 2)
                     : "memory");
#endif
}

/* To L2, which all multiprocessors share. */
static __device__ __forceinline__ void prefetch_bytes(const void *from, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
#endif
}
#endif

/* v[k] = the 16 bytes at the place at(k), zeros where that is NULL. ask() takes what is there, await(), later, asks for
   the rest until all is there, and receive() does both. */
template <int K, class F, class At> static __device__ __forceinline__ void ask(F *v, At at) {
    for (int k = 0; k < K; k++) {
        v[k] = F{};
        if (at(k) != NULL) v[k].bits = look((const uint4 *)at(k));
    }
}

template <int K, class F, class At> static __device__ __forceinline__ void await(F *v, At at) {
    for (bool all_there = false; !all_there;) {
        all_there = true;
        for (int k = 0; k < K; k++) all_there = all_there && is_there(v[k].bits);
        for (int k = 0; k < K; k++)
            if (!is_there(v[k].bits)) v[k].bits = look((const uint4 *)at(k));
    }
}

template <int K, class F, class At> static __device__ __forceinline__ void receive(F *v, At at) {
    ask<K>(v, at);
    await<K>(v, at);
}

/* Four floats. */
static __device__ __forceinline__ float4 receive(const float *p) {
    Few<float, 4> four;
    float4 v;
    receive<1>(&four, [=](int) { return p; });
    unpack((float *)&v, four);
    return v;
}

/* What a step of few streams and one of many both need. Parameters are those of layer 0, those of layer l are
   l layer_stride elements further on: of p what is read in float (norms, biases, convolution, A_log, D), matrices in T.
   other: from a place to the same one in the other set, in floats. */
template <class T> struct Step {
    BlockParams p;
    const T *in_proj, *x_proj, *dt_proj, *out_proj, *head;
    const float *norm_f;
    size_t layer_stride, stream_stride;
    ptrdiff_t other;
    int streams, n_layer, d_model, d_inner, d_conv, d_state, dt_rank, width, vocab_size;
    float eps, *state, *logits;
    __device__ float *state_of(int l, int b) const { return state + ((size_t)l * streams + b) * stream_stride; }
};

template <class T> struct FewStep : Step<T> {
    /* Handed over: x: (n_layer + 1, streams, d_model), of which sample_kernel leaves the first; z, gated: (n_layer,
       streams, d_inner); parts: (n_layer, streams, width, halves) */
    float *x, *z, *gated, *parts;
    float *u; /* (streams, d_inner): a block reads its own back, which is faster than from us() */
    /* The first `halves` blocks have x's rows of in_proj, and the scan; as many others have z's; of `channels` each. */
    int channels, halves, out_rows;
    /* Shared memory: vector_floats of vectors; squares (FEW_STREAMS, STEP_WARPS); us (streams, channels), u of the
       block's channels; dbc (streams, width) */
    int vector_floats;
    __device__ float *squares() const { return dynamic_shared<float>() + vector_floats; }
    __device__ float *us() const { return squares() + FEW_STREAMS * STEP_WARPS; }
    __device__ float *dbc() const { return us() + this->streams * channels; }
    __device__ bool has_z() const { return (int)blockIdx.x >= halves; }
    __device__ int first_channel() const { return ((int)blockIdx.x - has_z() * halves) * channels; }
    __device__ int n_channel() const { return min(channels, this->d_inner - first_channel()); } /* 0 or less: none */
};

/* xw = x w in shared memory, a vector for each stream, where x is that of layer l; r: the norm is r xw, and a product
   with it r times that with xw. early: the thread's first four of w. */
template <int S, class T> static __device__ __forceinline__
void few_norm(float *xw, float *r, const FewStep<T> &s, int l, float4 early, const float *w) {
    const int dim = s.d_model;
    const float *x = s.x + (size_t)l * s.streams * dim;
    for (int b = 0; b < S && b < s.streams; b++) {
        float sum = 0;
        for (int i = threadIdx.x * 4; i < dim; i += STEP_THREADS * 4) {
            float4 v, w4 = i < STEP_THREADS * 4 ? early : *(const float4 *)(w + i);
            v = receive(x + (size_t)b * dim + i);
            sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
            *(float4 *)(xw + b * dim + i) = make_float4(v.x * w4.x, v.y * w4.y, v.z * w4.z, v.w * w4.w);
        }
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) s.squares()[b * STEP_WARPS + threadIdx.x / 32] = sum;
    }
    __syncthreads();
    for (int b = 0; b < S && b < s.streams; b++) {
        float sum = 0;
        for (int i = 0; i < STEP_WARPS; i++) sum += s.squares()[b * STEP_WARPS + i];
        r[b] = rsqrtf(__fdividef(sum, (float)dim) + s.eps);
    }
}

template <class T> using FewRows = LaneRows<T, FEW_ROWS, 3, 32>;

/* The head's rows of a warp, at first. */
static __device__ __forceinline__ int few_head_row() { return (blockIdx.x * STEP_WARPS + threadIdx.x / 32) * FEW_ROWS; }

template <class T> static __device__ __forceinline__
void few_load_head(FewRows<T> *rows, const FewStep<T> &s, int row) {
    rows->load(s.head + (size_t)row * s.d_model, s.vocab_size - row, s.d_model, s.d_model, threadIdx.x % 32);
}

/* First phase: RMSNorm and in_proj, a warp for FEW_ROWS rows. Where they are x's, a lane for each row and stream goes
   on with convolution and SiLU; after that SHARE_LANES threads have one of x_proj's outputs. */
template <class T, int S> struct FewIn {
    FewRows<T> rows;
    LaneRows<T, 1, 1, SHARE_LANES> share;
    ConvStep<MAX_CONV> conv;
    float4 norm;
    float bias;

    static __device__ __forceinline__ const T *in_rows(const FewStep<T> &s, int l, int first) {
        return s.in_proj + l * s.layer_stride + (size_t)(s.has_z() * s.d_inner + s.first_channel() + first) * s.d_model;
    }
    static __device__ __forceinline__ const T *share_row(const FewStep<T> &s, int l, int j) {
        return s.x_proj + l * s.layer_stride + (size_t)j * s.d_inner + s.first_channel();
    }
    /* The channels from `first` on. */
    __device__ __forceinline__ void load_rows(const FewStep<T> &s, int l, int first) {
        int lane = threadIdx.x % 32, b = lane / FEW_ROWS, c = first + lane % FEW_ROWS, d = s.first_channel() + c;
        rows.load(in_rows(s, l, first), s.n_channel() - first, s.d_model, s.d_model, lane);
        bias = 0;
        if (b >= s.streams || c >= s.n_channel()) return;
        if (s.p.in_bias != NULL) bias = s.p.in_bias[l * s.layer_stride + s.has_z() * s.d_inner + d];
        if (!s.has_z())
            conv.load(s.p.conv + l * s.layer_stride + (size_t)d * s.d_conv,
                      s.p.conv_bias != NULL ? s.p.conv_bias + l * s.layer_stride + d : NULL, s.state_of(l, b) + d,
                      s.d_inner, s.d_conv);
    }
    __device__ __forceinline__ void load_share(const FewStep<T> &s, int l, int j) {
        share.load(share_row(s, l, j), j < s.width, s.n_channel(), s.d_inner, threadIdx.x % SHARE_LANES);
    }
    __device__ __forceinline__ void load(const FewStep<T> &s, int l) { /* behind the last layer comes the head */
        int i = threadIdx.x * 4;
        if (i < s.d_model) norm = *(const float4 *)((l < s.n_layer ? s.p.norm + l * s.layer_stride : s.norm_f) + i);
        if (l == s.n_layer) {
            few_load_head(&rows, s, few_head_row());
        } else {
            load_rows(s, l, threadIdx.x / 32 * FEW_ROWS);
            if (!s.has_z()) load_share(s, l, threadIdx.x / SHARE_LANES);
        }
    }

    __device__ __forceinline__ void run(const FewStep<T> &s, int l) {
        float *xw = dynamic_shared<float>(), *us = s.us(), r[S];
        int lane = threadIdx.x % 32, of_row = lane % FEW_ROWS, of_stream = lane / FEW_ROWS, n = s.n_channel();
        int first = threadIdx.x / 32 * FEW_ROWS, d = s.first_channel() + first + of_row;
        float *state = s.state_of(l, of_stream);
        if (of_stream < s.streams && first + of_row < n && !s.has_z()) conv.prepare(state + d, s.d_inner, s.d_conv);
        few_norm<S>(xw, r, s, l, norm, s.p.norm + l * s.layer_stride);
#pragma unroll 1
        for (; first < n; first += STEP_WARPS * FEW_ROWS, d += STEP_WARPS * FEW_ROWS) {
            bool mine = of_stream < s.streams && first + of_row < n;
            float value = 0;
            if (first >= STEP_WARPS * FEW_ROWS) {
                load_rows(s, l, first);
                if (mine && !s.has_z()) conv.prepare(state + d, s.d_inner, s.d_conv);
            }
            for (int b = 0; b < S && b < s.streams; b++) {
                float v[FEW_ROWS] = {};
                rows.add(v, xw + b * s.d_model, in_rows(s, l, first), n - first, s.d_model, s.d_model, lane);
                for (int i = 0; i < FEW_ROWS; i++) {
                    v[i] = warp_sum(v[i]) * r[b];
                    if (of_stream == b && of_row == i) value = v[i] + bias;
                }
            }
            if (!mine) continue;
            if (s.has_z()) {
                give(s.z + ((size_t)l * s.streams + of_stream) * s.d_inner + d, s.other, value);
            } else {
                value = conv.step(state + d, value, s.d_inner, s.d_conv);
                us[of_stream * s.channels + first + of_row] = s.u[of_stream * s.d_inner + d] = value;
            }
        }
        if (s.has_z()) return;
        __syncthreads();
#pragma unroll 1
        for (int at = 0; at < s.width; at += STEP_THREADS / SHARE_LANES) {
            int j = at + threadIdx.x / SHARE_LANES;
            if (at > 0) load_share(s, l, j);
            for (int b = 0; b < S && b < s.streams; b++) {
                float v[1] = {};
                share.add(v, us + b * s.channels, share_row(s, l, j), j < s.width, n, s.d_inner, lane % SHARE_LANES);
                v[0] = warp_sum<SHARE_LANES>(v[0]);
                if (lane % SHARE_LANES == 0 && j < s.width)
                    give(s.parts + (((size_t)l * s.streams + b) * s.width + j) * s.halves + blockIdx.x, s.other, v[0]);
            }
        }
    }
};

/* dbc = the sums of the blocks' shares of x_proj. SCAN_LANES threads have an output of a stream, four at a time. */
template <class T> static __device__ __forceinline__ void few_sum_parts(const FewStep<T> &s, int l) {
    constexpr int K = 4;
    const float *parts = s.parts + (size_t)l * s.streams * s.width * s.halves;
    int lane = threadIdx.x % SCAN_LANES, n = s.streams * s.width;
#pragma unroll 1
    for (int at = 0; at < n; at += FEW_CHANNELS * K) {
        int j = at + threadIdx.x / SCAN_LANES;
        float sum[K] = {};
        Few<float, 4> v[K];
#pragma unroll 1
        for (int i = lane * 4; i < s.halves; i += SCAN_LANES * 4) {
            receive<K>(v, [&](int k) {
                int output = j + k * FEW_CHANNELS;
                return output < n ? parts + (size_t)output * s.halves + i : NULL;
            });
            for (int k = 0; k < K; k++) {
                float four[4];
                unpack(four, v[k]);
                sum[k] += (four[0] + four[1]) + (four[2] + four[3]);
            }
        }
        for (int k = 0; k < K; k++) {
            sum[k] = warp_sum<SCAN_LANES>(sum[k]);
            if (lane == 0 && j + k * FEW_CHANNELS < n) s.dbc()[j + k * FEW_CHANNELS] = sum[k];
        }
    }
    __syncthreads();
}

/* Second phase: the rest of x_proj, dt_proj, softplus, one step of the scan, gate. SCAN_LANES threads have a channel,
   a thread every SCAN_LANES-th state and rank: its first state and RANK_FETCH ranks are loaded early, and converted
   (A_log, dt_row) only when they are used, as that waits for them. */
template <class T, int S> struct FewScan {
    T dt_row[RANK_FETCH];
    float A_log, h[S], bias, D, z[S], u[S];

    __device__ __forceinline__ void load(const FewStep<T> &s, int l, int first) {
        int c = first + threadIdx.x / SCAN_LANES, lane = threadIdx.x % SCAN_LANES, d = s.first_channel() + c;
        if (l == s.n_layer || s.has_z() || c >= s.n_channel()) return;
        for (int k = 0; k < RANK_FETCH; k++)
            if (k * SCAN_LANES + lane < s.dt_rank)
                dt_row[k] = s.dt_proj[l * s.layer_stride + (size_t)d * s.dt_rank + k * SCAN_LANES + lane];
        bias = s.p.dt_bias[l * s.layer_stride + d], D = s.p.D[l * s.layer_stride + d];
        if (lane >= s.d_state) return;
        A_log = s.p.A_log[l * s.layer_stride + (size_t)d * s.d_state + lane];
        for (int b = 0; b < S && b < s.streams; b++)
            h[b] = s.state_of(l, b)[(size_t)(s.d_conv - 1 + lane) * s.d_inner + d];
    }

    /* What the first phase has given of the channel; z may not be there yet. */
    __device__ __forceinline__ void look_early(const FewStep<T> &s, int l, int d) {
        for (int b = 0; b < S && b < s.streams; b++)
            z[b] = look(s.z + ((size_t)l * s.streams + b) * s.d_inner + d), u[b] = s.u[b * s.d_inner + d];
    }

    __device__ __forceinline__ void run(const FewStep<T> &s, int l) {
        if (s.has_z()) return;
        int c = threadIdx.x / SCAN_LANES, n = s.n_channel(), d = s.first_channel() + c;
        float A = -__expf(A_log);
        if (c < n) look_early(s, l, d);
        few_sum_parts(s, l);
#pragma unroll 1
        for (int first = 0; first < n; first += FEW_CHANNELS, c += FEW_CHANNELS, d += FEW_CHANNELS) {
            if (first > 0) load(s, l, first), A = -__expf(A_log);
            if (first > 0 && c < n) look_early(s, l, d);
            for (int b = 0; b < S && b < s.streams; b++) channel(s, l, d, b, A, c < n);
        }
    }

    /* h = exp(delta A) h + delta B u, y = C h + D u, gated = y silu(z) */
    __device__ __forceinline__ void channel(const FewStep<T> &s, int l, int d, int b, float A, bool there) {
        int lane = threadIdx.x % SCAN_LANES;
        size_t at = ((size_t)l * s.streams + b) * s.d_inner + d;
        const float *dbc = s.dbc() + b * s.width, *B = dbc + s.dt_rank, *C = B + s.d_state;
        float *state = s.state_of(l, b) + (size_t)(s.d_conv - 1) * s.d_inner + d, delta = 0, y = 0;
        for (int k = 0; k < RANK_FETCH; k++)
            if (k * SCAN_LANES + lane < s.dt_rank) delta += to_float(dt_row[k]) * dbc[k * SCAN_LANES + lane];
#pragma unroll 1
        for (int i = RANK_FETCH * SCAN_LANES + lane; there && i < s.dt_rank; i += SCAN_LANES)
            delta += to_float(s.dt_proj[l * s.layer_stride + (size_t)d * s.dt_rank + i]) * dbc[i];
        delta = softplus_once(warp_sum<SCAN_LANES>(delta) + bias);
#pragma unroll 1
        for (int n = lane; there && n < s.d_state; n += SCAN_LANES) {
            bool early = n < SCAN_LANES;
            float A_n = early ? A : -__expf(s.p.A_log[l * s.layer_stride + (size_t)d * s.d_state + n]);
            float now = __expf(delta * A_n) * (early ? h[b] : state[(size_t)n * s.d_inner]) + delta * B[n] * u[b];
            state[(size_t)n * s.d_inner] = now;
            y += C[n] * now;
        }
        y = warp_sum<SCAN_LANES>(y);
        if (!there || lane != 0) return;
        while (!is_there(z[b])) z[b] = look(s.z + at);
        give(s.gated + at, s.other, (y + D * u[b]) * silu(z[b]));
    }
};

/* Third phase: out_proj and the residual connection, x += W gated + bias, a warp for a row. */
template <class T, int S> struct FewOut {
    LaneRows<T, 1, 6, 32> row;

    static __device__ __forceinline__ const T *out_row(const FewStep<T> &s, int l, int at) {
        return s.out_proj + l * s.layer_stride + (size_t)at * s.d_inner;
    }
    __device__ __forceinline__ void load(const FewStep<T> &s, int l, int i) {
        int at = blockIdx.x * s.out_rows + i;
        if (l < s.n_layer)
            row.load(out_row(s, l, at), i < s.out_rows && at < s.d_model, s.d_inner, s.d_inner, threadIdx.x % 32);
    }

    __device__ __forceinline__ void run(const FewStep<T> &s, int l) {
        float *gated = dynamic_shared<float>(), *x = s.x + (size_t)l * s.streams * s.d_model;
        int n = s.streams * s.d_inner, lane = threadIdx.x % 32, i = threadIdx.x / 32, at = blockIdx.x * s.out_rows + i;
        float before = lane < s.streams && at < s.d_model ? look(x + lane * s.d_model + at) : 0; /* a lane, a stream */
        if (s.has_z()) __syncthreads(); /* gated comes where xw is: all have read that. The scan has had its barriers */
#pragma unroll 1
        for (int at4 = threadIdx.x * 4; at4 < n; at4 += STEP_THREADS * 4) {
            float4 v;
            v = receive(s.gated + (size_t)l * n + at4);
            *(float4 *)(gated + at4) = v;
        }
        __syncthreads();
#pragma unroll 1
        for (; i < s.out_rows && at < s.d_model; i += STEP_WARPS, at += STEP_WARPS) {
            float after = 0;
            if (i >= STEP_WARPS) {
                load(s, l, i);
                before = lane < s.streams ? look(x + lane * s.d_model + at) : 0;
            }
            for (int b = 0; b < S && b < s.streams; b++) {
                float v[1] = {};
                row.add(v, gated + b * s.d_inner, out_row(s, l, at), 1, s.d_inner, s.d_inner, lane);
                v[0] = warp_sum(v[0]);
                if (lane == b) after = v[0];
            }
            if (s.p.out_bias != NULL) after += s.p.out_bias[l * s.layer_stride + at];
            if (lane < s.streams) give(x + (s.streams + lane) * s.d_model + at, s.other, before + after);
        }
        __syncthreads(); /* the next phase writes where gated is */
    }
};

/* The last norm and the head, a warp for FEW_ROWS tokens at a time; it loads the next ones meanwhile. */
template <class T, int S>
static __device__ __forceinline__ void few_head(const FewStep<T> &s, FewRows<T> &rows, float4 norm) {
    float *xw = dynamic_shared<float>(), r[S];
    int stride = gridDim.x * STEP_WARPS * FEW_ROWS, lane = threadIdx.x % 32, V = s.vocab_size;
    few_norm<S>(xw, r, s, s.n_layer, norm, s.norm_f);
#pragma unroll 2
    for (int row = few_head_row(); row < V; row += stride) {
        FewRows<T> now = rows;
        few_load_head(&rows, s, row + stride);
        for (int b = 0; b < S && b < s.streams; b++) {
            float v[FEW_ROWS] = {};
            now.add(v, xw + b * s.d_model, s.head + (size_t)row * s.d_model, V - row, s.d_model, s.d_model, lane);
            for (int i = 0; i < FEW_ROWS; i++) {
                v[i] = warp_sum(v[i]) * r[b];
                if (lane == 0 && row + i < V) s.logits[(size_t)b * V + row + i] = v[i];
            }
        }
    }
}

/* A step, up to the logits. A block that is done with a layer's weights in registers loads the next layer's there, so
   they are on their way during the two other phases. What it loads early at the start is weights, and states:
   sample_kernel, the one ahead, lets it start only when the step before is over. */
template <class T, int S> static __global__ void __launch_bounds__(STEP_THREADS, 1)
    few_kernel(const __grid_constant__ FewStep<T> s) {
    FewIn<T, S> in = {};
    FewScan<T, S> scan = {};
    FewOut<T, S> out = {};
    let_next_start();
    in.load(s, 0), scan.load(s, 0, 0), out.load(s, 0, threadIdx.x / 32);
    wait_for_previous();
    for (int l = 0; l < s.n_layer; l++) {
        in.run(s, l), in.load(s, l + 1);
        scan.run(s, l), scan.load(s, l + 1, 0);
        out.run(s, l), out.load(s, l + 1, threadIdx.x / 32);
    }
    few_head<T, S>(s, in.rows, in.norm);
}

/* Lays out one set of what the blocks hand each other; with base NULL only counts its bytes. */
template <class T> static size_t few_handed(FewStep<T> *s, char *base) {
    Arena arena = {base, 0};
    size_t rows = (size_t)s->n_layer * s->streams;
    take(&arena, &s->x, (rows + s->streams) * s->d_model);
    take(&arena, &s->z, rows * s->d_inner);
    take(&arena, &s->gated, rows * s->d_inner);
    take(&arena, &s->parts, rows * s->halves * s->width);
    return arena.bytes;
}

template <class T> static void fill_step(Step<T> *s, const Gpu<T> *gpu, int streams) {
    const Config *c = &gpu->model.config;
    const Params *w = &gpu->w;
    s->p = w->block[0], s->norm_f = w->norm_f, s->head = in_T(gpu, w->head);
    s->in_proj = in_T(gpu, s->p.in_proj), s->x_proj = in_T(gpu, s->p.x_proj), s->dt_proj = in_T(gpu, s->p.dt_proj),
    s->out_proj = in_T(gpu, s->p.out_proj);
    s->layer_stride = c->n_layer > 1 ? w->block[1].norm - w->block[0].norm : 0;
    s->streams = streams, s->n_layer = c->n_layer, s->d_model = c->d_model, s->d_inner = c->d_inner;
    s->d_conv = c->d_conv, s->d_state = c->d_state, s->dt_rank = c->dt_rank, s->width = dbc_width(c);
    s->vocab_size = c->vocab_size, s->eps = (float)c->norm_eps;
    s->state = gpu->state, s->stream_stride = state_stride(c), s->logits = gpu->held;
}

/* The arguments of a step that uses the given set of places. */
template <class T> static FewStep<T> few_of(const Gpu<T> *gpu, int streams, int set) {
    FewStep<T> s = {};
    fill_step(&s, gpu, streams);
    s.halves = max(4, gpu->multiprocessors / 8 * 4); /* fours of blocks, for packs of parts; packs of channels */
    s.channels = ceil_div(ceil_div(s.d_inner, s.halves), 8) * 8;
    s.halves = ceil_div(ceil_div(s.d_inner, s.channels), 4) * 4;
    s.out_rows = ceil_div(s.d_model, 2 * s.halves), s.vector_floats = streams * max(s.d_model, s.d_inner);
    s.u = gpu->few_u;
    size_t bytes = few_handed(&s, NULL);
    if (gpu->handed != NULL) few_handed(&s, gpu->handed + set * bytes);
    s.other = (ptrdiff_t)(bytes / sizeof(float)) * (set == 0 ? 1 : -1);
    return s;
}

template <class T> static size_t few_shared(const FewStep<T> &s) {
    return (s.vector_floats + FEW_STREAMS * STEP_WARPS + (size_t)s.streams * (s.channels + s.width)) * sizeof(float);
}

/* Whether so many streams take few_kernel. All its blocks must be on the GPU at once, one on a multiprocessor, and
   vectors fit into the shared memory that any block may have. */
template <class T> static bool few_streams(const Gpu<T> *gpu, int streams) {
    FewStep<T> s = few_of(gpu, streams, 0);
    return streams <= FEW_STREAMS && s.d_model % 8 == 0 && s.d_inner % 8 == 0 && few_shared(s) <= SHARED_BYTES &&
           !has_constants(&gpu->model.config) && 2 * s.halves <= gpu->multiprocessors;
}

/* Many streams, in bf16. Now vectors are many, too, and products are the tensor cores': a block has a tile of each,
   some streams by some rows, whose weights are on their way to shared memory while the block is at other phases. u and
   z of a channel of a stream stay with the thread that computed them, which also loads, steps and stores its h; and two
   channels of the residual stream stay with a thread through all layers. The phases:

   in      xw, squares: norm, rows of in_proj for x and for z, convolution, SiLU     to u
   dbc     u: rows of x_proj, in some blocks                                         to dbc: dt, B and C
   scan    dbc: dt_proj, softplus, a step of the scan, gate                          to gated
   out     gated: rows of out_proj, residual connection                              to the next layer's xw, squares

   Each tile has its block, and is in shared memory as a whole: that limits the sizes, see many_streams(). A block
   beyond the last tile has one of streams that there are not: it goes along with the last stream's numbers, and gives
   nothing.

   A thread's loads come back in the order in which it issues them, so it asks for what is far away only behind what the
   block waits for. */
constexpr int MAX_STREAMS = 64, MANY_STATES = 16, MANY_RANKS = 48, MANY_TAPS = 4; /* d_state is 16; others at most so */

struct ManyStep : Step<bf16> {
    /* Handed over: xw, x times the norm's weights: (n_layer + 1, streams, d_model); squares, sums of x^2 over eights:
       (n_layer + 1, streams, d_model / 8); u, gated: (n_layer, streams, d_inner); dbc: (n_layer, streams, width) */
    bf16 *xw, *u, *gated;
    float *squares, *dbc, *x; /* x: (streams, d_model), what sample_kernel leaves */
};

/* D += A B by a warp: A (16, 16), B (16, 8). Lane 4 g + t has of D in rows g and g + 8 the columns 2 t and 2 t + 1, and
   pairs of k that begin at 2 t and at 2 t + 8: a and c of A's row g, b and d of row g + 8, e and f of B's column g. */
static __device__ __forceinline__ void multiply(float *sum, unsigned a, unsigned b, unsigned c, unsigned d, unsigned e,
                                                unsigned f) {
#ifdef CUDA_ON_CPU
    cuda_on_cpu::mma_16x8x16(sum, a, b, c, d, e, f);
#elif __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a), "r"(b), "r"(c), "r"(d), "r"(e), "r"(f));
#endif
}

/* 32 columns of 16 rows of x, v[0] of row g and v[1] of g + 8, with those of 8 rows of W: a lane has eight neighbours.
   Which of them is which k of the matrix unit does not matter, if it is the same for both. */
static __device__ __forceinline__ void multiply(float *sum, Few<bf16, 8> *v, Few<bf16, 8> w) {
    for (int k = 0; k < 4; k += 2)
        multiply(sum, v[0].word(k), v[1].word(k), v[0].word(k + 1), v[1].word(k + 1), w.word(k), w.word(k + 1));
}

/* v = a warp's piece of x (streams, columns), which is handed over: 16 M streams from `stream` on, the last one again
   where there are no more, and CHUNKS chunks of 32 columns from `chunk` on. Chunk c of the i-th 16 streams begins at
   v + 2 (c M + i). */
template <int M, int CHUNKS> static __device__ __forceinline__
void receive_rows(Few<bf16, 8> *v, const bf16 *x, int stream, int streams, int columns, int chunk) {
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    receive<CHUNKS * 2 * M>(v, [&](int k) {
        int b = min(stream + k % (2 * M) * 8 + g, streams - 1), c = chunk + k / (2 * M);
        return x + b * columns + (c * 32 < columns ? c * 32 : 0) + t * 8;
    });
}

/* w = a lane's eight neighbours of chunks c and c + 1, c even; row: those of chunk 0 of its row of W in shared memory.
   Odd rows read the two the other way round: then two rows, which are read at a time, use all banks. */
static __device__ __forceinline__ void load_two(Few<bf16, 8> *w, const Few<bf16, 8> *row, int c) {
    int odd = threadIdx.x / 4 % 2;
    Few<bf16, 8> first = row[(c + odd) * 4], second = row[(c + 1 - odd) * 4];
    w[0] = odd ? second : first, w[1] = odd ? first : second;
}

/* Two neighbours at once, in one place. */
static __device__ __forceinline__ void give(bf16 *place, ptrdiff_t other, float v, float next) {
    __nv_bfloat162 two = __floats2bfloat162_rn(v, next); /* of a NaN this makes 0x7fff, so never NOT_YET */
    __stcg((unsigned *)place, *(unsigned *)&two);
    __stcg((unsigned *)(place + 2 * other), NOT_YET);
}

/* A block's tile of y = x W^T: 16 M streams by 8 N rows of W. The columns are divided among the warps, CHUNKS chunks of
   32 for each. A lane reads 16 bytes of each chunk of N rows. Nobody else reads these, so it leaves its sums there, and
   in the end those of all warps are added up. Rows from n_rows on hold old bytes, and reach only what nobody takes. */
template <int M, int N, int CHUNKS> struct Tile {
    static constexpr int STREAMS = 16 * M, ROWS = 8 * N, PACKS = CHUNKS * 2 * M, WARP_COLUMNS = CHUNKS * 32,
                         COLUMNS = WARP_COLUMNS * STEP_WARPS;
    static_assert(M <= CHUNKS && CHUNKS % 2 == 0 && M * N <= STEP_WARPS, "sums have places, and warps that add them");
    typedef Few<bf16, 8> Weights[ROWS * COLUMNS / 8];
    Few<bf16, 8> *weights;
    Arrival *arrival;
    int columns, row, stream, n_rows; /* row, stream: the first ones */

    static __host__ __device__ int n_tiles(int rows, int streams) {
        return ceil_div(rows, ROWS) * ceil_div(streams, STREAMS);
    }
    __device__ __forceinline__ Tile(Weights weights, Arrival *arrival, int tile, int rows, int columns)
        : weights(weights), arrival(arrival), columns(columns), row(tile % ceil_div(rows, ROWS) * ROWS),
          stream(tile / ceil_div(rows, ROWS) * STREAMS), n_rows(min(ROWS, rows - row)) {}
    /* W: (.., columns). By one thread, when the block is done with the weights before. */
    __device__ __forceinline__ void load(const bf16 *W) const {
        unsigned bytes = n_rows * columns * (unsigned)sizeof(bf16);
        expect(arrival, bytes);
        copy_bytes(weights, W + (size_t)row * columns, bytes, arrival);
    }
    __device__ __forceinline__ bool has_columns(int warp) const { return warp * WARP_COLUMNS < columns; }
    __device__ __forceinline__ Few<bf16, 8> *row_of(int warp, int lane, int j) const { /* its chunk 0 */
        return weights + (j * 8 + lane / 4) * (columns / 8) + warp * CHUNKS * 4 + lane % 4;
    }
    __device__ __forceinline__ float *sums_of(int warp, int lane, int j, int i) const { /* chunk i; odd rows: i ^ 1 */
        return (float *)(row_of(warp, lane, j) + (i ^ (lane / 4 % 2)) * 4);
    }
    __device__ __forceinline__ void receive(Few<bf16, 8> *v, const bf16 *x, int streams) const {
        receive_rows<M, CHUNKS>(v, x, stream, streams, columns, threadIdx.x / 32 * CHUNKS);
    }
    /* By the weights of the given use of the arrival. */
    __device__ __forceinline__ void multiply(Few<bf16, 8> *v, int use) const {
        int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        float sum[N][M][4] = {};
        wait_for_bytes(arrival, use);
        if (!has_columns(warp)) return;
        for (int c = 0; c < CHUNKS; c += 2)
            for (int j = 0; j < N; j++) {
                Few<bf16, 8> w[2];
                load_two(w, row_of(warp, lane, j), c);
                for (int k = 0; k < 2; k++)
                    for (int i = 0; i < M; i++) ::multiply(sum[j][i], v + ((c + k) * M + i) * 2, w[k]);
            }
        for (int j = 0; j < N; j++)
            for (int i = 0; i < M; i++) store_float4(sums_of(warp, lane, j, i), sum[j][i]);
    }
    /* y (STREAMS, ROWS), in shared memory: a warp adds up 16 streams, 8 rows. */
    __device__ __forceinline__ void add_up(float *y) const {
        int warp = threadIdx.x / 32, lane = threadIdx.x % 32, j = warp / M, i = warp % M;
        float4 sum = make_float4(0, 0, 0, 0);
        __syncthreads();
        if (warp < N * M) {
            for (int w = 0; w < STEP_WARPS && has_columns(w); w++) {
                float4 share = *(const float4 *)sums_of(w, lane, j, i);
                sum.x += share.x, sum.y += share.y, sum.z += share.z, sum.w += share.w;
            }
            float *to = y + (i * 16 + lane / 4) * ROWS + j * 8 + lane % 4 * 2;
            *(float2 *)to = make_float2(sum.x, sum.y);
            *(float2 *)(to + 8 * ROWS) = make_float2(sum.z, sum.w);
        }
        __syncthreads();
    }
};

typedef Tile<2, 3, 2> InTile; /* of in_proj's rows for x, and for z */
typedef Tile<1, 1, 4> DbcTile;
typedef Tile<1, 3, 4> OutTile;
static_assert(STEP_THREADS * 2 == InTile::STREAMS * InTile::ROWS && STEP_THREADS == InTile::ROWS * MANY_STATES,
              "a thread has a channel of two streams, and one number of A");

constexpr int HEAD_TOKENS = 16, HEAD_STAGES = 6, HEAD_SPLIT = 3; /* see ManyHead */

struct ManyShared {
    InTile::Weights in_x, in_z;
    DbcTile::Weights x_proj;
    OutTile::Weights out_proj;
    float y[InTile::STREAMS * InTile::ROWS]; /* a tile's product */
    float delta[InTile::STREAMS][InTile::ROWS], scale[MAX_STREAMS];
    /* longer than their rows: so threads use all banks */
    float A[InTile::ROWS][MANY_STATES + 4], dbc[InTile::STREAMS][MANY_RANKS + 2 * MANY_STATES + 8];
    Arrival x_arrival, z_arrival, dbc_arrival, out_arrival, head_arrival[HEAD_STAGES];
};

/* RMSNorm's factors of STREAMS streams from `first` on; LANES threads have the squares of one. */
template <int STREAMS> struct ManyNorm {
    static constexpr int THREADS = 256, LANES = THREADS / STREAMS, PACKS = InTile::COLUMNS / 8 / 4 / LANES;
    Few<float, 4> v[PACKS];

    static __device__ __forceinline__ const float *place(const ManyStep &s, int l, int first, int k) {
        int b = first + threadIdx.x / LANES, i = (k * LANES + threadIdx.x % LANES) * 4, n = s.d_model / 8;
        return threadIdx.x < THREADS && b < s.streams && i < n ? s.squares + ((size_t)l * s.streams + b) * n + i : NULL;
    }
    __device__ __forceinline__ void ask(const ManyStep &s, int l, int first) {
        ::ask<PACKS>(v, [&](int k) { return place(s, l, first, k); });
    }
    __device__ __forceinline__ void finish(float *scale, const ManyStep &s, int l, int first) {
        float sum = 0, four[4];
        await<PACKS>(v, [&](int k) { return place(s, l, first, k); });
        for (int k = 0; k < PACKS; k++) {
            unpack(four, v[k]);
            sum += (four[0] + four[1]) + (four[2] + four[3]);
        }
        sum = warp_sum<LANES>(sum);
        if (threadIdx.x < THREADS && threadIdx.x % LANES == 0)
            scale[threadIdx.x / LANES] = rsqrtf(__fdividef(sum, (float)s.d_model) + s.eps);
    }
};

/* The thread that starts copies: of the last warp, which has no part in add_up() and make_delta(). */
static __device__ __forceinline__ bool starts_copies() { return threadIdx.x == STEP_THREADS - 1; }

/* A block's tiles, what a thread keeps, and the phases. */
struct ManyBlock {
    const ManyStep &s;
    ManyShared &m;
    InTile x_tile, z_tile;
    DbcTile dbc_tile; /* the last blocks have them: if any block has no tile of in_proj, it is one of those */
    OutTile out_tile;
    bool has_dbc;

    /* A channel of two streams. tile_channel, tile_stream: in the tile */
    int tile_channel, tile_stream, channel, stream;
    float u[2], z[2], h[2][MANY_STATES], D;
    float A_log, dt_bias[2];           /* not of this channel: one number for the block, and see make_delta */
    unsigned dt_row[MANY_RANKS / 8];   /* see make_delta: pairs */

    /* Two neighbouring channels, from `pair` on, of the residual stream; norm: the next norm's weights */
    static constexpr int PAIRS = OutTile::ROWS / 2;
    int pair, pair_stream;
    bool has_pair;
    float2 residual, norm;

    __device__ __forceinline__ ManyBlock(const ManyStep &s, ManyShared &m)
        : s(s), m(m), x_tile(m.in_x, &m.x_arrival, blockIdx.x, s.d_inner, s.d_model),
          z_tile(m.in_z, &m.z_arrival, blockIdx.x, s.d_inner, s.d_model),
          dbc_tile(m.x_proj, &m.dbc_arrival, gridDim.x - 1 - blockIdx.x, s.width, s.d_inner),
          out_tile(m.out_proj, &m.out_arrival, blockIdx.x, s.d_model, s.d_inner), has_dbc(dbc_tile.stream < s.streams),
          tile_channel(threadIdx.x % InTile::ROWS), tile_stream(threadIdx.x / InTile::ROWS * 2),
          channel(x_tile.row + tile_channel), stream(x_tile.stream + tile_stream),
          pair(out_tile.row + threadIdx.x % PAIRS * 2), pair_stream(out_tile.stream + threadIdx.x / PAIRS),
          has_pair(threadIdx.x < PAIRS * OutTile::STREAMS && pair < s.d_model && pair_stream < s.streams), residual(),
          norm() {}

    /* A tile's weights may be overwritten when its add_up() is over. That the copies are started later still lets those
       that the block needs sooner come first:

       of                        is free after      is loaded in
       in_proj, layer l + 1      in(l)              scan(l)
       x_proj, layer l + 1       dbc(l)             out(l)
       out_proj, layer l         out(l - 1)         in(l) */
    __device__ __forceinline__ void load_in(int l) const {
        if (!starts_copies() || l == s.n_layer) return;
        x_tile.load(s.in_proj + l * s.layer_stride);
        z_tile.load(s.in_proj + l * s.layer_stride + (size_t)s.d_inner * s.d_model);
    }
    __device__ __forceinline__ void load_dbc(int l) const {
        if (starts_copies() && has_dbc && l < s.n_layer) dbc_tile.load(s.x_proj + l * s.layer_stride);
    }
    __device__ __forceinline__ void load_out(int l) const {
        if (starts_copies()) out_tile.load(s.out_proj + l * s.layer_stride);
    }
    /* A block's piece of the states of layer l, so that they are near when threads load them. */
    __device__ __forceinline__ void prefetch_states(int l) const {
        size_t all = s.streams * s.stream_stride, n = (all + 4 * gridDim.x - 1) / (4 * gridDim.x) * 4,
               first = blockIdx.x * n;
        if (starts_copies() && l < s.n_layer && first < all)
            prefetch_bytes(s.state_of(l, 0) + first, (unsigned)(min(n, all - first) * sizeof(float)));
    }
    __device__ __forceinline__ void load_norm(int l) {
        if (has_pair) norm = *(const float2 *)((l < s.n_layer ? s.p.norm + l * s.layer_stride : s.norm_f) + pair);
    }

    __device__ __forceinline__ bool has_channel(int i) const { return channel < s.d_inner && stream + i < s.streams; }
    __device__ __forceinline__ float *state(int l, int i, int row) const {
        return s.state_of(l, stream + i) + (size_t)row * s.d_inner + channel;
    }
    /* h and D of the thread's channel; what make_delta() wants of dt_proj and its bias; a number of A_log for A. */
    __device__ __forceinline__ void load_channel(int l) {
        int lane = threadIdx.x % 32, eight = x_tile.row + threadIdx.x / 32 % (InTile::ROWS / 8) * 8,
            row = eight + lane / 4, column = eight + lane % 4 * 2, at = x_tile.row * MANY_STATES + threadIdx.x;
        const bf16 *ranks = s.dt_proj + l * s.layer_stride + (size_t)row * s.dt_rank + lane % 4 * 2;
        for (int i = 0; i < 2; i++) {
            const float *from = state(l, i, s.d_conv - 1);
            for (int n = 0; n < MANY_STATES; n++, from += s.d_inner) h[i][n] = has_channel(i) ? *from : 0;
        }
        for (int k = 0; k < MANY_RANKS; k += 8)
            dt_row[k / 8] = row < s.d_inner && k < s.dt_rank ? *(const unsigned *)(ranks + k) : 0;
        for (int c = 0; c < 2; c++)
            dt_bias[c] = column < s.d_inner ? s.p.dt_bias[l * s.layer_stride + column + c] : 0;
        A_log = at < s.d_inner * MANY_STATES ? s.p.A_log[l * s.layer_stride + at] : 0;
        D = channel < s.d_inner ? s.p.D[l * s.layer_stride + channel] : 0;
    }
    /* v: of the thread's channel. Two neighbouring threads have two channels of two streams: one gives both channels of
       the first stream, the other those of the second. */
    __device__ __forceinline__ void give_two(bf16 *to, int l, const float *v) const {
        bool odd = threadIdx.x % 2;
        float theirs = __shfl_xor_sync(~0u, odd ? v[0] : v[1], 1);
        if (has_channel(odd))
            give(to + ((size_t)l * s.streams + stream + odd) * s.d_inner + channel - odd, s.other,
                 odd ? theirs : v[0], odd ? v[1] : theirs);
    }
    /* The residual stream as layer l has it: times w for the product, and for the norm the sum of eight squares. */
    __device__ __forceinline__ void hand_on(int l) const {
        float squares = warp_sum<4>(residual.x * residual.x + residual.y * residual.y);
        size_t at = ((size_t)l * s.streams + pair_stream) * s.d_model + pair;
        if (!has_pair) return;
        give(s.xw + at, s.other, residual.x * norm.x, residual.y * norm.y);
        if (threadIdx.x % 4 == 0) give(s.squares + at / 8, s.other, squares);
    }

    __device__ __forceinline__ void in(int l) {
        const float *y = m.y + tile_stream * InTile::ROWS + tile_channel, *scale = m.scale + tile_stream;
        bool has_bias = s.p.in_bias != NULL && channel < s.d_inner;
        const float *bias = has_bias ? s.p.in_bias + l * s.layer_stride + channel : NULL;
        Few<bf16, 8> xw[InTile::PACKS];
        ManyNorm<InTile::STREAMS> norm;
        ConvStep<MANY_TAPS> conv[2] = {};
        norm.ask(s, l, x_tile.stream);
        x_tile.receive(xw, s.xw + (size_t)l * s.streams * s.d_model, s.streams);
        load_out(l);
        for (int i = 0; i < 2; i++)
            if (has_channel(i))
                conv[i].load(s.p.conv + l * s.layer_stride + (size_t)channel * s.d_conv,
                             s.p.conv_bias != NULL ? s.p.conv_bias + l * s.layer_stride + channel : NULL,
                             state(l, i, 0), s.d_inner, s.d_conv);
        x_tile.multiply(xw, l);
        norm.finish(m.scale, s, l, x_tile.stream);
        x_tile.add_up(m.y);
        for (int i = 0; i < 2; i++) {
            u[i] = y[i * InTile::ROWS] * scale[i] + (has_bias ? bias[0] : 0);
            if (!has_channel(i)) continue;
            conv[i].prepare(state(l, i, 0), s.d_inner, s.d_conv);
            u[i] = conv[i].step(state(l, i, 0), u[i], s.d_inner, s.d_conv);
        }
        give_two(s.u, l, u);
        z_tile.multiply(xw, l);
        load_channel(l);
        z_tile.add_up(m.y);
        for (int i = 0; i < 2; i++) z[i] = y[i * InTile::ROWS] * scale[i] + (has_bias ? bias[s.d_inner] : 0);
    }

    __device__ __forceinline__ void dbc(int l) const {
        Few<bf16, 8> us[DbcTile::PACKS];
        int i = threadIdx.x / 4, row = threadIdx.x % 4 * 2, b = dbc_tile.stream + i;
        dbc_tile.receive(us, s.u + (size_t)l * s.streams * s.d_inner, s.streams);
        dbc_tile.multiply(us, l);
        dbc_tile.add_up(m.y);
        if (i >= DbcTile::STREAMS || b >= s.streams) return;
        float *place = s.dbc + ((size_t)l * s.streams + b) * s.width + dbc_tile.row + row;
        for (int c = 0; c < 2; c++) give(place + c, s.other, m.y[i * DbcTile::ROWS + row + c]);
    }

    __device__ __forceinline__ void scan(int l) {
        constexpr int PACKS = (InTile::STREAMS * (MANY_RANKS + 2 * MANY_STATES) / 4 + STEP_THREADS - 1) / STEP_THREADS;
        const int fours = s.width / 4;
        const float *rows = s.dbc + ((size_t)l * s.streams + x_tile.stream) * s.width;
        Few<float, 4> v[PACKS];
        auto four = [&](int k) { return (int)threadIdx.x + k * STEP_THREADS; };
        m.A[threadIdx.x / MANY_STATES][threadIdx.x % MANY_STATES] = -__expf(A_log);
        receive<PACKS>(v, [&](int k) {
            int b = four(k) / fours;
            return b < InTile::STREAMS && x_tile.stream + b < s.streams ? rows + four(k) * 4 : NULL;
        });
        for (int k = 0; k < PACKS && four(k) / fours < InTile::STREAMS; k++)
            *(Few<float, 4> *)&m.dbc[four(k) / fours][four(k) % fours * 4] = v[k];
        __syncthreads();
        load_in(l + 1);
        make_delta();
        __syncthreads();
        scan_channel(l);
    }
    /* delta: a warp has 16 streams of 8 channels */
    __device__ __forceinline__ void make_delta() const {
        int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, eight = warp % (InTile::ROWS / 8),
            i = warp / (InTile::ROWS / 8) * 16 + g;
        float sum[4] = {dt_bias[0], dt_bias[1], dt_bias[0], dt_bias[1]};
        if (i >= InTile::STREAMS) return;
        auto two = [&](int i, int k) {
            __nv_bfloat162 pair = __floats2bfloat162_rn(m.dbc[i][k + 2 * t], m.dbc[i][k + 2 * t + 1]);
            return *(unsigned *)&pair;
        };
        for (int k = 0; k < MANY_RANKS; k += 16)
            if (k < s.dt_rank)
                multiply(sum, two(i, k), two(i + 8, k), two(i, k + 8), two(i + 8, k + 8), dt_row[k / 8],
                         dt_row[k / 8 + 1]);
        for (int k = 0; k < 4; k++) m.delta[i + k / 2 * 8][eight * 8 + 2 * t + k % 2] = softplus_once(sum[k]);
    }
    /* h = exp(delta A) h + delta B u, gated = (C h + D u) silu(z) */
    __device__ __forceinline__ void scan_channel(int l) {
        float y[2] = {}, A[4], B[4], C[4];
        for (int i = 0; i < 2; i++) {
            float delta = m.delta[tile_stream + i][tile_channel];
            const float *all_B = m.dbc[tile_stream + i] + s.dt_rank, *all_C = all_B + MANY_STATES;
            for (int n = 0; n < MANY_STATES; n += 4) {
                load_pack<4>(A, &m.A[tile_channel][n], 4, true), load_pack<4>(B, all_B + n, 4, true);
                load_pack<4>(C, all_C + n, 4, true);
                for (int k = 0; k < 4; k++) {
                    h[i][n + k] = __expf(delta * A[k]) * h[i][n + k] + delta * B[k] * u[i];
                    y[i] += C[k] * h[i][n + k];
                }
            }
            y[i] = (y[i] + D * u[i]) * silu(z[i]);
        }
        give_two(s.gated, l, y);
        for (int i = 0; i < 2; i++) { /* nobody waits for these */
            float *to = state(l, i, s.d_conv - 1);
            for (int n = 0; n < MANY_STATES && has_channel(i); n++, to += s.d_inner) *to = h[i][n];
        }
    }

    __device__ __forceinline__ void out(int l) {
        Few<bf16, 8> gated[OutTile::PACKS];
        const float *y = m.y + threadIdx.x * 2; /* threads have streams' pairs in the order of y */
        const float *bias = s.p.out_bias != NULL && has_pair ? s.p.out_bias + l * s.layer_stride + pair : NULL;
        out_tile.receive(gated, s.gated + (size_t)l * s.streams * s.d_inner, s.streams);
        load_dbc(l + 1);
        load_norm(l + 1);
        out_tile.multiply(gated, l);
        out_tile.add_up(m.y);
        if (has_pair) residual.x += y[0], residual.y += y[1];
        if (bias != NULL) residual.x += bias[0], residual.y += bias[1];
        hand_on(l + 1);
    }
};

/* The last norm and the head. The weights of HEAD_TOKENS tokens are a stage: a block has every gridDim.x-th of them, of
   which HEAD_STAGES at a time are on their way. A warp has 16 streams and one of HEAD_SPLIT parts of the columns, of
   which it keeps xw in registers. */
struct ManyHead {
    static constexpr int N = HEAD_TOKENS / 8, CHUNKS = InTile::COLUMNS / 32 / HEAD_SPLIT, PACKS = 2 * CHUNKS,
                         GROUPS = MAX_STREAMS / 16;
    struct Work { /* where weights of the layers were */
        Few<bf16, 8> stage[HEAD_STAGES][HEAD_TOKENS * InTile::COLUMNS / 8];
        float4 shares[2][HEAD_SPLIT - 1][N][GROUPS * 32]; /* two: the next stage's do not go where others still read */
    };
    static constexpr int EARLY = offsetof(ManyShared, out_proj) / sizeof Work().stage[0]; /* the others are in use */
    static_assert(sizeof(Work) <= offsetof(ManyShared, y) && GROUPS * HEAD_SPLIT == STEP_WARPS, "it fits");
    const ManyStep &s;
    ManyShared &m;
    Work &work;

    __device__ __forceinline__ ManyHead(const ManyStep &s, ManyShared &m) : s(s), m(m), work(*(Work *)&m) {}
    static __device__ __forceinline__ int first_token(int i) { return (blockIdx.x + i * gridDim.x) * HEAD_TOKENS; }
    /* Starts to load the block's stages from `first` until `end`, as far as it has so many. */
    __device__ __forceinline__ void load(int first, int end) const {
        for (int i = first; starts_copies() && i < end && first_token(i) < s.vocab_size; i++) {
            Arrival *arrival = &m.head_arrival[i % HEAD_STAGES];
            unsigned bytes = min(HEAD_TOKENS, s.vocab_size - first_token(i)) * s.d_model * (unsigned)sizeof(bf16);
            expect(arrival, bytes);
            copy_bytes(work.stage[i % HEAD_STAGES], s.head + (size_t)first_token(i) * s.d_model, bytes, arrival);
        }
    }
    __device__ __forceinline__ void run() const {
        const int D = s.d_model, V = s.vocab_size, warp = threadIdx.x / 32, lane = threadIdx.x % 32,
                  group = warp % GROUPS * 16, first_chunk = warp / GROUPS * CHUNKS;
        Few<bf16, 8> xw[PACKS];
        ManyNorm<MAX_STREAMS> norm;
        norm.ask(s, s.n_layer, 0);
        receive_rows<1, CHUNKS>(xw, s.xw + (size_t)s.n_layer * s.streams * D, group, s.streams, D, first_chunk);
        load(EARLY, HEAD_STAGES); /* not before: xw would have to come through among these */
        norm.finish(m.scale, s, s.n_layer, 0); /* to be read behind a stage's barrier */
#pragma unroll 1
        for (int i = 0; first_token(i) < V; i++) {
            const Few<bf16, 8> *w = work.stage[i % HEAD_STAGES] + lane / 4 * (D / 8) + first_chunk * 4 + lane % 4;
            float4(*shares)[N][GROUPS * 32] = work.shares[i % 2];
            float sum[N][4] = {};
            wait_for_bytes(&m.head_arrival[i % HEAD_STAGES], i / HEAD_STAGES);
            for (int c = 0; c < CHUNKS && (first_chunk + c) * 32 < D; c += 2)
                for (int j = 0; j < N; j++) {
                    Few<bf16, 8> two[2];
                    load_two(two, w + j * D, c); /* j D: 8 rows of D / 8 */
                    for (int k = 0; k < 2; k++) multiply(sum[j], xw + 2 * (c + k), two[k]);
                }
            for (int j = 0; j < N && first_chunk > 0; j++)
                store_float4((float *)&shares[warp / GROUPS - 1][j][threadIdx.x % (GROUPS * 32)], sum[j]);
            __syncthreads();
            load(i + HEAD_STAGES, i + HEAD_STAGES + 1);
            for (int j = 0; j < N && first_chunk == 0; j++) {
                for (int k = 0; k < HEAD_SPLIT - 1; k++) {
                    float4 share = shares[k][j][threadIdx.x];
                    sum[j][0] += share.x, sum[j][1] += share.y, sum[j][2] += share.z, sum[j][3] += share.w;
                }
                for (int k = 0; k < 4; k++) {
                    int b = group + k / 2 * 8 + lane / 4, token = first_token(i) + j * 8 + lane % 4 * 2 + k % 2;
                    if (b < s.streams && token < V) s.logits[(size_t)b * V + token] = sum[j][k] * m.scale[b];
                }
            }
        }
    }
};

/* A step, up to the logits. A block has a tile of in_proj, one of out_proj, and maybe one of x_proj. What it touches
   before wait_for_previous() is not what sample_kernel writes, see few_kernel. */
static __global__ void __launch_bounds__(STEP_THREADS, 1) many_kernel(const __grid_constant__ ManyStep s) {
    ManyShared &m = *dynamic_shared<ManyShared>();
    ManyBlock block(s, m);
    ManyHead head(s, m);
    let_next_start();
    if (starts_copies()) {
        arrival_init(&m.x_arrival), arrival_init(&m.z_arrival);
        arrival_init(&m.dbc_arrival), arrival_init(&m.out_arrival);
        for (int i = 0; i < HEAD_STAGES; i++) arrival_init(&m.head_arrival[i]);
    }
    block.load_in(0), block.load_dbc(0), block.prefetch_states(0), block.load_norm(0);
    __syncthreads();
    wait_for_previous();
    if (block.has_pair) block.residual = *(const float2 *)(s.x + (size_t)block.pair_stream * s.d_model + block.pair);
    block.hand_on(0);
#pragma unroll 1
    for (int l = 0; l < s.n_layer; l++) {
        block.in(l);
        if (block.has_dbc) block.dbc(l);
        block.scan(l);
        if (l + 1 == s.n_layer) head.load(0, ManyHead::EARLY);
        block.prefetch_states(l + 1);
        block.out(l);
    }
    head.run();
}

/* Lays out one set of what the blocks hand each other; with base NULL only counts its bytes. */
static size_t many_handed(ManyStep *s, char *base) {
    Arena arena = {base, 0};
    size_t rows = (size_t)s->n_layer * s->streams, after = rows + s->streams;
    take(&arena, &s->x, (size_t)s->streams * s->d_model);
    take(&arena, &s->xw, after * s->d_model);
    take(&arena, &s->squares, after * s->d_model / 8);
    take(&arena, &s->u, rows * s->d_inner);
    take(&arena, &s->gated, rows * s->d_inner);
    take(&arena, &s->dbc, rows * s->width);
    return arena.bytes;
}

/* The arguments of a step that uses the given set of places. */
static ManyStep many_of(const Gpu<bf16> *gpu, int streams, int set) {
    ManyStep s = {};
    fill_step(&s, gpu, streams);
    size_t bytes = many_handed(&s, NULL);
    if (gpu->handed != NULL) many_handed(&s, gpu->handed + set * bytes);
    s.other = (ptrdiff_t)(bytes / sizeof(float)) * (set == 0 ? 1 : -1);
    return s;
}

/* gpu itself if its weights are in bf16; else NULL: many_streams() then says no, and no other call comes to be made. */
static Gpu<bf16> *in_bf16(Gpu<bf16> *gpu) { return gpu; }
static Gpu<bf16> *in_bf16(Gpu<float> *) { return NULL; }

/* Whether so many streams, where few_streams() does not, take many_kernel: in bf16, columns fill chunks, each tile has
   a block, and what a block has fits into its shared memory. */
static bool many_streams(const Gpu<bf16> *gpu, int streams) {
    if (gpu == NULL) return false;
    const Config *c = &gpu->model.config;
    int major = 0, shared = 0, blocks = gpu->multiprocessors;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
    cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
    return major >= 9 && (int)sizeof(ManyShared) <= shared && streams <= MAX_STREAMS && !has_constants(c) &&
           c->d_model % InTile::WARP_COLUMNS == 0 && c->d_model <= InTile::COLUMNS &&
           c->d_inner % OutTile::WARP_COLUMNS == 0 && c->d_inner <= OutTile::COLUMNS && c->d_state == MANY_STATES &&
           c->dt_rank % 16 == 0 && c->dt_rank <= MANY_RANKS && c->d_conv <= MANY_TAPS &&
           InTile::n_tiles(c->d_inner, streams) <= blocks && DbcTile::n_tiles(dbc_width(c), streams) <= blocks &&
           OutTile::n_tiles(c->d_model, streams) <= blocks;
}

/* Where sample_kernel leaves the embeddings for the next step. */
template <class T> static float *step_input(Gpu<T> *gpu) {
    return gpu->way == FEW_KERNEL    ? few_of(gpu, gpu->streams, gpu->set).x
           : gpu->way == MANY_KERNEL ? many_of(in_bf16(gpu), gpu->streams, gpu->set).x
                                     : gpu->block[0].input;
}

/* gpu->held = the logits after feeding one token to each stream. */
template <class T> static int step(Gpu<T> *gpu) {
    const Config *c = &gpu->model.config;
    int B = gpu->streams;
    if (gpu->way == FEW_KERNEL) {
        FewStep<T> s = few_of(gpu, B, gpu->set);
        CUDA(launch_together(B == 1 ? few_kernel<T, 1> : few_kernel<T, FEW_STREAMS>, dim3(2 * s.halves),
                             dim3(STEP_THREADS), few_shared(s), gpu->stream, s));
        return 0;
    }
    if (gpu->way == MANY_KERNEL) {
        CUDA(launch_together(many_kernel, dim3(gpu->multiprocessors), dim3(STEP_THREADS), sizeof(ManyShared),
                             gpu->stream, many_of(in_bf16(gpu), B, gpu->set)));
        return 0;
    }
    return replay(gpu, &gpu->generate_graph, [=]() -> int {
        TRY(blocks_forward(gpu, gpu->state, B, 1));
        return linear_forward(gpu, gpu->held, gpu->normed, (size_t)c->d_model, in_T(gpu, gpu->w.head), B, c->d_model,
                              c->vocab_size);
    });
}

/* Sampling: sample() of mamba.c, a block for each stream. */
constexpr int SAMPLE_THREADS = 1024, SAMPLE_FETCH = 16, ID_BITS = 20; /* vocab_size is at most 2^ID_BITS */

/* Orders candidates as sample() does, the more probable first and of equal ones the lower id: a larger key comes first.
   The logit's bits are turned into an integer with the order of the floats. 0: no candidate. */
static __device__ __forceinline__ unsigned long long rank_key(float logit, int id) {
    unsigned bits = __float_as_uint(logit);
    if (isnan(logit)) return 0;
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return ((unsigned long long)bits << ID_BITS) | (unsigned long long)((1 << ID_BITS) - 1 - id);
}

static __device__ __forceinline__ int id_of(unsigned long long key) {
    return (1 << ID_BITS) - 1 - (int)(key & ((1 << ID_BITS) - 1));
}

/* A candidate's probability over that of the most probable one; temperature 0: they only count. */
static __device__ __forceinline__ float weight_of(float logit, float top, float temperature) {
    return temperature == 0 || logit == top ? 1 : __expf((logit - top) / temperature);
}

/* The smallest set of candidates, first ranks first, whose weights sum up to `wanted`; returns its last key. The key is
   found two bits at a time, with one pass over the logits for each. */
static __device__ unsigned long long key_reaching(const float *logits, const GpuSampler &s, unsigned long long floor,
                                                  float top, float temperature, float wanted) {
    unsigned long long last = 0;
    for (int bit = 30 + ID_BITS; bit >= 0; bit -= 2) {
        float above[4] = {}; /* above[i]: the weight of the keys from last + i 2^bit on */
        for (int id = threadIdx.x; id < s.n_vocab; id += SAMPLE_THREADS) {
            unsigned long long key = id == s.banned ? 0 : rank_key(logits[id], id);
            float weight = key >= max(last, floor) ? weight_of(logits[id], top, temperature) : 0;
            for (int i = 1; i < 4; i++) above[i] += key >= (last | (unsigned long long)i << bit) ? weight : 0;
        }
        unsigned long long digit = 0;
        for (int i = 1; i < 4; i++) digit += block_sum(above[i]) >= wanted;
        last |= digit << bit;
    }
    return max(last, floor);
}

/* Draws one of the candidates from `floor` on, in the order of ids: the one in which the running sum of weights passes
   u times the whole. Each thread has a share of the vocabulary; the thread in whose share that happens looks for the id
   and leaves it in *pick. */
static __device__ void draw(int *pick, const float *logits, const GpuSampler &s, unsigned long long floor, float top,
                            float u) {
    __shared__ float sums[SAMPLE_THREADS];
    int share = (s.n_vocab + SAMPLE_THREADS - 1) / SAMPLE_THREADS, t = threadIdx.x, first = t * share,
        end = min(first + share, s.n_vocab);
    float own = 0, before;
    for (int id = first; id < end; id++) {
        float weight = weight_of(logits[id], top, s.temperature);
        if (id != s.banned && rank_key(logits[id], id) >= floor && weight >= s.min_p) own += weight;
    }
    sums[t] = own;
    for (int n = 1; n < SAMPLE_THREADS; n *= 2) { /* sums[t] holds n threads' sums up to t's */
        __syncthreads();
        before = t >= n ? sums[t - n] : 0;
        __syncthreads();
        sums[t] += before;
    }
    __syncthreads();
    u *= sums[SAMPLE_THREADS - 1];
    /* the first thread past u; by rounding there may be none, then the last with a candidate */
    int hit = SAMPLE_THREADS - (int)block_max((unsigned long long)(own > 0 && u < sums[t] ? SAMPLE_THREADS - t : 0));
    if (hit == SAMPLE_THREADS) hit = (int)block_max((unsigned long long)(own > 0 ? t : 0));
    if (t != hit) return;
    u -= sums[t] - own;
    for (int id = first; id < end; id++) {
        float weight = weight_of(logits[id], top, s.temperature);
        if (id == s.banned || rank_key(logits[id], id) < floor || weight < s.min_p) continue;
        *pick = id;
        if (u < weight) break;
        u -= weight;
    }
}

/* The n-th sample() of mamba.c for each stream, a block per stream, the threads sharing the vocabulary. The penalty
   changes the logits. The embedding of the sampled token goes to x, for the next step. history: (streams,
   HISTORY_TOKENS), a ring in the first `window`; uniforms, out: (streams, GENERATE_TOKENS); x: (streams, d_model) */
static __global__ void __launch_bounds__(SAMPLE_THREADS)
    sample_kernel(float *all_logits, GpuSampler *samplers, int *all_history, const float *uniforms, int *out, float *x,
                  const float *embedding, int vocab_size, int d_model) {
    __shared__ int pick;
    wait_for_previous();
    let_next_start();
    GpuSampler s = samplers[blockIdx.x];
    float *logits = all_logits + (size_t)blockIdx.x * vocab_size;
    int *history = all_history + (size_t)blockIdx.x * HISTORY_TOKENS, n_held = min(s.n_history, s.window);
    unsigned long long best = 0, floor = 1;

    for (int i = threadIdx.x; i < n_held; i += SAMPLE_THREADS) {
        int id = history[i], seen = id < 0 || id >= s.n_vocab;
        for (int j = 0; j < i && !seen; j++) seen = history[j] == id;
        if (!seen) logits[id] = logits[id] > 0 ? logits[id] / s.repetition_penalty : logits[id] * s.repetition_penalty;
    }
    __syncthreads();
    float largest = -INFINITY; /* of the thread's candidates, and its id */
    int of_largest = -1;
#pragma unroll 1
    for (int first = threadIdx.x; first < s.n_vocab; first += SAMPLE_THREADS * SAMPLE_FETCH) {
        float v[SAMPLE_FETCH];
        for (int k = 0, id = first; k < SAMPLE_FETCH; k++, id += SAMPLE_THREADS)
            v[k] = id < s.n_vocab && id != s.banned ? logits[id] : NAN;
        for (int k = 0, id = first; k < SAMPLE_FETCH; k++, id += SAMPLE_THREADS)
            if (of_largest < 0 ? !isnan(v[k]) : v[k] > largest) largest = v[k], of_largest = id;
    }
    best = of_largest < 0 ? 0 : rank_key(largest, of_largest);
    best = block_max(best);
    if (threadIdx.x == 0) pick = best == 0 ? 0 : id_of(best); /* no candidate at all: 0 */
    __syncthreads();
    if (s.temperature != 0 && best != 0) {
        float top = logits[id_of(best)], sum = 0;
        if (s.top_k > 0 && s.top_k < s.n_vocab) floor = key_reaching(logits, s, floor, top, 0, (float)s.top_k);
        if (s.top_p < 1) {
            for (int id = threadIdx.x; id < s.n_vocab; id += SAMPLE_THREADS)
                if (id != s.banned && rank_key(logits[id], id) >= floor)
                    sum += weight_of(logits[id], top, s.temperature);
            floor = key_reaching(logits, s, floor, top, s.temperature,
                                 fmaxf(s.top_p * block_sum(sum), 1e-30f)); /* at least one */
        }
        draw(&pick, logits, s, floor, top, uniforms[blockIdx.x * GENERATE_TOKENS + s.n_out]);
        __syncthreads();
    }
    for (int i = threadIdx.x; i < d_model; i += SAMPLE_THREADS)
        x[(size_t)blockIdx.x * d_model + i] = sendable(embedding[(size_t)pick * d_model + i]);
    if (threadIdx.x == 0) {
        out[blockIdx.x * GENERATE_TOKENS + s.n_out] = pick;
        if (s.window > 0) {
            history[s.n_history % s.window] = pick;
            if (++s.n_history == 2 * s.window) s.n_history = s.window;
        }
        s.n_out++;
        samplers[blockIdx.x] = s;
    }
}

/* The backend: memory, graphs, and the functions that mamba.c calls, see Backend there. */

/* The activations for a batch, cut out of one allocation; with arena->base NULL only counts. */
template <class T> static void acts_layout(Gpu<T> *gpu, Arena *arena, int batch, int len, int train) {
    const Config *c = &gpu->model.config;
    size_t rows = (size_t)batch * len, D = c->d_model, E = c->d_inner, W = dbc_columns(c), V = c->vocab_size, work, end;
    ScanShape shape = scan_shape_of(c, batch, len, gpu->multiprocessors);
    GpuBlockActs<T> *shared = &gpu->block[0];
    int keep = train && !gpu->lean;
    for (int l = 0; l < (train ? c->n_layer : 1); l++) {
        GpuBlockActs<T> *k = &gpu->block[l];
        take(arena, &k->input, rows * D);
        take(arena, &k->r, rows);
        take(arena, &k->xz, rows * 2 * E);
        take(arena, &k->dbc, rows * W);
        take(arena, &k->gated, rows * E);
        k->kept = NULL;
        if (train) take(arena, &k->kept, scan_checkpoints(shape, batch, len, c->d_inner));
        if (keep) take(arena, &k->normed, rows * D);
        if (keep) take(arena, &k->u, rows * E);
    }
    gpu->head_rows = (int)min(rows, max((size_t)1, HEAD_BYTES / (V * sizeof(T))));
    take(arena, &gpu->x, rows * D);
    take(arena, &gpu->r, rows);
    take(arena, &gpu->normed, rows * D);
    take(arena, &gpu->branch, rows * D);
    take(arena, &gpu->losses, rows);
    take(arena, &gpu->correct, rows);
    take(arena, &gpu->tokens, rows);
    take(arena, &gpu->targets, rows);
    if (train) {
        take(arena, &gpu->order, rows);
        take(arena, &gpu->segment, rows + 1);
        take(arena, &gpu->parts, max(SUM_PARTS * max(2 * E, (size_t)c->d_state), NORM_BLOCKS * D));
        gpu->dx = gpu->x, gpu->dbranch = gpu->dnormed = gpu->branch; /* rmsnorm_backward works in place */
    }
    work = arena->bytes; /* the head and the blocks work one after the other, in the same place */
    take(arena, &gpu->logits, max(gpu->head_rows, 2) * V); /* copy_logits has them in float, at least a row */
    end = arena->bytes, arena->bytes = work;
    take(arena, &gpu->scan_scratch,
         max(scan_scratch(shape, batch, len, c->d_inner, train),
             conv_scratch(batch, len, c->d_inner, gpu->multiprocessors)));
    take(arena, &shared->dt, rows * E);
    if (!keep) take(arena, &shared->normed, rows * D);
    if (!keep) take(arena, &shared->u, rows * E);
    for (int l = 1; l < c->n_layer; l++) {
        if (!train) gpu->block[l] = *shared;
        gpu->block[l].dt = shared->dt;
        if (!keep) gpu->block[l].normed = shared->normed, gpu->block[l].u = shared->u;
    }
    if (train) {
        take(arena, &gpu->dgated, rows * E);
        take(arena, &gpu->dxz, rows * 2 * E);
        take(arena, &gpu->du, rows * E);
        take(arena, &gpu->ddt, rows * E);
        take(arena, &gpu->ddbc, rows * W);
    }
    arena->bytes = max(arena->bytes, end);
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
        return fail("out of memory on the GPU: batch %d x len %d needs %.0f MiB of activations and %.0f MiB are free; "
                    "try a batch of %d%s",
                    batch, len, arena.bytes / 1048576.0, available / 1048576.0,
                    max(1, (int)(0.9 * batch * available / arena.bytes)),
                    train && !gpu->lean ? ", or the lean mode" : "");
    }
    gpu->acts_memory = arena.base;
    arena.bytes = 0;
    acts_layout(gpu, &arena, batch, len, train);
    gpu->host_ids = (int *)allocate(4 * rows + 1 + gpu->model.config.vocab_size + 1, sizeof(int));
    if (gpu->host_ids == NULL) return -1;
    gpu->batch = batch, gpu->len = len, gpu->train = train;
    return 0;
}

/* Replays a graph; the first time captures what `work` launches. One launch of a graph costs less than the launches in
 * it. */
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

template <class T> static int set_args(Gpu<T> *gpu, const UpdateArgs *args) {
    CUDA(cudaMemcpyAsync(gpu->args, args, sizeof *args, cudaMemcpyHostToDevice, gpu->stream));
    return 0;
}

/* order: the rows sorted by their token, stable; segment: where in it the rows of each token that occurs begin, then
 * the end, then -1. */
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

template <class T>
static int gpu_gradient(void *self, const int *tokens, const int *targets, int batch, int len, double scale) {
    Gpu<T> *gpu = (Gpu<T> *)self;
    int rows, n = 0, *order, *segment;
    UpdateArgs args = {};
    TRY(gpu_layout(gpu, batch, len, 1)); /* refuses what an int cannot count */
    rows = batch * len;
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
    UpdateArgs args = {0,
                     (float)o->beta1,
                     (float)o->beta2,
                     (float)(1 - o->beta1),
                     (float)(1 - o->beta2),
                     (float)o->eps,
                     (float)o->weight_decay,
                     (float)o->clip,
                     (float)lr,
                     (float)(1 / (1 - pow(o->beta1, (double)step))),
                     (float)(1 / (1 - pow(o->beta2, (double)step)))};
    TRY(set_args(gpu, &args));
    TRY(replay(gpu, &gpu->update_graph, [=]() -> int {
        float *parts = gpu->norm + 1;
        size_t n = gpu->model.n_param;
        int n_parts = min_int(NORM_PARTS, ceil_div((long)n, 4096)),
            blocks = min_int(4 * gpu->multiprocessors, ceil_div((long)n, 4 * ADAMW_THREADS));
        CUDA(launch(squares_kernel, dim3(n_parts), dim3(1024), 0, gpu->stream, parts, (const float *)gpu->grads, n));
        CUDA(launch(adamw_kernel<T>, dim3(blocks), dim3(ADAMW_THREADS), 0, gpu->stream, gpu->weights, gpu->compute,
                    gpu->grads, gpu->moment1, gpu->moment2, (const unsigned char *)gpu->decay, n, gpu->norm,
                    (const float *)parts, n_parts, (const UpdateArgs *)gpu->args));
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
    size_t B = streams, handed = 0;
    gpu->way = few_streams(gpu, streams)             ? FEW_KERNEL
               : many_streams(in_bf16(gpu), streams) ? MANY_KERNEL
                                                     : BY_LAYERS;
    if (gpu->way == FEW_KERNEL) {
        FewStep<T> step = few_of(gpu, streams, 0);
        handed = 2 * few_handed(&step, NULL);
    } else if (gpu->way == MANY_KERNEL) {
        ManyStep step = many_of(in_bf16(gpu), streams, 0);
        handed = 2 * many_handed(&step, NULL);
        CUDA(cudaFuncSetAttribute(many_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(ManyShared)));
    }
    CUDA(cudaStreamSynchronize(gpu->stream));
    if (streams != gpu->streams) {
        Arena arena = {NULL, 0};
        drop_graph(&gpu->generate_graph);
        cudaFree(gpu->stream_memory);
        gpu->stream_memory = NULL, gpu->handed = NULL, gpu->streams = 0;
        for (int pass = 0; pass < 2; pass++) {
            arena.bytes = 0;
            take(&arena, &gpu->state, state_size(c, streams));
            if (handed > 0) take(&arena, &gpu->handed, handed);
            if (gpu->way == FEW_KERNEL) take(&arena, &gpu->few_u, B * c->d_inner);
            take(&arena, &gpu->samplers, B);
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
    if (gpu->handed != NULL) CUDA(cudaMemsetAsync(gpu->handed, NOT_YET & 0xff, handed, gpu->stream));
    return 0;
}

/* The logits in float of `rows` rows of the normed stream, to the host. */
template <class T> static int copy_logits(Gpu<T> *gpu, float *logits, const T *normed, int rows) {
    int V = gpu->model.config.vocab_size, D = gpu->model.config.d_model,
        step = (int)max((size_t)1, gpu->head_rows * sizeof(T) / sizeof(float));
    for (int first = 0; first < rows; first += step) {
        int part = min(step, rows - first);
        TRY(linear_forward(gpu, (float *)gpu->logits, normed + (size_t)first * D, (size_t)D, in_T(gpu, gpu->w.head),
                           part, D, V));
        CUDA(cudaMemcpyAsync(logits + (size_t)first * V, gpu->logits, (size_t)part * V * sizeof(float),
                             cudaMemcpyDeviceToHost, gpu->stream));
    }
    CUDA(cudaStreamSynchronize(gpu->stream));
    return 0;
}

/* See cpu_feed. */
template <class T> static int gpu_feed(Gpu<T> *gpu, const int *tokens, const int *targets, int len, float *logits,
                                       int all, double *loss, long *n_correct) {
    const Config *c = &gpu->model.config;
    int B = gpu->streams, D = c->d_model, V = c->vocab_size, step = max(1, PIECE_TOKENS / B);
    long n = 0, right = 0;
    double sum = 0;
    UpdateArgs args = {};
    args.scale = 1;
    TRY(set_args(gpu, &args));
    for (int first = 0; first < len; first += step) {
        int part = min(step, len - first), rows = B * part;
        TRY(gpu_layout(gpu, B, part, 0));
        for (int b = 0; b < B; b++) {
            memcpy(gpu->host_ids + b * part, tokens + (size_t)b * len + first, part * sizeof(int));
            if (loss != NULL)
                memcpy(gpu->host_ids + rows + b * part, targets + (size_t)b * len + first, part * sizeof(int));
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
            TRY(linear_forward(gpu, gpu->held, gpu->normed + (size_t)(part - 1) * D, (size_t)part * D,
                               in_T(gpu, gpu->w.head), B, D, V));
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

template <class T>
static int gpu_evaluate(void *self, const int *tokens, const int *targets, int len, double *loss, long *n_correct) {
    return gpu_feed((Gpu<T> *)self, tokens, targets, len, (float *)NULL, 0, loss, n_correct);
}

/* The settings, histories and random numbers of the samplers for the next n tokens, to the device. */
template <class T> static int upload_samplers(Gpu<T> *gpu, Sampler *sampler, int n) {
    for (int b = 0; b < gpu->streams; b++) {
        Sampler *s = &sampler[b];
        float uniforms[GENERATE_TOKENS];
        GpuSampler d = {(float)s->temperature,
                        (float)s->top_p,
                        (float)s->min_p,
                        (float)s->repetition_penalty,
                        s->top_k,
                        s->n_vocab,
                        s->banned,
                        s->penalty_window,
                        s->n_history,
                        0};
        if (s->penalty_window > HISTORY_TOKENS)
            return fail("repetition window is %d, a GPU takes at most %d", s->penalty_window, HISTORY_TOKENS);
        for (int i = 0; i < n && s->temperature != 0; i++) uniforms[i] = (float)random_uniform(&s->rng);
        CUDA(cudaMemcpyAsync(gpu->samplers + b, &d, sizeof d, cudaMemcpyHostToDevice, gpu->stream));
        TRY(upload_ids(gpu, gpu->history + (size_t)b * HISTORY_TOKENS, s->history, s->penalty_window));
        if (s->temperature != 0)
            CUDA(cudaMemcpyAsync(gpu->uniforms + (size_t)b * GENERATE_TOKENS, uniforms, n * sizeof *uniforms,
                                 cudaMemcpyHostToDevice, gpu->stream));
    }
    return 0;
}

template <class T> static int gpu_generate(void *self, int *out, int n, Sampler *sampler) {
    Gpu<T> *gpu = (Gpu<T> *)self;
    const Config *c = &gpu->model.config;
    int B = gpu->streams, ids[GENERATE_TOKENS];
    if (gpu->way == BY_LAYERS) TRY(gpu_layout(gpu, B, 1, 0));
    for (int first = 0; first < n; first += GENERATE_TOKENS) {
        int part = min(GENERATE_TOKENS, n - first);
        TRY(upload_samplers(gpu, sampler, part));
        for (int i = 0; i < part; i++, gpu->set = 1 - gpu->set) {
            CUDA(launch_early(sample_kernel, dim3(B), dim3(SAMPLE_THREADS), 0, gpu->stream, gpu->held, gpu->samplers,
                              gpu->history, (const float *)gpu->uniforms, gpu->out, step_input(gpu),
                              (const float *)gpu->w.embedding.full, c->vocab_size, c->d_model));
            TRY(step(gpu));
        }
        for (int b = 0; b < B; b++) {
            CUDA(cudaMemcpyAsync(ids, gpu->out + (size_t)b * GENERATE_TOKENS, part * sizeof *ids,
                                 cudaMemcpyDeviceToHost, gpu->stream));
            CUDA(cudaStreamSynchronize(gpu->stream));
            for (int i = 0; i < part; i++) sampler_accept(&sampler[b], out[(size_t)b * n + first + i] = ids[i]);
        }
    }
    return 0;
}

template <class T> static int refresh_compute(Gpu<T> *gpu) {
    if ((void *)gpu->compute == (void *)gpu->weights) return 0;
    CUDA(launch(cast_kernel<T>, dim3(4 * gpu->multiprocessors), dim3(256), 0, gpu->stream, gpu->compute,
                (const float *)gpu->weights, gpu->model.n_param));
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
        memset(decay + gpu->model.tensor[i].offset / 16, gpu->model.tensor[i].decay,
               (gpu->model.tensor[i].size + 15) / 16);
    CUDA(cudaMemset(gpu->loss, 0, (2 + NORM_PARTS) * sizeof(float)));
    for (int i = 0; train && i < 3; i++)
        CUDA(cudaMemset(i == 0 ? gpu->grads : i == 1 ? gpu->moment1 : gpu->moment2, 0, n * sizeof(float)));
    if (train) CUDA(cudaMemcpy(gpu->decay, decay, n / 16, cudaMemcpyHostToDevice));
    release(decay);
    table.base = gpu->weights;
    params_table(&table, c, &gpu->w, TYPE_REAL);
    table.size = 0, table.base = gpu->grads;
    if (train) params_table(&table, c, &gpu->g, TYPE_REAL);
    return gpu_copy<T>(gpu, WEIGHTS, gpu->model.weights, 1);
}

/* All of a Gpu that is there from the start, and what device it is; what fails midway is left to gpu_close. */
template <class T> static int gpu_start(Gpu<T> *gpu, struct cudaDeviceProp *device, int train) {
    const Config *c = &gpu->model.config;
    struct cudaFuncAttributes attributes;
    gpu->w.block = (BlockParams *)allocate((size_t)c->n_layer, sizeof(BlockParams));
    gpu->g.block = (BlockParams *)allocate((size_t)c->n_layer, sizeof(BlockParams));
    gpu->block = (GpuBlockActs<T> *)allocate((size_t)c->n_layer, sizeof *gpu->block);
    if (gpu->w.block == NULL || gpu->g.block == NULL || gpu->block == NULL) return -1;
    CUDA(cudaGetDeviceProperties(device, 0));
    if (cudaFuncGetAttributes(&attributes, sample_kernel) != cudaSuccess) {
        cudaGetLastError();
        return fail("cuda: this program has no kernels for %.80s (compute capability %d.%d): build it there, or with "
                    "make CUDA_ARCH=all",
                    device->name, device->major, device->minor);
    }
    gpu->multiprocessors = device->multiProcessorCount;
    CUDA(cudaStreamCreate(&gpu->stream));
    CUBLAS(cublasCreate(&gpu->blas));
    CUBLAS(cublasSetStream(gpu->blas, gpu->stream));
    TRY(parameters_create(gpu, train));
    CUBLAS(cublasSetWorkspace(gpu->blas, gpu->blas_workspace, BLAS_WORKSPACE));
    return gpu_reset<T>(gpu, 1);
}

template <class T> static int gpu_open(Backend *backend, const Model *m, int tf32, int train, int lean) {
    Gpu<T> *gpu = (Gpu<T> *)allocate(1, sizeof *gpu);
    struct cudaDeviceProp device;
    if (gpu == NULL) return -1;
    gpu->model = *m, gpu->tf32 = tf32, gpu->lean = lean;
    if (gpu_start(gpu, &device, train) != 0) {
        gpu_close<T>(gpu);
        return -1;
    }
    memset(backend, 0, sizeof *backend);
    backend->device = "cuda";
    snprintf(backend->description, sizeof backend->description, "%.80s, %s%s", device.name,
             sizeof(T) == 2 ? "bf16"
             : tf32         ? "tf32"
                            : "fp32",
             lean ? ", lean" : "");
    backend->config = m->config, backend->self = gpu;
    backend->gradient = gpu_gradient<T>, backend->update = gpu_update<T>, backend->evaluate = gpu_evaluate<T>,
    backend->reset = gpu_reset<T>;
    backend->forward = gpu_forward<T>, backend->generate = gpu_generate<T>, backend->copy = gpu_copy<T>,
    backend->close = gpu_close<T>;
    return 0;
}

/* See mamba.c; both others come after fail(). */
extern "C" int cuda_find(void) {
    int n_devices = 0, driver = 0, runtime = 0;
    cudaError_t error = cudaGetDeviceCount(&n_devices);
    cudaGetLastError(); /* it is told here */
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (error == cudaErrorNoDevice || driver == 0 || (error == cudaSuccess && n_devices == 0)) {
        fail("no GPU found");
        return 1;
    }
    if (error == cudaErrorInsufficientDriver)
        return fail("cuda: the GPU's driver is too old: it is for CUDA %d.%d, this program for CUDA %d.%d",
                    driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    return error == cudaSuccess ? 0 : fail("cuda: %s", cudaGetErrorString(error));
}

/* Opens the model on the first GPU. dtype: "fp32", "tf32" (matrix products round their operands to 10 bits of mantissa)
   or "bf16"; NULL: fp32. train: with gradients and moments; lean: computes part of the activations again in backward
   rather than keeping them. */
extern "C" int cuda_backend(Backend *backend, const Model *m, const char *dtype, int train, int lean) {
    if (cuda_find() != 0) return -1;
    if (dtype == NULL) dtype = "fp32";
    if (strcmp(dtype, "bf16") == 0) return gpu_open<bf16>(backend, m, 0, train, lean);
    if (strcmp(dtype, "fp32") != 0 && strcmp(dtype, "tf32") != 0)
        return fail("--dtype: unknown type '%s', expected fp32, tf32 or bf16", dtype);
    return gpu_open<float>(backend, m, strcmp(dtype, "tf32") == 0, train, lean);
}
