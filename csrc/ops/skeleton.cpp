// Skeletons of labels, by thinning.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "checks.h"
#include "label_table.h"
#include "layout.h"

namespace segloss {
namespace {

const char* const kSkeleton = "skeletonize";

struct Skeletons {
    Tensor labels; // [N, *]
    Labels meaning;
    bool is_zhang;
    bool of_each; // whether each class has a skeleton, not all together
    int64_t widen;

    bool is_flat() const { return labels.dim() == 3; }
};

void check_skeletons(const Skeletons& given, c10::string_view method) {
    check_label_tensor(kSkeleton, given.labels);
    check_label_table(kSkeleton, given.labels, given.meaning.table, Target::labels);
    TORCH_CHECK(given.labels.dim() == 3 || given.labels.dim() == 4, kSkeleton,
                ": expected labels [N, H, W] or [N, D, H, W], got ", given.labels.sym_sizes());
    TORCH_CHECK_VALUE(method == "zhang" || method == "lee", kSkeleton, ": expected method \"zhang\" or \"lee\", got \"",
                      method, "\"");
    TORCH_CHECK_VALUE(given.is_flat() || !given.is_zhang, kSkeleton,
                      ": expected method=\"lee\" for three spatial axes, got \"zhang\", which has two");
    TORCH_CHECK_VALUE(given.widen >= 0, kSkeleton, ": expected to widen skeletons by 0 voxels or more, got ",
                      given.widen);
}

// ---- classes and their boxes ----------------------------------------------------------------------------------------

// Writes int32 classes or a uint8 mask of the labels, contiguous.
void read_classes(const Skeletons& given, int32_t* classes, uint8_t* mask) {
    segloss_class_map args{};
    args.positions = describe(given.labels.sizes(), /*dim=*/1, {{&given.labels, &args.labels}});
    args.ignore_index = given.meaning.ignore_index;
    args.label_table = label_table_for_kernel(kSkeleton, given.meaning.table, INT32_MAX, given.labels.numel());
    args.classes = classes;
    args.mask = mask;
    const auto is_accepted = Chunks(given.labels.numel(), 1).run([&](int64_t, int64_t begin, int64_t end) {
        return kernels().class_map(&args, begin, end);
    });
    if (!is_accepted) {
        check_label_values(kSkeleton, given.labels, INT32_MAX, given.meaning);
    }
}

struct ClassBox {
    std::array<int64_t, 3> low{INT64_MAX, INT64_MAX, INT64_MAX}, high{0, 0, 0};

    void add(const std::array<int64_t, 3>& from, const std::array<int64_t, 3>& to) {
        for (int axis = 0; axis < 3; ++axis) {
            low[axis] = std::min(low[axis], from[axis]);
            high[axis] = std::max(high[axis], to[axis]);
        }
    }
};

using ClassBoxes = std::map<int32_t, ClassBox>;

// Of each class of a plane.
ClassBoxes boxes_of_plane(const int32_t* classes, int64_t plane, int64_t rows, int64_t columns) {
    ClassBoxes boxes;
    for (int64_t y = 0; y < rows; ++y) {
        const auto* const row = classes + y * columns;
        for (int64_t x = 0, end = 0; x < columns; x = end) {
            for (end = x + 1; end < columns && row[end] == row[x]; ++end) {
            }
            if (row[x] > 0) {
                boxes[row[x]].add({plane, y, x}, {plane + 1, y + 1, end});
            }
        }
    }
    return boxes;
}

// Of a plane of a mask, whose class is 1.
ClassBoxes boxes_of_plane(const uint8_t* mask, int64_t plane, int64_t rows, int64_t columns) {
    ClassBoxes boxes;
    for (int64_t y = 0; y < rows; ++y) {
        const auto* const row = mask + y * columns;
        if (const auto* const first = std::memchr(row, 1, columns)) {
            auto end = columns;
            for (; row[end - 1] == 0; --end) {
            }
            boxes[1].add({plane, y, static_cast<const uint8_t*>(first) - row}, {plane + 1, y + 1, end});
        }
    }
    return boxes;
}

// Of each class of a sample.
template <typename Class>
ClassBoxes boxes_of_classes(const Class* sample, int64_t planes, int64_t rows, int64_t columns) {
    std::vector<ClassBoxes> of_planes(planes);
    in_parallel(planes, [&](int64_t plane) {
        of_planes[plane] = boxes_of_plane(sample + plane * rows * columns, plane, rows, columns);
    });
    ClassBoxes boxes;
    for (const auto& of_plane : of_planes) {
        for (const auto& [class_, box] : of_plane) {
            boxes[class_].add(box.low, box.high);
        }
    }
    return boxes;
}

// ---- CPU ------------------------------------------------------------------------------------------------------------

// A box of a mask that is thinned in place.
struct MaskBox {
    uint8_t* first;
    int64_t stride_plane, stride_row;
    std::array<int64_t, 3> sizes;
};

void thin(const MaskBox& box, bool is_zhang, bool is_flat, int64_t widen) {
    segloss_skeleton args{};
    std::copy(box.sizes.begin(), box.sizes.end(), args.sizes);
    args.stride_plane = box.stride_plane;
    args.stride_row = box.stride_row;
    args.is_zhang = is_zhang;
    args.is_flat = is_flat;
    args.words = (box.sizes[2] + 2 + 63) / 64;
    args.words = is_zhang ? (args.words + 7) / 8 * 8 : args.words;
    const auto num_rows = (box.sizes[0] + 2) * (box.sizes[1] + 2);
    std::vector<uint64_t> words(3 * num_rows * args.words);
    std::vector<uint8_t> rows(2 * num_rows);
    args.mask = words.data();
    args.settled = args.mask + num_rows * args.words;
    args.chosen = args.settled + num_rows * args.words;
    args.pending = rows.data();
    args.has_chosen = rows.data() + num_rows;
    in_parallel(box.sizes[0], [&](int64_t z) { kernels().skeleton_mask(&args, box.first, z, z + 1); });
    kernels().skeleton_thin(&args);
    const auto reach = box.sizes[0] + box.sizes[1] + box.sizes[2];
    for (auto step = std::min(widen, reach); step > 0; --step) {
        kernels().skeleton_widen(&args);
        std::swap(args.mask, args.settled);
    }
    in_parallel(box.sizes[0], [&](int64_t z) { kernels().skeleton_write(&args, box.first, z, z + 1); });
}

// Thins each class of a sample by itself, and writes 1 where there is a skeleton.
void thin_class(const Skeletons& given, const int32_t* classes, uint8_t* skeleton, const MaskBox& box, int32_t class_,
                bool is_flat) {
    const auto [depth, height, width] = box.sizes;
    std::vector<uint8_t> mask(depth * height * width);
    const auto each = [&](const auto& work) {
        for (int64_t z = 0; z < depth; ++z) {
            for (int64_t y = 0; y < height; ++y) {
                const auto row = z * box.stride_plane + y * box.stride_row;
                for (int64_t x = 0; x < width; ++x) {
                    work(mask[(z * height + y) * width + x], row + x);
                }
            }
        }
    };
    each([&](uint8_t& voxel, int64_t at) { voxel = classes[at] == class_; });
    thin({mask.data(), height * width, width, box.sizes}, given.is_zhang, is_flat, given.widen);
    each([&](const uint8_t& voxel, int64_t at) {
        if (voxel != 0) {
            skeleton[at] = 1;
        }
    });
}

Tensor skeletons_cpu(const Skeletons& given) {
    const auto& sizes = given.labels.sizes();
    const auto skeletons = at::empty(sizes, given.labels.options().dtype(at::kBool));
    if (given.labels.numel() == 0) {
        return skeletons;
    }
    const auto rows = given.labels.size(-2), columns = given.labels.size(-1);
    const auto planes = given.is_flat() ? 1 : given.labels.size(1);
    const auto num_voxels = planes * rows * columns;
    const bool is_flat = planes == 1; // also of a volume of one plane, as in scikit-image
    auto* const maps = static_cast<uint8_t*>(skeletons.data_ptr());
    const auto classes = given.of_each ? at::empty(sizes, given.labels.options().dtype(at::kInt)) : Tensor();
    auto* const of_each = given.of_each ? classes.data_ptr<int32_t>() : nullptr;
    read_classes(given, of_each, given.of_each ? nullptr : maps);
    std::vector<std::tuple<int64_t, int32_t, MaskBox>> tasks;
    for (int64_t n = 0; n < sizes[0]; ++n) {
        const auto first = n * num_voxels;
        const auto boxes = of_each != nullptr ? boxes_of_classes(of_each + first, planes, rows, columns)
                                              : boxes_of_classes(maps + first, planes, rows, columns);
        for (const auto& [class_, box] : boxes) {
            const auto at = first + (box.low[0] * rows + box.low[1]) * columns + box.low[2];
            MaskBox task{maps + at, rows * columns, columns, {}};
            for (int axis = 0; axis < 3; ++axis) {
                task.sizes[axis] = box.high[axis] - box.low[axis];
            }
            tasks.emplace_back(at, class_, task);
        }
    }
    if (given.of_each) {
        skeletons.zero_();
    }
    in_parallel(static_cast<int64_t>(tasks.size()), [&](int64_t k) {
        const auto& [at, class_, box] = tasks[k];
        if (given.of_each) {
            thin_class(given, of_each + at, maps + at, box, class_, is_flat);
        } else {
            thin(box, given.is_zhang, is_flat, given.widen);
        }
    });
    return skeletons;
}

// ---- the operator ---------------------------------------------------------------------------------------------------

Tensor skeletons_meta(const Skeletons& given) {
    return at::empty_symint(given.labels.sym_sizes(), given.labels.options().dtype(at::kBool));
}

// Voxels go one after the other: nothing for a GPU.
Tensor skeletons_elsewhere(const Skeletons& given) {
    auto on_cpu = given;
    on_cpu.labels = given.labels.cpu();
    on_cpu.meaning.table = given.meaning.table ? OptionalTensor(given.meaning.table->cpu()) : std::nullopt;
    return skeletons_cpu(on_cpu).to(given.labels.device());
}

template <Tensor (*skeletons)(const Skeletons& given)>
Tensor skeletonize(const Tensor& labels, const OptionalTensor& label_table, c10::string_view method,
                   int64_t ignore_index, bool per_class, int64_t widen) {
    const Skeletons given{labels, {ignore_index, label_table}, method == "zhang", per_class, widen};
    check_skeletons(given, method);
    return skeletons(given);
}

} // namespace

TORCH_LIBRARY_FRAGMENT(segloss, m) {
    m.def("skeletonize(Tensor labels, Tensor? label_table, str method, int ignore_index, bool per_class, int widen) "
          "-> Tensor",
          {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(segloss, CPU, m) { m.impl("skeletonize", TORCH_FN(skeletonize<skeletons_cpu>)); }

TORCH_LIBRARY_IMPL(segloss, Meta, m) { m.impl("skeletonize", TORCH_FN(skeletonize<skeletons_meta>)); }

TORCH_LIBRARY_IMPL(segloss, CompositeExplicitAutograd, m) {
    m.impl("skeletonize", TORCH_FN(skeletonize<skeletons_elsewhere>));
}

} // namespace segloss
