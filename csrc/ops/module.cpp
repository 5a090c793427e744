// The Python module. The operators register themselves when it is loaded; torch.ops.segloss has them.

#include <pybind11/pybind11.h>

#include "layout.h"

PYBIND11_MODULE(_C, m) {
    m.doc() = "Compiled kernels of segloss; the operators are in torch.ops.segloss.";
    m.def(
        "get_isa",
        [] {
            try {
                return segloss::kernels().isa;
            } catch (const c10::ValueError& error) {
                throw pybind11::value_error(error.what_without_backtrace());
            }
        },
        "The instruction set whose kernels are in use: 'baseline', 'avx2' or 'avx512'.");
}
