// The samples of a batch, for the kernels of soft statistics.
#pragma once

#include <utility>
#include <vector>

#include "soft_stats.h"

namespace segloss {

// A tensor that the kernels read or write, and its place in their arguments.
struct SampleOperand {
    Tensor tensor;
    segloss_tensor& (*view)(segloss_soft_stats& args);
};

// Describes the samples of a batch to the kernels: one after the other, or all at once if they are so small that they
// would leave most lanes of a block unused, and if they may be merged.
class Samples {
public:
    template <segloss_tensor segloss_cross_entropy::* member> static segloss_tensor& at(segloss_soft_stats& args) {
        return args.voxels.*member;
    }

    Samples(const VoxelArguments& voxels, const SoftStats::Options& options, std::initializer_list<SampleOperand> more,
            bool may_merge = true)
        : operands_{{voxels.arguments.input, at<&segloss_cross_entropy::logits>},
                    {voxels.arguments.target, at<&segloss_cross_entropy::target>},
                    {voxels.voxel_weight, at<&segloss_cross_entropy::voxel_weight>}},
          first_(kernel_arguments(voxels, options)) {
        operands_.insert(operands_.end(), more);
        const auto& input = voxels.arguments.input;
        auto dim = voxels.reading.dim;
        auto sizes = voxels.sizes;
        count_ = is_batched(input) ? sizes[0] : 1;
        num_positions_ = count_ == 0 ? 0 : voxels.num_voxels() / count_;
        if (count_ == 0) {
            return;
        }
        if (may_merge && count_ > 1 && num_positions_ > 0 && Chunks::are_small(num_positions_)) {
            first_.sample_size = num_positions_;
        } else if (is_batched(input)) {
            select_first(input, dim);
            sizes.erase(sizes.begin());
            dim = dim > 0 ? dim - 1 : 0;
        }
        std::vector<Operand> described;
        for (const auto& [tensor, view] : operands_) {
            described.push_back({&tensor, &view(first_)});
        }
        first_.voxels.positions = describe(sizes, dim, described);
    }

    int64_t count() const { return count_; }

    int64_t num_positions() const { return num_positions_; } // of each

    bool at_once() const { return first_.sample_size > 0; }

    Chunks chunks() const {
        return at_once() ? Chunks::of_small_samples(count_, num_positions_)
                         : Chunks::of_samples(count_, num_positions_);
    }

    // The kernels' arguments of one sample, or of all at once.
    segloss_soft_stats arguments(int64_t sample) const {
        auto args = first_;
        for (size_t k = 0; k < steps_.size(); ++k) {
            auto& data = operands_[k].view(args).data;
            data = data ? static_cast<char*>(data) + sample * steps_[k] : nullptr;
        }
        auto& labels = args.voxels.labels;
        if (!at_once() && labels.row_positions > 0) { // positions are those of the sample
            labels.rows += sample * labels.row_size;
            labels.row_positions = 0;
        }
        return args;
    }

private:
    void select_first(const Tensor& input, int64_t dim) {
        for (auto& [tensor, view] : operands_) {
            const bool has_samples = tensor.defined() && tensor.dim() > 0;
            const auto sample_dim = has_samples && tensor.dim() == input.dim() ? batch_dim(dim) : 0;
            steps_.push_back(has_samples ? tensor.stride(sample_dim) * tensor.element_size() : 0);
            tensor = has_samples ? tensor.select(sample_dim, 0) : tensor;
        }
    }

    std::vector<SampleOperand> operands_; // their tensors are those of the first sample
    segloss_soft_stats first_;            // kernel arguments of the first sample
    std::vector<int64_t> steps_;          // bytes from sample to sample
    int64_t count_;
    int64_t num_positions_;
};

} // namespace segloss
