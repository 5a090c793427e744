#include "warp_cross_entropy.cuh"

template int launch_cross_entropy_tiles<__nv_bfloat16>(const TileCall&, const segloss_cuda_call&, const Denominator&,
                                                       int);
