// Autograd helpers that the operators share.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/custom_function.h>

#include <functional>

#include "arguments.h"

namespace segloss {

using torch::autograd::variable_list;

inline Tensor or_undefined(const OptionalTensor& tensor) { return tensor.value_or(Tensor()); }

inline OptionalTensor defined_or_none(const Tensor& tensor) {
    return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

// Converts a loss's arguments to a list of tensors and back, in the order of the struct; others may follow.
constexpr size_t kNumTensors = 5;

inline variable_list tensors_of(const Arguments& arguments) {
    const auto& [op, input, target, weight, voxel_weight, label_table, coarse] = arguments;
    variable_list tensors;
    tensors.reserve(kNumTensors + 1);
    tensors.push_back(arguments.logits());
    tensors.push_back(target);
    tensors.push_back(or_undefined(weight));
    tensors.push_back(or_undefined(voxel_weight));
    tensors.push_back(or_undefined(label_table));
    return tensors;
}

template <class Options>
Arguments arguments_of(const std::string& op, const variable_list& tensors, const Options& options) {
    Arguments arguments{op,
                        tensors[0],
                        tensors[1],
                        defined_or_none(tensors[2]),
                        defined_or_none(tensors[3]),
                        defined_or_none(tensors[4])};
    take_full_size(arguments, options.dim, options.upsample);
    return arguments;
}

// True under a torch.func transform.
bool is_func_active();

// Whether an argument has a forward-mode tangent. Forward-mode AD can differentiate ATen operators only.
bool has_tangent(const Arguments& arguments);

// Whether the target or the class weights need a gradient.
bool requires_grad_of_target(const Arguments& arguments);

// Whether to record a loss by a C++ autograd Function: if it needs a gradient, but not under torch.func transforms or
// forward-mode AD, which do not support C++ Functions.
bool takes_function(const Arguments& arguments);

// The dtype that a loss of `input` has: input's own, float32 for half types under autocast.
at::ScalarType dtype_of_loss(const Tensor& input);

// True while a compiler traces a device without a segloss kernel: it can fuse the composite's ATen operators.
bool is_compiled_from_composite(const Tensor& tensor);

// The gradient that the forward pass saved as "gradient". It is used only once, as it is changed in place and given
// away. Undefined if none is left, or if `grad`, the gradient of the scalar result, is batched (is_grads_batched) or
// differentiated itself.
Tensor take_gradient(torch::autograd::AutogradContext* ctx, const Tensor& grad);

// Multiplies this gradient by that of the scalar result. Returns false, and does nothing, if the factor is not finite
// or would round a bfloat16 gradient a second time. Waits for the device.
bool scale_gradient(const Tensor& gradient, const Tensor& grad);

// Whether the forward pass may keep a result outside of save_for_backward: only where there may be kernels that compute
// it, not while operators are traced (compiling, exporting), nor under hooks on saved tensors (checkpointing,
// offloading), which would not see it.
bool may_hold_results(const Tensor& input);

// Computes the gradients of the inputs from those of the results and from the saved tensors.
using BackwardPass = std::function<variable_list(const variable_list& grads, const variable_list& saved)>;

// Records results that were computed below autograd as functions of `inputs`, as torch does for its own operators. Used
// where a C++ Function is not (see takes_function).
void record(const char* name, const variable_list& results, const variable_list& inputs, const variable_list& saved,
            BackwardPass backward);

// A function made of differentiable ATen operators.
using Composite = std::function<variable_list(const variable_list&)>;

// The gradient of `composite(arguments)` with respect to each argument that requires one. It can be differentiated
// again. Undefined tensors in `arguments` and `grads` stand for absent ones.
variable_list composite_gradients(const Composite& composite, const variable_list& arguments,
                                  const variable_list& grads);

// The same for a function of one argument, whether or not that argument requires a gradient.
Tensor composite_gradient(const std::function<variable_list(const Tensor&)>& composite, const Tensor& input,
                          const variable_list& grads);

// The backward operator as autograd sees it: the gradient of `composite` with respect to the first of `arguments`
// (see tensors_of) as a differentiable function of `arguments` and `grads`. `compute` is the fast
// way to its value.
Tensor gradient_by_input(const Composite& composite, const variable_list& arguments, const variable_list& grads,
                         const std::function<Tensor()>& compute);

} // namespace segloss
