// The description of cross entropy for Operator, shared by cross_entropy.cpp and the kernels of other devices.
#pragma once

#include <ATen/core/Reduction.h>

#include "operator.h"

namespace segloss {

struct CrossEntropy : LossDefaults<CrossEntropy> {
    static constexpr auto name = "cross_entropy";
    static constexpr auto node = "CrossEntropyBackward";
    static constexpr bool by_target = true;
    static constexpr std::array results{Result{"loss", Role::differentiable}, Result{"total_weight", Role::kept},
                                        Result{"gradient", Role::ahead}};
    using Results = Tensors<3>;
    using Handed = Tensors<2>;

    struct Options {
        int64_t dim = 1;
        int64_t reduction = at::Reduction::Mean;
        int64_t ignore_index = -100;
        double label_smoothing = 0;
        bool log_probabilities = false;
        bool empty_zero = false;                          // a mean of total weight 0 is 0, not nan
        double gamma = 0;                                 // of the focal loss
        at::ScalarType dtype = at::ScalarType::Undefined; // of the loss
        bool with_gradient = false;

        static constexpr auto keywords() {
            return std::tuple(field("reduction", &Options::reduction), field("ignore_index", &Options::ignore_index),
                              field("label_smoothing", &Options::label_smoothing),
                              field("log_probabilities", &Options::log_probabilities),
                              field("empty_zero", &Options::empty_zero), field("gamma", &Options::gamma),
                              field("dtype", &Options::dtype));
        }
        static constexpr auto internal() { return std::tuple(field("with_gradient", &Options::with_gradient)); }

        bool is_reduced() const { return reduction != at::Reduction::None; }
        bool is_mean() const { return reduction == at::Reduction::Mean; }
        VoxelLossOptions of_voxels() const { return {label_smoothing, gamma, log_probabilities}; }
    };

    static Target check(const Arguments& arguments, const Options& options);
    static void set_dtype(Options& options, const Arguments& arguments, Target kind);
    static Reading read(const Arguments& arguments, const Options& options, Target kind);
    static void check_handed(const Handed& handed, const Arguments& arguments, const Options& options);
    static bool computes_gradient_ahead(const Arguments& arguments, const Options& options);

    static Results forward_cpu(const Arguments& arguments, const Options& options, const Reading& reading);
    static Tensor backward_cpu(const Handed& handed, const Arguments& arguments, const Options& options,
                               const Reading& reading);
    static Results shapes(const Arguments& arguments, const Options& options, const Reading& reading);
    static Results composite(const Arguments& arguments, const Options& options, const Reading& reading);

    static Results part_of_slab(const Arguments& slab, const Options& options, const Reading& reading);
    static variable_list grads_of_parts(const Handed& handed, const Options& options);
    static Results finish(const Results& sums, const Options& options);
};

} // namespace segloss
