// The description of the statistics of components for Operator.
#pragma once

#include "soft_stats.h"

namespace segloss {

// Soft statistics of each component: of the voxels with each number of a map, which Arguments::weight holds.
struct ComponentStats : LossDefaults<ComponentStats> {
    static constexpr auto name = "component_stats";
    static constexpr auto node = "ComponentStatsBackward";
    static constexpr auto third = "components";
    static constexpr bool by_target = false;
    static constexpr bool is_by_slab = false;
    // With R components, sums [N, R, C] of v p g, v p and v g; sums [N, R] of the voxel losses and of v.
    static constexpr std::array results{
        Result{"intersection", Role::differentiable}, Result{"prediction", Role::differentiable},
        Result{"target_sum", Role::constant}, Result{"loss", Role::differentiable}, Result{"voxels", Role::constant}};
    using Results = Tensors<5>;
    using Handed = Tensors<3>;

    struct Options {
        int64_t dim = 1;
        segloss_activation activation = SEGLOSS_SOFTMAX;
        int64_t num_components = 1; // R
        int64_t ignore_index = -100;
        bool voxel_loss = false;
        int64_t upsample = 0; // not a keyword: logits are of the target's size

        static constexpr auto keywords() {
            return std::tuple(field("activation", &Options::activation),
                              field("num_components", &Options::num_components),
                              field("ignore_index", &Options::ignore_index), field("voxel_loss", &Options::voxel_loss));
        }
        static constexpr auto internal() { return std::tuple(); }

        SoftStats::Options of_stats() const {
            SoftStats::Options options;
            options.dim = dim;
            options.activation = activation;
            options.ignore_index = ignore_index;
            options.voxel_loss = voxel_loss;
            return options;
        }
    };

    static Target check(const Arguments& arguments, const Options& options);
    static Reading read(const Arguments& arguments, const Options& options, Target kind);
    static void check_handed(const Handed& handed, const Arguments& arguments, const Options& options);
    static void check_values(const Arguments& arguments, const Options& options, const Reading& reading);
    static void fill_in(variable_list& grads, const Arguments& arguments, const Options& options);

    static Results forward_cpu(const Arguments& arguments, const Options& options, const Reading& reading);
    static Tensor backward_cpu(const Handed& handed, const Arguments& arguments, const Options& options,
                               const Reading& reading);
    static Results shapes(const Arguments& arguments, const Options& options, const Reading& reading);
    static Results composite(const Arguments& arguments, const Options& options, const Reading& reading);
};

} // namespace segloss
