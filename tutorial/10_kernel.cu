/* Chapter 10: what a fused kernel saves, the roofline, the eight steps on the lanes of a warp, in the kernel of
   mamba.cu and in three phases, and a barrier that is missing. Everything runs on the CPU, by tests/cuda_on_cpu.h.
   SPDX-License-Identifier: MIT */
#include "../mamba.cu"
#include "small.h"
#include "eight.h"
#include "plot.h"

/* One H100: multiprocessors, their clock, bytes per second of a copy; and what the scan takes there, with a batch of 8,
   1536 channels and 2048 positions. All from make bench-gpu. */
static const double MULTIPROCESSORS = 132, CLOCK = 1.98e9, BANDWIDTH = 2.96e12, ELEMENTS = 8. * 1536 * 2048;
static const double BF16_SECONDS = 185e-6, FP32_SECONDS = 187e-6, OFFICIAL_SECONDS = 465e-6;
/* A multiprocessor does so many special functions in a clock: exponentials, reciprocals. A step of a channel has one
   exponential for each of 16 states, two special functions for softplus and two for the gate. */
enum { SPECIAL_PER_CLOCK = 16, STATES = 16, SPECIALS = STATES + 4 };

#define CHECKED(call)                                                                                                  \
    do {                                                                                                               \
        if ((call) != 0) fprintf(stderr, "%s: %s\n", #call, error_message), exit(1);                                   \
    } while (0)

template <class T> static T *on_device(size_t n) {
    T *p;
    CHECKED(cudaMalloc(&p, n * sizeof(T)));
    CHECKED(cudaMemset(p, 0, n * sizeof(T)));
    return p;
}

/* Global memory, with a count of what goes over the wire. B and C are not counted: all channels share them, so that
   they come from a cache but for the first time. */
static double bytes_moved;
static float get(const float *p) { return bytes_moved += sizeof *p, *p; }
static void put(float *p, float v) { bytes_moved += sizeof *p, *p = v; }

/* The naive scan, in three kernels with a thread for a channel, as a tensor library would do it: first abar and
   delta B u of everything, */
static __global__ void discretise_kernel(float *abar, float *input, const float *delta, const float *u, const float *A,
                                         const float *B, int len, int d_inner) {
    int d = threadIdx.x;
    for (int t = 0; t < len; t++) {
        float delta_t = get(delta + t * d_inner + d), u_t = get(u + t * d_inner + d);
        for (int n = 0; n < STATES; n++) {
            put(abar + (t * d_inner + d) * STATES + n, expf(delta_t * A[d * STATES + n]));
            put(input + (t * d_inner + d) * STATES + n, delta_t * u_t * B[t * STATES + n]);
        }
    }
}

/* then all h, */
static __global__ void recurrence_kernel(float *h, const float *abar, const float *input, int len, int d_inner) {
    int d = threadIdx.x;
    for (int n = 0; n < STATES; n++) {
        float state = 0;
        for (int t = 0; t < len; t++) {
            int at = (t * d_inner + d) * STATES + n;
            put(h + at, state = get(abar + at) * state + get(input + at));
        }
    }
}

/* then y and the gate. */
static __global__ void output_kernel(float *out, const float *h, const float *u, const float *z, const float *C,
                                     const float *D, int len, int d_inner) {
    int d = threadIdx.x;
    for (int t = 0; t < len; t++) {
        float y = D[d] * get(u + t * d_inner + d), gate = get(z + t * d_inner + d);
        for (int n = 0; n < STATES; n++) y += get(h + (t * d_inner + d) * STATES + n) * C[t * STATES + n];
        put(out + t * d_inner + d, y * gate * sigmoid(gate));
    }
}

/* The same, fused: nothing that is STATES times as large ever leaves the registers. */
static __global__ void fused_kernel(float *out, const float *delta, const float *u, const float *z, const float *A,
                                    const float *B, const float *C, const float *D, int len, int d_inner) {
    int d = threadIdx.x;
    float h[STATES] = {};
    for (int t = 0; t < len; t++) {
        float delta_t = get(delta + t * d_inner + d), u_t = get(u + t * d_inner + d), gate = get(z + t * d_inner + d);
        float y = D[d] * u_t;
        for (int n = 0; n < STATES; n++) {
            h[n] = expf(delta_t * A[d * STATES + n]) * h[n] + delta_t * u_t * B[t * STATES + n];
            y += h[n] * C[t * STATES + n];
        }
        put(out + t * d_inner + d, y * gate * sigmoid(gate));
    }
}

/* Returns the bytes that a step of a channel moves: naive, fused. */
static void count_bytes(double per_step[2]) {
    const int len = 64, d_inner = 32, n = len * d_inner;
    float *p[12];
    double difference = 0;
    uint64_t rng = 1;
    for (int i = 0; i < 12; i++) { /* delta, u, z; A, B, C; D; two outputs; abar, input, h */
        p[i] = on_device<float>((size_t)n * STATES);
        for (int k = 0; k < n && i < 7; k++)
            p[i][k] = (float)random_uniform(&rng) * (i == 0 ? 0.1f : i == 3 ? -1.0f : 1.0f);
    }
    bytes_moved = 0;
    CHECKED(launch(discretise_kernel, dim3(1), dim3(d_inner), 0, nullptr, p[9], p[10], p[0], p[1], p[3], p[4], len,
                   d_inner));
    CHECKED(launch(recurrence_kernel, dim3(1), dim3(d_inner), 0, nullptr, p[11], p[9], p[10], len, d_inner));
    CHECKED(launch(output_kernel, dim3(1), dim3(d_inner), 0, nullptr, p[7], p[11], p[1], p[2], p[5], p[6], len,
                   d_inner));
    per_step[0] = bytes_moved / n, bytes_moved = 0;
    CHECKED(launch(fused_kernel, dim3(1), dim3(d_inner), 0, nullptr, p[8], p[0], p[1], p[2], p[3], p[4], p[5], p[6],
                   len, d_inner));
    per_step[1] = bytes_moved / n;
    for (int k = 0; k < n; k++) difference = fmax(difference, fabs(p[7][k] - p[8][k]));
    printf("bytes that a step of a channel moves, float: naive %.0f, fused %.0f, ratio %.2f; same result: %s\n",
           per_step[0], per_step[1], per_step[0] / per_step[1], difference < 1e-5 ? "yes" : "no");
    for (float *array : p) cudaFree(array);
}

static void print_floors(const double per_step[2]) {
    const double special = SPECIAL_PER_CLOCK * MULTIPROCESSORS * CLOCK;
    printf("\none H100, batch 8, 1536 channels, 2048 positions: %.1f million steps of a channel\n", 1e-6 * ELEMENTS);
    printf("at least (microseconds)    memory   special functions   measured\n");
    printf("naive, float             %8.0f%20.0f\n", 1e6 * per_step[0] * ELEMENTS / BANDWIDTH,
           1e6 * SPECIALS * ELEMENTS / special);
    printf("fused, float             %8.0f%20.0f%11.0f\n", 1e6 * per_step[1] * ELEMENTS / BANDWIDTH,
           1e6 * SPECIALS * ELEMENTS / special, 1e6 * FP32_SECONDS);
    printf("fused, bf16              %8.0f%20.0f%11.0f\n", 1e6 * per_step[1] / 2 * ELEMENTS / BANDWIDTH,
           1e6 * SPECIALS * ELEMENTS / special, 1e6 * BF16_SECONDS);
    printf("the 16 exponentials alone%28.0f\n", 1e6 * STATES * ELEMENTS / special);
    printf("share of the limit: float memory %.0f%%, bf16 memory %.0f%%, both special functions %.0f%%\n",
           100 * per_step[1] * ELEMENTS / BANDWIDTH / FP32_SECONDS,
           100 * per_step[1] / 2 * ELEMENTS / BANDWIDTH / BF16_SECONDS,
           100 * SPECIALS * ELEMENTS / special / BF16_SECONDS);
    printf("the two limits meet at %.2f special functions per byte\n", special / BANDWIDTH);
}

static void draw_roofline(const char *dir, const double per_step[2]) {
    const double special = SPECIAL_PER_CLOCK * MULTIPROCESSORS * CLOCK, ridge = special / BANDWIDTH;
    const struct {
        const char *name;
        int series, halves;
        double per_byte, seconds;
    } point[] = {{"naive, float: at most", 3, 0, SPECIALS / per_step[0], per_step[0] * ELEMENTS / BANDWIDTH},
                 {"fused, float", 2, 0, SPECIALS / per_step[1], FP32_SECONDS},
                 {"fused, bf16", 0, 1, 2 * SPECIALS / per_step[1], BF16_SECONDS},
                 {"the authors', bf16", 4, 1, 2 * SPECIALS / per_step[1], OFFICIAL_SECONDS}};
    double x[2][2] = {{0.02, ridge}, {ridge, 10}}, y[2][2] = {{0.02 * BANDWIDTH, special}, {special, special}};
    Picture p;
    picture_open(&p, dir, "10_roofline.svg", 720, 370, "The roofline of the scan on an H100");
    Plot plot = plot_begin(&p, 64, 66, 430, 240, axis_make("special functions per byte moved", LOG10, 0.02, 10),
                           axis_make("special functions per second", LOG10, 3e10, 2e13));
    for (int i = 0; i < 2; i++) plot_line(&plot, INK, x[i], y[i], 2, NULL);
    for (auto &q : point) {
        double at[1] = {q.per_byte}, rate[1] = {SPECIALS * ELEMENTS / q.seconds};
        plot_line(&plot, q.series, at, rate, 1, q.name);
    }
    plot_end(&plot);
    picture_text(&p, plot_x(&plot, 0.09), plot_y(&plot, 4.4e11), RIGHT, "memory, 2.96 TB/s");
    picture_text(&p, plot_x(&plot, 9.5), plot_y(&plot, 5.2e12), RIGHT, "special functions");
    if (picture_close(&p) != 0) exit(1);
}

/* The eight steps, a lane for each: doubling, as in chapter 9, by shuffles. row: (4, EIGHT), b after each round */
static __global__ void warp_kernel(Affine *row) {
    int lane = threadIdx.x;
    Affine own = {0.5f, (float)eight_u[lane]};
    row[lane] = own;
    for (int k = 1, reach = 1; reach < EIGHT; k++, reach *= 2) {
        Affine before = {__shfl_up_sync(0xff, own.a, reach), __shfl_up_sync(0xff, own.b, reach)};
        if (lane >= reach) own = then(before, own);
        row[k * EIGHT + lane] = own;
    }
}

static void print_warp() {
    Affine *row = on_device<Affine>(4 * EIGHT);
    CHECKED(launch(warp_kernel, dim3(1), dim3(EIGHT), 0, nullptr, row));
    printf("\na lane for each step\nlane     ");
    for (int t = 0; t < EIGHT; t++) printf(" %11d", t);
    for (int k = 0; k < 4; k++) {
        printf("\nround %d  ", k);
        for (int t = 0; t < EIGHT; t++) printf(" %11.9g", row[k * EIGHT + t].b);
    }
    printf("\n");
    cudaFree(row);
}

/* A scan for the kernel of mamba.cu that does the eight steps `apart` positions from one another; delta is 0 between,
   and time stands still. All 16 states are alike and C is 1/16, so that y is the h of one. z is such that the gate
   leaves y as it is. */
static Scan<float> eight_steps(int apart) {
    int len = apart * EIGHT;
    Scan<float> s = {};
    float *u = on_device<float>(len), *dt = on_device<float>(len), *z = on_device<float>(len),
          *B = on_device<float>(len * STATES), *C = on_device<float>(len * STATES), *A_log = on_device<float>(STATES),
          *zero = on_device<float>(1);
    for (int t = 0; t < len; t++) {
        u[t] = t % apart == 0 ? eight_u[t / apart] : 0;
        dt[t] = t % apart == 0 ? 0.541324855f : -200; /* softplus gives 1 and 0 */
        z[t] = 1.27846454f;                          /* and z sigmoid(z) is 1 */
        for (int n = 0; n < STATES; n++) B[t * STATES + n] = 1, C[t * STATES + n] = 1.0f / STATES;
    }
    for (int n = 0; n < STATES; n++) A_log[n] = eight_A_log();
    s.batch = 1, s.len = len, s.d_inner = 1, s.d_state = STATES;
    s.u = u, s.dt = dt, s.z = z, s.B = B, s.C = C, s.A_log = A_log, s.D = zero, s.dt_bias = zero;
    s.ld_u = s.ld_dt = s.ld_z = s.ld_out = 1, s.ld_b = s.ld_c = STATES;
    s.out = on_device<float>(len), s.h_last = on_device<float>(STATES), s.ld_h = STATES;
    return s;
}

static void print_row(const char *name, const float *v, int n, int apart) {
    printf("%-9s", name);
    for (int t = 0; t < n; t++) printf(" %11.5g", v[t * apart]);
    printf("\n");
}

static void print_kernel() {
    Scan<float> s = eight_steps(1);
    CHECKED(scan_forward(s, scan_shape(1, EIGHT, 1, STATES, 1), nullptr));
    printf("\nscan_forward_kernel of mamba.cu, a block of %d threads for 32 channels, of which one exists\n",
           SCAN_THREADS);
    print_row("out", s.out, EIGHT, 1);
    print_row("h_last", s.h_last, 4, 1);
}

/* 256 positions in four chunks of 64, so that each has two of the steps. */
static void print_phases() {
    const int apart = TILE;
    Scan<float> s = eight_steps(apart);
    ScanShape shape = scan_shape(1, s.len, 1, STATES, 1);
    shape.chunks = 4;
    s.scratch = on_device<float>(scan_scratch(shape, 1, s.len, 1, 0));
    CHECKED(scan_forward(s, shape, nullptr));
    scan_prepare(&s, shape, 0); /* says where in the scratch things are */
    printf("\nthe same, %d positions apart, in %d chunks of %d positions\n", apart, s.chunks, s.chunk_len);
    for (int k = 0; k + 1 < s.chunks; k++)
        printf("phase 1, chunk %d: sum of delta %.5g, so a = %.5g; b = %.5g\n", k + 1, s.chunk_delta[k],
               exp2(-s.chunk_delta[k]), s.chunk_end[k * STATES]);
    print_row("out", s.out, EIGHT, apart);
}

/* Doubling in shared memory. A round reads what the round before has written, so between the two, and between reading
   and writing, all threads have to wait for each other. BREAK leaves the second wait out. */
static __global__ void shared_kernel(float *b) {
    __shared__ Affine map[EIGHT];
    int t = threadIdx.x;
    map[t] = Affine{0.5f, (float)eight_u[t]};
    for (int reach = 1; reach < EIGHT; reach *= 2) {
        __syncthreads();
        Affine own = map[t];
        if (t >= reach) own = then(map[t - reach], own);
#ifndef BREAK
        __syncthreads();
#endif
        map[t] = own;
    }
    b[t] = map[t].b;
}

static void print_schedules() {
    static const char *const name[] = {"forward", "reverse", "random 1", "random 2"};
    float *b = on_device<float>(EIGHT);
    printf("\nshared memory, by the order of the threads\n");
    for (int i = 0; i < 4; i++) {
        cuda_on_cpu::schedule = i == 0 ? cuda_on_cpu::FORWARD : i == 1 ? cuda_on_cpu::REVERSE : cuda_on_cpu::RANDOM;
        cuda_on_cpu::seed = (uint64_t)i;
        CHECKED(launch(shared_kernel, dim3(1), dim3(EIGHT), 0, nullptr, b));
        printf("%-9s", name[i]);
        for (int t = 0; t < EIGHT; t++) printf(" %11.9g", b[t]);
        printf("\n");
    }
    cuda_on_cpu::schedule = cuda_on_cpu::FORWARD;
    cudaFree(b);
}

int main(int argc, char **argv) {
    double per_step[2];
    count_bytes(per_step);
    print_floors(per_step);
    draw_roofline(argc > 1 ? argv[1] : ".", per_step);
    print_warp();
    print_kernel();
    print_phases();
    print_schedules();
    return 0;
}
