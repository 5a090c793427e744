// Connected components of label maps.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "checks.h"
#include "label_table.h"
#include "layout.h"
#include "memory.h"

namespace segloss {
namespace {

constexpr auto kComponents = "connected_components"; // the name in error messages

struct Components {
    Tensor labels; // [N, *]
    Labels meaning;
    int64_t connectivity;
    bool per_class;

    int64_t num_axes() const { return labels.dim() - 1; }
};

void check_components(const Components& given) {
    check_label_tensor(kComponents, given.labels);
    check_label_table(kComponents, given.labels, given.meaning.table, Target::labels);
    TORCH_CHECK_VALUE(given.num_axes() >= 1 && given.num_axes() <= SEGLOSS_AXES, kComponents,
                      ": expected labels [N, *] with one to three spatial axes, got ", given.labels.sym_sizes());
    TORCH_CHECK_VALUE(given.connectivity >= 1 && given.connectivity <= given.num_axes(), kComponents,
                      ": expected connectivity in [1, ", given.num_axes(), "] for labels of ", given.num_axes(),
                      " spatial axes, got ", given.connectivity);
}

// ---- CPU ------------------------------------------------------------------------------------------------------------

// Some rows of a sample, and the numbers of their runs.
struct Slab {
    int64_t sample, begin, end;
    int64_t first_run = 0, num_runs = 0;
};

// Enough for all threads, and not so small that the seams between them are much of the work.
std::vector<Slab> slabs_of(int64_t num_samples, int64_t num_rows, int64_t columns) {
    constexpr int64_t kLeastVoxels = 1 << 16;
    const auto wanted = (4 * num_threads() + num_samples - 1) / num_samples;
    const auto rows = std::max((num_rows + wanted - 1) / wanted, (kLeastVoxels + columns - 1) / columns);
    std::vector<Slab> slabs;
    for (int64_t sample = 0; sample < num_samples; ++sample) {
        for (int64_t begin = 0; begin < num_rows; begin += rows) {
            slabs.push_back({sample, begin, std::min(begin + rows, num_rows)});
        }
    }
    return slabs;
}

class ComponentsOfSamples {
public:
    ComponentsOfSamples(const Components& given, const Tensor& components)
        : given_(given), num_samples_(given.labels.size(0)), components_(components.data_ptr<int32_t>()) {
        args_.positions = describe(given.labels.sizes(), /*dim=*/1, {{&given.labels, &args_.labels}});
        args_.ignore_index = given.meaning.ignore_index;
        args_.label_table = label_table_for_kernel(kComponents, given.meaning.table, INT32_MAX, given.labels.numel());
        args_.connectivity = static_cast<int>(given.connectivity);
        args_.per_class = given.per_class;
        const auto missing = SEGLOSS_AXES - given.num_axes();
        for (int64_t axis = 0; axis < SEGLOSS_AXES; ++axis) {
            args_.sizes[axis] = axis < missing ? 1 : given.labels.size(1 + axis - missing);
        }
        args_.words = (args_.sizes[SEGLOSS_COLUMNS] + 63) / 64 + 1;
        const auto num_words = num_samples_ * num_rows() * args_.words;
        foreground_ = at::empty({num_words + 1}, at::kLong);
        starts_ = at::empty({num_words}, at::kLong);
        runs_before_ = at::empty({num_words}, at::kInt);
        foreground_.data_ptr<int64_t>()[0] = 0;
        slabs_ = slabs_of(num_samples_, num_rows(), args_.sizes[SEGLOSS_COLUMNS]);
    }

    void write(const Tensor& counts) {
        find_runs();
        auto* const count = counts.data_ptr<int64_t>();
        over_slabs([&](const segloss_components& args, const Slab& slab) {
            kernels().components_start(&args, slab.begin, slab.end, static_cast<int32_t>(slab.first_run),
                                       static_cast<int32_t>(slab.first_run + slab.num_runs));
            kernels().components_unite(&args, slab.begin, slab.end, slab.begin, slab.end);
        });
        const auto slabs_per_sample = static_cast<int64_t>(slabs_.size()) / num_samples_;
        in_parallel(num_samples_, [&](int64_t sample) {
            const auto args = of_sample(sample);
            for (int64_t k = 0; k < slabs_per_sample; ++k) {
                const auto& slab = slabs_[sample * slabs_per_sample + k];
                const auto reach = slab.begin + args.sizes[SEGLOSS_ROWS] + 1;
                kernels().components_unite(&args, slab.begin, std::min(slab.end, reach), 0, slab.begin);
            }
            count[sample] = kernels().components_number(args.parents, static_cast<int32_t>(num_runs_[sample]));
        });
        over_slabs([&](const segloss_components& args, const Slab& slab) {
            kernels().components_write(&args, slab.begin, slab.end);
        });
    }

private:
    int64_t num_rows() const { return args_.sizes[SEGLOSS_PLANES] * args_.sizes[SEGLOSS_ROWS]; }

    segloss_components of_sample(int64_t sample) const {
        auto args = args_;
        const auto first = sample * num_rows() * args.words;
        args.sample = sample;
        args.components = components_ + sample * num_rows() * args.sizes[SEGLOSS_COLUMNS];
        args.foreground = reinterpret_cast<uint64_t*>(foreground_.data_ptr<int64_t>()) + 1 + first;
        args.starts = reinterpret_cast<uint64_t*>(starts_.data_ptr<int64_t>()) + first;
        args.runs_before = runs_before_.data_ptr<int32_t>() + first;
        args.parents = parents_.defined() ? parents_.data_ptr<int32_t>() + first_runs_[sample] : nullptr;
        return args;
    }

    template <typename Work> void over_slabs(const Work& work) {
        in_parallel(static_cast<int64_t>(slabs_.size()),
                    [&](int64_t k) { work(of_sample(slabs_[k].sample), slabs_[k]); });
    }

    void find_runs() {
        std::atomic<bool> is_refused{false};
        in_parallel(static_cast<int64_t>(slabs_.size()), [&](int64_t k) {
            auto& slab = slabs_[k];
            const auto args = of_sample(slab.sample);
            if (!is_refused && kernels().components_runs(&args, slab.begin, slab.end, &slab.num_runs) >= 0) {
                is_refused = true;
            }
        });
        if (is_refused) {
            check_label_values(kComponents, given_.labels, INT32_MAX, given_.meaning);
        }
        num_runs_.assign(num_samples_, 0);
        first_runs_.assign(num_samples_ + 1, 0);
        for (auto& slab : slabs_) {
            slab.first_run = num_runs_[slab.sample];
            num_runs_[slab.sample] += slab.num_runs;
        }
        for (int64_t n = 0; n < num_samples_; ++n) {
            TORCH_CHECK(num_runs_[n] <= INT32_MAX, kComponents, ": expected at most ", INT32_MAX,
                        " runs of voxels in a sample, which int32 components can number, got ", num_runs_[n],
                        " in sample ", n, ". Call it for parts of the sample");
            first_runs_[n + 1] = first_runs_[n] + num_runs_[n];
        }
        parents_ = at::empty({first_runs_.back()}, at::kInt);
    }

    const Components& given_;
    int64_t num_samples_;
    int32_t* components_;
    segloss_components args_{};
    Tensor foreground_, starts_, runs_before_, parents_;
    std::vector<Slab> slabs_; // as many for each sample
    std::vector<int64_t> num_runs_, first_runs_;
};

// ---- the operator ---------------------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> connected_components_cpu(const Tensor& labels, const OptionalTensor& label_table,
                                                    int64_t connectivity, int64_t ignore_index, bool per_class) {
    const Components given{labels, {ignore_index, label_table}, connectivity, per_class};
    check_components(given);
    auto components = empty_output(labels.sizes(), at::kInt);
    auto counts = at::zeros({labels.size(0)}, at::kLong);
    if (labels.numel() != 0) {
        ComponentsOfSamples(given, components).write(counts);
    }
    return {std::move(components), std::move(counts)};
}

// Other devices copy to the CPU and back.
std::tuple<Tensor, Tensor> connected_components_composite(const Tensor& labels, const OptionalTensor& label_table,
                                                          int64_t connectivity, int64_t ignore_index, bool per_class) {
    check_components({labels, {ignore_index, label_table}, connectivity, per_class});
    const auto table = label_table ? OptionalTensor(label_table->cpu()) : std::nullopt;
    const auto [components, counts] =
        connected_components_cpu(labels.cpu(), table, connectivity, ignore_index, per_class);
    return {components.to(labels.device()), counts.to(labels.device())};
}

std::tuple<Tensor, Tensor> connected_components_meta(const Tensor& labels, const OptionalTensor& label_table,
                                                     int64_t connectivity, int64_t ignore_index, bool per_class) {
    check_components({labels, {ignore_index, label_table}, connectivity, per_class});
    return {at::empty_symint(labels.sym_sizes(), labels.options().dtype(at::kInt)),
            at::empty_symint({labels.sym_size(0)}, labels.options().dtype(at::kLong))};
}

// ---- pairs of components --------------------------------------------------------------------------------------------

constexpr auto kPairs = "component_pairs";

// Voxels that have the same number in both of two maps.
struct Pair {
    int32_t first, second;
    int64_t voxels;
    int64_t position; // of the first one

    auto order() const { return std::tie(first, second, position); }
};

class PairTable {
public:
    void add(const Pair& pair) {
        if (pairs_.size() >= 2 * merged_ + kFew) {
            merge();
        }
        pairs_.push_back(pair);
    }

    void add(const PairTable& other) {
        for (const auto& pair : other.pairs_) {
            add(pair);
        }
    }

    // Sorts the pairs, and makes one of those of the same numbers.
    void merge() {
        std::sort(pairs_.begin(), pairs_.end(), [](const Pair& a, const Pair& b) { return a.order() < b.order(); });
        size_t count = 0;
        for (const auto& pair : pairs_) {
            if (count > 0 && pairs_[count - 1].first == pair.first && pairs_[count - 1].second == pair.second) {
                pairs_[count - 1].voxels += pair.voxels;
            } else {
                pairs_[count++] = pair;
            }
        }
        pairs_.resize(count);
        merged_ = count;
    }

    const std::vector<Pair>& pairs() const { return pairs_; }

private:
    static constexpr size_t kFew = 1 << 12;
    std::vector<Pair> pairs_;
    size_t merged_ = 0;
};

// Rows of two numbers, how many voxels have both, and the position of the first one; sorted by the numbers. Without
// voxels that have 0 in both.
Tensor component_pairs(const Tensor& first, const Tensor& second) {
    for (const auto& map : {first, second}) {
        check_dense(kPairs, map, "components");
        TORCH_CHECK_TYPE(map.scalar_type() == at::kInt, kPairs, ": expected int32 components, got ", map.scalar_type());
    }
    TORCH_CHECK(first.sizes() == second.sizes(), kPairs, ": expected components of one shape, got ", first.sizes(),
                " and ", second.sizes());
    const auto a = first.contiguous(), b = second.contiguous();
    const auto *const numbers = a.const_data_ptr<int32_t>(), *const others = b.const_data_ptr<int32_t>();
    const Chunks chunks(a.numel(), 1);
    std::vector<PairTable> tables(chunks.count());
    chunks.run([&](int64_t chunk, int64_t begin, int64_t end) {
        for (int64_t i = begin, next = begin; i < end; i = next) {
            while (next < end && numbers[next] == numbers[i] && others[next] == others[i]) {
                ++next;
            }
            if (numbers[i] != 0 || others[i] != 0) {
                tables[chunk].add({numbers[i], others[i], next - i, i});
            }
        }
        tables[chunk].merge();
        return -1;
    });
    PairTable table;
    for (const auto& of_chunk : tables) {
        table.add(of_chunk);
    }
    table.merge();
    auto rows = at::empty({static_cast<int64_t>(table.pairs().size()), 4}, at::kLong);
    auto* row = rows.data_ptr<int64_t>();
    for (const auto& pair : table.pairs()) {
        *row++ = pair.first;
        *row++ = pair.second;
        *row++ = pair.voxels;
        *row++ = pair.position;
    }
    return rows;
}

} // namespace

TORCH_LIBRARY_FRAGMENT(segloss, m) {
    m.def("connected_components(Tensor labels, Tensor? label_table, int connectivity, int ignore_index, "
          "bool per_class) -> (Tensor, Tensor)",
          {at::Tag::pt2_compliant_tag});
    m.def("component_pairs(Tensor first, Tensor second) -> Tensor");
}

TORCH_LIBRARY_IMPL(segloss, CPU, m) {
    m.impl("connected_components", TORCH_FN(connected_components_cpu));
    m.impl("component_pairs", TORCH_FN(component_pairs));
}

TORCH_LIBRARY_IMPL(segloss, Meta, m) { m.impl("connected_components", TORCH_FN(connected_components_meta)); }

TORCH_LIBRARY_IMPL(segloss, CompositeExplicitAutograd, m) {
    m.impl("connected_components", TORCH_FN(connected_components_composite));
}

} // namespace segloss
