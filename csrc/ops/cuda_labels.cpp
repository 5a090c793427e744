// The operators on CUDA tensors that read labels, count them or predict them; see cuda.cpp.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <optional>
#include <string>

#include "checks.h"
#include "confusion.h"
#include "cuda.h"
#include "cuda_resize.h"
#include "label_table.h"
#include "layout.h"
#include "predict.h"
#include "targets.h"
#include "total_weight.h"

namespace segloss {
namespace {

// ---- labels ---------------------------------------------------------------------------------------------------------

Tensor total_weight_cuda(c10::string_view op_view, const Tensor& target, const OptionalTensor& weight,
                         const OptionalTensor& voxel_weight, int64_t num_classes, int64_t ignore_index,
                         const OptionalTensor& label_table) {
    const std::string op(op_view);
    const Labels labels{ignore_index, label_table};
    const WeightArguments arguments(op, target, weight, voxel_weight, num_classes, labels);
    auto total = at::empty({}, target.options().dtype(at::kDouble));
    segloss_cuda_sums sums{};
    sums.weight = total.mutable_data_ptr<double>();
    Launches launches(op, target);
    const auto call = launches.call(arguments.args, target.sizes(), at::kDouble);
    launches.check(segloss_cuda_cross_entropy_weight(&arguments.args, &call, &sums));
    if (launches.refused_at_once()) {
        check_label_values(op, target, num_classes, labels);
    }
    return total;
}

Tensor class_labels_cuda(c10::string_view op_view, const Tensor& target, c10::SymInt num_classes, int64_t ignore_index,
                         const OptionalTensor& label_table) {
    const std::string op(op_view);
    const Labels labels{ignore_index, label_table};
    check_class_labels(op, target, label_table);
    segloss_confusion args{};
    args.num_classes = num_classes.guard_int(__FILE__, __LINE__);
    args.ignore_index = ignore_index;
    args.labels = label_table_for_kernel(op, label_table, args.num_classes, target.numel());
    args.positions = describe(target.sizes(), 0, {{&target, &args.target}});
    auto classes = at::empty(target.sizes(), target.options().dtype(at::kLong));
    Launches launches(op, target);
    const auto call = launches.call(args, target.sizes(), at::kFloat);
    launches.check(segloss_cuda_classes(&args, &call, classes.mutable_data_ptr<int64_t>()));
    if (launches.refused_at_once()) {
        check_label_values(op, target, args.num_classes, labels);
    }
    return classes;
}

// ---- one-hot targets ------------------------------------------------------------------------------------------------

// Writes the labels, and reports a target that is not one-hot; or only writes whether it is.
void read_one_hot(Launches& launches, const Tensor& target, int64_t dim, const Tensor& labels, void* is_one_hot) {
    segloss_one_hot args{};
    const auto sizes = position_sizes(target, dim);
    args.num_classes = target.size(dim);
    args.labels = labels.defined() ? labels.mutable_data_ptr<int32_t>() : nullptr;
    args.positions = describe(sizes, dim, {{&target, &args.target}});
    auto call = launches.call(args.num_classes, /*ignore_index=*/-100, sizes, at::kFloat);
    call.refusal = labels.defined() ? call.refusal : nullptr;
    launches.check(segloss_cuda_one_hot(&args, &call, static_cast<unsigned char*>(is_one_hot)));
}

Tensor one_hot_labels_cuda(c10::string_view op, const Tensor& target, int64_t dim, c10::string_view advice) {
    check_one_hot(std::string(op), target, dim);
    auto labels = at::empty(position_sizes(target, dim), target.options().dtype(at::kInt));
    Launches launches(std::string(op), target);
    read_one_hot(launches, target, dim, labels, nullptr);
    if (launches.refused_at_once()) {
        check_one_hot_values(std::string(op), target, dim, advice);
    }
    return labels;
}

Tensor is_one_hot_cuda(c10::string_view op, const Tensor& target, int64_t dim) {
    check_one_hot(std::string(op), target, dim);
    auto answer = at::empty({}, target.options().dtype(at::kBool));
    Launches launches(std::string(op), target);
    read_one_hot(launches, target, dim, Tensor(), answer.mutable_data_ptr());
    return answer;
}

// ---- counts ---------------------------------------------------------------------------------------------------------

// Resized logits, if there are kernels for them.
std::optional<CudaResize> resized_logits(const std::optional<Coarse>& coarse, const Tensor& input, int64_t dim) {
    if (!coarse || !CudaResize::takes(*coarse, dim, compute_dtype(input.scalar_type()))) {
        return std::nullopt;
    }
    return std::optional<CudaResize>(std::in_place, *coarse, dim, /*gradient=*/Tensor());
}

// The samples that are counted apart; a kernel runs if there is one.
int64_t samples_of(const Comparison& given) { return num_counted_apart(given).expect_int(); }

Tensor confusion_counts_cuda(const Comparison& given, const c10::SymInt& num_classes, bool per_class) {
    auto resize = resized_logits(given.coarse, given.input, given.dim);
    if (given.coarse && !resize) {
        return confusion_counts_composite(given, num_classes, per_class);
    }
    auto args = confusion_for_kernel(given, num_classes, per_class);
    if (resize) {
        args.positions =
            resize->describe(position_sizes(given.input, given.dim), given.dim, {{&given.target, &args.target}});
    }
    const auto samples = samples_of(given), classes = args.num_classes;
    at::DimVector sizes{per_class ? 3 : classes, classes};
    if (given.per_sample) {
        sizes.insert(sizes.begin() + (per_class ? 1 : 0), samples);
    }
    auto counts = at::zeros(sizes, given.input.options().dtype(at::kLong));
    Launches launches(given.op, given.input);
    if (samples > 0) {
        auto call = launches.call(args, given.target.sizes(), given.input.scalar_type(), samples);
        if (resize) {
            resize->add_to(call);
        }
        launches.check(segloss_cuda_confusion(&args, &call, counts.mutable_data_ptr<int64_t>()));
    }
    if (launches.refused_at_once()) {
        raise_refused_labels(given, classes);
    }
    return counts;
}

// The caller waits for this number, so this function can wait for what was refused, too.
Tensor num_label_classes_cuda(const Comparison& maps, std::optional<int64_t> mask_dim) {
    check_label_maps(maps, mask_dim);
    const auto args = maps_for_kernel(maps);
    auto number = at::empty({}, maps.input.options().dtype(at::kLong));
    Launches launches(maps.op, maps.input);
    const auto call = launches.call(args, maps.target.sizes(), at::kFloat);
    launches.check(segloss_cuda_num_classes(&args, &call, number.mutable_data_ptr<int64_t>()));
    if (launches.refused()) {
        raise_refused_labels(maps, args.num_classes);
    }
    return number;
}

Tensor equal_label_counts_cuda(const Comparison& maps, std::optional<int64_t> mask_dim) {
    check_maps(maps);
    if (mask_dim) {
        check_one_hot(maps.op, maps.input, *mask_dim);
    }
    const auto args = maps_for_kernel(maps);
    const auto samples = samples_of(maps);
    const auto options = maps.input.options();
    auto counts =
        maps.per_sample ? at::empty({2, samples}, options.dtype(at::kLong)) : at::empty({2}, options.dtype(at::kLong));
    Launches launches(maps.op, maps.input);
    Tensor are_one_hot;
    if (mask_dim && maps.input.numel() > 0) {
        are_one_hot = at::empty({2}, options.dtype(at::kBool));
        auto* const answers = are_one_hot.mutable_data_ptr<bool>();
        read_one_hot(launches, maps.input, *mask_dim, Tensor(), answers);
        read_one_hot(launches, maps.target, *mask_dim, Tensor(), answers + 1);
    }
    if (samples > 0) {
        const auto call = launches.call(args, maps.target.sizes(), at::kFloat, samples);
        const auto* const answers = are_one_hot.defined() ? are_one_hot.const_data_ptr() : nullptr;
        launches.check(segloss_cuda_compare_maps(&args, &call, static_cast<const unsigned char*>(answers),
                                                 counts.mutable_data_ptr<int64_t>()));
    }
    return launches.refused_at_once() ? equal_label_counts_composite(maps, mask_dim) : counts; // which raises
}

Tensor mask_counts_cuda(const Comparison& masks) {
    check_masks(masks);
    segloss_confusion args{};
    const auto sizes = position_sizes(masks.input, masks.dim);
    args.num_classes = masks.input.size(masks.dim);
    args.ignore_index = masks.labels.ignore_index;
    args.positions = describe(sizes, masks.dim, {{&masks.input, &args.prediction}, {&masks.target, &args.target}});
    const auto samples = masks.per_sample ? masks.input.size(sample_dim(masks.dim)) : 1;
    const auto options = masks.input.options().dtype(at::kLong);
    auto counts = masks.per_sample ? at::zeros({4, samples, args.num_classes}, options)
                                   : at::zeros({4, args.num_classes}, options);
    Launches launches(masks.op, masks.input);
    if (samples > 0) {
        const auto call = launches.call(args, sizes, at::kFloat, samples);
        launches.check(segloss_cuda_mask_counts(&args, &call, counts.mutable_data_ptr<int64_t>()));
    }
    return launches.refused_at_once() ? mask_counts_composite(masks) : counts; // which raises
}

// ---- predictions ----------------------------------------------------------------------------------------------------

void write_prediction_cuda(const Prediction& given, const Tensor& out) {
    const auto sizes = position_sizes(given.input, given.dim);
    auto resize = resized_logits(given.coarse, given.input, given.dim);
    if (given.coarse && (!resize || CudaResize::has_gaps(out, sizes, given.dim))) {
        write_prediction_composite(given, out);
        return;
    }
    auto args = prediction_for_kernel(given, out);
    Launches launches(kPredict, given.input);
    auto call = launches.call(args.num_classes, /*ignore_index=*/-100, sizes, given.input.scalar_type());
    if (resize) {
        args.positions = resize->describe(sizes, given.dim, {{&out, &args.prediction}});
        resize->add_to(call);
    }
    launches.check(segloss_cuda_predict(&args, &call));
}

} // namespace

TORCH_LIBRARY_IMPL(segloss, CUDA, m) {
    m.impl("total_weight", TORCH_FN(total_weight_cuda));
    m.impl("class_labels", TORCH_FN(class_labels_cuda));
    m.impl("one_hot_labels", TORCH_FN(one_hot_labels_cuda));
    m.impl("is_one_hot", TORCH_FN(is_one_hot_cuda));
    m.impl("confusion_counts", TORCH_FN(confusion_counts_by<confusion_counts_cuda>));
    m.impl("num_label_classes", TORCH_FN(num_label_classes_by<num_label_classes_cuda>));
    m.impl("equal_label_counts", TORCH_FN(equal_label_counts_by<equal_label_counts_cuda>));
    m.impl("mask_counts", TORCH_FN(mask_counts_by<mask_counts_cuda>));
    m.impl("predict", TORCH_FN(predict_by<write_prediction_cuda>));
    m.impl("predict_into", TORCH_FN(predict_into_by<write_prediction_cuda>));
}

} // namespace segloss
