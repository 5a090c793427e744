/* Reads class labels of any dtype. */
#ifndef SEGLOSS_LABELS_H
#define SEGLOSS_LABELS_H

#include "block.h"

/* Stands for a floating-point label that is not integral and for an unsigned one beyond int64. No label of these dtypes
 * has this value itself: it is negative and takes 63 bits. */
#define NO_LABEL (INT64_MIN + 1)

static inline int64_t label_of_double(double x) {
    const int representable = x >= -0x1p63 && x < 0x1p63; /* false for nan */
    const int64_t integer = representable ? (int64_t)x : 0;
    return representable && (double)integer == x ? integer : NO_LABEL;
}

static inline int64_t label_of_float16(uint16_t h) { return label_of_double(float_of_float16(h)); }
static inline int64_t label_of_bfloat16(uint16_t h) { return label_of_double(float_of_bfloat16(h)); }
static inline int64_t label_of_uint64(uint64_t x) { return x <= INT64_MAX ? (int64_t)x : NO_LABEL; }

#define TO int64_t

#define COPY_NAME labels_from_float32
#define FROM float
#define CONVERT label_of_double
#include "copy_tmpl.h"

#define COPY_NAME labels_from_float64
#define FROM double
#define CONVERT label_of_double
#include "copy_tmpl.h"

#define COPY_NAME labels_from_float16
#define FROM uint16_t
#define CONVERT label_of_float16
#include "copy_tmpl.h"

#define COPY_NAME labels_from_bfloat16
#define FROM uint16_t
#define CONVERT label_of_bfloat16
#include "copy_tmpl.h"

#define COPY_NAME labels_from_uint8
#define FROM uint8_t
#include "copy_tmpl.h"

#define COPY_NAME labels_from_int8
#define FROM int8_t
#include "copy_tmpl.h"

#define COPY_NAME labels_from_uint16
#define FROM uint16_t
#include "copy_tmpl.h"

#define COPY_NAME labels_from_int16
#define FROM int16_t
#include "copy_tmpl.h"

#define COPY_NAME labels_from_uint32
#define FROM uint32_t
#include "copy_tmpl.h"

#define COPY_NAME labels_from_int32
#define FROM int32_t
#include "copy_tmpl.h"

#define COPY_NAME labels_from_uint64
#define FROM uint64_t
#define CONVERT label_of_uint64
#include "copy_tmpl.h"

#define COPY_NAME labels_from_int64
#define FROM int64_t
#include "copy_tmpl.h"
#undef TO

static copy_function* const label_readers[] = {
    [SEGLOSS_FLOAT32] = labels_from_float32, [SEGLOSS_FLOAT64] = labels_from_float64,
    [SEGLOSS_FLOAT16] = labels_from_float16, [SEGLOSS_BFLOAT16] = labels_from_bfloat16,
    [SEGLOSS_UINT8] = labels_from_uint8,     [SEGLOSS_INT8] = labels_from_int8,
    [SEGLOSS_UINT16] = labels_from_uint16,   [SEGLOSS_INT16] = labels_from_int16,
    [SEGLOSS_UINT32] = labels_from_uint32,   [SEGLOSS_INT32] = labels_from_int32,
    [SEGLOSS_UINT64] = labels_from_uint64,   [SEGLOSS_INT64] = labels_from_int64,
};

/* Reads one integer per voxel of a block; of class `class` if the tensor has classes. */
static void read_integers(int64_t* value, const struct segloss_tensor* t, const struct block* b, int64_t class) {
    for (struct run r = first_run(b); r.count > 0; r = next_run(b, &r)) {
        const struct plane to = lanes_plane(value, sizeof value[0], &r);
        const struct plane from = tensor_plane(t, b, &r, class);
        label_readers[t->dtype](&to, &from, 1, r.count);
    }
}

/* Stand for a label that is not a class. */
enum { IGNORED = -1, BAD = -2 };

typedef int label_function(int32_t* label, const struct plane* from, int count, int64_t num_classes,
                           int64_t ignore_index);

#define LABEL_NAME class_from_float32
#define FROM float
#define CONVERT label_of_double
#define WIDE int64_t
#include "label_tmpl.h"

#define LABEL_NAME class_from_float64
#define FROM double
#define CONVERT label_of_double
#define WIDE int64_t
#include "label_tmpl.h"

#define LABEL_NAME class_from_float16
#define FROM uint16_t
#define CONVERT label_of_float16
#define WIDE int64_t
#include "label_tmpl.h"

#define LABEL_NAME class_from_bfloat16
#define FROM uint16_t
#define CONVERT label_of_bfloat16
#define WIDE int64_t
#include "label_tmpl.h"

#define LABEL_NAME class_from_uint8
#define FROM uint8_t
#define WIDE int32_t
#include "label_tmpl.h"

#define LABEL_NAME class_from_int8
#define FROM int8_t
#define WIDE int32_t
#include "label_tmpl.h"

#define LABEL_NAME class_from_uint16
#define FROM uint16_t
#define WIDE int32_t
#include "label_tmpl.h"

#define LABEL_NAME class_from_int16
#define FROM int16_t
#define WIDE int32_t
#include "label_tmpl.h"

#define LABEL_NAME class_from_uint32
#define FROM uint32_t
#define WIDE int64_t
#include "label_tmpl.h"

#define LABEL_NAME class_from_int32
#define FROM int32_t
#define WIDE int32_t
#include "label_tmpl.h"

#define LABEL_NAME class_from_uint64
#define FROM uint64_t
#define CONVERT label_of_uint64
#define WIDE int64_t
#include "label_tmpl.h"

#define LABEL_NAME class_from_int64
#define FROM int64_t
#define WIDE int64_t
#include "label_tmpl.h"

static label_function* const class_readers[] = {
    [SEGLOSS_FLOAT32] = class_from_float32, [SEGLOSS_FLOAT64] = class_from_float64,
    [SEGLOSS_FLOAT16] = class_from_float16, [SEGLOSS_BFLOAT16] = class_from_bfloat16,
    [SEGLOSS_UINT8] = class_from_uint8,     [SEGLOSS_INT8] = class_from_int8,
    [SEGLOSS_UINT16] = class_from_uint16,   [SEGLOSS_INT16] = class_from_int16,
    [SEGLOSS_UINT32] = class_from_uint32,   [SEGLOSS_INT32] = class_from_int32,
    [SEGLOSS_UINT64] = class_from_uint64,   [SEGLOSS_INT64] = class_from_int64,
};

/* The kernel reads labels faster than the hardware prefetches them, so this fetches those a few blocks ahead. */
static void fetch_labels_ahead(const struct plane* now, int count, int64_t size) {
    enum { BLOCKS_AHEAD = 4 };
    const char* ahead = (const char*)now->data + BLOCKS_AHEAD * SEGLOSS_BLOCK * size;
    for (int64_t offset = 0; now->stride_voxel == 1 && offset < count * size; offset += CACHE_LINE) {
        __builtin_prefetch(ahead + offset, 0, 2);
    }
}

/* Reads one block of labels: the class of each lane, -1 for ignored labels and in lanes past the end. Returns -1, or
 * the first lane whose label is neither ignore_index nor in [0, num_classes). */
static int read_labels(int32_t* label, const struct segloss_tensor* target, const struct block* b, int64_t num_classes,
                       int64_t ignore_index) {
    int any_bad = 0;
    for (struct run r = first_run(b); r.count > 0; r = next_run(b, &r)) {
        const struct plane from = tensor_plane(target, b, &r, 0);
        fetch_labels_ahead(&from, r.count, dtype_size(target->dtype));
        any_bad |= class_readers[target->dtype](label + r.lane, &from, r.count, num_classes, ignore_index);
    }
    for (int i = b->count; i < SEGLOSS_BLOCK; ++i) {
        label[i] = IGNORED;
    }
    for (int i = 0; any_bad && i < b->count; ++i) {
        if (label[i] == BAD) {
            return i;
        }
    }
    return -1;
}

#endif
