// How a loss describes itself to Operator, which makes its operators.
#pragma once

#include <array>

#include "arguments.h"
#include "autograd.h"
#include "composite.h"
#include "options.h"

namespace segloss {

template <size_t N> using Tensors = std::array<Tensor, N>;

// The role of a result. Callers get the results of the first two roles, which come first.
enum class Role {
    differentiable,
    constant,
    kept,  // saved, and passed to the backward operator
    ahead, // input's gradient, if Options::with_gradient is set and the device's kernels can compute it; else empty
};

struct Result {
    const char* name;
    Role role;
};

// A loss is a struct of static members:
//
//   name, node        names of the public operator, and of the backward pass in a graph
//   results           an array of Result; the type Results holds as many tensors
//   Handed            the tensors passed to backward: gradients of the differentiable results, then the kept results
//   Options           with keywords(), internal(), and a member `dim`
//   by_target         whether the Function also computes gradients of target and weight; if not, the composite does
//   check             all checks that need no tensor values; returns what target means
//   set_dtype         sets the dtype of the results in the options, unless the caller gave one
//   read              how the private operators read their arguments
//   check_handed      the backward operator's checks of Handed
//   forward_cpu, backward_cpu
//   rewrite_gradient_cpu   backward in place of a gradient that forward has computed; only if there is such a result
//   shapes            uninitialised results, of the right shapes and dtypes
//   composite         the same results in differentiable ATen operators
//
// and of others that replace the defaults below.
template <class Loss> struct LossDefaults {
    static constexpr bool publishes_kept = false; // whether callers get the kept results, too, which come next

    template <class Options>
    static void set_dtype(Options& /*options*/, const Arguments& /*arguments*/, Target /*kind*/) {}

    static constexpr auto third = "weight"; // the name of the third tensor argument, Arguments::weight

    // Checks values where no kernel reads them.
    template <class Options>
    static void check_values(const Arguments& arguments, const Options& /*options*/, const Reading& reading) {
        segloss::check_values(arguments, reading);
    }

    // Whether forward also computes the gradient, for the backward pass of the Function.
    template <class Options>
    static bool computes_gradient_ahead(const Arguments& /*arguments*/, const Options& /*options*/) {
        return false;
    }

    // If a loss has several results, those that the caller does not use have undefined gradients: makes these zeros.
    template <class Options>
    static void fill_in(variable_list& /*grads*/, const Arguments& /*arguments*/, const Options& /*options*/) {}

    // Whether devices without a kernel compute slab by slab.
    static constexpr bool is_by_slab = true;

    // How they do:
    //   of_slab          the part of a result, or of its gradient, that belongs to a slab
    //   part_of_slab     the composite of one slab; the sums of all slabs are added
    //   grads_of_parts   the gradients of the slabs' results
    //   finish           the final results, from the sums
    static Tensor of_slab(const Tensor& result, const Slabs& slabs, int64_t slab) {
        return result.dim() == 0 ? result : slabs.of(result, slab);
    }
    template <class Options>
    static auto part_of_slab(const Arguments& slab, const Options& options, const Reading& reading) {
        return Loss::composite(slab, options, reading);
    }
    template <class Handed, class Options>
    static variable_list grads_of_parts(const Handed& handed, const Options& /*options*/) {
        return {handed.begin(), handed.end()};
    }
    template <class Results, class Options> static Results finish(const Results& sums, const Options& /*options*/) {
        return sums;
    }

private:
    LossDefaults() = default; // only for the loss itself
    friend Loss;
};

} // namespace segloss
