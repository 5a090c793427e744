// The Python module. The operators register themselves when it is loaded; torch.ops.segloss has them.

#include <pybind11/pybind11.h>

#include "layout.h"

PYBIND11_MODULE(_C, m) {
    m.doc() = "Compiled kernels of segloss; the operators are in torch.ops.segloss.";
    segloss::kernels(); // an unusable SEGLOSS_ISA fails the import
    m.def("get_isa", [] { return segloss::kernels().isa; });
}
