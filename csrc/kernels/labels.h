/* Reads class labels of any dtype. */
#ifndef SEGLOSS_LABELS_H
#define SEGLOSS_LABELS_H

#include "block.h"
#include "label_row.h"

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
enum { IGNORED = SEGLOSS_IGNORED, BAD = SEGLOSS_BAD };

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

typedef void key_function(uint16_t* key, const struct plane* from, int count, int64_t base);

/* NULL for dtypes whose labels may be NO_LABEL. */
static key_function* const key_readers[] = {
    [SEGLOSS_UINT8] = keys_class_from_uint8,
    [SEGLOSS_INT8] = keys_class_from_int8,
    [SEGLOSS_UINT16] = keys_class_from_uint16,
    [SEGLOSS_INT16] = keys_class_from_int16,
    [SEGLOSS_UINT32] = keys_class_from_uint32,
    [SEGLOSS_INT32] = keys_class_from_int32,
    [SEGLOSS_UINT64] = NULL,
    [SEGLOSS_INT64] = keys_class_from_int64,
};

#define FEW_NAME classes_of_bytes
#define KEY uint8_t
#define SIGNED int8_t
#define SIGNED_MAX INT8_MAX
#include "few_labels_tmpl.h"

#define FEW_NAME classes_of_keys
#define KEY uint16_t
#define SIGNED int16_t
#define SIGNED_MAX INT16_MAX
#include "few_labels_tmpl.h"

/* The kernel reads labels faster than the hardware prefetches them, so this fetches those a few blocks ahead. */
static void fetch_labels_ahead(const struct plane* now, int count, int64_t size) {
    enum { BLOCKS_AHEAD = 4 };
    const char* ahead = (const char*)now->data + BLOCKS_AHEAD * SEGLOSS_BLOCK * size;
    for (int64_t offset = 0; now->stride_voxel == 1 && offset < count * size; offset += CACHE_LINE) {
        __builtin_prefetch(ahead + offset, 0, 2);
    }
}

/* The classes of labels in consecutive lanes, which share a row of a table. Returns whether any is BAD. A label that
 * `may_lack` a value is BAD if it is NO_LABEL. */
static int classes_of_lanes(int32_t* restrict label, const int64_t* restrict row, const int64_t* restrict value,
                            int count, int64_t num_classes, int may_lack) {
    const int64_t* entries = row + SEGLOSS_ROW_HEADER;
    const uint64_t first = (uint64_t)row[SEGLOSS_ROW_FIRST], length = (uint64_t)row[SEGLOSS_ROW_LENGTH];
    const int64_t other = row[SEGLOSS_ROW_OTHER];
    int32_t lowest = IGNORED;
    if (row[SEGLOSS_ROW_IS_SORTED]) {
        for (int i = 0; i < count; ++i) {
            label[i] = (int32_t)class_of_entry(entry_of_label(row, value[i]), value[i], num_classes);
        }
    } else {
        for (int i = 0; i < count; ++i) { /* without a branch, so that it vectorises */
            const uint64_t place = (uint64_t)value[i] - first;
            const int64_t at_place = entries[place < length ? place : 0];
            const int64_t entry = place < length ? at_place : other;
            label[i] = (int32_t)class_of_entry(entry, value[i], num_classes);
        }
    }
    for (int i = 0; may_lack && i < count; ++i) {
        label[i] = value[i] == NO_LABEL ? BAD : label[i];
    }
    for (int i = 0; i < count; ++i) {
        lowest = label[i] < lowest ? label[i] : lowest;
    }
    return lowest == BAD;
}

/* Up to this many labels it is faster to compare all voxels with each than to look up each voxel. */
enum { FEW_LABELS = 48 };

/* How the classes of a block are found. */
enum way { BY_BYTES, BY_KEYS, BY_LOOK_UP };

static enum way way_of_row(const int64_t* row, enum segloss_dtype dtype, int64_t num_classes) {
    const int64_t length = row[SEGLOSS_ROW_LENGTH], base = row[SEGLOSS_ROW_FIRST];
    const int64_t end = row[SEGLOSS_ROW_OTHER] == SEGLOSS_SAME ? num_classes : row[SEGLOSS_ROW_CLASSES];
    if (!row[SEGLOSS_ROW_IS_SORTED] || length > FEW_LABELS || !key_readers[dtype] || end > INT16_MAX) {
        return BY_LOOK_UP;
    }
    const int64_t last = row[SEGLOSS_ROW_HEADER + 2 * length - 1];
    const int fits =
        base >= INT16_MIN && base <= INT32_MAX - UINT16_MAX && (uint64_t)last - (uint64_t)base < UINT16_MAX;
    return segloss_dtype_size(dtype) == 1 && end <= INT8_MAX ? BY_BYTES : fits ? BY_KEYS : BY_LOOK_UP;
}

/* Finds the classes of a run of labels that share a row. Returns whether any is BAD. */
static int classes_of_run(int32_t* label, const struct plane* from, enum segloss_dtype dtype, const int64_t* row,
                          int count, int64_t num_logits) {
    const int64_t num_classes = classes_of_row(row, num_logits);
    switch (way_of_row(row, dtype, num_classes)) {
    case BY_BYTES: {
        ALIGNED uint8_t key[SEGLOSS_BLOCK] = {0};
        const uint8_t* bytes = from->data;
        const int in_place = from->stride_voxel == 1 && count == SEGLOSS_BLOCK;
        for (int i = 0; !in_place && i < count; ++i) {
            key[i] = bytes[i * from->stride_voxel];
        }
        const int is_signed = dtype == SEGLOSS_INT8;
        return classes_of_bytes(label, in_place ? bytes : key, row, count, num_classes, 0, is_signed ? INT8_MIN : 0,
                                is_signed ? INT8_MAX : UINT8_MAX);
    }
    case BY_KEYS: {
        ALIGNED uint16_t key[SEGLOSS_BLOCK] = {0};
        const int64_t base = row[SEGLOSS_ROW_FIRST];
        key_readers[dtype](key, from, count, base);
        return classes_of_keys(label, key, row, count, num_classes, base, base, INT64_MAX);
    }
    default: {
        ALIGNED int64_t value[SEGLOSS_BLOCK];
        const struct plane to = {value, 0, 1};
        label_readers[dtype](&to, from, 1, count);
        return classes_of_lanes(label, row, value, count, num_classes, !key_readers[dtype]);
    }
    }
}

/* The same by a table, which may have several rows for these lanes. */
static int classes_by_table(int32_t* label, const struct plane* from, enum segloss_dtype dtype,
                            const struct segloss_label_table* table, int64_t position, int count, int64_t num_classes) {
    int any_bad = 0;
    for (int i = 0, n = count; i < count; i += n) {
        const int64_t size = table->row_positions, offset = i * from->stride_voxel * segloss_dtype_size(dtype);
        const struct plane rest = {(char*)from->data + offset, 0, from->stride_voxel};
        n = size > 0 ? smaller(size - (position + i) % size, count - i) : count;
        any_bad |= classes_of_run(label + i, &rest, dtype, row_of_position(table, position + i), n, num_classes);
    }
    return any_bad;
}

/* Bits [first, first + 32) of each lane's set, or group, for a multiple of 32; 0 where there is no label. */
static void bits_of_lanes(uint32_t* bits, const int32_t* label, const struct segloss_label_table* table,
                          const struct block* b, int64_t first, int of_groups) {
    const int64_t words = table->rows[SEGLOSS_ROW_WORDS], size = table->row_positions;
    const int64_t* sets = NULL;
    int64_t left = 0; /* lanes that have these sets */
    memset(bits, 0, SEGLOSS_BLOCK * sizeof *bits);
    for (int i = 0; i < b->count; ++i, --left) {
        if (left == 0) {
            const int64_t position = b->begin + i;
            const int64_t* row = row_of_position(table, position);
            sets = set_of_class(row, of_groups ? row[SEGLOSS_ROW_CLASSES] : 0);
            left = size > 0 ? size - position % size : SEGLOSS_BLOCK;
        }
        const uint64_t word = label[i] < 0 ? 0 : (uint64_t)sets[label[i] * words + first / 64];
        bits[i] = (uint32_t)(word >> (first % 64));
    }
}

/* Reads one block of labels: the class of each lane, -1 for ignored labels and in lanes past the end. Returns -1, or
 * the first lane whose label is neither ignored nor a class in [0, num_classes). */
static int read_labels(int32_t* label, const struct segloss_tensor* target, const struct segloss_label_table* table,
                       const struct block* b, int64_t num_classes, int64_t ignore_index) {
    const enum segloss_dtype dtype = target->dtype;
    int any_bad = 0;
    for (struct run r = first_run(b); r.count > 0; r = next_run(b, &r)) {
        const struct plane from = tensor_plane(target, b, &r, 0);
        fetch_labels_ahead(&from, r.count, segloss_dtype_size(dtype));
        any_bad |= table->rows ? classes_by_table(label + r.lane, &from, dtype, table, r.position, r.count, num_classes)
                               : class_readers[dtype](label + r.lane, &from, r.count, num_classes, ignore_index);
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
