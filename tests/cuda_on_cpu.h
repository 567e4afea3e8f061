/* cuda_on_cpu.h: the part of CUDA that mamba.cu uses, executed by the host, to test and debug kernels without a GPU.

       g++ -x c++ -std=c++17 -DCUDA_ON_CPU -g -fno-strict-aliasing -Wno-unknown-pragmas ...         (or clang++)

   How it works. The blocks of a grid run one after the other. The threads of a block are fibres: each has its own
   stack, and one runs until it reaches a barrier or a warp operation; then the next one goes on. So a launch is an
   ordinary function call, and deterministic. From one barrier to the next each thread runs as a whole, in the order of
   `schedule`: forward, reverse or random. Two accesses that only a missing barrier leaves unordered happen in one order
   under forward and in the other under reverse, so that one of the two gives a different result.

   Blocks that may wait for each other (launch_together) run at the same time: wait_for(p) stops a thread until another
   has stored something at p, with __stcg. Each warp has a rank, forward, reverse or random as the schedule says, and
   runs only while all of higher rank wait: so some are as far ahead of others as can be.

       CUDA_ON_CPU_SCHEDULE=forward|reverse|random:SEED     the order of threads and of blocks
       CUDA_ON_CPU_LAZY=1                                   streams work only when they are waited for, which shows a
                                                            host that does not wait

   What it reports, on stderr and in `report`, while the launch or the next synchronisation returns an error: a barrier
   or a warp operation that not all its threads reach, or at different lines; launches over the limits of the device;
   arguments that are no device pointers; copies and matrix products that leave their allocation; copies to shared
   memory that are on their way when the blocks are done. Device and shared memory start as 0xFF bytes (NaN), so that
   reading what nobody wrote shows. AddressSanitizer sees every other access out of bounds, UBSan a misaligned float4.
   What it cannot show: speed, races between blocks on global memory, and a __syncwarp missing next to a shuffle, which
   holds up its lanes like a barrier.

   To step through a block, compile with -O0 -g, and
       gdb build/test_cuda
       (gdb) break scan_forward_kernel if threadIdx.x == 5 && blockIdx.x == 0     threadIdx is a plain variable here
       (gdb) run
       (gdb) next                             also over a barrier: it stops when this same thread goes on behind it
       (gdb) print tile[0]@4                  shared memory, as the threads before this one have left it
       (gdb) backtrace                        the kernel, and below it the start of its fibre

   What it needs of mamba.cu: kernels are static, and started by launch(kernel, grid, block, shared_bytes, stream,
   args...); shared memory whose size is known at the launch only is dynamic_shared<T>(), as is all of a kernel that
   launch_together starts; inline PTX has a twin in C++.

   SPDX-License-Identifier: MIT

   1. Types and numbers      3. A block                  5. Memory                        7. cuBLAS
   2. Fibres                 4. What a kernel calls      6. Streams, graphs, launches */
#ifndef CUDA_ON_CPU_H
#define CUDA_ON_CPU_H

#include <algorithm>
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
#endif

/* 1. TYPES AND NUMBERS ============================================================================================= */

#define __global__ __attribute__((noinline, unused)) /* unused: a template that nobody instantiates */
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__

/* The blocks run one after the other, so a shared array is a static one. To be poisoned at the start of a block they
   must lie together: in a section of their own, or, since gcc ignores that inside templates, as the only thread-local
   variables of the program. AddressSanitizer guards neither, so with it they are plain statics and not poisoned. */
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

/* For what runs at every barrier of every thread: the sanitizers leave it alone. */
#define CUDA_ON_CPU_UNCHECKED __attribute__((no_sanitize("address"), no_sanitize("undefined")))

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
namespace cuda_on_cpu { void wake(const void *p); }
template <class T> inline void __stcg(T *p, T value) { *p = value, cuda_on_cpu::wake(p); }
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
#define CUDA_ON_CPU_ATOMIC(name, next) template <class T> T name(T *p, cuda_on_cpu::same<T> v) { \
    return cuda_on_cpu::atomic(p, [=](T old) { (void)old; return (T)(next); }); }
CUDA_ON_CPU_ATOMIC(atomicAdd, old + v)
CUDA_ON_CPU_ATOMIC(atomicMax, max(old, v))
CUDA_ON_CPU_ATOMIC(atomicMin, min(old, v))
CUDA_ON_CPU_ATOMIC(atomicOr, old | v)
CUDA_ON_CPU_ATOMIC(atomicExch, v)
template <class T> T atomicCAS(T *p, cuda_on_cpu::same<T> expected, cuda_on_cpu::same<T> v) {
    return cuda_on_cpu::atomic(p, [=](T old) { return old == expected ? v : old; });
}
inline unsigned atomicInc(unsigned *p, unsigned limit) {
    return cuda_on_cpu::atomic(p, [=](unsigned x) { return x >= limit ? 0u : x + 1; });
}

#define CUDA_ON_CPU_ERRORS(E) \
    E(cudaSuccess, 0) E(cudaErrorInvalidValue, 1) E(cudaErrorMemoryAllocation, 2) E(cudaErrorInvalidConfiguration, 9) \
    E(cudaErrorInsufficientDriver, 35) E(cudaErrorNoDevice, 100) E(cudaErrorInvalidDevice, 101) \
    E(cudaErrorNoKernelImageForDevice, 209) E(cudaErrorNotReady, 600) E(cudaErrorLaunchFailure, 719) \
    E(cudaErrorStreamCaptureUnsupported, 900) E(cudaErrorStreamCaptureInvalidated, 901) \
    E(cudaErrorStreamCaptureImplicit, 906)
#define CUDA_ON_CPU_ENUM(name, number) name = number,
#define CUDA_ON_CPU_CASE(name, number) case name: return #name;
enum cudaError_t { CUDA_ON_CPU_ERRORS(CUDA_ON_CPU_ENUM) };
inline const char *cudaGetErrorName(cudaError_t error) {
    switch (error) { CUDA_ON_CPU_ERRORS(CUDA_ON_CPU_CASE) }
    return "unknown error";
}
inline const char *cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

namespace cuda_on_cpu {

/* The device that the host sees: small, so that "fill the machine" means few blocks. Tests set it. */
struct Device {
    int multiprocessors = 8, major = 8, minor = 6;
    size_t shared_per_block = 48 << 10, shared_per_block_optin = 99 << 10, shared_per_multiprocessor = 100 << 10;
    size_t memory = (size_t)4 << 30;
    int driver = 13000;                /* the CUDA version that its driver is for; 0: there is none */
    cudaError_t error = cudaSuccess;   /* what looking for it gives */
    bool has_image = true;             /* the program has kernels for it */
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

inline CUDA_ON_CPU_UNCHECKED unsigned random_bits() {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(seed >> 33);
}

/* Notes an error, which stays until cudaGetLastError as with CUDA, and its text. */
__attribute__((format(printf, 2, 3))) inline cudaError_t complain(cudaError_t error, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(report, sizeof report, format, args);
    va_end(args);
    if (verbose) fprintf(stderr, "cuda_on_cpu: %s\n", report);
    return last_error = error;
}

/* 2. FIBRES ======================================================================================================== */

/* A stack, and where on it its owner stopped. They are kept: a fibre whose thread is done takes up another thread. */
struct Fibre {
    char *stack;                       /* lowest address */
    size_t bytes;
    void *stopped_at;                  /* its stack pointer; the registers that a function must keep lie there */
#ifdef CUDA_ON_CPU_UCONTEXT
    ucontext_t context;
#endif
};
constexpr size_t STACK_BYTES = 256 << 10, GUARD_BYTES = 64 << 10; /* whole pages, whatever their size */
constexpr int MAX_THREADS = 1024, MAX_WARPS = MAX_THREADS / 32, MAX_FIBRES = 12 * MAX_THREADS;
constexpr size_t ALL_STACKS_BYTES = MAX_FIBRES * (GUARD_BYTES + STACK_BYTES);

inline char *all_stacks; /* one mapping */
inline Fibre host, fibres[MAX_FIBRES], *idle[MAX_FIBRES], *running = &host, *previous;
inline int n_fibre, n_idle;
inline bool block_failed;
inline void *asan_record; /* AddressSanitizer's of the stack that is being gone to */

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
constexpr int RETURN_WORD = 6, FRAME_WORDS = 8;
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

/* AddressSanitizer has to know on which stack the program runs. To it all fibres share one, so that only the ways
   between the host and a block are told. Here: the stack that `to` is on, before going there; and once there. */
inline void leave_for(Fibre *to) {
#ifdef CUDA_ON_CPU_ASAN
    static void *of_host, *of_fibres; /* its own record of both stacks; nullptr: of a block given up, to be dropped */
    if (to == &host) __sanitizer_start_switch_fiber(block_failed ? nullptr : &of_fibres, host.stack, host.bytes);
    else __sanitizer_start_switch_fiber(&of_host, all_stacks, ALL_STACKS_BYTES);
    if (to == &host && block_failed) of_fibres = nullptr;
    asan_record = to == &host ? of_host : of_fibres;
#else
    (void)to;
#endif
}

inline void arrived() {
#ifdef CUDA_ON_CPU_ASAN
    const void *stack;
    size_t bytes;
    __sanitizer_finish_switch_fiber(asan_record, &stack, &bytes);
    if (running != &host) host.stack = (char *)stack, host.bytes = bytes;
#endif
}

inline CUDA_ON_CPU_UNCHECKED void switch_to(Fibre *to) {
    bool crosses = running == &host || to == &host;
    previous = running;
    running = to;
    if (crosses) leave_for(to);
#ifdef CUDA_ON_CPU_UCONTEXT
    swapcontext(&previous->context, &to->context);
#else
    switch_stack(&previous->stopped_at, to->stopped_at);
#endif
    if (previous == &host || running == &host) arrived();
}

void fibre_main();

/* Lets the fibre begin (again) in fibre_main. */
inline void fibre_reset(Fibre *fibre) {
#ifdef CUDA_ON_CPU_ASAN
    ASAN_UNPOISON_MEMORY_REGION(fibre->stack, fibre->bytes); /* what an abandoned thread left there */
#endif
#ifdef CUDA_ON_CPU_UCONTEXT
    getcontext(&fibre->context);
    fibre->context.uc_stack.ss_sp = fibre->stack;
    fibre->context.uc_stack.ss_size = fibre->bytes;
    fibre->context.uc_link = nullptr;
    makecontext(&fibre->context, fibre_main, 0);
#else
    size_t offset = (size_t)(fibre - fibres) % 60 * 1088; /* else all compete for the same lines of the cache */
    uintptr_t *frame = (uintptr_t *)(fibre->stack + fibre->bytes - offset) - FRAME_WORDS;
    memset(frame, 0, FRAME_WORDS * sizeof *frame);
    frame[RETURN_WORD] = (uintptr_t)fibre_main;
    fibre->stopped_at = frame;
#endif
}

inline Fibre *fibre_take() {
    if (n_idle > 0) return idle[--n_idle];
    Fibre *fibre = &fibres[n_fibre++];
    if (all_stacks == nullptr)
        all_stacks = (char *)mmap(nullptr, ALL_STACKS_BYTES, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
    char *memory = all_stacks + (size_t)(MAX_FIBRES - n_fibre) * (GUARD_BYTES + STACK_BYTES);
    if (all_stacks == (char *)MAP_FAILED || mprotect(memory, GUARD_BYTES, PROT_NONE) != 0)
        perror("cuda_on_cpu: stack"), abort();
    fibre->stack = memory + GUARD_BYTES; /* a stack grows downwards, and one that overflows stops here */
    fibre->bytes = STACK_BYTES;
    fibre_reset(fibre);
    return fibre;
}

/* 3. A BLOCK ======================================================================================================= */

enum Wait { BARRIER, SHUFFLE, BALLOT, FINISHED };

struct Thread {
    Fibre *fibre;                      /* nullptr: not started, or finished */
    uint3 index;
    Wait wait;                         /* for what, unless it is ready */
    const char *file;                  /* and line: where it waits */
    int line, source;                  /* source: the lane whose value it wants */
    unsigned mask;
    uint64_t given, taken;             /* its own value, and what the operation gives it */
    struct { unsigned a[2][2], b[2]; } matrices; /* its share of them, see mma_16x8x16 */
};

/* The running block. A bit per lane says which threads can go on; `warps` has a bit per warp with such lanes. */
inline Thread threads_of_one[MAX_THREADS], *thread = threads_of_one;
inline int n_thread, n_warp, current, current_warp, n_finished;
inline unsigned ready[MAX_WARPS], in_exchange[MAX_WARPS], warps;
inline int n_waiting, barrier_line, predicate_sum, predicate_result; /* of the next barrier, the result of the last */
inline const char *kernel_name = "";
inline std::function<void()> kernel_body;
inline char *dynamic_memory;
inline char *shared_begin, *shared_end; /* static shared memory as one range, which may be empty */

/* Where a block that runs at the same time as others has left off, or, for the running one, what was there before. */
struct Block {
    std::vector<Thread> threads;
    Thread *thread;
    uint3 index;
    unsigned ready[MAX_WARPS], in_exchange[MAX_WARPS];
    int n_finished, n_waiting, barrier_line, predicate_sum, predicate_result;
    std::vector<char> dynamic_bytes;
    char *dynamic_memory;
};
inline std::vector<Block> blocks;      /* empty: they run one after the other */
inline std::vector<int> ranks;         /* block * MAX_WARPS + warp, in the order in which they are to run */
inline int running_block;
inline std::multimap<uintptr_t, std::pair<int, int>> waiting; /* for these 16 bytes: block and thread */

/* Copies to shared memory that are on their way, by the barrier that counts their bytes: see copy_bytes. */
struct Copy { void *to; const void *from; size_t bytes; };
struct Arriving {
    int use;                           /* the one that is not over */
    bool expected;
    size_t bytes_expected, bytes;
    std::vector<Copy> copies;
};
inline std::map<const void *, Arriving> arrivals;

inline CUDA_ON_CPU_UNCHECKED unsigned low_bits(int n) { return n >= 32 ? ~0u : (1u << n) - 1; }
inline CUDA_ON_CPU_UNCHECKED void all_ready() {
    for (int w = 0; w < n_warp; w++) ready[w] = low_bits(n_thread - w * 32);
    warps = low_bits(n_warp);
    current_warp = MAX_WARPS; /* none: the next thread is chosen among all */
}

inline CUDA_ON_CPU_UNCHECKED int choose(unsigned bits) {
    if (schedule == FORWARD) return __builtin_ctz(bits);
    if (schedule == REVERSE) return 31 - __builtin_clz(bits);
    unsigned turn = random_bits() % 32; /* the first one from there on, round the end */
    return (int)((__builtin_ctz(bits >> turn | bits << (32 - turn) % 32) + turn) % 32);
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
inline void block_fail(const char *what) {
    const uint3 &t = thread[current].index;
    execution_error = complain(cudaErrorLaunchFailure, "%s, block (%u,%u,%u), thread (%u,%u,%u): %s%s", kernel_name,
                               blockIdx.x, blockIdx.y, blockIdx.z, t.x, t.y, t.z, what, threads_report().c_str());
    block_failed = true;
    switch_to(&host);
    abort();
}

inline CUDA_ON_CPU_UNCHECKED void swap_with(Block &b) {
    std::swap(b.thread, thread), std::swap(b.index, blockIdx), std::swap(b.dynamic_memory, dynamic_memory);
    std::swap(b.ready, ready), std::swap(b.in_exchange, in_exchange);
    std::swap(b.n_finished, n_finished), std::swap(b.n_waiting, n_waiting), std::swap(b.barrier_line, barrier_line);
    std::swap(b.predicate_sum, predicate_sum), std::swap(b.predicate_result, predicate_result);
}

/* Goes on with a thread of the running block, on its fibre or, if it begins now, on one that is idle. */
inline CUDA_ON_CPU_UNCHECKED void go_on_with(int k) {
    Thread &t = thread[current = k];
    threadIdx = t.index;
    if (t.fibre == nullptr) t.fibre = fibre_take();
    if (t.fibre != running) switch_to(t.fibre);
}

/* The first thread by rank, of all blocks, that can go on. */
inline CUDA_ON_CPU_UNCHECKED void next_thread_of_all() {
    for (int rank : ranks) {
        int b = rank / MAX_WARPS, w = rank % MAX_WARPS;
        unsigned lanes = b == running_block ? ready[w] : blocks[b].ready[w];
        if (lanes == 0) continue;
        if (b != running_block) swap_with(blocks[running_block]), swap_with(blocks[running_block = b]);
        int lane = choose(lanes);
        ready[w] &= ~(1u << lane);
        return go_on_with(w * 32 + lane);
    }
    for (int b = 0; b < (int)blocks.size(); b++)
        if ((b == running_block ? n_finished : blocks[b].n_finished) < n_thread)
            block_fail("threads wait for others, or for what no block gives");
    switch_to(&host);
}

/* The current thread cannot go on: to the next one that can, within the same warp while there is one, so that under
   FORWARD threads run in their order from barrier to barrier. Returns when this thread is to go on, or, if it is done,
   when its fibre has been given a new one. */
inline CUDA_ON_CPU_UNCHECKED void next_thread() {
    if (!blocks.empty()) return next_thread_of_all();
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
    go_on_with(current_warp * 32 + lane);
}

inline CUDA_ON_CPU_UNCHECKED void fibre_main() {
    if (previous == &host) arrived();
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

inline CUDA_ON_CPU_UNCHECKED void wait_for(const void *p) {
    if (blocks.empty()) return;
    waiting.insert({(uintptr_t)p / 16, {running_block, current}});
    next_thread();
}

inline CUDA_ON_CPU_UNCHECKED void wake(const void *p) {
    if (waiting.empty()) return;
    auto range = waiting.equal_range((uintptr_t)p / 16);
    for (auto i = range.first; i != range.second; i = waiting.erase(i)) {
        int b = i->second.first, k = i->second.second;
        (b == running_block ? ready : blocks[b].ready)[k / 32] |= 1u << k % 32;
    }
}

/* All threads of the block meet; the sum of their predicates. */
inline CUDA_ON_CPU_UNCHECKED int barrier(int predicate, const char *file, int line) {
    Thread &t = thread[current];
    t.wait = BARRIER, t.file = file, t.line = line;
    if (n_waiting == 0) barrier_line = line, predicate_sum = 0;
    if (line != barrier_line) block_fail("threads wait at different barriers");
    predicate_sum += predicate != 0;
    if (++n_waiting == n_thread) {
        n_waiting = 0;
        predicate_result = predicate_sum;
        all_ready();
    }
    next_thread();
    return predicate_result;
}

/* The lanes of a mask meet. The last to arrive gives each its result, so nothing is overwritten before it is read. */
inline CUDA_ON_CPU_UNCHECKED uint64_t exchange(Wait wait, unsigned mask, uint64_t given, int source, const char *file,
                                               int line) {
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

inline void find_shared() {
#if defined CUDA_ON_CPU_ASAN
#elif defined __clang__ && defined __APPLE__
    shared_begin = cuda_shared_begin, shared_end = cuda_shared_end;
#elif defined __clang__
    shared_begin = __start_cuda_shared, shared_end = __stop_cuda_shared;
#elif defined __linux__
    dl_iterate_phdr([](dl_phdr_info *program, size_t, void *) {
        bool dynamic = false; /* a static program has the C library's thread-local variables there too: hands off */
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

inline void poison(char *begin, char *end) {
    if (begin != end) memset(begin, 0xff, (size_t)(end - begin));
}

/* Narrows a range down to what is no longer poison: the arrays of this kernel among those of all. */
inline void narrow_to_written(char **begin, char **end) {
    static const std::string poisoned(64, (char)0xff);
    while (*end - *begin >= 64 && memcmp(*begin, poisoned.data(), 64) == 0) *begin += 64;
    while (*end - *begin >= 64 && memcmp(*end - 64, poisoned.data(), 64) == 0) *end -= 64;
}

inline void block_run(uint3 index) {
    blockIdx = index;
    n_finished = n_waiting = 0;
    block_failed = false;
    for (int w = 0; w < n_warp; w++) in_exchange[w] = 0;
    all_ready();
    next_thread();
    if (block_failed) fibre_reset(previous); /* the one that said so; it may have been between two threads */
    for (int i = 0; i < n_thread; i++) {
        if (thread[i].fibre != nullptr) fibre_reset(thread[i].fibre), idle[n_idle++] = thread[i].fibre;
        thread[i].fibre = nullptr;
    }
}

/* Runs the blocks of a grid at the same time. Their shared memory must be dynamic: of static arrays there is one. */
inline void grid_run_together(int n_block, size_t dynamic_bytes) {
    poison(shared_begin, shared_end);
    ranks.clear();
    blocks.resize(n_block);
    for (int i = 0; i < n_block; i++) {
        Block &b = blocks[i];
        b = Block();
        b.threads.resize(n_thread);
        for (int k = 0; k < n_thread; k++) b.threads[k].index = threads_of_one[k].index;
        b.thread = b.threads.data(), b.index.x = (unsigned)i;
        b.dynamic_bytes.assign(dynamic_bytes + 128, (char)0xff);
        b.dynamic_memory = (char *)(((uintptr_t)b.dynamic_bytes.data() + 127) / 128 * 128);
        for (int w = 0; w < n_warp; w++) b.ready[w] = low_bits(n_thread - w * 32), ranks.push_back(i * MAX_WARPS + w);
    }
    if (schedule == REVERSE) std::reverse(ranks.begin(), ranks.end());
    for (size_t i = ranks.size(); schedule == RANDOM && i > 1; i--) std::swap(ranks[i - 1], ranks[random_bits() % i]);
    block_failed = false;
    swap_with(blocks[running_block = 0]);
    next_thread();
    swap_with(blocks[running_block]);
    if (block_failed) fibre_reset(previous);
    for (Block &b : blocks)
        for (Thread &t : b.threads)
            if (t.fibre != nullptr) fibre_reset(t.fibre), idle[n_idle++] = t.fibre;
    bool copies_left = std::any_of(arrivals.begin(), arrivals.end(), [](auto &a) { return !a.second.copies.empty(); });
    blocks.clear(), waiting.clear(), arrivals.clear();
    if (!block_failed && copies_left)
        execution_error = complain(cudaErrorLaunchFailure, "%s: a copy that nobody has waited for", kernel_name);
    if (!block_failed && std::any_of(shared_begin, shared_end, [](char c) { return c != (char)0xff; }))
        execution_error =
            complain(cudaErrorLaunchFailure, "%s: static shared memory, one for all blocks at a time", kernel_name);
}

/* Runs the blocks of a grid. */
inline void grid_run(const std::string &kernel, std::function<void()> body, dim3 grid, dim3 block, size_t dynamic_bytes,
                     size_t shared_limit, bool together) {
    kernel_name = kernel.c_str(), kernel_body = body;
    gridDim = grid, blockDim = block;
    n_thread = (int)(block.x * block.y * block.z), n_warp = (n_thread + 31) / 32;
    for (unsigned i = 0; i < (unsigned)n_thread; i++)
        thread[i].index = uint3{i % block.x, i / block.x % block.y, i / block.x / block.y};
    if (shared_begin == nullptr) find_shared();
    if (together) return grid_run_together((int)grid.x, dynamic_bytes);
    if (posix_memalign((void **)&dynamic_memory, 128, max(dynamic_bytes, (size_t)1)) != 0) abort();
    char *begin = shared_begin, *end = shared_end;
    /* Block number first + i * step for i = 0, 1, ...: all of them, if step and their number have no common factor. */
    size_t blocks = (size_t)grid.x * grid.y * grid.z, first = 0, step = 1;
    if (schedule == REVERSE) first = step = blocks - 1;
    if (schedule == RANDOM) {
        first = random_bits() % blocks;
        for (step = random_bits() % blocks | 1; std::gcd(step, blocks) != 1; ) step += 2;
    }
    block_failed = false;
    for (size_t i = 0, b = first; i < blocks && !block_failed; i++, b = (b + step) % blocks) {
        poison(begin, end);
        poison(dynamic_memory, dynamic_memory + dynamic_bytes);
        block_run(uint3{unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y)});
        if (i > 0) continue;
        narrow_to_written(&begin, &end);
        size_t used = dynamic_bytes + (size_t)std::count_if(begin, end, [](char c) { return c != (char)0xff; });
        if (used > shared_limit) {
            execution_error = complain(cudaErrorLaunchFailure, "%s: at least %zu bytes of shared memory, limit %zu",
                                       kernel_name, used, shared_limit);
            break;
        }
    }
    free(dynamic_memory);
}
} /* namespace cuda_on_cpu */

/* 4. WHAT A KERNEL CALLS =========================================================================================== */

#define CUDA_ON_CPU_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE() /* the caller's */

inline void __syncthreads(CUDA_ON_CPU_SITE) { cuda_on_cpu::barrier(0, file, line); }
inline int __syncthreads_count(int p, CUDA_ON_CPU_SITE) { return cuda_on_cpu::barrier(p, file, line); }
inline int __syncthreads_or(int p, CUDA_ON_CPU_SITE) { return cuda_on_cpu::barrier(p, file, line) > 0; }
inline int __syncthreads_and(int p, CUDA_ON_CPU_SITE) { return cuda_on_cpu::barrier(!p, file, line) == 0; }

inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_ON_CPU_SITE) {
    return (unsigned)cuda_on_cpu::exchange(cuda_on_cpu::BALLOT, mask, predicate != 0, 0, file, line);
}
inline void __syncwarp(unsigned mask = ~0u, CUDA_ON_CPU_SITE) { __ballot_sync(mask, 0, file, line); }
inline int __any_sync(unsigned mask, int p, CUDA_ON_CPU_SITE) { return __ballot_sync(mask, p, file, line) != 0; }
inline int __all_sync(unsigned mask, int p, CUDA_ON_CPU_SITE) { return __ballot_sync(mask, p, file, line) == mask; }

namespace cuda_on_cpu {
/* The value of lane `source`, or the caller's own if that is below `first` or above `last`. */
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
/* The warp falls into groups of `width` lanes, a power of two; lane & -width is the first of the caller's. */
template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32, CUDA_ON_CPU_SITE) {
    source = (cuda_on_cpu::lane() & -width) + (source & (width - 1));
    return cuda_on_cpu::shuffle(mask, value, source, 0, 31, file, line);
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

namespace cuda_on_cpu {
/* mma.sync.m16n8k16 of bf16: D += A B by a warp, summed in float over k in order. Lane 4 g + t has of D in rows g and
   g + 8 the columns 2 t and 2 t + 1, and pairs of k from 2 t on, and from 2 t + 8 on: a and c of A's row g, b and d of
   row g + 8, e and f of B's column g. */
inline void mma_16x8x16(float *sum, unsigned a, unsigned b, unsigned c, unsigned d, unsigned e, unsigned f,
                        CUDA_ON_CPU_SITE) {
    Thread *warp = &thread[current / 32 * 32];
    auto value = [](unsigned pair, int k) { return __uint_as_float(k % 2 ? pair & 0xffff0000u : pair << 16); };
    thread[current].matrices = {{{a, c}, {b, d}}, {e, f}};
    __syncwarp(~0u, file, line);
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 16; k++) {
            int row = lane() / 4 + i / 2 * 8, column = lane() % 4 * 2 + i % 2, t = k % 8 / 2;
            sum[i] += value(warp[row % 8 * 4 + t].matrices.a[row / 8][k / 8], k) *
                      value(warp[column * 4 + t].matrices.b[k / 8], k);
        }
    __syncwarp(~0u, file, line);
}
}

namespace cuda_on_cpu {
bool on_device(const void *p, size_t bytes);

/* Copies to shared memory by a unit of their own (cp.async.bulk), and the barrier in shared memory that counts their
   bytes (mbarrier). They arrive when somebody waits for them and not before: reading them too early, or writing where
   they go, shows. */
inline Arriving &arriving(const void *barrier) {
    if (arrivals.count(barrier) == 0) block_fail("a barrier for bytes that nobody has initialised");
    return arrivals[barrier];
}
inline void arrival_init(unsigned long long *barrier) { arrivals[barrier] = Arriving(); }
inline void expect(unsigned long long *barrier, unsigned bytes) {
    Arriving &a = arriving(barrier);
    if (a.expected) block_fail("bytes are expected before those of the use before have come");
    a.expected = true, a.bytes_expected = bytes;
    wake(barrier);
}
inline void copy_bytes(void *to, const void *from, unsigned bytes, unsigned long long *barrier) {
    Arriving &a = arriving(barrier);
    if (bytes % 16 != 0 || (uintptr_t)to % 16 != 0 || (uintptr_t)from % 16 != 0 || !on_device(from, bytes))
        block_fail("such a copy is of multiples of 16 aligned bytes of device memory");
    a.copies.push_back({to, from, bytes}), a.bytes += bytes;
    memset(to, 0xff, bytes);
    wake(barrier);
}
inline void wait_for_bytes(unsigned long long *barrier, int use) {
    Arriving &a = arriving(barrier);
    if (use > a.use || use < a.use - 1) block_fail("waits for a use with the parity of another");
    while (use == a.use && !(a.expected && a.bytes == a.bytes_expected)) wait_for(barrier);
    if (use < a.use) return;
    for (const Copy &copy : a.copies) memcpy(copy.to, copy.from, copy.bytes);
    a = Arriving{a.use + 1, false, 0, 0, {}};
}
inline void prefetch_bytes(const void *from, unsigned bytes) {
    if (bytes % 16 != 0 || (uintptr_t)from % 16 != 0 || !on_device(from, bytes))
        block_fail("what is prefetched is multiples of 16 aligned bytes of device memory");
}
} /* namespace cuda_on_cpu */

/* 5. MEMORY ======================================================================================================== */

namespace cuda_on_cpu {
struct Allocation { size_t bytes; bool on_device; }; /* else the host's, pinned */
inline std::map<uintptr_t, Allocation> allocations;  /* by address */
inline size_t device_bytes;                          /* of those on the device */

/* The allocation that holds all of these bytes, or nullptr. */
inline const Allocation *find(const void *p, size_t bytes) {
    auto above = allocations.upper_bound((uintptr_t)p);
    if (above == allocations.begin()) return nullptr;
    --above;
    size_t offset = (uintptr_t)p - above->first;
    return offset <= above->second.bytes && bytes <= above->second.bytes - offset ? &above->second : nullptr;
}
inline bool on_device(const void *p, size_t bytes) { return find(p, bytes) != nullptr && find(p, bytes)->on_device; }
inline bool pinned(const void *p, size_t bytes) { return find(p, bytes) != nullptr && !find(p, bytes)->on_device; }

inline cudaError_t allocate_memory(void **p, size_t bytes, bool device_memory) {
    *p = nullptr;
    if (device_memory && device_bytes + bytes > device.memory) return last_error = cudaErrorMemoryAllocation;
    if (bytes == 0) return cudaSuccess;
    if (posix_memalign(p, 256, bytes) != 0) return last_error = cudaErrorMemoryAllocation;
    memset(*p, 0xff, bytes);
    allocations[(uintptr_t)*p] = Allocation{bytes, device_memory};
    device_bytes += device_memory ? bytes : 0;
    return cudaSuccess;
}

inline cudaError_t free_memory(void *p, bool device_memory) {
    auto a = allocations.find((uintptr_t)p);
    if (p == nullptr) return cudaSuccess;
    if (a == allocations.end() || a->second.on_device != device_memory)
        return complain(cudaErrorInvalidValue, "cudaFree%s of what it has not allocated", device_memory ? "" : "Host");
    device_bytes -= device_memory ? a->second.bytes : 0;
    allocations.erase(a);
    free(p);
    return cudaSuccess;
}
} /* namespace cuda_on_cpu */

/* 6. STREAMS, GRAPHS, LAUNCHES ===================================================================================== */

namespace cuda_on_cpu {
typedef std::vector<std::function<void()>> Work; /* with its arguments, captured by value */
struct Stream { int capture; };                  /* the number of the capture it belongs to, or 0 */
struct Event { std::chrono::steady_clock::time_point time; int capture; };
struct Graph { std::shared_ptr<Work> work; };    /* recorded instead of run */
inline Work queue;                               /* when lazy: what is still to be done */
inline Graph recording;                          /* the graph of the capture under way */
inline int capture, n_capture;                   /* its number, or 0; how many there have been */
inline bool capture_relaxed;

/* Work for a stream: to be recorded, done later, or done. */
inline cudaError_t submit(Stream *stream, std::function<void()> work) {
    if (capture != 0 && stream == nullptr)
        return complain(cudaErrorStreamCaptureImplicit, "work on stream 0 while another stream is being captured");
    if (capture != 0 && stream->capture == capture) return recording.work->push_back(work), cudaSuccess;
    if (lazy) return queue.push_back(work), cudaSuccess;
    work();
    return execution_error;
}

inline cudaError_t refuse_in_capture(const char *who) {
    if (capture == 0) return cudaSuccess;
    return complain(cudaErrorStreamCaptureUnsupported, "%s while a stream is being captured", who);
}

/* Does what is queued; the error of a kernel that has failed since the last time. */
inline cudaError_t synchronise(const char *who) {
    if (capture != 0) return refuse_in_capture(who);
    Work work;
    work.swap(queue);
    for (auto &item : work) item();
    cudaError_t error = execution_error;
    execution_error = cudaSuccess;
    return error;
}
} /* namespace cuda_on_cpu */

typedef cuda_on_cpu::Stream *cudaStream_t;
typedef cuda_on_cpu::Event *cudaEvent_t;
typedef cuda_on_cpu::Graph *cudaGraph_t, *cudaGraphExec_t;

template <class T> cudaError_t cudaMalloc(T **p, size_t bytes) {
    cudaError_t error = cuda_on_cpu::capture_relaxed ? cudaSuccess : cuda_on_cpu::refuse_in_capture("cudaMalloc");
    return error != cudaSuccess ? error : cuda_on_cpu::allocate_memory((void **)p, bytes, true);
}
template <class T> cudaError_t cudaMallocHost(T **p, size_t bytes) {
    cudaError_t error = cuda_on_cpu::capture_relaxed ? cudaSuccess : cuda_on_cpu::refuse_in_capture("cudaMallocHost");
    return error != cudaSuccess ? error : cuda_on_cpu::allocate_memory((void **)p, bytes, false);
}
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
/* `height` rows of `width` bytes. */
inline cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                                     size_t height, cudaMemcpyKind kind, cudaStream_t stream = nullptr) {
    namespace cpu = cuda_on_cpu;
    if (width == 0 || height == 0) return cudaSuccess;
    size_t to_bytes = (height - 1) * to_pitch + width, from_bytes = (height - 1) * from_pitch + width;
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (kind == cudaMemcpyDefault) to_device = cpu::on_device(to, 1), from_device = cpu::on_device(from, 1);
    bool to_ok = to_device ? cpu::on_device(to, to_bytes) : !cpu::on_device(to, 1);
    bool from_ok = from_device ? cpu::on_device(from, from_bytes) : !cpu::on_device(from, 1);
    if (!to_ok || !from_ok || width > to_pitch || width > from_pitch)
        return cpu::complain(cudaErrorInvalidValue, "copy of %zu x %zu bytes from %s to %s: not all of %s lies there",
                             height, width, from_device ? "device" : "host", to_device ? "device" : "host",
                             !from_ok ? "the source" : "the destination");
    cudaError_t error = cpu::submit(stream, [=] {
        for (size_t i = 0; i < height; i++)
            memmove((char *)to + i * to_pitch, (const char *)from + i * from_pitch, width);
    });
    bool waits = !(to_device || cpu::pinned(to, to_bytes)) || !(from_device || cpu::pinned(from, from_bytes));
    if (error == cudaSuccess && waits && cpu::capture == 0) error = cpu::synchronise("cudaMemcpyAsync");
    return error;
}
inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t stream = nullptr) {
    return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}
inline cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    cudaError_t error = cuda_on_cpu::refuse_in_capture("cudaMemcpy");
    if (error == cudaSuccess) error = cudaMemcpyAsync(to, from, bytes, kind);
    return error != cudaSuccess ? error : cuda_on_cpu::synchronise("cudaMemcpy");
}
inline cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream = nullptr) {
    if (bytes == 0) return cudaSuccess;
    if (!cuda_on_cpu::on_device(p, bytes))
        return cuda_on_cpu::complain(cudaErrorInvalidValue, "cudaMemset of %zu bytes: not all on the device", bytes);
    return cuda_on_cpu::submit(stream, [=] { memset(p, value, bytes); });
}
inline cudaError_t cudaMemset(void *p, int value, size_t bytes) { return cudaMemsetAsync(p, value, bytes); }

enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2 };
inline cudaError_t cudaStreamCreate(cudaStream_t *s) { return *s = new cuda_on_cpu::Stream(), cudaSuccess; }
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned) { return cudaStreamCreate(s); }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cuda_on_cpu::synchronise("cudaStreamSynchronize"); }
inline cudaError_t cudaDeviceSynchronize() { return cuda_on_cpu::synchronise("cudaDeviceSynchronize"); }
inline cudaError_t cudaStreamDestroy(cudaStream_t s) {
    cudaError_t error = cuda_on_cpu::synchronise("cudaStreamDestroy");
    delete s;
    return error;
}

inline cudaError_t cudaEventCreate(cudaEvent_t *e) { return *e = new cuda_on_cpu::Event(), cudaSuccess; }
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) { return cudaEventCreate(e); }
inline cudaError_t cudaEventDestroy(cudaEvent_t e) {
    cudaError_t error = cuda_on_cpu::synchronise("cudaEventDestroy");
    delete e;
    return error;
}
/* All streams run in the order of submission, so nothing needs to wait for an event. In a capture it is an edge of the
   graph, not work, and a stream that waits for it joins the capture. */
inline cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t stream = nullptr) {
    e->capture = stream == nullptr ? 0 : stream->capture;
    if (e->capture != 0 && e->capture == cuda_on_cpu::capture) return cudaSuccess;
    return cuda_on_cpu::submit(stream, [=] { e->time = std::chrono::steady_clock::now(); });
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t e, unsigned = 0) {
    if (e->capture != 0 && e->capture == cuda_on_cpu::capture) stream->capture = e->capture;
    return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cuda_on_cpu::synchronise("cudaEventSynchronize"); }
inline cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end) {
    *milliseconds = std::chrono::duration<float, std::milli>(end->time - begin->time).count();
    return cudaSuccess;
}

enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeRelaxed
};
inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    namespace cpu = cuda_on_cpu;
    if (stream == nullptr || cpu::capture != 0)
        return cpu::complain(cudaErrorStreamCaptureUnsupported, "capture of stream 0, or while another is under way");
    cpu::recording.work = std::make_shared<cpu::Work>();
    cpu::capture_relaxed = mode == cudaStreamCaptureModeRelaxed;
    stream->capture = cpu::capture = ++cpu::n_capture;
    return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    namespace cpu = cuda_on_cpu;
    *graph = nullptr;
    if (stream == nullptr || cpu::capture == 0 || stream->capture != cpu::capture)
        return cpu::complain(cudaErrorStreamCaptureInvalidated, "the end of a capture that has not begun");
    *graph = new cpu::Graph(cpu::recording);
    cpu::capture = 0, cpu::capture_relaxed = false;
    return cudaSuccess;
}
inline cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    return *exec = new cuda_on_cpu::Graph(*graph), cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    std::shared_ptr<cuda_on_cpu::Work> work = exec->work;
    return cuda_on_cpu::submit(stream, [=] { for (auto &item : *work) item(); });
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return delete exec, cudaSuccess; }

inline cudaError_t cudaPeekAtLastError() { return cuda_on_cpu::last_error; }
inline cudaError_t cudaGetLastError() {
    cudaError_t error = cuda_on_cpu::last_error;
    return cuda_on_cpu::last_error = cudaSuccess, error;
}

struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin, sharedMemPerMultiprocessor;
    int major, minor, multiProcessorCount, warpSize, maxThreadsPerBlock, maxThreadsPerMultiProcessor, l2CacheSize;
};
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount = 16, cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
inline cudaError_t cudaGetDeviceCount(int *count) {
    return *count = cuda_on_cpu::device.error == cudaSuccess, cuda_on_cpu::device.error;
}
inline cudaError_t cudaDriverGetVersion(int *version) { return *version = cuda_on_cpu::device.driver, cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int *version) { return *version = 13000, cudaSuccess; }
inline cudaError_t cudaSetDevice(int id) { return id == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
inline cudaError_t cudaGetDevice(int *id) { return *id = 0, cudaSuccess; }
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int id) {
    const cuda_on_cpu::Device &d = cuda_on_cpu::device;
    *p = cudaDeviceProp{"CUDA on the CPU", d.memory, d.shared_per_block, d.shared_per_block_optin,
                        d.shared_per_multiprocessor, d.major, d.minor, d.multiprocessors, 32, 1024, 2048, 1 << 20};
    return cudaSetDevice(id);
}
inline cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int id) {
    const cuda_on_cpu::Device &d = cuda_on_cpu::device;
    *value = attribute == cudaDevAttrMultiProcessorCount ? d.multiprocessors
           : attribute == cudaDevAttrComputeCapabilityMajor ? d.major
           : attribute == cudaDevAttrComputeCapabilityMinor ? d.minor : (int)d.shared_per_block_optin;
    return cudaSetDevice(id);
}

struct cudaFuncAttributes { int numRegs; };
template <class... P> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, void (*)(P...)) {
    attributes->numRegs = 0;
    return cuda_on_cpu::device.has_image ? cudaSuccess : cudaErrorNoKernelImageForDevice;
}
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
namespace cuda_on_cpu { inline std::map<uintptr_t, size_t> dynamic_limit; /* of the kernels that have asked for one */ }
template <class... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute, int bytes) {
    if (bytes < 0 || (size_t)bytes > cuda_on_cpu::device.shared_per_block_optin)
        return cuda_on_cpu::complain(cudaErrorInvalidValue, "%d bytes of shared memory, the device has %zu", bytes,
                                     cuda_on_cpu::device.shared_per_block_optin);
    return cuda_on_cpu::dynamic_limit[(uintptr_t)kernel] = (size_t)bytes, cudaSuccess;
}
template <class... P>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void (*)(P...), int threads, size_t bytes) {
    size_t by_memory = cuda_on_cpu::device.shared_per_multiprocessor / (bytes + 1024); /* 1 KB is the system's */
    return *blocks = (int)min(by_memory, (size_t)(2048 / threads)), cudaSuccess;
}

namespace cuda_on_cpu {
inline std::map<uintptr_t, unsigned> launched; /* kernels that have run, by address; bit s: under schedule s */

template <class T> bool reachable(const T &) { return true; }
template <class T> bool reachable(T *const &p) { return p == nullptr || find((const void *)p, 1) != nullptr; }

/* call: "scan<T, 4>, grid, block, ..." */
template <class... P, class... A>
cudaError_t launch_kernel(const char *call, bool together, void (*kernel)(P...), dim3 grid, dim3 block,
                          size_t shared_bytes, cudaStream_t stream, A... args) {
    const char *end = call;
    for (int depth = 0; *end != '\0' && (*end != ',' || depth > 0); end++) depth += (*end == '<') - (*end == '>');
    std::string name(call, end);
    std::tuple<P...> values(args...);
    auto asked = dynamic_limit.find((uintptr_t)kernel);
    size_t limit = asked == dynamic_limit.end() ? device.shared_per_block : asked->second;
    size_t static_and_dynamic = asked == dynamic_limit.end() ? device.shared_per_block : device.shared_per_block_optin;
    int n_arg = 0, wrong_arg = 0;
    std::apply([&](const P &...value) { ((n_arg++, wrong_arg = reachable(value) ? wrong_arg : n_arg), ...); }, values);
    cudaError_t error;
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535 ||
        block.x == 0 || block.y == 0 || block.z == 0 || block.x > 1024 || block.y > 1024 || block.z > 64 ||
        block.x * block.y * block.z > 1024)
        error = complain(cudaErrorInvalidConfiguration, "%s: a grid of (%u,%u,%u) blocks of (%u,%u,%u) threads",
                         name.c_str(), grid.x, grid.y, grid.z, block.x, block.y, block.z);
    else if (shared_bytes > limit)
        error = complain(cudaErrorInvalidValue, "%s: %zu bytes of shared memory, limit %zu", name.c_str(),
                         shared_bytes, limit);
    else if (together && (grid.y * grid.z > 1 || grid.x * (size_t)block.x > MAX_FIBRES))
        error = complain(cudaErrorInvalidConfiguration, "%s: too many blocks to run at the same time", name.c_str());
    else if (wrong_arg != 0)
        error = complain(cudaErrorInvalidValue, "%s: argument %d is no device pointer", name.c_str(), wrong_arg);
    else error = submit(stream, [=] {
        launched[(uintptr_t)kernel] |= 1u << schedule;
        grid_run(name, [=] { std::apply(kernel, values); }, grid, block, shared_bytes, static_and_dynamic,
                 together);
    });
    last_error = cudaSuccess; /* it is returned */
    return error;
}
} /* namespace cuda_on_cpu */

#define launch(...) cuda_on_cpu::launch_kernel(#__VA_ARGS__, false, __VA_ARGS__) /* a report can name the kernel */
#define launch_together(...) cuda_on_cpu::launch_kernel(#__VA_ARGS__, true, __VA_ARGS__)

/* 7. CUBLAS ======================================================================================================== */

enum cublasStatus_t { CUBLAS_STATUS_SUCCESS = 0, CUBLAS_STATUS_INVALID_VALUE = 7, CUBLAS_STATUS_EXECUTION_FAILED = 13 };
enum cublasOperation_t { CUBLAS_OP_N, CUBLAS_OP_T };
enum cudaDataType_t { CUDA_R_32F = 0, CUDA_R_16BF = 14 };
enum cublasComputeType_t { CUBLAS_COMPUTE_32F = 68, CUBLAS_COMPUTE_32F_FAST_TF32 = 77 };
enum cublasGemmAlgo_t { CUBLAS_GEMM_DEFAULT = -1 };
enum cublasMath_t { CUBLAS_DEFAULT_MATH = 0, CUBLAS_TF32_TENSOR_OP_MATH = 3 };
typedef cudaDataType_t cudaDataType;
typedef struct cublasContext { cudaStream_t stream; cublasMath_t mode; } *cublasHandle_t;

inline cublasStatus_t cublasCreate(cublasHandle_t *h) { return *h = new cublasContext(), CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasDestroy(cublasHandle_t h) { return delete h, CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasSetStream(cublasHandle_t h, cudaStream_t s) { return h->stream = s, CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasSetMathMode(cublasHandle_t h, cublasMath_t m) { return h->mode = m, CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasSetWorkspace(cublasHandle_t, void *p, size_t bytes) {
    return cuda_on_cpu::on_device(p, bytes) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

namespace cuda_on_cpu {
/* A matrix as cuBLAS has it: element (i, j) at i + j * ld; the next one of a batch `stride` elements on. */
struct Matrix {
    char *p;
    cudaDataType type;
    int ld;
    long long stride;
    size_t element() const { return type == CUDA_R_32F ? 4 : 2; }
    float get(size_t i) const { return type == CUDA_R_32F ? ((float *)p)[i] : (float)((__nv_bfloat16 *)p)[i]; }
    void set(size_t i, float value) const {
        if (type == CUDA_R_32F) ((float *)p)[i] = value;
        else ((__nv_bfloat16 *)p)[i] = value;
    }
    Matrix of_batch(int i) const { return Matrix{p + i * stride * (long long)element(), type, ld, stride}; }
    bool fits(int rows, int columns, int batch) const {
        if (ld < max(rows, 1)) return false;
        if (rows == 0 || columns == 0 || batch == 0) return true;
        return on_device(p, ((size_t)(batch - 1) * stride + (size_t)(columns - 1) * ld + rows) * element());
    }
};

inline float round_to_tf32(float x) { return __uint_as_float((__float_as_uint(x) + 0x1000) & ~0x1fffu); }

/* C = alpha op(A) op(B) + beta C, op(A): (m, k), op(B): (k, n), C: (m, n). Sums in float, over k in order. */
inline void gemm(bool transpose_a, bool transpose_b, int m, int n, int k, float alpha, Matrix a, Matrix b, float beta,
                 Matrix c, bool tf32) {
    std::vector<float> columns_of_a((size_t)m * k), sum(m);
    for (int p = 0; p < k; p++)
        for (int i = 0; i < m; i++) {
            float value = a.get(transpose_a ? p + (size_t)i * a.ld : i + (size_t)p * a.ld);
            columns_of_a[(size_t)p * m + i] = tf32 ? round_to_tf32(value) : value;
        }
    for (int j = 0; j < n; j++) {
        std::fill(sum.begin(), sum.end(), 0.0f);
        for (int p = 0; p < k; p++) {
            float value = b.get(transpose_b ? j + (size_t)p * b.ld : p + (size_t)j * b.ld);
            if (tf32) value = round_to_tf32(value);
            for (int i = 0; i < m; i++) sum[i] += columns_of_a[(size_t)p * m + i] * value;
        }
        for (int i = 0; i < m; i++) {
            size_t at = i + (size_t)j * c.ld;
            c.set(at, alpha * sum[i] + (beta == 0 ? 0 : beta * c.get(at))); /* for beta = 0, C may be uninitialised */
        }
    }
}
} /* namespace cuda_on_cpu */

inline cublasStatus_t cublasGemmStridedBatchedEx(
    cublasHandle_t h, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k, const void *alpha,
    const void *a, cudaDataType type_a, int lda, long long stride_a, const void *b, cudaDataType type_b, int ldb,
    long long stride_b, const void *beta, void *c, cudaDataType type_c, int ldc, long long stride_c, int batch,
    cublasComputeType_t compute, cublasGemmAlgo_t) {
    namespace cpu = cuda_on_cpu;
    bool ta = op_a == CUBLAS_OP_T, tb = op_b == CUBLAS_OP_T;
    cpu::Matrix ma = {(char *)a, type_a, lda, stride_a}, mb = {(char *)b, type_b, ldb, stride_b};
    cpu::Matrix mc = {(char *)c, type_c, ldc, stride_c};
    const char *problem = m < 0 || n < 0 || k < 0 || batch < 0 ? "a negative extent"
                        : type_a != type_b ? "A and B have different types"
                        : !ma.fits(ta ? k : m, ta ? m : k, batch) ? "lda is too small, or A leaves its allocation"
                        : !mb.fits(tb ? n : k, tb ? k : n, batch) ? "ldb is too small, or B leaves its allocation"
                        : !mc.fits(m, n, batch) ? "ldc is too small, or C leaves its allocation" : nullptr;
    if (problem != nullptr) {
        cpu::complain(cpu::last_error, "gemm of m %d, n %d, k %d, batch %d: %s", m, n, k, batch, problem);
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    float scale = *(const float *)alpha, keep = *(const float *)beta;
    bool tf32 = compute == CUBLAS_COMPUTE_32F_FAST_TF32 || h->mode == CUBLAS_TF32_TENSOR_OP_MATH;
    cudaError_t error = cpu::submit(h->stream, [=] {
        for (int i = 0; i < batch; i++)
            cpu::gemm(ta, tb, m, n, k, scale, ma.of_batch(i), mb.of_batch(i), keep, mc.of_batch(i), tf32);
    });
    return error == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}
inline cublasStatus_t cublasGemmEx(
    cublasHandle_t h, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k, const void *alpha,
    const void *a, cudaDataType type_a, int lda, const void *b, cudaDataType type_b, int ldb, const void *beta,
    void *c, cudaDataType type_c, int ldc, cublasComputeType_t compute, cublasGemmAlgo_t algorithm) {
    return cublasGemmStridedBatchedEx(h, op_a, op_b, m, n, k, alpha, a, type_a, lda, 0, b, type_b, ldb, 0, beta, c,
                                      type_c, ldc, 0, 1, compute, algorithm);
}
inline cublasStatus_t cublasSgemm(
    cublasHandle_t h, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k, const float *alpha,
    const float *a, int lda, const float *b, int ldb, const float *beta, float *c, int ldc) {
    return cublasGemmEx(h, op_a, op_b, m, n, k, alpha, a, CUDA_R_32F, lda, b, CUDA_R_32F, ldb, beta, c, CUDA_R_32F, ldc,
                        CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
}
#endif
