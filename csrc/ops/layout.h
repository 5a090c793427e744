// Between torch's tensors and the C kernels: how tensors lie in memory, and who walks which positions.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <atomic>
#include <initializer_list>
#include <optional>
#include <vector>

#include "../kernels/kernels.h"

namespace segloss {

// The kernels that this process uses; chosen at load.
const segloss_kernels& kernels();

segloss_real real_of(at::ScalarType dtype);

// The dtype that the kernels compute and accumulate in, for results of `dtype`.
inline at::ScalarType compute_dtype(at::ScalarType dtype) { return dtype == at::kDouble ? at::kDouble : at::kFloat; }

// The sizes of input without the class dimension.
std::vector<int64_t> position_sizes(const at::Tensor& input, int64_t dim);

// A tensor and the place of its description in a kernel's arguments. The tensor has the shape of input, or that of
// labels, or no dimension at all (one value for every position); undefined: absent.
struct Operand {
    const at::Tensor* tensor;
    segloss_tensor* view;
};

// Describes the operands over their common positions, with neighbouring dimensions merged where all strides allow it.
segloss_positions describe(at::IntArrayRef sizes, int64_t dim, std::initializer_list<Operand> operands);

// An uninitialised tensor like `tensor`, strides included where it is dense. Large ones ask the system for huge pages:
// the first write of 160 MB then takes some 80 page faults instead of 40 000.
at::Tensor empty_output_like(const at::Tensor& tensor);

// Positions are handed out in chunks whose borders depend on the shape alone, so that sums taken per chunk and added in
// order are the same bits for any number of threads.
class Chunks {
public:
    Chunks(int64_t num_positions, int64_t num_classes)
        : num_positions_(num_positions),
          size_(std::clamp<int64_t>(kElements / std::max<int64_t>(num_classes, 1) / SEGLOSS_BLOCK, 1, kBlocks) *
                SEGLOSS_BLOCK) {}

    int64_t count() const { return (num_positions_ + size_ - 1) / size_; }

    // Calls kernel(chunk, begin, end), which returns -1 or the position it refuses, for each chunk on torch's threads.
    // True if none was refused.
    template <typename Kernel> bool run(const Kernel& kernel) const {
        std::atomic<bool> accepted{true};
        at::parallel_for(0, count(), 1, [&](int64_t first, int64_t last) {
            for (int64_t chunk = first; chunk < last && accepted.load(std::memory_order_relaxed); ++chunk) {
                const int64_t begin = chunk * size_;
                if (kernel(chunk, begin, std::min(begin + size_, num_positions_)) >= 0) {
                    accepted = false;
                }
            }
        });
        return accepted;
    }

private:
    static constexpr int64_t kElements = int64_t{1} << 18; // a chunk of float is then 1 MiB
    static constexpr int64_t kBlocks = 64;

    int64_t num_positions_;
    int64_t size_;
};

} // namespace segloss
