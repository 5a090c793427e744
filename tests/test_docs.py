"""help() of everything public: each keyword with its default and its meaning."""

import inspect
import re
import subprocess
import sys

import pytest

import segloss

pytestmark = pytest.mark.cpu_only

PUBLIC = {name: getattr(segloss, name) for name in segloss.__all__ if callable(getattr(segloss, name))}
DESCRIBED = {name: each for name, each in PUBLIC.items() if name not in ("SoftStats", "get_isa")}


def described_arguments(doc):
    """The texts under Args, by name."""
    section = re.search(r"^Args:\n((?: .*\n|\n(?= ))*)", inspect.cleandoc(doc) + "\n", re.MULTILINE)[1]
    _, *parts = re.split(r"^    (\w+(?:, \w+)*): ", section, flags=re.MULTILINE)
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return {name: " ".join(text.split()) for names, text in pairs for name in names.split(", ")}


def parameters_of(each):
    return {name: p for name, p in inspect.signature(each).parameters.items() if name != "self"}


@pytest.mark.parametrize("each", DESCRIBED.values(), ids=DESCRIBED)
def test_help_describes_each_argument_in_the_order_of_the_signature(each):
    arguments = described_arguments(each.__doc__)
    assert set(arguments) == set(parameters_of(each))
    assert all(len(text) > 5 for text in arguments.values())
    first = [text for name, text in arguments.items()]
    in_order = [arguments[name] for name in parameters_of(each)]
    assert list(dict.fromkeys(first)) == list(dict.fromkeys(in_order))


@pytest.mark.parametrize("each", DESCRIBED.values(), ids=DESCRIBED)
def test_help_gives_the_default_that_the_signature_has(each):
    arguments = described_arguments(each.__doc__)
    for name, parameter in parameters_of(each).items():
        default, text = parameter.default, arguments[name]
        if default is inspect.Parameter.empty:
            assert "Default: " not in text
        elif default is None:
            assert "Default: " in text  # in words, where it stands for another value
        else:
            value = re.search(r"Default: (\S+)\.$", text)[1].strip("`").strip('"')
            assert value == str(default) or float(value) == default


def test_help_of_a_module_gives_the_formula_and_the_source_of_its_function():
    doc = segloss.DiceCELoss.__doc__
    assert ".. math::" in doc
    assert "nnU-Net" in doc
    assert "Called as ``loss(input, target, voxel_weight=None)``" in doc


def test_a_python_without_docstrings_imports_it():
    code = "import segloss; assert segloss.dice_loss.__doc__ is None; segloss.DiceLoss()"
    done = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
