// Code of the library as a whole. The operators register themselves when it is loaded.

#include <torch/library.h>

#include <string>

#include "layout.h"
#include "memory.h"

#ifdef __GLIBC__
// libstdc++'s headers read this variable, which glibc has since 2.32. With this definition the library also loads with
// older ones, where 0 means that there may be several threads. In newer ones, glibc's own definition comes first.
extern "C" {
char __libc_single_threaded = 0; // NOLINT(bugprone-reserved-identifier): glibc's name
}
#endif

namespace segloss {
namespace {

std::string get_isa() { return kernels().isa; }

} // namespace

TORCH_LIBRARY_FRAGMENT(segloss, m) {
    m.def("get_isa() -> str", TORCH_FN(get_isa));
    m.def("cache_size() -> int", TORCH_FN(cache_size));
}

} // namespace segloss
