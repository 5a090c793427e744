// Memory of large outputs.
#pragma once

#include <ATen/core/Tensor.h>

namespace segloss {

// An uninitialised tensor like `tensor`, strides included where it is dense. Memory of a large one is taken again when
// the next one needs it, as each training step does: to get it from the system, zeroed page by page, can take longer
// than to fill it.
at::Tensor empty_output_like(const at::Tensor& tensor);

// Bytes of the largest cache that a core has a share in, or the environment variable SEGLOSS_CACHE_SIZE.
int64_t cache_size();

// True for a tensor that no cache holds until it is read again; an undefined one is none.
bool exceeds_caches(const at::Tensor& tensor);

} // namespace segloss
