// The layout of torch's tensors for the C kernels, the split of positions among threads, and the sums of these.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/DimVector.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <vector>

#include "../kernels/kernels.h"

namespace segloss {

// The kernels that this process uses. They are chosen once, at import.
const segloss_kernels& kernels();

segloss_real real_of(at::ScalarType dtype);

// The dtype that the kernels compute in, for results of `dtype`. Sums over voxels are double.
inline at::ScalarType compute_dtype(at::ScalarType dtype) { return dtype == at::kDouble ? at::kDouble : at::kFloat; }

// Class weights as the kernels read them, contiguous and in the compute dtype; undefined if there are none.
at::Tensor class_weight_for_kernel(const std::optional<at::Tensor>& weight, at::ScalarType dtype);

// The number of threads to use: torch's, but one in a child of fork.
int64_t num_threads();

// The sizes of input without the class dimension.
at::DimVector position_sizes(const at::Tensor& input, int64_t dim);

// A tensor and the place of its description in a kernel's arguments. The tensor has input's shape, the labels' shape,
// or no dimension at all (one value for all positions); it is undefined if absent.
struct Operand {
    const at::Tensor* tensor;
    segloss_tensor* view;
};

// A tensor as the kernels read it, with strides of 0; and the stride from one position to the next along the d-th of
// `num_dims` dimensions of positions.
segloss_tensor view_of(const at::Tensor& tensor, int64_t num_dims, int64_t dim);
int64_t position_stride(const at::Tensor& tensor, int64_t num_dims, int64_t dim, int64_t d);

// Describes the operands over their common positions, with neighbouring dimensions merged where all strides allow it.
segloss_positions describe(at::IntArrayRef sizes, int64_t dim, at::ArrayRef<Operand> operands);

// Calls work(k) for each k in [0, count) on torch's threads. A thread that is done takes the next one: on a machine
// with other work, equal shares do not take equal time.
template <typename Work> void in_parallel(int64_t count, const Work& work, int64_t most_threads = INT64_MAX) {
    std::atomic<int64_t> next{0};
    at::parallel_for(0, std::min({count, num_threads(), most_threads}), 1, [&](int64_t, int64_t) {
        for (int64_t k = next++; k < count; k = next++) {
            work(k);
        }
    });
}

// Splits positions into chunks whose borders depend on the shape alone. If each chunk has its own sums, and they are
// added in order, the result has the same bits for any number of threads.
class Chunks {
public:
    Chunks(int64_t num_positions, int64_t num_classes)
        : Chunks(1, num_positions, blocks_of_chunk(num_positions, std::max<int64_t>(num_classes, 1))) {}

    // For sums per class of each sample of `num_positions`. Each chunk has such sums, so chunks have the largest size.
    static Chunks of_samples(int64_t num_samples, int64_t num_positions) {
        return {num_samples, num_positions, kMaxBlocks};
    }

    // Likewise, but at most so many chunks for each sample.
    static Chunks of_samples(int64_t num_samples, int64_t num_positions, int64_t most_chunks) {
        Chunks chunks(num_samples, num_positions, kMaxBlocks);
        const auto least = (num_positions + most_chunks - 1) / most_chunks;
        chunks.size_ = std::max(chunks.size_, (least + SEGLOSS_BLOCK - 1) / SEGLOSS_BLOCK * SEGLOSS_BLOCK);
        return chunks;
    }

    // Of many small samples at once, whole samples and whole blocks in each chunk. Positions run over all samples.
    static Chunks of_small_samples(int64_t num_samples, int64_t sample_size) {
        return {1, num_samples * sample_size, sample_size};
    }
    static bool are_small(int64_t sample_size) { return sample_size <= kMaxBlocks; }

    int64_t count() const { return num_samples_ * per_sample(); }

    int64_t per_sample() const { return (num_positions_ + size_ - 1) / size_; }

    // Calls kernel(chunk, begin, end) for each chunk on torch's threads; begin and end are positions within the chunk's
    // sample. The kernel returns -1, or the position that it refuses. Returns true if none was refused.
    template <typename Kernel> bool run(const Kernel& kernel, int64_t most_threads = INT64_MAX) const {
        std::atomic<bool> accepted{true};
        const auto run_chunk = [&](int64_t chunk) {
            const int64_t begin = chunk % per_sample() * size_;
            if (accepted.load(std::memory_order_relaxed) &&
                kernel(chunk, begin, std::min(begin + size_, num_positions_)) >= 0) {
                accepted = false;
            }
        };
        in_parallel(count(), run_chunk, most_threads);
        return accepted;
    }

private:
    static constexpr int64_t kElements = int64_t{1} << 18; // at most 1 MiB of float32 logits, unless one block has more
    static constexpr int64_t kMaxBlocks = 64;
    static constexpr int64_t kFewChunks = 8; // for the threads of inputs that are worth more than one

    static int64_t blocks_of_chunk(int64_t num_positions, int64_t num_classes) {
        const int64_t most = kElements / num_classes / SEGLOSS_BLOCK;
        const bool is_small = num_positions < kElements / 2 / num_classes;
        return is_small ? most : std::min(most, num_positions / SEGLOSS_BLOCK / kFewChunks);
    }

    Chunks(int64_t num_samples, int64_t num_positions, int64_t num_blocks)
        : num_samples_(num_samples), num_positions_(num_positions),
          size_(std::clamp<int64_t>(num_blocks, 1, kMaxBlocks) * SEGLOSS_BLOCK) {}

    int64_t num_samples_;
    int64_t num_positions_;
    int64_t size_;
};

using SumKernel = int64_t (*)(const segloss_cross_entropy*, int64_t begin, int64_t end, segloss_sums*);

// The kernel's sums over all positions; nothing if it refused one.
std::optional<segloss_sums> sum_over(const Chunks& chunks, SumKernel kernel, const segloss_cross_entropy& args);

// A sum as a 0-dim tensor.
at::Tensor number(double value, at::ScalarType dtype = at::kDouble);

} // namespace segloss
