// The tables of the interpolation to another size, and the gradient of the logits that are interpolated.
//
// The cell of a coarse index has the voxels that lie between its value and the next one: those with this `low`. The
// gradient of a coarse value is a sum over the cells around it. A lane walks along one column of cells, from row to
// row; it computes the gradient of each voxel once, adds its parts of the value on the left and of the one on the right
// and hands the latter to the next lane. So a value is a sum in one order, without atomics, and written once.

#include <algorithm>

#include "interpolation.cuh"
#include "launch.cuh"
#include "warp_softmax.cuh"

namespace {

// ---- tables ----

struct AxisTables {
    TileAxis axes[SEGLOSS_AXES];
    segloss_axis_mode modes[SEGLOSS_AXES];
    int aligns_corners;
};

// As torch does it: "nearest" rounds to float32.
__device__ inline int64_t nearest_index(const TileAxis& axis, segloss_axis_mode mode, int64_t i) {
    const int64_t size = axis.size, from = axis.size_from;
    if (mode == SEGLOSS_NEAREST_EXACT) {
        return (2 * i + 1) * from / (2 * size);
    }
    if (size == 2 * from) {
        return i / 2;
    }
    const float step = static_cast<float>(from) / static_cast<float>(size);
    const auto index = static_cast<int64_t>(floorf(static_cast<float>(i) * step));
    return index < from ? index : from - 1;
}

// The place of an index is a quotient of integers, so that nothing is rounded before the fraction.
__device__ inline AxisEntry linear_entry(const TileAxis& axis, bool aligns_corners, int64_t i) {
    const int64_t size = axis.size, from = axis.size_from;
    const int64_t centered = (2 * i + 1) * from - size;
    const int64_t numerator = aligns_corners ? i * (from - 1) : centered < 0 ? 0 : centered;
    const int64_t denominator = aligns_corners ? (size > 1 ? size - 1 : 1) : 2 * size;
    const int64_t low = numerator / denominator, rest = numerator % denominator;
    const bool is_single = rest == 0 || low == from - 1;
    const double high_weight = is_single ? 0.5 : static_cast<double>(rest) / static_cast<double>(denominator);
    return {static_cast<int>(low), static_cast<int>(low) + (is_single ? 0 : 1), static_cast<float>(1 - high_weight),
            static_cast<float>(high_weight)};
}

__device__ inline AxisEntry entry_at(const AxisTables& tables, int k, int64_t i) {
    const auto& axis = tables.axes[k];
    if (axis.blends) {
        return linear_entry(axis, tables.aligns_corners, i);
    }
    const auto index = static_cast<int>(axis.size == axis.size_from ? i : nearest_index(axis, tables.modes[k], i));
    return {index, index, 0.5f, 0.5f};
}

// The grid's second dimension is the axes. Thread i fills entry i, and `first` from the entry before on.
__global__ void __launch_bounds__(THREADS) fill_tables(const __grid_constant__ AxisTables tables) {
    const int k = static_cast<int>(blockIdx.y);
    const auto& axis = tables.axes[k];
    const int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (i > axis.size) {
        return;
    }
    int low = axis.size_from;
    if (i < axis.size) {
        const AxisEntry entry = entry_at(tables, k, i);
        axis.entries[i] = entry;
        low = entry.low;
    }
    const int before = i == 0 ? -1 : entry_at(tables, k, i - 1).low;
    for (int j = before + 1; j <= low; ++j) {
        axis.first[j] = static_cast<int>(i);
    }
}

// ---- the gradient ----

constexpr int CELLS = LANES - 1; // of a warp, side by side; its first lane has the cell before them

// How the coarse values are divided among warps: groups of classes, of columns and of rows.
struct GradGrid {
    int class_groups, column_groups, row_groups;
    int rows_per_group;
    int64_t num_warps;
};

// What a warp owns: K classes of some rows and columns of a plane.
struct GradPart {
    int first_class, first_column, begin_row, end_row, plane;
    int64_t sample;

    __device__ GradPart(const TileResize& resize, const GradGrid& grid, int64_t index, int classes) {
        const auto next = [&](int count) {
            const auto place = static_cast<int>(index % count);
            index /= count;
            return place;
        };
        first_class = next(grid.class_groups) * classes;
        first_column = next(grid.column_groups) * CELLS;
        begin_row = next(grid.row_groups) * grid.rows_per_group;
        end_row = begin_row + grid.rows_per_group;
        const int num_rows = resize.axes[SEGLOSS_ROWS].size_from;
        end_row = end_row < num_rows ? end_row : num_rows;
        plane = next(resize.axes[SEGLOSS_PLANES].size_from);
        sample = index;
    }
};

__device__ inline bool is_single(const AxisEntry& entry) { return entry.low == entry.high; }

// The weight of an index for a coarse one.
__device__ inline float weight_for(const AxisEntry& entry, int coarse) {
    return entry.low == coarse    ? (is_single(entry) ? 1 : entry.low_weight)
           : entry.high == coarse ? entry.high_weight
                                  : 0;
}

// Numbers of the K classes at the left and at the right of a cell.
template <int K> struct Sides {
    float left[K], right[K];

    __device__ void clear() {
        UNROLL for (int k = 0; k < K; ++k) { left[k] = right[k] = 0; }
    }

    __device__ void add(float factor, const Sides& other) {
        UNROLL for (int k = 0; k < K; ++k) {
            left[k] = fmaf(factor, other.left[k], left[k]);
            right[k] = fmaf(factor, other.right[k], right[k]);
        }
    }
};

// A lane's column of cells.
template <int K, bool SLOPES> class CellColumn {
public:
    __device__ CellColumn(const segloss_cross_entropy& args, const TileResize& of_call, const GradPart& of_warp,
                          const float* by_prediction)
        : a(args), resize(of_call), part(of_warp),
          column(of_warp.first_column - 1 + static_cast<int>(threadIdx.x % LANES)) {
        const auto& columns = resize.axes[SEGLOSS_COLUMNS];
        const bool exists = column >= 0 && column < columns.size_from;
        begin_ = exists ? columns.first[column] : 0;
        end_ = exists ? columns.first[column + 1] : 0;
        left_ = exists ? column : 0;
        right_ = left_ + 1 < columns.size_from ? left_ + 1 : left_;
        UNROLL for (int k = 0; k < K; ++k) { b_[k] = SLOPES && has_class(k) ? by_prediction[part.first_class + k] : 0; }
    }

    __device__ bool has_class(int k) const { return part.first_class + k < a.num_classes; }

    // Adds the gradients of the cells in a row of them to those of this coarse row and of the next one.
    __device__ void add_cells(int row, Sides<K>* own, Sides<K>* next) const {
        const auto& planes = resize.axes[SEGLOSS_PLANES];
        const int begin = planes.first[part.plane > 0 ? part.plane - 1 : 0], end = planes.first[part.plane + 1];
        for (int plane = begin; plane < end; ++plane) {
            const AxisEntry entry = entry_of(planes, plane);
            const float weight = weight_for(entry, part.plane);
            if (weight != 0) {
                add_plane(plane, entry, weight, row, own, next);
            }
        }
    }

private:
    // The values at both sides in a coarse row, of a plane between two.
    __device__ void read(const AxisEntry& plane, int row, Sides<K>* values) const {
        const auto &rows = resize.axes[SEGLOSS_ROWS], &columns = resize.axes[SEGLOSS_COLUMNS];
        const int of_row = row < rows.size_from ? row : rows.size_from - 1;
        const auto line_of = [&](int of_plane) {
            return (static_cast<int64_t>(of_plane) * rows.size_from + of_row) * columns.size_from;
        };
        const float* const of_class = resize.from + (part.sample * a.num_classes + part.first_class) * resize.size_from;
        const auto value = [&](int k, int64_t line, int of_column) {
            return has_class(k) ? load_global(of_class + k * resize.size_from + line + of_column) : 0;
        };
        const int64_t low = line_of(plane.low), high = line_of(plane.high);
        UNROLL for (int k = 0; k < K; ++k) {
            values->left[k] = value(k, low, left_);
            values->right[k] = value(k, low, right_);
        }
        if (!is_single(plane)) {
            UNROLL for (int k = 0; k < K; ++k) {
                values->left[k] = plane.low_weight * values->left[k] + plane.high_weight * value(k, high, left_);
                values->right[k] = plane.low_weight * values->right[k] + plane.high_weight * value(k, high, right_);
            }
        }
    }

    __device__ void add_plane(int plane, const AxisEntry& of_plane, float weight, int row, Sides<K>* own,
                              Sides<K>* next) const {
        const auto& rows = resize.axes[SEGLOSS_ROWS];
        Sides<K> low, high;
        read(of_plane, row, &low);
        read(of_plane, row + 1, &high);
        for (int i = rows.first[row]; i < rows.first[row + 1]; ++i) {
            const AxisEntry entry = entry_of(rows, i);
            Sides<K> values = low, sums;
            if (!is_single(entry)) {
                values.clear();
                values.add(entry.low_weight, low);
                values.add(entry.high_weight, high);
            }
            sums.clear();
            add_line(static_cast<int64_t>(plane) * rows.size + i, values, &sums);
            own->add(weight * weight_for(entry, row), sums);
            if (!is_single(entry)) {
                next->add(weight * entry.high_weight, sums);
            }
        }
    }

    // Adds the gradients of the voxels of a line; `values` are those of the sides there.
    __device__ void add_line(int64_t line, const Sides<K>& values, Sides<K>* sums) const {
        const auto& columns = resize.axes[SEGLOSS_COLUMNS];
        const int64_t first = part.sample * a.positions.sizes[1] + line * columns.size;
        for (int i = begin_; i < end_; ++i) {
            const uint4 vector = load_global(reinterpret_cast<const uint4*>(resize.states + first + i));
            const auto& v = *reinterpret_cast<const VoxelState*>(&vector);
            if (v.label < 0 && v.max == v.max) {
                continue;
            }
            const float slope = SLOPES ? load_global(resize.slopes + first + i) : 0;
            add_voxel(v, slope, entry_of(columns, i), values, sums);
        }
    }

    // As TileExponentials does.
    static __device__ void find_powers(float max, float (*x)[K]) {
        const float scaled_max = max * LOG2_E;
        if (__builtin_expect(is_huge(max), 0)) {
            UNROLL for (auto& logit : *x) { logit = (logit - max) * LOG2_E; }
        } else {
            UNROLL for (auto& logit : *x) { logit = fmaf(logit, LOG2_E, -scaled_max); }
        }
    }

    __device__ void add_voxel(const VoxelState& v, float slope, const AxisEntry& entry, const Sides<K>& values,
                              Sides<K>* sums) const {
        const bool single = is_single(entry);
        const float low_weight = single ? 1 : entry.low_weight;
        float x[K];
        UNROLL for (int k = 0; k < K; ++k) {
            const float blended = fmaf(entry.high_weight, values.right[k], low_weight * values.left[k]);
            x[k] = single ? values.left[k] : blended;
        }
        find_powers(v.max, &x);
        UNROLL for (int k = 0; k < K; ++k) {
            const float factor = SLOPES ? fmaf(slope, b_[k], v.constant) : v.constant;
            const float of_other = fast_exp2(x[k]) * factor;
            x[k] = part.first_class + k == v.label ? v.of_label : of_other;
            sums->left[k] = fmaf(low_weight, x[k], sums->left[k]);
        }
        if (!single) {
            UNROLL for (int k = 0; k < K; ++k) { sums->right[k] = fmaf(entry.high_weight, x[k], sums->right[k]); }
        }
    }

public:
    const segloss_cross_entropy& a;
    const TileResize& resize;
    const GradPart& part;
    const int column; // coarse

private:
    int begin_, end_; // the columns of voxels
    int left_, right_;
    float b_[K];
};

// Writes the gradients of a coarse row; a value gets the right sides of the lane before.
template <int K, bool SLOPES>
__device__ void store_row(const CellColumn<K, SLOPES>& cells, const segloss_tensor& grad, int row,
                          const Sides<K>& sums) {
    const auto& part = cells.part;
    const int64_t offset = part.sample * grad.strides[0] + part.plane * grad.strides[1 + SEGLOSS_PLANES] +
                           row * grad.strides[1 + SEGLOSS_ROWS] + cells.column * grad.strides[1 + SEGLOSS_COLUMNS];
    const bool is_owned = threadIdx.x % LANES > 0 && cells.column < cells.resize.axes[SEGLOSS_COLUMNS].size_from;
    UNROLL for (int k = 0; k < K; ++k) {
        const float sum = sums.left[k] + __shfl_up_sync(ALL_LANES, sums.right[k], 1);
        if (is_owned && cells.has_class(k)) {
            store_at(grad, offset + (part.first_class + k) * grad.stride_class, sum);
        }
    }
}

template <int K, bool SLOPES>
__global__ void __launch_bounds__(THREADS)
    resized_grad(const __grid_constant__ segloss_cross_entropy a, const __grid_constant__ TileResize resize,
                 const __grid_constant__ segloss_tensor grad, const __grid_constant__ GradGrid grid,
                 const float* by_prediction, int unless_one) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * WARPS + threadIdx.x / LANES;
    if (is_written<float>(a, unless_one) || index >= grid.num_warps) {
        return;
    }
    const GradPart part(resize, grid, index, K);
    const CellColumn<K, SLOPES> cells(a, resize, part, SLOPES ? by_prediction + part.sample * a.num_classes : nullptr);
    Sides<K> own, next;
    next.clear();
    for (int row = part.begin_row - 1; row < part.end_row; ++row) {
        own = next;
        next.clear();
        if (row >= 0) {
            cells.add_cells(row, &own, &next);
        }
        if (row >= part.begin_row) {
            store_row(cells, grad, row, own);
        }
    }
}

// ---- launching ----

constexpr int MAX_CLASSES_OF_LANE = 5;

// As few lanes without a class as possible, and as many classes of a lane.
int classes_per_lane(int64_t num_classes) {
    int best = 2;
    const auto wanted = [&](int number) { return (num_classes + number - 1) / number * number; };
    for (int number = best + 1; number <= MAX_CLASSES_OF_LANE; ++number) {
        best = wanted(number) <= wanted(best) ? number : best;
    }
    return best;
}

// Each group of rows computes a row of cells twice, but there must be many groups. They do not affect a result's bits.
GradGrid grid_of(const TileCall& tiles, int classes) {
    constexpr int64_t MANY_WARPS = 16384, MOST_ROWS = 16;
    const auto& resize = tiles.grid.resize;
    const int64_t rows = resize.axes[SEGLOSS_ROWS].size_from;
    GradGrid grid = {};
    grid.class_groups = static_cast<int>((tiles.args.num_classes + classes - 1) / classes);
    grid.column_groups = (resize.axes[SEGLOSS_COLUMNS].size_from + CELLS - 1) / CELLS;
    const int64_t others =
        tiles.args.positions.sizes[0] * resize.axes[SEGLOSS_PLANES].size_from * grid.class_groups * grid.column_groups;
    const int64_t per_group = std::clamp<int64_t>(rows * others / MANY_WARPS, 1, MOST_ROWS);
    grid.rows_per_group = static_cast<int>(per_group);
    grid.row_groups = static_cast<int>((rows + per_group - 1) / per_group);
    grid.num_warps = others * grid.row_groups;
    return grid;
}

template <int K>
int launch_grad(const TileCall& tiles, const segloss_cuda_call& call, const float* by_prediction, int unless_one) {
    const GradGrid grid = grid_of(tiles, K);
    const auto kernel = by_prediction ? resized_grad<K, true> : resized_grad<K, false>;
    return launch(call, {(grid.num_warps + WARPS - 1) / WARPS}, kernel, tiles.args, tiles.grid.resize,
                  call.resize->grad, grid, by_prediction, unless_one);
}

} // namespace

int launch_axis_tables(const TileCall& tiles, const segloss_cuda_call& call) {
    AxisTables tables = {};
    int64_t largest = 0;
    for (int k = 0; k < SEGLOSS_AXES; ++k) {
        tables.axes[k] = tiles.grid.resize.axes[k];
        tables.modes[k] = call.resize->axes[k].mode;
        largest = std::max<int64_t>(largest, tables.axes[k].size);
    }
    tables.aligns_corners = call.resize->aligns_corners;
    return launch(call, {largest / THREADS + 1, SEGLOSS_AXES}, fill_tables, tables);
}

int launch_resized_grad(const TileCall& tiles, const segloss_cuda_call& call, const void* by_prediction,
                        int unless_one) {
    const auto* const b = static_cast<const float*>(by_prediction);
    switch (classes_per_lane(tiles.args.num_classes)) {
    case 2:
        return launch_grad<2>(tiles, call, b, unless_one);
    case 3:
        return launch_grad<3>(tiles, call, b, unless_one);
    case 4:
        return launch_grad<4>(tiles, call, b, unless_one);
    default:
        return launch_grad<5>(tiles, call, b, unless_one);
    }
}
