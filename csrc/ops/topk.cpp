// The sum of the largest losses, which the top-k loss consists of.
//
//   topk_sum            public: how it computes depends on the device and on the gradients needed
//   topk_sum_forward    private, of CPU tensors: also returns the cutoff, which decides whether a loss is kept
//   topk_sum_backward   private: the gradient of the losses

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "autograd.h"
#include "checks.h"
#include "composite.h"
#include "dispatch.h"
#include "label_table.h"
#include "layout.h"
#include "memory.h"
#include "targets.h"

namespace segloss {
namespace {

// The losses, and what decides which of them count. All tensors have the shape of the losses. Losses of voxels that do
// not count are 0.
struct Ranked {
    Tensor losses, target;
    OptionalTensor voxel_weight;
    Labels labels;
};

constexpr auto kOp = "topk_sum";

void check_losses(const Tensor& losses) {
    check_dense(kOp, losses, "losses");
    TORCH_CHECK_TYPE(losses.scalar_type() == at::kFloat || losses.scalar_type() == at::kDouble, kOp,
                     ": expected float32 or float64 losses, got ", losses.scalar_type());
}

void check_percentage(double k) {
    TORCH_CHECK_VALUE(k > 0 && k <= 100, kOp, ": expected k, a percentage, in (0, 100], got ", k);
}

void check_shape(const Tensor& losses, const Tensor& tensor, const char* name) {
    check_dense(kOp, tensor, name);
    check_same_device(kOp, losses, tensor, name);
    TORCH_CHECK(tensor.sym_sizes() == losses.sym_sizes(), kOp, ": expected ", name, " of the losses' shape ",
                losses.sym_sizes(), ", got ", tensor.sym_sizes());
}

void check_ranked(const Ranked& ranked) {
    check_losses(ranked.losses);
    check_label_tensor(kOp, ranked.target);
    check_shape(ranked.losses, ranked.target, "target");
    check_label_table(kOp, ranked.target, ranked.labels.table, Target::sets);
    if (ranked.voxel_weight) {
        check_shape(ranked.losses, *ranked.voxel_weight, "voxel_weight");
        TORCH_CHECK(is_integer(*ranked.voxel_weight) || ranked.voxel_weight->is_floating_point(), kOp,
                    ": expected an integer, bool or floating voxel_weight, got ", ranked.voxel_weight->scalar_type());
    }
}

void check_handed(const Tensor& grad_sum, const Tensor& cutoff, const Tensor& losses) {
    for (const auto& [tensor, name] : {std::pair(grad_sum, "grad_sum"), std::pair(cutoff, "cutoff")}) {
        check_dense(kOp, tensor, name);
        check_same_device(kOp, losses, tensor, name);
    }
    TORCH_CHECK(grad_sum.sym_numel() == 1 && grad_sum.is_floating_point(), kOp,
                ": expected a floating grad_sum of one element, got ", grad_sum.scalar_type(), " ",
                grad_sum.sym_sizes());
    TORCH_CHECK(cutoff.sym_numel() == 2 && cutoff.scalar_type() == at::kLong, kOp,
                ": expected an int64 cutoff of two elements, got ", cutoff.scalar_type(), " ", cutoff.sym_sizes());
}

// ---- CPU ------------------------------------------------------------------------------------------------------------

// The arguments of the kernels, and the tensors that they point to.
struct TopkArguments {
    TopkArguments(const Ranked& ranked, const Tensor& grad_losses)
        : target(may_ignore(ranked.target.scalar_type(), ranked.labels) ? ranked.target : Tensor()),
          voxel_weight(ranked.voxel_weight.value_or(Tensor())) {
        args.positions = describe(ranked.losses.sizes(), 0,
                                  {{&ranked.losses, &args.losses},
                                   {&target, &args.target},
                                   {&voxel_weight, &args.voxel_weight},
                                   {&grad_losses, &args.grad_losses}});
        args.ignore_index = ranked.labels.ignore_index;
        args.labels = label_table_for_kernel(kOp, ranked.labels.table, INT32_MAX, ranked.losses.numel());
        args.last_tie = -1;
    }
    TopkArguments(const TopkArguments&) = delete;
    TopkArguments& operator=(const TopkArguments&) = delete;

    Tensor target, voxel_weight;
    segloss_topk args{};
};

// How many of the voxels that count are kept: k percent, but one at least.
int64_t number_kept(double k, int64_t num_voxels) {
    const auto voxels = static_cast<double>(num_voxels);
    return static_cast<int64_t>(std::min(std::max(std::floor(k * voxels / 100), 1.0), voxels));
}

int bits_of(segloss_real real) { return real == SEGLOSS_REAL_DOUBLE ? 64 : 32; }

using Counts = std::array<int64_t, SEGLOSS_TOPK_DIGITS>;

struct Digits {
    Counts counts{}; // of the keys with each digit
    double sum = 0;  // of the losses above these keys, if asked for
};

// Counts digits. Each thread has its own counts, as integer sums are the same in any order.
Digits count_digits(const segloss_topk& args, const Chunks& chunks, segloss_real real, bool with_sum) {
    constexpr size_t kNumCells = size_t{SEGLOSS_TOPK_COUNTERS} * SEGLOSS_TOPK_DIGITS;
    const auto most_threads = std::max<int64_t>(std::min(num_threads(), chunks.count()), 1);
    std::vector<int64_t> tables(most_threads * kNumCells);
    std::vector<double> sums(with_sum ? chunks.count() : 0);
    const auto kernel = kernels().topk_count[real];
    const auto count = [&](int64_t chunk, int64_t begin, int64_t end) {
        kernel(&args, begin, end, &tables[at::get_thread_num() * kNumCells], with_sum ? &sums[chunk] : nullptr);
        return -1;
    };
    chunks.run(count, most_threads);
    Digits digits;
    digits.sum = std::accumulate(sums.begin(), sums.end(), 0.0);
    for (size_t cell = 0; cell < tables.size(); ++cell) {
        digits.counts[cell % kNumCells / SEGLOSS_TOPK_COUNTERS] += tables[cell];
    }
    return digits;
}

template <typename Real, typename Bits> double loss_of(uint64_t key) {
    constexpr auto kSign = static_cast<Bits>(Bits{1} << (std::numeric_limits<Bits>::digits - 1));
    const auto bits = static_cast<Bits>(key);
    return c10::bit_cast<Real>(static_cast<Bits>((bits & kSign) != 0 ? bits ^ kSign : ~bits));
}

double loss_of(uint64_t key, segloss_real real) {
    return real == SEGLOSS_REAL_DOUBLE ? loss_of<double, uint64_t>(key) : loss_of<float, uint32_t>(key);
}

// The position of the last of `num_kept` ties.
int64_t find_last_tie(const segloss_topk& args, const Chunks& chunks, segloss_real real, int64_t num_kept) {
    const auto kernel = kernels().topk_ties[real];
    std::vector<int64_t> num_ties(chunks.count());
    std::vector<std::pair<int64_t, int64_t>> ranges(chunks.count());
    int64_t position = -1;
    chunks.run([&](int64_t chunk, int64_t begin, int64_t end) {
        int64_t unused = -1;
        num_ties[chunk] = kernel(&args, begin, end, /*n=*/-1, &unused);
        ranges[chunk] = {begin, end};
        return -1;
    });
    size_t chunk = 0;
    for (; num_ties[chunk] < num_kept; ++chunk) {
        num_kept -= num_ties[chunk];
    }
    kernel(&args, ranges[chunk].first, ranges[chunk].second, num_kept - 1, &position);
    return position;
}

// If all losses to keep are above 0, none of them is of a voxel that does not count, whose loss is 0: labels and
// weights need not be read.
void leave_out_ignored(segloss_topk& args, int num_bits) {
    const auto key_of_zero = uint64_t{1} << (num_bits - 1);
    if (args.key > key_of_zero) {
        args.target.data = args.voxel_weight.data = nullptr;
    }
}

struct Selection {
    int64_t num_kept = 0;
    double sum = 0;
};

// Finds the key of the smallest loss to keep, digit by digit, and the last tie; adds the losses that are kept.
Selection select(segloss_topk& args, const Chunks& chunks, segloss_real real, double k) {
    constexpr int kDigitBits = 11;
    static_assert(1 << kDigitBits == SEGLOSS_TOPK_DIGITS);
    const int num_bits = bits_of(real);
    Selection selection;
    int64_t num_left = 0; // how many are kept of the losses whose keys begin with the known bits
    for (int num_known = 0; num_known < num_bits;) {
        num_known = std::min(num_known + kDigitBits, num_bits);
        args.shift = num_bits - num_known; // the highest bits of the last digit are known already
        const bool is_last = args.shift == 0;
        const auto [counts, sum] = count_digits(args, chunks, real, is_last);
        if (args.known == 0) {
            num_left = number_kept(k, std::accumulate(counts.begin(), counts.end(), int64_t{0}));
            selection.num_kept = num_left;
        }
        if (num_left == 0) {
            args.key = std::numeric_limits<uint64_t>::max();
            break;
        }
        uint64_t digit = SEGLOSS_TOPK_DIGITS - 1;
        for (; counts[digit] < num_left; --digit) {
            num_left -= counts[digit];
            if (is_last && counts[digit] > 0) {
                selection.sum += static_cast<double>(counts[digit]) * loss_of(args.key | digit, real);
            }
        }
        args.key |= digit << args.shift;
        args.known |= uint64_t{SEGLOSS_TOPK_DIGITS - 1} << args.shift;
        leave_out_ignored(args, num_bits);
        if (is_last) {
            selection.sum += sum + static_cast<double>(num_left) * loss_of(args.key, real);
            args.last_tie = counts[digit] == num_left ? std::numeric_limits<int64_t>::max()
                                                      : find_last_tie(args, chunks, real, num_left);
        }
    }
    return selection;
}

using Results = std::tuple<Tensor, Tensor, Tensor>; // sum, number kept, cutoff

Results forward_cpu(const Tensor& losses, const Tensor& target, const OptionalTensor& voxel_weight,
                    const OptionalTensor& label_table, double k, int64_t ignore_index) {
    const Ranked ranked{losses, target, voxel_weight, {ignore_index, label_table}};
    check_ranked(ranked);
    check_percentage(k);
    TopkArguments arguments(ranked, Tensor());
    auto& args = arguments.args;
    const Chunks chunks(losses.numel(), 1);
    const auto [num_kept, sum] = select(args, chunks, real_of(losses.scalar_type()), k);
    const auto cutoff = at::empty({2}, at::kLong);
    cutoff.data_ptr<int64_t>()[0] = static_cast<int64_t>(args.key);
    cutoff.data_ptr<int64_t>()[1] = args.last_tie;
    return {number(sum), number(static_cast<double>(num_kept)), cutoff};
}

Tensor backward_cpu(const Tensor& grad_sum, const Tensor& cutoff, const Tensor& losses, const Tensor& target,
                    const OptionalTensor& voxel_weight, const OptionalTensor& label_table, int64_t ignore_index) {
    const Ranked ranked{losses, target, voxel_weight, {ignore_index, label_table}};
    check_ranked(ranked);
    check_handed(grad_sum, cutoff, losses);
    auto grad_losses = empty_output_like(losses);
    TopkArguments arguments(ranked, grad_losses);
    auto& args = arguments.args;
    const auto cut = cutoff.contiguous();
    args.key = static_cast<uint64_t>(cut.const_data_ptr<int64_t>()[0]);
    args.last_tie = cut.const_data_ptr<int64_t>()[1];
    args.grad_sum = grad_sum.item<double>();
    const auto real = real_of(losses.scalar_type());
    leave_out_ignored(args, bits_of(real));
    const auto kernel = kernels().topk_backward[real];
    Chunks(losses.numel(), 1).run([&](int64_t, int64_t begin, int64_t end) {
        kernel(&args, begin, end);
        return -1;
    });
    return grad_losses;
}

// ---- shapes and dtypes only -----------------------------------------------------------------------------------------

Results forward_meta(const Tensor& losses, const Tensor& target, const OptionalTensor& voxel_weight,
                     const OptionalTensor& label_table, double k, int64_t ignore_index) {
    check_ranked({losses, target, voxel_weight, {ignore_index, label_table}});
    check_percentage(k);
    const auto number = losses.options().dtype(at::kDouble);
    return {at::empty({}, number), at::empty({}, number), at::empty({2}, losses.options().dtype(at::kLong))};
}

Tensor backward_meta(const Tensor& grad_sum, const Tensor& cutoff, const Tensor& losses, const Tensor& target,
                     const OptionalTensor& voxel_weight, const OptionalTensor& label_table, int64_t ignore_index) {
    check_ranked({losses, target, voxel_weight, {ignore_index, label_table}});
    check_handed(grad_sum, cutoff, losses);
    return at::empty_like(losses);
}

// ---- composite: the same results in differentiable ATen operators ---------------------------------------------------

using Sum = std::tuple<Tensor, Tensor>; // sum, number kept

Sum composite(const Ranked& ranked, double k) {
    const auto& [losses, target, voxel_weight, labels] = ranked;
    const auto wide = widest_dtype(losses);
    auto counts =
        labels.table ? class_labels(kOp, target, INT32_MAX, labels).ge(0) : is_ignored(target, labels).logical_not();
    if (voxel_weight) {
        counts = counts.logical_and(voxel_weight->to(losses.scalar_type()).ne(0));
    }
    const auto num_voxels = counts.sum(wide);
    const auto num_kept = (num_voxels * k / 100).floor().clamp_min(1).minimum(num_voxels);
    // Reading num_kept would make the host wait for the device, and break a graph: ranks as many as it can be.
    const auto num_losses = losses.sym_numel();
    const auto most = (num_losses * static_cast<int64_t>(std::ceil(k)) / 100 + 1).min(num_losses);
    const auto lowest = -std::numeric_limits<double>::infinity();
    const auto candidates = losses.masked_fill(counts.logical_not(), lowest).flatten();
    const auto ranked_losses = std::get<0>(candidates.topk_symint(most));
    const auto is_kept = at::arange(most, losses.options().dtype(at::kLong)).lt(num_kept);
    return {at::where(is_kept, ranked_losses, 0).sum(wide), num_kept};
}

// ---- autograd -------------------------------------------------------------------------------------------------------

class TopkSum : public torch::autograd::Function<TopkSum> {
public:
    static variable_list forward(torch::autograd::AutogradContext* ctx, const Tensor& losses, const Tensor& target,
                                 const OptionalTensor& voxel_weight, const OptionalTensor& label_table, double k,
                                 int64_t ignore_index) {
        const at::AutoDispatchBelowADInplaceOrView below_autograd;
        const auto [sum, num_kept, cutoff] =
            call_operator<forward_cpu>("topk_sum_forward", losses, target, voxel_weight, label_table, k, ignore_index);
        ctx->save_for_backward({losses, target, or_undefined(voxel_weight), or_undefined(label_table), cutoff});
        ctx->saved_data["ignore_index"] = ignore_index;
        ctx->mark_non_differentiable({num_kept});
        ctx->set_materialize_grads(false);
        return {sum, num_kept};
    }

    static variable_list backward(torch::autograd::AutogradContext* ctx, const variable_list& grads) {
        const auto& grad_sum = grads[0];
        if (!grad_sum.defined()) {
            return variable_list(kNumForwardArguments);
        }
        const auto saved = ctx->get_saved_variables();
        const auto gradient = [&](const Tensor& grad) {
            const at::AutoDispatchBelowADInplaceOrView below_autograd;
            return call_operator<backward_cpu>("topk_sum_backward", grad, saved[4], saved[0], saved[1],
                                               defined_or_none(saved[2]), defined_or_none(saved[3]),
                                               ctx->saved_data["ignore_index"].toInt());
        };
        const bool is_batched = is_func_active() || grad_sum.key_set().has(c10::DispatchKey::Batched);
        const bool is_differentiated = at::GradMode::is_enabled() || torch::autograd::isFwGradDefined(grad_sum);
        variable_list by_argument(kNumForwardArguments);
        by_argument[0] = is_batched || is_differentiated // a product is a function of grad_sum to ATen, too
                             ? gradient(at::ones({}, saved[0].options())) * grad_sum.to(saved[0].scalar_type())
                             : gradient(grad_sum);
        return by_argument;
    }

private:
    static constexpr size_t kNumForwardArguments = 6;
};

// Labels or weights, which may have a class dimension of size 1 where the losses have none, or the reverse.
Tensor in_shape_of(const Tensor& losses, const Tensor& tensor, const char* name) {
    check_dense(kOp, tensor, name);
    TORCH_CHECK(tensor.sym_numel() == losses.sym_numel(), kOp, ": expected one ", name, " for each loss ",
                losses.sym_sizes(), ", got ", tensor.sym_sizes());
    return tensor.reshape_symint(losses.sym_sizes());
}

Sum topk_sum(const Tensor& losses, const Tensor& target, const OptionalTensor& voxel_weight,
             const OptionalTensor& label_table, double k, int64_t ignore_index) {
    check_losses(losses);
    check_percentage(k);
    const Ranked ranked{losses,
                        in_shape_of(losses, target, "target"),
                        voxel_weight ? OptionalTensor(in_shape_of(losses, *voxel_weight, "voxel_weight"))
                                     : std::nullopt,
                        {ignore_index, label_table}};
    check_ranked(ranked);
    if (!losses.is_cpu() || is_func_active() || torch::autograd::isFwGradDefined(losses)) {
        return composite(ranked, k);
    }
    if (!torch::autograd::compute_requires_grad(losses)) {
        const auto [sum, num_kept, cutoff] = call_operator<forward_cpu>(
            "topk_sum_forward", losses, ranked.target, ranked.voxel_weight, label_table, k, ignore_index);
        return {sum, num_kept};
    }
    const auto results = TopkSum::apply(losses, ranked.target, ranked.voxel_weight, label_table, k, ignore_index);
    return {results[0], results[1]};
}

} // namespace

TORCH_LIBRARY_FRAGMENT(segloss, m) {
    const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
    const std::string ranked = "Tensor losses, Tensor target, Tensor? voxel_weight, Tensor? label_table, ";
    const auto define = [&](const std::string& schema) { m.def(schema.c_str(), tags); };
    define("topk_sum(" + ranked + "float k, int ignore_index) -> (Tensor sum, Tensor num_kept)");
    define("topk_sum_forward(" + ranked + "float k, int ignore_index) -> (Tensor sum, Tensor num_kept, Tensor cutoff)");
    define("topk_sum_backward(Tensor grad_sum, Tensor cutoff, " + ranked + "int ignore_index) -> Tensor");
}

TORCH_LIBRARY_IMPL(segloss, CompositeImplicitAutograd, m) { m.impl("topk_sum", TORCH_FN(topk_sum)); }

// Under vmap, too, it is decomposed, not run in a loop over samples.
TORCH_LIBRARY_IMPL(segloss, FuncTorchBatchedDecomposition, m) { m.impl("topk_sum", TORCH_FN(topk_sum)); }

TORCH_LIBRARY_IMPL(segloss, CPU, m) {
    m.impl("topk_sum_forward", TORCH_FN(forward_cpu));
    m.impl("topk_sum_backward", TORCH_FN(backward_cpu));
}

TORCH_LIBRARY_IMPL(segloss, Meta, m) {
    m.impl("topk_sum_forward", TORCH_FN(forward_meta));
    m.impl("topk_sum_backward", TORCH_FN(backward_meta));
}

} // namespace segloss
