/* Tests of the Lovasz losses: the errors of the voxels, their order, and the gradient. */
#ifndef SEGLOSS_TEST_LOVASZ_TESTS_H
#define SEGLOSS_TEST_LOVASZ_TESTS_H

#include "soft_stats_tests.h"
#include "topk_tests.h"

/* ---- the order of the voxels of a class ---- */

/* Errors, negative (or -0) where the target is 1, and how they are sorted. */
struct lovasz_list {
    struct segloss_positions positions;
    enum segloss_real real;
    int is_wide;
    int digit_bits;
    int64_t part; /* length of the parts that are counted and moved one by one */
};

static struct lovasz_list draw_lovasz_list(int64_t count, enum segloss_real real) {
    return (struct lovasz_list){
        .positions = {1, {count}},
        .real = real,
        .is_wide = real == SEGLOSS_REAL_DOUBLE || random_below(2),
        .digit_bits = 1 + random_below(11),
        .part = random_below(2) ? SEGLOSS_BLOCK : 2 * SEGLOSS_BLOCK,
    };
}

/* Few different errors, whose bits are near each other or far apart, or any in [0, 1). */
static void fill_lovasz_errors(const struct memory* errors) {
    const struct format* f = &formats[errors->view.dtype];
    const long double tiny = ldexpl(1, f->min_exponent - f->mantissa_bits);
    const long double few[] = {0, 1, 1 + ulp(f, 1), 0.5L, tiny, 2.5L, 1e-30L, f->max, INFINITY, NAN};
    const int num_values = random_below(4) ? 7 : 10, is_uniform = random_below(2), ones = random_below(5);
    for (int64_t p = 0; p < count_positions(errors->positions); ++p) {
        const long double error = is_uniform ? (long double)random_unit() : few[random_below(num_values)];
        set(errors, p, 0, copysignl(error, random_below(4) < ones ? -1 : 1));
    }
}

static int goes_before_lovasz(const struct memory* errors, int64_t q, int64_t p) {
    const long double a = fabsl(get(errors, q, 0)), b = fabsl(get(errors, p, 0));
    return is_larger(a, b) || (same_number(a, b) && q < p);
}

/* The slope of a voxel, and what it adds to the loss. */
static long double lovasz_slope(const struct memory* errors, int64_t p, long double* loss) {
    long double ones = 0, others = 0, total = 0;
    for (int64_t q = 0; q < count_positions(errors->positions); ++q) {
        const int is_one = signbit(get(errors, q, 0)) != 0;
        total += is_one;
        ones += is_one && goes_before_lovasz(errors, q, p);
        others += !is_one && goes_before_lovasz(errors, q, p);
    }
    const long double error = fabsl(get(errors, p, 0)), both = total + others;
    const int is_one = signbit(get(errors, p, 0)) != 0;
    const long double size = both == 0 ? 1 : is_one ? 1 / both : (total - ones) / (both * (both + 1));
    *loss = error == 0 || size == 0 ? 0 : error * size;
    return error == 0 ? 0 : is_one ? -size : size;
}

static int64_t lovasz_end(const struct lovasz_list* list, int64_t begin, int64_t count) {
    return begin + list->part < count ? begin + list->part : count;
}

/* Sorts by one digit. Returns the number of items. */
static int64_t move_lovasz(const struct segloss_kernels* table, const struct lovasz_list* list,
                           const struct segloss_lovasz_order* order, const void* items, int64_t count, void* to) {
    enum { MOST_PARTS = (MAX_POSITIONS + SEGLOSS_BLOCK - 1) / SEGLOSS_BLOCK };
    static int64_t counts[MOST_PARTS][1 << 11];
    memset(counts, 0, sizeof counts);
    for (int64_t begin = 0; begin < count; begin += list->part) {
        table->lovasz_count[list->real](order, items, begin, lovasz_end(list, begin, count),
                                        counts[begin / list->part]);
    }
    int64_t next = 0;
    for (int digit = 0; digit < 1 << order->bits; ++digit) {
        for (int part = 0; part < MOST_PARTS; ++part) {
            const int64_t num_items = counts[part][digit];
            counts[part][digit] = next;
            next += num_items;
        }
    }
    for (int64_t begin = 0; begin < count; begin += list->part) {
        table->lovasz_move[list->real](order, items, begin, lovasz_end(list, begin, count), to,
                                       counts[begin / list->part]);
    }
    return next;
}

static void find_lovasz_extent(const struct segloss_kernels* table, const struct lovasz_list* list,
                               struct segloss_lovasz_order* order) {
    uint64_t least = UINT64_MAX;
    const int64_t count = list->positions.sizes[0];
    for (int64_t begin = 0; begin < count; begin += list->part) {
        struct segloss_lovasz_extent extent;
        table->lovasz_extent[list->real](order->slopes, begin, lovasz_end(list, begin, count), &extent);
        order->num_ones += extent.num_ones;
        order->largest = extent.largest > order->largest ? extent.largest : order->largest;
        least = extent.least_of_one < least ? extent.least_of_one : least;
    }
    order->smallest = least < order->largest ? least : order->largest;
    order->smallest = order->smallest < 1 ? 1 : order->smallest;
}

/* Replaces the errors by their slopes; returns the loss. */
static double sort_lovasz(const struct segloss_kernels* table, const struct lovasz_list* list,
                          const struct memory* slopes) {
    const size_t bytes =
        (list->is_wide ? sizeof(struct segloss_lovasz_item) : sizeof(uint64_t)) * (size_t)list->positions.sizes[0];
    void *items = malloc(bytes), *others = malloc(bytes), *from = NULL;
    struct segloss_lovasz_order order = {.slopes = slopes->view.data, .is_wide = list->is_wide};
    find_lovasz_extent(table, list, &order);
    int num_bits = 0;
    while (order.largest >= order.smallest && (order.largest - order.smallest) >> num_bits) {
        ++num_bits;
    }
    int64_t count = list->positions.sizes[0];
    do {
        order.bits = num_bits - order.shift < list->digit_bits ? num_bits - order.shift : list->digit_bits;
        void* to = from == items ? others : items;
        count = move_lovasz(table, list, &order, from, count, to);
        from = to;
        order.shift += order.bits;
    } while (order.shift < num_bits);
    double loss = 0;
    int64_t ones = 0;
    for (int64_t begin = 0; begin < count; begin += list->part) {
        const int64_t end = lovasz_end(list, begin, count);
        loss += table->lovasz_slopes[list->real](&order, from, begin, end, ones);
        ones += table->lovasz_ones[list->real](&order, from, begin, end);
    }
    free(items);
    free(others);
    return loss;
}

static void check_lovasz_list(const struct segloss_kernels* table, const struct lovasz_list* list,
                              const struct memory* errors) {
    const enum segloss_dtype dtype = dtype_of_real(list->real);
    const struct format* f = &formats[dtype];
    const struct memory slopes = allocate_output(dtype, &list->positions, 1, PLANAR);
    memcpy(slopes.view.data, errors->view.data, (size_t)(list->positions.sizes[0] * f->size));
    const double loss = sort_lovasz(table, list, &slopes);
    long double expected_loss = 0;
    for (int64_t p = 0; p < list->positions.sizes[0]; ++p) {
        long double of_voxel;
        const long double expected = lovasz_slope(errors, p, &of_voxel), got = get(&slopes, p, 0);
        expected_loss += of_voxel;
        if (fabsl(got - expected) > ulp(f, expected)) {
            fail("slope of error %Lg at position %lld: %.9Lg, expected %.9Lg", get(errors, p, 0), (long long)p, got,
                 expected);
        }
    }
    if (!same_number(loss, expected_loss) && !(fabsl(loss - expected_loss) <= 1e-13L * expected_loss)) {
        fail("loss %g, expected %Lg", loss, expected_loss);
    }
    check_guards(&slopes, "slopes");
    free(slopes.bytes);
}

static void check_all_lovasz_lists(int64_t count, enum segloss_real real) {
    const struct lovasz_list list = draw_lovasz_list(count, real);
    const struct memory errors = allocate_input(dtype_of_real(real), &list.positions, 1, PLANAR);
    fill_lovasz_errors(&errors);
    for (int i = 0; i < num_tables; ++i) {
        snprintf(current_case, sizeof current_case, "%s Lovasz order of %lld %s errors, %s items, digits of %d bits",
                 tables[i]->isa, (long long)count, formats[dtype_of_real(real)].name, list.is_wide ? "wide" : "narrow",
                 list.digit_bits);
        check_lovasz_list(tables[i], &list, &errors);
    }
    free(errors.bytes);
}

/* ---- errors and gradient of a block ---- */

struct lovasz_case {
    struct test_case voxels;
    enum segloss_activation activation;
    int hinge;
};

struct lovasz_inputs {
    struct inputs voxels;
    struct memory slopes, grad_loss; /* for backward */
};

static struct lovasz_case draw_lovasz_case(struct test_case voxels) {
    struct lovasz_case z = {voxels, SEGLOSS_IDENTITY, 0};
    z.voxels.voxel_weights = NO_WEIGHTS;
    z.hinge = voxels.kind.target == SEGLOSS_MASKS || random_below(3) == 0;
    z.activation = z.hinge || random_below(3) == 0 ? SEGLOSS_IDENTITY : SEGLOSS_SOFTMAX;
    return z;
}

static void create_lovasz_inputs(const struct lovasz_case* z, struct lovasz_inputs* in) {
    const struct test_case* t = &z->voxels;
    const enum segloss_dtype real = dtype_of_real(t->numbers.real);
    create_inputs(t, &in->voxels);
    in->slopes = allocate_input(real, &t->positions, t->num_classes, t->grad_layout);
    in->grad_loss = allocate_input(real, &t->positions, t->num_classes, t->lanes_layout);
    for (int64_t p = 0; p < t->num_positions; ++p) {
        for (int64_t c = 0; c < t->num_classes; ++c) {
            set(&in->slopes, p, c, 4 * random_unit() - 2);
            set(&in->grad_loss, p, c, 4 * random_unit() - 2);
        }
    }
    if (t->is_reduced) { /* one for each class */
        memset(in->grad_loss.view.strides, 0, sizeof in->grad_loss.view.strides);
    }
}

static void free_lovasz_inputs(struct lovasz_inputs* in) {
    free_inputs(&in->voxels);
    free(in->slopes.bytes);
    free(in->grad_loss.bytes);
}

static struct segloss_lovasz lovasz_arguments(const struct lovasz_case* z, const struct lovasz_inputs* in,
                                              const struct memory* slopes, const struct memory* grad) {
    const struct outputs gradient_only = {.grad = *grad};
    struct segloss_lovasz args = {
        .voxels = arguments_of(&z->voxels, &in->voxels, &gradient_only),
        .activation = z->activation,
        .hinge = z->hinge,
        .slopes = slopes->view,
    };
    args.voxels.loss = (struct segloss_tensor){0};
    args.voxels.grad_loss = in->grad_loss.view;
    return args;
}

/* The error of a voxel that counts, and the size of what it is the difference of. */
static struct term lovasz_error(const struct lovasz_case* z, const struct softmax* s, long double x, int is_one,
                                int64_t c) {
    long double error = is_one ? 1 - x : x, magnitude = 1 + fabsl(x);
    if (z->hinge) {
        error = is_one ? 1 - x : 1 + x;
    } else if (z->activation == SEGLOSS_SOFTMAX) {
        error = magnitude = is_one ? reference_complement(s, c) : reference_probability(s, c);
    }
    return (struct term){error <= 0 ? 0 : error, magnitude};
}

static void check_lovasz_errors(const struct lovasz_case* z, const struct problem* problem,
                                const struct memory* errors) {
    const struct test_case* t = &z->voxels;
    const struct tolerance tolerance = tolerance_of(errors->view.dtype, t->numbers.real);
    for (int64_t p = 0; p < t->num_positions; ++p) {
        const int counts = reference_voxel_weight(problem, p) != 0;
        struct softmax s;
        reference_softmax(problem, p, &s);
        for (int64_t c = 0; c < t->num_classes; ++c) {
            const long double x = rounded(&formats[errors->view.dtype], get(problem->logits, p, c));
            const long double got = get(errors, p, c);
            const int is_one = counts && reference_target(problem, p, c) == 1;
            const struct term expected = counts ? lovasz_error(z, &s, x, is_one, c) : (struct term){0, 0};
            check_near(&tolerance, fabsl(got), expected.value, expected.magnitude, "error", p, c);
            if (!signbit(got) != !is_one) {
                fail("error at position %lld, class %lld has the wrong sign: %Lg", (long long)p, (long long)c, got);
            }
        }
    }
    check_guards(errors, "errors");
}

static void check_lovasz_grad(const struct lovasz_case* z, const struct lovasz_inputs* in,
                              const struct problem* problem, const struct memory* grad) {
    const struct test_case* t = &z->voxels;
    const int64_t C = t->num_classes;
    const struct tolerance tolerance = tolerance_of(grad->view.dtype, t->numbers.real);
    for (int64_t p = 0; p < t->num_positions; ++p) {
        const long double scale = reference_voxel_weight(problem, p) * (long double)problem->args->grad_scale;
        const int is_softmax = z->activation == SEGLOSS_SOFTMAX && scale != 0;
        struct softmax s;
        long double h[MAX_CLASSES], mean = 0, magnitude = 0;
        reference_softmax(problem, p, &s);
        for (int64_t c = 0; c < C; ++c) {
            h[c] = scale * get(&in->grad_loss, p, c) * get(&in->slopes, p, c);
            mean += is_softmax ? reference_probability(&s, c) * h[c] : 0;
            magnitude += is_softmax ? reference_probability(&s, c) * fabsl(h[c]) : 0;
        }
        if (is_softmax) { /* differences from the label's h are rounded */
            magnitude += fabsl(h[(int64_t)get(problem->target, p, 0)]);
        }
        for (int64_t c = 0; c < C; ++c) {
            const long double factor = is_softmax ? reference_probability(&s, c) : 1;
            const long double expected = factor * (h[c] - mean);
            check_near(&tolerance, get(grad, p, c), expected, factor * (fabsl(h[c]) + magnitude), "grad", p, c);
        }
    }
    check_guards(grad, "grad");
}

/* Both in one range, and the gradient also block by block, from the last one to the first. */
static void check_lovasz_case(const struct segloss_kernels* table, const struct lovasz_case* z,
                              const struct lovasz_inputs* in) {
    const struct test_case* t = &z->voxels;
    const enum segloss_real real = t->numbers.real;
    const struct memory errors = allocate_output(dtype_of_real(real), &t->positions, t->num_classes, t->grad_layout);
    const struct memory grad = allocate_output(t->numbers.logits, &t->positions, t->num_classes, t->grad_layout);
    const struct memory blocks = allocate_output(t->numbers.logits, &t->positions, t->num_classes, t->grad_layout);
    const struct segloss_lovasz forward = lovasz_arguments(z, in, &errors, &grad);
    const struct segloss_lovasz backward = lovasz_arguments(z, in, &in->slopes, &grad);
    const struct segloss_lovasz by_blocks = lovasz_arguments(z, in, &in->slopes, &blocks);
    const struct problem problem = problem_of(t, &in->voxels, &forward.voxels);
    check_accepted(table->lovasz_forward[real](&forward, 0, t->num_positions));
    check_lovasz_errors(z, &problem, &errors);
    check_accepted(table->lovasz_backward[real](&backward, 0, t->num_positions));
    check_lovasz_grad(z, in, &problem, &grad);
    for (int64_t begin = (t->num_positions - 1) / SEGLOSS_BLOCK * SEGLOSS_BLOCK; begin >= 0; begin -= SEGLOSS_BLOCK) {
        const int64_t end = begin + SEGLOSS_BLOCK;
        check_accepted(
            table->lovasz_backward[real](&by_blocks, begin, end < t->num_positions ? end : t->num_positions));
    }
    check_same_bits(&grad, &blocks, "grad");
    free(errors.bytes);
    free(grad.bytes);
    free(blocks.bytes);
}

static void check_all_lovasz(const struct lovasz_case* z) {
    struct lovasz_inputs in;
    create_lovasz_inputs(z, &in);
    for (int i = 0; i < num_tables; ++i) {
        describe_case(&z->voxels, tables[i]->isa);
        const size_t length = strlen(current_case);
        snprintf(current_case + length, sizeof current_case - length, "; Lovasz, %s",
                 z->hinge ? "hinge" : activation_names[z->activation]);
        check_lovasz_case(tables[i], z, &in);
    }
    free_lovasz_inputs(&in);
}

static void test_lovasz(void) {
    enum { NUM_LISTS = 100 * ROUNDS, NUM_CASES = NUM_PAIRS * NUM_CLASS_COUNTS };
    int num_lists = 0, num_cases = 0;
    for (int i = 0; i < NUM_COUNTS; ++i) {
        for (int k = 0; k < NUM_LISTS; ++k) {
            random_state = (uint64_t)num_lists++;
            check_all_lovasz_lists(counts[i], (enum segloss_real)(k % SEGLOSS_REALS));
        }
        for (int k = 0; k < NUM_CASES; ++k) {
            random_state = (uint64_t)num_cases++;
            const struct target_kind kind = k % 2 ? masks_kind : labels_kind;
            const int64_t num_classes = class_counts[k / NUM_PAIRS % NUM_CLASS_COUNTS];
            const struct lovasz_case z =
                draw_lovasz_case(draw_case(counts[i], num_classes, number_pairs[k % NUM_PAIRS], kind));
            check_all_lovasz(&z);
        }
    }
    printf("Lovasz: %d orders, %d cases in %d tables: ok\n", num_lists, num_cases, num_tables);
}

#endif
