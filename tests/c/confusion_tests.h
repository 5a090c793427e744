/* Tests of counting labels against predictions, from logits and from label maps. */
#ifndef SEGLOSS_TEST_CONFUSION_TESTS_H
#define SEGLOSS_TEST_CONFUSION_TESTS_H

#include "cross_entropy_tests.h"

/* ---- values of a case ---- */

/* The first class with the largest logit; nan is larger than any number. */
static int64_t reference_argmax(const struct memory* logits, int64_t p) {
    int64_t best = 0;
    for (int64_t c = 1; c < logits->num_classes; ++c) {
        const long double x = get(logits, p, c), largest = get(logits, p, best);
        if (!isnan(largest) && (isnan(x) || x > largest)) {
            best = c;
        }
    }
    return best;
}

/* Few different values, so that the largest often occurs twice; hostile cases also have +inf and nan. */
static void fill_with_ties(const struct test_case* t, const struct memory* logits) {
    static const double few[] = {-INFINITY, -1, 0, 0.5, 0.5, 0.5, INFINITY, NAN};
    const int num_values = t->values == HOSTILE ? 8 : 6;
    for (int64_t p = 0; p < t->num_positions; ++p) {
        for (int64_t c = 0; c < t->num_classes; ++c) {
            set(logits, p, c, few[random_below(num_values)]);
        }
    }
}

/* Makes half of the labels equal to the prediction, if the dtype can hold it. */
static void make_half_correct(const struct test_case* t, const struct inputs* in) {
    for (int64_t p = 0; p < t->num_positions; ++p) {
        const int64_t predicted = reference_argmax(&in->logits, p);
        const int is_ignored = get(&in->target, p, 0) == (long double)t->ignore_index;
        if (random_below(2) && !is_ignored && (long double)predicted <= formats[t->target_dtype].max) {
            set(&in->target, p, 0, predicted);
        }
    }
}

/* A map of predictions; at ignored labels it holds the smallest or largest value of its dtype. */
static struct memory create_map(const struct test_case* t, const struct inputs* in) {
    const enum segloss_dtype dtype = (enum segloss_dtype)(NUM_FLOATING + random_below(NUM_DTYPES - NUM_FLOATING));
    const struct memory map = allocate_input(dtype, &t->positions, 1, t->lanes_layout);
    const struct format* f = &formats[dtype];
    const int64_t num_labels = t->num_classes > f->max ? (int64_t)f->max : t->num_classes;
    for (int64_t p = 0; p < t->num_positions; ++p) {
        const int is_ignored = get(&in->target, p, 0) == (long double)t->ignore_index;
        const long double strange = random_below(2) ? f->max : f->min;
        set(&map, p, 0, is_ignored ? strange : random_below(num_labels));
    }
    return map;
}

/* ---- against the reference ---- */

struct confusion_case {
    const struct test_case* test;
    const struct inputs* in;
    const struct memory* map; /* NULL: logits */
    int per_class;
};

static struct segloss_confusion confusion_arguments(const struct confusion_case* c) {
    return (struct segloss_confusion){
        .positions = c->test->positions,
        .num_classes = c->test->num_classes,
        .prediction = c->map ? c->map->view : c->in->logits.view,
        .target = c->in->target.view,
        .ignore_index = c->test->ignore_index,
        .prediction_is_labels = c->map != NULL,
        .per_class = c->per_class,
    };
}

static int64_t count_cells(const struct confusion_case* c) {
    return c->test->num_classes * (c->per_class ? 3 : c->test->num_classes);
}

static void add_one(const struct memory* counts, int64_t cell) { set(counts, cell, 0, get(counts, cell, 0) + 1); }

/* Adds to `counts`, one voxel at a time; returns the largest class seen, or -1. */
static int64_t count_slowly(const struct confusion_case* c, const struct memory* counts) {
    const int64_t num_classes = c->test->num_classes;
    int64_t largest = -1;
    for (int64_t p = 0; p < c->test->num_positions; ++p) {
        if (get(&c->in->target, p, 0) == (long double)c->test->ignore_index) {
            continue;
        }
        const int64_t label = (int64_t)get(&c->in->target, p, 0);
        const int64_t predicted = c->map ? (int64_t)get(c->map, p, 0) : reference_argmax(&c->in->logits, p);
        largest = label > largest ? label : largest;
        largest = predicted > largest ? predicted : largest;
        if (!c->per_class) {
            add_one(counts, label * num_classes + predicted);
        } else if (label == predicted) {
            add_one(counts, label);
        } else {
            add_one(counts, num_classes + predicted);
            add_one(counts, 2 * num_classes + label);
        }
    }
    return largest;
}

/* The cells already hold 2^40, which shows that counts beyond 2^31 stay exact. */
static struct memory allocate_counts(const struct segloss_positions* cells) {
    const struct memory counts = allocate_output(SEGLOSS_INT64, cells, 1, PLANAR);
    for (int64_t i = 0; i < cells->sizes[0]; ++i) {
        set(&counts, i, 0, 0x1p40L);
    }
    return counts;
}

static void check_counts(const struct segloss_kernels* table, const struct confusion_case* c,
                         const struct memory* expected) {
    const struct test_case* t = c->test;
    const struct segloss_confusion args = confusion_arguments(c);
    const struct segloss_positions* cells = expected->positions;
    const struct memory whole = allocate_counts(cells), blocks = allocate_counts(cells);
    check_accepted(table->confusion[t->numbers.real](&args, 0, t->num_positions, whole.view.data));
    for (int64_t begin = 0; begin < t->num_positions; begin += SEGLOSS_BLOCK) {
        const int64_t end = begin + SEGLOSS_BLOCK < t->num_positions ? begin + SEGLOSS_BLOCK : t->num_positions;
        check_accepted(table->confusion[t->numbers.real](&args, begin, end, blocks.view.data));
    }
    for (int64_t i = 0; i < count_cells(c); ++i) {
        if (get(&whole, i, 0) != get(expected, i, 0) || get(&blocks, i, 0) != get(expected, i, 0)) {
            fail("cell %lld of %s counts of %s: %.0Lf, block by block %.0Lf, expected %.0Lf", (long long)i,
                 c->per_class ? "class" : "pair", c->map ? "a map" : "logits", get(&whole, i, 0), get(&blocks, i, 0),
                 get(expected, i, 0));
        }
    }
    check_guards(&whole, "counts");
    check_guards(&blocks, "counts");
    free(whole.bytes);
    free(blocks.bytes);
}

static void check_largest(const struct segloss_kernels* table, const struct confusion_case* c, int64_t expected) {
    const struct segloss_confusion args = confusion_arguments(c);
    int64_t largest = -2;
    check_accepted(table->largest_label(&args, 0, c->test->num_positions, &largest));
    if (largest != expected) {
        fail("largest label %lld, expected %lld", (long long)largest, (long long)expected);
    }
}

static void check_comparison(const struct segloss_kernels* table, const struct confusion_case* c) {
    const struct segloss_confusion args = confusion_arguments(c);
    int64_t counts[2] = {-1, -1}, num_equal = 0, num_counted = 0;
    for (int64_t p = 0; p < c->test->num_positions; ++p) {
        const int is_counted = get(&c->in->target, p, 0) != (long double)c->test->ignore_index;
        num_counted += is_counted;
        num_equal += is_counted && get(&c->in->target, p, 0) == get(c->map, p, 0);
    }
    check_accepted(table->compare_maps(&args, 0, c->test->num_positions, counts));
    if (counts[0] != num_equal || counts[1] != num_counted) {
        fail("%lld of %lld labels are equal, expected %lld of %lld", (long long)counts[0], (long long)counts[1],
             (long long)num_equal, (long long)num_counted);
    }
}

static void check_confusion(const struct confusion_case* c) {
    const struct segloss_positions cells = {1, {count_cells(c) + 1}};
    const struct memory expected = allocate_counts(&cells);
    const int64_t largest = count_slowly(c, &expected);
    for (int i = 0; i < num_tables; ++i) {
        describe_case(c->test, tables[i]->isa);
        check_counts(tables[i], c, &expected);
        if (c->map) {
            check_largest(tables[i], c, largest);
            check_comparison(tables[i], c);
        }
    }
    free(expected.bytes);
}

static void test_confusion(void) {
    int num_cases = 0;
    for (int i = 0; i < NUM_COUNTS; ++i) {
        for (int j = 0; j < NUM_CLASS_COUNTS; ++j) {
            for (int k = 0; k < NUM_PAIRS; ++k) {
                random_state = (uint64_t)num_cases++;
                const struct test_case t = draw_case(counts[i], class_counts[j], number_pairs[k], target_kinds[0]);
                struct inputs in;
                create_inputs(&t, &in);
                fill_with_ties(&t, &in.logits);
                make_half_correct(&t, &in);
                const struct memory map = create_map(&t, &in);
                for (int per_class = 0; per_class < 2; ++per_class) {
                    check_confusion(&(struct confusion_case){&t, &in, NULL, per_class});
                    check_confusion(&(struct confusion_case){&t, &in, &map, per_class});
                }
                free(map.bytes);
                free_inputs(&in);
            }
        }
    }
    printf("confusion: %d cases in %d tables, of logits and of maps, pairs and per class: ok\n", num_cases, num_tables);
}

#endif
