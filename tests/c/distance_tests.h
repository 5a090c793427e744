/* Tests of distance maps, against distances to all voxels. */
#ifndef SEGLOSS_TEST_DISTANCE_TESTS_H
#define SEGLOSS_TEST_DISTANCE_TESTS_H

#include "harness.h"
#include "tables.h"

/* A label map of some samples, and one of its classes. */
struct distance_case {
    struct segloss_distance args;
    struct memory labels, maps;
    int64_t num_samples, volume;
};

/* The class of a voxel; -1: it is ignored. */
static int class_at(const struct distance_case* c, int64_t sample, int64_t voxel) {
    const int64_t label = (int64_t)get(&c->labels, sample * c->volume + voxel, 0);
    return label == c->args.ignore_index ? -1 : c->args.num_classes > 0 ? (int)label : label == 0;
}

static void place_of(const struct distance_case* c, int64_t voxel, int64_t* place) {
    for (int axis = SEGLOSS_COLUMNS; axis >= 0; --axis) {
        place[axis] = voxel % c->args.sizes[axis];
        voxel /= c->args.sizes[axis];
    }
}

static int is_boundary(const struct distance_case* c, int64_t sample, int64_t voxel, int class) {
    int64_t place[SEGLOSS_AXES], stride = 1;
    place_of(c, voxel, place);
    for (int axis = SEGLOSS_COLUMNS; axis >= c->args.last_axis; stride *= c->args.sizes[axis--]) {
        for (int side = -1; side <= 1; side += 2) {
            const int64_t neighbour = place[axis] + side;
            if (neighbour < 0 || neighbour == c->args.sizes[axis]) {
                return 1;
            }
            const int other = class_at(c, sample, voxel + side * stride);
            if (other != class && other >= 0) {
                return 1;
            }
        }
    }
    return 0;
}

/* Whether a voxel is one to measure to. */
static int is_target(const struct distance_case* c, int64_t sample, int64_t voxel, int class, int from_inside) {
    const int is_inside = class_at(c, sample, voxel) == class;
    if (c->args.of_boundary) {
        return is_inside && is_boundary(c, sample, voxel, class);
    }
    return c->args.is_signed && !from_inside ? is_inside : !is_inside;
}

static long double nearest_distance(const struct distance_case* c, int64_t voxel, const int64_t* targets,
                                    int64_t num_targets) {
    long double nearest = INFINITY;
    int64_t here[SEGLOSS_AXES], there[SEGLOSS_AXES];
    place_of(c, voxel, here);
    for (int64_t t = 0; t < num_targets; ++t) {
        long double square = 0;
        place_of(c, targets[t], there);
        for (int axis = 0; axis < SEGLOSS_AXES; ++axis) {
            const long double difference = (here[axis] - there[axis]) * (long double)c->args.spacing[axis];
            square += difference * difference;
        }
        nearest = square < nearest ? square : nearest;
    }
    return sqrtl(nearest);
}

/* The distances of the voxels inside a class of a sample, or of those outside. */
static void check_side(const struct distance_case* c, int64_t sample, int class, int is_inside) {
    int64_t* targets = malloc((size_t)c->volume * sizeof *targets);
    int64_t num_targets = 0;
    for (int64_t voxel = 0; voxel < c->volume; ++voxel) {
        targets[num_targets] = voxel;
        num_targets += is_target(c, sample, voxel, class, is_inside);
    }
    for (int64_t voxel = 0; voxel < c->volume; ++voxel) {
        if ((class_at(c, sample, voxel) == class) == is_inside) {
            const long double distance = nearest_distance(c, voxel, targets, num_targets);
            const long double expected = c->args.is_signed && is_inside ? -distance : distance;
            const long double actual = get(&c->maps, sample * c->volume + voxel, class);
            if (!(actual == expected || fabsl(actual - expected) <= 3 * ulp(&formats[c->maps.view.dtype], expected))) {
                fail("voxel %lld of sample %lld, class %d: expected %.17Lg, got %.17Lg", (long long)voxel,
                     (long long)sample, class, expected, actual);
            }
        }
    }
    free(targets);
}

/* Runs a kernel over all lines along an axis, in ranges of any size. */
static void run_lines(const struct segloss_kernels* table, const struct distance_case* c, enum segloss_real real,
                      int axis, int marks_boundary) {
    const int64_t count = c->num_samples * c->maps.num_classes * c->volume / c->args.sizes[axis];
    double* workspace = malloc((size_t)segloss_distance_workspace(&c->args, axis) * sizeof *workspace);
    for (int64_t begin = 0, end = 0; begin < count; begin = end) {
        end = begin + 1 + random_below(count - begin);
        if (marks_boundary) {
            table->distance_boundary[real](&c->args, axis, begin, end);
        } else {
            table->distance_lines[real](&c->args, axis, begin, end, workspace);
        }
    }
    free(workspace);
}

static void check_distances(const struct segloss_kernels* table, const struct distance_case* c,
                            enum segloss_real real) {
    if (table->distance_marks[real](&c->args, 0, c->num_samples * c->volume) != -1) {
        fail("good labels were refused");
    }
    for (int axis = c->args.last_axis; c->args.of_boundary && axis < SEGLOSS_COLUMNS; ++axis) {
        run_lines(table, c, real, axis, 1);
    }
    for (int axis = SEGLOSS_COLUMNS; axis >= c->args.last_axis; --axis) {
        run_lines(table, c, real, axis, 0);
    }
    for (int64_t sample = 0; sample < c->num_samples; ++sample) {
        for (int side = 0; side < 2 * c->maps.num_classes; ++side) {
            check_side(c, sample, side / 2, side % 2);
        }
    }
    check_guards(&c->maps, "maps");
}

static const int volume_sizes[][SEGLOSS_AXES] = {{1, 1, 1}, {1, 1, 150}, {1, 9, 17},  {1, 17, 9}, {1, 300, 2},
                                                 {5, 6, 7}, {1, 6, 20},  {18, 1, 17}, {4, 5, 1},  {3, 40, 2}};

static void make_labels(const struct distance_case* c) {
    const int num_classes = (int)c->maps.num_classes, kind = random_below(4);
    for (int64_t p = 0; p < c->num_samples * c->volume; ++p) {
        const int is_at_begin = p % c->volume < c->volume / 16; /* other voxels are far from these */
        const int is_any =
            kind == 0 || (kind == 1 && random_below(20) == 0) || (kind == 2 && is_at_begin && random_below(8) == 0);
        const int label = is_any ? random_below(num_classes + 1) : 1;
        set(&c->labels, p, 0, label == num_classes ? c->args.ignore_index : label);
    }
}

static void test_distances(void) {
    for (size_t s = 0; s < sizeof volume_sizes / sizeof volume_sizes[0]; ++s) {
        for (int i = 0; i < num_tables * SEGLOSS_REALS * 4 * ROUNDS; ++i) {
            const struct segloss_kernels* table = tables[i % num_tables];
            const enum segloss_real real = (enum segloss_real)(i / num_tables % SEGLOSS_REALS);
            const int kind = i / num_tables / SEGLOSS_REALS, num_classes = random_below(4);
            struct distance_case c = {.num_samples = 1 + random_below(2), .volume = 1};
            c.args.of_boundary = kind % 2;
            c.args.is_signed = kind / 2 % 2;
            c.args.num_classes = num_classes;
            c.args.ignore_index = 7;
            c.args.last_axis = volume_sizes[s][0] > 1 ? SEGLOSS_PLANES : random_below(3);
            for (int axis = 0; axis < SEGLOSS_AXES; ++axis) {
                c.args.sizes[axis] = volume_sizes[s][axis];
                c.args.spacing[axis] = random_below(2) ? 1 : 0.25 + 2 * random_unit();
                c.volume *= volume_sizes[s][axis];
                c.args.last_axis = c.args.sizes[axis] > 1 && axis < c.args.last_axis ? axis : c.args.last_axis;
            }
            c.args.positions =
                (struct segloss_positions){4, {c.num_samples, c.args.sizes[0], c.args.sizes[1], c.args.sizes[2]}};
            const enum segloss_dtype dtype = (enum segloss_dtype)(SEGLOSS_UINT8 + random_below(8));
            c.labels = allocate_input(dtype, &c.args.positions, 1, draw_layout(NUM_LAYOUTS));
            c.maps = allocate_output(dtype_of_real(real), &c.args.positions, num_classes > 0 ? num_classes : 1, PLANAR);
            for (int d = 0; d < 4; ++d) { /* samples lie around the classes */
                c.maps.view.strides[d] *= d == 0 ? c.maps.num_classes : 1;
            }
            c.maps.view.stride_class = c.volume;
            c.args.labels = c.labels.view;
            c.args.maps = c.maps.view;
            snprintf(current_case, sizeof current_case, "distances: %s, %s, volume %d of %s, %s%s, %d classes",
                     table->isa, formats[dtype].name, (int)s, formats[dtype_of_real(real)].name,
                     c.args.of_boundary ? "boundary" : "foreground", c.args.is_signed ? ", signed" : "", num_classes);
            make_labels(&c);
            check_distances(table, &c, real);
            free(c.labels.bytes);
            free(c.maps.bytes);
        }
    }
    printf("distances: ok\n");
}

#endif
