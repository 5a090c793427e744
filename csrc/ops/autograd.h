// What the operators' autograd Functions share.
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

// The tensors of a loss as autograd handles them, and back: input, target, weight and voxel weight, then others.
inline variable_list tensors_of(const Arguments& arguments) {
    const auto& [op, input, target, weight, voxel_weight] = arguments;
    variable_list tensors;
    tensors.reserve(5);
    tensors.push_back(input);
    tensors.push_back(target);
    tensors.push_back(or_undefined(weight));
    tensors.push_back(or_undefined(voxel_weight));
    return tensors;
}

inline Arguments arguments_of(const std::string& op, const variable_list& tensors) {
    return {op, tensors[0], tensors[1], defined_or_none(tensors[2]), defined_or_none(tensors[3])};
}

// True under a torch.func transform.
bool is_func_active();

// Whether forward-mode AD runs through one of them: it looks through ATen operators only.
bool has_tangent(const Arguments& arguments);

// Whether a gradient by the target or by the class weights is asked for.
bool requires_grad_of_target(const Arguments& arguments);

// Whether a loss is to be recorded by a C++ Function, which neither torch.func transforms nor forward-mode AD take.
bool takes_function(const Arguments& arguments);

// The dtype that a loss of `input` has: input's own, float32 for half types under autocast.
at::ScalarType dtype_of_loss(const Tensor& input);

// True while a compiler takes the operators of a device without a kernel of our own: it fuses those of ATen.
bool is_compiled_from_composite(const Tensor& tensor);

// The gradient of a scalar result that the forward pass left under "gradient", times that of the result. It is handed
// out once: who asks again, for several at once (is_grads_batched), for one to differentiate, or for a factor that
// would round or overflow twice, has it computed anew. Undefined: there is none.
Tensor take_gradient(torch::autograd::AutogradContext* ctx, const Tensor& grad);

// True where a backward pass may find what the forward pass left outside of save_for_backward: not while the operators
// are traced (compiling, exporting), nor under hooks on saved tensors (checkpointing, offloading), which do not see it.
bool may_hold_results(const Tensor& input);

// From the gradients of results to those of inputs, with the tensors that were saved for it.
using BackwardPass = std::function<variable_list(const variable_list& grads, const variable_list& saved)>;

// Makes results that were computed below autograd functions of inputs, as torch does for its own operators: what a
// Function does, where none is taken.
void record(const char* name, const variable_list& results, const variable_list& inputs, const variable_list& saved,
            BackwardPass backward);

// A function made of differentiable ATen operators.
using Composite = std::function<variable_list(const variable_list&)>;

// The derivative of `composite`, a function of `arguments`, by each of its arguments that requires one, itself
// differentiable. Undefined tensors among arguments and grads are absent ones.
variable_list composite_gradients(const Composite& composite, const variable_list& arguments,
                                  const variable_list& grads);

// By one argument, whether it requires a gradient or not.
Tensor composite_gradient(const std::function<variable_list(const Tensor&)>& composite, const Tensor& input,
                          const variable_list& grads);

// The backward operator to autograd: what `compute` gives, the derivative of `composite` by the first of its arguments
// input, target, weight and voxel weight, as a differentiable function of input and grads.
Tensor gradient_by_input(const Composite& composite, const variable_list& arguments, const variable_list& grads,
                         const std::function<Tensor()>& compute);

} // namespace segloss
