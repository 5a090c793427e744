// What the operators' autograd Functions share.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/variable.h>

#include <functional>
#include <initializer_list>

#include "checks.h"

namespace segloss {

using torch::autograd::variable_list;

inline Tensor or_undefined(const OptionalTensor& tensor) { return tensor.value_or(Tensor()); }

inline OptionalTensor defined_or_none(const Tensor& tensor) {
    return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

// torch.func transforms and forward-mode AD look through ATen operators only.
bool is_transformed(std::initializer_list<OptionalTensor> tensors);

// The dtype that a loss of `input` has: input's own, float32 for half types under autocast.
at::ScalarType dtype_of_loss(const Tensor& input);

// True while a compiler takes the operators of a device without a kernel of our own: it fuses those of ATen.
bool is_compiled_from_composite(const Tensor& tensor);

// True where a backward pass may find what the forward pass left outside of save_for_backward: not while the operators
// are traced (compiling, exporting), nor under hooks on saved tensors (checkpointing, offloading), which do not see it.
bool may_hold_results(const Tensor& input);

// True if a backward pass needs a gradient that itself can be differentiated, or runs under a torch.func transform.
bool takes_composite_gradient(const variable_list& grads);

// The derivative of `composite`, a function of `arguments` made of ATen operators, by each of its arguments that
// requires one, itself differentiable. Undefined tensors among arguments and grads are absent ones.
variable_list composite_gradients(const std::function<variable_list(const variable_list&)>& composite,
                                  const variable_list& arguments, const variable_list& grads);

} // namespace segloss
