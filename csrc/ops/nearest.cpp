// The number of the nearest component of each voxel.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "checks.h"
#include "layout.h"

namespace segloss {
namespace {

constexpr auto kNearest = "nearest_component"; // the name in error messages

void check_nearest(const Tensor& components, at::ArrayRef<double> spacing) {
    check_dense(kNearest, components, "components");
    TORCH_CHECK_TYPE(is_integer(components), kNearest, ": expected components of an integer dtype, got ",
                     components.scalar_type());
    const auto num_axes = static_cast<int64_t>(spacing.size());
    TORCH_CHECK_VALUE(num_axes >= 1 && num_axes <= SEGLOSS_AXES, kNearest,
                      ": expected a spacing of one to three numbers, got ", num_axes);
    TORCH_CHECK(components.dim() == num_axes + 1, kNearest, ": expected components [N, *] with ", num_axes,
                " spatial axes, as spacing has, got ", components.sym_sizes());
    for (const auto step : spacing) {
        TORCH_CHECK_VALUE(step > 0 && std::isfinite(step), kNearest,
                          ": expected a spacing of finite numbers above 0, got ", spacing);
    }
}

// Replaces the zeros of a sample, int32 and contiguous.
void fill_with_nearest(const Tensor& sample, at::ArrayRef<double> spacing) {
    segloss_nearest args{};
    const auto first_axis = SEGLOSS_AXES - sample.dim();
    for (int64_t axis = 0; axis < SEGLOSS_AXES; ++axis) {
        args.sizes[axis] = axis < first_axis ? 1 : sample.size(axis - first_axis);
        args.spacing[axis] = axis < first_axis ? 1 : spacing[axis - first_axis];
    }
    const auto squares = at::empty(sample.sizes(), sample.options().dtype(at::kDouble));
    args.last_axis = static_cast<int>(first_axis);
    args.components = sample.data_ptr<int32_t>();
    args.squares = squares.data_ptr<double>();
    const auto along = [&](int64_t axis, const auto& kernel) {
        const auto length = args.sizes[axis];
        Chunks(sample.numel() / length, length).run([&](int64_t, int64_t begin, int64_t end) {
            kernel(begin, end);
            return -1;
        });
    };
    along(SEGLOSS_COLUMNS, [&](int64_t begin, int64_t end) { kernels().nearest_columns(&args, begin, end); });
    for (auto axis = static_cast<int>(SEGLOSS_ROWS); axis >= first_axis; --axis) {
        along(axis, [&](int64_t begin, int64_t end) {
            std::vector<double> workspace(segloss_nearest_workspace(&args, axis));
            kernels().nearest_lines(&args, axis, begin, end, workspace.data());
        });
    }
}

Tensor nearest_component_cpu(const Tensor& components, at::ArrayRef<double> spacing) {
    check_nearest(components, spacing);
    const auto nearest = components.to(at::kInt, /*non_blocking=*/false, /*copy=*/true, at::MemoryFormat::Contiguous);
    if (nearest.numel() == 0) {
        return nearest;
    }
    const bool is_wide = components.element_size() > 4 || components.scalar_type() == at::kUInt32;
    if (is_wide || nearest.min().item<int32_t>() < 0) {
        const auto values = components.to(at::kLong);
        const auto outside = is_outside(values, INT32_MAX);
        TORCH_CHECK_INDEX(!outside.any().item<bool>(), kNearest, ": expected components in [0, ", INT32_MAX, "), got ",
                          first_value(values, outside), " ", first_place("components", outside));
    }
    for (const auto& sample : nearest.unbind(0)) {
        const auto [least, most] = sample.aminmax();
        if (most.item<int32_t>() <= 1) { // one component is the nearest of all
            sample.fill_(most);
        } else if (least.item<int32_t>() == 0) {
            fill_with_nearest(sample, spacing);
        }
    }
    return nearest;
}

Tensor nearest_component_meta(const Tensor& components, at::ArrayRef<double> spacing) {
    check_nearest(components, spacing);
    return at::empty_symint(components.sym_sizes(), components.options().dtype(at::kInt));
}

// Other devices have no kernel.
Tensor nearest_component_elsewhere(const Tensor& components, at::ArrayRef<double> spacing) {
    check_nearest(components, spacing);
    return nearest_component_cpu(components.cpu(), spacing).to(components.device());
}

} // namespace

TORCH_LIBRARY_FRAGMENT(segloss, m) {
    m.def("nearest_component(Tensor components, float[] spacing) -> Tensor", {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(segloss, CPU, m) { m.impl("nearest_component", TORCH_FN(nearest_component_cpu)); }

TORCH_LIBRARY_IMPL(segloss, Meta, m) { m.impl("nearest_component", TORCH_FN(nearest_component_meta)); }

TORCH_LIBRARY_IMPL(segloss, CompositeExplicitAutograd, m) {
    m.impl("nearest_component", TORCH_FN(nearest_component_elsewhere));
}

} // namespace segloss
