// Chooses a kernel's types by a launcher's arguments and puts the kernel on a stream.
#pragma once

#include <type_traits>

#include "tile.cuh"

namespace {

// Calls f(Real(), T(), is_tiled) with the type that the call computes in, the type of its logits, and whether shared
// memory has room for a tile of them and other_bytes. Double logits are never computed in float.
template <typename Real, typename T, typename Function>
cudaError_t with_tile(int64_t num_classes, int64_t other_bytes, const Function& f) {
    const bool has_room = tile_bytes<T>(num_classes) + other_bytes <= MAX_SHARED_BYTES;
    return has_room && num_classes > 0 ? f(Real(), T(), std::true_type()) : f(Real(), T(), std::false_type());
}

template <typename Function>
cudaError_t with_types(segloss_real real, segloss_dtype logits, int64_t num_classes, int64_t other_bytes,
                       const Function& f) {
    const bool is_double = real == SEGLOSS_REAL_DOUBLE;
    switch (logits) {
    case SEGLOSS_FLOAT32:
        return is_double ? with_tile<double, float>(num_classes, other_bytes, f)
                         : with_tile<float, float>(num_classes, other_bytes, f);
    case SEGLOSS_FLOAT16:
        return is_double ? with_tile<double, __half>(num_classes, other_bytes, f)
                         : with_tile<float, __half>(num_classes, other_bytes, f);
    case SEGLOSS_BFLOAT16:
        return is_double ? with_tile<double, __nv_bfloat16>(num_classes, other_bytes, f)
                         : with_tile<float, __nv_bfloat16>(num_classes, other_bytes, f);
    case SEGLOSS_FLOAT64:
        return is_double ? with_tile<double, double>(num_classes, other_bytes, f) : cudaErrorInvalidValue;
    default:
        return cudaErrorInvalidValue;
    }
}

// The samples of a call, which are the second dimension of a grid.
struct Samples {
    int64_t size, count, rows; // rows of the grid

    explicit Samples(const segloss_cuda_call& call)
        : size((call.end - call.begin) / call.num_samples), count(call.num_samples),
          rows(count < MAX_GRID_Y ? count : MAX_GRID_Y) {}

private:
    static constexpr int64_t MAX_GRID_Y = 65535;
};

struct Grid {
    int64_t x = 1, y = 1;
    int64_t shared_bytes = 0;
};

// A caller gets the error, so CUDA's runtime need not keep it: whoever asks for its last error next would take it for
// one of their own.
inline cudaError_t taken(cudaError_t error) {
    if (error != cudaSuccess) {
        cudaGetLastError();
    }
    return error;
}

// Puts kernel(arguments...) on the stream of a call.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(const segloss_cuda_call& call, const Grid& grid, void (*kernel)(Parameters...),
                   const Arguments&... arguments) {
    constexpr int64_t GRANTED = 48 << 10; // a kernel must request more than this
    const auto shared_bytes = static_cast<int>(grid.shared_bytes);
    const auto error = shared_bytes <= GRANTED
                           ? cudaSuccess
                           : cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                  cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error != cudaSuccess) {
        return taken(error);
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y));
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config.stream = static_cast<cudaStream_t>(call.stream);
    return taken(cudaLaunchKernelEx(&config, kernel, arguments...));
}

} // namespace
