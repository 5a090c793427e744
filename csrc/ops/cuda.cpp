// The operators on CUDA tensors, with the kernels in ../kernels/cuda; built only together with these. It includes no
// CUDA header, so that it compiles with any build of torch.
//
// Nothing here waits for the device. If a kernel refuses a label, the loss and its gradient are nan, and the kernel
// reports the label in memory that the host sees. The next operator on that device raises the IndexError; with
// SEGLOSS_SYNC_CHECKS=1 the operator waits and raises it itself.

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "binary_cross_entropy.h"
#include "checks.h"
#include "cross_entropy.h"
#include "cuda.h"
#include "cuda_resize.h"
#include "layout.h"
#include "soft_stats.h"

namespace segloss {
namespace {

using at::ScalarType;

// ---- values that the kernels refused --------------------------------------------------------------------------------

std::mutex& mutex_of_records() {
    static std::mutex mutex;
    return mutex;
}

// The devices' records of refused values, in pinned memory. They exist until the process ends.
std::map<c10::DeviceIndex, Tensor>& records() {
    static auto* const records = new std::map<c10::DeviceIndex, Tensor>;
    return *records;
}

segloss_refusal* record_of(c10::Device device) {
    const std::lock_guard lock(mutex_of_records());
    auto& record = records()[device.index()];
    if (!record.defined()) {
        const auto options = at::TensorOptions(at::kByte).pinned_memory(device.is_cuda());
        record = at::empty({sizeof(segloss_refusal)}, options).zero_();
    }
    return static_cast<segloss_refusal*>(record.mutable_data_ptr());
}

// What the device has reported, if anything. The record is then free for the next report.
std::optional<segloss_refusal> take_report(segloss_refusal* record) {
    const auto is_empty = [&] { return *static_cast<volatile int64_t*>(&record->count) == 0; };
    if (is_empty()) {
        return std::nullopt;
    }
    const std::lock_guard lock(mutex_of_records());
    if (is_empty()) { // another thread has taken it
        return std::nullopt;
    }
    std::atomic_thread_fence(std::memory_order_seq_cst);
    const auto report = *record;
    record->count = 0;
    std::atomic_thread_fence(std::memory_order_seq_cst);
    *static_cast<volatile int*>(&record->is_claimed) = 0;
    return report;
}

std::string value_of(const segloss_refusal& refusal) {
    std::ostringstream text;
    refusal.label == SEGLOSS_NO_LABEL ? text << refusal.value : text << refusal.label;
    return text.str();
}

// What was expected and what came, in the words of the operator that was refused.
std::string text_of(const segloss_refusal& refusal) {
    static constexpr std::array<const char*, 3> kNames{"Target ", "Predicted label ", "Input "}; // by segloss_refused
    const auto& origin = refusal.origin;
    const at::IntArrayRef sizes(origin.sizes, origin.num_dims);
    const auto place = c10::str("at index ", at::IntArrayRef(index_of(refusal.position, sizes)), " of labels ", sizes);
    switch (refusal.what) {
    case SEGLOSS_NOT_ONE_HOT:
        return c10::str("expected a one-hot target, got one that is not ", place, ", the first of ", refusal.count);
    case SEGLOSS_MASKS_AS_MAPS:
        return c10::str("expected label maps, got input and target ", sizes,
                        " that are both one-hot, as masks are. Give num_classes= for label maps, or masks=True");
    default:
        return c10::str(kNames[refusal.what], value_of(refusal), " is out of bounds, the first of ", refusal.count,
                        ", ", place, ". Expected labels 0 to ", origin.num_classes - 1,
                        ", masks of 0 and 1, probabilities in [0, 1], or ignore_index=", origin.ignore_index);
    }
}

// Raises the error for what the device has reported, if anything.
void raise_refused(const std::string& op, segloss_refusal* record) {
    const auto report = take_report(record);
    if (!report) {
        return;
    }
    const auto text = c10::str(report->origin.op, ": ", text_of(*report),
                               ". The call was an earlier one on this device, its results are nan or meaningless, and ",
                               op, " is the first to see it. SEGLOSS_SYNC_CHECKS=1 lets it raise itself");
    const bool is_value = report->what != SEGLOSS_NOT_ONE_HOT && report->what != SEGLOSS_MASKS_AS_MAPS;
    TORCH_CHECK_INDEX(!is_value, text);
    TORCH_CHECK(false, text);
}

// The same for the device with this index, if it has run a kernel. The caller has waited for it.
void raise_reported(c10::string_view op, int64_t index) {
    segloss_refusal* record = nullptr;
    {
        const std::lock_guard lock(mutex_of_records());
        const auto found = records().find(static_cast<c10::DeviceIndex>(index));
        record = found == records().end() ? nullptr : static_cast<segloss_refusal*>(found->second.mutable_data_ptr());
    }
    if (record) {
        raise_refused(std::string(op), record);
    }
}

bool checks_at_once() {
    const char* setting = std::getenv("SEGLOSS_SYNC_CHECKS");
    return setting && std::string(setting) == "1";
}

} // namespace

// ---- launching ------------------------------------------------------------------------------------------------------

Launches::Launches(std::string op, const Tensor& input)
    : op_(std::move(op)), guard_(input.device()), device_(input.device()), refusal_(record_of(device_)) {
    raise_refused(op_, refusal_);
}

segloss_cuda_call Launches::call(int64_t num_classes, int64_t ignore_index, at::IntArrayRef sizes, ScalarType dtype,
                                 int64_t num_samples, int64_t num_summed) {
    segloss_cuda_call call{};
    call.real = real_of(dtype);
    call.end = c10::multiply_integers(sizes);
    call.num_samples = num_samples;
    const auto size = segloss_cuda_workspace(call.end, num_samples, num_summed);
    workspace_ = at::empty({static_cast<int64_t>(size)}, at::TensorOptions(device_).dtype(at::kByte));
    call.workspace = workspace_.mutable_data_ptr();
    call.refusal = refusal_;
    call.stream = native_stream();
    op_.copy(call.origin.op, sizeof call.origin.op - 1);
    call.origin.num_classes = num_classes;
    call.origin.ignore_index = ignore_index;
    call.origin.num_dims = static_cast<int>(std::min(sizes.size(), std::size(call.origin.sizes)));
    std::copy_n(sizes.begin(), call.origin.num_dims, call.origin.sizes);
    return call;
}

void Launches::check(int error) const {
    TORCH_CHECK(error == 0, op_, ": a CUDA kernel could not be launched, error ", error, " of CUDA's runtime");
}

bool Launches::refused() const {
    if (device_.is_cuda()) {
        stream().synchronize();
    }
    return take_report(refusal_).has_value();
}

bool Launches::refused_at_once() const { return checks_at_once() && refused(); }

c10::Stream Launches::stream() const { return c10::impl::VirtualGuardImpl(device_.type()).getStream(device_); }

// Other devices occur only in tests, where the kernels run at once.
void* Launches::native_stream() const { return device_.is_cuda() ? stream().native_handle() : nullptr; }

namespace {

// Whether there are kernels for these losses of resized logits.
bool has_resized_kernels(const CrossEntropy::Options& options) {
    return options.label_smoothing == 0 && !options.log_probabilities;
}
bool has_resized_kernels(const SoftStats::Options& options) {
    return options.is_softmax() && !options.squared && (!options.voxel_loss || options.label_smoothing == 0);
}
bool has_resized_kernels(const BinaryCrossEntropy::Options& /*options*/) { return false; }

// Resized logits that have no CUDA kernels take the composite, slab by slab.
template <class Options>
bool takes_composite(const Arguments& arguments, const Options& options, const Reading& reading) {
    if (!arguments.coarse) {
        return false;
    }
    const bool has_kernels = reading.kind == Target::labels && has_resized_kernels(options) &&
                             CudaResize::takes(*arguments.coarse, reading.dim, reading.compute_dtype());
    return !has_kernels;
}

// The sizes for a voxel's index in messages: those of the labels as given, if the target holds labels.
at::DimVector label_sizes(const VoxelArguments& voxels) {
    const bool has_labels = voxels.reading.kind == Target::labels || voxels.reading.kind == Target::sets;
    return has_labels ? at::DimVector(voxels.arguments.target.sizes()) : voxels.sizes;
}

// Where the kernels put a loss and its total weight. An undefined loss is not reduced.
template <class Options>
segloss_cuda_sums reduced_into(const Tensor& loss, const Tensor& total_weight, const Options& options) {
    segloss_cuda_sums sums{};
    if (loss.defined()) {
        const auto view = view_of(loss, /*num_dims=*/0, /*dim=*/0);
        sums.loss = view.data;
        sums.loss_dtype = view.dtype;
        sums.reduction = !options.is_mean() ? SEGLOSS_SUM : options.empty_zero ? SEGLOSS_MEAN_OR_ZERO : SEGLOSS_MEAN;
    }
    sums.weight = total_weight.mutable_data_ptr<double>();
    return sums;
}

// A launcher that adds weights alone.
using WeightLauncher = int (*)(const segloss_cross_entropy*, const segloss_cuda_call*, const segloss_cuda_sums*);

// Whether the denominator is known before; sets the scale of the gradient if it is.
template <class Loss> bool set_gradient_scale(VoxelArguments& voxels, const typename Loss::Options& options) {
    const auto known = options.is_mean() ? Loss::known_total(voxels) : 1;
    if (known) {
        voxels.args.grad_scale = Loss::gradient_scale(*known, options);
    }
    return known.has_value();
}

// Prepares a forward call that also writes the gradient. A total weight that is not known before goes to `sums`, and is
// returned: forward divides by it.
template <class Loss>
const double* prepare_gradient(VoxelArguments& voxels, const typename Loss::Options& options, const Launches& launches,
                               segloss_cuda_call call, segloss_cuda_sums& sums, WeightLauncher launch) {
    if (set_gradient_scale<Loss>(voxels, options)) {
        return nullptr;
    }
    call.refusal = nullptr; // forward reports
    segloss_cuda_sums of_weight{};
    of_weight.weight = std::exchange(sums.weight, nullptr);
    launches.check(launch(&voxels.args, &call, &of_weight));
    return of_weight.weight;
}

// ---- cross entropy --------------------------------------------------------------------------------------------------

CrossEntropy::Results cross_entropy_forward(const Arguments& arguments, const CrossEntropy::Options& options,
                                            const Reading& reading) {
    if (takes_composite(arguments, options, reading)) {
        return Operator<CrossEntropy>::forward_slabs(arguments, options, reading);
    }
    auto results = CrossEntropy::shapes(arguments, options, reading);
    const auto& [loss, total_weight, gradient] = results;
    const auto losses = options.is_reduced() ? Tensor() : loss;
    VoxelArguments voxels(arguments, reading, options.of_voxels());
    auto& args = voxels.args;
    auto resize = describe_voxels(voxels, {{&losses, &args.loss}}, options.with_gradient ? gradient : Tensor());
    Launches launches(arguments.op, arguments.input);
    auto call = launches.call(args, label_sizes(voxels), reading.dtype);
    if (resize) {
        resize->add_to(call);
    }
    auto sums = reduced_into(options.is_reduced() ? loss : Tensor(), total_weight, options);
    const bool has_scale = !options.with_gradient || set_gradient_scale<CrossEntropy>(voxels, options);
    launches.check(has_scale ? segloss_cuda_cross_entropy_forward(&args, &call, /*total_weight=*/nullptr, &sums)
                             : segloss_cuda_cross_entropy_mean(&args, &call, &sums));
    if (launches.refused_at_once()) {
        raise_refused(arguments, reading);
    }
    return results;
}

// Writes the gradient; with `unless_one` only if that of the loss is not 1.
void write_gradient(const Tensor& gradient, const CrossEntropy::Handed& handed, const Arguments& arguments,
                    const CrossEntropy::Options& options, const Reading& reading, bool unless_one) {
    const auto& [grad_loss, total_weight] = handed;
    VoxelArguments voxels(arguments, reading, options.of_voxels());
    auto& args = voxels.args;
    auto resize = describe_voxels(voxels, {{&grad_loss, &args.grad_loss}}, gradient);
    Launches launches(arguments.op, arguments.input);
    auto call = launches.call(args, label_sizes(voxels), reading.dtype);
    if (resize) {
        resize->add_to(call);
    }
    const auto* denominator = options.is_mean() ? total_weight.const_data_ptr<double>() : nullptr;
    launches.check(segloss_cuda_cross_entropy_backward(&args, &call, denominator, unless_one));
    if (launches.refused_at_once()) {
        raise_refused(arguments, reading);
    }
}

// ---- soft statistics ------------------------------------------------------------------------------------------------

// Expands one value per sample to one per voxel.
Tensor of_voxels(const Tensor& of_samples, at::IntArrayRef sizes) {
    std::vector<int64_t> first(sizes.size(), 1);
    if (!first.empty()) {
        first[0] = sizes[0];
    }
    return of_samples.view(first).expand(sizes);
}

segloss_cuda_sums sums_into(const SoftStats::Results& results) {
    const auto& [intersection, prediction, target, loss, weight] = results;
    segloss_cuda_sums sums{};
    sums.loss = loss.mutable_data_ptr();
    sums.loss_dtype = SEGLOSS_FLOAT64;
    sums.weight = weight.mutable_data_ptr<double>();
    sums.intersection = intersection.mutable_data_ptr<double>();
    sums.prediction = prediction.mutable_data_ptr<double>();
    sums.target = target.mutable_data_ptr<double>();
    return sums;
}

SoftStats::Results soft_stats_forward(const Arguments& arguments, const SoftStats::Options& options,
                                      const Reading& reading) {
    if (takes_composite(arguments, options, reading)) {
        return Operator<SoftStats>::forward_slabs(arguments, options, reading);
    }
    VoxelArguments voxels(arguments, reading, options.of_voxels());
    auto resize = describe_voxels(voxels, {});
    auto args = kernel_arguments(voxels, options);
    const auto samples = num_samples(arguments.input, options.dim).expect_int();
    auto results = SoftStats::shapes(arguments, options, reading);
    const auto sums = sums_into(results);
    Launches launches(arguments.op, arguments.input);
    if (samples > 0) {
        auto call = launches.call(args.voxels, label_sizes(voxels), reading.dtype, samples, args.voxels.num_classes);
        if (resize) {
            resize->add_to(call);
        }
        launches.check(segloss_cuda_soft_stats_forward(&args, &call, /*total_weight=*/nullptr, &sums));
    }
    if (launches.refused_at_once()) {
        raise_refused(arguments, reading);
    }
    return results;
}

Tensor soft_stats_backward(const SoftStats::Handed& handed, const Arguments& arguments,
                           const SoftStats::Options& options, const Reading& reading) {
    if (takes_composite(arguments, options, reading)) {
        return Operator<SoftStats>::backward_slabs(handed, arguments, options, reading);
    }
    const auto by_class = [&](const Tensor& grad) { return grad.to(reading.compute_dtype()).contiguous(); };
    const auto by_intersection = by_class(handed[0]);
    const auto by_prediction = by_class(handed[1]);
    const auto grad_input = at::empty_like(arguments.logits());
    VoxelArguments voxels(arguments, reading, options.of_voxels());
    const auto by_loss = options.voxel_loss ? of_voxels(handed[2], voxels.sizes) : Tensor();
    auto resize = describe_voxels(voxels, {{&by_loss, &voxels.args.grad_loss}}, grad_input);
    auto args = kernel_arguments(voxels, options);
    args.grad_intersection = by_intersection.const_data_ptr();
    args.grad_prediction = by_prediction.const_data_ptr();
    const auto samples = num_samples(arguments.input, options.dim).expect_int();
    Launches launches(arguments.op, arguments.input);
    if (samples > 0) {
        auto call = launches.call(args.voxels, label_sizes(voxels), reading.dtype, samples);
        if (resize) {
            resize->add_to(call);
        }
        launches.check(segloss_cuda_soft_stats_backward(&args, &call, /*total_weight=*/nullptr, /*unless_one=*/0));
    }
    if (launches.refused_at_once()) {
        raise_refused(arguments, reading);
    }
    return grad_input;
}

// ---- binary cross entropy: by the kernels of soft statistics, as one sample -----------------------------------------

segloss_soft_stats as_soft_stats(const VoxelArguments& voxels) {
    segloss_soft_stats args{};
    args.voxels = voxels.args;
    args.activation = SEGLOSS_SIGMOID;
    args.with_loss = 1;
    return args;
}

BinaryCrossEntropy::Results binary_forward(const Arguments& arguments, const BinaryCrossEntropy::Options& options,
                                           const Reading& reading) {
    if (takes_composite(arguments, options, reading)) {
        return Operator<BinaryCrossEntropy>::forward_slabs(arguments, options, reading);
    }
    auto results = BinaryCrossEntropy::shapes(arguments, options, reading);
    const auto& [loss, total_weight, gradient] = results;
    const auto losses = options.is_reduced() ? Tensor() : loss;
    VoxelArguments voxels(arguments, reading, options.of_voxels());
    voxels.describe_with({{&losses, &voxels.args.loss}}, options.with_gradient ? gradient : Tensor());
    Launches launches(arguments.op, arguments.input);
    const auto call = launches.call(voxels.args, label_sizes(voxels), reading.dtype);
    auto sums = reduced_into(options.is_reduced() ? loss : Tensor(), total_weight, options);
    const auto* const denominator =
        options.with_gradient
            ? prepare_gradient<BinaryCrossEntropy>(voxels, options, launches, call, sums, segloss_cuda_binary_weight)
            : nullptr;
    const auto args = as_soft_stats(voxels);
    launches.check(segloss_cuda_soft_stats_forward(&args, &call, denominator, &sums));
    if (launches.refused_at_once()) {
        raise_refused(arguments, reading);
    }
    return results;
}

// As that of cross entropy.
void write_gradient(const Tensor& gradient, const BinaryCrossEntropy::Handed& handed, const Arguments& arguments,
                    const BinaryCrossEntropy::Options& options, const Reading& reading, bool unless_one) {
    const auto& [grad_loss, total_weight] = handed;
    VoxelArguments voxels(arguments, reading, options.of_voxels());
    voxels.describe_with({{&grad_loss, &voxels.args.grad_loss}}, gradient);
    const auto args = as_soft_stats(voxels);
    Launches launches(arguments.op, arguments.input);
    const auto call = launches.call(args.voxels, label_sizes(voxels), reading.dtype);
    const auto* denominator = options.is_mean() ? total_weight.const_data_ptr<double>() : nullptr;
    launches.check(segloss_cuda_soft_stats_backward(&args, &call, denominator, unless_one));
    if (launches.refused_at_once()) {
        raise_refused(arguments, reading);
    }
}

// ---- gradients of voxel losses --------------------------------------------------------------------------------------

template <class Loss>
Tensor backward(const typename Loss::Handed& handed, const Arguments& arguments, const typename Loss::Options& options,
                const Reading& reading) {
    if (takes_composite(arguments, options, reading)) {
        return Operator<Loss>::backward_slabs(handed, arguments, options, reading);
    }
    const auto gradient = at::empty_like(arguments.logits());
    write_gradient(gradient, handed, arguments, options, reading, /*unless_one=*/false);
    return gradient;
}

template <class Loss>
void rescale(const Tensor& gradient, const typename Loss::Handed& handed, const Arguments& arguments,
             const typename Loss::Options& options, const Reading& reading) {
    write_gradient(gradient, handed, arguments, options, reading, /*unless_one=*/true);
}

} // namespace

TORCH_LIBRARY_FRAGMENT(segloss, m) { m.def("raise_reported(str op, int device) -> ()", TORCH_FN(raise_reported)); }

TORCH_LIBRARY_IMPL(segloss, CUDA, m) {
    Operator<CrossEntropy>::implement<&cross_entropy_forward, &backward<CrossEntropy>, &rescale<CrossEntropy>>(m);
    Operator<BinaryCrossEntropy>::implement<&binary_forward, &backward<BinaryCrossEntropy>,
                                            &rescale<BinaryCrossEntropy>>(m);
    Operator<SoftStats>::implement<&soft_stats_forward, &soft_stats_backward>(m);
}

} // namespace segloss
