// What stands for CUDA's runtime while the model runs: launches are handed on, nothing is executed. And calls of the
// launchers for one problem. Pointers are numbers that only the model's own memory understands.
#include <cuda_runtime.h>

#include <map>
#include <string>

#include "launchers.h"

using OnLaunch = void (*)(const char* name, const unsigned* grid, unsigned threads, unsigned shared_bytes, void** args);

namespace {

OnLaunch on_launch;

std::map<const void*, std::string>& names() {
    static std::map<const void*, std::string> all;
    return all;
}

} // namespace

extern "C" {

void** __cudaRegisterFatBinary(void*) {
    static void* handle;
    return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 0; }
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
    names()[host] = name;
}
unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, void*) { return 0; }
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return cudaSuccess; }
cudaError_t __cudaGetKernel(cudaKernel_t*, const void*) { return cudaSuccess; }
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) { return cudaSuccess; }

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
cudaError_t cudaMemsetAsync(void*, int, size_t, cudaStream_t) { return cudaSuccess; }

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void** args) {
    const unsigned grid[] = {config->gridDim.x, config->gridDim.y, config->gridDim.z};
    on_launch(names()[kernel].c_str(), grid, config->blockDim.x, static_cast<unsigned>(config->dynamicSmemBytes), args);
    return cudaSuccess;
}

struct model_problem {
    int64_t num_samples, num_classes, num_positions; // positions of one sample
    int64_t ignore_index;
    int dtype, is_planar; // labels and masks are uint8
    void *logits, *labels, *grad, *grad_loss, *grad_intersection, *grad_prediction, *workspace, *refusal, *total_weight,
        *results;
};

static segloss_tensor describe(const model_problem& p, void* data, int dtype, int64_t num_classes) {
    segloss_tensor t{};
    t.data = data;
    t.dtype = static_cast<segloss_dtype>(dtype);
    const bool is_planar = p.is_planar || num_classes == 1;
    t.stride_class = is_planar ? p.num_positions : 1;
    const int64_t of_sample = p.num_positions * num_classes, of_voxel = is_planar ? 1 : num_classes;
    if (p.num_samples > 1 && p.is_planar) {
        t.strides[0] = of_sample;
        t.strides[1] = of_voxel;
    } else {
        t.strides[0] = of_voxel;
    }
    return t;
}

static segloss_positions positions_of(const model_problem& p) {
    if (p.num_samples > 1 && p.is_planar) {
        return {2, {p.num_samples, p.num_positions}};
    }
    return {1, {p.num_samples * p.num_positions}};
}

static segloss_tensor labels_of(const model_problem& p) { return describe(p, p.labels, SEGLOSS_UINT8, 1); }

static segloss_cross_entropy cross_entropy_of(const model_problem& p, bool has_grad) {
    segloss_cross_entropy a{};
    a.positions = positions_of(p);
    a.num_classes = p.num_classes;
    a.logits = describe(p, p.logits, p.dtype, p.num_classes);
    a.target = labels_of(p);
    a.target_kind = SEGLOSS_LABELS;
    a.ignore_index = p.ignore_index;
    a.grad_scale = 1;
    if (has_grad) {
        a.grad_loss.data = p.grad_loss;
        a.grad_loss.dtype = SEGLOSS_FLOAT32;
        a.grad_logits = describe(p, p.grad, p.dtype, p.num_classes);
    }
    return a;
}

static segloss_soft_stats soft_stats_of(const model_problem& p, bool has_grad, bool with_loss) {
    segloss_soft_stats s{};
    s.voxels = cross_entropy_of(p, has_grad);
    s.with_loss = with_loss;
    s.activation = SEGLOSS_SOFTMAX;
    s.sample_size = p.num_positions;
    s.grad_intersection = p.grad_intersection;
    s.grad_prediction = p.grad_prediction;
    return s;
}

// With masks in place of labels.
static segloss_soft_stats sigmoid_of(const model_problem& p, bool has_grad, bool with_loss) {
    auto s = soft_stats_of(p, has_grad, with_loss);
    s.activation = SEGLOSS_SIGMOID;
    s.voxels.target = describe(p, p.labels, SEGLOSS_UINT8, p.num_classes);
    s.voxels.target_kind = SEGLOSS_MASKS;
    return s;
}

static segloss_cuda_call call_of(const model_problem& p, int64_t num_samples) {
    segloss_cuda_call call{};
    call.real = SEGLOSS_REAL_FLOAT;
    call.end = p.num_samples * p.num_positions;
    call.num_samples = num_samples;
    call.workspace = p.workspace;
    call.refusal = static_cast<segloss_refusal*>(p.refusal);
    return call;
}

// Of a mean, with the gradient. Without ignored labels its denominator is known before.
static int cross_entropy(const model_problem& p, const segloss_cuda_call& call, const segloss_cuda_sums& sums) {
    auto a = cross_entropy_of(p, true);
    a.grad_loss = {};
    if (p.ignore_index >= 0) {
        return segloss_cuda_cross_entropy_mean(&a, &call, &sums);
    }
    a.grad_scale = 1 / static_cast<double>(call.end);
    return segloss_cuda_cross_entropy_forward(&a, &call, nullptr, &sums);
}

// Likewise.
static int binary_cross_entropy(const model_problem& p, const segloss_cuda_call& call, const segloss_cuda_sums& sums) {
    auto s = sigmoid_of(p, true, true);
    s.voxels.grad_loss = {};
    s.voxels.grad_scale = 1 / static_cast<double>(call.end * p.num_classes);
    return segloss_cuda_soft_stats_forward(&s, &call, nullptr, &sums);
}

static int counts(const model_problem& p, const segloss_cuda_call& call) {
    segloss_confusion a{};
    a.positions = positions_of(p);
    a.num_classes = p.num_classes;
    a.prediction = describe(p, p.logits, p.dtype, p.num_classes);
    a.target = labels_of(p);
    a.ignore_index = p.ignore_index;
    a.per_class = 1;
    return segloss_cuda_confusion(&a, &call, static_cast<int64_t*>(p.results));
}

int model_call(const char* name, const model_problem* p, OnLaunch f) {
    on_launch = f;
    const std::string op = name;
    const bool with_loss = op.find("dice_ce") == 0, backward = op.find("backward") != std::string::npos;
    double* const results = static_cast<double*>(p->results);
    double* const total_weight = static_cast<double*>(p->total_weight);
    const auto whole = call_of(*p, 1), samples = call_of(*p, p->num_samples);
    segloss_cuda_sums sums{};
    sums.loss = results;
    sums.loss_dtype = SEGLOSS_FLOAT32;
    sums.reduction = SEGLOSS_MEAN;
    sums.weight = results + p->num_samples;
    if (op.find("cross_entropy") == 0) {
        return cross_entropy(*p, whole, sums);
    }
    if (op == "counts") {
        return counts(*p, whole);
    }
    if (op == "sigmoid_bce") {
        return binary_cross_entropy(*p, whole, sums);
    }
    const auto s =
        op.find("sigmoid") == 0 ? sigmoid_of(*p, backward, with_loss) : soft_stats_of(*p, backward, with_loss);
    if (backward) {
        return segloss_cuda_soft_stats_backward(&s, &samples, with_loss ? total_weight : nullptr, 0);
    }
    sums.intersection = results + 2 * p->num_samples;
    sums.prediction = sums.intersection + p->num_samples * p->num_classes;
    sums.target = sums.prediction + p->num_samples * p->num_classes;
    return segloss_cuda_soft_stats_forward(&s, &samples, nullptr, &sums);
}
}
