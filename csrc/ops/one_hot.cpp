#include "one_hot.h"

#include <ATen/ATen.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "checks.h"
#include "layout.h"

namespace segloss {
namespace {

constexpr auto kOp = "one_hot_labels";

void check_target(const Tensor& target, int64_t dim) {
    TORCH_CHECK_TYPE(at::isIntegralType(target.scalar_type(), /*includeBool=*/true), kOp,
                     ": expected an integer or bool target, got ", target.scalar_type());
    TORCH_CHECK_INDEX(dim >= 0 && dim < target.dim(), kOp, ": expected dim in [0, ", target.dim() - 1, "], got ", dim);
}

Tensor one_hot_labels_cpu(const Tensor& target, int64_t dim) {
    check_target(target, dim);
    const auto sizes = position_sizes(target, dim);
    const auto labels = at::empty(sizes, target.options().dtype(at::kInt));
    segloss_one_hot args{};
    args.num_classes = target.size(dim);
    args.labels = labels.data_ptr<int32_t>();
    args.positions = describe(sizes, dim, {{&target, &args.target}});
    const bool accepted = Chunks(labels.numel(), args.num_classes).run([&](int64_t, int64_t begin, int64_t end) {
        return kernels().one_hot(&args, begin, end);
    });
    if (!accepted) {
        check_one_hot_values("cross_entropy", target, dim);
    }
    return labels;
}

Tensor one_hot_labels_meta(const Tensor& target, int64_t dim) {
    check_target(target, dim);
    auto sizes = target.sym_sizes().vec();
    sizes.erase(sizes.begin() + dim);
    return at::empty_symint(sizes, target.options().dtype(at::kInt));
}

// Devices without a kernel.
Tensor one_hot_labels_composite(const Tensor& target, int64_t dim) {
    check_target(target, dim);
    if (!at::isTensorSubclassLike(target)) {
        check_one_hot_values("cross_entropy", target, dim);
    }
    return target.to(at::kByte).argmax(dim).to(at::kInt);
}

} // namespace

Tensor one_hot_labels(const Tensor& target, int64_t dim) {
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("segloss::one_hot_labels", "").typed<decltype(one_hot_labels)>();
    return op.call(target, dim);
}

TORCH_LIBRARY_FRAGMENT(segloss, m) {
    m.def("one_hot_labels(Tensor target, int dim) -> Tensor", {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(segloss, CPU, m) { m.impl("one_hot_labels", TORCH_FN(one_hot_labels_cpu)); }

TORCH_LIBRARY_IMPL(segloss, Meta, m) { m.impl("one_hot_labels", TORCH_FN(one_hot_labels_meta)); }

TORCH_LIBRARY_IMPL(segloss, CompositeExplicitAutograd, m) {
    m.impl("one_hot_labels", TORCH_FN(one_hot_labels_composite));
}

} // namespace segloss
