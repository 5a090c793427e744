"""What `make docs` builds the documentation by."""

import re
from importlib import metadata

from sphinx.application import Sphinx

project = "segloss"
author = copyright = "segloss contributors"
version = release = metadata.version("torch-segloss")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_title = f"segloss {release}"
html_show_sourcelink = False

myst_heading_anchors = 3
nitpicky = True  # a name in a docstring that does not exist is a warning, and a warning ends the build
nitpick_ignore_regex = [("py:.*", r"(torch|nn|collections|typing|Tensor|optional|ProcessGroup).*")]

autodoc_typehints = "none"  # signatures show them
autodoc_member_order = "bysource"
napoleon_use_rtype = False
copybutton_prompt_text = ">>> "


def link_names(_app: Sphinx, _what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Docstrings name their neighbours as help() shows them best."""
    lines[:] = [re.sub(r"``(segloss\.\w+)``", r":py:obj:`\1`", line) for line in lines]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", link_names, priority=400)  # before napoleon
