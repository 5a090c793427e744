// Cross entropy, including focal loss, and its gradient; a thread owns a voxel. The formulas are in kernels.h and
// voxel_tmpl.h.

#include "label_weights.cuh"
#include "tile_launch.cuh"
#include "voxels.cuh"

namespace {

template <typename V>
__device__ void write_loss_grad(const V& v, const typename V::Softmax& s, const double* total_weight) {
    using Real = typename V::Number;
    const LossGrad<V> grad(v, s, v.grad_scale(total_weight));
    grad.for_each([&](int64_t c, Real value) { v.write_grad(c, value); });
}

// With the gradient, if it is wanted.
template <typename V> __device__ void add_voxel(const V& v, const double* total_weight, Totals* mine) {
    using Real = typename V::Number;
    const bool has_grad = v.a->grad_logits.data;
    Real loss = 0;
    if (v.is_refused()) {
        mine->refuse(v.position);
        loss = static_cast<Real>(NAN);
        mine->weight = NAN;
    } else if (v.weight != 0) {
        const auto softmax = v.read_softmax(v.has_factors());
        loss = v.loss(softmax);
        mine->weight += static_cast<double>(v.share_of_mean());
        if (has_grad) {
            write_loss_grad(v, softmax, total_weight);
        }
    }
    if (has_grad && v.weight == 0) {
        v.fill_without_weight();
    }
    mine->loss += static_cast<double>(loss);
    if (v.exists && v.a->loss.data) {
        store(v.a->loss, v.loss_at, static_cast<double>(loss));
    }
}

template <typename Real, typename T, bool TILED>
__global__ void __launch_bounds__(THREADS) forward(const __grid_constant__ segloss_cross_entropy a, int64_t begin,
                                                   int64_t end, const double* total_weight, Totals* of_blocks) {
    Totals mine;
    for_each_voxel<Voxel<Real, T, TILED>, T>(a, begin, end, [&](const auto& v) { add_voxel(v, total_weight, &mine); });
    write_totals(mine, of_blocks + blockIdx.x);
}

template <typename V> __device__ void write_voxel_grad(const V& v, const double* total_weight, Totals* mine) {
    if (v.is_refused()) {
        mine->refuse(v.position);
    }
    if (v.weight != 0) {
        write_loss_grad(v, v.read_softmax(v.has_factors()), total_weight);
    } else {
        v.fill_without_weight();
    }
}

template <typename Real, typename T, bool TILED>
__global__ void __launch_bounds__(THREADS)
    backward(const __grid_constant__ segloss_cross_entropy a, int64_t begin, int64_t end, const double* total_weight,
             int unless_one, Totals* of_blocks) {
    if (is_written<Real>(a, unless_one)) {
        return;
    }
    Totals mine;
    for_each_voxel<Voxel<Real, T, TILED>, T>(a, begin, end,
                                             [&](const auto& v) { write_voxel_grad(v, total_weight, &mine); });
    write_totals(mine, of_blocks + blockIdx.x);
}

// Of logits of another size, with their gradient, if it is wanted.
int launch_resized(const segloss_cross_entropy& args, const segloss_cuda_call& call, const Denominator& denominator,
                   int unless_one, int64_t* blocks) {
    TileCall tiles;
    if (!describe_resized_tiles(args, call, &tiles)) {
        return cudaErrorInvalidValue;
    }
    *blocks = tiles.grid.num_blocks;
    int error = launch_axis_tables(tiles, call);
    if (error == cudaSuccess) {
        error = launch_resized_cross_entropy(tiles, call, denominator, unless_one);
    }
    const bool has_grad = call.resize->grad.data != nullptr;
    return error != cudaSuccess || !has_grad ? error : launch_resized_grad(tiles, call, nullptr, unless_one);
}

// Launches a kernel over blocks of voxels, and sets `blocks` to their number.
int launch_forward(const segloss_cross_entropy& args, const segloss_cuda_call& call, const double* total_weight,
                   int64_t* blocks) {
    if (call.resize) {
        return launch_resized(args, call, {total_weight}, 0, blocks);
    }
    TileCall tiles;
    if (describe_tiles(args, call, &tiles)) {
        *blocks = tiles.grid.num_blocks;
        return with_type_of_tiles(tiles, [&](auto element) {
            return launch_cross_entropy_tiles<decltype(element)>(tiles, call, {total_weight}, 0);
        });
    }
    *blocks = num_blocks(call.end - call.begin, 1);
    return with_types(call.real, args.logits.dtype, args.num_classes, 0, [&](auto real, auto element, auto tiled) {
        using T = decltype(element);
        const Grid grid{*blocks, 1, tiled() ? tile_bytes<T>(args.num_classes) : 0};
        return launch(call, grid, forward<decltype(real), T, tiled()>, args, call.begin, call.end, total_weight,
                      static_cast<Totals*>(call.workspace));
    });
}

int launch_backward(const segloss_cross_entropy& args, const segloss_cuda_call& call, const double* total_weight,
                    int unless_one, int64_t* blocks) {
    if (call.resize) {
        return launch_resized(args, call, {total_weight}, unless_one, blocks);
    }
    TileCall tiles;
    if (describe_tiles(args, call, &tiles)) {
        *blocks = tiles.grid.num_blocks;
        return with_type_of_tiles(tiles, [&](auto element) {
            return launch_cross_entropy_tiles<decltype(element)>(tiles, call, {total_weight}, unless_one);
        });
    }
    *blocks = num_blocks(call.end - call.begin, 1);
    return with_types(call.real, args.logits.dtype, args.num_classes, 0, [&](auto real, auto element, auto tiled) {
        using T = decltype(element);
        const Grid grid{*blocks, 1, tiled() ? tile_bytes<T>(args.num_classes) : 0};
        return launch(call, grid, backward<decltype(real), T, tiled()>, args, call.begin, call.end, total_weight,
                      unless_one, static_cast<Totals*>(call.workspace));
    });
}

int launch_weight(const segloss_cross_entropy& args, const segloss_cuda_call& call, int64_t* blocks) {
    const auto error = launch_label_weights(args, call, blocks);
    if (error != cudaSuccess || *blocks > 0) {
        return error;
    }
    *blocks = num_blocks(call.end - call.begin, 1);
    const auto kernel = call.real == SEGLOSS_REAL_DOUBLE ? add_weights<double, false> : add_weights<float, false>;
    return launch(call, {*blocks}, kernel, args, call.begin, call.end, static_cast<Totals*>(call.workspace));
}

// Adds up what the blocks wrote.
int launch_finish(const segloss_cross_entropy& args, const segloss_cuda_call& call, int64_t blocks,
                  const double* total_weight, const segloss_cuda_sums& sums) {
    const auto kernel = call.real == SEGLOSS_REAL_DOUBLE ? finish<double> : finish<float>;
    return launch(call, {}, kernel, args, call, static_cast<const Totals*>(call.workspace), blocks, total_weight, sums);
}

// The same as launch_weight, finish and launch_forward, but the blocks of forward add up the weights on their own. Sets
// `blocks` to their number, and `call` to where they write; 0 if that is not possible.
int launch_mean(const segloss_cross_entropy& args, segloss_cuda_call* call, int64_t* blocks) {
    TileCall tiles;
    int64_t num_weights = 0;
    if (!call->resize && !describe_tiles(args, *call, &tiles)) {
        return cudaSuccess;
    }
    const auto error = launch_label_weights(args, *call, &num_weights);
    if (error != cudaSuccess || num_weights == 0) {
        return error;
    }
    const auto weights = static_cast<Totals*>(call->workspace);
    call->workspace = weights + MAX_WEIGHT_BLOCKS;
    constexpr int STRIDE = sizeof(Totals) / sizeof(double);
    const Denominator denominator{&weights->weight, static_cast<int>(num_weights), STRIDE};
    if (call->resize) {
        return launch_resized(args, *call, denominator, 0, blocks);
    }
    *blocks = tiles.grid.num_blocks;
    return with_type_of_tiles(tiles, [&](auto element) {
        return launch_cross_entropy_tiles<decltype(element)>(tiles, *call, denominator, 0);
    });
}

} // namespace

extern "C" int segloss_cuda_cross_entropy_weight(const segloss_cross_entropy* args, const segloss_cuda_call* call,
                                                 const segloss_cuda_sums* sums) {
    const auto without_ranges = without_target_range(*args);
    int64_t blocks = 0;
    const int error = launch_weight(without_ranges, *call, &blocks);
    return error != cudaSuccess ? error : launch_finish(without_ranges, *call, blocks, nullptr, *sums);
}

extern "C" int segloss_cuda_cross_entropy_forward(const segloss_cross_entropy* args, const segloss_cuda_call* call,
                                                  const double* total_weight, const segloss_cuda_sums* sums) {
    int64_t blocks = 0;
    const int error = launch_forward(*args, *call, total_weight, &blocks);
    return error != cudaSuccess ? error : launch_finish(*args, *call, blocks, total_weight, *sums);
}

extern "C" int segloss_cuda_cross_entropy_mean(const segloss_cross_entropy* args, const segloss_cuda_call* call,
                                               const segloss_cuda_sums* sums) {
    auto own_call = *call;
    int64_t blocks = 0;
    const int error = launch_mean(*args, &own_call, &blocks);
    if (error != cudaSuccess || blocks > 0) {
        return error != cudaSuccess ? error : launch_finish(*args, own_call, blocks, nullptr, *sums);
    }
    segloss_cuda_sums of_weight{};
    of_weight.weight = sums->weight;
    own_call.refusal = nullptr; // forward reports
    const int of_weight_error = segloss_cuda_cross_entropy_weight(args, &own_call, &of_weight);
    return of_weight_error != cudaSuccess ? of_weight_error
                                          : segloss_cuda_cross_entropy_forward(args, call, sums->weight, sums);
}

extern "C" int segloss_cuda_cross_entropy_backward(const segloss_cross_entropy* args, const segloss_cuda_call* call,
                                                   const double* total_weight, int unless_one) {
    int64_t blocks = 0;
    const int error = launch_backward(*args, *call, total_weight, unless_one, &blocks);
    return error != cudaSuccess || unless_one ? error : launch_finish(*args, *call, blocks, total_weight, {});
}
