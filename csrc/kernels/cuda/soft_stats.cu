// Soft statistics, the losses summed in the same walk, and their gradient. The formulas are in kernels.h.

#include <algorithm>

#include "class_sums.cuh"
#include "tile_launch.cuh"

namespace {

// A voxel and its activation, which give p_c.
template <typename V> struct Activated {
    using Real = typename V::Number;

    const V& v;
    segloss_activation activation;
    typename V::Softmax softmax;
    Real share;

    __device__ Activated(const segloss_soft_stats& s, const V& voxel) : v(voxel), activation(s.activation) {
        if (v.weight != 0 && activation == SEGLOSS_SOFTMAX) {
            softmax = v.read_softmax(s.with_loss && v.has_factors());
            share = softmax_share(&softmax);
        }
    }

    __device__ Real probability(int64_t c) const {
        const Real x = v.logit(c);
        return activation == SEGLOSS_SOFTMAX   ? softmax_probability(&softmax, share, x)
               : activation == SEGLOSS_SIGMOID ? sigmoid(x)
                                               : x;
    }

    // (1 - s) g + s / 2.
    __device__ Real smoothed(int64_t c) const {
        const Real smoothing = static_cast<Real>(v.a->label_smoothing);
        return (1 - smoothing) * v.target(c) + smoothing / 2;
    }

    // The factors of a class's terms.
    __device__ Real of_one(int64_t c) const { return v.weight_of_one(c) * smoothed(c); }
    __device__ Real of_zero(int64_t c) const { return v.class_weight(c) * (1 - smoothed(c)); }

    // Their sum; each is written, if wanted.
    __device__ Real binary_losses() const {
        Real sum = 0;
        for (int64_t c = 0; c < v.a->num_classes; ++c) {
            const Real loss = v.weight * binary_loss(v.logit(c), of_one(c), of_zero(c), static_cast<Real>(v.a->gamma));
            write_loss(c, loss);
            sum += loss;
        }
        return sum;
    }

    __device__ void fill_binary_losses(Real value) const {
        for (int64_t c = 0; c < v.a->num_classes && v.exists; ++c) {
            write_loss(c, value);
        }
    }

private:
    __device__ void write_loss(int64_t c, Real loss) const {
        if (v.a->loss.data) {
            store(v.a->loss, v.loss_at + c * v.a->loss.stride_class, static_cast<double>(loss));
        }
    }
};

// The gradient of binary losses, for v.weight != 0.
template <typename V> struct BinaryGrad {
    using Real = typename V::Number;

    const Activated<V>& voxel;
    const double* total_weight;
    bool has_classes; // a grad_loss for each class
    Real of_all_classes;

    __device__ BinaryGrad(const segloss_soft_stats& s, const Activated<V>& activated, const double* denominator)
        : voxel(activated), total_weight(denominator),
          has_classes(!s.grad_intersection && s.voxels.grad_loss.stride_class != 0),
          of_all_classes(activated.v.grad_scale(denominator)) {}

    __device__ Real operator()(int64_t c) const {
        const V& v = voxel.v;
        const Real scale = has_classes ? v.grad_scale(total_weight, c) : of_all_classes;
        return scale * binary_grad(v.logit(c), voxel.of_one(c), voxel.of_zero(c), static_cast<Real>(v.a->gamma));
    }
};

template <typename V>
__device__ void write_binary_grad(const segloss_soft_stats& s, const Activated<V>& voxel, const double* total_weight) {
    const V& v = voxel.v;
    if (v.weight == 0) {
        v.fill_without_weight();
        return;
    }
    const BinaryGrad<V> grad(s, voxel, total_weight);
    for (int64_t c = 0; c < v.a->num_classes; ++c) {
        v.write_grad(c, grad(c));
    }
}

template <typename V> __device__ void add_losses(const segloss_soft_stats& s, const Activated<V>& voxel, Totals* mine) {
    if (voxel.v.is_refused()) {
        mine->refuse(voxel.v.position);
        mine->loss = mine->weight = NAN;
    }
    const bool is_softmax = s.activation == SEGLOSS_SOFTMAX;
    if (s.with_loss && !is_softmax && voxel.v.weight == 0) {
        voxel.fill_binary_losses(voxel.v.is_refused() ? static_cast<typename V::Number>(NAN) : 0);
    }
    if (!s.with_loss || voxel.v.weight == 0) {
        return;
    }
    mine->loss += static_cast<double>(is_softmax ? voxel.v.loss(voxel.softmax) : voxel.binary_losses());
    mine->weight += static_cast<double>(is_softmax ? voxel.v.share_of_mean() : voxel.v.weight);
}

// Adds v p g (soft_label: v min(p, g)), v p and v g of a class, with `squared` p^2 and g^2 in the last two, over the
// voxels of a warp. A refused voxel adds nan. Most warps have no voxel with a given label, so that two of the three
// sums are 0 and need no shuffles.
template <typename V>
__device__ void add_class(const segloss_soft_stats& s, const Activated<V>& voxel, int64_t c, ClassSums* of_warp) {
    using Real = typename V::Number;
    const Real bad = voxel.v.is_refused() ? static_cast<Real>(NAN) : 0;
    Real intersection = bad, prediction = bad, target = bad;
    if (voxel.v.weight != 0) {
        const Real v = voxel.v.weight, p = voxel.probability(c), g = voxel.v.target(c);
        intersection = v * (s.soft_label ? (g < p ? g : p) : weighted(g, p));
        prediction = v * p * (s.squared ? p : 1);
        target = v * g * (s.squared ? g : 1);
    }
    ClassSums sums;
    if (__any_sync(~0u, intersection != 0 || target != 0)) {
        sums.intersection = static_cast<double>(sum_of_warp(intersection));
        sums.target = static_cast<double>(sum_of_warp(target));
    }
    sums.prediction = static_cast<double>(sum_of_warp(prediction));
    if (threadIdx.x % LANES == 0) {
        of_warp->add(sums);
    }
}

// The sums of each class for each warp of a block: in shared memory behind the tile or, without a tile, in one row of
// `rows` per warp. The first `num_summed` classes have such sums: all or none.
template <typename Real, typename T, bool TILED>
__device__ void add_sample(const segloss_soft_stats& s, int64_t begin, int64_t end, int64_t num_summed,
                           const double* total_weight, ClassSums* rows, Totals* totals) {
    using V = Voxel<Real, T, TILED>;
    const int thread = static_cast<int>(threadIdx.x);
    const auto tile = TILED ? tile_bytes<T>(s.voxels.num_classes) : 0;
    const auto shared = reinterpret_cast<unsigned char*>(segloss_shared) + tile;
    ClassSums* const of_warps = TILED ? reinterpret_cast<ClassSums*>(shared) : rows;
    ClassSums* const of_warp = of_warps + thread / LANES * num_summed;
    for (int64_t i = thread; i < WARPS * num_summed; i += THREADS) {
        of_warps[i] = {};
    }
    __syncthreads();
    Totals mine;
    for_each_voxel<V, T>(s.voxels, begin, end, [&](const V& v) {
        const Activated<V> voxel(s, v);
        add_losses(s, voxel, &mine);
        for (int64_t c = 0; c < num_summed; ++c) {
            add_class(s, voxel, c, of_warp + c);
        }
        if (s.voxels.grad_logits.data) {
            write_binary_grad(s, voxel, total_weight);
        }
    });
    write_totals(mine, totals); // also waits for all warps
    for (int64_t c = thread; TILED && c < num_summed; c += THREADS) {
        ClassSums sum;
        for (int warp = 0; warp < WARPS; ++warp) {
            sum.add(of_warps[warp * num_summed + c]);
        }
        rows[c] = sum;
    }
    __syncthreads();
}

// The grid's second dimension is the samples. Each block writes one row of sums; without a tile, one row per warp.
template <typename Real, typename T, bool TILED>
__global__ void __launch_bounds__(THREADS)
    forward(const __grid_constant__ segloss_soft_stats s, int64_t begin, int64_t sample_size, int64_t num_samples,
            int64_t num_summed, const double* total_weight, ClassSums* rows, Totals* totals) {
    const int64_t row_size = num_summed * (TILED ? 1 : WARPS);
    for (int64_t n = blockIdx.y; n < num_samples; n += gridDim.y) {
        const int64_t block = n * gridDim.x + blockIdx.x, first = begin + n * sample_size;
        add_sample<Real, T, TILED>(s, first, first + sample_size, num_summed, total_weight, rows + block * row_size,
                                   totals + block);
    }
}

// The gradient of the statistics, with d_c as in soft_stats_tmpl.h: v p_c (d_c - sum_k p_k d_k) for a softmax,
// v p_c (1 - p_c) d_c for a sigmoid and v d_c for the identity. With a softmax and labels the d_c are taken relative to
// the label's d_y, so that the gradient of a confident voxel keeps its digits.
template <typename V> struct StatsGrad {
    using Real = typename V::Number;

    const segloss_soft_stats& s;
    const Activated<V>& voxel;
    const Real* by_intersection; // of the voxel's sample
    const Real* by_prediction;
    Real origin = 0;
    Real mean = 0;

    __device__ StatsGrad(const segloss_soft_stats& stats, const Activated<V>& activated, int64_t sample)
        : s(stats), voxel(activated),
          by_intersection(static_cast<const Real*>(s.grad_intersection) + sample * s.voxels.num_classes),
          by_prediction(static_cast<const Real*>(s.grad_prediction) + sample * s.voxels.num_classes) {
        if (s.activation != SEGLOSS_SOFTMAX) {
            return;
        }
        if (s.voxels.target_kind == SEGLOSS_LABELS) {
            origin = slope(voxel.v.label, voxel.probability(voxel.v.label));
        }
        double sum = 0;
        for (int64_t c = 0; c < s.voxels.num_classes; ++c) {
            const Real p = voxel.probability(c);
            sum += static_cast<double>(p * (slope(c, p) - origin));
        }
        mean = static_cast<Real>(sum);
    }

    __device__ Real slope(int64_t c, Real p) const {
        const Real b = by_prediction[c], g = voxel.v.target(c);
        const Real of_overlap = p < g ? 1 : p == g ? static_cast<Real>(0.5) : 0; // min(p, g)
        return by_intersection[c] * (s.soft_label ? of_overlap : g) + (s.squared ? 2 * b * p : b);
    }

    __device__ Real operator()(int64_t c) const {
        const Real p = voxel.probability(c), d = slope(c, p);
        const Real derivative = s.activation == SEGLOSS_SOFTMAX   ? p
                                : s.activation == SEGLOSS_SIGMOID ? p * sigmoid(-voxel.v.logit(c))
                                                                  : 1;
        return voxel.v.weight * derivative * ((d - origin) - mean);
    }
};

template <typename V> __device__ void write_softmax_grad(const StatsGrad<V>& of_stats, typename V::Number scale) {
    using Real = typename V::Number;
    const auto& voxel = of_stats.voxel;
    if (of_stats.s.with_loss) {
        const LossGrad<V> of_losses(voxel.v, voxel.softmax, scale);
        of_losses.for_each([&](int64_t c, Real value) { voxel.v.write_grad(c, of_stats(c) + value); });
        return;
    }
    for (int64_t c = 0; c < voxel.v.a->num_classes; ++c) {
        voxel.v.write_grad(c, of_stats(c));
    }
}

template <typename V> __device__ void write_class_grads(const StatsGrad<V>& of_stats, const double* total_weight) {
    const auto& voxel = of_stats.voxel;
    const BinaryGrad<V> of_losses(of_stats.s, voxel, total_weight);
    for (int64_t c = 0; c < voxel.v.a->num_classes; ++c) {
        const auto grad = of_stats(c);
        voxel.v.write_grad(c, of_stats.s.with_loss ? grad + of_losses(c) : grad);
    }
}

template <typename V>
__device__ void write_voxel_grad(const segloss_soft_stats& s, const V& v, int64_t sample, const double* total_weight,
                                 Totals* mine) {
    if (v.is_refused()) {
        mine->refuse(v.position);
    }
    if (v.weight == 0) {
        v.fill_without_weight();
        return;
    }
    const Activated<V> voxel(s, v);
    if (!s.grad_intersection) {
        write_binary_grad(s, voxel, total_weight);
        return;
    }
    const StatsGrad<V> of_stats(s, voxel, sample);
    if (s.activation == SEGLOSS_SOFTMAX) {
        write_softmax_grad(of_stats, v.grad_scale(total_weight));
    } else {
        write_class_grads(of_stats, total_weight);
    }
}

template <typename Real, typename T, bool TILED>
__global__ void __launch_bounds__(THREADS)
    backward(const __grid_constant__ segloss_soft_stats s, int64_t begin, int64_t sample_size, int64_t num_samples,
             const double* total_weight, int unless_one, Totals* totals) {
    using V = Voxel<Real, T, TILED>;
    if (is_written<Real>(s.voxels, unless_one)) {
        return;
    }
    for (int64_t n = blockIdx.y; n < num_samples; n += gridDim.y) {
        const int64_t first = begin + n * sample_size;
        Totals mine;
        for_each_voxel<V, T>(s.voxels, first, first + sample_size,
                             [&](const V& v) { write_voxel_grad(s, v, n, total_weight, &mine); });
        write_totals(mine, totals + n * gridDim.x + blockIdx.x);
    }
}

// ---- launching ----

constexpr int64_t MAX_CLASS_SUMS = 1 << 18; // over all blocks, for one warp of each; bounds the workspace

int num_stats_blocks(int64_t num_positions, int64_t num_samples, int64_t num_classes) {
    const int64_t affordable = MAX_CLASS_SUMS / (num_samples * (num_classes > 0 ? num_classes : 1));
    const int blocks = num_blocks(num_positions, num_samples);
    return affordable < 1 ? 1 : blocks < affordable ? blocks : static_cast<int>(affordable);
}

// The workspace has room for that many totals and, behind them, rows of sums for each class. The mean of cross entropy
// has the weights of labels there, too.
int64_t most_totals(int64_t num_positions, int64_t num_samples) {
    return std::max(num_blocks(num_positions / num_samples, num_samples) * num_samples,
                    most_tile_blocks(num_positions));
}

int64_t most_rows(int64_t num_positions, int64_t num_samples, int64_t num_classes) {
    const int64_t blocks = num_stats_blocks(num_positions / num_samples, num_samples, num_classes);
    return std::max(blocks * num_samples * WARPS, most_tile_blocks(num_positions));
}

ClassSums* class_sums_of(const segloss_cuda_call& call) {
    const int64_t totals = most_totals(call.end - call.begin, call.num_samples);
    return reinterpret_cast<ClassSums*>(static_cast<Totals*>(call.workspace) + totals);
}

// Whether the kernels over tiles can compute all that is wanted.
bool describe_stats_tiles(const segloss_soft_stats& s, const segloss_cuda_call& call, TileCall* tiles) {
    const bool has_form = s.activation == SEGLOSS_SOFTMAX && !s.soft_label && !s.squared;
    return has_form && describe_tiles(s.voxels, call, tiles);
}

// Of logits of another size.
int launch_resized_forward(const segloss_soft_stats& s, const segloss_cuda_call& call, Parts* parts) {
    TileCall tiles;
    if (s.activation != SEGLOSS_SOFTMAX || s.soft_label || !describe_resized_tiles(s.voxels, call, &tiles)) {
        return cudaErrorInvalidValue;
    }
    auto* const rows = static_cast<ClassSums*>(resized_rows(tiles, call));
    const int64_t blocks = tiles.grid.blocks_per_sample;
    *parts = {rows, static_cast<const Totals*>(call.workspace), call.num_samples, s.voxels.num_classes, blocks, blocks,
              1};
    const int error = launch_axis_tables(tiles, call);
    return error != cudaSuccess ? error : launch_resized_stats(tiles, s, call, rows);
}

int launch_resized_backward(const segloss_soft_stats& s, const segloss_cuda_call& call, const double* total_weight,
                            int unless_one, int64_t* num_totals) {
    TileCall tiles;
    if (s.activation != SEGLOSS_SOFTMAX || s.squared || !describe_resized_tiles(s.voxels, call, &tiles)) {
        return cudaErrorInvalidValue;
    }
    *num_totals = tiles.grid.num_blocks;
    int error = launch_axis_tables(tiles, call);
    if (error == cudaSuccess) {
        error = launch_resized_stats_grad(tiles, s, call, total_weight, unless_one);
    }
    return error != cudaSuccess ? error : launch_resized_grad(tiles, call, s.grad_prediction, unless_one);
}

// Launches a kernel over blocks of voxels, and describes what they write.
int launch_forward(const segloss_soft_stats& s, const segloss_cuda_call& call, const double* total_weight,
                   int64_t num_summed, Parts* parts) {
    if (call.resize) {
        return launch_resized_forward(s, call, parts);
    }
    const Samples samples(call);
    const int64_t num_classes = s.voxels.num_classes;
    ClassSums* const rows = class_sums_of(call);
    const auto totals = static_cast<Totals*>(call.workspace);
    const double losses_per_voxel = s.activation == SEGLOSS_SOFTMAX ? 1 : static_cast<double>(num_classes);
    TileCall tiles;
    if (num_summed > 0 && !s.voxels.grad_logits.data && describe_stats_tiles(s, call, &tiles)) {
        const int64_t blocks = tiles.grid.num_blocks / samples.count;
        *parts = {rows, totals, samples.count, num_summed, blocks, blocks, losses_per_voxel};
        return with_type_of_tiles(
            tiles, [&](auto element) { return launch_stats_tiles<decltype(element)>(tiles, s, call, rows); });
    }
    if ((num_summed > 0 ? !s.voxels.grad_logits.data : s.with_loss) && describe_sigmoid_tiles(s, call, &tiles)) {
        const int64_t blocks = tiles.grid.num_blocks / samples.count;
        *parts = {rows, totals, samples.count, num_summed, blocks, blocks, losses_per_voxel};
        return with_type_of_tiles(tiles, [&](auto element) {
            return launch_sigmoid_tiles<decltype(element)>(tiles, s, call, total_weight, 0,
                                                           num_summed > 0 ? rows : nullptr);
        });
    }
    const int64_t blocks = num_stats_blocks(samples.size, samples.count, num_summed);
    const int64_t sum_bytes = num_summed * WARPS * static_cast<int64_t>(sizeof(ClassSums));
    return with_types(
        call.real, s.voxels.logits.dtype, num_classes, sum_bytes, [&](auto real, auto element, auto tiled) {
            using T = decltype(element);
            const int64_t shared_bytes = tiled() ? tile_bytes<T>(num_classes) + sum_bytes : 0;
            *parts = {rows,   totals,          samples.count, num_summed, blocks * (tiled() ? 1 : WARPS),
                      blocks, losses_per_voxel};
            return launch(call, {blocks, samples.rows, shared_bytes}, forward<decltype(real), T, tiled()>, s,
                          call.begin, samples.size, samples.count, num_summed, total_weight, rows, totals);
        });
}

int launch_backward(const segloss_soft_stats& s, const segloss_cuda_call& call, const double* total_weight,
                    int unless_one, int64_t* num_totals) {
    if (call.resize) {
        return launch_resized_backward(s, call, total_weight, unless_one, num_totals);
    }
    const Samples samples(call);
    const int64_t num_classes = s.voxels.num_classes;
    TileCall tiles;
    if (describe_stats_tiles(s, call, &tiles)) {
        *num_totals = tiles.grid.num_blocks;
        return with_type_of_tiles(tiles, [&](auto element) {
            return launch_stats_grad_tiles<decltype(element)>(tiles, s, call, total_weight, unless_one);
        });
    }
    if (describe_sigmoid_tiles(s, call, &tiles)) {
        *num_totals = tiles.grid.num_blocks;
        return with_type_of_tiles(tiles, [&](auto element) {
            using T = decltype(element);
            return s.grad_intersection ? launch_sigmoid_grad_tiles<T>(tiles, s, call, total_weight, unless_one)
                                       : launch_sigmoid_tiles<T>(tiles, s, call, total_weight, unless_one, nullptr);
        });
    }
    const int64_t blocks = num_blocks(samples.size, samples.count);
    *num_totals = blocks * samples.count;
    return with_types(call.real, s.voxels.logits.dtype, num_classes, 0, [&](auto real, auto element, auto tiled) {
        using T = decltype(element);
        const int64_t shared_bytes = tiled() ? tile_bytes<T>(num_classes) : 0;
        return launch(call, {blocks, samples.rows, shared_bytes}, backward<decltype(real), T, tiled()>, s, call.begin,
                      samples.size, samples.count, total_weight, unless_one, static_cast<Totals*>(call.workspace));
    });
}

template <typename Real>
cudaError_t launch_weight(const segloss_cross_entropy& args, const segloss_cuda_call& call,
                          const segloss_cuda_sums& sums) {
    const int64_t blocks = num_blocks(call.end - call.begin, 1);
    const auto totals = static_cast<Totals*>(call.workspace);
    const double* const unknown = nullptr;
    const Parts parts{nullptr, totals, 1, 0, 0, blocks, static_cast<double>(args.num_classes)};
    const auto error = launch(call, {blocks}, add_weights<Real, true>, args, call.begin, call.end, totals);
    return error != cudaSuccess ? error : launch(call, {2}, finish_stats<Real>, args, call, parts, unknown, sums);
}

} // namespace

extern "C" size_t segloss_cuda_workspace(int64_t num_positions, int64_t num_samples, int64_t num_classes) {
    const auto totals = static_cast<size_t>(most_totals(num_positions, num_samples)) * sizeof(Totals);
    const auto rows = static_cast<size_t>(most_rows(num_positions, num_samples, num_classes));
    return totals + std::max(rows * static_cast<size_t>(num_classes) * sizeof(ClassSums),
                             static_cast<size_t>(MAX_WEIGHT_BLOCKS) * sizeof(Totals));
}

extern "C" int segloss_cuda_binary_weight(const segloss_cross_entropy* args, const segloss_cuda_call* call,
                                          const segloss_cuda_sums* sums) {
    const auto without_ranges = without_target_range(*args);
    return call->real == SEGLOSS_REAL_DOUBLE ? launch_weight<double>(without_ranges, *call, *sums)
                                             : launch_weight<float>(without_ranges, *call, *sums);
}

extern "C" int segloss_cuda_soft_stats_forward(const segloss_soft_stats* args, const segloss_cuda_call* call,
                                               const double* total_weight, const segloss_cuda_sums* sums) {
    const int64_t num_summed = sums->intersection ? args->voxels.num_classes : 0;
    Parts parts;
    const int error = launch_forward(*args, *call, total_weight, num_summed, &parts);
    const auto kernel = call->real == SEGLOSS_REAL_DOUBLE ? finish_stats<double> : finish_stats<float>;
    return error != cudaSuccess ? error
                                : launch(*call, {num_summed + 2, Samples(*call).rows}, kernel, args->voxels, *call,
                                         parts, total_weight, *sums);
}

extern "C" int segloss_cuda_soft_stats_backward(const segloss_soft_stats* args, const segloss_cuda_call* call,
                                                const double* total_weight, int unless_one) {
    int64_t num_totals = 0;
    const int error = launch_backward(*args, *call, total_weight, unless_one, &num_totals);
    const auto kernel = call->real == SEGLOSS_REAL_DOUBLE ? finish<double> : finish<float>;
    return error != cudaSuccess || unless_one
               ? error
               : launch(*call, {}, kernel, args->voxels, *call, static_cast<const Totals*>(call->workspace), num_totals,
                        total_weight, segloss_cuda_sums{});
}
