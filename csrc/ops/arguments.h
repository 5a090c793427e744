// The arguments of a loss, how the loss reads them, and how it passes its voxels to the kernels.
#pragma once

#include <ATen/core/DimVector.h>
#include <ATen/core/Tensor.h>

#include <string>

#include "checks.h"
#include "label_table.h"
#include "layout.h"
#include "resized_walk.h"

namespace segloss {

using GradientKernel = int64_t (*)(const segloss_cross_entropy*, int64_t begin, int64_t end);

struct Arguments {
    std::string op; // the name in error messages
    Tensor input, target;
    OptionalTensor weight, voxel_weight;
    OptionalTensor label_table;   // see label_table.h
    std::optional<Coarse> coarse; // if present, input stands for these logits at the target's size, without values

    // The tensor that the caller gave, whose gradient is computed.
    const Tensor& logits() const { return coarse ? coarse->logits : input; }
    void set_logits(const Tensor& logits) { (coarse ? coarse->logits : input) = logits; }

    // The values of input, in a dtype.
    Tensor values(int64_t dim, at::ScalarType dtype) const;
};

// Puts a stand-in of the target's size in input's place, unless it has this size.
void take_full_size(Arguments& arguments, int64_t dim, int64_t upsample);

// The ranges that the kernels check. Class probabilities and floating masks must lie in [0, 1], with a tolerance of
// four times the epsilon of their dtype, or be finite (`any_finite`). If the input holds probabilities, it must lie in
// [0, 1], with the same tolerance. Other values are not checked.
struct Ranges {
    segloss_range target{};
    segloss_range logits{};
};

// Whether the range is to be checked at all.
inline bool is_asked(const segloss_range& range) { return range.low < range.high; }

// How a loss reads its arguments; the result of its checks.
struct Reading {
    Target kind;
    int64_t dim;
    Labels labels;
    at::ScalarType dtype; // of the results, except for sums, which are wider
    Ranges ranges;

    at::ScalarType compute_dtype() const { return segloss::compute_dtype(dtype); }
};

Ranges ranges_of(const Arguments& arguments, Target kind, at::ScalarType dtype, bool any_finite = false,
                 bool input_is_probability = false);

// Raises for a bad label or mask, or for a value outside its range at a voxel that counts. The error gives the index in
// the whole tensor. For devices without a kernel, and to word the error after a kernel has refused a value.
void check_values(const Arguments& arguments, const Reading& reading);

// Raises the error for a value that a kernel refused.
[[noreturn]] void raise_refused(const Arguments& arguments, const Reading& reading);

// Raises if a value is outside the range. nan is outside for the name "target", but allowed for "input".
void check_values_in_range(const std::string& op, c10::string_view name, const Tensor& values,
                           const segloss_range& range);

// The options that turn cross entropy into other voxel losses.
struct VoxelLossOptions {
    double label_smoothing = 0;
    double gamma = 0;               // focal loss
    bool log_probabilities = false; // input is log p
};

// Uninitialised memory for the gradient of the logits; if they are resized, zeros in the compute dtype to add to.
Tensor empty_gradient(const Arguments& arguments, const Reading& reading);

// The gradient as autograd takes it, in the logits' dtype and layout.
Tensor finished_gradient(const Tensor& gradient, const Arguments& arguments);

// The kernel arguments that describe the voxels, and the tensors that they point to. describe_with() adds the outputs.
struct VoxelArguments {
    VoxelArguments(const Arguments& arguments, const Reading& reading, const VoxelLossOptions& options);
    VoxelArguments(const VoxelArguments&) = delete;
    VoxelArguments& operator=(const VoxelArguments&) = delete;

    // Describes the layout of all tensors that have values for each voxel: those of the arguments, `more`, and the
    // logits' gradient, which may be undefined.
    void describe_with(std::initializer_list<Operand> more, const Tensor& gradient = {});

    // Whether some label or mask may be ignored.
    bool may_ignore() const;

    int64_t num_voxels() const { return c10::multiply_integers(sizes); }

    // Runs a kernel over all voxels, and adds what it sums. Raises if it refuses a value.
    segloss_sums sum(SumKernel kernel) const;
    void run(GradientKernel kernel) const;

    // The same of a kernel that does not read the logits.
    segloss_sums sum_without_logits(SumKernel kernel) const;

    // The arguments of a piece of resized logits.
    segloss_cross_entropy of_piece(const Piece& piece) const;

    const Arguments& arguments;
    const Reading& reading;
    Tensor class_weight, voxel_weight;
    at::DimVector sizes; // of the voxels
    segloss_cross_entropy args{};
    std::optional<ResizedWalk> walk; // of resized logits
};

} // namespace segloss
