"""Completes docstrings at import: a keyword is described once, and help() shows it wherever it is taken.

Editors read the source instead. There a docstring describes the arguments that are its own, and an entry "others" under
Args says which function describes the rest. The completed docstring has the rest in place of that entry.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])

_SECTIONS = ("Args", "Call", "Returns", "Raises", "Equivalent to", "Example", "See also")
_HEADING = re.compile(rf"^({'|'.join(_SECTIONS)}):\n", re.MULTILINE)
_ENTRY = re.compile(r"^    (\w+(?:, \w+)*): ", re.MULTILINE)
_WIDTH = 112


class _Doc(NamedTuple):
    text: str  # before the sections
    sections: dict[str, str]  # by heading

    def entries(self) -> dict[str, str]:
        """The arguments by name; an entry of several arguments is there for each."""
        _, *names_and_texts = _ENTRY.split(self.sections.get("Args", ""))
        return {
            name: f"    {names}: {text.rstrip()}"
            for names, text in zip(names_and_texts[::2], names_and_texts[1::2], strict=True)
            for name in names.split(", ")
        }

    def __str__(self) -> str:
        sections = (f"{heading}:\n{self.sections[heading]}" for heading in _SECTIONS if heading in self.sections)
        return "\n\n".join([self.text, *sections]) + "\n"


def documented(like: Callable[..., Any] | None = None) -> Callable[[_Function], _Function]:
    """Completes a function's Args: its own entries, those of `like` for the other parameters, and the defaults."""

    def complete(function: _Function) -> _Function:
        if function.__doc__:  # not under python -OO
            own = _parsed(function.__doc__)
            entries = own.entries() if like is None else _parsed(like.__doc__ or "").entries() | own.entries()
            own.sections["Args"] = _arguments(entries, inspect.signature(function).parameters)
            function.__doc__ = str(own)
        return function

    return complete


def document_module(module: type, function: Callable[..., Any]) -> None:
    """Completes a module's docstring by that of its function: all but summary, example and neighbours."""
    if not (module.__doc__ and function.__doc__):
        return
    own, of_function = _parsed(module.__doc__), _parsed(function.__doc__)
    entries = of_function.entries()
    of_call = [name for name in inspect.signature(module.forward).parameters if name != "self"]  # type: ignore[attr-defined]
    call = "\n".join(_bullet(entries[name]) for name in of_call)
    optional = "".join(f", {name}=None" for name in of_call[2:])
    for name in ("weight", "pos_weight"):
        if name in entries:
            entries[name] += "\n        It is a buffer and moves with the module."
    sections = of_function.sections | own.sections
    sections["Args"] = _arguments(entries, inspect.signature(module).parameters)
    sections["Call"] = f"    ``loss(input, target{optional})``, where\n\n{call}"
    summary, *_ = own.text.partition("\n\n")  # the explanation comes from the function, which may say more
    _, _, explanation = of_function.text.partition("\n\n")
    module.__doc__ = str(_Doc(f"{summary}\n\n{explanation}", sections))


def _parsed(doc: str) -> _Doc:
    text, *rest = _HEADING.split(inspect.cleandoc(doc) + "\n")
    return _Doc(text.rstrip(), {heading: body.rstrip() for heading, body in zip(rest[::2], rest[1::2], strict=True)})


def _bullet(entry: str) -> str:
    return "    * " + entry[4:].replace("\n        ", "\n      ")


def _arguments(entries: Mapping[str, str], parameters: Mapping[str, inspect.Parameter]) -> str:
    """The entries, with defaults, in the order of the signature."""
    texts = [_with_default(entries[name], each.default) for name, each in parameters.items() if name != "self"]
    return "\n".join(dict.fromkeys(texts))


def _with_default(entry: str, default: object) -> str:
    """The entry with its default, unless it states one itself (as it does for None) or the signature has none."""
    if "Default:" in entry or default is inspect.Parameter.empty:
        return entry
    value = f'``"{default}"``' if isinstance(default, str) else f"{default:g}" if type(default) is float else default
    *_, last_line = entry.splitlines()
    text = f"Default: {value}."
    return f"{entry} {text}" if len(last_line) + len(text) < _WIDTH else f"{entry}\n        {text}"
