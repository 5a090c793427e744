// Metrics of predicted classes or masks: accuracy, confusion matrix, Dice score, Jaccard index.

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "checks.h"
#include "confusion.h"
#include "label_table.h"
#include "targets.h"

namespace segloss {
namespace {

using OptionalSymInt = std::optional<c10::SymInt>;

// Advice for messages if one map has a channel for each class and the other does not.
std::string mend_one_hot(const Comparison& given) {
    const auto advice = [&given](const Tensor& map, const Tensor& other, const char* name) -> std::string {
        const auto num_dims = map.dim();
        const auto dim = given.dim < 0 ? given.dim + num_dims : given.dim;
        return num_dims > 1 && dim >= 0 && dim < num_dims && has_label_shape(map, other, dim)
                   ? c10::str(". Use ", name, ".byte().argmax(", dim, ") if ", name, " is one-hot")
                   : "";
    };
    const auto of_input = advice(given.input, given.target, "input");
    return of_input.empty() ? advice(given.target, given.input, "target") : of_input;
}

// Raises unless input has this dimension of samples, if each has counts of its own.
void check_samples(const Comparison& given, int64_t samples) {
    TORCH_CHECK(!given.per_sample || samples < given.input.dim(), given.op,
                ": expected a batch with per_sample=True, got one sample, input ", given.input.sym_sizes(),
                ". Use input.unsqueeze(0) and target.unsqueeze(0)");
}

// Brings two maps to one shape: if only one of them keeps a class dimension, of size 1, it is dropped.
Comparison in_one_shape(const Comparison& given) {
    check_tensors(given);
    auto maps = given;
    if (std::abs(maps.input.dim() - maps.target.dim()) == 1) {
        auto& larger = maps.input.dim() > maps.target.dim() ? maps.input : maps.target;
        larger = larger.squeeze(class_dim(maps.op, larger, maps.dim));
    }
    TORCH_CHECK(maps.input.sym_sizes() == maps.target.sym_sizes(), maps.op,
                ": expected input and target of one shape, up to a class dimension of size 1, got input ",
                given.input.sym_sizes(), " and target ", given.target.sym_sizes(), mend_one_hot(given));
    return maps;
}

// Two label maps of one shape. If each sample has counts of its own, samples are in the first dimension: a class
// dimension that both keep there is dropped.
Comparison maps_of_samples(const Comparison& given) {
    auto maps = in_one_shape(given);
    const auto num_dims = maps.input.dim();
    const bool both_keep = num_dims > 1 && num_dims == given.input.dim() && num_dims == given.target.dim();
    if (maps.per_sample && both_keep && maps.input.sym_size(0) == 1 && (given.dim == 0 || given.dim == -num_dims)) {
        maps.input = maps.input.squeeze(0);
        maps.target = maps.target.squeeze(0);
    }
    check_samples(maps, 0);
    return maps;
}

// The dimension along which two maps of one shape may hold a mask for each class instead of labels, if there is one.
// RuntimeError if both are bool, as masks are.
std::optional<int64_t> dim_of_masks(const Comparison& maps) {
    const auto& [op, input, target, labels, given_dim, coarse, per_sample] = maps;
    const auto num_dims = input.dim();
    const auto dim = given_dim < 0 ? given_dim + num_dims : given_dim;
    if (num_dims < 2 || dim < 0 || dim >= num_dims || input.sym_sizes() != target.sym_sizes() ||
        input.sym_size(dim) < 2) {
        return std::nullopt;
    }
    if (input.scalar_type() == at::kBool && target.scalar_type() == at::kBool) {
        raise_no_label_maps(maps, dim, "bool with more than one entry");
    }
    return dim;
}

// The number of classes, by the labels of two maps. RuntimeError if huge: one stray label must not take gigabytes.
int64_t classes_of_maps(const Comparison& maps, std::optional<int64_t> mask_dim, bool per_class) {
    const auto classes = num_label_classes(maps, mask_dim);
    const auto samples = maps.per_sample ? maps.input.sym_size(0).guard_int(__FILE__, __LINE__) : 1;
    const auto num_cells = samples * (per_class ? 3 : classes) * classes;
    if (num_cells <= kMaxCells) {
        return classes;
    }
    const auto largest = [&](const Tensor& map) {
        const auto values = map.is_same(maps.target) ? classes_of(map, maps.labels) : map.to(at::kLong);
        return values.eq(classes - 1).logical_and_(valid_voxels(maps));
    };
    const bool of_target = largest(maps.target).any().item<bool>();
    const auto& map = of_target ? maps.target : maps.input;
    TORCH_CHECK(false, maps.op, ": expected num_classes where labels ask for more than 2^24 counts, got label ",
                first_value(map, largest(map)), " ", first_place(of_target ? "target" : "input", largest(map)),
                ", for which the counts would take ", std::round(static_cast<double>(num_cells) / 1.25e7) / 10,
                " GB. Give num_classes=", classes, " if there are so many classes; else relabel, or set ignore_index ",
                "to the label of voxels to leave out");
}

Tensor counts_of_maps(const Comparison& given, const OptionalSymInt& num_classes, bool per_class) {
    auto maps = maps_of_samples(given);
    maps.dim = 0;
    const auto classes = num_classes ? *num_classes : classes_of_maps(maps, dim_of_masks(given), per_class);
    return confusion_counts(maps, classes, per_class);
}

// Whether input has the shape of a label map for this target, and cannot be logits for it.
bool has_map_shape(const Tensor& input, const Tensor& target, int64_t dim) {
    const auto num_dims = target.dim();
    if (num_dims == input.dim()) {
        const bool is_unbatched = num_dims < 2 && input.sym_sizes() == target.sym_sizes();
        return is_unbatched && (num_dims == 0 || !target.is_floating_point());
    }
    const auto d = num_dims == 1 ? 0 : dim < 0 ? dim + num_dims : dim;
    return num_dims == input.dim() + 1 && d >= 0 && d < num_dims && target.sym_size(d) == 1 &&
           has_label_shape(target, input, d);
}

// The class dimension of floating input. RuntimeError if it holds predicted labels, or a single class.
int64_t class_dim_of_logits(const Comparison& given) {
    const auto& [op, input, target, labels, given_dim, coarse, per_sample] = given;
    check_logits(op, input);
    check_label_tensor(op, target);
    TORCH_CHECK(!has_map_shape(input, target, given_dim), op,
                ": expected logits [N, C, ...] or [C] as floating input, got ", input.scalar_type(), " input ",
                input.sym_sizes(), " for target ", target.sym_sizes(),
                ". Use input.long() for a map of predicted labels");
    const auto dim = class_dim(op, input, given_dim);
    TORCH_CHECK(input.sym_size(dim) != 1, op, ": expected logits of two classes or more, got ", input.scalar_type(),
                " input ", input.sym_sizes(), " with one channel in dimension ", dim,
                ", where argmax is always 0. Use (input > 0).long() with num_classes=2 for the logits of one ",
                "foreground class, or input.long() for a map of predicted labels");
    return dim;
}

// A floating target of input's shape must be one-hot: class probabilities have no single label to compare with.
Tensor counts_of_logits(const Comparison& given, const OptionalSymInt& num_classes, bool per_class, int64_t upsample) {
    auto full = given;
    if (upsample != 0) {
        check_tensors(given);
        full.dim = class_dim(given.op, given.input, given.dim);
        full.coarse = take_full_size(given.op, full.input, full.target, full.dim, upsample);
    }
    auto [op, input, target, labels, dim, coarse, per_sample] = full;
    dim = class_dim_of_logits(full);
    const auto classes = input.sym_size(dim);
    const auto kind = classify_target(op, input, target, dim);
    TORCH_CHECK_VALUE(num_classes.value_or(classes) == classes, op, ": expected num_classes=", classes,
                      ", the classes of input ", input.sym_sizes(), " in dimension ", dim, ", got ",
                      num_classes.value_or(0),
                      ". Leave num_classes out with logits, or give dim; use input.long() for "
                      "a map of predicted labels");
    if (kind != Target::labels) {
        target = one_hot_labels(op, target, dim, "or input.long() if input is a map of predicted labels");
    }
    check_samples(full, sample_dim(dim));
    return confusion_counts({op, input, target, labels, dim, coarse, per_sample}, classes, per_class);
}

Tensor counts_of_labels(const Comparison& given, const OptionalSymInt& num_classes, bool per_class, int64_t upsample) {
    if (!is_integer(given.input)) {
        return counts_of_logits(given, num_classes, per_class, upsample);
    }
    TORCH_CHECK_VALUE(upsample == 0, given.op, ": expected logits with upsample, got ", given.input.scalar_type(),
                      " input ", given.input.sym_sizes(), ", a label map");
    return counts_of_maps(given, num_classes, per_class);
}

// The classes are in `dim` if both tensors have it; otherwise these are masks of one class.
Tensor counts_of_masks(const Comparison& given, const OptionalSymInt& num_classes) {
    check_dense(given.op, given.input, "input");
    TORCH_CHECK_TYPE(is_integer(given.input), given.op,
                     ": expected an integer or bool input of 0 and 1 with masks=True, got ", given.input.scalar_type(),
                     ". Use (input > 0) for logits, (input > 0.5) for probabilities");
    check_label_table(given.op, given.target, given.labels.table, Target::masks);
    auto masks = in_one_shape(given);
    const auto num_dims = masks.input.dim();
    if (num_dims > 1 && num_dims == given.input.dim() && num_dims == given.target.dim()) {
        masks.dim = class_dim(given.op, given.input, given.dim);
    } else {
        masks.dim = std::min<int64_t>(num_dims, 1);
        masks.input = masks.input.unsqueeze(masks.dim);
        masks.target = masks.target.unsqueeze(masks.dim);
    }
    check_samples(masks, sample_dim(masks.dim));
    const auto classes = masks.input.sym_size(masks.dim);
    TORCH_CHECK_VALUE(num_classes.value_or(classes) == classes, given.op, ": expected num_classes=", classes,
                      ", the masks of input ", given.input.sym_sizes(), ", got ", num_classes.value_or(0),
                      ". Leave num_classes out with masks=True, or give dim");
    return mask_counts(masks);
}

// The quotient in the default dtype, rounded once.
Tensor quotient(const Tensor& numerator, const Tensor& denominator) {
    const auto wide = numerator.is_mps() ? at::kFloat : at::kDouble; // MPS has no float64
    return (numerator.to(wide) / denominator.to(wide)).to(c10::get_default_dtype_as_scalartype());
}

// For each class, or each sample and class: true positives, false positives, false negatives; for masks also true
// negatives.
Tensor class_counts(const Comparison& given, const OptionalSymInt& num_classes, bool masks, int64_t upsample) {
    at::NoGradGuard no_grad;
    TORCH_CHECK_VALUE(!masks || upsample == 0, given.op, ": expected no upsample with masks=True, got masks ",
                      given.input.sym_sizes(),
                      ". Use predict(..., upsample=..., threshold=...) for masks of the target's size");
    return masks ? counts_of_masks(given, num_classes)
                 : counts_of_labels(given, num_classes, /*per_class=*/true, upsample);
}

Tensor accuracy(const Tensor& input, const Tensor& target, OptionalSymInt num_classes, int64_t ignore_index,
                int64_t dim, bool masks, const OptionalTensor& label_table, int64_t upsample, bool per_sample) {
    at::NoGradGuard no_grad;
    const Comparison given{"accuracy", input, target, {ignore_index, label_table}, dim, std::nullopt, per_sample};
    const bool are_maps = is_integer(input) && !masks && upsample == 0;
    if (are_maps && !num_classes) { // any two labels can be compared, however many classes there are
        const auto maps = maps_of_samples(given);
        const auto n = equal_label_counts(maps, dim_of_masks(given));
        return quotient(n[0], n[1]);
    }
    const auto n = class_counts(given, num_classes, masks, upsample);
    return masks ? quotient(n[0] + n[3], n.sum(0)) : quotient(n[0].sum(-1), (n[0] + n[2]).sum(-1));
}

// With masks a matrix of two classes for each mask, [C, 2, 2].
Tensor confusion_matrix(const Tensor& input, const Tensor& target, OptionalSymInt num_classes, int64_t ignore_index,
                        int64_t dim, bool masks, const OptionalTensor& label_table, int64_t upsample, bool per_sample,
                        c10::string_view op) {
    const Comparison given{std::string(op), input, target, {ignore_index, label_table}, dim, std::nullopt, per_sample};
    if (!masks) {
        at::NoGradGuard no_grad;
        return counts_of_labels(given, num_classes, /*per_class=*/false, upsample);
    }
    const auto n = class_counts(given, num_classes, masks, upsample);
    return at::stack({n[3], n[1], n[2], n[0]}, -1).unflatten(-1, {2, 2});
}

Tensor dice_score(const Tensor& input, const Tensor& target, OptionalSymInt num_classes, int64_t ignore_index,
                  int64_t dim, bool masks, const OptionalTensor& label_table, int64_t upsample, bool per_sample) {
    const auto n =
        class_counts({"dice_score", input, target, {ignore_index, label_table}, dim, std::nullopt, per_sample},
                     num_classes, masks, upsample);
    return quotient(2 * n[0], 2 * n[0] + n[1] + n[2]);
}

Tensor jaccard_index(const Tensor& input, const Tensor& target, OptionalSymInt num_classes, int64_t ignore_index,
                     int64_t dim, bool masks, const OptionalTensor& label_table, int64_t upsample, bool per_sample) {
    const auto n =
        class_counts({"jaccard_index", input, target, {ignore_index, label_table}, dim, std::nullopt, per_sample},
                     num_classes, masks, upsample);
    return quotient(n[0], n[0] + n[1] + n[2]);
}

void implement_metrics(torch::Library& m) {
    m.impl("accuracy", TORCH_FN(accuracy));
    m.impl("confusion_matrix", TORCH_FN(confusion_matrix));
    m.impl("dice_score", TORCH_FN(dice_score));
    m.impl("jaccard_index", TORCH_FN(jaccard_index));
}

} // namespace

TORCH_LIBRARY_FRAGMENT(segloss, m) {
    const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
    const std::string arguments =
        "(Tensor input, Tensor target, SymInt? num_classes=None, int ignore_index=-100, int dim=1, bool masks=False, "
        "Tensor? label_table=None, int upsample=0, bool per_sample=False";
    m.def(("confusion_matrix" + arguments + ", str op=\"confusion_matrix\") -> Tensor").c_str(), tags);
    for (const std::string name : {"accuracy", "dice_score", "jaccard_index"}) {
        m.def((name + arguments + ") -> Tensor").c_str(), tags);
    }
}

TORCH_LIBRARY_IMPL(segloss, CompositeImplicitAutograd, m) { implement_metrics(m); }

// Under vmap, too, a metric is decomposed, not run in a loop over samples.
TORCH_LIBRARY_IMPL(segloss, FuncTorchBatchedDecomposition, m) { implement_metrics(m); }

} // namespace segloss
