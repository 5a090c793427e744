// Soft statistics of components: as in soft_stats.cpp, with sums for each number of a map. The kernels are the same.

#include "component_stats.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "memory.h"
#include "samples.h"

namespace segloss {
namespace {

// The arguments of soft statistics.
Arguments without_components(Arguments arguments) {
    arguments.weight = std::nullopt;
    return arguments;
}

Tensor components_of(const Arguments& arguments) { return arguments.weight.value_or(Tensor()); }

c10::SymDimVector sizes_of_sums(const Arguments& arguments, const ComponentStats::Options& options, bool by_class) {
    const auto& input = arguments.input;
    c10::SymDimVector sizes{num_samples(input, options.dim), options.num_components};
    if (by_class) {
        sizes.push_back(input.sym_size(options.dim));
    }
    return sizes;
}

// Raises if a component is outside [0, R).
void check_components(const Arguments& arguments, const ComponentStats::Options& options) {
    const auto components = components_of(arguments).to(at::kLong);
    const auto outside = is_outside(components, options.num_components);
    TORCH_CHECK_INDEX(!outside.any().item<bool>(), arguments.op, ": expected components in [0, ",
                      options.num_components, "), got ", first_value(components, outside), " ",
                      first_place("components", outside));
}

[[noreturn]] void raise_refused_component(const Arguments& arguments, const ComponentStats::Options& options,
                                          const Reading& reading) {
    check_components(arguments, options);
    raise_refused(without_components(arguments), reading);
}

} // namespace

// ---- checks ---------------------------------------------------------------------------------------------------------

Target ComponentStats::check(const Arguments& arguments, const Options& options) {
    const auto& [op, input, target, components, voxel_weight, label_table, coarse] = arguments;
    const auto kind = SoftStats::check(without_components(arguments), options.of_stats());
    TORCH_CHECK_TYPE(components, op, ": expected components, a map of the labels' shape, got None");
    check_dense(op, *components, "components");
    check_same_device(op, input, *components, "components");
    TORCH_CHECK_TYPE(is_integer(*components), op, ": expected components of an integer dtype, got ",
                     components->scalar_type());
    TORCH_CHECK(has_label_shape(input, *components, options.dim), op,
                ": expected components of the labels' shape for input ", input.sym_sizes(), ", got ",
                components->sym_sizes());
    TORCH_CHECK_VALUE(options.num_components >= 1 && options.num_components <= INT32_MAX, op,
                      ": expected num_components in [1, ", INT32_MAX, "], got ", options.num_components);
    return kind;
}

Reading ComponentStats::read(const Arguments& arguments, const Options& options, Target kind) {
    return SoftStats::read(arguments, options.of_stats(), kind);
}

void ComponentStats::check_handed(const Handed& handed, const Arguments& arguments, const Options& options) {
    const auto& input = arguments.input;
    const auto op = arguments.op + " backward";
    for (size_t k = 0; k < handed.size(); ++k) {
        check_dense(op, handed[k], "gradient");
        check_same_device(op, input, handed[k], "gradient");
        TORCH_CHECK_TYPE(handed[k].is_floating_point(), op, ": expected a floating gradient, got ",
                         handed[k].scalar_type());
        const auto sizes = sizes_of_sums(arguments, options, /*by_class=*/k < 2);
        const c10::SymIntArrayRef expected(sizes);
        TORCH_CHECK(handed[k].sym_sizes() == expected, op, ": expected a gradient ", expected, " for input ",
                    input.sym_sizes(), ", got ", handed[k].sym_sizes());
    }
}

void ComponentStats::check_values(const Arguments& arguments, const Options& options, const Reading& reading) {
    check_components(arguments, options);
    segloss::check_values(without_components(arguments), reading);
}

void ComponentStats::fill_in(variable_list& grads, const Arguments& arguments, const Options& options) {
    for (size_t k = 0; k < grads.size(); ++k) {
        if (!grads[k].defined()) {
            grads[k] = arguments.logits().new_zeros_symint(sizes_of_sums(arguments, options, /*by_class=*/k < 2),
                                                           widest_dtype(arguments.input));
        }
    }
}

// ---- CPU ------------------------------------------------------------------------------------------------------------

namespace {

segloss_tensor& view_of_keys(segloss_soft_stats& args) { return args.keys; }

// The sums of each chunk of a sample, which are added in order. There are fewer chunks if each has many sums.
class KeyedSums {
public:
    KeyedSums(const Samples& samples, int64_t num_components, int64_t num_classes)
        : num_statistics_(num_components * num_classes), num_sums_(num_components),
          chunks_(Chunks::of_samples(samples.count(), samples.num_positions(), most_chunks(samples.count()))),
          statistics_(std::make_unique<double[]>(chunks_.count() * SEGLOSS_STATISTICS * num_statistics_)),
          sums_(chunks_.count() * num_sums_) {}

    const Chunks& chunks() const { return chunks_; }

    std::array<double*, SEGLOSS_STATISTICS> of_chunk(int64_t chunk) {
        auto* const first = statistics_.get() + chunk * SEGLOSS_STATISTICS * num_statistics_;
        return {first, first + num_statistics_, first + 2 * num_statistics_};
    }

    segloss_sums* sums_of_chunk(int64_t chunk) { return sums_.data() + chunk * num_sums_; }

    void add_to(const ComponentStats::Results& results) {
        for (const auto& result : results) {
            result.zero_();
        }
        for (int64_t chunk = 0; chunk < chunks_.count(); ++chunk) {
            const auto sample = chunk / chunks_.per_sample();
            const auto statistics = of_chunk(chunk);
            for (size_t k = 0; k < statistics.size(); ++k) {
                auto* const sums = results[k].data_ptr<double>() + sample * num_statistics_;
                std::transform(sums, sums + num_statistics_, statistics[k], sums, std::plus<>());
            }
            auto* const losses = results[3].data_ptr<double>() + sample * num_sums_;
            auto* const voxels = results[4].data_ptr<double>() + sample * num_sums_;
            for (int64_t key = 0; key < num_sums_; ++key) {
                losses[key] += sums_of_chunk(chunk)[key].loss;
                voxels[key] += sums_of_chunk(chunk)[key].weight;
            }
        }
    }

private:
    static constexpr int64_t kMostSums = int64_t{1} << 22; // 32 MiB

    int64_t most_chunks(int64_t num_samples) const {
        const auto of_chunks = num_samples * (SEGLOSS_STATISTICS * num_statistics_ + 2 * num_sums_);
        return std::max<int64_t>(kMostSums / std::max<int64_t>(of_chunks, 1), 1);
    }

    int64_t num_statistics_; // R C
    int64_t num_sums_;       // R
    Chunks chunks_;
    std::unique_ptr<double[]> statistics_; // [chunk][statistic][R][C]
    std::vector<segloss_sums> sums_;       // [chunk][R]
};

} // namespace

ComponentStats::Results ComponentStats::forward_cpu(const Arguments& arguments, const Options& options,
                                                    const Reading& reading) {
    const auto of_stats = without_components(arguments);
    const VoxelArguments voxels(of_stats, reading, options.of_stats().of_voxels());
    const Samples samples(voxels, options.of_stats(), {{components_of(arguments), view_of_keys}}, /*may_merge=*/false);
    KeyedSums sums(samples, options.num_components, voxels.args.num_classes);
    const auto kernel = kernels().soft_stats_forward[real_of(reading.dtype)];
    const auto& chunks = sums.chunks();
    const bool accepted = chunks.run([&](int64_t chunk, int64_t begin, int64_t end) {
        auto sample = samples.arguments(chunk / chunks.per_sample());
        sample.num_keys = options.num_components;
        return kernel(&sample, begin, end, sums.of_chunk(chunk).data(), sums.sums_of_chunk(chunk));
    });
    if (!accepted) {
        raise_refused_component(arguments, options, reading);
    }
    const auto results = shapes(arguments, options, reading);
    sums.add_to(results);
    return results;
}

Tensor ComponentStats::backward_cpu(const Handed& handed, const Arguments& arguments, const Options& options,
                                    const Reading& reading) {
    const auto of_stats = without_components(arguments);
    VoxelArguments voxels(of_stats, reading, options.of_stats().of_voxels());
    const auto gradient = empty_gradient(of_stats, reading);
    voxels.args.stream_grad = exceeds_caches(gradient);
    const auto one = options.voxel_loss ? number(1, reading.compute_dtype()) : Tensor();
    const Samples samples(voxels, options.of_stats(),
                          {{components_of(arguments), view_of_keys},
                           {one, Samples::at<&segloss_cross_entropy::grad_loss>},
                           {gradient, Samples::at<&segloss_cross_entropy::grad_logits>}},
                          /*may_merge=*/false);
    std::array<Tensor, 3> grads;
    std::transform(handed.begin(), handed.end(), grads.begin(),
                   [&](const Tensor& grad) { return grad.to(reading.compute_dtype()).contiguous(); });
    const auto of_sample = [](const Tensor& grad, int64_t sample) {
        return static_cast<const char*>(grad.const_data_ptr()) + sample * grad.stride(0) * grad.element_size();
    };
    const auto chunks = Chunks::of_samples(samples.count(), samples.num_positions());
    const auto kernel = kernels().soft_stats_backward[real_of(reading.dtype)];
    const bool accepted = chunks.run([&](int64_t chunk, int64_t begin, int64_t end) {
        const auto n = chunk / chunks.per_sample();
        auto sample = samples.arguments(n);
        sample.num_keys = options.num_components;
        sample.grad_intersection = of_sample(grads[0], n);
        sample.grad_prediction = of_sample(grads[1], n);
        sample.grad_loss = of_sample(grads[2], n);
        return kernel(&sample, begin, end);
    });
    if (!accepted) {
        raise_refused_component(arguments, options, reading);
    }
    return gradient;
}

// ---- shapes and dtypes only -----------------------------------------------------------------------------------------

ComponentStats::Results ComponentStats::shapes(const Arguments& arguments, const Options& options,
                                               const Reading& /*reading*/) {
    const auto empty = [&](bool by_class) {
        const auto& input = arguments.input;
        return at::empty_symint(sizes_of_sums(arguments, options, by_class),
                                input.options().dtype(widest_dtype(input)));
    };
    return {empty(true), empty(true), empty(true), empty(false), empty(false)};
}

// ---- composite: the same results in differentiable ATen operators ---------------------------------------------------

ComponentStats::Results ComponentStats::composite(const Arguments& arguments, const Options& options,
                                                  const Reading& reading) {
    const auto of_stats = without_components(arguments);
    const auto& input = arguments.input;
    const auto dim = options.dim;
    const auto voxels = read_voxels(of_stats, reading);
    const auto samples = num_samples(input, dim), classes = input.sym_size(dim);
    auto g = voxels.kind == Target::sets ? group_masks(of_stats, reading) : voxels.target;
    if (voxels.kind == Target::labels) {
        c10::SymDimVector along(input.dim(), 1);
        along[dim] = classes;
        g = g.eq(at::arange(classes, g.options()).view_symint(along)).to(voxels.input.scalar_type());
    }
    const auto p = options.activation == SEGLOSS_SOFTMAX   ? voxels.input.softmax(dim)
                   : options.activation == SEGLOSS_SIGMOID ? voxels.input.sigmoid()
                                                           : voxels.input;
    const auto given = components_of(arguments);
    const auto components = (given.dim() == input.dim() && is_batched(input) ? given.squeeze(dim) : given)
                                .reshape_symint({samples, -1, 1})
                                .to(at::kLong);
    // Adds the values of voxels, which have a class dimension, to their components: [N, R, C].
    const auto sum = [&](const Tensor& values) {
        const auto by_sample = is_batched(values) ? values.movedim({batch_dim(dim), dim}, {0, 1}) : values.unsqueeze(0);
        const auto by_voxel = by_sample.unsqueeze(-1).flatten(2).transpose(1, 2).to(widest_dtype(input));
        const auto zeros =
            at::zeros_symint({samples, options.num_components, by_voxel.sym_size(2)}, by_voxel.options());
        return zeros.scatter_add(1, components.expand_as(by_voxel), by_voxel);
    };
    const auto weighted = [&](const Tensor& values) { return sum(weighted_values(voxels, values)); };
    const auto of_voxels = sum(counted_weight(voxels, dim)).squeeze(2);
    auto loss = at::zeros_like(of_voxels);
    if (options.voxel_loss && options.activation == SEGLOSS_SOFTMAX) {
        loss = weighted(cross_entropy_losses(voxels, std::nullopt, dim, {}).losses).sum(2);
    } else if (options.voxel_loss) {
        loss = weighted(binary_losses(voxels, std::nullopt, dim, {})).sum(2);
    }
    return {weighted(p * g), weighted(p), weighted(g), loss, of_voxels};
}

namespace {

const Operator<ComponentStats>::Registration
    component_stats; // NOLINT(bugprone-throwing-static-initialization): as torch's

} // namespace
} // namespace segloss
