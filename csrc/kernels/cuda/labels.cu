// What is read of labels and masks alone; a thread owns a voxel.

#include <math.h>

#include "launch.cuh"
#include "pairs.cuh"

namespace {

// ---- one-hot targets ----

using TargetWalk = Walk<1>;

__device__ TargetWalk walk_of(const segloss_one_hot& a) { return {a.positions, {&a.target}}; }

// The class of a voxel; BAD if it is not one-hot.
__device__ int64_t class_of_one_hot(const segloss_one_hot& a, int64_t offset) {
    int64_t label = BAD;
    for (int64_t c = 0; c < a.num_classes; ++c) {
        const int64_t value = load_integer(a.target, offset + c * a.target.stride_class);
        if (value == 1 && label == BAD) {
            label = c;
        } else if (value != 0) {
            return BAD;
        }
    }
    return label;
}

// Without labels to write, a thread stops at the first voxel that is not one-hot.
__global__ void __launch_bounds__(THREADS)
    read_one_hot(const __grid_constant__ segloss_one_hot a, int64_t begin, int64_t end, Totals* of_blocks) {
    Totals mine;
    for_each_tile(walk_of(a), begin, end, [&](const TargetWalk& at, int count) {
        if (static_cast<int>(threadIdx.x) >= count || (!a.labels && mine.num_refused > 0)) {
            return;
        }
        const int64_t label = class_of_one_hot(a, at[0]);
        if (label == BAD) {
            mine.refuse(at.position());
        }
        if (a.labels) {
            a.labels[at.position()] = label == BAD ? INT32_MIN : static_cast<int32_t>(label); // which losses refuse
        }
    });
    write_totals(mine, of_blocks + blockIdx.x);
}

__global__ void finish_one_hot(const __grid_constant__ segloss_one_hot a,
                               const __grid_constant__ segloss_cuda_call call, const Totals* of_blocks,
                               int64_t num_totals, unsigned char* is_one_hot) {
    const Totals total = sum_of_blocks(of_blocks, num_totals, 1);
    if (threadIdx.x == 0 && is_one_hot) {
        *is_one_hot = total.num_refused == 0;
    }
    if (is_news(call, total)) {
        auto walk = walk_of(a);
        walk.start(total.first_refused);
        report(call, total, a.target, walk[0], SEGLOSS_NOT_ONE_HOT);
    }
}

// ---- classes of labels ----

__global__ void __launch_bounds__(THREADS) read_classes(const __grid_constant__ segloss_confusion a, int64_t begin,
                                                        int64_t end, int64_t* classes, Totals* of_blocks) {
    Totals mine;
    for_each_tile(walk_of(a), begin, end, [&](const PairWalk& at, int count) {
        if (static_cast<int>(threadIdx.x) < count) {
            const int64_t label = label_of(a, at);
            if (label == BAD) {
                mine.refuse(at.position());
            }
            classes[at.position()] = label == BAD ? 0 : label; // a class that exists
        }
    });
    write_totals(mine, of_blocks + blockIdx.x);
}

// ---- two label maps ----

struct Largest : Refused {
    int64_t label = -1;

    __device__ void add(const Largest& other) {
        Refused::add(other);
        label = other.label > label ? other.label : label;
    }
};
static_assert(sizeof(Largest) <= sizeof(Totals));

__global__ void __launch_bounds__(THREADS)
    find_largest(const __grid_constant__ segloss_confusion a, int64_t begin, int64_t end, Largest* of_blocks) {
    Largest mine;
    for_each_tile(walk_of(a), begin, end, [&](const PairWalk& at, int count) {
        const int64_t label = static_cast<int>(threadIdx.x) < count ? label_of(a, at) : IGNORED;
        const int64_t predicted = label >= 0 ? load_integer(a.prediction, at[0]) : 0;
        if (is_refused(a, label, predicted)) {
            mine.refuse(at.position());
        } else if (label != IGNORED) {
            const int64_t larger = label > predicted ? label : predicted;
            mine.label = larger > mine.label ? larger : mine.label;
        }
    });
    const Largest largest = sum_of_block(mine);
    if (threadIdx.x == 0) {
        of_blocks[blockIdx.x] = largest;
    }
}

__global__ void finish_largest(const __grid_constant__ segloss_confusion a,
                               const __grid_constant__ segloss_cuda_call call, const Largest* of_blocks,
                               int64_t num_blocks, int64_t* num_classes) {
    const Largest largest = sum_of_blocks(of_blocks, num_blocks, 1);
    if (threadIdx.x == 0) {
        *num_classes = largest.label + 1;
    }
    if (is_news(call, largest)) {
        report_pair(a, call, largest);
    }
}

struct Equal : Refused {
    int64_t num_equal = 0, num_counted = 0;

    __device__ void add(const Equal& other) {
        Refused::add(other);
        num_equal += other.num_equal;
        num_counted += other.num_counted;
    }
};
static_assert(sizeof(Equal) <= sizeof(Totals));

// A label of any value, SEGLOSS_NO_LABEL if it is none, and whether int64 holds it.
struct AnyLabel {
    int64_t value;
    bool fits;
};

__device__ AnyLabel load_any_label(const segloss_tensor& t, int64_t offset) {
    if (t.dtype == SEGLOSS_UINT64) {
        const auto bits = element<int64_t>(t, offset);
        return {bits, bits >= 0};
    }
    const int64_t value = load_integer(t, offset);
    if (value != SEGLOSS_NO_LABEL || t.dtype > SEGLOSS_BFLOAT16) {
        return {value, true};
    }
    const double x = load<double>(t, offset);
    return {value, x != floor(x)}; // infinities are equal to their floor, nan is not
}

__device__ void compare_voxel(const segloss_confusion& a, const PairWalk& at, Equal* mine) {
    const AnyLabel label = load_any_label(a.target, at[1]), predicted = load_any_label(a.prediction, at[0]);
    const bool is_floating = a.target.dtype <= SEGLOSS_BFLOAT16;
    const int64_t looked_up = a.labels.rows ? label_of(a, at) : label.value;
    if ((is_floating && label.fits && label.value == SEGLOSS_NO_LABEL) || (a.labels.rows && looked_up == BAD)) {
        mine->refuse(at.position());
    } else if (a.labels.rows ? looked_up != IGNORED : !(label.fits && label.value == a.ignore_index)) {
        const bool fits = a.labels.rows || label.fits;
        ++mine->num_counted;
        mine->num_equal += fits == predicted.fits && looked_up == predicted.value;
    }
}

// The grid's second dimension is the samples.
__global__ void __launch_bounds__(THREADS) compare(const __grid_constant__ segloss_confusion a, int64_t begin,
                                                   int64_t sample_size, int64_t num_samples, Equal* of_blocks) {
    for (int64_t n = blockIdx.y; n < num_samples; n += gridDim.y) {
        Equal mine;
        const int64_t first = begin + n * sample_size;
        for_each_tile(walk_of(a), first, first + sample_size, [&](const PairWalk& at, int count) {
            if (static_cast<int>(threadIdx.x) < count) {
                compare_voxel(a, at, &mine);
            }
        });
        const Equal equal = sum_of_block(mine);
        if (threadIdx.x == 0) {
            of_blocks[n * gridDim.x + blockIdx.x] = equal;
        }
    }
}

// Masks in place of label maps are reported, and count nothing. The grid's second dimension is the samples; one more
// column of blocks reports what was refused.
__global__ void finish_compare(const __grid_constant__ segloss_confusion a,
                               const __grid_constant__ segloss_cuda_call call, const Equal* of_blocks,
                               int64_t blocks_per_sample, int64_t num_samples, const unsigned char* are_one_hot,
                               int64_t* counts) {
    const bool are_masks = are_one_hot && are_one_hot[0] && are_one_hot[1];
    for (int64_t n = blockIdx.y; n < num_samples && blockIdx.x == 0; n += gridDim.y) {
        const Equal equal = sum_of_blocks(of_blocks + n * blocks_per_sample, blocks_per_sample, 1);
        if (threadIdx.x == 0) {
            counts[n] = are_masks ? 0 : equal.num_equal;
            counts[num_samples + n] = are_masks ? 0 : equal.num_counted;
        }
    }
    if (blockIdx.x == 0 || blockIdx.y > 0) {
        return;
    }
    Refused total = sum_of_blocks(of_blocks, num_samples * blocks_per_sample, 1);
    total.num_refused = are_masks ? 1 : total.num_refused;
    if (is_news(call, total)) {
        if (are_masks) {
            total.first_refused = call.begin;
            report(call, total, a.target, 0, SEGLOSS_MASKS_AS_MAPS);
        } else {
            report_pair(a, call, total);
        }
    }
}

// ---- masks of each class ----

__device__ int64_t mask_at(const segloss_tensor& t, int64_t offset, int64_t c) {
    return load_integer(t, offset + c * t.stride_class);
}

__device__ bool is_mask(int64_t value) { return value == 0 || value == 1; }

enum MaskVoxel { COUNTED, WITHOUT_COUNT, BAD_TARGET, BAD_PREDICTION };

// A refused mask of the target takes precedence over an ignored one.
__device__ MaskVoxel kind_of(const segloss_confusion& a, const PairWalk& at) {
    MaskVoxel kind = COUNTED;
    for (int64_t c = 0; c < a.num_classes; ++c) {
        const int64_t mask = mask_at(a.target, at[1], c);
        if (mask == a.ignore_index) {
            kind = WITHOUT_COUNT;
        } else if (!is_mask(mask)) {
            return BAD_TARGET;
        }
    }
    for (int64_t c = 0; c < a.num_classes && kind == COUNTED; ++c) {
        kind = is_mask(mask_at(a.prediction, at[0], c)) ? COUNTED : BAD_PREDICTION;
    }
    return kind;
}

// The true positives, false positives, false negatives and true negatives of each class, [4][N][C]. The grid's second
// dimension is the samples.
__global__ void __launch_bounds__(THREADS)
    count_masks(const __grid_constant__ segloss_confusion a, int64_t begin, int64_t sample_size, int64_t num_samples,
                unsigned long long* counts, Totals* totals) {
    for (int64_t n = blockIdx.y; n < num_samples; n += gridDim.y) {
        Totals mine;
        const int64_t first = begin + n * sample_size;
        const Counts of_sample(counts + n * a.num_classes, 4, a.num_classes, num_samples * a.num_classes);
        for_each_tile(walk_of(a), first, first + sample_size, [&](const PairWalk& at, int count) {
            const MaskVoxel kind = static_cast<int>(threadIdx.x) < count ? kind_of(a, at) : WITHOUT_COUNT;
            if (kind == BAD_TARGET || kind == BAD_PREDICTION) {
                mine.refuse(at.position());
            }
            for (int64_t c = 0; c < a.num_classes && kind == COUNTED; ++c) {
                const bool predicted = mask_at(a.prediction, at[0], c) != 0, actual = mask_at(a.target, at[1], c) != 0;
                of_sample.add(predicted ? (actual ? 0 : 1) : (actual ? 2 : 3), c);
            }
        });
        of_sample.finish();
        write_totals(mine, totals + n * gridDim.x + blockIdx.x);
    }
}

__global__ void finish_masks(const __grid_constant__ segloss_confusion a,
                             const __grid_constant__ segloss_cuda_call call, const Totals* of_blocks,
                             int64_t num_totals) {
    const Totals total = sum_of_blocks(of_blocks, num_totals, 1);
    if (!is_news(call, total)) {
        return;
    }
    auto walk = walk_of(a);
    walk.start(total.first_refused);
    const bool of_target = kind_of(a, walk) == BAD_TARGET;
    const auto& masks = of_target ? a.target : a.prediction;
    const int64_t offset = walk[of_target ? 1 : 0];
    int64_t c = 0;
    while (is_mask(mask_at(masks, offset, c)) || (of_target && mask_at(masks, offset, c) == a.ignore_index)) {
        ++c;
    }
    report(call, total, masks, offset + c * masks.stride_class,
           of_target ? SEGLOSS_OF_TARGET : SEGLOSS_OF_PREDICTED_LABELS);
}

} // namespace

extern "C" int segloss_cuda_one_hot(const segloss_one_hot* args, const segloss_cuda_call* call,
                                    unsigned char* is_one_hot) {
    const int64_t blocks = num_blocks(call->end - call->begin, 1);
    const auto totals = static_cast<Totals*>(call->workspace);
    const auto error = launch(*call, {blocks}, read_one_hot, *args, call->begin, call->end, totals);
    return error != cudaSuccess ? error : launch(*call, {}, finish_one_hot, *args, *call, totals, blocks, is_one_hot);
}

extern "C" int segloss_cuda_classes(const segloss_confusion* args, const segloss_cuda_call* call, int64_t* classes) {
    const int64_t blocks = num_blocks(call->end - call->begin, 1);
    const auto totals = static_cast<Totals*>(call->workspace);
    const auto error = launch(*call, {blocks}, read_classes, *args, call->begin, call->end, classes, totals);
    return error != cudaSuccess ? error : launch(*call, {}, finish_count, *args, *call, totals, blocks);
}

extern "C" int segloss_cuda_num_classes(const segloss_confusion* args, const segloss_cuda_call* call,
                                        int64_t* num_classes) {
    const int64_t blocks = num_blocks(call->end - call->begin, 1);
    const auto of_blocks = static_cast<Largest*>(call->workspace);
    const auto error = launch(*call, {blocks}, find_largest, *args, call->begin, call->end, of_blocks);
    return error != cudaSuccess ? error
                                : launch(*call, {}, finish_largest, *args, *call, of_blocks, blocks, num_classes);
}

extern "C" int segloss_cuda_compare_maps(const segloss_confusion* args, const segloss_cuda_call* call,
                                         const unsigned char* are_one_hot, int64_t* counts) {
    const Samples samples(*call);
    const int64_t blocks = num_blocks(samples.size, samples.count);
    const auto of_blocks = static_cast<Equal*>(call->workspace);
    const auto error =
        launch(*call, {blocks, samples.rows}, compare, *args, call->begin, samples.size, samples.count, of_blocks);
    return error != cudaSuccess ? error
                                : launch(*call, {2, samples.rows}, finish_compare, *args, *call, of_blocks, blocks,
                                         samples.count, are_one_hot, counts);
}

extern "C" int segloss_cuda_mask_counts(const segloss_confusion* args, const segloss_cuda_call* call, int64_t* counts) {
    const Samples samples(*call);
    const int64_t blocks = num_blocks(samples.size, samples.count);
    const auto totals = static_cast<Totals*>(call->workspace);
    const auto error = launch(*call, {blocks, samples.rows}, count_masks, *args, call->begin, samples.size,
                              samples.count, reinterpret_cast<unsigned long long*>(counts), totals);
    return error != cudaSuccess ? error : launch(*call, {}, finish_masks, *args, *call, totals, blocks * samples.count);
}
