// Soft statistics, the losses summed along with them, and their gradient. The formulas are in kernels.h.

#include "voxels.cuh"

namespace {

constexpr int VOXELS_PER_THREAD = 4; // a class's sums are added over the block once for all of them
constexpr int64_t PER_BLOCK = VOXELS_PER_THREAD * THREADS;
constexpr int64_t MAX_CLASS_SUMS = 1 << 20; // of all blocks, for few classes; bounds the workspace

int num_stats_blocks(int64_t num_positions, int64_t num_classes) {
    const int64_t affordable = MAX_CLASS_SUMS / (num_classes > 0 ? num_classes : 1);
    const int64_t blocks = num_blocks(num_positions, PER_BLOCK);
    return static_cast<int>(blocks < affordable ? blocks : affordable > 32 ? affordable : blocks < 32 ? blocks : 32);
}

// A voxel with what gives its p_c.
template <typename Real, typename T> struct Activated {
    Voxel<Real, T> v;
    typename SoftmaxOf<Real>::type softmax;
    Real share;
    segloss_activation activation;

    Activated() = default;

    __device__ Activated(const segloss_soft_stats& s, int64_t position)
        : v(s.voxels, position), activation(s.activation) {
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

    __device__ Real binary_losses() const {
        Real sum = 0;
        for (int64_t c = 0; c < v.a->num_classes; ++c) {
            const Real loss = binary_loss(v.logit(c), smoothed(c), static_cast<Real>(v.a->gamma));
            sum += weighted(v.class_weight(c), loss);
        }
        return v.weight * sum;
    }
};

template <typename Real, typename T>
__device__ void add_losses(const segloss_soft_stats& s, const Activated<Real, T>& voxel, int64_t position,
                           Totals* mine) {
    if (voxel.v.is_refused()) {
        mine->refuse(position);
        mine->loss = mine->weight = NAN;
    }
    if (!s.with_loss || voxel.v.weight == 0) {
        return;
    }
    const bool is_softmax = s.activation == SEGLOSS_SOFTMAX;
    mine->loss += static_cast<double>(is_softmax ? voxel.v.loss(voxel.softmax) : voxel.binary_losses());
    mine->weight += static_cast<double>(is_softmax ? voxel.v.share_of_mean() : voxel.v.weight);
}

// v p g, v p and v g of a class; with `squared` p^2 and g^2 in the last two. All nan of a refused voxel.
template <typename Real, typename T>
__device__ void add_class(const segloss_soft_stats& s, const Activated<Real, T>& voxel, int64_t c, ClassSums* mine) {
    if (voxel.v.is_refused()) {
        mine->intersection = mine->prediction = mine->target = NAN;
    }
    if (voxel.v.weight == 0) {
        return;
    }
    const Real v = voxel.v.weight, p = voxel.probability(c), g = voxel.v.target(c);
    mine->intersection += static_cast<double>(v * weighted(g, p));
    mine->prediction += static_cast<double>(v * p * (s.squared ? p : 1));
    mine->target += static_cast<double>(v * g * (s.squared ? g : 1));
}

// stats [C] of this block; those of its first voxels are written, those of further ones added.
template <typename Real, typename T>
__global__ void forward(const __grid_constant__ segloss_soft_stats s, int64_t begin, int64_t end, ClassSums* of_blocks,
                        Totals* totals_of_blocks) {
    __shared__ Shared<ClassSums> shared;
    ClassSums* const sums = of_blocks + blockIdx.x * s.voxels.num_classes;
    const int64_t first = begin + blockIdx.x * PER_BLOCK;
    Totals mine;
    for (int64_t tile = first; tile < end || tile == first; tile += gridDim.x * PER_BLOCK) {
        Activated<Real, T> voxels[VOXELS_PER_THREAD];
        for (int k = 0; k < VOXELS_PER_THREAD; ++k) {
            const int64_t position = tile + k * THREADS + threadIdx.x;
            voxels[k].v.label = IGNORED;
            voxels[k].v.weight = 0;
            if (position < end) {
                voxels[k] = Activated<Real, T>(s, position);
                add_losses(s, voxels[k], position, &mine);
            }
        }
        for (int64_t c = 0; c < s.voxels.num_classes; ++c) {
            ClassSums of_class;
            for (int k = 0; k < VOXELS_PER_THREAD; ++k) {
                add_class(s, voxels[k], c, &of_class);
            }
            ClassSums total = sum_of_block(of_class, shared.sums());
            if (threadIdx.x == 0) {
                if (tile != first) {
                    total.add(sums[c]);
                }
                sums[c] = total;
            }
        }
    }
    write_totals(mine, totals_of_blocks);
}

// A thread adds up a class.
__global__ void add_class_sums(const ClassSums* of_blocks, int count, int64_t num_classes, double* stats) {
    for_each_position(0, num_classes, [&](int64_t c) {
        ClassSums total;
        for (int i = 0; i < count; ++i) {
            total.add(of_blocks[i * num_classes + c]);
        }
        stats[c] = total.intersection;
        stats[num_classes + c] = total.prediction;
        stats[2 * num_classes + c] = total.target;
    });
}

// With d_c = a_c g_c + b_c, times 2 p_c if squared, where a and b are grad_intersection and grad_prediction:
// v p_c (d_c - sum_k p_k d_k) for a softmax, v p_c (1 - p_c) d_c for a sigmoid and v d_c for p itself. Under a softmax
// the d_c are taken relative to the label's, so that the gradient of a confident voxel keeps its digits.
template <typename Real, typename T> struct StatsGrad {
    const segloss_soft_stats& s;
    const Activated<Real, T>& voxel;
    Real origin = 0;
    Real mean = 0;

    __device__ StatsGrad(const segloss_soft_stats& stats, const Activated<Real, T>& activated)
        : s(stats), voxel(activated) {
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
        const Real a = static_cast<const Real*>(s.grad_intersection)[c];
        const Real b = static_cast<const Real*>(s.grad_prediction)[c];
        return a * voxel.v.target(c) + (s.squared ? 2 * b * p : b);
    }

    __device__ Real operator()(int64_t c) const {
        const Real p = voxel.probability(c), d = slope(c, p);
        const Real derivative = s.activation == SEGLOSS_SOFTMAX   ? p
                                : s.activation == SEGLOSS_SIGMOID ? p * sigmoid(-voxel.v.logit(c))
                                                                  : 1;
        return voxel.v.weight * derivative * ((d - origin) - mean);
    }
};

template <typename Real, typename T>
__device__ void write_softmax_grad(const segloss_soft_stats& s, const Activated<Real, T>& voxel, Real scale) {
    const StatsGrad<Real, T> of_stats(s, voxel);
    const LossGrad<Real, T> of_losses(voxel.v, voxel.softmax, scale);
    for (int64_t c = 0; c < s.voxels.num_classes; ++c) {
        voxel.v.write_grad(c, of_stats(c) + (s.with_loss ? of_losses(c) : 0));
    }
}

template <typename Real, typename T>
__device__ void write_class_grads(const segloss_soft_stats& s, const Activated<Real, T>& voxel, Real scale) {
    const StatsGrad<Real, T> of_stats(s, voxel);
    for (int64_t c = 0; c < s.voxels.num_classes; ++c) {
        Real grad = of_stats(c);
        if (s.with_loss) {
            const Real slope = binary_grad(voxel.v.logit(c), voxel.smoothed(c), static_cast<Real>(s.voxels.gamma));
            grad += scale * voxel.v.class_weight(c) * slope;
        }
        voxel.v.write_grad(c, grad);
    }
}

template <typename Real, typename T>
__device__ void write_voxel_grad(const segloss_soft_stats& s, int64_t position, const double* total_weight,
                                 Totals* mine) {
    const Activated<Real, T> voxel(s, position);
    const Real scale = voxel.v.weight == 0 ? 0 : voxel.v.grad_scale(total_weight);
    if (voxel.v.is_refused()) {
        mine->refuse(position);
        voxel.v.fill_grad(static_cast<Real>(NAN));
    } else if (voxel.v.weight == 0) {
        voxel.v.fill_grad(0);
    } else if (s.activation == SEGLOSS_SOFTMAX) {
        write_softmax_grad(s, voxel, scale);
    } else {
        write_class_grads(s, voxel, scale);
    }
}

template <typename Real, typename T>
__global__ void backward(const __grid_constant__ segloss_soft_stats s, int64_t begin, int64_t end,
                         const double* total_weight, Totals* of_blocks) {
    Totals mine;
    for_each_position(begin, end, [&](int64_t p) { write_voxel_grad<Real, T>(s, p, total_weight, &mine); });
    write_totals(mine, of_blocks);
}

Totals* totals_of(const segloss_cuda_call& call) { return static_cast<Totals*>(call.workspace); }

ClassSums* class_sums_of(const segloss_cuda_call& call) {
    return reinterpret_cast<ClassSums*>(totals_of(call) + MAX_BLOCKS);
}

} // namespace

// Totals, then the sums of the classes.
extern "C" size_t segloss_cuda_workspace(int64_t num_classes) {
    const auto num_sums = static_cast<size_t>(num_stats_blocks(INT64_MAX / 2, num_classes)) * num_classes;
    return MAX_BLOCKS * sizeof(Totals) + num_sums * sizeof(ClassSums);
}

extern "C" int segloss_cuda_soft_stats_forward(const segloss_soft_stats* args, const segloss_cuda_call* call,
                                               double* stats, segloss_sums* sums) {
    const int64_t num_classes = args->voxels.num_classes;
    const int blocks = num_stats_blocks(call->end - call->begin, num_classes);
    const double losses_per_voxel = args->activation == SEGLOSS_SOFTMAX ? 1 : static_cast<double>(num_classes);
    const ClassSums* const class_sums = class_sums_of(*call);
    return with_types(call->real, args->voxels.logits.dtype, [&](auto real, auto element) {
        using Real = decltype(real);
        using T = decltype(element);
        auto error = launch(*call, blocks, forward<Real, T>, *args, call->begin, call->end, class_sums_of(*call),
                            totals_of(*call));
        if (error == cudaSuccess) {
            error =
                launch(*call, num_blocks(num_classes, THREADS), add_class_sums, class_sums, blocks, num_classes, stats);
        }
        return error != cudaSuccess ? error
                                    : launch(*call, 1, finish<Real, T>, args->voxels, *call, totals_of(*call), blocks,
                                             losses_per_voxel, sums);
    });
}

extern "C" int segloss_cuda_soft_stats_backward(const segloss_soft_stats* args, const segloss_cuda_call* call,
                                                const double* total_weight) {
    const int blocks = num_blocks(call->end - call->begin, THREADS);
    segloss_sums* const no_sums = nullptr;
    return with_types(call->real, args->voxels.logits.dtype, [&](auto real, auto element) {
        using Real = decltype(real);
        using T = decltype(element);
        const auto error =
            launch(*call, blocks, backward<Real, T>, *args, call->begin, call->end, total_weight, totals_of(*call));
        return error != cudaSuccess
                   ? error
                   : launch(*call, 1, finish<Real, T>, args->voxels, *call, totals_of(*call), blocks, 1.0, no_sums);
    });
}
