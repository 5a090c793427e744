// An emulation of the part of CUDA's runtime that the kernels use. A C++ compiler compiles the kernels against this
// header, and a launch runs the whole grid on the CPU before it returns.
//
// Each thread of a block is a fiber that runs until the next barrier of its block or its warp. `order` determines the
// order of the blocks, and of the threads between two barriers; a result that depends on it shows a race. The program
// fails if some threads reach a barrier and others do not, or if a block writes past its shared memory.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __shared__ thread_local // blocks run one after the other, in one thread
#define __grid_constant__
#define __launch_bounds__(...)
#define __noinline__ __attribute__((noinline))

struct dim3 {
    unsigned x, y, z = 1;
    dim3(unsigned width = 1, unsigned height = 1) : x(width), y(height) {}
};

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(8) float2 {
    float x, y;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
using cudaStream_t = void*;

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
};

namespace emulation {

extern unsigned order;
constexpr size_t GRANTED_SHARED_BYTES = 48 << 10;
inline size_t granted_shared_bytes = GRANTED_SHARED_BYTES;
extern size_t num_launches;
extern bool fails; // each launch does
extern cudaError_t last_error;

// Fill the dynamic shared memory of a block with garbage, and check that nothing was written past its end.
void begin_block(size_t shared_bytes);
void end_block(size_t shared_bytes);

// Is called for each access to device memory.
inline void note_access(const void* /*address*/, int /*bytes*/, bool /*is_store*/) {}

[[noreturn]] inline void fail(const char* text) {
    std::printf("FAILED: %s\n", text);
    std::exit(1);
}

class Block {
public:
    static constexpr unsigned WARP = 32;
    enum State { READY, AT_WARP_BARRIER, AT_BLOCK_BARRIER, DONE };

    explicit Block(unsigned num_threads) : fibers_(num_threads) {
        for (auto& fiber : fibers_) {
            create(&fiber);
        }
    }

    // Runs all threads, from barrier to barrier.
    void run(const std::function<void()>& kernel, std::minstd_rand& random) {
        kernel_ = &kernel;
        for (auto& fiber : fibers_) {
            fiber.state = READY;
        }
        std::vector<unsigned> turns(fibers_.size());
        std::iota(turns.begin(), turns.end(), 0u);
        do {
            shuffle(&turns, random);
            for (const unsigned thread : turns) {
                if (fibers_[thread].state == READY) {
                    resume(thread);
                }
            }
        } while (release());
    }

    // Suspends the running fiber at a barrier until all threads of the barrier have reached it.
    static void wait(State barrier) {
        const dim3 thread = threadIdx;
        current_->suspend(barrier);
        threadIdx = thread;
    }

    static void shuffle(std::vector<unsigned>* turns, std::minstd_rand& random) {
        for (size_t i = turns->size(); i > 1 && order != 0; --i) {
            std::swap((*turns)[i - 1], (*turns)[random() % i]);
        }
    }

private:
    static constexpr size_t STACK_SIZE = 64 << 10;

    struct Fiber {
        jmp_buf place; // where it continues
        std::unique_ptr<char[]> stack;
        State state;
    };

    void suspend(State state) {
        running_->state = state;
        if (_setjmp(running_->place) == 0) {
            _longjmp(scheduler_, 1);
        }
    }

    // ucontext sets up a fiber's stack. After that jumps are enough; they do not touch the signal mask.
    static void enter() {
        for (;;) {
            current_->suspend(DONE);
            (*current_->kernel_)();
        }
    }

    void create(Fiber* fiber) {
        ucontext_t context, here;
        fiber->stack = std::make_unique<char[]>(STACK_SIZE);
        getcontext(&context);
        context.uc_stack.ss_sp = fiber->stack.get();
        context.uc_stack.ss_size = STACK_SIZE;
        context.uc_link = nullptr;
        makecontext(&context, enter, 0);
        current_ = this;
        running_ = fiber;
        if (_setjmp(scheduler_) == 0) {
            swapcontext(&here, &context);
        }
    }

    void resume(unsigned thread) {
        threadIdx = dim3(thread);
        current_ = this;
        running_ = &fibers_[thread];
        if (_setjmp(scheduler_) == 0) {
            _longjmp(running_->place, 1);
        }
    }

    bool all(State state, size_t begin, size_t end) const {
        return std::all_of(fibers_.begin() + begin, fibers_.begin() + end,
                           [&](const Fiber& fiber) { return fiber.state == state; });
    }

    void set_ready(size_t begin, size_t end) {
        std::for_each(fibers_.begin() + begin, fibers_.begin() + end, [](Fiber& fiber) { fiber.state = READY; });
    }

    // Resumes the threads whose barrier is complete. False at the end of the block.
    bool release() {
        bool has_ready = false;
        for (size_t warp = 0; warp < fibers_.size(); warp += WARP) {
            if (all(AT_WARP_BARRIER, warp, warp + WARP)) {
                set_ready(warp, warp + WARP);
                has_ready = true;
            }
        }
        if (has_ready || all(DONE, 0, fibers_.size())) {
            return has_ready;
        }
        if (!all(AT_BLOCK_BARRIER, 0, fibers_.size())) {
            fail("some threads wait at a barrier that others do not reach");
        }
        set_ready(0, fibers_.size());
        return true;
    }

    inline static Block* current_;
    std::vector<Fiber> fibers_;
    jmp_buf scheduler_;
    Fiber* running_;
    const std::function<void()>* kernel_;
};

// Passes values between threads at barriers of one kind, alternating between two places: a thread that is already at
// the next barrier does not overwrite what others still read.
struct Exchange {
    static constexpr unsigned MAX_THREADS = 1024;
    Block::State barrier;
    unsigned char slots[2][MAX_THREADS][8] = {};
    unsigned char turns[MAX_THREADS] = {};

    // Returns read(get), where get(thread) is the value of another thread at the barrier.
    template <typename T, typename Read> auto operator()(T mine, const Read& read) {
        static_assert(sizeof mine <= sizeof slots[0][0]);
        auto& place = slots[turns[threadIdx.x] ^= 1];
        std::memcpy(place[threadIdx.x], &mine, sizeof mine);
        Block::wait(barrier);
        return read([&](unsigned thread) {
            T other;
            std::memcpy(&other, place[thread], sizeof other);
            return other;
        });
    }
};

inline Exchange of_block{Block::AT_BLOCK_BARRIER}, of_warp{Block::AT_WARP_BARRIER};

} // namespace emulation

inline void __syncthreads() { emulation::Block::wait(emulation::Block::AT_BLOCK_BARRIER); }

inline int __syncthreads_and(int mine) {
    return emulation::of_block(mine, [](const auto& get) {
        int all = 1;
        for (unsigned thread = 0; thread < blockDim.x; ++thread) {
            all &= get(thread) != 0;
        }
        return all;
    });
}

inline void __syncwarp() { emulation::Block::wait(emulation::Block::AT_WARP_BARRIER); }

inline int __any_sync(unsigned /*all lanes*/, int mine) {
    return emulation::of_warp(mine, [](const auto& get) {
        const unsigned first = threadIdx.x / emulation::Block::WARP * emulation::Block::WARP;
        int any = 0;
        for (unsigned lane = 0; lane < emulation::Block::WARP; ++lane) {
            any |= get(first + lane) != 0;
        }
        return any;
    });
}

template <typename T> T __shfl_xor_sync(unsigned /*all lanes*/, T mine, int lanes) {
    return emulation::of_warp(mine, [&](const auto& get) { return get(threadIdx.x ^ static_cast<unsigned>(lanes)); });
}

template <typename T> T __shfl_sync(unsigned /*all lanes*/, T mine, int lane) {
    const unsigned first = threadIdx.x / emulation::Block::WARP * emulation::Block::WARP;
    return emulation::of_warp(mine, [&](const auto& get) { return get(first + static_cast<unsigned>(lane)); });
}

// The first lanes keep their own.
template <typename T> T __shfl_up_sync(unsigned /*all lanes*/, T mine, unsigned lanes) {
    const bool has_other = threadIdx.x % emulation::Block::WARP >= lanes;
    return emulation::of_warp(mine, [&](const auto& get) { return get(threadIdx.x - (has_other ? lanes : 0)); });
}

inline void __threadfence_system() {}

template <typename T> T __ldg(const T* address) { return *address; }

inline bool has_bit(unsigned word, unsigned bit) { return (word & bit) != 0; }

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// ---- the special functions, with errors as large as a GPU's can be ----

using emulation::note_access;

namespace emulation {

// x, or a neighbour up to 2^-22 away. Which one depends on its last bits, so that the same argument has the same
// result.
inline float with_error(double x) {
    const auto rounded = static_cast<float>(x);
    const int last_bits = static_cast<int>(__float_as_uint(rounded) * 2654435761u >> 30); // 0 to 3
    const double error = (last_bits - 1.5) / 1.5 * 0x1p-22;
    const auto result = static_cast<float>(x * (1 + error));
    return std::isfinite(result) && std::fabs(result) < 0x1p-126f ? 0 : result; // denormal results are flushed
}

inline float without_denormal(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

} // namespace emulation

inline float max_or_nan(float x, float y) { return x != x || x > y ? x : y; }
inline void add_label_sums(unsigned labels, unsigned bit, float x, float y, float v, float* intersection,
                           float* prediction, float* target) {
    *prediction = std::fma(x, y, *prediction);
    *intersection = labels & bit ? std::fma(x, y, *intersection) : *intersection;
    *target += labels & bit ? v : 0;
}
inline void add_unless_label(unsigned labels, unsigned bit, float x, float* sum, float y, float* at_label) {
    (labels & bit ? *at_label : *sum) = labels & bit ? y : *sum + x;
}
inline void add_product_unless_label(unsigned labels, unsigned bit, float x, float y, float* sum) {
    *sum = labels & bit ? *sum : std::fma(x, y, *sum);
}
inline unsigned bit_or_0(unsigned n) { return n < 32 ? 1u << n : 0; }
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
inline float fast_exp2(float x) { return emulation::with_error(std::exp2(static_cast<double>(x))); }
inline float fast_log2(float x) {
    const double y = std::log2(static_cast<double>(emulation::without_denormal(x)));
    return std::fabs(y) < 1 ? static_cast<float>(y + (emulation::with_error(1 + std::fabs(y)) - (1 + std::fabs(y))) / 2)
                            : emulation::with_error(y);
}
inline float fast_reciprocal(float x) {
    return emulation::with_error(1 / static_cast<double>(emulation::without_denormal(x)));
}

template <typename T> T atomicAdd(T* address, T value) {
    const T before = *address;
    *address += value;
    return before;
}

inline int atomicCAS(int* address, int expected, int value) {
    const int before = *address;
    *address = before == expected ? value : before;
    return before;
}

inline cudaError_t cudaGetLastError() {
    const auto error = emulation::last_error;
    emulation::last_error = cudaSuccess;
    return error;
}

inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int shared_bytes) {
    emulation::granted_shared_bytes = static_cast<size_t>(shared_bytes);
    return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
    static emulation::Block block(config->blockDim.x); // all launches have the same block size
    if (emulation::fails || config->dynamicSmemBytes > emulation::granted_shared_bytes) {
        return emulation::last_error = cudaErrorInvalidValue;
    }
    emulation::granted_shared_bytes = emulation::GRANTED_SHARED_BYTES; // the request was for one kernel only
    ++emulation::num_launches;
    std::minstd_rand random(emulation::order + 1);
    std::vector<unsigned> turns(config->gridDim.x * config->gridDim.y);
    std::iota(turns.begin(), turns.end(), 0u);
    emulation::Block::shuffle(&turns, random);
    gridDim = config->gridDim;
    blockDim = config->blockDim;
    for (const unsigned index : turns) {
        blockIdx = dim3(index % gridDim.x, index / gridDim.x);
        emulation::begin_block(config->dynamicSmemBytes);
        block.run([&] { kernel(arguments...); }, random);
        emulation::end_block(config->dynamicSmemBytes);
    }
    return cudaSuccess;
}
