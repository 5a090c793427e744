#include "tile_call.h"

#include "warp_tiles.cuh"

namespace {

constexpr int64_t MIN_SAMPLE = 1024; // smaller samples would leave most of their block idle
constexpr int64_t MAX_CLASSES = 256;
constexpr int MAX_IN_STEPS_OF_ONE = 8; // classes of a lane; above, only even numbers are compiled
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

// Whether each lane's 16 bytes begin at a multiple of 16.
bool is_aligned(const segloss_tensor& t, bool is_planar, int64_t num_samples) {
    const int64_t vector = static_cast<int64_t>(sizeof(uint4)) / segloss_dtype_size(t.dtype);
    const bool samples = num_samples == 1 || t.strides[0] % vector == 0;
    return reinterpret_cast<uintptr_t>(t.data) % sizeof(uint4) == 0 && samples &&
           (!is_planar || t.stride_class % vector == 0);
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

// Columns of a tile lie so far apart that lanes which read the same class of different voxels use different banks.
int pitch_of(int num_classes, int log_groups) {
    static const int remainders[] = {1, 1, 1, 2, 4}; // by the number of groups
    static const int divisors[] = {2, 2, 2, 4, 8};
    const int divisor = divisors[log_groups];
    return num_classes + (remainders[log_groups] - num_classes % divisor + divisor) % divisor;
}

} // namespace

int64_t TileCall::shared_bytes() const {
    const int64_t columns = LANES >> grid.log_groups;
    return is_planar ? 0 : WARPS * columns * grid.pitch * static_cast<int64_t>(sizeof(uint4));
}

int64_t most_tile_blocks(int64_t num_positions) { return num_positions / MIN_SAMPLE + 1; }

bool describe_tiles(const segloss_cross_entropy& args, const segloss_cuda_call& call, TileCall* tiles) {
    auto& a = tiles->args = args;
    const auto num_classes = static_cast<int>(args.num_classes);
    const bool has_ranges = args.logit_range.low < args.logit_range.high;
    if (call.real != SEGLOSS_REAL_FLOAT || !is_type_of_tiles(args.logits.dtype) || args.target_kind != SEGLOSS_LABELS ||
        args.label_smoothing != 0 || args.log_probabilities || has_ranges || call.begin != 0 || args.num_classes < 2 ||
        args.num_classes > MAX_CLASSES || !set_samples(call, &a)) {
        return false;
    }
    const int64_t samples = a.positions.sizes[0], size = a.positions.sizes[1];
    const int per_vector = static_cast<int>(sizeof(uint4)) / segloss_dtype_size(a.logits.dtype);
    const int64_t of_block = voxels_per_block(per_vector), blocks = (size + of_block - 1) / of_block;
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
    while (num_classes > MAX_IN_STEPS_OF_ONE << grid.log_groups && grid.log_groups < MAX_LOG_GROUPS) {
        ++grid.log_groups;
    }
    const int per_lane = (num_classes + (1 << grid.log_groups) - 1) >> grid.log_groups;
    tiles->classes_per_lane = per_lane <= MAX_IN_STEPS_OF_ONE ? per_lane : per_lane + per_lane % 2;
    grid.num_blocks = static_cast<int>(samples * blocks);
    grid.blocks_per_sample = static_cast<int>(blocks);
    grid.pitch = pitch_of(num_classes, grid.log_groups);
    while (1 << grid.log_label_bytes < segloss_dtype_size(a.target.dtype)) {
        ++grid.log_label_bytes;
    }
    grid.ignores_class = a.ignore_index >= 0 && a.ignore_index < a.num_classes;
    grid.has_voxel_weight = a.voxel_weight.data != nullptr;
    grid.has_plain_losses = !a.class_weight && a.gamma == 0 && !a.loss.data;
    grid.simple_labels = has_simple_labels(a, per_vector);
    grid.aligned_logits = is_aligned(a.logits, tiles->is_planar, samples);
    grid.aligned_grad = has_grad && is_aligned(a.grad_logits, tiles->is_planar, samples);
    return true;
}
