// Argmax and counting of (label, predicted class) in one walk; a thread owns a voxel.

#include "sums.cuh"

namespace {

constexpr int SHARED_CELLS = 2048; // up to so many are counted in shared memory first

// The first class with the largest logit; nan counts as larger than any number.
template <typename T> __device__ int64_t argmax(const segloss_tensor& logits, int64_t offset, int64_t num_classes) {
    auto best = number(element<T>(logits, offset));
    int64_t predicted = 0;
    for (int64_t c = 1; c < num_classes; ++c) {
        const auto x = number(element<T>(logits, offset + c * logits.stride_class));
        if (!(x <= best) && best == best) {
            best = x;
            predicted = c;
        }
    }
    return predicted;
}

template <typename Cell>
__device__ void count_voxel(const segloss_confusion& a, int64_t label, int64_t predicted, Cell* cells) {
    const Cell one = 1;
    if (!a.per_class) {
        atomicAdd(&cells[label * a.num_classes + predicted], one);
    } else if (label == predicted) {
        atomicAdd(&cells[label], one);
    } else {
        atomicAdd(&cells[a.num_classes + predicted], one);
        atomicAdd(&cells[2 * a.num_classes + label], one);
    }
}

template <typename T, typename Cell>
__device__ void visit_voxel(const segloss_confusion& a, int64_t position, Cell* cells, Totals* mine) {
    const segloss_tensor* const tensors[] = {&a.prediction, &a.target};
    int64_t offsets[2];
    find_offsets(a.positions, position, tensors, offsets);
    const int64_t label = load_class(a.target, offsets[1], a.num_classes, a.ignore_index);
    if (label == IGNORED) {
        return;
    }
    const int64_t predicted = a.prediction_is_labels ? load_integer(a.prediction, offsets[0])
                                                     : argmax<T>(a.prediction, offsets[0], a.num_classes);
    if (label == BAD || predicted < 0 || predicted >= a.num_classes) {
        mine->refuse(position);
    } else {
        count_voxel(a, label, predicted, cells);
    }
}

// Counts in integers, so that atomics give the same in any order.
template <typename T>
__global__ void count(const __grid_constant__ segloss_confusion a, int64_t begin, int64_t end, int64_t num_cells,
                      unsigned long long* counts, Totals* of_blocks) {
    __shared__ unsigned cells[SHARED_CELLS];
    const int64_t num_shared = num_cells <= SHARED_CELLS ? num_cells : 0;
    for (int64_t i = threadIdx.x; i < num_shared; i += THREADS) {
        cells[i] = 0;
    }
    __syncthreads();
    Totals mine;
    for_each_position(begin, end, [&](int64_t p) {
        if (num_shared > 0) {
            visit_voxel<T>(a, p, cells, &mine);
        } else {
            visit_voxel<T>(a, p, counts, &mine);
        }
    });
    __syncthreads();
    for (int64_t i = threadIdx.x; i < num_shared; i += THREADS) {
        if (cells[i] > 0) {
            atomicAdd(&counts[i], static_cast<unsigned long long>(cells[i]));
        }
    }
    write_totals(mine, of_blocks);
}

__global__ void finish_count(const __grid_constant__ segloss_confusion a,
                             const __grid_constant__ segloss_cuda_call call, const Totals* of_blocks, int num_totals) {
    Totals total;
    if (add_totals(call, of_blocks, num_totals, nullptr, &total)) {
        const segloss_tensor* const tensors[] = {&a.prediction, &a.target};
        int64_t offsets[2];
        find_offsets(a.positions, total.first_refused, tensors, offsets);
        const bool is_prediction = load_class(a.target, offsets[1], a.num_classes, a.ignore_index) != BAD;
        report(call, total, is_prediction ? a.prediction : a.target, offsets[is_prediction ? 0 : 1], is_prediction);
    }
}

template <typename T>
cudaError_t count_on(const segloss_confusion& args, const segloss_cuda_call& call, int64_t* counts) {
    const int blocks = num_blocks(call.end - call.begin, THREADS);
    const auto totals = static_cast<Totals*>(call.workspace);
    const int64_t num_cells = args.num_classes * (args.per_class ? 3 : args.num_classes);
    const auto error = launch(call, blocks, count<T>, args, call.begin, call.end, num_cells,
                              reinterpret_cast<unsigned long long*>(counts), totals);
    return error != cudaSuccess ? error : launch(call, 1, finish_count, args, call, totals, blocks);
}

} // namespace

extern "C" int segloss_cuda_confusion(const segloss_confusion* args, const segloss_cuda_call* call, int64_t* counts) {
    if (args->prediction_is_labels) {
        return count_on<float>(*args, *call, counts); // without logits any type will do
    }
    return with_types(SEGLOSS_REAL_DOUBLE, args->prediction.dtype,
                      [&](auto, auto element) { return count_on<decltype(element)>(*args, *call, counts); });
}
