// The lower limit for any loss: the memory traffic of reading logits and writing a gradient, on the same threads.
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

static const int64_t huge_page = INT64_C(1) << 21;

// Forward: reads the logits once. The sum keeps the compiler from removing the loop.
uint64_t read_once(const uint64_t* logits, int64_t count, int threads) {
    uint64_t sum = 0;
#pragma omp parallel for simd reduction(+ : sum) num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; ++i) {
        sum += logits[i];
    }
    return sum;
}

// Forward and backward: reads the logits twice and writes a gradient.
int read_twice_and_write(const uint64_t* logits, uint64_t* gradient, int64_t count, int threads) {
    const uint64_t sum = read_once(logits, count, threads);
#pragma omp parallel for simd num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; ++i) {
        gradient[i] = logits[i] + sum;
    }
    return 0;
}

// The same with a newly mapped gradient, in huge pages if the system grants them. Returns -1 if there is no memory.
int read_twice_and_write_fresh(const uint64_t* logits, int64_t count, int threads) {
    const int64_t size = (count * (int64_t)sizeof *logits + huge_page - 1) / huge_page * huge_page;
    char* mapped = mmap(NULL, size + huge_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) {
        return -1;
    }
    char* aligned = mapped + (-(uintptr_t)mapped & (huge_page - 1));
    madvise(aligned, size, MADV_HUGEPAGE);
    read_twice_and_write(logits, (uint64_t*)aligned, count, threads);
    return munmap(mapped, size + huge_page);
}
