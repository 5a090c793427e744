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
    int dtype, label_dtype, is_planar, per_sample;
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

static segloss_cross_entropy cross_entropy_of(const model_problem& p, bool has_grad) {
    segloss_cross_entropy a{};
    a.positions = positions_of(p);
    a.num_classes = p.num_classes;
    a.logits = describe(p, p.logits, p.dtype, p.num_classes);
    a.target = describe(p, p.labels, p.label_dtype, 1);
    a.target_kind = SEGLOSS_LABELS;
    a.ignore_index = -100;
    a.grad_scale = 1;
    a.grad_loss.data = has_grad ? p.grad_loss : nullptr;
    a.grad_loss.dtype = SEGLOSS_FLOAT32;
    if (has_grad) {
        a.grad_logits = describe(p, p.grad, p.dtype, p.num_classes);
    }
    return a;
}

static segloss_soft_stats soft_stats_of(const model_problem& p, bool has_grad, bool with_loss) {
    segloss_soft_stats s{};
    s.voxels = cross_entropy_of(p, has_grad);
    s.with_loss = with_loss;
    s.activation = SEGLOSS_SOFTMAX;
    s.sample_size = p.per_sample ? p.num_positions : 0;
    s.grad_intersection = p.grad_intersection;
    s.grad_prediction = p.grad_prediction;
    return s;
}

static segloss_cuda_call call_of(const model_problem& p, bool per_sample) {
    segloss_cuda_call call{};
    call.real = SEGLOSS_REAL_FLOAT;
    call.end = p.num_samples * p.num_positions;
    call.num_samples = per_sample ? p.num_samples : 1;
    call.workspace = p.workspace;
    call.refusal = static_cast<segloss_refusal*>(p.refusal);
    return call;
}

size_t model_workspace(const model_problem* p) {
    return segloss_cuda_workspace(p->num_samples * p->num_positions, p->per_sample ? p->num_samples : 1,
                                  p->num_classes);
}

int model_call(const char* name, const model_problem* p, OnLaunch f) {
    on_launch = f;
    const std::string op = name;
    const bool with_loss = op.find("dice_ce") == 0, backward = op.find("backward") != std::string::npos;
    double* const results = static_cast<double*>(p->results);
    double* const total_weight = static_cast<double*>(p->total_weight);
    const auto whole = call_of(*p, false), samples = call_of(*p, p->per_sample);
#ifdef FIRST_LAUNCHERS
    const auto sums = reinterpret_cast<segloss_sums*>(results);
    if (op == "cross_entropy" || op == "cross_entropy_forward") {
        const auto a = cross_entropy_of(*p, op == "cross_entropy");
        const int error = segloss_cuda_cross_entropy_forward(&a, &whole, sums);
        return error || op != "cross_entropy" ? error : segloss_cuda_cross_entropy_backward(&a, &whole, total_weight);
    }
    if (op == "counts") {
#else
    segloss_cuda_sums sums{};
    sums.loss = results;
    sums.loss_dtype = SEGLOSS_FLOAT32;
    sums.reduction = SEGLOSS_MEAN;
    sums.weight = results + p->num_samples;
    const int64_t cells = p->num_samples * p->num_classes;
    if (op == "cross_entropy") {
        const auto a = cross_entropy_of(*p, true);
        return segloss_cuda_cross_entropy_mean(&a, &whole, &sums);
    }
    if (op == "cross_entropy_forward") {
        const auto a = cross_entropy_of(*p, false);
        return segloss_cuda_cross_entropy_forward(&a, &whole, nullptr, &sums);
    }
    if (op == "cross_entropy_backward") {
        const auto a = cross_entropy_of(*p, true);
        return segloss_cuda_cross_entropy_backward(&a, &whole, total_weight, 0);
    }
    if (op == "counts") {
#endif
        segloss_confusion a{};
        a.positions = positions_of(*p);
        a.num_classes = p->num_classes;
        a.prediction = describe(*p, p->logits, p->dtype, p->num_classes);
        a.target = describe(*p, p->labels, p->label_dtype, 1);
        a.ignore_index = -100;
        a.per_class = 1;
        return segloss_cuda_confusion(&a, &whole, static_cast<int64_t*>(p->results));
    }
    const auto s = soft_stats_of(*p, backward, with_loss);
#ifdef FIRST_LAUNCHERS
    return backward ? segloss_cuda_soft_stats_backward(&s, &samples, with_loss ? total_weight : nullptr)
                    : segloss_cuda_soft_stats_forward(&s, &samples, results + 2 * p->num_samples, sums);
#else
    if (backward) {
        return segloss_cuda_soft_stats_backward(&s, &samples, with_loss ? total_weight : nullptr, 0);
    }
    sums.intersection = results + 2 * p->num_samples;
    sums.prediction = sums.intersection + cells;
    sums.target = sums.prediction + cells;
    return segloss_cuda_soft_stats_forward(&s, &samples, nullptr, &sums);
#endif
}
}
