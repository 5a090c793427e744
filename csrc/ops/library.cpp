// What concerns the library as a whole. Its operators register themselves when it is loaded.

#include <torch/library.h>

#include <string>

#include "layout.h"
#include "memory.h"

#ifdef __GLIBC__
// libstdc++'s headers read this variable of glibc 2.32. With a definition here the library loads with older ones, too,
// whose answer is then that there may be several threads; where glibc has it, its own comes first.
extern "C" {
char __libc_single_threaded = 0; // NOLINT(bugprone-reserved-identifier): its name
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
