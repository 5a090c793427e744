// What the operators on CUDA tensors share: they launch kernels, and raise what earlier ones have refused.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Stream.h>

#include <string>

#include "../kernels/cuda/launchers.h"

namespace segloss {

// Launches the kernels of one operator on the device's current stream. Raises the error for what earlier ones refused.
class Launches {
public:
    Launches(std::string op, const at::Tensor& input);

    // A call for all voxels of labels of the given sizes, with results of `dtype`; the first dimension is that of the
    // samples. `num_summed` classes have sums of their own.
    segloss_cuda_call call(int64_t num_classes, int64_t ignore_index, at::IntArrayRef sizes, at::ScalarType dtype,
                           int64_t num_samples = 1, int64_t num_summed = 0);
    template <typename Arguments>
    segloss_cuda_call call(const Arguments& args, at::IntArrayRef sizes, at::ScalarType dtype, int64_t num_samples = 1,
                           int64_t num_summed = 0) {
        return call(args.num_classes, args.ignore_index, sizes, dtype, num_samples, num_summed);
    }

    // Raises if a launcher returned an error.
    void check(int error) const;

    // Waits for the device, returns whether it refused anything, and clears the record.
    bool refused() const;

    // The same with SEGLOSS_SYNC_CHECKS=1; otherwise false, and the next operator raises.
    bool refused_at_once() const;

private:
    c10::Stream stream() const;
    void* native_stream() const;

    std::string op_;
    c10::DeviceGuard guard_;
    c10::Device device_;
    segloss_refusal* refusal_;
    at::Tensor workspace_;
};

} // namespace segloss
