// Tiles: a warp reads some voxels into registers, all loads before any use, and writes a gradient from them.
//
// A lane owns as many neighbouring voxels as 16 bytes of logits hold, and K of their classes. For few classes a lane
// has all of them; else `groups` lanes share the classes of the same voxels: lane = group * columns + column, and group
// g has the classes g, g + groups, g + 2 groups and so on. Which lane adds what does not depend on the layout, so
// results have the same bits in all layouts.
#pragma once

#include <type_traits>

#include "fast_math.cuh"
#include "interpolation.cuh"
#include "memory.cuh"
#include "sums.cuh"
#include "tile_call.h"

extern __shared__ uint4 segloss_shared[]; // sized by the launch

namespace {

constexpr unsigned ALL_LANES = ~0u;

// The compiler must not take more registers than four blocks on a multiprocessor have: fewer ask for too few bytes at
// once.
constexpr int BLOCKS_AT_ONCE = 4;

// The voxels of a lane that shares their classes with other lanes. With a sigmoid as many as 16 bytes hold.
constexpr int VOXELS_OF_SHARED_LANE = 4;

// Of one sample. A warp has 8 tiles if each lane has all classes of its voxels.
constexpr int voxels_per_block(int voxels_of_lane) { return 8 * THREADS * voxels_of_lane; }

// T: the type of the logits and of their gradient. K: the number of a lane's classes. GROUPED: whether lanes share the
// classes of a voxel. PLANAR: whether the voxels of a class are contiguous, or the classes of a voxel. U: the number of
// a lane's voxels. RESIZED: whether the logits, which are planar, have another size. Each line of voxels then begins a
// new tile, and what the gradient of the logits needs of each voxel takes the place of the gradient. SURE: so many of a
// lane's classes are always there; if lanes share classes, all but two, unless another number is given.
template <typename T_, int K_, bool GROUPED_, bool PLANAR_, int U_ = PER_VECTOR<T_>, bool RESIZED_ = false,
          int SURE_ = 0>
struct TileShape {
    using T = T_;
    static constexpr int K = K_, U = U_;
    using Vector = VectorOf<T, U>; // of a lane's voxels in one class
    static constexpr bool GROUPED = GROUPED_, PLANAR = PLANAR_, RESIZED = RESIZED_;
    using Grid = std::conditional_t<RESIZED, ResizedTileGrid, TileGrid>;
    static constexpr int SURE = !GROUPED ? K : SURE_ > 0 ? SURE_ : K > 2 ? K - 2 : 0;
};

// The voxels of a lane. Those that do not count have weight 0 and no class; refused ones have weight nan.
template <int U> struct TileVoxels {
    int label[U];
    unsigned is_label[U]; // bit k: whether the lane's class k is the label
    float weight[U];
    bool all_one; // all weights
};

// What few voxels need is not inlined: it would make up most of the code.

__device__ __noinline__ inline float number_at(const segloss_tensor& t, int64_t offset) {
    return load<float>(t, offset);
}

__device__ __noinline__ inline void store_at(const segloss_tensor& t, int64_t offset, float value) {
    store(t, offset, static_cast<double>(value));
}

__device__ __noinline__ inline int class_at(const segloss_cross_entropy& a, int64_t offset, int64_t position) {
    return static_cast<int>(load_class(a.target, offset, a.labels, position, a.num_classes, a.ignore_index));
}

template <class Shape> class WarpTile {
public:
    using T = typename Shape::T;
    using Vector = typename Shape::Vector;
    static constexpr int K = Shape::K, U = Shape::U;
    static constexpr bool GROUPED = Shape::GROUPED, PLANAR = Shape::PLANAR, RESIZED = Shape::RESIZED;
    static constexpr int VOXELS_PER_BLOCK = voxels_per_block(U);
    // After so many tiles a lane's sums are passed on, as long sums in float lose digits.
    static constexpr int STEPS = 8;

    // The first tile of this warp in its block.
    __device__ WarpTile(const segloss_cross_entropy& args, const typename Shape::Grid& of_call)
        : a(args), grid(of_call), columns(GROUPED ? LANES >> of_call.log_groups : LANES),
          column(lane() & (columns - 1)), group(GROUPED ? lane() >> (5 - of_call.log_groups) : 0) {
        const unsigned per_sample = static_cast<unsigned>(grid.blocks_per_sample);
        sample = static_cast<int>(blockIdx.x / per_sample);
        begin_ = static_cast<int64_t>(blockIdx.x % per_sample) * VOXELS_PER_BLOCK;
        const int64_t left = size_of_sample() - begin_;
        size_ = static_cast<int>(left < VOXELS_PER_BLOCK ? left : VOXELS_PER_BLOCK);
        at_ = warp() * columns * U;
        if constexpr (RESIZED) {
            place_.start(grid.resize, static_cast<int>(begin_ / (columns * U)) + warp());
            find_voxels();
            return;
        }
        logits_ = first_of(a.logits);
        grad_ = first_of(a.grad_logits);
        targets_ = first_target();
    }

    // Calls visit() for each of this warp's tiles, or for every AT_ONCE of them; after every STEPS tiles, finish().
    template <int AT_ONCE = 1, typename Visit, typename Finish>
    __device__ void for_each(const Visit& visit, const Finish& finish) {
        static_assert(STEPS % AT_ONCE == 0);
        while (at_ < size_) {
            for (int step = 0; step < STEPS && at_ < size_; step += AT_ONCE) {
                visit();
                advance(AT_ONCE);
            }
            finish();
        }
    }

    // The tile that is so many tiles of this warp later. It can lie past the end.
    __device__ WarpTile ahead(int tiles) const {
        WarpTile tile = *this;
        tile.advance(tiles);
        return tile;
    }

    // Whether all of the voxels of this and the next tiles, so many in all, are there. Of resized logits: those of this
    // lane in this tile.
    __device__ bool is_whole(int tiles = 1) const {
        return RESIZED ? count_ == U : at_ + (tiles - 1) * voxels_between() + columns * U <= size_;
    }

    // The distance of this warp's tiles.
    __device__ int voxels_between() const { return WARPS * columns * U; }

    static __device__ int lane() { return static_cast<int>(threadIdx.x % LANES); }
    static __device__ int warp() { return static_cast<int>(threadIdx.x / LANES); }

    __device__ bool has_class(int k) const { return k < Shape::SURE || class_of(k) < a.num_classes; }
    __device__ int class_of(int k) const { return GROUPED ? (k << grid.log_groups) + group : k; }

    // A reduction over the groups, returned to all of them.
    template <typename Value, typename Function> __device__ void reduce(Value (&values)[U], const Function& f) const {
        for (int lanes = columns; GROUPED && lanes < LANES; lanes *= 2) {
            UNROLL for (auto& value : values) { value = f(value, __shfl_xor_sync(ALL_LANES, value, lanes)); }
        }
    }

    // Gives all groups the values of those that have the labels.
    __device__ void take_from_labels(const int (&labels)[U], float (&values)[U]) const {
        UNROLL for (int u = 0; u < (GROUPED ? U : 0); ++u) {
            const int owner = (labels[u] & ((1 << grid.log_groups) - 1)) * columns + column;
            values[u] = __shfl_sync(ALL_LANES, values[u], owner);
        }
    }

    __device__ void store_grad(const float (&x)[K][U]) const { PLANAR ? store_planar(x) : store_interleaved(x); }

    // The logits, labels and weights of this lane's voxels. Missing classes are -inf; voxels that do not count, and
    // those past the end, have logits of 0. Refused ones are noted in `totals` by the first group.
    //
    // The labels are loaded before a logit is used, so that a warp waits for memory once. Not those of resized logits,
    // whose interpolation takes too many registers.
    __device__ void read(TileVoxels<U>* v, float (&x)[K][U], Totals* totals) const {
        Vector vectors[K];
        if constexpr (RESIZED) {
            read_resized(x);
        } else {
            PLANAR ? load_planar(vectors) : start_copy();
        }
        const bool are_classes = read_labels(v->label);
        if constexpr (!RESIZED) {
            PLANAR ? unpack_planar(vectors, x) : read_copied(x);
            clear_missing(x);
        }
        UNROLL for (int u = 0; u < U; ++u) { v->weight[u] = 1; }
        v->all_one = are_classes && !grid.has_voxel_weight;
        if (__builtin_expect(!v->all_one, 0)) {
            weigh(v, totals);
            UNROLL for (int u = 0; u < U; ++u) { clear_voxel(x, u, v->label[u] == NO_CLASS); }
        }
        UNROLL for (int u = 0; u < U; ++u) { v->is_label[u] = bit_of(v->label[u]); }
    }

    // Resized logits alone.
    __device__ void read_resized(float (&x)[K][U]) const {
        interpolate(x);
        clear_missing(x);
    }

    // What the gradient of resized logits needs of voxel u.
    __device__ void store_state(int u, const VoxelState& state) const {
        if (group == 0 && has_voxel(u)) {
            store_global(reinterpret_cast<uint4*>(grid.resize.states + position(u)),
                         *reinterpret_cast<const uint4*>(&state));
        }
    }
    __device__ void store_slope(int u, float slope) const {
        if (group == 0 && has_voxel(u)) {
            store_global(grid.resize.slopes + position(u), slope);
        }
    }

    // The class of each label, or what it is instead. Whether all are classes; it can say no if they are.
    __device__ bool read_labels(int (&labels)[U]) const {
        if (__builtin_expect(is_whole() && grid.simple_labels, 1)) {
            return read_simple_labels(labels);
        }
        UNROLL for (int u = 0; u < U; ++u) {
            labels[u] = has_voxel(u) ? class_at(a, offset(a.target, u), position(u)) : NO_CLASS;
        }
        return false;
    }

    // Of whole tiles, if labels are simple.
    __device__ bool read_simple_labels(int (&classes)[U]) const {
        switch (a.target.dtype) {
        case SEGLOSS_UINT8:
            return read_labels_of<uint8_t>(classes);
        case SEGLOSS_INT16:
            return read_labels_of<int16_t>(classes);
        case SEGLOSS_INT32:
            return read_labels_of<int32_t>(classes);
        default:
            return read_labels_of<int64_t>(classes);
        }
    }

    // Sets the weights of voxels from their labels, and clears the labels of those with weight 0. Notes refused ones in
    // `totals`. Most voxels without a class are ignored.
    __device__ void weigh(TileVoxels<U>* v, Totals* totals) const {
        bool has_refused = false;
        UNROLL for (int u = 0; u < U; ++u) {
            v->weight[u] = v->label[u] >= 0 ? 1 : 0;
            has_refused = has_refused || v->label[u] == REFUSED;
        }
        if (__builtin_expect(has_refused || grid.has_voxel_weight, 0)) {
            UNROLL for (int u = 0; u < U; ++u) { weigh_voxel(v, u, totals); }
        }
    }

    // ---- class by class: row k has the logits of this lane's voxels in its class k ----

    // Of this and the next tiles, which must be whole and planar.
    template <int TILES> __device__ void load_rows(Vector (&rows)[TILES][K]) const {
        const int64_t step = step_of(a.logits, grid);
        if (__builtin_expect(grid.aligned_logits, 1)) {
            for_each_row<TILES>([&](int i, int k) {
                rows[i][k] = load_global(reinterpret_cast<const Vector*>(logits_ + k * step + i * voxels_between()));
            });
        } else {
            for_each_row<TILES>(
                [&](int i, int k) { rows[i][k] = load_elements<Vector>(logits_ + k * step + i * voxels_between()); });
        }
    }

    template <int TILES> __device__ void store_rows(const Vector (&rows)[TILES][K]) const {
        const int64_t step = step_of(a.grad_logits, grid);
        if (__builtin_expect(grid.aligned_grad, 1)) {
            for_each_row<TILES>([&](int i, int k) {
                store_global(reinterpret_cast<Vector*>(grad_ + k * step + i * voxels_between()), rows[i][k]);
            });
        } else {
            for_each_row<TILES>(
                [&](int i, int k) { store_elements(grad_ + k * step + i * voxels_between(), rows[i][k]); });
        }
    }

    // Of any tile, if its classes are contiguous between finish_copy() and copy_out(). Voxels past the end are 0.
    __device__ void load_row(int k, float (&x)[U]) const {
        if (PLANAR && __builtin_expect(is_whole(), 1)) {
            const T* const from = logits_ + k * step_of(a.logits, grid);
            unpack<T>(grid.aligned_logits ? load_global(reinterpret_cast<const Vector*>(from))
                                          : load_elements<Vector>(from),
                      x);
            return;
        }
        UNROLL for (int u = 0; u < U; ++u) {
            x[u] = 0;
            if (has_voxel(u)) {
                x[u] = number(PLANAR ? load_global(logits_ + k * step_of(a.logits, grid) + u) : *shared_element(k, u));
            }
        }
    }

    __device__ void store_row(int k, const float (&x)[U]) const {
        if (PLANAR && __builtin_expect(is_whole(), 1)) {
            T* const to = grad_ + k * step_of(a.grad_logits, grid);
            grid.aligned_grad ? store_global(reinterpret_cast<Vector*>(to), pack<T>(x))
                              : store_elements(to, pack<T>(x));
            return;
        }
        UNROLL for (int u = 0; u < U; ++u) {
            if (has_voxel(u)) {
                assign(PLANAR ? grad_[k * step_of(a.grad_logits, grid) + u] : *shared_element(k, u), x[u]);
            }
        }
    }

    // Brings contiguous classes to shared memory; they are there after finish_copy().
    __device__ void start_copy() const {
        __syncwarp(); // all lanes are done with the previous tile
        if (__builtin_expect(grid.aligned_logits && is_whole(), 1)) {
            for_each_vector([&](Vector* shared, int index) {
                copy_async(shared, reinterpret_cast<const Vector*>(logits_) + index);
            });
        } else {
            for_each_element([&](T* shared, int index) { *shared = load_global(logits_ + index); });
        }
    }

    static __device__ void finish_copy() {
        wait_for_copies();
        __syncwarp();
    }

    // All logits of this lane, after start_copy(); missing classes are 0.
    __device__ void read_copied(float (&x)[K][U]) const {
        finish_copy();
        if constexpr (GROUPED) {
            UNROLL for (int k = 0; k < K; ++k) {
                UNROLL for (int u = 0; u < U; ++u) { x[k][u] = has_class(k) ? number(*shared_element(k, u)) : 0; }
            }
        } else {
            UNROLL for (int row = 0; row < K; ++row) {
                float numbers[U];
                unpack<T>(shared_tile()[column * grid.pitch + row], numbers);
                UNROLL for (int i = 0; i < U; ++i) { x[(row * U + i) % K][(row * U + i) / K] = numbers[i]; }
            }
        }
    }

    __device__ void copy_out() const {
        __syncwarp(); // all lanes have written their gradient
        if (__builtin_expect(grid.aligned_grad && is_whole(), 1)) {
            for_each_vector([&](const Vector* shared, int index) {
                store_global(reinterpret_cast<Vector*>(grad_) + index, *shared);
            });
        } else {
            for_each_element([&](const T* shared, int index) { store_global(grad_ + index, *shared); });
        }
    }

    // The shared memory of all warps' tiles, in vectors of 16 bytes. What else a kernel keeps there lies behind it.
    __device__ int shared_vectors() const {
        if constexpr (RESIZED) {
            return WARPS * staged_vectors();
        }
        const int pitch = grid.pitch * static_cast<int>(sizeof(Vector));
        return PLANAR ? 0 : WARPS * columns * pitch / static_cast<int>(sizeof(uint4));
    }

    // Voxel u of this lane: whether it is there, its position in all samples, and its offset in a tensor.
    __device__ bool has_voxel(int u) const { return RESIZED ? u < count_ : at_ + column * U + u < size_; }
    __device__ int64_t position(int u) const { return sample * a.positions.sizes[1] + index(u); }
    __device__ int64_t offset(const segloss_tensor& t, int u) const {
        return sample * t.strides[0] + index(u) * t.strides[1];
    }

    // What the label of a voxel without a class is.
    enum { NO_CLASS = static_cast<int>(IGNORED), REFUSED = static_cast<int>(BAD) };

    // Where the targets of this lane's first voxel are.
    __device__ const char* targets() const { return targets_; }

    const segloss_cross_entropy& a;
    const typename Shape::Grid& grid;
    const int columns, column, group;
    int sample;

private:
    template <int TILES, typename Function> __device__ void for_each_row(const Function& f) const {
        UNROLL for (int i = 0; i < TILES * K; ++i) {
            if (has_class(i % K)) {
                f(i / K, i % K);
            }
        }
    }

    // With the voxels that tiles of resized logits lack.
    __device__ int64_t size_of_sample() const {
        if constexpr (RESIZED) {
            return grid.resize.padded_size;
        } else {
            return a.positions.sizes[1];
        }
    }

    // In the sample.
    __device__ int64_t index(int u) const { return (RESIZED ? first_ : begin_ + at_ + column * U) + u; }

    // Bit k for the lane's class k; 0 for all others. The rotation makes what is no multiple of the number of groups
    // large.
    __device__ unsigned bit_of(int label) const {
        const auto index = static_cast<unsigned>(label - group);
        return bit_or_0(GROUPED ? __funnelshift_r(index, index, grid.log_groups) : index);
    }

    __device__ void advance(int tiles) {
        const int voxels = tiles * voxels_between();
        at_ += voxels;
        if constexpr (RESIZED) {
            place_.advance(grid.resize, tiles * WARPS);
            find_voxels();
            return;
        }
        const int elements = PLANAR ? voxels : voxels * num_classes();
        logits_ += elements;
        grad_ += elements;
        targets_ += (a.target_kind == SEGLOSS_LABELS ? voxels : elements) << grid.log_label_bytes;
    }

    // Where this lane's first class and voxel are, or the tile's, if classes are contiguous.
    __device__ T* first_of(const segloss_tensor& t) const {
        T* const tile = static_cast<T*>(t.data) + sample * t.strides[0] + (begin_ + at_) * t.strides[1];
        return PLANAR ? tile + column * U + group * t.stride_class : tile;
    }

    __device__ const char* first_target() const {
        return static_cast<const char*>(a.target.data) + (offset(a.target, 0) << grid.log_label_bytes);
    }

    __device__ void weigh_voxel(TileVoxels<U>* v, int u, Totals* totals) const {
        const bool is_refused = v->label[u] == REFUSED, is_weighted = v->label[u] >= 0 && grid.has_voxel_weight;
        v->weight[u] = is_weighted ? number_at(a.voxel_weight, offset(a.voxel_weight, u)) : v->weight[u];
        v->label[u] = is_weighted && v->weight[u] == 0 ? static_cast<int>(NO_CLASS) : v->label[u];
        if (is_refused) {
            v->weight[u] = NAN;
            if (group == 0) {
                totals->refuse(position(u));
            }
        }
    }

    static __device__ void clear_voxel(float (&x)[K][U], int u, bool is_cleared) {
        UNROLL for (int k = 0; k < K; ++k) { x[k][u] = is_cleared ? 0 : x[k][u]; }
    }

    // ---- labels ----

    template <typename Label> __device__ int class_of_label(Label label) const {
        return label == a.ignore_index ? NO_CLASS : is_class(label, a.num_classes) ? static_cast<int>(label) : REFUSED;
    }

    // Whether all are classes, which most are.
    template <typename Label> __device__ bool read_labels_of(int (&classes)[U]) const {
        constexpr int BYTES = U * static_cast<int>(sizeof(Label));
        using Vector = std::conditional_t<BYTES % 16 == 0, uint4, std::conditional_t<BYTES == 8, uint2, unsigned>>;
        constexpr int VECTORS = BYTES / static_cast<int>(sizeof(Vector));
        union {
            Vector vectors[VECTORS];
            Label labels[U];
        } v;
        UNROLL for (int i = 0; i < VECTORS; ++i) {
            v.vectors[i] = load_global(reinterpret_cast<const Vector*>(targets_) + i);
        }
        bool are_classes = !grid.ignores_class;
        UNROLL for (int u = 0; u < U; ++u) {
            classes[u] = static_cast<int>(v.labels[u]);
            are_classes = are_classes && is_class(v.labels[u], a.num_classes);
        }
        if (__builtin_expect(!are_classes, 0)) {
            UNROLL for (int u = 0; u < U; ++u) { classes[u] = class_of_label(v.labels[u]); }
        }
        return are_classes;
    }

    // ---- planar logits ----

    static __device__ int64_t step_of(const segloss_tensor& t, const TileGrid& grid) {
        return GROUPED ? t.stride_class << grid.log_groups : t.stride_class;
    }

    __device__ void load_planar(Vector (&vectors)[K]) const {
        const int64_t step = step_of(a.logits, grid);
        if (__builtin_expect(grid.aligned_logits && is_whole(), 1)) {
            UNROLL for (int k = 0; k < K; ++k) {
                vectors[k] = has_class(k) ? load_global(reinterpret_cast<const Vector*>(logits_ + k * step)) : Vector{};
            }
            return;
        }
        UNROLL for (int k = 0; k < K; ++k) {
            union {
                Vector vector = {};
                T elements[U];
            } column;
            UNROLL for (int u = 0; u < U; ++u) {
                if (has_class(k) && has_voxel(u)) {
                    column.elements[u] = load_global(logits_ + k * step + u);
                }
            }
            vectors[k] = column.vector;
        }
    }

    __device__ void unpack_planar(const Vector (&vectors)[K], float (&x)[K][U]) const {
        UNROLL for (int k = 0; k < K; ++k) { unpack<T>(vectors[k], x[k]); }
    }

    __device__ void clear_missing(float (&x)[K][U]) const {
        UNROLL for (int k = Shape::SURE; k < K; ++k) {
            UNROLL for (int u = 0; u < U; ++u) { x[k][u] = has_class(k) ? x[k][u] : -INFINITY; }
        }
    }

    // ---- logits of another size ----

    __device__ int first_column() const { return place_.part * columns * U; } // of the tile
    __device__ int staged_vectors() const { return grid.resize.staged_columns * grid.resize.staged_pitch; } // of a warp

    __device__ void find_voxels() {
        const int num_columns = grid.resize.axes[SEGLOSS_COLUMNS].size, of_lane = first_column() + column * U;
        const int left = num_columns - of_lane;
        count_ = left < 0 ? 0 : left < U ? left : U;
        first_ = static_cast<int64_t>(place_.line) * num_columns + of_lane;
        targets_ = first_target();
    }

    __device__ void interpolate(float (&x)[K][U]) const {
        const auto& resize = grid.resize;
        const auto& axis = resize.axes[SEGLOSS_COLUMNS];
        const CoarseLines lines(resize, place_.plane, place_.row);
        const float* const of_sample = resize.from + sample * a.num_classes * resize.size_from;
        AxisEntry entries[U];
        UNROLL for (int u = 0; u < U; ++u) {
            const int index = first_column() + column * U + u;
            entries[u] = entry_of(axis, index < axis.size ? index : axis.size - 1);
        }
        if (__builtin_expect(resize.staged_columns == 0, 0)) {
            UNROLL for (int k = 0; k < K; ++k) {
                const float* const of_class = of_sample + class_of(k) * resize.size_from;
                UNROLL for (int u = 0; u < U; ++u) {
                    x[k][u] = has_class(k) ? interpolated(lines, entries[u], of_class) : 0;
                }
            }
            return;
        }
        const int first = __shfl_sync(ALL_LANES, entries[0].low, 0);
        const int last = __shfl_sync(ALL_LANES, entries[U - 1].high, LANES - 1);
        uint4* const staged = segloss_shared + warp() * staged_vectors();
        __syncwarp(); // all lanes are done with the previous tile
        stage_lines(lines, of_sample + first, last - first + 1, staged);
        __syncwarp();
        expand(entries, first, resize.staged_pitch, staged + group * STAGED_VECTORS<K>, x);
    }

    __device__ void stage_lines(const CoarseLines& lines, const float* from, int num_columns, uint4* staged) const {
        switch (lines.count) {
        case 1:
            return stage<K, 1>(grid.resize, lines, from, num_columns, num_classes(), grid.log_groups, staged);
        case 2:
            return stage<K, 2>(grid.resize, lines, from, num_columns, num_classes(), grid.log_groups, staged);
        default:
            return stage<K, 4>(grid.resize, lines, from, num_columns, num_classes(), grid.log_groups, staged);
        }
    }

    __device__ void store_planar(const float (&x)[K][U]) const {
        const int64_t step = step_of(a.grad_logits, grid);
        if (__builtin_expect(grid.aligned_grad && is_whole(), 1)) {
            UNROLL for (int k = 0; k < K; ++k) {
                if (has_class(k)) {
                    store_global(reinterpret_cast<Vector*>(grad_ + k * step), pack<T>(x[k]));
                }
            }
            return;
        }
        UNROLL for (int k = 0; k < K; ++k) {
            UNROLL for (int u = 0; u < U; ++u) {
                if (has_class(k) && has_voxel(u)) {
                    T value;
                    assign(value, static_cast<double>(x[k][u]));
                    store_global(grad_ + k * step + u, value);
                }
            }
        }
    }

    // ---- contiguous classes: a tile is one piece of memory, copied to shared memory and from there ----

    __device__ int num_classes() const { return GROUPED ? static_cast<int>(a.num_classes) : K; }
    __device__ Vector* shared_tile() const {
        return reinterpret_cast<Vector*>(segloss_shared) + warp() * columns * grid.pitch;
    }
    __device__ T* shared_element(int k, int u) const { return shared_column(column) + u * num_classes() + class_of(k); }
    __device__ T* shared_column(int index) const { return reinterpret_cast<T*>(shared_tile() + index * grid.pitch); }
    // Calls f(shared, index) for each vector of the tile, in turn over the lanes.
    template <typename Function> __device__ void for_each_vector(const Function& f) const {
        const int rows = num_classes(); // vectors of a column
        if (grid.pitch == rows) {
            for (int index = lane(); index < columns * rows; index += LANES) {
                f(shared_tile() + index, index);
            }
            return;
        }
        int row = lane() % rows, place = lane() / rows * grid.pitch + row;
        const int next_row = LANES % rows, next_place = LANES / rows * grid.pitch + next_row;
        for (int index = lane(); index < columns * rows; index += LANES) {
            f(shared_tile() + place, index);
            row += next_row;
            place += next_place + (row >= rows ? grid.pitch - rows : 0);
            row -= row >= rows ? rows : 0;
        }
    }

    // Likewise for each element of a tile that is not whole or not aligned.
    template <typename Function> __device__ void for_each_element(const Function& f) const {
        const int left = size_ - at_, most = columns * U, in_column = U * num_classes();
        const int size = (left < most ? left : most) * num_classes();
        for (int index = lane(); index < size; index += LANES) {
            const int at = index / in_column;
            f(shared_column(at) + (index - at * in_column), index);
        }
    }

    __device__ void store_interleaved(const float (&x)[K][U]) const {
        __syncwarp(); // all lanes have read their logits
        if constexpr (GROUPED) {
            T* const own = shared_column(column) + group;
            UNROLL for (int k = 0; k < K; ++k) {
                UNROLL for (int u = 0; u < U; ++u) {
                    if (has_class(k)) {
                        assign(own[u * num_classes() + (k << grid.log_groups)], static_cast<double>(x[k][u]));
                    }
                }
            }
        } else {
            UNROLL for (int row = 0; row < K; ++row) {
                float numbers[U];
                UNROLL for (int i = 0; i < U; ++i) { numbers[i] = x[(row * U + i) % K][(row * U + i) / K]; }
                shared_tile()[column * grid.pitch + row] = pack<T>(numbers);
            }
        }
        copy_out();
    }

    int64_t begin_; // the block's first voxel in the sample
    int size_;      // the number of its voxels
    int at_;        // the tile's first voxel in the block
    const T* logits_;
    T* grad_;
    const char* targets_;
    TilePlace place_; // of resized logits
    int64_t first_;   // this lane's first voxel in the sample, and how many it has
    int count_;
};

} // namespace
