/* Blocks of voxels, independent of REAL: where they lie in memory, and conversions of 16-bit floats. */
#ifndef SEGLOSS_BLOCK_H
#define SEGLOSS_BLOCK_H

#include <assert.h>
#include <stddef.h>
#include <string.h>

#include "kernels.h"

#define ALIGNED __attribute__((aligned(64)))

/* The stride from class to class in a buffer of lanes. A power of two would map all rows to a few cache sets. */
enum { ROW_LANES = SEGLOSS_BLOCK + 16 };

/* Vectors of values are added to this many sums in double, which are added to one another at the end. */
enum { SUM_LANES = 8 };

/* The positions [begin, begin + count), count <= SEGLOSS_BLOCK; lane i is position begin + i. */
struct block {
    const struct segloss_positions* positions;
    int64_t begin;
    int count;
    int64_t row_left; /* positions from `begin` to the end of its row, which runs along the last dimension */
};

/* The parts of a block whose sums are apart: part k ends before lane end[k], and adds to the sums of number index[k].
 */
struct block_parts {
    int count;
    int end[SEGLOSS_BLOCK];
    int64_t index[SEGLOSS_BLOCK];
};

/* Lanes [lane, lane + count) of a block, consecutive along the last dimension. */
struct run {
    int64_t position;
    int lane;
    int count;
};

/* Some classes of a run of voxels, strides in elements. */
struct plane {
    void* data;
    int64_t stride_class;
    int64_t stride_voxel;
};

typedef void copy_function(const struct plane* to, const struct plane* from, int64_t num_classes, int count);

/* copy_tmpl.h transposes classes and voxels in tiles of TILE x TILE. */
enum { TILE = 4 };

/* Transposes TILE vectors of TILE elements. */
#define TRANSPOSE(x)                                                                                                   \
    do {                                                                                                               \
        const __typeof__((x)[0]) low_01 = __builtin_shufflevector((x)[0], (x)[1], 0, 4, 1, 5);                         \
        const __typeof__((x)[0]) high_01 = __builtin_shufflevector((x)[0], (x)[1], 2, 6, 3, 7);                        \
        const __typeof__((x)[0]) low_23 = __builtin_shufflevector((x)[2], (x)[3], 0, 4, 1, 5);                         \
        const __typeof__((x)[0]) high_23 = __builtin_shufflevector((x)[2], (x)[3], 2, 6, 3, 7);                        \
        (x)[0] = __builtin_shufflevector(low_01, low_23, 0, 1, 4, 5);                                                  \
        (x)[1] = __builtin_shufflevector(low_01, low_23, 2, 3, 6, 7);                                                  \
        (x)[2] = __builtin_shufflevector(high_01, high_23, 0, 1, 4, 5);                                                \
        (x)[3] = __builtin_shufflevector(high_01, high_23, 2, 3, 6, 7);                                                \
    } while (0)

/* Joins two names, after macro expansion. */
#define JOIN(a, b) JOIN_EXPANDED(a, b)
#define JOIN_EXPANDED(a, b) a##b

static inline int smaller(int64_t a, int b) { return a < b ? (int)a : b; }

/* The number of positions from this one to the end of its row, along the last dimension. */
static inline int64_t left_in_row(const struct segloss_positions* positions, int64_t position) {
    const int64_t row = positions->sizes[positions->num_dims - 1];
    return row - position % row;
}

static inline struct block block_at(const struct segloss_positions* positions, int64_t begin, int64_t end) {
    const int count = smaller(end - begin, SEGLOSS_BLOCK);
    return (struct block){positions, begin, count, left_in_row(positions, begin)};
}

/* The parts are the samples, of `size` positions each. */
static inline void find_samples(struct block_parts* parts, const struct block* b, int64_t size) {
    int end = smaller(size - b->begin % size, b->count);
    parts->count = 0;
    for (int begin = 0; begin < b->count; begin = end, end = smaller(end + size, b->count)) {
        parts->index[parts->count] = b->begin / size + parts->count;
        parts->end[parts->count++] = end;
    }
}

/* What every kernel requires of its range. */
static inline void assert_range(const struct segloss_positions* positions, int64_t begin, int64_t end) {
    assert(positions->num_dims >= 1 && positions->num_dims <= SEGLOSS_MAX_DIMS);
    assert(begin >= 0 && begin <= end && begin % SEGLOSS_BLOCK == 0);
    (void)positions;
    (void)begin;
    (void)end;
}

static inline struct run first_run(const struct block* b) {
    return (struct run){b->begin, 0, smaller(b->row_left, b->count)};
}

/* The next run has count 0 past the block's end. */
static inline struct run next_run(const struct block* b, const struct run* r) {
    const int lane = r->lane + r->count;
    const int64_t position = b->begin + lane;
    const int left = b->count - lane;
    return (struct run){position, lane, left == 0 ? 0 : smaller(left_in_row(b->positions, position), left)};
}

/* The classes of a run, from `first_class` on, in the tensor. */
static inline struct plane tensor_plane(const struct segloss_tensor* t, const struct block* b, const struct run* r,
                                        int64_t first_class) {
    int64_t offset = first_class * t->stride_class;
    int64_t rest = r->position;
    for (int d = b->positions->num_dims - 1; d > 0; --d) {
        offset += rest % b->positions->sizes[d] * t->strides[d];
        rest /= b->positions->sizes[d];
    }
    offset += rest * t->strides[0];
    return (struct plane){
        (char*)t->data + offset * segloss_dtype_size(t->dtype),
        t->stride_class,
        t->strides[b->positions->num_dims - 1],
    };
}

/* Whether all positions share one value. */
static inline int is_one_value(const struct segloss_tensor* t, const struct segloss_positions* positions) {
    int64_t any_stride = 0;
    for (int d = 0; d < positions->num_dims; ++d) {
        any_stride |= t->strides[d];
    }
    return any_stride == 0;
}

/* The lanes of a run in a buffer with rows of ROW_LANES. */
static inline struct plane lanes_plane(void* buffer, size_t element_size, const struct run* r) {
    return (struct plane){(char*)buffer + (size_t)r->lane * element_size, ROW_LANES, 1};
}

/* Rows of the next block, to prefetch while this one is computed. */
struct ahead {
    const char* data; /* NULL: nothing to fetch */
    int64_t class_bytes;
    int num_lines; /* cache lines for each class */
};

enum { CACHE_LINE = 64 };

/* Only if the voxels of each class, or the classes of each voxel, are contiguous. In other layouts prefetching is left
 * to the processor. Interleaved classes from `first_class` on are a share of the next block's lines, not their own. */
static inline struct ahead rows_ahead(const struct segloss_tensor* t, const struct block* b, const struct plane* now,
                                      int64_t first_class, int num_classes) {
    const int64_t size = segloss_dtype_size(t->dtype);
    const int64_t row_bytes = SEGLOSS_BLOCK * size;
    const int in_rows = now->stride_voxel == 1;
    const int interleaved = now->stride_class == 1 && now->stride_voxel >= num_classes;
    if (b->row_left < 2 * SEGLOSS_BLOCK || !(in_rows || interleaved)) {
        return (struct ahead){NULL, 0, 0};
    }
    const char* next = (const char*)now->data + row_bytes * now->stride_voxel;
    return (struct ahead){in_rows ? next : next + first_class * (row_bytes - size),
                          in_rows ? now->stride_class * size : row_bytes, (int)(row_bytes / CACHE_LINE)};
}

static inline const char* line_ahead(const struct ahead* a, int line) {
    return line < a->num_lines ? a->data + line * CACHE_LINE : NULL;
}

static inline float float_of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint32_t bits_of_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float float_of_bfloat16(uint16_t h) { return float_of_bits((uint32_t)h << 16); }

/* Exact, also for subnormals (unless the processor flushes them to zero): a multiplication rebiases the exponent. */
static inline float float_of_float16(uint16_t h) {
    const uint32_t magnitude = (uint32_t)(h & 0x7fff) << 13;
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    const uint32_t finite = bits_of_float(float_of_bits(magnitude) * 0x1p112f);
    const uint32_t bits = (h & 0x7c00) == 0x7c00 ? magnitude | 0x7f800000 : finite;
    return float_of_bits(bits | sign);
}

/* Rounds to nearest, ties to even; nan stays nan. */
static inline uint16_t bfloat16_of_float(float x) {
    const uint32_t bits = bits_of_float(x);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)(x == x ? rounded : 0x7fc0);
}

/* Rounds to nearest, ties to even; overflow gives inf, nan stays nan. A normal result is rounded on its bits. A
 * subnormal one is rounded by adding the power of two near which floats have the spacing of the subnormals. */
static inline uint16_t float16_of_float(float x) {
    const uint32_t bits = bits_of_float(x);
    const uint32_t magnitude = bits & 0x7fffffff;
    const uint32_t normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    const uint32_t subnormal = bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000;
    uint32_t half = magnitude < 0x38800000 ? subnormal : normal;
    half = magnitude >= 0x477ff000 ? 0x7c00 : half;
    half = magnitude > 0x7f800000 ? 0x7e00 : half;
    return (uint16_t)(half | ((bits >> 16) & 0x8000));
}

#endif
