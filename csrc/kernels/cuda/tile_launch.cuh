// Chooses the shape of a call's tiles and launches a kernel over them.
#pragma once

#include "launch.cuh"
#include "warp_tiles.cuh"

namespace {

template <typename T, bool GROUPED, bool PLANAR, bool RESIZED, int... K, typename Function>
int with_classes_per_lane(std::integer_sequence<int, K...> /*numbers*/, int number, const Function& f) {
    int error = cudaErrorInvalidValue;
    constexpr int U = GROUPED ? VOXELS_OF_SHARED_LANE : PER_VECTOR<T>;
    ((number == K ? void(error = f(TileShape<T, K, GROUPED, PLANAR, U, RESIZED>())) : void()), ...);
    return error;
}

template <typename T, bool PLANAR, bool RESIZED, typename Function>
int with_layout(const TileCall& tiles, const Function& f) {
    using Alone = std::integer_sequence<int, 2, 3, 4, 5, 6, 7, 8>;
    using SharedFloats = std::integer_sequence<int, 5, 6, 7, 8, 10, 12, 14, 16>;
    using SharedHalves = std::integer_sequence<int, 10, 12, 14, 16>;
    using Grouped = std::conditional_t<sizeof(T) == sizeof(float), SharedFloats, SharedHalves>;
    const int number = tiles.classes_per_lane;
    return tiles.is_grouped ? with_classes_per_lane<T, true, PLANAR, RESIZED>(Grouped(), number, f)
                            : with_classes_per_lane<T, false, PLANAR, RESIZED>(Alone(), number, f);
}

// Returns f(shape), an error of CUDA's runtime.
template <typename T, typename Function> int with_shape(const TileCall& tiles, const Function& f) {
    return tiles.is_planar ? with_layout<T, true, false>(tiles, f) : with_layout<T, false, false>(tiles, f);
}

// The same for logits of another size.
template <typename Function> int with_resized_shape(const TileCall& tiles, const Function& f) {
    return with_layout<float, true, true>(tiles, f);
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
