// All code that depends on the version of torch. Each entry names the torch that needs it, and is removed with it.
#pragma once

#include <torch/csrc/autograd/function.h>
#include <torch/version.h>

#include <memory>
#include <utility>

#define SEGLOSS_TORCH_BEFORE(major, minor)                                                                             \
    (TORCH_VERSION_MAJOR < (major) || (TORCH_VERSION_MAJOR == (major) && TORCH_VERSION_MINOR < (minor)))

namespace segloss {

// A node of autograd's graph, in the pointer type that graphs use. Newest torch that uses a shared pointer: 2.12.
template <class Node, typename... Arguments> auto make_node(Arguments&&... arguments) {
#if SEGLOSS_TORCH_BEFORE(2, 13)
    return std::shared_ptr<Node>(new Node(std::forward<Arguments>(arguments)...), torch::autograd::deleteNode);
#else
    return c10::make_intrusive<Node>(std::forward<Arguments>(arguments)...);
#endif
}

} // namespace segloss
