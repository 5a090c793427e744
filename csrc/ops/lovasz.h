// The description of the Lovasz losses for Operator.
#pragma once

#include "operator.h"

namespace segloss {

struct Lovasz : LossDefaults<Lovasz> {
    static constexpr auto name = "lovasz";
    static constexpr auto node = "LovaszBackward";
    static constexpr bool by_target = false;
    static constexpr bool is_by_slab = false; // voxels are sorted together
    // The losses [G, C] of each group of samples and class, times `weight`; how many voxels have the target 1; and the
    // slopes of the voxels (segloss_lovasz), in input's shape.
    static constexpr std::array results{Result{"loss", Role::differentiable}, Result{"num_ones", Role::constant},
                                        Result{"slopes", Role::kept}};
    using Results = Tensors<3>;
    using Handed = Tensors<2>;

    struct Options {
        int64_t dim = 1;
        segloss_activation activation = SEGLOSS_SOFTMAX;
        bool hinge = false;     // of logits, without activation
        int64_t group_size = 0; // samples that are sorted together; 0: all
        int64_t ignore_index = -100;
        int64_t upsample = 0; // see Resize

        static constexpr auto keywords() {
            return std::tuple(field("activation", &Options::activation), field("hinge", &Options::hinge),
                              field("group_size", &Options::group_size), field("ignore_index", &Options::ignore_index),
                              field("upsample", &Options::upsample));
        }
        static constexpr auto internal() { return std::tuple(); }

        bool is_softmax() const { return activation == SEGLOSS_SOFTMAX; }
    };

    static Target check(const Arguments& arguments, const Options& options);
    static Reading read(const Arguments& arguments, const Options& options, Target kind);
    static void check_handed(const Handed& handed, const Arguments& arguments, const Options& options);

    static Results forward_cpu(const Arguments& arguments, const Options& options, const Reading& reading);
    static Tensor backward_cpu(const Handed& handed, const Arguments& arguments, const Options& options,
                               const Reading& reading);
    static Results shapes(const Arguments& arguments, const Options& options, const Reading& reading);
    static Results composite(const Arguments& arguments, const Options& options, const Reading& reading);

    static variable_list grads_of_parts(const Handed& handed, const Options& /*options*/) { return {handed[0]}; }
};

} // namespace segloss
