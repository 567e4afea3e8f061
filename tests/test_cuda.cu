/* Tests of mamba.cu against mamba.c in double: each operation, then the model. One source for two machines:

       g++ -x c++ -std=c++17 -DCUDA_ON_CPU ... tests/test_cuda.cu      on cuda_on_cpu.h, without a GPU
       nvcc -std=c++17 ... tests/test_cuda.cu -lcublas                 on a GPU

   The argument "full" (the default on a GPU) adds what an emulated GPU is too slow or too small for; "quick" leaves it
   out. Whatever runs, runs several times: on the emulation under different orders of threads and blocks, and must give
   the same bits. "brief", for sanitizers (the default under AddressSanitizer), runs it once and leaves out what repeats
   accesses to memory with other numbers; every kernel is in it. Device memory starts as NaN, so that an element which
   nobody writes is seen.

   SPDX-License-Identifier: MIT */
#include <algorithm>
#include <string>
#include <vector>
#ifdef CUDA_ON_CPU
#include <cxxabi.h>
#else
#include <cublas_v2.h>
#include <cuda_runtime.h>
/* Not under initcheck, to which a poisoned byte is an initialised one. It does not see what cuBLAS writes in bf16, so
   there a kernel clears this before; reads of anything else that nobody wrote are reported. */
static bool poison = true;
template <class T> static cudaError_t poisoned_malloc(T **p, size_t bytes) {
    cudaError_t error = cudaMalloc(p, bytes);
    return error == cudaSuccess && poison ? cudaMemset(*p, 0xff, bytes) : error;
}
static __global__ void clear_kernel(unsigned short *c, size_t ld, int m) {
    for (int i = threadIdx.x; i < m; i += blockDim.x) c[blockIdx.x * ld + i] = 0;
}
static cublasStatus_t cleared_gemm(cublasHandle_t blas, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n,
                                   int k, const void *alpha, const void *a, cudaDataType type_a, int lda, const void *b,
                                   cudaDataType type_b, int ldb, const void *beta, void *c, cudaDataType type_c,
                                   int ldc, cublasComputeType_t compute, cublasGemmAlgo_t algorithm) {
    cudaStream_t stream;
    int halves = type_c == CUDA_R_32F ? 2 : 1;
    cublasGetStream(blas, &stream);
    if (!poison && type_a == CUDA_R_16BF && *(const float *)beta == 0)
        clear_kernel<<<n, 128, 0, stream>>>((unsigned short *)c, (size_t)ldc * halves, m * halves);
    return cublasGemmEx(blas, op_a, op_b, m, n, k, alpha, a, type_a, lda, b, type_b, ldb, beta, c, type_c, ldc, compute,
                        algorithm);
}
#define cudaMalloc poisoned_malloc
#define cublasGemmEx cleared_gemm
#endif
#include "../mamba.cu"

/* mamba.c once more, in double: the oracle. Renamed is what takes a FILE, a global type, for which C++ would look among
   the global functions too. */
#undef MAMBA_REAL
#define MAMBA_REAL double
#define read_bytes oracle_read_bytes
#define read_text oracle_read_text
namespace oracle {
#include "../mamba.c"
}
#include "check.h"

typedef std::vector<double> Doubles;
typedef std::vector<Doubles> Results;
typedef std::vector<int> Ints;

static bool full, brief;
static uint64_t rng = 1;
static char where[256]; /* the case at hand, for messages */

/* Names a case, and seeds its random numbers by its name: the same in any selection of tests. */
__attribute__((format(printf, 1, 2))) static void begin(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(where, sizeof where, format, args);
    va_end(args);
    rng = 1;
    for (const char *c = where; *c != '\0'; c++) rng = rng * 31 + (unsigned char)*c;
}

/* fp32: the largest error, in units of the RMS of what is expected; bf16: the RMS of the errors. A bf16 number is off
   by up to 2^-9 of itself, in RMS 1.1e-3. */
constexpr double FORWARD = 1e-5, GRADIENT = 1e-4, BF16 = 4e-3;

static void agree(const char *file, int line, const char *what, const Doubles &got, const Doubles &expected,
                  bool in_rms, double tolerance) {
    double largest = 0, squares = 0, scale = 0, error;
    size_t n = expected.size();
    bool numbers = got.size() == n;
    for (size_t i = 0; i < n && numbers; i++) {
        error = fabs(got[i] - expected[i]);
        numbers = error <= 1e300;
        largest = error > largest ? error : largest;
        squares += error * error, scale += expected[i] * expected[i];
    }
    scale = scale > 0 ? sqrt(scale / n) : 1;
    error = (in_rms ? sqrt(squares / (n > 0 ? n : 1)) : largest) / scale;
    if (numbers && error <= tolerance) check_passed++;
    else {
        check_failed++;
        printf("%s:%d: %s: %s is off by %.3g of its RMS, more than %.3g%s\n", file, line, where, what, error, tolerance,
               numbers ? "" : ", or no number");
    }
}

#define AGREE(got, expected, tolerance) agree(__FILE__, __LINE__, #got, got, expected, false, tolerance)
#define AGREE_RMS(got, expected, tolerance) agree(__FILE__, __LINE__, #got, got, expected, true, tolerance)
/* Of numbers that were kept as T. */
#define AGREE_AS(T, got, expected, tolerance)                                                                          \
    agree(__FILE__, __LINE__, #got, got, expected, sizeof(T) == 2, sizeof(T) == 2 ? (double)BF16 : (double)(tolerance))
#define OK(call)                                                                                                       \
    ((call) == 0                                                                                                       \
         ? (void)check_passed++                                                                                        \
         : (void)(check_failed++, printf("%s:%d: %s: %s: %s\n", __FILE__, __LINE__, where, #call, error_message)))

/* Random numbers that T holds exactly, so that both sides start from the same. */
template <class T> static Doubles uniform(size_t n, double low, double high) {
    Doubles v(n);
    for (double &x : v) x = (double)(float)(T)(float)(low + (high - low) * random_uniform(&rng));
    return v;
}

static Ints random_ids(size_t n, int end) {
    Ints v(n);
    for (int &x : v) x = (int)(random_bits(&rng) % end);
    return v;
}

/* The id i counts[i] times, in random order. */
static Ints shuffled_ids(const Ints &counts) {
    Ints v;
    for (size_t i = 0; i < counts.size(); i++) v.insert(v.end(), counts[i], (int)i);
    for (size_t i = v.size(); i > 1; i--) std::swap(v[i - 1], v[random_bits(&rng) % i]);
    return v;
}

/* An array on the device, whose values the host sees as doubles. */
template <class T> struct Array {
    T *device;
    size_t n;
    explicit Array(size_t n_) : device(nullptr), n(n_) {
        CHECK(cudaMalloc(&device, (n + 1) * sizeof(T)) == cudaSuccess);
        poison();
    }
    explicit Array(const Doubles &v) : Array(v.size()) { set(v); }
    ~Array() { cudaFree(device); }
    Array(const Array &) = delete;
    void operator=(const Array &) = delete;
    void poison() { CHECK(cudaMemset(device, 0xff, n * sizeof(T)) == cudaSuccess); }
    void set(const Doubles &v) {
        std::vector<T> host(n);
        for (size_t i = 0; i < n; i++) host[i] = (T)(float)v[i];
        CHECK(cudaMemcpy(device, host.data(), n * sizeof(T), cudaMemcpyHostToDevice) == cudaSuccess);
    }
    Doubles get() const {
        std::vector<T> host(n);
        Doubles v(n);
        CHECK(cudaDeviceSynchronize() == cudaSuccess);
        CHECK(cudaMemcpy(host.data(), device, n * sizeof(T), cudaMemcpyDeviceToHost) == cudaSuccess);
        for (size_t i = 0; i < n; i++) v[i] = (double)(float)host[i];
        return v;
    }
};

template <class T> static Doubles device_values(const T *p, size_t n) {
    std::vector<T> host(n);
    Doubles v(n);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    CHECK(cudaMemcpy(host.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost) == cudaSuccess);
    for (size_t i = 0; i < n; i++) v[i] = (double)host[i];
    return v;
}

/* The columns from `first` on of a (rows, width) array. */
static Doubles columns(const Doubles &v, size_t width, size_t first, size_t n) {
    Doubles part;
    for (size_t row = 0; row < v.size() / width; row++)
        part.insert(part.end(), &v[row * width + first], &v[row * width + first] + n);
    return part;
}

/* The last n numbers, which *v loses. */
static Doubles take_end(Doubles *v, size_t n) {
    Doubles end(v->end() - n, v->end());
    v->resize(v->size() - n);
    return end;
}

static bool untouched(const Doubles &v) {
    for (double x : v)
        if (x == x) return false;
    return true;
}

static Doubles sum(Doubles a, const Doubles &b) {
    for (size_t i = 0; i < a.size(); i++) a[i] += b[i];
    return a;
}

static bool same(const Results &a, const Results &b) {
    bool equal = a.size() == b.size();
    for (size_t i = 0; equal && i < a.size(); i++)
        equal = a[i].size() == b[i].size() && memcmp(a[i].data(), b[i].data(), a[i].size() * sizeof(double)) == 0;
    return equal;
}

/* What `work` returns, which must not depend on the order of threads and blocks, nor change from run to run. */
template <class Work> static Results repeated(Work work, int times = 3) {
    Results first = work();
    if (brief) times = 1;
#ifdef CUDA_ON_CPU
    for (int i = 0; i < times - 1; i++) {
        cuda_on_cpu::schedule = i == 0 ? cuda_on_cpu::REVERSE : cuda_on_cpu::RANDOM;
        if (!same(work(), first)) CHECK(!"the same bits under every schedule"), printf("%s\n", where);
        else check_passed++;
    }
    cuda_on_cpu::schedule = cuda_on_cpu::FORWARD;
#else
    if (times > 1 && !same(work(), first)) CHECK(!"the same bits twice"), printf("%s\n", where);
    else check_passed++;
#endif
    return first;
}

/* 3. LAYERS ==================================================================================================== */

/* Enough of a Gpu for the launchers that take one. */
template <class T> struct Bench : Gpu<T> {
    Array<float> sums;
    Bench(int d_model, int tf32_ = 0) : Gpu<T>(), sums((size_t)NORM_BLOCKS * (d_model < 200 ? 200 : 20)) {
        this->model.config.d_model = d_model, this->model.config.norm_eps = 1e-5;
        this->multiprocessors = 3, this->tf32 = tf32_, this->parts = sums.device;
        CHECK(cudaStreamCreate(&this->stream) == cudaSuccess && cublasCreate(&this->blas) == CUBLAS_STATUS_SUCCESS);
        CHECK(cublasSetStream(this->blas, this->stream) == CUBLAS_STATUS_SUCCESS);
    }
    ~Bench() { cublasDestroy(this->blas), cudaStreamDestroy(this->stream); }
};

static void test_embedding(const Ints &tokens, int vocab_size, int d_model) {
    int rows = (int)tokens.size();
    begin("embedding rows %d vocab %d d_model %d", rows, vocab_size, d_model);
    Doubles W = uniform<float>((size_t)vocab_size * d_model, -1, 1), dy = uniform<float>((size_t)rows * d_model, -1, 1);
    Doubles dW = uniform<float>(W.size(), -1, 1), expected = dW, y_expected(dy.size());
    Ints order(rows), segment(rows + 1), count(vocab_size + 1);
    oracle::embedding_forward(y_expected.data(), oracle::as_matrix(W.data()), tokens.data(), rows, d_model);
    oracle::embedding_backward(oracle::as_matrix(expected.data()), dy.data(), tokens.data(), rows, d_model);
    sort_rows(order.data(), segment.data(), count.data(), tokens.data(), rows, vocab_size);
    Array<float> W_d(W), dy_d(dy), dW_d(dW), y_d(dy.size());
    Array<int> tokens_d(rows), order_d(rows), segment_d(rows + 1);
    CHECK(cudaMemcpy(tokens_d.device, tokens.data(), rows * sizeof(int), cudaMemcpyHostToDevice) == cudaSuccess);
    CHECK(cudaMemcpy(order_d.device, order.data(), rows * sizeof(int), cudaMemcpyHostToDevice) == cudaSuccess);
    CHECK(cudaMemcpy(segment_d.device, segment.data(), (rows + 1) * sizeof(int), cudaMemcpyHostToDevice) ==
          cudaSuccess);
    Results r = repeated([&] {
        y_d.poison(), dW_d.set(dW), dy_d.set(dy);
        CHECK(launch(embedding_kernel, dim3(rows), dim3(128), 0, nullptr, y_d.device, W_d.device, tokens_d.device,
                     d_model) == cudaSuccess);
        OK(embedding_backward(dW_d.device, dy_d.device, tokens_d.device, order_d.device, segment_d.device, rows,
                              vocab_size, d_model, nullptr));
        return Results{y_d.get(), dW_d.get()};
    });
    AGREE(r[0], y_expected, 0);
    AGREE(r[1], expected, GRADIENT);
}

/* with: 0 norm alone, 1 residual, 2 residual and bias */
template <class T> static void test_rmsnorm(int rows, int dim, int with) {
    begin("rmsnorm rows %d dim %d with %d", rows, dim, with);
    size_t n = (size_t)rows * dim;
    Bench<T> gpu(dim);
    Doubles x = uniform<float>(n, -1, 1), branch = uniform<T>(n, -2, 2), bias = uniform<float>(dim, -1, 1),
            w = uniform<float>(dim, 0, 2);
    Doubles dy = uniform<T>(n, -1, 1), dx = uniform<float>(n, -1, 1), dw = uniform<float>(dim, -1, 1);
    Doubles out = x, y(n), r(rows), set(n, 0.0), added = dx, dw_expected = dw, dbias_expected = bias, ignored = dw;
    for (size_t i = 0; i < n && with; i++) out[i] += branch[i] + (with == 2 ? bias[i % dim] : 0);
    oracle::rmsnorm_forward(y.data(), r.data(), out.data(), w.data(), rows, dim, 1e-5);
    oracle::rmsnorm_backward(added.data(), dw_expected.data(), dy.data(), out.data(), r.data(), w.data(), rows, dim);
    oracle::rmsnorm_backward(set.data(), ignored.data(), dy.data(), out.data(), r.data(), w.data(), rows, dim);
    oracle::bias_backward(dbias_expected.data(), dy.data(), dim, rows, dim);

    Array<float> x_d(x), bias_d(bias), w_d(w), out_d(n), r_d(rows), dx_d(n), dw_d(dw), dbias_d(bias);
    Array<T> branch_d(branch), y_d(n), dy_d(dy), dx_T(n);
    gpu.dx = dx_d.device, gpu.dbranch = dx_T.device;
    const float *normed = with ? out_d.device : x_d.device;
    Results g = repeated([&] {
        out_d.poison(), r_d.poison(), y_d.poison(), dx_T.poison(), dx_d.set(dx), dw_d.set(dw), dbias_d.set(bias);
        OK(residual_rmsnorm(static_cast<Gpu<T> *>(&gpu), y_d.device, r_d.device, with ? out_d.device : (float *)nullptr,
                            x_d.device, with ? branch_d.device : (const T *)nullptr,
                            with == 2 ? bias_d.device : (const float *)nullptr, w_d.device, rows));
        OK(rmsnorm_backward(static_cast<Gpu<T> *>(&gpu), dw_d.device, dy_d.device, normed, r_d.device, w_d.device, rows,
                            1));
        OK(bias_backward(static_cast<Gpu<T> *>(&gpu), dbias_d.device, (const T *)dy_d.device, (size_t)dim, rows, dim));
        return Results{out_d.get(), y_d.get(), r_d.get(), dx_d.get(), dx_T.get(), dw_d.get(), dbias_d.get()};
    });
    if (with) AGREE(g[0], out, FORWARD);
    else CHECK(untouched(g[0]));
    AGREE_AS(T, g[1], y, FORWARD);
    AGREE(g[2], r, FORWARD);
    AGREE(g[3], added, GRADIENT);
    AGREE_AS(T, g[4], added, GRADIENT);
    AGREE(g[5], dw_expected, GRADIENT);
    AGREE(g[6], dbias_expected, GRADIENT);
    dx_d.poison();
    OK(rmsnorm_backward(static_cast<Gpu<T> *>(&gpu), dw_d.device, dy_d.device, normed, r_d.device, w_d.device, rows,
                        0));
    AGREE(dx_d.get(), set, GRADIENT);
    gpu.dx = with ? out_d.device : x_d.device, gpu.dbranch = dy_d.device; /* in place */
    OK(rmsnorm_backward(static_cast<Gpu<T> *>(&gpu), dw_d.device, dy_d.device, gpu.dx, r_d.device, w_d.device, rows,
                        0));
    AGREE(device_values(gpu.dx, n), set, GRADIENT);
    AGREE_AS(T, dy_d.get(), set, GRADIENT);
    y_d.set(branch);
    CHECK(launch(add_bias_kernel<T>, dim3(3), dim3(256), 0, gpu.stream, y_d.device, bias_d.device, (size_t)rows, dim) ==
          cudaSuccess);
    Doubles sums = branch;
    for (size_t i = 0; i < n; i++) sums[i] += bias[i % dim];
    AGREE_AS(T, y_d.get(), sums, FORWARD);
}

/* Matrix products, with rows longer than what is used of them. tf32: operands are rounded to 10 bits, an error of
 * 2^-11. */
template <class T> static void test_linear(int rows, int in, int out, int tf32) {
    begin("linear rows %d in %d out %d, %d bytes, tf32 %d", rows, in, out, (int)sizeof(T), tf32);
    size_t ldx = in + 3;
    double forward = tf32 ? 3e-3 : FORWARD, gradient = tf32 ? 3e-3 : GRADIENT;
    Bench<T> bench(in, tf32);
    Gpu<T> *gpu = &bench;
    Doubles x = uniform<T>(rows * ldx, -1, 1), W = uniform<T>((size_t)out * in, -1, 1),
            dy = uniform<T>((size_t)rows * out, -1, 1);
    Doubles y((size_t)rows * out), dx = uniform<T>(rows * ldx, -1, 1), dW = uniform<float>(W.size(), -1, 1),
                                   dx_set(dx.size());
    Doubles dx_expected = dx, dW_expected = dW, ignored = dW;
    oracle::Matrix matrix = oracle::as_matrix(W.data());
    oracle::linear_forward(y.data(), x.data(), ldx, matrix, NULL, rows, in, out);
    oracle::linear_backward(dx_expected.data(), oracle::as_matrix(dW_expected.data()), NULL, dy.data(), x.data(), ldx,
                            matrix, rows, in, out, 1);
    oracle::linear_backward(dx_set.data(), oracle::as_matrix(ignored.data()), NULL, dy.data(), x.data(), ldx, matrix,
                            rows, in, out, 0);
    Array<T> x_d(x), W_d(W), dy_d(dy), y_T(y.size()), dx_d(dx.size());
    Array<float> dW_d(dW), y_float(y.size());
    Results r = repeated([&] {
        y_T.poison(), y_float.poison(), dx_d.set(dx), dW_d.set(dW);
        OK(linear_forward(gpu, y_T.device, x_d.device, ldx, W_d.device, rows, in, out));
        OK(linear_forward(gpu, y_float.device, x_d.device, ldx, W_d.device, rows, in, out));
        OK(linear_backward(gpu, dx_d.device, dW_d.device, dy_d.device, x_d.device, ldx, W_d.device, rows, in, out, 1));
        return Results{y_T.get(), y_float.get(), dx_d.get(), dW_d.get()};
    });
    AGREE_AS(T, r[0], y, forward);
    AGREE(r[1], y, forward);
    AGREE_AS(T, columns(r[2], ldx, 0, in), columns(dx_expected, ldx, 0, in), gradient);
    CHECK(columns(r[2], ldx, in, 3) == columns(dx, ldx, in, 3));
    AGREE(r[3], dW_expected, gradient);
    dx_d.poison();
    OK(linear_backward(gpu, dx_d.device, dW_d.device, dy_d.device, x_d.device, ldx, W_d.device, rows, in, out, 0));
    AGREE_AS(T, columns(dx_d.get(), ldx, 0, in), columns(dx_set, ldx, 0, in), gradient);
    CHECK(untouched(columns(dx_d.get(), ldx, in, 3)));
}

/* The inputs of a convolution or a scan lie in wider rows: x in the first half of (rows, 2 d_inner), B and C after
   `rank` columns. Where `whole`, the state comes in, goes out, and is stepped over. */
template <class T> static void test_conv(int batch, int len, int E, int K, bool biased, bool with_state) {
    begin("conv batch %d len %d d_inner %d d_conv %d, %d bytes", batch, len, E, K, (int)sizeof(T));
    int multiprocessors = len % 2 ? 1 : 100; /* of the device that it is cut up for */
    size_t rows = (size_t)batch * len, state = (size_t)(K - 1) * E + 7;
    Doubles x = uniform<T>(rows * 2 * E, -2, 2), w = uniform<float>((size_t)E * K, -1, 1),
            bias = uniform<float>(E, -1, 1);
    Doubles du = uniform<T>(rows * E, -1, 1),
            from = with_state ? uniform<float>(batch * state, -1, 1) : Doubles(batch * state, 0.0);
    Doubles dw = uniform<float>(w.size(), -1, 1), dbias = uniform<float>(E, -1, 1), u(rows * E), to = from,
            dx(x.size()), dw_expected = dw;
    Doubles dbias_expected = dbias, start = from;
    const double *bias_or_not = biased ? bias.data() : NULL;
    oracle::conv_forward(u.data(), x.data(), 2 * E, w.data(), bias_or_not, start.data(), to.data(), state, batch, len,
                         E, K);
    oracle::conv_backward(dx.data(), dw_expected.data(), biased ? dbias_expected.data() : NULL, du.data(), x.data(),
                          2 * E, w.data(), bias_or_not, start.data(), state, batch, len, E, K);
    Array<T> x_d(x), u_d(rows * E), du_d(du), dx_d(rows * 2 * E);
    Array<float> w_d(w), bias_d(bias), from_d(from), to_d(from), dw_d(dw), dbias_d(dbias),
        scratch(conv_scratch(batch, len, E, multiprocessors));
    Conv<T> s = {};
    s.batch = batch, s.len = len, s.d_inner = E, s.d_conv = K, s.multiprocessors = multiprocessors;
    s.x = x_d.device, s.ld_x = 2 * E, s.u = u_d.device, s.ld_u = E;
    s.weight = w_d.device, s.bias = biased ? bias_d.device : nullptr, s.first = with_state ? from_d.device : nullptr,
    s.last = to_d.device;
    s.ld_state = state, s.scratch = scratch.device, s.du = du_d.device, s.ld_du = E, s.dx = dx_d.device,
    s.ld_dx = 2 * E;
    s.dweight = dw_d.device, s.dbias = biased ? dbias_d.device : nullptr;
    Results r = repeated([&] {
        u_d.poison(), dx_d.poison(), scratch.poison(), to_d.set(from), dw_d.set(dw), dbias_d.set(dbias);
        OK(conv_forward(s, nullptr));
        scratch.poison();
        OK(conv_backward(s, nullptr));
        return Results{u_d.get(), to_d.get(), dx_d.get(), dw_d.get(), dbias_d.get()};
    });
    AGREE_AS(T, r[0], u, FORWARD);
    if (K > 1) AGREE(r[1], to, FORWARD);
    AGREE_AS(T, columns(r[2], 2 * E, 0, E), columns(dx, 2 * E, 0, E), GRADIENT);
    CHECK(untouched(columns(r[2], 2 * E, E, E)));
    AGREE(r[3], dw_expected, GRADIENT);
    AGREE(r[4], dbias_expected, GRADIENT);

    /* in two pieces, the state in place */
    int cut = 1 + (int)(random_bits(&rng) % len);
    u_d.poison(), to_d.set(from);
    s.first = s.last = to_d.device;
    for (int piece = 0; piece < 2; piece++) {
        int begin = piece == 0 ? 0 : cut, end = piece == 0 ? cut : len;
        if (begin == end) continue;
        for (int b = 0; b < batch; b++) { /* pieces of one sequence: rows of a batch would not be `len` apart */
            Conv<T> part = s;
            part.batch = 1, part.len = end - begin, part.x = s.x + ((size_t)b * len + begin) * s.ld_x,
            part.u = s.u + ((size_t)b * len + begin) * E;
            part.first = part.last = to_d.device + b * state;
            OK(conv_forward(part, nullptr));
        }
    }
    AGREE_AS(T, u_d.get(), u, FORWARD);
    if (K > 1) AGREE(to_d.get(), to, FORWARD);
}

/* A scan to test. multiprocessors: of the device that it is cut up for; dt: its range; decay: 0 for A in (-8, 0), else
 * A is -decay. */
struct ScanCase {
    int batch, len, d_inner, d_state, multiprocessors;
    double dt_low, dt_high, decay;
    int dt_rank;
    bool with_state, direct; /* direct: D is not 0 */
};

template <class T> static void test_scan(ScanCase c) {
    begin("scan batch %d len %d d_inner %d d_state %d for %d multiprocessors, dt %g to %g, decay %g, %d bytes",
          c.batch, c.len, c.d_inner, c.d_state, c.multiprocessors, c.dt_low, c.dt_high, c.decay, (int)sizeof(T));
    int batch = c.batch, len = c.len, E = c.d_inner, N = c.d_state, R = c.dt_rank, W = R + 2 * N, rows = batch * len;
    size_t state = (size_t)N * E + 5, n = (size_t)rows * E;
    Doubles u = uniform<T>(n, -1, 1), dt = uniform<T>(n, c.dt_low, c.dt_high), xz = uniform<T>(2 * n, -3, 3);
    Doubles dbc = uniform<T>((size_t)rows * W, -1, 1), d_out = uniform<T>(n, -1, 1), D = uniform<float>(E, -1, 1),
            bias = uniform<float>(E, -0.1, 0.1);
    Doubles A_log = uniform<float>((size_t)E * N, -3, 2), from = uniform<float>(batch * state, -1, 1),
            dA = uniform<float>(A_log.size(), -1, 1);
    Doubles dD = uniform<float>(E, -1, 1), dbias = uniform<float>(E, -1, 1);
    if (!c.with_state) from.assign(from.size(), 0.0);
    if (!c.direct) D.assign(E, 0.0);
    if (c.decay > 0) A_log.assign(A_log.size(), (double)(float)log(c.decay));

    Doubles delta = dt, y(n), out(n), to = from, kept((size_t)batch * oracle::scan_chunks(len) * N * E), du(n),
            ddelta(n), dxz(2 * n), ddbc(dbc.size());
    Doubles dy = d_out, dA_expected(dA.size(), 0.0), dD_expected(E, 0.0), dbias_expected(E, 0.0);
    Doubles part_BC((size_t)oracle::scan_shares(E) * rows * 2 * N), part_A((size_t)batch * (N + 1) * E);
    size_t shares = (size_t)batch * oracle::scan_shares(E);
    double *share = (double *)oracle::allocate(shares * oracle::share_size(N), sizeof(double));
    double *z = xz.data() + E, *dz = dxz.data() + E, *B = dbc.data() + R, *C = B + N, *dB = ddbc.data() + R,
           *dC = dB + N;
    oracle::ScanInput in = {u.data(), delta.data(), {B, C, (size_t)W, (size_t)W}, A_log.data(), D.data()};
    oracle::ScanInput grad = {du.data(), ddelta.data(), {dB, dC, (size_t)W, (size_t)W}, dA_expected.data(),
                              dD_expected.data()};
    oracle::ScanWork work = {part_BC.data(), part_A.data(), share};
    oracle::delta_forward(delta.data(), bias.data(), rows, E);
    oracle::scan_forward(y.data(), kept.data(), in, from.data(), to.data(), state, batch, len, E, N);
    oracle::gate_forward(out.data(), y.data(), z, 2 * E, rows, E);
    oracle::gate_backward(dy.data(), dz, y.data(), z, 2 * E, rows, E);
    oracle::scan_backward(grad, dy.data(), kept.data(), in, work, batch, len, E, N);
    oracle::delta_backward(ddelta.data(), dbias_expected.data(), delta.data(), rows, E);
    oracle::release(share);

    ScanShape shape = scan_shape(batch, len, E, N, c.multiprocessors);
    if (len >= 300) CHECK((shape.chunks > 1) == (c.multiprocessors > 1) && shape.chunks_backward >= shape.chunks / 2);
    size_t scratch_forward = scan_scratch(shape, batch, len, E, 0),
           scratch_backward = scan_scratch(shape, batch, len, E, 1);
    Array<T> u_d(u), dt_d(dt), xz_d(xz), dbc_d(dbc), d_out_d(d_out), out_d(n), du_d(n), ddt_d(n), dxz_d(2 * n),
        ddbc_d(dbc.size());
    Array<float> A_d(A_log), D_d(D), bias_d(bias), from_d(from), to_d(from), dA_d(dA), dD_d(dD), dbias_d(dbias);
    Array<float> kept_d(scan_checkpoints(shape, batch, len, E)),
        scratch(scratch_backward > scratch_forward ? scratch_backward : scratch_forward);
    Scan<T> s = {};
    s.batch = batch, s.len = len, s.d_inner = E, s.d_state = N;
    s.u = u_d.device, s.dt = dt_d.device, s.z = xz_d.device + E, s.B = dbc_d.device + R, s.C = s.B + N;
    s.ld_u = s.ld_dt = s.ld_out = s.ld_d_out = s.ld_du = s.ld_ddt = E, s.ld_z = s.ld_dz = 2 * E;
    s.ld_b = s.ld_c = s.ld_dbc = W;
    s.A_log = A_d.device, s.D = D_d.device, s.dt_bias = bias_d.device,
    s.h_first = c.with_state ? from_d.device : nullptr, s.h_last = to_d.device;
    s.ld_h = state, s.out = out_d.device, s.checkpoints = kept_d.device, s.scratch = scratch.device;
    s.d_out = d_out_d.device, s.du = du_d.device, s.ddt = ddt_d.device, s.dz = dxz_d.device + E,
    s.dB = ddbc_d.device + R, s.dC = s.dB + N;
    s.dA_log = dA_d.device, s.dD = dD_d.device, s.ddt_bias = dbias_d.device;
    Results r = repeated(
        [&] {
            out_d.poison(), kept_d.poison(), scratch.poison(), du_d.poison(), ddt_d.poison(), dxz_d.poison(),
                ddbc_d.poison();
            to_d.set(from), dA_d.set(dA), dD_d.set(dD), dbias_d.set(dbias);
            OK(scan_forward(s, shape, nullptr));
            scratch.poison();
            OK(scan_backward(s, shape, nullptr));
            return Results{out_d.get(),  to_d.get(), du_d.get(), ddt_d.get(),  dxz_d.get(),
                           ddbc_d.get(), dA_d.get(), dD_d.get(), dbias_d.get()};
        },
        len > 10000 ? 1 : 3);
    AGREE_AS(T, r[0], out, FORWARD);
    AGREE(r[1], to, FORWARD);
    AGREE_AS(T, r[2], du, GRADIENT);
    AGREE_AS(T, r[3], ddelta, GRADIENT);
    AGREE_AS(T, columns(r[4], 2 * E, E, E), columns(dxz, 2 * E, E, E), GRADIENT);
    CHECK(untouched(columns(r[4], 2 * E, 0, E)));
    AGREE_AS(T, columns(r[5], W, R, N), columns(ddbc, W, R, N), GRADIENT);
    AGREE_AS(T, columns(r[5], W, R + N, N), columns(ddbc, W, R + N, N), GRADIENT);
    CHECK(R == 0 || untouched(columns(r[5], W, 0, R)));
    AGREE(r[6], sum(dA_expected, dA), GRADIENT);
    AGREE(r[7], sum(dD_expected, dD), GRADIENT);
    AGREE(r[8], sum(dbias_expected, dbias), GRADIENT);

    /* in two pieces, the first of which leaves its state in between; no checkpoints */
    int cut = 1 + (int)(random_bits(&rng) % len);
    Array<float> between(from);
    out_d.poison(), to_d.set(from), from_d.set(from);
    for (int b = 0; b < batch; b++)
        for (int piece = 0; piece < 2; piece++) {
            int begin = piece == 0 ? 0 : cut, end = piece == 0 ? cut : len;
            size_t at = (size_t)b * len + begin;
            Scan<T> part = s;
            if (begin == end) continue;
            part.batch = 1, part.len = end - begin, part.u += at * E, part.dt += at * E, part.z += at * 2 * E,
            part.B += at * W, part.C += at * W;
            part.out += at * E, part.checkpoints = nullptr;
            part.h_first = (piece == 0 ? from_d.device : between.device) + b * state;
            part.h_last = (piece == 0 && cut < len ? between.device : to_d.device) + b * state;
            OK(scan_forward(part, scan_shape(1, part.len, E, N, c.multiprocessors), nullptr));
        }
    AGREE_AS(T, out_d.get(), out, FORWARD);
    AGREE(to_d.get(), to, FORWARD);
}

#ifdef CUDA_ON_CPU
/* A (rows, width) array whose rows lie so far apart that the last begins more than 2^31 elements behind the first. The
   host gives it memory only where it is touched. */
template <class T> struct SparseRows {
    static constexpr size_t STRIDE = (size_t)1 << 25;
    size_t rows, width, bytes;
    T *device;
    SparseRows(size_t rows_, size_t width_, const Doubles &v = Doubles())
        : rows(rows_), width(width_), bytes(rows * STRIDE * sizeof(T)) {
        CHECK((rows - 1) * STRIDE > (size_t)1 << 31);
        device = (T *)mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
        CHECK(device != (T *)MAP_FAILED);
        cuda_on_cpu::allocations[(uintptr_t)device] = cuda_on_cpu::Allocation{bytes, true};
        for (size_t i = 0; i < v.size(); i++) device[i / width * STRIDE + i % width] = (T)(float)v[i];
    }
    ~SparseRows() {
        cuda_on_cpu::allocations.erase((uintptr_t)device);
        munmap(device, bytes);
    }
    SparseRows(const SparseRows &) = delete;
    void operator=(const SparseRows &) = delete;
    Doubles get() const {
        Doubles v(rows * width);
        for (size_t i = 0; i < v.size(); i++) v[i] = (float)device[i / width * STRIDE + i % width];
        return v;
    }
};

/* Offsets beyond 2^31: rows far apart give the bits of rows that are neighbours. */
template <class T> static void test_offsets(int E, int N, int K) {
    begin("offsets beyond 2^31, d_inner %d, %d bytes", E, (int)sizeof(T));
    const int batch = 2, len = 33, rows = batch * len, far = (int)SparseRows<T>::STRIDE;
    size_t n = (size_t)rows * E;
    Doubles u = uniform<T>(n, -1, 1), dt = uniform<T>(n, -4, 1), z = uniform<T>(n, -2, 2), d_out = uniform<T>(n, -1, 1);
    Doubles bc = uniform<T>((size_t)rows * 2 * N, -1, 1);
    Array<float> A(uniform<float>((size_t)E * N, -2, 1)), vector(uniform<float>(E, -1, 1)),
        weight(uniform<float>((size_t)E * K, -1, 1));
    ScanShape shape = scan_shape(batch, len, E, N, 1);
    size_t scratch_n = scan_scratch(shape, batch, len, E, 1) + conv_scratch(batch, len, E, K);
    Array<float> scratch(scratch_n), kept(scan_checkpoints(shape, batch, len, E)), last((size_t)batch * N * E),
        grads((size_t)E * (N + 2)), conv_grads((size_t)E * (K + 1));
    auto run = [&](T *u_, T *dt_, T *z_, T *d_out_, T *bc_, T *out, T *du, T *ddt, T *dz, T *dbc, int ld_in,
                   int ld_bc) {
        Scan<T> s = {};
        s.batch = batch, s.len = len, s.d_inner = E, s.d_state = N, s.u = u_, s.dt = dt_, s.z = z_, s.B = bc_,
        s.C = bc_ + N, s.ld_u = s.ld_dt = s.ld_z = s.ld_out = s.ld_d_out = s.ld_du = s.ld_ddt = s.ld_dz = ld_in;
        s.ld_b = s.ld_c = s.ld_dbc = ld_bc, s.A_log = A.device, s.D = s.dt_bias = vector.device, s.h_last = last.device;
        s.ld_h = (size_t)N * E, s.out = out, s.checkpoints = kept.device, s.scratch = scratch.device, s.d_out = d_out_;
        s.du = du, s.ddt = ddt, s.dz = dz, s.dB = dbc, s.dC = dbc + N, s.dA_log = grads.device;
        s.dD = grads.device + E * N, s.ddt_bias = s.dD + E;
        grads.set(Doubles(grads.n, 0.0));
        OK(scan_forward(s, shape, nullptr));
        OK(scan_backward(s, shape, nullptr));
    };
    auto convolve = [&](T *x, T *du, T *u_, T *dx, int ld) {
        Conv<T> s = {};
        s.batch = batch, s.len = len, s.d_inner = E, s.d_conv = K, s.x = x, s.weight = weight.device;
        s.bias = vector.device, s.u = u_, s.scratch = scratch.device, s.du = du, s.dx = dx;
        s.ld_x = s.ld_u = s.ld_du = s.ld_dx = ld, s.dweight = conv_grads.device, s.dbias = conv_grads.device + E * K;
        conv_grads.set(Doubles(conv_grads.n, 0.0));
        OK(conv_forward(s, nullptr));
        OK(conv_backward(s, nullptr));
    };
    Results results[2];
    {
        Array<T> u_d(u), dt_d(dt), z_d(z), d_out_d(d_out), bc_d(bc), out(n), du(n), ddt(n), dz(n), dbc(bc.size()), y(n),
            dx(n);
        run(u_d.device, dt_d.device, z_d.device, d_out_d.device, bc_d.device, out.device, du.device, ddt.device,
            dz.device, dbc.device, E, 2 * N);
        convolve(u_d.device, d_out_d.device, y.device, dx.device, E);
        results[0] = Results{out.get(), du.get(), ddt.get(), dz.get(), dbc.get(), last.get(), grads.get(), y.get(),
                             dx.get(), conv_grads.get()};
    }
    {
        SparseRows<T> u_d(rows, E, u), dt_d(rows, E, dt), z_d(rows, E, z), d_out_d(rows, E, d_out),
            bc_d(rows, 2 * N, bc), out(rows, E), du(rows, E), ddt(rows, E), dz(rows, E), dbc(rows, 2 * N), y(rows, E),
            dx(rows, E);
        run(u_d.device, dt_d.device, z_d.device, d_out_d.device, bc_d.device, out.device, du.device, ddt.device,
            dz.device, dbc.device, far, far);
        convolve(u_d.device, d_out_d.device, y.device, dx.device, far);
        results[1] = Results{out.get(), du.get(), ddt.get(), dz.get(), dbc.get(), last.get(), grads.get(), y.get(),
                             dx.get(), conv_grads.get()};
    }
    CHECK(same(results[0], results[1]));
}
#else
template <class T> static void test_offsets(int, int, int) {} /* test_large_layers has arrays of that size */
#endif

static void test_layers() {
    const int lens[] = {1, 2, 3, 31, 32, 33, 127, 2047, 2048, 2049};
    const int states[] = {1, 3, 4, 7, 8, 16, 17, 32, 64, 65, 129, 256};
    test_rmsnorm<float>(3, 4100, 1); /* more columns than a block has threads for, four each */
    test_rmsnorm<bf16>(2, 4099, 2);
    const int fold = FOLD_ROWS;
    for (const Ints &counts : {Ints{fold}, Ints{2 * fold - 1}, Ints{fold - 1, 1}, Ints{1, fold - 1}, Ints{fold, fold},
                               Ints{100, 7 * fold, 60, 0, 40}}) /* whole folds, with some rows on both sides */
        test_embedding(shuffled_ids(counts), (int)counts.size(), 36);
    for (int rows = 1; rows <= 700; rows = rows * 9 + 1) {
        test_embedding(random_ids(rows, 7), 7, 33);
        test_embedding(random_ids(rows, 50), 50, 8);
        for (int with = 0; with < 3; with++) {
            test_rmsnorm<float>(rows, 7 + 33 * with, with);
            test_rmsnorm<bf16>(rows, 64 - 3 * with, with);
        }
        for (int tf32 = 0; tf32 < 2; tf32++) test_linear<float>(rows, 19, 42, tf32);
        test_linear<bf16>(rows, 19, 42, 0);
        test_linear<bf16>(rows, 64, 48, 0);
    }
    for (int K = 1; K <= 8; K++)
        for (int i = 0; i < (K == 4 && !brief ? 10 : 5); i++) {
            test_conv<float>(1 + (K + i) % 5, lens[i], i % 2 ? 20 : 37, K, (K + i) % 2, i % 3 != 0);
            test_conv<bf16>(1 + (K + i) % 5, lens[i], i % 2 ? 37 : 24, K, (K + i) % 2, i % 3 == 0);
        }
    test_conv<float>(2, 300, 132, 4, true, true); /* more than a block of positions, more than one of channels */

    int n_state = 0;
    for (int len : lens) /* as one chunk, and as many as it has eights of tiles */
        for (int chunks = 0; chunks < 2; chunks++, n_state++) {
            int N = len > 1000 ? states[n_state % 6] : states[n_state % 12];
            int E = len > 1000 ? 9 : N > 16 ? 5 : 37, batch = len > 1000 ? 1 : 1 + n_state % 5;
            if (brief && (len > 2047 || (len == 2047 && chunks == 0))) continue;
            ScanCase c = {batch, len, E, N, chunks ? 100 : 1, -6, 1, 0, 3, chunks == 0, true};
            test_scan<float>(c);
            c.d_inner = N > 16 ? 4 : 40, c.dt_rank = 4, c.with_state = !c.with_state;
            if (len > 1000) c.d_inner = 8;
            test_scan<bf16>(c);
        }
    for (int N : states) {
        ScanCase c = {2, 70, N > 16 ? 6 : 33, N, N % 2 ? 1 : 100, -6, 1, 0, N % 4, true, true};
        test_scan<float>(c);
        c.multiprocessors = 101 - c.multiprocessors;
        if (!brief || N > 64) test_scan<bf16>(c);
    }
    for (int N : {16, 40}) /* delta near 5e-7, where softplus is to have a small relative error */
        test_scan<float>({2, 32, N == 16 ? 33 : 5, N, 1, -15, -14, 0, 4, false, false});
    /* One slice of states and three, one chunk and two: the states before and behind a chunk in each slice. delta up to
       50 forgets everything at A = -16. */
    for (int chunks = 0; chunks < 2; chunks++)
        for (int N : {16, 40}) {
            int E = N == 16 ? 33 : 5, mp = chunks ? 50 : 1;
            test_scan<float>({2, 300, E, N, mp, 0, 50, 16, 4, true, true});
            test_scan<bf16>({1, 300, E, N, mp, 0, 50, 16, 4, true, true});
            test_scan<float>({1, 300, E - 1, N, mp, -6, 1, 0, 4, true, true}); /* fours, aligned */
            test_scan<bf16>({1, 300, E - 1, N, mp, -6, 1, 0, 4, true, true});
            if (brief) continue;
            test_scan<float>({2, 300, E, N, mp, -30, 30, 0, 1, true, true});
        }
    test_offsets<float>(36, 8, 4);
    test_offsets<bf16>(36, 8, 4);
    test_offsets<float>(5, 18, 6);
    test_offsets<bf16>(5, 18, 6);
    if (brief) return;
    test_scan<float>({1, 65536, full ? 64 : 3, 4, 1, -5, 1, 0, 4, false, true});
    test_scan<float>({1, 65536, full ? 64 : 3, 4, 132, -5, 1, 0, 4, false, true});
    if (!full) return;
    test_scan<float>({1, 65536, 64, 16, 132, -6, 1, 0, 48, true, true});
    for (int len : lens)
        for (int N : states)
            for (int E : {32, 50, 96}) {
                test_scan<float>({1 + (len + N) % 5, len, N > 64 ? E / 3 : E, N, 1 + len % 3 * 132, -6, 1, 0, E % 4,
                                  N % 2 == 0, true});
                if (N < 100)
                    test_scan<bf16>(
                        {1 + (len + N) % 5, len, E, N, 264 - 1 + len % 3 * 132, -6, 1, 0, E % 4, N % 2 == 1, true});
            }
    for (int K = 1; K <= 8; K++)
        for (int len : lens) {
            test_conv<float>(1 + K % 5, len, 260, K, true, true);
            test_conv<bf16>(1 + K % 5, len, 133, K, false, true);
        }
}

/* 5. LOSS AND OPTIMISER ======================================================================================== */

template <class T> static void test_cross_entropy(int rows, int V, double range) {
    begin("cross entropy rows %d vocab %d logits to %g, %d bytes", rows, V, range, (int)sizeof(T));
    Doubles logits = uniform<T>((size_t)rows * V, -range, range), losses(rows), right(rows), d;
    Ints targets = random_ids(rows, V), correct(rows);
    UpdateArgs args = {};
    args.scale = 0.25f;
    double total = 0;
    for (int r = 0; r < rows; r += 3) { /* every third target is the largest logit: right */
        targets[r] = 0;
        for (int j = 1; j < V; j++)
            if (logits[(size_t)r * V + j] > logits[(size_t)r * V + targets[r]]) targets[r] = j;
    }
    for (int r = 1; r < rows; r += 4) targets[r] = -1;
    d = logits;
    for (int r = 0; r < rows; r++) {
        losses[r] = oracle::cross_entropy(&d[(size_t)r * V], targets[r], V, 0.25, &correct[r]);
        right[r] = correct[r], total += losses[r];
    }
    Array<T> logits_d(logits);
    Array<float> losses_d(rows), loss_d(1);
    Array<int> correct_d(rows), targets_d(rows);
    Array<UpdateArgs> args_d(1);
    CHECK(cudaMemcpy(targets_d.device, targets.data(), rows * sizeof(int), cudaMemcpyHostToDevice) == cudaSuccess);
    CHECK(cudaMemcpy(args_d.device, &args, sizeof args, cudaMemcpyHostToDevice) == cudaSuccess);
    for (int gradient = 0; gradient < 2; gradient++) {
        Results r = repeated([&] {
            logits_d.set(logits), losses_d.poison(), correct_d.poison(), loss_d.set(Doubles{1});
            CHECK(launch(cross_entropy_kernel<T>, dim3(rows), dim3(cross_entropy_threads(V, sizeof(T))), 0, nullptr,
                         logits_d.device, losses_d.device, correct_d.device, targets_d.device, V, args_d.device,
                         gradient) == cudaSuccess);
            CHECK(launch(add_losses_kernel, dim3(1), dim3(1024), 0, nullptr, loss_d.device, losses_d.device, rows,
                         args_d.device) == cudaSuccess);
            return Results{losses_d.get(), device_values(correct_d.device, rows), loss_d.get(), logits_d.get()};
        });
        AGREE(r[0], losses, FORWARD);
        CHECK(r[1] == right);
        AGREE(r[2], Doubles{1 + 0.25 * total}, FORWARD);
        if (gradient) AGREE_AS(T, r[3], d, GRADIENT);
        else CHECK(r[3] == logits);
    }
}

/* A float model and its twin in double, each with a backend. */
struct Twins {
    Model model;
    oracle::Model twin;
    Backend gpu;
    oracle::Backend cpu;
    bool half;
    Twins(Config c, const char *dtype, int train, int lean, bool with_oracle = true) : model(), twin(), gpu(), cpu() {
        oracle::Config same_config;
        uint64_t seed = 5;
        c.d_inner = c.expand * c.d_model;
        memcpy(&same_config, &c, sizeof c);
        OK(config_check(&c, "test"));
        OK(model_create(&model, &c));
        model_init(&model, 3);
        for (int i = 0; i < model.n_tensor; i++) /* also what starts as 0 or 1 is to matter */
            for (size_t j = 0; j < model.tensor[i].size; j++)
                model.weights[model.tensor[i].offset + j] += 0.1f * (float)random_normal(&seed);
        half = strcmp(dtype, "bf16") == 0;
        if (!train) round_weights();
        OK(cuda_backend(&gpu, &model, dtype, train, lean));
        if (!with_oracle) return;
        OK(oracle::model_create(&twin, &same_config));
        for (size_t i = 0; i < model.n_param; i++) twin.weights[i] = model.weights[i];
        OK(oracle::cpu_backend(&cpu, &twin, 0, train));
    }
    /* To numbers that bf16 holds, so that where outputs are compared both sides have the same weights. */
    void round_weights() {
        for (size_t i = 0; i < model.n_param && half; i++) model.weights[i] = (float)(bf16)model.weights[i];
    }
    /* After training: both go on with the GPU's weights, rounded so. */
    void share_weights() {
        OK(gpu.copy(gpu.self, WEIGHTS, model.weights, 0));
        round_weights();
        OK(gpu.copy(gpu.self, WEIGHTS, model.weights, 1));
        OK(cpu.copy(cpu.self, oracle::WEIGHTS, Doubles(model.weights, model.weights + model.n_param).data(), 1));
    }
    ~Twins() {
        gpu.close(gpu.self);
        if (cpu.close != NULL) cpu.close(cpu.self);
        model_free(&model);
        oracle::model_free(&twin);
    }
    Twins(const Twins &) = delete;
    void operator=(const Twins &) = delete;
    template <class T> Gpu<T> *self() { return (Gpu<T> *)gpu.self; }
    Doubles copy(Which which) {
        size_t n = which == STATE ? state_size(&model.config, ((Gpu<float> *)gpu.self)->streams) : model.n_param;
        std::vector<float> v(n);
        OK(gpu.copy(gpu.self, which, v.data(), 0));
        return Doubles(v.begin(), v.end());
    }
    Doubles copy_twin(Which which) {
        Doubles v(which == STATE ? oracle::state_size(&twin.config, ((oracle::Cpu *)cpu.self)->streams) : twin.n_param);
        OK(cpu.copy(cpu.self, (oracle::Which)which, v.data(), 0));
        return v;
    }
    Doubles grads() {
        return device_values(((Gpu<float> *)gpu.self)->grads, model.n_param);
    } /* that field lies alike in Gpu<bf16> */
    double *twin_grads() { return ((oracle::Cpu *)cpu.self)->grads; }
    Doubles tensor(const Doubles &flat, int i) {
        return Doubles(flat.begin() + model.tensor[i].offset,
                       flat.begin() + model.tensor[i].offset + model.tensor[i].size);
    }
};

/*                          vocab d_model n_layer d_state d_conv expand dt_rank d_inner biases tied */
static const Config SMALL = {13, 16, 2, 4, 4, 2, 1, 0, 0, 1, 1, 1e-5, 0, 0, 0, 0, 0, 0};
static const Config ODD = {17, 20, 2, 5, 3, 3, 3, 0, 1, 0, 0, 1e-5, 0, 0, 0, 0, 0, 0};
static const Config THREE = {11, 20, 1, 5, 3, 2, 3, 0, 0, 1, 1, 1e-5, 0, 0, 0, 0, 0, 0};
static const Config STATES = {11, 9, 1, 33, 8, 2, 2, 0, 1, 1, 0, 1e-5, 0, 0, 0, 0, 0, 0};
static const Config MANY = {10, 7, 1, 256, 1, 1, 5, 0, 0, 0, 1, 1e-5, 0, 0, 0, 0, 0, 0};
/* more than a step's block has registers for */
static const Config WIDE = {19, 72, 2, 33, 8, 3, 70, 0, 1, 0, 0, 1e-5, 0, 0, 0, 0, 0, 0};
static const Config LONG = {19, 392, 1, 16, 4, 2, 8, 0, 0, 1, 1, 1e-5, 0, 0, 0, 0, 0, 0};
/* x, and the head's tokens, that are more than one round of all threads */
static const Config BROAD = {419, 1544, 1, 2, 2, 1, 8, 0, 0, 1, 1, 1e-5, 0, 0, 0, 0, 0, 0};
/* what the step of many streams takes: with tiles that are not full; columns for all warps; all ranks, biases, a norm
   that eps changes; a head with more stages than are on their way */
static const Config TILES = {37, 64, 2, 16, 4, 2, 16, 0, 0, 1, 1, 1e-5, 0, 0, 0, 0, 0, 0};
static const Config CHUNKS = {613, 768, 1, 16, 3, 1, 32, 0, 0, 1, 0, 1e-5, 0, 0, 0, 0, 0, 0};
static const Config RANKS = {37, 64, 2, 16, 1, 2, 48, 0, 1, 0, 0, 1e-2, 0, 0, 0, 0, 0, 0};
static const Config HEAD = {5003, 64, 1, 16, 2, 2, 16, 0, 0, 1, 1, 1e-5, 0, 0, 0, 0, 0, 0};

/* a in got = a expected, by least squares */
static double slope_of(const Doubles &got, const Doubles &expected) {
    double product = 0, square = 0;
    for (size_t i = 0; i < got.size(); i++) product += got[i] * expected[i], square += expected[i] * expected[i];
    return product / square;
}

/* AdamW and the norm on given gradients: three steps, with and without clipping and decay. */
template <class T> static void test_update(const char *dtype, double clip, double decay) {
    begin("update %s clip %g decay %g", dtype, clip, decay);
    Twins m(ODD, dtype, 1, 0);
    Gpu<T> *gpu = m.self<T>();
    size_t n = m.model.n_param;
    AdamW o = {0.9, 0.95, 1e-8, decay, clip};
    for (int step = 1; step <= 3; step++) {
        std::vector<float> g(n, 0.0f);
        Doubles before = m.copy(WEIGHTS), expected_before = m.copy_twin(WEIGHTS);
        double norm, expected_norm;
        for (int i = 0; i < m.model.n_tensor; i++)
            for (size_t j = 0; j < m.model.tensor[i].size; j++) {
                size_t at = m.model.tensor[i].offset + j;
                m.twin_grads()[at] = g[at] = (float)(0.1 * random_normal(&rng));
            }
        CHECK(cudaMemcpy(gpu->grads, g.data(), n * sizeof(float), cudaMemcpyHostToDevice) == cudaSuccess);
        OK(m.gpu.update(m.gpu.self, &o, 1e-2, step, NULL, &norm));
        OK(m.cpu.update(m.cpu.self, (const oracle::AdamW *)&o, 1e-2, step, NULL, &expected_norm));
        CHECK_NEAR(norm, expected_norm, 1e-6 * expected_norm);
        Doubles w = m.copy(WEIGHTS), change = w, expected_change = m.copy_twin(WEIGHTS);
        for (size_t i = 0; i < n; i++) change[i] -= before[i], expected_change[i] -= expected_before[i];
        AGREE(change, expected_change, GRADIENT);
        AGREE(m.copy(MOMENT1), m.copy_twin(MOMENT1), GRADIENT);
        AGREE(m.copy(MOMENT2), m.copy_twin(MOMENT2), FORWARD);
        if (clip == 0) { /* roundings are of either sign: on the whole moments are neither too large nor too small */
            CHECK_NEAR(slope_of(m.copy(MOMENT1), m.copy_twin(MOMENT1)), 1, 5e-8);
            CHECK_NEAR(slope_of(m.copy(MOMENT2), m.copy_twin(MOMENT2)), 1, 5e-8);
        }
        CHECK(m.grads() == Doubles(n, 0.0));
        Array<T> rounded(w);
        CHECK(cudaDeviceSynchronize() == cudaSuccess);
        std::vector<T> compute(n);
        CHECK(cudaMemcpy(compute.data(), gpu->compute, n * sizeof(T), cudaMemcpyDeviceToHost) == cudaSuccess);
        int wrong = 0;
        for (size_t i = 0; i < n; i++) wrong += (float)compute[i] != (float)(T)(float)w[i];
        CHECK(wrong == 0);
    }
}

template <class T> static void test_cast() {
    begin("cast to %d bytes", (int)sizeof(T));
    Array<float> in(uniform<float>(1000, -100, 100));
    Array<T> out(in.n);
    Results r = repeated([&] {
        out.poison();
        CHECK(launch(cast_kernel<T>, dim3(3), dim3(64), 0, nullptr, out.device, (const float *)in.device, in.n) ==
              cudaSuccess);
        return Results{out.get()};
    });
    Doubles expected = in.get();
    for (double &x : expected) x = (double)(float)(T)(float)x;
    CHECK(r[0] == expected);
}

/* 4. BLOCK AND MODEL =========================================================================================== */

/* What the whole model may be off by. tf32 and bf16: RMS errors, of numbers rounded to 2^-11 and 2^-9 in every layer.
 */
typedef struct {
    bool in_rms;
    double forward, gradient, curve;
} Tolerance;

static Tolerance tolerance(const char *dtype) {
    const Tolerance fp32 = {false, FORWARD, GRADIENT, 1e-4}, tf32 = {true, 2e-3, 1e-2, 1e-3},
                  bf16 = {true, 1e-2, 3e-2, 1e-2};
    return strcmp(dtype, "fp32") == 0 ? fp32 : strcmp(dtype, "tf32") == 0 ? tf32 : bf16;
}

#define AGREE_IN(a, got, expected, tolerance) agree(__FILE__, __LINE__, #got, got, expected, (a).in_rms, tolerance)

static Doubles doubles(const std::vector<float> &v) { return Doubles(v.begin(), v.end()); }

/* Outputs, states, loss, all gradients and a step of the optimiser; lean gives the same bits. */
static void test_model(const char *name, Config config, const char *dtype, int batch, int len) {
    Tolerance a = tolerance(dtype);
    Doubles first_grads;
    const double lr = 1e-3;
    begin("model %s %s batch %d len %d", name, dtype, batch, len);
    Ints tokens = random_ids((size_t)batch * len, config.vocab_size),
         targets = random_ids((size_t)batch * len, config.vocab_size);
    for (int i = 0; i < batch * len; i += 5) targets[i] = -1;
    for (int lean = 0; lean < 2; lean++) {
        Twins m(config, dtype, 1, lean, lean == 0);
        AdamW o = {0.9, 0.95, 1e-8, 0.1, 1};
        size_t V = config.vocab_size;
        double loss, norm, expected_loss, expected_norm;
        Results r;
        if (lean || !brief) r = repeated([&] { /* a fresh backend: the schedule has its say in all of it */
                                   Backend fresh;
                                   OK(cuda_backend(&fresh, &m.model, dtype, 1, lean));
                                   OK(fresh.gradient(fresh.self, tokens.data(), targets.data(), batch, len, 0.5));
                                   OK(fresh.gradient(fresh.self, tokens.data(), targets.data(), batch, len, 0.5));
                                   Doubles grads = device_values(((Gpu<float> *)fresh.self)->grads, m.model.n_param);
                                   std::vector<float> w(m.model.n_param);
                                   OK(fresh.update(fresh.self, &o, lr, 1, NULL, &norm));
                                   OK(fresh.copy(fresh.self, WEIGHTS, w.data(), 0));
                                   fresh.close(fresh.self);
                                   return Results{grads, doubles(w), Doubles{norm}};
        });
        if (lean) {
            CHECK(r[0] == first_grads);
            continue;
        }
        for (int i = 0; i < 2; i++) {
            OK(m.gpu.gradient(m.gpu.self, tokens.data(), targets.data(), batch, len, 0.5));
            OK(m.cpu.gradient(m.cpu.self, tokens.data(), targets.data(), batch, len, 0.5));
        }
        Doubles grads = m.grads(), expected(m.twin_grads(), m.twin_grads() + m.model.n_param);
        CHECK(brief || grads == r[0]);
        first_grads = grads;
        for (int i = 0; i < m.model.n_tensor; i++) {
            std::string gradient = std::string("gradient of ") + m.model.tensor[i].name;
            agree(__FILE__, __LINE__, gradient.c_str(), m.tensor(grads, i), m.tensor(expected, i), a.in_rms,
                  a.gradient);
        }
        /* The first step is nearly lr times a gradient's sign, which is noise where the gradient cancels: so both take
           the step from the same gradient, and go on with the same weights. */
        std::copy(grads.begin(), grads.end(), m.twin_grads());
        OK(m.gpu.update(m.gpu.self, &o, lr, 1, &loss, &norm));
        OK(m.cpu.update(m.cpu.self, (const oracle::AdamW *)&o, lr, 1, &expected_loss, &expected_norm));
        CHECK_NEAR(loss, expected_loss, a.forward * expected_loss);
        CHECK_NEAR(norm, expected_norm, 1e-5 * expected_norm);
        AGREE(m.copy(MOMENT1), m.copy_twin(MOMENT1), GRADIENT);
        AGREE(m.copy(WEIGHTS), m.copy_twin(WEIGHTS), FORWARD);
        m.share_weights();

        std::vector<float> logits((size_t)batch * len * V), last(batch * V);
        Doubles expected_logits(logits.size());
        OK(m.gpu.reset(m.gpu.self, batch));
        OK(m.gpu.forward(m.gpu.self, tokens.data(), len, last.data(), 0));
        OK(m.gpu.reset(m.gpu.self, batch));
        OK(m.cpu.reset(m.cpu.self, batch));
        OK(m.gpu.forward(m.gpu.self, tokens.data(), len, logits.data(), 1));
        OK(m.cpu.forward(m.cpu.self, tokens.data(), len, expected_logits.data(), 1));
        AGREE_IN(a, doubles(logits), expected_logits, a.forward);
        AGREE_IN(a, m.copy(STATE), m.copy_twin(STATE), a.forward);
        AGREE_IN(a, doubles(last), columns(doubles(logits), (size_t)len * V, (size_t)(len - 1) * V, V), a.forward);
        OK(m.gpu.forward(m.gpu.self, tokens.data(), len, logits.data(), 1)); /* goes on from there */
        OK(m.cpu.forward(m.cpu.self, tokens.data(), len, expected_logits.data(), 1));
        AGREE_IN(a, doubles(logits), expected_logits, a.forward);

        long right, expected_right;
        OK(m.gpu.reset(m.gpu.self, batch));
        OK(m.cpu.reset(m.cpu.self, batch));
        OK(m.gpu.evaluate(m.gpu.self, tokens.data(), targets.data(), len, &loss, &right));
        OK(m.cpu.evaluate(m.cpu.self, tokens.data(), targets.data(), len, &expected_loss, &expected_right));
        CHECK_NEAR(loss, expected_loss, a.forward * expected_loss);
        CHECK(a.in_rms || right == expected_right);
    }
}

/* Sequences that can be learned: each token follows from the one before, with some noise. */
static void batch_of(Ints *tokens, Ints *targets, int batch, int len, int V) {
    for (int b = 0; b < batch; b++)
        for (int t = 0, id = (int)(random_bits(&rng) % V); t <= len; t++) {
            if (t < len) (*tokens)[(size_t)b * len + t] = id;
            if (t > 0) (*targets)[(size_t)b * len + t - 1] = id;
            id = random_bits(&rng) % 8 == 0 ? (int)(random_bits(&rng) % V) : (3 * id + 1) % V;
        }
}

/* Losses of `steps` steps of training; then weights and moments. */
static void test_training(Config config, const char *dtype, int batch, int len, int steps) {
    Tolerance a = tolerance(dtype);
    begin("training %s for %d steps", dtype, steps);
    Twins m(config, dtype, 1, 0);
    AdamW o = {0.9, 0.95, 1e-8, 0.1, 1};
    Ints tokens((size_t)batch * len), targets(tokens.size());
    double first = 0, loss = 0, expected, worst = 0;
    for (int step = 1; step <= steps; step++) {
        double lr = learning_rate(step, 10, steps, 3e-3, 1e-4);
        batch_of(&tokens, &targets, batch, len, config.vocab_size);
        OK(m.gpu.gradient(m.gpu.self, tokens.data(), targets.data(), batch, len, 1));
        OK(m.cpu.gradient(m.cpu.self, tokens.data(), targets.data(), batch, len, 1));
        OK(m.gpu.update(m.gpu.self, &o, lr, step, &loss, NULL));
        OK(m.cpu.update(m.cpu.self, (const oracle::AdamW *)&o, lr, step, &expected, NULL));
        worst = fmax(worst, fabs(loss / expected - 1));
        if (step == 1) first = loss;
    }
    if (!(worst <= a.curve)) printf("%s: %s: a loss is off by %.3g\n", __FILE__, where, worst);
    CHECK(worst <= a.curve);
    CHECK(loss < 0.9 * first);
}

/* Training is exact: a run continued in a new backend, after other shapes, gives the same bits. */
static void test_resume(const char *dtype, int lean) {
    begin("resume %s", dtype);
    const AdamW o = {0.9, 0.95, 1e-8, 0.1, 1};
    const int B = 3, len = 20;
    Ints tokens(B * len), targets(B * len);
    Results run[2];
    for (int resumed = 0; resumed < 2; resumed++) {
        Twins m(SMALL, dtype, 1, lean, false);
        Backend other = {};
        rng = 77;
        for (int step = 1; step <= 6; step++) {
            Backend *b = other.self != NULL ? &other : &m.gpu;
            batch_of(&tokens, &targets, B, len, SMALL.vocab_size);
            if (resumed && step == 3) { /* another shape in between: the graph is captured again */
                OK(b->reset(b->self, 2));
                OK(b->forward(b->self, tokens.data(), 7, NULL, 0));
            }
            if (resumed && step == 4) {
                std::vector<float> copy(m.model.n_param);
                OK(cuda_backend(&other, &m.model, dtype, 1, lean));
                for (Which which : {WEIGHTS, MOMENT1, MOMENT2}) {
                    OK(m.gpu.copy(m.gpu.self, which, copy.data(), 0));
                    OK(other.copy(other.self, which, copy.data(), 1));
                }
                b = &other;
            }
            OK(b->gradient(b->self, tokens.data(), targets.data(), B, len, 1));
            OK(b->update(b->self, &o, 1e-3, step, NULL, NULL));
        }
        if (resumed) {
            std::vector<float> w(m.model.n_param), m1(w), m2(w);
            OK(other.copy(other.self, WEIGHTS, w.data(), 0));
            OK(other.copy(other.self, MOMENT1, m1.data(), 0));
            OK(other.copy(other.self, MOMENT2, m2.data(), 0));
            other.close(other.self);
            run[1] = Results{doubles(w), doubles(m1), doubles(m2)};
        } else run[0] = Results{m.copy(WEIGHTS), m.copy(MOMENT1), m.copy(MOMENT2)};
    }
    CHECK(same(run[0], run[1]));
}

/* Logits that do not fit at once are taken some rows at a time. */
template <class T> static void test_head_rows(const char *dtype) {
    begin("head in pieces, %s", dtype);
    Config c = SMALL;
    c.vocab_size = 500; /* most of the memory is the logits' */
    Twins m(c, dtype, 1, 0, false);
    Ints tokens = random_ids(3 * 11, c.vocab_size), targets = random_ids(3 * 11, c.vocab_size);
    const AdamW o = {0.9, 0.95, 1e-8, 0, 0};
    double loss[2];
    Doubles grads[2];
    for (int i = 0; i < 2; i++) {
        OK(m.gpu.gradient(m.gpu.self, tokens.data(), targets.data(), 3, 11, 1));
        grads[i] = m.grads();
        OK(m.gpu.update(m.gpu.self, &o, 0, i + 1, &loss[i], NULL)); /* rate 0: clears the gradients */
        m.self<T>()->head_rows = 5;
        drop_graph(&m.self<T>()->gradient_graph);
    }
    AGREE_AS(T, grads[1], grads[0], GRADIENT);
    CHECK_NEAR(loss[1], loss[0], 1e-6);
    std::vector<float> logits[2];
    for (int i = 0; i < 2; i++) {
        logits[i].resize(tokens.size() * c.vocab_size);
        OK(m.gpu.reset(m.gpu.self, 3));
        if (i == 1) OK(gpu_layout(m.self<T>(), 3, 11, 0)), m.self<T>()->head_rows = 3;
        OK(m.gpu.forward(m.gpu.self, tokens.data(), 11, logits[i].data(), 1));
    }
    AGREE(doubles(logits[1]), doubles(logits[0]), FORWARD);
    OK(m.gpu.reset(m.gpu.self, 1)); /* one sequence, which begins like the first: floats where T has its room */
    OK(m.gpu.forward(m.gpu.self, tokens.data(), 33, logits[1].data(), 1));
    for (int i = 0; i < 2; i++) logits[i].resize(11 * c.vocab_size);
    AGREE_AS(T, doubles(logits[1]), doubles(logits[0]), FORWARD);
}

/* A model of 25 million parameters is to train on a GPU of 2 GiB, 16 x 512 positions at a time. */
static void test_memory() {
    begin("memory");
    Config c = {8192, 512, 12, 16, 4, 2, 32, 1024, 0, 1, 1, 1e-5, 0, 0, 0, 0, 0, 0};
    std::vector<BlockParams> params(c.n_layer);
    std::vector<GpuBlockActs<bf16>> blocks(c.n_layer);
    Table table = {};
    Params p = {};
    Gpu<bf16> gpu = {};
    size_t bytes[2];
    p.block = params.data();
    params_table(&table, &c, &p, TYPE_REAL);
    gpu.model.config = c, gpu.multiprocessors = 132, gpu.block = blocks.data();
    for (int lean = 0; lean < 2; lean++) {
        Arena arena = {NULL, 0};
        gpu.lean = lean;
        acts_layout(&gpu, &arena, 16, 512, 1);
        bytes[lean] = arena.bytes + table.size * (4 * sizeof(float) + sizeof(bf16)) + BLAS_WORKSPACE;
    }
    CHECK(bytes[0] < (size_t)2 << 30);
    CHECK(bytes[1] < (size_t)7 << 28);
}

static void test_errors() {
    begin("errors");
    Twins m(SMALL, "fp32", 1, 0, false);
    Backend b;
    Ints tokens = random_ids(2 * 16, SMALL.vocab_size);
    int suggested = 0;
    CHECK(cuda_backend(&b, &m.model, "fp8", 0, 0) == -1 && strstr(error_message, "'fp8'") != NULL);
    OK(m.gpu.gradient(m.gpu.self, tokens.data(), tokens.data(), 2, 16, 1));
    Doubles before = m.grads();
#ifdef CUDA_ON_CPU
    size_t memory = cuda_on_cpu::device.memory;
    cuda_on_cpu::device.memory = (size_t)64 << 20;
    int batch = 1 << 15, len = 16;
#else
    int batch = 1 << 20, len = 512;
#endif
    CHECK(m.gpu.gradient(m.gpu.self, NULL, NULL, batch, len, 1) == -1);
    CHECK(strstr(error_message, "out of memory") != NULL && strstr(error_message, "MiB") != NULL &&
          strstr(error_message, "lean") != NULL);
    const char *hint = strstr(error_message, "batch of ");
    CHECK(hint != NULL && sscanf(hint, "batch of %d", &suggested) == 1 && suggested >= 1 && suggested < batch);
    CHECK(m.gpu.gradient(m.gpu.self, NULL, NULL, 1 << 20, 1 << 11, 1) == -1 &&
          strstr(error_message, "too large") != NULL);
#ifdef CUDA_ON_CPU
    CHECK(m.gpu.reset(m.gpu.self, 1 << 20) == -1 && strstr(error_message, "out of memory") != NULL);
    OK(m.gpu.reset(m.gpu.self, 1));
    cuda_on_cpu::device.memory = (size_t)1 << 20;
    CHECK(cuda_backend(&b, &m.model, "fp32", 0, 0) == -1 && strstr(error_message, "out of memory") != NULL);
    cuda_on_cpu::device.memory = memory;
    cuda_on_cpu::device.has_image = false;
    CHECK(cuda_backend(&b, &m.model, "fp32", 0, 0) == -1 && strstr(error_message, "no kernels for") != NULL);
    cuda_on_cpu::device.has_image = true;
    cuda_on_cpu::device.error = cudaErrorNoDevice;
    CHECK(cuda_find() == 1 && strstr(error_message, "no GPU") != NULL);
    cuda_on_cpu::device.error = cudaErrorInsufficientDriver; /* too old, or none */
    cuda_on_cpu::device.driver = 11040;
    CHECK(cuda_find() == -1 && strstr(error_message, "is for CUDA 11.4") != NULL);
    cuda_on_cpu::device.driver = 0;
    CHECK(cuda_find() == 1 && strstr(error_message, "no GPU") != NULL);
    cuda_on_cpu::device.driver = 13000, cuda_on_cpu::device.error = cudaSuccess;
#endif
    OK(m.gpu.gradient(m.gpu.self, tokens.data(), tokens.data(), 2, 16, 1)); /* it has survived, and adds to the first */
    AGREE(m.grads(), sum(before, before), FORWARD);
    Conv<float> conv = {};
    conv.batch = conv.len = conv.d_inner = 1, conv.d_conv = 9;
    CHECK(conv_forward(conv, nullptr) == -1 && conv_backward(conv, nullptr) == -1);
}

/* 6. GENERATION ================================================================================================ */

/* Which id a random number u in [0, 1) stands for, by the rules above Sampler in mamba.c, written as plainly as
 *possible. margin: how far u is from standing for another one. */
static int expected_sample(const Doubles &logits, const GpuSampler &s, double u, double *margin) {
    std::vector<std::pair<double, int>> rank; /* (-p, id), p relative to the largest; sorted: most probable first */
    double top = -INFINITY, total = 0, sum = 0;
    for (int id = 0; id < s.n_vocab; id++)
        if (id != s.banned && logits[id] > top) top = logits[id];
    for (int id = 0; id < s.n_vocab; id++)
        if (id != s.banned && logits[id] == logits[id])
            rank.push_back({logits[id] == top ? -1.0 : -exp((logits[id] - top) / s.temperature), id});
    std::stable_sort(rank.begin(), rank.end(), [&](const std::pair<double, int> &a, const std::pair<double, int> &b) {
        return logits[a.second] > logits[b.second];
    });
    if (s.top_k > 0 && s.top_k < (int)rank.size()) rank.resize(s.top_k);
    for (auto &r : rank) total -= r.first;
    size_t kept = 0;
    while (kept < rank.size() && (kept == 0 || s.top_p >= 1 || sum < (double)s.top_p * total))
        sum -= rank[kept++].first;
    rank.resize(kept);
    while (-rank.back().first < (double)s.min_p) rank.pop_back();
    std::sort(rank.begin(), rank.end(),
              [](const std::pair<double, int> &a, const std::pair<double, int> &b) { return a.second < b.second; });
    total = 0;
    for (auto &r : rank) total -= r.first;
    double end = 0;
    for (auto &r : rank) {
        double begin = end;
        end -= r.first / total;
        *margin = fmin(u - begin, end - u);
        if (u < end) return r.second;
    }
    return rank.back().second;
}

/* The same logits in every block, the random numbers (block + 0.5) / blocks: so every candidate is drawn as often as it
   is probable, and none that the filters left out. */
static void test_sampling(int V, int blocks, double temperature, int top_k, double top_p, double min_p) {
    begin("sampling of %d at temperature %g, top-k %d, top-p %g, min-p %g", V, temperature, top_k, top_p, min_p);
    Doubles logits((size_t)V), all;
    GpuSampler s = {(float)temperature, (float)top_p, (float)min_p, 1, top_k, V - 2, 5, 0, 0, 0};
    for (int id = 0; id < V; id++) logits[id] = (float)(2 * random_normal(&rng));
    logits[V - 1] = logits[V - 2] = 90; /* only pads the vocabulary */
    logits[5] = 80; /* banned */
    logits[V / 2] = logits[V / 3] = logits[V / 4] = 3.5; /* ties */
    logits[V / 5] = NAN, logits[V / 6] = -INFINITY;
    std::vector<float> uniforms((size_t)blocks * GENERATE_TOKENS);
    std::vector<GpuSampler> samplers(blocks, s);
    for (int b = 0; b < blocks; b++) {
        all.insert(all.end(), logits.begin(), logits.end());
        uniforms[(size_t)b * GENERATE_TOKENS] = (float)((b + 0.5) / blocks);
    }
    Array<float> logits_d(all), uniforms_d(Doubles(uniforms.begin(), uniforms.end()));
    const int D = 7;
    Doubles embedding = uniform<float>((size_t)V * D, -1, 1);
    Array<float> embedding_d(embedding), x_d((size_t)blocks * D);
    Array<int> history(blocks * HISTORY_TOKENS), out((size_t)blocks * GENERATE_TOKENS);
    Array<GpuSampler> samplers_d(blocks);
    Results r = repeated([&] {
        x_d.poison(), out.poison();
        CHECK(cudaMemcpy(samplers_d.device, samplers.data(), blocks * sizeof s, cudaMemcpyHostToDevice) == cudaSuccess);
        CHECK(launch(sample_kernel, dim3(blocks), dim3(SAMPLE_THREADS), 0, nullptr, logits_d.device, samplers_d.device,
                     history.device, uniforms_d.device, out.device, x_d.device, embedding_d.device, V,
                     D) == cudaSuccess);
        return Results{columns(device_values(out.device, out.n), GENERATE_TOKENS, 0, 1), x_d.get()};
    });
    int wrong = 0;
    for (int b = 0; b < blocks; b++) {
        double margin = 0;
        int id = expected_sample(logits, s, (b + 0.5) / blocks, &margin);
        wrong += id != (int)r[0][b] && margin > 1e-5;
        for (int i = 0; i < D; i++) wrong += r[1][(size_t)b * D + i] != embedding[(size_t)r[0][b] * D + i];
    }
    if (wrong) printf("%s: %d of %d ids are wrong\n", where, wrong, blocks);
    CHECK(wrong == 0);
}

/* Tokens, states and held logits after n tokens, greedy or drawn; the CPU's sampler draws the same ones in fp32. */
static void test_generate(const char *name, Config config, const char *dtype, int streams, int n, double temperature,
                          int times = 3) {
    Tolerance a = tolerance(dtype);
    begin("generate %s %s, %d streams, temperature %g", name, dtype, streams, temperature);
    Twins m(config, dtype, 0, 0);
    int len = 9, V = config.vocab_size;
    Ints prompt = random_ids((size_t)streams * len, V), ids((size_t)streams * n), expected_ids(ids.size());
    std::vector<uint64_t> left(streams); /* of the random numbers */
    Results r = repeated([&] {
        std::vector<Sampler> samplers(streams);
        for (int b = 0; b < streams; b++) {
            OK(sampler_create(&samplers[b], V, 4, b + 1));
            samplers[b].temperature = temperature, samplers[b].repetition_penalty = 1.5, samplers[b].n_vocab = V - 1,
            samplers[b].banned = 2;
            for (int t = 0; t < len; t++) sampler_accept(&samplers[b], prompt[(size_t)b * len + t]);
        }
        OK(m.gpu.reset(m.gpu.self, streams));
        OK(m.gpu.forward(m.gpu.self, prompt.data(), len, NULL, 0));
        OK(m.gpu.generate(m.gpu.self, ids.data(), n - n / 3, samplers.data()));
        Ints rest((size_t)streams * (n / 3));
        OK(m.gpu.generate(m.gpu.self, rest.data(), n / 3, samplers.data())); /* the samplers have gone on */
        Ints first(ids.begin(), ids.begin() + streams * (n - n / 3));
        for (int b = 0; b < streams; b++)
            for (int i = 0; i < n; i++)
                ids[(size_t)b * n + i] =
                    i < n - n / 3 ? first[b * (n - n / 3) + i] : rest[b * (n / 3) + i - (n - n / 3)];
        for (int b = 0; b < streams; b++) left[b] = samplers[b].rng, sampler_free(&samplers[b]);
        return Results{Doubles(ids.begin(), ids.end()), m.copy(STATE)};
    }, times);
    std::vector<oracle::Sampler> samplers(streams);
    for (int b = 0; b < streams; b++) {
        OK(oracle::sampler_create(&samplers[b], V, 4, b + 1));
        samplers[b].temperature = temperature, samplers[b].repetition_penalty = 1.5, samplers[b].n_vocab = V - 1,
        samplers[b].banned = 2;
        for (int t = 0; t < len; t++) oracle::sampler_accept(&samplers[b], prompt[(size_t)b * len + t]);
    }
    OK(m.cpu.reset(m.cpu.self, streams));
    OK(m.cpu.forward(m.cpu.self, prompt.data(), len, NULL, 0));
    if (!a.in_rms) {
        OK(m.cpu.generate(m.cpu.self, expected_ids.data(), n, samplers.data()));
        CHECK(ids == expected_ids);
        for (int b = 0; b < streams; b++) CHECK(left[b] == samplers[b].rng);
    } else
        OK(m.cpu.forward(m.cpu.self, ids.data(), n, NULL,
                         0)); /* rounding may choose another token: the rest must agree all the same */
    for (int b = 0; b < streams; b++)
        for (int i = 0; i < n; i++) {
            int id = ids[(size_t)b * n + i];
            CHECK(id >= 0 && id < V - 1 && id != 2);
        }
    Doubles states = m.copy(STATE), logits, expected_states = m.copy_twin(STATE), expected_logits;
    logits = take_end(&states, (size_t)streams * V), expected_logits = take_end(&expected_states, (size_t)streams * V);
    AGREE_IN(a, states, expected_states, a.forward);
    AGREE_IN(a, logits, expected_logits, a.forward);
    for (oracle::Sampler &s : samplers) oracle::sampler_free(&s);
}

/* Where blocks hand each other numbers, and how many words: of few streams, and of many. */
typedef std::vector<std::pair<const void *, size_t>> Places;
template <class T> static Places places_of(const FewStep<T> &s) {
    size_t x = (size_t)s.streams * s.d_model, rows = (size_t)s.n_layer * s.streams;
    return {{s.x + x, rows * s.d_model},
            {s.z, rows * s.d_inner},
            {s.gated, rows * s.d_inner},
            {s.parts, rows * s.halves * s.width}};
}
static Places places_of(const ManyStep &s) {
    size_t rows = (size_t)s.n_layer * s.streams, x = (rows + s.streams) * s.d_model;
    return {{s.xw, x / 2}, {s.squares, x / 8}, {s.u, rows * s.d_inner / 2}, {s.gated, rows * s.d_inner / 2},
            {s.dbc, rows * s.width}};
}

/* There are two sets of places, see NOT_YET: after a token all places of its set are filled, and all of the set that
   the next token uses are empty, but for x, which sample_kernel fills before anybody looks. A NaN that looks like an
   empty place is handed on as another one. of: the arguments for a set. */
template <class T, class Of>
static void test_handed(const char *name, Config config, const char *dtype, int streams, Of of) {
    begin("hand over %s %s, %d streams", name, dtype, streams);
    Twins m(config, dtype, 0, 0, false);
    Gpu<T> *gpu = m.self<T>();
    std::vector<Sampler> samplers(streams);
    Ints ids(streams), prompt = random_ids(streams, config.vocab_size);
    for (int b = 0; b < streams; b++) OK(sampler_create(&samplers[b], config.vocab_size, 4, b + 1));
    OK(m.gpu.reset(m.gpu.self, streams));
    CHECK(gpu->handed != NULL);
    auto empty = [&](const void *places, size_t words) {
        std::vector<unsigned> bits(words);
        CHECK(cudaDeviceSynchronize() == cudaSuccess);
        CHECK(cudaMemcpy(bits.data(), places, words * sizeof(float), cudaMemcpyDeviceToHost) == cudaSuccess);
        return (size_t)std::count(bits.begin(), bits.end(), NOT_YET);
    };
    for (int nan = 0; nan < 2; nan++) {
        size_t set_size = std::abs(of(gpu, 0).other), x = (size_t)streams * config.d_model;
        if (nan) {
            memset(m.model.weights, 0xff, m.model.n_param * sizeof(float));
            OK(m.gpu.copy(m.gpu.self, WEIGHTS, m.model.weights, 1));
        }
        CHECK(cudaMemset(gpu->handed, 0, 2 * set_size * sizeof(float)) == cudaSuccess);
        OK(m.gpu.reset(m.gpu.self, streams));
        CHECK(empty(gpu->handed, 2 * set_size) == 2 * set_size);
        OK(m.gpu.forward(m.gpu.self, prompt.data(), 1, NULL, 0));
        for (int token = 0; token < 3; token++) {
            OK(m.gpu.generate(m.gpu.self, ids.data(), 1, samplers.data()));
            for (int set = 0; set < 2; set++) {
                for (const auto &place : places_of(of(gpu, set)))
                    CHECK(empty(place.first, place.second) == (set == gpu->set ? place.second : 0));
                if (set != gpu->set) CHECK(empty(of(gpu, set).x, x) == 0);
            }
        }
    }
    for (Sampler &sampler : samplers) sampler_free(&sampler);
}

/* A prompt at once, in pieces, token by token, and by a backend that continues from a copied state. */
static void test_pieces(Config config, const char *dtype, int streams, int len) {
    Tolerance a = tolerance(dtype);
    begin("prompt in pieces, %s, %d streams of %d", dtype, streams, len);
    Twins m(config, dtype, 0, 0);
    int V = config.vocab_size;
    Ints tokens = random_ids((size_t)streams * len, V);
    std::vector<float> state(state_size(&m.model.config, streams));
    OK(m.gpu.reset(m.gpu.self, streams));
    OK(m.gpu.forward(m.gpu.self, tokens.data(), len, NULL, 0));
    Doubles at_once = m.copy(STATE);
    OK(m.cpu.reset(m.cpu.self, streams));
    OK(m.cpu.forward(m.cpu.self, tokens.data(), len, NULL, 0));
    AGREE_IN(a, at_once, m.copy_twin(STATE), a.forward);
    OK(m.gpu.reset(m.gpu.self, streams));
    for (int first = 0, n; first < len; first += n) {
        Ints piece;
        n = len > 20 ? 1 + (int)(random_bits(&rng) % 40) : 1;
        n = n < len - first ? n : len - first;
        for (int b = 0; b < streams; b++)
            piece.insert(piece.end(), &tokens[(size_t)b * len + first], &tokens[(size_t)b * len + first] + n);
        OK(m.gpu.forward(m.gpu.self, piece.data(), n, NULL, 0));
        if (first + n < len / 2 || first >= len / 2) continue;
        Backend other; /* the state goes through the host into another backend and back */
        OK(m.gpu.copy(m.gpu.self, STATE, state.data(), 0));
        OK(cuda_backend(&other, &m.model, dtype, 0, 0));
        OK(other.reset(other.self, streams));
        OK(other.copy(other.self, STATE, state.data(), 1));
        OK(m.gpu.reset(m.gpu.self, streams));
        OK(other.copy(other.self, STATE, state.data(), 0));
        OK(m.gpu.copy(m.gpu.self, STATE, state.data(), 1));
        other.close(other.self);
    }
    AGREE_IN(a, m.copy(STATE), at_once, a.forward);
}

/* A task's sample is measured in windows, the state carried on: as all of it at once, and the memory does not grow. */
static void test_windows(Config config, const char *dtype, int len, int window) {
    Tolerance a = tolerance(dtype);
    begin("windows of %d, %s", window, dtype);
    Twins m(config, dtype, 0, 0);
    Ints tokens = random_ids(len, config.vocab_size), targets(len, -1);
    double loss, expected_loss, sum = 0;
    long right, expected_right, all_right = 0, n = 0;
    for (int t = len / 4; t < len; t += 3) targets[t] = tokens[len - 1 - t], n++;
    OK(m.cpu.reset(m.cpu.self, 1));
    OK(m.cpu.evaluate(m.cpu.self, tokens.data(), targets.data(), len, &expected_loss, &expected_right));
    OK(m.gpu.reset(m.gpu.self, 1));
    for (int first = 0; first < len; first += window) { /* in some nothing is asked for */
        int part = min(window, len - first), asked = 0;
        for (int t = 0; t < part; t++) asked += targets[first + t] >= 0;
        OK(m.gpu.evaluate(m.gpu.self, &tokens[first], &targets[first], part, &loss, &right));
        sum += loss * asked, all_right += right;
#ifdef CUDA_ON_CPU
        static size_t bytes;
        if (first == 0) bytes = cuda_on_cpu::device_bytes;
        CHECK(cuda_on_cpu::device_bytes <= bytes);
#endif
    }
    CHECK_NEAR(sum / n, expected_loss, a.forward * expected_loss);
    CHECK(a.in_rms || all_right == expected_right);
    AGREE_IN(a, m.copy(STATE), m.copy_twin(STATE), a.forward);
}

/* Which of delta, B and C are constant (bits 0, 1, 2). */
static Config constant(Config c, int which) {
    c.constant_delta = which & 1, c.constant_B = which >> 1 & 1, c.constant_C = which >> 2;
    return c;
}

static void test_constants(const char *dtype) {
    for (int which = 1; which < 8; which++) {
        char name[32];
        snprintf(name, sizeof name, "constants %d", which);
        if (brief && (which % 2 || strcmp(dtype, "bf16") == 0) && which < 7) continue;
        if (which > 5) test_model(name, constant(SMALL, which), dtype, 2, 64);
        if (which < 7) test_model(name, constant(ODD, which), dtype, 2, 33);
        test_generate(name, constant(SMALL, which), dtype, which > 3 ? 1 : 7, 6, 0);
        if (brief && which != 7) continue;
        test_generate(name, constant(ODD, which), dtype, 5, 6, 1);
        test_windows(constant(ODD, which), dtype, 100, 16);
    }
    test_generate("constants, wide", constant(WIDE, 6), dtype, 2, 5, 0);
    if (!brief) test_training(constant(SMALL, 7), dtype, 4, 16, 40);
}

/* Sums of more parts than lanes take at once, as where a GPU has more than 128 multiprocessors. */
static __global__ void sum_parts_kernel(float *sums, FewStep<float> s) {
    few_sum_parts(s, 0);
    for (int i = threadIdx.x; i < s.streams * s.width; i += STEP_THREADS) sums[i] = s.dbc()[i];
}

static void test_sum_parts() {
    begin("sum of parts");
    FewStep<float> s = {};
    s.streams = 3, s.width = 23, s.halves = 148;
    int n = s.streams * s.width;
    Doubles of_blocks = uniform<float>((size_t)n * s.halves, -1, 1), expected(n);
    Array<float> parts(of_blocks), sums(n);
    for (size_t i = 0; i < of_blocks.size(); i++) expected[i / s.halves] += of_blocks[i];
    s.parts = parts.device;
    CHECK(launch(sum_parts_kernel, dim3(1), dim3(STEP_THREADS), few_shared(s), nullptr, sums.device, s) ==
          cudaSuccess);
    AGREE_RMS(sums.get(), expected, 1e-6);
}

#ifdef CUDA_ON_CPU
/* So many streams have a block for each tile, and one more stream would have too few. */
static void test_many_limit(const char *name, Config config, int expand, int streams) {
    config.expand = expand;
    begin("limit of streams, %s, %d", name, streams);
    Twins m(config, "bf16", 0, 0, false);
    CHECK(many_streams(m.self<bf16>(), streams) && !many_streams(m.self<bf16>(), streams + 1));
}
#endif

/* The step of many streams, which needs a GPU with much shared memory. */
static void test_many() {
#ifdef CUDA_ON_CPU
    cuda_on_cpu::Device before = cuda_on_cpu::device;
    cuda_on_cpu::device.shared_per_block_optin = 227 << 10, cuda_on_cpu::device.multiprocessors = 32;
    cuda_on_cpu::device.major = 9;
    test_many_limit("tiles of in_proj", TILES, 8, 32);
    test_many_limit("streams", TILES, 2, MAX_STREAMS);
    test_many_limit("tiles of x_proj", RANKS, 2, 48);
    test_many_limit("tiles of out_proj", CHUNKS, 1, 16);
#endif
    test_handed<bf16>("tiles", TILES, "bf16", 6, [](Gpu<bf16> *gpu, int set) { return many_of(gpu, 6, set); });
    for (int streams : {5, 17, 100}) /* 100: too many */
        if (!brief || streams == 17) test_generate("tiles", TILES, "bf16", streams, 3, streams == 17);
    test_generate("chunks", CHUNKS, "bf16", 6, 3, 0, 2);
    test_generate("ranks", RANKS, "bf16", 33, 3, 0, 1);
    if (!brief) test_generate("head", HEAD, "bf16", 64, 3, 0, 2);
#ifdef CUDA_ON_CPU
    cuda_on_cpu::device = before;
#endif
}

static const char *const parts[] = {"layers", "fp32", "bf16", "tf32", "rest"};
static const char *part; /* the one wanted; NULL: all */
static bool wanted(const char *name) { return part == NULL || strcmp(part, name) == 0; }

static void test_models() {
    const char *dtypes[] = {"fp32", "bf16", "tf32"};
    for (const char *dtype : dtypes) {
        bool tf32 = strcmp(dtype, "tf32") == 0; /* fp32's kernels: only matrix products differ */
        if ((brief && tf32) || !wanted(dtype)) continue;
        test_model("small", SMALL, dtype, 2, 70);
        if (!brief) test_training(SMALL, dtype, 4, 16, 100);
        test_resume(dtype, 0);
        test_generate("small", SMALL, dtype, 3, 12, 0);
        test_pieces(ODD, dtype, 3, 77);
        if (tf32 && !full) continue;
        test_model("odd", ODD, dtype, 3, 37);
        test_model("states", STATES, dtype, 1, 40);
        test_model("many", MANY, dtype, 2, 9);
        test_model("small", SMALL, dtype, 5, 1);
        if (!brief) test_resume(dtype, 1);
        for (int streams : {1, 8, 64}) {
            if (brief && streams > 8) continue;
            test_generate("small", SMALL, dtype, streams, streams > 8 ? 4 : 12, 0);
            test_pieces(streams > 8 ? SMALL : ODD, dtype, streams, streams > 8 ? 5 : 77);
        }
        test_generate("odd", ODD, dtype, 3, 12, 1);
        test_generate("states", STATES, dtype, 2, 6, 0);
        test_generate("three", THREE, dtype, 2, 6, 0);
        test_generate("many", MANY, dtype, 2, 6, 1);
        test_generate("odd", ODD, dtype, 6, 6, 1);
        test_generate("wide", WIDE, dtype, 2, 5, 0);
        test_generate("long", LONG, dtype, 1, 3, 0);
        test_windows(SMALL, dtype, 100, 16);
        test_constants(dtype);
    }
    if (!wanted("rest")) return;
    test_cast<float>();
    test_cast<bf16>();
    test_model("constants, many", constant(MANY, 6), "fp32", 2, 125); /* sums of more columns than d_inner has */
    test_head_rows<float>("fp32");
    test_head_rows<bf16>("bf16");
    test_update<float>("fp32", 1, 0.1);
    test_update<float>("fp32", 0, 0);
    test_update<bf16>("bf16", 1e9, 0.1);
    test_generate("small", SMALL, "fp32", 1, 300, 1, 1); /* more than a GENERATE_TOKENS */
    if (!brief) test_pieces(MANY, "fp32", 64, 130); /* more than PIECE_TOKENS */
    test_generate("broad", BROAD, "tf32", 1, 3, 0, 1);
    test_handed<float>("small", SMALL, "fp32", 1, [](Gpu<float> *gpu, int set) { return few_of(gpu, 1, set); });
    test_handed<bf16>("wide", WIDE, "bf16", 3, [](Gpu<bf16> *gpu, int set) { return few_of(gpu, 3, set); });
    test_sum_parts();
    test_many();
    test_memory();
    test_errors();
    const int draws = full ? 16 : brief ? 2 : 5;
    for (int V : {37, 3000}) {
        test_cross_entropy<float>(9, V * 2 + 1, 3);
        test_cross_entropy<bf16>(9, V * 2 + 1, 50);
        test_cross_entropy<float>(9, V, 1e4);
        test_sampling(V, draws, 1, 12, 0.7, 0.1);
        if (brief) continue;
        test_sampling(V, 16, 3, 40, 1, 0); /* hot: what top-k and min-p leave out would be drawn often */
        test_sampling(V, 16, 3, 0, 1, 0.5);
        test_sampling(V, 16, 1, 0, 1, 0);
        test_sampling(V, draws, 0.7, 9, 1, 0);
        test_sampling(V, draws, 1.3, 0, 0.8, 0);
        test_sampling(V, 16, 1, 0, 1, 0.2);
        test_sampling(V, 2, 1, 1, 1, 0);
        test_sampling(V, 2, 1, 0, 0, 0);
    }
    if (!brief) test_sampling(100000, 1, 0, 1, 1, 0); /* more than all threads fetch at once */
#ifdef CUDA_ON_CPU
    int multiprocessors = cuda_on_cpu::device.multiprocessors;
    cuda_on_cpu::device.multiprocessors = 24; /* some blocks have no channels */
    test_generate("wide, many blocks", WIDE, "fp32", 2, 3, 0, 1);
    cuda_on_cpu::device.multiprocessors = multiprocessors;
    cuda_on_cpu::lazy = true; /* the host does not read what is still on its way */
    test_model("small, lazily", SMALL, "fp32", 2, 33);
    test_model("constants, lazily", constant(SMALL, 7), "fp32", 2, 33);
    test_generate("odd, lazily", ODD, "fp32", 2, 5, 1);
    cuda_on_cpu::lazy = false;
#endif
}

#ifndef CUDA_ON_CPU
/* WHAT ONLY A GPU IS LARGE ENOUGH FOR ============================================================================ */

static const Config MEDIUM = {1000, 128, 3, 16, 4, 2, 8, 0, 0, 1, 1, 1e-5, 0, 0, 0, 0, 0, 0};

template <class T> static __global__ void fill_kernel(T *p, size_t n, unsigned seed, float low, float high) {
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        unsigned long long bits = (i + 1) * 0x9e3779b97f4a7c15ull + seed;
        bits = (bits ^ (bits >> 31)) * 0xbf58476d1ce4e5b9ull;
        p[i] = (T)(low + (high - low) * (float)(bits >> 40) * (1.0f / 16777216));
    }
}

template <class T> static __global__ void differ_kernel(unsigned long long *count, const T *a, const T *b, size_t n) {
    unsigned long long differ = 0;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        differ += !((float)a[i] == (float)b[i]); /* NaN differs from itself */
    if (differ) atomicAdd(count, differ);
}

template <class T> static void fill(Array<T> &a, unsigned seed, float low, float high) {
    CHECK(launch(fill_kernel<T>, dim3(1024), dim3(256), 0, nullptr, a.device, a.n, seed, low, high) == cudaSuccess);
}

template <class T> static bool equal(const T *a, const T *b, size_t n) {
    unsigned long long *count, differ = 1;
    CHECK(cudaMalloc(&count, sizeof *count) == cudaSuccess && cudaMemset(count, 0, sizeof *count) == cudaSuccess);
    CHECK(launch(differ_kernel<T>, dim3(1024), dim3(256), 0, nullptr, count, a, b, n) == cudaSuccess);
    CHECK(cudaMemcpy(&differ, count, sizeof differ, cudaMemcpyDeviceToHost) == cudaSuccess);
    cudaFree(count);
    return differ == 0;
}

/* More than 2^31 elements: the last of three sequences gives the bits that it gives alone. */
static void test_large_layers() {
    const int batch = 3, len = 480000, E = 1536, N = 16, W = 80, K = 4;
    size_t one = (size_t)len * E, n = batch * one, rows = (size_t)batch * len;
    begin("%zu elements", n);
    CHECK(n > (size_t)1 << 31);
    ScanShape shape = scan_shape(1, len, E, N, 132);
    size_t scratch_n = scan_scratch(shape, batch, len, E, 1) + conv_scratch(batch, len, E, 132);
    Array<bf16> u(n), dt(n), xz(2 * n), dbc(rows * W), out(n), du(n), dxz(2 * n), ddbc(rows * W), out1(2 * one),
        du1(one), ddbc1((size_t)len * W);
    Array<float> A(E * N), vector(E), to(batch * 19 * E), grads(E * N + 8 * E), scratch(scratch_n),
        kept(scan_checkpoints(shape, batch, len, E));
    fill(u, 1, -1, 1), fill(dt, 2, -6, 0), fill(xz, 3, -2, 2), fill(dbc, 4, -1, 1), fill(A, 5, -1, 2),
        fill(vector, 6, -1, 1), fill(out, 7, -1, 1);
    fill(grads, 8, 0, 1);
    Scan<bf16> s = {};
    s.batch = batch, s.len = len, s.d_inner = E, s.d_state = N, s.u = u.device, s.dt = dt.device, s.z = xz.device + E,
    s.B = dbc.device + 48;
    s.C = s.B + N, s.ld_u = s.ld_dt = s.ld_out = s.ld_d_out = s.ld_du = s.ld_ddt = E, s.ld_z = s.ld_dz = 2 * E,
    s.ld_b = s.ld_c = s.ld_dbc = W;
    s.A_log = A.device, s.D = s.dt_bias = vector.device, s.h_last = to.device, s.ld_h = (size_t)N * E,
    s.scratch = scratch.device;
    s.out = dxz.device, s.ld_out = 2 * E, s.checkpoints = kept.device;
    OK(scan_forward(s, shape, nullptr));
    Scan<bf16> last = s;
    last.batch = 1, last.u += 2 * one, last.dt += 2 * one, last.z += 4 * one, last.B += (size_t)2 * len * W,
    last.C += (size_t)2 * len * W;
    last.out = out1.device, last.h_last = to.device + (size_t)3 * N * E, last.checkpoints = nullptr;
    OK(scan_forward(last, shape, nullptr));
    CHECK(cudaMemcpy2D(out1.device + one, E * 2, out1.device, 2 * E * 2, E * 2, len / 2, cudaMemcpyDeviceToDevice) ==
          cudaSuccess);
    CHECK(cudaMemcpy2D(du.device, E * 2, dxz.device + 4 * one, 2 * E * 2, E * 2, len / 2, cudaMemcpyDeviceToDevice) ==
          cudaSuccess);
    CHECK(equal(out1.device + one, du.device, one / 2));
    CHECK(equal(s.h_last + (size_t)2 * N * E, last.h_last, (size_t)N * E));

    s.d_out = out.device, s.du = du.device, s.ddt = dt.device, s.dz = dxz.device + E, s.dB = ddbc.device + 48,
    s.dC = s.dB + N; /* ddt in place */
    s.dA_log = grads.device, s.dD = grads.device + E * N, s.ddt_bias = s.dD + E, s.out = nullptr;
    dxz.poison(), ddbc.poison();
    Array<bf16> dt_last(one);
    CHECK(cudaMemcpy(dt_last.device, dt.device + 2 * one, one * sizeof(bf16), cudaMemcpyDeviceToDevice) == cudaSuccess);
    OK(scan_backward(s, shape, nullptr));
    last.d_out = out.device + 2 * one, last.du = du1.device, last.dt = dt_last.device, last.ddt = dt_last.device,
    last.dz = out1.device, last.ld_dz = E;
    last.checkpoints = kept.device, last.out = nullptr;
    last.dB = ddbc1.device + 48, last.dC = last.dB + N, last.dA_log = s.dA_log, last.dD = s.dD,
    last.ddt_bias = s.ddt_bias;
    CHECK(cudaMemcpy(kept.device, kept.device + scan_checkpoints(shape, 2, len, E),
                     scan_checkpoints(shape, 1, len, E) * sizeof(float), cudaMemcpyDeviceToDevice) == cudaSuccess);
    ddbc1.poison();
    OK(scan_backward(last, shape, nullptr));
    CHECK(equal(du1.device, du.device + 2 * one, one) && equal(dt_last.device, dt.device + 2 * one, one));
    CHECK(cudaMemcpy2D(du.device, 2 * N * 2, ddbc.device + (size_t)2 * len * W + 48, W * 2, 2 * N * 2, len,
                       cudaMemcpyDeviceToDevice) == cudaSuccess);
    CHECK(cudaMemcpy2D(du1.device, 2 * N * 2, ddbc1.device + 48, W * 2, 2 * N * 2, len, cudaMemcpyDeviceToDevice) ==
          cudaSuccess);
    CHECK(equal(du1.device, du.device, (size_t)len * 2 * N));

    Conv<bf16> conv = {};
    conv.batch = batch, conv.len = len, conv.d_inner = E, conv.d_conv = K, conv.multiprocessors = 132;
    conv.x = xz.device, conv.ld_x = 2 * E, conv.weight = A.device;
    conv.bias = vector.device, conv.last = to.device, conv.ld_state = 3 * E, conv.u = u.device, conv.ld_u = E,
    conv.scratch = scratch.device;
    conv.du = out.device, conv.dx = dxz.device, conv.ld_du = E, conv.ld_dx = 2 * E, conv.dweight = grads.device,
    conv.dbias = grads.device + 4 * E;
    OK(conv_forward(conv, nullptr));
    OK(conv_backward(conv, nullptr));
    conv.batch = 1, conv.x += 4 * one, conv.last += 9 * E, conv.u = du1.device, conv.du += 2 * one,
    conv.dx = out1.device, conv.ld_dx = E;
    OK(conv_forward(conv, nullptr));
    OK(conv_backward(conv, nullptr));
    CHECK(equal(du1.device, u.device + 2 * one, one));
    CHECK(cudaMemcpy2D(du.device, E * 2, dxz.device + 4 * one, 2 * E * 2, E * 2, len, cudaMemcpyDeviceToDevice) ==
          cudaSuccess);
    CHECK(equal(out1.device, du.device, one));
}

/* The gradient of two halves that are the same is that of one. */
static void test_large_model() {
    Config c = {16, 128, 1, 8, 4, 2, 8, 0, 0, 1, 1, 1e-5, 0, 0, 0, 0, 0, 0};
    const int batch = 2, len = 4100000;
    Ints tokens((size_t)batch * len), targets(tokens.size());
    double loss[2];
    Doubles grads[2];
    begin("model with %g elements", (double)batch * len * 512);
    batch_of(&tokens, &targets, 1, len, 16);
    std::copy(tokens.begin(), tokens.begin() + len, tokens.begin() + len);
    std::copy(targets.begin(), targets.begin() + len, targets.begin() + len);
    Twins m(c, "bf16", 1, 1, false);
    for (int i = 0; i < 2; i++) {
        AdamW o = {0.9, 0.95, 1e-8, 0, 0};
        OK(m.gpu.gradient(m.gpu.self, tokens.data(), targets.data(), i + 1, len, 1));
        grads[i] = m.grads();
        OK(m.gpu.update(m.gpu.self, &o, 0, i + 1, &loss[i], NULL));
    }
    CHECK_NEAR(loss[0], loss[1], 1e-4);
    AGREE_RMS(grads[1], grads[0], 1e-2);
}

/* bf16's training curve is fp32's, within 1% of the loss over the last 100 of 1000 steps. */
static void test_curve() {
    const int B = 8, len = 128, steps = 1000;
    double mean[2] = {};
    AdamW o = {0.9, 0.95, 1e-8, 0.1, 1};
    begin("bf16 against fp32 for %d steps", steps);
    Config c = MEDIUM;
    c.vocab_size = 64;
    Twins m(c, "fp32", 1, 0, false), half(c, "bf16", 1, 0, false);
    for (int step = 1; step <= steps; step++) {
        Ints tokens(B * len), targets(B * len);
        batch_of(&tokens, &targets, B, len, c.vocab_size);
        for (int i = 0; i < 2; i++) {
            Backend *b = i == 0 ? &m.gpu : &half.gpu;
            double loss;
            OK(b->gradient(b->self, tokens.data(), targets.data(), B, len, 1));
            OK(b->update(b->self, &o, learning_rate(step, 50, steps, 1e-3, 1e-5), step, &loss, NULL));
            if (step > steps - 100) mean[i] += loss / 100;
        }
    }
    printf("mean loss of the last 100 of %d steps: fp32 %.5f, bf16 %.5f\n", steps, mean[0], mean[1]);
    CHECK_NEAR(mean[1], mean[0], 0.01 * mean[0]);
}

static void test_large() {
    for (const char *dtype : {"fp32", "tf32", "bf16"}) {
        test_model("medium", MEDIUM, dtype, 3, 130);
        test_generate("medium", MEDIUM, dtype, 1, 40, 0);
        test_generate("medium", MEDIUM, dtype, 8, 10, 0);
        test_pieces(MEDIUM, dtype, 2, 300);
    }
    test_generate("130m's layer", {1000, 768, 1, 16, 4, 2, 48, 0, 0, 1, 1, 1e-5, 0, 0, 0, 0, 0, 0}, "bf16", 64, 6, 0);
    test_training(MEDIUM, "fp32", 2, 64, 100);
    for (int V : {5000, 50280}) {
        test_cross_entropy<float>(9, V, 10);
        test_cross_entropy<bf16>(9, V, 10);
        test_sampling(V, 64, 1, 0, 1, 0);
        test_sampling(V, 64, 0.8, 40, 0.9, 0.02);
        test_sampling(V, 64, 1, 0, 0.9, 0);
    }
    test_curve();
    test_large_layers();
    test_large_model();
}
#else
static void test_large() {}
#endif

#if defined CUDA_ON_CPU && defined __linux__
/* The functions that mamba.cu declares __global__. */
static std::vector<std::string> kernels_of_source() {
    std::vector<std::string> names;
    size_t n = 0;
    char *text = read_file("mamba.cu", &n);
    CHECK(text != NULL);
    for (const char *p = text; p != NULL && (p = strstr(p, "__global__ ")) != NULL;) {
        const char *bounds = strstr(p, "__launch_bounds__"), *end = strchr(p, '('), *begin;
        if (bounds != NULL && bounds < end) { /* its own parentheses come first */
            int depth = 1;
            for (end++; depth > 0; end++) depth += (*end == '(') - (*end == ')');
            end = strchr(end, '(');
        }
        for (begin = end; isalnum((unsigned char)begin[-1]) || begin[-1] == '_';) begin--;
        names.push_back(std::string(begin, end));
        p = end;
    }
    release(text);
    return names;
}

/* The functions of this program, from its own symbol table: address and name with template arguments. */
static std::vector<std::pair<uintptr_t, std::string>> functions_of_program() {
    std::vector<std::pair<uintptr_t, std::string>> functions;
    size_t n = 0;
    uintptr_t base = 0;
    char *file = read_file("/proc/self/exe", &n);
    CHECK(file != NULL);
    dl_iterate_phdr([](dl_phdr_info *program, size_t, void *to) { return *(uintptr_t *)to = program->dlpi_addr, 1; },
                    &base);
    const ElfW(Ehdr) *header = (const ElfW(Ehdr) *)file;
    const ElfW(Shdr) *section = (const ElfW(Shdr) *)(file + header->e_shoff);
    for (int i = 0; i < header->e_shnum; i++)
        for (size_t at = 0; section[i].sh_type == SHT_SYMTAB && at < section[i].sh_size; at += sizeof(ElfW(Sym))) {
            const ElfW(Sym) *symbol = (const ElfW(Sym) *)(file + section[i].sh_offset + at);
            if ((symbol->st_info & 15) != STT_FUNC) continue;
            const char *mangled = file + section[section[i].sh_link].sh_offset + symbol->st_name;
            char *name = abi::__cxa_demangle(mangled, NULL, NULL, NULL);
            functions.push_back({base + symbol->st_value, name != NULL ? name : mangled});
            free(name);
        }
    release(file);
    return functions;
}

/* No kernel without its test: each that mamba.cu declares has run, in each form that was compiled, and, but for a brief
   test, under every schedule. */
static void test_all_launched() {
    unsigned wanted = brief ? 1 : 7;
    auto functions = functions_of_program();
    std::vector<std::string> kernels = kernels_of_source();
    CHECK(kernels.size() > 20);
    for (const std::string &kernel : kernels) {
        int n_forms = 0;
        for (auto &f : functions) {
            size_t at = f.second.find(kernel), end = at + kernel.size();
            if (at == std::string::npos || (at > 0 && f.second[at - 1] != ' ') ||
                (f.second[end] != '<' && f.second[end] != '(') || f.second.find("[clone") != std::string::npos ||
                f.second.find("::{lambda") != std::string::npos)
                continue;
            n_forms++;
            if ((cuda_on_cpu::launched[f.first] & wanted) != wanted)
                CHECK(!"every kernel is launched"), printf("not launched under every schedule: %s\n", f.second.c_str());
            else check_passed++;
        }
        if (n_forms == 0) CHECK(!"every kernel is launched"), printf("nothing launches %s\n", kernel.c_str());
    }
}
#else
static void test_all_launched() {}
#endif

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
#ifndef CUDA_ON_CPU
    full = true;
#elif defined CUDA_ON_CPU_ASAN
    brief = true;
#endif
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "quick") == 0) full = brief = false;
        else if (strcmp(argv[i], "full") == 0) full = true, brief = false;
        else if (strcmp(argv[i], "brief") == 0) full = false, brief = true;
#ifndef CUDA_ON_CPU
        else if (strcmp(argv[i], "unpoisoned") == 0) poison = false;
#endif
        else {
            part = NULL;
            for (const char *name : parts)
                if (strcmp(argv[i], name) == 0) part = name;
            if (part == NULL)
                return fprintf(stderr, "usage: test_cuda [quick|full|brief] [layers|fp32|bf16|tf32|rest]\n"), 1;
        }
    }
    if (wanted("layers")) test_layers();
    test_models();
    if (full && part == NULL) test_large();
    if (part == NULL) test_all_launched();
    return check_report();
}
