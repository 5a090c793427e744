// What a loss is called with, how it reads its target, and what its kernels are told of its voxels.
#pragma once

#include <ATen/core/DimVector.h>
#include <ATen/core/Tensor.h>

#include <string>

#include "checks.h"
#include "layout.h"

namespace segloss {

struct Arguments {
    std::string op; // the name that errors give
    Tensor input, target;
    OptionalTensor weight, voxel_weight;
};

// What a kernel holds a loss's values to: class probabilities to [0, 1] but for four times the epsilon of their dtype,
// or to finite numbers where `any_finite`; the input to [0, 1] likewise where it is the probabilities. Nothing else.
struct Ranges {
    segloss_range target{};
    segloss_range logits{};
};

// Whether values are held to it at all.
inline bool is_asked(const segloss_range& range) { return range.low < range.high; }

// How a loss reads its arguments, as its checks found.
struct Reading {
    Target kind;
    int64_t dim;
    int64_t ignore_index;
    at::ScalarType dtype; // of the results, without their sums
    Ranges ranges;

    at::ScalarType compute_dtype() const { return segloss::compute_dtype(dtype); }
};

Ranges ranges_of(const Arguments& arguments, Target kind, at::ScalarType dtype, bool any_finite = false,
                 bool input_is_probability = false);

// Raises where a label, a mask, or a value outside its range stands at a voxel that counts: of the whole target, whose
// index the error gives. For devices without a kernel, and for what a kernel refused.
void check_values(const Arguments& arguments, const Reading& reading);

// Words the error of a value that a kernel refused.
[[noreturn]] void raise_refused(const Arguments& arguments, const Reading& reading);

// Raises unless values are floating numbers of the `name`d range. Of "target" nan is outside, of "input" not.
void check_values_in_range(const std::string& op, c10::string_view name, const Tensor& values,
                           const segloss_range& range);

// What the losses of voxels are besides cross entropy.
struct VoxelLossOptions {
    double label_smoothing = 0;
    double gamma = 0;               // focal loss
    bool log_probabilities = false; // input is log p
};

// What the kernels are told of the voxels, all but the outputs, and the tensors that it points to.
struct VoxelArguments {
    VoxelArguments(const Arguments& arguments, const Reading& reading, const VoxelLossOptions& options);
    VoxelArguments(const VoxelArguments&) = delete;
    VoxelArguments& operator=(const VoxelArguments&) = delete;

    // Describes the tensors of voxels: those of the arguments, and `more`.
    void describe_with(std::initializer_list<Operand> more);

    Chunks chunks() const { return {c10::multiply_integers(sizes), args.num_classes}; }

    // Runs a kernel over all voxels. Raises what it refuses.
    template <typename Kernel> void run(const Kernel& kernel) const {
        if (!chunks().run([&](int64_t, int64_t begin, int64_t end) { return kernel(&args, begin, end); })) {
            raise_refused(arguments, reading);
        }
    }

    const Arguments& arguments;
    const Reading& reading;
    Tensor class_weight, voxel_weight;
    at::DimVector sizes; // of the voxels
    segloss_cross_entropy args{};
};

} // namespace segloss
