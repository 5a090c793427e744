// Predicted classes against labels: the confusion matrix, and the scores that follow from counts per class.

#include "confusion.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <cmath>
#include <string>
#include <utility>

#include "checks.h"
#include "layout.h"
#include "targets.h"

namespace segloss {
namespace {

using OptionalSymInt = std::optional<c10::SymInt>;

// What a number of classes that the labels alone say may take, and what the tables of all threads may take together: of
// int64, 128 MiB.
constexpr int64_t kMaxCells = int64_t{1} << 24;

constexpr auto kMapAdvice = "or input.long() if input is a map of predicted labels";

// ---- checks ---------------------------------------------------------------------------------------------------------

bool is_label_map(const Tensor& input) { return at::isIntegralType(input.scalar_type(), /*includeBool=*/true); }

// The voxels that count.
Tensor valid_voxels(const Tensor& target, int64_t ignore_index) {
    return is_ignored(target, ignore_index).logical_not_();
}

// The first element where `found`: its value and its index, as a message gives them.
std::pair<std::string, std::vector<int64_t>> first_of(const Tensor& values, const Tensor& found) {
    const auto flat = first_true(found);
    return {label_text(values, flat), index_of(flat, values.sizes())};
}

// Raises if a predicted label of a valid voxel is outside [0, num_classes).
void check_predicted_values(const std::string& op, const Tensor& input, const Tensor& target, int64_t num_classes,
                            int64_t ignore_index) {
    const auto values = input.to(at::kLong);
    const auto outside = values.lt(0).logical_or_(values.ge(num_classes));
    const auto bad = outside.logical_and_(valid_voxels(target, ignore_index));
    const auto num_bad = bad.sum().item<int64_t>();
    if (num_bad == 0) {
        return;
    }
    const auto [value, index] = first_of(input, bad);
    TORCH_CHECK_INDEX(false, op, ": Predicted label ", value, " is out of bounds: ", num_bad,
                      num_bad == 1 ? " label" : " labels", " of input at voxels that count ",
                      num_bad == 1 ? "is" : "are", " outside [0, ", num_classes, "), the first at index ",
                      at::IntArrayRef(index), " of input ", input.sizes(), ". Expected labels 0 to ",
                      std::max<int64_t>(num_classes - 1, 0), ". Relabel the prediction, or give a larger num_classes");
}

// What the operators beneath ask, that nothing be read beside a tensor.
void check_operator_arguments(const std::string& op, const Tensor& input, const Tensor& target, int64_t dim) {
    check_dense(op, input, "input");
    check_label_tensor(op, target);
    check_same_device(op, input, target, "target");
    if (is_label_map(input)) {
        TORCH_CHECK(input.sizes() == target.sizes(), op, ": expected label maps of one shape, got input ",
                    input.sizes(), " and target ", target.sizes());
        return;
    }
    TORCH_CHECK_INDEX(dim >= 0 && dim < input.dim(), op, ": expected dim in [0, ", input.dim() - 1, "], got ", dim);
    check_logits(op, input);
    TORCH_CHECK(classify_target(op, input, target, dim) == Target::labels, op, ": expected class labels, got target ",
                target.sizes(), " for input ", input.sizes());
}

void check_maps(const std::string& op, const Tensor& input, const Tensor& target) {
    check_dense(op, input, "input");
    TORCH_CHECK_TYPE(is_label_map(input), op, ": expected a map of predicted labels, got ", input.scalar_type());
    check_operator_arguments(op, input, target, 0);
}

[[noreturn]] void raise_no_label_maps(const std::string& op, const Tensor& input, int64_t dim, const char* kind) {
    const auto masks = op == "confusion_matrix" ? c10::str("input.long().argmax(", dim, ") and target.long().argmax(",
                                                           dim, ") where they are one-hot")
                                                : "masks=True for one mask for each class";
    TORCH_CHECK(false, op, ": expected label maps, got input and target ", input.sym_sizes(), " that are both ", kind,
                " along dimension ", dim, ", as masks of ", input.sym_size(dim), " classes are. Give num_classes= for ",
                "label maps, or ", masks);
}

// The dimension along which two maps of one shape could hold a mask for each class instead of labels, if there is one.
// RuntimeError where their dtype says that much.
std::optional<int64_t> dim_of_masks(const std::string& op, const Tensor& input, const Tensor& target, int64_t dim) {
    const auto num_dims = input.dim();
    const auto d = dim < 0 ? dim + num_dims : dim;
    if (num_dims < 2 || d < 0 || d >= num_dims || input.sym_sizes() != target.sym_sizes() || input.sym_size(d) < 2) {
        return std::nullopt;
    }
    if (input.scalar_type() == at::kBool && target.scalar_type() == at::kBool) {
        raise_no_label_maps(op, input, d, "bool with more than one entry");
    }
    return d;
}

// RuntimeError where two maps are both one-hot along the dimension that dim_of_masks gave.
void check_label_maps(const std::string& op, const Tensor& input, const Tensor& target, std::optional<int64_t> dim) {
    check_maps(op, input, target);
    if (dim && input.numel() > 0 && is_one_hot(op, input, *dim) && is_one_hot(op, target, *dim)) {
        raise_no_label_maps(op, input, *dim, "one-hot");
    }
}

int64_t checked_num_classes(const std::string& op, const c10::SymInt& num_classes, const Tensor& input, int64_t dim) {
    const auto value = num_classes.guard_int(__FILE__, __LINE__);
    TORCH_CHECK_VALUE(value >= 0 && value <= INT32_MAX, op, ": expected num_classes in [0, ", INT32_MAX, "], got ",
                      value);
    TORCH_CHECK_VALUE(is_label_map(input) || value == input.size(dim), op, ": expected num_classes=", input.size(dim),
                      " for input ", input.sizes(), " with its classes in dimension ", dim, ", got ", value);
    return value;
}

// ---- counts: CPU ----------------------------------------------------------------------------------------------------

segloss_confusion kernel_arguments(const Tensor& input, const Tensor& target, int64_t num_classes, int64_t ignore_index,
                                   int64_t dim) {
    segloss_confusion args{};
    args.num_classes = num_classes;
    args.ignore_index = ignore_index;
    args.prediction_is_labels = is_label_map(input);
    const auto sizes = args.prediction_is_labels ? at::DimVector(input.sizes()) : position_sizes(input, dim);
    args.positions = describe(sizes, dim, {{&input, &args.prediction}, {&target, &args.target}});
    return args;
}

// Logits or a label map against labels; `dim` counted from the front, not used for maps. int64 [C, C], row = label,
// column = prediction; or per class [3, C]: true positives, false positives, false negatives.
Tensor confusion_counts_cpu(c10::string_view op_name, const Tensor& input, const Tensor& target,
                            c10::SymInt sym_num_classes, int64_t ignore_index, int64_t dim, bool per_class) {
    const std::string op(op_name);
    const auto args = confusion_for_kernel(op, input, target, sym_num_classes, ignore_index, dim, per_class);
    const auto num_classes = args.num_classes;

    // A table for each thread: integers add up to the same in any order. No two tables share a line of the cache. Large
    // ones are for fewer threads, in the end for one.
    constexpr int64_t kLine = 16;
    const auto num_rows = per_class ? 3 : num_classes;
    const auto num_cells = num_rows * num_classes;
    const Chunks chunks(target.numel(), args.prediction_is_labels ? 1 : num_classes);
    const auto most_threads = std::max<int64_t>(kMaxCells / std::max<int64_t>(num_cells, 1), 1);
    const auto num_tables = std::max<int64_t>(std::min({num_threads(), most_threads, chunks.count()}), 1);
    const auto tables = at::zeros({num_tables, (num_cells / kLine + 1) * kLine}, at::kLong);
    auto* const cells = tables.data_ptr<int64_t>();
    const auto kernel = kernels().confusion[real_of(input.scalar_type())];
    const auto count = [&](int64_t, int64_t begin, int64_t end) {
        return kernel(&args, begin, end, cells + at::get_thread_num() * tables.stride(0));
    };
    if (!chunks.run(count, num_tables)) {
        raise_refused_labels(op, input, target, num_classes, ignore_index);
    }
    const auto counts = tables.narrow(1, 0, num_cells);
    return (num_tables == 1 ? counts[0] : counts.sum(0)).view({num_rows, num_classes});
}

// The classes of two label maps: 1 + their largest label at the voxels that count. int64, 0-dim.
Tensor num_label_classes_cpu(c10::string_view op_name, const Tensor& input, const Tensor& target, int64_t ignore_index,
                             std::optional<int64_t> dim) {
    const std::string op(op_name);
    check_label_maps(op, input, target, dim);
    const auto args = kernel_arguments(input, target, INT32_MAX, ignore_index, 0);
    const Chunks chunks(target.numel(), 1);
    std::vector<int64_t> largest(chunks.count());
    const bool accepted = chunks.run([&](int64_t chunk, int64_t begin, int64_t end) {
        return kernels().largest_label(&args, begin, end, &largest[chunk]);
    });
    if (!accepted) {
        raise_refused_labels(op, input, target, args.num_classes, ignore_index);
    }
    return at::scalar_tensor(largest.empty() ? 0 : *std::max_element(largest.begin(), largest.end()) + 1, at::kLong);
}

// ---- counts: without values, and devices without a kernel -----------------------------------------------------------

Tensor confusion_counts_meta(c10::string_view /*op*/, const Tensor& input, const Tensor& /*target*/,
                             c10::SymInt num_classes, int64_t /*ignore_index*/, int64_t /*dim*/, bool per_class) {
    return at::empty_symint({per_class ? 3 : num_classes, num_classes}, input.options().dtype(at::kLong));
}

Tensor num_label_classes_meta(c10::string_view /*op*/, const Tensor& input, const Tensor& /*target*/,
                              int64_t /*ignore_index*/, std::optional<int64_t> /*dim*/) {
    return at::empty({}, input.options().dtype(at::kLong));
}

// How often each of [0, num_cells) is the cell of a voxel that counts.
Tensor histogram(const Tensor& cell, const Tensor& counts, int64_t num_cells) {
    const auto all = cell.masked_fill(counts.logical_not(), num_cells).flatten();
    return all.bincount(/*weights=*/{}, num_cells + 1).narrow(0, 0, num_cells);
}

Tensor confusion_counts_composite(c10::string_view op_name, const Tensor& input, const Tensor& target,
                                  c10::SymInt sym_num_classes, int64_t ignore_index, int64_t dim, bool per_class) {
    const std::string op(op_name);
    check_operator_arguments(op, input, target, dim);
    const auto num_classes = checked_num_classes(op, sym_num_classes, input, dim);
    check_label_values(op, target, num_classes, ignore_index);
    const auto valid = valid_voxels(target, ignore_index);
    const auto labels = target.to(at::kLong);
    Tensor predicted;
    if (is_label_map(input)) {
        check_predicted_values(op, input, target, num_classes, ignore_index);
        predicted = input.to(at::kLong);
    } else {
        predicted = input.argmax(dim, /*keepdim=*/target.dim() == input.dim());
    }
    if (!per_class) {
        return histogram(labels * num_classes + predicted, valid, num_classes * num_classes)
            .view({num_classes, num_classes});
    }
    const auto hit = predicted.eq(labels);
    const auto miss = hit.logical_not();
    return at::stack({histogram(labels, valid.logical_and(hit), num_classes),
                      histogram(predicted, valid.logical_and(miss), num_classes),
                      histogram(labels, valid.logical_and(miss), num_classes)});
}

Tensor num_label_classes_composite(c10::string_view op_name, const Tensor& input, const Tensor& target,
                                   int64_t ignore_index, std::optional<int64_t> dim) {
    const std::string op(op_name);
    check_label_maps(op, input, target, dim);
    check_label_values(op, target, INT32_MAX, ignore_index);
    check_predicted_values(op, input, target, INT32_MAX, ignore_index);
    const auto valid = valid_voxels(target, ignore_index);
    const auto larger = at::maximum(input.to(at::kLong), target.to(at::kLong)).masked_fill(valid.logical_not(), -1);
    return larger.numel() == 0 ? at::zeros({}, larger.options()) : larger.max() + 1;
}

// Beyond int64 the values of uint64 wrap: they are no others'.
Tensor equal_labels(const Tensor& a, const Tensor& b) {
    const auto integers = a.to(at::kLong);
    const auto equal = integers.eq(b.to(at::kLong));
    const bool one_wraps = (a.scalar_type() == at::kUInt64) != (b.scalar_type() == at::kUInt64);
    return one_wraps ? equal.logical_and(integers.ge(0)) : equal;
}

// int64 [2]: the voxels that count where two maps agree, and all that count.
Tensor equal_label_counts_composite(c10::string_view op_name, const Tensor& input, const Tensor& target,
                                    int64_t ignore_index, std::optional<int64_t> dim) {
    const std::string op(op_name);
    check_label_maps(op, input, target, dim);
    check_integral_labels(op, target);
    const auto valid = valid_voxels(target, ignore_index);
    return at::stack({equal_labels(input, target).logical_and_(valid).sum(), valid.sum()});
}

Tensor equal_label_counts_meta(c10::string_view /*op*/, const Tensor& input, const Tensor& /*target*/,
                               int64_t /*ignore_index*/, std::optional<int64_t> /*dim*/) {
    return at::empty({2}, input.options().dtype(at::kLong));
}

// ---- masks ----------------------------------------------------------------------------------------------------------

// Where the masks are 1. RuntimeError at the first value other than 0 and 1 where `counts`.
Tensor foreground(const std::string& op, const Tensor& masks, const char* name, const Tensor& counts) {
    const auto ones = masks.eq(1);
    const auto bad = masks.ne(0).logical_and_(ones.logical_not()).logical_and_(counts);
    if (bad.any().item<bool>()) {
        const auto [value, index] = first_of(masks, bad);
        TORCH_CHECK(false, op, ": expected 0 and 1 in ", name, " with masks=True, a mask for each class, got ", value,
                    " at index ", at::IntArrayRef(index), " of ", name, " ", masks.sizes(), ". Use ", name,
                    ".ne(0) where another value is the foreground, or masks=False for class labels");
    }
    return ones;
}

// Masks of one shape, with the classes in `dim`, counted from the front. int64 [4, C]: true positives, false positives,
// false negatives, true negatives. A voxel that is ignore_index in a class counts in none.
Tensor mask_counts_composite(c10::string_view op_name, const Tensor& input, const Tensor& target, int64_t ignore_index,
                             int64_t dim) {
    const std::string op(op_name);
    check_maps(op, input, target);
    TORCH_CHECK_INDEX(dim >= 0 && dim < input.dim(), op, ": expected dim in [0, ", input.dim() - 1, "], got ", dim);
    check_ignore_index(op, Target::masks, ignore_index);
    auto ignored = is_ignored(target, ignore_index);
    if (target.is_floating_point()) {
        ignored = ignored.logical_and(target.eq(target.floor()));
    }
    const auto valid = ignored.any(dim, /*keepdim=*/true).logical_not();
    const auto p = foreground(op, input, "input", valid);
    const auto t = foreground(op, target, "target", ignored.logical_not());
    std::vector<int64_t> voxel_dims;
    for (int64_t d = 0; d < input.dim(); ++d) {
        if (d != dim) {
            voxel_dims.push_back(d);
        }
    }
    const auto count = [&](const Tensor& where) {
        return voxel_dims.empty() ? where.to(at::kLong)
                                  : where.sum(voxel_dims); // the sum over no dimension is over all
    };
    const auto predicted = count(p.logical_and(valid));
    const auto actual = count(t.logical_and_(valid));
    const auto both = count(t.logical_and(p));
    return at::stack({both, predicted - both, actual - both, count(valid) - predicted - actual + both});
}

Tensor mask_counts_meta(c10::string_view /*op*/, const Tensor& input, const Tensor& /*target*/,
                        int64_t /*ignore_index*/, int64_t dim) {
    return at::empty_symint({4, input.sym_size(dim)}, input.options().dtype(at::kLong));
}

// ---- the metrics ----------------------------------------------------------------------------------------------------

Tensor call_confusion_counts(const char* op, const Tensor& input, const Tensor& target, const c10::SymInt& num_classes,
                             int64_t ignore_index, int64_t dim, bool per_class) {
    static const auto handle = c10::Dispatcher::singleton()
                                   .findSchemaOrThrow("segloss::confusion_counts", "")
                                   .typed<decltype(confusion_counts_cpu)>();
    return handle.call(op, input, target, num_classes, ignore_index, dim, per_class);
}

Tensor call_num_label_classes(const char* op, const Tensor& input, const Tensor& target, int64_t ignore_index,
                              std::optional<int64_t> dim) {
    static const auto handle = c10::Dispatcher::singleton()
                                   .findSchemaOrThrow("segloss::num_label_classes", "")
                                   .typed<decltype(num_label_classes_cpu)>();
    return handle.call(op, input, target, ignore_index, dim);
}

Tensor call_equal_label_counts(const char* op, const Tensor& input, const Tensor& target, int64_t ignore_index,
                               std::optional<int64_t> dim) {
    static const auto handle = c10::Dispatcher::singleton()
                                   .findSchemaOrThrow("segloss::equal_label_counts", "")
                                   .typed<decltype(equal_label_counts_composite)>();
    return handle.call(op, input, target, ignore_index, dim);
}

Tensor call_mask_counts(const char* op, const Tensor& input, const Tensor& target, int64_t ignore_index, int64_t dim) {
    static const auto handle = c10::Dispatcher::singleton()
                                   .findSchemaOrThrow("segloss::mask_counts", "")
                                   .typed<decltype(mask_counts_composite)>();
    return handle.call(op, input, target, ignore_index, dim);
}

// A predicted and a target map in one shape: where one of them keeps a class dimension, it is dropped.
std::pair<Tensor, Tensor> in_one_shape(const std::string& op, const Tensor& predicted, const Tensor& target,
                                       int64_t dim) {
    check_dense(op, predicted, "input");
    check_label_tensor(op, target);
    check_same_device(op, predicted, target, "target");
    const bool one_keeps_dim = std::abs(predicted.dim() - target.dim()) == 1;
    const auto drop_class_dim = [&](const Tensor& map) {
        const bool drop = one_keeps_dim && map.dim() == std::max(predicted.dim(), target.dim());
        return drop ? map.squeeze(class_dim(op, map, dim)) : map;
    };
    const auto p = drop_class_dim(predicted);
    const auto t = drop_class_dim(target);
    TORCH_CHECK(p.sym_sizes() == t.sym_sizes(), op,
                ": expected input and target of one shape, up to a class dimension of size 1, got input ",
                predicted.sym_sizes(), " and target ", target.sym_sizes());
    return {p, t};
}

// The labels of two maps say how many classes there are. One stray label must not ask for gigabytes.
int64_t classes_of_maps(const char* op, const Tensor& input, const Tensor& target, int64_t ignore_index,
                        std::optional<int64_t> dim, bool per_class) {
    const auto classes = call_num_label_classes(op, input, target, ignore_index, dim).item<int64_t>();
    const auto num_cells = (per_class ? 3 : classes) * classes;
    if (num_cells <= kMaxCells) {
        return classes;
    }
    const auto largest = [&](const Tensor& map) {
        return map.to(at::kLong).eq(classes - 1).logical_and_(valid_voxels(target, ignore_index));
    };
    const bool of_target = largest(target).any().item<bool>();
    const auto& map = of_target ? target : input;
    const auto [label, index] = first_of(map, largest(map));
    TORCH_CHECK(false, op, ": expected num_classes where labels ask for more than 2^24 counts, got label ", label,
                " at index ", at::IntArrayRef(index), " of ", of_target ? "target " : "input ", map.sizes(),
                ", for which the counts would take ", std::round(static_cast<double>(num_cells) / 1.25e7) / 10,
                " GB. Give num_classes=", classes, " if there are so many classes; else relabel, or set ignore_index ",
                "to the label of voxels to leave out");
}

Tensor counts_of_maps(const char* op, const Tensor& input, const Tensor& target, const OptionalSymInt& num_classes,
                      int64_t ignore_index, int64_t dim, bool per_class) {
    const auto [p, t] = in_one_shape(op, input, target, dim);
    const auto known = num_classes
                           ? *num_classes
                           : classes_of_maps(op, p, t, ignore_index, dim_of_masks(op, input, target, dim), per_class);
    return call_confusion_counts(op, p, t, known, ignore_index, /*dim=*/0, per_class);
}

// Whether input has the shape that a map of the target's labels has, and logits for the target have not.
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

// The class dimension of floating input. RuntimeError where it holds predicted labels, or one class alone.
int64_t class_dim_of_logits(const std::string& op, const Tensor& input, const Tensor& target, int64_t dim) {
    check_logits(op, input);
    check_label_tensor(op, target);
    TORCH_CHECK(!has_map_shape(input, target, dim), op, ": expected logits [N, C, ...] or [C] as floating input, got ",
                input.scalar_type(), " input ", input.sym_sizes(), " for target ", target.sym_sizes(),
                ". Use input.long() for a map of predicted labels");
    const auto class_dimension = class_dim(op, input, dim);
    TORCH_CHECK(input.sym_size(class_dimension) != 1, op, ": expected logits of two classes or more, got ",
                input.scalar_type(), " input ", input.sym_sizes(), " with one channel in dimension ", class_dimension,
                ", where argmax is always 0. Use (input > 0).long() with num_classes=2 for the logits of one ",
                "foreground class, or input.long() for a map of predicted labels");
    return class_dimension;
}

Tensor counts_of_logits(const char* op, const Tensor& input, const Tensor& target, const OptionalSymInt& num_classes,
                        int64_t ignore_index, int64_t dim, bool per_class) {
    const auto class_dimension = class_dim_of_logits(op, input, target, dim);
    const auto kind = classify_target(op, input, target, class_dimension);
    const auto classes = input.sym_size(class_dimension);
    TORCH_CHECK_VALUE(
        !num_classes || *num_classes == classes, op, ": expected num_classes=", classes, ", the classes of input ",
        input.sym_sizes(), " in dimension ", class_dimension, ", got ", num_classes.value_or(0),
        ". Leave num_classes out with logits, or give dim; use input.long() for a map of predicted labels");
    // Floats of input's shape count where they are one-hot: probabilities have no one label to compare with.
    const auto labels = kind == Target::labels ? target : one_hot_labels(op, target, class_dimension, kMapAdvice);
    return call_confusion_counts(op, input, labels, classes, ignore_index, class_dimension, per_class);
}

Tensor counts_of(const char* op, const Tensor& input, const Tensor& target, const OptionalSymInt& num_classes,
                 int64_t ignore_index, int64_t dim, bool per_class) {
    at::NoGradGuard no_grad;
    const auto counts = is_label_map(input) ? counts_of_maps : counts_of_logits;
    return counts(op, input, target, num_classes, ignore_index, dim, per_class);
}

// With the classes in `dim` where both have it; else the masks of one class, which need not have it.
Tensor counts_of_masks(const char* op, const Tensor& input, const Tensor& target, const OptionalSymInt& num_classes,
                       int64_t ignore_index, int64_t dim) {
    check_dense(op, input, "input");
    TORCH_CHECK_TYPE(is_label_map(input), op, ": expected an integer or bool input of 0 and 1 with masks=True, got ",
                     input.scalar_type(), ". Use (input > 0) for logits, (input > 0.5) for probabilities");
    auto [p, t] = in_one_shape(op, input, target, dim);
    int64_t class_dimension = std::min<int64_t>(p.dim(), 1);
    if (p.dim() > 1 && p.dim() == input.dim() && p.dim() == target.dim()) {
        class_dimension = class_dim(op, input, dim);
    } else {
        p = p.unsqueeze(class_dimension);
        t = t.unsqueeze(class_dimension);
    }
    const auto classes = p.sym_size(class_dimension);
    TORCH_CHECK_VALUE(!num_classes || *num_classes == classes, op, ": expected num_classes=", classes,
                      ", the masks of input ", input.sym_sizes(), ", got ", num_classes.value_or(0),
                      ". Leave num_classes out with masks=True, or give dim");
    return call_mask_counts(op, p, t, ignore_index, class_dimension);
}

// Of each class: true positives, false positives, false negatives; true negatives of masks alone.
Tensor class_counts(const char* op, const Tensor& input, const Tensor& target, const OptionalSymInt& num_classes,
                    int64_t ignore_index, int64_t dim, bool masks) {
    at::NoGradGuard no_grad;
    return masks ? counts_of_masks(op, input, target, num_classes, ignore_index, dim)
                 : counts_of(op, input, target, num_classes, ignore_index, dim, /*per_class=*/true);
}

// In the default dtype, rounded once.
Tensor quotient(const Tensor& numerator, const Tensor& denominator) {
    const auto dtype = c10::typeMetaToScalarType(c10::get_default_dtype());
    const auto wide = numerator.is_mps() ? at::kFloat : at::kDouble; // MPS has no float64
    return (numerator.to(wide) / denominator.to(wide)).to(dtype);
}

Tensor confusion_matrix(const Tensor& input, const Tensor& target, OptionalSymInt num_classes, int64_t ignore_index,
                        int64_t dim) {
    return counts_of("confusion_matrix", input, target, num_classes, ignore_index, dim, /*per_class=*/false);
}

Tensor dice_score(const Tensor& input, const Tensor& target, OptionalSymInt num_classes, int64_t ignore_index,
                  int64_t dim, bool masks) {
    const auto n = class_counts("dice_score", input, target, num_classes, ignore_index, dim, masks);
    return quotient(2 * n[0], 2 * n[0] + n[1] + n[2]);
}

Tensor jaccard_index(const Tensor& input, const Tensor& target, OptionalSymInt num_classes, int64_t ignore_index,
                     int64_t dim, bool masks) {
    const auto n = class_counts("jaccard_index", input, target, num_classes, ignore_index, dim, masks);
    return quotient(n[0], n[0] + n[1] + n[2]);
}

// Of maps any two labels can be compared, however many classes there are.
Tensor accuracy_of_maps(const Tensor& input, const Tensor& target, int64_t ignore_index, int64_t dim) {
    at::NoGradGuard no_grad;
    const auto [p, t] = in_one_shape("accuracy", input, target, dim);
    const auto mask_dim = dim_of_masks("accuracy", input, target, dim);
    const auto n = call_equal_label_counts("accuracy", p, t, ignore_index, mask_dim);
    return quotient(n[0], n[1]);
}

Tensor accuracy(const Tensor& input, const Tensor& target, OptionalSymInt num_classes, int64_t ignore_index,
                int64_t dim, bool masks) {
    if (is_label_map(input) && !num_classes && !masks) {
        return accuracy_of_maps(input, target, ignore_index, dim);
    }
    const auto n = class_counts("accuracy", input, target, num_classes, ignore_index, dim, masks);
    return masks ? quotient(n[0] + n[3], n.sum(0)) : quotient(n[0].sum(), (n[0] + n[2]).sum());
}

} // namespace

segloss_confusion confusion_for_kernel(const std::string& op, const Tensor& input, const Tensor& target,
                                       const c10::SymInt& num_classes, int64_t ignore_index, int64_t dim,
                                       bool per_class) {
    check_operator_arguments(op, input, target, dim);
    auto args = kernel_arguments(input, target, checked_num_classes(op, num_classes, input, dim), ignore_index, dim);
    args.per_class = per_class;
    return args;
}

void raise_refused_labels(const std::string& op, const Tensor& input, const Tensor& target, int64_t num_classes,
                          int64_t ignore_index) {
    check_label_values(op, target, num_classes, ignore_index);
    check_predicted_values(op, input, target, num_classes, ignore_index);
    TORCH_CHECK_INDEX(false, op, ": a label of input ", input.sizes(), " or target ", target.sizes(),
                      " is outside [0, ", num_classes, ")");
}

TORCH_LIBRARY_FRAGMENT(segloss, m) {
    const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
    const std::string arguments =
        "(Tensor input, Tensor target, SymInt? num_classes=None, int ignore_index=-100, int dim=1";
    m.def(("confusion_matrix" + arguments + ") -> Tensor").c_str(), tags);
    for (const std::string name : {"accuracy", "dice_score", "jaccard_index"}) {
        m.def((name + arguments + ", bool masks=False) -> Tensor").c_str(), tags);
    }
    m.def("confusion_counts(str op, Tensor input, Tensor target, SymInt num_classes, int ignore_index, int dim, "
          "bool per_class) -> Tensor",
          tags);
    for (const std::string name : {"num_label_classes", "equal_label_counts"}) {
        m.def((name + "(str op, Tensor input, Tensor target, int ignore_index, int? dim=None) -> Tensor").c_str(),
              tags);
    }
    m.def("mask_counts(str op, Tensor input, Tensor target, int ignore_index, int dim) -> Tensor", tags);
}

namespace {

void implement_metrics(torch::Library& m) {
    m.impl("accuracy", TORCH_FN(accuracy));
    m.impl("confusion_matrix", TORCH_FN(confusion_matrix));
    m.impl("dice_score", TORCH_FN(dice_score));
    m.impl("jaccard_index", TORCH_FN(jaccard_index));
}

} // namespace

TORCH_LIBRARY_IMPL(segloss, CompositeImplicitAutograd, m) { implement_metrics(m); }

// Under vmap, too, a metric is what it is made of, not a loop over samples.
TORCH_LIBRARY_IMPL(segloss, FuncTorchBatchedDecomposition, m) { implement_metrics(m); }

TORCH_LIBRARY_IMPL(segloss, CPU, m) {
    m.impl("confusion_counts", TORCH_FN(confusion_counts_cpu));
    m.impl("num_label_classes", TORCH_FN(num_label_classes_cpu));
}

TORCH_LIBRARY_IMPL(segloss, Meta, m) {
    m.impl("confusion_counts", TORCH_FN(confusion_counts_meta));
    m.impl("num_label_classes", TORCH_FN(num_label_classes_meta));
    m.impl("equal_label_counts", TORCH_FN(equal_label_counts_meta));
    m.impl("mask_counts", TORCH_FN(mask_counts_meta));
}

TORCH_LIBRARY_IMPL(segloss, CompositeExplicitAutograd, m) {
    m.impl("confusion_counts", TORCH_FN(confusion_counts_composite));
    m.impl("num_label_classes", TORCH_FN(num_label_classes_composite));
    m.impl("equal_label_counts", TORCH_FN(equal_label_counts_composite));
    m.impl("mask_counts", TORCH_FN(mask_counts_composite));
}

} // namespace segloss
