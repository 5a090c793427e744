// The Lovasz extension of the Jaccard loss of each class: the Lovasz-Softmax loss and the Lovasz hinge loss.

#include "lovasz.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "memory.h"
#include "soft_stats.h"

namespace segloss {

// ---- checks ---------------------------------------------------------------------------------------------------------

namespace {

c10::SymInt num_groups(const Arguments& arguments, const Lovasz::Options& options) {
    const auto samples = num_samples(arguments.input, options.dim);
    return options.group_size == 0 ? c10::SymInt(1) : samples / options.group_size;
}

} // namespace

Target Lovasz::check(const Arguments& arguments, const Options& options) {
    const auto& [op, input, target, weight, voxel_weight, label_table, coarse] = arguments;
    TORCH_CHECK_VALUE(options.activation != SEGLOSS_SIGMOID && (!options.hinge || !options.is_softmax()), op,
                      ": expected activation 'softmax' or 'none', with hinge 'none', got '",
                      options.is_softmax() ? "softmax" : "sigmoid", options.hinge ? "' with hinge" : "'");
    TORCH_CHECK_VALUE(!voxel_weight, op, ": expected no voxel_weight, got one. Leave voxels out by ignore_index");
    const auto given = classify_target(op, input, target, options.dim, /*takes_masks=*/options.hinge && !label_table);
    auto kind = options.hinge ? kind_of_regions(op, target, label_table, given) : given;
    if (options.hinge) {
        kind = kind == Target::probabilities ? Target::masks : kind; // floating ones must be 0 and 1, too
    } else {
        check_softmax(op, input, options.dim);
        check_labels_only(op, input, options.dim, kind);
    }
    check_weight(op, input, weight, options.dim, kind);
    check_ignore_index(op, kind, options.ignore_index);
    check_label_table(op, target, label_table, kind);
    const auto samples = num_samples(input, options.dim);
    TORCH_CHECK_VALUE(options.group_size >= 0 && (options.group_size == 0 || samples % options.group_size == 0), op,
                      ": expected group_size to divide the batch of ", samples, ", got ", options.group_size);
    return kind;
}

Reading Lovasz::read(const Arguments& arguments, const Options& options, Target kind) {
    const auto dtype = arguments.input.scalar_type();
    const bool has_probabilities = !options.is_softmax() && !options.hinge;
    return {kind,
            options.dim,
            {options.ignore_index, arguments.label_table},
            dtype,
            ranges_of(arguments, kind, compute_dtype(dtype), /*any_finite=*/false, has_probabilities)};
}

void Lovasz::check_handed(const Handed& handed, const Arguments& arguments, const Options& options) {
    const auto& [grad_loss, slopes] = handed;
    const auto& input = arguments.input;
    const auto op = arguments.op + " backward";
    check_dense(op, grad_loss, "grad_loss");
    check_same_device(op, input, grad_loss, "grad_loss");
    TORCH_CHECK_TYPE(grad_loss.is_floating_point(), op, ": expected a floating grad_loss, got ",
                     grad_loss.scalar_type());
    const auto groups = num_groups(arguments, options);
    const auto classes = input.sym_size(options.dim);
    TORCH_CHECK(grad_loss.dim() == 2 && grad_loss.sym_size(0) == groups && grad_loss.sym_size(1) == classes, op,
                ": expected grad_loss [", groups, ", ", classes, "] for input ", input.sym_sizes(), ", got ",
                grad_loss.sym_sizes());
    check_dense(op, slopes, "slopes");
    check_same_device(op, input, slopes, "slopes");
    TORCH_CHECK(slopes.sym_sizes() == input.sym_sizes() && slopes.scalar_type() == compute_dtype(input.scalar_type()),
                op, ": expected slopes of input's shape ", input.sym_sizes(), " and dtype ",
                compute_dtype(input.scalar_type()), ", got ", slopes.sym_sizes(), " of dtype ", slopes.scalar_type());
}

// ---- CPU ------------------------------------------------------------------------------------------------------------

namespace {

// Splits a range into parts whose borders depend on its size alone.
class Parts {
public:
    explicit Parts(int64_t size)
        : size_(size), length_(std::max<int64_t>(kLeast, (size + kMost - 1) / kMost / SEGLOSS_BLOCK * SEGLOSS_BLOCK)) {}

    static bool is_one(int64_t size) { return size <= kLeast; }
    int64_t count() const { return (size_ + length_ - 1) / length_; }

    // Calls work(part, begin, end).
    template <typename Work> void run(const Work& work) const {
        in_parallel(count(), [&](int64_t k) { work(k, k * length_, std::min((k + 1) * length_, size_)); });
    }

private:
    static constexpr int64_t kLeast = int64_t{1} << 15;
    static constexpr int64_t kMost = 256;

    int64_t size_;
    int64_t length_;
};

constexpr int64_t kMostNarrow = int64_t{1} << 32; // voxels whose positions a narrow item can hold

int num_bits_of(uint64_t number) {
    int bits = 0;
    for (; number > 0; number >>= 1) {
        ++bits;
    }
    return bits;
}

// The voxels of one class and group, sorted by their errors, which their slopes replace.
class Order {
public:
    // `slopes` has `size` numbers; `scratch` holds twice as many items.
    Order(void* slopes, int64_t size, segloss_real real, bool is_wide, char* scratch)
        : size_(size), real_(real), scratch_(scratch) {
        order_.slopes = slopes;
        order_.is_wide = static_cast<int>(is_wide);
    }

    static int64_t bytes_of_item(bool is_wide) { return is_wide ? sizeof(segloss_lovasz_item) : sizeof(uint64_t); }

    // The number of voxels whose target is 1.
    int64_t find_extent() {
        const Parts parts(size_);
        std::vector<segloss_lovasz_extent> extents(parts.count());
        parts.run([&](int64_t part, int64_t begin, int64_t end) {
            kernels().lovasz_extent[real_](order_.slopes, begin, end, &extents[part]);
        });
        uint64_t largest = 0, least = std::numeric_limits<uint64_t>::max();
        for (const auto& extent : extents) {
            order_.num_ones += extent.num_ones;
            largest = std::max(largest, extent.largest);
            least = std::min(least, extent.least_of_one);
        }
        // Below the last one of target 1 slopes are 0. Without any, all but that of the first one of the largest error.
        order_.largest = largest;
        order_.smallest = std::max<uint64_t>(std::min(least, largest), 1);
        return order_.num_ones;
    }

    // The loss.
    double sort() {
        if (order_.largest == 0) {
            clear();
            return 0;
        }
        const int num_bits = num_bits_of(order_.largest - order_.smallest);
        const int most_bits = Parts::is_one(size_) ? kBitsOfFew : kBitsOfMany;
        const int num_passes = std::max((num_bits + most_bits - 1) / most_bits, 1);
        const int bits = (num_bits + num_passes - 1) / num_passes;
        for (int pass = 0; pass < num_passes; ++pass) {
            order_.shift = pass * bits;
            order_.bits = std::min(bits, num_bits - order_.shift);
            move();
        }
        return write_slopes();
    }

    void clear() {
        std::memset(order_.slopes, 0, size_ * (real_ == SEGLOSS_REAL_DOUBLE ? sizeof(double) : sizeof(float)));
    }

private:
    static constexpr int kBitsOfFew = 8, kBitsOfMany = 11;

    char* half(int k) const { return scratch_ + k * size_ * bytes_of_item(order_.is_wide != 0); }

    // One pass: sorts by a digit, from the errors or from one half of the scratch to the other.
    void move() {
        const void* from = num_items_ < 0 ? nullptr : half(current_);
        const auto num_digits = int64_t{1} << order_.bits;
        const Parts parts(num_items_ < 0 ? size_ : num_items_);
        std::vector<int64_t> counts(parts.count() * num_digits);
        parts.run([&](int64_t part, int64_t begin, int64_t end) {
            kernels().lovasz_count[real_](&order_, from, begin, end, &counts[part * num_digits]);
        });
        int64_t next = 0;
        for (int64_t digit = 0; digit < num_digits; ++digit) {
            for (int64_t part = 0; part < parts.count(); ++part) {
                next += std::exchange(counts[part * num_digits + digit], next);
            }
        }
        current_ = 1 - current_;
        parts.run([&](int64_t part, int64_t begin, int64_t end) {
            kernels().lovasz_move[real_](&order_, from, begin, end, half(current_), &counts[part * num_digits]);
        });
        num_items_ = next;
    }

    double write_slopes() {
        const Parts parts(num_items_);
        std::vector<int64_t> ones(parts.count());
        std::vector<double> losses(parts.count());
        parts.run([&](int64_t part, int64_t begin, int64_t end) {
            ones[part] = kernels().lovasz_ones[real_](&order_, half(current_), begin, end);
        });
        int64_t before = 0;
        for (auto& each : ones) {
            before += std::exchange(each, before);
        }
        parts.run([&](int64_t part, int64_t begin, int64_t end) {
            losses[part] = kernels().lovasz_slopes[real_](&order_, half(current_), begin, end, ones[part]);
        });
        return std::accumulate(losses.begin(), losses.end(), 0.0);
    }

    int64_t size_;
    segloss_real real_;
    char* scratch_;
    segloss_lovasz_order order_{};
    int64_t num_items_ = -1; // -1: there are only errors yet
    int current_ = 1;        // the half of the scratch that has the items
};

segloss_lovasz kernel_arguments(const VoxelArguments& voxels, const segloss_tensor& slopes,
                                const Lovasz::Options& options) {
    segloss_lovasz args{};
    args.voxels = voxels.args;
    args.activation = options.activation;
    args.hinge = static_cast<int>(options.hinge);
    args.slopes = slopes;
    return args;
}

using LovaszKernel = int64_t (*)(const segloss_lovasz*, int64_t begin, int64_t end);

// Runs a kernel over all voxels; of resized logits, piece by piece.
void run_over_voxels(const VoxelArguments& voxels, const segloss_lovasz& args, LovaszKernel kernel) {
    const auto of_piece = [&](int64_t, const Piece& piece) {
        auto part = args;
        part.voxels = voxels.of_piece(piece);
        part.slopes = piece.of(args.slopes);
        return kernel(&part, 0, piece.count);
    };
    const auto of_all = [&](int64_t, int64_t begin, int64_t end) { return kernel(&args, begin, end); };
    const bool accepted =
        voxels.walk ? voxels.walk->run(of_piece) : Chunks(voxels.num_voxels(), voxels.args.num_classes).run(of_all);
    if (!accepted) {
        raise_refused(voxels.arguments, voxels.reading);
    }
}

// Makes the losses, and slopes of the errors: of one class after the other, or of several small ones at a time.
void sort_classes(const Lovasz::Results& results, const OptionalTensor& weight, int64_t num_voxels) {
    const auto& [loss, num_ones, slopes] = results;
    const auto num_classes = loss.size(1), num_orders = loss.numel();
    if (slopes.numel() == 0) {
        loss.zero_();
        num_ones.zero_();
        return;
    }
    const auto size = num_voxels / loss.size(0);
    const auto real = real_of(slopes.scalar_type());
    const bool is_wide = real == SEGLOSS_REAL_DOUBLE || size > kMostNarrow;
    const auto weights = weight ? weight->to(at::kDouble).contiguous() : Tensor();
    const auto bytes = 2 * size * Order::bytes_of_item(is_wide);
    const auto sort = [&](int64_t k, char* scratch) {
        const auto group = k / num_classes, c = k % num_classes;
        auto* const first = static_cast<char*>(slopes.data_ptr()) +
                            (c * num_voxels + group * size) * static_cast<int64_t>(slopes.element_size());
        Order order(first, size, real, is_wide, scratch);
        num_ones.data_ptr<double>()[k] = static_cast<double>(order.find_extent());
        const double factor = weights.defined() ? weights.const_data_ptr<double>()[c] : 1;
        if (factor == 0) {
            order.clear();
        }
        loss.data_ptr<double>()[k] = factor == 0 ? 0 : factor * order.sort();
    };
    if (Parts::is_one(size)) {
        std::atomic<int64_t> next{0};
        at::parallel_for(0, std::min(num_orders, num_threads()), 1, [&](int64_t, int64_t) {
            std::vector<char> scratch(bytes);
            for (int64_t k = next++; k < num_orders; k = next++) {
                sort(k, scratch.data());
            }
        });
        return;
    }
    const auto scratch = empty_output({bytes}, at::kByte);
    for (int64_t k = 0; k < num_orders; ++k) {
        sort(k, reinterpret_cast<char*>(scratch.data_ptr<uint8_t>()));
    }
}

// The gradients [G, C] of the losses as those of the voxels, times the weights of the classes.
Tensor for_each_value(const Tensor& grad_loss, const VoxelArguments& voxels, const Lovasz::Options& options) {
    const auto& input = voxels.arguments.input;
    const auto& weight = voxels.arguments.weight;
    auto grads = weight ? grad_loss * weight->to(grad_loss.scalar_type()) : grad_loss;
    grads = grads.to(voxels.reading.compute_dtype());
    at::DimVector sizes(input.dim(), 1);
    sizes[options.dim] = input.size(options.dim);
    if (grads.size(0) != 1) { // else all voxels share one value, which the kernels need not read for each
        const auto batch = batch_dim(options.dim);
        grads = grads.repeat_interleave(options.group_size, 0);
        grads = batch < options.dim ? grads : grads.t();
        sizes[batch] = input.size(batch);
    }
    return grads.reshape(sizes).expand(input.sizes());
}

// The losses and their numbers of voxels, uninitialised, with these slopes.
Lovasz::Results results_with(Tensor slopes, const Arguments& arguments, const Lovasz::Options& options) {
    const auto& input = arguments.input;
    const auto by_class = [&] {
        return at::empty_symint({num_groups(arguments, options), input.sym_size(options.dim)},
                                input.options().dtype(widest_dtype(input)));
    };
    return {by_class(), by_class(), std::move(slopes)};
}

} // namespace

Lovasz::Results Lovasz::forward_cpu(const Arguments& arguments, const Options& options, const Reading& reading) {
    const auto& input = arguments.input;
    VoxelArguments voxels(arguments, reading, {});
    auto sizes = voxels.sizes;
    sizes.insert(sizes.begin(), input.size(options.dim));
    const auto slopes = empty_output(sizes, reading.compute_dtype()).movedim(0, options.dim);
    segloss_tensor view{};
    voxels.args.stream_grad = static_cast<int>(exceeds_caches(slopes));
    voxels.describe_with({{&slopes, &view}});
    run_over_voxels(voxels, kernel_arguments(voxels, view, options), kernels().lovasz_forward[real_of(reading.dtype)]);
    auto results = results_with(slopes, arguments, options);
    sort_classes(results, arguments.weight, voxels.num_voxels());
    return results;
}

Tensor Lovasz::backward_cpu(const Handed& handed, const Arguments& arguments, const Options& options,
                            const Reading& reading) {
    const auto& [grad_loss, slopes] = handed;
    VoxelArguments voxels(arguments, reading, {});
    const auto gradient = empty_gradient(arguments, reading);
    const auto grads = for_each_value(grad_loss, voxels, options);
    segloss_tensor view{};
    voxels.describe_with({{&slopes, &view}, {&grads, &voxels.args.grad_loss}}, gradient);
    voxels.args.stream_grad = static_cast<int>(!voxels.walk && exceeds_caches(gradient));
    run_over_voxels(voxels, kernel_arguments(voxels, view, options), kernels().lovasz_backward[real_of(reading.dtype)]);
    return finished_gradient(gradient, arguments);
}

// ---- shapes and dtypes only -----------------------------------------------------------------------------------------

Lovasz::Results Lovasz::shapes(const Arguments& arguments, const Options& options, const Reading& reading) {
    auto sizes = arguments.input.sym_sizes().vec();
    std::rotate(sizes.begin(), sizes.begin() + options.dim, sizes.begin() + options.dim + 1);
    const auto slopes = at::empty_symint(sizes, arguments.input.options().dtype(reading.compute_dtype()));
    return results_with(slopes.movedim(0, options.dim), arguments, options);
}

// ---- composite: the same results in differentiable ATen operators ---------------------------------------------------

namespace {

// The factors s of errors [..., P], by the target 0 or 1 of each.
Tensor factors_of(const Tensor& errors, const Tensor& targets) {
    const auto order = std::get<1>(errors.sort(/*stable=*/true, /*dim=*/-1, /*descending=*/true));
    const auto sorted = targets.gather(-1, order);
    const auto total = targets.sum({-1}, /*keepdim=*/true);
    const auto ones = sorted.cumsum(-1) - sorted, others = (1 - sorted).cumsum(-1) - (1 - sorted);
    const auto both = total + others;
    const auto above = at::where(sorted.eq(1), 1.0, total - ones);
    const auto below = at::where(sorted.eq(1), both, both * (both + 1));
    const auto factors = at::where(both.eq(0), 1.0, above / below.masked_fill(both.eq(0), 1));
    return at::zeros_like(factors).scatter(-1, order, factors).masked_fill(errors.eq(0), 0);
}

} // namespace

Lovasz::Results Lovasz::composite(const Arguments& arguments, const Options& options, const Reading& reading) {
    const auto dim = options.dim;
    const auto voxels = read_voxels(arguments, reading);
    const auto& x = voxels.input;
    auto classes = at::arange(x.sym_size(dim), voxels.target.options());
    c10::SymDimVector of_classes(x.dim(), 1);
    of_classes[dim] = x.sym_size(dim);
    auto is_one =
        voxels.kind == Target::labels ? voxels.target.eq(classes.view_symint(of_classes)) : voxels.target.ne(0);
    const auto p = options.is_softmax() ? x.softmax(dim) : x;
    auto errors = options.hinge ? 1 + at::where(is_one, -x, x) : at::where(is_one, 1 - p, p);
    errors = errors.clamp_min(0);
    if (voxels.ignored) {
        errors = errors.masked_fill(*voxels.ignored, 0);
        is_one = is_one.logical_and(voxels.ignored->logical_not());
    }
    const auto wide = widest_dtype(x);
    const auto groups = num_groups(arguments, options);
    const auto size = groups == 0 ? c10::SymInt(1) : c10::multiply_integers(voxel_sizes(x, dim)) / groups;
    const auto by_group = [&](const Tensor& values) {
        return values.movedim(dim, 0).reshape_symint({x.sym_size(dim), groups, size});
    };
    const auto targets = by_group(is_one).to(wide), sizes = factors_of(by_group(errors).detach(), targets);
    auto loss = (by_group(errors).to(wide).masked_fill(sizes.eq(0), 0) * sizes).sum(-1).t();
    loss = arguments.weight ? loss * arguments.weight->to(wide) : loss;
    auto shape = x.sym_sizes().vec();
    std::rotate(shape.begin(), shape.begin() + dim, shape.begin() + dim + 1);
    const auto slopes = at::where(targets.eq(1), -sizes, sizes).to(x.scalar_type());
    return {loss, targets.sum(-1).t(), slopes.reshape_symint(shape).movedim(0, dim)};
}

namespace {

const Operator<Lovasz>::Registration lovasz; // NOLINT(bugprone-throwing-static-initialization): as torch's

} // namespace
} // namespace segloss
