// The operators on CUDA tensors, by the kernels in ../kernels/cuda: built with them alone. It needs no header of CUDA,
// so that any build of torch compiles it.
//
// Nothing here waits for the device. A label that a kernel refuses makes the loss and its gradient nan, and is reported
// in memory that the host sees: the next operator on that device raises the IndexError, or, with SEGLOSS_SYNC_CHECKS=1,
// the operator itself.

#include <ATen/ATen.h>
#include <ATen/core/Reduction.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <iterator>
#include <limits>
#include <map>
#include <mutex>
#include <optional>
#include <sstream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../kernels/cuda/launchers.h"
#include "checks.h"
#include "confusion.h"
#include "layout.h"
#include "targets.h"

namespace segloss {
namespace {

using at::ScalarType;

// ---- what the kernels refused ---------------------------------------------------------------------------------------

// The device's record, in pinned memory; it is there for as long as the process.
segloss_refusal* refusal_of(c10::Device device) {
    static std::mutex mutex;
    static auto* const records = new std::map<c10::DeviceIndex, Tensor>;
    const std::lock_guard lock(mutex);
    auto& record = (*records)[device.index()];
    if (!record.defined()) {
        const auto options = at::TensorOptions(at::kByte).pinned_memory(device.is_cuda());
        record = at::empty({sizeof(segloss_refusal)}, options).zero_();
    }
    return static_cast<segloss_refusal*>(record.mutable_data_ptr());
}

std::string value_of(const segloss_refusal& refusal) {
    std::ostringstream text;
    refusal.label == SEGLOSS_NO_LABEL ? text << refusal.value : text << refusal.label;
    return text.str();
}

// By segloss_refused.
constexpr std::array<const char*, 3> kRefused{"Target ", "Predicted label ", "Input "};

// Raises what the device has reported.
void raise_refused(const std::string& op, segloss_refusal* record) {
    if (*static_cast<volatile int64_t*>(&record->count) == 0) {
        return;
    }
    const auto refusal = std::exchange(*record, {});
    const auto& origin = refusal.origin;
    const at::IntArrayRef sizes(origin.sizes, origin.num_dims);
    TORCH_CHECK_INDEX(false, origin.op, ": ", kRefused[refusal.what], value_of(refusal),
                      " is out of bounds, the first of ", refusal.count, ", at index ",
                      at::IntArrayRef(index_of(refusal.position, sizes)), " of labels ", sizes,
                      ". Expected labels 0 to ", origin.num_classes - 1,
                      ", masks of 0 and 1, probabilities in [0, 1], or ignore_index=", origin.ignore_index,
                      ". The call was an earlier one on this device, its results are nan or ", "meaningless, and ", op,
                      " is the first to see it. SEGLOSS_SYNC_CHECKS=1 lets it raise itself");
}

bool checks_at_once() {
    const char* setting = std::getenv("SEGLOSS_SYNC_CHECKS");
    return setting && std::string(setting) == "1";
}

// ---- launching ------------------------------------------------------------------------------------------------------

// One operator's kernels on the current stream of a device. Raises what earlier ones refused.
class Launches {
public:
    Launches(std::string op, const Tensor& input)
        : op_(std::move(op)), guard_(input.device()), device_(input.device()), refusal_(refusal_of(device_)) {
        raise_refused(op_, refusal_);
    }

    // All voxels of labels of the given sizes, whose first dimension are the samples where there are sums per class.
    template <typename Arguments>
    segloss_cuda_call call(const Arguments& args, at::IntArrayRef sizes, ScalarType dtype, int64_t num_samples = 1,
                           bool has_class_sums = false) {
        segloss_cuda_call call{};
        call.real = real_of(dtype);
        call.end = c10::multiply_integers(sizes);
        call.num_samples = num_samples;
        const auto size = segloss_cuda_workspace(call.end, num_samples, has_class_sums ? args.num_classes : 0);
        workspace_ = at::empty({static_cast<int64_t>(size)}, at::TensorOptions(device_).dtype(at::kByte));
        call.workspace = workspace_.mutable_data_ptr();
        call.refusal = refusal_;
        call.stream = native_stream();
        op_.copy(call.origin.op, sizeof call.origin.op - 1);
        call.origin.num_classes = args.num_classes;
        call.origin.ignore_index = args.ignore_index;
        call.origin.num_dims = static_cast<int>(std::min(sizes.size(), std::size(call.origin.sizes)));
        std::copy_n(sizes.begin(), call.origin.num_dims, call.origin.sizes);
        return call;
    }

    void check(int error) const {
        TORCH_CHECK(error == 0, op_, ": a CUDA kernel could not be launched, error ", error, " of CUDA's runtime");
    }

    // With SEGLOSS_SYNC_CHECKS=1: waits, and returns whether something was refused, which is then forgotten.
    bool refused_at_once() const {
        if (!checks_at_once()) {
            return false;
        }
        if (device_.is_cuda()) {
            stream().synchronize();
        }
        return std::exchange(*refusal_, {}).count > 0;
    }

private:
    c10::Stream stream() const { return c10::impl::VirtualGuardImpl(device_.type()).getStream(device_); }

    // Other devices are the tests', where the kernels run at once.
    void* native_stream() const { return device_.is_cuda() ? stream().native_handle() : nullptr; }

    std::string op_;
    c10::DeviceGuard guard_;
    c10::Device device_;
    segloss_refusal* refusal_;
    Tensor workspace_;
};

// Calls an operator's code for another key.
template <typename Function, typename... Arguments>
auto redispatch(c10::DispatchKey key, const char* name, Function* /*signature*/, Arguments&&... arguments) {
    const auto handle = c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Function>();
    return handle.redispatch(c10::DispatchKeySet(key), std::forward<Arguments>(arguments)...);
}

// The code for shapes and dtypes, on whatever device: all checks, and fresh results.
constexpr auto kChecks = c10::DispatchKey::Meta;

// What a forward pass or autograd hands to a backward operator, of which the code for shapes knows nothing.
void check_handed_over(c10::string_view op, const char* name, const Tensor& tensor, bool has_shape,
                       const Tensor& input) {
    TORCH_CHECK_TYPE(tensor.is_floating_point(), op, " backward: expected a floating ", name, ", got ",
                     tensor.scalar_type());
    TORCH_CHECK(has_shape, op, " backward: expected ", name, " of the forward pass's shape, got ", tensor.sizes(),
                " for input ", input.sizes());
    check_same_device(std::string(op), input, tensor, name);
}

// What the kernels are told of a loss, and the tensors behind it.
struct VoxelArguments {
    Target kind;
    Tensor class_weight, voxel_weight;
    at::DimVector sizes;       // of the voxels
    at::DimVector label_sizes; // in which a voxel has its index: those of the labels as they are, where there are
    Ranges ranges;
    segloss_cross_entropy args{};

    VoxelArguments(c10::string_view op, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                   const OptionalTensor& voxel_weight, int64_t dim, int64_t ignore_index, double label_smoothing,
                   double gamma, ScalarType dtype, bool takes_masks = false, bool any_finite_target = false,
                   bool input_is_probability = false)
        : kind(classify_target(std::string(op), input, target, dim, takes_masks)),
          class_weight(class_weight_for_kernel(weight, dtype)),
          voxel_weight(voxel_weight_for_kernel(voxel_weight, dtype)), sizes(position_sizes(input, dim)),
          label_sizes(kind == Target::labels ? at::DimVector(target.sizes()) : sizes),
          ranges(ranges_of(input, target, kind, compute_dtype(dtype), any_finite_target, input_is_probability)) {
        args.num_classes = input.size(dim);
        args.target_kind = target_for_kernel(kind);
        args.target_range = ranges.target;
        args.logit_range = ranges.logits;
        args.class_weight = class_weight.defined() ? class_weight.const_data_ptr() : nullptr;
        args.ignore_index = ignore_index;
        args.label_smoothing = label_smoothing;
        args.gamma = gamma;
        args.grad_scale = 1;
    }
};

// ---- cross entropy --------------------------------------------------------------------------------------------------

Tensor cross_entropy_backward_cuda(const Tensor& grad_loss, const Tensor& input, const Tensor& target,
                                   const OptionalTensor& weight, const OptionalTensor& voxel_weight,
                                   const Tensor& total_weight, int64_t dim, int64_t reduction, int64_t ignore_index,
                                   double label_smoothing, double gamma, bool log_probabilities, ScalarType dtype,
                                   c10::string_view op) {
    const auto grad_input = redispatch(kChecks, "segloss::cross_entropy_backward", &cross_entropy_backward_cuda,
                                       grad_loss, input, target, weight, voxel_weight, total_weight, dim, reduction,
                                       ignore_index, label_smoothing, gamma, log_probabilities, dtype, op);
    const bool is_one_value = reduction != at::Reduction::None || input.dim() == 1;
    check_handed_over(op, "grad_loss", grad_loss,
                      is_one_value ? grad_loss.dim() == 0 : has_label_shape(input, grad_loss, dim), input);
    check_handed_over(op, "total_weight", total_weight, total_weight.numel() == 1, input);
    VoxelArguments voxels(op, input, target, weight, voxel_weight, dim, ignore_index, label_smoothing, gamma, dtype);
    auto& args = voxels.args;
    args.log_probabilities = log_probabilities;
    args.positions = describe(voxels.sizes, dim,
                              {{&input, &args.logits},
                               {&target, &args.target},
                               {&voxels.voxel_weight, &args.voxel_weight},
                               {&grad_loss, &args.grad_loss},
                               {&grad_input, &args.grad_logits}});
    Launches launches(std::string(op), input);
    const auto call = launches.call(args, voxels.label_sizes, dtype);
    const bool is_mean = reduction == at::Reduction::Mean;
    launches.check(
        segloss_cuda_cross_entropy_backward(&args, &call, is_mean ? total_weight.const_data_ptr<double>() : nullptr));
    if (launches.refused_at_once()) {
        raise_refused(std::string(op), input, target, voxel_weight, voxels.kind, dim, ignore_index, voxels.ranges);
    }
    return grad_input;
}

Tensor reduced(const Tensor& sums, int64_t reduction, bool empty_zero, ScalarType dtype) {
    const auto loss = sums.select(0, 0);
    const auto weight = sums.select(0, 1);
    if (reduction != at::Reduction::Mean) {
        return loss.to(dtype);
    }
    const double empty = empty_zero ? 0 : std::numeric_limits<double>::quiet_NaN();
    return at::where(weight.eq(0), at::full({}, empty, sums.options()), loss / weight).to(dtype);
}

std::tuple<Tensor, Tensor, Tensor>
cross_entropy_forward_cuda(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                           const OptionalTensor& voxel_weight, int64_t dim, int64_t reduction, int64_t ignore_index,
                           double label_smoothing, double gamma, bool log_probabilities, bool empty_zero,
                           bool with_gradient, ScalarType dtype, c10::string_view op) {
    const auto results = redispatch(kChecks, "segloss::cross_entropy_forward", &cross_entropy_forward_cuda, input,
                                    target, weight, voxel_weight, dim, reduction, ignore_index, label_smoothing, gamma,
                                    log_probabilities, empty_zero, /*with_gradient=*/false, dtype, op);
    const bool reduce = reduction != at::Reduction::None;
    TORCH_CHECK_VALUE(reduce || !with_gradient, op, ": expected with_gradient=False with reduction 0 (none)");
    const auto losses = reduce ? Tensor() : std::get<0>(results);
    const auto sums = at::empty({2}, input.options().dtype(at::kDouble));
    VoxelArguments voxels(op, input, target, weight, voxel_weight, dim, ignore_index, label_smoothing, gamma, dtype);
    auto& args = voxels.args;
    args.log_probabilities = log_probabilities;
    args.positions = describe(voxels.sizes, dim,
                              {{&input, &args.logits},
                               {&target, &args.target},
                               {&voxels.voxel_weight, &args.voxel_weight},
                               {&losses, &args.loss}});
    Launches launches(std::string(op), input);
    const auto call = launches.call(args, voxels.label_sizes, dtype);
    launches.check(
        segloss_cuda_cross_entropy_forward(&args, &call, static_cast<segloss_sums*>(sums.mutable_data_ptr())));
    if (launches.refused_at_once()) {
        raise_refused(std::string(op), input, target, voxel_weight, voxels.kind, dim, ignore_index, voxels.ranges);
    }
    const auto total_weight = sums.select(0, 1).clone();
    const auto loss = reduce ? reduced(sums, reduction, empty_zero, dtype) : losses;
    if (!with_gradient) {
        return {loss, total_weight, std::get<2>(results)};
    }
    const auto one = at::ones({}, input.options().dtype(dtype));
    return {loss, total_weight,
            cross_entropy_backward_cuda(one, input, target, weight, voxel_weight, total_weight, dim, reduction,
                                        ignore_index, label_smoothing, gamma, log_probabilities, dtype, op)};
}

// ---- soft statistics ------------------------------------------------------------------------------------------------

// The input of one voxel [C] is one sample.
int64_t num_samples_of(const Tensor& input, int64_t dim) { return input.dim() > 1 ? input.size(dim == 0 ? 1 : 0) : 1; }

// One value per sample as one per voxel.
Tensor of_voxels(const Tensor& of_samples, at::IntArrayRef sizes) {
    std::vector<int64_t> first(sizes.size(), 1);
    if (!first.empty()) {
        first[0] = sizes[0];
    }
    return of_samples.view(first).expand(sizes);
}

segloss_soft_stats soft_stats_arguments(const VoxelArguments& voxels, int64_t activation, bool squared, bool voxel_loss,
                                        bool soft_label) {
    segloss_soft_stats args{};
    args.voxels = voxels.args;
    args.soft_label = soft_label && !squared && voxels.kind == Target::probabilities;
    args.activation = static_cast<segloss_activation>(activation);
    args.squared = squared;
    args.with_loss = voxel_loss;
    return args;
}

using SoftStats = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

SoftStats soft_stats_forward_cuda(c10::string_view op, const Tensor& input, const Tensor& target,
                                  const OptionalTensor& weight, const OptionalTensor& voxel_weight, int64_t dim,
                                  int64_t activation, bool squared, int64_t ignore_index, bool voxel_loss, double gamma,
                                  double label_smoothing, bool soft_label, bool any_finite_target) {
    redispatch(kChecks, "segloss::soft_stats_forward", &soft_stats_forward_cuda, op, input, target, weight,
               voxel_weight, dim, activation, squared, ignore_index, voxel_loss, gamma, label_smoothing, soft_label,
               any_finite_target);
    const auto dtype = input.scalar_type();
    const VoxelArguments voxels(op, input, target, weight, voxel_weight, dim, ignore_index, label_smoothing, gamma,
                                dtype, activation != SEGLOSS_SOFTMAX, any_finite_target,
                                activation == SEGLOSS_IDENTITY);
    auto args = soft_stats_arguments(voxels, activation, squared, voxel_loss, soft_label);
    args.voxels.positions = describe(voxels.sizes, dim,
                                     {{&input, &args.voxels.logits},
                                      {&target, &args.voxels.target},
                                      {&voxels.voxel_weight, &args.voxels.voxel_weight}});
    const auto num_samples = num_samples_of(input, dim), num_classes = args.voxels.num_classes;
    const auto stats = at::zeros({num_samples, 3, num_classes}, input.options().dtype(at::kDouble));
    const auto sums = at::zeros({num_samples, 2}, stats.options());
    Launches launches(std::string(op), input);
    if (num_samples > 0) {
        const auto call = launches.call(args.voxels, voxels.label_sizes, dtype, num_samples, true);
        launches.check(segloss_cuda_soft_stats_forward(&args, &call, stats.mutable_data_ptr<double>(),
                                                       static_cast<segloss_sums*>(sums.mutable_data_ptr())));
    }
    if (launches.refused_at_once()) {
        raise_refused(std::string(op), input, target, voxel_weight, voxels.kind, dim, ignore_index, voxels.ranges);
    }
    const auto of_statistics = stats.transpose(0, 1).contiguous();
    return {of_statistics[0].clone(), of_statistics[1].clone(), of_statistics[2].clone(), sums.select(1, 0).clone(),
            sums.select(1, 1).clone()};
}

Tensor soft_stats_backward_cuda(const Tensor& grad_intersection, const Tensor& grad_prediction, const Tensor& grad_loss,
                                c10::string_view op, const Tensor& input, const Tensor& target,
                                const OptionalTensor& weight, const OptionalTensor& voxel_weight, int64_t dim,
                                int64_t activation, bool squared, int64_t ignore_index, bool voxel_loss, double gamma,
                                double label_smoothing, bool soft_label, bool any_finite_target) {
    const auto grad_input =
        redispatch(kChecks, "segloss::soft_stats_backward", &soft_stats_backward_cuda, grad_intersection,
                   grad_prediction, grad_loss, op, input, target, weight, voxel_weight, dim, activation, squared,
                   ignore_index, voxel_loss, gamma, label_smoothing, soft_label, any_finite_target);
    const auto num_samples = num_samples_of(input, dim);
    const std::array<int64_t, 2> per_class{num_samples, input.size(dim)};
    check_handed_over(op, "grad_intersection", grad_intersection, grad_intersection.sizes() == per_class, input);
    check_handed_over(op, "grad_prediction", grad_prediction, grad_prediction.sizes() == per_class, input);
    check_handed_over(op, "grad_loss", grad_loss, grad_loss.sizes() == at::IntArrayRef{num_samples}, input);
    const auto dtype = input.scalar_type();
    const VoxelArguments voxels(op, input, target, weight, voxel_weight, dim, ignore_index, label_smoothing, gamma,
                                dtype, activation != SEGLOSS_SOFTMAX, any_finite_target,
                                activation == SEGLOSS_IDENTITY);
    const auto by_intersection = grad_intersection.to(compute_dtype(dtype)).contiguous();
    const auto by_prediction = grad_prediction.to(compute_dtype(dtype)).contiguous();
    auto args = soft_stats_arguments(voxels, activation, squared, voxel_loss, soft_label);
    const auto by_loss = voxel_loss ? of_voxels(grad_loss, voxels.sizes) : Tensor();
    args.grad_intersection = by_intersection.const_data_ptr();
    args.grad_prediction = by_prediction.const_data_ptr();
    args.voxels.positions = describe(voxels.sizes, dim,
                                     {{&input, &args.voxels.logits},
                                      {&target, &args.voxels.target},
                                      {&voxels.voxel_weight, &args.voxels.voxel_weight},
                                      {&by_loss, &args.voxels.grad_loss},
                                      {&grad_input, &args.voxels.grad_logits}});
    Launches launches(std::string(op), input);
    if (num_samples > 0) {
        const auto call = launches.call(args.voxels, voxels.label_sizes, dtype, num_samples);
        launches.check(segloss_cuda_soft_stats_backward(&args, &call, nullptr));
    }
    if (launches.refused_at_once()) {
        raise_refused(std::string(op), input, target, voxel_weight, voxels.kind, dim, ignore_index, voxels.ranges);
    }
    return grad_input;
}

// ---- counts ---------------------------------------------------------------------------------------------------------

Tensor confusion_counts_cuda(c10::string_view op_name, const Tensor& input, const Tensor& target,
                             c10::SymInt num_classes, int64_t ignore_index, int64_t dim, bool per_class) {
    const std::string op(op_name);
    const auto args = confusion_for_kernel(op, input, target, num_classes, ignore_index, dim, per_class);
    const auto counts =
        at::zeros({per_class ? 3 : args.num_classes, args.num_classes}, input.options().dtype(at::kLong));
    Launches launches(op, input);
    const auto call = launches.call(args, target.sizes(), input.scalar_type());
    launches.check(segloss_cuda_confusion(&args, &call, counts.mutable_data_ptr<int64_t>()));
    if (launches.refused_at_once()) {
        raise_refused_labels(op, input, target, args.num_classes, ignore_index);
    }
    return counts;
}

} // namespace

TORCH_LIBRARY_IMPL(segloss, CUDA, m) {
    m.impl("cross_entropy_forward", TORCH_FN(cross_entropy_forward_cuda));
    m.impl("cross_entropy_backward", TORCH_FN(cross_entropy_backward_cuda));
    m.impl("soft_stats_forward", TORCH_FN(soft_stats_forward_cuda));
    m.impl("soft_stats_backward", TORCH_FN(soft_stats_backward_cuda));
    m.impl("confusion_counts", TORCH_FN(confusion_counts_cuda));
}

} // namespace segloss
