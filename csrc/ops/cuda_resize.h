// Logits of another size for the kernels of CUDA tensors, which interpolate them as they read. No tensor of the
// target's size has their values.
#pragma once

#include <ATen/ATen.h>

#include <initializer_list>
#include <optional>
#include <vector>

#include "../kernels/cuda/launchers.h"
#include "arguments.h"

namespace segloss {

// What the kernels need to know of the logits, the tensors that have values for each voxel, and the gradient.
class CudaResize {
public:
    // Whether there are kernels: for labels and logits of one batch dimension and up to three others. They compute in
    // float32.
    static bool takes(const Coarse& coarse, int64_t dim, at::ScalarType compute_dtype) {
        const auto num_dims = coarse.logits.dim() - 1;
        const auto axes = coarse.resize.num_axes();
        if (compute_dtype != at::kFloat || num_dims > 1 + SEGLOSS_AXES || axes >= num_dims) {
            return false;
        }
        const auto args = axes_of(coarse, dim);
        return segloss_cuda_takes_resized(&args, coarse.logits.size(dim)) != 0;
    }

    // `gradient` is that of the coarse logits; it may be undefined.
    CudaResize(const Coarse& coarse, int64_t dim, const Tensor& gradient)
        : logits_(coarse.logits.movedim(dim, 1).to(at::kFloat).contiguous()), args_(axes_of(coarse, dim)) {
        const auto num_dims = coarse.logits.dim() - 1;
        args_.from = logits_.const_data_ptr<float>();
        args_.grad = view_of(gradient, num_dims, dim);
        args_.grad.strides[0] = position_stride(gradient, num_dims, dim, 0);
        for (int64_t d = 1; d < num_dims; ++d) {
            args_.grad.strides[1 + axis_of(d, num_dims)] = position_stride(gradient, num_dims, dim, d);
        }
    }

    // Describes tensors of the voxels. One whose samples have gaps is copied: it must be read only.
    segloss_positions describe(at::IntArrayRef sizes, int64_t dim, const std::vector<Operand>& operands) {
        kept_.reserve(operands.size());
        std::vector<Operand> without_gaps;
        for (const auto& [tensor, view] : operands) {
            kept_.push_back(has_gaps(*tensor, sizes, dim) ? tensor->contiguous() : *tensor);
            without_gaps.push_back({&kept_.back(), view});
        }
        return segloss::describe(sizes, dim, without_gaps);
    }

    // Completes a call. This must outlive it.
    void add_to(segloss_cuda_call& call) {
        const auto size = segloss_cuda_resized_workspace(&args_, logits_.size(1));
        workspace_ = at::empty({static_cast<int64_t>(size)}, logits_.options().dtype(at::kByte));
        call.workspace = workspace_.mutable_data_ptr();
        call.resize = &args_;
    }

    // Whether the voxels of a sample are not at equal distances.
    static bool has_gaps(const Tensor& tensor, at::IntArrayRef sizes, int64_t dim) {
        const auto num_dims = static_cast<int64_t>(sizes.size());
        int64_t expected = -1;
        for (auto d = num_dims - 1; d > 0; --d) {
            const auto stride = position_stride(tensor, num_dims, dim, d);
            if (sizes[d] > 1 && expected >= 0 && stride != expected) {
                return true;
            }
            expected = sizes[d] > 1 ? stride * sizes[d] : expected;
        }
        return false;
    }

private:
    // The axis of a dimension of the positions.
    static int64_t axis_of(int64_t d, int64_t num_dims) { return SEGLOSS_AXES - num_dims + d; }

    // Axes that are not resized are as large as before.
    static segloss_cuda_resize axes_of(const Coarse& coarse, int64_t dim) {
        segloss_cuda_resize args{};
        for (auto& axis : args.axes) {
            axis = {SEGLOSS_SAME_SIZE, 1, 1};
        }
        args.num_samples = coarse.logits.size(dim == 0 ? 1 : 0);
        args.aligns_corners = coarse.resize.aligns_corners();
        const auto num_dims = coarse.logits.dim() - 1;
        for (int64_t d = 1; d < num_dims; ++d) {
            const auto k = num_dims - 1 - d; // counted from the last one
            const auto of_logits = dim_of_axis(k, coarse.logits.dim(), dim);
            const auto mode = k < coarse.resize.num_axes() ? coarse.resize.mode(k) : Resize::none;
            args.axes[axis_of(d, num_dims)] = {static_cast<segloss_axis_mode>(mode),
                                               coarse.sizes[of_logits].expect_int(), coarse.logits.size(of_logits)};
        }
        return args;
    }

    Tensor logits_;
    segloss_cuda_resize args_;
    std::vector<Tensor> kept_;
    Tensor workspace_;
};

// Describes the voxels to the kernels, with `more` tensors that have a value for each, and the gradient of the logits.
// Returns what the kernels need to know of logits of another size.
inline std::optional<CudaResize> describe_voxels(VoxelArguments& voxels, std::initializer_list<Operand> more,
                                                 const Tensor& gradient = {}) {
    const auto& coarse = voxels.arguments.coarse;
    if (!coarse) {
        voxels.describe_with(more, gradient);
        return std::nullopt;
    }
    const auto dim = voxels.reading.dim;
    std::optional<CudaResize> resize(std::in_place, *coarse, dim, gradient);
    std::vector<Operand> operands(more);
    operands.push_back({&voxels.arguments.target, &voxels.args.target});
    operands.push_back({&voxels.voxel_weight, &voxels.args.voxel_weight});
    voxels.args.positions = resize->describe(voxels.sizes, dim, operands);
    return resize;
}

} // namespace segloss
