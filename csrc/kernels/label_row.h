/* Looks up labels in the rows of kernels.h. C and CUDA both compile it. */
#ifndef SEGLOSS_LABEL_ROW_H
#define SEGLOSS_LABEL_ROW_H

#include "kernels.h"

#ifdef __CUDACC__
#define ROW_FUNCTION __host__ __device__ static inline
#else
#define ROW_FUNCTION static inline
#endif

ROW_FUNCTION const int64_t* row_of_position(const struct segloss_label_table* table, int64_t position) {
    return table->rows + (table->row_positions > 0 ? position / table->row_positions * table->row_size : 0);
}

/* The place of a label among the sorted ones; `length` if it is not one of them. */
ROW_FUNCTION int64_t place_of_label(const int64_t* labels, int64_t length, int64_t label) {
    int64_t begin = 0;
    for (int64_t end = length; begin < end;) {
        const int64_t middle = begin + (end - begin) / 2;
        if (labels[middle] < label) {
            begin = middle + 1;
        } else {
            end = middle;
        }
    }
    return begin < length && labels[begin] == label ? begin : length;
}

ROW_FUNCTION int64_t entry_of_label(const int64_t* row, int64_t label) {
    const int64_t* entries = row + SEGLOSS_ROW_HEADER;
    const int64_t length = row[SEGLOSS_ROW_LENGTH];
    const int64_t place = row[SEGLOSS_ROW_IS_SORTED] ? place_of_label(entries + length, length, label)
                                                     : (int64_t)((uint64_t)label - (uint64_t)row[SEGLOSS_ROW_FIRST]);
    return (uint64_t)place < (uint64_t)length ? entries[place] : row[SEGLOSS_ROW_OTHER];
}

/* The number of classes that labels of a row have: with sets not that of the logits. */
ROW_FUNCTION int64_t classes_of_row(const int64_t* row, int64_t num_classes) {
    return row[SEGLOSS_ROW_WORDS] > 0 ? row[SEGLOSS_ROW_CLASSES] : num_classes;
}

/* The set of a class. */
ROW_FUNCTION const int64_t* set_of_class(const int64_t* row, int64_t class_index) {
    const int64_t entries = row[SEGLOSS_ROW_LENGTH] * (row[SEGLOSS_ROW_IS_SORTED] ? 2 : 1);
    return row + SEGLOSS_ROW_HEADER + entries + class_index * row[SEGLOSS_ROW_WORDS];
}

ROW_FUNCTION int is_in_set(const int64_t* set, int64_t element) {
    return (int)((uint64_t)set[element / 64] >> (element % 64)) & 1;
}

/* Whether a table has sets. */
ROW_FUNCTION int has_sets(const struct segloss_label_table* table) {
    return table->rows && table->rows[SEGLOSS_ROW_WORDS] > 0;
}

/* The class of a label with this entry, or SEGLOSS_IGNORED or SEGLOSS_BAD; a class from num_classes on is bad. */
ROW_FUNCTION int64_t class_of_entry(int64_t entry, int64_t label, int64_t num_classes) {
    const int64_t class_or_code = entry == SEGLOSS_SAME ? label : entry;
    const int64_t ignored = SEGLOSS_IGNORED, bad = SEGLOSS_BAD;
    const int64_t in_range = (uint64_t)class_or_code < (uint64_t)num_classes ? class_or_code : bad;
    return entry == ignored ? ignored : in_range;
}

#endif
