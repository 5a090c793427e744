/* The planes of an image in a workspace, for soft skeletons; see kernels.h. */

/* Each row has one more element on both sides, and each plane of several rows one more row above and below, so that
 * neighbours in a plane lie at fixed distances. Loops run over all rows at once. */
struct skeleton_layout {
    int64_t pitch;  /* from a row to the next */
    int64_t below;  /* from an element to the one below: pitch, or 0 if there is one row only */
    int64_t first;  /* of the first row within a plane */
    int64_t length; /* of all rows */
    int64_t stride; /* from a plane to the next */
};

static struct skeleton_layout layout_of_skeleton(const struct segloss_soft_skeleton* a) {
    const int64_t pitch = a->sizes[2] + 2, below = a->sizes[1] > 1 ? pitch : 0, length = a->sizes[1] * pitch;
    return (struct skeleton_layout){pitch, below, 1 + below, length, 2 + 2 * below + length};
}

/* Level k has 2 (iterations - k) + 5 planes of codes, and two fewer of differences; so many have the levels below. */
static int64_t codes_before(int64_t iterations, int64_t k) { return k * (2 * iterations + 6 - k); }

static int64_t differences_before(int64_t iterations, int64_t k) { return k * (2 * iterations + 4 - k); }

/* Three planes of each erosion, and of the maxima of each level. Then those of the skeleton, and one more; or three of
 * each gradient, the codes and the differences, four more, and one of a sum for each level. */
static int64_t soft_skeleton_workspace(const struct segloss_soft_skeleton* a, int of_gradient) {
    const int64_t levels = a->iterations + 1, pools = 6 * levels + 3;
    const int64_t of_levels = codes_before(a->iterations, levels) + differences_before(a->iterations, levels);
    const int64_t others = of_gradient ? 3 * (levels + 1) + of_levels + 4 + levels : levels + 1;
    return (pools + others) * layout_of_skeleton(a).stride;
}

/* The planes for other values, before one of a sum for each level. */
enum { SKELETON_ZEROS, SKELETON_GRAD, SKELETON_PLANES, SKELETON_ROWS, SKELETON_SUMS };

static inline int64_t clamped_plane(const struct segloss_soft_skeleton* a, int64_t z) {
    return z < 0 ? 0 : z < a->sizes[0] ? z : a->sizes[0] - 1;
}

/* Whether z is a plane of the image, at most `halo` planes outside of [begin, end). */
static inline int is_plane_near(const struct segloss_soft_skeleton* a, int64_t z, int64_t begin, int64_t end,
                                int64_t halo) {
    return z >= 0 && z < a->sizes[0] && z >= begin - halo && z < end + halo;
}

static void assert_soft_skeleton(const struct segloss_soft_skeleton* a, int64_t begin, int64_t end) {
    assert(a->sizes[0] > 0 && a->sizes[1] > 0 && a->sizes[2] > 0 && a->iterations >= 0);
    assert(begin >= 0 && begin < end && end <= a->sizes[0]);
    (void)a;
    (void)begin;
    (void)end;
}

#define ELEMENT uint8_t
#define SKELETON(name) name##_of_mask
#include "soft_skeleton_tmpl.h"
