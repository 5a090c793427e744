#include "autograd.h"

#include <ATen/ATen.h>
#include <ATen/SavedTensorHooks.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/functorch/DynamicLayer.h>
#include <ATen/functorch/TensorWrapper.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <cmath>
#include <memory>
#include <mutex>
#include <utility>

#include "compat.h"

// Functions of Python's C API that are the same in all versions, so that one library serves all. They are weak symbols:
// nothing has to define them.
extern "C" {
struct PyThreadState;
[[gnu::weak]] int Py_IsInitialized();
[[gnu::weak]] int PyGILState_Check();
[[gnu::weak]] PyThreadState* PyEval_SaveThread();
[[gnu::weak]] void PyEval_RestoreThread(PyThreadState* state);
}

namespace segloss {
namespace {

// A backward pass in the graph.
class Recorded final : public torch::autograd::Node {
public:
    Recorded(const char* name, const variable_list& saved, BackwardPass backward)
        : name_(name), backward_(std::move(backward)) {
        for (const auto& tensor : saved) {
            saved_.emplace_back(tensor, /*is_output=*/false);
        }
    }

    variable_list apply(variable_list&& grads) override {
        const std::lock_guard<std::mutex> lock(mutex_); // as in torch's nodes: release_variables may run meanwhile
        variable_list saved;
        for (const auto& tensor : saved_) {
            saved.push_back(tensor.unpack());
        }
        return backward_(grads, saved);
    }

    void release_variables() override {
        const std::lock_guard<std::mutex> lock(mutex_);
        for (auto& tensor : saved_) {
            tensor.reset_data();
        }
    }

    std::string name() const override { return name_; }

private:
    const char* name_;
    std::vector<torch::autograd::SavedVariable> saved_;
    BackwardPass backward_;
};

// A torch.func level for one derivative, as torch.func.vjp makes it. In a backward pass under torch.func, the levels of
// saved tensors may have ended, and vmap hides its tensors from autograd: it would record no operator.
class FuncLevel {
public:
    FuncLevel()
        : level_(at::functorch::initAndPushDynamicLayer(at::functorch::TransformType::Grad, /*batch_size=*/{},
                                                        /*randomness=*/{}, at::GradMode::is_enabled())) {}
    ~FuncLevel() { at::functorch::popDynamicLayerAndDeleteMetadata(); } // NOLINT(bugprone-exception-escape)
    FuncLevel(const FuncLevel&) = delete;
    FuncLevel& operator=(const FuncLevel&) = delete;

    Tensor wrap(const Tensor& tensor) const { return at::functorch::makeTensorWrapper(tensor, level_); }
    Tensor unwrap(const Tensor& tensor) const {
        const auto* wrapper = at::functorch::maybeGetTensorWrapper(tensor);
        return wrapper && wrapper->level() == level_ ? wrapper->value() : tensor;
    }

private:
    int64_t level_;
};

// Releases the GIL if this thread holds it: compilers hold it when they call operators, and the autograd engine refuses
// to run under it.
class WithoutGil {
public:
    WithoutGil()
        : state_(Py_IsInitialized && Py_IsInitialized() && PyGILState_Check() ? PyEval_SaveThread() : nullptr) {}
    ~WithoutGil() {
        if (state_) {
            PyEval_RestoreThread(state_);
        }
    }
    WithoutGil(const WithoutGil&) = delete;
    WithoutGil& operator=(const WithoutGil&) = delete;

private:
    PyThreadState* state_;
};

// Whether operators called here go through a torch.func transform: not within an operator that a transform runs.
bool calls_func() {
    const auto keys = c10::impl::tls_local_dispatch_key_set();
    return (keys.included_ - keys.excluded_).has(c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
}

} // namespace

bool is_func_active() {
    // FrontMode is set for code that calls operators, such as a backward pass, BackMode within a called operator.
    using c10::DispatchKey;
    return c10::impl::tls_is_dispatch_key_included(DispatchKey::FuncTorchDynamicLayerFrontMode) ||
           c10::impl::tls_is_dispatch_key_included(DispatchKey::FuncTorchDynamicLayerBackMode);
}

bool has_tangent(const Arguments& arguments) {
    const auto has = [](const Tensor& tensor) { return tensor.defined() && tensor._fw_grad(/*level=*/0).defined(); };
    const auto& [op, input, target, weight, voxel_weight, label_table, coarse] = arguments;
    return has(arguments.logits()) || has(target) || (weight && has(*weight)) || (voxel_weight && has(*voxel_weight));
}

bool requires_grad_of_target(const Arguments& arguments) {
    return torch::autograd::compute_requires_grad(arguments.target, or_undefined(arguments.weight));
}

bool takes_function(const Arguments& arguments) {
    return !is_func_active() && !has_tangent(arguments) &&
           (torch::autograd::compute_requires_grad(arguments.logits()) || requires_grad_of_target(arguments));
}

at::ScalarType dtype_of_loss(const Tensor& input) {
    const auto device = input.device().type();
    const bool autocast = at::autocast::is_autocast_available(device) && at::autocast::is_autocast_enabled(device);
    return autocast ? at::promote_types(input.scalar_type(), at::kFloat) : input.scalar_type();
}

bool is_compiled_from_composite(const Tensor& tensor) {
    using c10::impl::TorchDispatchModeKey;
    using c10::impl::TorchDispatchModeTLS;
    static const bool has_cuda_kernels = c10::Dispatcher::singleton()
                                             .findSchemaOrThrow("segloss::cross_entropy_forward", "")
                                             .hasKernelForDispatchKey(c10::DispatchKey::CUDA);
    const bool has_kernel = tensor.is_cpu() || tensor.is_meta() || (tensor.is_cuda() && has_cuda_kernels);
    return !has_kernel && (TorchDispatchModeTLS::get_mode(TorchDispatchModeKey::PROXY) ||
                           TorchDispatchModeTLS::get_mode(TorchDispatchModeKey::FUNCTIONAL));
}

bool may_hold_results(const Tensor& input) {
    using c10::DispatchKey;
    const c10::DispatchKeySet tracing({DispatchKey::Python, DispatchKey::Functionalize});
    const bool is_traced = input.key_set().has_any(tracing) || c10::impl::TorchDispatchModeTLS::any_modes_set();
    return (input.is_cpu() || input.is_cuda()) && !is_traced && !at::SavedTensorDefaultHooks::get_hooks();
}

Tensor take_gradient(torch::autograd::AutogradContext* ctx, const Tensor& grad) {
    const auto held = ctx->saved_data.find("gradient");
    const bool is_batched = is_func_active() || grad.key_set().has(c10::DispatchKey::Batched);
    const bool is_differentiated = at::GradMode::is_enabled() || torch::autograd::isFwGradDefined(grad);
    if (held == ctx->saved_data.end() || is_batched || is_differentiated) {
        return {};
    }
    auto gradient = held->second.toTensor();
    ctx->saved_data.erase(held);
    return gradient;
}

bool scale_gradient(const Tensor& gradient, const Tensor& grad) {
    const double factor = grad.item<double>();
    int exponent = 0;
    const bool is_exact = std::abs(std::frexp(factor, &exponent)) == 0.5;
    if (!std::isfinite(factor) || (gradient.scalar_type() == at::kBFloat16 && !is_exact)) {
        return false;
    }
    if (factor != 1) {
        gradient.mul_(factor);
    }
    return true;
}

void record(const char* name, const variable_list& results, const variable_list& inputs, const variable_list& saved,
            BackwardPass backward) {
    const auto node = make_node<Recorded>(name, saved, std::move(backward));
    node->set_next_edges(torch::autograd::collect_next_edges(inputs));
    torch::autograd::set_history(results, node);
}

variable_list composite_gradients(const Composite& composite, const variable_list& arguments,
                                  const variable_list& grads) {
    const bool create_graph = at::GradMode::is_enabled();
    const auto level = calls_func() ? std::make_unique<FuncLevel>() : nullptr; // with the caller's grad mode
    at::AutoGradMode enable(true);
    const auto alias = [&](const Tensor& argument) { // so that hooks on the caller's tensors do not run twice
        const auto own = level ? level->wrap(argument) : argument.view_as(argument);
        return own.requires_grad() ? own : own.set_requires_grad(argument.requires_grad());
    };
    variable_list aliases;
    variable_list sources;
    for (const auto& argument : arguments) {
        aliases.push_back(argument.defined() ? alias(argument) : Tensor());
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
    const auto gradients = [&] {
        const WithoutGil unlocked;
        return torch::autograd::grad(results, sources, defined_grads, /*retain_graph=*/create_graph, create_graph,
                                     /*allow_unused=*/true);
    }();
    variable_list by_argument(arguments.size());
    auto next = gradients.begin();
    for (size_t k = 0; k < arguments.size(); ++k) {
        if (aliases[k].defined() && aliases[k].requires_grad()) {
            by_argument[k] = level && next->defined() ? level->unwrap(*next) : *next;
            ++next;
        }
    }
    return by_argument;
}

Tensor composite_gradient(const std::function<variable_list(const Tensor&)>& composite, const Tensor& input,
                          const variable_list& grads) {
    const auto of_arguments = [&](const variable_list& arguments) { return composite(arguments[0]); };
    const auto source = input.requires_grad() ? input : input.view_as(input).set_requires_grad(true);
    return composite_gradients(of_arguments, {source}, grads)[0];
}

Tensor gradient_by_input(const Composite& composite, const variable_list& arguments, const variable_list& grads,
                         const std::function<Tensor()>& compute) {
    const auto by_composite = [composite,
                               num_arguments = static_cast<int64_t>(arguments.size())](const variable_list& all) {
        const auto first_grad = all.begin() + num_arguments;
        const auto of_input = [&](const Tensor& input) {
            variable_list arguments(all.begin(), first_grad);
            arguments[0] = input;
            return composite(arguments);
        };
        return variable_list{composite_gradient(of_input, all[0], {first_grad, all.end()})};
    };
    variable_list all = arguments;
    all.insert(all.end(), grads.begin(), grads.end());
    const auto& target = arguments[1];
    const auto& weight = arguments[2];
    using torch::autograd::compute_requires_grad;
    if (torch::autograd::isFwGradDefinedTensorList(all) || compute_requires_grad(target, weight)) {
        return by_composite(all)[0];
    }
    const auto gradient = [&] {
        const at::AutoDispatchBelowADInplaceOrView below_autograd;
        return compute();
    }();
    if (compute_requires_grad(all)) {
        record("LossBackwardBackward", {gradient}, all, all,
               [by_composite](const variable_list& grads, const variable_list& saved) {
                   return composite_gradients(by_composite, saved, grads);
               });
    }
    return gradient;
}

} // namespace segloss
