"""The code of README and of the documentation runs, page by page, and prints or raises what stands below it."""

import doctest
import json
import re
import runpy
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import segloss

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# A block of code, and the block of text below it, if any, with what it prints or raises.
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n?```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
ERROR = re.compile(r"(\w+Error): (.*)", re.DOTALL)


def stand_ins():
    """What a reader has: a network, a data loader, an optimizer, and labels with some voxels unlabelled."""
    net = nn.Conv3d(1, 4, 3, padding=1)
    images, labels = torch.randn(2, 1, 8, 16, 16), torch.randint(4, (2, 1, 8, 16, 16), dtype=torch.uint8)
    labels[:, :, 0] = 255
    loader, optimizer = [(images, labels)] * 2, torch.optim.SGD(net.parameters(), lr=0.01)
    names = {"torch": torch, "nn": nn, "F": F, "segloss": segloss, "net": net, "loader": loader, "optimizer": optimizer}
    return names | {"images": images, "labels": labels, "logits": net(images)}


def printed(code, names):
    with redirect_stdout(StringIO()) as output:
        exec(compile(code, "<documentation>", "exec"), names)
    return output.getvalue()


def check(code, below, names):
    if code.startswith(">>>"):
        test = doctest.DocTestParser().get_doctest(code, names, "documentation", None, None)
        assert doctest.DocTestRunner().run(test, clear_globs=False).failed == 0
        names.update(test.globs)
    elif error := ERROR.match(below):
        with pytest.raises(Exception, match=f"^{re.escape(error[2].strip())}") as raised:
            printed(code, names)
        assert raised.typename == error[1]
    else:
        assert printed(code, names).strip() == below.strip()


@pytest.mark.cpu_only
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_of_the_page(page, monkeypatch):
    for variable, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(variable, value)  # as torchrun sets them
    torch.manual_seed(0)
    names = stand_ins()
    for code, below in BLOCK.findall(page.read_text(encoding="utf-8")):
        check(code, below, names)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.cpu_only
def test_readme_changes_a_script_without_changing_its_loss():
    names = stand_ins()
    before, after = (code for code, _ in BLOCK.findall(README.split("## Change a script")[1])[:2])
    losses = []
    for code in (before, after):
        names["net"].zero_grad()
        printed(code, names)
        losses.append((names["loss"], names["net"].weight.grad.clone()))
    torch.testing.assert_close(losses[1], losses[0])


@pytest.mark.cpu_only
@pytest.mark.parametrize("table", ["in_short", "by_shape"])
def test_readme_has_the_tables_that_the_benchmark_made(table):
    results = json.loads((ROOT / "benchmarks/results/full.json").read_text())
    assert runpy.run_path(str(ROOT / "benchmarks/report.py"))[table](results) in README


def anchors(page):
    """The anchors of the page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.cpu_only
@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_outside_the_documentation_lead_somewhere(page):
    """`make docs` checks the links within it."""
    links = re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", (ROOT / page).read_text(encoding="utf-8"))
    assert links
    for path, anchor in links:
        target = ROOT / (path or page)
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


@pytest.mark.cpu_only
def test_the_documentation_of_the_interface_has_every_public_name():
    documented = re.findall(
        r"^\.\. auto(?:function|class):: segloss\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE
    )
    assert sorted(documented) == sorted(segloss.__all__)
