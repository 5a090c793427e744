// Accuracy: the share of valid voxels whose largest logit is the label's.

#include <ATen/ATen.h>
#include <ATen/WrapDimUtils.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "checks.h"
#include "layout.h"
#include "targets.h"

namespace segloss {
namespace {

constexpr auto kOp = "accuracy";

// Logits against labels; `dim` counted from the front. int64 [correct, valid].
Tensor accuracy_counts_cpu(const Tensor& input, const Tensor& target, int64_t ignore_index, int64_t dim) {
    TORCH_CHECK_INDEX(dim >= 0 && dim < input.dim(), kOp, ": expected dim in [0, ", input.dim() - 1, "], got ", dim);
    check_logits(kOp, input);
    TORCH_CHECK(classify_target(kOp, input, target, dim) == Target::labels, kOp, ": expected class labels, got target ",
                target.sizes(), " for input ", input.sizes());
    const auto sizes = position_sizes(input, dim);
    segloss_accuracy args{};
    args.num_classes = input.size(dim);
    args.ignore_index = ignore_index;
    args.positions = describe(sizes, dim, {{&input, &args.logits}, {&target, &args.target}});
    const Chunks chunks(c10::multiply_integers(sizes), args.num_classes);
    std::vector<segloss_counts> counts(chunks.count());
    const auto kernel = kernels().accuracy[real_of(input.scalar_type())];
    const bool accepted = chunks.run(
        [&](int64_t chunk, int64_t begin, int64_t end) { return kernel(&args, begin, end, &counts[chunk]); });
    if (!accepted) {
        check_label_values(kOp, target, args.num_classes, ignore_index);
    }
    segloss_counts total{0, 0};
    for (const auto& count : counts) {
        total.correct += count.correct;
        total.valid += count.valid;
    }
    return at::tensor({total.correct, total.valid}, at::kLong);
}

Tensor accuracy_counts_meta(const Tensor& input, const Tensor& /*target*/, int64_t /*ignore_index*/, int64_t /*dim*/) {
    return at::empty({2}, input.options().dtype(at::kLong));
}

Tensor counts_of_label_maps(const Tensor& predicted, const Tensor& target, int64_t ignore_index) {
    check_integral_labels(kOp, target);
    const auto labels = target.to(at::kLong);
    const auto valid = labels.ne(ignore_index);
    const auto correct = predicted.to(at::kLong).eq(labels).logical_and(valid);
    return at::stack({correct.sum(), valid.sum()});
}

// Devices without a kernel.
Tensor accuracy_counts_composite(const Tensor& input, const Tensor& target, int64_t ignore_index, int64_t dim) {
    check_logits(kOp, input);
    check_label_values(kOp, target, input.size(dim), ignore_index);
    const bool keeps_dim = target.dim() == input.dim();
    return counts_of_label_maps(input.argmax(dim, keeps_dim), target, ignore_index);
}

Tensor counts_of_predictions(const Tensor& predicted, const Tensor& target, int64_t ignore_index, int64_t dim) {
    const bool one_keeps_dim = std::abs(predicted.dim() - target.dim()) == 1;
    const auto drop_class_dim = [&](const Tensor& map) {
        const bool drop = one_keeps_dim && map.dim() == std::max(predicted.dim(), target.dim());
        return drop ? map.squeeze(at::maybe_wrap_dim(dim, map.dim())) : map;
    };
    const auto p = drop_class_dim(predicted);
    const auto t = drop_class_dim(target);
    TORCH_CHECK(p.sym_sizes() == t.sym_sizes(), kOp,
                ": expected predicted labels and target of one shape, up to a class dimension of size 1, got input ",
                predicted.sym_sizes(), " and target ", target.sym_sizes());
    return counts_of_label_maps(p, t, ignore_index);
}

Tensor accuracy(const Tensor& input, const Tensor& target, int64_t ignore_index, int64_t dim) {
    at::NoGradGuard no_grad;
    Tensor counts;
    if (at::isIntegralType(input.scalar_type(), /*includeBool=*/true)) {
        check_same_device(kOp, input, target, "target");
        counts = counts_of_predictions(input, target, ignore_index, dim);
    } else {
        check_logits(kOp, input);
        const auto class_dimension = class_dim(kOp, input, dim);
        const auto kind = classify_target(kOp, input, target, class_dimension);
        // Floats of input's shape count where they are one-hot: probabilities have no one label to compare with.
        const auto labels = kind == Target::labels ? target : one_hot_labels(kOp, target, class_dimension);
        static const auto op = c10::Dispatcher::singleton()
                                   .findSchemaOrThrow("segloss::accuracy_counts", "")
                                   .typed<decltype(accuracy_counts_cpu)>();
        counts = op.call(input, labels, ignore_index, class_dimension);
    }
    const auto dtype = c10::typeMetaToScalarType(c10::get_default_dtype());
    const auto wide = counts.is_mps() ? at::kFloat : at::kDouble; // MPS has no float64
    return (counts.select(0, 0).to(wide) / counts.select(0, 1)).to(dtype);
}

} // namespace

TORCH_LIBRARY_FRAGMENT(segloss, m) {
    const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
    m.def("accuracy(Tensor input, Tensor target, int ignore_index=-100, int dim=1) -> Tensor", tags);
    m.def("accuracy_counts(Tensor input, Tensor target, int ignore_index, int dim) -> Tensor", tags);
}

TORCH_LIBRARY_IMPL(segloss, CompositeImplicitAutograd, m) { m.impl("accuracy", TORCH_FN(accuracy)); }

TORCH_LIBRARY_IMPL(segloss, CPU, m) { m.impl("accuracy_counts", TORCH_FN(accuracy_counts_cpu)); }

TORCH_LIBRARY_IMPL(segloss, Meta, m) { m.impl("accuracy_counts", TORCH_FN(accuracy_counts_meta)); }

TORCH_LIBRARY_IMPL(segloss, CompositeExplicitAutograd, m) {
    m.impl("accuracy_counts", TORCH_FN(accuracy_counts_composite));
}

} // namespace segloss
