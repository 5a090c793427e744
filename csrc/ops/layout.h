// Between torch's tensors and the C kernels: how tensors lie in memory, and who walks which positions.
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

// The kernels that this process uses; chosen at load.
const segloss_kernels& kernels();

segloss_real real_of(at::ScalarType dtype);

// The dtype that the kernels compute and accumulate in, for results of `dtype`.
inline at::ScalarType compute_dtype(at::ScalarType dtype) { return dtype == at::kDouble ? at::kDouble : at::kFloat; }

// Optional weights as the kernels read them, undefined where absent: of voxels floating, of classes contiguous and in
// the dtype that is computed in.
at::Tensor voxel_weight_for_kernel(const std::optional<at::Tensor>& weight, at::ScalarType dtype);
at::Tensor class_weight_for_kernel(const std::optional<at::Tensor>& weight, at::ScalarType dtype);

// How many of torch's threads may work: in a child of fork, this one.
int64_t num_threads();

// The sizes of input without the class dimension.
at::DimVector position_sizes(const at::Tensor& input, int64_t dim);

// A tensor and the place of its description in a kernel's arguments. The tensor has the shape of input, or that of
// labels, or no dimension at all (one value for every position); undefined: absent.
struct Operand {
    const at::Tensor* tensor;
    segloss_tensor* view;
};

// Describes the operands over their common positions, with neighbouring dimensions merged where all strides allow it.
segloss_positions describe(at::IntArrayRef sizes, int64_t dim, at::ArrayRef<Operand> operands);

// Positions are handed out in chunks whose borders depend on the shape alone, so that sums taken per chunk and added in
// order are the same bits for any number of threads.
class Chunks {
public:
    Chunks(int64_t num_positions, int64_t num_classes)
        : Chunks(1, num_positions, kElements / std::max<int64_t>(num_classes, 1) / SEGLOSS_BLOCK) {}

    // Samples of `num_positions` each, where sums per class are taken of each chunk: as few chunks as the threads need.
    static Chunks of_samples(int64_t num_samples, int64_t num_positions) {
        return {num_samples, num_positions, kMaxBlocks};
    }

    int64_t count() const { return num_samples_ * per_sample(); }

    int64_t per_sample() const { return (num_positions_ + size_ - 1) / size_; }

    // Calls kernel(chunk, begin, end), which returns -1 or the position it refuses, for each chunk on torch's threads,
    // with positions within the chunk's sample. True if none was refused. A thread that is done takes the next chunk:
    // on a machine with other work, halves of the same size do not take the same time.
    template <typename Kernel> bool run(const Kernel& kernel, int64_t most_threads = INT64_MAX) const {
        std::atomic<bool> accepted{true};
        std::atomic<int64_t> next{0};
        const auto work = [&](int64_t, int64_t) {
            for (int64_t chunk = next++; chunk < count() && accepted.load(std::memory_order_relaxed); chunk = next++) {
                const int64_t begin = chunk % per_sample() * size_;
                if (kernel(chunk, begin, std::min(begin + size_, num_positions_)) >= 0) {
                    accepted = false;
                }
            }
        };
        at::parallel_for(0, std::min({count(), num_threads(), most_threads}), 1, work);
        return accepted;
    }

private:
    static constexpr int64_t kElements = int64_t{1} << 18; // a chunk of float is then 1 MiB
    static constexpr int64_t kMaxBlocks = 64;

    Chunks(int64_t num_samples, int64_t num_positions, int64_t num_blocks)
        : num_samples_(num_samples), num_positions_(num_positions),
          size_(std::clamp<int64_t>(num_blocks, 1, kMaxBlocks) * SEGLOSS_BLOCK) {}

    int64_t num_samples_;
    int64_t num_positions_;
    int64_t size_;
};

} // namespace segloss
