/* The tables of kernels that this processor runs, and the sizes that they are tested with. */
#ifndef SEGLOSS_TEST_TABLES_H
#define SEGLOSS_TEST_TABLES_H

#include "harness.h"

enum {
    MAX_TABLES = 3,
    ROUNDS = 2, /* cases of cross entropy for each size and dtype */
};

static const char* const isa_names[MAX_TABLES] = {"baseline", "avx2", "avx512"};

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
