"""What tests expect of some versions of torch only. Each entry names the version that needs it, and goes with it."""

import pytest

from segloss._compat import TORCH

# Warnings of torch about its own code, when Inductor and the packaging are imported and run.
ignores_warnings_of_compilers = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
    # When it loads an exported module. Newest torch: 2.11.
    pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning"),
]

# When opcheck looks at the gradient of an input that requires one. Oldest torch: 2.14.
ignores_warnings_of_opcheck = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

# Whether the compiler traces `locals`, which the modules call when they are made. Oldest torch: 2.12.
TRACES_LOCALS = TORCH >= (2, 12)
