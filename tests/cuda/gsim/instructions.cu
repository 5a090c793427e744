// Instructions that GPGPU-Sim executes wrongly without gpgpu-sim.patch. Prints which of them are right.

#include <cuda_runtime.h>
#include <stdint.h>

#include <cmath>
#include <cstdio>

namespace {

constexpr int BLOCKS = 40, THREADS = 128; // more blocks than multiprocessors
constexpr int64_t BIG = int64_t(1) << 40;

struct Results {
    int64_t label[THREADS];          // of a uint8 that went through double
    int64_t rounded[THREADS];        // a double beyond int32
    double sum_of_integers[THREADS]; // int64 as double and as float
    float exchanged[THREADS];
    float exponential[THREADS];
    float fused[THREADS];
    int all[BLOCKS], some[BLOCKS];
    unsigned permuted;
    uint64_t inserted;
};

__global__ void execute(const uint8_t* bytes, const int64_t* integers, Results* r) {
    __shared__ float shared[THREADS];
    const int i = static_cast<int>(threadIdx.x);
    const int all = __syncthreads_and(i >= 0), some = __syncthreads_and(i != 77);
    if (i == 0) {
        r->all[blockIdx.x] = all;
        r->some[blockIdx.x] = some;
    }
    if (blockIdx.x > 0) {
        return;
    }
    const double x = bytes[i];
    const auto integer = static_cast<int64_t>(x);
    r->label[i] = static_cast<double>(integer) == x ? integer : INT64_MIN + 1;
    r->rounded[i] = static_cast<int64_t>(static_cast<double>(integers[i]) * 0.5);
    r->sum_of_integers[i] = static_cast<double>(integers[i]) + static_cast<double>(static_cast<float>(integers[i]));
    shared[i] = static_cast<float>(i);
    __syncthreads();
    r->exchanged[i] = __shfl_xor_sync(~0u, shared[i], 9);
    r->fused[i] = fmaf(1 + 0x1p-23f * static_cast<float>(i), 1 - 0x1p-23f * static_cast<float>(i), -1);
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r->exponential[i]) : "f"(-static_cast<float>(i) * 1.25f));
    if (i == 0) {
        asm("prmt.b32 %0, %1, %2, 0x7b32;" : "=r"(r->permuted) : "r"(0x80c0ffee + bytes[0]), "r"(0x01020304));
        asm("bfi.b64 %0, %1, %2, 40, 16;" : "=l"(r->inserted) : "l"(0xabcdeull), "l"(0x1122334455667788ull + bytes[0]));
    }
}

int failures = 0;

void report(const char* what, bool is_right) {
    failures += !is_right;
    printf("RESULT %s: %s\n", what, is_right ? "right" : "WRONG");
}

template <typename Value> Value* upload(const Value* from, int count) {
    void* device = nullptr;
    cudaMalloc(&device, sizeof(Value) * static_cast<size_t>(count));
    cudaMemcpy(device, from, sizeof(Value) * static_cast<size_t>(count), cudaMemcpyHostToDevice);
    return static_cast<Value*>(device);
}

} // namespace

int main() {
    static Results r;
    uint8_t bytes[THREADS];
    int64_t integers[THREADS];
    for (int i = 0; i < THREADS; ++i) {
        bytes[i] = static_cast<uint8_t>(2 * i);
        integers[i] = BIG * (i - 60) - 2 * i;
    }
    Results* const on_device = upload(&r, 1);
    printf("LAUNCH instructions\n");
    fflush(stdout);
    execute<<<BLOCKS, THREADS>>>(upload(bytes, THREADS), upload(integers, THREADS), on_device);
    cudaDeviceSynchronize();
    cudaMemcpy(&r, on_device, sizeof r, cudaMemcpyDeviceToHost);
    bool labels = true, rounded = true, sums = true, exchanged = true, exponentials = true, fused = true, all = true;
    for (int i = 0; i < THREADS; ++i) {
        const auto n = static_cast<double>(integers[i]);
        labels = labels && r.label[i] == bytes[i];
        rounded = rounded && r.rounded[i] == integers[i] / 2;
        sums = sums && r.sum_of_integers[i] == n + static_cast<double>(static_cast<float>(integers[i]));
        exchanged = exchanged && r.exchanged[i] == static_cast<float>(i ^ 9);
        const double want = exp2(-1.25 * i);
        exponentials =
            exponentials && fabs(static_cast<double>(r.exponential[i]) - (want < 0x1p-126 ? 0 : want)) <= 3e-7 * want;
        fused = fused && r.fused[i] == static_cast<float>(-static_cast<double>(i) * i * 0x1p-46);
    }
    for (int block = 0; block < BLOCKS; ++block) {
        all = all && r.all[block] == 1 && r.some[block] == 0;
    }
    report("a uint8 through double to int64", labels);
    report("doubles beyond int32 to int64", rounded);
    report("int64 to double and float", sums);
    report("shfl in every warp", exchanged);
    report("ex2", exponentials);
    report("fma is fused", fused);
    report("bar.red in every block", all);
    report("prmt", r.permuted == 0x01ff80c0);
    report("bfi of 64 bits", r.inserted == 0x11bcde4455667788);
    return failures > 0;
}
