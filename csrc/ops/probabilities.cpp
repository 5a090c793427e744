// Probabilities from logits, and their gradient; see kernels.h.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include "autograd.h"
#include "checks.h"
#include "composite.h"
#include "dispatch.h"
#include "layout.h"

namespace segloss {
namespace {

using at::Tensor;

const char* const kProbabilities = "probabilities";

// The arguments of both operators; `dim` is not negative.
struct Activated {
    Tensor input;
    OptionalTensor counts;
    int64_t dim;
    bool is_sigmoid;

    at::ScalarType dtype() const { return compute_dtype(input.scalar_type()); }
};

void check_activated(const Activated& given) {
    const auto& [input, counts, dim, is_sigmoid] = given;
    check_logits(kProbabilities, input);
    TORCH_CHECK_INDEX(dim >= 0 && dim < input.dim(), kProbabilities, ": expected dim in [0, ", input.dim(), "), got ",
                      dim);
    if (!counts) {
        return;
    }
    check_dense(kProbabilities, *counts, "counts");
    c10::SymDimVector sizes(input.sym_sizes());
    sizes.erase(sizes.begin() + dim);
    TORCH_CHECK(counts->scalar_type() == at::kBool && counts->sym_sizes() == c10::SymIntArrayRef(sizes), kProbabilities,
                ": expected counts of bool ", sizes, ", input's shape without dim, got ", counts->scalar_type(), " ",
                counts->sym_sizes());
}

void check_activated_grad(const Tensor& grad, const Activated& given) {
    check_activated(given);
    check_dense(kProbabilities, grad, "grad");
    TORCH_CHECK(grad.sym_sizes() == given.input.sym_sizes() && is_real(grad.scalar_type()), kProbabilities,
                ": expected a floating gradient of shape ", given.input.sym_sizes(), ", got ", grad.scalar_type(), " ",
                grad.sym_sizes());
}

// ---- CPU ------------------------------------------------------------------------------------------------------------

// Calls kernel(args, begin, end) for ranges of positions.
template <typename Kernel> void by_positions(const Activated& given, const Tensor& counts, const Kernel& kernel) {
    const auto& input = given.input;
    segloss_probabilities args{input.size(given.dim), 1, given.is_sigmoid ? SEGLOSS_SIGMOID : SEGLOSS_SOFTMAX, nullptr};
    for (auto d = given.dim + 1; d < input.dim(); ++d) {
        args.inner *= input.size(d);
    }
    args.counts = counts.defined() ? reinterpret_cast<const uint8_t*>(counts.const_data_ptr<bool>()) : nullptr;
    Chunks(input.numel() / args.num_classes, args.num_classes).run([&](int64_t, int64_t begin, int64_t end) {
        kernel(&args, begin, end);
        return -1;
    });
}

Tensor probabilities_cpu(const Tensor& input, const OptionalTensor& counts, int64_t dim, bool sigmoid) {
    const Activated given{input, counts, dim, sigmoid};
    check_activated(given);
    const auto logits = input.to(given.dtype()).contiguous();
    const auto p = at::empty_like(logits, at::MemoryFormat::Contiguous);
    if (p.numel() > 0) {
        const auto kernel = kernels().probabilities[real_of(given.dtype())];
        by_positions(given, counts ? counts->contiguous() : Tensor(),
                     [&](const auto* args, int64_t begin, int64_t end) {
                         kernel(args, logits.const_data_ptr(), p.mutable_data_ptr(), begin, end);
                     });
    }
    return p;
}

Tensor probabilities_backward_cpu(const Tensor& grad, const Tensor& input, const OptionalTensor& counts, int64_t dim,
                                  bool sigmoid) {
    const Activated given{input, counts, dim, sigmoid};
    check_activated_grad(grad, given);
    const auto logits = input.to(given.dtype()).contiguous(), grad_p = grad.to(given.dtype()).contiguous();
    const auto gradient = at::empty_like(logits, at::MemoryFormat::Contiguous);
    if (gradient.numel() > 0) {
        const auto kernel = kernels().probabilities_backward[real_of(given.dtype())];
        by_positions(
            given, counts ? counts->contiguous() : Tensor(), [&](const auto* args, int64_t begin, int64_t end) {
                kernel(args, logits.const_data_ptr(), grad_p.const_data_ptr(), gradient.mutable_data_ptr(), begin, end);
            });
    }
    return at::empty_like(input).copy_(gradient);
}

// ---- other devices, and higher derivatives --------------------------------------------------------------------------

Tensor probabilities_composite(const Tensor& input, const Tensor& counts, int64_t dim, bool sigmoid) {
    auto x = input.to(compute_dtype(input.scalar_type()));
    const auto is_ignored = counts.defined() ? counts.logical_not().unsqueeze(dim) : Tensor();
    x = counts.defined() ? x.masked_fill(is_ignored, 0) : x;
    const auto p = sigmoid ? x.sigmoid() : x.softmax(dim);
    return (counts.defined() ? p.masked_fill(is_ignored, 0) : p).contiguous();
}

Tensor probabilities_other(const Tensor& input, const OptionalTensor& counts, int64_t dim, bool sigmoid) {
    check_activated({input, counts, dim, sigmoid});
    return probabilities_composite(input, or_undefined(counts), dim, sigmoid);
}

Tensor probabilities_backward_other(const Tensor& grad, const Tensor& input, const OptionalTensor& counts, int64_t dim,
                                    bool sigmoid) {
    check_activated_grad(grad, {input, counts, dim, sigmoid});
    const auto composite = [&](const Tensor& x) {
        return variable_list{probabilities_composite(x, or_undefined(counts), dim, sigmoid)};
    };
    return at::empty_like(input).copy_(slab_gradient(composite, input, {grad}));
}

Tensor probabilities_meta(const Tensor& input, const OptionalTensor& counts, int64_t dim, bool sigmoid) {
    const Activated given{input, counts, dim, sigmoid};
    check_activated(given);
    return at::empty_symint(input.sym_sizes(), input.options().dtype(given.dtype()));
}

Tensor probabilities_backward_meta(const Tensor& grad, const Tensor& input, const OptionalTensor& counts, int64_t dim,
                                   bool sigmoid) {
    check_activated_grad(grad, {input, counts, dim, sigmoid});
    return at::empty_like(input);
}

// ---- autograd -------------------------------------------------------------------------------------------------------

Tensor call_probabilities_backward(const Tensor& grad, const Tensor& input, const OptionalTensor& counts, int64_t dim,
                                   bool sigmoid) {
    return call_operator<&probabilities_backward_cpu>("probabilities_backward", grad, input, counts, dim, sigmoid);
}

Tensor probabilities_autograd(const Tensor& input, const OptionalTensor& counts, int64_t dim, bool sigmoid) {
    if (torch::autograd::isFwGradDefined(input)) {
        return probabilities_other(input, counts, dim, sigmoid);
    }
    auto p = [&] {
        const at::AutoDispatchBelowADInplaceOrView below_autograd;
        return call_operator<&probabilities_cpu>("probabilities", input, counts, dim, sigmoid);
    }();
    if (torch::autograd::compute_requires_grad(input)) {
        record("ProbabilitiesBackward", {p}, {input}, {input, or_undefined(counts)},
               [dim, sigmoid](const variable_list& grads, const variable_list& saved) {
                   const auto& grad = grads[0];
                   return variable_list{grad.defined() ? call_probabilities_backward(
                                                             grad, saved[0], defined_or_none(saved[1]), dim, sigmoid)
                                                       : Tensor()};
               });
    }
    return p;
}

Tensor probabilities_backward_autograd(const Tensor& grad, const Tensor& input, const OptionalTensor& counts,
                                       int64_t dim, bool sigmoid) {
    const Composite composite = [dim, sigmoid](const variable_list& arguments) {
        return variable_list{probabilities_composite(arguments[0], arguments[1], dim, sigmoid)};
    };
    return gradient_by_input(composite, {input, or_undefined(counts), Tensor()}, {grad},
                             [&] { return call_probabilities_backward(grad, input, counts, dim, sigmoid); });
}

} // namespace

TORCH_LIBRARY_FRAGMENT(segloss, m) {
    m.def("probabilities(Tensor input, Tensor? counts, int dim, bool sigmoid) -> Tensor", {at::Tag::pt2_compliant_tag});
    m.def("probabilities_backward(Tensor grad, Tensor input, Tensor? counts, int dim, bool sigmoid) -> Tensor",
          {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(segloss, CPU, m) {
    m.impl("probabilities", TORCH_FN(probabilities_cpu));
    m.impl("probabilities_backward", TORCH_FN(probabilities_backward_cpu));
}

TORCH_LIBRARY_IMPL(segloss, Meta, m) {
    m.impl("probabilities", TORCH_FN(probabilities_meta));
    m.impl("probabilities_backward", TORCH_FN(probabilities_backward_meta));
}

TORCH_LIBRARY_IMPL(segloss, Autograd, m) {
    m.impl("probabilities", TORCH_FN(probabilities_autograd));
    m.impl("probabilities_backward", TORCH_FN(probabilities_backward_autograd));
}

TORCH_LIBRARY_IMPL(segloss, CompositeExplicitAutograd, m) {
    m.impl("probabilities", TORCH_FN(probabilities_other));
    m.impl("probabilities_backward", TORCH_FN(probabilities_backward_other));
}

} // namespace segloss
