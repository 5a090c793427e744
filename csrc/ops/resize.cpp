#include "resize.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

namespace segloss {
namespace {

using at::Tensor;

// The dimension of the logits of the k-th axis, counted from the last one.
int64_t dim_of_axis(int64_t k, int64_t num_dims, int64_t class_dim) {
    const auto d = num_dims - 1 - k;
    return d > class_dim ? d : d - 1;
}

// Where the values at the indices of an axis come from, as in kernels.h.
struct Table {
    Tensor low, high;               // int64
    Tensor low_weight, high_weight; // float64; float32 where there is none
};

// The rule of torch.nn.functional.interpolate with mode="nearest", which rounds to float32. With "nearest-exact",
// nothing is rounded here: torch's own kernels differ where a place is between two values.
Tensor nearest_indices(const Tensor& index, const c10::SymInt& from, const c10::SymInt& to, bool is_exact) {
    if (is_exact) {
        return ((index * 2 + 1) * from).floor_divide(to * 2);
    }
    if (from == to) {
        return index;
    }
    if (to == from * 2) {
        return index.floor_divide(2);
    }
    const auto number = [&](const c10::SymInt& size) {
        return at::scalar_tensor(size, index.options().dtype(at::kFloat));
    };
    return (index.to(at::kFloat) * (number(from) / number(to))).floor().to(at::kLong).clamp_max(from - 1);
}

// Index i of `to` many is at the place (i + 1/2) from / to - 1/2, with aligned corners i (from - 1) / (to - 1): a
// quotient of integers, so that nothing is rounded before the fraction.
Table table_of(Resize::Mode mode, bool aligns_corners, const c10::SymInt& from, const c10::SymInt& to,
               c10::Device device) {
    const auto integers = at::TensorOptions(device).dtype(at::kLong);
    const auto wide = device.is_mps() ? at::kFloat : at::kDouble; // MPS has no float64
    const auto index = at::arange(to, integers);
    if (mode != Resize::linear) {
        const auto low = nearest_indices(index, from, to, mode == Resize::nearest_exact);
        const auto half = at::full_symint({to}, 0.5, integers.dtype(wide));
        return {low, low, half, half};
    }
    const auto numerator = aligns_corners ? index * (from - 1) : ((index * 2 + 1) * from - to).clamp_min(0);
    const auto denominator = aligns_corners ? (to - 1).max(1) : to * 2;
    const auto low = numerator.floor_divide(denominator);
    const auto fraction = (numerator - low * denominator).to(wide) / denominator;
    const auto is_single = fraction.eq(0).logical_or(low.eq(from - 1));
    const auto high_weight = fraction.masked_fill(is_single, 0.5);
    return {low, low + is_single.logical_not(), 1 - high_weight, high_weight};
}

int64_t bytes_of(segloss_dtype dtype) {
    constexpr std::array<int64_t, 12> kBytes{4, 8, 2, 2, 1, 1, 2, 2, 4, 4, 8, 8}; // by segloss_dtype
    return kBytes[dtype];
}

int64_t bytes_of_real(segloss_real real) { return real == SEGLOSS_REAL_DOUBLE ? 8 : 4; }

// The first num_dims indices of a position in these dimensions.
std::array<int64_t, SEGLOSS_MAX_DIMS> index_of(int64_t position, at::IntArrayRef sizes, int64_t num_dims) {
    std::array<int64_t, SEGLOSS_MAX_DIMS> index{};
    for (auto d = num_dims - 1; d >= 0; --d) {
        index[d] = position % sizes[d];
        position /= sizes[d];
    }
    return index;
}

constexpr int64_t kAlignment = 64;

// Input's sizes, with the target's along the axes that are resized. Raises unless the two fit.
c10::SymDimVector full_sizes(const std::string& op, const Tensor& input, const Tensor& target, int64_t dim,
                             const Resize& resize) {
    const auto num_axes = resize.num_axes();
    const auto num_dims = input.dim();
    TORCH_CHECK_VALUE(resize.is_valid() && num_axes < num_dims, op, ": expected upsample to be the code of one to ",
                      Resize::kMostAxes, " axes of input ", input.sym_sizes(), ", got ", resize.code());
    const bool has_classes = target.dim() == num_dims;
    TORCH_CHECK(has_classes || target.dim() == num_dims - 1, op, ": expected target [N, ...] or [N, 1, ...] for input ",
                input.sym_sizes(), " with upsample, got target ", target.sym_sizes());
    const auto classes = has_classes ? target.sym_size(dim) : c10::SymInt(1);
    TORCH_CHECK(classes == 1 || classes == input.sym_size(dim), op,
                ": expected a target with a class dimension of size 1 or ", input.sym_size(dim), " for input ",
                input.sym_sizes(), " with its classes in dimension ", dim, ", got target ", target.sym_sizes());
    c10::SymDimVector sizes(input.sym_sizes());
    const auto size_of_target = [&](int64_t d) { return target.sym_size(has_classes || d < dim ? d : d - 1); };
    for (int64_t k = 0; k < num_dims - 1; ++k) {
        const auto d = dim_of_axis(k, num_dims, dim);
        const auto size = size_of_target(d);
        if (k >= num_axes) {
            TORCH_CHECK_VALUE(size == sizes[d], op, ": expected input and target of the same samples, got input ",
                              input.sym_sizes(), " and target ", target.sym_sizes(),
                              ". upsample resizes only the last ", num_axes, num_axes == 1 ? " axis" : " axes");
        }
        TORCH_CHECK(k >= num_axes || (size > 0 && sizes[d] > 0), op,
                    ": Input and output sizes should be greater than 0 where upsample resizes, got input ",
                    input.sym_sizes(), " and target ", target.sym_sizes());
        sizes[d] = size;
    }
    return sizes;
}

} // namespace

int64_t Resize::num_axes() const {
    int64_t axes = 0;
    while (axes < kMostAxes && mode(axes) != none) {
        ++axes;
    }
    return axes;
}

Tensor Coarse::values(int64_t dim, at::ScalarType dtype) const {
    auto result = logits.to(dtype);
    const auto of_range = [&](const Tensor& tensor, int64_t d) { return tensor.narrow(d, range.begin, range.length); };
    for (auto k = logits.dim() - 2; k >= 0; --k) { // the last axis last, as it makes the most values
        const auto d = dim_of_axis(k, logits.dim(), dim);
        const bool is_part = range.length >= 0 && range.dim == d;
        if (k >= resize.num_axes() || logits.sym_size(d) == sizes[d]) {
            result = is_part ? of_range(result, d) : result;
            continue;
        }
        auto [low, high, low_weight, high_weight] =
            table_of(resize.mode(k), resize.aligns_corners(), logits.sym_size(d), sizes[d], logits.device());
        for (auto* const each : {&low, &high, &low_weight, &high_weight}) {
            *each = is_part ? of_range(*each, 0) : *each;
        }
        if (resize.mode(k) != Resize::linear) {
            result = result.index_select(d, low);
            continue;
        }
        const auto weighted = [&](const Tensor& index, const Tensor& weight) {
            c10::SymDimVector shape(logits.dim(), 1);
            shape[d] = index.sym_size(0);
            return result.index_select(d, index) * weight.to(dtype).view_symint(shape);
        };
        result = weighted(low, low_weight) + weighted(high, high_weight);
    }
    return result;
}

std::optional<Coarse> take_full_size(const std::string& op, Tensor& input, const Tensor& target, int64_t dim,
                                     int64_t upsample) {
    if (upsample == 0) {
        return std::nullopt;
    }
    Coarse coarse{input, Resize(upsample), full_sizes(op, input, target, dim, Resize(upsample)), {}};
    if (input.sym_sizes() == c10::SymIntArrayRef(coarse.sizes)) {
        return std::nullopt;
    }
    input = at::empty({}, input.options()).expand_symint(coarse.sizes);
    return coarse;
}

segloss_tensor Piece::of(const segloss_tensor& whole) const {
    segloss_tensor part = whole;
    int64_t offset = 0;
    for (int d = 0; d < num_outer + SEGLOSS_AXES; ++d) {
        offset += index[d] * whole.strides[d];
    }
    const auto* of_axes = whole.strides + num_outer;
    part.data = whole.data ? static_cast<char*>(whole.data) + offset * bytes_of(whole.dtype) : nullptr;
    part.strides[0] = of_axes[positions.num_dims == 2 ? SEGLOSS_ROWS : SEGLOSS_COLUMNS];
    part.strides[1] = of_axes[SEGLOSS_COLUMNS];
    return part;
}

segloss_label_table Piece::of(const segloss_label_table& whole) const {
    auto own = whole;
    if (whole.row_positions > 0) {
        own.rows += first / whole.row_positions * whole.row_size;
        own.row_positions = 0;
    }
    return own;
}

ResizedWalk::ResizedWalk(const Tensor& logits, at::IntArrayRef sizes, int64_t dim, const Resize& resize,
                         at::ScalarType compute_dtype, const Tensor& grad)
    : logits_(logits), grad_(grad), dim_(dim), real_(real_of(compute_dtype)) {
    const auto num_axes = resize.num_axes();
    const auto num_dims = static_cast<int64_t>(sizes.size()); // of positions
    num_outer_ = num_dims - num_axes;
    constexpr int64_t kMostOuter = int64_t{SEGLOSS_MAX_DIMS} - SEGLOSS_AXES;
    TORCH_CHECK(num_outer_ <= kMostOuter, "segloss: expected at most ", kMostOuter,
                " dimensions besides those that upsample resizes, got positions ", sizes);
    sizes_.assign(sizes.begin(), sizes.begin() + num_outer_);
    num_samples_ = c10::multiply_integers(sizes_);
    const auto from_sizes = position_sizes(logits, dim);
    args_.num_classes = logits.size(dim);
    for (int axis = 0; axis < SEGLOSS_AXES; ++axis) {
        const auto k = SEGLOSS_AXES - 1 - axis; // counted from the last one
        const auto d = num_dims - 1 - k;
        const bool exists = k < num_axes;
        const auto from = exists ? from_sizes[d] : 1, to = exists ? sizes[d] : 1;
        const auto table =
            table_of(exists ? resize.mode(k) : Resize::nearest, resize.aligns_corners(), from, to, at::kCPU);
        for (const auto& index : {table.low, table.high}) {
            tables_.push_back(index.to(at::kInt));
        }
        for (const auto& weight : {table.low_weight, table.high_weight}) {
            tables_.push_back(weight.to(compute_dtype));
        }
        const auto* const of_axis = &tables_[4 * axis];
        args_.axes[axis] = {of_axis[0].const_data_ptr<int32_t>(),
                            of_axis[1].const_data_ptr<int32_t>(),
                            of_axis[2].const_data_ptr(),
                            of_axis[3].const_data_ptr(),
                            to,
                            from};
        sizes_.push_back(to);
    }
    TORCH_CHECK(*std::max_element(from_sizes.begin(), from_sizes.end()) <= INT32_MAX, "segloss: expected at most ",
                INT32_MAX, " values along an axis to resize");
    const auto plan = kernels().resize_plan[real_];
    tables_.push_back(at::empty({plan(&args_.axes[SEGLOSS_COLUMNS], nullptr)}, at::kByte));
    plan(&args_.axes[SEGLOSS_COLUMNS], tables_.back().mutable_data_ptr());
    args_.plan = tables_.back().const_data_ptr();
    describe({{&logits_, &args_.from}, {&grad_, &args_.grad}});
    rows_join_ = true;
    constexpr int64_t kElements = int64_t{1} << 15;
    const auto most =
        std::max<int64_t>(kElements / std::max<int64_t>(args_.num_classes, 1) / SEGLOSS_BLOCK, 1) * SEGLOSS_BLOCK;
    piece_columns_ = std::min(most, size_of(SEGLOSS_COLUMNS));
    piece_rows_ = std::clamp<int64_t>(most / std::max<int64_t>(size_of(SEGLOSS_COLUMNS), 1), 1,
                                      std::max<int64_t>(size_of(SEGLOSS_ROWS), 1));
    constexpr int64_t kLine = 16;
    class_stride_ =
        (piece_rows_ * piece_columns_ + kLine - 1) / kLine * kLine + kLine; // room for a vector past the end
    find_borders();
}

segloss_positions ResizedWalk::describe(at::ArrayRef<Operand> operands) {
    const auto num_dims = position_sizes(logits_, dim_).size();
    segloss_positions positions{static_cast<int>(sizes_.size()), {}};
    std::copy(sizes_.begin(), sizes_.end(), positions.sizes);
    const auto num_missing = static_cast<int64_t>(sizes_.size() - num_dims); // axes, after the other dimensions
    for (const auto& [tensor, view] : operands) {
        *view = view_of(*tensor, num_dims, dim_);
        for (int64_t d = 0; d < static_cast<int64_t>(num_dims); ++d) {
            view->strides[d < num_outer_ ? d : d + num_missing] = position_stride(*tensor, num_dims, dim_, d);
        }
        const auto* of_axes = view->strides + num_outer_;
        rows_join_ = rows_join_ && of_axes[SEGLOSS_ROWS] == size_of(SEGLOSS_COLUMNS) * of_axes[SEGLOSS_COLUMNS];
    }
    return positions;
}

// Chunks have some 2^18 values, but a sample has eight chunks if it can. With a gradient, each begins past the values
// that the last but one has touched.
void ResizedWalk::find_borders() {
    constexpr int64_t kElements = int64_t{1} << 18, kFewChunks = 8;
    const auto from_of = [&](int axis) { return args_.axes[axis].size_from; };
    const bool only_columns = size_of(SEGLOSS_PLANES) == 1 && size_of(SEGLOSS_ROWS) == 1;
    split_ = only_columns                                       ? SEGLOSS_COLUMNS
             : from_of(SEGLOSS_PLANES) >= from_of(SEGLOSS_ROWS) ? SEGLOSS_PLANES
                                                                : SEGLOSS_ROWS;
    const auto& axis = args_.axes[split_];
    const int64_t unit = only_columns ? SEGLOSS_BLOCK : 1;
    int64_t of_index = args_.num_classes; // values
    for (int other = 0; other < SEGLOSS_AXES; ++other) {
        of_index *= other == split_ ? 1 : size_of(other);
    }
    const auto most = std::max<int64_t>(axis.size / kFewChunks, 1);
    const auto length = std::clamp<int64_t>(kElements / std::max<int64_t>(of_index, 1), 1, most);
    borders_ = {0};
    int64_t touched = -1; // by the chunk before the one that is being found
    while (borders_.back() < axis.size) {
        auto end = (borders_.back() + length + unit - 1) / unit * unit;
        while (grad_.defined() && end < axis.size && axis.low[end] <= touched) {
            end += unit;
        }
        borders_.push_back(std::min(end, axis.size));
        touched = axis.high[borders_.back() - 1];
    }
}

bool ResizedWalk::run(c10::function_ref<int64_t(int64_t chunk, const Piece&)> kernel, int64_t most_threads) const {
    std::atomic<bool> accepted{true};
    const auto count = num_chunks();
    const auto size = bytes_of_real(real_) * (2 * args_.num_classes * class_stride_ + segloss_resize_workspace(&args_));
    const auto threads = std::min({num_threads(), count, most_threads});
    const auto scratch = at::empty({threads, (size + kAlignment - 1) / kAlignment * kAlignment}, at::kByte);
    auto* const memory = static_cast<char*>(scratch.mutable_data_ptr());
    const int64_t step = grad_.defined() ? 2 : 1;
    for (int64_t first = 0; first < step; ++first) {
        std::atomic<int64_t> next{first};
        at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
            auto* const own = memory + at::get_thread_num() * scratch.stride(0);
            for (auto chunk = next.fetch_add(step); chunk < count && accepted; chunk = next.fetch_add(step)) {
                const auto visit = [&](const Piece& piece) { return kernel(chunk, piece) < 0; };
                if (!visit_chunk(chunk, own, visit)) {
                    accepted = false;
                }
            }
        });
    }
    return accepted;
}

segloss_resize ResizedWalk::args_of_sample(int64_t sample, void* workspace) const {
    auto args = args_;
    args.workspace = workspace;
    const auto index = index_of(sample, sizes_, num_outer_);
    for (auto* const tensor : {&args.from, &args.grad}) {
        int64_t offset = 0;
        for (int64_t d = 0; d < num_outer_; ++d) {
            offset += index[d] * tensor->strides[d];
        }
        tensor->data = tensor->data ? static_cast<char*>(tensor->data) + offset * bytes_of(tensor->dtype) : nullptr;
        std::copy_n(tensor->strides + num_outer_, SEGLOSS_AXES, tensor->strides);
    }
    return args;
}

bool ResizedWalk::visit_chunk(int64_t chunk, char* scratch, Visit visit) const {
    const auto sample = chunk / chunks_per_sample();
    const auto part = chunk % chunks_per_sample();
    int64_t begin[SEGLOSS_AXES] = {0, 0, 0};
    int64_t end[SEGLOSS_AXES] = {size_of(SEGLOSS_PLANES), size_of(SEGLOSS_ROWS), size_of(SEGLOSS_COLUMNS)};
    begin[split_] = borders_[part];
    end[split_] = borders_[part + 1];
    const auto piece_bytes = bytes_of_real(real_) * args_.num_classes * class_stride_;
    const auto args = args_of_sample(sample, scratch + 2 * piece_bytes);
    Piece piece{};
    piece.num_outer = static_cast<int>(num_outer_);
    piece.index = index_of(sample, sizes_, num_outer_);
    const auto dtype = real_ == SEGLOSS_REAL_DOUBLE ? SEGLOSS_FLOAT64 : SEGLOSS_FLOAT32;
    piece.logits = {scratch, dtype, class_stride_, {}};
    piece.grad = {grad_.defined() ? scratch + piece_bytes : nullptr, dtype, class_stride_, {}};
    auto* const index = piece.index.data() + num_outer_;
    for (index[0] = begin[0]; index[0] < end[0]; ++index[0]) {
        for (index[1] = begin[1]; index[1] < end[1]; index[1] += piece_rows_) {
            for (index[2] = begin[2]; index[2] < end[2]; index[2] += piece_columns_) {
                piece.first = ((sample * size_of(0) + index[0]) * size_of(1) + index[1]) * size_of(2) + index[2];
                const auto num_rows = std::min(piece_rows_, end[1] - index[1]);
                if (!visit_piece(piece, args, num_rows, std::min(piece_columns_, end[2] - index[2]), visit)) {
                    return false;
                }
            }
        }
    }
    return true;
}

bool ResizedWalk::visit_piece(Piece& piece, const segloss_resize& args, int64_t num_rows, int64_t num_columns,
                              Visit visit) const {
    const auto* const index = piece.index.data() + num_outer_;
    piece.count = num_rows * num_columns;
    piece.positions = num_rows == 1 || rows_join_ ? segloss_positions{1, {piece.count}}
                                                  : segloss_positions{2, {num_rows, num_columns}};
    for (auto* const tensor : {&piece.logits, &piece.grad}) {
        tensor->strides[0] = piece.positions.num_dims == 1 ? 1 : num_columns;
        tensor->strides[1] = 1;
    }
    const auto place = [&](const segloss_tensor& tensor, int64_t row) {
        return static_cast<char*>(tensor.data) + row * num_columns * bytes_of_real(real_);
    };
    const auto end = index[2] + num_columns;
    for (int64_t row = 0; row < num_rows; ++row) {
        kernels().resize_row[real_](&args, index[0], index[1] + row, index[2], end, place(piece.logits, row),
                                    class_stride_);
    }
    if (!visit(piece)) {
        return false;
    }
    for (int64_t row = 0; piece.grad.data && row < num_rows; ++row) {
        kernels().resize_row_grad[real_](&args, index[0], index[1] + row, index[2], end, place(piece.grad, row),
                                         class_stride_);
    }
    return true;
}

} // namespace segloss
