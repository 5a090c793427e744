// The operators that count predicted classes against labels.

#include "confusion.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <vector>

#include "checks.h"
#include "composite.h"
#include "dispatch.h"
#include "label_table.h"
#include "layout.h"
#include "targets.h"

namespace segloss {
namespace {

// ---- checks of the operators ----------------------------------------------------------------------------------------

// Raises if a predicted label of a voxel that counts is outside [0, num_classes).
void check_predicted_values(const Comparison& given, int64_t num_classes) {
    const auto bad = is_outside(given.input.to(at::kLong), num_classes).logical_and_(valid_voxels(given));
    const auto num_bad = bad.sum().item<int64_t>();
    TORCH_CHECK_INDEX(num_bad == 0, given.op, ": Predicted label ", first_value(given.input, bad),
                      " is out of bounds: ", num_bad, num_bad == 1 ? " label" : " labels",
                      " of input at voxels that count ", num_bad == 1 ? "is" : "are", " outside [0, ", num_classes,
                      "), the first ", first_place("input", bad), ". Expected labels 0 to ",
                      std::max<int64_t>(num_classes - 1, 0), ". Relabel the prediction, or give a larger num_classes");
}

// Checks the arguments of confusion_counts, so that no kernel reads outside a tensor. Returns the number of classes.
int64_t check_arguments(const Comparison& given, const c10::SymInt& sym_num_classes) {
    const auto& [op, input, target, labels, dim, coarse, per_sample] = given;
    if (is_integer(input)) {
        check_maps(given);
    } else {
        check_tensors(given);
        check_dim(given);
        check_logits(op, input);
        TORCH_CHECK(classify_target(op, input, target, dim) == Target::labels, op,
                    ": expected class labels, got target ", target.sizes(), " for input ", input.sizes());
    }
    const auto num_classes = sym_num_classes.guard_int(__FILE__, __LINE__);
    TORCH_CHECK_VALUE(num_classes >= 0 && num_classes <= INT32_MAX, op, ": expected num_classes in [0, ", INT32_MAX,
                      "], got ", num_classes);
    TORCH_CHECK_VALUE(is_integer(input) || num_classes == input.size(dim), op,
                      ": expected num_classes=", input.size(dim), " for input ", input.sizes(),
                      " with its classes in dimension ", dim, ", got ", num_classes);
    return num_classes;
}

// ---- counts of samples ----------------------------------------------------------------------------------------------

// The samples whose counts are apart: so many positions each, one after the other.
class CountedSamples {
public:
    explicit CountedSamples(const Comparison& given)
        : count_(num_counted_apart(given).expect_int()), size_(given.target.numel() / std::max<int64_t>(count_, 1)) {}

    int64_t count() const { return count_; }
    int64_t size() const { return size_; }
    int64_t of(int64_t position) const { return position / size_; }

    // Calls kernel(sample, begin, end) for the parts of a range in each sample, till one refuses a position.
    template <typename Kernel> int64_t visit(int64_t begin, int64_t end, const Kernel& kernel) const {
        int64_t refused = -1;
        while (begin < end && refused < 0) {
            const auto sample = of(begin);
            const auto last = std::min(end, (sample + 1) * size_);
            refused = kernel(sample, begin, last);
            begin = last;
        }
        return refused;
    }

private:
    int64_t count_, size_;
};

// A table of counts for each thread and sample, as integer sums are the same in any order. No two tables share a cache
// line. The larger the tables, the fewer threads are used, down to one.
class CountTables {
public:
    CountTables(int64_t num_samples, int64_t num_cells, int64_t num_chunks)
        : num_cells_(num_cells),
          cells_(
              at::zeros({num_tables(num_samples * num_cells, num_chunks), num_samples, stride(num_cells)}, at::kLong)),
          data_(cells_.mutable_data_ptr<int64_t>()) {}

    int64_t count() const { return cells_.size(0); }

    // This thread's table of a sample, with a cell more than was asked for.
    int64_t* own(int64_t sample) const {
        return data_ + at::get_thread_num() * cells_.stride(0) + sample * cells_.stride(1);
    }

    // The counts of all threads, [samples, cells].
    Tensor sum() const {
        const auto counts = cells_.narrow(2, 0, num_cells_);
        return count() == 1 ? counts[0] : counts.sum(0);
    }

private:
    static int64_t stride(int64_t num_cells) {
        constexpr int64_t kLine = 16;
        return (num_cells / kLine + 1) * kLine;
    }
    static int64_t num_tables(int64_t num_cells, int64_t num_chunks) {
        const auto most_threads = std::max<int64_t>(kMaxCells / std::max<int64_t>(num_cells, 1), 1);
        return std::max<int64_t>(std::min({num_threads(), most_threads, num_chunks}), 1);
    }

    int64_t num_cells_;
    Tensor cells_;
    int64_t* data_;
};

// ---- confusion_counts -----------------------------------------------------------------------------------------------

segloss_confusion kernel_arguments(const Comparison& given, int64_t num_classes) {
    const bool is_map = is_integer(given.input);
    segloss_confusion args{};
    args.num_classes = num_classes;
    args.ignore_index = given.labels.ignore_index;
    args.labels = label_table_for_kernel(given.op, given.labels.table, num_classes, given.target.numel());
    args.prediction_is_labels = is_map;
    if (given.coarse) { // pieces describe the rest
        return args;
    }
    args.positions = describe(is_map ? at::DimVector(given.input.sizes()) : position_sizes(given.input, given.dim),
                              given.dim, {{&given.input, &args.prediction}, {&given.target, &args.target}});
    return args;
}

// The walk over resized logits, which it describes to the kernel; nothing if they are not resized.
std::optional<ResizedWalk> resized_walk(const Comparison& given, segloss_confusion& args) {
    if (!given.coarse) {
        return std::nullopt;
    }
    std::optional<ResizedWalk> walk(std::in_place, *given.coarse, given.dim, compute_dtype(given.input.scalar_type()));
    args.positions = walk->describe({{&given.target, &args.target}});
    return walk;
}

segloss_confusion of_piece(const segloss_confusion& whole, const Piece& piece) {
    auto part = whole;
    part.positions = piece.positions;
    part.prediction = piece.logits;
    part.target = piece.of(whole.target);
    part.labels = piece.of(whole.labels);
    return part;
}

Tensor confusion_counts_cpu(const Comparison& given, const c10::SymInt& num_classes, bool per_class) {
    auto args = confusion_for_kernel(given, num_classes, per_class);
    auto walk = resized_walk(given, args);
    const auto num_rows = per_class ? 3 : args.num_classes;
    const auto num_cells = num_rows * args.num_classes;
    const CountedSamples samples(given);
    const Chunks chunks(given.target.numel(), args.prediction_is_labels ? 1 : args.num_classes);
    const CountTables tables(samples.count(), num_cells, walk ? walk->num_chunks() : chunks.count());
    const auto kernel = kernels().confusion[real_of(given.input.scalar_type())];
    const auto count = [&](int64_t, int64_t begin, int64_t end) {
        return samples.visit(begin, end, [&](int64_t sample, int64_t first, int64_t last) {
            return kernel(&args, first, last, tables.own(sample));
        });
    };
    const auto count_piece = [&](int64_t, const Piece& piece) {
        const auto part = of_piece(args, piece);
        return kernel(&part, 0, piece.count, tables.own(samples.of(piece.first)));
    };
    if (!(walk ? walk->run(count_piece, tables.count()) : chunks.run(count, tables.count()))) {
        raise_refused_labels(given, args.num_classes);
    }
    const auto counts = tables.sum().view({samples.count(), num_rows, args.num_classes});
    return given.per_sample ? (per_class ? counts.transpose(0, 1) : counts).contiguous() : counts[0];
}

Tensor confusion_counts_meta(const Comparison& given, const c10::SymInt& num_classes, bool per_class) {
    check_tensors(given);
    c10::SymDimVector sizes{per_class ? 3 : num_classes, num_classes};
    if (given.per_sample) {
        sizes.insert(sizes.begin() + (per_class ? 1 : 0), num_counted_apart(given));
    }
    return at::empty_symint(sizes, given.input.options().dtype(at::kLong));
}

// For each cell in [0, num_cells), the number of voxels that count there: [num_cells], or [N, num_cells].
Tensor histogram(const Comparison& given, const Tensor& cell, const Tensor& counts, int64_t num_cells) {
    const CountedSamples samples(given);
    const auto total = samples.count() * num_cells;
    const auto first_cells = at::arange(samples.count(), cell.options()).mul_(num_cells).unsqueeze(1);
    const auto of_samples = cell.reshape({samples.count(), samples.size()}).add(first_cells).flatten();
    const auto all = of_samples.masked_fill_(counts.flatten().logical_not(), total);
    const auto counted = all.bincount(/*weights=*/{}, total + 1).narrow(0, 0, total);
    return given.per_sample ? counted.view({samples.count(), num_cells}) : counted;
}

// ---- num_label_classes ----------------------------------------------------------------------------------------------

Tensor num_label_classes_cpu(const Comparison& maps, std::optional<int64_t> mask_dim) {
    check_label_maps(maps, mask_dim);
    const auto args = maps_for_kernel(maps);
    const Chunks chunks(maps.target.numel(), 1);
    std::vector<int64_t> largest(chunks.count());
    const bool accepted = chunks.run([&](int64_t chunk, int64_t begin, int64_t end) {
        return kernels().largest_label(&args, begin, end, &largest[chunk]);
    });
    if (!accepted) {
        raise_refused_labels(maps, args.num_classes);
    }
    return at::scalar_tensor(largest.empty() ? 0 : *std::max_element(largest.begin(), largest.end()) + 1, at::kLong);
}

Tensor num_label_classes_meta(const Comparison& maps, std::optional<int64_t> /*mask_dim*/) {
    check_tensors(maps);
    return at::empty({}, maps.input.options().dtype(at::kLong));
}

Tensor num_label_classes_composite(const Comparison& maps, std::optional<int64_t> mask_dim) {
    check_label_maps(maps, mask_dim);
    check_label_values(maps.op, maps.target, INT32_MAX, maps.labels);
    check_predicted_values(maps, INT32_MAX);
    const auto larger = at::maximum(maps.input.to(at::kLong), classes_of(maps.target, maps.labels));
    return larger.numel() == 0 ? at::zeros({}, larger.options())
                               : larger.masked_fill(valid_voxels(maps).logical_not(), -1).max() + 1;
}

// ---- equal_label_counts ---------------------------------------------------------------------------------------------

// uint64 values beyond int64 wrap to negative ones. These must not equal labels of another dtype.
Tensor equal_labels(const Tensor& a, const Tensor& b) {
    const auto integers = a.to(at::kLong);
    const auto equal = integers.eq(b.to(at::kLong));
    const bool one_wraps = (a.scalar_type() == at::kUInt64) != (b.scalar_type() == at::kUInt64);
    return one_wraps ? equal.logical_and(integers.ge(0)) : equal;
}

Tensor equal_label_counts_cpu(const Comparison& maps, std::optional<int64_t> mask_dim) {
    check_label_maps(maps, mask_dim);
    const auto args = maps_for_kernel(maps);
    const Chunks chunks(maps.target.numel(), 1);
    const CountedSamples samples(maps);
    const CountTables tables(samples.count(), 2, chunks.count());
    const auto compare = [&](int64_t sample, int64_t begin, int64_t end) {
        int64_t counts[2] = {0, 0};
        const auto refused = kernels().compare_maps(&args, begin, end, counts);
        auto* const own = tables.own(sample);
        own[0] += counts[0];
        own[1] += counts[1];
        return refused;
    };
    const auto visit = [&](int64_t, int64_t begin, int64_t end) { return samples.visit(begin, end, compare); };
    if (!chunks.run(visit, tables.count())) { // a floating label: the composite raises, or compares those beyond int64
        return equal_label_counts_composite(maps, mask_dim);
    }
    const auto counts = tables.sum();
    return maps.per_sample ? counts.t().contiguous() : counts[0];
}

Tensor equal_label_counts_meta(const Comparison& maps, std::optional<int64_t> /*mask_dim*/) {
    check_tensors(maps);
    const auto options = maps.input.options().dtype(at::kLong);
    return maps.per_sample ? at::empty_symint({2, num_counted_apart(maps)}, options) : at::empty({2}, options);
}

// ---- mask_counts ----------------------------------------------------------------------------------------------------

// True where the masks are 1. RuntimeError at the first value other than 0 and 1 where `counts`.
Tensor foreground(const std::string& op, const Tensor& masks, const char* name, const Tensor& counts) {
    const auto ones = masks.eq(1);
    const auto bad = masks.ne(0).logical_and_(ones.logical_not()).logical_and_(counts);
    TORCH_CHECK(!bad.any().item<bool>(), op, ": expected 0 and 1 in ", name,
                " with masks=True, a mask for each class, got ", first_value(masks, bad), " ", first_place(name, bad),
                ". Use ", name, ".ne(0) where another value is the foreground, or masks=False for class labels");
    return ones;
}

Tensor mask_counts_meta(const Comparison& masks) {
    check_tensors(masks);
    c10::SymDimVector sizes{4, masks.input.sym_size(masks.dim)};
    if (masks.per_sample) {
        sizes.insert(sizes.begin() + 1, masks.input.sym_size(sample_dim(masks.dim)));
    }
    return at::empty_symint(sizes, masks.input.options().dtype(at::kLong));
}

// ---- the operators --------------------------------------------------------------------------------------------------

} // namespace

Tensor confusion_counts(const Comparison& given, const c10::SymInt& num_classes, bool per_class) {
    const auto& [op, input, target, labels, dim, coarse, per_sample] = given;
    return call_operator<confusion_counts_by<confusion_counts_cpu>>(
        "confusion_counts", op, coarse ? coarse->logits : input, target, num_classes, labels.ignore_index, dim,
        per_class, labels.table, coarse ? coarse->resize.code() : 0, per_sample);
}

int64_t num_label_classes(const Comparison& maps, std::optional<int64_t> mask_dim) {
    const auto classes = call_operator<num_label_classes_by<num_label_classes_cpu>>(
        "num_label_classes", maps.op, maps.input, maps.target, maps.labels.ignore_index, mask_dim, maps.labels.table);
    return classes.item<int64_t>();
}

Tensor equal_label_counts(const Comparison& maps, std::optional<int64_t> mask_dim) {
    return call_operator<equal_label_counts_by<equal_label_counts_cpu>>("equal_label_counts", maps.op, maps.input,
                                                                        maps.target, maps.labels.ignore_index, mask_dim,
                                                                        maps.labels.table, maps.per_sample);
}

Tensor mask_counts(const Comparison& masks) {
    return call_operator<mask_counts_by<mask_counts_composite>>("mask_counts", masks.op, masks.input, masks.target,
                                                                masks.labels.ignore_index, masks.dim, masks.per_sample);
}

void check_tensors(const Comparison& given) {
    check_dense(given.op, given.input, "input");
    check_label_tensor(given.op, given.target);
    check_same_device(given.op, given.input, given.target, "target");
    check_label_table(given.op, given.target, given.labels.table, Target::labels);
}

void check_dim(const Comparison& given) {
    TORCH_CHECK_INDEX(given.dim >= 0 && given.dim < given.input.dim(), given.op, ": expected dim in [0, ",
                      given.input.dim() - 1, "], got ", given.dim);
}

void raise_no_label_maps(const Comparison& maps, int64_t dim, const char* kind) {
    const auto masks =
        maps.op == "confusion_matrix"
            ? c10::str("input.long().argmax(", dim, ") and target.long().argmax(", dim, ") where they are one-hot")
            : "masks=True for one mask for each class";
    TORCH_CHECK(false, maps.op, ": expected label maps, got input and target ", maps.input.sym_sizes(),
                " that are both ", kind, " along dimension ", dim, ", as masks of ", maps.input.sym_size(dim),
                " classes are. Give num_classes= for label maps, or ", masks);
}

void check_maps(const Comparison& maps) {
    check_dense(maps.op, maps.input, "input");
    TORCH_CHECK_TYPE(is_integer(maps.input), maps.op, ": expected a map of predicted labels, got ",
                     maps.input.scalar_type());
    check_tensors(maps);
    TORCH_CHECK(maps.input.sizes() == maps.target.sizes(), maps.op, ": expected label maps of one shape, got input ",
                maps.input.sizes(), " and target ", maps.target.sizes());
}

void check_label_maps(const Comparison& maps, std::optional<int64_t> mask_dim) {
    check_maps(maps);
    if (mask_dim && maps.input.numel() > 0 && is_one_hot(maps.op, maps.input, *mask_dim) &&
        is_one_hot(maps.op, maps.target, *mask_dim)) {
        raise_no_label_maps(maps, *mask_dim, "one-hot");
    }
}

void check_masks(const Comparison& masks) {
    check_maps(masks);
    check_dim(masks);
    check_ignore_index(masks.op, Target::masks, masks.labels.ignore_index);
}

c10::SymInt num_counted_apart(const Comparison& given) {
    const bool is_map = is_integer(given.input);
    return given.per_sample ? given.input.sym_size(is_map ? 0 : sample_dim(given.dim)) : 1;
}

Tensor valid_voxels(const Comparison& given) { return is_ignored(given.target, given.labels).logical_not_(); }

segloss_confusion maps_for_kernel(const Comparison& maps) { return kernel_arguments(maps, INT32_MAX); }

segloss_confusion confusion_for_kernel(const Comparison& given, const c10::SymInt& num_classes, bool per_class) {
    auto args = kernel_arguments(given, check_arguments(given, num_classes));
    args.per_class = per_class;
    return args;
}

void raise_refused_labels(const Comparison& given, int64_t num_classes) {
    check_label_values(given.op, given.target, num_classes, given.labels);
    check_predicted_values(given, num_classes);
    TORCH_CHECK_INDEX(false, given.op, ": a label of input ", given.input.sizes(), " or target ", given.target.sizes(),
                      " is outside [0, ", num_classes, ")");
}

Tensor confusion_counts_composite(const Comparison& given, const c10::SymInt& sym_num_classes, bool per_class) {
    const auto& [op, input, target, labels, dim, coarse, per_sample] = given;
    const auto num_classes = check_arguments(given, sym_num_classes);
    check_label_values(op, target, num_classes, labels);
    if (is_integer(input)) {
        check_predicted_values(given, num_classes);
    }
    const auto valid = valid_voxels(given);
    const auto classes = classes_of(target, labels);
    const auto predicted =
        is_integer(input) ? input.to(at::kLong) : largest_classes(input, coarse, dim, target.dim() == input.dim());
    if (!per_class) {
        const auto counts = histogram(given, classes * num_classes + predicted, valid, num_classes * num_classes);
        return counts.unflatten(-1, {num_classes, num_classes});
    }
    const auto hit = predicted.eq(classes).logical_and_(valid);
    const auto miss = predicted.ne(classes).logical_and_(valid);
    return at::stack({histogram(given, classes, hit, num_classes), histogram(given, predicted, miss, num_classes),
                      histogram(given, classes, miss, num_classes)});
}

Tensor equal_label_counts_composite(const Comparison& maps, std::optional<int64_t> mask_dim) {
    check_label_maps(maps, mask_dim);
    check_integral_labels(maps.op, maps.target);
    const bool has_table = maps.labels.table.has_value();
    if (has_table) {
        check_label_values(maps.op, maps.target, INT32_MAX, maps.labels);
    }
    const auto valid = valid_voxels(maps);
    const auto labels = has_table ? classes_of(maps.target, maps.labels) : maps.target;
    const CountedSamples samples(maps);
    const auto count = [&](const Tensor& where) {
        return maps.per_sample ? where.reshape({samples.count(), samples.size()}).sum(1) : where.sum();
    };
    return at::stack({count(equal_labels(maps.input, labels).logical_and_(valid)), count(valid)});
}

Tensor mask_counts_composite(const Comparison& masks) {
    check_masks(masks);
    auto ignored = is_ignored(masks.target, masks.labels);
    if (masks.target.is_floating_point()) {
        ignored = ignored.logical_and(masks.target.eq(masks.target.floor()));
    }
    const auto valid = ignored.any(masks.dim, /*keepdim=*/true).logical_not();
    const auto p = foreground(masks.op, masks.input, "input", valid);
    const auto t = foreground(masks.op, masks.target, "target", ignored.logical_not());
    std::vector<int64_t> voxel_dims(p.dim() + 1); // one more: a sum over no dimension is over all
    std::iota(voxel_dims.begin(), voxel_dims.end(), 0);
    voxel_dims.erase(voxel_dims.begin() + masks.dim);
    if (masks.per_sample) {
        voxel_dims.erase(voxel_dims.begin());
    }
    const bool is_transposed = masks.per_sample && masks.dim == 0; // classes come before samples
    const auto count = [&](const Tensor& where) {
        const auto sums = where.unsqueeze(-1).sum(voxel_dims);
        return is_transposed ? sums.t() : sums;
    };
    const auto predicted = count(p.logical_and(valid));
    const auto actual = count(t.logical_and_(valid));
    const auto both = count(t.logical_and(p));
    return at::stack({both, predicted - both, actual - both, count(valid) - predicted - actual + both});
}

TORCH_LIBRARY_FRAGMENT(segloss, m) {
    for (const auto* const schema :
         {"confusion_counts(str op, Tensor input, Tensor target, SymInt num_classes, int ignore_index, int dim, "
          "bool per_class, Tensor? label_table=None, int upsample=0, bool per_sample=False) -> Tensor",
          "num_label_classes(str op, Tensor input, Tensor target, int ignore_index, int? dim=None, "
          "Tensor? label_table=None) -> Tensor",
          "equal_label_counts(str op, Tensor input, Tensor target, int ignore_index, int? dim=None, "
          "Tensor? label_table=None, bool per_sample=False) -> Tensor",
          "mask_counts(str op, Tensor input, Tensor target, int ignore_index, int dim, bool per_sample=False) "
          "-> Tensor"}) {
        m.def(schema, {at::Tag::pt2_compliant_tag});
    }
}

TORCH_LIBRARY_IMPL(segloss, CPU, m) {
    m.impl("confusion_counts", TORCH_FN(confusion_counts_by<confusion_counts_cpu>));
    m.impl("num_label_classes", TORCH_FN(num_label_classes_by<num_label_classes_cpu>));
    m.impl("equal_label_counts", TORCH_FN(equal_label_counts_by<equal_label_counts_cpu>));
}

TORCH_LIBRARY_IMPL(segloss, Meta, m) {
    m.impl("confusion_counts", TORCH_FN(confusion_counts_by<confusion_counts_meta>));
    m.impl("num_label_classes", TORCH_FN(num_label_classes_by<num_label_classes_meta>));
    m.impl("equal_label_counts", TORCH_FN(equal_label_counts_by<equal_label_counts_meta>));
    m.impl("mask_counts", TORCH_FN(mask_counts_by<mask_counts_meta>));
}

// Devices without a kernel.
TORCH_LIBRARY_IMPL(segloss, CompositeExplicitAutograd, m) {
    m.impl("confusion_counts", TORCH_FN(confusion_counts_by<confusion_counts_composite>));
    m.impl("num_label_classes", TORCH_FN(num_label_classes_by<num_label_classes_composite>));
    m.impl("equal_label_counts", TORCH_FN(equal_label_counts_by<equal_label_counts_composite>));
    m.impl("mask_counts", TORCH_FN(mask_counts_by<mask_counts_composite>));
}

} // namespace segloss
