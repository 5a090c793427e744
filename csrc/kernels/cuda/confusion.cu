// Argmax and counting of pairs (label, predicted class) in one walk; a thread owns a voxel.

#include "counts.cuh"
#include "tile_launch.cuh"

namespace {

using PairWalk = Walk<2>;

__device__ PairWalk walk_of(const segloss_confusion& a) { return {a.positions, {&a.prediction, &a.target}}; }

// The first class with the largest logit; nan counts as larger than any number.
template <typename Logits> __device__ int64_t argmax(const Logits& logits, int64_t num_classes) {
    auto best = number(logits[0]);
    int64_t predicted = 0;
    for (int64_t c = 1; c < num_classes; ++c) {
        const auto x = number(logits[c]);
        if (!(x <= best) && best == best) {
            best = x;
            predicted = c;
        }
    }
    return predicted;
}

__device__ int64_t label_of(const segloss_confusion& a, const PairWalk& at) {
    return load_class(a.target, at[1], a.labels, at.position(), a.num_classes, a.ignore_index);
}

__device__ void visit_voxel(const segloss_confusion& a, int64_t position, int64_t label, int64_t predicted,
                            const Cells& cells, Totals* mine) {
    if (label == BAD || (label != IGNORED && (predicted < 0 || predicted >= a.num_classes))) {
        mine->refuse(position);
    } else if (label != IGNORED) {
        cells.add(label, predicted, a.num_classes, a.per_class);
    }
}

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

// Counts in integers, so that atomics give the same result in any order.
template <typename T, bool TILED>
__global__ void __launch_bounds__(THREADS) count(const __grid_constant__ segloss_confusion a, int64_t begin,
                                                 int64_t end, int64_t num_cells, int64_t* counts, Totals* of_blocks) {
    const Cells cells(num_cells, counts);
    Tile<T> tile(a.num_classes);
    Totals mine;
    for_each_tile(walk_of(a), begin, end, [&](const PairWalk& at, int count) {
        const bool exists = static_cast<int>(threadIdx.x) < count;
        const int64_t label = exists ? label_of(a, at) : IGNORED;
        const int64_t predicted = predict<T, TILED>(a, &tile, at[0], count);
        visit_voxel(a, at.position(), label, predicted, cells, &mine);
    });
    cells.write();
    write_totals(mine, of_blocks + blockIdx.x);
}

__global__ void finish_count(const __grid_constant__ segloss_confusion a,
                             const __grid_constant__ segloss_cuda_call call, const Totals* of_blocks,
                             int64_t num_totals) {
    const Totals total = sum_of_blocks(of_blocks, num_totals, 1);
    if (is_news(call, total)) {
        auto walk = walk_of(a);
        walk.start(total.first_refused);
        const bool is_prediction = label_of(a, walk) != BAD;
        report(call, total, is_prediction ? a.prediction : a.target, walk[is_prediction ? 0 : 1],
               is_prediction ? SEGLOSS_OF_PREDICTED_LABELS : SEGLOSS_OF_TARGET);
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

// Launches a kernel over blocks of voxels, and sets `blocks` to their number.
int launch_count(const segloss_confusion& args, const segloss_cuda_call& call, int64_t* counts, int64_t* blocks) {
    TileCall tiles;
    auto of_tiles = call;
    of_tiles.real = SEGLOSS_REAL_FLOAT; // comparisons round nothing
    if (!args.prediction_is_labels && describe_tiles(as_voxels(args), of_tiles, &tiles)) {
        *blocks = tiles.grid.num_blocks;
        return with_type_of_tiles(tiles, [&](auto element) {
            return launch_count_tiles<decltype(element)>(tiles, call, args.per_class, counts);
        });
    }
    const int64_t num_classes = args.num_classes;
    const auto dtype = args.prediction_is_labels ? SEGLOSS_FLOAT32 : args.prediction.dtype; // for maps any will do
    *blocks = num_blocks(call.end - call.begin, 1);
    return with_types(
        SEGLOSS_REAL_DOUBLE, dtype, num_classes, Cells::SHARED_BYTES, [&](auto, auto element, auto tiled) {
            using T = decltype(element);
            const bool needs_tile = tiled() && !args.prediction_is_labels;
            return launch(call, {*blocks, 1, needs_tile ? tile_bytes<T>(num_classes) : 0}, count<T, tiled()>, args,
                          call.begin, call.end, num_cells_of(num_classes, args.per_class), counts,
                          static_cast<Totals*>(call.workspace));
        });
}

} // namespace

extern "C" int segloss_cuda_confusion(const segloss_confusion* args, const segloss_cuda_call* call, int64_t* counts) {
    int64_t blocks = 0;
    const int error = launch_count(*args, *call, counts, &blocks);
    return error != cudaSuccess
               ? error
               : launch(*call, {}, finish_count, *args, *call, static_cast<const Totals*>(call->workspace), blocks);
}
