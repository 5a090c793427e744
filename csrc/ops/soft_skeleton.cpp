// The soft skeleton of the images [N, C, *], and its gradient; see kernels.h.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include <memory>

#include "autograd.h"
#include "checks.h"
#include "composite.h"
#include "dispatch.h"
#include "layout.h"

namespace segloss {
namespace {

using at::Tensor;

const char* const kSoftSkeleton = "soft_skeleton";
constexpr int64_t kMostIterations = 1000;

void check_skeleton(const Tensor& images, int64_t iterations) {
    check_dense(kSoftSkeleton, images, "images");
    const auto dtype = images.scalar_type();
    TORCH_CHECK_TYPE(is_real(dtype) || dtype == at::kBool, kSoftSkeleton,
                     ": expected images of float64, float32, float16, bfloat16 or bool, got ", dtype);
    TORCH_CHECK_VALUE(images.dim() >= 3 && images.dim() <= 2 + SEGLOSS_AXES, kSoftSkeleton,
                      ": expected images [N, C, *] with one to three spatial axes, got ", images.sym_sizes());
    TORCH_CHECK_VALUE(iterations >= 0 && iterations <= kMostIterations, kSoftSkeleton, ": expected iterations in [0, ",
                      kMostIterations, "], got ", iterations);
}

void check_skeleton_grad(const Tensor& grad, const Tensor& images, int64_t iterations) {
    check_skeleton(images, iterations);
    check_dense(kSoftSkeleton, grad, "grad");
    TORCH_CHECK_TYPE(is_real(images.scalar_type()), kSoftSkeleton, ": expected floating images for a gradient, got ",
                     images.scalar_type());
    TORCH_CHECK(grad.sym_sizes() == images.sym_sizes() && is_real(grad.scalar_type()), kSoftSkeleton,
                ": expected a floating gradient of the skeleton, of shape ", images.sym_sizes(), ", got ",
                grad.scalar_type(), " ", grad.sym_sizes());
}

// ---- CPU ------------------------------------------------------------------------------------------------------------

segloss_soft_skeleton skeleton_for_kernel(const Tensor& images, int64_t iterations) {
    segloss_soft_skeleton args{{1, 1, 1}, iterations};
    const auto num_axes = images.dim() - 2;
    for (int64_t axis = 0; axis < num_axes; ++axis) { // of two axes, the first one has the planes
        const bool is_last = axis == num_axes - 1;
        args.sizes[is_last ? SEGLOSS_COLUMNS : axis] = images.size(2 + axis);
    }
    return args;
}

// Calls kernel(image, begin, end, workspace) for planes [begin, end) of each image. Planes are computed alike in any
// range; ranges overlap in what they read, so images are split only for threads that would have nothing to do.
template <typename Kernel>
void by_planes(const segloss_soft_skeleton& args, int64_t num_images, bool of_gradient, size_t element_size,
               const Kernel& kernel) {
    const auto num_planes = args.sizes[SEGLOSS_PLANES], threads = num_threads();
    const auto fewest = 4 * (args.iterations + 2);
    const bool are_enough = num_images % threads == 0 || num_images >= 4 * threads;
    const auto wanted = are_enough ? 1 : (4 * threads + num_images - 1) / num_images;
    const auto ranges = std::max<int64_t>(1, std::min(wanted, num_planes / fewest));
    const auto size = kernels().soft_skeleton_workspace(&args, of_gradient) * element_size;
    in_parallel(num_images * ranges, [&](int64_t k) {
        const auto workspace = std::make_unique_for_overwrite<std::byte[]>(size);
        const auto range = k % ranges;
        kernel(k / ranges, num_planes * range / ranges, num_planes * (range + 1) / ranges, workspace.get());
    });
}

int64_t bytes_of_image(const Tensor& images) {
    return images.numel() / (images.size(0) * images.size(1)) * images.element_size();
}

const std::byte* image_of(const Tensor& images, int64_t image) {
    return static_cast<const std::byte*>(images.const_data_ptr()) + image * bytes_of_image(images);
}

std::byte* written_image_of(const Tensor& images, int64_t image) {
    return static_cast<std::byte*>(images.mutable_data_ptr()) + image * bytes_of_image(images);
}

Tensor for_skeleton_kernel(const Tensor& images) {
    const auto dtype = images.scalar_type();
    return images.to(dtype == at::kBool ? dtype : compute_dtype(dtype)).contiguous();
}

Tensor soft_skeleton_cpu(const Tensor& images, int64_t iterations) {
    check_skeleton(images, iterations);
    const auto read = for_skeleton_kernel(images);
    const auto skeletons = at::empty_like(read, at::MemoryFormat::Contiguous);
    if (read.numel() == 0) {
        return skeletons.to(images.scalar_type());
    }
    const auto args = skeleton_for_kernel(read, iterations);
    const auto of_real = read.scalar_type() == at::kBool ? kernels().soft_skeleton_of_mask
                                                         : kernels().soft_skeleton[real_of(read.scalar_type())];
    by_planes(args, read.size(0) * read.size(1), false, read.element_size(),
              [&](int64_t image, int64_t begin, int64_t end, void* workspace) {
                  of_real(&args, image_of(read, image), written_image_of(skeletons, image), begin, end, workspace);
              });
    return skeletons.to(images.scalar_type());
}

Tensor soft_skeleton_backward_cpu(const Tensor& grad, const Tensor& images, int64_t iterations) {
    check_skeleton_grad(grad, images, iterations);
    const auto read = for_skeleton_kernel(images), of_skeleton = grad.to(read.scalar_type()).contiguous();
    const auto gradient = at::empty_like(read, at::MemoryFormat::Contiguous);
    if (read.numel() == 0) {
        return gradient.to(images.scalar_type());
    }
    const auto args = skeleton_for_kernel(read, iterations);
    const auto kernel = kernels().soft_skeleton_backward[real_of(read.scalar_type())];
    by_planes(args, read.size(0) * read.size(1), true, read.element_size(),
              [&](int64_t image, int64_t begin, int64_t end, void* workspace) {
                  kernel(&args, image_of(read, image), image_of(of_skeleton, image), written_image_of(gradient, image),
                         begin, end, workspace);
              });
    return gradient.to(images.scalar_type());
}

// ---- other devices, and higher derivatives --------------------------------------------------------------------------

// The images moved by one along an axis; at the border they stay.
Tensor before(const Tensor& x, int64_t d) { return at::cat({x.slice(d, 0, 1), x.slice(d, 0, -1)}, d); }

Tensor after(const Tensor& x, int64_t d) { return at::cat({x.slice(d, 1), x.slice(d, -1)}, d); }

Tensor eroded(const Tensor& x) {
    auto least = x;
    const auto take_less = [&](const Tensor& other) { least = at::where(other < least, other, least); };
    for (int64_t d = 2; d < x.dim(); ++d) { // in the order of memory, after the element itself
        take_less(before(x, d));
    }
    for (int64_t d = x.dim() - 1; d >= 2; --d) {
        take_less(after(x, d));
    }
    return least;
}

Tensor dilated(const Tensor& x) {
    auto most = x;
    for (int64_t d = x.dim() - 1; d >= 2; --d) {
        const auto along = most;
        for (const auto& other : {before(along, d), after(along, d)}) {
            most = at::where(other > most, other, most);
        }
    }
    return most;
}

Tensor if_positive(const Tensor& x) { return at::where(x <= 0, at::zeros({}, x.options()), x); }

Tensor soft_skeleton_composite(const Tensor& images, int64_t iterations) {
    const auto dtype = images.scalar_type();
    auto x = images.to(compute_dtype(dtype));
    Tensor skeleton;
    for (int64_t k = 0; k <= iterations; ++k) {
        const auto smaller = eroded(x);
        const auto lost = if_positive(x - dilated(smaller));
        skeleton = k == 0 ? lost : skeleton + if_positive(lost - skeleton * lost);
        x = smaller;
    }
    return skeleton.to(dtype).contiguous();
}

Tensor soft_skeleton_other(const Tensor& images, int64_t iterations) {
    check_skeleton(images, iterations);
    return soft_skeleton_composite(images, iterations);
}

Tensor soft_skeleton_backward_other(const Tensor& grad, const Tensor& images, int64_t iterations) {
    check_skeleton_grad(grad, images, iterations);
    const auto composite = [&](const Tensor& x) { return variable_list{soft_skeleton_composite(x, iterations)}; };
    return slab_gradient(composite, images, {grad}).contiguous();
}

Tensor soft_skeleton_meta(const Tensor& images, int64_t iterations) {
    check_skeleton(images, iterations);
    return at::empty_symint(images.sym_sizes(), images.options());
}

Tensor soft_skeleton_backward_meta(const Tensor& grad, const Tensor& images, int64_t iterations) {
    check_skeleton_grad(grad, images, iterations);
    return at::empty_symint(images.sym_sizes(), images.options());
}

// ---- autograd -------------------------------------------------------------------------------------------------------

Tensor call_skeleton(const Tensor& images, int64_t iterations) {
    return call_operator<&soft_skeleton_cpu>("soft_skeleton", images, iterations);
}

Tensor call_skeleton_backward(const Tensor& grad, const Tensor& images, int64_t iterations) {
    return call_operator<&soft_skeleton_backward_cpu>("soft_skeleton_backward", grad, images, iterations);
}

Tensor soft_skeleton_autograd(const Tensor& images, int64_t iterations) {
    if (torch::autograd::isFwGradDefined(images)) {
        check_skeleton(images, iterations);
        return soft_skeleton_composite(images, iterations);
    }
    auto skeleton = [&] {
        const at::AutoDispatchBelowADInplaceOrView below_autograd;
        return call_skeleton(images, iterations);
    }();
    if (torch::autograd::compute_requires_grad(images)) {
        record("SoftSkeletonBackward", {skeleton}, {images}, {images},
               [iterations](const variable_list& grads, const variable_list& saved) {
                   return variable_list{grads[0].defined() ? call_skeleton_backward(grads[0], saved[0], iterations)
                                                           : Tensor()};
               });
    }
    return skeleton;
}

Tensor soft_skeleton_backward_autograd(const Tensor& grad, const Tensor& images, int64_t iterations) {
    const Composite composite = [iterations](const variable_list& arguments) {
        return variable_list{soft_skeleton_composite(arguments[0], iterations)};
    };
    return gradient_by_input(composite, {images, Tensor(), Tensor()}, {grad},
                             [&] { return call_skeleton_backward(grad, images, iterations); });
}

} // namespace

TORCH_LIBRARY_FRAGMENT(segloss, m) {
    m.def("soft_skeleton(Tensor images, int iterations) -> Tensor", {at::Tag::pt2_compliant_tag});
    m.def("soft_skeleton_backward(Tensor grad, Tensor images, int iterations) -> Tensor", {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(segloss, CPU, m) {
    m.impl("soft_skeleton", TORCH_FN(soft_skeleton_cpu));
    m.impl("soft_skeleton_backward", TORCH_FN(soft_skeleton_backward_cpu));
}

TORCH_LIBRARY_IMPL(segloss, Meta, m) {
    m.impl("soft_skeleton", TORCH_FN(soft_skeleton_meta));
    m.impl("soft_skeleton_backward", TORCH_FN(soft_skeleton_backward_meta));
}

TORCH_LIBRARY_IMPL(segloss, Autograd, m) {
    m.impl("soft_skeleton", TORCH_FN(soft_skeleton_autograd));
    m.impl("soft_skeleton_backward", TORCH_FN(soft_skeleton_backward_autograd));
}

TORCH_LIBRARY_IMPL(segloss, CompositeExplicitAutograd, m) {
    m.impl("soft_skeleton", TORCH_FN(soft_skeleton_other));
    m.impl("soft_skeleton_backward", TORCH_FN(soft_skeleton_backward_other));
}

} // namespace segloss
