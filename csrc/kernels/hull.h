/* The lower envelope of the parabolas f[j] + step^2 (i - j)^2 (Felzenszwalb and Huttenlocher 2012, "Distance Transforms
 * of Sampled Functions", Theory of Computing 8). Its parabolas are the corners of the lower convex hull of the points
 * (j, key), key = f[j] / step^2 + j^2: at i, one is lower than another if its point is further in the direction
 * (2 i, -1). */

/* A search along the line is faster where voxels are near: up to so many steps from each, on average. */
enum { MOST_STEPS = 128 };

struct corner {
    int64_t site;
    double key;
};

/* Whether a corner lies above the line from the one before it to a new point, or on it, unless those are kept. Where
 * all steps are equal, the numbers are integers, and no rounding decides. */
static inline int is_above(const struct corner* corner, double site, double key, int keeps_ties) {
    const struct corner* left = corner - 1;
    const double of_corner = (corner->key - left->key) * (site - (double)corner->site);
    const double of_point = (key - corner->key) * (double)(corner->site - left->site);
    return keeps_ties ? of_corner > of_point : of_corner >= of_point;
}

/* The corners from left to right; with `keeps_ties` also the points between them, whose parabolas are the lowest where
 * those of the corners meet. Returns their number. */
static int64_t build_hull(struct corner* hull, const double* f, int64_t length, double step, int keeps_ties) {
    int64_t count = 0;
    for (int64_t i = 0; i < length; ++i) {
        const double site = (double)i, key = f[i] / (step * step) + site * site;
        if (key == INFINITY) {
            continue;
        }
        while (count > 1 && is_above(&hull[count - 1], site, key, keeps_ties)) {
            --count;
        }
        hull[count++] = (struct corner){i, key};
    }
    return count;
}
