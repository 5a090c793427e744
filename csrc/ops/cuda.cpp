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

#include <array>
#include <cstdlib>
#include <limits>
#include <map>
#include <mutex>
#include <optional>
#include <sstream>
#include <string>
#include <tuple>
#include <utility>

#include "../kernels/cuda/launchers.h"
#include "checks.h"
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

// Raises what the device has reported.
void raise_refused(const std::string& op, segloss_refusal* record) {
    if (*static_cast<volatile int64_t*>(&record->count) == 0) {
        return;
    }
    const auto refusal = std::exchange(*record, {});
    std::ostringstream value;
    if (refusal.label == SEGLOSS_NO_LABEL) {
        value << refusal.value;
    } else {
        value << refusal.label;
    }
    TORCH_CHECK_INDEX(false, op, ": an earlier call on this device had ",
                      refusal.is_prediction ? "predicted labels" : "labels or masks", " out of bounds: ", refusal.count,
                      " of them, the first ", value.str(), " at voxel ", refusal.position,
                      ", counted over all dimensions but the classes'. Its results are nan or meaningless. "
                      "SEGLOSS_SYNC_CHECKS=1 makes the call itself raise");
}

bool checks_at_once() {
    const char* setting = std::getenv("SEGLOSS_SYNC_CHECKS");
    return setting && std::string(setting) == "1";
}

// ---- launching ------------------------------------------------------------------------------------------------------

// One operator's kernels on the current stream of a device. Raises what earlier ones refused.
class Launches {
public:
    Launches(std::string op, const Tensor& input, int64_t num_classes, ScalarType dtype)
        : op_(std::move(op)), guard_(input.device()), device_(input.device()), refusal_(refusal_of(device_)),
          workspace_(
              at::empty({static_cast<int64_t>(segloss_cuda_workspace(num_classes))}, input.options().dtype(at::kByte))),
          real_(real_of(dtype)) {
        raise_refused(op_, refusal_);
    }

    // Positions [0, num_positions), of which the first is that of the whole input.
    segloss_cuda_call call(int64_t num_positions, int64_t first_position = 0) const {
        return {real_, 0, num_positions, first_position, workspace_.mutable_data_ptr(), refusal_, native_stream()};
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
    segloss_real real_;
};

// Calls an operator's code for another key.
template <typename Function, typename... Arguments>
auto redispatch(c10::DispatchKey key, const char* name, Function* /*signature*/, Arguments&&... arguments) {
    const auto handle = c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Function>();
    return handle.redispatch(c10::DispatchKeySet(key), std::forward<Arguments>(arguments)...);
}

// The code for shapes and dtypes, on whatever device: all checks, and fresh results.
constexpr auto kChecks = c10::DispatchKey::Meta;

// A device without kernels, whose code is that of ATen's operators.
constexpr auto kSlabs = c10::DispatchKey::XPU;

// What a forward pass or autograd hands to a backward operator, of which the code for shapes knows nothing.
void check_handed_over(c10::string_view op, const char* name, const Tensor& tensor, bool has_shape,
                       const Tensor& input) {
    TORCH_CHECK_TYPE(tensor.is_floating_point(), op, " backward: expected a floating ", name, ", got ",
                     tensor.scalar_type());
    TORCH_CHECK(has_shape, op, " backward: expected ", name, " of the forward pass's shape, got ", tensor.sizes(),
                " for input ", input.sizes());
    check_same_device(std::string(op), input, tensor, name);
}

segloss_cross_entropy voxel_arguments(const Tensor& input, Target kind, const Tensor& class_weight, int64_t dim,
                                      int64_t ignore_index, double label_smoothing, double gamma) {
    segloss_cross_entropy args{};
    args.num_classes = input.size(dim);
    args.target_kind = target_for_kernel(kind);
    args.class_weight = class_weight.defined() ? class_weight.const_data_ptr() : nullptr;
    args.ignore_index = ignore_index;
    args.label_smoothing = label_smoothing;
    args.gamma = gamma;
    args.grad_scale = 1;
    return args;
}

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
    const auto kind = classify_target(std::string(op), input, target, dim);
    const auto class_weight = class_weight_for_kernel(weight, dtype);
    const auto voxel_weights = voxel_weight_for_kernel(voxel_weight, dtype);
    auto args = voxel_arguments(input, kind, class_weight, dim, ignore_index, label_smoothing, gamma);
    args.log_probabilities = log_probabilities;
    const auto sizes = position_sizes(input, dim);
    args.positions = describe(sizes, dim,
                              {{&input, &args.logits},
                               {&target, &args.target},
                               {&voxel_weights, &args.voxel_weight},
                               {&grad_loss, &args.grad_loss},
                               {&grad_input, &args.grad_logits}});
    const Launches launches(std::string(op), input, args.num_classes, dtype);
    const auto call = launches.call(c10::multiply_integers(sizes));
    const bool is_mean = reduction == at::Reduction::Mean;
    launches.check(
        segloss_cuda_cross_entropy_backward(&args, &call, is_mean ? total_weight.const_data_ptr<double>() : nullptr));
    if (launches.refused_at_once()) {
        raise_refused_target(std::string(op), target, kind, args.num_classes, ignore_index);
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
    const auto kind = classify_target(std::string(op), input, target, dim);
    const auto class_weight = class_weight_for_kernel(weight, dtype);
    const auto voxel_weights = voxel_weight_for_kernel(voxel_weight, dtype);
    auto args = voxel_arguments(input, kind, class_weight, dim, ignore_index, label_smoothing, gamma);
    args.log_probabilities = log_probabilities;
    const auto sizes = position_sizes(input, dim);
    args.positions = describe(
        sizes, dim,
        {{&input, &args.logits}, {&target, &args.target}, {&voxel_weights, &args.voxel_weight}, {&losses, &args.loss}});
    const Launches launches(std::string(op), input, args.num_classes, dtype);
    const auto call = launches.call(c10::multiply_integers(sizes));
    launches.check(
        segloss_cuda_cross_entropy_forward(&args, &call, static_cast<segloss_sums*>(sums.mutable_data_ptr())));
    if (launches.refused_at_once()) {
        raise_refused_target(std::string(op), target, kind, args.num_classes, ignore_index);
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

// What each sample is made of; the input of one voxel [C] is one sample.
struct SampleTensors {
    Tensor input, target, voxel_weight, grad_loss, grad_input;
    int64_t dim;
};

SampleTensors sample_of(const SampleTensors& all, int64_t n) {
    if (all.input.dim() == 1) {
        return all;
    }
    const auto select = [&](const Tensor& tensor) {
        const bool has_samples = tensor.defined() && tensor.dim() > 0;
        return has_samples ? tensor.select(tensor.dim() == all.input.dim() && all.dim == 0 ? 1 : 0, n) : tensor;
    };
    return {select(all.input),     select(all.target),     select(all.voxel_weight),
            select(all.grad_loss), select(all.grad_input), all.dim > 0 ? all.dim - 1 : 0};
}

// Describes a sample in `args`; returns its number of positions.
int64_t describe_sample(const SampleTensors& sample, segloss_cross_entropy& args) {
    const auto sizes = position_sizes(sample.input, sample.dim);
    args.positions = describe(sizes, sample.dim,
                              {{&sample.input, &args.logits},
                               {&sample.target, &args.target},
                               {&sample.voxel_weight, &args.voxel_weight},
                               {&sample.grad_loss, &args.grad_loss},
                               {&sample.grad_input, &args.grad_logits}});
    return c10::multiply_integers(sizes);
}

segloss_soft_stats soft_stats_arguments(const segloss_cross_entropy& voxels, int64_t activation, bool squared,
                                        bool voxel_loss) {
    segloss_soft_stats args{};
    args.voxels = voxels;
    args.activation = static_cast<segloss_activation>(activation);
    args.squared = squared;
    args.with_loss = voxel_loss;
    return args;
}

using SoftStats = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// Each sample is a launch of its own: more of them, small then, are left to ATen's operators.
constexpr int64_t kMaxSamples = 256;

bool has_many_samples(const Tensor& input, int64_t dim) {
    return input.dim() > 1 && input.size(dim == 0 ? 1 : 0) > kMaxSamples;
}

SoftStats soft_stats_forward_cuda(c10::string_view op, const Tensor& input, const Tensor& target,
                                  const OptionalTensor& weight, const OptionalTensor& voxel_weight, int64_t dim,
                                  int64_t activation, bool squared, int64_t ignore_index, bool voxel_loss, double gamma,
                                  double label_smoothing) {
    if (has_many_samples(input, dim)) {
        return redispatch(kSlabs, "segloss::soft_stats_forward", &soft_stats_forward_cuda, op, input, target, weight,
                          voxel_weight, dim, activation, squared, ignore_index, voxel_loss, gamma, label_smoothing);
    }
    const auto results =
        redispatch(kChecks, "segloss::soft_stats_forward", &soft_stats_forward_cuda, op, input, target, weight,
                   voxel_weight, dim, activation, squared, ignore_index, voxel_loss, gamma, label_smoothing);
    const auto kind = classify_target(std::string(op), input, target, dim, activation != SEGLOSS_SOFTMAX);
    const auto dtype = input.scalar_type();
    const auto class_weight = class_weight_for_kernel(weight, dtype);
    const SampleTensors all{input, target, voxel_weight_for_kernel(voxel_weight, dtype), {}, {}, dim};
    auto args =
        soft_stats_arguments(voxel_arguments(input, kind, class_weight, dim, ignore_index, label_smoothing, gamma),
                             activation, squared, voxel_loss);
    const auto num_samples = std::get<0>(results).size(0);
    const auto doubles = input.options().dtype(at::kDouble);
    const auto stats = at::empty({num_samples, 3, args.voxels.num_classes}, doubles);
    const auto sums = at::empty({num_samples, 2}, doubles);
    const Launches launches(std::string(op), input, args.voxels.num_classes, dtype);
    for (int64_t n = 0; n < num_samples; ++n) {
        const auto num_positions = describe_sample(sample_of(all, n), args.voxels);
        const auto call = launches.call(num_positions, n * num_positions);
        launches.check(
            segloss_cuda_soft_stats_forward(&args, &call, stats.select(0, n).mutable_data_ptr<double>(),
                                            static_cast<segloss_sums*>(sums.select(0, n).mutable_data_ptr())));
    }
    if (launches.refused_at_once()) {
        raise_refused_target(std::string(op), target, kind, args.voxels.num_classes, ignore_index);
    }
    const auto of_samples = stats.transpose(0, 1).contiguous();
    return {of_samples[0].clone(), of_samples[1].clone(), of_samples[2].clone(), sums.select(1, 0).clone(),
            sums.select(1, 1).clone()};
}

Tensor soft_stats_backward_cuda(const Tensor& grad_intersection, const Tensor& grad_prediction, const Tensor& grad_loss,
                                c10::string_view op, const Tensor& input, const Tensor& target,
                                const OptionalTensor& weight, const OptionalTensor& voxel_weight, int64_t dim,
                                int64_t activation, bool squared, int64_t ignore_index, bool voxel_loss, double gamma,
                                double label_smoothing) {
    if (has_many_samples(input, dim)) {
        return redispatch(kSlabs, "segloss::soft_stats_backward", &soft_stats_backward_cuda, grad_intersection,
                          grad_prediction, grad_loss, op, input, target, weight, voxel_weight, dim, activation, squared,
                          ignore_index, voxel_loss, gamma, label_smoothing);
    }
    const auto grad_input =
        redispatch(kChecks, "segloss::soft_stats_backward", &soft_stats_backward_cuda, grad_intersection,
                   grad_prediction, grad_loss, op, input, target, weight, voxel_weight, dim, activation, squared,
                   ignore_index, voxel_loss, gamma, label_smoothing);
    const auto num_samples = input.dim() > 1 ? input.size(dim == 0 ? 1 : 0) : 1;
    const std::array<int64_t, 2> sizes{num_samples, input.size(dim)};
    check_handed_over(op, "grad_intersection", grad_intersection, grad_intersection.sizes() == sizes, input);
    check_handed_over(op, "grad_prediction", grad_prediction, grad_prediction.sizes() == sizes, input);
    check_handed_over(op, "grad_loss", grad_loss, grad_loss.sizes() == at::IntArrayRef{num_samples}, input);
    const auto kind = classify_target(std::string(op), input, target, dim, activation != SEGLOSS_SOFTMAX);
    const auto dtype = input.scalar_type();
    const auto class_weight = class_weight_for_kernel(weight, dtype);
    const auto by_intersection = grad_intersection.to(compute_dtype(dtype)).contiguous();
    const auto by_prediction = grad_prediction.to(compute_dtype(dtype)).contiguous();
    const SampleTensors all{
        input,      target, voxel_weight_for_kernel(voxel_weight, dtype), voxel_loss ? grad_loss : Tensor(),
        grad_input, dim};
    auto args =
        soft_stats_arguments(voxel_arguments(input, kind, class_weight, dim, ignore_index, label_smoothing, gamma),
                             activation, squared, voxel_loss);
    const Launches launches(std::string(op), input, args.voxels.num_classes, dtype);
    for (int64_t n = 0; n < num_samples; ++n) {
        const auto num_positions = describe_sample(sample_of(all, n), args.voxels);
        const auto call = launches.call(num_positions, n * num_positions);
        args.grad_intersection = by_intersection.select(0, n).const_data_ptr();
        args.grad_prediction = by_prediction.select(0, n).const_data_ptr();
        launches.check(segloss_cuda_soft_stats_backward(&args, &call, nullptr));
    }
    if (launches.refused_at_once()) {
        raise_refused_target(std::string(op), target, kind, args.voxels.num_classes, ignore_index);
    }
    return grad_input;
}

} // namespace

TORCH_LIBRARY_IMPL(segloss, CUDA, m) {
    m.impl("cross_entropy_forward", TORCH_FN(cross_entropy_forward_cuda));
    m.impl("cross_entropy_backward", TORCH_FN(cross_entropy_backward_cuda));
    m.impl("soft_stats_forward", TORCH_FN(soft_stats_forward_cuda));
    m.impl("soft_stats_backward", TORCH_FN(soft_stats_backward_cuda));
}

} // namespace segloss
