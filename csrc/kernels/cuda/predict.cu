// The class of each voxel, or for each class whether its logit is above a threshold; a thread owns a voxel.

#include "launch.cuh"
#include "tile_call.h"

namespace {

template <typename Logits> __device__ void write_masks(const segloss_predict& a, const Logits& logits, int64_t offset) {
    using Real = decltype(number(logits[0]));
    for (int64_t c = 0; c < a.num_classes; ++c) {
        const bool is_above = number(logits[c]) > static_cast<Real>(a.threshold);
        store_integer(a.prediction, offset + c * a.prediction.stride_class, is_above);
    }
}

template <typename Logits>
__device__ void write_prediction(const segloss_predict& a, const Logits& logits, int64_t offset) {
    if (a.has_threshold) {
        write_masks(a, logits, offset);
    } else {
        store_integer(a.prediction, offset, argmax(logits, a.num_classes));
    }
}

template <typename T, bool TILED>
__global__ void __launch_bounds__(THREADS)
    predict(const __grid_constant__ segloss_predict a, int64_t begin, int64_t end) {
    using PredictWalk = Walk<2>;
    const int thread = static_cast<int>(threadIdx.x);
    Tile<T> tile(a.num_classes);
    for_each_tile(PredictWalk(a.positions, {&a.logits, &a.prediction}), begin, end,
                  [&](const PredictWalk& at, int count) {
                      if constexpr (TILED) {
                          tile.load(a.logits, at[0], count);
                      }
                      if (thread >= count) {
                          return;
                      }
                      if constexpr (TILED) {
                          write_prediction(a, tile.voxel(thread), at[1]);
                      } else {
                          const auto first = static_cast<const T*>(a.logits.data) + at[0];
                          write_prediction(a, Classes<const T, int64_t>{first, a.logits.stride_class}, at[1]);
                      }
                  });
}

// Of logits of another size.
int launch_resized(const segloss_predict& args, const segloss_cuda_call& call) {
    segloss_cross_entropy voxels{};
    voxels.positions = args.positions;
    voxels.num_classes = args.num_classes;
    voxels.target_kind = SEGLOSS_LABELS;
    voxels.loss = args.prediction;
    TileCall tiles;
    if (!describe_resized_tiles(voxels, call, &tiles)) {
        return cudaErrorInvalidValue;
    }
    const auto threshold = static_cast<float>(args.threshold);
    const int error = launch_axis_tables(tiles, call);
    return error != cudaSuccess ? error
                                : launch_resized_predictions(tiles, call, args.has_threshold ? &threshold : nullptr);
}

} // namespace

extern "C" int segloss_cuda_predict(const segloss_predict* args, const segloss_cuda_call* call) {
    if (call->resize) {
        return launch_resized(*args, *call);
    }
    const int64_t blocks = num_blocks(call->end - call->begin, 1), num_classes = args->num_classes;
    return with_types(SEGLOSS_REAL_DOUBLE, args->logits.dtype, num_classes, 0, [&](auto, auto element, auto tiled) {
        using T = decltype(element);
        const Grid grid{blocks, 1, tiled() ? tile_bytes<T>(num_classes) : 0};
        return launch(*call, grid, predict<T, tiled()>, *args, call->begin, call->end);
    });
}
