#include "label_table.h"

#include <ATen/ATen.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

namespace segloss {
namespace {

// One row of a table in the CPU's memory.
class Row {
public:
    explicit Row(const int64_t* numbers) : numbers_(numbers) {}

    int64_t operator[](segloss_label_row place) const { return numbers_[place]; }
    int64_t length() const { return numbers_[SEGLOSS_ROW_LENGTH]; }
    bool is_sorted() const { return numbers_[SEGLOSS_ROW_IS_SORTED] != 0; }
    int64_t entry(int64_t k) const { return numbers_[SEGLOSS_ROW_HEADER + k]; }
    int64_t label(int64_t k) const { return is_sorted() ? entry(length() + k) : numbers_[SEGLOSS_ROW_FIRST] + k; }

    // The size of a row with this header; -1 if it has none.
    int64_t size() const {
        const auto sets = 2 * numbers_[SEGLOSS_ROW_CLASSES] * numbers_[SEGLOSS_ROW_WORDS];
        return length() < 1 || sets < 0 ? -1 : SEGLOSS_ROW_HEADER + length() * (is_sorted() ? 2 : 1) + sets;
    }

private:
    const int64_t* numbers_;
};

// The rows of a table, copied to the CPU's memory if they are not there.
class Rows {
public:
    explicit Rows(const Tensor& table) : numbers_(table.to(at::kCPU).contiguous().view({-1, table.size(-1)})) {}

    int64_t count() const { return numbers_.size(0); }
    Row operator[](int64_t k) const { return Row(numbers_.const_data_ptr<int64_t>() + k * numbers_.size(1)); }

private:
    Tensor numbers_;
};

void check_rows(const std::string& op, const Tensor& table, int64_t num_classes, bool has_weights) {
    const Rows rows(table);
    for (int64_t k = 0; k < rows.count(); ++k) {
        const auto row = rows[k];
        TORCH_CHECK_VALUE(row.size() >= 0 && row.size() <= table.size(-1), op, ": expected rows of ", row.size(),
                          " numbers in a label table by their header, got ", table.sizes());
        const bool has_sets = row[SEGLOSS_ROW_WORDS] > 0;
        TORCH_CHECK_VALUE(has_sets == (table.dim() > 1), op, ": expected a label table of ", has_sets ? 2 : 1,
                          " dimensions by its header, got ", table.sizes());
        TORCH_CHECK_VALUE((has_sets && !has_weights) || row[SEGLOSS_ROW_CLASSES] <= num_classes, op,
                          ": expected classes in [0, ", num_classes, ") in label_map, got class ",
                          row[SEGLOSS_ROW_CLASSES] - 1,
                          ". Map its labels to other classes, or to None to ignore them, or give the network more "
                          "classes");
    }
}

// The entries of labels by one row.
Tensor entries_of(const Tensor& labels, const Tensor& numbers, const Row& row) {
    const auto length = row.length();
    const auto entries = numbers.narrow(0, SEGLOSS_ROW_HEADER, length);
    Tensor place, is_found;
    if (row.is_sorted()) {
        const auto sorted = numbers.narrow(0, SEGLOSS_ROW_HEADER + length, length);
        place = at::searchsorted(sorted, labels).clamp_max(length - 1);
        is_found = sorted.index({place}).eq(labels);
    } else {
        place = labels - row[SEGLOSS_ROW_FIRST]; // wraps for labels far away, but not into [0, length)
        is_found = place.ge(0).logical_and(place.lt(length));
        place = place.clamp(0, length - 1);
    }
    return at::where(is_found, entries.index({place}), row[SEGLOSS_ROW_OTHER]);
}

// Where the label of a dtype with larger numbers does not fit into int64.
Tensor is_beyond_int64(const Tensor& target) {
    if (target.is_floating_point()) {
        const auto wide = target.to(c10::promoteTypes(target.scalar_type(), at::kFloat));
        return wide.ge(-0x1p63).logical_and(wide.lt(0x1p63)).logical_not();
    }
    return target.to(at::kLong).lt(0); // uint64 wraps
}

Tensor classes_by_table(const Tensor& target, const Tensor& table) {
    const auto labels = target.to(at::kLong);
    const Rows rows(table);
    const auto numbers = table.contiguous().view({rows.count(), -1});
    const auto by_row = labels.reshape({rows.count(), -1});
    std::vector<Tensor> entries;
    for (int64_t k = 0; k < rows.count(); ++k) {
        entries.push_back(entries_of(by_row[k].contiguous(), numbers[k], rows[k]));
    }
    const auto entry = at::stack(entries).view(labels.sizes());
    const auto classes = at::where(entry.eq(SEGLOSS_SAME), labels.masked_fill(labels.lt(0), SEGLOSS_BAD), entry);
    const bool can_be_beyond = target.is_floating_point() || target.scalar_type() == at::kUInt64;
    return can_be_beyond ? classes.masked_fill(is_beyond_int64(target), SEGLOSS_BAD) : classes;
}

constexpr int64_t kMostListed = 16;

std::string more_than(int64_t number) {
    return number <= kMostListed ? "" : c10::str(" and ", number - kMostListed, " more");
}

// "3, 5, 7"
std::string listed(const std::vector<int64_t>& labels) {
    const auto count = static_cast<int64_t>(labels.size());
    const std::vector<int64_t> first(labels.begin(), labels.begin() + std::min(count, kMostListed));
    return c10::str(c10::Join(", ", first), more_than(count));
}

// "label 3 (5 times), 7 (once)"
std::string counted(const Tensor& values, at::ScalarType dtype) {
    const auto [labels, inverse, counts] =
        at::_unique2(values, /*sorted=*/true, /*return_inverse=*/false, /*return_counts=*/true);
    std::vector<std::string> texts;
    for (int64_t k = 0; k < std::min(labels.numel(), kMostListed); ++k) {
        const auto times = counts[k].item<int64_t>();
        texts.push_back(label_text(labels.to(dtype), k) + (times == 1 ? " (once)" : c10::str(" (", times, " times)")));
    }
    return c10::str(c10::Join(", ", texts), more_than(labels.numel()));
}

// What labels may be by the first row, and what to do with others.
std::string expected_labels(const Tensor& table, int64_t num_classes) {
    const Rows rows(table);
    const auto row = rows[0];
    std::vector<int64_t> known, ignored;
    for (int64_t k = 0; k < row.length(); ++k) {
        if (row.entry(k) == SEGLOSS_IGNORED) {
            ignored.push_back(row.label(k));
        } else if (row.entry(k) != SEGLOSS_BAD) {
            known.push_back(row.label(k));
        }
    }
    const auto or_ignored =
        ignored.empty() ? "" : c10::str("; ", listed(ignored), ignored.size() == 1 ? " is" : " are", " ignored");
    return row[SEGLOSS_ROW_OTHER] == SEGLOSS_SAME
               ? c10::str("labels 0 to ", std::max<int64_t>(num_classes - 1, 0), or_ignored,
                          ". Relabel by label_map, give the network more classes, or add them to ignore_index")
               : c10::str("one of the labels ", listed(known), or_ignored,
                          ". Name others in label_map, with None for "
                          "labels to ignore; its key ... stands for all that it does not name");
}

} // namespace

void check_label_table(const std::string& op, const Tensor& target, const OptionalTensor& table, Target kind) {
    if (!table) {
        return;
    }
    check_same_device(op, target, *table, "label_map");
    TORCH_CHECK_TYPE(table->scalar_type() == at::kLong && table->dim() > 0 && table->sym_size(-1) > SEGLOSS_ROW_HEADER,
                     op, ": expected a label table of dtype int64, made by segloss, got ", table->scalar_type(), " ",
                     table->sym_sizes());
    const bool takes_sets = kind == Target::regions || kind == Target::sets || kind == Target::one_hot;
    TORCH_CHECK(takes_sets || table->dim() == 1, op, ": expected a label table without sets, got ", table->sym_sizes());
    TORCH_CHECK(takes_sets || kind == Target::labels, op,
                ": expected class labels with label_map, or with several values of ignore_index, got ",
                kind == Target::masks ? "masks" : "class probabilities", ", a ", target.scalar_type(), " target ",
                target.sym_sizes(), ". Leave voxels out with voxel_weight=0 instead");
}

Target kind_of_regions(const std::string& op, const Tensor& target, const OptionalTensor& table, Target kind) {
    const bool has_sets = table && table->dim() > 1;
    TORCH_CHECK(!has_sets || kind == Target::labels, op, ": expected class labels with regions, got a ",
                target.scalar_type(), " target ", target.sym_sizes(),
                " of input's shape, a mask for each region or one-hot. Leave regions out for masks");
    return has_sets ? Target::regions : kind;
}

Target kind_of_sets(const std::string& op, const Tensor& target, const OptionalTensor& table, Target kind) {
    const bool has_sets = table && table->dim() > 1;
    TORCH_CHECK(!has_sets || kind != Target::probabilities, op,
                ": expected class labels with label_sets, got class probabilities, a ", target.scalar_type(),
                " target ", target.sym_sizes(),
                ". Give the probability of a set's classes to each of them, or leave label_sets out");
    return has_sets && kind == Target::labels ? Target::sets : kind;
}

segloss_label_table label_table_for_kernel(const std::string& op, const OptionalTensor& table, int64_t num_classes,
                                           int64_t num_positions, bool has_weights) {
    if (!table) {
        return {};
    }
    TORCH_CHECK(table->is_contiguous(), op, ": expected a contiguous label table, got strides ", table->strides());
    if (table->is_cpu()) {
        check_rows(op, *table, num_classes, has_weights);
    }
    const auto size = table->size(-1);
    const auto count = table->numel() / size;
    TORCH_CHECK(count > 0 && num_positions % count == 0, op, ": expected rows of a label table for samples of ",
                num_positions, " voxels, got ", table->sizes());
    return {table->const_data_ptr<int64_t>(), size, count > 1 ? num_positions / count : 0};
}

bool table_may_ignore(const Tensor& table) {
    const Rows rows(table);
    bool may_ignore = false;
    for (int64_t k = 0; k < rows.count(); ++k) {
        may_ignore |= rows[k][SEGLOSS_ROW_MAY_IGNORE] != 0;
    }
    return may_ignore;
}

Tensor classes_of(const Tensor& target, const Labels& labels) {
    return labels.table ? classes_by_table(target, *labels.table)
                        : target.to(at::kLong).masked_fill(is_ignored(target, labels), SEGLOSS_IGNORED);
}

Tensor sets_of_classes(const Tensor& table, int64_t channels, bool of_groups) {
    const Rows rows(table);
    const auto numbers = table.contiguous().view({rows.count(), -1});
    const auto bits = at::arange(64, table.options());
    std::vector<Tensor> sets;
    for (int64_t k = 0; k < rows.count(); ++k) {
        const auto row = rows[k];
        const auto words = row[SEGLOSS_ROW_WORDS], classes = row[SEGLOSS_ROW_CLASSES];
        const auto begin = row.size() - (of_groups ? 1 : 2) * classes * words;
        TORCH_CHECK_VALUE(words * 64 >= channels && begin + classes * words <= table.size(-1),
                          "set_masks: expected sets of ", channels, " channels in a label table, got ", table.sizes());
        const auto of_row = numbers[k].narrow(0, begin, classes * words);
        const auto is_set = of_row.unsqueeze(1).bitwise_right_shift(bits).bitwise_and(1);
        sets.push_back(is_set.view({classes, words * 64}).narrow(1, 0, channels).to(at::kBool));
    }
    return at::stack(sets);
}

void check_mapped_values(const std::string& op, const Tensor& target, int64_t num_classes, const Tensor& table) {
    check_rows(op, table, num_classes, /*has_weights=*/false);
    const auto classes = classes_by_table(target, table);
    const auto bad = is_outside(classes, num_classes).logical_and_(classes.ne(SEGLOSS_IGNORED));
    const auto num_bad = bad.sum().item<int64_t>();
    if (num_bad == 0) {
        return;
    }
    const auto values = target.is_floating_point() ? target : target.to(at::kLong); // torch cannot select from uint64
    TORCH_CHECK_INDEX(false, op, ": Target ", first_value(target, bad), " is out of bounds: ", num_bad,
                      num_bad == 1 ? " label has" : " labels have", " no class, the first ", first_place("target", bad),
                      ": ", counted(values.masked_select(bad), target.scalar_type()), ". Expected ",
                      expected_labels(table, num_classes));
}

} // namespace segloss
