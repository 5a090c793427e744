#include "warp_counts.cuh"

template int launch_count_tiles<__nv_bfloat16>(const TileCall&, const segloss_cuda_call&, int, int64_t*);
