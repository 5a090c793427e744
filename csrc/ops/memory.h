// Memory of large outputs.
#pragma once

#include <ATen/core/Tensor.h>

namespace segloss {

// An uninitialised tensor like `tensor`, with the same strides if it is dense. The memory of a large tensor is reused
// for the next one, as each training step needs it again: getting it from the system, zeroed page by page, can take
// longer than filling it.
at::Tensor empty_output_like(const at::Tensor& tensor);

// Likewise, contiguous, of these sizes.
at::Tensor empty_output(at::IntArrayRef sizes, at::ScalarType dtype);

// Bytes of the largest cache that a core uses, alone or shared, or the environment variable SEGLOSS_CACHE_SIZE.
int64_t cache_size();

// Whether a tensor is too large to stay in a cache until it is read again. False for an undefined one.
bool exceeds_caches(const at::Tensor& tensor);

} // namespace segloss
