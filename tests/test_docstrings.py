"""What help() and an editor show of each public name: arguments and defaults, the usual sections, related names."""

import ast
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import segloss

pytestmark = pytest.mark.cpu_only

PUBLIC = {name: getattr(segloss, name) for name in segloss.__all__ if callable(getattr(segloss, name))}
FUNCTIONS = {name: each for name, each in PUBLIC.items() if inspect.isfunction(each)}
MODULES = {name: each for name, each in PUBLIC.items() if isinstance(each, type) and issubclass(each, torch.nn.Module)}
FUNCTION_OF = {name: each._function.__name__ for name, each in MODULES.items() if hasattr(each, "_function")}
INSTANCES = {name: each() for name, each in MODULES.items() if name != "DeepSupervisionLoss"}
INSTANCES["DeepSupervisionLoss"] = segloss.DeepSupervisionLoss(segloss.DiceLoss())

HEADING = re.compile(r"^(Args|Call|Returns|Raises|Equivalent to|Example|See also):\n", re.MULTILINE)
ENTRY = re.compile(r"^    (?:\* )?([`\w.]+(?:, [`\w.]+)*): ", re.MULTILINE)


def sources():
    """The docstrings as an editor reads them."""
    paths = {inspect.getsourcefile(inspect.unwrap(each)) for each in PUBLIC.values()}
    trees = [ast.parse(Path(path).read_text()) for path in paths]
    nodes = [node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return {node.name: ast.get_docstring(node) for node in nodes if node.name in PUBLIC}


SOURCES = sources()


def sections(doc):
    """The sections by heading; the text before them has the heading ""."""
    text, *rest = HEADING.split(inspect.cleandoc(doc) + "\n")
    return {"": text} | dict(zip(rest[::2], rest[1::2], strict=True))


def entries(doc, heading):
    """The texts of a section by name; the text of an entry with several names is listed for each."""
    _, *parts = ENTRY.split(sections(doc).get(heading, ""))
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return {name: " ".join(text.split()) for names, text in pairs for name in names.replace("`", "").split(", ")}


def parameters(each):
    return {name: p for name, p in inspect.signature(each).parameters.items() if name != "self"}


def paragraphs(text):
    return [paragraph.strip("\n") for paragraph in text.split("\n\n")]


def annotated(module):
    classes = [each for each in module.__mro__ if each.__module__ == "segloss.losses"]
    return {name for each in classes for name in inspect.get_annotations(each)}


def of_each(named):
    return pytest.mark.parametrize("name", named)


@of_each(PUBLIC)
def test_help_describes_each_argument_in_the_order_of_the_signature(name):
    arguments = entries(PUBLIC[name].__doc__, "Args")
    expected = [arguments[each] for each in parameters(PUBLIC[name])]
    assert list(dict.fromkeys(arguments.values())) == list(dict.fromkeys(expected))
    assert set(arguments) == set(parameters(PUBLIC[name]))


@of_each(PUBLIC)
def test_help_gives_the_default_that_the_signature_has(name):
    arguments = entries(PUBLIC[name].__doc__, "Args")
    for argument, parameter in parameters(PUBLIC[name]).items():
        stated, default = re.findall(r"Default:\s+([^\s,]+)[.,]", arguments[argument]), parameter.default
        if default is inspect.Parameter.empty:
            assert not stated
        else:
            (value,) = (each.strip("`").strip('"') for each in stated)
            assert value == str(default) or float(value) == default


@of_each(MODULES)
def test_help_of_a_module_describes_the_arguments_of_its_call(name):
    assert set(entries(PUBLIC[name].__doc__, "Call")) == set(parameters(PUBLIC[name].forward))


@of_each(PUBLIC)
def test_a_docstring_has_an_example_and_see_also(name):
    assert {"Example", "See also"} <= set(sections(PUBLIC[name].__doc__))


@of_each(FUNCTIONS | MODULES)
def test_a_docstring_says_what_is_returned_and_raised(name):
    assert {"Returns", "Raises"} <= set(sections(PUBLIC[name].__doc__))


@of_each([name for name in PUBLIC if name not in ("get_isa", "synchronize")])
def test_an_editor_shows_the_formula(name):
    assert "::\n\n    " in sections(SOURCES[name])[""]


@of_each(PUBLIC)
def test_an_editor_shows_each_argument_or_where_it_is_described(name):
    arguments = entries(SOURCES[name], "Args")
    described_by = arguments.pop("others", None)
    missing = set(parameters(PUBLIC[name])) - set(arguments)
    assert bool(missing) == bool(described_by)
    if missing:
        like = re.fullmatch(r"as in ``segloss\.(\w+)``\.", described_by)[1]
        assert missing <= set(entries(PUBLIC[like].__doc__, "Args"))


@of_each(FUNCTION_OF)
def test_an_editor_shows_for_a_module_what_its_function_says(name):
    own, of_function = SOURCES[name], SOURCES[FUNCTION_OF[name]]
    _summary, *text = paragraphs(sections(own)[""])
    assert set(text) <= set(paragraphs(sections(of_function)[""]))
    arguments = entries(own, "Args")
    del arguments["others"]
    assert arguments.items() <= entries(of_function, "Args").items()


@of_each(PUBLIC)
def test_the_names_in_see_also_exist(name):
    for neighbour in entries(PUBLIC[name].__doc__, "See also"):
        assert pkgutil.resolve_name(neighbour) is not PUBLIC[name]


@of_each(PUBLIC)
def test_names_of_segloss_in_the_text_exist(name):
    assert all(mention in PUBLIC for mention in re.findall(r"``segloss\.(\w+)", PUBLIC[name].__doc__))


@of_each(INSTANCES)
def test_an_instance_has_each_attribute_that_is_annotated(name):
    assert all(hasattr(INSTANCES[name], attribute) for attribute in annotated(MODULES[name]) - {"_function"})


@of_each(INSTANCES)
def test_each_option_of_a_module_is_annotated(name):
    assert set(parameters(MODULES[name])) - {"size_average", "reduce"} <= annotated(MODULES[name])


def test_segloss_imports_in_a_python_without_docstrings():
    code = "import segloss; assert segloss.dice_loss.__doc__ is None; segloss.DiceLoss()"
    done = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
