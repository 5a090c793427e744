// The part of the emulation that the kernels' tests, in C, call, and the shared memory that the kernels declare.

#include <cuda_runtime.h>

#include "tile_call.h"

namespace {

constexpr size_t MAX_SHARED_BYTES = 64 << 10; // the least of any supported GPU
constexpr size_t GUARD_BYTES = 1 << 10;
constexpr unsigned char GARBAGE = 0xA5;

} // namespace

thread_local uint4 segloss_shared[(MAX_SHARED_BYTES + GUARD_BYTES) / sizeof(uint4)];

unsigned emulation::order;
size_t emulation::num_launches;
bool emulation::fails;
cudaError_t emulation::last_error;

void emulation::begin_block(size_t shared_bytes) {
    if (shared_bytes > MAX_SHARED_BYTES) {
        fail("a block asks for more shared memory than it gets");
    }
    std::memset(segloss_shared, GARBAGE, shared_bytes + GUARD_BYTES);
}

void emulation::end_block(size_t shared_bytes) {
    const auto guard = reinterpret_cast<unsigned char*>(segloss_shared) + shared_bytes;
    if (!std::all_of(guard, guard + GUARD_BYTES, [](auto byte) { return byte == GARBAGE; })) {
        fail("a block wrote past its shared memory");
    }
}

extern "C" void set_order(unsigned order) { emulation::order = order; }

extern "C" size_t num_launches() { return emulation::num_launches; }

extern "C" void fail_launches(int fails) { emulation::fails = fails; }

extern "C" int last_error() { return cudaGetLastError(); }

extern "C" int takes_tiles(const segloss_cross_entropy* args, const segloss_cuda_call* call) {
    TileCall tiles;
    return describe_tiles(*args, *call, &tiles);
}

extern "C" int takes_sigmoid_tiles(const segloss_soft_stats* stats, const segloss_cuda_call* call) {
    TileCall tiles;
    return describe_sigmoid_tiles(*stats, *call, &tiles);
}
