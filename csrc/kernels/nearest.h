/* The nearest component of each voxel, one axis after the other; see kernels.h. Along a line, the result at i is the
 * component of the j with the smallest
 *
 *   f[j] + (step (i - j))^2
 *
 * of the squared distances f that the axes before have given; of equal ones, the smallest component. All are in units
 * of the columns' step: where the steps are equal, the squares are integers, and exact. */
#ifndef SEGLOSS_NEAREST_H
#define SEGLOSS_NEAREST_H

/* From the left, each voxel gets the component at or before it, and its distance. */
static void measure_from_left(int32_t* component, double* distance, int64_t length) {
    int32_t nearest = 0;
    double steps = INFINITY;
    for (int64_t i = 0; i < length; ++i) {
        steps = component[i] > 0 ? 0 : steps + 1;
        nearest = component[i] > 0 ? component[i] : nearest;
        component[i] = nearest;
        distance[i] = steps;
    }
}

/* From the right, the one after it, if that is nearer; and the square of the distance. */
static void measure_from_right(int32_t* component, double* distance, int64_t length) {
    int32_t nearest = 0;
    double steps = INFINITY;
    for (int64_t i = length - 1; i >= 0; --i) {
        steps = distance[i] == 0 ? 0 : steps + 1;
        nearest = distance[i] == 0 ? component[i] : nearest;
        const int is_nearer = steps < distance[i] || (steps == distance[i] && nearest < component[i]);
        component[i] = is_nearer ? nearest : component[i];
        const double least = is_nearer ? steps : distance[i];
        distance[i] = least * least;
    }
}

static void nearest_columns(const struct segloss_nearest* a, int64_t begin, int64_t end) {
    const int64_t length = a->sizes[SEGLOSS_COLUMNS];
    for (int64_t row = begin; row < end; ++row) {
        measure_from_left(a->components + row * length, a->squares + row * length, length);
        measure_from_right(a->components + row * length, a->squares + row * length, length);
    }
}

/* Neighbouring lines, copied: [count][length]. */
struct copied_lines {
    double* squares;
    int32_t* components;
    struct corner* hull;
    int64_t length;
    double step;
};

/* The squared distance from i to the voxel that a corner stands for. */
static inline double square_at(const struct copied_lines* lines, const double* squares, const struct corner* corner,
                               int64_t i) {
    const double distance = (double)(i - corner->site) * lines->step;
    return squares[corner->site] + distance * distance;
}

/* Whether all voxels of line k have the same component, which is then the result. */
static int has_one_component(const struct copied_lines* lines, int64_t k) {
    const int32_t* components = lines->components + k * lines->length;
    int32_t differs = 0;
    for (int64_t i = 1; i < lines->length; ++i) {
        differs |= components[i] ^ components[0];
    }
    return !differs;
}

/* Writes the results of line k, whose elements are `stride` apart. */
static void measure_line(const struct copied_lines* lines, int64_t k, int32_t* component, double* square,
                         int64_t stride) {
    const double* squares = lines->squares + k * lines->length;
    const int32_t* components = lines->components + k * lines->length;
    const struct corner* corner = lines->hull;
    const struct corner* end = corner + build_hull(lines->hull, squares, lines->length, lines->step, 1);
    for (int64_t i = 0; i < lines->length && corner < end; ++i) {
        double least = square_at(lines, squares, corner, i);
        int32_t nearest = components[corner->site];
        for (const struct corner* next = corner + 1; next < end; ++next) {
            const double of_next = square_at(lines, squares, next, i);
            const int32_t component_of_next = components[next->site];
            if (of_next > least) {
                break;
            }
            nearest = of_next < least || component_of_next < nearest ? component_of_next : nearest;
            corner = of_next < least ? next : corner;
            least = of_next;
        }
        component[i * stride] = nearest;
        square[i * stride] = least;
    }
}

static void nearest_lines(const struct segloss_nearest* a, int axis, int64_t begin, int64_t end, double* workspace) {
    int64_t stride = 1;
    for (int k = axis + 1; k < SEGLOSS_AXES; ++k) {
        stride *= a->sizes[k];
    }
    const int64_t length = a->sizes[axis];
    struct copied_lines lines = {workspace, NULL, NULL, length, a->spacing[axis] / a->spacing[SEGLOSS_COLUMNS]};
    lines.hull = (struct corner*)(workspace + SEGLOSS_NEAREST_LINES * length);
    lines.components = (int32_t*)(lines.hull + length);
    for (int64_t line = begin; line < end;) {
        const int64_t place = line % stride, first = line / stride * length * stride + place;
        const int count = smaller(end - line < stride - place ? end - line : stride - place, SEGLOSS_NEAREST_LINES);
        for (int64_t i = 0; i < length; ++i) {
            for (int k = 0; k < count; ++k) {
                lines.squares[k * length + i] = a->squares[first + i * stride + k];
                lines.components[k * length + i] = a->components[first + i * stride + k];
            }
        }
        for (int k = 0; k < count; ++k) {
            if (axis != a->last_axis || !has_one_component(&lines, k)) { /* other axes need the squares */
                measure_line(&lines, k, a->components + first + k, a->squares + first + k, stride);
            }
        }
        line += count;
    }
}

#endif
