// Soft statistics: the sums per sample and class that region losses (Dice family) need, and, for compound losses, the
// sums of voxel losses. The kernels compute both while they read the logits once.

#include "soft_stats.h"

#include <algorithm>
#include <array>
#include <vector>

#include "memory.h"
#include "samples.h"

namespace segloss {

// ---- checks ---------------------------------------------------------------------------------------------------------

Target SoftStats::check(const Arguments& arguments, const Options& options) {
    const auto& [op, input, target, weight, voxel_weight, label_table, coarse] = arguments;
    const auto given =
        classify_target(op, input, target, options.dim, /*takes_masks=*/!options.is_softmax() && !label_table);
    const auto kind_of = options.is_softmax() ? kind_of_sets : kind_of_regions;
    const auto kind = kind_of(op, target, label_table, given);
    if (options.is_softmax()) {
        check_softmax(op, input, options.dim);
    }
    const bool has_two_rows = options.activation == SEGLOSS_SIGMOID && weight && weight->dim() == 2 &&
                              weight->sym_size(0) == 2; // of the terms for targets 0 and 1
    check_weight(op, input, has_two_rows ? OptionalTensor(weight->select(0, 0)) : weight, options.dim, kind);
    check_voxel_weight(op, input, voxel_weight, options.dim);
    check_label_smoothing(op, options.label_smoothing);
    check_gamma(op, options.gamma);
    if (options.gamma != 0 && options.is_softmax()) {
        check_labels_only(op, input, options.dim, kind);
    }
    check_ignore_index(op, kind, options.ignore_index);
    check_label_table(op, target, label_table, kind);
    TORCH_CHECK_VALUE(
        !options.voxel_loss || options.activation != SEGLOSS_IDENTITY, op,
        ": expected activation 'softmax' or 'sigmoid' with a loss of each voxel, which needs logits, got 'none'");
    return kind;
}

Reading SoftStats::read(const Arguments& arguments, const Options& options, Target kind) {
    const auto dtype = arguments.input.scalar_type();
    return {kind,
            options.dim,
            {options.ignore_index, arguments.label_table},
            dtype,
            ranges_of(arguments, kind, compute_dtype(dtype), options.any_finite_target,
                      options.activation == SEGLOSS_IDENTITY)};
}

// The gradients must have the shapes [N, C], [N, C] and [N].
void SoftStats::check_handed(const Handed& handed, const Arguments& arguments, const Options& options) {
    const auto& input = arguments.input;
    const auto op = arguments.op + " backward";
    for (const auto& grad : handed) {
        check_dense(op, grad, "gradient");
        check_same_device(op, input, grad, "gradient");
        TORCH_CHECK_TYPE(grad.is_floating_point(), op, ": expected a floating gradient, got ", grad.scalar_type());
    }
    const auto& [grad_intersection, grad_prediction, grad_loss] = handed;
    const auto samples = num_samples(input, options.dim);
    const auto classes = input.sym_size(options.dim);
    for (const auto& grad : {grad_intersection, grad_prediction}) {
        TORCH_CHECK(grad.dim() == 2 && grad.sym_size(0) == samples && grad.sym_size(1) == classes, op,
                    ": expected a gradient [", samples, ", ", classes, "] for input ", input.sym_sizes(), ", got ",
                    grad.sym_sizes());
    }
    TORCH_CHECK(grad_loss.dim() == 1 && grad_loss.sym_size(0) == samples, op, ": expected a gradient [", samples,
                "] of the loss for input ", input.sym_sizes(), ", got ", grad_loss.sym_sizes());
}

void SoftStats::fill_in(variable_list& grads, const Arguments& arguments, const Options& options) {
    const auto& input = arguments.input;
    const auto samples = num_samples(input, options.dim);
    const c10::SymDimVector of_classes{samples, input.sym_size(options.dim)};
    for (size_t k = 0; k < grads.size(); ++k) {
        if (!grads[k].defined()) { // a DTensor if the logits are one
            grads[k] = arguments.logits().new_zeros_symint(k < 2 ? of_classes : c10::SymDimVector{samples},
                                                           widest_dtype(input));
        }
    }
}

// ---- CPU ------------------------------------------------------------------------------------------------------------

segloss_soft_stats kernel_arguments(const VoxelArguments& voxels, const SoftStats::Options& options) {
    segloss_soft_stats args{};
    args.voxels = voxels.args;
    args.activation = options.activation;
    args.soft_label = options.sums_minima(voxels.reading.kind);
    args.squared = options.squared;
    args.with_loss = options.voxel_loss;
    return args;
}

namespace {

// Where a kernel writes the statistics and sums of a chunk: statistics to the results if it has whole samples, else to
// parts that are added in order. Small samples have as many statistics as logits, so their memory counts.
class Statistics {
public:
    // With `at_once` each chunk has sums of all samples.
    Statistics(const SoftStats::Results& results, int64_t num_chunks, int64_t per_sample, bool at_once = false)
        : results_(results), per_sample_(per_sample), num_classes_(results[0].size(1)), at_once_(at_once),
          num_parts_(at_once_ || per_sample_ == 1 ? 0 : num_chunks),
          parts_(num_parts_ * SEGLOSS_STATISTICS * num_classes_), sums_(at_once ? results[0].size(0) : num_chunks) {
        for (const auto& result : results_) {
            result.zero_();
        }
    }

    std::array<double*, SEGLOSS_STATISTICS> of_chunk(int64_t chunk) {
        std::array<double*, SEGLOSS_STATISTICS> of_chunk{};
        for (int64_t k = 0; k < SEGLOSS_STATISTICS; ++k) {
            of_chunk[k] = num_parts_ > 0 ? parts_.data() + (chunk * SEGLOSS_STATISTICS + k) * num_classes_
                                         : results_[k].data_ptr<double>() + (at_once_ ? 0 : chunk * num_classes_);
        }
        return of_chunk;
    }

    segloss_sums* sums_of_chunk(int64_t chunk) { return sums_.data() + (at_once_ ? 0 : chunk); }

    // Adds those of a piece of a chunk; its statistics are [statistic][class].
    void add(int64_t chunk, const std::vector<double>& of_piece, const segloss_sums& sums_of_piece) {
        const double* next = of_piece.data();
        for (double* sums : of_chunk(chunk)) {
            for (int64_t c = 0; c < num_classes_; ++c) {
                sums[c] += *next++;
            }
        }
        sums_[chunk].loss += sums_of_piece.loss;
        sums_[chunk].weight += sums_of_piece.weight;
    }

    SoftStats::Results finished() const {
        const double* next = parts_.data();
        for (int64_t part = 0; part < num_parts_; ++part) {
            for (int64_t k = 0; k < SEGLOSS_STATISTICS; ++k) {
                auto* const sums = results_[k].data_ptr<double>() + part / per_sample_ * num_classes_;
                for (int64_t c = 0; c < num_classes_; ++c) {
                    sums[c] += *next++;
                }
            }
        }
        for (size_t k = 0; k < sums_.size(); ++k) {
            const auto n = at_once_ ? k : k / per_sample_;
            results_[3].data_ptr<double>()[n] += sums_[k].loss;
            results_[4].data_ptr<double>()[n] += sums_[k].weight;
        }
        return results_;
    }

private:
    SoftStats::Results results_;
    int64_t per_sample_; // chunks
    int64_t num_classes_;
    bool at_once_;
    int64_t num_parts_;
    std::vector<double> parts_;
    std::vector<segloss_sums> sums_;
};

// A number for each sample, [N], as one for each voxel.
Tensor for_each_voxel(const Tensor& of_samples, const VoxelArguments& voxels) {
    at::DimVector sizes(voxels.sizes.size(), 1);
    if (!sizes.empty()) {
        sizes[0] = of_samples.size(0);
    }
    return of_samples.view(sizes).expand(voxels.sizes);
}

// The gradients with respect to the statistics, for the kernels.
class ClassGradients {
public:
    ClassGradients(const SoftStats::Handed& handed, at::ScalarType dtype)
        : by_intersection_(handed[0].to(dtype).contiguous()), by_prediction_(handed[1].to(dtype).contiguous()) {}

    void set(segloss_soft_stats& args, int64_t sample) const {
        args.grad_intersection = row(by_intersection_, sample);
        args.grad_prediction = row(by_prediction_, sample);
    }

private:
    static const void* row(const Tensor& grad, int64_t sample) {
        const auto bytes = grad.size(1) * grad.element_size();
        return static_cast<const char*>(grad.const_data_ptr()) + sample * bytes;
    }

    Tensor by_intersection_, by_prediction_;
};

// Chunks of a walk over resized logits for each of `num_samples`.
int64_t chunks_of_sample(const ResizedWalk& walk, int64_t num_samples) {
    return walk.num_chunks() / std::max<int64_t>(num_samples, 1);
}

SoftStats::Results forward_resized(const VoxelArguments& voxels, const ResizedWalk& walk,
                                   const SoftStats::Options& options, const SoftStats::Results& results) {
    Statistics statistics(results, walk.num_chunks(), chunks_of_sample(walk, results[0].size(0)));
    const auto kernel = kernels().soft_stats_forward[real_of(voxels.reading.dtype)];
    const auto classes = voxels.args.num_classes;
    const bool accepted = walk.run([&](int64_t chunk, const Piece& piece) {
        auto args = kernel_arguments(voxels, options);
        args.voxels = voxels.of_piece(piece);
        std::vector<double> of_piece(SEGLOSS_STATISTICS * classes);
        const std::array<double*, SEGLOSS_STATISTICS> stats{of_piece.data(), of_piece.data() + classes,
                                                            of_piece.data() + 2 * classes};
        segloss_sums sums{};
        const auto refused = kernel(&args, 0, piece.count, stats.data(), &sums);
        statistics.add(chunk, of_piece, sums);
        return refused;
    });
    if (!accepted) {
        raise_refused(voxels.arguments, voxels.reading);
    }
    return statistics.finished();
}

void backward_resized(const VoxelArguments& voxels, const ResizedWalk& walk, const SoftStats::Options& options,
                      const SoftStats::Handed& handed) {
    const ClassGradients grads(handed, voxels.reading.compute_dtype());
    const auto per_sample = chunks_of_sample(walk, handed[0].size(0));
    const auto kernel = kernels().soft_stats_backward[real_of(voxels.reading.dtype)];
    const bool accepted = walk.run([&](int64_t chunk, const Piece& piece) {
        auto args = kernel_arguments(voxels, options);
        args.voxels = voxels.of_piece(piece);
        grads.set(args, chunk / per_sample);
        return kernel(&args, 0, piece.count);
    });
    if (!accepted) {
        raise_refused(voxels.arguments, voxels.reading);
    }
}

} // namespace

SoftStats::Results SoftStats::forward_cpu(const Arguments& arguments, const Options& options, const Reading& reading) {
    VoxelArguments voxels(arguments, reading, options.of_voxels());
    const auto results = shapes(arguments, options, reading);
    if (arguments.coarse) {
        voxels.describe_with({});
    }
    if (voxels.walk) {
        return forward_resized(voxels, *voxels.walk, options, results);
    }
    const Samples samples(voxels, options, {});
    const auto chunks = samples.chunks();
    Statistics statistics(results, chunks.count(), chunks.per_sample(), samples.at_once());
    const auto kernel = kernels().soft_stats_forward[real_of(reading.dtype)];
    const bool accepted = chunks.run([&](int64_t chunk, int64_t begin, int64_t end) {
        const auto sample = samples.arguments(chunk / chunks.per_sample());
        return kernel(&sample, begin, end, statistics.of_chunk(chunk).data(), statistics.sums_of_chunk(chunk));
    });
    if (!accepted) {
        raise_refused(arguments, reading);
    }
    return statistics.finished();
}

Tensor SoftStats::backward_cpu(const Handed& handed, const Arguments& arguments, const Options& options,
                               const Reading& reading) {
    VoxelArguments voxels(arguments, reading, options.of_voxels());
    const auto gradient = empty_gradient(arguments, reading);
    const auto grad_loss = options.voxel_loss ? for_each_voxel(handed[2], voxels) : Tensor();
    if (arguments.coarse) {
        voxels.describe_with({{&grad_loss, &voxels.args.grad_loss}}, gradient);
    }
    if (voxels.walk) {
        backward_resized(voxels, *voxels.walk, options, handed);
        return finished_gradient(gradient, arguments);
    }
    const ClassGradients grads(handed, reading.compute_dtype());
    voxels.args.stream_grad = exceeds_caches(gradient);
    const Samples samples(voxels, options,
                          {{grad_loss, Samples::at<&segloss_cross_entropy::grad_loss>},
                           {gradient, Samples::at<&segloss_cross_entropy::grad_logits>}});
    const auto chunks = samples.chunks();
    const auto kernel = kernels().soft_stats_backward[real_of(reading.dtype)];
    const bool accepted = chunks.run([&](int64_t chunk, int64_t begin, int64_t end) {
        const auto n = chunk / chunks.per_sample();
        auto sample = samples.arguments(n);
        grads.set(sample, n);
        return kernel(&sample, begin, end);
    });
    if (!accepted) {
        raise_refused(arguments, reading);
    }
    return gradient;
}

// ---- shapes and dtypes only -----------------------------------------------------------------------------------------

SoftStats::Results SoftStats::shapes(const Arguments& arguments, const Options& options, const Reading& /*reading*/) {
    const auto& input = arguments.input;
    const auto tensor_options = input.options().dtype(widest_dtype(input));
    const auto samples = num_samples(input, options.dim);
    const auto by_class = [&] { return at::empty_symint({samples, input.sym_size(options.dim)}, tensor_options); };
    const auto by_sample = [&] { return at::empty_symint({samples}, tensor_options); };
    return {by_class(), by_class(), by_class(), by_sample(), by_sample()};
}

// ---- composite: the same results in differentiable ATen operators ---------------------------------------------------

namespace {

// Sums over all positions of each sample: [N, C].
Tensor sum_of_samples(const Tensor& values, int64_t dim) {
    if (!is_batched(values)) {
        return values.unsqueeze(0);
    }
    return values.movedim({batch_dim(dim), dim}, {0, 1}).unsqueeze(-1).flatten(2).sum(2);
}

// Adds the value of each voxel to the class of its label: [N, C].
Tensor sum_by_label(const Tensor& values, const Tensor& labels, const c10::SymInt& num_classes, int64_t dim) {
    const auto by_sample = [&](const Tensor& voxels) {
        return is_batched(voxels) ? voxels.movedim(batch_dim(dim), 0).flatten(1) : voxels.unsqueeze(0);
    };
    const auto wide = widest_dtype(values); // they are added one by one: a float32 sum would stop growing
    const auto zeros = at::zeros_symint({num_samples(labels, dim), num_classes}, values.options().dtype(wide));
    return zeros.scatter_add(1, by_sample(labels), by_sample(values).to(wide)).to(values.scalar_type());
}

} // namespace

SoftStats::Results SoftStats::composite(const Arguments& arguments, const Options& options, const Reading& reading) {
    const auto dim = options.dim;
    const auto num_classes = arguments.input.sym_size(dim);
    const auto voxels = read_voxels(arguments, reading);
    const auto g = voxels.kind == Target::sets ? group_masks(arguments, reading) : voxels.target;
    const auto p = options.is_softmax()                    ? voxels.input.softmax(dim)
                   : options.activation == SEGLOSS_SIGMOID ? voxels.input.sigmoid()
                                                           : voxels.input;
    const auto v = counted_weight(voxels, dim);
    const auto squared = [&](const Tensor& values) { return options.squared ? values * values : values; };
    const auto sum = [&](const Tensor& values) { return sum_of_samples(weighted_values(voxels, values), dim); };
    Tensor intersection;
    Tensor targets;
    if (voxels.kind == Target::labels) {
        intersection = sum_by_label(weighted_values(voxels, p.gather(dim, g)), g, num_classes, dim);
        targets = sum_by_label(v, g, num_classes, dim);
    } else {
        intersection = sum(options.sums_minima(reading.kind) ? at::minimum(p, g) : p * g);
        targets = sum(squared(g));
    }
    auto loss = at::zeros_symint({num_samples(arguments.input, dim)}, p.options());
    auto loss_weight = at::zeros_like(loss);
    if (options.voxel_loss && options.is_softmax()) {
        const auto [losses, shares] = cross_entropy_losses(voxels, arguments.weight, dim, options.of_voxels());
        loss = sum(losses).sum(1);
        loss_weight = sum(shares).sum(1);
    } else if (options.voxel_loss) {
        loss = sum(binary_losses(voxels, arguments.weight, dim, options.of_voxels())).sum(1);
        loss_weight = sum_of_samples(v, dim).sum(1) * num_classes;
    }
    return {intersection, sum(squared(p)), targets, loss, loss_weight};
}

namespace {

const Operator<SoftStats>::Registration soft_stats; // NOLINT(bugprone-throwing-static-initialization): as torch's

} // namespace
} // namespace segloss
