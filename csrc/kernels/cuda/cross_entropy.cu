// Cross entropy, including focal loss, and its gradient; a thread owns a voxel. The formulas are in kernels.h and
// voxel_tmpl.h.

#include "launch.cuh"
#include "voxels.cuh"

namespace {

template <typename V> __device__ void add_voxel(const V& v, Totals* mine) {
    using Real = typename V::Number;
    Real loss = 0;
    if (v.is_refused()) {
        mine->refuse(v.position);
        loss = static_cast<Real>(NAN);
        mine->weight = NAN;
    } else if (v.weight != 0) {
        loss = v.loss(v.read_softmax(v.has_factors()));
        mine->weight += static_cast<double>(v.share_of_mean());
    }
    mine->loss += static_cast<double>(loss);
    if (v.exists && v.a->loss.data) {
        store(v.a->loss, v.loss_at, static_cast<double>(loss));
    }
}

template <typename Real, typename T, bool TILED>
__global__ void __launch_bounds__(THREADS)
    forward(const __grid_constant__ segloss_cross_entropy a, int64_t begin, int64_t end, Totals* of_blocks) {
    Totals mine;
    for_each_voxel<false, Voxel<Real, T, TILED>, T>(a, begin, end, [&](const auto& v) { add_voxel(v, &mine); });
    write_totals(mine, of_blocks + blockIdx.x);
}

template <typename V> __device__ void write_voxel_grad(const V& v, const double* total_weight, Totals* mine) {
    using Real = typename V::Number;
    if (v.is_refused()) {
        mine->refuse(v.position);
        v.fill_grad(static_cast<Real>(NAN));
    } else if (v.weight != 0) {
        const auto softmax = v.read_softmax(v.has_factors());
        const LossGrad<V> grad(v, softmax, v.grad_scale(total_weight));
        grad.for_each([&](int64_t c, Real value) { v.write_grad(c, value); });
    } else if (v.exists) {
        v.fill_grad(0);
    }
}

template <typename Real, typename T, bool TILED>
__global__ void __launch_bounds__(THREADS) backward(const __grid_constant__ segloss_cross_entropy a, int64_t begin,
                                                    int64_t end, const double* total_weight, Totals* of_blocks) {
    Totals mine;
    for_each_voxel<true, Voxel<Real, T, TILED>, T>(a, begin, end,
                                                   [&](const auto& v) { write_voxel_grad(v, total_weight, &mine); });
    write_totals(mine, of_blocks + blockIdx.x);
}

} // namespace

extern "C" int segloss_cuda_cross_entropy_forward(const segloss_cross_entropy* args, const segloss_cuda_call* call,
                                                  segloss_sums* sums) {
    const int blocks = num_blocks(call->end - call->begin, 1);
    const auto totals = static_cast<Totals*>(call->workspace);
    return with_types(call->real, args->logits.dtype, args->num_classes, 0, [&](auto real, auto element, auto tiled) {
        using Real = decltype(real);
        using T = decltype(element);
        const Grid grid{blocks, 1, tiled() ? tile_bytes<T>(args->num_classes) : 0};
        const auto error = launch(*call, grid, forward<Real, T, tiled()>, *args, call->begin, call->end, totals);
        return error != cudaSuccess ? error : launch(*call, {}, finish<Real>, *args, *call, totals, blocks, sums);
    });
}

extern "C" int segloss_cuda_cross_entropy_backward(const segloss_cross_entropy* args, const segloss_cuda_call* call,
                                                   const double* total_weight) {
    const int blocks = num_blocks(call->end - call->begin, 1);
    const auto totals = static_cast<Totals*>(call->workspace);
    segloss_sums* const no_sums = nullptr;
    return with_types(call->real, args->logits.dtype, args->num_classes, 0, [&](auto real, auto element, auto tiled) {
        using Real = decltype(real);
        using T = decltype(element);
        const Grid grid{blocks, 1, tiled() ? tile_bytes<T>(args->num_classes) : 0};
        const auto error =
            launch(*call, grid, backward<Real, T, tiled()>, *args, call->begin, call->end, total_weight, totals);
        return error != cudaSuccess ? error : launch(*call, {}, finish<Real>, *args, *call, totals, blocks, no_sums);
    });
}
