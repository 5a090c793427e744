#include "warp_cross_entropy.cuh"

int launch_resized_cross_entropy(const TileCall& tiles, const segloss_cuda_call& call, const Denominator& denominator,
                                 int unless_one) {
    return with_resized_shape(tiles, CrossEntropyLauncher{tiles, call, denominator, unless_one});
}
