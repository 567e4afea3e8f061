/* cuda_on_cpu.h: the part of CUDA that mamba.cu uses, executed by the host, to test and debug kernels without a GPU.

       g++ -x c++ -std=c++17 -DCUDA_ON_CPU -g -fno-strict-aliasing ...        (or clang++; sanitizers welcome)

   How it works. The blocks of a grid run one after the other. The threads of a block are fibres: each has its own stack,
   and one runs until it reaches a barrier or a warp operation; then the next one goes on. So a launch is an ordinary
   function call, and deterministic. Between two barriers every thread runs as a whole, in the order of `schedule`:
   forward, reverse or random. For two accesses that only a missing barrier leaves unordered, forward and reverse are the two
   orders: a kernel with the same bits under both, on poisoned memory, lacks no barrier that its data can tell.

       CUDA_ON_CPU_SCHEDULE=forward|reverse|random:SEED     the order of threads and blocks
       CUDA_ON_CPU_LAZY=1                                   streams work only when waited for: shows a host that does not wait

   What it reports (on stderr and in `report`; the launch, or the next synchronisation, returns an error): a barrier or warp
   operation that not all its threads reach, or at different lines; launches over the device's limits; arguments that are no
   device pointers; copies and matrix products that leave their allocation. Device and shared memory start as NaN (0xFF bytes), so
   that reading what nobody wrote shows. AddressSanitizer sees every other access out of bounds, also to shared memory; UBSan
   sees a misaligned float4. What it cannot show: speed, and orders of memory that no order of whole threads can produce.

   To step through a block:
       gdb ./test
       (gdb) break scan_forward if threadIdx.x == 5 && blockIdx.x == 0       threadIdx is a plain variable here
       (gdb) run                                                             then `next`, also over a barrier: it stops when
       (gdb) print tile                                                      this same thread goes on behind it
   The backtrace goes no further than the kernel: below it is the fibre's start. Compile with -O0.

   It needs little of mamba.cu: kernels are started by launch(kernel, grid, block, shared_bytes, stream, args...), shared memory
   whose size is known at the launch only is dynamic_shared<T>(), and inline PTX has a twin in C++.

   SPDX-License-Identifier: MIT

   1. Types and numbers    2. Fibres    3. A block    4. What a kernel calls    5. Memory    6. Streams, graphs, launches    7. cuBLAS */
#ifndef CUDA_ON_CPU_H
#define CUDA_ON_CPU_H

#include <chrono>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>
#include <sys/mman.h>
#if defined __SANITIZE_ADDRESS__
#define CUDA_ON_CPU_ASAN 1
#elif defined __has_feature
#if __has_feature(address_sanitizer)
#define CUDA_ON_CPU_ASAN 1
#endif
#endif
#ifdef CUDA_ON_CPU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined __x86_64__ && !defined __aarch64__
#define CUDA_ON_CPU_UCONTEXT 1
#endif
#ifdef CUDA_ON_CPU_UCONTEXT
#include <ucontext.h>
#endif
#ifdef __linux__
#include <link.h>
#endif
#ifdef __clang__
#pragma clang diagnostic ignored "-Wpass-failed" /* a loop marked #pragma unroll that was not unrolled */
#else
#pragma GCC diagnostic ignored "-Wunknown-pragmas" /* #pragma unroll itself */
#endif

/* 1. TYPES AND NUMBERS ========================================================================================== */

#define __global__ __attribute__((noinline, unused)) /* unused: a template that nobody instantiates */
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__

/* The blocks run one after the other, so a shared array is a static one. To poison them all at the start of a block they
   must lie together: in a section of their own, which gcc however ignores inside templates; there they are
   the program's only thread-local variables. AddressSanitizer guards neither, so with it they are plain statics, not poisoned. */
#ifdef CUDA_ON_CPU_ASAN
#define __shared__ static
#elif defined __clang__ && defined __APPLE__
#define __shared__ static __attribute__((section("__DATA,cuda_shared")))
extern char cuda_shared_begin[] __asm("section$start$__DATA$cuda_shared");
extern char cuda_shared_end[] __asm("section$end$__DATA$cuda_shared");
#elif defined __clang__
#define __shared__ static __attribute__((section("cuda_shared")))
extern "C" __attribute__((weak)) char __start_cuda_shared[], __stop_cuda_shared[];
#else
#define __shared__ static thread_local
#endif

/* may_alias: kernels read four floats as a float4, which nvcc allows and C++ does not */
#define CUDA_ON_CPU_VECTOR(name, T, bytes, ...) \
    struct __attribute__((may_alias, aligned(bytes))) name { T __VA_ARGS__; }; \
    template <class... A> inline name make_##name(A... a) { return name{(T)a...}; }
CUDA_ON_CPU_VECTOR(float2, float, 8, x, y)
CUDA_ON_CPU_VECTOR(float3, float, 4, x, y, z)
CUDA_ON_CPU_VECTOR(float4, float, 16, x, y, z, w)
CUDA_ON_CPU_VECTOR(int2, int, 8, x, y)
CUDA_ON_CPU_VECTOR(int4, int, 16, x, y, z, w)
CUDA_ON_CPU_VECTOR(uint2, unsigned, 8, x, y)
CUDA_ON_CPU_VECTOR(uint3, unsigned, 4, x, y, z)
CUDA_ON_CPU_VECTOR(uint4, unsigned, 16, x, y, z, w)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace cuda_on_cpu {
template <class To, class From> To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "two types of one size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
}

inline unsigned __float_as_uint(float f) { return cuda_on_cpu::same_bits<unsigned>(f); }
inline int __float_as_int(float f) { return cuda_on_cpu::same_bits<int>(f); }
inline float __uint_as_float(unsigned u) { return cuda_on_cpu::same_bits<float>(u); }
inline float __int_as_float(int i) { return cuda_on_cpu::same_bits<float>(i); }

/* The upper half of a float, rounded to nearest, ties to even; a NaN keeps to be one. */
struct __attribute__((may_alias)) __nv_bfloat16 {
    unsigned short bits;
    __nv_bfloat16() = default;
    __nv_bfloat16(float f) {
        unsigned u = __float_as_uint(f);
        bits = (unsigned short)(f != f ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16);
    }
    __nv_bfloat16(double d) : __nv_bfloat16((float)d) {}
    __nv_bfloat16(int i) : __nv_bfloat16((float)i) {}
    operator float() const { return __uint_as_float((unsigned)bits << 16); }
};
/* A GPU would round each result to bf16, which is hardly what is meant: convert to float and say so. */
__nv_bfloat16 operator+(__nv_bfloat16, __nv_bfloat16) = delete;
__nv_bfloat16 operator-(__nv_bfloat16, __nv_bfloat16) = delete;
__nv_bfloat16 operator*(__nv_bfloat16, __nv_bfloat16) = delete;
__nv_bfloat16 operator/(__nv_bfloat16, __nv_bfloat16) = delete;
struct __attribute__((may_alias, aligned(4))) __nv_bfloat162 { __nv_bfloat16 x, y; };
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;

inline __nv_bfloat16 __float2bfloat16(float f) { return f; }
inline __nv_bfloat16 __float2bfloat16_rn(float f) { return f; }
inline float __bfloat162float(__nv_bfloat16 b) { return b; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return __nv_bfloat162{x, y}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return __nv_bfloat162{x, y}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 f) { return __nv_bfloat162{f.x, f.y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 b) { return float2{b.x, b.y}; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 b) { return b.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 b) { return b.y; }
inline float __low2float(__nv_bfloat162 b) { return b.x; }
inline float __high2float(__nv_bfloat162 b) { return b.y; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 b) { return b.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short u) { return cuda_on_cpu::same_bits<__nv_bfloat16>(u); }

/* Macros, since C libraries declare some of these names for themselves. */
#define __expf expf
#define __logf logf
#define __log2f log2f
#define __powf powf
#define __sinf sinf
#define __cosf cosf
#define rsqrtf(x) (1 / sqrtf(x))
#define __fdividef(a, b) ((float)(a) / (float)(b))
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __saturatef(float x) { return x > 0 ? x < 1 ? x : 1 : 0; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz((unsigned)x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
template <class T> inline T min(T a, T b) { return b < a ? b : a; }
template <class T> inline T max(T a, T b) { return a < b ? b : a; }
template <class T> inline T __ldg(const T *p) { return *p; }
template <class T> inline T __ldcg(const T *p) { return *p; }
template <class T> inline T __ldcs(const T *p) { return *p; }
template <class T> inline void __stcg(T *p, T value) { *p = value; }
template <class T> inline void __stcs(T *p, T value) { *p = value; }
inline void __threadfence() {}
inline void __threadfence_block() {}

/* Atomics on integers only: with floats the order of the additions would change the bits. */
namespace cuda_on_cpu {
template <class T, class New> T atomic(T *p, New next) {
    static_assert(std::is_integral<T>::value, "no float atomics");
    T old = *p;
    *p = next(old);
    return old;
}
template <class T> using same = typename std::enable_if<true, T>::type; /* not deduced: atomicAdd(&unsigned, 1) */
}
template <class T> T atomicAdd(T *p, cuda_on_cpu::same<T> v) { return cuda_on_cpu::atomic(p, [=](T x) { return x + v; }); }
template <class T> T atomicMax(T *p, cuda_on_cpu::same<T> v) { return cuda_on_cpu::atomic(p, [=](T x) { return max(x, v); }); }
template <class T> T atomicMin(T *p, cuda_on_cpu::same<T> v) { return cuda_on_cpu::atomic(p, [=](T x) { return min(x, v); }); }
template <class T> T atomicOr(T *p, cuda_on_cpu::same<T> v) { return cuda_on_cpu::atomic(p, [=](T x) { return x | v; }); }
template <class T> T atomicExch(T *p, cuda_on_cpu::same<T> v) { return cuda_on_cpu::atomic(p, [=](T) { return v; }); }
template <class T> T atomicCAS(T *p, cuda_on_cpu::same<T> expected, cuda_on_cpu::same<T> v) {
    return cuda_on_cpu::atomic(p, [=](T x) { return x == expected ? v : x; });
}
inline unsigned atomicInc(unsigned *p, unsigned limit) {
    return cuda_on_cpu::atomic(p, [=](unsigned x) { return x >= limit ? 0u : x + 1; });
}

enum cudaError_t {
    cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2, cudaErrorInvalidConfiguration = 9,
    cudaErrorNoDevice = 100, cudaErrorInvalidDevice = 101, cudaErrorInvalidResourceHandle = 400, cudaErrorNotReady = 600,
    cudaErrorLaunchFailure = 719, cudaErrorNotSupported = 801, cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901, cudaErrorStreamCaptureImplicit = 906
};

namespace cuda_on_cpu {

/* The device that the host sees: small, so that "fill the machine" means few blocks. Tests set it. */
struct Device {
    int multiprocessors = 4, major = 8, minor = 6;
    size_t shared_per_block_optin = 99 << 10, shared_per_multiprocessor = 100 << 10, memory = (size_t)4 << 30;
};
inline Device device;

enum Schedule { FORWARD, REVERSE, RANDOM };
inline Schedule schedule = FORWARD;
inline uint64_t seed = 1;              /* the state of the random schedule */
inline bool lazy = false;
inline bool verbose = true;            /* reports go to stderr too */
inline char report[4096];              /* the last one */
inline cudaError_t last_error = cudaSuccess, execution_error = cudaSuccess;

inline bool read_environment() {
    const char *order = getenv("CUDA_ON_CPU_SCHEDULE"), *laziness = getenv("CUDA_ON_CPU_LAZY");
    if (order != nullptr && strcmp(order, "reverse") == 0) schedule = REVERSE;
    if (order != nullptr && strncmp(order, "random", 6) == 0) {
        schedule = RANDOM;
        if (order[6] == ':') seed = strtoull(order + 7, nullptr, 10);
    }
    lazy = laziness != nullptr && atoi(laziness) != 0;
    return true;
}
inline bool environment_read = read_environment();

inline unsigned random_bits() {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(seed >> 33);
}

/* Notes an error and its text, as CUDA does: it stays until cudaGetLastError. */
__attribute__((format(printf, 2, 3))) inline cudaError_t complain(cudaError_t error, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(report, sizeof report, format, args);
    va_end(args);
    if (verbose) fprintf(stderr, "cuda_on_cpu: %s\n", report);
    return last_error = error;
}

/* 2. FIBRES ===================================================================================================== */

/* A stack, and where on it its owner stopped. They are kept: a fibre whose thread is done takes up another thread. */
struct Fibre {
    char *stack;                       /* lowest address */
    size_t bytes;
    void *stopped_at;                  /* its stack pointer; the registers that a function must keep lie there */
    void *fake_stack;                  /* AddressSanitizer's own record of it */
#ifdef CUDA_ON_CPU_UCONTEXT
    ucontext_t context;
#endif
};
constexpr size_t STACK_BYTES = 256 << 10, PAGE_BYTES = 16 << 10;

constexpr int MAX_THREADS = 1024, MAX_WARPS = MAX_THREADS / 32;

inline Fibre host, fibres[MAX_THREADS], *idle[MAX_THREADS], *running = &host, *previous;
inline int n_fibre, n_idle;

/* switch_stack(&from, to): push the registers that a call preserves, keep the stack pointer in `from`, take `to` for
   it, pop them there, and return to whoever had called from that stack. */
#ifndef CUDA_ON_CPU_UCONTEXT
extern "C" void switch_stack(void **from, void *to) __asm__("cuda_on_cpu_switch_stack");
#ifdef __x86_64__
__asm__(".text\n"
        "cuda_on_cpu_switch_stack:\n"
        "push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
        "mov %rsp, (%rdi)\n"
        "mov %rsi, %rsp\n"
        "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n"
        "ret\n");
constexpr int SAVED_WORDS = 6, RETURN_WORD = 6, FRAME_WORDS = 8;
#else
__asm__(".text\n.balign 4\n"
        "cuda_on_cpu_switch_stack:\n"
        "sub sp, sp, #160\n"
        "stp x19, x20, [sp]\n stp x21, x22, [sp, #16]\n stp x23, x24, [sp, #32]\n stp x25, x26, [sp, #48]\n"
        "stp x27, x28, [sp, #64]\n stp x29, x30, [sp, #80]\n"
        "stp d8, d9, [sp, #96]\n stp d10, d11, [sp, #112]\n stp d12, d13, [sp, #128]\n stp d14, d15, [sp, #144]\n"
        "mov x9, sp\n str x9, [x0]\n"
        "mov sp, x1\n"
        "ldp x19, x20, [sp]\n ldp x21, x22, [sp, #16]\n ldp x23, x24, [sp, #32]\n ldp x25, x26, [sp, #48]\n"
        "ldp x27, x28, [sp, #64]\n ldp x29, x30, [sp, #80]\n"
        "ldp d8, d9, [sp, #96]\n ldp d10, d11, [sp, #112]\n ldp d12, d13, [sp, #128]\n ldp d14, d15, [sp, #144]\n"
        "add sp, sp, #160\n"
        "ret\n");
constexpr int RETURN_WORD = 11, FRAME_WORDS = 20;
#endif
#endif

/* Runs on the fibre that goes on: it tells AddressSanitizer which stack this is and which one was left. */
inline void arrived() {
#ifdef CUDA_ON_CPU_ASAN
    const void *stack;
    __sanitizer_finish_switch_fiber(running->fake_stack, &stack, &previous->bytes);
    previous->stack = (char *)stack;
#endif
}

inline void switch_to(Fibre *to) {
    previous = running;
    running = to;
#ifdef CUDA_ON_CPU_ASAN
    __sanitizer_start_switch_fiber(&previous->fake_stack, to->stack, to->bytes);
#endif
#ifdef CUDA_ON_CPU_UCONTEXT
    swapcontext(&previous->context, &to->context);
#else
    switch_stack(&previous->stopped_at, to->stopped_at);
#endif
    arrived();
}

void fibre_main();

/* Lets the fibre begin (again) in fibre_main. */
inline void fibre_reset(Fibre *fibre) {
#ifdef CUDA_ON_CPU_ASAN
    ASAN_UNPOISON_MEMORY_REGION(fibre->stack, fibre->bytes); /* what an abandoned thread left there */
#endif
    fibre->fake_stack = nullptr;
#ifdef CUDA_ON_CPU_UCONTEXT
    getcontext(&fibre->context);
    fibre->context.uc_stack.ss_sp = fibre->stack;
    fibre->context.uc_stack.ss_size = fibre->bytes;
    fibre->context.uc_link = nullptr;
    makecontext(&fibre->context, fibre_main, 0);
#else
    /* Stacks begin at different places of their pages, or all would compete for the same lines of the cache. */
    size_t offset = ((uintptr_t)fibre->stack / (STACK_BYTES + PAGE_BYTES) * 832) % 4096 / 64 * 64;
    uintptr_t *frame = (uintptr_t *)(fibre->stack + fibre->bytes - offset) - FRAME_WORDS;
    memset(frame, 0, FRAME_WORDS * sizeof *frame);
    frame[RETURN_WORD] = (uintptr_t)fibre_main;
    fibre->stopped_at = frame;
#endif
}

inline Fibre *fibre_take() {
    if (n_idle > 0) return idle[--n_idle];
    Fibre *fibre = &fibres[n_fibre++];
    char *memory = (char *)mmap(nullptr, PAGE_BYTES + STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, PAGE_BYTES, PROT_NONE) != 0) perror("cuda_on_cpu: stack"), abort();
    fibre->stack = memory + PAGE_BYTES; /* below it a page that no overflow gets over */
    fibre->bytes = STACK_BYTES;
    fibre_reset(fibre);
    return fibre;
}

/* 3. A BLOCK ==================================================================================================== */

struct Copy { void *to; const void *from; size_t bytes, zeros; int group; };

enum Wait { NOT_STARTED, BARRIER, SHUFFLE, BALLOT, FINISHED };

struct Thread {
    Fibre *fibre;                      /* nullptr: not started, or finished */
    uint3 index;
    Wait wait;
    const char *file;                  /* and line: where it waits */
    int line, source;                  /* source: the lane whose value it wants */
    unsigned mask;
    uint64_t given, taken;             /* its own value, and what the operation gives it */
    std::vector<Copy> copies;          /* asynchronous ones that it has not waited for */
    int groups;                        /* of them, committed */
};

/* The running block. A bit per lane says which threads can go on; `warps` has a bit per warp with such lanes. */
inline Thread thread[MAX_THREADS];
inline int n_thread, n_warp, current, current_warp, n_finished;
inline unsigned ready[MAX_WARPS], in_exchange[MAX_WARPS], warps;
inline int n_waiting, predicate_sum, predicate_result;
inline const char *kernel_name = "";
inline std::function<void()> kernel_body;
inline bool block_failed;
inline char *dynamic_memory;

inline unsigned lanes_of(int warp) { return n_thread - warp * 32 >= 32 ? ~0u : (1u << n_thread % 32) - 1; }

inline int choose(unsigned bits) {
    if (schedule == FORWARD) return __builtin_ctz(bits);
    if (schedule == REVERSE) return 31 - __builtin_clz(bits);
    for (int skip = (int)(random_bits() % (unsigned)__builtin_popcount(bits)); skip > 0; skip--) bits &= bits - 1;
    return __builtin_ctz(bits);
}

/* Who waits where, runs of threads with the same answer on one line. */
inline std::string threads_report() {
    std::string text;
    auto describe = [](int i) {
        const Thread &t = thread[i];
        char line[256];
        if (ready[i / 32] >> i % 32 & 1) snprintf(line, sizeof line, t.fibre == nullptr ? "not started" : "can go on");
        else if (t.wait == FINISHED) snprintf(line, sizeof line, "finished");
        else if (t.wait == BARRIER) snprintf(line, sizeof line, "at the barrier %s:%d", t.file, t.line);
        else snprintf(line, sizeof line, "in the warp operation %s:%d, mask %08x", t.file, t.line, t.mask);
        return std::string(line);
    };
    for (int i = 0, j; i < n_thread && text.size() < 2048; i = j) {
        char range[128];
        std::string state = describe(i);
        for (j = i + 1; j < n_thread && describe(j) == state; ) j++;
        const uint3 &a = thread[i].index, &b = thread[j - 1].index;
        snprintf(range, sizeof range, "\n    threads (%u,%u,%u) to (%u,%u,%u): ", a.x, a.y, a.z, b.x, b.y, b.z);
        text += range + state;
    }
    return text;
}

/* Gives up the block: the fibre that calls this never comes back. */
[[noreturn]] inline void block_fail(const char *what) {
    const uint3 &t = thread[current].index;
    execution_error = complain(cudaErrorLaunchFailure, "%s, block (%u,%u,%u), thread (%u,%u,%u): %s%s", kernel_name, blockIdx.x,
                               blockIdx.y, blockIdx.z, t.x, t.y, t.z, what, threads_report().c_str());
    block_failed = true;
    switch_to(&host);
    abort();
}

/* The current thread cannot go on: to the next one that can. Stays within a warp while it can, so that under FORWARD threads run
   in their order from barrier to barrier. Returns when this thread, or, for a fibre without one, a new one is to go on. */
inline void next_thread() {
    if (warps == 0) {
        if (n_finished < n_thread)
            block_fail(n_waiting > 0 ? "not all threads of the block reach the barrier"
                                     : "a warp operation waits for lanes that never arrive");
        switch_to(&host);
        return;
    }
    if (schedule == RANDOM || !((uint64_t)warps >> current_warp & 1)) current_warp = choose(warps);
    int lane = choose(ready[current_warp]);
    ready[current_warp] &= ~(1u << lane);
    if (ready[current_warp] == 0) warps &= ~(1u << current_warp);
    current = current_warp * 32 + lane;
    Thread &t = thread[current];
    threadIdx = t.index;
    if (t.fibre == nullptr) t.fibre = fibre_take();
    if (t.fibre != running) switch_to(t.fibre);
}

inline void fibre_main() {
    arrived();
    for (;;) {
        kernel_body();
        Thread &t = thread[current];
        t.wait = FINISHED;
        t.fibre = nullptr;
        n_finished++;
        idle[n_idle++] = running; /* next_thread takes it again, without a switch, if the next thread is a new one */
        next_thread();
    }
}

/* All threads of the block meet; the sum of their predicates. */
inline int barrier(int predicate, const char *file, int line) {
    Thread &t = thread[current];
    t.wait = BARRIER, t.file = file, t.line = line;
    static int first_line;
    if (n_waiting == 0) first_line = line, predicate_sum = 0;
    if (line != first_line) block_fail("threads wait at different barriers");
    predicate_sum += predicate != 0;
    if (++n_waiting == n_thread) {
        n_waiting = 0;
        predicate_result = predicate_sum;
        for (int w = 0; w < n_warp; w++) ready[w] = lanes_of(w);
        warps = n_warp == 32 ? ~0u : (1u << n_warp) - 1;
        current_warp = MAX_WARPS; /* none: choose anew */
    }
    next_thread();
    return predicate_result;
}

/* The lanes of a mask meet. The last to arrive gives each one its result, so nothing is overwritten before it is read. */
inline uint64_t exchange(Wait wait, unsigned mask, uint64_t given, int source, const char *file, int line) {
    Thread &t = thread[current], *lane = &thread[current / 32 * 32];
    unsigned &here = in_exchange[current / 32], ballot = 0;
    t.wait = wait, t.mask = mask, t.given = given, t.source = source, t.file = file, t.line = line;
    if (!(mask >> current % 32 & 1)) block_fail("the mask of a warp operation does not name the calling lane");
    here |= 1u << current % 32;
    bool complete = (here & mask) == mask;
    for (unsigned rest = mask; complete && rest != 0; rest &= rest - 1) {
        const Thread &other = lane[__builtin_ctz(rest)];
        complete = other.wait == wait && other.mask == mask && other.line == line;
        ballot |= other.given != 0 ? rest & -rest : 0;
    }
    if (complete) {
        for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
            Thread &other = lane[__builtin_ctz(rest)];
            if (wait == BALLOT) other.taken = ballot;
            else other.taken = mask >> other.source & 1 ? lane[other.source].given : ~(uint64_t)0; /* else undefined */
        }
        here &= ~mask;
        ready[current / 32] |= mask;
        warps |= 1u << current / 32;
    }
    next_thread();
    return t.taken;
}

/* Static shared memory, as one range; it may be empty. */
inline char *shared_begin, *shared_end;
inline void find_shared() {
#if defined CUDA_ON_CPU_ASAN
#elif defined __clang__ && defined __APPLE__
    shared_begin = cuda_shared_begin, shared_end = cuda_shared_end;
#elif defined __clang__
    shared_begin = __start_cuda_shared, shared_end = __stop_cuda_shared;
#elif defined __linux__
    dl_iterate_phdr([](dl_phdr_info *program, size_t, void *) {
        bool dynamic = false; /* a static program has the C library's thread-local variables there too: leave it alone */
        for (int i = 0; i < program->dlpi_phnum; i++) dynamic |= program->dlpi_phdr[i].p_type == PT_INTERP;
        for (int i = 0; i < program->dlpi_phnum && dynamic; i++)
            if (program->dlpi_phdr[i].p_type == PT_TLS) {
                shared_begin = (char *)program->dlpi_tls_data;
                shared_end = shared_begin + program->dlpi_phdr[i].p_memsz;
            }
        return 1; /* the first one is the program itself */
    }, nullptr);
#endif
}

/* The shared arrays that a block has written, as the first and last byte that is no longer poison. */
inline void shrink_to_written(char **begin, char **end) {
    static const std::vector<char> poison(64, (char)0xff);
    while (*end - *begin >= 64 && memcmp(*begin, poison.data(), 64) == 0) *begin += 64;
    while (*end - *begin >= 64 && memcmp(*end - 64, poison.data(), 64) == 0) *end -= 64;
}

inline bool block_run(uint3 index) {
    blockIdx = index;
    n_finished = n_waiting = 0;
    block_failed = false;
    for (int w = 0; w < n_warp; w++) ready[w] = lanes_of(w), in_exchange[w] = 0;
    warps = n_warp == 32 ? ~0u : (1u << n_warp) - 1;
    current_warp = MAX_WARPS;
    next_thread();
    if (block_failed) fibre_reset(previous); /* the one that said so may have been between two threads */
    for (int i = 0; i < n_thread; i++) {
        if (thread[i].fibre != nullptr) fibre_reset(thread[i].fibre), idle[n_idle++] = thread[i].fibre;
        thread[i].fibre = nullptr;
        thread[i].copies.clear();
        thread[i].groups = 0;
    }
    return !block_failed;
}

/* Runs a grid whose kernel and arguments are in `body`. */
inline void grid_run(const std::string &name, std::function<void()> body, dim3 grid, dim3 block, size_t dynamic_bytes) {
    char *begin, *end;
    kernel_name = name.c_str(), kernel_body = body;
    gridDim = grid, blockDim = block;
    n_thread = (int)(block.x * block.y * block.z), n_warp = (n_thread + 31) / 32;
    for (unsigned i = 0; i < (unsigned)n_thread; i++)
        thread[i].index = uint3{i % block.x, i / block.x % block.y, i / block.x / block.y};
    if (shared_begin == nullptr) find_shared();
    begin = shared_begin, end = shared_end;
    void *memory = nullptr;
    if (posix_memalign(&memory, 128, dynamic_bytes > 0 ? dynamic_bytes : 1) != 0) abort();
    dynamic_memory = (char *)memory;
    /* All blocks, also in any order: block number first + i * step, step without a common factor with their number. */
    size_t blocks = (size_t)grid.x * grid.y * grid.z, first = schedule == REVERSE ? blocks - 1 : 0;
    size_t step = schedule == REVERSE ? blocks - 1 : 1;
    if (schedule == RANDOM) {
        first = random_bits() % blocks;
        for (step = random_bits() % blocks | 1; std::gcd(step, blocks) != 1; ) step += 2;
    }
    for (size_t i = 0, b = first; i < blocks; i++, b = (b + step) % blocks) {
        memset(dynamic_memory, 0xff, dynamic_bytes);
        if (begin != end) memset(begin, 0xff, (size_t)(end - begin));
        bool done = block_run(uint3{(unsigned)(b % grid.x), (unsigned)(b / grid.x % grid.y), (unsigned)(b / grid.x / grid.y)});
        if (i == 0) shrink_to_written(&begin, &end); /* the other kernels' arrays need no poison at each block of this one */
        if (!done) break;
    }
    free(dynamic_memory);
}
} /* namespace cuda_on_cpu */

/* 4. WHAT A KERNEL CALLS ======================================================================================== */

#define CUDA_ON_CPU_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE() /* the caller's */

inline void __syncthreads(CUDA_ON_CPU_SITE) { cuda_on_cpu::barrier(0, file, line); }
inline int __syncthreads_count(int p, CUDA_ON_CPU_SITE) { return cuda_on_cpu::barrier(p, file, line); }
inline int __syncthreads_or(int p, CUDA_ON_CPU_SITE) { return cuda_on_cpu::barrier(p, file, line) > 0; }
inline int __syncthreads_and(int p, CUDA_ON_CPU_SITE) { return cuda_on_cpu::barrier(p, file, line) == cuda_on_cpu::n_thread; }

inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_ON_CPU_SITE) {
    return (unsigned)cuda_on_cpu::exchange(cuda_on_cpu::BALLOT, mask, predicate != 0, 0, file, line);
}
inline void __syncwarp(unsigned mask = ~0u, CUDA_ON_CPU_SITE) { __ballot_sync(mask, 0, file, line); }
inline int __any_sync(unsigned mask, int p, CUDA_ON_CPU_SITE) { return __ballot_sync(mask, p, file, line) != 0; }
inline int __all_sync(unsigned mask, int p, CUDA_ON_CPU_SITE) { return __ballot_sync(mask, p, file, line) == mask; }

/* The value of lane `source`; outside the caller's group of `width` lanes (below `first` or above `last`) its own. */
namespace cuda_on_cpu {
template <class T> T shuffle(unsigned mask, T value, int source, int first, int last, const char *file, int line) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    uint64_t bits = 0;
    if (source < first || source > last) source = current % 32;
    memcpy(&bits, &value, sizeof value);
    bits = exchange(SHUFFLE, mask, bits, source, file, line);
    memcpy(&value, &bits, sizeof value);
    return value;
}
inline int lane() { return current % 32; }
}
template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32, CUDA_ON_CPU_SITE) {
    int first = cuda_on_cpu::lane() & -width;
    return cuda_on_cpu::shuffle(mask, value, first + (source & (width - 1)), 0, 31, file, line);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_ON_CPU_SITE) {
    int lane = cuda_on_cpu::lane();
    return cuda_on_cpu::shuffle(mask, value, lane - (int)delta, lane & -width, 31, file, line);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_ON_CPU_SITE) {
    int lane = cuda_on_cpu::lane();
    return cuda_on_cpu::shuffle(mask, value, lane + (int)delta, 0, lane | (width - 1), file, line);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, CUDA_ON_CPU_SITE) {
    int lane = cuda_on_cpu::lane();
    return cuda_on_cpu::shuffle(mask, value, lane ^ bits, 0, lane | (width - 1), file, line);
}

template <class T> T *dynamic_shared() { return reinterpret_cast<T *>(cuda_on_cpu::dynamic_memory); }

/* Asynchronous copies arrive when they are waited for, not before: using them too early reads poison. */
inline void __pipeline_memcpy_async(void *to, const void *from, size_t bytes, size_t zeros = 0) {
    cuda_on_cpu::Thread &t = cuda_on_cpu::thread[cuda_on_cpu::current];
    if ((bytes != 4 && bytes != 8 && bytes != 16) || (uintptr_t)to % bytes != 0 || (uintptr_t)from % bytes != 0 || zeros > bytes)
        cuda_on_cpu::block_fail("an asynchronous copy is of 4, 8 or 16 aligned bytes");
    t.copies.push_back({to, from, bytes, zeros, t.groups});
}
inline void __pipeline_commit() { cuda_on_cpu::thread[cuda_on_cpu::current].groups++; }
inline void __pipeline_wait_prior(int newest) {
    cuda_on_cpu::Thread &t = cuda_on_cpu::thread[cuda_on_cpu::current];
    size_t kept = 0;
    for (const cuda_on_cpu::Copy &copy : t.copies)
        if (copy.group >= t.groups - newest) t.copies[kept++] = copy;
        else {
            memcpy(copy.to, copy.from, copy.bytes - copy.zeros);
            memset((char *)copy.to + copy.bytes - copy.zeros, 0, copy.zeros);
        }
    t.copies.resize(kept);
}

/* 5. MEMORY ===================================================================================================== */

namespace cuda_on_cpu {
struct Allocation { size_t bytes; bool on_device; };
inline std::map<uintptr_t, Allocation> allocations; /* by address */
inline size_t device_bytes;                         /* of those on the device */

/* The allocation that holds all of these bytes, or nullptr. */
inline const Allocation *find(const void *p, size_t bytes) {
    auto above = allocations.upper_bound((uintptr_t)p);
    if (above == allocations.begin()) return nullptr;
    --above;
    size_t offset = (uintptr_t)p - above->first;
    return offset <= above->second.bytes && bytes <= above->second.bytes - offset ? &above->second : nullptr;
}
inline bool on_device(const void *p, size_t bytes) {
    const Allocation *a = find(p, bytes);
    return a != nullptr && a->on_device;
}
inline bool pinned(const void *p, size_t bytes) {
    const Allocation *a = find(p, bytes);
    return a != nullptr && !a->on_device;
}

inline cudaError_t allocate_memory(void **p, size_t bytes, bool on_device) {
    *p = nullptr;
    if (on_device && bytes > device.memory - min(device_bytes, device.memory)) return last_error = cudaErrorMemoryAllocation;
    if (bytes == 0) return cudaSuccess;
    if (posix_memalign(p, 256, bytes) != 0) return last_error = cudaErrorMemoryAllocation;
    memset(*p, 0xff, bytes);
    allocations[(uintptr_t)*p] = Allocation{bytes, on_device};
    device_bytes += on_device ? bytes : 0;
    return cudaSuccess;
}

inline cudaError_t free_memory(void *p, bool on_device) {
    auto a = allocations.find((uintptr_t)p);
    if (p == nullptr) return cudaSuccess;
    if (a == allocations.end() || a->second.on_device != on_device)
        return complain(cudaErrorInvalidValue, "%s(%p): not allocated there", on_device ? "cudaFree" : "cudaFreeHost", p);
    device_bytes -= on_device ? a->second.bytes : 0;
    allocations.erase(a);
    free(p);
    return cudaSuccess;
}
} /* namespace cuda_on_cpu */

/* 6. STREAMS, GRAPHS, LAUNCHES ================================================================================== */

namespace cuda_on_cpu {
typedef std::vector<std::function<void()>> Work; /* a graph is a list of closures, recorded instead of run */
struct Stream { Work *capture; };
struct Event { std::chrono::steady_clock::time_point time; Work *capture; };
struct Graph { std::shared_ptr<Work> work; };
inline Work queue;                     /* when lazy: what is still to be done */
inline std::shared_ptr<Work> capture;  /* of the graph being recorded */
inline bool capture_relaxed;
}
typedef cuda_on_cpu::Stream *cudaStream_t;
typedef cuda_on_cpu::Event *cudaEvent_t;
typedef cuda_on_cpu::Graph *cudaGraph_t, *cudaGraphExec_t;
typedef struct CUgraphNode_st *cudaGraphNode_t;

namespace cuda_on_cpu {
inline cudaError_t submit(cudaStream_t stream, std::function<void()> work) {
    if (stream != nullptr && stream->capture != nullptr) stream->capture->push_back(work);
    else if (stream == nullptr && capture != nullptr)
        return complain(cudaErrorStreamCaptureImplicit, "work on stream 0 while another stream is being captured");
    else if (lazy) queue.push_back(work);
    else work();
    return last_error == cudaErrorLaunchFailure ? last_error : cudaSuccess;
}

/* Does what is queued; the error of a kernel that failed since the last time. */
inline cudaError_t synchronise(const char *who) {
    if (capture != nullptr) return complain(cudaErrorStreamCaptureUnsupported, "%s while a stream is being captured", who);
    Work work;
    work.swap(queue);
    for (auto &item : work) item();
    cudaError_t error = execution_error;
    execution_error = cudaSuccess;
    return error;
}

inline cudaError_t unsafe_in_capture(const char *who) {
    if (capture == nullptr || capture_relaxed) return cudaSuccess;
    return complain(cudaErrorStreamCaptureUnsupported, "%s while a stream is being captured", who);
}
} /* namespace cuda_on_cpu */

template <class T> cudaError_t cudaMalloc(T **p, size_t bytes) {
    cudaError_t error = cuda_on_cpu::unsafe_in_capture("cudaMalloc");
    return error != cudaSuccess ? error : cuda_on_cpu::allocate_memory((void **)p, bytes, true);
}
template <class T> cudaError_t cudaMallocHost(T **p, size_t bytes) {
    cudaError_t error = cuda_on_cpu::unsafe_in_capture("cudaMallocHost");
    return error != cudaSuccess ? error : cuda_on_cpu::allocate_memory((void **)p, bytes, false);
}
enum { cudaHostAllocDefault = 0, cudaHostAllocPortable = 1, cudaHostAllocMapped = 2 };
template <class T> cudaError_t cudaHostAlloc(T **p, size_t bytes, unsigned) { return cudaMallocHost(p, bytes); }
inline cudaError_t cudaFree(void *p) {
    cudaError_t error = cuda_on_cpu::synchronise("cudaFree"), freed = cuda_on_cpu::free_memory(p, true);
    return error != cudaSuccess ? error : freed;
}
inline cudaError_t cudaFreeHost(void *p) {
    cudaError_t error = cuda_on_cpu::synchronise("cudaFreeHost"), freed = cuda_on_cpu::free_memory(p, false);
    return error != cudaSuccess ? error : freed;
}
inline cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    *total = cuda_on_cpu::device.memory;
    *available = *total - min(*total, cuda_on_cpu::device_bytes);
    return cudaSuccess;
}

enum cudaMemcpyKind {
    cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault
};
inline cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                                     cudaMemcpyKind kind, cudaStream_t stream = nullptr) {
    namespace cpu = cuda_on_cpu;
    if (width == 0 || height == 0) return cudaSuccess;
    size_t to_bytes = (height - 1) * to_pitch + width, from_bytes = (height - 1) * from_pitch + width;
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (kind == cudaMemcpyDefault) to_device = cpu::on_device(to, 1), from_device = cpu::on_device(from, 1);
    if (width > to_pitch || width > from_pitch || (to_device ? !cpu::on_device(to, to_bytes) : cpu::on_device(to, 1)) ||
        (from_device ? !cpu::on_device(from, from_bytes) : cpu::on_device(from, 1)))
        return cpu::complain(cudaErrorInvalidValue, "copy of %zu x %zu bytes from %p (%s) to %p (%s): not all of it lies there",
                             height, width, from, from_device ? "device" : "host", to, to_device ? "device" : "host");
    cudaError_t error = cpu::submit(stream, [=] {
        for (size_t i = 0; i < height; i++) memmove((char *)to + i * to_pitch, (const char *)from + i * from_pitch, width);
    });
    /* Only with pinned memory does the host not wait. */
    bool waits = (!to_device && !cpu::pinned(to, to_bytes)) || (!from_device && !cpu::pinned(from, from_bytes));
    if (error == cudaSuccess && waits && cpu::lazy && cpu::capture == nullptr) error = cpu::synchronise("cudaMemcpyAsync");
    return error;
}
inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream = nullptr) {
    return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}
inline cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    cudaError_t error = cuda_on_cpu::synchronise("cudaMemcpy");
    if (error == cudaSuccess) error = cudaMemcpyAsync(to, from, bytes, kind);
    return error != cudaSuccess ? error : cuda_on_cpu::synchronise("cudaMemcpy");
}
inline cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream = nullptr) {
    if (bytes > 0 && !cuda_on_cpu::on_device(p, bytes))
        return cuda_on_cpu::complain(cudaErrorInvalidValue, "cudaMemset of %zu bytes at %p: not on the device", bytes, p);
    return cuda_on_cpu::submit(stream, [=] { if (bytes > 0) memset(p, value, bytes); });
}
inline cudaError_t cudaMemset(void *p, int value, size_t bytes) { return cudaMemsetAsync(p, value, bytes); }

enum { cudaStreamDefault = 0, cudaStreamNonBlocking = 1, cudaEventDefault = 0, cudaEventDisableTiming = 2 };
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned) { return *s = new cuda_on_cpu::Stream(), cudaSuccess; }
inline cudaError_t cudaStreamCreate(cudaStream_t *s) { return cudaStreamCreateWithFlags(s, 0); }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cuda_on_cpu::synchronise("cudaStreamSynchronize"); }
inline cudaError_t cudaDeviceSynchronize() { return cuda_on_cpu::synchronise("cudaDeviceSynchronize"); }
inline cudaError_t cudaStreamDestroy(cudaStream_t s) {
    cudaError_t error = cuda_on_cpu::synchronise("cudaStreamDestroy");
    delete s;
    return error;
}

inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) { return *e = new cuda_on_cpu::Event(), cudaSuccess; }
inline cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
inline cudaError_t cudaEventDestroy(cudaEvent_t e) {
    cudaError_t error = cuda_on_cpu::synchronise("cudaEventDestroy");
    delete e;
    return error;
}
inline cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t stream = nullptr) {
    e->capture = stream == nullptr ? nullptr : stream->capture;
    if (e->capture != nullptr) return cudaSuccess; /* in a graph it is an edge, not work */
    return cuda_on_cpu::submit(stream, [=] { e->time = std::chrono::steady_clock::now(); });
}
/* All streams run in the order of submission, so there is nothing to wait for; in a capture the stream joins it. */
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t e, unsigned = 0) {
    if (e->capture != nullptr && stream != nullptr) stream->capture = e->capture;
    return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cuda_on_cpu::synchronise("cudaEventSynchronize"); }
inline cudaError_t cudaEventQuery(cudaEvent_t) { return cuda_on_cpu::queue.empty() ? cudaSuccess : cudaErrorNotReady; }
inline cudaError_t cudaStreamQuery(cudaStream_t) { return cuda_on_cpu::queue.empty() ? cudaSuccess : cudaErrorNotReady; }
inline cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end) {
    *milliseconds = std::chrono::duration<float, std::milli>(end->time - begin->time).count();
    return cudaSuccess;
}

enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeRelaxed };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    if (stream == nullptr || cuda_on_cpu::capture != nullptr)
        return cuda_on_cpu::complain(cudaErrorStreamCaptureUnsupported, "stream 0, or a second stream, cannot be captured");
    cuda_on_cpu::capture = std::make_shared<cuda_on_cpu::Work>();
    cuda_on_cpu::capture_relaxed = mode == cudaStreamCaptureModeRelaxed;
    stream->capture = cuda_on_cpu::capture.get();
    return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    *graph = nullptr;
    if (stream == nullptr || stream->capture == nullptr)
        return cuda_on_cpu::complain(cudaErrorStreamCaptureInvalidated, "cudaStreamEndCapture: the stream is not being captured");
    stream->capture = nullptr;
    *graph = new cuda_on_cpu::Graph{cuda_on_cpu::capture};
    cuda_on_cpu::capture = nullptr;
    return cudaSuccess;
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
    bool active = stream != nullptr && stream->capture != nullptr;
    *status = active ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
inline cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    return *exec = new cuda_on_cpu::Graph(*graph), cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    auto work = exec->work;
    return cuda_on_cpu::submit(stream, [=] { for (auto &item : *work) item(); });
}
inline cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *, size_t *count) {
    return *count = graph->work->size(), cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return delete exec, cudaSuccess; }

inline cudaError_t cudaPeekAtLastError() { return cuda_on_cpu::last_error; }
inline cudaError_t cudaGetLastError() {
    cudaError_t error = cuda_on_cpu::last_error;
    return cuda_on_cpu::last_error = cudaSuccess, error;
}
inline const char *cudaGetErrorName(cudaError_t error) {
    switch (error) {
#define CUDA_ON_CPU_NAME(name) case name: return #name;
    CUDA_ON_CPU_NAME(cudaSuccess) CUDA_ON_CPU_NAME(cudaErrorInvalidValue) CUDA_ON_CPU_NAME(cudaErrorMemoryAllocation)
    CUDA_ON_CPU_NAME(cudaErrorInvalidConfiguration) CUDA_ON_CPU_NAME(cudaErrorNoDevice)
    CUDA_ON_CPU_NAME(cudaErrorInvalidDevice) CUDA_ON_CPU_NAME(cudaErrorInvalidResourceHandle)
    CUDA_ON_CPU_NAME(cudaErrorNotReady) CUDA_ON_CPU_NAME(cudaErrorLaunchFailure) CUDA_ON_CPU_NAME(cudaErrorNotSupported)
    CUDA_ON_CPU_NAME(cudaErrorStreamCaptureUnsupported) CUDA_ON_CPU_NAME(cudaErrorStreamCaptureInvalidated)
    CUDA_ON_CPU_NAME(cudaErrorStreamCaptureImplicit)
    }
    return "unknown error";
}
inline const char *cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin, sharedMemPerMultiprocessor;
    int major, minor, multiProcessorCount, warpSize, maxThreadsPerBlock, maxThreadsPerMultiProcessor, regsPerMultiprocessor, l2CacheSize;
};
enum cudaDeviceAttr {
    cudaDevAttrMaxThreadsPerBlock = 1, cudaDevAttrMaxSharedMemoryPerBlock = 8, cudaDevAttrClockRate = 13,
    cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMemoryClockRate = 36, cudaDevAttrGlobalMemoryBusWidth = 37,
    cudaDevAttrL2CacheSize = 38, cudaDevAttrMaxThreadsPerMultiProcessor = 39, cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76, cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
inline cudaError_t cudaGetDeviceCount(int *count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaSetDevice(int id) { return id == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
inline cudaError_t cudaGetDevice(int *id) { return *id = 0, cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int *version) { return *version = 12000, cudaSuccess; }
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int id) {
    const cuda_on_cpu::Device &d = cuda_on_cpu::device;
    *p = cudaDeviceProp{"CPU", d.memory, 48 << 10, d.shared_per_block_optin, d.shared_per_multiprocessor,
                        d.major, d.minor, d.multiprocessors, 32, 1024, 2048, 65536, 1 << 20};
    return cudaSetDevice(id);
}
inline cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int id) {
    cudaDeviceProp p;
    cudaGetDeviceProperties(&p, id);
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = p.maxThreadsPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = (int)p.sharedMemPerBlock; break;
    case cudaDevAttrClockRate: case cudaDevAttrMemoryClockRate: *value = 1000000; break;
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
    case cudaDevAttrGlobalMemoryBusWidth: *value = 64; break;
    case cudaDevAttrL2CacheSize: *value = p.l2CacheSize; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = p.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = (int)p.sharedMemPerMultiprocessor; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)p.sharedMemPerBlockOptin; break;
    }
    return cudaSetDevice(id);
}

namespace cuda_on_cpu {
inline std::map<uintptr_t, size_t> dynamic_limit; /* of a kernel that asked for more than 48 KB */

inline size_t limit_of(uintptr_t kernel) {
    auto asked = dynamic_limit.find(kernel);
    return min(asked == dynamic_limit.end() ? (size_t)48 << 10 : asked->second, device.shared_per_block_optin);
}

/* "scan<T, 4>" of "scan<T, 4>, grid, block, ..." */
inline std::string first_argument(const char *call) {
    int depth = 0;
    const char *end = call;
    for (; *end != '\0' && (*end != ',' || depth > 0); end++) depth += (*end == '<' || *end == '(') - (*end == '>' || *end == ')');
    return std::string(call, end);
}

template <class T> bool reachable(T) { return true; }
template <class T> bool reachable(T *p) { return p == nullptr || find((const void *)p, 1) != nullptr; }

template <class... P, class... A>
cudaError_t launch_kernel(const char *call, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                          A... args) {
    std::string name = first_argument(call);
    std::tuple<P...> values(args...);
    bool reached[] = {reachable(P(args))..., true};
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535 || block.x == 0 ||
        block.y == 0 || block.z == 0 || block.x > 1024 || block.y > 1024 || block.z > 64 || block.x * block.y * block.z > 1024)
        return complain(cudaErrorInvalidConfiguration, "%s: a grid of (%u,%u,%u) blocks of (%u,%u,%u) threads", name.c_str(), grid.x,
                        grid.y, grid.z, block.x, block.y, block.z);
    if (shared_bytes > limit_of((uintptr_t)kernel))
        return complain(cudaErrorInvalidValue, "%s: %zu bytes of shared memory, the limit is %zu", name.c_str(), shared_bytes,
                        limit_of((uintptr_t)kernel));
    for (size_t i = 0; i < sizeof...(P); i++)
        if (!reached[i]) return complain(cudaErrorInvalidValue, "%s: argument %zu is no device pointer", name.c_str(), i + 1);
    return submit(stream, [=] { grid_run(name, [=] { std::apply(kernel, values); }, grid, block, shared_bytes); });
}
} /* namespace cuda_on_cpu */

/* A macro, so that a report can name the kernel. */
#define launch(...) cuda_on_cpu::launch_kernel(#__VA_ARGS__, __VA_ARGS__)

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8, cudaFuncAttributePreferredSharedMemoryCarveout = 9 };
template <class... P> cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || (size_t)value > cuda_on_cpu::device.shared_per_block_optin)
        return cuda_on_cpu::complain(cudaErrorInvalidValue, "%d bytes of shared memory, the device has %zu", value,
                                     cuda_on_cpu::device.shared_per_block_optin);
    return cuda_on_cpu::dynamic_limit[(uintptr_t)kernel] = (size_t)value, cudaSuccess;
}
template <class... P>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void (*)(P...), int threads, size_t shared_bytes) {
    *blocks = min(min(2048 / threads, 16), (int)(cuda_on_cpu::device.shared_per_multiprocessor / (shared_bytes + 1024)));
    return cudaSuccess;
}

/* 7. CUBLAS ===================================================================================================== */

enum cublasStatus_t { CUBLAS_STATUS_SUCCESS = 0, CUBLAS_STATUS_INVALID_VALUE = 7, CUBLAS_STATUS_NOT_SUPPORTED = 15 };
enum cublasOperation_t { CUBLAS_OP_N, CUBLAS_OP_T };
enum cudaDataType_t { CUDA_R_32F = 0, CUDA_R_16BF = 14 };
typedef cudaDataType_t cudaDataType;
enum cublasComputeType_t { CUBLAS_COMPUTE_32F = 68, CUBLAS_COMPUTE_32F_FAST_TF32 = 77 };
enum cublasGemmAlgo_t { CUBLAS_GEMM_DEFAULT = -1, CUBLAS_GEMM_DEFAULT_TENSOR_OP = 99 };
enum cublasMath_t { CUBLAS_DEFAULT_MATH = 0, CUBLAS_PEDANTIC_MATH = 2, CUBLAS_TF32_TENSOR_OP_MATH = 3 };
typedef struct cublasContext { cudaStream_t stream; cublasMath_t mode; } *cublasHandle_t;

inline cublasStatus_t cublasCreate(cublasHandle_t *h) { return *h = new cublasContext(), CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasDestroy(cublasHandle_t h) { return delete h, CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasSetStream(cublasHandle_t h, cudaStream_t stream) { return h->stream = stream, CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasSetMathMode(cublasHandle_t h, cublasMath_t mode) { return h->mode = mode, CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasSetWorkspace(cublasHandle_t, void *p, size_t bytes) {
    return cuda_on_cpu::on_device(p, bytes) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}
inline const char *cublasGetStatusString(cublasStatus_t status) {
    return status == CUBLAS_STATUS_SUCCESS ? "success" : status == CUBLAS_STATUS_INVALID_VALUE ? "invalid value" : "not supported";
}

namespace cuda_on_cpu {
/* A matrix as cuBLAS sees it: element (i, j) at p[i + j * ld]. */
struct Matrix {
    char *p;
    cudaDataType type;
    int ld;
    size_t element() const { return type == CUDA_R_32F ? 4 : 2; }
    float get(size_t i) const { return type == CUDA_R_32F ? ((float *)p)[i] : (float)((__nv_bfloat16 *)p)[i]; }
    void set(size_t i, float value) const {
        if (type == CUDA_R_32F) ((float *)p)[i] = value;
        else ((__nv_bfloat16 *)p)[i] = value;
    }
};

inline float round_to_tf32(float x) { return __uint_as_float((__float_as_uint(x) + 0x1000) & ~0x1fffu); }

/* C = alpha op(A) op(B) + beta C; op(A): (m, k), op(B): (k, n), C: (m, n). Sums in float, over k in order. */
inline void gemm(bool transpose_a, bool transpose_b, int m, int n, int k, float alpha, Matrix a, Matrix b, float beta, Matrix c, bool tf32) {
    std::vector<float> packed((size_t)m * k), column(m);
    for (int p = 0; p < k; p++)
        for (int i = 0; i < m; i++) {
            float value = a.get(transpose_a ? p + (size_t)i * a.ld : i + (size_t)p * a.ld);
            packed[(size_t)p * m + i] = tf32 ? round_to_tf32(value) : value;
        }
    for (int j = 0; j < n; j++) {
        std::fill(column.begin(), column.end(), 0.0f);
        for (int p = 0; p < k; p++) {
            float value = b.get(transpose_b ? j + (size_t)p * b.ld : p + (size_t)j * b.ld);
            if (tf32) value = round_to_tf32(value);
            for (int i = 0; i < m; i++) column[i] += packed[(size_t)p * m + i] * value;
        }
        for (int i = 0; i < m; i++) {
            size_t at = i + (size_t)j * c.ld;
            c.set(at, alpha * column[i] + (beta == 0 ? 0 : beta * c.get(at))); /* beta = 0: C need not be initialised */
        }
    }
}
} /* namespace cuda_on_cpu */

inline cublasStatus_t cublasGemmStridedBatchedEx(
    cublasHandle_t h, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k, const void *alpha, const void *a,
    cudaDataType type_a, int lda, long long stride_a, const void *b, cudaDataType type_b, int ldb, long long stride_b,
    const void *beta, void *c, cudaDataType type_c, int ldc, long long stride_c, int batch, cublasComputeType_t compute, cublasGemmAlgo_t) {
    namespace cpu = cuda_on_cpu;
    const char *problem = nullptr;
    if (m < 0 || n < 0 || k < 0 || batch < 0) problem = "a negative extent";
    if (type_a != type_b) problem = "A and B have different types";
    auto check = [&](const char *ld_problem, const char *problem_outside, const void *p, cudaDataType type, int rows, int columns, int ld,
                     long long stride) {
        size_t last = (size_t)(batch - 1) * stride + (size_t)(columns - 1) * ld + rows;
        if (ld < (rows > 1 ? rows : 1)) problem = ld_problem;
        else if (rows > 0 && columns > 0 && batch > 0 && !cpu::on_device(p, last * (type == CUDA_R_32F ? 4 : 2)))
            problem = problem_outside;
    };
    bool ta = op_a == CUBLAS_OP_T, tb = op_b == CUBLAS_OP_T;
    check("lda is too small", "A leaves its allocation", a, type_a, ta ? k : m, ta ? m : k, lda, stride_a);
    check("ldb is too small", "B leaves its allocation", b, type_b, tb ? n : k, tb ? k : n, ldb, stride_b);
    check("ldc is too small", "C leaves its allocation", c, type_c, m, n, ldc, stride_c);
    if (problem != nullptr) {
        cpu::complain(cpu::last_error, "gemm of m %d, n %d, k %d, batch %d: %s", m, n, k, batch, problem);
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    float scale = *(const float *)alpha, keep = *(const float *)beta;
    bool tf32 = type_a == CUDA_R_32F && (compute == CUBLAS_COMPUTE_32F_FAST_TF32 || h->mode == CUBLAS_TF32_TENSOR_OP_MATH);
    cudaError_t error = cpu::submit(h->stream, [=] {
        for (int i = 0; i < batch; i++) {
            cpu::Matrix ai = {(char *)a, type_a, lda}, bi = {(char *)b, type_b, ldb}, ci = {(char *)c, type_c, ldc};
            ai.p += (size_t)i * stride_a * ai.element();
            bi.p += (size_t)i * stride_b * bi.element();
            ci.p += (size_t)i * stride_c * ci.element();
            cpu::gemm(ta, tb, m, n, k, scale, ai, bi, keep, ci, tf32);
        }
    });
    return error == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}
inline cublasStatus_t cublasGemmEx(cublasHandle_t h, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
                                   const void *alpha, const void *a, cudaDataType type_a, int lda, const void *b, cudaDataType type_b,
                                   int ldb, const void *beta, void *c, cudaDataType type_c, int ldc, cublasComputeType_t compute,
                                   cublasGemmAlgo_t algorithm) {
    return cublasGemmStridedBatchedEx(h, op_a, op_b, m, n, k, alpha, a, type_a, lda, 0, b, type_b, ldb, 0, beta, c, type_c, ldc, 0, 1,
                                      compute, algorithm);
}
inline cublasStatus_t cublasSgemm(cublasHandle_t h, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
                                  const float *alpha, const float *a, int lda, const float *b, int ldb, const float *beta, float *c,
                                  int ldc) {
    return cublasGemmEx(h, op_a, op_b, m, n, k, alpha, a, CUDA_R_32F, lda, b, CUDA_R_32F, ldb, beta, c, CUDA_R_32F, ldc,
                        CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
}
#endif
