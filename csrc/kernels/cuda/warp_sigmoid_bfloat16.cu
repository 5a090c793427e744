#include "warp_sigmoid.cuh"

template int launch_sigmoid_tiles<__nv_bfloat16>(const TileCall&, const segloss_soft_stats&, const segloss_cuda_call&,
                                                 const double*, int, void*);
