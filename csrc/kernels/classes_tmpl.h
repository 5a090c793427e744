/* Reads and writes blocks of values: any dtype and stride in the tensor, REAL [class][lane] in the kernel. */

/* Classes processed at a time, 112 of float or 56 of double. At most three chunks are in use; they fit into the L2
 * cache, and on a thread's stack of 256 KiB. */
#define CLASS_CHUNK (REAL_IS_DOUBLE ? 56 : 112)

static inline int FN(chunk_length)(int64_t first_class, int64_t num_classes) {
    const int64_t left = num_classes - first_class;
    return left < CLASS_CHUNK ? (int)left : CLASS_CHUNK;
}

#define TO REAL

#define COPY_NAME FN(from_float32)
#define FROM float
#include "copy_tmpl.h"

#define COPY_NAME FN(from_float64)
#define FROM double
#include "copy_tmpl.h"

#define COPY_NAME FN(from_float16)
#define FROM uint16_t
#define CONVERT float_of_float16
#if defined(FLOATS_OF_FLOAT16) && !REAL_IS_DOUBLE
#define CONVERT_ROW FLOATS_OF_FLOAT16
#endif
#include "copy_tmpl.h"

#define COPY_NAME FN(from_bfloat16)
#define FROM uint16_t
#define CONVERT float_of_bfloat16
#include "copy_tmpl.h"

#define COPY_NAME FN(from_uint8)
#define FROM uint8_t
#include "copy_tmpl.h"

#define COPY_NAME FN(from_int8)
#define FROM int8_t
#include "copy_tmpl.h"

#define COPY_NAME FN(from_uint16)
#define FROM uint16_t
#include "copy_tmpl.h"

#define COPY_NAME FN(from_int16)
#define FROM int16_t
#include "copy_tmpl.h"

#define COPY_NAME FN(from_uint32)
#define FROM uint32_t
#include "copy_tmpl.h"

#define COPY_NAME FN(from_int32)
#define FROM int32_t
#include "copy_tmpl.h"

#define COPY_NAME FN(from_uint64)
#define FROM uint64_t
#include "copy_tmpl.h"

#define COPY_NAME FN(from_int64)
#define FROM int64_t
#include "copy_tmpl.h"

#undef TO

#define COPY_NAME FN(to_float32)
#define FROM REAL
#define TO float
#include "copy_tmpl.h"
#undef TO

#define COPY_NAME FN(to_float64)
#define FROM REAL
#define TO double
#include "copy_tmpl.h"
#undef TO

#define COPY_NAME FN(to_float16)
#define FROM REAL
#define TO uint16_t
#define CONVERT(x) float16_of_float((float)(x))
#if defined(FLOAT16_OF_FLOATS) && !REAL_IS_DOUBLE
#define CONVERT_ROW FLOAT16_OF_FLOATS
#endif
#include "copy_tmpl.h"
#undef TO

#define COPY_NAME FN(to_bfloat16)
#define FROM REAL
#define TO uint16_t
#define CONVERT(x) bfloat16_of_float((float)(x))
#include "copy_tmpl.h"
#undef TO

static copy_function* const FN(readers)[] = {
    [SEGLOSS_FLOAT32] = FN(from_float32),   [SEGLOSS_FLOAT64] = FN(from_float64), [SEGLOSS_FLOAT16] = FN(from_float16),
    [SEGLOSS_BFLOAT16] = FN(from_bfloat16), [SEGLOSS_UINT8] = FN(from_uint8),     [SEGLOSS_INT8] = FN(from_int8),
    [SEGLOSS_UINT16] = FN(from_uint16),     [SEGLOSS_INT16] = FN(from_int16),     [SEGLOSS_UINT32] = FN(from_uint32),
    [SEGLOSS_INT32] = FN(from_int32),       [SEGLOSS_UINT64] = FN(from_uint64),   [SEGLOSS_INT64] = FN(from_int64),
};

static copy_function* const FN(writers)[] = {
    [SEGLOSS_FLOAT32] = FN(to_float32),
    [SEGLOSS_FLOAT64] = FN(to_float64),
    [SEGLOSS_FLOAT16] = FN(to_float16),
    [SEGLOSS_BFLOAT16] = FN(to_bfloat16),
};

/* Writes 0 to the lanes past the end of a partial block, so that loops over whole rows read numbers. */
static void FN(clear_unused)(REAL* rows, const struct block* b, int num_rows) {
    for (int c = 0; b->count < SEGLOSS_BLOCK && c < num_rows; ++c) {
        memset(rows + c * ROW_LANES + b->count, 0, (size_t)(SEGLOSS_BLOCK - b->count) * sizeof *rows);
    }
}

/* Lanes past the end are left as they are. */
static void FN(copy_classes)(REAL* values, const struct segloss_tensor* t, const struct block* b, int64_t first_class,
                             int num_classes) {
    for (struct run r = first_run(b); r.count > 0; r = next_run(b, &r)) {
        const struct plane to = lanes_plane(values, sizeof(REAL), &r);
        const struct plane from = tensor_plane(t, b, &r, first_class);
        FN(readers)[t->dtype](&to, &from, num_classes, r.count);
    }
}

static void FN(read_classes)(REAL* values, const struct segloss_tensor* t, const struct block* b, int64_t first_class,
                             int num_classes) {
    FN(clear_unused)(values, b, num_classes);
    FN(copy_classes)(values, t, b, first_class, num_classes);
}

/* The value of a class in a tensor with one value for all positions. */
static REAL FN(read_value)(const struct segloss_tensor* t, int64_t class) {
    REAL value;
    const struct plane to = {&value, 0, 1};
    const struct plane from = {(char*)t->data + class * t->stride_class * segloss_dtype_size(t->dtype), 0, 0};
    FN(readers)[t->dtype](&to, &from, 1, 1);
    return value;
}

static void FN(write_classes)(const REAL* values, const struct segloss_tensor* t, const struct block* b,
                              int64_t first_class, int num_classes) {
    for (struct run r = first_run(b); r.count > 0; r = next_run(b, &r)) {
        const struct plane to = tensor_plane(t, b, &r, first_class);
        const struct plane from = lanes_plane((void*)values, sizeof(REAL), &r);
        FN(writers)[t->dtype](&to, &from, num_classes, r.count);
    }
}

#define ROWS struct FN(rows)

/* Rows of a chunk: the lanes of class c begin at values + c * stride. */
ROWS {
    REAL* values;
    int64_t stride;
    int stream; /* write past the caches; every vector is aligned */
};

/* Whether the tensor holds a whole block as a buffer would: the lanes of each class contiguous, as REAL. */
static int FN(lies_in_rows)(const struct segloss_tensor* t, const struct plane* plane, int count) {
    return t->dtype == REAL_DTYPE && plane->stride_voxel == 1 && count == SEGLOSS_BLOCK;
}

/* Where to put a chunk's results: in the tensor itself if its lanes lie in rows (saves a copy), else in `buffer`. */
static ROWS FN(output_rows)(const struct segloss_tensor* t, const struct block* b, int64_t first_class, int stream,
                            REAL* buffer) {
    const struct run r = first_run(b);
    const struct plane plane = tensor_plane(t, b, &r, first_class);
    const int aligned = (uintptr_t)plane.data % sizeof(VEC) == 0 && plane.stride_class % WIDTH == 0;
    return FN(lies_in_rows)(t, &plane, r.count) ? (ROWS){plane.data, plane.stride_class, stream && aligned}
                                                : (ROWS){buffer, ROW_LANES, 0};
}

static inline void FN(put)(ROWS rows, int64_t k, VEC x) {
    if (rows.stream) {
        FN(stream)(rows.values + k, x);
    } else {
        FN(store)(rows.values + k, x);
    }
}

/* The chunk of classes that was read last; reading it again costs nothing. */
#define CHUNK struct FN(chunk)

CHUNK {
    ALIGNED REAL values[CLASS_CHUNK * ROW_LANES];
    const struct segloss_tensor* tensor;
    int64_t first_class; /* -1: none yet */
};

/* The values of classes [first_class, first_class + num_classes) as [class][lane]. Inactive lanes hold 0, so that
 * voxels that do not count give no nan. */
static const REAL* FN(read_chunk)(CHUNK* chunk, const struct block* b, const REAL* active, int64_t first_class,
                                  int num_classes) {
    if (chunk->first_class == first_class) {
        return chunk->values;
    }
    chunk->first_class = first_class;
    FN(read_classes)(chunk->values, chunk->tensor, b, first_class, num_classes);
    if (active) {
        for (int c = 0; c < num_classes; ++c) {
            REAL* values = chunk->values + c * ROW_LANES;
            for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
                values[i] = active[i] != 0 ? values[i] : 0;
            }
        }
    }
    return chunk->values;
}

static double FN(total_of_lanes)(const double* sums) {
    double total = 0;
    for (int k = 0; k < SUM_LANES; ++k) {
        total += sums[k];
    }
    return total;
}
