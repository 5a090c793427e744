/* Tests of connected components, against labels that spread from voxel to voxel until nothing changes. */
#ifndef SEGLOSS_TEST_COMPONENTS_TESTS_H
#define SEGLOSS_TEST_COMPONENTS_TESTS_H

#include "harness.h"
#include "tables.h"

/* A label map of some samples. */
struct components_case {
    struct segloss_components args;
    struct memory labels;
    int64_t num_samples, volume, rows;
};

static int64_t component_class(const struct components_case* c, int64_t voxel) {
    const int64_t label = (int64_t)get(&c->labels, c->args.sample * c->volume + voxel, 0);
    return label == c->args.ignore_index ? 0 : c->args.per_class ? label : label > 0;
}

/* Gives a voxel the smallest number that it or a neighbour of its component has. Returns whether that is another one.
 */
static int spread(const struct components_case* c, int64_t* numbers, int64_t voxel) {
    const int64_t* sizes = c->args.sizes;
    const int64_t x = voxel % sizes[2], y = voxel / sizes[2] % sizes[1], z = voxel / sizes[2] / sizes[1];
    const int64_t before = numbers[voxel];
    for (int step = 0; step < 27; ++step) {
        const int dz = step / 9 - 1, dy = step / 3 % 3 - 1, dx = step % 3 - 1;
        const int64_t nz = z + dz, ny = y + dy, nx = x + dx, other = (nz * sizes[1] + ny) * sizes[2] + nx;
        const int is_there = nz >= 0 && nz < sizes[0] && ny >= 0 && ny < sizes[1] && nx >= 0 && nx < sizes[2];
        if (is_there && abs(dz) + abs(dy) + abs(dx) <= c->args.connectivity &&
            component_class(c, other) == component_class(c, voxel) && numbers[other] < numbers[voxel]) {
            numbers[voxel] = numbers[other];
        }
    }
    return numbers[voxel] != before;
}

/* The components of a sample become those of args, by ranges of rows of any size. */
static int32_t make_components(const struct segloss_kernels* table, struct segloss_components* a, int64_t rows) {
    int64_t begins[64], firsts[64], first = 0;
    int count = 0;
    for (int64_t begin = 0, num_runs = 0; begin < rows; first += num_runs, ++count) {
        const int64_t end = count == 62 ? rows : begin + 1 + random_below(rows - begin);
        if (table->components_runs(a, begin, end, &num_runs) != -1) {
            fail("good labels were refused");
        }
        begins[count] = begin;
        firsts[count] = first;
        begin = end;
    }
    begins[count] = rows;
    firsts[count] = first;
    a->parents = malloc((size_t)(first + 1) * sizeof *a->parents);
    for (int k = count - 1; k >= 0; --k) {
        table->components_start(a, begins[k], begins[k + 1], (int32_t)firsts[k], (int32_t)firsts[k + 1]);
        table->components_unite(a, begins[k], begins[k + 1], begins[k], begins[k + 1]);
    }
    for (int k = 0; k < count; ++k) {
        table->components_unite(a, begins[k], begins[k + 1], 0, begins[k]);
    }
    const int32_t num_components = table->components_number(a->parents, (int32_t)first);
    for (int k = count - 1; k >= 0; --k) {
        table->components_write(a, begins[k], begins[k + 1]);
    }
    free(a->parents);
    return num_components;
}

static void check_components(const struct components_case* c, int32_t actual_count) {
    int64_t* numbers = malloc((size_t)c->volume * sizeof *numbers);
    int32_t* expected = cleared(c->volume, sizeof *expected);
    int32_t count = 0;
    for (int64_t voxel = 0; voxel < c->volume; ++voxel) {
        numbers[voxel] = voxel;
    }
    for (int changes = 1; changes;) {
        changes = 0;
        for (int64_t voxel = 0; voxel < c->volume; ++voxel) {
            changes |= spread(c, numbers, voxel);
        }
    }
    for (int64_t voxel = 0; voxel < c->volume; ++voxel) {
        const int is_inside = component_class(c, voxel) > 0;
        expected[voxel] = !is_inside ? 0 : numbers[voxel] == voxel ? ++count : expected[numbers[voxel]];
        if (c->args.components[voxel] != expected[voxel]) {
            fail("voxel %lld: expected component %d, got %d", (long long)voxel, expected[voxel],
                 c->args.components[voxel]);
        }
    }
    if (actual_count != count) {
        fail("expected %d components, got %d", count, actual_count);
    }
    free(numbers);
    free(expected);
}

static void test_components_of(const struct segloss_kernels* table, int kind) {
    struct components_case c = {.num_samples = 1 + random_below(2), .volume = 1};
    struct segloss_components* a = &c.args;
    a->per_class = kind % 2;
    a->connectivity = 1 + kind / 2 % 3;
    a->ignore_index = 7;
    for (int axis = 0; axis < SEGLOSS_AXES; ++axis) {
        a->sizes[axis] = 1 + random_below(axis < 2 ? 6 : random_below(2) ? 150 : 12);
        c.volume *= a->sizes[axis];
    }
    c.rows = a->sizes[0] * a->sizes[1];
    a->positions = (struct segloss_positions){4, {c.num_samples, a->sizes[0], a->sizes[1], a->sizes[2]}};
    const enum segloss_dtype dtype = (enum segloss_dtype)(SEGLOSS_UINT8 + random_below(8));
    c.labels = allocate_input(dtype, &a->positions, 1, draw_layout(NUM_LAYOUTS));
    a->labels = c.labels.view;
    const int most = 1 + random_below(8); /* scattered voxels, or large regions with holes */
    for (int64_t p = 0; p < c.num_samples * c.volume; ++p) {
        const int is_inside = random_below(9) < most;
        set(&c.labels, p, 0, random_below(20) == 0 ? 7 : is_inside ? 1 + random_below(2) : 0);
    }
    a->sample = random_below(c.num_samples);
    a->words = (a->sizes[2] + 63) / 64 + 1;
    const int64_t num_words = c.rows * a->words;
    uint64_t* foreground = malloc((size_t)(num_words + 1) * sizeof *foreground);
    foreground[0] = 0;
    a->foreground = foreground + 1;
    a->starts = malloc((size_t)num_words * sizeof *a->starts);
    a->runs_before = malloc((size_t)num_words * sizeof *a->runs_before);
    a->components = malloc((size_t)c.volume * sizeof *a->components);
    snprintf(current_case, sizeof current_case, "components: %s, %s, %d x %d x %d, connectivity %d%s", table->isa,
             formats[dtype].name, (int)a->sizes[0], (int)a->sizes[1], (int)a->sizes[2], a->connectivity,
             a->per_class ? ", per class" : "");
    check_components(&c, make_components(table, a, c.rows));
    free(c.labels.bytes);
    free(foreground);
    free(a->starts);
    free(a->runs_before);
    free(a->components);
}

static void test_components(void) {
    for (int i = 0; i < num_tables * 6 * 20 * ROUNDS; ++i) {
        test_components_of(tables[i % num_tables], i / num_tables % 6);
    }
    printf("components: ok\n");
}

#endif
