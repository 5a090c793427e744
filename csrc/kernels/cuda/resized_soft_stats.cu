#include "warp_soft_stats.cuh"

int launch_resized_stats(const TileCall& tiles, const segloss_soft_stats& s, const segloss_cuda_call& call,
                         void* rows) {
    return with_resized_shape(tiles, StatsLauncher{tiles, s, call, rows});
}
