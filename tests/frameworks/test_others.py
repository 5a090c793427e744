"""The lines of docs/coming-from/others.md against Ultralytics, MMSegmentation and timm, and Detectron2's own two lines.

Only the modules of the losses are imported, without what the package itself would import first.
"""

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from tolerances import assert_close
from torch import Tensor, nn
from torch.nn import functional as F

import segloss
from segloss import smp

pytestmark = pytest.mark.cpu_only

PAGE = (Path(__file__).parents[2] / "docs/coming-from/others.md").read_text(encoding="utf-8")


def code_of(section: str) -> list[str]:
    """The blocks of code below a heading."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"^```py\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def module_without_its_parents(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of a package; the packages above it are there, but empty."""
    package, *_ = name.split(".")
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    parents = name.split(".")[:-1]
    for i in range(len(parents)):
        spec = importlib.util.find_spec(".".join(parents[: i + 1]))
        monkeypatch.setitem(sys.modules, spec.name, importlib.util.module_from_spec(spec))
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} was not imported: {error}")


def batch(ignored: int | None = None, classes_last: bool = False) -> tuple[Tensor, Tensor]:
    """Logits [2, 4, 8, 12] or [2, 12, 4], and labels."""
    shape, sizes = ((2, 12, 4), (2, 12)) if classes_last else ((2, 4, 8, 12), (2, 8, 12))
    labels = torch.randint(4, sizes)
    if ignored is not None:
        labels = labels.masked_fill(torch.rand(sizes) < 0.3, ignored)
    return torch.randn(shape, dtype=torch.float64, requires_grad=True), labels


def assert_same(ours: Tensor, theirs: Tensor, logits: Tensor, dtype: torch.dtype = torch.float64) -> None:
    assert_close(ours, theirs, dtype)
    assert_close(*(torch.autograd.grad(loss * logits.numel(), logits)[0] for loss in (ours, theirs)), dtype)


# ---- Ultralytics ----


@pytest.fixture
def ultralytics_loss(monkeypatch, tmp_path):
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))  # it writes its settings at import
    try:
        return importlib.import_module("ultralytics.utils.loss")
    except ImportError as error:
        pytest.skip(f"ultralytics was not imported: {error}")


@pytest.mark.parametrize("ignored", [None, 255])
@pytest.mark.parametrize("weighted", [False, True])
def test_semantic_segmentation_of_ultralytics(ultralytics_loss, monkeypatch, weighted, ignored):
    for method in ("_ce_loss", "_dice_loss"):
        original = getattr(ultralytics_loss.SemanticSegmentationLoss, method)
        monkeypatch.setattr(ultralytics_loss.SemanticSegmentationLoss, method, original)  # put back after the test
    model = nn.Conv2d(1, 1, 1).double()
    model.model, model.args = [SimpleNamespace(nc=4)], SimpleNamespace(data="")
    model.class_weights = torch.tensor([1.0, 2.0, 3.0, 4.0]) if weighted else None
    loss = ultralytics_loss.SemanticSegmentationLoss(model)
    logits, labels = batch(ignored)
    arguments = (logits[..., ::2, ::2], logits[..., ::4, ::4]), {"semantic_mask": labels.to(torch.uint8)}
    before, items_before = loss(*arguments)
    exec(code_of("Ultralytics")[0], {"segloss": segloss})
    after, items_after = loss(*arguments)
    assert_same(after, before, logits, torch.float32)  # Ultralytics adds up in float32
    assert items_before.keys() == items_after.keys()


def test_bce_dice_loss_of_ultralytics(ultralytics_loss):
    x, _ = batch()
    m = (torch.rand(x.shape) < 0.4).double()
    ours = eval(code_of("Ultralytics")[1], {"segloss": segloss, "x": x, "m": m})
    assert_same(ours, ultralytics_loss.BCEDiceLoss()(x, m), x)


# ---- MMSegmentation ----


@pytest.fixture
def mmseg_losses(monkeypatch):
    names = ("cross_entropy_loss", "dice_loss")
    return [module_without_its_parents(f"mmseg.models.losses.{name}", monkeypatch) for name in names]


@pytest.fixture
def registry(mmseg_losses):
    return mmseg_losses[0].MODELS


@pytest.mark.filterwarnings("ignore:.torch.jit.interface. is deprecated")  # mmengine imports what calls it
def test_cross_entropy_of_mmsegmentation(registry):
    before, after, own_class = code_of("MMSegmentation")
    exec(own_class, {"segloss": segloss, "MODELS": registry})
    losses = []
    for code in (after, before):
        exec(code, config := {})
        losses.append(registry.build(config["loss_decode"]))
    for ignored in (None, 255):
        x, y = batch(ignored)
        # Its mean has an epsilon in the denominator.
        assert_same(*(loss(x, y, weight=None, ignore_index=255) for loss in losses), x, torch.float32)
    assert losses[0].loss_name == losses[1].loss_name
    everything = torch.full_like(y, 255)
    assert losses[0](x, everything, weight=None, ignore_index=255) == 0


def test_class_weights_of_mmsegmentation_fail_on_ignored_pixels(mmseg_losses):
    weights = [1.0, 2.0, 3.0, 4.0]
    theirs, ours = mmseg_losses[0].CrossEntropyLoss(class_weight=weights, avg_non_ignore=True), segloss.CrossEntropyLoss
    x, y = batch()
    assert_same(ours(weights, ignore_index=255)(x, y), theirs(x, y, ignore_index=255), x, torch.float32)
    x, y = batch(255)
    with pytest.raises(IndexError):
        theirs(x, y, ignore_index=255)
    expected = F.cross_entropy(x, y, torch.tensor(weights).double(), ignore_index=255)
    assert_close(ours(weights, ignore_index=255)(x, y), expected)


def test_mmsegmentation_divides_by_ignored_pixels_too(mmseg_losses):
    x, y = batch(255)
    with pytest.warns(UserWarning, match="avg_non_ignore"):
        theirs = mmseg_losses[0].CrossEntropyLoss()
    assert_same(smp.SoftCrossEntropyLoss(ignore_index=255)(x, y), theirs(x, y, ignore_index=255), x, torch.float32)


def test_dice_of_mmsegmentation(mmseg_losses):
    x, y = batch()
    theirs = mmseg_losses[1].DiceLoss(use_sigmoid=False, naive_dice=True, ignore_index=None)
    ours = segloss.generalized_dice_loss(x, y, w_type="uniform", smooth_nr=1e-3, smooth_dr=1e-3)
    assert_same(ours, theirs(x, y), x)


# ---- Detectron2 ----


@pytest.mark.parametrize("ignored", [None, 255])
def test_the_head_of_detectron2(ignored):
    """Against its two lines as the page has them: it is built from source, so that no test environment has it."""
    before, after = code_of("Detectron2")
    registered = []

    class SemSegFPNHead:
        common_stride, ignore_value, loss_weight = 4, 255, 0.5

    names = {
        "segloss": segloss,
        "SemSegFPNHead": SemSegFPNHead,
        "SEM_SEG_HEADS_REGISTRY": SimpleNamespace(register=lambda: registered.append),
    }
    exec(after, names)
    (head,) = registered
    _, targets = batch(ignored)
    predictions = torch.randn(2, 4, 2, 3, requires_grad=True)
    old = {"F": F, "self": head(), "predictions": predictions, "targets": targets}
    exec(before, old)
    ours = head().losses(predictions, targets)
    assert ours.keys() == {"loss_sem_seg"}
    assert_same(ours["loss_sem_seg"], 0.5 * old["loss"], predictions, torch.float32)


def test_hard_pixel_mining_of_detectron2():
    """By its formula, the mean of the largest 20 % of the losses."""
    x, y = batch()
    losses = F.cross_entropy(x, y, reduction="none").flatten()
    assert_same(segloss.topk_loss(x, y, k=20), losses.topk(int(0.2 * losses.numel())).values.mean(), x)


# ---- timm ----


def test_label_smoothing_of_timm(monkeypatch):
    timm = module_without_its_parents("timm.loss.cross_entropy", monkeypatch)
    before, after = code_of("timm")
    logits, labels = batch()
    names = {"LabelSmoothingCrossEntropy": timm.LabelSmoothingCrossEntropy, "segloss": segloss}
    losses = []
    for code in (after, before):
        exec(code, names | (own := {"logits": logits, "labels": labels}), own)
        losses.append(own["loss"])
    assert_same(*losses, logits)


def test_the_table_of_timm(monkeypatch):
    cross_entropy = module_without_its_parents("timm.loss.cross_entropy", monkeypatch)
    binary = module_without_its_parents("timm.loss.binary_cross_entropy", monkeypatch)
    z, _ = batch(classes_last=True)
    data = {"z": z, "t": torch.rand(z.shape).double().softmax(-1), "m": (torch.rand(z.shape) < 0.4).double()}
    lines = re.findall(r"^\| `(.+)` \| `(.+)` \|$", PAGE, re.MULTILINE)
    assert len(lines) == 2
    for theirs, ours in lines:
        expected = eval(theirs, {**vars(cross_entropy), **vars(binary), **data})
        assert_same(eval(ours, {**vars(segloss), **data}), expected, z)
