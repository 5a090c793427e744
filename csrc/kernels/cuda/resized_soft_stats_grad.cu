#include "warp_soft_stats.cuh"

int launch_resized_stats_grad(const TileCall& tiles, const segloss_soft_stats& s, const segloss_cuda_call& call,
                              const double* total_weight, int unless_one) {
    return with_resized_shape(tiles, StatsGradLauncher{tiles, s, call, total_weight, unless_one});
}
