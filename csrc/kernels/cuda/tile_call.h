// Which calls the kernels over tiles take (warp_tiles.cuh), and how. All others take the general kernels.
#pragma once

#include "launchers.h"

// Where the value of an index of a resized axis comes from: see segloss_axis in kernels.h. A single value is taken
// twice, with the weight 1/2.
struct alignas(16) AxisEntry {
    int low, high;
    float low_weight, high_weight;
};

struct TileAxis {
    AxisEntry* entries;
    int* first; // for each index of the coarse axis the first one whose `low` is not smaller; then the size
    int size, size_from;
    bool blends; // whether some index has two values
};

// What the gradient of a voxel needs besides its logits: exp(x_c - max) (slope b_c + constant) for each class but its
// label, where b_c is the gradient of the class's sum of probabilities, and of_label for that. A negative label: the
// voxel does not count; it is refused if max is nan.
struct alignas(16) VoxelState {
    float max, constant, of_label;
    int label;
};

// Logits of another size, planar and without gaps. Each line of voxels begins a new tile.
struct TileResize {
    TileAxis axes[SEGLOSS_AXES];
    const float* from;
    int64_t size_from;   // values of a class in a sample
    int64_t padded_size; // of a sample, with the voxels that tiles lack
    int tiles_per_line;
    int staged_columns; // at most so many coarse columns in a warp's shared memory; 0: none are staged
    int staged_pitch;   // vectors from column to column there
    VoxelState* states; // of all voxels, or NULL: no gradient is wanted
    float* slopes;
};

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
    bool plain_sigmoid;    // no options, and targets of 0 and 1
    bool aligned_masks;    // or probabilities: to the vectors of as many as a lane has voxels
    bool aligned_logits;   // to vectors in every column
    bool aligned_grad;
};

// Kernels of other tiles do not get `resize`: with more parameters nvcc gives some of them more registers.
struct ResizedTileGrid : TileGrid {
    TileResize resize;
};

struct TileCall {
    segloss_cross_entropy args;
    ResizedTileGrid grid;
    int voxels_per_lane;
    int classes_per_lane;
    bool is_grouped; // lanes share the classes of a voxel, or could
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

// The same for logits of another size, which no other kernels take.
bool describe_resized_tiles(const segloss_cross_entropy& args, const segloss_cuda_call& call, TileCall* tiles);

// Likewise for a sigmoid: of 1 to 128 classes, with labels, or with masks or probabilities that lie as the logits do,
// in float32, float16, bfloat16, uint8 (or bool) or int64. Sets of labels and losses of each class are not computed.
bool describe_sigmoid_tiles(const segloss_soft_stats& s, const segloss_cuda_call& call, TileCall* tiles);

// Where the sums of each class, of all blocks, lie in the workspace of such a call, behind the totals.
void* resized_rows(const TileCall& tiles, const segloss_cuda_call& call);

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
template <typename T> // without `rows` the losses, with their gradient if it is wanted; else the sums of classes
int launch_sigmoid_tiles(const TileCall& tiles, const segloss_soft_stats& s, const segloss_cuda_call& call,
                         const double* total_weight, int unless_one, void* rows);
template <typename T>
int launch_sigmoid_grad_tiles(const TileCall& tiles, const segloss_soft_stats& s, const segloss_cuda_call& call,
                              const double* total_weight, int unless_one);
template <typename T>
int launch_count_tiles(const TileCall& tiles, const segloss_cuda_call& call, int per_class, int64_t* counts);

// The same for logits of another size. Predictions go to the arguments' loss: classes, or whether each class is above
// the threshold, if there is one.
int launch_resized_counts(const TileCall& tiles, const segloss_cuda_call& call, int per_class, int64_t* counts);
int launch_resized_predictions(const TileCall& tiles, const segloss_cuda_call& call, const float* threshold);
int launch_resized_cross_entropy(const TileCall& tiles, const segloss_cuda_call& call, const Denominator& denominator,
                                 int unless_one);
int launch_resized_stats(const TileCall& tiles, const segloss_soft_stats& s, const segloss_cuda_call& call, void* rows);
int launch_resized_stats_grad(const TileCall& tiles, const segloss_soft_stats& s, const segloss_cuda_call& call,
                              const double* total_weight, int unless_one);

// Fills the tables of the axes.
int launch_axis_tables(const TileCall& tiles, const segloss_cuda_call& call);

// The gradient of the coarse logits, from what the others have found of each voxel; by_prediction is that with respect
// to the sums of probabilities, or NULL.
int launch_resized_grad(const TileCall& tiles, const segloss_cuda_call& call, const void* by_prediction,
                        int unless_one);
