#include "tile_call.h"

#include <algorithm>

#include "warp_tiles.cuh"

namespace {

constexpr int64_t MIN_SAMPLE = 1024; // smaller samples would leave most of their block idle
constexpr int64_t MAX_CLASSES = 256, MAX_SIGMOID_CLASSES = 128;
constexpr int MAX_ALONE = 8; // classes, if a lane has all of them; above, only even numbers are compiled
constexpr int MAX_LOG_GROUPS = 4;

bool is_type_of_tiles(segloss_dtype dtype) {
    return dtype == SEGLOSS_FLOAT32 || dtype == SEGLOSS_FLOAT16 || dtype == SEGLOSS_BFLOAT16;
}

// Gives a tensor's strides two dimensions.
void split(segloss_tensor* t, int64_t sample_size) {
    t->strides[1] = t->strides[0];
    t->strides[0] *= sample_size;
}

bool set_samples(const segloss_cuda_call& call, segloss_cross_entropy* a) {
    auto& positions = a->positions;
    if (positions.num_dims == 2) {
        return call.num_samples == 1 || call.num_samples == positions.sizes[0];
    }
    if (positions.num_dims != 1) {
        return false;
    }
    const int64_t size = positions.sizes[0] / call.num_samples;
    positions = {2, {call.num_samples, size}};
    for (auto* t : {&a->logits, &a->target, &a->voxel_weight, &a->loss, &a->grad_loss, &a->grad_logits}) {
        split(t, size);
    }
    return true;
}

bool is_planar(const segloss_tensor& t) { return t.strides[1] == 1; }
bool is_interleaved(const segloss_tensor& t, int64_t num_classes) {
    return t.stride_class == 1 && t.strides[1] == num_classes;
}

// Whether each lane's vectors begin at a multiple of their size.
bool is_aligned(const segloss_tensor& t, const TileCall& tiles) {
    const int64_t vector = tiles.voxels_per_lane, bytes = vector * segloss_dtype_size(t.dtype);
    const bool samples = tiles.args.positions.sizes[0] == 1 || t.strides[0] % vector == 0;
    const bool classes = tiles.args.num_classes == 1 || !tiles.is_planar || t.stride_class % vector == 0;
    return reinterpret_cast<uintptr_t>(t.data) % static_cast<uintptr_t>(bytes) == 0 && samples && classes;
}

bool has_simple_labels(const segloss_cross_entropy& a, int64_t per_lane) {
    const auto& t = a.target;
    const bool is_read =
        t.dtype == SEGLOSS_UINT8 || t.dtype == SEGLOSS_INT16 || t.dtype == SEGLOSS_INT32 || t.dtype == SEGLOSS_INT64;
    const int64_t bytes = per_lane * segloss_dtype_size(t.dtype), alignment = bytes < 16 ? bytes : 16;
    const bool samples = a.positions.sizes[0] == 1 || t.strides[0] % per_lane == 0;
    return is_read && !a.labels.rows && t.strides[1] == 1 && samples &&
           reinterpret_cast<uintptr_t>(t.data) % static_cast<uintptr_t>(alignment) == 0;
}

// Labels, or masks or probabilities that lie as the logits do. Masks of sets of labels are none of these.
bool has_readable_targets(const TileCall& tiles) {
    const auto& a = tiles.args;
    const auto dtype = a.target.dtype;
    const bool has_numbers = a.target_kind == SEGLOSS_MASKS || a.target_kind == SEGLOSS_PROBABILITIES;
    const bool has_dtype = is_type_of_tiles(dtype) || dtype == SEGLOSS_UINT8 || dtype == SEGLOSS_INT64;
    const bool has_layout = tiles.is_planar ? is_planar(a.target) : is_interleaved(a.target, a.num_classes);
    return a.target_kind == SEGLOSS_LABELS || (has_numbers && has_dtype && has_layout && !a.labels.rows);
}

// Whether they are aligned to the vectors of as many as a lane has voxels.
bool has_aligned_masks(const TileCall& tiles, int64_t per_lane) {
    const auto& t = tiles.args.target;
    const int64_t bytes = per_lane * segloss_dtype_size(t.dtype), alignment = bytes < 16 ? bytes : 16;
    const bool samples = tiles.args.positions.sizes[0] == 1 || t.strides[0] % per_lane == 0;
    const bool classes = tiles.args.num_classes == 1 || !tiles.is_planar || t.stride_class % per_lane == 0;
    return samples && classes && reinterpret_cast<uintptr_t>(t.data) % static_cast<uintptr_t>(alignment) == 0;
}

// Whether losses have neither weights nor exponents, and one gradient.
bool has_plain_binary_losses(const segloss_cross_entropy& a) {
    const bool has_gradients = a.grad_loss.data && (a.grad_loss.strides[0] != 0 || a.grad_loss.strides[1] != 0);
    return !a.class_weight && !a.weight_of_ones && a.gamma == 0 && a.label_smoothing == 0 && !has_gradients;
}

bool is_plain_sigmoid(const segloss_soft_stats& s, const TileCall& tiles) {
    const auto& a = tiles.args;
    const bool has_dtype =
        a.target.dtype == SEGLOSS_UINT8 || a.target.dtype == SEGLOSS_FLOAT32 || a.target.dtype == a.logits.dtype;
    const bool ignores_mask = a.ignore_index == 0 || a.ignore_index == 1;
    const bool has_targets = a.target_kind == SEGLOSS_LABELS  ? a.num_classes > 1 && tiles.grid.simple_labels
                             : a.target_kind == SEGLOSS_MASKS ? has_dtype && !ignores_mask
                                                              : false;
    return has_targets && !a.voxel_weight.data && !s.squared && !s.soft_label &&
           (!s.with_loss || has_plain_binary_losses(a));
}

// Columns of a tile lie so far apart that lanes which read the same class of different voxels use different banks.
int pitch_of(int num_classes, int log_groups) {
    static const int remainders[] = {1, 1, 1, 2, 4}; // by the number of groups
    static const int divisors[] = {2, 2, 2, 4, 8};
    const int divisor = divisors[log_groups];
    return num_classes + (remainders[log_groups] - num_classes % divisor + divisor) % divisor;
}

// Whether tiles can hold the logits, whatever is computed of them.
bool has_form_of_tiles(const segloss_cross_entropy& a, const segloss_cuda_call& call) {
    const bool has_ranges = a.logit_range.low < a.logit_range.high;
    return call.real == SEGLOSS_REAL_FLOAT && !a.log_probabilities && !has_ranges && call.begin == 0;
}

// Whether the kernels of a softmax have the formula.
bool has_softmax_of_tiles(const segloss_cross_entropy& a) {
    return a.target_kind == SEGLOSS_LABELS && a.label_smoothing == 0 && a.num_classes >= 2 &&
           a.num_classes <= MAX_CLASSES;
}

// What a lane has: so many voxels, and at most so many of their classes.
struct Lane {
    int voxels, most_classes;
};

// As many voxels as 16 bytes hold; of half-precision logits only half of them if lanes share classes, so that fewer
// lanes share them and need exchange maxima and sums.
Lane lane_of(segloss_dtype dtype, int64_t num_classes) {
    const int per_vector = static_cast<int>(sizeof(uint4)) / segloss_dtype_size(dtype);
    return num_classes <= MAX_ALONE || per_vector == VOXELS_OF_SHARED_LANE ? Lane{per_vector, MAX_ALONE}
                                                                           : Lane{VOXELS_OF_SHARED_LANE, 2 * MAX_ALONE};
}

void describe_classes(int num_classes, const Lane& lane, TileCall* tiles) {
    auto& grid = tiles->grid;
    while (num_classes > lane.most_classes << grid.log_groups && grid.log_groups < MAX_LOG_GROUPS) {
        ++grid.log_groups;
    }
    const int per_lane = (num_classes + (1 << grid.log_groups) - 1) >> grid.log_groups;
    tiles->voxels_per_lane = lane.voxels;
    tiles->classes_per_lane = per_lane <= MAX_ALONE ? per_lane : per_lane + per_lane % 2;
    tiles->is_grouped = num_classes > MAX_ALONE;
    grid.pitch = pitch_of(num_classes, grid.log_groups);
}

void describe_voxels(TileCall* tiles) {
    const auto& a = tiles->args;
    auto& grid = tiles->grid;
    while (1 << grid.log_label_bytes < segloss_dtype_size(a.target.dtype)) {
        ++grid.log_label_bytes;
    }
    grid.ignores_class = a.ignore_index >= 0 && a.ignore_index < a.num_classes;
    grid.has_voxel_weight = a.voxel_weight.data != nullptr;
    grid.has_plain_losses = !a.class_weight && a.gamma == 0 && !a.loss.data;
    grid.simple_labels = has_simple_labels(a, tiles->voxels_per_lane);
}

// ---- logits of another size ----

constexpr Lane LANE = {PER_VECTOR<float>, MAX_ALONE};

// How the voxels of a sample are divided into tiles, each in one line.
struct LineTiles {
    static constexpr int VOXELS_PER_BLOCK = voxels_per_block(LANE.voxels);

    int64_t width;    // voxels of a tile
    int64_t per_line; // tiles
    int64_t size;     // of a sample, with the voxels that tiles lack
    int64_t blocks;   // of a sample

    LineTiles(const segloss_cuda_resize& resize, int64_t num_classes) {
        TileCall tiles = {};
        describe_classes(static_cast<int>(num_classes), LANE, &tiles);
        width = (LANES >> tiles.grid.log_groups) * LANE.voxels;
        per_line = (resize.axes[SEGLOSS_COLUMNS].size + width - 1) / width;
        size = resize.axes[SEGLOSS_PLANES].size * resize.axes[SEGLOSS_ROWS].size * per_line * width;
        blocks = (size + VOXELS_PER_BLOCK - 1) / VOXELS_PER_BLOCK;
    }
};

// The parts of the workspace of a call with logits of another size, in bytes from its beginning.
struct ResizedWorkspace {
    int64_t rows, entries[SEGLOSS_AXES], first[SEGLOSS_AXES], states, slopes, size = 0;

    ResizedWorkspace(const segloss_cuda_resize& resize, int64_t num_classes) {
        const int64_t blocks = resize.num_samples * LineTiles(resize, num_classes).blocks;
        add(std::max<int64_t>(blocks, MAX_BLOCKS), sizeof(Totals)); // the general kernel of weights has MAX_BLOCKS
        rows = add(blocks * num_classes, 3 * sizeof(double));
        int64_t voxels = resize.num_samples;
        for (int k = 0; k < SEGLOSS_AXES; ++k) {
            const auto& axis = resize.axes[k];
            entries[k] = add(axis.size, sizeof(AxisEntry));
            first[k] = add(axis.size_from + 1, sizeof(int));
            voxels *= axis.size;
        }
        states = add(resize.grad.data ? voxels : 0, sizeof(VoxelState));
        slopes = add(resize.grad.data ? voxels : 0, sizeof(float));
    }

private:
    // Returns where the numbers begin.
    int64_t add(int64_t count, size_t bytes) {
        const int64_t begin = size, alignment = sizeof(uint4);
        size += (count * static_cast<int64_t>(bytes) + alignment - 1) / alignment * alignment;
        return begin;
    }
};

// The most coarse columns that a tile reads.
int64_t columns_of_tile(const segloss_cuda_resize& resize, int64_t width) {
    const auto& axis = resize.axes[SEGLOSS_COLUMNS];
    const bool is_aligned = resize.aligns_corners && axis.size > 1;
    const int64_t from = is_aligned ? axis.size_from - 1 : axis.size_from, to = is_aligned ? axis.size - 1 : axis.size;
    return std::min((width * from + to - 1) / to + 3, axis.size_from);
}

// Chooses the shared memory for coarse columns; lanes whose neighbours read the same class use different banks.
void choose_stage(const TileCall& tiles, int64_t columns, TileResize* resize) {
    constexpr int64_t MOST_BYTES = 32 << 10; // region losses have sums behind it
    const int vectors = ((tiles.classes_per_lane + 3) / 4) << tiles.grid.log_groups;
    resize->staged_pitch = vectors | 1;
    const int64_t bytes = WARPS * columns * resize->staged_pitch * static_cast<int64_t>(sizeof(uint4));
    resize->staged_columns = bytes <= MOST_BYTES ? static_cast<int>(columns) : 0;
}

void describe_resize(const segloss_cuda_call& call, TileCall* tiles) {
    const auto& resize = *call.resize;
    const int64_t num_classes = tiles->args.num_classes;
    const ResizedWorkspace parts(resize, num_classes);
    const LineTiles lines(resize, num_classes);
    char* const workspace = static_cast<char*>(call.workspace);
    auto& result = tiles->grid.resize;
    result.size_from = 1;
    for (int k = 0; k < SEGLOSS_AXES; ++k) {
        const auto& axis = resize.axes[k];
        const bool blends = axis.mode == SEGLOSS_LINEAR && axis.size != axis.size_from;
        result.axes[k] = {reinterpret_cast<AxisEntry*>(workspace + parts.entries[k]),
                          reinterpret_cast<int*>(workspace + parts.first[k]), static_cast<int>(axis.size),
                          static_cast<int>(axis.size_from), blends};
        result.size_from *= axis.size_from;
    }
    result.from = resize.from;
    result.padded_size = lines.size;
    result.tiles_per_line = static_cast<int>(lines.per_line);
    choose_stage(*tiles, columns_of_tile(resize, lines.width), &result);
    if (resize.grad.data) {
        result.states = reinterpret_cast<VoxelState*>(workspace + parts.states);
        result.slopes = reinterpret_cast<float*>(workspace + parts.slopes);
    }
    tiles->grid.blocks_per_sample = static_cast<int>(lines.blocks);
    tiles->grid.num_blocks = static_cast<int>(resize.num_samples * lines.blocks);
}

// Of tiles of any kind, of logits of the target's size.
bool describe(const segloss_cross_entropy& args, const segloss_cuda_call& call, const Lane& lane, TileCall* tiles) {
    auto& a = tiles->args = args;
    if (!has_form_of_tiles(a, call) || !is_type_of_tiles(a.logits.dtype) || !set_samples(call, &a)) {
        return false;
    }
    const int64_t samples = a.positions.sizes[0], size = a.positions.sizes[1];
    const int64_t of_block = voxels_per_block(lane.voxels), blocks = (size + of_block - 1) / of_block;
    if (size < (samples == 1 ? 1 : MIN_SAMPLE) || samples * size != call.end || samples * blocks > INT32_MAX) {
        return false;
    }
    const bool has_grad = a.grad_logits.data != nullptr;
    tiles->is_planar = is_planar(a.logits) && (!has_grad || is_planar(a.grad_logits));
    const bool interleaved =
        is_interleaved(a.logits, a.num_classes) && (!has_grad || is_interleaved(a.grad_logits, a.num_classes));
    if (!tiles->is_planar && !interleaved) {
        return false;
    }
    auto& grid = tiles->grid = {};
    describe_classes(static_cast<int>(args.num_classes), lane, tiles);
    describe_voxels(tiles);
    grid.num_blocks = static_cast<int>(samples * blocks);
    grid.blocks_per_sample = static_cast<int>(blocks);
    grid.aligned_logits = is_aligned(a.logits, *tiles);
    grid.aligned_grad = has_grad && is_aligned(a.grad_logits, *tiles);
    return true;
}

} // namespace

int64_t TileCall::shared_bytes() const {
    const int64_t columns = LANES >> grid.log_groups;
    const int64_t staged = grid.resize.staged_columns * grid.resize.staged_pitch; // 0 for logits of the target's size
    return is_planar ? WARPS * staged * static_cast<int64_t>(sizeof(uint4))
                     : WARPS * columns * grid.pitch * voxels_per_lane * segloss_dtype_size(args.logits.dtype);
}

int64_t most_tile_blocks(int64_t num_positions) { return num_positions / MIN_SAMPLE + 1; }

bool describe_tiles(const segloss_cross_entropy& args, const segloss_cuda_call& call, TileCall* tiles) {
    return has_softmax_of_tiles(args) && describe(args, call, lane_of(args.logits.dtype, args.num_classes), tiles);
}

bool describe_sigmoid_tiles(const segloss_soft_stats& s, const segloss_cuda_call& call, TileCall* tiles) {
    const auto& a = s.voxels;
    const bool has_grads_by_class = !s.grad_intersection && a.grad_loss.data && a.grad_loss.stride_class != 0;
    const bool has_losses_by_class = a.loss.data || (has_grads_by_class && a.num_classes > 1);
    if (s.activation != SEGLOSS_SIGMOID || has_losses_by_class || a.num_classes < 1 ||
        a.num_classes > MAX_SIGMOID_CLASSES || !describe(a, call, lane_of(a.logits.dtype, 1), tiles)) {
        return false;
    }
    tiles->grid.plain_sigmoid = is_plain_sigmoid(s, *tiles);
    tiles->grid.aligned_masks = has_aligned_masks(*tiles, tiles->voxels_per_lane);
    return has_readable_targets(*tiles);
}

bool describe_resized_tiles(const segloss_cross_entropy& args, const segloss_cuda_call& call, TileCall* tiles) {
    auto& a = tiles->args = args;
    auto of_samples = call;
    of_samples.num_samples = call.resize->num_samples;
    if (!has_form_of_tiles(a, call) || !has_softmax_of_tiles(a) || !set_samples(of_samples, &a) ||
        !segloss_cuda_takes_resized(call.resize, a.num_classes)) {
        return false;
    }
    auto& grid = tiles->grid = {};
    tiles->is_planar = true;
    describe_classes(static_cast<int>(a.num_classes), LANE, tiles);
    describe_voxels(tiles);
    grid.simple_labels = grid.simple_labels && call.resize->axes[SEGLOSS_COLUMNS].size % LANE.voxels == 0;
    describe_resize(call, tiles);
    return true;
}

void* resized_rows(const TileCall& tiles, const segloss_cuda_call& call) {
    const ResizedWorkspace parts(*call.resize, tiles.args.num_classes);
    return static_cast<char*>(call.workspace) + parts.rows;
}

extern "C" size_t segloss_cuda_resized_workspace(const segloss_cuda_resize* resize, int64_t num_classes) {
    const size_t of_mean = static_cast<size_t>(MAX_WEIGHT_BLOCKS) * sizeof(Totals); // the weights come first there
    return static_cast<size_t>(ResizedWorkspace(*resize, num_classes).size) + of_mean;
}

extern "C" int segloss_cuda_takes_resized(const segloss_cuda_resize* resize, int64_t num_classes) {
    if (num_classes < 2 || num_classes > MAX_CLASSES || resize->num_samples < 1) {
        return 0;
    }
    int64_t size_from = num_classes; // offsets in a sample have 32 bits
    for (const auto& axis : resize->axes) {
        if (axis.size < 1 || axis.size_from < 1 || axis.size > INT32_MAX || axis.size_from > INT32_MAX / size_from) {
            return 0;
        }
        size_from *= axis.size_from;
    }
    const LineTiles lines(*resize, num_classes);
    return lines.size <= INT32_MAX && resize->num_samples * lines.blocks <= INT32_MAX;
}
