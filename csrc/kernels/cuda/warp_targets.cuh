// Targets of tiles with one number for each voxel and class, from labels, masks or probabilities.
#pragma once

#include "voxels.cuh"
#include "warp_tiles.cuh"

namespace {

// As many masks as a lane has voxels.
template <typename Mask, int U> union MaskRow {
    static constexpr int BYTES = U * static_cast<int>(sizeof(Mask));
    using Vector = std::conditional_t<BYTES % 16 == 0, uint4, std::conditional_t<BYTES == 8, uint2, unsigned>>;
    static constexpr int VECTORS = BYTES / static_cast<int>(sizeof(Vector));

    Vector vectors[VECTORS];
    Mask masks[U];
    unsigned words[BYTES / sizeof(unsigned)];
};

// Reads neighbours in memory.
template <bool IS_ALIGNED, typename Mask, int U> __device__ void load_masks(const Mask* from, MaskRow<Mask, U>* row) {
    using Vector = typename MaskRow<Mask, U>::Vector;
    constexpr int VECTORS = MaskRow<Mask, U>::VECTORS;
    UNROLL for (int i = 0; i < VECTORS; ++i) {
        if constexpr (IS_ALIGNED) {
            row->vectors[i] = load_global(reinterpret_cast<const Vector*>(from) + i);
        } else {
            row->vectors[i] = load_elements<Vector>(from + i * (U / VECTORS));
        }
    }
}

template <typename Mask> __device__ float mask_number(Mask mask) {
    if constexpr (std::is_integral_v<Mask>) {
        return static_cast<float>(mask);
    } else {
        return number(mask);
    }
}

// ---- targets of 0 and 1 in whole tiles ------------------------------------------------------------------------------

// A bit for each target. Four neighbours in memory are the same bit of the bytes of a word, so that masks of one byte
// each are stored four at once.
template <class Shape> class HardTargets {
public:
    static constexpr int K = Shape::K, U = Shape::U;

    __device__ bool is_one(int k, int u) const { return has_bit(words_[word_of(k, u)], bit_of(k, u)); }

    // How many voxels of a class have target 1.
    __device__ float count(int k) const {
        int sum = 0;
        UNROLL for (int word = 0; word < WORDS; ++word) {
            unsigned bits = 0;
            UNROLL for (int u = 0; u < U; ++u) { bits |= word_of(k, u) == word ? bit_of(k, u) : 0; }
            sum += bits ? __popc(words_[word] & bits) : 0;
        }
        return static_cast<float>(sum);
    }

    // Reads the targets of `first` and of the next tiles, which must be whole. Says whether all are 0 or 1; it can say
    // no if they are.
    template <int TILES> static __device__ bool read(const WarpTile<Shape>& first, HardTargets (&of_tiles)[TILES]) {
        if (first.a.target_kind == SEGLOSS_LABELS) {
            return TILES == 1 && of_tiles[0].read_labels(first);
        }
        switch (first.a.target.dtype) {
        case SEGLOSS_UINT8:
            return read_masks<uint8_t>(first, of_tiles);
        case SEGLOSS_FLOAT32:
            return read_masks<float>(first, of_tiles);
        default:
            return read_masks<typename Shape::T>(first, of_tiles);
        }
    }

private:
    static constexpr int WORDS = (K * U + 31) / 32;

    static constexpr __device__ int word_of(int k, int u) { return (k * U + u) / 32; }
    static constexpr __device__ unsigned bit_of(int k, int u) {
        const int place = k * U + u;
        return 1u << (place % 4 * 8 + place / 4 % 8);
    }

    __device__ bool read_labels(const WarpTile<Shape>& tile) {
        int labels[U];
        const bool are_classes = tile.read_simple_labels(labels);
        UNROLL for (int u = 0; u < U; ++u) {
            UNROLL for (int k = 0; k < K; ++k) {
                words_[word_of(k, u)] |= labels[u] == tile.class_of(k) ? bit_of(k, u) : 0;
            }
        }
        return are_classes;
    }

    template <typename Mask, int TILES>
    static __device__ bool read_masks(const WarpTile<Shape>& first, HardTargets (&of_tiles)[TILES]) {
        return __builtin_expect(first.grid.aligned_masks, 1) ? read_masks_of<true, Mask>(first, of_tiles)
                                                             : read_masks_of<false, Mask>(first, of_tiles);
    }

    template <bool IS_ALIGNED, typename Mask, int TILES>
    static __device__ bool read_masks_of(const WarpTile<Shape>& first, HardTargets (&of_tiles)[TILES]) {
        using Row = MaskRow<Mask, U>;
        constexpr int ROWS = TILES * K, AT_ONCE = Row::BYTES < 64 ? 64 / Row::BYTES : 1; // 64 bytes at least
        const auto from = reinterpret_cast<const Mask*>(first.targets());
        unsigned others = 0;
        UNROLL for (int row = 0; row < ROWS; row += AT_ONCE) {
            Row rows[AT_ONCE];
            UNROLL for (int i = row; i < row + AT_ONCE && i < ROWS; ++i) {
                load_row<IS_ALIGNED>(first, from + i / K * first.voxels_between(), i % K, &rows[i - row]);
            }
            UNROLL for (int i = row; i < row + AT_ONCE && i < ROWS; ++i) {
                of_tiles[i / K].set_row(i % K, rows[i - row], &others);
            }
        }
        return others == 0;
    }

    template <bool IS_ALIGNED, typename Mask>
    static __device__ void load_row(const WarpTile<Shape>& tile, const Mask* from, int row, MaskRow<Mask, U>* masks) {
        *masks = {};
        if (tile.has_class(row)) {
            const Mask* const of_class = from + tile.class_of(row) * tile.a.target.stride_class;
            if constexpr (Shape::PLANAR) {
                load_masks<IS_ALIGNED>(of_class, masks);
            } else {
                UNROLL for (int u = 0; u < U; ++u) { masks->masks[u] = load_global(of_class + u * tile.a.num_classes); }
            }
        }
    }

    template <typename Mask> __device__ void set_row(int row, const MaskRow<Mask, U>& masks, unsigned* others) {
        UNROLL for (int i = 0; i < U; i += 4) {
            const int quad = (row * U + i) / 4;
            words_[quad / 8] |= (bytes_of(masks, i, others) & 0x01010101u) << quad % 8;
        }
    }

    // A byte for each of four masks. Sets bits of `others` if one of them is neither 0 nor 1.
    template <typename Mask>
    static __device__ unsigned bytes_of(const MaskRow<Mask, U>& row, int first, unsigned* others) {
        if constexpr (sizeof(Mask) == 1) {
            *others |= row.words[first / 4] & ~0x01010101u;
            return row.words[first / 4];
        } else {
            unsigned bytes = 0;
            UNROLL for (int i = 0; i < 4; ++i) {
                const float x = number(row.masks[first + i]);
                *others |= __float_as_uint(fmaf(x, x, -x)); // 0 for 0 and 1 alone
                bytes |= x != 0 ? 1u << 8 * i : 0;
            }
            return bytes;
        }
    }

    unsigned words_[WORDS] = {};
};

// ---- any targets, class by class ------------------------------------------------------------------------------------

// The state of a voxel by its masks or probabilities: 0, or that it is ignored or refused. Probabilities are checked
// only in voxels that count.
__device__ __noinline__ inline int state_of_masks(const segloss_cross_entropy& a, int64_t offset,
                                                  int64_t weight_offset) {
    const bool are_masks = a.target_kind == SEGLOSS_MASKS;
    if (!are_masks && a.voxel_weight.data && load<float>(a.voxel_weight, weight_offset) == 0) {
        return static_cast<int>(IGNORED);
    }
    int64_t state = 0;
    for (int64_t c = 0; c < a.num_classes; ++c) {
        const float x = load<float>(a.target, offset + c * a.target.stride_class);
        const bool is_ignored = are_masks && x == static_cast<float>(a.ignore_index);
        if (are_masks ? x != 0 && x != 1 && !is_ignored : is_outside(a.target_range, x, true)) {
            return static_cast<int>(BAD);
        }
        state = is_ignored ? IGNORED : state;
    }
    return static_cast<int>(state);
}

// The targets of a tile, and which of its voxels count, and how much.
template <class Shape> class SoftTargets {
public:
    static constexpr int K = Shape::K, U = Shape::U;

    TileVoxels<U> voxels;

    __device__ SoftTargets(const WarpTile<Shape>& of_logits, Totals* totals) : tile(of_logits) {
        if (tile.a.target_kind == SEGLOSS_LABELS) {
            tile.read_labels(voxels.label);
        } else {
            find_states();
        }
        tile.weigh(&voxels, totals);
    }

    // Reads the targets of class k; 0 in voxels that do not count.
    __device__ void load_row(int k, float (&g)[U]) const {
        if (tile.a.target_kind == SEGLOSS_LABELS) {
            UNROLL for (int u = 0; u < U; ++u) { g[u] = voxels.label[u] == tile.class_of(k) ? 1 : 0; }
            return;
        }
        load_numbers(k, g);
        UNROLL for (int u = 0; u < U; ++u) { g[u] = voxels.label[u] < 0 ? 0 : g[u]; }
    }

private:
    __device__ void find_states() {
        // Also in classes of other lanes; 0 and 1 themselves can be ignored.
        bool has_others = tile.a.target_kind == SEGLOSS_MASKS && (tile.a.ignore_index == 0 || tile.a.ignore_index == 1);
        NO_UNROLL for (int k = 0; k < K; ++k) { has_others = has_others || (tile.has_class(k) && has_others_in(k)); }
        has_others = __any_sync(ALL_LANES, has_others);
        UNROLL for (int u = 0; u < U; ++u) {
            voxels.label[u] = tile.has_voxel(u) ? 0 : tile.NO_CLASS;
            if (has_others && tile.has_voxel(u)) {
                const auto& a = tile.a;
                voxels.label[u] = state_of_masks(a, tile.offset(a.target, u), tile.offset(a.voxel_weight, u));
            }
        }
    }

    // Whether a mask is neither 0 nor 1, or a probability outside its range.
    __device__ bool has_others_in(int k) const {
        const bool are_masks = tile.a.target_kind == SEGLOSS_MASKS;
        float g[U];
        load_numbers(k, g);
        bool has_others = false;
        UNROLL for (int u = 0; u < U; ++u) {
            const bool is_other = are_masks ? g[u] != 0 && g[u] != 1 : is_outside(tile.a.target_range, g[u], true);
            has_others = has_others || is_other;
        }
        return has_others;
    }

    // 0 for voxels past the end.
    __device__ void load_numbers(int k, float (&g)[U]) const {
        switch (tile.a.target.dtype) {
        case SEGLOSS_UINT8:
            return load_numbers_of<uint8_t>(k, g);
        case SEGLOSS_FLOAT32:
            return load_numbers_of<float>(k, g);
        case SEGLOSS_FLOAT16:
            return load_numbers_of<__half>(k, g);
        case SEGLOSS_BFLOAT16:
            return load_numbers_of<__nv_bfloat16>(k, g);
        default:
            return load_numbers_of<int64_t>(k, g);
        }
    }

    template <typename Mask> __device__ void load_numbers_of(int k, float (&g)[U]) const {
        const auto from = reinterpret_cast<const Mask*>(tile.targets()) + tile.class_of(k) * tile.a.target.stride_class;
        if (Shape::PLANAR && __builtin_expect(tile.is_whole(), 1)) {
            MaskRow<Mask, U> row;
            tile.grid.aligned_masks ? load_masks<true>(from, &row) : load_masks<false>(from, &row);
            UNROLL for (int u = 0; u < U; ++u) { g[u] = mask_number(row.masks[u]); }
            return;
        }
        UNROLL for (int u = 0; u < U; ++u) {
            g[u] = tile.has_voxel(u) ? mask_number(load_global(from + u * tile.a.target.strides[1])) : 0;
        }
    }

    const WarpTile<Shape>& tile;
};

} // namespace
