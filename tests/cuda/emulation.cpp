// Runs grids: each thread of a block is a fiber that runs until the next barrier of its block or its warp. `order`
// determines the order of the blocks, and of the threads between two barriers; a result that depends on it shows a
// race. The program fails if some threads reach a barrier and others do not, or if a block writes past its shared
// memory.
//
// Also the shared memory that the kernels declare, and the part of the emulation that the kernels' tests, in C, call.

#undef _FORTIFY_SOURCE // its longjmp refuses to go to another stack

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include <cuda_runtime.h>

#include "tile_call.h"

namespace {

using emulation::WARP;

constexpr size_t MAX_SHARED_BYTES = 64 << 10; // the least of any supported GPU
constexpr size_t GRANTED_SHARED_BYTES = 48 << 10;
constexpr size_t GUARD_BYTES = 1 << 10;
constexpr unsigned char GARBAGE = 0xA5;

} // namespace

thread_local uint4 segloss_shared[(MAX_SHARED_BYTES + GUARD_BYTES) / sizeof(uint4)];

namespace {

unsigned order;
size_t num_started;
bool all_fail;
cudaError_t error_of_last;
size_t granted_shared_bytes = GRANTED_SHARED_BYTES;

[[noreturn]] void fail(const char* text) {
    std::printf("FAILED: %s\n", text);
    std::exit(1);
}

void shuffle(std::vector<unsigned>* turns, std::minstd_rand* random) {
    for (size_t i = turns->size(); i > 1 && order != 0; --i) {
        std::swap((*turns)[i - 1], (*turns)[(*random)() % i]);
    }
}

enum State : unsigned char { READY, AT_WARP_BARRIER, AT_BLOCK_BARRIER, DONE };

class Block {
public:
    explicit Block(unsigned num_threads) : fibers_(num_threads), states_(num_threads), turns_(num_threads) {
        for (unsigned thread = 0; thread < num_threads; ++thread) {
            create(thread);
        }
    }

    // Runs all threads, from barrier to barrier.
    void run(const std::function<void()>& kernel, std::minstd_rand* random) {
        kernel_ = &kernel;
        std::iota(turns_.begin(), turns_.end(), 0u);
        set_ready(0, states_.size());
        do {
            shuffle(&turns_, random);
            next_turn_ = 0;
            if (_setjmp(scheduler_) == 0) {
                resume_next();
            }
        } while (release());
    }

    // Suspends the running fiber; at a barrier, until all threads of the barrier have reached it.
    void suspend(State state) {
        const unsigned thread = threadIdx.x;
        states_[thread] = state;
        if (_setjmp(fibers_[thread].place) == 0) {
            resume_next();
        }
    }

    static Block* current;

private:
    // Not a power of two: fibers suspend at similar depths of their stacks, which would share a few sets of the cache.
    static constexpr size_t STACK_SIZE = (64 << 10) + 320;

    struct Fiber {
        jmp_buf place; // where it continues
        std::unique_ptr<char[]> stack;
    };

    // ucontext sets up a fiber's stack. After that jumps are enough; they do not touch the signal mask.
    static void enter() {
        for (;;) {
            current->suspend(DONE);
            (*current->kernel_)();
        }
    }

    void create(unsigned thread) {
        ucontext_t context, here;
        auto& stack = fibers_[thread].stack = std::make_unique<char[]>(STACK_SIZE);
        getcontext(&context);
        context.uc_stack.ss_sp = stack.get();
        context.uc_stack.ss_size = STACK_SIZE;
        context.uc_link = nullptr;
        makecontext(&context, enter, 0);
        current = this;
        threadIdx = dim3(thread);
        if (_setjmp(scheduler_) == 0) {
            swapcontext(&here, &context);
        }
    }

    // Goes to the next thread that is ready; after the last one back to the scheduler.
    [[noreturn]] void resume_next() {
        while (next_turn_ < turns_.size()) {
            const unsigned thread = turns_[next_turn_++];
            if (states_[thread] == READY) {
                threadIdx = dim3(thread);
                _longjmp(fibers_[thread].place, 1);
            }
        }
        _longjmp(scheduler_, 1);
    }

    bool all(State state, size_t begin, size_t end) const {
        return std::all_of(states_.begin() + begin, states_.begin() + end, [&](State each) { return each == state; });
    }

    void set_ready(size_t begin, size_t end) { std::fill(states_.begin() + begin, states_.begin() + end, READY); }

    // Makes the threads ready whose barrier is complete. False at the end of the block.
    bool release() {
        bool has_ready = false;
        for (size_t warp = 0; warp < states_.size(); warp += WARP) {
            if (all(AT_WARP_BARRIER, warp, warp + WARP)) {
                set_ready(warp, warp + WARP);
                has_ready = true;
            }
        }
        if (has_ready || all(DONE, 0, states_.size())) {
            return has_ready;
        }
        if (!all(AT_BLOCK_BARRIER, 0, states_.size())) {
            fail("some threads wait at a barrier that others do not reach");
        }
        set_ready(0, states_.size());
        return true;
    }

    std::vector<Fiber> fibers_;
    std::vector<State> states_;
    std::vector<unsigned> turns_; // the threads in the order in which they run
    size_t next_turn_ = 0;
    jmp_buf scheduler_;
    const std::function<void()>* kernel_;
};

Block* Block::current;

// Passes values between threads at barriers of one kind, alternating between two places: a thread that is already at
// the next barrier does not overwrite what others still read.
struct Exchange {
    static constexpr unsigned MAX_THREADS = 1024;
    State barrier;
    uint64_t slots[2][MAX_THREADS] = {};
    unsigned char turns[MAX_THREADS] = {};

    // The values of all threads; those of other barriers are old.
    const uint64_t* operator()(uint64_t mine) {
        uint64_t* const place = slots[turns[threadIdx.x] ^= 1];
        place[threadIdx.x] = mine;
        Block::current->suspend(barrier);
        return place;
    }
};

Exchange of_block{AT_BLOCK_BARRIER}, of_warp{AT_WARP_BARRIER};

// Fills the dynamic shared memory of a block with garbage.
void begin_block(size_t shared_bytes) {
    if (shared_bytes > MAX_SHARED_BYTES) {
        fail("a block asks for more shared memory than it gets");
    }
    std::memset(segloss_shared, GARBAGE, shared_bytes + GUARD_BYTES);
}

// Checks that nothing was written past its end.
void end_block(size_t shared_bytes) {
    const auto guard = reinterpret_cast<unsigned char*>(segloss_shared) + shared_bytes;
    if (!std::all_of(guard, guard + GUARD_BYTES, [](auto byte) { return byte == GARBAGE; })) {
        fail("a block wrote past its shared memory");
    }
}

} // namespace

void emulation::wait_for_warp() { Block::current->suspend(AT_WARP_BARRIER); }
void emulation::wait_for_block() { Block::current->suspend(AT_BLOCK_BARRIER); }

uint64_t emulation::exchange(uint64_t mine, unsigned thread) { return of_warp(mine)[thread]; }

bool emulation::is_true_of_any(bool mine) {
    const uint64_t* const warp = of_warp(mine) + threadIdx.x / WARP * WARP;
    return std::any_of(warp, warp + WARP, [](uint64_t each) { return each != 0; });
}

bool emulation::is_true_of_all(bool mine) {
    const uint64_t* const block = of_block(mine);
    return std::all_of(block, block + blockDim.x, [](uint64_t each) { return each != 0; });
}

cudaError_t emulation::launch(const cudaLaunchConfig_t& config, const std::function<void()>& kernel) {
    static Block block(config.blockDim.x); // all launches have the same block size
    if (all_fail || config.dynamicSmemBytes > granted_shared_bytes) {
        return error_of_last = cudaErrorInvalidValue;
    }
    granted_shared_bytes = GRANTED_SHARED_BYTES; // the request was for one kernel only
    ++num_started;
    std::minstd_rand random(order + 1);
    std::vector<unsigned> turns(config.gridDim.x * config.gridDim.y);
    std::iota(turns.begin(), turns.end(), 0u);
    shuffle(&turns, &random);
    gridDim = config.gridDim;
    blockDim = config.blockDim;
    for (const unsigned index : turns) {
        blockIdx = dim3(index % gridDim.x, index / gridDim.x);
        begin_block(config.dynamicSmemBytes);
        block.run(kernel, &random);
        end_block(config.dynamicSmemBytes);
    }
    return cudaSuccess;
}

cudaError_t cudaGetLastError() { return std::exchange(error_of_last, cudaSuccess); }

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int shared_bytes) {
    granted_shared_bytes = static_cast<size_t>(shared_bytes);
    return cudaSuccess;
}

extern "C" void set_order(unsigned seed) { order = seed; }

extern "C" size_t num_launches() { return num_started; }

extern "C" void fail_launches(int fails) { all_fail = fails; }

extern "C" int last_error() { return cudaGetLastError(); }

extern "C" int takes_tiles(const segloss_cross_entropy* args, const segloss_cuda_call* call) {
    TileCall tiles;
    return describe_tiles(*args, *call, &tiles);
}

extern "C" int takes_sigmoid_tiles(const segloss_soft_stats* stats, const segloss_cuda_call* call) {
    TileCall tiles;
    return describe_sigmoid_tiles(*stats, *call, &tiles);
}
