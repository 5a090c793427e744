#include "autograd.h"

#include <ATen/ATen.h>
#include <ATen/SavedTensorHooks.h>
#include <ATen/autocast_mode.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <algorithm>

namespace segloss {
namespace {

bool is_func_active() {
    return c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerBackMode);
}

} // namespace

bool is_transformed(std::initializer_list<OptionalTensor> tensors) {
    return is_func_active() || std::any_of(tensors.begin(), tensors.end(), [](const OptionalTensor& tensor) {
               return torch::autograd::isFwGradDefined(tensor);
           });
}

at::ScalarType dtype_of_loss(const Tensor& input) {
    const auto device = input.device().type();
    const bool autocast = at::autocast::is_autocast_available(device) && at::autocast::is_autocast_enabled(device);
    return autocast ? at::promote_types(input.scalar_type(), at::kFloat) : input.scalar_type();
}

bool is_compiled_from_composite(const Tensor& tensor) {
    using c10::impl::TorchDispatchModeKey;
    using c10::impl::TorchDispatchModeTLS;
    const bool has_kernel = tensor.is_cpu() || tensor.is_meta();
    return !has_kernel && (TorchDispatchModeTLS::get_mode(TorchDispatchModeKey::PROXY) ||
                           TorchDispatchModeTLS::get_mode(TorchDispatchModeKey::FUNCTIONAL));
}

bool may_hold_results(const Tensor& input) {
    using c10::DispatchKey;
    const c10::DispatchKeySet tracing({DispatchKey::Python, DispatchKey::Functionalize});
    const bool is_traced = input.key_set().has_any(tracing) || c10::impl::TorchDispatchModeTLS::any_modes_set();
    return input.is_cpu() && !is_traced && !at::SavedTensorDefaultHooks::get_hooks();
}

bool takes_composite_gradient(const variable_list& grads) {
    return at::GradMode::is_enabled() || is_func_active() ||
           std::any_of(grads.begin(), grads.end(),
                       [](const Tensor& grad) { return torch::autograd::isFwGradDefined(OptionalTensor(grad)); });
}

variable_list composite_gradients(const std::function<variable_list(const variable_list&)>& composite,
                                  const variable_list& arguments, const variable_list& grads) {
    const bool create_graph = at::GradMode::is_enabled();
    at::AutoGradMode enable(true);
    variable_list aliases; // so that hooks on the caller's tensors do not run twice
    variable_list sources;
    for (const auto& argument : arguments) {
        aliases.push_back(argument.defined() ? argument.view_as(argument) : Tensor());
        if (aliases.back().defined() && aliases.back().requires_grad()) {
            sources.push_back(aliases.back());
        }
    }
    const auto all_results = composite(aliases);
    variable_list results;
    variable_list defined_grads;
    for (size_t k = 0; k < all_results.size(); ++k) {
        if (grads[k].defined() && all_results[k].requires_grad()) {
            results.push_back(all_results[k]);
            defined_grads.push_back(grads[k].to(all_results[k].scalar_type()));
        }
    }
    const auto gradients = torch::autograd::grad(results, sources, defined_grads, /*retain_graph=*/create_graph,
                                                 create_graph, /*allow_unused=*/true);
    variable_list by_argument(arguments.size());
    auto next = gradients.begin();
    std::transform(aliases.begin(), aliases.end(), by_argument.begin(),
                   [&](const Tensor& alias) { return alias.defined() && alias.requires_grad() ? *next++ : Tensor(); });
    return by_argument;
}

} // namespace segloss
