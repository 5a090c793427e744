// Cross entropy, focal too, and its gradient; a thread owns a voxel. The formulas are in kernels.h and voxel_tmpl.h.

#include "voxels.cuh"

namespace {

template <typename Real, typename T>
__device__ void add_voxel(const Voxel<Real, T>& v, int64_t position, Totals* mine) {
    Real loss = 0;
    if (v.is_refused()) {
        mine->refuse(position);
        loss = static_cast<Real>(NAN);
        mine->weight = NAN;
    } else if (v.weight != 0) {
        loss = v.loss(v.read_softmax(v.has_factors()));
        mine->weight += static_cast<double>(v.share_of_mean());
    }
    mine->loss += static_cast<double>(loss);
    if (v.a->loss.data) {
        store(v.a->loss, v.loss_at, static_cast<double>(loss));
    }
}

template <typename Real, typename T>
__global__ void forward(const __grid_constant__ segloss_cross_entropy a, int64_t begin, int64_t end,
                        Totals* of_blocks) {
    Totals mine;
    for_each_position(begin, end, [&](int64_t p) { add_voxel(Voxel<Real, T>(a, p), p, &mine); });
    write_totals(mine, of_blocks);
}

template <typename Real, typename T>
__device__ void write_voxel_grad(const Voxel<Real, T>& v, int64_t position, const double* total_weight, Totals* mine) {
    if (v.is_refused()) {
        mine->refuse(position);
        v.fill_grad(static_cast<Real>(NAN));
    } else if (v.weight == 0) {
        v.fill_grad(0);
    } else {
        const auto softmax = v.read_softmax(v.has_factors());
        const LossGrad<Real, T> grad(v, softmax, v.grad_scale(total_weight));
        for (int64_t c = 0; c < v.a->num_classes; ++c) {
            v.write_grad(c, grad(c));
        }
    }
}

template <typename Real, typename T>
__global__ void backward(const __grid_constant__ segloss_cross_entropy a, int64_t begin, int64_t end,
                         const double* total_weight, Totals* of_blocks) {
    Totals mine;
    for_each_position(begin, end, [&](int64_t p) { write_voxel_grad(Voxel<Real, T>(a, p), p, total_weight, &mine); });
    write_totals(mine, of_blocks);
}

} // namespace

extern "C" int segloss_cuda_cross_entropy_forward(const segloss_cross_entropy* args, const segloss_cuda_call* call,
                                                  segloss_sums* sums) {
    const int blocks = num_blocks(call->end - call->begin, THREADS);
    const auto totals = static_cast<Totals*>(call->workspace);
    return with_types(call->real, args->logits.dtype, [&](auto real, auto element) {
        using Real = decltype(real);
        using T = decltype(element);
        const auto error = launch(*call, blocks, forward<Real, T>, *args, call->begin, call->end, totals);
        return error != cudaSuccess ? error
                                    : launch(*call, 1, finish<Real, T>, *args, *call, totals, blocks, 1.0, sums);
    });
}

extern "C" int segloss_cuda_cross_entropy_backward(const segloss_cross_entropy* args, const segloss_cuda_call* call,
                                                   const double* total_weight) {
    const int blocks = num_blocks(call->end - call->begin, THREADS);
    const auto totals = static_cast<Totals*>(call->workspace);
    segloss_sums* const no_sums = nullptr;
    return with_types(call->real, args->logits.dtype, [&](auto real, auto element) {
        using Real = decltype(real);
        using T = decltype(element);
        const auto error =
            launch(*call, blocks, backward<Real, T>, *args, call->begin, call->end, total_weight, totals);
        return error != cudaSuccess ? error
                                    : launch(*call, 1, finish<Real, T>, *args, *call, totals, blocks, 1.0, no_sums);
    });
}
