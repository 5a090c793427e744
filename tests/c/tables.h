/* The tables of kernels that this processor can run, and the sizes for their tests. */
#ifndef SEGLOSS_TEST_TABLES_H
#define SEGLOSS_TEST_TABLES_H

#include "harness.h"

/* The number of cases for each size, or each size and dtype; of the bad targets, every BAD_STEP-th runs. FEW_CASES is
 * for programs that take long for each case, and look for what any case shows. */
enum {
#ifdef FEW_CASES
    ROUNDS = 1,
    SOFT_ROUNDS = 1,
    BINARY_ROUNDS = 1,
    BAD_STEP = 5,
#else
    ROUNDS = 2,
    SOFT_ROUNDS = 3,
    BINARY_ROUNDS = 3,
    BAD_STEP = 1,
#endif
};

/* In order, the best one last. */
#ifdef __aarch64__
static const char* const isa_names[] = {"neon"};
#else
static const char* const isa_names[] = {"baseline", "avx2", "avx512"};
#endif

enum { MAX_TABLES = sizeof isa_names / sizeof isa_names[0] };

/* The tables that this processor can run. */
static const struct segloss_kernels* tables[MAX_TABLES];
static int num_tables;

/* Whether results have the same bits in any split of the positions. The CUDA kernels promise it for no split. */
static int splits_freely(const struct segloss_kernels* table) { return strcmp(table->isa, "cuda") != 0; }

static const int64_t counts[] = {1, SEGLOSS_BLOCK - 1, SEGLOSS_BLOCK, SEGLOSS_BLOCK + 1, 200};
static const int64_t class_counts[] = {1, 2, 3, 57, 112, 113}; /* a chunk is 56 classes of double, 112 of float */

enum {
    NUM_COUNTS = sizeof counts / sizeof counts[0],
    NUM_CLASS_COUNTS = sizeof class_counts / sizeof class_counts[0],
    NUM_PAIRS = 7,
};

static void find_tables(void) {
    printf("tables:");
    for (int i = 0; i < MAX_TABLES; ++i) {
        const struct segloss_kernels* table = segloss_select_kernels(isa_names[i]);
        if (table) {
            tables[num_tables++] = table;
        }
        printf(" %s%s", isa_names[i], table ? "" : " (not on this processor)");
    }
    printf("\n");
}

#endif
