#include "arguments.h"

#include <ATen/ATen.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "memory.h"

namespace segloss {
namespace {

// Four times the epsilon of a floating dtype.
double slack_of(at::ScalarType dtype) {
    switch (dtype) {
    case at::kHalf:
        return 0x1p-8;
    case at::kBFloat16:
        return 0x1p-5;
    case at::kFloat:
        return 0x1p-21;
    default:
        return 0x1p-50;
    }
}

segloss_sums added(const segloss_sums& a, const segloss_sums& b) { return {a.loss + b.loss, a.weight + b.weight}; }

// Which part of a tensor some values are. They have a class dimension of size 1 if the tensor has none.
struct Part {
    at::IntArrayRef sizes; // of the whole
    int64_t dim = 0;
    int64_t begin = 0;
    int64_t class_dim = 0;
};

// Checks values in the compute dtype. `counts`: the voxels to check.
void check_part_in_range(const std::string& op, c10::string_view name, const Tensor& values, const segloss_range& range,
                         const OptionalTensor& counts, const Part& part) {
    const bool is_target = name == "target";
    auto outside = values.lt(range.low).logical_or_(values.gt(range.high));
    outside = is_target ? outside.logical_or_(values.isnan()) : outside;
    outside = counts ? outside.logical_and_(*counts) : outside;
    if (!outside.any().item<bool>()) {
        return;
    }
    const auto first = first_true(outside);
    auto index = index_of(first, values.sizes());
    if (!index.empty()) {
        index[part.dim] += part.begin;
    }
    if (index.size() > part.sizes.size()) {
        index.erase(index.begin() + part.class_dim);
    }
    const auto got = c10::str(", got ", values.flatten()[first].item<double>(), " at index ", at::IntArrayRef(index),
                              " of ", name, " ", part.sizes);
    TORCH_CHECK(is_target, op, ": expected probabilities in [0, 1] as input with activation=None", got,
                ". For logits use activation='softmax' or 'sigmoid', or pass input.softmax(dim) or input.sigmoid()");
    TORCH_CHECK(range.high < 2, op, ": expected finite numbers in a floating target", got);
    TORCH_CHECK(false, op, ": expected class probabilities or masks in [0, 1]", got,
                ". A mask of 0 and 255 becomes one of 0 and 1 by target / 255; voxels are left out by voxel_weight=0");
}

// True at voxels that count; nothing if all count. The target and the weights have a class dimension.
OptionalTensor counted_voxels(const Tensor& target, const OptionalTensor& voxel_weight, Target kind, int64_t dim,
                              const Labels& labels) {
    OptionalTensor counts = voxel_weight ? OptionalTensor(voxel_weight->ne(0)) : std::nullopt;
    if (kind != Target::probabilities) {
        const auto valid = is_ignored(target, labels).any(dim, /*keepdim=*/true).logical_not();
        counts = counts ? counts->logical_and(valid) : valid;
    }
    return counts;
}

// The kernels' name for what a target holds. One-hot targets have been converted to labels before.
segloss_target kernel_target(Target kind) {
    return kind == Target::probabilities                      ? SEGLOSS_PROBABILITIES
           : kind == Target::sets                             ? SEGLOSS_SETS
           : kind == Target::masks || kind == Target::regions ? SEGLOSS_MASKS
                                                              : SEGLOSS_LABELS;
}

} // namespace

Tensor Arguments::values(int64_t dim, at::ScalarType dtype) const {
    return coarse ? coarse->values(dim, dtype) : input.to(dtype);
}

void take_full_size(Arguments& arguments, int64_t dim, int64_t upsample) {
    arguments.coarse = take_full_size(arguments.op, arguments.input, arguments.target, dim, upsample);
}

Tensor empty_gradient(const Arguments& arguments, const Reading& reading) {
    const auto& logits = arguments.logits();
    if (!arguments.coarse) {
        return empty_output_like(logits);
    }
    const auto dim = reading.dim;
    const auto last_axis = dim == logits.dim() - 1 ? logits.dim() - 2 : logits.dim() - 1;
    if (logits.scalar_type() == reading.compute_dtype()) {
        const auto gradient = empty_output_like(logits);
        if (gradient.stride(last_axis) == 1) {
            return gradient.zero_();
        }
    } // else classes come first, as columns must be contiguous
    return at::zeros(logits.movedim(dim, 0).sizes(), logits.options().dtype(reading.compute_dtype())).movedim(0, dim);
}

Tensor finished_gradient(const Tensor& gradient, const Arguments& arguments) {
    const auto& logits = arguments.logits();
    const bool is_finished = gradient.scalar_type() == logits.scalar_type() && gradient.strides() == logits.strides();
    return !arguments.coarse || is_finished ? gradient : at::empty_like(logits).copy_(gradient);
}

Ranges ranges_of(const Arguments& arguments, Target kind, at::ScalarType dtype, bool any_finite,
                 bool input_is_probability) {
    const auto around_probabilities = [](const Tensor& values) {
        const double slack = slack_of(values.scalar_type());
        return segloss_range{-slack, 1 + slack};
    };
    Ranges ranges;
    if (kind == Target::probabilities) {
        const double largest =
            dtype == at::kDouble ? std::numeric_limits<double>::max() : std::numeric_limits<float>::max();
        ranges.target = any_finite ? segloss_range{-largest, largest} : around_probabilities(arguments.target);
    }
    if (input_is_probability) {
        ranges.logits = around_probabilities(arguments.input);
    }
    return ranges;
}

void check_values_in_range(const std::string& op, c10::string_view name, const Tensor& values,
                           const segloss_range& range) {
    check_part_in_range(op, name, values, range, {}, {values.sizes()});
}

void check_values(const Arguments& arguments, const Reading& reading) {
    const auto& [op, input, target, weight, voxel_weight, label_table, coarse] = arguments;
    const auto& [kind, dim, labels, dtype, ranges] = reading;
    if (kind == Target::labels) {
        check_label_values(op, target, input.size(dim), labels);
    } else if (kind == Target::regions || kind == Target::sets) {
        check_label_values(op, target, INT32_MAX, labels);
    } else if (kind == Target::masks) {
        check_mask_values(op, target, labels.ignore_index);
    }
    if (!is_asked(ranges.target) && !is_asked(ranges.logits)) {
        return;
    }
    // In parts, along the first dimension of more than one element, so that the check does not run out of memory.
    constexpr int64_t kElements = int64_t{1} << 24;
    int64_t along = 0;
    while (along + 1 < input.dim() && input.size(along) == 1) {
        ++along;
    }
    const auto size = input.size(along);
    const auto length =
        std::max<int64_t>(kElements / std::max<int64_t>(input.numel() / std::max<int64_t>(size, 1), 1), 1);
    for (int64_t begin = 0; begin < size; begin += length) {
        const Range range{along, begin, std::min(length, size - begin)};
        const auto part = [&](const Tensor& tensor) {
            const auto whole = tensor.dim() == input.dim() ? tensor : tensor.unsqueeze(dim);
            return whole.size(along) == 1 ? whole : whole.narrow(along, range.begin, range.length);
        };
        const auto check = [&](const char* name, const Tensor& values, at::IntArrayRef sizes,
                               const segloss_range& allowed) {
            const auto counts = counted_voxels(
                part(target), voxel_weight ? OptionalTensor(part(*voxel_weight)) : std::nullopt, kind, dim, labels);
            const auto computed = values.detach().to(compute_dtype(input.scalar_type()));
            check_part_in_range(op, name, computed, allowed, counts, {sizes, along, begin, dim});
        };
        if (is_asked(ranges.target)) {
            check("target", part(target), target.sizes(), ranges.target);
        }
        if (is_asked(ranges.logits)) {
            const auto values = coarse ? coarse->part(range).values(dim, input.scalar_type()) : part(input);
            check("input", values, input.sizes(), ranges.logits);
        }
    }
}

void raise_refused(const Arguments& arguments, const Reading& reading) {
    check_values(arguments, reading);
    TORCH_CHECK_INDEX(false, arguments.op, ": Target is out of bounds: a value of target ", arguments.target.sizes(),
                      " is neither a label, in [0, ", arguments.input.size(reading.dim),
                      "), nor a mask, 0 or 1, nor a probability, nor ignored");
}

VoxelArguments::VoxelArguments(const Arguments& arguments, const Reading& reading, const VoxelLossOptions& options)
    : arguments(arguments), reading(reading), class_weight(class_weight_for_kernel(arguments.weight, reading.dtype)),
      voxel_weight(arguments.voxel_weight.value_or(Tensor())), sizes(position_sizes(arguments.input, reading.dim)) {
    args.num_classes = arguments.input.size(reading.dim);
    args.target_kind = kernel_target(reading.kind);
    args.target_range = reading.ranges.target;
    args.logit_range = reading.ranges.logits;
    if (class_weight.defined()) {
        const auto row = class_weight.dim() == 2 ? args.num_classes * class_weight.element_size() : 0;
        args.class_weight = class_weight.const_data_ptr();
        args.weight_of_ones = static_cast<const char*>(args.class_weight) + row;
    }
    args.ignore_index = reading.labels.ignore_index;
    args.labels = label_table_for_kernel(arguments.op, reading.labels.table, args.num_classes, num_voxels(),
                                         reading.kind == Target::sets && arguments.weight.has_value());
    args.label_smoothing = options.label_smoothing;
    args.gamma = options.gamma;
    args.log_probabilities = options.log_probabilities;
    args.grad_scale = 1;
    TORCH_CHECK(args.num_classes <= INT32_MAX, arguments.op, ": expected at most ", INT32_MAX, " classes, got ",
                args.num_classes);
}

bool VoxelArguments::may_ignore() const {
    const auto& labels = reading.labels;
    if (labels.table && !labels.table->is_cpu()) {
        return true; // reading the table would wait for the device
    }
    return labels.table ? table_may_ignore(*labels.table) : segloss::may_ignore(arguments.target.scalar_type(), labels);
}

void VoxelArguments::describe_with(std::initializer_list<Operand> more, const Tensor& gradient) {
    c10::SmallVector<Operand, 7> operands{{&arguments.target, &args.target}, {&voxel_weight, &args.voxel_weight}};
    operands.append(more);
    if (const auto& coarse = arguments.coarse) {
        walk.emplace(*coarse, reading.dim, reading.compute_dtype(), gradient);
        args.positions = walk->describe(operands);
        return;
    }
    operands.append({{&arguments.input, &args.logits}, {&gradient, &args.grad_logits}});
    args.positions = describe(sizes, reading.dim, operands);
}

segloss_cross_entropy VoxelArguments::of_piece(const Piece& piece) const {
    auto of_piece = args;
    of_piece.positions = piece.positions;
    of_piece.logits = piece.logits;
    of_piece.grad_logits = piece.grad;
    for (const auto tensor : {&segloss_cross_entropy::target, &segloss_cross_entropy::voxel_weight,
                              &segloss_cross_entropy::loss, &segloss_cross_entropy::grad_loss}) {
        of_piece.*tensor = piece.of(args.*tensor);
    }
    of_piece.labels = piece.of(args.labels);
    return of_piece;
}

segloss_sums VoxelArguments::sum_without_logits(SumKernel kernel) const {
    const auto total = sum_over({num_voxels(), args.num_classes}, kernel, args);
    if (!total) {
        raise_refused(arguments, reading);
    }
    return *total;
}

segloss_sums VoxelArguments::sum(SumKernel kernel) const {
    if (!walk) {
        return sum_without_logits(kernel);
    }
    std::vector<segloss_sums> sums(walk->num_chunks());
    const bool accepted = walk->run([&](int64_t chunk, const Piece& piece) {
        const auto part = of_piece(piece);
        segloss_sums of_part{};
        const auto refused = kernel(&part, 0, piece.count, &of_part);
        sums[chunk] = added(sums[chunk], of_part);
        return refused;
    });
    if (!accepted) {
        raise_refused(arguments, reading);
    }
    return std::accumulate(sums.begin(), sums.end(), segloss_sums{}, added);
}

void VoxelArguments::run(GradientKernel kernel) const {
    const auto of_part = [&](int64_t, const Piece& piece) {
        const auto part = of_piece(piece);
        return kernel(&part, 0, piece.count);
    };
    const auto of_all = [&](int64_t, int64_t begin, int64_t end) { return kernel(&args, begin, end); };
    if (!(walk ? walk->run(of_part) : Chunks(num_voxels(), args.num_classes).run(of_all))) {
        raise_refused(arguments, reading);
    }
}

} // namespace segloss
