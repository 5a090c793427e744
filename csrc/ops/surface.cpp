// The distances between the surfaces of two maps of classes.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <tuple>
#include <utility>
#include <vector>

#include "checks.h"
#include "layout.h"

namespace segloss {
namespace {

const char* const kSurface = "surface_distances";

constexpr int64_t kLabels = 256; // of a map

// ---- boxes of classes -----------------------------------------------------------------------------------------------

constexpr segloss_box kNothing{{INT64_MAX, INT64_MAX, INT64_MAX}, {0, 0, 0}};

bool is_empty(const segloss_box& box) { return box.high[1] == 0; }

segloss_box united(segloss_box box, const segloss_box& other) {
    for (int axis = 0; axis < 3; ++axis) {
        box.low[axis] = std::min(box.low[axis], other.low[axis]);
        box.high[axis] = std::max(box.high[axis], other.high[axis]);
    }
    return box;
}

// The box of each label of a sample, uint8 [D, H, W].
std::vector<segloss_box> boxes_of_labels(const Tensor& sample) {
    std::vector<std::vector<segloss_box>> of_planes(sample.size(0));
    in_parallel(sample.size(0), [&](int64_t plane) {
        auto& boxes = of_planes[plane];
        boxes.assign(kLabels, kNothing);
        const auto* const labels = sample.const_data_ptr<uint8_t>() + plane * sample.stride(0);
        kernels().surface_boxes(labels, sample.size(1), sample.size(2), boxes.data());
        for (auto& box : boxes) {
            box.low[0] = is_empty(box) ? INT64_MAX : plane;
            box.high[0] = is_empty(box) ? 0 : plane + 1;
        }
    });
    std::vector<segloss_box> boxes(kLabels, kNothing);
    for (const auto& of_plane : of_planes) {
        std::transform(boxes.begin(), boxes.end(), of_plane.begin(), boxes.begin(), united);
    }
    return boxes;
}

// One voxel wider where the image goes on: the neighbours there may be ignored.
segloss_box widened(segloss_box box, at::IntArrayRef sizes) {
    if (is_empty(box)) {
        return {};
    }
    for (int axis = 0; axis < 3; ++axis) {
        box.low[axis] = std::max<int64_t>(box.low[axis] - 1, 0);
        box.high[axis] = std::min(box.high[axis] + 1, sizes[axis]);
    }
    return box;
}

// ---- surfaces -------------------------------------------------------------------------------------------------------

struct SurfaceOptions {
    std::array<double, 3> spacing;
    bool is_flat; // two spatial axes
    bool surfels;
    int64_t ignored_label; // of the second map; -1: none
    std::vector<segloss_near_row> rows;
};

double square(double x) { return x * x; }

// The nearest rows of a grid of these sizes, from near to far. Along one axis there are as many within kReach: all rows
// beyond are farther.
std::vector<segloss_near_row> near_rows(const std::array<double, 3>& spacing, bool is_flat, at::IntArrayRef sizes) {
    constexpr int kRows = 193;
    constexpr int64_t kReach = kRows / 2;
    const auto planes = is_flat ? 0 : static_cast<int>(std::min(kReach, sizes[0])); // of surfels there is one more
    const auto lines = static_cast<int>(std::min(kReach, sizes[1]));
    std::vector<segloss_near_row> rows;
    for (int z = -planes; z <= planes; ++z) {
        for (int y = -lines; y <= lines; ++y) {
            rows.push_back({z, y, 0, square(z * spacing[0]) + square(y * spacing[1])});
        }
    }
    const auto is_nearer = [](const segloss_near_row& a, const segloss_near_row& b) { return a.squared < b.squared; };
    const auto count = std::min<int64_t>(kRows, static_cast<int64_t>(rows.size()));
    std::partial_sort(rows.begin(), rows.begin() + count, rows.end(), is_nearer);
    rows.resize(count);
    return rows;
}

// The elements of the surface of a class.
class Surface {
public:
    // Of a class of `sample`, uint8 [D, H, W], in a box; `target` says which voxels are ignored.
    void find(const Tensor& sample, const Tensor& target, int64_t label, const segloss_box& box, bool any_ignored,
              const SurfaceOptions& options) {
        auto args = described(sample, target, label, box, options);
        const auto num_words = args.sizes[0] * args.sizes[1] * args.words;
        std::vector<uint64_t> mask(num_words), ignored(any_ignored ? num_words : 0);
        boundary_.assign(1 + args.element_sizes[0] * args.element_sizes[1] * args.words, 0);
        args.mask = mask.data();
        args.ignored = any_ignored ? ignored.data() : nullptr;
        args.boundary = boundary_.data() + 1;
        for (int64_t plane = 0; plane < args.sizes[0]; ++plane) {
            kernels().surface_mask(&args, plane);
        }
        int64_t count = 0;
        std::vector<int64_t> first;
        for (int64_t plane = 0; plane < args.element_sizes[0]; ++plane) {
            first.push_back(count);
            count += kernels().surface_boundary(&args, plane);
        }
        places_.resize(count);
        codes_.resize(options.surfels ? count : 0);
        for (int64_t plane = 0; plane < args.element_sizes[0]; ++plane) {
            auto* const code = options.surfels ? codes_.data() + first[plane] : nullptr;
            kernels().surface_elements(&args, plane, reinterpret_cast<Place*>(places_.data() + first[plane]), code);
        }
        if (count > 0) {
            make_set(args, options);
        }
    }

    int64_t count() const { return static_cast<int64_t>(places_.size()); }

    Tensor codes() const {
        const auto codes = at::empty(static_cast<int64_t>(codes_.size()), at::kByte);
        std::copy(codes_.begin(), codes_.end(), codes.data_ptr<uint8_t>());
        return codes;
    }

    // Writes the distances of the elements [begin, end) to another surface.
    void search(const Surface& other, int64_t begin, int64_t end, double* distances) const {
        kernels().places_search(&other.set_, places(), begin, end, distances);
    }

private:
    using Place = int32_t[3];

    const Place* places() const { return reinterpret_cast<const Place*>(places_.data()); }

    static segloss_surface described(const Tensor& sample, const Tensor& target, int64_t label, const segloss_box& box,
                                     const SurfaceOptions& options) {
        segloss_surface args{};
        args.stride_plane = sample.stride(0);
        args.stride_row = sample.stride(1);
        const auto first = box.low[0] * args.stride_plane + box.low[1] * args.stride_row + box.low[2];
        args.classes = sample.const_data_ptr<uint8_t>() + first;
        args.label = static_cast<uint8_t>(label);
        args.target = target.const_data_ptr<uint8_t>() + first;
        args.ignored_label = static_cast<uint8_t>(options.ignored_label);
        args.is_flat = options.is_flat;
        args.surfels = options.surfels;
        for (int axis = 0; axis < 3; ++axis) {
            const bool one_more = options.surfels && (axis > 0 || !options.is_flat);
            args.sizes[axis] = box.high[axis] - box.low[axis];
            args.element_sizes[axis] = args.sizes[axis] + (one_more ? 1 : 0);
        }
        args.words = args.sizes[2] / 64 + 2;
        return args;
    }

    void make_set(const segloss_surface& args, const SurfaceOptions& options) {
        set_ = {};
        std::copy(options.spacing.begin(), options.spacing.end(), set_.spacing);
        std::copy(args.element_sizes, args.element_sizes + 3, set_.sizes);
        set_.words = args.words;
        set_.bits = args.boundary;
        for (int steps = 0; steps <= SEGLOSS_NEAR_COLUMNS; ++steps) {
            set_.column_squares[steps] = square(steps * set_.spacing[2]);
        }
        rows_ = options.rows;
        for (auto& row : rows_) {
            row.offset = (row.plane * set_.sizes[1] + row.row) * set_.words;
        }
        set_.num_rows = static_cast<int>(rows_.size());
        set_.rows = rows_.data();
        int64_t num_bricks = 0;
        std::array<int64_t, 3> sizes{set_.sizes[0], set_.sizes[1], set_.sizes[2]};
        do {
            std::transform(sizes.begin(), sizes.end(), sizes.begin(), [](int64_t n) { return (n + 3) / 4; });
            std::copy(sizes.begin(), sizes.end(), set_.brick_sizes[set_.levels++]);
            num_bricks += c10::multiply_integers(sizes);
        } while (*std::max_element(sizes.begin(), sizes.end()) > 1);
        bricks_.assign(num_bricks, 0);
        auto* bricks = bricks_.data();
        for (int level = 0; level < set_.levels; ++level) {
            set_.bricks[level] = bricks;
            bricks += c10::multiply_integers(set_.brick_sizes[level], set_.brick_sizes[level] + 3);
        }
        kernels().places_add(&set_, places(), count());
    }

    std::vector<std::array<int32_t, 3>> places_;
    std::vector<uint8_t> codes_;
    std::vector<uint64_t> boundary_, bricks_;
    std::vector<segloss_near_row> rows_;
    segloss_places set_{}; // points to the three before
};

// A direction between two surfaces, and the distances that are written for it.
struct Direction {
    const Surface* from;
    const Surface* to;
    Tensor distances;
};

// If either surface has no elements: inf for each element of the other one.
void measure(std::vector<Direction>& directions) {
    constexpr int64_t kPlaces = 4096; // of a task
    std::vector<std::tuple<const Direction*, int64_t, int64_t, double*>> tasks;
    for (auto& direction : directions) {
        const auto count = direction.from->count();
        if (count == 0 || direction.to->count() == 0) {
            direction.distances = at::full(count + direction.to->count(), INFINITY, at::kDouble);
            continue;
        }
        direction.distances = at::empty(count, at::kDouble);
        for (int64_t begin = 0; begin < count; begin += kPlaces) {
            const auto end = std::min(begin + kPlaces, count);
            tasks.emplace_back(&direction, begin, end, direction.distances.data_ptr<double>());
        }
    }
    in_parallel(static_cast<int64_t>(tasks.size()), [&](int64_t k) {
        const auto& [direction, begin, end, distances] = tasks[k];
        direction->from->search(*direction->to, begin, end, distances);
    });
}

// ---- the operators --------------------------------------------------------------------------------------------------

void check_maps(const Tensor& first, const Tensor& second, bool is_flat) {
    for (const auto& map : {first, second}) {
        check_dense(kSurface, map, "map");
        TORCH_CHECK_TYPE(map.scalar_type() == at::kByte, kSurface, ": expected uint8 maps, got ", map.scalar_type());
        TORCH_CHECK(map.is_contiguous() && map.dim() == 4 && map.sizes() == first.sizes(), kSurface,
                    ": expected contiguous maps [N, D, H, W] of one shape, got ", first.sizes(), " and ",
                    second.sizes());
        for (const auto size : map.sizes()) {
            TORCH_CHECK(size < INT32_MAX, kSurface, ": expected sizes below 2^31 - 1, got ", map.sizes());
        }
    }
    TORCH_CHECK(!is_flat || first.size(1) == 1, kSurface, ": expected one plane of two axes, got ", first.sizes());
}

using Tensors = std::vector<Tensor>;

// Of each sample and class, the distances from the first map's surface to the second's, and with `both` those back; of
// surfels the code of each element, too; and which labels occur in each map, bool [2, 256]. The maps are uint8
// [N, D, H, W], the classes [first_class, end_class). Voxels with ignored_label in the second map are in no class.
std::tuple<Tensors, Tensors, Tensor> surface_distances_cpu(const Tensor& first, const Tensor& second,
                                                           int64_t first_class, int64_t end_class,
                                                           int64_t ignored_label, at::ArrayRef<double> spacing,
                                                           bool surfels, bool both) {
    TORCH_CHECK_VALUE(spacing.size() == 2 || spacing.size() == 3, kSurface, ": expected spacing of 2 or 3 axes, got ",
                      spacing.size());
    for (const auto step : spacing) {
        TORCH_CHECK_VALUE(step > 0 && std::isfinite(step), kSurface,
                          ": expected spacing of finite numbers above 0, got ", spacing);
    }
    TORCH_CHECK_VALUE(first_class >= 0 && end_class <= kLabels && ignored_label < kLabels, kSurface,
                      ": expected labels in [0, ", kLabels, "), got classes from ", first_class, " to ", end_class,
                      " and ignored_label ", ignored_label);
    SurfaceOptions options{{1, 1, 1}, spacing.size() == 2, surfels, ignored_label, {}};
    std::copy(spacing.rbegin(), spacing.rend(), options.spacing.rbegin());
    check_maps(first, second, options.is_flat);
    options.rows = near_rows(options.spacing, options.is_flat, first.sizes().slice(1));
    Tensors distances, codes;
    const auto occurs = at::zeros({2, kLabels}, at::kBool);
    for (int64_t n = 0; n < first.size(0); ++n) {
        const std::array<Tensor, 2> samples{first[n], second[n]};
        const std::array<std::vector<segloss_box>, 2> boxes{boxes_of_labels(samples[0]), boxes_of_labels(samples[1])};
        for (int map = 0; map < 2; ++map) {
            for (int64_t label = 0; label < kLabels; ++label) {
                occurs.accessor<bool, 2>()[map][label] |= !is_empty(boxes[map][label]);
            }
        }
        const bool any_ignored = ignored_label >= 0 && !is_empty(boxes[1][ignored_label]);
        // Several classes at once: threads wait for each other seldom, and memory stays small.
        const auto group = std::max<int64_t>(4, num_threads());
        for (int64_t begin = first_class; begin < end_class; begin += group) {
            const auto count = std::min(group, end_class - begin);
            std::vector<Surface> surfaces(2 * count);
            in_parallel(2 * count, [&](int64_t k) {
                const auto label = begin + k / 2;
                const auto box = widened(united(boxes[0][label], boxes[1][label]), samples[0].sizes());
                surfaces[k].find(samples[k % 2], samples[1], label, box, any_ignored, options);
            });
            std::vector<Direction> directions;
            for (int64_t k = 0; k < 2 * count; k += both ? 1 : 2) {
                directions.push_back({&surfaces[k], &surfaces[k ^ 1], {}});
            }
            measure(directions);
            for (const auto& direction : directions) {
                distances.push_back(direction.distances);
                codes.push_back((direction.from->count() > 0 ? direction.from : direction.to)->codes());
            }
        }
    }
    return {distances, codes, occurs};
}

} // namespace

TORCH_LIBRARY_FRAGMENT(segloss, m) {
    m.def("surface_distances(Tensor first, Tensor second, int first_class, int end_class, int ignored_label, "
          "float[] spacing, bool surfels, bool both) -> (Tensor[], Tensor[], Tensor)");
}

TORCH_LIBRARY_IMPL(segloss, CPU, m) { m.impl("surface_distances", TORCH_FN(surface_distances_cpu)); }

} // namespace segloss
