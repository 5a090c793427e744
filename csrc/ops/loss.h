// What a loss says of itself, for Operator to make operators of it.
#pragma once

#include <array>

#include "arguments.h"
#include "autograd.h"
#include "composite.h"
#include "options.h"

namespace segloss {

template <size_t N> using Tensors = std::array<Tensor, N>;

// What becomes of a result. Callers see those of the first two kinds, which come first.
enum class Role {
    differentiable,
    constant,
    kept,  // saved, and handed to the backward operator
    ahead, // the gradient by input where Options::with_gradient asks for it and the device's kernels give it; or empty
};

struct Result {
    const char* name;
    Role role;
};

// A loss is a struct of static members:
//
//   name, node        of the public operator, and of the backward pass in a graph
//   results           an array of Result; Results: that many tensors
//   Handed            the tensors that backward is handed: gradients of the differentiable results, then what was kept
//   Options           with keywords(), internal(), and a member `dim`
//   by_target         whether its Function differentiates by target and weight, too; else the composite does
//   check             all that can be said without looking at a value; returns what target is
//   set_dtype         sets the dtype of the results in the options, where callers do not say
//   read              how the operators beneath read their arguments
//   check_handed      what the backward operator asks of what it is handed
//   forward_cpu, backward_cpu
//   shapes            fresh results
//   composite         the same results by differentiable ATen operators
//
// and what it has not the defaults for.
template <class Loss> struct LossDefaults {
    template <class Options>
    static void set_dtype(Options& /*options*/, const Arguments& /*arguments*/, Target /*kind*/) {}

    // Whether forward computes the gradient, which its own Function then hands out.
    template <class Options>
    static bool computes_gradient_ahead(const Arguments& /*arguments*/, const Options& /*options*/) {
        return false;
    }

    // Of several results those by which nothing was differentiated have undefined gradients: zeros for them.
    template <class Options>
    static void fill_in(variable_list& /*grads*/, const Arguments& /*arguments*/, const Options& /*options*/) {}

    // On devices without a kernel, where one slab comes after the other: the part of a result, or of its gradient, that
    // belongs to a slab; the composite of a slab, whose sums are added up; the gradients by its results; and what comes
    // of the sums.
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
    LossDefaults() = default; // for the loss alone
    friend Loss;
};

} // namespace segloss
