#include "warp_soft_stats.cuh"

template int launch_stats_grad_tiles<float>(const TileCall&, const segloss_soft_stats&, const segloss_cuda_call&,
                                            const double*, int);
