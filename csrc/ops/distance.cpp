// Maps of Euclidean distances, from labels.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "checks.h"
#include "label_table.h"
#include "layout.h"
#include "targets.h"

namespace segloss {
namespace {

constexpr auto kDistance = "distance_transform"; // the name in error messages

struct Distances {
    Tensor labels; // [N, *]
    Labels meaning;
    at::ArrayRef<double> spacing; // of the spatial axes
    int64_t num_classes;          // 0: one map, of all classes but 0
    bool of_boundary, is_signed;

    int64_t num_axes() const { return labels.dim() - 1; }
    int64_t num_label_classes() const { return num_classes > 0 ? num_classes : INT32_MAX; }

    c10::SymDimVector sizes() const {
        c10::SymDimVector sizes(labels.sym_sizes());
        sizes.insert(sizes.begin() + 1, std::max<int64_t>(num_classes, 1));
        return sizes;
    }
};

void check_distances(const Distances& given, at::ScalarType dtype) {
    check_label_tensor(kDistance, given.labels);
    check_label_table(kDistance, given.labels, given.meaning.table, Target::labels);
    const auto num_axes = static_cast<int64_t>(given.spacing.size());
    TORCH_CHECK_VALUE(num_axes >= 1 && num_axes <= SEGLOSS_AXES, kDistance,
                      ": expected a spacing of one to three numbers, got ", num_axes);
    TORCH_CHECK_VALUE(num_axes == given.num_axes(), kDistance, ": expected labels [N, *] with ", num_axes,
                      " spatial axes, as spacing has, got ", given.labels.sym_sizes());
    for (const auto step : given.spacing) {
        TORCH_CHECK_VALUE(step > 0 && std::isfinite(step), kDistance,
                          ": expected a spacing of finite numbers above 0, got ", given.spacing);
    }
    TORCH_CHECK_VALUE(given.num_classes >= 0 && given.num_classes <= INT32_MAX, kDistance,
                      ": expected num_classes in [0, ", INT32_MAX, "], got ", given.num_classes);
    TORCH_CHECK_TYPE(is_real(dtype), kDistance, ": expected dtype float64, float32, float16 or bfloat16, got ", dtype);
}

// ---- CPU ------------------------------------------------------------------------------------------------------------

segloss_distance distance_for_kernel(const Distances& given, const Tensor& maps) {
    segloss_distance args{};
    args.num_classes = given.num_classes;
    args.ignore_index = given.meaning.ignore_index;
    args.label_table =
        label_table_for_kernel(kDistance, given.meaning.table, given.num_label_classes(), given.labels.numel());
    args.positions = describe(given.labels.sizes(), /*dim=*/1, {{&given.labels, &args.labels}, {&maps, &args.maps}});
    args.last_axis = static_cast<int>(SEGLOSS_AXES - given.num_axes());
    for (int axis = 0; axis < SEGLOSS_AXES; ++axis) {
        const auto of_given = axis - args.last_axis;
        args.sizes[axis] = of_given < 0 ? 1 : given.labels.size(1 + of_given);
        args.spacing[axis] = of_given < 0 ? 1 : given.spacing[of_given];
    }
    args.of_boundary = given.of_boundary;
    args.is_signed = given.is_signed;
    return args;
}

// Fills contiguous maps in the compute dtype.
void write_distances(const Distances& given, const Tensor& maps) {
    const auto args = distance_for_kernel(given, maps);
    const auto real = real_of(maps.scalar_type());
    const auto mark = kernels().distance_marks[real];
    const auto is_accepted = Chunks(given.labels.numel(), maps.size(1)).run([&](int64_t, int64_t begin, int64_t end) {
        return mark(&args, begin, end);
    });
    if (!is_accepted) {
        check_label_values(kDistance, given.labels, given.num_label_classes(), given.meaning);
    }
    const auto along = [&](int axis, const auto& kernel) {
        const auto length = args.sizes[axis];
        Chunks(maps.numel() / length, length).run([&](int64_t, int64_t begin, int64_t end) {
            kernel(axis, begin, end);
            return -1;
        });
    };
    for (int axis = args.last_axis; given.of_boundary && axis < SEGLOSS_COLUMNS; ++axis) {
        along(axis, [&](int axis, int64_t begin, int64_t end) {
            kernels().distance_boundary[real](&args, axis, begin, end);
        });
    }
    for (int axis = SEGLOSS_COLUMNS; axis >= args.last_axis; --axis) {
        along(axis, [&](int axis, int64_t begin, int64_t end) {
            std::vector<double> workspace(segloss_distance_workspace(&args, axis));
            kernels().distance_lines[real](&args, axis, begin, end, workspace.data());
        });
    }
}

// ---- devices without a kernel ---------------------------------------------------------------------------------------

// Voxels inside that have a neighbour outside along an axis, or none.
Tensor boundary_of(const Tensor& inside, const Tensor& outside) {
    auto meets_outside = at::zeros_like(inside);
    for (int64_t d = 2; d < inside.dim(); ++d) {
        const auto size = inside.size(d);
        meets_outside.narrow(d, 0, 1).fill_(true);
        meets_outside.narrow(d, size - 1, 1).fill_(true);
        meets_outside.narrow(d, 0, size - 1).logical_or_(outside.narrow(d, 1, size - 1));
        meets_outside.narrow(d, 1, size - 1).logical_or_(outside.narrow(d, 0, size - 1));
    }
    return meets_outside.logical_and_(inside);
}

// Distances of all voxels to the nearest one of `near`.
Tensor distances_to(const Tensor& near, at::ArrayRef<double> spacing, at::ScalarType dtype) {
    auto squares = at::zeros(near.sizes(), near.options().dtype(dtype));
    squares.masked_fill_(near.logical_not(), INFINITY);
    const auto unit = spacing.back();
    for (auto d = near.dim() - 1; d >= 2; --d) {
        const auto size = near.size(d);
        const auto along_line = squares.clone();
        for (int64_t shift = 1; shift < size; ++shift) {
            const auto square = std::pow(static_cast<double>(shift) * spacing[d - 2] / unit, 2);
            for (const auto& [from, to] : {std::pair(shift, int64_t{0}), std::pair(int64_t{0}, shift)}) {
                const auto nearest = squares.narrow(d, to, size - shift);
                at::minimum_out(const_cast<Tensor&>(nearest), nearest,
                                along_line.narrow(d, from, size - shift).add(square));
            }
        }
    }
    return squares.sqrt_().mul_(unit);
}

void write_distances_composite(const Distances& given, const Tensor& maps) {
    const auto classes = class_labels(kDistance, given.labels, given.num_label_classes(), given.meaning).unsqueeze(1);
    std::vector<int64_t> of_classes(maps.dim(), 1);
    of_classes[1] = maps.size(1);
    const auto inside = given.num_classes > 0 ? classes.eq(at::arange(maps.size(1), classes.options()).view(of_classes))
                                              : classes.gt(0);
    const auto dtype = maps.scalar_type();
    if (given.of_boundary) {
        const auto outside = classes.ge(0).logical_and(inside.logical_not());
        maps.copy_(distances_to(boundary_of(inside, outside), given.spacing, dtype));
        if (given.is_signed) {
            maps.copy_(at::where(inside.logical_and(maps.gt(0)), maps.neg(), maps));
        }
        return;
    }
    maps.copy_(distances_to(inside.logical_not(), given.spacing, dtype));
    if (given.is_signed) {
        maps.copy_(at::where(inside, maps.neg(), distances_to(inside, given.spacing, dtype)));
    }
}

// ---- the operator ---------------------------------------------------------------------------------------------------

void write_nothing_of_distances(const Distances& /*given*/, const Tensor& /*maps*/) {}

template <void (*write)(const Distances& given, const Tensor& maps)>
Tensor distance_transform(const Tensor& labels, const OptionalTensor& label_table, at::ArrayRef<double> spacing,
                          int64_t ignore_index, int64_t num_classes, bool boundary, bool is_signed,
                          at::ScalarType dtype) {
    const Distances given{labels, {ignore_index, label_table}, spacing, num_classes, boundary, is_signed};
    check_distances(given, dtype);
    const auto maps = at::empty_symint(given.sizes(), labels.options().dtype(compute_dtype(dtype)));
    if (maps.sym_numel() != 0) {
        write(given, maps);
    }
    return maps.to(dtype);
}

} // namespace

TORCH_LIBRARY_FRAGMENT(segloss, m) {
    m.def("distance_transform(Tensor labels, Tensor? label_table, float[] spacing, int ignore_index, int num_classes, "
          "bool boundary, bool signed, ScalarType dtype) -> Tensor",
          {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(segloss, CPU, m) { m.impl("distance_transform", TORCH_FN(distance_transform<write_distances>)); }

TORCH_LIBRARY_IMPL(segloss, Meta, m) {
    m.impl("distance_transform", TORCH_FN(distance_transform<write_nothing_of_distances>));
}

TORCH_LIBRARY_IMPL(segloss, CompositeExplicitAutograd, m) {
    m.impl("distance_transform", TORCH_FN(distance_transform<write_distances_composite>));
}

} // namespace segloss
