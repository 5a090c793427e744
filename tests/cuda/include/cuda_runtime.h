// CUDA's runtime on a CPU, as far as the kernels use it: a C++ compiler compiles them against this header, and a launch
// runs the grid there and then.
//
// Each thread of a block is a fiber that runs until the next barrier. Blocks, and the threads between two barriers,
// take turns in an order that `order` decides: what depends on it is a race. A barrier that some threads of a block
// reach and others do not ends the program.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __shared__ static // blocks run one after the other
#define __grid_constant__

struct dim3 {
    unsigned x, y = 1, z = 1;
    dim3(unsigned size = 1) : x(size) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
using cudaStream_t = void*;

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
};

namespace emulation {

extern unsigned order;

class Block {
public:
    explicit Block(unsigned num_threads) : fibers_(num_threads) {
        for (auto& fiber : fibers_) {
            create(&fiber);
        }
    }

    // Runs all threads, from barrier to barrier.
    void run(const std::function<void()>& kernel, std::minstd_rand& random) {
        kernel_ = &kernel;
        for (auto& fiber : fibers_) {
            fiber.is_done = false;
        }
        std::vector<unsigned> turns(fibers_.size());
        std::iota(turns.begin(), turns.end(), 0u);
        for (unsigned num_done = 0; num_done < fibers_.size();) {
            shuffle(&turns, random);
            num_done = 0;
            for (const unsigned thread : turns) {
                resume(thread);
                num_done += fibers_[thread].is_done;
            }
            if (num_done > 0 && num_done < fibers_.size()) {
                std::puts("FAILED: some threads of a block wait at a barrier that others do not reach");
                std::exit(1);
            }
        }
    }

    static void wait() {
        if (_setjmp(current_->running_->place) == 0) {
            _longjmp(current_->scheduler_, 1);
        }
    }

    static void shuffle(std::vector<unsigned>* turns, std::minstd_rand& random) {
        for (size_t i = turns->size(); i > 1 && order != 0; --i) {
            std::swap((*turns)[i - 1], (*turns)[random() % i]);
        }
    }

private:
    static constexpr size_t STACK_SIZE = 64 << 10;

    struct Fiber {
        jmp_buf place; // where it waits
        std::unique_ptr<char[]> stack;
        bool is_done;
    };

    // A fiber's stack is made by ucontext; from then on jumps are enough, which leave the signals' masks alone.
    static void enter() {
        for (;;) {
            wait();
            (*current_->kernel_)();
            current_->running_->is_done = true;
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

    inline static Block* current_;
    std::vector<Fiber> fibers_;
    jmp_buf scheduler_;
    Fiber* running_;
    const std::function<void()>* kernel_;
};

} // namespace emulation

inline void __syncthreads() {
    const dim3 thread = threadIdx;
    emulation::Block::wait();
    threadIdx = thread;
}

inline void __threadfence_system() {}

template <typename T> T atomicAdd(T* address, T value) {
    const T before = *address;
    *address += value;
    return before;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
    static emulation::Block block(config->blockDim.x); // every launch has blocks of one size
    std::minstd_rand random(emulation::order + 1);
    std::vector<unsigned> turns(config->gridDim.x);
    std::iota(turns.begin(), turns.end(), 0u);
    emulation::Block::shuffle(&turns, random);
    gridDim = config->gridDim;
    blockDim = config->blockDim;
    for (const unsigned index : turns) {
        blockIdx = dim3(index);
        block.run([&] { kernel(arguments...); }, random);
    }
    return cudaSuccess;
}
