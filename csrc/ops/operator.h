// Makes the operators of the struct that describes a loss (loss.h): schemas, autograd, shapes, and the composite in
// slabs for devices without a kernel. binary_cross_entropy.cpp is the smallest example.
//
//   name            public: takes keywords; how it computes depends on the gradients needed
//   name_forward    private: takes labels instead of one-hot targets, and options in two lists; returns all results
//   name_backward   private: input's gradient, from the gradients of the results and from the kept results
//   name_rescale    private, if forward can compute the gradient: makes that for a grad of 1 the gradient for another
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>
#include <string>
#include <tuple>
#include <utility>

#include "checks.h"
#include "dispatch.h"
#include "loss.h"
#include "targets.h"

namespace segloss {

// All members are static. A loss registers its operators by an object of type `Operator<Loss>::Registration`.
template <class Loss> class Operator {
public:
    using Options = typename Loss::Options;
    static constexpr size_t kNumResults = Loss::results.size();
    using Results = typename Loss::Results;
    using Handed = typename Loss::Handed;

private:
    static constexpr size_t count(Role role) {
        size_t number = 0;
        for (const auto& result : Loss::results) {
            number += result.role == role ? 1 : 0;
        }
        return number;
    }
    static constexpr size_t kNumGrads = count(Role::differentiable);
    static constexpr size_t kNumHanded = kNumGrads + count(Role::kept);
    static constexpr size_t kNumPublic =
        kNumGrads + count(Role::constant) + (Loss::publishes_kept ? count(Role::kept) : 0);

public:
    // ---- adapters to the dispatcher ---------------------------------------------------------------------------------

    // Adapts an implementation of name_forward to the dispatcher.
    template <auto implementation> struct Forward {
        static auto call(c10::string_view op, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                         const OptionalTensor& voxel_weight, const OptionalTensor& label_table, int64_t dim,
                         at::IntArrayRef options, at::ArrayRef<double> factors) {
            const auto [arguments, unpacked] = unpacked_call(
                {std::string(op), input, target, weight, voxel_weight, label_table}, dim, options, factors);
            return returned<kNumResults>(implementation(arguments, unpacked));
        }
    };

    // Likewise for name_backward.
    template <auto implementation, typename = std::make_index_sequence<kNumHanded>> struct Backward;
    template <auto implementation, size_t... I> struct Backward<implementation, std::index_sequence<I...>> {
        template <size_t> using Handle = const Tensor&;
        static Tensor call(Handle<I>... handed, c10::string_view op, const Tensor& input, const Tensor& target,
                           const OptionalTensor& weight, const OptionalTensor& voxel_weight,
                           const OptionalTensor& label_table, int64_t dim, at::IntArrayRef options,
                           at::ArrayRef<double> factors) {
            const auto [arguments, unpacked] = unpacked_call(
                {std::string(op), input, target, weight, voxel_weight, label_table}, dim, options, factors);
            return implementation({handed...}, arguments, unpacked);
        }
    };

    // Likewise for name_rescale.
    template <auto implementation, typename = std::make_index_sequence<kNumHanded>> struct Rescale;
    template <auto implementation, size_t... I> struct Rescale<implementation, std::index_sequence<I...>> {
        template <size_t> using Handle = const Tensor&;
        static void call(const Tensor& gradient, Handle<I>... handed, c10::string_view op, const Tensor& input,
                         const Tensor& target, const OptionalTensor& weight, const OptionalTensor& voxel_weight,
                         const OptionalTensor& label_table, int64_t dim, at::IntArrayRef options,
                         at::ArrayRef<double> factors) {
            const auto [arguments, unpacked] = unpacked_call(
                {std::string(op), input, target, weight, voxel_weight, label_table}, dim, options, factors);
            implementation(gradient, {handed...}, arguments, unpacked);
        }
    };

    // The public operator, whose keywords are the fields of the options.
    template <typename Fields = decltype(Options::keywords())> struct Public;
    template <typename... T> struct Public<std::tuple<Field<Options, T>...>> {
        static auto call(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                         const OptionalTensor& voxel_weight, const OptionalTensor& label_table, int64_t dim,
                         typename OptionType<T>::Public... values, c10::string_view op) {
            Arguments arguments{std::string(op), input, target, weight, voxel_weight, label_table};
            Options options;
            options.dim = dim;
            const auto set = [&](const auto&... fields) {
                ((options.*fields.member = OptionType<T>::of(arguments.op, values)), ...);
            };
            std::apply(set, Options::keywords());
            return returned<kNumPublic>(of_caller(arguments, options));
        }
    };

    // Runs the checks, then the implementation with the resulting Reading.
    template <auto implementation> static Results checked_forward(const Arguments& arguments, const Options& options) {
        return implementation(arguments, options, read(arguments, options));
    }
    template <auto implementation>
    static Tensor checked_backward(const Handed& handed, const Arguments& arguments, const Options& options) {
        const auto reading = read(arguments, options);
        Loss::check_handed(handed, arguments, options);
        return implementation(handed, arguments, options, reading);
    }

    template <auto implementation>
    static void checked_rescale(const Tensor& gradient, const Handed& handed, const Arguments& arguments,
                                const Options& options) {
        const auto reading = read(arguments, options);
        Loss::check_handed(handed, arguments, options);
        const auto& logits = arguments.logits();
        check_dense(arguments.op, gradient, "gradient");
        TORCH_CHECK(gradient.sizes() == logits.sizes() && gradient.scalar_type() == logits.scalar_type() &&
                        gradient.device() == logits.device() && gradient.is_non_overlapping_and_dense(),
                    arguments.op, ": expected a gradient like the logits ", logits.sizes(), ", got ", gradient.sizes(),
                    " of dtype ", gradient.scalar_type());
        TORCH_CHECK(options.is_reduced(), arguments.op,
                    ": expected reduction 1 (mean) or 2 (sum) with a gradient to "
                    "rescale, got 0 (none)");
        implementation(gradient, handed, arguments, options, reading);
    }

    // Registers a device's implementations.
    template <auto forward, auto backward> static void implement(torch::Library& m) {
        m.impl(name("_forward").c_str(), TORCH_FN(Forward<&checked_forward<forward>>::call));
        m.impl(name("_backward").c_str(), TORCH_FN(Backward<&checked_backward<backward>>::call));
    }
    template <auto forward, auto backward, auto rescale> static void implement(torch::Library& m) {
        implement<forward, backward>(m);
        m.impl(name("_rescale").c_str(), TORCH_FN(Rescale<&checked_rescale<rescale>>::call));
    }

private:
    static constexpr bool kHasGradientAhead = count(Role::ahead) > 0;
    using CallForward = Forward<&checked_forward<&Loss::forward_cpu>>;
    using CallBackward = Backward<&checked_backward<&Loss::backward_cpu>>;

    // What a private operator is called with.
    static std::pair<Arguments, Options> unpacked_call(Arguments arguments, int64_t dim, at::IntArrayRef options,
                                                       at::ArrayRef<double> factors) {
        const auto unpacked = unpack<Options>(arguments.op, dim, options, factors);
        if (unpacked.upsample != 0) {
            check_logits(arguments.op, arguments.input);
            check_label_tensor(arguments.op, arguments.target);
            check_dim(arguments, unpacked);
            take_full_size(arguments, dim, unpacked.upsample);
        }
        return {std::move(arguments), unpacked};
    }

    static std::string name(const char* suffix = "") { return std::string(Loss::name) + suffix; }

    // The first `num` results in the form that the dispatcher takes: one tensor, or a tuple.
    template <size_t num> static auto returned(const Results& results) {
        if constexpr (num == 1) {
            return results[0];
        } else {
            return first(results, std::make_index_sequence<num>());
        }
    }
    template <size_t... I> static auto first(const Results& results, std::index_sequence<I...> /*indices*/) {
        return std::make_tuple(results[I]...);
    }

    static Results call_forward(const Arguments& a, const Options& options) {
        static const auto handle = find_operator<&CallForward::call>(name("_forward"));
        const auto packed = pack(options);
        const auto results = handle.call(a.op, a.logits(), a.target, a.weight, a.voxel_weight, a.label_table,
                                         packed.dim, packed.options, packed.factors);
        if constexpr (kNumResults == 1) {
            return {results};
        } else {
            return std::apply([](const auto&... each) { return Results{each...}; }, results);
        }
    }

    static Tensor call_backward(const Handed& handed, const Arguments& a, const Options& options) {
        static const auto handle = find_operator<&CallBackward::call>(name("_backward"));
        const auto packed = pack(options);
        const auto call = [&](const auto&... each) {
            return handle.call(each..., a.op, a.logits(), a.target, a.weight, a.voxel_weight, a.label_table, packed.dim,
                               packed.options, packed.factors);
        };
        return std::apply(call, handed);
    }

    static void call_rescale(const Tensor& gradient, const Handed& handed, const Arguments& a, const Options& options) {
        static const auto handle = find_operator<&Rescale<&rescale_cpu>::call>(name("_rescale"));
        const auto packed = pack(options);
        const auto call = [&](const auto&... each) {
            handle.call(gradient, each..., a.op, a.logits(), a.target, a.weight, a.voxel_weight, a.label_table,
                        packed.dim, packed.options, packed.factors);
        };
        std::apply(call, handed);
    }

    // ---- checks -----------------------------------------------------------------------------------------------------

    static void check_dim(const Arguments& arguments, const Options& options) {
        const auto& input = arguments.input;
        TORCH_CHECK_INDEX(options.dim >= 0 && options.dim < input.dim(), arguments.op, ": expected dim in [0, ",
                          input.dim() - 1, "] for input ", input.sym_sizes(), ", got ", options.dim);
    }

    static Reading read(const Arguments& arguments, const Options& options) {
        const auto& [op, input, target, weight, voxel_weight, label_table, coarse] = arguments;
        check_logits(op, input);
        check_dim(arguments, options);
        const auto reading = Loss::read(arguments, options, Loss::check(arguments, options));
        TORCH_CHECK(reading.kind != Target::one_hot, op, ": expected labels or floating probabilities, got a ",
                    target.scalar_type(), " target of input's shape. Use target.argmax(dim)");
        return reading;
    }

    // ---- autograd ---------------------------------------------------------------------------------------------------

    // The results, or their gradients, that have the given role.
    static variable_list select(const Results& results, Role role) {
        variable_list selected;
        for (size_t k = 0; k < kNumResults; ++k) {
            if (Loss::results[k].role == role) {
                selected.push_back(results[k]);
            }
        }
        return selected;
    }

    static Results composite(const Arguments& arguments, const Options& options) {
        return Loss::composite(arguments, options, read(arguments, options));
    }

    // The differentiable results as a function of the arguments' tensors.
    static Composite composite_of(const std::string& op, const Options& options) {
        return [op, options](const variable_list& tensors) {
            return select(composite(arguments_of(op, tensors, options), options), Role::differentiable);
        };
    }

    static variable_list saved(const Arguments& arguments, const Results& results) {
        auto tensors = tensors_of(arguments);
        for (size_t k = 0; k < kNumResults; ++k) {
            if (Loss::results[k].role == Role::kept) {
                tensors.push_back(results[k]);
            }
        }
        return tensors;
    }

    // What backward is handed, from the gradients of the results and the saved tensors.
    static Handed handed_of(variable_list grads, const variable_list& saved, const Arguments& arguments,
                            const Options& options) {
        Loss::fill_in(grads, arguments, options);
        Handed handed;
        const auto kept = std::copy(grads.begin(), grads.end(), handed.begin());
        std::copy(saved.begin() + (saved.size() - (kNumHanded - kNumGrads)), saved.end(), kept);
        return handed;
    }

    // Input's gradient, likewise.
    static Tensor gradient_of(const variable_list& grads, const variable_list& saved, const std::string& op,
                              const Options& options) {
        const auto arguments = arguments_of(op, saved, options);
        return call_backward(handed_of(grads, saved, arguments, options), arguments, options);
    }

    // name_forward as autograd sees it, if no Function has recorded the loss already.
    static Results forward_autograd(const Arguments& arguments, const Options& options) {
        if (has_tangent(arguments) || requires_grad_of_target(arguments)) {
            return composite(arguments, options);
        }
        const auto results = [&] {
            const at::AutoDispatchBelowADInplaceOrView below_autograd; // ADInplaceOrView's fallback boxes all arguments
            return call_forward(arguments, options);
        }();
        if (torch::autograd::compute_requires_grad(arguments.logits())) {
            record(Loss::node, select(results, Role::differentiable), {arguments.logits()}, saved(arguments, results),
                   [op = arguments.op, options](const variable_list& grads, const variable_list& saved) {
                       return variable_list{gradient_of(grads, saved, op, options)};
                   });
        }
        return results;
    }

    static Tensor backward_autograd(const Handed& handed, const Arguments& arguments, const Options& options) {
        read(arguments, options); // checks before anything is recorded
        return gradient_by_input(composite_of(arguments.op, options), tensors_of(arguments),
                                 {handed.begin(), handed.begin() + kNumGrads},
                                 [&] { return call_backward(handed, arguments, options); });
    }

    // The loss as a node of a graph. Between forward and backward it keeps only the arguments, the kept results and, if
    // it was computed ahead, the gradient. `results` receives all results; the return value holds the differentiable
    // ones.
    class Function : public torch::autograd::Function<Function> {
    public:
        static variable_list forward(torch::autograd::AutogradContext* ctx, const Tensor& input, const Tensor& target,
                                     const OptionalTensor& weight, const OptionalTensor& voxel_weight,
                                     const OptionalTensor& label_table, const std::pair<std::string, Options>& call,
                                     Results* results) {
            Arguments arguments{call.first, input, target, weight, voxel_weight, label_table};
            auto options = call.second;
            take_full_size(arguments, options.dim, options.upsample);
            const at::AutoDispatchBelowADInplaceOrView below_autograd;
            if constexpr (kHasGradientAhead) {
                options.with_gradient = Loss::computes_gradient_ahead(arguments, options);
                *results = call_forward(arguments, options);
                const auto gradient = select(*results, Role::ahead)[0];
                if (options.with_gradient && gradient.numel() > 0) { // else the device's kernels compute none
                    ctx->saved_data["gradient"] = gradient;
                }
            } else {
                *results = call_forward(arguments, options);
            }
            ctx->save_for_backward(saved(arguments, *results));
            ctx->set_materialize_grads(false);
            ctx->saved_data["call"] = pack(options).with_name(arguments.op);
            return select(*results, Role::differentiable);
        }

        static variable_list backward(torch::autograd::AutogradContext* ctx, const variable_list& grads) {
            const auto saved = ctx->get_saved_variables();
            const auto [op, packed] = Packed::of(ctx->saved_data["call"]);
            const auto options = unpack<Options>(op, packed.dim, packed.options, packed.factors);
            variable_list by_argument(kNumForwardArguments);
            if (std::none_of(grads.begin(), grads.end(), [](const Tensor& grad) { return grad.defined(); })) {
                return by_argument;
            }
            if (saved[1].requires_grad() || saved[2].requires_grad()) {
                const auto gradients =
                    composite_gradients(composite_of(op, options), {saved.begin(), saved.begin() + kNumTensors}, grads);
                std::copy(gradients.begin(), gradients.end(), by_argument.begin());
                return by_argument;
            }
            by_argument[0] = gradient_ahead(ctx, grads, saved, op, options);
            if (!by_argument[0].defined()) {
                by_argument[0] = gradient_of(grads, saved, op, options);
            }
            return by_argument;
        }

    private:
        // The gradient that forward computed, for these gradients of the results; undefined if there is none.
        static Tensor gradient_ahead(torch::autograd::AutogradContext* ctx, const variable_list& grads,
                                     const variable_list& saved, const std::string& op, const Options& options) {
            if constexpr (kHasGradientAhead) {
                const auto gradient = take_gradient(ctx, grads[0]);
                if (gradient.defined()) {
                    const at::AutoDispatchBelowADInplaceOrView below_autograd;
                    const auto arguments = arguments_of(op, saved, options);
                    call_rescale(gradient, handed_of(grads, saved, arguments, options), arguments, options);
                }
                return gradient;
            } else {
                return {};
            }
        }

        static constexpr size_t kNumForwardArguments = kNumTensors + 2;
    };

    // The public operator: calls the composite, name_forward or the Function, depending on the gradients needed.
    static Results of_caller(Arguments& arguments, Options& options) {
        check_logits(arguments.op, arguments.input);
        options.dim = class_dim(arguments.op, arguments.input, options.dim);
        if (options.upsample != 0) {
            check_label_tensor(arguments.op, arguments.target);
            take_full_size(arguments, options.dim, options.upsample);
        }
        const auto kind = Loss::check(arguments, options);
        Loss::set_dtype(options, arguments, kind);
        if (kind == Target::one_hot) {
            arguments.target = one_hot_labels(arguments.op, arguments.target, options.dim);
        }
        if (is_compiled_from_composite(arguments.input) || (!Loss::by_target && requires_grad_of_target(arguments))) {
            return composite(arguments, options);
        }
        if (!takes_function(arguments)) {
            return call_forward(arguments, options);
        }
        Results results;
        const auto& [op, input, target, weight, voxel_weight, label_table, coarse] = arguments;
        const auto differentiable = Function::apply(arguments.logits(), target, weight, voxel_weight, label_table,
                                                    std::pair(op, options), &results);
        for (size_t k = 0, next = 0; k < kNumResults; ++k) {
            results[k] = Loss::results[k].role == Role::differentiable ? differentiable[next++] : results[k];
        }
        return results;
    }

    // ---- shapes and dtypes only -------------------------------------------------------------------------------------

    static Tensor backward_meta(const Handed& /*handed*/, const Arguments& arguments, const Options& options) {
        read(arguments, options);
        return at::empty_like(arguments.logits());
    }

    static void rescale_meta(const Tensor& /*gradient*/, const Handed& /*handed*/, const Arguments& /*arguments*/,
                             const Options& /*options*/, const Reading& /*reading*/) {}

    // ---- CPU --------------------------------------------------------------------------------------------------------

    static void scale_or_rewrite_cpu(const Tensor& gradient, const Handed& handed, const Arguments& arguments,
                                     const Options& options, const Reading& reading) {
        if (!scale_gradient(gradient, handed[0])) {
            Loss::rewrite_gradient_cpu(gradient, handed, arguments, options, reading);
        }
    }

    static void rescale_cpu(const Tensor& gradient, const Handed& handed, const Arguments& arguments,
                            const Options& options) {
        checked_rescale<&scale_or_rewrite_cpu>(gradient, handed, arguments, options);
    }

public:
    // ---- devices without a kernel: the composite, slab by slab ------------------------------------------------------

    static Results forward_slabs(const Arguments& arguments, Options options, const Reading& reading) {
        Loss::check_values(arguments, options, reading);
        const at::NoGradGuard no_graph;
        if constexpr (kHasGradientAhead) {
            options.with_gradient = false;
        }
        if constexpr (!Loss::is_by_slab) {
            return Loss::composite(arguments, options, reading);
        }
        auto results = Loss::shapes(arguments, options, reading);
        for (auto& result : results) { // 0-dim results are sums, in the widest dtype
            const auto dtype = result.dim() == 0 ? widest_dtype(result) : result.scalar_type();
            result = at::zeros_like(result, result.options().dtype(dtype));
        }
        const Slabs slabs(arguments.input, options.dim);
        for (int64_t slab = 0; slab < slabs.count(); ++slab) {
            const auto of_slab = slabs.of(arguments, slab);
            const auto part = Loss::part_of_slab(of_slab, options, reading_of_slab(reading, of_slab));
            for (size_t k = 0; k < kNumResults; ++k) {
                if (Loss::results[k].role != Role::ahead) {
                    const auto sum = Loss::of_slab(results[k], slabs, slab);
                    sum.add_(part[k].reshape(sum.sizes()));
                }
            }
        }
        return Loss::finish(results, options);
    }

    static Tensor backward_slabs(const Handed& handed, const Arguments& arguments, const Options& options,
                                 const Reading& reading) {
        Loss::check_values(arguments, options, reading);
        const auto grads = Loss::grads_of_parts(handed, options);
        const auto gradient = arguments.coarse ? at::zeros_like(arguments.logits(), reading.compute_dtype())
                                               : at::empty_like(arguments.input);
        const Slabs slabs(arguments.input, options.dim, Loss::is_by_slab);
        for (int64_t slab = 0; slab < slabs.count(); ++slab) {
            auto part = slabs.of(arguments, slab);
            const auto of_logits = [&](const Tensor& logits) {
                part.set_logits(logits);
                return select(Loss::part_of_slab(part, options, reading_of_slab(reading, part)), Role::differentiable);
            };
            variable_list grads_of_slab;
            for (const auto& grad : grads) {
                grads_of_slab.push_back(Loss::of_slab(grad, slabs, slab));
            }
            const auto logits = part.logits();
            const auto of_slab = slab_gradient(of_logits, logits, grads_of_slab);
            arguments.coarse ? gradient.add_(of_slab) : slabs.of(gradient, slab).copy_(of_slab);
        }
        return gradient.to(arguments.logits().scalar_type());
    }

private:
    // ---- registration -----------------------------------------------------------------------------------------------

    static std::string schema_of_results(bool is_public) {
        if (kNumPublic == 1 && (is_public || kNumResults == 1)) {
            return "Tensor";
        }
        std::string text;
        for (size_t k = 0; k < (is_public ? kNumPublic : kNumResults); ++k) {
            text += std::string(text.empty() ? "(" : ", ") + "Tensor " + Loss::results[k].name;
        }
        return text + ")";
    }

    static std::string schema_of_handed() {
        std::string grads, kept;
        for (const auto& result : Loss::results) {
            grads += result.role == Role::differentiable ? std::string("Tensor grad_") + result.name + ", " : "";
            kept += result.role == Role::kept ? std::string("Tensor ") + result.name + ", " : "";
        }
        return grads + kept;
    }

    static void define(torch::Library& m) {
        const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
        const auto arguments = std::string("Tensor input, Tensor target, Tensor? ") + Loss::third;
        const std::string beneath =
            "str op, " + arguments +
            ", Tensor? voxel_weight, Tensor? label_table, int dim, int[] options, float[] factors) -> ";
        m.def((name("(") + arguments + "=None, Tensor? voxel_weight=None, Tensor? label_table=None, int dim=1" +
               schema_of_keywords<Options>() + ", str op=\"" + Loss::name + "\") -> " + schema_of_results(true))
                  .c_str(),
              tags);
        m.def((name("_forward(") + beneath + schema_of_results(false)).c_str(), tags);
        m.def((name("_backward(") + schema_of_handed() + beneath + "Tensor").c_str(), tags);
        if constexpr (kHasGradientAhead) {
            m.def((name("_rescale(") + "Tensor(a!) gradient, " + schema_of_handed() + beneath + "()").c_str(), tags);
        }
    }

public:
    // Registers all three operators for as long as it lives.
    class Registration {
    public:
        Registration() {
            using c10::DispatchKey;
            define(*libraries_.emplace_back(library(torch::Library::FRAGMENT, std::nullopt)));
            // Under vmap, too, the public operator is decomposed, not run in a loop over samples.
            for (const auto key :
                 {DispatchKey::CompositeImplicitAutograd, DispatchKey::FuncTorchBatchedDecomposition}) {
                of(key).impl(Loss::name, TORCH_FN(Public<>::call));
            }
            auto& autograd = of(DispatchKey::Autograd);
            autograd.impl(name("_forward").c_str(), TORCH_FN(Forward<&forward_autograd>::call));
            autograd.impl(name("_backward").c_str(), TORCH_FN(Backward<&backward_autograd>::call));
            auto& meta = of(DispatchKey::Meta);
            meta.impl(name("_forward").c_str(), TORCH_FN(Forward<&checked_forward<&Loss::shapes>>::call));
            meta.impl(name("_backward").c_str(), TORCH_FN(Backward<&backward_meta>::call));
            implement<&Loss::forward_cpu, &Loss::backward_cpu>(of(DispatchKey::CPU));
            if constexpr (kHasGradientAhead) { // other devices compute none without kernels of their own
                of(DispatchKey::CPU).impl(name("_rescale").c_str(), TORCH_FN(Rescale<&rescale_cpu>::call));
                meta.impl(name("_rescale").c_str(), TORCH_FN(Rescale<&checked_rescale<&rescale_meta>>::call));
            }
            implement<&forward_slabs, &backward_slabs>(of(DispatchKey::CompositeExplicitAutograd));
        }

    private:
        static std::unique_ptr<torch::Library> library(torch::Library::Kind kind, std::optional<c10::DispatchKey> key) {
            return std::make_unique<torch::Library>(kind, "segloss", key, __FILE__, __LINE__);
        }
        torch::Library& of(c10::DispatchKey key) {
            return *libraries_.emplace_back(library(torch::Library::IMPL, key));
        }

        std::vector<std::unique_ptr<torch::Library>> libraries_;
    };
};

} // namespace segloss
