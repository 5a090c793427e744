// Which calls the kernels over tiles take (warp_tiles.cuh), and how. All others take the general kernels.
#pragma once

#include "launchers.h"

// What the host finds out for all tiles. The positions of the arguments have two dimensions, samples and voxels.
struct TileGrid {
    int num_blocks; // of all samples
    int blocks_per_sample;
    int log_groups; // of lanes that share the classes of a voxel
    int pitch;      // vectors of shared memory from column to column, if classes are contiguous
    int log_label_bytes;
    bool ignores_class; // whether ignore_index is a class
    bool has_voxel_weight;
    bool has_plain_losses; // without weights of classes or gamma, and only their sum is asked for
    bool simple_labels;    // aligned to vectors, of one of four dtypes, and without a table
    bool aligned_logits;   // to vectors in every column
    bool aligned_grad;
};

struct TileCall {
    segloss_cross_entropy args;
    TileGrid grid;
    int classes_per_lane;
    bool is_planar;

    // Bytes of shared memory for the tiles of a block.
    int64_t shared_bytes() const;
};

// The denominator of a mean, in device memory: one number, or the sum of some, `stride` apart. 1 if none is given.
struct Denominator {
    const double* numbers = nullptr;
    int count = 1;
    int stride = 1;
};

// False if the general kernels must take the call.
bool describe_tiles(const segloss_cross_entropy& args, const segloss_cuda_call& call, TileCall* tiles);

// At most so many blocks, of any call with so many positions.
int64_t most_tile_blocks(int64_t num_positions);

// The kernels of each type of logits are compiled on their own. Each returns a cudaError_t; the totals of all blocks go
// to the workspace.
template <typename T>
int launch_cross_entropy_tiles(const TileCall& tiles, const segloss_cuda_call& call, const Denominator& denominator,
                               int unless_one);
template <typename T>
int launch_stats_tiles(const TileCall& tiles, const segloss_soft_stats& s, const segloss_cuda_call& call, void* rows);
template <typename T>
int launch_stats_grad_tiles(const TileCall& tiles, const segloss_soft_stats& s, const segloss_cuda_call& call,
                            const double* total_weight, int unless_one);
template <typename T>
int launch_count_tiles(const TileCall& tiles, const segloss_cuda_call& call, int per_class, int64_t* counts);
