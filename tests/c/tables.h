/* The tables of kernels that this processor runs, and the sizes that they are tested with. */
#ifndef SEGLOSS_TEST_TABLES_H
#define SEGLOSS_TEST_TABLES_H

#include "harness.h"

/* Cases for each size, or size and dtype; and of bad targets, every how many-th is run. FEW_CASES is for programs that
 * take long for each: what they are there to find, any case finds. */
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

/* The best one last. */
#ifdef __aarch64__
static const char* const isa_names[] = {"neon"};
#else
static const char* const isa_names[] = {"baseline", "avx2", "avx512"};
#endif

enum { MAX_TABLES = sizeof isa_names / sizeof isa_names[0] };

/* The tables that this processor runs. */
static const struct segloss_kernels* tables[MAX_TABLES];
static int num_tables;

static const int64_t counts[] = {1, SEGLOSS_BLOCK - 1, SEGLOSS_BLOCK, SEGLOSS_BLOCK + 1, 200};
static const int64_t class_counts[] = {1, 2, 3, 127, 128, 129};

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
