/* COPY_NAME: classes x voxels of type FROM, anywhere, to type TO, anywhere, each element through CONVERT (default: C's
 * own conversion). What lies together is copied together: rows of voxels, or tiles of classes and voxels where they are
 * neighbours the one way in `from` and the other way in `to`. */
#ifndef CONVERT
#define CONVERT(x) ((TO)(x))
#endif
#define PART(name) JOIN(COPY_NAME, name)

/* From voxel `first` on. */
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

/* One value for all voxels of a class. */
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
        const FROM* f = (const FROM*)from->data + c * from->stride_class;
        for (int i = 0; i < count; ++i) {
            t[i] = CONVERT(f[i]);
        }
    }
}

/* Classes that are neighbours in `from` to rows of voxels. A tile may reach beyond the last class, into the voxel that
 * comes next: the last voxels go one by one. */
static void PART(_to_rows)(const struct plane* to, const struct plane* from, int64_t num_classes, int count) {
    typedef TO to_vector __attribute__((vector_size(TILE * sizeof(TO))));
    const int num_tiled = (count - 1) / TILE * TILE;
    for (int i = 0; i < num_tiled; i += TILE) {
        for (int64_t c = 0; c < num_classes; c += TILE) {
            to_vector tile[TILE];
            for (int k = 0; k < TILE; ++k) {
                const FROM* f = (const FROM*)from->data + (i + k) * from->stride_voxel + c;
                TO x[TILE];
                for (int j = 0; j < TILE; ++j) {
                    x[j] = CONVERT(f[j]);
                }
                memcpy(&tile[k], x, sizeof x);
            }
            TRANSPOSE(tile);
            for (int k = 0; k < smaller(num_classes - c, TILE); ++k) {
                memcpy((TO*)to->data + (c + k) * to->stride_class + i, &tile[k], sizeof tile[k]);
            }
        }
    }
    PART(_one_by_one)(to, from, num_classes, num_tiled, count);
}

/* And back. */
static void PART(_from_rows)(const struct plane* to, const struct plane* from, int64_t num_classes, int count) {
    typedef FROM from_vector __attribute__((vector_size(TILE * sizeof(FROM))));
    const int num_tiled = count / TILE * TILE;
    for (int i = 0; i < num_tiled; i += TILE) {
        for (int64_t c = 0; c < num_classes; c += TILE) {
            const int n = smaller(num_classes - c, TILE);
            from_vector tile[TILE];
            for (int k = 0; k < TILE; ++k) {
                const int64_t row = c + (k < n ? k : 0);
                memcpy(&tile[k], (const FROM*)from->data + row * from->stride_class + i, sizeof tile[k]);
            }
            TRANSPOSE(tile);
            for (int k = 0; k < TILE; ++k) {
                TO* t = (TO*)to->data + (i + k) * to->stride_voxel + c;
                TO x[TILE];
                for (int j = 0; j < TILE; ++j) {
                    x[j] = CONVERT(tile[k][j]);
                }
                if (n == TILE) {
                    memcpy(t, x, sizeof x);
                } else {
                    for (int j = 0; j < n; ++j) {
                        t[j] = x[j];
                    }
                }
            }
        }
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
#undef PART
