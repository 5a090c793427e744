"""Completes docstrings: a keyword is described once, and help() shows it wherever it is taken, with its default."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])

_ARGS = re.compile(r"^Args:\n((?: .*\n|\n(?= ))*)\n*", re.MULTILINE)
_ENTRY = re.compile(r"^    (\w+(?:, \w+)*): ", re.MULTILINE)
_SECTION = re.compile(r"^(Returns|Raises|Equivalent to|Example):\n", re.MULTILINE)
_WIDTH = 112


class _Parts(NamedTuple):
    text: str  # before the arguments
    entries: dict[str, str]  # of the arguments, by name; one that is of several is there for each
    sections: str  # after them


def documented(like: Callable[..., Any] | None = None) -> Callable[[_Function], _Function]:
    """Lets the docstring describe each argument: in the function's own words, in those of `like`, and its default."""

    def complete(function: _Function) -> _Function:
        if function.__doc__:  # not under python -OO
            own = _parts(function.__doc__)
            entries = own.entries if like is None else _parts(like.__doc__ or "").entries | own.entries
            arguments = _arguments(entries, inspect.signature(function).parameters)
            function.__doc__ = f"{own.text}\n\nArgs:\n{arguments}\n\n{own.sections}\n"
        return function

    return complete


def document_module(module: type, function: Callable[..., Any]) -> None:
    """Describes a module by its function: what it computes, and the keywords that it takes."""
    if not (module.__doc__ and function.__doc__):
        return
    own, of_function = _parts(module.__doc__), _parts(function.__doc__)
    keywords = {name: each for name, each in inspect.signature(module).parameters.items() if name != "self"}
    arguments = _arguments(of_function.entries | own.entries, keywords)
    _, _, explanation = of_function.text.partition("\n\n")
    buffer = "\n``weight`` is a buffer, so that it moves with the module." if "weight" in keywords else ""
    call = "Called as ``loss(input, target, voxel_weight=None)``; shapes, dtypes and errors are the function's."
    module.__doc__ = f"{own.text}\n\n{explanation}\n\nArgs:\n{arguments}\n\n{call}{buffer}\n\n{own.sections}\n"


def _parts(doc: str) -> _Parts:
    doc = inspect.cleandoc(doc) + "\n"
    args = _ARGS.search(doc)
    if args:
        before, entries, sections = doc[: args.start()], args[1], doc[args.end() :]
    else:
        section = _SECTION.search(doc)
        start = section.start() if section else len(doc)
        before, entries, sections = doc[:start], "", doc[start:]
    _, *names_and_texts = _ENTRY.split(entries)
    by_name = {
        name: f"    {names}: {text.rstrip()}"
        for names, text in zip(names_and_texts[::2], names_and_texts[1::2], strict=True)
        for name in names.split(", ")
    }
    return _Parts(before.rstrip(), by_name, sections.rstrip())


def _arguments(entries: Mapping[str, str], parameters: Mapping[str, inspect.Parameter]) -> str:
    """In the order of the signature."""
    texts = {name: _with_default(entries[name], parameter.default) for name, parameter in parameters.items()}
    return "\n".join(dict.fromkeys(texts.values()))


def _with_default(entry: str, default: object) -> str:
    """An entry says its default itself where the signature has None for it, or nothing."""
    if "Default: " in entry or default is inspect.Parameter.empty:
        return entry
    value = f'``"{default}"``' if isinstance(default, str) else f"{default:g}" if type(default) is float else default
    *_, last_line = entry.splitlines()
    text = f"Default: {value}."
    return f"{entry} {text}" if len(last_line) + len(text) < _WIDTH else f"{entry}\n        {text}"
