/* The soft skeleton of an image of ELEMENTs, plane by plane; SKELETON(name) makes a name unique for it. See kernels.h.
 *
 * All levels advance together: when plane t has been read, plane t - k - 1 of erosion k + 1 can be made, and then plane
 * t - k - 2 of its dilation. So few planes have to be kept that they stay in the cache. */

/* Plane z of the ring of `count` planes that begins at plane number `ring`: a pointer to its first row. */
static inline ELEMENT* SKELETON(plane)(const struct skeleton_layout* layout, ELEMENT* workspace, int64_t ring,
                                       int64_t count, int64_t z) {
    return workspace + (ring + z % count) * layout->stride + layout->first;
}

static void SKELETON(copy_margin_rows)(const struct skeleton_layout* layout, ELEMENT* rows) {
    if (layout->below > 0) {
        const size_t size = (size_t)layout->pitch * sizeof *rows;
        memcpy(rows - 1 - layout->pitch, rows - 1, size);
        memcpy(rows - 1 + layout->length, rows - 1 + layout->length - layout->pitch, size);
    }
}

/* Beyond the border lies what lies at the border: it changes no minimum and no maximum. */
static void SKELETON(fill_margins)(const struct skeleton_layout* layout, ELEMENT* rows) {
    for (int64_t i = 0; i < layout->length; i += layout->pitch) {
        rows[i - 1] = rows[i];
        rows[i + layout->pitch - 2] = rows[i + layout->pitch - 3];
    }
    SKELETON(copy_margin_rows)(layout, rows);
}

static void SKELETON(read_plane)(const struct segloss_soft_skeleton* a, const struct skeleton_layout* layout,
                                 const ELEMENT* image, int64_t z, ELEMENT* rows) {
    const int64_t columns = a->sizes[2];
    for (int64_t row = 0; row < a->sizes[1]; ++row) {
        memcpy(rows + row * layout->pitch, image + (z * a->sizes[1] + row) * columns, (size_t)columns * sizeof *rows);
    }
    SKELETON(fill_margins)(layout, rows);
}

static void SKELETON(write_plane)(const struct segloss_soft_skeleton* a, const struct skeleton_layout* layout,
                                  const ELEMENT* rows, int64_t z, ELEMENT* image) {
    const int64_t columns = a->sizes[2];
    for (int64_t row = 0; row < a->sizes[1]; ++row) {
        memcpy(image + (z * a->sizes[1] + row) * columns, rows + row * layout->pitch, (size_t)columns * sizeof *rows);
    }
}

static inline ELEMENT SKELETON(least)(ELEMENT x, ELEMENT than) { return x < than ? x : than; }

static inline ELEMENT SKELETON(most)(ELEMENT x, ELEMENT than) { return x > than ? x : than; }

/* The least of each element and its neighbours along the axes. */
static void SKELETON(erode)(const struct skeleton_layout* layout, const ELEMENT* before, const ELEMENT* x,
                            const ELEMENT* after, ELEMENT* restrict eroded) {
    const int64_t below = layout->below;
    for (int64_t i = 0; i < layout->length; ++i) {
        ELEMENT least = SKELETON(least)(before[i], x[i]);
        least = SKELETON(least)(x[i - below], least);
        least = SKELETON(least)(x[i - 1], least);
        least = SKELETON(least)(x[i + 1], least);
        least = SKELETON(least)(x[i + below], least);
        eroded[i] = SKELETON(least)(after[i], least);
    }
    SKELETON(fill_margins)(layout, eroded);
}

/* The largest of the 3 x 3 around each element. */
static void SKELETON(widen)(const struct skeleton_layout* layout, const ELEMENT* x, ELEMENT* restrict row_max,
                            ELEMENT* restrict max) {
    const int64_t below = layout->below;
    for (int64_t i = 0; i < layout->length; ++i) {
        row_max[i] = SKELETON(most)(x[i + 1], SKELETON(most)(x[i - 1], x[i]));
    }
    SKELETON(copy_margin_rows)(layout, row_max);
    for (int64_t i = 0; i < layout->length; ++i) {
        max[i] = SKELETON(most)(row_max[i + below], SKELETON(most)(row_max[i - below], row_max[i]));
    }
}

/* What an element loses by opening; nan stays nan. */
static inline ELEMENT SKELETON(lost)(ELEMENT x, ELEMENT opened) { return (ELEMENT)(x <= opened ? 0 : x - opened); }

/* Adds to the skeleton what level k loses by opening. */
static void SKELETON(add_level)(const struct skeleton_layout* layout, int64_t k, const ELEMENT* x,
                                const ELEMENT* before, const ELEMENT* max, const ELEMENT* after,
                                ELEMENT* restrict skeleton) {
    for (int64_t i = 0; i < layout->length; ++i) {
        const ELEMENT opened = SKELETON(most)(after[i], SKELETON(most)(before[i], max[i]));
        const ELEMENT lost = SKELETON(lost)(x[i], opened);
        const ELEMENT sum = k == 0 ? 0 : skeleton[i];
        const ELEMENT more = (ELEMENT)(lost - sum * lost);
        skeleton[i] = (ELEMENT)(sum + (more <= 0 ? 0 : more));
    }
}

static void SKELETON(soft_skeleton)(const struct segloss_soft_skeleton* a, const void* image, void* skeleton,
                                    int64_t begin, int64_t end, void* workspace) {
    assert_soft_skeleton(a, begin, end);
    const struct skeleton_layout layout = layout_of_skeleton(a);
    const int64_t last = a->iterations, maxima = 3 * (last + 2), sums = maxima + 3 * (last + 1);
    ELEMENT* const row_max = SKELETON(plane)(&layout, workspace, sums + last + 1, 1, 0);
#define ERODED(k, z) SKELETON(plane)(&layout, workspace, 3 * (k), 3, clamped_plane(a, z))
#define MAXIMA(k, z) SKELETON(plane)(&layout, workspace, maxima + 3 * (k), 3, clamped_plane(a, z))
#define SUMS(z) SKELETON(plane)(&layout, workspace, sums, last + 1, z)
    memset(workspace, 0, (size_t)soft_skeleton_workspace(a, 0) * sizeof(ELEMENT));
    for (int64_t t = begin - last - 2; t < end + last + 2; ++t) {
        if (is_plane_near(a, t, begin, end, last + 2)) {
            SKELETON(read_plane)(a, &layout, image, t, ERODED(0, t));
        }
        for (int64_t k = 0; k <= last; ++k) {
            int64_t z = t - k - 1;
            if (is_plane_near(a, z, begin, end, last + 1 - k)) {
                SKELETON(erode)(&layout, ERODED(k, z - 1), ERODED(k, z), ERODED(k, z + 1), ERODED(k + 1, z));
            }
            if (is_plane_near(a, z, begin, end, 1)) {
                SKELETON(widen)(&layout, ERODED(k + 1, z), row_max, MAXIMA(k, z));
            }
            if (is_plane_near(a, --z, begin, end, 0)) {
                SKELETON(add_level)(&layout, k, ERODED(k, z), MAXIMA(k, z - 1), MAXIMA(k, z), MAXIMA(k, z + 1),
                                    SUMS(z));
            }
        }
        if (is_plane_near(a, t - last - 2, begin, end, 0)) {
            SKELETON(write_plane)(a, &layout, SUMS(t - last - 2), t - last - 2, skeleton);
        }
    }
#undef ERODED
#undef MAXIMA
#undef SUMS
}

#undef ELEMENT
#undef SKELETON
