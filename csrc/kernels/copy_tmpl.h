/* Defines COPY_NAME, which copies classes x voxels of type FROM to type TO, each with any strides, and applies CONVERT
 * (default: a C cast) to each element, or CONVERT_ROW, if defined, to elements that are contiguous on both sides. It
 * copies whole rows if voxels are contiguous on both sides, and transposes tiles if classes are contiguous on one side
 * and voxels on the other. */
#ifndef CONVERT
#define CONVERT(x) ((TO)(x))
#endif
#define PART(name) JOIN(COPY_NAME, name)

static inline __attribute__((always_inline)) void PART(_row)(TO* to, const FROM* from, int count) {
#ifdef CONVERT_ROW
    CONVERT_ROW(to, from, count);
#else
    for (int i = 0; i < count; ++i) {
        to[i] = CONVERT(from[i]);
    }
#endif
}

/* Copies the voxels from `first` on. */
static void PART(_one_by_one)(const struct plane* to, const struct plane* from, int64_t num_classes, int first,
                              int count) {
    for (int64_t c = 0; c < num_classes; ++c) {
        TO* t = (TO*)to->data + c * to->stride_class;
        const FROM* f = (const FROM*)from->data + c * from->stride_class;
        for (int i = first; i < count; ++i) {
            t[i * to->stride_voxel] = CONVERT(f[i * from->stride_voxel]);
        }
    }
}

/* Copies one value to all voxels of a class. */
static void PART(_repeated)(const struct plane* to, const struct plane* from, int64_t num_classes, int count) {
    for (int64_t c = 0; c < num_classes; ++c) {
        TO* t = (TO*)to->data + c * to->stride_class;
        const TO value = CONVERT(((const FROM*)from->data)[c * from->stride_class]);
        for (int i = 0; i < count; ++i) {
            t[i] = value;
        }
    }
}

static void PART(_in_rows)(const struct plane* to, const struct plane* from, int64_t num_classes, int count) {
    for (int64_t c = 0; c < num_classes; ++c) {
        TO* t = (TO*)to->data + c * to->stride_class;
        PART(_row)(t, (const FROM*)from->data + c * from->stride_class, count);
    }
}

/* Copies TILE voxels, whose classes are contiguous in `from`, to rows of voxels: the first n of the TILE classes. */
static inline void PART(_tile_to_rows)(TO* to, int64_t to_stride, const FROM* from, int64_t from_stride, int n) {
    typedef TO tile_row __attribute__((vector_size(TILE * sizeof(TO))));
    tile_row tile[TILE];
    for (int k = 0; k < TILE; ++k) {
        TO x[TILE];
        PART(_row)(x, from + k * from_stride, TILE);
        memcpy(&tile[k], x, sizeof x);
    }
    TRANSPOSE(tile);
    for (int k = 0; k < n; ++k) {
        memcpy(to + k * to_stride, &tile[k], sizeof tile[k]);
    }
}

/* The reverse, from rows that are already converted. */
static inline void PART(_tile_from_rows)(TO* to, int64_t to_stride, const TO* from, int64_t from_stride, int n) {
    typedef TO tile_row __attribute__((vector_size(TILE * sizeof(TO))));
    tile_row tile[TILE];
    for (int k = 0; k < TILE; ++k) {
        memcpy(&tile[k], from + (k < n ? k : 0) * from_stride, sizeof tile[k]);
    }
    TRANSPOSE(tile);
    for (int k = 0; k < TILE; ++k) {
        TO* t = to + k * to_stride;
        if (n == TILE) {
            memcpy(t, &tile[k], sizeof tile[k]);
        } else { /* n is 1, 2 or 3: these three stores cover all n classes */
            t[0] = tile[k][0];
            t[n / 2] = tile[k][n / 2];
            t[n - 1] = tile[k][n - 1];
        }
    }
}

/* A tile may read past a voxel's last class, into the next voxel, so the last voxels are copied one by one. */
static void PART(_to_rows)(const struct plane* to, const struct plane* from, int64_t num_classes, int count) {
    const int num_tiled = (count - 1) / TILE * TILE;
    const int64_t stride = to->stride_class;
    for (int i = 0; i < num_tiled; i += TILE) {
        TO* t = (TO*)to->data + i;
        const FROM* f = (const FROM*)from->data + i * from->stride_voxel;
        int64_t c = 0;
        for (; c + TILE <= num_classes; c += TILE) {
            PART(_tile_to_rows)(t + c * stride, stride, f + c, from->stride_voxel, TILE);
        }
        if (c < num_classes && num_classes > TILE) { /* some classes again */
            c = num_classes - TILE;
            PART(_tile_to_rows)(t + c * stride, stride, f + c, from->stride_voxel, TILE);
        } else if (c < num_classes) {
            PART(_tile_to_rows)(t, stride, f, from->stride_voxel, (int)num_classes);
        }
    }
    PART(_one_by_one)(to, from, num_classes, num_tiled, count);
}

/* Copies rows that need no conversion, or are converted already. */
static void PART(_tiles_from_rows)(TO* to, int64_t to_stride, const TO* from, int64_t from_stride, int64_t num_classes,
                                   int count) {
    for (int i = 0; i < count; i += TILE) {
        TO* t = to + i * to_stride;
        const TO* f = from + i;
        int64_t c = 0;
        for (; c + TILE <= num_classes; c += TILE) {
            PART(_tile_from_rows)(t + c, to_stride, f + c * from_stride, from_stride, TILE);
        }
        if (c < num_classes && num_classes > TILE) { /* some classes again */
            c = num_classes - TILE;
            PART(_tile_from_rows)(t + c, to_stride, f + c * from_stride, from_stride, TILE);
        } else if (c < num_classes) {
            PART(_tile_from_rows)(t, to_stride, f, from_stride, (int)num_classes);
        }
    }
}

static void PART(_from_rows)(const struct plane* to, const struct plane* from, int64_t num_classes, int count) {
    enum { GROUP = 4 * TILE };
    const int num_tiled = count / TILE * TILE;
    if (__builtin_types_compatible_p(TO, FROM)) {
        PART(_tiles_from_rows)(to->data, to->stride_voxel, from->data, from->stride_class, num_classes, num_tiled);
    }
    for (int64_t c = 0; !__builtin_types_compatible_p(TO, FROM) && c < num_classes; c += GROUP) {
        const int n = smaller(num_classes - c, GROUP);
        ALIGNED TO rows[GROUP][SEGLOSS_BLOCK];
        const struct plane converted = {rows, SEGLOSS_BLOCK, 1};
        const struct plane classes = {(FROM*)from->data + c * from->stride_class, from->stride_class, 1};
        PART(_in_rows)(&converted, &classes, n, count);
        PART(_tiles_from_rows)((TO*)to->data + c, to->stride_voxel, rows[0], SEGLOSS_BLOCK, n, num_tiled);
    }
    PART(_one_by_one)(to, from, num_classes, num_tiled, count);
}

static void COPY_NAME(const struct plane* to, const struct plane* from, int64_t num_classes, int count) {
    if (to->stride_voxel == 1 && from->stride_voxel == 1) {
        PART(_in_rows)(to, from, num_classes, count);
    } else if (to->stride_voxel == 1 && from->stride_voxel == 0) {
        PART(_repeated)(to, from, num_classes, count);
    } else if (num_classes > 1 && from->stride_class == 1 && from->stride_voxel >= num_classes &&
               to->stride_voxel == 1) {
        PART(_to_rows)(to, from, num_classes, count);
    } else if (num_classes > 1 && to->stride_class == 1 && from->stride_voxel == 1) {
        PART(_from_rows)(to, from, num_classes, count);
    } else {
        PART(_one_by_one)(to, from, num_classes, 0, count);
    }
}

#undef COPY_NAME
#undef FROM
#undef CONVERT
#undef CONVERT_ROW
#undef PART
