#include "warp_counts.cuh"

template int launch_count_tiles<__half>(const TileCall&, const segloss_cuda_call&, int, int64_t*);
