/* libFuzzer's entry for one FAMILY of kernels: a case of the test program, drawn from the fuzzer's bytes. Every table
 * of this processor must give what the slow reference gives, within its tolerance, or refuse what the reference
 * refuses. Tensors are exactly as large as needed, so that the address sanitizer sees an access beyond them.
 *
 * When the bytes run out, splitmix64 takes over: a short input sets the options, a longer one also the values. */
#define GUARD_SIZE 0

#include "binary_tests.h"
#include "lovasz_tests.h"

/* ---- drawing ---- */

/* Up to 4 dimensions with at most `most` positions in all. */
static struct segloss_positions draw_positions(int64_t most) {
    struct segloss_positions positions = {.num_dims = 1 + random_below(4)};
    for (int d = 0; d < positions.num_dims; ++d) {
        positions.sizes[d] = 1 + random_below(most);
        most /= positions.sizes[d];
    }
    return positions;
}

static struct test_case draw_any_case(struct target_kind kind) {
    const struct number_pair numbers = number_pairs[random_below(NUM_PAIRS)];
    const int64_t num_classes = 1 + random_below(random_below(4) ? 8 : MAX_CLASSES);
    const struct segloss_positions positions = draw_positions(MAX_POSITIONS);
    struct test_case t = draw_case(count_positions(&positions), num_classes, numbers, kind);
    t.positions = positions;
    return t;
}

/* Elements to overwrite with arbitrary bits. They are drawn before the tensors' values, which use up many bytes. */
struct scribbles {
    int count;
    struct {
        uint64_t place, bits;
    } each[4];
};

static struct scribbles draw_scribbles(void) {
    struct scribbles s = {.count = random_below(5)};
    for (int i = 0; i < s.count; ++i) {
        s.each[i].place = random_bits_of(2);
        s.each[i].bits = random_bits();
    }
    return s;
}

/* Overwrites elements with these bits, or with num_classes, the first label out of range, which random bits hardly ever
 * give. */
static void scribble(const struct scribbles* s, const struct memory* m, int64_t num_classes) {
    for (int i = 0; i < s->count; ++i) {
        const uint64_t num_positions = (uint64_t)count_positions(m->positions), bits = s->each[i].bits;
        const int64_t position = (int64_t)(s->each[i].place % num_positions);
        const int64_t class = (int64_t)(s->each[i].place / num_positions % (uint64_t)m->num_classes);
        if (bits % 4 == 3 && holds(m->view.dtype, num_classes)) {
            set(m, position, class, num_classes);
        } else {
            memcpy(address_of(m, position, class), &bits, (size_t)formats[m->view.dtype].size);
        }
    }
}

/* Leaves probabilities alone: arbitrary bits can be infinite or negative, which the reference does not cover. */
static void scribble_target(const struct scribbles* s, const struct test_case* t, const struct memory* target) {
    if (t->kind.target != SEGLOSS_PROBABILITIES) {
        scribble(s, target, t->num_classes);
    }
}

/* The first position with a target that must be refused, or -1. */
static int64_t find_refusal(const struct test_case* t, const struct inputs* in) {
    const struct outputs none = {0};
    const struct segloss_cross_entropy args = arguments_of(t, in, &none);
    const struct problem problem = problem_of(t, in, &args);
    describe_case(t, "reference");
    return reference_refusal(&problem, t->num_positions);
}

/* ---- families ---- */

static inline void fuzz_cross_entropy(void) {
    const struct test_case t = draw_any_case(target_kinds[random_below(4)]);
    const struct scribbles s = draw_scribbles();
    struct inputs in;
    create_inputs(&t, &in);
    scribble_target(&s, &t, &in.target);
    const int64_t refused = find_refusal(&t, &in);
    for (int i = 0; refused >= 0 && i < num_tables; ++i) {
        describe_case(&t, tables[i]->isa);
        expect_cross_entropy_refusal(tables[i], &t, &in, 0, t.num_positions, refused);
    }
    if (refused < 0) {
        check_case(&t, &in);
    }
    free_inputs(&in);
}

static inline struct target_kind draw_soft_kind(int num_kinds) {
    const struct target_kind kinds[] = {labels_kind, probabilities_kind, masks_kind};
    return kinds[random_below(num_kinds)];
}

static inline void fuzz_binary(void) {
    const struct test_case t = draw_binary_case(draw_any_case(draw_soft_kind(3)));
    const struct scribbles s = draw_scribbles();
    struct inputs in;
    create_binary_inputs(&t, &in);
    scribble_target(&s, &t, &in.target);
    const int64_t refused = find_refusal(&t, &in);
    for (int i = 0; refused >= 0 && i < num_tables; ++i) {
        expect_binary_refusal(tables[i], &t, &in, refused);
    }
    if (refused < 0) {
        check_binary_case(&t, &in);
    }
    free_inputs(&in);
}

static inline void fuzz_soft_stats(void) {
    const enum segloss_activation activation = (enum segloss_activation)random_below(3);
    const struct target_kind kind = draw_soft_kind(activation == SEGLOSS_SOFTMAX ? 2 : 3);
    const struct soft_case c = draw_soft_case(draw_any_case(kind), activation);
    const struct scribbles s = draw_scribbles();
    struct soft_inputs in;
    create_soft_inputs(&c, &in);
    scribble_target(&s, &c.voxels, &in.voxels.target);
    const int64_t refused = find_refusal(&c.voxels, &in.voxels);
    for (int i = 0; refused >= 0 && i < num_tables; ++i) {
        describe_soft_case(&c, tables[i]->isa);
        expect_soft_refusal(tables[i], &c, &in, 0, c.voxels.num_positions, refused);
    }
    if (refused < 0) {
        check_soft_case(&c, &in);
    }
    free_soft_inputs(&in);
}

/* In the first block with anything to refuse, the first bad label or, if there is none, the first bad prediction. */
static inline int64_t find_confusion_refusal(const struct confusion_case* c) {
    const int64_t bad_label = find_refusal(c->test, c->in);
    const int64_t end = bad_label < 0 ? c->test->num_positions : bad_label / SEGLOSS_BLOCK * SEGLOSS_BLOCK;
    for (int64_t p = 0; c->map && p < end; ++p) {
        const long double predicted = get(c->map, p, 0);
        const int is_ignored = get(&c->in->target, p, 0) == (long double)c->test->ignore_index;
        if (!is_ignored && !(predicted >= 0 && predicted < c->test->num_classes)) {
            return p;
        }
    }
    return bad_label;
}

static inline void expect_confusion_refusal(const struct segloss_kernels* table, const struct confusion_case* c,
                                            int64_t refused) {
    const struct segloss_positions cells = {1, {count_cells(c) + 1}};
    const struct memory counts = allocate_counts(&cells);
    const struct segloss_confusion args = confusion_arguments(c);
    const int64_t end = c->test->num_positions;
    int64_t largest;
    describe_case(c->test, table->isa);
    expect_position("confusion", table->confusion[c->test->numbers.real](&args, 0, end, counts.view.data), refused);
    if (c->map) {
        expect_position("largest label", table->largest_label(&args, 0, end, &largest), refused);
        int64_t compared[2];
        const int64_t position = table->compare_maps(&args, 0, end, compared);
        if (args.target.dtype > SEGLOSS_BFLOAT16) { /* integers of any value are labels here */
            expect_position("comparison", position, -1);
        }
    }
    free(counts.bytes);
}

static inline void fuzz_confusion(void) {
    const struct test_case t = draw_any_case(labels_kind);
    const int has_ties = random_below(2), has_map = random_below(2), per_class = random_below(2);
    const struct scribbles of_target = draw_scribbles(), of_map = draw_scribbles();
    struct inputs in;
    create_inputs(&t, &in);
    if (has_ties) {
        fill_with_ties(&t, &in.logits);
        make_half_correct(&t, &in);
    }
    const struct memory map = create_map(&t, &in);
    scribble(&of_target, &in.target, t.num_classes);
    scribble(&of_map, &map, t.num_classes);
    const struct confusion_case c = {&t, &in, has_map ? &map : NULL, per_class};
    const int64_t refused = find_confusion_refusal(&c);
    for (int i = 0; refused >= 0 && i < num_tables; ++i) {
        expect_confusion_refusal(tables[i], &c, refused);
    }
    if (refused < 0) {
        check_confusion(&c);
    }
    free(map.bytes);
    free_inputs(&in);
}

static inline void fuzz_topk(void) {
    const struct test_case t = draw_any_case(labels_kind);
    struct inputs in;
    create_inputs(&t, &in);
    check_all_topk(&t, &in);
    free_inputs(&in);
}

static inline void fuzz_lovasz(void) {
    if (random_below(2)) {
        check_all_lovasz_lists(1 + random_below(MAX_POSITIONS), (enum segloss_real)random_below(SEGLOSS_REALS));
        return;
    }
    const struct lovasz_case z = draw_lovasz_case(draw_any_case(random_below(2) ? labels_kind : masks_kind));
    check_all_lovasz(&z);
}

static inline void fuzz_one_hot(void) {
    const enum segloss_dtype dtype = (enum segloss_dtype)(NUM_FLOATING + random_below(NUM_DTYPES - NUM_FLOATING));
    const int64_t num_classes = 1 + random_below(MAX_CLASSES);
    const struct segloss_positions positions = draw_positions(MAX_POSITIONS);
    const struct scribbles s = draw_scribbles();
    const struct memory target = allocate_input(dtype, &positions, num_classes, draw_layout(NUM_INPUT_LAYOUTS));
    for (int64_t p = 0; p < count_positions(&positions); ++p) {
        const int64_t label = random_below(num_classes);
        for (int64_t c = 0; c < num_classes; ++c) {
            set(&target, p, c, c == label);
        }
    }
    scribble(&s, &target, num_classes);
    check_one_hot(&target);
    free(target.bytes);
}

/* ---- libFuzzer ---- */

int LLVMFuzzerInitialize(int* argc, char*** argv);
int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int LLVMFuzzerInitialize(int* argc, char*** argv) {
    (void)argc;
    (void)argv;
    find_tables();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    fuzzed_bytes = data;
    num_fuzzed_bytes = size;
    random_state = size;
    FAMILY();
    return 0;
}
