/* Speed of mamba.cu on this machine's GPU: the scan, the convolution, whole training steps, decoding. `make bench-gpu`

   Times are medians over replays of a graph whose calls rotate among buffers of more than the cache's size. "floor":
   the least time that the bytes, at the measured bandwidth of a copy, or the exponentials, at 16 per multiprocessor and
   clock, allow.
   "official": mamba-ssm 2.3.2.post1 with causal-conv1d under PyTorch 2.11 on an H100 80GB, measured by us.

       bench_cuda [scan] [conv] [train] [decode]      all, or those named
       bench_cuda step ROW N, bench_cuda token ROW N  nothing but N training steps or tokens of a row, for a profiler

   SPDX-License-Identifier: MIT */
#include "../mamba.cu"
#include <algorithm>
#include <chrono>
#include <vector>

#define MUST(call)                                                                                                     \
    do {                                                                                                               \
        if ((call) != 0) fprintf(stderr, "%s: %s\n", #call, error_message), exit(1);                                   \
    } while (0)
#define MUST_CUDA(call)                                                                                                \
    do {                                                                                                               \
        cudaError_t e_ = (call);                                                                                       \
        if (e_ != cudaSuccess) fprintf(stderr, "%s: %s\n", #call, cudaGetErrorString(e_)), exit(1);                    \
    } while (0)

static cudaDeviceProp device;
static double bandwidth, clock_rate; /* bytes and cycles per second */
static cudaStream_t stream;

static double median(std::vector<double> v) {
    std::sort(v.begin(), v.end());
    return v[v.size() / 2];
}

static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/* Microseconds from before `launch` to its end on the device, once it has done nothing else for a while: in the
   first milliseconds after other work a kernel that waits for memory takes longer. */
template <class Launch> static double time_of_launch(Launch launch, int times = 15) {
    const double settled = now() + 0.05;
    cudaEvent_t begin, end;
    std::vector<double> us;
    float ms;
    MUST_CUDA(cudaEventCreate(&begin));
    MUST_CUDA(cudaEventCreate(&end));
    while (now() < settled) {
        launch();
        MUST_CUDA(cudaStreamSynchronize(stream));
    }
    for (int i = 0; i < times; i++) {
        MUST_CUDA(cudaEventRecord(begin, stream));
        launch();
        MUST_CUDA(cudaEventRecord(end, stream));
        MUST_CUDA(cudaEventSynchronize(end));
        MUST_CUDA(cudaEventElapsedTime(&ms, begin, end));
        us.push_back(1e3 * ms);
    }
    cudaEventDestroy(begin), cudaEventDestroy(end);
    return median(us);
}

/* Microseconds of one call of work(i), i counting up: calls follow one another in a graph, as in training. */
template <class Work> static double time_of(Work work) {
    const int calls = 8;
    cudaGraph_t graph;
    cudaGraphExec_t run;
    MUST_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < calls; i++) work(i);
    MUST_CUDA(cudaStreamEndCapture(stream, &graph));
    MUST_CUDA(cudaGraphInstantiate(&run, graph, 0));
    double us = time_of_launch([&] { MUST_CUDA(cudaGraphLaunch(run, stream)); });
    cudaGraphExecDestroy(run), cudaGraphDestroy(graph);
    return us / calls;
}

template <class T> static __global__ void random_kernel(T *p, size_t n, unsigned seed, float low, float high) {
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        unsigned long long bits = (i + 1) * 0x9e3779b97f4a7c15ull + seed;
        bits = (bits ^ (bits >> 31)) * 0xbf58476d1ce4e5b9ull;
        p[i] = (T)(low + (high - low) * (float)(bits >> 40) * (1.0f / 16777216));
    }
}

template <class T> static T *random_array(size_t n, float low, float high) {
    static unsigned seed;
    T *p;
    MUST_CUDA(cudaMalloc(&p, n * sizeof(T)));
    MUST_CUDA(launch(random_kernel<T>, dim3(2048), dim3(256), 0, nullptr, p, n, seed++, low, high));
    return p;
}

static void measure_machine() {
    size_t n = (size_t)1 << 30;
    float *a = random_array<float>(n / 4, 0, 1), *b = random_array<float>(n / 4, 0, 1);
    int khz;
    auto copy = [&] { MUST_CUDA(cudaMemcpyAsync(b, a, n, cudaMemcpyDeviceToDevice, stream)); };
    bandwidth = 2 * n / (1e-6 * time_of_launch(copy));
    MUST_CUDA(cudaDeviceGetAttribute(&khz, cudaDevAttrClockRate, 0));
    clock_rate = 1e3 * khz;
    printf("%s, %d multiprocessors at %.2f GHz, %.0f MiB of cache; a copy moves %.2f TB/s\n", device.name,
           device.multiProcessorCount, clock_rate * 1e-9, device.l2CacheSize / 1048576.0, bandwidth * 1e-12);
    cudaFree(a), cudaFree(b);
}

/* What the peers and we ask for; 0: no figure. */
typedef struct {
    double official, must, moonshot;
} Goal;

/* Ends a line: what was measured, microseconds or a rate, beside the goal. */
static void print_goal(double measured, Goal goal, int is_rate) {
    auto times = [=](double wanted) { return is_rate ? measured / wanted : wanted / measured; }; /* as fast */
    if (goal.official > 0) printf("  official %7.0f  %5.2fx", goal.official, times(goal.official));
    if (goal.must > 0)
        printf("  must %7.0f  %s  moonshot %7.0f%s", goal.must, times(goal.must) >= 1 ? "met   " : "MISSED",
               goal.moonshot, times(goal.moonshot) >= 1 ? "  met" : "");
    printf("\n");
}

static void print_time(const char *name, double us, double bytes, double exponentials, Goal goal) {
    double floor = 1e6 * fmax(bytes / bandwidth, exponentials / (16.0 * device.multiProcessorCount * clock_rate));
    printf("%-34s %8.1f us  %3.0f%% of bandwidth  %4.2f of floor", name, us, 100 * bytes / bandwidth / (1e-6 * us),
           floor / us);
    print_goal(us, goal, 0);
}

template <class T> static void bench_scan_shape(int batch, int E, int len, Goal forward, Goal backward) {
    const int N = 16, R = (E / 2 + 15) / 16, W = R + 2 * N;
    size_t n = (size_t)batch * len * E, rows = (size_t)batch * len, per_set = 10 * n * sizeof(T);
    int sets = (int)((4 * (size_t)device.l2CacheSize + per_set - 1) / per_set);
    ScanShape shape = scan_shape(batch, len, E, N, device.multiProcessorCount);
    float *A = random_array<float>(E * N, 0, 2.7f), *D = random_array<float>(E, -1, 1),
          *bias = random_array<float>(E, -7, -2), *grads;
    float *scratch, *kept;
    size_t n_kept = scan_checkpoints(shape, batch, len, E);
    std::vector<Scan<T>> s(sets);
    std::vector<void *> memory = {A, D, bias};
    char name[64];
    MUST_CUDA(cudaMalloc(&grads, (size_t)E * (N + 2) * sizeof(float)));
    MUST_CUDA(cudaMemset(grads, 0, (size_t)E * (N + 2) * sizeof(float)));
    MUST_CUDA(cudaMalloc(&scratch, scan_scratch(shape, batch, len, E, 1) * sizeof(float) + 16));
    MUST_CUDA(cudaMalloc(&kept, sets * n_kept * sizeof(float)));
    memory.insert(memory.end(), {grads, scratch, kept});
    for (int i = 0; i < sets; i++) {
        T *u = random_array<T>(n, -1, 1), *dt = random_array<T>(n, -1, 1), *xz = random_array<T>(2 * n, -2, 2),
          *dbc = random_array<T>(rows * W, -1, 1);
        T *out = random_array<T>(n, -1, 1), *d_out = random_array<T>(n, -1, 1), *du = random_array<T>(n, 0, 1),
          *ddt = random_array<T>(n, 0, 1);
        T *dxz = random_array<T>(2 * n, 0, 1), *ddbc = random_array<T>(rows * W, 0, 1);
        memory.insert(memory.end(), {u, dt, xz, dbc, out, d_out, du, ddt, dxz, ddbc});
        s[i] = Scan<T>();
        s[i].batch = batch, s[i].len = len, s[i].d_inner = E, s[i].d_state = N, s[i].u = u, s[i].dt = dt,
        s[i].z = xz + E, s[i].B = dbc + R, s[i].C = dbc + R + N;
        s[i].ld_u = s[i].ld_dt = s[i].ld_out = s[i].ld_d_out = s[i].ld_du = s[i].ld_ddt = E,
        s[i].ld_z = s[i].ld_dz = 2 * E, s[i].ld_b = s[i].ld_c = s[i].ld_dbc = W;
        s[i].A_log = A, s[i].D = D, s[i].dt_bias = bias, s[i].out = out, s[i].checkpoints = kept + i * n_kept,
        s[i].scratch = scratch;
        s[i].d_out = d_out, s[i].du = du, s[i].ddt = ddt, s[i].dz = dxz + E, s[i].dB = ddbc + R, s[i].dC = ddbc + R + N;
        s[i].dA_log = grads, s[i].dD = grads + E * N, s[i].ddt_bias = grads + E * (N + 1);
    }
    const char *type = sizeof(T) == 2 ? "bf16" : "fp32";
    double us = time_of([&](int i) { MUST(scan_forward(s[i % sets], shape, stream)); });
    snprintf(name, sizeof name, "scan forward %d,%d,%d %s", batch, E, len, type);
    print_time(name, us, 4.0 * n * sizeof(T) + rows * 2.0 * N * sizeof(T), (double)n * N, forward);
    us = time_of([&](int i) { MUST(scan_backward(s[i % sets], shape, stream)); });
    snprintf(name, sizeof name, "scan backward %d,%d,%d %s", batch, E, len, type);
    print_time(name, us, 7.0 * n * sizeof(T) + rows * 4.0 * N * sizeof(T), (double)n * N, backward);
    for (void *p : memory) cudaFree(p);
}

static void bench_scan() {
    bench_scan_shape<bf16>(8, 1536, 2048, {465, 230, 165}, {1953, 780, 550});
    bench_scan_shape<float>(8, 1536, 2048, {875, 260, 190}, {2128, 800, 600});
    bench_scan_shape<bf16>(8, 2048, 2048, {607, 300, 220}, {2525, 1000, 730});
    bench_scan_shape<bf16>(1, 1536, 65536, {2264, 1500, 1200}, {8099, 3600, 2400});
    bench_scan_shape<bf16>(64, 512, 256, {162, 70, 60}, {787, 260, 190});
    bench_scan_shape<bf16>(1, 1536, 2048, {71, 55, 40}, {332, 150, 90});
    bench_scan_shape<bf16>(256, 1536, 256, {1755, 1000, 700}, {8709, 3500, 2600});
}

template <class T> static void bench_conv_shape(int batch, int E, int len, int K, Goal forward, Goal backward) {
    size_t n = (size_t)batch * len * E, per_set = 6 * n * sizeof(T);
    int sets = (int)((4 * (size_t)device.l2CacheSize + per_set - 1) / per_set);
    float *w = random_array<float>(E * K, -1, 1), *bias = random_array<float>(E, -1, 1), *grads, *scratch;
    std::vector<Conv<T>> s(sets);
    std::vector<void *> memory = {w, bias};
    char name[64];
    MUST_CUDA(cudaMalloc(&grads, (size_t)E * (K + 1) * sizeof(float)));
    MUST_CUDA(cudaMemset(grads, 0, (size_t)E * (K + 1) * sizeof(float)));
    MUST_CUDA(cudaMalloc(&scratch, conv_scratch(batch, len, E, device.multiProcessorCount) * sizeof(float)));
    memory.insert(memory.end(), {grads, scratch});
    for (int i = 0; i < sets; i++) {
        T *xz = random_array<T>(2 * n, -1, 1), *u = random_array<T>(n, -1, 1), *du = random_array<T>(n, -1, 1),
          *dxz = random_array<T>(2 * n, 0, 1);
        memory.insert(memory.end(), {xz, u, du, dxz});
        s[i] = Conv<T>();
        s[i].batch = batch, s[i].len = len, s[i].d_inner = E, s[i].d_conv = K,
        s[i].multiprocessors = device.multiProcessorCount, s[i].x = xz, s[i].u = u, s[i].du = du,
        s[i].dx = dxz;
        s[i].ld_x = s[i].ld_dx = 2 * E, s[i].ld_u = s[i].ld_du = E, s[i].weight = w, s[i].bias = bias,
        s[i].scratch = scratch;
        s[i].dweight = grads, s[i].dbias = grads + E * K;
    }
    const char *type = sizeof(T) == 2 ? "bf16" : "fp32";
    double us = time_of([&](int i) { MUST(conv_forward(s[i % sets], stream)); });
    snprintf(name, sizeof name, "conv forward %d,%d,%d %s", batch, E, len, type);
    print_time(name, us, 2.0 * n * sizeof(T), 0, forward);
    us = time_of([&](int i) { MUST(conv_backward(s[i % sets], stream)); });
    snprintf(name, sizeof name, "conv backward %d,%d,%d %s", batch, E, len, type);
    print_time(name, us, 3.0 * n * sizeof(T), 0, backward);
    for (void *p : memory) cudaFree(p);
}

static void bench_conv() {
    bench_conv_shape<bf16>(8, 1536, 2048, 4, {45, 0, 0}, {64, 0, 0});
    bench_conv_shape<float>(8, 1536, 2048, 4, {0, 0, 0}, {0, 0, 0});
}

static Config shape_of(int vocab_size, int d_model, int n_layer) {
    Config c = {vocab_size, d_model, n_layer, 16, 4, 2, (d_model + 15) / 16, 2 * d_model, 0, 1, 1, 1e-5, 0, 0, 0};
    return c;
}

typedef struct {
    const char *name;
    Config config;
    int batch, len;
    const char *dtype;
    int lean;
    Goal goal;
} Training;

static std::vector<Training> trainings() {
    Config large = shape_of(50280, 768, 24), medium = shape_of(8192, 512, 12), small = shape_of(4096, 256, 8),
           tiny = shape_of(512, 128, 4);
    return {{"130m", large, 8, 2048, "bf16", 0, {129980, 260000, 350000}},
            {"130m", large, 8, 2048, "bf16", 1, {129980, 0, 0}},
            {"130m", large, 8, 1024, "tf32", 0, {89676, 150000, 220000}},
            {"25M", medium, 16, 512, "bf16", 0, {231015, 900000, 1500000}},
            {"25M", medium, 16, 512, "bf16", 1, {231015, 0, 0}},
            {"25M", medium, 16, 512, "tf32", 0, {260520, 0, 0}},
            {"4.6M", small, 32, 256, "bf16", 0, {235550, 2000000, 4000000}},
            {"4.6M", small, 32, 256, "tf32", 0, {269640, 0, 0}},
            {"0.5M", tiny, 16, 256, "bf16", 0, {224023, 4000000, 8000000}},
            {"0.5M", tiny, 16, 256, "fp32", 0, {0, 0, 0}}};
}

static Model random_model(Config c) {
    Model m;
    MUST(model_create(&m, &c));
    model_init(&m, 1);
    return m;
}

/* Tokens per second, and GiB of the GPU that are taken. steps: 0 for as many as take about a second */
static double train(const Training &row, int steps, double *gib) {
    Model m = random_model(row.config);
    Backend b;
    size_t available, total, before;
    std::vector<int> ids((size_t)row.batch * row.len + 1);
    uint64_t rng = 1;
    AdamW o = {0.9, 0.95, 1e-8, 0.1, 1};
    double loss, start = 0, seconds = 1;
    int warm_up = steps > 0 ? 0 : 3, timed = steps, tokens = row.batch * row.len;
    for (int &id : ids) id = (int)(random_bits(&rng) % row.config.vocab_size);
    MUST_CUDA(cudaMemGetInfo(&before, &total));
    MUST(cuda_backend(&b, &m, row.dtype, 1, row.lean));
    for (int step = 1; timed == 0 || step <= warm_up + timed; step++) {
        MUST(b.gradient(b.self, ids.data(), ids.data() + 1, row.batch, row.len, 1));
        if (step <= warm_up) MUST(b.update(b.self, &o, 1e-4, step, &loss, NULL));
        else MUST(b.update(b.self, &o, 1e-4, step, NULL, NULL));
        if (step == warm_up - 1) start = now();
        if (step == warm_up) timed = (int)fmax(5, fmin(1000, 1 / (now() - start))), start = now();
    }
    MUST_CUDA(cudaDeviceSynchronize());
    seconds = now() - start;
    MUST_CUDA(cudaMemGetInfo(&available, &total));
    *gib = (before - available) / 1073741824.0;
    b.close(b.self);
    model_free(&m);
    return tokens * timed / seconds;
}

static void bench_train() {
    for (const Training &row : trainings()) {
        double gib, rate = train(row, 0, &gib);
        printf("train %-5s %2d x %4d %s%s %10.0f tokens/s %6.2f GiB", row.name, row.batch, row.len, row.dtype,
               row.lean ? " lean" : "     ", rate, gib);
        print_goal(rate, row.goal, 1);
    }
}

typedef struct {
    const char *name;
    Config config;
    int streams;
    const char *dtype;
    double temperature;
    Goal goal;
} Decoding;

static std::vector<Decoding> decodings() {
    Config large = shape_of(50280, 768, 24), small = shape_of(4096, 256, 8);
    return {{"130m", large, 1, "bf16", 0, {1400, 4000, 7000}},
            {"130m", large, 1, "bf16", 1, {0, 0, 0}},
            {"130m", large, 1, "fp32", 0, {1273, 0, 0}},
            {"d 256", small, 1, "bf16", 0, {6171, 15000, 30000}},
            {"d 256", small, 1, "fp32", 0, {5585, 0, 0}},
            {"130m", large, 4, "bf16", 0, {0, 0, 0}},
            {"130m", large, 64, "bf16", 0, {78502, 120000, 200000}}};
}

/* Tokens per second of all streams after a prompt of 128, and milliseconds from the prompt to the first token. */
static double decode(const Decoding &row, int n, double *first_ms, double *weight_bytes) {
    Model m = random_model(row.config);
    Backend b;
    const int len = 128;
    std::vector<int> prompt((size_t)row.streams * len), out((size_t)row.streams * n);
    std::vector<Sampler> samplers(row.streams);
    std::vector<double> first, seconds;
    uint64_t rng = 1;
    double start;
    for (int &id : prompt) id = (int)(random_bits(&rng) % row.config.vocab_size);
    for (int i = 0; i < row.streams; i++) {
        MUST(sampler_create(&samplers[i], row.config.vocab_size, 0, i));
        samplers[i].temperature = row.temperature;
    }
    MUST(cuda_backend(&b, &m, row.dtype, 0, 0));
    for (int i = 0; i < (n > 64 ? 5 : 1); i++) {
        MUST(b.reset(b.self, row.streams));
        start = now();
        MUST(b.forward(b.self, prompt.data(), len, NULL, 0));
        MUST(b.generate(b.self, out.data(), 1, samplers.data()));
        first.push_back(1e3 * (now() - start));
        MUST(b.generate(b.self, out.data(), n > 2 ? 2 : n, samplers.data()));
        start = now();
        MUST(b.generate(b.self, out.data(), n, samplers.data()));
        seconds.push_back(now() - start);
    }
    *first_ms = median(first);
    *weight_bytes = (double)m.n_param * (strcmp(row.dtype, "bf16") == 0 ? 2 : 4);
    b.close(b.self);
    for (Sampler &s : samplers) sampler_free(&s);
    model_free(&m);
    return (double)row.streams * n / median(seconds);
}

static void bench_decode() {
    for (const Decoding &row : decodings()) {
        double first, bytes, rate = decode(row, 256, &first, &bytes);
        printf("decode %-5s %2d stream%s %s %s %8.0f tokens/s  %3.0f%% of bandwidth  first token %5.2f ms", row.name,
               row.streams, row.streams > 1 ? "s" : " ", row.dtype, row.temperature == 0 ? "greedy" : "drawn ", rate,
               100 * rate / row.streams * bytes / bandwidth, first);
        print_goal(rate, row.goal, 1);
    }
    printf("(first token, 130m: official 19.3 ms in bf16, 21.8 ms in fp32; must 3 ms, moonshot 1 ms)\n");
}

int main(int argc, char **argv) {
    double unused;
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
    if (cudaGetDeviceProperties(&device, 0) != cudaSuccess) return fprintf(stderr, "no GPU\n"), 1;
    if (argc == 4 && strcmp(argv[1], "step") == 0) return train(trainings()[atoi(argv[2])], atoi(argv[3]), &unused), 0;
    if (argc == 4 && strcmp(argv[1], "token") == 0)
        return decode(decodings()[atoi(argv[2])], atoi(argv[3]), &unused, &unused), 0;
    MUST_CUDA(cudaStreamCreate(&stream));
    measure_machine();
    for (int i = 1; i < (argc > 1 ? argc : 2); i++) {
        const char *what = argc > 1 ? argv[i] : "";
        if (*what == 0 || strcmp(what, "scan") == 0) bench_scan();
        if (*what == 0 || strcmp(what, "conv") == 0) bench_conv();
        if (*what == 0 || strcmp(what, "train") == 0) bench_train();
        if (*what == 0 || strcmp(what, "decode") == 0) bench_decode();
    }
    return 0;
}
