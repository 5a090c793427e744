// Logits at another size, interpolated as they are read: planes and rows first, then columns. The formula is that of
// segloss_axis in kernels.h.
#pragma once

#include "memory.cuh"
#include "tile_call.h"

extern __shared__ uint4 segloss_shared[]; // sized by the launch

namespace {

__device__ inline AxisEntry entry_of(const TileAxis& axis, int index) {
    const uint4 vector = load_global(reinterpret_cast<const uint4*>(axis.entries + index));
    return *reinterpret_cast<const AxisEntry*>(&vector);
}

// The place of a warp's tile in its sample. A line is a row of any plane, and has whole tiles.
struct TilePlace {
    int line, plane, row, part;

    __device__ void start(const TileResize& resize, int tile) {
        line = tile / resize.tiles_per_line;
        part = tile - line * resize.tiles_per_line;
        plane = line / resize.axes[SEGLOSS_ROWS].size;
        row = line - plane * resize.axes[SEGLOSS_ROWS].size;
    }

    __device__ void advance(const TileResize& resize, int tiles) {
        for (part += tiles; part >= resize.tiles_per_line; part -= resize.tiles_per_line) {
            ++line;
            ++row;
        }
        for (; row >= resize.axes[SEGLOSS_ROWS].size; row -= resize.axes[SEGLOSS_ROWS].size) {
            ++plane;
        }
    }
};

// The up to four coarse lines that a line lies between, and their weights.
struct CoarseLines {
    static constexpr int MOST = 4;

    int count;
    int offset[MOST];
    float weight[MOST];

    __device__ CoarseLines(const TileResize& resize, int of_plane, int of_row) {
        const auto &planes = resize.axes[SEGLOSS_PLANES], &rows = resize.axes[SEGLOSS_ROWS];
        const AxisEntry plane = entry_of(planes, of_plane), row = entry_of(rows, of_row);
        const int columns = resize.axes[SEGLOSS_COLUMNS].size_from;
        UNROLL for (int i = 0; i < MOST; ++i) {
            const bool is_high_row = i % 2 != 0 && rows.blends, is_high_plane = i >= (rows.blends ? 2 : 1);
            const int from_plane = is_high_plane ? plane.high : plane.low;
            offset[i] = (from_plane * rows.size_from + (is_high_row ? row.high : row.low)) * columns;
            const float by_plane = is_high_plane ? plane.high_weight : plane.low_weight;
            const float by_row = is_high_row ? row.high_weight : row.low_weight;
            weight[i] = (planes.blends ? by_plane : 1) * (rows.blends ? by_row : 1);
        }
        count = (planes.blends ? 2 : 1) * (rows.blends ? 2 : 1);
    }

    // The value at the lines' place, of the first LINES of them; `from` is that of the sample's first line.
    template <int LINES> __device__ float blend(const float* from) const {
        float sum = weight[0] * load_global(from + offset[0]);
        UNROLL for (int i = 1; i < LINES; ++i) { sum = fmaf(weight[i], load_global(from + offset[i]), sum); }
        return sum;
    }
};

// ---- by way of shared memory: a warp blends the coarse columns of its tile, then lanes expand them ----

// A lane's classes lie side by side there, in whole vectors.
template <int K> constexpr int STAGED_VECTORS = (K + 3) / 4;

// Blends some columns of all classes, from `from` on. Here neighbouring lanes have the groups of classes, then columns.
template <int K, int LINES>
__device__ void stage(const TileResize& resize, const CoarseLines& lines, const float* from, int num_columns,
                      int num_classes, int log_groups, uint4* staged) {
    constexpr int N = 4 * STAGED_VECTORS<K>;
    const int lane = static_cast<int>(threadIdx.x % 32), group = lane & ((1 << log_groups) - 1);
    const auto size_from = static_cast<int>(resize.size_from);
    for (int column = lane >> log_groups; column < num_columns; column += 32 >> log_groups) {
        float values[N];
        UNROLL for (int k = 0; k < N; ++k) {
            const int c = (k << log_groups) + group;
            values[k] = k < K && (k < K - 2 || c < num_classes) ? lines.blend<LINES>(from + c * size_from + column) : 0;
        }
        UNROLL for (int i = 0; i < N; i += 4) {
            staged[column * resize.staged_pitch + group * STAGED_VECTORS<K> + i / 4] =
                pack<float>({values[i], values[i + 1], values[i + 2], values[i + 3]});
        }
    }
}

template <int K, int U>
__device__ void expand(const AxisEntry (&entries)[U], int first_column, int pitch, const uint4* staged,
                       float (&x)[K][U]) {
    UNROLL for (int u = 0; u < U; ++u) {
        const uint4* const low = staged + (entries[u].low - first_column) * pitch;
        const uint4* const high = staged + (entries[u].high - first_column) * pitch;
        UNROLL for (int i = 0; i < STAGED_VECTORS<K>; ++i) {
            float of_low[4], of_high[4];
            unpack<float>(low[i], of_low);
            unpack<float>(high[i], of_high);
            UNROLL for (int k = 4 * i; k < 4 * i + 4 && k < K; ++k) {
                x[k][u] = fmaf(entries[u].high_weight, of_high[k % 4], entries[u].low_weight * of_low[k % 4]);
            }
        }
    }
}

// ---- where too many columns would be staged: each lane for itself ----

__device__ __noinline__ inline float interpolated(const CoarseLines& lines, const AxisEntry& column,
                                                  const float* from) {
    float low = 0, high = 0;
    for (int i = 0; i < lines.count; ++i) {
        low += lines.weight[i] * load_global(from + lines.offset[i] + column.low);
        high += lines.weight[i] * load_global(from + lines.offset[i] + column.high);
    }
    return column.low_weight * low + column.high_weight * high;
}

} // namespace
