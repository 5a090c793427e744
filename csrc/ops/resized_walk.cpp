#include "resized_walk.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

#include "checks.h"

namespace segloss {

using at::Tensor;

namespace {

segloss_dtype dtype_of(segloss_real real) { return real == SEGLOSS_REAL_DOUBLE ? SEGLOSS_FLOAT64 : SEGLOSS_FLOAT32; }

int64_t bytes_of_real(segloss_real real) { return segloss_dtype_size(dtype_of(real)); }

constexpr int64_t kAlignment = 64;

} // namespace

segloss_tensor Piece::of(const segloss_tensor& whole) const {
    segloss_tensor part = whole;
    int64_t offset = 0;
    for (int d = 0; d < num_outer + SEGLOSS_AXES; ++d) {
        offset += index[d] * whole.strides[d];
    }
    const auto* of_axes = whole.strides + num_outer;
    part.data = whole.data ? static_cast<char*>(whole.data) + offset * segloss_dtype_size(whole.dtype) : nullptr;
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

ResizedWalk::ResizedWalk(const Coarse& coarse, int64_t dim, at::ScalarType compute_dtype, const Tensor& grad)
    : logits_(coarse.logits), grad_(grad), dim_(dim), num_outer_(logits_.dim() - 1 - coarse.resize.num_axes()),
      real_(real_of(compute_dtype)) {
    constexpr int64_t kMostOuter = int64_t{SEGLOSS_MAX_DIMS} - SEGLOSS_AXES;
    TORCH_CHECK(num_outer_ <= kMostOuter, "segloss: expected at most ", kMostOuter,
                " dimensions besides those that upsample resizes, got input ", logits_.sizes());
    const auto from_sizes = position_sizes(logits_, dim);
    sizes_.assign(from_sizes.begin(), from_sizes.begin() + num_outer_);
    num_samples_ = c10::multiply_integers(sizes_);
    args_.num_classes = logits_.size(dim);
    for (int axis = 0; axis < SEGLOSS_AXES; ++axis) {
        add_axis(axis, coarse, compute_dtype);
    }
    const auto plan = kernels().resize_plan[real_];
    tables_.push_back(at::empty({plan(&args_.axes[SEGLOSS_COLUMNS], nullptr)}, at::kByte));
    plan(&args_.axes[SEGLOSS_COLUMNS], tables_.back().mutable_data_ptr());
    args_.plan = tables_.back().const_data_ptr();
    describe({{&logits_, &args_.from}, {&grad_, &args_.grad}});
    rows_join_ = true; // in scratch memory they do
    choose_pieces();
    find_borders();
}

// An axis that does not exist has one index, nearest to the one value.
void ResizedWalk::add_axis(int axis, const Coarse& coarse, at::ScalarType compute_dtype) {
    const int64_t k = SEGLOSS_AXES - 1 - axis; // counted from the last one
    const bool exists = k < coarse.resize.num_axes();
    const auto d = exists ? dim_of_axis(k, logits_.dim(), dim_) : 0;
    const auto from = exists ? logits_.size(d) : 1;
    const auto to = exists ? coarse.sizes[d].expect_int() : 1;
    TORCH_CHECK(from <= INT32_MAX, "segloss: expected at most ", INT32_MAX, " values along an axis to resize, got ",
                from);
    const auto mode = exists ? coarse.resize.mode(k) : Resize::nearest;
    const auto table = table_of(mode, coarse.resize.aligns_corners(), from, to, at::kCPU);
    const auto kept = [&](const Tensor& values, at::ScalarType dtype) {
        return tables_.emplace_back(values.to(dtype).contiguous()).const_data_ptr();
    };
    args_.axes[axis] = {static_cast<const int32_t*>(kept(table.low, at::kInt)),
                        static_cast<const int32_t*>(kept(table.high, at::kInt)),
                        kept(table.low_weight, compute_dtype),
                        kept(table.high_weight, compute_dtype),
                        to,
                        from};
    sizes_.push_back(to);
}

// Pieces have some 2^15 values, so that these and their gradient stay in the L2 cache: blocks of a row, or whole rows.
void ResizedWalk::choose_pieces() {
    constexpr int64_t kElements = int64_t{1} << 15, kLine = 16;
    const auto columns = std::max<int64_t>(size_of(SEGLOSS_COLUMNS), 1);
    const auto blocks = kElements / std::max<int64_t>(args_.num_classes, 1) / SEGLOSS_BLOCK;
    const auto most = std::max<int64_t>(blocks, 1) * SEGLOSS_BLOCK;
    piece_columns_ = std::min(most, columns);
    piece_rows_ = std::clamp<int64_t>(most / columns, 1, std::max<int64_t>(size_of(SEGLOSS_ROWS), 1));
    // Room for a vector past the end, and no power of two, which would map all classes to a few cache sets.
    class_stride_ = (piece_rows_ * piece_columns_ + kLine - 1) / kLine * kLine + kLine;
}

segloss_positions ResizedWalk::describe(at::ArrayRef<Operand> operands) {
    const auto num_dims = logits_.dim() - 1;
    segloss_positions positions{static_cast<int>(sizes_.size()), {}};
    std::copy(sizes_.begin(), sizes_.end(), positions.sizes);
    const auto num_missing = positions.num_dims - num_dims; // axes, after the other dimensions
    for (const auto& [tensor, view] : operands) {
        *view = view_of(*tensor, num_dims, dim_);
        for (int64_t d = 0; d < num_dims; ++d) {
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

std::vector<int64_t> ResizedWalk::index_of_sample(int64_t sample) const {
    return index_of(sample, at::IntArrayRef(sizes_).slice(0, num_outer_));
}

segloss_resize ResizedWalk::args_of_sample(int64_t sample, void* workspace) const {
    auto args = args_;
    args.workspace = workspace;
    const auto index = index_of_sample(sample);
    for (auto* const tensor : {&args.from, &args.grad}) {
        int64_t offset = 0;
        for (int64_t d = 0; d < num_outer_; ++d) {
            offset += index[d] * tensor->strides[d];
        }
        tensor->data =
            tensor->data ? static_cast<char*>(tensor->data) + offset * segloss_dtype_size(tensor->dtype) : nullptr;
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
    const auto of_sample = index_of_sample(sample);
    std::copy(of_sample.begin(), of_sample.end(), piece.index.begin());
    const auto dtype = dtype_of(real_);
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
