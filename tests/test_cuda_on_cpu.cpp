/* Tests of cuda_on_cpu.h itself: what a kernel may use does what CUDA says, and what a kernel must not do is reported.
   SPDX-License-Identifier: MIT */
#ifndef CUDA_ON_CPU
#define CUDA_ON_CPU
#endif
#include "cuda_on_cpu.h"
#include "check.h"

namespace cpu = cuda_on_cpu;

/* An array on the device, and its copy on the host. */
template <class T> struct Array {
    T *device = nullptr;
    std::vector<T> host;
    explicit Array(size_t n) : host(n) { CHECK(cudaMalloc(&device, n * sizeof(T)) == cudaSuccess); }
    ~Array() { CHECK(cudaFree(device) == cudaSuccess); }
    Array(const Array &) = delete;
    void operator=(const Array &) = delete;
    size_t bytes() const { return host.size() * sizeof(T); }
    void upload() { CHECK(cudaMemcpy(device, host.data(), bytes(), cudaMemcpyHostToDevice) == cudaSuccess); }
    void download() { CHECK(cudaMemcpy(host.data(), device, bytes(), cudaMemcpyDeviceToHost) == cudaSuccess); }
};

/* Every test of a right kernel runs under each of these; the last two are random. */
static void set_schedule(int i) {
    cpu::schedule = i == 0 ? cpu::FORWARD : i == 1 ? cpu::REVERSE : cpu::RANDOM;
    cpu::seed = (uint64_t)i;
}
static const int n_schedule = 4;

static bool reported(const char *text) {
    bool found = strstr(cpu::report, text) != nullptr;
    if (!found) printf("report: %s\n", cpu::report);
    return found;
}

/* --- right kernels --------------------------------------------------------------------------------------------- */

static __global__ void indices(int *out) {
    int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    out[block * blockDim.x * blockDim.y * blockDim.z + thread] += thread + 1000 * block;
}

static void test_indices() {
    dim3 grid(3, 2, 2), block(5, 3, 2);
    Array<int> out(12 * 30);
    CHECK(cudaMemset(out.device, 0, out.bytes()) == cudaSuccess);
    CHECK(launch(indices, grid, block, 0, nullptr, out.device) == cudaSuccess);
    out.download();
    int wrong = 0;
    for (int i = 0; i < 12 * 30; i++) wrong += out.host[i] != i % 30 + 1000 * (i / 30);
    CHECK(wrong == 0);
}

/* Sum of a block: shuffles within warps, one number per warp through shared memory, shuffles again. */
template <int THREADS> static __global__ void __launch_bounds__(THREADS) reduce(float *sums, const float *x) {
    __shared__ float of_warp[THREADS / 32];
    float sum = x[blockIdx.x * THREADS + threadIdx.x];
    for (int bit = 16; bit > 0; bit /= 2) sum += __shfl_xor_sync(~0u, sum, bit);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = threadIdx.x < THREADS / 32 ? of_warp[threadIdx.x] : 0;
    if (threadIdx.x < 32) {
        for (int delta = 16; delta > 0; delta /= 2) sum += __shfl_down_sync(~0u, sum, delta);
        if (threadIdx.x == 0) sums[blockIdx.x] = sum;
    }
}

static void test_reduction() {
    Array<float> x(4 * 1024), sums(4);
    for (size_t i = 0; i < x.host.size(); i++) x.host[i] = (float)(i % 7);
    x.upload();
    CHECK((launch(reduce<1024>, 4, 1024, 0, nullptr, sums.device, x.device) == cudaSuccess));
    sums.download();
    for (int b = 0; b < 4; b++) {
        float sum = 0;
        for (int i = 0; i < 1024; i++) sum += x.host[b * 1024 + i];
        CHECK(sums.host[b] == sum);
    }
    CHECK((launch(reduce<64>, 4, 64, 0, nullptr, sums.device, x.device) == cudaSuccess));
    sums.download();
    CHECK_NEAR(sums.host[0], 9 * 21 + 0, 0);
}

static __global__ void transpose(float *out, const float *in, int rows, int columns) {
    __shared__ float tile[32][33];
    int x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 32;
    for (int i = threadIdx.y; i < 32; i += blockDim.y)
        if (x < columns && y + i < rows) tile[i][threadIdx.x] = in[(y + i) * columns + x];
    __syncthreads();
    x = blockIdx.y * 32 + threadIdx.x, y = blockIdx.x * 32;
    for (int i = threadIdx.y; i < 32; i += blockDim.y)
        if (x < rows && y + i < columns) out[(y + i) * rows + x] = tile[threadIdx.x][i];
}

static void test_transposition() {
    int rows = 70, columns = 45, wrong = 0;
    Array<float> in(rows * columns), out(rows * columns);
    for (int i = 0; i < rows * columns; i++) in.host[i] = (float)i;
    in.upload();
    CHECK(launch(transpose, dim3(2, 3), dim3(32, 4), 0, nullptr, out.device, in.device, rows, columns) == cudaSuccess);
    out.download();
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++) wrong += out.host[j * rows + i] != in.host[i * columns + j];
    CHECK(wrong == 0);
}

/* Inclusive sum over a block in dynamic shared memory (Hillis and Steele): two barriers per level. */
static __global__ void scan(int *x) {
    int *sums = dynamic_shared<int>(), i = threadIdx.x, n = blockDim.x;
    sums[i] = x[i];
    __syncthreads();
    for (int d = 1; d < n; d *= 2) {
        int left = i >= d ? sums[i - d] : 0;
        __syncthreads();
        sums[i] += left;
        __syncthreads();
    }
    x[i] = sums[i];
}

static void test_dynamic_shared() {
    Array<int> x(500);
    for (int i = 0; i < 500; i++) x.host[i] = i;
    x.upload();
    CHECK(launch(scan, 1, 500, 500 * sizeof(int), nullptr, x.device) == cudaSuccess);
    x.download();
    int wrong = 0;
    for (int i = 0; i < 500; i++) wrong += x.host[i] != i * (i + 1) / 2;
    CHECK(wrong == 0);
}

/* out: (12, 32), a row per operation */
static __global__ void warp_operations(int *out) {
    int lane = threadIdx.x;
    unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    double wide = 1.5 * lane;
    out[0 * 32 + lane] = __shfl_sync(~0u, lane, 5);
    out[1 * 32 + lane] = __shfl_sync(~0u, lane, lane + 1, 8);
    out[2 * 32 + lane] = __shfl_up_sync(~0u, lane, 3);
    out[3 * 32 + lane] = __shfl_up_sync(~0u, lane, 1, 4);
    out[4 * 32 + lane] = __shfl_down_sync(~0u, lane, 30);
    out[5 * 32 + lane] = __shfl_down_sync(~0u, lane, 2, 4);
    out[6 * 32 + lane] = __shfl_xor_sync(~0u, lane, 9);
    out[7 * 32 + lane] = (int)__ballot_sync(half, lane % 3 == 0);
    out[8 * 32 + lane] = __any_sync(half, lane == 20);
    out[9 * 32 + lane] = __all_sync(half, lane != 20);
    out[10 * 32 + lane] = (int)__shfl_xor_sync(half, wide, 1);
    if (lane < 4) out[11 * 32 + lane] = __shfl_xor_sync(0xf, lane, 2);
    else out[11 * 32 + lane] = -1;
}

static void test_warp_operations() {
    Array<int> out(12 * 32);
    CHECK(launch(warp_operations, 1, 32, 0, nullptr, out.device) == cudaSuccess);
    out.download();
    int wrong[12] = {0};
    for (int lane = 0; lane < 32; lane++) {
        unsigned third = 0x49249249u; /* bits 0, 3, 6, ... 30 */
        int expected[12] = {
            5, lane / 8 * 8 + (lane + 1) % 8, lane < 3 ? lane : lane - 3, lane % 4 == 0 ? lane : lane - 1,
            lane < 2 ? lane + 30 : lane, lane % 4 < 2 ? lane + 2 : lane, lane ^ 9,
            (int)(third & (lane < 16 ? 0xffffu : 0xffff0000u)), lane >= 16, lane < 16,
            (int)(1.5 * (lane ^ 1)), lane < 4 ? lane ^ 2 : -1
        };
        for (int row = 0; row < 12; row++) wrong[row] += out.host[row * 32 + lane] != expected[row];
    }
    for (int row = 0; row < 12; row++) CHECK(wrong[row] == 0);
}

static __global__ void votes(int *out, unsigned *counter) {
    int i = threadIdx.x;
    int count = __syncthreads_count(i % 3 == 0), any = __syncthreads_or(i == 77), all = __syncthreads_and(i < 99);
    unsigned ticket = atomicAdd(counter, 1);
    atomicMax(out + 3, i);
    if (ticket == gridDim.x * blockDim.x - 1) out[0] = count, out[1] = any, out[2] = all;
}

static void test_votes() {
    Array<int> out(4);
    Array<unsigned> counter(1);
    CHECK(cudaMemset(counter.device, 0, 4) == cudaSuccess);
    CHECK(launch(votes, 3, 100, 0, nullptr, out.device, counter.device) == cudaSuccess);
    out.download();
    counter.download();
    CHECK(out.host[0] == 34 && out.host[1] == 1 && out.host[2] == 0 && out.host[3] == 99 && counter.host[0] == 300);
}

/* The next row is copied to shared memory while the row before is summed. */
template <bool WAITS> static __global__ void copies(float *sums, const float *x, int rows) {
    float(*row)[128] = dynamic_shared<float[128]>(), sum = 0;
    unsigned long long *arrival = (unsigned long long *)row[2];
    int i = threadIdx.x;
    auto load = [&](int r) {
        if (i != 0 || r >= rows) return;
        cpu::expect(&arrival[r % 2], sizeof row[0]);
        for (int half = 0; half < 2; half++)
            cpu::copy_bytes(row[r % 2] + half * 64, x + r * 128 + half * 64, sizeof row[0] / 2, &arrival[r % 2]);
    };
    if (i == 0) cpu::arrival_init(&arrival[0]), cpu::arrival_init(&arrival[1]);
    __syncthreads();
    load(0);
    for (int r = 0; r < rows; r++) {
        load(r + 1);
        if (WAITS) cpu::wait_for_bytes(&arrival[r % 2], r / 2);
        for (int j = 0; j < 4; j++) sum += row[r % 2][i + 32 * j];
        __syncthreads();
    }
    sums[i] = sum;
}

static void test_copies() {
    const int shared = 2 * 128 * sizeof(float) + 16;
    Array<float> sums(32), x(5 * 128);
    for (int i = 0; i < 5 * 128; i++) x.host[i] = (float)(i % 7);
    x.upload();
    CHECK(launch_together(copies<true>, 1, 32, shared, nullptr, sums.device, x.device, 5) == cudaSuccess);
    sums.download();
    int wrong = 0;
    for (int i = 0; i < 32; i++) {
        float sum = 0;
        for (int k = i; k < 5 * 128; k += 32) sum += x.host[k];
        wrong += sums.host[i] != sum;
    }
    CHECK(wrong == 0);
    cpu::verbose = false;
    CHECK(launch_together(copies<false>, 1, 32, shared, nullptr, sums.device, x.device, 2) == cudaErrorLaunchFailure);
    CHECK(reported("a copy that nobody has waited for"));
    CHECK(cudaDeviceSynchronize() == cudaErrorLaunchFailure);
    sums.download();
    CHECK(std::isnan(sums.host[3]));
    CHECK(launch_together(copies<false>, 1, 32, shared, nullptr, sums.device, x.device, 5) == cudaErrorLaunchFailure);
    CHECK(reported("bytes are expected before"));
    CHECK(cudaDeviceSynchronize() == cudaErrorLaunchFailure);
    CHECK(launch_together(copies<true>, 1, 32, shared, nullptr, sums.device, x.device + 1, 5) ==
          cudaErrorLaunchFailure);
    CHECK(reported("multiples of 16"));
    CHECK(cudaDeviceSynchronize() == cudaErrorLaunchFailure);
    cpu::verbose = true;
    cudaGetLastError();
}

/* A product of three warps, on matrices of small integers: exact in bf16. */
static __global__ void multiply(float *d, const __nv_bfloat16 *a, const __nv_bfloat16 *b) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, matrix = threadIdx.x / 32;
    const __nv_bfloat16 *a_row = a + matrix * 256 + g * 16 + 2 * t, *b_column = b + matrix * 128 + g * 16 + 2 * t;
    unsigned of_a[4], of_b[2];
    float sum[4] = {1, 1, 1, 1};
    for (int i = 0; i < 4; i++) memcpy(&of_a[i], a_row + i % 2 * 8 * 16 + i / 2 * 8, 4);
    for (int i = 0; i < 2; i++) memcpy(&of_b[i], b_column + i * 8, 4);
    cpu::mma_16x8x16(sum, of_a[0], of_a[1], of_a[2], of_a[3], of_b[0], of_b[1]);
    for (int i = 0; i < 4; i++) d[matrix * 128 + (g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}

static void test_multiply() {
    Array<__nv_bfloat16> a(3 * 256), b(3 * 128);
    Array<float> d(3 * 128);
    for (int i = 0; i < 3 * 256; i++) a.host[i] = i * 7 % 23 - 11;
    for (int i = 0; i < 3 * 128; i++) b.host[i] = i * 5 % 19 - 9;
    a.upload(), b.upload();
    CHECK(launch(multiply, 1, 96, 0, nullptr, d.device, a.device, b.device) == cudaSuccess);
    d.download();
    int wrong = 0;
    for (int i = 0; i < 3 * 128; i++) {
        float sum = 1;
        for (int k = 0; k < 16; k++)
            sum += (float)a.host[i / 8 * 16 + k] * (float)b.host[(i / 128 * 8 + i % 8) * 16 + k];
        wrong += d.host[i] != sum;
    }
    CHECK(wrong == 0);
}

/* --- numbers --------------------------------------------------------------------------------------------------- */

/* bf16 by its definition: of the two neighbours the nearer one, at a tie the even one. */
static void test_bf16() {
    int wrong = 0;
    for (uint64_t i = 0; i < ((uint64_t)1 << 32); i += 4099) {
        float f = __uint_as_float((unsigned)i);
        if (f != f || std::isinf(f)) continue;
        unsigned short down = (unsigned short)(i >> 16), up = (unsigned short)(down + 1);
        double below = (double)__ushort_as_bfloat16(down), above = (double)__ushort_as_bfloat16(up);
        if (std::isinf(above)) above = std::copysign(std::ldexp(1.0, 128), above); /* where the next number would be */
        double to_below = fabs(f - below), to_above = fabs(above - f);
        bool downwards = to_below < to_above || (to_below == to_above && down % 2 == 0);
        wrong += __bfloat16_as_ushort(__float2bfloat16_rn(f)) != (downwards ? down : up);
    }
    CHECK(wrong == 0);
    float nan = (float)__float2bfloat16(NAN), infinity = (float)__float2bfloat16(INFINITY);
    CHECK(nan != nan && std::isinf(infinity));
    __nv_bfloat162 pair = __floats2bfloat162_rn(1.0f, -2.5f);
    CHECK(cpu::same_bits<uint32_t>(pair) == 0xc0203f80u && __low2float(pair) == 1 && __high2float(pair) == -2.5f);
    float values[4] = {1, 2, 3, 4};
    *(float4 *)values = make_float4(5, 6, 7, 8);
    CHECK(values[0] == 5 && values[3] == 8);
    CHECK(__popc(0xf0f0u) == 8 && __clz(1) == 31 && __clz(0) == 32 && __ffs(8) == 4 && __saturatef(1.5f) == 1);
}

/* --- host ------------------------------------------------------------------------------------------------------- */

static __global__ void axpy(float *y, const float *x, float a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] += a * x[i];
}

static void test_graph() {
    int n = 1000;
    Array<float> x(n), y(n);
    cudaStream_t stream, second;
    cudaEvent_t event;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    float *pinned;
    for (int i = 0; i < n; i++) x.host[i] = (float)i;
    x.upload();
    CHECK(cudaStreamCreate(&stream) == cudaSuccess && cudaStreamCreate(&second) == cudaSuccess);
    CHECK(cudaEventCreate(&event) == cudaSuccess && cudaMallocHost(&pinned, x.bytes()) == cudaSuccess);
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
    CHECK(cudaMemsetAsync(y.device, 0, y.bytes(), stream) == cudaSuccess);
    for (int i = 1; i <= 3; i++) { /* i is captured by value */
        float a = (float)i;
        CHECK(launch(axpy, 4, 256, 0, stream, y.device, x.device, a, n) == cudaSuccess);
    }
    CHECK(cudaEventRecord(event, stream) == cudaSuccess && cudaStreamWaitEvent(second, event, 0) == cudaSuccess);
    CHECK(launch(axpy, 4, 256, 0, second, y.device, x.device, 0.5f, n) == cudaSuccess);
    CHECK(cudaEventRecord(event, second) == cudaSuccess && cudaStreamWaitEvent(stream, event, 0) == cudaSuccess);
    CHECK(cudaMemcpyAsync(pinned, y.device, y.bytes(), cudaMemcpyDeviceToHost, stream) == cudaSuccess);

    cpu::verbose = false; /* what a capture forbids */
    CHECK(cudaStreamSynchronize(stream) == cudaErrorStreamCaptureUnsupported);
    CHECK(launch(axpy, 4, 256, 0, nullptr, y.device, x.device, 1.0f, n) == cudaErrorStreamCaptureImplicit);
    void *none;
    CHECK(cudaMalloc(&none, 4) == cudaErrorStreamCaptureUnsupported);
    cpu::verbose = true;
    cudaGetLastError();

    CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
    CHECK(cudaGraphInstantiateWithFlags(&exec, graph, 0) == cudaSuccess && cudaGraphDestroy(graph) == cudaSuccess);
    y.download();
    CHECK(y.host[1] != y.host[1]); /* recorded, not run: still poison */
    for (int run = 0; run < 2; run++) {
        CHECK(cudaGraphLaunch(exec, stream) == cudaSuccess && cudaStreamSynchronize(stream) == cudaSuccess);
        int wrong = 0;
        for (int i = 0; i < n; i++) wrong += pinned[i] != 6.5f * (float)i;
        CHECK(wrong == 0);
    }
    CHECK(cudaGraphExecDestroy(exec) == cudaSuccess && cudaFreeHost(pinned) == cudaSuccess);
    CHECK(cudaEventDestroy(event) == cudaSuccess);
    CHECK(cudaStreamDestroy(stream) == cudaSuccess && cudaStreamDestroy(second) == cudaSuccess);
}

static void test_lazy() {
    Array<float> x(4), y(4);
    float *pinned;
    for (int i = 0; i < 4; i++) x.host[i] = (float)i;
    CHECK(cudaMallocHost(&pinned, 16) == cudaSuccess);
    cpu::lazy = true;
    x.upload();
    cudaMemset(y.device, 0, 16);
    launch(axpy, 1, 32, 0, nullptr, y.device, x.device, 2.0f, 4);
    cudaMemcpyAsync(pinned, y.device, 16, cudaMemcpyDeviceToHost);
    CHECK(pinned[1] != pinned[1]); /* nobody has waited */
    CHECK(cudaDeviceSynchronize() == cudaSuccess && pinned[1] == 2 && pinned[3] == 6);
    cpu::lazy = false;
    cudaFreeHost(pinned);
}

static void test_memory() {
    float *p = nullptr, on_host[8];
    size_t free_before, free_after, total;
    memset(on_host, 0, sizeof on_host);
    cudaMemGetInfo(&free_before, &total);
    CHECK(cudaMalloc(&p, 32) == cudaSuccess);
    cudaMemGetInfo(&free_after, &total);
    CHECK(free_before - free_after == 32);
    CHECK(cudaMemcpy(on_host, p, 32, cudaMemcpyDefault) == cudaSuccess && on_host[7] != on_host[7]); /* poison */
    cpu::verbose = false;
    CHECK(cudaMemcpy(p + 1, on_host, 32, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy(on_host, p - 1, 8, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy(p, on_host, 4, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
    CHECK(cudaMemset(on_host, 0, 4) == cudaErrorInvalidValue);
    CHECK(cudaMemset(p, 0, 33) == cudaErrorInvalidValue);
    CHECK(cudaFree(on_host) == cudaErrorInvalidValue);
    CHECK(launch(axpy, 1, 32, 0, nullptr, p, on_host, 1.0f, 4) == cudaErrorInvalidValue);
    CHECK(reported("axpy: argument 2 is no device pointer"));
    cpu::verbose = true;
    CHECK(cudaFree(p) == cudaSuccess);
    size_t keep = cpu::device.memory;
    cpu::device.memory = 1000;
    CHECK(cudaMalloc(&p, 1001) == cudaErrorMemoryAllocation && p == nullptr);
    CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);
    cpu::device.memory = keep;
    CHECK(cudaGetLastError() == cudaSuccess);
}

/* Every transposition and type against three loops in double. */
static void test_gemm() {
    int m = 7, n = 5, k = 9, batch = 2, ld = 12;
    cublasHandle_t handle;
    CHECK(cublasCreate(&handle) == CUBLAS_STATUS_SUCCESS);
    for (int variant = 0; variant < 16; variant++) {
        bool ta = variant & 1, tb = variant & 2, bf16 = variant & 4, out_bf16 = variant & 8;
        size_t stride = 12 * 12;
        Array<float> a(2 * stride), b(2 * stride), c(2 * stride);
        Array<__nv_bfloat16> a16(2 * stride), b16(2 * stride), c16(2 * stride);
        for (size_t i = 0; i < 2 * stride; i++) { /* values that bf16 holds exactly */
            a16.host[i] = a.host[i] = (float)((int)(i * 37 % 17) - 8) / 4;
            b16.host[i] = b.host[i] = (float)((int)(i * 53 % 19) - 9) / 8;
            c16.host[i] = c.host[i] = (float)((int)(i * 29 % 13) - 6);
        }
        std::vector<float> before = c.host;
        a.upload(), b.upload(), c.upload(), a16.upload(), b16.upload(), c16.upload();
        float alpha = 0.5f, beta = variant % 3 == 0 ? 0.0f : 2.0f;
        cublasOperation_t op_a = ta ? CUBLAS_OP_T : CUBLAS_OP_N, op_b = tb ? CUBLAS_OP_T : CUBLAS_OP_N;
        cudaDataType type = bf16 ? CUDA_R_16BF : CUDA_R_32F, type_c = out_bf16 ? CUDA_R_16BF : CUDA_R_32F;
        const void *pa = bf16 ? (void *)a16.device : a.device, *pb = bf16 ? (void *)b16.device : b.device;
        void *pc = out_bf16 ? (void *)c16.device : c.device;
        CHECK(cublasGemmStridedBatchedEx(handle, op_a, op_b, m, n, k, &alpha, pa, type, ld, stride, pb, type, ld,
                                         stride, &beta, pc, type_c, ld, stride, batch, CUBLAS_COMPUTE_32F,
                                         CUBLAS_GEMM_DEFAULT) == CUBLAS_STATUS_SUCCESS);
        c.download(), c16.download();
        double worst = 0;
        for (int s = 0; s < batch; s++)
            for (int i = 0; i < ld; i++)
                for (int j = 0; j < ld; j++) {
                    size_t at = s * stride + i + (size_t)j * ld;
                    double expected = before[at], got = out_bf16 ? (float)c16.host[at] : c.host[at];
                    if (i < m && j < n) {
                        expected *= beta;
                        for (int p = 0; p < k; p++)
                            expected += alpha * a.host[s * stride + (ta ? p + i * ld : i + p * ld)] *
                                        b.host[s * stride + (tb ? j + p * ld : p + j * ld)];
                    }
                    worst = fmax(worst, fabs(got - expected) / (1 + fabs(expected)));
                }
        CHECK(worst < (out_bf16 ? 4e-3 : 1e-6));
    }
    Array<float> a(100), c(100);
    float one = 1, zero = 0;
    cpu::verbose = false;
    auto call = [&](int m, int n, int k, int lda, int ldb, int ldc) {
        return cublasSgemm(handle, CUBLAS_OP_N, CUBLAS_OP_N, m, n, k, &one, a.device, lda, a.device, ldb, &zero,
                           c.device, ldc);
    };
    CHECK(call(10, 10, 10, 10, 10, 10) == CUBLAS_STATUS_SUCCESS);
    CHECK(call(10, 10, 10, 9, 10, 10) == CUBLAS_STATUS_INVALID_VALUE && reported("lda is too small"));
    CHECK(call(10, 10, 11, 10, 11, 10) == CUBLAS_STATUS_INVALID_VALUE && reported("leaves its allocation"));
    CHECK(call(10, 10, 10, 10, 10, 11) == CUBLAS_STATUS_INVALID_VALUE && reported("C leaves its allocation"));
    cpu::verbose = true;
    cudaGetLastError();
    CHECK(cublasDestroy(handle) == CUBLAS_STATUS_SUCCESS);
}

/* --- wrong kernels ---------------------------------------------------------------------------------------------- */

/* Every block finds poison, whatever the block before has left. */
static __global__ void uninitialised(float *out) {
    __shared__ float fixed[32];
    float *dynamic = dynamic_shared<float>();
    if (out != nullptr) {
        out[blockIdx.x * 2] = fixed[threadIdx.x];
        out[blockIdx.x * 2 + 1] = dynamic[threadIdx.x];
    }
    fixed[threadIdx.x] = dynamic[threadIdx.x] = 1;
}

enum { RETURNS, OTHER_BARRIER, LANE_MISSING, NOT_IN_MASK, OTHER_SHUFFLE, BARRIER_AGAINST_SHUFFLE, NO_SUCH_LANE };

static __global__ void wrong(int *out, int mistake) {
    int i = threadIdx.x, lane = i % 32;
    if (mistake == RETURNS && i >= 40) return;
    if (mistake == OTHER_BARRIER && i < 32) __syncthreads();
    __syncthreads();
    if (mistake == LANE_MISSING && lane != 7) lane = __shfl_sync(~0u, lane, 0);
    if (mistake == NOT_IN_MASK) lane = __shfl_sync(0xff, lane, 0);
    if (mistake == OTHER_SHUFFLE && lane < 16) lane = __shfl_xor_sync(~0u, lane, 1);
    if (mistake == OTHER_SHUFFLE && lane >= 16) lane = __shfl_xor_sync(~0u, lane, 2);
    if (mistake == BARRIER_AGAINST_SHUFFLE) {
        if (i < 32) __syncthreads();
        else if (lane < 31) __syncwarp();
    }
    if (mistake == NO_SUCH_LANE) lane = __shfl_xor_sync(~0u, lane, 1);
    out[i] = lane;
}

static void test_wrong_kernels() {
    Array<int> out(64);
    const char *barrier = "not all threads of the block reach the barrier";
    const char *lanes = "a warp operation waits for lanes that never arrive";
    const char *expected[] = {barrier, "threads wait at different barriers", lanes,
                              "does not name the calling lane", lanes, barrier, lanes};
    cpu::verbose = false;
    for (int mistake = RETURNS; mistake <= NO_SUCH_LANE; mistake++) {
        int threads = mistake == NO_SUCH_LANE ? 48 : 64;
        CHECK(launch(wrong, 2, threads, 0, nullptr, out.device, mistake) == cudaErrorLaunchFailure);
        CHECK(reported(expected[mistake]) && reported("wrong, block (") && reported("test_cuda_on_cpu.cpp:"));
        CHECK(cudaDeviceSynchronize() == cudaErrorLaunchFailure);
        CHECK(cudaDeviceSynchronize() == cudaSuccess && cudaGetLastError() == cudaSuccess);
        CHECK(launch(indices, 1, 64, 0, nullptr, out.device) == cudaSuccess); /* and life goes on */
    }
    launch(wrong, 1, 64, 0, nullptr, out.device, (int)RETURNS);
    CHECK(reported("threads (0,0,0) to (39,0,0): at the barrier"));
    CHECK(reported("threads (40,0,0) to (63,0,0): finished"));
    cudaDeviceSynchronize();
    cudaGetLastError();

    CHECK(launch(indices, 0, 32, 0, nullptr, out.device) == cudaErrorInvalidConfiguration);
    CHECK(launch(indices, dim3(1, 65536), 32, 0, nullptr, out.device) == cudaErrorInvalidConfiguration);
    CHECK(launch(indices, dim3(1, 1, 65536), 32, 0, nullptr, out.device) == cudaErrorInvalidConfiguration);
    CHECK(launch(indices, 1, 1025, 0, nullptr, out.device) == cudaErrorInvalidConfiguration);
    CHECK(launch(indices, 1, dim3(32, 33), 0, nullptr, out.device) == cudaErrorInvalidConfiguration);
    CHECK(launch(indices, 1, dim3(1, 1, 65), 0, nullptr, out.device) == cudaErrorInvalidConfiguration);
    CHECK(launch(indices, 1, 32, (48 << 10) + 1, nullptr, out.device) == cudaErrorInvalidValue);
    CHECK(cudaFuncSetAttribute(indices, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 << 10) == cudaSuccess);
    CHECK(launch(indices, 1, 32, 64 << 10, nullptr, out.device) == cudaSuccess);
    CHECK(launch(indices, 1, 32, (64 << 10) + 1, nullptr, out.device) == cudaErrorInvalidValue);
    CHECK(cudaFuncSetAttribute(indices, cudaFuncAttributeMaxDynamicSharedMemorySize, 48 << 10) == cudaSuccess);
    cudaFuncAttribute attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
    CHECK(cudaFuncSetAttribute(indices, attribute, 200 << 10) == cudaErrorInvalidValue);
    cudaError_t expected_of_both = cpu::shared_begin != cpu::shared_end ? cudaErrorLaunchFailure : cudaSuccess;
    CHECK(launch(uninitialised, 1, 32, 48 << 10, nullptr, (float *)nullptr) == expected_of_both);
    CHECK(cudaDeviceSynchronize() == expected_of_both);
    cpu::verbose = true;
    cudaGetLastError();
}

/* Each thread shows its number to a neighbour, in rounds. A barrier is needed after writing and after reading. */
template <bool AFTER_WRITE, bool AFTER_READ> static __global__ void neighbours(int *out, int step, int first) {
    __shared__ int shown[128];
    int i = threadIdx.x, sum = 0;
    for (int round = 0; round < 3; round++) {
        shown[i] = i + first + 1000 * round;
        if (AFTER_WRITE) __syncthreads();
        sum += shown[max(0, min(127, i + step))];
        if (AFTER_READ) __syncthreads();
    }
    out[i] = sum;
}

/* The lanes of a warp need a barrier as well: they do not run in step. */
template <bool SYNC> static __global__ void lanes(int *out, int step, int first) {
    __shared__ int shown[128];
    int i = threadIdx.x, neighbour = max(i & -32, min(i | 31, i + step));
    shown[i] = i + first + 1000;
    if (SYNC) __syncwarp();
    out[i] = 3 * shown[neighbour];
}

/* Bit s: under schedule s every thread has seen its neighbour's numbers. */
static int right_schedules(void (*kernel)(int *, int, int), int step, int group) {
    static int first; /* so that no launch finds the right numbers left behind by another */
    int right = 0;
    for (int s = 0; s < n_schedule; s++) {
        Array<int> out(128);
        int wrong = 0;
        set_schedule(s);
        first += 200;
        CHECK(launch(kernel, 1, 128, 0, nullptr, out.device, step, first) == cudaSuccess);
        out.download();
        for (int i = 0; i < 128; i++) {
            int begin = i / group * group, neighbour = max(begin, min(begin + group - 1, i + step));
            wrong += out.host[i] != 3 * (neighbour + first + 1000);
        }
        right |= (wrong == 0) << s;
    }
    return right;
}

/* A missing barrier shows under one of forward and reverse, whichever way the data flows. */
static void test_missing_barriers() {
    const int forward = 1, reverse = 2, all = (1 << n_schedule) - 1;
    for (int step = -1; step <= 1; step += 2) {
        CHECK(right_schedules(neighbours<true, true>, step, 128) == all);
        CHECK((right_schedules(neighbours<false, true>, step, 128) & 3) == (step < 0 ? forward : reverse));
        CHECK((right_schedules(neighbours<true, false>, step, 128) & 3) == (step < 0 ? reverse : forward));
        CHECK(right_schedules(lanes<true>, step, 32) == all);
        CHECK((right_schedules(lanes<false>, step, 32) & 3) == (step < 0 ? forward : reverse));
    }
    set_schedule(0);
}

/* Blocks that hand each other numbers, each through all the others, and reuse the memory that it was read from. */
template <bool BARRIER> static __global__ void relay(int *places) {
    int *read = dynamic_shared<int>(), n = gridDim.x, i = threadIdx.x;
    for (int round = 0; round < 3; round++) {
        int *from = &places[round * n * 64], *to = from + n * 64, b = (blockIdx.x + 1) % n;
        while (from[b * 64 + i] == -1) cpu::wait_for(&from[b * 64 + i]);
        read[i] = from[b * 64 + i];
        __syncthreads();
        __stcg(&to[blockIdx.x * 64 + i], read[63 - i] + 1);
        if (BARRIER) __syncthreads();
    }
}

static void test_together() {
    const int n = 5;
    for (int s = 0; s < n_schedule; s++) {
        Array<int> places(4 * n * 64);
        int wrong = 0;
        set_schedule(s);
        for (int barrier = 0; barrier < 2; barrier++) {
            wrong = 0;
            for (int i = 0; i < 4 * n * 64; i++) places.host[i] = i < n * 64 ? i : -1;
            places.upload();
            auto kernel = barrier ? relay<true> : relay<false>;
            CHECK(launch_together(kernel, n, 64, 256, nullptr, places.device) == cudaSuccess);
            places.download();
            for (int b = 0; b < n; b++)
                for (int i = 0; i < 64; i++)
                    wrong += places.host[(3 * n + b) * 64 + i] != (b + 3) % n * 64 + 63 - i + 3;
            CHECK(barrier ? wrong == 0 : wrong > 0 || s > 1);
        }
        cpu::verbose = false; /* nobody gives the first numbers */
        CHECK(cudaMemset(places.device, 0xff, places.bytes()) == cudaSuccess);
        CHECK(launch_together(relay<true>, n, 64, 256, nullptr, places.device) == cudaErrorLaunchFailure);
        CHECK(reported("what no block gives"));
        CHECK(cudaDeviceSynchronize() == cudaErrorLaunchFailure);
        CHECK(launch_together(relay<true>, 1000, 64, 256, nullptr, places.device) == cudaErrorInvalidConfiguration);
        CHECK(launch(indices, 1, 64, 0, nullptr, places.device) == cudaSuccess); /* and life goes on */
        cpu::verbose = true;
        cudaGetLastError();
    }
    set_schedule(0);
}

static void test_poison() {
    Array<float> out(6);
    CHECK(cudaMemset(out.device, 0, out.bytes()) == cudaSuccess);
    CHECK(launch(uninitialised, 3, 1, 128, nullptr, out.device) == cudaSuccess);
    out.download();
    for (int block = 0; block < 3; block++) {
        if (cpu::shared_begin != cpu::shared_end) CHECK(std::isnan(out.host[block * 2]));
        CHECK(std::isnan(out.host[block * 2 + 1]));
    }
}

int main() {
    test_bf16();
    for (int s = 0; s < n_schedule; s++) {
        set_schedule(s);
        test_indices();
        test_reduction();
        test_transposition();
        test_dynamic_shared();
        test_warp_operations();
        test_votes();
        test_copies();
        test_multiply();
        test_graph();
        test_wrong_kernels();
    }
    test_missing_barriers();
    test_together();
    test_poison();
    test_lazy();
    test_memory();
    test_gemm();
    return check_report();
}
