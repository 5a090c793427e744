#include "layout.h"

#include <ATen/ScalarOps.h>
#include <ATen/core/Tensor.h>

#include <cstdlib>
#include <string>
#include <utility>

#ifndef _WIN32
#include <pthread.h>
#endif

namespace segloss {
namespace {

std::atomic<bool> forked{false};

#ifndef _WIN32
// fork copies only the calling thread. OpenMP does not know this, and would wait for its other threads forever.
[[maybe_unused]] const int noting_forks = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

segloss_dtype dtype_of(const at::Tensor& tensor) {
    static constexpr std::pair<at::ScalarType, segloss_dtype> kDtypes[] = {
        {at::kFloat, SEGLOSS_FLOAT32},     {at::kDouble, SEGLOSS_FLOAT64}, {at::kHalf, SEGLOSS_FLOAT16},
        {at::kBFloat16, SEGLOSS_BFLOAT16}, {at::kLong, SEGLOSS_INT64},     {at::kByte, SEGLOSS_UINT8},
        {at::kBool, SEGLOSS_UINT8},        {at::kInt, SEGLOSS_INT32},      {at::kChar, SEGLOSS_INT8},
        {at::kShort, SEGLOSS_INT16},       {at::kUInt16, SEGLOSS_UINT16},  {at::kUInt32, SEGLOSS_UINT32},
        {at::kUInt64, SEGLOSS_UINT64}};
    for (const auto& [dtype, of_kernels] : kDtypes) {
        if (dtype == tensor.scalar_type()) {
            return of_kernels;
        }
    }
    TORCH_CHECK_TYPE(false, "segloss: expected a tensor of an integer dtype, bool, float64, float32, float16 or ",
                     "bfloat16, got ", tensor.scalar_type());
}

// The instruction sets that this processor has, the best one first.
std::string isa_names() {
    std::string names;
    for (int k = 0; const segloss_kernels* usable = segloss_usable_kernels(k); ++k) {
        names += (k > 0 ? ", " : "") + std::string(usable->isa);
    }
    return names;
}

} // namespace

const segloss_kernels& kernels() {
    static const segloss_kernels* chosen = segloss_select_kernels(std::getenv("SEGLOSS_ISA"));
    TORCH_CHECK_VALUE(chosen, "segloss: expected SEGLOSS_ISA to be one that this processor has (", isa_names(),
                      "), got '", std::getenv("SEGLOSS_ISA"), "'. Unset it to let segloss choose");
    return *chosen;
}

int64_t num_threads() { return forked ? 1 : at::get_num_threads(); }

segloss_real real_of(at::ScalarType dtype) {
    return compute_dtype(dtype) == at::kDouble ? SEGLOSS_REAL_DOUBLE : SEGLOSS_REAL_FLOAT;
}

at::Tensor class_weight_for_kernel(const std::optional<at::Tensor>& weight, at::ScalarType dtype) {
    return weight ? weight->detach().to(compute_dtype(dtype)).contiguous() : at::Tensor();
}

at::DimVector position_sizes(const at::Tensor& input, int64_t dim) {
    at::DimVector sizes(input.sizes());
    sizes.erase(sizes.begin() + dim);
    return sizes;
}

segloss_tensor view_of(const at::Tensor& tensor, int64_t num_dims, int64_t dim) {
    segloss_tensor view{};
    if (tensor.defined()) {
        // A const pointer leaves lazy copies lazy. Writing through it is safe, as outputs are fresh tensors.
        view.data = const_cast<void*>(tensor.const_data_ptr());
        view.dtype = dtype_of(tensor);
        view.stride_class = tensor.dim() > num_dims ? tensor.stride(dim) : 0;
    }
    return view;
}

int64_t position_stride(const at::Tensor& tensor, int64_t num_dims, int64_t dim, int64_t d) {
    if (!tensor.defined() || tensor.dim() == 0) {
        return 0;
    }
    return tensor.strides()[tensor.dim() > num_dims && d >= dim ? d + 1 : d];
}

segloss_positions describe(at::IntArrayRef sizes, int64_t dim, at::ArrayRef<Operand> operands) {
    const auto num_dims = static_cast<int64_t>(sizes.size());
    for (const auto& operand : operands) {
        *operand.view = view_of(*operand.tensor, num_dims, dim);
    }
    segloss_positions positions{0, {}};
    for (int64_t d = 0; d < num_dims; ++d) {
        if (sizes[d] == 1) {
            continue;
        }
        const auto stride = [&](const Operand& operand) { return position_stride(*operand.tensor, num_dims, dim, d); };
        const bool merge =
            positions.num_dims > 0 && std::all_of(operands.begin(), operands.end(), [&](const Operand& operand) {
                return operand.view->strides[positions.num_dims - 1] == stride(operand) * sizes[d];
            });
        TORCH_CHECK(merge || positions.num_dims < SEGLOSS_MAX_DIMS, "segloss: expected at most ", SEGLOSS_MAX_DIMS,
                    " dimensions that lie apart in memory, got positions ", sizes,
                    ". Make input and target contiguous()");
        positions.num_dims += merge ? 0 : 1;
        const auto last = positions.num_dims - 1;
        positions.sizes[last] = (merge ? positions.sizes[last] : 1) * sizes[d];
        for (const auto& operand : operands) {
            operand.view->strides[last] = stride(operand);
        }
    }
    if (positions.num_dims == 0) {
        positions = {1, {1}};
    }
    return positions;
}

std::optional<segloss_sums> sum_over(const Chunks& chunks, SumKernel kernel, const segloss_cross_entropy& args) {
    std::vector<segloss_sums> sums(chunks.count());
    const bool accepted =
        chunks.run([&](int64_t chunk, int64_t begin, int64_t end) { return kernel(&args, begin, end, &sums[chunk]); });
    segloss_sums total{0, 0};
    for (const auto& sum : sums) {
        total.loss += sum.loss;
        total.weight += sum.weight;
    }
    return accepted ? std::optional(total) : std::nullopt;
}

at::Tensor number(double value, at::ScalarType dtype) {
    return at::detail::scalar_tensor_static(value, dtype, at::kCPU);
}

} // namespace segloss
