/* Tests of the C kernels without Python: every table of this processor against slow references.
 *
 * Prints one line per group. Returns 1 at the first failure and prints its case. */

#include "binary_tests.h"
#include "components_tests.h"
#include "confusion_tests.h"
#include "cross_entropy_tests.h"
#include "distance_tests.h"
#include "elementary_tests.h"
#include "label_table_tests.h"
#include "lovasz_tests.h"
#include "nearest_tests.h"
#include "resize_tests.h"
#include "skeleton_tests.h"
#include "soft_skeleton_tests.h"
#include "soft_stats_tests.h"
#include "surface_tests.h"
#include "tables.h"
#include "topk_tests.h"

static void test_selection(void) {
    snprintf(current_case, sizeof current_case, "selection");
    const struct segloss_kernels* best = tables[num_tables - 1];
    for (int i = 0; i < MAX_TABLES; ++i) {
        const struct segloss_kernels* table = segloss_select_kernels(isa_names[i]);
        if (table && strcmp(table->isa, isa_names[i]) != 0) {
            fail("asked for %s, got %s", isa_names[i], table->isa);
        }
    }
    if (segloss_select_kernels(NULL) != best || segloss_select_kernels("") != best) {
        fail("expected %s by default", best->isa);
    }
    if (segloss_select_kernels("baseline") != tables[0]) {
        fail("expected %s for baseline", tables[0]->isa);
    }
    for (int k = 0; k <= num_tables; ++k) {
        if (segloss_usable_kernels(k) != (k < num_tables ? tables[num_tables - 1 - k] : NULL)) {
            fail("expected table %d of %d to be the %d-th best", num_tables - 1 - k, num_tables, k);
        }
    }
    if (segloss_select_kernels("sse9") != NULL) {
        fail("an instruction set that does not exist was found");
    }
    printf("selection: ok\n");
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0); /* keeps the output if a sanitizer ends the program */
    find_tables();
    test_selection();
    for (int f = 0; f < NUM_FUNCTIONS; ++f) {
        test_accuracy_of(&functions[f]);
    }
    test_special_values();
    test_half_types();
    for (size_t i = 0; i < sizeof target_kinds / sizeof target_kinds[0]; ++i) {
        test_cross_entropy(target_kinds[i]);
    }
    test_confusion();
    test_topk();
    test_all_soft_stats();
    test_all_binary();
    test_lovasz();
    test_bad_labels();
    test_bad_predictions();
    test_label_tables();
    test_sets(SEGLOSS_SIGMOID);
    test_sets(SEGLOSS_SOFTMAX);
    test_marginal_loss();
    test_one_hot();
    test_resize();
    test_distances();
    test_nearest();
    test_surfaces();
    test_components();
    test_skeletons();
    test_soft_skeleton();
    return 0;
}
