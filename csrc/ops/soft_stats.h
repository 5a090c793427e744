// The description of soft statistics for Operator, shared by soft_stats.cpp and the kernels of other devices.
#pragma once

#include "operator.h"

namespace segloss {

struct SoftStats : LossDefaults<SoftStats> {
    static constexpr auto name = "soft_stats";
    static constexpr auto node = "SoftStatsBackward";
    static constexpr bool by_target = false;
    // Sums [N, C] of v p g, v p and v g; sums [N] of the voxel losses and of their weights in a mean.
    static constexpr std::array results{Result{"intersection", Role::differentiable},
                                        Result{"prediction", Role::differentiable},
                                        Result{"target_sum", Role::constant}, Result{"loss", Role::differentiable},
                                        Result{"loss_weight", Role::constant}};
    using Results = Tensors<5>;
    using Handed = Tensors<3>;

    struct Options {
        int64_t dim = 1;
        segloss_activation activation = SEGLOSS_SOFTMAX;
        bool squared = false;
        int64_t ignore_index = -100;
        bool voxel_loss = false;
        double gamma = 0;
        double label_smoothing = 0;
        bool soft_label = false;        // I sums min(p, g), for class probabilities
        bool any_finite_target = false; // class probabilities may be any finite numbers
        int64_t upsample = 0;           // see Resize

        static constexpr auto keywords() {
            return std::tuple(field("activation", &Options::activation), field("squared", &Options::squared),
                              field("ignore_index", &Options::ignore_index), field("voxel_loss", &Options::voxel_loss),
                              field("gamma", &Options::gamma), field("label_smoothing", &Options::label_smoothing),
                              field("soft_label", &Options::soft_label),
                              field("any_finite_target", &Options::any_finite_target),
                              field("upsample", &Options::upsample));
        }
        static constexpr auto internal() { return std::tuple(); }

        bool is_softmax() const { return activation == SEGLOSS_SOFTMAX; }

        // Whether I sums min(p, g). With squares, its analogue (p^2 + g^2 - (p - g)^2) / 2 is p g; with labels, min(p,
        // g) and p g are equal.
        bool sums_minima(Target kind) const { return soft_label && !squared && kind == Target::probabilities; }

        VoxelLossOptions of_voxels() const {
            return voxel_loss ? VoxelLossOptions{label_smoothing, gamma} : VoxelLossOptions{};
        }
    };

    static Target check(const Arguments& arguments, const Options& options);
    static Reading read(const Arguments& arguments, const Options& options, Target kind);
    static void check_handed(const Handed& handed, const Arguments& arguments, const Options& options);
    static void fill_in(variable_list& grads, const Arguments& arguments, const Options& options);

    static Results forward_cpu(const Arguments& arguments, const Options& options, const Reading& reading);
    static Tensor backward_cpu(const Handed& handed, const Arguments& arguments, const Options& options,
                               const Reading& reading);
    static Results shapes(const Arguments& arguments, const Options& options, const Reading& reading);
    static Results composite(const Arguments& arguments, const Options& options, const Reading& reading);

    static Tensor of_slab(const Tensor& sums, const Slabs& slabs, int64_t slab) { return slabs.of_samples(sums, slab); }
};

// The kernel arguments of soft statistics, from those of the voxels.
segloss_soft_stats kernel_arguments(const VoxelArguments& voxels, const SoftStats::Options& options);

// The batch is the first dimension that is not the class dimension; an input [C] is a batch of one.
inline bool is_batched(const Tensor& input) { return input.dim() > 1; }
inline int64_t batch_dim(int64_t dim) { return dim == 0 ? 1 : 0; }
inline c10::SymInt num_samples(const Tensor& input, int64_t dim) {
    return is_batched(input) ? input.sym_size(batch_dim(dim)) : c10::SymInt(1);
}

} // namespace segloss
