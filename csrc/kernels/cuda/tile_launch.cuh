// Chooses the shape of a call's tiles and launches a kernel over them.
#pragma once

#include "launch.cuh"
#include "warp_tiles.cuh"

namespace {

template <typename T, bool GROUPED, bool PLANAR, int... K, typename Function>
int with_classes_per_lane(std::integer_sequence<int, K...> /*numbers*/, int number, const Function& f) {
    int error = cudaErrorInvalidValue;
    ((number == K ? void(error = f(TileShape<T, K, GROUPED, PLANAR>())) : void()), ...);
    return error;
}

template <typename T, bool PLANAR, typename Function> int with_layout(const TileCall& tiles, const Function& f) {
    using Alone = std::integer_sequence<int, 2, 3, 4, 5, 6, 7, 8>;
    using Grouped = std::integer_sequence<int, 5, 6, 7, 8, 10, 12, 14, 16>;
    return tiles.grid.log_groups == 0 ? with_classes_per_lane<T, false, PLANAR>(Alone(), tiles.classes_per_lane, f)
                                      : with_classes_per_lane<T, true, PLANAR>(Grouped(), tiles.classes_per_lane, f);
}

// Returns f(shape), an error of CUDA's runtime.
template <typename T, typename Function> int with_shape(const TileCall& tiles, const Function& f) {
    return tiles.is_planar ? with_layout<T, true>(tiles, f) : with_layout<T, false>(tiles, f);
}

// Returns f(T()) for the type of the logits.
template <typename Function> int with_type_of_tiles(const TileCall& tiles, const Function& f) {
    switch (tiles.args.logits.dtype) {
    case SEGLOSS_FLOAT32:
        return f(float());
    case SEGLOSS_FLOAT16:
        return f(__half());
    default:
        return f(__nv_bfloat16());
    }
}

// Puts a kernel over tiles on the stream; other_bytes of shared memory lie behind those of the tiles.
template <typename... Parameters, typename... Arguments>
int launch_tiles(const TileCall& tiles, const segloss_cuda_call& call, int64_t other_bytes,
                 void (*kernel)(Parameters...), const Arguments&... arguments) {
    return launch(call, {tiles.grid.num_blocks, 1, tiles.shared_bytes() + other_bytes}, kernel, arguments...);
}

} // namespace
