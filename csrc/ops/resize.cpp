#include "resize.h"

#include <ATen/ATen.h>

namespace segloss {

using at::Tensor;

namespace {

// The rule of torch.nn.functional.interpolate with mode="nearest", which rounds to float32. With "nearest-exact",
// nothing is rounded here: torch's own kernels differ where a place is between two values.
Tensor nearest_indices(const Tensor& index, const c10::SymInt& from, const c10::SymInt& to, bool is_exact) {
    if (is_exact) {
        return ((index * 2 + 1) * from).floor_divide(to * 2);
    }
    if (from == to) {
        return index;
    }
    if (to == from * 2) {
        return index.floor_divide(2);
    }
    const auto number = [&](const c10::SymInt& size) {
        return at::scalar_tensor(size, index.options().dtype(at::kFloat));
    };
    return (index.to(at::kFloat) * (number(from) / number(to))).floor().to(at::kLong).clamp_max(from - 1);
}

// Input's sizes, with the target's along the axes that are resized. Raises unless the two fit.
c10::SymDimVector full_sizes(const std::string& op, const Tensor& input, const Tensor& target, int64_t dim,
                             const Resize& resize) {
    const auto num_axes = resize.num_axes();
    const auto num_dims = input.dim();
    TORCH_CHECK_VALUE(resize.is_valid() && num_axes < num_dims, op, ": expected upsample to be the code of one to ",
                      Resize::kMostAxes, " axes of input ", input.sym_sizes(), ", got ", resize.code());
    const bool has_classes = target.dim() == num_dims;
    TORCH_CHECK(has_classes || target.dim() == num_dims - 1, op, ": expected target [N, ...] or [N, 1, ...] for input ",
                input.sym_sizes(), " with upsample, got target ", target.sym_sizes());
    const auto classes = has_classes ? target.sym_size(dim) : c10::SymInt(1);
    TORCH_CHECK(classes == 1 || classes == input.sym_size(dim), op,
                ": expected a target with a class dimension of size 1 or ", input.sym_size(dim), " for input ",
                input.sym_sizes(), " with its classes in dimension ", dim, ", got target ", target.sym_sizes());
    c10::SymDimVector sizes(input.sym_sizes());
    const auto size_of_target = [&](int64_t d) { return target.sym_size(has_classes || d < dim ? d : d - 1); };
    for (int64_t k = 0; k < num_dims - 1; ++k) {
        const auto d = dim_of_axis(k, num_dims, dim);
        const auto size = size_of_target(d);
        if (k >= num_axes) {
            TORCH_CHECK_VALUE(size == sizes[d], op, ": expected input and target of the same samples, got input ",
                              input.sym_sizes(), " and target ", target.sym_sizes(),
                              ". upsample resizes only the last ", num_axes, num_axes == 1 ? " axis" : " axes");
        }
        TORCH_CHECK(k >= num_axes || (size > 0 && sizes[d] > 0), op,
                    ": Input and output sizes should be greater than 0 where upsample resizes. Expected sizes above 0, "
                    "got input ",
                    input.sym_sizes(), " and target ", target.sym_sizes());
        sizes[d] = size;
    }
    return sizes;
}

} // namespace

int64_t dim_of_axis(int64_t k, int64_t num_dims, int64_t class_dim) {
    const auto d = num_dims - 1 - k;
    return d > class_dim ? d : d - 1;
}

// Index i of `to` many is at the place (i + 1/2) from / to - 1/2, with aligned corners i (from - 1) / (to - 1): a
// quotient of integers, so that nothing is rounded before the fraction.
Table table_of(Resize::Mode mode, bool aligns_corners, const c10::SymInt& from, const c10::SymInt& to,
               c10::Device device) {
    const auto integers = at::TensorOptions(device).dtype(at::kLong);
    const auto wide = device.is_mps() ? at::kFloat : at::kDouble; // MPS has no float64
    const auto index = at::arange(to, integers);
    if (mode != Resize::linear) {
        const auto low = nearest_indices(index, from, to, mode == Resize::nearest_exact);
        const auto half = at::full_symint({to}, 0.5, integers.dtype(wide));
        return {low, low, half, half};
    }
    const auto numerator = aligns_corners ? index * (from - 1) : ((index * 2 + 1) * from - to).clamp_min(0);
    const auto denominator = aligns_corners ? (to - 1).max(1) : to * 2;
    const auto low = numerator.floor_divide(denominator);
    const auto fraction = (numerator - low * denominator).to(wide) / denominator;
    const auto is_single = fraction.eq(0).logical_or(low.eq(from - 1));
    const auto high_weight = fraction.masked_fill(is_single, 0.5);
    return {low, low + is_single.logical_not(), 1 - high_weight, high_weight};
}

int64_t Resize::num_axes() const {
    int64_t axes = 0;
    while (axes < kMostAxes && mode(axes) != none) {
        ++axes;
    }
    return axes;
}

Tensor Coarse::values(int64_t dim, at::ScalarType dtype) const {
    auto result = logits.to(dtype);
    const auto of_range = [&](const Tensor& tensor, int64_t d) { return tensor.narrow(d, range.begin, range.length); };
    for (auto k = logits.dim() - 2; k >= 0; --k) { // the last axis last, as it makes the most values
        const auto d = dim_of_axis(k, logits.dim(), dim);
        const bool is_part = range.length >= 0 && range.dim == d;
        if (k >= resize.num_axes() || logits.sym_size(d) == sizes[d]) {
            result = is_part ? of_range(result, d) : result;
            continue;
        }
        auto [low, high, low_weight, high_weight] =
            table_of(resize.mode(k), resize.aligns_corners(), logits.sym_size(d), sizes[d], logits.device());
        for (auto* const each : {&low, &high, &low_weight, &high_weight}) {
            *each = is_part ? of_range(*each, 0) : *each;
        }
        if (resize.mode(k) != Resize::linear) {
            result = result.index_select(d, low);
            continue;
        }
        const auto weighted = [&](const Tensor& index, const Tensor& weight) {
            c10::SymDimVector shape(logits.dim(), 1);
            shape[d] = index.sym_size(0);
            return result.index_select(d, index) * weight.to(dtype).view_symint(shape);
        };
        result = weighted(low, low_weight) + weighted(high, high_weight);
    }
    return result;
}

std::optional<Coarse> take_full_size(const std::string& op, Tensor& input, const Tensor& target, int64_t dim,
                                     int64_t upsample) {
    if (upsample == 0) {
        return std::nullopt;
    }
    Coarse coarse{input, Resize(upsample), full_sizes(op, input, target, dim, Resize(upsample)), {}};
    if (input.sym_sizes() == c10::SymIntArrayRef(coarse.sizes)) {
        return std::nullopt;
    }
    input = at::empty({}, input.options()).expand_symint(coarse.sizes);
    return coarse;
}

} // namespace segloss
