#include "memory.h"

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/ExpandUtils.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>

#ifndef _WIN32
#include <unistd.h>
#endif
#ifdef __linux__
#include <c10/core/CPUAllocator.h>
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>
#endif

namespace segloss {
namespace {

int64_t parsed_size(const char* text) {
    char* end = nullptr;
    errno = 0;
    const int64_t size = std::strtoll(text, &end, 10);
    TORCH_CHECK_VALUE(*end == '\0' && errno == 0 && size >= 0,
                      "segloss: expected SEGLOSS_CACHE_SIZE to be a number of bytes, 0 or more, got '", text,
                      "'. Unset it to let segloss ask the system");
    return size;
}

// The largest cache of the first core, as Linux describes it (such as "32768K"). sysconf is only the fallback: in older
// C libraries it returns the sum of the caches of all cores on some processors.
int64_t measured_cache() {
    for (int index = 4; index > 0; --index) {
        std::ifstream file(c10::str("/sys/devices/system/cpu/cpu0/cache/index", index, "/size"));
        int64_t size = 0;
        char unit = ' ';
        if (file >> size >> unit && size > 0) {
            return size << (unit == 'K' ? 10 : unit == 'M' ? 20 : 0);
        }
    }
#ifdef _SC_LEVEL3_CACHE_SIZE
    const int64_t measured = sysconf(_SC_LEVEL3_CACHE_SIZE);
#else
    const int64_t measured = 0;
#endif
    return measured > 0 ? measured : int64_t{32} << 20;
}

} // namespace

#ifdef __linux__
namespace {

constexpr size_t kHugePage = size_t{1} << 21;

struct Block {
    void* data;
    size_t size;
};

// Maps whole huge pages: if the system grants them, the first write takes one page fault for 2 MiB.
Block map_block(size_t size) {
    auto* mapped =
        static_cast<char*>(mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    TORCH_CHECK_WITH(OutOfMemoryError, mapped != MAP_FAILED, "segloss: no memory for a gradient of ", size,
                     " bytes. Use a smaller batch or patch");
    const size_t head = -reinterpret_cast<uintptr_t>(mapped) % kHugePage;
    if (head > 0) {
        munmap(mapped, head);
    }
    munmap(mapped + head + size, kHugePage - head);
    madvise(mapped + head, size, MADV_HUGEPAGE); // only advice: a refusal does no harm
    return {mapped + head, size};
}

// Keeps freed blocks for the next request of the same size (in huge pages). Used and kept blocks together are no larger
// than the recent peak of use, and the system may take the pages of kept blocks when it needs them (MADV_FREE).
class Recycler final : public c10::Allocator {
public:
    c10::DataPtr allocate(size_t num_bytes) override {
        auto* block = new Block(take((num_bytes + kHugePage - 1) / kHugePage * kHugePage));
        c10::profiledCPUMemoryReporter().New(block->data, block->size);
        return {block->data, block, [](void* context) { instance().give_back(static_cast<Block*>(context)); },
                at::kCPU};
    }

    c10::DeleterFnPtr raw_deleter() const override { return nullptr; } // a pointer's context is not its data

    void copy_data(void* to, const void* from, size_t count) const override { default_copy_data(to, from, count); }

    static Recycler& instance() {
        static auto* recycler = new Recycler; // never destroyed: tensors may outlive the end of main
        return *recycler;
    }

    // Called around a fork: otherwise the child could inherit the lock as held by a thread that it does not have.
    static void lock() { instance().mutex_.lock(); }
    static void unlock() { instance().mutex_.unlock(); }

private:
    Block take(size_t size) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto fits = std::find_if(kept_.begin(), kept_.end(), [&](const Block& b) { return b.size == size; });
        Block block;
        if (fits == kept_.end()) {
            unmap_surplus(size);
            block = map_block(size);
        } else {
            block = *fits;
            kept_.erase(fits);
            kept_size_ -= size;
        }
        note_use(size);
        return block;
    }

    // A peak is forgotten after one to two times kRequests, so that one large volume does not keep its memory for good.
    void note_use(size_t size) {
        constexpr int kRequests = 64;
        in_use_ += size;
        if (++num_requests_ % kRequests == 0) {
            former_peak_ = std::exchange(peak_, in_use_);
        }
        peak_ = std::max(peak_, in_use_);
    }

    void give_back(Block* given) {
        const std::lock_guard<std::mutex> lock(mutex_);
        c10::profiledCPUMemoryReporter().Delete(given->data);
        madvise(given->data, given->size, MADV_FREE);
        kept_.push_back(*given);
        kept_size_ += given->size;
        in_use_ -= given->size;
        delete given;
        unmap_surplus(0);
    }

    // Unmaps the oldest kept blocks until `wanted` more bytes fit the budget, which grows if use alone exceeds it.
    void unmap_surplus(size_t wanted) {
        const auto budget = std::max({peak_, former_peak_, in_use_ + wanted});
        while (in_use_ + wanted + kept_size_ > budget) {
            const auto oldest = kept_.front();
            kept_.erase(kept_.begin());
            kept_size_ -= oldest.size;
            munmap(oldest.data, oldest.size);
        }
    }

    std::mutex mutex_;
    std::vector<Block> kept_; // oldest first
    size_t kept_size_ = 0;
    size_t in_use_ = 0;
    size_t peak_ = 0;        // of in_use_, in the current period of requests
    size_t former_peak_ = 0; // in the period before
    int64_t num_requests_ = 0;
};

[[maybe_unused]] const int locking_for_forks = pthread_atfork(Recycler::lock, Recycler::unlock, Recycler::unlock);

at::Tensor empty_output(at::IntArrayRef sizes, at::IntArrayRef strides, caffe2::TypeMeta dtype) {
    const auto num_bytes = c10::multiply_integers(sizes) * static_cast<int64_t>(dtype.itemsize());
    if (num_bytes < static_cast<int64_t>(kHugePage)) {
        return at::detail::empty_strided_cpu(sizes, strides, c10::typeMetaToScalarType(dtype));
    }
    c10::Storage storage(c10::Storage::use_byte_size_t(), num_bytes, &Recycler::instance(), /*resizable=*/true);
    auto output =
        at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), dtype);
    output.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides);
    return output;
}

} // namespace

at::Tensor empty_output_like(const at::Tensor& tensor) {
    return empty_output(tensor.sizes(),
                        tensor.is_non_overlapping_and_dense()
                            ? tensor.strides()
                            : at::infer_dense_strides(tensor.sizes(), tensor.strides()),
                        tensor.dtype());
}

at::Tensor empty_output(at::IntArrayRef sizes, at::ScalarType dtype) {
    return empty_output(sizes, c10::contiguous_strides(sizes), c10::scalarTypeToTypeMeta(dtype));
}

#else

at::Tensor empty_output_like(const at::Tensor& tensor) { return at::empty_like(tensor); }
at::Tensor empty_output(at::IntArrayRef sizes, at::ScalarType dtype) { return at::empty(sizes, dtype); }

#endif

int64_t cache_size() {
    static const int64_t size = [] {
        const char* text = std::getenv("SEGLOSS_CACHE_SIZE");
        return text && *text ? parsed_size(text) : measured_cache();
    }();
    return size;
}

bool exceeds_caches(const at::Tensor& tensor) {
    return tensor.defined() &&
           tensor.numel() * tensor.element_size() > cache_size() / 4; // logits, labels and other cores need a share
}

} // namespace segloss
