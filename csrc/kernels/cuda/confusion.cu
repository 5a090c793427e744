// Argmax and counting of pairs (label, predicted class) in one walk; a thread owns a voxel.

#include "pairs.cuh"
#include "tile_launch.cuh"

namespace {

// The prediction for this thread's voxel; 0 without classes.
template <typename T, bool TILED>
__device__ int64_t predict(const segloss_confusion& a, Tile<T>* tile, int64_t offset, int count) {
    const int thread = static_cast<int>(threadIdx.x);
    if (a.prediction_is_labels || a.num_classes == 0) {
        return thread < count && a.num_classes > 0 ? load_integer(a.prediction, offset) : 0;
    }
    if constexpr (TILED) {
        tile->load(a.prediction, offset, count);
        return thread < count ? argmax(tile->voxel(thread), a.num_classes) : 0;
    }
    const Classes<const T, int64_t> logits{static_cast<const T*>(a.prediction.data) + offset,
                                           a.prediction.stride_class};
    return thread < count ? argmax(logits, a.num_classes) : 0;
}

template <typename T, bool TILED>
__device__ void count_sample(const segloss_confusion& a, int64_t begin, int64_t end, const PairCounts& counts,
                             Totals* totals) {
    Tile<T> tile(a.num_classes);
    Totals mine;
    for_each_tile(walk_of(a), begin, end, [&](const PairWalk& at, int count) {
        const bool exists = static_cast<int>(threadIdx.x) < count;
        const int64_t label = exists ? label_of(a, at) : IGNORED;
        const int64_t predicted = predict<T, TILED>(a, &tile, at[0], count);
        if (is_refused(a, label, predicted)) {
            mine.refuse(at.position());
        } else if (label != IGNORED) {
            counts.add_pair(label, predicted);
        }
    });
    counts.finish();
    write_totals(mine, totals);
}

// The grid's second dimension is the samples. Counts per class are [3][N][C], pairs [N][C][C].
template <typename T, bool TILED>
__global__ void __launch_bounds__(THREADS)
    count(const __grid_constant__ segloss_confusion a, int64_t begin, int64_t sample_size, int64_t num_samples,
          int64_t* counts, Totals* totals) {
    for (int64_t n = blockIdx.y; n < num_samples; n += gridDim.y) {
        const int64_t first = begin + n * sample_size;
        const PairCounts of_sample(counts, n, num_samples, a.num_classes, a.per_class);
        count_sample<T, TILED>(a, first, first + sample_size, of_sample, totals + n * gridDim.x + blockIdx.x);
    }
}

// The arguments of the kernels over tiles, which read labels and logits alone.
segloss_cross_entropy as_voxels(const segloss_confusion& args) {
    segloss_cross_entropy voxels{};
    voxels.positions = args.positions;
    voxels.num_classes = args.num_classes;
    voxels.logits = args.prediction;
    voxels.target = args.target;
    voxels.target_kind = SEGLOSS_LABELS;
    voxels.ignore_index = args.ignore_index;
    voxels.labels = args.labels;
    return voxels;
}

// Launches a kernel over blocks of voxels, and sets `num_totals` to what they write.
int launch_count(const segloss_confusion& args, const segloss_cuda_call& call, int64_t* counts, int64_t* num_totals) {
    TileCall tiles;
    auto of_tiles = call;
    of_tiles.real = SEGLOSS_REAL_FLOAT; // comparisons round nothing
    if (call.resize) {
        if (!describe_resized_tiles(as_voxels(args), call, &tiles)) {
            return cudaErrorInvalidValue;
        }
        *num_totals = tiles.grid.num_blocks;
        const int error = launch_axis_tables(tiles, call);
        return error != cudaSuccess ? error : launch_resized_counts(tiles, call, args.per_class, counts);
    }
    if (!args.prediction_is_labels && describe_tiles(as_voxels(args), of_tiles, &tiles)) {
        *num_totals = tiles.grid.num_blocks;
        return with_type_of_tiles(tiles, [&](auto element) {
            return launch_count_tiles<decltype(element)>(tiles, call, args.per_class, counts);
        });
    }
    const Samples samples(call);
    const int64_t num_classes = args.num_classes, blocks = num_blocks(samples.size, samples.count);
    const auto dtype = args.prediction_is_labels ? SEGLOSS_FLOAT32 : args.prediction.dtype; // for maps any will do
    *num_totals = blocks * samples.count;
    return with_types(
        SEGLOSS_REAL_DOUBLE, dtype, num_classes, Counts::SHARED_BYTES, [&](auto, auto element, auto tiled) {
            using T = decltype(element);
            const bool needs_tile = tiled() && !args.prediction_is_labels;
            return launch(call, {blocks, samples.rows, needs_tile ? tile_bytes<T>(num_classes) : 0}, count<T, tiled()>,
                          args, call.begin, samples.size, samples.count, counts, static_cast<Totals*>(call.workspace));
        });
}

} // namespace

extern "C" int segloss_cuda_confusion(const segloss_confusion* args, const segloss_cuda_call* call, int64_t* counts) {
    int64_t num_totals = 0;
    const int error = launch_count(*args, *call, counts, &num_totals);
    return error != cudaSuccess
               ? error
               : launch(*call, {}, finish_count, *args, *call, static_cast<const Totals*>(call->workspace), num_totals);
}
