/* Reads predicted labels and counts pairs of a label and a prediction. */

/* Reads one block of predicted labels. Returns -1, or the first lane whose voxel counts, label[lane] >= 0, and whose
 * prediction is outside [0, num_classes). */
static int read_predictions(int32_t* predicted, const struct segloss_tensor* prediction, const struct block* b,
                            const int32_t* label, int64_t num_classes) {
    ALIGNED int64_t value[SEGLOSS_BLOCK] = {0};
    ALIGNED int32_t bad[SEGLOSS_BLOCK];
    int any_bad = 0;
    read_integers(value, prediction, b, 0);
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        const int in_range = (uint64_t)value[i] < (uint64_t)num_classes;
        predicted[i] = in_range ? (int32_t)value[i] : 0;
        bad[i] = (label[i] >= 0) & !in_range;
        any_bad |= bad[i];
    }
    for (int i = 0; any_bad && i < b->count; ++i) {
        if (bad[i]) {
            return i;
        }
    }
    return -1;
}

/* Adds 1 to the cell of each lane. Neighbours often share a cell, where each addition would wait for the one before: a
 * group that shares one cell is added at once. */
static void add_lanes(int64_t* counts, const int64_t* cell) {
    enum { GROUP = 8 };
    for (const int64_t* c = cell; c < cell + SEGLOSS_BLOCK; c += GROUP) {
        int64_t differing = 0;
        for (int i = 1; i < GROUP; ++i) {
            differing |= c[i] ^ c[0];
        }
        if (!differing) {
            counts[c[0]] += GROUP;
            continue;
        }
        for (int i = 0; i < GROUP; ++i) {
            ++counts[c[i]];
        }
    }
}

/* Lanes that do not count go to the extra cell after the last one, which avoids a branch. */
static void count_pairs(int64_t* counts, const int32_t* label, const int32_t* predicted, int64_t num_classes) {
    ALIGNED int64_t cell[SEGLOSS_BLOCK];
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        cell[i] = label[i] >= 0 ? label[i] * num_classes + predicted[i] : num_classes * num_classes;
    }
    add_lanes(counts, cell);
}

static void count_classes(int64_t* counts, const int32_t* label, const int32_t* predicted, int64_t num_classes) {
    ALIGNED int64_t by_label[SEGLOSS_BLOCK], by_prediction[SEGLOSS_BLOCK];
    const int64_t nowhere = 3 * num_classes;
    for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
        const int hit = label[i] == predicted[i];
        const int64_t of_label = hit ? label[i] : 2 * num_classes + label[i];
        const int64_t of_prediction = hit ? nowhere : num_classes + predicted[i];
        by_label[i] = label[i] >= 0 ? of_label : nowhere;
        by_prediction[i] = label[i] >= 0 ? of_prediction : nowhere;
    }
    add_lanes(counts, by_label);
    add_lanes(counts, by_prediction);
}

/* Writes a block of labels, which fit the dtype. */
static void write_labels(const int32_t* label, const struct segloss_tensor* t, const struct block* b, int64_t class) {
    for (struct run r = first_run(b); r.count > 0; r = next_run(b, &r)) {
        const struct plane to = tensor_plane(t, b, &r, class);
        const int32_t* from = label + r.lane;
        switch (segloss_dtype_size(t->dtype)) {
#define WRITE(sizes, type)                                                                                             \
    sizes:                                                                                                             \
    for (int i = 0; to.stride_voxel == 1 && i < r.count; ++i) {                                                        \
        ((type*)to.data)[i] = (type)from[i];                                                                           \
    }                                                                                                                  \
    for (int i = 0; to.stride_voxel != 1 && i < r.count; ++i) {                                                        \
        ((type*)to.data)[i * to.stride_voxel] = (type)from[i];                                                         \
    }                                                                                                                  \
    break;
            WRITE(case 1, uint8_t)
            WRITE(case 2, uint16_t)
            WRITE(case 4, uint32_t)
            WRITE(default, int64_t)
#undef WRITE
        }
    }
}

/* Reads the labels of a map, of any value. Those of uint64 beyond int64 are negative here. */
static void read_map(int64_t* label, const struct segloss_tensor* map, const struct block* b) {
    struct segloss_tensor bits = *map;
    bits.dtype = map->dtype == SEGLOSS_UINT64 ? SEGLOSS_INT64 : map->dtype;
    read_integers(label, &bits, b, 0);
}

/* Replaces labels by classes and says which are counted. Returns -1 or the first lane whose label has no class. */
static int look_up_map(int64_t* label, int64_t* is_counted, const struct segloss_label_table* table,
                       const struct block* b) {
    for (int i = 0; i < b->count; ++i) {
        const int64_t entry = entry_of_label(row_of_position(table, b->begin + i), label[i]);
        label[i] = class_of_entry(entry, label[i], INT64_MAX);
        if (label[i] == BAD) {
            return i;
        }
        is_counted[i] = label[i] != IGNORED;
    }
    return -1;
}

static int64_t compare_maps(const struct segloss_confusion* a, int64_t begin, int64_t end, int64_t* counts) {
    assert_range(&a->positions, begin, end);
    const int is_floating = a->target.dtype <= SEGLOSS_BFLOAT16;
    const int one_wraps = (a->target.dtype == SEGLOSS_UINT64) != (a->prediction.dtype == SEGLOSS_UINT64);
    const int may_ignore = a->target.dtype != SEGLOSS_UINT64 || a->ignore_index >= 0;
    ALIGNED int64_t label[SEGLOSS_BLOCK], predicted[SEGLOSS_BLOCK], is_counted[SEGLOSS_BLOCK];
    int64_t num_equal = 0, num_counted = 0;
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        const struct block b = block_at(&a->positions, p, end);
        read_map(label, &a->target, &b);
        read_map(predicted, &a->prediction, &b);
        for (int i = 0; is_floating && i < b.count; ++i) {
            if (label[i] == NO_LABEL) {
                return p + i;
            }
        }
        for (int i = 0; i < b.count; ++i) {
            is_counted[i] = !(may_ignore & (label[i] == a->ignore_index));
        }
        const int bad = a->labels.rows ? look_up_map(label, is_counted, &a->labels, &b) : -1;
        if (bad >= 0) {
            return p + bad;
        }
        for (int i = 0; i < b.count; ++i) {
            num_counted += is_counted[i];
            num_equal += is_counted[i] & (predicted[i] == label[i]) & !(one_wraps & (label[i] < 0));
        }
    }
    counts[0] = num_equal;
    counts[1] = num_counted;
    return -1;
}

static int64_t largest_label(const struct segloss_confusion* a, int64_t begin, int64_t end, int64_t* largest) {
    assert_range(&a->positions, begin, end);
    ALIGNED int32_t label[SEGLOSS_BLOCK];
    ALIGNED int32_t predicted[SEGLOSS_BLOCK];
    int32_t max = -1;
    for (int64_t p = begin; p < end; p += SEGLOSS_BLOCK) {
        const struct block b = block_at(&a->positions, p, end);
        int bad = read_labels(label, &a->target, &a->labels, &b, a->num_classes, a->ignore_index);
        bad = bad >= 0 ? bad : read_predictions(predicted, &a->prediction, &b, label, a->num_classes);
        if (bad >= 0) {
            return p + bad;
        }
        for (int i = 0; i < SEGLOSS_BLOCK; ++i) {
            const int32_t larger = label[i] > predicted[i] ? label[i] : predicted[i];
            max = label[i] >= 0 && larger > max ? larger : max;
        }
    }
    *largest = max;
    return -1;
}
